//! What providers ask for their models, as the genai-prices project keeps it. Of its
//! catalogue only what is in use is decoded: as a whole it takes 7 MB of memory, and a
//! price takes several times as long to find.
//!
//! `genai-prices/prices.json` is the data of the crate (MIT licence) without what is not
//! read here. A test compares the two, and after `cargo update` writes it again with
//! `SERINUS_REFRESH=1`.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use genai_prices::{Calculator, PriceRequest, Usage, UsageKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

static CATALOGUE: &str = include_str!("genai-prices/prices.json");
/// More models than this at once are not expected: the oldest are decoded again.
const KNOWN: usize = 1024;

/// A model with a price.
#[derive(Debug)]
pub struct Listed {
    /// The catalogue's name of the provider.
    pub provider: String,
    /// What the provider is asked for as: by its name, or for a proxy of many by the proxy's.
    asked: String,
    model: String,
    calculator: Calculator,
    flat: Option<Flat>,
}

/// Tokens of a request: read, of these from the provider's cache, of these written to it;
/// written, and of these reasoning.
pub type Amounts = [f64; 5];

pub(super) const KINDS: [UsageKey; 5] = [
    UsageKey::INPUT_TOKENS,
    UsageKey::CACHE_READ_TOKENS,
    UsageKey::CACHE_WRITE_TOKENS,
    UsageKey::OUTPUT_TOKENS,
    UsageKey::OUTPUT_REASONING_TOKENS,
];

impl Listed {
    /// USD at the prices of a moment; none: now. NaN if the amounts contradict themselves.
    pub fn usd(&self, amounts: Amounts, at: Option<SystemTime>) -> f64 {
        match &self.flat {
            Some(flat) => flat.usd(amounts),
            None => self.calculated(amounts, at),
        }
    }

    fn calculated(&self, amounts: Amounts, at: Option<SystemTime>) -> f64 {
        let usage: Usage = std::iter::zip(KINDS, amounts).collect();
        let mut request = PriceRequest::new(&self.model, &usage).with_provider_id(&self.asked);
        request.timestamp = at;
        self.calculator.calculate(&request).map_or(f64::NAN, |price| price.total_price)
    }
}

/// A price that is the same at any time and for any amount: a sum of products, which takes a
/// thousandth of the work of the catalogue's calculator.
#[derive(Debug)]
struct Flat {
    each: f64,
    per_token: Amounts,
}

impl Flat {
    /// From what a calculator says of a million tokens of each kind, if it is so simple.
    fn of(calculated: impl Fn(Amounts) -> f64) -> Option<Self> {
        const MANY: f64 = 1e6;
        let each = calculated([0.0; 5]);
        let of = |amounts: Amounts, less: f64| (calculated(amounts) - less) / MANY;
        let (input, output) = ([MANY, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, MANY, 0.0]);
        let (all_input, all_output) = (calculated(input), calculated(output));
        let flat = Self {
            each,
            per_token: [
                of(input, each),
                of([MANY, MANY, 0.0, 0.0, 0.0], all_input),
                of([MANY, 0.0, MANY, 0.0, 0.0], all_input),
                of(output, each),
                of([0.0, 0.0, 0.0, MANY, MANY], all_output),
            ],
        };
        let mixed = [9_000.0, 3_000.0, 2_000.0, 700.0, 300.0];
        let (own, theirs) = (flat.usd(mixed), calculated(mixed));
        ((own - theirs).abs() <= 1e-9 * theirs.abs()).then_some(flat)
    }

    fn usd(&self, amounts: Amounts) -> f64 {
        let parts = std::iter::zip(self.per_token, amounts).map(|(price, n)| price * n);
        self.each + parts.sum::<f64>()
    }
}

impl PartialEq for Listed {
    /// One catalogue has one price for a model.
    fn eq(&self, other: &Self) -> bool {
        (&self.asked, &self.provider, &self.model) == (&other.asked, &other.provider, &other.model)
    }
}

/// The price of a model by its provider's name or, of a name that the catalogue does not
/// know, its address.
pub fn find(name: &str, url: Option<&str>, model: &str) -> Option<Arc<Listed>> {
    let provider = provider(name, url, model)?;
    let asked = if is_proxy(name) { name } else { &provider };
    let key = [asked, &provider, model].map(str::to_owned);
    type All = HashMap<[String; 3], Option<Arc<Listed>>>;
    static LISTED: LazyLock<Mutex<All>> = LazyLock::new(Mutex::default);
    let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = listed.get(&key) {
        return known.clone();
    }
    if listed.len() >= KNOWN {
        listed.clear();
    }
    let [asked, provider, model] = key.clone();
    let found = excerpt(asked, provider, model).map(Arc::new);
    listed.insert(key, found.clone());
    found
}

/// Whether a provider passes requests on to others, which its models' names tell.
fn is_proxy(name: &str) -> bool {
    name.eq_ignore_ascii_case("litellm")
}

#[derive(Deserialize)]
struct Provider<'a> {
    id: &'a str,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    api_pattern: &'a RawValue,
    #[serde(borrow)]
    model_match: Option<&'a RawValue>,
    #[serde(borrow)]
    provider_match: Option<&'a RawValue>,
    #[serde(default)]
    fallback_model_providers: Vec<&'a str>,
    #[serde(borrow)]
    models: &'a RawValue,
}

/// What a calculator is made of.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    name: &'a str,
    api_pattern: &'a RawValue,
    model_match: Option<&'a RawValue>,
    provider_match: Option<&'a RawValue>,
    fallback_model_providers: &'a [&'a str],
    models: Vec<&'a RawValue>,
}

impl<'a> Provider<'a> {
    fn entry(&'a self, models: Vec<&'a RawValue>) -> Entry<'a> {
        Entry {
            id: self.id,
            name: &self.name,
            api_pattern: self.api_pattern,
            model_match: self.model_match,
            provider_match: self.provider_match,
            fallback_model_providers: &self.fallback_model_providers,
            models,
        }
    }
}

fn providers() -> Vec<Provider<'static>> {
    // A test reads the same text.
    serde_json::from_str(CATALOGUE).unwrap_or_default()
}

fn calculator(entries: &[Entry]) -> Option<Calculator> {
    Calculator::from_json(serde_json::to_vec(entries).ok()?).ok()
}

/// The catalogue's name of a provider.
fn provider(name: &str, url: Option<&str>, model: &str) -> Option<String> {
    /// All providers, each with one model of any name: whom a request is for is decided by
    /// the crate's rules.
    static DIRECTORY: LazyLock<Option<Calculator>> = LazyLock::new(|| {
        let any = RawValue::from_string(
            r#"{"id":"any","match":{"contains":""},"prices":{"input_mtok":1}}"#.to_owned(),
        );
        let any = any.ok()?;
        let providers = providers();
        let entries: Vec<Entry> = providers.iter().map(|p| p.entry(vec![&any])).collect();
        calculator(&entries)
    });
    static NAMES: LazyLock<Vec<&str>> =
        LazyLock::new(|| providers().iter().map(|provider| provider.id).collect());
    if !is_proxy(name) && NAMES.contains(&name) {
        return Some(name.to_owned());
    }
    let directory = DIRECTORY.as_ref()?;
    let usage = Usage::from([("input_tokens", 1.0)]);
    let request = PriceRequest::new(model, &usage);
    let by_name = directory.calculate(&request.clone().with_provider_id(name));
    let found = by_name.or_else(|e| match url {
        Some(url) => directory.calculate(&request.with_provider_api_url(url)),
        None => Err(e),
    });
    Some(found.ok()?.provider_id)
}

/// A calculator of one model.
fn excerpt(asked: String, provider: String, model: String) -> Option<Listed> {
    #[derive(Deserialize)]
    struct Id<'a> {
        #[serde(borrow)]
        id: Cow<'a, str>,
    }
    let any = RawValue::from_string(r#"{"contains":""}"#.to_owned()).ok()?;
    let nowhere = RawValue::from_string(r#""nowhere""#.to_owned()).ok()?;
    let all = providers();
    let own = all.iter().find(|p| p.id == provider)?;
    let others =
        own.fallback_model_providers.iter().filter_map(|id| all.iter().find(|p| p.id == *id));
    let mut entries = vec![];
    for provider in std::iter::once(own).chain(others) {
        let models: Vec<&RawValue> = serde_json::from_str(provider.models.get()).ok()?;
        let mut entry = provider.entry(models);
        // Which provider is known by now, and its expressions take memory.
        entry.api_pattern = &nowhere;
        entry.model_match = Some(&any);
        entries.push(entry);
    }
    // A request that every price per token makes cost something.
    let usage = Usage::from([("input_tokens", 1_000.0), ("output_tokens", 1_000.0)]);
    let request = PriceRequest::new(&model, &usage).with_provider_id(&asked);
    let price = calculator(&entries)?.calculate(&request).ok()?;
    for entry in &mut entries {
        let named = |model: &RawValue| {
            serde_json::from_str(model.get()).is_ok_and(|Id { id }| id == price.model_id)
        };
        entry.models.retain(|model| named(model));
    }
    // The catalogue lists some models without any price: for those it answers 0.
    let calculator = calculator(&entries).filter(|_| price.total_price > 0.0)?;
    // Tiers are objects, prices that change with time are lists.
    #[derive(Deserialize)]
    struct Numbers {
        #[serde(rename = "prices")]
        _prices: HashMap<String, f64>,
    }
    let mut models = entries.iter().flat_map(|entry| &entry.models);
    let is_flat = models.all(|model| serde_json::from_str::<Numbers>(model.get()).is_ok());
    let mut listed = Listed { provider, asked, model, calculator, flat: None };
    if is_flat {
        listed.flat = Flat::of(|amounts| listed.calculated(amounts, None));
    }
    Some(listed)
}
