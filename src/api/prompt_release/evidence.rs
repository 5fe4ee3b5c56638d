//! What was counted of both variants.

use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Sample;
use crate::api::schema::free_object;

/// The word for what went wrong in another way than the ones that are counted by name.
pub const OTHER: &str = "other";

/// The counters of one variant in one gateway process, for the current routing
/// generation. All but `open` only ever grow, so that merging by the later never counts
/// twice.
///
/// Every request that was drawn for the variant is in exactly one place: `assigned` =
/// `requests` + `refused` + `unfinished` + `excluded` + `turnedAway.waiting` + `open`, and of a
/// shadow `paired.unsent`. Of a gateway that does not report, the requests that were open
/// are forgotten: they stay in `assigned`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Requests whose fair draw chose this side, whatever became of them.
    pub assigned: u64,
    /// Of these, those that this side answered or failed to answer.
    pub requests: u64,
    /// Of the answered or failed requests, those that failed.
    pub errors: u64,
    /// Drawn requests that the model refused as the application's mistake (4xx) and that
    /// nobody else was asked for, or refused too.
    #[serde(skip_serializing_if = "is_none")]
    pub refused: u64,
    /// Drawn requests whose application went away before the answer was complete.
    #[serde(skip_serializing_if = "is_none")]
    pub unfinished: u64,
    /// Of the answered requests, those whose answer could not be understood.
    #[serde(skip_serializing_if = "is_none")]
    pub unjudged: u64,
    /// Drawn requests that are no evidence by a rule that does not depend on the outcome:
    /// a cache had an answer of one of the variants.
    #[serde(skip_serializing_if = "is_none")]
    pub excluded: u64,
    /// Drawn requests that an open breaker kept away from this side.
    #[serde(skip_serializing_if = "TurnedAway::is_empty")]
    pub turned_away: TurnedAway,
    /// Failures by the stable word for what went wrong. At most 7 words; what came after
    /// them is `other`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, u64>,
    /// Refused requests by the stable word for why. At most 7 words; what came after
    /// them is `other`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refusals: BTreeMap<String, u64>,
    /// Answers that failed a check or could not be understood, by what was found. At most 8
    /// words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub flaws: BTreeMap<String, u64>,
    /// Answers that were checked.
    pub checked: u64,
    /// Of the checked answers, those that failed a check.
    pub check_failures: u64,
    /// Time to first token: how many fell into each bucket of the shared scale, by bucket index.
    pub ttft: BTreeMap<u8, u64>,
    /// Duration of complete answers: how many fell into each bucket of the shared scale, by bucket index.
    pub duration: BTreeMap<u8, u64>,
    /// How long requests waited that ended without an answer, or whose answer was not complete.
    #[serde(skip_serializing_if = "Waits::is_empty")]
    pub waited: Waits,
    /// Drawn requests that were open when these counts were read, by how long they had been.
    #[serde(skip_serializing_if = "Waits::is_empty")]
    pub open: Waits,
    /// USD per request.
    pub cost: Sums,
    /// How the cost goes with what was asked.
    #[serde(skip_serializing_if = "ByInput::is_empty")]
    pub cost_by_input: ByInput,
    /// Feedback by score name. At most 16.
    pub scores: BTreeMap<String, Sums>,
    /// Requests with a sticky key, by groups of keys: how much more alike the requests
    /// of one key are than those of different keys.
    #[serde(skip_serializing_if = "Groups::is_empty")]
    pub groups: Groups,
    /// The same of single callers, by team or tenant: those with most requests, at most 8.
    /// Empty while there is only one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub callers: BTreeMap<String, CallerCounts>,
    /// What both variants made of the same requests; only of a shadow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired: Option<Paired>,
    /// When these counts were read, in milliseconds since the process started: of two
    /// reports of one process the later one counts.
    #[serde(skip_serializing_if = "is_none")]
    pub read_at: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Counts {
    /// So many requests that were turned away count as a probe that has ended.
    pub fn judge(&mut self, turned_away: u64, failed: bool) {
        self.requests += turned_away;
        self.errors += self.turned_away.judge(turned_away, failed);
    }

    /// Drawn requests that have ended with an outcome of this side, or that their
    /// application gave up.
    pub fn ended(&self) -> u64 {
        self.requests.saturating_add(self.refused).saturating_add(self.unfinished)
    }

    /// Drawn requests that were open when the counts were read.
    pub fn open(&self) -> u64 {
        self.open.duration.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// Requests by how long they have waited, without having got what they waited for: how
/// many fell into each bucket of the shared scale, by bucket index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Waits {
    /// For the first token.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ttft: BTreeMap<u8, u64>,
    /// For the whole answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub duration: BTreeMap<u8, u64>,
}

impl Waits {
    /// Nobody waited.
    pub fn is_empty(&self) -> bool {
        self.ttft.is_empty() && self.duration.is_empty()
    }
}

/// Requests that an open breaker kept away from the side that they were drawn for. While
/// it is open, some requests are let through as probes: a sample of those that were drawn
/// meanwhile. Each that was turned away counts as the probe that is nearest to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TurnedAway {
    /// Requests that were turned away and counted by a probe; part of `requests`.
    pub requests: u64,
    /// Of these, those that count as failed; part of `errors`.
    pub errors: u64,
    /// Requests that were turned away and wait for a probe's outcome.
    pub waiting: u64,
    /// Probes that ended.
    pub probes: u64,
    /// Of these, those that failed.
    pub probe_errors: u64,
}

impl TurnedAway {
    /// Nobody was turned away and nothing was probed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// So many of those that wait count as a probe that has ended: how many of them failed.
    fn judge(&mut self, waited: u64, failed: bool) -> u64 {
        let errors = if failed { waited } else { 0 };
        self.waiting = self.waiting.saturating_sub(waited);
        self.requests += waited;
        self.errors += errors;
        errors
    }

    /// A probe has ended.
    pub fn add_probe(&mut self, failed: bool) {
        self.probes += 1;
        self.probe_errors += u64::from(failed);
    }
}

/// Sums over groups of sticky keys. Each key belongs to one of 32 groups by its hash,
/// in every gateway the same. Position i of each list is group i; empty lists are zeros.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Groups {
    /// Requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<u64>,
    /// Of these, those that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<u64>,
    /// Requests that were refused as the application's mistake.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<u64>,
    /// Requests that their application gave up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<u64>,
    /// Answers that were checked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checked: Vec<u64>,
    /// Of these, those that failed a check.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub check_failures: Vec<u64>,
    /// Requests whose cost is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<u64>,
    /// Their USD.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cost: Vec<f64>,
    /// The KiB of input of these requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub input: Vec<f64>,
    /// Feedback by score name. At most 16.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, GroupedScore>,
    /// How long requests that ended had waited for their first token; four buckets at a time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ttft: BTreeMap<u8, Vec<u64>>,
    /// The same for their whole answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub duration: BTreeMap<u8, Vec<u64>>,
}

impl Groups {
    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was counted of the requests of one caller.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CallerCounts {
    /// Requests.
    #[serde(skip_serializing_if = "is_none")]
    pub requests: u64,
    /// Of these, those that failed.
    #[serde(skip_serializing_if = "is_none")]
    pub errors: u64,
    /// Requests that were refused as the application's mistake.
    #[serde(skip_serializing_if = "is_none")]
    pub refused: u64,
    /// Requests that the application gave up.
    #[serde(skip_serializing_if = "is_none")]
    pub unfinished: u64,
    /// Answers that could not be understood.
    #[serde(skip_serializing_if = "is_none")]
    pub unjudged: u64,
    /// Answers that were checked.
    #[serde(skip_serializing_if = "is_none")]
    pub checked: u64,
    /// Of these, those that failed a check.
    #[serde(skip_serializing_if = "is_none")]
    pub check_failures: u64,
    /// Time to first token: how many fell into four buckets of the shared scale at a time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ttft: BTreeMap<u8, u64>,
    /// Duration: how many fell into four buckets of the shared scale at a time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub duration: BTreeMap<u8, u64>,
    /// How long requests waited that ended without an answer; four buckets at a time.
    #[serde(skip_serializing_if = "Waits::is_empty")]
    pub waited: Waits,
    /// Drawn requests that were open when these counts were read; four buckets at a time.
    #[serde(skip_serializing_if = "Waits::is_empty")]
    pub open: Waits,
    /// Drawn requests that an open breaker kept away from this side, and its own probes.
    #[serde(skip_serializing_if = "TurnedAway::is_empty")]
    pub turned_away: TurnedAway,
    /// USD per request.
    #[serde(skip_serializing_if = "Sums::is_empty")]
    pub cost: Sums,
    /// How it goes with what was asked.
    #[serde(skip_serializing_if = "ByInput::is_empty")]
    pub cost_by_input: ByInput,
    /// Feedback by score name. At most 16.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Sums>,
}

impl CallerCounts {
    /// So many requests that were turned away count as a probe that has ended.
    pub fn judge(&mut self, turned_away: u64, failed: bool) {
        self.requests += turned_away;
        self.errors += self.turned_away.judge(turned_away, failed);
    }

    /// Requests that have ended, or that the application gave up.
    pub fn ended(&self) -> u64 {
        self.requests.saturating_add(self.refused).saturating_add(self.unfinished)
    }

    /// Drawn requests that have not ended: open, or turned away and not judged.
    pub fn pending(&self) -> u64 {
        let waiting = self.turned_away.waiting;
        self.open.duration.values().fold(waiting, |sum, n| sum.saturating_add(*n))
    }
}

/// One score by groups of sticky keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupedScore {
    /// How many.
    pub counts: Vec<u64>,
    /// Their sum.
    pub sums: Vec<f64>,
}

/// What both variants made of the same requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Paired {
    /// Did they fail?
    pub errors: PairTable,
    /// Did their answers fail a check? Only of requests that both answered.
    pub checks: PairTable,
    /// USD that the canary's copy cost more than stable's answer; negative is less.
    pub cost: Sums,
    /// USD of stable's answers to these requests.
    pub stable_cost: Sums,
    /// The canary's score less stable's, by score name. At most 16.
    pub scores: BTreeMap<String, Sums>,
    /// USD that the copies cost, all together, as far as it is known.
    pub spent_usd: f64,
    /// Copies of which nobody knows what they cost.
    pub unpriced: u64,
    /// Copies that were not sent or not paired, because there was no room or stable had no outcome.
    pub dropped: u64,
    /// Of the dropped copies, those that were not sent.
    #[serde(skip_serializing_if = "is_none")]
    pub unsent: u64,
}

/// Pairs of outcomes of the same requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PairTable {
    /// Both were good.
    pub neither: u64,
    /// Only the canary was bad.
    pub canary_only: u64,
    /// Only stable was bad.
    pub stable_only: u64,
    /// Both were bad.
    pub both: u64,
}

impl PairTable {
    /// How many pairs.
    pub fn pairs(&self) -> u64 {
        [self.canary_only, self.stable_only, self.both]
            .iter()
            .fold(self.neither, |n, more| n.saturating_add(*more))
    }
}

/// The sufficient statistics of a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sums {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
    /// The sum of their cubes: how skewed they are.
    pub cubes: f64,
}

impl Sums {
    /// Nothing was observed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Sums over the requests whose cost is known: of their input in KiB (x) and of its products
/// with the cost in USD (y). Input is what applications and users say, without what models and
/// tools said in a conversation before: it is known before the answer, and no variant changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ByInput {
    /// How many.
    pub count: u64,
    /// The sum of x.
    pub x: f64,
    /// The sum of its squares.
    pub x2: f64,
    /// The sum of its cubes.
    pub x3: f64,
    /// The sum of x y.
    pub xy: f64,
    /// The sum of x² y.
    pub x2y: f64,
    /// The sum of x y².
    pub xy2: f64,
}

impl ByInput {
    /// Nothing was observed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds one request with its input and cost.
    pub fn add(&mut self, x: f64, y: f64) {
        self.count += 1;
        self.x += x;
        self.x2 += x * x;
        self.x3 += x * x * x;
        self.xy += x * y;
        self.x2y += x * x * y;
        self.xy2 += x * y * y;
    }

    /// All sums of x and its products, to add or take others.
    pub fn sums_mut(&mut self) -> [&mut f64; 6] {
        let Self { count: _, x, x2, x3, xy, x2y, xy2 } = self;
        [x, x2, x3, xy, x2y, xy2]
    }
}

/// What one gateway process has counted under the current routing generation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceEvidence {
    /// The process, by an id that it drew when it started.
    #[schemars(length(max = 64))]
    pub instance: String,
    /// What it counted of the side that is compared with: `assigned` requests were drawn for it,
    /// and of these `requests` were answered or failed, `errors` failed, `refused` were refused,
    /// `unfinished` given up and `open` under way.
    #[schemars(schema_with = "free_object")]
    pub stable: Arc<Counts>,
    /// The same of the side under comparison.
    #[schemars(schema_with = "free_object")]
    pub canary: Arc<Counts>,
}

/// What an earlier step of the running canary has counted, of all gateway processes
/// together: evidence of the whole canary, where the policy pools it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepEvidence {
    /// The index of the step, from 0.
    pub step: i32,
    /// The side that is compared with.
    pub stable: Arc<Counts>,
    /// The side under comparison.
    pub canary: Arc<Counts>,
    /// Counts from Prometheus, by the metric's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub external: BTreeMap<String, ExternalCounts>,
}

/// Counts of both variants from Prometheus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalCounts {
    /// The side that is compared with.
    pub stable: Sample,
    /// The side under comparison.
    pub canary: Sample,
}
