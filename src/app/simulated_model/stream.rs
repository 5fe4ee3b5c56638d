//! A stream in parts: each is written at once, with a pause between them.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use serde_json::json;

use super::{Waiting, draft::Draft};
use crate::openai::Operation;

/// What is written, part by part.
pub(super) struct Script {
    parts: Vec<String>,
    pause: Duration,
    /// The connection breaks after the last part.
    breaks: bool,
}

impl Script {
    pub(super) fn new(draft: &Draft, mut parts: Vec<String>) -> Self {
        if draft.breaks || draft.fails {
            parts.truncate(parts.len() / 2 + 1);
        }
        if draft.fails {
            let error = json!({"message": "a simulated failure", "type": "server_error",
                "param": null, "code": "simulated"});
            parts.push(match draft.operation {
                Operation::Responses => {
                    let mut error = error;
                    error["type"] = json!("error");
                    error["sequence_number"] = json!(1 << 20);
                    named_event("error", &error)
                }
                _ => event(&json!({"error": error})),
            });
        }
        let pause = Duration::from_secs_f64(draft.behaviour.token_ms / 1000.0);
        Self { parts, pause, breaks: draft.breaks }
    }
}

/// An event of chat and completions.
pub(super) fn event(data: &serde_json::Value) -> String {
    format!("data: {data}\n\n")
}

/// An event of responses.
pub(super) fn named_event(name: &str, data: &serde_json::Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

pub(super) fn body(script: Script, waiting: Waiting) -> Body {
    let Script { parts, pause, breaks } = script;
    let end = if breaks { vec![Err(std::io::Error::other("a simulated break"))] } else { vec![] };
    let items = parts.into_iter().map(|part| Ok(Bytes::from(part))).chain(end).enumerate();
    Body::from_stream(stream::unfold((items, waiting), move |(mut items, waiting)| async move {
        let Some((i, item)) = items.next() else {
            waiting.complete();
            return None;
        };
        if i > 0 {
            super::pause(pause).await;
        }
        Some((item, (items, waiting)))
    }))
}
