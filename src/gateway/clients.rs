//! The HTTP clients towards models: pooled connections, no proxy, no redirects, and no
//! way to addresses that requests may not go to.
//!
//! Backends that trust the same authorities, show the same certificate and wait as long
//! for a connection share a client, and so its connections.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;

use super::{
    tls::{TlsError, client_config, trusting_nobody},
    workers,
};
use crate::{
    api::secret::SecretText,
    signals::addresses::{Addresses, Connector},
};

/// Connections that nobody uses for so long are closed. Below what servers usually keep
/// open, so that a request seldom meets a connection that is being closed.
const IDLE: Duration = Duration::from_secs(50);
/// More clients than this are a sign of certificates that change all the time: what
/// nobody uses any more is let go.
const KEPT: usize = 64;

/// A client for some backends.
#[derive(Clone)]
pub(super) struct Client {
    /// One for each worker, and one for threads that are none: a connection stays with the
    /// thread that reads it.
    places: Arc<[Here]>,
}

/// The client of one thread.
type Here = legacy::Client<HttpsConnector<Connector>, Full<Bytes>>;

impl Client {
    /// The one of this thread.
    pub(super) fn here(&self) -> &Here {
        self.places.get(workers::place()).unwrap_or(&self.places[0])
    }
}

/// Why a request got no answer.
pub(super) type Error = legacy::Error;

/// Whom to trust, and as whom to appear, PEM. By default the machine's authorities and
/// nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    pub authorities: Option<SecretText>,
    /// Certificates and their private key.
    pub identity: Option<(SecretText, SecretText)>,
}

/// All clients of a gateway.
#[derive(Default)]
pub(super) struct Clients {
    addresses: Arc<Addresses>,
    made: Mutex<Vec<(Duration, Trust, Client)>>,
}

impl Clients {
    /// Clients that connect to these addresses only.
    pub(super) fn new(addresses: Arc<Addresses>) -> Self {
        // For clients of other things in the process, which take the default. Fails only
        // when one was installed before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { addresses, made: Mutex::default() }
    }

    /// The client for backends that may take `connect_timeout` to accept a connection.
    ///
    /// # Errors
    /// A certificate or key can not be used, or nobody would be trusted.
    pub(super) fn get(&self, connect_timeout: Duration, trust: &Trust) -> Result<Client, TlsError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let known = made.iter().find(|(timeout, of, _)| *timeout == connect_timeout && of == trust);
        if let Some((_, _, client)) = known {
            return Ok(client.clone());
        }
        let client = self.make(connect_timeout, trust)?;
        if made.len() >= KEPT {
            made.remove(0);
        }
        made.push((connect_timeout, trust.clone(), client.clone()));
        Ok(client)
    }

    fn make(&self, connect_timeout: Duration, trust: &Trust) -> Result<Client, TlsError> {
        let bytes = |text: &SecretText| text.expose().as_bytes().to_vec();
        let authorities = trust.authorities.as_ref().map(bytes);
        let identity = trust.identity.as_ref().map(|(c, k)| (bytes(c), bytes(k)));
        let identity = identity.as_ref().map(|(c, k)| (c.as_slice(), k.as_slice()));
        let config = match client_config(authorities.as_deref(), identity) {
            // A machine without authorities can still speak to models without TLS.
            Err(TlsError::NoAuthorities) if *trust == Trust::default() => trusting_nobody()?,
            config => config?,
        };
        let connector = Connector::new(self.addresses.clone(), |http| {
            http.set_nodelay(true);
            http.enforce_http(false);
            http.set_connect_timeout(Some(connect_timeout));
        });
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(ClientConfig::clone(&config))
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let here = || {
            legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE)
                .pool_timer(TokioTimer::new())
                .build(connector.clone())
        };
        Ok(Client { places: std::iter::repeat_with(here).take(workers::usual() + 1).collect() })
    }
}
