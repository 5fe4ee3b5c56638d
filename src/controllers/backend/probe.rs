//! Is there an HTTP server at the address? No key is sent: the operator reads no
//! Secrets, so also a refusal to answer without one is an answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    api::{LLMDeploymentSpec, url::has_credentials},
    signals::addresses::{Addresses, Resolver},
};

/// Longer than any server needs to say something.
const PATIENCE: Duration = Duration::from_secs(5);
/// One lost packet is no outage.
const ATTEMPTS: usize = 3;

/// Asks backends whether they answer.
pub struct Probe {
    /// Through no proxy.
    direct: reqwest::Client,
    /// Through those of the environment.
    environment: reqwest::Client,
    addresses: Arc<Addresses>,
}

/// How a backend is reached.
enum Way {
    Direct,
    Environment,
    Proxy(String),
    /// The proxy wants credentials, which the operator does not read.
    Unknown,
}

impl Probe {
    /// Asks only at these addresses, and follows nobody to others.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn new(addresses: Addresses) -> Result<Self, reqwest::Error> {
        let addresses = Arc::new(addresses);
        let direct = builder(&addresses).no_proxy().build()?;
        let environment = builder(&addresses).build()?;
        Ok(Self { direct, environment, addresses })
    }

    /// Asks `{base}/models`, on the way that gateways take. Answers a sentence, good or bad.
    pub(super) async fn ask(
        &self,
        base: &str,
        backend: &LLMDeploymentSpec,
    ) -> Result<String, String> {
        // What is said here goes into a status.
        if has_credentials(base) {
            return Err("spec.endpoint.url holds a user or a password: create another \
                        LLMDeployment with the key in a Secret, named in \
                        spec.endpoint.apiKeySecretRef"
                .to_owned());
        }
        let url: reqwest::Url =
            format!("{base}/models").parse().map_err(|e| format!("{base}: {e}"))?;
        // The client resolves names only, and none of those that a proxy resolves.
        let host = url.host_str().unwrap_or_default();
        self.addresses.check_named(host).map_err(|e| format!("{base} is not asked: {e}"))?;
        let client = match way(backend, host) {
            Way::Direct => self.direct.clone(),
            Way::Environment => self.environment.clone(),
            Way::Proxy(proxy) if has_credentials(&proxy) => {
                return Err("spec.proxy.url holds a user or a password: put them into a Secret, \
                            and name it in spec.proxy.credentialsSecretRef"
                    .to_owned());
            }
            Way::Proxy(proxy) => self.through(&proxy).map_err(|e| format!("{proxy}: {e}"))?,
            Way::Unknown => {
                let message = "is behind a proxy that wants credentials, and is not probed";
                return Ok(format!("{base} {message}"));
            }
        };
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            match client.get(url.clone()).timeout(PATIENCE).send().await {
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

    fn through(&self, proxy: &str) -> Result<reqwest::Client, String> {
        let url: reqwest::Url = proxy.parse().map_err(|e| format!("{e}"))?;
        let host = url.host_str().unwrap_or_default();
        self.addresses.check_host(host).map_err(|e| e.to_string())?;
        let proxy = reqwest::Proxy::all(url).map_err(|e| e.to_string())?;
        builder(&self.addresses).no_proxy().proxy(proxy).build().map_err(|e| e.to_string())
    }
}

fn builder(addresses: &Arc<Addresses>) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(Resolver::new(addresses.clone()))
}

/// As `gateway::clients::proxy` decides it.
fn way(backend: &LLMDeploymentSpec, host: &str) -> Way {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match &backend.proxy {
        _ if backend.endpoint.is_none() => Way::Direct,
        None if is_here => Way::Direct,
        None => Way::Environment,
        Some(proxy) if proxy.credentials_secret_ref.is_some() => Way::Unknown,
        Some(proxy) => proxy.url.clone().map_or(Way::Direct, Way::Proxy),
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
