use super::*;
use crate::{
    analysis::external::External,
    api::{
        GoDuration,
        canary_policy::{Floor, Latency, Margin, Nothing, Score, guards},
        prompt_release::{Groups, PairTable, Paired, Sums, Unit},
    },
};

fn metric() -> Metric {
    Metric {
        name: "m".into(),
        margin: Some(Margin { harm: 0.02, accept: 0.05 }),
        ..Metric::default()
    }
}

pub(super) fn errors() -> Metric {
    Metric { name: "errors".into(), error_rate: Some(Nothing {}), ..metric() }
}

pub(super) fn durations() -> Metric {
    Metric {
        name: "slow".into(),
        duration: Some(Latency { quantile: 0.9 }),
        margin: Some(Margin { harm: 0.05, accept: 0.1 }),
        ..Metric::default()
    }
}

fn counts(requests: u64, bad: u64) -> Counts {
    Counts { assigned: requests, requests, errors: bad, ..Counts::default() }
}

pub(super) fn window(metrics: &[Metric], horizon: Option<i64>) -> Window<'_> {
    Window {
        metrics,
        guards: guards().to_vec(),
        guard_rate: 0.1,
        horizon,
        harm_alpha: 0.01,
        open_alpha: 0.001,
        accept_alpha: 0.05,
        relative: true,
        paired: false,
        pool: None,
        explained: true,
    }
}

fn assess_counts(
    window: &Window<'_>,
    stable: &Counts,
    canary: &Counts,
    previous: &[MetricStatus],
) -> Vec<MetricStatus> {
    assess(
        window,
        &Evidence { stable, canary, external: &Externals::new(), pending: 0, earlier: &[] },
        previous,
    )
}

fn judge(metric: Metric, stable: &Counts, canary: &Counts) -> MetricStatus {
    let metrics = [metric];
    assess_counts(&window(&metrics, Some(300)), stable, canary, &[]).remove(0)
}

#[test]
fn a_canary_that_fails_half_of_the_time_fails_at_the_first_look() {
    let status = judge(errors(), &counts(500, 5), &counts(30, 15));
    assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
    assert!(status.interval.unwrap()[0] > 0.02);
}

#[test]
fn what_fails_names_its_commonest_reason() {
    let words = |words: &[(&str, u64)]| words.iter().map(|(w, n)| ((*w).to_owned(), *n)).collect();
    let canary = Counts {
        checked: 30,
        check_failures: 15,
        unjudged: 9,
        refused: 15,
        failures: words(&[("upstream_timeout", 14), ("upstream_broken", 1)]),
        flaws: words(&[("schema", 9), ("truncated", 6), ("unread", 9), ("unknown_reason", 1)]),
        refusals: words(&[("context_length", 13), ("invalid_request", 2)]),
        ..counts(30, 15)
    };
    let stable = Counts { checked: 500, check_failures: 5, ..counts(500, 5) };
    let checks = Metric { check_failures: Some(Nothing {}), ..metric() };
    let unjudged = Metric { unjudged: Some(Nothing {}), ..metric() };
    let refusals = Metric { refusals: Some(Nothing {}), ..metric() };
    let floor = Floor { max: Some(0.1), min_samples: 20, ..Floor::default() };
    for (metric, word) in [
        (errors(), "upstream_timeout"),
        (Metric { floor: Some(floor), ..errors() }, "upstream_timeout"),
        (checks, "schema"),
        (unjudged, "unread"),
        (refusals, "context_length"),
    ] {
        let message = judge(metric, &stable, &canary).message;
        assert!(message.contains(&format!("(mostly {word})")), "{message}");
    }
}

/// Answers that cost 1 for each of these inputs and `more` beside, which varies.
fn priced(inputs: impl Iterator<Item = u32>, more: f64) -> Counts {
    let mut counts = Counts::default();
    for (i, input) in inputs.enumerate() {
        let cost = f64::from(input) + more * [0.8, 1.0, 1.2][i % 3];
        counts.requests += 1;
        counts.cost.count += 1;
        counts.cost.sum += cost;
        counts.cost.squares += cost.powi(2);
        counts.cost.cubes += cost.powi(3);
        counts.cost_by_input.add(f64::from(input), cost);
    }
    Counts { assigned: counts.requests, ..counts }
}

#[test]
fn costs_are_compared_at_equal_inputs_where_every_request_tells_its_input() {
    let cost = Metric {
        cost_per_request: Some(Nothing {}),
        margin: Some(Margin { harm: 0.1, accept: 0.3 }),
        ..metric()
    };
    let stable = priced((0..3_000).map(|i| 1 + i % 40), 5.0);
    // By chance it was asked what is longer.
    let unlucky = priced((0..300).map(|i| 12 + i % 40), 5.0);
    let status = judge(cost.clone(), &stable, &unlucky);
    assert_eq!(status.verdict, Verdict::Pass, "{}", status.message);
    assert!(status.difference.unwrap().abs() < 0.01 && status.message.contains("at equal inputs"));
    assert!(status.canary.value > 1.3 * status.stable.value, "what is shown are the plain means");
    let mut untold = unlucky.clone();
    untold.cost_by_input.count -= 1;
    let plain = judge(cost.clone(), &stable, &untold);
    assert_eq!(plain.verdict, Verdict::Fail, "{}", plain.message);
    assert!(!plain.message.contains("at equal inputs"), "{}", plain.message);
    // Asked the same, it costs more.
    let worse = judge(cost, &stable, &priced((0..300).map(|i| 1 + i % 40), 15.0));
    assert_eq!(worse.verdict, Verdict::Fail, "{}", worse.message);
}

#[test]
fn a_share_below_nothing_by_rounding_is_nothing() {
    assert_eq!(Unit::Share.value(-1e-9), "0.0 %");
    assert_eq!(Unit::Share.difference(-1e-9), "+0.0 points");
    assert_eq!(Unit::Share.difference(-0.0006), "-0.1 points");
    assert_eq!(Unit::Relative.difference(-1e-12), "+0.0 %");
    assert_eq!(Unit::Score.value(-0.0), "0.000");
}

#[test]
fn an_equal_canary_passes_at_its_horizon() {
    let status = judge(errors(), &counts(5700, 57), &counts(300, 3));
    assert_eq!(status.verdict, Verdict::Pass, "{}", status.message);
}

#[test]
fn a_canary_between_the_margins_is_inconclusive_at_its_horizon() {
    let status = judge(errors(), &counts(5700, 57), &counts(300, 14));
    assert_eq!(status.verdict, Verdict::Inconclusive, "{}", status.message);
}

#[test]
fn without_data_on_a_side_there_is_no_verdict() {
    assert_eq!(judge(errors(), &counts(500, 5), &counts(0, 0)).verdict, Verdict::NoData);
    assert_eq!(judge(errors(), &counts(0, 0), &counts(300, 0)).verdict, Verdict::NoData);
}

#[test]
fn a_shared_incident_is_not_the_canarys_fault() {
    let status = judge(errors(), &counts(5700, 2280), &counts(150, 62));
    assert_eq!(status.verdict, Verdict::Undecided, "{}", status.message);
}

#[test]
fn the_floor_acts_without_comparison_and_needs_its_samples() {
    let floor = Floor { max: Some(0.1), min_samples: 50, ..Floor::default() };
    // Margins so wide that the comparison says nothing.
    let margin = Some(Margin { harm: 0.9, accept: 0.95 });
    let metric = Metric { floor: Some(floor), margin, ..errors() };
    let good = counts(500, 5);
    assert_ne!(judge(metric.clone(), &good, &counts(49, 20)).verdict, Verdict::Fail);
    let status = judge(metric, &good, &counts(60, 25));
    assert_eq!(status.verdict, Verdict::Fail);
    assert!(status.message.starts_with("floor"), "{}", status.message);
}

#[test]
fn a_floor_that_stable_breaks_too_decides_nothing_and_says_so() {
    let max = |max| Some(Floor { max: Some(max), min_samples: 50, ..Floor::default() });
    let longest =
        Floor { max_duration: Some(GoDuration::from_secs(5)), min_samples: 50, ..Floor::default() };
    let slow = |n: u64, slow: u64| Counts {
        requests: n,
        ttft: [
            (super::super::buckets::index(0.2), n - slow),
            (super::super::buckets::index(9.0), slow),
        ]
        .into(),
        ..Counts::default()
    };
    let cases = [
        (Metric { floor: max(0.2), ..errors() }, counts(5_700, 2_300), counts(300, 120)),
        // A canary with most of the traffic: stable has few requests, and they say enough.
        (Metric { floor: max(0.2), ..errors() }, counts(20, 8), counts(1_000, 400)),
        (
            Metric {
                time_to_first_token: Some(Latency::default()),
                floor: Some(longest),
                ..metric()
            },
            slow(5_700, 2_300),
            slow(300, 120),
        ),
    ];
    for (metric, stable, canary) in cases {
        let status = judge(metric, &stable, &canary);
        assert_ne!(status.verdict, Verdict::Fail, "{}", status.message);
        let told = status.floor_on_both_sides.clone().unwrap_or_default();
        assert!(told.starts_with("floor") && told.contains("stable"), "{told}");
        assert_eq!(combine(&[status]), Verdict::Undecided);
    }
}

#[test]
fn a_canary_that_is_worse_than_a_broken_stable_still_fails() {
    let floor = Some(Floor { max: Some(0.2), min_samples: 50, ..Floor::default() });
    let status = judge(Metric { floor, ..errors() }, &counts(5_700, 1_500), &counts(300, 290));
    assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
}

#[test]
fn a_duration_floor_counts_only_answers_that_are_surely_longer() {
    let floor =
        Floor { max_duration: Some(GoDuration::from_secs(5)), min_samples: 50, ..Floor::default() };
    let metric =
        Metric { time_to_first_token: Some(Latency::default()), floor: Some(floor), ..metric() };
    let side = |seconds: f64, n: u64| Counts {
        requests: n,
        ttft: [(super::super::buckets::index(seconds), n)].into(),
        ..Counts::default()
    };
    assert_eq!(judge(metric.clone(), &side(0.2, 500), &side(9.0, 60)).verdict, Verdict::Fail);
    assert_ne!(judge(metric, &side(4.9, 500), &side(4.9, 60)).verdict, Verdict::Fail);
}

fn latencies(buckets: &[(u8, u64)]) -> Counts {
    Counts {
        requests: buckets.iter().map(|b| b.1).sum(),
        ttft: buckets.iter().copied().collect(),
        ..Counts::default()
    }
}

#[test]
fn the_answers_that_chose_the_latency_threshold_stay_in_the_comparison() {
    let metrics = [Metric { time_to_first_token: Some(Latency::default()), ..metric() }];
    let w = window(&metrics, Some(300));
    let few = assess_counts(&w, &latencies(&[(10, 190)]), &latencies(&[(10, 5)]), &[]);
    assert_eq!((few[0].verdict, few[0].threshold), (Verdict::Undecided, None));
    assert!(few[0].message.contains("needs 200 answers"), "{}", few[0].message);
    let start = [(10, 185), (20, 15)];
    let first = assess_counts(&w, &latencies(&start), &latencies(&[(10, 5)]), &few);
    let bound = super::super::buckets::bound(20);
    assert_eq!((first[0].verdict, first[0].threshold), (Verdict::Undecided, Some(bound)));
    let later = [(10, 185), (20, 15), (40, 100)];
    let second = assess_counts(&w, &latencies(&later), &latencies(&[(10, 60)]), &first);
    // One slow answer more for the choice.
    assert_eq!((second[0].threshold, second[0].stable.count), (Some(bound), 301));
    assert_eq!(second[0].stable.value, 101.0 / 301.0);
    // The next step keeps the threshold and compares from its first answer on.
    let next = assess_counts(
        &w,
        &latencies(&[(10, 50)]),
        &latencies(&[(10, 20)]),
        &carry_over(&second, false),
    );
    assert_eq!((next[0].threshold, next[0].stable.count), (Some(bound), 50));
}

#[test]
fn slower_first_tokens_fail_though_nothing_is_wrong_otherwise() {
    let metrics = [Metric { time_to_first_token: Some(Latency::default()), ..metric() }];
    let w = window(&metrics, Some(300));
    let (first, later) = (latencies(&[(10, 190), (20, 10)]), latencies(&[(10, 950), (20, 50)]));
    let canary = latencies(&[(10, 30), (25, 30)]);
    let before = assess_counts(&w, &first, &canary, &[]);
    let status = assess_counts(&w, &later, &canary, &before).remove(0);
    assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
}

#[test]
fn the_sentence_tells_counts_difference_interval_and_limit() {
    // The interval of the score test in statsmodels 0.15
    // (confint_proportions_2indep(38, 1204, 229, 22871, method="score")): 1.30 to 3.30 points.
    let status = judge(errors(), &counts(22_871, 229), &counts(1_204, 38));
    let expected = "canary 3.2 % of 1,204, stable 1.0 % of 22,871; difference +2.2 points, \
                    95 % interval +1.3 points to +3.3 points; ";
    assert!(status.message.starts_with(expected), "{}", status.message);
    let status = judge(errors(), &counts(5_700, 57), &counts(300, 45));
    assert!(
        status.message.contains("worse than the harm margin +2.0 points: by at least"),
        "{}",
        status.message
    );
}

#[test]
fn a_plain_value_needs_its_looks_in_a_row() {
    let rule = PrometheusQuery {
        value: Some("q".into()),
        max: Some(10.0),
        consecutive: 3,
        ..Default::default()
    };
    let metrics = [Metric { prometheus: Some(rule), margin: None, ..metric() }];
    let w = window(&metrics, Some(300));
    let mut status = vec![];
    let mut see = |value: Option<f64>| {
        let external = match value {
            Some(value) => External::Value(value),
            None => External::Missing {
                reason: "PrometheusTimeout",
                message: "it took too long".into(),
            },
        };
        let external = [("m".to_owned(), external)].into();
        let (stable, canary) = (counts(100, 0), counts(10, 0));
        status = assess(
            &w,
            &Evidence {
                stable: &stable,
                canary: &canary,
                external: &external,
                pending: 0,
                earlier: &[],
            },
            &status,
        );
        (status[0].verdict, status[0].message.clone())
    };
    use Verdict::{Fail, NoData, Pass, Undecided};
    assert_eq!([3.0, 11.0, 4.0, 5.0].map(|v| see(Some(v)).0), [Undecided; 4]);
    assert_eq!(see(None), (NoData, "PrometheusTimeout: it took too long".to_owned()));
    assert_eq!(see(Some(f64::NAN)).0, NoData);
    let [first, second, third] = [6.0, 7.0, 8.0].map(|v| see(Some(v)).0);
    assert_eq!((first, second, third), (Undecided, Undecided, Pass), "in a row");
    assert_eq!([12.0, 12.0].map(|v| see(Some(v)).0), [Undecided; 2]);
    assert_eq!(see(Some(12.0)).0, Fail);
    assert_eq!(see(Some(1.0)).0, Fail, "what failed stays failed");
}

#[test]
fn counts_from_elsewhere_are_compared_like_our_own() {
    let metrics = [Metric { prometheus: Some(PrometheusQuery::default()), ..metric() }];
    let w = window(&metrics, Some(300));
    let verdict = |bad: f64| {
        let external = External::Shares {
            stable: Share { n: 5_700.0, bad: 57.0 },
            canary: Share { n: 300.0, bad },
        };
        let external = [("m".to_owned(), external)].into();
        let none = Counts::default();
        let evidence = Evidence {
            stable: &none,
            canary: &none,
            external: &external,
            pending: 0,
            earlier: &[],
        };
        assess(&w, &evidence, &[]).remove(0).verdict
    };
    assert_eq!((verdict(3.0), verdict(60.0)), (Verdict::Pass, Verdict::Fail));
}

#[test]
fn pairs_show_a_difference_that_separate_shares_hide() {
    let metrics = [errors()];
    let w = Window { paired: true, ..window(&metrics, Some(400)) };
    // Half of the inputs are hard for both.
    let paired = |table| Counts {
        paired: Some(Paired { errors: table, ..Paired::default() }),
        ..Counts::default()
    };
    let of = |canary: Counts| assess_counts(&w, &Counts::default(), &canary, &[]).remove(0);
    let worse = PairTable { neither: 175, canary_only: 25, stable_only: 0, both: 200 };
    let status = of(paired(worse));
    assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
    let alike = PairTable { neither: 196, canary_only: 2, stable_only: 2, both: 200 };
    let status = of(paired(alike));
    assert_eq!(status.verdict, Verdict::Pass, "{}", status.message);
}

#[test]
fn users_without_a_failure_do_not_show_that_there_are_none() {
    // 300 requests of 30 users; stable's 600 are of 60. Nobody failed.
    let side = |users: usize| {
        let mut requests = vec![0; 32];
        (0..users).for_each(|u| requests[u * 7 % 32] += 10);
        let groups = Groups { requests, errors: vec![0; 32], ..Groups::default() };
        Counts { groups, ..counts(10 * users as u64, 0) }
    };
    assert_eq!(judge(errors(), &counts(600, 0), &counts(300, 0)).verdict, Verdict::Pass);
    // As many requests of users with many each, very unevenly spread.
    let few = |users: &[usize]| {
        let mut requests = vec![0; 32];
        users.iter().for_each(|u| requests[*u] += 60);
        let groups = Groups { requests, errors: vec![0; 32], ..Groups::default() };
        Counts { groups, ..counts(60 * users.len() as u64, 0) }
    };
    let status =
        judge(errors(), &few(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), &few(&[11, 12, 13, 14, 15]));
    assert_ne!(status.verdict, Verdict::Pass, "{}", status.message);
    assert_ne!(judge(errors(), &side(60), &side(30)).verdict, Verdict::Fail);
}

#[test]
fn requests_of_few_users_tell_less() {
    // 32 users of whom 3 are unlucky on the canary: 30 requests each.
    let side = |users: u64, unlucky: u64| {
        let list = |n: u64| (0..32).map(|i| if i < n { 30 } else { 0 }).collect::<Vec<u64>>();
        Counts {
            groups: Groups { requests: list(users), errors: list(unlucky), ..Groups::default() },
            ..counts(users * 30, unlucky * 30)
        }
    };
    let alone = judge(errors(), &counts(960, 30), &counts(300, 30));
    assert_eq!(alone.verdict, Verdict::Fail, "{}", alone.message);
    let status = judge(errors(), &side(32, 1), &side(10, 1));
    assert_eq!(status.verdict, Verdict::Inconclusive, "{}", status.message);
    assert!(status.message.contains("requests of one user count 1/"), "{}", status.message);
}

#[test]
fn slow_answers_of_one_user_tell_less_than_those_of_many() {
    // 40 users of 30 answers on stable; of 20 on the canary 100 answers are slow.
    let side = |users: u64, slow: &[u64]| {
        let mut side = Counts { requests: 30 * users, ..Counts::default() };
        for user in 0..users {
            let slow = slow.get(user as usize).copied().unwrap_or_default();
            for (bucket, n) in [(20, 30 - slow), (40, slow)].into_iter().filter(|(_, n)| *n > 0) {
                *side.ttft.entry(bucket).or_default() += n;
                let groups = side.groups.ttft.entry(bucket / 4).or_default();
                groups.resize(32, 0);
                groups[(user * 7 % 32) as usize] += n;
            }
        }
        side
    };
    let metrics = [Metric { time_to_first_token: Some(Latency::default()), ..metric() }];
    // Stable's slow answers are one in twenty, spread over its users.
    let stable = side(40, &[2, 1].repeat(20));
    let verdict = |canary: &Counts, horizon: Option<i64>| {
        let status = assess_counts(&window(&metrics, horizon), &stable, canary, &[]).remove(0);
        (status.verdict, status.message)
    };
    for horizon in [Some(600), None] {
        let (many, said) = verdict(&side(20, &[5; 20]), horizon);
        assert_eq!(many, Verdict::Fail, "{said}");
        let (few, said) = verdict(&side(20, &[30, 30, 30, 10]), horizon);
        assert_ne!(few, Verdict::Fail, "{said}");
    }
    let (_, said) = verdict(&side(20, &[30, 30, 30, 10]), Some(600));
    assert!(said.contains("requests of one user count 1/"), "{said}");
}

#[test]
fn a_worse_score_fails_and_a_better_one_passes() {
    let score = Metric {
        score: Some(Score { name: "helpfulness".into(), min_samples: 100 }),
        margin: Some(Margin { harm: 0.03, accept: 0.15 }),
        ..metric()
    };
    let side = |n: u64, good: u64| Counts {
        requests: n * 3,
        scores: [(
            "helpfulness".to_owned(),
            Sums { count: n, sum: good as f64, squares: good as f64, cubes: good as f64 },
        )]
        .into(),
        ..Counts::default()
    };
    assert_eq!(judge(score.clone(), &side(900, 800), &side(100, 40)).verdict, Verdict::Fail);
    assert_eq!(judge(score, &side(900, 800), &side(100, 95)).verdict, Verdict::Pass);
}

#[test]
fn cost_is_compared_relative_to_stable_and_free_equals_free() {
    let cost = Metric {
        cost_per_request: Some(Nothing {}),
        margin: Some(Margin { harm: 0.10, accept: 0.50 }),
        ..metric()
    };
    let side = |n: u64, usd: f64| Counts {
        requests: n,
        cost: Sums {
            count: n,
            sum: n as f64 * usd,
            squares: n as f64 * usd * usd * 1.04,
            ..Sums::default()
        },
        ..Counts::default()
    };
    assert_eq!(judge(cost.clone(), &side(900, 0.01), &side(300, 0.02)).verdict, Verdict::Fail);
    assert_eq!(judge(cost.clone(), &side(900, 0.01), &side(300, 0.0101)).verdict, Verdict::Pass);
    assert_eq!(judge(cost.clone(), &side(900, 0.0), &side(300, 0.0)).verdict, Verdict::Pass);
    let unpriced = judge(cost, &counts(900, 0), &counts(300, 0));
    assert_eq!(unpriced.verdict, Verdict::NoData);
    assert!(unpriced.message.contains("spec.pricing"));
}

#[test]
fn between_looks_only_the_counts_move() {
    let metrics = [errors()];
    let w = window(&metrics, Some(300));
    let first = assess_counts(&w, &counts(600, 6), &counts(31, 0), &[]);
    let second = assess_counts(&w, &counts(640, 6), &counts(35, 12), &first);
    assert_eq!(second[0].looks, first[0].looks);
    assert_eq!((second[0].verdict, second[0].canary.count), (first[0].verdict, 35));
    let third = assess_counts(&w, &counts(1200, 6), &counts(61, 12), &second);
    assert_eq!(third[0].verdict, Verdict::Fail);
    assert_eq!(third[0].looks.len(), 2, "{}", third[0].message);
}

#[test]
fn an_open_window_finds_harm_and_never_passes() {
    let metrics = [errors()];
    let w = window(&metrics, None);
    let good = assess_counts(&w, &counts(10_000, 100), &counts(5_000, 50), &[]);
    assert_eq!(good[0].verdict, Verdict::Undecided);
    let bad = assess_counts(&w, &counts(10_000, 100), &counts(5_000, 1_000), &[]);
    assert_eq!(bad[0].verdict, Verdict::Fail);
}

/// Simulates whole steps: requests arrive in batches, every batch is assessed.
fn share_of(verdict: Verdict, p_stable: f64, p_canary: f64, runs: u32) -> f64 {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let metrics = [errors()];
    let w = Window { harm_alpha: 0.05, ..window(&metrics, Some(300)) };
    let mut rng = StdRng::seed_from_u64(42);
    let mut hits = 0;
    for _ in 0..runs {
        let (mut stable, mut canary) = (counts(0, 0), counts(0, 0));
        let mut status = vec![];
        loop {
            for _ in 0..30 {
                for (side, n, p) in [(&mut stable, 3, p_stable), (&mut canary, 1, p_canary)] {
                    side.requests += n;
                    side.errors += (0..n).filter(|_| rng.random::<f64>() < p).count() as u64;
                }
            }
            status = assess_counts(&w, &stable, &canary, &status);
            if status[0].verdict != Verdict::Undecided {
                break;
            }
        }
        hits += u32::from(status[0].verdict == verdict);
    }
    f64::from(hits) / f64::from(runs)
}

#[test]
fn error_rates_hold_over_all_looks_of_a_step() {
    // At the harm margin itself: 5 % may fail. At the accept margin itself: 5 % may pass.
    // Bounds: five standard errors over the runs.
    let runs = 600;
    let slack = 5.0 * (0.05_f64 * 0.95 / f64::from(runs)).sqrt();
    let false_rollback = share_of(Verdict::Fail, 0.10, 0.12, runs);
    assert!(false_rollback < 0.05 + slack, "{false_rollback}");
    let false_pass = share_of(Verdict::Pass, 0.10, 0.15, runs);
    assert!(false_pass < 0.05 + slack, "{false_pass}");
    let found = share_of(Verdict::Fail, 0.02, 0.20, 200);
    assert!(found > 0.95, "a canary with ten times the errors is found: {found}");
}
