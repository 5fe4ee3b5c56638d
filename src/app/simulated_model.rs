//! A simulated model: an OpenAI-compatible server whose latency, errors and quality
//! are set by markers in the prompt, so that prompt versions differ as real ones do.
//!
//! A marker is `[[sim:firstTokenMs=60 tokens=30 quality=0.8]]` in any message. What
//! no marker sets comes from `PUT /control` for the model, then from the defaults.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Response, StatusCode, header},
    response::IntoResponse,
    routing::{get, post, put},
};
use bytes::Bytes;
use futures::{Stream, stream};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

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
    /// Unix time in milliseconds of the last request.
    last_at: i64,
}

#[derive(Default)]
struct Model {
    /// By model name; `*` stands for all others.
    behaviours: Mutex<HashMap<String, serde_json::Map<String, Value>>>,
    stats: Mutex<BTreeMap<String, Stats>>,
}

/// Serves the model until `stop`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/control", put(control))
        .route("/control/stats", get(stats))
        .layer(DefaultBodyLimit::max(16 << 20))
        .with_state(Arc::new(Model::default()));
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn models() -> Json<Value> {
    Json(json!({"object": "list", "data": [{"id": "simulated", "object": "model"}]}))
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

fn behaviour(model: &Model, request: &Value) -> Result<Behaviour, String> {
    let name = request.get("model").and_then(Value::as_str).unwrap_or_default();
    let mut fields = {
        let known = model.behaviours.lock().map_err(|e| e.to_string())?;
        let mut fields = known.get("*").cloned().unwrap_or_default();
        fields.extend(known.get(name).cloned().unwrap_or_default());
        fields
    };
    for message in request.get("messages").and_then(Value::as_array).into_iter().flatten() {
        fields.extend(markers(message.get("content").and_then(Value::as_str).unwrap_or_default()));
    }
    parse_behaviour(fields).map_err(|e| format!("the sim marker is not valid: {e}"))
}

fn failure(status: StatusCode, message: &str) -> Response<Body> {
    let body = json!({"error": {"message": message, "type": "server_error", "code": "simulated"}});
    (status, Json(body)).into_response()
}

/// What one answer will be.
struct Draft {
    behaviour: Behaviour,
    quality: f64,
    text: String,
    finish: &'static str,
    breaks: bool,
    input_tokens: usize,
    model: String,
}

async fn chat(State(model): State<Arc<Model>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let behaviour = match behaviour(&model, &request) {
        Ok(behaviour) => behaviour,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error),
    };
    if let Ok(mut stats) = model.stats.lock() {
        let stats = stats.entry(behaviour.tag.clone()).or_default();
        stats.requests += 1;
        stats.last_at = super::clock::now().as_millisecond();
    }
    let sent = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !behaviour.require_key.is_empty() && sent != format!("Bearer {}", behaviour.require_key) {
        return failure(StatusCode::UNAUTHORIZED, "the API key is wrong");
    }
    let draft = draft(behaviour, &request, body.len());
    pause(spread(draft.behaviour.first_token_ms)).await;
    if chance(draft.behaviour.error_rate) {
        return failure(StatusCode::INTERNAL_SERVER_ERROR, "a simulated failure");
    }
    if request.get("stream").and_then(Value::as_bool) == Some(true) {
        let body = Body::from_stream(events(draft));
        ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
    } else {
        let rest = draft.behaviour.token_ms * draft.behaviour.tokens as f64;
        pause(Duration::from_secs_f64(rest / 1000.0)).await;
        Json(whole(&draft)).into_response()
    }
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

fn draft(behaviour: Behaviour, request: &Value, body: usize) -> Draft {
    let quality = (behaviour.quality + 0.2 * (rand::rng().random::<f64>() - 0.5)).clamp(0.0, 1.0);
    let words = vec!["seed"; usize::try_from(behaviour.tokens).unwrap_or(1).max(1)].join(" ");
    let text = if chance(behaviour.empty_rate) {
        String::new()
    } else if chance(behaviour.bad_json_rate) {
        words
    } else {
        json!({"answer": words}).to_string()
    };
    let limit = request.get("max_tokens").and_then(Value::as_u64);
    let cut = limit.filter(|limit| *limit < behaviour.tokens);
    let text = match cut {
        Some(limit) => text.split_inclusive(' ').take(limit as usize).collect(),
        None => text,
    };
    let behaviour = Behaviour { tokens: cut.unwrap_or(behaviour.tokens), ..behaviour };
    let truncated = cut.is_some() || chance(behaviour.truncated_rate);
    let finish = if truncated { "length" } else { "stop" };
    let model = request.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
    let breaks = chance(behaviour.break_rate);
    Draft { behaviour, quality, text, finish, breaks, input_tokens: body / 4, model }
}

fn usage(draft: &Draft) -> Value {
    let (input, output) = (draft.input_tokens as u64, draft.behaviour.tokens);
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn whole(draft: &Draft) -> Value {
    json!({
        "id": "chatcmpl-simulated", "object": "chat.completion", "created": 0,
        "model": draft.model, "system_fingerprint": "fp_simulated",
        "choices": [{
            "index": 0, "finish_reason": draft.finish,
            "message": {"role": "assistant", "content": draft.text},
        }],
        "usage": usage(draft),
        "sim_quality": draft.quality,
    })
}

/// The answer word by word, then usage, then the end.
fn events(draft: Draft) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    let chunk = |choices: Value, usage: Value| {
        json!({
            "id": "chatcmpl-simulated", "object": "chat.completion.chunk", "created": 0,
            "model": draft.model, "choices": choices, "usage": usage,
        })
    };
    let delta = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let mut texts: Vec<String> = draft
        .text
        .split_inclusive(' ')
        .map(|word| chunk(delta(json!({"content": word}), Value::Null), Value::Null).to_string())
        .collect();
    if draft.breaks {
        texts.truncate(texts.len() / 2 + 1);
    } else {
        texts.push(chunk(delta(json!({}), json!(draft.finish)), Value::Null).to_string());
        texts.push(chunk(json!([]), usage(&draft)).to_string());
        texts.push("[DONE]".to_owned());
    }
    let pause = Duration::from_secs_f64(draft.behaviour.token_ms / 1000.0);
    let breaks = draft.breaks;
    let end = if breaks { vec![Err(std::io::Error::other("a simulated break"))] } else { vec![] };
    let texts = texts.into_iter().map(|t| Ok(Bytes::from(format!("data: {t}\n\n"))));
    let items = texts.chain(end).enumerate();
    stream::unfold(items, move |mut items| async move {
        let (i, item) = items.next()?;
        if i > 0 {
            self::pause(pause).await;
        }
        Some((item, items))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_sets_the_behaviour() {
        let request = json!({"model": "m", "messages": [
            {"role": "system", "content": "Hi. [[sim:firstTokenMs=5 tag=v2]] Be [[sim:quality=0.5]] kind."},
        ]});
        let behaviour = behaviour(&Model::default(), &request).unwrap();
        assert_eq!(
            (behaviour.first_token_ms, behaviour.tag.as_str(), behaviour.quality),
            (5.0, "v2", 0.5)
        );
    }

    #[test]
    fn a_wrong_marker_is_told() {
        let request = json!({"messages": [{"content": "[[sim:qualty=1]]"}]});
        let error = behaviour(&Model::default(), &request).unwrap_err();
        assert!(error.contains("qualty"), "{error}");
    }
}
