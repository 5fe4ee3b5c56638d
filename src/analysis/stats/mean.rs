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
        Some(Self { n: count, mean, variance, third: third.clamp(-most, most) })
            .filter(|m| m.mean.is_finite() && m.variance.is_finite() && m.third.is_finite())
    }

    /// The mean of the values with the other sign.
    pub fn negated(self) -> Self {
        Self { mean: -self.mean, third: -self.third, ..self }
    }

    /// What of it counts when each observation tells as much as 1 / `effect` independent ones.
    pub fn deflated(self, effect: f64) -> Self {
        Self { n: self.n / effect, ..self }
    }
}

/// z for canary mean − stable mean = `delta`: Welch's statistic with Hall's correction
/// for skewness.
pub fn means(canary: Mean, stable: Mean, delta: f64) -> f64 {
    combined(canary, stable, 1.0, delta)
}

/// z for canary mean = (1 + `delta`) stable mean: a ratio of means by Fieller's
/// linear form, so that nothing is divided by a mean that may be near zero.
pub fn ratio(canary: Mean, stable: Mean, delta: f64) -> f64 {
    combined(canary, stable, 1.0 + delta, 0.0)
}

/// canary − `factor` stable − `delta`.
fn combined(canary: Mean, stable: Mean, factor: f64, delta: f64) -> f64 {
    let variance = canary.variance / canary.n + factor * factor * stable.variance / stable.n;
    let third = canary.third / canary.n.powi(2) - factor.powi(3) * stable.third / stable.n.powi(2);
    let z = standardise(canary.mean - factor * stable.mean - delta, variance);
    corrected(z, if variance > 0.0 { third / variance.powf(1.5) } else { 0.0 })
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
        let side = |n, mean, sd: f64| Mean { n, mean, variance: sd * sd, third: 0.0 };
        let z = means(side(60.0, 10.5, 2.0), side(40.0, 10.0, 3.0), 0.0);
        assert!((z - 0.925_820).abs() < 1e-5, "{z}");
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
            let z = ratio(draw(40), draw(200), 0.0);
            above += u32::from(z > 1.645);
            below += u32::from(z < -1.645);
        }
        let share = |k: u32| f64::from(k) / f64::from(runs);
        assert!((0.03..0.065).contains(&share(above)), "{}", share(above));
        assert!((0.03..0.075).contains(&share(below)), "{}", share(below));
    }
}
