//! The life of a request, in order: read, route, assign, prepare, copy, send, fall
//! back, answer. Checking and recording follow the answer (`flight`); copies live a life
//! of their own (`shadow`).

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Gateway,
    flight::Flight,
    forward::{self, Forward},
    identity::Client,
    routes::{Route, StickySource, Target},
    shadow::{self, Copy},
    upstream::{self, Failure, Started},
};
use crate::{
    api::{keys, prompt_version::Role},
    audit::record::{AssignmentReason, RecordOutcome},
    openai::error::ApiError,
    rollout::assignment,
};

/// A chat request as far as the gateway reads it.
pub(super) struct ChatRequest {
    body: Map<String, Value>,
    variables: Map<String, Value>,
    pub stream: bool,
}

/// Answers `POST /v1/chat/completions`.
pub(super) async fn chat(
    gateway: Arc<Gateway>,
    client: Option<Arc<Client>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    match answer(&gateway, client.as_deref(), &headers, &body).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    }
}

async fn answer(
    gateway: &Arc<Gateway>,
    client: Option<&Client>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response<Body>, ApiError> {
    // Shared with its copy, if there is one.
    let request = Arc::new(read(body)?);
    let route = route(gateway, &request)?;
    permitted(client, &route)?;
    let assigned = assign(gateway, &route, headers, &request);
    let is_candidate = !Arc::ptr_eq(&assigned.target, &route.baseline);
    let instead = Assigned {
        group: assigned.group,
        ..Assigned::new(&route.baseline, AssignmentReason::Fallback)
    };
    let first = attempt(gateway, &route, assigned, &request).await;
    let (mut flight, failure) = match first {
        Ok(response) => return Ok(response),
        Err(failed) => *failed,
    };
    if !(is_candidate && route.fallback) {
        return Ok(give_up(&mut flight, failure));
    }
    // The canary never costs a user an answer: stable is asked the same.
    match attempt(gateway, &route, instead, &request).await {
        Ok(response) => {
            flight.finish(RecordOutcome::Error);
            Ok(response)
        }
        Err(second) => {
            let (mut baseline, second) = *second;
            // Both refuse it: the request itself is at fault.
            let client = failure.client_fault && second.client_fault;
            flight.finish(if client { RecordOutcome::ClientError } else { RecordOutcome::Error });
            Ok(give_up(&mut baseline, second))
        }
    }
}

fn read(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let mut body: Map<String, Value> = serde_json::from_slice(body).map_err(|e| {
        ApiError::new(400, "invalid_json", format!("the body is not a JSON object: {e}"))
    })?;
    let ours = body.remove("serinus").unwrap_or_default();
    let variables = match ours.get("variables") {
        None => Map::new(),
        Some(Value::Object(variables)) => variables.clone(),
        Some(_) => {
            let message = "serinus.variables must be an object";
            return Err(ApiError::new(400, "invalid_variables", message).at("serinus.variables"));
        }
    };
    if body.get("messages").is_some_and(|m| !m.is_array()) {
        return Err(
            ApiError::new(400, "invalid_messages", "messages must be an array").at("messages")
        );
    }
    let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    Ok(ChatRequest { body, variables, stream })
}

fn route(gateway: &Gateway, request: &ChatRequest) -> Result<Arc<Route>, ApiError> {
    let model = request.body.get("model").and_then(Value::as_str).ok_or_else(|| {
        ApiError::new(400, "missing_model", "set model to a route of a PromptRelease").at("model")
    })?;
    if !gateway.knows_routes() {
        let message = "this gateway has just started and does not know its routes yet";
        return Err(ApiError::new(503, "not_ready", message).retry_after(1));
    }
    gateway.table.load().get(model).cloned().ok_or_else(|| {
        let message =
            format!("no PromptRelease serves the route {model:?}; GET /v1/models lists the routes");
        ApiError::new(404, "model_not_found", message).at("model")
    })
}

/// Whether the client may use the route.
pub(super) fn permitted(client: Option<&Client>, route: &Route) -> Result<(), ApiError> {
    if client.is_none_or(|client| client.permits(route)) {
        return Ok(());
    }
    let message = format!(
        "your key may not use the route {:?}: GET /v1/models lists those that it may",
        route.name
    );
    Err(ApiError::new(403, "route_not_permitted", message).at("model"))
}

/// Who answers a request.
pub(super) struct Assigned {
    /// The variant.
    pub target: Arc<Target>,
    /// Why this one.
    pub reason: AssignmentReason,
    /// The group of the sticky key, when there is one.
    pub group: Option<u8>,
    /// The part of the request's id that it shares with its copy only.
    pub unique: u64,
    /// A shadow gets a copy.
    pub copy: Option<Copy>,
}

impl Assigned {
    pub(super) fn new(target: &Arc<Target>, reason: AssignmentReason) -> Self {
        Self { target: target.clone(), reason, group: None, unique: rand::random(), copy: None }
    }
}

/// Which variant answers, and why that one.
fn assign(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    headers: &HeaderMap,
    request: &ChatRequest,
) -> Assigned {
    if route.on_trial().is_none() {
        return Assigned::new(&route.baseline, AssignmentReason::Forced);
    }
    if gateway.control_loss() {
        let promoted = route.candidate.as_ref().filter(|c| c.promoted);
        let stable = promoted.map_or(&route.baseline, |c| &c.target);
        return Assigned::new(stable, AssignmentReason::ControlLoss);
    }
    let key = sticky_key(route, headers, request);
    let drawn = route.candidate.as_ref().filter(|candidate| match &key {
        Some(key) => {
            assignment::is_canary(&route.uid, &candidate.target.revision, key, candidate.weight)
        }
        None => rand::random_range(0..100_u32) < candidate.weight,
    });
    let target = drawn.map_or(&route.baseline, |candidate| &candidate.target);
    count_assigned(route, target);
    let group = key.as_ref().map(|key| assignment::group(&route.uid, key));
    if drawn.is_some() && !target.state.breaker.allows(gateway.now_millis()) {
        return Assigned { group, ..Assigned::new(&route.baseline, AssignmentReason::Breaker) };
    }
    // Beside a shadow everybody draws stable: those are compared with the copies.
    let copy = route.shadow.as_ref().and_then(|shadow| shadow::draw(gateway, route, shadow));
    let reason = if key.is_some() { AssignmentReason::Sticky } else { AssignmentReason::Random };
    Assigned { group, copy, ..Assigned::new(target, reason) }
}

/// A draw chose this variant, whatever becomes of the request or its copy.
pub(super) fn count_assigned(route: &Route, target: &Target) {
    if let Some(tally) = route.tallies.get(&target.revision) {
        tally.assigned.fetch_add(1, Ordering::Relaxed);
    }
}

fn sticky_key(route: &Route, headers: &HeaderMap, request: &ChatRequest) -> Option<String> {
    route.sticky.iter().find_map(|source| match source {
        StickySource::Header(name) => headers.get(name)?.to_str().ok().map(str::to_owned),
        StickySource::Body(field) => match request.body.get(field)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        },
    })
}

/// One attempt. An error means that nothing was sent to the application yet.
async fn attempt(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    mut assigned: Assigned,
    request: &Arc<ChatRequest>,
) -> Result<Response<Body>, Box<(Flight, Failure)>> {
    let target = &assigned.target.clone();
    let mut flight = Flight::new(gateway, route, &assigned, request.stream);
    let body = match prepare(target, request) {
        Ok(body) => body,
        Err(error) => return Err(Box::new((flight, local(error, true)))),
    };
    let Ok(permit) = permit(target) else {
        let error = ApiError::new(
            429,
            "too_many_requests",
            "too many requests are in flight to this model",
        )
        .retry_after(1);
        return Err(Box::new((flight, local(error, false))));
    };
    if let Some(copy) = assigned.copy.take() {
        copy.start(&mut flight, request);
    }
    match upstream::call(&gateway.client, &mut flight, body).await {
        Ok(Started::Whole(bytes)) => {
            let response = respond(&flight, "application/json", Body::from(bytes));
            flight.finish(RecordOutcome::Ok);
            Ok(response)
        }
        Ok(Started::Stream { held, rest, scanner }) => {
            let head = respond(&flight, "text/event-stream", Body::empty());
            let forward = Forward { held: Some(held), rest, scanner, flight, _permit: permit };
            let body = Body::from_stream(forward::body(forward));
            let (parts, _) = head.into_parts();
            Ok(Response::from_parts(parts, body))
        }
        Err(failure) => Err(Box::new((flight, failure))),
    }
}

fn local(error: ApiError, client_fault: bool) -> Failure {
    Failure { error, body: None, client_fault }
}

fn permit(target: &Arc<Target>) -> Result<OwnedSemaphorePermit, tokio::sync::TryAcquireError> {
    target.state.permits.clone().try_acquire_owned()
}

/// The body that goes upstream: the application's own, with the prompt laid over it.
pub(super) fn prepare(target: &Target, request: &ChatRequest) -> Result<Vec<u8>, ApiError> {
    let rendered = target
        .template
        .render(&request.variables)
        .map_err(|e| ApiError::new(400, "invalid_variables", e.to_string()).at(e.param()))?;
    let mut body = request.body.clone();
    let own = match body.remove("messages") {
        Some(Value::Array(messages)) => messages,
        _ => vec![],
    };
    let prompt = rendered
        .into_iter()
        .map(|(role, content)| json!({"role": role_name(role), "content": content}));
    body.insert("messages".to_owned(), prompt.chain(own).collect());
    body.insert("model".to_owned(), Value::from(target.model.as_str()));
    for (name, value) in &target.fields {
        body.insert(name.clone(), value.clone());
    }
    if !target.tools.is_empty() {
        let own = match body.remove("tools") {
            Some(Value::Array(tools)) => tools,
            _ => vec![],
        };
        body.insert("tools".to_owned(), target.tools.iter().cloned().chain(own).collect());
    }
    if request.stream {
        // Without usage there are no tokens and no cost.
        let options = body.entry("stream_options").or_insert_with(|| json!({}));
        if let Some(options) = options.as_object_mut() {
            options.insert("include_usage".to_owned(), Value::Bool(true));
        }
    }
    serde_json::to_vec(&body).map_err(|e| ApiError::new(500, "internal_error", e.to_string()))
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// Nobody else can answer: the application is told what the model said, or what failed.
fn give_up(flight: &mut Flight, failure: Failure) -> Response<Body> {
    let fault = failure.client_fault || failure.error.status == 429;
    flight.finish(if fault { RecordOutcome::ClientError } else { RecordOutcome::Error });
    let mut response = match failure.body {
        Some((status, body)) => {
            let mut response = respond(flight, "application/json", Body::from(body));
            *response.status_mut() = status;
            response
        }
        None => error_response(&failure.error),
    };
    stamp(response.headers_mut(), flight);
    response
}

fn respond(flight: &Flight, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    stamp(headers, flight);
    response
}

/// Any output can be traced.
fn stamp(headers: &mut HeaderMap, flight: &Flight) {
    let shadow = flight.shadow_request_id.as_deref();
    for (name, value) in [
        (keys::REQUEST_ID_HEADER, Some(flight.request_id.as_str())),
        (keys::REVISION_HEADER, Some(flight.target.revision.as_str())),
        (keys::SHADOW_REQUEST_ID_HEADER, shadow),
    ] {
        let Some(value) = value else { continue };
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// An error in OpenAI's shape.
pub(super) fn error_response(error: &ApiError) -> Response<Body> {
    let mut response = Response::new(Body::from(error.body().to_string()));
    *response.status_mut() =
        StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = error.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
