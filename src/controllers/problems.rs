//! Releases that are not well: told when that changes, counted and shown while it lasts.

use std::{collections::BTreeMap, fmt::Write};

use kube::ResourceExt;

use crate::{
    api::{
        PromptRelease, PromptReleaseStatus,
        conditions::{self, Condition, on_one_line, printable},
    },
    rollout::{
        Effect,
        decide::{is_told, problem, reason_label},
    },
};

/// A message is cut here: it may quote what is wrong.
const LONGEST: usize = 900;
/// More lines than this are counted and not shown.
const SHOWN: usize = 100;

/// That something is wrong with a release, that something else is, or that it is over.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// Whether the release does not go on by itself.
    pub stands: bool,
    /// Whether something is wrong now.
    pub warning: bool,
    /// The reason of the Ready condition now.
    pub reason: String,
    /// On one line.
    pub note: String,
}

/// What people are told when the status of a release changes from `before` to `now`, besides
/// `effects`. Only another reason is news: messages have counts in them.
pub fn news(
    before: Option<&PromptReleaseStatus>,
    now: &PromptReleaseStatus,
    effects: &[Effect],
) -> Option<News> {
    let ready = conditions::find(&now.conditions, conditions::types::READY)?;
    let known =
        before.and_then(|before| conditions::find(&before.conditions, conditions::types::READY));
    if known.is_some_and(|known| known.reason == ready.reason) || is_told(effects, &ready.reason) {
        return None;
    }
    let Condition { reason, message, .. } = ready;
    let warning = problem(now).is_some();
    let note = match before.and_then(problem) {
        _ if warning => message.clone(),
        Some(over) => format!("no {} now: {message}", over.reason),
        None => return None,
    };
    let (reason, note) = (reason.clone(), on_one_line(&note, LONGEST));
    Some(News { stands: ready.status == "False", warning, reason, note })
}

/// Counts of releases that are not well, by reason.
pub(super) fn count<'a>(
    releases: impl IntoIterator<Item = &'a PromptRelease>,
) -> BTreeMap<&'static str, i64> {
    let mut counts = BTreeMap::new();
    for ready in releases.into_iter().filter_map(|r| problem(r.status.as_ref()?)) {
        *counts.entry(reason_label(&ready.reason)).or_insert(0) += 1;
    }
    counts
}

/// A line for each release that is not well, the first by name where there are many.
pub(super) fn text<'a>(releases: impl IntoIterator<Item = &'a PromptRelease>) -> String {
    let unwell = releases.into_iter().filter_map(|release| {
        let ready = problem(release.status.as_ref()?)?;
        Some((release.namespace().unwrap_or_default(), release.name_any(), ready))
    });
    let mut unwell: Vec<_> = unwell.collect();
    unwell.sort_unstable_by(|(a, b, _), (c, d, _)| (a, b).cmp(&(c, d)));
    let mut text = String::new();
    for (namespace, name, Condition { reason, message, .. }) in unwell.iter().take(SHOWN) {
        let (reason, message) = (printable(reason), on_one_line(message, LONGEST));
        // Writing to a String does not fail.
        let _ = writeln!(text, "PromptRelease {namespace}/{name}: {reason}: {message}");
    }
    let more = unwell.len().saturating_sub(SHOWN);
    if more > 0 {
        let _ = writeln!(text, "and {more} more: the metric serinus_operator_problems has all");
    }
    text
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kube::api::ObjectMeta;

    use super::*;
    use crate::api::{
        conditions::Readiness::{self, InProgress, NotReady, Ready, Stalled},
        prompt_release::Phase,
    };

    fn status(
        phase: Phase,
        readiness: Readiness,
        (reason, message): (&str, &str),
    ) -> PromptReleaseStatus {
        let mut status = PromptReleaseStatus { phase, ..PromptReleaseStatus::default() };
        let now = Timestamp::UNIX_EPOCH;
        conditions::set(&mut status.conditions, readiness, reason, message, 1, now);
        status
    }

    fn announced(reason: &str) -> Effect {
        Effect::Announce { warning: false, reason: reason.into(), note: "is told".into() }
    }

    fn news_of(told: (bool, bool), reason: &str, note: &str) -> Option<News> {
        let (stands, warning) = told;
        Some(News { stands, warning, reason: reason.into(), note: note.into() })
    }

    #[test]
    fn a_problem_is_told_when_it_begins_when_it_is_another_one_and_when_it_is_over() {
        let missing = status(Phase::Pending, Stalled, ("PromptNotFound", "create\nit"));
        let waits = status(Phase::Initializing, InProgress, ("BackendNotReady", "refused"));
        let serves = status(Phase::Stable, Ready, ("Stable", "a on b serves"));
        let told = news(None, &missing, &[]);
        assert_eq!(told, news_of((true, true), "PromptNotFound", "create it"));
        let told = news(Some(&missing), &waits, &[]);
        assert_eq!(told, news_of((false, true), "BackendNotReady", "refused"));
        let told = news(Some(&waits), &serves, &[]);
        let over = "no BackendNotReady now: a on b serves";
        assert_eq!(told, news_of((false, false), "Stable", over));
        assert_eq!(news(None, &serves, &[]), None);
    }

    #[test]
    fn another_message_is_no_news_nor_what_is_announced_already() {
        let held = |message| status(Phase::Held, InProgress, ("NoData", message));
        let runs = status(Phase::Progressing, InProgress, ("Progressing", "step 1"));
        assert_eq!(news(Some(&held("for 5m")), &held("for 6m"), &[]), None);
        assert_eq!(news(Some(&runs), &held("for 5m"), &[announced("NoData")]), None);
        // Only the reason changes from one step of a canary to the next.
        let advanced = status(Phase::Progressing, InProgress, ("StepAdvanced", "step 2"));
        assert_eq!(news(Some(&runs), &advanced, &[]), None);
        let waits = status(Phase::Initializing, InProgress, ("BackendNotReady", "refused"));
        let serves = status(Phase::Stable, Ready, ("Stable", "a on b serves"));
        assert_eq!(news(Some(&waits), &serves, &[announced("FirstRelease")]), None);
        // It serves, and something else is wrong: that is not in the announcement.
        let without = status(Phase::Stable, Stalled, ("PolicyNotFound", "create it"));
        let told = news(None, &without, &[announced("FirstRelease")]);
        assert_eq!(told, news_of((true, true), "PolicyNotFound", "create it"));
        // A canary that failed has left with an announcement, before it is at rest.
        let leaving = status(Phase::RollingBack, InProgress, ("MetricFailed", "errors"));
        let left = status(Phase::RolledBack, Stalled, ("MetricFailed", "errors"));
        assert_eq!(news(Some(&leaving), &left, &[]), None);
    }

    #[test]
    fn releases_that_are_not_well_are_counted_and_the_first_of_them_shown() {
        let release = |name: String, status: PromptReleaseStatus| PromptRelease {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some("shop".to_owned()),
                ..ObjectMeta::default()
            },
            status: Some(status),
            ..PromptRelease::default()
        };
        let missing = || status(Phase::Pending, Stalled, ("PromptNotFound", "create\nit"));
        let mut all: Vec<PromptRelease> =
            (0..150).rev().map(|i| release(format!("r{i:03}"), missing())).collect();
        let suspended = status(Phase::Pending, NotReady, ("Suspended", "spec.suspend is true"));
        all.push(release("a".to_owned(), suspended));
        let odd = status(Phase::Pending, Stalled, ("OfNextYear", "who knows"));
        all.push(release("z".to_owned(), odd));
        all.push(release("b".to_owned(), status(Phase::Stable, Ready, ("Stable", "serves"))));
        all.push(PromptRelease { status: None, ..release("c".to_owned(), missing()) });
        let counts = [("Other", 1), ("PromptNotFound", 150), ("Suspended", 1)];
        assert_eq!(count(&all), BTreeMap::from(counts));
        let shown = text(&all);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), SHOWN + 1);
        assert_eq!(lines[0], "PromptRelease shop/a: Suspended: spec.suspend is true");
        assert_eq!(lines[1], "PromptRelease shop/r000: PromptNotFound: create it");
        assert!(lines[SHOWN].starts_with("and 52 more"), "{}", lines[SHOWN]);
        assert_eq!(text(&[]), "");
    }
}
