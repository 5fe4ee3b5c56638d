//! What people ask for by annotation. A request names the revision that it is about,
//! so that a late click never hits a newer one; it is carried out once.

use super::{draft::Draft, reasons};
use crate::{
    api::prompt_release::HandledRequest,
    rollout::snapshot::{Action, Request},
};

/// Takes the pending request of `action` for `revision`, if there is one, and notes
/// that it was carried out.
pub(super) fn take(
    draft: &mut Draft<'_>,
    action: Action,
    revision: &str,
) -> Option<HandledRequest> {
    let request = pending(draft, action)?;
    (request.revision() == revision).then(|| note(draft, &request, true))
}

/// Notes every request that nothing wanted, so that it is not tried again later.
pub(super) fn refuse_the_rest(draft: &mut Draft<'_>) {
    for action in Action::ALL {
        if let Some(request) = pending(draft, action) {
            note(draft, &request, false);
            let text = format!(
                "{} of {} by {} is not possible now: the release is {:?}",
                action.as_str(),
                request.revision(),
                request.by(),
                draft.status.phase
            );
            draft.announce(true, reasons::REQUEST_IGNORED, text);
        }
    }
}

fn pending(draft: &Draft<'_>, action: Action) -> Option<Request> {
    let request = draft.snapshot.requests.iter().find(|r| r.action == action)?;
    let handled = draft.status.requests.iter().find(|h| h.action == action.as_str());
    (handled.is_none_or(|h| h.value != request.value)).then(|| request.clone())
}

fn note(draft: &mut Draft<'_>, request: &Request, accepted: bool) -> HandledRequest {
    let handled = HandledRequest {
        action: request.action.as_str().to_owned(),
        value: request.value.clone(),
        revision: request.revision().chars().take(64).collect(),
        by: request.by().chars().take(256).collect(),
        at: draft.now,
        accepted,
    };
    draft.status.requests.retain(|h| h.action != handled.action);
    draft.status.requests.push(handled.clone());
    handled
}
