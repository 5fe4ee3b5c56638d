use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::super::{
    tests::{durations, errors},
    *,
};
use crate::{analysis::buckets, api::prompt_release::CallerCounts};

/// A step of a life: what both sides answer from one collection to the next.
struct Life<'a> {
    window: Window<'a>,
    sides: [Counts; 2],
    status: Vec<MetricStatus>,
}

impl<'a> Life<'a> {
    fn new(metric: &'a Metric, horizon: Option<i64>) -> Self {
        let window = tests::window(std::slice::from_ref(metric), horizon);
        let window = Window { guards: vec![], ..window };
        Self { window, sides: Default::default(), status: vec![] }
    }

    /// Stable's and the canary's requests and failures of one caller. What fails is slow, too.
    fn count(&mut self, caller: &str, batch: [(u64, u64); 2]) {
        for (side, (n, bad)) in self.sides.iter_mut().zip(batch) {
            side.assigned += n;
            side.requests += n;
            side.errors += bad;
            for (seconds, count) in [(0.2, n - bad), (20.0, bad)] {
                *side.duration.entry(buckets::index(seconds)).or_default() += count;
            }
            let of: &mut CallerCounts = side.callers.entry(caller.to_owned()).or_default();
            of.requests += n;
            of.errors += bad;
        }
    }

    fn judge(&mut self) -> &MetricStatus {
        let [stable, canary] = &self.sides;
        let external = Externals::new();
        let evidence = Evidence { stable, canary, external: &external, pending: 0, earlier: &[] };
        self.status = assess(&self.window, &evidence, &self.status);
        &self.status[0]
    }

    /// After a collection of one caller's requests.
    fn after(&mut self, batch: [(u64, u64); 2]) -> &MetricStatus {
        self.count("a", batch);
        self.judge()
    }

    /// How many more of these batches it takes until the canary fails.
    fn fails_within(&mut self, most: usize, batch: [(u64, u64); 2]) -> Option<usize> {
        (1..=most).find(|_| self.after(batch).verdict == Verdict::Fail)
    }
}

const GOOD: [(u64, u64); 2] = [(100, 1), (100, 1)];

#[test]
fn a_canary_that_turns_bad_is_found_however_long_it_was_good() {
    for metric in [errors(), durations()] {
        for horizon in [None, Some(2_000)] {
            for good in [1, 20, 200, 2_000] {
                for (bad, most) in [(100, 4), (50, 4), (20, 5)] {
                    let mut life = Life::new(&metric, horizon);
                    for _ in 0..good {
                        assert_ne!(life.after(GOOD).verdict, Verdict::Fail);
                    }
                    let found = life.fails_within(most, [(100, 1), (100, bad)]);
                    let message = &life.status[0].message;
                    assert!(found.is_some(), "{} {horizon:?} {good} {bad}: {message}", metric.name);
                }
            }
        }
    }
}

#[test]
fn few_requests_at_a_time_find_it_too() {
    let errors = errors();
    let mut life = Life::new(&errors, None);
    for _ in 0..20_000 {
        life.after([(30, 0), (3, 0)]);
    }
    // A canary at one percent of the traffic, sometimes without stable's requests between.
    let found = (1..30).find(|i| {
        let stable = if i % 2 == 0 { (60, 0) } else { (0, 0) };
        life.after([stable, (1, 1)]).verdict == Verdict::Fail
    });
    let message = &life.status[0].message;
    assert!(found.is_some(), "{message}");
    assert!(message.starts_with("since it began to look worse: canary 100.0 % of"), "{message}");
}

#[test]
fn an_incident_of_stables_excuses_no_canary_that_fails_later() {
    let errors = errors();
    let mut life = Life::new(&errors, Some(2_000));
    for _ in 0..30 {
        life.after([(1_000, 500), (10, 0)]);
    }
    assert!(life.fails_within(4, [(1_000, 10), (10, 10)]).is_some(), "{:?}", life.status);
}

#[test]
fn nothing_passes_while_the_canary_seems_to_have_turned_bad() {
    let errors = errors();
    let mut life = Life::new(&errors, Some(2_000));
    while life.status.first().is_none_or(|m| m.looks.len() < 30) && life.sides[1].requests < 1_900 {
        life.after(GOOD);
    }
    life.after([(20, 0), (5, 5)]);
    assert_eq!(combine(&life.status), Verdict::Pass, "it may be chance");
    life.after([(20, 0), (2, 2)]);
    assert_eq!(life.status[0].verdict, Verdict::Pass, "of all, few fail");
    assert_eq!(combine(&life.status), Verdict::Undecided);
    for _ in 0..3 {
        life.after(GOOD);
    }
    assert_eq!(combine(&life.status), Verdict::Pass);
}

#[test]
fn one_caller_turns_no_canary_bad() {
    let errors = errors();
    for (others, verdict) in [(0, Verdict::Undecided), (10, Verdict::Fail)] {
        let mut life = Life::new(&errors, None);
        for i in 0..2_006 {
            let bad = if i < 2_000 { [0, 0] } else { [20, others] };
            for (caller, bad) in ["a", "b", "c"].into_iter().zip([bad[0], bad[1], bad[1]]) {
                life.count(caller, [(20, 0), (20, bad)]);
            }
            life.judge();
        }
        let status = &life.status[0];
        assert_eq!((status.verdict, others), (verdict, others), "{}", status.message);
        let named = (verdict != Verdict::Fail).then_some("a");
        assert_eq!(status.caller.as_deref(), named, "{}", status.message);
        if named.is_some() {
            assert!(status.message.contains("because of one caller, a"), "{}", status.message);
            assert!(
                status.message.contains("of the others: canary 0.0 % of"),
                "{}",
                status.message
            );
        }
    }
}

#[test]
fn a_bad_moment_turns_no_canary_bad() {
    let errors = errors();
    let mut life = Life::new(&errors, None);
    for i in 0..1_000 {
        let bad = if i % 20 == 19 { 25 } else { 1 };
        let status = life.after([(100, 1), (100, bad)]);
        assert_ne!(status.verdict, Verdict::Fail, "{i}: {}", status.message);
    }
}

#[test]
fn counts_that_begin_anew_are_no_turn() {
    let errors = errors();
    let mut life = Life::new(&errors, None);
    for _ in 0..50 {
        life.after(GOOD);
    }
    life.sides = Default::default();
    for _ in 0..50 {
        assert_ne!(life.after(GOOD).verdict, Verdict::Fail);
    }
}

/// A canary at the harm margin, however it comes to be there, is rolled back as seldom as the
/// test from the start alone would: of 1,000 at most as many as the error that later beginnings
/// have, and five standard errors.
#[test]
fn canaries_at_the_harm_margin_are_seldom_found_to_turn_bad() {
    let (errors, runs) = (errors(), 1_000);
    let mut rng = StdRng::seed_from_u64(17);
    let mut found = 0;
    for run in 0..runs {
        let mut life = Life::new(&errors, None);
        life.window.open_alpha = 0.05;
        let n = 5 << (run % 4);
        for _ in 0..200 {
            // Both sides change with time.
            let base = if rng.random_bool(0.3) { 0.2 } else { 0.01 };
            let mut side =
                |n: u64, p: f64| (n, (0..n).filter(|_| rng.random_bool(p)).count() as u64);
            let status = life.after([side(2 * n, base), side(n, base + 0.02)]);
            if status.verdict == Verdict::Fail {
                found += u32::from(status.message.starts_with("since it began"));
                break;
            }
        }
    }
    let (share, alpha) = (f64::from(found) / f64::from(runs), 0.05 * 0.2);
    let most = alpha + 5.0 * (alpha * (1.0 - alpha) / f64::from(runs)).sqrt();
    assert!(share <= most, "{share}");
}
