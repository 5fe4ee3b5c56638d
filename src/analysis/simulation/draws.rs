//! Draws of whole batches of requests, and how they are counted.

use rand::{Rng, RngExt};
use rand_distr::{Binomial, Distribution, StandardNormal};

use crate::{
    api::prompt_release::{Counts, PairTable, Sums},
    rollout::assignment::GROUPS,
};

/// Adds so many requests of one cost and, if it is told, one input.
pub(super) fn add_cost(counts: &mut Counts, usd: f64, input: Option<f64>, n: u64) {
    add_many(&mut counts.cost, usd, n);
    for input in (0..n).filter_map(|_| input) {
        counts.cost_by_input.add(input, usd);
    }
}

/// How many of `n` requests go wrong, when the requests of a user all do or none does.
pub(super) fn alike(
    rng: &mut impl Rng,
    turns: f64,
    n: u64,
    p: f64,
    counts: &mut Vec<u64>,
    failed: &mut Vec<u64>,
) -> u64 {
    if turns <= 1.0 {
        return binomial(rng, n, p);
    }
    for list in [&mut *counts, &mut *failed] {
        list.resize(GROUPS, 0);
    }
    let mut all = 0;
    users(rng, turns, n, |rng, group, requests| {
        let bad = if rng.random::<f64>() < p { requests } else { 0 };
        counts[group] += requests;
        failed[group] += bad;
        all += bad;
    });
    all
}

/// Users of `turns` requests each, on average over requests: what is drawn for one counts
/// for all that one's requests, so that `turns` is the design effect.
pub(super) fn users<R: Rng>(
    rng: &mut R,
    turns: f64,
    n: u64,
    mut each: impl FnMut(&mut R, usize, u64),
) {
    let (few, part) = (turns.floor().max(1.0), turns.fract());
    // The share of users who send one request more, so that `part` of requests are theirs.
    let more = (part / (few + 1.0)) / (part / (few + 1.0) + (1.0 - part) / few);
    let mut left = n;
    while left > 0 {
        let one_more = if rng.random::<f64>() < more { 1 } else { 0 };
        let requests = (few as u64 + one_more).min(left);
        left -= requests;
        let group = rng.random_range(0..GROUPS);
        each(rng, group, requests);
    }
}

/// A standard normal deviate, of whose variance the part `alike` is the user's own.
pub(super) fn mixed(rng: &mut impl Rng, own: f64, alike: f64) -> f64 {
    let other: f64 = rng.sample(StandardNormal);
    own * alike.sqrt() + other * (1.0 - alike).sqrt()
}

/// Adds to one of the groups.
pub(super) fn add_to<T: Copy + Default + std::ops::AddAssign>(
    list: &mut Vec<T>,
    group: usize,
    more: T,
) {
    list.resize(GROUPS, T::default());
    list[group] += more;
}

pub(super) fn table(
    rng: &mut impl Rng,
    table: &mut PairTable,
    pairs: u64,
    stable: f64,
    canary: f64,
) {
    let bad = binomial(rng, pairs, stable);
    let both = binomial(rng, bad, canary);
    let alone = binomial(rng, pairs - bad, canary);
    table.both += both;
    table.stable_only += bad - both;
    table.canary_only += alone;
    table.neither += pairs - bad - alone;
}

/// Spreads `n` over cells with these probabilities: a multinomial draw.
pub(super) fn spread(rng: &mut impl Rng, n: u64, cells: &[f64], mut add: impl FnMut(usize, u64)) {
    let (mut left, mut rest) = (n, 1.0);
    for (i, p) in cells.iter().enumerate() {
        if left == 0 || rest <= 0.0 {
            return;
        }
        let last = i + 1 == cells.len();
        let drawn = if last { left } else { binomial(rng, left, (p / rest).min(1.0)) };
        if drawn > 0 {
            add(i, drawn);
        }
        (left, rest) = (left - drawn, rest - p);
    }
}

pub(super) fn add(sums: &mut Sums, value: f64) {
    add_many(sums, value, 1);
}

pub(super) fn add_many(sums: &mut Sums, value: f64, n: u64) {
    let weight = n as f64;
    sums.count += n;
    sums.sum += weight * value;
    sums.squares += weight * value.powi(2);
    sums.cubes += weight * value.powi(3);
}

pub(super) fn merge(
    total: &mut std::collections::BTreeMap<u8, u64>,
    part: &std::collections::BTreeMap<u8, u64>,
) {
    for (bucket, n) in part {
        *total.entry(*bucket).or_default() += n;
    }
}

pub(super) fn binomial(rng: &mut impl Rng, n: u64, p: f64) -> u64 {
    match Binomial::new(n, p.clamp(0.0, 1.0)) {
        Ok(drawn) if n > 0 && p > 0.0 => drawn.sample(rng).min(n),
        _ => 0,
    }
}
