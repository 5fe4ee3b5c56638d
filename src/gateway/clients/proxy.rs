//! Through which proxy a backend is reached: the one that its LLMDeployment names, none,
//! or the one of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in
//! upper and lower case, read once).
//!
//! The environment's is for `endpoint` backends only: pods of the cluster are not
//! reached through a proxy, and nothing on this machine is.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderValue, Uri, uri::Scheme};
use base64::{Engine, prelude::BASE64_STANDARD};
use hyper_util::client::proxy::matcher::Matcher;

use super::dial::sensitive;
use crate::api::{llm_deployment::Proxy, secret::SecretText, url::has_credentials};

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Via {
    pub uri: Uri,
    /// The value of `proxy-authorization`.
    pub credentials: Option<HeaderValue>,
}

/// How a backend is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::gateway) enum Way {
    #[default]
    Direct,
    /// The proxy reads the requests.
    Forwarded(Via),
    /// The proxy connects and reads nothing.
    Tunnelled(Via),
}

/// The proxies of the environment.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Option<Arc<Matcher>>);

impl Proxies {
    /// Those that the process was started with. A SOCKS proxy is not supported: it is told
    /// once and not used.
    pub fn of_environment() -> Self {
        let matcher = Matcher::from_env();
        let known = |text: &'static str| matcher.intercept(&Uri::from_static(text));
        for target in ["http://example.com", "https://example.com"] {
            if let Some(proxy) = known(target).filter(|proxy| !is_http(proxy.uri())) {
                let scheme = proxy.uri().scheme_str().unwrap_or_default();
                tracing::warn!(
                    "the environment names a {scheme} proxy, which is not supported: models are \
                     reached without it; set HTTPS_PROXY to a proxy of HTTP"
                );
            }
        }
        Self(Some(Arc::new(matcher)))
    }

    /// As if the environment had said so.
    #[cfg(test)]
    pub(super) fn of(http: &str, https: &str, no: &str) -> Self {
        let matcher = Matcher::builder().http(http).https(https).no(no).build();
        Self(Some(Arc::new(matcher)))
    }

    /// The way to `uri`, where the environment may decide.
    pub(in crate::gateway) fn way(&self, uri: &Uri) -> Way {
        let found = self.0.as_ref().and_then(|matcher| matcher.intercept(uri));
        match found.filter(|proxy| is_http(proxy.uri()) && !is_this_machine(uri)) {
            None => Way::Direct,
            Some(proxy) => {
                let mut credentials = proxy.basic_auth().cloned();
                credentials.iter_mut().for_each(|value| value.set_sensitive(true));
                Way::through(Via { uri: proxy.uri().clone(), credentials }, uri)
            }
        }
    }
}

impl Way {
    /// What is shown to the proxy.
    pub(in crate::gateway) fn credentials(&self) -> Option<&HeaderValue> {
        match self {
            Self::Direct => None,
            Self::Forwarded(via) | Self::Tunnelled(via) => via.credentials.as_ref(),
        }
    }

    fn through(via: Via, uri: &Uri) -> Self {
        if uri.scheme() == Some(&Scheme::HTTPS) {
            Self::Tunnelled(via)
        } else {
            Self::Forwarded(via)
        }
    }

    /// The way that an LLMDeployment wants; `credentials` are the user's name and password,
    /// with a colon between them.
    ///
    /// # Errors
    /// It can not be used.
    pub(in crate::gateway) fn wanted(
        proxy: &Proxy,
        credentials: Option<&SecretText>,
        uri: &Uri,
    ) -> Result<Self, String> {
        let Some(url) = &proxy.url else { return Ok(Self::Direct) };
        if has_credentials(url) {
            return Err("spec.proxy.url holds a user or a password: put them into a Secret, and \
                        name it in spec.proxy.credentialsSecretRef"
                .to_owned());
        }
        let address: Uri =
            url.parse().map_err(|e| format!("spec.proxy.url {url} is no address: {e}"))?;
        let credentials = credentials.map(|text| {
            let encoded = BASE64_STANDARD.encode(text.expose().trim_end_matches(['\r', '\n']));
            sensitive(&format!("Basic {encoded}")).ok_or("the proxy's credentials can not be sent")
        });
        Ok(Self::through(Via { uri: address, credentials: credentials.transpose()? }, uri))
    }
}

fn is_http(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
}

/// As curl and Go see it: what listens on this machine is not behind a proxy.
fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn via(url: &str) -> Via {
        Via { uri: uri(url), credentials: None }
    }

    #[test]
    fn the_environment_decides_by_scheme_and_host() {
        let proxies = Proxies::of(
            "http://plain:3128",
            "http://user:pa%20ss@secure:3128",
            "internal.corp, .svc,10.0.0.0/8",
        );
        assert_eq!(
            proxies.way(&uri("http://models.example/v1/chat/completions")),
            Way::Forwarded(via("http://plain:3128/"))
        );
        let Way::Tunnelled(secure) = proxies.way(&uri("https://api.openai.com/v1")) else {
            panic!("TLS goes through a tunnel")
        };
        assert_eq!(secure.uri, uri("http://secure:3128/"));
        assert_eq!(secure.credentials.as_ref().unwrap(), "Basic dXNlcjpwYSBzcw==");
        assert!(!format!("{secure:?}").contains("dXNl"), "{secure:?}");
        for direct in [
            "https://internal.corp/v1",
            "https://a.internal.corp/v1",
            "http://vllm.models.svc:8000/v1",
            "http://10.1.2.3:8000/v1",
            "http://localhost:8000/v1",
            "http://127.0.0.1:8000/v1",
            "http://[::1]:8000/v1",
        ] {
            assert_eq!(proxies.way(&uri(direct)), Way::Direct, "{direct}");
        }
        assert_eq!(Proxies::default().way(&uri("https://api.openai.com/v1")), Way::Direct);
        let socks = Proxies::of("socks5://a:1", "socks5h://a:1", "");
        assert_eq!(socks.way(&uri("https://api.openai.com/v1")), Way::Direct);
    }

    #[test]
    fn an_llmdeployment_decides_before_the_environment() {
        let proxy = |url: Option<&str>| Proxy {
            url: url.map(str::to_owned),
            direct: url.is_none(),
            ..Proxy::default()
        };
        let target = uri("https://api.openai.com/v1");
        assert_eq!(Way::wanted(&proxy(None), None, &target), Ok(Way::Direct));
        let secret = SecretText::new("ada:lovelace\n".to_owned());
        let way = Way::wanted(&proxy(Some("http://p:3128")), Some(&secret), &target);
        let Ok(Way::Tunnelled(via)) = way else { panic!("{way:?}") };
        assert_eq!(via.credentials.unwrap(), "Basic YWRhOmxvdmVsYWNl");
        assert!(Way::wanted(&proxy(Some("http://p:3128:1")), None, &target).is_err());
    }
}
