//! From counts to a verdict for every metric.
//!
//! Two one-sided tests run on each metric: *harm* (the canary is worse by more than
//! `margin.harm`) fails it, *acceptance* (it is worse by less than `margin.accept`)
//! passes it. Up to the horizon of a step both are group-sequential; harm spends its
//! error early, so that a bad canary is found soon, acceptance spends it at the end.
//! `budget` says how the promised error rates are divided.
//!
//! The information fraction is the share of the wanted canary samples that were seen at
//! each look that really happened. Between looks only the counts move, and a second test
//! goes on that may be looked at any time (`stats::anytime`): it watches for harm also
//! beyond the horizon (held, suspended, waiting for a gateway) and in windows that have
//! none (an approval, the bake).

use std::collections::HashMap;

mod budget;
mod effect;
mod explain;
mod measure;

pub use self::budget::Window;
pub(super) use self::effect::of_split;
use self::measure::{Comparison, Measured};
use super::{
    external::Externals,
    stats::{
        anytime::{critical_z, log_growth},
        normal::{upper_quantile, upper_tail},
        proportion::Share,
        sequential::critical_values,
        spending::Spending,
    },
};
use crate::api::{
    canary_policy::{Metric, PrometheusQuery},
    conditions::truncate,
    prompt_release::{Counts, MetricStatus, Verdict},
};

/// Harm spends its error early: with this gamma a canary that fails three times as
/// often as stable is found on about half of the samples that O'Brien and Fleming's
/// spending needs, and an error within the margin is as rare (`cargo bench --bench verdicts`).
pub(super) const HARM_SPENDING: Spending = Spending::HwangShihDeCani(2.0);
pub(super) const ACCEPT_SPENDING: Spending = Spending::OBrienFleming;
/// A look is due when there are a quarter more samples (half as many again at the very
/// start), or a twentieth of the horizon more.
const LOOK_GROWTH: f64 = 1.25;
const EARLY: f64 = 0.01;
const EARLY_GROWTH: f64 = 1.5;
const LOOK_STEP: f64 = 0.05;
/// The status keeps at most so many looks.
const MAX_LOOKS: usize = 64;
/// Fewer observations than this on either side decide nothing, whatever the spending allows.
const MINIMUM: f64 = 10.0;
/// Means are trusted from so many observations on.
const MINIMUM_OF_MEANS: f64 = 20.0;
/// Tests without an end are tightest near so many samples when there is no horizon.
const OPEN_TUNED: f64 = 500.0;
/// The longest message that the API accepts.
const LONGEST_MESSAGE: usize = 512;
/// Below this chance a canary is not expected to pass any more.
pub const FUTILE: f64 = 0.01;

/// What was counted in a window.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The side that is compared with.
    pub stable: &'a Counts,
    /// The side under comparison.
    pub canary: &'a Counts,
    /// What is known from elsewhere.
    pub external: &'a Externals,
}

/// Judges every metric of the window. `previous` is the result of the last call in
/// the same window, or what [`carry_over`] kept of the window before; total for any input.
pub fn assess(
    window: &Window<'_>,
    evidence: &Evidence<'_>,
    previous: &[MetricStatus],
) -> Vec<MetricStatus> {
    assess_with(&mut Boundaries::default(), window, evidence, previous)
}

/// As [`assess`], with critical values that are known from before: many canaries with
/// the same looks are simulated much faster.
pub fn assess_with(
    critical: &mut Boundaries,
    window: &Window<'_>,
    evidence: &Evidence<'_>,
    previous: &[MetricStatus],
) -> Vec<MetricStatus> {
    window
        .metrics
        .iter()
        .map(|metric| {
            let before = previous.iter().find(|p| p.metric == metric.name);
            let mut status = assess_metric(window, metric, evidence, before, critical);
            status.message = truncate(&status.message, LONGEST_MESSAGE);
            status
        })
        .collect()
}

/// What of a window's results counts in the next one: the frozen latency thresholds.
pub fn carry_over(previous: &[MetricStatus]) -> Vec<MetricStatus> {
    let thresholds = previous.iter().filter(|p| p.threshold.is_some());
    let kept = |p: &MetricStatus| MetricStatus {
        metric: p.metric.clone(),
        threshold: p.threshold,
        harm: p.harm,
        accept: p.accept,
        message: "a new step: nothing was counted yet".to_owned(),
        ..MetricStatus::default()
    };
    thresholds.map(kept).collect()
}

fn assess_metric(
    window: &Window<'_>,
    metric: &Metric,
    evidence: &Evidence<'_>,
    before: Option<&MetricStatus>,
    critical: &mut Boundaries,
) -> MetricStatus {
    let measured = Measured::of(metric, evidence, window.paired, before);
    let mut status = MetricStatus {
        metric: metric.name.clone(),
        unit: measured.unit,
        stable: measured.stable,
        canary: measured.canary,
        threshold: measured.threshold,
        frozen: measured.frozen,
        harm: metric.margin().harm,
        accept: metric.margin().accept,
        looks: before.map(|b| b.looks.clone()).unwrap_or_default(),
        log_e: before.map(|b| b.log_e).unwrap_or_default(),
        streak: before.map(|b| b.streak).unwrap_or_default(),
        difference: measured.difference(),
        interval: before.and_then(|b| b.interval),
        chance: before.and_then(|b| b.chance),
        ..MetricStatus::default()
    };
    if let Some(failed) = before.filter(|b| b.verdict == Verdict::Fail) {
        (status.verdict, status.message) = (failed.verdict, failed.message.clone());
        return status;
    }
    if let Some(message) = measured.beyond_floor(metric) {
        (status.verdict, status.message) = (Verdict::Fail, message);
        return status;
    }
    if let (Comparison::Value(value), Some(rule)) = (measured.comparison, &metric.prometheus) {
        by_fixed_rule(value, rule, &mut status);
        return status;
    }
    if !window.relative {
        status.message = "no concurrent stable: only the floor is watched".to_owned();
        let silent = evidence.canary.requests == 0;
        status.verdict = if silent { Verdict::NoData } else { Verdict::Undecided };
        return status;
    }
    if let Some((verdict, message)) = measured.silent() {
        (status.verdict, status.message, status.streak) = (verdict, message, 0);
        return status;
    }
    watch(window, &measured, before, &mut status);
    if status.verdict == Verdict::Fail {
        return status;
    }
    let horizon = window.horizon_of(metric);
    let seen = window.seen(metric, evidence, &measured);
    match horizon.and_then(|horizon| due(&status.looks, seen, horizon)) {
        // The last look is taken in any case: it ends the step.
        Some(t) if measured.smallest_side() >= minimum(&measured) || t >= 1.0 => {
            status.looks.push(t);
            look(window, &measured, critical, &mut status);
        }
        _ => keep(before, seen, horizon, &mut status),
    }
    status
}

fn minimum(measured: &Measured) -> f64 {
    match measured.comparison {
        Comparison::Means(..) | Comparison::Differences(..) => MINIMUM_OF_MEANS,
        _ => MINIMUM,
    }
}

/// So many looks in a row beyond the limits fail, so many within them pass.
fn by_fixed_rule(value: f64, rule: &PrometheusQuery, status: &mut MetricStatus) {
    let beyond = rule.max.is_some_and(|max| value > max) || rule.min.is_some_and(|min| value < min);
    status.streak = match (beyond, status.streak) {
        (true, streak) => streak.min(0).saturating_sub(1),
        (false, streak) => streak.max(0).saturating_add(1),
    };
    status.verdict = if status.streak <= -rule.consecutive {
        Verdict::Fail
    } else if status.streak >= rule.consecutive {
        Verdict::Pass
    } else {
        Verdict::Undecided
    };
    status.message = explain::fixed_rule(value, rule, status.streak);
}

/// Watches for harm without an end, at every collection.
fn watch(
    window: &Window<'_>,
    measured: &Measured,
    before: Option<&MetricStatus>,
    status: &mut MetricStatus,
) {
    let n = measured.smallest_side();
    let enough = n >= minimum(measured);
    let tuned = window.horizon.map_or(OPEN_TUNED, |h| h as f64);
    let z = critical_z(window.open_alpha, n, tuned);
    let failed = if let Comparison::Shares(canary, stable) = measured.comparison {
        let past = before.map(|b| (as_share(b.canary), as_share(b.stable))).unwrap_or_default();
        let growth = log_growth(past, (canary, stable), status.harm) / measured.effects.larger();
        // Kept within what JSON can hold; far beyond any threshold.
        status.log_e = (status.log_e + growth).clamp(-1e6, 1e6);
        enough && status.log_e >= -window.open_alpha.ln()
    } else {
        enough && measured.z_harm(status.harm) > z
    };
    if window.horizon.is_none() && enough {
        status.interval = Some([
            measured.limit(|d| measured.z_harm(d), z),
            measured.limit(|d| measured.z_accept(d), -z),
        ]);
    }
    if failed {
        status.verdict = Verdict::Fail;
        status.message = explain::open_failure(measured, status);
    }
}

fn as_share(sample: crate::api::prompt_release::Sample) -> Share {
    let n = sample.count as f64;
    Share { n, bad: (sample.value * n).round() }
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

/// The information fraction of the look that is due, if one is. The last one may be
/// beyond the horizon: all error is spent at 1, but the boundary needs to know how much
/// was really seen.
fn due(looks: &[f64], seen: f64, horizon: f64) -> Option<f64> {
    let last = looks.last().copied().unwrap_or(0.0);
    let t = seen / horizon;
    let growth = if last < EARLY { EARLY_GROWTH } else { LOOK_GROWTH };
    let next = (last * growth).min(last + LOOK_STEP).min(1.0);
    // Multiples of a twentieth are not exact in binary.
    let reached = t + 1e-9 >= next && t > last && last < 1.0;
    (reached && (looks.len() < MAX_LOOKS || t >= 1.0)).then_some(t)
}

/// The looks of a step with `horizon` samples, when they come one by one.
pub(super) fn planned_looks(horizon: i64) -> Vec<f64> {
    let (horizon, mut looks) = (horizon.max(1) as f64, vec![]);
    let mut t = (MINIMUM / horizon).min(1.0);
    while let Some(look) = due(&looks, t * horizon, horizon) {
        looks.push(look);
        let growth = if look < EARLY { EARLY_GROWTH } else { LOOK_GROWTH };
        t = (look * growth).min(look + LOOK_STEP).max(look + 1.0 / horizon).min(1.0);
    }
    looks
}

/// One look: compares the test statistics with their critical values.
fn look(
    window: &Window<'_>,
    measured: &Measured,
    critical: &mut Boundaries,
    status: &mut MetricStatus,
) {
    let t = status.looks.last().copied().unwrap_or(1.0);
    let [harm_z, accept_z] = critical.last(window, &status.looks);
    let enough = measured.smallest_side() >= minimum(measured);
    let accepted = measured.z_accept(status.accept);
    status.verdict = if enough && measured.z_harm(status.harm) > harm_z {
        Verdict::Fail
    } else if enough && accepted < -accept_z {
        Verdict::Pass
    } else if t >= 1.0 {
        Verdict::Inconclusive
    } else {
        Verdict::Undecided
    };
    if window.explained {
        let (low, high) = measured.range();
        let harm =
            |z: f64| if z.is_finite() { measured.limit(|d| measured.z_harm(d), z) } else { low };
        let accept = |z: f64| {
            if z.is_finite() { measured.limit(|d| measured.z_accept(d), -z) } else { high }
        };
        status.interval = Some([harm(harm_z), accept(accept_z)]);
        status.chance = Some(chance(-accepted, t, window.accept_alpha));
        status.message = explain::look(measured, status);
    }
}

/// The conditional power of acceptance: the chance that the statistic, now `z` at
/// information fraction `t`, is beyond its last critical value at the horizon if it goes
/// on as so far (Lan and Wittes, Biometrics 44, 1988). It informs and stops no test:
/// futility is not binding, and the error rates do not rest on it.
fn chance(z: f64, t: f64, alpha: f64) -> f64 {
    if t >= 1.0 || !z.is_finite() {
        return f64::from(u8::from(z > upper_quantile(alpha)));
    }
    let (score, left) = (z * t.sqrt(), 1.0 - t);
    upper_tail((upper_quantile(alpha) - score - score / t * left) / left.sqrt())
}

/// Critical values that were computed before, by test and looks.
#[derive(Default)]
pub struct Boundaries(HashMap<([u64; 2], Vec<u64>), [f64; 2]>);

impl Boundaries {
    /// Beyond so many, all are forgotten: a simulation with few different looks never is.
    const MOST: usize = 10_000;

    /// Of harm and of acceptance at the last of `looks`.
    fn last(&mut self, window: &Window<'_>, looks: &[f64]) -> [f64; 2] {
        let rates = [window.harm_alpha.to_bits(), window.accept_alpha.to_bits()];
        let key = (rates, looks.iter().map(|t| t.to_bits()).collect());
        if let Some(known) = self.0.get(&key) {
            return *known;
        }
        let last = |spending, alpha| {
            critical_values(spending, alpha, looks).last().copied().unwrap_or(f64::INFINITY)
        };
        let values =
            [last(HARM_SPENDING, window.harm_alpha), last(ACCEPT_SPENDING, window.accept_alpha)];
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(key, values);
        values
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
mod fuzz;
#[cfg(test)]
mod tests;
