//! Serinus as it runs in a cluster: a gateway that follows releases, with a canary at half
//! of the traffic, users that stick to their variant, a prompt with variables, a response
//! format that every answer is checked against, a span for every request, and an operator
//! that takes its evidence once a second.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use serinus::api::snapshot::copy_name;
use tokio::time::sleep;

use super::{Contestant, Place, Process, QUESTION, SYSTEM, Started, free_address};
use crate::{
    cluster::{self, KEY},
    load::{Request, USER},
    model::SLOW,
    wire::Connection,
};

const RELEASE: &str = "bench";
/// Every request is traced; who asks is left to others.
const ARGUMENTS: &str = "--client-auth off --otlp-endpoint {collector}";

/// A canary at 50 %, beside so many other releases.
pub async fn canary_at_half(place: &Place, others: usize) -> Started {
    let canary = json!({"revision": "canary", "role": "canary", "weight": 50});
    let mut own = run(place, canary, "Be kind.", 2, others).await?;
    if others > 0 {
        // What a route needs for its first request, it holds from then on.
        for name in (0..others).map(other_name) {
            let (plain, _) = requests(own.plain.address, &name);
            revision(&plain, 0).await.ok_or_else(|| format!("{name} does not answer"))?;
        }
        (own.rates, own.everything) = (3_000..=3_000, false);
    }
    Ok(own)
}

/// A shadow gets a tenth of the requests, and takes half a second for each.
pub async fn shadow(place: &Place) -> Started {
    let shadow = json!({"revision": "shadow", "role": "shadow", "weight": 0, "copies": 10});
    let mut own = run(place, shadow, SLOW, 1, 0).await?;
    (own.rates, own.everything) = (500..=1_000, false);
    Ok(own)
}

/// Stable and another variant, whose prompt says something more; users meet `seen` of them.
async fn run(place: &Place, other: Value, more: &str, seen: usize, others: usize) -> Started {
    lists(place, &other, more, others).map_err(|e| e.to_string())?;
    let (address, admin, server) = (free_address(), free_address(), free_address());
    let config = place.folder.join("kubeconfig");
    fs::write(&config, kubeconfig(server)).map_err(|e| e.to_string())?;
    let mut cluster = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    cluster.args(["cluster", &server.to_string()]).arg(&place.folder).arg(admin.to_string());
    let cluster = Process::start(cluster.stdout(Stdio::null()))?;
    let extra = std::env::var("SERINUS_ARGS").unwrap_or(ARGUMENTS.to_owned());
    let given = extra.replace("{collector}", &format!("http://{}", place.model));
    let mut command = program(place);
    command
        .arg("gateway")
        .args(["--listen", &address.to_string(), "--admin", &admin.to_string()])
        .args(["--grace-seconds", "0"])
        .args(given.split_whitespace())
        .env("KUBECONFIG", &config)
        .env("RUST_LOG", "warn");
    let setting = match others {
        0 => format!("the whole work; RUST_LOG=warn; {extra}"),
        n => format!("the same beside {n} other releases, each asked once"),
    };
    let mut own = Contestant::passing_on("serinus", address, &setting);
    own.process = Some(Process::start(&mut command)?);
    own.cluster = Some(cluster);
    own.version = env!("CARGO_PKG_VERSION").to_owned();
    (own.plain, own.stream) = requests(address, RELEASE);
    super::answers(&mut own).await?;
    let started = Instant::now();
    while started.elapsed() < super::LONGEST_START {
        sleep(Duration::from_millis(200)).await;
        if routed(&own.plain).await == seen && tells_of_two(admin).await {
            return Ok(own);
        }
    }
    Err("the other variant did not start".to_owned())
}

/// The binary of this build, or the words of a variable in its place.
fn program(place: &Place) -> Command {
    let words = std::env::var(place.binary).unwrap_or(env!("CARGO_BIN_EXE_serinus").to_owned());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// How many variants users meet.
pub async fn routed(request: &Request) -> usize {
    let mut revisions = BTreeSet::new();
    for user in 0..32 {
        revisions.extend(revision(request, user).await);
    }
    revisions.len()
}

async fn revision(request: &Request, user: u64) -> Option<String> {
    let stream = tokio::net::TcpStream::connect(request.address).await.ok()?;
    let mut connection = Connection::new(stream).ok()?;
    connection.write(request.clone().as_user(user)).await.ok()?;
    let head = connection.head().await.ok()??;
    head.header("x-serinus-revision").map(str::to_owned)
}

/// Whether the report has evidence about two variants.
async fn tells_of_two(admin: std::net::SocketAddr) -> bool {
    let Ok(body) = cluster::report(admin).await else { return false };
    let report: Value = serde_json::from_slice(&body).unwrap_or_default();
    let counts = &report["releases"][format!("default/{RELEASE}")]["counts"];
    counts.as_object().is_some_and(|counts| counts.len() == 2)
}

fn requests(address: std::net::SocketAddr, release: &str) -> (Request, Request) {
    let of = |stream: &str| {
        let body = format!(
            r#"{{"model":"{release}","messages":[],"user":"{USER}","serinus":{{"variables":{{"product":"Pan","question":"{QUESTION}"}}}}{stream}}}"#
        );
        Request::new(address, "/v1/chat/completions", &[], &body)
    };
    (of(""), of(r#","stream":true"#))
}

/// What the API server lists.
fn lists(place: &Place, other: &Value, more: &str, others: usize) -> std::io::Result<()> {
    let backend = json!({
        "provider": "openai", "model": "gpt-4o-mini",
        "endpoint": {"url": format!("http://{}/v1", place.model)},
        "limits": {"maxConcurrency": 5000},
    });
    let copy = |release: &str, revision: &str, more: &str| {
        let prompt = json!({
            "prompt": release,
            "messages": [
                {"role": "system", "content": format!("{SYSTEM} {{{{ product }}}}. {more}")},
                {"role": "user", "content": "{{ question }}"},
            ],
            "variables": {
                "type": "object", "required": ["product", "question"],
                "properties": {"product": {"type": "string"}, "question": {"type": "string"}},
            },
            "parameters": {"temperature": 0.2, "maxTokens": 512},
            "responseFormat": {
                "type": "object", "required": ["answer"],
                "properties": {"answer": {"type": "string"}},
            },
        });
        let variant = json!({
            "promptName": format!("{release}-{revision}"), "prompt": prompt,
            "backendName": "bench", "backend": backend,
        });
        json!({"metadata": metadata(&copy_name(release, revision)), "spec": {
            "release": release, "revision": revision, "type": "Variant", "variant": variant,
        }})
    };
    let release = |name: &str, other: Option<&Value>| {
        let weight = 100 - other.map_or(0, |other| other["weight"].as_i64().unwrap_or(0));
        let stable = json!({"revision": "stable", "role": "stable", "weight": weight});
        let variants: Vec<&Value> = std::iter::once(&stable).chain(other).collect();
        let spec = json!({
            "promptRef": {"name": format!("{name}-stable")}, "backendRef": {"name": "bench"},
            "policyRef": {"name": "bench"},
        });
        let settings = json!({"stickyFrom": ["body:user"], "fallbackToStable": true});
        let routing = json!({
            "generation": 2, "variants": variants, "settings": settings, "observedBy": "1/1",
        });
        json!({"metadata": metadata(name), "spec": spec, "status": {"routing": routing}})
    };
    let (mut releases, mut copies) = (vec![release(RELEASE, Some(other))], vec![]);
    copies.push(copy(RELEASE, "stable", ""));
    copies.push(copy(RELEASE, other["revision"].as_str().unwrap_or_default(), more));
    for name in (0..others).map(other_name) {
        copies.push(copy(&name, "stable", &format!("You are number {name}.")));
        releases.push(release(&name, None));
    }
    write(&place.folder, "promptreleases", releases)?;
    write(&place.folder, "releasesnapshots", copies)?;
    let mut secret = metadata("serinus-request-ids");
    secret["namespace"] = "serinus-system".into();
    let keys = json!({"bench": STANDARD.encode(KEY)});
    write(&place.folder, "secrets", vec![json!({"metadata": secret, "data": keys})])?;
    let deployment = json!({"metadata": metadata("bench"), "spec": backend});
    write(&place.folder, "llmdeployments", vec![deployment])
}

fn other_name(number: usize) -> String {
    format!("other-{number}")
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
        "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
    })
}

fn write(folder: &Path, kind: &str, items: Vec<Value>) -> std::io::Result<()> {
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
    fs::write(folder.join(format!("{kind}.json")), list.to_string())
}

fn kubeconfig(server: std::net::SocketAddr) -> String {
    format!(
        r#"apiVersion: v1
kind: Config
current-context: bench
contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]
clusters: [{{name: bench, cluster: {{server: "http://{server}"}}}}]
users: [{{name: bench, user: {{}}}}]
"#
    )
}
