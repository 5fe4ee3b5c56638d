//! What makes a release worth a look besides its own changes.

use std::sync::{Arc, Mutex};

use futures::{
    Stream, StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
    stream,
};
use kube::{
    Resource, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};

use crate::{
    api::{PromptRelease, PromptReleaseStatus, keys},
    signals::watch::Touched,
};

/// Sends releases to the controller.
#[derive(Clone)]
pub struct Triggers {
    releases: Store<PromptRelease>,
    sender: UnboundedSender<ObjectRef<PromptRelease>>,
    receiver: Arc<Mutex<Option<UnboundedReceiver<ObjectRef<PromptRelease>>>>>,
}

impl Triggers {
    /// Over the releases of `store`.
    pub fn new(store: Store<PromptRelease>) -> Self {
        let (sender, receiver) = unbounded();
        Self { releases: store, sender, receiver: Arc::new(Mutex::new(Some(receiver))) }
    }

    /// Where to send releases.
    pub fn sender(&self) -> UnboundedSender<ObjectRef<PromptRelease>> {
        self.sender.clone()
    }

    /// What was sent. The first caller gets it.
    pub(super) fn stream(&self) -> impl Stream<Item = ObjectRef<PromptRelease>> + use<> {
        let receiver = self.receiver.lock().ok().and_then(|mut r| r.take());
        stream::iter(receiver).flatten()
    }

    /// Passes a kind's watch on and sends the releases of the same namespace that
    /// `concerned` picks by the object's name.
    pub fn tap<K: Resource + Send + 'static>(
        &self,
        watch: Touched<K>,
        concerned: fn(&PromptRelease, &str) -> bool,
    ) -> Touched<K> {
        let triggers = self.clone();
        watch
            .inspect(move |touched: &watcher::Result<K>| {
                let Ok(touched) = touched else { return };
                let (namespace, name) = (&touched.meta().namespace, touched.name_any());
                let picked = triggers
                    .releases
                    .state_filter(|r| r.metadata.namespace == *namespace && concerned(r, &name));
                for release in picked {
                    // Only a process that stops has no receiver.
                    let _ = triggers.sender.unbounded_send(ObjectRef::from_obj(release.as_ref()));
                }
            })
            .boxed()
    }

    /// Sends the owner of a saved copy.
    pub fn on_copy<K: Resource>(&self, copy: &K) {
        if let (Some(owner), Some(namespace)) =
            (copy.labels().get(keys::RELEASE_LABEL), copy.namespace())
        {
            let _ = self.sender.unbounded_send(ObjectRef::new(owner).within(&namespace));
        }
    }

    /// Passes the releases' watch on and sends those that wait for the same route: a
    /// route becomes free when its holder goes.
    pub(super) fn tap_releases(&self, watch: Touched<PromptRelease>) -> Touched<PromptRelease> {
        let (store, sender) = (self.releases.clone(), self.sender.clone());
        watch
            .inspect(move |touched: &watcher::Result<PromptRelease>| {
                let Ok(touched) = touched else { return };
                let gone = store.get(&ObjectRef::from_obj(touched)).is_none();
                if !gone && touched.metadata.deletion_timestamp.is_none() {
                    return;
                }
                let route = touched.route();
                for other in store.state_filter(|r| r.has_route(&route)) {
                    let _ = sender.unbounded_send(ObjectRef::from_obj(other.as_ref()));
                }
            })
            .boxed()
    }
}

/// A release names this prompt.
pub fn names_prompt(release: &PromptRelease, name: &str) -> bool {
    release.spec.prompt_ref.name == name
}

/// A release names this policy.
pub fn names_policy(release: &PromptRelease, name: &str) -> bool {
    release.spec.policy_ref.as_ref().is_some_and(|p| p.name == name)
}

/// A release names this backend, or sends traffic to it.
pub fn uses_backend(release: &PromptRelease, name: &str) -> bool {
    release.spec.backend_ref.name == name
        || release.status.as_ref().is_some_and(|s| serves_with(s, name))
}

fn serves_with(status: &PromptReleaseStatus, name: &str) -> bool {
    [&status.stable, &status.previous].into_iter().flatten().any(|v| v.backend == name)
        || status.canary.as_ref().is_some_and(|c| c.variant.backend == name)
}
