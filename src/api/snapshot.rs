//! What a release keeps for itself, so that deleting a referenced object never
//! breaks serving or a rollback: the content of a `ReleaseSnapshot`. And what is
//! remembered of the release itself when its object is deleted or restored without its
//! status: an annotation on the snapshot of its stable variant (docs/decisions/0011).

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;

use super::{
    CanaryPolicySpec, LLMDeploymentSpec, PromptReleaseStatus, PromptVersionSpec,
    conditions::truncate,
    prompt_release::{HandledRequest, HistoryEntry, VariantRef},
};

/// How long a release that does not exist is remembered.
pub const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The longest message of a remembered outcome.
const LONGEST_MESSAGE: usize = 512;
/// A note keeps what was served on so many routes before: a release changes its route only
/// when somebody creates it anew.
const EARLIER_ROUTES: usize = 8;

/// One prompt version on one model backend: the unit that is compared.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// The PromptVersion's name.
    pub prompt_name: String,
    /// The prompt itself.
    pub prompt: PromptVersionSpec,
    /// The LLMDeployment's name.
    pub backend_name: String,
    /// The backend itself, as it was when the variant was first seen.
    pub backend: LLMDeploymentSpec,
}

/// A variant in the text that it is saved in: decoded it takes several times the memory,
/// and of most it is read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedVariant {
    /// The LLMDeployment's name.
    pub backend_name: Box<str>,
    json: Box<str>,
}

impl PackedVariant {
    /// Decodes it.
    ///
    /// # Errors
    /// It is not the text of a variant, which `From` does not write.
    pub fn open(&self) -> Result<Variant, serde_json::Error> {
        serde_json::from_str(&self.json)
    }
}

impl From<&Variant> for PackedVariant {
    fn from(variant: &Variant) -> Self {
        // A variant has no map with keys that JSON does not know: writing it does not fail.
        let json = serde_json::to_string(variant).unwrap_or_default();
        Self { backend_name: variant.backend_name.as_str().into(), json: json.into() }
    }
}

/// The immutable record that a ReleaseSnapshot holds.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::large_enum_variant, reason = "few exist, and they are short-lived")]
pub enum Saved {
    /// A variant, named by its revision.
    Variant(Variant),
    /// The policy that a canary runs with, named by its digest.
    Policy(#[serde(deserialize_with = "saved_policy")] CanaryPolicySpec),
}

/// A policy that was saved without `analysis.evidence` is from when each step stood alone
/// unless the policy said otherwise. Its canary goes on as it began.
fn saved_policy<'de, D: Deserializer<'de>>(from: D) -> Result<CanaryPolicySpec, D::Error> {
    let mut policy = Value::deserialize(from)?;
    if let Some(analysis) = policy.get_mut("analysis").and_then(Value::as_object_mut) {
        analysis.entry("evidence").or_insert_with(|| "PerStep".into());
    }
    serde_json::from_value(policy).map_err(D::Error::custom)
}

/// What a release served last on a route that it does not have any more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlierRoute {
    /// The route.
    pub route: String,
    /// The revision that served on it last.
    pub revision: String,
    /// The revision that failed last on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Until when it was served there.
    pub until: Timestamp,
}

impl EarlierRoute {
    /// Adds `left` to the routes of before, the last one first. Of each route the last entry
    /// counts.
    pub fn add(earlier: &mut Vec<Self>, left: Self) {
        earlier.retain(|other| other.route != left.route);
        earlier.insert(0, left);
        earlier.truncate(EARLIER_ROUTES);
    }
}

/// What users of a route got last from one release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastServed {
    /// The revision that served last.
    pub revision: String,
    /// The revision that failed last.
    pub failed: Option<String>,
    /// Until when the release served; none when its absence is not noted yet.
    pub until: Option<Timestamp>,
    /// The note names the release that it was written for. One of an earlier version does not,
    /// and may be a copy of another namespace's.
    pub named: bool,
}

impl LastServed {
    /// For comparing who served last: an absence that is not noted yet begins now.
    pub fn end(&self) -> Timestamp {
        self.until.unwrap_or(Timestamp::MAX)
    }

    /// The release that served last has the highest rank. A note that may be a copy ranks below
    /// every note that says for which release it was written.
    pub fn rank(&self) -> (bool, Timestamp) {
        (self.named, self.end())
    }
}

impl From<&EarlierRoute> for LastServed {
    fn from(earlier: &EarlierRoute) -> Self {
        let EarlierRoute { revision, failed, until, .. } = earlier.clone();
        Self { revision, failed, until: Some(until), named: true }
    }
}

/// What a release of the same name goes on from when it has no status of its own.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// The route that it served.
    pub route: String,
    /// Since when it claims the route.
    pub since: Timestamp,
    /// The routing generation at which this was noted: of two notes the later one counts.
    pub generation: i64,
    /// The routing generation of the status that was noted, when that is an earlier one: a note of
    /// another object of the release's name was later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_generation: Option<i64>,
    /// The variant that served.
    pub stable: VariantRef,
    /// The variant that served before, while the stable one bakes: users go back to it when the
    /// bake is cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<VariantRef>,
    /// The revision that failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// How these came to be that, as far as it was known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
    /// The requests that were handled: their annotations outlive the status, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<HandledRequest>,
    /// Since when no such release exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent_since: Option<Timestamp>,
    /// What a release of this name served on other routes before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierRoute>,
    /// When this was noted, and not before any note that was known then; none in a note of an
    /// earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noted_at: Option<Timestamp>,
    /// The uid of the release whose status was noted; none in a note of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The `namespace/name` of that release: a copy of the note elsewhere claims nothing. None in
    /// a note of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_for: Option<String>,
}

impl Remembered {
    /// What to remember of a release that claims `route` since `since`; nothing before it
    /// has served.
    pub fn of(route: String, since: Timestamp, status: &PromptReleaseStatus) -> Option<Self> {
        let stable = status.stable.clone()?;
        let short = |entry: &HistoryEntry| {
            let message = truncate(&entry.message, LONGEST_MESSAGE);
            HistoryEntry { message, requests: vec![], evidence: vec![], ..entry.clone() }
        };
        let failed = status.failed_revision.clone();
        let previous = status.previous.clone();
        let served = |variant: &VariantRef| {
            status.history.iter().rfind(|h| h.variant.revision == variant.revision)
        };
        let all = previous.iter().chain([&stable]).filter_map(served);
        let known = all.chain(status.failure());
        let mut history: Vec<HistoryEntry> = known.map(short).collect();
        history.sort_by_key(|entry| entry.at);
        history.dedup();
        Some(Self {
            route,
            since,
            generation: status.routing.generation,
            status_generation: None,
            stable,
            previous,
            failed,
            history,
            requests: status.requests.clone(),
            absent_since: None,
            earlier: vec![],
            noted_at: None,
            uid: None,
            written_for: None,
        })
    }

    /// This note after `known`, which was written before: it takes over what `known` says
    /// of other routes. `created` is when the release was created that has this route: the
    /// one before did not exist any more.
    #[must_use]
    pub fn after(mut self, known: &Self, created: Timestamp) -> Self {
        self.earlier = known.earlier.clone();
        self.earlier.retain(|other| other.route != self.route);
        if known.route != self.route {
            let left = EarlierRoute {
                route: known.route.clone(),
                revision: known.goes_on_with().revision.clone(),
                failed: known.failed.clone(),
                until: known.absent_since.unwrap_or(created),
            };
            EarlierRoute::add(&mut self.earlier, left);
        }
        self
    }

    /// Whether this was noted of the object with this uid.
    pub fn is_about(&self, uid: Option<&str>) -> bool {
        self.uid.is_some() && self.uid.as_deref() == uid
    }

    /// The routing generation of the status that was noted.
    pub fn of_status(&self) -> i64 {
        self.status_generation.unwrap_or(self.generation)
    }

    /// What serves when the release goes on from this note: of two variants in a bake the one that
    /// was there before.
    pub fn goes_on_with(&self) -> &VariantRef {
        self.previous.as_ref().unwrap_or(&self.stable)
    }

    /// What users of `route` got last from a release of this name, if there was one.
    pub fn on_route(&self, route: &str) -> Option<LastServed> {
        if self.route == route {
            let (revision, failed) = (self.goes_on_with().revision.clone(), self.failed.clone());
            let (until, named) = (self.absent_since, self.written_for.is_some());
            return Some(LastServed { revision, failed, until, named });
        }
        let earlier = self.earlier.iter().find(|earlier| earlier.route == route)?;
        Some(LastServed { named: self.written_for.is_some(), ..LastServed::from(earlier) })
    }

    /// Whether it may have been written for `release` (`namespace/name`). One of an earlier
    /// version does not say: it counts as that of the release beside which it is.
    pub fn is_of(&self, release: &str) -> bool {
        self.written_for.as_deref().is_none_or(|of| of == release)
    }

    /// When this note was written. A note of an earlier version does not say so: then the time of
    /// its last history entry, or of its claim to the route.
    pub fn told_at(&self) -> Timestamp {
        let told = self.history.iter().map(|entry| entry.at).max();
        self.noted_at.or(told).unwrap_or(self.since)
    }

    /// Of several notes of a release's name the one that was written last. Notes of one object are
    /// compared by their routing generations. Those of another object begin anew when the name was
    /// forgotten in between, so notes of different objects are compared by when they were noted.
    pub fn last<T>(notes: impl IntoIterator<Item = T>, note: impl Fn(&T) -> &Self) -> Option<T> {
        let mut of_objects: BTreeMap<Option<String>, T> = BTreeMap::new();
        for one in notes {
            let known = of_objects.get(&note(&one).uid);
            if known.is_none_or(|known| note(known).rank() <= note(&one).rank()) {
                of_objects.insert(note(&one).uid.clone(), one);
            }
        }
        of_objects.into_values().max_by_key(|one| (note(one).told_at(), note(one).rank()))
    }

    /// Of several notes of one object the highest counts: the one that was written last, and of
    /// two that may have been, the one that goes back further.
    pub fn rank(&self) -> (i64, Reverse<Timestamp>) {
        (self.generation, Reverse(self.since))
    }

    /// Whether both say the same, whenever it was noted and of which object of the release's
    /// name.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        let said = |note: &Self| Self {
            generation: 0,
            status_generation: None,
            noted_at: None,
            uid: None,
            ..note.clone()
        };
        said(self) == said(other)
    }
}

/// The name of the ReleaseSnapshot that holds the copy `name` of a release.
pub fn copy_name(release: &str, name: &str) -> String {
    format!("{release}-{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{canary_policy::Pooling, prompt_release::Outcome};

    #[test]
    fn a_policy_that_was_saved_before_there_was_a_choice_goes_on_as_it_began() {
        let steps = "steps: [{weight: 5, samples: 20}]";
        let read = |analysis: &str| {
            let text = format!("{{{steps}, analysis: {analysis}}}");
            let policy: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
            match serde_json::from_value(serde_json::json!({"policy": policy})).unwrap() {
                Saved::Policy(policy) => policy,
                Saved::Variant(_) => panic!("it is a policy"),
            }
        };
        assert_eq!(read("{interval: 2s}").analysis.evidence, Pooling::PerStep);
        for evidence in ["Pooled", "PerStep"] {
            let policy = read(&format!("{{evidence: {evidence}}}"));
            assert_eq!(format!("{:?}", policy.analysis.evidence), evidence);
            let text = serde_json::to_string(&Saved::Policy(policy.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Saved>(&text).unwrap(), Saved::Policy(policy));
        }
        let new: CanaryPolicySpec = serde_yaml_ng::from_str(&format!("{{{steps}}}")).unwrap();
        assert_eq!(new.analysis.evidence, Pooling::Pooled, "a policy that somebody writes");
    }

    #[test]
    fn what_is_remembered_is_what_serves_what_failed_and_why_and_nothing_else() {
        let entry = |revision: &str, second, outcome, message: &str| HistoryEntry {
            variant: VariantRef { revision: revision.into(), ..VariantRef::default() },
            outcome,
            reason: "Word".into(),
            message: message.into(),
            at: Timestamp::from_second(second).unwrap(),
            requests: vec![],
            evidence: vec![],
        };
        let long = "x".repeat(2000);
        let mut status = PromptReleaseStatus {
            failed_revision: Some("bad".into()),
            history: vec![
                entry("bad", 1, Outcome::RolledBack, "the first time"),
                entry("old", 2, Outcome::Promoted, ""),
                entry("now", 3, Outcome::Promoted, ""),
                entry("bad", 4, Outcome::RolledBack, &long),
            ],
            ..PromptReleaseStatus::default()
        };
        let of = |status: &PromptReleaseStatus| {
            Remembered::of("route".into(), Timestamp::UNIX_EPOCH, status)
        };
        assert_eq!(of(&status), None, "nothing has served");
        status.stable = Some(VariantRef { revision: "now".into(), ..VariantRef::default() });
        let mut known = of(&status).unwrap();
        let kept: Vec<_> =
            known.history.iter().map(|h| (h.variant.revision.as_str(), h.message.len())).collect();
        assert_eq!(kept[0], ("now", 0));
        assert!(kept[1].0 == "bad" && kept[1].1 <= LONGEST_MESSAGE, "{kept:?}");
        assert_eq!(kept.len(), 2);
        status.routing.generation = 7;
        let later = of(&status).unwrap();
        assert!(known.says_the_same_as(&later));
        assert!(
            known.says_the_same_as(&Remembered { uid: Some("another".into()), ..later.clone() })
        );
        known.absent_since = Some(Timestamp::UNIX_EPOCH);
        assert!(!known.says_the_same_as(&later));
        let text = serde_json::to_string(&known).unwrap();
        assert!(!text.contains("earlier"), "it had no other route: {text}");
        assert_eq!(serde_json::from_str::<Remembered>(&text).unwrap(), known);
    }

    #[test]
    fn what_failed_on_a_route_is_remembered_while_the_release_has_another_one() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let note = |route: &str, revision: &str, failed: Option<&str>| {
            let status = PromptReleaseStatus {
                stable: Some(VariantRef { revision: revision.into(), ..VariantRef::default() }),
                failed_revision: failed.map(str::to_owned),
                ..PromptReleaseStatus::default()
            };
            Remembered::of(route.into(), at(1), &status).unwrap()
        };
        let gone = Remembered { absent_since: Some(at(5)), ..note("old", "v1", Some("v2")) };
        let moved = note("new", "v2", None).after(&gone, at(9));
        let last = |revision: &str, failed: Option<&str>, until| {
            let (revision, failed) = (revision.to_owned(), failed.map(str::to_owned));
            Some(LastServed { revision, failed, until, named: false })
        };
        assert_eq!(moved.on_route("old"), last("v1", Some("v2"), Some(at(5))));
        assert_eq!(moved.on_route("new"), last("v2", None, None));
        assert_eq!(moved.on_route("none"), None);
        let text = serde_json::to_string(&moved).unwrap();
        assert_eq!(serde_json::from_str::<Remembered>(&text).unwrap(), moved);
        // On the same route it stays, and back on the old one there is nothing earlier of it.
        let later = note("new", "v3", None).after(&moved, at(9));
        assert_eq!(later.earlier, moved.earlier);
        let back = note("old", "v1", None).after(&moved, at(9));
        assert_eq!(back.on_route("old"), last("v1", None, None));
        assert_eq!(back.on_route("new"), last("v2", None, Some(at(9))), "its absence is not noted");
        // However many there are.
        let many =
            (0..100).fold(gone, |known, i| note(&format!("r{i}"), "v", None).after(&known, at(i)));
        assert_eq!(many.earlier.len(), EARLIER_ROUTES);
        assert_eq!(many.earlier[0].route, "r98");
    }
}
