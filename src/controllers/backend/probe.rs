//! Is there an HTTP server at the address? No key is sent: the operator reads no
//! Secrets, so also a refusal to answer without one is an answer.

use std::{sync::Arc, time::Duration};

use crate::signals::addresses::{Addresses, Resolver};

/// Longer than any server needs to say something.
const PATIENCE: Duration = Duration::from_secs(5);
/// One lost packet is no outage.
const ATTEMPTS: usize = 3;

/// Asks backends whether they answer.
pub struct Probe {
    client: reqwest::Client,
    addresses: Arc<Addresses>,
}

impl Probe {
    /// Asks only at these addresses, and follows nobody to others.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn new(addresses: Addresses) -> Result<Self, reqwest::Error> {
        let addresses = Arc::new(addresses);
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Resolver::new(addresses.clone()))
            .build()?;
        Ok(Self { client, addresses })
    }

    /// Asks `{base}/models`. Answers a sentence, good or bad.
    pub(super) async fn ask(&self, base: &str) -> Result<String, String> {
        let url: reqwest::Url =
            format!("{base}/models").parse().map_err(|e| format!("{base}: {e}"))?;
        // The client resolves names only.
        let host = url.host_str().unwrap_or_default();
        self.addresses.check_host(host).map_err(|e| format!("{base} is not asked: {e}"))?;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            match self.client.get(url.clone()).timeout(PATIENCE).send().await {
                Ok(answer) if answer.status().as_u16() < 500 => {
                    return Ok(format!("{base} answers"));
                }
                Ok(answer) => last = format!("{base}/models answered {}", answer.status().as_u16()),
                Err(error) if error.is_timeout() => {
                    last = format!("{base} did not answer within {} s", PATIENCE.as_secs());
                }
                Err(error) => last = format!("{base} can not be reached: {}", root_cause(&error)),
            }
        }
        Err(last)
    }
}

/// The innermost reason, which is the one that helps.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
