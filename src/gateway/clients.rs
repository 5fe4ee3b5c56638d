//! The HTTP clients towards models: pooled connections, no proxy, no redirects.
//!
//! Backends that trust the same authorities and wait as long for a connection share a
//! client, and so its connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;

/// Connections that nobody uses for so long are closed. Below what servers usually keep
/// open, so that a request seldom meets a connection that is being closed.
const IDLE: Duration = Duration::from_secs(50);

/// A client for some backends.
pub(super) type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Why a request got no answer.
pub(super) type Error = legacy::Error;

/// All clients of a gateway.
pub(super) struct Clients {
    public: Arc<ClientConfig>,
    made: Mutex<HashMap<Duration, Client>>,
}

impl Default for Clients {
    fn default() -> Self {
        // Fails only when a provider was installed before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { public: Arc::new(config), made: Mutex::default() }
    }
}

impl Clients {
    /// The client for backends that may take `connect_timeout` to accept a connection.
    pub(super) fn get(&self, connect_timeout: Duration) -> Client {
        let Ok(mut made) = self.made.lock() else { return make(&self.public, connect_timeout) };
        made.entry(connect_timeout).or_insert_with(|| make(&self.public, connect_timeout)).clone()
    }
}

fn make(config: &ClientConfig, connect_timeout: Duration) -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(connect_timeout));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config.clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector)
}
