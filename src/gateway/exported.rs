//! Metrics for Prometheus.
//!
//! Names and buckets of what OpenTelemetry's conventions for generative AI define are
//! theirs; the rest is `serinus_gateway_*`. Labels hold only routes and revisions of the
//! table, words of ours and a bounded number of teams.
//!
//! A request finds the series of its variant by the address of the variant's `Origin`,
//! which all its records share, and then touches counters: no label is hashed or copied.
//! The series of a variant that has left the table, so that nobody but this module holds
//! its `Origin`, are kept until every scraper has seen their last values, and then go.

mod labels;
mod variant;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        exemplar::HistogramWithExemplars,
        family::{Family, MetricConstructor},
        gauge::ConstGauge,
    },
    registry::{Registry, Unit},
};

use self::{
    labels::{Asked, Attempt, Checked, Dropped, Ended, Spent, Taken, TokenType, Trace},
    variant::{Measure, Variant},
};
use super::sinks::Sink;
use crate::{
    audit::record::{AssignmentReason, CheckResult, Origin, Record, RecordOutcome},
    telemetry::Telemetry,
};

/// As the conventions want them, for seconds of a whole operation.
const DURATION: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// For seconds to the first token.
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// For seconds per output token.
const PER_TOKEN: [f64; 13] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// For tokens: powers of four.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// So long the series of a variant stay that has left the table: several intervals of
/// any scraper.
const FAREWELL: Duration = Duration::from_secs(600);
/// More teams than this share the label `other`: names may come from tokens.
const TEAMS: usize = 256;

type Histogram = HistogramWithExemplars<Trace>;
type Usd = Counter<f64, std::sync::atomic::AtomicU64>;

/// Makes histograms of one kind.
#[derive(Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms<L> = Family<L, Histogram, Buckets>;

/// All series of one kind each.
struct Families {
    attempts: Family<Attempt, Counter>,
    cost: Family<Spent, Usd>,
    priced: Family<Spent, Counter>,
    unpriced: Family<Spent, Counter>,
    tokens: Family<Taken, Counter>,
    check_failures: Family<Checked, Counter>,
    unjudged: Family<Checked, Counter>,
    dropped: Family<Dropped, Counter>,
    duration: Histograms<Ended>,
    first_token: Histograms<Asked>,
    per_token: Histograms<Asked>,
    usage: Histograms<TokenType>,
}

impl Families {
    fn register(registry: &mut Registry) -> Self {
        let histograms = |buckets| Buckets(buckets);
        let this = Self {
            attempts: Family::default(),
            cost: Family::default(),
            priced: Family::default(),
            unpriced: Family::default(),
            tokens: Family::default(),
            check_failures: Family::default(),
            unjudged: Family::default(),
            dropped: Family::default(),
            duration: Family::new_with_constructor(histograms(&DURATION)),
            first_token: Family::new_with_constructor(histograms(&FIRST_TOKEN)),
            per_token: Family::new_with_constructor(histograms(&PER_TOKEN)),
            usage: Family::new_with_constructor(histograms(&TOKENS)),
        };
        let r = &mut *registry;
        for (name, help, metric) in [
            (
                "gen_ai_server_time_to_first_token",
                "Until the first token of a stream",
                &this.first_token,
            ),
            (
                "gen_ai_server_time_per_output_token",
                "From one output token to the next, after the first",
                &this.per_token,
            ),
        ] {
            r.register_with_unit(name, help, Unit::Seconds, metric.clone());
        }
        let duration = this.duration.clone();
        r.register_with_unit(
            "gen_ai_client_operation_duration",
            "Until the end of the answer",
            Unit::Seconds,
            duration,
        );
        r.register("gen_ai_client_token_usage", "Tokens of one request", this.usage.clone());
        let r = registry.sub_registry_with_prefix("serinus_gateway");
        r.register("requests", "Attempts on a variant", this.attempts.clone());
        r.register("cost_usd", "Cost in US dollars", this.cost.clone());
        r.register("priced_requests", "Requests whose cost is known", this.priced.clone());
        r.register(
            "unpriced_requests",
            "Answers whose cost is not known: no price, or no tokens told",
            this.unpriced.clone(),
        );
        r.register(
            "tokens",
            "Tokens by kind; cached and reasoning tokens are parts of the others",
            this.tokens.clone(),
        );
        r.register("check_failures", "Answers that failed a check", this.check_failures.clone());
        r.register(
            "unjudged_answers",
            "Answers of which the check can not say whether they are good",
            this.unjudged.clone(),
        );
        r.register("dropped_copies", "Copies for a shadow without a pair", this.dropped.clone());
        this
    }
}

/// The exported metrics of a gateway.
pub(super) struct Exported {
    registry: Registry,
    families: Families,
    /// By the address of an origin.
    found: RwLock<HashMap<usize, Found>>,
    variants: Mutex<HashMap<VariantKey, Kept>>,
    teams: Mutex<HashSet<Arc<str>>>,
}

/// Release, revision, and whether it is about copies.
type VariantKey = (String, String, bool);

/// The variant of an origin.
struct Found {
    /// Kept so that no other gets the same address.
    origin: Arc<Origin>,
    users: Option<Arc<Variant>>,
    copies: Option<Arc<Variant>>,
}

impl Found {
    fn of(&mut self, copies: bool) -> &mut Option<Arc<Variant>> {
        if copies { &mut self.copies } else { &mut self.users }
    }
}

struct Kept {
    variant: Arc<Variant>,
    /// Since when no origin has it.
    left: Option<Instant>,
}

impl Default for Exported {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Exported {
    /// `telemetry` tells what became of spans and log lines.
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        registry.register_collector(Box::new(Told(telemetry)));
        let (found, variants, teams) = Default::default();
        Self { registry, families, found, variants, teams }
    }

    /// Also exports what `collector` counts.
    pub(super) fn also(&mut self, collector: impl Collector) {
        let ours = self.registry.sub_registry_with_prefix("serinus_gateway");
        ours.register_collector(Box::new(collector));
    }

    /// Also exports how many requests have ended in a panic.
    pub(super) fn counts_panics(&mut self, panics: Counter) {
        let ours = self.registry.sub_registry_with_prefix("serinus_gateway");
        ours.register("panics", "Requests that ended in a fault of the gateway itself", panics);
    }

    /// A copy for a shadow was not sent, or has no pair.
    pub(super) fn copy_dropped(&self, origin: &Arc<Origin>, why: &'static str) {
        self.variant(origin, true).dropped(&self.families, why).inc();
    }

    /// The text that Prometheus scrapes.
    pub(super) fn text(&self) -> String {
        self.retire(Instant::now());
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    fn variant(&self, origin: &Arc<Origin>, copies: bool) -> Arc<Variant> {
        let known = self.found.read().ok().and_then(|all| {
            let found = all.get(&address(origin))?;
            if copies { found.copies.clone() } else { found.users.clone() }
        });
        known.unwrap_or_else(|| self.find(origin, copies))
    }

    fn find(&self, origin: &Arc<Origin>, copies: bool) -> Arc<Variant> {
        let key = (origin.release.clone(), origin.revision.clone(), copies);
        let new = || Arc::new(Variant::new(origin, copies));
        let Ok(mut variants) = self.variants.lock() else { return new() };
        let kept = variants.entry(key).or_insert_with(|| Kept { variant: new(), left: None });
        let variant = kept.variant.clone();
        let known = self.found.write().map_or(0, |mut all| {
            let found = all.entry(address(origin)).or_insert_with(|| Found {
                origin: origin.clone(),
                users: None,
                copies: None,
            });
            *found.of(copies) = Some(variant.clone());
            all.len()
        });
        drop(variants);
        // Also where nobody scrapes, what has left must go.
        if known.is_power_of_two() {
            self.retire(Instant::now());
        }
        variant
    }

    /// Lets go of origins that nobody else has, and of series that have had none for long.
    fn retire(&self, now: Instant) {
        // In this order, as in `find`: nobody finds a variant while it goes.
        let Ok(mut variants) = self.variants.lock() else { return };
        if let Ok(mut found) = self.found.write() {
            found.retain(|_, found| Arc::strong_count(&found.origin) > 1);
        }
        variants.retain(|_, kept| {
            if Arc::strong_count(&kept.variant) > 1 {
                kept.left = None;
                return true;
            }
            let left = *kept.left.get_or_insert(now);
            let stays = now.saturating_duration_since(left) < FAREWELL;
            if !stays {
                kept.variant.remove_from(&self.families);
            }
            stays
        });
    }

    /// The label of a team, of which there is a bounded number.
    fn team(&self, name: &str) -> Arc<str> {
        let Ok(mut teams) = self.teams.lock() else { return "other".into() };
        if let Some(known) = teams.get(name) {
            return known.clone();
        }
        if teams.len() >= TEAMS {
            return "other".into();
        }
        let team: Arc<str> = name.into();
        teams.insert(team.clone());
        team
    }
}

fn address(origin: &Arc<Origin>) -> usize {
    Arc::as_ptr(origin) as usize
}

impl Sink for Exported {
    fn consume(&self, record: &Arc<Record>) {
        let copy = record.reason == AssignmentReason::Shadow;
        let (variant, families) = (self.variant(&record.origin, copy), &self.families);
        variant.attempts(families, record.role, record.reason, record.outcome).inc();
        if copy && record.pair().is_none() {
            variant.dropped(families, "not_paired").inc();
        }
        let team = record.caller.as_ref().map_or("", |caller| caller.team.as_str());
        variant.spend(families, team, || self.team(team), record);
        let trace = || {
            let trace = record.trace.filter(|trace| trace.sampled)?;
            Some(Trace::from(trace))
        };
        let error = match record.outcome {
            RecordOutcome::Ok => "",
            RecordOutcome::Cancelled => "cancelled",
            RecordOutcome::Error | RecordOutcome::ClientError => record.error.unwrap_or("_OTHER"),
        };
        let duration = record.duration_seconds;
        variant.duration(families, record.operation, error).observe(duration, trace(), None);
        if record.outcome != RecordOutcome::Ok {
            return;
        }
        for (measure, value) in [
            // Of a JSON answer it is the same as the duration, and tells nothing.
            (Measure::FirstToken, record.first_token_seconds.filter(|_| record.streamed)),
            (Measure::PerToken, record.seconds_per_output_token),
            (Measure::Input, record.tokens.input.map(|tokens| tokens as f64)),
            (Measure::Output, record.tokens.output.map(|tokens| tokens as f64)),
        ] {
            if let Some(value) = value {
                let histogram = variant.measure(families, record.operation, measure);
                histogram.observe(value, trace(), None);
            }
        }
        if let Some(check) = record.check.filter(|check| *check != CheckResult::Passed) {
            variant.checked(families, check).inc();
        }
    }
}

/// What became of spans and log lines.
struct Told(Arc<Telemetry>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (name, help) =
            ("serinus_gateway_telemetry", "Spans and log lines by what became of them");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (what, outcome, count) in self.0.counts() {
            let labels = [("what", what), ("outcome", outcome)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) =
            ("serinus_gateway_telemetry_waiting_spans", "Spans that wait to be sent");
        let waiting = ConstGauge::new(i64::try_from(self.0.waiting()).unwrap_or(i64::MAX));
        waiting.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}

#[cfg(test)]
mod tests;
