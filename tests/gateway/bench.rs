//! A gateway, a scripted model and a client.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, http::Response, routing::post};
use jiff::Timestamp;
use serde_json::{Value, json};
use serinus::{
    api::{
        LLMDeploymentSpec, PromptVersionSpec, Variant,
        prompt_release::{Counts, RoutedVariant, Routing, RoutingSettings, VariantRole},
        snapshot::PackedVariant,
    },
    gateway::{
        Gateway, GatewayConfig,
        cache::{Cache, CacheConfig},
        identity::{Identities, TokenFile},
        renderer::Program,
        routes::ReleaseInput,
        server::{Door, Face, serve},
        tls::ServerTls,
    },
    signals::report::ReleaseReport,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// The model's answer to one request.
pub type Script = Arc<dyn Fn(&Value) -> Response<Body> + Send + Sync>;

/// With this people look at what only they may.
pub const PEOPLES_TOKEN: &str = "of-the-people-of-this-test";

fn people() -> Arc<TokenFile> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), PEOPLES_TOKEN).unwrap();
    TokenFile::open(file.path().to_owned()).unwrap()
}

/// A test is not the program.
fn renderer() -> Program {
    Program { path: env!("CARGO_BIN_EXE_serinus").into(), ..Program::default() }
}

/// A gateway that asks nobody who they are.
pub fn open() -> GatewayConfig {
    let _ = rustls::crypto::ring::default_provider().install_default();
    GatewayConfig {
        control_loss_timeout: Duration::from_secs(600),
        identities: Identities::off(),
        people: Some(people()),
        renderer: renderer(),
        cache: Cache::new(CacheConfig { memory: 16 << 20, shared: None }).ok(),
        ..GatewayConfig::new(|| Timestamp::UNIX_EPOCH)
    }
}

/// Changes a variant as if it had been saved otherwise.
pub fn edit(saved: &mut Arc<PackedVariant>, change: impl FnOnce(&mut Variant)) {
    let mut variant = saved.open().unwrap();
    change(&mut variant);
    *saved = Arc::new((&variant).into());
}

pub struct Bench {
    pub gateway: Arc<Gateway>,
    pub address: SocketAddr,
    pub model: SocketAddr,
    pub asked: Arc<Mutex<Vec<Value>>>,
    pub client: reqwest::Client,
    pub stop: CancellationToken,
    pub servers: JoinSet<()>,
}

impl Bench {
    pub async fn new(script: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::with_control_loss(Duration::from_secs(600), script).await
    }

    pub async fn with_control_loss(
        control_loss_timeout: Duration,
        script: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self::configured(GatewayConfig { control_loss_timeout, ..open() }, script).await
    }

    pub async fn configured(
        config: GatewayConfig,
        script: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self::behind(config, None, script).await
    }

    /// With TLS, if it is given.
    pub async fn behind(
        config: GatewayConfig,
        tls: Option<Arc<ServerTls>>,
        script: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        // The client chooses its TLS when it is made; the commands do the same when they start.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let asked = Arc::new(Mutex::new(vec![]));
        let mut servers = JoinSet::new();
        let model = start_model(&mut servers, Arc::new(script), asked.clone()).await;
        let gateway = Gateway::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let until = stop.clone().cancelled_owned();
        let patience = Duration::from_secs(10);
        let door = Door::from(listener).with_tls(tls);
        servers.spawn(serve(door, Face::Applications, gateway.clone(), until, patience));
        Self { gateway, address, model, asked, client: reqwest::Client::new(), stop, servers }
    }

    /// A release `r` with `stable`, and `canary` at a weight.
    pub fn release(&self, canary_weight: i32) -> ReleaseInput {
        let variant = |name: &str| Variant {
            prompt_name: name.to_owned(),
            prompt: prompt(name),
            backend_name: "backend".to_owned(),
            backend: backend(self.model),
        };
        let routed = |revision: &str, role, weight| RoutedVariant {
            revision: revision.to_owned(),
            role,
            weight,
            copies: None,
        };
        let mut variants = vec![routed("stable", VariantRole::Stable, 100 - canary_weight)];
        if canary_weight > 0 {
            variants.push(routed("canary", VariantRole::Canary, canary_weight));
        }
        ReleaseInput {
            namespace: "ns".to_owned(),
            name: "r".to_owned(),
            uid: "uid".to_owned(),
            route: "r".to_owned(),
            created: "2026-01-01".to_owned(),
            routing: Routing {
                generation: i64::from(canary_weight) + 1,
                variants,
                settings: RoutingSettings {
                    sticky_from: vec![
                        "header:x-conversation-id".to_owned(),
                        "body:user".to_owned(),
                    ],
                    fallback_to_stable: true,
                },
                observed_by: String::new(),
            },
            variants: [("stable", variant("stable")), ("canary", variant("canary"))]
                .map(|(n, v)| (n.to_owned(), Arc::new((&v).into())))
                .into(),
            ..ReleaseInput::default()
        }
    }

    pub fn serve(&self, release: ReleaseInput) {
        self.gateway.set_world(&[release].into_iter().collect());
    }

    /// One more model, whose requests are not kept.
    pub async fn another_model(
        &self,
        script: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static,
    ) -> SocketAddr {
        let mut servers = JoinSet::new();
        let model = start_model(&mut servers, Arc::new(script), Arc::default()).await;
        // It ends with the runtime of the test.
        servers.detach_all();
        model
    }

    /// A chat with the variable `question` set and `more` laid over the body.
    pub async fn chat(&self, more: Value) -> reqwest::Response {
        let mut body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        self.post("/v1/chat/completions", &body).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(format!("http://{}{path}", self.address)).json(body).send().await.unwrap()
    }

    pub fn report(&self) -> ReleaseReport {
        self.gateway.report(false).releases["ns/r"].clone()
    }

    pub fn counts(&self, revision: &str) -> Counts {
        Counts::clone(&self.report().counts[revision])
    }

    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

async fn start_model(
    servers: &mut JoinSet<()>,
    script: Script,
    asked: Arc<Mutex<Vec<Value>>>,
) -> SocketAddr {
    let handler = post(move |axum::Json(body): axum::Json<Value>| {
        let (script, asked) = (script.clone(), asked.clone());
        async move {
            asked.lock().unwrap().push(body.clone());
            script(&body)
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/v1/chat/completions", handler.clone())
        .route("/v1/embeddings", handler.clone())
        .route("/v1/responses", handler);
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

pub fn prompt(name: &str) -> PromptVersionSpec {
    serde_json::from_value(json!({
        "prompt": "p",
        "messages": [
            {"role": "system", "content": format!("I am {name}.")},
            {"role": "user", "content": "{{ question }}"},
        ],
        "variables": {"type": "object", "required": ["question"],
            "properties": {"question": {"type": "string"}}},
        "parameters": {"temperature": 0.5, "maxTokens": 9},
        "responseFormat": {"type": "object", "required": ["answer"]},
        "tools": [{"type": "function", "function": {"name": "look_up"}}],
    }))
    .unwrap()
}

fn backend(model: SocketAddr) -> LLMDeploymentSpec {
    serde_json::from_value(json!({
        "provider": "test", "model": "upstream-model",
        "endpoint": {"url": format!("http://{model}/v1")},
        "pricing": {"inputPerMillion": 1.0, "outputPerMillion": 10.0},
        "limits": {"timeout": "5s", "firstTokenTimeout": "2s"},
    }))
    .unwrap()
}

/// Which variant's prompt a request carries.
pub fn variant(request: &Value) -> String {
    let text = request["messages"][0]["content"].as_str().unwrap();
    text.trim_start_matches("I am ").trim_end_matches('.').to_owned()
}

pub fn json_answer(body: &Value) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// A good answer with this content.
pub fn says(content: &str, finish: &str) -> Response<Body> {
    json_answer(&json!({
        "id": "1", "object": "chat.completion", "created": 0, "model": "upstream-model",
        "choices": [{"index": 0, "finish_reason": finish,
            "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }))
}

pub fn good() -> Response<Body> {
    says(r#"{"answer": "because"}"#, "stop")
}

pub fn fails(status: u16) -> Response<Body> {
    let body = json!({"error": {"message": "no", "type": "server_error", "code": "no"}});
    Response::builder().status(status).body(Body::from(body.to_string())).unwrap()
}

/// One event of a stream.
pub fn event(content: &str, finish: Option<&str>) -> String {
    let chunk = json!({
        "id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}],
    });
    format!("data: {chunk}\n\n")
}

/// An answer that is a stream of events.
pub fn streamed(
    events: impl futures::Stream<Item = Result<String, std::io::Error>> + Send + 'static,
) -> Response<Body> {
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Body::from_stream(events))
        .unwrap()
}
