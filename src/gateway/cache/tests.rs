//! What is the same request, what is kept, and what a shared cache may do wrong.

use std::{
    collections::BTreeSet,
    process::{Child, Command, Stdio},
};

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::openai::{Operation, answer::Answer, request::Request, usage::Tokens};

const PARTS: Parts<'static> = Parts {
    release: "ns/r",
    revision: "v1",
    team: "a",
    operation: Operation::Chat,
    form: Form::Whole,
    beta: b"",
};

fn key_of(parts: &Parts<'_>, body: &str) -> Option<Key> {
    key(parts, &Request::parse(Bytes::from(body.to_owned())).unwrap())
}

fn entry(body: &str) -> Arc<Entry> {
    let tokens = Tokens { input: Some(5), output: Some(7), ..Tokens::default() };
    let answer = Answer {
        tokens,
        model: Some("m".to_owned()),
        finish_reason: Some("stop".to_owned()),
        done: true,
        ..Answer::default()
    };
    Arc::new(Entry::new(Bytes::from(body.to_owned()), &answer, Timestamp::UNIX_EPOCH))
}

fn cache(memory: u64, shared: Option<&str>) -> Arc<Cache> {
    let shared = shared.map(|url| SharedConfig { url: url.to_owned(), prefix: "serinus:".into() });
    Cache::new(CacheConfig { memory, shared }).unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn what_does_not_change_the_answer_does_not_change_the_key() {
    let plain = r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"temperature":0}"#;
    for same in [
        r#"{ "temperature" : 0, "messages": [ {"role": "user" ,"content":"a b"} ], "model":"m" }"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"temperature":0,"user":"u","metadata":{"x":"y"},"store":true}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"temperature":0,"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"temperature":0,"safety_identifier":"s","prompt_cache_key":"k","seed":null}"#,
        r#"{"\u006dodel":"m","messages":[{"role":"user","content":"a b"}],"temperature":0}"#,
    ] {
        assert_eq!(key_of(&PARTS, plain), key_of(&PARTS, same), "{same}");
    }
}

#[test]
fn everything_else_changes_it() {
    let plain = r#"{"model":"m","messages":[{"role":"user","content":"a b"}]}"#;
    let mut keys = BTreeSet::from([key_of(&PARTS, plain)]);
    let bodies = [
        r#"{"model":"m2","messages":[{"role":"user","content":"a b"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a  b"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"ab"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b\" "}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b\"  "}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b\\"}, 1]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"temperature":0}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"temperature":0.0}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"seed":12345678901234567891}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"seed":12345678901234567892}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"n":2}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"tools":[]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a b"}],"top_k":5}"#,
    ];
    keys.extend(bodies.iter().map(|body| key_of(&PARTS, body)));
    let parts = [
        Parts { release: "ns/other", ..PARTS },
        Parts { revision: "v2", ..PARTS },
        Parts { team: "b", ..PARTS },
        Parts { operation: Operation::Completions, ..PARTS },
        Parts { form: Form::Stream, ..PARTS },
        Parts { form: Form::StreamWithUsage, ..PARTS },
        Parts { beta: b"assistants=v2", ..PARTS },
        // The same letters, cut elsewhere.
        Parts { release: "ns/rv", revision: "1", ..PARTS },
    ];
    keys.extend(parts.iter().map(|parts| key_of(parts, plain)));
    assert_eq!(keys.len(), 1 + bodies.len() + parts.len());
}

#[test]
fn a_conversation_and_what_runs_in_the_background_have_no_key() {
    let responses = Parts { operation: Operation::Responses, ..PARTS };
    for body in [
        r#"{"model":"m","input":"a","conversation":"c"}"#,
        r#"{"model":"m","input":"a","background":true}"#,
    ] {
        assert_eq!(key_of(&responses, body), None, "{body}");
    }
    let plain = r#"{"model":"m","input":"a","background":false}"#;
    assert!(key_of(&responses, plain).is_some());
    // What was stored can be referred to; what was not can not.
    let stored = r#"{"model":"m","input":"a","store":true}"#;
    let forgotten = r#"{"model":"m","input":"a","store":false}"#;
    assert_ne!(key_of(&responses, stored), key_of(&responses, forgotten));
}

proptest! {
    /// White space outside of strings means nothing, inside it means everything.
    #[test]
    fn layout_means_nothing(content in "[ a\\\\\"\n\u{e4}]{0,12}", numbers in prop::collection::vec(any::<i32>(), 0..5)) {
        let value = serde_json::json!({"model": "m", "messages": [{"content": content, "n": numbers}], "x": {"y": content}});
        let compact = serde_json::to_string(&value).unwrap();
        let pretty = serde_json::to_string_pretty(&value).unwrap().replace('\n', "\r\n\t ");
        prop_assert_eq!(key_of(&PARTS, &compact), key_of(&PARTS, &pretty));
        let other = serde_json::json!({"model": "m", "messages": [{"content": format!("{content} "), "n": numbers}], "x": {"y": content}});
        prop_assert_ne!(key_of(&PARTS, &compact), key_of(&PARTS, &other.to_string()));
    }

    /// What Redis answers may be anything.
    #[test]
    fn foreign_bytes_are_no_entry_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Entry::from_bytes(Bytes::from(bytes));
    }
}

#[test]
fn directives_are_read_as_http_has_them() {
    let read = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("cache-control", HeaderValue::from_static(value));
        }
        let Directives { read, store, max_age } = Directives::of(&headers);
        (read, store, max_age)
    };
    assert_eq!(read(&[]), (true, true, None));
    assert_eq!(read(&["no-cache"]), (false, true, None));
    assert_eq!(read(&["No-Store"]), (false, false, None));
    assert_eq!(read(&["max-age=60"]), (true, true, Some(60)));
    assert_eq!(read(&["private, max-age=\"5\"", "no-cache"]), (false, true, Some(5)));
    assert_eq!(read(&["max-age=x, whatever"]), (true, true, None));
    let now = Timestamp::from_second(100).unwrap();
    let oldest = Directives { read: true, store: true, max_age: Some(60) }.oldest(now);
    assert_eq!(oldest, Timestamp::from_second(40).ok());
}

#[test]
fn an_entry_says_what_the_answer_said_also_after_a_journey() {
    let entry = entry("{\"a\":1}");
    let there = Entry::from_bytes(entry.to_bytes()).unwrap();
    assert_eq!(there, *entry);
    let answer = there.answer();
    assert_eq!((answer.tokens.input, answer.tokens.output), (Some(5), Some(7)));
    assert_eq!(
        (answer.model.as_deref(), answer.finish_reason.as_deref()),
        (Some("m"), Some("stop"))
    );
    assert!(answer.complete());
    // Cut off, or of a version to come.
    let bytes = entry.to_bytes();
    assert_eq!(Entry::from_bytes(bytes.slice(..20)), None);
    let mut newer = bytes.to_vec();
    newer[0] = 2;
    assert_eq!(Entry::from_bytes(Bytes::from(newer)), None);
}

#[test]
fn a_recording_that_grows_too_large_is_given_up() {
    let mut small = Recording::new(10);
    small.push(b"12345");
    small.push(b"67890");
    assert_eq!(small.finish().as_deref(), Some(b"1234567890".as_slice()));
    let mut large = Recording::new(10);
    large.push(b"1234567890");
    large.push(b"1");
    large.push(b"");
    assert_eq!(large.finish(), None);
}

#[tokio::test]
async fn what_was_kept_is_found_until_it_is_too_old() {
    let cache = cache(1 << 20, None);
    let (one, two) = ([1; 32], [2; 32]);
    assert_eq!(cache.get(&one, None).await, None);
    cache.put(one, entry("x"), HOUR);
    assert_eq!(cache.in_memory(&one, None).unwrap().body, "x");
    assert_eq!(cache.get(&one, Some(Timestamp::UNIX_EPOCH)).await.unwrap().body, "x");
    // The application wants a newer one.
    let later = Timestamp::from_second(1).ok();
    assert_eq!(cache.get(&one, later).await, None);
    cache.put(two, entry("y"), Duration::ZERO);
    assert_eq!(cache.in_memory(&two, None), None);
    cache.put(two, entry("y"), Duration::from_millis(1));
    while cache.in_memory(&two, None).is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn memory_has_a_bound_in_bytes() {
    let memory = 1 << 20;
    let cache = cache(memory, None);
    let body = "x".repeat(10_000);
    for i in 0..1_000_u32 {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&i.to_be_bytes());
        cache.put(key, entry(&body), HOUR);
    }
    cache.memory.run_pending_tasks();
    let (size, count) = (cache.memory.weighted_size(), cache.memory.entry_count());
    assert!(size <= memory && count > 50 && count <= 104, "{size} bytes, {count} entries");
    // One answer does not push out all others.
    cache.put([9; 32], entry(&"x".repeat(1 << 19)), HOUR);
    assert_eq!(cache.in_memory(&[9; 32], None), None);
}

#[tokio::test]
async fn a_shared_cache_that_is_not_there_costs_no_answer() {
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cache = cache(1 << 20, Some(&format!("redis://127.0.0.1:{port}")));
    assert_eq!(cache.get(&[1; 32], None).await, None);
    assert_eq!(cache.counts.read_failures.load(Ordering::Relaxed), 1);
    // It is left alone for a while, and memory works.
    assert_eq!(cache.get(&[1; 32], None).await, None);
    assert_eq!(cache.counts.read_failures.load(Ordering::Relaxed), 1);
    cache.put([1; 32], entry("x"), HOUR);
    cache.written().await;
    assert_eq!(cache.get(&[1; 32], None).await.unwrap().body, "x");
    assert_eq!(cache.counts.write_failures.load(Ordering::Relaxed), 0);
}

#[test]
fn the_address_of_a_shared_cache_is_not_told() {
    let config = SharedConfig { url: "redis://u:secret@h".into(), prefix: "p".into() };
    assert!(!format!("{config:?}").contains("secret"));
    let wrong = SharedConfig { url: "http://u:secret@h".into(), prefix: "p".into() };
    let error = Cache::new(CacheConfig { memory: 1, shared: Some(wrong) }).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
}

/// A real server, ended with the test.
struct Server(Child);

impl Server {
    fn start(port: u16) -> Self {
        let program = std::env::var("SERINUS_REDIS").unwrap_or_else(|_| "redis-server".to_owned());
        let child = Command::new(program)
            .args(["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks until the shared cache is tried again and answers.
async fn found_in_time(cache: &Arc<Cache>, key: &Key) -> Arc<Entry> {
    for _ in 0..600 {
        cache.memory.invalidate_all();
        if let Some(entry) = cache.get(key, None).await {
            return entry;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the shared cache did not come back");
}

#[tokio::test]
#[ignore = "needs redis-server or valkey-server on the path, or in SERINUS_REDIS"]
async fn gateways_share_a_real_server_and_outlive_its_outages() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(port);
    let url = format!("redis://127.0.0.1:{port}/0");
    let (one, two) = (cache(1 << 20, Some(&url)), cache(1 << 20, Some(&url)));
    one.put([1; 32], entry("kept"), HOUR);
    one.written().await;
    let found = two.get(&[1; 32], None).await.unwrap();
    assert_eq!(found.body, "kept");
    assert_eq!(two.counts.shared_hits.load(Ordering::Relaxed), 1);
    // From then on it is in the memory of both.
    assert!(two.in_memory(&[1; 32], None).is_some());
    assert_eq!(two.get(&[2; 32], None).await, None);
    assert_eq!(two.counts.read_failures.load(Ordering::Relaxed), 0);

    // It hangs: an answer comes without it, and later with it again.
    server.signal("-STOP");
    assert_eq!(two.get(&[3; 32], None).await, None);
    assert_eq!(two.counts.read_failures.load(Ordering::Relaxed), 1);
    server.signal("-CONT");
    assert_eq!(found_in_time(&two, &[1; 32]).await.body, "kept");

    // It dies and comes back empty.
    drop(server);
    let failed = two.counts.read_failures.load(Ordering::Relaxed);
    two.memory.invalidate_all();
    while two.counts.read_failures.load(Ordering::Relaxed) == failed {
        assert_eq!(two.get(&[1; 32], None).await, None);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _server = Server::start(port);
    for _ in 0..600 {
        one.put([4; 32], entry("again"), HOUR);
        one.written().await;
        two.memory.invalidate_all();
        if let Some(found) = two.get(&[4; 32], None).await {
            assert_eq!(found.body, "again");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the shared cache did not come back");
}
