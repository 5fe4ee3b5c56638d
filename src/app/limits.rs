//! The flags that bound what requests may cost.

use std::time::Duration;

use crate::gateway::limits::Limits;

/// What requests and connections may cost.
#[derive(clap::Args)]
#[group(id = "limits")]
pub struct Options {
    /// The largest request body, in bytes.
    #[arg(long, default_value_t = Limits::default().body, value_name = "BYTES")]
    max_body_bytes: usize,
    /// Messages that one request may have.
    #[arg(long, default_value_t = Limits::default().messages, value_name = "COUNT")]
    max_messages: usize,
    /// Open connections of applications.
    #[arg(long, default_value_t = Limits::default().connections, value_name = "COUNT")]
    max_connections: usize,
    /// The longest that one answer may take, in seconds.
    #[arg(long, default_value_t = Limits::default().answer_time.as_secs(), value_name = "SECONDS")]
    max_answer_seconds: u64,
}

impl Options {
    /// The limits; what has no flag keeps its default.
    pub fn build(&self) -> Limits {
        let defaults = Limits::default();
        Limits {
            body: self.max_body_bytes,
            // One body of the largest size always finds room in an idle gateway.
            bodies_in_memory: defaults.bodies_in_memory.max(self.max_body_bytes),
            messages: self.max_messages,
            connections: self.max_connections,
            answer_time: Duration::from_secs(self.max_answer_seconds),
            ..defaults
        }
    }
}
