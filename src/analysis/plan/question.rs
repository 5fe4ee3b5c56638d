//! One metric in one window: how often its tests will cross their boundaries.

use super::{Assumptions, MOST_SAMPLES, WANTED};
use crate::{
    analysis::{
        judge::{
            ACCEPT_SPENDING, HARM_FREEDOM, HARM_SPENDING, MINIMUM, MINIMUM_OF_MEANS, Window, Worth,
            answers_for, planned_looks,
        },
        stats::{
            clustered::beyond_noise,
            mean::{self, Doubt},
            proportion::{self, Share},
            sequential::{critical_values, first_crossings},
            spending::Spending,
            student::{freedom_of_sum, statistic},
        },
    },
    api::canary_policy::{Latency, Metric},
    rollout::assignment::GROUPS,
};

/// A drift so far beyond the last bound is as good as certain, and keeps the integration
/// within its nodes.
const CERTAIN: f64 = 30.0;

/// One metric in one window.
pub(super) struct Question<'a> {
    pub window: &'a Window<'a>,
    pub metric: &'a Metric,
    pub assumed: &'a Assumptions,
    /// The share of the route's requests that are samples of the canary.
    pub share: f64,
    /// What the difference over the steps is worth, where they are pooled.
    pub worth: Option<Worth>,
    /// No step has judged before: stable's answers have yet to choose the thresholds of
    /// latencies.
    pub first: bool,
    /// The horizons that the step's deadline leaves time for, in canary requests; none
    /// when the rate is not known.
    pub reach: Option<f64>,
}

impl Question<'_> {
    pub(super) fn accept(&self) -> f64 {
        self.metric.margin().accept
    }

    /// Stable's samples for each of the canary's. In a shadow step both sides answer the
    /// same requests, and latencies are compared with those of all that stable answers.
    fn ratio(&self) -> f64 {
        match self.window.paired {
            true if self.latency().is_some() => 1.0 / self.share,
            true => 1.0,
            false => (1.0 - self.share) / self.share,
        }
    }

    fn latency(&self) -> Option<&Latency> {
        self.metric.time_to_first_token.as_ref().or(self.metric.duration.as_ref())
    }

    /// How many canary samples it takes until stable has the answers that choose the
    /// threshold of a latency. None of other metrics, and when the threshold is known.
    pub(super) fn chooses(&self) -> Option<f64> {
        let latency = self.latency().filter(|_| self.first)?;
        Some(answers_for(latency.quantile) as f64 / (self.ratio() * self.answered()))
    }

    /// The horizon of the metric in a step of `samples` requests, which goes on until the
    /// smaller side has as many as decide anything, and stable the answers that choose the
    /// threshold of a latency.
    pub(super) fn horizon(&self, samples: i64) -> i64 {
        let own = self.metric.score.as_ref().map_or(samples, |s| s.min_samples.min(samples));
        let least = (self.minimum() / self.measured()).max(self.chooses().unwrap_or_default());
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

    /// How many observations the smaller side has for each sample.
    fn measured(&self) -> f64 {
        self.each() * self.ratio().min(1.0)
    }

    /// How many observations a sample is.
    fn each(&self) -> f64 {
        let m = self.metric;
        let all = m.error_rate.is_some() || m.prometheus.is_some() || m.score.is_some();
        if all { 1.0 } else { self.answered() }
    }

    /// How many independent observations of the canary `horizon` samples are worth.
    fn observations(&self, horizon: i64) -> f64 {
        horizon as f64 * self.each() / self.effects(horizon)[0]
    }

    /// How many observations of the canary and of stable tell as much as one of a user alone.
    fn effects(&self, horizon: i64) -> [f64; 2] {
        self.of_one_user(horizon).map(|n| self.assumed.effect(n))
    }

    /// How many others of its user an observation has, on both sides.
    fn of_one_user(&self, horizon: i64) -> [f64; 2] {
        let n = horizon as f64 * self.each();
        let alike = self.worth.map_or([1.0 / self.share; 2], |worth| worth.alike);
        alike.map(|alike| n * alike / self.assumed.users)
    }

    /// With how many degrees of freedom the difference's variance is known.
    fn freedom(&self, horizon: i64) -> f64 {
        let [canary, stable] = self.effects(horizon);
        // The judge sees that users come back when their requests are spread unevenly enough.
        let seen = self.assumed.most(self.of_one_user(horizon));
        if beyond_noise(seen, &[1.0; GROUPS]) <= 1.0 {
            return f64::INFINITY;
        }
        let side = |share: f64| self.assumed.freedom(share);
        let of_stable = stable / canary / self.ratio();
        freedom_of_sum([(1.0, side(self.share)), (of_stable, side(1.0 - self.share))])
    }

    /// Stable's share of bad answers, for metrics that are shares.
    pub(super) fn share(&self) -> Option<f64> {
        let m = self.metric;
        if let Some(latency) = self.latency() {
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
        let (all, [of_canary, of_stable]) = (horizon as f64 * self.each(), self.effects(horizon));
        let (n, ratio) = (all / of_canary, self.ratio() * of_canary / of_stable);
        if let Some(p) = self.share() {
            let canary = (p + truth).clamp(0.0, 1.0);
            let z = |more: f64| {
                let c = Share { n, bad: (n * canary + more).clamp(0.0, n) };
                let s = Share { n: n * ratio, bad: n * ratio * p };
                let (c, s) = if accepting { (c.doubted(), s) } else { (c, s.doubted()) };
                proportion::shares(c, s, delta)
            };
            // Both sides' noise, as if it were all the canary's.
            let variance = n * canary * (1.0 - canary) + n * p * (1.0 - p) / ratio;
            let noise = variance.sqrt().max(1e-9);
            return (z(0.0), ((z(noise) - z(-noise)) / 2.0).max(0.05));
        }
        // How many values there are on each side, and as how many they count.
        let seen = [n, self.worth.map_or(n * ratio, |worth| all * worth.seen / of_stable)];
        let worth = self.worth.map_or(seen, |worth| {
            [all * worth.sides[0] / of_canary, all * worth.sides[1] / of_stable]
        });
        let (n, ratio) = (worth[0], worth[1] / worth[0]);
        if self.metric.score.is_some() {
            let (stable, worse) = (self.assumed.score, (self.assumed.score - truth).max(0.0));
            let s = self.assumed.scores(n * ratio, stable);
            let z = |luck: f64| {
                let c = self.assumed.lucky_scores(n, worse, luck);
                if accepting {
                    mean::means(s, c.with_ends(), delta)
                } else {
                    mean::means(s.with_ends(), c, delta)
                }
            };
            let variance = self.assumed.scores(n, worse).variance / n + s.variance / s.n;
            // Bad luck decides: a few low scores, with which the variance grows, too.
            let luck = if accepting { -variance.sqrt() } else { variance.sqrt() };
            return (z(0.0), (z(luck) - z(0.0)).abs().max(0.05));
        }
        let more = 1.0 + truth;
        let [one, stable] =
            [0, 1].map(|side| mean::Mean { n: worth[side], ..self.assumed.cost(seen[side]) });
        let canary = mean::Mean {
            mean: more,
            variance: one.variance * more.powi(2),
            third: one.third * more.powi(3),
            ..one
        };
        let doubt = if accepting { Doubt::Canary } else { Doubt::Stable };
        (mean::ratio(canary, stable, delta, doubt), 1.0)
    }

    /// The chance to cross at a look that comes before the deadline.
    fn power(&self, of: Test, horizon: i64, z: f64, spread: f64) -> f64 {
        let looks = planned_looks(horizon);
        let critical = critical_values(of.spending, of.alpha, &looks);
        let scaled: Vec<f64> =
            critical.iter().map(|c| statistic(*c, of.freedom) / spread).collect();
        let last = scaled.last().copied().filter(|c| c.is_finite()).unwrap_or_default();
        let drift = (z / spread).clamp(-CERTAIN, last + CERTAIN);
        let most = self
            .reach
            .map_or(f64::INFINITY, |requests| requests / (horizon as f64 * self.requests_each()));
        // Neither side decides anything with fewer observations, nor without a threshold.
        let least = self.minimum() / (self.observations(horizon) * self.ratio().min(1.0)).max(1e-9);
        let chosen = self.chooses().unwrap_or_default() / horizon.max(1) as f64;
        let least = least.max(chosen);
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
        let (spending, alpha) = (ACCEPT_SPENDING, self.window.accept_alpha);
        self.power(Test { spending, alpha, freedom: self.freedom(horizon) }, horizon, -z, spread)
    }

    /// The chance to roll back a canary that is worse by `truth`.
    fn rolls_back(&self, horizon: i64, truth: f64) -> f64 {
        if self.observations(horizon) < 1.0 {
            return 0.0;
        }
        let (z, spread) = self.statistic(horizon, truth, self.metric.margin().harm, false);
        let (spending, alpha) = (HARM_SPENDING, self.window.harm_alpha);
        let freedom = self.freedom(horizon).max(HARM_FREEDOM);
        self.power(Test { spending, alpha, freedom }, horizon, z, spread)
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

/// One of the two tests of a metric.
#[derive(Clone, Copy)]
struct Test {
    spending: Spending,
    alpha: f64,
    freedom: f64,
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
