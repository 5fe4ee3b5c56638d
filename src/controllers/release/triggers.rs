//! What makes a release worth a look besides its own changes.

use std::sync::Arc;

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use kube::{
    Resource,
    runtime::{reflector::ObjectRef, watcher},
};

use crate::{
    api::PromptRelease,
    controllers::{caches::Use, reference},
    signals::{
        index::{Index, Named},
        watch::Touched,
    },
};

/// The releases that were sent.
pub type Triggered = UnboundedReceiver<ObjectRef<PromptRelease>>;

/// Sends releases to the controller.
#[derive(Clone)]
pub struct Triggers {
    uses: Arc<Index<Use>>,
    sender: UnboundedSender<ObjectRef<PromptRelease>>,
}

impl Triggers {
    /// Over the releases of an index, and what is sent.
    pub fn new(uses: Arc<Index<Use>>) -> (Self, Triggered) {
        let (sender, receiver) = unbounded();
        (Self { uses, sender }, receiver)
    }

    /// Where to send releases.
    pub fn sender(&self) -> UnboundedSender<ObjectRef<PromptRelease>> {
        self.sender.clone()
    }

    /// Sends a release.
    pub fn send(&self, release: &Named) {
        // Only a process that stops has no receiver.
        let _ = self.sender.unbounded_send(reference(&release.namespace, &release.name));
    }

    /// Sends the releases with a use.
    pub fn send_all(&self, with: &Use) {
        for release in self.uses.having(with) {
            self.send(&release);
        }
    }

    /// Passes a kind's watch on and sends the releases that use the object.
    pub fn tap<K: Resource + Send + 'static>(
        &self,
        watch: Touched<K>,
        using: fn(Named) -> Use,
    ) -> Touched<K> {
        let triggers = self.clone();
        watch
            .inspect(move |touched: &watcher::Result<K>| {
                let Ok(touched) = touched else { return };
                triggers.send_all(&using(Named::of(touched)));
            })
            .boxed()
    }
}
