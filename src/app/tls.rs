//! The flags that say where the certificate for applications is.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;

use crate::gateway::tls::{ServerFiles, ServerTls};

/// TLS for applications. Without it they are served in plain text.
#[derive(clap::Args)]
#[group(id = "tls")]
pub struct Options {
    /// The certificate chain for applications, PEM. It may change at any time.
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authorities of clients' certificates, PEM: applications must then show one.
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
}

impl Options {
    /// Reads the files, if there are any. Somebody has to follow them.
    ///
    /// # Errors
    /// They can not be used.
    pub fn build(&self) -> anyhow::Result<Option<Arc<ServerTls>>> {
        let Some((certificate, key)) = self.tls_cert.clone().zip(self.tls_key.clone()) else {
            return Ok(None);
        };
        let files = ServerFiles { certificate, key, client_ca: self.tls_client_ca.clone() };
        Ok(Some(ServerTls::load(files).context("--tls-cert")?))
    }
}
