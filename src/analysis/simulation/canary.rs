//! One virtual canary: a policy's steps and bake on drawn counts, judged by the code
//! that judges real ones.

use rand::Rng;

use super::{
    peers::{Decision, Interval, Rule, Side},
    truth::Source,
    users::Population,
};
use crate::{
    analysis::{
        external::Externals,
        judge::{self, Boundaries, Evidence, Window, assess_with, carry_over},
        plan,
    },
    api::{
        CanaryPolicySpec, GoDuration,
        canary_policy::{OnInconclusive, Step},
        prompt_release::{Counts, MetricStatus, StepEvidence, Verdict},
    },
};

/// A step is collected at most so often: a simulation need not collect without news.
const COLLECTIONS: f64 = 60.0;
/// The simulation gives up a step that takes this many times the time that it needs.
const PATIENCE: f64 = 20.0;
/// The simulation does not wait for a metric whose samples take this many times as long as the
/// step's own.
const MOST_STEPS: f64 = 100.0;
/// The bake is collected so often.
const BAKE_COLLECTIONS: f64 = 24.0;

/// How a canary ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Shown to be worse.
    RolledBack,
    /// No answer at the horizon or the deadline.
    Inconclusive,
    /// Passed every step (and the bake).
    Promoted,
}

/// How a canary ended, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// Requests that the canary answered until then.
    pub canary_requests: u64,
    /// The time until then, in seconds.
    pub seconds: f64,
}

/// A policy under simulated traffic.
pub struct Setting<'a> {
    /// The policy.
    pub policy: &'a CanaryPolicySpec,
    /// Requests a second of the route.
    pub rate: f64,
}

fn seconds_of(duration: Option<GoDuration>) -> f64 {
    duration.map_or(0.0, |duration| duration.0.as_secs_f64())
}

/// One pass of time.
struct Pace {
    /// How long it is.
    seconds: f64,
    /// Requests of stable and canary in it.
    each: (f64, f64),
    owed: (f64, f64),
}

impl Pace {
    fn new(rate: f64, share: f64, seconds: f64) -> Self {
        let requests = rate * seconds;
        Self { seconds, each: (requests * (1.0 - share), requests * share), owed: (0.0, 0.0) }
    }

    /// Whole requests of stable and canary in the next stretch of time.
    fn next(&mut self) -> (u64, u64) {
        self.owed.0 += self.each.0;
        self.owed.1 += self.each.1;
        let whole = (self.owed.0.floor(), self.owed.1.floor());
        self.owed.0 -= whole.0;
        self.owed.1 -= whole.1;
        (whole.0 as u64, whole.1 as u64)
    }
}

impl Setting<'_> {
    fn step_seconds(&self, step: &Step) -> Option<(f64, f64)> {
        let percent = step.percent()?;
        let samples = step.horizon()? as f64;
        let share = f64::from(percent) / 100.0;
        let whole = samples / (share * self.rate);
        let interval = self.policy.analysis.interval.0.as_secs_f64();
        Some((share, interval.max(whole / COLLECTIONS)))
    }

    /// The time that all steps take when each needs all its samples, in seconds.
    pub fn seconds(&self) -> f64 {
        let of = |s: &Step| {
            let samples = s.horizon().unwrap_or(0) as f64;
            let judged =
                self.step_seconds(s).map_or(0.0, |(share, _)| samples / (share * self.rate));
            seconds_of(s.initial_delay) + judged.max(seconds_of(s.min_duration))
        };
        self.policy.steps.iter().map(of).sum::<f64>().max(1.0)
    }

    /// How long a step may go on that decides nothing, in seconds: much longer than it takes
    /// until the rarest of its samples are there, unless they hardly ever come.
    fn patience(&self, index: usize, source: &Source, interval: f64) -> f64 {
        let needed = plan::requests(self.policy, index, source.assumed()) / self.rate;
        let usual = COLLECTIONS * interval;
        PATIENCE * if needed < MOST_STEPS * usual { usual.max(needed) } else { usual }
    }

    /// One canary, judged by Serinus.
    pub fn run(&self, source: &Source, rng: &mut impl Rng, known: &mut Boundaries) -> Outcome {
        let (total, mut run) = (self.seconds(), Run::default());
        run.users = source.population(rng);
        for index in 0..self.policy.steps.len() {
            match self.step(index, total, source, rng, known, &mut run) {
                Verdict::Pass => {}
                Verdict::Fail => return run.ended(End::RolledBack),
                verdict => match self.policy.on_inconclusive {
                    OnInconclusive::Promote if verdict == Verdict::Inconclusive => {}
                    OnInconclusive::Rollback => return run.ended(End::RolledBack),
                    OnInconclusive::Hold | OnInconclusive::Promote => {
                        return run.ended(End::Inconclusive);
                    }
                    OnInconclusive::Extend => {
                        run.begin_anew();
                        match self.step(index, total, source, rng, known, &mut run) {
                            Verdict::Pass => {}
                            Verdict::Fail => return run.ended(End::RolledBack),
                            _ => return run.ended(End::Inconclusive),
                        }
                    }
                },
            }
        }
        let failed = self.bake(total, source, rng, known, &mut run) == Verdict::Fail;
        run.ended(if failed { End::RolledBack } else { End::Promoted })
    }

    fn step(
        &self,
        index: usize,
        total: f64,
        source: &Source,
        rng: &mut impl Rng,
        known: &mut Boundaries,
        run: &mut Run,
    ) -> Verdict {
        let step = &self.policy.steps[index];
        // An approval is given at once.
        let Some((share, seconds)) = self.step_seconds(step) else { return Verdict::Pass };
        let window = Window { explained: false, ..Window::new(self.policy, index) };
        let deadline = step.deadline().map_or(f64::INFINITY, |d| d.0.as_secs_f64());
        let whole = self.policy.progress_deadline.0.as_secs_f64();
        let (delay, least) = (seconds_of(step.initial_delay), seconds_of(step.min_duration));
        // What is answered while a step warms up is not judged.
        run.seconds += delay;
        run.warm_ups += delay;
        run.canary_requests +=
            (delay * share * self.rate * f64::from(u8::from(!window.paired))) as u64;
        let patience = self.patience(index, source, seconds);
        let mut pace = Pace::new(self.rate, share, seconds);
        let (mut stable, mut canary) = (Counts::default(), Counts::default());
        let (mut waited, entered) = (0.0, run.seconds);
        run.enter(window.pool.is_some());
        loop {
            let (n_stable, n_canary) = pace.next();
            run.seconds += seconds;
            waited += seconds;
            let time = run.seconds / total;
            if window.paired {
                // Stable answers all; the canary gets copies of some.
                let none = &mut Counts::default();
                source.collect(rng, time, (n_stable + n_canary, 0), (&mut stable, none));
                source.collect_pairs(rng, time, n_canary, &mut canary);
            } else {
                let requests = (n_stable, n_canary);
                run.collect(source, rng, (time, share), requests, [&mut stable, &mut canary]);
            }
            let verdict = run.judge(&window, &stable, &canary, known);
            let early = verdict == Verdict::Pass && waited < least;
            if verdict == Verdict::Pass && !early && window.pool.is_some() {
                run.close(index, stable, canary);
                return verdict;
            }
            if !early && !matches!(verdict, Verdict::Undecided | Verdict::NoData) {
                return verdict;
            }
            let lost = waited > patience + least;
            let late = run.seconds - entered >= deadline || run.seconds - run.warm_ups >= whole;
            if (late && !early) || lost {
                // The step ended without its samples, which is no answer.
                return Verdict::NoData;
            }
        }
    }

    fn bake(
        &self,
        total: f64,
        source: &Source,
        rng: &mut impl Rng,
        known: &mut Boundaries,
        run: &mut Run,
    ) -> Verdict {
        let seconds = self.policy.bake.duration.0.as_secs_f64();
        let holdback = f64::from(self.policy.bake.holdback) / 100.0;
        if seconds <= 0.0 || holdback <= 0.0 {
            return Verdict::Pass;
        }
        let window = Window { explained: false, ..Window::new(self.policy, usize::MAX) };
        let mut pace = Pace::new(self.rate, 1.0 - holdback, seconds / BAKE_COLLECTIONS);
        let (mut stable, mut canary) = (Counts::default(), Counts::default());
        run.begin_anew();
        for _ in 0..BAKE_COLLECTIONS as usize {
            let requests = pace.next();
            run.seconds += pace.seconds;
            let time = run.seconds / total;
            let share = 1.0 - holdback;
            run.collect(source, rng, (time, share), requests, [&mut stable, &mut canary]);
            if run.judge(&window, &stable, &canary, known) == Verdict::Fail {
                return Verdict::Fail;
            }
        }
        Verdict::Pass
    }

    /// The same truth, judged by a peer's rule on the error rate.
    pub fn run_peer(&self, source: &Source, rng: &mut impl Rng, rule: &mut dyn Rule) -> Outcome {
        let (total, mut run) = (self.seconds(), Run::default());
        rule.reset();
        for step in &self.policy.steps {
            let Some((share, seconds)) = self.step_seconds(step) else { continue };
            let samples = step.samples.unwrap_or(0) as u64;
            let mut pace = Pace::new(self.rate, share, seconds);
            let mut seen = 0;
            loop {
                let requests = pace.next();
                run.seconds += seconds;
                run.canary_requests += requests.1;
                seen += requests.1;
                let (mut stable, mut canary) = (Counts::default(), Counts::default());
                source.collect(rng, run.seconds / total, requests, (&mut stable, &mut canary));
                let side = |c: &Counts| Side { n: c.requests, bad: c.errors };
                let interval = Interval { stable: side(&stable), canary: side(&canary) };
                match rule.look(&interval, seen >= samples) {
                    Decision::Continue if seen < samples => {}
                    Decision::Continue | Decision::Promote => break,
                    Decision::Rollback => return run.ended(End::RolledBack),
                    Decision::Inconclusive => return run.ended(End::Inconclusive),
                }
            }
        }
        run.ended(End::Promoted)
    }
}

#[derive(Default)]
struct Run {
    /// The users of this canary, when they are not all alike.
    users: Option<Population>,
    status: Vec<MetricStatus>,
    /// What earlier steps counted, when these are pooled.
    earlier: Vec<StepEvidence>,
    /// Of the time, what steps warmed up.
    warm_ups: f64,
    canary_requests: u64,
    seconds: f64,
}

impl Run {
    fn enter(&mut self, pooled: bool) {
        self.status = carry_over(&self.status, pooled);
        if !pooled {
            self.earlier.clear();
        }
    }

    /// Nothing of what was counted before is evidence of what comes.
    fn begin_anew(&mut self) {
        self.enter(false);
    }

    fn close(&mut self, index: usize, stable: Counts, canary: Counts) {
        let step = i32::try_from(index).unwrap_or(i32::MAX);
        let (stable, canary) = (stable.into(), canary.into());
        self.earlier.push(StepEvidence { step, stable, canary, ..StepEvidence::default() });
    }

    /// Collects what happened while the canary had `share` of the users.
    fn collect(
        &mut self,
        source: &Source,
        rng: &mut impl Rng,
        (time, share): (f64, f64),
        requests: (u64, u64),
        to: [&mut Counts; 2],
    ) {
        let (stable, canary) = source.busy(rng, requests);
        self.canary_requests += match &self.users {
            Some(users) => source.collect_of_users(rng, users, stable + canary, share, to),
            None => {
                let [to_stable, to_canary] = to;
                source.collect(rng, time, (stable, canary), (to_stable, to_canary));
                canary
            }
        };
    }

    fn judge(
        &mut self,
        window: &Window<'_>,
        stable: &Counts,
        canary: &Counts,
        known: &mut Boundaries,
    ) -> Verdict {
        let external = Externals::new();
        let earlier = self.earlier.as_slice();
        let evidence = Evidence { stable, canary, external: &external, pending: 0, earlier };
        self.status = assess_with(known, window, &evidence, &self.status);
        judge::verdict(window, &self.status)
    }

    fn ended(&self, end: End) -> Outcome {
        Outcome { end, canary_requests: self.canary_requests, seconds: self.seconds }
    }
}
