//! What makes two requests the same: the release and the revision, the team that asks, the
//! operation, the form of the answer, and every field that goes to the model, except those
//! that do not change what it says.
//!
//! The team is part of it although that makes fewer hits: a gateway must not be a way to
//! learn, from how fast an answer comes, what another team has asked.
//!
//! Fields are compared as they were sent: in any order at the top, with any white space,
//! but `1` and `1.0` are two things, and so are two orders within a field. Whoever means
//! the same and writes it otherwise gets a miss; the opposite would be a wrong answer.

use axum::http::{HeaderMap, header::CACHE_CONTROL};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::Form;
use crate::openai::{Operation, request::Request};

/// A request by what matters.
pub type Key = [u8; 32];

/// What a key is made of besides the body.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// `namespace/name` of the release.
    pub release: &'a str,
    /// The revision that answers.
    pub revision: &'a str,
    /// The team that asks; empty when nobody needs to say.
    pub team: &'a str,
    /// What is asked for.
    pub operation: Operation,
    /// The form of the answer.
    pub form: Form,
    /// The header `openai-beta`, which goes to the model and can change what it does.
    pub beta: &'a [u8],
}

/// Who asks, for whose books, and how the answer travels: none of it changes what the
/// model says. How it travels is in [`Parts::form`].
const IGNORED: [&[u8]; 7] = [
    b"user",
    b"metadata",
    b"safety_identifier",
    b"prompt_cache_key",
    b"prompt_cache_retention",
    b"stream",
    b"stream_options",
];

/// The key of a request whose `body` goes upstream; none if its answer must not be kept.
pub fn key(parts: &Parts<'_>, body: &Request) -> Option<Key> {
    let responses = parts.operation == Operation::Responses;
    // A conversation grows with every answer, and one in the background is not an answer yet.
    if body.leaves_something(parts.operation) {
        return None;
    }
    // What is stored can be referred to later, so there an answer that was stored and one
    // that was not are two things.
    let ignored = |name: &[u8]| IGNORED.contains(&name) || (name == b"store" && !responses);
    let mut fields: Vec<(&[u8], &[u8])> =
        body.fields().filter(|(name, value)| !ignored(name) && *value != b"null").collect();
    fields.sort_unstable();
    let mut hash = Sha256::new();
    let form: &[u8] = match parts.form {
        Form::Whole => b"whole",
        Form::Stream => b"stream",
        Form::StreamWithUsage => b"stream with usage",
    };
    let head = [
        b"1".as_slice(),
        parts.release.as_bytes(),
        parts.revision.as_bytes(),
        parts.team.as_bytes(),
        parts.operation.path().as_bytes(),
        form,
        parts.beta,
    ];
    for part in head {
        separated(&mut hash, part);
    }
    for (name, value) in fields {
        separated(&mut hash, name);
        without_space(value, |piece| hash.update(piece));
        hash.update(END);
    }
    Some(hash.finalize().into())
}

/// A byte that no UTF-8 has, so that no two lists of parts look the same.
const END: [u8; 1] = [0xff];

fn separated(hash: &mut Sha256, part: &[u8]) {
    hash.update(part);
    hash.update(END);
}

/// The pieces of a JSON text between the white space that is outside of strings.
fn without_space(json: &[u8], mut piece: impl FnMut(&[u8])) {
    let (mut from, mut in_string, mut escaped) = (0, false, false);
    for (i, byte) in json.iter().enumerate() {
        if in_string {
            (in_string, escaped) = match byte {
                _ if escaped => (true, false),
                b'\\' => (true, true),
                b'"' => (false, false),
                _ => (true, false),
            };
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b' ' | b'\t' | b'\n' | b'\r' => {
                piece(&json[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    piece(&json[from..]);
}

/// What an application says about the cache, in the words of RFC 9111 (`cache-control`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directives {
    /// A kept answer will do: not with `no-cache` or `no-store`.
    pub read: bool,
    /// The answer may be kept: not with `no-store`.
    pub store: bool,
    /// The longest ago that a kept answer may have been given (`max-age`), in seconds.
    pub max_age: Option<u32>,
}

impl Directives {
    /// Reads a request's headers. What is not understood is passed over.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut this = Self { read: true, store: true, max_age: None };
        let words = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        for word in words.flat_map(|value| value.split(',')).map(str::trim) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name.to_ascii_lowercase().as_str() {
                "no-store" => (this.read, this.store) = (false, false),
                "no-cache" => this.read = false,
                "max-age" => {
                    // What is too large to be a number of seconds is no limit.
                    this.max_age = value.trim_matches('"').parse().ok().or(this.max_age);
                }
                _ => {}
            }
        }
        this
    }

    /// Before this time a kept answer was given too long ago; none if none was.
    pub fn oldest(&self, now: Timestamp) -> Option<Timestamp> {
        let age = SignedDuration::from_secs(i64::from(self.max_age?));
        Some(now.checked_sub(age).unwrap_or(Timestamp::MIN))
    }
}
