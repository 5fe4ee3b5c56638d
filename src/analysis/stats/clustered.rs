//! How much less the requests of few users tell than those of many: the design effect.
//!
//! Requests of one sticky key are alike. Keys are hashed into groups, so the sums of
//! different groups are independent whatever happens within; the variance between
//! groups, over the variance that independent requests would have, is the design effect
//! (random groups: Wolter, Introduction to Variance Estimation, 2007, chapter 2).

/// Fewer observations a group than this say nothing about it.
const PER_GROUP: f64 = 3.0;

/// Sums of one quantity over groups of keys: how many, and their sum.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<'a> {
    /// Observations of each group.
    pub counts: &'a [u64],
    /// Their sum.
    pub sums: Sums<'a>,
}

/// Sums of counts or of values.
#[derive(Clone, Copy, Debug)]
pub enum Sums<'a> {
    /// How many were bad.
    Counts(&'a [u64]),
    /// The values' sum.
    Values(&'a [f64]),
}

impl Sums<'_> {
    fn at(&self, i: usize) -> f64 {
        match self {
            Self::Counts(list) => list.get(i).copied().unwrap_or_default() as f64,
            Self::Values(list) => list.get(i).copied().unwrap_or_default(),
        }
    }
}

/// The design effect if all requests of a user were alike, from the numbers of requests
/// alone: how much more they vary over the groups than those of independent requests.
/// It needs no failure to be seen, and no real effect is larger. 1 when independent
/// requests vary as much in one of twenty cases.
pub fn dispersion(counts: &[u64]) -> f64 {
    let n: f64 = counts.iter().map(|c| *c as f64).sum();
    let groups = counts.len() as f64;
    if groups < 8.0 || n < 2.0 * groups {
        return 1.0;
    }
    let mean = n / groups;
    let spread = counts.iter().map(|c| (*c as f64 - mean).powi(2)).sum::<f64>();
    let effect = spread / mean / (groups - 1.0);
    if effect > noise(groups) { effect } else { 1.0 }
}

/// What independent requests reach in one of twenty cases: the 95 % quantile of chi-square
/// over its degrees of freedom, by Wilson and Hilferty (PNAS 17, 1931).
fn noise(groups: f64) -> f64 {
    let part = 2.0 / (9.0 * (groups - 1.0));
    (1.0 - part + 1.645 * part.sqrt()).powi(3)
}

/// The design effect: by how much the variance of the mean is larger than that of
/// independent observations with `variance` each. At least 1. Noise is not taken for an
/// effect: one that independent observations reach in one of twenty cases counts as none.
pub fn design_effect(grouped: Grouped<'_>, variance: f64) -> f64 {
    let n: f64 = grouped.counts.iter().map(|c| *c as f64).sum();
    let groups = grouped.counts.iter().filter(|c| **c > 0).count() as f64;
    if groups < 8.0 || n < PER_GROUP * groups || variance.is_nan() || variance <= 0.0 {
        return 1.0;
    }
    let mean = (0..grouped.counts.len()).map(|i| grouped.sums.at(i)).sum::<f64>() / n;
    // The linearised variance of a ratio estimator over independent groups.
    let between: f64 = (0..grouped.counts.len())
        .map(|i| (grouped.sums.at(i) - mean * grouped.counts[i] as f64).powi(2))
        .sum();
    let effect = between / (n * variance) * groups / (groups - 1.0);
    if effect.is_finite() && effect > noise(groups) { effect } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Users of `turns` requests each, all good or all bad.
    fn effect_of(turns: u64, users: u64, seed: u64) -> f64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut counts, mut bad) = (vec![0; 32], vec![0; 32]);
        for _ in 0..users {
            let group = rng.random_range(0..32);
            counts[group] += turns;
            bad[group] += turns * u64::from(rng.random::<f64>() < 0.1);
        }
        let p = bad.iter().sum::<u64>() as f64 / (turns * users) as f64;
        design_effect(Grouped { counts: &counts, sums: Sums::Counts(&bad) }, p * (1.0 - p))
    }

    #[test]
    fn ten_alike_turns_tell_as_much_as_one() {
        let mean = (0..50).map(|s| effect_of(10, 2_000, s)).sum::<f64>() / 50.0;
        assert!((8.5..11.5).contains(&mean), "{mean}");
    }

    #[test]
    fn the_number_of_turns_shows_in_the_spread_of_requests() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut spread = |turns: u64| {
            let mut counts = vec![0; 32];
            (0..2_000).for_each(|_| counts[rng.random_range(0..32)] += turns);
            dispersion(&counts)
        };
        let mut mean = |turns| (0..50).map(|_| spread(turns)).sum::<f64>() / 50.0;
        let (ten, one) = (mean(10), mean(1));
        assert!((8.0..12.0).contains(&ten) && one < 1.1, "{ten} {one}");
    }

    #[test]
    fn independent_requests_have_no_effect_in_nineteen_of_twenty_cases() {
        let larger = (0..400).filter(|s| effect_of(1, 2_000, *s) > 1.0).count();
        assert!(larger < 45, "{larger} of 400");
    }

    #[test]
    fn little_or_odd_data_has_no_effect() {
        let of = |counts: &[u64], sums: &[f64], v| {
            design_effect(Grouped { counts, sums: Sums::Values(sums) }, v)
        };
        assert_eq!(of(&[], &[], 1.0), 1.0);
        assert_eq!(of(&[5; 32], &[f64::NAN; 32], 1.0), 1.0);
        assert_eq!(of(&[5; 32], &[1.0; 3], 0.0), 1.0);
    }
}
