//! An answer as it is kept, and as it travels to Redis.
//!
//! The form in Redis: one byte for the version, four (big-endian) for the length of the
//! JSON that tells what the answer was, that JSON, and the answer's bytes. Another version
//! or anything that does not fit is a miss: gateways of two versions may share a Redis.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::openai::{answer::Answer, usage::Tokens};

const VERSION: u8 = 1;
/// What an entry takes beside its texts: keys, pointers, the cache's own books.
const OVERHEAD: usize = 512;

/// The form of an answer. A hit has the form of the answer that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A JSON answer.
    Whole,
    /// A stream of events.
    Stream,
    /// A stream of events, the last of which tells the usage because the application
    /// asked for it.
    StreamWithUsage,
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The bytes as the application got them.
    pub body: Bytes,
    told: Told,
}

/// What the answer told, for the record of a hit.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct Told {
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cached_input: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_write: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finish_reason: Option<String>,
    #[serde(default)]
    tool_call: bool,
}

impl Entry {
    /// Keeps `body`, which said `answer`, at the time `at`.
    pub fn new(body: Bytes, answer: &Answer, at: Timestamp) -> Self {
        let Tokens { input, cached_input, cache_write, output, reasoning } = answer.tokens;
        let told = Told {
            at,
            input,
            cached_input,
            cache_write,
            output,
            reasoning,
            model: answer.model.clone(),
            id: answer.id.clone(),
            finish_reason: answer.finish_reason.clone(),
            tool_call: answer.tool_call,
        };
        Self { body, told }
    }

    /// What the answer said, without its text.
    pub fn answer(&self) -> Answer {
        let told = &self.told;
        Answer {
            tokens: Tokens {
                input: told.input,
                cached_input: told.cached_input,
                cache_write: told.cache_write,
                output: told.output,
                reasoning: told.reasoning,
            },
            model: told.model.clone(),
            id: told.id.clone(),
            finish_reason: told.finish_reason.clone(),
            tool_call: told.tool_call,
            done: true,
            ..Answer::default()
        }
    }

    /// When the model gave the answer.
    pub fn at(&self) -> Timestamp {
        self.told.at
    }

    /// Whether the model gave it at `oldest` or later.
    pub(super) fn is_since(&self, oldest: Option<Timestamp>) -> bool {
        oldest.is_none_or(|oldest| self.told.at >= oldest)
    }

    /// About how many bytes of memory it takes.
    pub fn size(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let Told { model, id, finish_reason, .. } = &self.told;
        self.body.len() + text(model) + text(id) + text(finish_reason) + OVERHEAD
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let told = serde_json::to_vec(&self.told).unwrap_or_default();
        let mut out = BytesMut::with_capacity(5 + told.len() + self.body.len());
        out.put_u8(VERSION);
        out.put_u32(u32::try_from(told.len()).unwrap_or(0));
        out.put_slice(&told);
        out.put_slice(&self.body);
        out.freeze()
    }

    pub(super) fn from_bytes(bytes: Bytes) -> Option<Self> {
        let (&[version, a, b, c, d], rest) = bytes.split_first_chunk::<5>()?;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        let told = rest.get(..length).filter(|_| version == VERSION)?;
        let told = serde_json::from_slice(told).ok()?;
        Some(Self { body: bytes.slice(5 + length..), told })
    }
}

/// The bytes of a stream, kept while they pass; given up when there are too many.
#[derive(Debug)]
pub struct Recording {
    bytes: Option<BytesMut>,
    most: usize,
}

impl Recording {
    /// Keeps at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { bytes: Some(BytesMut::new()), most }
    }

    /// Some bytes have gone to the application.
    pub fn push(&mut self, chunk: &[u8]) {
        match &mut self.bytes {
            Some(bytes) if bytes.len() + chunk.len() <= self.most => bytes.put_slice(chunk),
            bytes => *bytes = None,
        }
    }

    /// All of them, unless there were too many.
    pub fn finish(self) -> Option<Bytes> {
        self.bytes.map(BytesMut::freeze)
    }
}
