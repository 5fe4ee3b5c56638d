//! What a metric says about both sides, whatever its kind.

use std::collections::BTreeMap;

use crate::{
    analysis::{
        buckets,
        stats::difference::{Mean, Share, means, ratio, shares},
    },
    api::{
        canary_policy::{Latency, Metric},
        prompt_release::{Counts, Sample, Sums, Unit},
    },
};

/// How many latencies of stable are wanted before its quantile is frozen.
const FREEZE_AFTER: u64 = 50;
/// Floors are watched at every collection, so they ask for three standard errors.
const FLOOR_Z: f64 = 3.0;

/// One side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Side {
    /// How many were measured.
    pub n: f64,
    data: Data,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Data {
    Share(Share),
    Mean(Mean),
    Nothing,
}

impl Side {
    fn share(n: u64, bad: u64) -> Self {
        let share = Share { n: n as f64, bad: bad.min(n) as f64 };
        Self { n: n as f64, data: if n == 0 { Data::Nothing } else { Data::Share(share) } }
    }

    fn mean(sums: &Sums) -> Self {
        let mean = Mean::from_sums(sums.count, sums.sum, sums.squares);
        Self { n: sums.count as f64, data: mean.map_or(Data::Nothing, Data::Mean) }
    }

    pub(super) fn sample(&self) -> Sample {
        let value = match self.data {
            Data::Share(share) => share.value(),
            Data::Mean(mean) => mean.mean,
            Data::Nothing => 0.0,
        };
        Sample { count: self.n as i64, value }
    }
}

/// Both sides of one metric.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub stable: Side,
    pub canary: Side,
    pub unit: Unit,
    /// The frozen latency threshold in seconds.
    pub threshold: Option<f64>,
    missing: Option<String>,
    /// Latencies of the canary, for the floor.
    canary_histogram: BTreeMap<u8, u64>,
}

impl Measured {
    pub(super) fn of(
        metric: &Metric,
        stable: &Counts,
        canary: &Counts,
        threshold: Option<f64>,
    ) -> Self {
        let mut measured = Self {
            stable: Side::share(stable.requests, stable.errors),
            canary: Side::share(canary.requests, canary.errors),
            unit: Unit::Share,
            threshold: None,
            missing: None,
            canary_histogram: BTreeMap::new(),
        };
        if let Some(latency) = &metric.time_to_first_token {
            measured.latency(latency, &stable.ttft, &canary.ttft, threshold);
        } else if let Some(latency) = &metric.duration {
            measured.latency(latency, &stable.duration, &canary.duration, threshold);
        } else if metric.check_failures.is_some() {
            measured.stable = Side::share(stable.checked, stable.check_failures);
            measured.canary = Side::share(canary.checked, canary.check_failures);
        } else if metric.cost_per_request.is_some() {
            measured.unit = Unit::Relative;
            measured.stable = Side::mean(&stable.cost);
            measured.canary = Side::mean(&canary.cost);
            let unpriced = |requests: u64, sums: &Sums| requests > 50 && sums.count == 0;
            if unpriced(stable.requests, &stable.cost) || unpriced(canary.requests, &canary.cost) {
                measured.missing = Some(
                    "the cost is unknown: set spec.pricing on the LLMDeployment, or make the model report token usage"
                        .to_owned(),
                );
            }
        } else if let Some(score) = &metric.score {
            measured.unit = Unit::Score;
            let sums =
                |counts: &Counts| counts.scores.get(&score.name).copied().unwrap_or_default();
            measured.stable = Side::mean(&sums(stable));
            measured.canary = Side::mean(&sums(canary));
        }
        measured
    }

    fn latency(
        &mut self,
        latency: &Latency,
        stable: &BTreeMap<u8, u64>,
        canary: &BTreeMap<u8, u64>,
        threshold: Option<f64>,
    ) {
        self.canary_histogram = canary.clone();
        self.threshold = threshold.or_else(|| quantile(stable, latency.quantile));
        let slower = |histogram: &BTreeMap<u8, u64>| {
            let t = self.threshold.unwrap_or(f64::INFINITY);
            Side::share(total(histogram), slower_than(histogram, t))
        };
        (self.stable, self.canary) = (slower(stable), slower(canary));
        if self.threshold.is_none() {
            self.missing = Some(format!(
                "stable's {} quantile needs {FREEZE_AFTER} answers, there are {}",
                latency.quantile,
                total(stable)
            ));
        }
    }

    /// Why nothing can be said, if so.
    pub(super) fn missing(&self) -> Option<String> {
        let empty = |side: &Side| matches!(side.data, Data::Nothing);
        self.missing.clone().or_else(|| match (empty(&self.stable), empty(&self.canary)) {
            (true, true) => Some("nothing was measured on either side".to_owned()),
            (true, false) => Some("nothing was measured on stable".to_owned()),
            (false, true) => Some("nothing was measured on the canary".to_owned()),
            (false, false) => None,
        })
    }

    pub(super) fn smallest_side(&self) -> f64 {
        self.stable.n.min(self.canary.n)
    }

    /// How much worse the canary looks.
    pub(super) fn difference(&self) -> Option<f64> {
        match (self.canary.data, self.stable.data) {
            (Data::Share(c), Data::Share(s)) => Some(c.value() - s.value()),
            (Data::Mean(c), Data::Mean(s)) => match self.unit {
                Unit::Relative if s.mean > 0.0 => Some(c.mean / s.mean - 1.0),
                Unit::Relative => None,
                _ => Some(s.mean - c.mean),
            },
            _ => None,
        }
    }

    /// The statistic for "the canary is worse by `delta`"; falls with delta.
    pub(super) fn z(&self, delta: f64) -> f64 {
        match (self.canary.data, self.stable.data) {
            (Data::Share(c), Data::Share(s)) => shares(c, s, delta),
            (Data::Mean(c), Data::Mean(s)) => match self.unit {
                // Both cost nothing: no difference at all.
                Unit::Relative if c.mean == 0.0 && s.mean == 0.0 => f64::INFINITY.copysign(-delta),
                Unit::Relative => ratio(c, s, delta),
                // A lower score is worse.
                _ => means(s, c, delta),
            },
            _ => 0.0,
        }
    }

    /// The differences that are possible.
    pub(super) fn range(&self) -> (f64, f64) {
        if self.unit == Unit::Relative { (-1.0, 100.0) } else { (-1.0, 1.0) }
    }

    /// Why the canary is beyond the metric's floor, if it is.
    pub(super) fn beyond_floor(&self, metric: &Metric) -> Option<String> {
        let floor = metric.floor.as_ref()?;
        if self.canary.n < floor.min_samples as f64 {
            return None;
        }
        let n = self.canary.n;
        if let Some(longest) = floor.max_duration {
            let latency = metric.time_to_first_token.as_ref().or(metric.duration.as_ref())?;
            let seconds = longest.0.as_secs_f64();
            let slow = slower_than(&self.canary_histogram, buckets::bound(buckets::index(seconds)));
            let share = Share { n, bad: slow as f64 };
            return (share.wilson_lower(FLOOR_Z) > 1.0 - latency.quantile).then(|| {
                format!(
                    "floor: {:.1} % of {n} answers took longer than {longest}, at most {:.1} % may",
                    share.value() * 100.0,
                    (1.0 - latency.quantile) * 100.0
                )
            });
        }
        let (sure, value) = match self.canary.data {
            Data::Share(share) => {
                (floor.max.is_some_and(|max| share.wilson_lower(FLOOR_Z) > max), share.value())
            }
            Data::Mean(mean) => {
                let slack = FLOOR_Z * mean.standard_error();
                let high = floor.max.is_some_and(|max| mean.mean - slack > max);
                let low = floor.min.is_some_and(|min| mean.mean + slack < min);
                (high || low, mean.mean)
            }
            Data::Nothing => (false, 0.0),
        };
        let limit = floor.max.or(floor.min).unwrap_or_default();
        sure.then(|| format!("floor: {value:.4} in {n} samples is beyond {limit}"))
    }
}

fn total(histogram: &BTreeMap<u8, u64>) -> u64 {
    histogram.values().sum()
}

/// How many lie in buckets that are wholly above the bound `seconds`. A bound that
/// went through decimal text is still the same bound.
fn slower_than(histogram: &BTreeMap<u8, u64>, seconds: f64) -> u64 {
    let seconds = seconds * (1.0 + 1e-9);
    histogram.iter().filter(|(bucket, _)| buckets::bound(**bucket) > seconds).map(|(_, n)| n).sum()
}

/// The bucket bound at stable's quantile, once there are enough observations.
fn quantile(histogram: &BTreeMap<u8, u64>, q: f64) -> Option<f64> {
    let all = total(histogram);
    if all < FREEZE_AFTER {
        return None;
    }
    let mut seen = 0;
    for (bucket, count) in histogram {
        seen += count;
        if seen as f64 >= q * all as f64 {
            // The open bucket has no bound to freeze.
            return Some(buckets::bound(*bucket)).filter(|bound| bound.is_finite());
        }
    }
    None
}
