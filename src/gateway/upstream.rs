//! Calling a model: one attempt up to the point where the answer can be promised.

mod quotes;
mod stream;

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

pub(super) use self::{
    quotes::{SECRET_CODE, quotes_a_secret},
    stream::{Next, Stream},
};
use super::{
    backends::Taken,
    budget::{ANSWER_COPIES, CLIENT_SHARE, Held, SMALL},
    clients::{self, Answered, Outgoing, Unread},
    fault::{Fault, MODEL_GONE},
    flight::Flight,
    prepare::Asked,
    renderer::Refused,
};
use crate::{
    audit::secrets::Secrets,
    openai::{
        Operation, answer::Answer, complaint::Complaint, error::ApiError, retry_after::retry_after,
        sse::is_a_stream,
    },
    signals::addresses,
};

/// The largest JSON answer that is read.
const LARGEST_ANSWER: usize = 64 << 20;
/// So long the rest of an answer is read for which there is no room, to see how large it is.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// By so many bytes it has shown whether an answer is a stream.
const LONGEST_BEGINNING: usize = 64 << 10;

/// An answer that can be promised to the application.
pub(super) enum Started {
    /// Complete.
    Whole(Bytes),
    /// A stream whose first content has arrived.
    Stream(Box<Stream>),
}

/// An attempt that failed before anything was sent to the application.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the application is told when nothing else answers.
    pub error: ApiError,
    /// The model's own answer, when it gave one.
    pub body: Option<(StatusCode, Bytes)>,
    /// The request itself is at fault.
    pub client_fault: bool,
    /// The prompt is at fault, whichever backend it is for.
    pub prompt_fault: bool,
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
    /// What could not be prepared.
    pub(super) fn before(refused: Refused) -> Self {
        match refused {
            Refused::Request(error) => Self { client_fault: true, ..Self::of(error) },
            Refused::Prompt(error) => Self { prompt_fault: true, ..Self::of(error) },
            Refused::Room(error) => Self { crowded: true, ..Self::of(error) },
        }
    }

    /// A failure before the model was asked.
    pub(super) fn of(error: ApiError) -> Self {
        Self {
            error,
            body: None,
            client_fault: false,
            prompt_fault: false,
            repeatable: false,
            untouched: true,
            crowded: false,
            retry_after: None,
        }
    }

    /// The answer spells out a secret of ours.
    fn secret() -> Self {
        Self { untouched: false, ..Self::of(quotes_a_secret()) }
    }

    /// The same failure, of which the application gets nothing that the model said.
    fn without_words(self) -> Self {
        Self { error: quotes_a_secret(), body: None, ..self }
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
    let now = flight.now_millis();
    flight.pod = target.places.pick(now);
    let uri = at(target.uri(asked.operation), flight.pod.as_ref());
    let passed = &flight.passed;
    let headers = || {
        let mut headers = target.headers().clone();
        passed.apply(&mut headers, &target.origin);
        headers
    };
    let alone = asked.request.leaves_something(asked.operation);
    let request = Outgoing { method: Method::POST, uri: &uri, headers, body, alone };
    let response = timeout_at(deadline, target.client().send(&request))
        .await
        .map_err(|_| late())?
        .map_err(|e| {
            if let Some(pod) = flight.pod.as_ref().filter(|_| e.is_connect()) {
                pod.avoid(now);
            }
            if let Some(refused) = addresses::refused(&e) {
                flight.refused_address(refused);
            } else if let Some(what) = e.no_http() {
                flight.no_http(what, &e);
            } else if e.is_connect() {
                flight.unreachable(&e);
            }
            unreachable_model(&e)
        })?;
    let (head, rest) = response.into_parts();
    // What the server quotes of our request is nobody's business, from here on.
    let secrets = target.secrets(head.status.is_success());
    let mut rest = rest.without(secrets);
    flight.status = Some(head.status.as_u16());
    // Nothing of a header is a model's words: there, every header of ours is looked for.
    flight.headers = passed_back(&head.headers, &flight.request_id, target.secrets(false));
    let wait = retry_after(|name| head.headers.get(name)?.to_str().ok(), flight.clock());
    let mut first = Bytes::new();
    if head.status.is_success() && flight.streamed {
        let beginning = timeout_at(deadline, beginning(&mut rest));
        first = beginning.await.map_err(|_| late())??;
        if is_stream(&head.headers, &first) {
            let end = target.stream_timeout.map(|longest| began + longest);
            let stream = Stream::new(flight, asked, rest, wait, end);
            let started = timeout_at(deadline, stream.start(flight, first)).await;
            return started.map_err(|_| late())?.map(Started::Stream);
        }
    }
    let held = flight.holds();
    let answer = Gathered::new(held, LARGEST_ANSWER);
    let bytes = timeout_at(deadline, whole(first, rest, answer, deadline)).await;
    let bytes = bytes.map_err(|_| late())?.inspect_err(|failure| {
        flight.crowded |= failure.crowded;
    })?;
    if !head.status.is_success() {
        if !(300..600).contains(&head.status.as_u16()) {
            return Err(no_answer(head.status));
        }
        let complaint = Complaint::read(&bytes);
        let failure = refused(head.status, &complaint, wait, Some(bytes.clone()));
        // What the application gets of it, it may put together.
        let is_secret = spells_a_secret(flight, &bytes) && failure.body.is_some();
        return Err(if is_secret { failure.without_words() } else { failure });
    }
    answered(flight, bytes, wait).map_err(|failure| *failure)
}

/// Reads an answer that came as a whole.
fn answered(
    flight: &mut Flight,
    bytes: Bytes,
    wait: Option<Duration>,
) -> Result<Started, Box<Failure>> {
    let none = |why: &str| {
        let message = format!("the model's answer {why}");
        Box::new(Failure { repeatable: true, ..Failure::new(502, "upstream_invalid", message) })
    };
    let answer = Answer::whole(flight.operation, &bytes).map_err(|e| none(&e.to_string()))?;
    flight.answer = answer;
    // Before anything of it is kept, whatever else is wrong with it. Vectors are numbers.
    let has_words = flight.operation != Operation::Embeddings || flight.answer.failed;
    let is_secret = has_words && spells_a_secret(flight, &bytes);
    if flight.answer.failed {
        let failure = told(flight, Some(&bytes), wait);
        return Err(Box::new(if is_secret { failure.without_words() } else { failure }));
    }
    if is_secret {
        return Err(Box::new(Failure::secret()));
    }
    if flight.answer.missing {
        return Err(none(match flight.operation {
            Operation::Chat | Operation::Completions => "has no choices",
            Operation::Embeddings => {
                "has no vectors, or some that can not be used: no numbers, or not as many in each"
            }
            Operation::Responses => "has no output",
        }));
    }
    if let Some(wanted) = flight.wanted.filter(|_| flight.operation == Operation::Embeddings)
        && flight.answer.vectors != wanted
    {
        return Err(none(&format!("has {} vectors for {wanted} inputs", flight.answer.vectors)));
    }
    if flight.streamed {
        return Err(none("is no stream, which was asked for"));
    }
    if flight.answer.tool_call {
        flight.calls(&bytes);
    }
    if flight.answer.unread {
        flight.not_understood(&bytes);
    }
    Ok(Started::Whole(bytes))
}

/// Whether an answer that came as a whole spells out a secret of ours.
fn spells_a_secret(flight: &mut Flight, json: &[u8]) -> bool {
    flight.is_withheld = quotes::are_spelled(flight.target.secrets(true), json);
    flight.is_withheld
}

/// The first bytes of an answer, as many as show what it is.
async fn beginning(rest: &mut Answered) -> Result<Bytes, Failure> {
    let mut first = Bytes::new();
    while let Some(chunk) = next_chunk(rest).await {
        let chunk = chunk.map_err(|e| broken(&e))?;
        first = if first.is_empty() { chunk } else { [first, chunk].concat().into() };
        if is_a_stream(&first).is_some() || first.len() > LONGEST_BEGINNING {
            break;
        }
    }
    Ok(first)
}

/// Whether an answer is a stream of events: by what it begins with, whatever it is called.
fn is_stream(headers: &HeaderMap, first: &[u8]) -> bool {
    is_a_stream(first).unwrap_or(false) || {
        let called = headers.get(header::CONTENT_TYPE).is_some_and(|value| {
            let essence = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
            essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
        });
        let begins = first.trim_ascii_start().first();
        called && !begins.is_some_and(|byte| b"{[<\"".contains(byte))
    }
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
    let failure = match error.no_http() {
        Some(what) => {
            let message = format!("the model was reached, and its answer {what}");
            Failure::new(502, "upstream_invalid", message)
        }
        None => Failure::new(502, "upstream_unreachable", "the model can not be reached"),
    };
    tracing::debug!(%error, "{}", failure.error.message);
    Failure { repeatable, untouched: repeatable, ..failure }
}

fn broken(error: &Unread) -> Failure {
    tracing::debug!(%error, "the model's answer can not be read to its end");
    match error {
        Unread::Connection(_) => {
            Failure::new(502, "upstream_broken", "the model's answer broke off")
        }
        // It was not asked to compress.
        Unread::Unreadable(_) | Unread::Broken(_) => {
            let message = format!("the model's answer can not be decoded: {error}");
            Failure::new(502, "upstream_invalid", message)
        }
    }
}

/// An answer with a status that says something to whoever speaks HTTP (1xx), or nothing (from
/// 600): no application is to make sense of it.
fn no_answer(status: StatusCode) -> Failure {
    let message = format!("the model answered with the status {}, which is none", status.as_u16());
    Failure::new(502, "upstream_invalid", message)
}

/// An answer with the status of an error.
fn refused(
    status: StatusCode,
    complaint: &Complaint,
    wait: Option<Duration>,
    body: Option<Bytes>,
) -> Failure {
    let fault = Fault::of(status.as_u16(), complaint);
    let ours = |code, what: &str| Failure {
        untouched: true,
        ..Failure::new(
            502,
            code,
            format!("the model answered {status}{what}: tell who runs the gateway"),
        )
    };
    match fault {
        // The key is ours, and so is the bill: no application can cause or mend this, and
        // one that is told 401 looks at its own key. What the model says may quote ours.
        Fault::Key => return ours("upstream_unauthorized", " to this gateway's own API key"),
        Fault::ModelGone => {
            let what = " because it is retired, or not there for this gateway's own API key";
            return ours(MODEL_GONE, what);
        }
        Fault::NoSuchPath => {
            let what = ", so that nothing answers such requests at the backend's address";
            return ours("upstream_not_found", what);
        }
        Fault::Application | Fault::Busy | Fault::Failed | Fault::FailedForGood => {}
    }
    Failure {
        client_fault: fault == Fault::Application,
        repeatable: fault.is_repeatable(),
        untouched: fault.is_untouched(),
        retry_after: wait.or(complaint.retry_after),
        body: body.map(|body| (status, body)),
        ..Failure::new(502, "upstream_error", format!("the model answered {status}"))
    }
}

/// A failure that is told within an answer of status 200, as if its status had been that
/// which is told there. `said` is the JSON that tells it, or another text.
fn told(flight: &mut Flight, said: Option<&Bytes>, wait: Option<Duration>) -> Failure {
    let answer = &flight.answer;
    let Some(complaint) = answer.complaint.as_deref() else {
        let (code, message) = match &answer.gave_up {
            Some(reason) => {
                ("upstream_failed", format!("the model ended its answer with {reason}"))
            }
            None => ("upstream_broken", "the model's stream ended without a reason".to_owned()),
        };
        return Failure { repeatable: true, ..Failure::new(502, code, message) };
    };
    let status = complaint.status.and_then(|status| StatusCode::from_u16(status).ok());
    let (code, status) = match status {
        Some(status) => ("upstream_error", status),
        None => ("upstream_failed", StatusCode::BAD_GATEWAY),
    };
    // An error within an answer may quote the request, as one with its status does.
    let secrets = flight.target.secrets(false);
    let without = |said: &Bytes| secrets.without(said).map_or_else(|| said.clone(), Bytes::from);
    let json = said.filter(|said| said.trim_ascii_start().starts_with(b"{")).map(without);
    let in_words = json.is_none().then(|| secrets.text(&complaint.message).into_owned());
    let mut failure = refused(status, complaint, wait, json);
    if failure.error.code == "upstream_error" {
        let message = in_words.unwrap_or_else(|| "the model says that it failed".to_owned());
        failure.error = ApiError::new(status.as_u16(), code, message);
    }
    flight.status = Some(status.as_u16());
    if let Some(wait) = failure.retry_after
        && !flight.headers.iter().any(|(name, _)| name.as_str().starts_with("retry-after"))
    {
        let seconds = wait.as_secs_f64().ceil() as u64;
        flight.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
    }
    failure
}

/// All of a body that begins so. Where there is no room for it, the rest is read and let go: what
/// is too large in any case is the model's fault, whoever holds the room.
async fn whole<B>(
    first: Bytes,
    mut rest: B,
    mut answer: Gathered,
    deadline: Instant,
) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes, Error = Unread> + Unpin,
{
    answer.add(first).map_err(|failure| *failure)?;
    let mut until = None;
    loop {
        if answer.refused.is_some() && until.is_none() {
            until = Some(deadline.min(Instant::now() + LONGEST_LOOK));
        }
        let next = next_chunk(&mut rest);
        let chunk = match until {
            None => next.await,
            Some(until) => timeout_at(until, next).await.ok().flatten(),
        };
        let Some(chunk) = chunk else { return answer.end().map_err(|failure| *failure) };
        answer.add(chunk.map_err(|e| broken(&e))?).map_err(|failure| *failure)?;
    }
}

/// What has come of an answer.
struct Gathered {
    first: Bytes,
    bytes: BytesMut,
    /// Of all that came.
    length: usize,
    largest: usize,
    held: Held,
    /// There was no room for it, and nothing of it is kept any more.
    refused: Option<ApiError>,
}

impl Gathered {
    fn new(held: Held, largest: usize) -> Self {
        let (first, bytes) = (Bytes::new(), BytesMut::new());
        Self { first, bytes, length: 0, largest, held, refused: None }
    }

    fn add(&mut self, chunk: Bytes) -> Result<(), Box<Failure>> {
        self.length += chunk.len();
        let takes = self.length.saturating_mul(ANSWER_COPIES);
        let is_small = self.length <= SMALL;
        if self.length > self.largest || !(is_small || self.held.may_ever_be(takes)) {
            let message = "the model's answer is too large";
            return Err(Box::new(Failure::new(502, "upstream_too_large", message)));
        }
        if self.refused.is_some() {
            return Ok(());
        }
        if !is_small && let Err(error) = self.held.grow_to(takes) {
            self.refused = Some(error);
            (self.first, self.bytes) = (Bytes::new(), BytesMut::new());
            self.held.shrink_to(0);
            return Ok(());
        }
        // Most answers come in one piece, which needs no copy.
        if self.first.is_empty() && self.bytes.is_empty() {
            self.first = chunk;
            return Ok(());
        }
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn end(self) -> Result<Bytes, Box<Failure>> {
        match self.refused {
            Some(error) => Err(Box::new(no_memory(error))),
            None if self.bytes.is_empty() => Ok(self.held.keep(self.first)),
            None => Ok(self.held.keep(self.bytes.freeze())),
        }
    }
}

/// There is no room for what the model answers. A client that holds its share has itself
/// to blame, which says nothing of the variant.
fn no_memory(error: ApiError) -> Failure {
    let client_fault = error.code == CLIENT_SHARE;
    Failure { untouched: false, crowded: true, client_fault, ..Failure::of(error) }
}

async fn next_chunk<B>(body: &mut B) -> Option<Result<Bytes, Unread>>
where
    B: Body<Data = Bytes, Error = Unread> + Unpin,
{
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

/// Whether this is the name of a header about limits, made of words and short numbers. Any other
/// name is chosen by the model, and may hold a key.
fn tells_a_limit(name: &str) -> bool {
    let is_word = |part: &str| {
        (1..=12).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_lowercase())
            || (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    name.strip_prefix("x-ratelimit-").is_some_and(|rest| rest.split(['-', '_']).all(is_word))
}

/// `ours` is what clients show as the request's id when the model tells none.
fn passed_back(
    headers: &HeaderMap,
    ours: &str,
    secrets: &Secrets,
) -> Vec<(header::HeaderName, HeaderValue)> {
    let without = |value: &HeaderValue| match secrets.without(value.as_bytes()) {
        Some(value) => HeaderValue::from_bytes(&value).ok(),
        None => Some(value.clone()),
    };
    let ours = (!headers.contains_key("x-request-id"))
        .then(|| HeaderValue::from_str(ours).ok())
        .flatten()
        .map(|id| (header::HeaderName::from_static("x-request-id"), id));
    headers
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            PASSED_BACK.contains(&name) || tells_a_limit(name)
        })
        .filter_map(|(name, value)| Some((name.clone(), without(value)?)))
        .chain(ours)
        .collect()
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;
    use crate::gateway::budget::{Budget, Class};

    fn length(mut answer: Gathered, pieces: usize) -> Result<usize, &'static str> {
        for _ in 0..pieces {
            answer
                .add(Bytes::from_static(&[b'x'; 10_000]))
                .map_err(|failure| failure.error.code)?;
        }
        answer.end().map(|bytes| bytes.len()).map_err(|failure| failure.error.code)
    }

    #[test]
    fn an_answer_that_is_too_large_for_any_client_is_the_models_fault() {
        // Answers may hold half of it, and one client three quarters of that: 375,000 bytes.
        let budget = Budget::new(1_000_000);
        let client = budget.account("a");
        let answer = || Gathered::new(client.nothing(Class::Answers), LARGEST_ANSWER);
        assert_eq!(length(answer(), 18), Ok(180_000));
        assert_eq!(length(answer(), 19), Err("upstream_too_large"));
        // The client's other answers leave less.
        let others = client.take(Class::Answers, 300_000).unwrap();
        assert_eq!(length(answer(), 3), Ok(30_000));
        assert_eq!(length(answer(), 18), Err(CLIENT_SHARE));
        assert_eq!(length(answer(), 19), Err("upstream_too_large"));
        drop(others);
        // And so may other clients.
        let others = budget.take(Class::Answers, 490_000).unwrap();
        assert_eq!(length(answer(), 18), Err("overloaded"));
        assert_eq!(length(answer(), 19), Err("upstream_too_large"));
        drop(others);
        let small = || Gathered::new(client.nothing(Class::Answers), 20_000);
        assert_eq!(length(small(), 2), Ok(20_000));
        assert_eq!(length(small(), 3), Err("upstream_too_large"));
        assert!(client.take(Class::Answers, 375_000).is_ok(), "all is given back");
    }

    #[test]
    fn an_answer_that_finds_no_room_gives_back_what_it_held() {
        let budget = Budget::new(1_000_000);
        let client = budget.account("a");
        let _others = client.take(Class::Answers, 300_000).unwrap();
        let mut answer = Gathered::new(client.nothing(Class::Answers), LARGEST_ANSWER);
        for _ in 0..6 {
            answer.add(Bytes::from_static(&[b'x'; 10_000])).unwrap();
        }
        assert!(answer.refused.is_some() && answer.bytes.is_empty());
        assert!(client.take(Class::Answers, 70_000).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stalls_is_late_and_one_without_room_is_looked_at_for_a_while() {
        let budget = Budget::new(1_000_000);
        let client = budget.account("a");
        let _others = client.take(Class::Answers, 300_000).unwrap();
        let read = async |pieces: usize, seconds: u64| {
            let began = Instant::now();
            let deadline = began + Duration::from_secs(seconds);
            let piece = || Ok(Frame::data(Bytes::from_static(&[b'x'; 10_000])));
            let pieces = stream::iter((0..pieces).map(move |_| piece()));
            let rest = StreamBody::new(pieces.chain(stream::pending()));
            let answer = Gathered::new(client.nothing(Class::Answers), LARGEST_ANSWER);
            let read = timeout_at(deadline, whole(Bytes::new(), rest, answer, deadline)).await;
            let code = read.map(|read| read.map_err(|failure| failure.error.code)).ok();
            (code, began.elapsed().as_secs())
        };
        assert_eq!(read(2, 60).await, (None, 60), "what came so far is no answer");
        assert_eq!(read(10, 60).await, (Some(Err(CLIENT_SHARE)), 5));
        assert_eq!(read(10, 3).await, (Some(Err(CLIENT_SHARE)), 3));
        assert_eq!(read(30, 60).await, (Some(Err("upstream_too_large")), 0));
    }
}
