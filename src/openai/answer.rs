//! What an answer said, collected from JSON or from the chunks of a stream.

use serde::Deserialize;
use serde_json::Value;

use super::usage::{Nested, Timings, Tokens, Usage};

/// Text beyond this is counted as there but not kept for checking.
const LONGEST_TEXT: usize = 1 << 20;

/// An answer as far as Serinus reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text of the first choice.
    pub text: String,
    /// The text was longer than what is kept.
    pub cut: bool,
    /// The model called a tool.
    pub tool_call: bool,
    /// The model refused.
    pub refused: bool,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// What it took.
    pub tokens: Tokens,
    /// The model that has answered.
    pub model: Option<String>,
    /// The backend's id of the answer.
    pub id: Option<String>,
    /// The stream said that it is complete.
    pub done: bool,
}

impl Answer {
    /// Reads a whole JSON answer.
    pub fn from_json(value: &Value) -> Self {
        let mut answer = Self { done: true, ..Self::default() };
        answer.absorb(value, "/choices/0/message");
        answer
    }

    /// Reads one payload of a stream. Says whether it carried content.
    pub fn absorb_event(&mut self, data: &[u8]) -> bool {
        if data == b"[DONE]" {
            self.done = true;
            return false;
        }
        serde_json::from_slice::<Value>(data)
            .is_ok_and(|value| self.absorb(&value, "/choices/0/delta"))
    }

    fn absorb(&mut self, value: &Value, message: &str) -> bool {
        let mut content = false;
        if let Some(message) = value.pointer(message) {
            if let Some(text) = message.get("content").and_then(Value::as_str)
                && !text.is_empty()
            {
                content = true;
                self.cut |= self.text.len() + text.len() > LONGEST_TEXT;
                if !self.cut {
                    self.text.push_str(text);
                }
            }
            let filled = |field: &str| {
                message.get(field).is_some_and(|v| v.as_array().is_some_and(|a| !a.is_empty()))
            };
            self.tool_call |= filled("tool_calls");
            let refusal = message.get("refusal").and_then(Value::as_str);
            self.refused |= refusal.is_some_and(|r| !r.is_empty());
            content |= filled("tool_calls") || refusal.is_some_and(|r| !r.is_empty());
        }
        if let Some(reason) = value.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
            self.refused |= reason == "content_filter";
            self.finish_reason = Some(reason.to_owned());
        }
        // From the least to the most exact.
        let at = |pointer: &str| value.pointer(pointer).unwrap_or(&Value::Null);
        self.tokens.absorb(Timings::deserialize(at("/timings")).unwrap_or_default().tokens());
        for nested in ["/x_groq", "/choices/0", "/response", "/message"] {
            let nested = Nested::deserialize(at(nested)).unwrap_or_default();
            self.tokens.absorb(nested.usage.tokens());
        }
        self.tokens.absorb(Usage::deserialize(at("/usage")).unwrap_or_default().tokens());
        // Azure begins a stream with an event whose id and model are empty.
        let text = |field: &str| {
            let text = value.get(field).and_then(Value::as_str)?;
            (!text.is_empty()).then(|| text.to_owned())
        };
        if self.model.is_none() {
            self.model = text("model");
        }
        if self.id.is_none() {
            self.id = text("id");
        }
        content
    }

    /// Whether a stream came to its end: `[DONE]`, or a finish reason before the connection closed.
    pub fn complete(&self) -> bool {
        self.done || self.finish_reason.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_and_its_json_form_say_the_same() {
        let mut streamed = Answer::default();
        let events = [
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"delta": {"content": "Hel"}}]}),
            json!({"choices": [{"delta": {"content": "lo"}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}}),
        ];
        let content: Vec<bool> =
            events.iter().map(|e| streamed.absorb_event(e.to_string().as_bytes())).collect();
        assert_eq!(content, [false, true, true, false, false]);
        assert!(streamed.complete() && !streamed.done);
        streamed.absorb_event(b"[DONE]");
        let whole = Answer::from_json(&json!({
            "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
        }));
        assert_eq!(streamed, whole);
    }

    #[test]
    fn tool_calls_refusals_and_filters_are_seen() {
        let tool = json!({"choices": [{"message": {"content": null, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}]});
        assert!(Answer::from_json(&tool).tool_call);
        let refusal = json!({"choices": [{"message": {"content": null, "refusal": "No."}}]});
        assert!(Answer::from_json(&refusal).refused);
        let filtered =
            json!({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]});
        assert!(Answer::from_json(&filtered).refused);
    }

    #[test]
    fn what_is_not_json_says_nothing_and_harms_nothing() {
        let mut answer = Answer::default();
        assert!(!answer.absorb_event(b"\xff\xfe{"));
        assert_eq!(answer, Answer::default());
    }
}
