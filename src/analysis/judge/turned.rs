//! Finds a canary that turns bad.
//!
//! The tests of a step ask about all of it together. After an hour of good answers, or an
//! incident of stable's, a canary that fails every request from one moment on looks good for a
//! long time. So beside them a test runs that may begin at any collection: the sum over all
//! beginnings of what a test from there on shows, each with its share of the error (an e-detector
//! as in Shin, Ramdas and Rinaldo 2024, whose weights sum to one, as in Shiryaev's statistic).
//! While the canary is at no time worse than stable by more than the harm margin, it exceeds
//! `1 / alpha` at any time with a probability of at most `alpha`.
//!
//! A cumulative sum of the same growth (Page 1954) shows when the canary began to look worse. The
//! sum starts anew when it falls to zero. Only what came since then is judged. The rules are those of
//! a whole step: there must be enough of it, it must lie beyond the harm margin, and it must not
//! rest on a few moments or on one caller. This is done for shares, but not for the pairs of a
//! shadow.

use super::{
    Measured, Scope, Window, as_share,
    bursts::{self, batch_of, lies_beyond},
    callers::{self, Others},
    explain, minimum,
};
use crate::{
    analysis::stats::{anytime::growth, mean::Doubt, normal::upper_quantile, proportion::Share},
    api::{
        canary_policy::Metric,
        prompt_release::{Batch, Batches, MetricStatus, Turn, TurnedSince, Verdict},
    },
};

/// The part of the error without an end that is spent on beginnings after the first collection.
const FOR_LATER: f64 = 0.2;
/// From this sum on the canary looks worse: 2.7 to 1.
const LOOKS_WORSE: f64 = 1.0;
/// From this sum on nothing passes: 20 to 1.
const DOUBT: f64 = 3.0;
/// A rollback needs at least this many batches since the canary began to look worse.
const LEAST: i32 = 3;
/// In each bet, stable's earlier share weighs as much as this many requests.
const REMEMBERED: f64 = 20.0;

/// What is left of `alpha` for the test that begins with the window.
pub(super) fn from_the_start(alpha: f64, window: &Window<'_>, own: &Measured) -> f64 {
    if is_followed(window, own) { alpha * (1.0 - FOR_LATER) } else { alpha }
}

fn is_followed(window: &Window<'_>, own: &Measured) -> bool {
    window.relative && !window.paired && own.grown().is_some()
}

/// What is known after another collection, of which `own` is what the window measured until now.
pub(super) fn follow(
    window: &Window<'_>,
    metric: &Metric,
    own: &Measured,
    before: Option<&MetricStatus>,
) -> Option<Turn> {
    let known = before.and_then(|b| b.turn.clone());
    let now = own.grown().filter(|_| is_followed(window, own)).map(batch_of);
    let Some(now) = now else { return known };
    let Some(mut turn) = known else { return Some(Turn { counted: now, ..Turn::default() }) };
    if fell(turn.counted, now) {
        return Some(Turn { counted: now, sum: 0.0, since: None, ..turn });
    }
    let batch = bursts::between(turn.counted, now);
    // Complete when both sides are in it.
    if batch.canary.count == 0 || batch.stable.count == 0 {
        return Some(turn);
    }
    let harm = metric.margin().harm;
    let shares = (as_share(batch.canary), as_share(batch.stable));
    let growth = growth(suggested(&turn), shares, harm) / own.effects.larger();
    // Kept within what JSON can hold; far beyond any threshold.
    turn.log_e = (with_another_beginning(&turn) + growth).clamp(-1e6, 1e6);
    turn.batches = turn.batches.saturating_add(1);
    turn.sum = (turn.sum + growth).clamp(0.0, 1e6);
    turn.counted = now;
    let looks_worse = turn.sum > 0.0;
    turn.since = turn.since.filter(|_| looks_worse).map(|mut since| {
        let stable = bursts::between(since.at, now).stable.value;
        bursts::take(&mut since.batches, batch, harm, stable);
        since
    });
    Some(turn)
}

/// Counts from elsewhere begin anew when what counts them does.
fn fell(past: Batch, now: Batch) -> bool {
    let fell = |past, now| {
        let (past, now) = (as_share(past), as_share(now));
        now.n < past.n || now.bad < past.bad
    };
    fell(past.canary, now.canary) || fell(past.stable, now.stable)
}

/// What the next batch is expected to be like: the canary and stable since the canary looks worse,
/// and a little what stable was before.
fn suggested(turn: &Turn) -> (Share, Share) {
    let since = turn.since.as_ref().map(|since| bursts::between(since.at, turn.counted));
    let Batch { canary, stable } = since.unwrap_or_default();
    let (canary, stable) = (as_share(canary), as_share(stable));
    let before = turn.counted.stable.value;
    let stable = Share { n: stable.n + REMEMBERED, bad: stable.bad + REMEMBERED * before };
    (canary, stable)
}

/// The evidence of all beginnings so far and of one more, with the next batch.
fn with_another_beginning(turn: &Turn) -> f64 {
    let next = f64::from(turn.batches) + 1.0;
    let weight = -(next * (next + 1.0)).ln();
    if turn.batches == 0 {
        return weight;
    }
    let larger = turn.log_e.max(weight);
    larger + ((turn.log_e - larger).exp() + (weight - larger).exp()).ln()
}

/// Fails a canary that turned bad.
pub(super) fn judge(
    (window, metric): (&Window<'_>, &Metric),
    scope: &Scope<'_>,
    others: &Others,
    before: Option<&MetricStatus>,
    status: &mut MetricStatus,
) {
    let Some(turn) = status.turn.clone().filter(|turn| turn.sum >= LOOKS_WORSE) else { return };
    if status.verdict == Verdict::Fail {
        return;
    }
    let own = &scope.own(metric, window.paired, before);
    let rests = || others.measured(metric, scope, own);
    let Some(since) = turn.since else {
        let counted = |rest: Measured| rest.grown().map(batch_of).unwrap_or_default();
        let without = rests().map(|(caller, rest)| (caller.to_owned(), counted(rest))).collect();
        let since = TurnedSince { at: turn.counted, without, batches: Batches::default() };
        status.turn = Some(Turn { since: Some(since), ..turn });
        return;
    };
    let Some(lately) = own.since(since.at) else { return };
    let alpha = window.open_alpha * FOR_LATER;
    if turn.log_e >= -alpha.ln() && shows_harm(&lately, &since.batches, status.harm, alpha) {
        let since_then = |caller: &str, rest: &Measured| {
            rest.since(since.without.get(caller).copied().unwrap_or(since.at))
        };
        let mut others = rests().map(|(caller, rest)| (caller, since_then(caller, &rest)));
        let sees_harm = |lately: &Measured| callers::see_harm(lately, status.harm);
        match others.find(|(_, lately)| !lately.as_ref().is_some_and(sees_harm)) {
            None => {
                status.verdict = Verdict::Fail;
                status.message = explain::turned(&lately, status);
            }
            Some((caller, others)) => {
                status.message = callers::turned_for_one(caller, others.as_ref(), status);
                status.caller = Some(caller.to_owned());
                if status.verdict == Verdict::Pass {
                    status.verdict = Verdict::Undecided;
                }
            }
        }
    }
}

/// What both sides showed since the canary began to look worse, while that is so clear that
/// nothing passes.
pub(super) fn in_doubt(metric: &MetricStatus) -> Option<Batch> {
    let turn = metric.turn.as_ref().filter(|turn| turn.sum >= DOUBT)?;
    let since = turn.since.as_ref().filter(|since| since.batches.count > 0)?;
    Some(bursts::between(since.at, turn.counted))
}

/// Whether what came `lately` is enough, and lies beyond the harm margin also without the worst
/// of its batches. Where few users make the design effect uncertain, it has to be sure, too.
fn shows_harm(lately: &Measured, batches: &Batches, harm: f64, alpha: f64) -> bool {
    let enough = batches.count >= LEAST && lately.smallest_side() >= minimum(lately);
    let sure = || {
        lately.freedom(Doubt::Stable).is_infinite()
            || lately.z_watched(harm) > upper_quantile(alpha)
    };
    let stands = || match bursts::few(batches) {
        Some(worst) => lately.without(worst).is_some_and(|rest| lies_beyond(&rest, harm)),
        None => lies_beyond(lately, harm),
    };
    enough && sure() && stands()
}

#[cfg(test)]
mod tests;
