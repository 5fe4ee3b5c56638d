//! What a shell and `man` know of the commands.

use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

/// Which shell.
#[derive(clap::Args)]
pub struct CompletionOptions {
    /// The shell; `source <(serinus completion bash)` loads it.
    shell: Shell,
}

/// Where the pages go.
#[derive(clap::Args)]
pub struct ManOptions {
    /// Write a page for each command into this folder. Default: print the page of `serinus`.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the completions.
pub fn complete(options: &CompletionOptions, mut command: Command) {
    // Into memory first: the library ends by a panic when nobody reads.
    let mut text = vec![];
    clap_complete::generate(options.shell, &mut command, "serinus", &mut text);
    print!("{}", String::from_utf8_lossy(&text));
}

/// Prints a page, or writes all.
///
/// # Errors
/// The folder can not be written.
pub fn man(options: &ManOptions, command: Command) -> anyhow::Result<()> {
    match &options.out {
        Some(folder) => {
            let command = command.disable_help_subcommand(true);
            let made = std::fs::create_dir_all(folder);
            made.and_then(|()| clap_mangen::generate_to(command, folder))
                .with_context(|| format!("{} can not be written", folder.display()))
        }
        None => {
            let mut text = vec![];
            clap_mangen::Man::new(command).render(&mut text)?;
            print!("{}", String::from_utf8_lossy(&text));
            Ok(())
        }
    }
}
