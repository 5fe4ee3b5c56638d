//! Log lines that each request would write again: one a minute for each subject is enough.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// How long a subject is not told again, in milliseconds.
const AGAIN: u64 = 60_000;
/// Subjects that are known; of more the oldest go.
const MOST: usize = 256;

/// When each subject was told last.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<HashMap<String, u64>>);

impl Seldom {
    /// Whether the subject is due, which it is no more from then on.
    pub(super) fn is_due(&self, subject: &str, now_millis: u64) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(subject).is_some_and(|at| now_millis < at + AGAIN) {
            return false;
        }
        if told.len() >= MOST {
            let oldest = told.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
            oldest.and_then(|name| told.remove(&name));
        }
        told.insert(subject.to_owned(), now_millis);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_told_once_a_minute_and_few_are_known() {
        let seldom = Seldom::default();
        assert!(seldom.is_due("a", 0) && !seldom.is_due("a", AGAIN - 1));
        assert!(seldom.is_due("b", 1) && seldom.is_due("a", AGAIN));
        for i in 0..2 * MOST {
            assert!(seldom.is_due(&format!("{i}"), 2 * AGAIN));
        }
        assert_eq!(seldom.0.lock().unwrap().len(), MOST);
    }
}
