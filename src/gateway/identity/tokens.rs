//! Tokens that somebody else signed: service accounts of the cluster, and an OpenID
//! Connect issuer.
//!
//! A token is checked with the issuer's public keys, which `discovery` keeps up to date,
//! and not by asking the issuer: a request never waits for it, and its outage harms
//! nobody. The price: a token that was revoked counts until it expires, which is an hour
//! for those that Kubernetes mounts.
//!
//! Checked are signature, algorithm (a list, never what the token likes), issuer,
//! audience, expiry and not-before. Only tokens for the gateway's own audience count, so
//! that a gateway can not use what it was shown at another place.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use super::{
    Client, Grant,
    signatures::{self, ALGORITHMS},
    tenant,
};
use crate::audit::record::Caller;

/// How far clocks may differ, in seconds.
const SKEW: f64 = 60.0;
/// Longer tokens are not looked at.
const LONGEST: usize = 16 << 10;
/// How subjects of service accounts begin.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What a token's claims permit.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Service accounts of the cluster: routes of the releases in their namespace.
    ServiceAccounts,
    /// Whoever the issuer names.
    Claims {
        /// The claim that names the team. Default: the subject.
        team: Option<String>,
        /// The claim that lists patterns of routes.
        routes: Option<String>,
        /// Patterns of routes for everybody.
        everybody: String,
    },
}

/// Checks tokens of one issuer.
pub struct Verifier {
    audience: String,
    rule: Rule,
    clock: fn() -> Timestamp,
    issuer: ArcSwap<Issuer>,
    issuer_known: watch::Sender<bool>,
    /// Somebody showed a token with a key that is not known.
    pub(super) unknown_key: Notify,
}

/// Tells neither keys nor claims.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// An issuer as far as it is known.
#[derive(Default)]
pub(super) struct Issuer {
    name: String,
    keys: Vec<PublicKey>,
}

struct PublicKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Issuer {
    /// Takes the keys of a JWKS that can check signatures; others are none of ours.
    pub(super) fn new(name: String, jwks: &[Value]) -> Self {
        Self { name, keys: jwks.iter().filter_map(public_key).collect() }
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }
}

fn public_key(jwk: &Value) -> Option<PublicKey> {
    let jwk: Jwk = serde_json::from_value(jwk.clone()).ok()?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let fitting = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &ALGORITHMS[..6],
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
            &[Algorithm::ES256][..]
        }
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P384 => {
            &[Algorithm::ES384][..]
        }
        AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA][..]
        }
        _ => return None,
    };
    let named = jwk.common.key_algorithm.map(|a| a.to_string());
    let algorithms: Vec<Algorithm> = fitting
        .iter()
        .copied()
        .filter(|a| named.as_ref().is_none_or(|named| *named == format!("{a:?}")))
        .collect();
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (!algorithms.is_empty()).then(|| PublicKey { id: jwk.common.key_id.clone(), algorithms, key })
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Whose token it was.
pub(super) struct Verified {
    pub client: Client,
    /// Until when it may be believed without another look.
    pub until: Timestamp,
}

/// A token that does not count. It is not told why: who made it up learns nothing, and
/// the log says it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it is no token")]
    NoToken,
    #[error("its algorithm is not allowed")]
    Algorithm,
    #[error("no key of the issuer made it")]
    UnknownKey,
    #[error("signature, issuer, audience or claims are not as they must be")]
    Invalid,
    #[error("it is not valid now")]
    Time,
    #[error("it is not a service account's")]
    NoServiceAccount,
}

impl Verifier {
    /// Knows no key yet.
    pub fn new(audience: String, rule: Rule, clock: fn() -> Timestamp) -> Arc<Self> {
        signatures::install();
        let (issuer, unknown_key) = (ArcSwap::default(), Notify::new());
        let issuer_known = watch::Sender::new(false);
        Arc::new(Self { audience, rule, clock, issuer, issuer_known, unknown_key })
    }

    pub(super) fn set_issuer(&self, issuer: Issuer) {
        self.issuer.store(Arc::new(issuer));
        self.issuer_known.send_replace(true);
    }

    /// Ends when the issuer's keys are known.
    pub(super) async fn known(&self) {
        // The sender lives as long as `self`.
        let _ = self.issuer_known.subscribe().wait_for(|known| *known).await;
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(super) fn verify(&self, token: &str) -> Result<Verified, Refused> {
        if token.len() > LONGEST {
            return Err(Refused::NoToken);
        }
        let header = decode_header(token).map_err(|_| Refused::NoToken)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Refused::Algorithm);
        }
        let issuer = self.issuer.load();
        let claims = self.claims(token, header.alg, header.kid.as_deref(), &issuer)?;
        let now = self.now().as_duration().as_secs_f64();
        let begins = claims.nbf.unwrap_or(f64::MIN);
        // Written so that what is no number is refused.
        if !(now < claims.exp + SKEW && begins <= now + SKEW) {
            return Err(Refused::Time);
        }
        let until = Timestamp::from_second((claims.exp + SKEW) as i64).unwrap_or(Timestamp::MAX);
        let client = self.client(&claims)?;
        Ok(Verified { client, until })
    }

    fn claims(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: Option<&str>,
        issuer: &Issuer,
    ) -> Result<Claims, Refused> {
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&issuer.name]);
        // Compared with our own clock by who called.
        validation.validate_exp = false;
        let mut candidates = issuer
            .keys
            .iter()
            .filter(|k| key.is_none() || k.id.is_none() || k.id.as_deref() == key)
            .peekable();
        if candidates.peek().is_none() {
            self.unknown_key.notify_one();
            return Err(Refused::UnknownKey);
        }
        candidates
            .filter(|k| k.algorithms.contains(&algorithm))
            .find_map(|k| decode::<Claims>(token, &k.key, &validation).ok())
            .map(|data| data.claims)
            .ok_or(Refused::Invalid)
    }

    fn client(&self, claims: &Claims) -> Result<Client, Refused> {
        let (caller, grant) = match &self.rule {
            Rule::ServiceAccounts => {
                let (namespace, name) = claims
                    .sub
                    .strip_prefix(SERVICE_ACCOUNT)
                    .and_then(|rest| rest.split_once(':'))
                    .ok_or(Refused::NoServiceAccount)?;
                let (name, team) = (format!("{namespace}/{name}"), namespace.to_owned());
                let caller = Caller { name, team, party: tenant(namespace) };
                (caller, Grant::new(Some(namespace.to_owned()), "*"))
            }
            Rule::Claims { team, routes, everybody } => {
                let claim = |name: &Option<String>| claims.others.get(name.as_ref()?);
                let team = claim(team).map(words).filter(|team| !team.is_empty());
                let team = team.unwrap_or_else(|| claims.sub.clone());
                let patterns = claim(routes).map(words).unwrap_or_default();
                let grant = Grant::new(None, &format!("{everybody} {patterns}"));
                (Caller { name: claims.sub.clone(), party: team.clone(), team }, grant)
            }
        };
        Ok(Client { caller: Arc::new(caller), grant, may_force: false, may_score: false })
    }
}

/// A text, or a list of texts as one.
fn words(claim: &Value) -> String {
    match claim {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        _ => String::new(),
    }
}
