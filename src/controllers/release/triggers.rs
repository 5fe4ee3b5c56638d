//! What makes a release worth a look besides its own changes.

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use kube::{
    Resource, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};

use crate::{
    api::{PromptRelease, keys},
    signals::watch::Touched,
};

/// The releases that were sent.
pub type Triggered = UnboundedReceiver<ObjectRef<PromptRelease>>;

/// Sends releases to the controller.
#[derive(Clone)]
pub struct Triggers {
    releases: Store<PromptRelease>,
    sender: UnboundedSender<ObjectRef<PromptRelease>>,
}

impl Triggers {
    /// Over the releases of `store`, and what is sent.
    pub fn new(store: Store<PromptRelease>) -> (Self, Triggered) {
        let (sender, receiver) = unbounded();
        (Self { releases: store, sender }, receiver)
    }

    /// Where to send releases.
    pub fn sender(&self) -> UnboundedSender<ObjectRef<PromptRelease>> {
        self.sender.clone()
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
    release.spec.backend_ref.name == name || sends_traffic_to(release, name)
}

/// A release sends traffic to this backend, or did before it bakes.
pub fn sends_traffic_to(release: &PromptRelease, name: &str) -> bool {
    let Some(status) = &release.status else { return false };
    let stable = status.stable.iter().chain(&status.previous);
    stable.chain(status.canary.iter().map(|c| &c.variant)).any(|v| v.backend == name)
}
