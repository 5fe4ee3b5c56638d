//! Addresses, and the credentials that do not belong into them: `https://ada:pw@host` is
//! copied into logs, statuses and Events by everybody who meets it.
//!
//! Clients do not agree on where credentials are. A browser's rules (WHATWG, which reqwest
//! follows) take `http:ada:pw@host`, `http:\\ada:pw@host` and `http:///ada:pw@host` for the
//! same, and leave out line breaks wherever they are; other clients read some of these as no
//! address, and say so with all of it. So an address is judged by what anybody could take
//! for credentials, and one of these rules serves the API server, too.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// What stands in the place of credentials.
const REDACTED: &str = "[redacted]";

/// An address with credentials (RE2, as the API server reads it): behind a scheme, if there is
/// one, and any slashes, an @ before the path begins, as it is or percent-encoded; or a port
/// that is none, which is a password with an odd character in it; or the same behind a second
/// scheme, which somebody put before the first. Before an @ a backslash does not end the host:
/// who writes `http://CORP\ada:pw@host` means a user.
const CREDENTIALS: &str = r"^([^/?#@\[\]]*:)?[/\\\x00-\x20]*([^/?#]*(@|%40)|[^/?#@\[\]]*:[0-9]*[^0-9/?#\\\x00-\x20])|://[^/?#]*(@|%40)";

static ADDRESS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(CREDENTIALS).ok());

/// Schemes that need no slashes to be one in the middle of a text.
const SCHEMES: [&str; 9] =
    ["http", "https", "redis", "rediss", "socks4", "socks4a", "socks5", "socks5h", "valkey"];

/// Whether an address holds credentials, or what could be taken for them.
pub fn has_credentials(url: &str) -> bool {
    // As browsers read it: these are nowhere in an address.
    let url = url.replace(['\t', '\r', '\n'], "");
    ADDRESS.as_ref().is_none_or(|address| address.is_match(&url))
        || credentials(&url).next().is_some()
}

/// An address as a message may show it: without credentials, and without its query, where some
/// servers want a key.
pub fn shown(url: &str) -> Cow<'_, str> {
    if has_credentials(url) {
        return Cow::Borrowed(REDACTED);
    }
    match url.find(['?', '#']) {
        Some(end) => Cow::Owned(format!("{}{REDACTED}", &url[..=end])),
        None => Cow::Borrowed(url),
    }
}

/// Scheme and host of an address as a message may show them: the path behind them may hold a token.
pub fn without_path(url: &str) -> Cow<'_, str> {
    let host = url.find("://").map_or(0, |at| at + "://".len());
    match url[host..].find(['/', '\\', '?', '#']) {
        _ if has_credentials(url) => Cow::Borrowed(REDACTED),
        Some(length) => Cow::Borrowed(&url[..host + length]),
        None => Cow::Borrowed(url),
    }
}

/// The rule in CEL by which the API server refuses credentials in `field`, a text.
pub fn no_credentials_in(field: &str) -> String {
    let quoted = CREDENTIALS.replace('\\', r"\\");
    format!("!{field}.matches('{quoted}')")
}

/// Where in `text` the credentials of its addresses are: `user:password` of
/// `scheme://user:password@host`.
fn credentials(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut read = 0;
    text.match_indices(':').filter_map(move |(at, _)| {
        if at < read {
            return None;
        }
        let in_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let scheme = &text[text[..at].trim_end_matches(in_scheme).len()..at];
        let behind = &text[at + 1..];
        let rest = behind.trim_start_matches(['/', '\\']);
        let is_known = SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme));
        if !is_known && behind.len() < rest.len() + 2 {
            return None;
        }
        let start = text.len() - rest.len();
        // An address ends where a text goes on. Whatever is before the last @ of its
        // authority are credentials, as reqwest and hyper see it.
        let ends = |c: char| c.is_whitespace() || "/?#\"'<>`".contains(c);
        let authority = &rest[..rest.find(ends).unwrap_or(rest.len())];
        if let Some(length) = authority.rfind('@') {
            read = start + length;
            return Some((start, read));
        }
        // A port that is none is a password with an odd character in it, or with its @ escaped:
        // nobody knows where that ends.
        let host = authority.split('\\').next().unwrap_or_default();
        // All of it was read: nothing is looked at again for each colon in it.
        read = start + host.len();
        let (_, port) = host.split_once(':').filter(|_| !host.starts_with('['))?;
        if port.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        read = start + rest.find(char::is_whitespace).unwrap_or(rest.len());
        Some((start, read))
    })
}

/// A text without the credentials of the addresses in it, for logs and messages.
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    let (mut out, mut copied) = (String::new(), 0);
    for (start, end) in credentials(text).filter(|(start, end)| start < end) {
        out.push_str(&text[copied..start]);
        out.push_str(REDACTED);
        copied = end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
pub(crate) mod tests;
