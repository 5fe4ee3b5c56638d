//! Scores that applications send for an answer.
//!
//! A request id says which release, revision and routing generation it belongs to, so
//! that any replica can take the feedback, also one that did not answer. Each replica
//! takes one score of a name for a request; who sends the same one to two replicas is
//! counted twice.
//!
//! A request and its copy for a shadow share a part of their ids. When both have a score
//! of the same name, the difference is counted too; for that, both must be sent to the
//! same replica.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    identity::Client,
    routes::{Route, RouteTable},
    sinks,
    tally::Tally,
};
use crate::{
    api::prompt_release::Sums,
    openai::{error::ApiError, request::values},
};

/// So many feedbacks are remembered to refuse doubles.
const REMEMBERED: usize = 100_000;
/// So many scores wait for the other side of their pair.
const WAITING: usize = 10_000;
/// Values that a feedback may hold: it has four.
const MOST_VALUES: usize = 64;
/// Score names a variant may have.
const NAMES: usize = 16;

/// Remembers which feedback was taken, and which waits for its pair.
#[derive(Default)]
pub(super) struct Feedback {
    taken: Mutex<Taken>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Taken {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

/// Scores of one side of a pair, the oldest first. What was paired or replaced stays in
/// `order` until its turn comes.
#[derive(Default)]
struct Waiting {
    scores: HashMap<u64, (Kind, f64)>,
    order: VecDeque<u64>,
}

impl Waiting {
    /// The canary's score less stable's, when the other side is here already.
    fn meet(&mut self, pair: u64, side: Kind, score: f64) -> Option<f64> {
        match self.scores.remove(&pair) {
            Some((other, theirs)) if other != side => {
                let difference = score - theirs;
                Some(if side == Kind::Shadow { difference } else { -difference })
            }
            _ => {
                self.scores.insert(pair, (side, score));
                self.order.push_back(pair);
                if self.order.len() > WAITING
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.scores.remove(&oldest);
                }
                None
            }
        }
    }
}

/// What a request is to the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A fair draw.
    Evidence,
    /// A fair draw that a shadow gets a copy of.
    Copied,
    /// The copy.
    Shadow,
    /// No evidence.
    Other,
}

impl Kind {
    const ALL: [(char, Self); 4] =
        [('e', Self::Evidence), ('p', Self::Copied), ('s', Self::Shadow), ('o', Self::Other)];

    fn letter(self) -> char {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or('o', |(letter, _)| *letter)
    }

    fn of(letter: char) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == letter).map(|(_, kind)| *kind)
    }
}

/// A new request id. Its fourth part tells its kind by a letter and, in hexadecimal, the
/// group of its sticky key. A copy's id differs from its request's in revision and kind.
pub(super) fn request_id(
    route: &Route,
    revision: &str,
    kind: Kind,
    group: Option<u8>,
    unique: u64,
) -> String {
    let kind = kind.letter();
    let group = group.map(|g| format!("{g:02x}")).unwrap_or_default();
    let (release, generation) = (route.release_hash, route.generation);
    format!("{release:08x}-{revision}-{generation:x}-{kind}{group}-{unique:016x}")
}

struct Parsed<'a> {
    release: u32,
    revision: &'a str,
    generation: i64,
    kind: Kind,
    group: Option<u8>,
    unique: &'a str,
}

fn parse(id: &str) -> Option<Parsed<'_>> {
    let mut parts = id.split('-');
    let release = u32::from_str_radix(parts.next()?, 16).ok()?;
    let revision = parts.next()?;
    let generation = i64::from_str_radix(parts.next()?, 16).ok()?;
    let mut kind = parts.next()?.chars();
    let letter = kind.next()?;
    let group = u8::from_str_radix(kind.as_str(), 16).ok();
    let unique = parts.next()?;
    Some(Parsed { release, revision, generation, kind: Kind::of(letter)?, group, unique })
}

/// A score that was sent.
struct Given<'a> {
    id: &'a str,
    name: &'a str,
    score: f64,
}

impl<'a> Given<'a> {
    fn read(body: &'a Value) -> Result<Self, ApiError> {
        let invalid = |param: &str, message: &str| {
            ApiError::new(400, "invalid_feedback", message).at(param.to_owned())
        };
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
        Ok(Self { id, name, score })
    }
}

impl Feedback {
    /// Takes one feedback: `{request_id, score | thumbs, name}`.
    ///
    /// # Errors
    /// What is wrong with it, in OpenAI's shape.
    pub(super) fn take(
        &self,
        body: &[u8],
        table: &RouteTable,
        client: Option<&Client>,
    ) -> Result<(), ApiError> {
        if values(body) > MOST_VALUES {
            let message = "send {request_id, score or thumbs, name} and nothing else";
            return Err(ApiError::new(400, "invalid_feedback", message));
        }
        let body: Value = serde_json::from_slice(body).map_err(|e| {
            ApiError::new(400, "invalid_json", format!("the body is not JSON: {e}"))
        })?;
        let given = Given::read(&body)?;
        let unknown = || {
            ApiError::new(
                404,
                "unknown_request",
                "no request of a current release has this request_id",
            )
        };
        let parsed = parse(given.id).ok_or_else(unknown)?;
        let permitted = |route: &Arc<Route>| client.is_none_or(|client| client.permits(route));
        let route = table.of_release(parsed.release).filter(permitted).ok_or_else(unknown)?;
        if !self.is_new(given.id, given.name) {
            return Err(ApiError::new(
                409,
                "duplicate_feedback",
                "this request has a score of this name already",
            ));
        }
        // Late feedback, or on a request that was no fair draw: taken, and no evidence.
        if parsed.kind == Kind::Other || parsed.generation != route.generation {
            return Ok(());
        }
        count(route.tallies.get(parsed.revision).ok_or_else(unknown)?, &parsed, &given);
        if matches!(parsed.kind, Kind::Copied | Kind::Shadow) {
            self.pair(&route, &parsed, &given);
        }
        Ok(())
    }

    /// Counts the difference when both sides of a pair have a score of this name.
    fn pair(&self, route: &Route, parsed: &Parsed<'_>, given: &Given<'_>) {
        let Parsed { release, generation, unique, kind, .. } = parsed;
        let name = given.name;
        let pair = xxh3_64(format!("{release:x}-{generation:x}-{unique}\n{name}").as_bytes());
        let met = self.waiting.lock().ok().and_then(|mut w| w.meet(pair, *kind, given.score));
        let shadow = route.shadow.as_ref().and_then(|s| route.tallies.get(&s.target.revision));
        let Some((difference, tally)) = met.zip(shadow) else { return };
        tally.change(|counts| {
            if let Some(sums) = named(&mut counts.paired.get_or_insert_default().scores, name) {
                sinks::add(sums, difference);
            }
        });
    }

    fn is_new(&self, id: &str, name: &str) -> bool {
        let Ok(mut taken) = self.taken.lock() else { return false };
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

fn count(tally: &Tally, parsed: &Parsed<'_>, given: &Given<'_>) {
    tally.change(|counts| {
        let Some(sums) = named(&mut counts.scores, given.name) else { return };
        sinks::add(sums, given.score);
        if let Some(group) = parsed.group {
            let grouped = counts.groups.scores.entry(given.name.to_owned()).or_default();
            sinks::add_at(&mut grouped.counts, group, 1);
            sinks::add_at(&mut grouped.sums, group, given.score);
        }
    });
}

/// The sums of a name, unless there are too many names.
fn named<'a>(scores: &'a mut BTreeMap<String, Sums>, name: &str) -> Option<&'a mut Sums> {
    let room = scores.contains_key(name) || scores.len() < NAMES;
    room.then(|| scores.entry(name.to_owned()).or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_the_canarys_score_less_stables_whoever_comes_first() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.meet(1, Kind::Shadow, 0.75), None);
        assert_eq!(waiting.meet(1, Kind::Copied, 0.25), Some(0.5));
        assert_eq!(waiting.meet(2, Kind::Copied, 0.25), None);
        assert_eq!(waiting.meet(2, Kind::Shadow, 0.75), Some(0.5));
        assert!(waiting.scores.is_empty());
    }

    #[test]
    fn scores_that_never_meet_are_forgotten() {
        let mut waiting = Waiting::default();
        for pair in 0..=WAITING as u64 {
            assert_eq!(waiting.meet(pair, Kind::Copied, 1.0), None);
        }
        assert_eq!(waiting.scores.len(), WAITING);
        assert_eq!(waiting.meet(0, Kind::Shadow, 1.0), None, "the oldest is gone");
    }
}
