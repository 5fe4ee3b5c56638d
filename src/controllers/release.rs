//! PromptRelease: the rollout. Each look takes the caches and the gateways' reports,
//! decides, and writes: copies first, then the status (which moves traffic), then the
//! rest. A crash between any two of these is repaired by the next look.

mod asking;
mod observe;
pub mod triggers;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::channel::mpsc::UnboundedSender;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    ResourceExt,
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};

pub use self::asking::ask_prometheus;
use self::observe::observe;
pub use self::triggers::{Triggered, Triggers};
use super::{Context, Reconciled, error::ControllerError};
use crate::{
    api::{PromptRelease, keys, prompt_release::Phase, snapshot::Saved},
    rollout::{Effect, decide},
    signals::{
        gateways::{Changes, Pulled},
        watch::Touched,
    },
};

/// More decisions than this in one look are a mistake of ours; the next look goes on.
const DECISIONS_AT_ONCE: usize = 8;
/// How often to look whether the first pull is there.
const FIRST_PULL: Duration = Duration::from_millis(500);

/// Runs the controller until the process stops.
pub async fn run(
    store: Store<PromptRelease>,
    watch: Touched<PromptRelease>,
    triggers: Triggers,
    triggered: Triggered,
    context: Arc<Context>,
) {
    let controller =
        Controller::for_stream(triggers.tap_releases(watch), store).reconcile_on(triggered);
    super::drive("PromptRelease", controller, context, reconcile).await;
}

async fn reconcile(release: Arc<PromptRelease>, context: Arc<Context>) -> Reconciled {
    let term = context.cluster.term()?;
    if release.metadata.deletion_timestamp.is_some() {
        context.pulse.beat(term);
        return Ok(Action::await_change());
    }
    let Some(pulled) = context.gateways.last(term) else {
        return Ok(Action::requeue(FIRST_PULL));
    };
    let looked = looks(&release, &pulled, &context).await;
    // Also with an error: it was told, and is tried again.
    context.pulse.beat(term);
    looked
}

/// Looks until there is nothing more to decide now.
async fn looks(release: &PromptRelease, pulled: &Pulled, context: &Context) -> Reconciled {
    let mut release = release.clone();
    let mut just_saved = BTreeMap::new();
    for _ in 0..DECISIONS_AT_ONCE {
        let wake = look(&mut release, pulled, &mut just_saved, context).await?;
        match wake {
            Wake::Now => {}
            Wake::At(at) => return Ok(until(at, (context.clock)())),
            Wake::Never => return Ok(Action::await_change()),
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

enum Wake {
    Now,
    At(Timestamp),
    Never,
}

fn until(at: Timestamp, now: Timestamp) -> Action {
    Action::requeue(Duration::try_from(at - now).unwrap_or_default().max(Duration::from_millis(50)))
}

/// One decision, carried out.
async fn look(
    release: &mut PromptRelease,
    pulled: &Pulled,
    just_saved: &mut BTreeMap<String, Saved>,
    context: &Context,
) -> Result<Wake, ControllerError> {
    let now = (context.clock)();
    let snapshot = observe(release, pulled, just_saved, context)?;
    heal(release, &snapshot, context).await?;
    let plan = decide(&snapshot, now);
    for effect in &plan.effects {
        if let Effect::Save { name, content } = effect {
            context.cluster.save(release, name, content).await?;
            just_saved.insert(name.clone(), (**content).clone());
        }
    }
    let copies = copies_of(release, context);
    let changed = plan.status != snapshot.status;
    if changed {
        let mut status = plan.status;
        status.observed_generation = snapshot.generation;
        status.leader_term = Some(context.cluster.term()?);
        release.status = Some(status);
        *release = context.cluster.write_status(release).await?;
    }
    for effect in plan.effects {
        match effect {
            Effect::Save { .. } => {}
            Effect::Announce { warning, reason, note } => {
                context.cluster.announce(release, warning, &reason, &note).await;
            }
            Effect::Prune { keep } => prune(release, &copies, &keep, context).await?,
        }
    }
    Ok(match plan.wake_at {
        Some(at) if at <= now && changed => Wake::Now,
        Some(at) => Wake::At(at),
        None => Wake::Never,
    })
}

/// Saves anew what should have been kept and is gone, as long as its origin is there.
async fn heal(
    release: &PromptRelease,
    snapshot: &crate::rollout::Snapshot,
    context: &Context,
) -> Result<(), ControllerError> {
    let Ok(target) = &snapshot.target else { return Ok(()) };
    let routed = snapshot.status.routing.variants.iter().any(|v| v.revision == target.revision);
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    if routed && context.caches.saved(&namespace, &name, &target.revision)?.is_none() {
        let content = Saved::Variant(target.variant.clone());
        context.cluster.save(release, &target.revision, &content).await?;
    }
    Ok(())
}

/// The saved copies of a release that are known before anything is written, so that
/// pruning never drops one that a later leader made.
fn copies_of(release: &PromptRelease, context: &Context) -> Vec<Arc<ControllerRevision>> {
    let (namespace, name) = (release.namespace(), release.name_any());
    context.caches.copies.state_filter(|copy| {
        copy.metadata.namespace == namespace
            && copy.labels().get(keys::RELEASE_LABEL) == Some(&name)
    })
}

async fn prune(
    release: &PromptRelease,
    copies: &[Arc<ControllerRevision>],
    keep: &[String],
    context: &Context,
) -> Result<(), ControllerError> {
    let owned = |copy: &ControllerRevision| {
        copy.owner_references().iter().any(|o| Some(&o.uid) == release.metadata.uid.as_ref())
    };
    for copy in copies.iter().filter(|copy| owned(copy)) {
        if copy.labels().get(keys::REVISION_LABEL).is_some_and(|name| !keep.contains(name)) {
            context.cluster.drop_copy(copy).await?;
        }
    }
    Ok(())
}

/// Asks the gateways once per `interval` while this process leads, and has the
/// releases looked at that a gateway tells something new about. What only counts
/// tells is looked at when a release's own interval is over. To be asked is a gateway's sign
/// that somebody judges: a leader that looks at no release does not ask.
pub async fn follow_gateways(
    context: Arc<Context>,
    addresses: impl Fn() -> std::collections::BTreeSet<String>,
    triggers: UnboundedSender<ObjectRef<PromptRelease>>,
    interval: Duration,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(term) = context.cluster.leadership().term() else { continue };
        if !context.caches.are_ready() || !context.pulse.is_felt(term) {
            continue;
        }
        let changes = context.gateways.pull(term, &addresses()).await;
        if let Some(pulled) = context.gateways.last(term) {
            let (all, silent) = pulled.size();
            context.exported.gateways(all, silent);
        }
        for release in concerned(&changes, &context) {
            // Only a process that stops has no receiver.
            let _ = triggers.unbounded_send(release);
        }
    }
}

fn concerned(changes: &Changes, context: &Context) -> Vec<ObjectRef<PromptRelease>> {
    let mut refs: Vec<ObjectRef<PromptRelease>> = changes
        .releases
        .iter()
        .filter_map(|key| key.split_once('/'))
        .map(|(namespace, name)| super::reference(namespace, name))
        .collect();
    if changes.fleet {
        // A release that just serves does not care who serves it.
        let moving = |r: &PromptRelease| {
            r.status.as_ref().is_some_and(|s| !matches!(s.phase, Phase::Stable | Phase::RolledBack))
        };
        let moving = context.caches.releases.state_filter(moving);
        refs.extend(moving.iter().map(|r| ObjectRef::from_obj(r.as_ref())));
    }
    refs
}
