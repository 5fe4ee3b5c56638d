use super::super::{
    tests::{durations, errors},
    *,
};
use crate::{
    analysis::buckets,
    api::{canary_policy::Floor, prompt_release::Batches},
};

/// What becomes of a step after each of these batches: the canary's requests and failures in it.
/// Stable has as many requests and one failure of each hundred. What fails is slow, too.
fn judged(metric: &Metric, batches: &[(u64, u64)]) -> Vec<MetricStatus> {
    judged_with((metric, 2_000), batches, true)
}

/// As `judged`; without its batches a status looks as if each were the first.
fn judged_with(
    (metric, horizon): (&Metric, i64),
    batches: &[(u64, u64)],
    kept: bool,
) -> Vec<MetricStatus> {
    let metrics = std::slice::from_ref(metric);
    let window = Window { guards: vec![], ..tests::window(metrics, Some(horizon)) };
    let (mut canary, mut stable) = (Counts::default(), Counts::default());
    let mut status: Vec<MetricStatus> = vec![];
    let mut all = vec![];
    for (n, bad) in batches {
        for (side, bad) in [(&mut canary, *bad), (&mut stable, n / 100)] {
            side.assigned += n;
            side.requests += n;
            side.errors += bad;
            for (seconds, count) in [(0.2, n - bad), (20.0, bad)] {
                *side.duration.entry(buckets::index(seconds)).or_default() += count;
            }
        }
        let external = Externals::new();
        let (stable, canary) = (&stable, &canary);
        let evidence = Evidence { stable, canary, external: &external, pending: 0, earlier: &[] };
        status = assess(&window, &evidence, &status);
        all.push(status[0].clone());
        if !kept {
            status[0].batches = None;
        }
    }
    all
}

fn failed_after(judged: &[MetricStatus]) -> Option<usize> {
    judged.iter().position(|status| status.verdict == Verdict::Fail)
}

/// A metric, batches before those that a test is about, and how many good ones may be among these.
type Kind = (Metric, Vec<(u64, u64)>, usize);

/// Errors, and latencies whose threshold was chosen in a batch before. After so many good
/// batches three bad ones are still more than the margin of both together.
fn kinds() -> [Kind; 2] {
    [(errors(), vec![], 30), (durations(), vec![GOOD], 10)]
}

const GOOD: (u64, u64) = (100, 1);
const BAD: (u64, u64) = (100, 50);

#[test]
fn one_bad_moment_rolls_nobody_back_and_a_canary_that_turns_bad_is_found() {
    for (metric, first, most) in kinds() {
        let judged = |batches: &[(u64, u64)]| {
            judged(&metric, &[&first[..], batches].concat())[first.len()..].to_vec()
        };
        let once = judged(&[GOOD, GOOD, GOOD, BAD, GOOD, GOOD]);
        assert_eq!(failed_after(&once), None, "{:?}", once.last());
        let (held, moments) = (&once[3], 4 + first.len());
        let expected = format!("because of {} of {moments} moments", 1 + moments / 5);
        assert!(held.message.contains(&expected), "{}", held.message);
        assert!(held.message.contains("canary 1.0 % of"), "{}", held.message);
        assert!(held.batches.as_ref().unwrap().decide);
        // It is one of the difference again, as soon as it does not decide.
        let diluted = judged(&[&[GOOD, BAD][..], &[GOOD; 18]].concat());
        assert_eq!(failed_after(&diluted), None);
        assert!(!diluted.last().unwrap().batches.as_ref().unwrap().decide);
        // Two collections later at most, however many were good before.
        for good in 0..most {
            let turned = [&vec![GOOD; good][..], &[BAD; 3]].concat();
            let found = failed_after(&judged(&turned)).unwrap();
            assert!((good..good + 3).contains(&found), "{} {good}: {found}", metric.name);
        }
    }
}

#[test]
fn what_is_bad_all_the_time_is_found_as_soon_as_without_the_rule() {
    for (metric, ..) in kinds() {
        for batch in [(100, 15), (20, 2), (20, 6), (7, 1), (7, 3)] {
            let [with, without] = [true, false]
                .map(|kept| failed_after(&judged_with((&metric, 2_000), &[batch; 60], kept)));
            // Two points more than its margin are not found in 420 answers.
            let Some(without) = without else { continue };
            let with = with.unwrap();
            assert!(with <= without + 1, "{} {batch:?}: {with} not {without}", metric.name);
        }
    }
    assert_eq!(failed_after(&judged(&errors(), &[BAD])), Some(0), "there is nothing else to ask");
}

#[test]
fn requests_that_are_open_are_in_no_moment_that_is_left_out() {
    let metrics = [durations()];
    let window = Window { guards: vec![], ..tests::window(&metrics, Some(2_000)) };
    let (fast, long) = (buckets::index(0.2), buckets::index(20.0));
    let side = |ended: u64, open: u64| Counts {
        assigned: ended + open,
        requests: ended,
        duration: [(fast, ended)].into(),
        open: crate::api::prompt_release::Waits {
            duration: [(long, open)].into(),
            ..Default::default()
        },
        ..Counts::default()
    };
    let external = Externals::new();
    let mut status: Vec<MetricStatus> = vec![];
    // From the third collection on a third of the canary's requests hang.
    for (n, open) in [(100, 0), (200, 0), (270, 30), (340, 60)] {
        let (stable, canary) = (side(n + open, 0), side(n, open));
        let (stable, canary) = (&stable, &canary);
        let evidence = Evidence { stable, canary, external: &external, pending: 0, earlier: &[] };
        status = assess(&window, &evidence, &status);
    }
    assert_eq!(status[0].verdict, Verdict::Fail, "{}", status[0].message);
}

#[test]
fn a_bad_moment_at_the_last_look_ends_nothing_until_the_next_collection() {
    for horizon in [150, 200, 400] {
        let turned = judged_with((&errors(), horizon), &[GOOD, (300, 150), BAD], true);
        assert_eq!(combine(&turned[1..2]), Verdict::Undecided, "{}", turned[1].message);
        assert_eq!(failed_after(&turned), Some(2), "{horizon}: it stands without its worst");
        // It was a moment: the step ends with what all of it says.
        let once = [&[GOOD, (300, 20)][..], &[GOOD; 20]].concat();
        let once = judged_with((&errors(), horizon), &once, true);
        assert_eq!(failed_after(&once), None, "{horizon}");
        assert!(once.iter().all(|status| combine(std::slice::from_ref(status)) != Verdict::Fail));
    }
    // Nor does a built-in comparison that waits let others pass.
    let waits = Batches { decide: true, ..Batches::default() };
    let guard = MetricStatus {
        guard: true,
        verdict: Verdict::Undecided,
        batches: Some(waits),
        ..MetricStatus::default()
    };
    for verdict in [Verdict::Pass, Verdict::Inconclusive] {
        let other = MetricStatus { verdict, ..MetricStatus::default() };
        assert_eq!(combine(&[other, guard.clone()]), Verdict::Undecided);
    }
}

#[test]
fn bad_moments_are_left_out_by_how_many_there_were() {
    // Five of 24 are left out, and no sixth.
    let apart = |bad: usize| {
        let each = (0..24).map(|i| if i % 4 == 3 && i / 4 < bad { BAD } else { GOOD });
        judged(&errors(), &each.collect::<Vec<_>>())
    };
    for few in 1..=5 {
        assert_eq!(failed_after(&apart(few)), None, "{few}");
    }
    assert_eq!(failed_after(&apart(6)), Some(23));
    assert_eq!(apart(6)[23].batches.as_ref().unwrap().worst.len(), 5);
}

#[test]
fn a_floor_is_a_promise_of_its_own() {
    let floor = Floor { max: Some(0.1), min_samples: 50, ..Floor::default() };
    let metric = Metric { floor: Some(floor), ..errors() };
    assert_eq!(failed_after(&judged(&metric, &[GOOD, BAD])), Some(1));
}
