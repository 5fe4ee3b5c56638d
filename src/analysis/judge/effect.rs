//! By how much less the requests of few users tell than those of many, measured on both
//! sides together: they have the same kind of users, and the rare failures of one side
//! alone often say nothing. Latencies are taken for independent given their variant,
//! because no gateway knows the threshold.

use crate::{
    analysis::stats::clustered::{Grouped, Sums, design_effect},
    api::prompt_release::{Counts, Groups, Sums as Moments},
};

pub(in crate::analysis) fn of_errors(stable: &Counts, canary: &Counts) -> f64 {
    let (n, bad) = (both(stable, canary, |c| c.requests), both(stable, canary, |c| c.errors));
    of_shares(stable, canary, (n, bad), |g| (&g.requests, &g.errors))
}

pub(in crate::analysis) fn of_checks(stable: &Counts, canary: &Counts) -> f64 {
    let n = both(stable, canary, |c| c.checked);
    let bad = both(stable, canary, |c| c.check_failures);
    of_shares(stable, canary, (n, bad), |g| (&g.checked, &g.check_failures))
}

pub(in crate::analysis) fn of_cost(stable: &Counts, canary: &Counts) -> f64 {
    let moments = [Some(&stable.cost), Some(&canary.cost)];
    let counts = sum(&stable.groups.costs, &canary.groups.costs);
    let sums = sum(&stable.groups.cost, &canary.groups.cost);
    of_means(moments, &counts, &sums)
}

pub(in crate::analysis) fn of_score(name: &str, stable: &Counts, canary: &Counts) -> f64 {
    let moments = [stable.scores.get(name), canary.scores.get(name)];
    let of = |c: &Counts| c.groups.scores.get(name).cloned().unwrap_or_default();
    let (s, c) = (of(stable), of(canary));
    of_means(moments, &sum(&s.counts, &c.counts), &sum(&s.sums, &c.sums))
}

/// Of the split between the variants: users and not requests are drawn.
pub(in crate::analysis) fn of_split(stable: &Counts, canary: &Counts, share: f64) -> f64 {
    let counts = sum(&stable.groups.requests, &canary.groups.requests);
    let grouped = Grouped { counts: &counts, sums: Sums::Counts(&canary.groups.requests) };
    design_effect(grouped, share * (1.0 - share))
}

fn of_shares(
    stable: &Counts,
    canary: &Counts,
    (n, bad): (u64, u64),
    lists: impl Fn(&Groups) -> (&Vec<u64>, &Vec<u64>),
) -> f64 {
    let (s, c) = (lists(&stable.groups), lists(&canary.groups));
    let (counts, failed) = (sum(s.0, c.0), sum(s.1, c.1));
    let p = bad.min(n) as f64 / n.max(1) as f64;
    let grouped = Grouped { counts: &counts, sums: Sums::Counts(&failed) };
    diluted(grouped, p * (1.0 - p), n)
}

fn of_means(moments: [Option<&Moments>; 2], counts: &[u64], sums: &[f64]) -> f64 {
    let total = |of: fn(&Moments) -> f64| moments.iter().flatten().map(|m| of(m)).sum::<f64>();
    let n = total(|m| m.count as f64).max(1.0);
    let variance = (total(|m| m.squares) / n - (total(|m| m.sum) / n).powi(2)).max(0.0);
    diluted(Grouped { counts, sums: Sums::Values(sums) }, variance, n as u64)
}

/// Requests without a sticky key are independent.
fn diluted(grouped: Grouped<'_>, variance: f64, all: u64) -> f64 {
    let effect = design_effect(grouped, variance);
    let with_key = grouped.counts.iter().fold(0_u64, |sum, n| sum.saturating_add(*n)) as f64;
    1.0 + (effect - 1.0) * (with_key / all.max(1) as f64).min(1.0)
}

fn both(stable: &Counts, canary: &Counts, of: impl Fn(&Counts) -> u64) -> u64 {
    of(stable).saturating_add(of(canary))
}

/// Position by position; the shorter list is filled up with zeros.
fn sum<T: Copy + Default + Saturating>(a: &[T], b: &[T]) -> Vec<T> {
    let at = |list: &[T], i: usize| list.get(i).copied().unwrap_or_default();
    (0..a.len().max(b.len())).map(|i| at(a, i).plus(at(b, i))).collect()
}

/// Adds without overflow.
trait Saturating {
    fn plus(self, other: Self) -> Self;
}

impl Saturating for u64 {
    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl Saturating for f64 {
    fn plus(self, other: Self) -> Self {
        self + other
    }
}
