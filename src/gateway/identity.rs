//! Who asks, and which routes they may use.
//!
//! A client key is known by its SHA-256 only, and a token by its signature: neither is
//! kept, logged or sent on. Everything that a request needs is in memory, so that a
//! request is authenticated without waiting, also while the API server or the issuer of
//! tokens is away.
//!
//! Whoever is not known is refused. That there is no authentication must be said
//! ([`Identities::off`]); an empty set of keys admits nobody.

pub mod discovery;
mod keys;
mod operators;
pub mod request_keys;
mod secrets;
mod signatures;
mod tenants;
mod tokens;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

pub(super) use self::operators::{Asked, admit_person};
use self::{keys::Hash, tokens::Verified};
pub use self::{
    keys::{ClientKey, KeyError, Keys, Owner},
    operators::TokenFile,
    secrets::follow_client_keys,
    tenants::{Tenant, TenantError},
    tokens::{Rule, Verifier},
};
use super::routes::Route;
use crate::{audit::record::Caller, openai::error::ApiError};

/// A token that was found good is believed for so long without another look, so that a key
/// that its issuer withdraws ends with it.
const BELIEVED: SignedDuration = SignedDuration::from_secs(60);
/// So long a start waits for the keys of issuers.
const ISSUERS_PATIENCE: Duration = Duration::from_secs(10);
/// So many good tokens are remembered.
const REMEMBERED: usize = 10_000;

/// Headers that carry a credential as it is; `authorization` has it after `Bearer`.
const KEY_HEADERS: [&str; 2] = ["api-key", "x-api-key"];

/// Somebody who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Who it is on records.
    pub caller: Arc<Caller>,
    /// The routes that it may use.
    grant: Grant,
    /// It may choose the variant by a header.
    pub may_force: bool,
    /// It may score answers that other teams got.
    pub may_score: bool,
}

impl Client {
    /// Whether it may use a route.
    pub fn permits(&self, route: &Route) -> bool {
        let namespace = route.release.split_once('/').map_or("", |(namespace, _)| namespace);
        self.may_use(namespace, &route.name)
    }

    /// Whether it may use a route of a release in `namespace`, whether that is served or not.
    pub fn may_use(&self, namespace: &str, route: &str) -> bool {
        self.grant.covers(namespace, route)
    }

    /// Whether it may use a route of this name of some release, of which nothing else is known.
    pub fn may_name(&self, route: &str) -> bool {
        self.grant.names(route)
    }
}

/// Which routes somebody may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Only routes of releases in this namespace. None: of all.
    namespace: Option<String>,
    routes: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    Prefix(String),
}

impl Grant {
    /// Reads patterns: names of routes, or their beginning and a `*`, separated by commas
    /// or spaces. An empty text permits nothing.
    pub fn new(namespace: Option<String>, patterns: &str) -> Self {
        let words = patterns.split([',', ' ', '\n', '\t', '\r']).filter(|word| !word.is_empty());
        let pattern = |word: &str| match word.strip_suffix('*') {
            Some(start) => Pattern::Prefix(start.to_owned()),
            None => Pattern::Exact(word.to_owned()),
        };
        Self { namespace, routes: words.map(pattern).collect() }
    }

    fn covers(&self, namespace: &str, route: &str) -> bool {
        self.namespace.as_deref().is_none_or(|only| only == namespace) && self.names(route)
    }

    fn names(&self, route: &str) -> bool {
        self.routes.iter().any(|pattern| match pattern {
            Pattern::Exact(name) => name == route,
            Pattern::Prefix(start) => route.starts_with(start.as_str()),
        })
    }
}

/// Who is known. Copies share what they know.
#[derive(Clone)]
pub struct Identities(Arc<Known>);

#[derive(Default)]
struct Known {
    /// Everybody may ask.
    off: bool,
    keys: ArcSwap<Keys>,
    /// The keys were read once.
    keys_known: watch::Sender<bool>,
    verifiers: Vec<Arc<Verifier>>,
    /// Good tokens by their digest, and until when they are believed.
    good: Mutex<HashMap<Hash, (Arc<Client>, Timestamp)>>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("off", &self.0.off).finish_non_exhaustive()
    }
}

/// Nobody is known yet.
impl Default for Identities {
    fn default() -> Self {
        Self::new(vec![])
    }
}

impl Identities {
    /// Client keys, of which none is known yet, and tokens of these issuers.
    pub fn new(verifiers: Vec<Arc<Verifier>>) -> Self {
        Self(Arc::new(Known { verifiers, ..Known::default() }))
    }

    /// No authentication: everybody may use every route, as nobody in particular.
    pub fn off() -> Self {
        Self(Arc::new(Known { off: true, ..Known::default() }))
    }

    /// Whether nobody is asked who they are.
    pub fn is_off(&self) -> bool {
        self.0.off
    }

    /// Knows these client keys from now on, and no others.
    pub fn set_keys(&self, keys: Keys) {
        self.0.keys.store(Arc::new(keys));
    }

    /// The keys are what they are: a stranger is one.
    pub fn set_keys_known(&self) {
        self.0.keys_known.send_replace(true);
    }

    pub(super) fn keys_known(&self) -> bool {
        self.0.off || *self.0.keys_known.borrow()
    }

    /// Ends when a stranger is one: keys were read, and so were the keys of issuers, unless
    /// those can not be asked for [`ISSUERS_PATIENCE`].
    pub async fn known(&self) {
        if self.0.off {
            return;
        }
        let issuers = futures::future::join_all(self.0.verifiers.iter().map(|v| v.known()));
        // A silent issuer keeps nobody out who has a key.
        let _ = tokio::time::timeout(ISSUERS_PATIENCE, issuers).await;
        // The sender lives as long as `self`.
        let _ = self.0.keys_known.subscribe().wait_for(|known| *known).await;
    }

    /// Who asks; `None` when authentication is off.
    ///
    /// # Errors
    /// 401: there is no credential, or nobody is known by it.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Option<Arc<Client>>, ApiError> {
        if self.0.off {
            return Ok(None);
        }
        let credential = shown(headers)?;
        let digest = keys::digest(credential);
        if let Some(client) = self.0.keys.load().find(&digest) {
            return Ok(Some(client));
        }
        self.by_token(credential, digest).map(Some).ok_or_else(unknown)
    }

    fn by_token(&self, token: &str, digest: Hash) -> Option<Arc<Client>> {
        let now = self.0.verifiers.first()?.now();
        let known =
            self.0.good.lock().ok()?.get(&digest).filter(|(_, until)| now < *until).cloned();
        if let Some((client, _)) = known {
            return Some(client);
        }
        let Verified { client, until } = self.0.verifiers.iter().find_map(|verifier| {
            let verified = verifier.verify(token);
            verified.inspect_err(|why| tracing::debug!("a token was refused: {why}")).ok()
        })?;
        let client = Arc::new(client);
        let mut good = self.0.good.lock().ok()?;
        if good.len() >= REMEMBERED {
            good.clear();
        }
        good.insert(digest, (client.clone(), until.min(now + BELIEVED)));
        Some(client)
    }
}

/// Marks credentials, so that headers which are printed for debugging do not tell them.
pub(super) fn conceal(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        if *name == header::AUTHORIZATION || KEY_HEADERS.contains(&name.as_str()) {
            value.set_sensitive(true);
        }
    }
}

/// The key or token that a request shows, if it shows one.
pub(super) fn credential(headers: &HeaderMap) -> Option<&str> {
    shown(headers).ok()
}

fn shown(headers: &HeaderMap) -> Result<&str, ApiError> {
    for name in KEY_HEADERS.iter().chain(&[header::AUTHORIZATION.as_str()]) {
        // What is in front may have looked at the other one.
        if headers.get_all(*name).iter().nth(1).is_some() {
            let message = format!("the request has more than one header {name}: send one");
            return Err(ApiError::new(400, "ambiguous_credentials", message).at(*name));
        }
    }
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| unknown())?;
        let (scheme, credential) = text.split_once(' ').unwrap_or_default();
        let bearer = scheme.eq_ignore_ascii_case("bearer");
        return bearer.then(|| credential.trim()).filter(|c| !c.is_empty()).ok_or_else(missing);
    }
    let value = KEY_HEADERS.iter().find_map(|name| headers.get(*name)).ok_or_else(missing)?;
    value.to_str().map(str::trim).map_err(|_| unknown())
}

fn missing() -> ApiError {
    let message = "you sent no API key: send a client key of this gateway as \
        \"Authorization: Bearer KEY\" (the api_key of an OpenAI client) or in the header api-key";
    ApiError::new(401, "missing_api_key", message)
}

fn unknown() -> ApiError {
    let message = "this gateway does not know the API key or token that you sent: ask who runs \
        the gateway for a client key, or whether yours was replaced or has expired";
    ApiError::new(401, "invalid_api_key", message)
}

/// How a tenant is called among the parties of the evidence.
fn tenant(namespace: &str) -> String {
    format!("ns/{namespace}")
}

/// Compares two digests without telling by the time it takes where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
