//! Copies for a shadow: what users notice of them (nothing), and what is counted.

use std::time::Duration;

use axum::{body::Body, http::Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use serinus::{
    api::prompt_release::{Counts, PairTable, Paired, RoutedVariant, VariantRole},
    gateway::{
        routes::ReleaseInput,
        server::{Face, serve},
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, edit, event, fails, good, json_answer, says, streamed, variant};

/// The release `r` with `canary` as a shadow of `percent`.
fn shadowed(bench: &Bench, percent: i32) -> ReleaseInput {
    let mut release = bench.release(0);
    release.routing.generation = 7;
    release.routing.variants.push(RoutedVariant {
        revision: "canary".to_owned(),
        role: VariantRole::Shadow,
        weight: 0,
        copies: Some(percent),
    });
    release
}

/// A good answer that is whole when the gate opens.
fn held(gate: &CancellationToken) -> Response<Body> {
    let gate = gate.clone().cancelled_owned();
    let answer = json!({"choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": r#"{"answer": "late"}"#}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100}});
    let body = stream::once(async move {
        gate.await;
        Ok::<_, std::io::Error>(answer.to_string())
    });
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from_stream(body))
        .unwrap()
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 5 s: {what}");
}

fn paired(bench: &Bench) -> Paired {
    bench.counts("canary").paired.unwrap_or_default()
}

/// Waits until every copy that was drawn has ended, and answers what they were.
async fn settled(bench: &Bench) -> (Counts, Paired) {
    let all_ended = || {
        let paired = paired(bench);
        bench.counts("canary").assigned == paired.errors.pairs() + paired.dropped
    };
    eventually("every copy has ended", all_ended).await;
    (bench.counts("canary"), paired(bench))
}

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|v| v.to_str().unwrap())
}

#[tokio::test]
async fn stable_answers_everybody_and_a_share_is_copied() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(shadowed(&bench, 30));
    let mut told = 0;
    for user in 0..300 {
        let answer = bench.chat(json!({"user": (user % 20).to_string()})).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "x-serinus-revision"), Some("stable"));
        let id = header(&answer, "x-serinus-request-id").unwrap();
        if let Some(copy) = header(&answer, "x-serinus-shadow-request-id") {
            told += 1;
            // The rest of the last part signs each of them.
            let last = |id: &str| id.rsplit('-').next().unwrap()[..24].to_owned();
            assert!(copy.contains("-canary-") && last(copy) == last(id), "{copy} of {id}");
        }
    }
    let (canary, paired) = settled(&bench).await;
    // 300 fair draws of 30 %: five standard deviations.
    assert!((50..=130).contains(&canary.assigned), "{}", canary.assigned);
    assert_eq!((told, paired.dropped), (canary.assigned, 0), "each copy is told of, none lost");
    assert_eq!(bench.asked().iter().filter(|r| variant(r) == "canary").count() as u64, told);
    let stable = bench.counts("stable");
    assert_eq!((stable.assigned, stable.requests, stable.checked), (300, 300, 300));
    assert_eq!(stable.groups.requests.iter().sum::<u64>(), 300, "they are counted by keys, too");
    assert!(stable.paired.is_none());
    assert_eq!((canary.requests, canary.checked, canary.cost.count), (told, told, told));
    assert_eq!(canary.ttft.values().sum::<u64>(), told);
    assert_eq!(paired.errors, PairTable { neither: told, ..PairTable::default() });
}

/// What each variant does for a user is the user's name: `stable,canary`.
fn as_told(request: &Value) -> Response<Body> {
    let user = request["user"].as_str().unwrap();
    let (stable, canary) = user.split_once(',').unwrap();
    let act = if variant(request) == "stable" { stable } else { canary };
    match act {
        "good" => good(),
        "dear" => json_answer(&json!({"choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": r#"{"answer": "long"}"#}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 300}})),
        "bad" => says("because", "stop"),
        status => fails(status.parse().unwrap()),
    }
}

#[tokio::test]
async fn both_answers_to_one_request_are_a_pair() {
    let bench = Bench::new(as_told).await;
    bench.serve(shadowed(&bench, 100));
    for (user, times) in [
        ("good,good", 8),
        ("good,500", 3),
        ("500,good", 2),
        ("503,500", 1),
        ("good,bad", 4),
        ("bad,good", 2),
        ("bad,bad", 1),
        ("good,dear", 2),
    ] {
        for _ in 0..times {
            let answer = bench.chat(json!({"user": user})).await;
            assert_eq!(answer.status().is_success(), !user.starts_with('5'), "{user}");
        }
    }
    let (canary, paired) = settled(&bench).await;
    assert_eq!(paired.errors, PairTable { neither: 17, canary_only: 3, stable_only: 2, both: 1 });
    assert_eq!(
        paired.checks,
        PairTable { neither: 10, canary_only: 4, stable_only: 2, both: 1 },
        "only of requests that both answered"
    );
    assert_eq!((canary.requests, canary.errors, paired.dropped), (23, 4, 0));
    // 100 tokens are 0.001 USD, on top of 0.001 for the input; the dear ones have 200 more.
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    assert_eq!((paired.cost.count, paired.stable_cost.count), (17, 17));
    assert!(close(paired.cost.sum, 2.0 * 0.002), "{:?}", paired.cost);
    assert!(close(paired.stable_cost.sum, 17.0 * 0.002), "{:?}", paired.stable_cost);
    assert!(close(paired.spent_usd, 19.0 * 0.002 + 2.0 * 0.002), "{}", paired.spent_usd);
}

#[tokio::test]
async fn what_only_the_canary_refuses_is_its_failure_and_what_both_refuse_is_no_pair() {
    let bench = Bench::new(as_told).await;
    let mut release = shadowed(&bench, 100);
    bench.serve(release.clone());
    bench.chat(json!({"user": "good,422"})).await;
    bench.chat(json!({"user": "422,422"})).await;
    let (_, told) = settled(&bench).await;
    assert_eq!((told.errors.canary_only, told.errors.pairs(), told.dropped), (1, 1, 1));
    // A mistake that never reaches a model is not copied either.
    let sent = bench.asked().len();
    let mistake = json!({"user": "good,good", "serinus": {"variables": {}}});
    let answer = bench.chat(mistake).await;
    assert_eq!((answer.status().as_u16(), bench.asked().len()), (400, sent));
    assert_eq!(header(&answer, "x-serinus-shadow-request-id"), None);
    assert_eq!(settled(&bench).await.1.dropped, 2);
    // A variable that no application sends.
    edit(release.variants.get_mut("canary").unwrap(), |canary| {
        let variables = canary.prompt.variables.get_or_insert_default();
        variables.insert("required".to_owned(), json!(["question", "mood"]));
    });
    release.routing.generation += 1;
    bench.serve(release);
    let asked = bench.asked().len();
    assert_eq!(bench.chat(json!({"user": "good,good"})).await.status(), 200);
    assert_eq!(settled(&bench).await.1.errors.canary_only, 1);
    assert_eq!(bench.asked().len(), asked + 1, "only stable was asked");
}

#[tokio::test]
async fn a_hanging_canary_delays_nobody() {
    let gate = CancellationToken::new();
    let held_by = gate.clone();
    let bench = Bench::new(move |request| match variant(request).as_str() {
        "canary" => held(&held_by),
        _ if request["stream"] == true => streamed(stream::iter([
            Ok(event(r#"{"answer": 1}"#, Some("stop"))),
            Ok("data: [DONE]\n\n".to_owned()),
        ])),
        _ => good(),
    })
    .await;
    bench.serve(shadowed(&bench, 100));
    for user in 0..10 {
        let answer = bench.chat(json!({"user": user.to_string(), "stream": user % 2 == 0})).await;
        assert_eq!(answer.status(), 200);
        assert!(!answer.text().await.unwrap().is_empty());
    }
    // Every user has a whole answer, and not one copy has.
    eventually("stable is counted", || bench.counts("stable").requests == 10).await;
    assert_eq!((bench.counts("canary").requests, paired(&bench).dropped), (0, 0));
    eventually("all copies are held", || {
        bench.asked().iter().filter(|r| variant(r) == "canary").count() == 10
    })
    .await;
    gate.cancel();
    // A JSON answer to a request for a stream is none.
    let errors = settled(&bench).await.1.errors;
    assert_eq!((errors.neither, errors.canary_only), (5, 5));
}

#[tokio::test]
async fn copies_without_room_are_dropped_and_counted() {
    for (backend, gateway) in [(Some(2), 2), (None, 128)] {
        let gate = CancellationToken::new();
        let held_by = gate.clone();
        let bench = Bench::new(
            move |request| {
                if variant(request) == "canary" { held(&held_by) } else { good() }
            },
        )
        .await;
        let mut release = shadowed(&bench, 100);
        // One user at a time: a copy that took stable's permit would be noticed.
        edit(release.variants.get_mut("stable").unwrap(), |stable| {
            stable.backend.limits.max_concurrency = 1;
        });
        if let Some(limit) = backend {
            edit(release.variants.get_mut("canary").unwrap(), |canary| {
                canary.backend.limits.max_concurrency = limit;
            });
        }
        bench.serve(release);
        for _ in 0..gateway + 5 {
            let answer = bench.chat(json!({})).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(header(&answer, "x-serinus-revision"), Some("stable"));
        }
        assert_eq!(paired(&bench).dropped, 5, "whatever had no room");
        gate.cancel();
        let (canary, paired) = settled(&bench).await;
        assert_eq!((canary.requests, paired.dropped), (gateway, 5));
        assert_eq!(bench.counts("stable").requests, gateway + 5);
    }
}

#[tokio::test]
async fn an_answer_that_the_user_does_not_wait_for_is_no_pair_but_its_copy_is_paid() {
    let bench = Bench::new(|request| {
        if variant(request) == "canary" {
            return good();
        }
        let first = stream::once(async { Ok(event("x", None)) });
        streamed(first.chain(stream::pending::<Result<String, std::io::Error>>()))
    })
    .await;
    bench.serve(shadowed(&bench, 100));
    let answer = bench.chat(json!({"stream": true})).await;
    let mut body = answer.bytes_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    let (canary, paired) = settled(&bench).await;
    assert_eq!((paired.dropped, paired.errors.pairs(), canary.requests), (1, 0, 1));
    assert!((paired.spent_usd - 0.002).abs() < 1e-12, "{}", paired.spent_usd);
    let stable = bench.counts("stable");
    assert_eq!((stable.requests, stable.unfinished), (0, 1), "it was given up");
}

#[tokio::test]
async fn a_copied_stream_is_read_to_its_end() {
    let bench = Bench::new(|request| {
        let broken = variant(request) == "canary" && request["user"] == "broken";
        let usage =
            json!({"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 100}});
        let end = [format!("data: {usage}\n\n"), "data: [DONE]\n\n".to_owned()];
        let mut events = vec![event(r#"{"answer": "#, None)];
        if !broken {
            events.push(event("1}", Some("stop")));
            events.extend(end);
        }
        streamed(stream::iter(events.into_iter().map(Ok)))
    })
    .await;
    bench.serve(shadowed(&bench, 100));
    for user in ["whole", "broken"] {
        let answer = bench.chat(json!({"stream": true, "user": user})).await;
        assert!(answer.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    }
    let (_, paired) = settled(&bench).await;
    assert_eq!(paired.errors, PairTable { neither: 1, canary_only: 1, ..PairTable::default() });
    assert_eq!((paired.checks.neither, paired.cost.count), (1, 1));
}

#[tokio::test]
async fn a_lost_leader_stops_the_copies_and_no_breaker_does() {
    let bench =
        Bench::new(|request| if variant(request) == "canary" { fails(500) } else { good() }).await;
    bench.serve(shadowed(&bench, 100));
    for _ in 0..40 {
        assert_eq!(bench.chat(json!({})).await.status(), 200);
        settled(&bench).await;
    }
    let (canary, paired) = settled(&bench).await;
    assert_eq!((canary.errors, paired.errors.canary_only, paired.dropped), (40, 40, 0));
    let lost = Bench::with_control_loss(Duration::ZERO, |_| good()).await;
    lost.serve(shadowed(&lost, 100));
    tokio::time::sleep(Duration::from_millis(5)).await;
    for _ in 0..10 {
        let answer = lost.chat(json!({})).await;
        assert_eq!(header(&answer, "x-serinus-shadow-request-id"), None);
    }
    assert_eq!(Counts { read_at: 0, ..lost.counts("canary") }, Counts::default());
    assert_eq!((lost.counts("stable").requests, lost.asked().len()), (0, 10));
}

#[tokio::test]
async fn what_copies_cost_is_exported_apart() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(shadowed(&bench, 100));
    for _ in 0..3 {
        bench.chat(json!({})).await;
    }
    settled(&bench).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let mut admin = tokio::task::JoinSet::new();
    let (gateway, forever) = (bench.gateway.clone(), std::future::pending());
    admin.spawn(serve(listener, Face::Operators, gateway, forever, Duration::ZERO));
    let text = bench.client.get(url).send().await.unwrap().text().await.unwrap();
    for line in [
        r#"cost_usd_total{release="ns/r",revision="stable",traffic="users",team=""} 0.006"#,
        r#"cost_usd_total{release="ns/r",revision="canary",traffic="shadow",team=""} 0.006"#,
        r#"requests_total{release="ns/r",revision="canary",role="shadow",reason="shadow",outcome="ok"} 3"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(r#"revision="canary",traffic="users""#));
}

#[tokio::test]
async fn scores_of_both_sides_are_a_pair() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(shadowed(&bench, 100));
    let path = "/serinus/v1/feedback";
    for (stable, shadow, shadow_first) in [(0.5, 0.75, false), (1.0, 0.25, true)] {
        let answer = bench.chat(json!({"user": "ada"})).await;
        let id = header(&answer, "x-serinus-request-id").unwrap();
        let copy = header(&answer, "x-serinus-shadow-request-id").unwrap();
        let mut scores = vec![(id, stable), (copy, shadow)];
        if shadow_first {
            scores.reverse();
        }
        for (id, score) in scores {
            let body = json!({"request_id": id, "score": score});
            assert_eq!(bench.post(path, &body).await.status(), 204);
            assert_eq!(bench.post(path, &body).await.status(), 409);
        }
        // Another name waits for its own pair.
        let body = json!({"request_id": id, "score": 0.5, "name": "style"});
        assert_eq!(bench.post(path, &body).await.status(), 204);
    }
    let (canary, paired) = settled(&bench).await;
    let difference = paired.scores["helpfulness"];
    assert_eq!((difference.count, difference.sum), (2, 0.25 - 0.75));
    assert_eq!(paired.scores.len(), 1);
    assert_eq!(bench.counts("stable").scores["helpfulness"].sum, 1.5);
    assert_eq!(canary.scores["helpfulness"].sum, 1.0);
}

#[tokio::test]
async fn a_process_that_is_told_to_stop_waits_for_its_copies() {
    let gate = CancellationToken::new();
    let held_by = gate.clone();
    let bench = Bench::new(
        move |request| {
            if variant(request) == "canary" { held(&held_by) } else { good() }
        },
    )
    .await;
    bench.serve(shadowed(&bench, 100));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    bench.stop.cancel();
    // It takes no new connections, and yet it runs.
    let address = bench.address;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(paired(&bench), Paired::default());
    let gateway = bench.gateway.clone();
    let mut servers = bench.servers;
    assert!(servers.try_join_next().is_none());
    gate.cancel();
    // The first of the servers to end is the gateway: the model goes on.
    servers.join_next().await.unwrap().unwrap();
    let counts = gateway.report(false).releases["ns/r"].counts["canary"].clone();
    assert_eq!(counts.paired.as_ref().unwrap().errors.neither, 1);
}
