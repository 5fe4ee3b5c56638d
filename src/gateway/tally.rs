//! What becomes of the requests that were drawn for one side, under one routing generation.
//!
//! Intention to treat: a request belongs to the side that the draw chose, from the draw on
//! and whatever becomes of it. [`Tally::draw`] puts it among the open requests; the
//! [`Drawn`] that it returns takes it out again exactly once, with an outcome, or as
//! unfinished when it is dropped: its application went away. What an open breaker keeps
//! away from its side is judged by the next probe, on that side.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    callers::Callers,
    feedback::Votes,
    sinks::{add_at, count},
};
use crate::{
    analysis::{buckets, callers::coarse},
    api::prompt_release::{CallerCounts, Counts, Paired, Waits},
    audit::record::{Caller, Record, RecordOutcome},
    rollout::assignment::GROUPS,
};

/// The counts of one variant under one routing generation.
#[derive(Debug, Default)]
pub struct Tally {
    inner: Mutex<Inner>,
    /// Which requests have a complete answer, and which answers a score.
    pub(super) votes: Votes,
    /// The same counts by who asked.
    pub(super) callers: Callers,
}

#[derive(Debug, Default)]
struct Inner {
    counts: Counts,
    /// Drawn requests under way, by slot.
    open: Vec<Option<Open>>,
    free: Vec<usize>,
    /// Turned away since the last probe: by group of the sticky key, without a key last.
    waiting: BTreeMap<Option<u8>, u64>,
    /// When the first of them was turned away.
    waiting_since: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    /// It waits for its first token.
    silent: bool,
    /// Who asked; none for copies, which nobody chooses.
    caller: Option<Arc<Caller>>,
}

impl Open {
    /// Adds it to those that are open, at this bucket of its age.
    fn add_to(&self, open: &mut Waits, age: u8) {
        *open.duration.entry(age).or_default() += 1;
        if self.silent {
            *open.ttft.entry(age).or_default() += 1;
        }
    }

    fn age(&self, now: Instant) -> u8 {
        buckets::index(now.duration_since(self.since).as_secs_f64())
    }
}

/// How a request meets a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// The breaker is closed.
    Free,
    /// The breaker is open, and this request shows whether the variant has recovered.
    Probe,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counting does not panic half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of `caller` was drawn for this side and is under way.
    pub(super) fn draw(self: &Arc<Self>, passage: Passage, caller: Option<&Arc<Caller>>) -> Drawn {
        let open = Some(Open { since: Instant::now(), silent: true, caller: caller.cloned() });
        let mut inner = self.lock();
        inner.counts.assigned += 1;
        let slot = match inner.free.pop() {
            Some(slot) => {
                inner.open[slot] = open;
                slot
            }
            None => {
                inner.open.push(open);
                inner.open.len() - 1
            }
        };
        Drawn { tally: Some(self.clone()), slot, passage }
    }

    /// A request was drawn for this side and an open breaker keeps it away from it.
    pub(super) fn turn_away(&self, group: Option<u8>, caller: Option<&Caller>) {
        if let Some(caller) = caller {
            self.callers.turn_away(&caller.party);
        }
        let mut inner = self.lock();
        inner.counts.assigned += 1;
        inner.counts.turned_away.waiting += 1;
        inner.waiting_since.get_or_insert_with(Instant::now);
        *inner.waiting.entry(group).or_default() += 1;
    }

    /// Changes the counts of what is no request of its own: feedback.
    pub(super) fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock().counts);
    }

    /// The counts so far, with the requests that are open now.
    pub fn read(&self, read_at: u64) -> Counts {
        let now = Instant::now();
        let inner = self.lock();
        let mut open = Waits::default();
        for request in inner.open.iter().flatten() {
            request.add_to(&mut open, request.age(now));
        }
        Counts { open, read_at, ..inner.counts.clone() }
    }

    /// How many requests of each caller were drawn.
    pub(super) fn by_caller(&self) -> HashMap<String, u64> {
        let mut drawn = self.callers.known();
        for request in self.lock().open.iter().flatten() {
            let Some(caller) = &request.caller else { continue };
            match drawn.get_mut(&caller.party) {
                Some(n) => *n += 1,
                None => _ = drawn.insert(caller.party.clone(), 1),
            }
        }
        drawn
    }

    /// The counts of these callers so far, with their requests that are open now.
    pub(super) fn of_callers(&self, names: &[String]) -> BTreeMap<String, CallerCounts> {
        let mut callers = self.callers.of(names);
        let now = Instant::now();
        for request in self.lock().open.iter().flatten() {
            let party = request.caller.as_ref().map(|caller| caller.party.as_str());
            if let Some(counts) = party.and_then(|party| callers.get_mut(party)) {
                request.add_to(&mut counts.open, coarse(request.age(now)));
            }
        }
        callers
    }
}

impl Inner {
    fn close(&mut self, slot: usize) -> Option<Open> {
        let open = self.open.get_mut(slot)?.take();
        self.free.push(slot);
        open
    }

    /// What was turned away since the probe before counts as this one ended.
    fn probed(&mut self, failed: bool) {
        let counts = &mut self.counts;
        counts.turned_away.add_probe(failed);
        let turned = counts.turned_away.judge(failed);
        counts.requests += turned;
        counts.errors += if failed { turned } else { 0 };
        self.waiting_since = None;
        for (group, n) in std::mem::take(&mut self.waiting) {
            let Some(group) = group.filter(|g| usize::from(*g) < GROUPS) else { continue };
            add_at(&mut counts.groups.requests, group, n);
            add_at(&mut counts.groups.errors, group, if failed { n } else { 0 });
        }
    }
}

/// A request that was drawn for a side and has not ended. Dropped, it counts as given up by
/// its application.
#[derive(Debug)]
pub(super) struct Drawn {
    /// None once it has ended.
    tally: Option<Arc<Tally>>,
    slot: usize,
    passage: Passage,
}

impl Drawn {
    /// The first token is here.
    pub(super) fn speaks(&self) {
        let Some(tally) = &self.tally else { return };
        if let Some(open) = tally.lock().open.get_mut(self.slot).and_then(Option::as_mut) {
            open.silent = false;
        }
    }

    /// It has ended as the record says.
    pub(super) fn end(mut self, record: &Record) {
        let Some(tally) = self.tally.take() else { return };
        if let Some(serial) = record.serial.filter(|_| record.outcome == RecordOutcome::Ok) {
            tally.votes.answered(serial);
        }
        tally.callers.count(record);
        let mut inner = tally.lock();
        let open = inner.close(self.slot);
        count(&mut inner.counts, record);
        // The breaker may also close by what was sent before it opened, and without a probe.
        let drawn_later = inner.waiting_since.zip(open).is_some_and(|(w, open)| open.since >= w);
        let failed = record.outcome == RecordOutcome::Error;
        let tells = failed || record.outcome == RecordOutcome::Ok;
        if tells && (self.passage == Passage::Probe || drawn_later) {
            inner.probed(failed);
            drop(inner);
            tally.callers.probed(record.caller.as_deref(), failed);
        }
    }

    /// It is no evidence, by a rule that does not depend on how it ends.
    pub(super) fn exclude(mut self) {
        self.leave(|counts| counts.excluded += 1);
    }

    /// A copy that was not sent.
    pub(super) fn unsent(mut self) {
        self.leave(|counts| {
            let paired = counts.paired.get_or_insert_with(Paired::default);
            paired.dropped += 1;
            paired.unsent += 1;
        });
    }

    fn leave(&mut self, change: impl FnOnce(&mut Counts)) -> Option<Open> {
        let tally = self.tally.take()?;
        let mut inner = tally.lock();
        change(&mut inner.counts);
        inner.close(self.slot)
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        let Some(tally) = self.tally.take() else { return };
        let mut inner = tally.lock();
        let Some(open) = inner.close(self.slot) else { return };
        let waited = buckets::index(open.since.elapsed().as_secs_f64());
        let counts = &mut inner.counts;
        counts.unfinished += 1;
        *counts.waited.duration.entry(waited).or_default() += 1;
        if open.silent {
            *counts.waited.ttft.entry(waited).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests;
