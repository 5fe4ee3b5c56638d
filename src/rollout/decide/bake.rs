//! Promotion, and the time after it in which the previous variant stays warm.
//!
//! While baking, the previous variant keeps a small share of the traffic
//! (`bake.holdback`), so that the comparison stays a concurrent one and a provider's
//! incident is not taken for the new variant's fault.

use super::{
    canary::{hold, release, running_policy, settings, stays, unfollowed, without_policy},
    draft::Draft,
    look, reasons, requests,
};
use crate::{
    analysis::{evidence, judge},
    api::{
        CanaryPolicySpec,
        prompt_release::{Outcome, Phase, VariantRole, Verdict},
    },
    prompt::short,
    rollout::snapshot::Action,
};

/// Puts the canary in charge.
pub(super) fn promote(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, message: &str) {
    let Some(mut canary) = draft.status.canary.take() else { return };
    let Some(old) = draft.status.stable.take() else { return };
    let new = canary.variant.clone();
    let (approvals, shown) = (canary.approvals.clone(), draft.shown(&canary));
    let entry = draft.remember(new.clone(), Outcome::Promoted, reasons::PROMOTED, message);
    (entry.requests, entry.evidence) = (approvals, shown);
    canary.passed.clear();
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
    let Some(canary) = draft.status.canary.clone() else { return };
    let revision = canary.variant.revision.clone();
    if let Some(request) = requests::take(draft, Action::Abort, &revision) {
        let message = format!("aborted at the request of {}", request.by);
        return draft.withdraw(Outcome::RolledBack, reasons::ABORTED, &message, false);
    }
    let down = previous_down(draft);
    if (canary.held.is_some() || down.is_some())
        && let Some(request) = requests::take_approval(draft, &revision)
    {
        let message = format!("ended at the request of {}", request.by);
        return end(draft, reasons::BAKED, &message);
    }
    let named = draft.snapshot.target.as_ref().ok().map(|target| target.revision.as_str());
    let another = named.filter(|named| *named != revision);
    let previous = draft.status.previous.as_ref().map(|p| p.revision.as_str());
    if another.is_some() && another == previous {
        let message = "the spec names the previous variant again";
        return draft.withdraw(Outcome::Withdrawn, reasons::BACK_TO_STABLE, message, true);
    }
    match (running_policy(draft, &canary), another) {
        (Some(policy), _) => compare(draft, &policy, &revision, another),
        (None, Some(another)) if !stays(draft) => {
            superseded(draft, another, Err("what judges it is gone".to_owned()), None);
        }
        (None, _) => without_policy(draft),
    }
}

/// Judges, and ends the bake when its time was spent on something, or when the spec names
/// `another` variant.
fn compare(
    draft: &mut Draft<'_>,
    policy: &CanaryPolicySpec,
    revision: &str,
    another: Option<&str>,
) {
    release(draft, reasons::POLICY_LOST);
    draft.run_clock(policy.analysis.interval);
    draft.wake(draft.now + policy.analysis.interval.signed());
    look::confirm(draft);
    let duration = policy.bake.duration;
    let over = draft.reaches(Some(duration), |clock| clock.step);
    let another = another.filter(|_| !draft.snapshot.spec.suspend);
    let ends = over || another.is_some();
    let verdict = look::judge(draft, policy, ends);
    if verdict == Verdict::Fail {
        let message = look::failure(draft);
        if let Some(down) = previous_down(draft) {
            return stay_in_trouble(draft, revision, &message, &down);
        }
        return draft.withdraw(Outcome::RolledBack, reasons::METRIC_FAILED, &message, false);
    }
    if let Some(another) = another {
        let (found, down) = (so_far(draft, policy, verdict), previous_down(draft));
        // Both are bad: nothing moves users by itself.
        if found.is_ok() || down.is_none() || seems_worse(draft).is_none() {
            return superseded(draft, another, found, down);
        }
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
            let message = found_nothing(draft);
            end(draft, reasons::BAKED, &message);
        }
    }
}

/// Why a bake whose time is over goes on, if so: the new variant looks worse than would be
/// accepted.
fn doubted(draft: &Draft<'_>, revision: &str) -> Option<String> {
    let worse = looks_worse(draft)?;
    Some(format!(
        "the time of the bake is over, but {worse}. It goes on until that is over, or sure enough to roll back; promote {revision} to end it, or abort it"
    ))
}

/// What looks worse in the new variant than would be accepted.
fn looks_worse(draft: &Draft<'_>) -> Option<String> {
    let (metric, shown) = judge::worse(&draft.status.analysis)?;
    let [new, previous] = [shown.canary, shown.stable].map(|side| metric.unit.sample(side));
    Some(format!(
        "{} looks worse than is accepted: {new}, of the previous variant {previous}",
        metric.metric
    ))
}

/// What looks worse in it, or did in what was collected last.
fn seems_worse(draft: &Draft<'_>) -> Option<String> {
    let lately = || {
        let metric = judge::worse_lately(&draft.status.analysis)?;
        Some(format!("{} looked worse in what was collected last", metric.metric))
    };
    looks_worse(draft).or_else(lately)
}

/// What bakes is bad, and what served before can not serve: users would get less by going back.
fn stay_in_trouble(draft: &mut Draft<'_>, revision: &str, failure: &str, down: &str) {
    let previous = draft.status.previous.as_ref().map_or("", |p| short(&p.revision));
    let message = format!(
        "{failure}; but what served before, {previous}, can not serve: {down}. {0} is rolled back as \
         soon as {previous} can: mend that, or promote {0} to keep it, or abort it",
        short(revision)
    );
    hold(draft, reasons::METRIC_FAILED, true);
    draft.stop_clock(Some(reasons::METRIC_FAILED));
    draft.say(reasons::METRIC_FAILED, message);
}

/// Why users can not go back to what served before, if so.
pub(super) fn previous_down(draft: &Draft<'_>) -> Option<String> {
    draft.snapshot.why_down(&draft.status.previous.as_ref()?.revision)
}

/// What a bake that is cut short has found: that nothing speaks against the new variant, as a
/// bake at its end would say, or what keeps it from saying so.
fn so_far(
    draft: &Draft<'_>,
    policy: &CanaryPolicySpec,
    verdict: Verdict,
) -> Result<String, String> {
    if let Some(worse) = seems_worse(draft) {
        return Err(worse);
    }
    if let Some(missing) = look::floor_on_both_sides(draft).or_else(|| unwatched(draft, verdict)) {
        return Err(missing);
    }
    let compares = policy.bake.holdback > 0;
    if let Some(metric) = judge::hardly_seen(&draft.status.analysis, compares) {
        return Err(format!("{} was hardly judged: {}", metric.metric, metric.message));
    }
    Ok(found_nothing(draft))
}

fn found_nothing(draft: &Draft<'_>) -> String {
    let (previous, new) = evidence::totals(&draft.status.evidence);
    format!(
        "nothing was found while baking, in {} requests beside {} of the previous variant",
        new.requests, previous.requests
    )
}

/// The spec names `another` variant. The bake is over when it has found nothing; or the new variant
/// is not proven, and the other one is compared with the one before, unless that one is `down`.
fn superseded(
    draft: &mut Draft<'_>,
    another: &str,
    found: Result<String, String>,
    down: Option<String>,
) {
    let another = short(another);
    if let (Err(doubt), Some(down)) = (&found, down) {
        let previous = draft.status.previous.as_ref().map_or("", |p| short(&p.revision));
        let message = format!(
            "the spec names {another} now, which ends the bake: {doubt}, but what served before, \
             {previous}, can not serve: {down}"
        );
        return end(draft, reasons::SUPERSEDED, &message);
    }
    match found {
        Ok(found) => {
            let message = format!("the spec names {another} now, which ends the bake: {found}");
            end(draft, reasons::SUPERSEDED, &message);
        }
        Err(doubt) => {
            let previous = draft.status.previous.as_ref().map_or("", |p| short(&p.revision));
            let message = format!(
                "the spec names {another} now, and the bake was not over: {doubt}. {another} is \
                 compared with the previous variant, {previous}"
            );
            draft.withdraw(Outcome::Withdrawn, reasons::SUPERSEDED, &message, true);
        }
    }
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
    let stable = draft.status.stable.as_ref();
    let not_ready = stable.and_then(|s| Some((s, draft.snapshot.why_not_ready(&s.revision)?)));
    let down = previous_down(draft).and_then(|why| Some((draft.status.previous.as_ref()?, why)));
    if let Some((side, why)) = not_ready.or(down) {
        let ends = match stable.filter(|stable| stable.revision != side.revision) {
            Some(stable) => format!("; promote {} to end the bake", short(&stable.revision)),
            None => String::new(),
        };
        let message = format!(
            "LLMDeployment {} of {} can not serve, so nothing can be compared: {why}{ends}",
            side.backend, side.revision
        );
        return Some((reasons::BACKEND_NOT_READY, message));
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

fn end(draft: &mut Draft<'_>, reason: &'static str, message: &str) {
    draft.status.previous = None;
    draft.status.canary = None;
    draft.status.analysis.clear();
    draft.route_stable_only();
    draft.status.phase = Phase::Promoting;
    draft.announce(false, reason, message.to_owned());
    draft.say(reason, message);
    draft.prune();
    draft.wake_now();
}
