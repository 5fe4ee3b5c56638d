//! Two means of bounded or skewed values: scores, costs, tokens.
//!
//! Assumes that observations are independent given their variant, or that `clustered`
//! has measured how much they are not. The variance and the skewness come from the data.

use super::difference::standardise;

/// A mean with the second and third central moment of one observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// How many were measured.
    pub n: f64,
    /// Their mean.
    pub mean: f64,
    /// Their sample variance.
    pub variance: f64,
    /// Their third central moment.
    pub third: f64,
    /// The third cumulant of the mean over that of as many values that count alike; 1 where they
    /// do. Of a mean over strata a few values may count for much, which says nothing of how far
    /// the rare ones are.
    pub unequal: f64,
}

impl Mean {
    /// From the count and the sums of the values, their squares and their cubes; none
    /// below two observations or when the sums are not numbers.
    pub fn from_sums(n: u64, sum: f64, squares: f64, cubes: f64) -> Option<Self> {
        if n < 2 || ![sum, squares, cubes].iter().all(|s| s.is_finite()) {
            return None;
        }
        let count = n as f64;
        let mean = sum / count;
        let variance = ((squares - sum * mean) / (count - 1.0)).max(0.0);
        let third = cubes / count - 3.0 * mean * squares / count + 2.0 * mean.powi(3);
        // No n values have a larger skewness than this: beyond it is rounding.
        let most = variance.powf(1.5) * count.sqrt();
        Some(Self { n: count, mean, variance, third: third.clamp(-most, most), unequal: 1.0 })
            .filter(|m| m.mean.is_finite() && m.variance.is_finite() && m.third.is_finite())
    }

    /// The mean of the values with the other sign.
    pub fn negated(self) -> Self {
        Self { mean: -self.mean, third: -self.third, ..self }
    }

    /// How far the rare large values are: third over second moment, at least a standard
    /// deviation.
    fn outlier(self) -> f64 {
        let far = if self.variance > 0.0 { self.third / self.variance } else { 0.0 };
        self.mean + far.max(self.variance.sqrt())
    }

    /// A mean score with one more score at each end of what is possible (Agresti and Coull,
    /// The American Statistician 52, 1998): equal scores so far do not prove that all will be.
    pub fn with_ends(self) -> Self {
        self.with(0.0).with(1.0)
    }

    /// With one more observation `x`.
    pub fn with(self, x: f64) -> Self {
        let (n, d) = (self.n, x - self.mean);
        Self {
            n: n + 1.0,
            mean: self.mean + d / (n + 1.0),
            variance: (self.variance * (n - 1.0).max(0.0) + d * d * n / (n + 1.0)) / n,
            third: (self.third * n + d.powi(3) * n * (n - 1.0) / (n + 1.0).powi(2)
                - 3.0 * d / (n + 1.0) * self.variance * (n - 1.0).max(0.0))
                / (n + 1.0),
            unequal: self.unequal,
        }
    }

    /// The third cumulant of the mean.
    pub(super) fn third_of_mean(self) -> f64 {
        self.unequal * self.third / self.n.powi(2)
    }

    /// What of it counts when each observation tells as much as 1 / `effect` independent ones.
    pub fn deflated(self, effect: f64) -> Self {
        Self { n: self.n / effect, ..self }
    }
}

/// Whose luck would decide: a few requests without an outlier look cheap and sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The canary's: acceptance.
    Canary,
    /// Stable's: harm.
    Stable,
    /// Nobody's: a plain interval.
    Neither,
}

/// z for canary mean − stable mean = `delta`: Welch's statistic with Hall's correction
/// for skewness.
pub fn means(canary: Mean, stable: Mean, delta: f64) -> f64 {
    combined(canary, stable, 1.0, delta)
}

/// z for canary mean = (1 + `delta`) stable mean: a ratio of means by Fieller's
/// linear form, so that nothing is divided by a mean that may be near zero.
///
/// The side whose luck would decide gets one more request at the typical outlier of
/// either side, and of the plain and the corrected statistic the more careful one counts.
/// No test of means without a bound controls its error for every distribution (Bahadur
/// and Savage, Annals of Mathematical Statistics 27, 1956); with this one the error holds
/// for lognormal costs up to sigma 1.5 and for a fiftieth of requests that cost twenty
/// times as much, where the plain statistic errs up to twelve times too often.
pub fn ratio(canary: Mean, stable: Mean, delta: f64, doubt: Doubt) -> f64 {
    let factor = (1.0 + delta).max(0.0);
    let (c, s) = (canary.outlier(), stable.outlier());
    match doubt {
        Doubt::Canary => {
            let (plain, careful) = both(canary.with(c.max(factor * s)), stable, factor);
            plain.max(careful)
        }
        Doubt::Stable => {
            let outlier = if factor > 0.0 { s.max(c / factor) } else { s };
            let (plain, careful) = both(canary, stable.with(outlier), factor);
            plain.min(careful)
        }
        Doubt::Neither => combined(canary, stable, factor, 0.0),
    }
}

/// The plain and the corrected statistic.
fn both(canary: Mean, stable: Mean, factor: f64) -> (f64, f64) {
    let (z, skew) = studentised(canary, stable, factor, 0.0);
    (z, corrected(z, skew))
}

/// canary − `factor` stable − `delta`.
fn combined(canary: Mean, stable: Mean, factor: f64, delta: f64) -> f64 {
    let (z, skew) = studentised(canary, stable, factor, delta);
    corrected(z, skew)
}

/// z, and the third cumulant of the difference over its standard error cubed.
fn studentised(canary: Mean, stable: Mean, factor: f64, delta: f64) -> (f64, f64) {
    let variance = canary.variance / canary.n + factor * factor * stable.variance / stable.n;
    let third = canary.third_of_mean() - factor.powi(3) * stable.third_of_mean();
    let z = standardise(canary.mean - factor * stable.mean - delta, variance);
    (z, if variance > 0.0 { third / variance.powf(1.5) } else { 0.0 })
}

/// Hall's monotone transformation of a studentised mean: it takes out the skewness of
/// the first order (Hall, JRSS B 54, 1992; for two samples Zhou and Dinh,
/// Biostatistics 6, 2005). `skew` is the third cumulant of the mean over its standard
/// error cubed. The correction is only trusted for moderate skewness of the mean.
pub fn corrected(z: f64, skew: f64) -> f64 {
    if !z.is_finite() || !skew.is_finite() {
        return z;
    }
    let a = skew.clamp(-1.0, 1.0) / 3.0;
    z + a * z * z + a * a * z.powi(3) / 3.0 + a / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_are_not_numbers_give_no_mean() {
        assert_eq!(Mean::from_sums(10, f64::NAN, 1.0, 1.0), None);
        assert_eq!(Mean::from_sums(1, 1.0, 1.0, 1.0), None);
        let mean = Mean::from_sums(4, 10.0, 30.0, 100.0).unwrap();
        assert!((mean.mean - 2.5).abs() < 1e-12 && (mean.variance - 5.0 / 3.0).abs() < 1e-12);
        assert!(mean.third.abs() < 1e-9, "1, 2, 3, 4 are symmetric: {}", mean.third);
    }

    #[test]
    fn the_transformation_only_grows() {
        for skew in [-2.0, -0.5, 0.0, 0.3, 1.0, 9.0] {
            let values: Vec<f64> =
                (-80..=80).map(|i| corrected(f64::from(i) / 10.0, skew)).collect();
            assert!(values.windows(2).all(|w| w[0] < w[1]), "{skew}");
        }
    }

    #[test]
    fn without_skewness_it_is_welchs_test() {
        // scipy 1.17: stats.ttest_ind_from_stats(10.5, 2, 60, 10, 3, 40, equal_var=False)
        let side = |n, mean, sd: f64| Mean { n, mean, variance: sd * sd, third: 0.0, unequal: 1.0 };
        let z = means(side(60.0, 10.5, 2.0), side(40.0, 10.0, 3.0), 0.0);
        assert!((z - 0.925_820).abs() < 1e-5, "{z}");
    }

    #[test]
    fn one_observation_more_is_what_the_sums_say() {
        let of = |values: &[f64]| {
            let sum = |k: i32| values.iter().map(|v| v.powi(k)).sum();
            Mean::from_sums(values.len() as u64, sum(1), sum(2), sum(3)).unwrap()
        };
        let (got, expected) =
            (of(&[1.0, 2.0, 4.0, 8.0]).with(20.0), of(&[1.0, 2.0, 4.0, 8.0, 20.0]));
        for (g, e) in [
            (got.mean, expected.mean),
            (got.variance, expected.variance),
            (got.third, expected.third),
        ] {
            assert!((g - e).abs() < 1e-9, "{got:?} instead of {expected:?}");
        }
    }

    /// How often 20 to 300 requests of a canary that costs half as much again are accepted
    /// at a margin of 50 %, and rolled back at that margin.
    #[test]
    fn costs_with_heavy_tails_keep_their_errors() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(8);
        let runs = 3_000;
        for (sigma, n, each) in [(0.55, 50, 19), (1.0, 50, 19), (1.5, 100, 19), (1.5, 100, 1)] {
            let (mut accepted, mut failed) = (0, 0);
            for _ in 0..runs {
                let mut draw = |n: u64, factor: f64| {
                    let (mut s, mut q, mut c) = (0.0, 0.0, 0.0);
                    for _ in 0..n {
                        let z = quantile(rng.random::<f64>());
                        let x = factor * f64::exp(sigma * z);
                        (s, q, c) = (s + x, q + x * x, c + x * x * x);
                    }
                    Mean::from_sums(n, s, q, c).unwrap()
                };
                let (canary, stable) = (draw(n, 1.5), draw(n * each, 1.0));
                accepted += u32::from(ratio(canary, stable, 0.5, Doubt::Canary) < -1.645);
                failed += u32::from(ratio(canary, stable, 0.5, Doubt::Stable) > 2.9);
            }
            let share = |k: u32| f64::from(k) / f64::from(runs);
            // 5 % and 0.2 %, with five standard errors.
            assert!(share(accepted) < 0.05 + 0.02, "{} at {sigma}, {n}, 1:{each}", share(accepted));
            assert!(share(failed) < 0.002 + 0.005, "{} at {sigma}, {n}, 1:{each}", share(failed));
        }
    }

    fn quantile(u: f64) -> f64 {
        super::super::normal::upper_quantile(u.clamp(1e-15, 1.0 - 1e-15))
    }

    #[test]
    fn skewed_costs_keep_the_error_in_both_tails() {
        // Exponential costs, 40 canary requests against 200 of stable. Uncorrected,
        // Welch's test errs 2.5 times as often below as above.
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(3);
        let (mut above, mut below, runs) = (0, 0, 20_000);
        let mut draw = |n: u64| {
            let (mut s, mut q, mut c) = (0.0, 0.0, 0.0);
            for _ in 0..n {
                let x: f64 = -(1.0 - rng.random::<f64>()).ln();
                (s, q, c) = (s + x, q + x * x, c + x * x * x);
            }
            Mean::from_sums(n, s, q, c).unwrap()
        };
        for _ in 0..runs {
            let z = ratio(draw(40), draw(200), 0.0, Doubt::Neither);
            above += u32::from(z > 1.645);
            below += u32::from(z < -1.645);
        }
        let share = |k: u32| f64::from(k) / f64::from(runs);
        assert!((0.03..0.065).contains(&share(above)), "{}", share(above));
        assert!((0.03..0.075).contains(&share(below)), "{}", share(below));
    }
}
