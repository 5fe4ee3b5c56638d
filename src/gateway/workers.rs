//! The threads that carry requests. Each has a runtime, and connections to models, of its
//! own: a request is read, sent, answered and recorded on one thread, and no thread has to
//! wake another. With a scheduler that moves work between threads each event of a stream
//! passes two tasks, and often two threads; docs/decisions/0006 has what that costs.
//!
//! Everything else (what the operator decides, telemetry on its way out) stays on the
//! runtime of the process, so that no request waits behind it.

use std::{
    cell::Cell,
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Nearer than the time limits of requests, and seldom enough to cost nothing.
const NEAR: Duration = Duration::from_millis(500);

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

/// Which worker this thread is, from 1; 0 for a thread that is none.
pub(super) fn place() -> usize {
    PLACE.get()
}

/// How many workers a process has: one for each core that it may use.
pub(super) fn usual() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The workers of a process. When they are dropped, what they still carry is cut, and
/// recorded as such before the drop ends.
pub struct Workers {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

struct Worker {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// A place at a worker for one connection.
pub(super) struct Seat {
    pub runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// One for each core.
    ///
    /// # Errors
    /// A thread or its runtime could not be started.
    pub fn start() -> io::Result<Self> {
        let mut all = Self { workers: vec![], stop: CancellationToken::new() };
        for place in 1..=usual() {
            all.workers.push(Worker::start(place, all.stop.clone())?);
        }
        Ok(all)
    }

    /// A place at the worker that has the fewest connections.
    pub(super) fn seat(&self) -> Option<Seat> {
        let fewest = |worker: &&Worker| worker.connections.load(Ordering::Relaxed);
        let Worker { runtime, connections, .. } = self.workers.iter().min_by_key(fewest)?;
        connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat { runtime: runtime.clone(), connections: connections.clone() })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for worker in self.workers.drain(..) {
            // A worker that panicked has ended, too.
            let _ = worker.thread.join();
        }
    }
}

/// Keeps the next time at which a worker wakes near. A timer before that time makes the
/// worker wake itself through the kernel, and each request sets one or two.
async fn keep_time() {
    loop {
        tokio::time::sleep(NEAR).await;
    }
}

impl Worker {
    fn start(place: usize, stop: CancellationToken) -> io::Result<Self> {
        let (started, told) = mpsc::sync_channel(1);
        let builder = thread::Builder::new().name(format!("requests-{place}"));
        let thread = builder.spawn(move || {
            PLACE.set(place);
            match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    let _ = started.send(Ok(runtime.handle().clone()));
                    runtime.spawn(keep_time());
                    runtime.block_on(stop.cancelled());
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let runtime = told.recv().map_err(io::Error::other)??;
        Ok(Self { runtime, connections: Arc::default(), thread })
    }
}
