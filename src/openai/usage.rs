//! The tokens that an answer reports, from every shape that real servers send.

/// Tokens of one request as the provider reported them; none where it did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All input tokens, the cached ones included.
    pub input: Option<u64>,
    /// Input tokens that the provider read from its cache, part of `input`.
    pub cached_input: Option<u64>,
    /// Input tokens that the provider wrote to its cache, part of `input`.
    pub cache_write: Option<u64>,
    /// All output tokens that are charged, reasoning included.
    pub output: Option<u64>,
    /// Output tokens that the model spent on thinking, part of `output`.
    pub reasoning: Option<u64>,
}
