//! How log lines leave the process.
//!
//! Whoever logs puts a line into a bounded queue and goes on; a thread of its own writes. So a
//! reader that stands still (a stopped terminal, a full pipe, a collector that hangs) costs
//! lines, which are counted, and nobody's time; and a line that can not be written (nobody
//! reads, the disk is full) ends nothing. The log says how many lines are missing as soon as it
//! can be written again. `docs/decisions/0021` says why this is not tracing-appender.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use super::pen::{Pen, Unwritten, count};

/// Bytes of lines that may wait: some thousand lines. As many may be in the hands of the thread.
const WAITING: usize = 1 << 20;
/// Linux writes so many bytes to a pipe whole (`PIPE_BUF`), so that the lines of several
/// processes do not mix.
const TOGETHER: usize = 4096;
/// A buffer of more bytes is not kept.
const LARGE: usize = 64 << 10;
/// It formats no more than a line.
const STACK: usize = 256 << 10;

/// Lines that nobody will read.
#[derive(Debug, Default)]
pub struct Lost {
    queue_full: AtomicU64,
    unwritten: AtomicU64,
}

impl Lost {
    /// How many so far, and why: the queue was full, or they could not be written.
    pub fn counts(&self) -> [(&'static str, u64); 2] {
        [
            ("queue_full", self.queue_full.load(Ordering::Relaxed)),
            ("unwritten", self.unwritten.load(Ordering::Relaxed)),
        ]
    }

    fn all(&self) -> u64 {
        self.counts().iter().map(|(_, lines)| lines).sum()
    }
}

/// A log with its queue and its thread, which goes on until the process ends.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    lines: Mutex<Lines>,
    /// There is something to write.
    filled: Condvar,
    /// All is written.
    emptied: Condvar,
    lost: Arc<Lost>,
    thread: OnceLock<ThreadId>,
}

#[derive(Default)]
struct Lines {
    waiting: Vec<u8>,
    /// All is written, and the thread waits for more.
    idle: bool,
}

impl Log {
    /// Starts the thread that writes to `out`. After a line was written, `tell` is called with
    /// the number of lines that were lost since it was called last; what it logs has room.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        out: impl Write + Send + 'static,
        tell: impl Fn(&Log, u64) + Send + 'static,
    ) -> io::Result<Self> {
        let log = Self(Arc::new(Shared {
            lines: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            lost: Arc::default(),
            thread: OnceLock::new(),
        }));
        let writes = log.clone();
        let builder = thread::Builder::new().name("log".to_owned()).stack_size(STACK);
        builder.spawn(move || writes.write(out, tell))?;
        Ok(log)
    }

    /// What is lost.
    pub fn lost(&self) -> Arc<Lost> {
        self.0.lost.clone()
    }

    /// Puts whole lines in, if there is room. Never waits for the reader.
    pub fn put(&self, text: &[u8]) {
        let mut lines = self.0.lines();
        let held = lines.waiting.len();
        // What is longer than all the room is taken when nothing else waits.
        if held > 0 && held + text.len() > WAITING && !self.is_its_thread() {
            drop(lines);
            self.0.lost.queue_full.fetch_add(count(text), Ordering::Relaxed);
            return;
        }
        lines.waiting.extend_from_slice(text);
        let wake = mem::take(&mut lines.idle);
        drop(lines);
        if wake {
            self.0.filled.notify_one();
        }
    }

    /// Waits until all is written, at most `patience`; answers whether it is.
    pub fn written(&self, patience: Duration) -> bool {
        let busy = |lines: &mut Lines| !lines.idle;
        let ended = self.0.emptied.wait_timeout_while(self.0.lines(), patience, busy);
        !ended.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn is_its_thread(&self) -> bool {
        self.0.thread.get() == Some(&thread::current().id())
    }

    fn write(&self, mut out: impl Write, tell: impl Fn(&Log, u64)) {
        let _ = self.0.thread.set(thread::current().id());
        let (mut pen, mut batch, mut told) = (Pen::default(), vec![], 0);
        loop {
            self.0.next(&mut batch);
            let mut works = true;
            for lines in together(&batch) {
                let written = pen.write(&mut out, lines);
                works = written.is_ok();
                if let Err(Unwritten { lines, .. }) = written {
                    self.0.lost.unwritten.fetch_add(lines, Ordering::Relaxed);
                }
            }
            let lost = self.0.lost.all();
            if works && lost > told {
                tell(self, lost - told);
                told = lost;
            }
        }
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that waits, once something does.
    fn next(&self, batch: &mut Vec<u8>) {
        batch.clear();
        if batch.capacity() > LARGE {
            *batch = vec![];
        }
        let mut lines = self.lines();
        while lines.waiting.is_empty() {
            lines.idle = true;
            self.emptied.notify_all();
            lines = self.filled.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut lines.waiting, batch);
    }
}

/// Parts of whole lines, each of at most [`TOGETHER`] bytes if no line of it is longer.
fn together(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let most = &text[..text.len().min(TOGETHER)];
        let end = memchr::memrchr(b'\n', most).or_else(|| memchr::memchr(b'\n', text));
        let (part, rest) = text.split_at(end.map_or(text.len(), |end| end + 1));
        text = rest;
        Some(part)
    })
}

/// One event on its way into the queue.
pub struct Event<'a>(&'a Log);

impl<'a> MakeWriter<'a> for Log {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Event(self)
    }
}

impl Write for Event<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.put(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
