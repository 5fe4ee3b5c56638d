//! What `decide` sees and what it answers: values only.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    analysis::external::Externals,
    api::{
        CanaryPolicySpec, PromptReleaseSpec, PromptReleaseStatus, Variant,
        prompt_release::{Counts, VariantRef},
        snapshot::{Remembered, Saved},
    },
    prompt::{short, stands_for},
};

/// The world around one release at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// `namespace/name`, for messages.
    pub release: String,
    /// The object's generation.
    pub generation: i64,
    /// What the user wants.
    pub spec: PromptReleaseSpec,
    /// What was decided so far.
    pub status: PromptReleaseStatus,
    /// Requests by annotation, whether handled already or not.
    pub requests: Vec<Request>,
    /// The variant that the spec names, or why there is none.
    pub target: Result<Target, Problem>,
    /// The policy that the spec names, or why there is none.
    pub policy: Result<CanaryPolicySpec, Problem>,
    /// What keeps that policy from deciding, if anything does.
    pub undecidable: Option<String>,
    /// Metrics of that policy that can never have data for this release.
    pub without_data: Vec<WithoutData>,
    /// The policy that the running canary started with, from its saved copy.
    pub running_policy: Option<Arc<CanaryPolicySpec>>,
    /// The release that holds the route, when it is another one.
    pub route_held_by: Option<String>,
    /// What is known of a release of this name and route that has no status any more, when
    /// this one has none: it was deleted and created again, or restored. Also when that became
    /// known only after a first release (`rollout::first`), and when it is more than the status
    /// knows, which is of a backup (`rollout::stale`).
    pub remembered: Option<Box<Remembered>>,
    /// The copy of what is to serve again has not come yet.
    pub awaited: Option<Awaited>,
    /// What copies of this release's snapshots say that were written for another release, when
    /// there is no note of this one: they came with a restore into another namespace.
    pub copied: Option<Box<Remembered>>,
    /// Revisions of which ReleaseSnapshots lie beside this release, while it has served nothing and
    /// no note says which of them served.
    pub beside: Vec<String>,
    /// The last routing generation that was noted on this route: whatever the status says, the next
    /// one is later.
    pub noted: i64,
    /// What users of the route got last, when this release does not serve it: from a release
    /// that does not exist any more, or has another route. One of the same namespace is here
    /// only when this release has served nothing on the route. One of its own name is here
    /// also when that became known only after a first release.
    pub served_before: Option<ServedBefore>,
    /// Snapshots of what serves or runs that are gone and can not be made again.
    pub lost: Vec<LostSnapshot>,
    /// Why the backend of a revision can not answer now; a revision that is not here is ready.
    pub not_ready: BTreeMap<String, String>,
    /// Every gateway that should be following, also those that did not answer.
    pub gateways: Vec<Gateway>,
    /// Gateway processes that are not seen any more, as they were last: what they have counted
    /// still counts.
    pub departed: Vec<Gateway>,
    /// What is known of the running canary's metrics from elsewhere, by metric name.
    pub external: Externals,
    /// Somebody has deleted the release, and it is still there.
    pub deleting: Option<Deleting>,
}

/// A deletion that waits for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleting {
    /// When the deletion was asked for.
    pub since: Timestamp,
    /// What it waits for.
    pub finalizers: Vec<String>,
}

impl Snapshot {
    /// The release of another namespace that served the route last.
    pub fn served_elsewhere(&self) -> Option<&ServedBefore> {
        let own = namespace_of(&self.release);
        self.served_before.as_ref().filter(|before| namespace_of(&before.release) != own)
    }

    /// What users of the route had from a release of this name before, which became known only
    /// after its first release, and which it does not go on from.
    pub fn known_late(&self) -> Option<&ServedBefore> {
        let own = |before: &&ServedBefore| before.release == self.release;
        self.served_before.as_ref().filter(own).filter(|_| self.status.stable.is_some())
    }

    /// What serves had failed on the route before, which became known only after a first
    /// release: the release is held like one that is created now.
    pub fn was_not_first(&self) -> bool {
        let stable = self.status.stable.as_ref().map(|stable| stable.revision.as_str());
        let Some((before, stable)) = self.known_late().zip(stable) else { return false };
        let failed = before.failed.as_deref().is_some_and(|failed| stands_for(failed, stable));
        failed && !before.too_late
    }

    /// Why a revision can not answer now: its backend is not ready, or a gateway can not
    /// build it.
    pub fn why_not_ready(&self, revision: &str) -> Option<String> {
        let known = self.not_ready.get(revision).cloned();
        known.or_else(|| self.unbuilt(revision))
    }

    /// Why what served before can not answer now, if so: it is not ready, or fails outright.
    pub fn why_down(&self, revision: &str) -> Option<String> {
        let fails = |gateway: &&Gateway| gateway.failing.iter().any(|failing| failing == revision);
        let failing = self.gateways.iter().filter(fails).count();
        // A gateway alone may have trouble of its own.
        let answering = self.gateways.iter().filter(|gateway| gateway.silent.is_none()).count();
        let fails =
            || format!("{failing} of {} gateways see all requests to it fail", self.gateways.len());
        self.why_not_ready(revision)
            .or_else(|| (failing > 0 && 2 * failing >= answering).then(fails))
    }

    /// Which gateways can not build a revision, and why.
    pub fn unbuilt(&self, revision: &str) -> Option<String> {
        let why = |gateway: &Gateway| gateway.unbuilt.get(revision).cloned();
        let whys: Vec<String> = self.gateways.iter().filter_map(why).collect();
        let (first, some, all) = (whys.first()?, whys.len(), self.gateways.len());
        Some(format!("{some} of {all} gateways can not build {}: {first}", short(revision)))
    }

    /// Why no gateway serves the route: none can build `stable`, nor has built it before.
    pub fn unserved(&self, stable: &str) -> Option<String> {
        // Without a route it is at no generation, or at 0.
        let serves_not =
            |g: &Gateway| g.applied.unwrap_or_default() == 0 && g.unbuilt.contains_key(stable);
        self.unbuilt(stable).filter(|_| self.gateways.iter().all(serves_not))
    }

    /// As `unbuilt`, of what is asked only when `stable` fails.
    pub fn unbuilt_beside(&self, stable: &str) -> Option<String> {
        let all = self.gateways.iter().flat_map(|gateway| gateway.unbuilt.keys());
        self.unbuilt(all.filter(|revision| *revision != stable).min()?)
    }
}

/// What a release without a status waits for before it goes on from a note: the copy of what served
/// before the bake of which the note tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// Its revision.
    pub revision: String,
    /// Later the copy counts as gone.
    pub until: Timestamp,
}

/// What users of a route had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBefore {
    /// `namespace/name` of the release that served the route.
    pub release: String,
    /// The revision that served last.
    pub revision: String,
    /// The revision that failed last in it.
    pub failed: Option<String>,
    /// Since when it is gone; none when that is not noted yet.
    pub since: Option<Timestamp>,
    /// What makes that forgotten at once, as a command for who has rights in its namespace.
    pub forget: Option<String>,
    /// That became known so long after the first release of this one that it is told only.
    pub too_late: bool,
}

/// The namespace of a release's `namespace/name`.
pub fn namespace_of(release: &str) -> &str {
    release.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// A ReleaseSnapshot that somebody has deleted, and whose origin is gone, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSnapshot {
    /// The name of the object.
    pub name: String,
    /// What it was a snapshot of.
    pub variant: VariantRef,
    /// It is there, and can not be read.
    pub unread: bool,
    /// Why it can not be read, or made again.
    pub why: String,
}

/// A metric that can never have data, whatever traffic comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithoutData {
    /// Its name in the policy.
    pub metric: String,
    /// Why, and what to do.
    pub why: String,
}

/// A variant and its content hash.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// Ten hex digits.
    pub revision: String,
    /// The content.
    pub variant: Variant,
}

/// Why something that is needed can not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
}

impl Default for Problem {
    fn default() -> Self {
        Self { reason: "Unknown", message: String::new() }
    }
}

/// One gateway process as last heard of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gateway {
    /// Its instance id; none when it did not answer.
    pub instance: Option<String>,
    /// Where it should be, and why it counts as silent; none when it answered.
    pub silent: Option<String>,
    /// The routing generation that it applies; none when it does not know the release yet.
    pub applied: Option<i64>,
    /// It sent everything to stable because it saw no leader.
    pub control_loss: bool,
    /// Why it can not build a variant, by revision.
    pub unbuilt: BTreeMap<String, String>,
    /// Revisions that fail outright there: their breakers are open.
    pub failing: Vec<String>,
    /// Its counts by revision, under the applied generation.
    pub counts: BTreeMap<String, Arc<Counts>>,
}

/// What a person can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Go on from an approval step, or from a held step.
    Approve,
    /// Skip the remaining steps and promote.
    Promote,
    /// Take the canary out of routing.
    Abort,
    /// Try a revision again that failed or was aborted.
    Retry,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 4] = [Self::Approve, Self::Promote, Self::Abort, Self::Retry];

    /// The word in the status and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Promote => "promote",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }

    /// The annotation that carries the request.
    pub fn annotation(self) -> &'static str {
        use crate::api::keys;
        match self {
            Self::Approve => keys::APPROVE_ANNOTATION,
            Self::Promote => keys::PROMOTE_ANNOTATION,
            Self::Abort => keys::ABORT_ANNOTATION,
            Self::Retry => keys::RETRY_ANNOTATION,
        }
    }
}

/// A person's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub action: Action,
    /// The annotation's value: `REVISION [by=WHO] [at=WHEN]`. A unique beginning of the
    /// revision is enough, from 4 characters on.
    pub value: String,
}

impl Request {
    /// The revision that the request is about, or its beginning.
    pub fn revision(&self) -> &str {
        self.value.split_whitespace().next().unwrap_or_default()
    }

    /// Who asks, as far as the value says.
    pub fn by(&self) -> &str {
        self.value
            .split_whitespace()
            .find_map(|word| word.strip_prefix("by="))
            .unwrap_or("unknown (no by= in the annotation)")
    }

    /// The requests among an object's annotations.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Vec<Self> {
        Action::ALL
            .into_iter()
            .filter_map(|action| {
                let value = annotations.get(action.annotation())?.chars().take(512).collect();
                Some(Self { action, value })
            })
            .collect()
    }
}

/// The decision: the status to write, what else to do, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The whole new status. Written only when it differs from the old one.
    pub status: PromptReleaseStatus,
    /// What else to do; each is idempotent.
    pub effects: Vec<Effect>,
    /// When to decide again at the latest, without any other reason to.
    pub wake_at: Option<Timestamp>,
}

/// Something to do besides writing the status.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep a copy, before the status is written. Names are revisions or digests.
    Save {
        /// The revision or the policy's digest.
        name: String,
        /// What to keep.
        content: Box<Saved>,
    },
    /// Tell people, after the status is written.
    Announce {
        /// Whether it is bad news.
        warning: bool,
        /// One CamelCase word.
        reason: String,
        /// A sentence.
        note: String,
    },
    /// Drop every saved copy but these, after the status is written.
    Prune {
        /// The names to keep.
        keep: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_revision_and_who_asks() {
        let annotations = BTreeMap::from([
            (Action::Approve.annotation().to_owned(), "41cc by=ada at=now".to_owned()),
            (Action::Abort.annotation().to_owned(), String::new()),
            ("other".to_owned(), "9f3a".to_owned()),
        ]);
        let requests = Request::from_annotations(&annotations);
        assert_eq!(requests.len(), 2);
        let approve = &requests[0];
        assert_eq!(
            (approve.action, approve.revision(), approve.by()),
            (Action::Approve, "41cc", "ada")
        );
        assert_eq!(requests[1].revision(), "");
        assert!(requests[1].by().starts_with("unknown"));
    }
}
