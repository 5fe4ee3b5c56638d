//! Counts that only grow, per gateway process. The merge takes the larger side, so
//! that seeing the same counts twice, or after a restart, never counts a request
//! twice (a grow-only counter: Shapiro et al., Conflict-free Replicated Data Types, 2011).

use std::{collections::BTreeMap, ops::AddAssign, sync::Arc};

use super::callers;
use crate::api::prompt_release::{
    ByInput, Counts, Groups, InstanceEvidence, Paired, Sums, TurnedAway, Waits,
};

/// How many gateway processes are remembered for one step. What more processes count is
/// left out, and told: to forget an old one could count it twice when it reports again.
const INSTANCES: usize = 128;

/// Merges what one process reports now into what is known; false when there is no room
/// for another process, and its counts are left out.
pub fn merge(
    known: &mut Vec<InstanceEvidence>,
    instance: &str,
    stable: &Arc<Counts>,
    canary: &Arc<Counts>,
) -> bool {
    let full = known.len() >= INSTANCES;
    match known.iter_mut().find(|e| e.instance == instance) {
        Some(entry) => {
            keep_later(&mut entry.stable, stable);
            keep_later(&mut entry.canary, canary);
        }
        None if full => return false,
        None => {
            known.push(InstanceEvidence {
                instance: instance.to_owned(),
                stable: stable.clone(),
                canary: canary.clone(),
            });
        }
    }
    true
}

/// When the counts that are known of a process were read, on either side.
pub fn read_at(known: &[InstanceEvidence], instance: &str) -> Option<[u64; 2]> {
    let entry = known.iter().find(|entry| entry.instance == instance)?;
    Some([entry.stable.read_at, entry.canary.read_at])
}

/// Counts of one process grow together: the later ones count. Gateways of an earlier
/// version do not say when they were read: there, the one with more observations is later.
fn keep_later(old: &mut Arc<Counts>, new: &Arc<Counts>) {
    let (known, now) = (observations(old), observations(new));
    // What says nothing new is not written again.
    let is_news = || now != known || **new != Counts { read_at: new.read_at, ..(**old).clone() };
    if now >= known && new.read_at >= old.read_at && is_news() {
        *old = new.clone();
    }
}

/// How much was observed; none of the parts ever shrinks.
fn observations(counts: &Counts) -> [u64; 6] {
    let scores = |scores: &BTreeMap<String, Sums>| scores.values().map(|s| s.count).sum::<u64>();
    // A copy that is dropped, and a score whose pair comes late, show only here.
    let (dropped, pairs) =
        counts.paired.as_ref().map_or((0, 0), |p| (p.dropped, scores(&p.scores)));
    let ended = counts.ended().saturating_add(counts.excluded);
    [counts.assigned, ended, counts.turned_away.requests, scores(&counts.scores), dropped, pairs]
}

/// Forgets which requests were open in processes that did not report: nobody knows what
/// became of them.
pub fn forget_open(known: &mut [InstanceEvidence], reporting: impl Fn(&str) -> bool) {
    for entry in known.iter_mut().filter(|e| !reporting(&e.instance)) {
        for side in [&mut entry.stable, &mut entry.canary] {
            let is_open = |open: &Waits| !open.is_empty();
            if !is_open(&side.open) && !side.callers.values().any(|caller| is_open(&caller.open)) {
                continue;
            }
            let side = Arc::make_mut(side);
            side.open = Waits::default();
            for caller in side.callers.values_mut() {
                caller.open = Waits::default();
            }
        }
    }
}

/// The sum over all processes: stable, canary.
pub fn totals(evidence: &[InstanceEvidence]) -> (Arc<Counts>, Arc<Counts>) {
    let Some((first, others)) = evidence.split_first() else { return Default::default() };
    let (mut stable, mut canary) = (first.stable.clone(), first.canary.clone());
    for entry in others {
        add(Arc::make_mut(&mut stable), &entry.stable);
        add(Arc::make_mut(&mut canary), &entry.canary);
    }
    (stable, canary)
}

pub(super) fn add(total: &mut Counts, part: &Counts) {
    total.assigned += part.assigned;
    total.requests += part.requests;
    total.errors += part.errors;
    total.refused += part.refused;
    total.unfinished += part.unfinished;
    total.unjudged += part.unjudged;
    total.excluded += part.excluded;
    add_turned_away(&mut total.turned_away, &part.turned_away);
    for (sum, part) in [
        (&mut total.failures, &part.failures),
        (&mut total.refusals, &part.refusals),
        (&mut total.flaws, &part.flaws),
    ] {
        for (word, count) in part {
            *sum.entry(word.clone()).or_default() += count;
        }
    }
    total.checked += part.checked;
    total.check_failures += part.check_failures;
    add_histogram(&mut total.ttft, &part.ttft);
    add_histogram(&mut total.duration, &part.duration);
    for (sum, part) in [(&mut total.waited, &part.waited), (&mut total.open, &part.open)] {
        add_histogram(&mut sum.ttft, &part.ttft);
        add_histogram(&mut sum.duration, &part.duration);
    }
    add_sums(&mut total.cost, &part.cost);
    add_by_input(&mut total.cost_by_input, part.cost_by_input);
    for (name, sums) in &part.scores {
        add_sums(total.scores.entry(name.clone()).or_default(), sums);
    }
    add_groups(&mut total.groups, &part.groups);
    callers::add(&mut total.callers, &part.callers);
    if let Some(paired) = &part.paired {
        add_paired(total.paired.get_or_insert_default(), paired);
    }
}

fn add_groups(total: &mut Groups, part: &Groups) {
    add_lists(&mut total.requests, &part.requests);
    add_lists(&mut total.errors, &part.errors);
    add_lists(&mut total.refused, &part.refused);
    add_lists(&mut total.unfinished, &part.unfinished);
    add_lists(&mut total.checked, &part.checked);
    add_lists(&mut total.check_failures, &part.check_failures);
    add_lists(&mut total.costs, &part.costs);
    add_lists(&mut total.cost, &part.cost);
    add_lists(&mut total.input, &part.input);
    for (name, score) in &part.scores {
        let sum = total.scores.entry(name.clone()).or_default();
        add_lists(&mut sum.counts, &score.counts);
        add_lists(&mut sum.sums, &score.sums);
    }
    for (sum, part) in [(&mut total.ttft, &part.ttft), (&mut total.duration, &part.duration)] {
        for (bucket, list) in part {
            add_lists(sum.entry(*bucket).or_default(), list);
        }
    }
}

fn add_lists<T: Copy + Default + AddAssign>(total: &mut Vec<T>, part: &[T]) {
    if total.len() < part.len() {
        total.resize(part.len(), T::default());
    }
    total.iter_mut().zip(part).for_each(|(sum, value)| *sum += *value);
}

fn add_paired(total: &mut Paired, part: &Paired) {
    for (sum, table) in [(&mut total.errors, &part.errors), (&mut total.checks, &part.checks)] {
        sum.neither += table.neither;
        sum.canary_only += table.canary_only;
        sum.stable_only += table.stable_only;
        sum.both += table.both;
    }
    add_sums(&mut total.cost, &part.cost);
    add_sums(&mut total.stable_cost, &part.stable_cost);
    for (name, sums) in &part.scores {
        add_sums(total.scores.entry(name.clone()).or_default(), sums);
    }
    total.spent_usd += part.spent_usd;
    total.unpriced += part.unpriced;
    total.dropped += part.dropped;
    total.unsent += part.unsent;
}

pub(super) fn add_turned_away(total: &mut TurnedAway, part: &TurnedAway) {
    total.requests += part.requests;
    total.errors += part.errors;
    total.waiting += part.waiting;
    total.probes += part.probes;
    total.probe_errors += part.probe_errors;
}

fn add_histogram(total: &mut BTreeMap<u8, u64>, part: &BTreeMap<u8, u64>) {
    for (bucket, count) in part {
        *total.entry(*bucket).or_default() += count;
    }
}

pub(super) fn add_by_input(total: &mut ByInput, mut part: ByInput) {
    total.count += part.count;
    for (sum, part) in total.sums_mut().into_iter().zip(part.sums_mut()) {
        *sum += *part;
    }
}

pub(super) fn add_sums(total: &mut Sums, part: &Sums) {
    total.count += part.count;
    total.sum += part.sum;
    total.squares += part.squares;
    total.cubes += part.cubes;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(n: u64) -> Arc<Counts> {
        Arc::new(Counts { assigned: n, requests: n, errors: n / 10, ..Counts::default() })
    }

    #[test]
    fn the_same_report_twice_counts_once() {
        let mut known = vec![];
        for n in [100, 200, 200, 150] {
            merge(&mut known, "a", &counts(n), &counts(n / 2));
        }
        let (stable, canary) = totals(&known);
        assert_eq!((stable.requests, canary.requests, stable.errors), (200, 100, 20));
    }

    #[test]
    fn a_dropped_copy_is_news() {
        let mut known = vec![];
        let mut copied = counts(10);
        for dropped in [0, 1] {
            let paired = Some(Paired { dropped, ..Paired::default() });
            Arc::make_mut(&mut copied).paired = paired;
            merge(&mut known, "a", &counts(100), &copied);
        }
        assert_eq!(totals(&known).1.paired.as_ref().unwrap().dropped, 1);
    }

    #[test]
    fn there_is_an_end_to_the_processes_and_it_is_told() {
        let mut known = vec![];
        for i in 0..INSTANCES {
            assert!(merge(&mut known, &i.to_string(), &counts(10), &counts(1)));
        }
        assert!(!merge(&mut known, "one more", &counts(10), &counts(1)));
        assert!(merge(&mut known, "0", &counts(20), &counts(2)), "a known one goes on");
        assert_eq!(totals(&known).0.requests, 10 * INSTANCES as u64 + 10);
    }

    proptest::proptest! {
        /// Processes that count, report late, twice or out of order, die and are replaced.
        #[test]
        fn nothing_is_counted_twice_and_only_what_was_never_reported_is_lost(
            events in proptest::collection::vec((0..4_usize, 0..6_u8, 0..50_u64, 0..3_usize), 1..80),
        ) {
            let (mut alive, mut born) = (vec![(0_u64, 0_u64); 4], 4);
            let mut names: Vec<String> = (0..4).map(|i| i.to_string()).collect();
            let mut mail: Vec<(String, u64)> = vec![];
            let (mut truth, mut unreported, mut known) = (0, 0, vec![]);
            for (who, what, more, back) in events {
                match what {
                    0..3 => {
                        alive[who].0 += more;
                        truth += more;
                    }
                    // A report is sent and may arrive later, or again.
                    3..5 => {
                        alive[who].1 = alive[who].0;
                        mail.push((names[who].clone(), alive[who].0));
                        if let Some((name, n)) = mail.iter().rev().nth(back).cloned() {
                            merge(&mut known, &name, &counts(n), &counts(n));
                        }
                    }
                    _ => {
                        unreported += alive[who].0 - alive[who].1;
                        alive[who] = (0, 0);
                        names[who] = born.to_string();
                        born += 1;
                    }
                }
            }
            for (name, n) in &mail {
                merge(&mut known, name, &counts(*n), &counts(*n));
            }
            let pending: u64 = alive.iter().map(|(counted, sent)| counted - sent).sum();
            let (stable, canary) = totals(&known);
            proptest::prop_assert_eq!(stable.requests, truth - unreported - pending);
            proptest::prop_assert_eq!(canary.requests, stable.requests);
        }
    }

    #[test]
    fn a_restarted_gateway_adds_to_what_its_predecessor_saw() {
        let mut known = vec![];
        merge(&mut known, "a", &counts(100), &counts(10));
        merge(&mut known, "b", &counts(5), &counts(1));
        assert_eq!(totals(&known).0.requests, 105);
    }
}
