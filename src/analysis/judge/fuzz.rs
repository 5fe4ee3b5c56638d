//! Whatever is counted, what comes out are numbers.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    analysis::external::External,
    api::{
        canary_policy::{Score, default_metrics, guards},
        prompt_release::{
            ByInput, CallerCounts, GroupedScore, Groups, PairTable, Paired, Sums, TurnedAway, Waits,
        },
    },
};

fn number() -> BoxedStrategy<u64> {
    prop_oneof![Just(0), Just(1), 0..50_u64, Just(u64::MAX), any::<u64>()].boxed()
}

fn value() -> BoxedStrategy<f64> {
    prop_oneof![Just(0.0), Just(1e308), Just(-1.0), Just(f64::NAN), 0.0..100.0, any::<f64>()]
        .boxed()
}

fn sums() -> BoxedStrategy<Sums> {
    (number(), value(), value(), value())
        .prop_map(|(count, sum, squares, cubes)| Sums { count, sum, squares, cubes })
        .boxed()
}

fn inputs() -> impl Strategy<Value = (bool, [f64; 6])> {
    (any::<bool>(), proptest::array::uniform6(value()))
}

/// Inputs of as many requests as have a cost, or of others.
fn by_input(cost: Sums, (all, [x, x2, x3, xy, x2y, xy2]): (bool, [f64; 6])) -> ByInput {
    let count = if all { cost.count } else { cost.count / 2 };
    ByInput { count, x, x2, x3, xy, x2y, xy2 }
}

fn groups() -> BoxedStrategy<Groups> {
    let list = || vec(number(), 0..40);
    let values = || vec(value(), 0..40);
    (list(), list(), list(), list(), values())
        .prop_map(|(a, b, c, d, cost)| Groups {
            ttft: [(0, a.clone()), (7, b.clone()), (255, c.clone())].into(),
            duration: [(3, d.clone())].into(),
            requests: a.clone(),
            errors: b.clone(),
            refused: c.clone(),
            unfinished: d.clone(),
            checked: c.clone(),
            check_failures: d.clone(),
            costs: b,
            cost: cost.clone(),
            input: cost.iter().rev().copied().collect(),
            scores: [("s".to_owned(), GroupedScore { counts: a, sums: cost })].into(),
        })
        .boxed()
}

fn paired() -> BoxedStrategy<Paired> {
    (proptest::array::uniform4(number()), sums(), sums(), sums())
        .prop_map(|([neither, canary_only, stable_only, both], cost, stable_cost, score)| Paired {
            errors: PairTable { neither, canary_only, stable_only, both },
            checks: PairTable { neither: both, canary_only, stable_only, both: neither },
            cost,
            stable_cost,
            scores: [("s".to_owned(), score)].into(),
            ..Paired::default()
        })
        .boxed()
}

fn callers() -> BoxedStrategy<BTreeMap<String, CallerCounts>> {
    let histogram = || proptest::collection::btree_map(any::<u8>(), number(), 0..5);
    let caller = (proptest::array::uniform4(number()), sums(), histogram(), sums(), inputs())
        .prop_map(|([requests, errors, checked, check_failures], cost, latency, score, inputs)| {
            CallerCounts {
                cost_by_input: by_input(cost, inputs),
                open: Waits { ttft: latency.clone(), duration: latency.clone() },
                turned_away: TurnedAway {
                    requests: checked,
                    errors,
                    waiting: check_failures,
                    probes: requests,
                    probe_errors: errors,
                },
                requests,
                errors,
                checked,
                check_failures,
                ttft: latency.clone(),
                duration: latency,
                cost,
                scores: [("s".to_owned(), score)].into(),
                refused: errors,
                unfinished: checked,
                unjudged: requests,
                waited: Waits::default(),
            }
        });
    proptest::collection::btree_map("[a-c]", caller, 0..3).boxed()
}

fn side() -> BoxedStrategy<Counts> {
    let histogram = || proptest::collection::btree_map(any::<u8>(), number(), 0..5);
    let numbers = proptest::array::uniform5(number());
    let more = (groups(), proptest::option::of(paired()), sums(), callers(), inputs());
    let waits = (histogram(), histogram(), histogram(), histogram());
    let apart = proptest::array::uniform8(number());
    (numbers, sums(), histogram(), histogram(), more, waits, apart)
        .prop_map(
            |(
                [assigned, requests, errors, checked, check_failures],
                cost,
                ttft,
                duration,
                more,
                waits,
                [refused, unfinished, unjudged, excluded, away, away_errors, probes, probe_errors],
            )| {
                Counts {
                    assigned,
                    requests,
                    errors,
                    checked,
                    check_failures,
                    cost,
                    cost_by_input: by_input(cost, more.4),
                    ttft,
                    duration,
                    groups: more.0,
                    callers: more.3,
                    paired: more.1,
                    scores: [("s".to_owned(), more.2)].into(),
                    refused,
                    unfinished,
                    unjudged,
                    excluded,
                    turned_away: TurnedAway {
                        requests: away,
                        errors: away_errors,
                        waiting: 0,
                        probes,
                        probe_errors,
                    },
                    waited: Waits { ttft: waits.0, duration: waits.1 },
                    open: Waits { ttft: waits.2, duration: waits.3 },
                    failures: [].into(),
                    refusals: [].into(),
                    flaws: [].into(),
                    read_at: 0,
                }
            },
        )
        .boxed()
}

fn external() -> BoxedStrategy<Externals> {
    (value(), value(), value(), value(), value())
        .prop_map(|(a, b, c, d, v)| {
            let share = |n, bad| Share { n, bad };
            let shares = External::Shares { stable: share(a, b), canary: share(c, d) };
            [("counts".to_owned(), shares), ("value".to_owned(), External::Value(v))].into()
        })
        .boxed()
}

fn metrics() -> Vec<Metric> {
    let named = |name: &str| Metric {
        name: name.to_owned(),
        margin: Some(crate::api::canary_policy::Margin { harm: 0.02, accept: 0.05 }),
        ..Metric::default()
    };
    let score = Score { name: "s".to_owned(), min_samples: 20 };
    let rule =
        PrometheusQuery { value: Some("q".to_owned()), max: Some(1.0), ..Default::default() };
    let mut metrics = default_metrics();
    metrics.extend([
        Metric { score: Some(score), ..named("score") },
        Metric { prometheus: Some(PrometheusQuery::default()), ..named("counts") },
        Metric { prometheus: Some(rule), margin: None, ..named("value") },
    ]);
    metrics
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_counts_give_numbers_and_no_panic(
        looks in vec((side(), side(), external()), 1..4),
        horizon in prop_oneof![Just(None), (1..i64::MAX).prop_map(Some), (20..500_i64).prop_map(Some)],
        paired: bool,
        pending in 0..3_u64,
    ) {
        let metrics = metrics();
        let w = Window {
            metrics: &metrics,
            guards: guards().to_vec(),
            guard_rate: 0.1,
            horizon,
            harm_alpha: 0.01,
            open_alpha: 0.001,
            accept_alpha: 0.05,
            relative: true,
            paired,
            pool: None,
            explained: true,
        };
        let mut status = vec![];
        for (stable, canary, external) in &looks {
            status = assess(&w, &Evidence { stable, canary, external, pending, earlier: &[] }, &status);
            for m in &status {
                let numbers = [m.stable.value, m.canary.value, m.harm, m.accept, m.log_e];
                let optional = [m.difference, m.threshold, m.chance];
                let [low, high] = m.interval.unwrap_or_default();
                prop_assert!(numbers.iter().all(|n| n.is_finite()), "{:?}", m);
                prop_assert!(optional.iter().flatten().all(|n| n.is_finite()), "{:?}", m);
                prop_assert!(low.is_finite() && high.is_finite(), "{:?}", m);
                prop_assert!(m.message.len() <= 512, "{}", m.message);
            }
            let _ = crate::analysis::sample_ratio::mismatch(stable, canary, 5);
        }
    }
}
