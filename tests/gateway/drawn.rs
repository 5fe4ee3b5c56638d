//! A drawn request is its side's evidence, whatever becomes of it.

use std::time::Duration;

use axum::{body::Body, http::Response};
use futures::{StreamExt, stream};
use serde_json::json;
use serinus::api::prompt_release::Counts;

use crate::bench::{Bench, edit, event, fails, good, streamed, variant};

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}");
}

fn silent() -> Response<Body> {
    Response::new(Body::from_stream(stream::pending::<Result<String, std::io::Error>>()))
}

fn is_whole(counts: &Counts) -> bool {
    counts.assigned == counts.ended() + counts.excluded + counts.turned_away.waiting + counts.open()
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_counts_for_its_side() {
    let bench = Bench::new(|r| if variant(r) == "canary" { silent() } else { good() }).await;
    bench.serve(bench.release(50));
    for user in 0..20 {
        let asked = bench.chat(json!({"user": user.to_string()}));
        let _ = tokio::time::timeout(Duration::from_millis(150), asked).await;
    }
    eventually("all have ended", || bench.counts("canary").open() == 0).await;
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!(stable.assigned + canary.assigned, 20);
    assert!(canary.unfinished == canary.assigned && canary.assigned > 0, "{canary:?}");
    assert_eq!(canary.waited.duration.values().sum::<u64>(), canary.unfinished);
    assert_eq!(canary.waited.ttft, canary.waited.duration);
    assert_eq!(canary.groups.unfinished.iter().sum::<u64>(), canary.unfinished);
    // How long they waited is counted by keys, too, whether they got an answer or not.
    for side in [&stable, &canary] {
        for groups in [&side.groups.ttft, &side.groups.duration] {
            assert_eq!(groups.values().flatten().sum::<u64>(), side.assigned);
        }
    }
    assert!(stable.requests == stable.assigned && is_whole(&stable) && is_whole(&canary));
}

#[tokio::test]
async fn a_stream_that_stalls_has_had_its_first_token_and_waits_for_the_rest() {
    let bench = Bench::new(|_| {
        let first = stream::once(async { Ok(event("word ", None)) });
        streamed(first.chain(stream::pending::<Result<String, std::io::Error>>()))
    })
    .await;
    bench.serve(bench.release(100));
    let answer = bench.chat(json!({"user": "u", "stream": true})).await;
    let mut body = answer.bytes_stream();
    body.next().await.unwrap().unwrap();
    let open = bench.counts("canary");
    assert_eq!((open.open(), open.open.ttft.len()), (1, 0), "{open:?}");
    drop(body);
    eventually("it is given up", || bench.counts("canary").unfinished == 1).await;
    let left = bench.counts("canary");
    assert_eq!(left.ttft.values().sum::<u64>(), 1);
    assert_eq!((left.waited.ttft.len(), left.waited.duration.len()), (0, 1));
}

#[tokio::test]
async fn what_is_open_is_reported_before_it_ends() {
    let bench = Bench::new(|_| silent()).await;
    bench.serve(bench.release(100));
    let asked = bench.chat(json!({"user": "u"}));
    let seen = eventually("it is open", || bench.counts("canary").open() == 1);
    tokio::select! {
        answer = asked => panic!("{answer:?}"),
        () = seen => {}
    }
}

#[tokio::test]
async fn without_a_fallback_refusals_count_for_their_side() {
    let bench = Bench::new(|r| if variant(r) == "canary" { fails(400) } else { good() }).await;
    let mut release = bench.release(50);
    release.routing.settings.fallback_to_stable = false;
    bench.serve(release);
    for user in 0..20 {
        bench.chat(json!({"user": user.to_string()})).await;
    }
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert!(canary.refused == canary.assigned && canary.assigned > 0, "{canary:?}");
    assert_eq!((canary.requests, canary.errors, stable.refused), (0, 0, 0));
    assert_eq!(canary.groups.refused.iter().sum::<u64>(), canary.refused);
}

#[tokio::test]
async fn what_both_refuse_is_no_error_and_dilutes_none() {
    let bench = Bench::new(|_| fails(422)).await;
    bench.serve(bench.release(50));
    for user in 0..20 {
        bench.chat(json!({"user": user.to_string()})).await;
    }
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!((stable.requests, canary.requests, canary.errors), (0, 0, 0));
    assert_eq!(stable.refused + canary.refused, 20);
}

#[tokio::test]
async fn what_a_cache_knows_is_excluded_and_still_accounted_for() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(50);
    release.cache = Some(serde_json::from_value(json!({"ttl": "10m"})).unwrap());
    for variant in release.variants.values_mut() {
        edit(variant, |variant| variant.prompt.parameters.temperature = Some(0.0));
    }
    bench.serve(release);
    for _ in 0..2 {
        for user in 0..10 {
            bench.chat(json!({"user": user.to_string()})).await;
        }
    }
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!(stable.assigned + canary.assigned, 20);
    assert!(stable.excluded + canary.excluded > 10, "{stable:?} {canary:?}");
    assert!(is_whole(&stable) && is_whole(&canary), "{stable:?} {canary:?}");
}

#[tokio::test]
async fn what_only_one_model_can_read_is_no_evidence_between_two() {
    let bench = Bench::new(|_| good()).await;
    let other = bench.another_model(|_| good()).await;
    let mut release = bench.release(50);
    bench.serve(release.clone());
    let sealed = json!({"user": "u", "messages": [{"role": "assistant", "content": "x",
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "…"}]}]});
    assert_eq!(bench.chat(sealed.clone()).await.status(), 200);
    let drawn = |bench: &Bench| bench.counts("stable").assigned + bench.counts("canary").assigned;
    assert_eq!(drawn(&bench), 1, "both variants have one model, which reads it");
    edit(release.variants.get_mut("canary").unwrap(), |canary| {
        canary.backend.endpoint.as_mut().unwrap().url = format!("http://{other}/v1");
    });
    release.routing.generation += 1;
    bench.serve(release);
    assert_eq!(bench.chat(sealed).await.status(), 200);
    assert_eq!(drawn(&bench), 0);
    assert_eq!(bench.chat(json!({"user": "u"})).await.status(), 200);
    assert_eq!(drawn(&bench), 1);
}

#[tokio::test]
async fn stable_that_is_passed_over_is_charged_as_a_canary_would_be() {
    let bench = Bench::new(|r| if r["model"] == "other-model" { good() } else { fails(503) }).await;
    let mut release = bench.release(1);
    let spec = json!({"provider": "test", "model": "other-model",
        "endpoint": {"url": format!("http://{}/v1", bench.model)}});
    let other = serde_json::from_value(spec).unwrap();
    release.backends.insert("other".to_owned(), std::sync::Arc::new(other));
    release.other_backends = vec!["other".to_owned()];
    for variant in release.variants.values_mut() {
        edit(variant, |variant| variant.backend.limits.retries = 0);
    }
    bench.serve(release);
    for user in 0..40 {
        assert_eq!(bench.chat(json!({"user": user.to_string()})).await.status(), 200);
    }
    let stable = bench.counts("stable");
    let away = stable.turned_away;
    assert!(away.waiting + away.requests > 10, "{stable:?}");
    assert!(stable.errors == stable.requests && is_whole(&stable), "{stable:?}");
}
