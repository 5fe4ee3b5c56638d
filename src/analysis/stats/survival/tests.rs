use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

fn histogram(counts: &[(u8, u64)]) -> Histogram {
    counts.iter().copied().collect()
}

fn slower(ended: &[(u8, u64)], left: &[(u8, u64)], last: u8) -> Share {
    let (ended, left) = (histogram(ended), histogram(left));
    Waits { ended: &ended, left: &left, open: &Histogram::new() }.slower_than(last)
}

#[test]
fn without_anybody_who_left_it_is_the_plain_share() {
    assert_eq!(slower(&[(10, 90), (30, 10)], &[], 20), Share { n: 100.0, bad: 10.0 });
    assert_eq!(slower(&[], &[], 20), Share::default());
}

#[test]
fn it_is_the_product_limit_of_the_textbook() {
    // Kaplan and Meier's own example (1958, section 2): deaths at 0.8, 3.1, 5.4 and 9.2,
    // losses at 1.0, 2.7, 7.0 and 12.1; the curve after them is 7/8, 7/10, 21/40, 21/80.
    let (deaths, losses) = ([8, 31, 54, 92], [10, 27, 70, 121]);
    let ended: Vec<(u8, u64)> = deaths.iter().map(|t| (*t, 1)).collect();
    let left: Vec<(u8, u64)> = losses.iter().map(|t| (*t, 1)).collect();
    for (at, expected) in [(8, 7.0 / 8.0), (31, 0.7), (54, 21.0 / 40.0), (92, 21.0 / 80.0)] {
        let share = slower(&ended, &left, at);
        assert!((share.bad / share.n - expected).abs() < 1e-12, "{at}: {share:?}");
    }
}

#[test]
fn who_waited_longer_than_the_limit_is_slow_however_it_ended() {
    // 70 answers in interval 10; 30 users gave up in interval 40.
    assert_eq!(slower(&[(10, 70)], &[(40, 30)], 20), Share { n: 100.0, bad: 30.0 });
    // Beyond where anybody was seen, those who left count as slow.
    let share = slower(&[(10, 70)], &[(40, 30)], 50);
    assert!((share.bad / share.n - 0.3).abs() < 1e-12, "{share:?}");
}

#[test]
fn who_left_early_tells_nothing() {
    let share = slower(&[(30, 90), (60, 10)], &[(2, 900)], 40);
    assert!((share.bad / share.n - 0.1).abs() < 1e-12, "{share:?}");
    assert!((99.0..105.0).contains(&share.n), "they are no evidence: {share:?}");
    assert_eq!(slower(&[], &[(2, 50)], 40).n, 0.0, "nobody is known to be fast or slow");
}

#[test]
fn the_quantile_lies_where_requests_are_known_to_be_beyond() {
    let of = |ended: &[(u8, u64)], left: &[(u8, u64)]| {
        let (ended, left) = (histogram(ended), histogram(left));
        Waits { ended: &ended, left: &left, open: &Histogram::new() }.quantile(0.9, 10.0, 75)
    };
    assert_eq!(of(&[(10, 880), (20, 30), (30, 90)], &[]), Some(20));
    // A third of stable's users give up in interval 50: the last interval beyond which
    // they are known to wait.
    assert_eq!(of(&[(10, 200)], &[(50, 100)]), Some(49));
    assert_eq!(of(&[], &[]), None);
}

/// The estimate and how much it varies, with waits that are looked at while some are open.
#[test]
fn the_estimate_is_right_and_as_uncertain_as_it_says() {
    let mut rng = StdRng::seed_from_u64(7);
    let (runs, truth, last) = (2_000, 0.2_f64, 30_u8);
    let (mut shares, mut said) = (vec![], 0.0);
    for _ in 0..runs {
        let (mut ended, mut left) = (Histogram::new(), Histogram::new());
        for _ in 0..300 {
            // A fifth waits beyond interval 30, the others are spread evenly up to it.
            let wait = if rng.random::<f64>() < truth { 60 } else { rng.random_range(0..=30) };
            let seen = rng.random_range(0..90);
            let into = if wait <= seen { &mut ended } else { &mut left };
            *into.entry(wait.min(seen)).or_default() += 1;
        }
        let share = Waits { ended: &ended, left: &left, open: &Histogram::new() }.slower_than(last);
        shares.push(share.bad / share.n);
        said += share.bad / share.n * (1.0 - share.bad / share.n) / share.n / f64::from(runs);
    }
    let mean = shares.iter().sum::<f64>() / f64::from(runs);
    let variance = shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / f64::from(runs);
    assert!((mean - truth).abs() < 0.005, "{mean}");
    assert!((0.85..1.15).contains(&(said / variance)), "{said} said, {variance} seen");
}

proptest::proptest! {
    #[test]
    fn any_counts_give_a_share(
        ended in proptest::collection::btree_map(0..75_u8, proptest::num::u64::ANY, 0..8),
        left in proptest::collection::btree_map(0..75_u8, proptest::num::u64::ANY, 0..8),
        last in 0..75_u8,
    ) {
        let waits = Waits { ended: &ended, left: &left, open: &Histogram::new() };
        let share = waits.slower_than(last);
        proptest::prop_assert!(share.n >= 0.0 && share.n.is_finite());
        proptest::prop_assert!(share.bad >= 0.0 && share.bad <= share.n * (1.0 + 1e-9), "{share:?}");
        proptest::prop_assert!(share.n <= waits.total() * (1.0 + 1e-9));
        waits.quantile(0.9, 10.0, 75);
    }
}
