//! Answers as real servers send them, read forgivingly and judged strictly.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use serinus::gateway::server::{Face, serve};
use tokio::net::TcpListener;

use crate::bench::{Bench, PEOPLES_TOKEN, edit, event, good, json_answer, says, streamed, variant};

const DONE: &str = "data: [DONE]\n\n";

/// A stream with these bytes, under this type.
fn typed(content_type: &str, text: impl Into<String>) -> Response<Body> {
    Response::builder().header("content-type", content_type).body(Body::from(text.into())).unwrap()
}

fn events(text: impl Into<String>) -> Response<Body> {
    typed("text/event-stream", text)
}

fn whole(text: impl Into<String>) -> Response<Body> {
    typed("application/json", text)
}

fn role() -> String {
    event("", None)
}

/// What stable answers, as it is asked.
fn good_for(request: &Value) -> Response<Body> {
    if request["stream"] == json!(true) {
        return events(event(r#"{"answer": "yes"}"#, Some("stop")) + DONE);
    }
    good()
}

/// The metrics and the examples of a gateway.
async fn told(bench: &Bench) -> (String, Value) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut servers = tokio::task::JoinSet::new();
    let gateway = bench.gateway.clone();
    servers.spawn(serve(
        listener,
        Face::Operators,
        gateway,
        std::future::pending(),
        Duration::ZERO,
    ));
    let get =
        |path: &str| bench.client.get(format!("{url}{path}")).bearer_auth(PEOPLES_TOKEN).send();
    let metrics = get("/metrics").await.unwrap().text().await.unwrap();
    let examples = get("/serinus/v1/unread").await.unwrap().json().await.unwrap();
    (metrics, examples)
}

/// Whether a series with all of these labels counts exactly one.
fn counts_one(metrics: &str, name: &str, labels: &[&str]) -> bool {
    metrics.lines().any(|line| {
        line.starts_with(name)
            && line.ends_with(" 1")
            && labels.iter().all(|label| line.contains(label))
    })
}

/// Asks stable alone once; what the application got, and how often the model was asked.
async fn once(
    request: Value,
    script: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static,
) -> (Bench, reqwest::Response, usize) {
    let bench = Bench::new(script).await;
    bench.serve(bench.release(0));
    let answer = bench.chat(request).await;
    let asked = bench.asked().len();
    (bench, answer, asked)
}

/// A canary that answers so is answered by stable, and fails.
async fn is_answered_by_stable(
    stream: bool,
    name: &str,
    script: impl Fn() -> Response<Body> + Send + Sync + 'static,
) {
    let bench = Bench::new(move |request| match variant(request).as_str() {
        "canary" => script(),
        _ => good_for(request),
    })
    .await;
    bench.serve(bench.release(99));
    for user in 0..6 {
        let answer = bench.chat(json!({"stream": stream, "user": user.to_string()})).await;
        assert_eq!(answer.status(), 200, "{name}");
        assert_eq!(answer.headers()["x-serinus-revision"], "stable", "{name}");
    }
    let canary = bench.counts("canary");
    assert!(canary.errors >= 5 && canary.errors == canary.requests, "{name}: {canary:?}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_answered_by_stable() {
    for body in [
        r#"{"object":"error","message":"CUDA out of memory","type":"InternalServerError","code":500}"#,
        r#"{"code":"InternalError.Algo","message":"inference failed","request_id":"r"}"#,
        r#"{"error":"model not found"}"#,
        r#"{"detail":"boom"}"#,
        r#"{"base_resp":{"status_code":1013,"status_msg":"boom"},"choices":null}"#,
        r#"{"error_code":336000,"error_msg":"boom"}"#,
        r#"{"id":"x","object":"chat.completion","choices":[],"usage":{"prompt_tokens":1}}"#,
        r#"{"choices":null}"#,
        "{}",
        "null",
        "[]",
        "",
        "<html>Sign in</html>",
        r#"{"choices":[{"index":0,"message":{"content":"Half of an"},"finish_reason":"abort"}]}"#,
        r#"{"choices":[{"index":0,"message":{"content":"Half of an"},"finish_reason":"network_error"}]}"#,
        r#"{"choices":[{"index":0,"message":{"content":"Half"#,
    ] {
        is_answered_by_stable(false, body, move || whole(body)).await;
        // None of them is a stream, whatever it is called.
        is_answered_by_stable(true, body, move || whole(body)).await;
        is_answered_by_stable(true, body, move || events(body)).await;
    }
    let json = r#"{"choices":[{"index":0,"message":{"content":"whole"},"finish_reason":"stop"}]}"#;
    is_answered_by_stable(true, json, move || whole(json)).await;
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_answered_by_stable() {
    for text in [
        "data: {\"error\":{\"message\":\"died\",\"code\":500}}\n\n".to_owned(),
        "data: {\"object\":\"error\",\"message\":\"died\",\"code\":500}\n\n".to_owned(),
        "data: {\"error\":\"died\"}\n\n".to_owned(),
        "data: {\"detail\":\"died\"}\n\n".to_owned(),
        "event: error\ndata: {\"code\":500,\"details\":\"died\"}\n\n".to_owned(),
        "event: error\ndata: died\n\n".to_owned(),
        "error: {\"code\":500,\"message\":\"died\"}\n\n".to_owned(),
        // After a beginning that nobody has seen.
        role() + "error: {\"code\":500,\"message\":\"died\"}\n\n",
        role() + &event("Hello", None) + "event: error\ndata: died\n\n",
        role() + "{\"error\": {\"message\": \"died\"}}\n\n",
        role() + DONE,
        role() + &event("", Some("abort")) + DONE,
        role() + &event("Half of an", None) + DONE,
        DONE.to_owned(),
        String::new(),
        // The last event of a stream may have no end.
        "data: {\"error\":{\"message\":\"died\"}}".to_owned(),
    ] {
        let name = text.clone();
        is_answered_by_stable(true, &name, move || events(text.clone())).await;
    }
}

#[tokio::test]
async fn a_status_told_within_counts_as_if_it_were_real() {
    for (status, asked, body) in [
        (
            400,
            1,
            r#"{"error":{"message":"The model is not multimodal","type":"BadRequestError","code":400}}"#,
        ),
        (
            400,
            1,
            r#"{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
        ),
        (
            400,
            1,
            r#"{"object":"error","message":"maximum context length is 10","type":"BadRequestError","code":400}"#,
        ),
        (422, 1, r#"{"error":"Input validation error","error_type":"validation"}"#),
        (429, 2, r#"{"error":{"message":"slow down","code":429}}"#),
        (429, 2, r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#),
        (503, 2, r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#),
        (502, 2, r#"{"error":{"message":"Provider returned error","code":502}}"#),
        (500, 2, r#"{"object":"error","message":"boom","code":500}"#),
        (502, 2, r#"{"error":"model not found"}"#),
    ] {
        for text in
            [body.to_owned(), format!("data: {body}\n\n{DONE}"), format!("error: {body}\n\n")]
        {
            let stream = text != body;
            let (bench, answer, times) = once(json!({"stream": stream}), move |_| {
                if stream { events(text.clone()) } else { whole(text.clone()) }
            })
            .await;
            assert_eq!((answer.status().as_u16(), times), (status, asked), "{body} {stream}");
            let said: Value = answer.json().await.unwrap();
            assert_eq!(said, serde_json::from_str::<Value>(body).unwrap());
            drop(bench);
        }
    }
    // Whose fault it is is told by what is told, too.
    for (code, body) in [
        (
            "upstream_model_gone",
            r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#,
        ),
        (
            "upstream_unauthorized",
            r#"{"error":{"message":"bad key","type":"authentication_error"}}"#,
        ),
    ] {
        let (_bench, answer, times) = once(json!({}), move |_| whole(body)).await;
        assert_eq!((answer.status().as_u16(), times), (502, 1), "{body}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], code, "{body}");
    }
    // A text is told in OpenAI's shape.
    let (_bench, answer, _) =
        once(json!({"stream": true}), |_| events("event: error\ndata: rate limit exceeded\n\n"))
            .await;
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["message"], "rate limit exceeded");
}

#[tokio::test]
async fn the_time_to_wait_told_within_reaches_the_application() {
    let body = r#"{"error":{"message":"Please try again in 40s.","code":429}}"#;
    let (_bench, answer, times) = once(json!({}), move |_| whole(body)).await;
    assert_eq!((answer.status().as_u16(), times), (429, 1), "it is not asked again that soon");
    assert_eq!(answer.headers()["retry-after"], "40");
    let (_bench, answer, times) = once(json!({"stream": true}), move |_| {
        Response::builder()
            .header("content-type", "text/event-stream")
            .header("retry-after", "50")
            .body(Body::from(format!("data: {body}\n\n")))
            .unwrap()
    })
    .await;
    assert_eq!((answer.status().as_u16(), times), (429, 1));
    let headers: Vec<_> = answer.headers().get_all("retry-after").iter().collect();
    assert_eq!(headers, ["50"]);
}

#[tokio::test]
async fn a_model_that_is_gone_is_no_fault_of_the_application() {
    for (status, code, body) in [
        (
            404,
            "upstream_model_gone",
            r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#,
        ),
        (
            404,
            "upstream_model_gone",
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
        ),
        (410, "upstream_model_gone", ""),
        (
            403,
            "upstream_model_gone",
            r#"{"error":{"message":"Project does not have access to model `m`"}}"#,
        ),
        (
            400,
            "upstream_model_gone",
            r#"{"error":{"message":"The model `m` has been decommissioned","code":"model_decommissioned"}}"#,
        ),
        (404, "upstream_not_found", "<html>nginx 404</html>"),
        (404, "upstream_not_found", r#"{"detail":"Not Found"}"#),
    ] {
        let answer = move || Response::builder().status(status).body(Body::from(body)).unwrap();
        let bench = Bench::new(move |_| answer()).await;
        let other = bench.another_model(|_| good()).await;
        bench.serve(bench.release(0));
        let alone = bench.chat(json!({})).await;
        assert_eq!(alone.status(), 502, "{body}");
        assert_eq!(alone.json::<Value>().await.unwrap()["error"]["code"], code, "{body}");
        // Another backend is asked, at once.
        let mut release = bench.release(0);
        let mut backend = release.variants["stable"].open().unwrap().backend;
        backend.endpoint.as_mut().unwrap().url = format!("http://{other}/v1");
        release.backends.insert("other".to_owned(), Arc::new(backend));
        release.other_backends = vec!["other".to_owned()];
        bench.serve(release);
        assert_eq!(bench.chat(json!({})).await.status(), 200, "{body}");
        assert_eq!(bench.asked().len(), 2, "{body}");
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_a_failure_and_is_not_kept() {
    for error in [
        "data: {\"object\":\"error\",\"message\":\"engine died\",\"code\":500}\n\n",
        "event: error\ndata: {\"code\":500,\"details\":\"engine died\"}\n\n",
        "event: error\ndata: engine died\n\n",
        "error: {\"code\":500,\"message\":\"engine died\"}\n\n",
        "",
    ] {
        let bench = Bench::new(move |_| {
            let parts = [event(r#"{"answer": "#, None), format!("{error}{DONE}")];
            let parts = stream::iter(parts).then(|part| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(part)
            });
            streamed(parts)
        })
        .await;
        let mut release = bench.release(0);
        release.cache = Some(serinus::api::prompt_release::ResponseCache {
            ttl: serinus::api::GoDuration(Duration::from_secs(600)),
        });
        bench.serve(release);
        for _ in 0..2 {
            let text = bench.chat(json!({"stream": true})).await.text().await.unwrap();
            assert_eq!(text, event(r#"{"answer": "#, None) + error + DONE, "it goes on as it is");
        }
        assert_eq!(bench.asked().len(), 2, "{error}: it is not kept");
        let (metrics, _) = told(&bench).await;
        let failed = metrics.lines().any(|line| {
            line.starts_with("serinus_gateway_requests_total")
                && line.contains("outcome=\"error\"")
                && line.ends_with(" 2")
        });
        assert!(failed, "{error}: {metrics}");
    }
}

#[tokio::test]
async fn who_leaves_at_an_error_has_seen_a_failure() {
    let bench = Bench::new(|_| {
        let first = [event("Hello", None), "data: {\"error\":{\"message\":\"died\"}}\n\n".into()];
        let parts = stream::iter(first).then(|part| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(part)
        });
        streamed(parts.chain(stream::pending()))
    })
    .await;
    bench.serve(bench.release(0));
    let mut body = bench.chat(json!({"stream": true})).await.bytes_stream();
    let mut seen = vec![];
    while !String::from_utf8_lossy(&seen).contains("died") {
        seen.extend(body.next().await.unwrap().unwrap());
    }
    drop(body);
    for _ in 0..200 {
        let (metrics, _) = told(&bench).await;
        if counts_one(&metrics, "serinus_gateway_requests_total", &["outcome=\"error\""]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", told(&bench).await.0);
}

#[tokio::test]
async fn a_stream_is_recognised_by_what_it_is() {
    let text = role() + &event(r#"{"answer": "yes"}"#, Some("stop")) + DONE;
    for content_type in [
        "Text/Event-Stream; charset=UTF-8",
        " text/event-stream;charset=utf-8",
        "application/json",
        "text/plain; charset=utf-8",
        "application/x-ndjson",
    ] {
        let sent = text.clone();
        let (bench, answer, _) =
            once(json!({"stream": true}), move |_| typed(content_type, sent.clone())).await;
        assert_eq!(answer.status(), 200, "{content_type}");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.text().await.unwrap(), text, "{content_type}");
        let (metrics, _) = told(&bench).await;
        assert!(!metrics.contains("serinus_gateway_check_failures_total{"), "{metrics}");
        assert!(counts_one(&metrics, "serinus_gateway_requests_total", &["outcome=\"ok\""]));
    }
}

#[tokio::test]
async fn events_of_the_standard_and_of_servers_are_read() {
    let plain = role() + &event(r#"{"answer":"#, None) + &event(r#" "yes"}"#, Some("stop"));
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3}}\n\n";
    let pretty = "data: {\"choices\": [{\"index\": 0,\ndata:  \"delta\": {\"content\": \"{\\\"answer\\\": 1}\"},\ndata: \"finish_reason\": \"stop\"}]}\n\n";
    for text in [
        plain.clone() + usage + DONE,
        (plain.clone() + usage + DONE).replace('\n', "\r\n"),
        (plain.clone() + usage + DONE).replace('\n', "\r"),
        format!("\u{feff}{plain}{usage}{DONE}"),
        pretty.to_owned() + usage + DONE,
        // Nothing ends the last event.
        plain.clone() + usage.trim_end(),
    ] {
        let sent = text.clone();
        let (bench, answer, _) = once(json!({"stream": true}), move |_| events(sent.clone())).await;
        assert_eq!(answer.status(), 200, "{text}");
        let got = answer.text().await.unwrap();
        assert!(!got.contains("prompt_tokens"), "{text:?}: {got:?}");
        assert!(got.contains("answer"));
        let (metrics, _) = told(&bench).await;
        assert!(
            counts_one(&metrics, "serinus_gateway_requests_total", &["outcome=\"ok\""]),
            "{text:?}"
        );
        assert!(!metrics.contains("serinus_gateway_check_failures_total{"), "{text:?}: {metrics}");
        let input = metrics.lines().any(|l| {
            l.starts_with("serinus_gateway_tokens_total")
                && l.contains("\"input\"")
                && l.ends_with(" 11")
        });
        assert!(input, "{text:?}: {metrics}");
    }
}

#[tokio::test]
async fn thinking_is_a_sign_of_life() {
    for delta in [
        json!({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}),
        json!({"thinking": "hm"}),
        json!({"something": "new"}),
    ] {
        let bench = Bench::new(move |_| {
            let thought = json!({"choices": [{"index": 0, "delta": delta}]});
            let first = stream::iter([Ok(format!("data: {thought}\n\n"))]);
            let then = stream::once(async {
                tokio::time::sleep(Duration::from_millis(900)).await;
                Ok(event(r#"{"answer": "yes"}"#, Some("stop")) + DONE)
            });
            streamed(first.chain(then))
        })
        .await;
        let mut release = bench.release(0);
        for saved in release.variants.values_mut() {
            edit(saved, |v| {
                v.backend.limits.first_token_timeout =
                    serinus::api::GoDuration(Duration::from_millis(300));
            });
        }
        bench.serve(release);
        let answer = bench.chat(json!({"stream": true})).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.text().await.unwrap().ends_with(DONE));
    }
}

#[tokio::test]
async fn a_stream_that_flows_has_no_limit_unless_one_is_set() {
    for (limited, complete) in [(false, true), (true, false)] {
        let bench = Bench::new(|_| {
            let parts = stream::iter(0..8).then(|i| async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(event("word ", (i == 7).then_some("stop")))
            });
            streamed(parts.chain(stream::iter([Ok(DONE.to_owned())])))
        })
        .await;
        let mut release = bench.release(0);
        for saved in release.variants.values_mut() {
            edit(saved, |v| {
                let longest = serinus::api::GoDuration(Duration::from_millis(400));
                v.backend.limits.timeout = limited.then_some(longest);
            });
        }
        bench.serve(release);
        let text = bench.chat(json!({"stream": true})).await.text().await.unwrap();
        assert_eq!(text.ends_with(DONE), complete, "{text}");
        assert_eq!(text.contains("upstream_timeout"), !complete, "{text}");
    }
}

#[tokio::test]
async fn what_is_not_judged_is_told_and_an_example_is_kept() {
    let strange = Arc::new(AtomicUsize::new(0));
    let which = strange.clone();
    let bench = Bench::new(move |request| {
        let n = which.fetch_add(1, Ordering::Relaxed);
        match (request["stream"] == json!(true), n) {
            (true, _) => {
                events("data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hi\"}]}}]}\n\n")
            }
            (false, 0) => says(r#"{"answer": "because"}"#, "OTHER"),
            _ => json_answer(&json!({"choices": [{"index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": 42, "mail": "me@example.com"}}]})),
        }
    })
    .await;
    bench.serve(bench.release(0));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    let (metrics, examples) = told(&bench).await;
    let unjudged = "serinus_gateway_unjudged_answers_total";
    assert!(counts_one(&metrics, unjudged, &["check=\"unknown_reason\""]), "{metrics}");
    assert_eq!(examples["examples"], json!([]));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    let (metrics, examples) = told(&bench).await;
    assert!(counts_one(&metrics, unjudged, &["check=\"unread\""]), "{metrics}");
    let example = &examples["examples"][0];
    assert_eq!((&example["revision"], &example["release"]), (&json!("stable"), &json!("ns/r")));
    let text = example["text"].as_str().unwrap();
    assert!(text.contains("42") && text.contains("[redacted:email]"), "{example}");
    let answer = bench.chat(json!({"stream": true})).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("candidates"), "it goes on as it is");
    let (metrics, _) = told(&bench).await;
    assert!(
        metrics
            .lines()
            .any(|l| l.starts_with(unjudged) && l.contains("\"unread\"") && l.ends_with(" 2"))
    );
    assert!(!metrics.contains("serinus_gateway_check_failures_total{"), "{metrics}");
}

#[tokio::test]
async fn calls_of_tools_are_checked() {
    let tools = json!([{"type": "function", "function": {"name": "book", "parameters": {
        "type": "object", "required": ["day"], "properties": {"day": {"type": "string"}}}}}]);
    for (name, arguments, fits) in [
        ("book", r#"{"day":"mon"}"#, true),
        ("look_up", "{}", true),
        ("book", r#"{"day":"#, false),
        ("book", r#"{"day":1}"#, false),
        ("made_up", "{}", false),
    ] {
        for stream in [false, true] {
            let (first, second) = arguments.split_at(arguments.len() / 2);
            let piece = |call: Value, reason: Option<&str>| {
                let chunk = json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": reason}]});
                format!("data: {chunk}\n\n")
            };
            let pieces = piece(
                json!({"index": 0, "id": "c", "function": {"name": name, "arguments": first}}),
                None,
            ) + &piece(
                json!({"index": 0, "function": {"arguments": second}}),
                Some("tool_calls"),
            ) + DONE;
            let call = json!({"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}});
            let body = json!({"choices": [{"index": 0, "message": {"content": null, "tool_calls": [call]}, "finish_reason": "tool_calls"}]});
            let answer =
                move |_: &Value| if stream { events(pieces.clone()) } else { json_answer(&body) };
            let (bench, answer, _) =
                once(json!({"stream": stream, "tools": tools.clone()}), answer).await;
            assert_eq!(answer.status(), 200);
            answer.text().await.unwrap();
            let (metrics, _) = told(&bench).await;
            let failed = counts_one(
                &metrics,
                "serinus_gateway_check_failures_total",
                &["check=\"tool_call\""],
            );
            assert_eq!(failed, !fits, "{name} {arguments} {stream}: {metrics}");
        }
    }
}

/// OpenAI's clients raise an error at such an event, whatever is said before and after it.
#[tokio::test]
async fn an_event_that_no_application_can_read_is_a_failure() {
    for broken in [
        "data: {\"choices\":[{\"delta\":{\"content\":\"b\"\n\n",
        "data: <html>502</html>\n\n",
        "data: {\"choices\":[]}{\"choices\":[]}\n\n",
        "event: ping\ndata: ping\n\n",
        "data: null\n\n",
        "data: 5\n\n",
        "data: {\"choices\":[]}\ndata: {\"choices\":[]}\n\n",
        "data: {\"choices\":[]}\n \ndata: [DONE]\n\n",
    ] {
        let first = move || events(format!("{broken}{}{DONE}", event("Hi", Some("stop"))));
        is_answered_by_stable(true, broken, first).await;
        // Words of it have gone out: it goes on as the model sent it, and is a failure.
        let later = format!("{}{broken}{}{DONE}", event("Hi", None), event(" you", Some("stop")));
        let said = later.clone();
        let script = move |_: &Value| {
            let (head, tail) = (event("Hi", None), said[event("Hi", None).len()..].to_owned());
            let parts = stream::iter([head, tail]).then(|part| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, std::io::Error>(part)
            });
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(Body::from_stream(parts))
                .unwrap()
        };
        let (bench, answer, _) = once(json!({"stream": true}), script).await;
        let text = answer.text().await.unwrap();
        assert!(text.starts_with(&later), "{text}");
        let (metrics, _) = told(&bench).await;
        let failed = ["outcome=\"error\""];
        assert!(counts_one(&metrics, "serinus_gateway_requests_total", &failed), "{broken}");
    }
}

#[tokio::test]
async fn what_says_nothing_and_no_application_reads_is_left_out_of_a_stream() {
    let good = || event(r#"{"answer": "#, None) + &event(r#""yes"}"#, Some("stop"));
    for (odd, left) in [
        (format!("data:\n\n{}{DONE}", good()), good() + DONE),
        (format!("{}data: \n\n{DONE}", good()), good() + DONE),
        (format!("{}data: [done]\n\n", good()), good()),
        (format!("{}data: \"[DONE]\"\n\n", good()), good()),
        // After the end nobody reads on, and what nothing ends is no event.
        (format!("{}{DONE}data: half\n\n", good()), format!("{}{DONE}data: half\n\n", good())),
        // Clients read the last event, too.
        (good().trim_end().to_owned(), good()),
        (format!("{}\n", good().trim_end()), good()),
        (format!("\u{feff}{}", good()), good()),
        (format!("{}data: {{}}\n\n{DONE}", good()), format!("{}{DONE}", good())),
        (
            format!("{}data: {{\"usage\":{{\"pro", good()),
            format!("{}data: {{\"usage\":{{\"pro", good()),
        ),
    ] {
        let script = move |_: &Value| events(odd.clone());
        let (bench, answer, _) = once(json!({"stream": true}), script).await;
        let text = answer.text().await.unwrap();
        assert!(text == left || left.starts_with(&text), "{text:?} is not {left:?}");
        let (metrics, _) = told(&bench).await;
        let good = ["outcome=\"ok\""];
        assert!(counts_one(&metrics, "serinus_gateway_requests_total", &good), "{left:?}");
        assert!(!metrics.contains("serinus_gateway_check_failures_total{"), "{metrics}");
    }
}

#[tokio::test]
async fn fewer_choices_or_vectors_than_were_asked_for_are_a_failure() {
    let one = r#"{"choices":[{"index":0,"message":{"content":"whole"},"finish_reason":"stop"}]}"#;
    for (n, fails) in [(1, false), (2, true)] {
        let (bench, answer, _) = once(json!({"n": n}), move |_| whole(one)).await;
        assert_eq!(answer.status(), 200);
        let (metrics, _) = told(&bench).await;
        let name = "serinus_gateway_check_failures_total";
        assert_eq!(counts_one(&metrics, name, &["check=\"empty\""]), fails, "{n}: {metrics}");
    }
    let vectors = r#"{"data":[{"index":0,"embedding":[0.1,0.2]}],"model":"e"}"#;
    for (input, status) in [
        (json!("a"), 200),
        (json!(["a"]), 200),
        (json!([1, 2, 3]), 200),
        (json!([[1, 2]]), 200),
        (json!(["a", "b"]), 502),
        (json!([[1], [2]]), 502),
    ] {
        let bench = Bench::new(move |_| whole(vectors)).await;
        bench.serve(bench.release(0));
        let body = json!({"model": "r", "input": input});
        let answer = bench.post("/v1/embeddings", &body).await;
        let got = (answer.status().as_u16(), answer.text().await.unwrap());
        assert_eq!(got.0, status, "{body}: {}", got.1);
    }
}

#[tokio::test]
async fn vectors_are_as_long_and_written_as_they_were_asked_for() {
    let numbers = r#"{"data":[{"index":0,"embedding":[0.1,0.2]}],"model":"e"}"#;
    let base64 = r#"{"data":[{"index":0,"embedding":"AACAPwAAgD8="}],"model":"e"}"#;
    for (vectors, asked, fails) in [
        (numbers, json!({}), false),
        (numbers, json!({"dimensions": 2}), false),
        (numbers, json!({"dimensions": 3}), true),
        (numbers, json!({"dimensions": 16, "embedding_type": "binary"}), false),
        (numbers, json!({"encoding_format": "base64"}), false),
        (base64, json!({"encoding_format": "base64"}), false),
        (base64, json!({"encoding_format": "base64", "dimensions": 2}), false),
        (base64, json!({"encoding_format": "base64", "dimensions": 4}), true),
        (base64, json!({"encoding_format": "float"}), true),
        (base64, json!({"embedding_type": "base64"}), false),
        (base64, json!({}), true),
    ] {
        let bench = Bench::new(move |_| whole(vectors)).await;
        bench.serve(bench.release(0));
        let mut body = json!({"model": "r", "input": "a"});
        body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
        let answer = bench.post("/v1/embeddings", &body).await;
        assert_eq!(
            (answer.status().as_u16(), answer.text().await.unwrap()),
            (200, vectors.to_owned())
        );
        let (metrics, _) = told(&bench).await;
        let name = "serinus_gateway_check_failures_total";
        assert_eq!(counts_one(&metrics, name, &["check=\"schema\""]), fails, "{body}: {metrics}");
    }
}
