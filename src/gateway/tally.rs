//! What becomes of the requests that were drawn for one side, under one routing generation.
//!
//! Intention to treat: a request belongs to the side that the draw chose, from the draw on
//! and whatever becomes of it. [`Tally::draw`] puts it among the open requests; the
//! [`Drawn`] that it returns takes it out again exactly once, with an outcome, or as
//! unfinished when it is dropped: its application went away. What an open breaker keeps
//! away from its side is judged by the nearest probe, on that side.

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
    analysis::{
        breaker::{Passage, Probes},
        buckets,
        callers::coarse,
    },
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
    probes: Probes<Kind>,
}

/// How what is turned away is told apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The group of the sticky key; none without a key.
    Group(Option<u8>),
    /// Who asked.
    Party(String),
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
        let probe = inner.probes.let_through(passage);
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
        Drawn { tally: Some(self.clone()), slot, probe }
    }

    /// A request was drawn for this side and an open breaker keeps it away from it. It counts
    /// as the probe before it, or as the one after it.
    pub(super) fn turn_away(&self, as_before: bool, group: Option<u8>, caller: Option<&Caller>) {
        let mut inner = self.lock();
        inner.counts.assigned += 1;
        inner.counts.turned_away.waiting += 1;
        let party = caller.map(|caller| Kind::Party(caller.party.clone()));
        let kinds = [Kind::Group(group)].into_iter().chain(party);
        let judged = inner.probes.turn_away(as_before, kinds);
        if let Some(failed) = judged {
            inner.judge(group, 1, failed);
        }
        // Before a probe that ends can count it.
        if let Some(caller) = caller {
            self.callers.turn_away(&caller.party, judged);
        }
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

    /// As `close`, of one that does not tell how it ended.
    fn leave(&mut self, slot: usize, probe: Option<u64>) -> Option<Open> {
        if let Some(probe) = probe {
            self.probes.give_up(probe);
        }
        self.close(slot)
    }

    /// So many requests that were turned away count as a probe that has ended.
    fn judge(&mut self, group: Option<u8>, n: u64, failed: bool) {
        self.counts.judge(n, failed);
        if let Some(group) = group.filter(|g| usize::from(*g) < GROUPS) {
            let groups = &mut self.counts.groups;
            add_at(&mut groups.requests, group, n);
            add_at(&mut groups.errors, group, if failed { n } else { 0 });
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
    /// The number of the probe that it is.
    probe: Option<u64>,
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
        inner.close(self.slot);
        count(&mut inner.counts, record);
        let Some(probe) = self.probe else { return };
        let failed = record.outcome == RecordOutcome::Error;
        if !failed && record.outcome != RecordOutcome::Ok {
            return inner.probes.give_up(probe);
        }
        inner.counts.turned_away.add_probe(failed);
        let mut parties = vec![];
        for (kind, n) in inner.probes.end(probe, failed) {
            match kind {
                Kind::Group(group) => inner.judge(group, n, failed),
                Kind::Party(party) => parties.push((party, n)),
            }
        }
        drop(inner);
        tally.callers.probed(record.caller.as_deref(), parties.into_iter(), failed);
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
        inner.leave(self.slot, self.probe)
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        let Some(tally) = self.tally.take() else { return };
        let mut inner = tally.lock();
        let Some(open) = inner.leave(self.slot, self.probe) else { return };
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
