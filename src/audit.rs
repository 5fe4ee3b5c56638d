//! What is remembered of every request.

pub mod record;
pub mod secrets;
