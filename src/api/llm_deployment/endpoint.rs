//! Where a model answers at a URL, and what goes with each request to it.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretKeyRef;
use crate::api::{
    schema::{self, LocalRef},
    url::no_credentials_in,
};

/// Headers that frame a request or are for the next hop (RFC 9110, 7.6.1; RFC 9112, 6):
/// one that is set twice, or differently than the gateway means it, makes of one request
/// two. Answers are asked for uncompressed, and what is sent is JSON.
const FRAMING: [&str; 13] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a header may not be set for a backend; none when it may.
pub fn reserved_header(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let is_reserved = FRAMING.contains(&name.as_str()) || name.starts_with("proxy-");
    is_reserved.then(|| {
        format!(
            "the header {name} frames the request or is for the next hop, and is the gateway's \
             to set: leave it out of spec.endpoint"
        )
    })
}

/// An OpenAI-compatible API at a URL.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(no_credentials_in("self.url")).message("spec.endpoint.url may hold no user and password, which everybody who reads the object would see: put the key into a Secret and name it in spec.endpoint.apiKeySecretRef; for basic authentication the key is user:password in base64 after the word Basic, with apiKeyHeader: authorization"),
    validation = Rule::new("!has(self.headers) || self.headers.all(name, !(name.lowerAscii() in ['accept-encoding', 'connection', 'content-encoding', 'content-length', 'content-type', 'expect', 'host', 'http2-settings', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade']) && !name.lowerAscii().startsWith('proxy-'))").message("spec.endpoint.headers may not name a header that frames the request or is for the next hop (host, connection, content-length, content-type, content-encoding, accept-encoding, expect, keep-alive, te, trailer, transfer-encoding, upgrade, http2-settings, proxy-*): leave it out, the gateway sets what is needed; for a proxy see spec.proxy"),
    validation = Rule::new("!has(self.headers) || self.headers.all(name, name.matches('^[A-Za-z0-9!#$%&*+.^_|~-]+$') && !self.headers[name].matches('[\\x00-\\x08\\x0a-\\x1f\\x7f]'))").message("spec.endpoint.headers: a name is of letters, digits and hyphens, and a value is one line without control characters"),
    validation = Rule::new("!has(self.headers) || !has(self.apiKeySecretRef) || !self.headers.exists(name, name.lowerAscii() == (has(self.apiKeyHeader) ? self.apiKeyHeader.lowerAscii() : 'authorization'))").message("spec.endpoint.headers names the header that carries the API key of spec.endpoint.apiKeySecretRef: leave it out, or name another one in spec.endpoint.apiKeyHeader"),
    validation = Rule::new("!has(self.apiKeyHeader) || (!(self.apiKeyHeader.lowerAscii() in ['accept-encoding', 'connection', 'content-encoding', 'content-length', 'content-type', 'expect', 'host', 'http2-settings', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade']) && !self.apiKeyHeader.lowerAscii().startsWith('proxy-'))").message("spec.endpoint.apiKeyHeader names a header that frames the request or is for the next hop: name the one that the server reads the key from, for example api-key"),
)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The base URL with its version, for example https://api.openai.com/v1. Without user
    /// and password.
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://[^\s?#]+$"))]
    pub url: String,
    /// The Secret that holds the API key. Default: no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// The header that carries the API key, for example api-key for Azure OpenAI.
    /// Default: authorization, with the key as a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub api_key_header: Option<String>,
    /// Query parameters of every request, for example api-version for Azure OpenAI.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::short_texts")]
    pub query: BTreeMap<String, String>,
    /// Headers of every request, for example openai-organization. Not for secrets, and not
    /// for what frames a request (host, content-length and the like).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::short_texts")]
    pub headers: BTreeMap<String, String>,
    /// Whom to trust, and as whom to appear, with TLS. Default: the public
    /// certificate authorities, no client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EndpointTls>,
}

/// The key of a certificate in a Secret of type kubernetes.io/tls.
pub const TLS_CERTIFICATE: &str = "tls.crt";
/// The key of its private key.
pub const TLS_KEY: &str = "tls.key";

/// What messages say of the key within a Secret. Only a name that Serinus chose is quoted: by
/// mistake, the reference may hold the API key itself.
pub fn key_in_words(key: &str) -> &'static str {
    match key {
        TLS_CERTIFICATE => "key tls.crt",
        TLS_KEY => "key tls.key",
        _ => "key that the LLMDeployment names",
    }
}

/// TLS towards an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTls {
    /// The Secret that holds the certificate authorities to trust, PEM. Default: the
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The Secret of type kubernetes.io/tls with the certificate to show (tls.crt, tls.key).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<LocalRef>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{crd, manifest};

    /// The error of this endpoint, or nothing.
    fn refused(endpoint: &str) -> Option<String> {
        let text = format!(
            "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: b}}\n\
             spec: {{provider: vllm, model: m, endpoint: {endpoint}}}"
        );
        manifest::parse(&text).err().map(|e| e.to_string())
    }

    #[test]
    fn the_rules_name_the_headers_that_the_gateway_refuses() {
        let rules: Vec<String> = crd::all()
            .iter()
            .map(|(_, definition)| crd::to_yaml(definition).unwrap())
            .filter(|text| text.contains("apiKeyHeader"))
            .collect();
        let list = format!("['{}']", FRAMING.join("', '"));
        // YAML doubles quotes within quotes.
        let found = rules[0].replace("''", "'").matches(&list).count();
        assert_eq!(found, 2, "{list}");
        for name in FRAMING.iter().chain(&["Host", "PROXY-Authorization", "proxy-connection"]) {
            let why = reserved_header(name).unwrap();
            assert!(why.contains(&name.to_ascii_lowercase()) && why.contains("leave it out"));
            let message = refused(&format!("{{url: \"http://m/v1\", headers: {{{name}: x}}}}"));
            assert!(message.is_some_and(|m| m.contains("leave it out")), "{name}");
            let message = refused(&format!("{{url: \"http://m/v1\", apiKeyHeader: {name}}}"));
            assert!(message.is_some_and(|m| m.contains("apiKeyHeader")), "{name}");
        }
        for name in ["x-extra", "openai-organization", "api-key", "authorization", "hosts"] {
            assert_eq!(reserved_header(name), None);
            let headers = format!("{{url: \"http://m/v1\", headers: {{{name}: x}}}}");
            assert_eq!(refused(&headers), None, "{name}");
        }
    }

    /// A key that stands by mistake where the name of its Secret belongs is not quoted, as long as
    /// Kubernetes has no such names.
    #[test]
    fn the_name_of_a_secret_is_one_and_what_is_none_is_not_quoted() {
        for (name, is_one) in [
            ("keys", true),
            ("team-a.keys", true),
            ("sk-live-9f8A7b6C5d4E", false),
            ("a_b", false),
            ("-a", false),
            ("a b", false),
        ] {
            let endpoint =
                format!("{{url: \"http://m/v1\", apiKeySecretRef: {{name: \"{name}\", key: k}}}}");
            let message = refused(&endpoint);
            assert_eq!(message.is_none(), is_one, "{message:?}");
            let message = message.unwrap_or_default();
            assert!(is_one || message.contains("apiKeySecretRef.name"), "{message}");
            assert!(is_one || name.len() < 8 || !message.contains(name), "{message}");
        }
    }

    #[test]
    fn an_api_key_in_the_place_of_its_name_is_refused_and_not_told() {
        for (key, is_name) in [
            ("token", true),
            ("tls.crt", true),
            ("OPENAI_API_KEY_2", true),
            ("sk-production-of-the-second-team", true),
            ("a key", false),
            ("Bearer zq7Kp2Lm9Xw4Rt8Vb3Nc", false),
            ("sk-proj-zq7Kp2Lm9Xw4Rt8Vb3Nc", false),
            ("gsk_zq7Kp2Lm9Xw4Rt8Vb3Nc", false),
            ("hf_zq7Kp2Lm9Xw4Rt8Vb3Nc", false),
            ("eyJzq7Kp2Lm9Xw4Rt8Vb3Nc.eyJ.x", false),
        ] {
            let reference = format!("{{name: s, key: \"{key}\"}}");
            for endpoint in [
                format!("{{url: \"http://m/v1\", apiKeySecretRef: {reference}}}"),
                format!("{{url: \"http://m/v1\", tls: {{caSecretRef: {reference}}}}}"),
                format!(
                    "{{url: \"http://m/v1\"}}, proxy: {{url: \"http://p:1\", \
                     credentialsSecretRef: {reference}}}"
                ),
            ] {
                let message = refused(&endpoint);
                assert_eq!(message.is_none(), is_name, "{key}: {message:?}");
                let message = message.unwrap_or_default();
                assert!(is_name || message.contains("SecretRef"), "{message}");
                assert!(is_name || !message.contains(key), "{message}");
            }
        }
    }

    #[test]
    fn messages_quote_only_keys_that_serinus_chose() {
        assert_eq!(key_in_words(TLS_CERTIFICATE), "key tls.crt");
        assert_eq!(key_in_words(TLS_KEY), "key tls.key");
        assert_eq!(key_in_words("9f2c7d1e8a4b6c3d"), "key that the LLMDeployment names");
    }

    #[test]
    fn a_header_is_one_line_and_the_key_has_one_header() {
        let key = "apiKeySecretRef: {name: s, key: k}";
        for (endpoint, reason) in [
            (r#"headers: {x: "a\r\nhost: b"}"#.to_owned(), "one line"),
            (r#"headers: {x: "a\nb"}"#.to_owned(), "one line"),
            (r#"headers: {x: "a\0b"}"#.to_owned(), "one line"),
            (r#"headers: {"x y": a}"#.to_owned(), "a name is"),
            (r#"headers: {"x:": a}"#.to_owned(), "a name is"),
            (r#"headers: {"": a}"#.to_owned(), "a name is"),
            (format!("headers: {{Authorization: a}}, {key}"), "carries the API key"),
            (
                format!("headers: {{api-key: a}}, apiKeyHeader: Api-Key, {key}"),
                "carries the API key",
            ),
        ] {
            let message =
                refused(&format!("{{url: \"http://m/v1\", {endpoint}}}")).unwrap_or_default();
            assert!(message.contains(reason), "{endpoint}: {message}");
        }
        for endpoint in [
            format!("headers: {{authorization: a}}, apiKeyHeader: api-key, {key}"),
            r#"headers: {x: "a\tb é"}"#.to_owned(),
        ] {
            assert_eq!(refused(&format!("{{url: \"http://m/v1\", {endpoint}}}")), None);
        }
    }

    #[test]
    fn an_address_with_credentials_is_refused_without_telling_them() {
        for url in ["https://ada:lovelace@m/v1", "https://ada@m/v1", "http://:lovelace@m:1"] {
            let message = refused(&format!("{{url: \"{url}\"}}")).unwrap();
            assert!(message.contains("apiKeySecretRef"), "{message}");
            assert!(!message.contains("lovelace"), "{message}");
        }
        let message = refused("{url: \"https://ada:lovelace@m/v1?x=y\"}").unwrap();
        assert!(
            message.contains("spec.endpoint.url") && !message.contains("lovelace"),
            "{message}"
        );
        let message = refused("{url: \"http://m\", headers: {x: [lovelace]}}").unwrap();
        assert!(!message.contains("lovelace"), "{message}");
        assert_eq!(refused("{url: \"https://m/v1/@cf/model\"}"), None);
    }
}
