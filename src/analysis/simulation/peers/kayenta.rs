//! Kayenta, Spinnaker's canary analysis: the judge `NetflixACAJudge-v1.0` on one metric
//! of direction `increase`, one data point an interval.
//!
//! Source: spinnaker/kayenta, commit a69573be (April 2025).
//! - `NetflixACAJudge.scala`: Mann-Whitney with `tolerance` 0.25 and `confLevel` 0.98,
//!   both constants of the code. Effect sizes are mean ratios; allowed is 1 by default.
//! - `MannWhitneyClassifier.scala`: the canary is High when the interval's lower end is
//!   above `tolerance` times the estimated shift, and the mean of the canary is at
//!   least `allowedIncrease` times the baseline's; the ratio is ignored when a mean is
//!   zero. Equal samples pass. Two constant samples get noise of one part in 100,000
//!   before the test: here their order decides, as it does there.
//! - `WeightedSumScorer.scala`: the score is the share of metrics that pass, so 0 or
//!   100 with one metric. A metric without data is left out, but when half of them or
//!   more have none, the score is 0. A test that cannot be computed is an Error, which
//!   nobody counts: the score is 100.
//! - `ThresholdScoreClassifier.scala`; `MonitorCanaryTask` and
//!   `GenerateCanaryAnalysisResultTask` of `kayenta-standalone-canary-analysis`: an
//!   interim score at or below `marginal` ends the canary; the last one must reach
//!   `pass`. So the answer at the horizon is always yes or no.
//! - `json-formats.md`: score thresholds 75 and 95.
//!
//! An interval in which a side has no requests gives NaN. By default (`nanStrategy:
//! remove`) that point is dropped on that side alone. A side without any point is
//! Nodata, which for a single metric rolls back. Spinnaker's page "How canary judgment
//! works" suggests `replace`, by zero, for error counts.
//!
//! The confidence cannot be set by a user, so a user tunes `allowedIncrease`.
//! Spinnaker's "Best practices for configuring canary" asks for at least 50 points a
//! judgement. With up to 4 points a side the interval is the whole range of the
//! differences, and any canary that lies clearly above all of stable fails.

use super::{Decision, Interval, Rule, Side, mann_whitney};

/// What stands for a point of an interval without requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// No point (`nanStrategy: remove`).
    #[default]
    Remove,
    /// Zero (`nanStrategy: replace`).
    Replace,
}

/// The rule. Change the settings of [`Kayenta::default`] as needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Kayenta {
    /// The confidence level of the interval; a constant of the judge.
    pub confidence: f64,
    /// The part of the estimated shift that the lower end must exceed; a constant of
    /// the judge.
    pub tolerance: f64,
    /// `effectSize.allowedIncrease`: the ratio of the means from which an increase
    /// counts. The threshold to scan, from 1 up.
    pub allowed_increase: f64,
    /// `scoreThresholds.pass`, 0 to 100.
    pub pass: f64,
    /// `scoreThresholds.marginal`, 0 to 100.
    pub marginal: f64,
    /// `nanStrategy`.
    pub missing: Missing,
    /// Intervals between two judgements, all on the data from the start (lookback
    /// "growing"). None: one judgement, at the horizon.
    pub every: Option<u32>,
    stable: Vec<f64>,
    canary: Vec<f64>,
    looks: u32,
}

impl Default for Kayenta {
    fn default() -> Self {
        Self {
            confidence: 0.98,
            tolerance: 0.25,
            allowed_increase: 1.0,
            pass: 95.0,
            marginal: 75.0,
            missing: Missing::Remove,
            every: None,
            stable: vec![],
            canary: vec![],
            looks: 0,
        }
    }
}

/// The judge's labels of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Pass,
    High,
    Nodata,
    Error,
}

impl Kayenta {
    /// The defaults with another allowed ratio of the means.
    pub fn tuned(allowed_increase: f64) -> Self {
        Self { allowed_increase, ..Self::default() }
    }

    fn point(&self, side: &Side) -> Option<f64> {
        match self.missing {
            _ if side.n > 0 => Some(side.bad_share()),
            Missing::Remove => None,
            Missing::Replace => Some(0.0),
        }
    }

    fn classify(&self) -> Label {
        if self.canary.is_empty() || self.stable.is_empty() {
            return Label::Nodata;
        }
        if sorted(&self.canary) == sorted(&self.stable) {
            return Label::Pass;
        }
        match (constant(&self.canary), constant(&self.stable)) {
            (Some(canary), Some(stable)) => self.compare_constants(canary, stable),
            _ => self.compare(),
        }
    }

    fn compare(&self) -> Label {
        match mann_whitney::shift(&self.canary, &self.stable, self.confidence) {
            None => Label::Error,
            Some(s) if s.low > self.tolerance * s.estimate.abs() && self.ratio_counts() => {
                Label::High
            }
            Some(_) => Label::Pass,
        }
    }

    /// Noise in proportion to the value breaks the ties of a side, unless its value is
    /// zero or it has one point only. If nothing breaks them the test fails.
    fn compare_constants(&self, canary: f64, stable: f64) -> Label {
        let noisy = |values: &[f64], value: f64| values.len() > 1 && value != 0.0;
        if canary == stable {
            Label::Pass
        } else if !noisy(&self.canary, canary) && !noisy(&self.stable, stable) {
            Label::Error
        } else if canary > stable && self.ratio_counts() {
            Label::High
        } else {
            Label::Pass
        }
    }

    fn ratio_counts(&self) -> bool {
        let (canary, stable) = (mean(&self.canary), mean(&self.stable));
        canary == 0.0 || stable == 0.0 || canary / stable >= self.allowed_increase
    }

    /// The score of a canary with one metric.
    fn score(&self) -> f64 {
        match self.classify() {
            Label::Pass | Label::Error => 100.0,
            Label::High | Label::Nodata => 0.0,
        }
    }
}

impl Rule for Kayenta {
    fn name(&self) -> String {
        let when = match self.every {
            None => "once".to_owned(),
            Some(every) => format!("every {every}"),
        };
        format!("Kayenta (ratio ≥ {}, {when})", self.allowed_increase)
    }

    fn reset(&mut self) {
        self.stable.clear();
        self.canary.clear();
        self.looks = 0;
    }

    fn look(&mut self, interval: &Interval, last: bool) -> Decision {
        self.looks += 1;
        self.stable.extend(self.point(&interval.stable));
        self.canary.extend(self.point(&interval.canary));
        let interim = self.every.is_some_and(|every| self.looks.is_multiple_of(every));
        if !last && !interim {
            return Decision::Continue;
        }
        let score = self.score();
        if score <= self.marginal || (last && score < self.pass) {
            Decision::Rollback
        } else if last {
            Decision::Promote
        } else {
            Decision::Continue
        }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The value that all points have.
fn constant(values: &[f64]) -> Option<f64> {
    let first = *values.first()?;
    values.iter().all(|v| *v == first).then_some(first)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;

    fn interval(stable: u64, canary: u64) -> Interval {
        let side = |bad| Side { n: 1_000, bad };
        Interval { stable: side(stable), canary: side(canary) }
    }

    /// The samples of the Mann-Whitney tests: shift 0.010, 98 % interval 0.005 to
    /// 0.016, mean ratio 1.446.
    fn worse() -> Vec<Interval> {
        let canary = [31, 28, 40, 35, 29, 44, 38, 33, 27, 36, 41, 30];
        let stable = [21, 25, 19, 30, 22, 28, 18, 24, 26, 20, 23, 29];
        stable.into_iter().zip(canary).map(|(s, c)| interval(s, c)).collect()
    }

    #[test]
    fn a_clear_increase_rolls_back_at_the_horizon() {
        assert_eq!(run(&mut Kayenta::default(), &worse()), (Decision::Rollback, 12));
    }

    #[test]
    fn a_decrease_passes() {
        let better: Vec<_> =
            worse().into_iter().map(|i| Interval { stable: i.canary, canary: i.stable }).collect();
        assert_eq!(run(&mut Kayenta::default(), &better), (Decision::Promote, 12));
    }

    #[test]
    fn the_lower_end_must_exceed_the_tolerance() {
        // 0.005 is above 0.25 × 0.010, but not above 0.6 × 0.010.
        let strict = &mut Kayenta { tolerance: 0.6, ..Default::default() };
        assert_eq!(run(strict, &worse()), (Decision::Promote, 12));
    }

    #[test]
    fn an_allowed_ratio_hides_an_increase() {
        assert_eq!(run(&mut Kayenta::tuned(1.4), &worse()), (Decision::Rollback, 12));
        assert_eq!(run(&mut Kayenta::tuned(1.5), &worse()), (Decision::Promote, 12));
    }

    #[test]
    fn interim_judgements_end_early() {
        let interim = &mut Kayenta { every: Some(4), ..Default::default() };
        let (decision, looks) = run(interim, &worse());
        assert_eq!(decision, Decision::Rollback);
        assert!(looks == 4 || looks == 8, "{looks}");
        let good = vec![interval(20, 20); 12];
        assert_eq!(run(interim, &good), (Decision::Promote, 12));
    }

    #[test]
    fn three_points_a_side_roll_back_when_they_do_not_overlap() {
        // Three points can not reach the confidence, so the interval is the range of all
        // shifts, and its lower end is above the tolerance although p is 0.08.
        let apart: Vec<_> = [(12, 51), (23, 42), (19, 63)].map(|(s, c)| interval(s, c)).to_vec();
        assert_eq!(run(&mut Kayenta::default(), &apart), (Decision::Rollback, 3));
    }

    #[test]
    fn no_data_at_all_rolls_back_and_gaps_are_dropped() {
        let silent = Interval { stable: Side { n: 100, bad: 1 }, canary: Side::default() };
        assert_eq!(run(&mut Kayenta::default(), &[silent; 5]), (Decision::Rollback, 5));
        let mut gaps = vec![silent; 5];
        gaps.extend(vec![Interval { canary: silent.stable, ..silent }; 5]);
        assert_eq!(run(&mut Kayenta::default(), &gaps), (Decision::Promote, 10));
    }

    #[test]
    fn replaced_gaps_count_as_no_error() {
        let silent = Interval { stable: Side { n: 100, bad: 1 }, canary: Side::default() };
        let replace = &mut Kayenta { missing: Missing::Replace, ..Default::default() };
        assert_eq!(run(replace, &[silent; 5]), (Decision::Promote, 5));
    }

    #[test]
    fn constant_samples_are_compared_by_their_values() {
        assert_eq!(run(&mut Kayenta::default(), &[interval(20, 30); 9]).0, Decision::Rollback);
        assert_eq!(run(&mut Kayenta::default(), &[interval(30, 20); 9]).0, Decision::Promote);
        assert_eq!(run(&mut Kayenta::default(), &[interval(0, 20); 9]).0, Decision::Rollback);
        assert_eq!(run(&mut Kayenta::default(), &[interval(0, 0); 9]).0, Decision::Promote);
    }

    #[test]
    fn a_test_that_cannot_be_computed_passes() {
        assert_eq!(run(&mut Kayenta::default(), &[interval(20, 900)]), (Decision::Promote, 1));
    }
}
