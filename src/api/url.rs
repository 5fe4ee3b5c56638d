//! Addresses, and the credentials that do not belong into them: `https://ada:pw@host` is
//! copied into logs, statuses and Events by everybody who meets it.

use std::borrow::Cow;

/// What stands in the place of credentials.
const REDACTED: &str = "[redacted]";

/// Where in `text` the credentials of its addresses are: `user:password` of
/// `scheme://user:password@host`.
fn credentials(text: &str) -> impl Iterator<Item = (usize, usize)> {
    text.match_indices("://").filter_map(|(at, mark)| {
        let start = at + mark.len();
        let rest = &text[start..];
        // An address ends where a text goes on. Whatever is before the last @ of its
        // authority are credentials, as reqwest and hyper see it.
        let ends = |c: char| c.is_whitespace() || "/?#\"'<>\\`".contains(c);
        let authority = &rest[..rest.find(ends).unwrap_or(rest.len())];
        if let Some(length) = authority.rfind('@') {
            return Some((start, start + length));
        }
        // A port that is none is a password with an odd character in it, or with its @ escaped:
        // nobody knows where that ends.
        let (_, port) = authority.split_once(':').filter(|_| !authority.starts_with('['))?;
        let is_port = port.bytes().all(|c| c.is_ascii_digit());
        let length = || rest.find(char::is_whitespace).unwrap_or(rest.len());
        (!is_port).then(|| (start, start + length()))
    })
}

/// Whether an address holds credentials.
pub fn has_credentials(url: &str) -> bool {
    credentials(url).next().is_some()
}

/// A text without the credentials of the addresses in it, for logs and messages.
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    let (mut out, mut copied) = (String::new(), 0);
    for (start, end) in credentials(text).filter(|(start, end)| start < end) {
        if start < copied {
            continue;
        }
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
mod tests {
    use super::*;

    #[test]
    fn credentials_of_an_address_are_found_and_nothing_else() {
        for (text, expected) in [
            ("https://ada:pw@host/v1", "https://[redacted]@host/v1"),
            ("https://ada@host:8443", "https://[redacted]@host:8443"),
            ("https://:pw@host", "https://[redacted]@host"),
            ("redis://ada:p@ss@host/0", "redis://[redacted]@host/0"),
            (
                "a http://x:y@h, and https://z:w@i.",
                "a http://[redacted]@h, and https://[redacted]@i.",
            ),
            ("https://ada:p%40w@[::1]:1/v1?a=b", "https://[redacted]@[::1]:1/v1?a=b"),
            ("http://ada:p/w@host/v1 is odd", "http://[redacted] is odd"),
            ("http://ada:pw%40host/v1", "http://[redacted]"),
            ("http://ada:pw%40host:9/v1 is", "http://[redacted] is"),
            ("http://ada:1%40host:9", "http://[redacted]"),
            ("http://ada:p?w@host/v1", "http://[redacted]"),
            ("http://ada:p#w@host", "http://[redacted]"),
        ] {
            assert_eq!(without_credentials(text), expected);
            assert!(has_credentials(text));
        }
        for text in [
            "https://host/@cf/model",
            "https://host:8443/@cf/model",
            "https://[::1]/v1",
            "https://[::1]:80/v1",
            "https://host:/v1",
            "https://host/v1?to=a@b",
            "mail ada@example.org",
            "https://host \"a@b\"",
            "://",
            "",
        ] {
            assert_eq!(without_credentials(text), text);
            assert!(!has_credentials(text));
        }
    }
}
