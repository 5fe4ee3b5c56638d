//! A status that is older than what is remembered of its release: a backup was restored with its
//! statuses, while the ReleaseSnapshots are those of today. The note is written before each status
//! that changes what it says, so a status that was written after it knows all that it says.

use crate::{
    api::{
        PromptReleaseStatus,
        prompt_release::{HandledRequest, HistoryEntry, Outcome, RETURNED},
        snapshot::Remembered,
    },
    prompt::stands_for,
    rollout::{
        first::{Object, is_late},
        snapshot::Action,
    },
};

/// Whether `note` knows more of `route` than `status`: a failure of which the status has never
/// heard, or something else at a later routing generation. Without a status everything is more,
/// and what came after a first release counts as `rollout::first` says.
pub fn knows_more(
    note: &Remembered,
    object: Object<'_>,
    status: &PromptReleaseStatus,
    route: &str,
) -> bool {
    let Some(stable) = &status.stable else { return false };
    if note.route != route || is_late(note, object, status, route) {
        return false;
    }
    if note.failed.as_deref().is_some_and(|failed| !has_heard_of(status, failed)) {
        return true;
    }
    // The status of this promotion was not written, and it is decided again.
    let is_own = note.uid.is_some() && note.uid.as_deref() == object.uid;
    let canary = status.canary.as_ref().map(|canary| &canary.variant.revision);
    let is_not_promoted = is_own && canary.is_some_and(|c| is_one(c, &note.stable.revision));
    let says_the_same = is_one(&note.stable.revision, &stable.revision)
        && match (&note.failed, &status.failed_revision) {
            (Some(noted), Some(known)) => is_one(noted, known),
            (None, None) => true,
            _ => false,
        };
    note.generation > status.routing.generation && !says_the_same && !is_not_promoted
}

/// The revision that stays out when `status` gives way to `note`: one that only the status knows
/// does, too, unless the note says how that was over.
pub fn failed(note: &Remembered, status: &PromptReleaseStatus) -> Option<String> {
    let is_over = |failed: &String| {
        let is_retried = |handled: &HandledRequest| {
            handled.accepted
                && handled.action == Action::Retry.as_str()
                && is_one(&handled.revision, failed)
        };
        is_one(&note.stable.revision, failed) || note.requests.iter().any(is_retried)
    };
    let known = || status.failed_revision.clone().filter(|failed| !is_over(failed));
    note.failed.clone().or_else(known)
}

/// Whether a status was written when `failed` had failed: it is out, or was until somebody asked
/// for a retry, or until the spec named something else.
fn has_heard_of(status: &PromptReleaseStatus, failed: &str) -> bool {
    status.failed_revision.as_deref().is_some_and(|known| is_one(known, failed))
        || status.history.iter().any(|entry| tells_of(entry, failed))
}

/// Whether an entry of the history tells that `failed` left routing. What was a first release
/// until it became known what was served before did not fail by that.
pub fn tells_of(entry: &HistoryEntry, failed: &str) -> bool {
    matches!(entry.outcome, Outcome::RolledBack | Outcome::Withdrawn)
        && entry.reason != RETURNED
        && is_one(&entry.variant.revision, failed)
}

/// Whether both are one revision, also when an earlier version wrote one of them.
fn is_one(one: &str, other: &str) -> bool {
    stands_for(one, other) || stands_for(other, one)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::api::prompt_release::{CanaryStatus, Routing, VariantRef};

    fn variant(revision: &str) -> VariantRef {
        VariantRef { revision: revision.into(), ..VariantRef::default() }
    }

    fn serves(revision: &str, failed: Option<&str>, generation: i64) -> PromptReleaseStatus {
        PromptReleaseStatus {
            stable: Some(variant(revision)),
            failed_revision: failed.map(str::to_owned),
            routing: Routing { generation, ..Routing::default() },
            ..PromptReleaseStatus::default()
        }
    }

    fn note(revision: &str, failed: Option<&str>, generation: i64) -> Remembered {
        let status = serves(revision, failed, generation);
        let note = Remembered::of("route".into(), Timestamp::UNIX_EPOCH, &status).unwrap();
        Remembered { uid: Some("own".into()), ..note }
    }

    const OWN: Object<'_> = Object { uid: Some("own"), created: Timestamp::UNIX_EPOCH };

    fn more(note: &Remembered, object: Object<'_>, status: &PromptReleaseStatus) -> bool {
        knows_more(note, object, status, "route")
    }

    #[test]
    fn a_note_knows_more_by_a_failure_or_by_a_later_generation() {
        for (noted, known, is_more) in [
            // A backup of before the failure, whatever its generation.
            (note("a", Some("b"), 3), serves("a", None, 2), true),
            (note("a", Some("b"), 3), serves("a", None, 3), true),
            (note("a", Some("b"), 3), serves("a", None, 900), true),
            (note("a", Some("b"), 3), serves("a", Some("c"), 9), true),
            // It is known.
            (note("a", Some("b"), 3), serves("a", Some("b"), 2), false),
            (note("a", None, 3), serves("a", None, 2), false),
            // Another one has served since.
            (note("b", None, 3), serves("a", None, 2), true),
            // A note that the caches have not seen anew.
            (note("a", None, 3), serves("b", None, 3), false),
            (note("a", None, 3), serves("a", Some("b"), 3), false),
        ] {
            assert_eq!(more(&noted, OWN, &known), is_more, "{noted:?} {known:?}");
        }
        assert!(!more(&note("a", Some("b"), 3), OWN, &PromptReleaseStatus::default()));
        // As an earlier version wrote the revision.
        let long = "0123456789012345678901234567890123456789";
        assert!(!more(&note("a", Some(long), 3), OWN, &serves("a", Some(&long[..10]), 2)));
    }

    #[test]
    fn a_status_after_a_retry_has_heard_of_the_failure() {
        let mut status = serves("a", None, 4);
        status.history.push(HistoryEntry {
            variant: variant("b"),
            outcome: Outcome::RolledBack,
            reason: String::new(),
            message: String::new(),
            at: Timestamp::UNIX_EPOCH,
            requests: vec![],
        });
        assert!(!more(&note("a", Some("b"), 3), OWN, &status));
        // And a bake that began, when the note is of its end.
        let baking = PromptReleaseStatus {
            previous: Some(variant("a")),
            canary: Some(CanaryStatus { variant: variant("b"), ..CanaryStatus::default() }),
            ..serves("b", None, 4)
        };
        assert!(more(&note("a", Some("b"), 5), OWN, &baking));
    }

    #[test]
    fn a_promotion_whose_status_was_not_written_is_decided_again() {
        let canary = Some(CanaryStatus { variant: variant("b"), ..CanaryStatus::default() });
        let status = PromptReleaseStatus { canary, ..serves("a", None, 4) };
        let restored = Object { uid: Some("of now"), ..OWN };
        assert!(!more(&note("b", None, 5), OWN, &status));
        assert!(more(&note("b", None, 5), restored, &status), "it is a backup");
    }

    #[test]
    fn what_only_the_status_knows_to_have_failed_stays_out_unless_that_is_over() {
        let of = |note: &Remembered| failed(note, &serves("a", Some("b"), 2));
        assert_eq!(of(&note("a", Some("c"), 9)).as_deref(), Some("c"));
        assert_eq!(of(&note("d", None, 9)).as_deref(), Some("b"));
        assert_eq!(of(&note("b", None, 9)), None, "it was promoted");
        let mut retried = note("a", None, 9);
        retried.requests.push(HandledRequest {
            action: "retry".into(),
            value: "b".into(),
            revision: "b".into(),
            by: String::new(),
            at: Timestamp::UNIX_EPOCH,
            accepted: true,
            message: String::new(),
        });
        assert_eq!(of(&retried), None);
    }
}
