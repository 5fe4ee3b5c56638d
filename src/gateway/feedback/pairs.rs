//! Scores of a request and of its copy, which wait for each other.

use std::collections::{HashMap, VecDeque};

use super::id::Kind;

/// So many scores wait for the other side of their pair.
const WAITING: usize = 10_000;

/// Scores of one side of a pair, the oldest first. What was paired or replaced stays in
/// `order` until its turn comes.
#[derive(Default)]
pub(super) struct Waiting {
    scores: HashMap<u64, (Kind, f64)>,
    order: VecDeque<u64>,
}

impl Waiting {
    /// The canary's score less stable's, when the other side is here already.
    pub(super) fn meet(&mut self, pair: u64, side: Kind, score: f64) -> Option<f64> {
        match self.scores.remove(&pair) {
            Some((other, theirs)) if other != side => {
                let difference = score - theirs;
                Some(if side == Kind::Shadow { difference } else { -difference })
            }
            _ => {
                self.scores.insert(pair, (side, score));
                self.order.push_back(pair);
                if self.order.len() > WAITING
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.scores.remove(&oldest);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_the_canarys_score_less_stables_whoever_comes_first() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.meet(1, Kind::Shadow, 0.75), None);
        assert_eq!(waiting.meet(1, Kind::Copied, 0.25), Some(0.5));
        assert_eq!(waiting.meet(2, Kind::Copied, 0.25), None);
        assert_eq!(waiting.meet(2, Kind::Shadow, 0.75), Some(0.5));
        assert!(waiting.scores.is_empty());
    }

    #[test]
    fn scores_that_never_meet_are_forgotten() {
        let mut waiting = Waiting::default();
        for pair in 0..=WAITING as u64 {
            assert_eq!(waiting.meet(pair, Kind::Copied, 1.0), None);
        }
        assert_eq!(waiting.scores.len(), WAITING);
        assert_eq!(waiting.meet(0, Kind::Shadow, 1.0), None, "the oldest is gone");
    }
}
