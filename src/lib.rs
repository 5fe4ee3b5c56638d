//! Serinus releases prompts and models by evidence. The modules in reading order,
//! lowest layer first; a module imports only from its own layer and those above it
//! in this list (`tests/layers.rs`).
//!
//! | layer | modules |
//! |---|---|
//! | L0 words | `api`, `openai` |
//! | L1 decisions | `prompt`, `analysis`, `rollout`, `cost`, `audit`: no clock, no I/O |
//! | L2 ports | `signals`, `traffic`, `telemetry` |
//! | L3 loops | `controllers`, `gateway` |
//! | L4 wiring | `app` |

pub mod api;
pub mod openai;

pub mod analysis;
pub mod audit;
pub mod cost;
pub mod prompt;
pub mod rollout;

pub mod signals;
pub mod telemetry;

pub mod controllers;
pub mod gateway;

pub mod app;
