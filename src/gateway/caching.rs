//! One request and the cache: what it is known by, whether it may be answered from there,
//! and keeping its answer.

use std::{sync::Arc, time::Duration};

use axum::http::HeaderValue;
use bytes::Bytes;
use jiff::Timestamp;

use super::{
    Gateway,
    budget::{ANSWER_COPIES, Held, SMALL},
    cache::{Cache, Directives, Entry, Form, Key, Parts, Recording, key},
    phases::Request,
    routes::{Route, Target},
};
use crate::openai::{answer::Answer, request};

/// The place of a request in the cache.
pub(super) struct Caching {
    cache: Arc<Cache>,
    key: Key,
    ttl: Duration,
    directives: Directives,
    clock: fn() -> Timestamp,
}

impl Caching {
    /// None for a release without a cache, and for what must not be kept. `body` is what
    /// goes to `target`.
    pub(super) fn of(
        gateway: &Gateway,
        route: &Route,
        target: &Target,
        request: &Request,
        body: &Bytes,
    ) -> Option<Self> {
        let (ttl, cache) = (route.cache?, gateway.config.cache.clone()?);
        let headers = &request.passed.headers;
        let directives = Directives::of(headers);
        if !directives.read && !directives.store {
            return None;
        }
        let asked = &request.asked;
        let form = match (asked.stream, asked.wants_usage) {
            (false, _) => Form::Whole,
            (true, false) => Form::Stream,
            (true, true) => Form::StreamWithUsage,
        };
        let parts = Parts {
            release: &route.release,
            revision: &target.revision,
            team: request.passed.caller.as_ref().map_or("", |caller| caller.team.as_str()),
            operation: asked.operation,
            form,
            beta: headers.get("openai-beta").map_or(b"", HeaderValue::as_bytes),
        };
        let key = key(&parts, &request::Request::parse(body.clone()).ok()?)?;
        Some(Self { cache, key, ttl, directives, clock: gateway.config.clock })
    }

    /// An answer that was given before.
    pub(super) async fn find(&self) -> Option<Arc<Entry>> {
        if !self.directives.read {
            return None;
        }
        self.cache.get(&self.key, self.directives.oldest((self.clock)())).await
    }

    /// Whether this gateway's memory has an answer.
    pub(super) fn is_known(&self) -> bool {
        self.cache.knows(&self.key)
    }

    /// Keeps a complete answer that passed its check.
    pub(super) fn keep(&self, body: Bytes, answer: &Answer) {
        if self.directives.store {
            // A copy of its own: the cache has a bound of its own.
            let entry = Entry::new(Bytes::copy_from_slice(&body), answer, (self.clock)());
            self.cache.put(self.key, Arc::new(entry), self.ttl);
        }
    }

    /// A stream to be kept when it has ended.
    pub(super) fn record(self, held: Held) -> Recorded {
        let recording = Recording::new(self.cache.largest());
        Recorded { recording, length: 0, held, caching: self }
    }
}

/// A stream that is kept while it passes.
pub(super) struct Recorded {
    recording: Recording,
    length: usize,
    held: Held,
    caching: Caching,
}

impl Recorded {
    /// Some bytes have gone to the application; false when there is no room to keep them.
    pub(super) fn push(&mut self, chunk: &[u8]) -> bool {
        self.length += chunk.len();
        if self.length > SMALL && self.held.grow_to(self.length * ANSWER_COPIES).is_err() {
            return false;
        }
        self.recording.push(chunk);
        true
    }

    /// It is complete, and passed its check.
    pub(super) fn keep(self, answer: &Answer) {
        if let Some(body) = self.recording.finish() {
            self.caching.keep(body, answer);
        }
    }
}
