//! How good the verdicts are: error rates and acceptance over whole canaries, requests
//! until a rollback beside the peers' rules on the same streams, coverage of the tests
//! without an end, and how long judging takes.
//!
//! `cargo bench --bench verdicts` prints the tables of docs/statistics.md. RUNS=2000 is a
//! quick look; ONLY=time, speed, errors, pooled, traffic, users, bursts, inputs, plan, selection or coverage prints one of
//! them, CELL=… of errors, the selection, users, bursts and pools what has these words in its name. A cell of the
//! selection takes up to two minutes, and longer where canaries are held.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints and stops when wrong")]

use std::{sync::Mutex, time::Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serinus::{
    analysis::{
        external::Externals,
        judge::{Boundaries, Evidence, Window, assess},
        plan::{Assumptions, duration, fitting, plan, recommended},
        simulation::{
            canary::{End, Setting},
            characteristics::{After, Characteristics, Estimate, of_peer, of_serinus},
            drawn::{Behaviour, Drawn, OneCaller, World},
            peers::{ArgoRollouts, Flagger, Kayenta, Rule},
            truth::{Course, Inputs, Truth, Worse},
            users::Users,
        },
        stats::{anytime, proportion::Share},
    },
    api::{CanaryPolicySpec, canary_policy::Step, prompt_release::Counts},
};

fn main() {
    let runs = std::env::var("RUNS").ok().and_then(|r| r.parse().ok()).unwrap_or(20_000);
    let started = Instant::now();
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only == part;
    if wanted("time") {
        judging_time();
    }
    if wanted("speed") {
        rollback_speed(runs);
    }
    if wanted("errors") {
        error_rates(runs);
    }
    if wanted("pooled") {
        pooled(runs);
    }
    if wanted("traffic") {
        traffic(runs / 10);
    }
    if wanted("users") {
        few_users(runs);
    }
    if wanted("bursts") {
        bursts(runs);
    }
    if wanted("inputs") {
        inputs(runs);
    }
    if wanted("plan") {
        plans(runs / 10);
    }
    if wanted("selection") {
        selection(runs);
    }
    if wanted("coverage") {
        coverage(runs.min(2_000));
    }
    println!("\ntook {:.0} s", started.elapsed().as_secs_f64());
}

fn policy(text: &str) -> CanaryPolicySpec {
    serde_yaml_ng::from_str(text).unwrap()
}

/// Runs the tasks on two threads; the answers in their order.
fn in_parallel<T: Send>(tasks: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let queue = Mutex::new(tasks.into_iter().enumerate().collect::<Vec<_>>());
    let done = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((i, task)) = queue.lock().unwrap().pop() else { break };
                    let answer = task();
                    done.lock().unwrap().push((i, answer));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, answer)| answer).collect()
}

/// In seconds.
const DAY: f64 = 86_400.0;

const METRICS: [&str; 8] = [
    "{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}",
    "{name: ttft, timeToFirstToken: {quantile: 0.95}, margin: {harm: 0.05, accept: 0.10}}",
    "{name: checks, checkFailures: {}, margin: {harm: 0.02, accept: 0.05}}",
    "{name: cost, costPerRequest: {}, margin: {harm: 0.25, accept: 0.50}}",
    "{name: duration, duration: {quantile: 0.9}, margin: {harm: 0.05, accept: 0.10}}",
    "{name: helpful, score: {name: helpful, minSamples: 100}, margin: {harm: 0.05, accept: 0.15}}",
    "{name: polite, score: {name: polite, minSamples: 100}, margin: {harm: 0.05, accept: 0.15}}",
    "{name: correct, score: {name: correct, minSamples: 100}, margin: {harm: 0.05, accept: 0.15}}",
];

fn assumed() -> Assumptions {
    // Thumbs up or down at 80 %.
    Assumptions { score_deviation: 0.4, ..Assumptions::default() }
}

/// One metric in one step, or in three that are pooled, with few users or such of whom some send most.
fn few_users(runs: usize) {
    println!("\n## Few and uneven users: one step or three, no bake, {runs} runs a cell\n");
    println!(
        "| cell | equal: rolled back | at the harm margin: rolled back | at the accept margin: promoted | equal: promoted | 30 points more, or three times the cost: rolled back |"
    );
    println!("|---|---|---|---|---|---|");
    let only = std::env::var("CELL").unwrap_or_default();
    let metrics = [
        ("errors 1 %", METRICS[0], 0.01, [0.02, 0.05]),
        ("errors 5 %", METRICS[0], 0.05, [0.02, 0.05]),
        ("errors 20 %", METRICS[0], 0.20, [0.02, 0.05]),
        ("latency", METRICS[4], 0.01, [0.05, 0.10]),
        ("cost", METRICS[3], 0.01, [0.25, 0.50]),
    ];
    let mut tasks: Vec<Box<dyn FnOnce() -> String + Send>> = vec![];
    for (metric, text, error_rate, margins) in metrics {
        for (count, uneven) in [(300, 0.0), (300, 1.1), (2_000, 0.0), (2_000, 1.1)] {
            for alike in [0.0, 0.1, 0.3] {
                for steps in [
                    vec![(5, 600)],
                    vec![(50, 600)],
                    vec![(50, 1_200)],
                    vec![(5, 40), (25, 90), (50, 600)],
                    vec![(5, 300), (25, 300), (50, 600)],
                ] {
                    let named: Vec<String> =
                        steps.iter().map(|(weight, n)| format!("{weight} %: {n}")).collect();
                    let name = format!(
                        "{metric}, {count} users, Zipf {uneven}, alike {alike}, {}",
                        named.join(", ")
                    );
                    if !name.contains(&only) {
                        continue;
                    }
                    let steps: Vec<String> = steps
                        .iter()
                        .map(|(w, n)| format!("{{weight: {w}, samples: {n}, deadline: 1000h}}"))
                        .collect();
                    let text = format!(
                        "{{steps: [{}], progressDeadline: 100000h, bake: {{duration: 0s}}, analysis: {{metrics: [{text}]}}}}",
                        steps.join(", ")
                    );
                    let stable = Assumptions { error_rate, ..assumed() };
                    let course = Course::Users(Users { count, uneven, alike });
                    tasks.push(Box::new(move || {
                        cell_of_users(&name, &text, (stable, course), margins, runs)
                    }));
                }
            }
        }
    }
    in_parallel(tasks).iter().for_each(|row| println!("{row}"));
}

fn cell_of_users(
    name: &str,
    text: &str,
    (stable, course): (Assumptions, Course),
    [harm, accept]: [f64; 2],
    runs: usize,
) -> String {
    let policy = policy(text);
    let setting = Setting { policy: &policy, rate: 50.0 };
    let of = |by: f64| {
        let metric = &policy.analysis.metrics[0];
        let worse = match metric {
            m if m.error_rate.is_some() => Worse { errors: by, ..Worse::default() },
            m if m.cost_per_request.is_some() => Worse { cost: by, ..Worse::default() },
            // A share of all answers, a tenth of which are slow anyway.
            _ => Worse { slow: by / 0.9, ..Worse::default() },
        };
        let truth = Truth { course, ..Truth::steady(name, stable, worse) };
        of_serinus(&setting, &truth, runs, 20_261)
    };
    let far = if policy.analysis.metrics[0].cost_per_request.is_some() { 2.0 } else { 0.3 };
    let [equal, at_harm, at_accept, far] = [of(0.0), of(harm), of(accept), of(far)];
    format!(
        "| {name} | {} | {} | {} | {} | {} |",
        percent(equal.rollback),
        percent(at_harm.rollback),
        percent(at_accept.promotion),
        percent(equal.promotion),
        percent(far.rollback),
    )
}

/// Costs of which a part goes with the length of the input, with and without gateways that tell
/// it. Lengths of inputs and of answers are lognormal.
fn inputs(runs: usize) {
    println!("\n## Costs at equal inputs: one metric, no bake, {runs} runs a cell\n");
    println!(
        "| cell | equal: rolled back | at the harm margin: rolled back | at the accept margin: promoted | equal: promoted | samples until then | three times the cost: rolled back |"
    );
    println!("|---|---|---|---|---|---|---|");
    let only = std::env::var("CELL").unwrap_or_default();
    let mut tasks: Vec<Box<dyn FnOnce() -> String + Send>> = vec![];
    for (steps, users) in [
        ("{weight: 5, samples: 600}", None),
        ("{weight: 50, samples: 600}", None),
        ("{weight: 5, samples: 40}, {weight: 50, samples: 600}", None),
        ("{weight: 50, samples: 600}", Some(Users { count: 2_000, uneven: 1.1, alike: 0.3 })),
    ] {
        for (share, spread) in [(0.3, 1.0), (0.7, 1.0), (0.7, 1.5), (0.95, 1.5)] {
            for told in [false, true] {
                let crowd = if users.is_some() { ", uneven users" } else { "" };
                let told_by = if told { "told" } else { "not told" };
                let name = format!("{steps}{crowd}, share {share}, spread {spread}, {told_by}");
                if !name.contains(&only) {
                    continue;
                }
                let text = format!(
                    "{{steps: [{}], bake: {{duration: 0s}}, analysis: {{metrics: [{{name: cost, costPerRequest: {{}}, margin: {{harm: 0.1, accept: 0.3}}}}]}}}}",
                    steps.replace("}", ", deadline: 1000h}")
                );
                let inputs = Some(Inputs { share, spread, told });
                tasks.push(Box::new(move || cell_of_inputs(&name, &text, inputs, users, runs)));
            }
        }
    }
    in_parallel(tasks).iter().for_each(|row| println!("{row}"));
}

fn cell_of_inputs(
    name: &str,
    text: &str,
    inputs: Option<Inputs>,
    users: Option<Users>,
    runs: usize,
) -> String {
    let policy = policy(text);
    let stable = Assumptions { error_rate: 0.01, cost_variation: 0.8, ..assumed() };
    let of = |cost: f64| {
        let worse = Worse { cost, ..Worse::default() };
        let steady = Truth::steady(name, stable, worse);
        let course = users.map_or(steady.course, Course::Users);
        of_serinus(
            &Setting { policy: &policy, rate: 50.0 },
            &Truth { course, inputs, ..steady },
            runs,
            20_261,
        )
    };
    let [equal, at_harm, at_accept, far] = [0.0, 0.1, 0.3, 2.0].map(of);
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        percent(equal.rollback),
        percent(at_harm.rollback),
        percent(at_accept.promotion),
        percent(equal.promotion),
        requests(equal.promotion_after),
        percent(far.rollback),
    )
}

/// Bursts of errors, or of slow answers, that come to each side at times of its own, and the
/// same policies without them.
fn bursts(runs: usize) {
    println!("\n## Bursts on one side at a time: one step, no bake, {runs} runs a cell\n");
    println!(
        "| stable | weight, samples | equal, bursts: rolled back | equal, bursts: promoted | equal: promoted | at the harm margin: rolled back | +12 points: median (9 of 10) | +20 points |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let only = std::env::var("CELL").unwrap_or_default();
    let failing = |share, error_rate| Course::BurstsApart { share, error_rate };
    let slow = |share, slow| Course::SlowApart { share, slow };
    let mut tasks: Vec<Box<dyn FnOnce() -> String + Send>> = vec![];
    for (name, metric, error_rate, course) in [
        ("errors 1 %, a tenth of the time 30 %", METRICS[0], 0.01, failing(0.1, 0.3)),
        ("errors 1 %, a twentieth 50 %", METRICS[0], 0.01, failing(0.05, 0.5)),
        ("errors 5 %, a fifth 15 %", METRICS[0], 0.05, failing(0.2, 0.15)),
        ("slow, a tenth of the time 30 %", METRICS[4], 0.01, slow(0.1, 0.3)),
        ("slow, a twentieth 50 %", METRICS[4], 0.01, slow(0.05, 0.5)),
        ("slow, a fifth 15 %", METRICS[4], 0.01, slow(0.2, 0.15)),
    ] {
        for (weight, samples) in [(5, 300), (25, 1_000), (50, 600)] {
            let name = format!("{name} | {weight} %, {samples}");
            if !name.contains(&only) {
                continue;
            }
            let text = format!(
                "{{steps: [{{weight: {weight}, samples: {samples}, deadline: 1000h}}], bake: {{duration: 0s}}, analysis: {{metrics: [{metric}]}}}}"
            );
            let stable = Assumptions { error_rate, ..assumed() };
            tasks.push(Box::new(move || cell_of_bursts(&name, &text, (stable, course), runs)));
        }
    }
    in_parallel(tasks).iter().for_each(|row| println!("{row}"));
}

fn cell_of_bursts(
    name: &str,
    text: &str,
    (stable, course): (Assumptions, Course),
    runs: usize,
) -> String {
    let policy = policy(text);
    let metric = &policy.analysis.metrics[0];
    let of = |course: Course, by: f64| {
        let worse = match metric.error_rate {
            Some(_) => Worse { errors: by, ..Worse::default() },
            // A share of all answers, a tenth of which are slow anyway.
            None => Worse { slow: by / 0.9, ..Worse::default() },
        };
        let truth = Truth { course, ..Truth::steady("", stable, worse) };
        of_serinus(&Setting { policy: &policy, rate: 5.0 }, &truth, runs, 20_261)
    };
    let steady = |by: f64| of(Course::Steady, by);
    let apart = of(course, 0.0);
    let found = |c: &Characteristics| {
        format!("{}, {:.1} %", requests(c.rollback_after), c.rollback.value * 100.0)
    };
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        percent(apart.rollback),
        percent(apart.promotion),
        percent(steady(0.0).promotion),
        percent(steady(metric.margin().harm).rollback),
        found(&steady(0.12)),
        found(&steady(0.20)),
    )
}

/// A policy of one to eight metrics and one to three steps, its traffic, and what is assumed.
fn drawn_policy(rng: &mut StdRng, has_users: bool) -> (CanaryPolicySpec, f64, Assumptions) {
    let mut pick = |of: &[f64]| of[rng.random_range(0..of.len())];
    let mut assumed = Assumptions {
        error_rate: pick(&[0.002, 0.01, 0.05, 0.2]),
        check_failures: pick(&[0.005, 0.02, 0.1]),
        cost_variation: pick(&[0.3, 0.6, 1.3]),
        score: pick(&[0.6, 0.8, 0.95]),
        score_deviation: pick(&[0.2, 0.4]),
        feedback: pick(&[0.05, 0.2, 0.5]),
        ..Assumptions::default()
    };
    if has_users {
        assumed.users = pick(&[300.0, 1_000.0, 3_000.0]);
        assumed.intraclass_correlation = pick(&[0.05, 0.1, 0.3]);
    }
    let rate = 0.05 * 1_000_f64.powf(pick(&[0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0]));
    let (quantile, wide) = (pick(&[0.5, 0.9, 0.95]), pick(&[1.5, 2.0, 3.0]));
    let steps = pick(&[1.0, 2.0, 3.0]) as usize;
    let weights: Vec<f64> = match steps {
        1 => vec![pick(&[5.0, 20.0, 50.0])],
        2 => vec![pick(&[5.0, 10.0]), pick(&[25.0, 50.0])],
        _ => vec![pick(&[1.0, 5.0]), pick(&[10.0, 25.0]), pick(&[50.0, 80.0])],
    };
    // How much of what is recommended it has.
    let part = pick(&[0.3, 0.5, 0.7, 1.0, 1.0, 1.5]);
    let kinds = [
        ("errorRate: {}", pick(&[0.01, 0.02, 0.05])),
        ("timeToFirstToken: {quantile: QUANTILE}", pick(&[0.04, 0.05, 0.08])),
        ("checkFailures: {}", pick(&[0.02, 0.03, 0.05])),
        ("costPerRequest: {}", pick(&[0.15, 0.25, 0.4])),
        ("duration: {quantile: 0.9}", pick(&[0.04, 0.05, 0.08])),
        ("score: {name: helpful, minSamples: 20}", pick(&[0.05, 0.1])),
        ("score: {name: polite, minSamples: 20}", pick(&[0.05, 0.1])),
        ("score: {name: correct, minSamples: 20}", pick(&[0.05, 0.1])),
    ];
    let (first, count) =
        (pick(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]) as usize, pick(&[1., 1., 2., 3., 5., 8.]));
    let metrics: Vec<String> = (first..first + count as usize)
        .map(|i| {
            let (kind, harm) = kinds[i % kinds.len()];
            let kind = kind.replace("QUANTILE", &quantile.to_string());
            format!("{{name: m{i}, {kind}, margin: {{harm: {harm}, accept: {}}}}}", harm * wide)
        })
        .collect();
    let steps: Vec<String> =
        weights.iter().map(|w| format!("{{weight: {w}, samples: 100}}")).collect();
    let text = format!(
        "{{steps: [{}], progressDeadline: 100000h, bake: {{duration: 0s}}, analysis: {{metrics: [{}]}}}}",
        steps.join(", "),
        metrics.join(", ")
    );
    let mut policy = recommended(&policy(&text), &assumed);
    for step in &mut policy.steps {
        step.samples = step.samples.map(|n| ((n as f64 * part) as i64).max(20));
    }
    for score in policy.analysis.metrics.iter_mut().filter_map(|m| m.score.as_mut()) {
        score.min_samples = ((score.min_samples as f64 * part) as i64).max(20);
    }
    (policy, rate, assumed)
}

/// What a plan promises of a canary like stable, and what becomes of it.
fn plans(runs: usize) {
    println!("\n## Promised by `serinus plan`, and what happened: {runs} canaries a policy\n");
    println!(
        "| policy | requests/s | assumed | promised | promoted (95 % interval) | planned time | time, median |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut rng = StdRng::seed_from_u64(15);
    let mut tasks: Vec<Box<dyn FnOnce() -> String + Send>> = vec![];
    for i in 0..40 {
        let (policy, rate, assumed) = drawn_policy(&mut rng, i >= 30);
        tasks.push(Box::new(move || {
            let planned = plan(&policy, &assumed, Some(rate));
            let truth = Truth::steady("equal", assumed, Worse::default());
            let lived = of_serinus(&Setting { policy: &policy, rate }, &truth, runs, 20_261);
            let steps = policy.steps.iter().map(|s| {
                format!("{} %: {}", s.weight.unwrap_or_default(), s.samples.unwrap_or_default())
            });
            let users = match assumed.users.is_finite() {
                true => {
                    format!(", {} users alike by {}", assumed.users, assumed.intraclass_correlation)
                }
                false => String::new(),
            };
            format!(
                "| {}; {} | {rate:.2} | {} % fail, cost {}{users} | {:.1} | {} | {} | {} |",
                kinds_of(&policy),
                steps.collect::<Vec<_>>().join(", "),
                assumed.error_rate * 100.0,
                assumed.cost_variation,
                planned.promotes * 100.0,
                percent(lived.promotion),
                duration(planned.steps.iter().map(|s| s.seconds(rate)).sum()),
                duration(lived.seconds.0),
            )
        }));
    }
    in_parallel(tasks).iter().for_each(|row| println!("{row}"));
}

/// The kinds of a policy's metrics, with their accept margins.
fn kinds_of(policy: &CanaryPolicySpec) -> String {
    let kinds = policy.analysis.metrics.iter().map(|m| {
        let kind = match m {
            m if m.error_rate.is_some() => "errors".to_owned(),
            m if m.check_failures.is_some() => "checks".to_owned(),
            m if m.cost_per_request.is_some() => "cost".to_owned(),
            m if m.score.is_some() => "score".to_owned(),
            m => {
                let latency = m.time_to_first_token.as_ref().or(m.duration.as_ref());
                format!("latency {}", latency.map_or(0.0, |l| l.quantile))
            }
        };
        format!("{kind} {:.3}", m.margin().accept)
    });
    kinds.collect::<Vec<_>>().join(", ")
}

fn error_rates(runs: usize) {
    println!(
        "\n## Whole canaries: three steps (5, 25, 50 %) and a bake, {runs} runs a cell ({} in the last two truths)",
        runs / 10
    );
    println!("samples as `serinus plan` recommends; shares in percent with 95 % intervals\n");
    println!(
        "| metrics | requests/s | truth | rolled back | no answer | promoted | hours (median) |"
    );
    println!("|---|---|---|---|---|---|---|");
    let worse = |by: f64| Worse { errors: by, ..Worse::default() };
    let half = |error_rate| Course::Incident { from: 0.3, error_rate };
    let failing = Assumptions { error_rate: 0.4, ..assumed() };
    let truths = [
        ("equal", assumed(), Worse::default(), Course::Steady),
        ("both fail 40 % from 30 % of the time on", assumed(), Worse::default(), half(0.4)),
        ("the same, samples planned for 40 %", failing, Worse::default(), half(0.4)),
        ("errors worse by the accept margin", assumed(), worse(0.05), Course::Steady),
        ("errors worse by the harm margin", assumed(), worse(0.02), Course::Steady),
        (
            "conversations of ten alike turns",
            assumed(),
            Worse::default(),
            Course::Conversations { turns: 10 },
        ),
    ];
    let only = std::env::var("CELL").unwrap_or_default();
    let mut tasks: Vec<Box<dyn FnOnce() -> (String, Characteristics) + Send>> = vec![];
    for (m, rate) in [1, 3, 8].iter().flat_map(|m| [0.5, 5.0, 50.0].map(|r| (*m, r))) {
        for (i, (name, planned, worse, course)) in truths.into_iter().enumerate() {
            let cell = format!("{m} | {rate} | {name}");
            if !cell.contains(&only) {
                continue;
            }
            let runs = if i < 4 { runs } else { runs / 10 };
            tasks.push(Box::new(move || {
                let text = format!(
                    "{{steps: [{{weight: 5, samples: 40}}, {{weight: 25, samples: 90}}, {{weight: 50, samples: 300}}], \
                     analysis: {{metrics: [{}]}}, bake: {{duration: 1h}}}}",
                    METRICS[..m].join(", ")
                );
                let policy = recommended(&policy(&text), &planned);
                let truth = Truth { course, ..Truth::steady(name, assumed(), worse) };
                let setting = Setting { policy: &policy, rate };
                (cell, of_serinus(&setting, &truth, runs, 1))
            }));
        }
    }
    for (cell, c) in in_parallel(tasks) {
        println!(
            "| {cell} | {} | {} | {} | {:.1} |",
            percent(c.rollback),
            percent(c.inconclusive),
            percent(c.promotion),
            c.seconds.0 / 3600.0
        );
    }
}

/// The same policy with evidence by step and pooled: samples as recommended for each.
fn pooled(runs: usize) {
    println!("\n## Evidence by step and pooled: 5, 25 and 50 %, no bake, {runs} runs a cell\n");
    println!(
        "| metrics | stable fails | evidence | samples | equal: promoted | requests until then, median (9 of 10) | hours at 0.5/s | at the accept margin: promoted | at the harm margin: rolled back | +12 points: requests until rollback | +20 points | both fail 5 times as often from 30 % of the time: equal promoted | at the accept margin |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let cell = std::env::var("CELL").unwrap_or_default();
    let mut tasks: Vec<Box<dyn FnOnce() -> String + Send>> = vec![];
    for (m, base) in [1, 3, 8].iter().flat_map(|m| [0.001, 0.01, 0.05, 0.2].map(|b| (*m, b))) {
        for (evidence, gates) in
            [("PerStep", [300, 300]), ("Pooled", [40, 90]), ("Pooled", [300, 300])]
        {
            let name = format!("{m} | {} % | {evidence}", base * 100.0);
            if !name.contains(&cell) {
                continue;
            }
            tasks.push(Box::new(move || {
                let metrics: Vec<String> =
                    METRICS[..m].iter().map(|m| m.replace("minSamples: 100", "minSamples: 20")).collect();
                let text = format!(
                    "{{steps: [{{weight: 5, samples: {}}}, {{weight: 25, samples: {}}}, {{weight: 50, samples: 300}}], progressDeadline: 100000h, \
                     analysis: {{evidence: {evidence}, metrics: [{}]}}, bake: {{duration: 0s}}}}",
                    gates[0], gates[1], metrics.join(", ")
                );
                let stable = Assumptions { error_rate: base, ..assumed() };
                let policy = recommended(&policy(&text), &stable);
                let setting = Setting { policy: &policy, rate: 0.5 };
                let of = |by: f64, course: Course, runs: usize| {
                    let worse = Worse { errors: by, ..Worse::default() };
                    let truth = Truth { course, ..Truth::steady("", stable, worse) };
                    of_serinus(&setting, &truth, runs, 15)
                };
                let jump = Course::Incident { from: 0.3, error_rate: (base * 5.0).min(0.5) };
                let equal = of(0.0, Course::Steady, runs);
                let samples: Vec<String> =
                    policy.steps.iter().map(|s| s.samples.unwrap_or_default().to_string()).collect();
                let speed = |by| {
                    let c = of(by, Course::Steady, runs / 4);
                    format!("{}, {:.1} %", requests(c.rollback_after), c.rollback.value * 100.0)
                };
                format!(
                    "| {name} | {} | {} | {} | {:.0} | {} | {} | {} | {} | {} | {} |",
                    samples.join(", "),
                    percent(equal.promotion),
                    requests(equal.promotion_after),
                    equal.seconds.0 / 3600.0,
                    percent(of(0.05, Course::Steady, runs).promotion),
                    percent(of(0.02, Course::Steady, runs / 4).rollback),
                    speed(0.12),
                    speed(0.2),
                    percent(of(0.0, jump, runs / 4).promotion),
                    percent(of(0.05, jump, runs).promotion),
                )
            }));
        }
    }
    in_parallel(tasks).iter().for_each(|row| println!("{row}"));
}

/// How long a canary like stable takes under little and much traffic: by step and pooled at
/// 5, 25 and 50 %, and with the steps that a plan recommends for a week.
fn traffic(runs: usize) {
    println!("\n## Days until a canary like stable is promoted, {runs} canaries a cell\n");
    println!(
        "| metrics | stable fails | requests/s | steps | samples | all samples take | promoted | days, median (9 of 10) | +20 points: out | requests until then |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let cell = std::env::var("CELL").unwrap_or_default();
    let mut tasks: Vec<Box<dyn FnOnce() -> String + Send>> = vec![];
    for (m, base) in [1, 3, 8].iter().flat_map(|m| [0.001, 0.01, 0.05, 0.2].map(|b| (*m, b))) {
        for rate in [1_000.0 / (7.0 * DAY), 0.05, 0.5, 5.0, 50.0] {
            for kind in ["PerStep", "Pooled", "recommended"] {
                let name = format!("{m} | {} % | {rate:.4} | {kind}", base * 100.0);
                if !name.contains(&cell) {
                    continue;
                }
                tasks.push(Box::new(move || of_traffic(&name, (m, base, rate, kind), runs)));
            }
        }
    }
    in_parallel(tasks).iter().for_each(|row| println!("{row}"));
}

fn of_traffic(name: &str, (m, base, rate, kind): (usize, f64, f64, &str), runs: usize) -> String {
    let metrics = METRICS[..m].iter().map(|m| m.replace("minSamples: 100", "minSamples: 20"));
    let evidence = if kind == "PerStep" { "PerStep" } else { "Pooled" };
    let policy = policy(&format!(
        "{{steps: [{{weight: 5, samples: 100}}, {{weight: 25, samples: 300}}, {{weight: 50, samples: 600}}], progressDeadline: 100000h, \
         analysis: {{evidence: {evidence}, metrics: [{}]}}, bake: {{duration: 0s}}}}",
        metrics.collect::<Vec<_>>().join(", ")
    ));
    let stable = Assumptions { error_rate: base, ..assumed() };
    let policy = match kind {
        "recommended" => fitting(&policy, &stable, rate, 7.0 * DAY),
        _ => recommended(&policy, &stable),
    };
    let of = |errors| {
        let truth = Truth::steady("", stable, Worse { errors, ..Worse::default() });
        of_serinus(&Setting { policy: &policy, rate }, &truth, runs, 15)
    };
    let (equal, bad) = (of(0.0), of(0.2));
    let steps = |of: fn(&Step) -> i64| {
        policy.steps.iter().map(|s| of(s).to_string()).collect::<Vec<_>>().join(", ")
    };
    let days = |After { seconds: (m, p), .. }| format!("{:.2} ({:.2})", m / DAY, p / DAY);
    format!(
        "| {name} {} % | {} | {} | {} | {} | {:.1} % | {} |",
        steps(|s| i64::from(s.weight.unwrap_or_default())),
        steps(|s| s.samples.unwrap_or_default()),
        duration(plan(&policy, &stable, Some(rate)).seconds(rate)),
        percent(equal.promotion),
        equal.promotion_after.map_or("-".into(), days),
        bad.rollback.value * 100.0,
        requests(bad.rollback_after),
    )
}

/// What keeps requests from being judged, on both sides or on one.
fn selection(runs: usize) {
    println!(
        "\n## Under selection: two steps (20, 50 %) and a bake, {runs} runs a cell ({} where it is held)\n",
        runs / 10
    );
    println!(
        "20 requests a second (100 where answers are slow), 20 minutes a step at most; shares in percent with 95 % intervals; users who got nothing, mean\n"
    );
    println!("| truth | rolled back | no answer | promoted | users hurt |");
    println!("|---|---|---|---|---|");
    let text = format!(
        "{{steps: [{{weight: 20, samples: 400, deadline: 20m}}, {{weight: 50, samples: 800, deadline: 20m}}], bake: {{duration: 2m}}, \
         analysis: {{interval: 2s, metrics: [{}, {{name: duration, duration: {{quantile: 0.9}}, margin: {{harm: 0.05, accept: 0.12}}}}]}}}}",
        METRICS[0]
    );
    let (text, errors) = (text.clone(), text.replace(", {name: duration", "]}} # "));
    let good = Behaviour::default();
    let of = |stable: Behaviour, canary: Behaviour| World {
        rate: 20.0,
        stable,
        canary,
        patience: 60.0,
        leave: 0.0,
        caller: None,
    };
    let hangs = |share, seconds| Behaviour { hangs: (share, seconds), ..good };
    let down = Behaviour { outage: (12.0, 30.0), ..good };
    let burst = Behaviour { outage: (3.0, 120.0), ..good };
    let refused = Behaviour { refused: 0.2, ..good };
    let unread = Behaviour { unread: 0.2, ..good };
    let impatient = |world: World| World { patience: 5.0, ..world };
    let leaving = World { leave: 0.2, ..of(good, good) };
    let fast = |world: World| World { rate: 100.0, ..world };
    let bad = Behaviour { errors: 0.3, ..good };
    let failing = Behaviour { errors: 1.0, ..good };
    let slow = Behaviour { median: 20.0, ..good };
    let left = Behaviour { hangs: (1.0, 300.0), ..good };
    let caller = |share, chosen, sides| Some(OneCaller { share, chosen, sides });
    let meddled =
        |share, own| World { caller: caller(share, Some(0.6), [good, own]), ..of(good, good) };
    let (large, hit) = (caller(0.5, None, [good, good]), caller(0.5, None, [good, bad]));
    let liar = caller(0.4, Some(0.6), [failing, good]);
    let cells: Vec<(&str, bool, World)> = vec![
        ("equal", false, of(good, good)),
        ("equal, a fifth of the users leaves early", false, leaving),
        (
            "equal, a tenth hangs and users leave after 5 s",
            false,
            impatient(of(hangs(0.1, 40.0), hangs(0.1, 40.0))),
        ),
        ("equal, both down 12 of 30 s, breaker on the canary", false, of(down, down)),
        ("equal, both down 3 of 120 s, breaker on the canary", false, of(burst, burst)),
        ("equal, both refuse a fifth", false, of(refused, refused)),
        ("equal, a fifth of the answers of both is not understood", false, of(unread, unread)),
        (
            "stable hangs (30 %), the canary takes 4 s instead",
            false,
            impatient(of(hangs(0.3, 40.0), hangs(0.3, 4.0))),
        ),
        (
            "canary hangs (30 %), users leave after 5 s",
            false,
            impatient(of(good, hangs(0.3, 40.0))),
        ),
        ("the same, errors alone are measured", true, impatient(of(good, hangs(0.3, 40.0)))),
        (
            "canary hangs (8 %), users leave after 5 s",
            false,
            impatient(of(good, hangs(0.08, 40.0))),
        ),
        ("30 % of the canary's answers take 15 s", false, fast(of(good, hangs(0.3, 15.0)))),
        ("canary down 12 of 30 s, with its breaker", false, of(good, down)),
        ("canary refuses a fifth", false, of(good, refused)),
        ("a fifth of the canary's answers is not understood", false, of(good, unread)),
        ("equal, one of four callers sends half", false, World { caller: large, ..of(good, good) }),
        (
            "equal, one caller (30 %) fails what it sends to the canary",
            false,
            meddled(0.3, failing),
        ),
        ("equal, the same with 60 %: the breaker opens", false, meddled(0.6, failing)),
        ("equal, one caller (30 %) asks the canary what takes 20 s", false, meddled(0.3, slow)),
        ("equal, one caller (30 %) leaves what it sends to the canary", false, meddled(0.3, left)),
        (
            "canary fails 30 % for others; one caller (40 %) has its failures on stable",
            false,
            World { caller: liar, ..of(good, bad) },
        ),
        (
            "canary fails 30 %, one of four callers sends half",
            false,
            World { caller: hit, ..of(good, bad) },
        ),
    ];
    type Cell = (String, [Estimate; 3], f64);
    let mut tasks: Vec<Box<dyn FnOnce() -> Cell + Send>> = vec![];
    let cell = std::env::var("CELL").unwrap_or_default();
    for (name, alone, world) in cells.into_iter().filter(|(name, ..)| name.contains(&cell)) {
        let policy = policy(if alone { &errors } else { &text });
        // A canary that is held is judged six hundred times a step.
        let is_held = world.caller.is_some_and(|one| one.chosen.is_some());
        let runs = if is_held { runs / 10 } else { runs };
        tasks.push(Box::new(move || {
            let (mut ends, mut hurt, mut known) = ([0; 3], 0, Boundaries::default());
            for seed in 0..runs {
                let mut rng = StdRng::seed_from_u64(seed as u64);
                let lived = Drawn::live(&policy, world, &mut rng, &mut known);
                ends[match lived.outcome.end {
                    End::RolledBack => 0,
                    End::Inconclusive => 1,
                    End::Promoted => 2,
                }] += 1;
                hurt += lived.hurt;
            }
            let hurt = hurt as f64 / runs as f64;
            (name.to_owned(), ends.map(|n| Estimate::of(n, runs)), hurt)
        }));
    }
    for (name, [back, none, promoted], hurt) in in_parallel(tasks) {
        let (back, none, promoted) = (percent(back), percent(none), percent(promoted));
        println!("| {name} | {back} | {none} | {promoted} | {hurt:.1} |");
    }
}

/// The canary's requests until an end, median (nine of ten).
fn requests(after: Option<After>) -> String {
    after.map_or("-".into(), |After { requests: (m, p), .. }| format!("{m} ({p})"))
}

fn percent(e: Estimate) -> String {
    format!("{:.2} ({:.2}–{:.2})", e.value * 100.0, e.low * 100.0, e.high * 100.0)
}

/// Stable fails 8 %; harm margin 2 points; one metric at 5 %; looks every 15 canary
/// requests; horizon 300.
fn rollback_speed(runs: usize) {
    println!("\n## Canary requests until a rollback, {runs} runs");
    println!(
        "stable fails 8 %, harm margin 2 points, one metric at 5 %, a look every 15 canary requests, horizon 300\n"
    );
    println!(
        "| rule | rolled back at 8 % (equal) | at 10 % (the margin) | at 20 %: median (9 of 10) | at 28 %: median (9 of 10) | incident on both |"
    );
    println!("|---|---|---|---|---|---|");
    // 5 % of 20 requests a second is a canary request a second. Of the budget of one step
    // nine tenths are the metric's, and four fifths of that are spent up to the horizon:
    // 0.0694444 * 0.9 * 0.8 = 0.05.
    let policy = policy(
        "{steps: [{weight: 5, samples: 300}], bake: {duration: 0s}, analysis: {interval: 15s, \
         errorRates: {falseRollback: 0.0694444}, metrics: [{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}]}}",
    );
    let setting = Setting { policy: &policy, rate: 20.0 };
    let truth = |by: f64| {
        let stable = Assumptions { error_rate: 0.08, ..Assumptions::default() };
        Truth::steady("", stable, Worse { errors: by, ..Worse::default() })
    };
    let incident = Truth { course: Course::Incident { from: 0.2, error_rate: 0.4 }, ..truth(0.0) };
    let row = |name: &str, cells: [Characteristics; 5]| {
        let samples = |c: &Characteristics| {
            format!("{}, {:.1} % found", requests(c.rollback_after), c.rollback.value * 100.0)
        };
        println!(
            "| {name} | {} | {} | {} | {} | {} |",
            percent(cells[0].rollback),
            percent(cells[1].rollback),
            samples(&cells[2]),
            samples(&cells[3]),
            percent(cells[4].rollback)
        );
    };
    let truths = [truth(0.0), truth(0.02), truth(0.12), truth(0.20), incident];
    row("Serinus", std::array::from_fn(|i| of_serinus(&setting, &truths[i], runs, 2)));
    let equal = of_serinus(&setting, &truths[0], runs, 2).rollback.value;
    let mut peers: Vec<(String, Box<dyn Rule>)> = vec![
        ("Argo Rollouts, as documented".into(), Box::new(ArgoRollouts::default())),
        ("Flagger, as documented".into(), Box::new(Flagger::default())),
        ("Kayenta, as documented".into(), Box::new(Kayenta::default())),
    ];
    let margin = of_serinus(&setting, &truths[1], runs, 2).rollback.value;
    peers.push(tuned(
        "Argo Rollouts",
        margin,
        |x| Box::new(ArgoRollouts::tuned(x)),
        &setting,
        &truths[1],
    ));
    peers.push(tuned("Flagger", margin, |x| Box::new(Flagger::tuned(x)), &setting, &truths[1]));
    peers.push(tuned("Kayenta", margin, |x| Box::new(Kayenta::tuned(x)), &setting, &truths[1]));
    for (name, mut rule) in peers {
        let runs = if name.starts_with("Kayenta") { runs / 4 } else { runs };
        let cells = std::array::from_fn(|i| of_peer(&setting, &truths[i], rule.as_mut(), runs, 2));
        row(&name, cells);
    }
    println!(
        "\nWald's bound (sequential probability ratio test of 8 + 2 % against the truth): 60 and 21."
    );
    println!("Serinus rolls back {:.2} % of equal canaries.", equal * 100.0);
}

/// The strictest threshold of a peer with which it rolls back no more at the margin
/// than Serinus does.
fn tuned(
    name: &str,
    most: f64,
    rule: impl Fn(f64) -> Box<dyn Rule>,
    setting: &Setting<'_>,
    truth: &Truth,
) -> (String, Box<dyn Rule>) {
    let rate = |x: f64| of_peer(setting, truth, rule(x).as_mut(), 2_000, 3).rollback.value;
    let (mut low, mut high) = (0.0, 10.0);
    for _ in 0..14 {
        let middle = 0.5 * (low + high);
        if rate(middle) > most { low = middle } else { high = middle }
    }
    (format!("{name}, threshold {high:.3} (as often at the margin)"), rule(high))
}

/// The tests without an end, looked at after every request from 1 to 100,000.
fn coverage(runs: usize) {
    println!(
        "\n## Tests without an end, looked at at every sample size from 1 to 100,000, {runs} runs at 5 %\n"
    );
    println!("| test | ever wrong |");
    println!("|---|---|");
    let e_process = move |p_canary: f64, p_stable: f64, each: usize, runs: usize| {
        let mut rng = StdRng::seed_from_u64(4);
        let wrong = (0..runs)
            .filter(|_| {
                let (mut past, mut log_e) = ((Share::default(), Share::default()), 0.0);
                (0..100_000).any(|_| {
                    let mut now = past;
                    now.0.n += 1.0;
                    now.0.bad += f64::from(u8::from(rng.random::<f64>() < p_canary));
                    now.1.n += each as f64;
                    now.1.bad +=
                        (0..each).filter(|_| rng.random::<f64>() < p_stable).count() as f64;
                    log_e += anytime::log_growth(past, now, 0.02);
                    past = now;
                    log_e >= 20_f64.ln()
                })
            })
            .count();
        Estimate::of(wrong, runs)
    };
    let walk = |runs: usize| {
        let mut rng = StdRng::seed_from_u64(5);
        let critical: Vec<f64> =
            (0..=100_000).map(|n| anytime::critical_z(0.05, f64::from(n), 500.0)).collect();
        let wrong = (0..runs)
            .filter(|_| {
                // Skewed values with variance one, as costs are.
                let mut sum = 0.0;
                (1..=100_000_usize).any(|n| {
                    sum += -(1.0 - rng.random::<f64>()).ln() - 1.0;
                    n >= 20 && sum / (n as f64).sqrt() > critical[n]
                })
            })
            .count();
        Estimate::of(wrong, runs)
    };
    let tasks: Vec<Box<dyn FnOnce() -> (&'static str, Estimate) + Send>> = vec![
        Box::new(move || {
            ("two shares, 10 % against 8 %, 1:1 (e-process)", e_process(0.10, 0.08, 1, runs / 2))
        }),
        Box::new(move || {
            ("two shares, 3 % against 1 %, 1:4 (e-process)", e_process(0.03, 0.01, 4, runs / 4))
        }),
        Box::new(move || ("a mean of skewed values, from 20 on (confidence sequence)", walk(runs))),
    ];
    for (name, wrong) in in_parallel(tasks) {
        println!("| {name} | {} % |", percent(wrong));
    }
}

/// 10,000 releases with six metrics each, every one with looks of its own.
fn judging_time() {
    println!("\n## Judging 10,000 releases x 6 metrics on one core\n");
    let policy = policy(&format!(
        "{{steps: [{{weight: 5, samples: 300}}], analysis: {{metrics: [{}]}}}}",
        METRICS[..6].join(", ")
    ));
    let window = Window::new(&policy, 0);
    let external = Externals::new();
    let mut rng = StdRng::seed_from_u64(6);
    let source = serinus::analysis::simulation::truth::Source::new(
        &Truth::steady("", assumed(), Worse::default()),
        &policy.analysis.metrics,
    );
    // Each release is somewhere else in its step.
    let mut releases: Vec<(Counts, Counts, Vec<_>)> = (0..10_000)
        .map(|_| {
            let (mut stable, mut canary, mut status) =
                (Counts::default(), Counts::default(), vec![]);
            for _ in 0..rng.random_range(0..18) {
                let n = rng.random_range(12..18);
                source.collect(&mut rng, 0.0, (n * 19, n), (&mut stable, &mut canary));
                let evidence = Evidence {
                    stable: &stable,
                    canary: &canary,
                    external: &external,
                    pending: 0,
                    earlier: &[],
                };
                status = assess(&window, &evidence, &status);
            }
            (stable, canary, status)
        })
        .collect();
    let mut timed = |name: &str, more: u64| {
        for (stable, canary, _) in &mut releases {
            source.collect(&mut rng, 0.0, (more * 19, more), (stable, canary));
        }
        let started = Instant::now();
        let mut looks = 0;
        for (stable, canary, status) in &mut releases {
            let evidence =
                Evidence { stable, canary, external: &external, pending: 0, earlier: &[] };
            let after = assess(&window, &evidence, status);
            looks += after
                .iter()
                .zip(status.iter())
                .filter(|(a, b)| a.looks.len() > b.looks.len())
                .count();
            *status = after;
        }
        println!("- {name}: {:.2} s ({looks} looks)", started.elapsed().as_secs_f64());
    };
    timed("counts that have grown by one request", 1);
    timed("every release takes a look", 15);
}
