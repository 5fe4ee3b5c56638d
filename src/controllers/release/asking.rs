//! Asks Prometheus for all running canaries together, in a task of its own.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt;

use super::observe::running_policy;
use crate::{
    api::{PromptRelease, prompt_release::VariantRef, snapshot::Saved},
    controllers::{Context, caches::Use, reference},
    signals::prometheus::{Questions, questions},
};

/// Asks while this process leads. Every `tick` it looks which releases are due, each by
/// its own policy's interval; a round that takes longer delays only the next round.
pub async fn ask_prometheus(context: Arc<Context>, tick: Duration) {
    if !context.prometheus.configured() {
        // Every question is answered by that; there is nothing to do, ever.
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut running = vec![];
        if context.cluster.leadership().term().is_some() {
            running = context.caches.releases_with(&Use::Canary);
        }
        let now = (context.clock)();
        let releases: BTreeSet<String> = running.iter().map(|r| key(r)).collect();
        context.prometheus.forget_all_but(&releases);
        let due: Vec<Questions> =
            running.iter().filter_map(|release| due_of(release, &context, now)).collect();
        if due.is_empty() {
            continue;
        }
        let round = context.prometheus.ask(&due, now).await;
        context.exported.asked_prometheus(&round);
    }
}

fn key(release: &PromptRelease) -> String {
    format!("{}/{}", release.namespace().unwrap_or_default(), release.name_any())
}

/// What to ask for a release now. Cheap for one that is not due: no copy is read.
fn due_of(release: &PromptRelease, context: &Context, now: Timestamp) -> Option<Questions> {
    let status = release.status.as_ref()?;
    if !context.prometheus.due(&key(release), status.routing.generation, now) {
        return None;
    }
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    // A copy that can not be read is told by the release's own reconcile.
    let policy = running_policy(release, &Default::default(), context).ok()??;
    let model = |variant: &VariantRef| model_of(&namespace, &name, variant, context);
    questions(&namespace, &name, status, &policy, model, now)
}

/// The model's name is part of the variant's identity, so the saved copy is right even
/// when the LLMDeployment is gone.
fn model_of(namespace: &str, name: &str, variant: &VariantRef, context: &Context) -> String {
    match context.caches.saved(namespace, name, &variant.revision) {
        Ok(Some(Saved::Variant(saved))) => saved.backend.model,
        _ => {
            let backend = context.caches.backends.get(&reference(namespace, &variant.backend));
            backend.map(|b| b.spec.model.clone()).unwrap_or_default()
        }
    }
}
