//! What must hold after every decision. Timelines, property tests and the end-to-end
//! tests check this one list.

use super::{
    snapshot::{Action, Plan, Snapshot},
    stale,
};
use crate::api::{
    CanaryPolicySpec,
    prompt_release::{
        CanaryStatus, HandledRequest, HistoryEntry, PromptReleaseStatus, VariantRole,
    },
};

/// Every invariant that the step from `snapshot.status` to `plan.status` breaks.
pub fn broken(snapshot: &Snapshot, plan: &Plan) -> Vec<String> {
    let (before, after) = (&snapshot.status, &plan.status);
    let mut broken = vec![];
    let mut check = |holds: bool, what: &str| {
        if !holds {
            broken.push(what.to_owned());
        }
    };
    let variants = &after.routing.variants;
    check(
        variants.is_empty() || variants.iter().map(|v| v.weight).sum::<i32>() == 100,
        "weights sum to 100",
    );
    check(variants.iter().all(|v| (0..=100).contains(&v.weight)), "weights are percentages");
    check(canary_within_step(snapshot, after), "the canary gets no more than its step allows");
    check(
        routing_unchanged(before, after) || exposed_are_ready(snapshot, after),
        "no weight and no copies are given to a canary that is not ready",
    );
    check(
        shadow_within_step(snapshot, after),
        "a shadow gets no weight, and copies only in its step",
    );
    let failed = after.failed_revision.as_deref();
    check(
        failed.is_none_or(|f| variants.iter().all(|v| v.revision != f)),
        "a revision that failed is not in routing",
    );
    check(
        no_silent_second_chance(snapshot, after),
        "a failed revision needs a request to come back",
    );
    check(before.stable.is_none() || after.stable.is_some(), "stable is never empty once set");
    check(
        snapshot.route_held_by.is_some()
            || snapshot.served_elsewhere().is_some()
            || snapshot
                .remembered
                .as_ref()
                .is_none_or(|r| after.stable.as_ref() == Some(r.goes_on_with())),
        "what served before the status was lost serves on",
    );
    check(
        variants.is_empty() || snapshot.route_held_by.is_none(),
        "what has not got the route serves nothing",
    );
    check(
        variants.is_empty() || was_given_by(snapshot, after),
        "a route goes to another namespace by an approval that its owner had time to come back before",
    );
    check(after.routing.generation >= before.routing.generation, "generations never go back");
    check(
        before.routing.variants == after.routing.variants
            || after.routing.generation > before.routing.generation,
        "another routing is another generation",
    );
    check(history_only_grows(snapshot, after), "history only grows until its bound");
    check(
        after.analysis.iter().all(|m| m.looks.windows(2).all(|w| w[0] < w[1])),
        "no look is taken twice, so no error is spent twice",
    );
    check(stopped_time_counts_for_nothing(before, after), "stopped time counts for no deadline");
    let known = [after.stable.as_ref(), after.previous.as_ref()].into_iter().flatten();
    let known: Vec<&str> = known
        .chain(after.canary.as_ref().map(|canary| &canary.variant))
        .map(|variant| variant.revision.as_str())
        .collect();
    check(
        after.stable.is_none() || variants.iter().all(|v| known.contains(&v.revision.as_str())),
        "what is in routing serves, served before the bake, or is judged",
    );
    check(
        after.stable.as_ref().is_none_or(|s| {
            variants.is_empty()
                || variants
                    .iter()
                    .any(|v| v.revision == s.revision && v.role == VariantRole::Stable)
        }),
        "stable is in routing",
    );
    broken
}

/// The route that a release of another namespace served last was given to this one.
fn was_given_by(snapshot: &Snapshot, after: &PromptReleaseStatus) -> bool {
    let Some(before) = snapshot.served_elsewhere() else { return true };
    let gives = |handled: &HandledRequest| {
        handled.accepted
            && (handled.action == Action::Approve.as_str()
                || handled.action == Action::Promote.as_str())
            && before.kept_until().is_some_and(|until| until <= handled.at)
    };
    after.requests.iter().any(gives)
}

fn routing_unchanged(before: &PromptReleaseStatus, after: &PromptReleaseStatus) -> bool {
    before.routing.generation == after.routing.generation
}

/// The policy that the canary runs under.
fn policy_of<'a>(snapshot: &'a Snapshot, canary: &CanaryStatus) -> Option<&'a CanaryPolicySpec> {
    let started_now = snapshot.status.canary.as_ref().map(|c| &c.policy) != Some(&canary.policy);
    if started_now { snapshot.policy.as_ref().ok() } else { snapshot.running_policy.as_deref() }
}

/// Whoever gets users or copies can answer.
fn exposed_are_ready(snapshot: &Snapshot, after: &PromptReleaseStatus) -> bool {
    let on_trial = after.routing.variants.iter().filter(|v| match v.role {
        VariantRole::Canary => v.weight > 0,
        VariantRole::Shadow => true,
        VariantRole::Stable | VariantRole::Previous => false,
    });
    on_trial.map(|v| &v.revision).all(|revision| snapshot.why_not_ready(revision).is_none())
}

fn canary_within_step(snapshot: &Snapshot, after: &PromptReleaseStatus) -> bool {
    let Some(canary) = after.canary.as_ref().filter(|_| after.previous.is_none()) else {
        return after.routing.variants.iter().all(|v| v.role != VariantRole::Canary);
    };
    let Some(policy) = policy_of(snapshot, canary) else { return true };
    let step = usize::try_from(canary.step).unwrap_or(usize::MAX);
    let allowed = policy.steps.iter().take(step.saturating_add(1)).filter_map(|s| s.weight).max();
    after
        .routing
        .variants
        .iter()
        .filter(|v| v.role == VariantRole::Canary)
        .all(|v| v.weight <= allowed.unwrap_or(0) && v.weight == canary.weight)
}

/// Copies are sent only in a step that asks for them, only to its canary, and no user
/// is: so after a failure, an abort or a promotion there are none.
fn shadow_within_step(snapshot: &Snapshot, after: &PromptReleaseStatus) -> bool {
    let mut variants = after.routing.variants.iter();
    if !variants.clone().any(|v| v.role == VariantRole::Shadow) {
        return variants.all(|v| v.copies.is_none());
    }
    let Some(canary) = after.canary.as_ref().filter(|_| after.previous.is_none()) else {
        return false;
    };
    let Some(policy) = policy_of(snapshot, canary) else { return true };
    let step = usize::try_from(canary.step).ok().and_then(|i| policy.steps.get(i));
    let Some(shadow) = step.and_then(|s| s.shadow.as_ref()) else { return false };
    canary.weight == 0
        && variants.all(|v| match v.role {
            VariantRole::Stable => v.weight == 100 && v.copies.is_none(),
            VariantRole::Shadow => {
                (v.weight, v.copies) == (0, Some(shadow.percent))
                    && v.revision == canary.variant.revision
            }
            VariantRole::Canary | VariantRole::Previous => false,
        })
}

/// A revision that failed becomes a canary or stable again only after a retry, or
/// after the spec was seen to name something else.
fn no_silent_second_chance(snapshot: &Snapshot, after: &PromptReleaseStatus) -> bool {
    // What was a first release until more became known is no release while it has no route.
    let serves = snapshot.status.stable.is_none() || after.routes();
    let lost = snapshot.remembered.as_ref().filter(|_| serves);
    let copied = snapshot.copied.as_ref().filter(|_| snapshot.status.history.is_empty());
    let known = copied.map_or(&snapshot.status.failed_revision, |copied| &copied.failed);
    let failed = match lost {
        Some(remembered) => stale::failed(remembered, &snapshot.status),
        None => known.clone(),
    };
    let Some(failed) = failed else { return true };
    let back = [after.canary.as_ref().map(|c| &c.variant), after.stable.as_ref()]
        .into_iter()
        .flatten()
        .any(|v| v.revision == failed);
    let retried = snapshot.requests.iter().any(|r| {
        r.action == Action::Retry && r.revision().len() >= 4 && failed.starts_with(r.revision())
    });
    !back || retried
}

fn stopped_time_counts_for_nothing(
    before: &PromptReleaseStatus,
    after: &PromptReleaseStatus,
) -> bool {
    let (Some(before), Some(after)) = (&before.canary, &after.canary) else { return true };
    before.variant != after.variant
        || before.started_at != after.started_at
        || before.clock.stopped.is_none()
        || before.clock.canary == after.clock.canary
}

/// What is remembered from before the status is put where it belongs by its time.
fn history_only_grows(snapshot: &Snapshot, after: &PromptReleaseStatus) -> bool {
    let (old, new) = (&snapshot.status.history, &after.history);
    if snapshot.remembered.is_some() {
        let is_within = |kept: &[HistoryEntry]| {
            let mut new = new.iter();
            kept.iter().all(|entry| new.any(|other| other == entry))
        };
        // One entry may be added of a bake that is cut short, and one of what failed.
        return new.len() <= 20
            && (0..=old.len().min(2))
                .any(|dropped| (dropped == 0 || new.len() == 20) && is_within(&old[dropped..]));
    }
    new.len() <= 20
        && (0..=old.len())
            .any(|dropped| (dropped == 0 || new.len() == 20) && new.starts_with(&old[dropped..]))
}
