//! A plan and a simulation of the same assumptions say the same, also at the ends of what
//! may be assumed.

use super::{
    canary::Setting,
    characteristics::of_serinus,
    truth::{Truth, Worse},
};
use crate::{
    analysis::plan::{Assumptions, plan, recommended},
    api::CanaryPolicySpec,
};

const RUNS: usize = 60;

fn policy(steps: &str, metrics: &str, rest: &str) -> CanaryPolicySpec {
    let text = format!(
        "{{steps: {steps}, analysis: {{metrics: {metrics}}}, bake: {{duration: 0s}}{rest}}}"
    );
    serde_yaml_ng::from_str(&text).unwrap()
}

/// What a plan promises of a canary like stable, and what becomes of simulated ones.
fn both(policy: &CanaryPolicySpec, assumed: Assumptions, rate: f64) -> (f64, f64) {
    let promised = plan(policy, &assumed, Some(rate)).promotes;
    let truth = Truth::steady("equal", assumed, Worse::default());
    (promised, of_serinus(&Setting { policy, rate }, &truth, RUNS, 7).promotion.value)
}

const STEPS: &str = "[{weight: 20, samples: 300}, {weight: 50, samples: 600}]";
const ERRORS: &str = "{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}";
const CHECKS: &str = "{name: checks, checkFailures: {}, margin: {harm: 0.02, accept: 0.05}}";
const TTFT: &str = "{name: ttft, timeToFirstToken: {}, margin: {harm: 0.05, accept: 0.10}}";
const COST: &str = "{name: cost, costPerRequest: {}, margin: {harm: 0.25, accept: 0.50}}";
const SCORE: &str =
    "{name: score, score: {name: s, minSamples: 200}, margin: {harm: 0.05, accept: 0.15}}";

#[test]
fn a_plan_and_a_simulation_agree_at_the_extremes() {
    let usual = Assumptions::default();
    let mut assumptions = vec![usual];
    for error_rate in [0.0, 0.2, 0.5, 0.9, 1.0] {
        assumptions.push(Assumptions { error_rate, ..usual });
    }
    for check_failures in [0.0, 0.5, 1.0] {
        assumptions.push(Assumptions { check_failures, ..usual });
    }
    for cost_variation in [0.001, 1.5] {
        assumptions.push(Assumptions { cost_variation, ..usual });
    }
    for score in [0.0, 0.5, 1.0] {
        assumptions.push(Assumptions { score, ..usual });
    }
    for feedback in [0.0, 1.0] {
        assumptions.push(Assumptions { feedback, ..usual });
    }
    assumptions.push(Assumptions { score_deviation: 0.01, ..usual });
    assumptions.push(Assumptions { design_effect: 3.0, ..usual });
    let mut apart = vec![];
    for metrics in [ERRORS, CHECKS, TTFT, COST, SCORE] {
        let policy = policy(STEPS, &format!("[{metrics}]"), "");
        for assumed in &assumptions {
            let (promised, seen) = both(&policy, *assumed, 50.0);
            // So few runs are a coarse measure; the ends are not.
            if seen < promised - 0.2 || seen > promised + 0.4 {
                apart.push(format!("{promised:.2} {seen:.2} {metrics} {assumed:?}"));
            }
        }
    }
    assert!(apart.is_empty(), "promised, seen:\n{}", apart.join("\n"));
}

#[test]
fn a_plan_and_a_simulation_agree_on_what_no_time_is_left_for() {
    let usual = Assumptions::default();
    let errors = format!("[{ERRORS}]");
    let deadline = "[{weight: 20, samples: 300, deadline: 1h}]";
    for (steps, rest, rate, promoted) in [
        (deadline, "", 50.0, true),
        (deadline, "", 0.1, false),
        (STEPS, ", progressDeadline: 1h", 50.0, true),
        (STEPS, ", progressDeadline: 1h", 0.1, false),
        ("[{weight: 1, samples: 300}]", "", 1e5, true),
        ("[{weight: 50, samples: 300}]", "", 0.02, true),
        // Stable has three requests then: the step goes on until there are ten.
        ("[{weight: 99, samples: 300}]", "", 50.0, true),
    ] {
        let (promised, seen) = both(&policy(steps, &errors, rest), usual, rate);
        let text = format!("{steps}{rest} at {rate}/s: {promised} {seen}");
        assert_eq!((promised > 0.5, seen > 0.5), (promoted, promoted), "{text}");
    }
}

#[test]
fn a_plan_waits_for_the_answers_that_choose_a_threshold() {
    let latency = format!("[{TTFT}]");
    for samples in [93, 150, 200] {
        let policy = policy(&format!("[{{weight: 50, samples: {samples}}}]"), &latency, "");
        let planned = plan(&policy, &Assumptions::default(), Some(0.5));
        let truth = Truth::steady("equal", Assumptions::default(), Worse::default());
        let seen = of_serinus(&Setting { policy: &policy, rate: 0.5 }, &truth, RUNS, 7);
        assert!(seen.promotion.high >= planned.promotes, "{planned:?} {seen:?}");
        // Two hundred answers of stable, half of whose requests these are.
        let seconds = planned.steps[0].seconds(0.5);
        assert!((800.0..830.0).contains(&seconds), "{seconds}");
        assert!((0.95..1.05).contains(&(seen.seconds.0 / seconds)), "{seconds} {seen:?}");
        assert_eq!(planned.notes.len(), 1, "{:?}", planned.notes);
    }
    // It is chosen once.
    let policy = policy("[{weight: 5, samples: 300}, {weight: 50, samples: 93}]", &latency, "");
    let planned = plan(&policy, &Assumptions::default(), Some(0.5));
    assert_eq!(planned.steps[1].requests, 186.0);
}

#[test]
fn samples_that_a_plan_recommends_for_skewed_costs_suffice() {
    for (cost_variation, weight) in [(0.6, 50), (1.3, 5), (2.0, 50)] {
        let assumed = Assumptions { cost_variation, ..Assumptions::default() };
        let steps = format!("[{{weight: {weight}, samples: 20}}]");
        let policy = recommended(&policy(&steps, &format!("[{COST}]"), ""), &assumed);
        let planned = plan(&policy, &assumed, None).promotes;
        let (_, seen) = both(&policy, assumed, 2.0);
        assert!(planned >= 0.8 && seen >= 0.75, "{cost_variation}: {planned} {seen} {policy:?}");
    }
}

#[test]
fn rare_scores_are_waited_for() {
    let assumed = Assumptions { feedback: 0.02, ..Assumptions::default() };
    let score =
        "[{name: score, score: {name: s, minSamples: 300}, margin: {harm: 0.05, accept: 0.1}}]";
    let policy = policy("[{weight: 20, samples: 300}]", score, "");
    let (promised, seen) = both(&policy, assumed, 50.0);
    assert!(promised > 0.8 && seen > promised - 0.2, "{promised} {seen}");
}

#[test]
fn a_plan_knows_that_few_users_tell_little_however_much_they_send() {
    let (users, intraclass_correlation) = (300.0, 0.3);
    let assumed = Assumptions { users, intraclass_correlation, ..Assumptions::default() };
    let small = policy("[{weight: 5, samples: 600}]", &format!("[{ERRORS}]"), "");
    let planned = plan(&small, &assumed, Some(50.0));
    let metric = &planned.steps[0].metrics[0];
    assert!(metric.needs.is_none() && metric.weight.is_some_and(|w| w > 5), "{metric:?}");
    assert!(planned.problems[0].contains("more users"), "{:?}", planned.problems);
    assert!(both(&small, assumed, 50.0).1 < 0.5);
}

#[test]
fn a_floor_that_stable_breaks_promotes_nobody_and_rolls_back_nobody() {
    let floor =
        "[{name: errors, errorRate: {}, floor: {max: 0.2}, margin: {harm: 0.02, accept: 0.05}}]";
    let policy = policy(STEPS, floor, "");
    let assumed = Assumptions { error_rate: 0.4, ..Assumptions::default() };
    let truth = Truth::steady("both beyond the floor", assumed, Worse::default());
    let outcome = of_serinus(&Setting { policy: &policy, rate: 50.0 }, &truth, RUNS, 7);
    assert!(outcome.rollback.value <= 0.05, "{outcome:?}");
    assert_eq!((outcome.promotion.value, plan(&policy, &assumed, Some(50.0)).promotes), (0.0, 0.0));
}
