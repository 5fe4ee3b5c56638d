//! What applications get.

use std::{sync::Arc, sync::Mutex, time::Duration};

use axum::{body::Body, http::Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::bench::{Bench, event, fails, good, json_answer, says, streamed, variant};

#[tokio::test]
async fn the_prompt_is_laid_over_the_request_and_the_rest_is_kept() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(0));
    let answer = bench
        .chat(json!({
            "messages": [{"role": "user", "content": "and more"}],
            "temperature": 1.9, "logit_bias": {"50256": -100}, "user": "ada",
        }))
        .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-serinus-revision"], "stable");
    assert!(!answer.headers()["x-serinus-request-id"].is_empty());
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], r#"{"answer": "because"}"#);
    let sent = &bench.asked()[0];
    let texts: Vec<&str> = sent["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["content"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["I am stable.", "why?", "and more"]);
    assert_eq!(sent["model"], "upstream-model");
    assert_eq!(sent["temperature"], 0.5, "the prompt's parameters win");
    assert_eq!((&sent["max_tokens"], &sent["logit_bias"]["50256"]), (&json!(9), &json!(-100)));
    assert_eq!(sent["response_format"]["type"], "json_schema");
    assert_eq!(sent["tools"][0]["function"]["name"], "look_up");
    assert!(sent.get("serinus").is_none());
}

#[tokio::test]
async fn a_stream_is_forwarded_as_it_comes() {
    let (sender, receiver) = mpsc::channel::<Result<String, std::io::Error>>(8);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let bench = Bench::new(move |_| {
        let receiver = receiver.lock().unwrap().take().unwrap();
        let events = stream::unfold(receiver, |mut r| async { Some((r.recv().await?, r)) });
        streamed(events)
    })
    .await;
    bench.serve(bench.release(0));
    sender.send(Ok(event(r#"{"answer":"#, None))).await.unwrap();
    let answer = bench.chat(json!({"stream": true})).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.bytes_stream();
    // The model has not sent its second event, and will not before the first one arrived.
    let first = body.next().await.unwrap().unwrap();
    assert_eq!(first, event(r#"{"answer":"#, None));
    // Nor does its last word wait for the mark of the end, with which it may come together.
    sender.send(Ok(event(r#" "yes"}"#, Some("stop")))).await.unwrap();
    let last = body.next().await.unwrap().unwrap();
    assert_eq!(last, event(r#" "yes"}"#, Some("stop")));
    sender.send(Ok("data: [DONE]\n\n".to_owned())).await.unwrap();
    drop(sender);
    let rest: Vec<u8> = body.map(|b| b.unwrap().to_vec()).concat().await;
    assert_eq!(rest, b"data: [DONE]\n\n");
    assert!(bench.report().counts.is_empty(), "with one variant nothing is compared");
}

fn streams(chunks: Vec<Result<String, std::io::Error>>) -> Response<Body> {
    streamed(stream::iter(chunks))
}

#[tokio::test]
async fn a_stream_that_breaks_is_an_error_of_its_variant() {
    let bench = Bench::new(|_| {
        let events = stream::iter(0..2).then(|i| async move {
            // The first event is under way when the connection breaks.
            tokio::time::sleep(Duration::from_millis(i * 20)).await;
            if i == 0 { Ok(event("a", None)) } else { Err(std::io::Error::other("broken")) }
        });
        streamed(events)
    })
    .await;
    bench.serve(bench.release(99));
    let mut broken = 0;
    // Too few for the breaker.
    for user in 0..9 {
        let answer = bench.chat(json!({"stream": true, "user": user.to_string()})).await;
        let text = answer.text().await.unwrap();
        // The official clients raise an error at such an event.
        broken +=
            usize::from(text.contains(r#""code":"upstream_broken""#) && !text.contains("[DONE]"));
    }
    assert_eq!(broken, 9, "an application must notice that its answer is not whole");
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!(stable.errors + canary.errors, 9);
}

#[tokio::test]
async fn a_canary_that_fails_before_its_first_byte_is_answered_by_stable() {
    for status in [500, 503, 404] {
        let bench = Bench::new(
            move |request| {
                if variant(request) == "canary" { fails(status) } else { good() }
            },
        )
        .await;
        bench.serve(bench.release(99));
        let mut by_stable = 0;
        for user in 0..8 {
            let answer = bench.chat(json!({"user": user.to_string()})).await;
            assert_eq!(answer.status(), 200);
            by_stable += usize::from(answer.headers()["x-serinus-revision"] == "stable");
        }
        assert_eq!(by_stable, 8);
        let canary = bench.counts("canary");
        assert!(canary.errors >= 6 && canary.errors == canary.requests, "{canary:?}");
        // Answers given in place of the canary are no evidence for stable.
        let stable = bench.counts("stable");
        assert_eq!(stable.requests + canary.requests, 8);
    }
}

#[tokio::test]
async fn a_slow_canary_falls_back_when_its_first_token_is_late() {
    let bench = Bench::new(|request| {
        if variant(request) == "stable" {
            return streams(vec![Ok(event("x", Some("stop"))), Ok("data: [DONE]\n\n".into())]);
        }
        streamed(stream::pending::<Result<String, std::io::Error>>())
    })
    .await;
    bench.serve(bench.release(99));
    for user in ["a", "b"] {
        let answer = bench.chat(json!({"stream": true, "user": user})).await;
        assert_eq!(answer.headers()["x-serinus-revision"], "stable");
        assert!(answer.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn mistakes_of_the_application_are_told_in_openais_shape() {
    let bench = Bench::new(|_| good()).await;
    let before = bench.chat(json!({})).await;
    assert_eq!(
        (before.status().as_u16(), &before.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    bench.serve(bench.release(50));
    for (body, status, code, param) in [
        (json!({"serinus": {"variables": {}}}), 400, "invalid_variables", json!("question")),
        (
            json!({"serinus": {"variables": {"question": 7}}}),
            400,
            "invalid_variables",
            json!("question"),
        ),
        (
            json!({"serinus": {"variables": []}}),
            400,
            "invalid_variables",
            json!("serinus.variables"),
        ),
        (json!({"messages": "hi"}), 400, "invalid_messages", json!("messages")),
        (json!({"stream": "true"}), 400, "invalid_type", json!("stream")),
        (json!({"stream": 1}), 400, "invalid_type", json!("stream")),
        (json!({"stream": [true]}), 400, "invalid_type", json!("stream")),
        (json!({"model": "other"}), 404, "model_not_found", json!("model")),
        (json!({"model": null}), 400, "missing_model", json!("model")),
    ] {
        let answer = bench.chat(body.clone()).await;
        assert_eq!(answer.status(), status, "{body}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], code, "{body}: {error}");
        let told = error["error"]["param"].as_str().unwrap_or_default();
        assert!(told.ends_with(param.as_str().unwrap()), "{body}: {error}");
        assert!(error["error"]["message"].as_str().is_some_and(|m| m.len() > 10));
    }
    assert!(bench.asked().is_empty(), "none of these reach the model");
    let counts = bench.report().counts;
    assert_eq!(counts.len(), 2);
    assert!(counts.values().all(|c| c.errors == 0), "and none is a variant's fault: {counts:?}");
}

#[tokio::test]
async fn what_the_model_refuses_is_passed_on_as_it_is() {
    let bench = Bench::new(|_| fails(422)).await;
    bench.serve(bench.release(0));
    let answer = bench.chat(json!({})).await;
    assert_eq!(answer.status(), 422);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["message"], "no");
}

#[tokio::test]
async fn tokens_cost_and_checks_are_counted() {
    let answers: Arc<Mutex<Vec<Response<Body>>>> = Arc::new(Mutex::new(vec![
        json_answer(&json!({"choices": [{"index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": null, "refusal": "I can not help with that."}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100}})),
        says("", "stop"),
        says(r#"{"answer": "be"#, "length"),
        says(r#"{"other": 1}"#, "stop"),
        says("because", "stop"),
        good(),
    ]));
    let bench = Bench::new(move |_| answers.lock().unwrap().pop().unwrap()).await;
    bench.serve(bench.release(1));
    for user in 0..6 {
        let answer = bench.chat(json!({"user": user.to_string()})).await;
        assert_eq!(answer.status(), 200);
    }
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!(stable.checked + canary.checked, 6);
    assert_eq!(stable.check_failures + canary.check_failures, 5);
    // 1000 tokens at 1 USD and 100 at 10 USD a million, six times.
    let cost = stable.cost.sum + canary.cost.sum;
    assert!((cost - 6.0 * 0.002).abs() < 1e-12, "{cost}");
}

#[tokio::test]
async fn costs_are_counted_with_what_applications_say_while_they_are_compared() {
    let bench = Bench::new(|_| good()).await;
    let asks = async |user: usize| {
        let asked = json!({"role": "user", "content": "a".repeat(1_000 * user)});
        let answered = json!({"role": "assistant", "content": "b".repeat(50_000)});
        let body = json!({"user": user.to_string(), "messages": [asked, answered, asked]});
        assert_eq!(bench.chat(body).await.status(), 200);
        let variables = json!({"variables": {"question": "why?"}});
        2 * asked.to_string().len() + variables.to_string().len()
    };
    // Nothing is compared.
    bench.serve(bench.release(0));
    asks(1).await;
    assert!(bench.report().counts.values().all(|counts| counts.cost_by_input.is_empty()));
    bench.serve(bench.release(50));
    let mut said = 0;
    for user in 1..=12 {
        said += asks(user).await;
    }
    let sides = ["stable", "canary"].map(|side| bench.counts(side));
    for side in &sides {
        let (x, y) = (side.cost_by_input, side.cost);
        assert!(y.count > 0 && x.count == y.count, "{side:?}");
        // Every answer costs the same.
        assert!((x.xy - x.x * y.sum / y.count as f64).abs() < 1e-9 && x.x2 >= x.x);
        assert!((side.groups.input.iter().sum::<f64>() - x.x).abs() < 1e-9);
    }
    let kib = sides.iter().map(|side| side.cost_by_input.x).sum::<f64>();
    assert!((kib * 1024.0 - said as f64).abs() < 1e-6, "{kib} KiB for {said} bytes");
}

#[tokio::test]
async fn feedback_reaches_the_variant_that_answered() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(50));
    let answer = bench.chat(json!({"user": "ada"})).await;
    let revision = answer.headers()["x-serinus-revision"].to_str().unwrap().to_owned();
    let id = answer.headers()["x-serinus-request-id"].to_str().unwrap().to_owned();
    let path = "/serinus/v1/feedback";
    assert_eq!(bench.post(path, &json!({"request_id": id, "score": 0.25})).await.status(), 204);
    let score = bench.counts(&revision).scores["helpfulness"];
    assert_eq!((score.count, score.sum), (1, 0.25));
    for (body, status) in [
        (json!({"request_id": id, "score": 2}), 400),
        (json!({"request_id": id, "thumbs": "sideways"}), 400),
        (json!({"score": 1}), 400),
        (json!({"request_id": "made-up", "score": 1}), 404),
    ] {
        assert_eq!(bench.post(path, &body).await.status(), status, "{body}");
    }
    assert_eq!(bench.counts(&revision).scores["helpfulness"].count, 1);
}

#[tokio::test]
async fn a_stream_that_runs_when_the_process_is_told_to_stop_ends_well() {
    let bench = Bench::new(|_| {
        let events = stream::iter(0..10).then(|i| async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok::<_, std::io::Error>(event("x", (i == 9).then_some("stop")))
        });
        streamed(events)
    })
    .await;
    bench.serve(bench.release(0));
    let answer = bench.chat(json!({"stream": true})).await;
    bench.stop.cancel();
    let text = answer.text().await.unwrap();
    assert_eq!(text.matches("data: ").count(), 10);
    let mut servers = bench.servers;
    assert!(servers.join_next().await.unwrap().is_ok());
}
