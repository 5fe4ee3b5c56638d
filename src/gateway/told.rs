//! What leaders were told, so that the next report tells only what has changed since.
//!
//! Nothing is kept of who asked: a question names the mark that it knows, and an answer that
//! was lost is told again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::signals::report::{GatewayReport, Mark, ReleaseReport};

/// So many releases that are served no more are remembered; who asks for what changed before
/// that is told everything.
const GONE: usize = 1_000;

/// The last report, and when each part of it changed.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    mark: u64,
    /// By release: the mark at which it became so.
    releases: BTreeMap<String, (u64, ReleaseReport)>,
    /// What is served no more, in the order in which it went.
    gone: VecDeque<(u64, String)>,
    /// What changed up to this mark can not be told apart any more.
    forgotten: u64,
}

impl Told {
    /// The report, or what has changed in it since the mark that the question names. No other
    /// report is made meanwhile: marks are in the order in which it was counted.
    pub(super) fn tell(
        &self,
        since: Option<&Mark>,
        report: impl FnOnce() -> GatewayReport,
    ) -> GatewayReport {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = report();
        inner.note(&mut report.releases);
        report.mark = inner.mark;
        let known = since.filter(|since| since.instance == report.instance);
        let known = known.map(|since| since.at);
        if let Some(since) = known.filter(|at| (inner.forgotten.max(1)..=inner.mark).contains(at)) {
            let is_new = |release: &str| inner.releases.get(release).is_some_and(|r| r.0 > since);
            report.releases.retain(|release, _| is_new(release));
            let left = inner.gone.iter().rev().take_while(|(at, _)| *at > since);
            let left = left.filter(|(_, release)| !inner.releases.contains_key(release));
            report.gone = left.map(|(_, release)| release.clone()).collect();
            report.since = Some(since);
        }
        report
    }
}

impl Inner {
    fn note(&mut self, releases: &mut BTreeMap<String, ReleaseReport>) {
        let next = self.mark + 1;
        for (release, state) in &mut *releases {
            match self.releases.get_mut(release) {
                Some((_, known)) if says_the_same(state, known) => continue,
                Some(known) => *known = (next, state.clone()),
                None => drop(self.releases.insert(release.clone(), (next, state.clone()))),
            }
            self.mark = next;
        }
        // All of `releases` are known: as many are no others.
        if self.releases.len() != releases.len() {
            let left = self.releases.extract_if(.., |release, _| !releases.contains_key(release));
            self.gone.extend(left.map(|(release, _)| (next, release)));
            self.mark = next;
        }
        // Also that there is nothing is something to have been told.
        self.mark = self.mark.max(1);
        while self.gone.len() > GONE {
            self.forgotten = self.gone.pop_front().map_or(self.forgotten, |(at, _)| at);
        }
    }
}

/// Whether a state is the one that is known. That the same was read later is nothing to tell:
/// it then says when it was read first.
fn says_the_same(state: &mut ReleaseReport, known: &ReleaseReport) -> bool {
    let mut read_at = 0;
    for (revision, counts) in &mut state.counts {
        // All of a report are read at once.
        read_at = counts.read_at;
        counts.read_at = known.counts.get(revision).map_or(read_at, |known| known.read_at);
    }
    let same = state == known;
    if !same {
        state.counts.values_mut().for_each(|counts| counts.read_at = read_at);
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::prompt_release::Counts;

    fn full(releases: &[(&str, i64)]) -> GatewayReport {
        let one = |(release, applied): &(&str, i64)| {
            ((*release).to_owned(), ReleaseReport { applied: *applied, ..Default::default() })
        };
        let releases = releases.iter().map(one).collect();
        GatewayReport { instance: "i".into(), releases, ..GatewayReport::default() }
    }

    fn mark(at: u64) -> Mark {
        Mark { instance: "i".into(), at }
    }

    #[test]
    fn only_what_has_changed_is_told_to_who_says_what_it_knows() {
        let told = Told::default();
        let tell = |since: Option<Mark>, releases: &[(&str, i64)]| {
            let report = told.tell(since.as_ref(), || full(releases));
            let names: Vec<String> = report.releases.into_keys().collect();
            (names.join(" "), report.gone.join(" "), report.since, report.mark)
        };
        let all = |names: &str, mark| (names.to_owned(), String::new(), None, mark);
        let some = |names: &str, gone: &str, since, mark| {
            (names.to_owned(), gone.to_owned(), Some(since), mark)
        };
        assert_eq!(tell(None, &[]), all("", 1));
        assert_eq!(tell(Some(mark(1)), &[("a", 1), ("b", 1)]), some("a b", "", 1, 2));
        assert_eq!(tell(Some(mark(2)), &[("a", 1), ("b", 1)]), some("", "", 2, 2));
        assert_eq!(tell(Some(mark(2)), &[("a", 2), ("c", 1)]), some("a c", "b", 2, 3));
        // An answer that was lost is told again, also to another who knows less.
        assert_eq!(tell(Some(mark(2)), &[("a", 2), ("c", 1)]), some("a c", "b", 2, 3));
        assert_eq!(tell(Some(mark(1)), &[("a", 2), ("c", 1)]), some("a c", "b", 1, 3));
        // It is served again.
        let again = [("a", 2), ("b", 1), ("c", 1)];
        assert_eq!(tell(Some(mark(3)), &again), some("b", "", 3, 4));
        assert_eq!(tell(Some(mark(2)), &again), some("a b c", "", 2, 4));
        // Who knows nothing, another process, or what never was, is told everything.
        let other = Mark { instance: "j".into(), at: 4 };
        for since in [None, Some(other), Some(mark(0)), Some(mark(5))] {
            assert_eq!(tell(since, &again), all("a b c", 4));
        }
    }

    #[test]
    fn that_the_same_was_read_later_is_not_told() {
        let told = Told::default();
        let tell = |read_at, requests| {
            let counts = |requests| Counts { read_at, requests, ..Counts::default() };
            let counts = [("a", counts(1)), ("b", counts(requests))];
            let counts = counts.map(|(revision, counts)| (revision.to_owned(), counts)).into();
            let mut report = full(&[("r", 1)]);
            report.releases.insert("r".into(), ReleaseReport { counts, ..Default::default() });
            let report = told.tell(None, || report);
            let read = report.releases["r"].counts.values().map(|counts| counts.read_at);
            (report.mark, read.collect::<Vec<_>>())
        };
        assert_eq!(tell(10, 1), (1, vec![10, 10]));
        assert_eq!(tell(20, 1), (1, vec![10, 10]));
        assert_eq!(tell(30, 2), (2, vec![30, 30]));
        assert_eq!(tell(40, 2), (2, vec![30, 30]));
    }

    #[test]
    fn what_is_gone_for_long_is_told_by_telling_everything() {
        let told = Told::default();
        let names: Vec<String> = (0..GONE + 5).map(|i| format!("r{i:05}")).collect();
        let first: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        assert_eq!(told.tell(None, || full(&first)).mark, 1);
        let some = told.tell(Some(&mark(1)), || full(&first[..GONE]));
        assert_eq!((some.gone.len(), some.since), (5, Some(1)));
        let last = told.tell(Some(&mark(2)), || full(&[("x", 1)]));
        assert_eq!((last.gone.len(), last.since, last.mark), (GONE, Some(2), 3));
        // The five that went first are not remembered any more.
        let all = told.tell(Some(&mark(1)), || full(&[("x", 1)]));
        assert_eq!((all.gone.len(), all.releases.len(), all.since), (0, 1, None));
    }
}
