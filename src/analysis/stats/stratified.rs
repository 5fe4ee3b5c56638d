//! Two shares or means, measured in several strata: the steps of a canary, between which
//! what happens to everybody may change, and the weight does.
//!
//! Canary and stable are compared within each stratum only, so a change that both sides see
//! tells nothing about the difference, whatever the weights (no Simpson's paradox).

use super::{
    mean::Mean,
    proportion::{self, Share},
};

/// How close the most likely difference is searched for, in standard errors.
const CLOSE: f64 = 1e-3;

/// Shares of canary and stable in several strata, each with a share of its own and all with
/// the same difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    strata: Vec<[Share; 2]>,
    /// The most likely difference.
    best: f64,
    /// The deviance there.
    least: f64,
}

impl Shares {
    /// Of canary and stable in each stratum. A stratum that one side has nothing in tells
    /// nothing.
    pub fn new(strata: impl IntoIterator<Item = [Share; 2]>) -> Self {
        let mut strata: Vec<[Share; 2]> = strata.into_iter().collect();
        strata.retain(|[c, s]| c.n > 0.0 && s.n > 0.0);
        let mut shares = Self { strata, best: 0.0, least: 0.0 };
        shares.best = shares.most_likely();
        shares.least = shares.deviance(shares.best);
        shares
    }

    /// The signed root of the likelihood ratio for canary share − stable share = `delta` in
    /// every stratum, the shares themselves being free in each (profile likelihood:
    /// Barndorff-Nielsen and Cox, Inference and Asymptotics, 1994, chapter 3; for strata,
    /// Miettinen and Nurminen, Statistics in Medicine 4, 1985). Of one stratum it is that of
    /// [`proportion::shares`].
    pub fn z(&self, delta: f64) -> f64 {
        let excess = self.best - delta.clamp(-1.0 + 1e-9, 1.0 - 1e-9);
        (self.deviance(delta) - self.least).max(0.0).sqrt().copysign(excess)
    }

    fn deviance(&self, delta: f64) -> f64 {
        self.strata.iter().map(|[c, s]| proportion::shares(*c, *s, delta).powi(2)).sum()
    }

    /// Where the deviance is least: between the differences of the strata, where its slope
    /// changes its sign.
    fn most_likely(&self) -> f64 {
        let differences = self.strata.iter().map(|[c, s]| c.value() - s.value());
        let (mut low, mut high) =
            differences.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), d| (l.min(d), h.max(d)));
        if low >= high {
            return if low.is_finite() { low } else { 0.0 };
        }
        let information: f64 = self.strata.iter().map(|pair| information(*pair)).sum();
        let close = CLOSE / information.max(1.0).sqrt();
        for _ in 0..60 {
            if high - low < close {
                break;
            }
            let middle = 0.5 * (low + high);
            if self.slope(middle) > 0.0 { high = middle } else { low = middle }
        }
        0.5 * (low + high)
    }

    /// Half the derivative of the deviance: only the difference moves, for the shares are
    /// the most likely ones (envelope theorem).
    fn slope(&self, delta: f64) -> f64 {
        let of = |[c, s]: &[Share; 2]| {
            let (q1, q2) = proportion::restricted(*c, *s, delta);
            // At an end of what is possible the other side tells.
            let inner = |q: f64| q > 1e-12 && q < 1.0 - 1e-12;
            let score = |side: &Share, q: f64| side.n * (side.value() - q) / (q * (1.0 - q));
            match (inner(q1), inner(q2)) {
                (true, _) => -score(c, q1),
                (false, true) => score(s, q2),
                (false, false) => 0.0,
            }
        };
        self.strata.iter().map(of).sum()
    }
}

/// The information of a stratum on the difference: one over its variance. Half a failure and
/// half a success more, so that no failure so far does not pass for certainty.
pub fn information([canary, stable]: [Share; 2]) -> f64 {
    let all = Share { n: canary.n + stable.n, bad: canary.bad + stable.bad }.doubted();
    size(canary.n, stable.n) / (all.value() * (1.0 - all.value()))
}

/// The size of a stratum: half the harmonic mean of its sides'. The weights by it are those
/// of Mantel and Haenszel (Journal of the National Cancer Institute 22, 1959).
pub fn size(canary: f64, stable: f64) -> f64 {
    if canary > 0.0 && stable > 0.0 { canary * stable / (canary + stable) } else { 0.0 }
}

/// A mean of each side over all strata, canary and stable, in which each stratum has the same
/// weight on both sides: its size, which does not depend on the values. Weights by the
/// variances that were seen would prefer strata without rare large values, and so those
/// in which the mean happens to be too small. None without a stratum that tells.
pub fn means(strata: impl IntoIterator<Item = [Mean; 2]>) -> Option<[Mean; 2]> {
    let mut strata: Vec<[Mean; 2]> = strata.into_iter().collect();
    strata.retain(|[c, s]| c.n > 0.0 && s.n > 0.0);
    let sizes: Vec<f64> = strata.iter().map(|[c, s]| size(c.n, s.n)).collect();
    let all: f64 = sizes.iter().sum();
    let side = |i: usize| {
        let parts = || strata.iter().zip(&sizes).map(|(pair, size)| (pair[i], size / all));
        let n: f64 = parts().map(|(m, _)| m.n).sum();
        let mean = parts().map(|(m, w)| w * m.mean).sum();
        // Moments around the mean of each stratum, of which all have about the same: those of
        // a few values are too uncertain to count by themselves.
        let freedom: f64 = parts().map(|(m, _)| (m.n - 1.0).max(0.0)).sum();
        let variance: f64 = parts().map(|(m, _)| (m.n - 1.0).max(0.0) * m.variance).sum();
        let third: f64 = parts().map(|(m, _)| m.n * m.third).sum();
        // As many equally weighted values have this variance of the mean.
        let squares: f64 = parts().map(|(m, w)| w * w / m.n).sum();
        let cubes: f64 = parts().map(|(m, w)| w.powi(3) / m.n.powi(2)).sum();
        let worth = 1.0 / squares;
        let variance = if freedom > 0.0 { variance / freedom } else { 0.0 };
        Mean { n: worth, mean, variance, third: third / n, unequal: cubes * worth.powi(2) }
    };
    (all > 0.0).then(|| [side(0), side(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(bad: f64, n: f64) -> Share {
        Share { n, bad }
    }

    #[test]
    fn of_one_stratum_it_is_the_plain_statistic() {
        let pair = [share(7.0, 90.0), share(20.0, 800.0)];
        for delta in [-0.1, 0.0, 0.02, 0.05, 0.3] {
            let (got, plain) =
                (Shares::new([pair]).z(delta), proportion::shares(pair[0], pair[1], delta));
            assert!((got - plain).abs() < 1e-6, "{got} instead of {plain}");
        }
    }

    #[test]
    fn equal_strata_tell_as_much_as_one_of_both() {
        let half = [share(6.0, 100.0), share(30.0, 1_000.0)];
        let whole = half.map(|s| share(2.0 * s.bad, 2.0 * s.n));
        for delta in [0.0, 0.05, 0.1] {
            let (got, plain) =
                (Shares::new([half, half]).z(delta), proportion::shares(whole[0], whole[1], delta));
            assert!((got - plain).abs() < 1e-6, "{got} instead of {plain}");
        }
    }

    #[test]
    fn the_most_likely_difference_is_that_of_a_grid() {
        for strata in [
            vec![[share(0.0, 40.0), share(8.0, 760.0)], [share(9.0, 90.0), share(3.0, 270.0)]],
            vec![[share(1.0, 40.0), share(0.0, 40.0)], [share(0.0, 30.0), share(5.0, 50.0)]],
            vec![[share(0.0, 40.0), share(0.0, 40.0)], [share(3.0, 30.0), share(0.0, 50.0)]],
            vec![[share(20.0, 20.0), share(19.0, 20.0)], [share(10.0, 30.0), share(50.0, 50.0)]],
        ] {
            let shares = Shares::new(strata.clone());
            let best = (-9_999..=9_999)
                .map(|i| f64::from(i) / 1e4)
                .min_by(|a, b| shares.deviance(*a).total_cmp(&shares.deviance(*b)))
                .unwrap();
            assert!((shares.best - best).abs() < 3e-4, "{strata:?}: {} {best}", shares.best);
        }
    }

    #[test]
    fn what_changes_on_both_sides_between_strata_is_no_difference() {
        // 1 % in a stratum with 5 % weight, 20 % in one with 50 %: summed up, the canary
        // would fail 19 %, stable 10 %.
        let strata = [
            [share(1.0, 100.0), share(19.0, 1_900.0)],
            [share(400.0, 2_000.0), share(400.0, 2_000.0)],
        ];
        assert!(Shares::new(strata).z(0.0).abs() < 0.1);
        let values = |n: f64, mean: f64| Mean { n, mean, variance: 1.0, third: 0.0, unequal: 1.0 };
        let [c, s] = means([
            [values(100.0, 1.0), values(1_900.0, 1.0)],
            [values(2_000.0, 9.0), values(2_000.0, 9.0)],
        ])
        .unwrap();
        assert!((c.mean - s.mean).abs() < 1e-12);
    }

    #[test]
    fn a_mean_over_strata_has_the_variance_that_its_weights_give_it() {
        let values = |n: f64| Mean { n, mean: 1.0, variance: 4.0, third: 8.0, unequal: 1.0 };
        let [c, _] = means([[values(50.0), values(50.0)], [values(150.0), values(50.0)]]).unwrap();
        // Sizes 25 and 37.5, so weights 0.4 and 0.6.
        assert!((c.variance / c.n - 4.0 * (0.16 / 50.0 + 0.36 / 150.0)).abs() < 1e-12);
        let third = 8.0 * (0.064 / 2_500.0 + 0.216 / 22_500.0);
        assert!((c.third_of_mean() - third).abs() < 1e-12);
        assert_eq!(c.third, 8.0, "how far the rare ones are does not depend on the weights");
        let one = means([[values(50.0), values(70.0)]]).unwrap();
        assert_eq!(one, [values(50.0), values(70.0)]);
        assert_eq!(means([]), None);
    }

    proptest::proptest! {
        #[test]
        fn it_is_a_number_and_falls_with_delta(
            strata in proptest::collection::vec(
                (0_u32..2_000, 0_u32..2_000, 0.0..=1.0_f64, 0.0..=1.0_f64), 0..4),
            delta in -0.9..0.5_f64, more in 0.001..0.4_f64,
        ) {
            let of = |n: u32, share: f64| Share { n: f64::from(n), bad: (f64::from(n) * share).round() };
            let shares = Shares::new(strata.iter().map(|(c, s, p, q)| [of(*c, *p), of(*s, *q)]));
            let (a, b) = (shares.z(delta), shares.z(delta + more));
            proptest::prop_assert!(!a.is_nan() && !b.is_nan());
            proptest::prop_assert!(a >= b - 1e-2 * (1.0 + a.abs()), "{} < {}", a, b);
        }
    }
}
