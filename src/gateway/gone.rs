//! Whether a backend has its model, by what it answers to requests: a provider that has retired
//! a model says so to whoever asks for it, and people have to be told by somebody else.
//!
//! The words of an error are read by rules that can be wrong about one request
//! (`openai::complaint`), so one answer is not enough, and behind one address may be several
//! servers of which one has the model: what was found stays for a while.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// So many answers in a row say that there is no such model, before it counts as gone. A
/// breaker opens after ten attempts at the earliest, so it keeps none of them away.
const IN_A_ROW: u32 = 3;
/// A model that answers counts as there when nobody has heard otherwise for so long.
const KEPT_MILLIS: u64 = 300_000;

/// What the answers of one backend say of its model.
#[derive(Debug, Default)]
pub(super) struct Gone {
    in_a_row: AtomicU32,
    /// When it was said last, in milliseconds on the gateway's clock and more than 0; 0: the
    /// model is there, as far as is known.
    said: AtomicU64,
}

impl Gone {
    /// The backend has answered that it has no such model, or not for our key.
    pub(super) fn is_said(&self, now_millis: u64) {
        let before = self.in_a_row.fetch_add(1, Ordering::Relaxed);
        if before.saturating_add(1) >= IN_A_ROW {
            self.in_a_row.store(IN_A_ROW, Ordering::Relaxed);
            self.said.store(now_millis.max(1), Ordering::Relaxed);
        }
    }

    /// The model has answered.
    pub(super) fn has_answered(&self, now_millis: u64) {
        // Nearly every request comes here, and nearly always there is nothing to write.
        if self.in_a_row.load(Ordering::Relaxed) > 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
        let said = self.said.load(Ordering::Relaxed);
        if said > 0 && now_millis.saturating_sub(said) >= KEPT_MILLIS {
            self.said.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the model counts as gone.
    pub(super) fn is_gone(&self) -> bool {
        self.said.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_gone_when_several_answers_in_a_row_say_so() {
        let gone = Gone::default();
        for _ in 0..5 {
            (0..IN_A_ROW - 1).for_each(|_| gone.is_said(0));
            assert!(!gone.is_gone());
            gone.has_answered(0);
        }
        (0..IN_A_ROW).for_each(|_| gone.is_said(0));
        assert!(gone.is_gone());
    }

    #[test]
    fn a_model_that_answers_is_there_when_nothing_else_was_said_for_a_while() {
        let gone = Gone::default();
        (0..IN_A_ROW).for_each(|_| gone.is_said(1_000));
        gone.has_answered(1_000 + KEPT_MILLIS - 1);
        assert!(gone.is_gone(), "one of several servers may have it");
        gone.has_answered(1_000 + KEPT_MILLIS);
        assert!(!gone.is_gone());
        gone.is_said(1_000 + KEPT_MILLIS);
        assert!(!gone.is_gone(), "the count begins anew");
    }
}
