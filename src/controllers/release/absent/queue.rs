//! What is to be handled, object by object: one that fails waits for a time of its own, longer each
//! time, and keeps no other from being handled.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::{controllers::retries::backoff, signals::index::Named};

/// The objects that wait.
#[derive(Default)]
pub(super) struct Queue {
    now: BTreeSet<Named>,
    later: BTreeMap<Named, Later>,
}

struct Later {
    /// Failures in a row.
    failures: u32,
    until: Instant,
}

impl Queue {
    /// An object is to be handled at once.
    pub fn insert(&mut self, object: Named) {
        self.now.insert(object);
    }

    /// The next one whose time has come; it stays in the queue as long as its handling is not told.
    pub fn next(&self, now: Instant) -> Option<Named> {
        let later = || self.later.iter().find(|(_, later)| later.until <= now);
        self.now.first().or_else(|| later().map(|(object, _)| object)).cloned()
    }

    /// It was handled.
    pub fn done(&mut self, object: &Named) {
        self.now.remove(object);
        self.later.remove(object);
    }

    /// It can not be handled yet, which is no failure.
    pub fn wait(&mut self, object: Named, pause: Duration) {
        self.done(&object);
        self.later.insert(object, Later { failures: 0, until: Instant::now() + pause });
    }

    /// It failed: the first pause is `first`.
    pub fn failed(&mut self, object: Named, first: Duration) {
        self.now.remove(&object);
        let failures = self.later.remove(&object).map_or(0, |later| later.failures) + 1;
        let until = Instant::now() + backoff(first, failures);
        self.later.insert(object, Later { failures, until });
    }

    /// When the first one that has to wait may be handled.
    pub fn due(&self) -> Option<Instant> {
        self.later.values().map(|later| later.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_waits_longer_each_time_and_keeps_nothing_else_waiting() {
        let [bad, good, held] = ["a", "z", "m"].map(|name| Named::new("ns", name));
        let (mut queue, began, first) = (Queue::default(), Instant::now(), Duration::from_secs(5));
        for object in [&bad, &good, &held] {
            queue.insert(object.clone());
        }
        let (mut attempts, mut held_at) = (0, vec![]);
        while began.elapsed() < Duration::from_secs(3600) {
            while let Some(object) = queue.next(Instant::now()) {
                if object == bad {
                    attempts += 1;
                    queue.failed(object, first);
                } else if object == held {
                    held_at.push(began.elapsed().as_secs());
                    queue.wait(object, Duration::from_secs(1500));
                } else {
                    queue.done(&object);
                }
            }
            let due = queue.due().unwrap();
            tokio::time::advance(due - Instant::now()).await;
        }
        assert!((10..25).contains(&attempts), "{attempts} in an hour");
        assert_eq!(held_at, [0, 1500, 3000]);
        // An event of it is a reason to try at once, and no reason to forget how often it failed.
        queue.insert(bad.clone());
        assert_eq!(queue.next(Instant::now()), Some(bad.clone()));
        queue.failed(bad.clone(), first);
        let again = queue.later[&bad].until - Instant::now();
        assert!(again > Duration::from_secs(200), "{again:?}");
        for object in [&bad, &held] {
            queue.done(object);
        }
        assert!(queue.next(Instant::now()).is_none() && queue.due().is_none());
    }
}
