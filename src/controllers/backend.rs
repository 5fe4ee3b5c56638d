//! LLMDeployment: is there something that answers? Endpoints and services are probed;
//! a serving backend becomes a Deployment and a Service, whose readiness counts. The
//! releases that use it own them, too: deleting the LLMDeployment takes nothing away from
//! users, and nothing waits for an operator to let it go.

pub mod orphans;
pub mod probe;
mod retirement;
mod serving;

use std::{sync::Arc, time::Duration};

use futures::channel::mpsc::UnboundedReceiver;
use jiff::civil::Date;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::{
    Client, ResourceExt,
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};

use self::probe::Answered;
use super::{Context, Reconciled, caches::Use, error::ControllerError, later, release::Triggers};
use crate::{
    api::{
        LLMDeployment,
        conditions::{self, Readiness},
        keys,
        llm_deployment::{LLMDeploymentStatus, Serving},
    },
    rollout::retirement::News,
    signals::{
        index::Named,
        watch::{Touched, touched},
    },
};

/// How often a backend that answers is probed.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How often one that does not.
const PROBE_AGAIN: Duration = Duration::from_secs(5);

/// How often it is asked whether releases can be read again.
pub const UNREAD_AGAIN: Duration = Duration::from_secs(30);
/// A date may be further away than a timer can be set.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What was found out about a backend.
struct Finding {
    readiness: Readiness,
    reason: &'static str,
    message: String,
    /// When the server says that the model ends, if it says which models it has.
    retires: Option<Option<Date>>,
    next: Action,
}

/// Runs the controller until the process stops. Without `deployments` no model servers are run.
pub async fn run(
    store: Store<LLMDeployment>,
    watch: Touched<LLMDeployment>,
    deployments: Option<(Client, Option<String>)>,
    triggers: Triggers,
    used: UnboundedReceiver<ObjectRef<LLMDeployment>>,
    context: Arc<Context>,
) {
    let watch = triggers.tap(watch, Use::Backend);
    let ours = watcher::Config::default().labels(keys::BACKEND_LABEL);
    let mut controller = Controller::for_stream(watch, store)
        .reconcile_on(used)
        .reconcile_all_on(context.model_dates.changes());
    if let Some((client, namespace)) = deployments {
        controller =
            controller.owns_stream(touched::<Deployment>(&client, namespace.as_deref(), ours));
    }
    super::drive("LLMDeployment", controller, context, reconcile).await;
}

async fn reconcile(backend: Arc<LLMDeployment>, context: Arc<Context>) -> Reconciled {
    let held = backend.finalizers().iter().any(|f| f == keys::IN_USE_FINALIZER);
    let deleted = backend.metadata.deletion_timestamp.is_some();
    if deleted && !held {
        return Ok(Action::await_change());
    }
    let finding = match &backend.spec.serving {
        Some(_) if !context.serving => serving_is_off(&backend),
        Some(spec) => match serve(&backend, spec, &context).await {
            Err(error) if error.is_forbidden() => not_permitted(&backend),
            served => served?,
        },
        None => probe(&backend, &context).await,
    };
    if held {
        // Set by an earlier version. With the owners in place nothing hangs on it, and it
        // would keep namespaces and definitions from being deleted without an operator.
        let ours = |f: &&String| *f == keys::IN_USE_FINALIZER;
        let others = backend.finalizers().iter().filter(|f| !ours(f)).cloned().collect();
        context.cluster.set_finalizers(backend.as_ref(), others).await?;
        // The write is seen by the watch, which looks again.
        return Ok(Action::await_change());
    }
    let status = write_status(&backend, &finding, &context).await?;
    let now = (context.clock)();
    Ok(match retirement::changes_at(&status, now) {
        // A model server is looked at when something changes: also its date is such a change.
        Some(at) if finding.next == Action::await_change() => {
            Action::requeue(at.duration_since(now).unsigned_abs().min(LONGEST_WAIT))
        }
        _ => finding.next,
    })
}

/// Deployment and Service as the spec wants them; ready when a pod is.
async fn serve(
    backend: &LLMDeployment,
    spec: &Serving,
    context: &Context,
) -> Result<Finding, ControllerError> {
    let named = Named::of(backend);
    let users = context.caches.releases_with(&Use::Backend(named.clone()));
    let owners = serving::owners(Some(backend), &users);
    let of_service = orphans::and_unread::<Service>(&named, &owners, context).await?;
    context.cluster.apply(&serving::service(backend, spec, &of_service)).await?;
    let owners = orphans::and_unread::<Deployment>(&named, &owners, context).await?;
    let deployment = context.cluster.apply(&serving::deployment(backend, spec, &owners)).await?;
    let (readiness, reason, message) = serving::readiness(&deployment, spec);
    // Nobody tells that a release can be read which uses it no more.
    let unread = context.caches.has_unread_release(&named.namespace);
    let next = if unread { later(UNREAD_AGAIN) } else { Action::await_change() };
    Ok(Finding { readiness, reason, message, retires: None, next })
}

fn serving_is_off(backend: &LLMDeployment) -> Finding {
    let namespace = backend.namespace().unwrap_or_default();
    Finding {
        readiness: Readiness::NotReady,
        reason: "ServingNotPermitted",
        message: format!(
            "this operator runs no model servers (--serving=false): upgrade the Helm release with \
             --set serving.enabled=true --set 'serving.namespaces={{{namespace}}}'"
        ),
        retires: None,
        next: Action::await_change(),
    }
}

/// The right to run model servers is given by namespace.
fn not_permitted(backend: &LLMDeployment) -> Finding {
    let namespace = backend.namespace().unwrap_or_default();
    Finding {
        readiness: Readiness::NotReady,
        reason: "ServingNotPermitted",
        message: format!(
            "the operator may run no model servers in the namespace {namespace}: name it in \
             serving.namespaces of the Helm chart, or without Helm kubectl create rolebinding serinus-serving -n {namespace} \
             --clusterrole=serinus-operator-serving \
             --serviceaccount=serinus-system:serinus-operator"
        ),
        retires: None,
        next: later(PROBE_AGAIN),
    }
}

async fn probe(backend: &LLMDeployment, context: &Context) -> Finding {
    let (namespace, name) = (backend.namespace().unwrap_or_default(), backend.name_any());
    let url = backend.spec.base_url(&name, &namespace);
    match context.probe.ask(&url, &backend.spec).await {
        Ok(Answered { message, retires }) => Finding {
            readiness: Readiness::Ready,
            reason: "Reachable",
            message,
            retires,
            next: later(PROBE_EVERY),
        },
        Err(message) => Finding {
            readiness: Readiness::NotReady,
            reason: "Unreachable",
            message,
            retires: None,
            next: later(PROBE_AGAIN),
        },
    }
}

async fn write_status(
    backend: &LLMDeployment,
    finding: &Finding,
    context: &Context,
) -> Result<LLMDeploymentStatus, ControllerError> {
    let generation = backend.metadata.generation.unwrap_or_default();
    let old = backend.status.clone().unwrap_or_default();
    let mut status = LLMDeploymentStatus { observed_generation: generation, ..old.clone() };
    let Finding { readiness, reason, message, retires, .. } = finding;
    let now = (context.clock)();
    conditions::set(&mut status.conditions, *readiness, reason, message, generation, now);
    let news = retirement::note(backend, &mut status, *retires, context, now);
    if status == old {
        return Ok(status);
    }
    let ready = |c: &[conditions::Condition]| {
        conditions::find(c, conditions::types::READY).map(|c| c.status == "True")
    };
    let turned = ready(&old.conditions) != ready(&status.conditions);
    let mut backend = backend.clone();
    backend.status = Some(status.clone());
    let backend = context.cluster.write_status(&backend).await?;
    if turned {
        let warning = *readiness == Readiness::NotReady;
        context.cluster.announce(&backend, warning, reason, message).await;
    }
    if let Some(News { warning, reason, note }) = news {
        context.cluster.announce(&backend, warning, reason, &note).await;
    }
    Ok(status)
}
