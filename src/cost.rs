//! What a request costs: prices and usage to money.
//!
//! Prices are resolved once with the route; a request only multiplies. What is not known
//! (no price, or no token counts to a price by token) is `None` and never 0, so that an
//! unknown backend does not look like a free one: neither to a canary's cost metric nor in
//! the totals, which count such requests as unpriced.
//!
//! The catalogue's prices may depend on the date, the hour and the length of the input:
//! those that do are looked up for each request.

mod catalogue;

use std::{sync::Arc, time::SystemTime};

use self::catalogue::Amounts;
pub use self::catalogue::Listed;
use crate::{
    api::{
        LLMDeploymentSpec,
        llm_deployment::{GpuHour, Pricing},
    },
    openai::usage::Tokens,
};

/// What the requests of a backend cost.
#[derive(Clone, Debug, PartialEq)]
pub enum Prices {
    /// By token, as the LLMDeployment says.
    PerToken(PerToken),
    /// By time, as the LLMDeployment says: USD for a second of one request.
    PerSecond(f64),
    /// By token, as the built-in catalogue says.
    Catalogue(Arc<Listed>),
    /// Nobody knows.
    Unknown,
}

/// USD for a million tokens of each kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerToken {
    /// Input that the provider neither read from nor wrote to its cache.
    pub input: f64,
    /// Input that it read from its cache.
    pub cached_input: f64,
    /// Input that it wrote to its cache.
    pub cache_write: f64,
    /// Output, reasoning included.
    pub output: f64,
}

impl Prices {
    /// The prices of a backend: its own if it states any, or the catalogue's.
    pub fn of(backend: &LLMDeploymentSpec) -> Self {
        match &backend.pricing {
            Some(pricing) => Self::stated(pricing),
            None => catalogued(backend),
        }
    }

    fn stated(pricing: &Pricing) -> Self {
        if let Some(gpu_hour) = &pricing.gpu_hour {
            return per_second(gpu_hour).map_or(Self::Unknown, Self::PerSecond);
        }
        let Some((input, output)) = pricing.input_per_million.zip(pricing.output_per_million)
        else {
            return Self::Unknown;
        };
        Self::PerToken(PerToken {
            input,
            cached_input: pricing.cached_input_per_million.unwrap_or(input),
            cache_write: pricing.cache_write_per_million.unwrap_or(input),
            output,
        })
    }

    /// USD for a request that took `duration_seconds` until now; none when it is unknown.
    pub fn cost_usd(&self, tokens: Tokens, duration_seconds: f64) -> Option<f64> {
        self.cost_usd_at(tokens, duration_seconds, None)
    }

    /// As `cost_usd`, if the provider's prompt cache had not been there: input that was
    /// read from it or written to it costs what other input does. Which requests meet a
    /// warm cache depends on how much traffic a variant gets, so a canary with little of
    /// it looks more expensive than an equal stable by what it was really charged. A price
    /// by time has no such part.
    pub fn compared_usd(&self, tokens: Tokens, duration_seconds: f64) -> Option<f64> {
        let uncached = Tokens { cached_input: None, cache_write: None, ..tokens };
        self.cost_usd(uncached, duration_seconds)
    }

    /// What a request is charged (`cost_usd`) and what it is compared by (`compared_usd`).
    /// Looking a price up in the catalogue is slow, and most requests touch no prompt cache:
    /// for those it is looked up once.
    pub fn both_usd(&self, tokens: Tokens, duration_seconds: f64) -> [Option<f64>; 2] {
        let charged = self.cost_usd(tokens, duration_seconds);
        let cached = [tokens.cached_input, tokens.cache_write].into_iter().flatten().any(|n| n > 0);
        let compared = if cached { self.compared_usd(tokens, duration_seconds) } else { charged };
        [charged, compared]
    }

    /// As `cost_usd`, at the prices of `at` (none: now). Only the catalogue's depend on it.
    pub fn cost_usd_at(
        &self,
        tokens: Tokens,
        duration_seconds: f64,
        at: Option<SystemTime>,
    ) -> Option<f64> {
        let usd = match self {
            Self::Unknown => return None,
            Self::PerSecond(usd) => usd * duration_seconds,
            Self::PerToken(prices) => prices.cost_usd(Parts::of(tokens)?),
            Self::Catalogue(listed) => listed.usd(Parts::of(tokens)?.amounts(), at),
        };
        usd.is_finite().then_some(usd)
    }
}

/// The tokens of a request, each in one place.
#[derive(Clone, Copy)]
struct Parts {
    input: u64,
    cached: u64,
    written: u64,
    output: u64,
    reasoning: u64,
}

impl Parts {
    /// Nothing without both totals: half a price would look like a whole one. Parts are
    /// cut to their whole, so that a provider's slip does not make a price negative.
    fn of(tokens: Tokens) -> Option<Self> {
        let (input, output) = tokens.input.zip(tokens.output)?;
        let cached = tokens.cached_input.unwrap_or(0).min(input);
        let written = tokens.cache_write.unwrap_or(0).min(input - cached);
        let reasoning = tokens.reasoning.unwrap_or(0).min(output);
        Some(Self { input, cached, written, output, reasoning })
    }

    fn amounts(self) -> Amounts {
        let Self { input, cached, written, output, reasoning } = self;
        [input, cached, written, output, reasoning].map(|tokens| tokens as f64)
    }
}

impl PerToken {
    fn cost_usd(&self, parts: Parts) -> f64 {
        let Parts { input, cached, written, output, .. } = parts;
        let millionths = (input - cached - written) as f64 * self.input
            + cached as f64 * self.cached_input
            + written as f64 * self.cache_write
            + output as f64 * self.output;
        millionths / 1e6
    }
}

/// USD for one second of one request. None without a concurrency to divide by, which the
/// API does not admit.
fn per_second(GpuHour { usd, gpus, concurrency }: &GpuHour) -> Option<f64> {
    let usd = usd * f64::from(*gpus) / 3600.0 / concurrency;
    usd.is_finite().then_some(usd)
}

/// Looks a backend up in the catalogue, by its provider's name or else by its address.
fn catalogued(backend: &LLMDeploymentSpec) -> Prices {
    let name = catalogue_name(&backend.provider);
    let url = backend.endpoint.as_ref().map(|endpoint| endpoint.url.as_str());
    catalogue::find(name, url, &backend.model).map_or(Prices::Unknown, Prices::Catalogue)
}

/// OpenTelemetry's provider names that the catalogue knows by another one.
fn catalogue_name(provider: &str) -> &str {
    match provider {
        "x_ai" => "x-ai",
        "gcp.gen_ai" => "google",
        "azure.ai.inference" => "azure",
        other => other,
    }
}

#[cfg(test)]
mod tests;
