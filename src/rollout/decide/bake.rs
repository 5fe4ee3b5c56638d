//! Promotion, and the time after it in which the previous variant stays warm.
//!
//! While baking, the previous variant keeps a small share of the traffic
//! (`bake.holdback`), so that the comparison stays a concurrent one and a provider's
//! incident is not taken for the new variant's fault.

use super::{
    canary::{hold, release, running_policy, settings, unfollowed, without_policy},
    draft::Draft,
    look, reasons, requests,
};
use crate::{
    analysis::{evidence, judge},
    api::{
        CanaryPolicySpec,
        prompt_release::{CanaryStatus, Outcome, Phase, VariantRole, Verdict},
    },
    prompt::short,
    rollout::snapshot::Action,
};

/// Puts the canary in charge.
pub(super) fn promote(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, message: &str) {
    let Some(mut canary) = draft.status.canary.take() else { return };
    let Some(old) = draft.status.stable.take() else { return };
    let new = canary.variant.clone();
    draft.remember(
        new.clone(),
        Outcome::Promoted,
        reasons::PROMOTED,
        message,
        canary.approvals.clone(),
    );
    draft.announce(
        false,
        reasons::PROMOTED,
        format!("{} serves now: {message}", short(&new.revision)),
    );
    draft.status.stable = Some(new.clone());
    draft.status.phase = Phase::Promoting;
    draft.status.analysis = judge::carry_over(&draft.status.analysis, false);
    draft.status.earlier_steps.clear();
    if policy.bake.duration.0.is_zero() {
        draft.status.analysis.clear();
        draft.route(&[(&new, VariantRole::Stable, 100)], settings(policy));
        draft.prune();
    } else {
        let held = policy.bake.holdback;
        draft.route(
            &[(&new, VariantRole::Stable, 100 - held), (&old, VariantRole::Previous, held)],
            settings(policy),
        );
        draft.status.previous = Some(old);
        canary.step = i32::try_from(policy.steps.len()).unwrap_or(i32::MAX);
        canary.weight = 100 - held;
        canary.entered_at = draft.now;
        canary.confirmed_at = None;
        canary.last_data_at = None;
        canary.analysed_at = None;
        canary.sampled_at = None;
        canary.held = None;
        canary.warming = false;
        draft.status.canary = Some(canary);
        draft.restart_clock(reasons::WAITING_FOR_GATEWAYS);
    }
    draft.say(reasons::PROMOTED, message);
    draft.wake(draft.now + policy.analysis.interval.signed());
}

/// Watches the promoted variant until its time is over.
pub(super) fn watch(draft: &mut Draft<'_>) {
    let canary = draft.status.canary.clone().unwrap_or_else(|| without_record(draft));
    draft.status.canary = Some(canary.clone());
    let revision = canary.variant.revision.clone();
    if let Some(request) = requests::take(draft, Action::Abort, &revision) {
        let message = format!("aborted at the request of {}", request.by);
        return draft.withdraw(Outcome::RolledBack, reasons::ABORTED, &message, false);
    }
    if canary.held.is_some()
        && let Some(request) = requests::take_approval(draft, &revision)
    {
        return end(draft, &format!("ended at the request of {}", request.by));
    }
    if let Ok(target) = &draft.snapshot.target
        && target.revision != revision
    {
        let previous = draft.status.previous.as_ref().map(|p| p.revision.as_str());
        if previous == Some(target.revision.as_str()) {
            let message = "the spec names the previous variant again";
            return draft.withdraw(Outcome::Withdrawn, reasons::BACK_TO_STABLE, message, true);
        }
        return end(draft, "the spec names another variant");
    }
    let Some(policy) = running_policy(draft, &canary) else {
        return without_policy(draft);
    };
    compare(draft, &policy, &revision);
}

/// Judges, and ends the bake when its time was spent on something.
fn compare(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, revision: &str) {
    release(draft, reasons::POLICY_LOST);
    draft.run_clock(policy.analysis.interval);
    draft.wake(draft.now + policy.analysis.interval.signed());
    look::confirm(draft);
    let duration = policy.bake.duration;
    let over = draft.reaches(Some(duration), |clock| clock.step);
    let verdict = look::judge(draft, policy, over);
    if verdict == Verdict::Fail {
        let message = look::failure(draft);
        return draft.withdraw(Outcome::RolledBack, reasons::METRIC_FAILED, &message, false);
    }
    let stopped = stopped(draft);
    draft.stop_clock(stopped.as_ref().map(|(why, _)| *why));
    if let Some((why, message)) = stopped {
        return draft.say(why, message);
    }
    let spent = draft.clock().step;
    if spent < duration {
        draft.wake_when(Some(duration), spent);
        draft.status.phase = Phase::Baking;
        let message = format!(
            "{} is still compared with the previous variant, for {duration}",
            short(revision)
        );
        return draft.say(reasons::BAKING, message);
    }
    // Too little to go back, and too much to stay.
    if let Some(message) = doubted(draft, revision) {
        hold(draft, reasons::INCONCLUSIVE, true);
        return draft.say(reasons::INCONCLUSIVE, message);
    }
    match unwatched(draft, verdict) {
        Some(missing) => {
            hold(draft, reasons::NO_DATA, true);
            let message = format!(
                "the bake of {duration} is over and found nothing because nothing could be judged ({missing}): it goes on until there is data; promote {revision} to end it, or abort it"
            );
            draft.say(reasons::NO_DATA, message);
        }
        None => {
            let (previous, new) = evidence::totals(&draft.status.evidence);
            let message = format!(
                "nothing was found while baking, in {} requests beside {} of the previous variant",
                new.requests, previous.requests
            );
            end(draft, &message);
        }
    }
}

/// Why a bake whose time is over goes on, if so: the new variant looks worse than would be
/// accepted.
fn doubted(draft: &Draft<'_>, revision: &str) -> Option<String> {
    let (metric, shown) = judge::worse(&draft.status.analysis)?;
    let [new, previous] = [shown.canary, shown.stable].map(|side| metric.unit.sample(side));
    Some(format!(
        "the time of the bake is over, but {} looks worse than is accepted: {new}, of the previous variant {previous}. It goes on until that is over, or sure enough to roll back; promote {revision} to end it, or abort it",
        metric.metric
    ))
}

/// Why no time counts for the bake now, if so.
fn stopped(draft: &Draft<'_>) -> Option<(&'static str, String)> {
    if draft.snapshot.spec.suspend {
        let message = "spec.suspend is true: the weights stay, harm is still watched";
        return Some((reasons::SUSPENDED, message.to_owned()));
    }
    if let Some(unfollowed) = unfollowed(draft) {
        return Some(unfollowed);
    }
    for side in [&draft.status.stable, &draft.status.previous].into_iter().flatten() {
        if let Some(why) = draft.snapshot.why_not_ready(&side.revision) {
            let message = format!(
                "LLMDeployment {} of {} is not ready, so nothing can be compared: {why}",
                side.backend, side.revision
            );
            return Some((reasons::BACKEND_NOT_READY, message));
        }
    }
    look::floor_on_both_sides(draft).map(|message| (reasons::FLOOR_ON_BOTH_SIDES, message))
}

/// What could not be watched, if anything: a bake without it has not looked.
fn unwatched(draft: &Draft<'_>, verdict: Verdict) -> Option<String> {
    let missing = draft.status.analysis.iter().find(|m| m.verdict == Verdict::NoData && !m.guard);
    let seen = evidence::totals(&draft.status.evidence).1.requests;
    match missing {
        Some(metric) => Some(format!("{}: {}", metric.metric, metric.message)),
        None if seen == 0 || verdict == Verdict::NoData => Some("no request was judged".to_owned()),
        None => None,
    }
}

/// The record of a bake that somebody removed: its policy is unknown, so it holds.
fn without_record(draft: &Draft<'_>) -> CanaryStatus {
    CanaryStatus {
        variant: draft.status.stable.clone().unwrap_or_default(),
        started_at: draft.now,
        entered_at: draft.now,
        ..CanaryStatus::default()
    }
}

fn end(draft: &mut Draft<'_>, message: &str) {
    draft.status.previous = None;
    draft.status.canary = None;
    draft.status.analysis.clear();
    draft.route_stable_only();
    draft.status.phase = Phase::Promoting;
    draft.announce(false, reasons::BAKED, message.to_owned());
    draft.say(reasons::BAKED, message);
    draft.prune();
    draft.wake_now();
}
