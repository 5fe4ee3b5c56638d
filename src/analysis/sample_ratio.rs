//! Does the observed split contradict the weights? Then the data is wrong, and no
//! verdict on it can be right (Fabijan et al., Diagnosing Sample Ratio Mismatch, KDD 2019).
//!
//! A sequential test, valid however often it is looked at: the Bayes factor of a
//! Beta-binomial mixture against the weight is a test martingale (Lindon and Malek,
//! Anytime-valid inference for multinomial count data, NeurIPS 2022). Users and not
//! requests are drawn, so the counts are divided by the measured design effect.

use statrs::function::beta::ln_beta;

use super::judge::of_split;
use crate::api::prompt_release::Counts;

/// How often a fair split is called a mismatch, over the whole step.
const ALPHA: f64 = 0.0005;
/// The mixture expects mismatches of some tenths of the weight: it weighs like so many requests.
const CONCENTRATION: f64 = 100.0;
/// Until the groups of users tell: conversations of about ten turns.
const ASSUMED_EFFECT: f64 = 10.0;

/// A message when the split of `stable` and `canary` assignments contradicts the
/// canary's `weight` in percent: of users, or of the requests that a shadow gets copies of.
pub fn mismatch(stable: &Counts, canary: &Counts, weight: i32) -> Option<String> {
    let share = f64::from(weight) / 100.0;
    let total = stable.assigned.saturating_add(canary.assigned);
    if !(share > 0.0 && share < 1.0) || total == 0 {
        return None;
    }
    let sticky = !(stable.groups.is_empty() && canary.groups.is_empty());
    let assumed = if sticky && total < 2_000 { ASSUMED_EFFECT } else { 1.0 };
    let effect = of_split(&stable.groups, &canary.groups, share).max(assumed);
    let evidence =
        log_evidence(stable.assigned as f64 / effect, canary.assigned as f64 / effect, share);
    (evidence > -ALPHA.ln()).then(|| {
        format!(
            "{} of {total} requests were assigned to the canary ({:.1} %), and {weight} % should be: \
             the split contradicts the routing, so the evidence can not be trusted",
            canary.assigned,
            100.0 * canary.assigned as f64 / total as f64
        )
    })
}

/// ln of the Bayes factor against "each request goes to the canary with probability `share`".
fn log_evidence(stable: f64, canary: f64, share: f64) -> f64 {
    let (a, b) = (CONCENTRATION * share, CONCENTRATION * (1.0 - share));
    ln_beta(a + canary, b + stable)
        - ln_beta(a, b)
        - canary * share.ln()
        - stable * (1.0 - share).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(stable: u64, canary: u64, weight: i32) -> Option<String> {
        let side = |assigned| Counts { assigned, ..Counts::default() };
        mismatch(&side(stable), &side(canary), weight)
    }

    #[test]
    fn a_fair_split_is_not_reported() {
        assert_eq!(message(9_480, 520, 5), None);
        assert!(message(0, 50, 50).is_some());
        assert!(message(0, 3, 5).is_none());
        assert_eq!(message(0, 0, 5), None);
    }

    #[test]
    fn a_side_that_vanishes_is_reported_with_the_counts() {
        let found = message(3_000, 0, 5).unwrap();
        assert!(found.contains("0 of 3000") && found.contains("5 %"), "{found}");
        assert!(message(0, 2_000, 50).is_some());
    }

    #[test]
    fn looking_after_every_request_does_not_find_what_is_not_there() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(9);
        let mut reported = 0;
        for _ in 0..400 {
            let (mut stable, mut canary, mut worst) = (0.0, 0.0, f64::MIN);
            for _ in 0..20_000 {
                if rng.random::<f64>() < 0.05 {
                    canary += 1.0
                } else {
                    stable += 1.0
                }
                if (stable + canary) % 10.0 == 0.0 {
                    worst = worst.max(log_evidence(stable, canary, 0.05));
                }
            }
            reported += u32::from(worst > 20_f64.ln());
        }
        // At a level of 5 %: five standard errors over 400 runs.
        assert!(f64::from(reported) / 400.0 < 0.05 + 0.055, "{reported} of 400");
    }
}
