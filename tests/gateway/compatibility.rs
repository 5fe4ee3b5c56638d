//! What reaches the model of an application's request, and what reaches the application
//! of a model's answer, byte for byte.
//!
//! A case of a request is a file `tests/fixtures/requests/VARIANT/OPERATION-CASE.json`:
//! the body as the application sends it to the route `r`, which `VARIANT/variant.yaml`
//! answers. `OPERATION-CASE.upstream.json` is what the model must get; with
//! `SERINUS_REFRESH=1` it is written. Answers are those of `tests/fixtures/providers`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Response, Uri},
};
use serde::Deserialize;
use serde_json::{Value, json};
use serinus::{
    api::{
        PromptVersionSpec,
        prompt_release::{RoutedVariant, VariantRole},
    },
    gateway::routes::ReleaseInput,
};
use tokio::net::TcpListener;

use crate::bench::{Bench, edit, event, good};

const NAME: &str = "upstream-model";

#[derive(Deserialize)]
struct Variant {
    provider: String,
    prompt: PromptVersionSpec,
}

/// What a model got.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A gateway in front of a model that keeps what it gets and answers with `answer`.
struct Rig {
    bench: Bench,
    release: ReleaseInput,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Rig {
    async fn new(
        variant: &Variant,
        answer: impl Fn() -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let bench = Bench::new(|_| good()).await;
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let (kept, answer) = (got.clone(), Arc::new(answer));
        let handler = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let (kept, answer) = (kept.clone(), answer.clone());
            async move {
                kept.lock().unwrap().push(Got { path: uri.to_string(), headers, body });
                answer()
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let router = Router::new().fallback(handler);
        let mut servers = tokio::task::JoinSet::new();
        servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
        // It ends with the runtime of the test.
        servers.detach_all();
        let mut release = bench.release(0);
        for kept in release.variants.values_mut() {
            edit(kept, |kept| {
                kept.prompt = variant.prompt.clone();
                kept.backend.provider.clone_from(&variant.provider);
                kept.backend.endpoint.as_mut().unwrap().url.clone_from(&url);
                kept.backend.model = NAME.to_owned();
            });
        }
        bench.serve(release.clone());
        Self { bench, release, got }
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let url = format!("http://{}{path}", self.bench.address);
        let sent = self.bench.client.post(url).header("content-type", "application/json");
        sent.body(body).send().await.unwrap()
    }

    fn last(&self) -> Got {
        self.got.lock().unwrap().last().unwrap().clone()
    }
}

fn plain() -> Variant {
    variant(&requests().join("plain"))
}

fn requests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/requests")
}

fn variant(folder: &Path) -> Variant {
    serde_yaml_ng::from_slice(&fs::read(folder.join("variant.yaml")).unwrap()).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn path_of(case: &str) -> &'static str {
    match case.split(['.', '-']).next().unwrap() {
        "completions" | "completion" => "/v1/completions",
        "embeddings" => "/v1/embeddings",
        "responses" => "/v1/responses",
        _ => "/v1/chat/completions",
    }
}

#[tokio::test]
async fn every_request_reaches_the_model_byte_for_byte_as_its_fixture_says() {
    let (mut cases, mut wrong) = (0, vec![]);
    for folder in files(&requests()) {
        let rig = Rig::new(&variant(&folder), good).await;
        for file in files(&folder) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if !name.ends_with(".json") || name.ends_with(".upstream.json") {
                continue;
            }
            cases += 1;
            let answer = rig.post(path_of(name), fs::read(&file).unwrap()).await;
            // Only the way there matters here: who asked for a stream or for vectors gets
            // neither, which is a failure of the model.
            assert!(
                [200, 502].contains(&answer.status().as_u16()),
                "{name}: {:?}",
                answer.text().await
            );
            let got = rig.last();
            assert_eq!(got.path, path_of(name));
            serde_json::from_slice::<Value>(&got.body).unwrap();
            let body = [&got.body[..], b"\n"].concat();
            let expected = file.with_extension("upstream.json");
            if std::env::var_os("SERINUS_REFRESH").is_some() {
                fs::write(&expected, &body).unwrap();
            } else if fs::read(&expected).ok().as_deref() != Some(&body) {
                wrong.push(format!("{}: {}", file.display(), String::from_utf8_lossy(&body)));
            }
        }
    }
    assert!(cases > 20, "{cases}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The answers of real servers: their files, and whether they are streams.
/// Good answers, and whether they are streams.
fn answers() -> Vec<(PathBuf, bool)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/providers");
    let all = files(&root).into_iter().flat_map(|folder| files(&folder));
    all.filter(|file| !file.to_string_lossy().ends_with(".expected.json"))
        .filter(|file| {
            // What is an error or no answer does not reach the application as it is.
            let expected = fs::read(file.with_extension("expected.json")).unwrap();
            let expected: Value = serde_json::from_slice(&expected).unwrap();
            expected["failed"] != true && expected["missing"] != true
        })
        .map(|file| (file.clone(), file.extension().is_some_and(|e| e == "sse")))
        .collect()
}

/// What an application gets that asks `request` of a model that answers with `file`.
async fn answered(file: &Path, stream: bool, request: &Value) -> (u16, Vec<u8>) {
    let bytes = fs::read(file).unwrap();
    let kind = if stream { "text/event-stream" } else { "application/json" };
    let answer = move || {
        Response::builder().header("content-type", kind).body(Body::from(bytes.clone())).unwrap()
    };
    let rig = Rig::new(&plain(), answer).await;
    let path = path_of(file.file_name().unwrap().to_str().unwrap());
    let answer = rig.post(path, request.to_string()).await;
    (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn every_servers_answer_reaches_the_application_byte_for_byte() {
    let mut streams = 0;
    for (file, stream) in answers() {
        let request = if stream {
            json!({"model": "r", "stream": true, "stream_options": {"include_usage": true}})
        } else {
            let encoding =
                if file.to_string_lossy().contains("base64") { "base64" } else { "float" };
            json!({"model": "r", "input": "x", "encoding_format": encoding})
        };
        let (status, got) = answered(&file, stream, &request).await;
        assert_eq!((status, got == fs::read(&file).unwrap()), (200, true), "{}", file.display());
        streams += usize::from(stream);
    }
    assert!(streams > 5, "{streams}");
}

#[tokio::test]
async fn an_application_that_did_not_ask_for_usage_gets_everything_but_events_of_usage_alone() {
    let mut hidden = 0;
    for (file, _) in answers().into_iter().filter(|(_, stream)| *stream) {
        if path_of(file.file_name().unwrap().to_str().unwrap()) == "/v1/responses" {
            continue;
        }
        let (_, got) = answered(&file, true, &json!({"model": "r", "stream": true})).await;
        let (got, sent) = (String::from_utf8(got).unwrap(), fs::read_to_string(&file).unwrap());
        let mut got = got.split("\n\n");
        let mut next = got.next();
        for one in sent.split("\n\n") {
            if next == Some(one) {
                next = got.next();
                continue;
            }
            let left_out: Value =
                serde_json::from_str(one.trim_start_matches("data:").trim()).unwrap();
            assert!(left_out["usage"].is_object(), "{}: {one}", file.display());
            let choices = left_out["choices"].as_array();
            assert!(choices.is_none_or(Vec::is_empty), "{}: {one}", file.display());
            hidden += 1;
        }
        assert_eq!(next, None, "{}", file.display());
    }
    assert!(hidden > 3, "{hidden}");
}

#[tokio::test]
async fn headers_that_concern_the_model_go_there_and_keys_do_not() {
    let answer = || {
        Response::builder()
            .header("content-type", "application/json")
            .header("x-request-id", "theirs")
            .header("x-ratelimit-remaining-tokens", "5")
            .header("x-ratelimit-limit-req-10-second", "5")
            .header("x-ratelimit-limit-tokens_usage_based", "5")
            .header("x-ratelimit-sk-live-9f8a7b6c5d4e3f2g1h0j", "5")
            .header("set-cookie", "a=b")
            .body(Body::from("{}"))
            .unwrap()
    };
    let rig = Rig::new(&plain(), answer).await;
    let url = format!("http://{}/v1/chat/completions", rig.bench.address);
    let mut sent = rig.bench.client.post(url).body(r#"{"model":"r"}"#);
    for name in ["openai-beta", "idempotency-key", "api-key", "cookie", "openai-organization"] {
        sent = sent.header(name, "mine");
    }
    let answer = sent.bearer_auth("mine").send().await.unwrap();
    let got = rig.last().headers;
    assert_eq!(got["openai-beta"], "mine");
    assert!(got["idempotency-key"].to_str().unwrap().starts_with("mine-"), "{got:?}");
    for name in ["authorization", "api-key", "cookie", "openai-organization"] {
        assert!(got.get(name).is_none(), "{name}");
    }
    assert_eq!(answer.headers()["x-request-id"], "theirs");
    assert_eq!(answer.headers()["x-ratelimit-remaining-tokens"], "5");
    let limits = answer.headers().keys().filter(|name| name.as_str().starts_with("x-ratelimit-"));
    assert_eq!(limits.count(), 3, "a name may be a key");
    assert!(answer.headers().get("set-cookie").is_none());
}

#[tokio::test]
async fn each_variant_gets_an_idempotency_key_of_its_own_and_a_repetition_the_same() {
    let rig = Rig::new(&plain(), good).await;
    let mut release = rig.release.clone();
    release.routing.generation = 7;
    release.routing.variants.push(RoutedVariant {
        revision: "canary".to_owned(),
        role: VariantRole::Shadow,
        weight: 0,
        copies: Some(100),
    });
    rig.bench.serve(release);
    for _ in 0..2 {
        let url = format!("http://{}/v1/chat/completions", rig.bench.address);
        let sent = rig.bench.client.post(url).header("idempotency-key", "mine");
        assert_eq!(sent.body(r#"{"model":"r"}"#).send().await.unwrap().status(), 200);
    }
    let keys = || -> Vec<String> {
        let got = rig.got.lock().unwrap();
        let key = |got: &Got| got.headers["idempotency-key"].to_str().unwrap().to_owned();
        got.iter().map(key).collect()
    };
    while keys().len() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut keys = keys();
    keys.sort();
    assert!(keys[0] == keys[1] && keys[2] == keys[3] && keys[0] != keys[3], "{keys:?}");
}

#[tokio::test]
async fn a_model_without_request_ids_gets_ours_so_that_clients_can_show_one() {
    let rig = Rig::new(&plain(), good).await;
    let answer = rig.post("/v1/chat/completions", r#"{"model":"r"}"#).await;
    assert_eq!(answer.headers()["x-request-id"], answer.headers()["x-serinus-request-id"]);
}

#[tokio::test]
async fn azures_paths_name_the_route_and_the_body_need_not() {
    let rig = Rig::new(&plain(), good).await;
    for body in [r#"{"messages":[]}"#, r#"{"messages":[],"model":"what-azure-ignores"}"#] {
        let path = "/openai/deployments/r/chat/completions?api-version=2024-10-21";
        assert_eq!(rig.post(path, body).await.status(), 200);
        let got = rig.last();
        assert_eq!(got.path, "/v1/chat/completions");
        let sent: Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(sent["model"], NAME);
    }
    let other = rig.post("/openai/deployments/other/chat/completions", "{}").await;
    assert_eq!(other.status(), 404);
}

/// A stream of these pieces, the connection broken after them.
fn broken(pieces: Vec<String>) -> Response<Body> {
    let pieces = pieces.into_iter().map(Ok).chain([Err(std::io::Error::other("broken"))]);
    let paced = futures::stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.next()?;
        // Each is under way on its own when the next comes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((piece, pieces))
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Body::from_stream(paced))
        .unwrap()
}

#[tokio::test]
async fn a_stream_that_breaks_within_an_event_ends_with_one_that_clients_can_read() {
    for wants_usage in [false, true] {
        let half = || broken(vec![event("a", None), r#"data: {"choices":[{"del"#.to_owned()]);
        let rig = Rig::new(&plain(), half).await;
        let request =
            json!({"model": "r", "stream": true, "stream_options": {"include_usage": wants_usage}});
        let answer = rig.post("/v1/chat/completions", request.to_string()).await;
        let text = answer.text().await.unwrap();
        let events: Vec<Value> = text
            .split_terminator("\n\n")
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect();
        assert_eq!(events.len(), 2, "{text}");
        assert_eq!(events[1]["error"]["code"], "upstream_broken");
    }
}

#[tokio::test]
async fn what_a_model_says_at_the_start_of_a_stream_that_failed_is_passed_on() {
    let error = json!({"error": {"message": "out of memory", "type": "server_error", "code": 507}});
    let said = error.clone();
    let failed = move || {
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from(format!("data: {said}\n\ndata: [DONE]\n\n")))
            .unwrap()
    };
    let rig = Rig::new(&plain(), failed).await;
    let answer = rig.post("/v1/chat/completions", r#"{"model":"r","stream":true}"#).await;
    assert_eq!(answer.status(), 507, "as it is told");
    assert_eq!(answer.json::<Value>().await.unwrap(), error);
}
