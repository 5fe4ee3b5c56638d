//! What leaders were told, so that the next report tells only what has changed since.
//!
//! Nothing is kept of who asked: a question names the mark that it knows, and an answer that
//! was lost is told again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
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
    releases: HashMap<String, Known>,
    /// How many reports were made.
    round: u64,
    /// What is served no more, in the order in which it went.
    gone: VecDeque<(u64, String)>,
    /// What changed up to this mark can not be told apart any more.
    forgotten: u64,
}

/// What the last report said of a release.
#[derive(Debug)]
struct Known {
    state: ReleaseReport,
    /// The mark of the first report that said so.
    at: u64,
    /// The number of the last report that named the release.
    round: u64,
}

impl Told {
    /// The report of a process, or what has changed in it since the mark that the question
    /// names. `states` hands over the state of each release. One report is made at a time, so
    /// that a higher mark was counted later.
    pub(super) fn tell(
        &self,
        instance: &str,
        since: Option<&Mark>,
        states: impl FnOnce(&mut dyn FnMut(&str, ReleaseReport)),
    ) -> GatewayReport {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.note(states);
        let since = since.filter(|since| since.instance == instance).map(|since| since.at);
        let since = since.filter(|at| (inner.forgotten.max(1)..=inner.mark).contains(at));
        let (mark, instance) = (inner.mark, instance.to_owned());
        let mut report = GatewayReport { instance, mark, since, ..GatewayReport::default() };
        let is_new = |known: &Known| since.is_none_or(|since| known.at > since);
        let new = inner.releases.iter().filter(|(_, known)| is_new(known));
        report.releases = new.map(|(name, known)| (name.clone(), known.state.clone())).collect();
        if let Some(since) = since {
            let left = inner.gone.iter().rev().take_while(|(at, _)| *at > since);
            let left = left.filter(|(_, release)| !inner.releases.contains_key(release));
            report.gone = left.map(|(_, release)| release.clone()).collect();
        }
        report
    }
}

impl Inner {
    /// Takes time in proportion to what there is, and memory to what has changed.
    fn note(&mut self, states: impl FnOnce(&mut dyn FnMut(&str, ReleaseReport))) {
        let Self { mark, releases, round, gone, forgotten } = self;
        let (next, mut seen) = (*mark + 1, 0);
        *round += 1;
        states(&mut |release, mut state| {
            seen += 1;
            match releases.get_mut(release) {
                Some(known) => {
                    known.round = *round;
                    if says_the_same(&mut state, &known.state) {
                        return;
                    }
                    (known.state, known.at) = (state, next);
                }
                None => {
                    let known = Known { state, at: next, round: *round };
                    releases.insert(release.to_owned(), known);
                }
            }
            *mark = next;
        });
        // All that were seen are known: as many are no others.
        if releases.len() != seen {
            let left = releases.extract_if(|_, known| known.round != *round);
            gone.extend(left.map(|(release, _)| (next, release)));
            *mark = next;
        }
        // Also that there is nothing is something to have been told.
        *mark = (*mark).max(1);
        while gone.len() > GONE {
            *forgotten = gone.pop_front().map_or(*forgotten, |(at, _)| at);
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
        let before = known.counts.get(revision).map_or(read_at, |known| known.read_at);
        Arc::make_mut(counts).read_at = before;
    }
    let same = state == known;
    if !same {
        state.counts.values_mut().for_each(|counts| Arc::make_mut(counts).read_at = read_at);
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::prompt_release::Counts;

    fn report(told: &Told, since: Option<Mark>, releases: &[(&str, i64)]) -> GatewayReport {
        told.tell("i", since.as_ref(), |each| {
            for (release, applied) in releases {
                each(release, ReleaseReport { applied: *applied, ..Default::default() });
            }
        })
    }

    fn mark(at: u64) -> Mark {
        Mark { instance: "i".into(), at }
    }

    #[test]
    fn only_what_has_changed_is_told_to_who_says_what_it_knows() {
        let told = Told::default();
        let tell = |since: Option<Mark>, releases: &[(&str, i64)]| {
            let report = report(&told, since, releases);
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
            let counts =
                counts.map(|(revision, counts)| (revision.to_owned(), counts.into())).into();
            let report = told.tell("i", None, |each| {
                each("r", ReleaseReport { counts, ..Default::default() });
            });
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
        assert_eq!(report(&told, None, &first).mark, 1);
        let some = report(&told, Some(mark(1)), &first[..GONE]);
        assert_eq!((some.gone.len(), some.since), (5, Some(1)));
        let last = report(&told, Some(mark(2)), &[("x", 1)]);
        assert_eq!((last.gone.len(), last.since, last.mark), (GONE, Some(2), 3));
        // The five that went first are not remembered any more.
        let all = report(&told, Some(mark(1)), &[("x", 1)]);
        assert_eq!((all.gone.len(), all.releases.len(), all.since), (0, 1, None));
    }
}
