//! When a gateway that has just started is ready: not before it serves what others of its
//! kind serve, and not only when every tenant's release is in order. The choice and its
//! reasons: `docs/decisions/0009`.

use std::sync::{Mutex, PoisonError};

use super::routes::Standing;

/// So long a stable variant is waited for whose copy or Secret may still arrive.
const PATIENCE_MILLIS: u64 = 30_000;

/// Whether the start is over. Once it is, it stays so: what is built stays built.
#[derive(Debug, Default)]
pub(super) struct Start(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// Nothing was tried yet.
    #[default]
    Before,
    Trying {
        since: u64,
        standing: Standing,
    },
    Over,
}

impl Start {
    /// Takes note of what is served after routes were built.
    pub(super) fn look(&self, now: u64, standing: impl FnOnce() -> Standing) {
        let mut state = self.lock();
        let since = match *state {
            State::Over => return,
            State::Before => now,
            State::Trying { since, .. } => since,
        };
        *state = State::Trying { since, standing: standing() };
        state.end(now);
    }

    /// Whether traffic should come, as far as routes are concerned.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let mut state = self.lock();
        state.end(now);
        matches!(*state, State::Over)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, now: u64) {
        let Self::Trying { since, standing } = self else { return };
        let Standing { namespaces, dark, waits } = *standing;
        let patient = waits && now.saturating_sub(*since) < PATIENCE_MILLIS;
        if !patient && dark * 2 <= namespaces {
            *self = Self::Over;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(standing: Standing, at: u64) -> bool {
        let start = Start::default();
        start.look(0, || standing);
        start.is_over(at)
    }

    #[test]
    fn one_tenant_of_several_does_not_keep_a_gateway_from_being_ready() {
        let broken = |namespaces, dark| Standing { namespaces, dark, waits: false };
        assert!(!Start::default().is_over(u64::MAX), "nothing was tried");
        assert!(over(broken(0, 0), 0), "there is nothing to serve");
        assert!(over(broken(3, 1), 0) && over(broken(2, 1), 0));
        assert!(!over(broken(1, 1), u64::MAX), "it can serve nothing");
        assert!(!over(broken(3, 2), u64::MAX), "most likely it is the gateway's own fault");
    }

    #[test]
    fn what_may_still_arrive_is_waited_for_and_not_for_ever() {
        let waits = Standing { namespaces: 9, dark: 0, waits: true };
        assert!(!over(waits, PATIENCE_MILLIS - 1));
        assert!(over(waits, PATIENCE_MILLIS));
    }

    #[test]
    fn a_gateway_that_was_ready_stays_so() {
        let start = Start::default();
        start.look(0, || Standing { namespaces: 1, dark: 0, waits: false });
        start.look(1, || Standing { namespaces: 9, dark: 9, waits: true });
        assert!(start.is_over(1));
    }
}
