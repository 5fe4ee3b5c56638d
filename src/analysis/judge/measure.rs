//! What a metric says about both sides, whatever its kind.

mod guarded;
mod latency;
mod statistics;

use std::collections::BTreeMap;

pub(in crate::analysis) use self::latency::answers_for;
use self::{
    guarded::Guarded,
    latency::{Grouped, durations, first_tokens, interval_of},
};
use crate::{
    analysis::{
        external::External,
        judge::{
            Evidence, Scope,
            effect::{self, Effects, Strata},
        },
        stats::{
            adjusted::{Adjusted, Moments, Products},
            mean::Mean,
            paired::Pairs,
            proportion::Share,
            stratified,
            survival::Waits,
        },
    },
    api::{
        canary_policy::Metric,
        prompt_release::{
            Batch, Counts, MetricStatus, OTHER, PairTable, Paired, Sample, Sums, Unit, Verdict,
        },
    },
    audit::record::CheckResult,
};

/// Looks for harm use at least this many degrees of freedom. A canary for a dozen users may have
/// one or two; then many that fail 30 points more often would be held and not rolled back
/// (`docs/decisions/0017-few-users-are-few-observations.md`).
pub(in crate::analysis) const HARM_FREEDOM: f64 = 30.0;

/// Which degrees of freedom a statistic uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freedom {
    /// Those that were estimated.
    All,
    /// Those, but at least [`HARM_FREEDOM`].
    AtLooks,
}

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
    /// Stable's answers when they chose the threshold in this window.
    pub frozen: Option<Sample>,
    /// By how much less than independent requests these tell.
    pub effects: Effects,
    /// It counts each request that ended, also those without an outcome.
    pub counts_everybody: bool,
    /// It counts open requests for as long as they have been.
    pub counts_open: bool,
    /// Of a latency, canary's and stable's requests that are not open any more, and how many of
    /// them were slow.
    closed: Option<[Share; 2]>,
    /// Some of it was judged by the probes of a breaker.
    pub probed: bool,
    /// Canary's and stable's independent observations that no breaker turned away, where one did.
    seen: Option<[f64; 2]>,
    /// By how much less the canary's requests tell because a breaker's probes speak for some.
    probes: f64,
    /// Of each of the canary's steps that is compared, the last one included, those that no breaker
    /// turned away, where one did.
    asked: Vec<Share>,
    /// What most of the canary's failures are.
    pub mostly: Option<String>,
    missing: Option<String>,
    /// What is missing comes with the next answers.
    waits: bool,
    /// The shares of stable's and the canary's requests that are slower than the floor allows.
    pub floored: Option<[Share; 2]>,
    /// Of shares that are pooled: canary's and stable's in each earlier step. The comparison is
    /// that of the last one.
    earlier: Vec<[Share; 2]>,
    /// Costs at equal inputs, where these are known.
    adjusted: Option<Adjusted>,
}

impl Measured {
    pub(super) fn of(
        metric: &Metric,
        evidence: &Evidence<'_>,
        paired: bool,
        before: Option<&MetricStatus>,
    ) -> Self {
        let strata = Strata::one(evidence.stable, evidence.canary, metric.margin().accept);
        Self::plain(metric, evidence, paired, before).with_effects(metric, &strata)
    }

    /// The same, where it does not matter how alike users are.
    pub(super) fn plain(
        metric: &Metric,
        evidence: &Evidence<'_>,
        paired: bool,
        before: Option<&MetricStatus>,
    ) -> Self {
        let Evidence { stable, canary, .. } = *evidence;
        let none = Paired::default();
        let pairs = canary.paired.as_ref().unwrap_or(&none);
        if let Some(latency) = &metric.time_to_first_token {
            Self::latency((latency, metric), [stable, canary].map(first_tokens), before)
        } else if let Some(latency) = &metric.duration {
            Self::latency((latency, metric), [stable, canary].map(durations), before)
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
        } else if let Some(guarded) = Guarded::of(metric) {
            Self::guarded(guarded, stable, canary)
        } else if paired {
            Self::pairs(pairs.errors)
        } else {
            Self::errors(stable, canary)
        }
    }

    /// By how much less than independent requests these tell, which were counted in `strata`.
    pub(super) fn with_effects(mut self, metric: &Metric, strata: &Strata<'_>) -> Self {
        let last = self.threshold.map(interval_of);
        let waits = |of: fn(&Counts) -> (Waits<'_>, Grouped<'_>)| {
            let waits = last.map(|last| {
                effect::of_waits(strata, last, |counts| {
                    let (waits, groups) = of(counts);
                    (groups, waits.total())
                })
            });
            waits.unwrap_or(Effects::NONE)
        };
        let [_, canary] = strata.whole;
        self.effects =
            if matches!(self.comparison, Comparison::Pairs(_) | Comparison::Differences(..)) {
                Effects { canary: effect::of_pairs(canary), ..Effects::NONE }
            } else if metric.time_to_first_token.is_some() {
                waits(first_tokens)
            } else if metric.duration.is_some() {
                waits(durations)
            } else if metric.check_failures.is_some() {
                effect::of_checks(strata)
            } else if metric.cost_per_request.is_some() {
                effect::of_cost(strata, self.adjusted.as_ref())
            } else if let Some(score) = &metric.score {
                effect::of_score(strata, &score.name)
            } else if metric.prometheus.is_some() {
                Effects::NONE
            } else if let Some(guarded) = Guarded::of(metric) {
                guarded.effects(strata)
            } else {
                effect::of_errors(strata)
            };
        let Effects { canary: of_canary, stable: of_stable } = self.effects;
        self.seen = self.probed.then(|| {
            let [stable, canary] = strata.whole;
            [effect::seen(canary, of_canary.own.factor), effect::seen(stable, of_stable.own.factor)]
        });
        self.probes = effect::of_probes(canary);
        self
    }

    /// The same metric on a part of the requests, against the same threshold. What makes
    /// users alike is taken over: it is known of all together only.
    pub(super) fn of_rest(&self, metric: &Metric, all: &Scope<'_>, rest: &Scope<'_>) -> Self {
        let before = MetricStatus { threshold: self.threshold, ..MetricStatus::default() };
        let measured = Self::of(metric, &rest.own, false, Some(&before));
        measured.with_effects_of(self, all.own_counts(), rest.own_counts())
    }

    /// The same of all steps that are pooled; `own` is that of the window alone.
    pub(super) fn together_of_rest(
        &self,
        own: &Self,
        metric: &Metric,
        [all, rest]: [&Scope<'_>; 2],
        before: Option<&MetricStatus>,
    ) -> Self {
        if rest.own.earlier.is_empty() {
            return own.clone();
        }
        let measured = rest.together(own, metric, before);
        measured.with_effects_of(self, all.whole(), rest.whole())
    }

    fn with_effects_of(self, whole: &Self, all: [&Counts; 2], rest: [&Counts; 2]) -> Self {
        let effects =
            if whole.probed { effect::of_part(whole.effects, all, rest) } else { whole.effects };
        Self { effects, probes: effect::of_probes(rest[1]), ..self }
    }

    /// Whether the canary's observed value is beyond the metric's floor, sure or not.
    pub(super) fn looks_beyond_floor(&self, metric: &Metric) -> bool {
        let Some(floor) = metric.floor.as_ref() else { return false };
        let latency = metric.time_to_first_token.as_ref().or(metric.duration.as_ref());
        if let Some(([_, slow], latency)) = self.floored.zip(latency) {
            return slow.n > 0.0 && slow.value() > 1.0 - latency.quantile;
        }
        let Sample { count, value } = self.canary;
        let beyond =
            floor.max.is_some_and(|max| value > max) || floor.min.is_some_and(|min| value < min);
        count > 0 && beyond
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
            counts_everybody: false,
            counts_open: false,
            closed: None,
            probed: false,
            seen: None,
            probes: 1.0,
            asked: vec![],
            mostly: None,
            missing: None,
            waits: false,
            floored: None,
            earlier: vec![],
            adjusted: None,
        }
    }

    /// Canary's and stable's counts that only grow, so that the difference to an earlier
    /// collection is what was counted since then. Those of open requests also fall.
    pub(super) fn grown(&self) -> Option<[Share; 2]> {
        let pair = self.pair()?;
        if self.counts_open { self.closed } else { Some(pair) }
    }

    /// A share without what was counted in these batches.
    pub(super) fn without(&self, batches: &[Batch]) -> Option<Self> {
        let rest = |all: Share, of: fn(&Batch) -> Sample| {
            batches.iter().map(of).fold(all, |rest, part| {
                let n = part.count as f64;
                let bad = (part.value * n).round();
                Share { n: (rest.n - n).max(0.0), bad: (rest.bad - bad).max(0.0) }
            })
        };
        let [canary, stable] = self.pair()?;
        let (canary, stable) = (rest(canary, |b| b.canary), rest(stable, |b| b.stable));
        Some(Self {
            comparison: Comparison::Shares(canary, stable),
            canary: share_sample(canary),
            stable: share_sample(stable),
            asked: vec![],
            ..self.clone()
        })
    }

    /// A share of what came after `at`.
    pub(super) fn since(&self, at: Batch) -> Option<Self> {
        Some(Self { seen: None, asked: vec![], earlier: vec![], ..self.without(&[at])? })
    }

    /// Both sides' shares, of a metric that has such: canary, stable.
    pub(super) fn pair(&self) -> Option<[Share; 2]> {
        match self.comparison {
            Comparison::Shares(canary, stable) => Some([canary, stable]),
            _ => None,
        }
    }

    /// The same metric over this step and those before, of which `parts` are the measures and
    /// `whole` that of all counts together. The values are those of the steps, weighted by their
    /// sizes, the same on both sides.
    pub(super) fn pooled_with(&self, parts: &[Self], whole: Self) -> Self {
        let each = || parts.iter().chain([self]);
        let size = |m: &Self| stratified::size(m.canary.count as f64, m.stable.count as f64);
        let all: f64 = each().map(size).sum();
        let sample = |of: fn(&Self) -> Sample| Sample {
            count: each().map(|m| of(m).count).sum(),
            value: each().map(|m| size(m) / all.max(1e-9) * of(m).value).sum(),
        };
        let means = |m: &Self| match m.comparison {
            Comparison::Means(canary, stable) => Some([canary, stable]),
            _ => None,
        };
        let earlier: Vec<[Share; 2]> = parts.iter().filter_map(Self::pair).collect();
        let comparison = match (stratified::means(each().filter_map(means)), self.pair()) {
            (Some([canary, stable]), _) => Comparison::Means(canary, stable),
            // The last one with anything on both sides; what it is does not matter.
            (None, None) if !earlier.is_empty() => {
                Comparison::Shares(Share::default(), Share::default())
            }
            _ => self.comparison,
        };
        let adjusted = self.adjusted_with(parts);
        let compared = parts.iter().filter(|m| m.pair().is_some()).chain([self]);
        let asked = compared.flat_map(|m| m.asked.iter().copied()).collect();
        Self {
            comparison,
            earlier,
            asked,
            adjusted,
            stable: sample(|m| m.stable),
            canary: sample(|m| m.canary),
            mostly: whole.mostly,
            probed: whole.probed,
            ..self.clone()
        }
    }

    /// Costs at equal inputs over this step and those before; none where one of them does not
    /// know its inputs.
    fn adjusted_with(&self, parts: &[Self]) -> Option<Adjusted> {
        let compared = parts.iter().chain([self]);
        let compared = compared.filter(|m| matches!(m.comparison, Comparison::Means(..)));
        let strata: Option<Vec<_>> = compared
            .map(|m| m.adjusted.as_ref())
            .map(|a| Some(a?.strata().iter().copied()))
            .collect();
        Adjusted::new(strata?.into_iter().flatten().collect())
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
        measured.probed = stable.turned_away.requests > 0 || canary.turned_away.requests > 0;
        let away = &canary.turned_away;
        measured.asked = vec![share(
            canary.requests.saturating_sub(away.requests),
            canary.errors.saturating_sub(away.errors),
        )];
        measured.mostly = commonest(&canary.failures, |_| true);
        measured
    }

    fn checks(stable: &Counts, canary: &Counts) -> Self {
        let mut measured = Self::shares(
            share(canary.checked, canary.check_failures),
            share(stable.checked, stable.check_failures),
        );
        measured.mostly = commonest(&canary.flaws, |word| !is_unjudged(word));
        measured
    }

    /// Whether a built-in comparison has anything to compare.
    pub(super) fn tells(guard: &Metric, evidence: &Evidence<'_>, paired: bool) -> bool {
        let Evidence { stable, canary, .. } = *evidence;
        // Nobody waits for a copy, and one that both refuse is counted for both.
        let applies = !paired || guard.unjudged.is_some();
        let told = |c: &Counts| Guarded::of(guard).is_some_and(|g| g.share(c).bad > 0.0);
        applies && (told(stable) || told(canary))
    }

    fn guarded(guarded: Guarded, stable: &Counts, canary: &Counts) -> Self {
        let mut measured = Self::shares(guarded.share(canary), guarded.share(stable));
        measured.counts_everybody = !matches!(guarded, Guarded::Unjudged);
        measured.mostly = match guarded {
            Guarded::Refused => commonest(&canary.refusals, |_| true),
            Guarded::Unjudged => commonest(&canary.flaws, is_unjudged),
            Guarded::Unfinished => None,
        };
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
        measured.adjusted = moments(canary)
            .zip(moments(stable))
            .and_then(|(canary, stable)| Adjusted::new(vec![[canary, stable]]));
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
        Self::means(Unit::Score, &sums(canary), &sums(stable))
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
                (0, _) => "nothing was measured on stable".to_owned(),
                (_, 0) => "nothing was measured on the canary".to_owned(),
                _ => "too little was measured".to_owned(),
            })
        };
        self.missing.clone().or_else(nothing)
    }
}

/// The word that stands for most.
fn commonest(words: &BTreeMap<String, u64>, counts: impl Fn(&str) -> bool) -> Option<String> {
    let counted = words.iter().filter(|(word, _)| counts(word) && *word != OTHER);
    let (word, most) = counted.max_by_key(|(_, n)| **n)?;
    // Among the others one may be as common.
    let other = words.get(OTHER).copied().unwrap_or_default();
    (*most > other).then(|| word.clone())
}

/// The words for answers that are neither good nor bad.
fn is_unjudged(word: &str) -> bool {
    [CheckResult::UnknownReason, CheckResult::Unread].iter().any(|check| check.as_str() == word)
}

/// Counts that can be.
fn sane(share: Share) -> bool {
    (0.0..1e18).contains(&share.n) && (0.0..=share.n).contains(&share.bad)
}

fn share(n: u64, bad: u64) -> Share {
    Share { n: n as f64, bad: bad.min(n) as f64 }
}

pub(super) fn share_sample(share: Share) -> Sample {
    Sample { count: share.n as i64, value: if share.n > 0.0 { share.value() } else { 0.0 } }
}

fn mean_sample(sums: &Sums) -> Sample {
    let mean = sums.sum / sums.count.max(1) as f64;
    Sample { count: sums.count as i64, value: if mean.is_finite() { mean } else { 0.0 } }
}

/// Costs and inputs together, where all that have a cost tell their input.
fn moments(counts: &Counts) -> Option<Moments> {
    let (y, x) = (&counts.cost, &counts.cost_by_input);
    let sums = Products {
        x: [x.x, x.x2, x.x3],
        y: [y.sum, y.squares, y.cubes],
        both: [x.xy, x.x2y, x.xy2],
    };
    Moments::from_sums(y.count, sums).filter(|_| x.count == y.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_commonest_only_when_none_of_the_others_can_be() {
        let of = |words: &[(&str, u64)]| {
            let words = words.iter().map(|(word, n)| ((*word).to_owned(), *n)).collect();
            commonest(&words, |word| word != "left")
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("a", 2), ("b", 3), (OTHER, 2)]).as_deref(), Some("b"));
        assert_eq!(of(&[("a", 2), ("b", 3), (OTHER, 3)]), None);
        assert_eq!(of(&[("a", 2), ("left", 9)]).as_deref(), Some("a"));
    }
}
