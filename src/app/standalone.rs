//! Standalone mode: the operator's core and a gateway in one process, manifests from a
//! folder, state in one local file. The decisions are those of the cluster; only what
//! is around them differs.

mod manifests;
mod secrets;
mod serve;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::{manifests::Manifests, state::State};
pub use self::{
    secrets::secret_variable,
    serve::{Options, run},
};
use crate::{
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptRelease, PromptReleaseSpec, PromptReleaseStatus,
        manifest::Object,
        prompt_release::VariantRef,
        snapshot::{PackedVariant, Saved},
    },
    gateway::{
        Gateway,
        routes::{ReleaseInput, World},
    },
    rollout::{self, Effect, Problem, Request, Snapshot, WithoutData, decide, resolve},
    signals::{
        prometheus::{Prometheus, Questions, questions},
        report::{GatewayReport, ReleaseReport},
    },
};

/// Where releases of the folder live when a manifest names no namespace.
const NAMESPACE: &str = "default";
/// More decisions than this at one moment for one release are a mistake of ours.
const DECISIONS_AT_ONCE: usize = 8;

/// Something that people should read.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// When.
    pub at: Timestamp,
    /// `namespace/name` of the release; empty for the folder as a whole.
    pub release: String,
    /// Whether it is bad news.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub note: String,
}

impl Happening {
    fn log(&self) {
        if self.warning {
            tracing::warn!(release = self.release, "{}: {}", self.reason, self.note);
        } else {
            tracing::info!(release = self.release, "{}: {}", self.reason, self.note);
        }
    }
}

/// The folder, the state and the gateway together.
pub struct Standalone {
    manifests: Manifests,
    state: State,
    gateway: Arc<Gateway>,
    prometheus: Arc<Prometheus>,
    /// Which version of the manifests the gateway was told of with the state as it is.
    told: Option<u64>,
    /// What was decided for the last time with nothing to compare.
    at_rest: HashMap<String, Rest>,
    /// The version of the manifests whose client keys the gateway knows.
    clients_of: Option<u64>,
}

/// A release that was left as it is: nothing is to be decided until one of these changes.
#[derive(PartialEq)]
struct Rest {
    manifests: u64,
    report: Option<ReleaseReport>,
    /// When it is to be looked at again.
    until: Option<Timestamp>,
}

/// Who asks for each route: creation time and `namespace/name`.
type Claims = BTreeMap<String, Vec<(String, String)>>;

impl Standalone {
    /// Opens a folder of manifests and the state file, which is created when missing.
    ///
    /// # Errors
    /// The folder can not be read, or the state file is not ours.
    pub fn open(folder: &Path, state_file: PathBuf, gateway: Arc<Gateway>) -> anyhow::Result<Self> {
        anyhow::ensure!(
            folder.is_dir(),
            "{} is not a folder: name the folder of your manifests",
            folder.display()
        );
        let state = State::open(state_file)?;
        let (manifests, prometheus) = (Manifests::new(folder), Arc::default());
        Ok(Self {
            manifests,
            state,
            gateway,
            prometheus,
            told: None,
            at_rest: HashMap::new(),
            clients_of: None,
        })
    }

    /// Takes evidence from Prometheus too. Somebody else asks it what
    /// [`Standalone::questions`] says.
    #[must_use]
    pub fn with_prometheus(mut self, prometheus: Arc<Prometheus>) -> Self {
        self.prometheus = prometheus;
        self
    }

    /// Reads what changed, decides what is due, and carries it out.
    ///
    /// # Errors
    /// The state could not be written: nothing was moved then.
    pub fn tick(&mut self, now: Timestamp) -> anyhow::Result<Vec<Happening>> {
        let mut news: Vec<Happening> = self
            .manifests
            .reload()
            .into_iter()
            .map(|(reason, note)| Happening {
                at: now,
                release: String::new(),
                warning: reason != manifests::LOADED,
                reason: reason.to_owned(),
                note,
            })
            .collect();
        self.know_clients(now, &mut news);
        // What was decided must be kept before anything else is.
        self.keep()?;
        let releases: Vec<PromptRelease> = self.manifests.releases().cloned().collect();
        let names: BTreeSet<String> = releases.iter().map(key).collect();
        for release in &releases {
            self.state.adopt(&key(release), release, now);
        }
        self.state.forget_all_but(&names);
        self.at_rest.retain(|key, _| names.contains(key));
        // After a restart the gateway serves what was decided before.
        if self.told.is_none() {
            self.tell(&releases);
        }
        let report = self.gateway.report(true);
        let claims = self.claims(&releases);
        for release in &releases {
            self.decide_until_quiet(release, &claims, &report, now, &mut news);
        }
        self.keep()?;
        self.tell(&releases);
        Ok(news)
    }

    /// Writes what has changed. A crash between two ticks loses nothing: the gateway
    /// follows what is written.
    fn keep(&mut self) -> anyhow::Result<()> {
        if self.state.write_changes()? {
            self.told = None;
        }
        Ok(())
    }

    /// Gives the gateway its routes when something has changed.
    fn tell(&mut self, releases: &[PromptRelease]) {
        let version = Some(self.manifests.version());
        if self.told != version {
            self.gateway.set_world(&self.world(releases));
            self.told = version;
        }
    }

    fn claims(&self, releases: &[PromptRelease]) -> Claims {
        let mut claims = Claims::new();
        for release in releases {
            let name = key(release);
            let created = self.state.get(&name).map_or_else(String::new, |k| k.created.to_string());
            claims.entry(release.route()).or_default().push((created, name));
        }
        claims
    }

    /// Gives the gateway the folder's client keys when a file has changed.
    fn know_clients(&mut self, now: Timestamp, news: &mut Vec<Happening>) {
        if self.clients_of == Some(self.manifests.version()) {
            return;
        }
        self.clients_of = Some(self.manifests.version());
        let (keys, problems) = secrets::client_keys(&self.manifests);
        if keys.is_empty() && !self.gateway.identities().is_off() {
            tracing::warn!(
                "the folder has no client key, so no application may ask (unless by a token): add \
                 a Secret labelled serinus.dev/client-key=true, or run with --client-auth=off"
            );
        }
        self.gateway.identities().set_keys(keys);
        self.gateway.identities().set_keys_known();
        news.extend(problems.into_iter().map(|note| Happening {
            at: now,
            release: String::new(),
            warning: true,
            reason: "InvalidClientKey".to_owned(),
            note,
        }));
    }

    /// The releases with their status.
    pub fn releases(&self) -> Vec<PromptRelease> {
        let with_status = |release: &PromptRelease| {
            let mut release = release.clone();
            release.status = self.state.get(&key(&release)).map(|s| s.status.clone());
            release
        };
        self.manifests.releases().map(with_status).collect()
    }

    /// The copy of a policy that a running canary keeps.
    pub fn running_policy(&self, release: &str) -> Option<crate::api::CanaryPolicySpec> {
        let kept = self.state.get(release)?;
        let digest = &kept.status.canary.as_ref()?.policy;
        match kept.saved.get(digest)? {
            Saved::Policy(policy) => Some(policy.clone()),
            Saved::Variant(_) => None,
        }
    }

    /// What Prometheus should be asked for the running canaries.
    pub fn questions(&self, now: Timestamp) -> Vec<Questions> {
        let of = |release: &PromptRelease| {
            let (namespace, key) = (namespace(release), key(release));
            let name = release.metadata.name.as_deref().unwrap_or_default();
            let (kept, policy) = (self.state.get(&key)?, self.running_policy(&key)?);
            let model = |variant: &VariantRef| match kept.saved.get(&variant.revision) {
                Some(Saved::Variant(saved)) => saved.backend.model.clone(),
                _ => String::new(),
            };
            questions(&namespace, name, &kept.status, &policy, model, now)
        };
        self.manifests.releases().filter_map(of).collect()
    }

    fn decide_until_quiet(
        &mut self,
        release: &PromptRelease,
        claims: &Claims,
        report: &GatewayReport,
        now: Timestamp,
        news: &mut Vec<Happening>,
    ) {
        let key = key(release);
        let (manifests, seen) = (self.manifests.version(), report.releases.get(&key));
        let rests = self.at_rest.get(&key).is_some_and(|rest| {
            rest.manifests == manifests
                && rest.report.as_ref() == seen
                && rest.until.is_none_or(|until| now < until)
        });
        if rests {
            return;
        }
        self.at_rest.remove(&key);
        for _ in 0..DECISIONS_AT_ONCE {
            let snapshot = self.observe(release, claims, report, now);
            let plan = decide(&snapshot, now);
            let changed = plan.status != snapshot.status;
            let quiet = !changed && plan.effects.is_empty();
            if quiet && plan.status.routing.variants.len() < 2 && plan.status.canary.is_none() {
                let rest = Rest { manifests, report: seen.cloned(), until: plan.wake_at };
                self.at_rest.insert(key, rest);
                return;
            }
            if !quiet {
                self.carry_out(&key, &plan.effects, plan.status);
            }
            for effect in plan.effects {
                if let Effect::Announce { warning, reason, note } = effect {
                    news.push(Happening { at: now, release: key.clone(), warning, reason, note });
                }
            }
            match plan.wake_at {
                Some(at) if at <= now && changed => {}
                // Every release is looked at again at the next tick.
                _ => return,
            }
        }
    }

    fn carry_out(&mut self, key: &str, effects: &[Effect], status: PromptReleaseStatus) {
        let Some(kept) = self.state.change(key) else { return };
        for effect in effects {
            match effect {
                Effect::Save { name, content } => {
                    kept.saved.insert(name.clone(), (**content).clone());
                }
                Effect::Prune { keep } => kept.saved.retain(|name, _| keep.contains(name)),
                Effect::Announce { .. } => {}
            }
        }
        kept.status = status;
    }

    fn observe(
        &self,
        release: &PromptRelease,
        claims: &Claims,
        report: &GatewayReport,
        now: Timestamp,
    ) -> Snapshot {
        let key = key(release);
        let spec = &release.spec;
        let kept = self.state.get(&key);
        let status = kept.map(|k| k.status.clone()).unwrap_or_default();
        let namespace = namespace(release);
        let backend = self.manifests.backend(&namespace, &spec.backend_ref.name);
        let target = resolve::target(
            spec,
            self.manifests.prompt(&namespace, &spec.prompt_ref.name),
            backend,
            &status,
        );
        let policy_name = spec.policy_ref.as_ref().map_or("", |p| p.name.as_str());
        let seen = report.releases.get(&key);
        let route = release.route();
        let claims = claims.get(&route).into_iter().flatten();
        let claims =
            claims.map(|(created, name)| (route.as_str(), created.as_str(), name.as_str()));
        let route_held_by = resolve::route_holder(&key, &route, claims);
        let mut not_ready = BTreeMap::new();
        if let (Ok(target), Some(backend)) = (&target, backend)
            && backend.endpoint.is_none()
        {
            let why = "service and serving need a cluster; in standalone mode set spec.endpoint";
            not_ready.insert(target.revision.clone(), why.to_owned());
        }
        let running_policy = self.running_policy(&key);
        let policy = resolve::policy(spec, self.manifests.policy(&namespace, policy_name));
        let without_data = self.without_data(&namespace, spec, &key, &policy);
        let external = running_policy
            .as_ref()
            .map(|policy| self.prometheus.of(&key, status.routing.generation, policy, now));
        Snapshot {
            generation: kept.map_or(1, |k| k.generation),
            spec: spec.clone(),
            requests: release
                .metadata
                .annotations
                .as_ref()
                .map(Request::from_annotations)
                .unwrap_or_default(),
            undecidable: self.manifests.undecidable(&namespace, policy_name),
            policy,
            without_data,
            running_policy,
            route_held_by,
            not_ready,
            gateways: vec![rollout::Gateway {
                instance: Some(report.instance.clone()),
                applied: seen.map(|s| s.applied),
                control_loss: seen.is_some_and(|s| s.control_loss),
                counts: seen.map(|s| s.counts.clone()).unwrap_or_default(),
            }],
            external: external.unwrap_or_default(),
            release: key,
            status,
            target,
        }
    }

    /// What of a policy can never have data for a release.
    fn without_data(
        &self,
        namespace: &str,
        spec: &PromptReleaseSpec,
        key: &str,
        policy: &Result<CanaryPolicySpec, Problem>,
    ) -> Vec<WithoutData> {
        let Ok(policy) = policy else { return vec![] };
        let kept = self.state.get(key);
        let stable = kept.and_then(|kept| {
            let stable = kept.status.stable.as_ref()?;
            let saved = || match kept.saved.get(&stable.revision) {
                Some(Saved::Variant(saved)) => Some(&saved.backend),
                _ => None,
            };
            let now = self.manifests.backend(namespace, &stable.backend);
            Some((stable.backend.as_str(), now.or_else(saved)?))
        });
        let named = spec.backend_ref.name.as_str();
        let canary = self.manifests.backend(namespace, named).map(|backend| (named, backend));
        let backends: Vec<_> = stable.into_iter().chain(canary).collect();
        resolve::without_data(policy, &backends, self.prometheus.unusable(policy).as_deref())
    }

    fn world(&self, releases: &[PromptRelease]) -> World {
        let inputs = releases.iter().filter_map(|release| {
            let key = key(release);
            let kept = self.state.get(&key)?;
            if kept.status.routing.variants.is_empty() {
                return None;
            }
            let namespace = namespace(release);
            let variants: HashMap<String, Arc<PackedVariant>> = kept
                .saved
                .iter()
                .filter_map(|(name, saved)| match saved {
                    Saved::Variant(variant) => Some((name.clone(), Arc::new(variant.into()))),
                    Saved::Policy(_) => None,
                })
                .collect();
            let other_backends = release.other_backends();
            let backends: HashMap<String, Arc<LLMDeploymentSpec>> = variants
                .values()
                .map(|v| &*v.backend_name)
                .chain(other_backends.iter().map(String::as_str))
                .filter_map(|name| {
                    let spec = self.manifests.backend(&namespace, name)?.clone();
                    Some((name.to_owned(), Arc::new(spec)))
                })
                .collect();
            let mut input = ReleaseInput {
                name: release.metadata.name.clone().unwrap_or_default(),
                namespace,
                uid: kept.uid.clone(),
                route: release.route(),
                created: kept.created.to_string(),
                routing: kept.status.routing.clone(),
                variants,
                backends,
                secrets: HashMap::new(),
                other_backends,
                cache: release.spec.cache.clone(),
                // Outside a cluster a Service is a name to resolve.
                endpoints: HashMap::new(),
            };
            input.secrets = input
                .wanted_secrets()
                .filter_map(|wanted| {
                    let text = secrets::secret(&self.manifests, &input.namespace, &wanted)?;
                    Some((wanted, text))
                })
                .collect();
            Some(input)
        });
        inputs.collect()
    }
}

fn namespace(release: &PromptRelease) -> String {
    release.metadata.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())
}

fn key(release: &PromptRelease) -> String {
    format!("{}/{}", namespace(release), release.metadata.name.clone().unwrap_or_default())
}

/// Namespace and name of any object.
fn object_key(object: &Object) -> (String, String) {
    object_key_of(object.metadata())
}

fn object_key_of(metadata: &ObjectMeta) -> (String, String) {
    (
        metadata.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned()),
        metadata.name.clone().unwrap_or_default(),
    )
}
