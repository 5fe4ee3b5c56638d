//! What a policy asks Prometheus.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::duration::GoDuration;

/// A question to Prometheus: two counts that are compared (bad and total), a plain value
/// with limits, or a template for the counters of a model server. The texts are PromQL in
/// which `{{ namespace }}`, `{{ release }}`, `{{ revision }}`, `{{ backend }}`,
/// `{{ model }}` and `{{ window }}` (the time since the step's traffic was in place, as
/// 300s) are filled in, once for each variant. Each answers a single number.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.bad) == has(self.total) && [has(self.bad), has(self.value), has(self.template)].filter(x, x).size() == 1").message("prometheus sets exactly one of: bad and total (two counts that are compared), value with max or min, and template"),
    validation = Rule::new("has(self.value) == (has(self.max) || has(self.min))").message("a prometheus value needs max, min or both, and only a value has them"),
    validation = Rule::new("has(self.slowerThan) == (has(self.template) && !self.template.endsWith('-aborts') && !self.template.endsWith('-errors'))").message("a template of a latency needs slowerThan (which answers count as slow), and nothing else has it"),
    validation = Rule::new("!has(self.selector) || has(self.template)").message("only a template has a selector: write the labels into bad, total or value yourself"),
)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusQuery {
    /// How many were bad within the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub bad: Option<String>,
    /// Of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub total: Option<String>,
    /// A plain value of the canary, judged by a fixed rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub value: Option<String>,
    /// The largest value that is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The smallest value that is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// So many looks in a row beyond max or min fail, and so many within them pass. Default: 3.
    #[serde(default = "default_consecutive")]
    #[schemars(range(min = 1, max = 100))]
    pub consecutive: i32,
    /// Ready-made counts from the counters of vLLM, SGLang or TGI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<EngineTemplate>,
    /// For a template of a latency: slower than this is bad. The engine's next bucket
    /// bound at or above it is used; the policy's Ready condition says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower_than: Option<GoDuration>,
    /// For a template: the label matchers that pick a variant's series, with variables.
    /// They must tell the two variants apart.
    /// Default: `namespace="{{ namespace }}",service="{{ backend }}"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub selector: Option<String>,
}

fn default_consecutive() -> i32 {
    3
}

/// Counts that a model server exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EngineTemplate {
    /// vLLM: answers whose first token came late.
    VllmTimeToFirstToken,
    /// vLLM: answers whose tokens came slowly, by the mean time per output token of each.
    VllmTimePerOutputToken,
    /// vLLM: answers that took long as a whole.
    VllmE2eLatency,
    /// vLLM: requests that were aborted or ended in an error.
    VllmAborts,
    /// SGLang: answers whose first token came late.
    SglangTimeToFirstToken,
    /// SGLang: the share of slow gaps between tokens, each request counted once.
    SglangInterTokenLatency,
    /// SGLang: answers that took long as a whole.
    SglangE2eLatency,
    /// SGLang: requests that were aborted.
    SglangAborts,
    /// TGI: answers whose tokens came slowly, by the mean time per token of each.
    TgiTimePerOutputToken,
    /// TGI: answers that took long as a whole.
    TgiE2eLatency,
    /// TGI: requests that failed.
    TgiErrors,
}
