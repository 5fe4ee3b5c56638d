//! What leaves the process about each request: spans for tracing systems, and a line for
//! the access log. Both are made from the one `Record` a request.
//!
//! The request's own part is small: draw ids, and put an `Arc` of the record into a bounded
//! queue. Everything that costs (names, redaction, encoding, sending) happens in tasks
//! behind it; when they fall behind, records are dropped and counted, never waited for.

mod trace_context;

pub use self::trace_context::{Parent, Tracing, follow, parse_traceparent, propagate, traceparent};
