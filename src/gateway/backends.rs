//! What all variants on one backend share in this process: the room for requests in
//! flight, and how busy each of its pods is. It outlives changes of routes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::http::{HeaderMap, Uri, uri::Authority};

use super::{
    clients::Clients,
    ends::Ends,
    gone::Gone,
    room::{Bounds, Room},
    sent::Sent,
};
use crate::{api::llm_deployment::Limits, audit::secrets::Secrets};

/// A pod that could not be reached is asked again after so long, unless all are like that.
const AVOIDED_MILLIS: u64 = 5_000;

/// All backends of a gateway, by `namespace/name`.
#[derive(Default)]
pub(super) struct Backends {
    pub clients: Clients,
    known: Mutex<HashMap<String, Weak<Shared>>>,
}

/// What is shared of one backend.
pub(super) struct Shared {
    bounds: Bounds,
    pub room: Arc<Room>,
    /// Whether it has its model.
    pub gone: Arc<Gone>,
    /// When that one ends.
    pub ends: Arc<Ends>,
    pods: Mutex<HashMap<SocketAddr, Weak<Pod>>>,
    /// One, unless variants were saved with different ones.
    addresses: Mutex<Vec<Weak<Address>>>,
}

/// Where a backend's requests go and what their headers say.
#[derive(Debug)]
pub(super) struct Address {
    /// By operation.
    pub uris: [Uri; 4],
    /// The API key among them.
    pub headers: HeaderMap,
    /// What else is sent that must not come back.
    pub sent: Sent,
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.uris == other.uris && self.headers == other.headers && self.sent.is_like(&other.sent)
    }
}

impl Address {
    /// The secrets among what is sent, to search answers for: those of a model's own
    /// words (`is_answer`), or those of an error, which may quote all of its request.
    pub(super) fn secrets(&self, is_answer: bool) -> &Arc<Secrets> {
        self.sent.secrets(&self.uris[0], &self.headers, is_answer)
    }
}

impl Backends {
    /// No backend yet; those to come are reached with `clients`.
    pub(super) fn new(clients: Clients) -> Self {
        Self { clients, known: Mutex::default() }
    }

    /// What is shared of a backend; other limits are another room.
    pub(super) fn get(&self, namespace: &str, name: &str, limits: &Limits) -> Arc<Shared> {
        let bounds = Bounds::of(limits);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{namespace}/{name}");
        let old = known.get(&key).and_then(Weak::upgrade);
        // Whether there is such a model, and until when, does not hang on limits.
        let model = old.as_ref().map(|old| (old.gone.clone(), old.ends.clone()));
        let (gone, ends) = model.unwrap_or_default();
        old.filter(|old| old.bounds == bounds).unwrap_or_else(|| {
            known.retain(|_, shared| shared.strong_count() > 0);
            let room = Arc::new(Room::new(bounds));
            let (pods, addresses) = Default::default();
            let shared = Arc::new(Shared { bounds, room, gone, ends, pods, addresses });
            known.insert(key, Arc::downgrade(&shared));
            shared
        })
    }
}

impl Shared {
    /// `address`, or the same one that another route has already.
    pub(super) fn address(&self, address: Address) -> Arc<Address> {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| known.strong_count() > 0);
        let same = known.iter().filter_map(Weak::upgrade).find(|known| **known == address);
        same.unwrap_or_else(|| {
            let address = Arc::new(address);
            known.push(Arc::downgrade(&address));
            address
        })
    }

    /// The pods at these addresses.
    pub(super) fn places(self: &Arc<Self>, addresses: &[SocketAddr]) -> Places {
        let mut known = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, pod| pod.strong_count() > 0);
        let pods = addresses.iter().filter_map(|address| {
            if let Some(pod) = known.get(address).and_then(Weak::upgrade) {
                return Some(pod);
            }
            let authority = address.to_string().parse().ok()?;
            let pod =
                Arc::new(Pod { authority, busy: AtomicUsize::new(0), avoided: AtomicU64::new(0) });
            known.insert(*address, Arc::downgrade(&pod));
            Some(pod)
        });
        Places { pods: pods.collect(), _of: Some(self.clone()) }
    }
}

/// One pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub authority: Authority,
    /// Requests in flight from this process.
    busy: AtomicUsize,
    /// Milliseconds on the gateway's clock until which others are asked instead.
    avoided: AtomicU64,
}

/// Where a backend's pods are.
#[derive(Clone, Default)]
pub(super) struct Places {
    pods: Box<[Arc<Pod>]>,
    /// Keeps what is shared alive.
    _of: Option<Arc<Shared>>,
}

impl Places {
    /// The pod with the fewest requests in flight; among equals by chance, so that many
    /// gateways do not agree on one. None when the backend's name is to be resolved.
    pub(super) fn pick(&self, now_millis: u64) -> Option<Taken> {
        let count = self.pods.len();
        if count == 0 {
            return None;
        }
        let start = rand::random_range(0..count);
        let (before, after) = self.pods.split_at(start);
        let all = || after.iter().chain(before);
        let least = |pods: &mut dyn Iterator<Item = &Arc<Pod>>| {
            pods.min_by_key(|pod| pod.busy.load(Ordering::Relaxed)).cloned()
        };
        let well = |pod: &&Arc<Pod>| pod.avoided.load(Ordering::Relaxed) <= now_millis;
        let pod = least(&mut all().filter(well)).or_else(|| least(&mut all()))?;
        pod.busy.fetch_add(1, Ordering::Relaxed);
        Some(Taken(pod))
    }
}

/// A pod that a request is at; let go when it is dropped.
#[derive(Debug)]
pub(super) struct Taken(Arc<Pod>);

impl Taken {
    /// Where it is.
    pub(super) fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// It could not be reached.
    pub(super) fn avoid(&self, now_millis: u64) {
        self.0.avoided.store(now_millis + AVOIDED_MILLIS, Ordering::Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn places(backends: &Backends, pods: u8) -> Places {
        let addresses: Vec<SocketAddr> =
            (0..pods).map(|i| SocketAddr::from(([10, 0, 0, i], 8000))).collect();
        backends.get("ns", "b", &Limits::default()).places(&addresses)
    }

    #[test]
    fn requests_spread_evenly_while_none_ends() {
        let backends = Backends::default();
        let places = places(&backends, 3);
        let taken: Vec<Taken> = (0..30).filter_map(|_| places.pick(0)).collect();
        assert_eq!(taken.len(), 30);
        let busy: Vec<usize> = places.pods.iter().map(|p| p.busy.load(Ordering::Relaxed)).collect();
        assert_eq!(busy, [10, 10, 10]);
        drop(taken);
        assert!(places.pods.iter().all(|p| p.busy.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_slow_pod_gets_fewer_requests() {
        let backends = Backends::default();
        let places = places(&backends, 2);
        let slow = places.pick(0).unwrap();
        for _ in 0..20 {
            let other = places.pick(0).unwrap();
            assert_ne!(other.authority(), slow.authority());
        }
    }

    #[test]
    fn a_pod_that_could_not_be_reached_is_avoided_for_a_while_unless_it_is_the_last() {
        let backends = Backends::default();
        let places = places(&backends, 2);
        let away = places.pick(0).unwrap().0.authority.clone();
        places
            .pods
            .iter()
            .find(|p| p.authority == away)
            .unwrap()
            .avoided
            .store(100, Ordering::Relaxed);
        assert!((0..20).all(|_| *places.pick(99).unwrap().authority() != away));
        let later: HashSet<Authority> =
            (0..40).map(|_| places.pick(100).unwrap().authority().clone()).collect();
        assert_eq!(later.len(), 2);
        places.pods.iter().for_each(|p| p.avoided.store(100, Ordering::Relaxed));
        assert!(places.pick(0).is_some());
    }

    #[test]
    fn how_busy_a_pod_is_outlives_a_change_of_addresses_and_of_routes() {
        let backends = Backends::default();
        let before = places(&backends, 1);
        let _in_flight = before.pick(0).unwrap();
        let after = places(&backends, 2);
        drop(before);
        assert_eq!(after.pods[0].busy.load(Ordering::Relaxed), 1);
        let none = Places::default();
        assert!(none.pick(0).is_none(), "its name is resolved");
    }
}
