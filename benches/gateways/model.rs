//! The model behind all contestants, a process of its own. It answers at once with a
//! completion of a usual size, or streams twenty chunks, 5 ms apart. It takes traces,
//! too, and throws them away.
//!
//! The answer is JSON that fits the response format of the bench's prompt, so that
//! checks pass.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use crate::{
    pace::Metronome,
    wire::{Connection, find},
};

/// Content chunks of a stream.
pub const CHUNKS: usize = 20;
/// Whose prompt says this waits for half a second.
pub const SLOW: &str = "[[slow]]";
/// From one chunk to the next.
const SPACING: Duration = Duration::from_millis(5);

const WORDS: [&str; CHUNKS] = [
    "{\\\"answer\\\":\\\"",
    "The pan",
    " is made",
    " of cast",
    " iron and",
    " safe in",
    " an oven",
    " up to",
    " 260 degrees;",
    " its lid",
    " is glass",
    " and safe",
    " up to",
    " 180. Let",
    " both cool",
    " down before",
    " they are",
    " washed by",
    " hand, please.",
    "\\\"}",
];

/// Every byte that is ever said, made once.
struct Script {
    whole: Vec<u8>,
    /// The head of a stream with its first chunk, then the other chunks.
    chunks: Vec<Vec<u8>>,
    /// The end of a stream, with and without usage.
    end: [Vec<u8>; 2],
    /// Traces that were sent here.
    traces: AtomicU64,
}

/// Serves for ever on one thread.
pub async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let script = Arc::new(Script::new());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let connection = Connection::new(accepted?.0)?;
                connections.spawn(converse(connection, script.clone()));
            }
            // A peer that goes away in the middle ends only its own connection.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How many requests with spans a model has got so far.
pub async fn traces(model: SocketAddr) -> io::Result<u64> {
    let mut connection = Connection::new(TcpStream::connect(model).await?)?;
    connection.write(b"GET /traces HTTP/1.1\r\nhost: model\r\n\r\n").await?;
    let mut head = connection.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = vec![];
    connection.body(&mut head.body, |bytes| body.extend_from_slice(bytes)).await?;
    let count = String::from_utf8_lossy(&body).parse();
    count.map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn converse(mut connection: Connection, script: Arc<Script>) -> io::Result<()> {
    let mut asked = vec![];
    while let Some(mut head) = connection.head().await? {
        asked.clear();
        connection.body(&mut head.body, |bytes| asked.extend_from_slice(bytes)).await?;
        let is = |start: &[u8]| head.bytes.starts_with(start);
        if is(b"POST /v1/chat/completions ") {
            if find(&asked, SLOW.as_bytes()).is_some() {
                sleep(Duration::from_millis(500)).await;
            }
            if says(&asked, "stream") {
                let usage = says(&asked, "include_usage");
                stream(&mut connection, &script, usage).await?;
            } else {
                connection.write(&script.whole).await?;
            }
        } else if is(b"POST /v1/traces ") {
            script.traces.fetch_add(1, Ordering::Relaxed);
            connection.write(&response("application/x-protobuf", "")).await?;
        } else if is(b"GET /traces ") {
            let count = script.traces.load(Ordering::Relaxed).to_string();
            connection.write(&response("text/plain", &count)).await?;
        } else {
            // Whatever a peer asks before it trusts a model.
            let models = r#"{"object":"list","data":[{"id":"bench","object":"model"}]}"#;
            connection.write(&response("application/json", models)).await?;
        }
    }
    Ok(())
}

/// Whether a field is true, with or without a space.
fn says(body: &[u8], field: &str) -> bool {
    [format!("\"{field}\":true"), format!("\"{field}\": true")]
        .iter()
        .any(|text| find(body, text.as_bytes()).is_some())
}

async fn stream(connection: &mut Connection, script: &Script, usage: bool) -> io::Result<()> {
    let mut ticks = Metronome::new(SPACING, SPACING)?;
    for (i, chunk) in script.chunks.iter().enumerate() {
        if i > 0 {
            ticks.ticks().await?;
        }
        connection.write(chunk).await?;
    }
    connection.write(&script.end[usize::from(usage)]).await
}

impl Script {
    fn new() -> Self {
        let usage = r#""usage":{"prompt_tokens":48,"completion_tokens":45,"total_tokens":93,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0}}"#;
        let answer = WORDS.concat();
        let head = r#""id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012","created":1760000000,"model":"gpt-4o-mini-2024-07-18""#;
        let whole = response(
            "application/json",
            &format!(
                r#"{{"object":"chat.completion",{head},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{answer}","refusal":null}},"logprobs":null,"finish_reason":"stop"}}],{usage},"service_tier":"default","system_fingerprint":"fp_0123456789"}}"#
            ),
        );
        let event = |delta: &str, finish: &str| {
            let json = format!(
                r#"{{"object":"chat.completion.chunk",{head},"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}"#
            );
            chunk(&format!("data: {json}\n\n"))
        };
        let mut chunks: Vec<Vec<u8>> = WORDS
            .iter()
            .map(|word| event(&format!(r#"{{"role":"assistant","content":"{word}"}}"#), "null"))
            .collect();
        let start =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        chunks[0] = [start, chunks[0].as_slice()].concat();
        let finish = event("{}", "\"stop\"");
        let told = chunk(&format!(
            "data: {{\"object\":\"chat.completion.chunk\",{head},\"choices\":[],{usage}}}\n\n"
        ));
        let done = chunk("data: [DONE]\n\n");
        let end = b"0\r\n\r\n";
        Self {
            whole,
            chunks,
            end: [
                [&finish, &done, end.as_slice()].concat(),
                [&finish, &told, &done, end.as_slice()].concat(),
            ],
            traces: AtomicU64::new(0),
        }
    }
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

fn response(content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
