//! Metrics for Prometheus. Labels hold only routes and revisions of the table and
//! words of ours, so their number is bounded.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::{routes::Tally, sinks::Sink};
use crate::audit::record::{AssignmentReason, CheckResult, Record, RecordOutcome};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    release: String,
    revision: String,
    reason: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    release: String,
    revision: String,
    /// Whose requests: of `users`, or copies for a `shadow`. What copies cost comes on
    /// top of what answering users costs, so neither hides in the other.
    traffic: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    release: String,
    revision: String,
    why: &'static str,
}

type Seconds = Family<Of, Histogram, fn() -> Histogram>;

/// The exported metrics of a gateway.
pub(super) struct Exported {
    registry: Registry,
    requests: Family<Request, Counter>,
    first_token: Seconds,
    duration: Seconds,
    check_failures: Family<Of, Counter>,
    dropped: Family<Dropped, Counter>,
}

fn latencies() -> Histogram {
    Histogram::new([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2])
}

impl Default for Exported {
    fn default() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("serinus_gateway"),
            requests: Family::default(),
            first_token: Family::new_with_constructor(latencies),
            duration: Family::new_with_constructor(latencies),
            check_failures: Family::default(),
            dropped: Family::default(),
        };
        let r = &mut this.registry;
        r.register("requests", "Attempts on a variant", this.requests.clone());
        r.register(
            "time_to_first_token_seconds",
            "Until the first token",
            this.first_token.clone(),
        );
        r.register("duration_seconds", "Until the end of the answer", this.duration.clone());
        r.register("check_failures", "Answers that failed a check", this.check_failures.clone());
        r.register("dropped_copies", "Copies for a shadow without a pair", this.dropped.clone());
        this
    }
}

impl Exported {
    /// Also exports what `collector` counts by itself.
    pub(super) fn with(collector: impl Collector) -> Self {
        let mut this = Self::default();
        this.registry.register_collector(Box::new(collector));
        this
    }

    /// A copy for a shadow was not sent, or has no pair.
    pub(super) fn copy_dropped(&self, release: &str, revision: &str, why: &'static str) {
        let of = Dropped { release: release.to_owned(), revision: revision.to_owned(), why };
        self.dropped.get_or_create(&of).inc();
    }

    /// The text that Prometheus scrapes.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

impl Sink for Exported {
    fn consume(&self, record: &Record, _: Option<&Arc<Tally>>) {
        let outcome = match record.outcome {
            RecordOutcome::Ok => "ok",
            RecordOutcome::ClientError => "client_error",
            RecordOutcome::Error => "error",
            RecordOutcome::Cancelled => "cancelled",
        };
        let copy = record.reason == AssignmentReason::Shadow;
        let of = Of {
            release: record.origin.release.clone(),
            revision: record.origin.revision.clone(),
            traffic: if copy { "shadow" } else { "users" },
        };
        let request = Request {
            release: of.release.clone(),
            revision: of.revision.clone(),
            reason: record.reason.as_str(),
            outcome,
        };
        self.requests.get_or_create(&request).inc();
        if copy && record.pair().is_none() {
            self.copy_dropped(&record.origin.release, &record.origin.revision, "not_paired");
        }
        if record.outcome != RecordOutcome::Ok {
            return;
        }
        if let Some(seconds) = record.first_token_seconds {
            self.first_token.get_or_create(&of).observe(seconds);
        }
        self.duration.get_or_create(&of).observe(record.duration_seconds);
        if record.check.is_some_and(|c| c != CheckResult::Passed) {
            self.check_failures.get_or_create(&of).inc();
        }
    }
}
