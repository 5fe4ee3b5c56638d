//! A breaker whose probes are a fair sample of the requests that it turns away.
//!
//! Closed, it looks at the last 20 attempts and opens when half of them failed, given at
//! least ten. Open, it turns requests away and lets some through as probes, and closes
//! after five good probes in a row.
//!
//! What is turned away is evidence all the same, and counts as the probe that is nearest to
//! it. So that this is right on average, whatever the backend and its users do:
//! - probes are chosen by counting requests, not by the clock. Users who wait for their
//!   answers ask little while a backend is down; a probe at each full second would meet the
//!   outage as often as the clock does, and not as often as they do;
//! - their distances are drawn, so that no period of a backend falls in with them;
//! - the first half of the requests between two probes counts as the earlier one: that a
//!   backend recovered between them is as likely before the middle as after it;
//! - an outage that has just begun is probed soon, and then less and less often: what one
//!   distance decides is never much more than what lies before it.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, RngExt};

const WINDOW: usize = 20;
const LEAST: u32 = 10;
const GOOD_PROBES: u32 = 5;
/// Seconds until the first probe, and between probes once all have failed for a while.
const DISTANCES: (f64, f64) = (0.05, 1.0);
/// How much of what came before a probe still counts at the next one.
const KEPT: f64 = 0.9;

/// How a request meets a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The breaker is closed.
    Free,
    /// The breaker is open, and this request shows whether the variant has recovered.
    Probe,
    /// The breaker is open. The request counts as the probe before it, or the one after it.
    Away {
        /// As the one before; the breaker's opening is a probe that failed.
        as_before: bool,
    },
}

/// The breaker of one variant. Times are seconds on any monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    /// One bit an attempt, the latest lowest; set for a failure.
    failures: u32,
    seen: u32,
    /// When each of the last attempts ended.
    ended: [f64; WINDOW],
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    good_probes: u32,
    /// When the last probe was let through, or it opened.
    since: f64,
    /// Requests that were turned away since then, and how many are to be before a probe.
    turned: u64,
    wanted: u64,
    /// Seconds between probes, on average.
    distance: f64,
    /// How many requests came, in how many seconds. What is long ago weighs less.
    came: (f64, f64),
}

impl Open {
    fn new(now: f64, came: (f64, f64), rng: &mut impl Rng) -> Self {
        let (good_probes, turned, wanted) = (0, 0, 0);
        let distance = DISTANCES.0;
        let mut open = Self { good_probes, since: now, turned, wanted, distance, came };
        open.wait(now, rng);
        open
    }

    /// The next request is a probe.
    fn is_due(&self, now: f64) -> bool {
        self.turned >= self.wanted || now - self.since >= 2.0 * self.distance
    }

    fn probe(&mut self, now: f64, rng: &mut impl Rng) {
        let (requests, seconds) = self.came;
        let (came, waited) = ((self.turned + 1) as f64, now - self.since);
        // Not the last distance alone: it says what the backend did, and the probe after it
        // must not depend on that.
        self.came = (came + KEPT * requests, waited + KEPT * seconds);
        if self.good_probes == 0 {
            self.distance = (2.0 * self.distance).min(DISTANCES.1);
        }
        self.wait(now, rng);
    }

    /// Draws how many requests are turned away before the next probe.
    fn wait(&mut self, now: f64, rng: &mut impl Rng) {
        let rate = self.came.0 / self.came.1.max(0.01);
        let wanted = rng.random_range(0.5..1.5) * rate * self.distance;
        (self.since, self.turned, self.wanted) = (now, 0, wanted as u64);
    }
}

impl Breaker {
    /// Whether it turns requests away.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// How a request meets it.
    pub fn admit(&mut self, now: f64, rng: &mut impl Rng) -> Passage {
        let Some(open) = &mut self.open else { return Passage::Free };
        if open.is_due(now) {
            open.probe(now, rng);
            return Passage::Probe;
        }
        let place = 2 * open.turned + 1;
        let as_before = place < open.wanted || place == open.wanted && rng.random();
        open.turned += 1;
        Passage::Away { as_before }
    }

    /// Takes note of how an attempt ended.
    pub fn record(&mut self, failed: bool, now: f64, rng: &mut impl Rng) {
        if let Some(open) = &mut self.open {
            open.good_probes = if failed { 0 } else { open.good_probes + 1 };
            if open.good_probes >= GOOD_PROBES {
                *self = Self::default();
            }
            return;
        }
        self.failures = (self.failures << 1 | u32::from(failed)) & ((1 << WINDOW) - 1);
        self.seen = (self.seen + 1).min(WINDOW as u32);
        self.ended.rotate_right(1);
        self.ended[0] = now;
        if self.seen >= LEAST && self.failures.count_ones() * 2 >= self.seen {
            let lasted = now - self.ended[self.seen as usize - 1];
            self.open = Some(Open::new(now, (f64::from(self.seen), lasted), rng));
        }
    }
}

/// What becomes of the requests of one side that are turned away, counted by `K`.
#[derive(Clone, Debug)]
pub struct Probes<K> {
    /// The number of the next probe.
    next: u64,
    under_way: BTreeSet<u64>,
    /// What waits for the outcome of a probe, under way or the next.
    waiting: BTreeMap<u64, BTreeMap<K, u64>>,
    latest: Latest,
}

/// How the latest probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Latest {
    /// No probe was sent yet: the breaker has opened because attempts failed.
    Opened,
    UnderWay,
    Ended {
        failed: bool,
    },
    /// Nobody learns how.
    Untold,
}

impl<K> Default for Probes<K> {
    fn default() -> Self {
        let (under_way, waiting) = Default::default();
        Self { next: 0, under_way, waiting, latest: Latest::Opened }
    }
}

impl<K: Ord> Probes<K> {
    /// A request that is one of each of `kinds` was turned away: whether it counts as failed;
    /// none: it waits.
    pub fn turn_away(
        &mut self,
        as_before: bool,
        kinds: impl IntoIterator<Item = K>,
    ) -> Option<bool> {
        let probe = match self.latest {
            Latest::Opened if as_before => return Some(true),
            Latest::Ended { failed } if as_before => return Some(failed),
            Latest::UnderWay if as_before => self.next - 1,
            _ => self.next,
        };
        let waiting = self.waiting.entry(probe).or_default();
        kinds.into_iter().for_each(|kind| *waiting.entry(kind).or_default() += 1);
        None
    }

    /// A request was let through: its number, if it is a probe. The breaker may have closed
    /// by what was sent before it opened; then the first request afterwards is one.
    pub fn let_through(&mut self, passage: Passage) -> Option<u64> {
        if passage == Passage::Free && !self.waiting.contains_key(&self.next) {
            self.latest = Latest::Opened;
            return None;
        }
        let probe = self.next;
        self.next += 1;
        self.latest = Latest::UnderWay;
        self.under_way.insert(probe);
        Some(probe)
    }

    /// A probe has ended: what counts alike.
    pub fn end(&mut self, probe: u64, failed: bool) -> BTreeMap<K, u64> {
        self.leave(probe, Latest::Ended { failed });
        self.waiting.remove(&probe).unwrap_or_default()
    }

    /// A probe's application has left before the answer, so its end is not known. The requests
    /// that waited for this probe wait for another one.
    pub fn give_up(&mut self, probe: u64) {
        self.leave(probe, Latest::Untold);
        let Some(waited) = self.waiting.remove(&probe) else { return };
        let other = self.under_way.range(probe..).next().copied().unwrap_or(self.next);
        let waiting = self.waiting.entry(other).or_default();
        for (kind, n) in waited {
            *waiting.entry(kind).or_default() += n;
        }
    }

    fn leave(&mut self, probe: u64, how: Latest) {
        self.under_way.remove(&probe);
        if probe + 1 == self.next && self.latest == Latest::UnderWay {
            self.latest = how;
        }
    }
}

#[cfg(test)]
mod tests;
