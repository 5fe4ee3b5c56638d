//! Simulated users: conversations that stick, half of them streaming, with feedback on
//! what they got. They see what a real user sees: the answer or an error.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::keys;

/// What users saw so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub answers: u64,
    pub errors: u64,
    pub by_revision: BTreeMap<String, u64>,
    pub last_error: Option<String>,
}

/// Sends about `rate` requests a second to `base` until `stop`.
///
/// `judge` says how good an answer was, 0 to 1, when it can tell.
pub(super) async fn run(
    base: String,
    route: String,
    rate: f64,
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
) {
    let client = reqwest::Client::new();
    let mut rng = StdRng::seed_from_u64(1);
    let mut tasks = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        while tasks.try_join_next().is_some() {}
        if tasks.len() > 500 {
            continue;
        }
        // A few turns each: conversations come and go.
        let conversation = format!("conversation-{}", rng.random_range(0..5000_u32));
        let stream = rng.random::<bool>();
        let (client, base, route, seen) =
            (client.clone(), base.clone(), route.clone(), seen.clone());
        tasks.spawn(async move {
            let result = ask(&client, &base, &route, &conversation, stream).await;
            note(&seen, result);
        });
    }
    while tasks.join_next().await.is_some() {}
}

fn note(seen: &Mutex<Seen>, result: anyhow::Result<String>) {
    let Ok(mut seen) = seen.lock() else { return };
    match result {
        Ok(revision) => {
            seen.answers += 1;
            *seen.by_revision.entry(revision).or_default() += 1;
        }
        Err(error) => {
            seen.errors += 1;
            seen.last_error = Some(format!("{error:#}"));
        }
    }
}

/// One question. Returns the revision that answered.
async fn ask(
    client: &reqwest::Client,
    base: &str,
    route: &str,
    conversation: &str,
    stream: bool,
) -> anyhow::Result<String> {
    let body = json!({
        "model": route,
        "stream": stream,
        "serinus": {"variables": {"product": "the canary", "question": "How is it fed?"}},
    });
    let response = client
        .post(format!("{base}/v1/chat/completions"))
        .header("x-conversation-id", conversation)
        .json(&body)
        .send()
        .await?;
    let header = |name: &str| {
        response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (revision, request_id) = (header(keys::REVISION_HEADER), header(keys::REQUEST_ID_HEADER));
    let status = response.status();
    let text = response.text().await?;
    anyhow::ensure!(status.is_success(), "{status}: {text}");
    if stream {
        anyhow::ensure!(text.contains("[DONE]"), "the stream broke: {text}");
    } else {
        let answer: Value = serde_json::from_str(&text)?;
        if let Some(score) = answer.get("sim_quality").and_then(Value::as_f64) {
            let feedback = json!({"request_id": request_id, "score": score, "name": "helpfulness"});
            client.post(format!("{base}/serinus/v1/feedback")).json(&feedback).send().await?;
        }
    }
    Ok(revision)
}
