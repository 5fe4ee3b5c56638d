//! PromptVersion: one immutable version of a prompt.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{conditions::Condition, schema};

/// The key of responseFormat that is sent beside the schema.
pub const STRICT: &str = "strict";

/// One version of a prompt. Immutable as a whole: a change is a new PromptVersion.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "serinus.dev",
    version = "v1alpha1",
    kind = "PromptVersion",
    namespaced,
    status = "PromptVersionStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "prompt",
    category = "serinus",
    doc = "One immutable version of a prompt: messages, parameters and the schemas of its inputs and outputs.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name may have at most 63 characters: choose a shorter name"),
    printcolumn(name = "Prompt", type_ = "string", json_path = ".spec.prompt"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("a PromptVersion is immutable: create a new PromptVersion with another name and point the PromptRelease to it"),
)]
#[serde(rename_all = "camelCase")]
pub struct PromptVersionSpec {
    /// The lineage that this version belongs to, for example support-answer.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub prompt: String,
    /// The messages, as MiniJinja (Jinja2) templates over the variables, whose texts, lists
    /// and objects have the methods that Python gives them, as text.upper(). Messages
    /// that the application sends follow after them. 1 to 64.
    #[schemars(length(min = 1, max = 64))]
    pub messages: Vec<PromptMessage>,
    /// The JSON Schema of the variables. A request whose variables do not match is
    /// refused with status 400. Default: any object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::free_object")]
    pub variables: Option<Map<String, Value>>,
    /// Sampling parameters that are sent with every request.
    #[serde(default)]
    pub parameters: Parameters,
    /// The JSON Schema of the answer. It is sent as response_format and checked on every
    /// answer. Beside its keywords, strict: true makes models that can (OpenAI, Azure, vLLM)
    /// keep to it; OpenAI wants additionalProperties: false and all properties required then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::free_object")]
    pub response_format: Option<Map<String, Value>>,
    /// Tools in OpenAI's form, sent with every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::free_objects::<128>")]
    pub tools: Vec<Map<String, Value>>,
}

/// One templated message.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromptMessage {
    /// Who speaks.
    pub role: Role,
    /// The template of the text. At most 65536 characters.
    #[schemars(length(max = 65536))]
    pub content: String,
}

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions to the model.
    System,
    /// Instructions to newer OpenAI models.
    Developer,
    /// The person or application that asks.
    User,
    /// The model's own part, for examples.
    Assistant,
}

/// Sampling parameters; what is not set is left to the application and the model.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// Randomness, 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
    /// The longest answer, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_tokens: Option<i64>,
    /// Texts that end the answer. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    pub stop: Vec<String>,
    /// The seed of the sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Penalty for tokens by how often they occurred, -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2.0, max = 2.0))]
    pub frequency_penalty: Option<f64>,
    /// Penalty for tokens that occurred, -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2.0, max = 2.0))]
    pub presence_penalty: Option<f64>,
}

/// What was observed of the prompt.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromptVersionStatus {
    /// The generation that the conditions were computed for.
    #[serde(default)]
    pub observed_generation: i64,
    /// The digest of the whole content, sha256:….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub digest: Option<String>,
    /// Whether the prompt can be used, and why not.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
