//! What is known of one gateway process, from the reports so far.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::ask::Silence;
use crate::{
    rollout,
    signals::report::{GatewayReport, Mark, ReleaseReport, Unread},
};

/// One gateway process, as its last report left it. What did not change since the report
/// before is shared with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The process's id.
    pub instance: Arc<str>,
    /// Where its last report stood; none when it tells everything each time.
    pub mark: Option<Mark>,
    /// By `namespace/name`.
    pub releases: BTreeMap<Arc<str>, Arc<ReleaseReport<Unread>>>,
}

/// What one process has told of a release, if it knows it.
#[derive(Clone, Debug)]
pub struct ToldBy {
    instance: Arc<str>,
    state: Option<Arc<ReleaseReport<Unread>>>,
}

/// What a report has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// It is another process than before, or the first.
    pub process: bool,
    /// Releases of which it tells something else than counts.
    pub releases: BTreeSet<String>,
}

impl Known {
    /// Takes a report in, on top of what was `before` at that address.
    ///
    /// # Errors
    /// The report tells changes of something else than `before`.
    pub(super) fn hear(
        before: Option<Self>,
        report: GatewayReport<Unread>,
    ) -> Result<(Self, News), Silence> {
        let mut before = before.unwrap_or_default();
        let process = *before.instance != *report.instance;
        let mut news = News { process, ..News::default() };
        let mark =
            (report.mark > 0).then(|| Mark { instance: report.instance.clone(), at: report.mark });
        let Some(since) = report.since else {
            let instance = report.instance.into();
            let releases = report.releases.into_iter();
            let releases = releases.map(|(k, v)| (k.into(), Arc::new(v))).collect();
            let now = Self { instance, mark, releases };
            for (release, state) in &now.releases {
                news.note(release, before.releases.get(release).map(|r| &**r), state);
            }
            let gone = before.releases.keys().filter(|r| !now.releases.contains_key(*r));
            news.releases.extend(gone.map(|release| release.to_string()));
            return Ok((now, news));
        };
        if process || !before.stood_at(since) {
            let why = format!("it tells what has changed since {since}, which was not asked");
            return Err(Silence::Unreadable(why));
        }
        for release in report.gone {
            before.releases.remove(release.as_str());
            news.releases.insert(release);
        }
        for (release, state) in report.releases {
            news.note(&release, before.releases.get(release.as_str()).map(|r| &**r), &state);
            before.releases.insert(release.into(), Arc::new(state));
        }
        before.mark = mark;
        Ok((before, news))
    }

    /// Whether a report is one of this process that [`Known::hear`] takes in.
    pub(super) fn goes_on_with(&self, report: &GatewayReport<Unread>) -> bool {
        *self.instance == *report.instance && report.since.is_none_or(|since| self.stood_at(since))
    }

    fn stood_at(&self, mark: u64) -> bool {
        self.mark.as_ref().is_some_and(|known| known.at == mark)
    }

    /// Without what is not evidence: what is kept of a process that is gone.
    pub(super) fn counted(&self) -> Self {
        let counted = self.releases.iter().filter(|(_, state)| !state.counts.is_empty());
        let releases = counted.map(|(release, state)| (release.clone(), state.clone())).collect();
        Self { instance: self.instance.clone(), mark: None, releases }
    }

    /// Whether it knows a release.
    pub(super) fn has(&self, release: &str) -> bool {
        self.releases.contains_key(release)
    }

    /// What it has told of a release.
    pub(super) fn of(&self, release: &str) -> ToldBy {
        ToldBy { instance: self.instance.clone(), state: self.releases.get(release).cloned() }
    }
}

impl ToldBy {
    /// As the rollout of the release sees it.
    ///
    /// # Errors
    /// Why its counts can not be read.
    pub(super) fn read(&self) -> Result<rollout::Gateway, String> {
        let state = self.state.as_ref().map(|state| state.read()).transpose();
        let state = state.map_err(|error| format!("its counts can not be read: {error}"))?;
        Ok(ReleaseReport::as_gateway(&self.instance, state.as_ref()))
    }
}

impl News {
    fn note<C>(
        &mut self,
        release: &str,
        before: Option<&ReleaseReport<C>>,
        now: &ReleaseReport<C>,
    ) {
        let same = before.is_some_and(|old| {
            (old.applied, old.control_loss, &old.failing, &old.unbuilt)
                == (now.applied, now.control_loss, &now.failing, &now.unbuilt)
        });
        if !same {
            self.releases.insert(release.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(
        instance: &str,
        since: Option<u64>,
        mark: u64,
        releases: &[(&str, i64)],
    ) -> GatewayReport<Unread> {
        let one = |(release, applied): &(&str, i64)| {
            ((*release).to_owned(), ReleaseReport { applied: *applied, ..Default::default() })
        };
        GatewayReport {
            instance: instance.into(),
            mark,
            since,
            releases: releases.iter().map(one).collect(),
            ..GatewayReport::default()
        }
    }

    fn applied(known: &Known) -> Vec<(&str, i64)> {
        known.releases.iter().map(|(release, state)| (&**release, state.applied)).collect()
    }

    #[test]
    fn changes_go_on_top_of_what_is_known() {
        let all = report("i", None, 3, &[("ns/a", 1), ("ns/b", 1), ("ns/c", 1)]);
        let (known, news) = Known::hear(None, all).unwrap();
        assert!(news.process);
        let mut some = report("i", Some(3), 5, &[("ns/b", 2), ("ns/d", 1)]);
        some.gone = vec!["ns/a".into()];
        let (known, news) = Known::hear(Some(known), some).unwrap();
        assert_eq!(applied(&known), [("ns/b", 2), ("ns/c", 1), ("ns/d", 1)]);
        let changed = ["ns/a", "ns/b", "ns/d"].map(str::to_owned);
        assert_eq!(news, News { process: false, releases: changed.into() });
        // Nothing new; then all again, which is nothing new either.
        let (known, news) = Known::hear(Some(known), report("i", Some(5), 5, &[])).unwrap();
        assert_eq!((known.releases.len(), news), (3, News::default()));
        let all = report("i", None, 5, &[("ns/b", 2), ("ns/c", 1)]);
        let (known, news) = Known::hear(Some(known), all).unwrap();
        assert_eq!(applied(&known), [("ns/b", 2), ("ns/c", 1)]);
        assert_eq!(news.releases, ["ns/d".to_owned()].into());
    }

    #[test]
    fn counts_alone_are_no_news_and_are_taken_in() {
        let all = report("i", None, 3, &[("ns/a", 1)]);
        let (known, _) = Known::hear(None, all).unwrap();
        let mut counted = report("i", Some(3), 4, &[("ns/a", 1)]);
        let counts = serde_json::from_str(r#"{"r": {"requests": 7}}"#).unwrap();
        counted.releases.get_mut("ns/a").unwrap().counts = counts;
        let (known, news) = Known::hear(Some(known), counted).unwrap();
        let seen = known.of("ns/a").read().unwrap();
        assert_eq!((seen.counts["r"].requests, news), (7, News::default()));
        assert_eq!(known.counted().releases, known.releases);
        assert!(known.of("ns/b").read().unwrap().counts.is_empty());
    }

    #[test]
    fn changes_of_something_else_are_not_taken_in() {
        let known = Known::hear(None, report("i", None, 3, &[("ns/a", 1)])).unwrap().0;
        let unmarked = Known::hear(None, report("i", None, 0, &[("ns/a", 1)])).unwrap().0;
        for (before, instance) in [
            (Some(known.clone()), "j"),
            (Some(Known { mark: Some(Mark { instance: "i".into(), at: 2 }), ..known }), "i"),
            (Some(unmarked), "i"),
            (None, "i"),
        ] {
            let heard = Known::hear(before.clone(), report(instance, Some(3), 4, &[]));
            assert!(matches!(heard, Err(Silence::Unreadable(_))), "{before:?}");
        }
    }
}
