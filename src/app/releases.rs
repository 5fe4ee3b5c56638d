//! Looking at releases and asking for things: `serinus get`, `describe`, `watch`,
//! `approve`, `promote`, `abort` and `retry`. As `kubectl-serinus` on the path they
//! are `kubectl serinus …`.

mod text;

use std::{io::IsTerminal, pin::pin};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::{NamespaceResourceScope, api::authentication::v1::SelfSubjectReview};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::KubeConfigOptions,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

use super::{
    clock,
    process::{install_tls, say},
};
use crate::{
    api::{
        PromptRelease, PromptReleaseStatus,
        prompt_release::{HandledRequest, Outcome},
    },
    rollout::{
        revisions::{known_revisions, named},
        snapshot::Action,
    },
};

/// Commands about releases in a cluster.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List releases.
    Get {
        #[command(flatten)]
        at: Place,
        /// In all namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Show a release with its evidence.
    Describe {
        #[command(flatten)]
        at: Place,
        /// The release.
        name: String,
    },
    /// Follow a release, a line a change.
    Watch {
        #[command(flatten)]
        at: Place,
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

/// Which cluster and namespace.
#[derive(clap::Args)]
pub struct Place {
    /// The namespace. Default: the one of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// The context of the kubeconfig. Default: the current one.
    #[arg(long)]
    context: Option<String>,
}

/// What a person asks for.
#[derive(clap::Args)]
pub struct Asked {
    #[command(flatten)]
    at: Place,
    /// The release.
    name: String,
    /// The revision that it is about, or a unique beginning of it from 4 characters on.
    /// Default: the running canary; for retry, the one that failed.
    revision: Option<String>,
}

/// Runs a command; answers whether all is well.
///
/// # Errors
/// The cluster can not be asked, or what was asked for is not possible.
pub async fn run(command: Command) -> anyhow::Result<bool> {
    install_tls();
    match command {
        Command::Get { at, all_namespaces } => get(&at, all_namespaces).await.map(|()| true),
        Command::Describe { at, name } => {
            let release = one(&at.releases().await?, &name).await?;
            print!("{}", text::description(&release, clock::now()));
            Ok(true)
        }
        Command::Watch { at, name, wait } => watch(&at, &name, wait).await,
        Command::Approve(asked) => ask(Action::Approve, &asked).await,
        Command::Promote(asked) => ask(Action::Promote, &asked).await,
        Command::Abort(asked) => ask(Action::Abort, &asked).await,
        Command::Retry(asked) => ask(Action::Retry, &asked).await,
    }
}

impl Place {
    /// A client of that cluster.
    ///
    /// # Errors
    /// There is none, and what to do.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let advice = "no cluster to talk to: set KUBECONFIG or --context";
        let config = match &self.context {
            None => Config::infer().await.context(advice)?,
            Some(_) => {
                let options = KubeConfigOptions {
                    context: self.context.clone(),
                    ..KubeConfigOptions::default()
                };
                Config::from_kubeconfig(&options).await.context(advice)?
            }
        };
        Ok(Client::try_from(config)?)
    }

    async fn releases(&self) -> anyhow::Result<Api<PromptRelease>> {
        Ok(self.api(self.client().await?))
    }

    /// The objects of a kind in that namespace.
    pub(super) fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        }
    }
}

async fn one(api: &Api<PromptRelease>, name: &str) -> anyhow::Result<PromptRelease> {
    let found = api.get_opt(name).await.context("the releases can not be read")?;
    found.with_context(|| {
        format!("there is no PromptRelease {name} in this namespace: `serinus get -A` lists all")
    })
}

async fn get(at: &Place, all: bool) -> anyhow::Result<()> {
    let api = if all { Api::all(at.client().await?) } else { at.releases().await? };
    let list = api.list(&ListParams::default()).await.context("the releases can not be read")?;
    if list.items.is_empty() {
        say("no PromptReleases found");
    } else {
        print!("{}", text::list(&list.items, all, clock::now()));
    }
    Ok(())
}

/// A line a change. With `wait`, until the release has settled.
async fn watch(at: &Place, name: &str, wait: bool) -> anyhow::Result<bool> {
    let api = at.releases().await?;
    one(&api, name).await?;
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = pin!(watcher(api, config).default_backoff().applied_objects());
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

/// How long to wait for the operator's answer to a request.
const ANSWER_SECONDS: u64 = 10;

/// Puts the request on the release and waits for the answer; who asks is told by the API
/// server. Answers whether the request was carried out.
async fn ask(action: Action, asked: &Asked) -> anyhow::Result<bool> {
    let client = asked.at.client().await?;
    let api = asked.at.releases().await?;
    let release = one(&api, &asked.name).await?;
    let status = release.status.clone().unwrap_or_default();
    let revision = match (&asked.revision, subject(action, &status)) {
        (Some(named), _) => full_name(&status, named)?,
        (None, Some(revision)) => revision,
        (None, None) if action == Action::Retry => {
            bail!("no revision of {} has failed: there is nothing to retry", asked.name)
        }
        (None, None) => bail!(
            "{} has no running canary: `serinus describe {}` shows where it is",
            asked.name,
            asked.name
        ),
    };
    let who = whoami(&client).await?;
    let at = clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let value = format!("{revision} by={who} at={at}");
    let patch = json!({"metadata": {"annotations": {(action.annotation()): value}}});
    api.patch(&asked.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("the request could not be written")?;
    let what = format!("{} of {revision} of {}", action.as_str(), release.name_any());
    match answer(&api, &asked.name, action, &value).await? {
        Some(handled) if handled.accepted => println!("{what}: done, as {who}"),
        Some(handled) => {
            println!("{what}: refused and not kept: {}", handled.message);
            return Ok(false);
        }
        None => {
            println!(
                "{what}: asked, as {who}; no operator has answered within {ANSWER_SECONDS} s. The request is kept on the release"
            );
        }
    }
    if std::io::stdout().is_terminal() {
        println!("`serinus watch {}` shows what comes of it", asked.name);
    }
    Ok(true)
}

/// What the operator made of the request.
async fn answer(
    api: &Api<PromptRelease>,
    name: &str,
    action: Action,
    value: &str,
) -> anyhow::Result<Option<HandledRequest>> {
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(500));
    for _ in 0..=2 * ANSWER_SECONDS {
        ticks.tick().await;
        let status = one(api, name).await?.status.unwrap_or_default();
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

async fn whoami(client: &Client) -> anyhow::Result<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .context("the API server does not tell who you are")?;
    let name = review.status.and_then(|s| s.user_info).and_then(|u| u.username);
    // The value is split at spaces.
    Ok(name.unwrap_or_else(|| "unknown".to_owned()).replace(char::is_whitespace, "_"))
}
