//! What several metrics say together, and which of them speaks against the canary.

use super::{MINIMUM, bursts, turned};
use crate::api::prompt_release::{Batch, MetricStatus, Verdict};

/// A metric that lets nothing pass, and what it shows: a built-in comparison whose difference lies
/// beyond its accept margin so far, or any whose canary seems to have turned bad.
pub fn doubt(metrics: &[MetricStatus]) -> Option<(&MetricStatus, Batch)> {
    let beyond = |m: &MetricStatus| m.guard && m.difference.is_some_and(|d| d > m.accept);
    let shown = |m: &MetricStatus| {
        let all = Batch { stable: m.stable, canary: m.canary };
        turned::in_doubt(m).or(beyond(m).then_some(all))
    };
    metrics.iter().find_map(|m| Some((m, shown(m)?)))
}

/// A metric that looks worse than would be accepted, all of the window or lately, and what it shows.
pub fn worse(metrics: &[MetricStatus]) -> Option<(&MetricStatus, Batch)> {
    let beyond = |m: &&MetricStatus| {
        m.canary.count >= MINIMUM as i64 && m.difference.is_some_and(|d| d > m.accept)
    };
    doubt(metrics).or_else(|| {
        let metric = metrics.iter().find(beyond)?;
        Some((metric, Batch { stable: metric.stable, canary: metric.canary }))
    })
}

/// A metric that looked worse than the harm margin in what was collected last, or whose failure
/// waits for another collection.
pub fn worse_lately(metrics: &[MetricStatus]) -> Option<&MetricStatus> {
    let was_bad = |m: &MetricStatus| m.batches.as_ref().is_some_and(|all| all.bad_in_a_row > 0);
    metrics.iter().find(|metric| bursts::waits(metric) || was_bad(metric))
}

/// A metric of the policy of which so little was counted that nothing could have been found;
/// where nothing `compares`, of the new variant. A fixed rule has seen enough when it passes.
pub fn hardly_seen(metrics: &[MetricStatus], compares: bool) -> Option<&MetricStatus> {
    let enough = |count: i64| count >= MINIMUM as i64;
    let is_seen = |m: &MetricStatus| match m.streak {
        0 => enough(m.canary.count) && (!compares || enough(m.stable.count)),
        _ => m.verdict == Verdict::Pass,
    };
    metrics.iter().find(|metric| !metric.guard && !is_seen(metric))
}

/// The verdict of all metrics together: any Fail fails, all Pass pass, and what is
/// missing keeps the rest from passing. Built-in comparisons need not pass, but nothing
/// passes while one of them is in [`doubt`], and nothing ends while a failure waits for another
/// collection, theirs included. Nothing else is decided while both sides are
/// beyond a floor.
pub fn combine(metrics: &[MetricStatus]) -> Verdict {
    if metrics.iter().any(|m| m.verdict == Verdict::Fail) {
        return Verdict::Fail;
    }
    let waits = metrics.iter().any(bursts::waits);
    let doubts = waits || doubt(metrics).is_some();
    let metrics: Vec<&MetricStatus> = metrics.iter().filter(|m| !m.guard).collect();
    let any = |v: Verdict| metrics.iter().any(|m| m.verdict == v);
    if metrics.is_empty() {
        Verdict::NoData
    } else if metrics.iter().any(|m| m.floor_on_both_sides.is_some()) {
        Verdict::Undecided
    } else if metrics.iter().all(|m| m.verdict == Verdict::Pass) {
        if doubts { Verdict::Undecided } else { Verdict::Pass }
    } else if any(Verdict::NoData) {
        Verdict::NoData
    } else if any(Verdict::Undecided) || waits {
        Verdict::Undecided
    } else {
        Verdict::Inconclusive
    }
}
