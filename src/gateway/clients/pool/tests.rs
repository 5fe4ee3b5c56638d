//! Servers that do as they are told, in virtual time.

use std::sync::atomic::AtomicUsize;

use axum::http::{HeaderValue, Method};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{advance, sleep_until},
};

use super::{
    super::dial::{Dialing, Io},
    *,
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// What a server does with the connections that it gets.
type Script = fn(Arc<Server>, DuplexStream) -> futures::future::BoxFuture<'static, ()>;

struct Server {
    script: Script,
    connections: AtomicUsize,
    /// Requests that were read, whether they were answered or not.
    requests: AtomicUsize,
    /// Requests that came when it had decided to close.
    lost: AtomicUsize,
    tasks: TaskTracker,
}

impl Server {
    fn new(script: Script) -> Arc<Self> {
        let (connections, requests, lost, tasks) = Default::default();
        Arc::new(Self { script, connections, requests, lost, tasks })
    }

    fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    /// Whether a request came; not when the other side has closed.
    async fn request(&self, io: &mut DuplexStream) -> bool {
        let mut read = vec![];
        while !read.ends_with(b"{}") {
            if io.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        true
    }
}

struct ToServer(Arc<Server>);

impl Dial for ToServer {
    fn dial(&self, _: Uri) -> Dialing {
        let server = self.0.clone();
        server.connections.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = duplex(1 << 16);
        server.tasks.spawn((server.script)(server.clone(), theirs));
        Box::pin(async { Ok(Box::new(ours) as Box<dyn Io>) })
    }
}

fn pool(server: &Arc<Server>, idle: Duration) -> Arc<Pool> {
    Pool::new(Arc::new(ToServer(server.clone())), Duration::from_secs(5), idle)
}

/// Asks and reads the answer to its end.
async fn ask(pool: &Arc<Pool>, alone: bool) -> Result<String, Error> {
    let uri = Uri::from_static("http://model/v1/chat/completions");
    let headers = || HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("model"))]);
    let (method, body) = (Method::POST, Bytes::from_static(b"{}"));
    let request = Outgoing { method, uri: &uri, headers, body, alone };
    let answer = pool.send(&request).await?;
    let read = answer.into_body().collect().await.map_err(Error::Exchange)?;
    // The connection notices that it is free.
    tokio::task::yield_now().await;
    Ok(String::from_utf8(read.to_bytes().to_vec()).unwrap())
}

/// As uvicorn behind a way of 20 ms: it closes what was idle for 5 s. A request that is
/// written 40 ms before the close is seen comes too late.
fn closes_after_five_seconds(
    server: Arc<Server>,
    mut io: DuplexStream,
) -> futures::future::BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut idle_since = Instant::now();
        loop {
            let decides = idle_since + Duration::from_millis(4_960);
            tokio::select! {
                came = server.request(&mut io) => if !came { return },
                () = sleep_until(decides) => {
                    tokio::select! {
                        came = server.request(&mut io) => {
                            server.lost.fetch_add(usize::from(came), Ordering::Relaxed);
                        }
                        () = sleep_until(idle_since + Duration::from_secs(5)) => {}
                    }
                    return;
                }
            }
            io.write_all(ANSWER).await.unwrap();
            idle_since = Instant::now();
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_request_that_meets_a_closing_connection_is_answered_over_a_new_one() {
    let server = Server::new(closes_after_five_seconds);
    let pool = pool(&server, Duration::from_secs(30));
    for round in 0..200_u64 {
        assert_eq!(ask(&pool, false).await.unwrap(), "ok", "round {round}");
        sleep(Duration::from_millis(4_900 + round % 110)).await;
    }
    let lost = server.lost.load(Ordering::Relaxed);
    let (connections, requests) = server.counts();
    assert!(lost > 20, "{lost}: the race was met");
    assert_eq!(requests, 200 + lost, "each of them was sent once more");
    assert!(connections < 200, "{connections}: others were used again");
}

#[tokio::test(start_paused = true)]
async fn by_default_no_request_meets_a_connection_that_closes_after_five_seconds() {
    let server = Server::new(closes_after_five_seconds);
    let pool = pool(&server, crate::api::llm_deployment::Limits::default().idle_timeout.0);
    for round in 0..300_u64 {
        assert_eq!(ask(&pool, false).await.unwrap(), "ok");
        sleep(Duration::from_millis(3_700 + 5 * round)).await;
    }
    assert_eq!(server.lost.load(Ordering::Relaxed), 0);
    assert!(server.counts().0 > 200);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_needed_is_closed_when_its_time_has_come() {
    let server = Server::new(|server, mut io| {
        Box::pin(async move {
            while server.request(&mut io).await {
                io.write_all(ANSWER).await.unwrap();
            }
        })
    });
    let pool = pool(&server, Duration::from_secs(4));
    ask(&pool, false).await.unwrap();
    ask(&pool, false).await.unwrap();
    assert_eq!(server.counts(), (1, 2));
    assert_eq!(server.tasks.len(), 1);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(server.tasks.len(), 0, "closed without another request");
    assert!(pool.idle.lock().unwrap().by_host.is_empty());
    ask(&pool, false).await.unwrap();
    assert_eq!(server.counts(), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_not_kept_for_ever_so_that_a_name_is_looked_up_again() {
    let server = Server::new(|server, mut io| {
        Box::pin(async move {
            while server.request(&mut io).await {
                io.write_all(ANSWER).await.unwrap();
            }
        })
    });
    let pool = pool(&server, Duration::from_secs(4));
    for _ in 0..OLDEST.as_secs() * 4 {
        ask(&pool, false).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    let (connections, _) = server.counts();
    assert!((4..=6).contains(&connections), "{connections} in four times the greatest age");
}

/// The first request of a connection is answered; what becomes of the second differs.
macro_rules! second {
    ($($last:expr),*) => {
        |server, mut io| {
            Box::pin(async move {
                if server.request(&mut io).await {
                    io.write_all(ANSWER).await.unwrap();
                }
                if server.request(&mut io).await {
                    $(io.write_all($last).await.unwrap();)*
                }
            })
        }
    };
}

#[tokio::test(start_paused = true)]
async fn after_a_byte_of_an_answer_nothing_is_sent_again() {
    let server = Server::new(second!(b"H"));
    let pool = pool(&server, Duration::from_secs(4));
    ask(&pool, false).await.unwrap();
    let error = ask(&pool, false).await.unwrap_err();
    assert!(!error.is_connect(), "{error}");
    assert_eq!(server.counts(), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn without_a_byte_it_is_sent_once_more_and_not_twice() {
    let server = Server::new(second!());
    let pool = pool(&server, Duration::from_secs(4));
    for _ in 0..10 {
        assert_eq!(ask(&pool, false).await.unwrap(), "ok");
    }
    assert_eq!(server.counts(), (10, 19), "each but the first was sent twice");
    let never = Server::new(|server, mut io| {
        Box::pin(async move {
            // The first connection is good for one answer, the others for none.
            if server.request(&mut io).await && server.counts().0 == 1 {
                io.write_all(ANSWER).await.unwrap();
                server.request(&mut io).await;
            }
        })
    });
    let pool = self::pool(&never, Duration::from_secs(4));
    ask(&pool, false).await.unwrap();
    let error = ask(&pool, false).await.unwrap_err();
    assert!(!error.is_connect(), "{error}: it was sent");
    assert_eq!(never.counts(), (2, 3), "a new connection that ends is the server's failure");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_had_the_request_for_a_while_has_failed() {
    let server = Server::new(|server, mut io| {
        Box::pin(async move {
            if server.request(&mut io).await {
                io.write_all(ANSWER).await.unwrap();
            }
            server.request(&mut io).await;
            sleep(Duration::from_secs(3)).await;
        })
    });
    let pool = pool(&server, Duration::from_secs(4));
    ask(&pool, false).await.unwrap();
    assert!(!ask(&pool, false).await.unwrap_err().is_connect());
    assert_eq!(server.counts(), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_leaves_something_behind_is_sent_over_a_connection_of_its_own() {
    let server = Server::new(second!());
    let pool = pool(&server, Duration::from_secs(4));
    for _ in 0..3 {
        assert_eq!(ask(&pool, true).await.unwrap(), "ok");
    }
    assert_eq!(server.counts(), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_seen_to_close_is_not_used() {
    let server = Server::new(|server, mut io| {
        Box::pin(async move {
            if server.request(&mut io).await {
                io.write_all(ANSWER).await.unwrap();
            }
        })
    });
    let pool = pool(&server, Duration::from_secs(4));
    for _ in 0..3 {
        assert_eq!(ask(&pool, false).await.unwrap(), "ok");
        advance(Duration::from_millis(10)).await;
    }
    assert_eq!(server.counts(), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_hangs_is_no_connection() {
    struct Hangs;
    impl Dial for Hangs {
        fn dial(&self, _: Uri) -> Dialing {
            Box::pin(std::future::pending())
        }
    }
    let pool = Pool::new(Arc::new(Hangs), Duration::from_secs(5), Duration::from_secs(4));
    let began = Instant::now();
    let error = ask(&pool, false).await.unwrap_err();
    assert!(error.is_connect(), "{error}");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[test]
fn idle_time_is_what_the_server_says_less_the_way_to_it() {
    let usual = Duration::from_secs(4);
    for (told, expected) in [
        (&[][..], Some(4_000)),
        (&["timeout=5"], Some(4_000)),
        (&["timeout=5, max=100"], Some(4_000)),
        (&["max=100, Timeout = 2"], Some(1_000)),
        (&["timeout=1"], Some(500)),
        (&["timeout=75"], Some(60_000)),
        (&["timeout=\"30\""], Some(29_000)),
        (&["timeout=0"], None),
        (&["timeout=soon"], Some(4_000)),
        (&["max=5", "timeout=3"], Some(2_000)),
        (&["timeout=99999999999"], Some(4_000)),
    ] {
        let value = |text: &&str| {
            (header::HeaderName::from_static("keep-alive"), HeaderValue::from_str(text).unwrap())
        };
        let headers = told.iter().map(value).collect();
        assert_eq!(rest(&headers, usual), expected.map(Duration::from_millis), "{told:?}");
    }
    assert_eq!(rest(&HeaderMap::new(), Duration::ZERO), None, "not kept at all");
}

/// Reads no request, and sends `what` at once or after one.
async fn sends(server: Arc<Server>, mut io: DuplexStream, at_once: bool, what: &[u8]) {
    if at_once || server.request(&mut io).await {
        let _ = io.write_all(what).await;
        // The other side ends it.
        while server.request(&mut io).await {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_something_else_is_told_from_one_that_is_not_there() {
    const NOT_HTTP: Option<&str> = Some("is not HTTP");
    let cases: [(Script, Option<&str>); 5] = [
        (|s, io| Box::pin(sends(s, io, false, b"SSH-2.0-x\r\n")), NOT_HTTP),
        (|s, io| Box::pin(sends(s, io, true, b"SSH-2.0-x\r\n")), NOT_HTTP),
        (|s, io| Box::pin(sends(s, io, false, b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n")), NOT_HTTP),
        (
            |s, io| {
                let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: v\r\n".repeat(300));
                Box::pin(async move { sends(s, io, false, head.as_bytes()).await })
            },
            Some("has too many headers, or too large ones"),
        ),
        (|_, io| Box::pin(async { drop(io) }), None),
    ];
    for (n, (script, told)) in cases.into_iter().enumerate() {
        let server = Server::new(script);
        let error = ask(&pool(&server, Duration::from_secs(5)), false).await.unwrap_err();
        assert_eq!(error.no_http(), told, "{n}: {error:?}");
    }
}
