//! Who may ask for a gateway's report. It tells what was counted, and being asked by a
//! leader is a gateway's sign that a judge is alive: neither is for everybody.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::http::HeaderMap;

use super::{credential, keys::digest, same, tokens::Verifier};
use crate::openai::error::ApiError;

/// How often the file of tokens is read.
const RELOAD: Duration = Duration::from_secs(5);

/// Who may ask for a report.
#[derive(Clone, Default)]
pub enum Operators {
    /// Nobody.
    #[default]
    Nobody,
    /// Everybody who reaches the address.
    Anyone,
    /// Who shows a token of a file.
    Token(Arc<TokenFile>),
    /// Who shows a service account's token for the gateway.
    ServiceAccount {
        /// Checks it.
        verifier: Arc<Verifier>,
        /// Whose it must be: `system:serviceaccount:NAMESPACE:NAME`.
        subject: String,
    },
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Anyone => "Anyone",
            Self::Token(_) => "Token",
            Self::ServiceAccount { .. } => "ServiceAccount",
        })
    }
}

impl Operators {
    /// # Errors
    /// 401: who asks is no operator.
    pub(in crate::gateway) fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let admitted = match self {
            Self::Anyone => true,
            Self::Nobody => false,
            Self::Token(file) => file.holds(credential(headers).ok_or_else(refused)?),
            Self::ServiceAccount { verifier, subject } => {
                let token = credential(headers).ok_or_else(refused)?;
                verifier
                    .verify(token)
                    .inspect_err(|why| tracing::debug!("a report was refused: {why}"))
                    .is_ok_and(|verified| verified.subject == *subject)
            }
        };
        if admitted { Ok(()) } else { Err(refused()) }
    }
}

fn refused() -> ApiError {
    let message = "reports are for operators: send the operator's service-account token, or a \
        token of the file that --admin-token-file names, as \"Authorization: Bearer TOKEN\"";
    ApiError::new(401, "not_an_operator", message)
}

/// Tokens in a file, one a line, any of which counts; read again when the file changes.
pub struct TokenFile {
    path: PathBuf,
    digests: ArcSwap<Vec<[u8; 32]>>,
}

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It can not be read, or has no token.
    pub fn open(path: PathBuf) -> std::io::Result<Arc<Self>> {
        let file = Self { digests: ArcSwap::default(), path };
        file.reload()?;
        Ok(Arc::new(file))
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// It can not be read, or has no token; what was read before stays.
    pub fn reload(&self) -> std::io::Result<()> {
        let text = std::fs::read_to_string(&self.path)?;
        let tokens: Vec<_> =
            text.lines().map(str::trim).filter(|l| !l.is_empty()).map(digest).collect();
        if tokens.is_empty() {
            let message = format!("{} has no token: write one a line", self.path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
        }
        self.digests.store(Arc::new(tokens));
        Ok(())
    }

    /// Reads the file now and then, without end.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RELOAD).await;
            if let Err(error) = tokio::task::block_in_place(|| self.reload()) {
                tracing::warn!("--admin-token-file: {error}");
            }
        }
    }

    fn holds(&self, token: &str) -> bool {
        let shown = digest(token);
        // All are compared, so that time does not tell which one it was.
        self.digests.load().iter().fold(false, |found, known| same(known, &shown) | found)
    }
}
