//! Pulls every gateway's report: once per interval for all releases together, so the
//! cost grows with gateways and not with releases. Being asked is also the gateways'
//! sign that a judge is alive.
//!
//! An answer that does not prove to be a gateway's is none ([`super::proof`]): who stands
//! where a gateway should be is silent, whatever it says.

mod ask;
mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::{ask::Silence, keys::Read};
use self::{
    ask::{PATIENCE, Question},
    keys::Keys,
};
use super::report::GatewayReport;
use crate::rollout;

/// Why a gateway is silent is told at a change, and not more often than this.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// What one pull brought.
#[derive(Debug, Default)]
pub struct Pulled {
    /// The leader's term in which it was pulled.
    pub term: i64,
    /// By address, also why there is none.
    pub reports: BTreeMap<String, Result<GatewayReport, Silence>>,
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
    last: Mutex<Option<Arc<Pulled>>>,
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
    pub async fn pull(&self, term: i64, addresses: &BTreeSet<String>) -> Changes {
        let mut reports = self.ask(term, addresses).await;
        let doubtful = |(address, report): (&String, &Result<_, Silence>)| {
            report.as_ref().is_err_and(Silence::is_about_keys).then(|| address.clone())
        };
        let doubtful: BTreeSet<String> = reports.iter().filter_map(doubtful).collect();
        if !doubtful.is_empty() && self.keys.refresh().await {
            reports.extend(self.ask(term, &doubtful).await);
        }
        self.tell(&reports);
        let pulled = Arc::new(Pulled { term, reports });
        let before = self
            .last
            .lock()
            .map_or(None, |mut last| last.replace(pulled.clone()))
            .filter(|last| last.term == term);
        changes(before.as_deref(), &pulled)
    }

    /// The last pull, if it was in this term.
    pub fn last(&self, term: i64) -> Option<Arc<Pulled>> {
        self.last.lock().ok()?.clone().filter(|last| last.term == term)
    }

    async fn ask(
        &self,
        term: i64,
        addresses: &BTreeSet<String>,
    ) -> BTreeMap<String, Result<GatewayReport, Silence>> {
        let now = (self.clock)();
        let key = self.keys.signing(now);
        let (client, key) = (&self.client, key.as_ref());
        let asked = addresses.iter().map(|address| async move {
            (address.clone(), Question { client, address, term, now }.ask(key).await)
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Logs which gateways have become silent and why, and which have not any more.
    fn tell(&self, reports: &BTreeMap<String, Result<GatewayReport, Silence>>) {
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

impl Pulled {
    /// Every gateway as one release's rollout sees it.
    pub fn of(&self, release: &str) -> Vec<rollout::Gateway> {
        self.reports
            .iter()
            .map(|(address, report)| {
                let report = match report {
                    Ok(report) => report,
                    Err(why) => {
                        let silent = Some(format!("{address}: {why}"));
                        return rollout::Gateway { silent, ..rollout::Gateway::default() };
                    }
                };
                let seen = report.releases.get(release);
                rollout::Gateway {
                    instance: Some(report.instance.clone()),
                    silent: None,
                    applied: seen.map(|s| s.applied),
                    control_loss: seen.is_some_and(|s| s.control_loss),
                    unbuilt: seen.map(|s| s.unbuilt.clone()).unwrap_or_default(),
                    counts: seen.map(|s| s.counts.clone()).unwrap_or_default(),
                }
            })
            .collect()
    }

    /// How many gateways there are, how many of them are silent, and at how many of these
    /// addresses somebody answers who has not shown to be a gateway.
    pub fn size(&self) -> [usize; 3] {
        let silent = || self.reports.values().filter_map(|report| report.as_ref().err());
        let unproven = silent().filter(|why| why.is_unproven()).count();
        [self.reports.len(), silent().count(), unproven]
    }
}

fn changes(before: Option<&Pulled>, now: &Pulled) -> Changes {
    let Some(before) = before else { return Changes { fleet: true, ..Changes::default() } };
    let instance = |r: &Result<GatewayReport, Silence>| r.as_ref().map(|r| r.instance.clone()).ok();
    let mut changes = Changes {
        fleet: before.reports.len() != now.reports.len()
            || now.reports.iter().any(|(address, report)| {
                before.reports.get(address).is_none_or(|old| instance(old) != instance(report))
            }),
        ..Changes::default()
    };
    for (address, report) in &now.reports {
        let (Ok(report), Some(Ok(old))) = (report, before.reports.get(address)) else {
            continue;
        };
        for (release, state) in &report.releases {
            let same = old.releases.get(release).is_some_and(|o| {
                (o.applied, o.control_loss, o.breaker_open, &o.unbuilt)
                    == (state.applied, state.control_loss, state.breaker_open, &state.unbuilt)
            });
            if !same {
                changes.releases.insert(release.clone());
            }
        }
        let gone = old.releases.keys().filter(|r| !report.releases.contains_key(*r));
        changes.releases.extend(gone.cloned());
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::report::ReleaseReport;

    fn pulled(gateways: &[(&str, Option<(&str, i64)>)]) -> Pulled {
        let report = |(instance, applied): (&str, i64)| GatewayReport {
            instance: instance.into(),
            releases: [("ns/r".to_owned(), ReleaseReport { applied, ..Default::default() })].into(),
            ..Default::default()
        };
        Pulled {
            term: 1,
            reports: gateways
                .iter()
                .map(|(a, g)| ((*a).to_owned(), g.map(report).ok_or(Silence::NoKey)))
                .collect(),
        }
    }

    #[test]
    fn counts_alone_are_no_change() {
        let now = pulled(&[("a", Some(("i", 3)))]);
        assert_eq!(changes(Some(&pulled(&[("a", Some(("i", 3)))])), &now), Changes::default());
    }

    #[test]
    fn a_release_that_applies_another_generation_has_changed() {
        let now = pulled(&[("a", Some(("i", 4)))]);
        let changes = changes(Some(&pulled(&[("a", Some(("i", 3)))])), &now);
        assert_eq!(changes.releases, ["ns/r".to_owned()].into());
        assert!(!changes.fleet);
    }

    #[test]
    fn silence_a_restart_and_a_new_gateway_change_the_fleet() {
        let before = pulled(&[("a", Some(("i", 3)))]);
        for now in [
            pulled(&[("a", None)]),
            pulled(&[("a", Some(("j", 3)))]),
            pulled(&[("a", Some(("i", 3))), ("b", None)]),
            pulled(&[]),
        ] {
            assert!(changes(Some(&before), &now).fleet, "{now:?}");
        }
    }

    #[test]
    fn a_silent_gateway_counts_as_one_that_does_not_follow() {
        let seen = pulled(&[("a", Some(("i", 3))), ("b", None)]).of("ns/r");
        assert_eq!(seen[0].applied, Some(3));
        let silent = Some("b: this operator has no key to ask it with".to_owned());
        assert_eq!(seen[1], rollout::Gateway { silent, ..rollout::Gateway::default() });
    }
}
