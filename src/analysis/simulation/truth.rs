//! What is true of two simulated variants, and the counts that gateways would report.

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use super::{
    draws::{add, add_cost, add_many, add_to, alike, binomial, merge, mixed, spread, table, users},
    users::{Chances, Population, User, Users},
};
use crate::{
    analysis::{buckets, callers::coarse, plan::Assumptions, stats::normal::upper_tail},
    api::{
        canary_policy::Metric,
        prompt_release::{Counts, GroupedScore, Groups, Paired, Sums},
    },
    rollout::assignment::GROUPS,
};

/// The latency of half of stable's answers, and the spread of its logarithm.
const MEDIAN_LATENCY: f64 = 0.4;
const LATENCY_SPREAD: f64 = 0.5;
/// A canary's additional slow answers take so long.
const SLOW: f64 = 10.0;
/// USD a request on average.
const COST: f64 = 0.01;

/// How much worse the canary is: shares in points, cost relative, score as a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Worse {
    /// Share of failed requests.
    pub errors: f64,
    /// Share of failed checks.
    pub checks: f64,
    /// Share of answers slower than stable's quantile.
    pub slow: f64,
    /// Cost of a request, relative.
    pub cost: f64,
    /// Mean score.
    pub score: f64,
}

/// How the truth changes over time. Times are fractions of the time that all steps take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Course {
    /// It does not.
    Steady,
    /// An incident hits both variants: from this time on so many requests fail.
    Incident {
        /// When it starts.
        from: f64,
        /// The error rate of both from then on.
        error_rate: f64,
    },
    /// The canary is like stable at first and gets worse evenly, up to the full difference.
    Drift,
    /// Now and then both fail much more often for a while.
    Bursts {
        /// The share of time in which they do.
        share: f64,
        /// The error rate then.
        error_rate: f64,
    },
    /// The same on each side at times of its own: on average they are alike.
    BurstsApart {
        /// The share of time in which a side does.
        share: f64,
        /// The error rate then.
        error_rate: f64,
    },
    /// Now and then more answers of one side are slow, at times of its own: on average the sides
    /// are alike.
    SlowApart {
        /// The share of time in which a side has slow answers.
        share: f64,
        /// The share of its answers that are slow then.
        slow: f64,
    },
    /// Requests come unevenly: between two collections there are many or hardly any.
    Uneven,
    /// Each user sends so many requests, which all go well or all fail.
    Conversations {
        /// Requests a user.
        turns: u64,
    },
    /// Users who are few, uneven and not alike.
    Users(Users),
    /// Costs are not lognormal: all are alike, but for a share of them.
    Dear {
        /// The share of requests that cost more.
        share: f64,
        /// How many times as much as the others.
        times: f64,
    },
    /// Gateways restart: what they had counted since the last collection is lost.
    Restarts {
        /// The share of collections that is lost.
        share: f64,
    },
}

/// A part of the cost goes with the length of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inputs {
    /// The part of the mean cost.
    pub share: f64,
    /// The standard deviation of the logarithm of lengths.
    pub spread: f64,
    /// Gateways tell the lengths.
    pub told: bool,
}

/// What is true of both variants.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Its name in tables.
    pub name: String,
    /// Stable's behaviour.
    pub stable: Assumptions,
    /// The canary's difference.
    pub worse: Worse,
    /// How it changes.
    pub course: Course,
    /// What the cost goes with; none: with nothing that is known before.
    pub inputs: Option<Inputs>,
}

impl Truth {
    /// A steady truth, of as many users and turns that are as alike as is assumed.
    pub fn steady(name: &str, stable: Assumptions, worse: Worse) -> Self {
        let turns = stable.design_effect.round() as u64;
        let course = if stable.users.is_finite() {
            Course::Users(Users {
                count: stable.users.max(1.0) as usize,
                uneven: 0.0,
                alike: stable.intraclass_correlation,
            })
        } else if turns > 1 {
            Course::Conversations { turns }
        } else {
            Course::Steady
        };
        Self { name: name.to_owned(), stable, worse, course, inputs: None }
    }
}

/// What the metrics of a policy need: the rest is not drawn.
#[derive(Clone, Debug, Default)]
struct Wanted {
    latencies: bool,
    checks: bool,
    cost: bool,
    scores: Vec<String>,
}

/// Draws counts of both variants.
pub struct Source {
    truth: Truth,
    wanted: Wanted,
    /// The probability of each latency bucket.
    latencies: Vec<f64>,
}

/// The shares at one moment.
#[derive(Clone, Copy)]
struct Now {
    errors: f64,
    checks: f64,
    slow: f64,
    cost: f64,
    score: f64,
}

impl Source {
    /// For a truth and the metrics of a policy.
    pub fn new(truth: &Truth, metrics: &[Metric]) -> Self {
        let wanted = Wanted {
            latencies: metrics
                .iter()
                .any(|m| m.time_to_first_token.is_some() || m.duration.is_some()),
            checks: metrics.iter().any(|m| m.check_failures.is_some()),
            cost: metrics.iter().any(|m| m.cost_per_request.is_some()),
            scores: metrics.iter().filter_map(|m| Some(m.score.as_ref()?.name.clone())).collect(),
        };
        let below = |i: u8| {
            let z = (buckets::bound(i) / MEDIAN_LATENCY).ln() / LATENCY_SPREAD;
            1.0 - upper_tail(z)
        };
        let mass = |i: u8| below(i) - if i == 0 { 0.0 } else { below(i - 1) };
        let latencies = (0..buckets::BUCKETS).map(mass).collect();
        Self { truth: truth.clone(), wanted, latencies }
    }

    /// How many requests of both sides there are in a stretch of time that has these on average.
    pub(super) fn busy(&self, rng: &mut impl Rng, requests: (u64, u64)) -> (u64, u64) {
        if self.truth.course != Course::Uneven {
            return requests;
        }
        // Exponential, and a part of a request by chance.
        let factor = -(1.0 - rng.random::<f64>()).ln();
        let mut whole = |n: u64| (n as f64 * factor + rng.random::<f64>()).floor() as u64;
        (whole(requests.0), whole(requests.1))
    }

    /// What is assumed of stable.
    pub(super) fn assumed(&self) -> &Assumptions {
        &self.truth.stable
    }

    /// Adds what happened between two collections at `time` (a fraction of the whole):
    /// `stable` and `canary` requests. What a restart loses is not added.
    pub fn collect(
        &self,
        rng: &mut impl Rng,
        time: f64,
        (stable, canary): (u64, u64),
        (to_stable, to_canary): (&mut Counts, &mut Counts),
    ) {
        if let Course::Restarts { share } = self.truth.course
            && rng.random::<f64>() < share
        {
            return;
        }
        let (base, worse) = self.at(rng, time);
        self.side(rng, base, stable, to_stable);
        self.side(rng, worse, canary, to_canary);
    }

    /// The users of one canary, when they are not all alike.
    pub(super) fn population(&self, rng: &mut impl Rng) -> Option<Population> {
        let Course::Users(users) = self.truth.course else { return None };
        let (base, worse) = self.at(rng, 0.0);
        let chances = Chances {
            errors: [base.errors, worse.errors],
            checks: [base.checks, worse.checks],
            likes: [base.score, worse.score],
        };
        Some(users.draw(rng, &chances))
    }

    /// As `collect`, for `requests` of both sides together. All requests of a user go to one side,
    /// chosen by the canary's `weight` (a share). Answers how many went to the canary.
    pub(super) fn collect_of_users(
        &self,
        rng: &mut impl Rng,
        users: &Population,
        requests: u64,
        weight: f64,
        to: [&mut Counts; 2],
    ) -> u64 {
        let Course::Users(Users { alike, .. }) = self.truth.course else { return 0 };
        let (base, worse) = self.at(rng, 0.0);
        let mut canary = 0;
        users.spread(rng, requests, |rng, user, n| {
            let side = usize::from(user.place < weight);
            canary += if side == 1 { n } else { 0 };
            let now = if side == 1 { worse } else { base };
            self.of_user(rng, user, side, (n, now, alike), to[side]);
        });
        canary
    }

    fn of_user(
        &self,
        rng: &mut impl Rng,
        user: &User,
        side: usize,
        (n, now, alike): (u64, Now, f64),
        counts: &mut Counts,
    ) {
        counts.assigned += n;
        counts.requests += n;
        let failed = binomial(rng, n, user.errors[side]);
        counts.errors += failed;
        let groups = &mut counts.groups;
        add_to(&mut groups.requests, user.group, n);
        add_to(&mut groups.errors, user.group, failed);
        let answered = n - failed;
        if self.wanted.checks {
            let bad = binomial(rng, answered, user.checks[side]);
            counts.checked += answered;
            counts.check_failures += bad;
            add_to(&mut groups.checked, user.group, answered);
            add_to(&mut groups.check_failures, user.group, bad);
        }
        for _ in 0..answered {
            if self.wanted.latencies {
                let seconds = if rng.random::<f64>() < now.slow {
                    SLOW
                } else {
                    MEDIAN_LATENCY * (LATENCY_SPREAD * mixed(rng, user.slow, alike)).exp()
                };
                let bucket = buckets::index(seconds);
                for histogram in [&mut counts.ttft, &mut counts.duration] {
                    *histogram.entry(bucket).or_default() += 1;
                }
                for groups in [&mut counts.groups.ttft, &mut counts.groups.duration] {
                    add_to(groups.entry(coarse(bucket)).or_default(), user.group, 1);
                }
            }
            if self.wanted.cost {
                let deviates = [mixed(rng, user.costly, alike), mixed(rng, user.slow, alike)];
                let (usd, input) = self.priced(deviates, now.cost);
                add_cost(counts, usd, input, 1);
                add_to(&mut counts.groups.costs, user.group, 1);
                add_to(&mut counts.groups.cost, user.group, usd);
                if let Some(input) = input {
                    add_to(&mut counts.groups.input, user.group, input);
                }
            }
        }
        let scored = binomial(rng, answered, self.truth.stable.feedback);
        // Two scores that are as far apart as the assumed deviation wants, so that a user's are
        // as alike as they would be at the ends.
        let far = self.truth.stable.thumbs(now.score).sqrt();
        let (high, low) = (now.score + (1.0 - now.score) * far, now.score * (1.0 - far));
        for name in &self.wanted.scores {
            let good = binomial(rng, scored, user.likes[side]);
            let sums = counts.scores.entry(name.clone()).or_default();
            add_many(sums, high, good);
            add_many(sums, low, scored - good);
            let grouped = counts.groups.scores.entry(name.clone()).or_default();
            add_to(&mut grouped.counts, user.group, scored);
            add_to(
                &mut grouped.sums,
                user.group,
                high * good as f64 + low * (scored - good) as f64,
            );
        }
    }

    /// A cost that varies as is assumed, of a standard normal deviate.
    fn lognormal(&self, z: f64) -> f64 {
        let sigma = self.truth.stable.log_cost_deviation();
        COST * (z * sigma - 0.5 * sigma * sigma).exp()
    }

    /// A cost and, if it is told, the KiB of input that it goes with: of a standard normal deviate
    /// each.
    fn priced(&self, [cost, input]: [f64; 2], factor: f64) -> (f64, Option<f64>) {
        let usd = self.lognormal(cost);
        let Some(Inputs { share, spread, told }) = self.truth.inputs else {
            return (factor * usd, None);
        };
        let long = (spread * input - 0.5 * spread * spread).exp();
        let usd = share * COST * long + (1.0 - share) * usd;
        (factor * usd, told.then_some(long))
    }

    /// As `collect`, for copies of the same requests.
    pub fn collect_pairs(&self, rng: &mut impl Rng, time: f64, pairs: u64, canary: &mut Counts) {
        let (base, worse) = self.at(rng, time);
        let paired = canary.paired.get_or_insert_default();
        table(rng, &mut paired.errors, pairs, base.errors, worse.errors);
        table(rng, &mut paired.checks, pairs, base.checks, worse.checks);
        if self.wanted.cost {
            for _ in 0..pairs {
                let [(s, _), (c, _)] = [base.cost, worse.cost].map(|factor| self.cost(rng, factor));
                add(&mut paired.cost, c - s);
                add(&mut paired.stable_cost, s);
            }
        }
        self.pair_scores(rng, pairs, base.score, worse.score, paired);
        let mut unused = Counts::default();
        self.side(rng, worse, pairs, &mut unused);
        canary.requests += unused.requests;
        merge(&mut canary.ttft, &unused.ttft);
        merge(&mut canary.duration, &unused.duration);
    }

    fn pair_scores(&self, rng: &mut impl Rng, pairs: u64, s: f64, c: f64, paired: &mut Paired) {
        let scored = binomial(rng, pairs, self.truth.stable.feedback);
        for name in &self.wanted.scores {
            let sums = paired.scores.entry(name.clone()).or_default();
            for _ in 0..scored {
                let (canary, stable) = (self.score(rng, c), self.score(rng, s));
                add(sums, canary - stable);
            }
        }
    }

    fn at(&self, rng: &mut impl Rng, time: f64) -> (Now, Now) {
        let (s, w) = (&self.truth.stable, &self.truth.worse);
        let mut burst = |share: f64, error_rate: f64| {
            if rng.random::<f64>() < share { error_rate } else { s.error_rate }
        };
        let [stable, canary] = match self.truth.course {
            Course::Incident { from, error_rate } if time >= from => [error_rate; 2],
            Course::Bursts { share, error_rate } => [burst(share, error_rate); 2],
            Course::BurstsApart { share, error_rate } => [(); 2].map(|()| burst(share, error_rate)),
            _ => [s.error_rate; 2],
        };
        let slow = match self.truth.course {
            Course::SlowApart { share, slow } => {
                [(); 2].map(|()| if rng.random::<f64>() < share { slow } else { 0.0 })
            }
            _ => [0.0; 2],
        };
        let part = if self.truth.course == Course::Drift { time.clamp(0.0, 1.0) } else { 1.0 };
        let of = |errors: f64, slow: f64, part: f64| Now {
            errors: (errors + part * w.errors).clamp(0.0, 1.0),
            checks: (s.check_failures + part * w.checks).clamp(0.0, 1.0),
            slow: (slow + part * w.slow).clamp(0.0, 1.0),
            cost: 1.0 + part * w.cost,
            score: (s.score - part * w.score).clamp(0.0, 1.0),
        };
        (of(stable, slow[0], 0.0), of(canary, slow[1], part))
    }

    fn side(&self, rng: &mut impl Rng, now: Now, n: u64, counts: &mut Counts) {
        counts.assigned += n;
        counts.requests += n;
        let turns = match self.truth.course {
            Course::Conversations { turns } => turns as f64,
            _ => self.truth.stable.design_effect.max(1.0),
        };
        let Groups { requests, errors, .. } = &mut counts.groups;
        let failed = alike(rng, turns, n, now.errors, requests, errors);
        counts.errors += failed;
        let answered = n - failed;
        // How alike the answers of one user are is another matter than how failures are.
        let turns =
            if matches!(self.truth.course, Course::Conversations { .. }) { 1.0 } else { turns };
        if self.wanted.checks {
            let Groups { checked, check_failures, .. } = &mut counts.groups;
            counts.checked += answered;
            counts.check_failures +=
                alike(rng, turns, answered, now.checks, checked, check_failures);
        }
        if self.wanted.latencies {
            let slow = binomial(rng, answered, now.slow);
            for histogram in [&mut counts.ttft, &mut counts.duration] {
                *histogram.entry(buckets::index(SLOW)).or_default() += slow;
                spread(rng, answered - slow, &self.latencies, |bucket, n| {
                    *histogram.entry(bucket as u8).or_default() += n;
                });
            }
        }
        if self.wanted.cost {
            self.side_cost(rng, turns, answered, now.cost, counts);
        }
        let scored = binomial(rng, answered, self.truth.stable.feedback);
        for name in &self.wanted.scores {
            let sums = counts.scores.entry(name.clone()).or_default();
            let grouped =
                (turns > 1.0).then(|| counts.groups.scores.entry(name.clone()).or_default());
            self.side_scores(rng, turns, scored, now.score, sums, grouped);
        }
    }

    fn side_cost(&self, rng: &mut impl Rng, turns: f64, n: u64, factor: f64, counts: &mut Counts) {
        if turns <= 1.0 {
            for _ in 0..n {
                let (usd, input) = self.cost(rng, factor);
                add_cost(counts, usd, input, 1);
            }
            return;
        }
        for list in [&mut counts.groups.cost, &mut counts.groups.input] {
            list.resize(GROUPS, 0.0);
        }
        counts.groups.costs.resize(GROUPS, 0);
        users(rng, turns, n, |rng, group, requests| {
            let (usd, input) = self.cost(rng, factor);
            add_cost(counts, usd, input, requests);
            let groups = &mut counts.groups;
            groups.costs[group] += requests;
            groups.cost[group] += usd * requests as f64;
            groups.input[group] += input.unwrap_or(0.0) * requests as f64;
        });
    }

    /// Thumbs, or a score in the middle, in the shares that give the assumed deviation.
    fn side_scores(
        &self,
        rng: &mut impl Rng,
        turns: f64,
        n: u64,
        mean: f64,
        sums: &mut Sums,
        grouped: Option<&mut GroupedScore>,
    ) {
        let thumbs = self.truth.stable.thumbs(mean);
        let Some(grouped) = grouped else {
            let extreme = binomial(rng, n, thumbs);
            let good = binomial(rng, extreme, mean);
            add_many(sums, 1.0, good);
            add_many(sums, 0.0, extreme - good);
            return add_many(sums, mean, n - extreme);
        };
        grouped.counts.resize(GROUPS, 0);
        grouped.sums.resize(GROUPS, 0.0);
        users(rng, turns, n, |rng, group, votes| {
            let score = self.score(rng, mean);
            add_many(sums, score, votes);
            grouped.counts[group] += votes;
            grouped.sums[group] += score * votes as f64;
        });
    }

    fn score(&self, rng: &mut impl Rng, mean: f64) -> f64 {
        if rng.random::<f64>() < self.truth.stable.thumbs(mean) {
            f64::from(u8::from(rng.random::<f64>() < mean))
        } else {
            mean
        }
    }

    fn cost(&self, rng: &mut impl Rng, factor: f64) -> (f64, Option<f64>) {
        if let Course::Dear { share, times } = self.truth.course {
            let dear = rng.random::<f64>() < share;
            return (factor * COST * if dear { times } else { 1.0 }, None);
        }
        self.priced([rng.sample(StandardNormal), rng.sample(StandardNormal)], factor)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// The costs of `n` requests of stable.
    fn costs(course: Course, n: usize) -> Vec<f64> {
        let stable = Assumptions { cost_variation: 1.3, ..Assumptions::default() };
        let truth = Truth { course, ..Truth::steady("", stable, Worse::default()) };
        let (source, mut rng) = (Source::new(&truth, &[]), StdRng::seed_from_u64(15));
        (0..n).map(|_| source.cost(&mut rng, 1.0).0 / COST).collect()
    }

    #[test]
    fn costs_have_the_tails_that_are_assumed() {
        let mut all = costs(Course::Steady, 200_000);
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let variance = all.iter().map(|cost| (cost - mean).powi(2)).sum::<f64>() / n;
        assert!((mean - 1.0).abs() < 0.02 && (variance.sqrt() - 1.3).abs() < 0.1, "{mean}");
        // The quantile of one in a thousand of a lognormal distribution with this variation.
        let sigma = 1.3_f64.powi(2).ln_1p().sqrt();
        let rare = (3.0902 * sigma - 0.5 * sigma * sigma).exp();
        all.retain(|cost| *cost > rare);
        assert!((150..250).contains(&all.len()), "{}", all.len());
        let dear = costs(Course::Dear { share: 0.02, times: 20.0 }, 100_000);
        let of = |times: f64| dear.iter().filter(|cost| (**cost - times).abs() < 1e-9).count();
        assert!((1_800..2_200).contains(&of(20.0)) && of(20.0) + of(1.0) == 100_000);
    }

    #[test]
    fn requests_that_come_unevenly_are_as_many_on_average_and_seldom_as_many() {
        let truth = |course| Truth {
            course,
            ..Truth::steady("", Assumptions::default(), Worse::default())
        };
        let mut rng = StdRng::seed_from_u64(15);
        let uneven = Source::new(&truth(Course::Uneven), &[]);
        let drawn: Vec<(u64, u64)> =
            (0..20_000).map(|_| uneven.busy(&mut rng, (190, 10))).collect();
        let mean = |of: fn(&(u64, u64)) -> u64| {
            drawn.iter().map(of).sum::<u64>() as f64 / drawn.len() as f64
        };
        assert!((mean(|d| d.0) / 190.0 - 1.0).abs() < 0.03, "{}", mean(|d| d.0));
        assert!((mean(|d| d.1) / 10.0 - 1.0).abs() < 0.03, "{}", mean(|d| d.1));
        // Of an exponential distribution, a tenth lies below 0.105 and a tenth above 2.303.
        let few = drawn.iter().filter(|d| d.0 < 20).count();
        let many = drawn.iter().filter(|d| d.0 > 437).count();
        assert!((1_700..2_300).contains(&few) && (1_700..2_300).contains(&many), "{few} {many}");
        assert_eq!(Source::new(&truth(Course::Steady), &[]).busy(&mut rng, (190, 10)), (190, 10));
    }

    #[test]
    fn a_side_that_is_slow_now_and_then_is_as_slow_as_the_other_on_average() {
        let metric = serde_json::from_value(serde_json::json!({
            "name": "slow", "duration": {"quantile": 0.9}, "margin": {"harm": 0.05, "accept": 0.1}
        }));
        let course = Course::SlowApart { share: 0.1, slow: 0.3 };
        let truth = Truth { course, ..Truth::steady("", Assumptions::default(), Worse::default()) };
        let (source, mut rng) =
            (Source::new(&truth, &[metric.unwrap()]), StdRng::seed_from_u64(15));
        let bucket = buckets::index(SLOW);
        let slow = |counts: &Counts| counts.duration.get(&bucket).copied().unwrap_or_default();
        let (mut all, mut bursts, mut together) = ([0; 2], [0; 2], 0);
        for _ in 0..5_000 {
            let (mut stable, mut canary) = (Counts::default(), Counts::default());
            source.collect(&mut rng, 0.5, (100, 100), (&mut stable, &mut canary));
            let now = [slow(&stable), slow(&canary)];
            let is_burst = now.map(|n| n > 5);
            for side in [0, 1] {
                all[side] += now[side];
                bursts[side] += usize::from(is_burst[side]);
            }
            together += usize::from(is_burst == [true; 2]);
        }
        // A tenth of 5,000, of the 99 that do not fail 30 %; in a hundredth both.
        assert!(bursts.iter().all(|n| (430..570).contains(n)), "{bursts:?}");
        assert!(all.iter().all(|n| (12_700..17_000).contains(n)), "{all:?}");
        assert!((25..80).contains(&together), "{together}");
    }

    #[test]
    fn scores_of_users_vary_as_is_assumed() {
        for (score, score_deviation) in [(0.6, 0.2), (0.8, 0.4), (0.95, 0.1)] {
            let users = 2_000.0;
            let stable = Assumptions {
                score,
                score_deviation,
                users,
                feedback: 1.0,
                error_rate: 0.0,
                ..Assumptions::default()
            };
            let metric = serde_json::from_value(serde_json::json!({
                "name": "m", "score": {"name": "m", "minSamples": 20},
                "margin": {"harm": 0.1, "accept": 0.2}
            }));
            let truth = Truth::steady("", stable, Worse::default());
            let source = Source::new(&truth, &[metric.unwrap()]);
            let mut rng = StdRng::seed_from_u64(15);
            let users = source.population(&mut rng).unwrap();
            let (mut on_stable, mut canary) = (Counts::default(), Counts::default());
            let to = [&mut on_stable, &mut canary];
            source.collect_of_users(&mut rng, &users, 40_000, 0.5, to);
            let sums = &on_stable.scores["m"];
            let mean = sums.sum / sums.count as f64;
            let deviation = (sums.squares / sums.count as f64 - mean * mean).sqrt();
            assert!((mean - score).abs() < 0.02, "{mean} for {score}");
            assert!((deviation / score_deviation - 1.0).abs() < 0.06, "{deviation}");
        }
    }
}
