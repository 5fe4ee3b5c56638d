//! Calling a model: one attempt up to the point where the answer can be promised.

use std::{pin::Pin, time::Duration};

use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::{backends::Taken, clients, flight::Flight, prepare::Asked};
use crate::openai::{
    alike::Reader,
    answer::Answer,
    error::ApiError,
    retry_after::retry_after,
    sse::{Events, Fate},
};

/// The largest JSON answer that is read.
const LARGEST_ANSWER: usize = 64 << 20;
/// The longest that a stream may go on without content before it is passed on as it is.
const LONGEST_START: usize = 1 << 20;
/// The reason why an answer ended, its usage, the mark of the end, the end itself.
const LAST_WORDS: usize = 4;
/// How long the end of a connection is waited for when the answer was complete, so that the
/// connection can be used again.
const AFTER_THE_END: Duration = Duration::from_secs(1);

/// An answer that can be promised to the application.
pub(super) enum Started {
    /// Complete.
    Whole(Bytes),
    /// A stream whose first content has arrived.
    Stream(Box<Stream>),
}

/// A stream under way: what was read and not taken yet, and the rest.
pub(super) struct Stream {
    rest: Incoming,
    /// What was read ahead of the rest: how it ended.
    end: Option<Option<hyper::Error>>,
    events: Events,
    reader: Reader,
    /// The application did not ask for an event that carries nothing but usage.
    hides_usage: bool,
    /// The event in which the model says that it failed.
    failed: Option<Bytes>,
    patience: Patience,
}

/// How long a stream is waited for. Its timer is set once, and again when it fires too
/// early: with each event, only a time is noted.
struct Patience {
    timer: Pin<Box<Sleep>>,
    /// Since when the next bytes are waited for.
    since: Instant,
    between: Duration,
    /// When the whole must have come.
    deadline: Instant,
}

impl Patience {
    fn new(between: Duration, deadline: Instant) -> Self {
        let timer = Box::pin(sleep_until(deadline));
        Self { timer, since: Instant::now(), between, deadline }
    }

    fn due(&self) -> Instant {
        self.deadline.min(self.since + self.between)
    }

    /// Ends when it is lost.
    async fn lost(&mut self) {
        loop {
            let due = self.due();
            if due < self.timer.deadline() {
                self.timer.as_mut().reset(due);
            }
            self.timer.as_mut().await;
            if self.timer.deadline() >= due {
                return;
            }
            self.timer.as_mut().reset(due);
        }
    }
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
    /// Asking the same again may help, and does nothing twice.
    pub repeatable: bool,
    /// The model has done nothing: it was not reached, or refused.
    pub untouched: bool,
    /// There was no room at the backend.
    pub crowded: bool,
    /// How long the model wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure before the model was asked.
    pub(super) fn of(error: ApiError) -> Self {
        Self {
            error,
            body: None,
            client_fault: false,
            repeatable: false,
            untouched: true,
            crowded: false,
            retry_after: None,
        }
    }

    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { untouched: false, ..Self::of(ApiError::new(status, code, message)) }
    }
}

/// Sends the request and waits until the answer can be promised: the whole of a JSON
/// answer, the first content of a stream.
pub(super) async fn call(
    flight: &mut Flight,
    asked: &Asked,
    body: Bytes,
) -> Result<Started, Failure> {
    let target = flight.target.clone();
    let began = Instant::now();
    let patience = if flight.streamed { target.first_token_timeout } else { target.timeout };
    let deadline = began + patience;
    let late = || {
        Failure::new(
            504,
            "upstream_timeout",
            format!("the model did not answer within {patience:?}"),
        )
    };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    let now = flight.now_millis();
    flight.pod = target.places.pick(now);
    *request.uri_mut() = at(target.uri(asked.operation), flight.pod.as_ref());
    *request.headers_mut() = target.headers().clone();
    flight.passed.apply(request.headers_mut());
    let response = timeout_at(deadline, target.client().here().request(request))
        .await
        .map_err(|_| late())?
        .map_err(|e| {
            if let Some(pod) = flight.pod.as_ref().filter(|_| e.is_connect()) {
                pod.avoid(now);
            }
            unreachable_model(&e)
        })?;
    let (head, rest) = response.into_parts();
    flight.status = Some(head.status.as_u16());
    flight.headers = passed_back(&head.headers, &flight.request_id);
    let is_stream = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    if head.status.is_success() && flight.streamed && is_stream {
        let (events, reader) = (Events::default(), Reader::new(flight.operation));
        let hides_usage = asked.hides_usage();
        let end = began + target.timeout;
        let patience = Patience::new(target.between_tokens_timeout, end);
        let stream =
            Stream { rest, end: None, events, reader, hides_usage, failed: None, patience };
        return timeout_at(deadline, first_content(flight, stream)).await.map_err(|_| late())?;
    }
    let bytes = timeout_at(deadline, whole(rest, LARGEST_ANSWER)).await.map_err(|_| late())??;
    if !head.status.is_success() {
        return Err(refused(head.status, &head.headers, bytes, flight.clock()));
    }
    flight.answer = Answer::whole(asked.operation, &bytes).map_err(|e| {
        Failure::new(502, "upstream_invalid", format!("the model's answer is not JSON: {e}"))
    })?;
    if flight.answer.tool_call {
        flight.calls(&bytes);
    }
    if flight.answer.failed {
        let message = "the model says in its answer that it failed";
        return Err(Failure {
            body: Some((StatusCode::BAD_GATEWAY, bytes)),
            ..Failure::new(502, "upstream_failed", message)
        });
    }
    Ok(Started::Whole(bytes))
}

/// The address of an operation, at a certain pod.
fn at(uri: &Uri, pod: Option<&Taken>) -> Uri {
    let Some(pod) = pod else { return uri.clone() };
    let mut parts = uri.clone().into_parts();
    parts.authority = Some(pod.authority().clone());
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

fn unreachable_model(error: &clients::Error) -> Failure {
    // Only what never reached the model is sent again without asking anybody.
    let repeatable = error.is_connect();
    let failure =
        Failure::new(502, "upstream_unreachable", "the model can not be reached".to_owned());
    tracing::debug!(%error, "the model can not be reached");
    Failure { repeatable, untouched: repeatable, ..failure }
}

fn broken(error: &hyper::Error) -> Failure {
    tracing::debug!(%error, "the model's answer broke off");
    Failure::new(502, "upstream_broken", "the model's answer broke off")
}

fn refused(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    clock: fn() -> Timestamp,
) -> Failure {
    // The key is ours, and so is the bill: no application can cause or mend this, and one
    // that is told 401 looks at its own key. What the model says may quote ours.
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED) {
        let message = format!(
            "the model answered {status} to this gateway's own API key: tell who runs the gateway"
        );
        return Failure { untouched: true, ..Failure::new(502, "upstream_unauthorized", message) };
    }
    let overloaded = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    Failure {
        client_fault: status.is_client_error() && !overloaded,
        repeatable: matches!(status.as_u16(), 429 | 502 | 503 | 504),
        untouched: (status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT)
            || status == StatusCode::SERVICE_UNAVAILABLE,
        retry_after: retry_after(|name| headers.get(name)?.to_str().ok(), clock),
        body: Some((status, body)),
        ..Failure::new(502, "upstream_error", format!("the model answered {status}"))
    }
}

async fn whole(mut rest: Incoming, largest: usize) -> Result<Bytes, Failure> {
    let mut first = Bytes::new();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut rest).await {
        let chunk = chunk.map_err(|e| broken(&e))?;
        if first.len() + bytes.len() + chunk.len() > largest {
            return Err(Failure::new(502, "upstream_too_large", "the model's answer is too large"));
        }
        // Most answers come in one piece, which needs no copy.
        if first.is_empty() && bytes.is_empty() {
            first = chunk;
            continue;
        }
        if bytes.is_empty() {
            bytes.extend_from_slice(&std::mem::take(&mut first));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(if bytes.is_empty() { first } else { bytes.freeze() })
}

async fn next_chunk(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                // Trailers say nothing to us.
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Reads until the stream says something: until then the answer may still come from
/// another variant.
async fn first_content(flight: &mut Flight, mut stream: Stream) -> Result<Started, Failure> {
    let mut read = 0;
    while let Some(chunk) = next_chunk(&mut stream.rest).await {
        let chunk = chunk.map_err(|e| broken(&e))?;
        read += chunk.len();
        let content = stream.read(chunk, flight);
        if flight.answer.failed && !content {
            let message = "the model's stream began with an error";
            let body = stream.failed.map(|body| (StatusCode::BAD_GATEWAY, body));
            return Err(Failure { body, ..Failure::new(502, "upstream_failed", message) });
        }
        if content || flight.answer.complete() || read > LONGEST_START {
            return Ok(Started::Stream(Box::new(stream)));
        }
    }
    let message = "the model's stream ended before it said anything";
    Err(Failure::new(502, "upstream_broken", message))
}

/// What comes next in a stream.
pub(super) enum Next {
    /// Some bytes, read already.
    Chunk(Bytes),
    /// It is complete.
    End,
    /// It broke off.
    Broken,
    /// It took too long, or says nothing any more.
    Late,
    /// It has ended after it said that it failed, which has gone on.
    Failed,
}

impl Stream {
    /// Reads a chunk; says whether it carried content.
    fn read(&mut self, chunk: Bytes, flight: &mut Flight) -> bool {
        let hides_usage = self.hides_usage;
        let (mut content, reader, failed) = (false, &mut self.reader, &mut self.failed);
        self.events.feed(chunk, |data| {
            let called = std::mem::take(&mut flight.answer.tool_call);
            let carried = reader.event(&mut flight.answer, data);
            if flight.answer.tool_call {
                flight.calls(data);
            }
            flight.answer.tool_call |= called;
            if flight.answer.failed && failed.is_none() {
                *failed = Some(Bytes::copy_from_slice(data));
            }
            content |= carried.content;
            if hides_usage && carried.only_usage { Fate::Drop } else { Fate::Forward }
        });
        if content {
            flight.first_token();
        }
        content
    }

    /// Reads what came together with the last words: usage, the mark of the end, the end
    /// itself. They go on in one write, where each would take one of its own.
    async fn gather(&mut self, flight: &mut Flight) {
        for _ in 0..LAST_WORDS {
            // Who reads the connection hands over one piece at a time.
            tokio::task::yield_now().await;
            match next_chunk(&mut self.rest).now_or_never() {
                Some(Some(Ok(chunk))) => {
                    self.read(chunk, flight);
                }
                Some(Some(Err(error))) => self.end = Some(Some(error)),
                Some(None) => self.end = Some(None),
                None => return,
            }
            if self.end.is_some() {
                return;
            }
        }
    }

    /// What is left when nothing more comes.
    fn last(&mut self) -> Next {
        self.events.end();
        self.events.take().map_or(Next::End, Next::Chunk)
    }

    /// Waits for the next bytes and reads them.
    pub(super) async fn next(&mut self, flight: &mut Flight) -> Next {
        loop {
            if let Some(bytes) = self.events.take() {
                return Next::Chunk(bytes);
            }
            self.patience.since = Instant::now();
            let chunk = match self.end.take() {
                Some(end) => end.map(Err),
                None => tokio::select! {
                    biased;
                    chunk = next_chunk(&mut self.rest) => chunk,
                    () = self.patience.lost() => match &flight.answer {
                        answer if answer.failed => return Next::Failed,
                        answer if answer.done => return self.last(),
                        _ => return Next::Late,
                    },
                },
            };
            match chunk {
                Some(Ok(chunk)) => {
                    self.read(chunk, flight);
                    if flight.answer.complete() {
                        self.gather(flight).await;
                    }
                    if flight.answer.done {
                        self.patience.between = self.patience.between.min(AFTER_THE_END);
                    }
                }
                None | Some(Err(_)) if flight.answer.failed => return Next::Failed,
                // However the connection ends, the answer had said that it was complete.
                Some(Err(_)) if flight.answer.done => return self.last(),
                None if flight.answer.complete() => return self.last(),
                None | Some(Err(_)) => return Next::Broken,
            }
        }
    }
}

/// Headers that say something to the application.
const PASSED_BACK: [&str; 7] = [
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-request-id",
    "request-id",
    "openai-processing-ms",
    "openai-version",
];

/// `ours` is what clients show as the request's id when the model tells none.
fn passed_back(headers: &HeaderMap, ours: &str) -> Vec<(header::HeaderName, HeaderValue)> {
    let ours = (!headers.contains_key("x-request-id"))
        .then(|| HeaderValue::from_str(ours).ok())
        .flatten()
        .map(|id| (header::HeaderName::from_static("x-request-id"), id));
    headers
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            PASSED_BACK.contains(&name) || name.starts_with("x-ratelimit-")
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .chain(ours)
        .collect()
}
