//! Whatever is sent to the gateway, it answers in OpenAI's shape or not at all, stays
//! alive, and holds a bounded amount of memory.
//!
//! The corpus is drawn from a seed: what fails can be drawn again.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Response};
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use serinus::gateway::{
    GatewayConfig,
    limits::Limits,
    server::{Face, serve},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::bench::{Bench, edit, event, good, open, streamed};

/// Long enough for anything that ends.
const PATIENCE: Duration = Duration::from_secs(60);

fn bench_limits(change: impl FnOnce(&mut Limits)) -> GatewayConfig {
    let mut limits = Limits::default();
    change(&mut limits);
    GatewayConfig { limits, ..open() }
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn valid_body() -> Value {
    json!({
        "model": "r", "user": "ada", "stream": false, "temperature": 0.5, "n": 1,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "serinus": {"variables": {"question": "why?"}},
    })
}

/// Sends bytes, and reads what comes until the other side has closed.
async fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The gateway may have answered and closed before everything was sent.
        let _ = stream.write_all(bytes).await;
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]);
        panic!("the gateway neither answers nor closes after {start:?}")
    })
}

/// Checks the shape of every answer in `answer`; returns the status and code of the last.
fn check(sent: &[u8], answer: &[u8]) -> Option<(u16, String)> {
    let what = || {
        let start = String::from_utf8_lossy(&sent[..sent.len().min(300)]).into_owned();
        format!("{start:?} was answered with {:?}", String::from_utf8_lossy(answer))
    };
    if answer.is_empty() {
        return None;
    }
    let text = std::str::from_utf8(answer).unwrap_or_else(|_| panic!("{}", what()));
    let mut rest = text;
    let mut last = None;
    // What answers HEAD has the length of a body, and none.
    if sent.starts_with(b"HEAD") {
        return None;
    }
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{}", what()));
        let status: u16 = head[9..12].parse().unwrap_or_else(|_| panic!("{}", what()));
        if status == 100 {
            rest = after;
            continue;
        }
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .and_then(|l| l.parse().ok())
            .unwrap_or(if status == 204 { 0 } else { after.len() });
        let (body, next) = after.split_at_checked(length).unwrap_or_else(|| panic!("{}", what()));
        let mut code = String::new();
        if status >= 400 {
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{}", what()));
            let error = &body["error"];
            let text = |field: &str| error[field].as_str().is_some_and(|t| !t.is_empty());
            assert!(text("message") && text("type") && text("code"), "{}", what());
            code = error["code"].as_str().unwrap().to_owned();
        }
        last = Some((status, code));
        rest = next;
    }
    last
}

/// Requests that no client sends, one by one.
fn malformed() -> Vec<Vec<u8>> {
    let body = valid_body().to_string();
    let n = body.len();
    let post = |headers: &str| {
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n{headers}\r\n{body}").into_bytes()
    };
    let mut all: Vec<Vec<u8>> = [
        "",
        "\r\n\r\n",
        "\0\0\0\0\0\0\0\0",
        "GET",
        "GET /\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\n\n",
        "GET  /  HTTP/1.1\r\n\r\n",
        "G\u{e9}T / HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /\u{0}x HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\n: empty\r\n\r\n",
        "GET / HTTP/1.1\r\na b: c\r\n\r\n",
        "GET / HTTP/1.1\r\nx: \u{0}\r\n\r\n",
        "GET http://other/v1/models HTTP/1.1\r\n\r\n",
        "CONNECT other:443 HTTP/1.1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
        "TRACE / HTTP/1.1\r\n\r\n",
        "GET /v1/models HTTP/1.0\r\n\r\n",
        "GET /../../etc/passwd HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET /v1/models/..%2f..%2fr HTTP/1.1\r\nconnection: close\r\n\r\n",
        "HEAD /v1/models HTTP/1.0\r\n\r\n",
        "PUT /v1/chat/completions HTTP/1.0\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    for headers in [
        format!("content-length: {n}\r\ncontent-length: {}\r\n", n + 1),
        format!("content-length: {n}\r\ntransfer-encoding: chunked\r\n"),
        "content-length: -1\r\n".to_owned(),
        "content-length: 99999999999999999999\r\n".to_owned(),
        "content-length: 18446744073709551615\r\n".to_owned(),
        "content-length: 1e3\r\n".to_owned(),
        "content-length: 99999999999\r\n".to_owned(),
        format!("content-length: {}\r\n", n + 100),
        "transfer-encoding: gzip\r\n".to_owned(),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: chunked\r\n".to_owned(),
        "expect: 100-continue\r\ncontent-length: 10\r\n".to_owned(),
        "upgrade: h2c\r\nconnection: upgrade\r\n".to_owned(),
        format!("x: {}\r\n", "y".repeat(100_000)),
        (0..200).map(|i| format!("x-{i}: y\r\n")).collect(),
        format!("authorization: Bearer {}\r\n", "a".repeat(60_000)),
    ] {
        all.push(post(&headers));
    }
    for chunks in [
        "5\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "-1\r\n\r\n",
        "z\r\n",
        "0\r\n",
        "3;ext=\"\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "0\r\ntrailer: x\r\n\r\n",
    ] {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        all.push([head.as_bytes(), chunks.as_bytes()].concat());
    }
    all.push(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).into_bytes());
    // Pipelined: a good one, then nonsense.
    all.push(b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n\x01\x02 nonsense\r\n\r\n".to_vec());
    all
}

/// JSON that no client sends.
fn bodies() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"r\"".to_vec(),
        b"{".to_vec(),
        b"{}".to_vec(),
        b"{\"model\":NaN}".to_vec(),
        b"{\"model\":\"r\",}".to_vec(),
        b"\xef\xbb\xbf{\"model\":\"r\"}".to_vec(),
        b"{\"model\":\"\xff\xfe\"}".to_vec(),
        br#"{"model":"\ud800"}"#.to_vec(),
        br#"{"model":"r","model":"s"}"#.to_vec(),
        format!("{{\"model\":{}}}", "9".repeat(5000)).into_bytes(),
        format!("{{\"model\":\"r\",\"temperature\":1e{}}}", "9".repeat(300)).into_bytes(),
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
        format!("{{\"a\":{}", "{\"a\":".repeat(50_000)).into_bytes(),
        format!("{{\"model\":\"r\",\"messages\":{}{}}}", "[".repeat(500), "]".repeat(500))
            .into_bytes(),
        format!("{{\"model\":\"{}\"}}", "r".repeat(1 << 20)).into_bytes(),
    ];
    let wrong = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("\u{0}"),
        json!([]),
        json!([null]),
        json!([[[]]]),
        json!({}),
        json!({"variables": 7}),
        json!({"": {"": {}}}),
    ];
    for field in ["model", "user", "stream", "messages", "tools", "serinus", "stream_options", "n"]
    {
        for value in &wrong {
            let mut body = valid_body();
            body[field] = value.clone();
            all.push(body.to_string().into_bytes());
        }
    }
    all
}

/// Short or not, each would cost many times its length if it were taken.
fn swollen() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let many = |one: &str, n: usize| vec![one; n].join(",");
    let of = |path, code, body: String| (path, code, body.into_bytes());
    let fields: String = (0..100_000).map(|i| format!("\"f{i}\":0,")).collect();
    vec![
        of(
            "/v1/completions",
            "too_many_messages",
            format!(r#"{{"model":"r","prompt":[{}]}}"#, many("\"\"", 400_000)),
        ),
        of(
            "/v1/chat/completions",
            "invalid_variables",
            format!(
                r#"{{"model":"r","serinus":{{"variables":{{"a":[{}]}}}}}}"#,
                many("0", 400_000)
            ),
        ),
        of("/v1/chat/completions", "invalid_json", format!(r#"{{{fields}"model":"r"}}"#)),
        of(
            "/serinus/v1/feedback",
            "invalid_feedback",
            format!(r#"{{"request_id":[{}]}}"#, many("0", 400_000)),
        ),
    ]
}

#[tokio::test]
async fn what_would_swell_is_refused_before_it_does() {
    let bench = Bench::configured(open(), |_| good()).await;
    bench.serve(bench.release(0));
    for (path, code, body) in swollen() {
        let url = format!("http://{}{path}", bench.address);
        let request = bench.client.post(url).header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400, "{path} {code}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], code, "{path}: {error}");
    }
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    assert!(bench.asked().len() == 1);
}

/// Compressed until little is left: `text` behind very many gzip members that hold nothing.
pub fn behind_nothing(text: &[u8]) -> Vec<u8> {
    let gzip = |text: &[u8]| {
        let mut to = GzEncoder::new(vec![], Compression::default());
        to.write_all(text).unwrap();
        to.finish().unwrap()
    };
    let members = [gzip(b"").repeat(200_000), gzip(text)].concat();
    gzip(&gzip(&members))
}

#[tokio::test]
async fn a_body_that_is_long_and_holds_nothing_is_refused_with_what_to_do() {
    let bench = Bench::configured(open(), |_| good()).await;
    bench.serve(bench.release(0));
    for path in ["/v1/chat/completions", "/serinus/v1/feedback"] {
        let body = behind_nothing(valid_body().to_string().as_bytes());
        assert!(body.len() < 1000, "{}", body.len());
        let request = bench.client.post(format!("http://{}{path}", bench.address));
        let request = request.header("content-encoding", "gzip, gzip, gzip").body(body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400, "{path}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], "invalid_encoding", "{path}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("send it"), "{error}");
    }
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    assert_eq!(bench.asked().len(), 1);
}

/// Nobody counts what an error holds, and escaped it may be six times as long.
#[tokio::test]
async fn an_error_quotes_little_of_what_was_sent() {
    let bench = Bench::configured(open(), |_| good()).await;
    bench.serve(bench.release(0));
    let long = "\u{7f}".repeat(1 << 20);
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"] {
        let body = json!({"model": long, "messages": [], "input": "x", "prompt": "x"});
        let answer = bench.post(path, &body).await;
        assert_eq!(answer.status(), 404, "{path}");
        let error = answer.text().await.unwrap();
        assert!(error.len() < 4096 && error.contains("no PromptRelease"), "{path}: {error}");
    }
    let name = format!("/openai/deployments/{}/chat/completions", "%7f".repeat(3000));
    let answer = bench.post(&name, &json!({"messages": []})).await;
    assert!(answer.text().await.unwrap().len() < 4096);
}

#[tokio::test]
async fn a_large_prompt_before_each_of_many_is_refused() {
    let bench = Bench::configured(open(), |_| good()).await;
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            variant.prompt.messages[0].content = "x".repeat(100_000);
        });
    }
    bench.serve(release);
    let body = json!({"model": "r", "prompt": vec![""; 1000],
        "serinus": {"variables": {"question": "why?"}}});
    let answer = bench.post("/v1/completions", &body).await;
    assert_eq!(answer.status(), 400);
    let error: Value = answer.json().await.unwrap();
    assert_eq!(error["error"]["code"], "prompt_too_large", "{error}");
}

/// Changes some bytes, repeats or drops a part.
fn mutate(bytes: &[u8], dice: &mut StdRng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..dice.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.random_range(0..bytes.len());
        match dice.random_range(0..5) {
            0 => bytes[at] = dice.random(),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, dice.random()),
            3 => {
                let end = (at + dice.random_range(1..20)).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            _ => {
                let end = (at + dice.random_range(1..20)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// Panics of the gateway end a connection and would be seen by nobody.
fn watch_panics() -> Arc<Mutex<Vec<String>>> {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (told, before) = (seen.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        if info.location().is_some_and(|l| !l.file().contains("tests/")) {
            told.lock().unwrap().push(info.to_string());
        }
        before(info);
    }));
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_sent_is_answered_in_openais_shape_or_not_at_all() {
    let panics = watch_panics();
    // What is never complete is not waited for here.
    let config = bench_limits(|l| {
        l.header_time = Duration::from_millis(500);
        l.body_time = Duration::from_millis(500);
        l.idle = Duration::from_millis(500);
    });
    let bench = Bench::configured(config, |_| good()).await;
    bench.serve(bench.release(50));
    let mut dice = StdRng::seed_from_u64(20_261_125);
    let mut corpus = malformed();
    corpus.extend(bodies().iter().map(|body| request(body)));
    let whole = request(valid_body().to_string().as_bytes());
    let body = valid_body().to_string();
    for _ in 0..1500 {
        corpus.push(mutate(&whole, &mut dice));
        corpus.push(request(&mutate(body.as_bytes(), &mut dice)));
    }
    for length in [1, 10, 100, 10_000, 200_000] {
        corpus.push((0..length).map(|_| dice.random::<u8>()).collect());
    }
    let address = bench.address;
    let answers: Vec<_> = stream::iter(&corpus)
        .map(|sent| async move { check(sent, &send(address, sent).await) })
        .buffer_unordered(32)
        .collect()
        .await;
    assert_eq!(panics.lock().unwrap().as_slice(), &[] as &[String]);
    let refused = |wanted: &str| answers.iter().flatten().filter(|(_, c)| c == wanted).count();
    // The corpus reaches what it is for.
    for code in [
        "malformed_request",
        "headers_too_large",
        "invalid_json",
        "body_incomplete",
        "body_too_large",
        "invalid_variables",
        "invalid_messages",
        "missing_model",
        "unknown_path",
    ] {
        assert!(refused(code) > 0, "nothing was refused as {code}");
    }
    let wrong: Vec<_> =
        answers.iter().flatten().filter(|(s, _)| *s >= 500 && *s != 502 && *s != 501).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(bench.chat(json!({})).await.status(), 200, "others are served as before");
}

#[tokio::test]
async fn what_a_prompt_adds_to_a_body_is_held_until_the_model_has_it() {
    let silent =
        || Response::new(Body::from_stream(stream::pending::<Result<String, io::Error>>()));
    // Bodies may hold three eighths of this.
    let bench = Bench::configured(bench_limits(|l| l.memory = 8 << 20), move |_| silent()).await;
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |v| v.prompt.messages[0].content = "x".repeat(1 << 20));
    }
    bench.serve(release);
    for _ in 0..2 {
        let round = async {
            loop {
                let asked = bench.asked.lock().unwrap().len();
                let all = (0..8).map(|_| timeout(Duration::from_secs(3), bench.chat(json!({}))));
                let mut refused = vec![];
                for answer in futures::future::join_all(all).await.into_iter().flatten() {
                    refused.push((answer.status().as_u16(), answer.text().await.unwrap()));
                }
                // Those that gave up hold something until that is seen.
                if bench.asked.lock().unwrap().len() >= asked + 2 {
                    break refused;
                }
            }
        };
        let refused = timeout(PATIENCE, round).await.expect("what they held is there again");
        let full = refused.iter().filter(|(s, why)| *s == 503 && why.contains("overloaded"));
        assert_eq!((full.count(), refused.len()), (6, 6), "{refused:?}");
    }
}

#[tokio::test]
async fn variables_are_held_as_what_they_are_and_not_as_their_text() {
    let silent =
        || Response::new(Body::from_stream(stream::pending::<Result<String, io::Error>>()));
    // A client may hold 2.25 MiB of bodies.
    let bench = Bench::configured(bench_limits(|l| l.memory = 8 << 20), move |_| silent()).await;
    bench.serve(bench.release(0));
    let chat = |inner: &str, times: usize| {
        let values: Vec<Value> = vec![serde_json::from_str(inner).unwrap(); times];
        bench.chat(json!({"serinus": {"variables": {"question": "why?", "x": values}}}))
    };
    for inner in [r#"{"":0}"#, "[1]", "\"\"", "0"] {
        let refused = chat(inner, 30_000).await;
        assert_eq!(refused.status(), 400, "{inner}");
        let why = refused.text().await.unwrap();
        assert!(why.contains("invalid_variables") && why.contains("send fewer values"), "{why}");
    }
    let asked = bench.asked.lock().unwrap().len();
    let second = async {
        while bench.asked.lock().unwrap().len() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        chat(r#"{"":0}"#, 3_000).await
    };
    tokio::select! {
        _ = chat(r#"{"":0}"#, 3_000) => panic!("the model is silent"),
        second = second => {
            let status = second.status().as_u16();
            let why = second.text().await.unwrap();
            assert!(status == 429 && why.contains("client_share_full"), "{status} {why}");
        }
    }
}

#[tokio::test]
async fn what_a_prompt_becomes_finds_room_before_it_is_made() {
    let bench = Bench::configured(bench_limits(|l| l.memory = 8 << 20), |_| good()).await;
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |v| v.prompt.messages[0].content = "{{question}}, ".repeat(1_000));
    }
    bench.serve(release);
    let ask =
        |question: Value| bench.chat(json!({"serinus": {"variables": {"question": question}}}));
    assert_eq!(ask(json!("why?")).await.status(), 200);
    // 3 MB, a megabyte that is written as six, and what an engine would write.
    for question in [json!("x".repeat(3_000)), json!("\u{1}".repeat(1_000)), json!(vec![1; 1_000])]
    {
        let refused = ask(question).await;
        assert_eq!(refused.status(), 500);
        let why = refused.text().await.unwrap();
        assert!(why.contains("prompt_too_costly") && why.contains("send less"), "{why}");
    }
    assert_eq!(ask(json!("why?")).await.status(), 200);
}

#[tokio::test]
async fn the_oversized_is_refused_before_it_is_read() {
    let bench = Bench::configured(bench_limits(|l| l.body = 100_000), |_| good()).await;
    bench.serve(bench.release(0));
    let declared =
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 100001\r\n\r\n";
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(declared).await.unwrap();
    let mut answer = vec![];
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(check(declared, &answer), Some((413, "body_too_large".to_owned())));
    let expects = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nexpect: 100-continue\r\ncontent-length: 100001\r\n\r\n";
    let answer = send(bench.address, expects).await;
    assert!(!answer.starts_with(b"HTTP/1.1 100"), "nobody asks for what is not wanted");
    let body = |n: usize| {
        let mut body = valid_body();
        body["pad"] = json!("x".repeat(n));
        request(body.to_string().as_bytes())
    };
    let large = body(100_000);
    assert_eq!(
        check(&large, &send(bench.address, &large).await),
        Some((413, "body_too_large".to_owned()))
    );
    let fits = body(90_000);
    assert_eq!(check(&fits, &send(bench.address, &fits).await), Some((200, String::new())));
}

#[tokio::test]
async fn so_many_messages_are_taken_and_one_more_is_not() {
    let bench = Bench::configured(bench_limits(|l| l.messages = 3), |_| good()).await;
    bench.serve(bench.release(0));
    for (path, field) in [("/v1/chat/completions", "messages"), ("/v1/responses", "input")] {
        for count in [3, 4] {
            let mut body = valid_body();
            body[field] = json!(vec![json!({"role": "user", "content": "[1,2,3,4]"}); count]);
            let answer = bench.post(path, &body).await;
            let status = answer.status().as_u16();
            // Of these paths the bench's model knows one only: what it says is not looked at.
            let bytes = answer.bytes().await.unwrap();
            let told: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let error = &told["error"];
            if count == 3 {
                assert_ne!(status, 400, "{told}");
            } else {
                assert_eq!((status, &error["param"]), (400, &json!(field)));
                assert_eq!(error["code"], "too_many_messages");
            }
        }
    }
}

#[tokio::test]
async fn who_is_slow_loses_the_connection_while_others_are_served() {
    let config = bench_limits(|l| {
        l.header_time = Duration::from_millis(300);
        l.body_time = Duration::from_millis(300);
        l.idle = Duration::from_millis(300);
    });
    let bench = Bench::configured(config, |_| good()).await;
    bench.serve(bench.release(0));
    let trickle = |begin: &'static str, code: &'static str| async move {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let (mut reads, mut writes) = stream.into_split();
        let drip = async {
            while writes.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let mut answer = vec![];
        let read = async { drop(reads.read_to_end(&mut answer).await) };
        tokio::select! {
            () = read => {}
            () = drip => {}
            () = tokio::time::sleep(PATIENCE) => panic!("{begin:?} is waited for"),
        }
        // The answer may be lost when the client goes on sending.
        if let Some((_, found)) = check(begin.as_bytes(), &answer) {
            assert_eq!(found, code);
        }
        !answer.is_empty()
    };
    let all = [
        ("GET /v1/models HTTP/1.1\r\nx:", "headers_too_slow"),
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 9999\r\n\r\n{",
            "body_too_slow",
        ),
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n{",
            "body_too_slow",
        ),
    ];
    let slow =
        stream::iter(0..60).map(|i| trickle(all[i % 3].0, all[i % 3].1)).buffer_unordered(60);
    let slow = slow.collect::<Vec<bool>>();
    let quick = async {
        for _ in 0..20 {
            assert_eq!(bench.chat(json!({})).await.status(), 200);
        }
    };
    let (answered, ()) = tokio::join!(slow, quick);
    assert!(answered.iter().filter(|a| **a).count() > 30, "they are told why");
    // Kept connections, with and without a request behind them.
    for path in ["", "GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n"] {
        let mut idle = TcpStream::connect(bench.address).await.unwrap();
        idle.write_all(path.as_bytes()).await.unwrap();
        let closed = timeout(PATIENCE, idle.read_to_end(&mut vec![])).await;
        closed.expect("idle ones are closed").unwrap();
    }
    let mut kept = TcpStream::connect(bench.address).await.unwrap();
    let asked = request(valid_body().to_string().as_bytes());
    let asked = String::from_utf8(asked).unwrap().replace("connection: close\r\n", "");
    kept.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = vec![];
    let closed = timeout(PATIENCE, kept.read_to_end(&mut answer)).await;
    closed.expect("those that got an answer of the model, too").unwrap();
    assert_eq!(check(asked.as_bytes(), &answer), Some((200, String::new())));
}

/// A connection that stays open, on which a client has had an answer.
async fn a_clients_connection(bench: &Bench) -> Option<TcpStream> {
    let asked = String::from_utf8(request(valid_body().to_string().as_bytes())).unwrap();
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(asked.replace("connection: close\r\n", "").as_bytes()).await.unwrap();
    let mut begun = [0; 15];
    timeout(PATIENCE, stream.read_exact(&mut begun)).await.unwrap().ok()?;
    (&begun == b"HTTP/1.1 200 OK").then_some(stream)
}

#[tokio::test]
async fn a_connection_too_many_is_told_to_come_again() {
    let bench = Bench::configured(bench_limits(|l| l.connections = 3), |_| good()).await;
    bench.serve(bench.release(0));
    let mut held = vec![];
    for _ in 0..3 {
        held.push(a_clients_connection(&bench).await.expect("there is a place"));
    }
    let mut one_more = TcpStream::connect(bench.address).await.unwrap();
    let mut answer = vec![];
    timeout(PATIENCE, one_more.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(check(b"", &answer), Some((503, "too_many_connections".to_owned())));
    assert!(String::from_utf8_lossy(&answer).contains("retry-after: 1"));
    drop(held);
    let bye = b"GET /healthz HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n";
    let served = async {
        while check(bye, &send(bench.address, bye).await) != Some((200, String::new())) {}
    };
    timeout(PATIENCE, served).await.expect("a place is free again");
}

#[tokio::test]
async fn strangers_take_no_place_from_clients() {
    let bench = Bench::configured(bench_limits(|l| l.connections = 8), |_| good()).await;
    bench.serve(bench.release(0));
    let hello = b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n";
    let mut strangers = vec![];
    for _ in 0..20 {
        let mut stranger = TcpStream::connect(bench.address).await.unwrap();
        stranger.write_all(hello).await.unwrap();
        let answered = timeout(PATIENCE, stranger.read_exact(&mut [0; 15])).await.unwrap();
        answered.expect("the newest stranger is answered");
        strangers.push(stranger);
    }
    // Those that are left stay, and clients get in.
    let mut held = vec![];
    for _ in 0..4 {
        held.push(a_clients_connection(&bench).await.expect("strangers keep no client out"));
    }
    for oldest in &mut strangers[..16] {
        timeout(PATIENCE, oldest.read_to_end(&mut vec![])).await.expect("made room").unwrap();
    }
}

#[tokio::test]
async fn idle_connections_keep_no_operator_out() {
    let mut bench = Bench::configured(bench_limits(|l| l.operators = 4), |_| good()).await;
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = admin.local_addr().unwrap();
    let (gateway, forever) = (bench.gateway.clone(), std::future::pending());
    bench.servers.spawn(serve(admin, Face::Operators, gateway, forever, Duration::ZERO));
    let mut idle = vec![];
    for _ in 0..20 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let asked = bench.client.get(format!("http://{address}/healthz")).send();
    assert_eq!(timeout(PATIENCE, asked).await.unwrap().unwrap().status(), 200);
    for oldest in &mut idle[..16] {
        timeout(PATIENCE, oldest.read_to_end(&mut vec![])).await.expect("made room").unwrap();
    }
}

#[tokio::test]
async fn who_stops_reading_ends_the_models_stream() {
    struct Ends(Arc<AtomicUsize>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = ended.clone();
    let config = bench_limits(|l| l.write_time = Duration::from_millis(300));
    let bench = Bench::configured(config, move |_| {
        let ends = Ends(counted.clone());
        streamed(stream::repeat(()).map(move |()| {
            let _held = &ends;
            Ok(event(&"x".repeat(4096), None))
        }))
    })
    .await;
    bench.serve(bench.release(0));
    let mut body = valid_body();
    body["stream"] = json!(true);
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(&request(body.to_string().as_bytes())).await.unwrap();
    stream.read_exact(&mut [0; 1024]).await.unwrap();
    let gone = async {
        while ended.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("nobody reads, and the model goes on");
}

#[tokio::test]
async fn kept_connections_are_closed_when_the_process_is_told_to_stop() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(0));
    let mut kept = TcpStream::connect(bench.address).await.unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n").await.unwrap();
    kept.read_exact(&mut [0; 15]).await.unwrap();
    bench.stop.cancel();
    timeout(PATIENCE, kept.read_to_end(&mut vec![])).await.unwrap().unwrap();
    let mut servers = bench.servers;
    let ended = async { servers.join_next().await.unwrap() };
    assert!(timeout(PATIENCE, ended).await.unwrap().is_ok());
}

fn resident_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// A thousand unfinished requests, of which a hundred are large. Declared are 2.3 GB,
/// sent are 420 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_requests_cost_bounded_memory() {
    let config = bench_limits(|l| l.memory = 224 << 20);
    let bench = Bench::configured(config, |_| good()).await;
    bench.serve(bench.release(0));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    let before = resident_mib();
    let mut held = vec![];
    for i in 0..1000_usize {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        let length = if i % 10 == 0 { 20 << 20 } else { 60 << 10 };
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b' '; if i % 10 == 0 { 4 << 20 } else { 20 << 10 }];
        // What the gateway refuses for want of room it does not read.
        let _ = timeout(Duration::from_secs(5), stream.write_all(&piece)).await;
        held.push(stream);
    }
    let grown = resident_mib().saturating_sub(before);
    println!("1000 unfinished requests: {grown} MiB");
    // 64 MiB of large bodies, up to twice that while a buffer grows; small ones and buffers.
    assert!(grown < 250, "{grown} MiB");
    assert_eq!(bench.chat(json!({})).await.status(), 200, "small requests are served meanwhile");
}
