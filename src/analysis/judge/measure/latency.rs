//! Waits against stable's quantile.

use std::collections::BTreeMap;

use super::{Comparison, Measured, share_sample};
use crate::{
    analysis::{
        buckets,
        stats::{proportion::Share, survival::Waits},
    },
    api::{
        canary_policy::{Latency, Metric},
        prompt_release::{Counts, MetricStatus},
    },
};

/// So many of stable's answers are wanted beyond the quantile before it is frozen: its
/// true share there is then known to about a third.
const BEYOND_QUANTILE: f64 = 10.0;

impl Measured {
    /// The share slower than stable's quantile. The threshold is chosen once, from stable's
    /// waits so far. These stay in the comparison: the share beyond a quantile of one's own
    /// sample is as uncertain as any share of a sample of this size (it is a beta variable,
    /// David and Nagaraja, Order Statistics, 2003, section 2.3), and a little larger than
    /// it looks, for the choice stops as soon as few enough are beyond: one slow answer
    /// more is counted for that.
    pub(super) fn latency(
        (latency, metric): (&Latency, &Metric),
        [(stable, _), (canary, _)]: [(Waits<'_>, Grouped<'_>); 2],
        before: Option<&MetricStatus>,
    ) -> Self {
        let known = before.and_then(|b| b.threshold).map(interval_of);
        let chosen = || quantile(stable, latency.quantile);
        let floor = metric.floor.as_ref().and_then(|floor| floor.max_duration);
        let floored = floor.map(|longest| {
            let last = buckets::index(longest.0.as_secs_f64());
            [stable.slower_than(last), canary.slower_than(last)]
        });
        let Some(last) = known.or_else(chosen) else {
            let seen = |waits: Waits<'_>| Share { n: waits.total(), bad: 0.0 };
            let mut measured = Self::shares(seen(canary), seen(stable));
            (measured.comparison, measured.waits) = (Comparison::Nothing, stable.total() > 0.0);
            measured.floored = floored;
            measured.missing = Some(format!(
                "stable's {} quantile needs {} answers, there are {}",
                latency.quantile,
                answers_for(latency.quantile),
                stable.total()
            ));
            return measured;
        };
        let chose = || Some(share_sample(stable.slower_than(last)));
        let frozen = if known.is_some() { before.and_then(|b| b.frozen) } else { chose() };
        let mut control = stable.slower_than(last);
        if frozen.is_some() && control.n > 0.0 {
            control = Share { n: control.n + 1.0, bad: control.bad + 1.0 };
        }
        let mut measured = Self::shares(canary.slower_than(last), control);
        (measured.counts_everybody, measured.counts_open) = (true, true);
        measured.closed = Some([canary.closed(last), stable.closed(last)]);
        (measured.threshold, measured.frozen) = (Some(buckets::bound(last)), frozen);
        measured.floored = floored;
        measured.waits = canary.total() > 0.0 || frozen.is_some();
        measured
    }
}

/// Waits by groups of sticky keys.
pub(super) type Grouped<'a> = &'a BTreeMap<u8, Vec<u64>>;

/// The wait of each drawn request for its first token.
pub(super) fn first_tokens(counts: &Counts) -> (Waits<'_>, Grouped<'_>) {
    let (left, open) = (&counts.waited.ttft, &counts.open.ttft);
    (Waits { ended: &counts.ttft, left, open }, &counts.groups.ttft)
}

/// The wait of each drawn request for its whole answer.
pub(super) fn durations(counts: &Counts) -> (Waits<'_>, Grouped<'_>) {
    let (left, open) = (&counts.waited.duration, &counts.open.duration);
    (Waits { ended: &counts.duration, left, open }, &counts.groups.duration)
}

/// The interval that a threshold bounds, which went through decimal text.
pub(super) fn interval_of(threshold: f64) -> u8 {
    buckets::index(threshold * (1.0 - 1e-9))
}

/// How many of stable's answers are wanted before its quantile is frozen.
pub(in crate::analysis) fn answers_for(q: f64) -> u64 {
    (BEYOND_QUANTILE / (1.0 - q)).round() as u64
}

/// The interval at stable's quantile, once there are enough requests.
fn quantile(stable: Waits<'_>, q: f64) -> Option<u8> {
    if stable.total() < answers_for(q) as f64 {
        return None;
    }
    let last = stable.quantile(q, BEYOND_QUANTILE, buckets::BUCKETS)?;
    // The open interval has no bound to freeze.
    buckets::bound(last).is_finite().then_some(last)
}
