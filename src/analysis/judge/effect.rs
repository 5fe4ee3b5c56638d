//! By how much less the requests of few users tell than those of many, measured on the
//! side with more requests: both sides have the same kind of users. Latencies are
//! taken for independent given their variant, because no gateway knows the threshold.

use crate::{
    analysis::stats::clustered::{Grouped, Sums, design_effect},
    api::prompt_release::Counts,
};

pub(in crate::analysis) fn of_errors(stable: &Counts, canary: &Counts) -> f64 {
    let of = |c: &Counts| {
        let counts = &c.groups.requests;
        let grouped = Grouped { counts, sums: Sums::Counts(&c.groups.errors) };
        diluted(grouped, bernoulli(c.requests, c.errors), c.requests)
    };
    of(larger(stable, canary, |c| c.requests))
}

pub(in crate::analysis) fn of_checks(stable: &Counts, canary: &Counts) -> f64 {
    let of = |c: &Counts| {
        let counts = &c.groups.checked;
        let grouped = Grouped { counts, sums: Sums::Counts(&c.groups.check_failures) };
        diluted(grouped, bernoulli(c.checked, c.check_failures), c.checked)
    };
    of(larger(stable, canary, |c| c.checked))
}

pub(in crate::analysis) fn of_cost(stable: &Counts, canary: &Counts) -> f64 {
    let of = |c: &Counts| {
        let grouped = Grouped { counts: &c.groups.costs, sums: Sums::Values(&c.groups.cost) };
        diluted(grouped, variance(&c.cost), c.cost.count)
    };
    of(larger(stable, canary, |c| c.cost.count))
}

pub(in crate::analysis) fn of_score(name: &str, stable: &Counts, canary: &Counts) -> f64 {
    let count = |c: &Counts| c.scores.get(name).map_or(0, |s| s.count);
    let side = larger(stable, canary, count);
    let (Some(all), Some(grouped)) = (side.scores.get(name), side.groups.scores.get(name)) else {
        return 1.0;
    };
    let grouped = Grouped { counts: &grouped.counts, sums: Sums::Values(&grouped.sums) };
    diluted(grouped, variance(all), all.count)
}

/// Of the split between the variants: users and not requests are drawn.
pub(in crate::analysis) fn of_split(stable: &Counts, canary: &Counts, share: f64) -> f64 {
    let (s, c) = (&stable.groups.requests, &canary.groups.requests);
    let at = |list: &[u64], i: usize| list.get(i).copied().unwrap_or_default();
    let groups = s.len().max(c.len());
    let counts: Vec<u64> = (0..groups).map(|i| at(s, i).saturating_add(at(c, i))).collect();
    let grouped = Grouped { counts: &counts, sums: Sums::Counts(c) };
    design_effect(grouped, share * (1.0 - share))
}

fn larger<'a>(a: &'a Counts, b: &'a Counts, count: impl Fn(&Counts) -> u64) -> &'a Counts {
    if count(b) > count(a) { b } else { a }
}

/// Requests without a sticky key are independent.
fn diluted(grouped: Grouped<'_>, variance: f64, all: u64) -> f64 {
    let effect = design_effect(grouped, variance);
    let with_key = grouped.counts.iter().fold(0_u64, |sum, n| sum.saturating_add(*n)) as f64;
    1.0 + (effect - 1.0) * (with_key / all.max(1) as f64).min(1.0)
}

fn bernoulli(n: u64, bad: u64) -> f64 {
    let p = bad.min(n) as f64 / n.max(1) as f64;
    p * (1.0 - p)
}

fn variance(sums: &crate::api::prompt_release::Sums) -> f64 {
    let n = sums.count.max(1) as f64;
    (sums.squares / n - (sums.sum / n).powi(2)).max(0.0)
}
