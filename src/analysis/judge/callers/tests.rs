//! Streams of requests by several callers, judged as a step would be.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    analysis::{
        callers::coarse,
        external::Externals,
        judge::{Boundaries, assess, assess_with},
    },
    api::{
        canary_policy::{Floor, Latency, Margin, Nothing, Score},
        prompt_release::Sums,
    },
};

const HORIZON: i64 = 400;
const LONGEST: usize = 20_000;

/// What one caller does: how often, and how it fares on each side.
#[derive(Clone, Copy)]
struct Caller {
    name: &'static str,
    /// Requests a round on stable and on the canary.
    rate: [f64; 2],
    /// The share of bad ones on stable and on the canary.
    bad: [f64; 2],
}

/// Users drawn by chance: a fifth of them to the canary.
fn honest(name: &'static str, rate: f64, bad: [f64; 2]) -> Caller {
    Caller { name, rate: [0.8 * rate, 0.2 * rate], bad }
}

/// Chooses its sticky keys, and sends what is bad to one side only.
fn attacker(rate: f64, bad: [f64; 2]) -> Caller {
    honest("evil", rate, bad)
}

fn metric() -> Metric {
    Metric {
        name: "errors".into(),
        error_rate: Some(Nothing {}),
        margin: Some(Margin { harm: 0.05, accept: 0.10 }),
        ..Metric::default()
    }
}

/// A step that ends after 300 samples, without built-in comparisons.
fn window(metrics: &[Metric]) -> Window<'_> {
    Window {
        metrics,
        horizon: Some(300),
        harm_alpha: 0.01,
        open_alpha: 0.001,
        accept_alpha: 0.05,
        guards: vec![],
        guard_rate: 0.0,
        relative: true,
        paired: false,
        pool: None,
        explained: true,
    }
}

struct World {
    rng: StdRng,
    sides: [Counts; 2],
    named: bool,
    status: Vec<MetricStatus>,
    rounds: usize,
    critical: Boundaries,
}

impl World {
    fn new(seed: u64, named: bool) -> Self {
        let (rng, sides) = (StdRng::seed_from_u64(seed), Default::default());
        Self { rng, sides, named, status: vec![], rounds: 0, critical: Boundaries::default() }
    }

    fn round(&mut self, callers: &[Caller]) {
        for caller in callers {
            for side in 0..2 {
                let n = caller.rate[side];
                let more = u32::from(self.rng.random::<f64>() < n.fract());
                for _ in 0..n as u32 + more {
                    let bad = u64::from(self.rng.random::<f64>() < caller.bad[side]);
                    let counts = &mut self.sides[side];
                    counts.assigned += 1;
                    counts.requests += 1;
                    counts.errors += bad;
                    if self.named {
                        let own = counts.callers.entry(caller.name.to_owned()).or_default();
                        own.requests += 1;
                        own.errors += bad;
                    }
                }
            }
        }
    }

    fn judge(&mut self) -> Verdict {
        let metrics = [metric()];
        let window = Window {
            metrics: &metrics,
            horizon: Some(HORIZON),
            harm_alpha: 0.01,
            open_alpha: 0.0025,
            accept_alpha: 0.05,
            guards: vec![],
            guard_rate: 0.0,
            relative: true,
            paired: false,
            pool: None,
            explained: false,
        };
        let [stable, canary] = &self.sides;
        let external = Externals::new();
        let evidence = Evidence { stable, canary, external: &external, pending: 0, earlier: &[] };
        self.status = assess_with(&mut self.critical, &window, &evidence, &self.status);
        self.status[0].verdict
    }

    /// Until a verdict, the end of the step, or for so many rounds.
    fn run(&mut self, callers: &[Caller], most: usize) -> Verdict {
        for _ in 0..most {
            self.rounds += 1;
            self.round(callers);
            let verdict = self.judge();
            if matches!(verdict, Verdict::Pass | Verdict::Fail) {
                return verdict;
            }
            let [_, canary] = &self.sides;
            if canary.requests > 4 * HORIZON as u64 {
                return verdict;
            }
        }
        self.status[0].verdict
    }
}

/// Of so many canaries: how many fail and pass, how many name a caller at the end, and how
/// long they take in the mean.
fn many(runs: u64, callers: &[Caller], named: bool) -> (u64, u64, u64, f64) {
    let (mut failed, mut passed, mut held, mut rounds) = (0, 0, 0, 0);
    for seed in 0..runs {
        let mut world = World::new(seed, named);
        match world.run(callers, LONGEST) {
            Verdict::Fail => failed += 1,
            Verdict::Pass => passed += 1,
            _ => held += u64::from(world.status[0].caller.is_some()),
        }
        rounds += world.rounds;
    }
    (failed, passed, held, rounds as f64 / runs as f64)
}

const GOOD: [f64; 2] = [0.02, 0.02];

#[test]
fn one_caller_can_not_roll_back_a_good_canary() {
    let rest = [honest("a", 5.0, GOOD), honest("b", 3.0, GOOD)];
    for rate in [2.0, 5.0, 7.5] {
        let callers = [rest[0], rest[1], attacker(rate, [0.0, 1.0])];
        let (failed, passed, held, _) = many(100, &callers, true);
        assert!(failed <= 5, "{rate}: {failed} of 100 failed, {passed} passed, {held} held");
        let (before, ..) = many(20, &callers, false);
        assert_eq!(before, 20, "without the rule every one does");
    }
}

#[test]
fn one_caller_can_not_promote_a_bad_canary() {
    let bad = [0.02, 0.30];
    // It sends what works to the canary, and failures to stable.
    let rest = [honest("a", 5.0, bad), honest("b", 3.0, bad)];
    for stable in [0.0, 1.0] {
        let evil = Caller { name: "evil", rate: [1.0, 6.5], bad: [stable, 0.0] };
        let (_, passed, ..) = many(100, &[rest[0], rest[1], evil], true);
        assert!(passed <= 5, "{passed} of 100 passed");
    }
}

#[test]
fn a_canary_that_is_bad_for_everybody_is_found_nearly_as_soon() {
    for (bad, slower) in [(0.5, 1.5), (0.25, 1.5), (0.15, 1.5)] {
        for shares in [[4.0, 3.0, 3.0], [4.9, 4.9, 0.2], [8.0, 1.0, 1.0]] {
            let callers: Vec<Caller> = ["a", "b", "c"]
                .into_iter()
                .zip(shares)
                .map(|(name, rate)| honest(name, rate, [0.02, bad]))
                .collect();
            let (failed, _, _, rounds) = many(40, &callers, true);
            let (plain_failed, .., plain) = many(40, &callers, false);
            assert!(failed + 2 >= plain_failed, "{bad}, {shares:?}: {failed} of {plain_failed}");
            assert!(rounds <= slower * plain + 2.0, "{bad}, {shares:?}: {rounds} of {plain}");
        }
    }
}

#[test]
fn an_equal_canary_of_several_callers_passes_as_before() {
    let callers = [honest("a", 5.0, GOOD), honest("b", 4.0, GOOD), honest("c", 1.0, GOOD)];
    let (failed, passed, ..) = many(100, &callers, true);
    let (plain_failed, plain_passed, ..) = many(100, &callers, false);
    assert!(failed <= plain_failed && passed + 5 >= plain_passed, "{passed} of {plain_passed}");
}

#[test]
fn a_caller_alone_or_with_most_of_the_requests_decides_as_before() {
    let mut callers = vec![honest("a", 8.0, [0.02, 0.5])];
    assert_eq!(many(20, &callers, true), many(20, &callers, false));
    callers.push(honest("b", 1.0, GOOD));
    assert_eq!(many(20, &callers, true).0, 20, "eight of nine requests are its own");
}

#[test]
fn the_caller_is_named_and_the_canary_does_not_fail() {
    let rest = [honest("a", 5.0, GOOD), honest("b", 3.0, GOOD)];
    let attacked = [rest[0], rest[1], attacker(5.0, [0.0, 1.0])];
    for seed in 0..20 {
        let mut world = World::new(seed, true);
        world.run(&attacked, 40);
        let status = &world.status[0];
        assert_eq!(status.caller.as_deref(), Some("evil"), "{}", status.message);
        assert!(status.message.contains("because of one caller, evil"), "{}", status.message);
        assert_ne!(world.run(&rest, 5_000), Verdict::Fail, "{}", world.status[0].message);
    }
}

#[test]
fn what_is_open_or_behind_a_breaker_is_somebodys_too() {
    use crate::{
        analysis::buckets,
        api::prompt_release::{CallerCounts, TurnedAway, Waits},
    };
    let (fast, slow) = (buckets::index(0.1), buckets::index(60.0));
    let stable = Counts {
        assigned: 900,
        requests: 900,
        duration: [(fast, 900)].into(),
        ..Counts::default()
    };
    let open = |n, bucket| Waits { ttft: [(bucket, n)].into(), duration: [(bucket, n)].into() };
    let away = TurnedAway { requests: 100, errors: 80, waiting: 0, probes: 20, probe_errors: 16 };
    let good =
        Counts { assigned: 200, requests: 200, duration: [(fast, 200)].into(), ..stable.clone() };
    let holds = Counts { assigned: 260, open: open(60, slow), ..good.clone() };
    let breaks =
        Counts { assigned: 336, requests: 336, errors: 112, turned_away: away, ..good.clone() };
    let own_holds = CallerCounts { open: open(60, coarse(slow)), ..CallerCounts::default() };
    let own_away =
        TurnedAway { requests: 60, errors: 48, waiting: 0, probes: 16, probe_errors: 16 };
    let own_breaks =
        CallerCounts { requests: 92, errors: 80, turned_away: own_away, ..CallerCounts::default() };
    let duration =
        Metric { error_rate: None, duration: Some(Latency { quantile: 0.9 }), ..metric() };
    for (metric, canary, own) in [(duration, holds, own_holds), (metric(), breaks, own_breaks)] {
        let metrics = [metric];
        let window = window(&metrics);
        let external = Externals::new();
        let judged = |own: CallerCounts| {
            let canary = pair(canary.clone(), own);
            let stable = pair(stable.clone(), CallerCounts::default());
            let evidence = Evidence {
                stable: &stable,
                canary: &canary,
                external: &external,
                pending: 0,
                earlier: &[],
            };
            assess(&window, &evidence, &[]).remove(0)
        };
        let status = judged(own);
        assert_eq!(status.caller.as_deref(), Some("evil"), "{}", status.message);
        let status = judged(CallerCounts { requests: 60, ..CallerCounts::default() });
        assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
    }
}

#[test]
fn so_few_others_confirm_no_failure() {
    use crate::api::prompt_release::{CallerCounts, TurnedAway};
    let stable = Counts { assigned: 900, requests: 900, ..Counts::default() };
    // One of the four requests of others failed.
    let few = Counts { assigned: 44, requests: 44, errors: 41, ..Counts::default() };
    let own_few = CallerCounts { requests: 40, errors: 40, ..CallerCounts::default() };
    // One of the four probes of others failed, for which a fourth of twenty that the breaker
    // turned away counts as failed; twelve more were answered.
    let away = TurnedAway { requests: 60, errors: 45, waiting: 0, probes: 20, probe_errors: 17 };
    let probed =
        Counts { assigned: 102, requests: 102, errors: 75, turned_away: away, ..Counts::default() };
    let own_away =
        TurnedAway { requests: 40, errors: 40, waiting: 0, probes: 16, probe_errors: 16 };
    let own_probed =
        CallerCounts { requests: 70, errors: 70, turned_away: own_away, ..CallerCounts::default() };
    let metrics = [metric()];
    for (canary, own) in [(few, own_few), (probed, own_probed)] {
        let callers = [("evil".to_owned(), own)].into();
        let canary = Counts { callers, ..canary };
        let external = Externals::new();
        let evidence = Evidence {
            stable: &stable,
            canary: &canary,
            external: &external,
            pending: 0,
            earlier: &[],
        };
        let status = assess(&window(&metrics), &evidence, &[]).remove(0);
        assert_eq!(status.caller.as_deref(), Some("evil"), "{}", status.message);
        let unnamed = Counts { callers: Default::default(), ..canary.clone() };
        let evidence = Evidence { canary: &unnamed, ..evidence };
        let status = assess(&window(&metrics), &evidence, &[]).remove(0);
        assert_eq!(status.verdict, Verdict::Fail, "without names it fails: {}", status.message);
    }
}

/// Counts of two honest callers and of one that makes the difference in `own`.
fn pair(all: Counts, own: crate::api::prompt_release::CallerCounts) -> Counts {
    let callers = [("a", 40), ("b", 40)];
    let others = callers.map(|(name, n)| {
        let counts = crate::api::prompt_release::CallerCounts { requests: n, ..<_>::default() };
        (name.to_owned(), counts)
    });
    Counts { callers: others.into_iter().chain([("evil".to_owned(), own)]).collect(), ..all }
}

#[test]
fn every_kind_of_metric_asks_the_others() {
    use crate::api::prompt_release::CallerCounts;
    let sums = |count: u64, value: f64| {
        let n = count as f64;
        Sums { count, sum: n * value, squares: n * value * value * 1.01, cubes: n * value.powi(3) }
    };
    let plus = |a: Sums, b: Sums| Sums {
        count: a.count + b.count,
        sum: a.sum + b.sum,
        squares: a.squares + b.squares,
        cubes: a.cubes + b.cubes,
    };
    let fast = crate::analysis::buckets::index(0.1);
    let slow = crate::analysis::buckets::index(30.0);
    let stable = Counts {
        requests: 900,
        checked: 900,
        check_failures: 9,
        ttft: [(fast, 900)].into(),
        cost: sums(900, 0.01),
        scores: [("s".to_owned(), sums(900, 0.9))].into(),
        ..Counts::default()
    };
    let evil = CallerCounts {
        requests: 60,
        checked: 60,
        check_failures: 60,
        ttft: [(coarse(slow), 60)].into(),
        cost: sums(60, 1.0),
        scores: [("s".to_owned(), sums(60, 0.0))].into(),
        ..CallerCounts::default()
    };
    let canary = Counts {
        requests: 200,
        checked: 200,
        check_failures: 62,
        ttft: [(fast, 140), (slow, 60)].into(),
        cost: plus(sums(140, 0.01), evil.cost),
        scores: [("s".to_owned(), plus(sums(140, 0.9), sums(60, 0.0)))].into(),
        ..Counts::default()
    };
    let margin = Some(Margin { harm: 0.05, accept: 0.10 });
    let plain = Metric { name: "m".into(), margin, ..Metric::default() };
    let latency = Latency { quantile: 0.9 };
    let floor = Floor { max: Some(0.2), min_samples: 20, ..Floor::default() };
    for metric in [
        Metric { check_failures: Some(Nothing {}), ..plain.clone() },
        Metric { time_to_first_token: Some(latency), ..plain.clone() },
        Metric { cost_per_request: Some(Nothing {}), ..plain.clone() },
        Metric { score: Some(Score { name: "s".into(), min_samples: 200 }), ..plain.clone() },
        Metric { check_failures: Some(Nothing {}), floor: Some(floor), ..plain.clone() },
    ] {
        let external = Externals::new();
        let metrics = [metric];
        let window = window(&metrics);
        // The threshold of a latency was chosen before.
        let before = [MetricStatus {
            metric: "m".into(),
            threshold: Some(crate::analysis::buckets::bound(fast + 4)),
            verdict: Verdict::Undecided,
            ..MetricStatus::default()
        }];
        let judged = |own: CallerCounts| {
            let canary = pair(canary.clone(), own);
            let stable = pair(stable.clone(), CallerCounts::default());
            let evidence = Evidence {
                stable: &stable,
                canary: &canary,
                external: &external,
                pending: 0,
                earlier: &[],
            };
            assess(&window, &evidence, &before).remove(0)
        };
        let status = judged(evil.clone());
        let what = &metrics[0];
        assert_eq!(status.caller.as_deref(), Some("evil"), "{what:?}: {}", status.message);
        assert_ne!(status.verdict, Verdict::Fail, "{what:?}");
        // The same by somebody who is not named stays a failure.
        let status = judged(CallerCounts { requests: 60, ..CallerCounts::default() });
        assert_eq!(status.verdict, Verdict::Fail, "{what:?}: {}", status.message);
    }
}
