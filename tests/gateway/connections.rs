//! Connections: those that a server closes, what is compressed, and proxies.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Response};
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt, future::BoxFuture, stream};
use serde_json::{Value, json};
use serinus::{
    api::{SecretText, llm_deployment::SecretKeyRef},
    gateway::{GatewayConfig, limits::Limits, routes::ReleaseInput},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::bench::{Bench, edit, event, good, open};

/// A server that does with each connection what it is told; the number is the connection's.
async fn raw(
    handle: impl Fn(usize, TcpStream) -> BoxFuture<'static, ()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut connections = JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(handle(number, stream));
        }
    });
    // It ends with the runtime of the test.
    servers.detach_all();
    address
}

/// The head of the next request and its body; none when the other side has closed.
async fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut read = vec![];
    loop {
        if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(read[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if read.len() >= end + 4 + length {
                return Some((head, read[end + 4..end + 4 + length].to_vec()));
            }
        }
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn answer(body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn good_text() -> String {
    json!({"id": "1", "model": "m", "usage": {"prompt_tokens": 10, "completion_tokens": 2},
        "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "{\"answer\": \"yes\"}"}}]})
    .to_string()
}

/// Changes the backend of both variants.
fn with_backend(mut release: ReleaseInput, change: impl Fn(&mut Value)) -> ReleaseInput {
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            let mut backend = serde_json::to_value(&variant.backend).unwrap();
            change(&mut backend);
            variant.backend = serde_json::from_value(backend).unwrap();
        });
    }
    release
}

fn at(release: ReleaseInput, address: SocketAddr) -> ReleaseInput {
    let url = format!("http://{address}/v1");
    with_backend(release, |backend| backend["endpoint"]["url"] = json!(url))
}

#[tokio::test]
async fn a_connection_that_is_reset_when_it_is_used_again_costs_nobody_an_error() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let model = raw(move |_, mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            // One answer, and then a reset that says nothing before.
            if request(&mut stream).await.is_some() {
                stream.write_all(&answer(&good_text())).await.unwrap();
                request(&mut stream).await;
                let _ = stream.set_zero_linger();
            }
        })
    })
    .await;
    let bench = Bench::new(|_| good()).await;
    bench.serve(at(bench.release(50), model));
    for user in 0..40 {
        let answer = bench.chat(json!({"user": format!("user-{user}")})).await;
        assert_eq!(answer.status(), 200);
    }
    for side in ["stable", "canary"] {
        let counts = bench.counts(side);
        assert!(counts.requests > 5 && counts.errors == 0, "{side}: {counts:?}");
    }
    let made = connections.load(Ordering::Relaxed);
    assert!((20..=41).contains(&made), "{made}: some were used again, and each of those reset");
}

#[tokio::test]
async fn an_answer_that_breaks_off_in_its_head_is_asked_for_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let model = raw(move |_, mut stream| {
        let counted = counted.clone();
        Box::pin(async move {
            while request(&mut stream).await.is_some() {
                if counted.fetch_add(1, Ordering::Relaxed) > 0 {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-").await.unwrap();
                    return;
                }
                stream.write_all(&answer(&good_text())).await.unwrap();
            }
        })
    })
    .await;
    let bench = Bench::new(|_| good()).await;
    bench.serve(at(bench.release(0), model));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    assert_eq!(bench.chat(json!({})).await.status(), 502);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_model_with_many_headers_is_understood() {
    let model = raw(|_, mut stream| {
        Box::pin(async move {
            request(&mut stream).await;
            let more: String = (0..180).map(|n| format!("x-h{n}: v\r\n")).collect();
            let text = String::from_utf8(answer(&good_text())).unwrap();
            let text = text.replacen("\r\n", &format!("\r\n{more}"), 1);
            stream.write_all(text.as_bytes()).await.unwrap();
        })
    })
    .await;
    let bench = Bench::new(|_| good()).await;
    bench.serve(at(bench.release(0), model));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut to = GzEncoder::new(vec![], Compression::default());
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

fn zlib(text: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::ZlibEncoder::new(vec![], Compression::default());
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

fn encoded(kind: &str, encoding: &str, body: Body) -> Response<Body> {
    Response::builder()
        .header("content-type", kind)
        .header("content-encoding", encoding)
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn an_answer_that_is_compressed_all_the_same_is_read_and_passed_on_decoded() {
    let bench = Bench::new(|request| {
        let text = good_text();
        let (encoding, bytes) = match request["user"].as_str().unwrap() {
            "gzip" => ("GZip", gzip(text.as_bytes())),
            "deflate" => ("deflate", zlib(text.as_bytes())),
            "zstd" => ("zstd", zstd::encode_all(text.as_bytes(), 3).unwrap()),
            "chain" => ("deflate, gzip", gzip(&zlib(text.as_bytes()))),
            "identity" => ("identity", text.into_bytes()),
            "none" => ("none", text.into_bytes()),
            "utf-8" => ("UTF-8", text.into_bytes()),
            "br" => ("br", b"???".to_vec()),
            "cut" => ("gzip", gzip(text.as_bytes())[..40].to_vec()),
            _ => ("gzip", text.into_bytes()),
        };
        encoded("application/json", encoding, Body::from(bytes))
    })
    .await;
    bench.serve(bench.release(0));
    for user in ["gzip", "deflate", "zstd", "chain", "identity", "none", "utf-8"] {
        let answer = bench.chat(json!({"user": user})).await;
        assert_eq!(answer.status(), 200, "{user}");
        assert!(answer.headers().get("content-encoding").is_none());
        assert_eq!(answer.text().await.unwrap(), good_text(), "{user}");
    }
    for user in ["br", "cut", "plain"] {
        let answer = bench.chat(json!({"user": user})).await;
        assert_eq!(answer.status(), 502, "{user}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "upstream_invalid", "{user}: {body}");
    }
}

#[tokio::test]
async fn a_compressed_stream_goes_on_event_by_event() {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(8);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let bench = Bench::new(move |_| {
        let receiver = receiver.lock().unwrap().take().unwrap();
        let pieces = stream::unfold(receiver, |mut r| async {
            Some((Ok::<_, std::io::Error>(r.recv().await?), r))
        });
        encoded("text/event-stream", "gzip", Body::from_stream(pieces))
    })
    .await;
    bench.serve(bench.release(0));
    let mut to = GzEncoder::new(vec![], Compression::default());
    let mut piece = |text: &str| {
        to.write_all(text.as_bytes()).unwrap();
        to.flush().unwrap();
        std::mem::take(to.get_mut())
    };
    let (first, second) = (event("{\"answer\":", None), event(" 1}", Some("stop")));
    sender.send(piece(&first)).await.unwrap();
    let answer = bench.chat(json!({"stream": true})).await;
    assert!(answer.headers().get("content-encoding").is_none());
    let mut body = answer.bytes_stream();
    // The second event does not exist yet.
    assert_eq!(body.next().await.unwrap().unwrap(), first);
    sender.send(piece(&second)).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), second);
    sender.send(piece("data: [DONE]\n\n")).await.unwrap();
    sender.send(to.finish().unwrap()).await.unwrap();
    drop(sender);
    let rest: Vec<u8> = body.map(|b| b.unwrap().to_vec()).concat().await;
    assert_eq!(rest, b"data: [DONE]\n\n");
}

#[tokio::test]
async fn a_compressed_request_is_decoded_or_told_what_is_understood() {
    let limits = Limits { body: 1 << 20, ..Limits::default() };
    let bench = Bench::configured(GatewayConfig { limits, ..open() }, |_| good()).await;
    bench.serve(bench.release(0));
    let text = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}}).to_string();
    let ask = async |encoding: &str, body: Vec<u8>| {
        let url = format!("http://{}/v1/chat/completions", bench.address);
        bench.client.post(url).header("content-encoding", encoding).body(body).send().await.unwrap()
    };
    let plain = text.as_bytes();
    for (encoding, body) in [
        ("gzip", gzip(plain)),
        ("X-Gzip", gzip(plain)),
        ("deflate", zlib(plain)),
        ("zstd", zstd::encode_all(plain, 3).unwrap()),
        ("identity", plain.to_vec()),
        ("deflate, GZIP", gzip(&zlib(plain))),
    ] {
        assert_eq!(ask(encoding, body).await.status(), 200, "{encoding}");
        assert_eq!(bench.asked().last().unwrap()["messages"][1]["content"], "why?");
    }
    let asked = bench.asked().len();
    for encoding in ["br", "gzip, br", "compress", "gzip,gzip,gzip,gzip"] {
        let answer = ask(encoding, gzip(plain)).await;
        assert_eq!(answer.status(), 415, "{encoding}");
        assert_eq!(answer.headers()["accept-encoding"], "gzip, deflate, zstd, identity");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "unsupported_encoding", "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("gzip, deflate, zstd"));
    }
    for (encoding, body) in [("gzip", plain.to_vec()), ("zstd", gzip(plain)), ("gzip", vec![])] {
        let answer = ask(encoding, body).await;
        assert_eq!(answer.status(), 400, "{encoding}");
    }
    let bomb = zstd::encode_all(&vec![b' '; 200 << 20][..], 3).unwrap();
    assert!(bomb.len() < 64 << 10);
    assert_eq!(ask("zstd", bomb).await.status(), 413);
    assert_eq!(bench.asked().len(), asked, "none of them reached the model");
}

#[tokio::test]
async fn models_are_asked_for_plain_answers_whatever_the_application_takes() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = heads.clone();
    let model = raw(move |_, mut stream| {
        let kept = kept.clone();
        Box::pin(async move {
            let (head, _) = request(&mut stream).await.unwrap();
            kept.lock().unwrap().push(head);
            stream.write_all(&answer(&good_text())).await.unwrap();
        })
    })
    .await;
    let bench = Bench::new(|_| good()).await;
    bench.serve(at(bench.release(0), model));
    let url = format!("http://{}/v1/chat/completions", bench.address);
    let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
    let sent = bench.client.post(url).header("accept-encoding", "br, gzip").json(&body);
    assert_eq!(sent.send().await.unwrap().status(), 200);
    let head = heads.lock().unwrap()[0].clone();
    let told: Vec<&str> = head.lines().filter(|l| l.starts_with("accept-encoding")).collect();
    assert_eq!(told, ["accept-encoding: identity"], "{head}");
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{head}");
}

/// A proxy that keeps the heads that it reads and answers by itself, or connects.
async fn proxy(heads: Arc<Mutex<Vec<String>>>, wants: Option<&'static str>) -> SocketAddr {
    raw(move |_, mut stream| {
        let heads = heads.clone();
        Box::pin(async move {
            while let Some((head, _)) = request(&mut stream).await {
                heads.lock().unwrap().push(head.clone());
                if wants.is_some_and(|wanted| !head.contains(wanted)) {
                    let refused = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                        proxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(refused.as_bytes()).await.unwrap();
                    return;
                }
                if let Some(target) = head.strip_prefix("CONNECT ") {
                    let target = target.split(' ').next().unwrap();
                    let mut there = TcpStream::connect(target).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
                    return;
                }
                stream.write_all(&answer(&good_text())).await.unwrap();
            }
        })
    })
    .await
}

fn with_proxy(release: ReleaseInput, proxy: &Value, url: &str) -> ReleaseInput {
    let mut release = with_backend(release, |backend| {
        backend["proxy"] = proxy.clone();
        backend["endpoint"]["url"] = json!(url);
    });
    let secret = SecretKeyRef { name: "proxy".to_owned(), key: "login".to_owned() };
    release.secrets.insert(secret, SecretText::new("ada:lovelace"));
    release
}

#[tokio::test]
async fn a_model_without_tls_is_asked_through_the_proxy_with_its_whole_address() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let at = proxy(heads.clone(), Some("proxy-authorization: Basic YWRhOmxvdmVsYWNl")).await;
    let bench = Bench::new(|_| good()).await;
    let settings = json!({"url": format!("http://{at}"),
        "credentialsSecretRef": {"name": "proxy", "key": "login"}});
    bench.serve(with_proxy(bench.release(0), &settings, "http://models.invalid:8000/v1"));
    for _ in 0..3 {
        assert_eq!(bench.chat(json!({})).await.status(), 200);
    }
    let heads = heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 3);
    let first = "POST http://models.invalid:8000/v1/chat/completions HTTP/1.1";
    assert!(heads.iter().all(|head| head.starts_with(first)), "{heads:?}");
    assert!(heads[0].contains("host: models.invalid:8000"), "{}", heads[0]);
}

#[tokio::test]
async fn a_model_with_tls_is_asked_through_a_tunnel_whose_proxy_sees_nothing() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let at = proxy(heads.clone(), Some("Proxy-Authorization: Basic YWRhOmxvdmVsYWNl")).await;
    let (model, ca) = crate::tls::model().await;
    let port = model.address.port();
    let bench = Bench::new(|_| good()).await;
    let settings = json!({"url": format!("http://{at}"),
        "credentialsSecretRef": {"name": "proxy", "key": "login"}});
    let url = format!("https://localhost:{port}/v1");
    let release = with_proxy(bench.release(0), &settings, &url);
    let mut release = with_backend(release, |backend| {
        backend["model"] = json!("r");
        backend["endpoint"]["tls"] = json!({"caSecretRef": {"name": "ca", "key": "ca.crt"}});
    });
    let secret = SecretKeyRef { name: "ca".to_owned(), key: "ca.crt".to_owned() };
    release.secrets.insert(secret, SecretText::new(ca));
    bench.serve(release);
    for _ in 0..3 {
        assert_eq!(bench.chat(json!({})).await.status(), 200);
    }
    let heads = heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 1, "the tunnel is used again: {heads:?}");
    assert!(heads[0].starts_with(&format!("CONNECT localhost:{port} HTTP/1.1")));
    assert!(!heads[0].contains("/v1/"));
}

#[tokio::test]
async fn a_proxy_that_refuses_is_nothing_that_an_application_can_mend() {
    for url in ["http://models.invalid/v1", "https://models.invalid/v1"] {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let at = proxy(heads.clone(), Some("never")).await;
        let bench = Bench::new(|_| good()).await;
        let settings = json!({"url": format!("http://{at}")});
        bench.serve(with_proxy(bench.release(0), &settings, url));
        let answer = bench.chat(json!({})).await;
        assert_eq!(answer.status(), 502, "{url}");
        assert!(!heads.lock().unwrap().is_empty(), "{url}");
    }
}

#[tokio::test]
async fn a_proxy_is_no_way_around_the_addresses_that_are_refused() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let at = proxy(heads.clone(), None).await;
    let (to, through) = (format!("http://{at}"), |url: &str| json!({"url": url}));
    for (url, settings) in [
        ("http://169.254.169.254/v1", through(&to)),
        ("https://169.254.169.254/v1", through(&to)),
        ("http://0xa9fea9fe/v1", through(&to)),
        ("http://metadata.google.internal/v1", through(&to)),
        ("http://models.invalid/v1", through("http://169.254.169.254:80")),
        ("https://models.invalid/v1", through("http://[fe80::1]:3128")),
    ] {
        let bench = Bench::new(|_| good()).await;
        bench.serve(with_proxy(bench.release(0), &settings, url));
        let answer = tokio::time::timeout(Duration::from_secs(30), bench.chat(json!({}))).await;
        assert_eq!(answer.unwrap().status(), 502, "{url}");
    }
    assert!(heads.lock().unwrap().is_empty(), "{heads:?}");
}
