//! CanaryPolicy: what can be wrong with it is refused by the API server, except the texts
//! of queries, which are told on the condition. A release that runs with such a policy has
//! no data for that metric and holds.

use std::sync::Arc;

use kube::runtime::{Controller, controller::Action, reflector::Store};

use super::{
    Context, Reconciled,
    release::{Triggers, triggers::names_policy},
};
use crate::{
    api::{
        CanaryPolicy, CanaryPolicySpec,
        conditions::{self, ConditionedStatus, Readiness},
    },
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
    let mut status =
        ConditionedStatus { observed_generation: generation, conditions: old.conditions.clone() };
    let (ready, reason, message) = verdict(&policy.spec);
    let now = (context.clock)();
    conditions::set(&mut status.conditions, ready, reason, &message, generation, now);
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
