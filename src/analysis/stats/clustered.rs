//! How much less the requests of few users tell than those of many: the design effect.
//!
//! Requests of one sticky key are alike. Keys are hashed into groups, so the sums of
//! different groups are independent whatever happens within; the variance between
//! groups, over the variance that independent requests would have, is the design effect
//! (random groups: Wolter, Introduction to Variance Estimation, 2007, chapter 2). It is
//! known as well as there are groups with many requests: [`freedom`].

/// Fewer observations a group than this say nothing about it.
const PER_GROUP: f64 = 3.0;
/// How often the correction of an effect is repeated; the last time changes little.
const REPEATED: usize = 3;

/// Sums of one quantity over groups of keys: how many, and their sum. Both may be weighted, each
/// observation by the same in both, as long as the weights' squares sum up to as much as the
/// weights.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<'a> {
    /// Observations of each group.
    pub counts: &'a [f64],
    /// Their sum.
    pub sums: &'a [f64],
}

impl Grouped<'_> {
    fn sum(&self, i: usize) -> f64 {
        self.sums.get(i).copied().unwrap_or_default()
    }
}

/// The design effect if all requests of a user were alike, from the numbers of requests
/// alone: how much more they vary over the groups than those of independent requests.
/// It needs no failure to be seen, and no real effect is larger. 1 when independent
/// requests vary as much in one of twenty cases.
pub fn dispersion(counts: &[f64]) -> f64 {
    if is_few(counts) { 1.0 } else { dispersion_of_few(counts) }
}

/// Whether these are so few requests that they say little of how uneven they are.
pub fn is_few(counts: &[f64]) -> bool {
    counts.iter().sum::<f64>() < 2.0 * counts.len() as f64
}

/// As [`dispersion`], of any number of requests: of few only what is very uneven shows.
pub fn dispersion_of_few(counts: &[f64]) -> f64 {
    let (n, groups) = (counts.iter().sum::<f64>(), counts.len() as f64);
    if groups < 8.0 || n < 2.0 {
        return 1.0;
    }
    let mean = n / groups;
    let spread = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>();
    let effect = spread / mean / (groups - 1.0);
    if effect > noise(groups) { effect } else { 1.0 }
}

/// What independent requests reach in one of twenty cases: the 95 % quantile of chi-square
/// over its degrees of freedom, by Wilson and Hilferty (PNAS 17, 1931).
fn noise(groups: f64) -> f64 {
    let part = 2.0 / (9.0 * (groups - 1.0));
    (1.0 - part + 1.645 * part.sqrt()).powi(3)
}

/// The degrees of freedom of the variance between groups with these numbers of requests, when
/// the design effect is `effect`. They are few when few groups have most of the requests,
/// and fewer when requests of a group are more alike. At least 1.
///
/// The degrees of freedom of Bell and McCaffrey (Survey Methodology 28, 2002) for a mean, with
/// the random-effects model of Imbens and Kolesár (Review of Economics and Statistics 98, 2016):
/// the sum of a group with n requests varies in proportion to n + r n², with the r that
/// gives `effect`.
pub fn freedom(counts: &[f64], effect: f64) -> f64 {
    let n: f64 = counts.iter().sum();
    let parts: Vec<f64> = counts.iter().map(|c| c / n.max(1.0)).collect();
    let squares: f64 = parts.iter().map(|h| h * h).sum();
    let alike = (effect.max(1.0) - 1.0) / squares;
    let varies = |h: f64| h + alike * h * h;
    let all: f64 = parts.iter().map(|h| varies(*h)).sum();
    let own: f64 = parts.iter().map(|h| varies(*h).powi(2)).sum();
    // The mean takes one of them: exact for groups of the same size.
    let freedom = all * all / own - 1.0;
    if freedom.is_finite() { freedom.max(1.0) } else { 1.0 }
}

/// The design effect as it is estimated: by how much the variance of the mean is larger than that
/// of independent observations with `variance` each; also below 1. None with too little
/// to estimate it from.
///
/// A group's deviation is corrected for its own part in the mean: without that, groups with
/// most of the requests seem to vary less than they do. The correction makes the estimate
/// unbiased under a working model (Bell and McCaffrey, Survey Methodology 28, 2002), which
/// here is the one of [`freedom`], with the effect that was estimated: found by repetition,
/// beginning with independent requests.
pub fn design_effect(grouped: Grouped<'_>, variance: f64) -> Option<f64> {
    let n: f64 = grouped.counts.iter().sum();
    if !tells(grouped.counts) || variance.is_nan() || variance <= 0.0 {
        return None;
    }
    let mean = (0..grouped.counts.len()).map(|i| grouped.sum(i)).sum::<f64>() / n;
    // Of each group: its part of the requests, and its squared deviation.
    let squared = |i: usize| (grouped.sum(i) - mean * grouped.counts[i]).powi(2);
    let part = |i: usize| grouped.counts[i] / n;
    let each: Vec<[f64; 2]> = (0..grouped.counts.len())
        .map(|i| [part(i), squared(i)])
        .filter(|[h, _]| *h > 0.0)
        .collect();
    let squares: f64 = each.iter().map(|[h, _]| h * h).sum();
    let estimate = |effect: f64| {
        let alike = (effect.max(1.0) - 1.0) / squares;
        let varies = |h: f64| h + alike * h * h;
        let all: f64 = each.iter().map(|[h, _]| varies(*h)).sum();
        let between = each.iter().map(|[h, squared]| {
            let own = varies(*h);
            squared * own / ((1.0 - h).powi(2) * own + h * h * (all - own))
        });
        between.sum::<f64>() / (n * variance)
    };
    let effect = (0..REPEATED).fold(estimate(1.0), |effect, _| estimate(effect));
    effect.is_finite().then_some(effect)
}

/// The same of sums that are deviations from a mean that was not estimated from them: no group has
/// a part in it, so none is corrected for that.
pub fn design_effect_around(grouped: Grouped<'_>, variance: f64) -> Option<f64> {
    let n: f64 = grouped.counts.iter().sum();
    let squares: f64 = (0..grouped.counts.len()).map(|i| grouped.sum(i).powi(2)).sum();
    let effect = squares / (n * variance);
    (tells(grouped.counts) && variance > 0.0 && effect.is_finite()).then_some(effect)
}

/// Whether there are enough groups with enough observations.
fn tells(counts: &[f64]) -> bool {
    let groups = counts.iter().filter(|c| **c > 0.0).count() as f64;
    groups >= 8.0 && counts.iter().sum::<f64>() >= PER_GROUP * groups
}

/// The effect, or 1 when it may be noise: when independent observations in as many groups
/// reach it in one of twenty cases.
pub fn beyond_noise(effect: f64, counts: &[f64]) -> f64 {
    let groups = counts.iter().filter(|c| **c > 0.0).count() as f64;
    if effect > noise(groups.max(2.0)) { effect } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Users of `turns` requests each, all good or all bad.
    fn effect_of(turns: u64, users: u64, seed: u64) -> f64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut counts, mut bad) = (vec![0.0; 32], vec![0.0; 32]);
        for _ in 0..users {
            let group = rng.random_range(0..32);
            counts[group] += turns as f64;
            bad[group] += if rng.random::<f64>() < 0.1 { turns as f64 } else { 0.0 };
        }
        let p = bad.iter().sum::<f64>() / (turns * users) as f64;
        let grouped = Grouped { counts: &counts, sums: &bad };
        design_effect(grouped, p * (1.0 - p)).unwrap()
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
            let mut counts = vec![0.0; 32];
            (0..2_000).for_each(|_| counts[rng.random_range(0..32)] += turns as f64);
            dispersion(&counts)
        };
        let mut mean = |turns| (0..50).map(|_| spread(turns)).sum::<f64>() / 50.0;
        let (ten, one) = (mean(10), mean(1));
        assert!((8.0..12.0).contains(&ten) && one < 1.1, "{ten} {one}");
    }

    #[test]
    fn independent_requests_have_an_effect_near_one_also_in_uneven_groups() {
        let mut rng = StdRng::seed_from_u64(3);
        let counts: Vec<f64> = (1..=32_u64).map(|i| (3 + 4_000 / (i * i)) as f64).collect();
        let mut effect = || {
            let bad: Vec<f64> = counts
                .iter()
                .map(|n| (0..*n as u64).filter(|_| rng.random::<f64>() < 0.2).count() as f64)
                .collect();
            design_effect(Grouped { counts: &counts, sums: &bad }, 0.16).unwrap()
        };
        let mean = (0..2_000).map(|_| effect()).sum::<f64>() / 2_000.0;
        // The largest group has three of five requests: what is taken for an effect by chance
        // raises the correction.
        assert!((1.0..1.4).contains(&mean), "{mean}");
        let larger = (0..400).filter(|s| beyond_noise(effect_of(1, 2_000, *s), &[9.0; 32]) > 1.0);
        assert!(larger.count() < 45);
    }

    #[test]
    fn busy_users_do_not_seem_less_alike_than_they_are() {
        let mut rng = StdRng::seed_from_u64(4);
        let counts: Vec<f64> = (1..=32_u64).map(|i| (3 + 400 / i) as f64).collect();
        let n: f64 = counts.iter().sum();
        let truth = counts.iter().map(|c| c * c).sum::<f64>() / n;
        let mut effect = || {
            // All requests of a group have the same value, of variance 1.
            let values = counts.iter().map(|c| c * (rng.random::<f64>() - 0.5) * 12.0_f64.sqrt());
            let sums: Vec<f64> = values.collect();
            design_effect(Grouped { counts: &counts, sums: &sums }, 1.0).unwrap()
        };
        let mean = (0..2_000).map(|_| effect()).sum::<f64>() / 2_000.0;
        assert!((0.95..1.1).contains(&(mean / truth)), "{mean} of {truth}");
    }

    #[test]
    fn one_busy_group_leaves_few_degrees_of_freedom() {
        for effect in [1.0, 20.0] {
            assert!((freedom(&[100.0; 32], effect) - 31.0).abs() < 1e-9);
        }
        let mut counts = [10.0; 32];
        counts[0] = 100.0;
        let of = |effect| freedom(&counts, effect);
        assert!(of(1.0) > 8.0 && of(3.0) < 0.5 * of(1.0) && of(100.0) < 1.5);
        assert_eq!(
            (freedom(&[], 1.0), freedom(&[5.0], 1.0), freedom(&[0.0, 5.0, 0.0], 2.0)),
            (1.0, 1.0, 1.0)
        );
    }

    #[test]
    fn little_or_odd_data_tells_no_effect() {
        let of = |counts: &[f64], sums: &[f64], v| design_effect(Grouped { counts, sums }, v);
        assert_eq!(of(&[], &[], 1.0), None);
        assert_eq!(of(&[5.0; 32], &[f64::NAN; 32], 1.0), None);
        assert_eq!(of(&[5.0; 32], &[1.0; 3], 0.0), None);
    }
}
