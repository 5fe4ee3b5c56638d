//! Answers that are the gateway's own, and how they are asked for.

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use serde_json::json;

use super::paths;
use crate::openai::error::ApiError;

/// Whether a part of a query asks for words: `verbose`, `verbose=true`, `verbose=1`.
pub fn is_verbose(part: &str) -> bool {
    part.split_once('=').map_or(part == "verbose", |(name, value)| {
        name == "verbose" && !matches!(value, "false" | "0")
    })
}

pub(super) fn model(name: &str) -> serde_json::Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "serinus"})
}

pub(super) fn refuse(path: &str) -> ApiError {
    let allowed = match path {
        "/serinus/v1/feedback" => "POST",
        path if paths::operation(path).is_some() => "POST",
        "/healthz" | "/readyz" => "GET, HEAD",
        path if paths::model(path).is_some() => "GET, HEAD",
        _ => {
            let message = "this gateway serves /v1/chat/completions, /v1/completions, \
                /v1/embeddings, /v1/responses, /v1/models and /serinus/v1/feedback";
            return ApiError::new(404, "unknown_path", message);
        }
    };
    ApiError::only(allowed)
}

pub(super) fn text(text: &'static str) -> Response<Body> {
    with_type("text/plain; charset=utf-8", text)
}

pub(super) fn json_answer(value: &impl serde::Serialize) -> Result<Response<Body>, ApiError> {
    let body = serde_json::to_vec(value)
        .map_err(|e| ApiError::new(500, "internal_error", e.to_string()))?;
    Ok(with_type("application/json", body))
}

pub(super) fn with_type(content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
