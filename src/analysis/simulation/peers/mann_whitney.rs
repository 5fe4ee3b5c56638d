//! The Mann-Whitney U test with the confidence interval of the location shift, the way
//! Kayenta computes it (`kayenta-mannwhitney`, `MannWhitney.scala`, `BrentSolver.java`),
//! which is the way of R's `wilcox.test(conf.int = TRUE, exact = FALSE)`. One thing
//! differs: Kayenta keeps the continuity correction for the estimate, R does not. With
//! few points Kayenta's estimate is then any point near the middle of the differences.
//!
//! The interval's ends are the shifts at which the normal approximation, with ties and
//! a continuity correction of one half, crosses the quantile of the confidence level
//! (Bauer, Constructing confidence sets using rank statistics, JASA 67, 1972). The
//! statistic is a step function of the shift, so the root is good to the tolerance
//! only: 0.0001 in the metric's own unit. On shares of 0 to 1 this is 0.01 points.

use crate::analysis::stats::normal;

/// The root finder's tolerance, R's default and Kayenta's constant.
const TOLERANCE: f64 = 1e-4;
/// Kayenta's limit; a bracketed root on doubles needs far fewer.
const ITERATIONS: usize = 1_000;

/// How far the first sample lies above the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// The Hodges-Lehmann estimate, the median of all pairwise differences, as far as
    /// the root finder comes.
    pub estimate: f64,
    /// The lower end of the two-sided confidence interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The shift of `x` over `y` with its two-sided interval. None when it cannot be
/// computed: a sample is empty, holds NaN, or everything is tied.
pub fn shift(x: &[f64], y: &[f64], confidence: f64) -> Option<Shift> {
    let ends = ends(x, y)?;
    let quantile = normal::upper_quantile((1.0 - confidence) / 2.0);
    Some(Shift {
        estimate: root(x, y, 0.0, ends)?,
        low: bounded_root(x, y, quantile, ends)?,
        high: bounded_root(x, y, -quantile, ends)?,
    })
}

/// The standardized statistic after `x` is moved down by `mu`: positive when `x` ranks
/// higher. None when all observations are tied.
pub fn z(x: &[f64], y: &[f64], mu: f64) -> Option<f64> {
    let (m, n) = (x.len() as f64, y.len() as f64);
    let (rank_sum, ties) = ranks(x, y, mu);
    let centred = rank_sum - m * (m + 1.0) / 2.0 - m * n / 2.0;
    let correction = if centred == 0.0 { 0.0 } else { 0.5 * centred.signum() };
    let total = m + n;
    let variance = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    (variance > 0.0).then(|| (centred - correction) / variance.sqrt())
}

/// The sum of the ranks of `x - mu` in both samples, ties sharing the average rank, and
/// the sum of t³ - t over groups of t tied values.
fn ranks(x: &[f64], y: &[f64], mu: f64) -> (f64, f64) {
    let mut all: Vec<(f64, bool)> = x.iter().map(|v| (v - mu, true)).collect();
    all.extend(y.iter().map(|v| (*v, false)));
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut before, mut sum, mut ties) = (0.0, 0.0, 0.0);
    for group in all.chunk_by(|a, b| a.0 == b.0) {
        let size = group.len() as f64;
        let of_x = group.iter().filter(|(_, is_x)| *is_x).count() as f64;
        sum += of_x * (before + (size + 1.0) / 2.0);
        ties += size * (size * size - 1.0);
        before += size;
    }
    (sum, ties)
}

/// Below the first shift all of `x` ranks above `y`, over the second all below.
fn ends(x: &[f64], y: &[f64]) -> Option<(f64, f64)> {
    let usable = |v: &[f64]| !v.is_empty() && v.iter().all(|v| v.is_finite());
    let min = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
    let max = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (usable(x) && usable(y)).then(|| (min(x) - max(y), max(x) - min(y)))
}

/// The root, or the end of the range when a small sample can not reach the quantile.
fn bounded_root(x: &[f64], y: &[f64], quantile: f64, ends: (f64, f64)) -> Option<f64> {
    if z(x, y, ends.0)? <= quantile {
        Some(ends.0)
    } else if z(x, y, ends.1)? >= quantile {
        Some(ends.1)
    } else {
        root(x, y, quantile, ends)
    }
}

/// Where `z` crosses `quantile`.
fn root(x: &[f64], y: &[f64], quantile: f64, ends: (f64, f64)) -> Option<f64> {
    brent(|mu| z(x, y, mu).map(|z| z - quantile), ends)
}

/// Brent's root finder (Brent, Algorithms for Minimization without Derivatives, 1973,
/// chapter 4). The search is on a step function: which point of a flat piece comes
/// out depends on the path, so another method would not agree with Kayenta.
fn brent(f: impl Fn(f64) -> Option<f64>, (low, high): (f64, f64)) -> Option<f64> {
    let (mut a, mut b) = (low, high);
    let (mut fa, mut fb) = (f(a)?, f(b)?);
    if fa == 0.0 {
        return Some(a);
    }
    let (mut c, mut fc) = (a, fa);
    for _ in 0..ITERATIONS {
        let previous = b - a;
        if fc.abs() < fb.abs() {
            (a, b, c) = (b, c, b);
            (fa, fb, fc) = (fb, fc, fb);
        }
        let smallest = 2.0 * f64::EPSILON * b.abs() + TOLERANCE / 2.0;
        let half = (c - b) / 2.0;
        if half.abs() <= smallest || fb == 0.0 {
            return Some(b);
        }
        let mut step = half;
        if previous.abs() >= smallest && fa.abs() > fb.abs() {
            step = interpolated([a, b, c], [fa, fb, fc], smallest, previous).unwrap_or(half);
        }
        if step.abs() < smallest {
            step = smallest.copysign(step);
        }
        (a, fa) = (b, fb);
        b += step;
        fb = f(b)?;
        if fb * fc > 0.0 {
            (c, fc) = (a, fa);
        }
    }
    Some(b)
}

/// The step from b by the secant or by inverse quadratic interpolation, unless it
/// leaves the bracket or does not shrink fast enough: then bisection is safer.
fn interpolated(
    [a, b, c]: [f64; 3],
    [fa, fb, fc]: [f64; 3],
    smallest: f64,
    previous: f64,
) -> Option<f64> {
    let width = c - b;
    let s = fb / fa;
    let (p, q) = if a == c {
        (width * s, 1.0 - s)
    } else {
        let (t, r) = (fa / fc, fb / fc);
        let p = s * (width * t * (t - r) - (b - a) * (r - 1.0));
        (p, (t - 1.0) * (r - 1.0) * (s - 1.0))
    };
    let (p, q) = if p > 0.0 { (p, -q) } else { (-p, q) };
    let inside = p < 0.75 * width * q - (smallest * q).abs() / 2.0;
    let shrinks = p < (previous * q / 2.0).abs();
    (inside && shrinks).then(|| p / q)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: R 4.2.2, `wilcox.test(x, y, conf.int = TRUE, conf.level = 0.98,
    // exact = FALSE, correct = TRUE)`, and SciPy 1.17.1,
    // `mannwhitneyu(x, y, method="asymptotic", use_continuity=True)`.
    // The estimates: R's `uniroot(tol = 1e-4)` on the statistic with the correction.
    // The exact ends are the pairwise differences at which SciPy's one-sided p-value
    // of the moved sample crosses 0.01.

    const WORSE: [f64; 12] =
        [0.031, 0.028, 0.040, 0.035, 0.029, 0.044, 0.038, 0.033, 0.027, 0.036, 0.041, 0.030];
    const BASE: [f64; 12] =
        [0.021, 0.025, 0.019, 0.030, 0.022, 0.028, 0.018, 0.024, 0.026, 0.020, 0.023, 0.029];
    const LEVEL_X: [f64; 6] = [0.0512, 0.0489, 0.0533, 0.0471, 0.0505, 0.0498];
    const LEVEL_Y: [f64; 8] = [0.0501, 0.0475, 0.0528, 0.0492, 0.0517, 0.0483, 0.0509, 0.0495];

    /// Shares of 20 requests: most values are tied.
    fn tied() -> (Vec<f64>, Vec<f64>) {
        let shares = |bad: &[u32]| bad.iter().map(|b| f64::from(*b) / 20.0).collect();
        (
            shares(&[0, 1, 0, 2, 1, 0, 3, 1, 0, 1, 2, 0, 1, 1, 0]),
            shares(&[0, 0, 1, 0, 0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0]),
        )
    }

    fn assert_close(actual: f64, expected: f64, tolerance: f64) {
        assert!((actual - expected).abs() <= tolerance, "{actual} is not {expected}");
    }

    fn p_value(x: &[f64], y: &[f64]) -> f64 {
        2.0 * normal::upper_tail(z(x, y, 0.0).unwrap().abs())
    }

    #[test]
    fn p_values_are_those_of_scipy() {
        let (x, y) = tied();
        assert_close(p_value(&WORSE, &BASE), 0.0002177727577508077, 1e-12);
        assert_close(p_value(&x, &y), 0.05716158917604141, 1e-10);
        assert_close(p_value(&LEVEL_X, &LEVEL_Y), 0.9485325168506443, 1e-10);
        assert_close(p_value(&[5.1, 4.2, 6.3], &[1.2, 2.3, 1.9]), 0.08085559837005224, 1e-10);
    }

    #[test]
    fn intervals_are_those_of_r_and_estimates_those_of_its_root_finder() {
        let (x, y) = tied();
        let cases: [(&[f64], &[f64], [f64; 3]); 4] = [
            (&WORSE, &BASE, [0.00502335389172199, 0.0160226898540451, 0.0100657436924960]),
            (&x, &y, [-9.04769462044231e-6, 0.0500654327410468, 3.11712228105272e-5]),
            (&LEVEL_X, &LEVEL_Y, [-0.00299147730347191, 0.00321083652403963, 0.000317041632998609]),
            (&[5.1, 4.2, 6.3], &[1.2, 2.3, 1.9], [1.9, 5.1, 3.63459670487678]),
        ];
        for (x, y, [low, high, estimate]) in cases {
            let shift = shift(x, y, 0.98).unwrap();
            assert_close(shift.low, low, 1e-9);
            assert_close(shift.high, high, 1e-9);
            assert_close(shift.estimate, estimate, 1e-9);
        }
    }

    #[test]
    fn intervals_are_exact_up_to_the_tolerance() {
        let worse = shift(&WORSE, &BASE, 0.98).unwrap();
        assert_close(worse.low, 0.005, TOLERANCE);
        assert_close(worse.high, 0.016, TOLERANCE);
        assert_close(worse.estimate, 0.01, TOLERANCE);
        let level = shift(&LEVEL_X, &LEVEL_Y, 0.98).unwrap();
        assert_close(level.low, -0.003, TOLERANCE);
        assert_close(level.high, 0.0032, TOLERANCE);
        assert_close(level.estimate, 0.0003, TOLERANCE);
    }

    #[test]
    fn what_cannot_be_computed_is_none() {
        assert_eq!(shift(&[], &[1.0], 0.98), None);
        assert_eq!(shift(&[f64::NAN], &[1.0], 0.98), None);
        assert_eq!(shift(&[1.0], &[2.0], 0.98), None);
        assert_eq!(shift(&[3.0; 4], &[1.0; 4], 0.98), None);
    }

    #[test]
    fn swapping_the_samples_mirrors_the_statistic() {
        let (x, y) = tied();
        assert_close(z(&x, &y, 0.0).unwrap(), -z(&y, &x, 0.0).unwrap(), 1e-12);
    }
}
