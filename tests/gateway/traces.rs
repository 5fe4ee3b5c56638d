//! What traces tell of answers in which a model spells a secret of the gateway in pieces, of
//! which none has it.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, http::Response, routing::post};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use serinus::{
    api::{SecretText, llm_deployment::SecretKeyRef},
    gateway::{
        GatewayConfig,
        routes::ReleaseInput,
        server::{Face, serve},
    },
    telemetry::{Behind, Bounds, Config, Telemetry, Tracing, otlp, redact::Redaction},
};
use tokio::net::TcpListener;

use crate::bench::{Bench, PEOPLES_TOKEN, edit, event, json_answer, open, streamed};

/// None has a form by which a rule would know it.
const KEY: &str = "4f1c9e7ab2d85360fe19c7ab22d04e55";
const PASSWORD: &str = "hunter2hunter2x";
const CODE: &str = "QUERYcode0123456789abcdef";
const CLIENT: &str = "client0key0of0nobody0in0particular";

fn basic() -> String {
    BASE64_STANDARD.encode(format!("admin:{PASSWORD}"))
}

/// A release whose backend gets a key, a header and a parameter.
fn with_secrets(bench: &Bench) -> ReleaseInput {
    let mut release = bench.release(0);
    let reference = SecretKeyRef { name: "m".into(), key: "token".into() };
    release.secrets.insert(reference.clone(), SecretText::from(KEY.to_owned()));
    for saved in release.variants.values_mut() {
        edit(saved, |variant| {
            let endpoint = variant.backend.endpoint.as_mut().unwrap();
            endpoint.api_key_secret_ref = Some(reference.clone());
            endpoint.headers.insert("x-basic-auth".into(), format!("Basic {}", basic()));
            endpoint.query.insert("code".into(), CODE.into());
        });
    }
    release
}

/// What a collector got.
type Got = Arc<Mutex<Vec<u8>>>;

/// A gateway that traces all that is said, to a collector of which all is kept.
async fn traced(config: GatewayConfig) -> (Bench, Got, Behind, Arc<Telemetry>) {
    let got = Got::default();
    let kept = got.clone();
    let collector = post(move |body: Bytes| async move { kept.lock().unwrap().extend(body) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (telemetry, behind) = Telemetry::start(Config {
        tracing: Tracing { ratio: Some(1.0), content_bytes: Some(65_536) },
        otlp: Some(otlp::Config {
            url,
            headers: Default::default(),
            gzip: false,
            timeout: Duration::from_secs(10),
            // All is sent at the end.
            interval: Duration::from_secs(3600),
            bounds: Bounds { records: 4096, bytes: 1 << 24, batch: 1024 },
            authority: None,
            names: vec!["gen_ai".parse().unwrap(), "openinference".parse().unwrap()],
            redaction: Redaction::new(&[], &[]).unwrap(),
            resource: vec![],
            clock: || Timestamp::UNIX_EPOCH,
        }),
        access_log: None,
        log: Arc::default(),
    })
    .unwrap();
    let config = GatewayConfig { telemetry: telemetry.clone(), ..config };
    let mut bench = Bench::configured(config, answers).await;
    let router = Router::new().route("/v1/traces", collector);
    bench.servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (bench, got, behind, telemetry)
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// Three characters an event, as tokens come.
fn tokens(secret: &str) -> impl Iterator<Item = &str> {
    secret.as_bytes().chunks(3).map(|token| std::str::from_utf8(token).unwrap())
}

fn delta(delta: &Value) -> String {
    data(&json!({"choices": [{"index": 0, "delta": delta}]}))
}

fn message(content: &Value) -> Value {
    json!({"choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": content}}]})
}

fn events(events: Vec<String>) -> Response<Body> {
    streamed(stream::iter(events.into_iter().map(Ok)))
}

/// An answer in the way that the request names, which spells its `secret`.
fn answers(body: &Value) -> Response<Body> {
    let secret = body["secret"].as_str().unwrap();
    let (first, second) = secret.split_at(secret.len() / 2);
    let most = &secret[..secret.len().saturating_sub(2)];
    let parts: Vec<Value> =
        [first, second].map(|text| json!({"type": "text", "text": text})).into();
    let words = |secret: &str| tokens(secret).map(|token| event(token, None)).collect::<Vec<_>>();
    let last = || vec![event("", Some("stop")), "data: [DONE]\n\n".to_owned()];
    let calls = |function: &dyn Fn(&str) -> Value| {
        let call =
            |token| delta(&json!({"tool_calls": [{"index": 0, "function": function(token)}]}));
        tokens(secret).map(call).collect::<Vec<_>>()
    };
    match body["way"].as_str().unwrap() {
        "harmless" => json_answer(&message(&json!("harmless words"))),
        "stream" => events([words(secret), last()].concat()),
        "stream behind words" => {
            events([vec![event("Your key is ", None)], words(secret), last()].concat())
        }
        "stream that breaks off" => {
            let words = words(secret).into_iter().map(Ok);
            streamed(stream::iter(words.chain([Err(io::Error::other("gone"))])))
        }
        "stream of most that breaks off" => {
            let words = words(most).into_iter().map(Ok);
            streamed(stream::iter(words.chain([Err(io::Error::other("gone"))])))
        }
        "stream that ends with most" => events([words(most), last()].concat()),
        "stream of most that is left" => {
            let words = words(&format!("- {most}")).into_iter().map(Ok::<_, Infallible>);
            let stream = stream::iter(words).chain(stream::pending());
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(Body::from_stream(stream))
                .unwrap()
        }
        "stream of reasoning" => {
            let reasons = tokens(secret).map(|t| delta(&json!({"reasoning_content": t})));
            events([reasons.collect(), words("words"), last()].concat())
        }
        "stream of arguments" => {
            events([calls(&|token| json!({"arguments": token})), last()].concat())
        }
        "stream of a call's name" => {
            events([calls(&|token| json!({"name": token})), last()].concat())
        }
        "stream of a call's id" => {
            let id = |token| delta(&json!({"tool_calls": [{"index": 0, "id": token}]}));
            events([tokens(secret).map(id).collect(), last()].concat())
        }
        "stream that fails" => {
            let error = |text| data(&json!({"error": {"message": text}}));
            events([words(secret), vec![error("no")]].concat())
        }
        "stream of errors" => events(
            tokens(secret)
                .map(|t| format!("event: error\n{}", data(&json!({"error": {"message": t}}))))
                .collect(),
        ),
        "responses" => {
            let delta = |token| {
                data(&json!({"type": "response.output_text.delta", "item_id": "a",
                    "output_index": 0, "content_index": 0, "delta": token}))
            };
            let output = json!([{"type": "message", "role": "assistant",
                "content": [{"type": "output_text", "text": "done"}]}]);
            let done = json!({"type": "response.completed",
                "response": {"id": "x", "status": "completed", "output": output}});
            events([tokens(secret).map(delta).collect(), vec![data(&done)]].concat())
        }
        "parts" | "parts where a stream was asked for" => json_answer(&message(&json!(parts))),
        "parts of an odd answer" => json_answer(&json!({"choices": [{"index": 0,
            "message": {"role": "assistant", "content": {"odd": parts}}}]})),
        "parts of an answer that failed" => {
            let mut answer = message(&json!(parts));
            answer["error"] = json!({"message": "no"});
            json_answer(&answer)
        }
        "parts of an error" => Response::builder()
            .status(400)
            .body(Body::from(json!({"error": {"message": "no", "details": parts}}).to_string()))
            .unwrap(),
        "arguments in parts" => {
            let call = |text: &str| {
                json!({"id": "c", "type": "function",
                    "function": {"name": "look_up", "arguments": text}})
            };
            let message = json!({"role": "assistant", "content": null,
                "tool_calls": [call(first), call(second)]});
            json_answer(&json!({"choices": [{"index": 0, "message": message}]}))
        }
        other => panic!("{other}"),
    }
}

const WAYS: [&str; 19] = [
    "stream",
    "stream behind words",
    "stream that breaks off",
    "stream of most that breaks off",
    "stream that ends with most",
    "stream of most that is left",
    "stream of reasoning",
    "stream of arguments",
    "stream of a call's name",
    "stream of a call's id",
    "stream that fails",
    "stream of errors",
    "responses",
    "parts",
    "parts where a stream was asked for",
    "parts of an odd answer",
    "parts of an answer that failed",
    "parts of an error",
    "arguments in parts",
];

/// Sends a request that is answered so, and reads the answer or only its beginning.
async fn asked(bench: &Bench, way: &str, secret: &str) -> String {
    let stream = way.contains("stream") || way == "responses";
    let mut body = json!({"model": "r", "stream": stream, "way": way, "secret": secret,
        "serinus": {"variables": {"question": "why?"}}});
    let path = match way {
        "responses" => {
            body["input"] = json!("hi");
            "/v1/responses"
        }
        _ => "/v1/chat/completions",
    };
    let mut answer = bench.post(path, &body).await;
    if way.ends_with("is left") {
        let first = answer.chunk().await.unwrap().unwrap_or_default();
        return String::from_utf8_lossy(&first).into_owned();
    }
    answer.text().await.unwrap_or_default()
}

fn holds(told: &[u8], text: &str) -> bool {
    told.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Until the spans of both requests wait to be sent.
async fn both_wait(telemetry: &Telemetry, way: &str) {
    let both = async {
        while telemetry.waiting() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), both).await;
    ended.unwrap_or_else(|_| panic!("{way}: a span is missing"));
}

/// All that the collector got by the end.
async fn told(behind: Behind, got: &Got) -> Vec<u8> {
    behind.flush().await;
    got.lock().unwrap().clone()
}

#[tokio::test]
async fn what_an_answer_spells_out_is_in_no_trace_and_in_no_example() {
    for (secret, is_key) in [
        (KEY.to_owned(), true),
        (CODE.to_owned(), false),
        (basic(), false),
        (PASSWORD.to_owned(), false),
    ] {
        for way in WAYS {
            let (mut bench, got, behind, telemetry) = traced(open()).await;
            bench.serve(with_secrets(&bench));
            let text = asked(&bench, way, &secret).await;
            assert!(!text.contains(&secret), "{way}: {text}");
            asked(&bench, "harmless", "").await;
            // A request that was left is told when that is noticed.
            both_wait(&telemetry, way).await;
            let told = told(behind, &got).await;
            assert!(holds(&told, "harmless words"), "{way}: what is harmless is told");
            let half = secret.len() / 2;
            for part in [&secret[..half + 4], &secret[half..]] {
                assert!(!holds(&told, part), "{way}: {}", String::from_utf8_lossy(&told));
            }
            if !is_key {
                continue;
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/serinus/v1/unread", listener.local_addr().unwrap());
            let stop = bench.stop.clone().cancelled_owned();
            let patience = Duration::from_secs(1);
            let gateway = bench.gateway.clone();
            bench.servers.spawn(serve(listener, Face::Operators, gateway, stop, patience));
            let unread = bench.client.get(url).bearer_auth(PEOPLES_TOKEN).send().await.unwrap();
            assert_eq!(unread.status(), 200);
            let unread = unread.text().await.unwrap();
            assert!(!unread.contains(&secret[..secret.len() / 2]), "{way}: {unread}");
        }
    }
}

#[tokio::test]
async fn the_key_of_the_application_is_in_no_trace_however_it_comes_in_pieces() {
    for way in WAYS {
        let (bench, got, behind, telemetry) = traced(open()).await;
        bench.serve(bench.release(0));
        let stream = way.contains("stream") || way == "responses";
        let parts = CLIENT.split_at(9);
        let parts = [parts.0, parts.1].map(|text| json!({"type": "text", "text": text}));
        let escaped: String = CLIENT.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
        let mut body = json!({"model": "r", "stream": stream, "way": way, "secret": CLIENT,
            "serinus": {"variables": {"question": "why?"}}, "user": CLIENT});
        let path = match way {
            "responses" => {
                body["input"] = json!([{"role": "user", "content": parts}]);
                "/v1/responses"
            }
            _ => {
                let quoted = format!("{{\"key\": \"{escaped}\"}}");
                body["messages"] = json!([{"role": "user", "content": parts},
                    {"role": "user", "content": quoted}]);
                "/v1/chat/completions"
            }
        };
        let url = format!("http://{}{path}", bench.address);
        let mut answer =
            bench.client.post(url).bearer_auth(CLIENT).json(&body).send().await.unwrap();
        if way.ends_with("is left") {
            drop(answer.chunk().await);
            drop(answer);
        } else {
            drop(answer.text().await);
        }
        asked(&bench, "harmless", "").await;
        both_wait(&telemetry, way).await;
        let told = told(behind, &got).await;
        assert!(holds(&told, "harmless words"), "{way}: what is harmless is told");
        for part in [CLIENT, &escaped, &escaped.replace('\\', "\\\\"), &CLIENT[9..]] {
            assert!(!holds(&told, part), "{way}: {}", String::from_utf8_lossy(&told));
        }
    }
}
