//! Whether the sticky keys are those of many users. A key that an application sends with
//! every request (`user: "my-app"`) makes all users one: a step of 5 % then gives them all
//! of the canary, or none of it.
//!
//! Seen in the groups of keys that gateways count anyway: each key belongs to one of 32
//! by its hash, so many keys spread over all, and one that has most of the requests shows
//! as its group. Two keys fall into one group in one of 32 cases, and which key it is
//! nobody learns.

use crate::api::prompt_release::Counts;

/// Fewer requests do not tell.
const ENOUGH: u64 = 50;
/// From this share of one group on it is said. With equally busy users it takes no more
/// than two or three of them.
const MOST: f64 = 0.5;

/// Requests with a sticky key, and how many of them are in the group with most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concentration {
    /// Requests with a sticky key.
    pub requests: u64,
    /// Of these, those in the group that has most.
    pub largest: u64,
}

impl Concentration {
    /// Of both sides together; none while too few requests have a sticky key to tell.
    pub fn of(stable: &Counts, canary: &Counts) -> Option<Self> {
        let at = |counts: &Counts, group: usize| {
            counts.groups.requests.get(group).copied().unwrap_or_default()
        };
        let groups = stable.groups.requests.len().max(canary.groups.requests.len());
        let sums = (0..groups).map(|group| at(stable, group).saturating_add(at(canary, group)));
        let (requests, largest) =
            sums.fold((0_u64, 0), |(all, largest), n| (all.saturating_add(n), n.max(largest)));
        (requests >= ENOUGH).then_some(Self { requests, largest })
    }

    /// The share of the group that has most.
    pub fn share(self) -> f64 {
        self.largest as f64 / self.requests as f64
    }

    /// Few keys have most of the requests.
    pub fn is_high(self) -> bool {
        self.share() >= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::prompt_release::Groups, rollout::assignment::group};

    /// Requests of these users, one after the other.
    fn counts(requests: usize, user: impl Fn(usize) -> String) -> Counts {
        let mut list = vec![0; 32];
        (0..requests).for_each(|i| list[usize::from(group("uid", &user(i)))] += 1);
        Counts { groups: Groups { requests: list, ..Groups::default() }, ..Counts::default() }
    }

    #[test]
    fn one_key_for_all_users_shows_on_whichever_side_it_is_drawn() {
        let (one, none) = (counts(200, |_| "my-app".into()), Counts::default());
        for (stable, canary) in [(&one, &none), (&none, &one), (&one, &one)] {
            let seen = Concentration::of(stable, canary).unwrap();
            assert!(seen.is_high() && seen.share() == 1.0, "{seen:?}");
        }
        let mixed = counts(1000, |i| if i % 10 < 7 { "my-app".into() } else { i.to_string() });
        assert!(Concentration::of(&mixed, &none).unwrap().is_high());
    }

    #[test]
    fn many_users_do_not_and_too_few_requests_say_nothing() {
        let none = Counts::default();
        for users in [20, 100, 5000] {
            let many = counts(1000, |i| (i % users).to_string());
            let seen = Concentration::of(&many, &none).unwrap();
            assert!(!seen.is_high(), "{users}: {seen:?}");
        }
        assert_eq!(Concentration::of(&counts(49, |_| "my-app".into()), &none), None);
        assert_eq!(Concentration::of(&none, &none), None);
    }
}
