//! Prices and usage to money.

use genai_prices::{PriceRequest, Usage as PricedUsage, UsageKey};

use crate::api::{LLMDeploymentSpec, llm_deployment::Pricing};

/// Tokens of one request as the provider reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, the cached ones included.
    pub input: u64,
    /// Input tokens that the provider had cached.
    pub cached_input: u64,
    /// Output tokens.
    pub output: u64,
}

/// What a backend's tokens cost.
#[derive(Clone, Debug, PartialEq)]
pub enum Prices {
    /// As the LLMDeployment says.
    Stated(Pricing),
    /// As the built-in catalogue says for this provider and model.
    Catalogue {
        /// The catalogue's provider.
        provider: String,
        /// The model's name.
        model: String,
    },
}

impl Prices {
    /// The prices of a backend.
    pub fn of(backend: &LLMDeploymentSpec) -> Self {
        match &backend.pricing {
            Some(pricing) => Self::Stated(pricing.clone()),
            None => {
                Self::Catalogue { provider: backend.provider.clone(), model: backend.model.clone() }
            }
        }
    }

    /// USD for `usage`; none when the price is not known, never zero for that.
    pub fn cost_usd(&self, usage: Usage) -> Option<f64> {
        match self {
            Self::Stated(pricing) => {
                let cached = usage.cached_input.min(usage.input);
                let cached_price =
                    pricing.cached_input_per_million.unwrap_or(pricing.input_per_million);
                let millionths = (usage.input - cached) as f64 * pricing.input_per_million
                    + cached as f64 * cached_price
                    + usage.output as f64 * pricing.output_per_million;
                Some(millionths / 1e6)
            }
            Self::Catalogue { provider, model } => {
                let tokens = PricedUsage::from([
                    (UsageKey::INPUT_TOKENS, usage.input as f64),
                    (UsageKey::CACHE_READ_TOKENS, usage.cached_input as f64),
                    (UsageKey::OUTPUT_TOKENS, usage.output as f64),
                ]);
                let request =
                    PriceRequest::new(model.as_str(), &tokens).with_provider_id(provider.as_str());
                genai_prices::calculate(&request)
                    .ok()
                    .map(|p| p.total_price)
                    .filter(|p| p.is_finite())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage { input: 1_000_000, cached_input: 400_000, output: 100_000 };

    #[test]
    fn stated_prices_count_cached_input_at_its_own_price() {
        let prices = Prices::Stated(Pricing {
            input_per_million: 1.0,
            cached_input_per_million: Some(0.5),
            output_per_million: 10.0,
        });
        assert!((prices.cost_usd(USAGE).unwrap() - (0.6 + 0.2 + 1.0)).abs() < 1e-12);
    }

    #[test]
    fn the_catalogue_knows_common_models_and_says_when_it_does_not() {
        let of = |provider: &str, model: &str| Prices::Catalogue {
            provider: provider.into(),
            model: model.into(),
        };
        // gpt-4o-mini: 0.15 input, 0.075 cached, 0.60 output a million.
        let cost = of("openai", "gpt-4o-mini").cost_usd(USAGE).unwrap();
        assert!((cost - (0.09 + 0.03 + 0.06)).abs() < 1e-9, "{cost}");
        assert_eq!(of("nobody", "no-such-model").cost_usd(USAGE), None);
    }
}
