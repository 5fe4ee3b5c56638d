//! Calling a model: one attempt up to the point where the answer can be promised.

use std::{pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use reqwest::{StatusCode, header};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::flight::Flight;
use crate::openai::{answer::Answer, error::ApiError, sse::Scanner};

/// The largest JSON answer that is read.
const LARGEST_ANSWER: usize = 16 << 20;

/// The bytes of an answer as they come.
pub(super) type Chunks = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// An answer that can be promised to the application.
pub(super) enum Started {
    /// Complete.
    Whole(Bytes),
    /// A stream whose first content has arrived; what was read so far, and the rest.
    Stream { held: Bytes, rest: Chunks, scanner: Scanner },
}

/// An attempt that failed before anything was sent to the application.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the application is told when nothing else answers.
    pub error: ApiError,
    /// The model's own answer, when it gave one.
    pub body: Option<(StatusCode, Bytes)>,
    /// The status says that the request itself is at fault.
    pub client_fault: bool,
}

impl Failure {
    fn new(status: u16, code: &'static str, message: String) -> Self {
        Self { error: ApiError::new(status, code, message), body: None, client_fault: false }
    }
}

/// The client for all models: pooled connections, no proxy magic, no redirects.
pub(super) fn client() -> reqwest::Result<reqwest::Client> {
    // Fails only when a provider was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .build()
}

/// Sends the request and waits until the answer can be promised: the whole of a JSON
/// answer, the first content of a stream.
pub(super) async fn call(
    client: &reqwest::Client,
    flight: &mut Flight,
    body: Vec<u8>,
) -> Result<Started, Failure> {
    let target = flight.target.clone();
    let patience = if flight.streamed { target.first_token_timeout } else { target.timeout };
    let deadline = Instant::now() + patience;
    let mut request = client
        .post(&target.url)
        .header(header::CONTENT_TYPE, "application/json")
        .timeout(target.timeout)
        .body(body);
    if let Some(key) = &target.api_key {
        request = request.bearer_auth(key);
    }
    let late = || {
        Failure::new(
            504,
            "upstream_timeout",
            format!("the model did not answer within {patience:?}"),
        )
    };
    let response = timeout_at(deadline, request.send())
        .await
        .map_err(|_| late())?
        .map_err(|e| unreachable_model(&e))?;
    let status = response.status();
    flight.status = Some(status.as_u16());
    let is_stream = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let chunks: Chunks = Box::pin(response.bytes_stream());
    if status.is_success() && flight.streamed && is_stream {
        return timeout_at(deadline, first_content(flight, chunks)).await.map_err(|_| late())?;
    }
    let bytes = timeout_at(deadline, whole(chunks)).await.map_err(|_| late())??;
    if !status.is_success() {
        return Err(refused(status, bytes));
    }
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
        Failure::new(502, "upstream_invalid", format!("the model's answer is not JSON: {e}"))
    })?;
    flight.answer = Answer::from_json(&value);
    Ok(Started::Whole(bytes))
}

fn unreachable_model(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        Failure::new(504, "upstream_timeout", "the model did not answer in time".to_owned())
    } else {
        Failure::new(502, "upstream_unreachable", "the model can not be reached".to_owned())
    }
}

fn refused(status: StatusCode, body: Bytes) -> Failure {
    let overloaded = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    Failure {
        error: ApiError::new(502, "upstream_error", format!("the model answered {status}")),
        client_fault: status.is_client_error() && !overloaded,
        body: Some((status, body)),
    }
}

async fn whole(mut chunks: Chunks) -> Result<Bytes, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| unreachable_model(&e))?;
        if bytes.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Failure::new(
                502,
                "upstream_too_large",
                "the model's answer is too large".to_owned(),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// Reads until the stream says something: until then the answer may still come from
/// another variant.
async fn first_content(flight: &mut Flight, mut chunks: Chunks) -> Result<Started, Failure> {
    let mut scanner = Scanner::default();
    let mut held = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| unreachable_model(&e))?;
        held.extend_from_slice(&chunk);
        let mut content = false;
        scanner.feed(&chunk, |data| content |= flight.answer.absorb_event(data));
        if content {
            flight.first_token();
        }
        if content || flight.answer.complete() || held.len() > LARGEST_ANSWER {
            return Ok(Started::Stream { held: held.freeze(), rest: chunks, scanner });
        }
    }
    Err(Failure::new(
        502,
        "upstream_broken",
        "the model's stream ended before it said anything".to_owned(),
    ))
}
