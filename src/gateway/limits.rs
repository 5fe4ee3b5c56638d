//! How much one request, one connection and all of them together may cost. What they may
//! hold together is `memory`, of which `budget` says how it is shared.

use std::time::Duration;

use super::budget;

/// Bounds on what applications send and read. The defaults suit chats with images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub body: usize,
    /// What connections, bodies and answers may hold together, in bytes.
    pub memory: usize,
    /// Messages that one request may have.
    pub messages: usize,
    /// Bytes of a request's line and headers. There may be 100 headers.
    pub headers: usize,
    /// Open connections of applications; a further one is told to try again.
    pub connections: usize,
    /// The same of operators, kubelets and Prometheus.
    pub operators: usize,
    /// How long a request's headers may take, from their first byte, and how long the
    /// handshake of TLS.
    pub header_time: Duration,
    /// A body may take so long, and a second more for every `body_rate` bytes of it.
    pub body_time: Duration,
    /// The slowest that a body may come on average, in bytes a second.
    pub body_rate: usize,
    /// A connection without a request is kept for so long.
    pub idle: Duration,
    /// Who reads nothing of an answer for so long has gone.
    pub write_time: Duration,
    /// While memory is short: the slowest that an answer may be read on average, in bytes
    /// a second of the time in which the reader is waited for.
    pub read_rate: usize,
    /// The longest that an answer may take.
    pub answer_time: Duration,
    /// The largest answer, in bytes.
    pub answer: u64,
}

impl Limits {
    /// The largest body that finds room in an idle gateway with this memory.
    pub fn largest_body(memory: usize) -> usize {
        budget::most_of_one(budget::Class::Bodies, memory) / budget::BODY_COPIES
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 20 << 20,
            memory: 224 << 20,
            messages: 2048,
            headers: 16 << 10,
            connections: 10_000,
            operators: 256,
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(15),
            body_rate: 8 << 10,
            idle: Duration::from_secs(120),
            write_time: Duration::from_secs(30),
            read_rate: 8 << 10,
            answer_time: Duration::from_secs(3600),
            answer: 256 << 20,
        }
    }
}
