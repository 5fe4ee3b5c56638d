//! What a table shows of a running canary: of a list, a printer column shows one item.

use crate::api::PromptReleaseStatus;

/// Brings the texts of `status` up to date with the rest of it.
pub(super) fn fill_in(status: &mut PromptReleaseStatus) {
    let Some(canary) = &status.canary else {
        status.step.clear();
        status.metrics.clear();
        return;
    };
    let step = canary.step + 1;
    status.step = match (&status.previous, canary.steps) {
        (Some(_), _) => "bake".to_owned(),
        (None, steps) if steps < step => step.to_string(),
        (None, steps) => format!("{step}/{steps}"),
    };
    let asked_for = status.analysis.iter().filter(|metric| !metric.guard);
    let each = asked_for.map(|metric| format!("{} {:?}", metric.metric, metric.verdict));
    status.metrics = each.collect::<Vec<_>>().join(", ");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::prompt_release::{CanaryStatus, MetricStatus, VariantRef, Verdict};

    #[test]
    fn a_table_shows_the_step_and_every_metric_of_a_running_canary_only() {
        let metric = |name: &str, verdict| MetricStatus {
            metric: name.into(),
            verdict,
            ..MetricStatus::default()
        };
        let guard = MetricStatus { guard: true, ..metric("refusals", Verdict::NoData) };
        let mut status = PromptReleaseStatus {
            canary: Some(CanaryStatus { step: 1, steps: 4, ..CanaryStatus::default() }),
            analysis: vec![
                metric("errors", Verdict::Pass),
                metric("cost", Verdict::Undecided),
                guard,
            ],
            ..PromptReleaseStatus::default()
        };
        let mut texts = |change: fn(&mut PromptReleaseStatus)| {
            change(&mut status);
            fill_in(&mut status);
            (status.step.clone(), status.metrics.clone())
        };
        let metrics = "errors Pass, cost Undecided".to_owned();
        assert_eq!(texts(|_| ()), ("2/4".to_owned(), metrics.clone()));
        assert_eq!(texts(|s| s.previous = Some(VariantRef::default())), ("bake".into(), metrics));
        assert_eq!(texts(|s| s.canary = None), (String::new(), String::new()));
    }
}
