//! Snapshots that are gone together with what they were made of: nobody can make them again,
//! so a person is told, before a gateway that starts can not serve them.

use super::{draft::Draft, reasons};
use crate::{api::conditions, prompt::short, rollout::snapshot::LostSnapshot};

/// What a person reads of it, and is to do.
fn message(lost: &LostSnapshot) -> String {
    let LostSnapshot { name, variant, why, .. } = lost;
    let what = what(lost);
    format!(
        "the ReleaseSnapshot {name} of {} ({} on {}) {what}: {why}. \
         Of what serves, gateways that have it go on, and one that starts can not serve it; a canary gets \
         no users. Put back the \
         ReleaseSnapshot or what it was made of, or release another revision. After an upgrade, \
         see whether `serinus convert-snapshots` was run",
        short(&variant.revision),
        variant.prompt,
        variant.backend,
    )
}

/// What is wrong with it.
pub(super) fn what(lost: &LostSnapshot) -> &'static str {
    if lost.unread { "can not be read" } else { "is gone and can not be written again" }
}

/// Says on a condition of its own, in whatever phase the release is, that a snapshot is lost,
/// and when that is over.
pub(super) fn tell(draft: &mut Draft<'_>) {
    let type_ = conditions::types::SNAPSHOTS_KEPT;
    if let Some(lost) = draft.snapshot.lost.first() {
        draft.warn(type_, false, (reasons::SNAPSHOT_LOST, &message(lost)));
    } else if conditions::find(&draft.status.conditions, type_).is_some() {
        let message = "there is a snapshot of all that serves or runs";
        draft.warn(type_, true, (reasons::SNAPSHOT_RESTORED, message));
    }
}
