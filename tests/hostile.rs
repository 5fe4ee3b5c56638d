//! Clients that mean no good, over real sockets. A process of its own: memory is measured.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]
#[path = "gateway/bench.rs"]
#[allow(dead_code, reason = "shared with tests/gateway.rs")]
mod bench;
#[path = "gateway/hostile.rs"]
mod hostile;
#[path = "gateway/hostile_models.rs"]
mod hostile_models;
#[path = "gateway/smuggling.rs"]
mod smuggling;
#[path = "gateway/templates.rs"]
mod templates;
