//! A canary runs: what ends it, what holds it, what moves it on, in this order.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    bake,
    draft::{Draft, policy_digest},
    look::{self, confirm, failure, judge},
    lost, reasons, requests, step,
};
use crate::{
    analysis::{
        evidence,
        judge::{self, Pool, Window},
    },
    api::{
        CanaryPolicySpec, GoDuration,
        canary_policy::{Analysis, Step},
        prompt_release::{
            CanaryStatus, ExternalCounts, InStep, MetricStatus, Outcome, Phase, RoutingSettings,
            StepEvidence, VariantRef, VariantRole, Verdict,
        },
    },
    prompt::{short, stands_for},
    rollout::snapshot::Action,
};

/// What judges a canary counts as gone after this time. Sooner it may come back: a restore writes
/// one object after the other.
const LOST: Duration = Duration::from_secs(300);
/// A policy has at most so many steps.
const MOST_EARLIER: usize = 16;

pub(super) fn advance(draft: &mut Draft<'_>) {
    let Some(canary) = draft.status.canary.clone() else { return };
    let revision = canary.variant.revision.clone();
    if left_by_request(draft, &revision) || left_by_spec(draft, &revision) {
        return;
    }
    let Some(policy) = running_policy(draft, &canary) else {
        return without_policy(draft);
    };
    release(draft, reasons::POLICY_LOST);
    draft.run_clock(policy.analysis.interval);
    draft.wake(draft.now + policy.analysis.interval.signed());
    if without_backend(draft, &policy, &canary) {
        return;
    }
    confirm(draft);
    let deadline = running_step(&policy, &canary).and_then(Step::deadline);
    let verdict = if canary.warming {
        Verdict::NoData
    } else {
        let now = draft.reaches(deadline, |clock| clock.step)
            || draft.reaches(Some(policy.progress_deadline), |clock| clock.canary);
        judge(draft, &policy, now)
    };
    if verdict == Verdict::Fail {
        let message = failure(draft);
        return draft.withdraw(Outcome::RolledBack, reasons::METRIC_FAILED, &message, false);
    }
    if let Some(request) = requests::take(draft, Action::Promote, &revision) {
        let message = format!("promoted at the request of {}", request.by);
        record_approval(draft, request);
        return bake::promote(draft, &policy, &message);
    }
    let stopped = stopped(draft, &policy);
    draft.stop_clock(stopped.as_ref().map(|(why, _)| *why));
    draft.wake_when(deadline, draft.clock().step);
    if let Some((why, message)) = stopped {
        return step::wait(draft, &policy, why, &message);
    }
    if step::goes_on(draft, &policy) {
        return;
    }
    if draft.clock().canary >= policy.progress_deadline {
        let message = format!("not finished within progressDeadline {}", policy.progress_deadline);
        return draft.withdraw(Outcome::Withdrawn, reasons::PROGRESS_DEADLINE, &message, false);
    }
    step::judged(draft, &policy, verdict);
}

/// The policy that the canary started with.
pub(super) fn running_policy(
    draft: &Draft<'_>,
    canary: &CanaryStatus,
) -> Option<Arc<CanaryPolicySpec>> {
    let saved = draft.snapshot.running_policy.clone();
    let current = draft.snapshot.policy.as_ref().ok();
    let is_it = |policy: &&CanaryPolicySpec| stands_for(&canary.policy, &policy_digest(policy));
    saved.or_else(|| current.filter(is_it).cloned().map(Arc::new))
}

/// Nobody knows what the canary is to be judged by: neither a pass nor a failure, so it is held,
/// and withdrawn when that lasts. Then it may begin again, with the policy that there is. A bake
/// stays held: its variant has passed every step, and people decide.
/// While the release is being deleted, nobody may be there to put the policy back, and in a
/// namespace that is being deleted nobody can: users go back to what served before at once, if
/// that can serve.
pub(super) fn without_policy(draft: &mut Draft<'_>) {
    if draft.snapshot.deleting.is_some() && !goes_back_to_nothing(draft) {
        let message = "the policy that judges it is gone, and no canary is held without one while \
                       the release is being deleted";
        return draft.withdraw(Outcome::Withdrawn, reasons::POLICY_LOST, message, true);
    }
    draft.run_clock(Analysis::default().interval);
    if draft.clock().stopped.as_deref() != Some(reasons::POLICY_LOST) {
        // How long it waited for something else does not count.
        draft.stop_clock(None);
    }
    draft.stop_clock(Some(reasons::POLICY_LOST));
    let since = draft.clock().stopped_since.unwrap_or(draft.now);
    let left = LOST.saturating_sub(draft.elapsed_since(since));
    let (bakes, stays) = (draft.status.previous.is_some(), stays(draft));
    if !bakes && !stays && left.is_zero() {
        let message = "what judges it is gone for five minutes: the snapshot of the running policy is \
                       missing, and the CanaryPolicy is gone or has changed";
        return draft.withdraw(Outcome::Withdrawn, reasons::POLICY_LOST, message, true);
    }
    hold(draft, reasons::POLICY_LOST, true);
    let revision = draft.status.canary.as_ref().map_or("", |c| short(&c.variant.revision));
    let then = if bakes {
        format!("promote {revision} to end the bake, or abort it")
    } else if stays {
        format!("abort {revision}, or promote it")
    } else {
        let until = draft.now + GoDuration(left).signed();
        draft.wake(until);
        format!("the canary is withdrawn at {until:.0}")
    };
    let message = format!(
        "the snapshot of the running policy is missing, and the CanaryPolicy is gone or has changed, so \
         nothing can be judged: put back the CanaryPolicy as it was when the canary began, or {then}"
    );
    draft.say(reasons::POLICY_LOST, message);
}

/// Whether nothing moves users by itself: the weights are frozen, or what they would go back to is
/// down.
pub(super) fn stays(draft: &Draft<'_>) -> bool {
    draft.snapshot.spec.suspend || goes_back_to_nothing(draft)
}

/// What users would go back to is down.
fn goes_back_to_nothing(draft: &Draft<'_>) -> bool {
    let back = draft.status.previous.as_ref().or(draft.status.stable.as_ref());
    back.is_some_and(|back| draft.snapshot.why_down(&back.revision).is_some())
}

/// Why no time counts for the canary now, if so.
fn stopped(draft: &Draft<'_>, policy: &CanaryPolicySpec) -> Option<(&'static str, String)> {
    let canary = draft.status.canary.as_ref()?;
    let warm = canary.warming && step::is_warm(draft, policy, canary);
    // Harm is watched after a warm-up also while suspended.
    if draft.snapshot.spec.suspend && !warm {
        let message = "spec.suspend is true: the weights stay, harm is still watched";
        return Some((reasons::SUSPENDED, message.to_owned()));
    }
    let step = running_step(policy, canary);
    if step.is_some_and(|s| s.approval.is_some()) {
        let message = format!("approve {} to go on", short(&canary.variant.revision));
        return Some((reasons::AWAITING_APPROVAL, message));
    }
    if let Some(unfollowed) = unfollowed(draft) {
        return Some(unfollowed);
    }
    if canary.warming {
        let delay = step.and_then(|s| s.initial_delay).unwrap_or_default();
        let message = format!(
            "step {} of {} {}: warms up, nothing is judged for initialDelay {delay}",
            canary.step + 1,
            policy.steps.len(),
            exposure(policy, canary)
        );
        return Some((reasons::WARMING_UP, message));
    }
    let stable = draft.status.stable.as_ref()?;
    if let Some(why) = draft.snapshot.why_not_ready(&stable.revision) {
        let message = format!(
            "stable's LLMDeployment {} is not ready, so nothing can be compared: {why}; promote {} to \
             give the canary to all users all the same",
            stable.backend,
            short(&canary.variant.revision)
        );
        return Some((reasons::BACKEND_NOT_READY, message));
    }
    look::untrusted(draft, policy, canary)
}

/// Gateways that do not follow the routing, or an operator.
pub(super) fn unfollowed(draft: &Draft<'_>) -> Option<(&'static str, String)> {
    if draft.control_loss() {
        let message = "gateways saw no leader for too long and send everything to stable";
        return Some((reasons::CONTROL_LOSS, message.to_owned()));
    }
    let is_confirmed = draft.status.canary.as_ref().is_some_and(|c| c.confirmed_at.is_some());
    if is_confirmed && !draft.nobody_tells() {
        return None;
    }
    Some((reasons::WAITING_FOR_GATEWAYS, draft.followed()))
}

fn left_by_request(draft: &mut Draft<'_>, revision: &str) -> bool {
    let Some(request) = requests::take(draft, Action::Abort, revision) else { return false };
    let message = format!("aborted at the request of {}", request.by);
    record_approval(draft, request);
    draft.withdraw(Outcome::Withdrawn, reasons::ABORTED, &message, false);
    true
}

/// The spec names another variant now. A target that can not be resolved changes
/// nothing: the saved copy serves.
fn left_by_spec(draft: &mut Draft<'_>, revision: &str) -> bool {
    let Ok(target) = &draft.snapshot.target else { return false };
    let stable = draft.status.stable.as_ref().map(|s| s.revision.as_str()).unwrap_or_default();
    if target.revision == revision {
        return false;
    }
    if target.revision == stable {
        draft.withdraw(
            Outcome::Withdrawn,
            reasons::BACK_TO_STABLE,
            "the spec names the stable variant again",
            true,
        );
    } else {
        let message = format!("the spec names {} now", short(&target.revision));
        draft.withdraw(Outcome::Withdrawn, reasons::SUPERSEDED, &message, true);
    }
    true
}

/// No weight on a variant that is not ready: it leaves routing and enters its step
/// anew when it is back.
fn without_backend(
    draft: &mut Draft<'_>,
    policy: &CanaryPolicySpec,
    canary: &CanaryStatus,
) -> bool {
    let revision = canary.variant.revision.as_str();
    let routed = draft.status.routing.variants.iter().any(|v| v.revision == revision);
    let held = canary.held.as_deref() == Some(reasons::BACKEND_NOT_READY);
    // Gateways do not say of a canary without traffic that they have no copy of it.
    let lost = || {
        let lost = draft.snapshot.lost.iter().find(|lost| lost.variant.revision == revision)?;
        (held && !routed).then(|| format!("its ReleaseSnapshot {}: {}", lost::what(lost), lost.why))
    };
    let not_ready = draft.snapshot.why_not_ready(revision);
    let is_lost = not_ready.is_none() || !draft.snapshot.not_ready.contains_key(revision);
    match not_ready.or_else(lost) {
        Some(why) => {
            if !held || routed {
                set_weight(draft, 0);
                draft.route_stable_only();
                hold(draft, reasons::BACKEND_NOT_READY, true);
            }
            draft.stop_clock(Some(reasons::BACKEND_NOT_READY));
            draft.say(
                reasons::BACKEND_NOT_READY,
                format!(
                    "{}{why}: goes on by itself when that is over; or abort {revision}",
                    if is_lost {
                        String::new()
                    } else {
                        format!("waits for LLMDeployment {}: ", canary.variant.backend)
                    }
                ),
            );
            true
        }
        None if held && !routed => {
            let step = usize::try_from(canary.step).unwrap_or_default();
            enter_step(draft, policy, step);
            true
        }
        None => false,
    }
}

/// Enters step `index`, or promotes after the last. Traffic moves with this write.
pub(super) fn enter_step(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, index: usize) {
    let Some(step) = policy.steps.get(index) else {
        return bake::promote(draft, policy, "every step passed");
    };
    let Some(stable) = draft.status.stable.clone() else { return };
    let Some(mut canary) = draft.status.canary.clone() else { return };
    let ready = draft.snapshot.why_not_ready(&canary.variant.revision).is_none();
    let reached = policy.steps[..=index].iter().filter_map(|s| s.weight).max().unwrap_or(0);
    let pools = keep_evidence(draft, policy, &canary, index);
    let left = usize::try_from(canary.step).unwrap_or_default();
    let measured = policy.steps.get(left).is_some_and(|step| step.approval.is_none());
    if index > left && measured && canary.passed.len() < policy.steps.len() {
        canary.passed = draft.shown(&canary);
    }
    canary.step = i32::try_from(index).unwrap_or(i32::MAX);
    let exposed = ready && step.shadow.is_none();
    canary.weight = if exposed { step.weight.unwrap_or(reached) } else { 0 };
    canary.held = (!ready).then(|| reasons::BACKEND_NOT_READY.to_owned());
    canary.entered_at = draft.now;
    canary.extended = false;
    canary.warming = ready && step.initial_delay.is_some_and(|delay| !delay.0.is_zero());
    restart_window(&mut canary);
    draft.status.analysis = judge::carry_over(&draft.status.analysis, pools);
    route_step(draft, policy, step, &stable, &canary);
    draft.status.phase =
        if step.approval.is_some() { Phase::AwaitingApproval } else { Phase::Progressing };
    let message = describe_step(step, index, policy.steps.len(), &canary);
    draft.status.canary = Some(canary);
    draft.restart_clock(match step.approval {
        _ if !ready => reasons::BACKEND_NOT_READY,
        Some(_) => reasons::AWAITING_APPROVAL,
        None => reasons::WAITING_FOR_GATEWAYS,
    });
    draft.announce(false, reasons::ADVANCED, message.clone());
    draft.say(reasons::ADVANCED, message);
    draft.wake(draft.now + policy.analysis.interval.signed());
}

/// What the step that is left has counted is evidence of the whole canary, where the policy
/// pools the steps. Counts of a step that is entered anew are not: something disturbed the
/// comparison. Returns whether the step that is entered goes on with the same test.
fn keep_evidence(
    draft: &mut Draft<'_>,
    policy: &CanaryPolicySpec,
    canary: &CanaryStatus,
    entered: usize,
) -> bool {
    let left = usize::try_from(canary.step).unwrap_or_default();
    let pool = |index: usize| Window::new(policy, index).pool;
    if entered > left && pool(left).is_some() && draft.status.earlier_steps.len() < MOST_EARLIER {
        let (stable, treatment) = evidence::totals(&draft.status.evidence);
        if stable.ended() > 0 && treatment.ended() > 0 {
            let external = from_prometheus(policy, &draft.status.analysis);
            draft.status.earlier_steps.push(StepEvidence {
                step: canary.step,
                stable,
                canary: treatment,
                external,
            });
        }
    }
    let goes_on = Pool::goes_on(policy, left, entered);
    if !goes_on {
        draft.status.earlier_steps.clear();
    }
    goes_on
}

/// What Prometheus counted in a step, as it was last seen: it may not answer just when the
/// step is left.
fn from_prometheus(
    policy: &CanaryPolicySpec,
    seen: &[MetricStatus],
) -> BTreeMap<String, ExternalCounts> {
    let metrics = policy.analysis.metrics.iter().filter(|metric| metric.prometheus.is_some());
    let counts = metrics.filter_map(|metric| {
        let InStep { stable, canary, .. } =
            seen.iter().find(|status| status.metric == metric.name)?.in_step?;
        let counted = stable.count > 0 && canary.count > 0;
        counted.then(|| (metric.name.clone(), ExternalCounts { stable, canary }))
    });
    counts.collect()
}

/// Moves traffic as `step` wants it. A shadow step shows the canary to nobody, also
/// after a weight: what it is for is to look without users.
pub(super) fn route_step(
    draft: &mut Draft<'_>,
    policy: &CanaryPolicySpec,
    step: &Step,
    stable: &VariantRef,
    canary: &CanaryStatus,
) {
    let (settings, weight) = (settings(policy), canary.weight);
    if let Some(shadow) = step.shadow.as_ref().filter(|_| canary.held.is_none()) {
        draft.route_shadow(stable, &canary.variant, shadow.percent, settings);
    } else if weight > 0 {
        let shares = [
            (stable, VariantRole::Stable, 100 - weight),
            (&canary.variant, VariantRole::Canary, weight),
        ];
        draft.route(&shares, settings);
    } else if draft.status.routing.variants.len() > 1 {
        // An approval after a shadow, before any weight: no copies while nobody judges them.
        draft.route_stable_only();
    }
}

pub(super) fn restart_window(canary: &mut CanaryStatus) {
    canary.confirmed_at = None;
    canary.last_data_at = None;
    canary.analysed_at = None;
    canary.sampled_at = None;
    canary.remaining = None;
}

fn describe_step(step: &Step, index: usize, of: usize, canary: &CanaryStatus) -> String {
    let (place, weight) = (format!("step {} of {of}", index + 1), canary.weight);
    match (step.horizon(), &step.shadow) {
        (Some(_), _) if canary.held.is_some() => format!("{place}: waits for its backend"),
        (Some(pairs), Some(shadow)) => {
            format!("{place}: a shadow of {} % of requests, {pairs} pairs wanted", shadow.percent)
        }
        (Some(samples), None) => {
            format!("{place}: {weight} % of traffic, {samples} samples wanted")
        }
        (None, _) => format!("{place}: waits for approval at {weight} %"),
    }
}

/// How the canary meets traffic in its step.
pub(super) fn exposure(policy: &CanaryPolicySpec, canary: &CanaryStatus) -> String {
    match running_step(policy, canary).and_then(|s| s.shadow.as_ref()) {
        Some(shadow) => format!("as a shadow of {} %", shadow.percent),
        None => format!("at {} %", canary.weight),
    }
}

pub(super) fn running_step<'a>(
    policy: &'a CanaryPolicySpec,
    canary: &CanaryStatus,
) -> Option<&'a Step> {
    policy.steps.get(usize::try_from(canary.step).ok()?)
}

/// What gateways need of the policy.
pub(super) fn settings(policy: &CanaryPolicySpec) -> RoutingSettings {
    RoutingSettings {
        sticky_from: policy.stickiness.from.clone(),
        fallback_to_stable: policy.fallback_to_stable,
    }
}

/// Keeps the weight. Announced once.
pub(super) fn hold(draft: &mut Draft<'_>, why: &'static str, warning: bool) {
    let Some(canary) = &mut draft.status.canary else { return };
    if canary.held.as_deref() == Some(why) {
        return;
    }
    canary.held = Some(why.to_owned());
    let shadow = draft.status.routing.variants.iter().any(|v| v.role == VariantRole::Shadow);
    let place = if shadow { "as a shadow".to_owned() } else { format!("at {} %", canary.weight) };
    let note = format!("{} is held {place}", short(&canary.variant.revision));
    draft.status.phase = Phase::Held;
    draft.announce(warning, why, note);
}

/// Goes on when the canary was held for `why`.
pub(super) fn release(draft: &mut Draft<'_>, why: &str) {
    if let Some(canary) = &mut draft.status.canary
        && canary.held.as_deref() == Some(why)
    {
        canary.held = None;
        draft.status.phase = Phase::Progressing;
    }
}

fn set_weight(draft: &mut Draft<'_>, weight: i32) {
    if let Some(canary) = &mut draft.status.canary {
        canary.weight = weight;
    }
}

pub(super) fn record_approval(
    draft: &mut Draft<'_>,
    request: crate::api::prompt_release::HandledRequest,
) {
    if let Some(canary) = &mut draft.status.canary
        && canary.approvals.len() < 16
    {
        canary.approvals.push(request);
    }
}
