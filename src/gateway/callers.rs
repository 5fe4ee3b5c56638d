//! The evidence once more, by who asked: no verdict may rest on one caller
//! (`analysis::callers`). A caller is a team or a tenant, with however many keys.
//!
//! Of each variant the callers with most requests are counted. A report names the few that
//! have most of either side, the same of both sides.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use super::{routes::Route, sinks, tally::Tally};
use crate::{
    analysis::{
        buckets,
        callers::{NAMED, coarse},
    },
    api::prompt_release::{CallerCounts, Counts},
    audit::record::{AssignmentReason, Caller, CheckResult, Record, RecordOutcome},
};

/// So many callers of a variant are counted; of more, those with fewest requests are not.
const COUNTED: usize = 256;

/// The counts of one variant under one routing generation, by caller.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Callers(Mutex<HashMap<String, CallerCounts>>);

impl Callers {
    fn change(&self, party: &str, change: impl FnOnce(&mut CallerCounts)) {
        let Ok(mut all) = self.0.lock() else { return };
        if let Some(known) = all.get_mut(party) {
            return change(known);
        }
        if all.len() >= COUNTED {
            let fewest = all.iter().min_by_key(|(_, counts)| counts.ended());
            let Some(fewest) = fewest.map(|(name, _)| name.clone()) else { return };
            all.remove(&fewest);
        }
        change(all.entry(party.to_owned()).or_default());
    }

    /// Counts a score of the caller that has got an answer before.
    pub(super) fn score(&self, is_it: impl Fn(&str) -> bool, name: &str, score: f64) {
        let Ok(mut all) = self.0.lock() else { return };
        if let Some((_, counts)) = all.iter_mut().find(|(party, _)| is_it(party)) {
            sinks::add(counts.scores.entry(name.to_owned()).or_default(), score);
        }
    }

    /// Counts a drawn request, as the evidence does. Copies are drawn by chance, whoever asks.
    pub(super) fn count(&self, record: &Record) {
        if let Some(caller) = record.caller.as_ref()
            && record.reason != AssignmentReason::Shadow
        {
            self.change(&caller.party, |counts| count(counts, record));
        }
    }

    /// An open breaker keeps one of its requests away from the side that was drawn for it.
    /// `failed`: the outcome that it counts as; none: that of the next probe that ends.
    pub(super) fn turn_away(&self, party: &str, failed: Option<bool>) {
        self.change(party, |counts| {
            counts.turned_away.waiting += 1;
            if let Some(failed) = failed {
                counts.judge(1, failed);
            }
        });
    }

    /// A probe of `by` has ended: what waited for it counts alike, whoever sent it.
    pub(super) fn probed(
        &self,
        by: Option<&Caller>,
        waited: impl Iterator<Item = (String, u64)>,
        failed: bool,
    ) {
        let Ok(mut all) = self.0.lock() else { return };
        for (party, n) in waited {
            // Of one that was forgotten meanwhile nothing waits.
            let Some(counts) = all.get_mut(&party) else { continue };
            let n = n.min(counts.turned_away.waiting);
            counts.judge(n, failed);
        }
        if let Some(counts) = by.and_then(|by| all.get_mut(&by.party)) {
            counts.turned_away.add_probe(failed);
        }
    }

    /// How many requests of each have ended or were turned away.
    pub(super) fn known(&self) -> HashMap<String, u64> {
        let Ok(all) = self.0.lock() else { return HashMap::new() };
        all.iter().map(|(name, c)| (name.clone(), c.ended() + c.pending())).collect()
    }

    pub(super) fn of(&self, names: &[String]) -> BTreeMap<String, CallerCounts> {
        let Ok(all) = self.0.lock() else { return BTreeMap::new() };
        let of = |name: &String| (name.clone(), all.get(name).cloned().unwrap_or_default());
        names.iter().map(of).collect()
    }
}

/// The counts of a route by revision, with the same callers named on all sides. With one
/// caller nobody is named: there is nobody to compare it with.
pub(super) fn counts(route: &Route, read_at: u64) -> BTreeMap<String, Arc<Counts>> {
    let mut shares = BTreeMap::<String, f64>::new();
    for tally in route.tallies.values() {
        let drawn = tally.by_caller();
        let all = drawn.values().sum::<u64>().max(1) as f64;
        for (name, n) in drawn {
            let most = shares.entry(name).or_default();
            *most = most.max(n as f64 / all);
        }
    }
    let mut names: Vec<(String, f64)> = shares.into_iter().collect();
    names.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let names: Vec<String> = names.into_iter().take(NAMED).map(|(name, _)| name).collect();
    let of = |tally: &Tally| {
        let callers = if names.len() > 1 { tally.of_callers(&names) } else { BTreeMap::new() };
        Arc::new(Counts { callers, ..tally.read(read_at) })
    };
    route.tallies.iter().map(|(revision, tally)| (revision.clone(), of(tally))).collect()
}

fn count(counts: &mut CallerCounts, record: &Record) {
    let waited = &mut counts.waited;
    let ended = match record.outcome {
        RecordOutcome::Ok => {
            counts.requests += 1;
            &mut counts.duration
        }
        RecordOutcome::Error => {
            counts.requests += 1;
            counts.errors += 1;
            &mut waited.duration
        }
        RecordOutcome::Cancelled => {
            counts.unfinished += 1;
            &mut waited.duration
        }
        RecordOutcome::ClientError => {
            counts.refused += 1;
            return;
        }
    };
    let duration = coarse(buckets::index(record.duration_seconds));
    *ended.entry(duration).or_default() += 1;
    match record.first_token_seconds {
        Some(seconds) => {
            *counts.ttft.entry(coarse(buckets::index(seconds))).or_default() += 1;
        }
        None => *waited.ttft.entry(duration).or_default() += 1,
    }
    if record.outcome != RecordOutcome::Ok {
        return;
    }
    match record.check {
        Some(check) if check.is_judged() => {
            counts.checked += 1;
            counts.check_failures += u64::from(check != CheckResult::Passed);
        }
        Some(_) => counts.unjudged += 1,
        None => {}
    }
    if let Some(usd) = record.compared_usd {
        sinks::add(&mut counts.cost, usd);
        if let Some(input) = record.input_kib {
            counts.cost_by_input.add(input, usd);
        }
    }
}
