//! What people ask for by annotation. A request names the revision that it is about,
//! so that a late click never hits a newer one; it is carried out once. What is not possible
//! now is refused and not kept: an approval is about evidence that a person has seen, and
//! one that was clicked twice must not skip the next approval step.

use super::{draft::Draft, reasons};
use crate::{
    api::{
        conditions::truncate,
        prompt_release::{HandledRequest, Phase},
        snapshot::Remembered,
    },
    rollout::{
        revisions::{self, known_revisions},
        snapshot::{Action, Request},
    },
};

/// Takes the pending request of `action` for `revision`, if there is one, and notes
/// that it was carried out.
pub(super) fn take(
    draft: &mut Draft<'_>,
    action: Action,
    revision: &str,
) -> Option<HandledRequest> {
    let request = pending(draft, action)?;
    let named = named(draft, request.revision()).ok()?;
    (named == revision).then(|| note(draft, &request, &named, None))
}

/// What a person asks with who gives a route to a revision that nothing compares.
pub(super) const APPROVALS: [Action; 2] = [Action::Approve, Action::Promote];

/// Takes a pending approval of `revision`, in either word.
pub(super) fn take_approval(draft: &mut Draft<'_>, revision: &str) -> Option<HandledRequest> {
    APPROVALS.into_iter().find_map(|action| take(draft, action, revision))
}

/// The revision of this release that `text` begins, or why there is none.
fn named(draft: &Draft<'_>, text: &str) -> Result<String, String> {
    let mut known = known_revisions(&draft.status);
    known.extend(draft.snapshot.target.as_ref().ok().map(|t| t.revision.as_str()));
    known.extend(draft.snapshot.remembered.iter().map(|r| r.stable.revision.as_str()));
    revisions::named(&known, text).map_err(|why| format!("{why}{}", running(draft)))
}

fn running(draft: &Draft<'_>) -> String {
    match &draft.status.canary {
        Some(canary) => format!("; the running canary is {}", canary.variant.revision),
        None => "; no canary runs".to_owned(),
    }
}

/// Takes over what was handled before the status was lost: the annotations are restored
/// together with the object.
pub(super) fn recall(draft: &mut Draft<'_>) {
    if let Some(remembered) = &draft.snapshot.remembered {
        recall_from(draft, remembered);
    }
}

/// Takes over what `note` says was handled.
pub(super) fn recall_from(draft: &mut Draft<'_>, note: &Remembered) {
    let known = &mut draft.status.requests;
    for handled in &note.requests {
        known.retain(|known| known.action != handled.action || known.at >= handled.at);
        if known.iter().all(|known| known.action != handled.action) {
            known.push(handled.clone());
        }
    }
}

/// Notes every request for one of `actions` as refused: it is not carried out later, when
/// what keeps it from being possible is over.
pub(super) fn refuse_all(draft: &mut Draft<'_>, actions: &[Action], why: &str) {
    for action in actions {
        if let Some(request) = pending(draft, *action) {
            let named = named(draft, request.revision());
            let revision = named.unwrap_or_else(|_| request.revision().to_owned());
            refuse(draft, &request, &revision, why.to_owned());
        }
    }
}

/// Notes every request that nothing wanted, so that it is not tried again later.
pub(super) fn refuse_the_rest(draft: &mut Draft<'_>) {
    for action in Action::ALL {
        if let Some(request) = pending(draft, action) {
            let named = named(draft, request.revision());
            if action == Action::Approve && named.as_ref().is_ok_and(|named| awaited(draft, named))
            {
                // The approval step was reached by this very decision.
                draft.wake_now();
                continue;
            }
            let why = match &named {
                Ok(revision) => why_not(draft, action, revision),
                Err(why) => why.clone(),
            };
            let revision = named.unwrap_or_else(|_| request.revision().to_owned());
            refuse(draft, &request, &revision, why);
        }
    }
}

fn refuse(draft: &mut Draft<'_>, request: &Request, revision: &str, why: String) {
    let text = format!(
        "{} of {revision} by {} is refused and not kept: {why}",
        request.action.as_str(),
        request.by()
    );
    note(draft, request, revision, Some(why));
    draft.announce(true, reasons::REQUEST_IGNORED, text);
}

/// Whether an approval of this revision can be carried out by the next decision.
fn awaited(draft: &Draft<'_>, revision: &str) -> bool {
    draft.status.phase == Phase::AwaitingApproval
        && !draft.snapshot.spec.suspend
        && draft.status.canary.as_ref().is_some_and(|c| c.variant.revision == revision)
}

/// Why a request about a revision that is known is not possible now.
fn why_not(draft: &Draft<'_>, action: Action, revision: &str) -> String {
    let status = &draft.status;
    if action == Action::Retry && draft.snapshot.deleting.is_some() {
        return "the release is being deleted, so no canary starts".to_owned();
    }
    if action == Action::Retry {
        return match status.failed_revision.as_deref() {
            None => "no revision has failed".to_owned(),
            Some(failed) if failed != revision => format!("the one that failed is {failed}"),
            Some(_) => "the spec names another revision now, or a canary runs".to_owned(),
        };
    }
    let Some(canary) = status.canary.as_ref().filter(|c| c.variant.revision == revision) else {
        return format!("{revision} is not on its way{}", running(draft));
    };
    if draft.snapshot.spec.suspend {
        return "spec.suspend is true: set it to false and ask again".to_owned();
    }
    if let Some(held) = canary.held.as_deref().filter(|held| *held != reasons::INCONCLUSIVE) {
        return format!("the canary is held ({held}); ask again when that is over");
    }
    match action {
        _ if status.previous.is_some() => "it is promoted and bakes".to_owned(),
        Action::Approve => format!(
            "step {} waits for no approval; ask again when the phase is AwaitingApproval, or promote to skip the steps that are left",
            canary.step + 1
        ),
        _ => format!("the release is {:?}; ask again when that is over", status.phase),
    }
}

fn pending(draft: &Draft<'_>, action: Action) -> Option<Request> {
    let request = draft.snapshot.requests.iter().find(|r| r.action == action)?;
    let handled = draft.status.requests.iter().find(|h| h.action == action.as_str());
    (handled.is_none_or(|h| h.value != request.value)).then(|| request.clone())
}

fn note(
    draft: &mut Draft<'_>,
    request: &Request,
    revision: &str,
    refused: Option<String>,
) -> HandledRequest {
    let handled = HandledRequest {
        action: request.action.as_str().to_owned(),
        value: request.value.clone(),
        revision: revision.chars().take(64).collect(),
        by: request.by().chars().take(256).collect(),
        at: draft.now,
        accepted: refused.is_none(),
        message: truncate(&refused.unwrap_or_default(), 512),
    };
    draft.status.requests.retain(|h| h.action != handled.action);
    draft.status.requests.push(handled.clone());
    handled
}
