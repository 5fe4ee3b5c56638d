//! What is left of the evidence without one caller.
//!
//! An application chooses its sticky keys and what it asks for, so one that means harm, or
//! is merely strange, can make any difference between the sides. Gateways therefore count
//! the callers with most requests one by one, and no verdict may rest on one of them alone
//! ([`super::judge`]).
//!
//! Latencies of a caller are counted on a coarser scale, four buckets of the shared one
//! together: what is left of a bucket is taken to be the same part as of its four.

use std::collections::BTreeMap;

use super::evidence;
use crate::api::prompt_release::{ByInput, CallerCounts, Counts, Sums, TurnedAway};

/// So many callers are named for one release.
pub const NAMED: usize = 8;
/// So many buckets of the shared scale are one of a caller's.
const COARSE: u8 = 4;

/// A caller that sends at least this share of all requests decides alone.
const MOST: f64 = 2.0 / 3.0;
/// By so many standard errors a caller's share must exceed [`MOST`].
const SURE_Z: f64 = 2.0;

/// The coarse bucket of a bucket.
pub fn coarse(bucket: u8) -> u8 {
    bucket / COARSE
}

/// The named callers whose share of both sides' requests does not exceed [`MOST`] by
/// [`SURE_Z`] standard errors. The release is for a caller that exceeds it, and the others
/// are too few to contradict that caller. The standard errors are asked for because chance
/// gives any caller most of the first few requests.
pub fn minorities<'a>(stable: &'a Counts, canary: &'a Counts) -> Vec<&'a str> {
    let drawn = |counts: &Counts| {
        let pending = counts.open().saturating_add(counts.turned_away.waiting);
        counts.ended().saturating_add(pending)
    };
    let all = drawn(stable).saturating_add(drawn(canary));
    let of = |counts: &Counts, name: &str| {
        counts.callers.get(name).map_or(0, |c| c.ended().saturating_add(c.pending()))
    };
    let mut names: Vec<&str> =
        stable.callers.keys().chain(canary.callers.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| {
        let own = of(stable, name).saturating_add(of(canary, name));
        let (own, all) = (own as f64, all as f64);
        own <= MOST * all + SURE_Z * (MOST * (1.0 - MOST) * all).sqrt()
    });
    names
}

/// What others than `caller` sent. Groups of sticky keys stay those of all.
pub fn without(counts: &Counts, caller: &str) -> Counts {
    let Some(own) = counts.callers.get(caller) else { return counts.clone() };
    let mut rest = counts.clone();
    rest.callers.remove(caller);
    rest.assigned = rest.assigned.saturating_sub(own.ended()).saturating_sub(own.pending());
    rest.refused = rest.refused.saturating_sub(own.refused);
    rest.unfinished = rest.unfinished.saturating_sub(own.unfinished);
    rest.unjudged = rest.unjudged.saturating_sub(own.unjudged);
    rest.requests = rest.requests.saturating_sub(own.requests);
    rest.errors = rest.errors.saturating_sub(own.errors);
    rest.checked = rest.checked.saturating_sub(own.checked);
    rest.check_failures = rest.check_failures.saturating_sub(own.check_failures);
    take_latencies(&mut rest.ttft, &own.ttft);
    take_latencies(&mut rest.duration, &own.duration);
    take_latencies(&mut rest.waited.ttft, &own.waited.ttft);
    take_latencies(&mut rest.waited.duration, &own.waited.duration);
    take_latencies(&mut rest.open.ttft, &own.open.ttft);
    take_latencies(&mut rest.open.duration, &own.open.duration);
    take_turned_away(&mut rest, &own.turned_away);
    take(&mut rest.cost, &own.cost);
    take_by_input(&mut rest.cost_by_input, own.cost_by_input);
    for (name, sums) in &mut rest.scores {
        if let Some(own) = own.scores.get(name) {
            take(sums, own);
        }
    }
    rest
}

/// The turned-away requests of the other callers count as the probes of the other callers
/// ended. The caller's own probes only show how the backend treats this caller. When the
/// other callers sent no probe, their turned-away requests are left out.
fn take_turned_away(rest: &mut Counts, own: &TurnedAway) {
    if own.is_empty() {
        return;
    }
    let all = rest.turned_away;
    let mut others = TurnedAway {
        requests: all.requests.saturating_sub(own.requests),
        errors: all.errors.saturating_sub(own.errors),
        waiting: all.waiting.saturating_sub(own.waiting),
        probes: all.probes.saturating_sub(own.probes),
        probe_errors: all.probe_errors.saturating_sub(own.probe_errors),
    };
    rest.errors = rest.errors.saturating_sub(others.errors);
    if others.probes == 0 {
        rest.requests = rest.requests.saturating_sub(others.requests);
        rest.turned_away = TurnedAway { waiting: others.waiting, ..TurnedAway::default() };
        return;
    }
    let failed = others.probe_errors.min(others.probes) as f64 / others.probes as f64;
    others.errors = (others.requests as f64 * failed).round() as u64;
    rest.errors = rest.errors.saturating_add(others.errors);
    rest.turned_away = others;
}

fn take_by_input(all: &mut ByInput, mut own: ByInput) {
    all.count = all.count.saturating_sub(own.count);
    for (sum, own) in all.sums_mut().into_iter().zip(own.sums_mut()) {
        *sum = (*sum - *own).max(0.0);
    }
    if all.count == 0 {
        *all = ByInput::default();
    }
}

fn take(all: &mut Sums, own: &Sums) {
    all.count = all.count.saturating_sub(own.count);
    // Of nothing the sums are nothing, and not what rounding left.
    let left = |all: f64, own: f64| if all.is_finite() { (all - own).max(0.0) } else { all };
    *all = if all.count == 0 {
        Sums::default()
    } else {
        Sums {
            count: all.count,
            sum: left(all.sum, own.sum),
            squares: left(all.squares, own.squares),
            cubes: left(all.cubes, own.cubes),
        }
    };
}

fn take_latencies(all: &mut BTreeMap<u8, u64>, own: &BTreeMap<u8, u64>) {
    let mut sums = BTreeMap::<u8, u64>::new();
    for (bucket, count) in all.iter() {
        let sum = sums.entry(coarse(*bucket)).or_default();
        *sum = sum.saturating_add(*count);
    }
    for (bucket, count) in all.iter_mut() {
        let sum = sums.get(&coarse(*bucket)).copied().unwrap_or_default();
        let own = own.get(&coarse(*bucket)).copied().unwrap_or_default().min(sum);
        let part = (sum - own) as f64 / sum.max(1) as f64;
        *count = (*count as f64 * part).round() as u64;
    }
    all.retain(|_, count| *count > 0);
}

/// Adds what another process counted of the same callers.
pub fn add(total: &mut BTreeMap<String, CallerCounts>, part: &BTreeMap<String, CallerCounts>) {
    for (name, part) in part {
        let sum = total.entry(name.clone()).or_default();
        sum.requests += part.requests;
        sum.errors += part.errors;
        sum.refused += part.refused;
        sum.unfinished += part.unfinished;
        sum.unjudged += part.unjudged;
        sum.checked += part.checked;
        sum.check_failures += part.check_failures;
        for (to, from) in [
            (&mut sum.ttft, &part.ttft),
            (&mut sum.duration, &part.duration),
            (&mut sum.waited.ttft, &part.waited.ttft),
            (&mut sum.waited.duration, &part.waited.duration),
            (&mut sum.open.ttft, &part.open.ttft),
            (&mut sum.open.duration, &part.open.duration),
        ] {
            for (bucket, count) in from {
                *to.entry(*bucket).or_default() += count;
            }
        }
        evidence::add_turned_away(&mut sum.turned_away, &part.turned_away);
        evidence::add_sums(&mut sum.cost, &part.cost);
        evidence::add_by_input(&mut sum.cost_by_input, part.cost_by_input);
        for (name, sums) in &part.scores {
            evidence::add_sums(sum.scores.entry(name.clone()).or_default(), sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(requests: u64, errors: u64) -> CallerCounts {
        CallerCounts { requests, errors, ..CallerCounts::default() }
    }

    fn counts(requests: u64, errors: u64, callers: &[(&str, CallerCounts)]) -> Counts {
        let callers = callers.iter().map(|(name, c)| ((*name).to_owned(), c.clone())).collect();
        Counts { requests, errors, callers, ..Counts::default() }
    }

    #[test]
    fn the_rest_is_what_others_sent_whatever_is_claimed() {
        let all = counts(100, 12, &[("a", caller(40, 10)), ("b", caller(200, 200))]);
        let rest = without(&all, "a");
        assert_eq!((rest.requests, rest.errors, rest.callers.len()), (60, 2, 1));
        let rest = without(&all, "b");
        assert_eq!((rest.requests, rest.errors), (0, 0));
        assert_eq!(without(&all, "c"), all);
    }

    #[test]
    fn costs_and_their_inputs_are_taken_together() {
        let own = |inputs: &[f64]| {
            let mut counts = caller(inputs.len() as u64, 0);
            for x in inputs {
                counts.cost.count += 1;
                counts.cost.sum += 2.0 * x;
                counts.cost_by_input.add(*x, 2.0 * x);
            }
            counts
        };
        let (a, b) = (own(&[1.0, 4.0]), own(&[3.0]));
        let mut all = BTreeMap::new();
        for part in [&a, &b] {
            add(&mut all, &[("all".to_owned(), part.clone())].into());
        }
        let CallerCounts { cost, cost_by_input, .. } = all["all"].clone();
        let counts = counts(3, 0, &[("a", a), ("b", b.clone())]);
        let rest = without(&Counts { cost, cost_by_input, ..counts }, "a");
        assert_eq!((rest.cost_by_input, rest.cost.count), (b.cost_by_input, 1));
    }

    #[test]
    fn latencies_are_taken_from_the_buckets_that_they_fell_into() {
        let histogram = |pairs: &[(u8, u64)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let mut all = histogram(&[(8, 10), (9, 30), (40, 5)]);
        take_latencies(&mut all, &histogram(&[(2, 20), (10, 5)]));
        assert_eq!(all, histogram(&[(8, 5), (9, 15)]));
    }

    #[test]
    fn a_caller_with_two_thirds_of_the_requests_is_no_minority() {
        let stable = counts(80, 0, &[("a", caller(60, 0)), ("b", caller(20, 0))]);
        let canary = counts(10, 0, &[("a", caller(10, 0))]);
        assert_eq!(minorities(&stable, &canary), ["b"]);
        let canary = counts(20, 0, &[("a", caller(10, 0)), ("c", caller(10, 0))]);
        assert_eq!(minorities(&stable, &canary), ["a", "b", "c"]);
        // Seven of the first ten requests say little about who sends most.
        let canary = counts(10, 0, &[("a", caller(7, 0)), ("b", caller(3, 0))]);
        assert_eq!(minorities(&counts(0, 0, &[]), &canary), ["a", "b"]);
        assert!(minorities(&counts(10, 0, &[]), &counts(1, 0, &[])).is_empty());
    }
}
