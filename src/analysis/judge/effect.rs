//! By how much less the requests of few users tell than those of many: the design effect
//! of each side.
//!
//! It is measured from the failures of a side when these are spread over enough groups of
//! users. A side with too few failures is taken to be as alike as the other one, or more
//! when its own failures come in clusters. When neither tells, users' requests are taken
//! to be all alike. It never is more than if they were, which the numbers of their requests
//! tell; where these are as even as those of independent requests, there is no effect.
//!
//! An effect is known as well as there are groups with many requests. So statistics are
//! compared with Student's distribution ([`Effect::freedom`]): three users who send most
//! requests are three observations of what users are like.
//!
//! Of latencies the groups are counted in intervals of four buckets, because no gateway knows
//! the threshold. Of pairs only the numbers of requests are known.

use std::collections::BTreeMap;

use crate::{
    analysis::{
        callers::coarse,
        stats::{
            adjusted::Adjusted,
            clustered::{Grouped, Sums, beyond_noise, design_effect, dispersion, freedom},
        },
    },
    api::prompt_release::{Counts, Groups, Sums as Moments},
};

/// Failures in fewer groups than this do not tell.
const TELLING: usize = 8;

/// The design effect of one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Effect {
    /// How many requests tell as much as one of a user alone; at least 1.
    pub factor: f64,
    /// The degrees of freedom of its estimate; infinite where there is no effect.
    pub freedom: f64,
}

/// The design effects of both sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Effects {
    pub canary: Effect,
    pub stable: Effect,
}

impl Effect {
    pub(super) const NONE: Self = Self { factor: 1.0, freedom: f64::INFINITY };

    fn times(self, factor: f64) -> Self {
        Self { factor: self.factor * factor, ..self }
    }
}

impl Effects {
    pub(super) const NONE: Self = Self { canary: Effect::NONE, stable: Effect::NONE };

    pub(super) fn larger(self) -> f64 {
        self.canary.factor.max(self.stable.factor)
    }
}

/// What the groups of one side say.
struct Side {
    /// Measured from enough failures.
    measured: Option<f64>,
    /// Measured from whatever there is.
    hint: f64,
    /// If all requests of a user were alike.
    most: f64,
    /// The part of the requests that have a sticky key.
    keyed: f64,
    /// How many requests the groups have.
    counts: Vec<u64>,
}

impl Side {
    fn new(grouped: Grouped<'_>, variance: f64, telling: usize, all: u64) -> Self {
        let most = dispersion(grouped.counts);
        let hint = design_effect(grouped, variance).unwrap_or(1.0).min(most.max(1.0));
        let with_key = grouped.counts.iter().fold(0_u64, |n, c| n.saturating_add(*c)) as f64;
        let keyed = (with_key / all.max(1) as f64).min(1.0);
        let counts = grouped.counts.to_vec();
        Self { measured: (telling >= TELLING).then_some(hint), hint, most, keyed, counts }
    }

    /// The larger of both estimates; both are of the same groups.
    fn or_more(self, other: Self) -> Self {
        let measured = match (self.measured, other.measured) {
            (Some(one), Some(another)) => Some(one.max(another)),
            (one, another) => one.or(another),
        };
        Self { measured, hint: self.hint.max(other.hint), ..self }
    }

    fn effect(&self, other: &Self) -> Effect {
        if self.most <= 1.0 {
            return Effect::NONE;
        }
        let effect = match (self.measured, other.measured) {
            (Some(own), _) => own,
            (None, Some(other)) => self.hint.max(other).min(self.most),
            (None, None) => self.most,
        };
        let effect = effect.max(1.0);
        let freedom = freedom(&self.counts, effect);
        Effect { factor: 1.0 + (effect - 1.0) * self.keyed, freedom }
    }
}

fn of_both(stable: &Side, canary: &Side) -> Effects {
    Effects { canary: canary.effect(stable), stable: stable.effect(canary) }
}

pub(super) fn of_errors(stable: &Counts, canary: &Counts) -> Effects {
    let side = |c: &Counts| of_shares((c.requests, c.errors), &c.groups.requests, &c.groups.errors);
    let Effects { canary: c, stable: s } = of_both(&side(stable), &side(canary));
    Effects { canary: c.times(of_probes(canary)), stable: s.times(of_probes(stable)) }
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
fn of_probes(counts: &Counts) -> f64 {
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
pub(super) struct Part<'a> {
    /// How many there are, and how many of them are bad.
    pub total: (u64, u64),
    /// Lists over groups that add up to all.
    pub parts: [&'a [u64]; 3],
    /// The bad ones over groups; empty when these are not known by group.
    pub failed: Vec<u64>,
}

/// Of a share that is counted in parts.
pub(super) fn of_parts<'a>(
    stable: &'a Counts,
    canary: &'a Counts,
    part: impl Fn(&'a Counts) -> Part<'a>,
) -> Effects {
    let side = |counts: &'a Counts| {
        let Part { total, parts: [a, b, c], failed } = part(counts);
        of_shares(total, &sum(&sum(a, b), c), &failed)
    };
    of_both(&side(stable), &side(canary))
}

pub(super) fn of_checks(stable: &Counts, canary: &Counts) -> Effects {
    let side = |c: &Counts| {
        of_shares((c.checked, c.check_failures), &c.groups.checked, &c.groups.check_failures)
    };
    of_both(&side(stable), &side(canary))
}

/// Of costs, or of what is left of them at equal inputs.
pub(super) fn of_cost(stable: &Counts, canary: &Counts, adjusted: Option<&Adjusted>) -> Effects {
    let side = |c: &Counts| {
        let Some(adjusted) = adjusted else {
            return of_means(&c.cost, &c.groups.costs, &c.groups.cost);
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
        let sums: Vec<f64> =
            c.groups.cost.iter().zip(explained).map(|(cost, part)| cost - part).collect();
        of_means(&left, &c.groups.costs, &sums)
    };
    of_both(&side(stable), &side(canary))
}

pub(super) fn of_score(name: &str, stable: &Counts, canary: &Counts) -> Effects {
    let side = |c: &Counts| {
        let grouped = c.groups.scores.get(name).cloned().unwrap_or_default();
        let all = c.scores.get(name).copied().unwrap_or_default();
        of_means(&all, &grouped.counts, &grouped.sums)
    };
    of_both(&side(stable), &side(canary))
}

/// Of the share that is slower than bucket `last`. Waits are counted by groups in intervals
/// of four buckets: a threshold inside an interval is moved to its lower and to its upper end,
/// and the larger effect counts. Requests that are still open are in no group.
pub(super) fn of_waits([stable, canary]: [(&BTreeMap<u8, Vec<u64>>, f64); 2], last: u8) -> Effects {
    let slow = last.saturating_add(1);
    let below = coarse(slow);
    let above = if coarse(last) == below { below.saturating_add(1) } else { below };
    let side = |(waits, all): (&BTreeMap<u8, Vec<u64>>, f64)| {
        let from = |from: u8| {
            let lists = waits.range(from..).map(|(_, list)| list);
            lists.fold(vec![], |total: Vec<u64>, list| sum(&total, list))
        };
        let counts = from(0);
        let n: f64 = counts.iter().map(|n| *n as f64).sum();
        let beyond = |bound: u8| {
            let slow = from(bound);
            let p = slow.iter().map(|n| *n as f64).sum::<f64>() / n.max(1.0);
            // What all or none are does not tell how alike they are.
            let varies = p > 0.0 && p < 1.0;
            let telling = slow.iter().filter(|n| **n > 0 && varies).count();
            let grouped = Grouped { counts: &counts, sums: Sums::Counts(&slow) };
            Side::new(grouped, p * (1.0 - p), telling, all as u64)
        };
        beyond(below).or_more(beyond(above))
    };
    of_both(&side(stable), &side(canary))
}

/// Of copies of requests: their users' numbers of requests.
pub(super) fn of_pairs(canary: &Counts) -> Effect {
    Effect { factor: dispersion(&canary.groups.requests), ..Effect::NONE }
}

/// Of the split between the variants: users and not requests are drawn. The estimate from
/// 32 groups is uncertain, and one that is too small at one look would be enough for a
/// false alarm: so its upper limit counts (31 over the 5 % quantile of chi-square).
pub(in crate::analysis) fn of_split(stable: &Groups, canary: &Groups, share: f64) -> f64 {
    let counts = sum(&stable.requests, &canary.requests);
    let grouped = Grouped { counts: &counts, sums: Sums::Counts(&canary.requests) };
    let measured = design_effect(grouped, share * (1.0 - share)).unwrap_or(1.0);
    let effect = beyond_noise(measured, &counts).max(dispersion(&counts));
    if counts.is_empty() { 1.0 } else { 1.6 * effect }
}

fn of_shares((n, bad): (u64, u64), counts: &[u64], failed: &[u64]) -> Side {
    let p = bad.min(n) as f64 / n.max(1) as f64;
    let telling = failed.iter().filter(|f| **f > 0).count();
    Side::new(Grouped { counts, sums: Sums::Counts(failed) }, p * (1.0 - p), telling, n)
}

fn of_means(moments: &Moments, counts: &[u64], sums: &[f64]) -> Side {
    let n = moments.count.max(1) as f64;
    let variance = (moments.squares / n - (moments.sum / n).powi(2)).max(0.0);
    // Every value tells, once there are some in each group.
    let telling = counts.iter().filter(|c| **c >= 3).count();
    Side::new(Grouped { counts, sums: Sums::Values(sums) }, variance, telling, moments.count)
}

/// Position by position; the shorter list is filled up with zeros.
fn sum(a: &[u64], b: &[u64]) -> Vec<u64> {
    let at = |list: &[u64], i: usize| list.get(i).copied().unwrap_or_default();
    (0..a.len().max(b.len())).map(|i| at(a, i).saturating_add(at(b, i))).collect()
}
