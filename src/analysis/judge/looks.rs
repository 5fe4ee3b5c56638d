//! When a window is looked at, and with which critical values.

use std::collections::HashMap;

use super::{ACCEPT_SPENDING, HARM_SPENDING, MINIMUM, Test};
use crate::analysis::stats::sequential::critical_values_on;

/// A look is due when there are a quarter more samples (half as many again at the very
/// start), or a twentieth of the horizon more.
const LOOK_GROWTH: f64 = 1.25;
const EARLY: f64 = 0.01;
const EARLY_GROWTH: f64 = 1.5;
const LOOK_STEP: f64 = 0.05;
/// The most looks that the status keeps.
const MAX_LOOKS: usize = 64;
/// Of these, the number that is kept free for the looks at the ends of pooled steps.
const MAX_STEPS: usize = 16;

/// The information fraction of the look that is due, if one is. The last one may be
/// beyond the horizon: all error is spent at 1, but the boundary needs to know how much
/// was really seen.
pub(super) fn due(looks: &[f64], seen: f64, horizon: f64) -> Option<f64> {
    due_at(looks, seen / horizon, None)
}

/// As [`due`], at `t`; also when one of several steps `closes`.
pub(super) fn due_at(looks: &[f64], t: f64, closes: Option<bool>) -> Option<f64> {
    let last = looks.last().copied().unwrap_or(0.0);
    let growth = if last < EARLY { EARLY_GROWTH } else { LOOK_GROWTH };
    let next = (last * growth).min(last + LOOK_STEP).min(1.0);
    // Multiples of a twentieth are not exact in binary.
    let reached = (t + 1e-9 >= next || closes == Some(true)) && t > last && last < 1.0;
    let room = if closes == Some(false) { MAX_LOOKS - MAX_STEPS } else { MAX_LOOKS };
    (reached && (looks.len() < room || t >= 1.0)).then_some(t)
}

/// The looks of a step with `horizon` samples, when they come one by one.
pub(in crate::analysis) fn planned_looks(horizon: i64) -> Vec<f64> {
    let (horizon, mut looks) = (horizon.max(1) as f64, vec![]);
    let mut t = (MINIMUM / horizon).min(1.0);
    while let Some(look) = due(&looks, t * horizon, horizon) {
        looks.push(look);
        let growth = if look < EARLY { EARLY_GROWTH } else { LOOK_GROWTH };
        t = (look * growth).min(look + LOOK_STEP).max(look + 1.0 / horizon).min(1.0);
    }
    looks
}

/// Critical values that were computed before, by test and looks.
#[derive(Default)]
pub struct Boundaries(HashMap<Key, [f64; 2]>);

/// The bits of both error rates, the looks and, where it is not the same, the information at
/// each of them.
type Key = ([u64; 2], Vec<u64>, Vec<u64>);

impl Boundaries {
    /// Beyond so many, all are forgotten: a simulation with few different looks never is.
    const MOST: usize = 10_000;

    /// Of harm and of acceptance at the last of `looks`.
    pub(super) fn last(&mut self, Test { window, clock }: &Test<'_>, looks: &[f64]) -> [f64; 2] {
        let rates = [window.harm_alpha.to_bits(), window.accept_alpha.to_bits()];
        let information = clock.map(|clock| clock.information(looks));
        let bits = |values: &[f64]| values.iter().map(|t| t.to_bits()).collect::<Vec<u64>>();
        let key = (rates, bits(looks), bits(information.as_deref().unwrap_or_default()));
        if let Some(known) = self.0.get(&key) {
            return *known;
        }
        let information = information.as_deref().unwrap_or(looks);
        let last = |spending, alpha| {
            let values = critical_values_on(spending, alpha, looks, information);
            values.last().copied().unwrap_or(f64::INFINITY)
        };
        let values =
            [last(HARM_SPENDING, window.harm_alpha), last(ACCEPT_SPENDING, window.accept_alpha)];
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(key, values);
        values
    }
}
