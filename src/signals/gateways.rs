//! Pulls every gateway's report: once per interval for all releases together, and after the
//! first only what has changed, so that the cost grows with what happens and not with
//! releases. Being asked by a leader is also the gateways' sign that a judge is alive, except
//! for the releases that the question names.
//!
//! An answer that does not prove to be a gateway's is none ([`super::proof`]): who stands
//! where a gateway should be is silent, whatever it says.

mod ask;
mod keys;
mod known;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use jiff::{Timestamp, civil::Date};
use tokio::time::Instant;

pub use self::{
    ask::Silence,
    keys::Read,
    known::{Known, ToldBy},
};
use self::{
    ask::{PATIENCE, Question},
    keys::Keys,
};
use super::report::{GatewayReport, Mark, Unjudged, Unread};
use crate::rollout;

/// Why a gateway is silent is told at a change, and not more often than this.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// So long what a process had counted that is not seen any more is kept for the next look of
/// each release, and of so many processes.
const REMEMBERED: Duration = Duration::from_secs(900);
const PROCESSES: usize = 128;

type Answers = BTreeMap<String, Result<GatewayReport<Unread>, Silence>>;

/// What the pulls of a term brought.
#[derive(Clone, Debug, Default)]
pub struct Pulled {
    /// The leader's term in which it was pulled.
    pub term: i64,
    /// By address, also why there is none.
    pub reports: BTreeMap<String, Result<Known, Silence>>,
    /// What processes have counted that are not seen any more, by when they were. A gateway
    /// that a canary brings down must not take along what it has told.
    departed: Vec<(Instant, Known)>,
}

/// What gateways have told of one release.
#[derive(Clone, Debug)]
pub struct Told {
    gateways: Vec<(String, Result<ToldBy, Silence>)>,
    departed: Vec<ToldBy>,
}

/// What the rollout of one release sees of the gateways.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Every gateway that there is.
    pub gateways: Vec<rollout::Gateway>,
    /// What processes have counted for it that are not there any more.
    pub departed: Vec<rollout::Gateway>,
}

/// What gateways are told by being asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    /// A leader asks, of which decisions are written.
    pub leads: bool,
    /// The releases for which it makes or writes none all the same.
    pub unjudged: Unjudged,
}

/// What changed since the pull before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Releases of which a gateway tells something else than counts.
    pub releases: BTreeSet<String>,
    /// A gateway came, went, or restarted.
    pub fleet: bool,
}

/// The gateways' last reports.
pub struct Gateways {
    client: reqwest::Client,
    keys: Keys,
    clock: fn() -> Timestamp,
    last: Mutex<Option<Pulled>>,
    /// What was told last of each address that is silent, and when.
    told: Mutex<BTreeMap<String, (&'static str, Instant)>>,
}

impl Gateways {
    /// Nothing was pulled yet. `keys` reads the keys that gateways hold.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn new(keys: Read, clock: fn() -> Timestamp) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let (last, told) = <_>::default();
        Ok(Self { client, keys: Keys::new(keys), clock, last, told })
    }

    /// Asks every gateway (`host:port` of its admin address) and keeps the answers.
    pub async fn pull(&self, term: i64, sign: &Sign, addresses: &BTreeSet<String>) -> Changes {
        let marks = self.last(term, Pulled::marks).unwrap_or_default();
        let mut answers = self.ask(term, sign, addresses, &marks).await;
        let doubtful = |(address, report): (&String, &Result<_, Silence>)| {
            report.as_ref().is_err_and(Silence::is_about_keys).then(|| address.clone())
        };
        let doubtful: BTreeSet<String> = answers.iter().filter_map(doubtful).collect();
        if !doubtful.is_empty() && self.keys.refresh().await {
            answers.extend(self.ask(term, sign, &doubtful, &marks).await);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.take().filter(|last| last.term == term);
        let (pulled, changes) = Pulled::hear(before, term, answers, Instant::now());
        self.tell(&pulled.reports);
        *last = Some(pulled);
        changes
    }

    /// What the last pull brought, if it was in this term.
    pub fn last<T>(&self, term: i64, of: impl FnOnce(&Pulled) -> T) -> Option<T> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|last| last.term == term).map(of)
    }

    async fn ask(
        &self,
        term: i64,
        sign: &Sign,
        addresses: &BTreeSet<String>,
        marks: &BTreeMap<String, Mark>,
    ) -> Answers {
        let now = (self.clock)();
        let key = self.keys.signing(now);
        let (client, key) = (&self.client, key.as_ref());
        let asked = addresses.iter().map(|address| async move {
            let since = marks.get(address);
            (address.clone(), Question { client, address, term, sign, now, since }.ask(key).await)
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Logs which gateways have become silent and why, and which have not any more.
    fn tell(&self, reports: &BTreeMap<String, Result<Known, Silence>>) {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|address, _| reports.contains_key(address));
        for (address, report) in reports {
            let (before, at) = told.get(address).copied().unzip();
            let due = at.is_none_or(|at| now - at >= TOLD_AGAIN);
            match report {
                Err(why) if due && before != Some(why.reason()) => {
                    let detail = why.detail().map(|d| format!(": {d}")).unwrap_or_default();
                    let reason = why.reason();
                    tracing::warn!(address, reason, "no report of a gateway: {why}{detail}");
                    told.insert(address.clone(), (reason, now));
                }
                Ok(_) if due && before.is_some_and(|reason| !reason.is_empty()) => {
                    tracing::info!(address, "the gateway reports");
                    told.insert(address.clone(), ("", now));
                }
                _ => {}
            }
        }
    }
}

impl Told {
    /// As the rollout of the release sees it. A gateway whose counts can not be read counts as
    /// silent: what is missing would not be missing at random.
    pub fn read(&self) -> Seen {
        let one = |(address, told): &(String, Result<ToldBy, Silence>)| {
            let read = told.as_ref().map_err(ToString::to_string).and_then(ToldBy::read);
            read.unwrap_or_else(|why| {
                let silent = Some(format!("{address}: {why}"));
                rollout::Gateway { silent, ..rollout::Gateway::default() }
            })
        };
        let departed = self.departed.iter().filter_map(|told| {
            let read = told.read();
            // Nobody waits for a process that is gone, so no status would say it.
            read.inspect_err(|why| tracing::warn!("a gateway that is gone: {why}")).ok()
        });
        Seen { gateways: self.gateways.iter().map(one).collect(), departed: departed.collect() }
    }
}

impl Pulled {
    fn marks(&self) -> BTreeMap<String, Mark> {
        let mark = |(address, known): (&String, &Result<Known, _>)| {
            Some((address.clone(), known.as_ref().ok()?.mark.clone()?))
        };
        self.reports.iter().filter_map(mark).collect()
    }

    /// Takes answers in, on top of what was known `before` in this term.
    fn hear(before: Option<Self>, term: i64, answers: Answers, now: Instant) -> (Self, Changes) {
        let is_first = before.is_none();
        let Self { mut reports, mut departed, .. } = before.unwrap_or_default();
        let (mut heard, mut gone) = (BTreeMap::new(), vec![]);
        let mut changes = Changes { fleet: is_first, ..Changes::default() };
        for (address, answer) in answers {
            let known = reports.remove(&address);
            let was_known = known.is_some();
            let known = known.and_then(Result::ok);
            let before = known.as_ref().map(|known| known.instance.clone());
            let goes_on = |known: &Known| answer.as_ref().is_ok_and(|r| known.goes_on_with(r));
            gone.extend(known.as_ref().filter(|known| !goes_on(known)).map(Known::counted));
            let report = match answer.and_then(|report| Known::hear(known, report)) {
                Ok((report, news)) => {
                    changes.fleet |= news.process;
                    // What the first process at an address says is the fleet's change.
                    if before.is_some() {
                        changes.releases.extend(news.releases);
                    }
                    Ok(report)
                }
                Err(why) => {
                    changes.fleet |= before.is_some() || !was_known;
                    Err(why)
                }
            };
            heard.insert(address, report);
        }
        changes.fleet |= !reports.is_empty();
        gone.extend(reports.values().filter_map(|known| known.as_ref().ok()).map(Known::counted));
        departed.extend(gone.into_iter().map(|known| (now, known)));
        let lives = |instance: &str| {
            heard.values().any(|known| known.as_ref().is_ok_and(|k| *k.instance == *instance))
        };
        departed.retain(|(seen, known)| now - *seen < REMEMBERED && !lives(&known.instance));
        let surplus = departed.len().saturating_sub(PROCESSES);
        departed.drain(..surplus);
        (Self { term, reports: heard, departed }, changes)
    }

    /// Whether any gateway has answered.
    pub fn has_heard(&self) -> bool {
        self.reports.values().any(Result::is_ok)
    }

    /// Whether a gateway tells that an LLMDeployment which a release (`namespace/name`) uses
    /// has no such model.
    pub fn is_without_model(&self, release: &str, backend: &str) -> bool {
        let known = self.reports.values().filter_map(|known| known.as_ref().ok());
        known
            .filter_map(|known| known.releases.get(release))
            .any(|state| state.without_model.iter().any(|name| name == backend))
    }

    /// When gateways say that the model of an LLMDeployment ends which a release uses; none
    /// while no list of its server has the model.
    pub fn model_ends(&self, release: &str, backend: &str) -> Option<Option<Date>> {
        let known = self.reports.values().filter_map(|known| known.as_ref().ok());
        let said = known.filter_map(|known| known.releases.get(release)?.models_end.get(backend));
        // Of several dates the first; any is more than none.
        said.copied().min_by_key(|date| (date.is_none(), *date))
    }

    /// What the gateways have told of a release (`namespace/name`).
    pub fn of(&self, release: &str) -> Told {
        let one = |(address, known): (&String, &Result<Known, Silence>)| {
            (address.clone(), known.as_ref().map(|known| known.of(release)).map_err(Clone::clone))
        };
        let departed = self.departed.iter().filter(|(_, known)| known.has(release));
        Told {
            gateways: self.reports.iter().map(one).collect(),
            departed: departed.map(|(_, known)| known.of(release)).collect(),
        }
    }

    /// How many gateways there are, how many of them are silent, and at how many of these
    /// addresses somebody answers who has not shown to be a gateway.
    pub fn size(&self) -> [usize; 3] {
        let silent = || self.reports.values().filter_map(|report| report.as_ref().err());
        let unproven = silent().filter(|why| why.is_unproven()).count();
        [self.reports.len(), silent().count(), unproven]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::report::ReleaseReport;

    /// By address: the process and the generation that it applies, or none that answers.
    type Fleet<'a> = &'a [(&'a str, Option<(&'a str, i64)>)];

    fn answers(gateways: Fleet<'_>) -> Answers {
        let report = |(instance, applied): (&str, i64)| GatewayReport {
            instance: instance.into(),
            releases: [("ns/r".to_owned(), ReleaseReport { applied, ..Default::default() })].into(),
            ..Default::default()
        };
        gateways
            .iter()
            .map(|(a, g)| ((*a).to_owned(), g.map(report).ok_or(Silence::NoKey)))
            .collect()
    }

    fn pulled(gateways: Fleet<'_>) -> Pulled {
        Pulled::hear(None, 1, answers(gateways), Instant::now()).0
    }

    fn changes(before: Fleet<'_>, now: Fleet<'_>) -> Changes {
        Pulled::hear(Some(pulled(before)), 1, answers(now), Instant::now()).1
    }

    #[test]
    fn the_same_again_is_no_change() {
        let same = [("a", Some(("i", 3))), ("b", None)];
        assert_eq!(changes(&same, &same), Changes::default());
        assert!(Pulled::hear(None, 1, answers(&same), Instant::now()).1.fleet);
    }

    #[test]
    fn a_release_that_applies_another_generation_has_changed() {
        let changes = changes(&[("a", Some(("i", 3)))], &[("a", Some(("i", 4)))]);
        assert_eq!(changes.releases, ["ns/r".to_owned()].into());
        assert!(!changes.fleet);
    }

    #[test]
    fn silence_a_restart_and_a_new_gateway_change_the_fleet() {
        let before = [("a", Some(("i", 3)))];
        let others: [Fleet<'_>; 4] =
            [&[("a", None)], &[("a", Some(("j", 3)))], &[("a", Some(("i", 3))), ("b", None)], &[]];
        for now in others {
            assert!(changes(&before, now).fleet, "{now:?}");
            assert!(changes(now, &before).fleet, "{now:?}");
        }
    }

    #[test]
    fn a_silent_gateway_counts_as_one_that_does_not_follow() {
        let seen = pulled(&[("a", Some(("i", 3))), ("b", None)]).of("ns/r").read().gateways;
        assert_eq!(seen[0].applied, Some(3));
        let silent = Some("b: this operator has no key to ask it with".to_owned());
        assert_eq!(seen[1], rollout::Gateway { silent, ..rollout::Gateway::default() });
    }

    #[test]
    fn counts_that_can_not_be_read_are_silence_about_that_release() {
        let mut answers = answers(&[("a", Some(("i", 3)))]);
        let Some(Ok(report)) = answers.get_mut("a") else { panic!("{answers:?}") };
        let state = report.releases["ns/r"].clone();
        for (i, counts) in [r#"{"r": {"requests": "many"}}"#, "null", "[]"].iter().enumerate() {
            let counts = serde_json::from_str(counts).unwrap();
            report.releases.insert(format!("ns/{i}"), ReleaseReport { counts, ..state.clone() });
        }
        let pulled = Pulled::hear(None, 1, answers, Instant::now()).0;
        for i in 0..3 {
            let [gateway] = &*pulled.of(&format!("ns/{i}")).read().gateways else { panic!("{i}") };
            assert_eq!((&gateway.instance, gateway.applied), (&None, None));
            let why = gateway.silent.as_ref().unwrap();
            assert!(why.starts_with("a: its counts can not be read: "), "{why}");
        }
        assert_eq!(pulled.of("ns/r").read().gateways[0].applied, Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_process_has_counted_outlives_it_until_all_have_looked() {
        let counted = |instance: &str| {
            let mut answers = answers(&[("a", Some((instance, 3)))]);
            if let Some(Ok(report)) = answers.get_mut("a") {
                let state = report.releases.get_mut("ns/r").unwrap();
                state.counts = serde_json::from_str(r#"{"canary": {}}"#).unwrap();
            }
            answers
        };
        let hear = |before, answers| Pulled::hear(Some(before), 1, answers, Instant::now()).0;
        for ends in [answers(&[("a", None)]), answers(&[("a", Some(("j", 3)))]), answers(&[])] {
            let pulled = hear(pulled(&[]), counted("i"));
            assert!(pulled.of("ns/r").read().departed.is_empty(), "it is there");
            let pulled = hear(hear(pulled, ends.clone()), ends.clone());
            let [departed] = &*pulled.of("ns/r").read().departed else { panic!("{pulled:?}") };
            assert_eq!((departed.instance.as_deref(), departed.applied), (Some("i"), Some(3)));
            assert_eq!(departed.counts.len(), 1);
            assert!(pulled.of("ns/other").read().departed.is_empty());
            // It was silent only, and is known once.
            let pulled = hear(pulled, counted("i"));
            assert!(pulled.of("ns/r").read().departed.is_empty());
            let pulled = hear(pulled, ends.clone());
            assert_eq!(pulled.of("ns/r").read().departed.len(), 1);
            tokio::time::advance(REMEMBERED).await;
            assert!(hear(pulled, ends).of("ns/r").read().departed.is_empty());
        }
        // Of many processes the last ones.
        let mut pulled = pulled(&[]);
        for process in 0..300 {
            pulled = hear(pulled, counted(&format!("i{process}")));
        }
        assert_eq!(pulled.departed.len(), PROCESSES);
        assert_eq!(&*pulled.departed[PROCESSES - 1].1.instance, "i298");
    }
}
