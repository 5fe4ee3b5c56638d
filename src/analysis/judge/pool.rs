//! Evidence that is pooled over the steps of a canary: they are looks of one test.
//!
//! Consecutive steps with a weight, also with approvals between, are one window. Each step is
//! a stratum: canary and stable are compared within it (`stats::stratified`), because with the
//! weight also the time changes, and with that what happens to both.
//!
//! **Two clocks.** The first clock says how much of the error is spent: the share of the
//! *planned* sizes of the steps that was seen. A size is half the harmonic mean of both sides'
//! samples, so at 5 % weight a canary sample counts 0.95, at 50 % it counts 0.5. This clock
//! does not depend on the values that were measured. The second clock says how strongly two
//! looks are correlated: by their *information*, a stratum's size over its variance. When
//! stable's errors jump from 1 to 10 %, the same number of requests gives less information.
//!
//! **Between steps.** A step goes on to the next one when it has seen its own samples, the look at
//! their end was taken, and nothing speaks against the canary: no metric is shown to be
//! harmful, and none is observed beyond its accept margin in this step. So the samples of a step
//! bound what is risked before more users get the canary, and no step but the last has to
//! prove anything. A step whose own requests show sooner that a metric is within its margin
//! does not wait for the rest ([`shown`]). What a step sees beyond its samples is taken from the
//! last one, and what it sees less is seen there.
//!
//! **The end.** The canary is promoted when every metric is accepted over all steps
//! together, each step has been passed, and nothing speaks against it in the last. All metrics
//! may be accepted early: the steps that are left then end after a tenth of their samples
//! (at least [`LEAST`]).

use super::{Window, measure::Measured};
use crate::{
    analysis::stats::{normal::upper_quantile, stratified},
    api::{
        CanaryPolicySpec,
        canary_policy::{Metric, Pooling, Step},
        prompt_release::{InStep, MetricStatus, StepEvidence, Verdict},
    },
};

/// The fewest samples that a step ends with, when every metric was accepted before.
const LEAST: f64 = 20.0;
/// The smallest part of its own samples that it ends with then.
const LEAST_PART: f64 = 0.1;

/// A step whose evidence is pooled, as it is planned.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Planned {
    index: usize,
    samples: f64,
    /// The canary's share of the traffic.
    share: f64,
}

/// The steps whose evidence counts together, and which of these is the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    steps: Vec<Planned>,
    at: usize,
}

/// What means over several steps are worth, for each sample of the canary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Worth {
    /// Samples of a canary in one step that tell as much.
    pub canary: f64,
    /// The same of stable.
    pub stable: f64,
    /// Stable's samples.
    pub seen: f64,
}

/// What was seen of one metric in an earlier step of the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    /// The step's index in the policy.
    pub step: usize,
    /// Canary samples.
    pub samples: f64,
    /// The variance of one observation, in any unit that all steps share.
    pub variance: f64,
}

/// Where one metric is on its two clocks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clock {
    /// The share of the planned sizes that was seen, 1 or more at the end.
    pub time: f64,
    /// When each step began, how long it was, and the information of a unit of time in it.
    steps: Vec<[f64; 3]>,
}

impl Clock {
    /// The information at each of `times`, relative to that at the last.
    pub(super) fn information(&self, times: &[f64]) -> Vec<f64> {
        let at = |time: f64| {
            let of = |[start, long, rate]: &[f64; 3]| (time - start).clamp(0.0, *long) * rate;
            self.steps.iter().map(of).sum::<f64>()
        };
        let all = times.last().map_or(1.0, |time| at(*time));
        times.iter().map(|time| at(*time) / all).collect()
    }
}

impl Pool {
    /// The pool that step `index` belongs to; none of a step without a weight, of one that
    /// is alone in its pool, and where the policy wants each step to stand alone.
    pub(in crate::analysis) fn of(policy: &CanaryPolicySpec, index: usize) -> Option<Self> {
        let steps = Self::around(policy, index)?;
        let at = steps.iter().position(|s| s.index == index)?;
        Some(Self { steps, at })
    }

    /// Whether step `entered` goes on with the test of step `left`. Both may be approvals in
    /// a pool.
    pub fn goes_on(policy: &CanaryPolicySpec, left: usize, entered: usize) -> bool {
        let before = Self::around(policy, left);
        before.is_some() && before == Self::around(policy, entered)
    }

    /// The steps that are pooled around `index`, which are two or more.
    fn around(policy: &CanaryPolicySpec, index: usize) -> Option<Vec<Planned>> {
        let is_shadow = |step: &Step| step.shadow.is_some();
        let here = policy.steps.get(index)?;
        if policy.analysis.evidence != Pooling::Pooled || is_shadow(here) {
            return None;
        }
        let first = policy.steps[..index].iter().rposition(is_shadow).map_or(0, |i| i + 1);
        let block = policy.steps.iter().enumerate().skip(first).take_while(|(_, s)| !is_shadow(s));
        let planned = |(index, step): (usize, &Step)| {
            let (weight, samples) = (step.weight?, step.samples?);
            Some(Planned { index, samples: samples as f64, share: f64::from(weight) / 100.0 })
        };
        let steps: Vec<Planned> = block.filter_map(planned).collect();
        (steps.len() > 1).then_some(steps)
    }

    /// The number of steps that are no window of their own, because they are pooled with an
    /// earlier one.
    pub(super) fn pooled_away(policy: &CanaryPolicySpec) -> usize {
        let pools = (0..policy.steps.len()).filter_map(|index| Self::of(policy, index));
        pools.filter(|pool| pool.at > 0).count()
    }

    /// How many steps it has.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Which of its steps the window is, from 0.
    pub(in crate::analysis) fn at(&self) -> usize {
        self.at
    }

    /// Whether no step comes after the window.
    pub fn is_last(&self) -> bool {
        self.at + 1 == self.steps.len()
    }

    /// How many canary requests the window judges, after those of the `earlier` steps: the last
    /// one sees what these did not, and less where they saw more.
    pub(super) fn horizon(&self, earlier: &[StepEvidence]) -> f64 {
        let Some(here) = self.steps.get(self.at) else { return 0.0 };
        if !self.is_last() {
            return here.samples;
        }
        // As in `clock`: a step that counted nothing since the first one that did is seen later.
        let is_of = |e: &StepEvidence, step: &Planned| usize::try_from(e.step) == Ok(step.index);
        let first = self.steps.iter().position(|s| earlier.iter().any(|e| is_of(e, s)));
        let left = |step: &Planned| {
            let seen = earlier.iter().find(|e| is_of(e, step));
            let seen = seen.map_or(0.0, |e| e.canary.requests as f64);
            (step.samples - seen) * (1.0 - step.share) / (1.0 - here.share)
        };
        here.samples + self.steps[first.unwrap_or(self.at)..self.at].iter().map(left).sum::<f64>()
    }

    /// How many canary samples of a metric the window wants. Scores come by themselves: their
    /// number is divided over the steps as the requests are.
    pub(in crate::analysis) fn wanted(&self, metric: &Metric) -> f64 {
        self.steps.get(self.at).map_or(0.0, |step| self.wanted_in(step, metric))
    }

    fn wanted_in(&self, step: &Planned, metric: &Metric) -> f64 {
        let all: f64 = self.steps.iter().map(|s| s.samples).sum();
        let scores = metric.score.as_ref().map(|s| (s.min_samples as f64).min(all));
        scores.map_or(step.samples, |scores| (scores * step.samples / all).ceil())
    }

    /// The size that all steps from `first` on are planned to have for a metric.
    fn planned(&self, first: usize, metric: &Metric) -> f64 {
        let steps = self.steps.iter().filter(|s| s.index >= first);
        steps.map(|s| self.wanted_in(s, metric) * (1.0 - s.share)).sum()
    }

    /// How many samples the window takes when every metric is accepted at `time` of a test
    /// that began with step `first`.
    pub(super) fn taken_until(&self, first: usize, time: f64) -> f64 {
        let size = |step: &Planned| step.samples * (1.0 - step.share);
        let counted = || self.steps.iter().filter(|step| step.index >= first);
        let Some(here) = self.steps.get(self.at) else { return 0.0 };
        let before: f64 = counted().filter(|s| s.index < here.index).map(size).sum();
        let all: f64 = counted().map(size).sum();
        let part = ((time * all - before) / size(here).max(1e-9)).clamp(0.0, 1.0);
        (part * here.samples).max(least(here.samples))
    }

    /// Where a metric is. `earlier` are the steps before, of which the first one began the
    /// test; `samples` were seen in the window, with this variance of one.
    pub(super) fn clock(
        &self,
        metric: &Metric,
        earlier: &[Seen],
        samples: f64,
        variance: f64,
    ) -> Clock {
        let here = self.steps.get(self.at).map_or(0, |s| s.index);
        let first = earlier.first().map_or(here, |seen| seen.step);
        let all = self.planned(first, metric).max(1e-9);
        let now = Seen { step: here, samples, variance };
        let (mut end, mut steps) = (0.0, vec![]);
        for step in self.steps.iter().filter(|s| (first..=here).contains(&s.index)) {
            let wanted = self.wanted_in(step, metric);
            let planned = wanted * (1.0 - step.share) / all;
            let seen = earlier.iter().find(|s| s.step == step.index).copied();
            let seen = if step.index == here { Some(now) } else { seen };
            let long = seen.map_or(0.0, |s| s.samples / wanted.max(1e-9) * planned);
            let long = if long.is_finite() { long } else { 0.0 };
            let rate = seen.map_or(0.0, |s| 1.0 / s.variance.max(1e-9));
            steps.push([end, long, rate]);
            end += long;
        }
        // The parts of a whole need not sum up to 1 exactly.
        let time = if (end - 1.0).abs() < 1e-9 { 1.0 } else { end };
        Clock { time, steps }
    }

    /// What the means over the steps up to this one are worth, for each of the canary's samples
    /// in them (`stratified::means`).
    pub(in crate::analysis) fn worth(&self) -> Worth {
        let steps = || self.steps[..=self.at].iter();
        let sides = |s: &Planned| [s.samples, s.samples * (1.0 - s.share) / s.share];
        let size = |s: &Planned| stratified::size(sides(s)[0], sides(s)[1]);
        let all: f64 = steps().map(size).sum();
        let samples: f64 = steps().map(|s| s.samples).sum();
        let worth = |side: usize| {
            let of = |s: &Planned| (size(s) / all).powi(2) / sides(s)[side];
            1.0 / steps().map(of).sum::<f64>() / samples
        };
        let stable = steps().map(|s| sides(s)[1]).sum::<f64>() / samples;
        Worth { canary: worth(0), stable: worth(1), seen: stable }
    }

    /// The samples of the steps before this one, and the share of the traffic that the canary
    /// has in all up to it, on average over its samples: one step with that share and all of
    /// the samples would have the size that these steps have together.
    pub(in crate::analysis) fn together(&self) -> (i64, f64) {
        let steps = &self.steps[..=self.at];
        let samples: f64 = steps.iter().map(|s| s.samples).sum();
        let exposed: f64 = steps.iter().map(|s| s.samples * s.share).sum();
        let earlier: f64 = steps[..self.at].iter().map(|s| s.samples).sum();
        (earlier as i64, exposed / samples.max(1.0))
    }
}

/// How many of `wanted` samples a step sees at least.
fn least(wanted: f64) -> f64 {
    (wanted * LEAST_PART).max(LEAST).min(wanted)
}

/// The variance of one observation in a stratum of shares, canary's and stable's; 1 when it has
/// none.
pub(super) fn variance_of(pair: Option<[crate::analysis::stats::proportion::Share; 2]>) -> f64 {
    let Some([canary, stable]) = pair.filter(|[c, s]| c.n > 0.0 && s.n > 0.0) else { return 1.0 };
    stratified::size(canary.n, stable.n) / stratified::information([canary, stable])
}

/// Whether the window alone, of which `seen` samples were seen, shows that the metric is
/// within its accept margin. It opens a gate and accepts nothing, and still must not open it
/// by luck: what a lucky step leaves out is seen under a later step's noise. So the boundary
/// is that of O'Brien and Fleming at any time, which a Brownian motion reaches by the end twice
/// as often as it is beyond it then (reflection principle).
pub(super) fn shown(window: &Window<'_>, metric: &Metric, own: &Measured, seen: f64) -> bool {
    let Some(pool) = &window.pool else { return false };
    let wanted = pool.wanted(metric);
    let boundary = upper_quantile(window.accept_alpha / 2.0) / (seen / wanted).sqrt();
    seen >= least(wanted)
        && own.smallest_side() >= super::minimum(own)
        && own.z_accept(metric.margin().accept) < -boundary
}

/// What the metrics of a window say together. In a pool, a canary that is accepted still has
/// to be seen in each step, and a step goes on that has its samples and nothing against it.
pub fn verdict(window: &Window<'_>, metrics: &[MetricStatus]) -> Verdict {
    let verdict = super::combine(metrics);
    let Some(pool) = &window.pool else { return verdict };
    if !matches!(verdict, Verdict::Pass | Verdict::Undecided) {
        return verdict;
    }
    let has_least = |s: InStep| s.seen as f64 >= least(s.wanted as f64);
    let was_seen = |m: &MetricStatus| m.guard || m.in_step.is_none_or(has_least);
    let passes = verdict == Verdict::Pass && metrics.iter().all(was_seen);
    let was_closed =
        |m: &MetricStatus| m.guard || m.in_step.map_or(m.verdict == Verdict::Pass, |s| s.closed);
    let decided_nothing = |m: &MetricStatus| {
        matches!(m.verdict, Verdict::Pass | Verdict::Undecided)
            && m.floor_on_both_sides.is_none()
            && m.caller.is_none()
    };
    let goes_on = !pool.is_last()
        && super::doubt(metrics).is_none()
        && metrics.iter().all(|m| was_closed(m) && (m.guard || decided_nothing(m)));
    match against(metrics) {
        None if passes || goes_on => Verdict::Pass,
        _ => Verdict::Undecided,
    }
}

/// A metric that is observed beyond its accept margin in this step.
pub fn against(metrics: &[MetricStatus]) -> Option<&MetricStatus> {
    let beyond = |m: &&MetricStatus| {
        m.in_step.and_then(|s| s.difference).is_some_and(|difference| difference > m.accept)
    };
    metrics.iter().find(beyond)
}

#[cfg(test)]
mod tests;
