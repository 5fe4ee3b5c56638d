//! What all comparisons share: each gives z(delta) for "the canary is worse than stable
//! by `delta`", large and positive when the data say that the difference is larger,
//! large and negative when smaller. It falls as delta grows, so a confidence limit is
//! where it reaches a critical value.

/// The delta between `low` and `high` at which the falling function `z` reaches `level`:
/// regula falsi in the Illinois form (Dowell and Jarratt, BIT 11, 1971).
pub fn invert(z: impl Fn(f64) -> f64, level: f64, low: f64, high: f64) -> f64 {
    let finite = |value: f64| if value.is_nan() { 0.0 } else { value.clamp(-1e6, 1e6) };
    let (mut low, mut high) = (low, high);
    let (mut above, mut below) = (finite(z(low) - level), finite(z(high) - level));
    if above <= 0.0 {
        return low;
    }
    if below >= 0.0 {
        return high;
    }
    let tolerance = 1e-5 * (high - low).max(0.2);
    let mut side = 0;
    for i in 0..100 {
        let secant = high - below * (high - low) / (below - above);
        // Every fourth step halves, so that flat stretches end too.
        let middle = if i % 4 == 3 { 0.5 * (low + high) } else { secant.clamp(low, high) };
        let value = finite(z(middle) - level);
        if value > 0.0 {
            if side == 1 {
                below *= 0.5;
            }
            (low, above, side) = (middle, value, 1);
        } else {
            if side == -1 {
                above *= 0.5;
            }
            (high, below, side) = (middle, value, -1);
        }
        if value == 0.0 {
            return middle;
        }
        if high - low < tolerance {
            break;
        }
    }
    0.5 * (low + high)
}

/// As [`invert`], when the root is expected not far from `near`, where z is about zero.
pub fn invert_near(z: impl Fn(f64) -> f64, level: f64, low: f64, high: f64, near: f64) -> f64 {
    if !(low < near && near < high) {
        return invert(z, level, low, high);
    }
    let away = if level > 0.0 { -1.0 } else { 1.0 };
    let mut width = 0.02;
    loop {
        let end = (near + away * width).clamp(low, high);
        let beyond = if away < 0.0 { z(end) >= level } else { z(end) <= level };
        if beyond || end <= low || end >= high {
            let (from, to) = if away < 0.0 { (end, near) } else { (near, end) };
            return invert(z, level, from, to);
        }
        width *= 3.0;
    }
}

/// excess / sqrt(variance), also without any variance. What is not a number shows nothing.
pub(super) fn standardise(excess: f64, variance: f64) -> f64 {
    if excess.is_nan() || variance.is_nan() || variance.is_infinite() {
        0.0
    } else if variance > 0.0 {
        excess / variance.sqrt()
    } else if excess == 0.0 {
        0.0
    } else {
        f64::INFINITY.copysign(excess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_where_the_statistic_reaches_the_level() {
        for level in [-3.0, 0.0, 2.5] {
            let root = invert(|d| 10.0 * (0.1 - d), level, -1.0, 1.0);
            assert!((root - (0.1 - level / 10.0)).abs() < 2e-5, "{root}");
            let steep = invert(|d| (0.3 - d).powi(5) * 1e4, level, -1.0, 1.0);
            let expected = 0.3 - f64::powf(level.abs() / 1e4, 0.2).copysign(level);
            assert!((steep - expected).abs() < 2e-5, "{steep}");
        }
        for level in [-3.0, 2.5, 40.0] {
            let z = |d: f64| 20.0 * (0.1 - d);
            let (far, near) = (invert(z, level, -1.0, 1.0), invert_near(z, level, -1.0, 1.0, 0.1));
            assert!((far - near).abs() < 4e-5, "{far} {near}");
        }
        assert_eq!(invert(|_| 5.0, 1.0, -1.0, 1.0), 1.0);
        assert_eq!(invert(|_| -5.0, 1.0, -1.0, 1.0), -1.0);
        assert_eq!(invert(|_| f64::INFINITY, 1.0, -1.0, 1.0), 1.0);
    }
}
