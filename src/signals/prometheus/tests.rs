//! Against a scripted server on this machine.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::post,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::api::{
    CanaryPolicySpec, PromptReleaseStatus,
    canary_policy::{Bake, EngineTemplate, Metric, PrometheusQuery},
    prompt_release::{CanaryStatus, VariantRef},
};

#[derive(Default)]
struct Script {
    status: u16,
    body: String,
    delay: Duration,
}

#[derive(Clone, Default)]
struct Seen {
    script: Arc<Mutex<Script>>,
    queries: Arc<Mutex<Vec<String>>>,
    tokens: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Server {
    seen: Seen,
    url: String,
    _tasks: JoinSet<()>,
}

async fn answer(State(seen): State<Seen>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    seen.queries.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
    let token = headers.get("authorization").map(|v| v.to_str().unwrap().to_owned());
    seen.tokens.lock().unwrap().extend(token);
    let running = seen.running.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most.fetch_max(running, Ordering::SeqCst);
    let (status, body, delay) = {
        let script = seen.script.lock().unwrap();
        (script.status, script.body.clone(), script.delay)
    };
    tokio::time::sleep(delay).await;
    seen.running.fetch_sub(1, Ordering::SeqCst);
    (StatusCode::from_u16(status).unwrap(), [(CONTENT_TYPE, "application/json")], body)
}

impl Server {
    async fn start(status: u16, data: Value) -> Self {
        let seen = Seen::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/prefix/", listener.local_addr().unwrap());
        let router =
            Router::new().route("/prefix/api/v1/query", post(answer)).with_state(seen.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let server = Self { seen, url, _tasks: tasks };
        server.say(status, json!({"status": "success", "data": data}));
        server
    }

    fn say(&self, status: u16, body: Value) {
        let body = if body.is_null() { "a page".to_owned() } else { body.to_string() };
        *self.seen.script.lock().unwrap() = Script { status, body, delay: Duration::ZERO };
    }

    fn queries(&self) -> Vec<String> {
        self.seen.queries.lock().unwrap().clone()
    }
}

fn client(url: &str, timeout_ms: u64) -> Prometheus {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let timeout = Duration::from_millis(timeout_ms);
    Prometheus::new(Some(Config { url: url.to_owned(), token_file: None, timeout })).unwrap()
}

fn vector(values: &[&str]) -> Value {
    let series = |v: &&str| json!({"metric": {}, "value": [1.5, v]});
    json!({"resultType": "vector", "result": values.iter().map(series).collect::<Vec<_>>()})
}

fn value_metric(name: &str, text: &str) -> Metric {
    let query = PrometheusQuery { value: Some(text.into()), max: Some(1.0), ..Default::default() };
    Metric { name: name.into(), prometheus: Some(query), ..Default::default() }
}

fn share_metric(name: &str, bad: &str, total: &str) -> Metric {
    let query =
        PrometheusQuery { bad: Some(bad.into()), total: Some(total.into()), ..Default::default() };
    Metric { name: name.into(), prometheus: Some(query), ..Default::default() }
}

fn policy(metrics: Vec<Metric>) -> CanaryPolicySpec {
    let mut policy = CanaryPolicySpec::default();
    policy.analysis.interval = crate::api::GoDuration::from_secs(10);
    policy.analysis.metrics = metrics;
    policy.bake = Bake::default();
    policy
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// A canary whose traffic is in place since 100.
fn status() -> PromptReleaseStatus {
    let variant = |revision: &str, backend: &str| VariantRef {
        revision: revision.into(),
        prompt: "p".into(),
        backend: backend.into(),
    };
    let mut status = PromptReleaseStatus {
        stable: Some(variant("aaaa", "old")),
        canary: Some(CanaryStatus {
            variant: variant("bbbb", "new"),
            confirmed_at: Some(at(100)),
            ..Default::default()
        }),
        ..Default::default()
    };
    status.routing.generation = 7;
    status
}

fn asked_for(name: &str, policy: &CanaryPolicySpec, now: i64) -> Questions {
    questions("ns", name, &status(), policy, |v| format!("model-{}", v.backend), at(now)).unwrap()
}

/// What is known of metric `m` of release `ns/r` after one round.
async fn outcome(prometheus: &Prometheus, metric: Metric) -> External {
    let policy = policy(vec![metric]);
    prometheus.ask(&[asked_for("r", &policy, 200)], at(200)).await;
    prometheus.of("ns/r", 7, &policy, at(200)).remove("m").unwrap()
}

#[track_caller]
fn reason(external: &External) -> &'static str {
    let External::Missing { reason, message } = external else { panic!("{external:?}") };
    assert!(message.len() > 20, "{message}");
    assert!(REASONS.contains(reason), "{reason}");
    reason
}

#[tokio::test]
async fn a_scalar_and_a_vector_of_one_are_values() {
    let server = Server::start(200, vector(&["0.25"])).await;
    let prometheus = client(&server.url, 2000);
    assert_eq!(outcome(&prometheus, value_metric("m", "x")).await, External::Value(0.25));
    let data = json!({"resultType": "scalar", "result": [1.5, "3"]});
    server.say(200, json!({"status": "success", "data": data}));
    assert_eq!(outcome(&prometheus, value_metric("m", "x")).await, External::Value(3.0));
}

#[tokio::test]
async fn what_is_no_single_number_has_its_own_reason() {
    let server = Server::start(200, Value::Null).await;
    let prometheus = client(&server.url, 2000);
    let histogram = json!({"resultType": "vector", "result": [
        {"metric": {}, "histogram": [1.5, {"count": "1", "sum": "1", "buckets": []}]}]});
    let cases = [
        (vector(&[]), "PrometheusEmpty"),
        (vector(&["NaN"]), "PrometheusNotANumber"),
        (vector(&["+Inf"]), "PrometheusInfinite"),
        (vector(&["-Inf"]), "PrometheusInfinite"),
        (vector(&["1", "2"]), "PrometheusSeveralSeries"),
        (json!({"resultType": "matrix", "result": []}), "PrometheusWrongType"),
        (json!({"resultType": "string", "result": [1.5, "s"]}), "PrometheusWrongType"),
        (histogram, "PrometheusWrongType"),
        (vector(&["one"]), "PrometheusBadAnswer"),
        (json!({}), "PrometheusBadAnswer"),
    ];
    for (data, expected) in cases {
        server.say(200, json!({"status": "success", "data": data}));
        let found = outcome(&prometheus, value_metric("m", "x")).await;
        assert_eq!(reason(&found), expected, "{data}");
    }
}

#[tokio::test]
async fn every_status_has_its_own_reason() {
    let server = Server::start(200, Value::Null).await;
    let prometheus = client(&server.url, 2000);
    let error = |kind: &str| json!({"status": "error", "errorType": kind, "error": "parse error"});
    let cases = [
        (400, error("bad_data"), "PrometheusBadQuery"),
        (422, error("execution"), "PrometheusBadQuery"),
        (400, Value::Null, "PrometheusBadQuery"),
        (401, Value::Null, "PrometheusUnauthorized"),
        (403, json!({"message": "no"}), "PrometheusUnauthorized"),
        (429, Value::Null, "PrometheusUnavailable"),
        (500, error("internal"), "PrometheusUnavailable"),
        (503, Value::Null, "PrometheusUnavailable"),
        (503, error("timeout"), "PrometheusTimeout"),
        (302, Value::Null, "PrometheusBadAnswer"),
        (404, Value::Null, "PrometheusBadAnswer"),
        (200, Value::Null, "PrometheusBadAnswer"),
    ];
    for (status, body, expected) in cases {
        server.say(status, body.clone());
        let found = outcome(&prometheus, value_metric("m", "x")).await;
        assert_eq!(reason(&found), expected, "{status} {body}");
    }
    server.say(400, error("bad_data"));
    let External::Missing { message, .. } = outcome(&prometheus, value_metric("m", "x")).await
    else {
        panic!()
    };
    assert!(message.contains("parse error"), "{message}");
}

#[tokio::test]
async fn down_and_slow_are_told_apart_and_a_round_is_bounded() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let down = outcome(&client(&url, 2000), value_metric("m", "x")).await;
    assert_eq!(reason(&down), "PrometheusUnreachable");

    let server = Server::start(200, vector(&["1"])).await;
    server.seen.script.lock().unwrap().delay = Duration::from_secs(30);
    let prometheus = client(&server.url, 100);
    let metrics = (0..100).map(|i| value_metric(&format!("m{i}"), &format!("x{i}"))).collect();
    let policy = policy(metrics);
    let began = std::time::Instant::now();
    let round = prometheus.ask(&[asked_for("r", &policy, 200)], at(200)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Together, and each alone as long as the round lasts.
    assert!((2..=101).contains(&round.sent), "{}", round.sent);
    assert!(round.failed.iter().all(|r| *r == "PrometheusTimeout") && round.failed.len() == 100);
}

#[tokio::test]
async fn the_same_text_is_sent_once_for_all_releases() {
    let server = Server::start(200, vector(&["1"])).await;
    server.seen.script.lock().unwrap().delay = Duration::from_millis(20);
    let prometheus = client(&server.url, 2000);
    let policy = policy(vec![
        value_metric("m", "up"),
        share_metric("s", "bad{r=\"{{ revision }}\"}", "all{r=\"{{ revision }}\"}"),
    ]);
    let all: Vec<Questions> = (0..50).map(|i| asked_for(&format!("r{i}"), &policy, 200)).collect();
    let round = prometheus.ask(&all, at(200)).await;
    assert_eq!((round.sent, server.queries().len()), (5, 5));
    assert!(server.seen.most.load(Ordering::SeqCst) <= AT_ONCE);
    for i in 0..50 {
        let known = prometheus.of(&format!("ns/r{i}"), 7, &policy, at(200));
        assert_eq!(known["m"], External::Value(1.0));
        let one = Share { n: 1.0, bad: 1.0 };
        assert_eq!(known["s"], External::Shares { stable: one, canary: one });
    }
}

#[tokio::test]
async fn answers_belong_to_their_generation_and_get_old() {
    let server = Server::start(200, vector(&["1"])).await;
    let prometheus = client(&server.url, 1000);
    let policy = policy(vec![value_metric("m", "x")]);
    let questions = asked_for("r", &policy, 200);
    let of = |generation, now| prometheus.of("ns/r", generation, &policy, at(now))["m"].clone();
    assert_eq!(reason(&of(7, 200)), "PrometheusPending");
    assert!(prometheus.due("ns/r", 7, at(200)));
    prometheus.ask(std::slice::from_ref(&questions), at(200)).await;
    assert!(!prometheus.due("ns/r", 7, at(209)));
    assert!(prometheus.due("ns/r", 7, at(210)));
    assert!(prometheus.due("ns/r", 8, at(201)));
    assert_eq!(of(7, 233), External::Value(1.0));
    // Three intervals and a round of three seconds are over.
    assert_eq!(reason(&of(7, 234)), "PrometheusPending");
    assert_eq!(reason(&of(8, 200)), "PrometheusPending");
    prometheus.forget_all_but(&BTreeSet::new());
    assert_eq!(reason(&of(7, 200)), "PrometheusPending");
}

#[tokio::test]
async fn a_failure_replaces_the_last_answer_and_data_replaces_the_failure() {
    let server = Server::start(200, vector(&["1"])).await;
    let prometheus = client(&server.url, 2000);
    assert_eq!(outcome(&prometheus, value_metric("m", "x")).await, External::Value(1.0));
    server.say(503, Value::Null);
    let failed = outcome(&prometheus, value_metric("m", "x")).await;
    assert_eq!(reason(&failed), "PrometheusUnavailable");
    server.say(200, json!({"status": "success", "data": vector(&["2"])}));
    assert_eq!(outcome(&prometheus, value_metric("m", "x")).await, External::Value(2.0));
}

#[tokio::test]
async fn the_token_is_read_anew_and_a_missing_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let server = Server::start(200, vector(&["1"])).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let prometheus = Prometheus::new(Some(Config {
        url: server.url.clone(),
        token_file: Some(file.clone()),
        timeout: Duration::from_secs(2),
    }))
    .unwrap();
    let missing = outcome(&prometheus, value_metric("m", "x")).await;
    assert_eq!(reason(&missing), "PrometheusToken");
    assert!(server.queries().is_empty());
    for token in ["first", "second"] {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        outcome(&prometheus, value_metric("m", "x")).await;
    }
    assert_eq!(*server.seen.tokens.lock().unwrap(), ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn without_an_address_and_without_a_question_the_reason_says_so() {
    let policy = policy(vec![value_metric("m", "x")]);
    let known = Prometheus::default().of("ns/r", 7, &policy, at(200));
    assert_eq!(reason(&known["m"]), "PrometheusNotConfigured");
    let server = Server::start(200, vector(&["1"])).await;
    let prometheus = client(&server.url, 2000);
    let same = outcome(&prometheus, share_metric("m", "x", "y{r=\"{{ revision }}\"}")).await;
    assert_eq!(reason(&same), "PrometheusSameQuery");
    let invalid = outcome(&prometheus, share_metric("m", "x{{ pod }}", "y")).await;
    assert_eq!(reason(&invalid), "PrometheusQueryInvalid");
    assert!(server.queries().is_empty());
    assert!(
        Prometheus::new(Some(Config {
            url: "prometheus:9090".into(),
            token_file: None,
            timeout: Duration::from_secs(1)
        }))
        .is_err()
    );
}

#[test]
fn counts_are_whole_and_more_bad_than_all_is_no_share() {
    let is = |bad, total| share(bad, total).map(|s| (s.bad, s.n));
    assert_eq!(is(3.4, 99.6), Ok((3.0, 100.0)));
    assert_eq!(is(-0.2, 10.0), Ok((0.0, 10.0)));
    assert_eq!(is(101.0, 100.0), Ok((100.0, 100.0)));
    assert_eq!(is(0.0, 0.0), Ok((0.0, 0.0)));
    for (bad, total) in [(120.0, 100.0), (1.0, -1.0), (-20.0, 100.0)] {
        assert_eq!(is(bad, total).unwrap_err().reason(), "PrometheusCountsInvalid");
    }
}

#[test]
fn while_baking_the_previous_variant_is_compared_with() {
    let mut policy = policy(vec![share_metric("m", "b{{ revision }}", "t{{ backend }}")]);
    let mut status = status();
    status.previous = Some(VariantRef { revision: "cccc".into(), ..Default::default() });
    let ask = |status: &PromptReleaseStatus, policy: &CanaryPolicySpec| {
        questions("ns", "r", status, policy, |_| String::new(), at(200)).unwrap().metrics.remove(0)
    };
    let counts = |bad: &str, total: &str| Counts { bad: bad.into(), total: total.into() };
    let Ok(Question::Shares { stable, canary }) = ask(&status, &policy).1 else { panic!() };
    assert_eq!((stable, canary), (Some(counts("bcccc", "t")), counts("bbbbb", "tnew")));
    policy.bake.holdback = 0;
    let Ok(Question::Shares { stable, .. }) = ask(&status, &policy).1 else { panic!() };
    assert_eq!(stable, None);
}

#[test]
fn nothing_is_asked_without_traffic_or_without_such_a_metric() {
    let policy = policy(vec![value_metric("m", "x[{{ window }}]")]);
    let ask = |status: &PromptReleaseStatus, policy: &CanaryPolicySpec| {
        questions("ns", "r", status, policy, |_| String::new(), at(400))
    };
    assert_eq!(
        ask(&status(), &policy).unwrap().metrics,
        [("m".to_owned(), Ok(Question::Value("x[300s]".into())))]
    );
    assert_eq!(ask(&PromptReleaseStatus::default(), &policy), None);
    let mut waiting = status();
    waiting.canary.as_mut().unwrap().confirmed_at = None;
    assert_eq!(ask(&waiting, &policy), None);
    let others = CanaryPolicySpec::default();
    assert_eq!(ask(&status(), &others), None);
}

#[test]
fn a_policy_is_told_the_bound_that_stands_in() {
    let template = |slower: &str| {
        let query = PrometheusQuery {
            template: Some(EngineTemplate::VllmTimeToFirstToken),
            slower_than: Some(slower.parse().unwrap()),
            ..Default::default()
        };
        policy(vec![Metric { name: "ttft".into(), prometheus: Some(query), ..Default::default() }])
    };
    assert_eq!(
        notes(&template("2s")).unwrap(),
        ["ttft: slowerThan 2s is judged at the bucket bound 2.5 s"]
    );
    assert!(notes(&template("2.5s")).unwrap().is_empty());
    let beyond = notes(&template("1h")).unwrap_err();
    assert!(beyond.contains("ttft") && beyond.contains("2560 s"), "{beyond}");
    let unknown = notes(&policy(vec![value_metric("m", "x{{ pod }}")])).unwrap_err();
    assert!(unknown.contains("pod"), "{unknown}");
}
