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

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    breaker::Breaker,
    clients::{Client, Clients},
    prepare::Overlay,
    room::{Bounds, Room},
};
use crate::{
    api::{
        LLMDeploymentSpec, Variant,
        prompt_release::{Counts, ResponseCache, RoutedVariant, Routing, VariantRole},
    },
    audit::record::{Operation, Origin},
    cost::Prices,
    prompt::{Template, revision},
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
    /// The names of backends that answer while the baseline's is unavailable.
    pub other_backends: Vec<String>,
    /// Identical requests are answered from memory.
    pub cache: Option<ResponseCache>,
}

/// Where a sticky key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickySource {
    /// A request header.
    Header(String),
    /// A field of the body.
    Body(String),
    /// Who asks.
    Client,
}

/// One variant, ready to be called.
pub struct Target {
    /// The revision.
    pub revision: String,
    /// What all records of it share.
    pub origin: Arc<Origin>,
    /// Its part in the routing.
    pub role: VariantRole,
    /// The model name upstream.
    pub model: String,
    /// The longest that a whole answer may take.
    pub timeout: Duration,
    /// The longest wait for the first token.
    pub first_token_timeout: Duration,
    /// The longest silence of a stream after that.
    pub between_tokens_timeout: Duration,
    /// How often a failed attempt is repeated.
    pub retries: u32,
    /// The compiled prompt.
    pub template: Template,
    /// Prices.
    pub prices: Prices,
    /// Survives table swaps.
    pub state: Arc<TargetState>,
    /// By operation.
    uris: [Uri; 4],
    overlays: [Overlay; 4],
    /// The headers of every request, the API key among them.
    pub(super) headers: HeaderMap,
    pub(super) client: Client,
}

impl Target {
    /// Where to send an operation.
    pub(super) fn uri(&self, operation: Operation) -> &Uri {
        &self.uris[operation as usize]
    }

    /// What the prompt sets.
    pub(super) fn overlay(&self, operation: Operation) -> &Overlay {
        &self.overlays[operation as usize]
    }
}

/// What of a variant survives a swap of the table.
pub struct TargetState {
    /// Room for requests in flight.
    pub room: Room,
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
    /// Other backends with the prompt of the baseline, when its own is unavailable.
    pub alternatives: Vec<Arc<Target>>,
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
    clients: Arc<Clients>,
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
            match build_route(input, key, old.map(Arc::as_ref), &previous.clients) {
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
        (Self { routes, clients: previous.clients.clone() }, problems)
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
    clients: &Clients,
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
    let target = |routed: &RoutedVariant| {
        let variant = input.variants.get(&routed.revision);
        let missing = || format!("{key}: the saved copy of {} has not arrived", routed.revision);
        build_target(input, &key, routed, variant.ok_or_else(missing)?, old, clients)
    };
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
    let alternatives = alternatives(input, &key, baseline, old, clients)?;
    Ok(Route {
        input: input.clone(),
        release_hash: xxh3_64(key.as_bytes()) as u32,
        uid: input.uid.clone(),
        name: input.route.clone(),
        generation: routing.generation,
        baseline: target(baseline)?,
        shadow: shadow.filter(|_| candidate.is_none()),
        candidate,
        alternatives,
        sticky: routing.settings.sticky_from.iter().filter_map(|s| sticky_source(s)).collect(),
        fallback: routing.settings.fallback_to_stable,
        tallies: routing.variants.iter().map(|v| tally(&v.revision)).collect(),
        release: key,
    })
}

fn sticky_source(text: &str) -> Option<StickySource> {
    if text == "client" {
        return Some(StickySource::Client);
    }
    match text.split_once(':')? {
        ("header", name) => Some(StickySource::Header(name.to_ascii_lowercase())),
        ("body", field) => Some(StickySource::Body(field.to_owned())),
        _ => None,
    }
}

/// The baseline's prompt on other backends. One that is missing is left out: it is
/// asked for only when something else has failed already.
fn alternatives(
    input: &ReleaseInput,
    key: &str,
    baseline: &RoutedVariant,
    old: Option<&Route>,
    clients: &Clients,
) -> Result<Vec<Arc<Target>>, String> {
    let Some(variant) = input.variants.get(&baseline.revision) else { return Ok(vec![]) };
    let known = input.other_backends.iter().filter_map(|name| {
        Some((name, input.backends.get(name).filter(|_| *name != variant.backend_name)?))
    });
    known
        .map(|(name, backend)| {
            let other =
                Variant { backend_name: name.clone(), backend: backend.clone(), ..variant.clone() };
            let routed =
                RoutedVariant { revision: revision(&other.prompt, backend), ..baseline.clone() };
            build_target(input, key, &routed, &other, old, clients)
        })
        .collect()
}

fn build_target(
    input: &ReleaseInput,
    key: &str,
    routed: &RoutedVariant,
    variant: &Variant,
    old: Option<&Route>,
    clients: &Clients,
) -> Result<Arc<Target>, String> {
    let revision = routed.revision.as_str();
    let backend = input.backends.get(&variant.backend_name).unwrap_or(&variant.backend);
    let template =
        Template::compile(&variant.prompt).map_err(|e| format!("{key}: {revision}: {e}"))?;
    // Identity never changes, so the address is that of the saved copy.
    let base = variant.backend.base_url(&variant.backend_name, &input.namespace);
    let uris = Operation::ALL
        .iter()
        .map(|operation| uri(&base, *operation, backend))
        .collect::<Result<Vec<Uri>, String>>()
        .map_err(|e| format!("{key}: {e}"))?;
    let uris: [Uri; 4] = uris.try_into().map_err(|_| format!("{key}: {base} is no address"))?;
    let headers = headers(backend, input.api_keys.get(&variant.backend_name))
        .map_err(|e| format!("{key}: {}: {e}", variant.backend_name))?;
    let [chat, ..] = &uris;
    let default_port = if chat.scheme_str() == Some("https") { 443 } else { 80 };
    let origin = Origin {
        release: key.to_owned(),
        route: input.route.clone(),
        revision: revision.to_owned(),
        prompt: variant.prompt.prompt.clone(),
        prompt_version: variant.prompt_name.clone(),
        backend: variant.backend_name.clone(),
        provider: variant.backend.provider.clone(),
        model: variant.backend.model.clone(),
        server_address: chat.host().unwrap_or_default().to_owned(),
        server_port: chat.port_u16().unwrap_or(default_port),
    };
    let limits = &backend.limits;
    let bounds = Bounds::of(limits);
    let state = old
        .into_iter()
        .flat_map(|r| std::iter::once(&r.baseline).chain(r.on_trial()).chain(&r.alternatives))
        .find(|t| t.revision == revision && t.state.room.bounds() == bounds)
        .map(|t| t.state.clone())
        .unwrap_or_else(|| {
            Arc::new(TargetState { room: Room::new(bounds), breaker: Breaker::default() })
        });
    Ok(Arc::new(Target {
        revision: revision.to_owned(),
        origin: Arc::new(origin),
        role: routed.role,
        model: variant.backend.model.clone(),
        timeout: limits.timeout.0,
        first_token_timeout: limits.first_token_timeout.0,
        between_tokens_timeout: limits.between_tokens_timeout.0,
        retries: u32::try_from(limits.retries).unwrap_or(0),
        template,
        prices: Prices::of(backend),
        state,
        uris,
        overlays: Operation::ALL.map(|operation| Overlay::new(variant, operation)),
        headers,
        client: clients.get(limits.connect_timeout.0),
    }))
}

fn uri(base: &str, operation: Operation, backend: &LLMDeploymentSpec) -> Result<Uri, String> {
    let query = backend.endpoint.iter().flat_map(|e| &e.query);
    let query: Vec<String> = query.map(|(k, v)| format!("{}={}", escaped(k), escaped(v))).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let text = format!("{base}{}{mark}{}", operation.path(), query.join("&"));
    text.parse().map_err(|e| format!("{base} is no address: {e}"))
}

/// Percent-encoding of what is not unreserved (RFC 3986, section 2.3).
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn headers(backend: &LLMDeploymentSpec, api_key: Option<&String>) -> Result<HeaderMap, String> {
    let endpoint = backend.endpoint.as_ref();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let agent = concat!("serinus/", env!("CARGO_PKG_VERSION"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in endpoint.iter().flat_map(|e| &e.headers) {
        let name: HeaderName =
            name.parse().map_err(|_| format!("{name} can not be a header's name"))?;
        let value =
            value.parse().map_err(|_| format!("the value of {name} can not be a header's"))?;
        headers.insert(name, value);
    }
    if let Some(key) = api_key {
        let (name, text) = match endpoint.and_then(|e| e.api_key_header.as_deref()) {
            None => (header::AUTHORIZATION, format!("Bearer {key}")),
            Some(name) => {
                let name =
                    name.parse().map_err(|_| format!("{name} can not be a header's name"))?;
                (name, key.clone())
            }
        };
        let mut value: HeaderValue =
            text.parse().map_err(|_| "the API key can not be sent in a header".to_owned())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}
