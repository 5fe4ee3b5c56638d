//! Against a collector in this process, which answers what a test wants.

use std::{io::Read, sync::Mutex, time::Duration};

use axum::{
    Router, body::Bytes, extract::State, http::HeaderValue, response::IntoResponse, routing::post,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinSet};

use super::*;
use crate::{
    audit::record::Content,
    telemetry::{Telemetry, fixtures::record},
};

type Answer = (StatusCode, HeaderMap, Vec<u8>);

/// Answers in turn what it was told, then that all is well.
#[derive(Default)]
struct Collector {
    answers: Mutex<Vec<Answer>>,
    taken: Mutex<Vec<(HeaderMap, Bytes)>>,
}

impl Collector {
    async fn start(answers: Vec<Answer>) -> (Arc<Self>, String, JoinSet<()>) {
        let this = Arc::new(Self { answers: Mutex::new(answers), ..Self::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take)).with_state(this.clone());
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        (this, url, task)
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let plain = |(headers, body): &(HeaderMap, Bytes)| {
            let mut out = vec![];
            if headers.contains_key("content-encoding") {
                flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut out).unwrap();
            } else {
                out.extend_from_slice(body);
            }
            ExportTraceServiceRequest::decode(&out[..]).unwrap()
        };
        self.taken.lock().unwrap().iter().map(plain).collect()
    }
}

async fn take(
    State(collector): State<Arc<Collector>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    collector.taken.lock().unwrap().push((headers, body));
    let mut answers = collector.answers.lock().unwrap();
    if answers.is_empty() { (StatusCode::OK, HeaderMap::new(), vec![]) } else { answers.remove(0) }
}

fn refusal(status: u16, retry_after: Option<&str>) -> Answer {
    let headers = retry_after
        .map(|wait| (header::RETRY_AFTER, HeaderValue::from_str(wait).unwrap()))
        .into_iter()
        .collect();
    (StatusCode::from_u16(status).unwrap(), headers, b"not now".to_vec())
}

fn config(url: String) -> Config {
    Config {
        url,
        headers: [("x-team".parse().unwrap(), HeaderValue::from_static("a"))].into_iter().collect(),
        gzip: true,
        timeout: Duration::from_secs(5),
        interval: Duration::from_millis(20),
        bounds: Bounds { records: 2048, bytes: 32 << 20, batch: 512 },
        authority: None,
        names: vec![Set::GenAi],
        redaction: Redaction::new(&[], &[]).unwrap(),
        resource: vec![("service.name".into(), "test".into())],
        clock: || Timestamp::from_second(1_700_000_000).unwrap(),
    }
}

/// Sends so many records and tells what became of them: delivered, refused, undelivered.
async fn sent(config: Config, records: usize) -> (u64, u64, u64) {
    let otlp = super::super::Config { otlp: Some(config), ..Default::default() };
    let (telemetry, behind) = Telemetry::start(otlp).unwrap();
    (0..records).for_each(|_| telemetry.consume(&Arc::new(record())));
    let counted = || {
        let counts = telemetry.counts();
        let of = |word| counts.iter().find(|c| c.1 == word).unwrap().2;
        (of("delivered"), of("refused"), of("undelivered"))
    };
    let all = async {
        while counted().0 + counted().1 + counted().2 < records as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
    behind.flush().await;
    counted()
}

#[tokio::test]
async fn spans_arrive_compressed_with_their_headers_and_resource() {
    let (collector, url, _task) = Collector::start(vec![]).await;
    assert_eq!(sent(config(url), 3).await, (3, 0, 0));
    let headers = collector.taken.lock().unwrap()[0].0.clone();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(
        (&headers["content-encoding"], &headers["x-team"]),
        (&"gzip".parse().unwrap(), &"a".parse().unwrap())
    );
    let requests = collector.requests();
    let of = &requests[0].resource_spans[0];
    assert_eq!(of.resource.as_ref().unwrap().attributes[0].key, "service.name");
    assert_eq!(of.scope_spans[0].scope.as_ref().unwrap().name, "serinus");
    assert_eq!(of.scope_spans[0].spans.len(), 3, "one batch");
}

#[tokio::test]
async fn what_is_refused_for_now_is_tried_again_and_arrives_once() {
    let answers =
        [429, 502, 503, 504].map(|status| refusal(status, Some("0"))).into_iter().collect();
    let (collector, url, _task) = Collector::start(answers).await;
    assert_eq!(sent(config(url), 1).await, (1, 0, 0));
    assert_eq!(collector.requests().len(), 5);
}

#[tokio::test]
async fn what_is_refused_for_good_is_dropped_and_counted() {
    let (collector, url, _task) = Collector::start(vec![refusal(400, None)]).await;
    assert_eq!(sent(config(url), 2).await, (0, 2, 0));
    assert_eq!(collector.requests().len(), 1);
}

#[tokio::test]
async fn a_partial_success_counts_what_was_rejected() {
    let partial_success =
        Some(ExportTracePartialSuccess { rejected_spans: 2, error_message: "too old".into() });
    let answer = ExportTraceServiceResponse { partial_success }.encode_to_vec();
    let (_collector, url, _task) =
        Collector::start(vec![(StatusCode::OK, HeaderMap::new(), answer)]).await;
    assert_eq!(sent(config(url), 3).await, (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dead_collector_costs_a_bounded_queue_and_no_wait() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", nobody.local_addr().unwrap());
    drop(nobody);
    let bounds = Bounds { records: 10, bytes: 1 << 20, batch: 4 };
    let otlp = Config { bounds, ..config(url) };
    let config = super::super::Config { otlp: Some(otlp), ..Default::default() };
    let (telemetry, behind) = Telemetry::start(config).unwrap();
    (0..1000).for_each(|_| telemetry.consume(&Arc::new(record())));
    assert_eq!(telemetry.waiting(), 10);
    let dropped = telemetry.counts().iter().find(|c| c.1 == "queue_full").unwrap().2;
    assert_eq!(dropped, 990);
    tokio::time::sleep(Duration::from_secs(300)).await;
    behind.flush().await;
    let lost = telemetry.counts().iter().find(|c| c.1 == "undelivered").unwrap().2;
    assert_eq!(
        (telemetry.waiting(), lost),
        (0, 10),
        "each is given up after a minute, and counted"
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_process_waits_a_bounded_time_for_a_collector_that_hangs() {
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", hangs.local_addr().unwrap());
    let otlp = Config { timeout: Duration::from_secs(3600), ..config(url) };
    let config = super::super::Config { otlp: Some(otlp), ..Default::default() };
    let (telemetry, behind) = Telemetry::start(config).unwrap();
    (0..7).for_each(|_| telemetry.consume(&Arc::new(record())));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = tokio::time::Instant::now();
    behind.flush().await;
    assert!(began.elapsed() <= Duration::from_secs(6));
    let lost = telemetry.counts().iter().find(|c| c.1 == "undelivered").unwrap().2;
    assert_eq!(lost, 7);
}

#[tokio::test]
async fn what_waits_is_sent_when_the_process_ends() {
    let (collector, url, _task) = Collector::start(vec![]).await;
    let otlp = Config { interval: Duration::from_secs(3600), ..config(url) };
    let config = super::super::Config { otlp: Some(otlp), ..Default::default() };
    let (telemetry, behind) = Telemetry::start(config).unwrap();
    telemetry.consume(&Arc::new(record()));
    behind.flush().await;
    assert_eq!(collector.requests().len(), 1);
}

#[test]
fn long_conversations_are_sent_in_parts() {
    let content =
        Content { input: vec![b'x'; 1 << 20], output: "a ".repeat(1 << 19), ..Content::default() };
    let long = Arc::new(Record { content: Some(Box::new(content)), ..record() });
    let config = Config { gzip: false, ..config(String::new()) };
    let names = Names::new(&[Set::OpenInference]);
    let (mut left, mut parts) = (vec![long; 9], vec![]);
    while !left.is_empty() {
        let (body, spans, rest) = encode(left, &names, &config);
        assert!(body.len() < LARGEST_BODY + (4 << 20));
        parts.push(spans);
        left = rest;
    }
    assert!(parts.len() > 1 && parts.iter().sum::<u64>() == 9, "{parts:?}");
}

#[test]
fn an_address_that_is_none_says_what_to_do() {
    for url in ["collector:4318", "", "ftp://collector"] {
        let outbox = Arc::new(Outbox::new(Bounds { records: 1, bytes: 1, batch: 1 }));
        let error = Exporter::new(config(url.into()), outbox, Arc::default()).err().unwrap();
        assert!(error.to_string().contains("http://collector:4318"), "{error}");
    }
}

#[test]
#[ignore = "prints what spans cost: cargo test --release --lib costs -- --ignored --nocapture"]
fn what_a_span_costs() {
    let outbox = Outbox::new(Bounds { records: 1 << 20, bytes: 1 << 30, batch: 512 });
    let records: Vec<Arc<Record>> = (0..512).map(|_| Arc::new(record())).collect();
    let began = std::time::Instant::now();
    (0..200).for_each(|_| records.iter().for_each(|record| outbox.put(record)));
    let each = |began: std::time::Instant, count: f64| began.elapsed().as_secs_f64() * 1e9 / count;
    println!("put into the queue: {:.0} ns", each(began, 200.0 * 512.0));
    for (sets, gzip) in [
        (vec![Set::GenAi], false),
        (vec![Set::GenAi], true),
        (vec![Set::GenAi, Set::OpenInference], true),
    ] {
        let names = Names::new(&sets);
        let config = Config { gzip, ..config(String::new()) };
        let began = std::time::Instant::now();
        let mut bytes = 0;
        for _ in 0..50 {
            bytes = encode(records.clone(), &names, &config).0.len();
        }
        let nanoseconds = each(began, 50.0 * 512.0);
        println!("encoded as {sets:?}, gzip {gzip}: {nanoseconds:.0} ns, {} bytes", bytes / 512);
    }
}
