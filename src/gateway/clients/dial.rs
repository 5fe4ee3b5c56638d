//! How a connection to a model is made: directly, or through a proxy.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::http::{HeaderValue, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{client::legacy::connect::proxy::Tunnel, rt::TokioIo};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::proxy::Via;
use crate::signals::addresses::{Addresses, Connector};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A connection under way.
pub(super) type Dialing = Pin<Box<dyn Future<Output = Result<Box<dyn Io>, BoxError>> + Send>>;

/// What bytes go through.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Makes connections.
pub(super) trait Dial: Send + Sync {
    /// A connection over which the host of `uri` answers.
    fn dial(&self, uri: Uri) -> Dialing;

    /// The proxy that reads the requests and sends them on, where there is one.
    fn forwards(&self) -> Option<&Via> {
        None
    }
}

/// Directly.
pub(super) struct Direct(pub HttpsConnector<Connector>);

impl Dial for Direct {
    fn dial(&self, uri: Uri) -> Dialing {
        let connecting = self.0.clone().call(uri);
        Box::pin(async { Ok(Box::new(TokioIo::new(connecting.await?)) as Box<dyn Io>) })
    }
}

/// Through a proxy that reads each request and sends it on: for models without TLS.
pub(super) struct Forwarded {
    pub via: Via,
    pub proxy: HttpsConnector<Connector>,
    pub addresses: Arc<Addresses>,
}

impl Dial for Forwarded {
    fn dial(&self, uri: Uri) -> Dialing {
        if let Err(refused) = self.addresses.check_named(uri.host().unwrap_or_default()) {
            return Box::pin(async { Err(refused.into()) });
        }
        let connecting = self.proxy.clone().call(self.via.uri.clone());
        Box::pin(async { Ok(Box::new(TokioIo::new(connecting.await?)) as Box<dyn Io>) })
    }

    fn forwards(&self) -> Option<&Via> {
        Some(&self.via)
    }
}

/// Through a proxy that is asked for a tunnel (CONNECT): it sees whom we speak to and
/// nothing else.
pub(super) struct Tunnelled {
    tunnel: HttpsConnector<Tunnel<HttpsConnector<Connector>>>,
    addresses: Arc<Addresses>,
}

impl Tunnelled {
    pub(super) fn new(
        via: &Via,
        proxy: HttpsConnector<Connector>,
        tls: ClientConfig,
        addresses: Arc<Addresses>,
    ) -> Self {
        let tunnel = Tunnel::new(via.uri.clone(), proxy);
        let tunnel = match &via.credentials {
            Some(credentials) => tunnel.with_auth(credentials.clone()),
            None => tunnel,
        };
        Self { tunnel: over_tls(tls, tunnel), addresses }
    }
}

impl Dial for Tunnelled {
    fn dial(&self, uri: Uri) -> Dialing {
        if let Err(refused) = self.addresses.check_named(uri.host().unwrap_or_default()) {
            return Box::pin(async { Err(refused.into()) });
        }
        let connecting = self.tunnel.clone().call(uri);
        Box::pin(async { Ok(Box::new(TokioIo::new(connecting.await?)) as Box<dyn Io>) })
    }
}

/// TLS where the address wants it.
pub(super) fn over_tls<T>(tls: ClientConfig, inner: T) -> HttpsConnector<T> {
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(inner)
}

/// A connection that counts what it reads.
pub(super) struct Wire {
    io: Box<dyn Io>,
    read: Arc<AtomicU64>,
}

impl Wire {
    pub(super) fn new(io: Box<dyn Io>, read: Arc<AtomicU64>) -> Self {
        Self { io, read }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Credentials never go into logs.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
