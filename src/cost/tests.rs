//! Against hand-computed figures, the catalogue's published examples and what providers
//! themselves charged.

use std::time::{Duration, UNIX_EPOCH};

use genai_prices::{Calculator, PriceRequest, Usage};
use serde_json::{Map, Value};

use super::*;
use crate::api::llm_deployment::Endpoint;

fn backend(provider: &str, model: &str) -> LLMDeploymentSpec {
    LLMDeploymentSpec {
        provider: provider.to_owned(),
        model: model.to_owned(),
        ..LLMDeploymentSpec::default()
    }
}

fn at(backend: &LLMDeploymentSpec, url: &str) -> LLMDeploymentSpec {
    let endpoint = Some(Endpoint { url: url.to_owned(), ..Endpoint::default() });
    LLMDeploymentSpec { endpoint, ..backend.clone() }
}

fn priced(pricing: &str) -> Prices {
    let pricing = serde_yaml_ng::from_str(pricing).unwrap();
    Prices::of(&LLMDeploymentSpec { pricing: Some(pricing), ..backend("vllm", "m") })
}

fn tokens(input: u64, cached: u64, written: u64, output: u64) -> Tokens {
    Tokens {
        input: Some(input),
        cached_input: Some(cached),
        cache_write: Some(written),
        output: Some(output),
        reasoning: None,
    }
}

fn assert_usd(cost: Option<f64>, expected: f64) {
    let cost = cost.unwrap();
    assert!((cost - expected).abs() < 1e-12 + expected * 1e-9, "{cost} is not {expected}");
}

/// Of the catalogue, on a day when its prices were checked.
fn catalogue(provider: &str, model: &str, tokens: Tokens) -> Option<f64> {
    let day = UNIX_EPOCH + Duration::from_secs(1_791_763_200); // 2026-10-12, midnight
    Prices::of(&backend(provider, model)).cost_usd_at(tokens, 1.0, Some(day))
}

#[test]
fn each_kind_of_token_has_its_own_price() {
    let all = priced(
        "{inputPerMillion: 1, cachedInputPerMillion: 0.1, cacheWritePerMillion: 1.25, outputPerMillion: 10}",
    );
    // 500,000 fresh, 400,000 cached, 100,000 written, 100,000 output.
    let usage = tokens(1_000_000, 400_000, 100_000, 100_000);
    assert_usd(all.cost_usd(usage, 1.0), 0.5 + 0.04 + 0.125 + 1.0);
    let two = priced("{inputPerMillion: 1, outputPerMillion: 10}");
    assert_usd(two.cost_usd(usage, 1.0), 1.0 + 1.0);
    // Reasoning is part of the output and not charged twice.
    let thinking = Tokens { reasoning: Some(90_000), ..usage };
    assert_usd(two.cost_usd(thinking, 1.0), 2.0);
}

#[test]
fn variants_are_compared_without_the_prompt_cache_and_the_bill_stays_true() {
    let prices = priced(
        "{inputPerMillion: 1, cachedInputPerMillion: 0.1, cacheWritePerMillion: 1.25, outputPerMillion: 10}",
    );
    let (cold, warm, none) =
        (tokens(3_000, 0, 2_900, 100), tokens(3_000, 2_900, 0, 100), tokens(3_000, 0, 0, 100));
    for usage in [cold, warm, none] {
        assert_usd(prices.compared_usd(usage, 1.0), 0.003 + 0.001);
    }
    for backend in [prices.clone(), Prices::of(&backend("openai", "gpt-4o-mini"))] {
        for usage in [cold, warm, none, Tokens::default()] {
            let each = [backend.cost_usd(usage, 1.0), backend.compared_usd(usage, 1.0)];
            assert_eq!(backend.both_usd(usage, 1.0), each, "{usage:?}");
        }
    }
    assert!(prices.cost_usd(cold, 1.0) > prices.compared_usd(cold, 1.0));
    assert!(prices.cost_usd(warm, 1.0) < prices.compared_usd(warm, 1.0));
    let listed = Prices::of(&backend("openai", "gpt-4o-mini"));
    assert_eq!(listed.compared_usd(warm, 1.0), listed.cost_usd(none, 1.0));
    assert!(listed.compared_usd(warm, 1.0) > listed.cost_usd(warm, 1.0));
    let hourly = priced("{gpuHour: {usd: 2.5, gpus: 4, concurrency: 20}}");
    assert_eq!(hourly.compared_usd(warm, 2.0), hourly.cost_usd(warm, 2.0));
    assert_eq!(prices.compared_usd(Tokens::default(), 1.0), None, "unknown, not free");
}

#[test]
fn a_part_larger_than_its_whole_makes_no_price_negative() {
    let prices = priced("{inputPerMillion: 1, cachedInputPerMillion: 0, outputPerMillion: 1}");
    assert_usd(prices.cost_usd(tokens(10, 1_000, 1_000, 0), 1.0), 0.0);
    assert!(catalogue("openai", "gpt-4o-mini", tokens(10, 1_000, 1_000, 5)).is_some());
}

#[test]
fn gpus_cost_by_the_time_that_a_request_keeps_its_share_of_them() {
    // Four GPUs at 2.50 USD an hour, 20 requests at a time: 10 / 3600 / 20 a second.
    let prices = priced("{gpuHour: {usd: 2.5, gpus: 4, concurrency: 20}}");
    assert_usd(prices.cost_usd(Tokens::default(), 7.2), 0.001);
    // An hour with 20 requests at any moment costs what the GPUs do.
    let hour: f64 = (0..1800).map(|_| prices.cost_usd(Tokens::default(), 40.0).unwrap()).sum();
    assert_usd(Some(hour), 10.0);
    assert_usd(
        priced("{gpuHour: {usd: 3.6, concurrency: 1}}").cost_usd(Tokens::default(), 1.0),
        0.001,
    );
}

#[test]
fn what_is_not_known_is_none_and_not_zero() {
    let prices = priced("{inputPerMillion: 1, outputPerMillion: 10}");
    let input_only = Tokens { output: None, ..tokens(5, 0, 0, 0) };
    assert_eq!(prices.cost_usd(input_only, 1.0), None);
    assert_eq!(prices.cost_usd(Tokens::default(), 1.0), None);
    assert_eq!(Prices::of(&backend("nobody", "no-such-model")), Prices::Unknown);
    assert_eq!(Prices::of(&backend("openai", "no-such-model")), Prices::Unknown);
    // A server of one's own is not its model's maker.
    assert_eq!(Prices::of(&backend("vllm", "gpt-4o-mini")), Prices::Unknown);
    // In the catalogue, but without a price there.
    assert_eq!(Prices::of(&backend("google", "gemma-3")), Prices::Unknown);
    assert_eq!(Prices::of(&backend("github-copilot", "gpt-4o")), Prices::Unknown);
    assert_eq!(Prices::Unknown.cost_usd(tokens(1, 0, 0, 1), 1.0), None);
    // Free is what somebody says is free.
    let free = priced("{inputPerMillion: 0, outputPerMillion: 0}");
    assert_eq!(free.cost_usd(tokens(1, 0, 0, 1), 1.0), Some(0.0));
}

#[test]
fn the_catalogue_agrees_with_the_published_prices() {
    // The first example in the catalogue's README: 1.25 and 10 USD a million.
    assert_usd(catalogue("openai", "gpt-5", tokens(1_000, 0, 0, 100)), 0.002_25);
    // https://platform.openai.com/docs/pricing: 0.15, 0.075 cached, 0.60.
    let mini = tokens(1_000_000, 400_000, 0, 100_000);
    assert_usd(catalogue("openai", "gpt-4o-mini", mini), 0.09 + 0.03 + 0.06);
    assert_usd(catalogue("openai", "gpt-4o-mini-2024-07-18", mini), 0.18);
    assert_usd(catalogue("openai", "text-embedding-3-small", tokens(1_000_000, 0, 0, 0)), 0.02);
    // Anthropic's example of prompt caching at 3, 3.75 written, 0.30 read, 15.
    let usage = tokens(100_298, 100_000, 248, 503);
    assert_usd(catalogue("anthropic", "claude-sonnet-4-5", usage), 0.038_625);
    // Beyond 200,000 tokens of input everything is dearer: 2.50, 15.
    assert_usd(catalogue("gcp.gemini", "gemini-2.5-pro", tokens(200_000, 0, 0, 1_000)), 0.26);
    assert_usd(catalogue("gcp.gemini", "gemini-2.5-pro", tokens(400_000, 0, 0, 1_000)), 1.015);
}

/// `cost_in_usd_ticks` of that answer: 232856000 of 10,000,000,000 a USD.
#[test]
fn a_request_costs_what_xai_says_it_charged() {
    let usage = Tokens { reasoning: Some(2809), ..tokens(10_120, 128, 0, 4308) };
    let prices =
        priced("{inputPerMillion: 1.25, cachedInputPerMillion: 0.2, outputPerMillion: 2.5}");
    assert_usd(prices.cost_usd(usage, 1.0), 0.023_285_6);
    assert_usd(catalogue("x_ai", "grok-4.20", usage), 0.023_285_6);
}

#[test]
fn prices_that_depend_on_the_time_follow_it() {
    let usage = tokens(1_000_000, 0, 0, 0);
    let prices = Prices::of(&backend("deepseek", "deepseek-chat"));
    let noon = UNIX_EPOCH + Duration::from_secs(1_791_763_200 + 12 * 3600);
    let night = noon + Duration::from_secs(8 * 3600);
    assert_usd(prices.cost_usd_at(usage, 1.0, Some(noon)), 0.27);
    assert_usd(prices.cost_usd_at(usage, 1.0, Some(night)), 0.135);
    // o3 cost 10 USD until 2025-06-10, and 2 since.
    let prices = Prices::of(&backend("openai", "o3"));
    let before = UNIX_EPOCH + Duration::from_secs(1_748_736_000);
    assert_usd(prices.cost_usd_at(usage, 1.0, Some(before)), 10.0);
    assert_usd(prices.cost_usd_at(usage, 1.0, Some(noon)), 2.0);
}

#[test]
fn backends_are_found_by_opentelemetrys_names_or_else_by_their_address() {
    let provider = |backend: &LLMDeploymentSpec| match Prices::of(backend) {
        Prices::Catalogue(listed) => Some(listed.provider.clone()),
        _ => None,
    };
    for (name, model, expected) in [
        ("openai", "gpt-4o-mini", "openai"),
        ("azure.ai.openai", "gpt-4o-mini", "openai"),
        ("azure.ai.inference", "gpt-4o-mini", "azure"),
        ("gcp.gemini", "gemini-2.5-flash", "google"),
        ("gcp.gen_ai", "gemini-2.5-flash", "google"),
        ("gcp.vertex_ai", "gemini-2.5-flash", "google"),
        ("mistral_ai", "mistral-small-latest", "mistral"),
        ("x_ai", "grok-4", "x-ai"),
        ("deepseek", "deepseek-chat", "deepseek"),
        ("groq", "llama-3.3-70b-versatile", "groq"),
        ("anthropic", "claude-sonnet-4-5", "anthropic"),
    ] {
        assert_eq!(provider(&backend(name, model)).as_deref(), Some(expected), "{name}");
    }
    let named = backend("our-gpt", "gpt-4o-mini");
    assert_eq!(provider(&named), None);
    assert_eq!(provider(&at(&named, "https://api.openai.com/v1")).as_deref(), Some("openai"));
    assert_eq!(provider(&at(&named, "http://127.0.0.1:9/v1")), None);
}

/// Whatever the catalogue lists: a price above 0, or unknown.
#[test]
fn no_model_of_the_catalogue_is_free_by_mistake() {
    let calculator = Calculator::bundled();
    let mut known = 0;
    for name in ["openai", "anthropic", "google", "mistral", "groq", "deepseek", "x-ai", "cohere"] {
        let provider = calculator.find_provider(Some(name), None).unwrap().unwrap();
        for model in provider.models() {
            let prices = Prices::of(&backend(name, model.id()));
            let cost = prices.cost_usd(tokens(1_000, 10, 10, 1_000), 1.0);
            assert_eq!(cost.is_some(), prices != Prices::Unknown, "{name} {}", model.id());
            assert!(cost.is_none_or(|usd| usd > 0.0), "{name} {}", model.id());
            known += usize::from(cost.is_some());
        }
    }
    assert!(known > 200, "{known}");
}

/// What is read of the crate's data, a line for each model.
fn read_of(data: &[u8]) -> String {
    const PROVIDER: [&str; 7] = [
        "id",
        "name",
        "api_pattern",
        "model_match",
        "provider_match",
        "fallback_model_providers",
        "models",
    ];
    const MODEL: [&str; 3] = ["id", "match", "prices"];
    let only = |value: &Value, fields: &[&str]| -> Map<String, Value> {
        let all = value.as_object().unwrap().iter();
        let kept = all.filter(|(name, _)| fields.contains(&name.as_str()));
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let providers: Vec<Value> = serde_json::from_slice(data).unwrap();
    let lines = |provider: &Value| {
        let mut provider = only(provider, &PROVIDER);
        let models = provider.remove("models").unwrap();
        let models = models.as_array().unwrap().iter();
        let models: Vec<String> =
            models.map(|model| Value::Object(only(model, &MODEL)).to_string()).collect();
        let head = Value::Object(provider).to_string();
        let head = head.strip_suffix('}').unwrap();
        format!("{head},\"models\":[\n{}]}}", models.join(",\n"))
    };
    let providers: Vec<String> = providers.iter().map(lines).collect();
    format!("[\n{}\n]\n", providers.join(",\n"))
}

#[test]
fn the_catalogue_is_that_of_the_crate_in_use() {
    // Of this machine alone: what others need was never downloaded here.
    let host = std::process::Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let host = String::from_utf8(host).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "genai-prices").unwrap();
    let manifest = std::path::Path::new(package["manifest_path"].as_str().unwrap());
    let expected = read_of(&std::fs::read(manifest.with_file_name("data/prices.json")).unwrap());
    let ours =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cost/genai-prices/prices.json");
    if std::env::var_os("SERINUS_REFRESH").is_some() {
        std::fs::write(&ours, &expected).unwrap();
    }
    let same = std::fs::read_to_string(&ours).unwrap() == expected;
    assert!(same, "SERINUS_REFRESH=1 cargo test writes {} again", ours.display());
}

/// One model at a time or all at once: a price is the same.
#[test]
fn every_model_costs_what_the_whole_catalogue_says() {
    let all = Calculator::bundled();
    let long = tokens(400_000, 50_000, 1_000, 900);
    let now = UNIX_EPOCH + Duration::from_secs(1_791_763_200);
    let mut compared = 0;
    let mut compare = |name: &str, url: Option<&str>, model: &str| {
        let mut asked = backend(name, model);
        if let Some(url) = url {
            asked = at(&asked, url);
        }
        let prices = Prices::of(&asked);
        let thought = Tokens { reasoning: Some(700), ..tokens(70, 7, 3, 777) };
        let cases =
            [(tokens(1_000, 100, 0, 50), 0), (long, 13), (thought, 20), (tokens(1, 0, 0, 1), 3)];
        for (tokens, hour) in cases {
            let at = now + Duration::from_secs(hour * 3600);
            let amounts = Parts::of(tokens).unwrap().amounts();
            let usage: Usage = std::iter::zip(catalogue::KINDS, amounts).collect();
            let request = PriceRequest::new(model, &usage).with_timestamp(at);
            let by_name = all.calculate(&request.clone().with_provider_id(name));
            let expected = by_name.or_else(|e| match url {
                Some(url) if e.kind() == genai_prices::ErrorKind::ProviderNotFound => {
                    all.calculate(&request.with_provider_api_url(url))
                }
                _ => Err(e),
            });
            let expected = expected.ok().map(|price| price.total_price).filter(|usd| *usd > 0.0);
            let ours = prices.cost_usd_at(tokens, 1.0, Some(at)).filter(|usd| *usd > 0.0);
            let same = match (ours, expected) {
                (Some(ours), Some(expected)) => (ours - expected).abs() <= 1e-9 * expected,
                (ours, expected) => ours == expected,
            };
            assert!(same, "{ours:?} {expected:?} {name} {url:?} {model}");
            compared += usize::from(expected.is_some());
        }
    };
    for provider in all.providers() {
        for model in provider.models() {
            compare(provider.id(), None, model.id());
        }
    }
    for (name, url, model) in [
        ("litellm", None, "anthropic/claude-sonnet-4-5"),
        ("LiteLLM", None, "gpt-4o-mini"),
        ("litellm", None, "gemini/gemini-2.5-flash"),
        ("litellm", None, "nobody/gpt-4o-mini"),
        ("litellm", Some("https://api.openai.com/v1"), "gpt-4o"),
        ("ours", Some("https://api.openai.com/v1"), "gpt-4o-mini-2024-07-18"),
        ("ours", Some("https://api.mistral.ai/v1"), "mistral-small-latest"),
        ("ours", Some("http://10.0.0.7/v1"), "gpt-4o"),
        ("openai", None, "no-such-model"),
        ("openai", None, "GPT-4o-Mini"),
        ("OpenAI", None, "gpt-5.2-20251211"),
        ("google_vertex", None, "claude-sonnet-4-5"),
        ("azure", None, "claude-sonnet-4-5"),
    ] {
        compare(name, url, model);
    }
    assert!(compared > 4_000, "{compared}");
}
