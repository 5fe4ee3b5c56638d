//! The secrets that are known of one request: whatever is told of it is told without them.

use std::{ops::Range, sync::Arc};

use super::{REDACTED, SHORTEST, Secrets};
use crate::api::SecretText;

/// What was sent with a request, and what came with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// What was sent to the backend.
    pub sent: Arc<Secrets>,
    /// The key by which the request was let in.
    pub key: Option<SecretText>,
}

impl Known {
    /// Where what was sent is in the text, in any of its forms.
    pub fn sent_in(&self, text: &str) -> Vec<Range<usize>> {
        if self.sent.is_empty() || text.len() < SHORTEST {
            return vec![];
        }
        let found = self.sent.places(text.as_bytes(), true).into_iter();
        found.map(|(place, _)| to_characters(text, place)).collect()
    }

    /// Where the key is in the text, as it is.
    pub fn key_in(&self, text: &str) -> Vec<Range<usize>> {
        let Some(key) = &self.key else { return vec![] };
        text.match_indices(key.expose()).map(|(at, key)| at..at + key.len()).collect()
    }

    /// The text without them.
    pub fn without(&self, text: &str) -> String {
        let without = self.sent.text(text);
        match &self.key {
            Some(key) => without.replace(key.expose(), REDACTED),
            None => without.into_owned(),
        }
    }

    /// Whether one of them is in the text.
    pub fn is_in(&self, text: &str) -> bool {
        !(self.key_in(text).is_empty() && self.sent_in(text).is_empty())
    }
}

/// The same place without half a character: in a text of several bytes a character, what is
/// found may begin or end within one.
fn to_characters(text: &str, place: Range<usize>) -> Range<usize> {
    let start = (0..=place.start).rev().find(|at| text.is_char_boundary(*at));
    let end = (place.end..=text.len()).find(|at| text.is_char_boundary(*at));
    start.unwrap_or(0)..end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_from_character_to_character() {
        let text = "aäbö";
        for (place, expected) in [(0..1, 0..1), (2..3, 1..3), (1..2, 1..3), (3..5, 3..6)] {
            assert_eq!(to_characters(text, place.clone()), expected, "{place:?}");
        }
    }

    #[test]
    fn what_was_sent_is_found_in_its_forms_and_the_key_as_it_is() {
        let sent = Arc::new(Secrets::new(["4f1c9e7ab2d85360fe19c7ab22d04e55"]));
        let known = Known { sent, key: Some(SecretText::new("client-key-0123456789")) };
        let text = "ä 4f1c9e7ab2d85360fe19c7ab22d04e55 and client-key-0123456789";
        assert_eq!(known.sent_in(text), vec![3..35_usize; 1]);
        assert_eq!(known.key_in(text), vec![40..61_usize; 1]);
        // The last characters of base64 depend on what follows.
        let encoded = "NGYxYzllN2FiMmQ4NTM2MGZlMTljN2FiMjJkMDRlNTU=";
        assert_eq!(known.sent_in(encoded), vec![0..42_usize; 1]);
        assert!(known.is_in(text) && !known.is_in("short") && !Known::default().is_in(text));
    }
}
