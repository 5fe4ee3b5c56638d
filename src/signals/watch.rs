//! Watches of the API server and the stores that they fill, for operators and gateways.

use std::{fmt::Debug, sync::Arc, time::Duration};

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
use tokio::{sync::watch, time::Instant};

use super::{
    api_server::said_of_watch,
    index::Named,
    tried::{Sieve, Tried, Unread, read},
};

/// The watch that fills a store: objects that were written or deleted.
pub type Touched<K> = BoxStream<'static, watcher::Result<K>>;

/// What can be watched here: objects of namespaces.
pub trait Watchable:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Watchable for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// Whether a store holds all that there was when its watch began. Any number of tasks may
/// wait for that, and give up. [`Store::wait_until_ready`] wakes only the task that asked
/// last, for ever: it is for the one controller that runs on the store.
#[derive(Clone, Debug)]
pub struct Filled {
    watched: watch::Receiver<Watched>,
    /// The kind of its objects.
    kind: Arc<str>,
}

/// What has become of a watch.
#[derive(Debug, Default)]
struct Watched {
    filled: bool,
    failing: Option<Failing>,
    /// Objects that can not be read, and why.
    unread: Unread,
}

/// Attempts in a row that have failed.
#[derive(Debug)]
struct Failing {
    since: Instant,
    last: Instant,
    why: String,
}

/// So many objects that can not be read are named.
const SHOWN: usize = 20;
/// A watch that fails for so long is told; one error is none, because it is taken up again.
const TOLD: Duration = Duration::from_secs(5);
/// A watch that fails is tried again within seconds, and one that was taken up again says nothing
/// before something changes: without another failure for so long it is well.
const FORGOTTEN: Duration = Duration::from_secs(30);

impl Filled {
    /// Whether it does now.
    pub fn now(&self) -> bool {
        self.watched.borrow().filled
    }

    /// Waits until it does; false when its watch is gone and never will.
    pub async fn wait(&self) -> bool {
        self.watched.clone().wait_for(|watched| watched.filled).await.is_ok()
    }

    /// The objects that can not be read, each with the reason: what the store holds of them is
    /// what they were, or nothing.
    pub fn unread(&self) -> Vec<(Named, String)> {
        let watched = self.watched.borrow();
        watched.unread.iter().map(|(object, why)| (object.clone(), why.clone())).collect()
    }

    /// A line for each of them, as long as these are few.
    pub fn unread_in_words(&self) -> Vec<String> {
        let (kind, unread) = (&self.kind, self.unread());
        let line = |(object, why): &(Named, String)| {
            format!("{kind} {} can not be read, and counts as it was: {why}", object.key())
        };
        let more = unread.len().saturating_sub(SHOWN);
        let more = (more > 0).then(|| format!("and {more} more of {kind}, as the log says"));
        unread.iter().take(SHOWN).map(line).chain(more).collect()
    }

    /// Why an object can not be read, if it is there and can not.
    pub fn why_unread(&self, object: &Named) -> Option<String> {
        self.watched.borrow().unread.get(object).cloned()
    }

    /// The kind of its objects.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Whether there is this object, and it can not be read.
    pub fn is_unread(&self, object: &Named) -> bool {
        self.watched.borrow().unread.contains_key(object)
    }

    /// Why its watch fails, if it does: what the store holds is not what there is.
    pub fn failing(&self) -> Option<String> {
        let watched = self.watched.borrow();
        let Failing { since, last, why } = watched.failing.as_ref()?;
        let is_told = *last - *since >= TOLD || (since.elapsed() >= TOLD && !watched.filled);
        (is_told && last.elapsed() < FORGOTTEN).then(|| why.clone())
    }
}

impl Watched {
    fn note<K>(&mut self, kind: &str, event: &watcher::Result<watcher::Event<K>>) {
        let now = Instant::now();
        match event {
            // An attempt begins, and may fail.
            Ok(watcher::Event::Init) => {}
            Ok(event) => {
                self.filled |= matches!(event, watcher::Event::InitDone);
                self.failing = None;
            }
            Err(error) => {
                let known = self.failing.take().filter(|known| now - known.last < FORGOTTEN);
                let since = known.map_or(now, |known| known.since);
                self.failing = Some(Failing { since, last: now, why: why(kind, error) });
            }
        }
    }
}

/// Why a watch fails, and what to do.
fn why(kind: &str, error: &watcher::Error) -> String {
    let (said, code) = said_of_watch(error);
    let remedy = match code {
        401 => ": look at the ServiceAccount of this process and at its token",
        403 => ": upgrade the Helm release, or apply the roles of deploy/",
        404 => ": is its definition installed? kubectl apply --server-side -k crds",
        _ => "",
    };
    format!(
        "the watch of {kind} fails, so what is known of it is not what there is: {said}{remedy}"
    )
}

/// A store, the watch that fills it, and whether it has. What nobody reads is dropped before it is kept:
/// who changed which field, and what `trim` takes away.
pub fn cache<K: Watchable>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    trim: fn(&mut K),
) -> (Store<K>, Touched<K>, Filled) {
    cache_noting(client, namespace, config, trim, |_| ())
}

/// As [`cache`]; `note` sees each event when the store has taken it in.
pub fn cache_noting<K: Watchable>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    trim: fn(&mut K),
    mut note: impl FnMut(&watcher::Event<K>) + Send + 'static,
) -> (Store<K>, Touched<K>, Filled) {
    let (reader, writer) = store();
    let (fills, filled) = watch::channel(Watched::default());
    let (fills, known) = (Arc::new(fills), reader.clone());
    let (unread, mut sieve) = (fills.clone(), Sieve::default());
    let kind: Arc<str> = K::kind(&()).into();
    let of_store = kind.clone();
    let touched = tried(client, namespace, config)
        .filter_map(move |event| {
            let passed = match event {
                Ok(event) => {
                    let mut passed = None;
                    unread.send_if_modified(|watched| {
                        passed = sieve.pass(event, &known, &mut watched.unread);
                        false
                    });
                    passed.map(Ok)
                }
                Err(error) => Some(Err(error)),
            };
            std::future::ready(passed)
        })
        .modify(move |object: &mut K| {
            object.meta_mut().managed_fields = None;
            trim(object);
        })
        .reflect(writer)
        .inspect(move |event| {
            if let Ok(event) = event {
                note(event);
            }
            fills.send_if_modified(|watched| {
                let before = watched.filled;
                watched.note(&kind, event);
                watched.filled != before
            });
        })
        .touched_objects()
        .boxed();
    (reader, touched, Filled { watched: filled, kind: of_store })
}

/// A watch that fills no store and tells of metadata only: which objects were written or
/// deleted.
pub fn touched<K: Watchable>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
) -> Touched<PartialObjectMeta<K>> {
    readable(client, namespace, config).touched_objects().boxed()
}

/// A watch for who keeps what it tells; what can not be read is left out.
pub fn readable<K: Watchable>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
) -> BoxStream<'static, watcher::Result<watcher::Event<K>>> {
    let readable = tried(client, namespace, config).filter_map(|event| {
        std::future::ready(match event {
            Ok(event) => read(event).map(Ok),
            Err(error) => Some(Err(error)),
        })
    });
    readable.boxed()
}

/// A watch of objects that are read one by one.
fn tried<K: Watchable>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<Tried<K>>>> + Send + use<K> {
    let api: Api<Tried<K>> = namespace.map_or_else(
        || Api::all(client.clone()),
        |namespace| Api::namespaced(client.clone(), namespace),
    );
    watcher(api, config).backoff(WatchBackoff::default())
}

/// Polls a watch that nothing else polls, and hands each touched object to `each`.
pub async fn follow<K>(
    watch: impl Stream<Item = watcher::Result<K>>,
    kind: &'static str,
    mut each: impl FnMut(K),
) {
    let (mut watch, mut news) = (std::pin::pin!(watch), News::default());
    while let Some(touched) = watch.next().await {
        match touched {
            Ok(object) => each(object),
            Err(error) => {
                let (why, _) = said_of_watch(&error);
                if news.is_due(&why) {
                    tracing::warn!(kind, "the watch failed and is tried again: {why}");
                }
            }
        }
    }
}

/// A watch is taken up again soon: a rollout may be waiting. From 0.2 to 5 s, give or
/// take a third. An attempt that begins is no success, though kube's watcher says so: failures
/// count until there was none for half a minute.
#[derive(Default)]
pub struct WatchBackoff {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.replace(now).is_some_and(|last| now - last >= FORGOTTEN) {
            self.failures = 0;
        }
        let seconds = 0.2 * f64::from(1u32 << self.failures.min(5));
        self.failures += 1;
        Some(Duration::from_secs_f64(seconds.min(5.0) * (0.67 + 0.66 * rand::random::<f64>())))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

/// Which failures of a watch the log tells: what is new, and once a minute that it goes on.
#[derive(Debug, Default)]
pub struct News(Option<(String, Instant)>);

impl News {
    /// How often the same failure is told.
    const AGAIN: Duration = Duration::from_secs(60);

    /// Whether to tell of this failure now.
    pub fn is_due(&mut self, why: &str) -> bool {
        let now = Instant::now();
        let is_known =
            self.0.as_ref().is_some_and(|(told, at)| told == why && now - *at < Self::AGAIN);
        if !is_known {
            self.0 = Some((why.to_owned(), now));
        }
        !is_known
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn missing() -> watcher::Result<watcher::Event<ConfigMap>> {
        let status = kube::core::Status::failure("404 page not found\n", "").with_code(404);
        Err(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_goes_on_failing_says_so_and_one_error_says_nothing() {
        let (sender, receiver) = watch::channel(Watched::default());
        let filled = Filled { watched: receiver, kind: "ConfigMap".into() };
        let note = |event| sender.send_modify(|watched| watched.note("ConfigMap", &event));
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        // What begins with a failure says so as well.
        note(Ok(watcher::Event::Init));
        note(missing());
        assert_eq!(filled.failing(), None);
        pass(6).await;
        assert!(filled.failing().is_some() && !filled.now());
        note(Ok(watcher::Event::Init));
        note(Ok(watcher::Event::InitDone));
        assert!(filled.failing().is_none() && filled.now());
        // A connection breaks, and is there again: nothing comes before something changes.
        note(missing());
        pass(10).await;
        assert_eq!(filled.failing(), None);
        pass(60).await;
        for _ in 0..20 {
            note(Ok(watcher::Event::Init));
            note(missing());
            pass(5).await;
        }
        let why = filled.failing().unwrap();
        assert!(why.contains("ConfigMap") && why.contains("404 page not found: is its"), "{why}");
        assert!(filled.now(), "what it held it holds");
        pass(60).await;
        assert_eq!(filled.failing(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_before_its_first_list_is_tried_more_seldom_each_time() {
        let (mut backoff, mut waits) = (WatchBackoff::default(), vec![]);
        for _ in 0..12 {
            // kube's watcher says that an attempt begins, and the backoff is told of a success.
            backoff.reset();
            let wait = backoff.next().unwrap();
            tokio::time::advance(wait).await;
            waits.push(wait);
        }
        let slow = Duration::from_secs(3);
        assert!(waits[0] < Duration::from_millis(300), "{waits:?}");
        assert!(waits[5..].iter().all(|wait| *wait > slow), "{waits:?}");
        tokio::time::advance(FORGOTTEN).await;
        assert!(backoff.next().unwrap() < Duration::from_millis(300), "it went well in between");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_goes_on_is_told_once_a_minute_and_another_one_at_once() {
        let mut news = News::default();
        let told = |news: &mut News, why| (0..20).filter(|_| news.is_due(why)).count();
        assert_eq!((told(&mut news, "a"), told(&mut news, "b"), told(&mut news, "b")), (1, 1, 0));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(told(&mut news, "b"), 1);
    }
}
