//! Who gets which variant.

use std::{collections::HashMap, time::Duration};

use serde_json::json;

use serinus::gateway::GatewayConfig;

use crate::bench::{Bench, fails, good, open, variant};

#[tokio::test]
async fn one_user_stays_on_one_variant_and_raising_the_weight_only_moves_users_to_the_canary() {
    let bench = Bench::new(|_| good()).await;
    let mut before: HashMap<String, String> = HashMap::new();
    for weight in [20, 50, 80] {
        bench.serve(bench.release(weight));
        let mut on_canary = 0;
        for user in 0..150 {
            let user = format!("user-{user}");
            let answer = bench.chat(json!({"user": user})).await;
            let got = answer.headers()["x-serinus-revision"].to_str().unwrap().to_owned();
            on_canary += i32::from(got == "canary");
            let old = before.insert(user, got.clone());
            assert!(old.as_deref() != Some("canary") || got == "canary", "nobody moves back");
        }
        // 150 fair draws: 4.5 standard deviations.
        let (expected, spread) = (1.5 * f64::from(weight), 4.5 * (150.0 * 0.25_f64).sqrt());
        assert!((f64::from(on_canary) - expected).abs() < spread, "{on_canary} at {weight} %");
    }
}

#[tokio::test]
async fn the_header_goes_before_the_field() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(50));
    let mut seen = std::collections::BTreeSet::new();
    for user in 0..30 {
        let body = json!({"model": "r", "user": format!("{user}"),
            "serinus": {"variables": {"question": "q"}}});
        let answer = bench
            .client
            .post(format!("http://{}/v1/chat/completions", bench.address))
            .header("x-conversation-id", "one")
            .json(&body)
            .send()
            .await
            .unwrap();
        seen.insert(answer.headers()["x-serinus-revision"].to_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 1, "one conversation, one variant: {seen:?}");
}

#[tokio::test]
async fn without_a_leader_everything_goes_to_stable_and_the_report_says_so() {
    let bench = Bench::with_control_loss(Duration::ZERO, |_| good()).await;
    bench.serve(bench.release(99));
    tokio::time::sleep(Duration::from_millis(5)).await;
    for user in 0..10 {
        let answer = bench.chat(json!({"user": format!("{user}")})).await;
        assert_eq!(answer.headers()["x-serinus-revision"], "stable");
    }
    assert!(bench.report().control_loss);
    assert_eq!(bench.counts("stable").requests, 0, "and none of it is evidence");
}

#[tokio::test]
async fn a_gateway_that_starts_believes_in_no_leader_before_one_asks() {
    let config = GatewayConfig { awaits_leader: true, ..open() };
    let bench = Bench::configured(config, |_| good()).await;
    bench.serve(bench.release(99));
    for user in 0..10 {
        let answer = bench.chat(json!({"user": format!("{user}")})).await;
        assert_eq!(answer.headers()["x-serinus-revision"], "stable");
    }
    assert!(bench.report().control_loss);
    assert_eq!(bench.counts("stable").requests, 0, "and none of it is evidence");
}

#[tokio::test]
async fn the_breaker_stops_asking_a_canary_that_fails_outright() {
    let bench =
        Bench::new(|request| if variant(request) == "canary" { fails(500) } else { good() }).await;
    bench.serve(bench.release(99));
    for user in 0..60 {
        assert_eq!(bench.chat(json!({"user": format!("{user}")})).await.status(), 200);
    }
    let tried = bench.asked().iter().filter(|r| variant(r) == "canary").count();
    assert!((10..30).contains(&tried), "{tried} of about 59 tried the canary");
    assert_eq!(bench.report().failing, ["canary"]);
    // Who was turned away was drawn for the canary, and counts there as probes end.
    let counts = bench.counts("canary");
    let away = counts.turned_away;
    assert_eq!(counts.requests + away.waiting, counts.assigned);
    assert_eq!((counts.requests, counts.errors), (tried as u64 + away.requests, counts.requests));
}

#[tokio::test]
async fn counts_belong_to_one_routing_generation() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(50));
    for user in 0..20 {
        bench.chat(json!({"user": format!("{user}")})).await;
    }
    let report = bench.report();
    assert_eq!(report.applied, 51);
    assert_eq!(report.counts.values().map(|c| c.requests).sum::<u64>(), 20);
    assert_eq!(report.counts.values().map(|c| c.assigned).sum::<u64>(), 20);
    bench.serve(bench.release(60));
    let report = bench.report();
    assert_eq!((report.applied, report.counts["canary"].requests), (61, 0));
}

#[tokio::test]
async fn the_older_release_has_a_route_and_a_copy_that_comes_late_costs_nothing() {
    let bench = Bench::new(|_| good()).await;
    let old = bench.release(0);
    let mut young = old.clone();
    (young.name, young.created) = ("a-younger".into(), "2026-02-01".into());
    bench.gateway.set_world(&[young, old.clone()].into_iter().collect());
    let report = bench.gateway.report(false);
    assert_eq!(report.releases.keys().collect::<Vec<_>>(), ["ns/r"]);
    // The canary's copy comes a moment later than its routing.
    let mut early = bench.release(30);
    let late = early.variants.remove("canary").unwrap();
    bench.serve(early.clone());
    assert_eq!(bench.report().applied, 31);
    assert!(bench.report().unbuilt.is_empty(), "it may pass");
    early.variants.insert("canary".into(), late);
    bench.serve(early);
    assert_eq!(bench.report().applied, 31);
}
