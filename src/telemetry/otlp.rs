//! Sends spans by OTLP/HTTP: protobuf, one `ExportTraceServiceRequest` a batch.
//!
//! Own code, and not OpenTelemetry's SDK: its spans are objects that live while the request
//! runs, with ids and a clock of their own, while here a span is made behind the answer
//! from a record that has both. What remains of an SDK is a queue, a retry and a POST.
//!
//! - A collector that is slow or gone costs a bounded queue and no request's time.
//! - What it refuses for now (429, 502, 503, 504, no connection) is tried again, as late as
//!   it asks for, else after 1 s, 2 s, 4 s, …; what it refuses for good is dropped.
//! - Everything that is not delivered is counted by its reason.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode, header};
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    names::{Names, Set},
    outbox::{Bounds, Outbox},
    protobuf::{self, Field, Message},
    redact::Redaction,
    span::{self, text_attribute},
};
use crate::{
    api::url::{has_credentials, shown},
    audit::{record::Record, secrets::Secrets},
    openai::retry_after::retry_after,
};

/// Collectors take at least this much in one request; larger batches are sent in parts.
const LARGEST_BODY: usize = 4 << 20;
/// After so long, a batch that nobody takes is dropped.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a collector that does not answer is told of in the log.
const REMIND: Duration = Duration::from_secs(60);

/// Where spans go, and how.
pub struct Config {
    /// The whole address, with its path.
    pub url: String,
    /// Sent with each request.
    pub headers: HeaderMap,
    /// Whether bodies are compressed.
    pub gzip: bool,
    /// The longest that one request may take.
    pub timeout: Duration,
    /// How long a span waits for others.
    pub interval: Duration,
    /// How much may wait.
    pub bounds: Bounds,
    /// A certificate authority to trust, in PEM.
    pub authority: Option<Vec<u8>>,
    /// Which names attributes have.
    pub names: Vec<Set>,
    /// What is taken out of what was said.
    pub redaction: Redaction,
    /// What describes this process.
    pub resource: Vec<(String, String)>,
    /// The wall clock, for dates by which collectors ask to wait.
    pub clock: fn() -> Timestamp,
}

/// Why spans can not be sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The HTTP client could not be set up.
    #[error("the client of the collector could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The address is none.
    #[error("{0} is no address of a collector: name one like http://collector:4318")]
    Url(String),
    /// The address holds a user or a password.
    #[error(
        "the collector's address holds a user or a password, which everybody sees who sees the \
         command line: set OTEL_EXPORTER_OTLP_HEADERS=authorization=Basic%20… from a Secret, with \
         user:password in base64"
    )]
    Credentials,
}

/// What became of spans so far.
#[derive(Debug, Default)]
pub struct Sent {
    /// Taken by the collector.
    pub delivered: AtomicU64,
    /// Refused by the collector, for good.
    pub refused: AtomicU64,
    /// The collector could not be reached, or refused for too long.
    pub undelivered: AtomicU64,
}

/// The task that sends spans.
pub(super) struct Exporter {
    client: reqwest::Client,
    config: Arc<Config>,
    names: Arc<Names>,
    outbox: Arc<Outbox>,
    sent: Arc<Sent>,
    /// What is sent with each request.
    secrets: Secrets,
    failing: Option<Instant>,
}

impl Exporter {
    pub(super) fn new(
        config: Config,
        outbox: Arc<Outbox>,
        sent: Arc<Sent>,
    ) -> Result<Self, OtlpError> {
        if has_credentials(&config.url) {
            return Err(OtlpError::Credentials);
        }
        let url = config.url.parse::<reqwest::Url>().ok();
        if url.is_none_or(|url| !["http", "https"].contains(&url.scheme())) {
            return Err(OtlpError::Url(shown(&config.url).into()));
        }
        // Fails only when a provider was installed before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .timeout(config.timeout)
            .default_headers(config.headers.clone())
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = &config.authority {
            client = client.tls_certs_merge([reqwest::Certificate::from_pem(pem)?]);
        }
        let names = Arc::new(Names::new(&config.names));
        let (client, config) = (client.build()?, Arc::new(config));
        let values = config.headers.values().filter_map(|value| value.to_str().ok());
        let values = values.flat_map(|value| [Some(value), value.split_once(' ').map(|two| two.1)]);
        let secrets = Secrets::new(values.flatten());
        Ok(Self { client, config, names, outbox, sent, secrets, failing: None })
    }

    /// Sends until `stop`, then what is under way and what waits, for at most `flush`.
    pub(super) async fn run(mut self, stop: CancellationToken, flush: Duration) {
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(flush).await;
        };
        let mut late = std::pin::pin!(late);
        loop {
            let ending = tokio::select! {
                () = stop.cancelled() => true,
                () = self.outbox.batch(self.config.interval) => false,
            };
            tokio::select! {
                () = self.send_waiting() => {}
                () = &mut late => break,
            }
            if ending {
                break;
            }
        }
        let left = self.outbox.len() as u64;
        self.sent.undelivered.fetch_add(left, Ordering::Relaxed);
    }

    async fn send_waiting(&mut self) {
        loop {
            let mut batch = self.outbox.take();
            if batch.is_empty() {
                return;
            }
            let mut left = Lost { sent: self.sent.clone(), spans: batch.len() as u64 };
            while !batch.is_empty() {
                let (names, config) = (self.names.clone(), self.config.clone());
                // Redaction and compression of long conversations would hold up requests.
                let encoded = spawn_blocking(move || encode(batch, &names, &config)).await;
                // Fails only when the runtime ends.
                let Ok((body, spans, rest)) = encoded else { return };
                batch = rest;
                left.spans = batch.len() as u64;
                self.deliver(body.into(), spans).await;
            }
        }
    }

    async fn deliver(&mut self, body: bytes::Bytes, spans: u64) {
        let mut lost = Lost { sent: self.sent.clone(), spans };
        let (began, mut pause) = (Instant::now(), Duration::from_secs(1));
        loop {
            let problem = match self.post(body.clone()).await {
                Ok(rejected) => {
                    lost.spans = 0;
                    let rejected = rejected.min(spans);
                    self.sent.refused.fetch_add(rejected, Ordering::Relaxed);
                    self.sent.delivered.fetch_add(spans - rejected, Ordering::Relaxed);
                    if self.failing.take().is_some() {
                        tracing::info!("spans are delivered again");
                    }
                    return;
                }
                Err(problem) => problem,
            };
            self.warn(&problem.what);
            let Some(wait) = problem.retry else {
                lost.spans = 0;
                self.sent.refused.fetch_add(spans, Ordering::Relaxed);
                return;
            };
            // Not all gateways at once.
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            let wait = wait.unwrap_or(jittered).min(LONGEST_RETRY);
            if began.elapsed() + wait > LONGEST_RETRY {
                return;
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn post(&self, body: bytes::Bytes) -> Result<u64, Problem> {
        let mut request = self
            .client
            .post(&self.config.url)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(body);
        if self.config.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        let response = request.send().await.map_err(Problem::unreachable)?;
        let status = response.status();
        let headers = response.headers();
        let wait = retry_after(|name| headers.get(name)?.to_str().ok(), self.config.clock);
        let body = response.bytes().await.map_err(Problem::unreachable)?;
        if status.is_success() {
            return Ok(rejected(&body));
        }
        // Nor does the log hold a key that the collector quotes, or one of its address.
        let text = self.secrets.text(&String::from_utf8_lossy(&body)).into_owned();
        let text: String = text.chars().take(200).collect();
        let address = self.config.url.split(['?', '#']).next().unwrap_or_default();
        let what = format!("{address} answered {status}: {text}");
        let retry = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        Err(Problem { what, retry: retry.then_some(wait) })
    }

    fn warn(&mut self, problem: &str) {
        if self.failing.is_none_or(|since| since.elapsed() >= REMIND) {
            self.failing = Some(Instant::now());
            tracing::warn!("spans are not delivered: {problem}");
        }
    }
}

/// Spans on their way. Those that are not settled when it is dropped were not delivered.
struct Lost {
    sent: Arc<Sent>,
    spans: u64,
}

impl Drop for Lost {
    fn drop(&mut self) {
        self.sent.undelivered.fetch_add(self.spans, Ordering::Relaxed);
    }
}

struct Problem {
    what: String,
    /// Whether to try again, and when, if the collector says so.
    retry: Option<Option<Duration>>,
}

impl Problem {
    fn unreachable(error: reqwest::Error) -> Self {
        let mut what = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            what = format!("{what}: {cause}");
            source = cause.source();
        }
        Self { what, retry: Some(None) }
    }
}

/// How many spans an `ExportTraceServiceResponse` says were rejected.
fn rejected(body: &[u8]) -> u64 {
    let Some(Field::Bytes(partial_success)) = protobuf::read(body, 1) else { return 0 };
    match protobuf::read(partial_success, 1) {
        Some(Field::Uint(spans)) => spans,
        _ => 0,
    }
}

/// An `ExportTraceServiceRequest` of as many records as fit, how many spans it has, and
/// the records that are left.
fn encode(
    records: Vec<Arc<Record>>,
    names: &Names,
    config: &Config,
) -> (Vec<u8>, u64, Vec<Arc<Record>>) {
    let mut records = records.into_iter();
    let mut body = Message::with_capacity(records.len() * 1536);
    let mut spans = 0;
    let start = body.len();
    body.message(1, |of_resource| {
        of_resource.message(1, |resource| {
            for (name, value) in &config.resource {
                text_attribute(resource, 1, name, value);
            }
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.string(1, "serinus");
                scope.string(2, env!("CARGO_PKG_VERSION"));
            });
            while of_scope.len() - start < LARGEST_BODY {
                let Some(record) = records.next() else { break };
                span::write(of_scope, 2, &record, names, &config.redaction);
                spans += 1;
            }
        });
    });
    let plain = body.into_bytes();
    let body = if config.gzip { gzip(&plain).unwrap_or_default() } else { plain };
    (body, spans, records.collect())
}

fn gzip(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    // The fastest: names repeat in each span, which any level finds.
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 6), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}

#[cfg(test)]
mod tests;
