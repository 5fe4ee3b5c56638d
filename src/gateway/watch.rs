//! A gateway in a cluster: what the operator decided, from watches to the route table.
//!
//! Reads releases, their saved copies, backends and where the pods of their Services are;
//! of Secrets, only the ones that a routed backend names, one by one, so that it needs no
//! right to list them. Only the routes that a change is about are built again, so that a
//! change costs the same with ten releases and with ten thousand.

mod kept;
mod uses;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::Secret,
    discovery::v1::{EndpointPort, EndpointSlice},
};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::{sync::Notify, task::JoinSet, time::Instant};

use self::{
    kept::{Kept, Release, SavedCopy, trim_slice},
    uses::{Thing, Uses},
};
use super::{
    Gateway,
    notices::Notice,
    routes::{Fault, Faults, Grants, ReleaseInput},
};
use crate::{
    api::{
        LLMDeploymentSpec, keys,
        llm_deployment::{SecretKeyRef, key_in_words},
        secret::SecretText,
        snapshot::{PackedVariant, copy_name},
    },
    signals::{
        api_server::said,
        endpoints::{SERVICE_LABEL, endpoints, for_requests},
        index::Named,
        watch::{Filled, cache, follow},
    },
};

/// Changes that come together are applied together.
const SETTLE: Duration = Duration::from_millis(20);
/// How often a Secret is read again.
const SECRET_AGE: Duration = Duration::from_secs(30);

/// One key of one Secret: namespace, name, key.
type SecretId = (String, String, String);

/// What was touched and not looked at yet.
#[derive(Default)]
struct Touched {
    things: Mutex<BTreeSet<Thing>>,
    some: Notify,
}

impl Touched {
    fn add(&self, thing: Option<Thing>) {
        let Some(thing) = thing else { return };
        self.things.lock().unwrap_or_else(PoisonError::into_inner).insert(thing);
        self.some.notify_one();
    }

    fn take(&self) -> BTreeSet<Thing> {
        std::mem::take(&mut *self.things.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Followed {
    filled: [Filled; 3],
    client: Client,
    releases: Store<Kept<Release>>,
    backends: Store<Kept<Arc<LLMDeploymentSpec>>>,
    copies: Store<Kept<SavedCopy>>,
    slices: Store<EndpointSlice>,
    by_service: Slices,
    uses: Uses,
    secrets: BTreeMap<SecretId, ReadSecret>,
    /// Not by the wall clock: one that was ahead and is set right would stop this until it is
    /// there again.
    secrets_read: Instant,
}

/// The slices of each Service, by namespace and name.
type Slices = Arc<Mutex<HashMap<(String, String), BTreeMap<String, EndpointSlice>>>>;

/// Keeps `gateway` on what the operator decided, until the process stops.
///
/// # Errors
/// A watch ended, which it does not by itself.
pub async fn follow_cluster(
    gateway: Arc<Gateway>,
    client: Client,
    namespace: Option<String>,
) -> Result<(), WatchEnded> {
    let namespace = namespace.as_deref();
    let touched = Arc::new(Touched::default());
    let of_services = watcher::Config::default().labels(SERVICE_LABEL);
    let all = watcher::Config::default;
    let (releases, releases_watch, of_releases) = cache(&client, namespace, all(), |_| ());
    let (backends, backends_watch, of_backends) = cache(&client, namespace, all(), |_| ());
    let (copies, copies_watch, of_copies) = cache(&client, namespace, all(), |_| ());
    let (slices, slices_watch, of_slices) = cache(&client, namespace, of_services, trim_slice);
    gateway.notices().set_watches(vec![
        ("PromptRelease", of_releases.clone()),
        ("LLMDeployment", of_backends.clone()),
        ("ReleaseSnapshot", of_copies.clone()),
        ("EndpointSlice", of_slices),
    ]);
    let by_service = Slices::default();
    let mut tasks = JoinSet::new();
    let told = touched.clone();
    tasks.spawn(follow(releases_watch, "PromptRelease", move |release: Kept<Release>| {
        told.add(thing(Thing::Release, &release, release.name_any()));
    }));
    let told = touched.clone();
    tasks.spawn(follow(backends_watch, "LLMDeployment", move |backend: Kept<_>| {
        told.add(thing(Thing::Backend, &backend, backend.name_any()));
    }));
    let told = touched.clone();
    tasks.spawn(follow(copies_watch, "ReleaseSnapshot", move |copy: Kept<SavedCopy>| {
        told.add(thing(Thing::Release, &copy, copy.what.release.clone()));
    }));
    let (told, kept, known) = (touched.clone(), by_service.clone(), slices.clone());
    tasks.spawn(follow(slices_watch, "EndpointSlice", move |slice: EndpointSlice| {
        let exists = known.get(&ObjectRef::from_obj(&slice)).is_some();
        told.add(keep_slice(&kept, slice, exists));
    }));
    let mut followed = Followed {
        filled: [of_releases, of_backends, of_copies],
        client,
        releases,
        backends,
        copies,
        slices,
        by_service,
        uses: Uses::default(),
        secrets: BTreeMap::new(),
        secrets_read: Instant::now(),
    };
    tokio::select! {
        _ = tasks.join_next() => Err(WatchEnded),
        result = followed.apply(&gateway, &touched) => result,
    }
}

/// A watch ended.
#[derive(Debug, thiserror::Error)]
#[error("a watch ended")]
pub struct WatchEnded;

fn thing(
    kind: fn(String, String) -> Thing,
    object: &impl ResourceExt,
    name: String,
) -> Option<Thing> {
    Some(kind(object.namespace()?, name))
}

/// Keeps a slice by its Service, or forgets one that is gone.
fn keep_slice(slices: &Slices, slice: EndpointSlice, exists: bool) -> Option<Thing> {
    let service = slice.labels().get(SERVICE_LABEL)?.clone();
    let key = (slice.namespace()?, service);
    let mut slices = slices.lock().unwrap_or_else(PoisonError::into_inner);
    let of = slices.entry(key.clone()).or_default();
    if exists {
        of.insert(slice.name_any(), slice);
    } else {
        of.remove(&slice.name_any());
    }
    if of.is_empty() {
        slices.remove(&key);
    }
    Some(Thing::Service(key.0, key.1))
}

impl Followed {
    async fn apply(&mut self, gateway: &Gateway, touched: &Touched) -> Result<(), WatchEnded> {
        for store in &self.filled {
            if !store.wait().await {
                return Err(WatchEnded);
            }
        }
        loop {
            let mut changed = BTreeSet::new();
            for thing in touched.take() {
                self.uses.releases_of(&thing, &mut changed);
            }
            if self.secrets_read.elapsed() >= SECRET_AGE {
                self.secrets_read = Instant::now();
                self.read_secrets_again(&mut changed).await;
                self.miss(&mut changed);
            }
            let (mut inputs, mut unserved) = (BTreeMap::new(), vec![]);
            for (namespace, name) in changed {
                let input = self.input(&namespace, &name);
                let why = self.why_unserved(&namespace, &name);
                let on = input.as_ref().map(things);
                // Also what is told of a release without a route must end when it is gone.
                let on = on.or_else(|| why.is_some().then(BTreeSet::new));
                self.uses.set((namespace.clone(), name.clone()), on);
                let input = match input {
                    Some(input) => Some(Arc::new(self.with_secrets(input).await)),
                    None => None,
                };
                let key = format!("{namespace}/{name}");
                unserved.push((key.clone(), why));
                inputs.insert(key, input);
            }
            gateway.change(inputs);
            gateway.notices().set_unserved(unserved);
            tokio::select! {
                () = touched.some.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(SECRET_AGE) => {}
            }
        }
    }

    /// Finds what went away while a watch was interrupted: nobody tells of that.
    fn miss(&self, changed: &mut BTreeSet<(String, String)>) {
        let gone = |(namespace, name): &&(String, String)| {
            self.releases.get(&ObjectRef::new(name).within(namespace)).is_none()
        };
        changed.extend(self.uses.releases().filter(gone).cloned());
        let mut by_service = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        by_service.retain(|(namespace, service), slices| {
            let before = slices.len();
            slices.retain(|name, _| {
                self.slices.get(&ObjectRef::new(name).within(namespace)).is_some()
            });
            if slices.len() < before {
                let service = Thing::Service(namespace.clone(), service.clone());
                self.uses.releases_of(&service, changed);
            }
            !slices.is_empty()
        });
    }

    /// What a release's route is made of; none without a release or a routing.
    fn input(&self, namespace: &str, name: &str) -> Option<ReleaseInput> {
        let release = self.releases.get(&ObjectRef::new(name).within(namespace))?;
        let Release { route, created, routing, trial, other_backends, cache, unread, .. } =
            release.what.clone();
        if routing.variants.is_empty() {
            return None;
        }
        let [_, of_backends, of_copies] = &self.filled;
        let mut variants = HashMap::new();
        let mut faults = Faults { variants: unread, ..Faults::default() };
        let routed = routing.variants.iter().map(|routed| &routed.revision);
        for revision in routed.chain(&trial) {
            let copy = copy_name(name, revision);
            let saved = self.copies.get(&ObjectRef::new(&copy).within(namespace));
            let unread = || of_copies.why_unread(&Named::new(namespace, copy)).map(Err);
            match saved.and_then(|copy| copy.what.variant.clone()).or_else(unread) {
                Some(Ok(variant)) => _ = variants.insert(revision.clone(), variant),
                Some(Err(why)) => _ = faults.copies.insert(revision.clone(), why),
                None => {}
            }
        }
        let others = other_backends.iter().map(String::as_str);
        let names: BTreeSet<&str> = variants
            .values()
            .map(|v: &Arc<PackedVariant>| &*v.backend_name)
            .chain(others)
            .collect();
        let mut backends: HashMap<String, Arc<LLMDeploymentSpec>> = HashMap::new();
        for name in names {
            if let Some(backend) = self.backends.get(&ObjectRef::new(name).within(namespace)) {
                backends.insert(name.to_owned(), backend.what.clone());
            } else if let Some(why) = of_backends.why_unread(&Named::new(namespace, name)) {
                let why = format!("LLMDeployment {name} is there and can not be read: {why}");
                faults.backends.insert(name.to_owned(), why);
            }
        }
        let mut input = ReleaseInput {
            uid: release.uid().unwrap_or_default(),
            route,
            created,
            routing,
            trial,
            faults,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            variants,
            backends,
            other_backends,
            cache,
            secrets: HashMap::new(),
            grants: Grants::none(),
            endpoints: HashMap::new(),
        };
        input.endpoints = input
            .all_backends()
            .filter_map(|(name, spec)| Some((name.to_owned(), self.pods(namespace, name, &spec)?)))
            .collect();
        Some(input)
    }

    /// Why the operator gives a release no routing, as its status says.
    fn why_unserved(&self, namespace: &str, name: &str) -> Option<Arc<Notice>> {
        let release = self.releases.get(&ObjectRef::new(name).within(namespace))?;
        release.what.unserved.clone()
    }

    /// Where a backend's pods are; none where its name must be resolved.
    fn pods(
        &self,
        namespace: &str,
        backend: &str,
        spec: &LLMDeploymentSpec,
    ) -> Option<Vec<std::net::SocketAddr>> {
        let (service, port) = spec.service_of(backend)?;
        let slices = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        let slices = slices.get(&(namespace.to_owned(), service.to_owned()))?;
        // A Service with one port has one here, too. With several, a slice tells their
        // numbers on the pods, which are those of the Service unless it maps them.
        let ports = slices.values().flat_map(|s| s.ports.iter().flatten());
        let several = ports.map(|p| p.port).collect::<BTreeSet<_>>().len() > 1;
        let wanted = |p: &EndpointPort| !several || p.port == Some(port);
        let pods = for_requests(&endpoints(slices.values(), wanted));
        Some(pods).filter(|pods| !pods.is_empty())
    }

    /// Gives API keys and certificates; reads the Secrets that are named for the first
    /// time. One that can not be read is asked for again when all are.
    async fn with_secrets(&mut self, mut input: ReleaseInput) -> ReleaseInput {
        let wanted: BTreeSet<SecretId> = secrets(&input).collect();
        for id in wanted {
            let known = self.secrets.get(&id).cloned();
            let read = match known {
                Some(known) => Ok(known),
                None => self.read_secret(&id).await,
            };
            let (_, name, key) = &id;
            let wanted = SecretKeyRef { name: name.clone(), key: key.clone() };
            match read {
                Ok(read) => {
                    input.grants.allow(&wanted.name, &read.hosts);
                    input.secrets.insert(wanted, read.text.clone());
                    self.secrets.insert(id, read);
                }
                Err(fault) => _ = input.faults.secrets.insert(wanted, fault),
            }
        }
        input
    }

    /// Reads every Secret that is in use. One that can not be read keeps its last value.
    async fn read_secrets_again(&mut self, changed: &mut BTreeSet<(String, String)>) {
        let used = self.uses.secrets();
        self.secrets.retain(|id, _| used.contains(id));
        for id in used {
            let value = match self.read_secret(&id).await {
                Ok(value) => value,
                Err(fault) => {
                    let (namespace, name, _) = &id;
                    tracing::debug!(namespace, name, "keeps its last value: {}", fault.message);
                    continue;
                }
            };
            if self.secrets.get(&id) != Some(&value) {
                self.secrets.insert(id.clone(), value);
                let (namespace, name, key) = id;
                self.uses.releases_of(&Thing::Secret(namespace, name, key), changed);
            }
        }
    }

    async fn read_secret(&self, (namespace, name, key): &SecretId) -> Result<ReadSecret, Fault> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = api.get_opt(name).await.map_err(|error| {
            let message = match &error {
                kube::Error::Api(status) if status.code == 403 => format!(
                    "gateways may not read the Secret {name}: bind the ClusterRole \
                     serinus-gateway-api-keys to them in the namespace {namespace}"
                ),
                error => format!("the Secret {name} can not be read: {}", said(error).0),
            };
            Fault::new(Fault::SECRET_UNREADABLE, message)
        })?;
        let not_found = |why: &str| {
            let message = format!("{why}: create it, or change the LLMDeployment");
            Fault::new(Fault::SECRET_NOT_FOUND, message)
        };
        let secret = secret.ok_or_else(|| not_found(&format!("there is no Secret {name}")))?;
        let bytes = secret.data.as_ref().and_then(|d| d.get(key));
        let key = key_in_words(key);
        let bytes = bytes.ok_or_else(|| not_found(&format!("the Secret {name} has no {key}")))?;
        let text = std::str::from_utf8(&bytes.0).map_err(|_| {
            let message = format!("in the Secret {name}, the {key} is not text");
            Fault::new(Fault::SECRET_NOT_FOUND, message)
        })?;
        let hosts = secret.annotations().get(keys::HOSTS_ANNOTATION).cloned();
        let text = SecretText::from(text.trim().to_owned());
        Ok(ReadSecret { text, hosts: hosts.unwrap_or_default() })
    }
}

/// A key of a Secret, and to which hosts the Secret says that it may be sent.
#[derive(Clone, PartialEq, Eq)]
struct ReadSecret {
    text: SecretText,
    hosts: String,
}

/// The Secrets that a release's backends name.
fn secrets(release: &ReleaseInput) -> impl Iterator<Item = SecretId> {
    let id = |SecretKeyRef { name, key }| (release.namespace.clone(), name, key);
    release.wanted_secrets().map(id)
}

/// What a release's route depends on, besides the release and its copies. A backend that
/// is named and does not exist counts: it may come.
fn things(release: &ReleaseInput) -> BTreeSet<Thing> {
    let namespace = &release.namespace;
    let others = release.other_backends.iter().map(String::as_str);
    let named = release.variants.values().map(|v| &*v.backend_name).chain(others);
    let backends = named.map(|name| Thing::Backend(namespace.clone(), name.to_owned()));
    let services = release.all_backends().filter_map(|(name, spec)| {
        Some(Thing::Service(namespace.clone(), spec.service_of(name)?.0.to_owned()))
    });
    let secrets =
        secrets(release).map(|(namespace, name, key)| Thing::Secret(namespace, name, key));
    backends.chain(services).chain(secrets).collect()
}
