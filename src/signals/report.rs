//! What a gateway process tells the operator, once per interval for all releases
//! together: `GET /serinus/v1/report` on its admin address. Being asked by a leader
//! is the gateway's sign that a judge is alive. Both sides show who they are
//! ([`super::proof`]).
//!
//! The form has a number. Under the same number fields may be added, which an older reader
//! does not see and a newer one takes for absent when they are; a change of meaning is
//! another number, and a reader takes a report of a number that it does not know for none.
//! What is as it should be is left out, and so are the counts of a release with nothing to
//! compare. A report says where it stands (its mark), and who asks `?since=` that mark is told
//! what has changed: ten thousand idle releases are a hundred bytes a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::{
    api::prompt_release::Counts,
    rollout::{Gateway, namespace_of},
};
use jiff::civil::Date;

/// The header with which a leader asks for a report; its value is the leader's term.
pub const LEADER_HEADER: &str = "x-serinus-leader";

/// Where reports are told.
pub const REPORT_PATH: &str = "/serinus/v1/report";

/// The form of reports.
pub const VERSION: u32 = 1;

/// Counts by revision.
pub type Counted = BTreeMap<String, Arc<Counts>>;

/// [`Counted`] as it was told. Gateways are asked more often than a release is looked at, so who
/// looks reads it.
#[derive(Clone, Debug, Default)]
pub struct Unread(Option<Arc<RawValue>>);

/// One gateway process's state. Counts only grow while the process lives.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[serde(bound(deserialize = "C: Default + Deserialize<'de>"))]
#[serde(bound(serialize = "C: Default + PartialEq + Serialize"))]
pub struct GatewayReport<C = Counted> {
    /// The form that it has.
    pub version: u32,
    /// An id that the process drew when it started: a restart is another instance.
    pub instance: String,
    /// The state of each route, by `namespace/name` of the release: of all, or of those that
    /// have changed.
    pub releases: BTreeMap<String, ReleaseReport<C>>,
    /// Where this report stands; 0 when this process tells everything each time.
    #[serde(skip_serializing_if = "is_zero")]
    pub mark: u64,
    /// Only what has changed since this mark is told; without it, everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Releases that this process has served at that mark and does not serve now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<String>,
}

/// Where a report of a process stands, as a question names it: `INSTANCE.MARK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The process.
    pub instance: String,
    /// Its report's mark.
    pub at: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.instance, self.at)
    }
}

impl FromStr for Mark {
    type Err = NotAMark;

    fn from_str(text: &str) -> Result<Self, NotAMark> {
        let (instance, at) = text.split_once('.').ok_or(NotAMark)?;
        Ok(Self { instance: instance.to_owned(), at: at.parse().map_err(|_| NotAMark)? })
    }
}

/// The parts of a query with what is not judged: releases, and whole namespaces.
const RELEASES: &str = "unjudged";
const NAMESPACES: &str = "unjudged-namespaces";

/// What a question says besides that it asks: its query, if there is something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only what has changed since then is wanted.
    pub since: Option<Mark>,
    /// What the leader who asks does not judge. An earlier version reads neither this nor the
    /// mark before it, and tells everything.
    pub unjudged: Unjudged,
}

/// Releases that the leader does not judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unjudged {
    /// By `namespace/name`.
    pub releases: BTreeSet<String>,
    /// Namespaces of which no release is judged: too many of them to be named. An earlier
    /// version does not read these.
    pub namespaces: BTreeSet<String>,
}

impl Unjudged {
    /// Whether a release (`namespace/name`) is among them.
    pub fn has(&self, release: &str) -> bool {
        // Each request asks this, and mostly both are empty.
        self.releases.contains(release)
            || (!self.namespaces.is_empty() && self.namespaces.contains(namespace_of(release)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.namespaces.is_empty()
    }
}

impl Wanted {
    /// Reads a query. What it does not know means nothing.
    pub fn of_query(query: &str) -> Self {
        let value = |name: &str| {
            query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        let names = |of: &str| -> BTreeSet<String> {
            let names = value(of).into_iter().flat_map(|names| names.split(','));
            names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        Self {
            since: value("since").and_then(|mark| mark.parse().ok()),
            unjudged: Unjudged { releases: names(RELEASES), namespaces: names(NAMESPACES) },
        }
    }
}

/// As a query, with its question mark. Names of objects need no escapes.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = '?';
        if let Some(since) = &self.since {
            write!(f, "{before}since={since}")?;
            before = '&';
        }
        let Unjudged { releases, namespaces } = &self.unjudged;
        for (of, names) in [(RELEASES, releases), (NAMESPACES, namespaces)] {
            for (i, name) in names.iter().enumerate() {
                match i {
                    0 => write!(f, "{before}{of}={name}")?,
                    _ => write!(f, ",{name}")?,
                }
                before = '&';
            }
        }
        Ok(())
    }
}

/// A text is not a process and its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a mark of a report: INSTANCE.NUMBER is expected")]
pub struct NotAMark;

/// One release as one gateway process sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[serde(bound(deserialize = "C: Default + Deserialize<'de>"))]
#[serde(bound(serialize = "C: Default + PartialEq + Serialize"))]
pub struct ReleaseReport<C = Counted> {
    /// The routing generation that requests are assigned under now.
    pub applied: i64,
    /// Everything goes to stable because no leader was seen for too long; the
    /// state before this report's own request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub control_loss: bool,
    /// Revisions whose breaker is open: nearly all that was asked of them failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
    /// LLMDeployments that answer again and again that they have no such model, or not for the
    /// key that they are asked with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without_model: Vec<String>,
    /// When models end, by the name of the LLMDeployment, where its server's list has the model:
    /// null where the list names no day.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models_end: BTreeMap<String, Option<Date>>,
    /// Why a variant can not be built here, by revision; also of a canary that is held out
    /// of routing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unbuilt: BTreeMap<String, String>,
    /// Counts by revision, under the applied generation only. Requests whose answer
    /// ends after the generation changed still count under their own generation and are dropped from here.
    /// None when there is one variant only: nothing is judged then.
    #[serde(skip_serializing_if = "is_default")]
    pub counts: C,
}

impl ReleaseReport {
    /// How the rollout of a release sees a process of which this is `seen`, if it knows the
    /// release.
    pub fn as_gateway(instance: &str, seen: Option<&Self>) -> Gateway {
        Gateway {
            instance: Some(instance.to_owned()),
            silent: None,
            applied: seen.map(|s| s.applied),
            control_loss: seen.is_some_and(|s| s.control_loss),
            unbuilt: seen.map(|s| s.unbuilt.clone()).unwrap_or_default(),
            failing: seen.map(|s| s.failing.clone()).unwrap_or_default(),
            counts: seen.map(|s| s.counts.clone()).unwrap_or_default(),
        }
    }
}

impl ReleaseReport<Unread> {
    /// With its counts.
    ///
    /// # Errors
    /// The counts are none.
    pub fn read(&self) -> Result<ReleaseReport, serde_json::Error> {
        Ok(ReleaseReport {
            applied: self.applied,
            control_loss: self.control_loss,
            failing: self.failing.clone(),
            without_model: self.without_model.clone(),
            models_end: self.models_end.clone(),
            unbuilt: self.unbuilt.clone(),
            counts: self.counts.read()?,
        })
    }
}

impl Unread {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn read(&self) -> Result<Counted, serde_json::Error> {
        self.text().map_or(Ok(Counted::new()), serde_json::from_str)
    }

    fn text(&self) -> Option<&str> {
        self.0.as_deref().map(RawValue::get)
    }
}

impl PartialEq for Unread {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(Some(text.into())))
    }
}

impl<C> GatewayReport<C> {
    /// The report, if this process knows its form; otherwise it must not guess what is meant.
    ///
    /// # Errors
    /// Both forms.
    pub fn known(self) -> Result<Self, String> {
        let (found, known) = (self.version, VERSION);
        match found == known {
            true => Ok(self),
            false => Err(format!("it has form {found}, this operator reads form {known}")),
        }
    }
}

impl<C> Default for GatewayReport<C> {
    fn default() -> Self {
        Self {
            version: VERSION,
            instance: String::new(),
            releases: BTreeMap::new(),
            mark: 0,
            since: None,
            gone: vec![],
        }
    }
}

fn is_zero(mark: &u64) -> bool {
    *mark == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(revisions: &[&str]) -> ReleaseReport {
        let counts = |revision: &&str| {
            let counts = Counts { assigned: 7, requests: 5, ..Counts::default() };
            ((*revision).to_owned(), counts.into())
        };
        ReleaseReport {
            applied: 12,
            counts: revisions.iter().map(counts).collect(),
            ..ReleaseReport::default()
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_a_question_wants_arrives_as_it_was() {
        let since = Some(Mark { instance: "0123456789abcdef".to_owned(), at: 12 });
        let (some, none) = (names(&["shop/answers", "shop/b.c-d"]), BTreeSet::new());
        let namespaces = names(&["bakery", "shop"]);
        let all = [&none, &some].map(|releases| {
            [&none, &namespaces].map(|namespaces| Unjudged {
                releases: releases.clone(),
                namespaces: namespaces.clone(),
            })
        });
        for since in [None, since] {
            for unjudged in all.iter().flatten().cloned() {
                let wanted = Wanted { since: since.clone(), unjudged };
                let query = wanted.to_string();
                assert_eq!(Wanted::of_query(query.strip_prefix('?').unwrap_or("")), wanted);
            }
        }
        let [_, [of_releases, of_both]] = all;
        let query = |unjudged| Wanted { since: None, unjudged }.to_string();
        // As a gateway of an earlier version reads it.
        assert_eq!(query(of_releases), "?unjudged=shop/answers,shop/b.c-d");
        let both = "?unjudged=shop/answers,shop/b.c-d&unjudged-namespaces=bakery,shop";
        assert_eq!(query(of_both), both);
        for odd in ["", "unjudged=", "unjudged", "since=x", "later=1&&sinceful=i.1"] {
            assert_eq!(Wanted::of_query(odd), Wanted::default(), "{odd}");
        }
    }

    #[test]
    fn a_release_is_not_judged_when_it_is_named_or_its_namespace_is() {
        let unjudged =
            Unjudged { releases: names(&["shop/a"]), namespaces: names(&["bakery", "shop2"]) };
        for (release, is_one) in [
            ("shop/a", true),
            ("shop/b", false),
            ("bakery/a", true),
            ("bakery", false),
            ("shop2/x", true),
            ("shop22/x", false),
        ] {
            assert_eq!(unjudged.has(release), is_one, "{release}");
        }
        assert!(!Unjudged::default().has("shop/a") && Unjudged::default().is_empty());
    }

    #[test]
    fn an_idle_release_takes_its_name_and_little_more() {
        let idle = serde_json::to_string(&release(&[])).unwrap();
        assert_eq!(idle, r#"{"applied":12}"#);
    }

    #[test]
    fn a_comparison_arrives_as_it_was() {
        let sent = GatewayReport {
            instance: "i".into(),
            releases: [("ns/r".to_owned(), release(&["stable", "canary"]))].into(),
            ..GatewayReport::default()
        };
        let text = serde_json::to_string(&sent).unwrap();
        assert_eq!(serde_json::from_str::<GatewayReport>(&text).unwrap(), sent);
        let unread: GatewayReport<Unread> = serde_json::from_str(&text).unwrap();
        assert_eq!(unread.releases["ns/r"].read().unwrap(), sent.releases["ns/r"]);
    }

    #[test]
    fn what_a_later_gateway_adds_and_what_an_earlier_one_lacks_is_read() {
        let text =
            r#"{"instance": "i", "later": 1, "releases": {"ns/r": {"applied": 3, "later": {}}}}"#;
        let report: GatewayReport = serde_json::from_str(text).unwrap();
        assert_eq!((report.version, report.releases["ns/r"].applied), (VERSION, 3));
        assert!(report.clone().known().is_ok());
        assert!(GatewayReport { version: VERSION + 1, ..report }.known().is_err(), "no guess");
    }
}
