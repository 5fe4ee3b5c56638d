//! The operator's metrics for Prometheus. Labels are words of ours, and names of LLMDeployments
//! whose model ends.

use std::{sync::Arc, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::{signals::prometheus::Round, telemetry::log::Lost};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Transition {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    namespace: String,
    llmdeployment: String,
}

/// The exported metrics of an operator.
pub struct Exported {
    registry: Registry,
    reconciles: Family<Kind, Histogram, fn() -> Histogram>,
    failures: Family<Failure, Counter>,
    writes: Family<Kind, Counter>,
    transitions: Family<Transition, Counter>,
    phases: Family<Phase, Gauge>,
    problems: Family<Reason, Gauge>,
    unwritten: Gauge,
    model_days_left: Family<Backend, Gauge>,
    leader: Gauge,
    gateways: Gauge,
    gateways_silent: Gauge,
    gateways_unproven: Gauge,
    prometheus_queries: Counter,
    prometheus_failures: Family<Reason, Counter>,
}

fn durations() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0])
}

impl Default for Exported {
    fn default() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("serinus"),
            reconciles: Family::new_with_constructor(durations),
            failures: Family::default(),
            writes: Family::default(),
            transitions: Family::default(),
            phases: Family::default(),
            problems: Family::default(),
            unwritten: Gauge::default(),
            model_days_left: Family::default(),
            leader: Gauge::default(),
            gateways: Gauge::default(),
            gateways_silent: Gauge::default(),
            gateways_unproven: Gauge::default(),
            prometheus_queries: Counter::default(),
            prometheus_failures: Family::default(),
        };
        let r = &mut this.registry;
        r.register("reconcile_seconds", "Time of one reconcile", this.reconciles.clone());
        r.register("reconcile_failures", "Reconciles that are tried again", this.failures.clone());
        r.register("writes", "Writes to the API server", this.writes.clone());
        r.register("transitions", "What happened to releases", this.transitions.clone());
        r.register("releases", "Releases by phase; told by the leader", this.phases.clone());
        r.register(
            "operator_problems",
            "Releases that are not well, by the reason of their Ready condition; told by the leader",
            this.problems.clone(),
        );
        r.register(
            "releases_unwritten",
            "Releases whose last decision could not be made or written; told by the leader",
            this.unwritten.clone(),
        );
        r.register(
            "model_days_left",
            "Days until the model of an LLMDeployment ends, where that is known, less than 0 after it; told by the leader",
            this.model_days_left.clone(),
        );
        r.register("leader", "1 while this operator leads", this.leader.clone());
        r.register("gateways", "Gateways that should follow", this.gateways.clone());
        r.register(
            "gateways_silent",
            "Of these, those that did not answer",
            this.gateways_silent.clone(),
        );
        r.register(
            "gateways_unproven",
            "Addresses of gateways whose answer was rejected: it is not signed with the gateways' key",
            this.gateways_unproven.clone(),
        );
        r.register(
            "prometheus_queries",
            "Queries sent to Prometheus",
            this.prometheus_queries.clone(),
        );
        r.register(
            "prometheus_query_failures",
            "Of these, those that brought no number",
            this.prometheus_failures.clone(),
        );
        this
    }
}

impl Exported {
    /// Also exports how many lines the log has lost.
    #[must_use]
    pub fn with_log(mut self, lost: Arc<Lost>) -> Self {
        self.registry.register_collector(Box::new(LostLines(lost)));
        self
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Observes the time until it is dropped.
    pub fn timing(&self, kind: &'static str) -> impl Drop + use<> {
        Timing(Instant::now(), self.reconciles.get_or_create(&Kind { kind }).clone())
    }

    pub(super) fn failed(&self, kind: &'static str, reason: &'static str) {
        self.failures.get_or_create(&Failure { kind, reason }).inc();
    }

    pub(super) fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&Kind { kind }).inc();
    }

    pub(super) fn announced(&self, reason: &str) {
        self.transitions.get_or_create(&Transition { reason: reason.to_owned() }).inc();
    }

    pub(super) fn lead(&self, leading: bool) {
        self.leader.set(i64::from(leading));
    }

    pub(super) fn gateways(&self, [all, silent, unproven]: [usize; 3]) {
        let gauges = [&self.gateways, &self.gateways_silent, &self.gateways_unproven];
        for (gauge, count) in gauges.into_iter().zip([all, silent, unproven]) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn asked_prometheus(&self, round: &Round) {
        self.prometheus_queries.inc_by(u64::try_from(round.sent).unwrap_or(u64::MAX));
        for reason in &round.failed {
            self.prometheus_failures.get_or_create(&Reason { reason }).inc();
        }
    }

    /// Counts of releases that are not well. Reasons without releases are left out.
    pub(super) fn problems(&self, counts: impl IntoIterator<Item = (&'static str, i64)>) {
        self.problems.clear();
        for (reason, count) in counts {
            self.problems.get_or_create(&Reason { reason }).set(count);
        }
    }

    /// How many releases the leader could not decide about.
    pub(super) fn unwritten(&self, count: usize) {
        self.unwritten.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many days are left of models, by namespace and name of the LLMDeployment.
    pub(super) fn models(&self, left: impl IntoIterator<Item = (String, String, i32)>) {
        self.model_days_left.clear();
        for (namespace, llmdeployment, days) in left {
            let backend = Backend { namespace, llmdeployment };
            self.model_days_left.get_or_create(&backend).set(i64::from(days));
        }
    }

    /// Counts of releases by phase. Phases without releases are left out.
    pub(super) fn phases(&self, counts: impl IntoIterator<Item = (String, i64)>) {
        self.phases.clear();
        for (phase, count) in counts {
            self.phases.get_or_create(&Phase { phase }).set(count);
        }
    }
}

struct Timing(Instant, Histogram);

impl Drop for Timing {
    fn drop(&mut self) {
        self.1.observe(self.0.elapsed().as_secs_f64());
    }
}

/// Lines that the log has lost, by the reason.
#[derive(Debug)]
struct LostLines(Arc<Lost>);

impl Collector for LostLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (name, help) = ("lost_log_lines", "Lines of the log that nobody can read");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, lines) in self.0.counts() {
            ConstCounter::new(lines).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_lines_of_the_log_are_exported() {
        let text = Exported::default().with_log(Arc::default()).text();
        for reason in ["queue_full", "unwritten"] {
            let line = format!("serinus_lost_log_lines_total{{reason=\"{reason}\"}} 0");
            assert!(text.contains(&line), "{text}");
        }
    }
}
