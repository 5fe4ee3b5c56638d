//! Why a release is where it is, in sentences: what is compared, what that shows, what is
//! missing, and what a person can do.

use std::fmt::Write;

use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    UNSEEN, is_observed,
    text::{age, left_text, variant},
};
use crate::{
    api::{
        PromptRelease, PromptReleaseSpec, PromptReleaseStatus, conditions,
        prompt_release::{MetricStatus, Phase, Unit, Verdict},
    },
    prompt::short,
    rollout::resolve::is_missing,
};

/// What each reason means.
const REASONS: &str = include_str!("../../../docs/reasons.md");

/// What a reason means and what to do; none when there is no such reason.
pub(super) fn reason(word: &str) -> Option<String> {
    let mut out = String::new();
    for row in REASONS.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
        let reasons = cells.next().unwrap_or_default();
        let mut reasons = reasons.split(", ").map(|reason| reason.trim_matches('`'));
        if let Some(word) = reasons.find(|reason| reason.eq_ignore_ascii_case(word)) {
            let [means, remedy] = [cells.next(), cells.next()].map(|c| plain(c.unwrap_or("-")));
            let _ = write!(out, "{word}\n  What it means: {means}\n  What to do:    {remedy}\n");
        }
    }
    (!out.is_empty()).then_some(out)
}

/// That this is no reason, and which it is like.
pub(super) fn no_reason(name: &str) -> String {
    let word = name.to_lowercase();
    let known = REASONS.lines().filter_map(|line| line.strip_prefix("| `"));
    let known = known.flat_map(|line| line.split(" | ").next().unwrap_or_default().split(", "));
    let like = known
        .map(|reason| reason.trim_matches('`'))
        .map(|reason| (strsim::jaro_winkler(&reason.to_lowercase(), &word), reason))
        .filter(|(likeness, _)| *likeness > 0.9)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    let like = like.map_or_else(String::new, |(_, reason)| format!(" (do you mean {reason}?)"));
    format!("{name} is no reason of a condition{like}")
}

/// A text without the marks of Markdown: of a link its words.
fn plain(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, link)) = rest.split_once('[') {
        out.push_str(before);
        match link.split_once("](").and_then(|(words, to)| Some((words, to.split_once(')')?.1))) {
            Some((words, after)) => {
                out.push_str(words);
                rest = after;
            }
            None => {
                out.push('[');
                rest = link;
            }
        }
    }
    out.push_str(rest);
    out.replace('`', "").replace("\\|", "|")
}

/// A release in sentences. `at` is what commands have to name to find it.
pub(super) fn release(release: &PromptRelease, at: &str, now: Timestamp) -> String {
    let (name, status) = (release.name_any(), release.status.clone().unwrap_or_default());
    let mut out = String::new();
    match &status.stable {
        Some(stable) => {
            let _ = writeln!(out, "{name} serves {}.", variant(stable));
        }
        None => _ = writeln!(out, "{name} serves nothing."),
    }
    if let Some(canary) = &status.canary {
        let new = variant(&canary.variant);
        let since = age(Some(canary.entered_at), now);
        let _ = match status.phase {
            Phase::Baking | Phase::Promoting => writeln!(
                out,
                "{new} was promoted {since} ago and is compared with what served before."
            ),
            _ => writeln!(
                out,
                "{new} is its canary: {} % of the users have it in step {} of {}, for {since} now.",
                canary.weight,
                canary.step + 1,
                canary.steps.max(canary.step + 1)
            ),
        };
    }
    if !is_observed(release) {
        let _ = writeln!(out, "\nNot seen yet: {UNSEEN}");
    }
    if let Some(ready) = conditions::find(&status.conditions, conditions::types::READY) {
        let _ = writeln!(out, "\n{}: {}", ready.reason, ready.message);
        if ready.status != "True"
            && let Some(known) = reason(&ready.reason)
        {
            out.extend(known.lines().skip(1).map(|line| format!("{line}\n")));
        }
    }
    if !status.analysis.is_empty() {
        out.push_str("\nWhat is compared\n");
        for metric in &status.analysis {
            let _ = writeln!(out, "  {}: {}", metric.metric, of_metric(metric));
        }
    }
    if let Some(canary) = status.canary.as_ref().filter(|canary| !canary.passed.is_empty()) {
        out.push_str("\nWhat has passed\n");
        out.extend(canary.passed.iter().map(|line| format!("  {line}\n")));
    }
    out.push_str("\nWhat comes next\n");
    for line in next(&name, at, &release.spec, &status) {
        let _ = writeln!(out, "  {line}");
    }
    out
}

/// What one metric shows, and what it takes to decide.
fn of_metric(metric: &MetricStatus) -> String {
    let word = metric.verdict.word();
    let (Some([low, high]), Some(difference)) = (metric.interval, metric.difference) else {
        let sides = (metric.canary.count > 0).then(|| sides(metric));
        let told = [sides, Some(metric.message.clone()).filter(|told| !told.is_empty())];
        let told = told.into_iter().flatten().collect::<Vec<_>>().join("; ");
        return if told.is_empty() { word.to_owned() } else { format!("{word}. {told}") };
    };
    let d = |value: f64| metric.unit.difference(value);
    let mut text = format!(
        "{word}. {}. The difference is {}, and lies between {} and {}. It passes when all of that \
         is below {}, and fails when all of it is above {}",
        sides(metric),
        d(difference),
        d(low),
        d(high),
        d(metric.accept),
        d(metric.harm)
    );
    if metric.verdict == Verdict::Undecided {
        if let Some(chance) = metric.chance {
            let _ = write!(
                text,
                "; the chance to pass if it goes on like this is {:.0} %",
                chance * 100.0
            );
        }
    } else if !metric.message.is_empty() {
        let _ = write!(text, ". {}", metric.message);
    }
    text.push('.');
    text
}

fn sides(metric: &MetricStatus) -> String {
    let bad = if metric.unit == Unit::Share { " were bad" } else { "" };
    let [canary, stable] = [metric.canary, metric.stable].map(|side| metric.unit.sample(side));
    format!("Of the canary {canary}{bad}, of stable {stable}")
}

/// What happens by itself, and what a person can do.
fn next(
    name: &str,
    at: &str,
    spec: &PromptReleaseSpec,
    status: &PromptReleaseStatus,
) -> Vec<String> {
    let command = |action: &str, revision: &str| {
        format!("serinus {action} {at}{name} --revision {}", short(revision))
    };
    if let Some(canary) = &status.canary {
        let revision = &canary.variant.revision;
        let left = canary.remaining.as_ref().filter(|_| canary.held.is_none()).map(left_text);
        let mut lines: Vec<String> = left.into_iter().collect();
        if status.phase == Phase::AwaitingApproval || canary.held.is_some() {
            lines.push(format!("to let it go on:   {}", command("approve", revision)));
        }
        if status.previous.is_none() {
            lines.push(format!("to skip the rest:  {}", command("promote", revision)));
        }
        lines.push(format!("to take it back:   {}", command("abort", revision)));
        return lines;
    }
    let ready = conditions::find(&status.conditions, conditions::types::READY);
    match (&status.failed_revision, status.phase) {
        (Some(failed), Phase::RolledBack | Phase::RollingBack) => vec![
            format!("{} stays out. Name a corrected PromptVersion in the spec,", short(failed)),
            format!("or, when you know better: {}", command("retry", failed)),
        ],
        _ if spec.suspend => {
            vec!["nothing, until spec.suspend is false".to_owned()]
        }
        _ if ready.is_some_and(|ready| is_missing(&ready.reason)) => {
            vec!["it begins by itself, when all that the spec names exists".to_owned()]
        }
        (_, Phase::Stable) => {
            vec!["nothing, until the spec names another prompt or backend".to_owned()]
        }
        _ => vec![format!("`serinus watch {at}{name}` shows what comes of it")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::prompt_release::{CanaryStatus, Sample, VariantRef};

    #[test]
    fn every_reason_of_the_documentation_can_be_explained() {
        let words: Vec<&str> = REASONS
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .flat_map(|line| line.split(" | ").next().unwrap_or_default().split(", "))
            .map(|word| word.trim_matches('`'))
            .filter(|word| word.chars().all(|c| c.is_ascii_alphanumeric()))
            .collect();
        assert!(words.len() > 60, "{}", words.len());
        for word in words {
            let told = reason(word).unwrap_or_else(|| panic!("{word} is not explained"));
            assert!(!told.contains("](") && !told.contains('`'), "{told}");
        }
        assert_eq!(reason("support"), None);
        assert_eq!(reason("nodata"), reason("NoData"));
        assert!(no_reason("NoDatta").contains("do you mean NoData?"));
        assert!(!no_reason("support").contains("do you mean"));
        assert!(reason("NoData").unwrap().contains("is there traffic on the route?"));
    }

    #[test]
    fn a_canary_is_told_with_its_margins_and_what_can_be_done() {
        let mut object = PromptRelease::new("support", Default::default());
        let canary = VariantRef {
            revision: "41cc0123456789".into(),
            prompt: "support-v2".into(),
            backend: "openai".into(),
        };
        object.status = Some(PromptReleaseStatus {
            phase: Phase::AwaitingApproval,
            canary: Some(CanaryStatus {
                variant: canary,
                step: 1,
                steps: 3,
                weight: 25,
                passed: vec!["step 1/3 at 5 %: errors pass".into()],
                ..CanaryStatus::default()
            }),
            analysis: vec![MetricStatus {
                metric: "errors".into(),
                verdict: Verdict::Undecided,
                canary: Sample { count: 200, value: 0.02 },
                stable: Sample { count: 1000, value: 0.01 },
                difference: Some(0.01),
                interval: Some([-0.01, 0.03]),
                harm: 0.02,
                accept: 0.05,
                chance: Some(0.9),
                ..MetricStatus::default()
            }],
            ..PromptReleaseStatus::default()
        });
        let text = release(&object, "--folder x ", Timestamp::UNIX_EPOCH);
        for part in [
            "support serves nothing.",
            "25 % of the users have it in step 2 of 3",
            "Of the canary 2.0 % of 200 were bad, of stable 1.0 % of 1000",
            "passes when all of that is below +5.0 points, and fails when all of it is above +2.0",
            "the chance to pass if it goes on like this is 90 %",
            "  step 1/3 at 5 %: errors pass",
            "serinus approve --folder x support --revision 41cc012345",
            "serinus abort --folder x support --revision 41cc012345",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
