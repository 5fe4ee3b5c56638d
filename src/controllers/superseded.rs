//! Versions of objects that this process has replaced. A cache shows what was written only
//! when the watch tells of it; whoever looks in between decides on what is no more so, and
//! writes what the API server refuses (409). So a look waits for the watch.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kube::Resource;

/// The watch wakes a look that waits for it. This is for a watch that does not.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// More than are ever waited for at once. An object that was deleted before the cache showed its
/// write is looked at no more, and its versions would stay.
const MOST: usize = 4_096;

/// By kind, namespace and name: the versions that were replaced since the cache last showed
/// one that was not. Resource versions are compared for being equal only.
#[derive(Debug, Default)]
pub struct Superseded(Mutex<BTreeMap<[String; 3], Vec<String>>>);

impl Superseded {
    /// `object` was written, and its version is not the current one any more.
    pub fn add<K: Resource<DynamicType = ()>>(&self, object: &K) {
        let Some(version) = object.meta().resource_version.clone() else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is forgotten costs a write that the API server refuses.
        if known.len() >= MOST {
            known.clear();
        }
        known.entry(key(object)).or_default().push(version);
    }

    /// Whether `object`, as the cache has it, is known to be of before.
    pub fn has<K: Resource<DynamicType = ()>>(&self, object: &K) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(object);
        let Some(versions) = known.get(&key) else { return false };
        let is_behind =
            object.meta().resource_version.as_ref().is_some_and(|v| versions.contains(v));
        if !is_behind {
            known.remove(&key);
        }
        is_behind
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> [String; 3] {
    let meta = object.meta();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    [K::kind(&()).into_owned(), text(&meta.namespace), text(&meta.name)]
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;
    use crate::api::{CanaryPolicy, PromptRelease};

    fn release(name: &str, version: &str) -> PromptRelease {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        PromptRelease { metadata, ..PromptRelease::default() }
    }

    #[test]
    fn what_is_never_looked_at_again_does_not_stay_for_ever() {
        let superseded = Superseded::default();
        for deleted in 0..10 * MOST {
            superseded.add(&release(&deleted.to_string(), "1"));
        }
        assert!(superseded.0.lock().unwrap().len() <= MOST);
        superseded.add(&release("a", "1"));
        assert!(superseded.has(&release("a", "1")));
    }

    #[test]
    fn a_look_waits_until_the_cache_shows_what_was_written() {
        let superseded = Superseded::default();
        assert!(!superseded.has(&release("a", "1")));
        // Two writes in one look: 1 became 2, and 2 became 3.
        superseded.add(&release("a", "1"));
        superseded.add(&release("a", "2"));
        assert!(superseded.has(&release("a", "1")) && superseded.has(&release("a", "2")));
        assert!(!superseded.has(&release("b", "1")));
        let other =
            CanaryPolicy { metadata: release("a", "1").metadata, ..CanaryPolicy::default() };
        assert!(!superseded.has(&other), "another kind");
        // Own, or somebody else's on top of it.
        assert!(!superseded.has(&release("a", "4")));
        assert!(superseded.0.lock().unwrap().is_empty());
    }
}
