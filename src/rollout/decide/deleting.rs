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
    /// Since when it is being deleted, and who holds it.
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

/// What is told beside whatever else is so.
pub(super) fn told(draft: &Draft<'_>) -> String {
    draft.snapshot.deleting.as_ref().map(|d| format!("; {}", d.say())).unwrap_or_default()
}

/// Says once that users still get the release.
pub(super) fn tell(draft: &mut Draft<'_>) {
    let Some(deleting) = &draft.snapshot.deleting else { return };
    let type_ = conditions::types::DELETING;
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
