//! The gateway over real sockets, with a model that does as it is told.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]
#[path = "gateway/answers.rs"]
mod answers;
#[path = "gateway/bench.rs"]
mod bench;
#[path = "gateway/caching.rs"]
mod caching;
#[path = "gateway/compatibility.rs"]
mod compatibility;
#[path = "gateway/connections.rs"]
mod connections;
#[path = "gateway/drawn.rs"]
mod drawn;
#[path = "gateway/feedback.rs"]
mod feedback;
#[path = "gateway/following.rs"]
mod following;
#[path = "gateway/identity.rs"]
mod identity;
#[path = "gateway/models.rs"]
mod models;
#[path = "gateway/reading.rs"]
mod reading;
#[path = "gateway/reports.rs"]
mod reports;
#[path = "gateway/routing.rs"]
mod routing;
#[path = "gateway/secrets.rs"]
mod secrets;
#[path = "gateway/shadow.rs"]
mod shadow;
#[path = "gateway/splitting.rs"]
mod splitting;
#[path = "gateway/tls.rs"]
mod tls;
#[path = "gateway/traces.rs"]
mod traces;
#[path = "gateway/variants.rs"]
mod variants;
