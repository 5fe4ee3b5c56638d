//! The OpenAI wire format: errors, requests, answers and streams. Only what Serinus
//! reads is typed; everything else passes through untouched. No client lives here.

pub mod alike;
pub mod answer;
pub mod complaint;
pub mod depth;
pub mod error;
mod forgiving;
mod mend;
pub mod models;
pub mod pieces;
pub mod reason;
pub mod request;
pub mod retry_after;
pub mod sse;
pub mod usage;
pub mod visible;

pub use request::Operation;
