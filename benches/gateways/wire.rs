//! HTTP/1.1 as far as the load and the model need it. Written by hand because both share
//! two cores with what is measured: an HTTP library costs as much as a gateway.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One connection that is kept alive.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer was consumed.
    consumed: usize,
}

/// The head of a request or a response.
pub struct Head {
    /// Its bytes, with the first line.
    pub bytes: Vec<u8>,
    /// What follows.
    pub body: Body,
}

/// How far a body was read.
pub enum Body {
    /// So many bytes are to come.
    Length(usize),
    /// Chunks: so many bytes of the current one are to come, with its line end.
    Chunked(usize),
    /// All of it was read.
    Complete,
}

impl Connection {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 << 10), consumed: 0 })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads a head; `None` when the peer has closed between two messages.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            let unread = &self.buffer[self.consumed..];
            if let Some(end) = find(unread, b"\r\n\r\n") {
                let bytes = unread[..end + 2].to_vec();
                self.consumed += end + 4;
                let body = framing(&bytes);
                return Ok(Some(Head { bytes, body }));
            }
            if !self.fill().await? {
                return if self.consumed == self.buffer.len() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Reads the rest of a body. `arrived` gets what each read brought.
    pub async fn body(
        &mut self,
        body: &mut Body,
        mut arrived: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        loop {
            while self.take(body, &mut arrived)? {}
            if matches!(body, Body::Complete) {
                return Ok(());
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Consumes a part of a body that has arrived; false when there is none.
    fn take(&mut self, body: &mut Body, arrived: &mut impl FnMut(&[u8])) -> io::Result<bool> {
        let unread = &self.buffer[self.consumed..];
        match body {
            Body::Complete => return Ok(false),
            Body::Length(0) => *body = Body::Complete,
            Body::Length(rest) | Body::Chunked(rest) if *rest > 0 => {
                let now = unread.len().min(*rest);
                if now == 0 {
                    return Ok(false);
                }
                arrived(&unread[..now]);
                *rest -= now;
                self.consumed += now;
            }
            Body::Length(_) | Body::Chunked(_) => {
                let Some(end) = find(unread, b"\r\n") else { return Ok(false) };
                let size = std::str::from_utf8(&unread[..end]).ok();
                let size = size.and_then(|s| usize::from_str_radix(s.split(';').next()?, 16).ok());
                let size = size.ok_or(io::ErrorKind::InvalidData)?;
                // The line end after a chunk is read with it; the last chunk is empty.
                if unread.len() < end + 4 {
                    return Ok(false);
                }
                self.consumed += if size == 0 { end + 4 } else { end + 2 };
                *body = if size == 0 { Body::Complete } else { Body::Chunked(size + 2) };
            }
        }
        Ok(true)
    }

    async fn fill(&mut self) -> io::Result<bool> {
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        }
        self.buffer.reserve(4 << 10);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

impl Head {
    /// The status of a response; 0 when there is none.
    pub fn status(&self) -> u16 {
        let text = self.bytes.get(9..12).and_then(|s| std::str::from_utf8(s).ok());
        text.and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.bytes, name)
    }
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let rest = line.get(name.len()..)?.strip_prefix(b":")?;
        let same = line[..name.len()].eq_ignore_ascii_case(name.as_bytes());
        if same { std::str::from_utf8(rest).ok().map(str::trim) } else { None }
    })
}

fn framing(head: &[u8]) -> Body {
    if let Some(length) = header(head, "content-length").and_then(|l| l.parse().ok()) {
        return Body::Length(length);
    }
    let chunked = header(head, "transfer-encoding").is_some_and(|t| t.contains("chunked"));
    if chunked { Body::Chunked(0) } else { Body::Complete }
}

/// Where `what` begins.
pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
