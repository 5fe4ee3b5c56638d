//! By how much less the requests of few users tell than those of many: the design effect
//! of each side.
//!
//! It is measured from the failures of a side when these are spread over enough groups of
//! users. A side with too few failures is taken to be as alike as the other one, or more
//! when its own failures come in clusters. When neither tells, users' requests are taken
//! to be all alike. It never is more than if they were, which the numbers of their requests
//! tell; where these are as even as those of independent requests, there is no effect.
//!
//! The first 64 requests of a side do not show how unevenly users send. The canary's users are drawn
//! by chance from the same people as stable's, so until then its requests count as uneven as
//! stable's, or as uneven as they look themselves. While such requests counted as independent, most
//! false rollbacks of few uneven users came at the first looks.
//!
//! An effect is known as well as there are groups with many requests. So statistics are
//! compared with Student's distribution ([`Effect::freedom`]): three users who send most
//! requests are three observations of what users are like.
//!
//! For acceptance a side with failures in few groups is taken to be as alike as the other one, as far
//! as its users may be so alike: the canaries that look good by chance are those whose failing users
//! show least, and their own failures then make them look least alike.
//!
//! Of a canary's share there is a second estimate for acceptance: the effect that it has if it is
//! no better than at its accept margin, and looks better by chance ([`Side::by_chance`]). The canary
//! counts as alike as both say on average, where that is more than its own failures say. The second
//! one alone would be too much for a canary that is good: then it is not at the margin.
//!
//! Over steps that are pooled it is the effect of what is compared: each step's requests have the
//! weight that they have in the difference of all steps ([`Side::over`]). A user is in the same
//! group in each step, so it includes that the steps have the same users. From few failures of
//! uneven users this estimate is too often too small (at the accept margin 8.5 and 9.5 % of canaries
//! were promoted in the worst cells). So the effect of all requests with the same weight is
//! estimated too, which rests on more failures, and the larger one counts.
//!
//! Of latencies the groups are counted in intervals of four buckets, because no gateway knows
//! the threshold. Of pairs only the numbers of requests are known.

use std::collections::BTreeMap;

use crate::{
    analysis::{
        callers::coarse,
        stats::{
            adjusted::Adjusted,
            clustered::{
                Grouped, beyond_noise, design_effect, design_effect_around, dispersion,
                dispersion_of_few, freedom, is_few,
            },
            mean::Doubt,
            proportion::{Share, restricted},
            stratified,
        },
    },
    api::prompt_release::{Counts, Groups, Sums as Moments},
};

/// Failures in fewer groups than this do not tell.
const TELLING: usize = 8;
/// In fewer than this they tell too little for acceptance
/// (`docs/decisions/0017-few-users-are-few-observations.md`).
const ENOUGH: usize = 12;
/// When stable has at least so many times as many failures, it tells more of users than the canary.
const BETTER_KNOWN: f64 = 2.0;
/// A group with fewer values than this does not tell.
const LEAST_VALUES: f64 = 3.0;

/// The design effect of one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Effect {
    /// As its own requests tell, for harm.
    pub own: Estimate,
    /// For acceptance.
    pub careful: Estimate,
}

/// How much less the requests of a side tell than independent ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Estimate {
    /// How many requests tell as much as one of a user alone; at least 1.
    pub factor: f64,
    /// The degrees of freedom of the estimate; infinite where there is no effect.
    pub freedom: f64,
}

/// The design effects of both sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Effects {
    pub canary: Effect,
    pub stable: Effect,
}

impl Estimate {
    const NONE: Self = Self { factor: 1.0, freedom: f64::INFINITY };

    fn times(self, factor: f64) -> Self {
        Self { factor: self.factor * factor, ..self }
    }
}

impl Effect {
    pub(super) const NONE: Self = Self { own: Estimate::NONE, careful: Estimate::NONE };

    fn times(self, factor: f64) -> Self {
        Self { own: self.own.times(factor), careful: self.careful.times(factor) }
    }

    /// Without the effect `probes` of requests that a breaker turned away ([`of_probes`]).
    pub(super) fn without(self, probes: f64) -> Self {
        let without = |e: Estimate| Estimate { factor: (e.factor / probes).max(1.0), ..e };
        Self { own: without(self.own), careful: without(self.careful) }
    }
}

impl Effects {
    pub(super) const NONE: Self = Self { canary: Effect::NONE, stable: Effect::NONE };

    /// The canary's and stable's, for a statistic that rests its doubt on this side.
    pub(super) fn under(self, doubt: Doubt) -> [Estimate; 2] {
        let accepts = doubt == Doubt::Canary;
        [self.canary, self.stable].map(|side| if accepts { side.careful } else { side.own })
    }

    pub(super) fn larger(self) -> f64 {
        self.canary.own.factor.max(self.stable.own.factor)
    }
}

/// What is compared: each step's counts, stable's and the canary's, and all of them together.
pub(super) struct Strata<'a> {
    pub each: Vec<[&'a Counts; 2]>,
    pub whole: [&'a Counts; 2],
    /// The accept margin.
    pub accept: f64,
}

impl<'a> Strata<'a> {
    /// One step alone.
    pub(super) fn one(stable: &'a Counts, canary: &'a Counts, accept: f64) -> Self {
        Self { each: vec![[stable, canary]], whole: [stable, canary], accept }
    }

    fn effects(&self, kind: Kind, part: impl Fn(&Counts) -> Part) -> Effects {
        let steps: Vec<_> = self.each.iter().map(|sides| sides.map(&part)).collect();
        of_sides(sides(kind, steps, self.accept))
    }
}

/// What is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Share,
    Mean,
}

/// One side in one step.
struct Part {
    /// How many observations, with and without a sticky key, their mean, and the variance of one.
    all: f64,
    mean: f64,
    variance: f64,
    /// Of a share: the most likely one if the canary were worse by just the accept margin.
    at_margin: f64,
    /// Those with a key by groups, and their sums.
    counts: Vec<f64>,
    sums: Vec<f64>,
    /// Whether its groups tell how alike users are.
    tells: bool,
}

impl Part {
    fn of_share(all: f64, p: f64, counts: &[u64], failed: &[u64]) -> Self {
        let (counts, sums) = (as_numbers(counts), as_numbers(failed));
        Self { all, mean: p, variance: variance(p), at_margin: p, counts, sums, tells: true }
    }

    fn of_mean(moments: &Moments, counts: &[u64], sums: Vec<f64>) -> Self {
        let n = moments.count.max(1) as f64;
        let mean = moments.sum / n;
        let variance = (moments.squares / n - mean.powi(2)).max(0.0);
        let (all, counts) = (moments.count as f64, as_numbers(counts));
        Self { all, mean, variance, at_margin: mean, counts, sums, tells: true }
    }

    fn share(&self) -> Share {
        Share { n: self.all, bad: self.all * self.mean }
    }
}

/// Of one observation of a share.
fn variance(p: f64) -> f64 {
    p * (1.0 - p)
}

fn as_numbers(list: &[u64]) -> Vec<f64> {
    list.iter().map(|n| *n as f64).collect()
}

/// The weight of each step in the difference of all.
fn weights(kind: Kind, steps: &[[Part; 2]]) -> Vec<f64> {
    let of = |[stable, canary]: &[Part; 2]| {
        let size = stratified::size(canary.all, stable.all);
        let n = canary.all + stable.all;
        let p = (canary.mean * canary.all + stable.mean * stable.all + 0.5) / (n + 1.0);
        match kind {
            Kind::Share => size / (p * (1.0 - p)),
            Kind::Mean => size,
        }
    };
    steps.iter().map(of).collect()
}

/// What the groups of one side say.
struct Side {
    /// Measured from enough failures.
    measured: Option<f64>,
    /// Measured from whatever there is.
    hint: f64,
    /// Measured around the shares at the accept margin.
    at_margin: Option<f64>,
    /// If all requests of a user were alike.
    most: f64,
    /// How many groups tell something: they have failures, or values.
    telling: usize,
    /// How many failures, or values, they have.
    failures: f64,
    /// These are too few requests to show how unevenly users send.
    few: bool,
    /// The part of the requests that have a sticky key.
    keyed: f64,
    /// How many requests the groups have.
    counts: Vec<f64>,
}

impl Side {
    /// A side over all `steps`, in which a step has a weight w (with all weights summing up to 1)
    /// and each of its n observations w / n. Its variance is compared with that of independent
    /// observations, Σ w² / n times the variance of one. Scaled by 1 / Σ w² / n, each step's
    /// observations count as one observation each where there is one step.
    fn over(kind: Kind, steps: &[(f64, &Part)]) -> Self {
        let all: f64 = steps.iter().map(|(weight, _)| weight).sum();
        let used = || steps.iter().filter(|(weight, part)| *weight > 0.0 && part.all > 0.0);
        let worth = 1.0 / used().map(|(w, part)| (w / all).powi(2) / part.all).sum::<f64>();
        let groups = steps.iter().map(|(_, part)| part.counts.len()).max().unwrap_or_default();
        // What tells are failures, or values.
        let [mut counts, mut sums, mut telling, mut around] =
            [0, 1, 2, 3].map(|_| vec![0.0; groups]);
        let [mut variance_of_all, mut variance_around] = [0.0; 2];
        for (weight, part) in used() {
            let each = weight / all / part.all * worth;
            let with_key: f64 = part.counts.iter().sum();
            let mean = part.sums.iter().sum::<f64>() / with_key.max(1.0);
            for (i, n) in part.counts.iter().enumerate() {
                let sum = part.sums.get(i).copied().unwrap_or_default();
                counts[i] += each * n;
                sums[i] += each * (sum - n * mean);
                around[i] += each * (sum - n * part.at_margin);
                if part.tells {
                    telling[i] += if kind == Kind::Share { sum } else { *n };
                }
            }
            let of_one = each * each * part.all / worth;
            variance_of_all += of_one * part.variance;
            variance_around += of_one * variance(part.at_margin);
        }
        let least = if kind == Kind::Share { 1.0 } else { LEAST_VALUES };
        let failures = telling.iter().sum();
        let telling = telling.iter().filter(|n| **n >= least).count();
        // Without sticky keys nothing is known of users.
        let few = is_few(&counts) && counts.iter().any(|n| *n > 0.0);
        let most = dispersion_of_few(&counts);
        let grouped = |sums| Grouped { counts: &counts, sums };
        let hint = design_effect(grouped(&sums), variance_of_all).unwrap_or(1.0);
        let hint = hint.min(most.max(1.0));
        let at_margin = (kind == Kind::Share)
            .then(|| design_effect_around(grouped(&around), variance_around))
            .flatten();
        let keyed = (counts.iter().sum::<f64>() / worth).min(1.0);
        let keyed = if keyed.is_finite() { keyed } else { 0.0 };
        let measured = (telling >= TELLING && !few).then_some(hint);
        Self { measured, hint, at_margin, most, telling, failures, few, keyed, counts }
    }

    /// The larger of both estimates, of the same groups.
    fn or_more(self, other: Self) -> Self {
        let measured = match (self.measured, other.measured) {
            (Some(one), Some(another)) => Some(one.max(another)),
            (one, another) => one.or(another),
        };
        let (hint, most) = (self.hint.max(other.hint), self.most.max(other.most));
        Self { measured, hint, most, ..self }
    }

    /// How alike requests of a user are, from 0 to 1: which part of the largest effect that there can
    /// be it has.
    fn alike(&self) -> f64 {
        let part = (self.hint - 1.0) / (self.most - 1.0);
        if self.most > 1.0 { part.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// The effect of a canary's share if it is no better than at its accept margin, and looks better
    /// by chance. Around the most likely shares at the margin a busy user without failures shows, who
    /// goes unnoticed around a low observed share (an estimate under the null hypothesis: Guo, Pan,
    /// Connett, Hannan and French, Statistics in Medicine 24, 2005). And where stable has many more
    /// failures, its users tell how alike users are; the numbers of requests are the canary's own.
    fn by_chance(&self, stable: &Self) -> Option<f64> {
        let at_margin = self.at_margin?;
        let known = |_: &f64| stable.failures >= BETTER_KNOWN * self.failures;
        let as_both = stable.measured.filter(known).map_or(1.0, |_| {
            let all = self.failures + stable.failures;
            let alike = self.failures * self.alike() + stable.failures * stable.alike();
            1.0 + alike / all.max(1.0) * (self.most - 1.0)
        });
        Some(at_margin.max(as_both))
    }

    fn effect(&self, other: &Self, is_canary: bool) -> Effect {
        let most = if self.few { self.most.max(other.most) } else { self.most };
        if most <= 1.0 {
            return Effect::NONE;
        }
        let effect = match (self.measured, other.measured) {
            (Some(own), _) => own,
            (None, Some(other)) => self.hint.max(other).min(most),
            (None, None) => most,
        };
        // As alike as the other side's users.
        let alike = other.measured.filter(|_| self.telling < ENOUGH).unwrap_or_default();
        let careful = effect.max(alike.min(most));
        let by_chance = self.by_chance(other).filter(|_| is_canary).unwrap_or_default();
        let careful = careful.max(0.5 * (careful + by_chance.min(most)));
        Effect { own: self.estimate(effect), careful: self.estimate(careful) }
    }

    fn estimate(&self, effect: f64) -> Estimate {
        let effect = effect.max(1.0);
        let freedom = freedom(&self.counts, effect);
        Estimate { factor: 1.0 + (effect - 1.0) * self.keyed, freedom }
    }
}

/// Both sides of each step, stable's and the canary's.
fn sides(kind: Kind, mut steps: Vec<[Part; 2]>, accept: f64) -> [Side; 2] {
    if kind == Kind::Share {
        for [stable, canary] in steps.iter_mut().filter(|step| step.iter().all(|p| p.all > 0.0)) {
            let at_margin = restricted(canary.share(), stable.share(), accept);
            (canary.at_margin, stable.at_margin) = at_margin;
        }
    }
    let weights = weights(kind, &steps);
    [0, 1].map(|side| {
        let parts = || steps.iter().map(|step| &step[side]);
        let alike = || Side::over(kind, &parts().map(|part| (part.all, part)).collect::<Vec<_>>());
        // One side of a step may have nothing.
        if steps.len() == 1 || weights.iter().all(|weight| *weight <= 0.0) {
            return alike();
        }
        let weighted: Vec<_> = weights.iter().copied().zip(parts()).collect();
        Side::over(kind, &weighted).or_more(alike())
    })
}

fn of_sides([stable, canary]: [Side; 2]) -> Effects {
    Effects { canary: canary.effect(&stable, true), stable: stable.effect(&canary, false) }
}

pub(super) fn of_errors(strata: &Strata<'_>) -> Effects {
    let of = |c: &Counts| of_shares((c.requests, c.errors), &c.groups.requests, &c.groups.errors);
    let Effects { canary, stable } = strata.effects(Kind::Share, of);
    let [of_stable, of_canary] = strata.whole.map(of_probes);
    Effects { canary: canary.times(of_canary), stable: stable.times(of_stable) }
}

/// Of the errors of a part of the requests. What makes users alike is known of all requests
/// only, and taken over from `whole`; the probes are those of the part.
pub(super) fn of_part(whole: Effects, all: [&Counts; 2], part: [&Counts; 2]) -> Effects {
    let [stable, canary] = [0, 1].map(|i| of_probes(part[i]) / of_probes(all[i]));
    Effects { canary: whole.canary.times(canary), stable: whole.stable.times(stable) }
}

/// Requests that a breaker turned away count as its probes ended, which are a sample of
/// them: by how much less than requests of their own all these tell. The variance of the
/// mean of a sample in two strata, of which one was counted whole and the other by its
/// probes (Cochran, Sampling Techniques, 1977, chapter 5), over that of independent
/// requests. Half a failed and half a good probe more, so that few do not pass for sure.
pub(super) fn of_probes(counts: &Counts) -> f64 {
    let away = &counts.turned_away;
    if away.requests == 0 {
        return 1.0;
    }
    let (n, bad) = (counts.requests as f64, counts.errors.min(counts.requests) as f64);
    let spread = |bad: f64, n: f64| {
        let p = (bad + 0.5) / (n + 1.0);
        p * (1.0 - p)
    };
    let (turned, failed) = (away.requests as f64, away.errors.min(away.requests) as f64);
    let (seen, seen_bad) = ((n - turned).max(0.0), (bad - failed).max(0.0));
    let probes = away.probes.max(1) as f64;
    let by_probes = turned.powi(2) * spread(away.probe_errors as f64, probes) / probes;
    // As much half a failure more as what was asked allows: where everything failed, the whole
    // would look surer than its parts by as many as were turned away.
    let asked = seen.max(probes);
    let effect = (seen * spread(seen_bad, seen) + by_probes) / (n * spread(bad / n * asked, asked));
    if effect.is_finite() { effect.max(1.0) } else { 1.0 }
}

/// How many independent observations the requests are that no breaker turned away, probes among
/// them, where the effect of all is `factor`: with the others they tell no less than alone.
pub(super) fn seen(counts: &Counts, factor: f64) -> f64 {
    let seen = counts.requests.saturating_sub(counts.turned_away.requests) as f64;
    seen / (factor / of_probes(counts)).max(1.0)
}

/// One side of a share that is counted in parts.
pub(super) struct Counted<'a> {
    /// How many there are, and how many of them are bad.
    pub total: (u64, u64),
    /// Lists over groups that add up to all.
    pub parts: [&'a [u64]; 3],
    /// The bad ones over groups; empty when these are not known by group.
    pub failed: &'a [u64],
}

/// Of a share that is counted in parts.
pub(super) fn of_parts(
    strata: &Strata<'_>,
    counted: impl for<'c> Fn(&'c Counts) -> Counted<'c>,
) -> Effects {
    strata.effects(Kind::Share, |counts| {
        let Counted { total, parts: [a, b, c], failed } = counted(counts);
        of_shares(total, &sum(&sum(a, b), c), failed)
    })
}

pub(super) fn of_checks(strata: &Strata<'_>) -> Effects {
    strata.effects(Kind::Share, |c| {
        of_shares((c.checked, c.check_failures), &c.groups.checked, &c.groups.check_failures)
    })
}

/// Of costs, or of what is left of them at equal inputs.
pub(super) fn of_cost(strata: &Strata<'_>, adjusted: Option<&Adjusted>) -> Effects {
    strata.effects(Kind::Mean, |c| {
        let Some(adjusted) = adjusted else {
            return Part::of_mean(&c.cost, &c.groups.costs, c.groups.cost.clone());
        };
        let (slope, at, x) = (adjusted.slope(), adjusted.at(), &c.cost_by_input);
        let n = c.cost.count as f64;
        // Of y − slope (x − at).
        let left = Moments {
            count: c.cost.count,
            sum: c.cost.sum - slope * (x.x - n * at),
            squares: c.cost.squares - 2.0 * slope * (x.xy - at * c.cost.sum)
                + slope * slope * (x.x2 - 2.0 * at * x.x + n * at * at),
            cubes: 0.0,
        };
        let inputs = c.groups.input.iter().zip(&c.groups.costs);
        let explained = inputs.map(|(input, n)| slope * (input - *n as f64 * at));
        let sums = c.groups.cost.iter().zip(explained).map(|(cost, part)| cost - part).collect();
        Part::of_mean(&left, &c.groups.costs, sums)
    })
}

pub(super) fn of_score(strata: &Strata<'_>, name: &str) -> Effects {
    strata.effects(Kind::Mean, |c| {
        let grouped = c.groups.scores.get(name).cloned().unwrap_or_default();
        let all = c.scores.get(name).copied().unwrap_or_default();
        Part::of_mean(&all, &grouped.counts, grouped.sums)
    })
}

/// Of the share that is slower than bucket `last`; `waits` are those of a side by groups, and
/// how many there are. They are counted in intervals of four buckets: a threshold inside an
/// interval is moved to its lower and to its upper end, and the larger effect counts. Requests that
/// are still open are in no group.
pub(super) fn of_waits(
    strata: &Strata<'_>,
    last: u8,
    waits: impl for<'c> Fn(&'c Counts) -> (&'c BTreeMap<u8, Vec<u64>>, f64),
) -> Effects {
    let slow = last.saturating_add(1);
    let below = coarse(slow);
    let above = if coarse(last) == below { below.saturating_add(1) } else { below };
    let beyond = |bound: u8| {
        let of = |counts: &Counts| {
            let (waits, all) = waits(counts);
            let from = |from: u8| {
                let lists = waits.range(from..).map(|(_, list)| list);
                lists.fold(vec![], |total: Vec<u64>, list| sum(&total, list))
            };
            let (counts, slow) = (from(0), from(bound));
            let total = |list: &[u64]| list.iter().map(|n| *n as f64).sum::<f64>();
            let p = total(&slow) / total(&counts).max(1.0);
            // What all or none are does not tell how alike they are.
            Part { tells: p > 0.0 && p < 1.0, ..Part::of_share(all, p, &counts, &slow) }
        };
        let steps: Vec<_> = strata.each.iter().map(|step| step.map(of)).collect();
        // The larger effect of both bounds counts, which is careful enough without the estimate at
        // the margin (`docs/statistics.md`): that would only hold canaries.
        sides(Kind::Share, steps, strata.accept).map(|side| Side { at_margin: None, ..side })
    };
    let ([stable, canary], [of_stable, of_canary]) = (beyond(below), beyond(above));
    of_sides([stable.or_more(of_stable), canary.or_more(of_canary)])
}

/// Of copies of requests: their users' numbers of requests.
pub(super) fn of_pairs(canary: &Counts) -> Effect {
    Effect::NONE.times(dispersion(&as_numbers(&canary.groups.requests)))
}

/// Of the split between the variants: users and not requests are drawn. The estimate from
/// 32 groups is uncertain, and one that is too small at one look would be enough for a
/// false alarm: so its upper limit counts (31 over the 5 % quantile of chi-square).
pub(in crate::analysis) fn of_split(stable: &Groups, canary: &Groups, share: f64) -> f64 {
    let counts = as_numbers(&sum(&stable.requests, &canary.requests));
    let grouped = Grouped { counts: &counts, sums: &as_numbers(&canary.requests) };
    let measured = design_effect(grouped, share * (1.0 - share)).unwrap_or(1.0);
    let effect = beyond_noise(measured, &counts).max(dispersion(&counts));
    if counts.is_empty() { 1.0 } else { 1.6 * effect }
}

fn of_shares((n, bad): (u64, u64), counts: &[u64], failed: &[u64]) -> Part {
    Part::of_share(n as f64, bad.min(n) as f64 / n.max(1) as f64, counts, failed)
}

/// Position by position; the shorter list is filled up with zeros.
fn sum(a: &[u64], b: &[u64]) -> Vec<u64> {
    let at = |list: &[u64], i: usize| list.get(i).copied().unwrap_or_default();
    (0..a.len().max(b.len())).map(|i| at(a, i).saturating_add(at(b, i))).collect()
}

#[cfg(test)]
mod tests;
