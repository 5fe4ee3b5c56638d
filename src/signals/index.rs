//! Which objects have a key: look-ups without a scan, kept by the events of a watch.
//!
//! An index changes right after its store, by the same events: the store is never older
//! than the index. A watch that was interrupted lists again; an object that the new list
//! does not have is reported as gone, which the stream of touched objects does not do.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, PoisonError, RwLock},
};

use kube::{Resource, ResourceExt, runtime::watcher};

/// An object's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Named {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// As `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Of an object.
    pub fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

/// An object that has other keys than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<Key> {
    /// Which object.
    pub object: Arc<Named>,
    /// The keys that it has no more.
    pub left: Vec<Key>,
    /// The keys that it has now and had not.
    pub joined: Vec<Key>,
    /// It does not exist any more.
    pub gone: bool,
}

/// The objects of a kind by their keys.
pub struct Index<Key>(RwLock<Maps<Key>>);

/// Sorted; a key that several objects have is kept once.
type Keys<Key> = Box<[Arc<Key>]>;

struct Maps<Key> {
    objects: HashMap<Arc<Named>, Keys<Key>>,
    by_key: HashMap<Arc<Key>, Vec<Arc<Named>>>,
    /// What a list that is not complete yet has told.
    list: Option<List<Key>>,
}

struct List<Key> {
    objects: HashMap<Arc<Named>, Keys<Key>>,
    /// Those that no object had before.
    new: HashSet<Arc<Key>>,
}

impl<Key> Default for Index<Key> {
    fn default() -> Self {
        Self(RwLock::new(Maps { objects: HashMap::new(), by_key: HashMap::new(), list: None }))
    }
}

impl<Key> Default for List<Key> {
    fn default() -> Self {
        Self { objects: HashMap::new(), new: HashSet::new() }
    }
}

impl<Key: Clone + Eq + Hash + Ord> Index<Key> {
    /// The objects that have `key`.
    pub fn having(&self, key: &Key) -> Vec<Arc<Named>> {
        let maps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        maps.by_key.get(key).cloned().unwrap_or_default()
    }

    /// Takes note of an event, and hands on what changes.
    pub fn note<K: Resource>(
        &self,
        event: &watcher::Event<K>,
        keys: impl Fn(&K) -> Vec<Key>,
        mut changed: impl FnMut(Change<Key>),
    ) {
        let keys = |object: &K| {
            let mut keys = keys(object);
            keys.sort_unstable();
            keys.dedup();
            keys
        };
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changes = match event {
            watcher::Event::Apply(object) => {
                let keys = keys(object);
                maps.set(Arc::new(Named::of(object)), Some(keys)).into_iter().collect()
            }
            watcher::Event::Delete(object) => {
                maps.set(Arc::new(Named::of(object)), None).into_iter().collect()
            }
            watcher::Event::Init => {
                maps.list = Some(List::default());
                vec![]
            }
            watcher::Event::InitApply(object) => {
                maps.listed(Arc::new(Named::of(object)), keys(object));
                vec![]
            }
            watcher::Event::InitDone => maps.replace(),
        };
        drop(maps);
        changes.into_iter().for_each(&mut changed);
    }
}

impl<Key: Clone + Eq + Hash + Ord> Maps<Key> {
    /// Everything is what the list has told.
    fn replace(&mut self) -> Vec<Change<Key>> {
        let list = self.list.take().unwrap_or_default().objects;
        let gone: Vec<Arc<Named>> =
            self.objects.keys().filter(|known| !list.contains_key(*known)).cloned().collect();
        let gone = gone.into_iter().map(|object| (object, None));
        let all: Vec<_> = gone.chain(list.into_iter().map(|(o, keys)| (o, Some(keys)))).collect();
        all.into_iter().filter_map(|(object, keys)| self.set_shared(object, keys)).collect()
    }

    /// Takes an object of a list.
    fn listed(&mut self, object: Arc<Named>, keys: Vec<Key>) {
        let List { objects, new } = self.list.get_or_insert_default();
        let shared = |key: Key| match self.by_key.get_key_value(&key) {
            Some((known, _)) => known.clone(),
            None => new.get(&key).cloned().unwrap_or_else(|| {
                let key = Arc::new(key);
                new.insert(key.clone());
                key
            }),
        };
        objects.insert(object, keys.into_iter().map(shared).collect());
    }

    /// Sets the keys of an object; without any it does not exist.
    fn set(&mut self, object: Arc<Named>, keys: Option<Vec<Key>>) -> Option<Change<Key>> {
        let shared = |key: Key| match self.by_key.get_key_value(&key) {
            Some((known, _)) => known.clone(),
            None => Arc::new(key),
        };
        let keys = keys.map(|keys| keys.into_iter().map(shared).collect());
        self.set_shared(object, keys)
    }

    fn set_shared(&mut self, object: Arc<Named>, keys: Option<Keys<Key>>) -> Option<Change<Key>> {
        let gone = keys.is_none();
        let now = keys.as_deref().unwrap_or_default();
        let (object, before) = match self.objects.get_key_value(&object) {
            Some((known, before)) => (known.clone(), before.clone()),
            None if gone => return None,
            None => (object, Box::default()),
        };
        let not_in = |these: &[Arc<Key>], those: &[Arc<Key>]| -> Vec<Arc<Key>> {
            these.iter().filter(|key| those.binary_search(key).is_err()).cloned().collect()
        };
        let (left, joined) = (not_in(&before, now), not_in(now, &before));
        for key in &left {
            if let Some(having) = self.by_key.get_mut(key) {
                having.retain(|other| !Arc::ptr_eq(other, &object));
                if having.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        for key in &joined {
            self.by_key.entry(key.clone()).or_default().push(object.clone());
        }
        match keys {
            Some(keys) => self.objects.insert(object.clone(), keys),
            None => self.objects.remove(&object),
        };
        let changes = gone || !left.is_empty() || !joined.is_empty();
        let told = |keys: Vec<Arc<Key>>| keys.iter().map(|key| (**key).clone()).collect();
        changes.then(|| Change { object, left: told(left), joined: told(joined), gone })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;

    use super::*;

    fn object(name: &str, keys: &[&str]) -> ConfigMap {
        let labels = keys.iter().map(|key| ((*key).to_owned(), String::new())).collect();
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object.metadata.labels = Some(labels);
        object
    }

    #[derive(Default)]
    struct Kept(Index<String>, Vec<String>);

    impl Kept {
        fn note(&mut self, event: Event<ConfigMap>) -> Vec<String> {
            let keys = |o: &ConfigMap| o.labels().keys().cloned().collect();
            self.1.clear();
            self.0.note(&event, keys, |change| {
                let gone = if change.gone { " gone" } else { "" };
                let Change { object, left, joined, .. } = change;
                self.1
                    .push(format!("{} -{left:?} +{joined:?}{gone}", object.name).replace('"', ""));
            });
            self.1.sort();
            self.1.clone()
        }

        fn having(&self, key: &str) -> Vec<String> {
            let mut names: Vec<String> =
                self.0.having(&key.to_owned()).iter().map(|o| o.name.clone()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn objects_are_found_by_the_keys_that_they_have_now() {
        let mut kept = Kept::default();
        assert_eq!(kept.note(Event::Apply(object("a", &["x", "y"]))), ["a -[] +[x, y]"]);
        assert_eq!(kept.note(Event::Apply(object("b", &["y"]))), ["b -[] +[y]"]);
        assert_eq!(kept.note(Event::Apply(object("b", &["y"]))), Vec::<String>::new());
        assert_eq!(kept.having("y"), ["a", "b"]);
        assert_eq!(kept.note(Event::Apply(object("a", &["y", "z"]))), ["a -[x] +[z]"]);
        assert!(kept.having("x").is_empty());
        assert_eq!(kept.note(Event::Delete(object("a", &["y"]))), ["a -[y, z] +[] gone"]);
        assert_eq!((kept.having("y"), kept.having("z")), (vec!["b".to_owned()], vec![]));
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone_and_until_then_the_old_list_counts() {
        let mut kept = Kept::default();
        for event in [
            Event::Init,
            Event::InitApply(object("a", &["x"])),
            Event::InitApply(object("b", &["x"])),
        ] {
            assert!(kept.note(event).is_empty());
        }
        assert!(kept.having("x").is_empty());
        assert_eq!(kept.note(Event::InitDone), ["a -[] +[x]", "b -[] +[x]"]);
        kept.note(Event::Init);
        kept.note(Event::InitApply(object("b", &["y"])));
        assert_eq!(kept.having("x"), ["a", "b"]);
        assert_eq!(kept.note(Event::InitDone), ["a -[x] +[] gone", "b -[x] +[y]"]);
        assert!(kept.having("x").is_empty());
        assert_eq!(kept.having("y"), ["b"]);
    }
}
