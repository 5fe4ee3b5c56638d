//! A breaker for the canary: within a second of it failing outright, its users get
//! stable, long before statistics can say so. It protects users; it does not decide.
//!
//! [`crate::analysis::breaker`] holds the rule. Asking takes one atomic read while closed.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::analysis::breaker::{self, Passage};

/// The breaker of one variant. Times are milliseconds on any monotonic clock.
#[derive(Debug, Default)]
pub struct Breaker {
    open: AtomicBool,
    rule: Mutex<breaker::Breaker>,
}

impl Breaker {
    fn rule(&self) -> MutexGuard<'_, breaker::Breaker> {
        // Each change is whole.
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a request meets the breaker.
    pub(super) fn admit(&self, now_millis: u64) -> Passage {
        if !self.is_open() {
            return Passage::Free;
        }
        self.rule().admit(seconds(now_millis), &mut rand::rng())
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes note of how an attempt ended.
    pub fn record(&self, failed: bool, now_millis: u64) {
        let mut rule = self.rule();
        rule.record(failed, seconds(now_millis), &mut rand::rng());
        self.open.store(rule.is_open(), Ordering::Relaxed);
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}
