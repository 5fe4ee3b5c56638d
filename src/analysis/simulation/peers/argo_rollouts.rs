//! Argo Rollouts: an AnalysisRun with one metric, a query on the canary only.
//!
//! Source: argoproj/argo-rollouts, commit 9f8d111d (August 2026, after v1.10.0-rc1).
//! - `utils/evaluate/evaluate.go`, `EvaluateResult`: a measurement fails when
//!   `successCondition` does not hold. With both conditions given, it is inconclusive
//!   when neither holds.
//! - `analysis/analysis.go`, `assessMetricFailureInconclusiveOrError`: *more than* a
//!   limit ends the metric. Failures and inconclusive measurements are counted over
//!   the whole run, errors only in sequence. Of several limits, errors win over
//!   inconclusive, inconclusive over failed.
//! - `analysis/analysis.go`, `assessMetricStatus`: reaching `count`, or being
//!   terminated, is a success whenever no limit is exceeded, also when there was not
//!   one measurement (argo-rollouts #4479).
//! - `utils/defaults/defaults.go`: `consecutiveErrorLimit` is 4.
//! - `rollout/analysis.go`: Failed and Error abort the rollout, Inconclusive pauses it.
//! - `docs/features/analysis.md`: the example `result[0] >= 0.95`, `failureLimit: 3`,
//!   as a background analysis without `count`. Such a run is terminated when the
//!   rollout has passed its last step: here, at the last look.
//!
//! An interval without canary requests: once the series exists, the documented query
//! divides zero by zero. NaN fails every condition: the measurement has failed, or
//! with a failure condition it is inconclusive (`docs/features/analysis.md`, "NaN and
//! Infinity"). Before the first canary request the answer is empty, which is an error.
//! Errors are tried again after 10 s (`DefaultErrorRetryInterval`), whatever the
//! interval.
//!
//! `consecutiveSuccessLimit`, off by default, is not modelled.

use super::{Decision, Interval, Rule, percent};

/// The rule. Change the settings of [`ArgoRollouts::default`] as needed.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgoRollouts {
    /// `successCondition`: the bad share is at most this. The threshold to scan.
    pub max_bad_share: f64,
    /// `failureCondition`: the bad share is above this. Between both limits a
    /// measurement is inconclusive. None: what is not a success is a failure.
    pub fail_above: Option<f64>,
    /// More failed measurements than this roll back.
    pub failure_limit: u32,
    /// More inconclusive measurements than this pause the rollout for a person.
    pub inconclusive_limit: u32,
    /// More errors in a row than this roll back.
    pub consecutive_error_limit: u32,
    /// Measurements that end the run. None: it runs in the background until the
    /// rollout has passed its steps.
    pub count: Option<u32>,
    /// Intervals before the first measurement.
    pub initial_delay: u32,
    /// How often an error happens within one interval without a series: the interval
    /// divided by 10 s. With the documented interval of 5 minutes this is 30, and one
    /// such interval rolls back. The default of 1 is kinder than the original.
    pub errors_per_interval: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    looks: u32,
    series_exists: bool,
    measured: u32,
    failed: u32,
    inconclusive: u32,
    errors_in_a_row: u32,
}

impl Default for ArgoRollouts {
    fn default() -> Self {
        Self {
            max_bad_share: 0.05,
            fail_above: None,
            failure_limit: 3,
            inconclusive_limit: 0,
            consecutive_error_limit: 4,
            count: None,
            initial_delay: 0,
            errors_per_interval: 1,
            state: State::default(),
        }
    }
}

impl ArgoRollouts {
    /// The defaults with another limit of the success condition.
    pub fn tuned(max_bad_share: f64) -> Self {
        Self { max_bad_share, ..Self::default() }
    }

    fn measure(&mut self, interval: &Interval) {
        let state = &mut self.state;
        state.series_exists |= interval.canary.n > 0;
        if !state.series_exists {
            state.errors_in_a_row = state.errors_in_a_row.saturating_add(self.errors_per_interval);
            return;
        }
        state.errors_in_a_row = 0;
        state.measured += 1;
        // A comparison with NaN is false, in Argo's expressions as here.
        let share = interval.canary.bad_share();
        let success = share <= self.max_bad_share;
        let failure = self.fail_above.map_or(!success, |limit| share > limit);
        if failure {
            state.failed += 1;
        } else if !success {
            state.inconclusive += 1;
        }
    }

    /// The order is Argo's: the last limit that is exceeded wins.
    fn exceeded(&self) -> Option<Decision> {
        let state = &self.state;
        if state.errors_in_a_row > self.consecutive_error_limit {
            Some(Decision::Rollback)
        } else if state.inconclusive > self.inconclusive_limit {
            Some(Decision::Inconclusive)
        } else if state.failed > self.failure_limit {
            Some(Decision::Rollback)
        } else {
            None
        }
    }
}

impl Rule for ArgoRollouts {
    fn name(&self) -> String {
        let limit = percent(self.max_bad_share);
        format!("Argo Rollouts (bad ≤ {limit}, failureLimit {})", self.failure_limit)
    }

    fn reset(&mut self) {
        self.state = State::default();
    }

    fn look(&mut self, interval: &Interval, last: bool) -> Decision {
        self.state.looks += 1;
        if self.state.looks > self.initial_delay {
            self.measure(interval);
        } else {
            self.state.series_exists |= interval.canary.n > 0;
        }
        if let Some(decision) = self.exceeded() {
            return decision;
        }
        match self.count {
            Some(count) if self.state.measured >= count => Decision::Promote,
            // The run of an analysis step goes on until it has its measurements.
            Some(_) if last => Decision::Inconclusive,
            None if last => Decision::Promote,
            _ => Decision::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{canary, run};
    use super::*;

    #[test]
    fn the_failure_after_the_limit_rolls_back() {
        let mut rule = ArgoRollouts::default();
        let bad = canary(6, 100);
        assert_eq!(run(&mut rule, &[bad; 3]), (Decision::Promote, 3));
        assert_eq!(run(&mut rule, &[bad; 10]), (Decision::Rollback, 4));
    }

    #[test]
    fn failures_need_not_be_consecutive() {
        let mut rule = ArgoRollouts::default();
        let stream: Vec<_> = (0..20).map(|i| canary(if i % 3 == 0 { 6 } else { 0 }, 100)).collect();
        assert_eq!(run(&mut rule, &stream), (Decision::Rollback, 10));
    }

    #[test]
    fn the_limit_itself_is_a_success() {
        assert_eq!(
            run(&mut ArgoRollouts::default(), &[canary(5, 100); 10]),
            (Decision::Promote, 10)
        );
        assert_eq!(run(&mut ArgoRollouts::tuned(0.04), &[canary(5, 100); 10]).1, 4);
    }

    #[test]
    fn stable_does_not_matter() {
        let mut incident = canary(30, 100);
        incident.stable.bad = 30;
        assert_eq!(run(&mut ArgoRollouts::default(), &[incident; 10]), (Decision::Rollback, 4));
    }

    #[test]
    fn silence_after_traffic_is_a_failed_measurement() {
        let stream = [canary(0, 50), canary(0, 0), canary(0, 0), canary(0, 0), canary(0, 0)];
        assert_eq!(run(&mut ArgoRollouts::default(), &stream), (Decision::Rollback, 5));
    }

    #[test]
    fn silence_before_traffic_is_an_error_and_few_errors_are_promoted() {
        let silent = [canary(0, 0); 5];
        assert_eq!(run(&mut ArgoRollouts::default(), &silent), (Decision::Rollback, 5));
        assert_eq!(run(&mut ArgoRollouts::default(), &silent[..4]), (Decision::Promote, 4));
        let five_minutes = &mut ArgoRollouts { errors_per_interval: 30, ..Default::default() };
        assert_eq!(run(five_minutes, &silent), (Decision::Rollback, 1));
    }

    #[test]
    fn a_run_without_a_measurement_is_a_success() {
        let late = &mut ArgoRollouts { initial_delay: 10, ..Default::default() };
        assert_eq!(run(late, &[canary(100, 100); 5]), (Decision::Promote, 5));
    }

    #[test]
    fn between_two_conditions_the_rollout_pauses() {
        let rule = &mut ArgoRollouts { fail_above: Some(0.5), ..Default::default() };
        assert_eq!(run(rule, &[canary(20, 100); 10]), (Decision::Inconclusive, 1));
        assert_eq!(run(rule, &[canary(60, 100); 10]), (Decision::Rollback, 4));
        assert_eq!(run(rule, &[canary(0, 9), canary(0, 0)]), (Decision::Inconclusive, 2));
    }

    #[test]
    fn a_count_ends_the_run_early_and_waits_for_its_measurements() {
        let rule = &mut ArgoRollouts { count: Some(3), ..Default::default() };
        assert_eq!(run(rule, &[canary(0, 100); 10]), (Decision::Promote, 3));
        assert_eq!(run(rule, &[canary(0, 100); 2]), (Decision::Inconclusive, 2));
    }
}
