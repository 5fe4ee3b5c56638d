//! A gateway in a cluster: what the operator decided, from watches to the route table.
//!
//! Reads releases, their saved copies and backends; of Secrets, only the ones that a
//! routed backend names, one by one, so that it needs no right to list them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    runtime::{reflector::ObjectRef, reflector::Store, watcher},
};
use tokio::{sync::Notify, task::JoinSet};

use super::{Gateway, routes::ReleaseInput};
use crate::{
    api::{LLMDeployment, LLMDeploymentSpec, PromptRelease, Variant, keys, snapshot::Saved},
    signals::watch::{cache, follow},
};

/// Changes that come together are applied together.
const SETTLE: Duration = Duration::from_millis(20);
/// How often a Secret is read again.
const SECRET_AGE: Duration = Duration::from_secs(30);

/// One key of one Secret: namespace, name, key.
type SecretId = (String, String, String);

struct Followed {
    client: Client,
    releases: Store<PromptRelease>,
    backends: Store<LLMDeployment>,
    copies: Store<ControllerRevision>,
    secrets: BTreeMap<SecretId, String>,
    secrets_read: Option<Timestamp>,
}

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
    let changed = Arc::new(Notify::new());
    let copies_only = watcher::Config::default().labels(keys::RELEASE_LABEL);
    let (releases, releases_watch) = cache(&client, namespace, watcher::Config::default());
    let (backends, backends_watch) = cache(&client, namespace, watcher::Config::default());
    let (copies, copies_watch) = cache(&client, namespace, copies_only);
    let mut tasks = JoinSet::new();
    let tell = || {
        let changed = changed.clone();
        move || changed.notify_one()
    };
    let (a, b, c) = (tell(), tell(), tell());
    tasks.spawn(follow(releases_watch, "PromptRelease", move |_| a()));
    tasks.spawn(follow(backends_watch, "LLMDeployment", move |_| b()));
    tasks.spawn(follow(copies_watch, "ControllerRevision", move |_| c()));
    let mut followed = Followed {
        client,
        releases,
        backends,
        copies,
        secrets: BTreeMap::new(),
        secrets_read: None,
    };
    tokio::select! {
        _ = tasks.join_next() => Err(WatchEnded),
        result = followed.apply(&gateway, &changed) => result,
    }
}

/// A watch ended.
#[derive(Debug, thiserror::Error)]
#[error("a watch ended")]
pub struct WatchEnded;

impl Followed {
    async fn apply(&mut self, gateway: &Gateway, changed: &Notify) -> Result<(), WatchEnded> {
        self.releases.wait_until_ready().await.map_err(|_| WatchEnded)?;
        self.backends.wait_until_ready().await.map_err(|_| WatchEnded)?;
        self.copies.wait_until_ready().await.map_err(|_| WatchEnded)?;
        loop {
            let mut inputs = self.inputs();
            self.read_secrets(&inputs, (gateway.config.clock)()).await;
            for input in &mut inputs {
                self.give_keys(input);
            }
            gateway.set_world(inputs.into_iter().collect());
            tokio::select! {
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(SECRET_AGE) => {}
            }
        }
    }

    fn inputs(&self) -> Vec<ReleaseInput> {
        let mut copies: HashMap<(String, String), Vec<Arc<ControllerRevision>>> = HashMap::new();
        for copy in self.copies.state() {
            if let (Some(namespace), Some(owner)) =
                (copy.namespace(), copy.labels().get(keys::RELEASE_LABEL))
            {
                copies.entry((namespace, owner.clone())).or_default().push(copy);
            }
        }
        let releases = self.releases.state();
        let inputs = releases.iter().filter_map(|release| {
            let status = release.status.as_ref()?;
            if status.routing.variants.is_empty() {
                return None;
            }
            let (namespace, name) = (release.namespace()?, release.name_any());
            let saved = copies.get(&(namespace.clone(), name.clone()));
            let routed = |copy: &Arc<ControllerRevision>| {
                let revision = copy.labels().get(keys::REVISION_LABEL)?;
                let routed = status.routing.variants.iter().any(|v| v.revision == *revision);
                Some((revision.clone(), variant(copy)?)).filter(|_| routed)
            };
            let variants: HashMap<String, Variant> =
                saved.into_iter().flatten().filter_map(routed).collect();
            let other_backends = release.other_backends();
            let backends: HashMap<String, LLMDeploymentSpec> = variants
                .values()
                .map(|v| &v.backend_name)
                .chain(&other_backends)
                .filter_map(|name| {
                    let key = ObjectRef::new(name).within(&namespace);
                    Some((name.clone(), self.backends.get(&key)?.spec.clone()))
                })
                .collect();
            Some(ReleaseInput {
                uid: release.uid().unwrap_or_default(),
                route: release.route(),
                created: release.creation_timestamp().map(|t| t.0.to_string()).unwrap_or_default(),
                routing: status.routing.clone(),
                api_keys: HashMap::new(),
                namespace,
                name,
                variants,
                backends,
                other_backends,
                cache: release.spec.cache.clone(),
            })
        });
        inputs.collect()
    }

    /// Reads the Secrets that are named for the first time, and all of them now and then.
    /// One that can not be read keeps its last value.
    async fn read_secrets(&mut self, inputs: &[ReleaseInput], now: Timestamp) {
        let wanted: BTreeSet<SecretId> =
            inputs.iter().flat_map(|r| secrets(r).map(|(_, id)| id)).collect();
        self.secrets.retain(|id, _| wanted.contains(id));
        let old = self
            .secrets_read
            .is_none_or(|at| Duration::try_from(now - at).is_ok_and(|age| age >= SECRET_AGE));
        if old {
            self.secrets_read = Some(now);
        }
        for id in wanted {
            if old || !self.secrets.contains_key(&id) {
                let (namespace, name, key) = &id;
                match self.read_secret(namespace, name, key).await {
                    Ok(value) => {
                        self.secrets.insert(id, value);
                    }
                    Err(why) => tracing::warn!(namespace, name, key, "the API key: {why}"),
                }
            }
        }
    }

    async fn read_secret(&self, namespace: &str, name: &str, key: &str) -> Result<String, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = api.get(name).await.map_err(|e| e.to_string())?;
        let bytes = secret.data.as_ref().and_then(|d| d.get(key));
        let bytes = bytes.ok_or_else(|| format!("the Secret has no key {key}"))?;
        String::from_utf8(bytes.0.clone())
            .map(|text| text.trim().to_owned())
            .map_err(|_| "it is not text".to_owned())
    }

    fn give_keys(&self, input: &mut ReleaseInput) {
        input.api_keys = secrets(input)
            .filter_map(|(backend, id)| Some((backend, self.secrets.get(&id)?.clone())))
            .collect();
    }
}

fn variant(copy: &ControllerRevision) -> Option<Variant> {
    match serde_json::from_value(copy.data.0.clone()) {
        Ok(Saved::Variant(variant)) => Some(variant),
        Ok(Saved::Policy(_)) => None,
        Err(error) => {
            tracing::warn!(copy = copy.name_any(), "the saved copy can not be read: {error}");
            None
        }
    }
}

/// Backend names and the Secrets that they name.
fn secrets(release: &ReleaseInput) -> impl Iterator<Item = (String, SecretId)> {
    let gone = release.variants.values().map(|v| (&v.backend_name, &v.backend));
    let gone = gone.filter(|(name, _)| !release.backends.contains_key(*name));
    release.backends.iter().chain(gone).filter_map(|(name, spec)| {
        let secret = spec.endpoint.as_ref()?.api_key_secret_ref.as_ref()?;
        let id = (release.namespace.clone(), secret.name.clone(), secret.key.clone());
        Some((name.clone(), id))
    })
}
