//! To which hosts what a Secret holds may be sent. Whoever may write an LLMDeployment
//! chooses a Secret of its namespace and an address; that the two belong together is for
//! the Secret's owner to say, on the Secret itself.

use std::collections::HashMap;

use super::Fault;
use crate::api::keys::HOSTS_ANNOTATION;

/// The hosts of each Secret, by its name. The default permits every host: outside a
/// cluster the owner of the Secrets writes the backends, too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grants(Option<HashMap<String, Vec<String>>>);

impl Grants {
    /// Nothing may be sent anywhere, but for what is said later.
    pub fn none() -> Self {
        Self(Some(HashMap::new()))
    }

    /// What the annotation of a Secret says: hosts, separated by commas; `*.` at the start
    /// stands for any name below a domain.
    pub fn allow(&mut self, secret: &str, hosts: &str) {
        let hosts = hosts.split(',').map(|host| plain(host.trim())).filter(|host| !host.is_empty());
        if let Self(Some(grants)) = self {
            grants.insert(secret.to_owned(), hosts.collect());
        }
    }

    /// # Errors
    /// The Secret does not name the host.
    pub(super) fn check(&self, secret: &str, host: &str) -> Result<(), Fault> {
        let Self(Some(grants)) = self else { return Ok(()) };
        let host = plain(host);
        let named = grants.get(secret).map_or(&[][..], Vec::as_slice);
        if named.iter().any(|pattern| covers(pattern, &host)) {
            return Ok(());
        }
        let message = format!(
            "the Secret {secret} does not say that it may be sent to {host}: its owner adds the \
             host, kubectl annotate secret {secret} {HOSTS_ANNOTATION}={host}"
        );
        Err(Fault::new(Fault::SECRET_NOT_GRANTED, message))
    }
}

fn plain(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches([']', '.']).to_ascii_lowercase()
}

fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        // A domain of one label would be everybody's.
        Some(domain) => {
            let below = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
            domain.contains('.') && below.is_some_and(|name| !name.is_empty())
        }
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_to_the_hosts_that_it_names_and_to_no_others() {
        let mut grants = Grants::none();
        grants.allow("key", "api.openai.com, *.openai.azure.com,vllm.shop.svc,10.0.0.7,[fd00::1]");
        for host in [
            "api.openai.com",
            "API.OpenAI.com",
            "api.openai.com.",
            "east.openai.azure.com",
            "a.b.openai.azure.com",
            "vllm.shop.svc",
            "10.0.0.7",
            "[fd00::1]",
        ] {
            assert!(grants.check("key", host).is_ok(), "{host}");
        }
        for host in [
            "openai.com",
            "evil-api.openai.com",
            "api.openai.com.evil.example",
            "openai.azure.com",
            ".openai.azure.com",
            "evilopenai.azure.com",
            "vllm.shop.svc.cluster.local",
            "10.0.0.70",
            "",
        ] {
            let fault = grants.check("key", host).unwrap_err();
            assert_eq!(fault.reason, "SecretNotGranted", "{host}");
        }
        assert!(grants.check("another", "api.openai.com").is_err(), "it says nothing");
        for everybody in ["*", "*.", "*.com", "", ","] {
            grants.allow("open", everybody);
            assert!(grants.check("open", "api.com").is_err(), "{everybody:?}");
        }
        assert!(Grants::default().check("key", "anywhere").is_ok(), "outside a cluster");
    }
}
