//! Simulated users who are not alike: few of them, some with many more requests than others,
//! each with failures, waits and costs of its own.

use rand::{Rng, RngExt};
use rand_distr::{Beta, Distribution, StandardNormal};

use crate::rollout::assignment::GROUPS;

/// Who sends the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Users {
    /// How many there are.
    pub count: usize,
    /// The n-th busiest has a share of the requests in proportion to n to the minus this
    /// (Zipf's law); 0: all have the same.
    pub uneven: f64,
    /// How alike the requests of one user are: the intraclass correlation of failures, failed
    /// checks, scores, and of the logarithms of waits and costs.
    pub alike: f64,
}

/// One user.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    /// Canary, when the weight (a share) is larger.
    pub place: f64,
    pub group: usize,
    /// The chances to fail, to fail a check and to like an answer, on stable and on the canary.
    pub errors: [f64; 2],
    pub checks: [f64; 2],
    pub likes: [f64; 2],
    /// In standard deviations between users.
    pub slow: f64,
    pub costly: f64,
}

/// The users of one canary.
pub(super) struct Population {
    all: Vec<User>,
    /// Sums of their shares.
    shares: Vec<f64>,
}

/// Chances on stable and on the canary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chances {
    pub errors: [f64; 2],
    pub checks: [f64; 2],
    pub likes: [f64; 2],
}

impl Users {
    pub(super) fn draw(&self, rng: &mut impl Rng, chances: &Chances) -> Population {
        let mut sum = 0.0;
        let shares = (1..=self.count.max(1)).map(|n| {
            sum += (n as f64).powf(-self.uneven);
            sum
        });
        let shares: Vec<f64> = shares.collect();
        let all = shares.iter().map(|_| self.one(rng, chances)).collect();
        Population { all, shares: shares.iter().map(|share| share / sum).collect() }
    }

    fn one(&self, rng: &mut impl Rng, chances: &Chances) -> User {
        User {
            place: rng.random(),
            group: rng.random_range(0..GROUPS),
            errors: self.around(rng, chances.errors),
            checks: self.around(rng, chances.checks),
            likes: self.around(rng, chances.likes),
            slow: rng.sample(StandardNormal),
            costly: rng.sample(StandardNormal),
        }
    }

    /// A user's own chances. Where both sides are alike, they are for each user.
    fn around(&self, rng: &mut impl Rng, [stable, canary]: [f64; 2]) -> [f64; 2] {
        let own = self.own(rng, stable);
        [own, if canary == stable { own } else { self.own(rng, canary) }]
    }

    /// A beta distribution with this mean and this correlation within.
    fn own(&self, rng: &mut impl Rng, mean: f64) -> f64 {
        let more = (1.0 - self.alike) / self.alike;
        match Beta::new(mean * more, (1.0 - mean) * more) {
            Ok(beta) if self.alike > 0.0 && mean > 0.0 && mean < 1.0 => beta.sample(rng),
            _ => mean,
        }
    }
}

impl Population {
    /// Draws the user of each request, and hands over every user with a number of requests.
    pub(super) fn spread<R: Rng>(
        &self,
        rng: &mut R,
        requests: u64,
        mut each: impl FnMut(&mut R, &User, u64),
    ) {
        let mut counts = vec![0_u64; self.all.len()];
        for _ in 0..requests {
            let at = rng.random::<f64>();
            let user = self.shares.partition_point(|share| *share <= at);
            counts[user.min(self.all.len() - 1)] += 1;
        }
        for (user, n) in self.all.iter().zip(counts).filter(|(_, n)| *n > 0) {
            each(rng, user, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn users_are_as_uneven_and_as_alike_as_is_said() {
        let mut rng = StdRng::seed_from_u64(1);
        let users = Users { count: 5_000, uneven: 1.1, alike: 0.3 };
        let chances = Chances { errors: [0.05, 0.05], checks: [0.0; 2], likes: [0.8; 2] };
        let population = users.draw(&mut rng, &chances);
        let n = population.all.len() as f64;
        let mean = population.all.iter().map(|user| user.errors[0]).sum::<f64>() / n;
        let variance =
            population.all.iter().map(|user| (user.errors[0] - mean).powi(2)).sum::<f64>() / n;
        assert!((mean - 0.05).abs() < 0.006, "{mean}");
        let alike = variance / (mean * (1.0 - mean));
        assert!((alike - 0.3).abs() < 0.05, "{alike}");
        assert!(population.all.iter().all(|user| user.errors[0] == user.errors[1]));
        let mut most = 0;
        population.spread(&mut rng, 10_000, |_, _, n| most = most.max(n));
        let expected = 10_000.0 * population.shares[0];
        assert!((most as f64 / expected - 1.0).abs() < 0.1, "{most} {expected}");
    }
}
