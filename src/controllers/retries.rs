//! When an object is tried again whose reconcile failed, and whether the log says it.
//!
//! What the API server refuses for its content is refused again, so the next attempt comes later
//! each time: the first after [`ControllerError::retry_after`], then up to [`MAX_BACKOFF`]. A change of
//! the object is looked at at once. Other errors (the API server is away, a right is missing)
//! concern everything and may be over at any moment: they are tried again as fast as before.
//!
//! The log has a line when a problem begins, when it is another one, and when it is over.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kube::Resource;
use tokio::time::Instant;

use super::error::ControllerError;
use crate::{api::conditions::truncate, signals::index::Named};

/// The longest time between two attempts, give or take a tenth.
pub const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// A line of the log has so much of an error.
const LONGEST: usize = 500;
/// More objects than this are not told apart: of what is forgotten the log says again that it
/// fails.
const MOST: usize = 20_000;

/// Objects whose last reconcile failed, by kind.
#[derive(Debug, Default)]
pub struct Retries(Mutex<BTreeMap<(&'static str, Named), Failing>>);

#[derive(Debug)]
struct Failing {
    /// Failures in a row.
    failures: u32,
    /// What was told last, and when.
    told: String,
    at: Instant,
}

/// What follows from a failure.
#[derive(Debug, PartialEq)]
pub struct Retry {
    /// When to try again.
    pub after: Duration,
    /// What the log says, if that is news.
    pub news: Option<String>,
}

/// After so many failures in a row that began with a wait of `first`.
pub fn backoff(first: Duration, failures: u32) -> Duration {
    let wait = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MAX_BACKOFF);
    // So that objects do not march in step.
    wait.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}

impl Retries {
    /// A reconcile failed.
    pub fn failed<K: Resource<DynamicType = ()>>(
        &self,
        kind: &'static str,
        object: &K,
        error: &ControllerError,
    ) -> Retry {
        let first = error.retry_after();
        if !error.worth_a_warning() {
            return Retry { after: first, news: None };
        }
        let (text, now) = (truncate(&error.to_string(), LONGEST), Instant::now());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, Named::of(object));
        if known.len() >= MOST && !known.contains_key(&key) {
            known.clear();
        }
        let fresh = || Failing { failures: 0, told: String::new(), at: now };
        let failing = known.entry(key).or_insert_with(fresh);
        failing.failures = failing.failures.saturating_add(1);
        let is_first = failing.failures == 1;
        // An error may name what differs each time.
        let is_another = failing.told != text && now - failing.at >= MAX_BACKOFF;
        let news = (is_first || is_another).then(|| text.clone());
        if news.is_some() {
            (failing.told, failing.at) = (text, now);
        }
        let seldom = error.is_about_content();
        Retry { after: if seldom { backoff(first, failing.failures) } else { first }, news }
    }

    /// The object is gone: one that is created under its name is another one.
    pub fn forget(&self, kind: &'static str, object: &Named) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&(kind, object.clone()));
    }

    /// A reconcile ended well: answers whether that is news.
    pub fn done<K: Resource<DynamicType = ()>>(&self, kind: &'static str, object: &K) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !known.is_empty() && known.remove(&(kind, Named::of(object))).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PromptVersion;

    fn error(code: u16, message: &str) -> ControllerError {
        let status = kube::core::Status::failure(message, "").with_code(code);
        ControllerError::api("the status", kube::Error::Api(Box::new(status)))
    }

    fn named(name: &str) -> PromptVersion {
        PromptVersion::new(name, Default::default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_for_its_content_is_tried_seldom_and_told_once() {
        let (retries, fat) = (Retries::default(), named("fat"));
        let refused = error(500, "etcdserver: request is too large");
        let (mut attempts, mut lines, began) = (0, 0, Instant::now());
        while began.elapsed() < Duration::from_secs(3600) {
            let Retry { after, news } = retries.failed("PromptVersion", &fat, &refused);
            (attempts, lines) = (attempts + 1, lines + usize::from(news.is_some()));
            assert!(after <= MAX_BACKOFF.mul_f64(1.1));
            tokio::time::advance(after).await;
        }
        assert!((10..25).contains(&attempts), "{attempts} in an hour");
        assert_eq!(lines, 1);
        retries.forget("PromptVersion", &Named::of(&fat));
        assert!(
            retries.failed("PromptVersion", &fat, &refused).news.is_some(),
            "it is another one"
        );
        assert!(retries.done("PromptVersion", &fat) && !retries.done("PromptVersion", &fat));
        let again = retries.failed("PromptVersion", &fat, &refused);
        assert!(again.after < Duration::from_secs(3) && again.news.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_over_at_any_moment_is_tried_often_and_told_once() {
        let retries = Retries::default();
        let mut lines = vec![];
        for second in 0..600 {
            // What differs from time to time is told from time to time.
            let away = error(503, &format!("the server is away, connection {second}"));
            for name in ["a", "b"] {
                let Retry { after, news } = retries.failed("PromptVersion", &named(name), &away);
                assert_eq!(after, away.retry_after());
                lines.extend(news.map(|_| second));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(lines, [0, 0, 300, 300]);
        // What is part of normal life is told never.
        let conflict = ControllerError::Conflict { what: "it".to_owned() };
        assert_eq!(retries.failed("PromptVersion", &named("c"), &conflict).news, None);
    }
}
