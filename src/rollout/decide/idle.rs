//! No canary runs: the first release, waiting, and starting a canary.

use super::{
    bake, canary, deleting,
    draft::{Draft, HISTORY, reference},
    elsewhere,
    reasons::{self, REASONS},
    requests,
};
use crate::{
    api::{
        conditions::Readiness,
        keys,
        prompt_release::{
            CanaryStatus, HistoryEntry, Outcome, Phase, RoutingSettings, VariantRef, VariantRole,
        },
        snapshot::{Remembered, copy_name},
    },
    prompt::{short, stands_for},
    rollout::{
        first::{GENERATIONS_SINCE, only_first},
        resolve,
        snapshot::{Action, Awaited, Problem, Target},
        stale,
    },
};

/// How often to look again while gateways have not confirmed.
const CONFIRM_SECONDS: i64 = 5;

/// The first revision ever has nothing to be compared with.
pub(super) fn first_release(draft: &mut Draft<'_>) {
    let target = match &draft.snapshot.target {
        Ok(target) => target.clone(),
        Err(problem) => {
            draft.status.phase = Phase::Pending;
            let Problem { reason, message } = problem.clone();
            return draft.say_problem(reason, message);
        }
    };
    if let Some(why) = draft.snapshot.why_not_ready(&target.revision) {
        draft.status.phase = Phase::Initializing;
        let message = format!("waits for LLMDeployment {}: {why}", target.variant.backend_name);
        return draft.say(reasons::BACKEND_NOT_READY, message);
    }
    if draft.snapshot.spec.suspend {
        draft.status.phase = Phase::Pending;
        return draft.say(reasons::SUSPENDED, "spec.suspend is true: nothing is released");
    }
    if may_not_be_first(draft, &target) {
        return;
    }
    let stable = reference(&target);
    draft.save_target(&target);
    draft.route(&[(&stable, VariantRole::Stable, 100)], RoutingSettings::default());
    let message = format!("{} on {} is the first revision", stable.prompt, stable.backend);
    draft.remember(stable.clone(), Outcome::Initial, reasons::FIRST_RELEASE, &message);
    draft.status.stable = Some(stable.clone());
    draft.status.phase = Phase::Stable;
    draft.announce(false, reasons::FIRST_RELEASE, message);
    // As it is said from now on: a status that need not change is not written again.
    say_who_serves(draft, &stable);
}

/// A release that was deleted and created again, or restored without its status, is not new:
/// what served serves on, and what failed stays out. When that becomes known only after a
/// first release, what that one served is taken back. A status of a backup, which knows less,
/// gives way to it. A bake is not gone on with: its evidence is lost with the status, so the
/// previous variant serves, and the one that baked goes through a canary.
pub(super) fn go_on(draft: &mut Draft<'_>, remembered: &Remembered) {
    let failed = stale::failed(remembered, &draft.status);
    let Remembered { mut history, generation, .. } = remembered.clone();
    let stable = remembered.goes_on_with().clone();
    let baked = remembered.previous.is_some().then(|| remembered.stable.clone());
    let out = failed.as_deref().map(|f| format!(", {} failed and stays out", short(f)));
    let begins = baked.as_ref().map(|baked| {
        format!(
            "; the bake of {} was not over: it goes through a canary again",
            short(&baked.revision)
        )
    });
    let back = format!(
        "it goes on where it was, {} ({} on {}) serves{}{}",
        short(&stable.revision),
        stable.prompt,
        stable.backend,
        out.unwrap_or_default(),
        begins.unwrap_or_default()
    );
    let is_first = only_first(&draft.status)
        .is_some_and(|first| !stands_for(&first.variant.revision, &stable.revision));
    let before = draft.status.stable.replace(stable);
    let is_news = before.is_some();
    let note = match before {
        None => {
            draft.drop_canary();
            format!("is back without its status: {back}")
        }
        Some(first) if is_first => {
            let served = short(&first.revision).to_owned();
            let message =
                "was the first release until it became known what was served before".to_owned();
            draft.remember(first, Outcome::Withdrawn, reasons::RETURNED, &message);
            format!("its ReleaseSnapshots came after it: {served} {message}; {back}")
        }
        Some(_) => {
            draft.drop_canary();
            format!("its status is older than its ReleaseSnapshots, as one of a backup: {back}")
        }
    };
    let is_it = |a: &HistoryEntry, b: &HistoryEntry| {
        (a.at, a.outcome, &a.variant.revision) == (b.at, b.outcome, &b.variant.revision)
    };
    history.retain(|entry| !draft.status.history.iter().any(|known| is_it(known, entry)));
    let known = history.len().saturating_sub(HISTORY.saturating_sub(draft.status.history.len()));
    draft.status.history.extend(history.drain(known..));
    draft.status.history.sort_by_key(|entry| entry.at);
    if let Some(baked) = baked {
        let message = "its bake was not over when the release came back";
        draft.remember(baked, Outcome::Withdrawn, reasons::RETURNED, message);
    }
    // The history tells of it also when it has not failed any more: a status that has never heard
    // of a failure that is noted is taken for one of a backup.
    if let Some(failed) = &failed
        && !draft.status.history.iter().any(|entry| stale::tells_of(entry, failed))
    {
        let variant = VariantRef { revision: failed.clone(), ..VariantRef::default() };
        let message = "it had failed when the release came back; why is not remembered";
        draft.remember(variant, Outcome::RolledBack, reasons::METRIC_FAILED, message);
    }
    draft.status.failed_revision = failed;
    let routing = &mut draft.status.routing;
    routing.generation = routing.generation.max(generation.saturating_add(GENERATIONS_SINCE));
    draft.announce(is_news, reasons::RETURNED, note.clone());
    serve_again(draft);
    if is_news {
        draft.prune();
    }
    draft.say(reasons::RETURNED, note);
}

/// What is released without a comparison must be new to its users: not after something
/// that served them before, and not a revision that failed.
fn may_not_be_first(draft: &mut Draft<'_>, target: &Target) -> bool {
    let revision = target.revision.as_str();
    let is_failed = |draft: &Draft<'_>| draft.status.failed_revision.as_deref() == Some(revision);
    let is_retried = is_failed(draft) && retried(draft, revision);
    if is_failed(draft) {
        failed_before(draft);
        return true;
    }
    if let Some(before) = draft.snapshot.served_elsewhere() {
        return elsewhere::holds(draft, before, revision);
    }
    if is_retried {
        return false;
    }
    let before = draft.snapshot.served_before.clone();
    let failed_there = before.as_ref().is_some_and(|b| b.failed.as_deref() == Some(revision));
    let own = draft.status.history.iter().rev();
    let mut own = own.filter(|h| matches!(h.outcome, Outcome::Initial | Outcome::Promoted));
    // What was its first release was none.
    let own = own
        .next()
        .filter(|_| !draft.snapshot.was_not_first())
        .map(|h| ("this release".to_owned(), h.variant.revision.clone()));
    let Some((who, served)) = own.or_else(|| before.map(|b| (b.release, b.revision))) else {
        return beside_others(draft, revision);
    };
    if served == revision {
        return false;
    }
    if requests::take_approval(draft, revision).is_some() {
        return false;
    }
    let failure = if failed_there { ", and failed there" } else { "" };
    let message = format!(
        "the route was served by {who} with {0}, which is gone, so {1} can not be compared with \
         it{failure}: approve {1} to give it to all users, or name {0} again",
        short(&served),
        short(revision)
    );
    draft.status.phase = Phase::Held;
    draft.say_as(Readiness::Stalled, reasons::FIRST_RELEASE_HELD, message);
    true
}

/// Something was served under this name, and nobody knows what: ReleaseSnapshots of other revisions
/// are there, and no note. The one that is named may have failed.
fn beside_others(draft: &mut Draft<'_>, revision: &str) -> bool {
    let others: Vec<&str> = draft.snapshot.beside.iter().map(|r| short(r)).collect();
    if others.is_empty() {
        return false;
    }
    if draft.status.conditions.is_empty() {
        // It may be left of what this release was.
        let why = "it was there before anybody could know that the release waits: look at what the \
                   release says, and ask again";
        requests::refuse_all(draft, &requests::APPROVALS, why);
    } else if requests::take_approval(draft, revision).is_some() {
        return false;
    }
    let name = draft.snapshot.release.rsplit('/').next().unwrap_or_default();
    let message = format!(
        "ReleaseSnapshots of {others} are kept of a release of this name, and no note on them can be \
         read that says what served and what failed (the annotation {note}): so {revision} can not \
         be compared with it. Approve {revision} to give it to all users, put the note back, or \
         forget what was: kubectl delete releasesnapshots -l {label}={name}",
        others = others.join(", "),
        note = keys::REMEMBERED_ANNOTATION,
        revision = short(revision),
        label = keys::RELEASE_LABEL,
    );
    draft.status.phase = Phase::Held;
    draft.say_as(Readiness::Stalled, reasons::FIRST_RELEASE_HELD, message);
    true
}

/// What is to serve again is in a copy that a restore has not written yet.
pub(super) fn wait_for(draft: &mut Draft<'_>, awaited: &Awaited) {
    let Awaited { revision, until } = awaited;
    let name = draft.snapshot.release.rsplit('/').next().unwrap_or_default();
    let copy = copy_name(name, revision);
    let message = format!(
        "is back without its status, in the middle of a bake: waits for the ReleaseSnapshot {copy} of \
         {0}, which served before, and goes on without {0} at {until:.0}",
        short(revision)
    );
    draft.status.phase = Phase::Pending;
    draft.wake(*until);
    draft.say(reasons::RETURNED, message);
}

/// A part of the status is gone, so nobody can judge what runs: stable serves, or what served before
/// the bake, and the revision that the spec names goes through a canary.
pub(super) fn begin_again(draft: &mut Draft<'_>) {
    let message = "a part of its status was taken away, so it can not be judged";
    let (status, now) = (&mut draft.status, draft.now);
    // The record of a bake is made anew, to end it.
    let baking = status.stable.clone().filter(|_| status.previous.is_some());
    let record = baking.map(|variant| CanaryStatus {
        variant,
        started_at: now,
        entered_at: now,
        ..CanaryStatus::default()
    });
    status.canary = status.canary.take().or(record);
    let before = match (stale::is_whole(&draft.status), bake::previous_down(draft)) {
        (true, None) => {
            return draft.withdraw(Outcome::Withdrawn, reasons::RETURNED, message, true);
        }
        (true, Some(down)) => format!("can not serve: {down}"),
        (false, _) => "is not known".to_owned(),
    };
    let revision = draft.status.stable.as_ref().map_or("", |stable| short(&stable.revision));
    let note = format!("{revision} serves all users: {message}, and what served before {before}");
    draft.drop_canary();
    draft.announce(true, reasons::RETURNED, note.clone());
    serve_again(draft);
    draft.say(reasons::RETURNED, note);
}

/// The route was another release's for a while: what served before serves again.
fn serve_again(draft: &mut Draft<'_>) {
    draft.route_stable_only();
    draft.status.phase = Phase::Promoting;
    draft.wake_now();
}

/// Confirms the last change of routing, and starts a canary when the spec names another variant.
pub(super) fn settle_or_start(draft: &mut Draft<'_>) {
    let stable = draft.status.stable.clone().unwrap_or_default();
    let routed = &draft.status.routing.variants;
    if let Some(other) = routed.iter().find(|routed| routed.revision != stable.revision) {
        let note = format!(
            "the status does not say for what {} is in routing: {} serves all users",
            short(&other.revision),
            short(&stable.revision)
        );
        draft.announce(true, reasons::RETURNED, note);
        serve_again(draft);
    } else if !stale::is_routed(&draft.status) {
        serve_again(draft);
    }
    settle(draft);
    let target = match &draft.snapshot.target {
        Ok(target) => target,
        Err(problem) => {
            let message =
                format!("{}; {} goes on serving", problem.message, short(&stable.revision));
            return draft.say_problem(problem.reason, message);
        }
    };
    if target.revision == stable.revision {
        draft.status.failed_revision = None;
        if draft.decidable_reason() == Some(reasons::METRIC_WITHOUT_DATA) {
            let (holds, told) = super::decidable(draft.snapshot.undecidable.as_deref());
            draft.tell_decidable(holds, told);
        }
        if !matches!(draft.status.phase, Phase::RollingBack | Phase::Promoting) {
            draft.status.phase = Phase::Stable;
            say_who_serves(draft, &stable);
        }
        return;
    }
    if draft.status.failed_revision.as_deref() == Some(target.revision.as_str())
        && (draft.snapshot.deleting.is_some() || !retried(draft, &target.revision))
    {
        return failed_before(draft);
    }
    if draft.snapshot.deleting.is_some() {
        return deleting::starts_nothing(draft, &stable, target);
    }
    start(draft, &target.clone());
}

/// Stable serves, unless a gateway can not build it.
fn say_who_serves(draft: &mut Draft<'_>, stable: &VariantRef) {
    if let Some(mut why) = draft.snapshot.unbuilt(&stable.revision) {
        let named = draft.snapshot.target.as_ref().map(|t| t.variant.backend_name.as_str());
        if let Some(named) = named.ok().filter(|named| *named != stable.backend) {
            why = format!(
                "{why}. {named}, which the spec names, is the same model at the same address as \
                 {}, and no other revision: mend {}",
                stable.backend, stable.backend
            );
        }
        return draft.say_as(Readiness::NotReady, reasons::NOT_BUILT, why);
    }
    let mut message = format!("{} on {} serves", stable.prompt, stable.backend);
    if let Some(why) = draft.snapshot.unbuilt_beside(&stable.revision) {
        message = format!("{message}, without one of its other backends: {why}");
    }
    // The next change would not start: better known before it is made.
    if let Err(Problem { reason, message: problem }) = draft.snapshot.policy.clone() {
        return draft.say_problem(reason, format!("{problem}; {message}"));
    }
    draft.say(reasons::STABLE, message);
}

fn settle(draft: &mut Draft<'_>) {
    let settled = match draft.status.phase {
        Phase::RollingBack => Phase::RolledBack,
        Phase::Promoting => Phase::Stable,
        _ => return,
    };
    if draft.confirmed() || draft.snapshot.gateways.is_empty() {
        draft.status.phase = settled;
    } else {
        draft.wake(draft.now + jiff::SignedDuration::from_secs(CONFIRM_SECONDS));
    }
}

fn retried(draft: &mut Draft<'_>, revision: &str) -> bool {
    let Some(request) = requests::take(draft, Action::Retry, revision) else { return false };
    draft.status.failed_revision = None;
    draft.announce(
        false,
        reasons::RETRIED,
        format!("{} tries {} again", request.by, short(revision)),
    );
    true
}

fn failed_before(draft: &mut Draft<'_>) {
    let revision = draft.status.failed_revision.clone().unwrap_or_default();
    let (reason, why) = draft.status.failure().map_or((reasons::METRIC_FAILED, ""), |entry| {
        let known = REASONS.iter().find(|r| **r == entry.reason);
        (known.copied().unwrap_or(reasons::METRIC_FAILED), entry.message.as_str())
    });
    let message = format!(
        "{0} left routing: {why}. Change the spec, or ask for a retry of {0}",
        short(&revision)
    );
    if draft.status.phase != Phase::RollingBack {
        draft.status.phase = Phase::RolledBack;
    }
    draft.say(reason, message);
}

/// No gateway can build stable, so users get nothing and nothing can be compared. What the
/// spec names now takes its place when a person says so.
fn without_stable(draft: &mut Draft<'_>, stable: &VariantRef, target: &Target, why: &str) {
    let new = reference(target);
    if let Some(why) = draft.snapshot.why_not_ready(&new.revision) {
        let message = format!("waits for LLMDeployment {}: {why}", new.backend);
        return draft.say_as(Readiness::InProgress, reasons::BACKEND_NOT_READY, message);
    }
    if let Some(request) = requests::take_approval(draft, &new.revision) {
        let message = format!(
            "promoted without a comparison at the request of {}: no gateway could build {}",
            request.by,
            short(&stable.revision)
        );
        draft.save_target(target);
        draft.route(&[(&new, VariantRole::Stable, 100)], RoutingSettings::default());
        let entry = draft.remember(new.clone(), Outcome::Promoted, reasons::PROMOTED, &message);
        entry.requests.push(request);
        let note = format!("{} serves now: {message}", short(&new.revision));
        draft.announce(false, reasons::PROMOTED, note);
        draft.status.stable = Some(new);
        draft.status.failed_revision = None;
        draft.status.phase = Phase::Promoting;
        draft.prune();
        draft.wake_now();
        return draft.say(reasons::PROMOTED, message);
    }
    let message = format!(
        "{why}; so nobody is answered, and {0} can not be compared with it: mend that, or promote \
         {0} to give it to all users",
        short(&new.revision)
    );
    draft.status.phase = Phase::Held;
    draft.say_as(Readiness::Stalled, reasons::NOT_BUILT, message);
}

fn start(draft: &mut Draft<'_>, target: &Target) {
    let stable = draft.status.stable.clone().unwrap_or_default();
    let without = &draft.snapshot.without_data;
    let measurable = draft.snapshot.policy.as_ref().map(|p| resolve::measurable(p, without));
    let policy = match measurable {
        Ok(Ok(policy)) => policy,
        Ok(Err(message)) => {
            draft.tell_decidable(false, (reasons::METRIC_WITHOUT_DATA, &message));
            let message =
                format!("{message}. {} waits, {} serves", target.revision, stable.revision);
            return draft.say_as(Readiness::Stalled, reasons::METRIC_WITHOUT_DATA, message);
        }
        Err(problem) => {
            let message =
                format!("{}; {} goes on serving", problem.message, short(&stable.revision));
            return draft.say_problem(problem.reason, message);
        }
    };
    let left_out: String =
        without.iter().map(|w| format!("; {} is left out: {}", w.metric, w.why)).collect();
    if draft.snapshot.spec.suspend {
        let message = format!("spec.suspend is true: {} waits", short(&target.revision));
        return draft.say_as(Readiness::InProgress, reasons::SUSPENDED, message);
    }
    if let Some(why) = draft.snapshot.unserved(&stable.revision) {
        return without_stable(draft, &stable, target, &why);
    }
    if !draft.confirmed() && !draft.snapshot.gateways.is_empty() {
        draft.wake(draft.now + jiff::SignedDuration::from_secs(CONFIRM_SECONDS));
        let message = format!(
            "{}; the canary {} starts when all do",
            draft.followed(),
            short(&target.revision)
        );
        return draft.say_as(Readiness::InProgress, reasons::WAITING_FOR_GATEWAYS, message);
    }
    let variant = reference(target);
    draft.save_target(target);
    let digest = draft.save_policy(&policy);
    draft.status.failed_revision = None;
    draft.status.analysis.clear();
    draft.status.earlier_steps.clear();
    draft.announce(
        false,
        reasons::CANARY_STARTED,
        format!(
            "{} ({} on {}) against {}{left_out}",
            short(&variant.revision),
            variant.prompt,
            variant.backend,
            short(&stable.revision)
        ),
    );
    let (holds, (reason, message)) = super::decidable(draft.snapshot.undecidable.as_deref());
    draft.tell_decidable(holds, (reason, &format!("{message}{left_out}")));
    draft.status.canary = Some(CanaryStatus {
        variant,
        policy: digest,
        steps: i32::try_from(policy.steps.len()).unwrap_or_default(),
        started_at: draft.now,
        entered_at: draft.now,
        ..CanaryStatus::default()
    });
    canary::enter_step(draft, &policy, 0);
}
