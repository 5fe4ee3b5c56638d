//! Looking at the evidence of a running or baking canary: is it to be trusted, what does
//! it say, and where is it heading.

use std::collections::BTreeSet;

use super::{canary::running_step, draft::Draft, reasons};
use crate::{
    analysis::{
        concentration::Concentration,
        evidence,
        judge::{self, Evidence, Window},
        plan::{duration, rounded_up},
        sample_ratio,
    },
    api::{
        CanaryPolicySpec,
        canary_policy::{OnInconclusive, Step},
        conditions,
        prompt_release::{CanaryStatus, Counts, MetricStatus, Remaining, Verdict},
    },
};

/// Notes when every gateway applies the step's routing.
pub(super) fn confirm(draft: &mut Draft<'_>) {
    let confirmed = draft.confirmed();
    let now = draft.now;
    if let Some(canary) = &mut draft.status.canary
        && canary.confirmed_at.is_none()
        && confirmed
    {
        canary.confirmed_at = Some(now);
    }
}

/// Collects evidence and judges it, once per interval, and `now` when a deadline is
/// reached; between, the last verdict stands.
pub(super) fn judge(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, now: bool) -> Verdict {
    let Some(canary) = draft.status.canary.clone() else { return Verdict::NoData };
    // What was judged in the future was judged by a clock that has been set back since.
    let due = canary
        .analysed_at
        .is_none_or(|at| at > draft.now || draft.elapsed_since(at) >= policy.analysis.interval.0);
    let step = usize::try_from(canary.step).ok().filter(|_| draft.status.previous.is_none());
    let window = Window::new(policy, step.unwrap_or(usize::MAX));
    if !due && !now {
        return judge::verdict(&window, &draft.status.analysis);
    }
    let baking = draft.status.previous.clone();
    let control = baking.clone().or_else(|| draft.status.stable.clone()).unwrap_or_default();
    let seen_before = evidence::totals(&draft.status.evidence).1;
    collect(draft, &control.revision, &canary.variant.revision);
    let (stable, treatment) = evidence::totals(&draft.status.evidence);
    tell_spread(draft, Concentration::of(&stable, &treatment));
    let external = &draft.snapshot.external;
    let pending = pending(draft, &window, &treatment);
    let pooled = window.pool.is_some();
    let earlier = if pooled { draft.status.earlier_steps.as_slice() } else { &[] };
    let evidence = Evidence { stable: &stable, canary: &treatment, external, pending, earlier };
    draft.status.analysis = judge::assess(&window, &evidence, &draft.status.analysis);
    let verdict = judge::verdict(&window, &draft.status.analysis);
    let grew = treatment.ended() > seen_before.ended() && verdict != Verdict::NoData;
    let now = draft.now;
    let remaining = step.and_then(|step| remaining(draft, policy, step, [&stable, &treatment]));
    if let Some(canary) = &mut draft.status.canary {
        canary.remaining = remaining;
        canary.analysed_at = Some(now);
        if grew {
            canary.last_data_at = Some(now);
        }
    }
    if grew {
        draft.note_data();
    }
    draft.keep_clock();
    verdict
}

/// About what is left of the canary, at the rate at which requests have come in this step.
fn remaining(
    draft: &Draft<'_>,
    policy: &CanaryPolicySpec,
    index: usize,
    [stable, canary]: [&Counts; 2],
) -> Option<Remaining> {
    let step = policy.steps.get(index)?;
    step.horizon()?;
    let earlier = draft.status.earlier_steps.first();
    let first = earlier.and_then(|earlier| usize::try_from(earlier.step).ok()).unwrap_or(index);
    let seen = samples(draft, step) as f64;
    let ahead = judge::ahead(policy, (index, first), &draft.status.analysis, seen)?;
    // Of a shadow the canary's are copies.
    let drawn = stable.assigned + if step.shadow.is_some() { 0 } else { canary.assigned };
    let rate = drawn as f64 / draft.clock().step.0.as_secs_f64();
    let seconds = ahead.warm_ups + ahead.requests / rate;
    let time = (seconds.is_finite() && rate > 0.0).then(|| rounded_up(seconds));
    Some(Remaining { requests: ahead.samples.ceil() as i64, time })
}

/// How many requests a window with all its samples waits for.
fn pending(draft: &mut Draft<'_>, window: &Window<'_>, canary: &Counts) -> u64 {
    let now = draft.now;
    let full = judge::has_samples(window, canary, &draft.status.earlier_steps);
    let Some(status) = draft.status.canary.as_mut().filter(|_| full) else { return 0 };
    let since = now.duration_since(*status.sampled_at.get_or_insert(now)).as_secs_f64();
    judge::pending(window, canary, &draft.status.analysis, since)
}

/// Says when most requests have one sticky key, or few: then the weight is not the share
/// of users that it seems to be.
fn tell_spread(draft: &mut Draft<'_>, seen: Option<Concentration>) {
    let Some(seen) = seen else { return };
    let sources = draft.status.routing.settings.sticky_from.join(", ");
    if seen.is_high() {
        let message = format!(
            "{:.0} % of {} requests with a sticky key ({sources}) have one key, or few: all of them get the canary or none does, whatever the weight. Name a header or field in stickiness.from that differs by user or conversation, or leave it out to draw each request",
            100.0 * seen.share(),
            seen.requests,
        );
        draft.warn(conditions::types::KEYS_SPREAD, false, (reasons::FEW_STICKY_KEYS, &message));
    } else if conditions::find(&draft.status.conditions, conditions::types::KEYS_SPREAD).is_some() {
        let message = "no sticky key has most of the requests";
        draft.warn(conditions::types::KEYS_SPREAD, true, (reasons::MANY_STICKY_KEYS, message));
    }
}

/// Only counts of the current routing generation are evidence.
fn collect(draft: &mut Draft<'_>, control: &str, treatment: &str) {
    let generation = Some(draft.status.routing.generation);
    let (mut uncounted, mut heard) = (0, BTreeSet::new());
    let evidence = &mut draft.status.evidence;
    let seen = draft.snapshot.gateways.iter().map(|gateway| (gateway, true));
    let departed = draft.snapshot.departed.iter().map(|gateway| (gateway, false));
    for (gateway, lives) in seen.chain(departed).filter(|(g, _)| g.applied == generation) {
        let Some(instance) = &gateway.instance else { continue };
        let of = |revision: &str| gateway.counts.get(revision).cloned().unwrap_or_default();
        let (control, treatment) = (of(control), of(treatment));
        let before = evidence::read_at(evidence, instance);
        if !evidence::merge(evidence, instance, &control, &treatment) {
            uncounted += control.requests + treatment.requests;
        }
        // The last word of a process says which requests were open then; the next look, which
        // hears no more of it, forgets these.
        if lives || evidence::read_at(evidence, instance) != before {
            heard.insert(instance.as_str());
        }
    }
    evidence::forget_open(evidence, |instance| heard.contains(instance));
    if let Some(canary) = &mut draft.status.canary {
        canary.uncounted = uncounted;
    }
}

/// How many of the step's samples were seen.
pub(super) fn samples(draft: &Draft<'_>, step: &Step) -> u64 {
    let canary = evidence::totals(&draft.status.evidence).1;
    match step.shadow {
        Some(_) => canary.paired.as_ref().map_or(0, |paired| paired.errors.pairs()),
        None => canary.requests,
    }
}

/// Which metric failed and why.
pub(super) fn failure(draft: &Draft<'_>) -> String {
    let failed = draft.status.analysis.iter().filter(|m| m.verdict == Verdict::Fail);
    failed.map(|m| format!("{}: {}", m.metric, m.message)).collect::<Vec<_>>().join("; ")
}

/// Why the numbers of this step can not decide, if so: a reason and a sentence.
pub(super) fn untrusted(
    draft: &Draft<'_>,
    policy: &CanaryPolicySpec,
    canary: &CanaryStatus,
) -> Option<(&'static str, String)> {
    if let Some(message) = split(draft, policy, canary) {
        return Some((reasons::SAMPLE_RATIO_MISMATCH, message));
    }
    if let Some(message) = floor_on_both_sides(draft) {
        return Some((reasons::FLOOR_ON_BOTH_SIDES, message));
    }
    let named = draft.status.analysis.iter().find(|m| m.caller.is_some())?;
    Some((reasons::ONE_CALLER, format!("{}: {}", named.metric, named.message)))
}

/// Stable is beyond a floor together with the canary: an incident of both, which rolls
/// back nobody and lets nobody pass.
pub(super) fn floor_on_both_sides(draft: &Draft<'_>) -> Option<String> {
    let broken = |m: &MetricStatus| {
        let told = m.floor_on_both_sides.as_ref()?;
        Some(format!("{}: {told}: an incident of both, it decides nothing", m.metric))
    };
    draft.status.analysis.iter().find_map(broken)
}

fn split(draft: &Draft<'_>, policy: &CanaryPolicySpec, canary: &CanaryStatus) -> Option<String> {
    let (stable, treatment) = evidence::totals(&draft.status.evidence);
    // A shadow is assigned copies of what stable is assigned, request by request: the
    // rest is the other side, and users do not matter.
    let alone = |assigned| Counts { assigned, ..Counts::default() };
    match running_step(policy, canary).and_then(|s| s.shadow.as_ref()) {
        Some(shadow) => {
            let others = stable.assigned.saturating_sub(treatment.assigned);
            sample_ratio::mismatch(&alone(others), &alone(treatment.assigned), shadow.percent)
        }
        None => sample_ratio::mismatch(&stable, &treatment, canary.weight),
    }
}

/// A metric that will hardly pass any more ends the step early, when the end would be to
/// hold or to roll back anyway. No error rate rests on it.
pub(super) fn futile(draft: &Draft<'_>, policy: &CanaryPolicySpec) -> Option<String> {
    if matches!(policy.on_inconclusive, OnInconclusive::Promote | OnInconclusive::Extend) {
        return None;
    }
    let hopeless = |m: &&MetricStatus| {
        m.verdict == Verdict::Undecided
            && !m.guard
            && m.looks.last().is_some_and(|t| *t >= 0.5)
            && m.chance.is_some_and(|chance| chance < judge::FUTILE)
    };
    let metric = draft.status.analysis.iter().find(hopeless)?;
    Some(format!("{} has less than 1 % chance to pass by the horizon", metric.metric))
}

/// Tells in good time that a step's deadline comes before its samples, or before stable has
/// the answers that choose the threshold of a latency.
pub(super) fn foresee(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, step: &Step) {
    let Some(canary) = &draft.status.canary else { return };
    let (Some(_), Some(deadline), Some(horizon)) =
        (canary.confirmed_at, step.deadline(), step.horizon())
    else {
        return;
    };
    let (elapsed, deadline) = (draft.clock().step.0.as_secs_f64(), deadline.0.as_secs_f64());
    if elapsed < 0.1 * deadline {
        return;
    }
    let (stable, treatment) = evidence::totals(&draft.status.evidence);
    let takes = |wanted: u64, seen: u64| elapsed * wanted as f64 / (seen as f64).max(0.5);
    let samples = takes(horizon.unsigned_abs(), treatment.requests);
    let index = usize::try_from(canary.step).unwrap_or(usize::MAX);
    let awaited = Window::new(policy, index).awaited(&draft.status.analysis);
    let answers = awaited.map_or(0.0, |(_, answers)| takes(answers, stable.requests));
    let needed = samples.max(answers);
    let known = conditions::find(&draft.status.conditions, conditions::types::DECIDABLE);
    let warned = known.is_some_and(|c| c.reason == reasons::DEADLINE_TOO_SHORT);
    // What is close to the deadline is neither warned of nor taken back.
    if needed > 1.1 * deadline && !warned {
        let (needed, deadline) = (duration(needed), duration(deadline));
        let message = match awaited.filter(|_| answers > samples) {
            Some((metric, answers)) => format!(
                "at the rate so far the {answers} answers of stable that choose the threshold of {metric} take {needed}, the step's deadline is {deadline}: less weight, a smaller quantile or a longer deadline"
            ),
            None => format!(
                "at the rate so far {horizon} samples take {needed}, the step's deadline is {deadline}: more weight, fewer samples or a longer deadline"
            ),
        };
        draft.tell_decidable(false, (reasons::DEADLINE_TOO_SHORT, &message));
    } else if warned && needed < deadline {
        let (holds, told) = super::decidable(draft.snapshot.undecidable.as_deref());
        draft.tell_decidable(holds, told);
    }
}
