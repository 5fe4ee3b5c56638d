//! Releases as text for people.

use std::fmt::Write;

use jiff::Timestamp;
use kube::ResourceExt;

use super::{UNSEEN, is_observed};
use crate::{
    analysis::evidence,
    api::{
        PromptRelease, PromptReleaseStatus, conditions,
        prompt_release::{
            HandledRequest, HistoryEntry, JudgedTime, MetricStatus, Paired, Remaining, VariantRef,
            Verdict,
        },
    },
    app::{evidence_bar, numbers::in_days, table::table},
    prompt::short,
};

/// Columns of an evidence bar.
const BAR: usize = 33;

fn strings<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// How long ago, in the largest unit that is at least two.
pub(super) fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "-".to_owned() };
    let seconds = (now - since).get_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(super) fn variant(variant: &VariantRef) -> String {
    format!("{} on {} ({})", variant.prompt, variant.backend, short(&variant.revision))
}

fn status(release: &PromptRelease) -> PromptReleaseStatus {
    release.status.clone().unwrap_or_default()
}

/// One release a row.
pub(super) fn list(releases: &[PromptRelease], namespaces: bool, now: Timestamp) -> String {
    let mut rows = vec![strings(["NAME", "PHASE", "STABLE", "CANARY", "STEP", "WEIGHT", "AGE"])];
    for release in releases {
        let status = status(release);
        let name = |v: &VariantRef| format!("{} ({})", v.prompt, short(&v.revision));
        let canary = status.canary.as_ref();
        rows.push(vec![
            release.name_any(),
            format!("{:?}", status.phase),
            status.stable.as_ref().map_or_else(|| "-".to_owned(), name),
            canary.map_or_else(|| "-".to_owned(), |c| name(&c.variant)),
            canary.map_or_else(|| "-".to_owned(), |c| (c.step + 1).to_string()),
            canary.map_or_else(|| "-".to_owned(), |c| format!("{}%", c.weight)),
            age(release.creation_timestamp().map(|t| t.0), now),
        ]);
    }
    if namespaces {
        rows[0].insert(0, "NAMESPACE".to_owned());
        for (row, release) in rows.iter_mut().skip(1).zip(releases) {
            row.insert(0, release.namespace().unwrap_or_default());
        }
    }
    table(&rows)
}

/// Where a release is, in one line.
pub(super) fn line(release: &PromptRelease) -> String {
    let status = status(release);
    let mut line = format!("{:<16}", format!("{:?}", status.phase));
    if let Some(canary) = &status.canary {
        let copies = status.routing.variants.iter().find_map(|v| v.copies);
        let copied = copies.map(|percent| format!(" (copies of {percent} %)"));
        let (weight, prompt) = (canary.weight, &canary.variant.prompt);
        let _ = write!(line, " {weight:>3} % {prompt}{}", copied.unwrap_or_default());
    }
    for metric in &status.analysis {
        let _ = write!(line, " | {} {}", metric.metric, metric.verdict.word());
    }
    let ready = conditions::find(&status.conditions, conditions::types::READY);
    if let Some(ready) = ready {
        let _ = write!(line, " | {}", ready.message);
    }
    line
}

/// Everything that matters about a release.
pub(super) fn description(release: &PromptRelease, now: Timestamp) -> String {
    let status = status(release);
    let mut out = table(&head(release, &status, now));
    if !status.analysis.is_empty() {
        let _ = write!(
            out,
            "\nEvidence of this step: passes left of A, fails right of H\n{}",
            bars(&status.analysis)
        );
        // While it collects, the interval says it all.
        let telling = |m: &&MetricStatus| {
            let collects = m.verdict == Verdict::Undecided && m.interval.is_some();
            !m.message.is_empty() && (!collects || m.caller.is_some())
        };
        for metric in status.analysis.iter().filter(telling) {
            let _ = writeln!(out, "  {}: {}", metric.metric, metric.message);
        }
    }
    if let Some(canary) = status.canary.as_ref().filter(|canary| !canary.passed.is_empty()) {
        out.push_str("\nSteps that passed: the canary (stable)\n");
        out.extend(canary.passed.iter().map(|line| format!("  {line}\n")));
    }
    if !status.history.is_empty() {
        let mut rows = vec![strings(["  AGO", "PROMPT", "BACKEND", "REVISION", "OUTCOME", "WHY"])];
        for entry in status.history.iter().rev() {
            let who = entry.requests.iter().map(|r| format!("; {} by {}", r.action, r.by));
            rows.push(vec![
                format!("  {}", age(Some(entry.at), now)),
                entry.variant.prompt.clone(),
                entry.variant.backend.clone(),
                short(&entry.variant.revision).to_owned(),
                format!("{:?}", entry.outcome),
                format!("{}{}", entry.message, who.collect::<String>()),
            ]);
        }
        let _ = write!(out, "\nHistory\n{}", table(&rows));
    }
    if !status.requests.is_empty() {
        let mut rows = vec![strings(["  AGO", "REQUEST", "REVISION", "BY", "ANSWER"])];
        for request in status.requests.iter().rev() {
            let refused = format!("refused: {}", request.message);
            let answer = if request.accepted { "done" } else { &refused };
            rows.push(vec![
                format!("  {}", age(Some(request.at), now)),
                request.action.clone(),
                short(&request.revision).to_owned(),
                request.by.clone(),
                answer.to_owned(),
            ]);
        }
        let _ = write!(out, "\nRequests\n{}", table(&rows));
    }
    out
}

/// What was served, the latest first, with the evidence of each canary.
pub(super) fn history(entries: &[HistoryEntry], now: Timestamp) -> String {
    let mut out = String::new();
    for entry in entries.iter().rev() {
        let _ = writeln!(
            out,
            "{} ({} ago)  {:?}  {}\n  {}: {}",
            entry.at.strftime("%Y-%m-%d %H:%M:%SZ"),
            age(Some(entry.at), now),
            entry.outcome,
            variant(&entry.variant),
            entry.reason,
            entry.message
        );
        for HandledRequest { action, by, .. } in &entry.requests {
            let _ = writeln!(out, "  {action} by {by}");
        }
        out.extend(entry.evidence.iter().map(|line| format!("  {line}\n")));
    }
    out
}

fn head(release: &PromptRelease, status: &PromptReleaseStatus, now: Timestamp) -> Vec<Vec<String>> {
    let name = format!("{}/{}", release.namespace().unwrap_or_default(), release.name_any());
    let mut rows = vec![
        vec!["Release:".to_owned(), name],
        vec!["Route:".to_owned(), release.route()],
        vec!["Phase:".to_owned(), format!("{:?}", status.phase)],
    ];
    if let Some(ready) = conditions::find(&status.conditions, conditions::types::READY) {
        rows.push(vec!["Why:".to_owned(), format!("{}: {}", ready.reason, ready.message)]);
    }
    if !is_observed(release) {
        rows.push(vec!["Warning:".to_owned(), UNSEEN.to_owned()]);
    }
    let of_canary = status.canary.is_some();
    for (type_, counts) in [
        (conditions::types::DECIDABLE, of_canary),
        (conditions::types::KEYS_SPREAD, of_canary),
        (conditions::types::SNAPSHOTS_KEPT, true),
    ] {
        let known = conditions::find(&status.conditions, type_);
        if let Some(told) = known.filter(|c| c.status == "False" && counts) {
            rows.push(vec!["Warning:".to_owned(), format!("{}: {}", told.reason, told.message)]);
        }
    }
    if let Some(uncounted) = status.canary.as_ref().map(|c| c.uncounted).filter(|n| *n > 0) {
        let note =
            format!("{uncounted} requests of more than 128 gateway processes are not counted");
        rows.push(vec!["Warning:".to_owned(), note]);
    }
    for (title, side) in [("Stable:", &status.stable), ("Previous:", &status.previous)] {
        if let Some(side) = side {
            rows.push(vec![title.to_owned(), variant(side)]);
        }
    }
    if let Some(canary) = &status.canary {
        rows.push(vec!["Canary:".to_owned(), variant(&canary.variant)]);
        let place = format!(
            "step {}, {} % of traffic, since {}{}",
            canary.step + 1,
            canary.weight,
            age(Some(canary.entered_at), now),
            canary.held.as_ref().map(|h| format!(", held: {h}")).unwrap_or_default()
        );
        rows.push(vec!["At:".to_owned(), place]);
        rows.push(vec!["Judged:".to_owned(), judged_time(&canary.clock, now)]);
        if let Some(left) = canary.remaining.as_ref().filter(|_| canary.held.is_none()) {
            rows.push(vec!["Left:".to_owned(), left_text(left)]);
        }
    }
    let routing = &status.routing;
    let shares: Vec<String> = routing
        .variants
        .iter()
        .map(|v| match v.copies {
            Some(percent) => {
                format!("copies of {percent} % to {:?} {}", v.role, short(&v.revision))
            }
            None => format!("{} % {:?} {}", v.weight, v.role, short(&v.revision)),
        })
        .collect();
    let followed =
        format!("generation {}, followed by {} gateways", routing.generation, routing.observed_by);
    let traffic = match shares.as_slice() {
        [] => "none: nothing is served".to_owned(),
        shares => format!("{} ({followed})", shares.join(", ")),
    };
    rows.push(vec!["Traffic:".to_owned(), traffic]);
    if let Some(paired) = &evidence::totals(&status.evidence).1.paired {
        rows.push(vec!["Shadow:".to_owned(), shadow(paired)]);
    }
    rows
}

/// How much time counts for the canary's deadlines.
fn judged_time(time: &JudgedTime, now: Timestamp) -> String {
    let stopped = time
        .stopped
        .as_ref()
        .map(|why| format!("; no time counts since {}: {why}", age(time.stopped_since, now)));
    format!(
        "{} of this step, {} of the canary{}",
        in_days(time.step.0),
        in_days(time.canary.0),
        stopped.unwrap_or_default()
    )
}

/// What is left until the canary is promoted.
pub(super) fn left_text(left: &Remaining) -> String {
    let time =
        left.time.map_or_else(String::new, |time| format!(", {} at this rate", in_days(time.0)));
    format!("about {} more requests{time}, if it goes on like this", left.requests)
}

/// What the copies of this step gave, and what they cost on top of what users cost.
fn shadow(paired: &Paired) -> String {
    let unpriced = match paired.unpriced {
        0 => String::new(),
        n => format!(" and an unknown price of {n}"),
    };
    format!(
        "{} pairs, {} copies without a pair, ${:.4}{unpriced} for copies in this step",
        paired.errors.pairs(),
        paired.dropped,
        paired.spent_usd
    )
}

fn bars(metrics: &[MetricStatus]) -> String {
    let mut rows =
        vec![strings(["  METRIC", "STABLE", "CANARY", "DIFFERENCE", "INTERVAL", "", "VERDICT"])];
    for metric in metrics {
        let d = |value: f64| metric.unit.difference(value);
        let interval = metric.interval.map(|[low, high]| format!("{} to {}", d(low), d(high)));
        rows.push(vec![
            format!("  {}", metric.metric),
            evidence_bar::side(metric, &metric.stable),
            evidence_bar::side(metric, &metric.canary),
            metric.difference.map_or_else(|| "-".to_owned(), d),
            interval.unwrap_or_else(|| "-".to_owned()),
            evidence_bar::draw(metric, BAR),
            metric.verdict.word().to_owned(),
        ]);
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::GoDuration;
    use crate::api::prompt_release::{
        CanaryStatus, Counts, InstanceEvidence, PairTable, RoutedVariant, Sample, Unit, VariantRole,
    };

    #[test]
    fn the_description_tells_where_why_and_by_how_much() {
        let mut release = PromptRelease::new("support", Default::default());
        release.metadata.namespace = Some("shop".into());
        let time = Some(GoDuration::from_secs(7_200));
        let remaining = Some(Remaining { requests: 340, time });
        release.status = Some(PromptReleaseStatus {
            canary: Some(CanaryStatus { remaining, ..CanaryStatus::default() }),
            analysis: vec![MetricStatus {
                metric: "errors".into(),
                verdict: Verdict::Fail,
                unit: Unit::Share,
                message: "the canary is worse".into(),
                stable: Sample { count: 1000, value: 0.01 },
                canary: Sample { count: 200, value: 0.2 },
                difference: Some(0.19),
                interval: Some([0.1, 0.28]),
                harm: 0.02,
                accept: 0.05,
                ..MetricStatus::default()
            }],
            ..PromptReleaseStatus::default()
        });
        let text = description(&release, Timestamp::UNIX_EPOCH);
        for part in [
            "shop/support",
            "20.0 % of 200",
            "+19.0 points",
            "+10.0 points to +28.0 points",
            "FAIL",
            "about 340 more requests, 2h at this rate, if it goes on like this",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let canary = release.status.as_mut().and_then(|s| s.canary.as_mut()).unwrap();
        canary.held = Some("NoData".into());
        assert!(!description(&release, Timestamp::UNIX_EPOCH).contains("more requests"));
    }

    #[test]
    fn a_shadow_is_told_with_its_pairs_and_its_cost() {
        let mut release = PromptRelease::new("support", Default::default());
        let routed = |revision: &str, role, weight, copies| RoutedVariant {
            revision: revision.into(),
            role,
            weight,
            copies,
        };
        let paired = Paired {
            errors: PairTable { neither: 120, canary_only: 3, ..PairTable::default() },
            spent_usd: 0.4321,
            dropped: 7,
            unpriced: 2,
            ..Paired::default()
        };
        let canary = Counts { paired: Some(paired), ..Counts::default() }.into();
        let mut status = PromptReleaseStatus {
            evidence: vec![InstanceEvidence { canary, ..InstanceEvidence::default() }],
            ..PromptReleaseStatus::default()
        };
        status.routing.variants = vec![
            routed("9f3a", VariantRole::Stable, 100, None),
            routed("41cc", VariantRole::Shadow, 0, Some(10)),
        ];
        release.status = Some(status);
        let text = description(&release, Timestamp::UNIX_EPOCH);
        for part in [
            "100 % Stable 9f3a, copies of 10 % to Shadow 41cc (",
            "123 pairs, 7 copies without a pair, $0.4321 and an unknown price of 2 for copies",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn ages_are_short() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let ago = |s: i64| age(Timestamp::from_second(1_000_000 - s).ok(), now);
        assert_eq!([ago(5), ago(300), ago(7_300), ago(400_000)], ["5s", "5m", "2h", "4d"]);
    }
}
