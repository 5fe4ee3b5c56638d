//! All routes. Reading takes no lock. A change of one route costs the same with ten
//! routes and with ten thousand: only the shard that holds it is copied.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use xxhash_rust::xxh3::xxh3_64;

use super::{ReleaseInput, Route, World, build::build_route};
use crate::gateway::backends::Backends;

/// Ten thousand routes are forty a shard.
const SHARDS: usize = 256;

type Shard<K, V> = ArcSwap<HashMap<K, V>>;

/// All routes.
pub struct RouteTable {
    /// By the model name that applications send.
    routes: Vec<Shard<Arc<str>, Arc<Route>>>,
    /// The names of routes by the short hash of their release.
    names: Vec<Shard<u32, Arc<str>>>,
    claims: Mutex<Claims>,
    backends: Backends,
}

/// What every release asks for. Of two that claim one route the older has it.
#[derive(Default)]
struct Claims {
    /// By route, the oldest first.
    by_route: HashMap<Arc<str>, Vec<Arc<ReleaseInput>>>,
    /// By `namespace/name`.
    of: HashMap<String, Arc<ReleaseInput>>,
    /// Routes that do not show what was asked for.
    broken: HashSet<Arc<str>>,
}

impl RouteTable {
    /// No route yet; those to come lead to `backends`.
    pub(in crate::gateway) fn new(backends: Backends) -> Self {
        Self {
            routes: std::iter::repeat_with(ArcSwap::default).take(SHARDS).collect(),
            names: std::iter::repeat_with(ArcSwap::default).take(SHARDS).collect(),
            claims: Mutex::default(),
            backends,
        }
    }

    /// The route of a model name.
    pub fn get(&self, model: &str) -> Option<Arc<Route>> {
        self.routes[shard(model)].load().get(model).cloned()
    }

    /// The route of the release with this short hash.
    pub fn of_release(&self, hash: u32) -> Option<Arc<Route>> {
        let name = self.names[hash as usize % SHARDS].load().get(&hash).cloned()?;
        self.get(&name)
    }

    /// All routes, in no order.
    pub fn all(&self) -> Vec<Arc<Route>> {
        self.routes.iter().flat_map(|s| s.load().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Follows a new world: what it does not hold is gone. Returns what could not be applied.
    pub fn replace(&self, world: &World) -> Vec<String> {
        let mut changes: BTreeMap<String, Option<Arc<ReleaseInput>>> =
            self.claims().of.keys().map(|key| (key.clone(), None)).collect();
        changes.extend(world.releases.iter().map(|input| (input.key(), Some(input.clone()))));
        self.apply(changes)
    }

    /// Follows changes of single releases, by `namespace/name`; none is one that is gone.
    ///
    /// A release whose routing can not be applied (a variant is missing or not valid)
    /// keeps its previous route; what went wrong is returned, and tried again with the
    /// next change of the release. Routes whose input did not change stay as they are.
    pub fn apply(
        &self,
        changes: impl IntoIterator<Item = (String, Option<Arc<ReleaseInput>>)>,
    ) -> Vec<String> {
        let mut claims = self.claims();
        let mut touched = BTreeSet::new();
        for (key, input) in changes {
            claims.change(key, input, &mut touched);
        }
        let mut problems = vec![];
        for route in touched {
            let before = problems.len();
            self.settle(
                &route,
                claims.by_route.get(&route).map_or(&[], Vec::as_slice),
                &mut problems,
            );
            if problems.len() > before {
                claims.broken.insert(route);
            } else {
                claims.broken.remove(&route);
            }
        }
        problems
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, name: &Arc<str>, claims: &[Arc<ReleaseInput>], problems: &mut Vec<String>) {
        let old = self.get(name);
        let Some((input, younger)) = claims.split_first() else {
            self.put(name, old.as_deref(), None);
            return;
        };
        let key = input.key();
        for younger in younger.iter().map(|input| input.key()) {
            problems
                .push(format!("{younger}: the route {name} is held by the older release {key}"));
        }
        let own = old.as_ref().filter(|old| old.release == key);
        if own.is_some_and(|own| own.input == *input) {
            return;
        }
        match build_route(input, key, own.map(Arc::as_ref), &self.backends) {
            Ok(route) => self.put(name, old.as_deref(), Some(Arc::new(route))),
            Err(problem) => {
                problems.push(problem);
                if own.is_none() {
                    self.put(name, old.as_deref(), None);
                }
            }
        }
    }

    fn put(&self, name: &Arc<str>, old: Option<&Route>, new: Option<Arc<Route>>) {
        if let Some(old) = old {
            let hash = old.release_hash;
            change(&self.names[hash as usize % SHARDS], hash, None);
        }
        if let Some(new) = &new {
            let hash = new.release_hash;
            change(&self.names[hash as usize % SHARDS], hash, Some(name.clone()));
        }
        change(&self.routes[shard(name)], name.clone(), new);
    }
}

impl Claims {
    fn change(
        &mut self,
        key: String,
        input: Option<Arc<ReleaseInput>>,
        touched: &mut BTreeSet<Arc<str>>,
    ) {
        if let Some(old) = self.of.get(&key) {
            let route = old.route.as_str();
            if input.as_ref() == Some(old) && !self.broken.contains(route) {
                return;
            }
            if let Entry::Occupied(mut held) = self.by_route.entry(route.into()) {
                held.get_mut().retain(|other| !Arc::ptr_eq(other, old));
                if held.get().is_empty() {
                    held.remove();
                }
            }
            touched.insert(route.into());
        }
        let Some(input) = input else {
            self.of.remove(&key);
            return;
        };
        let route: Arc<str> = input.route.as_str().into();
        let held = self.by_route.entry(route.clone()).or_default();
        let age = |input: &ReleaseInput| (input.created.clone(), input.key());
        let own = age(&input);
        held.insert(held.partition_point(|other| age(other) < own), input.clone());
        touched.insert(route);
        self.of.insert(key, input);
    }
}

fn shard(name: &str) -> usize {
    xxh3_64(name.as_bytes()) as usize % SHARDS
}

/// Copies a shard with one change. Only who holds the claims writes.
fn change<K: Clone + Eq + std::hash::Hash, V: Clone>(
    shard: &Shard<K, V>,
    key: K,
    value: Option<V>,
) {
    let mut copy = HashMap::clone(&shard.load());
    match value {
        Some(value) => copy.insert(key, value),
        None => copy.remove(&key),
    };
    shard.store(Arc::new(copy));
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use jiff::Timestamp;

    use crate::gateway::{Gateway, GatewayConfig, identity::Identities};

    #[test]
    fn a_request_finds_its_route_while_a_change_is_being_made() {
        let gateway = Gateway::new(GatewayConfig {
            identities: Identities::off(),
            ..GatewayConfig::new(|| Timestamp::UNIX_EPOCH)
        });
        let table = &gateway.table;
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let changing = table.claims();
            scope.spawn(move || tell.send((table.get("chat").is_some(), table.all().len())));
            // A reader that waits for the change waits for ever.
            let found = told.recv_timeout(Duration::from_secs(60));
            drop(changing);
            assert_eq!(found, Ok((false, 0)));
        });
    }
}
