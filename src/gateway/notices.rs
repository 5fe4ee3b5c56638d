//! What is wrong with what this process was told to serve, for those who look: probes
//! with `?verbose`, metrics, and the answer to a request for a route that is not served.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use arc_swap::ArcSwap;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
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
}

impl Notice {
    /// Something that is wrong at `place`, on one line.
    pub fn new(
        place: impl Into<String>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let words: String = message.into();
        let mut message = on_one_line(&words.split_whitespace().collect::<Vec<_>>().join(" "));
        if message.len() > LONGEST {
            message.truncate(message.floor_char_boundary(LONGEST));
            message.push('…');
        }
        let place = on_one_line(&place.into());
        Self { place, reason: reason.into(), message, route: None }
    }
}

/// The name of a file may have line breaks, and what moves a terminal's cursor.
fn on_one_line(text: &str) -> String {
    let safe = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(safe).collect()
}

impl std::fmt::Display for Notice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}: {}", self.place, self.reason, self.message)
    }
}

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

    fn all(&self) -> [Arc<Vec<Notice>>; 4] {
        [&self.told, &self.routes, &self.keys, &self.request_ids].map(|notices| notices.load_full())
    }

    /// A line each.
    pub fn text(&self) -> String {
        let all = self.all();
        let mut text = String::new();
        for notice in all.iter().flat_map(|notices| notices.iter()).take(SHOWN) {
            let _ = writeln!(text, "{notice}");
        }
        let more = all.iter().map(|notices| notices.len()).sum::<usize>().saturating_sub(SHOWN);
        if more > 0 {
            let _ = writeln!(text, "and {more} more: the metric serinus_gateway_problems has all");
        }
        text
    }

    /// Why `route` is not served, told to those who may use it.
    pub fn of_route(&self, route: &str, may_use: impl Fn(&str) -> bool) -> Option<String> {
        let notices = self.all();
        let named = notices.iter().flat_map(|notices| notices.iter()).find(|notice| {
            let of = notice.route.as_ref();
            of.is_some_and(|(namespace, own)| own == route && may_use(namespace))
        })?;
        Some(named.to_string())
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
    fn problems_are_counted_by_reason() {
        let notices = Arc::new(Notices::default());
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(notices.clone()));
        let of = |place: &str| Notice::new(place, "InvalidManifest", "no");
        notices.set(vec![of("a"), of("b"), Notice::new("c", "EmptyFile", "no")]);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in ["problems{reason=\"EmptyFile\"} 1", "problems{reason=\"InvalidManifest\"} 2"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
