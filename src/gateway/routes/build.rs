//! From what a release says to a route that can be used.

use std::{collections::HashMap, sync::Arc};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use xxhash_rust::xxh3::xxh3_64;

use super::{Candidate, ReleaseInput, Route, Shadow, StickySource, Target};
use crate::{
    api::{
        LLMDeploymentSpec, Variant,
        llm_deployment::{SecretKeyRef, TLS_CERTIFICATE, TLS_KEY},
        prompt_release::{RoutedVariant, VariantRole},
        secret::SecretText,
        snapshot::PackedVariant,
    },
    audit::record::{Operation, Origin},
    cost::Prices,
    gateway::{
        backends::{Address, Backends},
        clients::{Manner, Trust, Way},
    },
    prompt::{Template, revision},
};

/// A route as its input says; what must survive is taken over from `old`.
///
/// # Errors
/// What keeps it from being applied.
pub(super) fn build_route(
    input: &Arc<ReleaseInput>,
    key: String,
    old: Option<&Route>,
    backends: &Backends,
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
        build_target(input, &key, routed, variant.ok_or_else(missing)?, old, backends)
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
    let alternatives = alternatives(input, &key, baseline, old, backends)?;
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
        cache: input.cache.as_ref().map(|cache| cache.ttl.0),
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
    backends: &Backends,
) -> Result<Vec<Arc<Target>>, String> {
    let Some(variant) = input.variants.get(&baseline.revision) else { return Ok(vec![]) };
    let known = input.other_backends.iter().filter_map(|name| {
        Some((name, input.backends.get(name).filter(|_| **name != *variant.backend_name)?))
    });
    known
        .map(|(name, backend)| {
            let variant = variant.open().map_err(|e| format!("{key}: {e}"))?;
            let backend = LLMDeploymentSpec::clone(backend);
            let revision = revision(&variant.prompt, &backend);
            let other = Variant { backend_name: name.clone(), backend, ..variant };
            let routed = RoutedVariant { revision, ..baseline.clone() };
            build_target(input, key, &routed, &Arc::new((&other).into()), old, backends)
        })
        .collect()
}

fn build_target(
    input: &ReleaseInput,
    key: &str,
    routed: &RoutedVariant,
    saved: &Arc<PackedVariant>,
    old: Option<&Route>,
    backends: &Backends,
) -> Result<Arc<Target>, String> {
    let revision = routed.revision.as_str();
    let variant = saved.open().map_err(|e| format!("{key}: {revision}: {e}"))?;
    let backend = input.backends.get(&variant.backend_name).map_or(&variant.backend, Arc::as_ref);
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
    let chat = uris[0].clone();
    let host = chat.authority().map_or("", |authority| authority.as_str());
    let headers = headers(backend, host, &input.secrets)
        .map_err(|e| format!("{key}: {}: {e}", variant.backend_name))?;
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
    let breaker = old
        .into_iter()
        .flat_map(|r| std::iter::once(&r.baseline).chain(r.on_trial()).chain(&r.alternatives))
        .find(|t| t.revision == revision)
        .map(|t| t.breaker.clone())
        .unwrap_or_default();
    let shared = backends.get(&input.namespace, &variant.backend_name, limits);
    let pods = input.endpoints.get(&variant.backend_name).filter(|_| backend.endpoint.is_none());
    let trust = trust(backend, &input.secrets)
        .map_err(|e| format!("{key}: {}: {e}", variant.backend_name))?;
    let way = way(backend, &chat, &input.secrets, backends)
        .map_err(|e| format!("{key}: {}: {e}", variant.backend_name))?;
    let client = backends
        .clients
        .get(Manner::of(limits, trust, way))
        .map_err(|e| format!("{key}: {}: {e}", variant.backend_name))?;
    Ok(Arc::new(Target {
        revision: revision.to_owned(),
        origin: Arc::new(origin),
        role: routed.role,
        model: variant.backend.model.clone(),
        timeout: limits.timeout(),
        stream_timeout: limits.timeout.map(|longest| longest.0),
        first_token_timeout: limits.first_token_timeout.0,
        between_tokens_timeout: limits.between_tokens_timeout.0,
        retries: u32::try_from(limits.retries).unwrap_or(0),
        template,
        takes_stream_options: backend.takes_stream_options(),
        token_limit: backend.token_limit(),
        prices: Prices::of(backend),
        breaker,
        room: shared.room.clone(),
        places: shared.places(pods.map_or(&[], Vec::as_slice)),
        address: shared.address(Address { uris, headers }),
        overlays: Default::default(),
        saved: saved.clone(),
        client,
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

/// Whom to trust and as whom to appear. Without a Secret that it names, a backend is not
/// spoken to: somebody else could be at its address.
fn trust(
    backend: &LLMDeploymentSpec,
    secrets: &HashMap<SecretKeyRef, SecretText>,
) -> Result<Trust, String> {
    let Some(tls) = backend.endpoint.as_ref().and_then(|e| e.tls.as_ref()) else {
        return Ok(Trust::default());
    };
    let text = |wanted: &SecretKeyRef| {
        let SecretKeyRef { name, key } = wanted;
        secrets
            .get(wanted)
            .cloned()
            .ok_or_else(|| format!("the Secret {name} with the key {key} is not known yet"))
    };
    let own = |name: &str, key: &str| SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
    let identity = tls.client_certificate_secret_ref.as_ref().map(|secret| {
        let certificate = text(&own(&secret.name, TLS_CERTIFICATE))?;
        Ok::<_, String>((certificate, text(&own(&secret.name, TLS_KEY))?))
    });
    Ok(Trust {
        authorities: tls.ca_secret_ref.as_ref().map(text).transpose()?,
        identity: identity.transpose()?,
    })
}

/// Through which proxy it is reached. Pods of the cluster are reached directly.
fn way(
    backend: &LLMDeploymentSpec,
    uri: &Uri,
    secrets: &HashMap<SecretKeyRef, SecretText>,
    backends: &Backends,
) -> Result<Way, String> {
    if backend.endpoint.is_none() {
        return Ok(Way::Direct);
    }
    let Some(proxy) = &backend.proxy else { return Ok(backends.clients.proxies.way(uri)) };
    let credentials = proxy.credentials_secret_ref.as_ref().map(|wanted| {
        let SecretKeyRef { name, key } = wanted;
        let known = secrets.get(wanted);
        known.ok_or_else(|| format!("the Secret {name} with the key {key} is not known yet"))
    });
    Way::wanted(proxy, credentials.transpose()?, uri)
}

fn headers(
    backend: &LLMDeploymentSpec,
    host: &str,
    secrets: &HashMap<SecretKeyRef, SecretText>,
) -> Result<HeaderMap, String> {
    let endpoint = backend.endpoint.as_ref();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Compressing a stream holds its events up, and the way to a model is wide enough.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let agent = concat!("serinus/", env!("CARGO_PKG_VERSION"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    for (name, value) in endpoint.iter().flat_map(|e| &e.headers) {
        let name: HeaderName =
            name.parse().map_err(|_| format!("{name} can not be a header's name"))?;
        let value =
            value.parse().map_err(|_| format!("the value of {name} can not be a header's"))?;
        headers.insert(name, value);
    }
    let wanted = endpoint.and_then(|e| e.api_key_secret_ref.as_ref());
    if let Some(key) = wanted.and_then(|wanted| secrets.get(wanted)) {
        let (name, text) = match endpoint.and_then(|e| e.api_key_header.as_deref()) {
            None => (header::AUTHORIZATION, format!("Bearer {}", key.expose())),
            Some(name) => {
                let name =
                    name.parse().map_err(|_| format!("{name} can not be a header's name"))?;
                (name, key.expose().to_owned())
            }
        };
        let mut value: HeaderValue =
            text.parse().map_err(|_| "the API key can not be sent in a header".to_owned())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}
