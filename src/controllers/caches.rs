//! What the API server holds, as last watched: one watch a kind, shared by all
//! controllers of the process, and the indexes over releases and their saved copies.

use std::sync::Arc;

use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use kube::{
    Client, ResourceExt,
    runtime::{reflector::Store, watcher},
};

use super::{error::ControllerError, reference};
use crate::{
    api::{
        CanaryPolicy, LLMDeployment, PromptRelease, PromptVersion, ReleaseSnapshot, conditions,
        keys,
        prompt_release::Phase,
        snapshot::{LastServed, Remembered, Saved, copy_name},
    },
    signals::{
        index::{Change, Index, Named},
        watch::{Filled, Touched, cache, cache_noting},
    },
};

/// More changes of routing than a release can have had.
const MOST_GENERATIONS: i64 = i64::MAX / 2;

/// What releases are looked up by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Applications reach it under this route, and it is not being deleted.
    Route(String),
    /// It serves this route, also while it is being deleted: of these there is one, or a release
    /// that is being deleted leaves the route to another one.
    Serves(String),
    /// Its spec names this PromptVersion.
    Prompt(Named),
    /// Its spec names this CanaryPolicy.
    Policy(Named),
    /// Its spec names this LLMDeployment, or it sends traffic there, or did before it bakes.
    Backend(Named),
    /// A canary runs or bakes.
    Canary,
    /// It is on its way: gateways that come and go concern it.
    Moving,
}

/// What saved copies are looked up by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CopyKey {
    /// The release that it was saved for.
    Release(Named),
    /// It says since when this release does not exist.
    Absent(Named),
    /// It carries what is remembered of a release that served this route last, or before it
    /// had another one.
    Route(String),
}

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
    pub copies: Store<ReleaseSnapshot>,
    /// The releases by what they use.
    pub uses: Arc<Index<Use>>,
    by_release: Arc<Index<CopyKey>>,
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
    pub copies: Touched<ReleaseSnapshot>,
    /// What the indexes report.
    pub changes: Changes,
}

/// What the indexes report.
pub struct Changes {
    /// Of releases.
    pub releases: UnboundedReceiver<Change<Use>>,
    /// Of saved copies.
    pub copies: UnboundedReceiver<Change<CopyKey>>,
}

impl Caches {
    /// Watches of one namespace, or of all.
    pub fn new(client: &Client, namespace: Option<&str>) -> (Self, Watches) {
        let all = watcher::Config::default;
        let uses = Arc::new(Index::default());
        let by_release = Arc::new(Index::default());
        let (release_changes, of_release_changes) = unbounded();
        let (copy_changes, of_copy_changes) = unbounded();
        // Only a process that stops has no receiver.
        let index = uses.clone();
        let note = move |event: &watcher::Event<PromptRelease>| {
            index.note(event, uses_of, |change| drop(release_changes.unbounded_send(change)));
        };
        let (releases, releases_watch, of_releases) =
            cache_noting(client, namespace, all(), PromptRelease::drop_copied_status, note);
        let index = by_release.clone();
        let note = move |event: &watcher::Event<ReleaseSnapshot>| {
            index.note(event, keys_of_copy, |change| drop(copy_changes.unbounded_send(change)));
        };
        let (copies, copies_watch, of_copies) =
            cache_noting(client, namespace, all(), |_| (), note);
        let (prompts, prompts_watch, of_prompts) = cache(client, namespace, all(), |_| ());
        let (backends, backends_watch, of_backends) = cache(client, namespace, all(), |_| ());
        let (policies, policies_watch, of_policies) = cache(client, namespace, all(), |_| ());
        let filled = [of_releases, of_prompts, of_backends, of_policies, of_copies];
        (
            Self { releases, prompts, backends, policies, copies, uses, by_release, filled },
            Watches {
                releases: releases_watch,
                prompts: prompts_watch,
                backends: backends_watch,
                policies: policies_watch,
                copies: copies_watch,
                changes: Changes { releases: of_release_changes, copies: of_copy_changes },
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

    /// Why watches fail, if some do, and what can not be read.
    pub fn failing(&self) -> Vec<String> {
        let failing = self.filled.iter().filter_map(Filled::failing);
        failing.chain(self.filled.iter().flat_map(Filled::unread_in_words)).collect()
    }

    /// Whether there is no such release. One that can not be read is there.
    pub fn is_without(&self, release: &Named) -> bool {
        self.release(release).is_none() && !self.is_unread(release)
    }

    /// Whether a release can not be read: what is known of it, if anything, is what it was.
    pub fn is_unread(&self, release: &Named) -> bool {
        let [of_releases, ..] = &self.filled;
        of_releases.is_unread(release)
    }

    /// Why an object of a watched kind can not be read, if it is there and can not.
    pub fn why_unread(&self, kind: &str, object: &Named) -> Option<String> {
        let of_kind = self.filled.iter().find(|filled| filled.kind() == kind);
        of_kind?.why_unread(object)
    }

    /// Whether some release of a namespace can not be read: what it uses is not known.
    pub fn has_unread_release(&self, namespace: &str) -> bool {
        self.unread_releases().iter().any(|release| release.namespace == namespace)
    }

    /// The releases that can not be read.
    pub fn unread_releases(&self) -> Vec<Named> {
        let [of_releases, ..] = &self.filled;
        of_releases.unread().into_iter().map(|(release, _)| release).collect()
    }

    /// How many objects of all kinds can not be read.
    pub fn count_unread(&self) -> usize {
        self.filled.iter().map(|filled| filled.unread().len()).sum()
    }

    /// The release that serves `route`, as what is remembered says, and can not be read now; not
    /// counting `other_than`.
    pub fn unread_on(&self, route: &str, other_than: &Named) -> Option<Named> {
        let copies = self.by_release.having(&CopyKey::Route(route.to_owned()));
        let copies =
            copies.iter().filter_map(|c| self.copies.get(&reference(&c.namespace, &c.name)));
        let mut owners = copies.map(|copy| owner(&copy)).filter(|by| {
            by != other_than
                && self.release(by).is_none()
                && self.is_unread(by)
                && self.remembered(by).is_some_and(|(_, note)| note.route == route)
        });
        owners.next()
    }

    /// Whether there is no such LLMDeployment. One that can not be read is there.
    pub fn is_without_backend(&self, backend: &Named) -> bool {
        let [_, _, of_backends, ..] = &self.filled;
        let reference = reference(&backend.namespace, &backend.name);
        self.backends.get(&reference).is_none() && !of_backends.is_unread(backend)
    }

    /// A release.
    pub fn release(&self, release: &Named) -> Option<Arc<PromptRelease>> {
        self.releases.get(&reference(&release.namespace, &release.name))
    }

    /// The releases with a use.
    pub fn releases_with(&self, what: &Use) -> Vec<Arc<PromptRelease>> {
        self.uses.having(what).iter().filter_map(|release| self.release(release)).collect()
    }

    /// The saved copies of a release, whether it exists or not.
    pub fn copies_of(&self, release: &Named) -> Vec<Arc<ReleaseSnapshot>> {
        let copies = self.by_release.having(&CopyKey::Release(release.clone()));
        let copy = |copy: &Arc<Named>| self.copies.get(&reference(&copy.namespace, &copy.name));
        copies.iter().filter_map(copy).collect()
    }

    /// What is remembered of a release, and the copy that carries it.
    pub fn remembered(&self, release: &Named) -> Option<(Arc<ReleaseSnapshot>, Remembered)> {
        Remembered::last(self.notes_of(release), |(_, remembered)| remembered)
    }

    /// All that copies of a release say of it.
    pub fn notes_of(&self, release: &Named) -> Vec<(Arc<ReleaseSnapshot>, Remembered)> {
        let copies = self.copies_of(release).into_iter();
        copies.filter_map(|copy| Some((copy.clone(), read_remembered(&copy)?))).collect()
    }

    /// What copies of a release say that were written for another one and copied beside it. It
    /// claims nothing here; what failed there is worth knowing.
    pub fn copied_note(&self, release: &Named) -> Option<(Arc<ReleaseSnapshot>, Remembered)> {
        let copies = self.copies_of(release).into_iter();
        let notes = copies.filter_map(|copy| Some((copy.clone(), read_note(&copy)?)));
        let copied = notes.filter(|(_, note)| !note.is_of(&release.key()));
        Remembered::last(copied, |(_, note)| note)
    }

    /// The release that served `route` last and does not exist any more, or not with that
    /// route; not counting `other_than`.
    pub fn served_before(&self, route: &str, other_than: &Named) -> Option<(Named, LastServed)> {
        let copies = self.by_release.having(&CopyKey::Route(route.to_owned()));
        let mut owners: Vec<Named> = copies
            .iter()
            .filter_map(|copy| self.copies.get(&reference(&copy.namespace, &copy.name)))
            .map(|copy| owner(&copy))
            .filter(|owner| owner != other_than)
            .filter(|owner| match self.release(owner) {
                Some(release) => is_deleted(&release) || !release.has_route(route),
                None => self.is_without(owner),
            })
            .collect();
        owners.sort();
        owners.dedup();
        let served = owners.into_iter().filter_map(|owner| {
            let mut served = self.remembered(&owner)?.1.on_route(route)?;
            // The one that exists was created after the one with this route was gone.
            let exists = self.release(&owner).filter(|release| !is_deleted(release));
            let created = exists.and_then(|release| release.creation_timestamp());
            served.until = served.until.or(created.map(|created| created.0));
            Some((owner, served))
        });
        // One that nobody has noted the absence of is away since just now.
        served.max_by_key(|(_, served)| served.rank())
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
        let Some(copy) = self.copy(namespace, release, name) else { return Ok(None) };
        read_copy(&copy).map(Some)
    }

    /// A saved copy of a release.
    pub fn copy(&self, namespace: &str, release: &str, name: &str) -> Option<Arc<ReleaseSnapshot>> {
        self.copies.get(&reference(namespace, &copy_name(release, name)))
    }
}

/// Whether somebody has deleted it, also when something still waits for that.
pub fn is_deleted(release: &PromptRelease) -> bool {
    release.metadata.deletion_timestamp.is_some()
}

pub(super) fn uses_of(release: &PromptRelease) -> Vec<Use> {
    let namespace = release.namespace().unwrap_or_default();
    let named = |name: &str| Named::new(namespace.clone(), name);
    let spec = &release.spec;
    let mut uses = vec![
        Use::Prompt(named(&spec.prompt_ref.name)),
        Use::Backend(named(&spec.backend_ref.name)),
    ];
    uses.extend(spec.policy_ref.iter().map(|policy| Use::Policy(named(&policy.name))));
    uses.extend(spec.fallback_backend_refs.iter().map(|b| Use::Backend(named(&b.name))));
    if !is_deleted(release) {
        uses.push(Use::Route(release.route()));
    }
    let Some(status) = &release.status else { return uses };
    if status.routes() {
        uses.push(Use::Serves(release.route()));
    }
    let variants = status.stable.iter().chain(&status.previous);
    let variants = variants.chain(status.canary.iter().map(|canary| &canary.variant));
    let is_lost = conditions::find(&status.conditions, conditions::types::SNAPSHOTS_KEPT)
        .is_some_and(|condition| condition.status == "False");
    for variant in variants {
        uses.push(Use::Backend(named(&variant.backend)));
        // It is served from its snapshot; when that is lost, the prompt makes it again.
        if is_lost {
            uses.push(Use::Prompt(named(&variant.prompt)));
        }
    }
    uses.extend(status.canary.iter().map(|_| Use::Canary));
    if !matches!(status.phase, Phase::Stable | Phase::RolledBack) {
        uses.push(Use::Moving);
    }
    uses
}

fn keys_of_copy(copy: &ReleaseSnapshot) -> Vec<CopyKey> {
    let remembered = read_remembered(copy);
    let absent = remembered.as_ref().and_then(|note| note.absent_since);
    let absent = absent.map(|_| CopyKey::Absent(owner(copy)));
    let routes = remembered.into_iter().flat_map(|remembered| {
        let earlier = remembered.earlier.into_iter().map(|earlier| earlier.route);
        std::iter::once(remembered.route).chain(earlier).map(CopyKey::Route)
    });
    std::iter::once(CopyKey::Release(owner(copy))).chain(routes).chain(absent).collect()
}

/// The release that a copy was saved for.
pub fn owner(copy: &ReleaseSnapshot) -> Named {
    Named::new(copy.namespace().unwrap_or_default(), &copy.spec.release)
}

/// What a copy says of its release. A note that was written for another release claims nothing
/// for this one: it came with a copy of that release's objects.
pub fn read_remembered(copy: &ReleaseSnapshot) -> Option<Remembered> {
    read_note(copy).filter(|note| note.is_of(&owner(copy).key()))
}

/// The note on a copy, whichever release it was written for. A note that can not be read counts
/// as none and is written anew. So does a note with a routing generation that no release has,
/// because nothing could go on from there.
fn read_note(copy: &ReleaseSnapshot) -> Option<Remembered> {
    let text = copy.annotations().get(keys::REMEMBERED_ANNOTATION)?;
    let note: Remembered = serde_json::from_str(text).ok()?;
    (0..=MOST_GENERATIONS).contains(&note.generation).then_some(note)
}

/// The content of a saved copy.
///
/// # Errors
/// It can not be read.
pub fn read_copy(copy: &ReleaseSnapshot) -> Result<Saved, ControllerError> {
    copy.spec
        .content()
        .map_err(|e| ControllerError::Copy { name: copy.name_any(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_release_is_found_by_all_that_it_names_and_serves_with() {
        let mut release: PromptRelease = from_json(serde_json::json!({
            "metadata": {"name": "r", "namespace": "ns"},
            "spec": {
                "route": "chat", "promptRef": {"name": "p2"}, "backendRef": {"name": "new"},
                "policyRef": {"name": "careful"}, "fallbackBackendRefs": [{"name": "spare"}],
            },
            "status": {
                "phase": "Progressing",
                "stable": {"revision": "1", "prompt": "p1", "backend": "old"},
                "canary": {
                    "revision": "2", "prompt": "p2", "backend": "new", "policy": "3", "step": 0,
                    "weight": 5, "startedAt": "2026-01-01T00:00:00Z",
                    "enteredAt": "2026-01-01T00:00:00Z",
                },
            },
        }));
        let named = |name: &str| Named::new("ns", name);
        let uses = uses_of(&release);
        for used in [
            Use::Route("chat".into()),
            Use::Prompt(named("p2")),
            Use::Policy(named("careful")),
            Use::Backend(named("new")),
            Use::Backend(named("old")),
            Use::Backend(named("spare")),
            Use::Canary,
            Use::Moving,
        ] {
            assert!(uses.contains(&used), "{used:?} is not in {uses:?}");
        }
        assert!(!uses.contains(&Use::Prompt(named("p1"))), "stable is served from its copy");
        let lost = serde_json::json!([{
            "type": "SnapshotsKept", "status": "False", "reason": "SnapshotLost", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        release.status.as_mut().unwrap().conditions = from_json(lost);
        assert!(uses_of(&release).contains(&Use::Prompt(named("p1"))), "or made again from it");
        // Who waits for the route need not wait for what still waits for the deletion.
        release.metadata.deletion_timestamp = release.status.as_ref().map(|s| {
            let started = s.canary.as_ref().map(|c| c.started_at).unwrap_or_default();
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(started)
        });
        assert!(!uses_of(&release).contains(&Use::Route("chat".into())));
        assert!(!uses_of(&release).contains(&Use::Serves("chat".into())), "it routes nothing");
        let routing = serde_json::json!({
            "generation": 1, "variants": [{"revision": "1", "role": "stable", "weight": 100}],
        });
        release.status.as_mut().unwrap().routing = from_json(routing);
        assert!(uses_of(&release).contains(&Use::Serves("chat".into())), "until it is gone");
    }

    #[test]
    fn a_copy_is_found_by_its_release_and_by_the_route_in_its_note() {
        let copy = |note: &str| -> ReleaseSnapshot {
            from_json(serde_json::json!({
                "metadata": {
                    "name": "r-1", "namespace": "ns",
                    "annotations": {keys::REMEMBERED_ANNOTATION: note},
                },
                "spec": {"release": "r", "type": "Variant", "revision": "1"},
            }))
        };
        let note = serde_json::json!({
            "route": "chat", "since": "2026-01-01T00:00:00Z", "generation": 3,
            "stable": {"revision": "1", "prompt": "p", "backend": "b"},
        });
        let release = CopyKey::Release(Named::new("ns", "r"));
        let keys = keys_of_copy(&copy(&note.to_string()));
        assert_eq!(keys, [release.clone(), CopyKey::Route("chat".into())]);
        let mut moved = note.clone();
        moved["earlier"] = serde_json::json!([{
            "route": "old", "revision": "0", "failed": "2", "until": "2026-01-01T00:00:00Z",
        }]);
        let keys = keys_of_copy(&copy(&moved.to_string()));
        let routes = ["chat", "old"].map(|route| CopyKey::Route(route.into()));
        assert_eq!(keys[1..], routes);
        let [mut below, mut beyond] = [note.clone(), note];
        (below["generation"], beyond["generation"]) = ((-1).into(), i64::MAX.into());
        let [below, beyond] = [below.to_string(), beyond.to_string()];
        for unreadable in ["", "{}", "[1", "{\"route\": 7}", &below, &beyond] {
            assert_eq!(
                keys_of_copy(&copy(unreadable)),
                std::slice::from_ref(&release),
                "{unreadable}"
            );
        }
    }
}
