//! A canary runs: what ends it, what holds it, what moves it on, in this order.

use super::{
    bake,
    draft::Draft,
    look::{confirm, failure, foresee, futile, held_by_split, judge},
    reasons, requests,
};
use crate::{
    analysis::judge,
    api::{
        CanaryPolicySpec,
        canary_policy::{OnInconclusive, OnNoData, Step},
        prompt_release::{
            CanaryStatus, MetricStatus, Outcome, Phase, RoutingSettings, VariantRef, VariantRole,
            Verdict,
        },
    },
    rollout::snapshot::Action,
};

pub(super) fn advance(draft: &mut Draft<'_>) {
    let Some(canary) = draft.status.canary.clone() else { return };
    let revision = canary.variant.revision.clone();
    if left_by_request(draft, &revision) || left_by_spec(draft, &revision) {
        return;
    }
    let Some(policy) = running_policy(draft, &canary) else {
        let message = "the saved copy of the running policy is missing and the CanaryPolicy has changed: abort the canary";
        return draft.say(reasons::POLICY_LOST, message);
    };
    draft.wake(draft.now + policy.analysis.interval.signed());
    if paused(draft, &policy, &canary) {
        return;
    }
    confirm(draft);
    let verdict = judge(draft, &policy);
    if verdict == Verdict::Fail {
        let message = failure(draft);
        return draft.withdraw(Outcome::RolledBack, reasons::METRIC_FAILED, &message, false);
    }
    if let Some(request) = requests::take(draft, Action::Promote, &revision) {
        let message = format!("promoted at the request of {}", request.by);
        record_approval(draft, request);
        return bake::promote(draft, &policy, &message);
    }
    if draft.snapshot.spec.suspend {
        return draft.say(
            reasons::SUSPENDED,
            "spec.suspend is true: the weights stay, harm is still watched",
        );
    }
    if draft.elapsed_since(canary.started_at) >= policy.progress_deadline.0 {
        let message = format!("not finished within progressDeadline {}", policy.progress_deadline);
        return draft.withdraw(Outcome::Withdrawn, reasons::PROGRESS_DEADLINE, &message, false);
    }
    if held_by_split(draft, &policy, &canary) {
        return;
    }
    step(draft, &policy, verdict);
}

/// The policy that the canary started with.
fn running_policy(draft: &Draft<'_>, canary: &CanaryStatus) -> Option<CanaryPolicySpec> {
    let saved = draft.snapshot.running_policy.clone();
    let current = draft.snapshot.policy.as_ref().ok();
    saved.or_else(|| current.filter(|p| super::draft::policy_digest(p) == canary.policy).cloned())
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
        let message = format!("the spec names {} now", target.revision);
        draft.withdraw(Outcome::Withdrawn, reasons::SUPERSEDED, &message, true);
    }
    true
}

/// No weight on a variant that is not ready: it leaves routing and enters its step
/// anew when it is back.
fn paused(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, canary: &CanaryStatus) -> bool {
    let revision = canary.variant.revision.as_str();
    match draft.snapshot.not_ready.get(revision) {
        Some(why) => {
            if canary.held.as_deref() != Some(reasons::BACKEND_NOT_READY) {
                set_weight(draft, 0);
                draft.route_stable_only();
                hold(draft, reasons::BACKEND_NOT_READY, true);
            }
            draft.say(
                reasons::BACKEND_NOT_READY,
                format!("waits for LLMDeployment {}: {why}", canary.variant.backend),
            );
            true
        }
        None if canary.held.as_deref() == Some(reasons::BACKEND_NOT_READY) => {
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
    let ready = !draft.snapshot.not_ready.contains_key(&canary.variant.revision);
    let reached = policy.steps[..=index].iter().filter_map(|s| s.weight).max().unwrap_or(0);
    canary.step = i32::try_from(index).unwrap_or(i32::MAX);
    let exposed = ready && step.shadow.is_none();
    canary.weight = if exposed { step.weight.unwrap_or(reached) } else { 0 };
    canary.held = (!ready).then(|| reasons::BACKEND_NOT_READY.to_owned());
    canary.entered_at = draft.now;
    canary.extended = false;
    restart_window(&mut canary);
    draft.status.analysis = judge::carry_over(&draft.status.analysis);
    route_step(draft, policy, step, &stable, &canary);
    draft.status.phase =
        if step.approval.is_some() { Phase::AwaitingApproval } else { Phase::Progressing };
    let message = describe_step(step, index, policy.steps.len(), &canary);
    draft.status.canary = Some(canary);
    draft.announce(false, reasons::ADVANCED, message.clone());
    draft.say(reasons::ADVANCED, message);
    draft.wake(draft.now + policy.analysis.interval.signed());
}

/// Moves traffic as `step` wants it. A shadow step shows the canary to nobody, also
/// after a weight: what it is for is to look without users.
fn route_step(
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

fn restart_window(canary: &mut CanaryStatus) {
    canary.confirmed_at = None;
    canary.last_data_at = None;
    canary.analysed_at = None;
    canary.sampled_at = None;
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
fn exposure(policy: &CanaryPolicySpec, canary: &CanaryStatus) -> String {
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

fn step(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, verdict: Verdict) {
    let Some(canary) = draft.status.canary.clone() else { return };
    let index = usize::try_from(canary.step).unwrap_or_default();
    let Some(step) = policy.steps.get(index) else { return };
    let asked = if step.approval.is_some() || canary.held.as_deref() == Some(reasons::INCONCLUSIVE)
    {
        requests::take(draft, Action::Approve, &canary.variant.revision)
    } else {
        None
    };
    if let Some(request) = asked {
        let note = format!("{} approved {}", request.by, canary.variant.revision);
        record_approval(draft, request);
        draft.announce(false, reasons::APPROVED, note);
        return enter_step(draft, policy, index + 1);
    }
    if step.approval.is_some() {
        let message = format!("approve {} to go on", canary.variant.revision);
        return draft.say(reasons::AWAITING_APPROVAL, message);
    }
    if canary.confirmed_at.is_none() {
        let message = format!(
            "{} gateways apply routing generation {}",
            draft.status.routing.observed_by, draft.status.routing.generation
        );
        let reason = if draft.control_loss() {
            reasons::CONTROL_LOSS
        } else {
            reasons::WAITING_FOR_GATEWAYS
        };
        draft.say(reason, message);
    }
    foresee(draft, step);
    let late = step.deadline().is_some_and(|d| draft.elapsed_since(canary.entered_at) >= d.0);
    match verdict {
        Verdict::Pass if canary.confirmed_at.is_some() => enter_step(draft, policy, index + 1),
        Verdict::Inconclusive => inconclusive(draft, policy, "every sample was seen"),
        Verdict::NoData => no_data(draft, policy, late),
        _ if late => inconclusive(draft, policy, "the step's deadline has passed"),
        _ => match futile(draft, policy) {
            Some(why) => inconclusive(draft, policy, &why),
            None => {
                // The stop for futility is not binding: the canary may have recovered.
                release(draft, reasons::INCONCLUSIVE);
                no_data(draft, policy, false);
            }
        },
    }
}

fn inconclusive(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, why: &str) {
    let Some(canary) = draft.status.canary.clone() else { return };
    let index = usize::try_from(canary.step).unwrap_or_default();
    match policy.on_inconclusive {
        OnInconclusive::Rollback => {
            let message =
                format!("{why} and the evidence does not decide (onInconclusive: Rollback)");
            draft.withdraw(Outcome::RolledBack, reasons::INCONCLUSIVE, &message, false);
        }
        OnInconclusive::Promote => enter_step(draft, policy, index + 1),
        OnInconclusive::Extend if !canary.extended => {
            enter_step(draft, policy, index);
            if let Some(canary) = &mut draft.status.canary {
                canary.extended = true;
            }
            draft.announce(false, reasons::EXTENDED, format!("{why}: collects once more"));
        }
        OnInconclusive::Hold | OnInconclusive::Extend => {
            hold(draft, reasons::INCONCLUSIVE, true);
            let revision = &canary.variant.revision;
            draft.say(
                reasons::INCONCLUSIVE,
                format!(
                    "{why} and the evidence does not decide: approve, promote or abort {revision}"
                ),
            );
        }
    }
}

/// Nothing to judge for too long. Never a failure of the canary and never a success.
fn no_data(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, late: bool) {
    let Some(canary) = draft.status.canary.clone() else { return };
    if canary.held.as_deref() == Some(reasons::INCONCLUSIVE) {
        return inconclusive(draft, policy, "the step's horizon has passed");
    }
    let since = canary
        .last_data_at
        .into_iter()
        .chain(canary.confirmed_at)
        .max()
        .unwrap_or(canary.entered_at);
    if !late && draft.elapsed_since(since) < policy.no_data_timeout.0 {
        release(draft, reasons::NO_DATA);
        if canary.confirmed_at.is_some() {
            progressing(draft, policy);
        }
        return;
    }
    let missing = draft.status.analysis.iter().find(|m| m.verdict == Verdict::NoData && !m.guard);
    let what = missing
        .map_or_else(|| "no new evidence".to_owned(), |m| format!("{}: {}", m.metric, m.message));
    let message = format!("{what}, for {} now", policy.no_data_timeout);
    match policy.on_no_data {
        OnNoData::Rollback => draft.withdraw(Outcome::Withdrawn, reasons::NO_DATA, &message, false),
        OnNoData::Hold => {
            hold(draft, reasons::NO_DATA, false);
            draft.say(reasons::NO_DATA, message);
        }
    }
}

fn progressing(draft: &mut Draft<'_>, policy: &CanaryPolicySpec) {
    if draft.control_loss() {
        let message = "gateways saw no leader for too long and send everything to stable";
        return draft.say(reasons::CONTROL_LOSS, message);
    }
    let Some(canary) = &draft.status.canary else { return };
    let passes = |m: &&MetricStatus| m.verdict == Verdict::Pass && !m.guard;
    let passed = draft.status.analysis.iter().filter(passes).count();
    let message = format!(
        "step {} of {} {}: {passed} of {} metrics pass",
        canary.step + 1,
        policy.steps.len(),
        exposure(policy, canary),
        policy.analysis.metrics.len()
    );
    draft.say(reasons::PROGRESSING, message);
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
    let note = format!("{} is held {place}", canary.variant.revision);
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

fn record_approval(draft: &mut Draft<'_>, request: crate::api::prompt_release::HandledRequest) {
    if let Some(canary) = &mut draft.status.canary
        && canary.approvals.len() < 16
    {
        canary.approvals.push(request);
    }
}
