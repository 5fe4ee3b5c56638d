//! Looking at releases and asking for things: `serinus get`, `describe`, `explain`, `history`,
//! `watch`, `approve`, `promote`, `abort` and `retry`, in a cluster or in a folder that
//! `serinus standalone` runs. As `kubectl-serinus` on the path they are `kubectl serinus …`.

mod ask;
mod explain;
mod place;
mod text;

use std::pin::pin;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use serde_json::{Value, json};

pub use self::place::Scope;
pub(super) use self::place::unread;
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
    api::{
        PromptRelease, conditions,
        prompt_release::{Outcome, Phase},
    },
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
                let release = at.source().await?.one(&name).await;
                let release = release.with_context(|| explain::no_reason(&name))?;
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
        None if releases.is_empty() => {
            say(format_args!("no PromptReleases found{}", source.within(all)));
        }
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

/// Whether the variant of the spec serves, once nothing is under way any more; none before.
fn settled(release: &PromptRelease) -> Option<bool> {
    let status = release.status.as_ref()?;
    if !is_observed(release) {
        return None;
    }
    let is = |type_: &str, is: &str| {
        conditions::find(&status.conditions, type_).is_some_and(|c| c.status == is)
    };
    let stalled = is(conditions::types::STALLED, "True");
    let spec = &release.spec;
    let serves = status.stable.as_ref().is_some_and(|stable| {
        stable.prompt == spec.prompt_ref.name && stable.backend == spec.backend_ref.name
    });
    match status.phase {
        Phase::RolledBack => Some(false),
        // What the spec names is not there, not valid, or somebody else's; or nothing begins
        // before a person lets it.
        Phase::Stable | Phase::Pending if stalled || (spec.suspend && !serves) => Some(false),
        // What is missing is waited for.
        Phase::Stable if !is(conditions::types::READY, "True") => None,
        Phase::Stable => {
            let last = status.history.last().map(|h| h.outcome);
            Some(!matches!(last, Some(Outcome::RolledBack)))
        }
        _ => None,
    }
}

/// What is to be said of a spec that no operator has seen.
const UNSEEN: &str = "no operator has seen this version of the spec: is an operator running (or \
                      `serinus standalone`), and does it watch this namespace?";

/// Whether an operator has seen the spec as it is.
fn is_observed(release: &PromptRelease) -> bool {
    let observed = release.status.as_ref().map(|status| status.observed_generation);
    observed.is_some_and(|seen| release.metadata.generation.is_none_or(|now| now == seen))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn release(spec: Value, status: Value) -> PromptRelease {
        let mut all = json!({"promptRef": {"name": "p-v2"}, "backendRef": {"name": "b"}});
        let named = spec.as_object().cloned().unwrap_or_default();
        all.as_object_mut().unwrap().extend(named);
        serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "shop", "generation": 2},
            "spec": all, "status": status,
        }))
        .unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-11-29T00:00:00Z"})
    }

    #[test]
    fn a_wait_ends_well_only_when_the_variant_of_the_spec_serves() {
        let variant = |prompt: &str| json!({"revision": "1", "prompt": prompt, "backend": "b"});
        let status = |phase: &str, prompt: &str, conditions: &[Value]| {
            json!({"observedGeneration": 2, "phase": phase, "stable": variant(prompt),
                "conditions": conditions})
        };
        let ready = || condition("Ready", "True", "Serving");
        let waits = || condition("Ready", "False", "PromptNotFound");
        let stalled = || condition("Stalled", "True", "PromptNotFound");
        let nothing = json!({});
        for (expected, what, spec, status) in [
            (Some(true), "it serves", &nothing, status("Stable", "p-v2", &[ready()])),
            // A prompt of another name with the same words is the same revision.
            (Some(true), "the same", &nothing, status("Stable", "p-v1", &[ready()])),
            (None, "a canary", &nothing, status("Progressing", "p-v1", &[ready()])),
            (None, "a bake", &nothing, status("Baking", "p-v2", &[ready()])),
            (Some(false), "rolled back", &nothing, status("RolledBack", "p-v1", &[ready()])),
            (None, "missing, still waited for", &nothing, status("Stable", "p-v1", &[waits()])),
            (Some(false), "missing", &nothing, status("Stable", "p-v1", &[waits(), stalled()])),
            (None, "nothing served yet", &nothing, json!({"observedGeneration": 2})),
            (
                Some(false),
                "nothing will be served",
                &nothing,
                json!({"observedGeneration": 2, "conditions": [waits(), stalled()]}),
            ),
            (
                Some(false),
                "suspended",
                &json!({"suspend": true}),
                status("Stable", "p-v1", &[condition("Ready", "True", "Suspended")]),
            ),
            (
                Some(true),
                "suspended, and served",
                &json!({"suspend": true}),
                status("Stable", "p-v2", &[ready()]),
            ),
            (None, "not seen", &nothing, json!({"observedGeneration": 1, "phase": "Stable"})),
            (None, "new", &nothing, json!({"observedGeneration": -1})),
        ] {
            assert_eq!(settled(&release(spec.clone(), status)), expected, "{what}");
        }
    }

    #[test]
    fn what_nobody_has_looked_at_is_said() {
        let new = release(json!({}), json!({"observedGeneration": -1}));
        let seen = release(json!({}), json!({"observedGeneration": 2}));
        let told = |release: &PromptRelease| {
            [text::description(release, clock::now()), explain::release(release, "", clock::now())]
        };
        assert!(told(&new).iter().all(|text| text.contains("no operator has seen")));
        assert!(told(&seen).iter().all(|text| !text.contains("no operator has seen")));
        let [text, _] = told(&seen);
        assert!(text.contains("Traffic:") && text.contains("none: nothing is served"), "{text}");
    }

    #[test]
    fn what_comes_next_is_true_of_what_waits() {
        let stable = json!({"revision": "1", "prompt": "p-v1", "backend": "b"});
        let status = |reason: &str| {
            json!({"observedGeneration": 2, "phase": "Stable", "stable": stable,
                "conditions": [condition("Ready", "False", reason)]})
        };
        for (spec, reason, part) in [
            (json!({"suspend": true}), "Suspended", "until spec.suspend is false"),
            (json!({}), "PromptNotFound", "when all that the spec names exists"),
            (json!({}), "Serving", "until the spec names another prompt"),
        ] {
            let text = explain::release(&release(spec, status(reason)), "", clock::now());
            assert!(text.contains(part), "{text}");
        }
    }
}
