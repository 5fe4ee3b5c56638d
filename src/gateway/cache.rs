//! Answers that are given again: for releases that ask for it (`spec.cache`), and for
//! requests that are the same in everything that matters ([`key`]).
//!
//! An entry is the whole answer as it was sent, the bytes of a JSON answer or of a
//! stream's events, and is given again to the same form of request only: nothing is
//! converted, so nothing can be converted wrongly. Memory has a bound in bytes; Redis or
//! Valkey can be shared by all gateways on top of it.
//!
//! *The shared one is never worth an error or a wait.* It has [`PATIENCE`]; after a failure
//! it is left alone for [`PAUSE`], so that an outage costs one request in a second a few
//! milliseconds and the others nothing; writes happen behind the answer and are dropped
//! when too many are under way. Each of these is counted.
//!
//! What may be kept is for the caller to know: only complete answers that passed their
//! check.

mod entry;
mod key;
mod shared;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use moka::{Expiry, policy::EvictionPolicy};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::shared::Shared;
pub use self::{
    entry::{Entry, Form, Recording},
    key::{Directives, Key, Parts, key},
    shared::{SetupError, SharedConfig},
};

/// A look-up or a write in the shared cache may take so long.
pub const PATIENCE: Duration = Duration::from_millis(50);
/// The shared cache is left alone for so long after it failed.
pub const PAUSE: Duration = Duration::from_secs(1);
/// Writes to the shared cache that may be under way.
const WRITES: usize = 64;
/// An entry may take this part of the memory: one answer must not push out all others.
const SHARE: u64 = 16;

/// How much is kept, and where.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Bytes of memory.
    pub memory: u64,
    /// Redis or Valkey.
    pub shared: Option<SharedConfig>,
}

/// The cache of a gateway process.
pub struct Cache {
    memory: moka::sync::Cache<Key, Kept>,
    largest: usize,
    shared: Option<Shared>,
    writes: Arc<Semaphore>,
    tasks: TaskTracker,
    started: Instant,
    counts: Counts,
}

/// An entry in memory, and for how long.
#[derive(Clone)]
struct Kept {
    entry: Arc<Entry>,
    ttl: Duration,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    shared_hits: AtomicU64,
    misses: AtomicU64,
    read_failures: AtomicU64,
    write_failures: AtomicU64,
    dropped_writes: AtomicU64,
    /// Milliseconds after the start until when the shared cache is left alone.
    paused_until: AtomicU64,
}

struct OwnTtl;

impl Expiry<Key, Kept> for OwnTtl {
    fn expire_after_create(&self, _: &Key, kept: &Kept, _: Instant) -> Option<Duration> {
        Some(kept.ttl)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        kept: &Kept,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.ttl)
    }
}

impl Cache {
    /// An empty cache; the shared one is not asked yet.
    ///
    /// # Errors
    /// The address of the shared cache is none.
    pub fn new(config: CacheConfig) -> Result<Arc<Self>, SetupError> {
        let memory = moka::sync::Cache::builder()
            .max_capacity(config.memory)
            .weigher(|_, kept: &Kept| u32::try_from(kept.entry.size()).unwrap_or(u32::MAX))
            // Bursts of requests that never come again do not push out what is asked often.
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .expire_after(OwnTtl)
            .build();
        Ok(Arc::new(Self {
            memory,
            largest: usize::try_from(config.memory / SHARE).unwrap_or(usize::MAX),
            shared: config.shared.map(Shared::new).transpose()?,
            writes: Arc::new(Semaphore::new(WRITES)),
            tasks: TaskTracker::new(),
            started: Instant::now(),
            counts: Counts::default(),
        }))
    }

    /// The largest answer that is kept, in bytes.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// What is in memory. Not what the model said before `oldest` ([`Directives::oldest`]).
    pub fn in_memory(&self, key: &Key, oldest: Option<Timestamp>) -> Option<Arc<Entry>> {
        let entry = self.memory.get(key)?.entry;
        let found = entry.is_since(oldest).then_some(entry);
        self.counts.hits.fetch_add(u64::from(found.is_some()), Ordering::Relaxed);
        found
    }

    /// Whether it is in memory. Not counted as a look-up.
    pub fn knows(&self, key: &Key) -> bool {
        self.memory.contains_key(key)
    }

    /// What is in memory, or else in the shared cache. Never fails, and never waits longer
    /// than [`PATIENCE`].
    pub async fn get(&self, key: &Key, oldest: Option<Timestamp>) -> Option<Arc<Entry>> {
        if let Some(entry) = self.in_memory(key, oldest) {
            return Some(entry);
        }
        let found = self.ask_shared(key).await.filter(|(entry, _)| entry.is_since(oldest));
        let Some((entry, ttl)) = found else {
            self.counts.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.counts.shared_hits.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(entry);
        self.remember(*key, entry.clone(), ttl);
        Some(entry)
    }

    async fn ask_shared(&self, key: &Key) -> Option<(Entry, Duration)> {
        let shared = self.shared.as_ref().filter(|_| !self.pauses())?;
        match tokio::time::timeout(PATIENCE, shared.get(key)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => self.failed(&self.counts.read_failures, &error.to_string()),
            Err(_) => self.failed(&self.counts.read_failures, "it does not answer in time"),
        }
    }

    /// Keeps an answer for `ttl`; the shared cache gets it behind the caller's back.
    pub fn put(self: &Arc<Self>, key: Key, entry: Arc<Entry>, ttl: Duration) {
        if entry.size() > self.largest || ttl.is_zero() {
            return;
        }
        self.remember(key, entry.clone(), ttl);
        if self.shared.is_none() || self.pauses() {
            return;
        }
        let Ok(permit) = self.writes.clone().try_acquire_owned() else {
            self.counts.dropped_writes.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let this = self.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            let Some(shared) = &this.shared else { return };
            let failures = &this.counts.write_failures;
            match tokio::time::timeout(PATIENCE, shared.put(&key, &entry, ttl)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => this.failed::<()>(failures, &error.to_string()).unwrap_or(()),
                Err(_) => {
                    this.failed::<()>(failures, "it does not answer in time").unwrap_or(());
                }
            }
        });
    }

    fn remember(&self, key: Key, entry: Arc<Entry>, ttl: Duration) {
        self.memory.insert(key, Kept { entry, ttl });
    }

    /// Counts a failure of the shared cache and leaves it alone for a while. One line in
    /// the log for each pause, not for each request.
    fn failed<T>(&self, count: &AtomicU64, error: &str) -> Option<T> {
        count.fetch_add(1, Ordering::Relaxed);
        let until = self.millis() + u64::try_from(PAUSE.as_millis()).unwrap_or(0);
        if self.counts.paused_until.swap(until, Ordering::Relaxed) < self.millis() {
            tracing::warn!(error, "the shared cache failed; answers come without it");
        }
        None
    }

    fn pauses(&self) -> bool {
        self.millis() < self.counts.paused_until.load(Ordering::Relaxed)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends when nothing is written any more. For the end of the process and for tests.
    pub async fn written(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("largest", &self.largest).finish_non_exhaustive()
    }
}

/// Exported beside the gateway's other metrics.
impl Collector for Cache {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let read = |count: &AtomicU64| ConstCounter::new(count.load(Ordering::Relaxed));
        let counts = &self.counts;
        for (name, help, count) in [
            ("cache_hits", "Answers from memory", &counts.hits),
            ("cache_shared_hits", "Answers from the shared cache", &counts.shared_hits),
            ("cache_misses", "Look-ups that found nothing", &counts.misses),
            ("cache_read_failures", "Failed look-ups in the shared cache", &counts.read_failures),
            ("cache_write_failures", "Failed writes to the shared cache", &counts.write_failures),
            (
                "cache_dropped_writes",
                "Writes that were not tried, too many were under way",
                &counts.dropped_writes,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            read(count).encode(metric)?;
        }
        for (name, help, value) in [
            ("cache_bytes", "Memory that kept answers take", self.memory.weighted_size()),
            ("cache_entries", "Answers in memory", self.memory.entry_count()),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
