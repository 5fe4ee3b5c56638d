//! Operating characteristics: what becomes of many canaries under one truth.

use rand::{SeedableRng, rngs::StdRng};

use super::{
    canary::{End, Outcome, Setting},
    peers::Rule,
    truth::{Source, Truth},
};
use crate::analysis::{
    judge::Boundaries,
    stats::{normal::upper_quantile, proportion::Share},
};

/// A share of runs with its 95 % interval (Wilson, JASA 22, 1927).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The share, 0 to 1.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    /// `hits` of `runs`.
    pub fn of(hits: usize, runs: usize) -> Self {
        let share = Share { n: runs.max(1) as f64, bad: hits as f64 };
        let (n, p, z) = (share.n, share.value(), upper_quantile(0.025));
        let centre = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        Self { value: p, low: (centre - half) / scale, high: (centre + half) / scale }
    }
}

/// What became of many canaries.
#[derive(Clone, Debug, PartialEq)]
pub struct Characteristics {
    /// Who judged, and under which truth.
    pub name: String,
    /// How many canaries.
    pub runs: usize,
    /// Rolled back.
    pub rollback: Estimate,
    /// No answer.
    pub inconclusive: Estimate,
    /// Promoted.
    pub promotion: Estimate,
    /// The canary's requests until a rollback: median and nine of ten; none without any.
    pub requests_to_rollback: Option<(u64, u64)>,
    /// The canary's requests until a promotion, in the same way.
    pub requests_to_promotion: Option<(u64, u64)>,
    /// Seconds until the end, whatever it is: median and nine of ten.
    pub seconds: (f64, f64),
}

/// Runs `runs` canaries judged by Serinus.
pub fn of_serinus(setting: &Setting<'_>, truth: &Truth, runs: usize, seed: u64) -> Characteristics {
    let source = Source::new(truth, &setting.policy.analysis.metrics);
    let (mut rng, mut known) = (StdRng::seed_from_u64(seed), Boundaries::default());
    let outcomes: Vec<Outcome> =
        (0..runs).map(|_| setting.run(&source, &mut rng, &mut known)).collect();
    summary("Serinus", &outcomes)
}

/// Runs `runs` canaries judged by a peer's rule on the same truth.
pub fn of_peer(
    setting: &Setting<'_>,
    truth: &Truth,
    rule: &mut dyn Rule,
    runs: usize,
    seed: u64,
) -> Characteristics {
    let source = Source::new(truth, &[]);
    let mut rng = StdRng::seed_from_u64(seed);
    let outcomes: Vec<Outcome> =
        (0..runs).map(|_| setting.run_peer(&source, &mut rng, rule)).collect();
    summary(&rule.name(), &outcomes)
}

fn summary(name: &str, outcomes: &[Outcome]) -> Characteristics {
    let share =
        |end: End| Estimate::of(outcomes.iter().filter(|o| o.end == end).count(), outcomes.len());
    let requests = |end: End| {
        let mut requests: Vec<u64> =
            outcomes.iter().filter(|o| o.end == end).map(|o| o.canary_requests).collect();
        requests.sort_unstable();
        let at = |q: f64| requests.get((requests.len() as f64 * q) as usize).copied();
        at(0.5).zip(at(0.9))
    };
    let mut seconds: Vec<f64> = outcomes.iter().map(|o| o.seconds).collect();
    seconds.sort_unstable_by(f64::total_cmp);
    let at = |n: usize, q: f64| ((n as f64 * q) as usize).min(n.saturating_sub(1));
    let second = |q| seconds.get(at(seconds.len(), q)).copied().unwrap_or_default();
    Characteristics {
        name: name.to_owned(),
        runs: outcomes.len(),
        rollback: share(End::RolledBack),
        inconclusive: share(End::Inconclusive),
        promotion: share(End::Promoted),
        requests_to_rollback: requests(End::RolledBack),
        requests_to_promotion: requests(End::Promoted),
        seconds: (second(0.5), second(0.9)),
    }
}
