//! From counts to a verdict for every metric.
//!
//! Two one-sided group-sequential tests run on each metric: *harm* (the canary is
//! worse by more than `margin.harm`) fails it, *acceptance* (it is worse by less than
//! `margin.accept`) passes it. Harm spends its error evenly over the step, so that a
//! bad canary is found early; acceptance spends it at the end.
//!
//! How the promised error rates are kept for the canary as a whole:
//! - A false rollback can happen in any metric of any step, so `falseRollback` is
//!   divided by both (union bound).
//! - A promotion needs every metric to pass every step, so a canary with one bad
//!   metric is promoted only if that metric wrongly passes: an intersection-union
//!   test (Berger, Technometrics 24, 1982), which needs no division.
//!
//! The information fraction is the share of the wanted canary samples that were seen.
//! Between looks nothing is decided; only the counts move.
//!
//! A canary may stay longer than its horizon (held, suspended, waiting for a gateway)
//! and some windows have none (an approval, the bake). Harm is watched there too: half
//! of a window's harm error is kept for an open-ended test on the counts so far.

use crate::api::{
    CanaryPolicySpec,
    canary_policy::{Metric, OnInconclusive},
    prompt_release::{Counts, MetricStatus, Verdict},
};

mod measure;

use self::measure::Measured;
use super::stats::{
    difference::invert,
    sequential::{critical_values, open_ended_critical_value},
    spending::Spending,
};

/// The planned looks of a step, as fractions of its horizon.
const LOOKS: [f64; 12] = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// An open-ended window has its first look at this many canary samples …
const OPEN_UNIT: f64 = 50.0;
/// … and the next whenever there are a quarter more.
const OPEN_GROWTH: f64 = 1.25;
/// The status keeps at most so many looks: at a quarter more each, beyond 50 million samples.
const MAX_LOOKS: usize = 64;
/// Fewer observations than this on either side decide nothing, whatever the spending allows:
/// below it the normal approximation is not trusted.
const MINIMUM: f64 = 10.0;

/// One window of a canary: what is tested, with which error.
#[derive(Clone, Debug, PartialEq)]
pub struct Window<'a> {
    /// The metrics of the policy.
    pub metrics: &'a [Metric],
    /// How many canary requests the window judges; none: it is watched for harm
    /// without an end (an approval, a held step, the bake).
    pub horizon: Option<i64>,
    /// The one-sided error of the harm test of one metric up to the horizon, and as
    /// much again for watching beyond it.
    pub harm_alpha: f64,
    /// The one-sided error of the acceptance test of one metric in this window.
    pub accept_alpha: f64,
    /// Compare both sides (false: only floors, because there is no concurrent stable).
    pub relative: bool,
}

impl<'a> Window<'a> {
    /// The window of a step of `policy`.
    ///
    /// The harm error is divided over metrics, over the steps and the bake, and in
    /// two for the time up to and beyond the horizon. A step that may be extended
    /// runs twice, on fresh counts, with half of both errors each.
    pub fn new(policy: &'a CanaryPolicySpec, horizon: Option<i64>, relative: bool) -> Self {
        let metrics = policy.analysis.metrics.as_slice();
        let windows = (policy.steps.len() + 1) as f64;
        let rates = &policy.analysis.error_rates;
        let share = rates.false_rollback / (windows * metrics.len().max(1) as f64);
        let runs = if policy.on_inconclusive == OnInconclusive::Extend { 2.0 } else { 1.0 };
        let harm_alpha = share / (2.0 * runs);
        let accept_alpha = rates.false_promotion / runs;
        Self { metrics, horizon, harm_alpha, accept_alpha, relative }
    }

    fn horizon_of(&self, metric: &Metric) -> Option<f64> {
        let horizon = self.horizon?;
        Some(metric.score.as_ref().map_or(horizon, |s| s.min_samples.min(horizon)) as f64)
    }
}

/// Judges every metric of the window. `previous` is the result of the last call in
/// the same window (empty in a new one); total for any input.
pub fn assess(
    window: &Window<'_>,
    stable: &Counts,
    canary: &Counts,
    previous: &[MetricStatus],
) -> Vec<MetricStatus> {
    let mut critical = Critical::default();
    window
        .metrics
        .iter()
        .map(|metric| {
            let before = previous.iter().find(|p| p.metric == metric.name);
            assess_metric(window, metric, stable, canary, before, &mut critical)
        })
        .collect()
}

fn assess_metric(
    window: &Window<'_>,
    metric: &Metric,
    stable: &Counts,
    canary: &Counts,
    before: Option<&MetricStatus>,
    critical: &mut Critical,
) -> MetricStatus {
    let measured = Measured::of(metric, stable, canary, before.and_then(|b| b.threshold));
    let mut status = MetricStatus {
        metric: metric.name.clone(),
        unit: measured.unit,
        stable: measured.stable.sample(),
        canary: measured.canary.sample(),
        threshold: measured.threshold,
        harm: metric.margin().harm,
        accept: metric.margin().accept,
        looks: before.map(|b| b.looks.clone()).unwrap_or_default(),
        difference: measured.difference(),
        interval: before.and_then(|b| b.interval),
        ..MetricStatus::default()
    };
    if before.is_some_and(|b| b.verdict == Verdict::Fail) {
        (status.verdict, status.message) =
            before.map(|b| (b.verdict, b.message.clone())).unwrap_or_default();
        return status;
    }
    if let Some(message) = measured.beyond_floor(metric) {
        (status.verdict, status.message) = (Verdict::Fail, message);
        return status;
    }
    if !window.relative {
        status.message = "no concurrent stable: only the floor is watched".to_owned();
        status.verdict = if canary.requests == 0 { Verdict::NoData } else { Verdict::Undecided };
        return status;
    }
    if let Some(message) = measured.missing() {
        (status.verdict, status.message) = (Verdict::NoData, message);
        return status;
    }
    let horizon = window.horizon_of(metric);
    let seen = if metric.score.is_some() { measured.canary.n } else { canary.requests as f64 };
    let enough = measured.smallest_side() >= MINIMUM;
    match due(&status.looks, seen, horizon) {
        // The last planned look is taken in any case: it ends the step.
        Some(look) if enough || look == Look::Planned(1.0) => {
            decide(window, &measured, look, critical, &mut status, before);
        }
        _ => keep(before, seen, horizon, &mut status),
    }
    status
}

/// Between looks the verdict and the interval stay.
fn keep(before: Option<&MetricStatus>, seen: f64, horizon: Option<f64>, status: &mut MetricStatus) {
    status.verdict = match before.map(|b| b.verdict) {
        Some(Verdict::NoData) | None => Verdict::Undecided,
        Some(verdict) => verdict,
    };
    status.message = match (before, horizon) {
        (Some(b), _) if b.verdict == status.verdict && !status.looks.is_empty() => {
            b.message.clone()
        }
        (_, Some(horizon)) => format!("{seen} of {horizon} canary samples"),
        (_, None) => "watched for harm".to_owned(),
    };
}

/// A look that is due.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// At an information fraction up to 1.
    Planned(f64),
    /// Beyond the horizon, or in a window without one: the how-manieth such look, and
    /// where, in units of the horizon.
    Open(usize, f64),
}

fn due(looks: &[f64], seen: f64, horizon: Option<f64>) -> Option<Look> {
    let last = looks.last().copied().unwrap_or(0.0);
    let t = seen / horizon.unwrap_or(OPEN_UNIT);
    if horizon.is_some() && last < 1.0 {
        let t = t.min(1.0);
        return LOOKS
            .iter()
            .any(|&planned| planned > last && planned <= t)
            .then_some(Look::Planned(t));
    }
    let next = if looks.is_empty() { 1.0 } else { last * OPEN_GROWTH };
    let index = looks.iter().filter(|&&l| horizon.is_none() || l > 1.0).count();
    (t >= next && looks.len() < MAX_LOOKS).then_some(Look::Open(index, t))
}

/// One look: compares the test statistics with their critical values.
fn decide(
    window: &Window<'_>,
    measured: &Measured,
    look: Look,
    critical: &mut Critical,
    status: &mut MetricStatus,
    before: Option<&MetricStatus>,
) {
    let (harm_z, accept_z) = match look {
        Look::Planned(t) => {
            status.looks.push(t);
            (
                critical.value(Spending::Pocock, window.harm_alpha, &status.looks),
                critical.value(Spending::OBrienFleming, window.accept_alpha, &status.looks),
            )
        }
        Look::Open(index, t) => {
            status.looks.push(t);
            (open_ended_critical_value(window.harm_alpha, index), f64::INFINITY)
        }
    };
    let (low, high) = measured.range();
    let z = |delta: f64| measured.z(delta);
    let lower = if harm_z.is_finite() { invert(z, harm_z, low, high) } else { low };
    let upper = if accept_z.is_finite() { invert(z, -accept_z, low, high) } else { high };
    status.interval = Some([lower, upper]);
    let enough = measured.smallest_side() >= MINIMUM;
    status.verdict = if enough && measured.z(status.harm) > harm_z {
        Verdict::Fail
    } else if enough && measured.z(status.accept) < -accept_z {
        Verdict::Pass
    } else {
        match (look, before.map(|b| b.verdict)) {
            (Look::Planned(1.0), _) => Verdict::Inconclusive,
            // Watching on for harm does not change what the horizon said.
            (Look::Open(..), Some(verdict @ (Verdict::Pass | Verdict::Inconclusive))) => verdict,
            _ => Verdict::Undecided,
        }
    };
    status.message = explain(status, matches!(look, Look::Planned(_)));
}

fn explain(status: &MetricStatus, known: bool) -> String {
    let [lower, upper] = status.interval.unwrap_or_default();
    let d = |value: f64| status.unit.difference(value);
    match status.verdict {
        Verdict::Fail => format!(
            "the canary is worse by at least {}, more than the harm margin {}",
            d(lower),
            d(status.harm)
        ),
        _ if !known => format!("watched for harm: the canary is worse by at least {}", d(lower)),
        Verdict::Pass => format!(
            "the canary is worse by at most {}, less than the accept margin {}",
            d(upper),
            d(status.accept)
        ),
        Verdict::Inconclusive => format!(
            "all samples seen and the difference may be anything from {} to {}",
            d(lower),
            d(upper)
        ),
        _ => format!("the difference may be from {} to {} so far", d(lower), d(upper)),
    }
}

/// Critical values that metrics with the same looks share within one assessment.
#[derive(Default)]
struct Critical(Vec<(Spending, f64, Vec<f64>, f64)>);

impl Critical {
    fn value(&mut self, spending: Spending, alpha: f64, looks: &[f64]) -> f64 {
        let known = self.0.iter().find(|(s, a, l, _)| (*s, *a) == (spending, alpha) && l == looks);
        if let Some((.., z)) = known {
            return *z;
        }
        let z = critical_values(spending, alpha, looks).last().copied().unwrap_or(f64::INFINITY);
        self.0.push((spending, alpha, looks.to_vec(), z));
        z
    }
}

/// The verdict of all metrics together: any Fail fails, all Pass pass, and what is
/// missing keeps the rest from passing.
pub fn combine(metrics: &[MetricStatus]) -> Verdict {
    let any = |v: Verdict| metrics.iter().any(|m| m.verdict == v);
    if metrics.is_empty() {
        Verdict::NoData
    } else if any(Verdict::Fail) {
        Verdict::Fail
    } else if metrics.iter().all(|m| m.verdict == Verdict::Pass) {
        Verdict::Pass
    } else if any(Verdict::NoData) {
        Verdict::NoData
    } else if any(Verdict::Undecided) {
        Verdict::Undecided
    } else {
        Verdict::Inconclusive
    }
}

#[cfg(test)]
mod tests;
