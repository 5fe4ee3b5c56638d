//! CanaryPolicy: what can be wrong with it is refused by the API server, except the texts
//! of queries, which are told on the condition. A release that runs with such a policy has
//! no data for that metric and holds. Whether the policy can decide is told as a warning.

use std::sync::Arc;

use kube::runtime::{Controller, controller::Action, reflector::Store};

use super::{
    Context, Reconciled,
    release::{Triggers, triggers::names_policy},
};
use crate::{
    analysis::plan::undecidable,
    api::{
        CanaryPolicy, CanaryPolicySpec,
        conditions::{self, ConditionedStatus, Readiness, types},
    },
    rollout::decidable,
    signals::{prometheus, watch::Touched},
};

/// Runs the controller until the process stops.
pub async fn run(
    store: Store<CanaryPolicy>,
    watch: Touched<CanaryPolicy>,
    triggers: Triggers,
    context: Arc<Context>,
) {
    let watch = triggers.tap(watch, names_policy);
    super::drive("CanaryPolicy", Controller::for_stream(watch, store), context, reconcile).await;
}

async fn reconcile(policy: Arc<CanaryPolicy>, context: Arc<Context>) -> Reconciled {
    let generation = policy.metadata.generation.unwrap_or_default();
    let old = policy.status.clone().unwrap_or_default();
    let told = conditions::find(&old.conditions, types::DECIDABLE);
    if old.observed_generation == generation && told.is_some() {
        return Ok(Action::await_change());
    }
    let mut status =
        ConditionedStatus { observed_generation: generation, conditions: old.conditions.clone() };
    let (ready, reason, message) = verdict(&policy.spec);
    let now = (context.clock)();
    conditions::set(&mut status.conditions, ready, reason, &message, generation, now);
    let finding = undecidable(&policy.spec);
    let (holds, told) = decidable(finding.as_deref());
    let conditions = &mut status.conditions;
    conditions::set_one(conditions, types::DECIDABLE, holds, told, generation, now);
    if status != old {
        let mut policy = (*policy).clone();
        policy.status = Some(status);
        context.cluster.write_status(&policy).await?;
    }
    Ok(Action::await_change())
}

fn verdict(policy: &CanaryPolicySpec) -> (Readiness, &'static str, String) {
    match prometheus::notes(policy) {
        Err(problem) => (Readiness::Stalled, "PrometheusQueryInvalid", problem),
        Ok(notes) => {
            let sentences = std::iter::once("the next canary can use it".to_owned()).chain(notes);
            (Readiness::Ready, "Valid", sentences.collect::<Vec<_>>().join("; "))
        }
    }
}
