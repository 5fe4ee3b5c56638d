//! When models end, as files say that others keep: [LiteLLM's list of models][1], and products
//! of [endoflife.date][2].
//!
//! [1]: https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json
//! [2]: https://endoflife.date/docs/api/v1/

use std::{collections::BTreeMap, str::FromStr};

use jiff::civil::Date;
use serde_json::{Map, Value};

/// The days on which models end, by provider and model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dates(BTreeMap<(String, String), Date>);

/// Its models' names begin with the provider of each.
const PROXY: &str = "litellm";
/// What others call the providers that OpenTelemetry's `gen_ai.provider.name` has names for, and
/// how one of several is written here.
const PROVIDERS: [(&str, &[&str]); 10] = [
    ("openai", &["textcompletionopenai"]),
    ("azure", &["azureai", "azureaiopenai", "azureaiinference", "azureopenai"]),
    ("bedrock", &["bedrockconverse", "bedrockmantle", "awsbedrock"]),
    ("gemini", &["gcpgemini", "gcpgenai", "google"]),
    ("vertexai", &["gcpvertexai"]),
    ("anthropic", &["claude"]),
    ("mistral", &["mistralai"]),
    ("together", &["togetherai"]),
    ("fireworks", &["fireworksai"]),
    ("moonshot", &["moonshotai"]),
];

impl Dates {
    /// Reads a file.
    ///
    /// # Errors
    /// It is in neither form, or has no date of a model: nobody would be warned.
    pub fn read(json: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(json).map_err(|e| format!("it is no JSON: {e}"))?;
        let mut dates = Self::default();
        let all = value.as_object();
        match value.get("result") {
            Some(result) => dates.add_products(result),
            None => all.into_iter().for_each(|all| dates.add_models(all)),
        }
        if dates.0.is_empty() {
            return Err("it has no date of a model. It must be an object of models with \
                        `deprecation_date` as LiteLLM has, or a product of the API v1 of \
                        endoflife.date (`result.releases` with `eolFrom`)"
                .to_owned());
        }
        Ok(dates)
    }

    /// How many models have a date.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no model has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Both; of two dates of one model the earlier one, so that people hear in time.
    pub fn merge(&mut self, other: Self) {
        for (key, date) in other.0 {
            self.add(key, date);
        }
    }

    /// When a model ends, as an LLMDeployment names it and its provider. A proxy of many
    /// (`litellm`) has names of models that begin with the provider.
    pub fn of(&self, provider: &str, model: &str) -> Option<Date> {
        let by = provider_of(provider);
        let (by, model) = match model.split_once('/') {
            Some((first, rest)) if by == PROXY => (provider_of(first), rest),
            _ => (by, model),
        };
        let date = |model: &str| self.0.get(&(by.clone(), model.to_owned())).copied();
        // What OpenAI has tuned is named ft:MODEL:… and ends with its model.
        let tuned = || {
            let base = model.strip_prefix("ft:")?.split(':').next()?;
            date(&format!("ft:{base}"))
        };
        date(model).or_else(tuned)
    }

    fn add(&mut self, key: (String, String), date: Date) {
        let known = self.0.entry(key).or_insert(date);
        *known = date.min(*known);
    }

    fn add_models(&mut self, all: &Map<String, Value>) {
        for (name, entry) in all {
            let text = |field: &str| entry.get(field).and_then(Value::as_str);
            let date = text("deprecation_date").and_then(|date| Date::from_str(date).ok());
            let (Some(date), Some(by)) = (date, text("litellm_provider")) else { continue };
            let by = provider_of(by);
            let model = match name.split_once('/') {
                Some((prefix, model)) if provider_of(prefix) == by => model,
                _ => name,
            };
            self.add((by, model.to_owned()), date);
        }
    }

    fn add_products(&mut self, result: &Value) {
        let products = match result {
            Value::Array(products) => products.iter().collect(),
            product => vec![product],
        };
        for product in products {
            let by = provider_of(product.get("name").and_then(Value::as_str).unwrap_or_default());
            let releases = product.get("releases").and_then(Value::as_array);
            for release in releases.into_iter().flatten() {
                let text = |field: &str| release.get(field).and_then(Value::as_str);
                let date = text("eolFrom").and_then(|date| Date::from_str(date).ok());
                if let (Some(model), Some(date)) = (text("name"), date) {
                    self.add((by.clone(), model.to_owned()), date);
                }
            }
        }
    }
}

/// One name for all names of a provider.
fn provider_of(name: &str) -> String {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    // LiteLLM has one for each family of models on Vertex AI.
    if plain.starts_with("vertexai") {
        return "vertexai".to_owned();
    }
    let own = PROVIDERS.iter().find(|(_, others)| others.contains(&plain.as_str()));
    own.map_or(plain, |(own, _)| (*own).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries as LiteLLM 1.109.1 has them, and one of its explanations.
    const LITELLM: &str = r#"{
        "sample_spec": {"litellm_provider": "one of …", "deprecation_date": "in the format YYYY-MM-DD"},
        "gpt-5": {"litellm_provider": "openai", "deprecation_date": "2026-12-11", "mode": "chat"},
        "gpt-4o": {"litellm_provider": "openai", "mode": "chat"},
        "ft:gpt-4o-2024-08-06": {"litellm_provider": "openai", "deprecation_date": "2027-01-14"},
        "azure/gpt-5": {"litellm_provider": "azure", "deprecation_date": "2027-02-09"},
        "azure_ai/gpt-5": {"litellm_provider": "azure_ai", "deprecation_date": "2027-02-05"},
        "us.meta.llama3-1-70b-instruct-v1:0":
            {"litellm_provider": "bedrock_converse", "deprecation_date": "2027-03-30"},
        "vertex_ai/claude-3-haiku@20240307":
            {"litellm_provider": "vertex_ai-anthropic_models", "deprecation_date": "2026-08-23"},
        "together_ai/Qwen/Qwen3": {"litellm_provider": "together_ai", "deprecation_date": "2026-06-04"},
        "xai/grok-3": {"litellm_provider": "xai", "deprecation_date": "2027-01-01"}
    }"#;

    /// As endoflife.date's API v1 answers for a product.
    const CLAUDE: &str = r#"{"schema_version": "1.2.0", "result": {"name": "claude", "releases": [
        {"name": "claude-opus-4-1-20250805", "isEol": true, "eolFrom": "2026-08-05"},
        {"name": "claude-sonnet-9", "isEol": false, "eolFrom": null}
    ]}}"#;

    #[test]
    fn a_model_is_found_by_the_name_that_its_provider_has_for_it() {
        let mut dates = Dates::read(LITELLM).unwrap();
        dates.merge(Dates::read(CLAUDE).unwrap());
        for (by, model, expected) in [
            ("openai", "gpt-5", Some("2026-12-11")),
            ("openai", "gpt-4o", None),
            ("openai", "ft:gpt-4o-2024-08-06:team::abc", Some("2027-01-14")),
            // Of two dates the earlier one.
            ("azure.ai.openai", "gpt-5", Some("2027-02-05")),
            ("azure", "gpt-5", Some("2027-02-05")),
            ("aws.bedrock", "us.meta.llama3-1-70b-instruct-v1:0", Some("2027-03-30")),
            ("gcp.vertex_ai", "claude-3-haiku@20240307", Some("2026-08-23")),
            ("together", "Qwen/Qwen3", Some("2026-06-04")),
            ("x_ai", "grok-3", Some("2027-01-01")),
            ("anthropic", "claude-opus-4-1-20250805", Some("2026-08-05")),
            ("anthropic", "claude-sonnet-9", None),
            ("litellm", "openai/gpt-5", Some("2026-12-11")),
            ("litellm", "together_ai/Qwen/Qwen3", Some("2026-06-04")),
            // Somebody else's server with a model of that name.
            ("vllm", "gpt-5", None),
            ("openai", "azure/gpt-5", None),
        ] {
            let expected = expected.map(|date| date.parse().unwrap());
            assert_eq!(dates.of(by, model), expected, "{by} {model}");
        }
    }

    #[test]
    fn a_file_by_which_nobody_would_be_warned_is_refused() {
        for (text, part) in [
            ("", "no JSON"),
            ("gpt-5: 2026-12-11", "no JSON"),
            ("[]", "no date"),
            ("{}", "no date"),
            (r#"{"gpt-5": {"litellm_provider": "openai", "deprecation_date": "soon"}}"#, "no date"),
            (r#"{"result": {"name": "claude", "releases": [{"name": "x"}]}}"#, "no date"),
        ] {
            let error = Dates::read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
