//! What of a request is a secret, and so must not come back with its answer.
//!
//! Secrets are the API key, the proxy's credentials, and those of the configured headers
//! and query parameters whose names say so. An error may quote all of its request: there,
//! the other configured headers count as well. In ordinary answers they do not, for they
//! hold words and addresses that a model may speak of.

use std::sync::{Arc, OnceLock};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use base64::{Engine, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;

use crate::audit::secrets::Secrets;

/// Parts of the names of headers and parameters that hold secrets.
const TELLING: [&str; 10] = [
    "key",
    "token",
    "secret",
    "auth",
    "password",
    "passwd",
    "credential",
    "cookie",
    "signature",
    "session",
];
/// Headers that Serinus sets by itself, or whose values are words of HTTP.
const KNOWN: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::USER_AGENT,
    header::HOST,
];

/// What is searched for in the answers of one backend: made with the first of them, and
/// again only when what is sent has changed.
#[derive(Debug, Default)]
pub(super) struct Sent {
    proxy: Option<HeaderValue>,
    in_answers: OnceLock<Arc<Secrets>>,
    in_errors: OnceLock<Arc<Secrets>>,
}

impl Sent {
    /// With these credentials for a proxy.
    pub(super) fn with(proxy: Option<&HeaderValue>) -> Self {
        Self { proxy: proxy.cloned(), ..Self::default() }
    }

    /// Whether both are the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.proxy == other.proxy
    }

    /// What is searched for when this is sent.
    pub(super) fn secrets(&self, uri: &Uri, headers: &HeaderMap, is_answer: bool) -> &Arc<Secrets> {
        let place = if is_answer { &self.in_answers } else { &self.in_errors };
        place.get_or_init(|| {
            let mut found = vec![];
            let secret = |name: &HeaderName, value: &HeaderValue| {
                value.is_sensitive() || tells(name.as_str())
            };
            for (name, value) in headers {
                if secret(name, value) || !(is_answer || KNOWN.contains(name)) {
                    found.extend(parts(value));
                }
            }
            found.extend(self.proxy.iter().flat_map(parts));
            found.extend(parameters(uri));
            Secrets::new(found.iter().map(String::as_str)).into()
        })
    }
}

/// Whether the name of a header or parameter says that it holds a secret.
pub(super) fn tells(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "sig" || name == "code" || TELLING.iter().any(|part| name.contains(part))
}

/// The secret in a header's value: what follows the scheme, and what that is the base64 of.
fn parts(value: &HeaderValue) -> Vec<String> {
    let text = String::from_utf8_lossy(value.as_bytes()).trim().to_owned();
    let Some((scheme, rest)) = text.split_once(' ') else { return vec![text] };
    let rest = rest.trim().to_owned();
    if !scheme.eq_ignore_ascii_case("basic") {
        // Where it is no scheme, the whole is the value.
        return if scheme.eq_ignore_ascii_case("bearer") { vec![rest] } else { vec![text, rest] };
    }
    let plain = BASE64_STANDARD.decode(&rest).ok();
    let plain = plain.and_then(|plain| String::from_utf8(plain).ok()).unwrap_or_default();
    let password = plain.split_once(':').map(|(_, password)| password.to_owned());
    [rest, plain].into_iter().chain(password).collect()
}

/// The query's parameters whose names tell of a secret.
fn parameters(uri: &Uri) -> Vec<String> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let named = pairs.filter_map(|pair| pair.split_once('=')).filter(|(name, _)| tells(name));
    named.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(headers: &[(&'static str, &'static str)], is_answer: bool) -> Vec<bool> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let uri = Uri::from_static(
            "https://m/v1/chat?api-version=2024-10-21-preview&key=qk%2D0123456789",
        );
        let proxy = HeaderValue::from_static("Basic YWRhOmxvdmVsYWNlLTE4NDI=");
        let sent = Sent::with(Some(&proxy));
        let secrets = sent.secrets(&uri, &HeaderMap::from_iter(headers), is_answer).clone();
        let said = [
            "tok-0123456789",
            "abcdef-0123456789",
            "org-0123456789",
            "https://app.example.com/9",
            "qk-0123456789",
            "lovelace-1842",
            "YWRhOmxvdmVsYWNlLTE4NDI=",
            "2024-10-21-preview",
            "application/json; v=1.0.0",
        ];
        said.iter().map(|text| secrets.text(text) != *text).collect()
    }

    #[test]
    fn secrets_are_told_by_their_names_and_an_error_may_quote_every_header() {
        let headers = [
            ("authorization", "Bearer tok-0123456789"),
            ("x-portkey-api-key", "abcdef-0123456789"),
            ("openai-organization", "org-0123456789"),
            ("http-referer", "https://app.example.com/9"),
            ("accept", "application/json; v=1.0.0"),
        ];
        let answer = [true, true, false, false, true, true, true, false, false];
        assert_eq!(sent(&headers, true), answer);
        let error = [true, true, true, true, true, true, true, false, false];
        assert_eq!(sent(&headers, false), error);
    }
}
