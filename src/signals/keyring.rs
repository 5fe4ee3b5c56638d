//! The keys that all gateways hold, as they are stored, and which of them signs.
//!
//! Request ids, votes and reports are signed with them (`gateway::identity::request_keys`,
//! [`super::proof`]), each with another label or another key that is derived.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;

/// The keys as they are stored: by name, which for keys that gateways made is the second
/// since 1970 in which they were made.
pub type Stored = BTreeMap<String, Vec<u8>>;

/// Bytes of a key: as many as the hash has (RFC 2104, section 3).
pub const KEY: usize = 32;
/// A key signs from this age on: every replica has read it by then.
const SETTLE_SECONDS: i64 = 60;
/// More keys than this are a mistake: each costs time when something is forged.
const MOST: usize = 16;

/// Whether bytes are long enough for a key.
pub fn is_key(bytes: &[u8]) -> bool {
    bytes.len() >= KEY
}

/// When a key was made, by its name; none for keys that people named.
pub fn made_at(name: &str) -> Option<i64> {
    name.parse().ok().filter(|seconds: &i64| *seconds > 0)
}

/// What a Secret stores.
pub fn of_secret(secret: &Secret) -> Stored {
    secret.data.iter().flatten().map(|(name, bytes)| (name.clone(), bytes.0.clone())).collect()
}

/// The keys, the newest first and those that people named last, each as `make` makes it of
/// the time at which it was made and its bytes. What is no key is left out.
pub fn newest_first<K>(stored: &Stored, make: impl Fn(Option<i64>, &[u8]) -> K) -> Vec<K> {
    let mut keys: Vec<(Option<i64>, &Vec<u8>)> = stored
        .iter()
        .filter(|(_, bytes)| is_key(bytes))
        .map(|(name, bytes)| (made_at(name), bytes))
        .collect();
    keys.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
    keys.truncate(MOST);
    keys.into_iter().map(|(made, bytes)| make(made, bytes)).collect()
}

/// The newest key that everybody has read, or while there is none the oldest.
pub fn signing<K>(newest_first: &[K], made: impl Fn(&K) -> Option<i64>, now: i64) -> Option<&K> {
    let settled = |key: &&K| made(key).is_none_or(|at| at <= now - SETTLE_SECONDS);
    newest_first.iter().find(settled).or(newest_first.last())
}
