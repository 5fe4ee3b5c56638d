//! The two listeners: one for applications, one for operators and Prometheus.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Response, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Gateway, phases};
use crate::{
    openai::{Operation, error::ApiError},
    signals::report::LEADER_HEADER,
};

/// The largest request body: long conversations fit, uploads do not.
const LARGEST_REQUEST: usize = 4 << 20;

/// What applications call.
pub fn public_router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/responses", post(responses))
        .route("/v1/models", get(models))
        .route("/serinus/v1/feedback", post(feedback))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(gateway)
}

/// What operators, kubelets and Prometheus call.
pub fn admin_router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/serinus/v1/report", get(report))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .with_state(gateway)
}

type Received = Result<Bytes, axum::extract::rejection::BytesRejection>;

async fn chat(State(g): State<Arc<Gateway>>, headers: HeaderMap, body: Received) -> Response<Body> {
    answer(g, Operation::Chat, headers, body).await
}

async fn completions(
    State(g): State<Arc<Gateway>>,
    headers: HeaderMap,
    body: Received,
) -> Response<Body> {
    answer(g, Operation::Completions, headers, body).await
}

async fn embeddings(
    State(g): State<Arc<Gateway>>,
    headers: HeaderMap,
    body: Received,
) -> Response<Body> {
    answer(g, Operation::Embeddings, headers, body).await
}

async fn responses(
    State(g): State<Arc<Gateway>>,
    headers: HeaderMap,
    body: Received,
) -> Response<Body> {
    answer(g, Operation::Responses, headers, body).await
}

async fn answer(
    gateway: Arc<Gateway>,
    operation: Operation,
    headers: HeaderMap,
    body: Received,
) -> Response<Body> {
    match body {
        Ok(body) => phases::serve(gateway, operation, headers, body).await,
        Err(_) => {
            let message = format!(
                "the body is larger than {LARGEST_REQUEST} bytes, or was not sent completely"
            );
            phases::error_response(&ApiError::new(413, "body_too_large", message))
        }
    }
}

async fn models(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    let routes = gateway.table.all();
    let mut names: Vec<&str> = routes.iter().map(|r| r.name.as_str()).collect();
    names.sort_unstable();
    let model =
        |id: &&str| json!({"id": id, "object": "model", "created": 0, "owned_by": "serinus"});
    Json(json!({"object": "list", "data": names.iter().map(model).collect::<Vec<_>>()}))
}

async fn feedback(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Response<Body> {
    match gateway.feedback.take(&body, &gateway.table) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => phases::error_response(&error),
    }
}

async fn readyz(State(gateway): State<Arc<Gateway>>) -> (StatusCode, &'static str) {
    if gateway.ready() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no routes yet, or draining")
    }
}

async fn report(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> impl IntoResponse {
    Json(gateway.report(headers.contains_key(LEADER_HEADER)))
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    (
        [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        gateway.exported.text(),
    )
}

async fn unknown_path() -> Response<Body> {
    let message = "this gateway serves /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses, /v1/models and /serinus/v1/feedback";
    phases::error_response(&ApiError::new(404, "unknown_path", message))
}

/// Serves until `stop`, then finishes the answers and copies that are under way, for at
/// most `drain`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    gateway: Arc<Gateway>,
    stop: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> std::io::Result<()> {
    let copies = gateway.clone();
    let (told, mut draining) = tokio::sync::watch::channel(false);
    let stop = async move {
        stop.await;
        gateway.drain();
        let _ = told.send(true);
    };
    let server = async {
        axum::serve(listener, router).with_graceful_shutdown(stop).await?;
        // What copies cost and tell is counted, too.
        copies.shadows.ended().await;
        Ok(())
    };
    let late = async {
        let _ = draining.wait_for(|on| *on).await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        result = server => result,
        () = late => Ok(()),
    }
}
