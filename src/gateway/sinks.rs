//! What becomes of a record. Every consumer sees the same event, after the answer.

use std::{collections::BTreeMap, ops::AddAssign, sync::Arc};

use crate::{
    analysis::{buckets, callers::coarse},
    api::prompt_release::{Counts, Groups, OTHER, PairTable, Paired, Sums},
    audit::record::{AssignmentReason, CheckResult, Record, RecordOutcome},
    rollout::assignment::GROUPS,
    telemetry::Telemetry,
};

/// A consumer of records. Called behind the answer; must not block.
pub(super) trait Sink: Send + Sync {
    /// Takes one record.
    fn consume(&self, record: &Arc<Record>);
}

/// The evidence keeps so many words for what went wrong; what comes later is `other`.
const WORDS: usize = 7;

/// Adds the record of a drawn request to the evidence of its side, whatever became of it.
pub(super) fn count(counts: &mut Counts, record: &Record) {
    if record.reason == AssignmentReason::Shadow {
        count_copy(counts.paired.get_or_insert_default(), record);
    }
    if let Some(group) = record.group {
        count_grouped(&mut counts.groups, group, record);
    }
    let ended = match record.outcome {
        RecordOutcome::Ok => {
            counts.requests += 1;
            count_answer(counts, record);
            &mut counts.duration
        }
        RecordOutcome::Error => {
            counts.requests += 1;
            counts.errors += 1;
            count_word(&mut counts.failures, record.error.unwrap_or("unknown"));
            &mut counts.waited.duration
        }
        RecordOutcome::Cancelled => {
            counts.unfinished += 1;
            &mut counts.waited.duration
        }
        // Nobody waited for an answer that could have been given.
        RecordOutcome::ClientError => {
            counts.refused += 1;
            count_word(&mut counts.refusals, record.error.unwrap_or("unknown"));
            return;
        }
    };
    let duration = buckets::index(record.duration_seconds);
    *ended.entry(duration).or_default() += 1;
    match record.first_token_seconds {
        Some(seconds) => *counts.ttft.entry(buckets::index(seconds)).or_default() += 1,
        None => *counts.waited.ttft.entry(duration).or_default() += 1,
    }
}

fn count_word(words: &mut BTreeMap<String, u64>, word: &str) {
    let is_full = words.keys().filter(|known| *known != OTHER).count() >= WORDS;
    let word = if is_full && !words.contains_key(word) { OTHER } else { word };
    if let Some(count) = words.get_mut(word) {
        *count += 1;
    } else {
        words.insert(word.to_owned(), 1);
    }
}

fn count_answer(counts: &mut Counts, record: &Record) {
    if let Some(check) = record.check {
        let passed = check == CheckResult::Passed;
        if check.is_judged() {
            counts.checked += 1;
            counts.check_failures += u64::from(!passed);
        } else {
            counts.unjudged += 1;
        }
        if !passed {
            count_word(&mut counts.flaws, check.as_str());
        }
    }
    if let Some(usd) = record.compared_usd {
        add(&mut counts.cost, usd);
        if let Some(input) = record.input_kib {
            counts.cost_by_input.add(input, usd);
        }
    }
}

/// Compares a copy with stable's answer to the same request, where both have an outcome.
fn count_copy(paired: &mut Paired, record: &Record) {
    // Spent in any case.
    paired.spent_usd += record.cost_usd.unwrap_or(0.0);
    paired.unpriced += u64::from(record.is_unpriced());
    let Some(stable) = record.pair() else {
        paired.dropped += 1;
        return;
    };
    let failed = |outcome| outcome == RecordOutcome::Error;
    add_pair(&mut paired.errors, failed(stable.outcome), failed(record.outcome));
    if let Some((own, other)) = record.check.zip(stable.check) {
        let wrong = |check| check != CheckResult::Passed;
        if own.is_judged() && other.is_judged() {
            add_pair(&mut paired.checks, wrong(other), wrong(own));
        }
        // Only of answers: what a failure costs says nothing of what an answer does.
        if let Some((own, other)) = record.compared_usd.zip(stable.compared_usd) {
            add(&mut paired.cost, own - other);
            add(&mut paired.stable_cost, other);
        }
    }
}

fn add_pair(table: &mut PairTable, stable_bad: bool, canary_bad: bool) {
    let cell = match (stable_bad, canary_bad) {
        (false, false) => &mut table.neither,
        (false, true) => &mut table.canary_only,
        (true, false) => &mut table.stable_only,
        (true, true) => &mut table.both,
    };
    *cell += 1;
}

/// The same once more, by the group of the sticky key.
fn count_grouped(groups: &mut Groups, group: u8, record: &Record) {
    match record.outcome {
        RecordOutcome::ClientError => return add_at(&mut groups.refused, group, 1),
        RecordOutcome::Cancelled => add_at(&mut groups.unfinished, group, 1),
        RecordOutcome::Ok | RecordOutcome::Error => add_at(&mut groups.requests, group, 1),
    }
    let duration = record.duration_seconds;
    let waits = [
        (&mut groups.ttft, record.first_token_seconds.unwrap_or(duration)),
        (&mut groups.duration, duration),
    ];
    for (groups, seconds) in waits {
        add_at(groups.entry(coarse(buckets::index(seconds))).or_default(), group, 1);
    }
    if record.outcome == RecordOutcome::Cancelled {
        return;
    }
    add_at(&mut groups.errors, group, u64::from(record.outcome == RecordOutcome::Error));
    if record.outcome != RecordOutcome::Ok {
        return;
    }
    if let Some(check) = record.check.filter(|check| check.is_judged()) {
        add_at(&mut groups.checked, group, 1);
        add_at(&mut groups.check_failures, group, u64::from(check != CheckResult::Passed));
    }
    if let Some(usd) = record.compared_usd {
        add_at(&mut groups.costs, group, 1);
        add_at(&mut groups.cost, group, usd);
        if let Some(input) = record.input_kib {
            add_at(&mut groups.input, group, input);
        }
    }
}

/// Adds to one group.
pub(super) fn add_at<T: Default + Clone + AddAssign>(list: &mut Vec<T>, group: u8, value: T) {
    if list.is_empty() {
        list.resize(GROUPS, T::default());
    }
    if let Some(sum) = list.get_mut(usize::from(group)) {
        *sum += value;
    }
}

/// Adds one observation of a mean.
pub(super) fn add(sums: &mut Sums, value: f64) {
    sums.count += 1;
    sums.sum += value;
    sums.squares += value * value;
    sums.cubes += value * value * value;
}

/// Spans and the access log.
impl Sink for Telemetry {
    fn consume(&self, record: &Arc<Record>) {
        Self::consume(self, record);
    }
}

/// One log line a request, at debug level.
pub(super) struct Log;

impl Sink for Log {
    fn consume(&self, record: &Arc<Record>) {
        tracing::debug!(
            request_id = record.request_id,
            release = record.origin.release,
            revision = record.origin.revision,
            reason = record.reason.as_str(),
            outcome = record.outcome.as_str(),
            error = record.error,
            status = record.status,
            first_token = record.first_token_seconds,
            duration = record.duration_seconds,
            usd = record.cost_usd,
            check = record.check.map(|check| check.as_str()),
            stable = ?record.stable,
            "answered"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_seven_words_is_other_and_no_failure_is_left_out() {
        let mut words = BTreeMap::new();
        for (word, times) in [("a", 1), ("b", 2), ("c", 1), ("d", 1), ("e", 1), ("f", 1), ("g", 1)]
        {
            (0..times).for_each(|_| count_word(&mut words, word));
        }
        for word in ["h", "i", "h", OTHER, "a"] {
            count_word(&mut words, word);
        }
        assert_eq!((words.len(), words[OTHER], words["a"]), (8, 4, 2));
        assert_eq!(words.values().sum::<u64>(), 13);
    }
}
