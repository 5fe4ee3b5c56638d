//! Standalone mode: the operator's core and a gateway in one process, manifests from a
//! folder, state in one local file. The decisions are those of the cluster; only what
//! is around them differs.

mod absent;
mod durable;
mod folder;
mod location;
mod lock;
mod manifests;
mod memory;
mod notices;
mod observe;
mod requests;
mod secrets;
mod serve;
mod state;
mod unread;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use self::{
    location::StateLocation,
    manifests::GRACE,
    secrets::secret_variable,
    serve::{Options, run},
    view::View,
};
use self::{
    manifests::{Event, Manifests},
    notices::Notices,
    requests::Requests,
    state::{Kept, State},
};
use crate::{
    api::{
        PromptRelease, PromptReleaseStatus, conditions, manifest::Object,
        prompt_release::VariantRef, snapshot::Saved,
    },
    gateway::{Gateway, notices::Notice},
    rollout::{
        Effect, decide,
        resolve::{self, Claim},
        retirement,
        snapshot::Action,
    },
    signals::{
        model_dates::ModelDates,
        prometheus::{Prometheus, Questions, questions},
        report::{GatewayReport, ReleaseReport},
    },
};

/// Annotations that begin with it are ours.
const GROUP_PREFIX: &str = "serinus.dev/";
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
    fn new(at: Timestamp, release: &str, event: Event) -> Self {
        let Event { warning, reason, note } = event;
        Self { at, release: release.to_owned(), warning, reason: reason.to_owned(), note }
    }

    fn log(&self) {
        if self.release.is_empty() && self.warning {
            tracing::warn!("{}: {}", self.reason, self.note);
        } else if self.release.is_empty() {
            tracing::info!("{}: {}", self.reason, self.note);
        } else if self.warning {
            tracing::warn!(release = self.release, "{}: {}", self.reason, self.note);
        } else {
            tracing::info!(release = self.release, "{}: {}", self.reason, self.note);
        }
    }
}

/// The folder, the state and the gateway together.
pub struct Standalone {
    manifests: Manifests,
    requests: Requests,
    state: State,
    gateway: Arc<Gateway>,
    prometheus: Arc<Prometheus>,
    model_dates: Arc<ModelDates>,
    /// Which version of the manifests the gateway was told of with the state as it is.
    told: Option<u64>,
    /// What was decided for the last time with nothing to compare.
    at_rest: HashMap<String, Rest>,
    /// The version of the manifests whose client keys the gateway knows.
    clients_of: Option<u64>,
    /// What is wrong with client keys.
    bad_clients: Vec<Notice>,
    /// What people were told of that lasts.
    notices: Notices,
    /// The reason that was announced last of each release.
    announced: HashMap<String, String>,
    /// What happened before the first look.
    before: Vec<Event>,
}

/// A release that was left as it is: nothing is to be decided until one of these changes.
#[derive(PartialEq)]
struct Rest {
    manifests: u64,
    report: Option<ReleaseReport>,
    /// When it is to be looked at again.
    until: Option<Timestamp>,
}

/// Who asks for each route.
type Claims = BTreeMap<String, Vec<Claim>>;

impl Standalone {
    /// Opens a folder of manifests and the state file, which is created when missing.
    ///
    /// # Errors
    /// The folder can not be read; the state file is not ours, can not be written or is in
    /// use by another process.
    pub fn open(
        folder: &Path,
        state_file: PathBuf,
        gateway: Arc<Gateway>,
        now: Timestamp,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            folder.is_dir(),
            "{} is not a folder: name the folder of your manifests",
            folder.display()
        );
        let state_file = durable::followed(&state_file)?;
        let (state, before) = State::open(state_file.clone(), now)?;
        Ok(Self {
            manifests: Manifests::open(folder, &state_file)?,
            requests: Requests::of(&state_file),
            state,
            gateway,
            prometheus: Arc::default(),
            model_dates: Arc::default(),
            told: None,
            at_rest: HashMap::new(),
            clients_of: None,
            bad_clients: vec![],
            notices: Notices::default(),
            announced: HashMap::new(),
            before,
        })
    }

    /// Takes evidence from Prometheus too. Somebody else asks it what
    /// [`Standalone::questions`] says.
    #[must_use]
    pub fn with_prometheus(mut self, prometheus: Arc<Prometheus>) -> Self {
        self.prometheus = prometheus;
        self
    }

    /// Takes the days on which models end from files too.
    #[must_use]
    pub fn with_model_dates(mut self, dates: Arc<ModelDates>) -> Self {
        self.model_dates = dates;
        self
    }

    /// Logs first what is to be known about where the state is.
    #[must_use]
    pub fn with_state_at(mut self, location: StateLocation) -> Self {
        self.before.extend(location.news);
        self
    }

    /// Reads what changed, decides what is due, and carries it out.
    ///
    /// # Errors
    /// The state could not be written: nothing was moved then.
    pub fn tick(&mut self, now: Timestamp) -> anyhow::Result<Vec<Happening>> {
        let mut events = std::mem::take(&mut self.before);
        events.extend(self.manifests.reload(now));
        let (asked, unread) = self.requests.reload();
        events.extend(unread);
        if asked {
            self.at_rest.clear();
        }
        let mut news: Vec<Happening> =
            events.into_iter().map(|event| Happening::new(now, "", event)).collect();
        self.know_clients();
        let decided = self.decide_all(now, &mut news);
        self.tell_people(now, decided.as_ref().err(), &mut news);
        match decided {
            Ok(()) => Ok(news),
            // What is wrong with manifests is said all the same.
            Err(error) => {
                news.iter().for_each(Happening::log);
                Err(error)
            }
        }
    }

    /// Decides what is due for every release, and carries it out.
    fn decide_all(&mut self, now: Timestamp, news: &mut Vec<Happening>) -> anyhow::Result<()> {
        // What was decided must be kept before anything else is.
        self.manifests.keep()?;
        self.keep()?;
        let mut releases = vec![];
        for release in self.manifests.releases() {
            let key = key(release);
            let mut replaced = self.state.replaced(&key);
            releases.push(self.requests.over(release.clone(), &mut replaced));
            self.state.replace(&key, replaced);
        }
        let names: BTreeSet<String> = releases.iter().map(key).collect();
        for release in &releases {
            let key = key(release);
            if let Some(note) = self.state.adopt(&key, release, now) {
                let event = Event { warning: false, reason: "Returned", note };
                news.push(Happening::new(now, &key, event));
            }
        }
        for key in self.state.delete_all_but(&names, now) {
            // When its manifest was known, this was said as the manifest went.
            let name = format!("{}: ", of_release(&key));
            if !news.iter().any(|happening| happening.note.starts_with(&name)) {
                let note = format!(
                    "{name}is in the state, and neither in a manifest nor among those that were in \
                     force: its route is not served any more; its state is kept, and a manifest of \
                     the same name goes on from there"
                );
                let event = Event { warning: true, reason: "Deleted", note };
                news.push(Happening::new(now, "", event));
            }
        }
        self.at_rest.retain(|key, _| names.contains(key));
        self.announced.retain(|key, _| names.contains(key));
        // After a restart the gateway serves what was decided before.
        if self.told.is_none() {
            self.tell(&releases);
        }
        let report = self.gateway.report(true);
        let claims = self.claims(&releases);
        for release in &releases {
            self.decide_until_quiet(release, &claims, &report, now, news);
        }
        self.keep()?;
        self.tell(&releases);
        Ok(())
    }

    /// Says what is wrong: once in the news, and as long as it lasts to those who look.
    fn tell_people(
        &mut self,
        now: Timestamp,
        unwritten: Option<&anyhow::Error>,
        news: &mut Vec<Happening>,
    ) {
        let mut all = self.manifests.notices().to_vec();
        all.extend(self.bad_clients.iter().cloned());
        all.extend(self.manifests.releases().filter_map(|release| self.notice_of(release)));
        let releases = self.manifests.releases();
        let backends: BTreeSet<(String, &str)> = releases
            .map(|release| (namespace(release), release.spec.backend_ref.name.as_str()))
            .collect();
        all.extend(backends.into_iter().filter_map(|(namespace, name)| {
            let why = self.unusable(&namespace, self.manifests.backend(&namespace, name)?)?;
            Some(Notice::new(format!("LLMDeployment {namespace}/{name}"), "BackendNotReady", why))
        }));
        all.extend(self.ends_of_models(now));
        all.extend(self.manifests.releases().filter_map(unknown_request));
        all.extend(
            unwritten.map(|e| Notice::new("the state", "StateUnwritable", format!("{e:#}"))),
        );
        let changed = self.notices.replace(all);
        for notice in changed.began {
            let Notice { place, reason, message, .. } = notice;
            let release = place.strip_prefix("PromptRelease ");
            if release.and_then(|r| self.announced.get(r)) == Some(&reason) {
                // The decision has said it.
                continue;
            }
            let (note, release) = (format!("{place}: {message}"), String::new());
            news.push(Happening { at: now, release, warning: true, reason, note });
        }
        for Notice { place, reason, .. } in changed.ended {
            let event = Event {
                warning: false,
                reason: "Mended",
                note: format!("{place}: no {reason} now"),
            };
            news.push(Happening::new(now, "", event));
        }
        self.gateway.notices().set(self.notices.all().cloned().collect());
    }

    /// Of each backend that a release names or serves: that its model ends, or is gone.
    fn ends_of_models(&self, now: Timestamp) -> Vec<Notice> {
        let (gone, ends) = (self.gateway.without_model(), self.gateway.models_end());
        let named = self.manifests.releases().flat_map(|release| {
            let own = release.spec.backend_ref.name.clone();
            let all = release.other_backends().into_iter().chain([own]);
            all.map(move |name| (namespace(release), name))
        });
        let backends: BTreeSet<(String, String)> = named.chain(gone.iter().cloned()).collect();
        let notice = |backend: &(String, String)| {
            let (namespace, name) = backend;
            let spec = self.manifests.backend(namespace, name)?;
            let filed = self.model_dates.of(&spec.provider, &spec.model);
            let known = retirement::retirement(spec, ends.get(backend).copied(), None, filed);
            let is_gone = gone.contains(backend);
            let what_to_do = "write an LLMDeployment with another model, and name it in \
                              spec.backendRef of the releases, which starts a canary of each";
            let known = known.as_ref();
            let found = retirement::finding(&spec.model, known, is_gone, what_to_do, now)?;
            let place = format!("LLMDeployment {namespace}/{name}");
            found.warns.then(|| Notice::new(place, found.reason, found.message))
        };
        backends.iter().filter_map(notice).collect()
    }

    /// What keeps a release from being served or from going on, as its conditions say.
    fn notice_of(&self, release: &PromptRelease) -> Option<Notice> {
        let key = key(release);
        let status = &self.state.get(&key)?.status;
        let served = !status.routing.variants.is_empty();
        let not_served = || {
            let ready = conditions::find(&status.conditions, conditions::types::READY);
            ready.filter(|c| !served && c.status != "True")
        };
        let stalled = conditions::find(&status.conditions, conditions::types::STALLED);
        let missing = || {
            let ready = conditions::find(&status.conditions, conditions::types::READY)?;
            (ready.status == "False" && resolve::is_missing(&ready.reason)).then_some(ready)
        };
        let told = stalled.filter(|c| c.status == "True").or_else(missing).or_else(not_served)?;
        let mut notice = Notice::new(of_release(&key), told.reason.as_str(), told.message.as_str());
        notice.route = (!served).then(|| (namespace(release), release.route()));
        Some(notice)
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
            let kept = self.state.get(&name);
            let route = release.route();
            let served = kept.and_then(|kept| kept.on_route(&name, &route));
            let claim = Claim {
                created: kept.map_or_else(String::new, |k| k.created.to_string()),
                serves: kept.is_some_and(Kept::serves),
                served: served.map(|served| served.end()),
                release: name,
            };
            claims.entry(route).or_default().push(claim);
        }
        claims
    }

    /// Gives the gateway the folder's client keys when a file has changed.
    fn know_clients(&mut self) {
        if self.clients_of == Some(self.manifests.version()) {
            return;
        }
        self.clients_of = Some(self.manifests.version());
        let (keys, problems) = secrets::client_keys(&self.manifests);
        self.bad_clients = problems;
        if keys.is_empty() && !self.gateway.identities().is_off() {
            self.bad_clients.push(Notice::new(
                "client keys",
                "NoClientKey",
                "the folder has no client key, so no application may ask (unless by a token): add \
                 a Secret labelled serinus.dev/client-key=true, or run with --client-auth=off",
            ));
        }
        self.gateway.identities().set_keys(keys);
        self.gateway.identities().set_keys_known();
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
                    self.announced.insert(key.clone(), reason.clone());
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
}

/// An annotation of ours that asks for nothing: most likely mistyped.
fn unknown_request(release: &PromptRelease) -> Option<Notice> {
    let known = |name: &str| Action::ALL.iter().any(|action| action.annotation() == name);
    let ours = |name: &&String| name.starts_with(GROUP_PREFIX) && !known(name);
    let name = release.metadata.annotations.as_ref()?.keys().find(ours)?;
    let all = Action::ALL.map(Action::annotation).join(", ");
    let message =
        format!("the annotation {name} is not known and asks for nothing; known are {all}");
    Some(Notice::new(of_release(&key(release)), "UnknownAnnotation", message))
}

fn namespace(release: &PromptRelease) -> String {
    release.metadata.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())
}

/// What messages call a release.
fn of_release(key: &str) -> String {
    format!("PromptRelease {key}")
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
