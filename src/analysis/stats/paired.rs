//! Both variants answered the same inputs: shadow traffic and evaluation runs.
//!
//! Assumes that inputs are independent. Only pairs whose outcomes differ tell anything
//! about the difference; what makes an input hard for both cancels.

use super::{
    difference::standardise,
    mean::{Mean, corrected},
};

/// Pairs of outcomes: how many inputs were bad for the canary alone, for stable alone,
/// of `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pairs {
    /// All pairs.
    pub n: f64,
    /// Only the canary was bad.
    pub canary_only: f64,
    /// Only stable was bad.
    pub stable_only: f64,
}

impl Pairs {
    /// What of it counts when each pair tells as much as 1 / `effect` independent ones.
    pub fn deflated(self, effect: f64) -> Self {
        Self {
            n: self.n / effect,
            canary_only: self.canary_only / effect,
            stable_only: self.stable_only / effect,
        }
    }

    /// With half a pair more in which only the canary was bad, of one more pair: for
    /// acceptance, so that a few lucky pairs do not decide.
    pub fn doubted(self) -> Self {
        Self { n: self.n + 1.0, canary_only: self.canary_only + 0.5, ..self }
    }

    /// The canary's share of bad less stable's.
    pub fn difference(self) -> f64 {
        (self.canary_only - self.stable_only) / self.n
    }
}

/// The signed root of the likelihood ratio for canary share − stable share = `delta` in
/// pairs. The restricted estimate is that of Tango (Statistics in Medicine 17, 1998),
/// whose score test belongs to the same likelihood; without a margin it tests what
/// McNemar's test does.
pub fn shares(pairs: Pairs, delta: f64) -> f64 {
    let Pairs { n, canary_only: b, stable_only: c } = pairs;
    let delta = delta.clamp(-1.0 + 1e-9, 1.0 - 1e-9);
    // q is the share of inputs that are bad for stable alone; the canary's is q + delta.
    let a2 = 2.0 * n;
    let a1 = -b - c + (2.0 * n - b + c) * delta;
    let a0 = -c * delta * (1.0 - delta);
    let root = (a1 * a1 - 4.0 * a2 * a0).max(0.0).sqrt();
    let low = (-delta).max(0.0);
    let high = ((1.0 - delta) / 2.0).max(low);
    let q = ((root - a1) / (2.0 * a2)).clamp(low, high);
    let rest = n - b - c;
    let term = |x: f64, expected: f64| {
        if x <= 0.0 { 0.0 } else { x * (x / (n * expected.max(1e-300))).ln() }
    };
    let deviance =
        2.0 * (term(b, q + delta) + term(c, q) + term(rest, 1.0 - 2.0 * q - delta)).max(0.0);
    deviance.sqrt().copysign(pairs.difference() - delta)
}

/// z for the mean of the pairs' differences = `delta`, corrected for skewness.
pub fn mean(differences: Mean, delta: f64) -> f64 {
    let variance = differences.variance / differences.n;
    let z = standardise(differences.mean - delta, variance);
    let third = differences.third_of_mean();
    corrected(z, if variance > 0.0 { third / variance.powf(1.5) } else { 0.0 })
}

/// z for the mean of the differences = `delta` times the mean of stable's own values.
/// How the two vary together is not kept, so the worst is assumed: the standard errors
/// add up (Cauchy and Schwarz).
pub fn relative_mean(differences: Mean, stable: Mean, delta: f64) -> f64 {
    let sd = |m: Mean| (m.variance / m.n).sqrt();
    let error = sd(differences) + delta.abs() * sd(stable);
    standardise(differences.mean - delta * stable.mean, error * error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restricted_estimate_maximises_the_likelihood() {
        for (b, c, n, delta) in [
            (9.0, 3.0, 100.0, 0.02),
            (0.0, 0.0, 50.0, 0.05),
            (5.0, 20.0, 60.0, -0.1),
            (50.0, 0.0, 50.0, 0.3),
        ] {
            let pairs = Pairs { n, canary_only: b, stable_only: c };
            let term = |x: f64, p: f64| if x == 0.0 { 0.0 } else { x * p.ln() };
            let likelihood =
                |q: f64| term(b, q + delta) + term(c, q) + term(n - b - c, 1.0 - 2.0 * q - delta);
            let free = term(b, b / n) + term(c, c / n) + term(n - b - c, (n - b - c) / n);
            let (low, high) = (f64::max(0.0, -delta), (1.0 - delta) / 2.0);
            let best = (0..=100_000)
                .map(|i| likelihood(low + (high - low) * f64::from(i) / 1e5))
                .fold(f64::NEG_INFINITY, f64::max);
            let expected = (2.0 * (free - best)).max(0.0).sqrt();
            let got = shares(pairs, delta).abs();
            assert!((got - expected).abs() < 2e-3, "{got} instead of {expected}");
        }
    }

    #[test]
    fn without_a_margin_only_discordant_pairs_count() {
        let few = shares(Pairs { n: 100.0, canary_only: 15.0, stable_only: 5.0 }, 0.0);
        let many = shares(Pairs { n: 10_000.0, canary_only: 15.0, stable_only: 5.0 }, 0.0);
        assert!((few - many).abs() < 1e-9);
        // McNemar's chi-square is (15 - 5)^2 / 20 = 5; the likelihood ratio's is
        // 2 (15 ln 1.5 + 5 ln 0.5) = 5.2325.
        assert!((few * few - 5.232_5).abs() < 1e-3, "{few}");
    }

    #[test]
    fn nothing_but_concordant_pairs_is_no_difference() {
        let z = |delta| shares(Pairs { n: 200.0, canary_only: 0.0, stable_only: 0.0 }, delta);
        assert_eq!(z(0.0), 0.0);
        assert!(z(0.05) < -4.0 && z(-0.05) > 4.0);
    }

    #[test]
    fn fifty_pairs_without_a_difference_do_not_show_that_there_is_none() {
        // A canary that is worse by 5 points has no such pair in 0.95^50 = 7.7 % of cases.
        let pairs = Pairs { n: 50.0, canary_only: 0.0, stable_only: 0.0 };
        assert!(shares(pairs, 0.05) < -1.645 && shares(pairs.doubted(), 0.05) > -1.645);
    }

    proptest::proptest! {
        #[test]
        fn every_statistic_is_a_number_and_falls_with_delta(
            b in 0_u64..1 << 50, c in 0_u64..1 << 50, rest in 0_u64..1 << 50,
            small in proptest::bool::ANY, d in -0.9..0.5_f64, more in 0.001..0.4_f64,
        ) {
            let cut = |n: u64| if small { n % 20 } else { n } as f64;
            let (b, c, rest) = (cut(b), cut(c), cut(rest) + 1.0);
            let pairs = Pairs { n: b + c + rest, canary_only: b, stable_only: c };
            let (low, high) = (shares(pairs, d), shares(pairs, d + more));
            proptest::prop_assert!(!low.is_nan() && !high.is_nan());
            proptest::prop_assert!(low >= high - 1e-6 * (1.0 + low.abs()), "{} < {}", low, high);
        }
    }
}
