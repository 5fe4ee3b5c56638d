//! What a metric says about both sides, whatever its kind.

use std::collections::BTreeMap;

use crate::{
    analysis::{
        buckets,
        external::External,
        judge::{
            Evidence,
            effect::{self, Effects},
        },
        stats::{
            difference::invert_near,
            exact::log_evidence_above,
            mean::{self, Doubt, Mean},
            paired::{self, Pairs},
            proportion::{self, Share},
        },
    },
    api::{
        canary_policy::{Latency, Metric},
        prompt_release::{Counts, MetricStatus, PairTable, Paired, Sample, Sums, Unit, Verdict},
    },
};

/// So many of stable's answers are wanted beyond the quantile before it is frozen: its
/// true share there is then known to about a third.
const BEYOND_QUANTILE: f64 = 10.0;
/// A floor acts with this error, however often it is looked at.
const FLOOR_ALPHA: f64 = 0.001;
/// A floor on a mean, which has no exact rule, asks for so many standard errors.
const FLOOR_Z: f64 = 4.0;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Comparison {
    /// Shares of different requests: canary, stable.
    Shares(Share, Share),
    /// Means of different requests: canary, stable.
    Means(Mean, Mean),
    /// Outcomes of the same requests.
    Pairs(Pairs),
    /// Differences on the same requests, and stable's own values when they are relative to these.
    Differences(Mean, Option<Mean>),
    /// A plain value, which is not compared.
    Value(f64),
    /// Nothing was measured.
    Nothing,
}

/// Both sides of one metric.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub comparison: Comparison,
    pub stable: Sample,
    pub canary: Sample,
    pub unit: Unit,
    /// The frozen latency threshold in seconds.
    pub threshold: Option<f64>,
    /// Stable's answers that chose the threshold and are left out of the comparison.
    pub frozen: Option<Sample>,
    /// By how much less than independent requests these tell.
    pub effects: Effects,
    missing: Option<String>,
    /// What is missing comes with the next answers.
    waits: bool,
    /// Latencies of the canary, for the floor.
    canary_histogram: BTreeMap<u8, u64>,
}

impl Measured {
    pub(super) fn of(
        metric: &Metric,
        evidence: &Evidence<'_>,
        paired: bool,
        before: Option<&MetricStatus>,
    ) -> Self {
        let Evidence { stable, canary, .. } = *evidence;
        let none = Paired::default();
        let pairs = canary.paired.as_ref().unwrap_or(&none);
        let mut measured = if let Some(latency) = &metric.time_to_first_token {
            Self::latency(latency, &stable.ttft, &canary.ttft, before)
        } else if let Some(latency) = &metric.duration {
            Self::latency(latency, &stable.duration, &canary.duration, before)
        } else if metric.check_failures.is_some() {
            if paired { Self::pairs(pairs.checks) } else { Self::checks(stable, canary) }
        } else if metric.cost_per_request.is_some() {
            if paired { Self::paired_cost(pairs) } else { Self::cost(stable, canary) }
        } else if let Some(score) = &metric.score {
            if paired {
                Self::paired_score(pairs.scores.get(&score.name))
            } else {
                Self::score(&score.name, stable, canary)
            }
        } else if metric.prometheus.is_some() {
            Self::external(evidence.external.get(&metric.name))
        } else if paired {
            Self::pairs(pairs.errors)
        } else {
            Self::errors(stable, canary)
        };
        if matches!(measured.comparison, Comparison::Pairs(_) | Comparison::Differences(..)) {
            measured.effects.canary = effect::of_pairs(canary);
        }
        measured
    }

    fn new(unit: Unit, comparison: Comparison, stable: Sample, canary: Sample) -> Self {
        Self {
            comparison,
            stable,
            canary,
            unit,
            threshold: None,
            frozen: None,
            effects: Effects::NONE,
            missing: None,
            waits: false,
            canary_histogram: BTreeMap::new(),
        }
    }

    fn shares(canary: Share, stable: Share) -> Self {
        let comparison = if canary.n > 0.0 && stable.n > 0.0 {
            Comparison::Shares(canary, stable)
        } else {
            Comparison::Nothing
        };
        Self::new(Unit::Share, comparison, share_sample(stable), share_sample(canary))
    }

    fn errors(stable: &Counts, canary: &Counts) -> Self {
        let mut measured = Self::shares(
            share(canary.requests, canary.errors),
            share(stable.requests, stable.errors),
        );
        measured.effects = effect::of_errors(stable, canary);
        measured
    }

    fn checks(stable: &Counts, canary: &Counts) -> Self {
        let mut measured = Self::shares(
            share(canary.checked, canary.check_failures),
            share(stable.checked, stable.check_failures),
        );
        measured.effects = effect::of_checks(stable, canary);
        measured
    }

    fn means(unit: Unit, canary: &Sums, stable: &Sums) -> Self {
        let of = |sums: &Sums| Mean::from_sums(sums.count, sums.sum, sums.squares, sums.cubes);
        let comparison = match (of(canary), of(stable)) {
            (Some(c), Some(s)) if canary.count > 0 && stable.count > 0 => Comparison::Means(c, s),
            _ => Comparison::Nothing,
        };
        Self::new(unit, comparison, mean_sample(stable), mean_sample(canary))
    }

    fn cost(stable: &Counts, canary: &Counts) -> Self {
        let mut measured = Self::means(Unit::Relative, &canary.cost, &stable.cost);
        measured.effects = effect::of_cost(stable, canary);
        let unpriced = |requests: u64, sums: &Sums| requests > 50 && sums.count == 0;
        if unpriced(stable.requests, &stable.cost) || unpriced(canary.requests, &canary.cost) {
            measured.missing = Some(
                "the cost is unknown: set spec.pricing on the LLMDeployment, or make the model report token usage"
                    .to_owned(),
            );
        }
        measured
    }

    fn score(name: &str, stable: &Counts, canary: &Counts) -> Self {
        let sums = |counts: &Counts| counts.scores.get(name).copied().unwrap_or_default();
        let mut measured = Self::means(Unit::Score, &sums(canary), &sums(stable));
        measured.effects = effect::of_score(name, stable, canary);
        measured
    }

    fn pairs(table: PairTable) -> Self {
        let n = table.pairs() as f64;
        let pairs = Pairs {
            n,
            canary_only: table.canary_only as f64,
            stable_only: table.stable_only as f64,
        };
        let both = table.both as f64;
        let comparison = if n > 0.0 { Comparison::Pairs(pairs) } else { Comparison::Nothing };
        let side = |alone: f64| share_sample(Share { n, bad: alone + both });
        Self::new(Unit::Share, comparison, side(pairs.stable_only), side(pairs.canary_only))
    }

    fn paired_cost(paired: &Paired) -> Self {
        let mean = |s: &Sums| Mean::from_sums(s.count, s.sum, s.squares, s.cubes);
        let comparison = match (mean(&paired.cost), mean(&paired.stable_cost)) {
            (Some(d), Some(s)) => Comparison::Differences(d, Some(s)),
            _ => Comparison::Nothing,
        };
        let stable = mean_sample(&paired.stable_cost);
        let value = stable.value + mean_sample(&paired.cost).value;
        let value = if value.is_finite() { value } else { stable.value };
        let canary = Sample { count: stable.count, value };
        Self::new(Unit::Relative, comparison, stable, canary)
    }

    fn paired_score(differences: Option<&Sums>) -> Self {
        let sums = differences.copied().unwrap_or_default();
        let mean = Mean::from_sums(sums.count, sums.sum, sums.squares, sums.cubes);
        let comparison = match mean {
            Some(mean) if sums.count > 0 => Comparison::Differences(mean, None),
            _ => Comparison::Nothing,
        };
        let none = Sample { count: sums.count as i64, value: 0.0 };
        Self::new(Unit::Score, comparison, none, mean_sample(&sums))
    }

    fn external(external: Option<&External>) -> Self {
        match external {
            Some(External::Shares { stable, canary }) if sane(*stable) && sane(*canary) => {
                Self::shares(*canary, *stable)
            }
            Some(External::Value(value)) if value.is_finite() => Self::new(
                Unit::Value,
                Comparison::Value(*value),
                Sample::default(),
                Sample { count: 1, value: *value },
            ),
            other => {
                let mut measured = Self::shares(Share::default(), Share::default());
                measured.missing = Some(match other {
                    Some(External::Missing { reason, message }) => format!("{reason}: {message}"),
                    Some(External::Value(value)) => format!("the value is {value}"),
                    Some(External::Shares { .. }) => "the counts are no counts".to_owned(),
                    None => "it was not asked for yet".to_owned(),
                });
                measured
            }
        }
    }

    /// The share slower than stable's quantile. The threshold is chosen once, from
    /// stable's answers so far; these are left out afterwards, so that what is compared
    /// is independent of the choice and the quantile's own error does no harm: whatever
    /// the threshold is, both sides are measured against it.
    fn latency(
        latency: &Latency,
        stable: &BTreeMap<u8, u64>,
        canary: &BTreeMap<u8, u64>,
        before: Option<&MetricStatus>,
    ) -> Self {
        let known = before.and_then(|b| b.threshold);
        let chosen = || quantile(stable, latency.quantile);
        let Some(threshold) = known.or_else(chosen) else {
            let mut measured = Self::shares(share(total(canary), 0), share(total(stable), 0));
            (measured.comparison, measured.waits) = (Comparison::Nothing, total(stable) > 0);
            measured.canary_histogram = canary.clone();
            measured.missing = Some(format!(
                "stable's {} quantile needs {} answers, there are {}",
                latency.quantile,
                answers_for(latency.quantile),
                total(stable)
            ));
            return measured;
        };
        let frozen = match known {
            Some(_) => before.and_then(|b| b.frozen),
            None => Some(share_sample(share(total(stable), slower_than(stable, threshold)))),
        };
        let used = frozen.unwrap_or_default();
        let used_bad = (used.value * used.count as f64).round() as u64;
        let left = |all: u64, used: u64| all.saturating_sub(used);
        let stable = share(
            left(total(stable), used.count.unsigned_abs()),
            left(slower_than(stable, threshold), used_bad),
        );
        let mut measured =
            Self::shares(share(total(canary), slower_than(canary, threshold)), stable);
        (measured.threshold, measured.frozen) = (Some(threshold), frozen);
        measured.canary_histogram = canary.clone();
        measured.waits = frozen.is_some();
        measured
    }

    /// Why nothing can be said, if so: data is missing, or it is still being collected.
    pub(super) fn silent(&self) -> Option<(Verdict, String)> {
        let waits = self.waits && (self.stable.count > 0 || self.canary.count > 0);
        let verdict = if waits { Verdict::Undecided } else { Verdict::NoData };
        self.missing().map(|message| (verdict, message))
    }

    fn missing(&self) -> Option<String> {
        let nothing = || {
            if self.comparison != Comparison::Nothing {
                return None;
            }
            Some(match (self.stable.count, self.canary.count) {
                (0, 0) => "nothing was measured on either side".to_owned(),
                (0, _) if self.frozen.is_some() => {
                    "stable's answers so far chose the threshold; new ones are compared".to_owned()
                }
                (0, _) => "nothing was measured on stable".to_owned(),
                (_, 0) => "nothing was measured on the canary".to_owned(),
                _ => "too little was measured".to_owned(),
            })
        };
        self.missing.clone().or_else(nothing)
    }

    /// How many independent observations the smaller side is worth.
    pub(super) fn smallest_side(&self) -> f64 {
        let Effects { canary, stable } = self.effects;
        (self.stable.count as f64 / stable).min(self.canary.count as f64 / canary)
    }

    /// How much worse the canary looks.
    pub(super) fn difference(&self) -> Option<f64> {
        match self.comparison {
            Comparison::Shares(..) | Comparison::Pairs(_) => {
                Some(self.canary.value - self.stable.value)
            }
            Comparison::Differences(mean, None) => Some(-mean.mean),
            Comparison::Means(..) | Comparison::Differences(..) => match self.unit {
                Unit::Relative if self.stable.value > 0.0 => {
                    Some(self.canary.value / self.stable.value - 1.0).filter(|d| d.is_finite())
                }
                Unit::Relative => None,
                _ => Some(self.stable.value - self.canary.value),
            },
            Comparison::Value(_) | Comparison::Nothing => None,
        }
    }

    /// The statistic that shows harm: large when the canary is worse by more than `delta`.
    pub(super) fn z_harm(&self, delta: f64) -> f64 {
        self.z(delta, Doubt::Stable)
    }

    /// The statistic that shows acceptance: very negative when it is worse by less than `delta`.
    pub(super) fn z_accept(&self, delta: f64) -> f64 {
        self.z(delta, Doubt::Canary)
    }

    /// The statistic for a plain interval.
    pub(super) fn z_plain(&self, delta: f64) -> f64 {
        self.z(delta, Doubt::Neither)
    }

    fn z(&self, delta: f64, doubt: Doubt) -> f64 {
        match self.comparison {
            Comparison::Shares(c, s) => {
                let (c, s) = (c.deflated(self.effects.canary), s.deflated(self.effects.stable));
                match doubt {
                    Doubt::Canary => proportion::shares(c.doubted(), s, delta),
                    Doubt::Stable => proportion::shares(c, s.doubted(), delta),
                    Doubt::Neither => proportion::shares(c, s, delta),
                }
            }
            Comparison::Means(c, s) => {
                let (c, s) = (c.deflated(self.effects.canary), s.deflated(self.effects.stable));
                match self.unit {
                    // Both cost nothing: no difference at all.
                    Unit::Relative if c.mean == 0.0 && s.mean == 0.0 => {
                        f64::INFINITY.copysign(-delta)
                    }
                    Unit::Relative => mean::ratio(c, s, delta, doubt),
                    // A lower score is worse.
                    _ if doubt == Doubt::Canary => mean::means(s, c.with_ends(), delta),
                    _ if doubt == Doubt::Stable => mean::means(s.with_ends(), c, delta),
                    _ => mean::means(s, c, delta),
                }
            }
            Comparison::Pairs(pairs) => {
                let pairs = pairs.deflated(self.effects.canary);
                let doubted = if doubt == Doubt::Canary { pairs.doubted() } else { pairs };
                paired::shares(doubted, delta)
            }
            Comparison::Differences(d, Some(s)) if s.mean == 0.0 && d.mean == 0.0 => {
                f64::INFINITY.copysign(-delta)
            }
            Comparison::Differences(d, Some(s)) => paired::relative_mean(
                d.deflated(self.effects.canary),
                s.deflated(self.effects.canary),
                delta,
            ),
            Comparison::Differences(d, None) => {
                let d = d.deflated(self.effects.canary);
                // One pair more at the end that speaks against the decision.
                let d = match doubt {
                    Doubt::Canary => d.with(-1.0),
                    Doubt::Stable => d.with(1.0),
                    Doubt::Neither => d,
                };
                paired::mean(d.negated(), delta)
            }
            Comparison::Value(_) | Comparison::Nothing => 0.0,
        }
    }

    /// The difference at which a statistic reaches `level`: a confidence limit.
    pub(super) fn limit(&self, z: impl Fn(f64) -> f64, level: f64) -> f64 {
        let (low, high) = self.range();
        invert_near(z, level, low, high, self.difference().unwrap_or(0.0))
    }

    /// The differences that are possible.
    pub(super) fn range(&self) -> (f64, f64) {
        if self.unit == Unit::Relative { (-1.0, 100.0) } else { (-1.0, 1.0) }
    }

    /// Why the canary is beyond the metric's floor, if it is.
    pub(super) fn beyond_floor(&self, metric: &Metric) -> Option<String> {
        let floor = metric.floor.as_ref()?;
        if let Some(longest) = floor.max_duration {
            let latency = metric.time_to_first_token.as_ref().or(metric.duration.as_ref())?;
            let seconds = longest.0.as_secs_f64();
            let slow = slower_than(&self.canary_histogram, buckets::bound(buckets::index(seconds)));
            let share = share(total(&self.canary_histogram), slow);
            let most = 1.0 - latency.quantile;
            return (share.n >= floor.min_samples as f64 && surely_above(share, most)).then(|| {
                format!(
                    "floor: {:.1} % of {} answers took longer than {longest}, at most {:.1} % may",
                    share.value() * 100.0,
                    share.n,
                    most * 100.0
                )
            });
        }
        let Sample { count, value } = self.canary;
        if count < floor.min_samples {
            return None;
        }
        let sure = match self.comparison {
            Comparison::Means(mean, _) => {
                let slack = FLOOR_Z * (mean.variance * self.effects.canary / mean.n).sqrt();
                floor.max.is_some_and(|max| mean.mean - slack > max)
                    || floor.min.is_some_and(|min| mean.mean + slack < min)
            }
            _ if self.unit == Unit::Share => {
                let n = count as f64;
                let share = Share { n, bad: value * n }.deflated(self.effects.canary);
                floor.max.is_some_and(|max| surely_above(share, max))
            }
            _ => false,
        };
        let limit = floor.max.or(floor.min).unwrap_or_default();
        sure.then(|| format!("floor: {value:.4} in {count} samples is beyond {limit}"))
    }
}

/// Exact at any number of requests and however often it is looked at.
fn surely_above(share: Share, most: f64) -> bool {
    log_evidence_above(share, most) >= -FLOOR_ALPHA.ln()
}

/// Counts that can be.
fn sane(share: Share) -> bool {
    (0.0..1e18).contains(&share.n) && (0.0..=share.n).contains(&share.bad)
}

fn share(n: u64, bad: u64) -> Share {
    Share { n: n as f64, bad: bad.min(n) as f64 }
}

fn share_sample(share: Share) -> Sample {
    Sample { count: share.n as i64, value: if share.n > 0.0 { share.value() } else { 0.0 } }
}

fn mean_sample(sums: &Sums) -> Sample {
    let mean = sums.sum / sums.count.max(1) as f64;
    Sample { count: sums.count as i64, value: if mean.is_finite() { mean } else { 0.0 } }
}

fn total(histogram: &BTreeMap<u8, u64>) -> u64 {
    histogram.values().fold(0, |sum, n| sum.saturating_add(*n))
}

/// How many lie in buckets that are wholly above the bound `seconds`. A bound that
/// went through decimal text is still the same bound.
fn slower_than(histogram: &BTreeMap<u8, u64>, seconds: f64) -> u64 {
    let seconds = seconds * (1.0 + 1e-9);
    let slow = histogram.iter().filter(|(bucket, _)| buckets::bound(**bucket) > seconds);
    slow.fold(0, |sum, (_, n)| sum.saturating_add(*n))
}

/// How many of stable's answers are wanted before its quantile is frozen.
fn answers_for(q: f64) -> u64 {
    (BEYOND_QUANTILE / (1.0 - q)).round() as u64
}

/// The bucket bound at stable's quantile, once there are enough observations.
fn quantile(histogram: &BTreeMap<u8, u64>, q: f64) -> Option<f64> {
    let all = total(histogram);
    if all < answers_for(q) {
        return None;
    }
    let mut seen = 0_u64;
    for (bucket, count) in histogram {
        seen = seen.saturating_add(*count);
        if seen as f64 >= q * all as f64 {
            // The open bucket has no bound to freeze.
            return Some(buckets::bound(*bucket)).filter(|bound| bound.is_finite());
        }
    }
    None
}
