//! Critical values of a one-sided group-sequential test.
//!
//! Between looks the score B(t) = Z sqrt(t) is a Brownian motion. Its density on the
//! region where the test has not stopped is carried from look to look by numerical
//! integration (Armitage, McPherson and Rowe, JRSS A 132 (1969); Jennison and
//! Turnbull, Group Sequential Methods (2000), chapter 19), and each critical value is
//! chosen so that exactly the error of the spending function is spent.

use super::{
    normal::{density, upper_quantile, upper_tail},
    spending::Spending,
};

/// Nodes of Simpson's rule over the continuation region; odd.
const NODES: usize = 121;
/// The region starts this many standard deviations below zero.
const REACH: f64 = 6.0;
/// Increments of error below this are as good as none: the look can not stop.
const NEGLIGIBLE: f64 = 1e-12;

/// The critical z of each look.
///
/// `looks` are information fractions, increasing, the last at most 1. `alpha` is the
/// one-sided error of the whole test. The result has the length of `looks`; an
/// infinite value means that the look can not stop the test.
pub fn critical_values(spending: Spending, alpha: f64, looks: &[f64]) -> Vec<f64> {
    let mut values = Vec::with_capacity(looks.len());
    let mut state: Option<Region> = None;
    let (mut spent, mut before) = (0.0, 0.0);
    for &t in looks {
        let total = spending.spent(alpha, t);
        let increment = total - spent;
        let step = t - before;
        if step <= 0.0 {
            values.push(f64::INFINITY);
            continue;
        }
        let bound = match &state {
            _ if increment < NEGLIGIBLE => REACH.max(8.0) * t.sqrt(),
            None => upper_quantile(increment) * t.sqrt(),
            Some(region) => region.bound_for(increment, step),
        };
        values.push(if increment < NEGLIGIBLE { f64::INFINITY } else { bound / t.sqrt() });
        state = Some(match &state {
            None => Region::first(t, bound),
            Some(region) => region.advance(t, step, bound),
        });
        spent = total;
        before = t;
    }
    values
}

/// The density of the score where the test goes on, on equally spaced nodes with
/// Simpson's weights multiplied in.
struct Region {
    nodes: Vec<f64>,
    mass: Vec<f64>,
}

impl Region {
    fn first(t: f64, bound: f64) -> Self {
        let scale = t.sqrt();
        Self::build(-REACH * scale, bound, |x| density(x / scale) / scale)
    }

    fn advance(&self, t: f64, step: f64, bound: f64) -> Self {
        let scale = step.sqrt();
        Self::build(-REACH * t.sqrt(), bound, |x| {
            self.nodes
                .iter()
                .zip(&self.mass)
                .map(|(s, m)| m * density((x - s) / scale))
                .sum::<f64>()
                / scale
        })
    }

    fn build(low: f64, high: f64, at: impl Fn(f64) -> f64) -> Self {
        let width = (high - low) / (NODES - 1) as f64;
        let nodes: Vec<f64> = (0..NODES).map(|i| low + width * i as f64).collect();
        let mass = nodes
            .iter()
            .enumerate()
            .map(|(i, &x)| {
                let weight = match i {
                    0 => 1.0,
                    i if i == NODES - 1 => 1.0,
                    i if i % 2 == 1 => 4.0,
                    _ => 2.0,
                };
                at(x) * weight * width / 3.0
            })
            .collect();
        Self { nodes, mass }
    }

    /// The bound that the next score exceeds with probability `error`.
    fn bound_for(&self, error: f64, step: f64) -> f64 {
        let scale = step.sqrt();
        let exceed = |bound: f64| {
            self.nodes
                .iter()
                .zip(&self.mass)
                .map(|(s, m)| m * upper_tail((bound - s) / scale))
                .sum::<f64>()
        };
        let (mut low, mut high) = (-REACH, REACH + 4.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if exceed(middle) > error { low = middle } else { high = middle }
        }
        0.5 * (low + high)
    }
}

/// The critical z of look `index` (from 0) of a test without a horizon: the error is
/// split as 6 / (pi^2 k^2) over the looks k = 1, 2, …, whose sum is one, and added up
/// by the union bound. Conservative, and valid however long it goes on.
pub fn open_ended_critical_value(alpha: f64, index: usize) -> f64 {
    let k = (index + 1) as f64;
    upper_quantile(alpha * 6.0 / (std::f64::consts::PI * k).powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIFTHS: [f64; 5] = [0.2, 0.4, 0.6, 0.8, 1.0];

    fn assert_close(got: &[f64], expected: &[f64]) {
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 2e-3, "{got:?} instead of {expected:?}");
        }
    }

    #[test]
    fn boundaries_are_the_published_ones() {
        // The tables of the R packages ldbounds and gsDesign for one-sided 0.025 and five equal looks.
        assert_close(
            &critical_values(Spending::OBrienFleming, 0.025, &FIFTHS),
            &[4.8769, 3.3569, 2.6803, 2.2898, 2.0310],
        );
        assert_close(
            &critical_values(Spending::Pocock, 0.025, &FIFTHS),
            &[2.4380, 2.4268, 2.4101, 2.3966, 2.3859],
        );
    }

    #[test]
    fn one_look_is_the_ordinary_test() {
        for spending in [Spending::OBrienFleming, Spending::Pocock] {
            assert_close(&critical_values(spending, 0.05, &[1.0]), &[1.6449]);
        }
    }

    #[test]
    fn a_random_walk_without_drift_crosses_as_often_as_alpha_says() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let looks = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
        let mut rng = StdRng::seed_from_u64(7);
        let runs = 40_000;
        for spending in [Spending::OBrienFleming, Spending::Pocock] {
            let critical = critical_values(spending, 0.05, &looks);
            let mut crossed = 0;
            for _ in 0..runs {
                let (mut score, mut before) = (0.0, 0.0);
                for (t, z) in looks.iter().zip(&critical) {
                    let u: f64 = rng.random();
                    score += upper_quantile(u) * (t - before).sqrt();
                    before = *t;
                    if score / t.sqrt() > *z {
                        crossed += 1;
                        break;
                    }
                }
            }
            let share = f64::from(crossed) / f64::from(runs);
            // Five standard errors of a share of 5 % over the runs.
            assert!((share - 0.05).abs() < 0.0055, "{spending:?}: {share}");
        }
    }

    #[test]
    fn the_open_ended_errors_add_up_to_alpha() {
        let spent: f64 = (0..10_000).map(|i| upper_tail(open_ended_critical_value(0.05, i))).sum();
        assert!(spent < 0.05 && spent > 0.0499, "{spent}");
    }
}
