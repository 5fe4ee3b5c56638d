//! Models that mean no good, or are broken: whatever they send, the application gets an answer
//! or an error, and everybody else is served.

use std::{net::SocketAddr, time::Duration};

use axum::{body::Body, http::Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use serinus::gateway::routes::ReleaseInput;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    bench::{Bench, edit, event, good, json_answer, streamed},
    hostile::behind_nothing,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Status and code of what an application gets; the body if it is an answer.
async fn outcome(answer: reqwest::Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let text = timeout(PATIENCE, answer.text()).await.unwrap().unwrap_or_default();
    let error: Value = serde_json::from_str(&text).unwrap_or_default();
    (status, error["error"]["code"].as_str().map_or(text, str::to_owned))
}

fn whole(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[tokio::test]
async fn a_request_that_is_nested_too_deep_is_refused_and_nobody_else_feels_it() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(0));
    let paths = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/serinus/v1/feedback",
    ];
    let fields = [
        "model",
        "user",
        "messages",
        "input",
        "prompt",
        "tools",
        "stream_options",
        "conversation",
        "serinus",
        "request_id",
        "previous_response_id",
        "any",
    ];
    for path in paths {
        for field in fields {
            for depth in [5_700, 200_000] {
                for (open, close) in [("[", "]"), ("{\"text\":", "}")] {
                    let value = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                    let body = format!("{{\"{field}\":{value},\"x\":\"r\"}}");
                    let url = format!("http://{}{path}", bench.address);
                    let (status, code) =
                        outcome(bench.client.post(url).body(body).send().await.unwrap()).await;
                    assert_eq!(status, 400, "{path} {field}: {code}");
                    let is_feedback = path == "/serinus/v1/feedback";
                    assert!(is_feedback || code == "json_too_deep", "{path} {field}: {code}");
                }
            }
        }
    }
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    let deepest: Value = serde_json::from_str(&nested(126)).unwrap();
    assert_eq!(bench.chat(json!({"metadata": deepest})).await.status(), 200);
}

#[tokio::test]
async fn what_an_answer_nests_too_deep_is_absent() {
    let bench = Bench::new(|body| {
        let deep = nested(body["n"].as_u64().unwrap() as usize);
        match (body["user"].as_str().unwrap(), body["stream"] == true) {
            ("all", _) => whole(200, deep),
            ("content", false) => {
                whole(200, format!(r#"{{"choices":[{{"message":{{"content":{deep}}}}}]}}"#))
            }
            ("beside", false) => whole(
                200,
                format!(r#"{{"choices":[{{"message":{{"content":"x"}},"finish_reason":"stop"}}],"x":{deep}}}"#),
            ),
            ("error", false) => whole(500, format!(r#"{{"error":{{"message":{deep}}}}}"#)),
            _ => {
                let deep = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":{deep}}}}}]}}\n\n");
                let events = [event("a", None), deep, event("b", Some("stop"))];
                streamed(stream::iter(events.map(Ok)))
            }
        }
    })
    .await;
    bench.serve(bench.release(0));
    for depth in [500, 8_000, 200_000] {
        for what in ["all", "content", "beside", "error"] {
            let (status, code) = outcome(bench.chat(json!({"user": what, "n": depth})).await).await;
            match what {
                "all" => assert_eq!((status, code.as_str()), (502, "upstream_invalid"), "{depth}"),
                "error" => assert!(status >= 500, "{depth}: {status}"),
                _ => assert_eq!(status, 200, "{what} {depth}"),
            }
            let asked = json!({"user": what, "n": depth, "stream": true});
            let (_, text) = outcome(bench.chat(asked).await).await;
            assert!(what == "all" || text.contains("\"b\""), "{what}: a stream goes on");
        }
    }
}

#[tokio::test]
async fn what_is_no_status_of_an_answer_is_none() {
    let bench = Bench::new(|body| {
        let status = body["n"].as_u64().unwrap() as u16;
        let mut answer = whole(status, if status == 204 { "" } else { r#"{"a": 1}"# });
        answer.headers_mut().insert("location", "http://127.0.0.1:1/".parse().unwrap());
        answer
    })
    .await;
    bench.serve(bench.release(0));
    for status in [201, 204, 205, 300, 302, 304, 307, 308, 399, 600, 799, 999] {
        let (found, code) = outcome(bench.chat(json!({"n": status})).await).await;
        assert_eq!(found, 502, "{status}: {code}");
        let known = ["upstream_invalid", "upstream_not_found"].contains(&code.as_str());
        assert!(known, "{status}: {code}");
    }
    let asked = bench.asked().len();
    assert!(asked <= 12 * 3, "{asked}: nothing is followed, and little is repeated");
}

/// A server that answers each request with these bytes.
async fn raw(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(answers(stream, answer.clone()));
        }
    });
    // It ends with the runtime of the test.
    servers.detach_all();
    address
}

async fn answers(mut stream: TcpStream, answer: Vec<u8>) {
    let mut read = vec![];
    while stream.read_buf(&mut read).await.unwrap_or(0) > 0 {
        // The requests of these tests end so, and hold it nowhere else.
        if read.ends_with(b"}") {
            read.clear();
            let _ = stream.write_all(&answer).await;
        }
    }
}

fn at(bench: &Bench, model: SocketAddr) -> ReleaseInput {
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            let url = format!("http://{model}/v1");
            variant.backend.endpoint.as_mut().unwrap().url = url;
        });
    }
    release
}

#[tokio::test]
async fn what_is_no_http_is_no_answer() {
    let text = r#"{"choices":[{"message":{"role":"assistant","content":"{\"answer\":1}"},"finish_reason":"stop"}]}"#;
    let n = text.len();
    let ok = format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n{text}");
    let bench = Bench::new(|_| good()).await;
    for (name, answer, wanted) in [
        ("an answer", ok.clone(), Some(200)),
        (
            "hints before it",
            format!("{}{ok}", "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(50)),
            Some(200),
        ),
        (
            "an answer, and one that nobody asked for",
            format!("{ok}{}", ok.replace("answer", "POISON")),
            Some(200),
        ),
        (
            "another protocol",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
                .to_owned(),
            Some(502),
        ),
        ("not modified", "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(), Some(502)),
        (
            "two lengths",
            format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\ncontent-length: 3\r\n\r\n{text}"),
            Some(502),
        ),
        ("random bytes", "\u{1}\u{2}\u{3}".repeat(1000), Some(502)),
        (
            "headers without end",
            format!("HTTP/1.1 200 OK\r\n{}", format!("x: {}\r\n", "a".repeat(5_000)).repeat(500)),
            Some(502),
        ),
    ] {
        let model = raw(answer.into_bytes()).await;
        bench.serve(at(&bench, model));
        for _ in 0..3 {
            let (status, text) = outcome(bench.chat(json!({})).await).await;
            assert_eq!(Some(status), wanted, "{name}: {text}");
            // What is not modified is HTTP, and nothing is there.
            let is_told = ["upstream_invalid", "upstream_not_found"].contains(&text.as_str());
            assert!(status == 200 || is_told, "{name}: {text}");
            assert!(!text.contains("POISON"), "{name}: an answer is that of its request");
        }
    }
}

/// 16 MiB in one event, in lines of a kilobyte, of which each is a chunk of its own: linear
/// in its length, and passed on to the last byte.
#[tokio::test]
async fn an_event_of_many_lines_passes() {
    let bench = Bench::new(|_| {
        let line = Bytes::from(format!("data: {}\n", "z".repeat(1000)));
        let lines = stream::iter(vec![line; 17 << 10]);
        let begins = stream::iter([Bytes::from(event("start", None))]);
        let ends =
            stream::iter([Bytes::from(format!("\n{}data: [DONE]\n\n", event("", Some("stop"))))]);
        let all = begins.chain(lines).chain(ends).map(Ok::<_, std::io::Error>);
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(all))
            .unwrap()
    })
    .await;
    bench.serve(bench.release(0));
    let answer = bench.chat(json!({"stream": true})).await;
    let text = timeout(PATIENCE, answer.text()).await.unwrap().unwrap();
    assert!(text.len() > 16 << 20 && text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn an_answer_that_is_long_and_holds_nothing_is_none() {
    let bench = Bench::new(|request| {
        let text = format!("{}data: [DONE]\n\n", event("hi", Some("stop")));
        let (status, kind, text) = match request["user"].as_str() {
            Some("stream") => (200, "text/event-stream", text),
            Some("error") => (500, "application/json", r#"{"error":{"message":"no"}}"#.to_owned()),
            Some("whole") => (200, "application/json", r#"{"choices":[]}"#.to_owned()),
            _ => return good(),
        };
        Response::builder()
            .status(status)
            .header("content-type", kind)
            .header("content-encoding", "gzip, gzip, gzip")
            .body(behind_nothing(text.as_bytes()).into())
            .unwrap()
    })
    .await;
    bench.serve(bench.release(0));
    for kind in ["whole", "stream", "error"] {
        let (status, code) =
            outcome(bench.chat(json!({"user": kind, "stream": kind == "stream"})).await).await;
        assert_eq!((status, code.as_str()), (502, "upstream_invalid"), "{kind}");
    }
    assert_eq!(bench.chat(json!({})).await.status(), 200);
}

#[tokio::test]
async fn a_list_of_more_calls_than_anybody_asks_for_is_no_answer() {
    let bench = Bench::new(|request| {
        let calls = vec![0; request["n"].as_u64().unwrap_or_default() as usize];
        let said = json!({"role": "assistant", "content": "hi", "tool_calls": calls});
        if request["stream"] == true {
            let first = json!({"choices": [{"index": 0, "delta": said}]});
            let text = format!("data: {first}\n\n{}data: [DONE]\n\n", event("", Some("stop")));
            let kind = ("content-type", "text/event-stream");
            return Response::builder().header(kind.0, kind.1).body(text.into()).unwrap();
        }
        json_answer(&json!({"choices": [{"index": 0, "finish_reason": "stop", "message": said}]}))
    })
    .await;
    bench.serve(bench.release(0));
    for stream in [false, true] {
        let answer = bench.chat(json!({"n": 1025, "stream": stream})).await;
        assert_eq!(answer.status(), 502, "{stream}");
        assert_eq!(bench.chat(json!({"n": 0, "stream": stream})).await.status(), 200, "{stream}");
    }
}

#[tokio::test]
async fn variables_that_cost_more_than_they_may_are_refused_and_others_served_meanwhile() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            let item = json!({"items": {"$ref": "#/$defs/n"}, "type": ["array", "null"]});
            let schema = json!({"$defs": {"n": {"anyOf": [item, item]}},
                "properties": {"deep": {"$ref": "#/$defs/n"}}});
            variant.prompt.variables = schema.as_object().cloned();
        });
    }
    bench.serve(release);
    let deep = format!("{}7{}", "[".repeat(110), "]".repeat(110));
    let deep: Value = serde_json::from_str(&deep).unwrap();
    let ask = |deep: &Value| {
        bench.chat(json!({"serinus": {"variables": {"question": "why?", "deep": deep}}}))
    };
    let (status, code) = outcome(ask(&deep).await).await;
    assert_eq!((status, code.as_str()), (400, "invalid_variables"));
    assert_eq!(ask(&json!([[null]])).await.status(), 200);
}
