//! Looking at releases and asking for things: `serinus get`, `describe`, `explain`, `history`,
//! `watch`, `approve`, `promote`, `abort` and `retry`, in a cluster or in a folder that
//! `serinus standalone` runs. As `kubectl-serinus` on the path they are `kubectl serinus …`.

mod ask;
mod explain;
mod place;
mod text;

use std::pin::pin;

use anyhow::bail;
use futures::TryStreamExt;
use serde_json::{Value, json};

pub use self::place::Scope;
use self::{
    ask::{Asked, ask},
    place::Where,
};
use super::{
    clock,
    output::{Output, complete},
    process::{install_tls, say},
};
use crate::{
    api::{PromptRelease, prompt_release::Outcome},
    rollout::snapshot::Action,
};

/// Commands about releases.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List releases.
    Get {
        #[command(flatten)]
        at: Where,
        /// One release. Default: all of the namespace.
        name: Option<String>,
        /// In all namespaces.
        #[arg(short = 'A', long, conflicts_with = "name")]
        all_namespaces: bool,
        /// For people or for programs.
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Show a release with its evidence.
    Describe {
        #[command(flatten)]
        at: Where,
        /// The release.
        name: String,
        /// For people or for programs.
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Why a release is where it is, and what comes next; or what a reason means.
    Explain {
        #[command(flatten)]
        at: Where,
        /// The release, or a reason, for example NoData.
        name: String,
    },
    /// What a release has served, and by which evidence.
    History {
        #[command(flatten)]
        at: Where,
        /// The release.
        name: String,
        /// For people or for programs.
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Follow a release, a line a change.
    Watch {
        #[command(flatten)]
        at: Where,
        /// The release.
        name: String,
        /// Stop when nothing is under way any more; the exit code is 0 when the spec's
        /// variant serves, and 1 when it does not.
        #[arg(long)]
        wait: bool,
    },
    /// Go on from an approval step, or from a held step. Refused, and not kept, before the
    /// canary waits for it.
    Approve(Asked),
    /// Skip the remaining steps and promote.
    Promote(Asked),
    /// Take the canary out of routing.
    Abort(Asked),
    /// Try a revision again that failed or was aborted.
    Retry(Asked),
}

/// Runs a command; answers whether all is well.
///
/// # Errors
/// The releases can not be read, or what was asked for is not possible.
pub async fn run(command: Command) -> anyhow::Result<bool> {
    install_tls();
    match command {
        Command::Get { at, name, all_namespaces, output } => {
            get(&at, name.as_deref(), all_namespaces, output).await?;
        }
        Command::Describe { at, name, output } => {
            let release = at.source().await?.one(&name).await?;
            match output.document(&object(&release)?)? {
                Some(document) => print!("{document}"),
                None => print!("{}", text::description(&release, clock::now())),
            }
        }
        Command::Explain { at, name } => match explain::reason(&name) {
            Some(known) => print!("{known}"),
            None => {
                let release = at.source().await?.one(&name).await?;
                print!("{}", explain::release(&release, &at.in_words(), clock::now()));
            }
        },
        Command::History { at, name, output } => {
            let release = at.source().await?.one(&name).await?;
            let history = release.status.map(|status| status.history).unwrap_or_default();
            match output.document(&history)? {
                Some(document) => print!("{document}"),
                None if history.is_empty() => say(format_args!("{name} has served nothing yet")),
                None => print!("{}", text::history(&history, clock::now())),
            }
        }
        Command::Watch { at, name, wait } => return watch(&at, &name, wait).await,
        Command::Approve(asked) => return ask(Action::Approve, &asked).await,
        Command::Promote(asked) => return ask(Action::Promote, &asked).await,
        Command::Abort(asked) => return ask(Action::Abort, &asked).await,
        Command::Retry(asked) => return ask(Action::Retry, &asked).await,
    }
    Ok(true)
}

async fn get(at: &Where, name: Option<&str>, all: bool, output: Output) -> anyhow::Result<()> {
    let source = at.source().await?;
    let (releases, unread) = match name {
        Some(name) => (vec![source.one(name).await?], Vec::new()),
        None => source.list(all).await?,
    };
    let document = match name {
        Some(_) => output.document(&object(&releases[0])?)?,
        None => output.document(&items(&releases)?)?,
    };
    match document {
        Some(document) => print!("{document}"),
        None if releases.is_empty() => say("no PromptReleases found"),
        None => print!("{}", text::list(&releases, all, clock::now())),
    }
    complete(&unread)
}

/// A line a change. With `wait`, until the release has settled.
async fn watch(at: &Where, name: &str, wait: bool) -> anyhow::Result<bool> {
    let source = at.source().await?;
    source.one(name).await?;
    let mut changes = pin!(source.changes(name));
    let mut last = String::new();
    while let Some(release) = changes.try_next().await? {
        let line = text::line(&release);
        if line != last {
            println!("{} {line}", clock::now().strftime("%H:%M:%S"));
            last = line;
        }
        if wait && let Some(well) = settled(&release) {
            return Ok(well);
        }
    }
    bail!("the watch ended")
}

/// Whether the variant of the spec serves, once nothing is under way any more.
fn settled(release: &PromptRelease) -> Option<bool> {
    use crate::api::prompt_release::Phase;
    let status = release.status.as_ref()?;
    if Some(status.observed_generation) != release.metadata.generation {
        return None;
    }
    match status.phase {
        Phase::RolledBack => Some(false),
        Phase::Stable => {
            let last = status.history.last().map(|h| h.outcome);
            Some(!matches!(last, Some(Outcome::RolledBack)))
        }
        _ => None,
    }
}

/// Releases as `kubectl get -o json` has several objects.
fn items(releases: &[PromptRelease]) -> anyhow::Result<Value> {
    let items = releases.iter().map(object).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

/// One release, without who wrote which field of it.
fn object(release: &PromptRelease) -> anyhow::Result<Value> {
    let mut release = release.clone();
    release.metadata.managed_fields = None;
    Ok(serde_json::to_value(release)?)
}
