//! Scores that applications send for an answer.
//!
//! A request id is signed ([`id`]), so a vote is for a request that a gateway answered. It
//! is counted by the process that answered, and by no other: that process knows of each
//! request whether it has a complete answer, and whether it has a score of that name
//! ([`votes`]). Other replicas pass the vote on ([`super::peers`]), so a vote that is sent
//! to two of them counts once. `docs/decisions/0008-a-vote-is-counted-where-it-was-answered.md`
//! says why.
//!
//! A request and its copy for a shadow share a part of their ids. When both have a score
//! of the same name, the difference is counted too.

mod id;
mod pairs;
mod votes;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(super) use self::{id::Kind, votes::Votes};
use self::{
    id::RequestId,
    pairs::Waiting,
    votes::{Cast, NAMES},
};
use super::{
    Gateway,
    identity::{
        Client,
        request_keys::{Key, Purpose, RequestKeys, SIGNATURE, printed, signature},
    },
    peers::{Delivered, PassedOn, answer_text},
    routes::{Route, Target},
    sinks,
    tally::Tally,
};
use crate::{
    api::prompt_release::Sums,
    audit::record::Caller,
    openai::{error::ApiError, request::values},
    prompt::short,
};

/// Values that a feedback may hold: it has four.
const MOST_VALUES: usize = 64;

/// What one process knows of feedback, besides the votes of each variant.
pub(super) struct Feedback {
    /// The process, on the ids of what it answered.
    instance: u32,
    /// Hides on ids how many requests there are.
    hidden_by: u64,
    waiting: Mutex<Waiting>,
}

/// What became of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Counted,
    /// It is late, or the request was no fair draw: taken, and no evidence.
    NoEvidence,
    Unanswered,
    Double,
    TooManyNames,
}

impl Outcome {
    const ALL: [(&str, Self); 5] = [
        ("counted", Self::Counted),
        ("no_evidence", Self::NoEvidence),
        ("unanswered", Self::Unanswered),
        ("double", Self::Double),
        ("too_many_names", Self::TooManyNames),
    ];

    /// The word that replicas tell each other.
    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("no_evidence", |(word, _)| *word)
    }

    fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == word).map(|(_, one)| *one)
    }

    fn told(self) -> Result<(), ApiError> {
        let (status, code, message) = match self {
            Self::Counted | Self::NoEvidence => return Ok(()),
            Self::Unanswered => (
                409,
                "unanswered_request",
                "this request has no complete answer: a score is for an answer, once it has ended",
            ),
            Self::Double => {
                (409, "duplicate_feedback", "this request has a score of this name already")
            }
            Self::TooManyNames => (
                400,
                "too_many_score_names",
                "this release has scores of 16 other names already: use one of those",
            ),
        };
        Err(ApiError::new(status, code, message))
    }
}

impl From<Cast> for Outcome {
    fn from(cast: Cast) -> Self {
        match cast {
            Cast::Counts => Self::Counted,
            Cast::Unanswered => Self::Unanswered,
            Cast::Double => Self::Double,
            Cast::TooManyNames => Self::TooManyNames,
        }
    }
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

/// What a new id is for.
pub(super) struct Issued<'a> {
    pub route: &'a Route,
    pub target: &'a Target,
    pub kind: Kind,
    /// The group of its sticky key.
    pub group: Option<u8>,
    /// Shared by a request and its copy.
    pub unique: u64,
    pub caller: Option<&'a Caller>,
}

impl Feedback {
    /// Of the process that answers as `instance`.
    pub(super) fn new(instance: u32) -> Self {
        Self { instance, hidden_by: rand::random(), waiting: Mutex::default() }
    }

    /// A new request id, and its number among the evidence of its variant, if it is any.
    pub(super) fn issue(&self, gateway: &Gateway, issued: &Issued<'_>) -> (String, Option<u32>) {
        let Issued { route, target, kind, group, unique, caller } = *issued;
        let tally = route.tallies.get(&target.revision).filter(|_| kind != Kind::Other);
        let serial = tally.and_then(|tally| tally.votes.issue());
        let key = gateway.config.request_keys.signing();
        let id = RequestId {
            release: route.release_hash,
            revision: short(&target.revision),
            generation: route.generation,
            kind: if serial.is_some() { kind } else { Kind::Other },
            group,
            instance: self.instance,
            unique,
            serial: serial.map_or(0, |serial| serial ^ self.pad(unique)),
            party: caller.map_or(0, |caller| key.tag(&caller.party)),
        };
        (id.print(&key), serial)
    }

    fn pad(&self, unique: u64) -> u32 {
        xxh3_64_with_seed(&unique.to_le_bytes(), self.hidden_by) as u32
    }

    /// Takes one feedback: `{request_id, score | thumbs, name}`.
    ///
    /// # Errors
    /// What is wrong with it, in OpenAI's shape.
    pub(super) async fn take(
        &self,
        gateway: &Gateway,
        body: &[u8],
        client: Option<&Client>,
    ) -> Result<(), ApiError> {
        let body = read(body)?;
        let given = Given::read(&body)?;
        let unknown = || {
            let message = "no request of a current release has this request_id: send the answer's \
                x-serinus-request-id header as it is";
            ApiError::new(404, "unknown_request", message)
        };
        let keys = &gateway.config.request_keys;
        let (id, key) = RequestId::read(given.id, keys).ok_or_else(unknown)?;
        let permitted = |route: &Arc<Route>| client.is_none_or(|client| client.permits(route));
        let route = gateway.table.of_release(id.release).filter(permitted).ok_or_else(unknown)?;
        let is_own = |client: &Client| id.party == 0 || key.tag(&client.caller.party) == id.party;
        if client.is_some_and(|client| !client.may_score && !is_own(client)) {
            let message = "this answer was given to another team: a key may score its own team's \
                answers; ask who runs this gateway to give yours the permission score";
            return Err(ApiError::new(403, "score_not_permitted", message));
        }
        if id.kind == Kind::Other {
            return Ok(());
        }
        if id.instance == self.instance {
            return self.count(&route, (&id, &key), &given).told();
        }
        self.pass_on(gateway, &id, &given).await?.told()
    }

    /// To the process that answered.
    async fn pass_on(
        &self,
        gateway: &Gateway,
        id: &RequestId<'_>,
        given: &Given<'_>,
    ) -> Result<Outcome, ApiError> {
        let Given { id: text, name, score } = given;
        // The last one makes each question another, so that no earlier answer fits it.
        let body = json!({
            "request_id": text, "name": name, "score": score, "asked": rand::random::<u64>(),
        });
        let vote = PassedOn { body: body.to_string(), keys: &gateway.config.request_keys };
        match gateway.config.peers.deliver(id.instance, &vote).await {
            Delivered::Taken(word) => Ok(Outcome::of(&word).unwrap_or(Outcome::NoEvidence)),
            // What it counted counts; later votes have nobody who could count them once.
            Delivered::Gone => Ok(Outcome::NoEvidence),
            Delivered::Unreachable => {
                let message = "the gateway that gave this answer can not be reached: try again";
                Err(ApiError::new(503, "feedback_not_delivered", message).retry_after(1))
            }
        }
    }

    /// Takes a vote that another replica has passed on: what became of it, none when
    /// another one answered, and the signature of that.
    ///
    /// # Errors
    /// No replica signed it.
    pub(super) fn take_from_peer(
        &self,
        gateway: &Gateway,
        body: &[u8],
        signed: &str,
    ) -> Result<(Option<&'static str>, String), ApiError> {
        let keys = &gateway.config.request_keys;
        let is_signed = |s: &[u8; SIGNATURE]| keys.verify(Purpose::Vote, body, s).is_some();
        let Some(signed) = signature(signed).filter(is_signed) else {
            let message = "only gateways pass votes on here: applications send feedback to the \
                address of applications";
            return Err(ApiError::new(401, "not_a_gateway", message));
        };
        let word = self.take_signed(gateway, body)?;
        let proof = keys.sign(Purpose::VoteAnswer, &answer_text(&signed, word));
        Ok((word, printed(&proof)))
    }

    fn take_signed(
        &self,
        gateway: &Gateway,
        body: &[u8],
    ) -> Result<Option<&'static str>, ApiError> {
        let body = read(body)?;
        let given = Given::read(&body)?;
        let id = RequestId::read(given.id, &gateway.config.request_keys);
        let Some((id, key)) = id.filter(|(id, _)| id.instance == self.instance) else {
            return Ok(None);
        };
        let route = gateway.table.of_release(id.release);
        let outcome =
            route.map_or(Outcome::NoEvidence, |route| self.count(&route, (&id, &key), &given));
        Ok(Some(outcome.word()))
    }

    fn count(
        &self,
        route: &Route,
        (id, key): (&RequestId<'_>, &Key),
        given: &Given<'_>,
    ) -> Outcome {
        if id.kind == Kind::Other || id.generation != route.generation {
            return Outcome::NoEvidence;
        }
        let mut fitting = route.tallies.iter().filter(|(whole, _)| short(whole) == id.revision);
        // Of two that begin alike nobody knows whose vote it is.
        let (Some((_, tally)), None) = (fitting.next(), fitting.next()) else {
            return Outcome::NoEvidence;
        };
        let cast = tally.votes.cast(id.serial ^ self.pad(id.unique), given.name);
        if cast == Cast::Counts {
            count(tally, id, given);
            let is_it = |party: &str| key.tag(party) == id.party;
            tally.callers.score(is_it, given.name, given.score);
            if matches!(id.kind, Kind::Copied | Kind::Shadow) {
                self.pair(route, id, given);
            }
        }
        cast.into()
    }

    /// Counts the difference when both sides of a pair have a score of this name.
    fn pair(&self, route: &Route, id: &RequestId<'_>, given: &Given<'_>) {
        let RequestId { release, generation, unique, kind, .. } = id;
        let name = given.name;
        let pair = xxh3_64(format!("{release:x}-{generation:x}-{unique:x}\n{name}").as_bytes());
        let met = self.waiting.lock().ok().and_then(|mut w| w.meet(pair, *kind, given.score));
        let shadow = route.shadow.as_ref().and_then(|s| route.tallies.get(&s.target.revision));
        let Some((difference, tally)) = met.zip(shadow) else { return };
        tally.change(|counts| {
            if let Some(sums) = named(&mut counts.paired.get_or_insert_default().scores, name) {
                sinks::add(sums, difference);
            }
        });
    }
}

/// Whether a body is a feedback, whatever it is for.
pub(super) fn reads(body: &[u8]) -> bool {
    let Ok(body) = read(body) else { return false };
    Given::read(&body).is_ok_and(|given| {
        let keys = RequestKeys::default();
        RequestId::read(given.id, &keys).is_none() && signature(given.id).is_none()
    })
}

fn read(body: &[u8]) -> Result<Value, ApiError> {
    if values(body) > MOST_VALUES {
        let message = "send {request_id, score or thumbs, name} and nothing else";
        return Err(ApiError::new(400, "invalid_feedback", message));
    }
    serde_json::from_slice(body)
        .map_err(|e| ApiError::new(400, "invalid_json", format!("the body is not JSON: {e}")))
}

fn count(tally: &Tally, id: &RequestId<'_>, given: &Given<'_>) {
    tally.change(|counts| {
        let Some(sums) = named(&mut counts.scores, given.name) else { return };
        sinks::add(sums, given.score);
        if let Some(group) = id.group {
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
