//! Answers that were not understood: an example of each variant, for whoever finds out why.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    audit::{record::Record, secrets::Known},
    telemetry::redact::{Kind, Redaction},
};

/// What is kept of one, in bytes.
pub(super) const LONGEST: usize = 2 << 10;
/// Variants of which one is kept.
const MOST: usize = 256;

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Example {
    at: Timestamp,
    release: String,
    revision: String,
    backend: String,
    model: String,
    request_id: String,
    streamed: bool,
    /// How the answer begins, or the event that was not understood.
    text: String,
}

/// The examples, by revision; of each the first.
#[derive(Debug, Default)]
pub(super) struct Unread(Mutex<BTreeMap<String, Example>>);

impl Unread {
    /// Keeps it, if there is none of its variant yet.
    pub(super) fn keep(&self, record: &Record, said: &[u8], known: &Known) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = &record.origin;
        if kept.contains_key(&origin.revision) {
            return;
        }
        if kept.len() >= MOST {
            let oldest = kept.iter().min_by_key(|(_, example)| example.at);
            let oldest = oldest.map(|(revision, _)| revision.clone());
            oldest.and_then(|revision| kept.remove(&revision));
        }
        let said = &said[..said.len().min(LONGEST)];
        let example = Example {
            at: record.at,
            release: origin.release.clone(),
            revision: origin.revision.clone(),
            backend: origin.backend.clone(),
            model: origin.model.clone(),
            request_id: record.request_id.clone(),
            streamed: record.streamed,
            text: known.without(&String::from_utf8_lossy(said)),
        };
        kept.insert(origin.revision.clone(), example);
    }

    /// All of them, without what has the form of a secret or of personal data.
    pub(super) fn all(&self) -> Vec<Example> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let redaction = Redaction::new(&Kind::ALL, &[]).ok();
        let without = |mut example: Example| {
            example.text = match &redaction {
                Some(redaction) => redaction.text(&example.text).into_owned(),
                None => String::new(),
            };
            example
        };
        kept.into_values().map(without).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixtures;

    #[test]
    fn one_of_each_variant_is_kept_and_not_all_of_it() {
        let (unread, known) = (Unread::default(), Known::default());
        for revision in 0..MOST + 9 {
            let mut record = fixtures::record();
            let mut origin = (*record.origin).clone();
            origin.revision = format!("{revision:04}");
            record.origin = origin.into();
            record.at = Timestamp::from_second(revision as i64).unwrap();
            unread.keep(&record, "first me@example.com ".repeat(1000).as_bytes(), &known);
            unread.keep(&record, b"second", &known);
        }
        let all = unread.all();
        assert_eq!(all.len(), MOST);
        assert!(all.iter().all(|example| example.text.starts_with("first [redacted:email]")));
        assert!(all.iter().all(|example| example.text.len() <= 2 * LONGEST));
        assert_eq!(all[0].revision, "0009", "the oldest have gone");
    }
}
