//! Which releases are not well. The Ready condition says it, but a canary on its way is not
//! ready either, and nothing is wrong with it.

use super::reasons;
use crate::{
    api::{
        PromptReleaseStatus,
        conditions::{self, Condition},
        prompt_release::Phase,
    },
    rollout::snapshot::Effect,
};

/// The Ready condition of a release that is not well: one that does not do what its spec asks
/// for, or waits for something that neither samples nor gateways bring.
pub fn problem(status: &PromptReleaseStatus) -> Option<&Condition> {
    let ready = conditions::find(&status.conditions, conditions::types::READY)?;
    let waits = matches!(status.phase, Phase::Initializing | Phase::Held)
        || ready.reason == reasons::SUSPENDED;
    let is_problem = ready.status == "False" || (ready.status == "Unknown" && waits);
    is_problem.then_some(ready)
}

/// Whether `effects` already announce that a release is `reason` now.
pub fn is_told(effects: &[Effect], reason: &str) -> bool {
    effects.iter().any(|effect| {
        let Effect::Announce { reason: told, .. } = effect else { return false };
        told == reason || (told == reasons::FIRST_RELEASE && reason == reasons::STABLE)
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        api::conditions::Readiness::{self, InProgress, NotReady, Ready, Stalled},
        rollout::{decide::reason_label, resolve},
    };

    fn status(phase: Phase, readiness: Readiness, reason: &str) -> PromptReleaseStatus {
        let mut status = PromptReleaseStatus { phase, ..PromptReleaseStatus::default() };
        let now = Timestamp::UNIX_EPOCH;
        conditions::set(&mut status.conditions, readiness, reason, "says why", 1, now);
        status
    }

    #[test]
    fn a_canary_on_its_way_is_no_problem_and_one_that_waits_for_somebody_is() {
        let well = [
            (Phase::Stable, Ready, reasons::STABLE),
            (Phase::Progressing, InProgress, reasons::ADVANCED),
            (Phase::Progressing, InProgress, reasons::WAITING_FOR_GATEWAYS),
            (Phase::AwaitingApproval, InProgress, reasons::AWAITING_APPROVAL),
            (Phase::RollingBack, InProgress, reasons::METRIC_FAILED),
            (Phase::Baking, InProgress, reasons::BAKING),
        ];
        for (phase, readiness, reason) in well {
            assert_eq!(problem(&status(phase, readiness, reason)), None, "{reason}");
        }
        let unwell = [
            (Phase::Pending, Stalled, "PromptNotFound"),
            (Phase::Pending, Stalled, reasons::ROUTE_TAKEN),
            (Phase::Pending, NotReady, reasons::SUSPENDED),
            (Phase::Stable, InProgress, reasons::SUSPENDED),
            (Phase::Initializing, InProgress, reasons::BACKEND_NOT_READY),
            (Phase::Held, Stalled, reasons::FIRST_RELEASE_HELD),
            (Phase::Held, InProgress, reasons::WAITING_FOR_GATEWAYS),
            (Phase::Stable, Stalled, "PolicyNotFound"),
            (Phase::Stable, NotReady, reasons::NOT_BUILT),
            (Phase::RolledBack, Stalled, reasons::METRIC_FAILED),
        ];
        for (phase, readiness, reason) in unwell {
            let status = status(phase, readiness, reason);
            assert_eq!(problem(&status).map(|ready| ready.reason.as_str()), Some(reason));
        }
        assert_eq!(problem(&PromptReleaseStatus::default()), None, "nobody has looked at it");
    }

    #[test]
    fn labels_are_words_of_ours_only() {
        for reason in reasons::REASONS.iter().chain(&resolve::REASONS) {
            assert_eq!(reason_label(reason), *reason);
        }
        assert_eq!(reason_label("a-reason-of-next-year"), "Other");
    }
}
