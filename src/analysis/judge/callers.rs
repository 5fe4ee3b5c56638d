//! No verdict rests on one caller: who chooses sticky keys and requests can make any
//! difference, on either side.
//!
//! For each caller with less than two thirds of the requests, the metric is measured again
//! without it. A failure stands when the rest shows it, too: with as many observations as
//! any verdict needs, beyond the harm margin by more than chance ([`REST_Z`]). To demand that the rest alone passes the boundary of the test
//! would take up to twice as many samples to find a canary that is bad for everybody. A
//! pass stands when the rest, of which there must be some, does not fail and is observed
//! below the accept margin.
//!
//! What does not stand is undecided, names the caller, and is looked at again with every
//! collection. With one caller, or one that sends most of the requests, there is
//! nobody to ask, and the rule is silent.

use std::cell::OnceCell;

use super::{
    Boundaries, Evidence, MINIMUM_OF_MEANS, Measured, Scope, Test, Window, clock, minimum,
};
use crate::{
    analysis::callers::{minorities, without},
    api::{
        canary_policy::Metric,
        prompt_release::{Counts, MetricStatus, StepEvidence, Verdict},
    },
};

/// By how many standard errors the rest must be beyond the harm margin: the chance of that
/// is 5 % when it is at the margin, and far less when it is like stable.
const REST_Z: f64 = 1.645;

/// What all others sent, for each caller that may not decide alone. Computed for all metrics
/// together, once a verdict asks for it.
#[derive(Default)]
pub(super) struct Others(OnceCell<Vec<WithoutOne>>);

/// What is left without one caller.
struct WithoutOne {
    caller: String,
    /// Stable's and the canary's.
    counts: [Counts; 2],
    /// Of the steps that are pooled.
    earlier: Vec<StepEvidence>,
}

impl Others {
    fn of(&self, scope: &Scope<'_>) -> &[WithoutOne] {
        let of = |caller: &str| {
            let (counts, earlier) = scope.without(|counts| without(counts, caller));
            WithoutOne { caller: caller.to_owned(), counts, earlier }
        };
        let [stable, canary] = scope.whole();
        self.0.get_or_init(|| minorities(stable, canary).into_iter().map(of).collect())
    }

    /// What is left of the window's measures without each of them. Counts of Prometheus know
    /// no callers.
    pub(super) fn measured<'a>(
        &'a self,
        metric: &'a Metric,
        scope: &'a Scope<'_>,
        own: &'a Measured,
    ) -> impl Iterator<Item = (&'a str, Measured)> {
        let others = if metric.prometheus.is_some() { &[] } else { self.of(scope) };
        others.iter().map(|WithoutOne { caller, counts: [stable, canary], .. }| {
            let rest = Scope::new(Evidence { stable, canary, earlier: &[], ..scope.own });
            (caller.as_str(), own.of_rest(metric, scope, &rest))
        })
    }
}

/// Takes back a verdict that rests on one caller.
pub(super) fn attribute(
    (window, metric): (&Window<'_>, &Metric),
    scope: &Scope<'_>,
    others: &Others,
    before: Option<&MetricStatus>,
    critical: &mut Boundaries,
    status: &mut MetricStatus,
) {
    if window.paired || metric.prometheus.is_some() {
        return;
    }
    let verdict = status.verdict;
    if !matches!(verdict, Verdict::Fail | Verdict::Pass) {
        return;
    }
    let others = others.of(scope);
    if others.is_empty() {
        return;
    }
    let own = &scope.own(metric, false, before);
    let all = scope.together(own, metric, before);
    let clock = clock((window, metric), scope, before, own);
    let test = Test { window, clock: clock.as_ref() };
    let mut cause: Option<(f64, &str, Measured)> = None;
    for WithoutOne { caller, counts: [stable, canary], earlier } in others {
        let rest = &Scope::new(Evidence { stable, canary, earlier, ..scope.own });
        let own_rest = own.of_rest(metric, scope, rest);
        let rest = all.together_of_rest(&own_rest, metric, [scope, rest], before);
        let stands = if verdict == Verdict::Fail {
            // What the step alone showed, the others may show there or in all steps.
            failure_stands(metric, own, &own_rest, status.harm)
                || failure_stands(metric, own, &rest, status.harm)
        } else {
            pass_stands(&test, &rest, critical, status)
        };
        // The one without which the difference is smallest, or for a pass largest.
        let sign = if verdict == Verdict::Fail { 1.0 } else { -1.0 };
        let difference = sign * rest.difference().unwrap_or(f64::NEG_INFINITY);
        if !stands && cause.as_ref().is_none_or(|(least, ..)| difference < *least) {
            cause = Some((difference, caller, rest));
        }
    }
    let Some((_, caller, rest)) = cause else { return };
    let is_last = status.looks.last().is_some_and(|t| *t >= 1.0);
    status.verdict = if is_last { Verdict::Inconclusive } else { Verdict::Undecided };
    status.caller = Some(caller.to_owned());
    status.message = message(caller, verdict, status, &rest, scope.whole()[1]);
}

/// Whether others see the harm, too.
fn failure_stands(metric: &Metric, measured: &Measured, rest: &Measured, harm: f64) -> bool {
    if measured.beyond_floor(metric).is_some() {
        return rest.looks_beyond_floor(metric);
    }
    see_harm(rest, harm)
}

pub(super) fn see_harm(rest: &Measured, harm: f64) -> bool {
    let enough = rest.smallest_side() >= minimum(rest);
    enough && rest.difference().is_some() && rest.z_harm(harm) > REST_Z
}

/// Whether others see a canary that can be accepted, too: enough of them, or a few lucky
/// requests would be no second opinion.
fn pass_stands(
    test: &Test<'_>,
    rest: &Measured,
    critical: &mut Boundaries,
    status: &MetricStatus,
) -> bool {
    let [harm_z, _] = critical.last(test, &status.looks);
    rest.smallest_count() >= MINIMUM_OF_MEANS
        && rest.difference().is_some_and(|d| d < status.accept)
        && rest.z_harm(status.harm) <= harm_z
}

/// The canary turned bad, and what the `others` sent since then does not show it.
pub(super) fn turned_for_one(
    caller: &str,
    others: Option<&Measured>,
    status: &MetricStatus,
) -> String {
    let others = others.map_or_else(
        || "of the others nothing is known".to_owned(),
        |others| of_others(others, status),
    );
    format!("it began to look worse because of one caller, {caller}; {others}. {HELD}")
}

const HELD: &str = "It is held while that is so: abort or promote it to end this";

fn of_others(others: &Measured, status: &MetricStatus) -> String {
    let [canary, stable] = [others.canary, others.stable].map(|side| status.unit.sample(side));
    format!("of the others: canary {canary}, stable {stable}")
}

fn message(
    caller: &str,
    verdict: Verdict,
    status: &MetricStatus,
    rest: &Measured,
    canary: &Counts,
) -> String {
    let own = canary.callers.get(caller).map_or(0, |c| c.ended());
    let what = if verdict == Verdict::Fail { "looks worse" } else { "looks as good as stable" };
    let (all, others) = (canary.ended(), of_others(rest, status));
    format!(
        "the canary {what} because of one caller, {caller}, with {own} of {all} canary requests; {others}. {HELD}"
    )
}

#[cfg(test)]
mod tests;
