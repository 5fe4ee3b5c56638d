//! Answers that are given again.

use std::time::Duration;

use futures::stream;
use serde_json::{Value, json};
use serinus::{
    api::{GoDuration, prompt_release::ResponseCache},
    gateway::routes::ReleaseInput,
};

use crate::bench::{Bench, event, fails, good, says, streamed};

fn cached(mut release: ReleaseInput, ttl: Duration) -> ReleaseInput {
    release.cache = Some(ResponseCache { ttl: GoDuration(ttl) });
    release
}

const LONG: Duration = Duration::from_secs(600);

/// What the header says, and the body.
async fn ask(bench: &Bench, more: Value) -> (String, String) {
    let answer = bench.chat(more).await;
    let said = answer.headers().get("x-serinus-cache").map(|v| v.to_str().unwrap().to_owned());
    (said.unwrap_or_default(), answer.text().await.unwrap())
}

#[tokio::test]
async fn the_same_request_is_answered_from_memory_and_that_is_no_evidence() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(cached(bench.release(1), LONG));
    let (first, body) = ask(&bench, json!({"user": "ada"})).await;
    let (second, again) = ask(&bench, json!({"user": "ada"})).await;
    assert_eq!((first.as_str(), second.as_str()), ("miss", "hit"));
    assert_eq!(body, again, "byte for byte");
    assert_eq!(bench.asked().len(), 1);
    assert_eq!(bench.counts("stable").requests + bench.counts("canary").requests, 1);
    let (other, _) = ask(&bench, json!({"user": "ada", "temperature": 0.1, "seed": 1})).await;
    assert_eq!(other, "miss", "another request is another answer");
}

#[tokio::test]
async fn a_stream_is_given_again_as_a_stream() {
    let bench = Bench::new(|_| {
        let events = [
            event(r#"{"answer": "yes"}"#, Some("stop")),
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n"
                .into(),
            "data: [DONE]\n\n".into(),
        ];
        streamed(stream::iter(events.map(Ok)))
    })
    .await;
    bench.serve(cached(bench.release(0), LONG));
    let (_, first) = ask(&bench, json!({"stream": true})).await;
    let (said, again) = ask(&bench, json!({"stream": true})).await;
    assert_eq!((said.as_str(), &again), ("hit", &first));
    assert!(!again.contains("usage"), "{again}");
    let wanted = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (said, whole) = ask(&bench, wanted).await;
    assert!(said == "miss" && whole.contains("usage"), "who wants usage gets another form");
}

#[tokio::test]
async fn what_failed_or_is_not_what_was_asked_for_is_not_kept() {
    let bench = Bench::new(|_| says("no JSON", "stop")).await;
    bench.serve(cached(bench.release(0), LONG));
    for _ in 0..2 {
        assert_eq!(ask(&bench, json!({})).await.0, "miss");
    }
    let broken = Bench::new(|_| fails(500)).await;
    broken.serve(cached(broken.release(0), LONG));
    for _ in 0..2 {
        assert_eq!(broken.chat(json!({})).await.status(), 500);
    }
    assert_eq!(broken.asked().len(), 4, "each was asked for again");
}

#[tokio::test]
async fn who_wants_a_new_answer_gets_one_and_old_ones_go() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(cached(bench.release(0), LONG));
    ask(&bench, json!({})).await;
    let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
    let fresh = bench
        .client
        .post(format!("http://{}/v1/chat/completions", bench.address))
        .header("cache-control", "no-cache")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(fresh.headers()["x-serinus-cache"], "miss");
    assert_eq!(ask(&bench, json!({})).await.0, "hit", "the new one is kept");
    let mut release = cached(bench.release(0), Duration::from_millis(30));
    release.routing.generation += 1;
    bench.serve(release);
    ask(&bench, json!({"seed": 2})).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(ask(&bench, json!({"seed": 2})).await.0, "miss");
}

#[tokio::test]
async fn a_request_that_one_variant_has_answered_before_is_evidence_for_none() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(cached(bench.release(0), LONG));
    ask(&bench, json!({"seed": 1})).await;
    // The canary has nothing kept yet.
    bench.serve(cached(bench.release(99), LONG));
    let (said, _) = ask(&bench, json!({"seed": 1, "user": "on-the-canary"})).await;
    assert_eq!(said, "miss", "it is the canary that answers");
    assert_eq!(bench.counts("canary").requests, 0, "and that is not compared");
    ask(&bench, json!({"seed": 2, "user": "on-the-canary"})).await;
    assert_eq!(bench.counts("canary").requests, 1, "what is new to both is");
}

#[tokio::test]
async fn a_release_that_does_not_ask_for_it_has_no_cache() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(0));
    for _ in 0..2 {
        assert_eq!(ask(&bench, json!({})).await.0, "");
    }
    assert_eq!(bench.asked().len(), 2);
}
