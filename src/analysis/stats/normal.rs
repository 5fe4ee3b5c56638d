//! The standard normal distribution.

use statrs::function::erf::{erfc, erfc_inv};

/// P(Z > z).
pub fn upper_tail(z: f64) -> f64 {
    0.5 * erfc(z / std::f64::consts::SQRT_2)
}

/// The z with P(Z > z) = `p`, for 0 < p < 1; infinite at the ends.
pub fn upper_quantile(p: f64) -> f64 {
    if p <= 0.0 {
        f64::INFINITY
    } else if p >= 1.0 {
        f64::NEG_INFINITY
    } else {
        std::f64::consts::SQRT_2 * erfc_inv(2.0 * p)
    }
}

/// The density at z.
pub fn density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt()
}
