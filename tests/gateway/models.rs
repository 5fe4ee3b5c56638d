//! Models that end: what their servers say of that, and what operators are told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderMap, Response, StatusCode},
    routing::get,
};
use jiff::civil::Date;
use serde_json::{Value, json};
use serinus::{
    api::{SecretText, llm_deployment::SecretKeyRef},
    gateway::ends::ask_once,
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::bench::{Bench, edit, good};

fn gone() -> Response<Body> {
    let body = r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#;
    Response::builder().status(404).body(Body::from(body)).unwrap()
}

#[tokio::test]
async fn operators_are_told_of_a_model_that_is_gone_again_and_again_and_not_of_one_answer() {
    let is_gone = Arc::new(AtomicBool::new(true));
    let says = is_gone.clone();
    let model = move |_: &Value| if says.load(Ordering::Relaxed) { gone() } else { good() };
    let bench = Bench::new(model).await;
    let other = bench.another_model(|_| good()).await;
    let mut release = bench.release(0);
    let mut spare = release.variants["stable"].open().unwrap().backend;
    spare.endpoint.as_mut().unwrap().url = format!("http://{other}/v1");
    release.backends.insert("spare".to_owned(), Arc::new(spare));
    release.other_backends = vec!["spare".to_owned()];
    bench.serve(release.clone());
    for times in [2, 2] {
        for _ in 0..times {
            assert_eq!(bench.chat(json!({})).await.status(), 200, "the spare one answers");
        }
        assert_eq!(bench.report().without_model, [""; 0], "two in a row are too few");
        is_gone.store(false, Ordering::Relaxed);
        assert_eq!(bench.chat(json!({})).await.status(), 200);
        is_gone.store(true, Ordering::Relaxed);
    }
    for _ in 0..3 {
        assert_eq!(bench.chat(json!({})).await.status(), 200);
    }
    assert_eq!(bench.report().without_model, ["backend"]);
    assert_eq!(bench.gateway.without_model(), [("ns".to_owned(), "backend".to_owned())].into());
    assert_eq!(bench.asked().len(), 9, "the same backend is asked once a request");
    // Other limits are no other model.
    let mut limits = release.variants["stable"].open().unwrap().backend;
    limits.limits.max_concurrency = 7;
    release.backends.insert("backend".to_owned(), Arc::new(limits));
    bench.serve(release);
    assert_eq!(bench.report().without_model, ["backend"]);
}

/// A server that lists its models to whoever has the key.
async fn lists(servers: &mut JoinSet<()>, asked: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let list = move |headers: HeaderMap| {
        asked.fetch_add(1, Ordering::Relaxed);
        let key = headers.get("authorization").and_then(|value| value.to_str().ok());
        let may = key == Some("Bearer the-key");
        async move {
            let models = json!([
                {"id": "upstream-model", "object": "model", "shutdown_date": "2027-01-14"},
                {"id": "another", "object": "model", "shutdown_date": "2026-12-11"}]);
            let list = Json(json!({"object": "list", "data": models}));
            if may { Ok(list) } else { Err(StatusCode::UNAUTHORIZED) }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/models", get(list));
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

#[tokio::test]
async fn when_a_model_ends_is_asked_with_the_key_and_seldom_of_openai_alone() {
    let bench = Bench::new(|_| good()).await;
    let (mut servers, asked) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    let address = lists(&mut servers, asked.clone()).await;
    let reference = SecretKeyRef { name: "openai".into(), key: "token".into() };
    let of = |provider: &str, key: &str| {
        let mut release = bench.release(0);
        release.secrets.insert(reference.clone(), SecretText::from(key.to_owned()));
        for saved in release.variants.values_mut() {
            edit(saved, |variant| {
                variant.backend_name = format!("{provider}-{key}");
                variant.backend.provider = provider.to_owned();
                let endpoint = variant.backend.endpoint.as_mut().unwrap();
                endpoint.url = format!("http://{address}/v1");
                endpoint.api_key_secret_ref = Some(reference.clone());
            });
        }
        release
    };
    let date: Option<Date> = "2027-01-14".parse().ok();
    for (provider, key, times, expected) in [
        ("vllm", "the-key", 0, vec![]),
        ("openai", "another-key", 1, vec![]),
        ("openai", "the-key", 1, vec![("openai-the-key".to_owned(), date)]),
    ] {
        let expected: BTreeMap<String, Option<Date>> = expected.into_iter().collect();
        bench.serve(of(provider, key));
        let before = asked.load(Ordering::Relaxed);
        ask_once(&bench.gateway).await;
        ask_once(&bench.gateway).await;
        assert_eq!(asked.load(Ordering::Relaxed) - before, times, "{provider} {key}");
        assert_eq!(bench.report().models_end, expected, "{provider} {key}");
    }
    assert_eq!(bench.asked().len(), 0);
}
