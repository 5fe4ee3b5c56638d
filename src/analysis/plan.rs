//! What a policy can find, before anyone waits for it: how many requests and how long
//! each step needs, which regression it sees, and what to change when it can not decide.
//!
//! Everything comes from the tests that will really be run: the statistic at the expected
//! counts is the drift, its spread under the truth is taken by a finite difference, and
//! the power is the probability that the group-sequential test crosses its boundary at
//! the looks that will happen (`stats::sequential::first_crossings`).

mod assumptions;
mod question;
mod recommend;

use self::question::Question;
pub use self::{
    assumptions::Assumptions,
    recommend::{fitting, recommended},
};
use super::judge::{Pool, Window};
use crate::api::{CanaryPolicySpec, GoDuration, canary_policy::Step};

/// The chance that a canary like stable is promoted, that a good policy has.
pub const WANTED: f64 = 0.8;
/// Below this chance to accept a canary like stable, a metric can not decide.
const HOPELESS: f64 = 0.5;
/// No step asks for more samples than this.
const MOST_SAMPLES: i64 = 10_000_000;

/// One metric in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricPlan {
    /// Its name.
    pub metric: String,
    /// The chance that a canary like stable is accepted within the step's samples.
    pub accepts: f64,
    /// The same before the step's deadline, as far as the rate is known.
    pub in_time: f64,
    /// Stable itself is beyond the metric's floor.
    pub beyond_floor: bool,
    /// The metric's samples are scores, which come by themselves.
    pub scored: bool,
    /// The smallest difference that is rolled back in this step in four of five cases,
    /// in the unit of its margins.
    pub detects: Option<f64>,
    /// How many canary samples (or scores) are needed for the chance that is wanted of
    /// this metric.
    pub needs: Option<i64>,
    /// The smallest accept margin with which the given samples do.
    pub accept_margin: Option<f64>,
    /// Of what no number of samples helps, the smallest weight at which some do.
    pub weight: Option<i32>,
    /// The canary samples that it takes until stable has the answers that choose the
    /// threshold of a latency, if these are more than the step's.
    pub chooses: Option<i64>,
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
    /// How many requests of the route it takes until every metric had its samples.
    pub requests: f64,
    /// The longest that it may take, in seconds.
    pub deadline: Option<f64>,
    /// The warm-up before and the shortest time of it, in seconds.
    pub least: [f64; 2],
    /// Its metrics; none of a step whose evidence is pooled with that of later ones.
    pub metrics: Vec<MetricPlan>,
    /// The samples of the steps before whose evidence is pooled with that of this one.
    pub earlier: i64,
}

impl StepPlan {
    /// How long it takes at a rate of requests a second, in seconds.
    pub fn seconds(&self, rate: f64) -> f64 {
        let [warm_up, shortest] = self.least;
        warm_up + (self.requests / rate).max(shortest)
    }

    /// How many samples all metrics need, with those of the steps that are pooled; none when no
    /// number helps.
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
    /// What else to know: which step takes longer than its samples say, and what is assumed.
    pub notes: Vec<String>,
}

impl Plan {
    /// How long all steps take at a rate of requests a second when each sees all its samples,
    /// in seconds.
    pub fn seconds(&self, rate: f64) -> f64 {
        self.steps.iter().map(|step| step.seconds(rate)).sum()
    }
}

/// Plans `policy`; `rate` is the requests a second of the route, when it is known.
pub fn plan(policy: &CanaryPolicySpec, assumed: &Assumptions, rate: Option<f64>) -> Plan {
    let rate = rate.filter(|rate| *rate > 0.0);
    let target = metric_target(policy);
    let whole = policy.progress_deadline.0.as_secs_f64();
    let (mut steps, mut spent, mut is_late) = (vec![], 0.0, false);
    for (index, step) in policy.steps.iter().enumerate().filter(|(_, s)| s.percent().is_some()) {
        let left = (whole - spent).max(0.0);
        let left = step.deadline().map_or(left, |d| left.min(d.0.as_secs_f64()));
        let time = rate.map(|rate| (rate, if is_late { 0.0 } else { left }));
        let planned = plan_step(policy, index, step, assumed, target, time);
        // A step that proves nothing goes on with its samples: where these come too late, no
        // later step is reached.
        is_late |= planned.metrics.is_empty() && rate.is_some_and(|r| planned.requests / r > left);
        // The warm-up is no time of the canary's.
        spent += rate.map_or(0.0, |rate| planned.seconds(rate) - planned.least[0]);
        steps.push(planned);
    }
    // Steps are counted afresh, so they multiply; within one any metric may miss.
    let passes =
        |s: &StepPlan| (1.0 - s.metrics.iter().map(|m| 1.0 - m.in_time).sum::<f64>()).max(0.0);
    let promotes = steps.iter().map(passes).product();
    let (mut problems, mut hints, mut notes) = (vec![], vec![], assumed_of(policy, assumed));
    for step in &steps {
        for metric in &step.metrics {
            notes.extend(later(step, metric));
            if metric.accepts < HOPELESS {
                problems.push(too_few(step, metric));
            } else if metric.accepts < target {
                hints.push(too_few(step, metric));
            }
        }
        problems.extend(too_short(step, rate));
    }
    if spent > whole {
        problems.push(format!(
            "all steps take {} at this rate and progressDeadline is {}: set it to {} or longer, or weights higher",
            duration(spent),
            duration(whole),
            duration(spent * 1.2)
        ));
    }
    Plan { steps, promotes, problems, hints, notes }
}

/// Why a step goes on beyond its samples for a metric, if it does.
fn later(step: &StepPlan, metric: &MetricPlan) -> Option<String> {
    let samples = metric.chooses?;
    Some(format!(
        "step {}: the threshold of {} is chosen when stable has enough answers, after about {samples} canary samples instead of {}: the step goes on until then",
        step.index + 1,
        metric.metric,
        step.samples
    ))
}

/// What is assumed of what the policy measures, beyond plain shares.
fn assumed_of(policy: &CanaryPolicySpec, assumed: &Assumptions) -> Vec<String> {
    let mut notes = vec![];
    if policy.analysis.metrics.iter().any(|m| m.cost_per_request.is_some()) {
        notes.push(format!(
            "costs of requests are assumed to be lognormal, with a standard deviation of {:.2} times the mean (--cost-variation), so with a skewness of {:.1}: the rarer and larger the dear ones are, the more samples it takes",
            assumed.cost_variation,
            assumed.cost_skewness()
        ));
    }
    if assumed.users.is_finite() {
        notes.push(format!(
            "{:.0} users are assumed whose requests are alike by an intraclass correlation of {}: {:.0} users of a canary at 1 % never tell more than {:.0} independent requests, however many they send",
            assumed.users,
            assumed.intraclass_correlation,
            assumed.users / 100.0,
            assumed.users / 100.0 / assumed.intraclass_correlation.max(1e-9)
        ));
    }
    notes
}

/// Why the step's deadline comes too early, if it does.
fn too_short(step: &StepPlan, rate: Option<f64>) -> Option<String> {
    let deadline = step.deadline?;
    if step.least[1] >= deadline {
        return Some(format!(
            "step {} has a minDuration that its deadline of {} does not leave time for: set deadline longer",
            step.index + 1,
            duration(deadline)
        ));
    }
    let seconds = step.requests / rate?;
    (seconds > deadline).then(|| {
        format!(
            "step {} needs {} at this rate and has a deadline of {}: set deadline to {} or longer, or weight higher",
            step.index + 1,
            duration(seconds),
            duration(deadline),
            duration(seconds * 1.2)
        )
    })
}

/// What keeps `policy` from deciding under ordinary traffic, in one text; none if it can.
/// Costs some tens of milliseconds.
pub fn undecidable(policy: &CanaryPolicySpec) -> Option<String> {
    let problems = plan(policy, &Assumptions::default(), None).problems;
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// Every metric of every step may miss as much, so that together they promote a canary
/// like stable as often as wanted (union bound).
fn metric_target(policy: &CanaryPolicySpec) -> f64 {
    let decides = |(index, step): &(usize, &Step)| {
        step.percent().is_some() && Pool::of(policy, *index).is_none_or(|pool| pool.is_last())
    };
    let steps = policy.steps.iter().enumerate().filter(decides).count();
    let metrics = policy.analysis.metrics.iter().filter(|m| m.margin.is_some()).count();
    1.0 - (1.0 - WANTED) / (steps * metrics).max(1) as f64
}

/// `time` is the rate and how long the step may take at it, in seconds.
fn plan_step(
    policy: &CanaryPolicySpec,
    index: usize,
    step: &Step,
    assumed: &Assumptions,
    target: f64,
    time: Option<(f64, f64)>,
) -> StepPlan {
    let window = Window::new(policy, index);
    let weight = step.percent().unwrap_or(1).clamp(1, 100);
    let samples = window.horizon.unwrap_or(0);
    let (own, first) = (f64::from(weight) / 100.0, is_first(policy, index));
    let pool = window.pool.as_ref();
    // The evidence of several steps is that of one whose share is theirs on average, over the
    // canary's samples.
    let (earlier, share) = pool.map_or((0, own), Pool::together);
    let (mut metrics, mut requests) = (vec![], samples as f64);
    for metric in window.metrics.iter().filter(|m| m.margin.is_some()) {
        let alone = Question {
            window: &window,
            metric,
            assumed,
            share: own,
            worth: None,
            first,
            reach: None,
        };
        let in_step = window.wanted(metric).map_or(0, |wanted| wanted as i64);
        let in_step = alone.horizon(if pool.is_some() { in_step } else { samples });
        requests = requests.max(in_step as f64 * alone.requests_each());
        if pool.is_some_and(|pool| !pool.is_last()) {
            continue;
        }
        let reach = time.map(|(rate, seconds)| match seconds > 0.0 {
            true => rate * seconds * own + earlier as f64,
            false => 0.0,
        });
        let first = first && earlier == 0;
        let worth = pool.map(Pool::worth);
        let question = Question { share, worth, first, reach, ..alone };
        let patient = Question { reach: None, ..question };
        let horizon = question.horizon(samples + earlier);
        let needs = question.needs(target);
        let chooses = question.chooses().map(|n| n.ceil() as i64);
        metrics.push(MetricPlan {
            metric: metric.name.clone(),
            accepts: patient.accepts(horizon, question.accept()),
            in_time: question.accepts(horizon, question.accept()),
            beyond_floor: question.beyond_floor(),
            scored: metric.score.is_some(),
            detects: question.detects(horizon),
            needs,
            accept_margin: patient.accept_margin(horizon, target),
            weight: if needs.is_none() { weight_that_helps(&patient, target) } else { None },
            chooses: chooses.filter(|n| *n > samples),
        });
    }
    let share = own;
    let seconds = |d: Option<GoDuration>| d.map(|d| d.0.as_secs_f64());
    let least = [step.initial_delay, step.min_duration].map(|d| seconds(d).unwrap_or(0.0));
    let deadline = seconds(step.deadline());
    let requests = requests / share;
    StepPlan { index, weight, samples, requests, deadline, least, metrics, earlier }
}

/// Whether no step before has judged, so that thresholds of latencies are not chosen yet.
fn is_first(policy: &CanaryPolicySpec, index: usize) -> bool {
    policy.steps.iter().take(index).all(|step| step.percent().is_none())
}

/// A larger share of the users, where those of the step are too few.
fn weight_that_helps(question: &Question<'_>, target: f64) -> Option<i32> {
    let helps = |weight: &i32| {
        let share = f64::from(*weight) / 100.0;
        share > question.share && Question { share, ..*question }.needs(target).is_some()
    };
    [1, 2, 5, 10, 20, 25, 30, 40, 50].into_iter().find(helps)
}

/// How many requests of the route step `index` takes until every metric had its samples.
pub(super) fn requests(policy: &CanaryPolicySpec, index: usize, assumed: &Assumptions) -> f64 {
    let Some(step) = policy.steps.get(index) else { return 0.0 };
    let (window, first) = (Window::new(policy, index), is_first(policy, index));
    let share = f64::from(step.percent().unwrap_or(1).clamp(1, 100)) / 100.0;
    let samples = window.horizon.unwrap_or(0);
    let of = |metric| {
        let question =
            Question { window: &window, metric, assumed, share, worth: None, first, reach: None };
        let pooled = window.pool.as_ref().map(|pool| pool.wanted(metric) as i64);
        question.horizon(pooled.unwrap_or(samples)) as f64 * question.requests_each()
    };
    window.metrics.iter().map(of).fold(samples as f64, f64::max) / share
}

fn too_few(step: &StepPlan, metric: &MetricPlan) -> String {
    if metric.beyond_floor {
        return format!(
            "step {}: stable itself is beyond the floor of {}, so nothing passes: a floor is for what stable never does",
            step.index + 1,
            metric.metric
        );
    }
    let mut ways = vec![];
    if let Some(needs) = metric.needs.map(|needs| round_up((needs - step.earlier).max(20))) {
        ways.push(match metric.scored {
            true if needs > step.samples => {
                format!("set score.minSamples to {needs}, and samples to at least as many")
            }
            true => format!("set score.minSamples to {needs}"),
            false => format!("set samples to {needs}"),
        });
    }
    if let Some(weight) = metric.weight {
        ways.push(format!("set weight to {weight} or more, so that the canary has more users"));
    }
    if let Some(margin) = metric.accept_margin {
        ways.push(format!("margin.accept to {:.3}", (margin * 1000.0).ceil() / 1000.0));
    }
    format!(
        "step {}: {} accepts a canary like stable in {:.0} % of cases within its samples: {}",
        step.index + 1,
        metric.metric,
        metric.accepts * 100.0,
        if ways.is_empty() { "leave the metric out".to_owned() } else { ways.join(", or ") }
    )
}

/// Two digits are precise enough.
fn round_up(samples: i64) -> i64 {
    let unit = 10_i64.pow((samples.max(1).ilog10()).saturating_sub(1));
    (samples + unit - 1) / unit * unit
}

/// Seconds rounded up: to whole seconds below ten minutes, to minutes below a day, to hours
/// beyond.
pub fn rounded_up(seconds: f64) -> GoDuration {
    let unit = match seconds {
        s if s < 600.0 => 1.0,
        s if s < 86_400.0 => 60.0,
        _ => 3_600.0,
    };
    GoDuration::from_secs(((seconds / unit).ceil() * unit) as u64)
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
        let rounded = [0.2, 599.5, 3_601.0, 90_001.0].map(|s| rounded_up(s).to_string());
        assert_eq!(rounded, ["1s", "10m", "1h1m", "26h"]);
    }
}
