//! How much of a test's error may be spent up to an information fraction.
//!
//! Lan and DeMets, Discrete sequential boundaries for clinical trials,
//! Biometrika 70 (1983).

use super::normal::{upper_quantile, upper_tail};

/// A spending function of a one-sided test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spending {
    /// O'Brien-Fleming-type: hardly anything early, nearly all at the end. For
    /// acceptance, where waiting costs little and a wrong pass costs much.
    OBrienFleming,
    /// Pocock-type: evenly from the start. For harm, which must be found early.
    Pocock,
}

impl Spending {
    /// The error spent up to information fraction `t` (clamped to 0..=1) of a test
    /// with error `alpha`.
    pub fn spent(self, alpha: f64, t: f64) -> f64 {
        let t = t.clamp(0.0, 1.0);
        if t == 0.0 {
            return 0.0;
        }
        match self {
            // One-sided form: 2 - 2 Phi(z_{alpha/2} / sqrt t).
            Self::OBrienFleming => 2.0 * upper_tail(upper_quantile(alpha / 2.0) / t.sqrt()),
            Self::Pocock => alpha * (1.0 + (std::f64::consts::E - 1.0) * t).ln(),
        }
    }
}
