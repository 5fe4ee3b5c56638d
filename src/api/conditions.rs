//! The one place where conditions are written, in the way that kstatus reads them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One aspect of the observed state, in the shape of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is stated: `Ready`, `Reconciling`, `Stalled`, `Decidable`, `KeysSpread`,
    /// `SnapshotsKept`, `ModelRetirement` or `Deleting`.
    #[schemars(rename = "type", length(max = 64))]
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(max = 8))]
    pub status: String,
    /// One CamelCase word that says why.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// A sentence for people.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The generation of the object that this condition was computed for.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status last changed.
    pub last_transition_time: Time,
}

/// The observed generation of a status that no operator has written: the default of the definitions.
pub const UNSEEN: i64 = -1;

/// The condition types in use.
pub mod types {
    /// The object does what its spec asks for.
    pub const READY: &str = "Ready";
    /// The operator is working towards the spec.
    pub const RECONCILING: &str = "Reconciling";
    /// The operator can not go on by itself.
    pub const STALLED: &str = "Stalled";
    /// The policy's tests can tell a good canary from a bad one with the samples, margins
    /// and deadlines that it names. A warning: nothing is refused.
    pub const DECIDABLE: &str = "Decidable";
    /// Sticky keys are those of many users, so that a step's weight is the share of users
    /// that it says. A warning: nothing is refused.
    pub const KEYS_SPREAD: &str = "KeysSpread";
    /// There is a snapshot of every variant that serves or runs. A warning: what serves goes
    /// on serving.
    pub const SNAPSHOTS_KEPT: &str = "SnapshotsKept";
    /// The backend's model ends soon, or has ended. A warning: requests go on. Only there while
    /// a date is known, or gateways report that the model is gone.
    pub const MODEL_RETIREMENT: &str = "ModelRetirement";
    /// Somebody has deleted the object, and a finalizer holds it. Only there while it is so.
    pub const DELETING: &str = "Deleting";
}

/// The state that the three kstatus conditions express together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// All done: `Ready=True`.
    Ready,
    /// On the way: `Ready=Unknown`, `Reconciling=True`.
    InProgress,
    /// Does not work and nobody is repairing it yet: `Ready=False`.
    NotReady,
    /// Does not work, and what is missing may be on its way: `Ready=False`, `Reconciling=True`.
    Missing,
    /// Needs a person: `Ready=False`, `Stalled=True`.
    Stalled,
}

/// Merges the three kstatus conditions into `conditions`.
///
/// `lastTransitionTime` moves only when a status changes; conditions of other
/// types are left as they are.
pub fn set(
    conditions: &mut Vec<Condition>,
    readiness: Readiness,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) {
    let (ready, reconciling, stalled) = match readiness {
        Readiness::Ready => ("True", "False", "False"),
        Readiness::InProgress => ("Unknown", "True", "False"),
        Readiness::NotReady => ("False", "False", "False"),
        Readiness::Missing => ("False", "True", "False"),
        Readiness::Stalled => ("False", "False", "True"),
    };
    for (type_, status) in
        [(types::READY, ready), (types::RECONCILING, reconciling), (types::STALLED, stalled)]
    {
        merge(conditions, type_, status, reason, message, generation, now);
    }
}

/// Merges one condition that stands by itself.
pub fn set_one(
    conditions: &mut Vec<Condition>,
    type_: &str,
    holds: bool,
    (reason, message): (&str, &str),
    generation: i64,
    now: Timestamp,
) {
    let status = if holds { "True" } else { "False" };
    merge(conditions, type_, status, reason, message, generation, now);
}

fn merge(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) {
    let message = truncate(message, 4096);
    let fresh = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(old) if old.status == status => {
            let since = old.last_transition_time.clone();
            *old = Condition { last_transition_time: since, ..fresh };
        }
        Some(old) => *old = fresh,
        None => conditions.push(fresh),
    }
}

/// The longest beginning of `text` that fits into `bytes`.
pub fn truncate(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// `text` on one line of at most `bytes`, and an ellipsis where it was longer.
pub fn on_one_line(text: &str, bytes: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = printable(&words.join(" "));
    if line.len() > bytes {
        line = truncate(&line, bytes);
        line.push('…');
    }
    line
}

/// `text` with its control characters escaped: line breaks, and what moves a terminal's cursor.
pub fn printable(text: &str) -> String {
    let safe = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(safe).collect()
}

/// Finds the condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_when_the_status_changes() {
        let (t0, t1) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let mut conditions = vec![];
        set(&mut conditions, Readiness::InProgress, "Starting", "a", 1, t0);
        set(&mut conditions, Readiness::InProgress, "Waiting", "b", 2, t1);
        let ready = find(&conditions, types::READY).unwrap();
        assert_eq!((ready.reason.as_str(), ready.observed_generation), ("Waiting", 2));
        assert_eq!(ready.last_transition_time.0, t0);
        set(&mut conditions, Readiness::Ready, "Done", "c", 2, t1);
        assert_eq!(find(&conditions, types::READY).unwrap().last_transition_time.0, t1);
        assert_eq!(find(&conditions, types::STALLED).unwrap().last_transition_time.0, t0);
        assert_eq!(conditions.len(), 3);
    }
}
