//! PromptRelease: which prompt on which backend a route should serve, and how far that is.

use jiff::Timestamp;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod evidence;
mod verdict;

pub use self::{
    evidence::{
        ByInput, CallerCounts, Counts, ExternalCounts, GroupedScore, Groups, InstanceEvidence,
        OTHER, PairTable, Paired, StepEvidence, Sums, TurnedAway, Waits,
    },
    verdict::{Batch, Batches, InStep, MetricStatus, Sample, Turn, TurnedSince, Unit, Verdict},
};
use super::{
    conditions::{Condition, UNSEEN},
    duration::GoDuration,
    schema::{LocalRef, free_objects, if_readable},
};

/// Which prompt version on which model backend a route should serve, and how carefully to get there.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "serinus.dev",
    version = "v1alpha1",
    kind = "PromptRelease",
    namespaced,
    status = "PromptReleaseStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "prel",
    category = "serinus",
    doc = "Which prompt version on which model backend a route should serve, and how carefully to get there.",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name may have at most 52 characters, so that the names of its snapshots stay valid: choose a shorter name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Prompt", type_ = "string", json_path = ".spec.promptRef.name"),
    printcolumn(name = "Backend", type_ = "string", json_path = ".spec.backendRef.name"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stable.prompt"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.canary.prompt"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".status.canary.weight"),
    printcolumn(name = "Metrics", type_ = "string", json_path = ".status.metrics", priority = 1),
    printcolumn(name = "StableRevision", type_ = "string", json_path = ".status.stable.revision", priority = 1),
    printcolumn(name = "CanaryRevision", type_ = "string", json_path = ".status.canary.revision", priority = 1),
    printcolumn(name = "Gateways", type_ = "string", json_path = ".status.routing.observedBy", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("has(self.route) == has(oldSelf.route) && (!has(self.route) || self.route == oldSelf.route)").message("spec.route is immutable: applications send it as their model name; create another PromptRelease for another route"),
)]
#[serde(rename_all = "camelCase")]
pub struct PromptReleaseSpec {
    /// The model name that applications send. Default: the object's name. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")
    )]
    pub route: Option<String>,
    /// The PromptVersion to serve.
    pub prompt_ref: LocalRef,
    /// The LLMDeployment to serve it on.
    pub backend_ref: LocalRef,
    /// The CanaryPolicy to get there with. Default: a built-in careful policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<LocalRef>,
    /// Freeze the rollout: weights stay as they are; a failing canary is still rolled back. Default: false.
    #[serde(default)]
    pub suspend: bool,
    /// Other backends that answer, with the stable prompt, while the release's own backend
    /// is unavailable: the first that works. Their answers are marked and never counted
    /// as evidence. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub fallback_backend_refs: Vec<LocalRef>,
    /// Answer identical requests from memory. Default: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ResponseCache>,
}

/// Answering identical requests from memory.
///
/// A hit needs the same revision and the same request, apart from who asks. Hits are
/// marked and never counted as evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseCache {
    /// How long an answer may be given again.
    pub ttl: GoDuration,
}

/// How far a release is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum Phase {
    /// Something that the release needs is missing or not valid.
    #[default]
    Pending,
    /// The first revision waits for its backend.
    Initializing,
    /// A canary runs.
    Progressing,
    /// A canary waits for a person.
    AwaitingApproval,
    /// A canary keeps its weight because there is no answer or no data.
    Held,
    /// All traffic moves to the new revision.
    Promoting,
    /// The new revision is in charge and still compared with the previous one.
    Baking,
    /// One revision serves.
    Stable,
    /// The canary is being taken out of routing.
    RollingBack,
    /// The canary failed; the revision before it serves.
    RolledBack,
}

/// A variant by its revision and the names that it was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VariantRef {
    /// The content hash, 40 hex digits. Ten in what an earlier version wrote.
    #[schemars(length(max = 64))]
    pub revision: String,
    /// The PromptVersion's name.
    #[schemars(length(max = 253))]
    pub prompt: String,
    /// The LLMDeployment's name.
    #[schemars(length(max = 253))]
    pub backend: String,
}

/// The running canary.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// The variant.
    #[serde(flatten)]
    pub variant: VariantRef,
    /// The policy's digest that this canary started with.
    #[schemars(length(max = 64))]
    pub policy: String,
    /// The index of the current step, from 0.
    pub step: i32,
    /// How many steps its policy has. 0 in what an earlier version wrote.
    #[serde(default)]
    pub steps: i32,
    /// The share of traffic that the canary gets, in percent.
    pub weight: i32,
    /// When the canary started.
    pub started_at: Timestamp,
    /// When the current step was entered.
    pub entered_at: Timestamp,
    /// When every live gateway had reported the step's routing generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<Timestamp>,
    /// Time in which the canary could be judged: what deadlines are compared with.
    #[serde(default)]
    pub clock: Box<JudgedTime>,
    /// The step's initialDelay runs: nothing is judged yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warming: bool,
    /// When evidence last grew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_data_at: Option<Timestamp>,
    /// When the evidence was last judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysed_at: Option<Timestamp>,
    /// When the step had its samples: requests that were drawn before are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_at: Option<Timestamp>,
    /// Requests of gateway processes beyond the 128 that are remembered in a step: they
    /// are left out of the evidence.
    #[serde(default, skip_serializing_if = "is_nothing")]
    #[schemars(with = "i64", range(min = 0))]
    pub uncounted: u64,
    /// About what is left until the canary is promoted, or waits for an approval, if it goes
    /// on like this; absent while that is not expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<Remaining>,
    /// The step's window was extended once.
    #[serde(default)]
    pub extended: bool,
    /// Why the canary is held, when it is: Inconclusive, NoData, SampleRatioMismatch, OneCaller,
    /// FloorOnBothSides, BackendNotReady, WaitingForGateways, ControlLoss or PolicyLost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub held: Option<String>,
    /// Who approved which steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub approvals: Vec<HandledRequest>,
    /// What the steps that passed have shown, a line a step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 768)))]
    pub passed: Vec<String>,
}

/// About what is left of a canary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Remaining {
    /// Requests of the canary, or pairs of a shadow.
    pub requests: i64,
    /// Time, at the rate of this step; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<GoDuration>,
}

/// Time in which the canary could be judged. It stops while the release waits for an
/// approval, is suspended, has a backend that is not ready or gateways that do not
/// follow, and while no operator decides. progressDeadline, deadlines, noDataTimeout and
/// the duration of the bake count only this time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JudgedTime {
    /// Since the canary started.
    pub canary: GoDuration,
    /// Since the current step was entered; while baking, since the promotion.
    pub step: GoDuration,
    /// Since evidence last grew.
    pub quiet: GoDuration,
    /// Until when time was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why no time counts now; absent while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub stopped: Option<String>,
    /// Since when no time counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_since: Option<Timestamp>,
}

/// The part of a variant in the routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VariantRole {
    /// Serves when nothing else is decided.
    Stable,
    /// Under comparison.
    Canary,
    /// Served before; kept as comparison while baking.
    Previous,
    /// Gets copies of requests that stable answers; its own answers reach nobody.
    Shadow,
}

impl VariantRole {
    /// The word on metric labels, spans and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
            Self::Previous => "previous",
            Self::Shadow => "shadow",
        }
    }
}

/// One variant's share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutedVariant {
    /// The content hash.
    #[schemars(length(max = 64))]
    pub revision: String,
    /// The part that it plays.
    pub role: VariantRole,
    /// Its share of traffic, in percent.
    pub weight: i32,
    /// The share of requests that it gets copies of, in percent: only of a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<i32>,
}

/// The single source that gateways follow: one write moves traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Increases with every change of the routing and with every new step.
    #[serde(default)]
    pub generation: i64,
    /// Who gets how much. Weights sum to 100.
    #[serde(default)]
    #[schemars(length(max = 4))]
    pub variants: Vec<RoutedVariant>,
    /// The settings of the policy that gateways need.
    #[serde(default)]
    pub settings: RoutingSettings,
    /// How many of the live gateways have applied this generation, as 3/3.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub observed_by: String,
}

/// The settings of the policy that gateways need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingSettings {
    /// Where the sticky key comes from.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(max = 128)))]
    pub sticky_from: Vec<String>,
    /// Answer with the stable variant when the canary fails before its first byte.
    #[serde(default)]
    pub fallback_to_stable: bool,
}

fn is_nothing(value: &u64) -> bool {
    *value == 0
}

/// How a canary ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Outcome {
    /// The first revision, served without comparison.
    Initial,
    /// Promoted.
    Promoted,
    /// Failed and taken out of routing.
    RolledBack,
    /// Taken out of routing without a verdict on it.
    Withdrawn,
}

/// The reason in the history of a first release that was taken back, when it became known what
/// was served before.
pub const RETURNED: &str = "Returned";

/// One line of the release's history.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The variant.
    #[serde(flatten)]
    pub variant: VariantRef,
    /// How it ended.
    pub outcome: Outcome,
    /// One CamelCase word that says why.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// A sentence for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// Who asked for it or approved it, when a person did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub requests: Vec<HandledRequest>,
    /// What was shown of it until then, a line a step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 18), inner(length(max = 768)))]
    pub evidence: Vec<String>,
}

/// A person's request that was carried out or refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandledRequest {
    /// approve, promote, abort or retry.
    #[schemars(length(max = 16))]
    pub action: String,
    /// The annotation's value as it was written.
    #[schemars(length(max = 512))]
    pub value: String,
    /// The revision that it is about.
    #[schemars(length(max = 64))]
    pub revision: String,
    /// Who asked, as far as the request says.
    #[schemars(length(max = 256))]
    pub by: String,
    /// When it was handled.
    pub at: Timestamp,
    /// Whether it was carried out.
    pub accepted: bool,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
}

/// How far a release is, and why.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.leaderTerm) || (has(self.leaderTerm) && self.leaderTerm >= oldSelf.leaderTerm)").message("status.leaderTerm must not decrease: this status was decided by an operator that no longer leads"),
)]
#[serde(rename_all = "camelCase")]
pub struct PromptReleaseStatus {
    /// The generation that this status was computed for.
    #[serde(default)]
    pub observed_generation: i64,
    /// How far the release is.
    #[serde(default)]
    pub phase: Phase,
    /// The variant that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<VariantRef>,
    /// The variant that served before, while baking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<VariantRef>,
    /// The running or baking canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    /// The running canary's step, for example 2/4; bake after its promotion.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 16))]
    pub step: String,
    /// The running canary's metrics with their answers so far, for example: errors Pass,
    /// cost Undecided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub metrics: String,
    /// The revision that failed last; it is not tried again without a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub failed_revision: Option<String>,
    /// What gateways follow.
    #[serde(default)]
    pub routing: Routing,
    /// The evidence of the current step, a line a metric.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub analysis: Vec<MetricStatus>,
    /// The counters behind the evidence, a line a gateway process. Kept so that a
    /// restarted operator resumes the same test.
    #[serde(default, deserialize_with = "if_readable")]
    #[schemars(length(max = 128))]
    pub evidence: Vec<InstanceEvidence>,
    /// What earlier steps of the running canary have counted, where the policy pools the
    /// evidence of all steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "if_readable")]
    #[schemars(schema_with = "free_objects::<16>")]
    pub earlier_steps: Vec<StepEvidence>,
    /// What was released before, newest last. At most 20.
    #[serde(default)]
    #[schemars(length(max = 20))]
    pub history: Vec<HistoryEntry>,
    /// When the operator that wrote this became the leader, in microseconds since 1970.
    /// The API server refuses a status of an earlier leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_term: Option<i64>,
    /// The release that this was written for, as namespace/name. A status that was copied to
    /// another release, as by a restore into another namespace, counts for nothing there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub written_for: Option<String>,
    /// The uid of the object that this was written for. A status with another uid was restored
    /// into this object. None in what an earlier version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// The last request of each action.
    #[serde(default)]
    #[schemars(length(max = 4))]
    pub requests: Vec<HandledRequest>,
    /// Ready, Reconciling and Stalled, as kstatus reads them.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl PromptReleaseStatus {
    /// Whether users of the route get something from the release.
    pub fn routes(&self) -> bool {
        !self.routing.variants.is_empty()
    }

    /// How the revision that failed last came to that: how it left routing last, not counting
    /// that a first release of it was taken back when it became known what was served before.
    pub fn failure(&self) -> Option<&HistoryEntry> {
        let failed = self.failed_revision.as_deref()?;
        let mut known = self.history.iter().rev();
        known.find(|entry| {
            entry.variant.revision == failed
                && matches!(entry.outcome, Outcome::RolledBack | Outcome::Withdrawn)
                && entry.reason != RETURNED
        })
    }
}

impl PromptRelease {
    /// The model name that applications send.
    pub fn route(&self) -> String {
        self.spec.route.clone().unwrap_or_else(|| self.metadata.name.clone().unwrap_or_default())
    }

    /// Forgets a status that was written for another release, or that no operator has written.
    pub fn drop_copied_status(&mut self) {
        let (namespace, name) = (&self.metadata.namespace, &self.metadata.name);
        let own = namespace.iter().chain(name).map(String::as_str).collect::<Vec<_>>().join("/");
        let written_for = self.status.as_ref().and_then(|status| status.written_for.as_ref());
        let unseen = self.status.as_ref().is_some_and(|s| s.observed_generation == UNSEEN);
        if unseen || written_for.is_some_and(|written_for| *written_for != own) {
            self.status = None;
        }
    }

    /// The names of the backends that answer while its own is unavailable.
    pub fn other_backends(&self) -> Vec<String> {
        self.spec.fallback_backend_refs.iter().map(|reference| reference.name.clone()).collect()
    }

    /// Whether applications reach it under `route`.
    pub fn has_route(&self, route: &str) -> bool {
        self.spec.route.as_ref().or(self.metadata.name.as_ref()).is_some_and(|own| own == route)
    }
}
