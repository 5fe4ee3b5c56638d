//! A first release that turns out not to be one: what is remembered of the release becomes
//! known after it (docs/decisions/0011). A restore may bring the ReleaseSnapshots after the
//! releases; until then a release that is back can not be told from a new one.

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::{
        PromptReleaseStatus,
        prompt_release::{HistoryEntry, Outcome},
        snapshot::{KEPT, Remembered},
    },
    prompt::stands_for,
    rollout::stale,
};

/// A release that goes on from a note begins so many routing generations after it: more than
/// its weights have changed since the note was written.
pub(super) const GENERATIONS_SINCE: i64 = 1_000;

/// So long after its first release a release goes back to what a note says that came late: a
/// restore of a large cluster takes hours, and one that somebody continues on the next day
/// still counts. Later it is another restore: users have got used to what serves, and nobody
/// expects that a missing object takes it from all of them at once.
pub const RESTORED_WITHIN: SignedDuration = SignedDuration::from_hours(24);

/// A status that says it began so long before its object was created is that of an earlier
/// object. Shorter, the clocks of the API server and of the operator may differ.
pub(super) const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// The object that a status is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// Its uid.
    pub uid: Option<&'a str>,
    /// When it was created.
    pub created: Timestamp,
}

/// What became known only after a first release.
#[derive(Clone, Debug, PartialEq)]
pub struct Late {
    /// The note that says what was before.
    pub note: Remembered,
    /// The note came in time to be gone on from. One that came later is told only.
    pub in_time: bool,
}

/// What `notes` of a release say of the time before its first release, as long as that is all
/// that it has done. The highest note that came in time counts;
/// without one, the highest that came too late. A first release of which this object has noted
/// more is in a status that somebody has put back.
pub fn late(
    notes: &[Remembered],
    object: Object<'_>,
    status: &PromptReleaseStatus,
    route: &str,
    now: Timestamp,
) -> Option<Late> {
    let first = only_first(status)?;
    if notes.iter().any(|n| n.is_about(object.uid) && n.of_status() > status.routing.generation) {
        return None;
    }
    let notes = notes.iter().filter(|note| is_late(note, object, status, route));
    let notes = notes.map(|n| Late { in_time: came_in_time(n, first, now), note: n.clone() });
    let (in_time, late): (Vec<Late>, Vec<Late>) = notes.partition(|late| late.in_time);
    let last = |notes| stale::last_known(notes, |late: &Late| &late.note, now);
    last(in_time).or_else(|| last(late))
}

/// Whether `note` says what was before a first release that is all that `status` knows. The first
/// release of an earlier object, in a status from a backup, is nothing that came before a note.
pub(super) fn is_late(
    note: &Remembered,
    object: Object<'_>,
    status: &PromptReleaseStatus,
    route: &str,
) -> bool {
    let first =
        only_first(status).filter(|first| object.created.duration_since(first.at) <= CLOCKS);
    first.is_some_and(|first| was_before(note, object.uid, first, route))
}

/// Whether a note came so soon after the first release that it is of the same restore, and says
/// what is still remembered.
fn came_in_time(note: &Remembered, first: &HistoryEntry, now: Timestamp) -> bool {
    let forgotten = note.absent_since.is_some_and(|since| now.duration_since(since) >= KEPT);
    now.duration_since(first.at) < RESTORED_WITHIN && !forgotten
}

/// The first release, as long as it is all that a release has done: no canary ran, nobody has
/// approved or retried anything, and nothing that is remembered was gone on from.
pub(super) fn only_first(status: &PromptReleaseStatus) -> Option<&HistoryEntry> {
    let [first] = &status.history[..] else { return None };
    let stable = status.stable.as_ref()?;
    let is_all = first.outcome == Outcome::Initial
        && first.variant.revision == stable.revision
        && status.canary.is_none()
        && status.previous.is_none()
        && status.failed_revision.is_none()
        && status.routing.generation < GENERATIONS_SINCE
        && status.requests.iter().all(|request| !request.accepted);
    is_all.then_some(first)
}

/// Whether `note` says that users of `route` had something else before this first release.
/// `uid` is the release's own: its own note says what it did itself, also one that was written
/// for a status that was never taken. A note of an earlier version has no uid, and is told
/// from the release's own by what it says; of another route than its own it says nothing,
/// because the release's own note keeps what others of its name served on other routes.
fn was_before(note: &Remembered, uid: Option<&str>, first: &HistoryEntry, route: &str) -> bool {
    let is_own = note.is_about(uid);
    let is_other = |revision: &str| {
        let served = first.variant.revision.as_str();
        !stands_for(revision, served) && !stands_for(served, revision)
    };
    let says_something = note.uid.is_some() || note.route == route;
    let last = note.on_route(route).filter(|_| !is_own && says_something);
    last.is_some_and(|last| is_other(&last.revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        prompt_release::{CanaryStatus, HandledRequest, Routing, VariantRef},
        snapshot::EarlierRoute,
    };

    const OWN: Object<'_> = Object { uid: Some("own"), created: Timestamp::UNIX_EPOCH };
    const FULL: &str = "0123456789012345678901234567890123456789";

    fn variant(revision: &str) -> VariantRef {
        VariantRef { revision: revision.into(), ..VariantRef::default() }
    }

    fn serves(revision: &str) -> PromptReleaseStatus {
        let first = HistoryEntry {
            variant: variant(revision),
            outcome: Outcome::Initial,
            reason: String::new(),
            message: String::new(),
            at: Timestamp::UNIX_EPOCH,
            requests: vec![],
            evidence: vec![],
        };
        PromptReleaseStatus {
            stable: Some(variant(revision)),
            routing: Routing { generation: 1, ..Routing::default() },
            history: vec![first],
            ..PromptReleaseStatus::default()
        }
    }

    #[test]
    fn whatever_else_a_release_has_done_its_first_release_is_not_all() {
        let handled = |accepted| HandledRequest {
            action: "approve".into(),
            value: "a".into(),
            revision: "a".into(),
            by: "ada".into(),
            at: Timestamp::UNIX_EPOCH,
            accepted,
            message: String::new(),
        };
        let first = serves("a");
        assert!(only_first(&first).is_some());
        let refused = PromptReleaseStatus { requests: vec![handled(false)], ..first.clone() };
        assert!(only_first(&refused).is_some(), "what was refused was not done");
        type Change = fn(&mut PromptReleaseStatus);
        let done: [(&str, Change); 7] = [
            ("nothing yet", |s| *s = PromptReleaseStatus::default()),
            ("a canary", |s| s.canary = Some(CanaryStatus::default())),
            ("a bake", |s| s.previous = Some(variant("b"))),
            ("a failure", |s| s.failed_revision = Some("b".into())),
            ("another outcome", |s| {
                s.history
                    .push(HistoryEntry { outcome: Outcome::Withdrawn, ..s.history[0].clone() });
            }),
            ("a promotion", |s| s.history[0].outcome = Outcome::Promoted),
            ("a return", |s| s.routing.generation = GENERATIONS_SINCE + 1),
        ];
        for (what, change) in done {
            let mut status = first.clone();
            change(&mut status);
            assert_eq!(only_first(&status), None, "{what}");
        }
        let approved = PromptReleaseStatus { requests: vec![handled(true)], ..first };
        assert_eq!(only_first(&approved), None, "a person has decided");
    }

    #[test]
    fn a_note_of_before_is_told_from_the_releases_own() {
        let first = |revision: &str| serves(revision).history.remove(0);
        let note = |revision: &str, uid: Option<&str>| Remembered {
            uid: uid.map(str::to_owned),
            ..Remembered::of("route".into(), Timestamp::UNIX_EPOCH, &serves(revision)).unwrap()
        };
        let was = |note: &Remembered| was_before(note, Some("own"), &first(FULL), "route");
        for uid in [None, Some("other")] {
            assert!(was(&note("another", uid)), "{uid:?}");
            assert!(!was(&note(FULL, uid)), "it says the same: there is nothing to go back to");
            assert!(!was(&note(&FULL[..10], uid)), "as an earlier version wrote it");
        }
        // Noted for a decision that was not written, or by an operator that was killed.
        assert!(!was(&note("another", Some("own"))));
        // Of another route it says nothing about this one, unless that was served before.
        let mut moved = Remembered { route: "elsewhere".into(), ..note("another", None) };
        assert!(!was(&moved));
        for (revision, uid, before) in [
            ("good", Some("other"), true),
            (FULL, Some("other"), false),
            ("good", Some("own"), false),
            // Without a uid it may be the release's own, which says what another release of
            // its name served on this route long ago.
            ("good", None, false),
        ] {
            moved.uid = uid.map(str::to_owned);
            moved.earlier = vec![EarlierRoute {
                route: "route".into(),
                revision: revision.into(),
                failed: None,
                until: Timestamp::UNIX_EPOCH,
            }];
            assert_eq!(was(&moved), before, "{revision} {uid:?}");
        }
    }

    #[test]
    fn a_note_that_comes_a_day_later_or_is_not_remembered_any_more_is_told_only() {
        let status = serves(FULL);
        let first = status.history[0].at;
        let note = |generation, absent_since| Remembered {
            generation,
            absent_since,
            uid: Some("other".into()),
            ..Remembered::of("route".into(), first, &serves("another")).unwrap()
        };
        let late = |notes: &[Remembered], now| {
            let late = late(notes, OWN, &status, "route", now);
            late.map(|late| (late.note.generation, late.in_time))
        };
        let second = SignedDuration::from_secs(1);
        assert_eq!(late(&[], first), None);
        for (after, in_time) in [
            // A clock that was ahead when the release was first.
            (-RESTORED_WITHIN, true),
            (SignedDuration::ZERO, true),
            (RESTORED_WITHIN - second, true),
            (RESTORED_WITHIN, false),
            (RESTORED_WITHIN * 30, false),
        ] {
            assert_eq!(late(&[note(1, None)], first + after), Some((1, in_time)), "{after}");
        }
        let forgotten = Some(first - KEPT);
        let known = Some(first - KEPT + second);
        assert_eq!(late(&[note(2, forgotten)], first), Some((2, false)));
        assert_eq!(late(&[note(1, known), note(2, forgotten)], first), Some((1, true)));
        assert_eq!(late(&[note(1, known), note(2, None)], first), Some((2, true)));
        // This object has noted more than its first release: the status was put back.
        let own = |generation| Remembered { uid: Some("own".into()), ..note(generation, None) };
        assert_eq!(late(&[note(7, None), own(2)], first), None);
        assert_eq!(late(&[note(7, None), own(1)], first), Some((7, true)));
        let after = Remembered { status_generation: Some(1), ..own(8) };
        assert_eq!(late(&[note(7, None), after], first), Some((7, true)));
    }

    #[test]
    fn a_first_release_in_a_status_from_a_backup_is_none_of_this_object() {
        let status = serves(FULL);
        let note = Remembered {
            uid: Some("other".into()),
            ..Remembered::of("route".into(), Timestamp::UNIX_EPOCH, &serves("another")).unwrap()
        };
        for (after, is_first) in [(CLOCKS, true), (CLOCKS + SignedDuration::from_secs(1), false)] {
            let object = Object { created: status.history[0].at + after, ..OWN };
            assert_eq!(is_late(&note, object, &status, "route"), is_first, "{after}");
        }
    }
}
