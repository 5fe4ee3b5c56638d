//! Connections to models that are used again.
//!
//! A server closes a connection that was idle for as long as it thinks right (uvicorn,
//! and so vLLM and SGLang, after 5 s; Node after 5 s; gunicorn after 2 s), and a request
//! may be on its way while the close is. Who has less traffic meets that more often: a
//! canary, and not its fault. Two things keep it away from users and evidence:
//!
//! - A connection is left idle for less than the server waits: for less than the
//!   `keep-alive: timeout` that it tells, or else than what most servers wait.
//! - A request that was sent on a used connection which then ended at once, without one
//!   byte of an answer, is sent once more, on a connection that is new. Never after a byte
//!   of an answer, never when the connection was new or ended later, never twice.
//!
//! A proxy must not repeat a POST by itself unless it knows that it is idempotent (RFC
//! 9110, section 9.2.2). We know: to ask a model for an answer changes nothing there. What
//! does leave something behind (a conversation, a job in the background) is sent over a
//! connection of its own, which nobody is about to close. Others do the same when they are
//! told that they may: Envoy by `retry_on: reset`, nginx by `proxy_next_upstream error
//! non_idempotent`, Go's transport for requests with an `Idempotency-Key`.
//!
//! A connection has a greatest age, so that a name that leads elsewhere by now is followed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{
    HeaderMap, Method, Request, Response, Uri, header,
    uri::{Authority, Scheme},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    Error,
    dial::{Dial, Wire},
};

/// The longest, whatever the server says: something between may know nothing of that.
const LONGEST_IDLE: Duration = Duration::from_secs(60);
/// How much earlier than the server we are: the time that its answer and our request take.
const EARLIER: Duration = Duration::from_secs(1);
/// The greatest age at which a connection takes one more request. Some are a little
/// younger, so that not all are made anew together.
const OLDEST: Duration = Duration::from_secs(300);
/// How often idle connections whose time has come are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// A request and a close that cross each other on their way are known within a round trip.
/// A connection that ends later had the request, and the server failed.
const CROSSING: Duration = Duration::from_secs(1);
/// Of an answer that its reader does not take, so much waits here: it is within what a
/// request may hold (`gateway/budget.rs`).
const LARGEST_BUFFER: usize = 64 << 10;
/// Headers of an answer. Some gateways send more than the 100 that are the default.
const MOST_HEADERS: usize = 256;

/// A request to be sent.
pub(in crate::gateway) struct Outgoing<'a, H> {
    pub method: Method,
    pub uri: &'a Uri,
    /// Made once, and once more if it is sent again.
    pub headers: H,
    pub body: Bytes,
    /// What it leaves behind must not be there twice.
    pub alone: bool,
}

/// The connections of one thread.
pub(super) struct Pool {
    dial: Arc<dyn Dial>,
    /// For a connection, TLS and a proxy's consent included.
    connect_timeout: Duration,
    /// How long a connection is left idle when its server does not say.
    idle_timeout: Duration,
    idle: Mutex<Idle>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Idle {
    by_host: HashMap<Host, Vec<Resting>>,
    swept: bool,
}

type Host = (Scheme, Authority);

/// A connection that nobody uses, until when it may be used.
struct Resting {
    connection: Connection,
    until: Instant,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Bytes that came, in all.
    read: Arc<AtomicU64>,
    /// From then on it takes no more requests.
    retires: Instant,
}

/// Why there is no answer.
enum Failed {
    /// Nothing of the request went out.
    Unsent(hyper::Error),
    /// No byte of an answer came, and the connection ended at once.
    Unanswered(hyper::Error),
    /// It ended later, or in the middle of an answer.
    Broken(hyper::Error),
}

impl Pool {
    pub(super) fn new(
        dial: Arc<dyn Dial>,
        connect_timeout: Duration,
        idle_timeout: Duration,
    ) -> Arc<Self> {
        let (idle, tasks) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { dial, connect_timeout, idle_timeout, idle, tasks })
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// There is no connection, or it ended before that.
    pub(super) async fn send<H>(
        self: &Arc<Self>,
        request: &Outgoing<'_, H>,
    ) -> Result<Response<Incoming>, Error>
    where
        H: Fn() -> HeaderMap,
    {
        let host = match (request.uri.scheme(), request.uri.authority()) {
            (Some(scheme), Some(authority)) => (scheme.clone(), authority.clone()),
            _ => return Err(Error::Connect("the address has no host".into())),
        };
        while !request.alone
            && let Some(connection) = self.take(&host)
        {
            match self.exchange(connection, request, &host).await {
                Ok(response) => return Ok(response),
                Err(Failed::Unsent(_)) => {}
                Err(Failed::Unanswered(error)) => {
                    tracing::debug!(%error, "a used connection was closed: sent again on a new one");
                    break;
                }
                Err(Failed::Broken(error)) => return Err(Error::Exchange(error)),
            }
        }
        let connection = self.connect(request.uri).await?;
        let response = self.exchange(connection, request, &host).await;
        response.map_err(|failed| match failed {
            Failed::Unsent(error) => Error::Connect(error.into()),
            Failed::Unanswered(error) | Failed::Broken(error) => Error::Exchange(error),
        })
    }

    async fn connect(&self, uri: &Uri) -> Result<Connection, Error> {
        let late = |_| Error::Connect(format!("not within {:?}", self.connect_timeout).into());
        let wire = timeout(self.connect_timeout, self.dial.dial(uri.clone()));
        let wire = wire.await.map_err(late)?.map_err(Error::Connect)?;
        let read: Arc<AtomicU64> = Arc::default();
        let io = TokioIo::new(Wire::new(wire, read.clone()));
        let mut builder = http1::Builder::new();
        builder.max_headers(MOST_HEADERS).max_buf_size(LARGEST_BUFFER);
        let (mut sender, connection) =
            builder.handshake(io).await.map_err(|e| Error::Connect(e.into()))?;
        let mut connection = Box::pin(connection);
        // What ends it before it is ready is known to the connection alone.
        let ready = tokio::select! {
            biased;
            ended = &mut connection => match ended {
                Ok(()) => return Err(Error::Connect("it was closed at once".into())),
                Err(error) => Err(error),
            },
            ready = sender.ready() => ready,
        };
        ready.map_err(|e| Error::Connect(e.into()))?;
        self.tasks.spawn(async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a model ended");
            }
        });
        let retires = Instant::now() + OLDEST.mul_f64(rand::random_range(0.8..1.0));
        Ok(Connection { sender, read, retires })
    }

    async fn exchange<H>(
        self: &Arc<Self>,
        mut connection: Connection,
        request: &Outgoing<'_, H>,
        host: &Host,
    ) -> Result<Response<Incoming>, Failed>
    where
        H: Fn() -> HeaderMap,
    {
        let (before, sent) = (connection.read.load(Ordering::Relaxed), Instant::now());
        match connection.sender.try_send_request(self.written(request)).await {
            Ok(response) => {
                self.keep(connection, host, response.headers());
                Ok(response)
            }
            Err(mut error) => Err(match error.take_message() {
                Some(_) => Failed::Unsent(error.into_error()),
                None if connection.read.load(Ordering::Relaxed) == before
                    && sent.elapsed() < CROSSING =>
                {
                    Failed::Unanswered(error.into_error())
                }
                None => Failed::Broken(error.into_error()),
            }),
        }
    }

    fn written<H: Fn() -> HeaderMap>(&self, request: &Outgoing<'_, H>) -> Request<Full<Bytes>> {
        let mut written = Request::new(Full::new(request.body.clone()));
        *written.method_mut() = request.method.clone();
        *written.headers_mut() = (request.headers)();
        let forwarded = self.dial.forwards();
        *written.uri_mut() = match request.uri.path_and_query() {
            Some(path) if forwarded.is_none() => Uri::from(path.clone()),
            // A proxy is told the whole address.
            _ => request.uri.clone(),
        };
        if let Some(credentials) = forwarded.and_then(|forwarded| forwarded.credentials.clone()) {
            written.headers_mut().insert(header::PROXY_AUTHORIZATION, credentials);
        }
        written
    }

    /// An idle connection to `host`: that which was used last, so that those which are not
    /// needed end.
    fn take(&self, host: &Host) -> Option<Connection> {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let resting = idle.by_host.get_mut(host)?;
        while let Some(Resting { connection, until }) = resting.pop() {
            if until > now && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for when its answer has been read, if it may be used again.
    fn keep(self: &Arc<Self>, mut connection: Connection, host: &Host, headers: &HeaderMap) {
        let Some(rest) = rest(headers, self.idle_timeout) else { return };
        let (pool, host) = (self.clone(), host.clone());
        if connection.sender.is_ready() {
            return pool.rest(host, connection, rest);
        }
        self.tasks.spawn(async move {
            // Not when it ended, as it does when the answer is not read to its end.
            if connection.sender.ready().await.is_ok() {
                pool.rest(host, connection, rest);
            }
        });
    }

    fn rest(self: &Arc<Self>, host: Host, connection: Connection, rest: Duration) {
        let now = Instant::now();
        let until = connection.retires.min(now + rest);
        if until <= now {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.by_host.entry(host).or_default().push(Resting { connection, until });
        if !std::mem::replace(&mut idle.swept, true) {
            self.tasks.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Closes what was idle for long enough, until nothing is idle.
async fn sweep(pool: Weak<Pool>) {
    loop {
        sleep(SWEEP).await;
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.by_host.retain(|_, resting| {
            resting.retain(|r| r.until > now && r.connection.sender.is_ready());
            !resting.is_empty()
        });
        if idle.by_host.is_empty() {
            idle.swept = false;
            return;
        }
    }
}

/// How long a connection may be idle after an answer with these headers; none when it may
/// not be used again.
fn rest(headers: &HeaderMap, usual: Duration) -> Option<Duration> {
    let told = headers.get_all("keep-alive").iter().filter_map(|value| value.to_str().ok());
    let told = told.flat_map(|value| value.split(',')).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let seconds = value.trim().trim_matches('"');
        let seconds =
            seconds.parse::<u32>().ok().filter(|_| name.trim().eq_ignore_ascii_case("timeout"));
        seconds.map(|seconds| Duration::from_secs(seconds.into()))
    });
    let rest = told.map_or(usual, |told| (told - EARLIER.min(told / 2)).min(LONGEST_IDLE));
    (!rest.is_zero()).then_some(rest)
}

#[cfg(test)]
mod tests;
