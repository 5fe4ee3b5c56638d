//! A release that somebody has deleted and that is still there, because a finalizer holds the
//! object. Users get what it routes until it is gone, so what runs is judged to its end.
//! Nothing new starts.

use super::{draft::Draft, reasons};
use crate::{
    api::{
        conditions::{self, Readiness},
        prompt_release::VariantRef,
    },
    prompt::short,
    rollout::snapshot::{Deleting, Target},
};

impl Deleting {
    /// The sentence that says since when the release is being deleted, and who holds its object.
    fn say(&self) -> String {
        let Self { since, finalizers } = self;
        let holders: Vec<String> = finalizers
            .iter()
            .map(|finalizer| match finalizer.as_str() {
                // Kubernetes sets this one for a deletion with --cascade=foreground.
                "foregroundDeletion" => format!("{finalizer} (objects that it owns)"),
                _ => finalizer.clone(),
            })
            .collect();
        let held = match holders.as_slice() {
            [] => "nothing holds it any more".to_owned(),
            [one] => format!("the finalizer {one} holds it"),
            several => format!("the finalizers {} hold it", several.join(", ")),
        };
        format!(
            "the release is being deleted (since {since:.0}), and users get it until it is gone: {held}"
        )
    }
}

/// The end of every message of a release that is being deleted: that it is, and who holds it.
pub(super) fn told(draft: &Draft<'_>) -> String {
    draft.snapshot.deleting.as_ref().map(|d| format!("; {}", d.say())).unwrap_or_default()
}

/// Says on the `Deleting` condition that users still get the release, and once as an Event.
pub(super) fn tell(draft: &mut Draft<'_>) {
    let type_ = conditions::types::DELETING;
    let Some(deleting) = &draft.snapshot.deleting else {
        // A status that was restored from a backup may still say it.
        return draft.status.conditions.retain(|condition| condition.type_ != type_);
    };
    let message = deleting.say();
    if conditions::find(&draft.status.conditions, type_).is_none() {
        draft.announce(true, reasons::BEING_DELETED, message.clone());
    }
    let said = (reasons::BEING_DELETED, message.as_str());
    let generation = draft.snapshot.generation;
    conditions::set_one(&mut draft.status.conditions, type_, true, said, generation, draft.now);
}

/// The spec names another revision, which is not worth a canary any more.
pub(super) fn starts_nothing(draft: &mut Draft<'_>, stable: &VariantRef, target: &Target) {
    let message = format!(
        "{} on {} serves; no canary of {} starts",
        stable.prompt,
        stable.backend,
        short(&target.revision)
    );
    draft.say_as(Readiness::NotReady, reasons::BEING_DELETED, message);
}
