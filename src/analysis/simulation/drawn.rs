//! One virtual canary whose requests are drawn one by one, with all that keeps a request
//! from being judged: users who give up, answers that take longer than a step, backends
//! that are down, the canary's breaker, refusals, answers that nobody can read; and with
//! one caller that sends many of them, chooses its sides and does not fare as others do.
//!
//! What gateways would report of them is judged by the code that judges real counts, so
//! that it shows whether the promises of docs/statistics.md hold under selection.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use rand::{Rng, RngExt};
use rand_distr::{Distribution, Exp, LogNormal};

use super::canary::{End, Outcome};
use crate::{
    analysis::{
        breaker::{Breaker, Passage, Probes},
        buckets,
        callers::coarse,
        external::Externals,
        judge::{self, Boundaries, Evidence, Window, assess_with, carry_over},
    },
    api::{
        CanaryPolicySpec,
        prompt_release::{CallerCounts, Counts, MetricStatus, StepEvidence, Verdict, Waits},
    },
};

/// Collections of one step at most, before it is given up.
const COLLECTIONS: usize = 2_000;

/// How one side treats requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behaviour {
    /// Half of its answers take so many seconds; the logarithm spreads by a half.
    pub median: f64,
    /// The share of requests that fail at once.
    pub errors: f64,
    /// The share that is refused as the application's mistake.
    pub refused: f64,
    /// The share that hangs, and for how many seconds, before it is answered.
    pub hangs: (f64, f64),
    /// The share of answers that nobody understands.
    pub unread: f64,
    /// It is down for so many seconds, every so many seconds.
    pub outage: (f64, f64),
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            median: 0.4,
            errors: 0.01,
            refused: 0.0,
            hangs: (0.0, 0.0),
            unread: 0.0,
            outage: (0.0, f64::INFINITY),
        }
    }
}

impl Behaviour {
    fn is_down(&self, time: f64) -> bool {
        let (down, every) = self.outage;
        down > 0.0 && time.rem_euclid(every) < down
    }
}

/// Two variants and their users.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct World {
    /// Requests a second of the route.
    pub rate: f64,
    /// The side that is compared with.
    pub stable: Behaviour,
    /// The side under comparison.
    pub canary: Behaviour,
    /// Users give up after so many seconds.
    pub patience: f64,
    /// The share of users who leave before their answer, for reasons of their own.
    pub leave: f64,
    /// One caller beside three others that are alike; without one, nobody is named.
    pub caller: Option<OneCaller>,
}

/// A caller that is not like the others, or means harm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneCaller {
    /// The share of all requests that are its own.
    pub share: f64,
    /// The share of its requests that reach the canary, when it chooses its sticky keys;
    /// otherwise they are drawn as those of others.
    pub chosen: Option<f64>,
    /// How stable and the canary treat what it asks.
    pub sides: [Behaviour; 2],
}

/// The three others, and the one.
const CALLERS: [&str; 4] = ["a", "b", "c", "one"];
const ONE: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered { unread: bool },
    Failed,
    Refused,
    GivenUp,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    started: f64,
    ends: f64,
    canary: bool,
    caller: usize,
    fate: Fate,
    probe: Option<u64>,
}

impl PartialEq for Request {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Request {}
impl PartialOrd for Request {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Request {
    fn cmp(&self, other: &Self) -> Ordering {
        self.ends.total_cmp(&other.ends)
    }
}

/// What became of one canary, and of its users.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lived {
    /// How it ended.
    pub outcome: Outcome,
    /// Users of the canary who got no answer of any side.
    pub hurt: u64,
}

/// A canary in a world.
pub struct Drawn<'a, R> {
    policy: &'a CanaryPolicySpec,
    world: World,
    rng: &'a mut R,
    known: &'a mut Boundaries,
    now: f64,
    next_arrival: f64,
    open: BinaryHeap<Reverse<Request>>,
    breaker: Breaker,
    probes: Probes<usize>,
    counts: [Counts; 2],
    callers: [[CallerCounts; CALLERS.len()]; 2],
    status: Vec<MetricStatus>,
    earlier: Vec<StepEvidence>,
    canary_requests: u64,
    hurt: u64,
}

impl<'a, R: Rng> Drawn<'a, R> {
    /// Lets a canary live through the weights of `policy` and its bake.
    pub fn live(
        policy: &'a CanaryPolicySpec,
        world: World,
        rng: &'a mut R,
        known: &'a mut Boundaries,
    ) -> Lived {
        // Outages come at any time of a canary's life.
        let now = rng.random_range(0.0..1e6);
        let (open, breaker, probes, counts, callers) = Default::default();
        let mut life = Self {
            policy,
            world,
            rng,
            known,
            now,
            next_arrival: now,
            open,
            breaker,
            probes,
            counts,
            callers,
            status: vec![],
            earlier: vec![],
            canary_requests: 0,
            hurt: 0,
        };
        let started = life.now;
        let end = life.steps();
        let (canary_requests, seconds) = (life.canary_requests, life.now - started);
        Lived { outcome: Outcome { end, canary_requests, seconds }, hurt: life.hurt }
    }

    fn steps(&mut self) -> End {
        for (index, step) in self.policy.steps.iter().enumerate() {
            let Some(weight) = step.weight else { continue };
            let deadline = step.deadline.map_or(f64::INFINITY, |d| d.0.as_secs_f64());
            match self.window(index, f64::from(weight) / 100.0, deadline) {
                Verdict::Pass => {}
                Verdict::Fail => return End::RolledBack,
                _ => return End::Inconclusive,
            }
        }
        let (bake, held) = (self.policy.bake.duration.0.as_secs_f64(), self.policy.bake.holdback);
        if bake > 0.0 && held > 0 {
            let share = 1.0 - f64::from(held) / 100.0;
            if self.window(usize::MAX, share, bake) == Verdict::Fail {
                return End::RolledBack;
            }
        }
        End::Promoted
    }

    /// One step, or the bake, at a canary's share of the traffic.
    fn window(&mut self, index: usize, share: f64, deadline: f64) -> Verdict {
        let window = Window { explained: false, ..Window::new(self.policy, index) };
        let interval = self.policy.analysis.interval.0.as_secs_f64().max(0.1);
        // Counts belong to a routing generation; what ends later is nobody's.
        (self.counts, self.callers) = Default::default();
        self.open.clear();
        self.status = carry_over(&self.status, window.pool.is_some());
        if window.pool.is_none() {
            self.earlier.clear();
        }
        let (entered, mut full_at) = (self.now, None);
        for _ in 0..COLLECTIONS {
            self.pass(self.now + interval, share);
            let [stable, canary] = self.report();
            let pending = if judge::has_samples(&window, &canary, &self.earlier) {
                let since = self.now - *full_at.get_or_insert(self.now);
                judge::pending(&window, &canary, &self.status, since)
            } else {
                0
            };
            let external = Externals::new();
            let earlier = self.earlier.as_slice();
            let (stable, canary) = (&stable, &canary);
            let evidence = Evidence { stable, canary, external: &external, pending, earlier };
            self.status = assess_with(self.known, &window, &evidence, &self.status);
            let verdict = judge::verdict(&window, &self.status);
            if verdict == Verdict::Pass && window.pool.is_some() {
                let step = i32::try_from(index).unwrap_or(i32::MAX);
                let (stable, canary) = (stable.clone().into(), canary.clone().into());
                self.earlier.push(StepEvidence { step, stable, canary, ..StepEvidence::default() });
            }
            let ended = matches!(verdict, Verdict::Pass | Verdict::Fail | Verdict::Inconclusive);
            if ended && (window.horizon.is_some() || verdict == Verdict::Fail) {
                return verdict;
            }
            if self.now - entered >= deadline {
                return Verdict::Inconclusive;
            }
        }
        Verdict::Inconclusive
    }

    /// Lets time pass until `end`.
    fn pass(&mut self, end: f64, share: f64) {
        while self.next_arrival < end {
            let arrival = self.next_arrival;
            self.finish_until(arrival);
            self.arrive(arrival, share);
            self.next_arrival += exponential(self.rng, self.world.rate);
        }
        self.finish_until(end);
        self.now = end;
    }

    fn arrive(&mut self, now: f64, share: f64) {
        let World { stable, canary, caller, .. } = self.world;
        let one = caller.filter(|one| self.rng.random::<f64>() < one.share);
        let others = if caller.is_some() { self.rng.random_range(0..ONE) } else { 0 };
        let (caller, sides, share) = match one {
            Some(one) => (ONE, one.sides, one.chosen.unwrap_or(share)),
            None => (others, [stable, canary], share),
        };
        let canary = self.rng.random::<f64>() < share;
        let side = usize::from(canary);
        self.counts[side].assigned += 1;
        self.canary_requests += u64::from(canary);
        let passage = if canary { self.breaker.admit(now, self.rng) } else { Passage::Free };
        if let Passage::Away { as_before } = passage {
            return self.turn_away(as_before, caller);
        }
        let probe = if canary { self.probes.let_through(passage) } else { None };
        let (takes, fate) = self.fate(&sides[side], now);
        let request = Request { started: now, ends: now + takes, canary, caller, fate, probe };
        self.open.push(Reverse(request));
    }

    /// As the gateways' tally does.
    fn turn_away(&mut self, as_before: bool, caller: usize) {
        let (all, own) = (&mut self.counts[1], &mut self.callers[1][caller]);
        all.turned_away.waiting += 1;
        own.turned_away.waiting += 1;
        if let Some(failed) = self.probes.turn_away(as_before, [caller]) {
            all.judge(1, failed);
            own.judge(1, failed);
        }
    }

    fn fate(&mut self, side: &Behaviour, now: f64) -> (f64, Fate) {
        let mut chance = |p: f64| p > 0.0 && self.rng.random::<f64>() < p;
        if side.is_down(now) || chance(side.errors) {
            return (0.02, Fate::Failed);
        }
        if chance(side.refused) {
            return (0.02, Fate::Refused);
        }
        let (hangs, leaves) = (chance(side.hangs.0), chance(self.world.leave));
        let unread = chance(side.unread);
        let takes = if hangs { side.hangs.1 } else { lognormal(self.rng, side.median) };
        let patience = if leaves { takes * self.rng.random::<f64>() } else { self.world.patience };
        if takes > patience {
            (patience, Fate::GivenUp)
        } else {
            (takes, Fate::Answered { unread })
        }
    }

    fn finish_until(&mut self, end: f64) {
        while let Some(Reverse(request)) = self.open.peek().copied().filter(|r| r.0.ends <= end) {
            self.open.pop();
            self.finish(&request);
        }
    }

    fn finish(&mut self, request: &Request) {
        let counts = &mut self.counts[usize::from(request.canary)];
        let took = buckets::index(request.ends - request.started);
        count_own(&mut self.callers[usize::from(request.canary)][request.caller], request, took);
        let failed = request.fate == Fate::Failed;
        match request.fate {
            Fate::Answered { unread } => {
                counts.requests += 1;
                counts.unjudged += u64::from(unread);
                counts.checked += u64::from(!unread);
                for histogram in [&mut counts.ttft, &mut counts.duration] {
                    *histogram.entry(took).or_default() += 1;
                }
            }
            Fate::Refused => counts.refused += 1,
            Fate::Failed | Fate::GivenUp => {
                counts.requests += u64::from(failed);
                counts.errors += u64::from(failed);
                counts.unfinished += u64::from(!failed);
                add(&mut counts.waited, took);
            }
        }
        if request.canary {
            // Stable answers what fails at once.
            self.hurt += u64::from(matches!(request.fate, Fate::GivenUp | Fate::Refused));
            let tells = matches!(request.fate, Fate::Answered { .. } | Fate::Failed);
            if tells {
                self.breaker.record(failed, request.ends, self.rng);
            }
            match request.probe {
                Some(probe) if tells => self.probed(probe, request.caller, failed),
                Some(probe) => self.probes.give_up(probe),
                None => {}
            }
        }
    }

    fn probed(&mut self, probe: u64, by: usize, failed: bool) {
        let (all, callers) = (&mut self.counts[1], &mut self.callers[1]);
        all.turned_away.add_probe(failed);
        for (caller, n) in self.probes.end(probe, failed) {
            all.judge(n, failed);
            callers[caller].judge(n, failed);
        }
        callers[by].turned_away.add_probe(failed);
    }

    /// What gateways report now.
    fn report(&self) -> [Counts; 2] {
        let mut counts = self.counts.clone();
        let mut callers = self.callers.clone();
        for Reverse(request) in &self.open {
            let (side, age) = (usize::from(request.canary), self.now - request.started);
            let age = buckets::index(age);
            add(&mut counts[side].open, age);
            add(&mut callers[side][request.caller].open, coarse(age));
        }
        if self.world.caller.is_some() {
            for (counts, callers) in counts.iter_mut().zip(callers) {
                counts.callers = CALLERS.map(str::to_owned).into_iter().zip(callers).collect();
            }
        }
        counts
    }
}

fn add(waits: &mut Waits, bucket: u8) {
    for histogram in [&mut waits.ttft, &mut waits.duration] {
        *histogram.entry(bucket).or_default() += 1;
    }
}

/// As the gateways count by caller.
fn count_own(own: &mut CallerCounts, request: &Request, took: u8) {
    match request.fate {
        Fate::Answered { unread } => {
            own.requests += 1;
            own.unjudged += u64::from(unread);
            own.checked += u64::from(!unread);
            for histogram in [&mut own.ttft, &mut own.duration] {
                *histogram.entry(coarse(took)).or_default() += 1;
            }
        }
        Fate::Refused => own.refused += 1,
        Fate::Failed => {
            own.requests += 1;
            own.errors += 1;
            add(&mut own.waited, coarse(took));
        }
        Fate::GivenUp => {
            own.unfinished += 1;
            add(&mut own.waited, coarse(took));
        }
    }
}

fn exponential(rng: &mut impl Rng, rate: f64) -> f64 {
    Exp::new(rate.max(1e-9)).map_or(1.0, |exp| exp.sample(rng))
}

fn lognormal(rng: &mut impl Rng, median: f64) -> f64 {
    LogNormal::new(median.max(1e-6).ln(), 0.5).map_or(median, |drawn| drawn.sample(rng))
}

#[cfg(test)]
mod tests;
