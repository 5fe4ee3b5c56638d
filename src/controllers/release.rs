//! PromptRelease: the rollout. Each look takes the caches and the gateways' reports,
//! decides, and writes: copies first, then the status (which moves traffic), then the
//! rest. A crash between any two of these is repaired by the next look.

pub mod absent;
mod ahead;
mod asking;
mod before;
mod examined;
mod keep;
mod observe;
mod refusals;
pub mod triggers;

use std::{borrow::Cow, sync::Arc, time::Duration};

use futures::channel::mpsc::UnboundedSender;
use jiff::Timestamp;
use kube::runtime::{
    Controller,
    controller::Action,
    reflector::{ObjectRef, Store},
};

pub use self::ahead::Ahead;
pub use self::asking::ask_prometheus;
pub use self::examined::Examined;
pub use self::refusals::Refusals;
pub use self::triggers::{Triggered, Triggers};
use self::{
    keep::{Written, decide_and_keep, heal, label, prune, tell_refused},
    observe::observe,
};
use super::{
    Context, Reconciled,
    caches::{Use, is_deleted},
    error::ControllerError,
    problems::news,
    pulse::Done,
};
use crate::{
    api::{PromptRelease, PromptReleaseStatus, prompt_release::Phase},
    rollout::{Effect, Snapshot},
    signals::{
        gateways::{Changes, Pulled, Seen},
        index::Named,
        watch::Touched,
    },
};

/// More decisions than this in one look are a mistake of ours; the next look goes on.
const DECISIONS_AT_ONCE: usize = 8;
/// A release that waits is looked at again not sooner and not later than this.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How often to look whether the first pull is there.
const FIRST_PULL: Duration = Duration::from_millis(500);

/// Runs the controller until the process stops.
pub async fn run(
    store: Store<PromptRelease>,
    watch: Touched<PromptRelease>,
    triggered: Triggered,
    context: Arc<Context>,
) {
    let controller = Controller::for_stream(watch, store).reconcile_on(triggered);
    super::drive("PromptRelease", controller, context, reconcile).await;
}

async fn reconcile(release: Arc<PromptRelease>, context: Arc<Context>) -> Reconciled {
    let term = context.cluster.term()?;
    // What serves until the object is gone is judged until then.
    if is_deleted(&release) && !release.status.as_ref().is_some_and(PromptReleaseStatus::routes) {
        context.pulse.done(term, &Named::of(release.as_ref()), Done::Nothing);
        return Ok(Action::await_change());
    }
    if context.gateways.last(term, |_| ()).is_none() {
        return Ok(Action::requeue(FIRST_PULL));
    }
    let mut written = Written::default();
    let (pulse, named) = (&context.pulse, Named::of(release.as_ref()));
    if context.caches.is_unread(&named) {
        // What is known of it is not what there is, so nothing can be decided. Gateways are told.
        pulse.done(term, &named, Done::Nothing);
        return Ok(Action::await_change());
    }
    let looked = looks(&release, term, &mut written, &context).await;
    match &looked {
        // What comes after the status decides nothing: it is told, and is tried again.
        Err(error) if !written.status => {
            pulse.failed(term, &named, error);
            // A status that was taken shows that others can be written, too.
            if matches!(error, ControllerError::Refused { .. })
                && Box::pin(tell_refused(&release, error, &context)).await?
            {
                pulse.tried(term, Ok(()));
            }
        }
        _ => pulse.done(term, &named, written.done()),
    }
    looked
}

/// Looks until there is nothing more to decide now.
async fn looks(
    release: &PromptRelease,
    term: i64,
    written: &mut Written,
    context: &Context,
) -> Reconciled {
    let mut release = Cow::Borrowed(release);
    for _ in 0..DECISIONS_AT_ONCE {
        let wake = look(&mut release, term, written, context).await?;
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

/// A look at a time of the wall clock. That clock may be set meanwhile, so none waits for long.
fn until(at: Timestamp, now: Timestamp) -> Action {
    let wait = Duration::try_from(at - now).unwrap_or_default();
    Action::requeue(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT))
}

/// One decision, carried out.
async fn look(
    release: &mut Cow<'_, PromptRelease>,
    term: i64,
    written: &mut Written,
    context: &Context,
) -> Result<Wake, ControllerError> {
    let now = (context.clock)();
    let key = Named::of(&**release).key();
    let Some(told) = context.gateways.last(term, |pulled| pulled.of(&key)) else {
        return Ok(Wake::At(now + FIRST_PULL));
    };
    let mut snapshot = observe(release, told.read(), &written.saved, context)?;
    if heal(release, &mut snapshot, written, context).await? {
        let Snapshot { lost, gateways, departed, .. } = snapshot;
        snapshot = observe(release, Seen { gateways, departed }, &written.saved, context)?;
        snapshot.lost = lost;
    }
    let copies = context.caches.copies_of(&Named::of(&**release));
    label(&copies, context).await;
    let plan = decide_and_keep(release, &mut snapshot, now, written, context).await?;
    // A gateway that can not read releases may still hear its leader.
    let follows = plan.status.phase != Phase::RollingBack;
    context.pulse.follows(term, &Named::of(&**release), follows);
    let uid = before::written_for(release, &plan.status, context);
    let is_taken_over = snapshot.status.uid.is_some() && snapshot.status.uid != uid;
    let changed = plan.status != snapshot.status || is_taken_over;
    written.later = false;
    if changed || context.ahead.has(release) {
        let mut status = plan.status;
        status.observed_generation = snapshot.generation;
        status.leader_term = Some(context.cluster.term()?);
        status.written_for = Some(key);
        status.uid = uid;
        let due = context.ahead.due(release, status, &plan.effects, &snapshot.gateways);
        written.later = due.is_none();
        if let Some(status) = due {
            let news = news(release.status.as_ref(), &status, &plan.effects);
            release.to_mut().status = Some(status);
            // Mostly nothing is written: what writing takes is no part of every look.
            *release = Cow::Owned(Box::pin(context.cluster.write_status(&**release)).await?);
            written.status = true;
            if let Some(news) = news {
                Box::pin(context.cluster.tell(release, &news)).await;
            }
        }
    }
    for effect in plan.effects {
        match effect {
            Effect::Save { .. } => {}
            Effect::Announce { warning, reason, note } => {
                Box::pin(context.cluster.announce(&**release, warning, &reason, &note)).await;
            }
            Effect::Prune { keep } => prune(&copies, &keep, context).await?,
        }
    }
    let refused = context.refusals.next(&Named::of(&**release)).map(|next| now + next);
    Ok(match plan.wake_at.into_iter().chain(refused).min() {
        Some(at) if at <= now && changed => Wake::Now,
        Some(at) => Wake::At(at),
        None => Wake::Never,
    })
}

/// Asks the gateways once per `interval` while this process leads, and has the
/// releases looked at that a gateway tells something new about. What only counts
/// tells is looked at when a release's own interval is over. To be asked by a leader is a
/// gateway's sign that somebody judges: a process that leads and writes no decision asks, so
/// that it can go on by what is so now, but not as a leader.
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
        if !context.caches.are_ready() {
            continue;
        }
        let sign = context.pulse.sign(term, &context.caches.unread_releases());
        let changes = context.gateways.pull(term, &sign, &addresses()).await;
        if let Some(size) = context.gateways.last(term, Pulled::size) {
            context.exported.gateways(size);
        }
        let turns = context.ahead.turns();
        let turns = turns.iter().map(|r| super::reference(&r.namespace, &r.name));
        for release in concerned(&changes, &context).into_iter().chain(turns) {
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
        let moving = context.caches.uses.having(&Use::Moving);
        refs.extend(moving.iter().map(|r| super::reference(&r.namespace, &r.name)));
    }
    refs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_right_holds_up_no_release_for_long() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let of = |wait| format!("{:?}", Action::requeue(wait));
        let year = 365 * 24 * 3600;
        for (due, now, wait) in [
            (10, 0, Duration::from_secs(10)),
            (0, 10, SHORTEST_WAIT),
            // Noted or looked at by a clock that was a year off.
            (year, 0, LONGEST_WAIT),
            (0, -year, LONGEST_WAIT),
            (0, year, SHORTEST_WAIT),
        ] {
            assert_eq!(format!("{:?}", until(at(due), at(now))), of(wait), "{due} at {now}");
        }
    }
}
