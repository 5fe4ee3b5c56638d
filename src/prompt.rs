//! Template and inputs to messages; the content hashes that name prompts and variants.

mod digest;
mod plain;
mod schema;
mod template;
mod tools;

pub use digest::{REVISION_DIGITS, digest, revision, short, stands_for};
pub use template::{PromptError, Template, check};
pub use tools::{Tools, Verdict};
