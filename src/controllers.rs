//! The control plane: a controller a kind, each `observe → decide → act`.
//!
//! Only the process that leads acts; the others keep warm caches. Everything that is
//! written goes through [`kube::Cluster`]; no other module here talks to the API
//! server. Gateways are met only through `status.routing` and their reports.

pub mod backend;
pub mod caches;
pub mod error;
pub mod exported;
pub mod kube;
pub mod policy;
pub mod problems;
pub mod prompt;
pub mod pulse;
pub mod release;
pub mod retries;
pub mod superseded;

use std::{collections::BTreeMap, fmt::Debug, future::Future, sync::Arc, time::Duration};

use ::kube::{
    Resource, ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config, Error as LoopError},
        reflector::ObjectRef,
        utils::Backoff,
    },
};
use futures::StreamExt;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use self::{
    caches::Caches,
    error::ControllerError,
    exported::Exported,
    kube::Cluster,
    pulse::Pulse,
    retries::{Retries, Retry},
};
use crate::{
    rollout::retirement::days_left,
    signals::{
        gateways::Gateways, index::Named, model_dates::ModelDates, prometheus::Prometheus,
        tried::NOT_READ, watch::News,
    },
};

/// Reconciles of one kind that run at the same time.
const CONCURRENCY: u16 = 48;

/// What every controller needs.
pub struct Context {
    /// The only way to write.
    pub cluster: Cluster,
    /// What the API server holds, as last watched.
    pub caches: Caches,
    /// What the gateways told last.
    pub gateways: Gateways,
    /// What Prometheus answered last.
    pub prometheus: Prometheus,
    /// When models end, by files.
    pub model_dates: Arc<ModelDates>,
    /// Metrics.
    pub exported: Arc<Exported>,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    /// For probing backends.
    pub probe: backend::probe::Probe,
    /// Whether decisions about releases are made and written.
    pub pulse: Pulse,
    /// Progress of canaries that is not written yet.
    pub ahead: release::Ahead,
    /// What was found out about prompts on backends.
    pub examined: release::Examined,
    /// Snapshots that the API server refused to keep.
    pub refusals: release::Refusals,
    /// Objects whose last reconcile failed.
    pub retries: Retries,
    /// Whether this operator runs model servers.
    pub serving: bool,
}

impl Context {
    /// Brings the metrics of releases by phase, of those that are not well and of those that can
    /// not be written up to date.
    pub fn count_releases(&self) {
        let term = self.cluster.leadership().term();
        let releases = if term.is_some() { self.caches.releases.state() } else { vec![] };
        let mut phases = BTreeMap::new();
        for release in &releases {
            let phase = release.status.as_ref().map(|s| s.phase).unwrap_or_default();
            *phases.entry(format!("{phase:?}")).or_insert(0) += 1;
        }
        self.exported.phases(phases);
        let mut problems = problems::count(releases.iter().map(AsRef::as_ref));
        problems.insert(NOT_READ, self.caches.count_unread().try_into().unwrap_or(i64::MAX));
        self.exported.problems(problems);
        let backends = if term.is_some() { self.caches.backends.state() } else { vec![] };
        let now = (self.clock)();
        self.exported.models(backends.iter().filter_map(|backend| {
            let ends = backend.status.as_ref()?.retirement.as_ref()?.date;
            let left = days_left(ends, now);
            Some((backend.namespace().unwrap_or_default(), backend.name_any(), left))
        }));
        self.exported.unwritten(term.map_or(0, |term| self.pulse.failures(term).len()));
    }

    /// What is wrong with releases, a line each. Looks at all of them: for people who ask.
    pub fn problems(&self) -> String {
        problems::text(self.caches.releases.state().iter().map(AsRef::as_ref))
    }
}

/// What a reconcile answers.
type Reconciled = Result<Action, ControllerError>;

/// Runs one kind's controller until the process stops: leaders reconcile, others wait
/// and reconcile everything when they become the leader.
async fn drive<K, F>(
    kind: &'static str,
    controller: Controller<K>,
    context: Arc<Context>,
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    F: Future<Output = Reconciled> + Send + 'static,
{
    let elected = context.cluster.leadership().elections();
    let mut news = News::default();
    paced(controller)
        .reconcile_all_on(elected)
        .run(
            move |object, context| guarded(kind, object, context, reconcile),
            move |object, error, context: Arc<Context>| {
                context.exported.failed(kind, error.reason());
                let (namespace, name) = (object.namespace(), object.name_any());
                let Retry { after, news } = context.retries.failed(kind, object.as_ref(), error);
                match news {
                    Some(news) => {
                        tracing::warn!(kind, namespace, name, reason = error.reason(), "{news}");
                    }
                    None => {
                        tracing::debug!(kind, namespace, name, reason = error.reason(), "{error}");
                    }
                }
                Action::requeue(after)
            },
            context,
        )
        .for_each(move |result| {
            match result {
                // The object is gone, or the error was told above.
                Ok(_) | Err(LoopError::ObjectNotFound(_) | LoopError::ReconcilerFailed(..)) => {}
                Err(error) => {
                    let why = error.to_string();
                    if news.is_due(&why) {
                        tracing::warn!(kind, "the watch failed and is tried again: {why}");
                    }
                }
            }
            std::future::ready(())
        })
        .await;
}

/// Bounds the reconciles at the same time, and takes away the wait of kube's controller after a
/// watch has failed. Our watches already wait before they try again ([`signals::watch`]). The
/// controller would wait longer each time, up to a minute, and read nothing meanwhile: no other
/// watch, and no release that is due.
///
/// [`signals::watch`]: crate::signals::watch
fn paced<K>(controller: Controller<K>) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    controller.with_config(Config::default().concurrency(CONCURRENCY)).trigger_backoff(AtOnce)
}

struct AtOnce;

impl Iterator for AtOnce {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for AtOnce {
    fn reset(&mut self) {}
}

async fn guarded<K, F>(
    kind: &'static str,
    object: Arc<K>,
    context: Arc<Context>,
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
) -> Reconciled
where
    K: Resource<DynamicType = ()>,
    F: Future<Output = Reconciled>,
{
    if context.cluster.leadership().term().is_none() {
        return Ok(Action::await_change());
    }
    context.caches.ready().await?;
    if context.cluster.superseded().has(object.as_ref()) {
        return Ok(Action::requeue(superseded::PATIENCE));
    }
    // What is known of it is not what there is. Releases have a judge to think of.
    let named = Named::of(object.as_ref());
    if kind != "PromptRelease" && context.caches.why_unread(kind, &named).is_some() {
        return Ok(Action::await_change());
    }
    let _timing = context.exported.timing(kind);
    let action = reconcile(object.clone(), context.clone()).await?;
    if context.retries.done(kind, object.as_ref()) {
        let (namespace, name) = (object.meta().namespace.as_deref(), object.meta().name.as_deref());
        tracing::info!(kind, namespace, name, "it fails no more");
    }
    Ok(action)
}

/// A look again in `after`, give or take a tenth, so that objects do not march in step.
fn later(after: Duration) -> Action {
    Action::requeue(after.mul_f64(0.9 + 0.2 * rand::random::<f64>()))
}

/// The reference of a namespaced object.
fn reference<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectRef<K> {
    ObjectRef::new(name).within(namespace)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ::kube::{
        api::ObjectMeta,
        runtime::{reflector::store, watcher},
    };
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("ns".to_owned()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    /// A watch that fails for as long as the API server is away (or for ever, where a right is
    /// missing), and is taken up again each second.
    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_holds_up_nothing_beside_it() {
        let (reader, mut writer) = store();
        let objects = ["a", "b"].map(|name| watcher::Event::InitApply(object(name)));
        for event in
            [watcher::Event::Init].into_iter().chain(objects).chain([watcher::Event::InitDone])
        {
            writer.apply_watcher_event(&event);
        }
        let each_second = || tokio::time::sleep(Duration::from_secs(1));
        let failing = stream::unfold((), move |()| async move {
            each_second().await;
            Some((Err::<ConfigMap, _>(watcher::Error::NoResourceVersion), ()))
        });
        let objects = stream::iter(["a", "b"]).then(move |name| async move {
            // The second is written after 100 failures of the other watch.
            tokio::time::sleep(Duration::from_secs(if name == "b" { 100 } else { 0 })).await;
            Ok(object(name))
        });
        let began = tokio::time::Instant::now();
        let seen: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
        let noted = seen.clone();
        let controller =
            Controller::for_stream(objects.chain(stream::pending()), reader).owns_stream(failing);
        let run = paced(controller).run(
            move |object, _| {
                let after = began.elapsed().as_secs();
                noted.lock().unwrap().push((object.name_any(), after));
                async { Ok::<_, ControllerError>(Action::await_change()) }
            },
            |_, _, _| Action::await_change(),
            Arc::new(()),
        );
        let _ = tokio::time::timeout(Duration::from_secs(200), run.for_each(|_| async {})).await;
        assert_eq!(*seen.lock().unwrap(), [("a".to_owned(), 0), ("b".to_owned(), 100)]);
    }
}
