//! A route that a release of another namespace served last.
//!
//! An owner may be away for a moment: `kubectl replace --force`, delete and apply, a sync
//! that replaces. Whoever waits in another namespace may write its own annotations, and may
//! have the same content today and another one tomorrow. So neither an equal revision nor an
//! approval gives it the route before the owner has been gone for [`OWNER_KEEPS_ROUTE`]. A
//! release of the owner's own namespace is not concerned: who may create it there may also
//! edit the owner.

use jiff::{SignedDuration, Timestamp};

use super::{draft::Draft, reasons, requests};
use crate::{
    api::{conditions::Readiness, prompt_release::Phase},
    prompt::short,
    rollout::snapshot::ServedBefore,
};

/// A release that is gone for less than this is away for a moment: longer than a
/// reinstallation or a pipeline that deletes, builds and applies, and short beside the 7 days
/// for which a release is remembered.
pub const OWNER_KEEPS_ROUTE: SignedDuration = SignedDuration::from_hours(1);

/// When to look again while it is not noted yet since when the owner is gone.
const UNNOTED: SignedDuration = SignedDuration::from_secs(5);

impl ServedBefore {
    /// From when on an approval in another namespace counts; none when it is not known yet
    /// since when the owner is gone.
    pub fn kept_until(&self) -> Option<Timestamp> {
        let since = self.since?;
        Some(since.checked_add(OWNER_KEEPS_ROUTE).unwrap_or(Timestamp::MAX))
    }
}

/// Holds a release that would go on with what it served before. A first release is held when
/// it could serve at all (`idle::first_release`).
pub(super) fn keeps_the_route(draft: &mut Draft<'_>) -> bool {
    let Some(before) = draft.snapshot.served_elsewhere() else { return false };
    // A canary that ran on the route before begins anew.
    draft.leave_route();
    let remembered = draft.snapshot.remembered.as_ref().map(|note| note.goes_on_with());
    let goes_on_with = remembered.or(draft.status.stable.as_ref());
    let Some(revision) = goes_on_with.map(|stable| stable.revision.clone()) else { return false };
    holds(draft, before, &revision)
}

/// Whether `revision` waits: until the owner has been gone for long enough, and then for an
/// approval.
pub(super) fn holds(draft: &mut Draft<'_>, before: &ServedBefore, revision: &str) -> bool {
    let until = before.kept_until();
    let is_over = until.is_some_and(|until| until <= draft.now);
    let from = match until {
        Some(until) => format!("from {until:.0} on"),
        None => "an hour after the operator has noted that it is gone".to_owned(),
    };
    let release = &before.release;
    if !is_over {
        let why = format!(
            "the route was served by {release} of another namespace, which keeps it for a while: \
             ask again {from}"
        );
        requests::refuse_all(draft, &requests::APPROVALS, &why);
    } else if draft.snapshot.status.conditions.is_empty() {
        // It may be a copy of what somebody asked for in another namespace.
        let why = "it was there before anybody could know that the release waits for the route: \
                   look at what the release says, and ask again";
        requests::refuse_all(draft, &requests::APPROVALS, why);
    } else if requests::take_approval(draft, revision).is_some() {
        return false;
    }
    if until.is_none() {
        draft.wake(draft.now + UNNOTED);
    }
    let since = before.since.map_or_else(String::new, |since| format!(" since {since:.0}"));
    let failed = before.failed.as_deref() == Some(revision);
    let failed = if failed { ", and failed there" } else { "" };
    let compared = if before.revision == revision {
        String::new()
    } else {
        format!(", so {} can not be compared with it{failed}", short(revision))
    };
    let revision = short(revision);
    let what_to_do = if is_over {
        format!("approve {revision} to give it to all users of the route")
    } else {
        format!(
            "that release has the route again when it is back; an approval of {revision} counts {from}"
        )
    };
    let forget = match &before.forget {
        Some(command) if !is_over => format!("; to give the route away at once: {command}"),
        _ => String::new(),
    };
    let message = format!(
        "the route was served by {release} of another namespace with {}, which is \
         gone{since}{compared}: {what_to_do}{forget}",
        short(&before.revision)
    );
    draft.status.phase = Phase::Held;
    draft.say_as(Readiness::Stalled, reasons::FIRST_RELEASE_HELD, message);
    true
}
