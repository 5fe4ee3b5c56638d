//! Watches of the API server and the stores that they fill, for operators and gateways.

use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{Store, store},
        utils::Backoff,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// The watch that fills a store: objects that were written or deleted.
pub type Touched<K> = BoxStream<'static, watcher::Result<K>>;

/// Whether a store holds all that there was when its watch began. Any number of tasks may
/// wait for that, and give up. [`Store::wait_until_ready`] wakes only the task that asked
/// last, for ever: it is for the one controller that runs on the store.
#[derive(Clone)]
pub struct Filled(watch::Receiver<bool>);

impl Filled {
    /// Whether it does now.
    pub fn now(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it does; false when its watch is gone and never will.
    pub async fn wait(&self) -> bool {
        self.0.clone().wait_for(|filled| *filled).await.is_ok()
    }
}

/// A store, the watch that fills it, and whether it has. What nobody reads is dropped before it is kept:
/// who changed which field, and what `trim` takes away.
pub fn cache<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    trim: fn(&mut K),
) -> (Store<K>, Touched<K>, Filled)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    cache_noting(client, namespace, config, trim, |_| ())
}

/// As [`cache`]; `note` sees each event when the store has taken it in.
pub fn cache_noting<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    trim: fn(&mut K),
    mut note: impl FnMut(&watcher::Event<K>) + Send + 'static,
) -> (Store<K>, Touched<K>, Filled)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = namespace.map_or_else(
        || Api::all(client.clone()),
        |namespace| Api::namespaced(client.clone(), namespace),
    );
    let (reader, writer) = store();
    let (fills, filled) = watch::channel(false);
    let touched = watcher(api, config)
        .backoff(WatchBackoff::default())
        .modify(move |object: &mut K| {
            object.meta_mut().managed_fields = None;
            trim(object);
        })
        .reflect(writer)
        .inspect(move |event| {
            if let Ok(event) = event {
                note(event);
            }
            if matches!(event, Ok(watcher::Event::InitDone)) {
                fills.send_replace(true);
            }
        })
        .touched_objects()
        .boxed();
    (reader, touched, Filled(filled))
}

/// A watch that fills no store and tells of metadata only: which objects were written or
/// deleted.
pub fn touched<K>(
    api: Api<PartialObjectMeta<K>>,
    config: watcher::Config,
) -> Touched<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    watcher(api, config).backoff(WatchBackoff::default()).touched_objects().boxed()
}

/// Polls a watch that nothing else polls, and hands each touched object to `each`.
pub async fn follow<K>(
    watch: impl Stream<Item = watcher::Result<K>>,
    kind: &'static str,
    mut each: impl FnMut(K),
) {
    let mut watch = std::pin::pin!(watch);
    while let Some(touched) = watch.next().await {
        match touched {
            Ok(object) => each(object),
            Err(error) => tracing::warn!(kind, "the watch failed and is tried again: {error}"),
        }
    }
}

/// A watch is taken up again soon: a rollout may be waiting. From 0.2 to 5 s, give or
/// take a third.
#[derive(Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = 0.2 * f64::from(1u32 << self.failures.min(5));
        self.failures += 1;
        Some(Duration::from_secs_f64(seconds.min(5.0) * (0.67 + 0.66 * rand::random::<f64>())))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
