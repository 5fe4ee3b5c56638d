//! What was served before a first release became known only after it, and the release does not
//! go on from that: the note is about an earlier route, or it came too late. To take a route
//! from users would be worse than to go on, so the release goes on serving, and people are told.

use super::{draft::Draft, reasons};
use crate::{
    api::{
        conditions::{self, types},
        prompt_release::VariantRef,
    },
    prompt::{short, stands_for},
    rollout::{first::only_first, snapshot::ServedBefore},
};

/// What the Ready condition says of it.
pub(super) fn told(draft: &Draft<'_>) -> String {
    let Some(before) = draft.snapshot.known_late() else { return String::new() };
    let Some(stable) = draft.status.stable.as_ref().filter(|_| draft.status.routes()) else {
        return String::new();
    };
    if only_first(&draft.status).is_none() {
        return told_of_another(draft, before, stable);
    }
    let (serves, served) = (short(&stable.revision), short(&before.revision));
    let is_it = |failed: &&String| stands_for(failed, &stable.revision);
    let failed = before.failed.as_ref().filter(is_it);
    let failed = failed.map(|_| format!(", and that {serves} failed there")).unwrap_or_default();
    format!(
        "; ReleaseSnapshots that came after the first release say that its users had {served} \
         before{failed}. {serves} goes on serving all users: to go back name {served} in the spec, \
         which starts a canary"
    )
}

/// The release has done more since: the ReleaseSnapshots are of an earlier life of its name, or of
/// another cluster.
fn told_of_another(draft: &Draft<'_>, before: &ServedBefore, stable: &VariantRef) -> String {
    // Who names it in the spec knows.
    let named = draft.snapshot.target.as_ref().ok().map(|target| &target.revision);
    let is_it = |revision: &String| stands_for(&before.revision, revision);
    if !before.too_late || is_it(&stable.revision) || named.is_some_and(is_it) {
        return String::new();
    }
    let served = short(&before.revision);
    let failed = before.failed.as_deref().map(|f| format!(", and that {} failed", short(f)));
    format!(
        "; ReleaseSnapshots of another object of this name, deleted since or of another cluster, \
         say that {served} served{}. They count for nothing here: to go to {served} name it in the \
         spec, which starts a canary",
        failed.unwrap_or_default()
    )
}

/// Says it once as an Event.
pub(super) fn tell(draft: &mut Draft<'_>) {
    let told = told(draft);
    let Some(note) = told.strip_prefix("; ").filter(|_| !draft.snapshot.was_not_first()) else {
        return;
    };
    let ready = conditions::find(&draft.status.conditions, types::READY);
    if ready.is_none_or(|ready| !ready.message.contains(note)) {
        draft.announce(true, reasons::KNOWN_TOO_LATE, note);
    }
}
