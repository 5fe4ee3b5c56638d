//! What was served before a first release became known only after it, and the release does not
//! go on from that: the note is about an earlier route, or it came too late. To take a route
//! from users would be worse than to go on, so the release goes on serving, and people are told.

use super::{draft::Draft, reasons};
use crate::{
    api::conditions::{self, types},
    prompt::{short, stands_for},
    rollout::first::only_first,
};

/// What the Ready condition says of it, while the release has done nothing but serve its first
/// revision.
pub(super) fn told(draft: &Draft<'_>) -> String {
    let Some(before) = draft.snapshot.known_late() else { return String::new() };
    let goes_on = draft.status.routes() && only_first(&draft.status).is_some();
    let Some(stable) = draft.status.stable.as_ref().filter(|_| goes_on) else {
        return String::new();
    };
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
