//! The bounded queue between a request and what is told of it.
//!
//! Putting a record in takes a lock for one push and wakes nobody until a batch is
//! together: a task that was woken for each request would cost more than the request's
//! own telemetry. What does not fit is dropped and counted.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::audit::record::Record;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Records.
    pub records: usize,
    /// Bytes of what was said, together.
    pub bytes: usize,
    /// So many are taken out together.
    pub batch: usize,
}

/// Records that wait to be told.
#[derive(Debug)]
pub(super) struct Outbox {
    bounds: Bounds,
    waiting: Mutex<Waiting>,
    full: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn new(bounds: Bounds) -> Self {
        let records = VecDeque::with_capacity(bounds.records.min(bounds.batch * 2));
        Self {
            bounds,
            waiting: Mutex::new(Waiting { records, bytes: 0 }),
            full: Notify::new(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Puts a record in, if there is room.
    pub(super) fn put(&self, record: &Arc<Record>) {
        let bytes = weight(record);
        let Ok(mut waiting) = self.waiting.lock() else { return };
        let (records, held) = (waiting.records.len(), waiting.bytes);
        if records >= self.bounds.records || (held > 0 && held + bytes > self.bounds.bytes) {
            drop(waiting);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.records.push_back(record.clone());
        waiting.bytes += bytes;
        drop(waiting);
        if records + 1 == self.bounds.batch {
            self.full.notify_one();
        }
    }

    /// Takes at most one batch out, the oldest first.
    pub(super) fn take(&self) -> Vec<Arc<Record>> {
        let Ok(mut waiting) = self.waiting.lock() else { return vec![] };
        let count = waiting.records.len().min(self.bounds.batch);
        let batch: Vec<_> = waiting.records.drain(..count).collect();
        waiting.bytes -= batch.iter().map(|record| weight(record)).sum::<usize>();
        batch
    }

    /// Ends when a batch is together, and after `patience` at the latest.
    pub(super) async fn batch(&self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.full.notified()).await;
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().map_or(0, |waiting| waiting.records.len())
    }
}

fn weight(record: &Record) -> usize {
    record.content.as_ref().map_or(0, |content| content.weight())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::record::Content, telemetry::fixtures::record};

    const BOUNDS: Bounds = Bounds { records: 3, bytes: 100, batch: 2 };

    fn said(bytes: usize) -> Arc<Record> {
        let content = Content { input: vec![b'x'; bytes], ..Content::default() };
        Arc::new(Record { content: Some(Box::new(content)), ..record() })
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_the_oldest_comes_first() {
        let outbox = Outbox::new(BOUNDS);
        for id in ["a", "b", "c", "d"] {
            outbox.put(&Arc::new(Record { request_id: id.into(), ..record() }));
        }
        assert_eq!((outbox.len(), outbox.dropped()), (3, 1));
        let ids = |batch: Vec<Arc<Record>>| -> Vec<String> {
            batch.iter().map(|record| record.request_id.clone()).collect()
        };
        assert_eq!(ids(outbox.take()), ["a", "b"]);
        assert_eq!(ids(outbox.take()), ["c"]);
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn long_conversations_do_not_fill_the_memory() {
        let outbox = Outbox::new(BOUNDS);
        outbox.put(&said(60));
        outbox.put(&said(60));
        assert_eq!((outbox.len(), outbox.dropped()), (1, 1));
        outbox.take();
        outbox.put(&said(60));
        assert_eq!(outbox.len(), 1, "what was taken out is free again");
        let outbox = Outbox::new(BOUNDS);
        outbox.put(&said(500));
        assert_eq!(outbox.len(), 1, "one that is too large for all bounds is not lost for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_ready_when_it_is_full_or_when_patience_ends() {
        let outbox = Outbox::new(BOUNDS);
        let start = tokio::time::Instant::now();
        outbox.put(&Arc::new(record()));
        outbox.batch(Duration::from_secs(5)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(5), "one does not make a batch");
        outbox.put(&Arc::new(record()));
        outbox.batch(Duration::from_secs(5)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(5), "two do");
    }
}
