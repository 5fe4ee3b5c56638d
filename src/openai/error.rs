//! Errors in the shape that OpenAI's clients understand.

use serde_json::{Value, json};

use super::request::Operation;

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for people that says what to do.
    pub message: String,
    /// The request field at fault.
    pub param: Option<String>,
    /// When to try again, in seconds.
    pub retry_after: Option<u32>,
    /// The methods that a path takes, where another was used.
    pub allow: Option<&'static str>,
}

/// A longer message is cut: it may quote what the application sent, and nobody counts what it holds.
/// In bytes.
const LONGEST_MESSAGE: usize = 4096;

impl ApiError {
    /// An error without a field and without a time to try again.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST_MESSAGE {
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            message.push('…');
        }
        Self { status, code, message, param: None, retry_after: None, allow: None }
    }

    /// Another method than the path takes.
    pub fn only(allow: &'static str) -> Self {
        let message = format!("this path takes {allow} requests only");
        Self { allow: Some(allow), ..Self::new(405, "method_not_allowed", message) }
    }

    /// Names the request field at fault.
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }

    /// The last event of a stream that broke off. Each event of the Responses API has a
    /// type; its clients raise an exception for what has `error` as well.
    pub fn event(&self, operation: Operation) -> String {
        let mut body = self.body();
        if operation != Operation::Responses {
            return format!("data: {body}\n\n");
        }
        body["type"] = "error".into();
        body["code"] = self.code.into();
        body["message"] = self.message.as_str().into();
        body["param"] = self.param.clone().into();
        format!("event: error\ndata: {body}\n\n")
    }
}
