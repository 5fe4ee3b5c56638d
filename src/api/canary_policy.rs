//! CanaryPolicy: how carefully a new variant meets real traffic.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod prometheus;

pub use self::prometheus::{EngineTemplate, PrometheusQuery};
use super::{conditions::Condition, duration::GoDuration};

/// How a canary gets more traffic, what is measured, and what the answers mean.
///
/// A running canary keeps the policy that it started with; an edit counts from the next one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "serinus.dev",
    version = "v1alpha1",
    kind = "CanaryPolicy",
    plural = "canarypolicies",
    namespaced,
    status = "CanaryPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "cpol",
    category = "serinus",
    doc = "How a canary gets more traffic, what is measured, and what the answers mean.",
    printcolumn(name = "Steps", type_ = "string", json_path = ".status.steps"),
    printcolumn(name = "Metrics", type_ = "string", json_path = ".status.metrics"),
    printcolumn(
        name = "Decidable",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Decidable')].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.steps.exists(s, has(s.weight))").message("spec.steps needs at least one step with a weight: without traffic there is no evidence"),
    validation = Rule::new("self.steps.all(s, !has(s.weight) || self.steps.filter(t, has(t.weight) && t.weight == s.weight).size() == 1)").message("every weight in spec.steps must be different and larger than the one before"),
    validation = Rule::new("self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted()").message("weights in spec.steps must increase from step to step"),
)]
#[serde(rename_all = "camelCase")]
pub struct CanaryPolicySpec {
    /// What keeps one user or conversation on one variant.
    #[serde(default)]
    pub stickiness: Stickiness,
    /// The stages of a canary, in order. 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub steps: Vec<Step>,
    /// What is measured and how it is judged.
    #[serde(default)]
    pub analysis: Analysis,
    /// What to do when a step has seen all its samples, or its deadline, without an answer. Default: Hold.
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// What to do when there has been nothing to judge for noDataTimeout. Default: Hold.
    #[serde(default)]
    pub on_no_data: OnNoData,
    /// How long there may be nothing to judge before onNoData, counted while the canary
    /// can be judged. Default: 5m.
    #[serde(default = "default_no_data_timeout")]
    pub no_data_timeout: GoDuration,
    /// Answer with the stable variant when the canary fails before its first byte. Default: true.
    #[serde(default = "yes")]
    pub fallback_to_stable: bool,
    /// How long a promoted variant is still compared with the one before.
    #[serde(default)]
    pub bake: Bake,
    /// The longest that the whole canary may take before it is withdrawn, counted while it
    /// can be judged: waiting for an approval, a suspension, a backend that is not ready
    /// and an operator that is down take none of it. Default: 24h.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: GoDuration,
}

fn default_no_data_timeout() -> GoDuration {
    GoDuration::from_secs(300)
}
fn default_progress_deadline() -> GoDuration {
    GoDuration::from_secs(24 * 3600)
}
fn yes() -> bool {
    true
}

/// What was found out about the policy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryPolicyStatus {
    /// The generation that this status was computed for.
    #[serde(default)]
    pub observed_generation: i64,
    /// Every step in a few words, for example: 5%, 25%, approval, 50%.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub steps: String,
    /// The name of every metric.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub metrics: String,
    /// Whether the policy can be used, and why not.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What keeps one user or conversation on one variant.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stickiness {
    /// Where the sticky key comes from: header:NAME, body:FIELD, or client (who the
    /// client key or token says it is). The first that a request has is used; a request
    /// without any is assigned by itself. At most 8.
    /// Default: header:x-conversation-id, body:user.
    #[serde(default = "default_sticky")]
    #[schemars(
        length(max = 8),
        inner(
            length(max = 128),
            regex(pattern = r"^(header:[A-Za-z0-9-]+|body:[A-Za-z0-9_]+|client)$")
        )
    )]
    pub from: Vec<String>,
}

fn default_sticky() -> Vec<String> {
    vec!["header:x-conversation-id".to_owned(), "body:user".to_owned()]
}

impl Default for Stickiness {
    fn default() -> Self {
        Self { from: default_sticky() }
    }
}

/// One stage of a canary: a weight, an approval, or shadow copies of live requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.weight), has(self.approval), has(self.shadow)].filter(x, x).size() == 1").message("each step sets exactly one of weight, approval and shadow"),
    validation = Rule::new("has(self.weight) == has(self.samples)").message("a step with a weight needs samples (how many canary requests it judges), and only such a step"),
    validation = Rule::new("!has(self.deadline) || has(self.weight)").message("only a step with a weight has a deadline: an approval waits for a person, and a shadow has its own inside"),
    validation = Rule::new("!has(self.approval) || (!has(self.initialDelay) && !has(self.minDuration))").message("an approval has no initialDelay and no minDuration: nothing is judged there, and a person decides how long it takes"),
)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The share of traffic that the canary gets, in percent, 1 to 99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99))]
    pub weight: Option<i32>,
    /// The horizon: how many canary requests this step judges, 20 to 10000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 20, max = 10_000_000))]
    pub samples: Option<i64>,
    /// The longest that this step may take, counted while the canary can be judged.
    /// Default: until progressDeadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<GoDuration>,
    /// Time for a cold model server to warm up: the step gives traffic, and nothing of
    /// this time is judged. It starts when every gateway gives the step's traffic, and
    /// again when the canary's backend was not ready. Default: 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<GoDuration>,
    /// The shortest that this step may take, after initialDelay, also when every metric
    /// passes sooner: for what shows only with time. Default: 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_duration: Option<GoDuration>,
    /// Wait here, at the weight reached, until a person approves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Nothing>,
    /// Users keep stable; copies of their requests go to the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
}

impl Step {
    /// The share of requests that the canary sees, in percent: its own, or copies. None of
    /// an approval.
    pub fn percent(&self) -> Option<i32> {
        self.weight.or(self.shadow.as_ref().map(|s| s.percent))
    }

    /// How many canary requests, or pairs of a shadow, the step judges; none of an approval.
    pub fn horizon(&self) -> Option<i64> {
        self.samples.or_else(|| Some(self.shadow.as_ref()?.samples))
    }

    /// The longest that the step may take, when it says so.
    pub fn deadline(&self) -> Option<GoDuration> {
        self.deadline.or_else(|| self.shadow.as_ref()?.deadline)
    }
}

/// A share of live requests is answered by stable and copied to the canary, whose
/// answers nobody sees. Both answers to the same request are compared in pairs. The
/// copies cost money: it is recorded as shadow cost.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// The share of requests that is copied, in percent, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub percent: i32,
    /// The horizon: how many pairs this step judges, 20 to 10000000.
    #[schemars(range(min = 20, max = 10_000_000))]
    pub samples: i64,
    /// The longest that this step may take. Default: until progressDeadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<GoDuration>,
}

/// Takes no settings: write {}.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Nothing {}

impl JsonSchema for Nothing {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Nothing".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // The derived schema forbids additional properties, which the API server does not accept.
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object" })
    }
}

/// What is measured and how it is judged.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.metrics.all(m, self.metrics.filter(n, n.name == m.name).size() == 1)").message("every metric needs its own name"),
)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// How often evidence is collected. Default: 15s.
    #[serde(default = "default_interval")]
    pub interval: GoDuration,
    /// What is measured. At most 16. Default: errors, time to first token, duration,
    /// failed checks and cost, with careful margins.
    #[serde(default = "default_metrics")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub metrics: Vec<Metric>,
    /// How often the wrong decision may happen, over the whole canary and all metrics together.
    #[serde(default)]
    pub error_rates: ErrorRates,
    /// What a step's evidence counts for. Pooled: for the whole canary. Its steps are looks
    /// of one test, so a canary needs fewer requests for the same error rates; a step goes
    /// on once it has seen its samples and nothing speaks against the canary, and the
    /// canary is promoted when all steps together show that it is good enough. PerStep: for
    /// this step alone, and each step has to show it anew. Default: Pooled.
    #[serde(default)]
    pub evidence: Pooling,
}

/// What a step's evidence counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Pooling {
    /// The steps are looks of one test of the whole canary.
    #[default]
    Pooled,
    /// Each step is a test of its own.
    PerStep,
}

fn default_interval() -> GoDuration {
    GoDuration::from_secs(15)
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            interval: default_interval(),
            metrics: default_metrics(),
            error_rates: ErrorRates::default(),
            evidence: Pooling::default(),
        }
    }
}

/// The metrics of a policy that names none.
pub fn default_metrics() -> Vec<Metric> {
    let metric = |name: &str, harm, accept| Metric {
        name: name.to_owned(),
        margin: Some(Margin { harm, accept }),
        ..Metric::default()
    };
    vec![
        Metric { error_rate: Some(Nothing {}), ..metric("errors", 0.02, 0.05) },
        Metric { time_to_first_token: Some(Latency::default()), ..metric("ttft", 0.05, 0.10) },
        Metric { duration: Some(Latency::default()), ..metric("duration", 0.05, 0.10) },
        Metric { check_failures: Some(Nothing {}), ..metric("checks", 0.02, 0.05) },
        Metric { cost_per_request: Some(Nothing {}), ..metric("cost", 0.25, 0.50) },
    ]
}

/// What is compared in every policy that does not name it itself: requests that were given
/// up, that were refused, and answers that nobody understands. What can not be judged could
/// otherwise hide a failure.
pub fn guards() -> [Metric; 3] {
    let guard = |name: &str| Metric {
        name: name.to_owned(),
        margin: Some(Margin { harm: 0.02, accept: 0.05 }),
        ..Metric::default()
    };
    [
        Metric { unfinished: Some(Nothing {}), ..guard("unfinished") },
        Metric { refusals: Some(Nothing {}), ..guard("refusals") },
        Metric { unjudged: Some(Nothing {}), ..guard("unjudged") },
    ]
}

/// One measured aspect. Exactly one kind is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.errorRate), has(self.timeToFirstToken), has(self.duration), has(self.checkFailures), has(self.costPerRequest), has(self.score), has(self.prometheus), has(self.unfinished), has(self.refusals), has(self.unjudged)].filter(x, x).size() == 1").message("each metric sets exactly one of errorRate, timeToFirstToken, duration, checkFailures, costPerRequest, score, prometheus, unfinished, refusals and unjudged"),
    validation = Rule::new("has(self.margin) != (has(self.prometheus) && has(self.prometheus.value))").message("a metric needs a margin, except a prometheus value, which has limits of its own"),
    validation = Rule::new("!has(self.floor) || ((has(self.timeToFirstToken) || has(self.duration)) ? has(self.floor.maxDuration) : (has(self.score) ? has(self.floor.min) : has(self.floor.max)))").message("a floor is maxDuration for timeToFirstToken and duration, min for score, and max for every other metric"),
)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// A short name, unique in the policy.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The share of requests that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<Nothing>,
    /// Time until the first token, as the share of requests slower than stable's quantile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_first_token: Option<Latency>,
    /// Time until the whole answer, as the share of requests slower than stable's quantile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Latency>,
    /// The share of answers that failed a check: JSON Schema, empty, truncated, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_failures: Option<Nothing>,
    /// USD per request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_per_request: Option<Nothing>,
    /// A score that applications send as feedback, between 0 (bad) and 1 (good).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// Counts or a value that Prometheus knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusQuery>,
    /// The share of requests that the application gave up before the answer was complete.
    /// Compared in every policy: name it to choose its margins, and to wait until it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Nothing>,
    /// The share of requests that the model refused with a 4xx, where no fallback shows
    /// whose fault that is. Compared in every policy, as unfinished is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusals: Option<Nothing>,
    /// The share of answers that could not be understood. Compared in every policy, as
    /// unfinished is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unjudged: Option<Nothing>,
    /// Which differences matter. Every metric has one, except a value of Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Margin>,
    /// An emergency brake on the canary's own value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
}

impl Metric {
    /// Whether both measure the same.
    pub fn is_like(&self, other: &Self) -> bool {
        let kind = |m: &Self| (m.unfinished, m.refusals, m.unjudged);
        kind(self) == kind(other)
    }

    /// Its margin; all zeros for a value of Prometheus, which has none.
    pub fn margin(&self) -> Margin {
        self.margin.clone().unwrap_or_default()
    }
}

/// A latency, compared at stable's quantile.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// The quantile of stable that is frozen as threshold, 0.5 to 0.99. Default: 0.95.
    #[serde(default = "default_quantile")]
    #[schemars(range(min = 0.5, max = 0.99))]
    pub quantile: f64,
}

fn default_quantile() -> f64 {
    0.95
}

impl Default for Latency {
    fn default() -> Self {
        Self { quantile: default_quantile() }
    }
}

/// A score from feedback.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Score {
    /// The name that feedback carries, for example helpfulness.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z0-9_.-]+$"))]
    pub name: String,
    /// The horizon: how many canary scores a step judges. Default: 50.
    #[serde(default = "default_min_samples")]
    #[schemars(range(min = 20, max = 10_000_000))]
    pub min_samples: i64,
}

fn default_min_samples() -> i64 {
    50
}

/// Which differences between canary and stable matter. Shares are differences of
/// shares (0.02 = two more in a hundred), scores are differences of means, cost is
/// relative to stable's mean (0.10 = ten percent more).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.harm <= self.accept").message("margin.harm must not be larger than margin.accept: between them every difference has an answer"))]
#[serde(rename_all = "camelCase")]
pub struct Margin {
    /// Roll back when the canary is shown to be worse by more than this.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub harm: f64,
    /// Advance when the canary is shown to be worse by less than this.
    #[schemars(range(min = 0.001, max = 10.0))]
    pub accept: f64,
}

/// An emergency brake on the canary, long before a comparison is sure. While stable is
/// beyond the same floor, nobody is rolled back for it: the step holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(validation = Rule::new("[has(self.max), has(self.min), has(self.maxDuration)].filter(x, x).size() == 1").message("a floor sets exactly one of max, min and maxDuration"))]
#[serde(rename_all = "camelCase")]
pub struct Floor {
    /// The largest share, or USD per request, that is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub max: Option<f64>,
    /// The smallest mean score that is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min: Option<f64>,
    /// The longest latency, at the metric's quantile, that is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<GoDuration>,
    /// How many canary samples the floor needs before it acts. Default: 50.
    #[serde(default = "default_floor_samples")]
    #[schemars(range(min = 10, max = 1_000_000))]
    pub min_samples: i64,
}

fn default_floor_samples() -> i64 {
    50
}

/// How often the wrong decision may happen, over the whole canary.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorRates {
    /// A canary that is not worse by more than any harm margin is rolled back by the
    /// relative tests at most this often. Default: 0.05.
    #[serde(default = "five_percent")]
    #[schemars(range(min = 0.001, max = 0.5))]
    pub false_rollback: f64,
    /// A canary that is worse by an accept margin or more is promoted at most this often. Default: 0.05.
    #[serde(default = "five_percent")]
    #[schemars(range(min = 0.001, max = 0.5))]
    pub false_promotion: f64,
}

fn five_percent() -> f64 {
    0.05
}

impl Default for ErrorRates {
    fn default() -> Self {
        Self { false_rollback: five_percent(), false_promotion: five_percent() }
    }
}

/// What to do when a step ends without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OnInconclusive {
    /// Keep the weight and wait for a person.
    #[default]
    Hold,
    /// Collect once more as many samples; then hold.
    Extend,
    /// Roll back.
    Rollback,
    /// Go on to the next step, if the step had its samples; hold if it had not.
    Promote,
}

/// What to do when there is nothing to judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OnNoData {
    /// Keep the weight and go on when there is data again.
    #[default]
    Hold,
    /// Take the canary out of routing, without a verdict on it.
    Rollback,
}

/// How long a promoted variant is still compared with the one before.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bake {
    /// The duration. Default: 1h. 0s switches baking off.
    #[serde(default = "default_bake")]
    pub duration: GoDuration,
    /// The percentage of traffic that stays on the previous variant as comparison
    /// while baking. 0: only floors are watched. Default: 5.
    #[serde(default = "default_holdback")]
    #[schemars(range(min = 0, max = 50))]
    pub holdback: i32,
}

fn default_bake() -> GoDuration {
    GoDuration::from_secs(3600)
}
fn default_holdback() -> i32 {
    5
}

impl Default for Bake {
    fn default() -> Self {
        Self { duration: default_bake(), holdback: default_holdback() }
    }
}
