//! The public keys of issuers, kept up to date in the background. What was known last
//! stays in force while an issuer can not be asked.

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use axum::http;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::tokens::{Issuer, Verifier};
use crate::api::url::{has_credentials, shown};

/// How often keys are asked for when nothing is wrong.
const REFRESH: Duration = Duration::from_secs(300);
/// How long after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// A token with an unknown key makes them asked for earlier, but not more often than so:
/// tokens can be made up.
const AT_MOST: Duration = Duration::from_secs(3);
/// The largest answer that is read.
const LARGEST: usize = 1 << 20;
/// How long an issuer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the keys of an issuer are not known.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The address would show the keys to be replaced by anybody on the way.
    #[error("{0} must begin with https:// (http:// is taken for this machine only)")]
    NotHttps(String),
    /// An address with a user or a password.
    #[error("the address of an issuer, or of its keys, may hold no user and no password")]
    Credentials,
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up: {0}")]
    Client(String),
    /// It can not be asked.
    #[error("{url} can not be read: {why}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        why: String,
    },
    /// It is another issuer.
    #[error(
        "the issuer calls itself {found:?}, not {expected:?}: set --oidc-issuer to what its tokens say"
    )]
    OtherIssuer {
        /// Its own name.
        found: String,
        /// The configured name.
        expected: String,
    },
    /// None of its keys can be used.
    #[error("{0} publishes no key that can check a signature (RSA, P-256, P-384 or Ed25519)")]
    NoKeys(String),
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: Option<String>,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

/// Keeps `verifier` on the keys of an OpenID Connect issuer, without end.
pub async fn follow_issuer(verifier: Arc<Verifier>, issuer: OidcIssuer) {
    follow(&verifier, || issuer.ask()).await;
}

/// Keeps `verifier` on the keys with which the cluster signs service accounts' tokens,
/// without end.
pub async fn follow_cluster(verifier: Arc<Verifier>, client: kube::Client) {
    follow(&verifier, || ask_cluster(&client)).await;
}

async fn follow<F>(verifier: &Verifier, ask: impl Fn() -> F)
where
    F: Future<Output = Result<Issuer, DiscoveryError>>,
{
    loop {
        let asked = Instant::now();
        let wait = match ask().await {
            Ok(issuer) => {
                tracing::debug!(keys = issuer.keys(), "the issuer's keys are known");
                verifier.set_issuer(issuer);
                REFRESH
            }
            Err(error) => {
                tracing::warn!("tokens: {error}");
                RETRY
            }
        };
        let missed = async {
            verifier.unknown_key.notified().await;
            tokio::time::sleep_until(asked + AT_MOST).await;
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = missed => {}
        }
    }
}

/// An issuer that is asked over HTTP.
pub struct OidcIssuer {
    name: String,
    client: reqwest::Client,
}

impl OidcIssuer {
    /// An issuer by its name, which is its address, and who vouches for its certificate
    /// beside the machine's authorities (PEM).
    ///
    /// # Errors
    /// It is not https, or the PEM is none.
    pub fn new(name: &str, ca_pem: Option<&[u8]>) -> Result<Self, DiscoveryError> {
        only_https(name)?;
        let failed = |e: reqwest::Error| DiscoveryError::Client(e.to_string());
        let mut builder = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = ca_pem {
            for certificate in reqwest::Certificate::from_pem_bundle(pem).map_err(failed)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self { name: name.to_owned(), client: builder.build().map_err(failed)? })
    }

    async fn ask(&self) -> Result<Issuer, DiscoveryError> {
        let base = self.name.trim_end_matches('/');
        let metadata = format!("{base}/.well-known/openid-configuration");
        let Metadata { issuer, jwks_uri } = self.read(&metadata).await?;
        if issuer != self.name {
            return Err(DiscoveryError::OtherIssuer { found: issuer, expected: self.name.clone() });
        }
        let jwks_uri = jwks_uri.ok_or_else(|| DiscoveryError::NoKeys(issuer.clone()))?;
        only_https(&jwks_uri)?;
        let jwks: Jwks = self.read(&jwks_uri).await?;
        usable(Issuer::new(issuer, &jwks.keys), &self.name)
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, DiscoveryError> {
        let failed = |why: String| DiscoveryError::Unreachable { url: shown(url).into(), why };
        let mut answer = self
            .client
            .get(url)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(|e| failed(e.without_url().to_string()))?;
        let mut body = vec![];
        while let Some(piece) =
            answer.chunk().await.map_err(|e| failed(e.without_url().to_string()))?
        {
            body.extend_from_slice(&piece);
            if body.len() > LARGEST {
                return Err(failed("the answer is too large".to_owned()));
            }
        }
        serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))
    }
}

/// What the API server says is believed: its own name for itself too.
async fn ask_cluster(client: &kube::Client) -> Result<Issuer, DiscoveryError> {
    let metadata: Metadata = read_cluster(client, "/.well-known/openid-configuration").await?;
    let jwks: Jwks = read_cluster(client, "/openid/v1/jwks").await?;
    let name = metadata.issuer.clone();
    usable(Issuer::new(metadata.issuer, &jwks.keys), &name)
}

async fn read_cluster<T: serde::de::DeserializeOwned>(
    client: &kube::Client,
    path: &'static str,
) -> Result<T, DiscoveryError> {
    let failed = |why: String| DiscoveryError::Unreachable { url: path.to_owned(), why };
    let request = http::Request::get(path).body(vec![]).map_err(|e| failed(e.to_string()))?;
    let answer = tokio::time::timeout(PATIENCE, client.request_text(request))
        .await
        .map_err(|_| failed("the API server took too long".to_owned()))?
        .map_err(|e| failed(e.to_string()))?;
    serde_json::from_str(&answer).map_err(|e| failed(e.to_string()))
}

fn usable(issuer: Issuer, name: &str) -> Result<Issuer, DiscoveryError> {
    if issuer.keys() == 0 { Err(DiscoveryError::NoKeys(name.to_owned())) } else { Ok(issuer) }
}

fn only_https(url: &str) -> Result<(), DiscoveryError> {
    if has_credentials(url) {
        return Err(DiscoveryError::Credentials);
    }
    let uri: http::Uri = url.parse().map_err(|_| DiscoveryError::NotHttps(shown(url).into()))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if here => Ok(()),
        _ => Err(DiscoveryError::NotHttps(shown(url).into())),
    }
}
