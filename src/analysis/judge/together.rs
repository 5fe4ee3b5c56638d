//! One metric over all steps whose evidence is pooled.

use std::cell::OnceCell;

use super::{
    Evidence, Measured, Window,
    effect::Strata,
    pool::{Seen, variance_of},
};
use crate::{
    analysis::{
        evidence,
        external::{External, Externals},
        stats::proportion::Share,
    },
    api::{
        canary_policy::Metric,
        prompt_release::{Counts, ExternalCounts, MetricStatus, Sample, StepEvidence},
    },
};

/// The evidence of a window, and that of the steps that are pooled with it.
pub(super) struct Scope<'a> {
    /// Of the window.
    pub own: Evidence<'a>,
    whole: OnceCell<[Counts; 2]>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(own: Evidence<'a>) -> Self {
        Self { own, whole: OnceCell::new() }
    }

    /// Stable's and the canary's counts of the window.
    pub(super) fn own_counts(&self) -> [&Counts; 2] {
        [self.own.stable, self.own.canary]
    }

    /// Stable's and the canary's counts of all steps together.
    pub(super) fn whole(&self) -> [&Counts; 2] {
        let Evidence { stable, canary, earlier, .. } = self.own;
        if earlier.is_empty() {
            return [stable, canary];
        }
        let sum = |own: &Counts, of: fn(&StepEvidence) -> &Counts| {
            earlier.iter().fold(own.clone(), |mut all, step| {
                evidence::add(&mut all, of(step));
                all
            })
        };
        let whole = || [sum(stable, |s| &s.stable), sum(canary, |s| &s.canary)];
        self.whole.get_or_init(whole).each_ref()
    }

    /// What the window alone measured.
    pub(super) fn own(
        &self,
        metric: &Metric,
        paired: bool,
        before: Option<&MetricStatus>,
    ) -> Measured {
        let mut own = Measured::of(metric, &self.own, paired, self.later(before).as_ref());
        // What stable's choice costs is counted in the step that chose.
        own.frozen = own.frozen.or_else(|| before.and_then(|b| b.frozen));
        own
    }

    /// What is known before this step: that the threshold was chosen in an earlier one.
    fn later(&self, before: Option<&MetricStatus>) -> Option<MetricStatus> {
        let frozen = before?.frozen.filter(|_| self.own.earlier.is_empty());
        let threshold = before?.threshold;
        Some(MetricStatus { threshold, frozen, ..MetricStatus::default() })
    }

    /// What all steps measured together; `own` is what the window did.
    pub(super) fn together(
        &self,
        own: &Measured,
        metric: &Metric,
        before: Option<&MetricStatus>,
    ) -> Measured {
        if self.own.earlier.is_empty() || metric.margin.is_none() {
            return own.clone();
        }
        let parts = self.parts(metric, own.threshold, before);
        let of_all = || {
            let [stable, canary] = self.whole();
            let whole = Evidence { stable, canary, earlier: &[], ..self.own };
            let known = MetricStatus { threshold: own.threshold, ..MetricStatus::default() };
            Measured::plain(metric, &whole, false, Some(&known))
        };
        let counted_elsewhere = metric.prometheus.is_some();
        let whole = if counted_elsewhere { own.clone() } else { of_all() };
        let earlier = self.own.earlier.iter().map(|step| [&*step.stable, &*step.canary]);
        let each = earlier.chain([self.own_counts()]).collect();
        let strata = Strata { each, whole: self.whole(), accept: metric.margin().accept };
        own.pooled_with(&parts, whole).with_effects(metric, &strata)
    }

    /// What each earlier step measured.
    fn parts(
        &self,
        metric: &Metric,
        threshold: Option<f64>,
        before: Option<&MetricStatus>,
    ) -> Vec<Measured> {
        let frozen = before.and_then(|b| b.frozen);
        let of = |(i, step): (usize, &StepEvidence)| {
            let frozen = frozen.filter(|_| i == 0);
            let before = MetricStatus { threshold, frozen, ..MetricStatus::default() };
            let external = externals(step);
            let StepEvidence { stable, canary, .. } = step;
            let evidence =
                Evidence { stable, canary, external: &external, pending: 0, earlier: &[] };
            Measured::plain(metric, &evidence, false, Some(&before))
        };
        self.own.earlier.iter().enumerate().map(of).collect()
    }

    /// What the clock of a metric needs to know of the earlier steps.
    pub(super) fn seen(
        &self,
        window: &Window<'_>,
        metric: &Metric,
        before: Option<&MetricStatus>,
    ) -> Vec<Seen> {
        let threshold = before.and_then(|b| b.threshold);
        let parts = self.parts(metric, threshold, before);
        let of = |(step, measured): (&StepEvidence, &Measured)| {
            let counted = Evidence { stable: &step.stable, canary: &step.canary, ..self.own };
            Seen {
                step: usize::try_from(step.step).unwrap_or_default(),
                samples: window.seen(metric, &counted, measured),
                variance: measured.variance(),
            }
        };
        self.own.earlier.iter().zip(&parts).map(of).collect()
    }

    /// Without one caller, whose counts `without` takes away.
    pub(super) fn without(
        &self,
        without: impl Fn(&Counts) -> Counts,
    ) -> ([Counts; 2], Vec<StepEvidence>) {
        let Evidence { stable, canary, earlier, .. } = self.own;
        let step = |step: &StepEvidence| StepEvidence {
            stable: without(&step.stable).into(),
            canary: without(&step.canary).into(),
            ..step.clone()
        };
        ([without(stable), without(canary)], earlier.iter().map(step).collect())
    }
}

fn externals(step: &StepEvidence) -> Externals {
    let share = |sample: Sample| {
        let n = sample.count as f64;
        Share { n, bad: (sample.value * n).round().clamp(0.0, n) }
    };
    let of = |(name, counts): (&String, &ExternalCounts)| {
        let (stable, canary) = (share(counts.stable), share(counts.canary));
        (name.clone(), External::Shares { stable, canary })
    };
    step.external.iter().map(of).collect()
}

impl Measured {
    /// The variance of one observation of a share; 1 of anything else.
    pub(super) fn variance(&self) -> f64 {
        variance_of(self.pair())
    }
}
