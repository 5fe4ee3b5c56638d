//! What is assumed of traffic that was not seen yet. A plan and a simulation of the same
//! assumptions draw from the same distributions, so that they tell the same.

use crate::{
    analysis::stats::{
        mean::Mean,
        normal::{upper_quantile, upper_tail},
    },
    rollout::assignment::GROUPS,
};

/// The smallest and the largest variation of costs that is reckoned with: beyond these, the
/// moments are zero or too large for a number.
const VARIATIONS: [f64; 2] = [1e-3, 100.0];
/// The costs of a sample are reckoned up to the value that its largest exceeds in one of so
/// many samples.
const SELDOM: f64 = 40.0;

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
    /// How many requests of one user tell as much as one of different users, however many
    /// there are.
    pub design_effect: f64,
    /// How many users there are, as if all sent as much; infinite: each request has its own.
    pub users: f64,
    /// How alike the requests of one user are: the intraclass correlation, 0 to 1.
    pub intraclass_correlation: f64,
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
            users: f64::INFINITY,
            intraclass_correlation: 0.1,
        }
    }
}

impl Assumptions {
    /// The design effect of clusters (Kish, Survey Sampling, 1965, section 5.4): so many observations
    /// tell as much as one independent one. `of_one_user` is how many observations a user has on
    /// average. Which user sends a request is chance, so these numbers are Poisson variables, and
    /// each observation has on average `of_one_user` others of its user. So `n` users of a side
    /// never tell more than n / r independent requests, where r is the correlation.
    pub fn effect(&self, of_one_user: f64) -> f64 {
        let others = if self.users.is_finite() { of_one_user.max(0.0) } else { 0.0 };
        let of_users = 1.0 + others * self.intraclass_correlation.clamp(0.0, 1.0);
        self.design_effect.max(of_users).max(1.0)
    }

    /// The effect if all observations of a user were alike, of the side where it is larger.
    pub(super) fn most(&self, of_one_user: [f64; 2]) -> f64 {
        let all = Self { intraclass_correlation: 1.0, ..*self };
        of_one_user.map(|n| all.effect(n)).into_iter().fold(1.0, f64::max)
    }

    /// With how many degrees of freedom the judge knows that effect on a side with `share` of the
    /// users: they are divided over the groups at random, so the squared parts of the groups
    /// sum up to about 1 over the groups and 1 over the users.
    pub(super) fn freedom(&self, share: f64) -> f64 {
        if self.design_effect <= 1.0 && !self.users.is_finite() {
            return f64::INFINITY;
        }
        (1.0 / (1.0 / GROUPS as f64 + 1.0 / (self.users * share)) - 1.0).max(1.0)
    }

    /// The standard deviation of the logarithm of costs, which are lognormal.
    pub fn log_cost_deviation(&self) -> f64 {
        let [least, most] = VARIATIONS;
        self.cost_variation.clamp(least, most).powi(2).ln_1p().sqrt()
    }

    /// The skewness of costs: that of a lognormal distribution of this variation.
    pub fn cost_skewness(&self) -> f64 {
        let [least, most] = VARIATIONS;
        let variation = self.cost_variation.clamp(least, most);
        variation.powi(3) + 3.0 * variation
    }

    /// The moments that `n` costs with a mean of 1 typically have. The judge corrects for the
    /// skewness that it sees, and few costs seldom show the rare large ones that make up most
    /// of the third moment: so the moments are those of a lognormal distribution that is cut
    /// off at the value that the largest of `n` seldom exceeds. With all of the third moment a
    /// plan asks for up to twice the samples that are needed, with none for a quarter.
    pub(super) fn cost(&self, n: f64) -> Mean {
        let sigma = self.log_cost_deviation();
        let beyond = 1.0 / (SELDOM * n.max(1.0) + 1.0);
        let cut = upper_quantile(beyond);
        // The k-th raw moment of exp(sigma Z - sigma² / 2), given that Z is below the cut.
        let raw = |k: f64| {
            let below = upper_tail(k * sigma - cut) / (1.0 - beyond);
            (0.5 * k * (k - 1.0) * sigma.powi(2)).exp() * below
        };
        let (mean, square, cube) = (raw(1.0), raw(2.0), raw(3.0));
        let variance = (square - mean.powi(2)).max(0.0);
        let third = cube - 3.0 * mean * square + 2.0 * mean.powi(3);
        Mean { n, mean: 1.0, variance, third, unequal: 1.0 }
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
        Mean { n, mean, variance, third: variance * (1.0 - 2.0 * mean), unequal: 1.0 }
    }

    /// The same of a sample whose mean is larger by `luck`: with the mean, the others move as
    /// their correlation with it says (the third over the second moment).
    pub(super) fn lucky_scores(&self, n: f64, mean: f64, luck: f64) -> Mean {
        let usual = self.scores(n, mean);
        let skewed = 1.0 - 2.0 * mean;
        let variance = (usual.variance + skewed * luck).max(0.0);
        Mean { mean: (mean + luck).clamp(0.0, 1.0), variance, third: variance * skewed, ..usual }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_and_scores_vary_as_assumed_as_far_as_they_can() {
        for cost_variation in [0.01, 0.6, 1.3] {
            let assumed = Assumptions { cost_variation, ..Assumptions::default() };
            let many = assumed.cost(1e9);
            assert!((many.variance.sqrt() / cost_variation - 1.0).abs() < 1e-3, "{many:?}");
            let skewness = many.third / many.variance.powf(1.5);
            assert!((skewness / assumed.cost_skewness() - 1.0).abs() < 0.02, "{skewness}");
            let few = assumed.cost(60.0);
            assert!(few.third < many.third && few.third > 0.0, "{few:?}");
        }
        let of = |score_deviation, mean| {
            let assumed = Assumptions { score_deviation, ..Assumptions::default() };
            assumed.scores(10.0, mean).variance.sqrt()
        };
        assert!((of(0.3, 0.8) - 0.3).abs() < 1e-9);
        assert!((of(0.9, 0.8) - 0.4).abs() < 1e-9, "thumbs vary most");
        assert_eq!(of(0.4, 1.0), 0.0);
        let thumbs = Assumptions::default().scores(10.0, 0.8);
        assert!((thumbs.third - 0.8 * 0.2 * -0.6).abs() < 1e-9, "of a Bernoulli variable");
    }

    #[test]
    fn requests_of_few_users_tell_less_the_more_they_are() {
        let (users, intraclass_correlation) = (300.0, 0.3);
        let few = Assumptions { users, intraclass_correlation, ..Assumptions::default() };
        assert_eq!([0.0, 0.5, 10.0].map(|n| few.effect(n)), [1.0, 1.15, 4.0]);
        assert!(1e9 / few.effect(1e9 / 300.0) < 300.0 / 0.3 + 1.0);
        let turns = Assumptions { design_effect: 5.0, ..few };
        assert_eq!(turns.effect(10.0), 5.0);
        assert_eq!(Assumptions::default().effect(1e9), 1.0);
    }
}
