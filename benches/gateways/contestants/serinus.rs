//! Serinus as it is shipped: manifests in a folder, a canary at half of the traffic that
//! never ends (its scores never come), users that stick to their variant, a prompt with variables, a response
//! format that every answer is checked against.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{Contestant, Place, Process, QUESTION, SYSTEM, Started, free_address};
use crate::{
    load::{Request, USER},
    model::SLOW,
    wire::Connection,
};

const RELEASE: &str = "bench";
/// Every request is traced; who asks is left to others.
const ARGUMENTS: &str = "--client-auth off --otlp-endpoint {collector}";
/// For the report of the admin address.
const TOKEN: &str = "a-token-of-this-bench-only-0123456789";

/// A canary at 50 %, beside so many other releases.
pub async fn canary_at_half(place: &Place, others: usize) -> Started {
    let step = "{weight: 50, samples: 10000000, deadline: 1000h}";
    let mut own = run(place, step, "", 2, others).await?;
    if others > 0 {
        (own.rates, own.everything) = (3_000..=3_000, false);
    }
    Ok(own)
}

/// A shadow gets a tenth of the requests, and takes half a second for each.
pub async fn shadow(place: &Place) -> Started {
    let steps = "{shadow: {percent: 10, samples: 10000000, deadline: 1000h}}, {weight: 50, samples: 100, deadline: 1h}";
    let mut own = run(place, steps, &format!(" {SLOW}"), 1, 0).await?;
    (own.rates, own.everything) = (500..=1_000, false);
    Ok(own)
}

async fn run(place: &Place, steps: &str, marker: &str, seen: usize, others: usize) -> Started {
    let file = place.folder.join("releases.yaml");
    let write = |version: &str| {
        let text = manifests(place, steps, marker, version, others);
        fs::write(&file, text).map_err(|e| e.to_string())
    };
    write("v1")?;
    let (address, admin) = (free_address(), free_address());
    let token = place.folder.join("token");
    fs::write(&token, TOKEN).map_err(|e| e.to_string())?;
    let extra = std::env::var("SERINUS_ARGS").unwrap_or(ARGUMENTS.to_owned());
    let given = extra.replace("{collector}", &format!("http://{}", place.model));
    let mut command = program();
    command
        .arg("standalone")
        .arg(&place.folder)
        .args(["--listen", &address.to_string(), "--admin", &admin.to_string()])
        .arg("--admin-token-file")
        .arg(&token)
        .args(given.split_whitespace())
        .env("RUST_LOG", "error");
    let setting = match others {
        0 => format!("the whole work; RUST_LOG=error; {extra}"),
        n => format!("the same beside {n} other releases"),
    };
    let mut own = Contestant::passing_on("serinus", address, &setting);
    own.process = Some(Process::start(&mut command)?);
    own.version = env!("CARGO_PKG_VERSION").to_owned();
    (own.plain, own.stream) = requests(address);
    super::answers(&mut own).await?;
    write("v2")?;
    let started = Instant::now();
    while started.elapsed() < super::LONGEST_START {
        sleep(Duration::from_millis(200)).await;
        if routed(&own.plain).await == seen && tells_of_a_canary(admin).await {
            return Ok(own);
        }
    }
    Err("the canary did not start".to_owned())
}

/// The binary of this build, or the words of SERINUS in its place.
fn program() -> Command {
    let words = std::env::var("SERINUS").unwrap_or(env!("CARGO_BIN_EXE_serinus").to_owned());
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

/// Whether the report names two variants: only then a shadow is under way, too.
async fn tells_of_a_canary(admin: std::net::SocketAddr) -> bool {
    let asked = async {
        let stream = tokio::net::TcpStream::connect(admin).await.ok()?;
        let mut connection = Connection::new(stream).ok()?;
        let request = format!(
            "GET /serinus/v1/report HTTP/1.1\r\nhost: {admin}\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
        );
        connection.write(request.as_bytes()).await.ok()?;
        let mut head = connection.head().await.ok()??;
        let mut body = vec![];
        connection.body(&mut head.body, |bytes| body.extend_from_slice(bytes)).await.ok()?;
        let report: serde_json::Value = serde_json::from_slice(&body).ok()?;
        let counts = &report["releases"][format!("default/{RELEASE}")]["counts"];
        Some(counts.as_object()?.len() == 2)
    };
    asked.await.unwrap_or(false)
}

fn requests(address: std::net::SocketAddr) -> (Request, Request) {
    let of = |stream: &str| {
        let body = format!(
            r#"{{"model":"{RELEASE}","messages":[],"user":"{USER}","serinus":{{"variables":{{"product":"Pan","question":"{QUESTION}"}}}}{stream}}}"#
        );
        Request::new(address, "/v1/chat/completions", &[], &body)
    };
    (of(""), of(r#","stream":true"#))
}

fn manifests(place: &Place, steps: &str, marker: &str, version: &str, others: usize) -> String {
    let model = place.model;
    let prompt = |version: &str, marker: &str| {
        format!(
            r#"apiVersion: serinus.dev/v1alpha1
kind: PromptVersion
metadata: {{name: bench-{version}}}
spec:
  prompt: bench
  messages:
    - {{role: system, content: "{SYSTEM} {{{{ product }}}}.{marker}"}}
    - {{role: user, content: "{{{{ question }}}}"}}
  variables:
    type: object
    required: [product, question]
    properties: {{product: {{type: string}}, question: {{type: string}}}}
  parameters: {{temperature: 0.2, maxTokens: 512}}
  responseFormat: {{type: object, required: [answer], properties: {{answer: {{type: string}}}}}}
---
"#
        )
    };
    let release = |name: &str, version: &str| {
        format!(
            r#"apiVersion: serinus.dev/v1alpha1
kind: PromptRelease
metadata: {{name: {name}}}
spec:
  promptRef: {{name: bench-{version}}}
  backendRef: {{name: bench}}
  policyRef: {{name: bench}}
---
"#
        )
    };
    let others: String = (0..others).map(|i| release(&format!("other-{i}"), "v1")).collect();
    format!(
        r#"apiVersion: serinus.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: bench}}
spec:
  provider: openai
  model: gpt-4o-mini
  endpoint: {{url: "http://{model}/v1"}}
  limits: {{maxConcurrency: 5000}}
---
apiVersion: serinus.dev/v1alpha1
kind: CanaryPolicy
metadata: {{name: bench}}
spec:
  stickiness: {{from: ["body:user"]}}
  steps: [{steps}]
  analysis:
    metrics:
      - {{name: errors, errorRate: {{}}, margin: {{harm: 0.5, accept: 0.6}}}}
      - {{name: ttft, timeToFirstToken: {{quantile: 0.95}}, margin: {{harm: 0.5, accept: 0.6}}}}
      - {{name: checks, checkFailures: {{}}, margin: {{harm: 0.5, accept: 0.6}}}}
      - {{name: cost, costPerRequest: {{}}, margin: {{harm: 0.5, accept: 0.6}}}}
      # Nobody sends scores, so that the canary has to wait for them.
      - {{name: helpful, score: {{name: helpful, minSamples: 100}}, margin: {{harm: 0.5, accept: 0.6}}}}
---
{}{}{}{others}"#,
        prompt("v1", ""),
        prompt("v2", if marker.is_empty() { " Be kind." } else { marker }),
        release(RELEASE, version),
    )
}
