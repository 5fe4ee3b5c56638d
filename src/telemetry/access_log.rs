//! One line of JSON a request, for those who keep logs.
//!
//! Off unless asked for: spans and metrics tell the same, and a line a request is the
//! largest thing that a busy gateway would write. A line holds names and numbers, never a
//! key, a header, an address of a user or a word of what was said.

use std::{
    fs::OpenOptions,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    outbox::Outbox,
    pen::{Pen, Stream, Unwritten},
};
use crate::audit::record::{Record, RecordOutcome};

/// How long a line waits for others.
const INTERVAL: Duration = Duration::from_millis(250);
/// While lines are lost, the log says so no more often.
const REMIND: Duration = Duration::from_secs(60);

/// Which requests have a line, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file that lines are added to; none for standard output.
    pub file: Option<PathBuf>,
    /// The share of answered requests that have a line. All others have one anyway.
    pub ratio: f64,
}

impl Config {
    /// Whether this request has a line.
    pub(super) fn tells(&self, record: &Record) -> bool {
        self.ratio >= 1.0
            || record.outcome != RecordOutcome::Ok
            || rand::random_bool(self.ratio.clamp(0.0, 1.0))
    }
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    release: &'a str,
    route: &'a str,
    revision: &'a str,
    prompt_version: &'a str,
    role: &'static str,
    reason: &'static str,
    operation: &'static str,
    backend: &'a str,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    streamed: bool,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'a str>,
}

fn line(record: &Record) -> Line<'_> {
    let origin = &*record.origin;
    let milliseconds = |seconds: f64| (seconds * 1e6).round() / 1e3;
    let caller = record.caller.as_deref();
    let told = |text: &'_ String| !text.is_empty();
    Line {
        at: format!("{:.3}", record.at),
        request_id: &record.request_id,
        trace_id: record.trace.map(|trace| format!("{:032x}", u128::from_be_bytes(trace.trace_id))),
        release: &origin.release,
        route: &origin.route,
        revision: &origin.revision,
        prompt_version: &origin.prompt_version,
        role: record.role.as_str(),
        reason: record.reason.as_str(),
        operation: record.operation.as_str(),
        backend: &origin.backend,
        model: &origin.model,
        caller: caller.map(|c| &c.name).filter(|t| told(t)).map(String::as_str),
        team: caller.map(|c| &c.team).filter(|t| told(t)).map(String::as_str),
        outcome: record.outcome.as_str(),
        error: record.error,
        status: record.status,
        streamed: record.streamed,
        duration_ms: milliseconds(record.duration_seconds),
        first_token_ms: record.first_token_seconds.map(milliseconds),
        input_tokens: record.tokens.input,
        cached_input_tokens: record.tokens.cached_input,
        output_tokens: record.tokens.output,
        cost_usd: record.cost_usd,
        check: record.check.map(|check| check.as_str()),
        finish_reason: record.finish_reason.as_deref(),
    }
}

/// The task that hands lines to the thread that writes them. Only that thread waits for a reader
/// or a disk; meanwhile records wait in the outbox, and what does not fit there is counted.
pub(super) struct Writer {
    pub(super) config: Config,
    pub(super) outbox: Arc<Outbox>,
    pub(super) lost: Arc<AtomicU64>,
}

impl Writer {
    /// Writes until `stop`, then what waits, for at most `patience`.
    pub(super) async fn run(self, stop: CancellationToken, patience: Duration) {
        let thread = match Hand::start(self.config.file.clone()) {
            Ok(thread) => thread,
            Err(error) => return tracing::error!("the access log can not be written: {error}"),
        };
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(patience).await;
        };
        tokio::select! {
            () = self.write(&thread, &stop) => {}
            () = late => {
                let mut left = 0;
                while let batch @ 1.. = self.outbox.take().len() as u64 {
                    left += batch;
                }
                self.lost.fetch_add(left, Ordering::Relaxed);
                let lost = self.lost.load(Ordering::Relaxed);
                tracing::error!(lost, "the access log could not be written to its end");
            }
        }
    }

    async fn write(&self, thread: &Hand, stop: &CancellationToken) {
        let (mut failing, mut told, mut told_at) = (false, 0, None::<Instant>);
        loop {
            let ending = tokio::select! {
                () = stop.cancelled() => true,
                () = self.outbox.batch(INTERVAL) => false,
            };
            loop {
                let batch = self.outbox.take();
                if batch.is_empty() {
                    break;
                }
                let mut on_their_way = OnTheirWay(&self.lost, batch.len() as u64);
                match thread.write(batch).await {
                    Ok(()) => {
                        on_their_way.1 = 0;
                        failing = false;
                    }
                    Err(Unwritten { lines, error }) => {
                        on_their_way.1 = lines;
                        if !std::mem::replace(&mut failing, true) {
                            tracing::error!("the access log can not be written: {error}");
                        }
                    }
                }
            }
            let all = self.lost.load(Ordering::Relaxed) + self.outbox.dropped();
            let is_time = told_at.is_none_or(|at| at.elapsed() >= REMIND);
            if all > told && !failing && (ending || is_time) {
                tracing::warn!(lost = all - told, "lines are missing in the access log");
                (told, told_at) = (all, Some(Instant::now()));
            }
            if ending {
                return;
            }
        }
    }
}

/// Lines that were taken out. Those that are not settled when it is dropped are lost.
struct OnTheirWay<'a>(&'a AtomicU64, u64);

impl Drop for OnTheirWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(self.1, Ordering::Relaxed);
    }
}

type Batch = Vec<Arc<Record>>;
type Written = Result<(), Unwritten>;

/// A thread that writes batches, one after the other. It ends when this is dropped, unless its
/// reader stands still: then it ends with the process. A thread of a runtime would keep the
/// runtime, and so the process, from ending.
struct Hand(mpsc::Sender<(Batch, oneshot::Sender<Written>)>);

impl Hand {
    fn start(file: Option<PathBuf>) -> io::Result<Self> {
        let (sender, batches) = mpsc::channel::<(Batch, oneshot::Sender<Written>)>();
        let work = move || {
            let mut pen = Pen::default();
            for (batch, reply) in batches {
                // Who does not wait for it any more has counted it as lost.
                let _ = reply.send(write(&batch, file.as_ref(), &mut pen));
            }
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(work)?;
        Ok(Self(sender))
    }

    async fn write(&self, batch: Batch) -> Written {
        let lines = batch.len() as u64;
        let gone = || Unwritten { lines, error: io::Error::other("its thread has ended") };
        let (reply, written) = oneshot::channel();
        self.0.send((batch, reply)).map_err(|_| gone())?;
        written.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn write(batch: &[Arc<Record>], file: Option<&PathBuf>, pen: &mut Pen) -> Written {
    let all = |error| Unwritten { lines: batch.len() as u64, error };
    let mut lines = Vec::with_capacity(batch.len() * 640);
    for record in batch {
        serde_json::to_writer(&mut lines, &line(record)).map_err(|error| all(error.into()))?;
        lines.push(b'\n');
    }
    match file {
        // Opened each time, so that a rotated file is left behind.
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            pen.write(&mut file.map_err(all)?, &lines)
        }
        None => pen.write(&mut Stream::stdout().map_err(all)?, &lines),
    }
}

#[cfg(test)]
mod tests;
