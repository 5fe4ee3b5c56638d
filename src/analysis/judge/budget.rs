//! How the promised error rates are divided over a canary.
//!
//! - A false rollback can happen in any metric of any window, so `falseRollback` is
//!   divided by both (union bound). The windows are the steps, and the bake when it
//!   compares. A window with a horizon spends four fifths up to it and one fifth on
//!   watching beyond it; one without spends all on watching.
//! - A promotion needs every metric to pass every step, so a canary with one bad metric
//!   is promoted only if that metric wrongly passes: an intersection-union test (Berger,
//!   Technometrics 24, 1982), which needs no division.
//! - The built-in comparisons of a policy (`canary_policy::guards`) have a tenth of
//!   `falseRollback` for all of them together. They need not pass.
//! - A step that may be extended runs twice, on fresh counts, with half of both errors each.
//! - Steps whose evidence is pooled ([`super::pool`]) are one window. What each of them spends
//!   on watching is divided by them.

use super::{Evidence, Measured, answers_for, pool::Pool};
use crate::api::{
    CanaryPolicySpec,
    canary_policy::{self, Metric, OnInconclusive, Step},
    prompt_release::MetricStatus,
};

/// The part of a window's harm error that is spent up to its horizon.
const UP_TO_HORIZON: f64 = 0.8;

/// The part of `falseRollback` that the built-in comparisons spend.
const FOR_GUARDS: f64 = 0.1;

/// One window of a canary: what is tested, with which error.
#[derive(Clone, Debug, PartialEq)]
pub struct Window<'a> {
    /// The metrics of the policy.
    pub metrics: &'a [Metric],
    /// The built-in comparisons that the policy does not name.
    pub guards: Vec<Metric>,
    /// The harm error of one built-in comparison, relative to that of one metric.
    pub guard_rate: f64,
    /// How many canary requests (or pairs) the window judges; none: it is watched for
    /// harm without an end (an approval, the bake).
    pub horizon: Option<i64>,
    /// The one-sided error of the harm test of one metric up to the horizon.
    pub harm_alpha: f64,
    /// The one-sided error of watching one metric for harm without an end.
    pub open_alpha: f64,
    /// The one-sided error of the acceptance test of one metric in this window.
    pub accept_alpha: f64,
    /// Compare both sides (false: only floors, because there is no concurrent stable).
    pub relative: bool,
    /// Both variants answer the same requests.
    pub paired: bool,
    /// The steps with whose evidence that of this window is pooled; none: it stands alone.
    pub pool: Option<Pool>,
    /// Intervals and messages are wanted (a simulation does without).
    pub explained: bool,
}

impl<'a> Window<'a> {
    /// Step `index` of `policy`; an index beyond the steps is the bake.
    pub fn new(policy: &'a CanaryPolicySpec, index: usize) -> Self {
        let step = policy.steps.get(index);
        let metrics = policy.analysis.metrics.as_slice();
        let bakes = !policy.bake.duration.0.is_zero() && policy.bake.holdback > 0;
        let pool = Pool::of(policy, index);
        let pooled_away = Pool::pooled_away(policy);
        let windows = (policy.steps.len() - pooled_away + usize::from(bakes)).max(1) as f64;
        let compared = metrics.iter().filter(|m| m.margin.is_some()).count().max(1) as f64;
        let rates = &policy.analysis.error_rates;
        let runs = match (policy.on_inconclusive, step) {
            (OnInconclusive::Extend, Some(_)) => 2.0,
            _ => 1.0,
        };
        let guards: Vec<Metric> = canary_policy::guards()
            .into_iter()
            .filter(|guard| !metrics.iter().any(|m| m.is_like(guard)))
            .map(|guard| match metrics.iter().any(|m| m.name == guard.name) {
                true => Metric { name: format!("built-in-{}", guard.name), ..guard },
                false => guard,
            })
            .collect();
        let for_guards = if guards.is_empty() { 0.0 } else { FOR_GUARDS };
        let share = rates.false_rollback * (1.0 - for_guards) / (windows * compared * runs);
        let horizon = step.and_then(Step::horizon);
        let up_to_horizon = if horizon.is_some() { UP_TO_HORIZON } else { 0.0 };
        let watches = pool.as_ref().map_or(1, Pool::len) as f64;
        Self {
            metrics,
            guard_rate: for_guards / (1.0 - for_guards) * compared / guards.len().max(1) as f64,
            guards,
            horizon,
            harm_alpha: share * up_to_horizon,
            open_alpha: share * (1.0 - up_to_horizon) / watches,
            accept_alpha: rates.false_promotion / runs,
            relative: step.is_some() || policy.bake.holdback > 0,
            paired: step.is_some_and(|s| s.shadow.is_some()),
            pool,
            explained: true,
        }
    }

    /// The latency that waits for most of stable's answers, which are to choose its threshold,
    /// and how many these are.
    pub fn awaited(&self, previous: &[MetricStatus]) -> Option<(&'a str, u64)> {
        let chosen = |m: &Metric| {
            previous.iter().any(|before| before.metric == m.name && before.threshold.is_some())
        };
        let open = self.metrics.iter().filter(|m| !chosen(m));
        let latencies = open.filter_map(|m| {
            let latency = m.time_to_first_token.as_ref().or(m.duration.as_ref())?;
            Some((m.name.as_str(), answers_for(latency.quantile)))
        });
        latencies.max_by_key(|(_, answers)| *answers)
    }

    /// The horizon of one metric.
    pub(super) fn horizon_of(&self, metric: &Metric) -> Option<f64> {
        let horizon = self.horizon?;
        Some(metric.score.as_ref().map_or(horizon, |s| s.min_samples.min(horizon)) as f64)
    }

    /// The window of the built-in comparisons: they compare only where both sides serve users.
    pub(super) fn of_guards(&self) -> Self {
        Self {
            harm_alpha: self.harm_alpha * self.guard_rate,
            open_alpha: self.open_alpha * self.guard_rate,
            guards: vec![],
            ..self.clone()
        }
    }

    /// How many canary samples of a metric this window wants.
    pub(in crate::analysis) fn wanted(&self, metric: &Metric) -> Option<f64> {
        match &self.pool {
            Some(pool) => Some(pool.wanted(metric)),
            None => self.horizon_of(metric),
        }
    }

    /// How much of it was seen. Scores come later than answers and count by themselves,
    /// as do counts from elsewhere; the rest counts requests, so that all look at once: those
    /// that were answered or failed, or, for what also those tell that ended otherwise, all.
    pub(super) fn seen(
        &self,
        metric: &Metric,
        evidence: &Evidence<'_>,
        measured: &Measured,
    ) -> f64 {
        if metric.score.is_some() || metric.prometheus.is_some() {
            measured.canary.count as f64
        } else if self.paired {
            evidence.canary.paired.as_ref().map_or(0, |p| p.errors.pairs()) as f64
        } else if measured.counts_everybody {
            evidence.canary.ended() as f64
        } else {
            evidence.canary.requests as f64
        }
    }
}
