//! What a policy can find, before anyone waits for it: how many requests and how long
//! each step needs, which regression it sees, and what to change when it can not decide.
//!
//! Everything comes from the tests that will really be run: the statistic at the expected
//! counts is the drift, its spread under the truth is taken by a finite difference, and
//! the power is the probability that the group-sequential test crosses its boundary at
//! the looks that will happen (`stats::sequential::first_crossings`).

use super::{
    judge::{ACCEPT_SPENDING, HARM_SPENDING, Window, planned_looks},
    stats::{
        mean::{self, Doubt, Mean},
        proportion::{self, Share},
        sequential::{critical_values, first_crossings},
        spending::Spending,
    },
};
use crate::api::{
    CanaryPolicySpec,
    canary_policy::{Metric, Step},
};

/// The chance that a canary like stable is promoted, that a good policy has.
pub const WANTED: f64 = 0.8;
/// Below this chance to accept a canary like stable, a metric can not decide.
const HOPELESS: f64 = 0.5;
/// No step asks for more samples than this.
const MOST_SAMPLES: i64 = 10_000_000;

/// What is assumed of traffic that was not seen yet. Shares are of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumptions {
    /// Stable's share of failed requests.
    pub error_rate: f64,
    /// Stable's share of failed checks, and of bad counts from Prometheus.
    pub check_failures: f64,
    /// The standard deviation of the cost of a request, over its mean.
    pub cost_variation: f64,
    /// Stable's mean score.
    pub score: f64,
    /// The standard deviation of a score.
    pub score_deviation: f64,
    /// The share of requests that get a score.
    pub feedback: f64,
    /// How many requests of one user tell as much as one of different users.
    pub design_effect: f64,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            error_rate: 0.01,
            check_failures: 0.02,
            cost_variation: 0.6,
            score: 0.8,
            score_deviation: 0.3,
            feedback: 0.2,
            design_effect: 1.0,
        }
    }
}

/// One metric in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricPlan {
    /// Its name.
    pub metric: String,
    /// The chance that a canary like stable is accepted within the step.
    pub accepts: f64,
    /// The smallest difference that is rolled back in this step in four of five cases,
    /// in the unit of its margins.
    pub detects: Option<f64>,
    /// How many canary samples are needed for the chance that is wanted of this metric.
    pub needs: Option<i64>,
    /// The smallest accept margin with which the given samples do.
    pub accept_margin: Option<f64>,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Its index, from 0.
    pub index: usize,
    /// The share of traffic that the canary sees, in percent.
    pub weight: i32,
    /// The horizon.
    pub samples: i64,
    /// How many requests of the route the horizon takes.
    pub requests: f64,
    /// The longest that it may take, in seconds.
    pub deadline: Option<f64>,
    /// Its metrics.
    pub metrics: Vec<MetricPlan>,
}

impl StepPlan {
    /// How many samples all metrics need; none when no number helps.
    pub fn needs(&self) -> Option<i64> {
        self.metrics.iter().map(|m| m.needs).try_fold(0, |most, n| n.map(|n| most.max(n)))
    }
}

/// A whole policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Every step that judges.
    pub steps: Vec<StepPlan>,
    /// A canary like stable is promoted at least this often, whatever depends on what.
    pub promotes: f64,
    /// What should be changed: the policy can not decide.
    pub problems: Vec<String>,
    /// What could be better.
    pub hints: Vec<String>,
}

/// Plans `policy`; `rate` is the requests a second of the route, when it is known.
pub fn plan(policy: &CanaryPolicySpec, assumed: &Assumptions, rate: Option<f64>) -> Plan {
    let target = metric_target(policy);
    let judging = policy.steps.iter().enumerate().filter(|(_, s)| s.percent().is_some());
    let steps: Vec<StepPlan> =
        judging.map(|(i, step)| plan_step(policy, i, step, assumed, target)).collect();
    let misses: f64 = steps.iter().flat_map(|s| &s.metrics).map(|m| 1.0 - m.accepts).sum();
    let (mut problems, mut hints) = (vec![], vec![]);
    for step in &steps {
        for metric in &step.metrics {
            if metric.accepts < HOPELESS {
                problems.push(too_few(step, metric));
            } else if metric.accepts < target {
                hints.push(too_few(step, metric));
            }
        }
        let seconds = rate.filter(|r| *r > 0.0).map(|r| step.requests / r);
        if let (Some(deadline), Some(seconds)) = (step.deadline, seconds)
            && seconds > deadline
        {
            problems.push(format!(
                "step {} needs {} at this rate and has a deadline of {}: set deadline to {} or longer, or weight higher",
                step.index + 1,
                duration(seconds),
                duration(deadline),
                duration(seconds * 1.2)
            ));
        }
    }
    Plan { steps, promotes: (1.0 - misses).max(0.0), problems, hints }
}

/// What keeps `policy` from deciding under ordinary traffic, in one text; none if it can.
/// Costs some tens of milliseconds.
pub fn undecidable(policy: &CanaryPolicySpec) -> Option<String> {
    let problems = plan(policy, &Assumptions::default(), None).problems;
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// `policy` with as many samples in each step as it needs; steps that no number of
/// samples helps stay as they are.
pub fn recommended(policy: &CanaryPolicySpec, assumed: &Assumptions) -> CanaryPolicySpec {
    let plan = plan(policy, assumed, None);
    let mut policy = policy.clone();
    for step in plan.steps {
        let Some(needs) = step.needs() else { continue };
        let samples = round_up(needs.max(20));
        let Some(own) = policy.steps.get_mut(step.index) else { continue };
        match &mut own.shadow {
            Some(shadow) => shadow.samples = samples,
            None => own.samples = Some(samples),
        }
        for metric in &mut policy.analysis.metrics {
            if let Some(score) = &mut metric.score {
                let scored = (samples as f64 * assumed.feedback) as i64;
                score.min_samples = score.min_samples.max(scored.min(needs)).max(20);
            }
        }
    }
    policy
}

/// Every metric of every step may miss as much, so that together they promote a canary
/// like stable as often as wanted (union bound).
fn metric_target(policy: &CanaryPolicySpec) -> f64 {
    let steps = policy.steps.iter().filter(|s| s.percent().is_some()).count();
    let metrics = policy.analysis.metrics.iter().filter(|m| m.margin.is_some()).count();
    1.0 - (1.0 - WANTED) / (steps * metrics).max(1) as f64
}

fn plan_step(
    policy: &CanaryPolicySpec,
    index: usize,
    step: &Step,
    assumed: &Assumptions,
    target: f64,
) -> StepPlan {
    let window = Window::new(policy, index);
    let weight = step.percent().unwrap_or(1).clamp(1, 100);
    let samples = window.horizon.unwrap_or(0);
    let share = f64::from(weight) / 100.0;
    // In a shadow step both sides answer the same requests.
    let ratio = if window.paired { 1.0 } else { (1.0 - share) / share };
    let deadline = step.deadline();
    let compared = window.metrics.iter().filter(|m| m.margin.is_some());
    let metrics = compared
        .map(|metric| {
            let question = Question { window: &window, metric, assumed, ratio };
            let samples = question.samples_of(samples);
            let needs = question.needs(target);
            MetricPlan {
                metric: metric.name.clone(),
                accepts: question.accepts(samples, question.accept()),
                detects: question.detects(samples),
                needs: needs.map(|n| question.requests_of(n)),
                accept_margin: question.accept_margin(samples, target),
            }
        })
        .collect();
    StepPlan {
        index,
        weight,
        samples,
        requests: samples as f64 / share,
        deadline: deadline.map(|d| d.0.as_secs_f64()),
        metrics,
    }
}

/// One metric in one window.
struct Question<'a> {
    window: &'a Window<'a>,
    metric: &'a Metric,
    assumed: &'a Assumptions,
    /// Stable's samples for each of the canary's.
    ratio: f64,
}

impl Question<'_> {
    fn accept(&self) -> f64 {
        self.metric.margin().accept
    }

    /// How many values the metric has when the step has seen `samples` requests.
    fn samples_of(&self, samples: i64) -> i64 {
        match &self.metric.score {
            Some(score) => {
                let scored = (samples as f64 * self.assumed.feedback) as i64;
                scored.min(score.min_samples).max(2)
            }
            None => samples,
        }
    }

    /// The other way round.
    fn requests_of(&self, samples: i64) -> i64 {
        match &self.metric.score {
            Some(_) => (samples as f64 / self.assumed.feedback.max(0.001)).ceil() as i64,
            None => samples,
        }
    }

    /// Stable's share of bad answers, for metrics that are shares.
    fn share(&self) -> Option<f64> {
        let m = self.metric;
        if let Some(latency) = m.time_to_first_token.as_ref().or(m.duration.as_ref()) {
            Some(1.0 - latency.quantile)
        } else if m.error_rate.is_some() {
            Some(self.assumed.error_rate)
        } else if m.check_failures.is_some() || m.prometheus.is_some() {
            Some(self.assumed.check_failures)
        } else {
            None
        }
    }

    /// The expected statistic for "worse by `delta`" when the canary is worse by
    /// `truth`, and its standard deviation.
    fn statistic(&self, samples: i64, truth: f64, delta: f64, accepting: bool) -> (f64, f64) {
        let n = samples as f64 / self.assumed.design_effect.max(1.0);
        if let Some(p) = self.share() {
            let canary = (p + truth).clamp(0.0, 1.0);
            let z = |more: f64| {
                let c = Share { n, bad: (n * canary + more).clamp(0.0, n) };
                let s = Share { n: n * self.ratio, bad: n * self.ratio * p };
                let (c, s) = if accepting { (c.doubted(), s) } else { (c, s.doubted()) };
                proportion::shares(c, s, delta)
            };
            // Both sides' noise, as if it were all the canary's.
            let variance = n * canary * (1.0 - canary) + n * p * (1.0 - p) / self.ratio;
            let noise = variance.sqrt().max(1e-9);
            return (z(0.0), ((z(noise) - z(-noise)) / 2.0).max(0.05));
        }
        let side = |n: f64, mean: f64, sd: f64| Mean { n, mean, variance: sd * sd, third: 0.0 };
        let z = if self.metric.score.is_some() {
            let (score, sd) = (self.assumed.score, self.assumed.score_deviation);
            let (s, c) = (side(n * self.ratio, score, sd), side(n, score - truth, sd));
            if accepting {
                mean::means(s, c.with_ends(), delta)
            } else {
                mean::means(s.with_ends(), c, delta)
            }
        } else {
            let sd = self.assumed.cost_variation;
            let canary = side(n, 1.0 + truth, sd * (1.0 + truth));
            let doubt = if accepting { Doubt::Canary } else { Doubt::Stable };
            mean::ratio(canary, side(n * self.ratio, 1.0, sd), delta, doubt)
        };
        (z, 1.0)
    }

    fn power(&self, spending: Spending, alpha: f64, samples: i64, z: f64, spread: f64) -> f64 {
        let looks = planned_looks(samples);
        let critical = critical_values(spending, alpha, &looks);
        let scaled: Vec<f64> = critical.iter().map(|c| c / spread).collect();
        first_crossings(&looks, &scaled, z / spread).iter().sum::<f64>().min(1.0)
    }

    /// The chance to accept a canary like stable with `margin`.
    fn accepts(&self, samples: i64, margin: f64) -> f64 {
        let (z, spread) = self.statistic(samples, 0.0, margin, true);
        self.power(ACCEPT_SPENDING, self.window.accept_alpha, samples, -z, spread)
    }

    /// The chance to roll back a canary that is worse by `truth`.
    fn rolls_back(&self, samples: i64, truth: f64) -> f64 {
        let (z, spread) = self.statistic(samples, truth, self.metric.margin().harm, false);
        self.power(HARM_SPENDING, self.window.harm_alpha, samples, z, spread)
    }

    fn needs(&self, target: f64) -> Option<i64> {
        let enough = |n: i64| self.accepts(n, self.accept()) >= target;
        let mut high = 20;
        while !enough(high) {
            high *= 2;
            if high > MOST_SAMPLES {
                return None;
            }
        }
        let mut low = high / 2;
        while high - low > (high / 200).max(1) {
            let middle = low + (high - low) / 2;
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }

    fn accept_margin(&self, samples: i64, target: f64) -> Option<f64> {
        bisect(0.001, 10.0, |margin| self.accepts(samples, margin) >= target)
    }

    fn detects(&self, samples: i64) -> Option<f64> {
        let most = self.share().map_or(10.0, |p| 1.0 - p);
        let most = if self.metric.score.is_some() { self.assumed.score } else { most };
        bisect(0.0, most, |truth| self.rolls_back(samples, truth) >= WANTED)
    }
}

/// The smallest value from which on `holds` is true.
fn bisect(low: f64, high: f64, holds: impl Fn(f64) -> bool) -> Option<f64> {
    if !holds(high) {
        return None;
    }
    let (mut low, mut high) = (low, high);
    for _ in 0..16 {
        let middle = 0.5 * (low + high);
        if holds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

fn too_few(step: &StepPlan, metric: &MetricPlan) -> String {
    let mut ways = vec![];
    if let Some(needs) = metric.needs {
        ways.push(format!("set samples to {}", round_up(needs)));
    }
    if let Some(margin) = metric.accept_margin {
        ways.push(format!("margin.accept to {:.3}", (margin * 1000.0).ceil() / 1000.0));
    }
    format!(
        "step {}: {} accepts a canary like stable in {:.0} % of cases within {} samples: {}",
        step.index + 1,
        metric.metric,
        metric.accepts * 100.0,
        step.samples,
        if ways.is_empty() { "leave the metric out".to_owned() } else { ways.join(", or ") }
    )
}

/// Two digits are precise enough.
fn round_up(samples: i64) -> i64 {
    let unit = 10_i64.pow((samples.max(1).ilog10()).saturating_sub(1));
    (samples + unit - 1) / unit * unit
}

/// Seconds as people read them, in the largest two units.
pub fn duration(seconds: f64) -> String {
    let s = seconds.ceil().max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(steps: &str, metrics: &str) -> CanaryPolicySpec {
        let text = format!("{{steps: {steps}, analysis: {{metrics: {metrics}}}}}");
        serde_yaml_ng::from_str(&text).unwrap()
    }

    const ERRORS: &str = "[{name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}]";

    #[test]
    fn a_hopeless_step_is_told_with_what_helps() {
        let policy = policy("[{weight: 5, samples: 20}]", ERRORS);
        let plan = plan(&policy, &Assumptions::default(), None);
        assert_eq!(plan.problems.len(), 1);
        let text = &plan.problems[0];
        assert!(text.contains("set samples to") && text.contains("margin.accept to"), "{text}");
        let better = recommended(&policy, &Assumptions::default());
        let again = super::plan(&better, &Assumptions::default(), None);
        assert!(again.problems.is_empty() && again.promotes >= WANTED, "{again:?}");
    }

    #[test]
    fn more_samples_see_smaller_differences() {
        let seen: Vec<f64> = [100, 400, 1_600]
            .iter()
            .map(|n| {
                let policy = policy(&format!("[{{weight: 5, samples: {n}}}]"), ERRORS);
                plan(&policy, &Assumptions::default(), None).steps[0].metrics[0].detects.unwrap()
            })
            .collect();
        assert!(seen[0] > seen[1] && seen[1] > seen[2] && seen[2] > 0.02, "{seen:?}");
    }

    #[test]
    fn a_deadline_that_the_rate_can_not_meet_is_a_problem() {
        let policy = policy("[{weight: 5, samples: 600, deadline: 1h}]", ERRORS);
        let plan = |rate| plan(&policy, &Assumptions::default(), Some(rate)).problems;
        assert_eq!(plan(10.0), Vec::<String>::new());
        assert!(plan(1.0)[0].contains("3h20m"), "{:?}", plan(1.0));
    }

    #[test]
    fn durations_and_samples_are_round() {
        assert_eq!([5.0, 90.0, 3_700.0, 90_000.0].map(duration), ["5s", "1m30s", "1h1m", "1d1h"]);
        assert_eq!([20, 101, 1_234, 99_100].map(round_up), [20, 110, 1_300, 100_000]);
    }
}
