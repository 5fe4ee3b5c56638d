//! What leaves the process about each request: spans for tracing systems, and a line for
//! the access log. Both are made from the one `Record` a request. And the process's own log
//! (`log`).
//!
//! The request's own part is small: draw ids, and put an `Arc` of the record into a bounded
//! queue. Everything that costs (names, redaction, encoding, sending) happens in tasks
//! behind it; when they fall behind, records are dropped and counted, never waited for.

pub mod access_log;
mod content;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod log;
pub mod names;
pub mod otlp;
mod outbox;
mod pen;
mod protobuf;
pub mod redact;
mod span;
mod trace_context;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::outbox::Outbox;
pub use self::{
    content::whole_words,
    outbox::Bounds,
    pen::Stream,
    trace_context::{Parent, Tracing, follow, parse_traceparent, propagate, traceparent},
};
use crate::audit::record::Record;

/// Lines of the access log that may wait.
const LINES: Bounds = Bounds { records: 16_384, bytes: usize::MAX, batch: 1024 };

/// What a process tells of its requests, and to whom.
#[derive(Default)]
pub struct Config {
    /// Which requests are traced, and with what.
    pub tracing: Tracing,
    /// Where spans go; none when traces are only passed on.
    pub otlp: Option<otlp::Config>,
    /// The access log, if there is one.
    pub access_log: Option<access_log::Config>,
    /// The lines that the process's own log has lost.
    pub log: Arc<log::Lost>,
}

/// The part that requests see.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Which requests are traced.
    pub tracing: Tracing,
    spans: Option<Arc<Outbox>>,
    sent: Arc<otlp::Sent>,
    lines: Option<(access_log::Config, Arc<Outbox>)>,
    lost_lines: Arc<AtomicU64>,
    log: Arc<log::Lost>,
}

impl Telemetry {
    /// Sets everything up and starts the tasks behind the requests.
    ///
    /// # Errors
    /// The collector's address is none, or its client could not be set up.
    pub fn start(config: Config) -> Result<(Arc<Self>, Behind), otlp::OtlpError> {
        let mut this = Self { tracing: config.tracing, log: config.log, ..Self::default() };
        let mut behind = Behind::default();
        if let Some(otlp) = config.otlp {
            let outbox = Arc::new(Outbox::new(otlp.bounds));
            let exporter = otlp::Exporter::new(otlp, outbox.clone(), this.sent.clone())?;
            this.spans = Some(outbox);
            let (stop, flush) = (behind.stop.clone(), Behind::FLUSH);
            behind.tasks.spawn(exporter.run(stop, flush));
        }
        if let Some(config) = config.access_log {
            let outbox = Arc::new(Outbox::new(LINES));
            this.lines = Some((config.clone(), outbox.clone()));
            let writer = access_log::Writer { config, outbox, lost: this.lost_lines.clone() };
            behind.tasks.spawn(writer.run(behind.stop.clone(), Behind::FLUSH));
        }
        Ok((Arc::new(this), behind))
    }

    /// Takes a record. Never waits.
    pub fn consume(&self, record: &Arc<Record>) {
        if let Some(spans) = &self.spans
            && record.trace.is_some_and(|trace| trace.sampled)
        {
            spans.put(record);
        }
        if let Some((config, lines)) = &self.lines
            && config.tells(record)
        {
            lines.put(record);
        }
    }

    /// Whether anybody wants records.
    pub fn is_on(&self) -> bool {
        self.spans.is_some() || self.lines.is_some()
    }

    /// What became of what was taken so far: `(what, outcome, count)`.
    pub fn counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut counts = vec![];
        if let Some(spans) = &self.spans {
            counts.extend([
                ("span", "delivered", read(&self.sent.delivered)),
                ("span", "refused", read(&self.sent.refused)),
                ("span", "undelivered", read(&self.sent.undelivered)),
                ("span", "queue_full", spans.dropped()),
            ]);
        }
        if let Some((_, lines)) = &self.lines {
            counts.extend([
                ("line", "unwritten", read(&self.lost_lines)),
                ("line", "queue_full", lines.dropped()),
            ]);
        }
        counts.extend(self.log.counts().map(|(outcome, lines)| ("log", outcome, lines)));
        counts
    }

    /// Spans that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.spans.as_ref().map_or(0, |spans| spans.len())
    }
}

/// The tasks behind the requests.
#[derive(Default)]
pub struct Behind {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Behind {
    /// How long the last spans may take, and the last lines of the access log.
    const FLUSH: Duration = Duration::from_secs(5);

    /// Tells what waits, and ends. Called when the last request has ended.
    pub async fn flush(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
