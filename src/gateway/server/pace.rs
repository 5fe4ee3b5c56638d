//! A connection that does not wait for ever: for the next request, for the rest of a
//! head, for somebody who stops reading.
//!
//! One timer a connection serves for reading. It is moved only when it fires or must
//! fire earlier, not with every request: on a busy connection it costs next to nothing.
//!
//! The protocol's implementation answers what is no HTTP by itself, with a status and
//! nothing else. Such a head is recognized when it is written outside of any request's
//! turn, and written anew with an error in OpenAI's shape. Where that does not work (it
//! was written together with the answer before it), the bare head goes out.
//!
//! A client that says nothing more may still listen (it has closed its half of the
//! connection), or be gone: TCP tells no difference until something is written. So
//! `100 Continue` is written, which every client of HTTP/1.1 passes over: whoever is gone
//! refuses it. HTTP/1.0 knows no such answers (RFC 9110, section 15.2): its clients are
//! waited for.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::Version;
use futures::task::AtomicWaker;
use memchr::memmem;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    gateway::{
        budget::{Account, Budget},
        limits::Limits,
    },
    openai::error::ApiError,
};

/// Whether a request of a connection is being answered. While it is, nobody waits for
/// the next one.
pub(super) struct Turn {
    answering: AtomicBool,
    begun: AtomicUsize,
    /// The whole request is here, so that nothing more is expected of the client.
    received: AtomicBool,
    /// The client passes over answers like `100 Continue`.
    takes_interim: AtomicBool,
    /// When the last one ended, in nanoseconds after `born`.
    ended: AtomicU64,
    born: Instant,
    /// Woken when an answer ends: a connection whose client says nothing more ends then.
    half_closed: AtomicWaker,
    /// Of the client that asked last.
    account: Mutex<Option<Arc<Account>>>,
}

/// Held from the moment when a request's head is read until its answer has ended.
pub(super) struct Answering(Arc<Turn>);

impl Default for Turn {
    fn default() -> Self {
        Self {
            answering: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            received: AtomicBool::new(false),
            takes_interim: AtomicBool::new(true),
            ended: AtomicU64::new(0),
            born: Instant::now(),
            half_closed: AtomicWaker::new(),
            account: Mutex::default(),
        }
    }
}

impl Turn {
    /// The account of the client that asks now. On one connection that is mostly the same
    /// as before, which is not looked for again.
    pub(super) fn of(&self, who: &str, budget: &Arc<Budget>) -> Arc<Account> {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        match &*account {
            Some(account) if account.who() == who => account.clone(),
            _ => account.insert(budget.account(who)).clone(),
        }
    }

    /// Whether others need what its client holds.
    fn is_over(&self) -> bool {
        let account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.as_ref().is_some_and(|account| account.is_over())
    }

    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Answering {
        self.answering.store(true, Ordering::Relaxed);
        self.received.store(false, Ordering::Relaxed);
        self.takes_interim.store(version >= Version::HTTP_11, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    fn answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// The request is complete, and its client may be told to go on.
    pub(super) fn received(&self) {
        self.received.store(true, Ordering::Relaxed);
    }

    /// Whether a request is being read.
    fn is_unread(&self) -> bool {
        self.answering() && !self.received.load(Ordering::Relaxed)
    }

    /// Whether all that is missing is the answer.
    fn owes_an_answer(&self) -> bool {
        self.answering() && self.received.load(Ordering::Relaxed)
    }

    fn ended(&self) -> Instant {
        self.born + Duration::from_nanos(self.ended.load(Ordering::Relaxed))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let after = u64::try_from(self.0.born.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.ended.store(after, Ordering::Relaxed);
        self.0.answering.store(false, Ordering::Relaxed);
        self.0.half_closed.wake();
    }
}

/// A connection with bounds on time.
pub(super) struct Paced<T> {
    io: T,
    turn: Arc<Turn>,
    idle: Duration,
    head: Duration,
    write: Duration,
    /// Since when nothing is asked.
    quiet: Instant,
    /// How many turns had begun by the last look.
    begun: usize,
    /// When the first bytes of a head came that is not complete.
    head_began: Option<Instant>,
    reading: Option<Pin<Box<Sleep>>>,
    /// Set while a write waits for the reader.
    writing: Option<Pin<Box<Sleep>>>,
    instead: Option<Instead>,
    /// The head that comes declares a length that no number holds.
    absurd: bool,
    /// How many turns had begun when something was written last.
    spoke: usize,
    half_closed: Option<HalfClosed>,
    /// The client says nothing more, and its request was not yet seen to be complete.
    unread: Option<Pin<Box<Sleep>>>,
    reader: Reader,
}

/// How fast an answer is read.
struct Reader {
    budget: Arc<Budget>,
    /// The least, in bytes a second, while memory is short.
    rate: usize,
    /// The turn that is looked at.
    turn: usize,
    /// Since when it is waited for now.
    waits: Option<Instant>,
    waited: Duration,
    taken: usize,
}

impl Reader {
    /// Something was written, or it was tried in vain.
    fn note(&mut self, turn: usize, written: Option<usize>) {
        if turn != self.turn {
            self.turn = turn;
            (self.waits, self.waited, self.taken) = (None, Duration::ZERO, 0);
        }
        match written {
            None => _ = self.waits.get_or_insert_with(Instant::now),
            Some(bytes) => {
                // What the socket takes at once says nothing of who reads it.
                if let Some(since) = self.waits.take() {
                    self.waited += since.elapsed();
                    self.taken += bytes;
                }
            }
        }
    }

    /// Whether it is slow, and others need what it holds: because memory is short, or because
    /// its client holds more than its share.
    fn must_go(&self, turn: &Turn) -> bool {
        let waited = self.waited + self.waits.map(|since| since.elapsed()).unwrap_or_default();
        waited >= READS_SLOWLY
            && self.taken < waited.as_secs() as usize * self.rate
            && (self.budget.is_short() || turn.is_over())
    }
}

/// Whether a client that says nothing more is still there.
enum HalfClosed {
    /// It was asked so often; when the timer fires, it is asked again.
    Asked(usize, Pin<Box<Sleep>>),
    /// It is.
    Listens,
}

/// Who reads slowly is looked at so often, and is given at least so long.
const READS_SLOWLY: Duration = Duration::from_secs(5);

/// A request that came together with the end of what its client says is looked at within this
/// time; one of which a part is missing is given up then.
const LOOKED_AT: Duration = Duration::from_millis(200);

/// What asks a client that says nothing more, and how long until it is asked again: when it
/// is gone, its refusal of the first comes before the last.
const STILL_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const ASKED_AGAIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(1200)];

/// An answer that is written in place of a bare one.
struct Instead {
    text: Vec<u8>,
    written: usize,
}

impl<T> Paced<T> {
    pub(super) fn new(io: T, turn: Arc<Turn>, limits: &Limits, budget: &Arc<Budget>) -> Self {
        Self {
            io,
            reader: Reader {
                budget: budget.clone(),
                rate: limits.read_rate,
                turn: 0,
                waits: None,
                waited: Duration::ZERO,
                taken: 0,
            },
            turn,
            idle: limits.idle,
            head: limits.header_time,
            write: limits.write_time,
            quiet: Instant::now(),
            begun: 0,
            head_began: None,
            reading: None,
            writing: None,
            instead: None,
            absurd: false,
            spoke: 0,
            half_closed: None,
            unread: None,
        }
    }

    /// Notices turns that have ended since the last look, however short they were: what
    /// comes from now on belongs to the next request.
    fn notice(&mut self) {
        let begun = self.turn.begun.load(Ordering::Relaxed);
        if begun != self.begun {
            self.begun = begun;
            self.quiet = self.turn.ended();
            self.head_began = None;
        }
    }

    /// Whether nobody asked for too long.
    ///
    /// The timer runs during an answer too: when that ends, nobody looks at a connection
    /// on which nothing comes, so the timer must have been set before.
    fn overdue(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let answering = self.turn.answering();
            if !answering {
                self.notice();
            }
            let deadline = match self.head_began {
                _ if answering => Instant::now() + self.idle,
                Some(at) => at + self.head,
                None => self.quiet + self.idle,
            };
            let timer = self.reading.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if !answering && timer.deadline() >= deadline {
                return true;
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Whether the reader took nothing for too long, or too little while memory is short.
    fn stalled(&mut self, cx: &mut Context<'_>) -> bool {
        self.reader.note(self.turn.begun.load(Ordering::Relaxed), None);
        let (until, now) =
            (self.reader.waits.unwrap_or_else(Instant::now) + self.write, Instant::now());
        let look = move |now: Instant| (now + READS_SLOWLY).min(until);
        let timer = self.writing.get_or_insert_with(|| Box::pin(sleep_until(look(now))));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= until || self.reader.must_go(&self.turn) {
                return true;
            }
            timer.as_mut().reset(look(now));
        }
        false
    }

    fn took(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written
            && self.reader.waits.is_some()
        {
            self.reader.note(self.turn.begun.load(Ordering::Relaxed), Some(*bytes));
        }
    }

    fn paced<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.writing = None;
            if self.reader.waits.is_some() {
                self.reader.note(self.turn.begun.load(Ordering::Relaxed), Some(0));
            }
        } else if self.stalled(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }
}

impl<T: AsyncWrite + Unpin> Paced<T> {
    /// Writes an answer of our own in place of `bare`.
    fn poll_instead(&mut self, cx: &mut Context<'_>, bare: usize) -> Poll<io::Result<usize>> {
        while let Some(Instead { text, written }) = &mut self.instead {
            if *written == text.len() {
                self.instead = None;
                break;
            }
            let result = Pin::new(&mut self.io).poll_write(cx, &text[*written..]);
            if let Poll::Ready(Ok(n)) = &result {
                *written += *n;
            }
            ready!(self.paced(cx, result))?;
        }
        Poll::Ready(Ok(bare))
    }

    fn begin_instead(&mut self, head: &[u8]) {
        self.spoke = self.turn.begun.load(Ordering::Relaxed);
        if self.instead.is_none()
            && !self.turn.answering()
            && let Some(error) = bare(head, self.absurd)
        {
            self.instead = Some(Instead { text: text(&error), written: 0 });
        }
    }

    /// The client says nothing more. Pending as long as it may wait for its answer.
    fn half_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing else looks at a connection from which nothing more can come.
        self.turn.half_closed.register(cx.waker());
        if self.turn.is_unread() {
            let looked_at = || Box::pin(sleep_until(Instant::now() + LOOKED_AT));
            ready!(self.unread.get_or_insert_with(looked_at).as_mut().poll(cx));
        } else {
            self.unread = None;
        }
        let begun = self.turn.begun.load(Ordering::Relaxed);
        let unheard = self.half_closed.is_none() && self.spoke == begun;
        if !self.turn.owes_an_answer() || unheard {
            return Poll::Ready(Ok(()));
        }
        loop {
            let (asked, wait) = match &mut self.half_closed {
                Some(HalfClosed::Listens) => return Poll::Pending,
                Some(HalfClosed::Asked(asked, timer)) => {
                    ready!(timer.as_mut().poll(cx));
                    (*asked, ASKED_AGAIN.get(*asked))
                }
                None => (0, ASKED_AGAIN.first()),
            };
            // What has begun to answer finds out by itself.
            let ask = self.spoke != begun && self.turn.takes_interim.load(Ordering::Relaxed);
            if ask && let Poll::Ready(written) = Pin::new(&mut self.io).poll_write(cx, STILL_THERE)
            {
                written?;
                if let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx) {
                    flushed?;
                }
            }
            self.half_closed = Some(match wait.filter(|_| ask) {
                Some(wait) => {
                    HalfClosed::Asked(asked + 1, Box::pin(sleep_until(Instant::now() + *wait)))
                }
                None => HalfClosed::Listens,
            });
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.half_closed.is_some() {
            return this.half_closed(cx);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                let read = &buffer.filled()[before..];
                if read.is_empty() && buffer.remaining() > 0 {
                    return this.half_closed(cx);
                }
                if !read.is_empty() && !this.turn.answering() {
                    this.absurd |= memmem::find(read, ABSURD).is_some();
                    this.notice();
                    this.head_began.get_or_insert_with(Instant::now);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending if this.overdue(cx) => {
                if this.head_began.is_some() {
                    // Tried once: whoever is slow may not read either.
                    let _ = Pin::new(&mut this.io).poll_write(cx, &text(&slow_head()));
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            other => other,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begin_instead(buffer);
        if this.instead.is_some() {
            return this.poll_instead(cx, buffer.len());
        }
        let written = Pin::new(&mut this.io).poll_write(cx, buffer);
        this.took(&written);
        this.paced(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let [only] = buffers {
            this.begin_instead(only);
            if this.instead.is_some() {
                return this.poll_instead(cx, only.len());
            }
        }
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, buffers);
        this.took(&written);
        this.paced(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.paced(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.paced(cx, shut)
    }
}

/// How the largest lengths begin, which the protocol's implementation takes for a head that is
/// too large.
const ABSURD: &[u8] = b"1844674407370955161";

/// What to say in place of a head without a body that refuses what is no request.
fn bare(head: &[u8], absurd: bool) -> Option<ApiError> {
    let text = std::str::from_utf8(head).ok()?;
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let empty = text.ends_with("\r\n\r\n")
        && text.contains("\r\ncontent-length: 0\r\n")
        && text.contains("\r\nconnection: close\r\n");
    if !empty {
        return None;
    }
    match status {
        "431" if absurd => Some(ApiError::new(
            400,
            "malformed_request",
            "content-length is larger than any body: send the length of the body in bytes",
        )),
        "400" => Some(ApiError::new(
            400,
            "malformed_request",
            "this is no HTTP/1.1 request: send JSON with an OpenAI client to the gateway's base URL",
        )),
        "414" => Some(ApiError::new(414, "uri_too_long", "the address is too long")),
        "431" => Some(ApiError::new(
            431,
            "headers_too_large",
            "the request has more or larger headers than this gateway takes: send fewer",
        )),
        _ => None,
    }
}

fn slow_head() -> ApiError {
    ApiError::new(408, "headers_too_slow", "the request's headers did not come in time")
}

/// A whole answer that ends the connection.
pub(super) fn text(error: &ApiError) -> Vec<u8> {
    let body = error.body().to_string();
    let reason = axum::http::StatusCode::from_u16(error.status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    let retry = error.retry_after.map(|s| format!("retry-after: {s}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n{body}",
        error.status,
        body.len(),
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::gateway::budget::Class;

    const BARE: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: x\r\n\r\n";

    fn paced<T>(io: T) -> (Paced<T>, Arc<Turn>) {
        let turn = Arc::new(Turn::default());
        let budget = Budget::new(Limits::default().memory);
        (Paced::new(io, turn.clone(), &Limits::default(), &budget), turn)
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_goes_while_memory_is_short_or_over_its_share_and_only_then() {
        for (short, over) in [(true, false), (false, true), (false, false)] {
            let budget = Budget::new(1000);
            let turn = Arc::new(Turn::default());
            let _own = turn.of("greedy", &budget).take(Class::Answers, 375).unwrap();
            let _held = if short {
                budget.take_anyway(Class::Bodies, 600)
            } else {
                budget.nothing(Class::Bodies)
            };
            let _other = over.then(|| budget.account("modest").take(Class::Answers, 50).unwrap());
            let goes = short || over;
            let (mut client, server) = duplex(16);
            let mut server = Paced::new(server, turn.clone(), &Limits::default(), &budget);
            let _answering = turn.begin(Version::HTTP_11);
            let reading = async {
                let mut buffer = [0; 8];
                for _ in 0..8 {
                    tokio::time::sleep(Duration::from_secs(11)).await;
                    let read = client.read(&mut buffer);
                    let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
                }
            };
            let began = Instant::now();
            let writing = async { (server.write_all(&[0; 64]).await.is_err(), began.elapsed()) };
            let ((ended, after), ()) = tokio::join!(writing, reading);
            assert_eq!((ended, after == READS_SLOWLY), (goes, goes), "{after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_ends_later_than_one_with_half_of_a_head() {
        let limits = Limits::default();
        for (sent, allowed) in [("", limits.idle), ("GET / HT", limits.header_time)] {
            let (mut client, server) = duplex(1024);
            let (mut server, _) = paced(server);
            client.write_all(sent.as_bytes()).await.unwrap();
            let began = Instant::now();
            let mut text = String::new();
            let error = server.read_to_string(&mut text).await.unwrap_err();
            assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, allowed));
            drop(server);
            let mut told = String::new();
            client.read_to_string(&mut told).await.unwrap();
            assert_eq!(told.contains("headers_too_slow"), !sent.is_empty(), "{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_request_is_answered_nobody_waits_for_the_next_one() {
        let (_client, server) = duplex(1024);
        let (mut server, turn) = paced(server);
        let answering = turn.begin(Version::HTTP_11);
        let mut byte = [0; 1];
        // Read once for all: nobody reads anew because an answer has ended.
        let mut read = std::pin::pin!(server.read(&mut byte));
        let patience = Limits::default().idle * 10 + Duration::from_secs(7);
        assert!(tokio::time::timeout(patience, read.as_mut()).await.is_err());
        drop(answering);
        let began = Instant::now();
        assert!(read.await.is_err());
        assert_eq!(began.elapsed(), Limits::default().idle, "counted from the answer's end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_saw_ends_a_head_all_the_same() {
        let (mut client, server) = duplex(1024);
        let (mut server, turn) = paced(server);
        let limits = Limits::default();
        for (next, allowed) in [("", limits.idle), ("GET", limits.header_time)] {
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            server.read_exact(&mut [0; 18]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(9)).await;
            drop(turn.begin(Version::HTTP_11));
            client.write_all(next.as_bytes()).await.unwrap();
            let began = Instant::now();
            let error = server.read_to_end(&mut vec![]).await.unwrap_err();
            assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, allowed));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_more_and_listens_is_waited_for_and_who_is_gone_is_not() {
        for (received, listens) in [(true, true), (true, false), (false, true)] {
            let (mut client, server) = duplex(1024);
            let (mut server, turn) = paced(server);
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            server.read_exact(&mut [0; 18]).await.unwrap();
            let answering = turn.begin(Version::HTTP_11);
            if received {
                turn.received();
            }
            client.shutdown().await.unwrap();
            if !listens {
                drop(client);
                assert!(server.read(&mut [0; 9]).await.is_err());
                continue;
            }
            let mut byte = [0; 1];
            if received {
                let patience = Duration::from_secs(600);
                assert!(tokio::time::timeout(patience, server.read(&mut byte)).await.is_err());
            }
            drop(answering);
            assert_eq!(
                server.read(&mut byte).await.unwrap(),
                0,
                "a body that breaks off has ended"
            );
            drop(server);
            let mut told = String::new();
            client.read_to_string(&mut told).await.unwrap();
            let asked =
                if received { "HTTP/1.1 100 Continue\r\n\r\n".repeat(3) } else { String::new() };
            assert_eq!(told, asked);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_answer_ends_a_connection_whose_client_says_nothing_more() {
        for version in [Version::HTTP_11, Version::HTTP_10] {
            // Before each time at which the client is asked, and after the last.
            for after in [0, 1, 299, 301, 1499, 1501, 100_000].map(Duration::from_millis) {
                for received in [true, false] {
                    let (mut client, server) = duplex(1024);
                    let (mut server, turn) = paced(server);
                    let answering = turn.begin(version);
                    if received {
                        turn.received();
                    }
                    client.shutdown().await.unwrap();
                    let began = Instant::now();
                    let answer = async move {
                        tokio::time::sleep(after).await;
                        drop(answering);
                    };
                    // Read once for all: only who is woken looks again.
                    let mut byte = [0; 1];
                    let both = async { tokio::join!(server.read(&mut byte), answer).0 };
                    let read = tokio::time::timeout(after * 2 + LOOKED_AT * 2, both).await;
                    assert_eq!(read.unwrap().unwrap(), 0);
                    assert_eq!(began.elapsed(), after, "{version:?}, received: {received}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_http_1_0_is_asked_nothing() {
        let (mut client, server) = duplex(1024);
        let (mut server, turn) = paced(server);
        let answering = turn.begin(Version::HTTP_10);
        turn.received();
        client.shutdown().await.unwrap();
        let patience = Duration::from_secs(600);
        assert!(tokio::time::timeout(patience, server.read(&mut [0; 1])).await.is_err());
        drop((answering, server));
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "");
    }

    #[tokio::test]
    async fn who_leaves_while_an_answer_comes_is_gone() {
        let (mut client, server) = duplex(1024);
        let (mut server, turn) = paced(server);
        let _answering = turn.begin(Version::HTTP_11);
        turn.received();
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_reading_is_given_up_and_who_reads_slowly_is_not() {
        let (mut client, server) = duplex(16);
        let (mut server, _) = paced(server);
        let limits = Limits::default();
        let slowly = async {
            let mut bytes = [0; 16];
            for _ in 0..5 {
                tokio::time::sleep(limits.write_time / 2).await;
                client.read_exact(&mut bytes).await.unwrap();
            }
            client
        };
        let (written, _client) = tokio::join!(server.write_all(&[7; 96]), slowly);
        written.unwrap();
        let error = server.write_all(&[7; 96]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_bare_refusal_gets_a_body_unless_it_is_the_answer_of_a_request() {
        for answering in [false, true] {
            let (mut client, server) = duplex(4096);
            let (mut server, turn) = paced(server);
            let held = answering.then(|| turn.begin(Version::HTTP_11));
            server.write_all(BARE).await.unwrap();
            drop((held, server));
            let mut told = String::new();
            client.read_to_string(&mut told).await.unwrap();
            if answering {
                assert_eq!(told.as_bytes(), BARE);
            } else {
                let (head, body) = told.split_once("\r\n\r\n").unwrap();
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(body["error"]["code"], "malformed_request");
                assert!(head.contains(&format!("content-length: {}", told.len() - head.len() - 4)));
            }
        }
    }
}
