//! Test statistics for "the canary is worse than stable by `delta`".
//!
//! Each is a function z(delta) that falls as delta grows: large and positive when the
//! data say that the difference is larger than delta, large and negative when smaller.

/// A share: `bad` of `n`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// How many were measured.
    pub n: f64,
    /// How many of them were bad.
    pub bad: f64,
}

impl Share {
    /// bad / n.
    pub fn value(self) -> f64 {
        self.bad / self.n
    }

    /// The lower end of Wilson's score interval at `z` standard errors (JASA 22, 1927).
    pub fn wilson_lower(self, z: f64) -> f64 {
        let (n, p) = (self.n, self.value());
        let centre = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        (centre - half) / (1.0 + z * z / n)
    }
}

/// A mean with the variance of one observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// How many were measured.
    pub n: f64,
    /// Their mean.
    pub mean: f64,
    /// Their sample variance.
    pub variance: f64,
}

impl Mean {
    /// From the count, the sum and the sum of squares; none below two observations
    /// or when the sums are not numbers.
    pub fn from_sums(n: u64, sum: f64, squares: f64) -> Option<Self> {
        if n < 2 || !sum.is_finite() || !squares.is_finite() {
            return None;
        }
        let count = n as f64;
        let mean = sum / count;
        let variance = ((squares - sum * mean) / (count - 1.0)).max(0.0);
        Some(Self { n: count, mean, variance })
    }

    /// The standard error of the mean.
    pub fn standard_error(self) -> f64 {
        (self.variance / self.n).sqrt()
    }
}

/// z for canary share − stable share = `delta`, with the variance at the restricted
/// maximum-likelihood estimate: Miettinen and Nurminen, Statistics in Medicine 4
/// (1985), with the closed form of Farrington and Manning, ibid. 9 (1990).
pub fn shares(canary: Share, stable: Share, delta: f64) -> f64 {
    let delta = delta.clamp(-1.0 + 1e-9, 1.0 - 1e-9);
    let (p1, p2) = (canary.value(), stable.value());
    let theta = stable.n / canary.n;
    let a = 1.0 + theta;
    let b = -(1.0 + theta + p1 + theta * p2 + delta * (theta + 2.0));
    let c = delta * delta + delta * (2.0 * p1 + theta + 1.0) + p1 + theta * p2;
    let d = -p1 * delta * (1.0 + delta);
    let v = (b / (3.0 * a)).powi(3) - b * c / (6.0 * a * a) + d / (2.0 * a);
    let root = ((b / (3.0 * a)).powi(2) - c / (3.0 * a)).max(0.0).sqrt();
    let u = if v < 0.0 { -root } else { root };
    let ratio = if u == 0.0 { 0.0 } else { (v / u.powi(3)).clamp(-1.0, 1.0) };
    let w = (std::f64::consts::PI + ratio.acos()) / 3.0;
    let q1 = (2.0 * u * w.cos() - b / (3.0 * a)).clamp(0.0, 1.0);
    let q2 = (q1 - delta).clamp(0.0, 1.0);
    let total = canary.n + stable.n;
    let variance =
        (q1 * (1.0 - q1) / canary.n + q2 * (1.0 - q2) / stable.n) * total / (total - 1.0);
    standardise(p1 - p2 - delta, variance)
}

/// z for canary mean − stable mean = `delta` (Welch).
pub fn means(canary: Mean, stable: Mean, delta: f64) -> f64 {
    let variance = canary.variance / canary.n + stable.variance / stable.n;
    standardise(canary.mean - stable.mean - delta, variance)
}

/// z for canary mean = (1 + `delta`) stable mean: a ratio of means by Fieller's
/// linear form, so that nothing is divided by a mean that may be near zero.
pub fn ratio(canary: Mean, stable: Mean, delta: f64) -> f64 {
    let factor = 1.0 + delta;
    let variance = canary.variance / canary.n + factor * factor * stable.variance / stable.n;
    standardise(canary.mean - factor * stable.mean, variance)
}

fn standardise(excess: f64, variance: f64) -> f64 {
    if variance > 0.0 {
        excess / variance.sqrt()
    } else if excess == 0.0 {
        0.0
    } else {
        f64::INFINITY.copysign(excess)
    }
}

/// The delta between `low` and `high` at which the falling function `z` reaches `level`.
pub fn invert(z: impl Fn(f64) -> f64, level: f64, low: f64, high: f64) -> f64 {
    let (mut low, mut high) = (low, high);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if z(middle) > level { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_margin_the_share_statistic_is_the_pooled_test() {
        let (canary, stable) = (Share { n: 200.0, bad: 30.0 }, Share { n: 300.0, bad: 30.0 });
        let pooled = 60.0 / 500.0;
        let variance: f64 = pooled * (1.0 - pooled) * (1.0 / 200.0 + 1.0 / 300.0) * 500.0 / 499.0;
        let expected = (0.15 - 0.1) / variance.sqrt();
        assert!((shares(canary, stable, 0.0) - expected).abs() < 1e-6);
    }

    #[test]
    fn the_restricted_estimate_maximises_the_likelihood() {
        // The z must agree with a brute-force search for the restricted maximum.
        for (x1, n1, x2, n2, delta) in [
            (3.0, 50.0, 1.0, 400.0, 0.02),
            (10.0, 40.0, 2.0, 60.0, 0.1),
            (0.0, 30.0, 0.0, 90.0, 0.05),
        ] {
            let likelihood = |q1: f64| {
                let q2 = q1 - delta;
                let term = |x: f64, p: f64| if x == 0.0 { 0.0 } else { x * p.ln() };
                term(x1, q1) + term(n1 - x1, 1.0 - q1) + term(x2, q2) + term(n2 - x2, 1.0 - q2)
            };
            let best = (0..=1_000_000)
                .map(|i| delta + (1.0 - delta) * f64::from(i) / 1e6)
                .max_by(|a, b| likelihood(*a).total_cmp(&likelihood(*b)))
                .unwrap();
            let variance = (best * (1.0 - best) / n1 + (best - delta) * (1.0 - best + delta) / n2)
                * (n1 + n2)
                / (n1 + n2 - 1.0);
            let expected = (x1 / n1 - x2 / n2 - delta) / variance.sqrt();
            let got = shares(Share { n: n1, bad: x1 }, Share { n: n2, bad: x2 }, delta);
            assert!((got - expected).abs() < 1e-2, "{got} instead of {expected}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_statistic_is_a_number_and_falls_with_delta(
            n1 in 1_u32..5000, n2 in 1_u32..5000, f1 in 0.0..=1.0_f64, f2 in 0.0..=1.0_f64,
            d1 in 0.0..0.5_f64, more in 0.001..0.4_f64,
        ) {
            let share = |n: u32, f: f64| Share { n: n.into(), bad: (f * f64::from(n)).round() };
            let (canary, stable) = (share(n1, f1), share(n2, f2));
            let (a, b) = (shares(canary, stable, d1), shares(canary, stable, d1 + more));
            proptest::prop_assert!(!a.is_nan() && !b.is_nan());
            proptest::prop_assert!(a >= b - 1e-6, "{} < {}", a, b);
        }
    }

    #[test]
    fn sums_that_are_not_numbers_give_no_mean() {
        assert_eq!(Mean::from_sums(10, f64::NAN, 1.0), None);
        assert_eq!(Mean::from_sums(1, 1.0, 1.0), None);
        let mean = Mean::from_sums(4, 10.0, 30.0).unwrap();
        assert!((mean.mean - 2.5).abs() < 1e-12 && (mean.variance - 5.0 / 3.0).abs() < 1e-12);
    }
}
