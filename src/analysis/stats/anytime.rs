//! Tests that may be looked at after every request, without an end.

use super::{
    normal::upper_quantile,
    proportion::{Share, restricted},
};

/// The evidence against "the canary's share is at most `margin` above stable's", as the
/// logarithm of an e-value that grows batch by batch.
///
/// Before each batch the shares that the past suggests (`bet`) are projected onto the
/// null hypothesis: the pair of shares there that is closest in Kullback-Leibler
/// divergence, weighted by the batch's sizes. The likelihood ratio of the batch is then
/// an e-value: its expectation is at most one under every pair of shares of the null
/// (Turner, Ly and Grünwald, Generic e-variables for exact sequential k-sample tests,
/// 2021, theorem 1: the gradient of the expected log-ratio at the projection is normal
/// to the convex null, and the log-expectation is concave, so the projection maximises
/// it). The product over batches is a test martingale, so it exceeds 1 / alpha with a
/// probability of at most alpha, whenever one looks and however long it goes on.
///
/// Assumes independent requests and that a batch's sizes do not depend on its outcomes.
pub fn log_growth(past: (Share, Share), now: (Share, Share), margin: f64) -> f64 {
    growth(past, (fresh(past.0, now.0), fresh(past.1, now.1)), margin)
}

/// The same for a batch of the canary's and stable's requests, when the bet is on what `past` suggests.
/// That may be anything that was known before the batch.
pub fn growth(past: (Share, Share), (canary, stable): (Share, Share), margin: f64) -> f64 {
    if canary.n < 1.0 || stable.n < 1.0 {
        return 0.0;
    }
    let (p1, p2) = bet(past, margin);
    // No shares differ by more than a margin near one: there is nothing to bet on.
    if margin.is_nan() || margin >= 1.0 || p1 - p2 <= margin {
        return 0.0;
    }
    let expected = |share: Share, p: f64| Share { n: share.n, bad: share.n * p };
    let (q1, q2) = restricted(expected(canary, p1), expected(stable, p2), margin);
    let (q1, q2) = (q1.clamp(1e-12, 1.0 - 1e-12), q2.clamp(1e-12, 1.0 - 1e-12));
    let gain = |share: Share, p: f64, q: f64| {
        share.bad * (p / q).ln() + (share.n - share.bad) * ((1.0 - p) / (1.0 - q)).ln()
    };
    gain(canary, p1, q1) + gain(stable, p2, q2)
}

fn fresh(past: Share, now: Share) -> Share {
    let n = (now.n - past.n).max(0.0);
    Share { n, bad: (now.bad - past.bad).clamp(0.0, n) }
}

/// The pair of shares that is bet on: the past, drawn towards a canary that is worse by
/// twice the margin, and always outside the null.
fn bet((canary, stable): (Share, Share), margin: f64) -> (f64, f64) {
    const WEIGHT: f64 = 10.0;
    let p2 = (stable.bad + 0.5) / (stable.n + 1.0);
    let worse = p2 + 2.0 * margin.abs().max(0.01) + margin.max(0.0);
    let p1 = (canary.bad + WEIGHT * worse) / (canary.n + WEIGHT);
    let p2 = p2.clamp(1e-3, 0.999 - margin.clamp(0.0, 0.9));
    (p1.max(p2 + margin + 1e-3).clamp(1e-3, 0.999), p2)
}

/// The critical z of a one-sided test that may be looked at any time, when `n`
/// observations were seen on the smaller side: the one-sided asymptotic confidence
/// sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Time-uniform central
/// limit theory and asymptotic confidence sequences, Annals of Statistics 52, 2024,
/// equation for one-sided sequences), tightest near `tuned` observations. Valid in the
/// limit: use it from some tens of observations on.
pub fn critical_z(alpha: f64, n: f64, tuned: f64) -> f64 {
    if n <= 0.0 {
        return f64::INFINITY;
    }
    // The mixture is narrowest where n rho^2 is about -2 ln alpha (its section on tuning).
    let rho2 = (-2.0 * (2.0 * alpha).ln()).max(1.0) / tuned.max(1.0);
    let v = n * rho2;
    (2.0 * (1.0 + 1.0 / v) * (1.0 + (v + 1.0).sqrt() / (2.0 * alpha)).ln()).sqrt()
}

/// The two-sided half width, in standard errors, of a plain confidence interval.
pub fn plain_z(level: f64) -> f64 {
    upper_quantile((1.0 - level) / 2.0)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_growth_of_a_batch_has_an_expectation_of_at_most_one() {
        // Exactly, over every outcome of small batches, for pairs of shares of the null.
        use super::super::exact::ln_choose;
        let past = [(0.0, 0.0, 0.0, 0.0), (30.0, 9.0, 200.0, 10.0), (30.0, 0.0, 200.0, 60.0)];
        for (cn, cb, sn, sb) in past {
            let past = (Share { n: cn, bad: cb }, Share { n: sn, bad: sb });
            for (n1, n2) in [(1.0, 1.0), (3.0, 20.0), (15.0, 4.0)] {
                for (p1, p2) in
                    [(0.07, 0.05), (0.05, 0.05), (0.32, 0.3), (0.1, 0.6), (0.021, 0.001)]
                {
                    let mut expected = 0.0;
                    for x1 in 0..=n1 as u64 {
                        for x2 in 0..=n2 as u64 {
                            let (x1, x2) = (x1 as f64, x2 as f64);
                            let ln_p = |n: f64, x: f64, p: f64| {
                                ln_choose(n, x) + x * p.ln() + (n - x) * (1.0 - p).ln()
                            };
                            let now = (
                                Share { n: cn + n1, bad: cb + x1 },
                                Share { n: sn + n2, bad: sb + x2 },
                            );
                            let growth = log_growth(past, now, 0.02);
                            expected += (ln_p(n1, x1, p1) + ln_p(n2, x2, p2) + growth).exp();
                        }
                    }
                    assert!(expected <= 1.0 + 1e-7, "{expected}: {p1} {p2} after {past:?}");
                }
            }
        }
    }

    /// How often the e-value ever exceeds 1 / 0.05, looked at after every request.
    fn ever_rejected(p_canary: f64, p_stable: f64, runs: u32, until: u32) -> f64 {
        let mut rng = StdRng::seed_from_u64(11);
        let mut rejected = 0;
        for _ in 0..runs {
            let (mut past, mut log_e) = ((Share::default(), Share::default()), 0.0);
            for _ in 0..until {
                let mut now = past;
                now.0.n += 1.0;
                now.0.bad += f64::from(rng.random::<f64>() < p_canary);
                now.1.n += 4.0;
                now.1.bad += (0..4).filter(|_| rng.random::<f64>() < p_stable).count() as f64;
                log_e += log_growth(past, now, 0.02);
                past = now;
                if log_e >= 20_f64.ln() {
                    rejected += 1;
                    break;
                }
            }
        }
        f64::from(rejected) / f64::from(runs)
    }

    #[test]
    fn a_margin_that_no_canary_can_exceed_finds_nothing() {
        let share = |bad, n| Share { n, bad };
        for margin in [0.92, 0.99, 1.0, 1.01, 2.0] {
            let now = (share(1.0, 20.0), share(3.0, 300.0));
            assert_eq!(log_growth(Default::default(), now, margin), 0.0, "{margin}");
        }
    }

    #[test]
    fn harm_is_found_and_its_absence_rarely_mistaken() {
        let runs = 400;
        let slack = 5.0 * (0.05_f64 * 0.95 / f64::from(runs)).sqrt();
        let null = ever_rejected(0.10, 0.08, runs, 3_000);
        assert!(null < 0.05 + slack, "{null}");
        assert!(ever_rejected(0.20, 0.08, 200, 1_000) > 0.95);
    }

    #[test]
    fn the_boundary_holds_at_every_sample_size() {
        // Standard normal observations, looked at at every size from 10 to 100,000.
        let mut rng = StdRng::seed_from_u64(5);
        let (runs, mut outside) = (300, 0);
        let critical: Vec<f64> =
            (0..=100_000).map(|n| critical_z(0.05, f64::from(n), 500.0)).collect();
        for _ in 0..runs {
            let mut sum = 0.0;
            for (n, z) in critical.iter().enumerate().skip(1) {
                sum += upper_quantile(rng.random::<f64>().max(1e-300));
                if n >= 10 && sum / (n as f64).sqrt() > *z {
                    outside += 1;
                    break;
                }
            }
        }
        let share = f64::from(outside) / f64::from(runs);
        assert!(share < 0.05 + 5.0 * (0.05_f64 * 0.95 / f64::from(runs)).sqrt(), "{share}");
    }

    proptest::proptest! {
        #[test]
        fn any_counts_give_a_number(
            a in proptest::array::uniform4(proptest::num::u64::ANY),
            b in proptest::array::uniform4(proptest::num::u64::ANY), margin in 0.0..10.0_f64,
        ) {
            let share = |n: u64, bad: u64| Share { n: n as f64, bad: bad.min(n) as f64 };
            let past = (share(a[0], a[1]), share(a[2], a[3]));
            let now = (share(b[0], b[1]), share(b[2], b[3]));
            proptest::prop_assert!(!log_growth(past, now, margin).is_nan());
        }
    }
}
