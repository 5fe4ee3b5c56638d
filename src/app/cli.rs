//! The commands.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::api::crd;

/// Releases prompts and models by evidence.
#[derive(Parser)]
#[command(name = "serinus", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the CustomResourceDefinitions, or write them into a folder.
    Crd {
        /// The folder to write into.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Print the version.
    Version,
}

/// Parses the arguments and runs the command.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Crd { out } => print_crds(out),
        Command::Version => {
            println!("serinus {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serinus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds(out: Option<PathBuf>) -> anyhow::Result<()> {
    for (file, definition) in crd::all() {
        let text = crd::to_yaml(&definition)?;
        match &out {
            Some(folder) => std::fs::write(folder.join(file), text)?,
            None => println!("---\n{text}"),
        }
    }
    Ok(())
}
