//! Models that quote what was sent to them: the gateway's own secrets do not come back.

use std::{
    convert::Infallible,
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{body::Body, http::Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use serinus::{
    api::{SecretText, llm_deployment::SecretKeyRef},
    gateway::{
        routes::ReleaseInput,
        server::{Face, serve},
    },
};
use tokio::net::TcpListener;

use crate::bench::{Bench, PEOPLES_TOKEN, edit, event, json_answer, says, streamed};

const KEY: &str = "sk-upstream-0123456789/abcdef";
const EXTRA: &str = "CANARYheadervalue";

/// A release whose backend gets a key and a header.
fn with_key(bench: &Bench) -> ReleaseInput {
    let mut release = bench.release(0);
    let reference = SecretKeyRef { name: "openai".into(), key: "token".into() };
    release.secrets.insert(reference.clone(), SecretText::from(KEY.to_owned()));
    for saved in release.variants.values_mut() {
        edit(saved, |variant| {
            let endpoint = variant.backend.endpoint.as_mut().unwrap();
            endpoint.api_key_secret_ref = Some(reference.clone());
            endpoint.headers.insert("x-extra".into(), EXTRA.into());
        });
    }
    release
}

fn percent_encoded() -> String {
    KEY.replace('/', "%2F")
}

fn base64() -> String {
    BASE64_STANDARD.encode(format!("Bearer {KEY}"))
}

fn escaped() -> String {
    KEY.bytes().map(|byte| format!("\\u{byte:04x}")).collect()
}

/// The base64 in lines, as it is within JSON.
fn in_lines() -> String {
    let text = base64();
    let lines = text.as_bytes().chunks(20).map(String::from_utf8_lossy);
    lines.collect::<Vec<_>>().join("\\n")
}

fn numbers() -> String {
    KEY.bytes().map(|byte| format!("0x{byte:02x}")).collect::<Vec<_>>().join(", ")
}

fn whole(status: u16, body: String) -> Response<Body> {
    let quoting = format!("{KEY}; {EXTRA}");
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("x-request-id", quoting)
        .body(Body::from(body))
        .unwrap()
}

/// In pieces of a few bytes, each a chunk of its own.
fn in_pieces(status: u16, text: String) -> Response<Body> {
    let pieces: Vec<_> = text.as_bytes().chunks(5).map(<[u8]>::to_vec).collect();
    let pieces = stream::iter(pieces).then(|piece| async move {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        Ok::<_, Infallible>(piece)
    });
    Response::builder().status(status).body(Body::from_stream(pieces)).unwrap()
}

fn quotes(body: &Value) -> Response<Body> {
    let error = |key: &str| {
        format!(r#"{{"error": {{"message": "bad: Bearer {key}, x-extra: {EXTRA}", "type": "x"}}}}"#)
    };
    let events = |texts: Vec<String>| streamed(stream::iter(texts.into_iter().map(Ok)));
    let last = || vec![event("}", Some("stop")), "data: [DONE]\n\n".to_owned()];
    match body["scenario"].as_str().unwrap() {
        "400" => whole(400, error(KEY)),
        "500" => whole(500, error(KEY)),
        "400 pieces" => in_pieces(400, error(KEY)),
        "400 escaped" => whole(400, error(&escaped())),
        "400 slash" => whole(400, error(&KEY.replace('/', "\\/"))),
        "400 percent" => whole(400, error(&percent_encoded())),
        "400 base64" => whole(400, error(&base64())),
        "200 coded" => {
            Response::builder().header("content-encoding", KEY).body(Body::from("{}")).unwrap()
        }
        "400 lines" => whole(400, error(&in_lines())),
        "400 numbers" => whole(400, error(&numbers())),
        "400 text" => whole(400, format!("<html>Authorization: Bearer {KEY} x-extra: {EXTRA}")),
        "200 error" => whole(200, error(KEY)),
        "200" => says(&json!({"answer": KEY}).to_string(), "stop"),
        "200 unread" => json_answer(&json!({"choices": [{"message": {"content": {"odd": KEY}}}]})),
        "stream" => {
            events([vec![event(&format!("{{\"answer\": \"{KEY}\""), None)], last()].concat())
        }
        "stream pieces" => {
            let text = [vec![event(&format!("{{\"answer\": \"{KEY}\""), None)], last()].concat();
            in_pieces(200, text.concat())
        }
        "stream error" => events(vec![format!("data: {}\n\n", error(KEY))]),
        "stream late error" => events(vec![
            event("{", None),
            event("a", None),
            format!("event: error\ndata: {}\n\n", error(KEY)),
        ]),
        "stream words" => {
            let words =
                KEY.as_bytes().chunks(3).map(|w| event(std::str::from_utf8(w).unwrap(), None));
            events([words.collect(), last()].concat())
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_model_that_quotes_its_request_does_not_hand_out_our_secrets() {
    let bench = Bench::new(quotes).await;
    bench.serve(with_key(&bench));
    for scenario in [
        "400",
        "500",
        "400 pieces",
        "400 escaped",
        "400 slash",
        "400 percent",
        "400 base64",
        "400 lines",
        "400 numbers",
        "400 text",
        "200 error",
        "200",
        "200 coded",
        "200 unread",
        "stream",
        "stream pieces",
        "stream error",
        "stream late error",
        "stream words",
    ] {
        let stream = scenario.starts_with("stream");
        let answer = bench.chat(json!({"scenario": scenario, "stream": stream})).await;
        let headers = format!("{:?}", answer.headers());
        let text = answer.text().await.unwrap();
        // What a client makes of the words of a stream.
        let words: String = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|e| Some(e["choices"][0]["delta"]["content"].as_str()?.to_owned()))
            .collect();
        for told in [&headers, &text, &words] {
            for secret in [
                KEY,
                &percent_encoded(),
                &escaped(),
                &in_lines()[20..],
                &numbers()[40..],
                "0123456789",
            ] {
                assert!(!told.contains(secret), "{scenario}: {told}");
            }
            assert!(!told.contains(&base64()[12..28]), "{scenario}: {told}");
            let is_error = scenario.contains("400") || scenario.ends_with("error");
            assert!(!is_error || !told.contains(EXTRA), "{scenario}: {told}");
        }
        if scenario == "stream words" {
            assert!(text.contains("upstream_secret"), "{text}");
        } else if !["500", "200 coded"].contains(&scenario) && !scenario.contains("late") {
            assert!(text.contains("[redacted:secret]"), "{scenario}: {text}");
        }
        if scenario.contains("400 ") && !scenario.ends_with("text") {
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
        }
    }
}

/// A proxy that drops `content-encoding` leaves what nobody can read, with the key in it.
#[tokio::test]
async fn what_is_compressed_and_not_said_to_be_is_withheld() {
    fn body(scenario: &str) -> Vec<u8> {
        let text = format!(r#"{{"error": {{"message": "bad: Bearer {KEY}"}}}}"#);
        let gzip = || {
            let mut to = GzEncoder::new(vec![], Compression::default());
            to.write_all(text.as_bytes()).unwrap();
            to.finish().unwrap()
        };
        let zlib = |level: u32| {
            let mut to = ZlibEncoder::new(vec![], Compression::new(level));
            to.write_all(text.as_bytes()).unwrap();
            to.finish().unwrap()
        };
        match scenario.split(' ').nth(1).unwrap() {
            "gzip" => gzip(),
            "zlib" => zlib(6),
            "stored" => zlib(0),
            "zstd" => zstd::encode_all(text.as_bytes(), 3).unwrap(),
            // Twice, and said once.
            "twice" => zstd::encode_all(&gzip()[..], 3).unwrap(),
            other => panic!("{other}"),
        }
    }
    let bench = Bench::new(|request| {
        let scenario = request["scenario"].as_str().unwrap();
        let mut answer = Response::builder().status(&scenario[..3]);
        if scenario.contains("twice") {
            answer = answer.header("content-encoding", "zstd");
        }
        if request["stream"] == true {
            answer = answer.header("content-type", "text/event-stream");
        }
        let size = if scenario.ends_with("pieces") { 1 } else { 1 << 20 };
        let pieces: Vec<_> = body(scenario).chunks(size).map(<[u8]>::to_vec).collect();
        answer
            .body(Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>))))
            .unwrap()
    })
    .await;
    bench.serve(with_key(&bench));
    for scenario in [
        "400 gzip",
        "400 gzip pieces",
        "400 zlib",
        "400 stored",
        "400 zstd",
        "400 twice",
        "429 gzip",
        "200 gzip",
        "200 zlib pieces",
    ] {
        for streams in [false, true] {
            let answer = bench.chat(json!({"scenario": scenario, "stream": streams})).await;
            let (status, bytes) = (answer.status(), answer.bytes().await.unwrap());
            let text = String::from_utf8_lossy(&bytes);
            assert_eq!(status, 502, "{scenario}: {text}");
            let error: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(error["error"]["code"], "upstream_invalid", "{scenario}: {text}");
            assert!(text.contains("no content-encoding"), "{scenario}: {text}");
        }
    }
}

#[tokio::test]
async fn a_refusal_that_spells_out_a_secret_is_tried_again_as_any_other() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let bench = Bench::new(|body| {
        let parts = KEY.split_at(9);
        let parts = [parts.0, parts.1].map(|text| json!({"type": "text", "text": text}));
        let error = json!({"error": {"message": "too many", "details": parts}}).to_string();
        let status = if body["scenario"] == "400" { 400 } else { 503 };
        match (ASKED.fetch_add(1, Ordering::Relaxed), body["scenario"].as_str()) {
            (n, Some("once")) if n % 2 == 1 => says("fine", "stop"),
            _ => {
                let mut refusal = whole(status, error);
                refusal.headers_mut().insert("retry-after-ms", "10".parse().unwrap());
                refusal
            }
        }
    })
    .await;
    bench.serve(with_key(&bench));
    let answer = bench.chat(json!({"scenario": "once"})).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("fine"));
    for scenario in ["400", "always"] {
        let answer = bench.chat(json!({"scenario": scenario})).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(text.contains("upstream_secret"), "{scenario}: {status} {text}");
        assert!(!text.contains(&KEY[9..]), "{scenario}: {text}");
    }
}

#[tokio::test]
async fn an_example_of_what_was_not_understood_holds_no_secret_either() {
    let mut bench = Bench::new(quotes).await;
    bench.serve(with_key(&bench));
    let answer = bench.chat(json!({"scenario": "200 unread"})).await;
    assert_eq!(answer.status(), 200);
    drop(answer.text().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = bench.stop.clone().cancelled_owned();
    let patience = std::time::Duration::from_secs(1);
    bench.servers.spawn(serve(listener, Face::Operators, bench.gateway.clone(), stop, patience));
    let url = format!("http://{address}/serinus/v1/unread");
    let text = bench.client.get(url).bearer_auth(PEOPLES_TOKEN).send().await;
    let text = text.unwrap().text().await.unwrap();
    assert!(text.contains("[redacted:secret]") && !text.contains("0123456789"), "{text}");
}

#[tokio::test]
async fn words_of_an_answer_that_begin_like_a_secret_are_late_by_one_event_and_all_arrive() {
    let bench = Bench::new(|_| {
        let words = ["the key ", "sk-upstr", "eam-01", "9 is", " none"];
        let words = words.map(|word| Ok(event(word, None)));
        let last = [Ok(event(".", Some("stop"))), Ok("data: [DONE]\n\n".to_owned())];
        streamed(stream::iter(words.into_iter().chain(last)))
    })
    .await;
    bench.serve(with_key(&bench));
    let text = bench.chat(json!({"stream": true})).await.text().await.unwrap();
    let words = ["the key ", "sk-upstr", "eam-01", "9 is", " none"];
    let mut expected: String = words.iter().map(|word| event(word, None)).collect();
    expected.push_str(&event(".", Some("stop")));
    expected.push_str("data: [DONE]\n\n");
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_backend_whose_headers_would_frame_the_request_is_not_asked() {
    for (name, value) in [
        ("content-length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("host", "elsewhere"),
        ("connection", "close"),
        ("proxy-authorization", "Basic x"),
        ("x-lines", "a\r\nx: y"),
        ("x y", "a"),
    ] {
        let bench = Bench::new(|_| says("{}", "stop")).await;
        let mut release = bench.release(0);
        for saved in release.variants.values_mut() {
            edit(saved, |variant| {
                let endpoint = variant.backend.endpoint.as_mut().unwrap();
                endpoint.headers.insert(name.into(), value.into());
            });
        }
        bench.serve(release);
        let answer = bench.chat(json!({})).await;
        assert!(answer.status().is_client_error() || answer.status().is_server_error(), "{name}");
        assert!(bench.asked().is_empty(), "{name}");
    }
}
