//! Does the observed split contradict the weights? Then the data is wrong, and no
//! verdict on it can be right (Fabijan et al., Diagnosing Sample Ratio Mismatch, KDD 2019).

/// Turns of one conversation are assigned together, so that requests are not
/// independent draws. This is the assumed variance inflation: it covers
/// conversations of about ten turns.
const DESIGN_EFFECT: f64 = 10.0;
/// The chi-square quantile with one degree of freedom for p = 0.0005.
const CRITICAL: f64 = 12.116;
/// Below this the normal approximation is not trusted.
const MINIMUM: f64 = 200.0;

/// A message when the split of `stable` and `canary` assignments contradicts the
/// canary's `weight` in percent: of users, or of the requests that a shadow gets copies of.
pub fn mismatch(stable: u64, canary: u64, weight: i32) -> Option<String> {
    let total = (stable + canary) as f64;
    let share = f64::from(weight) / 100.0;
    if total < MINIMUM || !(0.0..1.0).contains(&share) || share == 0.0 {
        return None;
    }
    let excess = canary as f64 - total * share;
    let chi_square = excess * excess / (total * share * (1.0 - share)) / DESIGN_EFFECT;
    (chi_square > CRITICAL).then(|| {
        format!(
            "{canary} of {total} requests were assigned to the canary ({:.1} %), and {weight} % should be: \
             the split contradicts the routing, so the evidence can not be trusted",
            100.0 * canary as f64 / total
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fair_split_is_not_reported() {
        assert_eq!(mismatch(9_480, 520, 5), None);
        assert_eq!(mismatch(0, 150, 5), None);
    }

    #[test]
    fn a_side_that_vanishes_is_reported_with_the_counts() {
        let message = mismatch(3_000, 0, 5).unwrap();
        assert!(message.contains("0 of 3000") && message.contains("5 %"), "{message}");
        assert!(mismatch(0, 2_000, 50).is_some());
    }
}
