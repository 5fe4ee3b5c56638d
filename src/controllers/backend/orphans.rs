//! Model servers whose LLMDeployment is deleted: they stay while a release uses them, because
//! the release owns them, and go with the last one.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
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

/// What has become of what a deleted backend has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Who uses it owns it, or it is gone.
    Now,
    /// A release that can not be read may use it: nothing was taken away.
    AsFarAsKnown,
}

/// Hands what a deleted backend has left to the releases that use it, or deletes it.
///
/// # Errors
/// The API server failed.
pub async fn settle(backend: &Named, context: &Context) -> Result<Settled, ControllerError> {
    if !context.serving || !is_gone(backend, context) {
        return Ok(Settled::Now);
    }
    settle_one::<Deployment>(backend, context).await?;
    settle_one::<Service>(backend, context).await?;
    let unread = context.caches.has_unread_release(&backend.namespace);
    Ok(if unread { Settled::AsFarAsKnown } else { Settled::Now })
}

/// Whom an object of a backend is to be owned by: `owners`, and while some release of its namespace
/// can not be read also those that own it now, because that release may be one of them.
///
/// # Errors
/// The API server failed.
pub(super) async fn and_unread<K: Kind>(
    backend: &Named,
    owners: &[OwnerReference],
    context: &Context,
) -> Result<Vec<OwnerReference>, ControllerError> {
    if !context.caches.has_unread_release(&backend.namespace) {
        return Ok(owners.to_vec());
    }
    let found = of_backend::<K>(backend, context).await?;
    Ok(and_those_of(owners, found.as_ref()))
}

fn and_those_of<K: Kind>(owners: &[OwnerReference], object: Option<&K>) -> Vec<OwnerReference> {
    let is_new = |owner: &&OwnerReference| owners.iter().all(|known| known.uid != owner.uid);
    let before = object.map(ResourceExt::owner_references).unwrap_or_default();
    owners.iter().chain(before.iter().filter(is_new)).cloned().collect()
}

/// What Serinus made for a backend, if it is there.
async fn of_backend<K: Kind>(
    backend: &Named,
    context: &Context,
) -> Result<Option<K>, ControllerError> {
    let found: Option<K> = context.cluster.get(&backend.namespace, &backend.name).await?;
    Ok(found.filter(|object| object.labels().get(keys::BACKEND_LABEL) == Some(&backend.name)))
}

fn is_gone(backend: &Named, context: &Context) -> bool {
    context.caches.is_without_backend(backend)
}

async fn settle_one<K: Kind>(backend: &Named, context: &Context) -> Result<(), ControllerError> {
    let Some(object) = of_backend::<K>(backend, context).await? else { return Ok(()) };
    let users = context.caches.releases_with(&Use::Backend(backend.clone()));
    let owners = serving::owners(None, &users);
    let unread = context.caches.has_unread_release(&backend.namespace);
    let owners = if unread { and_those_of(&owners, Some(&object)) } else { owners };
    if owners.is_empty() {
        let keep = || Ok(());
        return if unread { keep() } else { context.cluster.drop_object(&object, "delete").await };
    }
    let known: BTreeSet<&str> = object.owner_references().iter().map(|o| o.uid.as_str()).collect();
    if owners.iter().map(|owner| owner.uid.as_str()).collect::<BTreeSet<_>>() == known {
        return Ok(());
    }
    context.cluster.set_owners(&object, &owners).await
}
