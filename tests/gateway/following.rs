//! Requests that go on from what one of two backends keeps.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, routing::post};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::bench::{Bench, edit, fails, good, json_answer};

type Asked = Arc<Mutex<Vec<Value>>>;

/// A model that keeps its responses, and knows no others. It fails to go on from them if
/// `forgets`.
async fn keeper(
    servers: &mut JoinSet<()>,
    name: &'static str,
    forgets: bool,
) -> (SocketAddr, Asked) {
    let (asked, made) = (Asked::default(), Arc::new(AtomicUsize::new(0)));
    let seen = asked.clone();
    let handler = post(move |Json(body): Json<Value>| {
        seen.lock().unwrap().push(body.clone());
        let id = format!("resp_{name}_{}", made.fetch_add(1, Ordering::Relaxed));
        async move {
            let previous = body["previous_response_id"].as_str();
            if previous.is_some_and(|previous| forgets || !previous.contains(name)) {
                return fails(if forgets { 500 } else { 404 });
            }
            json_answer(&json!({
                "id": id, "object": "response", "status": "completed", "model": "upstream-model",
                "output": [{"type": "message", "role": "assistant", "content":
                    [{"type": "output_text", "text": r#"{"answer": "because"}"#}]}],
                "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
            }))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/responses", handler);
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, asked)
}

/// Sixty users ask three things and then go on from the last answer: who answered, and the
/// status of the last. So few failures open no breaker.
async fn conversations(bench: &Bench, keyed: bool) -> Vec<(String, u16)> {
    let mut seconds = vec![];
    for user in 0..60 {
        let mut body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
        if keyed {
            body["user"] = json!(format!("user-{user}"));
        }
        for _ in 0..2 {
            assert_eq!(bench.post("/v1/responses", &body).await.status(), 200);
        }
        let first = bench.post("/v1/responses", &body).await;
        assert_eq!(first.status(), 200);
        let revision = first.headers()["x-serinus-revision"].to_str().unwrap().to_owned();
        let first: Value = first.json().await.unwrap();
        body["previous_response_id"] = first["id"].clone();
        let second = bench.post("/v1/responses", &body).await;
        seconds.push((revision, second.status().as_u16()));
    }
    seconds
}

/// Two variants with backends of their own.
struct Pair {
    bench: Bench,
    _servers: JoinSet<()>,
    models: [SocketAddr; 2],
    of_stable: Asked,
}

impl Pair {
    async fn new(canary_forgets: bool) -> Self {
        let (bench, mut servers) = (Bench::new(|_| good()).await, JoinSet::new());
        let (stable, of_stable) = keeper(&mut servers, "stable", false).await;
        let (canary, _) = keeper(&mut servers, "canary", canary_forgets).await;
        let pair = Self { bench, _servers: servers, models: [stable, canary], of_stable };
        pair.serve(50);
        pair
    }

    fn serve(&self, canary_weight: i32) {
        let mut release = self.bench.release(canary_weight);
        for (revision, model) in ["stable", "canary"].into_iter().zip(self.models) {
            edit(release.variants.get_mut(revision).unwrap(), |variant| {
                let endpoint = json!({"url": format!("http://{model}/v1")});
                variant.backend.endpoint = Some(serde_json::from_value(endpoint).unwrap());
            });
        }
        self.bench.serve(release);
    }
}

#[tokio::test]
async fn a_canary_that_can_not_go_on_from_its_own_responses_is_blamed() {
    let Pair { bench, of_stable, _servers, .. } = Pair::new(true).await;
    let seconds = conversations(&bench, true).await;
    let of_canary = seconds.iter().filter(|(revision, _)| revision == "canary").count() as u64;
    assert!(of_canary > 10, "{of_canary}");
    for (revision, status) in &seconds {
        assert_eq!(*status == 200, revision == "stable", "{revision}: {status}");
    }
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!((canary.requests, canary.errors), (4 * of_canary, of_canary));
    assert_eq!((stable.requests, stable.errors), (4 * (60 - of_canary), 0));
    let strange =
        of_stable.lock().unwrap().iter().any(|body| {
            body["previous_response_id"].as_str().is_some_and(|id| id.contains("canary"))
        });
    assert!(!strange, "stable was not asked for what it can not know");
}

#[tokio::test]
async fn a_request_without_a_sticky_key_goes_where_it_can_go_on_and_is_no_evidence() {
    let pair = Pair::new(false).await;
    let seconds = conversations(&pair.bench, false).await;
    assert!(seconds.iter().all(|(_, status)| *status == 200), "{seconds:?}");
    let (stable, canary) = (pair.bench.counts("stable"), pair.bench.counts("canary"));
    assert_eq!(stable.requests + canary.requests, 180, "the first three of each");
    assert!(canary.requests > 10 && stable.requests > 10);
}

#[tokio::test]
async fn a_user_that_a_step_moves_ends_a_conversation_where_it_began() {
    let pair = Pair::new(false).await;
    let mut first = vec![];
    for user in 0..30 {
        let body = json!({"model": "r", "user": format!("user-{user}"),
            "serinus": {"variables": {"question": "why?"}}});
        let answer = pair.bench.post("/v1/responses", &body).await;
        let answer: Value = answer.json().await.unwrap();
        first.push((body, answer["id"].clone()));
    }
    // Everybody draws the canary now.
    pair.serve(100);
    let (mut of_stable, mut of_canary) = (0, 0);
    for (mut body, id) in first {
        if id.as_str().unwrap().contains("canary") {
            of_canary += 1;
        } else {
            of_stable += 1;
        }
        body["previous_response_id"] = id;
        assert_eq!(pair.bench.post("/v1/responses", &body).await.status(), 200);
    }
    assert!(of_stable > 5 && of_canary > 5, "{of_stable} and {of_canary}");
    assert_eq!(pair.bench.counts("canary").requests, of_canary, "its own, and no others");
}
