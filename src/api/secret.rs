//! A text that nobody should read by accident: API keys, client keys, tokens.

use std::{fmt, sync::Arc};

/// A secret text. It has no `Display` and no serialization, and its `Debug` tells
/// nothing, so that no log, error, status or trace can hold it unless somebody writes
/// [`SecretText::expose`]. Copies share the text.
///
/// It is not wiped from memory: the HTTP client's copies of it could not be either.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(Arc<str>);

impl SecretText {
    /// Keeps a text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Whether there is nothing in it but white space: no key, then.
    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// The text itself, for the one place that sends or hashes it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_for_debugging_does_not_tell_it() {
        let secret = SecretText::from("sk-planted".to_owned());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), r#"[secret] Some([secret])"#);
        assert_eq!(secret.expose(), "sk-planted");
    }

    #[test]
    fn white_space_is_no_secret() {
        for (text, is_blank) in [("", true), (" \t\n", true), ("\u{a0}", true), (" k ", false)] {
            assert_eq!(SecretText::from(text.to_owned()).is_blank(), is_blank, "{text:?}");
        }
    }
}
