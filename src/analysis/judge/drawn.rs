//! What a draw promises: whatever becomes of a request, it is its side's evidence.

use super::*;
use crate::{
    analysis::buckets,
    api::{
        GoDuration,
        canary_policy::{Floor, Latency, Margin, Nothing},
        prompt_release::{TurnedAway, Waits},
    },
};

fn metric(name: &str) -> Metric {
    let margin = Some(Margin { harm: 0.02, accept: 0.05 });
    Metric { name: name.into(), margin, ..Metric::default() }
}

fn errors() -> Metric {
    Metric { error_rate: Some(Nothing {}), ..metric("errors") }
}

fn duration() -> Metric {
    Metric { duration: Some(Latency { quantile: 0.9 }), ..metric("duration") }
}

fn window(metrics: &[Metric]) -> Window<'_> {
    super::tests::window(metrics, Some(300))
}

/// Answers after 30 ms.
fn answered(n: u64) -> Counts {
    Counts {
        assigned: n,
        requests: n,
        duration: [(buckets::index(0.03), n)].into(),
        ttft: [(buckets::index(0.03), n)].into(),
        ..Counts::default()
    }
}

/// As `counts`, with requests that were given up after `seconds`.
fn given_up(counts: Counts, n: u64, seconds: f64) -> Counts {
    let waits: std::collections::BTreeMap<u8, u64> = [(buckets::index(seconds), n)].into();
    Counts {
        assigned: counts.assigned + n,
        unfinished: n,
        waited: Waits { ttft: waits.clone(), duration: waits },
        ..counts
    }
}

/// As `counts`, with requests that have been open for `seconds`.
fn open(counts: Counts, n: u64, seconds: f64) -> Counts {
    let waits: std::collections::BTreeMap<u8, u64> = [(buckets::index(seconds), n)].into();
    let assigned = counts.assigned + n;
    Counts { assigned, open: Waits { ttft: waits.clone(), duration: waits }, ..counts }
}

fn judge(metrics: &[Metric], stable: &Counts, canary: &Counts, pending: u64) -> Vec<MetricStatus> {
    let external = Externals::new();
    let evidence = Evidence { stable, canary, external: &external, pending, earlier: &[] };
    assess(&window(metrics), &evidence, &[])
}

fn find<'a>(status: &'a [MetricStatus], name: &str) -> &'a MetricStatus {
    status.iter().find(|m| m.metric == name).unwrap()
}

#[test]
fn users_who_wait_in_vain_and_leave_are_slow_and_unfinished() {
    let (metrics, stable) = ([errors(), duration()], answered(900));
    let status = judge(&metrics, &stable, &given_up(answered(140), 60, 5.0), 0);
    for name in ["duration", "unfinished"] {
        assert_eq!(find(&status, name).verdict, Verdict::Fail, "{}", find(&status, name).message);
    }
    assert_eq!(combine(&status), Verdict::Fail);
    // Every request hangs: nothing was answered, and that is not nothing.
    let status = judge(&metrics, &stable, &given_up(Counts::default(), 60, 5.0), 0);
    assert_eq!(combine(&status), Verdict::Fail);
    assert_eq!(find(&status, "errors").verdict, Verdict::NoData);
}

#[test]
fn nothing_passes_while_a_built_in_comparison_is_far_from_stable() {
    let refused =
        |counts: Counts, refused| Counts { assigned: counts.assigned + refused, refused, ..counts };
    let verdict =
        |canary: &Counts, stable: &Counts| combine(&judge(&[errors()], stable, canary, 0));
    let stable = answered(90);
    assert_eq!(verdict(&answered(300), &stable), Verdict::Pass);
    // Too little to fail by, and too much to pass with.
    let much = refused(answered(300), 24);
    let status = judge(&[errors()], &stable, &much, 0);
    assert_eq!(combine(&status), Verdict::Undecided, "{status:?}");
    assert_eq!(doubt(&status).map(|(m, _)| m.metric.as_str()), Some("refusals"));
    assert_eq!(verdict(&refused(answered(300), 8), &stable), Verdict::Pass);
    assert_eq!(verdict(&much, &refused(answered(300), 24)), Verdict::Pass);
}

#[test]
fn a_policy_that_names_errors_alone_still_sees_who_leaves() {
    let status = judge(&[errors()], &answered(900), &given_up(answered(140), 60, 5.0), 0);
    assert_eq!(combine(&status), Verdict::Fail);
    let alike = judge(
        &[errors()],
        &given_up(answered(5400), 600, 5.0),
        &given_up(answered(300), 33, 5.0),
        0,
    );
    assert_eq!(combine(&alike), Verdict::Pass, "{alike:?}");
}

#[test]
fn a_better_canary_is_not_blamed_for_waiting_where_stable_hangs() {
    let stable = given_up(answered(700), 300, 5.0);
    // The canary answers all, a third of them after 4 s.
    let mut canary = answered(200);
    canary.requests = 300;
    canary.assigned = 300;
    canary.duration.insert(buckets::index(4.0), 100);
    let status = judge(&[duration()], &stable, &canary, 0);
    assert_eq!(combine(&status), Verdict::Pass, "{status:?}");
}

#[test]
fn open_requests_are_slow_as_soon_as_they_are_and_unknown_before() {
    let metrics = [duration()];
    let status = judge(&metrics, &answered(900), &open(answered(140), 60, 5.0), 0);
    assert_eq!(status[0].verdict, Verdict::Fail, "{}", status[0].message);
    let young = judge(&metrics, &answered(900), &open(answered(300), 60, 0.005), 0);
    assert_eq!(young[0].verdict, Verdict::Pass, "{}", young[0].message);
}

#[test]
fn a_floor_counts_who_waited_longer_though_nobody_was_answered() {
    let floor =
        Floor { max_duration: Some(GoDuration::from_secs(2)), min_samples: 50, ..Floor::default() };
    let metrics = [Metric { floor: Some(floor), ..duration() }];
    let status = judge(&metrics, &answered(900), &given_up(Counts::default(), 60, 5.0), 0);
    assert!(status[0].message.starts_with("floor"), "{}", status[0].message);
}

#[test]
fn what_a_step_drew_is_waited_for_before_its_last_look() {
    let (stable, canary) = (answered(900), open(answered(300), 60, 3.0));
    let waits = judge(&[errors()], &stable, &canary, 60);
    assert_eq!(waits[0].verdict, Verdict::Undecided, "{}", waits[0].message);
    assert!(waits[0].message.contains("60 requests still open"), "{}", waits[0].message);
    let status = judge(&[errors()], &stable, &canary, 0);
    assert_eq!(status[0].verdict, Verdict::Pass, "{}", status[0].message);
    // As many of stable's are open: what is slow is slow on both sides.
    let alike = open(answered(900), 180, 3.0);
    assert_eq!(judge(&[errors()], &alike, &canary, 60)[0].verdict, Verdict::Pass);
}

#[test]
fn nothing_is_accepted_early_while_many_of_the_canarys_requests_are_open() {
    let stable = answered(3000);
    let early = judge(&[errors()], &stable, &answered(200), 0);
    assert_eq!(early[0].verdict, Verdict::Pass, "{}", early[0].message);
    let hidden = judge(&[errors()], &stable, &open(answered(200), 20, 3.0), 0);
    assert_eq!(hidden[0].verdict, Verdict::Undecided, "{}", hidden[0].message);
}

#[test]
fn a_step_does_not_end_undecided_before_stable_has_its_samples() {
    let status = judge(&[errors()], &answered(9), &answered(300), 0);
    assert_eq!(status[0].verdict, Verdict::Undecided);
    assert!(status[0].message.contains("300 canary and 9 stable"), "{}", status[0].message);
}

#[test]
fn what_only_the_canary_refuses_or_nobody_understands_fails_it() {
    let refuses = Counts { assigned: 400, refused: 200, ..answered(200) };
    let status = judge(&[errors()], &answered(900), &refuses, 0);
    assert_eq!(find(&status, "refusals").verdict, Verdict::Fail);
    let unread = Counts { unjudged: 100, ..answered(200) };
    let status = judge(&[errors()], &answered(900), &unread, 0);
    assert_eq!(find(&status, "unjudged").verdict, Verdict::Fail);
    // What both refuse does not dilute the errors, and fails nobody.
    let junk = |n: u64, bad: u64, refused: u64| Counts {
        assigned: n + refused,
        errors: bad,
        refused,
        ..answered(n)
    };
    let status = judge(&[errors()], &junk(900, 9, 900), &junk(200, 40, 200), 0);
    assert_eq!(find(&status, "errors").verdict, Verdict::Fail);
    assert_ne!(find(&status, "refusals").verdict, Verdict::Fail);
}

#[test]
fn a_guard_fails_and_holds_up_nothing() {
    let status =
        judge(&[errors()], &given_up(answered(30), 3, 1.0), &given_up(answered(300), 2, 1.0), 0);
    let guard = find(&status, "unfinished");
    assert!(guard.guard && guard.verdict != Verdict::Fail, "{guard:?}");
    assert_eq!(combine(&status), Verdict::Pass);
}

#[test]
fn a_policy_chooses_the_margins_of_what_is_built_in() {
    let named = Metric { unfinished: Some(Nothing {}), ..metric("left") };
    let policy = crate::api::CanaryPolicySpec {
        analysis: crate::api::canary_policy::Analysis {
            metrics: vec![errors(), named],
            ..Default::default()
        },
        ..Default::default()
    };
    let window = Window::new(&policy, 0);
    assert!(window.guards.iter().all(|guard| guard.unfinished.is_none()), "{:?}", window.guards);
    assert_eq!(window.guards.len(), 2);
}

#[test]
fn few_probes_do_not_speak_for_many_as_if_each_had_been_asked() {
    let away = |probes, probe_errors, errors| Counts {
        requests: 500,
        errors: 20 + errors,
        turned_away: TurnedAway { requests: 300, errors, waiting: 0, probes, probe_errors },
        ..answered(200)
    };
    let stable = Counts { errors: 500, ..answered(5000) };
    let by_two = judge(&[errors()], &stable, &away(4, 2, 150), 0);
    assert_ne!(by_two[0].verdict, Verdict::Fail, "{}", by_two[0].message);
    let by_many = judge(&[errors()], &stable, &away(100, 50, 150), 0);
    assert_eq!(by_many[0].verdict, Verdict::Fail, "{}", by_many[0].message);
}

#[test]
fn a_canary_that_always_fails_is_found_however_many_a_breaker_turned_away() {
    // Ten attempts opened it, and six probes failed before the step had its samples.
    let canary = Counts {
        requests: 846,
        errors: 846,
        turned_away: TurnedAway {
            requests: 830,
            errors: 830,
            waiting: 0,
            probes: 6,
            probe_errors: 6,
        },
        ..answered(0)
    };
    let found = judge(&[errors()], &answered(1957), &canary, 0);
    assert_eq!(found[0].verdict, Verdict::Fail, "{}", found[0].message);
    // Without an attempt and a probe nothing is known.
    let away = TurnedAway { requests: 846, errors: 846, ..TurnedAway::default() };
    let unseen = Counts { turned_away: away, ..canary };
    let unknown = judge(&[errors()], &answered(1957), &unseen, 0);
    assert_ne!(unknown[0].verdict, Verdict::Fail, "{}", unknown[0].message);
}

/// What a breaker turns away takes nothing from what did fail before it opened.
#[test]
fn failures_tell_however_few_probes_speak_for_those_who_were_turned_away() {
    let failed = |asked: u64, away: u64, probes: u64| Counts {
        requests: asked + away,
        errors: asked + away,
        turned_away: TurnedAway {
            requests: away,
            errors: away,
            waiting: 0,
            probes,
            probe_errors: probes,
        },
        ..answered(0)
    };
    for (asked, away, probes) in [(100, 400, 1), (100, 400, 2), (60, 240, 1), (300, 10, 0)] {
        let found = judge(&[errors()], &answered(1957), &failed(asked, away, probes), 0);
        assert_eq!(found[0].verdict, Verdict::Fail, "{asked} {away}: {}", found[0].message);
        assert!(found[0].interval.unwrap()[0] > 0.02, "{:?}", found[0].interval);
    }
    // A floor acts on them alone, before any look.
    let floor = Some(Floor { max: Some(0.2), min_samples: 50, ..Floor::default() });
    let braked = Metric { floor, ..errors() };
    let floored = |canary: &Counts| {
        let found = judge(std::slice::from_ref(&braked), &answered(198), canary, 0);
        found[0].verdict == Verdict::Fail && found[0].message.contains("floor")
    };
    assert!(floored(&failed(50, 140, 2)));
    assert!(!floored(&failed(13, 140, 2)), "fewer were asked than the floor wants");
    // An outage, and then all that was asked was fine: in all it is not beyond the floor.
    let over = Counts { errors: 40, ..failed(60, 200, 0) };
    let probes = TurnedAway { errors: 0, probes: 20, probe_errors: 0, ..over.turned_away };
    assert!(!floored(&Counts { turned_away: probes, ..over }));
}

/// Of canaries that are worse by just the harm margin, no more fail when a breaker opens by chance
/// than without one (1.0 % without; 1.6, 0.6 and 0.6 % in the three cells).
#[test]
fn what_a_breaker_turns_away_makes_no_false_alarms() {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let mut rng = StdRng::seed_from_u64(7);
    let mut fails = |opens: f64| {
        let runs = 2_000;
        let failed = (0..runs).filter(|_| {
            let stable = Counts {
                errors: (0..1_200).filter(|_| rng.random::<f64>() < 0.05).count() as u64,
                ..answered(1_200)
            };
            let (mut asked, mut bad, mut away) = (0, 0, TurnedAway::default());
            while asked + away.requests < 300 {
                let failed = u64::from(rng.random::<f64>() < 0.07);
                (asked, bad) = (asked + 1, bad + failed);
                if rng.random::<f64>() < opens {
                    // A probe in the end speaks for those who were turned away.
                    let probe = u64::from(rng.random::<f64>() < 0.07);
                    (asked, bad) = (asked + 1, bad + probe);
                    let turned = 10;
                    away.requests += turned;
                    away.errors += turned * probe;
                    (away.probes, away.probe_errors) = (away.probes + 1, away.probe_errors + probe);
                }
            }
            let canary = Counts {
                requests: asked + away.requests,
                errors: bad + away.errors,
                turned_away: away,
                ..answered(0)
            };
            judge(&[errors()], &stable, &canary, 0)[0].verdict == Verdict::Fail
        });
        failed.count() as f64 / f64::from(runs)
    };
    let without = fails(0.0);
    for opens in [0.005, 0.02, 0.1] {
        let share = fails(opens);
        // Five standard errors of a difference between two shares of 1.5 %, in 2,000 canaries each.
        let noise = 5.0 * (2.0 * 0.015_f64 * 0.985 / 2_000.0).sqrt();
        assert!(share < without + noise, "{opens}: {share}, without a breaker {without}");
    }
}
