//! A status that is older than what is remembered of its release: a backup was restored with its
//! statuses, while the ReleaseSnapshots are those of today. The note is written before each status
//! that changes what it says, so a status that was written after it knows all that it says.
//!
//! A note of another object of the release's name may be of an earlier life of the name, or of
//! another cluster. Its generations are not those of this object, so it never goes before a status
//! that was written for this object. It is told, and users keep what they have.

use jiff::Timestamp;

use crate::{
    api::{
        PromptReleaseStatus,
        prompt_release::{HistoryEntry, Outcome, RETURNED, RoutedVariant, VariantRef, VariantRole},
        snapshot::Remembered,
    },
    prompt::stands_for,
    rollout::first::{CLOCKS, Object, is_late},
};

/// Of several notes of a release's name the last one; but not one that would have serve again what
/// another one says has failed since, or may have: a clock that was ahead, or a note of an earlier
/// version, does not tell what came later.
pub fn last_known<T>(
    mut notes: Vec<T>,
    note: impl Fn(&T) -> &Remembered,
    now: Timestamp,
) -> Option<T> {
    let position = |of: &Remembered| notes.iter().position(|one| note(one) == of);
    let last = Remembered::last(notes.iter().map(&note), |one| one)?;
    let known = notes.iter().map(&note).filter(|other| contradicts(other, last, now));
    let chosen = Remembered::last(known, |one| one).unwrap_or(last);
    Some(notes.swap_remove(position(chosen)?))
}

/// Whether `note` says that what `last` would have serve on the same route has failed, and nothing
/// shows that it was promoted after that.
fn contradicts(note: &Remembered, last: &Remembered, now: Timestamp) -> bool {
    let serves = &last.goes_on_with().revision;
    let failed = note.failed.as_deref().filter(|failed| is_one(failed, serves));
    let Some(failed) = failed.filter(|_| note.route == last.route) else { return false };
    let of = |note: &Remembered, is_it: &dyn Fn(&HistoryEntry) -> bool| {
        note.history.iter().filter(|entry| is_it(entry)).map(|entry| entry.at).max()
    };
    let has_failed = of(note, &|entry| tells_of(entry, failed)).unwrap_or_else(|| note.told_at());
    let has_served = of(last, &|entry| {
        matches!(entry.outcome, Outcome::Initial | Outcome::Promoted)
            && is_one(&entry.variant.revision, serves)
    });
    has_served.is_none_or(|served| served <= has_failed || served > now)
}

/// The note that knows more of `route` than `status`, if one does: the last one of this object, or
/// the last one of all.
pub fn later(
    notes: &[Remembered],
    object: Object<'_>,
    status: &PromptReleaseStatus,
    route: &str,
    now: Timestamp,
) -> Option<Remembered> {
    let told = status.history.iter().map(|entry| entry.at).max();
    // What another object has noted before this status was written is no news.
    let is_news = |note: &Remembered| {
        note.is_about(object.uid) || told.is_none_or(|told| note.told_at() >= told)
    };
    let last = |own: bool| {
        let notes = notes.iter().filter(|note| !own || note.is_about(object.uid));
        last_known(notes.filter(|note| is_news(note)).collect(), |note| note, now)
    };
    let known = [last(true), last(false)].into_iter().flatten();
    known.into_iter().find(|note| knows_more(note, object, status, route)).cloned()
}

/// Whether `note` knows more of `route` than `status`: a failure of which the status has never
/// heard, or something else at a later routing generation. Without a status everything is more,
/// and what came after a first release counts as `rollout::first` says. A note of another object
/// knows more only than a status that is of before this object, and none makes stable what the
/// status knows to have failed.
pub fn knows_more(
    note: &Remembered,
    object: Object<'_>,
    status: &PromptReleaseStatus,
    route: &str,
) -> bool {
    let counts = note.is_about(object.uid) || is_of_before(status, object);
    if status.stable.is_none() || note.route != route || !counts || serves_what_failed(note, status)
    {
        return false;
    }
    if is_late(note, object, status, route) {
        return false;
    }
    if note.failed.as_deref().is_some_and(|failed| !has_heard_of(status, failed)) {
        return true;
    }
    // Of one object the generations of its statuses are compared.
    let is_of_one =
        note.uid.is_some() && (status.uid.is_none() || note.is_about(status.uid.as_deref()));
    let noted = if is_of_one { note.of_status() } else { note.generation };
    noted > status.routing.generation
        && !says_the_same(note, status)
        && !(note.is_about(object.uid) && is_unwritten_promotion(note, status))
}

/// The note that says otherwise than a status of this very object, which goes on, at what looks
/// like a later time.
pub fn told<'a>(
    notes: &'a [Remembered],
    object: Object<'_>,
    status: &PromptReleaseStatus,
    route: &str,
) -> Option<&'a Remembered> {
    let stable = status.stable.as_ref().filter(|_| !is_of_before(status, object))?;
    let is_foreign = |note: &&Remembered| note.uid.is_some() && !note.is_about(object.uid);
    let says_more = |note: &&Remembered| {
        note.route == route
            && note.generation > status.routing.generation
            && !is_one(&note.stable.revision, &stable.revision)
    };
    Remembered::last(notes.iter().filter(is_foreign).filter(says_more), |note| note)
}

/// Whether `status` was not written for `object`: it was restored into it. A status of an earlier
/// version does not say for which one it was written. It is of before when it tells of a time
/// before the object.
pub fn is_of_before(status: &PromptReleaseStatus, object: Object<'_>) -> bool {
    let is_before = |entry: &HistoryEntry| object.created.duration_since(entry.at) > CLOCKS;
    match &status.uid {
        Some(uid) => object.uid != Some(uid.as_str()),
        None => status.history.iter().any(is_before),
    }
}

/// Whether a status has all that it must have to go on from it: somebody may have taken a part away.
/// What routes requests has a stable variant, and what bakes one that served before.
pub fn is_whole(status: &PromptReleaseStatus) -> bool {
    let Some(stable) = &status.stable else { return !status.routes() };
    let canary = status.canary.as_ref().map(|canary| &canary.variant.revision);
    status.previous.is_some() || canary != Some(&stable.revision)
}

/// Whether all that a status says to serve is in its routing, if anything is, and nothing else:
/// somebody may have taken an entry away, or put in one of what failed.
pub fn is_routed(status: &PromptReleaseStatus) -> bool {
    let variants = &status.routing.variants;
    let has = |variant: &VariantRef, role: VariantRole, weighs: &dyn Fn(i32) -> bool| {
        let is_it = |v: &RoutedVariant| v.role == role && v.revision == variant.revision;
        variants.iter().any(|v| is_it(v) && weighs(v.weight))
    };
    let stable = status.stable.as_ref();
    let previous = status.previous.as_ref();
    // What bakes is in charge.
    let canary = status.canary.as_ref().filter(|c| previous.is_none() && c.weight > 0);
    stable.is_none_or(|stable| has(stable, VariantRole::Stable, &|_| true))
        && previous.is_none_or(|previous| has(previous, VariantRole::Previous, &|_| true))
        && canary.is_none_or(|c| has(&c.variant, VariantRole::Canary, &|w| w == c.weight))
        && variants.iter().map(|v| v.weight).sum::<i32>() == 100
        && variants.iter().all(|entry| is_explained(entry, status))
        && variants
            .iter()
            .enumerate()
            .all(|(place, entry)| variants.iter().take(place).all(|other| other.role != entry.role))
}

/// Whether a status says why somebody gets this variant.
fn is_explained(entry: &RoutedVariant, status: &PromptReleaseStatus) -> bool {
    let of = |variant: Option<&VariantRef>| variant.is_some_and(|v| v.revision == entry.revision);
    match entry.role {
        VariantRole::Stable => of(status.stable.as_ref()),
        VariantRole::Previous => of(status.previous.as_ref()),
        VariantRole::Canary | VariantRole::Shadow => {
            of(status.canary.as_ref().map(|canary| &canary.variant))
        }
    }
}

/// Whether what `note` would have serve again is what the status knows to have failed.
pub fn serves_what_failed(note: &Remembered, status: &PromptReleaseStatus) -> bool {
    let serves = &note.goes_on_with().revision;
    status.failed_revision.as_deref().is_some_and(|failed| is_one(serves, failed))
}

/// The operator was killed between the note of a promotion and its status: the promotion is
/// decided again. It is the very next change of routing; a canary of a backup has had others since.
fn is_unwritten_promotion(note: &Remembered, status: &PromptReleaseStatus) -> bool {
    let canary = status.canary.as_ref().map(|canary| &canary.variant.revision);
    note.generation == status.routing.generation.saturating_add(1)
        && canary.is_some_and(|canary| is_one(canary, &note.stable.revision))
}

/// Whether both name what serves and what failed.
fn says_the_same(note: &Remembered, status: &PromptReleaseStatus) -> bool {
    let stable = status.stable.as_ref();
    stable.is_some_and(|stable| is_one(&note.stable.revision, &stable.revision))
        && match (&note.failed, &status.failed_revision) {
            (Some(noted), Some(known)) => is_one(noted, known),
            (None, None) => true,
            _ => false,
        }
}

/// The revision that stays out when `status` gives way to `note`. One that only the status knows
/// does, too: no note ends a failure.
pub fn failed(note: &Remembered, status: &PromptReleaseStatus) -> Option<String> {
    note.failed.clone().or_else(|| status.failed_revision.clone())
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
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::api::prompt_release::{CanaryStatus, HandledRequest, Routing, VariantRef};

    fn variant(revision: &str) -> VariantRef {
        VariantRef { revision: revision.into(), ..VariantRef::default() }
    }

    fn entry(revision: &str, outcome: Outcome) -> HistoryEntry {
        HistoryEntry {
            variant: variant(revision),
            outcome,
            reason: String::new(),
            message: String::new(),
            at: Timestamp::UNIX_EPOCH,
            requests: vec![],
            evidence: vec![],
        }
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
        status.history.push(entry("b", Outcome::RolledBack));
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
        assert!(!more(&note("b", None, 5), OWN, &status));
        // It is the very next change of routing: others have come since.
        assert!(more(&note("b", None, 6), OWN, &status), "the status was put back");
        let restored = Object { uid: Some("of now"), ..OWN };
        let status = PromptReleaseStatus { uid: Some("own".into()), ..status };
        assert!(more(&note("b", None, 5), restored, &status), "it is a backup");
    }

    #[test]
    fn a_note_of_another_object_never_goes_before_a_status_of_this_one() {
        let other = |note: Remembered| Remembered { uid: Some("other".into()), ..note };
        let first = entry("a", Outcome::Promoted);
        let status = |uid: Option<&str>| PromptReleaseStatus {
            uid: uid.map(str::to_owned),
            history: vec![first.clone()],
            ..serves("a", None, 9)
        };
        let (hour, own) = (SignedDuration::from_hours(1), Object { ..OWN });
        let younger = Object { created: OWN.created + hour, ..OWN };
        for (uid, object, counts) in [
            (Some("own"), own, false),
            // It goes on from what an object before it has done.
            (Some("own"), younger, false),
            (Some("of before"), own, true),
            // Nobody wrote whose it is: what it tells is from before the object, or is not.
            (None, own, false),
            (None, younger, true),
        ] {
            for noted in [note("b", None, 93), note("a", Some("c"), 93), note("b", Some("c"), 3)] {
                let status = status(uid);
                assert_eq!(more(&other(noted.clone()), object, &status), counts, "{uid:?}");
                assert!(more(&noted, object, &status), "this object's own");
                let notes = [other(noted)];
                let told = told(&notes, object, &status, "route").map(|n| &*n.stable.revision);
                let is_told = !counts && notes[0].generation == 93;
                assert_eq!(told, Some("b").filter(|b| is_told && notes[0].stable.revision == *b));
            }
        }
        // What this object noted counts also beside a later one of another.
        let notes = [other(note("c", None, 93)), note("b", None, 10)];
        let found = later(&notes, own, &status(Some("own")), "route", Timestamp::UNIX_EPOCH);
        assert_eq!(found.map(|note| note.stable.revision).as_deref(), Some("b"));
    }

    #[test]
    fn what_a_note_says_has_failed_serves_by_another_one_only_if_it_was_promoted_later() {
        let at = |second| Timestamp::from_second(second).unwrap();
        // In its first life "a" served. In its second one it failed beside "c".
        let mut first = note("a", None, 900);
        first.history = vec![HistoryEntry { at: at(10), ..entry("a", Outcome::Initial) }];
        let mut second = note("c", Some("a"), 5);
        second.history = vec![HistoryEntry { at: at(20), ..entry("a", Outcome::RolledBack) }];
        let noted = |note: &Remembered, uid: Option<&str>, second: Option<i64>| Remembered {
            uid: uid.map(str::to_owned),
            noted_at: second.map(at),
            ..note.clone()
        };
        let ahead = |note: &Remembered| {
            let mut ahead = note.clone();
            ahead.history.iter_mut().for_each(|entry| entry.at = at(1_000_000));
            noted(&ahead, Some("first"), Some(1_000_000))
        };
        let last = |notes: Vec<Remembered>| {
            let last = last_known(notes, |note| note, at(100)).unwrap();
            last.stable.revision
        };
        for first in [
            noted(&first, Some("first"), Some(11)),
            ahead(&first),
            // As an earlier version wrote them, and with a clock that was ahead of all notes.
            noted(&first, None, None),
            noted(&first, Some("first"), Some(50)),
        ] {
            for second in [noted(&second, Some("second"), Some(21)), noted(&second, None, None)] {
                let at = format!("{first:?} {second:?}");
                assert_eq!(last(vec![first.clone(), second.clone()]), "c", "{at}");
                assert_eq!(last(vec![second, first.clone()]), "c", "{at}");
            }
        }
        // It was tried again, and promoted.
        let mut third = note("a", None, 9);
        third.history = vec![HistoryEntry { at: at(30), ..entry("a", Outcome::Promoted) }];
        let third = noted(&third, Some("third"), Some(31));
        let second = noted(&second, Some("second"), Some(21));
        assert_eq!(last(vec![second.clone(), third.clone()]), "a");
        // What another route or another revision has to do with it is nothing.
        let elsewhere = Remembered { route: "other".into(), ..second.clone() };
        assert_eq!(last(vec![elsewhere, noted(&first, Some("first"), Some(50))]), "a");
        let of_another = Remembered { failed: Some("d".into()), ..second };
        assert_eq!(last(vec![of_another, noted(&first, Some("first"), Some(50))]), "a");
    }

    #[test]
    fn a_note_that_is_later_only_because_of_another_one_knows_no_more() {
        let noted = Remembered { status_generation: Some(9), ..note("a", Some("b"), 94) };
        let mut status = serves("a", None, 9);
        status.history.push(entry("b", Outcome::RolledBack));
        assert!(!more(&noted, OWN, &status), "somebody asked for a retry");
        assert!(more(&Remembered { status_generation: None, ..noted }, OWN, &status));
    }

    #[test]
    fn no_note_ends_a_failure_or_has_serve_again_what_failed() {
        let known = serves("a", Some("b"), 2);
        let of = |note: &Remembered| failed(note, &known);
        assert_eq!(of(&note("a", Some("c"), 9)).as_deref(), Some("c"));
        assert_eq!(of(&note("d", None, 9)).as_deref(), Some("b"));
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
        assert_eq!(of(&retried).as_deref(), Some("b"), "somebody asks again");
        let backup = PromptReleaseStatus { uid: Some("of before".into()), ..known.clone() };
        for status in [known, backup] {
            assert!(!more(&note("b", None, 9), OWN, &status));
            assert!(!more(&note("b", Some("c"), 9), OWN, &status));
            assert!(more(&note("d", None, 9), OWN, &status));
        }
    }
}
