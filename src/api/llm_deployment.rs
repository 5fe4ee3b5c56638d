//! LLMDeployment: a model backend.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    conditions::Condition,
    duration::GoDuration,
    schema::{self, LocalRef},
};

/// A model backend: where a model answers, or how Serinus runs it.
///
/// Exactly one of endpoint, service and serving says where. What identifies the
/// model (provider, model, endpoint url, service, serving image, args and port) is immutable:
/// another model is another LLMDeployment. Limits, pricing, replicas and the
/// secret may change.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "serinus.dev",
    version = "v1alpha1",
    kind = "LLMDeployment",
    plural = "llmdeployments",
    namespaced,
    status = "LLMDeploymentStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "llmd",
    category = "serinus",
    doc = "A model backend: where a model answers, or how Serinus runs it.",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name may have at most 52 characters, so that the names derived from it stay valid: choose a shorter name"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("[has(self.endpoint), has(self.service), has(self.serving)].filter(x, x).size() == 1").message("set exactly one of spec.endpoint, spec.service and spec.serving"),
    validation = Rule::new("self.provider == oldSelf.provider && self.model == oldSelf.model").message("spec.provider and spec.model are immutable: create another LLMDeployment for another model and point the PromptRelease to it"),
    validation = Rule::new("has(self.endpoint) == has(oldSelf.endpoint) && (!has(self.endpoint) || self.endpoint.url == oldSelf.endpoint.url)").message("spec.endpoint.url is immutable: create another LLMDeployment for another endpoint"),
    validation = Rule::new("has(self.service) == has(oldSelf.service) && (!has(self.service) || self.service == oldSelf.service)").message("spec.service is immutable: create another LLMDeployment for another service"),
    validation = Rule::new("has(self.serving) == has(oldSelf.serving) && (!has(self.serving) || (self.serving.image == oldSelf.serving.image && self.serving.port == oldSelf.serving.port && has(self.serving.args) == has(oldSelf.serving.args) && (!has(self.serving.args) || self.serving.args == oldSelf.serving.args)))").message("spec.serving image, args and port are immutable: create another LLMDeployment for another model server"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LLMDeploymentSpec {
    /// Who serves the model, in the words of OpenTelemetry's gen_ai.provider.name:
    /// openai, anthropic, vllm, … It selects the price list and labels telemetry.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9._-]*$"))]
    pub provider: String,
    /// The model name that is sent upstream.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// An OpenAI-compatible API at a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// An OpenAI-compatible Service in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// A model server that Serinus runs as a Deployment and a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
    /// What a request costs. Default: the built-in price catalogue, by provider and model;
    /// what that does not know is unknown, not free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pricing: Option<Pricing>,
    /// Timeouts and concurrency towards this backend.
    #[serde(default)]
    pub limits: Limits,
}

/// An OpenAI-compatible API at a URL.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// The base URL with its version, for example https://api.openai.com/v1.
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://[^\s?#]+$"))]
    pub url: String,
    /// The Secret that holds the API key. Default: no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// The header that carries the API key, for example api-key for Azure OpenAI.
    /// Default: authorization, with the key as a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub api_key_header: Option<String>,
    /// Query parameters of every request, for example api-version for Azure OpenAI.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::short_texts")]
    pub query: BTreeMap<String, String>,
    /// Headers of every request, for example openai-organization. Not for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::short_texts")]
    pub headers: BTreeMap<String, String>,
    /// Whom to trust, and as whom to appear, with TLS. Default: the public
    /// certificate authorities, no client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EndpointTls>,
}

/// The key of a certificate in a Secret of type kubernetes.io/tls.
pub const TLS_CERTIFICATE: &str = "tls.crt";
/// The key of its private key.
pub const TLS_KEY: &str = "tls.key";

/// TLS towards an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointTls {
    /// The Secret that holds the certificate authorities to trust, PEM. Default: the
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The Secret of type kubernetes.io/tls with the certificate to show (tls.crt, tls.key).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<LocalRef>,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in the Secret's data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// An OpenAI-compatible Service in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceRef {
    /// The Service's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The Service's port number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The path before /chat/completions. Default: /v1.
    #[serde(default = "default_path")]
    #[schemars(length(max = 253), regex(pattern = r"^(/[^\s?#]*)?$"))]
    pub path: String,
}

fn default_path() -> String {
    "/v1".to_owned()
}

/// A model server that Serinus runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Serving {
    /// The container image of an OpenAI-compatible server.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// The container's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub args: Vec<String>,
    /// How many pods. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// CPU, memory and accelerators of one pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::free_object")]
    pub resources: Option<ResourceRequirements>,
    /// The port that the container listens on. Default: 8000.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The path that answers 200 when the model is loaded. Default: /health.
    #[serde(default = "default_health")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^/[^\s]*$"))]
    pub health_path: String,
}

fn one() -> i32 {
    1
}
fn default_port() -> i32 {
    8000
}
fn default_health() -> String {
    "/health".to_owned()
}

/// What a request costs, in US dollars: by its tokens, or by how long it keeps GPUs busy.
///
/// Exactly one of inputPerMillion and gpuHour says how.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.gpuHour) != has(self.inputPerMillion)").message("set exactly one of spec.pricing.inputPerMillion (with outputPerMillion) and spec.pricing.gpuHour"),
    validation = Rule::new("has(self.inputPerMillion) == has(self.outputPerMillion)").message("set spec.pricing.inputPerMillion and spec.pricing.outputPerMillion together; outputPerMillion is 0 for embeddings"),
    validation = Rule::new("has(self.inputPerMillion) || !(has(self.cachedInputPerMillion) || has(self.cacheWritePerMillion))").message("spec.pricing.cachedInputPerMillion and spec.pricing.cacheWritePerMillion are prices of tokens: they need spec.pricing.inputPerMillion"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pricing {
    /// USD for a million input tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub input_per_million: Option<f64>,
    /// USD for a million input tokens that the provider read from its cache. Default: the
    /// input price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub cached_input_per_million: Option<f64>,
    /// USD for a million input tokens that the provider wrote to its cache. Default: the
    /// input price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub cache_write_per_million: Option<f64>,
    /// USD for a million output tokens, those of reasoning included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub output_per_million: Option<f64>,
    /// By time, for a model that runs on GPUs of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_hour: Option<GpuHour>,
}

/// What GPUs of one's own cost. A request costs its duration × usd × gpus / concurrency.
///
/// The costs of all requests add up to what the GPUs cost while requests ran, if the
/// concurrency is the true one on average. Idle GPUs are nobody's cost.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuHour {
    /// USD for one GPU for one hour.
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub usd: f64,
    /// GPUs of one replica of the model server. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100_000))]
    pub gpus: i32,
    /// How many requests one replica works on at the same time, on average while it works
    /// on any: for example the mean of vllm:num_requests_running.
    #[schemars(range(min = 1.0, max = 100_000.0))]
    pub concurrency: f64,
}

/// Timeouts and concurrency towards a backend.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// The longest that one answer may take; for a stream only if it is set here, because a
    /// stream that flows may go on. Default: 60s, and no limit for streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// The longest wait for the first token. Default: 20s.
    #[serde(default = "default_first_token_timeout")]
    pub first_token_timeout: GoDuration,
    /// The longest wait for a connection. Default: 5s.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: GoDuration,
    /// The longest silence within a stream after its first token. Default: 60s.
    #[serde(default = "default_between_tokens_timeout")]
    pub between_tokens_timeout: GoDuration,
    /// Requests in flight to this backend from one gateway replica. Default: 256.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_concurrency: i32,
    /// Requests that may wait for one in flight to end; more are answered 429.
    /// Default: 0, so that nobody waits.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_queue: i32,
    /// The longest that a request may wait in the queue. Default: 5s.
    #[serde(default = "default_queue_timeout")]
    pub queue_timeout: GoDuration,
    /// How often a request is sent again when the backend was not reached, or answered
    /// 429, 500, 502, 503, 504, 520 to 524 or 529 before anything was sent to the user. A canary is not asked
    /// again: stable answers instead. Only the first attempt counts as evidence. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 3))]
    pub retries: i32,
}

fn default_timeout() -> GoDuration {
    GoDuration::from_secs(60)
}
fn default_first_token_timeout() -> GoDuration {
    GoDuration::from_secs(20)
}
fn default_concurrency() -> i32 {
    256
}
fn default_connect_timeout() -> GoDuration {
    GoDuration::from_secs(5)
}
fn default_between_tokens_timeout() -> GoDuration {
    GoDuration::from_secs(60)
}
fn default_queue_timeout() -> GoDuration {
    GoDuration::from_secs(5)
}

impl Limits {
    /// The longest that an answer may take that is no stream.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(default_timeout()).0
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: None,
            first_token_timeout: default_first_token_timeout(),
            connect_timeout: default_connect_timeout(),
            between_tokens_timeout: default_between_tokens_timeout(),
            max_concurrency: default_concurrency(),
            max_queue: 0,
            queue_timeout: default_queue_timeout(),
            retries: one(),
        }
    }
}

/// What was observed of the backend.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LLMDeploymentStatus {
    /// The generation that the conditions were computed for.
    #[serde(default)]
    pub observed_generation: i64,
    /// Whether the backend answers.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl LLMDeploymentSpec {
    /// The base URL (with version path) under which the backend named `name` in
    /// `namespace` answers.
    pub fn base_url(&self, name: &str, namespace: &str) -> String {
        if let Some(endpoint) = &self.endpoint {
            endpoint.url.trim_end_matches('/').to_owned()
        } else if let Some(service) = &self.service {
            format!(
                "http://{}.{namespace}.svc:{}{}",
                service.name,
                service.port,
                service.path.trim_end_matches('/')
            )
        } else {
            let port = self.serving.as_ref().map_or_else(default_port, |s| s.port);
            format!("http://{name}.{namespace}.svc:{port}/v1")
        }
    }

    /// The Secrets that requests to this backend need, and the key within each.
    pub fn secrets(&self) -> Vec<SecretKeyRef> {
        let Some(endpoint) = &self.endpoint else { return vec![] };
        let tls = endpoint.tls.iter();
        let certificate = tls.clone().filter_map(|tls| tls.client_certificate_secret_ref.as_ref());
        let certificate = certificate.flat_map(|secret| {
            [TLS_CERTIFICATE, TLS_KEY]
                .map(|key| SecretKeyRef { name: secret.name.clone(), key: key.to_owned() })
        });
        let authorities = tls.filter_map(|tls| tls.ca_secret_ref.clone());
        endpoint.api_key_secret_ref.iter().cloned().chain(authorities).chain(certificate).collect()
    }

    /// The Service of the backend named `name`, and its port; none for an endpoint.
    pub fn service_of<'a>(&'a self, name: &'a str) -> Option<(&'a str, i32)> {
        if self.endpoint.is_some() {
            return None;
        }
        let own = self.serving.as_ref().map(|serving| (name, serving.port));
        self.service.as_ref().map(|service| (service.name.as_str(), service.port)).or(own)
    }

    /// The fields that identify the model, for the revision's hash.
    pub fn identity(&self) -> BTreeMap<&'static str, serde_json::Value> {
        let mut fields = BTreeMap::from([
            ("provider", self.provider.clone().into()),
            ("model", self.model.clone().into()),
        ]);
        if let Some(endpoint) = &self.endpoint {
            fields.insert("endpoint", endpoint.url.clone().into());
        }
        if let Some(s) = &self.service {
            fields.insert("service", format!("{}:{}{}", s.name, s.port, s.path).into());
        }
        if let Some(s) = &self.serving {
            fields.insert("serving", serde_json::json!([s.image, s.args, s.port]));
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest;

    /// The error of a backend with this pricing, or nothing.
    fn refused(pricing: &str) -> Option<String> {
        let text = format!(
            "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: b}}\n\
             spec: {{provider: vllm, model: m, endpoint: {{url: \"http://127.0.0.1:9/v1\"}}, pricing: {pricing}}}"
        );
        manifest::parse(&text).err().map(|e| e.to_string())
    }

    #[test]
    fn pricing_is_by_token_or_by_time() {
        for fine in [
            "{inputPerMillion: 1, outputPerMillion: 2}",
            "{inputPerMillion: 0, cachedInputPerMillion: 0, cacheWritePerMillion: 1, outputPerMillion: 0}",
            "{gpuHour: {usd: 2.5, concurrency: 16}}",
            "{gpuHour: {usd: 2.5, gpus: 8, concurrency: 1.5}}",
        ] {
            assert_eq!(refused(fine), None, "{fine}");
        }
        for (wrong, reason) in [
            ("{}", "exactly one"),
            (
                "{inputPerMillion: 1, outputPerMillion: 2, gpuHour: {usd: 2, concurrency: 8}}",
                "exactly one",
            ),
            ("{inputPerMillion: 1}", "together"),
            ("{outputPerMillion: 1, gpuHour: {usd: 2, concurrency: 8}}", "together"),
            (
                "{cacheWritePerMillion: 1, gpuHour: {usd: 2, concurrency: 8}}",
                "need spec.pricing.inputPerMillion",
            ),
            ("{gpuHour: {usd: 2}}", "concurrency"),
            ("{gpuHour: {usd: 2, concurrency: 8, hours: 1}}", "hours"),
        ] {
            let message = refused(wrong).unwrap_or_default();
            assert!(message.contains(reason), "{wrong}: {message}");
        }
    }
}
