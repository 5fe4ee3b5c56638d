//! Looking at a policy before anyone waits for it: `serinus plan` and `serinus simulate`.

use std::{fmt::Write, path::PathBuf, thread};

use anyhow::{Context, bail, ensure};

use super::table::table;
use crate::{
    analysis::{
        plan::{self, Assumptions, Plan, StepPlan, duration},
        simulation::{
            canary::Setting,
            characteristics::{Characteristics, Estimate, of_peer, of_serinus},
            peers::{ArgoRollouts, Flagger, Kayenta, Rule},
            plot,
            truth::{Course, Truth, Worse},
        },
    },
    api::{
        CanaryPolicySpec, LLMDeploymentSpec,
        canary_policy::Metric,
        manifest::{self, Object},
        prompt_release::Unit,
    },
    rollout::{WithoutData, resolve},
};

/// Where the policy is, and what is assumed of its traffic.
#[derive(clap::Args)]
pub struct Setup {
    /// A file with a CanaryPolicy, or FILE:NAME when it has several; "default" is the
    /// policy of a release that names none.
    policy: String,
    /// Requests a second of the route.
    #[arg(long, value_name = "N", value_parser = positive)]
    rps: f64,
    /// Stable's share of failed requests.
    #[arg(long, default_value_t = Assumptions::default().error_rate, value_parser = share)]
    error_rate: f64,
    /// Stable's share of failed checks, and of bad counts from Prometheus.
    #[arg(long, default_value_t = Assumptions::default().check_failures, value_parser = share)]
    check_failures: f64,
    /// The standard deviation of the cost of a request, over its mean.
    #[arg(long, default_value_t = Assumptions::default().cost_variation, value_parser = positive)]
    cost_variation: f64,
    /// Stable's mean score.
    #[arg(long, default_value_t = Assumptions::default().score, value_parser = share)]
    score: f64,
    /// The standard deviation of a score; thumbs at 80 % have 0.4.
    #[arg(long, default_value_t = Assumptions::default().score_deviation, value_parser = positive)]
    score_deviation: f64,
    /// The share of requests that get a score.
    #[arg(long, default_value_t = Assumptions::default().feedback, value_parser = share)]
    feedback: f64,
    /// How many requests of one user tell as much as one of different users: what messages
    /// say as "requests of one user count 1/N". It grows when users send more: see --users.
    #[arg(long, default_value_t = Assumptions::default().design_effect, value_parser = positive)]
    design_effect: f64,
    /// How many users there are. When some send much more than others, the square of the sum
    /// of their requests over the sum of the squares.
    #[arg(long, value_name = "N", value_parser = positive)]
    users: Option<f64>,
    /// How alike the requests of one user are, 0 to 1 (with --users).
    #[arg(long, default_value_t = Assumptions::default().intraclass_correlation, value_parser = share)]
    intraclass_correlation: f64,
}

/// How to simulate.
#[derive(clap::Args)]
pub struct SimulateOptions {
    #[command(flatten)]
    setup: Setup,
    /// Virtual canaries for each truth.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    runs: u64,
    /// The seed: the same one gives the same answer.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also judge by the rules of Argo Rollouts, Flagger and Kayenta, on the error rate.
    #[arg(long)]
    peers: bool,
    /// Write the outcomes of all truths as an SVG picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write how often the policy rolls back and promotes, by how much worse the errors
    /// of the canary are, as an SVG picture.
    #[arg(long, value_name = "FILE")]
    curve: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v: &f64| *v > 0.0 && v.is_finite())
        .ok_or_else(|| "give a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|v| (0.0..=1.0).contains(v));
    number.ok_or_else(|| "give a share from 0 to 1".to_owned())
}

impl Setup {
    fn assumptions(&self) -> Assumptions {
        Assumptions {
            error_rate: self.error_rate,
            check_failures: self.check_failures,
            cost_variation: self.cost_variation,
            score: self.score,
            score_deviation: self.score_deviation,
            feedback: self.feedback,
            design_effect: self.design_effect,
            users: self.users.unwrap_or(f64::INFINITY),
            intraclass_correlation: self.intraclass_correlation,
        }
    }

    fn load(&self) -> anyhow::Result<Loaded> {
        if self.policy == "default" {
            return Ok(Loaded { policy: resolve::careful(), without_data: vec![] });
        }
        let (file, name) = match self.policy.rsplit_once(':') {
            Some((file, name)) if !PathBuf::from(&self.policy).exists() => (file, Some(name)),
            _ => (self.policy.as_str(), None),
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{file} can not be read: name a file with a CanaryPolicy"))?;
        let objects = manifest::parse(&text).with_context(|| file.to_owned())?;
        let mut policies: Vec<(String, CanaryPolicySpec)> = objects
            .iter()
            .filter_map(|object| match object {
                Object::Policy(p) => Some((p.metadata.name.clone()?, p.spec.clone())),
                _ => None,
            })
            .filter(|(found, _)| name.is_none_or(|name| found == name))
            .collect();
        let names: Vec<&str> = policies.iter().map(|(n, _)| n.as_str()).collect();
        ensure!(
            !policies.is_empty(),
            "{file} has no CanaryPolicy{}",
            name.map(|n| format!(" named {n}")).unwrap_or_default()
        );
        if policies.len() > 1 {
            bail!(
                "{file} has several policies, choose one: {file}:{}",
                names.join(&format!(", {file}:"))
            );
        }
        let policy = policies.remove(0).1;
        let backends: Vec<(&str, &LLMDeploymentSpec)> = objects
            .iter()
            .filter_map(|object| match object {
                Object::Backend(b) => Some((b.metadata.name.as_deref()?, &b.spec)),
                _ => None,
            })
            .collect();
        let without_data = resolve::without_data(&policy, &backends, None);
        Ok(Loaded { policy, without_data })
    }
}

/// A policy, and which of its metrics can have no data with the backends of its file.
struct Loaded {
    policy: CanaryPolicySpec,
    without_data: Vec<WithoutData>,
}

/// `serinus plan`: answers whether the policy can decide.
///
/// # Errors
/// There is no such policy.
pub fn plan(setup: &Setup) -> anyhow::Result<bool> {
    let (Loaded { policy, without_data }, assumed) = (setup.load()?, setup.assumptions());
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
    if let Some(why) = refused {
        plan.promotes = 0.0;
        plan.problems.insert(0, format!("no canary starts: {why}"));
    }
    println!("{}", plan_text(&policy, &plan, setup.rps));
    if !plan.problems.is_empty() || !plan.hints.is_empty() {
        let better = plan::recommended(&policy, &assumed);
        let again = plan::plan(&better, &assumed, Some(setup.rps));
        println!("With as many samples as are needed:\n{}", steps_text(&again, &better, setup.rps));
    }
    Ok(plan.problems.is_empty())
}

fn plan_text(policy: &CanaryPolicySpec, plan: &Plan, rate: f64) -> String {
    let mut out = steps_text(plan, policy, rate);
    let _ = writeln!(
        out,
        "A canary like stable is promoted in at least {:.0} % of cases (if not sooner, after the times above).",
        plan.promotes * 100.0
    );
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

/// `serinus simulate`.
///
/// # Errors
/// There is no such policy, or a picture can not be written.
pub fn simulate(options: &SimulateOptions) -> anyhow::Result<()> {
    let (policy, rate) = (options.setup.load()?.policy, options.setup.rps);
    let setting = Setting { policy: &policy, rate };
    let runs = usize::try_from(options.runs)?;
    let cases = cases(&policy, rate, options.setup.assumptions());
    let truths: Vec<Truth> = cases.iter().map(|case| case.truth.clone()).collect();
    println!(
        "{runs} canaries for each truth at {rate} requests/s; all steps together take up to {}\n",
        duration(setting.seconds())
    );
    let judge = |case: &Case| {
        let (setting, truth) = (Setting { policy: &case.policy, rate: case.rate }, &case.truth);
        let mut all = vec![of_serinus(&setting, truth, runs, options.seed)];
        if options.peers {
            let rules: [Box<dyn Rule>; 3] = [
                Box::new(ArgoRollouts::default()),
                Box::new(Flagger::default()),
                Box::new(Kayenta::default()),
            ];
            for mut rule in rules {
                all.push(of_peer(&setting, truth, rule.as_mut(), runs, options.seed));
            }
        }
        all
    };
    let results = on_all_cores(&cases, judge);
    println!("{}", characteristics_text(&truths, &results));
    if let Some(file) = &options.svg {
        write(file, &outcomes_svg(&truths, &results))?;
    }
    if let Some(file) = &options.curve {
        write(file, &curve_svg(&policy, &setting, options))?;
    }
    Ok(())
}

fn write(file: &PathBuf, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("{} can not be written", file.display()))?;
    println!("{} is written", file.display());
    Ok(())
}

/// A truth under a policy's traffic.
struct Case {
    truth: Truth,
    policy: CanaryPolicySpec,
    rate: f64,
}

/// Every truth, and two on other traffic: a tenth of it, and steps of 1, 2, 3 … percent.
fn cases(policy: &CanaryPolicySpec, rate: f64, stable: Assumptions) -> Vec<Case> {
    let of = |truth| Case { truth, policy: policy.clone(), rate };
    let equal = |name: &str| Truth::steady(name, stable, Worse::default());
    let mut small = policy.clone();
    for (i, step) in (1..).zip(small.steps.iter_mut().filter(|s| s.weight.is_some())) {
        step.weight = Some(i);
    }
    let mut cases: Vec<Case> = truths(policy, stable).into_iter().map(of).collect();
    cases.push(Case { rate: rate / 10.0, ..of(equal("equal, a tenth of the traffic")) });
    cases.push(Case { policy: small, ..of(equal("equal, steps of 1, 2, 3 %")) });
    cases
}

/// The truths that a policy is asked about: of what it measures.
fn truths(policy: &CanaryPolicySpec, stable: Assumptions) -> Vec<Truth> {
    let metrics = &policy.analysis.metrics;
    let measures = |of: fn(&Metric) -> bool| metrics.iter().any(of);
    let errors = metrics.iter().find(|m| m.error_rate.is_some());
    let errors = errors.map(Metric::margin).unwrap_or_default();
    let (harm, accept) = (errors.harm.max(0.01), errors.accept.max(0.02));
    let none = Worse::default();
    let by = |errors| Worse { errors, ..none };
    let steady = |name: &str, worse| Truth::steady(name, stable, worse);
    let course = |name: &str, worse, course| Truth { course, ..steady(name, worse) };
    let points = |by: f64, note: &str| format!("errors +{:.1} points{note}", by * 100.0);
    let mut truths = vec![
        steady("equal", none),
        steady("better: no errors", by(-stable.error_rate)),
        steady(&points(harm, " (harm)"), by(harm)),
        steady(&points(accept, " (accept)"), by(accept)),
        steady(&points(3.0 * accept, ""), by(3.0 * accept)),
    ];
    if measures(|m| m.time_to_first_token.is_some() || m.duration.is_some()) {
        truths.push(steady("a tenth more answers slow", Worse { slow: 0.10, ..none }));
    }
    if measures(|m| m.check_failures.is_some()) {
        truths.push(steady("a tenth more checks fail", Worse { checks: 0.10, ..none }));
    }
    if measures(|m| m.cost_per_request.is_some()) {
        truths.push(steady("twice as dear", Worse { cost: 1.0, ..none }));
        let dear = Course::Dear { share: 0.02, times: 20.0 };
        truths.push(course("a fiftieth costs 20 times as much", none, dear));
    }
    if measures(|m| m.score.is_some()) {
        truths.push(steady("scores worse by 0.2", Worse { score: 0.2, ..none }));
    }
    let incident = Course::Incident { from: 0.3, error_rate: 0.4 };
    truths.extend([
        course("both degrade to 40 %", none, incident),
        course(&format!("drift to +{:.1} points", accept * 300.0), by(3.0 * accept), Course::Drift),
        course("bursts on both", none, Course::Bursts { share: 0.1, error_rate: 0.3 }),
        course(
            "bursts on one side at a time",
            none,
            Course::BurstsApart { share: 0.1, error_rate: 0.3 },
        ),
        course("ten alike turns a user", none, Course::Conversations { turns: 10 }),
        course("restarts lose a tenth", none, Course::Restarts { share: 0.1 }),
    ]);
    truths
}

fn on_all_cores<C: Sync, T: Send>(cases: &[C], judge: impl Fn(&C) -> T + Sync) -> Vec<T> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|core| {
                let judge = &judge;
                scope.spawn(move || {
                    let mine = cases.iter().enumerate().skip(core).step_by(cores);
                    mine.map(|(i, case)| (i, judge(case))).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

fn characteristics_text(truths: &[Truth], results: &[Vec<Characteristics>]) -> String {
    let head = [
        "TRUTH",
        "JUDGED BY",
        "ROLLED BACK",
        "NO ANSWER",
        "PROMOTED",
        "REQUESTS TO ROLLBACK",
        "TIME",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let percent =
        |e: Estimate| format!("{:.1} % (±{:.1})", e.value * 100.0, (e.high - e.low) * 50.0);
    for (truth, all) in truths.iter().zip(results) {
        for (i, c) in all.iter().enumerate() {
            rows.push(vec![
                if i == 0 { truth.name.clone() } else { String::new() },
                c.name.clone(),
                percent(c.rollback),
                percent(c.inconclusive),
                percent(c.promotion),
                c.requests_to_rollback
                    .map_or_else(|| "-".to_owned(), |(m, p)| format!("{m}, 9 of 10: {p}")),
                duration(c.seconds.0),
            ]);
        }
    }
    format!(
        "{}REQUESTS TO ROLLBACK: the canary's, median. TIME: until the end, median. ±: 95 % interval.\n",
        table(&rows)
    )
}

fn outcomes_svg(truths: &[Truth], results: &[Vec<Characteristics>]) -> String {
    let shares = |c: &Characteristics| [c.rollback.value, c.inconclusive.value, c.promotion.value];
    let bars: Vec<(String, [f64; 3])> = truths
        .iter()
        .zip(results)
        .flat_map(|(truth, all)| {
            let several = all.len() > 1;
            all.iter().map(move |c| {
                let label = if several {
                    format!("{}: {}", truth.name, c.name)
                } else {
                    truth.name.clone()
                };
                (label, shares(c))
            })
        })
        .collect();
    plot::stacked("What becomes of a canary", "share of canaries", &bars)
}

/// Rollback and promotion by how much worse the canary's errors are.
fn curve_svg(
    policy: &CanaryPolicySpec,
    setting: &Setting<'_>,
    options: &SimulateOptions,
) -> String {
    let errors = policy.analysis.metrics.iter().find(|m| m.error_rate.is_some());
    let accept = errors.map_or(0.05, |m| m.margin().accept).max(0.01);
    let assumed = options.setup.assumptions();
    let truths: Vec<Truth> = (0..=16)
        .map(|i| {
            let errors = 2.5 * accept * f64::from(i) / 16.0;
            Truth::steady("", assumed, Worse { errors, ..Worse::default() })
        })
        .collect();
    let runs = options.runs as usize;
    let results = on_all_cores(&truths, |truth| of_serinus(setting, truth, runs, options.seed));
    let series = |name: &str, of: fn(&Characteristics) -> Estimate| plot::Series {
        name: name.to_owned(),
        points: truths
            .iter()
            .zip(&results)
            .map(|(t, c)| (t.worse.errors, of(c).value, of(c).low, of(c).high))
            .collect(),
    };
    let axes = plot::Axes {
        title: "How the policy decides",
        x_label: "errors of the canary above those of stable",
        y_label: "share of canaries",
        x_percent: true,
        y_percent: true,
    };
    plot::chart(
        &axes,
        &[
            series("rolled back", |c| c.rollback),
            series("no answer", |c| c.inconclusive),
            series("promoted", |c| c.promotion),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_the_built_in_policy_says_what_it_can_do() {
        let policy = resolve::careful();
        let plan = plan::plan(&policy, &Assumptions::default(), Some(10.0));
        let text = plan_text(&policy, &plan, 10.0);
        assert!(
            text.contains("ttft") && text.contains("FINDS") && text.contains("10m0s"),
            "{text}"
        );
    }

    #[test]
    fn every_truth_is_told_with_its_shares() {
        let policy = resolve::careful();
        let truths = truths(&policy, Assumptions::default());
        let setting = Setting { policy: &policy, rate: 50.0 };
        let few = &truths[..2];
        let results = on_all_cores(few, |t| vec![of_serinus(&setting, t, 5, 1)]);
        let text = characteristics_text(few, &results);
        assert!(text.contains("equal") && text.contains('%'), "{text}");
        assert!(outcomes_svg(few, &results).contains("</svg>"));
    }
}
