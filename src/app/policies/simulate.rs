//! `serinus simulate`: what becomes of thousands of virtual canaries under a policy.

use std::{path::PathBuf, thread};

use anyhow::Context;

use super::Setup;
use crate::{
    analysis::{
        plan::{Assumptions, duration},
        simulation::{
            canary::Setting,
            characteristics::{After, Characteristics, Estimate, of_peer, of_serinus},
            peers::{ArgoRollouts, Flagger, Kayenta, Rule},
            plot,
            truth::{Course, Truth, Worse},
            users::Users,
        },
    },
    api::{CanaryPolicySpec, canary_policy::Metric},
    app::table::table,
};

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

pub(super) fn write(file: &PathBuf, text: &str) -> anyhow::Result<()> {
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

/// Few users who are not alike: the busiest sends a fifth of all requests.
const UNEVEN: Users = Users { count: 300, uneven: 1.1, alike: 0.3 };

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
        let apart = Course::SlowApart { share: 0.1, slow: 0.3 };
        truths.push(course("slow on one side at a time", none, apart));
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
        course("equal, 300 users, a few with most requests", none, Course::Users(UNEVEN)),
        course("equal, requests come unevenly", none, Course::Uneven),
        course("restarts lose a tenth", none, Course::Restarts { share: 0.1 }),
    ]);
    truths
}

pub(super) fn on_all_cores<C: Sync, T: Send>(
    cases: &[C],
    judge: impl Fn(&C) -> T + Sync,
) -> Vec<T> {
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
                c.rollback_after.map_or_else(
                    || "-".to_owned(),
                    |After { requests: (m, p), .. }| format!("{m}, 9 of 10: {p}"),
                ),
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
    use crate::rollout::resolve;

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
