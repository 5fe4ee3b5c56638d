//! The route table: what the gateway knows, built from what the operator decided. A
//! request reads one immutable table; a change swaps the whole.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::Uri;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_64;

use super::breaker::Breaker;
use crate::{
    api::{
        LLMDeploymentSpec, Variant,
        prompt_release::{Counts, RoutedVariant, Routing, VariantRole},
        prompt_version::Parameters,
    },
    audit::record::Origin,
    cost::Prices,
    prompt::Template,
};

/// Everything that routes are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// One a release.
    pub releases: Vec<Arc<ReleaseInput>>,
}

impl FromIterator<ReleaseInput> for World {
    fn from_iter<I: IntoIterator<Item = ReleaseInput>>(inputs: I) -> Self {
        Self { releases: inputs.into_iter().map(Arc::new).collect() }
    }
}

/// What a route is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReleaseInput {
    /// The release's namespace.
    pub namespace: String,
    /// The release's name.
    pub name: String,
    /// Part of the assignment's hash.
    pub uid: String,
    /// The model name that applications send.
    pub route: String,
    /// When the release was created, as text that sorts by time.
    pub created: String,
    /// What the operator decided.
    pub routing: Routing,
    /// The saved variants, by revision.
    pub variants: HashMap<String, Variant>,
    /// The backends as they are now, by name: limits, pricing and secret of these count.
    pub backends: HashMap<String, LLMDeploymentSpec>,
    /// API keys, by backend name.
    pub api_keys: HashMap<String, String>,
}

/// Where a sticky key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickySource {
    /// A request header.
    Header(String),
    /// A field of the body.
    Body(String),
}

/// One variant, ready to be called.
pub struct Target {
    /// The revision.
    pub revision: String,
    /// What all records of it share.
    pub origin: Arc<Origin>,
    /// Its part in the routing.
    pub role: VariantRole,
    /// Where to send chat completions.
    pub url: String,
    /// The model name upstream.
    pub model: String,
    /// The API key, if any.
    pub api_key: Option<String>,
    /// Timeouts.
    pub timeout: Duration,
    /// Timeout of the first token.
    pub first_token_timeout: Duration,
    /// The compiled prompt.
    pub template: Template,
    /// Fields that the prompt sets on every request.
    pub fields: Map<String, Value>,
    /// Tools that the prompt adds.
    pub tools: Vec<Value>,
    /// Prices.
    pub prices: Prices,
    /// Survives table swaps.
    pub state: Arc<TargetState>,
}

/// What of a variant survives a swap of the table.
pub struct TargetState {
    /// Requests in flight.
    pub permits: Arc<Semaphore>,
    limit: usize,
    /// Opens when the variant fails outright.
    pub breaker: Breaker,
}

/// The counts of one variant under one routing generation.
#[derive(Debug, Default)]
pub struct Tally {
    /// Fair draws that chose this variant.
    pub assigned: AtomicU64,
    /// Everything that is known when the answer has ended.
    pub counts: Mutex<Counts>,
}

impl Tally {
    /// The counts so far.
    pub fn read(&self) -> Counts {
        let counts = self.counts.lock().map(|c| c.clone()).unwrap_or_default();
        Counts { assigned: self.assigned.load(Ordering::Relaxed), ..counts }
    }
}

/// The part of a route that is under comparison.
pub struct Candidate {
    /// The variant.
    pub target: Arc<Target>,
    /// Its share in percent.
    pub weight: u32,
    /// It is in charge already and only compared with the one before.
    pub promoted: bool,
}

/// The part of a route that gets copies.
pub struct Shadow {
    /// The variant.
    pub target: Arc<Target>,
    /// The share of requests that is copied, in percent.
    pub percent: u32,
}

/// One route.
pub struct Route {
    /// What it was built from.
    input: Arc<ReleaseInput>,
    /// `namespace/name` of the release.
    pub release: String,
    /// A short hash of it, for request ids.
    pub release_hash: u32,
    /// Part of the assignment's hash.
    pub uid: String,
    /// The model name that applications send.
    pub name: String,
    /// The routing generation.
    pub generation: i64,
    /// Answers unless the draw chooses the candidate, and when the candidate fails.
    pub baseline: Arc<Target>,
    /// Under comparison.
    pub candidate: Option<Candidate>,
    /// Gets copies of what the baseline answers; never together with a candidate.
    pub shadow: Option<Shadow>,
    /// Where the sticky key comes from.
    pub sticky: Vec<StickySource>,
    /// Answer with the baseline when the candidate fails before its first byte.
    pub fallback: bool,
    /// Counts by revision.
    pub tallies: HashMap<String, Arc<Tally>>,
}

impl Route {
    /// The variant that is not trusted yet, whether users see it or not: its breaker counts.
    pub fn on_trial(&self) -> Option<&Arc<Target>> {
        let shadow = self.shadow.as_ref().map(|s| &s.target);
        self.candidate.as_ref().map(|c| &c.target).or(shadow)
    }
}

/// All routes.
#[derive(Default)]
pub struct RouteTable {
    routes: HashMap<String, Arc<Route>>,
}

impl RouteTable {
    /// Builds the table. A release whose routing can not be applied (a variant is
    /// missing or not valid) keeps its previous route; what went wrong is returned.
    /// Routes whose input did not change are taken over as they are.
    pub fn build(world: &World, previous: &Self) -> (Self, Vec<String>) {
        let mut inputs: Vec<&Arc<ReleaseInput>> = world.releases.iter().collect();
        inputs.sort_by_key(|i| (&i.created, &i.namespace, &i.name));
        let (mut routes, mut problems) = (HashMap::new(), vec![]);
        for input in inputs {
            let key = format!("{}/{}", input.namespace, input.name);
            if routes.contains_key(&input.route) {
                problems
                    .push(format!("{key}: the route {} is held by an older release", input.route));
                continue;
            }
            let old = previous.routes.get(&input.route).filter(|r| r.release == key);
            if let Some(same) = old.filter(|old| old.input == *input) {
                routes.insert(input.route.clone(), same.clone());
                continue;
            }
            match build_route(input, key, old.map(Arc::as_ref)) {
                Ok(route) => {
                    routes.insert(input.route.clone(), Arc::new(route));
                }
                Err(problem) => {
                    problems.push(problem);
                    if let Some(old) = old {
                        routes.insert(input.route.clone(), old.clone());
                    }
                }
            }
        }
        (Self { routes }, problems)
    }

    /// The route of a model name.
    pub fn get(&self, model: &str) -> Option<&Arc<Route>> {
        self.routes.get(model)
    }

    /// All routes.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }
}

fn build_route(
    input: &Arc<ReleaseInput>,
    key: String,
    old: Option<&Route>,
) -> Result<Route, String> {
    let routing = &input.routing;
    let of = |role| routing.variants.iter().find(|v| v.role == role);
    let stable = of(VariantRole::Stable).ok_or_else(|| format!("{key}: no stable variant"))?;
    let (baseline, candidate) = match (of(VariantRole::Canary), of(VariantRole::Previous)) {
        (Some(canary), _) => (stable, Some((canary, false))),
        // The same cut of users goes on: the promoted variant is still the one that the hash draws.
        (None, Some(previous)) => (previous, Some((stable, true))),
        (None, None) => (stable, None),
    };
    let target = |routed: &RoutedVariant| build_target(input, &key, routed, old);
    let candidate = candidate
        .map(|(variant, promoted)| {
            let weight = u32::try_from(variant.weight).unwrap_or(0);
            Ok::<_, String>(Candidate { target: target(variant)?, weight, promoted })
        })
        .transpose()?;
    let shadow = of(VariantRole::Shadow)
        .map(|variant| {
            let percent = variant.copies.and_then(|p| u32::try_from(p).ok()).unwrap_or(0);
            Ok::<_, String>(Shadow { target: target(variant)?, percent })
        })
        .transpose()?;
    let kept = old.filter(|old| old.generation == routing.generation);
    let tally = |revision: &String| {
        let known = kept.and_then(|old| old.tallies.get(revision)).cloned();
        (revision.clone(), known.unwrap_or_default())
    };
    Ok(Route {
        input: input.clone(),
        release_hash: xxh3_64(key.as_bytes()) as u32,
        uid: input.uid.clone(),
        name: input.route.clone(),
        generation: routing.generation,
        baseline: target(baseline)?,
        shadow: shadow.filter(|_| candidate.is_none()),
        candidate,
        sticky: routing.settings.sticky_from.iter().filter_map(|s| sticky_source(s)).collect(),
        fallback: routing.settings.fallback_to_stable,
        tallies: routing.variants.iter().map(|v| tally(&v.revision)).collect(),
        release: key,
    })
}

fn sticky_source(text: &str) -> Option<StickySource> {
    match text.split_once(':')? {
        ("header", name) => Some(StickySource::Header(name.to_ascii_lowercase())),
        ("body", field) => Some(StickySource::Body(field.to_owned())),
        _ => None,
    }
}

fn build_target(
    input: &ReleaseInput,
    key: &str,
    routed: &RoutedVariant,
    old: Option<&Route>,
) -> Result<Arc<Target>, String> {
    let revision = routed.revision.as_str();
    let variant = input
        .variants
        .get(revision)
        .ok_or_else(|| format!("{key}: the saved copy of {revision} has not arrived"))?;
    let backend = input.backends.get(&variant.backend_name).unwrap_or(&variant.backend);
    let template =
        Template::compile(&variant.prompt).map_err(|e| format!("{key}: {revision}: {e}"))?;
    // Identity never changes, so the address is that of the saved copy.
    let base = variant.backend.base_url(&variant.backend_name, &input.namespace);
    let limit = usize::try_from(backend.limits.max_concurrency).unwrap_or(1);
    let state = old
        .into_iter()
        .flat_map(|r| std::iter::once(&r.baseline).chain(r.on_trial()))
        .find(|t| t.revision == revision && t.state.limit == limit)
        .map(|t| t.state.clone())
        .unwrap_or_else(|| {
            let permits = Arc::new(Semaphore::new(limit));
            Arc::new(TargetState { permits, limit, breaker: Breaker::default() })
        });
    let uri: Uri = base.parse().map_err(|e| format!("{key}: {base} is no address: {e}"))?;
    let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let origin = Origin {
        release: key.to_owned(),
        route: input.route.clone(),
        revision: revision.to_owned(),
        prompt: variant.prompt.prompt.clone(),
        prompt_version: variant.prompt_name.clone(),
        backend: variant.backend_name.clone(),
        provider: variant.backend.provider.clone(),
        model: variant.backend.model.clone(),
        server_address: uri.host().unwrap_or_default().to_owned(),
        server_port: uri.port_u16().unwrap_or(default_port),
    };
    Ok(Arc::new(Target {
        revision: revision.to_owned(),
        origin: Arc::new(origin),
        role: routed.role,
        url: format!("{base}/chat/completions"),
        model: variant.backend.model.clone(),
        api_key: input.api_keys.get(&variant.backend_name).cloned(),
        timeout: backend.limits.timeout.0,
        first_token_timeout: backend.limits.first_token_timeout.0,
        template,
        fields: prompt_fields(variant),
        tools: variant.prompt.tools.iter().cloned().map(Value::Object).collect(),
        prices: Prices::of(backend),
        state,
    }))
}

/// The request fields that a prompt sets, in OpenAI's names.
fn prompt_fields(variant: &Variant) -> Map<String, Value> {
    let Parameters {
        temperature,
        top_p,
        max_tokens,
        stop,
        seed,
        frequency_penalty,
        presence_penalty,
    } = &variant.prompt.parameters;
    let mut fields = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    set("temperature", temperature.map(Value::from));
    set("top_p", top_p.map(Value::from));
    set("max_tokens", max_tokens.map(Value::from));
    set("stop", (!stop.is_empty()).then(|| json!(stop)));
    set("seed", seed.map(Value::from));
    set("frequency_penalty", frequency_penalty.map(Value::from));
    set("presence_penalty", presence_penalty.map(Value::from));
    set(
        "response_format",
        variant.prompt.response_format.as_ref().map(|schema| {
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
        }),
    );
    fields
}
