//! From what a release says to a route that can be used.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::Authority};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Candidate, Fault, Missing, ReleaseInput, Route, Shadow, StickySource, Target,
    problems::{Part, Problem},
};
use crate::{
    api::{
        LLMDeploymentSpec, Variant,
        llm_deployment::{
            SecretKeyRef, TLS_CERTIFICATE, TLS_KEY, endpoint::reserved_header, key_in_words,
        },
        prompt_release::{RoutedVariant, VariantRole},
        secret::SecretText,
        snapshot::PackedVariant,
        url::{has_credentials, without_path},
    },
    audit::record::{Operation, Origin},
    cost::Prices,
    gateway::{
        backends::{Address, Backends},
        clients::{Manner, Trust, Way},
        sent::{self, Sent},
    },
    prompt::{Template, revision},
};

/// What was built, and what of it could not be.
pub(super) struct Built {
    pub route: Route,
    pub problems: Vec<Problem>,
}

/// A route as its input says, variant by variant; what must survive is taken over from
/// `old`. A variant that can not be built takes no other down: another one answers its
/// share, and what was drawn for it counts as turned away.
///
/// # Errors
/// What keeps the route as a whole from being built: there is neither stable nor, while
/// baking, the variant before it.
pub(super) fn build_route(
    input: &Arc<ReleaseInput>,
    key: String,
    old: Option<&Route>,
    backends: &Backends,
) -> Result<Built, Vec<Problem>> {
    let routing = &input.routing;
    let of = |role| routing.variants.iter().find(|v| v.role == role);
    let Some(stable) = of(VariantRole::Stable) else {
        let fault = Fault::new(Fault::COPY_UNREADABLE, "its routing has no stable variant");
        return Err(vec![Problem::of_route(fault)]);
    };
    let (outside, inside) = match (of(VariantRole::Canary), of(VariantRole::Previous)) {
        (Some(canary), _) => (stable, Some((canary, false))),
        // The same cut of users goes on: the promoted variant is still the one that the hash draws.
        (None, Some(previous)) => (previous, Some((stable, true))),
        (None, None) => (stable, None),
    };
    let mut builder = Builder { input, key: &key, old, backends, problems: vec![] };
    let Some(sides) = builder.sides(outside, inside) else { return Err(builder.problems) };
    let shadow = of(VariantRole::Shadow).filter(|_| inside.is_none()).and_then(|routed| {
        let percent = routed.copies.and_then(|p| u32::try_from(p).ok()).unwrap_or(0);
        Some(Shadow { target: builder.variant(routed)?, percent })
    });
    let alternatives = builder.alternatives(sides.answers);
    builder.try_held_canary();
    builder.tell_unread();
    let problems = builder.problems;
    let kept = old.filter(|old| old.generation == routing.generation);
    let tally = |revision: &String| {
        let known = kept.and_then(|old| old.tallies.get(revision)).cloned();
        (revision.clone(), known.unwrap_or_default())
    };
    let route = Route {
        input: input.clone(),
        release_hash: xxh3_64(key.as_bytes()) as u32,
        uid: input.uid.clone(),
        name: input.route.clone(),
        generation: routing.generation,
        baseline: sides.baseline,
        shadow,
        candidate: sides.candidate,
        missing: sides.missing,
        alternatives,
        sticky: routing.settings.sticky_from.iter().filter_map(|s| sticky_source(s)).collect(),
        fallback: routing.settings.fallback_to_stable,
        cache: input.cache.as_ref().map(|cache| cache.ttl.0),
        tallies: routing.variants.iter().map(|v| tally(&v.revision)).collect(),
        release: key,
    };
    Ok(Built { route, problems })
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

/// Builds the variants of one route.
struct Builder<'a> {
    input: &'a ReleaseInput,
    key: &'a str,
    old: Option<&'a Route>,
    backends: &'a Backends,
    problems: Vec<Problem>,
}

/// Who answers, and what is compared.
struct Sides<'a> {
    /// The baseline as it is routed.
    answers: &'a RoutedVariant,
    baseline: Arc<Target>,
    candidate: Option<Candidate>,
    missing: Option<Missing>,
}

impl Builder<'_> {
    /// Builds the variant that is drawn outside of the weight and, while something is
    /// compared, the one inside, with whether that one was promoted. None: nobody may answer.
    fn sides<'r>(
        &mut self,
        outside: &'r RoutedVariant,
        inside: Option<(&'r RoutedVariant, bool)>,
    ) -> Option<Sides<'r>> {
        let weight = |routed: &RoutedVariant| u32::try_from(routed.weight).unwrap_or(0);
        let first = self.variant(outside);
        let alone =
            |answers, baseline, missing| Sides { answers, baseline, candidate: None, missing };
        let Some((routed, promoted)) = inside else {
            return Some(alone(outside, first?, None));
        };
        let missing = |revision: &RoutedVariant, inside| Missing {
            revision: revision.revision.clone(),
            drawn: routed.revision.clone(),
            weight: weight(routed),
            inside,
        };
        match (first, self.variant(routed)) {
            (Some(baseline), Some(target)) => {
                let candidate = Some(Candidate { target, weight: weight(routed) });
                Some(Sides { answers: outside, baseline, candidate, missing: None })
            }
            (Some(first), None) => Some(alone(outside, first, Some(missing(routed, true)))),
            // While baking, the variant before is missing.
            (None, Some(second)) if promoted => {
                Some(alone(routed, second, Some(missing(outside, false))))
            }
            // A canary does not take stable's place.
            (None, _) => None,
        }
    }

    /// A routed variant; as it was built before when it can not be built now.
    fn variant(&mut self, routed: &RoutedVariant) -> Option<Arc<Target>> {
        let input = self.input;
        let saved = input.variants.get(&routed.revision);
        let built = match saved {
            Some(saved) => self.build(routed, saved),
            None => Err(no_copy(input, &routed.revision)),
        };
        built
            .map_err(|fault| self.went_wrong(Part::Variant(routed.role), routed, fault))
            .ok()
            .or_else(|| {
                built_before(self.old, &routed.revision).map(|old| old.in_role(routed.role))
            })
    }

    fn build(
        &self,
        routed: &RoutedVariant,
        saved: &Arc<PackedVariant>,
    ) -> Result<Arc<Target>, Fault> {
        build_target(self.input, self.key, routed, saved, self.old, self.backends)
    }

    fn went_wrong(&mut self, part: Part, routed: &RoutedVariant, fault: Fault) {
        let revision = routed.revision.clone();
        let saved = self.input.variants.get(&revision);
        let backend = saved.map(|saved| saved.backend_name.to_string()).unwrap_or_default();
        let kept = built_before(self.old, &revision).is_some();
        self.problems.push(Problem { part, revision, backend, fault, kept });
    }

    /// The baseline's prompt on other backends. One that is missing is left out: it is
    /// asked for only when something else has failed already.
    fn alternatives(&mut self, baseline: &RoutedVariant) -> Vec<Arc<Target>> {
        let input = self.input;
        let Some(saved) = input.variants.get(&baseline.revision) else { return vec![] };
        // It was read when the baseline was built, unless that one is of before.
        let Ok(variant) = saved.open() else { return vec![] };
        let names = input.other_backends.iter().filter(|name| **name != *saved.backend_name);
        let mut all = vec![];
        for name in names {
            // It may have the revision of the baseline, which is built.
            let told = |fault: Fault, kept: bool| Problem {
                part: Part::Fallback,
                revision: format!("fallback/{name}"),
                backend: name.clone(),
                fault,
                kept,
            };
            let Some(backend) = input.backends.get(name) else {
                let unread = input.faults.backends.get(name).cloned();
                let message = unread.unwrap_or_else(|| {
                    format!(
                        "LLMDeployment {name} does not exist: create it, or take it out of \
                         spec.fallbackBackendRefs"
                    )
                });
                self.problems.push(told(Fault::new(Fault::BACKEND_NOT_FOUND, message), false));
                continue;
            };
            let backend = LLMDeploymentSpec::clone(backend);
            let revision = revision(&variant.prompt, &backend);
            let other = Variant { backend_name: name.clone(), backend, ..variant.clone() };
            let routed = RoutedVariant { revision, ..baseline.clone() };
            match self.build(&routed, &Arc::new((&other).into())) {
                Ok(target) => all.push(target),
                Err(fault) => {
                    // With the same model and prompt the baseline has its revision, and is built.
                    let is_baseline = routed.revision == baseline.revision;
                    let before = built_before(self.old, &routed.revision);
                    let before = before.filter(|_| !is_baseline);
                    self.problems.push(told(fault, before.is_some()));
                    all.extend(before.cloned());
                }
            }
        }
        all
    }

    /// A canary that the operator holds out of routing: whether it could be built now, so
    /// that it comes back when it can, and not before.
    fn try_held_canary(&mut self) {
        let input = self.input;
        let Some(revision) = &input.trial else { return };
        if input.routing.variants.iter().any(|routed| routed.revision == *revision) {
            return;
        }
        let (revision, role) = (revision.clone(), VariantRole::Canary);
        let routed = RoutedVariant { revision, role, weight: 0, copies: None };
        // A copy that is gone is no obstacle: it is saved anew with the canary's step.
        let Some(saved) = input.variants.get(&routed.revision) else { return };
        if let Err(fault) = self.build(&routed, saved) {
            self.went_wrong(Part::Variant(role), &routed, fault);
        }
    }

    /// Variants that a newer version routes in a way that is not known here.
    fn tell_unread(&mut self) {
        let unread = self.input.faults.variants.iter().map(|(revision, why)| Problem {
            part: Part::Variant(VariantRole::Canary),
            revision: revision.clone(),
            backend: String::new(),
            fault: Fault::new(
                Fault::VARIANT_UNKNOWN,
                format!("its place in the routing is not known here: {why}; update this gateway"),
            ),
            kept: false,
        });
        self.problems.extend(unread);
    }
}

/// What was built of a revision in the route before.
fn built_before<'a>(old: Option<&'a Route>, revision: &str) -> Option<&'a Arc<Target>> {
    let mut all = old
        .into_iter()
        .flat_map(|r| std::iter::once(&r.baseline).chain(r.on_trial()).chain(&r.alternatives));
    all.find(|target| target.revision == revision)
}

fn no_copy(input: &ReleaseInput, revision: &str) -> Fault {
    match input.faults.copies.get(revision) {
        Some(why) => Fault::new(
            Fault::COPY_UNREADABLE,
            format!(
                "its ReleaseSnapshot can not be read: {why}. If a newer version wrote it, update \
                 this gateway"
            ),
        ),
        None => Fault::new(
            Fault::COPY_NOT_FOUND,
            "its ReleaseSnapshot has not arrived, or was deleted: the operator writes it anew \
             while its PromptVersion and LLMDeployment exist",
        ),
    }
}

fn build_target(
    input: &ReleaseInput,
    key: &str,
    routed: &RoutedVariant,
    saved: &Arc<PackedVariant>,
    old: Option<&Route>,
    backends: &Backends,
) -> Result<Arc<Target>, Fault> {
    let revision = routed.revision.as_str();
    let unreadable = |e: serde_json::Error| Fault::new(Fault::COPY_UNREADABLE, e.to_string());
    let variant = saved.open().map_err(unreadable)?;
    let backend = input.backends.get(&variant.backend_name).map_or(&variant.backend, Arc::as_ref);
    let template = Template::compile(&variant.prompt)
        .map_err(|e| Fault::new(Fault::PROMPT_INVALID, e.to_string()))?;
    // Identity never changes, so the address is that of the saved copy.
    let base = variant.backend.base_url(&variant.backend_name, &input.namespace);
    let uris = Operation::ALL
        .iter()
        .map(|operation| uri(&base, *operation, backend))
        .collect::<Result<Vec<Uri>, Fault>>()?;
    let uris: [Uri; 4] = uris.try_into().map_err(|_| no_address(&base))?;
    let chat = uris[0].clone();
    let headers = headers(backend, &chat, input)?;
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
    let before = built_before(old, revision);
    let breaker = before.map(|t| t.breaker.clone()).unwrap_or_default();
    let turns = before.map(|t| t.turns.clone()).unwrap_or_default();
    let shared = backends.get(&input.namespace, &variant.backend_name, limits);
    let pods = input.endpoints.get(&variant.backend_name).filter(|_| backend.endpoint.is_none());
    let trust = trust(backend, chat.host().unwrap_or_default(), input)?;
    let way = way(backend, &chat, input, backends)?;
    let sent = Sent::with(way.credentials());
    let client = backends
        .clients
        .get(Manner::of(limits, trust, way))
        .map_err(|e| Fault::new(Fault::SECRET_INVALID, e.to_string()))?;
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
        template: Arc::new(template),
        turns,
        takes_stream_options: backend.takes_stream_options(),
        token_limit: backend.token_limit(),
        prices: Prices::of(backend),
        breaker,
        room: shared.room.clone(),
        gone: shared.gone.clone(),
        ends: shared.ends.clone(),
        places: shared.places(pods.map_or(&[], Vec::as_slice)),
        address: shared.address(Address { uris, headers, sent }),
        overlays: Default::default(),
        saved: saved.clone(),
        client,
    }))
}

fn no_address(base: &str) -> Fault {
    Fault::new(
        Fault::ADDRESS_INVALID,
        format!("{} is no address: change spec.endpoint.url", without_path(base)),
    )
}

fn uri(base: &str, operation: Operation, backend: &LLMDeploymentSpec) -> Result<Uri, Fault> {
    let query = backend.endpoint.iter().flat_map(|e| &e.query);
    let query: Vec<String> = query.map(|(k, v)| format!("{}={}", escaped(k), escaped(v))).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let text = format!("{base}{}{mark}{}", operation.path(), query.join("&"));
    if has_credentials(base) {
        let message = "the address of the backend holds a user or a password: put the key into a Secret, and name it in spec.endpoint.apiKeySecretRef";
        return Err(Fault::new(Fault::ADDRESS_INVALID, message));
    }
    text.parse().map_err(|_| no_address(base))
}

/// Percent-encoding of what is not unreserved (RFC 3986, section 2.3).
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// One key of a Secret that a backend names. A blank one is none.
fn secret<'a>(input: &'a ReleaseInput, wanted: &SecretKeyRef) -> Result<&'a SecretText, Fault> {
    let (name, key) = (&wanted.name, key_in_words(&wanted.key));
    let text = input.secrets.get(wanted).ok_or_else(|| {
        input.faults.secrets.get(wanted).cloned().unwrap_or_else(|| {
            let message = format!("there is no Secret {name} with the {key}: create it");
            Fault::new(Fault::SECRET_NOT_FOUND, message)
        })
    })?;
    if text.is_blank() {
        let message = format!(
            "in the Secret {name}, the {key} is empty or has only white space: write the value \
             there, or take its reference out of the LLMDeployment"
        );
        return Err(Fault::new(Fault::SECRET_INVALID, message));
    }
    Ok(text)
}

/// What is sent to a host, which the Secret must name.
fn granted<'a>(
    input: &'a ReleaseInput,
    wanted: &SecretKeyRef,
    host: &str,
) -> Result<&'a SecretText, Fault> {
    let text = secret(input, wanted)?;
    input.grants.check(&wanted.name, host)?;
    Ok(text)
}

/// Whom to trust and as whom to appear. Without a Secret that it names, a backend is not
/// spoken to: somebody else could be at its address.
fn trust(backend: &LLMDeploymentSpec, host: &str, input: &ReleaseInput) -> Result<Trust, Fault> {
    let Some(tls) = backend.endpoint.as_ref().and_then(|e| e.tls.as_ref()) else {
        return Ok(Trust::default());
    };
    let text = |wanted: &SecretKeyRef| secret(input, wanted).cloned();
    let own = |name: &str, key: &str| SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
    let identity = tls.client_certificate_secret_ref.as_ref().map(|secret| {
        let certificate = text(&own(&secret.name, TLS_CERTIFICATE))?;
        let key = granted(input, &own(&secret.name, TLS_KEY), host)?.clone();
        Ok::<_, Fault>((certificate, key))
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
    input: &ReleaseInput,
    backends: &Backends,
) -> Result<Way, Fault> {
    if backend.endpoint.is_none() {
        return Ok(Way::Direct);
    }
    let Some(proxy) = &backend.proxy else { return Ok(backends.clients.proxies.way(uri)) };
    let address = proxy.url.as_ref().and_then(|url| url.parse::<Uri>().ok());
    let host = address.as_ref().and_then(Uri::host).unwrap_or_default();
    let credentials = proxy.credentials_secret_ref.as_ref();
    let credentials = credentials.map(|wanted| granted(input, wanted, host));
    Way::wanted(proxy, credentials.transpose()?, uri)
        .map_err(|e| Fault::new(Fault::ADDRESS_INVALID, e))
}

/// The host of a proxy that can read what is sent through it: requests without TLS, and those
/// with TLS to whoever has a certificate of the authorities that the backend names.
fn reading_proxy(backend: &LLMDeploymentSpec, uri: &Uri) -> Option<String> {
    let url: Uri = backend.proxy.as_ref()?.url.as_ref()?.parse().ok()?;
    let tls = backend.endpoint.as_ref().and_then(|e| e.tls.as_ref());
    let names_authorities = tls.is_some_and(|tls| tls.ca_secret_ref.is_some());
    let is_private = uri.scheme_str() == Some("https") && !names_authorities;
    (!is_private).then(|| url.host().unwrap_or_default().to_owned())
}

/// What every request says of itself. A key that is named and not known is no key at all:
/// without it the model would refuse every request.
fn headers(
    backend: &LLMDeploymentSpec,
    uri: &Uri,
    input: &ReleaseInput,
) -> Result<HeaderMap, Fault> {
    let host = uri.authority().map_or("", Authority::as_str);
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
    let wrong = |message: String| Fault::new(Fault::HEADER_INVALID, message);
    // Copies that an earlier version saved were not checked by the API server.
    let named = |name: &str| {
        if let Some(why) = reserved_header(name) {
            return Err(wrong(why));
        }
        let no_name = |_| wrong(format!("{name} can not be a header's name: change it"));
        name.parse::<HeaderName>().map_err(no_name)
    };
    for (name, value) in endpoint.iter().flat_map(|e| &e.headers) {
        let name = named(name)?;
        let mut value: HeaderValue = value.parse().map_err(|_| {
            wrong(format!("the value of {name} can not be a header's: write one line"))
        })?;
        value.set_sensitive(sent::tells(name.as_str()));
        headers.insert(name, value);
    }
    let Some(wanted) = endpoint.and_then(|e| e.api_key_secret_ref.as_ref()) else {
        return Ok(headers);
    };
    let key = granted(input, wanted, uri.host().unwrap_or_default())?;
    if let Some(proxy) = reading_proxy(backend, uri) {
        input.grants.check(&wanted.name, &proxy)?;
    }
    let (name, text) = match endpoint.and_then(|e| e.api_key_header.as_deref()) {
        None => (header::AUTHORIZATION, format!("Bearer {}", key.expose())),
        Some(name) => (named(name)?, key.expose().to_owned()),
    };
    let mut value: HeaderValue = text.parse().map_err(|_| {
        let message = format!(
            "in the Secret {}, the {} can not be sent in a header: it has a line break or another \
             character that no header may have",
            wanted.name,
            key_in_words(&wanted.key)
        );
        Fault::new(Fault::SECRET_INVALID, message)
    })?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_secret_is_told_without_its_key() {
        let wanted = SecretKeyRef { name: "openai".into(), key: "9f2c7d1e8a4b6c3d".into() };
        let spec = json!({"provider": "openai", "model": "m",
            "endpoint": {"url": "http://m/v1", "apiKeySecretRef": wanted}});
        let backend: LLMDeploymentSpec = serde_json::from_value(spec).unwrap();
        let uri: Uri = "http://m/v1/chat/completions".parse().unwrap();
        for text in [None, Some(" "), Some("a\nb")] {
            let mut input = ReleaseInput::default();
            input.grants.allow("openai", "m");
            input.secrets.extend(text.map(|text| (wanted.clone(), text.to_owned().into())));
            let fault = headers(&backend, &uri, &input).unwrap_err();
            assert!(fault.message.contains("key that the LLMDeployment names"), "{fault:?}");
            assert!(!fault.message.contains("9f2c"), "{fault:?}");
        }
    }

    #[test]
    fn a_proxy_reads_what_is_not_encrypted_for_somebody_else() {
        let reads = |url: &str, tls: serde_json::Value, proxy: serde_json::Value| {
            let spec = json!({"provider": "openai", "model": "m", "proxy": proxy,
                "endpoint": {"url": url, "tls": tls}});
            let backend: LLMDeploymentSpec = serde_json::from_value(spec).unwrap();
            reading_proxy(&backend, &url.parse().unwrap())
        };
        let proxy = json!({"url": "http://proxy.evil:3128"});
        let own = json!({"caSecretRef": {"name": "ca", "key": "ca.crt"}});
        let (plain, tls) = ("http://api.openai.com/v1", "https://api.openai.com/v1");
        let evil = Some("proxy.evil".to_owned());
        assert_eq!(reads(plain, json!(null), proxy.clone()), evil);
        assert_eq!(reads(plain, own.clone(), proxy.clone()), evil);
        assert_eq!(
            reads(tls, own.clone(), proxy.clone()),
            evil,
            "it may show a certificate of that"
        );
        assert_eq!(reads(tls, json!(null), proxy), None);
        assert_eq!(reads(plain, own.clone(), json!({"direct": true})), None);
        assert_eq!(reads(tls, own, json!(null)), None);
    }
}
