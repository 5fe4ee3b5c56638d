//! Who asks, and which routes they may use.
//!
//! A client key is known by its SHA-256 only, and a token by its signature: neither is
//! kept, logged or sent on. Everything that a request needs is in memory, so that a
//! request is authenticated without waiting, also while the API server or the issuer of
//! tokens is away.
//!
//! Whoever is not known is refused. That there is no authentication must be said
//! ([`Identities::off`]); an empty set of keys admits nobody.

mod keys;

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

pub use self::keys::{ClientKey, KeyError, Keys, Owner};
use super::routes::Route;
use crate::{audit::record::Caller, openai::error::ApiError};

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
}

impl Client {
    /// Whether it may use a route.
    pub fn permits(&self, route: &Route) -> bool {
        let namespace = route.release.split_once('/').map_or("", |(namespace, _)| namespace);
        self.grant.covers(namespace, &route.name)
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
        self.namespace.as_deref().is_none_or(|only| only == namespace)
            && self.routes.iter().any(|pattern| match pattern {
                Pattern::Exact(name) => name == route,
                Pattern::Prefix(start) => route.starts_with(start.as_str()),
            })
    }
}

/// Who is known. Copies share what they know.
#[derive(Clone)]
pub struct Identities(Arc<Known>);

struct Known {
    /// Everybody may ask.
    off: bool,
    keys: ArcSwap<Keys>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("off", &self.0.off).finish_non_exhaustive()
    }
}

/// Nobody is known yet.
impl Default for Identities {
    fn default() -> Self {
        Self(Arc::new(Known { off: false, keys: ArcSwap::default() }))
    }
}

impl Identities {
    /// No authentication: everybody may use every route, as nobody in particular.
    pub fn off() -> Self {
        Self(Arc::new(Known { off: true, keys: ArcSwap::default() }))
    }

    /// Whether nobody is asked who they are.
    pub fn is_off(&self) -> bool {
        self.0.off
    }

    /// Knows these client keys from now on, and no others.
    pub fn set_keys(&self, keys: Keys) {
        self.0.keys.store(Arc::new(keys));
    }

    /// Who asks; `None` when authentication is off.
    ///
    /// # Errors
    /// 401: there is no credential, or nobody is known by it.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Option<Arc<Client>>, ApiError> {
        if self.0.off {
            return Ok(None);
        }
        let credential = credential(headers)?;
        self.0.keys.load().find(credential).map(Some).ok_or_else(unknown)
    }
}

fn credential(headers: &HeaderMap) -> Result<&str, ApiError> {
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

/// Compares two digests without telling by the time it takes where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
