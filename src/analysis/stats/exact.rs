//! Exact statements about one share, from one observation on.

use statrs::function::beta::{beta_reg, ln_beta};

use super::proportion::Share;

/// ln of the evidence that a share is larger than `most`, against that it is at most
/// that: the likelihood averaged over shares above `most` (uniformly), over the
/// likelihood at `most`. Its expectation is at most one whenever the true share is at
/// most `most`, at any sample size and however often it is looked at, so it exceeds
/// 1 / alpha with a probability of at most alpha (Ville's inequality; Robbins, Annals of
/// Mathematical Statistics 41, 1970; Ramdas et al., Statistical Science 38, 2023).
pub fn log_evidence_above(share: Share, most: f64) -> f64 {
    let most = most.clamp(1e-9, 1.0 - 1e-9);
    let (bad, good) = (share.bad.max(0.0), (share.n - share.bad).max(0.0));
    let (a, b) = (bad + 1.0, good + 1.0);
    // The part of the Beta(a, b) density above `most`, in logarithms.
    let above = 1.0 - beta_reg_safe(a, b, most);
    let ln_above = if above > 1e-12 { above.ln() } else { ln_tail(a, b, most) };
    let mixture = ln_beta(a, b) + ln_above - (1.0 - most).ln();
    mixture - bad * most.ln() - good * (1.0 - most).ln()
}

fn beta_reg_safe(a: f64, b: f64, x: f64) -> f64 {
    beta_reg(a, b, x).clamp(0.0, 1.0)
}

/// ln P(Beta(a, b) > x) far in the tail: the leading term of its expansion.
fn ln_tail(a: f64, b: f64, x: f64) -> f64 {
    (a - 1.0) * x.ln() + b * (1.0 - x).ln() - b.ln() - ln_beta(a, b)
}

/// ln of the number of ways to choose k of n.
#[cfg(test)]
pub(super) fn ln_choose(n: f64, k: f64) -> f64 {
    use statrs::function::gamma::ln_gamma;
    ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_evidence_is_a_bet_with_an_expectation_of_at_most_one() {
        for n in [1_u64, 2, 5, 17, 60] {
            for (p, most) in [(0.1, 0.1), (0.05, 0.1), (0.3, 0.3)] {
                let expected: f64 = (0..=n)
                    .map(|k| {
                        let (n, k) = (n as f64, k as f64);
                        let ln_p = ln_choose(n, k) + k * f64::ln(p) + (n - k) * f64::ln(1.0 - p);
                        (ln_p + log_evidence_above(Share { n, bad: k }, most)).exp()
                    })
                    .sum();
                assert!(expected <= 1.0 + 1e-9, "{expected} at {n}");
                if p == most {
                    assert!(expected > 0.999, "{expected} at {n}");
                }
            }
        }
    }

    #[test]
    fn a_canary_that_fails_half_of_the_time_is_seen_within_twenty_requests() {
        let at = |n: f64| log_evidence_above(Share { n, bad: n / 2.0 }, 0.1);
        assert!(at(10.0) < 1000_f64.ln() && at(20.0) > 1000_f64.ln(), "{} {}", at(10.0), at(20.0));
    }

    proptest::proptest! {
        #[test]
        fn any_counts_give_a_number(n in proptest::num::u64::ANY, f in 0.0..=1.0_f64, most in 0.0..=1.0_f64) {
            let share = Share { n: n as f64, bad: (n as f64 * f).floor() };
            proptest::prop_assert!(!log_evidence_above(share, most).is_nan());
        }
    }
}
