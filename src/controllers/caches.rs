//! What the API server holds, as last watched: one watch a kind, shared by all
//! controllers of the process.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Client, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};

use super::error::ControllerError;
use crate::{
    api::{
        CanaryPolicy, LLMDeployment, PromptRelease, PromptVersion, keys,
        snapshot::{Saved, copy_name},
    },
    signals::watch::{Filled, Touched, cache},
};

/// The stores of every watched kind.
pub struct Caches {
    /// The releases.
    pub releases: Store<PromptRelease>,
    /// The prompts.
    pub prompts: Store<PromptVersion>,
    /// The backends.
    pub backends: Store<LLMDeployment>,
    /// The policies.
    pub policies: Store<CanaryPolicy>,
    /// The saved copies of releases.
    pub copies: Store<ControllerRevision>,
    filled: [Filled; 5],
}

/// The watches that fill the stores; whoever owns them must poll them.
pub struct Watches {
    /// The releases.
    pub releases: Touched<PromptRelease>,
    /// The prompts.
    pub prompts: Touched<PromptVersion>,
    /// The backends.
    pub backends: Touched<LLMDeployment>,
    /// The policies.
    pub policies: Touched<CanaryPolicy>,
    /// The saved copies of releases.
    pub copies: Touched<ControllerRevision>,
}

impl Caches {
    /// Watches of one namespace, or of all.
    pub fn new(client: &Client, namespace: Option<&str>) -> (Self, Watches) {
        let copies_only = watcher::Config::default().labels(keys::RELEASE_LABEL);
        let all = watcher::Config::default;
        let (releases, releases_watch, of_releases) = cache(client, namespace, all(), |_| ());
        let (prompts, prompts_watch, of_prompts) = cache(client, namespace, all(), |_| ());
        let (backends, backends_watch, of_backends) = cache(client, namespace, all(), |_| ());
        let (policies, policies_watch, of_policies) = cache(client, namespace, all(), |_| ());
        let (copies, copies_watch, of_copies) = cache(client, namespace, copies_only, |_| ());
        let filled = [of_releases, of_prompts, of_backends, of_policies, of_copies];
        (
            Self { releases, prompts, backends, policies, copies, filled },
            Watches {
                releases: releases_watch,
                prompts: prompts_watch,
                backends: backends_watch,
                policies: policies_watch,
                copies: copies_watch,
            },
        )
    }

    /// Waits until every store was filled once.
    ///
    /// # Errors
    /// The process is stopping.
    pub async fn ready(&self) -> Result<(), ControllerError> {
        for store in &self.filled {
            if !store.wait().await {
                return Err(ControllerError::CachesNotReady);
            }
        }
        Ok(())
    }

    /// Whether every store was filled once.
    pub fn are_ready(&self) -> bool {
        self.filled.iter().all(Filled::now)
    }

    /// The content of a saved copy of a release.
    ///
    /// # Errors
    /// It is there and can not be read.
    pub fn saved(
        &self,
        namespace: &str,
        release: &str,
        name: &str,
    ) -> Result<Option<Saved>, ControllerError> {
        let name = copy_name(release, name);
        let Some(copy) = self.copies.get(&ObjectRef::new(&name).within(namespace)) else {
            return Ok(None);
        };
        read_copy(&copy).map(Some)
    }
}

/// The content of a saved copy.
///
/// # Errors
/// It can not be read.
pub fn read_copy(copy: &ControllerRevision) -> Result<Saved, ControllerError> {
    let data = copy.data.0.clone();
    serde_json::from_value(data)
        .map_err(|e| ControllerError::Copy { name: copy.name_any(), reason: e.to_string() })
}
