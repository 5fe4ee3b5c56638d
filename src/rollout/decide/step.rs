//! One step of a canary: what it waits for, and how it ends.

use super::{
    canary::{
        enter_step, exposure, hold, record_approval, release, restart_window, route_step,
        running_step,
    },
    draft::Draft,
    look::{self, foresee, futile},
    reasons, requests,
};
use crate::{
    analysis::judge,
    api::{
        CanaryPolicySpec,
        canary_policy::{OnInconclusive, OnNoData, Step},
        prompt_release::{CanaryStatus, MetricStatus, Outcome, Phase, Verdict},
    },
    prompt::short,
    rollout::snapshot::Action,
};

/// What stops the canary's clock and holds it, until it is over by itself.
const STOPS: [&str; 5] = [
    reasons::ONE_CALLER,
    reasons::SAMPLE_RATIO_MISMATCH,
    reasons::BACKEND_NOT_READY,
    reasons::WAITING_FOR_GATEWAYS,
    reasons::CONTROL_LOSS,
];

/// Nothing can be judged now, and no time counts.
pub(super) fn wait(
    draft: &mut Draft<'_>,
    policy: &CanaryPolicySpec,
    why: &'static str,
    message: &str,
) {
    let Some(canary) = draft.status.canary.clone() else { return };
    match why {
        reasons::SUSPENDED => {}
        reasons::AWAITING_APPROVAL => {
            if approved(draft, policy, &canary) {
                return;
            }
            draft.status.phase = Phase::AwaitingApproval;
        }
        reasons::ONE_CALLER => {
            if approved(draft, policy, &canary) {
                return;
            }
            hold(draft, why, true);
        }
        reasons::WARMING_UP => {
            if warmed_up(draft, policy, &canary) {
                return;
            }
        }
        // A change of traffic takes a moment.
        reasons::WAITING_FOR_GATEWAYS | reasons::CONTROL_LOSS => {
            let since = draft.clock().stopped_since.unwrap_or(draft.now);
            if draft.elapsed_since(since) >= policy.no_data_timeout.0 {
                hold(draft, why, true);
            }
        }
        _ => hold(draft, why, true),
    }
    let is_held = draft.status.phase == Phase::Held;
    let remedy = remedy(why, &canary.variant.revision).filter(|_| is_held);
    draft.say(why, remedy.map_or(message.to_owned(), |remedy| format!("{message}: {remedy}")));
}

/// What ends a hold.
fn remedy(why: &str, revision: &str) -> Option<String> {
    Some(match why {
        reasons::BACKEND_NOT_READY => format!("goes on by itself when it is; or abort {revision}"),
        reasons::WAITING_FOR_GATEWAYS => {
            "goes on by itself when all do: see the logs of the others".to_owned()
        }
        reasons::CONTROL_LOSS => {
            "goes on by itself when the operator reaches them again".to_owned()
        }
        reasons::FLOOR_ON_BOTH_SIDES => format!(
            "goes on by itself, with counts from then on, when stable is within it; or abort {revision}"
        ),
        reasons::ONE_CALLER => format!("approve or abort {revision}"),
        reasons::SAMPLE_RATIO_MISMATCH => {
            format!("abort {revision}, and retry it when it is known what splits them")
        }
        _ => return None,
    })
}

/// The step from its beginning, on fresh counts. The canary's server is warm.
fn again(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, canary: &CanaryStatus, extended: bool) {
    if extended && !canary.extended {
        // The second run, with the other half of the errors.
        draft.status.earlier_steps.clear();
        draft.status.analysis = judge::carry_over(&draft.status.analysis, false);
    }
    enter_step(draft, policy, index(canary));
    if let Some(canary) = &mut draft.status.canary {
        (canary.extended, canary.warming) = (extended, false);
    }
}

/// What held the canary is over. What was counted in an incident of both sides says little
/// of the canary, so the step begins anew after one.
pub(super) fn goes_on(draft: &mut Draft<'_>, policy: &CanaryPolicySpec) -> bool {
    let Some(canary) = draft.status.canary.clone() else { return false };
    if canary.held.as_deref() == Some(reasons::FLOOR_ON_BOTH_SIDES) {
        again(draft, policy, &canary, canary.extended);
        return true;
    }
    for why in STOPS {
        release(draft, why);
    }
    false
}

/// A person let the canary go on.
fn approved(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, canary: &CanaryStatus) -> bool {
    let Some(request) = requests::take(draft, Action::Approve, &canary.variant.revision) else {
        return false;
    };
    let note = format!("{} approved {}", request.by, short(&canary.variant.revision));
    record_approval(draft, request);
    draft.announce(false, reasons::APPROVED, note);
    enter_step(draft, policy, index(canary) + 1);
    true
}

/// The warm-up has taken its time, which passes whether somebody judges or not.
pub(super) fn is_warm(draft: &Draft<'_>, policy: &CanaryPolicySpec, canary: &CanaryStatus) -> bool {
    let delay = running_step(policy, canary).and_then(|s| s.initial_delay).unwrap_or_default();
    canary.confirmed_at.is_some_and(|since| draft.elapsed_since(since) >= delay.0)
}

/// The warm-up is over: the same traffic under a new generation, so that nothing that was
/// counted before is evidence.
fn warmed_up(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, canary: &CanaryStatus) -> bool {
    let (Some(step), Some(since), Some(stable)) =
        (running_step(policy, canary), canary.confirmed_at, draft.status.stable.clone())
    else {
        return false;
    };
    let delay = step.initial_delay.unwrap_or_default();
    if !is_warm(draft, policy, canary) {
        draft.wake(since + delay.signed());
        return false;
    }
    let mut canary = canary.clone();
    canary.warming = false;
    restart_window(&mut canary);
    route_step(draft, policy, step, &stable, &canary);
    draft.status.canary = Some(canary);
    draft.restart_clock(reasons::WAITING_FOR_GATEWAYS);
    let message = format!("initialDelay {delay} is over: what comes now is judged");
    draft.announce(false, reasons::WARMED_UP, message.clone());
    draft.say(reasons::WARMED_UP, message);
    true
}

fn index(canary: &CanaryStatus) -> usize {
    usize::try_from(canary.step).unwrap_or_default()
}

/// Whether the step is over, by what its evidence says.
pub(super) fn judged(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, verdict: Verdict) {
    let Some(canary) = draft.status.canary.clone() else { return };
    let Some(step) = running_step(policy, &canary) else { return };
    if canary.held.as_deref() == Some(reasons::INCONCLUSIVE) && approved(draft, policy, &canary) {
        return;
    }
    foresee(draft, policy, step);
    let spent = draft.clock().step;
    draft.wake_when(step.min_duration, spent);
    let late = step.deadline().filter(|deadline| spent >= *deadline);
    match (verdict, late) {
        (Verdict::Pass, _) => match step.min_duration.filter(|least| spent < *least) {
            Some(least) => {
                release(draft, reasons::INCONCLUSIVE);
                release(draft, reasons::NO_DATA);
                progressing(draft, policy, &format!(", for minDuration {least}"));
            }
            None => enter_step(draft, policy, index(&canary) + 1),
        },
        (Verdict::Inconclusive, _) => {
            let why = format!("every sample was seen and {} does not decide", undecided(draft));
            inconclusive(draft, policy, &why, true);
        }
        (Verdict::NoData, _) => no_data(draft, policy, late.map(|d| d.to_string()).as_deref()),
        (_, Some(deadline)) => {
            let why = format!(
                "the step's deadline of {deadline} has passed before there was enough to decide ({})",
                missing(draft, step)
            );
            inconclusive(draft, policy, &why, false);
        }
        (_, None) => match futile(draft, policy) {
            Some(why) => inconclusive(draft, policy, &why, true),
            None => {
                // The stop for futility is not binding: the canary may have recovered.
                release(draft, reasons::INCONCLUSIVE);
                no_data(draft, policy, None);
            }
        },
    }
}

/// The metrics that have no answer.
fn undecided(draft: &Draft<'_>) -> String {
    let open =
        draft.status.analysis.iter().filter(|m| m.verdict == Verdict::Inconclusive && !m.guard);
    open.map(|m| m.metric.as_str()).collect::<Vec<_>>().join(", ")
}

/// What the step has not seen of what it wanted: samples, or else what a metric waits for.
fn missing(draft: &Draft<'_>, step: &Step) -> String {
    let (seen, wanted) = (look::samples(draft, step), step.horizon().unwrap_or_default());
    if seen < wanted.unsigned_abs() {
        return format!("{seen} of {wanted} canary samples");
    }
    let metrics = &draft.status.analysis;
    let open = metrics.iter().find(|m| m.verdict == Verdict::Undecided && !m.guard);
    open.or_else(|| judge::doubt(metrics).map(|(metric, _)| metric)).map_or_else(
        || "samples are missing".to_owned(),
        |m| format!("{}: {}", m.metric, m.message),
    )
}

/// The step ends without an answer. One that had not its samples never goes on by itself.
fn inconclusive(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, why: &str, had_samples: bool) {
    let Some(canary) = draft.status.canary.clone() else { return };
    match policy.on_inconclusive {
        OnInconclusive::Rollback => {
            let message = format!("{why} (onInconclusive: Rollback)");
            draft.withdraw(Outcome::RolledBack, reasons::INCONCLUSIVE, &message, false);
        }
        OnInconclusive::Promote if had_samples => enter_step(draft, policy, index(&canary) + 1),
        OnInconclusive::Extend if !canary.extended => {
            again(draft, policy, &canary, true);
            draft.announce(false, reasons::EXTENDED, format!("{why}: collects once more"));
        }
        OnInconclusive::Hold | OnInconclusive::Extend | OnInconclusive::Promote => {
            hold(draft, reasons::INCONCLUSIVE, true);
            let revision = &canary.variant.revision;
            let message = format!("{why}: approve, promote or abort {revision}");
            draft.say(reasons::INCONCLUSIVE, message);
        }
    }
}

/// Nothing to judge for too long, or at the step's deadline. Never a failure of the
/// canary and never a success.
fn no_data(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, deadline: Option<&str>) {
    let Some(canary) = draft.status.canary.clone() else { return };
    let missing = draft.status.analysis.iter().find(|m| m.verdict == Verdict::NoData && !m.guard);
    let what = missing
        .map_or_else(|| "no new evidence".to_owned(), |m| format!("{}: {}", m.metric, m.message));
    if canary.held.as_deref() == Some(reasons::INCONCLUSIVE) {
        return inconclusive(draft, policy, &format!("the step has ended, {what}"), false);
    }
    let quiet = draft.clock().quiet >= policy.no_data_timeout;
    if deadline.is_none() && !quiet {
        release(draft, reasons::NO_DATA);
        return progressing(draft, policy, "");
    }
    let message = match deadline {
        Some(deadline) => format!("{what}, and the step's deadline of {deadline} has passed"),
        None => format!("{what}, for {} now", policy.no_data_timeout),
    };
    match policy.on_no_data {
        OnNoData::Rollback => draft.withdraw(Outcome::Withdrawn, reasons::NO_DATA, &message, false),
        OnNoData::Hold => {
            hold(draft, reasons::NO_DATA, false);
            let revision = &canary.variant.revision;
            let message = format!(
                "{message}: goes on by itself when there are answers to judge; or promote or abort {revision}"
            );
            draft.say(reasons::NO_DATA, message);
        }
    }
}

fn progressing(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, note: &str) {
    let Some(canary) = &draft.status.canary else { return };
    let passes = |m: &&MetricStatus| m.verdict == Verdict::Pass && !m.guard;
    let passed = draft.status.analysis.iter().filter(passes).count();
    // A built-in comparison matters once something passes; a canary that turned bad, at once.
    let doubt = judge::doubt(&draft.status.analysis).filter(|(m, _)| passed > 0 || !m.guard);
    let doubt = doubt.map(|(m, shown)| {
        let [canary, stable] = [shown.canary, shown.stable].map(|side| m.unit.sample(side));
        format!("; {} is looked at longer: canary {canary}, stable {stable}", m.metric)
    });
    let held_back = judge::against(&draft.status.analysis).filter(|m| !m.guard).map(|m| {
        let in_step = m.in_step.unwrap_or_default();
        let [canary, stable] = [in_step.canary, in_step.stable].map(|side| m.unit.sample(side));
        format!("; {} is looked at longer in this step: canary {canary}, stable {stable}", m.metric)
    });
    let doubt = doubt.or(held_back).unwrap_or_default();
    let message = format!(
        "step {} of {} {}: {passed} of {} metrics pass{note}{doubt}",
        canary.step + 1,
        policy.steps.len(),
        exposure(policy, canary),
        policy.analysis.metrics.len()
    );
    draft.say(reasons::PROGRESSING, message);
}
