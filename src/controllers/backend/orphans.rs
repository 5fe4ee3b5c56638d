//! Model servers whose LLMDeployment is deleted: they stay while a release uses them, because
//! the release owns them, and go with the last one.

use std::collections::BTreeSet;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::ResourceExt;

use super::serving;
use crate::{
    api::keys,
    controllers::{Context, caches::Use, error::ControllerError, kube::Kind},
    signals::index::Named,
};

/// The backends that have a Deployment of ours and do not exist. One request; none when this
/// operator runs no model servers.
///
/// # Errors
/// The API server failed.
pub async fn all(context: &Context) -> Result<BTreeSet<Named>, ControllerError> {
    if !context.serving {
        return Ok(BTreeSet::new());
    }
    let deployments: Vec<Deployment> = context.cluster.list(keys::BACKEND_LABEL).await?;
    let backends = deployments.iter().filter_map(|deployment| {
        let backend = deployment.labels().get(keys::BACKEND_LABEL)?;
        Some(Named::new(deployment.namespace()?, backend))
    });
    Ok(backends.filter(|backend| is_gone(backend, context)).collect())
}

/// Hands what a deleted backend has left to the releases that use it, or deletes it.
///
/// # Errors
/// The API server failed.
pub async fn settle(backend: &Named, context: &Context) -> Result<(), ControllerError> {
    if !context.serving || !is_gone(backend, context) {
        return Ok(());
    }
    // It may be one of those that use it.
    if context.caches.has_unread_release(&backend.namespace) {
        return Ok(());
    }
    settle_one::<Deployment>(backend, context).await?;
    settle_one::<Service>(backend, context).await
}

fn is_gone(backend: &Named, context: &Context) -> bool {
    context.caches.is_without_backend(backend)
}

async fn settle_one<K: Kind>(backend: &Named, context: &Context) -> Result<(), ControllerError> {
    let found: Option<K> = context.cluster.get(&backend.namespace, &backend.name).await?;
    let ours = |object: &K| object.labels().get(keys::BACKEND_LABEL) == Some(&backend.name);
    let Some(object) = found.filter(ours) else { return Ok(()) };
    let users = context.caches.releases_with(&Use::Backend(backend.clone()));
    let owners = serving::owners(None, &users);
    if owners.is_empty() {
        return context.cluster.drop_object(&object, "delete").await;
    }
    let known: BTreeSet<&str> = object.owner_references().iter().map(|o| o.uid.as_str()).collect();
    if owners.iter().map(|owner| owner.uid.as_str()).collect::<BTreeSet<_>>() == known {
        return Ok(());
    }
    context.cluster.set_owners(&object, &owners).await
}
