//! Is there an HTTP server at the address? No key is sent: the operator reads no
//! Secrets, so also a refusal to answer without one is an answer. Where the backend names
//! certificates in Secrets, whose server it is remains for gateways to check.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::civil::Date;

use crate::{
    api::{
        LLMDeploymentSpec,
        url::{has_credentials, without_path},
    },
    openai::models,
    signals::{
        addresses::{Addresses, Resolver},
        cause::innermost,
    },
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
    /// The same two for servers whose certificate only gateways can check.
    unchecked: [reqwest::Client; 2],
    addresses: Arc<Addresses>,
}

/// There is a server.
#[derive(Debug)]
pub(super) struct Answered {
    /// A sentence.
    pub message: String,
    /// When it says that the model ends; none when it does not say which models it has.
    pub retires: Option<Option<Date>>,
}

impl Answered {
    fn says(message: String) -> Self {
        Self { message, retires: None }
    }
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
        let direct = || builder(&addresses).no_proxy();
        let environment = || builder(&addresses);
        let unchecked = [unchecked(direct()).build()?, unchecked(environment()).build()?];
        let (direct, environment) = (direct().build()?, environment().build()?);
        Ok(Self { direct, environment, unchecked, addresses })
    }

    /// Asks `{base}/models`, on the way that gateways take. What is wrong is a sentence.
    pub(super) async fn ask(
        &self,
        base: &str,
        backend: &LLMDeploymentSpec,
    ) -> Result<Answered, String> {
        // What is said here goes into a status.
        if has_credentials(base) {
            return Err("spec.endpoint.url holds a user or a password: create another \
                        LLMDeployment with the key in a Secret, named in \
                        spec.endpoint.apiKeySecretRef"
                .to_owned());
        }
        let asked: Result<reqwest::Url, _> = format!("{base}/models").parse();
        // The path of an address may hold a token.
        let base = without_path(base);
        let url = asked.map_err(|e| format!("{base}: {e}"))?;
        // The client resolves names only, and none of those that a proxy resolves.
        let host = url.host_str().unwrap_or_default();
        self.addresses.check_named(host).map_err(|e| format!("{base} is not asked: {e}"))?;
        let own = backend.endpoint.as_ref().and_then(|e| e.tls.as_ref());
        let client = match way(backend, host) {
            Way::Direct if own.is_some() => self.unchecked[0].clone(),
            Way::Environment if own.is_some() => self.unchecked[1].clone(),
            Way::Direct => self.direct.clone(),
            Way::Environment => self.environment.clone(),
            Way::Proxy(proxy) if has_credentials(&proxy) => {
                return Err("spec.proxy.url holds a user or a password: put them into a Secret, \
                            and name it in spec.proxy.credentialsSecretRef"
                    .to_owned());
            }
            Way::Proxy(proxy) => {
                self.through(&proxy, own.is_some()).map_err(|e| format!("{proxy}: {e}"))?
            }
            Way::Unknown => {
                let message = "is behind a proxy that wants credentials, and is not probed";
                return Ok(Answered::says(format!("{base} {message}")));
            }
        };
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            match client.get(url.clone()).timeout(PATIENCE).send().await {
                Ok(answer) if answer.status().as_u16() < 500 => {
                    let checked = match own {
                        Some(_) => "; its certificate is checked by gateways, which read Secrets",
                        None => "",
                    };
                    let retires = retires(answer, &backend.model).await;
                    return Ok(Answered {
                        retires,
                        ..Answered::says(format!("{base} answers{checked}"))
                    });
                }
                Ok(answer) => {
                    last = format!("{base} (GET .../models) answered {}", answer.status().as_u16())
                }
                Err(error)
                    if own.is_some_and(|tls| tls.client_certificate_secret_ref.is_some())
                        && is_alert(&error) =>
                {
                    let message = format!("{base} wants the certificate that gateways show it");
                    return Ok(Answered::says(message));
                }
                Err(error) if error.is_timeout() => {
                    last = format!("{base} did not answer within {} s", PATIENCE.as_secs());
                }
                Err(error) => {
                    let error = error.without_url();
                    last = format!("{base} can not be reached: {}", innermost(&error));
                }
            }
        }
        Err(last)
    }

    fn through(&self, proxy: &str, is_unchecked: bool) -> Result<reqwest::Client, String> {
        let url: reqwest::Url = proxy.parse().map_err(|e| format!("{e}"))?;
        let host = url.host_str().unwrap_or_default();
        self.addresses.check_host(host).map_err(|e| e.to_string())?;
        let proxy = reqwest::Proxy::all(url).map_err(|e| e.to_string())?;
        let client = builder(&self.addresses).no_proxy().proxy(proxy);
        let client = if is_unchecked { unchecked(client) } else { client };
        client.build().map_err(|e| e.to_string())
    }
}

/// When a server's list says that a model ends. OpenAI itself lists its models for an API key
/// only; a proxy that adds the key may list them for anybody.
async fn retires(mut answer: reqwest::Response, model: &str) -> Option<Option<Date>> {
    if answer.status() != reqwest::StatusCode::OK {
        return None;
    }
    let mut json = vec![];
    while let Some(chunk) = answer.chunk().await.ok()? {
        json.extend_from_slice(&chunk);
        if json.len() > models::LARGEST {
            return None;
        }
    }
    models::shutdown_date(&json, model)
}

fn builder(addresses: &Arc<Addresses>) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(Resolver::new(addresses.clone()))
}

/// Whom the server's certificate is to be signed by stands in a Secret, which the operator does
/// not read. Nothing is sent that somebody else may not know.
fn unchecked(client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    client.tls_danger_accept_invalid_certs(true)
}

/// Whether the server ended the handshake, as it does without a certificate that it wants.
fn is_alert(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // What is within it is no source of it.
        let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = within.and_then(|within| within.downcast_ref()).or(error.downcast_ref());
        if matches!(tls, Some(rustls::Error::AlertReceived(_))) {
            return true;
        }
        cause =
            within.map(|within| within as &(dyn std::error::Error + 'static)).or(error.source());
    }
    false
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
    use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinSet};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Serves one after the other, with a certificate of an authority that nobody knows, and
    /// perhaps to those alone who show one of it.
    async fn server(wants_certificate: bool) -> (SocketAddr, JoinSet<()>) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let config = match wants_certificate {
            true => ServerConfig::builder().with_client_cert_verifier(verifier),
            false => ServerConfig::builder().with_no_client_auth(),
        };
        let key = key.serialize_der().try_into().unwrap();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn a_server_whose_certificates_are_in_secrets_is_asked_without_these() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let probe = Probe::new(Addresses::default()).unwrap();
        let authority = serde_json::json!({"caSecretRef": {"name": "ca", "key": "ca.crt"}});
        let both = serde_json::json!({"caSecretRef": {"name": "ca", "key": "ca.crt"},
            "clientCertificateSecretRef": {"name": "own"}});
        for (wants, tls, expected) in [
            (false, serde_json::Value::Null, Err("can not be reached")),
            (false, authority.clone(), Ok("checked by gateways")),
            (true, both, Ok("wants the certificate")),
            (true, authority, Err("can not be reached")),
        ] {
            let (address, _serving) = server(wants).await;
            let base = format!("https://localhost:{}/v1/zq7Kp2Lm9X", address.port());
            let spec = serde_json::json!({"provider": "openai", "model": "m",
                "endpoint": {"url": base, "tls": tls}});
            let found = probe.ask(&base, &serde_json::from_value(spec).unwrap()).await;
            let found = found.map(|answered| answered.message);
            match (&found, expected) {
                (Ok(text), Ok(part)) | (Err(text), Err(part)) if text.contains(part) => {}
                _ => panic!("{wants} {tls}: {found:?}", tls = base),
            }
            let (Ok(text) | Err(text)) = found;
            assert!(text.contains("https://localhost:") && !text.contains("zq7Kp"), "{text}");
        }
    }
}
