//! What the tests say about what was counted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::schema::{free_object, if_readable};

/// The answer of a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Verdict {
    /// Shown to be good enough.
    Pass,
    /// Shown to be worse than the harm margin, or beyond the floor.
    Fail,
    /// No answer yet: goes on collecting.
    Undecided,
    /// All samples are there and there is no answer.
    Inconclusive,
    /// Nothing to judge.
    #[default]
    NoData,
}

impl Verdict {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Undecided => "collecting",
            Self::Inconclusive => "no answer",
            Self::NoData => "no data",
        }
    }
}

/// What one variant contributed to a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// How many were measured.
    pub count: i64,
    /// The share that was bad, or the mean.
    pub value: f64,
}

/// The unit of a metric's values and differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Unit {
    /// Values are shares of requests, differences are differences of shares.
    #[default]
    Share,
    /// Values are mean scores from 0 to 1, differences are differences of means.
    Score,
    /// Values are US dollars, differences are relative to stable's mean.
    Relative,
    /// A plain value, which is not compared.
    Value,
}

impl Unit {
    /// A value as people read it.
    pub fn value(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:.1} %", unsigned_zero(value * 100.0, 1)),
            Self::Score => format!("{:.3}", unsigned_zero(value, 3)),
            Self::Relative => format!("${:.6}", unsigned_zero(value, 6)),
            Self::Value => format!("{value}"),
        }
    }

    /// A value and of how many it is: `3.1 % of 1204`.
    pub fn sample(self, Sample { count, value }: Sample) -> String {
        format!("{} of {count}", self.value(value))
    }

    /// A difference as people read it.
    pub fn difference(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:+.1} points", unsigned_zero(value * 100.0, 1)),
            Self::Score | Self::Value => format!("{:+.3}", unsigned_zero(value, 3)),
            Self::Relative => format!("{:+.1} %", unsigned_zero(value * 100.0, 1)),
        }
    }
}

/// What reads as zero with so many digits has no sign: an error of rounding is not below nothing.
fn unsigned_zero(value: f64, digits: i32) -> f64 {
    if value.abs() * 10_f64.powi(digits) < 0.5 { 0.0 } else { value }
}

/// The batches of a step: what was counted from one collection to the next.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Batches {
    /// How many there were with requests of the canary.
    pub count: i32,
    /// Those in which the canary looked worst beside stable, the worst first.
    pub worst: Vec<Batch>,
    /// In so many of the latest ones in a row it was worse by more than the harm margin.
    #[serde(default)]
    pub bad_in_a_row: i32,
    /// Of a latency, all requests of the step that are not open any more, and the share of them
    /// that was slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Batch>,
    /// Without these the canary would be rolled back no more; nothing is decided on them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub decide: bool,
}

/// Whether the canary turned bad within a step, whose average says little of that.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    /// What both sides had counted when it was last asked.
    pub counted: Batch,
    /// How often it was asked.
    #[serde(default)]
    pub batches: i32,
    /// The evidence that the canary is worse than the harm margin from one of these times on,
    /// as the logarithm of an e-value.
    #[serde(default)]
    pub log_e: f64,
    /// The same evidence, summed since it last was none: zero while the canary looks no worse.
    #[serde(default)]
    pub sum: f64,
    /// Since when the canary looks worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<TurnedSince>,
}

/// When a canary began to look worse.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnedSince {
    /// What both sides had counted then.
    pub at: Batch,
    /// The same without the requests of each caller that may not decide alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub without: BTreeMap<String, Batch>,
    /// The batches since then.
    pub batches: Batches,
}

/// What both sides showed between two collections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Batch {
    /// The variant that is compared with.
    pub stable: Sample,
    /// The variant under comparison.
    pub canary: Sample,
}

/// The evidence on one metric.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// The metric's name in the policy.
    #[schemars(length(max = 32))]
    pub metric: String,
    /// The unit of its values and differences.
    #[serde(default)]
    pub unit: Unit,
    /// The answer.
    pub verdict: Verdict,
    /// Why, in a few words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
    /// Both sides are beyond the metric's floor: as long as that is so, the step neither
    /// passes nor fails by the floor. The numbers of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub floor_on_both_sides: Option<String>,
    /// The variant that is compared with.
    #[serde(default)]
    pub stable: Sample,
    /// The variant under comparison.
    #[serde(default)]
    pub canary: Sample,
    /// How much worse the canary is, in the unit of the margins; negative is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<f64>,
    /// The difference lies between these with the confidence of the last look:
    /// above harm fails, below accept passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 2))]
    pub interval: Option<[f64; 2]>,
    /// The margin beyond which the canary is rolled back.
    #[serde(default)]
    pub harm: f64,
    /// The margin under which the canary is accepted.
    #[serde(default)]
    pub accept: f64,
    /// The frozen latency threshold, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Stable's answers that chose the threshold in this step. They stay in the comparison,
    /// which counts one slow answer more for the choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Sample>,
    /// A built-in comparison that the policy does not name: it can fail the canary and need
    /// not pass, but nothing passes while its difference lies beyond its accept margin.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guard: bool,
    /// The chance to be accepted by the horizon if it goes on like this, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// The fraction of its samples (or, of pooled steps, of their planned size) at which it is
    /// expected to be accepted if it goes on like this; 1: at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<f64>,
    /// The evidence for harm that may be looked at any time, as the logarithm of an e-value.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub log_e: f64,
    /// How many looks in a row a plain value was within its limits; negative: beyond them.
    #[serde(default, skip_serializing_if = "is_none_in_a_row")]
    pub streak: i32,
    /// The looks so far, as fractions of the horizon (the last may be beyond it); the test's error is spent over them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub looks: Vec<f64>,
    /// The caller without whose requests the verdict would be another; nothing is decided
    /// on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub caller: Option<String>,
    /// When the canary looked worst in this step: no rollback rests on few moments alone.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_readable")]
    #[schemars(schema_with = "free_object")]
    pub batches: Option<Batches>,
    /// Whether the canary turned bad within this step.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_readable")]
    #[schemars(schema_with = "free_object")]
    pub turn: Option<Turn>,
    /// What the current step alone shows, when the numbers above are of all steps together:
    /// `stable`, `canary` and `difference` as above, and how many samples were `seen` of those
    /// `wanted`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_readable")]
    #[schemars(schema_with = "free_object")]
    pub in_step: Option<InStep>,
}

/// What the current step alone shows, where the evidence of all steps counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InStep {
    /// The variant that is compared with.
    pub stable: Sample,
    /// The variant under comparison.
    pub canary: Sample,
    /// How much worse the canary is in this step. The canary neither gets more traffic nor is
    /// promoted while that is more than the accept margin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<f64>,
    /// How many of the step's samples were seen.
    pub seen: i64,
    /// How many samples of this metric the step wants before the canary gets more traffic.
    pub wanted: i64,
    /// The look at the end of the step was taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// The last look, at all steps together, accepted the canary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}
fn is_none_in_a_row(value: &i32) -> bool {
    *value == 0
}
