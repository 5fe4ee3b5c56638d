//! How much is left until a canary is promoted, if it goes on as it is. It informs, and
//! decides nothing.

use super::{FUTILE, Pool, against, doubt};
use crate::{
    analysis::stats::normal::upper_quantile,
    api::{
        CanaryPolicySpec,
        canary_policy::Step,
        prompt_release::{MetricStatus, Verdict},
    },
};

/// What is left until the canary is promoted, or waits for an approval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ahead {
    /// Requests of the canary, or pairs of a shadow.
    pub samples: f64,
    /// Requests of the route.
    pub requests: f64,
    /// Time in which nothing is judged, in seconds.
    pub warm_ups: f64,
}

/// When a statistic that is `z` at information fraction `t` is expected to be accepted:
/// between `t` and 1. It grows as the root of the information if the difference stays as it
/// is, and O'Brien and Fleming's critical value falls as its root (Biometrics 35, 1979):
/// they meet at critical · √t / z.
pub(super) fn accepted_at(z: f64, t: f64, alpha: f64) -> f64 {
    let at = upper_quantile(alpha) * t.max(0.0).sqrt() / z;
    if z > 0.0 && at.is_finite() { at.clamp(t.min(1.0), 1.0) } else { 1.0 }
}

/// What is left in the steps from `index` on. `seen` are the canary's requests (or pairs) of
/// this step, `first` is the first step whose evidence counts in it. None while something
/// speaks against the canary, or a metric is not expected to be accepted.
pub fn ahead(
    policy: &CanaryPolicySpec,
    (index, first): (usize, usize),
    metrics: &[MetricStatus],
    seen: f64,
) -> Option<Ahead> {
    let of_policy = |m: &&MetricStatus| !m.guard;
    let is_lost = |m: &MetricStatus| {
        matches!(m.verdict, Verdict::Fail | Verdict::Inconclusive | Verdict::NoData)
            || m.chance.is_some_and(|chance| chance < FUTILE)
    };
    let speaks_against = doubt(metrics).is_some() || against(metrics).is_some();
    if speaks_against || metrics.iter().filter(of_policy).any(is_lost) {
        return None;
    }
    let at = metrics.iter().filter(of_policy).map(|m| match m.verdict {
        Verdict::Pass => m.looks.last().copied().unwrap_or(0.0).min(1.0),
        _ => m.accepted_at.unwrap_or(1.0),
    });
    let at = at.fold(0.0, f64::max);
    let mut left = Ahead::default();
    let steps = policy.steps.iter().enumerate().skip(index);
    for (i, step) in steps.take_while(|(_, step)| step.approval.is_none()) {
        let wanted = wanted(policy, (index, first), (i, step), at);
        let samples = (wanted - if i == index { seen } else { 0.0 }).max(0.0);
        left.samples += samples;
        left.requests += samples * 100.0 / f64::from(step.percent().unwrap_or(1).max(1));
        let delay = step.initial_delay.filter(|_| i > index);
        left.warm_ups += delay.map_or(0.0, |delay| delay.0.as_secs_f64());
    }
    Some(left)
}

/// How many samples step `i` takes, when all that is compared now is accepted `at` this
/// fraction of its test.
fn wanted(
    policy: &CanaryPolicySpec,
    (index, first): (usize, usize),
    (i, step): (usize, &Step),
    at: f64,
) -> f64 {
    let all = step.horizon().unwrap_or_default() as f64;
    if Pool::goes_on(policy, index, i) {
        return Pool::of(policy, i).map_or(0.0, |pool| pool.taken_until(first, at));
    }
    // Another step with a weight asks the same of other requests; a shadow asks it of pairs.
    let is_shadow = |step: &Step| step.shadow.is_some();
    let alike = policy.steps.get(index).is_some_and(|here| is_shadow(here) == is_shadow(step));
    if alike { all * at } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(evidence: &str, steps: &str) -> CanaryPolicySpec {
        let metric = "{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}";
        let text =
            format!("{{steps: {steps}, analysis: {{evidence: {evidence}, metrics: [{metric}]}}}}");
        serde_yaml_ng::from_str(&text).unwrap()
    }

    fn errors(verdict: Verdict, accepted_at: Option<f64>) -> MetricStatus {
        MetricStatus { metric: "errors".into(), verdict, accepted_at, ..MetricStatus::default() }
    }

    #[test]
    fn a_statistic_is_expected_to_grow_as_the_root_of_the_information() {
        let critical = upper_quantile(0.05);
        assert!((accepted_at(critical, 0.25, 0.05) - 0.5).abs() < 1e-9);
        assert_eq!(accepted_at(10.0, 0.25, 0.05), 0.25, "never before now");
        assert_eq!(accepted_at(0.1, 0.25, 0.05), 1.0, "never after the end");
        assert_eq!(accepted_at(-1.0, 0.25, 0.05), 1.0);
        assert_eq!(accepted_at(f64::NAN, 0.25, 0.05), 1.0);
    }

    #[test]
    fn each_step_that_stands_alone_takes_as_large_a_part_of_its_samples() {
        let policy = policy("PerStep", "[{weight: 10, samples: 100}, {weight: 50, samples: 200}]");
        let left = ahead(&policy, (0, 0), &[errors(Verdict::Undecided, Some(0.6))], 20.0).unwrap();
        assert_eq!((left.samples, left.requests), (40.0 + 120.0, 400.0 + 240.0));
        let left = ahead(&policy, (1, 1), &[errors(Verdict::Undecided, None)], 250.0).unwrap();
        assert_eq!(left.samples, 0.0);
    }

    #[test]
    fn pooled_steps_end_with_the_test_of_all() {
        let policy = policy(
            "Pooled",
            "[{weight: 10, samples: 100}, {approval: {}}, {weight: 50, samples: 400}]",
        );
        let metrics = |at| [errors(Verdict::Undecided, at)];
        let left = ahead(&policy, (2, 0), &metrics(None), 100.0).unwrap();
        assert_eq!((left.samples, left.requests), (300.0, 600.0));
        // The first step is 90 of 290 of the whole.
        let half = ahead(&policy, (2, 0), &metrics(Some((90.0 + 100.0) / 290.0)), 150.0).unwrap();
        assert!((half.samples - 50.0).abs() < 1e-9, "{half:?}");
        let before = ahead(&policy, (0, 0), &metrics(Some(1.0)), 30.0).unwrap();
        assert_eq!(before.samples, 70.0, "until the approval");
        let accepted = ahead(&policy, (2, 0), &[errors(Verdict::Pass, None)], 0.0).unwrap();
        assert_eq!(accepted.samples, 40.0, "a tenth is seen of a step whose answer is known");
    }

    #[test]
    fn what_is_lost_has_no_end() {
        let policy = policy("Pooled", "[{weight: 10, samples: 100}]");
        for verdict in [Verdict::Fail, Verdict::Inconclusive, Verdict::NoData] {
            assert_eq!(ahead(&policy, (0, 0), &[errors(verdict, None)], 0.0), None);
        }
        let guard = MetricStatus {
            guard: true,
            difference: Some(0.06),
            accept: 0.05,
            ..errors(Verdict::Undecided, None)
        };
        assert_eq!(ahead(&policy, (0, 0), &[guard], 0.0), None, "it is looked at longer");
        let futile = MetricStatus { chance: Some(0.001), ..errors(Verdict::Undecided, None) };
        assert_eq!(ahead(&policy, (0, 0), &[futile], 0.0), None);
    }
}
