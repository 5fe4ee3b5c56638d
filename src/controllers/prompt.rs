//! PromptVersion: says whether the prompt compiles, and its digest.

use std::sync::Arc;

use kube::runtime::{Controller, controller::Action, reflector::Store};

use super::{Context, Reconciled, caches::Use, release::Triggers};
use crate::{
    api::{PromptVersion, conditions, conditions::Readiness, prompt_version::PromptVersionStatus},
    prompt::{check, digest},
    rollout::resolve::prompt_that_fits,
    signals::watch::Touched,
};

/// Runs the controller until the process stops.
pub async fn run(
    store: Store<PromptVersion>,
    watch: Touched<PromptVersion>,
    triggers: Triggers,
    context: Arc<Context>,
) {
    let watch = triggers.tap(watch, Use::Prompt);
    super::drive("PromptVersion", Controller::for_stream(watch, store), context, reconcile).await;
}

async fn reconcile(prompt: Arc<PromptVersion>, context: Arc<Context>) -> Reconciled {
    let generation = prompt.metadata.generation.unwrap_or_default();
    let old = prompt.status.clone().unwrap_or_default();
    let mut status = PromptVersionStatus {
        observed_generation: generation,
        digest: Some(digest(&prompt.spec)),
        conditions: old.conditions.clone(),
    };
    let checked = check(&prompt.spec).map_err(|error| error.to_string());
    let checked = checked.and_then(|()| prompt_that_fits(&prompt.spec));
    let (readiness, reason, message) = match checked {
        Ok(()) => (Readiness::Ready, "Valid", "the prompt can be released".to_owned()),
        Err(problem) => (Readiness::Stalled, "PromptInvalid", problem),
    };
    let now = (context.clock)();
    conditions::set(&mut status.conditions, readiness, reason, &message, generation, now);
    if status != old {
        let mut prompt = (*prompt).clone();
        prompt.status = Some(status);
        context.cluster.write_status(&prompt).await?;
    }
    Ok(Action::await_change())
}
