//! The HTTP clients towards models: connections that are used again (`pool`), proxies
//! where they are wanted (`proxy`, `dial`), no redirects, and no way to addresses that
//! requests may not go to.
//!
//! Backends that trust the same authorities, show the same certificate, go through the same
//! proxy and wait as long for a connection share a client, and so its connections.

mod answer;
mod dial;
mod pool;
mod proxy;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, Response, StatusCode};
use rustls::ClientConfig;

pub use self::proxy::Proxies;
pub(super) use self::{
    answer::{Answered, Unread},
    pool::Outgoing,
    proxy::Way,
};
use self::{
    dial::{Dial, Direct, Forwarded, Tunnelled, over_tls},
    pool::Pool,
};
use super::{
    tls::{TlsError, client_config, trusting_nobody},
    workers,
};
use crate::{
    api::{llm_deployment::Limits, secret::SecretText},
    signals::addresses::{Addresses, Connector},
};

/// More clients than this are a sign of certificates that change all the time: what
/// nobody uses any more is let go.
const KEPT: usize = 64;
/// How often the other end of a silent connection is asked whether it is still there. A
/// model may think for minutes, and what is between may forget a connection by then.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A client for some backends.
#[derive(Clone)]
pub(super) struct Client {
    /// One for each worker, and one for threads that are none: a connection stays with the
    /// thread that reads it.
    places: Arc<[Arc<Pool>]>,
}

impl Client {
    /// Sends a request over a connection of this thread, and waits for the head of the
    /// answer.
    ///
    /// # Errors
    /// There is no connection, or it ended before that.
    pub(super) async fn send<H>(
        &self,
        request: &Outgoing<'_, H>,
    ) -> Result<Response<Answered>, Error>
    where
        H: Fn() -> HeaderMap,
    {
        let here = self.places.get(workers::place()).unwrap_or(&self.places[0]);
        let response = here.send(request).await?;
        // The proxy's word, not the model's: an application can do nothing about it.
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(Error::Connect("the proxy wants other credentials".into()));
        }
        Ok(Answered::of(response))
    }
}

/// What hyper says of bytes that come before a request was sent, as a server of another protocol
/// greets: it has no function that tells this error.
const UNASKED: &str = "received unexpected message from connection";

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nothing of it was sent.
    #[error("no connection: {0}")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It was sent, and the connection ended.
    #[error("the connection ended: {0}")]
    Exchange(#[source] hyper::Error),
}

impl Error {
    /// Whether nothing of the request was sent.
    pub(super) fn is_connect(&self) -> bool {
        matches!(self, Self::Connect(_))
    }

    /// What is wrong with what a server sent that was reached, when that is no answer of HTTP.
    pub(super) fn no_http(&self) -> Option<&'static str> {
        let first = match self {
            // Of the connection itself: what was made on the way to it has other errors.
            Self::Connect(error) => error.downcast_ref::<hyper::Error>()?,
            Self::Exchange(error) => error,
        };
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(first);
        while let Some(error) = next {
            match error.downcast_ref::<hyper::Error>() {
                Some(error) if error.is_parse_too_large() => {
                    return Some("has too many headers, or too large ones");
                }
                Some(error) if error.is_parse() || error.to_string() == UNASKED => {
                    return Some("is not HTTP");
                }
                _ => next = error.source(),
            }
        }
        None
    }
}

/// Whom to trust, and as whom to appear, PEM. By default the machine's authorities and
/// nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    pub authorities: Option<SecretText>,
    /// Certificates and their private key.
    pub identity: Option<(SecretText, SecretText)>,
}

/// What backends with one client have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub trust: Trust,
    pub way: Way,
}

impl Manner {
    pub(super) fn of(limits: &Limits, trust: Trust, way: Way) -> Self {
        let (connect_timeout, idle_timeout) = (limits.connect_timeout.0, limits.idle_timeout.0);
        Self { connect_timeout, idle_timeout, trust, way }
    }
}

/// All clients of a gateway.
#[derive(Default)]
pub(super) struct Clients {
    addresses: Arc<Addresses>,
    /// Of the environment.
    pub proxies: Proxies,
    made: Mutex<Vec<(Manner, Client)>>,
}

impl Clients {
    /// Clients that connect to these addresses only.
    pub(super) fn new(addresses: Arc<Addresses>, proxies: Proxies) -> Self {
        // For clients of other things in the process, which take the default. Fails only
        // when one was installed before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { addresses, proxies, made: Mutex::default() }
    }

    /// The client for backends of this manner.
    ///
    /// # Errors
    /// A certificate or key can not be used, or nobody would be trusted.
    pub(super) fn get(&self, manner: Manner) -> Result<Client, TlsError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = made.iter().find(|(known, _)| *known == manner) {
            return Ok(client.clone());
        }
        let client = self.make(&manner)?;
        if made.len() >= KEPT {
            made.remove(0);
        }
        made.push((manner, client.clone()));
        Ok(client)
    }

    fn make(&self, manner: &Manner) -> Result<Client, TlsError> {
        let tls = tls(&manner.trust)?;
        let connector = Connector::new(self.addresses.clone(), |http| {
            http.set_nodelay(true);
            http.enforce_http(false);
            http.set_keepalive(Some(KEEP_ALIVE));
            http.set_connect_timeout(Some(manner.connect_timeout));
        });
        let dial: Arc<dyn Dial> = match &manner.way {
            Way::Direct => Arc::new(Direct(over_tls(tls, connector))),
            Way::Forwarded(via) => Arc::new(Forwarded {
                via: via.clone(),
                proxy: to_proxy(connector)?,
                addresses: self.addresses.clone(),
            }),
            Way::Tunnelled(via) => {
                let proxy = to_proxy(connector)?;
                Arc::new(Tunnelled::new(via, proxy, tls, self.addresses.clone()))
            }
        };
        let here = || Pool::new(dial.clone(), manner.connect_timeout, manner.idle_timeout);
        Ok(Client { places: std::iter::repeat_with(here).take(workers::usual() + 1).collect() })
    }
}

/// A proxy is trusted by the machine's authorities, and sees no certificate that is for
/// the model.
fn to_proxy(connector: Connector) -> Result<hyper_rustls::HttpsConnector<Connector>, TlsError> {
    Ok(over_tls(tls(&Trust::default())?, connector))
}

fn tls(trust: &Trust) -> Result<ClientConfig, TlsError> {
    let bytes = |text: &SecretText| text.expose().as_bytes().to_vec();
    let authorities = trust.authorities.as_ref().map(bytes);
    let identity = trust.identity.as_ref().map(|(c, k)| (bytes(c), bytes(k)));
    let identity = identity.as_ref().map(|(c, k)| (c.as_slice(), k.as_slice()));
    let config = match client_config(authorities.as_deref(), identity) {
        // A machine without authorities can still speak to models without TLS.
        Err(TlsError::NoAuthorities) if *trust == Trust::default() => trusting_nobody()?,
        config => config?,
    };
    Ok(ClientConfig::clone(&config))
}
