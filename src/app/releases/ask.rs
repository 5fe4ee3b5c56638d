//! Asking for things: `approve`, `promote`, `abort` and `retry`.

use std::{io::IsTerminal, time::Duration};

use anyhow::bail;
use kube::ResourceExt;

use super::place::{Source, Where};
use crate::{
    api::{PromptReleaseStatus, prompt_release::HandledRequest},
    app::clock,
    rollout::{
        revisions::{known_revisions, named},
        snapshot::Action,
    },
};

/// What a person asks for.
#[derive(clap::Args)]
pub struct Asked {
    #[command(flatten)]
    at: Where,
    /// The release.
    name: String,
    /// The revision that it is about, or a unique beginning of it from 4 characters on: nothing
    /// is done when another one has taken its place. Default: the running canary; for retry, the
    /// one that failed.
    #[arg(long)]
    revision: Option<String>,
}

/// How long to wait for the answer to a request.
const ANSWER_SECONDS: u64 = 10;

/// Puts the request on the release and waits for the answer; who asks is told by the API
/// server. Answers whether the request was carried out.
pub(super) async fn ask(action: Action, asked: &Asked) -> anyhow::Result<bool> {
    let source = asked.at.source().await?;
    let release = source.one(&asked.name).await?;
    let status = release.status.clone().unwrap_or_default();
    let at = asked.at.in_words();
    let revision = match (&asked.revision, subject(action, &status)) {
        (Some(named), _) => full_name(&status, named)?,
        (None, Some(revision)) => revision,
        (None, None) if action == Action::Retry => {
            bail!("no revision of {} has failed: there is nothing to retry", asked.name)
        }
        (None, None) => bail!(
            "{0} has no running canary: `serinus describe {at}{0}` shows where it is",
            asked.name
        ),
    };
    let who = source.whoami().await?;
    let now = clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let value = format!("{revision} by={who} at={now}");
    source.ask(&release, action, &value).await?;
    let what = format!("{} of {revision} of {}", action.as_str(), release.name_any());
    match answer(&source, &asked.name, action, &value).await? {
        Some(handled) if handled.accepted => println!("{what}: done, as {who}"),
        Some(handled) => {
            println!("{what}: refused and not kept: {}", handled.message);
            return Ok(false);
        }
        None => {
            let nobody = source.unanswered();
            println!(
                "{what}: asked, as {who}; {nobody} within {ANSWER_SECONDS} s. The request is kept on the release"
            );
        }
    }
    if std::io::stdout().is_terminal() {
        println!("`serinus watch {at}{}` shows what comes of it", asked.name);
    }
    Ok(true)
}

/// What was made of the request.
async fn answer(
    source: &Source,
    name: &str,
    action: Action,
    value: &str,
) -> anyhow::Result<Option<HandledRequest>> {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..=2 * ANSWER_SECONDS {
        ticks.tick().await;
        let status = source.one(name).await?.status.unwrap_or_default();
        let ours = |h: &HandledRequest| h.action == action.as_str() && h.value == value;
        if let Some(handled) = status.requests.into_iter().find(ours) {
            return Ok(Some(handled));
        }
    }
    Ok(None)
}

/// The revision of the release that `text` begins.
fn full_name(status: &PromptReleaseStatus, text: &str) -> anyhow::Result<String> {
    named(&known_revisions(status), text).map_err(|why| anyhow::anyhow!(why))
}

/// The revision that a request is about when none is named.
fn subject(action: Action, status: &PromptReleaseStatus) -> Option<String> {
    match action {
        Action::Retry => status.failed_revision.clone(),
        _ => status.canary.as_ref().map(|c| c.variant.revision.clone()),
    }
}
