//! `serinus plan`: with my traffic, when is an equal canary promoted, what does a bad one cost
//! until it is out, and what can I not see?

use std::{fmt::Write, path::PathBuf};

use serde_json::Value;

use super::{
    Loaded, Setup,
    simulate::{on_all_cores, write},
};
use crate::{
    analysis::{
        plan::{self, Assumptions, Plan, StepPlan, duration},
        simulation::{
            canary::{End, Outcome, Setting},
            characteristics::{After, Characteristics, Estimate, outcomes},
            plot,
            truth::{Truth, Worse},
        },
    },
    api::{
        CanaryPolicySpec, GoDuration,
        canary_policy::{Metric, Step},
        prompt_release::Unit,
    },
    app::{numbers::between, table::table},
    rollout::resolve,
};

/// In seconds.
const DAY: f64 = 86_400.0;
/// So many canaries are simulated of each kind: shares are known to ±7 points.
const RUNS: usize = 200;
const SEED: u64 = 1;
/// Points of a curve.
const POINTS: usize = 25;
/// What happens once in n requests is not among 3 n of them in one of 20 cases (rule of three:
/// Hanley and Lippman-Hand, JAMA 249, 1983).
const RULE_OF: i64 = 3;

/// How to plan.
#[derive(clap::Args)]
pub struct PlanOptions {
    #[command(flatten)]
    setup: Setup,
    /// The days in which a canary like stable should be promoted: what is recommended has
    /// steps for that, where this traffic allows it.
    #[arg(long, value_name = "DAYS", default_value_t = 7.0, value_parser = between(1e-3..=3650.0))]
    within: f64,
    /// Write when a canary like stable is promoted, and a bad one rolled back, as an SVG
    /// picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// `serinus plan`: answers whether the policy can decide.
///
/// # Errors
/// There is no such policy, or the picture can not be written.
pub fn plan(options: &PlanOptions) -> anyhow::Result<bool> {
    let (setup, assumed) = (&options.setup, options.setup.assumptions());
    let Loaded { policy, without_data } = setup.load()?;
    let (policy, refused) = match resolve::measurable(&policy, &without_data) {
        Ok(measurable) => {
            for w in &without_data {
                println!("{} is left out of the default metrics: {}\n", w.metric, w.why);
            }
            (measurable, None)
        }
        Err(why) => (policy, Some(why)),
    };
    let mut plan = plan::plan(&policy, &assumed, Some(setup.rps));
    let starts = refused.is_none();
    if let Some(why) = refused {
        plan.promotes = 0.0;
        plan.problems.insert(0, format!("no canary starts: {why}"));
    }
    let rate = setup.rps;
    let within = options.within * DAY;
    let is_good = plan.problems.is_empty() && plan.hints.is_empty();
    let better = (starts && !(is_good && plan.seconds(rate) <= within))
        .then(|| plan::fitting(&policy, &assumed, rate, within))
        .filter(|better| *better != policy);
    let lives = |policy| Lives::of(policy, rate, assumed);
    let mut pictured = vec![];
    println!("{}", plan_text(&policy, &plan, rate));
    if starts {
        let given = lives(&policy);
        println!("{}", given.text());
        pictured.push(("this policy", given));
    }
    println!("{}", unseen_text(&policy, &plan));
    if let Some(better) = &better {
        let again = plan::plan(better, &assumed, Some(rate));
        println!(
            "Recommended:\n\n{}\n{}",
            changes_text(&policy, better),
            steps_text(&again, better, rate)
        );
        println!("{}\n", promise_text(&again, rate));
        let recommended = lives(better);
        println!("{}", recommended.text());
        pictured.push(("recommended", recommended));
    }
    if let Some(file) = &options.svg {
        write(file, &picture(&pictured))?;
    }
    Ok(plan.problems.is_empty())
}

fn plan_text(policy: &CanaryPolicySpec, plan: &Plan, rate: f64) -> String {
    let mut out = steps_text(plan, policy, rate);
    let _ = writeln!(out, "{}", promise_text(plan, rate));
    let rates = &policy.analysis.error_rates;
    let _ = writeln!(
        out,
        "It is rolled back wrongly in at most {} % of cases; one that is worse by an accept margin is promoted in at most {} %.",
        rates.false_rollback * 100.0,
        rates.false_promotion * 100.0
    );
    for (title, list) in [
        ("\nThis policy can not decide:", &plan.problems),
        ("\nIt may often end without an answer:", &plan.hints),
        ("\nWhat to know:", &plan.notes),
    ] {
        if !list.is_empty() {
            let _ = writeln!(out, "{title}");
            for line in list.iter() {
                let _ = writeln!(out, "  - {line}");
            }
        }
    }
    out
}

fn promise_text(plan: &Plan, rate: f64) -> String {
    format!(
        "All steps together take {} at most; a canary like stable is promoted in at least {:.0} % of cases.",
        duration(plan.seconds(rate)),
        plan.promotes * 100.0
    )
}

/// What differs in a policy that is recommended, as lines for its spec.
fn changes_text(given: &CanaryPolicySpec, better: &CanaryPolicySpec) -> String {
    let mut out = "In the policy's spec:\n".to_owned();
    if given.steps != better.steps {
        let _ = writeln!(out, "  steps:");
        for step in &better.steps {
            let _ =
                writeln!(out, "    - {}", flow(&serde_json::to_value(step).unwrap_or_default()));
        }
    }
    for (given, better) in given.analysis.metrics.iter().zip(&better.analysis.metrics) {
        if let (Some(score), true) = (&better.score, given != better) {
            let _ = writeln!(
                out,
                "  analysis.metrics: minSamples of {}: {}",
                better.name, score.min_samples
            );
        }
    }
    for (name, was, is) in [
        ("progressDeadline", given.progress_deadline, better.progress_deadline),
        ("noDataTimeout", given.no_data_timeout, better.no_data_timeout),
    ] {
        if was != is {
            let _ = writeln!(out, "  {name}: {is}");
        }
    }
    let first = |policy: &CanaryPolicySpec| policy.steps.iter().find_map(|step| step.weight);
    if let (Some(was), Some(is)) = (first(given), first(better))
        && was < is
    {
        let _ = writeln!(
            out,
            "\nThe price: the first step gives the new canary to {is} % of users, instead of {was} %."
        );
    }
    out
}

/// A value as YAML on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}: {}", flow(v))).collect();
            format!("{{{}}}", parts.join(", "))
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What becomes of simulated canaries under a policy.
struct Lives {
    /// With the outcomes of each.
    kinds: Vec<(Kind, Vec<Outcome>)>,
    has_approvals: bool,
    has_conversations: bool,
}

/// A kind of canary.
struct Kind {
    name: String,
    worse: Worse,
    /// It should be promoted, rolled back, or neither surely.
    should: Should,
}

#[derive(Clone, Copy)]
enum Should {
    Pass,
    Fail,
    /// It lies at or within an accept margin.
    Either,
}

impl Lives {
    fn of(policy: &CanaryPolicySpec, rate: f64, assumed: Assumptions) -> Self {
        let (kinds, judged) = (kinds(policy), simulated(policy));
        let outcomes = on_all_cores(&kinds, |kind| {
            let truth = Truth::steady(&kind.name, assumed, kind.worse);
            outcomes(&Setting { policy: &judged, rate }, &truth, RUNS, SEED)
        });
        let has_approvals = policy.steps.iter().any(|step: &Step| step.approval.is_some());
        let has_conversations = !assumed.users.is_finite() && assumed.design_effect > 1.0;
        let kinds = kinds.into_iter().zip(outcomes).collect();
        Self { kinds, has_approvals, has_conversations }
    }

    fn text(&self) -> String {
        let head = ["CANARY", "PROMOTED", "OUT", "AFTER", "CANARY REQUESTS"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (kind, lives) in &self.kinds {
            let c = Characteristics::of("", lives);
            let percent = |e: Estimate| format!("{:.0} %", e.value * 100.0);
            let after = match kind.should {
                Should::Pass => c.promotion_after,
                Should::Fail => c.rollback_after,
                Should::Either => None,
            };
            let [time, requests] = after.map_or_else(
                || ["-", "-"].map(str::to_owned),
                |After { requests: (m, p), seconds }| {
                    let (typical, long) = (duration(seconds.0), duration(seconds.1));
                    [format!("{typical} ({long})"), format!("{m} ({p})")]
                },
            );
            rows.push(vec![
                kind.name.clone(),
                percent(c.promotion),
                percent(c.rollback),
                time,
                requests,
            ]);
        }
        let approvals = if self.has_approvals { "; approvals are given at once" } else { "" };
        let short = match self.has_conversations {
            true => {
                " A conversation is simulated within one look: with fewer requests a look than --design-effect these shares are too good."
            }
            false => "",
        };
        format!(
            "{}From {RUNS} simulated canaries each, without the bake{approvals}. Medians; in brackets, nine of ten.{short}\n",
            table(&rows)
        )
    }
}

/// How soon a canary like stable is promoted, and bad ones are out.
fn picture(policies: &[(&str, Lives)]) -> String {
    let all =
        || policies.iter().flat_map(|(name, lives)| lives.kinds.iter().map(move |k| (name, k)));
    let slowest = all().flat_map(|(_, (_, lives))| lives).map(|o| o.seconds);
    let (unit, seconds) = unit_of_time(slowest.fold(0.0, f64::max));
    let mut series = vec![];
    for (policy, (kind, lives)) in all() {
        let (word, end) = match kind.should {
            Should::Pass => ("promoted", End::Promoted),
            Should::Fail => ("out", End::RolledBack),
            Should::Either => continue,
        };
        let name = match policies.len() {
            1 => format!("{}: {word}", kind.name),
            _ => format!("{policy}, {}: {word}", kind.name),
        };
        let points = by_time(lives, end, seconds);
        // What never happens has only its beginning.
        if points.len() > 1 {
            series.push(plot::Series { name, points });
        }
    }
    let x_label = format!("{unit} since the canary started");
    let axes = plot::Axes {
        title: "When a canary is promoted, or out",
        x_label: &x_label,
        y_label: "share of canaries",
        y_percent: true,
        ..plot::Axes::default()
    };
    plot::chart(&axes, &series)
}

/// The share of canaries that ended so by a time, with its 95 % interval.
fn by_time(lives: &[Outcome], end: End, unit: f64) -> Vec<(f64, f64, f64, f64)> {
    let mut times: Vec<f64> = lives.iter().filter(|o| o.end == end).map(|o| o.seconds).collect();
    times.sort_unstable_by(f64::total_cmp);
    let mut points = vec![(0.0, 0.0, 0.0, 0.0)];
    let every = times.len().div_ceil(POINTS).max(1);
    for (i, time) in times.iter().enumerate() {
        if (i + 1) % every == 0 || i + 1 == times.len() {
            let Estimate { value, low, high } = Estimate::of(i + 1, lives.len());
            points.push((time / unit, value, low, high));
        }
    }
    points
}

fn unit_of_time(seconds: f64) -> (&'static str, f64) {
    match seconds {
        s if s > 2.0 * DAY => ("days", DAY),
        s if s > 2.0 * 3_600.0 => ("hours", 3_600.0),
        _ => ("minutes", 60.0),
    }
}

/// What simulated traffic can have data for: nothing of Prometheus, and no bake after the
/// promotion.
fn simulated(policy: &CanaryPolicySpec) -> CanaryPolicySpec {
    let mut policy = policy.clone();
    policy.analysis.metrics.retain(|metric| metric.prometheus.is_none());
    policy.bake.duration = GoDuration::from_secs(0);
    policy
}

/// The canaries that a policy is asked about: like stable, worse by far in what it measures,
/// and by as much as its margins allow.
fn kinds(policy: &CanaryPolicySpec) -> Vec<Kind> {
    let metrics = &policy.analysis.metrics;
    let measures = |of: fn(&Metric) -> bool| metrics.iter().any(of);
    let none = Worse::default();
    let kind = |name: String, worse, should| Kind { name, worse, should };
    let mut kinds = vec![kind("like stable".to_owned(), none, Should::Pass)];
    let share = |of: fn(&Metric) -> bool| metrics.iter().find(|m| of(m)).map(|m| m.margin().accept);
    let (errors, checks) =
        (share(|m| m.error_rate.is_some()), share(|m| m.check_failures.is_some()));
    let by = |more: f64| format!("{:.1} points more", more * 100.0);
    if let Some(accept) = errors {
        let more = 3.0 * accept;
        let worse = Worse { errors: more, ..none };
        kinds.push(kind(format!("errors: {}", by(more)), worse, Should::Fail));
    }
    if let Some(accept) = checks {
        let more = 3.0 * accept;
        let worse = Worse { checks: more, ..none };
        kinds.push(kind(format!("failed checks: {}", by(more)), worse, Should::Fail));
    }
    if measures(|m| m.time_to_first_token.is_some() || m.duration.is_some()) {
        let worse = Worse { slow: 0.3, ..none };
        kinds.push(kind("slow answers: 30 points more".to_owned(), worse, Should::Fail));
    }
    if measures(|m| m.cost_per_request.is_some()) {
        let worse = Worse { cost: 1.0, ..none };
        kinds.push(kind("cost: twice as much".to_owned(), worse, Should::Fail));
    }
    if measures(|m| m.score.is_some()) {
        let worse = Worse { score: 0.3, ..none };
        kinds.push(kind("scores: worse by 0.3".to_owned(), worse, Should::Fail));
    }
    if let Some(accept) = errors {
        for (more, what) in [(accept, "the accept margin"), (accept / 2.0, "half of it")] {
            let worse = Worse { errors: more, ..none };
            kinds.push(kind(format!("errors: {} ({what})", by(more)), worse, Should::Either));
        }
    }
    kinds
}

/// What the policy can not see.
fn unseen_text(policy: &CanaryPolicySpec, plan: &Plan) -> String {
    let metrics = &policy.analysis.metrics;
    let measures = |of: fn(&Metric) -> bool| metrics.iter().any(of);
    let mut lines = vec![];
    let found: Vec<String> = metrics
        .iter()
        .filter_map(|metric| {
            let of = plan.steps.iter().flat_map(|step| &step.metrics);
            let detects = of.filter(|m| m.metric == metric.name).filter_map(|m| m.detects);
            let least = detects.fold(f64::INFINITY, f64::min);
            let unit = unit_of(metrics, &metric.name);
            least.is_finite().then(|| format!("{} {}", metric.name, unit.difference(least)))
        })
        .collect();
    if !found.is_empty() {
        lines.push(format!(
            "differences that are smaller: {}. Such a canary is mostly promoted, or ends without an answer",
            found.join(", ")
        ));
    }
    let samples: i64 = plan.steps.iter().map(|step| step.samples).sum();
    lines.push(format!(
        "what is rarer than one in {} requests: in {samples} canary requests it often does not happen once",
        (samples / RULE_OF).max(1)
    ));
    if !measures(|m| m.score.is_some() || m.check_failures.is_some()) {
        lines.push("whether the answers are good: it has neither scores nor checks".to_owned());
    } else if !measures(|m| m.score.is_some()) {
        lines.push(
            "whether the answers are good, beyond the prompt's checks: it has no scores".to_owned(),
        );
    }
    if !measures(|m| m.time_to_first_token.is_some() || m.duration.is_some()) {
        lines.push("latency: no metric measures it".to_owned());
    }
    if !measures(|m| m.cost_per_request.is_some()) {
        lines.push("cost: no metric measures it".to_owned());
    }
    format!("What this policy can not see:\n  - {}\n", lines.join("\n  - "))
}

fn steps_text(plan: &Plan, policy: &CanaryPolicySpec, rate: f64) -> String {
    let head =
        ["STEP", "TRAFFIC", "SAMPLES", "REQUESTS", "TIME", "METRIC", "ACCEPTS", "NEEDS", "FINDS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for step in &plan.steps {
        if step.metrics.is_empty() {
            // Its evidence is that of the last step with which it is pooled.
            let mut row = step_cells(step, policy, rate);
            row.extend(["pooled", "-", "-", "-"].map(str::to_owned));
            rows.push(row);
        }
        for (i, metric) in step.metrics.iter().enumerate() {
            let unit = unit_of(&policy.analysis.metrics, &metric.metric);
            let mut row =
                if i == 0 { step_cells(step, policy, rate) } else { vec![String::new(); 5] };
            row.push(metric.metric.clone());
            row.push(format!("{:.0} %", metric.in_time * 100.0));
            row.push(metric.needs.map_or_else(|| "no number helps".to_owned(), |n| n.to_string()));
            row.push(metric.detects.map_or_else(|| "-".to_owned(), |d| unit.difference(d)));
            rows.push(row);
        }
    }
    format!(
        "{}ACCEPTS: the chance to accept a canary like stable. NEEDS: samples for a chance that is good enough. \
         FINDS: the difference that is rolled back in four of five cases.\n",
        table(&rows)
    )
}

fn step_cells(step: &StepPlan, policy: &CanaryPolicySpec, rate: f64) -> Vec<String> {
    let shadow = policy.steps.get(step.index).is_some_and(|s| s.shadow.is_some());
    let traffic = format!("{} %{}", step.weight, if shadow { " copied" } else { "" });
    let time = duration(step.seconds(rate));
    let samples = step.samples.to_string();
    vec![(step.index + 1).to_string(), traffic, samples, format!("{:.0}", step.requests), time]
}

fn unit_of(metrics: &[Metric], name: &str) -> Unit {
    match metrics.iter().find(|m| m.name == name) {
        Some(m) if m.cost_per_request.is_some() => Unit::Relative,
        Some(m) if m.score.is_some() => Unit::Score,
        _ => Unit::Share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(steps: &str) -> CanaryPolicySpec {
        let metric = "{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}";
        serde_yaml_ng::from_str(&format!("{{steps: {steps}, analysis: {{metrics: [{metric}]}}}}"))
            .unwrap()
    }

    const STEPS: &str = "[{weight: 5, samples: 100}, {approval: {}}, {weight: 50, samples: 600}]";

    #[test]
    fn the_plan_of_the_built_in_policy_says_what_it_can_do() {
        let policy = resolve::careful();
        let plan = plan::plan(&policy, &Assumptions::default(), Some(10.0));
        let text = plan_text(&policy, &plan, 10.0);
        assert!(
            text.contains("ttft") && text.contains("FINDS") && text.contains("3m20s"),
            "{text}"
        );
        let unseen = unseen_text(&policy, &plan);
        assert!(unseen.contains("checks +") && unseen.contains("has no scores"), "{unseen}");
        assert!(!unseen.contains("latency:") && !unseen.contains("cost: no"), "{unseen}");
    }

    #[test]
    fn what_is_not_measured_is_not_seen() {
        let policy = policy(STEPS);
        let unseen = unseen_text(&policy, &plan::plan(&policy, &Assumptions::default(), None));
        for part in ["errors +", "one in 233 requests", "neither scores", "latency:", "cost: no"] {
            assert!(unseen.contains(part), "{part} is not in\n{unseen}");
        }
    }

    #[test]
    fn what_is_recommended_can_be_pasted() {
        let given = policy(STEPS);
        let (assumed, rate) = (Assumptions::default(), 1_000.0 / (7.0 * DAY));
        let better = plan::fitting(&given, &assumed, rate, 4.0 * DAY);
        let text = changes_text(&given, &better);
        let part = text.split("\nThe price").next().unwrap();
        let lines = part.lines().skip(1).collect::<Vec<_>>().join("\n");
        let spec: Value = serde_yaml_ng::from_str(&lines).unwrap();
        assert_eq!(spec["steps"], serde_json::to_value(&better.steps).unwrap(), "{text}");
        assert_eq!(spec["progressDeadline"], better.progress_deadline.to_string(), "{text}");
        assert!(text.contains("to 10 % of users, instead of 5 %"), "{text}");
    }

    #[test]
    fn canaries_are_told_and_drawn_by_what_they_are() {
        let lives = Lives::of(&policy(STEPS), 5.0, Assumptions::default());
        let text = lives.text();
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(row("like stable").contains(" 0 %  ") && text.contains("approvals"), "{text}");
        assert!(row("errors: 15.0 points more").contains("100 %"), "{text}");
        assert!(row("errors: 5.0 points more").ends_with('-'), "{text}");
        let drawn = picture(&[("this policy", lives)]);
        assert!(drawn.contains("15.0") && drawn.contains("minutes since"), "{drawn}");
        let conversations = Assumptions { design_effect: 7.0, ..Assumptions::default() };
        let text = Lives::of(&policy(STEPS), 5.0, conversations).text();
        assert!(text.contains("these shares are too good"), "{text}");
    }
}
