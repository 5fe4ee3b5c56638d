use super::*;
use crate::api::{
    GoDuration,
    canary_policy::{Floor, Latency, Margin, Nothing, Score},
    prompt_release::Sums,
};

fn metric() -> Metric {
    Metric {
        name: "m".into(),
        margin: Some(Margin { harm: 0.02, accept: 0.05 }),
        ..Metric::default()
    }
}

fn errors() -> Metric {
    Metric { error_rate: Some(Nothing {}), ..metric() }
}

fn counts(requests: u64, bad: u64) -> Counts {
    Counts { assigned: requests, requests, errors: bad, ..Counts::default() }
}

fn window(metrics: &[Metric], horizon: Option<i64>) -> Window<'_> {
    Window { metrics, horizon, harm_alpha: 0.01, accept_alpha: 0.05, relative: true }
}

fn judge(metric: Metric, stable: &Counts, canary: &Counts) -> MetricStatus {
    let metrics = [metric];
    assess(&window(&metrics, Some(300)), stable, canary, &[]).remove(0)
}

#[test]
fn a_canary_that_fails_half_of_the_time_fails_at_the_first_look() {
    let status = judge(errors(), &counts(500, 5), &counts(30, 15));
    assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
    assert!(status.interval.unwrap()[0] > 0.02);
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
    let metric = Metric { floor: Some(floor), ..errors() };
    let incident = counts(500, 200);
    assert_ne!(judge(metric.clone(), &incident, &counts(49, 20)).verdict, Verdict::Fail);
    let status = judge(metric, &incident, &counts(60, 25));
    assert_eq!(status.verdict, Verdict::Fail);
    assert!(status.message.starts_with("floor"), "{}", status.message);
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

#[test]
fn the_latency_threshold_is_frozen_at_the_first_sight() {
    let metrics = [Metric { time_to_first_token: Some(Latency::default()), ..metric() }];
    let side = |buckets: &[(u8, u64)]| Counts {
        requests: buckets.iter().map(|b| b.1).sum(),
        ttft: buckets.iter().copied().collect(),
        ..Counts::default()
    };
    let first =
        assess(&window(&metrics, Some(300)), &side(&[(10, 90), (20, 10)]), &side(&[(10, 5)]), &[]);
    let frozen = first[0].threshold.unwrap();
    assert_eq!(frozen, super::super::buckets::bound(20));
    let slow = side(&[(40, 5000)]);
    let second = assess(&window(&metrics, Some(300)), &slow, &side(&[(10, 60)]), &first);
    assert_eq!(second[0].threshold, Some(frozen));
}

#[test]
fn slower_first_tokens_fail_though_nothing_is_wrong_otherwise() {
    let metric = Metric { time_to_first_token: Some(Latency::default()), ..metric() };
    let stable = Counts { requests: 1000, ttft: [(10, 950), (20, 50)].into(), ..Counts::default() };
    let canary = Counts { requests: 60, ttft: [(10, 30), (25, 30)].into(), ..Counts::default() };
    let status = judge(metric, &stable, &canary);
    assert_eq!(status.verdict, Verdict::Fail, "{}", status.message);
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
    let first = assess(&w, &counts(600, 6), &counts(31, 0), &[]);
    let second = assess(&w, &counts(640, 6), &counts(35, 12), &first);
    assert_eq!(second[0].looks, first[0].looks);
    assert_eq!((second[0].verdict, second[0].canary.count), (first[0].verdict, 35));
    let third = assess(&w, &counts(1200, 6), &counts(61, 25), &second);
    assert_eq!(third[0].verdict, Verdict::Fail);
    assert_eq!(third[0].looks.len(), 2);
}

#[test]
fn an_open_window_finds_harm_and_never_passes() {
    let metrics = [errors()];
    let w = window(&metrics, None);
    let good = assess(&w, &counts(10_000, 100), &counts(5_000, 50), &[]);
    assert_eq!(good[0].verdict, Verdict::Undecided);
    let bad = assess(&w, &counts(10_000, 100), &counts(5_000, 1_000), &[]);
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
            status = assess(&w, &stable, &canary, &status);
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
