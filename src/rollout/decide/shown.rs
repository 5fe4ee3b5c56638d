//! What a step has shown, in a line that outlives it: a person who approves reads what passed,
//! and the history says what a promotion was based on.

use std::fmt::Write;

use crate::api::{
    conditions::truncate,
    prompt_release::{CanaryStatus, MetricStatus, Verdict},
};

/// A line is not longer.
const LONGEST: usize = 768;

/// What the canary shows in its step or bake, for example `step 2/3 at 25 %: errors pass, 1.2 %
/// of 300 (1.0 % of 900)`: of each metric the verdict, the canary, and in brackets what it is
/// compared with. None when nothing was counted.
pub(super) fn in_a_line(canary: &CanaryStatus, analysis: &[MetricStatus]) -> Option<String> {
    // What is compared in every policy is told when it decides.
    let told = |metric: &&MetricStatus| !metric.guard || metric.verdict == Verdict::Fail;
    let counted = |metric: &MetricStatus| metric.canary.count > 0 || metric.stable.count > 0;
    if !analysis.iter().any(counted) {
        return None;
    }
    let mut line = if canary.step < canary.steps || canary.steps == 0 {
        let steps = if canary.steps > 0 { format!("/{}", canary.steps) } else { String::new() };
        format!("step {}{steps} at {} %", canary.step + 1, canary.weight)
    } else {
        "bake".to_owned()
    };
    if analysis.iter().any(|metric| metric.in_step.is_some()) {
        line.push_str(", all steps together");
    }
    line.push(':');
    for (place, metric) in analysis.iter().filter(told).enumerate() {
        let between = if place == 0 { "" } else { ";" };
        let _ = write!(line, "{between} {} {}", metric.metric, metric.verdict.word());
        if counted(metric) {
            let [new, old] = [metric.canary, metric.stable].map(|side| metric.unit.sample(side));
            let _ = write!(line, ", {new} ({old})");
        }
    }
    Some(truncate(&line, LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::prompt_release::{InStep, Sample, Unit};

    fn errors() -> MetricStatus {
        MetricStatus {
            metric: "errors".into(),
            verdict: Verdict::Pass,
            canary: Sample { count: 300, value: 0.012 },
            stable: Sample { count: 900, value: 0.01 },
            ..MetricStatus::default()
        }
    }

    #[test]
    fn a_line_has_the_step_and_both_sides_of_each_metric() {
        let mut canary = CanaryStatus { step: 1, steps: 3, weight: 25, ..CanaryStatus::default() };
        let (cost, guard) = (
            MetricStatus { metric: "cost".into(), unit: Unit::Relative, ..MetricStatus::default() },
            MetricStatus { metric: "refusals".into(), guard: true, ..errors() },
        );
        let mut analysis = vec![errors(), cost, guard];
        assert_eq!(
            in_a_line(&canary, &analysis).unwrap(),
            "step 2/3 at 25 %: errors pass, 1.2 % of 300 (1.0 % of 900); cost no data"
        );
        analysis[0].in_step = Some(InStep::default());
        analysis[2].verdict = Verdict::Fail;
        canary.step = 3;
        let line = in_a_line(&canary, &analysis).unwrap();
        assert!(line.starts_with("bake, all steps together: errors pass"), "{line}");
        assert!(line.ends_with("; refusals FAIL, 1.2 % of 300 (1.0 % of 900)"), "{line}");
        assert_eq!(in_a_line(&canary, &analysis[1..2]), None);
        assert_eq!(in_a_line(&canary, &[]), None);
    }

    #[test]
    fn a_line_ends_somewhere() {
        let canary = CanaryStatus::default();
        let many = vec![MetricStatus { metric: "m".repeat(32), ..errors() }; 16];
        let line = in_a_line(&canary, &many).unwrap();
        assert!(line.starts_with("step 1 at 0 %:") && line.len() <= LONGEST + 3, "{}", line.len());
    }
}
