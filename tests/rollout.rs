//! The rollout in virtual time: timelines that a person can read, and random lives
//! that check the invariants.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]
#[path = "rollout/missing.rs"]
mod missing;
#[path = "rollout/properties.rs"]
mod properties;
#[path = "rollout/routes.rs"]
mod routes;
#[path = "rollout/timelines.rs"]
mod timelines;
#[path = "rollout/world.rs"]
mod world;
