//! The releases of a folder as the process that runs them has written them, for commands beside
//! it: nothing is changed, and no lock is taken.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{
    durable::{beside, followed, read},
    location::StateLocation,
    lock::Lock,
    memory, object_key,
    requests::put,
    state::{IN_FORCE, parse},
};
use crate::{
    api::{PromptRelease, manifest::Object},
    rollout::snapshot::Action,
};

/// What a process has written of a folder.
pub struct View {
    state: PathBuf,
}

impl View {
    /// The state of `folder`, or the one that a person names.
    ///
    /// # Errors
    /// There is none: what to do.
    pub fn of(folder: &Path, state: Option<&Path>) -> anyhow::Result<Self> {
        let file = match state {
            Some(file) => file.to_owned(),
            None => StateLocation::existing(folder)?,
        };
        Ok(Self { state: followed(&file)? })
    }

    /// The releases with their status, by namespace and name.
    ///
    /// # Errors
    /// The state can not be read.
    pub fn releases(&self) -> anyhow::Result<Vec<PromptRelease>> {
        let path = self.state.display();
        let bytes = read(&self.state)?.with_context(|| format!("{path} does not exist"))?;
        let states =
            parse(&bytes).with_context(|| format!("{path} is no state of this version"))?;
        let manifests = read(&beside(&self.state, IN_FORCE))?.unwrap_or_default();
        // Without them the state tells all but annotations.
        let manifests: BTreeMap<_, _> = memory::objects(&manifests)
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, object)| matches!(object, Object::Release(_)))
            .map(|(_, object)| (object_key(&object), object))
            .collect();
        let mut releases = vec![];
        for (name, kept) in states.iter().filter(|(_, kept)| kept.deleted.is_none()) {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            let manifest = manifests.get(&(namespace.to_owned(), name.to_owned()));
            let annotations = manifest.and_then(|object| object.metadata().annotations.clone());
            releases.push(PromptRelease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    uid: Some(kept.uid.clone()),
                    generation: Some(kept.generation),
                    creation_timestamp: Some(Time(kept.created)),
                    annotations,
                    ..ObjectMeta::default()
                },
                spec: kept.spec().clone(),
                status: Some(kept.status.clone()),
            });
        }
        Ok(releases)
    }

    /// Asks for something, as an annotation in the manifest would.
    ///
    /// # Errors
    /// The request can not be written.
    pub fn ask(&self, release: &PromptRelease, action: Action, value: &str) -> anyhow::Result<()> {
        put(&self.state, release, action, value)
    }

    /// Whether a process has the state now.
    pub fn is_running(&self) -> bool {
        Lock::is_held(&self.state)
    }
}
