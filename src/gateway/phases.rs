//! The life of a request, in order: authenticate, read, route, assign, prepare, copy,
//! send, try elsewhere, answer. Checking and recording follow the answer (`flight`);
//! copies live a life of their own (`shadow`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Gateway,
    asker::Asker,
    assign::{Assigned, assign},
    budget::{Account, Class, SMALL},
    caching::Caching,
    flight::Flight,
    forward::{self, Forward},
    identity::Client,
    prepare::{self, Asked, Prepared},
    renderer::{Effort, Refused},
    routes::{Route, Target},
    shadow,
    upstream::{self, Failure, Started},
};
use crate::{
    api::{conditions::truncate, keys},
    audit::record::{AssignmentReason, Caller, Operation, Origin, RecordOutcome, TraceContext},
    openai::error::ApiError,
    telemetry::propagate,
};

/// The longest wait before an attempt is repeated: a user who waits longer is better off
/// with an error that says when to come back.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The wait before the first repetition when the model names none; then twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// Answers a request for a model; its route may stand in the path.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    (operation, deployment): (Operation, Option<String>),
    asker: Asker,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let most = gateway.config.limits.messages;
    let held = asker.account.nothing(Class::Bodies);
    let asked = Asked::read(operation, deployment, body, most, held);
    match answer(&gateway, asked, &asker, headers).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    }
}

async fn answer(
    gateway: &Arc<Gateway>,
    asked: Result<Asked, ApiError>,
    asker: &Asker,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let client = asker.client.as_deref();
    // Shared with its copy, if there is one.
    let asked = Arc::new(asked?);
    let route = route(gateway, client, &asked)?;
    let assigned = assign(gateway, &route, &headers, client, &asked)?;
    let request = Request { asked, passed: Passed::new(gateway, headers, asker) };
    let attempts = Attempts {
        gateway,
        route: &route,
        request: &request,
        alternatives: 0,
        candidate: false,
        repeated: 0,
    };
    Ok(attempts.run(assigned).await)
}

/// A request on its way to the model.
pub(super) struct Request {
    pub asked: Arc<Asked>,
    pub passed: Passed,
}

/// What goes with a request, besides its body.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    pub caller: Option<Arc<Caller>>,
    /// On which the answer is held.
    pub account: Arc<Account>,
    /// The place of the attempt in a trace.
    pub trace: Option<TraceContext>,
    /// As the application sent them.
    pub headers: Arc<HeaderMap>,
}

/// Of a name that an application has sent, so much is quoted; in bytes.
const LONGEST_QUOTED: usize = 256;

/// What means something to the model and can not carry the client's key.
const BETA: HeaderName = HeaderName::from_static("openai-beta");
/// A server that keeps such keys refuses one that it has seen with another body, or answers as it
/// did then (draft-ietf-httpapi-idempotency-key-header-07, section 2.6).
const IDEMPOTENCY: HeaderName = HeaderName::from_static("idempotency-key");

impl Passed {
    fn new(gateway: &Gateway, headers: HeaderMap, asker: &Asker) -> Self {
        Self {
            caller: asker.caller(),
            account: asker.account.clone(),
            trace: gateway.config.telemetry.tracing.start(headers.get("traceparent")),
            headers: Arc::new(headers),
        }
    }

    /// Adds what goes upstream to its headers. Each variant has another body, and so has each
    /// backend: there an idempotency key is another one, and a request that is repeated has the
    /// same.
    pub(super) fn apply(&self, headers: &mut HeaderMap, origin: &Origin) {
        if let Some(value) = self.headers.get(BETA) {
            headers.insert(BETA, value.clone());
        }
        if let Some(key) = self.headers.get(IDEMPOTENCY) {
            let to = xxh3_64(format!("{} {}", origin.revision, origin.backend).as_bytes());
            let key = [key.as_bytes(), format!("-{to:016x}").as_bytes()].concat();
            // A suffix of digits keeps it a value.
            if let Ok(key) = HeaderValue::from_bytes(&key) {
                headers.insert(IDEMPOTENCY, key);
            }
        }
        propagate(self.trace.as_ref(), &self.headers, headers);
    }
}

/// The attempts of one request: the variant that was drawn; stable when a canary fails;
/// the same once more where that can help; other backends; in a bake what bakes, when what served
/// before fails. Nothing was sent to the application before the last of them.
struct Attempts<'a> {
    gateway: &'a Arc<Gateway>,
    route: &'a Arc<Route>,
    request: &'a Request,
    /// How many of the other backends were asked.
    alternatives: usize,
    /// The candidate was asked, or is not to be.
    candidate: bool,
    repeated: u32,
}

impl Attempts<'_> {
    async fn run(mut self, mut assigned: Assigned) -> Response<Body> {
        // Most releases have no cache.
        let mut prepared = None;
        if self.route.cache.is_some() {
            let begun = Instant::now();
            let own = self.prepared(&assigned.target, Effort::Whole).await;
            let took = begun.elapsed();
            if let Ok(own) = &own
                && let Some(response) = self.kept_answer(&mut assigned, own).await
            {
                return response;
            }
            prepared = Some((own, took));
        }
        if assigned.reason.is_evidence() && self.is_known_to_another(&assigned.target).await {
            assigned.reason = AssignmentReason::Repeated;
            if let Some(drawn) = assigned.drawn.take() {
                drawn.exclude();
            }
        }
        // Beside a shadow everybody draws stable: those are compared with the copies.
        if assigned.reason.is_evidence()
            && let Some(shadow) = &self.route.shadow
        {
            assigned.copy = shadow::draw(self.gateway, self.route, shadow);
        }
        // A canary that refused the request: whose fault it is shows when stable is asked
        // the same.
        let mut canary: Option<(Box<Flight>, Failure)> = None;
        let mut earlier: Option<TraceContext> = None;
        loop {
            let (group, bound) = (assigned.group, assigned.bound);
            let stands_in = [AssignmentReason::OtherBackend, AssignmentReason::Fallback];
            let is_candidate = !Arc::ptr_eq(&assigned.target, &self.route.baseline)
                && !stands_in.contains(&assigned.reason);
            self.candidate |= is_candidate;
            let failed = self.attempt(assigned, earlier, prepared.take()).await;
            let (mut flight, failure) = match failed {
                Ok(response) => {
                    if let Some((mut canary, _)) = canary {
                        canary.finish(RecordOutcome::Error);
                    }
                    return response;
                }
                Err(failed) => *failed,
            };
            flight.went_wrong(&failure.error);
            earlier = flight.trace;
            // Asked again, it would leave something behind twice.
            let asked = &self.request.asked;
            let may_go_on = failure.untouched || !asked.request.leaves_something(asked.operation);
            // Stable would meet the same queue, and a client that holds its share holds it
            // whoever answers.
            let is_crowd =
                failure.crowded && (failure.client_fault || self.shares_room(&flight.target));
            if is_candidate && self.falls_back() && may_go_on && !is_crowd && !bound {
                assigned = self.again(&self.route.baseline, AssignmentReason::Fallback, group);
                if failure.client_fault {
                    canary = Some((Box::new(flight), failure));
                } else {
                    flight.finish(RecordOutcome::Error);
                }
                continue;
            }
            let next = match may_go_on {
                true => self.next(&flight.target, &failure, (group, bound)).await,
                false => None,
            };
            if let Some(next) = next {
                flight.finish(RecordOutcome::Error);
                assigned = next;
                continue;
            }
            let Some((mut canary, refusal)) = canary else {
                return give_up(&mut flight, failure);
            };
            if failure.client_fault {
                // Both refuse it: the request itself is at fault.
                canary.finish(RecordOutcome::ClientError);
                return give_up(&mut flight, failure);
            }
            // Stable can not tell whose fault it is. A client does not send again what was refused.
            canary.finish(RecordOutcome::Error);
            flight.finish(RecordOutcome::Error);
            return told(&canary, refusal);
        }
    }

    async fn prepared(&self, target: &Target, effort: Effort) -> Result<Prepared, Refused> {
        let Request { asked, passed } = self.request;
        prepare::body(&self.gateway.renderer, target, asked, &passed.account, effort).await
    }

    /// The answer that the same request got before.
    async fn kept_answer(
        &self,
        assigned: &mut Assigned,
        prepared: &Prepared,
    ) -> Option<Response<Body>> {
        let Self { gateway, route, request, .. } = self;
        let Assigned { target, group, unique, drawn, .. } = assigned;
        let entry = Caching::of(gateway, route, target, request, &prepared.body)?.find().await?;
        if let Some(drawn) = drawn.take() {
            drawn.exclude();
        }
        let body = match hold_answer(&request.passed.account, &entry.body) {
            Ok(body) => body,
            Err(error) => return Some(error_response(&error)),
        };
        let mut cached = Assigned {
            group: *group,
            unique: *unique,
            ..Assigned::new(target, AssignmentReason::Cached)
        };
        let mut flight = Flight::new(gateway, route, &mut cached, &request.asked, &request.passed);
        flight.answer = entry.answer();
        let content_type =
            if request.asked.stream { "text/event-stream" } else { "application/json" };
        let mut response = respond(&flight, content_type, Body::from(body));
        response.headers_mut().insert(keys::CACHE_HEADER, HeaderValue::from_static("hit"));
        flight.finish(RecordOutcome::Ok);
        Some(response)
    }

    /// Whether the cache has an answer of another variant to this request. A request is
    /// evidence only where the cache knows it of no variant: with a rule that looked at the
    /// variant's own answers alone, a canary would be judged by other requests than stable,
    /// whose cache is warm.
    async fn is_known_to_another(&self, own: &Arc<Target>) -> bool {
        let Self { gateway, route, request, .. } = self;
        if route.cache.is_none() {
            return false;
        }
        let candidate = route.candidate.as_ref().map(|candidate| &candidate.target);
        for other in candidate.into_iter().chain([&route.baseline]) {
            if Arc::ptr_eq(other, own) {
                continue;
            }
            // Whoever draws one variant does not wait for the slow templates of the other.
            let Ok(prepared) = self.prepared(other, Effort::Little).await else { continue };
            let caching = Caching::of(gateway, route, other, request, &prepared.body);
            if caching.is_some_and(|caching| caching.is_known()) {
                return true;
            }
        }
        false
    }

    /// Whether stable and the canary wait for the same backend.
    fn shares_room(&self, target: &Target) -> bool {
        let Route { baseline, candidate, .. } = &**self.route;
        let waits = |other: &Target| Arc::ptr_eq(&other.room, &target.room);
        waits(baseline) && candidate.as_ref().is_some_and(|candidate| waits(&candidate.target))
    }

    fn falls_back(&self) -> bool {
        let candidate = self.route.candidate.as_ref().map(|candidate| &candidate.target.model);
        // Vectors of another model would be taken for those that were asked for.
        let same = self.request.asked.operation != Operation::Embeddings
            || candidate == Some(&self.route.baseline.model);
        self.route.fallback && same
    }

    fn again(&self, target: &Arc<Target>, reason: AssignmentReason, group: Option<u8>) -> Assigned {
        Assigned { group, ..Assigned::new(target, reason) }
    }

    /// Who is asked after `target` has failed, when that was not the application's fault.
    async fn next(
        &mut self,
        target: &Arc<Target>,
        failure: &Failure,
        (group, bound): (Option<u8>, bool),
    ) -> Option<Assigned> {
        if failure.client_fault || failure.prompt_fault {
            return None;
        }
        if failure.repeatable && self.repeated < target.retries {
            let wait = failure.retry_after.unwrap_or(FIRST_WAIT * 2_u32.pow(self.repeated));
            if wait <= LONGEST_WAIT {
                self.repeated += 1;
                // Who failed together does not come back together.
                let spread = wait.mul_f64(rand::random_range(0.0..0.2));
                tokio::time::sleep(wait + spread).await;
                let again = self.again(target, AssignmentReason::Retry, group);
                return Some(Assigned { bound, ..again });
            }
        }
        if bound {
            return None;
        }
        self.repeated = 0;
        if let Some(alternative) = self.route.alternatives.get(self.alternatives) {
            self.alternatives += 1;
            return Some(self.again(alternative, AssignmentReason::OtherBackend, group));
        }
        let baking = self.route.stand_in().filter(|_| !self.candidate && self.falls_back())?;
        self.candidate = true;
        Some(self.again(baking, AssignmentReason::Fallback, group))
    }

    /// One attempt, of which the body may be there already, with the time that it took. An error
    /// means that nothing was sent to the application yet.
    async fn attempt(
        &self,
        mut assigned: Assigned,
        earlier: Option<TraceContext>,
        prepared: Option<(Result<Prepared, Refused>, Duration)>,
    ) -> Result<Response<Body>, Box<(Flight, Failure)>> {
        let Self { gateway, route, request, .. } = self;
        let Request { asked, passed } = request;
        let target = &assigned.target.clone();
        let mut flight = Flight::new(gateway, route, &mut assigned, asked, passed);
        if earlier.is_some() {
            flight.follows();
        }
        let prepared = match prepared {
            Some((prepared, took)) => {
                flight.began_before(took);
                prepared
            }
            None => self.prepared(target, Effort::Whole).await,
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(refused) => {
                let failure = Failure::before(refused);
                flight.crowded = failure.crowded;
                return Err(Box::new((flight, failure)));
            }
        };
        let body = flight.sends(prepared, asked);
        let caching = Caching::of(gateway, route, target, request, &body);
        let missed = caching.is_some();
        let permit = match target.room.enter().await {
            Ok(permit) => permit,
            Err(error) => {
                let failure = Failure { crowded: true, ..Failure::of(error) };
                flight.crowded = true;
                return Err(Box::new((flight, failure)));
            }
        };
        if let Some(copy) = assigned.copy.take() {
            copy.start(&mut flight, request);
        }
        let called = upstream::call(&mut flight, asked, body).await;
        flight.written = None;
        match called {
            Ok(Started::Whole(bytes)) => {
                if let Some(caching) = caching.filter(|_| flight.passes()) {
                    caching.keep(bytes.clone(), &flight.answer);
                }
                let response = respond(&flight, "application/json", Body::from(bytes));
                flight.finish(RecordOutcome::Ok);
                Ok(marked(response, missed))
            }
            Ok(Started::Stream(stream)) => {
                let head = respond(&flight, "text/event-stream", Body::empty());
                let recorded = caching.map(|caching| caching.record(flight.holds()));
                let forward = Forward { stream, flight, recorded, _permit: permit };
                let body = Body::from_stream(forward::body(forward));
                let (parts, _) = head.into_parts();
                Ok(marked(Response::from_parts(parts, body), missed))
            }
            Err(failure) => Err(Box::new((flight, failure))),
        }
    }
}

/// A kept answer, held until it was read: the cache may drop it before.
fn hold_answer(account: &Arc<Account>, body: &Bytes) -> Result<Bytes, ApiError> {
    let bytes = if body.len() > SMALL { body.len() } else { 0 };
    Ok(account.take(Class::Answers, bytes)?.keep(body.clone()))
}

/// An answer of a release with a cache says that it does not come from there.
fn marked(mut response: Response<Body>, missed: bool) -> Response<Body> {
    if missed {
        response.headers_mut().insert(keys::CACHE_HEADER, HeaderValue::from_static("miss"));
    }
    response
}

fn route(
    gateway: &Gateway,
    client: Option<&Client>,
    asked: &Asked,
) -> Result<Arc<Route>, ApiError> {
    let model = asked.route().ok_or_else(|| {
        ApiError::new(400, "missing_model", "set model to a route of a PromptRelease").at("model")
    })?;
    if !gateway.knows_routes() {
        let message = "this gateway has just started and does not know its routes yet";
        return Err(ApiError::new(503, "not_ready", message).retry_after(1));
    }
    let route = gateway.table.get(&model).ok_or_else(|| not_served(gateway, client, &model))?;
    permitted(client, &route)?;
    Ok(route)
}

/// Why a route is not served, as far as the client may know.
fn not_served(gateway: &Gateway, client: Option<&Client>, route: &str) -> ApiError {
    // No route has so long a name.
    let quoted = truncate(route, LONGEST_QUOTED);
    let may_use = |namespace: &str| client.is_none_or(|c| c.may_use(namespace, route));
    let withheld = gateway.notices().withheld();
    let message = match gateway.notices().of_route(route, may_use) {
        Some(why) => format!("the route {quoted:?} is not served now: {why}"),
        None if withheld > 0 && client.is_none_or(|client| client.may_name(route)) => {
            let what = match withheld {
                1 => "one file or folder of manifests is".to_owned(),
                _ => format!("{withheld} files or folders of manifests are"),
            };
            format!(
                "no PromptRelease serves the route {quoted:?}, maybe because {what} not in force: \
                 /readyz?verbose of the admin address says what is wrong; GET /v1/models lists the \
                 routes"
            )
        }
        None => {
            format!("no PromptRelease serves the route {quoted:?}; GET /v1/models lists the routes")
        }
    };
    ApiError::new(404, "model_not_found", message).at("model")
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

/// Nobody else can answer: the application is told what the model said, or what failed.
fn give_up(flight: &mut Flight, failure: Failure) -> Response<Body> {
    flight.finish(if failure.client_fault {
        RecordOutcome::ClientError
    } else {
        RecordOutcome::Error
    });
    told(flight, failure)
}

/// The response that tells the application of a failure.
fn told(flight: &Flight, failure: Failure) -> Response<Body> {
    let Some((status, body)) = failure.body else {
        let mut response = error_response(&failure.error);
        stamp(response.headers_mut(), flight);
        return response;
    };
    let mut response = respond(flight, "application/json", Body::from(body));
    *response.status_mut() = status;
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
    for (name, value) in &flight.headers {
        headers.append(name.clone(), value.clone());
    }
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
    if let Some(allow) = error.allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    response
}
