//! Flagger: a Canary with the built-in metric `request-success-rate`, or with another
//! share that must not pass a maximum.
//!
//! Source: fluxcd/flagger v1.44.0 (July 2026).
//! - `pkg/controller/scheduler_metrics.go`: a check fails when the value is below
//!   `thresholdRange.min` or above `max`. `request-duration` is the 99th percentile;
//!   on a stream of "slower than `max`" the same rule with a limit of 1 % says so too.
//! - `pkg/metrics/providers/prometheus.go`, `RunQuery`: an empty answer and NaN are
//!   "no values found", and the check fails. So an interval without canary requests is
//!   a failed check, from the first one on.
//! - `pkg/controller/scheduler.go`, `advanceCanary`: a failed check adds one to
//!   `failedChecks` and halts the weight; a passed check moves the weight on, or
//!   promotes at `maxWeight`. The counter is never lowered within a canary, so failed
//!   checks need not be consecutive. Whether it reached `threshold` is asked at the
//!   *next* tick, before measuring: the canary keeps its traffic one interval longer.
//! - `docs/gitbook/usage/how-it-works.md` and `README.md`: `interval: 1m`,
//!   `threshold: 10`, `maxWeight: 50`, `stepWeight: 5`, success rate at least 99,
//!   duration at most 500 ms. Other examples have `threshold: 5`; unset means 1.
//!
//! Flagger has no horizon: it goes on until it has enough passed checks or enough
//! failed ones. A simulation has one, which [`Flagger::passes`] explains.

use super::{Decision, Interval, Rule, percent};

/// The rule. Change the settings of [`Flagger::default`] as needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Flagger {
    /// 1 minus `thresholdRange.min` of the success rate. The threshold to scan.
    pub max_bad_share: f64,
    /// Failed checks that roll back.
    pub threshold: u32,
    /// Passed checks that promote: `maxWeight / stepWeight`, 10 in the documented
    /// example. None, the default: whatever the horizon allows, so that all rules see
    /// the same stream to its end; the check at the horizon promotes if it passes.
    /// Where Flagger would go on beyond the horizon, the answer is inconclusive.
    pub passes: Option<u32>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    passed: u32,
    failed: u32,
}

impl Default for Flagger {
    fn default() -> Self {
        Self { max_bad_share: 0.01, threshold: 10, passes: None, state: State::default() }
    }
}

impl Flagger {
    /// The defaults with another limit of the bad share.
    pub fn tuned(max_bad_share: f64) -> Self {
        Self { max_bad_share, ..Self::default() }
    }

    /// An unset threshold counts as 1 (`GetAnalysisThreshold`).
    fn has_failed(&self) -> bool {
        self.state.failed >= self.threshold.max(1)
    }
}

impl Rule for Flagger {
    fn name(&self) -> String {
        format!("Flagger (bad ≤ {}, threshold {})", percent(self.max_bad_share), self.threshold)
    }

    fn reset(&mut self) {
        self.state = State::default();
    }

    fn look(&mut self, interval: &Interval, last: bool) -> Decision {
        if self.has_failed() {
            return Decision::Rollback;
        }
        // NaN, an interval without requests, is not a pass.
        let pass = interval.canary.bad_share() <= self.max_bad_share;
        if pass {
            self.state.passed += 1;
        } else {
            self.state.failed += 1;
        }
        let enough = self.passes.map_or(last, |passes| self.state.passed >= passes);
        if pass && enough {
            Decision::Promote
        } else if last {
            // The tick after the horizon would find the counter as it is now.
            if self.has_failed() { Decision::Rollback } else { Decision::Inconclusive }
        } else {
            Decision::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{canary, run};
    use super::*;

    #[test]
    fn the_rollback_comes_one_interval_after_the_last_failed_check() {
        let bad = canary(2, 100);
        assert_eq!(run(&mut Flagger::default(), &[bad; 30]), (Decision::Rollback, 11));
        assert_eq!(run(&mut Flagger::default(), &[bad; 10]), (Decision::Rollback, 10));
    }

    #[test]
    fn failed_checks_add_up_over_the_canary() {
        let stream: Vec<_> = (0..40).map(|i| canary(if i % 2 == 0 { 2 } else { 0 }, 100)).collect();
        assert_eq!(run(&mut Flagger::default(), &stream), (Decision::Rollback, 20));
    }

    #[test]
    fn the_limit_itself_passes() {
        assert_eq!(run(&mut Flagger::default(), &[canary(1, 100); 20]), (Decision::Promote, 20));
        assert_eq!(run(&mut Flagger::tuned(0.02), &[canary(2, 100); 20]), (Decision::Promote, 20));
    }

    #[test]
    fn silence_is_a_failed_check() {
        let rule = &mut Flagger { threshold: 2, ..Default::default() };
        assert_eq!(run(rule, &[canary(0, 0); 20]), (Decision::Rollback, 3));
    }

    #[test]
    fn documented_steps_promote_after_ten_passed_checks() {
        let rule = &mut Flagger { passes: Some(10), ..Default::default() };
        assert_eq!(run(rule, &[canary(0, 100); 20]), (Decision::Promote, 10));
        let mut stream = vec![canary(5, 100); 3];
        stream.extend([canary(0, 100); 20]);
        assert_eq!(run(rule, &stream), (Decision::Promote, 13));
    }

    #[test]
    fn a_horizon_that_ends_on_a_failed_check_is_inconclusive() {
        let stream = [canary(0, 100), canary(0, 100), canary(5, 100)];
        assert_eq!(run(&mut Flagger::default(), &stream), (Decision::Inconclusive, 3));
        let rule = &mut Flagger { passes: Some(10), ..Default::default() };
        assert_eq!(run(rule, &[canary(0, 100); 5]), (Decision::Inconclusive, 5));
    }

    #[test]
    fn an_unset_threshold_is_one() {
        let rule = &mut Flagger { threshold: 0, ..Default::default() };
        assert_eq!(run(rule, &[canary(5, 100); 5]), (Decision::Rollback, 2));
    }
}
