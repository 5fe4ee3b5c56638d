//! No rollback rests on few moments: a provider's bad minute hits one side alone, by chance the
//! canary, and says nothing of the next.
//!
//! Of a share that is counted in batches, from one collection to the next, those batches are
//! kept in which the canary was worst beside stable. A failure stands when what is left of the
//! step (or of all that are pooled) without them is beyond the harm margin, too, or when the canary
//! was beyond it in each of the last three. What is worse all the time is so without its worst
//! moments; the price is two collections more, at most, for a canary that turns bad between two.
//! In the first batch of a step there is nothing else to ask, and the rule is silent.
//!
//! A batch of a latency is what ended from one collection to the next: what is open stays in what
//! is left, however long it has waited.
//!
//! A failure that does not stand is no pass. The next collection decides: until the failure stands
//! or has gone, no step passes and none ends.

use super::{Measured, Scope, Window, as_share, measure::share_sample, minimum};
use crate::{
    analysis::stats::proportion::Share,
    api::{
        canary_policy::Metric,
        prompt_release::{Batch, Batches, MetricStatus, Sample, Verdict},
    },
};

/// So many batches at most are left out.
const WORST: usize = 5;
/// One batch is left out, and one more for every five batches of the step.
const EACH: i32 = 5;
/// So many bad batches in a row are no bad moment.
const IN_A_ROW: i32 = 3;

/// The batches of the step so far. `own` is what the step has measured until now.
pub(super) fn batches(
    (window, metric): (&Window<'_>, &Metric),
    own: &Measured,
    before: Option<&MetricStatus>,
) -> Option<Batches> {
    let now = batch_of(own.grown()?);
    let in_step = before.and_then(|b| b.in_step).filter(|_| window.pool.is_some());
    let known = before.and_then(|b| b.batches.clone());
    let past = match (in_step, before) {
        _ if own.counts_open => known.as_ref().and_then(|batches| batches.closed),
        (Some(step), _) => Some(Batch { canary: step.canary, stable: step.stable }),
        (None, before) => before.map(|b| Batch { canary: b.canary, stable: b.stable }),
    };
    let past = past.unwrap_or_default();
    // A step that has counted nothing has no batches yet.
    let known = known.filter(|_| past.canary.count > 0);
    let mut all = Batches { decide: false, ..known.unwrap_or_default() };
    all.closed = own.counts_open.then_some(now);
    take(&mut all, between(past, now), metric.margin().harm, now.stable.value);
    Some(all)
}

/// Canary's and stable's shares.
pub(super) fn batch_of([canary, stable]: [Share; 2]) -> Batch {
    Batch { canary: share_sample(canary), stable: share_sample(stable) }
}

/// What was counted from one collection to a later one.
pub(super) fn between(past: Batch, now: Batch) -> Batch {
    let since = |now: Sample, past: Sample| {
        let (now, past) = (as_share(now), as_share(past));
        let (n, bad) = ((now.n - past.n).max(0.0), (now.bad - past.bad).max(0.0));
        share_sample(Share { n, bad: bad.min(n) })
    };
    Batch { canary: since(now.canary, past.canary), stable: since(now.stable, past.stable) }
}

/// Takes note of one more batch, while stable's share of failures is `share`.
pub(super) fn take(all: &mut Batches, latest: Batch, harm: f64, share: f64) {
    if latest.canary.count == 0 {
        return;
    }
    all.count = all.count.saturating_add(1);
    let is_bad = latest.canary.value - latest.stable.value > harm;
    all.bad_in_a_row = if is_bad { all.bad_in_a_row.saturating_add(1) } else { 0 };
    all.worst.push(latest);
    // How many more failed than at stable's share.
    let excess = |batch: &Batch| {
        let Share { n, bad } = as_share(batch.canary);
        bad - n * share
    };
    all.worst.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
    all.worst.truncate(WORST);
}

/// Whether a failure rests on so few batches that it does not stand if those fall away: these.
pub(super) fn few(batches: &Batches) -> Option<&[Batch]> {
    if batches.bad_in_a_row >= IN_A_ROW {
        return None;
    }
    let least = (1 + batches.count / EACH) as usize;
    Some(&batches.worst[..least.min(batches.worst.len())])
}

/// Whether a failure was taken back, and waits for the next collection.
pub(super) fn waits(status: &MetricStatus) -> bool {
    status.batches.as_ref().is_some_and(|batches| batches.decide)
}

/// Takes back a failure that rests on few batches.
pub(super) fn attribute(
    (window, metric): (&Window<'_>, &Metric),
    scope: &Scope<'_>,
    before: Option<&MetricStatus>,
    status: &mut MetricStatus,
) {
    let Some(batches) = status.batches.clone().filter(|_| status.verdict == Verdict::Fail) else {
        return;
    };
    let own = scope.own(metric, window.paired, before);
    // A floor is a promise of its own.
    if own.beyond_floor(metric).is_some() {
        return;
    }
    let Some(worst) = few(&batches).filter(|_| batches.count >= 2) else { return };
    let Some(rest) = own.without(worst) else { return };
    let stands = |rest: &Measured| lies_beyond(rest, status.harm);
    if stands(&rest) || stands(&scope.together(&rest, metric, before)) {
        return;
    }
    // Also at the last look: a policy may go on with a step that ends without an answer.
    status.verdict = Verdict::Undecided;
    status.message = format!(
        "the canary looks worse because of {} of {} moments; of the rest: canary {}, stable {}. \
         It is looked at again with each collection",
        worst.len(),
        batches.count,
        status.unit.sample(rest.canary),
        status.unit.sample(rest.stable),
    );
    status.batches = Some(Batches { decide: true, ..batches });
}

/// Whether enough was measured, and is worse by more than `harm`.
pub(super) fn lies_beyond(measured: &Measured, harm: f64) -> bool {
    let enough = measured.smallest_count() >= minimum(measured);
    enough && measured.difference().is_some_and(|d| d > harm)
}

#[cfg(test)]
mod tests;
