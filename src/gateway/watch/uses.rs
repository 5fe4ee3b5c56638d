//! Which releases use what, so that a change reaches those and no others.

use std::collections::{BTreeSet, HashMap};

/// A release: namespace and name.
type Release = (String, String);

/// Something that a route depends on, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Thing {
    /// The release itself, or a copy that it saved.
    Release(String, String),
    Backend(String, String),
    Service(String, String),
    /// And the key within it.
    Secret(String, String, String),
}

#[derive(Default)]
pub(super) struct Uses {
    of: HashMap<Release, Box<[Thing]>>,
    users: HashMap<Thing, BTreeSet<Release>>,
}

impl Uses {
    /// A release depends on these things from now on, and no others; none: it is gone.
    pub(super) fn set(&mut self, release: Release, things: Option<BTreeSet<Thing>>) {
        for thing in self.of.remove(&release).into_iter().flatten() {
            if let Some(users) = self.users.get_mut(&thing) {
                users.remove(&release);
                if users.is_empty() {
                    self.users.remove(&thing);
                }
            }
        }
        let Some(things) = things else { return };
        for thing in &things {
            self.users.entry(thing.clone()).or_default().insert(release.clone());
        }
        // Also one that depends on nothing yet: it must be missed when it goes.
        self.of.insert(release, things.into_iter().collect());
    }

    /// All releases.
    pub(super) fn releases(&self) -> impl Iterator<Item = &Release> {
        self.of.keys()
    }

    /// Adds the releases that a change of `thing` is about.
    pub(super) fn releases_of(&self, thing: &Thing, releases: &mut BTreeSet<Release>) {
        match thing {
            Thing::Release(namespace, name) => {
                releases.insert((namespace.clone(), name.clone()));
            }
            other => releases.extend(self.users.get(other).into_iter().flatten().cloned()),
        }
    }

    /// The Secrets that are in use: namespace, name, key.
    pub(super) fn secrets(&self) -> BTreeSet<(String, String, String)> {
        let secret = |thing: &Thing| match thing {
            Thing::Secret(namespace, name, key) => {
                Some((namespace.clone(), name.clone(), key.clone()))
            }
            _ => None,
        };
        self.users.keys().filter_map(secret).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: &str, b: &str) -> (String, String) {
        (a.to_owned(), b.to_owned())
    }

    fn backend(name: &str) -> Thing {
        Thing::Backend("ns".to_owned(), name.to_owned())
    }

    fn reached(uses: &Uses, thing: &Thing) -> Vec<String> {
        let mut releases = BTreeSet::new();
        uses.releases_of(thing, &mut releases);
        releases.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn a_change_reaches_who_uses_it_now() {
        let mut uses = Uses::default();
        uses.set(pair("ns", "a"), Some([backend("x"), backend("y")].into()));
        uses.set(pair("ns", "b"), Some([backend("y")].into()));
        assert_eq!(reached(&uses, &backend("y")), ["a", "b"]);
        uses.set(pair("ns", "a"), Some([backend("x")].into()));
        assert_eq!(reached(&uses, &backend("y")), ["b"]);
        uses.set(pair("ns", "b"), None);
        assert!(reached(&uses, &backend("y")).is_empty());
        assert_eq!((uses.of.len(), uses.users.len()), (1, 1), "nothing is left of what is gone");
        let release = Thing::Release("ns".to_owned(), "new".to_owned());
        assert_eq!(reached(&uses, &release), ["new"]);
    }
}
