//! CanaryPolicy: everything that can be wrong with it is refused by the API server, so
//! a policy that exists can be used. Whether it can decide is told as a warning.

use std::sync::Arc;

use kube::runtime::{Controller, controller::Action, reflector::Store};

use super::{
    Context, Reconciled,
    release::{Triggers, triggers::names_policy},
};
use crate::{
    analysis::plan::undecidable,
    api::{
        CanaryPolicy,
        conditions::{self, ConditionedStatus, Readiness, types},
    },
    rollout::decidable,
    signals::watch::Touched,
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
    let (message, now) = ("the next canary can use it", (context.clock)());
    let ready = Readiness::Ready;
    conditions::set(&mut status.conditions, ready, "Valid", message, generation, now);
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
