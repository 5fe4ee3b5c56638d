//! Keys that sign request ids, so that nobody but a gateway makes one.
//!
//! All replicas hold the same keys: a Secret in a cluster ([`shared`]), a file in
//! standalone mode ([`file`]). A key is replaced by age, by whichever process sees first
//! that it is due. A new key signs a minute after it was made, when every replica has
//! read it; an old one goes on to verify, for votes that come late. Until shared keys are
//! read, a process signs with a key of its own, which verifies nowhere else.
//!
//! The algorithm is HMAC-SHA256 (RFC 2104), truncated to 128 bits (RFC 2104, section 5):
//! `ring` has it, it needs no nonce, and its verification takes the same time wherever the
//! first wrong byte is.

pub mod file;
pub mod shared;

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use ring::hmac;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::same;
pub use crate::signals::keyring::Stored;
use crate::signals::{
    keyring::{KEY, is_key, made_at, newest_first, signing},
    proof::{Proof, ReportKey, Request},
};

/// Bytes of a signature.
pub const SIGNATURE: usize = 16;
/// A key of this age gets a successor.
const ROTATE_SECONDS: i64 = 7 * 24 * 3600;
/// What the notices call keys that can not be used.
const UNUSABLE: &str = "RequestIdKeysUnusable";
/// A key verifies for so long after its successor was made.
const KEEP_SECONDS: i64 = 30 * 24 * 3600;
/// So many successors a key has when it goes, with one a week.
const SUCCESSORS: usize = (KEEP_SECONDS / ROTATE_SECONDS) as usize + 2;
/// A key that was made so far in the future was made by a clock that was wrong, here or there.
const AHEAD_SECONDS: i64 = 3600;

/// A signature as lower-case hexadecimal digits.
pub(in crate::gateway) fn printed(signature: &[u8; SIGNATURE]) -> String {
    format!("{:032x}", u128::from_be_bytes(*signature))
}

/// Reads what [`printed`] wrote; of a signature there is one spelling.
pub(in crate::gateway) fn signature(text: &str) -> Option<[u8; SIGNATURE]> {
    let value = u128::from_str_radix(text, 16).ok()?.to_be_bytes();
    (printed(&value) == text).then_some(value)
}

/// The keys of a process; copies share them.
#[derive(Clone)]
pub struct RequestKeys {
    ring: Arc<ArcSwap<Ring>>,
    own: Arc<Key>,
}

/// Tells no key.
impl fmt::Debug for RequestKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestKeys({})", self.ring.load().known.len())
    }
}

/// What is signed with a key: no signature of one kind is one of another.
#[derive(Clone, Copy)]
pub(in crate::gateway) enum Purpose {
    /// The id of a request.
    Id,
    /// A vote that one replica passes on to another.
    Vote,
    /// What the other one made of it.
    VoteAnswer,
}

struct Ring {
    signing: Arc<Key>,
    /// Any of these verifies, the newest first.
    known: Vec<Arc<Key>>,
}

pub(in crate::gateway) struct Key {
    created: Option<i64>,
    hmac: hmac::Key,
    /// Hides short hashes of names from who does not hold the key.
    seed: u64,
    /// For what operators ask.
    reports: ReportKey,
}

impl Key {
    fn new(created: Option<i64>, bytes: &[u8]) -> Arc<Self> {
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let seed = u64::from_le_bytes(first(hmac::sign(&hmac, b"seed").as_ref()));
        Arc::new(Self { created, hmac, seed, reports: ReportKey::derive(bytes) })
    }

    fn sign(&self, purpose: Purpose, text: &[u8]) -> [u8; SIGNATURE] {
        let mut context = hmac::Context::with_key(&self.hmac);
        context.update(match purpose {
            Purpose::Id => b"id\0",
            Purpose::Vote => b"vote\0",
            Purpose::VoteAnswer => b"vote answer\0",
        });
        context.update(text);
        first(context.sign().as_ref())
    }

    /// 32 bits of a name that mean nothing without the key; never 0.
    pub(in crate::gateway) fn tag(&self, name: &str) -> u32 {
        (xxh3_64_with_seed(name.as_bytes(), self.seed) as u32).max(1)
    }
}

/// The first bytes of a longer list.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or_default())
}

impl Default for RequestKeys {
    /// A key that only this process knows.
    fn default() -> Self {
        let own = Key::new(None, &rand::random::<[u8; KEY]>());
        let ring = Ring { signing: own.clone(), known: vec![] };
        Self { ring: Arc::new(ArcSwap::from_pointee(ring)), own }
    }
}

impl RequestKeys {
    /// Uses these keys from now on; `now` says which of them signs. What is no key is
    /// left out and its name returned. Without any key the ones before stay.
    pub fn set(&self, stored: &Stored, now: Timestamp) -> Vec<String> {
        let known = newest_first(stored, Key::new);
        if let Some(signing) = signing(&known, |key| key.created, now.as_second()).cloned() {
            self.ring.store(Arc::new(Ring { signing, known }));
        }
        stored.iter().filter(|(_, bytes)| !is_key(bytes)).map(|(name, _)| name.clone()).collect()
    }

    /// The key that signs now.
    pub(in crate::gateway) fn signing(&self) -> Arc<Key> {
        self.ring.load().signing.clone()
    }

    /// Signs a text.
    pub(in crate::gateway) fn sign(&self, purpose: Purpose, text: &[u8]) -> [u8; SIGNATURE] {
        self.ring.load().signing.sign(purpose, text)
    }

    /// The key that signed a text, if one did. All keys are tried, and compared in
    /// constant time.
    pub(in crate::gateway) fn verify(
        &self,
        purpose: Purpose,
        text: &[u8],
        signature: &[u8; SIGNATURE],
    ) -> Option<Arc<Key>> {
        let ring = self.ring.load();
        let mut found = None;
        for key in ring.known.iter().chain([&self.own]) {
            if same(&key.sign(purpose, text), signature) {
                found = Some(key.clone());
            }
        }
        found
    }
}

impl RequestKeys {
    /// With what to answer an operator's question, if one of the shared keys has signed it.
    /// The key of this process alone is nobody's to ask with.
    pub(in crate::gateway) fn proof(
        &self,
        request: &Request<'_>,
        asked: &str,
        signature: &str,
    ) -> Option<Proof> {
        let ring = self.ring.load();
        ring.known.iter().find_map(|key| key.reports.proof(request, asked, signature))
    }
}

impl Key {
    /// Signs as [`RequestKeys::sign`] does, with this key.
    pub(in crate::gateway) fn sign_id(&self, text: &[u8]) -> [u8; SIGNATURE] {
        self.sign(Purpose::Id, text)
    }
}

/// The keys after a rotation, when one is due: there is none, or the newest is old. Keys
/// that people named are left alone, and so is a store that holds only such.
///
/// A clock that is wrong stops no rotation and takes away no key that others sign with:
/// - A key of the future is neither the newest nor anybody's successor before its time. It was
///   made while a clock was wrong, and keys are replaced as if it were not there.
/// - A process whose clock is ahead takes all keys for old. So keys grow old by the time that the
///   newest one shows, and none goes before it has as many successors as it has in its time.
pub fn rotated(stored: &Stored, now: Timestamp, fresh: [u8; KEY]) -> Option<Stored> {
    let now = now.as_second();
    let ours = |stored: &Stored| -> Vec<i64> {
        let keys = stored.iter().filter(|(_, bytes)| is_key(bytes));
        let made = keys.filter_map(|(name, _)| made_at(name));
        made.filter(|made| *made <= now + AHEAD_SECONDS).collect()
    };
    let newest = ours(stored).into_iter().max();
    let due = match newest {
        Some(newest) => newest <= now - ROTATE_SECONDS,
        None => !stored.iter().any(|(name, bytes)| is_key(bytes) && made_at(name).is_none()),
    };
    if !due {
        return None;
    }
    let mut next = stored.clone();
    next.insert(now.max(1).to_string(), fresh.to_vec());
    let shown = newest.map_or(now, |newest| now.min(newest + ROTATE_SECONDS));
    let made = ours(&next);
    next.retain(|name, _| {
        let later = |own: i64| made.iter().filter(move |other| **other > own);
        made_at(name).is_none_or(|own| {
            let over = later(own).min().is_some_and(|first| *first <= shown - KEEP_SECONDS);
            !over || later(own).count() < SUCCESSORS
        })
    });
    Some(next)
}

/// A short hash of what is stored, to see whether it has changed.
fn fingerprint(stored: &Stored) -> u64 {
    let lengths = |(name, bytes): (&String, &Vec<u8>)| {
        [name.as_bytes(), &bytes.len().to_le_bytes(), bytes].concat()
    };
    xxh3_64(&stored.iter().map(lengths).collect::<Vec<_>>().concat())
}

#[cfg(test)]
mod tests;
