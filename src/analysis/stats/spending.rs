//! How much of a test's error may be spent up to an information fraction.
//!
//! Lan and DeMets, Discrete sequential boundaries for clinical trials,
//! Biometrika 70 (1983); Hwang, Shih and DeCani, Group sequential designs using a
//! family of type I error probability spending functions, Statistics in Medicine 9 (1990).

use super::normal::{upper_quantile, upper_tail};

/// A spending function of a one-sided test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spending {
    /// O'Brien-Fleming-type: hardly anything early, nearly all at the end. For
    /// acceptance, where waiting costs little and a wrong pass costs much.
    OBrienFleming,
    /// Pocock-type: about evenly from the start.
    Pocock,
    /// The gamma family of Hwang, Shih and DeCani: gamma near 1 is much like Pocock's,
    /// -4 like O'Brien and Fleming's; above 1 more is spent earlier. Not 0.
    HwangShihDeCani(f64),
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
            Self::HwangShihDeCani(gamma) => alpha * (-gamma * t).exp_m1() / (-gamma).exp_m1(),
        }
    }
}
