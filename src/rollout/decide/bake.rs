//! Promotion, and the time after it in which the previous variant stays warm.
//!
//! While baking, the previous variant keeps a small share of the traffic
//! (`bake.holdback`), so that the comparison stays a concurrent one and a provider's
//! incident is not taken for the new variant's fault.

use super::{canary::settings, draft::Draft, look, reasons, requests};
use crate::{
    analysis::judge,
    api::{
        CanaryPolicySpec,
        prompt_release::{Outcome, Phase, VariantRole, Verdict},
    },
    rollout::snapshot::Action,
};

/// Puts the canary in charge.
pub(super) fn promote(draft: &mut Draft<'_>, policy: &CanaryPolicySpec, message: &str) {
    let Some(mut canary) = draft.status.canary.take() else { return };
    let Some(old) = draft.status.stable.take() else { return };
    let new = canary.variant.clone();
    draft.remember(
        new.clone(),
        Outcome::Promoted,
        reasons::PROMOTED,
        message,
        canary.approvals.clone(),
    );
    draft.announce(false, reasons::PROMOTED, format!("{} serves now: {message}", new.revision));
    draft.status.stable = Some(new.clone());
    draft.status.phase = Phase::Promoting;
    draft.status.analysis = judge::carry_over(&draft.status.analysis);
    if policy.bake.duration.0.is_zero() {
        draft.status.analysis.clear();
        draft.route(&[(&new, VariantRole::Stable, 100)], settings(policy));
        draft.prune();
    } else {
        let held = policy.bake.holdback;
        draft.route(
            &[(&new, VariantRole::Stable, 100 - held), (&old, VariantRole::Previous, held)],
            settings(policy),
        );
        draft.status.previous = Some(old);
        canary.step = i32::try_from(policy.steps.len()).unwrap_or(i32::MAX);
        canary.weight = 100 - held;
        canary.entered_at = draft.now;
        canary.confirmed_at = None;
        canary.last_data_at = None;
        canary.analysed_at = None;
        canary.sampled_at = None;
        canary.held = None;
        draft.status.canary = Some(canary);
    }
    draft.say(reasons::PROMOTED, message);
    draft.wake(draft.now + policy.analysis.interval.signed());
}

/// Watches the promoted variant until its time is over.
pub(super) fn watch(draft: &mut Draft<'_>) {
    let Some(canary) = draft.status.canary.clone() else {
        return end(draft, "the bake's record is missing");
    };
    let revision = canary.variant.revision.clone();
    if let Some(request) = requests::take(draft, Action::Abort, &revision) {
        let message = format!("aborted at the request of {}", request.by);
        return draft.withdraw(Outcome::RolledBack, reasons::ABORTED, &message, false);
    }
    if let Ok(target) = &draft.snapshot.target
        && target.revision != revision
    {
        let previous = draft.status.previous.as_ref().map(|p| p.revision.as_str());
        if previous == Some(target.revision.as_str()) {
            let message = "the spec names the previous variant again";
            return draft.withdraw(Outcome::Withdrawn, reasons::BACK_TO_STABLE, message, true);
        }
        return end(draft, "the spec names another variant");
    }
    let Some(policy) = draft.snapshot.running_policy.clone() else {
        return end(draft, "the saved copy of the policy is missing");
    };
    draft.wake(draft.now + policy.analysis.interval.signed());
    look::confirm(draft);
    if look::judge(draft, &policy) == Verdict::Fail {
        let message = look::failure(draft);
        return draft.withdraw(Outcome::RolledBack, reasons::METRIC_FAILED, &message, false);
    }
    let Some(since) = draft.status.canary.as_ref().and_then(|c| c.confirmed_at) else {
        let message = format!("{} gateways follow the promotion", draft.status.routing.observed_by);
        return draft.say(reasons::WAITING_FOR_GATEWAYS, message);
    };
    if draft.elapsed_since(since) >= policy.bake.duration.0 {
        return end(draft, "nothing was found while baking");
    }
    draft.status.phase = Phase::Baking;
    draft.say(
        reasons::BAKING,
        format!(
            "{revision} is still compared with the previous variant, for {}",
            policy.bake.duration
        ),
    );
}

fn end(draft: &mut Draft<'_>, message: &str) {
    draft.status.previous = None;
    draft.status.canary = None;
    draft.status.analysis.clear();
    draft.route_stable_only();
    draft.status.phase = Phase::Promoting;
    draft.announce(false, reasons::BAKED, message.to_owned());
    draft.say(reasons::BAKED, message);
    draft.prune();
    draft.wake_now();
}
