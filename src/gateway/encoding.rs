//! Content codings: compressed requests of applications, and answers of models that
//! compress although they were asked not to.
//!
//! A decoder is fed as bytes come and gives out as much as the caller asks for, so that
//! what a few bytes unfold to never lies in memory at once: who reads counts, and stops.
//! A chain of codings is a chain of readers. No input yet is `WouldBlock`.
//!
//! What a reader counts is no bound on the work: empty gzip members, zstd frames and blocks
//! of deflate are decoded to nothing. So what each coding reads is bounded by what it gives
//! out, and what passes between two codings by what came. A byte that is read costs at most
//! some 40 ns (deflate blocks of 11 bytes with tables of their own), so bytes are the measure.
//! Work is cut into turns, so that a long body neither holds its thread nor outlives its time.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use axum::http::{HeaderMap, header};
use bytes::{Buf, Bytes};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

/// What is understood, as `accept-encoding` says it.
pub(super) const UNDERSTOOD: &str = "gzip, deflate, zstd, identity";
/// Codings of one body. Who needs more wants something else.
const MOST_CODINGS: usize = 3;
/// Bytes between two codings of a chain.
const BETWEEN: usize = 16 << 10;
/// The largest header of gzip, which may hold a file's name and a comment.
const LARGEST_HEADER: usize = 8 << 10;
/// So much of a header of gzip is looked at in one step.
const HEADER_STEP: usize = 512;
/// The window of zstd that every recipient must have, and more than which none should send
/// (RFC 9659): 2^23 bytes.
const WINDOW_LOG: u32 = 23;
/// Bytes that a coding may read, or that may pass between two codings, whatever follows from
/// them: headers, padding, frames that hold metadata.
const FREE: u64 = 1 << 20;
/// A coding reads at most so many bytes for each that it gives out. The smallest events of a
/// stream, each a gzip member of its own (18 bytes), stay below.
const MOST_READ: u64 = 4;
/// At most so many bytes pass between two codings for each that came: what is compressed
/// already hardly shrinks again.
const MOST_BETWEEN: u64 = 16;
/// Bytes read and written by all codings of a body before others have their turn.
const TURN: u64 = 128 << 10;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// The format of zlib, or what it wraps: both are sent under this name.
    Deflate,
    Zstd,
}

/// The longest name of a coding that is told (`dcb`, `aes128gcm`, `pack200-gzip`).
const LONGEST_NAME: usize = 12;

/// A body that can not be read: the coding that is not known, or too many of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the content-encoding {0:?} is not understood")]
    Unknown(String),
    #[error("the content-encoding names more than {MOST_CODINGS} codings")]
    TooMany,
}

/// So many bytes of a body show whether it is compressed.
pub(super) const LONGEST_MARK: usize = 4;

/// Whether a body begins as one that is compressed, which no text does: gzip (RFC 1952, section
/// 2.3), zlib with its usual window (RFC 1950, section 2.2), zstd (RFC 8878, section 3.1.1). What
/// Brotli and deflate begin with may be anything.
pub(super) fn is_compressed(first: &[u8]) -> bool {
    matches!(
        first,
        [0x1f, 0x8b, ..] | [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..]
    )
}

/// The codings of a body in the order in which they were applied; none of one that is sent
/// as it is.
///
/// # Errors
/// One of them is not understood.
pub(super) fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, Unreadable> {
    let mut codings = vec![];
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let names = value.to_str().map_err(|_| Unreadable::Unknown("?".to_owned()))?;
        for name in names.split(',').map(str::trim) {
            codings.push(match name.to_ascii_lowercase().as_str() {
                // Clients read a body under a name that is none of a coding as it is.
                "" | "identity" | "none" | "utf-8" | "utf8" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                "zstd" => Coding::Zstd,
                // What is longer is no name of a coding, and may be anything.
                other if other.len() > LONGEST_NAME => {
                    return Err(Unreadable::Unknown("?".to_owned()));
                }
                other => return Err(Unreadable::Unknown(other.to_owned())),
            });
        }
    }
    if codings.len() > MOST_CODINGS { Err(Unreadable::TooMany) } else { Ok(codings) }
}

/// Takes back the codings of one body.
pub(super) struct Decoder {
    /// None when all was fed.
    feed: Option<mpsc::Sender<Bytes>>,
    decoded: Box<dyn Read + Send>,
    work: Arc<Work>,
}

/// What a decoder has done, as all of its codings count it.
struct Work {
    /// Bytes of the encoded body.
    came: AtomicU64,
    /// Bytes that may still be read and written in this turn.
    left: AtomicU64,
}

impl Work {
    fn is_spent(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    fn spend(&self, bytes: u64) {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// What a decoder has for its reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// So many bytes.
    Bytes(usize),
    /// Nothing before more is fed.
    Hungry,
    /// Nothing yet, and much was done: others have their turn before it is read again.
    Working,
    /// Nothing any more.
    End,
}

impl Decoder {
    /// `codings` in the order in which they were applied; at most `largest` bytes pass
    /// between two of them.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(codings: &[Coding], largest: usize) -> io::Result<Self> {
        let (feed, fed) = mpsc::channel();
        let work = Arc::new(Work { came: AtomicU64::new(0), left: AtomicU64::new(TURN) });
        let mut decoded: Box<dyn Read + Send> = Box::new(Fed { fed, piece: Bytes::new() });
        for (at, coding) in codings.iter().enumerate().rev() {
            decoded = Box::new(Decoding {
                inner: BufReader::with_capacity(BETWEEN, decoded),
                format: Format::new(*coding)?,
                full: false,
                read: 0,
                written: 0,
                largest: (at > 0).then_some(largest as u64),
                work: work.clone(),
            });
        }
        Ok(Self { feed: Some(feed), decoded, work })
    }

    /// The next piece of the encoded body.
    pub(super) fn feed(&self, piece: Bytes) {
        if let Some(feed) = &self.feed {
            self.work.came.fetch_add(piece.len() as u64, Ordering::Relaxed);
            // The other end lives as long as this one.
            let _ = feed.send(piece);
        }
    }

    /// There is no more of it.
    pub(super) fn end(&mut self) {
        self.feed = None;
    }

    /// Some of the decoded body.
    ///
    /// # Errors
    /// It is not encoded as was said, or broken off, or costs more than any honest body.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<Decoded> {
        match self.decoded.read(into) {
            Ok(0) => Ok(Decoded::End),
            Ok(read) => Ok(Decoded::Bytes(read)),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Err(_) if self.work.is_spent() => {
                self.work.left.store(TURN, Ordering::Relaxed);
                Ok(Decoded::Working)
            }
            Err(_) => Ok(Decoded::Hungry),
        }
    }
}

/// The encoded body, as far as it has come.
struct Fed {
    fed: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Fed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.fed.try_recv() {
                Ok(piece) => self.piece = piece,
                Err(mpsc::TryRecvError::Empty) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(mpsc::TryRecvError::Disconnected) => return Ok(0),
            }
        }
        let length = into.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// One coding taken back.
struct Decoding<R> {
    inner: R,
    format: Format,
    /// There was no room for more: some may be left of what was read.
    full: bool,
    /// Bytes that it has read and written.
    read: u64,
    written: u64,
    /// The most that it may write, if another coding reads that.
    largest: Option<u64>,
    work: Arc<Work>,
}

impl<R> Decoding<R> {
    /// Counts the work of a step.
    fn count(&mut self, read: usize, written: usize) -> io::Result<()> {
        self.read += read as u64;
        self.written += written as u64;
        self.work.spend((read + written) as u64);
        if self.read > FREE + MOST_READ.saturating_mul(self.written) {
            return Err(broken(
                "it is over 1 MiB longer than 4 times what it holds; send it as one gzip member or \
                 zstd frame, or without content-encoding",
            ));
        }
        let came = self.work.came.load(Ordering::Relaxed);
        let most = FREE + MOST_BETWEEN.saturating_mul(came);
        if self.largest.is_some_and(|largest| self.written > largest.min(most)) {
            return Err(broken(
                "what lies between its codings is over 1 MiB longer than 16 times the body, or \
                 larger than a body may be; send it with one content-encoding",
            ));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Decoding<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.full {
            let (_, written) = self.format.step(&[], into)?;
            self.full = written == into.len();
            self.count(0, written)?;
            if written > 0 {
                return Ok(written);
            }
        }
        loop {
            if self.work.is_spent() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let input = self.inner.fill_buf()?;
            if input.is_empty() {
                return if self.format.may_end() {
                    Ok(0)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            let (read, written) = self.format.step(input, into)?;
            self.full = written == into.len();
            self.inner.consume(read);
            self.count(read, written)?;
            if written > 0 {
                return Ok(written);
            }
            if read == 0 {
                return Err(broken("something follows its end"));
            }
        }
    }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The state of one coding.
enum Format {
    Gzip(Gzip),
    Deflate(Inflate),
    Zstd { raw: Box<zstd::stream::raw::Decoder<'static>>, begun: bool, in_frame: bool },
}

impl Format {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(Gzip::default()),
            Coding::Deflate => Self::Deflate(Inflate::default()),
            Coding::Zstd => {
                let mut raw = Box::new(zstd::stream::raw::Decoder::new()?);
                raw.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
                Self::Zstd { raw, begun: false, in_frame: false }
            }
        })
    }

    /// Decodes some of `input`: how much of it was read, and how much was written.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize)> {
        match self {
            Self::Gzip(gzip) => gzip.step(input, output),
            Self::Deflate(inflate) => inflate.step(input, output),
            Self::Zstd { raw, begun, in_frame } => {
                if input.is_empty() && !*in_frame {
                    return Ok((0, 0));
                }
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(output);
                let hint = raw.run(&mut from, &mut to)?;
                (*begun, *in_frame) = (true, hint != 0);
                Ok((from.pos(), to.pos()))
            }
        }
    }

    /// Whether the body may end here. One without a byte is not encoded.
    fn may_end(&self) -> bool {
        match self {
            Self::Gzip(gzip) => gzip.members > 0 && gzip.held.is_empty() && gzip.member.is_none(),
            Self::Deflate(inflate) => inflate.ended,
            Self::Zstd { begun, in_frame, .. } => *begun && !*in_frame,
        }
    }
}

/// Deflate, as it is or in the format of zlib: the first byte tells.
#[derive(Default)]
struct Inflate {
    raw: Option<Decompress>,
    ended: bool,
}

impl Inflate {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize)> {
        let raw = match (&mut self.raw, input.first()) {
            _ if self.ended => return Ok((0, 0)),
            (Some(raw), _) => raw,
            (None, None) => return Ok((0, 0)),
            // The method "deflate" of zlib's header; no block begins like that.
            (raw @ None, Some(first)) => raw.insert(Decompress::new(first & 0x0f == 8)),
        };
        let (read, written, ended) = inflate(raw, input, output)?;
        self.ended = ended;
        Ok((read, written))
    }
}

/// How much was read and written, and whether that was all.
fn inflate(
    raw: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
) -> io::Result<(usize, usize, bool)> {
    let (before_in, before_out) = (raw.total_in(), raw.total_out());
    let status = raw
        .decompress(input, output, FlushDecompress::None)
        .map_err(|_| broken("it is no deflate"))?;
    let since = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
    let (read, written) = (since(raw.total_in(), before_in), since(raw.total_out(), before_out));
    Ok((read, written, status == Status::StreamEnd))
}

/// Gzip (RFC 1952): one or more members.
#[derive(Default)]
struct Gzip {
    /// Serves all members: a new one takes ten times as long as a small member.
    raw: Option<Decompress>,
    /// Complete members.
    members: u64,
    /// What is read of a header or a trailer.
    held: Vec<u8>,
    /// The member that is being read.
    member: Option<Member>,
}

#[derive(Default)]
struct Member {
    crc: Crc,
    ended: bool,
}

impl Gzip {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize)> {
        match (&mut self.member, &mut self.raw) {
            (None, _) | (_, None) => self.header(input).map(|read| (read, 0)),
            (Some(member), Some(raw)) if !member.ended => {
                let (read, written, ended) = inflate(raw, input, output)?;
                member.crc.update(&output[..written]);
                member.ended = ended;
                Ok((read, written))
            }
            (Some(_), Some(_)) => self.trailer(input).map(|read| (read, 0)),
        }
    }

    fn header(&mut self, input: &[u8]) -> io::Result<usize> {
        let before = self.held.len();
        // Some fill the last block of a tape with zeros, as gzip permits.
        if self.members > 0 && before == 0 && input.iter().all(|byte| *byte == 0) {
            return Ok(input.len());
        }
        // Headers are short, and what follows is not read here.
        let input = &input[..input.len().min(HEADER_STEP)];
        self.held.extend_from_slice(input);
        match header_length(&self.held)? {
            Some(length) => {
                self.held.clear();
                match &mut self.raw {
                    Some(raw) => raw.reset(false),
                    raw @ None => *raw = Some(Decompress::new(false)),
                }
                self.member = Some(Member::default());
                Ok(length - before)
            }
            None if self.held.len() > LARGEST_HEADER => Err(broken("its header is too large")),
            None => Ok(input.len()),
        }
    }

    fn trailer(&mut self, input: &[u8]) -> io::Result<usize> {
        let read = input.len().min(8 - self.held.len());
        self.held.extend_from_slice(&input[..read]);
        let Ok(trailer) = <[u8; 8]>::try_from(self.held.as_slice()) else { return Ok(read) };
        let told = u64::from_le_bytes(trailer);
        let found = self
            .member
            .take()
            .map(|member| u64::from(member.crc.sum()) | u64::from(member.crc.amount()) << 32);
        if found != Some(told) {
            return Err(broken("its checksum is another one"));
        }
        self.held.clear();
        self.members += 1;
        Ok(read)
    }
}

/// How long the header is that these bytes begin with; none while it is not complete.
fn header_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    const CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let magic = [0x1f, 0x8b, 8];
    if !magic.starts_with(&bytes[..bytes.len().min(3)]) {
        return Err(broken("it is no gzip"));
    }
    let Some(flags) = bytes.get(3).filter(|_| bytes.len() >= 10).copied() else { return Ok(None) };
    let mut at = 10;
    if flags & EXTRA != 0 {
        let Some(length) = bytes.get(at..at + 2) else { return Ok(None) };
        at += 2 + usize::from(length[0]) + (usize::from(length[1]) << 8);
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(end) = memchr::memchr(0, rest) else { return Ok(None) };
            at += end + 1;
        }
    }
    if flags & CRC != 0 {
        at += 2;
    }
    Ok((at <= bytes.len()).then_some(at))
}

#[cfg(test)]
mod tests;
