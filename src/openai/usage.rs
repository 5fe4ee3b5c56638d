//! The tokens that an answer reports, from every shape that real servers send.
//!
//! The names differ, and so does what they count. OpenAI's `prompt_tokens` include what
//! the provider had cached and its `completion_tokens` what the model spent on thinking;
//! Anthropic's own `input_tokens` leave the cached ones out; xAI's, Gemini's and
//! Perplexity's completion tokens leave thinking out. [`Usage::tokens`] turns all of them
//! into one meaning: [`Tokens`]. Which shape it is shows in the numbers themselves, not in
//! the provider's name, because every shape is also sent by somebody's proxy.
//!
//! Where a server says it: `usage` of the answer or of a stream's event; `x_groq.usage`
//! (Groq); `choices[0].usage` (Moonshot); `response.usage` (events of the Responses API);
//! `timings` (llama.cpp). Absorb them from the least to the most exact: `timings`, then the
//! [`Nested`] ones, then `usage`.
//!
//! Absent on purpose: an error. What is missing, null or of another type is unknown, so
//! that no answer is lost for its bookkeeping.

use serde::{Deserialize, Deserializer, de::MapAccess};

use super::forgiving::{Count, Read, object, skip};

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

impl Tokens {
    /// Takes what a later event of the same answer says. Servers count up (vLLM's
    /// `continuous_usage_stats`, Gemini) or tell input and output apart (Anthropic), so
    /// the last number of each kind holds; nothing is ever added.
    pub fn absorb(&mut self, later: Self) {
        self.input = later.input.or(self.input);
        self.cached_input = later.cached_input.or(self.cached_input);
        self.cache_write = later.cache_write.or(self.cache_write);
        self.output = later.output.or(self.output);
        self.reasoning = later.reasoning.or(self.reasoning);
    }
}

/// Reads the counts of an object, and the objects within it, by their names.
macro_rules! counts {
    ($object:ident: $($count:ident),* $(; $($inner:ident),*)?) => {
        impl<'de> Read<'de> for $object {
            fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
                match name {
                    $(stringify!($count) => self.$count = map.next_value::<Count>()?.0,)*
                    $($(stringify!($inner) => self.$inner = map.next_value()?,)*)?
                    _ => skip(map)?,
                }
                Ok(())
            }
        }

        impl<'de> Deserialize<'de> for $object {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                object(deserializer)
            }
        }
    };
}

/// A `usage` object. Read without allocating; never fails on JSON that is well-formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage(Fields);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fields {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: InputDetails,
    completion_tokens_details: OutputDetails,
    /// The Responses API and Anthropic.
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    /// The Responses API.
    input_tokens_details: InputDetails,
    output_tokens_details: OutputDetails,
    /// Anthropic, and beside `prompt_tokens` proxies in front of it.
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    /// DeepSeek.
    prompt_cache_hit_tokens: Option<u64>,
    /// Moonshot.
    cached_tokens: Option<u64>,
    /// SGLang and Databricks (part of the completion), Perplexity (beside it).
    reasoning_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InputDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    /// LiteLLM's name for it.
    cache_creation_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OutputDetails {
    reasoning_tokens: Option<u64>,
    /// Anthropic's name for it.
    thinking_tokens: Option<u64>,
}

counts!(Fields:
    prompt_tokens, completion_tokens, total_tokens, input_tokens, output_tokens,
    cache_read_input_tokens, cache_creation_input_tokens, prompt_cache_hit_tokens,
    cached_tokens, reasoning_tokens;
    prompt_tokens_details, completion_tokens_details, input_tokens_details, output_tokens_details);
counts!(InputDetails: cached_tokens, cache_write_tokens, cache_creation_tokens);
counts!(OutputDetails: reasoning_tokens, thinking_tokens);

impl InputDetails {
    fn written(&self) -> Option<u64> {
        self.cache_write_tokens.or(self.cache_creation_tokens)
    }
}

impl OutputDetails {
    fn reasoning(&self) -> Option<u64> {
        self.reasoning_tokens.or(self.thinking_tokens)
    }
}

impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer).map(Self)
    }
}

impl Usage {
    /// What it says, in one meaning for all servers.
    pub fn tokens(&self) -> Tokens {
        let fields = &self.0;
        let cached_input = (fields.prompt_tokens_details.cached_tokens)
            .or(fields.input_tokens_details.cached_tokens)
            .or(fields.cache_read_input_tokens)
            .or(fields.prompt_cache_hit_tokens)
            .or(fields.cached_tokens);
        let cache_write = (fields.prompt_tokens_details.written())
            .or(fields.input_tokens_details.written())
            .or(fields.cache_creation_input_tokens);
        let input = fields.input(cached_input.unwrap_or(0), cache_write.unwrap_or(0));
        let reasoning = (fields.completion_tokens_details.reasoning())
            .or(fields.output_tokens_details.reasoning())
            .or(fields.reasoning_tokens);
        let output = fields.output(input, reasoning);
        Tokens { input, cached_input, cache_write, output, reasoning }
    }
}

impl Fields {
    fn input(&self, cached: u64, written: u64) -> Option<u64> {
        let stated = self.prompt_tokens.or(self.input_tokens)?;
        // Anthropic counts three disjoint parts. Beside `prompt_tokens` the same names are
        // parts of the whole (Databricks, LiteLLM).
        let anthropic = self.prompt_tokens.is_none()
            && (self.cache_read_input_tokens.is_some()
                || self.cache_creation_input_tokens.is_some());
        // A part is not larger than the whole: then the whole leaves it out.
        let apart = anthropic || cached > stated;
        let beside = if apart { cached.saturating_add(written) } else { 0 };
        Some(stated.saturating_add(beside))
    }

    /// Everything after the input is charged as output, whatever it is called. Thinking is
    /// left out of the completion but not of the total by xAI and Gemini, and of both by
    /// Perplexity, where it shows because a part is not larger than the whole. Embeddings
    /// have no completion: nothing comes after the input.
    fn output(&self, input: Option<u64>, reasoning: Option<u64>) -> Option<u64> {
        let after = self.total_tokens.zip(input).and_then(|(all, input)| all.checked_sub(input));
        let Some(stated) = self.completion_tokens.or(self.output_tokens) else {
            return after.map(|after| after.max(reasoning.unwrap_or(0)));
        };
        let apart = reasoning.filter(|reasoning| *reasoning > stated).unwrap_or(0);
        Some(after.unwrap_or(0).max(stated.saturating_add(apart)))
    }
}

/// An object that holds a `usage`, for example `x_groq` or an event's `response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nested {
    /// What it holds.
    pub usage: Usage,
}

#[derive(Default)]
struct NestedFields {
    usage: Usage,
}

counts!(NestedFields: ; usage);

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NestedFields::deserialize(deserializer).map(|NestedFields { usage }| Self { usage })
    }
}

/// llama.cpp's `timings`, which it sends whether or not a stream was asked for its usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings(TimingsFields);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TimingsFields {
    cache_n: Option<u64>,
    prompt_n: Option<u64>,
    predicted_n: Option<u64>,
}

counts!(TimingsFields: cache_n, prompt_n, predicted_n);

impl<'de> Deserialize<'de> for Timings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer).map(Self)
    }
}

impl Timings {
    /// What it says. `prompt_n` leaves out what was cached, so that without `cache_n`
    /// (llama.cpp before September 2025) the input is not known.
    pub fn tokens(&self) -> Tokens {
        let TimingsFields { cache_n, prompt_n, predicted_n } = self.0;
        Tokens {
            input: cache_n.zip(prompt_n).map(|(cached, rest)| cached.saturating_add(rest)),
            cached_input: cache_n,
            output: predicted_n,
            ..Tokens::default()
        }
    }
}

#[cfg(test)]
mod tests;
