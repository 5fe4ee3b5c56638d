//! Critical values of a one-sided group-sequential test, and how often it stops.
//!
//! Between looks the score B(t) = Z sqrt(t) is a Brownian motion; with an effect it has
//! a drift. Its density on the region where the test has not stopped is carried from
//! look to look by numerical integration (Armitage, McPherson and Rowe, JRSS A 132
//! (1969); Jennison and Turnbull, Group Sequential Methods (2000), chapter 19), and each
//! critical value is chosen so that exactly the error of the spending function is spent
//! at the information fractions of the looks that really happened.
//!
//! The nodes are about 0.4 standard deviations of the smaller step apart, counted down from
//! the bound, and their distance only doubles or halves from look to look: so the kernel
//! between two looks is one table, and only the nodes within its reach are added up. A
//! test with thirty looks takes some tens of microseconds.

use super::{
    normal::{density, upper_quantile, upper_tail},
    spending::Spending,
};

/// The region starts this many standard deviations below the drift.
const DEPTH: f64 = 5.5;
/// The kernel is as good as zero beyond this many standard deviations.
const REACH: f64 = 6.0;
/// The weights of the trapezoidal rule's first nodes with Gregory's corrections, exact to
/// the sixth order. Nothing is needed below, where the density has faded away: there the
/// plain rule is as exact as the density is smooth.
const AT_THE_BOUND: [f64; 5] =
    [95.0 / 288.0, 317.0 / 240.0, 23.0 / 30.0, 793.0 / 720.0, 157.0 / 160.0];
/// Nodes are so many standard deviations of the smaller step apart.
const SPACING: f64 = 0.4;
/// Increments of error below this are as good as none: the look can not stop.
const NEGLIGIBLE: f64 = 1e-12;
/// While no more than this part of the error is spent, nothing is carried: the density is taken
/// for that of a test that never stops. The next critical values are higher by less than 2e-4.
const UNSPENT: f64 = 1e-6;
/// A bound that no score reaches, for looks that can not stop.
const OUT_OF_REACH: f64 = 9.0;
/// The region has at most so many nodes, whatever the looks.
const MOST_NODES: usize = 4096;

/// The critical z of each look.
///
/// `looks` are information fractions, increasing, the last at most 1. `alpha` is the
/// one-sided error of the whole test. The result has the length of `looks`; an
/// infinite value means that the look can not stop the test.
pub fn critical_values(spending: Spending, alpha: f64, looks: &[f64]) -> Vec<f64> {
    critical_values_on(spending, alpha, looks, looks)
}

/// As [`critical_values`], where the error is spent on another clock than the information
/// comes on: up to `times[i]` of the whole at the look with `looks[i]` of the information
/// (Lan and DeMets, Biometrics 45, 1989: the error stays what it is, as long as the clock
/// does not depend on what was seen).
pub fn critical_values_on(
    spending: Spending,
    alpha: f64,
    times: &[f64],
    looks: &[f64],
) -> Vec<f64> {
    let mut values = Vec::with_capacity(looks.len());
    let mut region: Option<Region> = None;
    let (mut spent, mut before) = (0.0, 0.0);
    for (i, (&t, &time)) in looks.iter().zip(times).enumerate() {
        let (total, step) = (spending.spent(alpha, time), t - before);
        let increment = total - spent;
        if step.is_nan() || step <= 0.0 {
            values.push(f64::INFINITY);
            continue;
        }
        let stops = increment >= NEGLIGIBLE;
        let bound = match &region {
            _ if !stops => OUT_OF_REACH * t.sqrt(),
            None => upper_quantile(increment) * t.sqrt(),
            Some(region) => region.bound_for(increment, step, t, guess(&values, looks)),
        };
        values.push(if stops { bound / t.sqrt() } else { f64::INFINITY });
        spent = total;
        if region.is_none() && spent <= UNSPENT * alpha {
            continue;
        }
        if let Some(next) = looks.get(i + 1) {
            region = Some(Region::after(region.as_ref(), t, step, next - t, bound, 0.0));
        }
        before = t;
    }
    values
}

/// The next critical value as a power of the time, as Pocock's (0) and O'Brien and
/// Fleming's (-1/2) are: a good start for the search.
fn guess(values: &[f64], looks: &[f64]) -> Option<f64> {
    let n = values.len();
    let last = values.last().copied().filter(|z| z.is_finite())?;
    let before = n.checked_sub(2).and_then(|i| values.get(i)).copied().filter(|z| z.is_finite());
    let (Some(before), Some(t)) = (before, looks.get(n)) else { return Some(last) };
    let (t1, t0) = (looks[n - 1], looks[n - 2]);
    let power = (last / before).ln() / (t1 / t0).ln();
    let next = last * (t / t1).powf(power.clamp(-1.0, 0.5));
    Some(if next.is_finite() { next } else { last })
}

/// The probability that each look is the first beyond its critical value.
///
/// `drift` is the expected z at information fraction 1: the true effect over its
/// standard error. `critical` are upper critical values, as from [`critical_values`].
pub fn first_crossings(looks: &[f64], critical: &[f64], drift: f64) -> Vec<f64> {
    let mut crossings = Vec::with_capacity(looks.len());
    let mut region: Option<Region> = None;
    let mut before = 0.0;
    for (i, (&t, &z)) in looks.iter().zip(critical).enumerate() {
        let step = t - before;
        if step.is_nan() || step <= 0.0 {
            crossings.push(0.0);
            continue;
        }
        let bound = z.min(OUT_OF_REACH + drift.max(0.0)) * t.sqrt();
        crossings.push(if z.is_infinite() {
            0.0
        } else {
            match &region {
                None => upper_tail((bound - drift * t) / t.sqrt()),
                Some(region) => region.exceed(bound - drift * step, step)[0],
            }
        });
        if let Some(next) = looks.get(i + 1) {
            region = Some(Region::after(region.as_ref(), t, step, next - t, bound, drift));
        }
        before = t;
    }
    crossings
}

/// The density of the score where the test goes on: node i is at `top` - i `gap`, with
/// the weights of the integration multiplied in.
struct Region {
    top: f64,
    gap: f64,
    mass: Vec<f64>,
}

impl Region {
    /// After a look at `t`, `step` after the one before, with the next one `next` later.
    fn after(before: Option<&Self>, t: f64, step: f64, next: f64, bound: f64, drift: f64) -> Self {
        // Both the arriving density and the leaving kernel must be resolved.
        let finest = step.min(next.max(1e-9)).sqrt() * SPACING;
        let gap = before.map_or(finest, |b| {
            let doublings = ((finest / b.gap).log2() + 0.1).floor();
            b.gap * doublings.clamp(-3.0, 3.0).exp2()
        });
        let bottom = drift * t - DEPTH * t.sqrt();
        let nodes = ((bound - bottom) / gap).ceil().clamp(8.0, MOST_NODES as f64) as usize;
        let mut mass: Vec<f64> = match before {
            None => {
                let scale = t.sqrt();
                let at = |i| density((bound - gap * i as f64 - drift * t) / scale) / scale;
                (0..nodes).map(at).collect()
            }
            Some(old) => old.carried(bound - drift * step, gap, nodes, step.sqrt()),
        };
        for (i, value) in mass.iter_mut().enumerate() {
            *value *= gap * AT_THE_BOUND.get(i).copied().unwrap_or(1.0);
        }
        Self { top: bound, gap, mass }
    }

    /// The density after a step with standard deviation `scale`, at `top` - i `gap`.
    fn carried(&self, top: f64, gap: f64, nodes: usize, scale: f64) -> Vec<f64> {
        let last = self.mass.len() - 1;
        if gap < self.gap || self.mass.len() > MOST_NODES {
            // Finer than before: the table would not line up.
            let at = |i: usize| {
                let x = top - gap * i as f64;
                self.near(x, scale).map(|j| self.mass[j] * self.kernel(x, j, scale)).sum()
            };
            return (0..nodes).map(at).collect();
        }
        // x_i - s_j = (top - self.top) + self.gap (j - ratio i): one table for all pairs.
        let ratio = (gap / self.gap).round() as usize;
        let offset = ratio * (nodes - 1);
        let start = top - self.top;
        let reach = REACH * scale;
        let table: Vec<f64> = (0..=offset + last)
            .map(|q| {
                let distance = start + self.gap * (q as f64 - offset as f64);
                if distance.abs() > reach { 0.0 } else { density(distance / scale) / scale }
            })
            .collect();
        (0..nodes)
            .map(|i| {
                let near = self.near(top - gap * i as f64, scale);
                let from = near.start + offset - ratio * i;
                let kernel = &table[from..from + near.len()];
                dot(&self.mass[near], kernel)
            })
            .collect()
    }

    fn kernel(&self, x: f64, j: usize, scale: f64) -> f64 {
        density((x - self.top + self.gap * j as f64) / scale) / scale
    }

    /// The nodes within reach of `x`.
    fn near(&self, x: f64, scale: f64) -> std::ops::Range<usize> {
        let reach = REACH * scale;
        let from = ((self.top - x - reach) / self.gap).ceil().max(0.0) as usize;
        let to = ((self.top - x + reach) / self.gap).floor().max(-1.0) + 1.0;
        let to = (to as usize).min(self.mass.len());
        from.min(to)..to
    }

    /// The probability that the score is beyond `bound` after a step, and its first and second
    /// derivative by the bound.
    fn exceed(&self, bound: f64, step: f64) -> [f64; 3] {
        let scale = step.sqrt();
        let [mut tail, mut slope, mut bend] = [0.0; 3];
        // Nodes further below do not get there.
        for j in 0..self.near(bound, scale).end {
            let z = (bound - self.top + self.gap * j as f64) / scale;
            let there = self.mass[j] * density(z) / scale;
            tail += self.mass[j] * upper_tail(z);
            slope -= there;
            bend += there * z / scale;
        }
        [tail, slope, bend]
    }

    /// The bound that the score after a step exceeds with probability `error`: Halley's
    /// method on the logarithm of the tail, kept within a bracket.
    fn bound_for(&self, error: f64, step: f64, t: f64, guess: Option<f64>) -> f64 {
        let (mut low, mut high) = (-OUT_OF_REACH * t.sqrt(), OUT_OF_REACH * t.sqrt());
        let guess = guess.map_or(self.top, |z| z * t.sqrt());
        let mut bound = guess.clamp(low, high);
        for _ in 0..60 {
            let [tail, slope, bend] = self.exceed(bound, step);
            if tail > error {
                low = bound
            } else {
                high = bound
            }
            // The logarithm's value, and its derivatives.
            let (by, first) = ((tail / error).ln(), slope / tail);
            let second = bend / tail - first * first;
            let halley = bound - 2.0 * by * first / (2.0 * first * first - by * second);
            let is_within = low <= halley && halley <= high;
            // The error after a step is of the order of its third power.
            if is_within && (halley - bound).abs() < 0.01 * t.sqrt() {
                return halley;
            }
            bound = if is_within { halley } else { 0.5 * (low + high) };
        }
        bound
    }
}

/// Four sums side by side, which the processor adds at once.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a4.zip(b4) {
        for k in 0..4 {
            lanes[k] += x[k] * y[k];
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIFTHS: [f64; 5] = [0.2, 0.4, 0.6, 0.8, 1.0];

    fn assert_close(got: &[f64], expected: &[f64]) {
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 2e-4, "{got:?} instead of {expected:?}");
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
    fn looks_that_spend_hardly_any_error_change_nothing_later() {
        let (obf, late) = (Spending::OBrienFleming, [0.25, 0.5, 0.75, 1.0]);
        for alpha in [0.05, 0.0005] {
            let without = critical_values(obf, alpha, &late);
            for early in [&[0.01][..], &[0.01, 0.03, 0.05, 0.08, 0.1], &[0.1, 0.15, 0.2, 0.24]] {
                let with = critical_values(obf, alpha, &[early, &late].concat());
                // What was spent at 0.24 is not spent again at 0.25.
                assert_close(&with[early.len() + 1..], &without[1..]);
                assert!(with[..early.len()].iter().all(|z| *z > without[0]), "{with:?}");
            }
        }
    }

    #[test]
    fn one_look_is_the_ordinary_test() {
        for spending in [Spending::OBrienFleming, Spending::Pocock, Spending::HwangShihDeCani(2.0)]
        {
            assert_close(&critical_values(spending, 0.05, &[1.0]), &[1.644_854]);
        }
    }

    #[test]
    fn without_drift_each_look_is_crossed_as_often_as_was_spent() {
        let uneven = [0.003, 0.004, 0.02, 0.021, 0.3, 0.31, 0.311, 0.9, 1.0];
        let many: Vec<f64> = (1..=200).map(|i| f64::from(i) / 200.0).collect();
        for looks in [&FIFTHS[..], &uneven, &many] {
            for alpha in [0.05, 0.0005] {
                let spending = Spending::Pocock;
                let critical = critical_values(spending, alpha, looks);
                let crossed = first_crossings(looks, &critical, 0.0);
                let mut spent = 0.0;
                for (t, c) in looks.iter().zip(&crossed) {
                    let increment = spending.spent(alpha, *t) - spent;
                    spent += increment;
                    assert!((c - increment).abs() < 1e-3 * increment, "{c} at {t}: {increment}");
                }
            }
        }
    }

    #[test]
    fn the_power_with_drift_is_that_of_simulated_walks() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let looks = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
        let mut rng = StdRng::seed_from_u64(7);
        let runs = 40_000;
        for (spending, drift) in [
            (Spending::OBrienFleming, 0.0),
            (Spending::Pocock, 0.0),
            (Spending::Pocock, 2.5),
            (Spending::HwangShihDeCani(2.0), 3.0),
            (Spending::OBrienFleming, -1.0),
        ] {
            let critical = critical_values(spending, 0.05, &looks);
            let computed: f64 = first_crossings(&looks, &critical, drift).iter().sum();
            let mut crossed = 0;
            for _ in 0..runs {
                let (mut score, mut before) = (0.0, 0.0);
                for (t, z) in looks.iter().zip(&critical) {
                    let u: f64 = rng.random();
                    let step: f64 = t - before;
                    score += upper_quantile(u) * step.sqrt() + drift * step;
                    before = *t;
                    if score / t.sqrt() > *z {
                        crossed += 1;
                        break;
                    }
                }
            }
            let share = f64::from(crossed) / f64::from(runs);
            let slack = 5.0 * (computed * (1.0 - computed) / f64::from(runs)).sqrt() + 1e-9;
            assert!((share - computed).abs() < slack, "{spending:?}: {share} {computed}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_looks_give_numbers(
            steps in proptest::collection::vec(0.0..0.2_f64, 1..40), alpha in 1e-9..0.5_f64,
        ) {
            let mut t = 0.0;
            let looks: Vec<f64> = steps.iter().map(|s| { t += s; t }).filter(|t| *t <= 1.0).collect();
            for spending in [Spending::OBrienFleming, Spending::Pocock, Spending::HwangShihDeCani(2.0)] {
                for z in critical_values(spending, alpha, &looks) {
                    proptest::prop_assert!(!z.is_nan() && z > -1.0, "{}", z);
                }
            }
        }
    }
}
