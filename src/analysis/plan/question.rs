//! One metric in one window: how often its tests will cross their boundaries.

use super::{Assumptions, MOST_SAMPLES, WANTED};
use crate::{
    analysis::{
        judge::{ACCEPT_SPENDING, HARM_SPENDING, MINIMUM, MINIMUM_OF_MEANS, Window, planned_looks},
        stats::{
            mean::{self, Doubt},
            proportion::{self, Share},
            sequential::{critical_values, first_crossings},
            spending::Spending,
        },
    },
    api::canary_policy::Metric,
};

/// A drift so far beyond the last bound is as good as certain, and keeps the integration
/// within its nodes.
const CERTAIN: f64 = 30.0;

/// One metric in one window.
pub(super) struct Question<'a> {
    pub window: &'a Window<'a>,
    pub metric: &'a Metric,
    pub assumed: &'a Assumptions,
    /// Stable's samples for each of the canary's.
    pub ratio: f64,
    /// The horizons that the step's deadline leaves time for, in canary requests; none
    /// when the rate is not known.
    pub reach: Option<f64>,
}

impl Question<'_> {
    pub(super) fn accept(&self) -> f64 {
        self.metric.margin().accept
    }

    /// The horizon of the metric in a step of `samples` requests, which goes on until the
    /// smaller side has as many as decide anything.
    pub(super) fn horizon(&self, samples: i64) -> i64 {
        let own = self.metric.score.as_ref().map_or(samples, |s| s.min_samples.min(samples));
        let smaller = self.observations(own) / own.max(1) as f64 * self.ratio.min(1.0);
        let least = self.minimum() / smaller;
        if least.is_finite() && least < MOST_SAMPLES as f64 {
            own.max(least.ceil() as i64)
        } else {
            own
        }
    }

    fn minimum(&self) -> f64 {
        if self.share().is_some() { MINIMUM } else { MINIMUM_OF_MEANS }
    }

    /// How many of the step's requests one of the metric's samples takes: scores come
    /// by themselves, and the step goes on until there are as many as it wants.
    pub(super) fn requests_each(&self) -> f64 {
        match self.metric.score {
            Some(_) => 1.0 / (self.assumed.feedback * self.answered()).max(1e-9),
            None => 1.0,
        }
    }

    /// The share of requests that are answered: the others have no latency, no check,
    /// no cost and no score.
    fn answered(&self) -> f64 {
        1.0 - self.assumed.error_rate
    }

    /// How many independent observations `horizon` samples are worth.
    fn observations(&self, horizon: i64) -> f64 {
        let (m, n) = (self.metric, horizon as f64);
        let latency = m.time_to_first_token.is_some() || m.duration.is_some();
        let all = m.error_rate.is_some() || m.prometheus.is_some() || m.score.is_some();
        let measured = if all { n } else { n * self.answered() };
        // Latencies are judged as independent.
        if latency { measured } else { measured / self.assumed.design_effect.max(1.0) }
    }

    /// Stable's share of bad answers, for metrics that are shares.
    pub(super) fn share(&self) -> Option<f64> {
        let m = self.metric;
        if let Some(latency) = m.time_to_first_token.as_ref().or(m.duration.as_ref()) {
            Some(1.0 - latency.quantile)
        } else if m.error_rate.is_some() {
            Some(self.assumed.error_rate)
        } else if m.check_failures.is_some() || m.prometheus.is_some() {
            Some(self.assumed.check_failures)
        } else {
            None
        }
    }

    /// Stable itself is beyond the metric's floor: nothing passes.
    pub(super) fn beyond_floor(&self) -> bool {
        let Some(floor) = &self.metric.floor else { return false };
        let above = floor.max.zip(self.share()).is_some_and(|(max, share)| share > max);
        let below = floor.min.is_some_and(|min| self.assumed.score < min);
        above || (self.metric.score.is_some() && below)
    }

    /// The expected statistic for "worse by `delta`" when the canary is worse by
    /// `truth`, and its standard deviation.
    fn statistic(&self, horizon: i64, truth: f64, delta: f64, accepting: bool) -> (f64, f64) {
        let n = self.observations(horizon);
        if let Some(p) = self.share() {
            let canary = (p + truth).clamp(0.0, 1.0);
            let z = |more: f64| {
                let c = Share { n, bad: (n * canary + more).clamp(0.0, n) };
                let s = Share { n: n * self.ratio, bad: n * self.ratio * p };
                let (c, s) = if accepting { (c.doubted(), s) } else { (c, s.doubted()) };
                proportion::shares(c, s, delta)
            };
            // Both sides' noise, as if it were all the canary's.
            let variance = n * canary * (1.0 - canary) + n * p * (1.0 - p) / self.ratio;
            let noise = variance.sqrt().max(1e-9);
            return (z(0.0), ((z(noise) - z(-noise)) / 2.0).max(0.05));
        }
        let z = if self.metric.score.is_some() {
            let score = self.assumed.score;
            let s = self.assumed.scores(n * self.ratio, score);
            let c = self.assumed.scores(n, (score - truth).max(0.0));
            if accepting {
                mean::means(s, c.with_ends(), delta)
            } else {
                mean::means(s.with_ends(), c, delta)
            }
        } else {
            let stable = self.assumed.cost(n * self.ratio);
            let more = 1.0 + truth;
            let canary = mean::Mean {
                n,
                mean: more,
                variance: stable.variance * more.powi(2),
                third: stable.third * more.powi(3),
            };
            let doubt = if accepting { Doubt::Canary } else { Doubt::Stable };
            mean::ratio(canary, stable, delta, doubt)
        };
        (z, 1.0)
    }

    /// The chance to cross at a look that comes before the deadline.
    fn power(&self, spending: Spending, alpha: f64, horizon: i64, z: f64, spread: f64) -> f64 {
        let looks = planned_looks(horizon);
        let critical = critical_values(spending, alpha, &looks);
        let scaled: Vec<f64> = critical.iter().map(|c| c / spread).collect();
        let last = scaled.last().copied().filter(|c| c.is_finite()).unwrap_or_default();
        let drift = (z / spread).clamp(-CERTAIN, last + CERTAIN);
        let most = self
            .reach
            .map_or(f64::INFINITY, |requests| requests / (horizon as f64 * self.requests_each()));
        // Neither side decides anything with fewer observations.
        let least = self.minimum() / (self.observations(horizon) * self.ratio.min(1.0)).max(1e-9);
        let possible = (least - 1e-9)..=(most * (1.0 + 1e-9));
        // What would have been decided by too few is decided at the first look that may.
        let (mut power, mut early) = (0.0, 0.0);
        for (t, crossing) in looks.iter().zip(first_crossings(&looks, &scaled, drift)) {
            if *t < *possible.start() {
                early += crossing;
            } else if possible.contains(t) {
                power += crossing + std::mem::take(&mut early);
            }
        }
        power.min(1.0)
    }

    /// The chance to accept a canary like stable with `margin`.
    pub(super) fn accepts(&self, horizon: i64, margin: f64) -> f64 {
        if self.observations(horizon) < 1.0 || self.beyond_floor() {
            return 0.0;
        }
        let (z, spread) = self.statistic(horizon, 0.0, margin, true);
        self.power(ACCEPT_SPENDING, self.window.accept_alpha, horizon, -z, spread)
    }

    /// The chance to roll back a canary that is worse by `truth`.
    fn rolls_back(&self, horizon: i64, truth: f64) -> f64 {
        if self.observations(horizon) < 1.0 {
            return 0.0;
        }
        let (z, spread) = self.statistic(horizon, truth, self.metric.margin().harm, false);
        self.power(HARM_SPENDING, self.window.harm_alpha, horizon, z, spread)
    }

    /// How many samples it takes to accept a canary like stable with this chance.
    pub(super) fn needs(&self, target: f64) -> Option<i64> {
        let patient = Question { reach: None, ..*self };
        let enough = |n: i64| patient.accepts(n, patient.accept()) >= target;
        let mut high = 20;
        while !enough(high) {
            high *= 2;
            if high > MOST_SAMPLES {
                return None;
            }
        }
        let mut low = high / 2;
        while high - low > (high / 200).max(1) {
            let middle = low + (high - low) / 2;
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }

    pub(super) fn accept_margin(&self, horizon: i64, target: f64) -> Option<f64> {
        bisect(0.001, 10.0, |margin| self.accepts(horizon, margin) >= target)
    }

    pub(super) fn detects(&self, horizon: i64) -> Option<f64> {
        let most = self.share().map_or(10.0, |p| 1.0 - p);
        let most = if self.metric.score.is_some() { self.assumed.score } else { most };
        bisect(0.0, most, |truth| self.rolls_back(horizon, truth) >= WANTED)
    }
}

/// The smallest value from which on `holds` is true.
fn bisect(low: f64, high: f64, holds: impl Fn(f64) -> bool) -> Option<f64> {
    if !holds(high) {
        return None;
    }
    let (mut low, mut high) = (low, high);
    for _ in 0..16 {
        let middle = 0.5 * (low + high);
        if holds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}
