//! Two shares, measured on different requests.
//!
//! Assumes that requests are independent given their variant, or that `clustered` has
//! measured how much they are not.

/// A share: `bad` of `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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

    /// With half a failure and half a success more (Jeffreys' prior): of the side that a
    /// decision takes for good, so that a few lucky requests do not decide.
    pub fn doubted(self) -> Self {
        Self { n: self.n + 1.0, bad: self.bad + 0.5 }
    }

    /// What of it counts when each request tells as much as 1 / `effect` independent
    /// ones: the effective sample size of Kish (Survey Sampling, 1965).
    pub fn deflated(self, effect: f64) -> Self {
        Self { n: self.n / effect, bad: self.bad / effect }
    }
}

/// The signed root of the likelihood ratio for canary share − stable share = `delta`
/// (Barndorff-Nielsen and Cox, Inference and Asymptotics, 1994, chapter 3). Its tails
/// follow the skewed binomial far better than those of the score test, which calls a
/// canary with five errors in its first fifteen requests bad three times too often.
///
/// On small counts of both sides it is still a little too sure (5.8 % instead of 5 % at
/// equal sides of 8 %): [`Share::doubted`] on the side whose luck would decide takes
/// that out.
pub fn shares(canary: Share, stable: Share, delta: f64) -> f64 {
    let delta = delta.clamp(-1.0 + 1e-9, 1.0 - 1e-9);
    let excess = canary.value() - stable.value() - delta;
    let (q1, q2) = restricted(canary, stable, delta);
    let deviance = 2.0 * (divergence(canary, q1) + divergence(stable, q2)).max(0.0);
    deviance.sqrt().copysign(excess)
}

/// The most likely shares of canary and stable among those that differ by `delta`: the
/// closed form of Farrington and Manning, Statistics in Medicine 9 (1990), after
/// Miettinen and Nurminen, ibid. 4 (1985).
pub fn restricted(canary: Share, stable: Share, delta: f64) -> (f64, f64) {
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
    let (low, high) = (delta.max(0.0), 1.0 + delta.min(0.0));
    let q1 = (2.0 * u * w.cos() - b / (3.0 * a)).clamp(low, high);
    (q1, (q1 - delta).clamp(0.0, 1.0))
}

/// n times the Kullback-Leibler divergence of the observed share from `q`.
fn divergence(share: Share, q: f64) -> f64 {
    let term = |x: f64, expected: f64| {
        if x <= 0.0 { 0.0 } else { x * (x / expected.max(1e-300)).ln() }
    };
    let good = (share.n - share.bad).max(0.0);
    term(share.bad, share.n * q) + term(good, share.n * (1.0 - q))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(bad: f64, n: f64) -> Share {
        Share { n, bad }
    }

    #[test]
    fn the_restricted_estimate_maximises_the_likelihood() {
        for (x1, n1, x2, n2, delta) in [
            (3.0, 50.0, 1.0, 400.0, 0.02),
            (10.0, 40.0, 2.0, 60.0, 0.1),
            (0.0, 30.0, 0.0, 90.0, 0.05),
            (0.0, 30.0, 90.0, 90.0, 0.05),
            (7.0, 30.0, 30.0, 90.0, -0.3),
        ] {
            let likelihood = |q1: f64| {
                let q2 = q1 - delta;
                let term = |x: f64, p: f64| if x == 0.0 { 0.0 } else { x * p.ln() };
                term(x1, q1) + term(n1 - x1, 1.0 - q1) + term(x2, q2) + term(n2 - x2, 1.0 - q2)
            };
            let (low, high) = (f64::max(0.0, delta), f64::min(1.0, 1.0 + delta));
            let best = (0..=1_000_000)
                .map(|i| low + (high - low) * f64::from(i) / 1e6)
                .max_by(|a, b| likelihood(*a).total_cmp(&likelihood(*b)))
                .unwrap();
            let (got, _) = restricted(share(x1, n1), share(x2, n2), delta);
            assert!((got - best).abs() < 1e-4, "{got} instead of {best}");
        }
    }

    #[test]
    fn without_a_margin_it_is_the_likelihood_ratio_test_of_scipy() {
        // scipy 1.17: stats.chi2_contingency([[30, 170], [30, 270]],
        // lambda_="log-likelihood", correction=False).statistic
        let got = shares(share(30.0, 200.0), share(30.0, 300.0), 0.0);
        assert!((got * got - 2.791_572_115).abs() < 1e-8, "{got}");
    }

    proptest::proptest! {
        #[test]
        fn every_statistic_is_a_number_and_falls_with_delta(
            n1 in 1_u64..1 << 60, n2 in 1_u64..1 << 60, f1 in 0.0..=1.0_f64, f2 in 0.0..=1.0_f64,
            d1 in -0.9..0.5_f64, more in 0.001..0.4_f64, small in proptest::bool::ANY,
        ) {
            let cut = |n: u64| if small { n % 50 + 1 } else { n } as f64;
            let (n1, n2) = (cut(n1), cut(n2));
            let (canary, stable) = (share((f1 * n1).round(), n1), share((f2 * n2).round(), n2));
            let (a, b) = (shares(canary, stable, d1), shares(canary, stable, d1 + more));
            proptest::prop_assert!(!a.is_nan() && !b.is_nan());
            proptest::prop_assert!(a >= b - 1e-6 * (1.0 + a.abs()), "{} < {}", a, b);
        }
    }
}
