//! What is assumed of traffic that was not seen yet. A plan and a simulation of the same
//! assumptions draw from the same distributions, so that they tell the same.

use crate::analysis::stats::{mean::Mean, normal::upper_quantile};

/// So many different costs stand for all.
const COSTS: usize = 48;
/// Equal parts vary by the root of one less at most; and a spread that is this small is none.
const MOST_VARIATION: f64 = 6.0;
const LEAST_VARIATION: f64 = 1e-3;

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
    /// The standard deviation of a score; thumbs at 80 % have 0.4, the most that is possible.
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
            score_deviation: 0.4,
            feedback: 0.2,
            design_effect: 1.0,
        }
    }
}

impl Assumptions {
    /// What a request costs, over the mean: lognormal, in equal parts that have exactly the
    /// mean and the variation that are assumed.
    pub fn costs(&self) -> Vec<f64> {
        let wanted = self.cost_variation.clamp(LEAST_VARIATION, MOST_VARIATION);
        let (mut low, mut high) = (0.0, 8.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if variation(&spread(middle)) < wanted { low = middle } else { high = middle }
        }
        spread(high)
    }

    /// The moments of these costs, of `n` requests.
    pub(super) fn cost(&self, n: f64) -> Mean {
        let costs = self.costs();
        let moment =
            |k: i32| costs.iter().map(|c| (c - 1.0).powi(k)).sum::<f64>() / costs.len() as f64;
        Mean { n, mean: 1.0, variance: moment(2), third: moment(3) }
    }

    /// The share of scores that are 0 or 1, all others being a score in the middle: a
    /// mean can only vary so much between 0 and 1.
    pub fn thumbs(&self, mean: f64) -> f64 {
        let most = mean * (1.0 - mean);
        if most <= 0.0 { 0.0 } else { (self.score_deviation.powi(2) / most).min(1.0) }
    }

    /// The moments of `n` scores with this mean.
    pub(super) fn scores(&self, n: f64, mean: f64) -> Mean {
        let variance = self.thumbs(mean) * mean * (1.0 - mean);
        Mean { n, mean, variance, third: 0.0 }
    }
}

/// Lognormal costs in equal parts, with a mean of 1.
fn spread(sigma: f64) -> Vec<f64> {
    let at = |i: usize| (-sigma * upper_quantile((i as f64 + 0.5) / COSTS as f64)).exp();
    let plain: Vec<f64> = (0..COSTS).map(at).collect();
    let mean = plain.iter().sum::<f64>() / COSTS as f64;
    plain.iter().map(|cost| cost / mean).collect()
}

fn variation(costs: &[f64]) -> f64 {
    (costs.iter().map(|c| (c - 1.0).powi(2)).sum::<f64>() / costs.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_and_scores_vary_as_assumed_as_far_as_they_can() {
        for cost_variation in [0.01, 0.6, 2.0, 5.0] {
            let assumed = Assumptions { cost_variation, ..Assumptions::default() };
            let cost = assumed.cost(10.0);
            assert!((cost.variance.sqrt() / cost_variation - 1.0).abs() < 1e-6, "{cost:?}");
        }
        let of = |score_deviation, mean| {
            let assumed = Assumptions { score_deviation, ..Assumptions::default() };
            assumed.scores(10.0, mean).variance.sqrt()
        };
        assert!((of(0.3, 0.8) - 0.3).abs() < 1e-9);
        assert!((of(0.9, 0.8) - 0.4).abs() < 1e-9, "thumbs vary most");
        assert_eq!(of(0.4, 1.0), 0.0);
    }
}
