//! Pulls every gateway's report: once per interval for all releases together, so the
//! cost grows with gateways and not with releases. Being asked is also the gateways'
//! sign that a judge is alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;

use super::report::{GatewayReport, LEADER_HEADER};
use crate::{api::SecretText, rollout};

/// A report that takes longer is no report.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one pull brought.
#[derive(Debug, Default)]
pub struct Pulled {
    /// The leader's term in which it was pulled.
    pub term: i64,
    /// By address, also of those that did not answer.
    pub reports: BTreeMap<String, Option<GatewayReport>>,
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
    /// A file with the token that is shown to gateways; read for every pull, as it may
    /// change at any time.
    token_file: Option<PathBuf>,
    last: Mutex<Option<Arc<Pulled>>>,
}

impl Gateways {
    /// Nothing was pulled yet.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn new(token_file: Option<PathBuf>) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, token_file, last: Mutex::new(None) })
    }

    /// The token of the file: its first line.
    async fn token(&self) -> Option<SecretText> {
        let path = self.token_file.as_ref()?;
        match tokio::fs::read_to_string(path).await {
            Ok(text) => text.lines().next().map(|line| SecretText::new(line.trim())),
            Err(error) => {
                let path = path.display();
                tracing::warn!("gateways are asked without a token: {path}: {error}");
                None
            }
        }
    }

    /// Asks every gateway (`host:port` of its admin address) and keeps the answers.
    pub async fn pull(&self, term: i64, addresses: &BTreeSet<String>) -> Changes {
        let token = self.token().await;
        let token = token.as_ref();
        let asked = addresses.iter().map(|address| async move {
            let report = self.ask(address, term, token).await;
            match &report {
                Err(error) if error.status() == Some(reqwest::StatusCode::UNAUTHORIZED) => {
                    tracing::warn!(
                        address,
                        "the gateway does not know this operator: --gateway-token-file must name \
                         a token of the service account that the gateway expects, or of its \
                         --admin-token-file"
                    );
                }
                Err(error) => tracing::debug!(address, "no report: {error}"),
                Ok(_) => {}
            }
            (address.clone(), report.ok().filter(GatewayReport::is_known))
        });
        let reports = join_all(asked).await.into_iter().collect();
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
        address: &str,
        term: i64,
        token: Option<&SecretText>,
    ) -> Result<GatewayReport, reqwest::Error> {
        let request = self.client.get(format!("http://{address}/serinus/v1/report"));
        let request = match token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        request.header(LEADER_HEADER, term).send().await?.error_for_status()?.json().await
    }
}

impl Pulled {
    /// Every gateway as one release's rollout sees it.
    pub fn of(&self, release: &str) -> Vec<rollout::Gateway> {
        self.reports
            .values()
            .map(|report| {
                let Some(report) = report else { return rollout::Gateway::default() };
                let seen = report.releases.get(release);
                rollout::Gateway {
                    instance: Some(report.instance.clone()),
                    applied: seen.map(|s| s.applied),
                    control_loss: seen.is_some_and(|s| s.control_loss),
                    unbuilt: seen.map(|s| s.unbuilt.clone()).unwrap_or_default(),
                    counts: seen.map(|s| s.counts.clone()).unwrap_or_default(),
                }
            })
            .collect()
    }

    /// How many gateways there are, and how many of them are silent.
    pub fn size(&self) -> (usize, usize) {
        let silent = self.reports.values().filter(|r| r.is_none()).count();
        (self.reports.len(), silent)
    }
}

fn changes(before: Option<&Pulled>, now: &Pulled) -> Changes {
    let Some(before) = before else { return Changes { fleet: true, ..Changes::default() } };
    let instance = |r: &Option<GatewayReport>| r.as_ref().map(|r| r.instance.clone());
    let mut changes = Changes {
        fleet: before.reports.len() != now.reports.len()
            || now.reports.iter().any(|(address, report)| {
                before.reports.get(address).is_none_or(|old| instance(old) != instance(report))
            }),
        ..Changes::default()
    };
    for (address, report) in &now.reports {
        let (Some(report), Some(Some(old))) = (report, before.reports.get(address)) else {
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
            reports: gateways.iter().map(|(a, g)| ((*a).to_owned(), g.map(report))).collect(),
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
        assert_eq!(seen[1], rollout::Gateway::default());
    }
}
