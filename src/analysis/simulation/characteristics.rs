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

/// When an end came: median and nine of ten.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct After {
    /// The canary's requests until then.
    pub requests: (u64, u64),
    /// Seconds until then.
    pub seconds: (f64, f64),
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
    /// When rollbacks came; none without any.
    pub rollback_after: Option<After>,
    /// When promotions came.
    pub promotion_after: Option<After>,
    /// Seconds until the end, whatever it is: median and nine of ten.
    pub seconds: (f64, f64),
}

/// Runs `runs` canaries judged by Serinus.
pub fn of_serinus(setting: &Setting<'_>, truth: &Truth, runs: usize, seed: u64) -> Characteristics {
    Characteristics::of("Serinus", &outcomes(setting, truth, runs, seed))
}

/// How each of `runs` canaries ended that Serinus judged.
pub fn outcomes(setting: &Setting<'_>, truth: &Truth, runs: usize, seed: u64) -> Vec<Outcome> {
    let source = Source::new(truth, &setting.policy.analysis.metrics);
    let (mut rng, mut known) = (StdRng::seed_from_u64(seed), Boundaries::default());
    (0..runs).map(|_| setting.run(&source, &mut rng, &mut known)).collect()
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
    Characteristics::of(&rule.name(), &outcomes)
}

impl Characteristics {
    /// What became of the canaries that `name` judged.
    pub fn of(name: &str, outcomes: &[Outcome]) -> Self {
        let share = |end: End| {
            Estimate::of(outcomes.iter().filter(|o| o.end == end).count(), outcomes.len())
        };
        let after = |end: End| {
            let ended = || outcomes.iter().filter(|o| o.end == end);
            let mut requests: Vec<u64> = ended().map(|o| o.canary_requests).collect();
            requests.sort_unstable();
            (!requests.is_empty()).then(|| After {
                requests: (at(&requests, 0.5), at(&requests, 0.9)),
                seconds: seconds(ended()),
            })
        };
        Self {
            name: name.to_owned(),
            runs: outcomes.len(),
            rollback: share(End::RolledBack),
            inconclusive: share(End::Inconclusive),
            promotion: share(End::Promoted),
            rollback_after: after(End::RolledBack),
            promotion_after: after(End::Promoted),
            seconds: seconds(outcomes.iter()),
        }
    }
}

/// The median and nine of ten.
fn seconds<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> (f64, f64) {
    let mut seconds: Vec<f64> = outcomes.map(|o| o.seconds).collect();
    seconds.sort_unstable_by(f64::total_cmp);
    (at(&seconds, 0.5), at(&seconds, 0.9))
}

fn at<T: Copy + Default>(sorted: &[T], q: f64) -> T {
    let index = (sorted.len() as f64 * q) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
