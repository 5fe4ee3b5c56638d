//! What happens next to a release: a pure, total function of the world and the time.
//!
//! One call takes at most one step of the state machine; when there is more to do at
//! once, `wake_at` is now. The shell saves copies, writes the status, then tells
//! people: a crash between any two of these is repaired by the next call, because
//! everything is decided from the status that was written.

mod bake;
mod canary;
mod columns;
mod copied;
mod deleting;
mod draft;
mod elsewhere;
mod idle;
mod late;
mod look;
mod lost;
mod problem;
mod reasons;
mod requests;
mod shown;
mod step;

use jiff::Timestamp;

use self::draft::Draft;
use super::{
    snapshot::{Action, Plan, Snapshot},
    stale,
};
use crate::api::{PromptReleaseStatus, conditions::Readiness, prompt_release::Phase};

/// Another release has the route.
pub const ROUTE_TAKEN: &str = reasons::ROUTE_TAKEN;

pub use self::{
    draft::policy_digest,
    elsewhere::OWNER_KEEPS_ROUTE,
    problem::{is_told, problem},
    reasons::{REASONS, reason_label},
};

/// Whether a policy can decide, as a condition's status, reason and message.
pub fn decidable(undecidable: Option<&str>) -> (bool, (&str, &str)) {
    match undecidable {
        Some(finding) => (false, (reasons::CAN_NOT_DECIDE, finding)),
        None => {
            let message = "a canary like stable is likely to pass, a bad one to be found";
            (true, (reasons::CAN_DECIDE, message))
        }
    }
}

/// Decides what happens next.
pub fn decide(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut draft = Draft::new(snapshot, now);
    deleting::tell(&mut draft);
    requests::recall(&mut draft);
    copied::tell(&mut draft);
    if let Some(holder) = &snapshot.route_held_by {
        draft.refuse_route(holder);
        let why = format!("the route is held by the PromptRelease {holder}");
        requests::refuse_all(&mut draft, &Action::ALL, &why);
        return draft.finish();
    }
    if elsewhere::keeps_the_route(&mut draft) {
        requests::refuse_the_rest(&mut draft);
        return draft.finish();
    }
    draft.observe_gateways();
    lost::tell(&mut draft);
    late::tell(&mut draft);
    if let Some(awaited) = &snapshot.awaited {
        idle::wait_for(&mut draft, awaited);
    } else if let Some(remembered) = &snapshot.remembered {
        idle::go_on(&mut draft, remembered);
    } else if snapshot.was_not_first() {
        draft.leave_route();
        idle::first_release(&mut draft);
    } else if draft.status.stable.is_none() {
        idle::first_release(&mut draft);
    } else if is_cut(&draft.status) {
        idle::begin_again(&mut draft);
    } else if draft.status.previous.is_some() {
        bake::watch(&mut draft);
    } else if draft.status.canary.is_some() {
        canary::advance(&mut draft);
    } else {
        idle::settle_or_start(&mut draft);
    }
    requests::refuse_the_rest(&mut draft);
    draft.finish()
}

/// Whether a part of the status of a canary or of a bake was taken away by hand: its record, an entry
/// of its routing, or what it is compared with.
fn is_cut(status: &PromptReleaseStatus) -> bool {
    let (runs, bakes) = (status.canary.is_some(), status.previous.is_some());
    (runs || bakes) && (!runs || !stale::is_routed(status) || !stale::is_whole(status))
}

/// How each phase reads for kstatus.
fn readiness(phase: Phase) -> Readiness {
    match phase {
        Phase::Stable => Readiness::Ready,
        Phase::RolledBack => Readiness::Stalled,
        Phase::Pending => Readiness::NotReady,
        Phase::Initializing
        | Phase::Progressing
        | Phase::AwaitingApproval
        | Phase::Held
        | Phase::Promoting
        | Phase::Baking
        | Phase::RollingBack => Readiness::InProgress,
    }
}
