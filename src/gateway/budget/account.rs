//! What one client holds of the budget, so that no client takes the memory of the others.
//!
//! A client may hold at most [`GREED`] times what is still free, of each class and of the
//! whole: three quarters while it is alone, 3/7 each when two want all of it, 3/(1 + 3n) of
//! n. So some of it always stays free for whoever comes next, clients that want little get
//! what they want, and nobody has to say in advance how many clients there will be. These
//! are the dynamic thresholds by which switches share their memory among queues: A. K.
//! Choudhury and E. L. Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
//! Switches", IEEE/ACM Transactions on Networking 6(2), 1998.
//!
//! What a client holds already is not taken away from it, unless it reads its answers
//! slowly (`server/pace.rs`).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{Budget, Class, Held, most};
use crate::openai::error::ApiError;

/// How many times as much as is free a client may hold.
const GREED: usize = 3;

/// The account of one client: of all of its keys, connections and requests.
#[derive(Debug)]
pub(in crate::gateway) struct Account {
    budget: Arc<Budget>,
    /// Who it is, as its owner may read.
    who: Box<str>,
    used: AtomicUsize,
    by_class: [AtomicUsize; 5],
}

impl Account {
    pub(super) fn new(budget: &Arc<Budget>, who: &str) -> Self {
        let (used, by_class) = Default::default();
        Self { budget: budget.clone(), who: who.into(), used, by_class }
    }

    /// Who it is.
    pub(in crate::gateway) fn who(&self) -> &str {
        &self.who
    }

    /// Takes `bytes`, if they are free and the client may have them.
    ///
    /// # Errors
    /// What is full, as the client is told.
    pub(in crate::gateway) fn take(
        self: &Arc<Self>,
        class: Class,
        bytes: usize,
    ) -> Result<Held, ApiError> {
        let mut held = self.nothing(class);
        held.grow_to(bytes)?;
        Ok(held)
    }

    /// To be grown.
    pub(in crate::gateway) fn nothing(self: &Arc<Self>, class: Class) -> Held {
        Held { budget: self.budget.clone(), account: Some(self.clone()), class, bytes: 0 }
    }

    /// Whether it holds more than it could take now: others need what it does not use.
    pub(in crate::gateway) fn is_over(&self) -> bool {
        let Budget { total, used, by_class, .. } = &*self.budget;
        let load = |n: &AtomicUsize| n.load(Ordering::Relaxed);
        exceeds(load(&self.used), *total, load(used))
            || Class::ALL.into_iter().any(|class| {
                let at = class as usize;
                exceeds(load(&self.by_class[at]), most(class, *total), load(&by_class[at]))
            })
    }

    /// Adds `bytes`, when the class and the whole have come to `in_class` and `used` with
    /// them; false when that is more than its share.
    pub(super) fn try_add(
        &self,
        class: Class,
        bytes: usize,
        (in_class, used): (usize, usize),
    ) -> bool {
        let own = self.by_class[class as usize].fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.budget.total;
        if exceeds(own, most(class, total), in_class) || exceeds(all, total, used) {
            self.give_back(class, bytes);
            return false;
        }
        true
    }

    pub(super) fn give_back(&self, class: Class, bytes: usize) {
        self.by_class[class as usize].fetch_sub(bytes, Ordering::Relaxed);
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Why more is refused to this client, while others are served.
    pub(super) fn refusal(&self, class: Class) -> ApiError {
        let (what, who) = (class.what(), &self.who);
        let message = format!(
            "{who} holds its share of this gateway's memory, most of it with {what}, and the rest \
             is kept for other clients: let some of your requests end, then try again"
        );
        ApiError::new(429, CLIENT_SHARE, message).retry_after(1)
    }
}

/// The code of an error by which a client is told that it holds its share.
pub(in crate::gateway) const CLIENT_SHARE: &str = "client_share_full";

/// The most that a client that is alone may have of a class.
pub(in crate::gateway) fn most_of_one(class: Class, total: usize) -> usize {
    most(class, total) / (GREED + 1) * GREED
}

fn exceeds(own: usize, most: usize, used: usize) -> bool {
    own > most.saturating_sub(used).saturating_mul(GREED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes pieces of `bytes` until it is refused; how much it got.
    fn fill(account: &Arc<Account>, class: Class, bytes: usize, held: &mut Vec<Held>) -> usize {
        let before = held.len();
        while let Ok(more) = account.take(class, bytes) {
            held.push(more);
        }
        (held.len() - before) * bytes
    }

    #[test]
    fn a_greedy_client_is_refused_while_others_are_served() {
        let budget = Budget::new(80_000);
        let greedy = budget.account("team greedy");
        let mut held = vec![];
        for class in [Class::Bodies, Class::Answers, Class::Connections] {
            fill(&greedy, class, 100, &mut held);
        }
        let told = greedy.take(Class::Answers, 100).unwrap_err();
        assert_eq!((told.status, told.code, told.retry_after), (429, CLIENT_SHARE, Some(1)));
        assert!(told.message.contains("team greedy holds its share"), "{}", told.message);
        assert_eq!(greedy.used.load(Ordering::Relaxed), 60_000, "three quarters of the whole");
        // Each of many modest clients is served, of everything, again and again.
        for _ in 0..3 {
            let modest: Vec<_> = (0..20)
                .map(|n| {
                    let account = budget.account(&format!("team modest-{n}"));
                    [Class::Connections, Class::Bodies, Class::Answers]
                        .map(|class| account.take(class, 100).unwrap())
                })
                .collect();
            assert!(greedy.take(Class::Answers, 100).is_err());
            drop(modest);
        }
        drop(held);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert_eq!(greedy.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_is_alone_gets_three_quarters_and_several_get_equal_shares() {
        for (clients, each) in [(1, 30_000), (2, 17_100), (3, 12_000), (7, 5_400)] {
            let budget = Budget::new(80_000);
            let all: Vec<_> = (0..clients).map(|n| budget.account(&n.to_string())).collect();
            let mut held: Vec<Vec<Held>> = all.iter().map(|_| vec![]).collect();
            // The first had all to itself. Then all want everything, again as soon as some
            // of it has ended.
            fill(&all[0], Class::Answers, 100, &mut held[0]);
            for round in 0..2_000 {
                for (account, held) in all.iter().zip(&mut held) {
                    if round < 1_000 && round % 3 == 2 && !held.is_empty() {
                        held.swap_remove(0);
                    }
                    held.extend(account.take(Class::Answers, 100));
                }
            }
            for account in &all {
                let got = account.used.load(Ordering::Relaxed);
                // One piece less that is free is three less of a share.
                assert!(got.abs_diff(each) <= each / 10, "{clients} clients: {got}, not {each}");
            }
        }
    }

    #[test]
    fn what_all_clients_hold_in_all_classes_is_never_more_than_the_budget() {
        let budget = Budget::new(80_000);
        let mut held = vec![];
        for n in 0..200 {
            let account = budget.account(&n.to_string());
            for class in [Class::Answers, Class::Connections, Class::Bodies] {
                fill(&account, class, 1 + n * 7 % 300, &mut held);
                assert!(budget.used.load(Ordering::Relaxed) <= 80_000);
                let of = budget.by_class[class as usize].load(Ordering::Relaxed);
                assert!(of <= most(class, 80_000), "{class:?}: {of}");
            }
        }
        let own: usize = held.iter().map(|held| held.bytes).sum();
        assert_eq!(own, budget.used.load(Ordering::Relaxed));
    }

    #[test]
    fn who_holds_more_than_it_could_take_is_over_its_share() {
        let budget = Budget::new(80_000);
        let (first, second) = (budget.account("a"), budget.account("b"));
        let mut held = vec![];
        fill(&first, Class::Answers, 100, &mut held);
        assert!(!first.is_over(), "nobody else wants anything");
        let _other = second.take(Class::Answers, 5_000).unwrap();
        assert!(first.is_over() && !second.is_over());
    }

    #[test]
    fn clients_that_are_gone_are_forgotten() {
        let budget = Budget::new(80_000);
        let stays = budget.account("stays");
        let _held = stays.take(Class::Bodies, 100).unwrap();
        drop(stays);
        for n in 0..10_000 {
            drop(budget.account(&n.to_string()));
        }
        assert!(budget.known_accounts() < 200);
        assert_eq!(budget.account("stays").used.load(Ordering::Relaxed), 100);
    }
}
