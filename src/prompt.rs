//! Template and inputs to messages; the content hashes that name prompts and variants.

mod digest;
mod engine;
mod plain;
mod schema;
mod tags;
mod template;
mod tools;

pub use digest::{REVISION_DIGITS, digest, revision, short, stands_for};
pub use engine::{Done, Engine, LARGEST, Work};
pub use template::{Filled, PromptError, Template, check};
pub use tools::{Tools, Verdict};
