//! Which requests of one variant, under one routing generation, were answered, and which
//! of them have a score: a bit for each, so that nothing has to be forgotten while it
//! counts. A score without an answer, or a second one, can not be counted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// Score names a variant may have.
pub(super) const NAMES: usize = 16;
/// Requests of one variant and generation that can be voted on: 8 MiB a list of bits.
const MOST: u32 = 1 << 26;

/// The votes on one variant under one routing generation.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Votes {
    issued: AtomicU32,
    lists: Mutex<Lists>,
}

#[derive(Debug, Default)]
struct Lists {
    answered: Bits,
    /// By score name.
    voted: BTreeMap<String, Bits>,
}

/// What becomes of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cast {
    /// It is the first of its name for an answered request.
    Counts,
    /// The request has no complete answer, or none yet.
    Unanswered,
    /// There is one of this name already.
    Double,
    /// There are too many other names.
    TooManyNames,
}

impl Votes {
    /// The number of a new request; none after the last one.
    pub(in crate::gateway) fn issue(&self) -> Option<u32> {
        let next = |n: u32| (n < MOST).then_some(n + 1);
        self.issued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    /// The request with this number has a complete answer.
    pub(in crate::gateway) fn answered(&self, serial: u32) {
        if serial < self.issued.load(Ordering::Relaxed)
            && let Ok(mut lists) = self.lists.lock()
        {
            lists.answered.set(serial);
        }
    }

    /// Casts a vote.
    pub(super) fn cast(&self, serial: u32, name: &str) -> Cast {
        let Ok(mut lists) = self.lists.lock() else { return Cast::Unanswered };
        if !lists.answered.get(serial) {
            return Cast::Unanswered;
        }
        if !lists.voted.contains_key(name) && lists.voted.len() >= NAMES {
            return Cast::TooManyNames;
        }
        let voted = lists.voted.entry(name.to_owned()).or_default();
        if voted.get(serial) {
            return Cast::Double;
        }
        voted.set(serial);
        Cast::Counts
    }
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, index: u32) -> bool {
        self.0.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn set(&mut self, index: u32) {
        let word = index as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (index % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_needs_an_answer_and_counts_once_by_name() {
        let votes = Votes::default();
        let (one, two) = (votes.issue().unwrap(), votes.issue().unwrap());
        assert_eq!(votes.cast(one, "a"), Cast::Unanswered);
        votes.answered(one);
        assert_eq!(votes.cast(one, "a"), Cast::Counts);
        assert_eq!(votes.cast(one, "a"), Cast::Double);
        assert_eq!(votes.cast(one, "b"), Cast::Counts);
        assert_eq!(votes.cast(two, "a"), Cast::Unanswered);
        votes.answered(7);
        assert_eq!(votes.cast(7, "a"), Cast::Unanswered, "it was never issued");
        assert_eq!(votes.cast(u32::MAX, "a"), Cast::Unanswered);
    }

    #[test]
    fn names_are_bounded_and_known_ones_go_on() {
        let votes = Votes::default();
        let serials: Vec<u32> = (0..2).filter_map(|_| votes.issue()).collect();
        serials.iter().for_each(|serial| votes.answered(*serial));
        for name in 0..NAMES {
            assert_eq!(votes.cast(0, &name.to_string()), Cast::Counts);
        }
        assert_eq!(votes.cast(0, "one more"), Cast::TooManyNames);
        assert_eq!(votes.cast(1, "3"), Cast::Counts);
    }

    proptest::proptest! {
        #[test]
        fn votes_of_a_name_never_exceed_answers(
            events in proptest::collection::vec((0..3_u8, 0..200_u32, 0..3_u8), 0..400),
        ) {
            let votes = Votes::default();
            let mut answered = std::collections::BTreeSet::new();
            let mut counted = BTreeMap::<u8, usize>::new();
            for (what, serial, name) in events {
                match what {
                    0 => drop(votes.issue()),
                    1 => {
                        votes.answered(serial);
                        if serial < votes.issued.load(Ordering::Relaxed) {
                            answered.insert(serial);
                        }
                    }
                    _ => {
                        if votes.cast(serial, &name.to_string()) == Cast::Counts {
                            *counted.entry(name).or_default() += 1;
                        }
                    }
                }
            }
            proptest::prop_assert!(counted.values().all(|n| *n <= answered.len()));
        }
    }
}
