//! Scores that applications send for an answer.
//!
//! A request id says which release, revision and routing generation it belongs to, so
//! that any replica can take the feedback, also one that did not answer. Each replica
//! takes one score of a name for a request; who sends the same one to two replicas is
//! counted twice.

use std::{
    collections::{HashSet, VecDeque},
    sync::Mutex,
};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    routes::{Route, RouteTable},
    sinks,
};
use crate::openai::error::ApiError;

/// So many feedbacks are remembered to refuse doubles.
const REMEMBERED: usize = 100_000;
/// Score names a variant may have.
const NAMES: usize = 16;

/// Remembers which feedback was taken.
#[derive(Default)]
pub(super) struct Feedback(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

/// A new request id. Its fourth part says whether the request is evidence (`e`, else
/// `o`) and, in hexadecimal, the group of its sticky key.
pub(super) fn request_id(
    route: &Route,
    revision: &str,
    evidence: bool,
    group: Option<u8>,
    unique: u64,
) -> String {
    let kind = if evidence { 'e' } else { 'o' };
    let group = group.map(|g| format!("{g:02x}")).unwrap_or_default();
    let (release, generation) = (route.release_hash, route.generation);
    format!("{release:08x}-{revision}-{generation:x}-{kind}{group}-{unique:016x}")
}

struct Parsed<'a> {
    release: u32,
    revision: &'a str,
    generation: i64,
    evidence: bool,
    group: Option<u8>,
}

fn parse(id: &str) -> Option<Parsed<'_>> {
    let mut parts = id.split('-');
    let release = u32::from_str_radix(parts.next()?, 16).ok()?;
    let revision = parts.next()?;
    let generation = i64::from_str_radix(parts.next()?, 16).ok()?;
    let kind = parts.next()?;
    let group = u8::from_str_radix(kind.get(1..)?, 16).ok();
    parts.next()?;
    Some(Parsed { release, revision, generation, evidence: kind.starts_with('e'), group })
}

impl Feedback {
    /// Takes one feedback: `{request_id, score | thumbs, name}`.
    ///
    /// # Errors
    /// What is wrong with it, in OpenAI's shape.
    pub(super) fn take(&self, body: &[u8], table: &RouteTable) -> Result<(), ApiError> {
        let invalid = |param: &str, message: &str| {
            ApiError::new(400, "invalid_feedback", message).at(param.to_owned())
        };
        let body: Value = serde_json::from_slice(body).map_err(|e| {
            ApiError::new(400, "invalid_json", format!("the body is not JSON: {e}"))
        })?;
        let id = body.get("request_id").and_then(Value::as_str).ok_or_else(|| {
            invalid(
                "request_id",
                "request_id must be the value of the answer's x-serinus-request-id header",
            )
        })?;
        let score = match (
            body.get("score").and_then(Value::as_f64),
            body.get("thumbs").and_then(Value::as_str),
        ) {
            (Some(score), None) if (0.0..=1.0).contains(&score) => score,
            (None, Some("up")) => 1.0,
            (None, Some("down")) => 0.0,
            (None, Some(_)) => return Err(invalid("thumbs", "thumbs must be \"up\" or \"down\"")),
            _ => {
                return Err(invalid(
                    "score",
                    "send either score (a number from 0 to 1) or thumbs (\"up\" or \"down\")",
                ));
            }
        };
        let name = body.get("name").map_or(Some("helpfulness"), Value::as_str);
        let name = name
            .filter(|n| !n.is_empty() && n.len() <= 63)
            .ok_or_else(|| invalid("name", "name must be a text of 1 to 63 characters"))?;
        let unknown = || {
            ApiError::new(
                404,
                "unknown_request",
                "no request of a current release has this request_id",
            )
        };
        let parsed = parse(id).ok_or_else(unknown)?;
        let route = table.iter().find(|r| r.release_hash == parsed.release).ok_or_else(unknown)?;
        if !self.is_new(id, name) {
            return Err(ApiError::new(
                409,
                "duplicate_feedback",
                "this request has a score of this name already",
            ));
        }
        // Late feedback, or on a request that was no fair draw: taken, and no evidence.
        if parsed.evidence && parsed.generation == route.generation {
            let tally = route.tallies.get(parsed.revision).ok_or_else(unknown)?;
            let Ok(mut counts) = tally.counts.lock() else { return Ok(()) };
            if counts.scores.contains_key(name) || counts.scores.len() < NAMES {
                sinks::add(counts.scores.entry(name.to_owned()).or_default(), score);
                if let Some(group) = parsed.group {
                    let grouped = counts.groups.scores.entry(name.to_owned()).or_default();
                    sinks::add_at(&mut grouped.counts, group, 1);
                    sinks::add_at(&mut grouped.sums, group, score);
                }
            }
        }
        Ok(())
    }

    fn is_new(&self, id: &str, name: &str) -> bool {
        let Ok(mut taken) = self.0.lock() else { return false };
        let key = xxh3_64(format!("{id}\n{name}").as_bytes());
        if !taken.known.insert(key) {
            return false;
        }
        taken.order.push_back(key);
        if taken.order.len() > REMEMBERED
            && let Some(oldest) = taken.order.pop_front()
        {
            taken.known.remove(&oldest);
        }
        true
    }
}
