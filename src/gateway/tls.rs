//! TLS towards applications and towards models.
//!
//! Certificates come from files that may change at any time, as mounted Secrets do. They
//! are read again every few seconds; connections that exist keep what they agreed on.
//! Files that can not be used are told and change nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How often the files are read.
const RELOAD: Duration = Duration::from_secs(5);

/// Why TLS can not be set up. Never tells what a file holds.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{path} can not be read: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no certificate where one should be.
    #[error("{0} has no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate(String),
    /// There is no key where one should be.
    #[error("{0} has no private key in PEM form (PKCS #8, PKCS #1 or SEC1, without a passphrase)")]
    NoKey(String),
    /// Certificate and key do not go together, or a certificate is no authority's.
    #[error("certificate, key or authorities can not be used: {0}")]
    Unusable(String),
    /// Nobody is trusted.
    #[error(
        "this machine has no certificate authorities: install them (ca-certificates), set SSL_CERT_FILE, or set spec.endpoint.tls.caSecretRef"
    )]
    NoAuthorities,
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable(error.to_string())
}

/// Ring, as everywhere else in the process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(pem: &[u8], from: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate(from.to_owned()))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(from.to_owned()));
    }
    Ok(certificates)
}

fn key(pem: &[u8], from: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::NoKey(from.to_owned()))
}

fn authorities(pem: &[u8], from: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, from)? {
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

/// TLS towards a model: whom to trust (PEM; default: the machine's authorities) and which
/// certificate to show (certificates and key, PEM).
///
/// # Errors
/// Something is no PEM, does not fit together, or nobody would be trusted.
pub fn client_config(
    ca_pem: Option<&[u8]>,
    identity: Option<(&[u8], &[u8])>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match ca_pem {
        Some(pem) => authorities(pem, "the Secret of spec.endpoint.tls.caSecretRef")?,
        None => machine_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, private)) => {
            let from = "the Secret of spec.endpoint.tls.clientCertificateSecretRef";
            builder
                .with_client_auth_cert(certificates(certificate, from)?, key(private, from)?)
                .map_err(unusable)?
        }
    };
    Ok(Arc::new(config))
}

/// TLS that trusts nobody: every handshake fails.
///
/// # Errors
/// Not in practice.
pub fn trusting_nobody() -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    Ok(Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

fn machine_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoAuthorities) } else { Ok(roots) }
}

/// Where the certificate for applications is.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// The certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authorities of clients' certificates, PEM. When set, clients must show one.
    pub client_ca: Option<PathBuf>,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// TLS towards applications.
pub struct ServerTls {
    files: ServerFiles,
    read: Mutex<Content>,
    config: ArcSwap<ServerConfig>,
}

impl ServerTls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A file is missing, no PEM, or does not fit the others.
    pub fn load(files: ServerFiles) -> Result<Arc<Self>, TlsError> {
        let content = read(&files)?;
        let config = ArcSwap::new(config(&files, &content)?);
        Ok(Arc::new(Self { files, read: Mutex::new(content), config }))
    }

    /// Reads the files again; true when there is something new, which new connections get
    /// from now on.
    ///
    /// # Errors
    /// What is new can not be used; what was, stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let content = read(&self.files)?;
        let Ok(mut last) = self.read.lock() else { return Ok(false) };
        if *last == content {
            return Ok(false);
        }
        self.config.store(config(&self.files, &content)?);
        *last = content;
        Ok(true)
    }

    /// Reloads without end.
    pub async fn follow(self: Arc<Self>) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(RELOAD).await;
            match tokio::task::block_in_place(|| self.reload()) {
                Ok(true) => {
                    told.clear();
                    tracing::info!("new connections get the new certificate");
                }
                Ok(false) => {}
                Err(error) => {
                    let text = error.to_string();
                    if text != told {
                        tracing::error!("the certificate was not replaced: {text}");
                        told = text;
                    }
                }
            }
        }
    }

    /// Shakes hands with a client.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load_full()).accept(stream).await
    }
}

fn read(files: &ServerFiles) -> Result<Content, TlsError> {
    let file = |path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
    };
    Ok(Content {
        certificate: file(&files.certificate)?,
        key: file(&files.key)?,
        client_ca: files.client_ca.as_deref().map(file).transpose()?,
    })
}

fn config(files: &ServerFiles, content: &Content) -> Result<Arc<ServerConfig>, TlsError> {
    let from = |path: &Path| path.display().to_string();
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match (&files.client_ca, &content.client_ca) {
        (Some(path), Some(pem)) => {
            let roots = Arc::new(authorities(pem, &from(path))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(unusable)?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(
            certificates(&content.certificate, &from(&files.certificate))?,
            key(&content.key, &from(&files.key))?,
        )
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
