//! From counts to a verdict for every metric.
//!
//! Two one-sided tests run on each metric: *harm* (the canary is worse by more than
//! `margin.harm`) fails it, *acceptance* (it is worse by less than `margin.accept`)
//! passes it. Up to the horizon of a step both are group-sequential; harm spends its
//! error early, so that a bad canary is found soon, acceptance spends it at the end.
//! `budget` says how the promised error rates are divided.
//!
//! The information fraction is the share of the wanted canary samples that were seen at
//! each look that really happened. Between looks only the counts move, and a second test
//! goes on that may be looked at any time (`stats::anytime`): it watches for harm also
//! beyond the horizon (held, suspended, waiting for a gateway) and in windows that have
//! none (an approval, the bake).

mod budget;
mod bursts;
mod callers;
mod combined;
mod effect;
mod explain;
mod floor;
mod forecast;
mod looks;
mod measure;
mod pool;
mod together;
mod turned;

pub use self::{
    budget::Window,
    combined::{combine, doubt, hardly_seen, worse, worse_lately},
    forecast::{Ahead, ahead},
    looks::Boundaries,
    pool::{Pool, against, verdict},
};
pub(super) use self::{
    effect::of_split,
    looks::planned_looks,
    measure::{HARM_FREEDOM, answers_for},
    pool::Worth,
};
use self::{
    floor::BeyondFloor,
    looks::{due, due_at},
    measure::{Comparison, Freedom, Measured},
    pool::Seen,
    together::Scope,
};
use super::{
    buckets,
    external::Externals,
    stats::{
        anytime::{critical_z, log_growth},
        mean::Doubt,
        normal::{upper_quantile, upper_tail},
        proportion::Share,
        spending::Spending,
    },
};
use crate::api::{
    canary_policy::{Metric, PrometheusQuery},
    conditions::truncate,
    prompt_release::{Counts, InStep, MetricStatus, StepEvidence, Verdict},
};

/// Harm spends its error early: with this gamma a canary that fails three times as
/// often as stable is found on about half of the samples that O'Brien and Fleming's
/// spending needs, and an error within the margin is as rare (`cargo bench --bench verdicts`).
pub(super) const HARM_SPENDING: Spending = Spending::HwangShihDeCani(2.0);
pub(super) const ACCEPT_SPENDING: Spending = Spending::OBrienFleming;
/// Fewer observations than this on either side decide nothing, whatever the spending allows.
pub(super) const MINIMUM: f64 = 10.0;
/// Means are trusted from so many observations on.
pub(super) const MINIMUM_OF_MEANS: f64 = 20.0;
/// Tests without an end are tightest near so many samples when there is no horizon.
const OPEN_TUNED: f64 = 500.0;
/// Nothing is accepted early while so many more of the canary's requests are open than of
/// stable's: what is slow, or about to fail, has not been counted yet.
const OPEN_SHARE: f64 = 0.01;
/// The longest message that the API accepts.
const LONGEST_MESSAGE: usize = 512;
/// Below this chance a canary is not expected to pass any more.
pub const FUTILE: f64 = 0.01;

/// What was counted in a window.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The side that is compared with.
    pub stable: &'a Counts,
    /// The side under comparison.
    pub canary: &'a Counts,
    /// What is known from elsewhere.
    pub external: &'a Externals,
    /// Canary requests that the window must wait for: drawn before it had its samples, and
    /// open since.
    pub pending: u64,
    /// What earlier steps counted; only of a window that is pooled with them.
    pub earlier: &'a [StepEvidence],
}

impl Evidence<'_> {
    /// Whether more of the canary's requests are open than of stable's, by enough to hide
    /// a difference. Both are drawn at the same time: alike, as many of each are open.
    fn hides_open(&self) -> bool {
        let drawn = |c: &Counts| c.assigned.max(1) as f64;
        let alike = self.stable.open() as f64 / drawn(self.stable) * drawn(self.canary);
        self.canary.open() as f64 - alike > OPEN_SHARE * drawn(self.canary)
    }
}

/// Whether the canary has as many requests, or pairs, as the window judges, after what the
/// `earlier` steps of its pool have counted.
pub fn has_samples(window: &Window<'_>, canary: &Counts, earlier: &[StepEvidence]) -> bool {
    let pairs = canary.paired.as_ref().map_or(0, |p| p.errors.pairs());
    let seen = if window.paired { pairs } else { canary.requests } as f64;
    let horizon = window.horizon.map(|horizon| horizon as f64);
    let horizon = window.pool.as_ref().map(|pool| pool.horizon(earlier)).or(horizon);
    // Requests are whole, sums of parts are not.
    horizon.is_some_and(|horizon| seen + 1e-6 >= horizon)
}

/// How many of the canary's requests a window that had its samples `since` seconds ago
/// waits for: those that were drawn before and are still open, but for those that are open
/// for longer than the threshold of a duration. They are known to be slow, and counted.
pub fn pending(window: &Window<'_>, canary: &Counts, previous: &[MetricStatus], since: f64) -> u64 {
    let durations = window.metrics.iter().filter(|m| m.duration.is_some());
    let thresholds =
        durations.filter_map(|metric| previous.iter().find(|m| m.metric == metric.name)?.threshold);
    let known_slow = thresholds.fold(f64::INFINITY, f64::min);
    let open = canary.open.duration.iter().filter(|(bucket, _)| {
        let longest = buckets::bound(**bucket);
        let shortest = bucket.checked_sub(1).map_or(0.0, buckets::bound);
        longest > since && shortest < known_slow * (1.0 - 1e-9)
    });
    open.fold(0, |sum, (_, n)| sum.saturating_add(*n))
}

/// Judges every metric of the window. `previous` is the result of the last call in
/// the same window, or what [`carry_over`] kept of the window before; total for any input.
pub fn assess(
    window: &Window<'_>,
    evidence: &Evidence<'_>,
    previous: &[MetricStatus],
) -> Vec<MetricStatus> {
    assess_with(&mut Boundaries::default(), window, evidence, previous)
}

/// As [`assess`], with critical values that are known from before: many canaries with
/// the same looks are simulated much faster.
pub fn assess_with(
    critical: &mut Boundaries,
    window: &Window<'_>,
    evidence: &Evidence<'_>,
    previous: &[MetricStatus],
) -> Vec<MetricStatus> {
    let scope = &Scope::new(*evidence);
    let others = callers::Others::default();
    let mut assess = |window: &Window<'_>, metric: &Metric| {
        let before = previous.iter().find(|p| p.metric == metric.name);
        let mut status = assess_metric(window, metric, scope, before, critical);
        if before.is_none_or(|b| b.verdict != Verdict::Fail) {
            bursts::attribute((window, metric), scope, before, &mut status);
            let of = (window, metric);
            callers::attribute(of, scope, &others, before, critical, &mut status);
            turned::judge(of, scope, &others, before, &mut status);
        }
        status.message = truncate(&status.message, LONGEST_MESSAGE);
        status
    };
    let mut all: Vec<MetricStatus> = window.metrics.iter().map(|m| assess(window, m)).collect();
    let guarded = window.relative && !window.guards.is_empty();
    let telling = |guard: &&Metric| guarded && Measured::tells(guard, evidence, window.paired);
    if window.guards.iter().any(|guard| telling(&guard)) {
        let theirs = window.of_guards();
        let guards = window.guards.iter().filter(telling);
        all.extend(guards.map(|m| MetricStatus { guard: true, ..assess(&theirs, m) }));
    }
    all
}

/// What of a window's results counts in the next one: the frozen latency thresholds, and
/// of steps that are pooled the looks, of which no error is spent twice.
pub fn carry_over(previous: &[MetricStatus], pooled: bool) -> Vec<MetricStatus> {
    let kept = previous.iter().filter(|p| p.threshold.is_some() || pooled);
    let kept = kept.map(|p| {
        let fresh = MetricStatus {
            metric: p.metric.clone(),
            threshold: p.threshold,
            harm: p.harm,
            accept: p.accept,
            message: "a new step: nothing was counted yet".to_owned(),
            ..MetricStatus::default()
        };
        if !pooled {
            return fresh;
        }
        let accepted = p.in_step.is_some_and(|s| s.accepted);
        MetricStatus {
            unit: p.unit,
            guard: p.guard,
            frozen: p.frozen,
            looks: p.looks.clone(),
            in_step: p.in_step.map(|_| InStep { accepted, ..InStep::default() }),
            ..fresh
        }
    });
    kept.collect()
}

fn assess_metric(
    window: &Window<'_>,
    metric: &Metric,
    scope: &Scope<'_>,
    before: Option<&MetricStatus>,
    critical: &mut Boundaries,
) -> MetricStatus {
    let evidence = &scope.own;
    let own = scope.own(metric, window.paired, before);
    let measured = scope.together(&own, metric, before);
    let mut status = MetricStatus {
        metric: metric.name.clone(),
        unit: measured.unit,
        stable: measured.stable,
        canary: measured.canary,
        threshold: measured.threshold,
        frozen: measured.frozen,
        harm: metric.margin().harm,
        accept: metric.margin().accept,
        looks: before.map(|b| b.looks.clone()).unwrap_or_default(),
        log_e: before.map(|b| b.log_e).unwrap_or_default(),
        streak: before.map(|b| b.streak).unwrap_or_default(),
        difference: measured.difference(),
        interval: before.and_then(|b| b.interval),
        chance: before.and_then(|b| b.chance),
        accepted_at: before.and_then(|b| b.accepted_at),
        in_step: before.and_then(|b| b.in_step),
        batches: bursts::batches((window, metric), &own, before),
        turn: turned::follow(window, metric, &own, before),
        ..MetricStatus::default()
    };
    let clock = clock((window, metric), scope, before, &own);
    if let Some(pool) = window.pool.as_ref().filter(|_| clock.is_some()) {
        let so_far = status.in_step.unwrap_or_default();
        // While Prometheus does not answer, its last counts stay.
        let away = metric.prometheus.is_some() && own.silent().is_some();
        let counted = if away {
            so_far
        } else {
            InStep {
                stable: own.stable,
                canary: own.canary,
                difference: own.difference(),
                seen: window.seen(metric, evidence, &own) as i64,
                ..so_far
            }
        };
        status.in_step = Some(InStep { wanted: pool.wanted(metric) as i64, ..counted });
    }
    if let Some(failed) = before.filter(|b| b.verdict == Verdict::Fail) {
        (status.verdict, status.message) = (failed.verdict, failed.message.clone());
        return status;
    }
    match own.beyond_floor(metric) {
        Some(BeyondFloor::CanaryAlone(message)) => {
            (status.verdict, status.message) = (Verdict::Fail, message);
            return status;
        }
        Some(BeyondFloor::BothSides(message)) => status.floor_on_both_sides = Some(message),
        None => {}
    }
    if let (Comparison::Value(value), Some(rule)) = (measured.comparison, &metric.prometheus) {
        by_fixed_rule(value, rule, &mut status);
        return status;
    }
    if !window.relative {
        status.message = "no concurrent stable: only the floor is watched".to_owned();
        let silent = evidence.canary.ended() == 0;
        status.verdict = if silent { Verdict::NoData } else { Verdict::Undecided };
        return status;
    }
    if let Some((verdict, message)) = own.silent() {
        (status.verdict, status.message, status.streak) = (verdict, message, 0);
        return status;
    }
    watch(window, &own, before, &mut status);
    if status.verdict == Verdict::Fail {
        return status;
    }
    let horizon = window.wanted(metric);
    let seen = window.seen(metric, evidence, &own);
    let full = horizon.is_some_and(|horizon| seen >= horizon);
    let hides_open = !measured.counts_open && evidence.hides_open();
    let enough = full || (!hides_open && pool::shown(window, metric, &own, seen));
    // The look at the end of a step comes before more users do.
    let closes = enough && status.in_step.is_some_and(|s| !s.closed);
    let due = match &clock {
        Some(clock) => due_at(&status.looks, clock.time, Some(closes)),
        None => horizon.and_then(|horizon| due(&status.looks, seen, horizon)),
    };
    let ends = |t: f64| t >= 1.0 || (closes && full);
    let test = Test { window, clock: clock.as_ref() };
    match due.map(|t| (t, readiness(ends(t), &measured, evidence))) {
        Some((t, Look::Take(may_accept))) => {
            status.looks.push(t);
            if let Some(in_step) = &mut status.in_step {
                in_step.closed |= enough;
            }
            look(&test, &measured, critical, may_accept, &mut status);
        }
        Some((_, Look::WaitFor(message))) => {
            keep(before, seen, horizon, &mut status);
            status.message = message;
        }
        // A verdict that rested on one caller, or on few moments, is looked for again.
        _ if before.is_some_and(|b| b.caller.is_some() || bursts::waits(b))
            && !status.looks.is_empty() =>
        {
            let may_accept = measured.counts_open || !evidence.hides_open();
            look(&test, &measured, critical, may_accept, &mut status);
        }
        _ => keep(before, seen, horizon, &mut status),
    }
    without_looks(clock.as_ref(), [enough, full], &mut status);
    status
}

/// A step in which no look is due any more, because one was taken at a later time of the test,
/// ends with its samples: the test ended in an earlier step, or an operator that counted time
/// in another way began the canary.
fn without_looks(
    clock: Option<&pool::Clock>,
    [enough, full]: [bool; 2],
    status: &mut MetricStatus,
) {
    let (Some(clock), Some(last), Some(in_step)) =
        (clock, status.looks.last().copied(), status.in_step.as_mut())
    else {
        return;
    };
    in_step.closed |= enough && last > clock.time;
    if last >= 1.0 && full && status.verdict == Verdict::Undecided {
        in_step.closed = true;
        status.verdict = Verdict::Inconclusive;
        status.message =
            "the test over all steps ended without an answer, and this step has its samples"
                .to_owned();
    }
}

/// Where a metric is on the clocks of the steps that are pooled.
fn clock(
    (window, metric): (&Window<'_>, &Metric),
    scope: &Scope<'_>,
    before: Option<&MetricStatus>,
    own: &Measured,
) -> Option<pool::Clock> {
    let pool = window.pool.as_ref().filter(|_| metric.margin.is_some())?;
    let samples = window.seen(metric, &scope.own, own);
    let now = Seen { step: pool.here(), samples, variance: own.variance() };
    let speaks_against = own.difference().is_some_and(|d| d > metric.margin().accept);
    Some(pool.clock(metric, &scope.seen(window, metric, before), now, speaks_against))
}

/// Whether a look that is due by its samples is taken.
enum Look {
    /// It is; whether it may accept.
    Take(bool),
    /// Not before this.
    WaitFor(String),
    /// Not with so few samples.
    Skip,
}

/// Slow requests end last: a look that may end the step waits for those that were drawn
/// before it, or they would be missing from its evidence for being slow.
fn readiness(last: bool, measured: &Measured, evidence: &Evidence<'_>) -> Look {
    let least = minimum(measured);
    let waits = !measured.counts_open && evidence.pending > 0 && evidence.hides_open();
    if last && waits {
        let open = evidence.pending;
        return Look::WaitFor(format!("has its samples; waits for {open} requests still open"));
    }
    // What few users tell may never be enough, and the step ends then, too.
    if last && measured.smallest_count() < least {
        let Measured { stable, canary, .. } = measured;
        let (stable, canary) = (stable.count, canary.count);
        let message = format!("{canary} canary and {stable} stable samples: {least} are needed");
        return Look::WaitFor(message);
    }
    if last || measured.smallest_side() >= least {
        Look::Take(last || measured.counts_open || !evidence.hides_open())
    } else {
        Look::Skip
    }
}

fn minimum(measured: &Measured) -> f64 {
    match measured.comparison {
        Comparison::Means(..) | Comparison::Differences(..) => MINIMUM_OF_MEANS,
        _ => MINIMUM,
    }
}

/// So many looks in a row beyond the limits fail, so many within them pass.
fn by_fixed_rule(value: f64, rule: &PrometheusQuery, status: &mut MetricStatus) {
    let beyond = rule.max.is_some_and(|max| value > max) || rule.min.is_some_and(|min| value < min);
    status.streak = match (beyond, status.streak) {
        (true, streak) => streak.min(0).saturating_sub(1),
        (false, streak) => streak.max(0).saturating_add(1),
    };
    status.verdict = if status.streak <= -rule.consecutive {
        Verdict::Fail
    } else if status.streak >= rule.consecutive {
        Verdict::Pass
    } else {
        Verdict::Undecided
    };
    status.message = explain::fixed_rule(value, rule, status.streak);
}

/// Watches for harm without an end, at every collection.
fn watch(
    window: &Window<'_>,
    measured: &Measured,
    before: Option<&MetricStatus>,
    status: &mut MetricStatus,
) {
    let n = measured.smallest_side();
    let enough = n >= minimum(measured);
    let tuned = window.horizon.map_or(OPEN_TUNED, |h| h as f64);
    let alpha = turned::from_the_start(window.open_alpha, window, measured);
    let z = critical_z(alpha, n, tuned);
    // Counts of open requests also fall: no batch of them can be told from the one before.
    let batches = !measured.counts_open;
    let failed = if let (Comparison::Shares(canary, stable), true) = (measured.comparison, batches)
    {
        let sides = |b: &MetricStatus| match (&b.turn, b.in_step.filter(|_| window.pool.is_some()))
        {
            // Since both sides were in a batch.
            (Some(turn), _) => (as_share(turn.counted.canary), as_share(turn.counted.stable)),
            (None, Some(step)) => (as_share(step.canary), as_share(step.stable)),
            (None, None) => (as_share(b.canary), as_share(b.stable)),
        };
        let past = before.map(sides).unwrap_or_default();
        let growth = log_growth(past, (canary, stable), status.harm) / measured.effects.larger();
        // Kept within what JSON can hold; far beyond any threshold.
        status.log_e = (status.log_e + growth).clamp(-1e6, 1e6);
        // Its growth rests on the design effect. Where few users make that uncertain, all
        // counts together have to show the difference, too.
        let shown = measured.freedom(Doubt::Stable).is_infinite()
            || measured.z_watched(status.harm) > upper_quantile(alpha);
        enough && shown && status.log_e >= -alpha.ln()
    } else {
        n >= MINIMUM_OF_MEANS && measured.z_watched(status.harm) > z
    };
    if window.horizon.is_none() && enough {
        let limit = |doubt, z| measured.limit(doubt, Freedom::All, z);
        status.interval = Some([limit(Doubt::Stable, z), limit(Doubt::Canary, -z)]);
    }
    if failed {
        status.verdict = Verdict::Fail;
        status.message = explain::open_failure(measured, status);
    }
}

fn as_share(sample: crate::api::prompt_release::Sample) -> Share {
    let n = sample.count as f64;
    Share { n, bad: (sample.value * n).round() }
}

/// Between looks the verdict and the interval stay.
fn keep(before: Option<&MetricStatus>, seen: f64, horizon: Option<f64>, status: &mut MetricStatus) {
    status.verdict = match before.map(|b| b.verdict) {
        // In a step that has just begun.
        _ if status.in_step.is_some_and(|s| s.accepted) => Verdict::Pass,
        Some(Verdict::NoData) | None => Verdict::Undecided,
        Some(verdict) => verdict,
    };
    status.message = match (before, horizon) {
        (Some(b), _) if b.verdict == status.verdict && !status.looks.is_empty() => {
            b.message.clone()
        }
        (_, Some(horizon)) => format!("{seen} of {horizon} canary samples"),
        (_, None) => "watched for harm".to_owned(),
    };
}

/// A window, and where the metric is on the clocks of those that are pooled with it.
struct Test<'a> {
    window: &'a Window<'a>,
    clock: Option<&'a pool::Clock>,
}

/// One look: compares the test statistics with their critical values.
fn look(
    test: &Test<'_>,
    measured: &Measured,
    critical: &mut Boundaries,
    may_accept: bool,
    status: &mut MetricStatus,
) {
    let window = test.window;
    let t = status.looks.last().copied().unwrap_or(1.0);
    let [harm_z, accept_z] = critical.last(test, &status.looks);
    let enough = measured.smallest_side() >= minimum(measured);
    let accepted = measured.z_accept(status.accept);
    status.verdict = if enough && measured.z_harm(status.harm) > harm_z {
        Verdict::Fail
    } else if enough && may_accept && accepted < -accept_z {
        Verdict::Pass
    } else if t >= 1.0 {
        Verdict::Inconclusive
    } else {
        Verdict::Undecided
    };
    if let Some(in_step) = &mut status.in_step {
        in_step.accepted = status.verdict == Verdict::Pass;
    }
    if window.explained {
        let (low, high) = measured.range();
        let limit = |doubt, freedom, z: f64, end| match z.is_finite() {
            true => measured.limit(doubt, freedom, z),
            false => end,
        };
        let harm = |z| limit(Doubt::Stable, Freedom::AtLooks, z, low);
        let accept = |z: f64| limit(Doubt::Canary, Freedom::All, -z, high);
        status.interval = Some([harm(harm_z), accept(accept_z)]);
        status.chance = Some(chance(-accepted, t, window.accept_alpha));
        status.accepted_at = Some(forecast::accepted_at(-accepted, t, window.accept_alpha));
        status.message = explain::look(measured, status);
    }
}

/// The conditional power of acceptance: the chance that the statistic, now `z` at
/// information fraction `t`, is beyond its last critical value at the horizon if it goes
/// on as so far (Lan and Wittes, Biometrics 44, 1988). It informs and stops no test:
/// futility is not binding, and the error rates do not rest on it.
fn chance(z: f64, t: f64, alpha: f64) -> f64 {
    if t >= 1.0 || !z.is_finite() {
        return f64::from(u8::from(z > upper_quantile(alpha)));
    }
    let (score, left) = (z * t.sqrt(), 1.0 - t);
    upper_tail((upper_quantile(alpha) - score - score / t * left) / left.sqrt())
}

#[cfg(test)]
mod drawn;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
