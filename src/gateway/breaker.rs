//! A breaker for the canary: within a second of it failing outright, its users get
//! stable, long before statistics can say so. It protects users; it does not decide.
//!
//! Closed, it looks at the last 20 attempts and opens when half of them failed, given
//! at least ten. Open, it lets one probe through a second, and closes after five good
//! probes in a row. Asking takes one atomic read while closed.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::tally::Passage;

const WINDOW: u32 = 20;
const LEAST: u32 = 10;
const GOOD_PROBES: u32 = 5;
const PROBE_EVERY_MILLIS: u64 = 1000;

/// The breaker of one variant. Times are milliseconds on any monotonic clock.
#[derive(Debug, Default)]
pub struct Breaker {
    open: AtomicBool,
    next_probe: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// One bit an attempt, the latest lowest; set for a failure.
    failures: u32,
    seen: u32,
    good_probes: u32,
}

impl Breaker {
    /// How a request may go to the variant; none: it must not.
    pub(super) fn admit(&self, now_millis: u64) -> Option<Passage> {
        if !self.open.load(Ordering::Relaxed) {
            return Some(Passage::Free);
        }
        let next = self.next_probe.load(Ordering::Relaxed);
        let taken =
            |at| self.next_probe.compare_exchange(next, at, Ordering::Relaxed, Ordering::Relaxed);
        (now_millis >= next && taken(now_millis + PROBE_EVERY_MILLIS).is_ok())
            .then_some(Passage::Probe)
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes note of how an attempt ended.
    pub fn record(&self, failed: bool, now_millis: u64) {
        let Ok(mut recent) = self.recent.lock() else { return };
        if self.is_open() {
            recent.good_probes = if failed { 0 } else { recent.good_probes + 1 };
            if recent.good_probes >= GOOD_PROBES {
                *recent = Recent::default();
                self.open.store(false, Ordering::Relaxed);
            }
            return;
        }
        recent.failures = (recent.failures << 1 | u32::from(failed)) & ((1 << WINDOW) - 1);
        recent.seen = (recent.seen + 1).min(WINDOW);
        if recent.seen >= LEAST && recent.failures.count_ones() * 2 >= recent.seen {
            recent.good_probes = 0;
            self.next_probe.store(now_millis + PROBE_EVERY_MILLIS, Ordering::Relaxed);
            self.open.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Breaker {
        let breaker = Breaker::default();
        (0..10).for_each(|_| breaker.record(true, 0));
        breaker
    }

    #[test]
    fn it_opens_when_half_of_the_recent_attempts_failed_and_not_before_ten() {
        let breaker = Breaker::default();
        (0..9).for_each(|_| breaker.record(true, 0));
        assert_eq!(breaker.admit(0), Some(Passage::Free));
        breaker.record(true, 0);
        assert!(breaker.is_open() && breaker.admit(999).is_none());
    }

    #[test]
    fn a_canary_that_fails_now_and_then_stays_closed() {
        let breaker = Breaker::default();
        (0..1000).for_each(|i| breaker.record(i % 3 == 0, 0));
        assert!(!breaker.is_open());
    }

    #[test]
    fn one_probe_a_second_and_five_good_ones_close_it() {
        let breaker = opened();
        assert_eq!((breaker.admit(1000), breaker.admit(1001)), (Some(Passage::Probe), None));
        (0..4).for_each(|_| breaker.record(false, 1000));
        breaker.record(true, 1000);
        (0..4).for_each(|_| breaker.record(false, 1000));
        assert!(breaker.is_open());
        breaker.record(false, 1000);
        assert!(!breaker.is_open() && breaker.admit(1001) == Some(Passage::Free));
    }
}
