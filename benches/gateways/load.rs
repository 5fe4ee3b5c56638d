//! The load: requests that arrive at a constant rate whether or not the ones before were
//! answered, over 64 connections. Every time is counted from the instant at which the
//! request was due, so that a contestant that stalls is charged for all who waited.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    model::CHUNKS,
    pace::Metronome,
    wire::{Connection, Head},
};

/// As many as a pool of an application has.
pub const CONNECTIONS: usize = 64;
/// What is not answered so long after the last request was due is given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The marker for the number of a user in the body of a request.
pub const USER: &str = "u000000";

/// Where requests go, and what they say.
#[derive(Clone)]
pub struct Request {
    pub address: SocketAddr,
    /// Head and body, ready to be sent, but for the number of the user.
    bytes: Vec<u8>,
    user_at: usize,
}

impl Request {
    /// `body` holds [`USER`] once.
    pub fn new(address: SocketAddr, path: &str, headers: &[(String, String)], body: &str) -> Self {
        let headers: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        let length = body.len();
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        let user_at = text.rfind(USER).unwrap() + 1;
        Self { address, bytes: text.into_bytes(), user_at }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn as_user(&mut self, number: u64) -> &[u8] {
        let digits = format!("{:06}", number % 1_000_000);
        self.bytes[self.user_at..self.user_at + 6].copy_from_slice(digits.as_bytes());
        &self.bytes
    }
}

/// What one round of one cell brought. Seconds.
#[derive(Default)]
pub struct Answers {
    /// Until the answer was complete, or until the first chunk of a stream.
    pub times: Vec<f64>,
    /// From chunk to chunk.
    pub gaps: Vec<f64>,
    /// Not answered with 200, or not in time.
    pub failed: usize,
    /// From the first due request to the last answer.
    pub took: f64,
}

/// What connections share with the clock.
#[derive(Default)]
struct Queue {
    due: RefCell<VecDeque<(u64, Instant)>>,
    waiting: Notify,
    closed: Cell<bool>,
    answers: RefCell<Answers>,
}

impl Queue {
    async fn next(&self) -> Option<(u64, Instant)> {
        loop {
            if let Some(due) = self.due.borrow_mut().pop_front() {
                return Some(due);
            }
            if self.closed.get() {
                return None;
            }
            self.waiting.notified().await;
        }
    }

    fn close(&self) {
        self.closed.set(true);
        self.waiting.notify_waiters();
    }
}

/// Opens the connections and asks once over each.
pub async fn connect(request: &Request) -> io::Result<Vec<Connection>> {
    let opened = join_all((0..CONNECTIONS as u64).map(|user| async move {
        let mut connection = Connection::new(TcpStream::connect(request.address).await?)?;
        let (mut request, mut answers) = (request.clone(), Answers::default());
        ask(&mut connection, request.as_user(user), Instant::now(), &mut answers).await?;
        Ok(connection)
    }));
    let connections = opened.await.into_iter().collect();
    sleep(Duration::from_millis(50)).await;
    connections
}

/// Sends `rate` requests a second for so many seconds.
pub async fn open_loop(
    connections: Vec<Connection>,
    request: &Request,
    rate: u64,
    seconds: u64,
) -> io::Result<Answers> {
    let queue = Rc::new(Queue::default());
    let mut workers = work(connections, request, &queue);
    let period = Duration::from_secs(1) / u32::try_from(rate).unwrap();
    let mut metronome = Metronome::new(Duration::from_millis(10), period)?;
    let started = metronome.started;
    let mut sent = 0;
    while sent < rate * seconds {
        for _ in 0..metronome.ticks().await? {
            let due = started + period * u32::try_from(sent).unwrap();
            queue.due.borrow_mut().push_back((sent, due));
            queue.waiting.notify_one();
            sent += 1;
        }
    }
    queue.close();
    let _ = timeout(PATIENCE, async { while workers.join_next().await.is_some() {} }).await;
    workers.abort_all();
    Ok(finish(&queue, sent, started))
}

/// Sends the next request as soon as one is answered, over all connections.
pub async fn closed_loop(
    connections: Vec<Connection>,
    request: &Request,
    seconds: u64,
) -> io::Result<Answers> {
    let queue = Rc::new(Queue::default());
    let started = Instant::now();
    let mut users = JoinSet::new();
    let until = started + Duration::from_secs(seconds);
    for (i, mut connection) in connections.into_iter().enumerate() {
        let (queue, mut request) = (queue.clone(), request.clone());
        users.spawn_local(async move {
            let mut number = i as u64;
            while Instant::now() < until {
                let (mut own, bytes) = (Answers::default(), request.as_user(number));
                let asked = ask(&mut connection, bytes, Instant::now(), &mut own).await;
                number += CONNECTIONS as u64;
                merge(&queue, own, asked.is_err());
                if asked.is_err() {
                    return;
                }
            }
        });
    }
    let patience = Duration::from_secs(seconds) + PATIENCE;
    let _ = timeout(patience, async { while users.join_next().await.is_some() {} }).await;
    users.abort_all();
    Ok(finish(&queue, 0, started))
}

/// So many requests over all connections, each when one is answered.
pub async fn several(
    connections: Vec<Connection>,
    request: &Request,
    requests: u64,
) -> io::Result<Vec<Connection>> {
    let each = requests / CONNECTIONS as u64;
    let users = connections.into_iter().enumerate().map(|(i, mut connection)| async move {
        let (mut request, mut answers) = (request.clone(), Answers::default());
        for n in 0..each {
            let bytes = request.as_user(i as u64 * each + n);
            ask(&mut connection, bytes, Instant::now(), &mut answers).await?;
        }
        if answers.failed > 0 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(connection) }
    });
    join_all(users).await.into_iter().collect()
}

fn work(connections: Vec<Connection>, request: &Request, queue: &Rc<Queue>) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    for mut connection in connections {
        let (queue, mut request) = (queue.clone(), request.clone());
        workers.spawn_local(async move {
            while let Some((number, due)) = queue.next().await {
                let mut own = Answers::default();
                let asked = ask(&mut connection, request.as_user(number), due, &mut own).await;
                merge(&queue, own, asked.is_err());
                if asked.is_err() {
                    // A pool opens another one in place of a broken connection.
                    let Ok(stream) = TcpStream::connect(request.address).await else { return };
                    let Ok(fresh) = Connection::new(stream) else { return };
                    connection = fresh;
                }
            }
        });
    }
    workers
}

fn merge(queue: &Queue, own: Answers, broken: bool) {
    let mut answers = queue.answers.borrow_mut();
    answers.times.extend(own.times);
    answers.gaps.extend(own.gaps);
    answers.failed += own.failed + usize::from(broken);
}

fn finish(queue: &Queue, sent: u64, started: Instant) -> Answers {
    let mut answers = std::mem::take(&mut *queue.answers.borrow_mut());
    answers.took = started.elapsed().as_secs_f64();
    let known = answers.times.len() + answers.failed;
    answers.failed += usize::try_from(sent).unwrap_or(0).saturating_sub(known);
    answers
}

/// One request and its answer.
async fn ask(
    connection: &mut Connection,
    request: &[u8],
    due: Instant,
    answers: &mut Answers,
) -> io::Result<()> {
    connection.write(request).await?;
    let mut head: Head = connection.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let stream = head.header("content-type").is_some_and(|t| t.starts_with("text/event-stream"));
    let mut events = Events::default();
    connection
        .body(&mut head.body, |bytes| {
            if stream {
                events.arrived(bytes);
            }
        })
        .await?;
    if head.status() != 200 || (stream && events.count < CHUNKS) {
        answers.failed += 1;
        return Ok(());
    }
    let first = events.first.unwrap_or_else(Instant::now);
    answers.times.push(first.saturating_duration_since(due).as_secs_f64());
    answers.gaps.append(&mut events.gaps);
    Ok(())
}

/// When the events of a stream arrived.
#[derive(Default)]
struct Events {
    count: usize,
    first: Option<Instant>,
    last: Option<Instant>,
    gaps: Vec<f64>,
    line_ended: bool,
}

impl Events {
    /// An event ends with an empty line.
    fn arrived(&mut self, bytes: &[u8]) {
        let before = self.count;
        for byte in bytes {
            let line_end = *byte == b'\n';
            self.count += usize::from(line_end && self.line_ended);
            self.line_ended = line_end;
        }
        let now = Instant::now();
        // The end of a stream comes right after its last content, in as many pieces as one likes.
        for _ in before..self.count.min(CHUNKS) {
            match self.last {
                Some(last) => self.gaps.push((now - last).as_secs_f64()),
                None => self.first = Some(now),
            }
            self.last = Some(now);
        }
    }
}
