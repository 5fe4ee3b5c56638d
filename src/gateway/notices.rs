//! What is wrong with what this process was told to serve, for those who look: probes
//! with `?verbose`, metrics, and the answer to a request for a route that is not served.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use arc_swap::ArcSwap;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::{
    api::conditions::{on_one_line, printable},
    rollout::decide::{ROUTE_TAKEN, reason_label},
    signals::{tried::NOT_READ, watch::Filled},
};

/// Something that is wrong and lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// A file, an object or the state: where to mend it.
    pub place: String,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence that says what to do. It does not change while nothing changes.
    pub message: String,
    /// The namespace and route of the release that is not served because of it.
    pub route: Option<(String, String)>,
    /// Of a manifest that is not in force because of it.
    pub withheld: Option<Withheld>,
}

/// A manifest that is not in force: a route may not be served because of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Withheld {
    /// The namespaces and routes of the releases that it is known to hold. It may hold others.
    pub routes: Vec<(String, String)>,
    /// The one of these whose release is what the message is about, and nothing else is.
    pub at_fault: Option<(String, String)>,
    /// Which document of the file is at fault, counted from 1.
    pub document: Option<usize>,
}

impl Withheld {
    /// What is told of the notice to those who may use a route. The message may quote other
    /// documents of the file, which they may not read.
    fn told(&self, notice: &Notice, is_told: impl Fn(&(String, String)) -> bool) -> String {
        if self.at_fault.as_ref().is_some_and(is_told) {
            return notice.to_string();
        }
        let Notice { place, reason, .. } = notice;
        let document = self.document.map(|number| format!(", document {number}"));
        let document = document.unwrap_or_default();
        format!("{place}{document}: {reason}: see /readyz?verbose on the admin port")
    }
}

impl Notice {
    /// Something that is wrong at `place`, on one line.
    pub fn new(
        place: impl Into<String>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let message = on_one_line(&message.into(), LONGEST);
        // The name of a file may have line breaks, and so may a status that somebody wrote.
        let (place, reason) = (printable(&place.into()), printable(&reason.into()));
        Self { place, reason, message, route: None, withheld: None }
    }
}

impl std::fmt::Display for Notice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}: {}", self.place, self.reason, self.message)
    }
}

/// The reason of a watch that fails.
const WATCH_FAILS: &str = "WatchFails";
/// The longest message, in bytes: it may quote what is wrong.
const LONGEST: usize = 2_000;
/// More lines than this are counted and not shown.
const SHOWN: usize = 500;

/// All that is wrong now.
#[derive(Debug, Default)]
pub struct Notices {
    /// With what this process was told: manifests, the state.
    told: ArcSwap<Vec<Notice>>,
    /// With what it could make of that.
    routes: ArcSwap<Vec<Notice>>,
    /// With client keys.
    keys: ArcSwap<Vec<Notice>>,
    /// With the keys of request ids.
    request_ids: ArcSwap<Vec<Notice>>,
    /// With releases for which the operator has decided no routing.
    unserved: RwLock<Unserved>,
    /// What this process follows, by kind. What is wrong with that is asked for when somebody
    /// looks, because a watch that fails wakes nobody.
    watches: ArcSwap<Vec<(&'static str, Filled)>>,
}

/// Releases without a routing, and why the operator gives them none. All of 10,000 may be
/// such, so a change costs the same with many of them as with one.
#[derive(Debug, Default)]
struct Unserved {
    /// By `namespace/name` of the release.
    of: BTreeMap<String, Arc<Notice>>,
    /// The releases that ask for a route.
    by_route: HashMap<String, BTreeSet<String>>,
}

impl Unserved {
    fn set(&mut self, release: String, notice: Option<Arc<Notice>>) {
        let before = self.of.remove(&release);
        if let Some((_, route)) = before.as_ref().and_then(|before| before.route.as_ref())
            && let Some(asking) = self.by_route.get_mut(route)
        {
            asking.remove(&release);
            if asking.is_empty() {
                self.by_route.remove(route);
            }
        }
        let Some(notice) = notice else { return };
        if let Some((_, route)) = &notice.route {
            self.by_route.entry(route.clone()).or_default().insert(release.clone());
        }
        self.of.insert(release, notice);
    }

    /// Why `route` is not served. Of several releases that ask for it, those that wait for
    /// another one to leave it say the least.
    fn of_route(&self, route: &str, may_use: impl Fn(&str) -> bool) -> Option<&Notice> {
        let asking = self.by_route.get(route)?.iter();
        let notices = asking.filter_map(|release| self.of.get(release)).map(Arc::as_ref);
        let told = notices.filter(|notice| {
            notice.route.as_ref().is_some_and(|(namespace, _)| may_use(namespace))
        });
        told.min_by_key(|notice| notice.reason == ROUTE_TAKEN)
    }
}

impl Notices {
    /// Takes what is wrong with manifests and the state now in place of what was.
    pub fn set(&self, notices: Vec<Notice>) {
        if *self.told.load_full() != notices {
            self.told.store(Arc::new(notices));
        }
    }

    /// Takes what is wrong with routes now, and logs what changed.
    pub(super) fn set_routes(&self, notices: Vec<Notice>) {
        change(&self.routes, notices);
    }

    /// Takes what is wrong with client keys now, and logs what changed.
    pub(super) fn set_keys(&self, notices: Vec<Notice>) {
        change(&self.keys, notices);
    }

    /// Takes what is wrong with the keys of request ids now, and logs what changed.
    pub(super) fn set_request_ids(&self, notices: Vec<Notice>) {
        change(&self.request_ids, notices);
    }

    /// Takes why releases, by `namespace/name`, have no routing now; none: they have one, or are
    /// gone. The operator logs what changes.
    pub(super) fn set_unserved(
        &self,
        releases: impl IntoIterator<Item = (String, Option<Arc<Notice>>)>,
    ) {
        let mut unserved = self.unserved.write().unwrap_or_else(PoisonError::into_inner);
        for (release, notice) in releases {
            unserved.set(release, notice);
        }
    }

    fn unserved(&self) -> RwLockReadGuard<'_, Unserved> {
        self.unserved.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the watches that routes are made from.
    pub(super) fn set_watches(&self, watches: Vec<(&'static str, Filled)>) {
        self.watches.store(Arc::new(watches));
    }

    fn all(&self) -> [Arc<Vec<Notice>>; 5] {
        let watches = self.watches.load();
        let failing = watches
            .iter()
            .filter_map(|(kind, watch)| Some(Notice::new(*kind, WATCH_FAILS, watch.failing()?)));
        let unread = watches.iter().flat_map(|(kind, watch)| {
            watch.unread().into_iter().map(move |(object, why)| {
                let message = format!("counts as it was, or is not served: {why}");
                Notice::new(format!("{kind} {}", object.key()), NOT_READ, message)
            })
        });
        let failing = Arc::new(failing.chain(unread).collect());
        let [told, routes, keys, request_ids] =
            [&self.told, &self.routes, &self.keys, &self.request_ids].map(ArcSwap::load_full);
        [failing, told, routes, keys, request_ids]
    }

    /// A line each.
    pub fn text(&self) -> String {
        let (all, unserved) = (self.all(), self.unserved());
        let mut text = String::new();
        let notices = all.iter().flat_map(|notices| notices.iter());
        for notice in notices.chain(unserved.of.values().map(Arc::as_ref)).take(SHOWN) {
            let _ = writeln!(text, "{notice}");
        }
        let count = all.iter().map(|notices| notices.len()).sum::<usize>() + unserved.of.len();
        let more = count.saturating_sub(SHOWN);
        if more > 0 {
            let _ = writeln!(text, "and {more} more: the metric serinus_gateway_problems has all");
        }
        text
    }

    /// Why `route` is not served, told to those who may use it.
    pub fn of_route(&self, route: &str, may_use: impl Fn(&str) -> bool) -> Option<String> {
        let notices = self.all();
        let first = |has: &dyn Fn(&Notice) -> bool| {
            notices.iter().flat_map(|notices| notices.iter()).find(|notice| has(notice))
        };
        let is_told =
            |(namespace, own): &(String, String)| own == route && may_use(namespace.as_str());
        if let Some(named) = first(&|notice| notice.route.as_ref().is_some_and(is_told)) {
            return Some(named.to_string());
        }
        if let Some(unserved) = self.unserved().of_route(route, &may_use) {
            return Some(unserved.to_string());
        }
        // What a release's own file says of it counts while nothing is known of the release.
        let holds = |held: &Withheld| held.routes.iter().any(is_told);
        let named = first(&|notice| notice.withheld.as_ref().is_some_and(holds))?;
        Some(named.withheld.as_ref()?.told(named, is_told))
    }

    /// How many files or folders of manifests are not in force: each may be why a route is not
    /// served of which nothing else is known.
    pub fn withheld(&self) -> usize {
        let told = self.told.load();
        told.iter().filter(|notice| notice.withheld.is_some()).count()
    }
}

fn change(kept: &ArcSwap<Vec<Notice>>, notices: Vec<Notice>) {
    let before = kept.swap(Arc::new(notices));
    let now = kept.load();
    let new: BTreeSet<&Notice> = now.iter().collect();
    let old: BTreeSet<&Notice> = before.iter().collect();
    for notice in new.difference(&old) {
        tracing::warn!("{notice}");
    }
    for Notice { place, reason, .. } in old.difference(&new) {
        tracing::info!("{place}: no {reason} now, or another one");
    }
}

impl Collector for Notices {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let mut counts = BTreeMap::<String, i64>::new();
        let all = self.all();
        for notice in all.iter().flat_map(|notices| notices.iter()) {
            *counts.entry(notice.reason.clone()).or_default() += 1;
        }
        for notice in self.unserved().of.values() {
            // It comes from a status: only words of ours become labels.
            *counts.entry(reason_label(&notice.reason).to_owned()).or_default() += 1;
        }
        let help = "What is wrong now with manifests, releases and the state, by reason";
        let mut metric = encoder.encode_descriptor("problems", help, None, MetricType::Gauge)?;
        for (reason, count) in counts {
            let labels = [("reason", reason)];
            ConstGauge::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_one_line_whatever_a_file_is_called() {
        let notice = Notice::new("a\nb: X: \u{1b}[2Jc.yaml", "Reason", "é\r\nof\u{7}\tit");
        assert_eq!(Notice::new("a", "R", "é".repeat(9_000)).message.len(), LONGEST + "…".len());
        assert_eq!(notice.to_string(), "a\\nb: X: \\u{1b}[2Jc.yaml: Reason: é of\\u{7} it");
    }

    #[test]
    fn why_a_route_is_not_served_is_told_to_those_who_may_use_it_and_to_nobody_else() {
        let notices = Notices::default();
        let missing = Notice::new("PromptRelease shop/r", "PromptNotFound", "PromptVersion v9 ...");
        let of_r = Some(("shop".to_owned(), "r".to_owned()));
        let bad_file = Notice::new("x.yaml", "InvalidManifest", "not valid YAML");
        notices.set(vec![Notice { route: of_r, ..missing }, bad_file]);
        let told = notices.of_route("r", |namespace| namespace == "shop");
        assert_eq!(told.unwrap(), "PromptRelease shop/r: PromptNotFound: PromptVersion v9 ...");
        assert_eq!(notices.of_route("r", |namespace| namespace == "other"), None);
        assert_eq!(notices.of_route("s", |_| true), None);
        assert_eq!(notices.text().lines().count(), 2);
        notices.set(vec![]);
        assert_eq!(notices.text(), "");
    }

    #[test]
    fn why_a_release_has_no_routing_is_told_by_its_route_until_it_has_one() {
        let notices = Notices::default();
        let of = |namespace: &str, name: &str, reason: &str| {
            let key = format!("{namespace}/{name}");
            let notice = Notice::new(format!("PromptRelease {key}"), reason, "create it");
            let route = Some((namespace.to_owned(), "r".to_owned()));
            (key, Some(Arc::new(Notice { route, ..notice })))
        };
        let told = |namespace: &'static str| notices.of_route("r", |own| own == namespace);
        let said = |key: &str, reason: &str| format!("PromptRelease {key}: {reason}: create it");
        notices.set_unserved([of("shop", "a", "RouteTaken"), of("shop", "b", "PromptNotFound")]);
        notices.set_unserved([of("other", "c", "RouteTaken")]);
        assert_eq!(told("shop"), Some(said("shop/b", "PromptNotFound")), "it says more");
        assert_eq!(told("other"), Some(said("other/c", "RouteTaken")));
        assert_eq!((told("third"), notices.of_route("s", |_| true)), (None, None));
        // Another reason takes the place of the one before.
        notices.set_unserved([of("shop", "b", "PromptInvalid"), ("shop/a".to_owned(), None)]);
        assert_eq!(told("shop"), Some(said("shop/b", "PromptInvalid")));
        assert_eq!(notices.text().lines().count(), 2);
        let gone = ["shop/b", "other/c", "never/known"].map(|key| (key.to_owned(), None));
        notices.set_unserved(gone);
        assert_eq!((told("shop"), notices.text()), (None, String::new()));
        assert!(notices.unserved().by_route.is_empty(), "nothing is left of what is served");
    }

    #[test]
    fn a_release_in_a_file_that_is_not_in_force_is_told_after_what_is_known_of_it() {
        let notices = Notices::default();
        let file = |place: &str, routes: &[&str]| {
            let routes = routes.iter().map(|r| ("shop".to_owned(), (*r).to_owned())).collect();
            let withheld = Some(Withheld { routes, document: Some(2), ..Withheld::default() });
            Notice { withheld, ..Notice::new(place, "InvalidManifest", "correct it") }
        };
        assert_eq!(notices.withheld(), 0);
        let other = Notice::new("c", "StateUnwritable", "no");
        notices.set(vec![file("a.yaml", &["r", "s"]), file("b.yaml", &[]), other]);
        let told = |route: &str| notices.of_route(route, |namespace| namespace == "shop");
        let elsewhere =
            "a.yaml, document 2: InvalidManifest: see /readyz?verbose on the admin port";
        assert_eq!(told("s").unwrap(), elsewhere, "the message may quote another document");
        assert_eq!((notices.of_route("s", |_| false), told("t")), (None, None));
        assert_eq!(notices.withheld(), 2);
        let known = Notice::new("PromptRelease shop/r", "PromptNotFound", "create it");
        let route = Some(("shop".to_owned(), "r".to_owned()));
        let mut own = file("b.yaml", &["r", "s"]);
        own.withheld.as_mut().unwrap().at_fault = Some(("shop".to_owned(), "s".to_owned()));
        notices.set(vec![own]);
        assert_eq!(told("s").unwrap(), "b.yaml: InvalidManifest: correct it");
        assert!(!told("r").unwrap().contains("correct it"));
        notices.set(vec![file("a.yaml", &["r"]), Notice { route, ..known }]);
        assert_eq!(told("r").unwrap(), "PromptRelease shop/r: PromptNotFound: create it");
    }

    #[test]
    fn problems_are_counted_by_reason() {
        let notices = Arc::new(Notices::default());
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(notices.clone()));
        let of = |place: &str| Notice::new(place, "InvalidManifest", "no");
        notices.set(vec![of("a"), of("b"), Notice::new("c", "EmptyFile", "no")]);
        let unserved = |name: &str, reason: &str| {
            (format!("ns/{name}"), Some(Arc::new(Notice::new(name, reason, "no"))))
        };
        notices.set_unserved([unserved("d", "PromptNotFound"), unserved("e", "x\"y")]);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let counts =
            [("EmptyFile", 1), ("InvalidManifest", 2), ("PromptNotFound", 1), ("Other", 1)];
        for (reason, count) in counts {
            let line = format!("problems{{reason=\"{reason}\"}} {count}");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }
}
