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
//! does not wait for the rest ([`shown`]). What a step sees less than its samples is seen in the last
//! one. What it sees beyond them, because the canary looked worse or another metric's samples came
//! later, takes at most half of the time of the steps after it: these see their own
//! samples, and no test ends before the last step, but for a metric that all the planned samples
//! leave beyond its accept margin.
//!
//! **The end.** The canary is promoted when every metric is accepted over all steps
//! together, each step has been passed, and nothing speaks against it in the last. All metrics
//! may be accepted early: the steps that are left then end after a tenth of their samples
//! (at least [`LEAST`]).

mod clock;

pub(super) use self::clock::{Clock, Seen};
use self::clock::{Course, Lap};
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

impl Planned {
    fn size(&self) -> f64 {
        self.samples * (1.0 - self.share)
    }
}

/// The steps whose evidence counts together, and which of these is the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    steps: Vec<Planned>,
    at: usize,
}

/// What a difference over several steps is worth, for each sample of the canary; of both sides
/// the canary's first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::analysis) struct Worth {
    /// Samples in one step that tell as much as those of all.
    pub sides: [f64; 2],
    /// Stable's samples.
    pub seen: f64,
    /// How many others of its user a sample has if there is one user: with more users as many
    /// times less. Users of a step with a small weight are among those of one with a larger.
    pub alike: [f64; 2],
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

    /// The index of the window in the policy.
    pub(super) fn here(&self) -> usize {
        self.steps.get(self.at).map_or(0, |step| step.index)
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
    /// one sees what these did not.
    pub(super) fn horizon(&self, earlier: &[StepEvidence]) -> f64 {
        let Some(here) = self.steps.get(self.at) else { return 0.0 };
        if !self.is_last() {
            return here.samples;
        }
        // As in `clock`: a step that counted nothing since the first one that did is seen later.
        let is_of = |e: &StepEvidence, step: &Planned| usize::try_from(e.step) == Ok(step.index);
        let first = self.steps.iter().position(|s| earlier.iter().any(|e| is_of(e, s)));
        let first = first.unwrap_or(self.at);
        let all = self.size(first);
        let mut course = Course::default();
        for step in &self.steps[first..self.at] {
            let seen = earlier.iter().find(|e| is_of(e, step));
            let seen = seen.map_or(0.0, |e| e.canary.requests as f64);
            course.lap(step.size() / all, seen / step.samples.max(1.0), false);
        }
        (1.0 - course.end) / (course.scale() * here.size() / all) * here.samples
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

    /// The size that all steps from the `first` of the pool on are planned to have.
    fn size(&self, first: usize) -> f64 {
        self.steps[first..].iter().map(Planned::size).sum()
    }

    /// The size that all steps from `first` on are planned to have for a metric.
    fn planned(&self, first: usize, metric: &Metric) -> f64 {
        let steps = self.steps.iter().filter(|s| s.index >= first);
        steps.map(|s| self.wanted_in(s, metric) * (1.0 - s.share)).sum()
    }

    /// How many samples the window takes when every metric is accepted at `time` of a test
    /// that began with step `first`.
    pub(super) fn taken_until(&self, first: usize, time: f64) -> f64 {
        let size = Planned::size;
        let counted = || self.steps.iter().filter(|step| step.index >= first);
        let Some(here) = self.steps.get(self.at) else { return 0.0 };
        let before: f64 = counted().filter(|s| s.index < here.index).map(size).sum();
        let all: f64 = counted().map(size).sum();
        let part = ((time * all - before) / size(here).max(1e-9)).clamp(0.0, 1.0);
        (part * here.samples).max(least(here.samples))
    }

    /// Where a metric is. `earlier` are the steps before, of which the first one began the
    /// test; `now` is what was seen in the window, and whether that `speaks_against` the canary.
    pub(super) fn clock(
        &self,
        metric: &Metric,
        earlier: &[Seen],
        now: Seen,
        speaks_against: bool,
    ) -> Clock {
        let here = self.here();
        let first = earlier.first().map_or(here, |seen| seen.step);
        let all = self.planned(first, metric).max(1e-9);
        let (mut course, mut sizes, mut steps) = (Course::default(), 0.0, vec![]);
        for step in self.steps.iter().filter(|s| (first..=here).contains(&s.index)) {
            let wanted = self.wanted_in(step, metric);
            let planned = wanted * (1.0 - step.share) / all;
            let seen = earlier.iter().find(|s| s.step == step.index).copied();
            let seen = if step.index == here { Some(now) } else { seen };
            let part = seen.map_or(0.0, |s| s.samples / wanted.max(1e-9));
            let part = if part.is_finite() { part } else { 0.0 };
            sizes += part * planned;
            let ends = step.index == here && (self.is_last() || speaks_against && sizes >= 1.0);
            let (start, scale) = (course.end, course.scale());
            let long = course.lap(planned, part, ends);
            let information = seen.map_or(0.0, |s| 1.0 / s.variance.max(1e-9));
            let standing = (part * planned - long / scale) * information;
            steps.push(Lap { start, long, rate: information / scale, standing });
        }
        let end = course.end;
        // The parts of a whole need not sum up to 1 exactly.
        let time = if (end - 1.0).abs() < 1e-9 { 1.0 } else { end };
        Clock { time, steps }
    }

    /// What the difference over the steps up to this one is worth (`stratified`,
    /// `Side::over` in `judge::effect`).
    pub(in crate::analysis) fn worth(&self) -> Worth {
        let steps = || self.steps[..=self.at].iter();
        let sides = |s: &Planned| [s.samples, s.samples * (1.0 - s.share) / s.share];
        let all: f64 = steps().map(Planned::size).sum();
        let samples: f64 = steps().map(|s| s.samples).sum();
        let worth = |side: usize| {
            let of = |s: &Planned| (s.size() / all).powi(2) / sides(s)[side];
            1.0 / steps().map(of).sum::<f64>()
        };
        let alike = |side: usize| {
            let share = |s: &Planned| if side == 0 { s.share } else { 1.0 - s.share };
            let mut shares: Vec<f64> = steps().map(share).collect();
            shares.sort_by(f64::total_cmp);
            // Of users with a place below `place` of the side: all their samples, by weights that
            // sum up to 1.
            let of_user = |place: f64, weight: &dyn Fn(&Planned) -> f64| {
                let of = |s: &Planned| weight(s) / share(s);
                steps().filter(|s| share(s) >= place).map(of).sum::<f64>()
            };
            let squares = |weight: &dyn Fn(&Planned) -> f64| {
                let widths = shares.iter().scan(0.0, |last, place| {
                    let width = place - *last;
                    *last = *place;
                    Some(width * of_user(*place, weight).powi(2))
                });
                widths.sum::<f64>()
            };
            let total: f64 = steps().map(|s| sides(s)[side]).sum();
            let of_difference = squares(&|s| s.size() / all) * worth(side);
            of_difference.max(squares(&|s| sides(s)[side] / total) * total)
        };
        let seen = steps().map(|s| sides(s)[1]).sum::<f64>() / samples;
        let sides = [0, 1].map(|side| worth(side) / samples);
        Worth { sides, seen, alike: [0, 1].map(|side| alike(side) / samples) }
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
