//! Steps that are looks of one test.

use super::*;
use crate::{
    analysis::{
        external::{External, Externals},
        judge::{Boundaries, Evidence, assess_with, carry_over, has_samples},
        stats::proportion::Share,
    },
    api::prompt_release::{CallerCounts, Counts, ExternalCounts, Sample, StepEvidence, Sums},
};

fn policy(steps: &str, metrics: &str) -> CanaryPolicySpec {
    let text = format!("{{steps: {steps}, analysis: {{evidence: Pooled, metrics: {metrics}}}}}");
    serde_yaml_ng::from_str(&text).unwrap()
}

const STEPS: &str =
    "[{weight: 5, samples: 40}, {weight: 25, samples: 100}, {weight: 50, samples: 400}]";
const ERRORS: &str = "[{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}]";

fn counts(requests: u64, errors: u64) -> Counts {
    Counts { assigned: requests, requests, errors, ..Counts::default() }
}

/// A canary under test: its steps, one after another.
struct Canary<'a> {
    policy: &'a CanaryPolicySpec,
    earlier: Vec<StepEvidence>,
    status: Vec<MetricStatus>,
    known: Boundaries,
}

impl<'a> Canary<'a> {
    fn new(policy: &'a CanaryPolicySpec) -> Self {
        Self { policy, earlier: vec![], status: vec![], known: Boundaries::default() }
    }

    fn look(&mut self, index: usize, stable: &Counts, canary: &Counts) -> Verdict {
        let window = Window::new(self.policy, index);
        let external = &Externals::new();
        let earlier = self.earlier.as_slice();
        let evidence = Evidence { stable, canary, external, pending: 0, earlier };
        self.status = assess_with(&mut self.known, &window, &evidence, &self.status);
        verdict(&window, &self.status)
    }

    fn leave(&mut self, index: i32, stable: Counts, canary: Counts) {
        let (stable, canary) = (stable.into(), canary.into());
        self.earlier.push(StepEvidence { step: index, stable, canary, ..StepEvidence::default() });
        self.status = carry_over(&self.status, true);
    }
}

#[test]
fn a_step_goes_on_with_its_samples_when_nothing_speaks_against_the_canary() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    assert_eq!(canary.look(0, &counts(700, 7), &counts(38, 0)), Verdict::Undecided);
    assert_eq!(canary.look(0, &counts(760, 8), &counts(40, 0)), Verdict::Pass);
    let in_step = canary.status[0].in_step.unwrap();
    assert!((in_step.seen, in_step.wanted, in_step.closed) == (40, 40, true), "{in_step:?}");
    assert_eq!(canary.status[0].verdict, Verdict::Undecided, "nothing is shown by so few");
}

#[test]
fn a_step_in_which_the_canary_looks_worse_goes_on_until_it_does_not() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    assert_eq!(canary.look(0, &counts(760, 8), &counts(40, 4)), Verdict::Undecided);
    assert_eq!(against(&canary.status).map(|m| m.metric.as_str()), Some("errors"));
    assert_eq!(canary.look(0, &counts(1_900, 19), &counts(100, 5)), Verdict::Pass);
    // What it took longer is taken from the time of the later steps.
    let looks = canary.status[0].looks.clone();
    canary.leave(0, counts(1_900, 19), counts(100, 5));
    canary.look(1, &counts(90, 1), &counts(30, 0));
    let after = &canary.status[0].looks;
    assert!(after.starts_with(&looks) && after.len() > looks.len(), "{looks:?} {after:?}");
    assert!(after.windows(2).all(|w| w[0] < w[1]), "{after:?}");
}

#[test]
fn the_last_step_has_to_prove_it_and_all_steps_count() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    canary.look(0, &counts(760, 8), &counts(40, 0));
    canary.leave(0, counts(760, 8), counts(40, 0));
    canary.look(1, &counts(300, 3), &counts(100, 1));
    canary.leave(1, counts(300, 3), counts(100, 1));
    assert_eq!(canary.look(2, &counts(30, 0), &counts(30, 0)), Verdict::Undecided);
    assert_eq!(canary.look(2, &counts(160, 2), &counts(160, 2)), Verdict::Pass);
    let errors = &canary.status[0];
    assert_eq!((errors.canary.count, errors.stable.count), (300, 1_220));
    // Alone, these samples decide nothing.
    let mut alone = Canary::new(&policy);
    alone.earlier.clear();
    assert_ne!(alone.look(2, &counts(160, 2), &counts(160, 2)), Verdict::Pass);
}

#[test]
fn a_bad_moment_is_one_of_its_own_step_and_rolls_nobody_back() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    canary.look(0, &counts(760, 8), &counts(40, 0));
    canary.leave(0, counts(760, 8), counts(40, 0));
    assert!(canary.status[0].batches.is_none());
    let batches = |canary: &Canary<'_>| canary.status[0].batches.clone().unwrap();
    canary.look(1, &counts(150, 1), &counts(50, 0));
    assert_eq!(canary.look(1, &counts(300, 3), &counts(100, 30)), Verdict::Undecided);
    assert_eq!((batches(&canary).count, batches(&canary).decide), (2, true));
    assert!(canary.status[0].message.contains("moments"), "{}", canary.status[0].message);
    // It goes on: two of three are not the exception.
    assert_eq!(canary.look(1, &counts(450, 4), &counts(150, 60)), Verdict::Fail);
}

#[test]
fn what_was_good_before_hides_nothing_that_is_worse_in_the_last_step() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    for (index, (stable, own)) in [(5_000, 300), (3_000, 1_000)].into_iter().enumerate() {
        canary.look(index, &counts(stable, stable / 100), &counts(own, own / 100));
        canary.leave(index as i32, counts(stable, stable / 100), counts(own, own / 100));
    }
    // All together it is within the margin, in this step it is not.
    assert_eq!(canary.look(2, &counts(60, 0), &counts(60, 5)), Verdict::Undecided);
    let errors = &canary.status[0];
    assert!(
        errors.difference.unwrap() < 0.05 && errors.in_step.unwrap().difference.unwrap() > 0.05
    );
    // More of it fails by itself.
    let more = (4..=20).map(|i| 20 * i);
    let verdicts: Vec<Verdict> =
        more.map(|n| canary.look(2, &counts(n, n / 100), &counts(n, n * 15 / 100))).collect();
    assert_eq!(verdicts.last(), Some(&Verdict::Fail), "{:?}", canary.status);
}

#[test]
fn all_accepted_early_a_step_still_sees_a_tenth_of_its_samples() {
    let policy = policy(
        "[{weight: 5, samples: 2000}, {weight: 25, samples: 1000}, {weight: 50, samples: 1000}]",
        ERRORS,
    );
    let mut canary = Canary::new(&policy);
    let first = (counts(30_000, 300), counts(1_500, 15));
    assert_eq!(canary.look(0, &first.0, &first.1), Verdict::Pass, "{:?}", canary.status);
    canary.leave(0, first.0, first.1);
    assert_eq!(canary.look(1, &counts(150, 1), &counts(50, 0)), Verdict::Undecided);
    assert_eq!(canary.status[0].verdict, Verdict::Pass);
    assert_eq!(canary.look(1, &counts(300, 3), &counts(100, 1)), Verdict::Pass);
}

#[test]
fn what_is_not_measured_in_a_step_does_not_pass_it() {
    let checks = "[{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}, {name: checks, checkFailures: {}, margin: {harm: 0.02, accept: 0.05}}]";
    let policy = policy(STEPS, checks);
    let mut canary = Canary::new(&policy);
    assert_eq!(canary.look(0, &counts(760, 8), &counts(40, 0)), Verdict::NoData);
    let checked = |requests: u64| Counts { checked: requests, ..counts(requests, 0) };
    assert_eq!(canary.look(0, &checked(760), &checked(40)), Verdict::Pass);
    canary.leave(0, checked(760), checked(40));
    assert_eq!(canary.look(1, &counts(300, 0), &counts(100, 0)), Verdict::NoData);
}

#[test]
fn a_step_that_shows_it_sooner_does_not_wait_for_its_samples() {
    let policy = policy(
        "[{weight: 5, samples: 400}, {weight: 25, samples: 400}, {weight: 50, samples: 400}]",
        ERRORS,
    );
    let early = |failed| {
        let mut canary = Canary::new(&policy);
        let verdict = canary.look(0, &counts(3_800, 38), &counts(200, failed));
        let in_step = canary.status[0].in_step.unwrap();
        assert!(in_step.seen == 200 && !in_step.accepted, "{in_step:?}");
        (verdict, in_step.closed, canary.status[0].verdict)
    };
    assert_eq!(early(1), (Verdict::Pass, true, Verdict::Undecided), "the gate, not the canary");
    assert_eq!(early(8), (Verdict::Undecided, false, Verdict::Undecided));
    let mut canary = Canary::new(&policy);
    let few = canary.look(0, &counts(570, 0), &counts(30, 0));
    assert_eq!(few, Verdict::Undecided, "a tenth of its samples is the least");
    // Ten of the canary's requests hang: they may be about to fail.
    let mut canary = Canary::new(&policy);
    let mut hanging = Counts { assigned: 210, ..counts(200, 1) };
    hanging.open.duration.insert(9, 10);
    assert_eq!(canary.look(0, &counts(3_800, 38), &hanging), Verdict::Undecided);
    assert!(!canary.status[0].in_step.unwrap().closed);
}

#[test]
fn the_last_step_waits_for_what_is_open_when_all_steps_have_their_samples() {
    let policy = policy(STEPS, ERRORS);
    let window = |index| Window::new(&policy, index);
    let seen = |step, requests| {
        let canary = counts(requests, 0).into();
        StepEvidence { step, canary, ..StepEvidence::default() }
    };
    let has = |index, requests, earlier: &[StepEvidence]| {
        has_samples(&window(index), &counts(requests, 0), earlier)
    };
    assert!(has(1, 100, &[seen(0, 10)]) && !has(1, 99, &[seen(0, 80)]), "its own");
    let planned = [seen(0, 40), seen(1, 100)];
    assert!(has(2, 400, &planned) && !has(2, 399, &planned));
    // 30 requests at 5 % are as much as 57 at 50 %.
    let early = [seen(0, 10), seen(1, 100)];
    assert!(has(2, 457, &early) && !has(2, 456, &early));
    // The second step has counted nothing: 100 requests at 25 % are 150.
    assert!(has(2, 550, &[seen(0, 40)]) && !has(2, 549, &[seen(0, 40)]));
    // The test has begun anew: evidence from before does not count in it.
    assert!(has(2, 400, &[]) && !has(2, 399, &[]));
    // What one saw more makes up for what another saw less, and else for nothing.
    let late = [seen(0, 40), seen(1, 200)];
    assert!(has(2, 400, &late) && !has(2, 399, &late));
    let late = [seen(0, 10), seen(1, 138)];
    assert!(has(2, 400, &late) && !has(2, 399, &late));
}

#[test]
fn a_change_of_both_between_steps_is_no_difference() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    canary.look(0, &counts(760, 4), &counts(40, 0));
    canary.leave(0, counts(760, 4), counts(40, 0));
    // Since then both fail a fifth. All in all, the canary fails 16 %, stable 10 %.
    canary.look(1, &counts(300, 60), &counts(100, 20));
    canary.leave(1, counts(300, 60), counts(100, 20));
    canary.look(2, &counts(300, 60), &counts(300, 60));
    let errors = &canary.status[0];
    assert!(errors.difference.unwrap().abs() < 0.002, "{errors:?}");
    assert_ne!(errors.verdict, Verdict::Fail);
}

#[test]
fn the_error_is_spent_on_planned_samples_and_alike_are_looks_by_their_information() {
    let policy = policy(STEPS, ERRORS);
    let pool = Pool::of(&policy, 1).unwrap();
    let metric = &policy.analysis.metrics[0];
    // Sizes: 38 of 313, 75 and 200.
    let seen = |step, samples, variance| Seen { step, samples, variance };
    let second = |first, now| pool.clock(metric, &[first], now, false);
    let clock = second(seen(0, 40.0, 0.01), seen(1, 50.0, 0.01));
    assert!((clock.time - (38.0 + 37.5) / 313.0).abs() < 1e-12, "{clock:?}");
    let at = [19.0 / 313.0, clock.time];
    assert!((clock.information(&at)[0] - 19.0 / 75.5).abs() < 1e-12);
    // Both sides fail more often now: a request gives a tenth of the information.
    let clock = second(seen(0, 40.0, 0.01), seen(1, 50.0, 0.1));
    assert!((clock.information(&at)[0] - 19.0 / (38.0 + 3.75)).abs() < 1e-12);
    // What a step that was left early did not see is seen later.
    let clock = second(seen(0, 10.0, 0.01), seen(1, 0.0, 0.01));
    assert!((clock.time - 9.5 / 313.0).abs() < 1e-12);
    // One that took longer takes it from the next.
    let clock = second(seen(0, 80.0, 0.01), seen(1, 0.0, 0.01));
    assert!((clock.time - 76.0 / 313.0).abs() < 1e-12);
    // At the end as much was seen as was planned, wherever that was.
    let last = Pool::of(&policy, 2).unwrap();
    let time = |first: f64, middle: f64, here: f64| {
        let earlier = [seen(0, first, 0.01), seen(1, middle, 0.01)];
        last.clock(metric, &earlier, seen(2, here, 0.01), false).time
    };
    assert_eq!(time(40.0, 100.0, 400.0), 1.0);
    assert!(time(10.0, 100.0, 456.0) < 1.0 && time(10.0, 100.0, 457.0) >= 1.0);
    assert!(time(10.0, 138.0, 399.0) < 1.0 && time(10.0, 138.0, 400.0) >= 1.0);
    // The last step has its own samples, however much was seen before.
    for (first, middle) in [(80.0, 100.0), (40.0, 5_000.0), (5_000.0, 5_000.0)] {
        assert!(time(first, middle, 399.0) < 1.0, "{first} {middle}");
        assert!(time(first, middle, 400.0) >= 1.0, "{first} {middle}");
    }
}

#[test]
fn a_step_that_goes_on_for_long_leaves_time_to_those_after_it() {
    let policy = policy(STEPS, ERRORS);
    let metric = &policy.analysis.metrics[0];
    let at = |step: usize| Pool::of(&policy, step).unwrap();
    let seen = |step, samples| Seen { step, samples, variance: 0.01 };
    // Sizes: 38, 75 and 200 of 313. Half of the 275 that come are left, however long it takes.
    let first = |samples, against| at(0).clock(metric, &[], seen(0, samples), against);
    assert!((first(80.0, false).time - 76.0 / 313.0).abs() < 1e-12);
    for samples in [300.0, 5_000.0] {
        let time = first(samples, false).time;
        assert!((time - (1.0 - 0.5 * 275.0 / 313.0)).abs() < 1e-12, "{samples}: {time}");
    }
    // It ends for a metric that all the planned samples leave beyond its margin.
    assert!(first(329.0, true).time < 1.0 && first(330.0, true).time >= 1.0);
    // The next one begins there, and its samples take as much less time; so on to the end.
    let before = first(5_000.0, false).time;
    let second = at(1).clock(metric, &[seen(0, 5_000.0)], seen(1, 50.0), false);
    assert!((second.time - (before + 0.5 * 37.5 / 313.0)).abs() < 1e-12, "{second:?}");
    // All that was seen is information, also what no time was left for.
    let information = second.information(&[19.0 / 313.0, second.time]);
    assert!((information[0] - 19.0 / (4_750.0 + 37.5)).abs() < 1e-12, "{information:?}");
    let within = first(5_000.0, false).information(&[19.0 / 313.0, before]);
    assert!((within[0] - 19.0 / 4_750.0).abs() < 1e-12 && within[1] == 1.0, "{within:?}");
}

#[test]
fn a_metric_does_not_end_the_test_while_another_waits_for_its_samples() {
    let scores =
        "{name: scores, score: {name: s, minSamples: 540}, margin: {harm: 0.05, accept: 0.1}}";
    let policy = policy(STEPS, &format!("{}, {scores}]", ERRORS.trim_end_matches(']')));
    let mut canary = Canary::new(&policy);
    // Few users tell what they think. The canary's errors are too many to be accepted by all the
    // planned samples, and too few to end the test.
    for n in 1..=16 {
        let scored = |n: u64, bad| {
            let (count, likes) = (n / 40, n as f64 / 50.0);
            let sums = Sums { count, sum: likes, squares: likes, cubes: likes };
            Counts { scores: [("s".to_owned(), sums)].into(), ..counts(n, bad) }
        };
        let verdict = canary.look(0, &scored(1_900 * n, 19 * n), &scored(100 * n, 4 * n));
        let wanted = if n < 16 { Verdict::Undecided } else { Verdict::Pass };
        assert_eq!(verdict, wanted, "{n}: {:?}", canary.status);
    }
    assert_eq!(canary.status[0].verdict, Verdict::Undecided);
}

#[test]
fn a_test_that_ended_in_an_earlier_step_has_no_answer_in_the_later_ones() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    // Beyond the accept margin and not shown to be beyond that of harm, until the end.
    let mut verdict = Verdict::Undecided;
    for n in 1..=9 {
        verdict = canary.look(0, &counts(760 * n, 152 * n), &counts(40 * n, n * 102 / 10));
    }
    assert_eq!(verdict, Verdict::Inconclusive, "{:?}", canary.status);
    canary.leave(0, counts(6_840, 1_368), counts(360, 91));
    // `onInconclusive: Promote` goes on with it.
    assert_eq!(canary.look(1, &counts(297, 60), &counts(99, 20)), Verdict::Undecided);
    assert_eq!(canary.look(1, &counts(300, 60), &counts(100, 20)), Verdict::Inconclusive);
}

#[test]
fn a_canary_that_was_looked_at_by_another_clock_goes_on() {
    let policy = policy(STEPS, ERRORS);
    let mut canary = Canary::new(&policy);
    canary.look(0, &counts(760, 152), &counts(40, 8));
    canary.leave(0, counts(760, 152), counts(40, 8));
    // Before an upgrade, a step that took long used up the time of the later ones.
    canary.status[0].looks.push(0.9);
    assert_eq!(canary.look(1, &counts(297, 60), &counts(99, 20)), Verdict::Undecided);
    assert_eq!(canary.look(1, &counts(300, 60), &counts(100, 20)), Verdict::Pass);
}

#[test]
fn a_shadow_divides_the_pools_and_an_approval_does_not() {
    let policy = policy(
        "[{weight: 5, samples: 40}, {approval: {}}, {weight: 10, samples: 40}, {shadow: {percent: 5, samples: 40}}, {weight: 50, samples: 40}]",
        ERRORS,
    );
    let of = |index| Pool::of(&policy, index).map(|pool| (pool.len(), pool.is_last()));
    assert_eq!(
        [0, 1, 2, 3, 4, 9].map(of),
        [Some((2, false)), None, Some((2, true)), None, None, None]
    );
    assert_eq!(Pool::pooled_away(&policy), 1);
    // What all windows may spend together is promised.
    let spent: f64 = (0..5)
        .map(|index| {
            let window = Window::new(&policy, index);
            let first = window.pool.as_ref().is_none_or(|pool| pool.at == 0);
            window.open_alpha + if first { window.harm_alpha } else { 0.0 }
        })
        .sum();
    let bake = Window::new(&policy, usize::MAX).open_alpha;
    let promised = policy.analysis.error_rates.false_rollback * 0.9;
    assert!((spent + bake - promised).abs() < 1e-12, "{spent} {bake} {promised}");
}

#[test]
fn counts_of_prometheus_are_pooled_too() {
    let metric =
        "[{name: retries, prometheus: {bad: a, total: b}, margin: {harm: 0.02, accept: 0.05}}]";
    let policy = policy(STEPS, metric);
    let window = Window::new(&policy, 2);
    let share = |n, bad| Share { n, bad };
    let external: Externals = [(
        "retries".to_owned(),
        External::Shares { stable: share(200.0, 2.0), canary: share(200.0, 2.0) },
    )]
    .into();
    let sample = |count, value| Sample { count, value };
    let counts_before = ExternalCounts { stable: sample(760, 0.01), canary: sample(300, 0.01) };
    let earlier = vec![StepEvidence {
        step: 0,
        stable: counts(760, 0).into(),
        canary: counts(300, 0).into(),
        external: [("retries".to_owned(), counts_before)].into(),
    }];
    let (stable, canary) = (counts(200, 0), counts(200, 0));
    let evidence = Evidence {
        stable: &stable,
        canary: &canary,
        external: &external,
        pending: 0,
        earlier: &earlier,
    };
    let status = assess_with(&mut Boundaries::default(), &window, &evidence, &[]);
    assert_eq!((status[0].canary.count, status[0].stable.count), (500, 960));
    // It does not answer: what it has counted in this step is not lost.
    let (reason, message) = ("Unreachable", "no answer".to_owned());
    let away: Externals = [("retries".into(), External::Missing { reason, message })].into();
    let evidence = Evidence { external: &away, ..evidence };
    let silent = assess_with(&mut Boundaries::default(), &window, &evidence, &status);
    assert_eq!(silent[0].verdict, Verdict::NoData);
    assert_eq!(silent[0].in_step, status[0].in_step);
    assert_eq!(silent[0].in_step.map(|s| (s.canary.count, s.seen)), Some((200, 200)));
}

#[test]
fn one_caller_decides_nothing_in_all_steps_together() {
    let policy = policy(STEPS, ERRORS);
    let of = |requests: u64, errors: u64, own: u64, own_errors: u64| Counts {
        callers: [("team-a", own, own_errors), ("team-b", requests - own, errors - own_errors)]
            .map(|(name, requests, errors)| {
                (name.to_owned(), CallerCounts { requests, errors, ..CallerCounts::default() })
            })
            .into(),
        ..counts(requests, errors)
    };
    let mut canary = Canary::new(&policy);
    // All failures of the canary are those of one of two callers.
    let (stable, own) = (of(3_800, 38, 1_900, 19), of(200, 40, 100, 40));
    assert_eq!(canary.look(0, &stable, &own), Verdict::Undecided);
    assert_eq!(canary.status[0].caller.as_deref(), Some("team-a"));
    canary.leave(0, stable, own);
    canary.look(1, &of(300, 3, 150, 1), &of(100, 1, 50, 1));
    assert_ne!(canary.status[0].verdict, Verdict::Fail, "{:?}", canary.status[0]);
    // Both callers' failures are the canary's.
    let mut canary = Canary::new(&policy);
    assert_eq!(canary.look(0, &of(3_800, 38, 1_900, 19), &of(200, 60, 100, 30)), Verdict::Fail);
}
