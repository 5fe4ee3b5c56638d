//! LLMDeployment: a model backend.

pub mod endpoint;

use std::{collections::BTreeMap, time::Duration};

use jiff::civil::Date;
use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::endpoint::{Endpoint, EndpointTls, TLS_CERTIFICATE, TLS_KEY, key_in_words};
use super::{conditions::Condition, duration::GoDuration, schema, url::no_credentials_in};

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
    printcolumn(name = "Retires", type_ = "string", json_path = ".status.retirement.date"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("[has(self.endpoint), has(self.service), has(self.serving)].filter(x, x).size() == 1").message("set exactly one of spec.endpoint, spec.service and spec.serving"),
    validation = Rule::new("self.provider == oldSelf.provider && self.model == oldSelf.model").message("spec.provider and spec.model are immutable: create another LLMDeployment for another model and point the PromptRelease to it"),
    validation = Rule::new("has(self.endpoint) == has(oldSelf.endpoint) && (!has(self.endpoint) || self.endpoint.url == oldSelf.endpoint.url)").message("spec.endpoint.url is immutable: create another LLMDeployment for another endpoint"),
    validation = Rule::new("has(self.service) == has(oldSelf.service) && (!has(self.service) || self.service == oldSelf.service)").message("spec.service is immutable: create another LLMDeployment for another service"),
    validation = Rule::new("has(self.serving) == has(oldSelf.serving) && (!has(self.serving) || (self.serving.image == oldSelf.serving.image && self.serving.port == oldSelf.serving.port && has(self.serving.args) == has(oldSelf.serving.args) && (!has(self.serving.args) || self.serving.args == oldSelf.serving.args)))").message("spec.serving image, args and port are immutable: create another LLMDeployment for another model server"),
    validation = Rule::new("!has(self.proxy) || has(self.endpoint)").message("spec.proxy is for spec.endpoint: pods of the cluster are reached directly"),
)]
#[serde(rename_all = "camelCase")]
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
    /// What this backend understands of OpenAI's API. Default: by provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility: Option<Compatibility>,
    /// The proxy on the way to spec.endpoint. Default: what HTTPS_PROXY, HTTP_PROXY and
    /// NO_PROXY of the gateway say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// The day on which the provider ends the model, for example 2027-01-14: people are warned
    /// 60, 30 and 7 days before, and requests go on as before. Default: what the server's list
    /// of models says (shutdown_date), which OpenAI's does, or a file of --model-dates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retires_on: Option<Date>,
}

/// What a backend understands of OpenAI's API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compatibility {
    /// Whether streams may be asked for their usage with stream_options. Default: true;
    /// false for the providers mistral_ai, databricks, cohere and aws.bedrock, and for
    /// versions of Azure's API before 2024-09-01, which answer 400 or 422 to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<bool>,
    /// What the limit of an answer's tokens is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_limit: Option<TokenLimit>,
}

/// The name of the limit of an answer's tokens in /v1/chat/completions. The other name
/// is renamed to it, in requests of applications, too. Default: max_completion_tokens
/// for the providers openai and azure (from its API's version 2024-09-01), whose newer
/// models refuse the other one; max_tokens for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenLimit {
    /// The older name, which most servers know.
    MaxTokens,
    /// The newer name, which OpenAI's newer models want.
    MaxCompletionTokens,
}

impl TokenLimit {
    /// The field's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::MaxTokens => Self::MaxCompletionTokens,
            Self::MaxCompletionTokens => Self::MaxTokens,
        }
    }
}

/// The proxy on the way to a backend: one, or none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.url) != (has(self.direct) && self.direct)").message("set exactly one of spec.proxy.url and spec.proxy.direct: true"),
    validation = Rule::new(format!("!has(self.url) || {}", no_credentials_in("self.url"))).message("spec.proxy.url may hold no user and password, which everybody who reads the object would see: put them into a Secret, as user:password, and name it in spec.proxy.credentialsSecretRef"),
    validation = Rule::new("has(self.url) || !has(self.credentialsSecretRef)").message("spec.proxy.credentialsSecretRef needs spec.proxy.url"),
)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// The proxy's address, for example http://proxy.corp:3128. To a model with TLS it is
    /// asked for a tunnel (CONNECT); requests to one without TLS are sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://[^\s/?#]+/?$"))]
    pub url: Option<String>,
    /// The Secret that holds the user's name and password for the proxy, as name:password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
    /// No proxy, whatever the gateway's environment says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!(self.key.matches('[0-9]') && self.key.matches('^((sk|pk|rk)[-_]|gsk_|xai-|pplx-|hf_|r8_|fw_|nvapi-|tvly-|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|AIza|AKIA|ASIA|dapi|eyJ)[A-Za-z0-9_.-]{16,}'))").message("key is the name of an entry in the Secret's data, and what stands there looks like the secret itself: put that into a Secret, for example under the name token, and write key: token"),
)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in the Secret's data: its name, for example token, and not the secret itself.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub key: String,
}

/// An OpenAI-compatible Service in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
    /// How long an unused connection is kept, unless the server names a time of its own
    /// (keep-alive: timeout=N; then a second less). Keep it below the time after which the
    /// server closes connections: 5s for uvicorn and Node. 0s makes a new connection for
    /// each request. Default: 4s.
    #[serde(default = "default_idle_timeout")]
    pub idle_timeout: GoDuration,
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
fn default_idle_timeout() -> GoDuration {
    GoDuration::from_secs(4)
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
            idle_timeout: default_idle_timeout(),
            between_tokens_timeout: default_between_tokens_timeout(),
            max_concurrency: default_concurrency(),
            max_queue: 0,
            queue_timeout: default_queue_timeout(),
            retries: one(),
        }
    }
}

/// When a model ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retirement {
    /// The day, in UTC.
    pub date: Date,
    /// Who says so.
    pub source: RetirementSource,
}

/// Who says when a model ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RetirementSource {
    /// spec.retiresOn.
    #[default]
    Spec,
    /// The server, in its list of models.
    Server,
    /// A file that the operator was given (--model-dates).
    File,
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
    /// When the model ends, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retirement: Option<Retirement>,
}

/// Providers that answer 400 or 422 to `stream_options`. Mistral and Databricks tell their
/// usage unasked.
const REFUSES_STREAM_OPTIONS: [&str; 8] = [
    "mistral",
    "mistral_ai",
    "mistralai",
    "databricks",
    "cohere",
    "bedrock",
    "aws.bedrock",
    "aws_bedrock",
];
/// Azure's OpenAI, in the words of OpenTelemetry and others.
const AZURE: [&str; 4] = ["azure", "azure.ai.openai", "azure_openai", "azure-openai"];
/// The first version of Azure's API that knows `stream_options` and `max_completion_tokens`.
const AZURE_CURRENT: &str = "2024-09-01";

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
        let proxy = self.proxy.iter().filter_map(|proxy| proxy.credentials_secret_ref.clone());
        let key = endpoint.api_key_secret_ref.iter().cloned();
        key.chain(authorities).chain(certificate).chain(proxy).collect()
    }

    /// Whether its streams may be asked for their usage with `stream_options`.
    pub fn takes_stream_options(&self) -> bool {
        let own = self.compatibility.as_ref().and_then(|own| own.stream_options);
        let refuses = REFUSES_STREAM_OPTIONS.contains(&self.provider.as_str());
        own.unwrap_or(!refuses && !self.is_old_azure())
    }

    /// What it calls the limit of an answer's tokens.
    pub fn token_limit(&self) -> TokenLimit {
        let own = self.compatibility.as_ref().and_then(|own| own.token_limit);
        let is_openai = self.provider == "openai" || self.is_azure();
        own.unwrap_or(if is_openai && !self.is_old_azure() {
            TokenLimit::MaxCompletionTokens
        } else {
            TokenLimit::MaxTokens
        })
    }

    fn is_azure(&self) -> bool {
        AZURE.contains(&self.provider.as_str())
    }

    /// Whether it asks Azure for a version of its API from before `AZURE_CURRENT`. Versions
    /// are dates.
    fn is_old_azure(&self) -> bool {
        let version = self.endpoint.as_ref().and_then(|e| e.query.get("api-version"));
        let is_old = |v: &String| v.starts_with("20") && v.as_str() < AZURE_CURRENT;
        self.is_azure() && version.is_some_and(is_old)
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
    use super::{super::manifest, LLMDeploymentSpec};

    /// The error of a backend with this pricing, or nothing.
    fn refused(pricing: &str) -> Option<String> {
        let text = format!(
            "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: b}}\n\
             spec: {{provider: vllm, model: m, endpoint: {{url: \"http://127.0.0.1:9/v1\"}}, pricing: {pricing}}}"
        );
        manifest::parse(&text).err().map(|e| e.to_string())
    }

    #[test]
    fn what_a_backend_understands_is_known_by_its_provider_and_can_be_said() {
        let of = |provider: &str, query: &str, more: &str| {
            let text = format!(
                "{{provider: {provider}, model: m, endpoint: {{url: \"http://m/v1\", query: {query}}}{more}}}"
            );
            let spec: LLMDeploymentSpec = serde_yaml_ng::from_str(&text).unwrap();
            (spec.takes_stream_options(), spec.token_limit().as_str())
        };
        for (provider, query, expected) in [
            ("openai", "{}", (true, "max_completion_tokens")),
            ("azure", "{}", (true, "max_completion_tokens")),
            ("azure", "{api-version: '2024-10-21'}", (true, "max_completion_tokens")),
            ("azure.ai.openai", "{api-version: preview}", (true, "max_completion_tokens")),
            ("azure", "{api-version: '2024-09-01-preview'}", (true, "max_completion_tokens")),
            ("azure", "{api-version: '2024-06-01'}", (false, "max_tokens")),
            ("vllm", "{}", (true, "max_tokens")),
            ("mistral_ai", "{}", (false, "max_tokens")),
            ("databricks", "{}", (false, "max_tokens")),
            ("aws.bedrock", "{}", (false, "max_tokens")),
        ] {
            assert_eq!(of(provider, query, ""), expected, "{provider} {query}");
        }
        let said = ", compatibility: {streamOptions: true, tokenLimit: max_completion_tokens}";
        assert_eq!(of("databricks", "{}", said), (true, "max_completion_tokens"));
        let said = ", compatibility: {streamOptions: false, tokenLimit: max_tokens}";
        assert_eq!(of("openai", "{}", said), (false, "max_tokens"));
    }

    #[test]
    fn a_proxy_is_one_or_none_and_for_endpoints() {
        let refused = |place: &str, proxy: &str| {
            let text = format!(
                "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: b}}\n\
                 spec: {{provider: vllm, model: m, {place}, proxy: {proxy}}}"
            );
            manifest::parse(&text).err().map(|e| e.to_string())
        };
        let endpoint = "endpoint: {url: \"https://m/v1\"}";
        for fine in [
            "{url: \"http://proxy.corp:3128\"}",
            "{url: \"https://proxy.corp/\", credentialsSecretRef: {name: s, key: k}}",
            "{direct: true}",
        ] {
            assert_eq!(refused(endpoint, fine), None, "{fine}");
        }
        for (wrong, reason) in [
            ("{}", "exactly one"),
            ("{direct: false}", "exactly one"),
            ("{url: \"http://proxy.corp:3128\", direct: true}", "exactly one"),
            ("{direct: true, credentialsSecretRef: {name: s, key: k}}", "needs spec.proxy.url"),
            ("{url: \"http://ada:secret@proxy.corp:3128\"}", "url"),
            ("{url: \"socks5://proxy.corp:1080\"}", "url"),
        ] {
            let message = refused(endpoint, wrong).unwrap_or_default();
            assert!(message.contains(reason), "{wrong}: {message}");
        }
        let service = refused("service: {name: s, port: 80}", "{direct: true}").unwrap();
        assert!(service.contains("spec.endpoint"), "{service}");
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
