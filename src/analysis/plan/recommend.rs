//! Policies that can decide: with as many samples as are needed, and with steps that fit the
//! traffic.

use super::{Assumptions, plan, round_up, rounded_up};
use crate::{
    analysis::judge::Pool,
    api::{CanaryPolicySpec, GoDuration, canary_policy::Pooling},
};

/// The most passes in which recommended samples are looked for.
const PASSES: usize = 5;
/// So many samples of the first step, and of each one after it but the last, find a canary
/// that fails 20 and 12 points more often in most cases (docs/statistics.md, "Evidence by
/// step and pooled"); where steps are pooled they need to prove no more.
const GATES: [i64; 2] = [40, 90];
/// Weights that take less and less time, for more and more users at risk.
const LADDERS: [&[i32]; 3] = [&[10, 50], &[25, 50], &[50]];
/// The time that is left to a step and to a canary, over what is planned.
const SPARE: f64 = 1.5;
/// So many times the mean time between two requests of a canary is a silence: it comes by
/// chance once in 20,000 gaps.
const SILENCE: f64 = 10.0;

/// `policy` with as many samples in each step as it needs; steps that no number of
/// samples helps stay as they are.
pub fn recommended(policy: &CanaryPolicySpec, assumed: &Assumptions) -> CanaryPolicySpec {
    let mut policy = policy.clone();
    // With the samples of pooled steps their average share changes, and with that the need.
    for _ in 0..PASSES {
        let better = with_samples(&policy, assumed);
        if better == policy {
            break;
        }
        policy = better;
    }
    policy
}

/// The most careful of some policies with the metrics of `policy` that is over within a time:
/// its own weights with the samples that are needed, then with smaller first steps, then with
/// fewer and larger weights. If none is, the fastest. `rate` is in requests a second,
/// `within` in seconds.
pub fn fitting(
    policy: &CanaryPolicySpec,
    assumed: &Assumptions,
    rate: f64,
    within: f64,
) -> CanaryPolicySpec {
    let mut best: Option<(f64, CanaryPolicySpec)> = None;
    for candidate in candidates(policy) {
        let candidate = with_time(recommended(&candidate, assumed), assumed, rate);
        let planned = plan(&candidate, assumed, Some(rate));
        let seconds = match planned.problems.is_empty() {
            true => planned.seconds(rate),
            false => f64::INFINITY,
        };
        if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
            best = Some((seconds, candidate));
        }
        if seconds <= within {
            break;
        }
    }
    best.map_or_else(|| policy.clone(), |(_, policy)| policy)
}

fn candidates(policy: &CanaryPolicySpec) -> Vec<CanaryPolicySpec> {
    let weights: Vec<i32> = policy.steps.iter().filter_map(|step| step.weight).collect();
    let mut all = vec![policy.clone(), with_gates(policy)];
    for ladder in LADDERS {
        if ladder.len() <= weights.len() && weights.first() < ladder.first() {
            all.push(with_gates(&with_weights(policy, ladder)));
        }
    }
    all.dedup();
    all
}

/// Steps that need to prove nothing see as few samples as stop a canary that fails much more
/// often.
fn with_gates(policy: &CanaryPolicySpec) -> CanaryPolicySpec {
    let mut policy = policy.clone();
    if policy.analysis.evidence != Pooling::Pooled {
        return policy;
    }
    let of = |index: usize| Pool::of(&policy, index).filter(|pool| !pool.is_last());
    let gates: Vec<Option<i64>> = (0..policy.steps.len())
        .map(|index| of(index).map(|pool| GATES[pool.at().min(GATES.len() - 1)]))
        .collect();
    for (step, gate) in policy.steps.iter_mut().zip(gates) {
        if let (Some(samples), Some(gate)) = (&mut step.samples, gate) {
            *samples = gate.min(*samples);
        }
    }
    policy
}

/// The same steps with other weights; those that are too many are left out from the front.
fn with_weights(policy: &CanaryPolicySpec, weights: &[i32]) -> CanaryPolicySpec {
    let mut policy = policy.clone();
    let count = policy.steps.iter().filter(|step| step.weight.is_some()).count();
    let mut surplus = count.saturating_sub(weights.len());
    policy.steps.retain(|step| {
        let goes = step.weight.is_some() && surplus > 0;
        surplus -= usize::from(goes);
        !goes
    });
    let weighted = policy.steps.iter_mut().filter(|step| step.weight.is_some());
    for (step, weight) in weighted.zip(weights) {
        step.weight = Some(*weight);
    }
    policy
}

/// Deadlines that leave time at this rate, and a silence that is one.
fn with_time(mut policy: CanaryPolicySpec, assumed: &Assumptions, rate: f64) -> CanaryPolicySpec {
    let planned = plan(&policy, assumed, Some(rate));
    let (mut whole, mut rarest) = (0.0, f64::INFINITY);
    for step in &planned.steps {
        let seconds = step.seconds(rate);
        whole += seconds;
        rarest = f64::min(rarest, rate * f64::from(step.weight) / 100.0);
        let Some(own) = policy.steps.get_mut(step.index) else { continue };
        let deadline = match &mut own.shadow {
            Some(shadow) => &mut shadow.deadline,
            None => &mut own.deadline,
        };
        if let Some(deadline) = deadline {
            *deadline = at_least(*deadline, seconds);
        }
    }
    policy.progress_deadline = at_least(policy.progress_deadline, whole);
    let silence = SILENCE / rarest;
    if policy.no_data_timeout.0.as_secs_f64() < silence {
        policy.no_data_timeout = rounded_up(silence);
    }
    policy
}

/// `deadline`, or longer, so that it leaves time.
fn at_least(deadline: GoDuration, seconds: f64) -> GoDuration {
    match seconds <= deadline.0.as_secs_f64() {
        true => deadline,
        false => rounded_up(seconds * SPARE),
    }
}

fn with_samples(policy: &CanaryPolicySpec, assumed: &Assumptions) -> CanaryPolicySpec {
    let plan = plan(policy, assumed, None);
    let mut policy = policy.clone();
    for step in plan.steps {
        if step.metrics.is_empty() {
            continue;
        }
        let Some(needs) = step.needs() else { continue };
        let samples = round_up((needs - step.earlier).max(20));
        let Some(own) = policy.steps.get_mut(step.index) else { continue };
        match &mut own.shadow {
            Some(shadow) => shadow.samples = samples,
            None => own.samples = Some(samples),
        }
        for metric in &mut policy.analysis.metrics {
            let planned = step.metrics.iter().find(|m| m.metric == metric.name);
            let needs = planned.and_then(|m| m.needs);
            if let (Some(score), Some(needs)) = (&mut metric.score, needs) {
                score.min_samples = score.min_samples.max(round_up(needs)).max(20);
            }
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::plan::WANTED;

    const WEEK: f64 = 7.0 * 86_400.0;

    fn careful() -> CanaryPolicySpec {
        let steps =
            "[{weight: 5, samples: 100}, {weight: 25, samples: 300}, {weight: 50, samples: 600}]";
        serde_yaml_ng::from_str(&format!("{{steps: {steps}}}")).unwrap()
    }

    fn weights(policy: &CanaryPolicySpec) -> Vec<i32> {
        policy.steps.iter().filter_map(|step| step.weight).collect()
    }

    #[test]
    fn a_thousand_requests_are_enough_for_the_default_metrics() {
        let (assumed, rate) = (Assumptions::default(), 1_000.0 / WEEK);
        let given = careful();
        let better = fitting(&given, &assumed, rate, WEEK);
        let planned = plan(&better, &assumed, Some(rate));
        assert_eq!(planned.problems, Vec::<String>::new());
        assert!(planned.seconds(rate) <= WEEK, "{} s", planned.seconds(rate));
        assert!(planned.promotes >= WANTED, "{planned:?}");
        assert_eq!(better.analysis, given.analysis, "the same promises");
        let silence = better.no_data_timeout.0.as_secs_f64();
        let rarest = rate * f64::from(weights(&better)[0]) / 100.0;
        assert!(silence * rarest >= SILENCE, "{silence} s");
    }

    #[test]
    fn much_traffic_keeps_the_steps_that_were_given() {
        let given = careful();
        let better = fitting(&given, &Assumptions::default(), 10.0, WEEK);
        assert_eq!(weights(&better), weights(&given));
        assert_eq!(better.steps[0], given.steps[0]);
        assert_eq!(better.no_data_timeout, given.no_data_timeout);
        assert_eq!(better.progress_deadline, given.progress_deadline);
    }

    #[test]
    fn what_is_no_weight_stays_where_it_is() {
        let text = "{steps: [{shadow: {percent: 10, samples: 100}}, {weight: 5, samples: 300, deadline: 1h}, {weight: 25, samples: 1000}, {approval: {}}, {weight: 50, samples: 2000}]}";
        let given: CanaryPolicySpec = serde_yaml_ng::from_str(text).unwrap();
        let less = with_weights(&given, &[10, 50]);
        assert_eq!(weights(&less), [10, 50]);
        let kinds = |policy: &CanaryPolicySpec| {
            let of = |s: &crate::api::canary_policy::Step| (s.weight, s.shadow.is_some());
            policy.steps.iter().map(of).collect::<Vec<_>>()
        };
        let expected = [(None, true), (Some(10), false), (None, false), (Some(50), false)];
        assert_eq!(kinds(&less), expected);
        let gates = with_gates(&given);
        let samples: Vec<Option<i64>> = gates.steps.iter().map(|step| step.samples).collect();
        assert_eq!(samples, [None, Some(40), Some(90), None, Some(2000)]);
        let mut alone = given.clone();
        alone.analysis.evidence = Pooling::PerStep;
        assert_eq!(with_gates(&alone), alone, "each of these steps has to prove it");
        let slow = with_time(given, &Assumptions::default(), 0.01);
        assert_eq!(slow.steps[1].deadline.map(|d| d.to_string()).as_deref(), Some("250h"));
    }

    #[test]
    fn what_no_steps_can_do_is_left_as_it_is() {
        let text = "{steps: [{weight: 5, samples: 300}], analysis: {metrics: [{name: errors, errorRate: {}, floor: {max: 0.001}, margin: {harm: 0.02, accept: 0.05}}]}}";
        let given: CanaryPolicySpec = serde_yaml_ng::from_str(text).unwrap();
        let better = fitting(&given, &Assumptions::default(), 10.0, WEEK);
        assert_eq!(weights(&better), [5]);
    }
}
