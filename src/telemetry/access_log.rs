//! One line of JSON a request, for those who keep logs.
//!
//! Off unless asked for: spans and metrics tell the same, and a line a request is the
//! largest thing that a busy gateway would write. A line holds names and numbers, never a
//! key, a header, an address of a user or a word of what was said.

use std::{io::Write, path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use crate::audit::record::{Record, RecordOutcome};

/// How long a line waits for others.
const INTERVAL: Duration = Duration::from_millis(250);

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

/// The task that writes lines.
pub(super) struct Writer {
    pub(super) config: Config,
    pub(super) outbox: Arc<Outbox>,
    pub(super) lost: Arc<std::sync::atomic::AtomicU64>,
}

impl Writer {
    /// Writes until `stop`, then what waits.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut failing = false;
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
                let (lines, file) = (batch.len() as u64, self.config.file.clone());
                let written = spawn_blocking(move || write(&batch, file)).await;
                match written {
                    Ok(Ok(())) => failing = false,
                    Ok(Err(problem)) => {
                        self.lost.fetch_add(lines, std::sync::atomic::Ordering::Relaxed);
                        if !std::mem::replace(&mut failing, true) {
                            tracing::error!("the access log can not be written: {problem}");
                        }
                    }
                    // The runtime ends.
                    Err(_) => return,
                }
            }
            if ending {
                return;
            }
        }
    }
}

fn write(batch: &[Arc<Record>], file: Option<PathBuf>) -> std::io::Result<()> {
    let mut lines = Vec::with_capacity(batch.len() * 640);
    for record in batch {
        serde_json::to_writer(&mut lines, &line(record))?;
        lines.push(b'\n');
    }
    match file {
        // Opened each time, so that a rotated file is left behind.
        Some(path) => {
            std::fs::OpenOptions::new().append(true).create(true).open(path)?.write_all(&lines)
        }
        None => {
            let mut out = std::io::stdout().lock();
            out.write_all(&lines)?;
            out.flush()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        audit::record::Content,
        telemetry::{Bounds, fixtures::record},
    };

    #[test]
    fn a_line_says_what_happened_and_nothing_of_what_was_said() {
        let content = Content {
            input: b"secret words".to_vec(),
            output: "more secret words".into(),
            user: Some("ada".into()),
            ..Content::default()
        };
        let record = Record { content: Some(Box::new(content)), ..record() };
        let text = serde_json::to_string(&line(&record)).unwrap();
        assert!(!text.contains("secret") && !text.contains("ada"));
        let line: Value = serde_json::from_str(&text).unwrap();
        for (name, value) in [
            ("at", Value::from("2023-11-14T22:13:20.000Z")),
            ("trace_id", Value::from("01010101010101010101010101010101")),
            ("prompt_version", Value::from("support-answer-v7")),
            ("team", Value::from("web")),
            ("duration_ms", Value::from(1500.0)),
            ("cost_usd", Value::from(0.0042)),
        ] {
            assert_eq!(line[name], value, "{name}");
        }
        assert!(line.get("error").is_none(), "what there is not is left out");
    }

    #[tokio::test]
    async fn lines_are_added_to_the_file_and_what_can_not_be_written_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let bounds = Bounds { records: 10, bytes: 0, batch: 4 };
        let run = async |file: PathBuf| {
            let writer = Writer {
                config: Config { file: Some(file), ratio: 1.0 },
                outbox: Arc::new(Outbox::new(bounds)),
                lost: Arc::default(),
            };
            let lost = writer.lost.clone();
            (0..10).for_each(|_| writer.outbox.put(&Arc::new(record())));
            let stop = CancellationToken::new();
            stop.cancel();
            writer.run(stop).await;
            lost.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert_eq!(run(path.clone()).await, 0);
        assert_eq!(run(path.clone()).await, 0);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|l| serde_json::from_str::<Value>(l).is_ok()).count(), 20);
        assert_eq!(run(folder.path().join("no/such/folder.log")).await, 10);
    }

    #[test]
    fn of_a_sampled_log_only_answered_requests_are_missing() {
        let config = Config { file: None, ratio: 0.0 };
        assert!(!config.tells(&record()));
        assert!(config.tells(&Record { outcome: RecordOutcome::Error, ..record() }));
        assert!(Config { file: None, ratio: 1.0 }.tells(&record()));
    }
}
