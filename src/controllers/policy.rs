//! CanaryPolicy: what can be wrong with it is refused by the API server, except the texts
//! of queries, which are told on the condition. A release that runs with such a policy has
//! no data for that metric and holds. Whether the policy can decide is told as a warning.

use std::sync::Arc;

use kube::runtime::{Controller, controller::Action, reflector::Store};

use super::{Context, Reconciled, caches::Use, release::Triggers};
use crate::{
    analysis::plan::undecidable,
    api::{
        CanaryPolicy, CanaryPolicySpec,
        canary_policy::{CanaryPolicyStatus, Step},
        conditions::{self, Readiness, types},
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
    let watch = triggers.tap(watch, Use::Policy);
    super::drive("CanaryPolicy", Controller::for_stream(watch, store), context, reconcile).await;
}

async fn reconcile(policy: Arc<CanaryPolicy>, context: Arc<Context>) -> Reconciled {
    let generation = policy.metadata.generation.unwrap_or_default();
    let old = policy.status.clone().unwrap_or_default();
    let told = conditions::find(&old.conditions, types::DECIDABLE);
    let known = told.is_some() && !old.steps.is_empty();
    if old.observed_generation == generation && known {
        return Ok(Action::await_change());
    }
    let (steps, metrics) = columns(&policy.spec);
    let mut status = CanaryPolicyStatus {
        observed_generation: generation,
        steps,
        metrics,
        conditions: old.conditions.clone(),
    };
    let (ready, reason, message) = verdict(&policy.spec);
    let now = (context.clock)();
    conditions::set(&mut status.conditions, ready, reason, &message, generation, now);
    // Planning takes up to seconds of computing: meanwhile this process must renew its Lease.
    let spec = policy.spec.clone();
    let finding = tokio::task::spawn_blocking(move || undecidable(&spec)).await;
    let finding = finding.unwrap_or_else(|e| Some(format!("it could not be planned: {e}")));
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

/// Steps and metrics as a table shows them: of a list, a printer column shows one item.
fn columns(policy: &CanaryPolicySpec) -> (String, String) {
    let step = |step: &Step| match (step.weight, &step.shadow) {
        (Some(weight), _) => format!("{weight}%"),
        (None, Some(shadow)) => format!("shadow {}%", shadow.percent),
        (None, None) => "approval".to_owned(),
    };
    let steps: Vec<String> = policy.steps.iter().map(step).collect();
    let metrics: Vec<&str> = policy.analysis.metrics.iter().map(|m| m.name.as_str()).collect();
    (steps.join(", "), metrics.join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::canary_policy::{Nothing, Shadow};

    #[test]
    fn columns_show_every_step_and_every_metric() {
        let weight = |weight| Step { weight: Some(weight), ..Step::default() };
        let shadow = Shadow { percent: 10, samples: 20, deadline: None };
        let policy = CanaryPolicySpec {
            steps: vec![
                Step { shadow: Some(shadow), ..Step::default() },
                weight(5),
                Step { approval: Some(Nothing {}), ..Step::default() },
                weight(50),
            ],
            ..CanaryPolicySpec::default()
        };
        let (steps, metrics) = columns(&policy);
        assert_eq!(steps, "shadow 10%, 5%, approval, 50%");
        assert_eq!(metrics, "errors, ttft, duration, checks, cost");
    }
}
