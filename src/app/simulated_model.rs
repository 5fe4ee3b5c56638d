//! A simulated model: an OpenAI-compatible server whose latency, errors and quality
//! are set by markers in the prompt, so that prompt versions differ as real ones do.
//!
//! A marker is `[[sim:firstTokenMs=60 tokens=30 quality=0.8]]` anywhere in the body. What
//! no marker sets comes from `PUT /control` for the model, then from the defaults.
//!
//! It answers what applications' clients ask for (several choices, log probabilities,
//! calls of tools, JSON of a schema, embeddings as numbers or base64, streams of all
//! operations), and tells what it was asked: `GET /control/stats`, and the last body of a
//! tag byte for byte at `GET /control/last/TAG`.

mod answers;
mod draft;
mod embeddings;
mod responses;
mod stream;

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
    routing::{get, post, put},
};
use bytes::Bytes;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::{draft::Draft, stream::Script};
use crate::openai::Operation;

/// How a model behaves. Rates are shares of requests, 0 to 1.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Behaviour {
    /// Milliseconds until the first token, give or take a third.
    pub first_token_ms: f64,
    /// Milliseconds from token to token.
    pub token_ms: f64,
    /// Output tokens.
    pub tokens: u64,
    /// Mean quality of the answers, told in `sim_quality`.
    pub quality: f64,
    /// Answers 500.
    pub error_rate: f64,
    /// Answers with text that is not JSON.
    pub bad_json_rate: f64,
    /// Answers with nothing.
    pub empty_rate: f64,
    /// Answers cut at the token limit.
    pub truncated_rate: f64,
    /// Streams that break after the first tokens.
    pub break_rate: f64,
    /// Streams that tell of an error after the first tokens.
    pub stream_error_rate: f64,
    /// Answers with this status.
    pub status: u16,
    /// Only so many requests of the tag get `status`. 0: all.
    pub fail_first: u64,
    /// Sent with `status` as `retry-after-ms`.
    pub retry_after_ms: u64,
    /// How many tools are called, of those that the request offers.
    pub tool_calls: usize,
    /// There is no such model: answers 404, as OpenAI does.
    pub gone: bool,
    /// Listed with this day as its last.
    pub shutdown_date: String,
    /// Answers 401 without this API key.
    pub require_key: String,
    /// A name for `GET /control/stats`.
    pub tag: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            first_token_ms: 20.0,
            token_ms: 1.0,
            tokens: 20,
            quality: 0.8,
            error_rate: 0.0,
            bad_json_rate: 0.0,
            empty_rate: 0.0,
            truncated_rate: 0.0,
            break_rate: 0.0,
            stream_error_rate: 0.0,
            status: 0,
            fail_first: 0,
            retry_after_ms: 0,
            tool_calls: 0,
            gone: false,
            shutdown_date: String::new(),
            require_key: String::new(),
            tag: String::new(),
        }
    }
}

/// What one tag was asked.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    requests: u64,
    /// Whoever asked went away before the answer was complete.
    aborted: u64,
    /// Unix time in milliseconds of the last request.
    last_at: i64,
    #[serde(skip)]
    last: Bytes,
}

#[derive(Default)]
struct Model {
    /// By model name; `*` stands for all others.
    behaviours: Mutex<HashMap<String, serde_json::Map<String, Value>>>,
    stats: Mutex<BTreeMap<String, Stats>>,
    requests: AtomicU64,
}

/// Somebody waits for an answer. Counted as aborted when it is dropped before it is
/// complete.
struct Waiting {
    model: Arc<Model>,
    tag: String,
    complete: bool,
}

impl Waiting {
    fn complete(mut self) {
        self.complete = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.complete {
            self.model.count(&self.tag, |stats| stats.aborted += 1);
        }
    }
}

impl Model {
    fn count<T: Default>(&self, tag: &str, change: impl FnOnce(&mut Stats) -> T) -> T {
        let Ok(mut stats) = self.stats.lock() else { return T::default() };
        match stats.get_mut(tag) {
            Some(stats) => change(stats),
            None => change(stats.entry(tag.to_owned()).or_default()),
        }
    }
}

/// Serves the model until `stop`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut router = Router::new();
    for operation in Operation::ALL {
        let handler = move |State(model): State<Arc<Model>>, headers: HeaderMap, body: Bytes| {
            answer(model, operation, headers, body)
        };
        router = router.route(&format!("/v1{}", operation.path()), post(handler));
    }
    let router = router
        .route("/v1/models", get(models))
        .route("/control", put(control))
        .route("/control/stats", get(stats))
        .route("/control/last/{tag}", get(last))
        .layer(DefaultBodyLimit::max(16 << 20))
        .with_state(Arc::new(Model::default()));
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn models(State(model): State<Arc<Model>>) -> Json<Value> {
    let mut all = vec![json!({"id": "simulated", "object": "model"})];
    if let Ok(known) = model.behaviours.lock() {
        let dated = known.iter().filter_map(|(id, fields)| Some((id, fields.get("shutdownDate")?)));
        all.extend(
            dated.map(|(id, date)| json!({"id": id, "object": "model", "shutdown_date": date})),
        );
    }
    Json(json!({"object": "list", "data": all}))
}

async fn control(
    State(model): State<Arc<Model>>,
    Json(behaviours): Json<HashMap<String, serde_json::Map<String, Value>>>,
) -> Response<Body> {
    for behaviour in behaviours.values() {
        if let Err(error) = parse_behaviour(behaviour.clone()) {
            return failure(StatusCode::BAD_REQUEST, &error.to_string());
        }
    }
    if let Ok(mut known) = model.behaviours.lock() {
        known.extend(behaviours);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn stats(State(model): State<Arc<Model>>) -> Json<Value> {
    Json(json!(model.stats.lock().map(|s| s.clone()).unwrap_or_default()))
}

/// The last body of a tag, as it came.
async fn last(State(model): State<Arc<Model>>, Path(tag): Path<String>) -> Bytes {
    model.count(&tag, |stats| stats.last.clone())
}

fn parse_behaviour(fields: serde_json::Map<String, Value>) -> serde_json::Result<Behaviour> {
    serde_json::from_value(Value::Object(fields))
}

/// The settings of every marker in a text.
fn markers(text: &str) -> impl Iterator<Item = (String, Value)> {
    text.split("[[sim:")
        .skip(1)
        .filter_map(|rest| rest.split_once("]]"))
        .flat_map(|(inside, _)| inside.split_whitespace())
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            (name.to_owned(), value)
        })
}

/// Markers are found in the body's text: which field they are in does not matter.
fn behaviour(model: &Model, request: &Value, body: &str) -> Result<Behaviour, String> {
    let name = request.get("model").and_then(Value::as_str).unwrap_or_default();
    let mut fields = {
        let known = model.behaviours.lock().map_err(|e| e.to_string())?;
        let mut fields = known.get("*").cloned().unwrap_or_default();
        fields.extend(known.get(name).cloned().unwrap_or_default());
        fields
    };
    fields.extend(markers(body));
    parse_behaviour(fields).map_err(|e| format!("the sim marker is not valid: {e}"))
}

fn failure(status: StatusCode, message: &str) -> Response<Body> {
    let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    let body =
        json!({"error": {"message": message, "type": kind, "param": null, "code": "simulated"}});
    (status, Json(body)).into_response()
}

async fn answer(
    model: Arc<Model>,
    operation: Operation,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let number = model.requests.fetch_add(1, Ordering::Relaxed);
    let mut response = attempt(model, operation, headers, body).await;
    if let Ok(id) = HeaderValue::from_str(&format!("req_simulated_{number}")) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
    }
    response
}

async fn attempt(
    model: Arc<Model>,
    operation: Operation,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let text = std::str::from_utf8(&body).unwrap_or_default();
    let behaviour = match behaviour(&model, &request, text) {
        Ok(behaviour) => behaviour,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error),
    };
    let tag = behaviour.tag.clone();
    let so_far = model.count(&tag, |stats| {
        stats.requests += 1;
        stats.last_at = super::clock::now().as_millisecond();
        stats.last = body.clone();
        stats.requests
    });
    let waiting = Waiting { model, tag, complete: false };
    let sent = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !behaviour.require_key.is_empty() && sent != format!("Bearer {}", behaviour.require_key) {
        waiting.complete();
        return failure(StatusCode::UNAUTHORIZED, "the API key is wrong");
    }
    if behaviour.gone {
        waiting.complete();
        let message = "The model does not exist or you do not have access to it.";
        let body = json!({"error": {"message": message, "type": "invalid_request_error",
            "param": null, "code": "model_not_found"}});
        return (StatusCode::NOT_FOUND, Json(body)).into_response();
    }
    pause(spread(behaviour.first_token_ms)).await;
    if let Some(refusal) = refusal(&behaviour, so_far) {
        waiting.complete();
        return refusal;
    }
    if operation == Operation::Embeddings {
        waiting.complete();
        return Json(embeddings::whole(&request, body.len() / 4)).into_response();
    }
    let draft = Draft::new(behaviour, operation, &request, body.len());
    if request.get("stream").and_then(Value::as_bool) == Some(true) {
        let parts = match operation {
            Operation::Responses => responses::parts(&draft),
            _ => answers::parts(&draft),
        };
        let body = stream::body(Script::new(&draft, parts), waiting);
        return ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response();
    }
    let rest = draft.behaviour.token_ms * draft.behaviour.tokens as f64;
    pause(Duration::from_secs_f64(rest / 1000.0)).await;
    waiting.complete();
    let whole = match operation {
        Operation::Responses => responses::whole(&draft),
        _ => answers::whole(&draft),
    };
    Json(whole).into_response()
}

/// An error in place of an answer, where the behaviour asks for one.
fn refusal(behaviour: &Behaviour, so_far: u64) -> Option<Response<Body>> {
    let failing = behaviour.fail_first == 0 || so_far <= behaviour.fail_first;
    if behaviour.status != 0 && failing {
        let status = StatusCode::from_u16(behaviour.status).unwrap_or_default();
        let mut response = failure(status, "a simulated refusal");
        if behaviour.retry_after_ms > 0 {
            let after = HeaderValue::from(behaviour.retry_after_ms);
            response.headers_mut().insert(HeaderName::from_static("retry-after-ms"), after);
        }
        return Some(response);
    }
    chance(behaviour.error_rate)
        .then(|| failure(StatusCode::INTERNAL_SERVER_ERROR, "a simulated failure"))
}

fn chance(rate: f64) -> bool {
    rate > 0.0 && rand::rng().random::<f64>() < rate
}

/// Also a sleep of no time waits for the next tick of the timer.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Around `ms`, give or take a third.
fn spread(ms: f64) -> Duration {
    let factor = 2.0f64.mul_add(rand::rng().random::<f64>(), -1.0) / 3.0 + 1.0;
    Duration::from_secs_f64((ms * factor).max(0.0) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_sets_the_behaviour() {
        let request = json!({"model": "m", "messages": [
            {"role": "system", "content": "Hi. [[sim:firstTokenMs=5 tag=v2]] Be [[sim:quality=0.5]] kind."},
        ]});
        let behaviour = behaviour(&Model::default(), &request, &request.to_string()).unwrap();
        assert_eq!(
            (behaviour.first_token_ms, behaviour.tag.as_str(), behaviour.quality),
            (5.0, "v2", 0.5)
        );
    }

    #[test]
    fn a_wrong_marker_is_told() {
        let request = json!({"messages": [{"content": "[[sim:qualty=1]]"}]});
        let error = behaviour(&Model::default(), &request, &request.to_string()).unwrap_err();
        assert!(error.contains("qualty"), "{error}");
    }
}
