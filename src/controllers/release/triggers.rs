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
        index::{Change, Index, Named},
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

    /// Sends the other releases on a route that a release has or has no more: who waits for it may
    /// have it now, or waits for another one. And those that serve a route which a release serves
    /// now or serves no more: one that is being deleted leaves it (docs/decisions/0010), and has
    /// no other reason to be looked at when nothing of its own changes.
    pub fn send_rivals(&self, change: &Change<Use>) {
        for route in change.left.iter().chain(&change.joined) {
            let (Use::Route(_) | Use::Serves(_)) = route else { continue };
            for release in self.uses.having(route) {
                if release != change.object {
                    self.send(&release);
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::caches::uses_of;

    #[test]
    fn whoever_waits_for_a_route_is_looked_at_when_another_one_takes_or_leaves_it() {
        let uses = Arc::new(Index::<Use>::default());
        let (triggers, mut sent) = Triggers::new(uses.clone());
        let release = |name: &str| {
            let json = serde_json::json!({"metadata": {"name": name, "namespace": "ns"},
                "spec": {"promptRef": {"name": "p"}, "backendRef": {"name": "b"}}});
            serde_json::from_value::<PromptRelease>(json).unwrap()
        };
        let (waits, owner, third) = (release("waits"), release("owner"), release("elsewhere"));
        let mut happens = |event: watcher::Event<PromptRelease>| {
            let keys = |release: &PromptRelease| {
                let elsewhere = release.metadata.name.as_deref() == Some("elsewhere");
                vec![Use::Route(if elsewhere { "other" } else { "shared" }.to_owned())]
            };
            uses.note(&event, keys, |change| triggers.send_rivals(&change));
            std::iter::from_fn(|| sent.try_recv().ok()).map(|to| to.name).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(happens(watcher::Event::Apply(waits.clone())), none, "nobody else is there");
        assert_eq!(happens(watcher::Event::Apply(third)), none);
        for _ in 0..2 {
            assert_eq!(happens(watcher::Event::Apply(owner.clone())), ["waits"]);
            assert_eq!(happens(watcher::Event::Apply(owner.clone())), none, "nothing changes");
            assert_eq!(happens(watcher::Event::Delete(owner.clone())), ["waits"]);
        }
    }

    #[test]
    fn a_release_at_rest_that_is_being_deleted_is_looked_at_when_another_one_serves_its_route() {
        let uses = Arc::new(Index::<Use>::default());
        let (triggers, mut sent) = Triggers::new(uses.clone());
        let release = |name: &str, deleted: bool, serves: bool| {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            let stable = serde_json::json!([{"revision": "1", "role": "stable", "weight": 100}]);
            let variants = if serves { stable } else { serde_json::json!([]) };
            let json = serde_json::json!({
                "metadata": {"name": name, "namespace": "ns", "deletionTimestamp": deleted},
                "spec": {
                    "route": "shared", "promptRef": {"name": "p"}, "backendRef": {"name": "b"},
                },
                "status": {"phase": "Stable", "routing": {"generation": 1, "variants": variants}},
            });
            serde_json::from_value::<PromptRelease>(json).unwrap()
        };
        let mut happens = |release: PromptRelease| {
            let event = watcher::Event::Apply(release);
            uses.note(&event, uses_of, |change| triggers.send_rivals(&change));
            std::iter::from_fn(|| sent.try_recv().ok()).map(|to| to.name).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(happens(release("leaves", false, true)), none);
        assert_eq!(happens(release("waits", false, false)), ["leaves"], "it may have the route");
        assert_eq!(happens(release("leaves", true, true)), ["waits"]);
        assert_eq!(happens(release("waits", false, true)), ["leaves"], "it serves the route now");
        assert_eq!(happens(release("leaves", true, false)), ["waits"]);
        assert_eq!(happens(release("waits", false, true)), none, "nothing changes");
    }
}
