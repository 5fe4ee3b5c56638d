//! The two listeners: one for applications, one for operators and Prometheus.
//!
//! Everything that an unknown or hostile client can do before it is known is bounded
//! here ([`Limits`]): how many connections there are, how long a head, a handshake, a
//! body and a reader may take, and how large they may be. Who asks is settled from the
//! headers, before a body is read.

mod body;
mod guard;
mod head;
mod pace;
mod paths;
mod plain;
mod report;
mod strangers;

use std::{convert::Infallible, future::Future, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts},
};
use bytes::Bytes;
use http_body::Body as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use self::guard::Panics;
pub use self::plain::is_verbose;
use self::{
    body::Answer,
    pace::{Paced, Turn},
    plain::{json_answer, model, refuse, text, with_type},
    strangers::{Connected, Strangers},
};
use super::{
    Gateway,
    asker::{Asker, account_name},
    budget::{Class, Held, REQUEST},
    encoding,
    identity::{self, Client},
    limits::Limits,
    phases,
    routes::Route,
    tls::ServerTls,
    workers::Workers,
};
use crate::{api::keys, openai::error::ApiError, signals::report::REPORT_PATH};

/// After an accept that failed for want of descriptors, others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// Applications.
    Applications,
    /// Operators, kubelets and Prometheus.
    Operators,
}

/// An address to listen on, with TLS or without, and who serves there.
pub struct Door {
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    workers: Option<Arc<Workers>>,
}

impl From<TcpListener> for Door {
    fn from(listener: TcpListener) -> Self {
        Self { listener, tls: None, workers: None }
    }
}

impl Door {
    /// With TLS, if it is given.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<ServerTls>>) -> Self {
        Self { tls, ..self }
    }

    /// Served by these, in place of the runtime that accepts.
    #[must_use]
    pub fn with_workers(self, workers: Arc<Workers>) -> Self {
        Self { workers: Some(workers), ..self }
    }
}

/// What all connections of a listener share.
struct Shared {
    gateway: Arc<Gateway>,
    face: Face,
    stop: CancellationToken,
    drain: Duration,
}

/// Serves until `stop`, then finishes the answers and copies that are under way, for at
/// most `drain`.
pub async fn serve(
    door: impl Into<Door>,
    face: Face,
    gateway: Arc<Gateway>,
    stop: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) {
    let door = door.into();
    let connections = TaskTracker::new();
    let shared = Arc::new(Shared { gateway, face, stop: CancellationToken::new(), drain });
    tokio::select! {
        () = accept(&door, &shared, &connections) => {}
        () = stop => {}
    }
    // Nobody else can connect from here on.
    drop(door);
    shared.gateway.drain();
    shared.stop.cancel();
    connections.close();
    let ended = async {
        connections.wait().await;
        // What copies cost and tell is counted, too.
        shared.gateway.shadows.ended().await;
    };
    // What is not finished by then is cut.
    let _ = tokio::time::timeout(drain, ended).await;
}

/// Takes connections, without end.
async fn accept(door: &Door, shared: &Arc<Shared>, connections: &TaskTracker) {
    let places = match shared.face {
        Face::Applications => shared.limits().connections,
        Face::Operators => shared.limits().operators,
    };
    let room = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
    let strangers = Strangers::new(shared.gateway.budget.clone(), places);
    loop {
        let (stream, from) = match door.listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                // One client's broken connection, or no descriptors left: either passes.
                tracing::debug!("a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // An event of a stream is small and waits for nothing.
        let _ = stream.set_nodelay(true);
        let Ok(place) = room.clone().try_acquire_owned() else {
            turn_away(&stream, door.tls.is_some());
            continue;
        };
        let (shared, tls) = (shared.clone(), door.tls.clone());
        let place = Seated { connected: strangers.enter(), from, _place: place };
        let Some(seat) = door.workers.as_ref().and_then(|workers| workers.seat()) else {
            connections.spawn(opened(stream, tls, shared, place));
            continue;
        };
        // A socket belongs to the runtime that waits for it.
        let Ok(stream) = stream.into_std() else { continue };
        let runtime = seat.runtime.clone();
        let carried = async move {
            let _seat = seat;
            match TcpStream::from_std(stream) {
                Ok(stream) => opened(stream, tls, shared, place).await,
                Err(error) => tracing::debug!("a connection could not be taken over: {error}"),
            }
        };
        connections.spawn_on(carried, &runtime);
    }
}

/// Too many are connected: told without waiting, as far as the socket takes it.
fn turn_away(stream: &TcpStream, encrypted: bool) {
    if !encrypted {
        let message = "this gateway has as many connections as it takes: try again";
        let error = ApiError::new(503, "too_many_connections", message).retry_after(1);
        let _ = stream.try_write(&pace::text(&error));
    }
}

/// What a connection holds as long as it is open.
struct Seated {
    connected: Arc<Connected>,
    from: IpAddr,
    _place: OwnedSemaphorePermit,
}

/// One connection, as its requests see it.
struct Link {
    turn: Arc<Turn>,
    connected: Arc<Connected>,
    from: IpAddr,
}

async fn opened(
    stream: TcpStream,
    tls: Option<Arc<ServerTls>>,
    shared: Arc<Shared>,
    place: Seated,
) {
    let connected = place.connected.clone();
    let work = async {
        match tls {
            None => connection(stream, shared, place).await,
            Some(tls) => encrypted(&tls, stream, shared, place).await,
        }
    };
    tokio::select! {
        biased;
        () = work => {}
        () = connected.makes_room() => {
            tracing::debug!("a connection without a key made room for another one");
        }
    }
}

async fn encrypted(tls: &ServerTls, stream: TcpStream, shared: Arc<Shared>, place: Seated) {
    let handshake = tokio::time::timeout(shared.limits().header_time, tls.accept(stream));
    let handshake = tokio::select! {
        done = handshake => done,
        () = shared.stop.cancelled() => return,
    };
    match handshake {
        Ok(Ok(stream)) => connection(stream, shared, place).await,
        Ok(Err(error)) => tracing::debug!("a handshake failed: {error}"),
        Err(_) => tracing::debug!("a handshake took too long"),
    }
}

async fn connection<T>(stream: T, shared: Arc<Shared>, place: Seated)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let turn = Arc::new(Turn::default());
    let io =
        TokioIo::new(Paced::new(stream, turn.clone(), shared.limits(), &shared.gateway.budget));
    let link = Arc::new(Link { turn, connected: place.connected.clone(), from: place.from });
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, link) = (shared.clone(), link.clone());
        let answering = link.turn.begin(request.version());
        async move {
            let (mut response, is_stream) = shared.answer(request, &link).await;
            let held = response.extensions_mut().remove::<Arc<Held>>();
            let (limits, panics) = (shared.limits(), &shared.gateway.panics);
            Ok::<_, Infallible>(
                response
                    .map(|body| Answer::new((body, held), answering, limits, is_stream, panics)),
            )
        }
    });
    // `Paced` knows the time; without a timer hyper keeps none.
    let connection = http1::Builder::new()
        .max_header_size(shared.limits().headers)
        .max_buf_size(shared.limits().headers.max(32 << 10))
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return told(ended),
        () = shared.stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(ended) = tokio::time::timeout(shared.drain, connection).await {
        told(ended);
    }
}

/// A client that went away or spoke no HTTP is everyday life.
fn told(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

impl Shared {
    fn limits(&self) -> &Limits {
        &self.gateway.config.limits
    }

    /// The answer, and whether it is a stream of events.
    async fn answer(&self, request: Request<Incoming>, link: &Link) -> (Response<Body>, bool) {
        if request.body().is_end_stream() {
            link.turn.received();
        }
        let (head, body) = request.into_parts();
        if let Err(error) = head::check(&head) {
            let mut response = phases::error_response(&error);
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return (response, false);
        }
        let work = async {
            match self.face {
                Face::Applications => self.for_applications(head, body, link).await,
                Face::Operators => {
                    // They have shares of their own: whoever reaches this address is one of us.
                    link.connected.is_known(None).ok();
                    self.for_operators(head, body).await
                }
            }
        };
        let result = guard::guarded(work, &self.gateway.panics).await;
        let response = result.unwrap_or_else(|error| {
            let mut response = phases::error_response(&error);
            if error.status == 415 {
                let understood = HeaderValue::from_static(encoding::UNDERSTOOD);
                response.headers_mut().insert(header::ACCEPT_ENCODING, understood);
            }
            if error.status == 401 {
                let challenge = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        });
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let is_stream =
            content_type.is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
        (response, is_stream)
    }

    /// What applications call.
    async fn for_applications(
        &self,
        mut head: Parts,
        body: Incoming,
        link: &Link,
    ) -> Result<Response<Body>, ApiError> {
        let gateway = &self.gateway;
        identity::conceal(&mut head.headers);
        let path = head.uri.path();
        if head.method == Method::POST
            && let Some(asked) = paths::operation(path)
        {
            let (asker, held, bytes) = self.known(&head.headers, body, link).await?;
            link.turn.received();
            let served = phases::serve(gateway.clone(), asked, asker, head.headers, bytes);
            let mut response = served.await;
            response.extensions_mut().insert(Arc::new(held));
            return Ok(response);
        }
        if (head.method == Method::GET || head.method == Method::HEAD)
            && let Some(name) = paths::model(path)
        {
            let asker = self.asker(&head.headers, link)?;
            return match name {
                Some(name) => self.model(asker.client.as_deref(), &name),
                None => Ok(self.models(asker.client.as_deref())),
            };
        }
        match (&head.method, path) {
            (&Method::GET | &Method::HEAD, "/healthz") => Ok(text("ok")),
            (&Method::GET | &Method::HEAD, "/readyz") => Ok(self.ready()),
            (&Method::POST, "/serinus/v1/feedback") => {
                let (asker, _held, bytes) = self.known(&head.headers, body, link).await?;
                gateway.feedback.take(gateway, &bytes, asker.client.as_deref()).await?;
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                Ok(response)
            }
            (_, path) => {
                body::discard(body).await;
                Err(refuse(path))
            }
        }
    }

    /// Who asks; its connection is a client's from now on.
    fn asker(&self, headers: &HeaderMap, link: &Link) -> Result<Asker, ApiError> {
        let client = self.gateway.config.identities.authenticate(headers)?;
        let name = account_name(client.as_deref(), link.from);
        let account = link.turn.of(&name, &self.gateway.budget);
        drop(name);
        link.connected.is_known(Some(&account))?;
        Ok(Asker { client, account })
    }

    /// Who asks, what the request holds, and the body. Of strangers little is read, and
    /// nothing is kept.
    async fn known(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        link: &Link,
    ) -> Result<(Asker, Held, Bytes), ApiError> {
        let admit = || {
            let asker = self.asker(headers, link)?;
            let codings = body::codings(headers)?;
            let held = asker.account.take(Class::Answers, REQUEST)?;
            Ok((asker, codings, held))
        };
        let (asker, codings, held) = match admit() {
            Ok(admitted) => admitted,
            Err(error) => {
                body::discard(body).await;
                return Err(error);
            }
        };
        let room = || asker.account.nothing(Class::Bodies);
        let whole = body::read(body, self.limits(), room()).await?;
        let whole = body::decoded(whole, &codings, self.limits(), room()).await?;
        Ok((asker, held, whole))
    }

    /// What operators, kubelets and Prometheus call.
    async fn for_operators(&self, head: Parts, body: Incoming) -> Result<Response<Body>, ApiError> {
        let gateway = &self.gateway;
        match (&head.method, head.uri.path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => Ok(text("ok")),
            (&Method::GET | &Method::HEAD, "/readyz") => {
                let verbose = head.uri.query().is_some_and(|q| q.split('&').any(is_verbose));
                Ok(if verbose { self.ready_in_words() } else { self.ready() })
            }
            (&Method::GET | &Method::HEAD, REPORT_PATH) => self.report(&head),
            (&Method::GET | &Method::HEAD, "/serinus/v1/unread") => {
                identity::admit_person(gateway.config.people.as_ref(), &head.headers)?;
                json_answer(&json!({"examples": gateway.unread.all()}))
            }
            (&Method::POST, "/serinus/v1/feedback") => self.vote(&head.headers, body).await,
            // The same as in the metrics, which are as open.
            (&Method::GET | &Method::HEAD, "/serinus/v1/cost") => json_answer(&gateway.cost()),
            (&Method::GET | &Method::HEAD, "/metrics") => Ok(with_type(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                gateway.exported.text(),
            )),
            (_, "/serinus/v1/feedback") => Err(ApiError::only("POST")),
            (
                _,
                "/healthz" | "/readyz" | "/metrics" | REPORT_PATH | "/serinus/v1/unread"
                | "/serinus/v1/cost",
            ) => Err(ApiError::only("GET, HEAD")),
            _ => Err(ApiError::new(
                404,
                "unknown_path",
                "this address serves GET /serinus/v1/report, /serinus/v1/unread, /metrics, /healthz \
                 and /readyz",
            )),
        }
    }

    /// A vote that another gateway has passed on.
    async fn vote(&self, headers: &HeaderMap, body: Incoming) -> Result<Response<Body>, ApiError> {
        let signature = headers.get(keys::SIGNATURE_HEADER).and_then(|s| s.to_str().ok());
        let Some(signature) = signature else {
            body::discard(body).await;
            return Err(ApiError::new(401, "not_a_gateway", "only gateways pass votes on here"));
        };
        let held = self.gateway.budget.nothing(Class::Bodies);
        let bytes = body::read(body, self.limits(), held).await?;
        let (word, proof) =
            self.gateway.feedback.take_from_peer(&self.gateway, &bytes, signature)?;
        let mut response = text(word.unwrap_or("another process gave this answer"));
        if word.is_none() {
            *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        }
        let proof = HeaderValue::try_from(proof)
            .map_err(|e| ApiError::new(500, "internal_error", e.to_string()))?;
        response.headers_mut().insert(keys::SIGNATURE_HEADER, proof);
        Ok(response)
    }

    fn ready(&self) -> Response<Body> {
        if self.gateway.ready() {
            return text("ready");
        }
        let mut response = text("no routes or client keys yet, or draining");
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    }

    /// As `ready`, and a line for each thing that is wrong. Only for operators: it names
    /// files and releases.
    fn ready_in_words(&self) -> Response<Body> {
        let mut response = self.ready();
        let operator = self.gateway.without_operator().into_iter();
        let problems: String = operator
            .map(|notice| format!("{notice}\n"))
            .chain([self.gateway.notices().text()])
            .collect();
        let word = if response.status() == StatusCode::OK { "ready" } else { "not ready" };
        let whole = match problems.is_empty() {
            true => format!("{word}\nno problems\n"),
            false => format!("{word}\n{problems}"),
        };
        *response.body_mut() = Body::from(whole);
        response
    }

    /// The routes that this client may use.
    fn models(&self, client: Option<&Client>) -> Response<Body> {
        let routes = self.gateway.table.all();
        let mut names: Vec<&str> = routes
            .iter()
            .filter(|route| permitted(client, route))
            .map(|route| route.name.as_str())
            .collect();
        names.sort_unstable();
        let models: Vec<_> = names.iter().map(|name| model(name)).collect();
        with_type("application/json", json!({"object": "list", "data": models}).to_string())
    }

    /// One route. One that the client may not use is not there for it.
    fn model(&self, client: Option<&Client>, name: &str) -> Result<Response<Body>, ApiError> {
        let route = self.gateway.table.get(name);
        let route = route.filter(|route| permitted(client, route)).ok_or_else(|| {
            let message = "no such route; GET /v1/models lists the routes that you may use";
            ApiError::new(404, "model_not_found", message)
        })?;
        Ok(with_type("application/json", model(&route.name).to_string()))
    }
}

fn permitted(client: Option<&Client>, route: &Route) -> bool {
    client.is_none_or(|client| client.permits(route))
}
