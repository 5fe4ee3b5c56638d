//! All routes. Reading takes no lock. A change of one route costs the same with ten
//! routes and with ten thousand: only the shard that holds it is copied.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    ReleaseInput, Route, World,
    build::{Built, build_route},
    problems::{ByRelease, Problem, Problems},
};
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
    /// What is wrong now.
    problems: ArcSwap<ByRelease>,
    backends: Backends,
}

/// What every release asks for. Of two that claim one route, the release that has the
/// route keeps it; at the start the older has it.
#[derive(Default)]
struct Claims {
    /// By route, the oldest first.
    by_route: HashMap<Arc<str>, Vec<Arc<ReleaseInput>>>,
    /// By `namespace/name`.
    of: HashMap<String, Arc<ReleaseInput>>,
}

/// How much of what was asked for is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Namespaces with releases that are to be served.
    pub namespaces: usize,
    /// Of these, namespaces of which no release is served.
    pub dark: usize,
    /// Some release is not served and may be soon, without a change by its owner.
    pub waits: bool,
}

impl RouteTable {
    /// No route yet; those to come lead to `backends`.
    pub(in crate::gateway) fn new(backends: Backends) -> Self {
        Self {
            routes: std::iter::repeat_with(ArcSwap::default).take(SHARDS).collect(),
            names: std::iter::repeat_with(ArcSwap::default).take(SHARDS).collect(),
            claims: Mutex::default(),
            problems: ArcSwap::default(),
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

    /// What is wrong, by release.
    pub(in crate::gateway) fn problems(&self) -> Arc<ByRelease> {
        self.problems.load_full()
    }

    /// How much of what was asked for is served.
    pub(in crate::gateway) fn standing(&self) -> Standing {
        let (claims, problems) = (self.claims(), self.problems());
        let unserved = |key: &String| problems.get(key).filter(|p| !p.served);
        let mut served = BTreeMap::<&str, bool>::new();
        let mut waits = false;
        for (key, input) in &claims.of {
            let unserved = unserved(key);
            *served.entry(&input.namespace).or_default() |= unserved.is_none();
            waits |= unserved.is_some_and(|p| p.all.iter().any(|p| p.fault.may_pass()));
        }
        let dark = served.values().filter(|served| !**served).count();
        Standing { namespaces: served.len(), dark, waits }
    }

    /// Follows a new world: what it does not hold is gone.
    pub fn replace(&self, world: &World) {
        let mut changes: BTreeMap<String, Option<Arc<ReleaseInput>>> =
            self.claims().of.keys().map(|key| (key.clone(), None)).collect();
        changes.extend(world.releases.iter().map(|input| (input.key(), Some(input.clone()))));
        self.apply(changes);
    }

    /// Follows changes of single releases, by `namespace/name`; none is one that is gone.
    ///
    /// A release whose routing can not be applied (stable is missing or not valid) keeps
    /// its previous route; what went wrong is told by [`RouteTable::problems`], and tried
    /// again with the next change of the release. Routes whose input did not change stay
    /// as they are.
    pub fn apply(&self, changes: impl IntoIterator<Item = (String, Option<Arc<ReleaseInput>>)>) {
        let mut claims = self.claims();
        let known = self.problems();
        let (mut touched, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for (key, input) in changes {
            if input.is_none() {
                gone.insert(key.clone());
            }
            claims.change(key, input, &known, &mut touched);
        }
        let mut told: BTreeMap<String, Option<Arc<Problems>>> =
            gone.into_iter().map(|key| (key, None)).collect();
        for route in touched {
            let claims = claims.by_route.get(&route).map_or(&[][..], Vec::as_slice);
            self.settle(&route, claims, &mut told);
        }
        told.retain(|key, now| known.get(key) != now.as_ref());
        if told.is_empty() {
            return;
        }
        let mut problems = ByRelease::clone(&known);
        for (key, now) in told {
            match now {
                Some(now) => problems.insert(key, now),
                None => problems.remove(&key),
            };
        }
        self.problems.store(Arc::new(problems));
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds the route `name` for the release that has it, and says what is wrong with
    /// each that claims it.
    fn settle(
        &self,
        name: &Arc<str>,
        claims: &[Arc<ReleaseInput>],
        told: &mut BTreeMap<String, Option<Arc<Problems>>>,
    ) {
        let old = self.get(name);
        let has_it =
            |input: &&Arc<ReleaseInput>| old.as_ref().is_some_and(|old| old.release == input.key());
        let Some(input) = claims.iter().find(has_it).or(claims.first()) else {
            self.put(name, old.as_deref(), None);
            return;
        };
        let key = input.key();
        for other in claims.iter().filter(|other| !Arc::ptr_eq(other, input)) {
            let problem = Problem::route_taken(name, &key);
            told.insert(other.key(), problems(other, false, vec![problem]));
        }
        let own = old.as_ref().filter(|old| old.release == key);
        if own.is_some_and(|own| own.input == *input) && !self.problems().contains_key(&key) {
            told.insert(key, None);
            return;
        }
        let now = match build_route(input, key.clone(), own.map(Arc::as_ref), &self.backends) {
            Ok(Built { route, problems: all }) => {
                self.put(name, old.as_deref(), Some(Arc::new(route)));
                problems(input, true, all)
            }
            Err(mut all) => {
                let before = own.and_then(|own| self.before(input, &key, own));
                let served = own.is_some();
                all.iter_mut().for_each(|problem| problem.kept = served);
                if before.is_some() || own.is_none() {
                    self.put(name, old.as_deref(), before.map(Arc::new));
                }
                problems(input, served, all)
            }
        };
        told.insert(key, now);
    }

    /// The routing before, with keys and limits as they are now: what serves on must not
    /// miss the rotation of a key because something else can not be built.
    fn before(&self, input: &ReleaseInput, key: &str, own: &Route) -> Option<Route> {
        let mut variants = own.input.variants.clone();
        variants.extend(input.variants.clone());
        let mut backends = own.input.backends.clone();
        backends.extend(input.backends.clone());
        let routing = own.input.routing.clone();
        let input = Arc::new(ReleaseInput { routing, variants, backends, ..input.clone() });
        let built = build_route(&input, key.to_owned(), Some(own), &self.backends);
        built.ok().map(|built| built.route)
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

fn problems(input: &ReleaseInput, served: bool, all: Vec<Problem>) -> Option<Arc<Problems>> {
    let (namespace, route) = (input.namespace.clone(), input.route.clone());
    let since = Instant::now();
    (!all.is_empty()).then(|| Arc::new(Problems { since, namespace, route, served, all }))
}

impl Claims {
    fn change(
        &mut self,
        key: String,
        input: Option<Arc<ReleaseInput>>,
        known: &ByRelease,
        touched: &mut BTreeSet<Arc<str>>,
    ) {
        if let Some(old) = self.of.get(&key) {
            let route = old.route.as_str();
            if input.as_ref() == Some(old) && !known.contains_key(&key) {
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
