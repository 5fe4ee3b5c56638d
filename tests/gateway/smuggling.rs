//! HTTP by the book: a request is what its bytes say, once, or it is refused and its
//! connection closed. The corpus is in `tests/fixtures/smuggling`.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use serde::Deserialize;
use serinus::gateway::{GatewayConfig, limits::Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::bench::{Bench, good, open};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    send: String,
    answers: Vec<u16>,
    code: Option<String>,
    model: Option<usize>,
}

fn cases() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smuggling");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    let read = |path: &Path| {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let cases: Vec<Case> = serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap())
            .unwrap_or_else(|e| panic!("{file}: {e}"));
        cases.into_iter().map(move |case| (file.clone(), case)).collect::<Vec<_>>()
    };
    files.iter().flat_map(|path| read(path)).collect()
}

const BODY: &str = r#"{"model":"r","serinus":{"variables":{"question":"why?"}}}"#;

/// The bytes of a case. Characters up to U+00FF are a byte each.
fn bytes(send: &str) -> Vec<u8> {
    let (hex, length) = (format!("{:x}", BODY.len()), BODY.len().to_string());
    let mut text = send
        .replace("{chunked}", "{hex}\r\n{body}\r\n0\r\n\r\n")
        .replace("{hex}", &hex)
        .replace("{length}", &length);
    while let Some(start) = text.find("{times:") {
        let end = start + text[start..].find('}').unwrap();
        let (times, part) = text[start + 7..end].split_once(':').unwrap();
        let repeated = part.repeat(times.parse().unwrap());
        text.replace_range(start..=end, &repeated);
    }
    let text = text.replace("{body}", BODY);
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// What comes back until the gateway closes the connection.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may have answered and closed before everything was sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = vec![];
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    drop(read.expect("the gateway closes the connection"));
    answer
}

/// The heads and bodies of answers that follow each other.
fn answers(mut rest: &str) -> Vec<(u16, String, String)> {
    let mut all = vec![];
    while let Some((head, after)) = rest.split_once("\r\n\r\n") {
        let head = head.to_ascii_lowercase();
        let status = head.strip_prefix("http/1.1 ").or(head.strip_prefix("http/1.0 "));
        let status: u16 = status.unwrap_or_else(|| panic!("{rest:?}"))[..3].parse().unwrap();
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
        let length = length.map_or(0, |l| l.parse().unwrap());
        all.push((status, head, after[..length].to_owned()));
        rest = &after[length..];
    }
    assert_eq!(rest, "", "bytes that belong to no answer");
    all
}

fn impatient() -> GatewayConfig {
    let limits = Limits {
        header_time: Duration::from_millis(500),
        body_time: Duration::from_millis(500),
        idle: Duration::from_millis(500),
        ..Limits::default()
    };
    GatewayConfig { limits, ..open() }
}

#[tokio::test]
async fn a_request_is_what_its_bytes_say_or_it_is_refused() {
    let bench = Bench::configured(impatient(), |_| good()).await;
    bench.serve(bench.release(0));
    let mut wrong = vec![];
    for (file, case) in cases() {
        let before = bench.asked().len();
        let bytes = bytes(&case.send);
        let answer = exchange(bench.address, &bytes).await;
        let found = answers(std::str::from_utf8(&answer).unwrap());
        let statuses: Vec<u16> = found.iter().map(|(status, ..)| *status).collect();
        let code = found.last().map_or("", |(.., body)| body);
        let is_code = |code_: &String| code.contains(&format!("\"code\":\"{code_}\""));
        let is_post = bytes.starts_with(b"POST");
        let good = statuses.iter().filter(|status| **status == 200 && is_post).count();
        let asked = bench.asked().len() - before;
        if statuses != case.answers
            || !case.code.as_ref().is_none_or(is_code)
            || asked != case.model.unwrap_or(good)
        {
            wrong.push(format!("{file}: {}: {statuses:?} {asked} {code}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let good = bench.chat(serde_json::json!({})).await;
    assert_eq!(good.status(), 200, "others are served as before");
}

#[tokio::test]
async fn a_path_says_which_methods_it_takes_and_heads_have_no_body() {
    let bench = Bench::configured(impatient(), |_| good()).await;
    bench.serve(bench.release(0));
    let ask = async |method: &str, path: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let answer = exchange(bench.address, request.as_bytes()).await;
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let allow = head.lines().find_map(|line| line.strip_prefix("allow: ").map(str::to_owned));
        (head[9..12].to_owned(), allow, body.to_owned())
    };
    for (path, allowed) in [
        ("/v1/chat/completions", "POST"),
        ("/openai/deployments/r/chat/completions", "POST"),
        ("/serinus/v1/feedback", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/r", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
    ] {
        for method in ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "JUNK"] {
            let (status, allow, body) = ask(method, path).await;
            assert_eq!(
                (status.as_str(), allow.as_deref()),
                ("405", Some(allowed)),
                "{method} {path}"
            );
            assert!(body.contains("method_not_allowed"), "{body}");
        }
        let (status, allow, body) = ask("HEAD", path).await;
        assert_eq!(body, "", "{path}");
        assert_eq!(status == "200", allowed.contains("HEAD"), "{path}: {status}");
        assert_eq!(allow.is_some(), status == "405");
    }
    assert_eq!(ask("GET", "/nothing").await.0, "404");
}

/// The end of what a client says may come together with its request, in any order of what
/// the gateway does then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_its_connection_is_answered_each_time() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(0));
    let n = BODY.len();
    let post = |more: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n{more}content-length: {n}\r\n\r\n{BODY}"
        )
    };
    let get = "GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n".to_owned();
    for (answered, request) in
        [(1, get.clone()), (1, post("")), (1, post("connection: close\r\n")), (3, get.repeat(3))]
    {
        for round in 0..50 {
            let mut stream = TcpStream::connect(bench.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut text = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
            let found = answers(&text);
            let good = found.iter().filter(|(status, ..)| *status == 200).count();
            assert_eq!(good, answered, "{round}: {request} {text}");
        }
    }
}

/// The connection ends with the answer, however long that took, and not when its idle time is
/// over.
#[tokio::test]
async fn a_slow_answer_to_a_client_that_has_said_all_ends_its_connection() {
    let (release, released) = tokio::sync::watch::channel(false);
    let bench = Bench::new(move |_| {
        let mut released = released.clone();
        let slow = futures::stream::once(async move {
            let _ = released.wait_for(|released| *released).await;
            good().into_body()
        });
        let slow = futures::StreamExt::flat_map(slow, axum::body::Body::into_data_stream);
        axum::http::Response::new(axum::body::Body::from_stream(slow))
    })
    .await;
    bench.serve(bench.release(0));
    let n = BODY.len();
    for version in ["1.1", "1.0"] {
        for pipelined in [1, 2] {
            release.send_replace(false);
            let request = format!(
                "POST /v1/chat/completions HTTP/{version}\r\nhost: g\r\nconnection: keep-alive\r\n\
                 content-length: {n}\r\n\r\n{BODY}"
            );
            let asked = bench.asked().len();
            let mut stream = TcpStream::connect(bench.address).await.unwrap();
            stream.write_all(request.repeat(pipelined).as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            while bench.asked().len() == asked {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let mut text = String::new();
            if version == "1.1" && pipelined == 1 {
                // The gateway knows that nothing more is said.
                let mut asked = [0; 25];
                timeout(PATIENCE, stream.read_exact(&mut asked)).await.unwrap().unwrap();
                assert!(asked.starts_with(b"HTTP/1.1 100 Continue"));
            }
            release.send_replace(true);
            timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
            let good = answers(&text).iter().filter(|(status, ..)| *status == 200).count();
            assert_eq!(good, pipelined, "{version}: {text}");
        }
    }
}

#[tokio::test]
async fn a_client_that_has_said_all_is_answered_and_one_that_is_gone_ends_the_work() {
    struct Ends(tokio::sync::mpsc::UnboundedSender<()>);
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let bench = Bench::new(move |body| {
        if body["user"] != "slow" {
            return good();
        }
        // An answer that never comes.
        let held = Ends(ends.clone());
        let never = futures::stream::once(async move {
            let _held = held;
            std::future::pending::<Result<String, std::io::Error>>().await
        });
        axum::http::Response::new(axum::body::Body::from_stream(never))
    })
    .await;
    bench.serve(bench.release(0));
    let request = |body: &str| {
        let n = body.len();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {n}\r\n\r\n{body}"
        )
    };
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(request(BODY).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    let found = answers(&text);
    assert!(found.iter().any(|(status, ..)| *status == 200), "{text}");
    assert!(found.iter().all(|(status, ..)| [100, 200].contains(status)), "{text}");
    // Half a body is none, however it ends.
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let whole = request(BODY);
    stream.write_all(&whole.as_bytes()[..whole.len() - 5]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    let _ = timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap();
    assert!(answers(&text).iter().all(|(status, ..)| *status == 400), "{text}");
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let slow = BODY.replace("\"r\"", "\"r\",\"user\":\"slow\"");
    stream.write_all(request(&slow).as_bytes()).await.unwrap();
    while bench.asked().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(stream);
    timeout(PATIENCE, ended.recv()).await.expect("nobody waits, and the model goes on").unwrap();
}
