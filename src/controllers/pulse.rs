//! Whether a leader does its work: releases are looked at, and not only the Lease renewed.
//!
//! A process whose releases are stuck leads on, and keeps others from doing what it does
//! not do. So the last look at any release is noted; while there are releases, one of them
//! is asked to be looked at from time to time; and a leader that has not looked at any for
//! [`Pulse::LOST`] gives no sign of life to gateways, is not ready, and ends, so that
//! another process leads.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::channel::mpsc::UnboundedSender;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use super::Context;
use crate::api::PromptRelease;

/// When a release was last looked at.
#[derive(Debug, Default)]
pub struct Pulse {
    last: Mutex<Option<Beat>>,
}

#[derive(Clone, Copy, Debug)]
struct Beat {
    term: i64,
    at: Instant,
}

impl Pulse {
    /// How often a release is asked to be looked at.
    pub const EVERY: Duration = Duration::from_secs(10);
    /// After so long without a look the leader does not do its work: a write that hangs is
    /// given up earlier.
    pub const LOST: Duration = Duration::from_secs(45);
    /// After so long it is not expected to do so again.
    pub const ENDS: Duration = Duration::from_secs(60);

    /// A release was looked at in this term, or there is none.
    pub fn beat(&self, term: i64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Beat { term, at: Instant::now() });
    }

    /// For how long no release was looked at in this term, which begins with the first
    /// question.
    pub fn silence(&self, term: i64) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let beat = last.filter(|beat| beat.term == term).unwrap_or(Beat { term, at: now });
        *last = Some(beat);
        now - beat.at
    }

    /// Whether the leader of this term does its work.
    pub fn is_felt(&self, term: i64) -> bool {
        self.silence(term) < Self::LOST
    }
}

/// Asks for a look while this process leads, and ends when there was none for too long.
pub async fn watch_over(
    context: Arc<Context>,
    triggers: UnboundedSender<ObjectRef<PromptRelease>>,
) {
    let mut ticks = tokio::time::interval(Pulse::EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turn = 0;
    loop {
        ticks.tick().await;
        let Some(term) = context.cluster.leadership().term() else { continue };
        let releases = context.caches.releases.state();
        // Before the caches are filled there is nothing to look at, and no sign of life.
        if !context.caches.are_ready() || releases.is_empty() {
            context.pulse.beat(term);
            continue;
        }
        let silence = context.pulse.silence(term);
        if silence >= Pulse::ENDS {
            let (seconds, all) = (silence.as_secs(), releases.len());
            tracing::error!(
                "this operator leads and has looked at none of {all} releases for {seconds} s: it ends, so that another one leads"
            );
            return;
        }
        turn = (turn + 1) % releases.len();
        let _ = triggers.unbounded_send(ObjectRef::from_obj(releases[turn].as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_without_a_look_has_no_pulse() {
        let pulse = Pulse::default();
        assert!(pulse.is_felt(3), "its term has begun just now");
        tokio::time::advance(Pulse::LOST - Duration::from_secs(1)).await;
        assert!(pulse.is_felt(3));
        pulse.beat(3);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(pulse.is_felt(3), "it has looked since");
        tokio::time::advance(Pulse::LOST).await;
        assert!(!pulse.is_felt(3));
        assert!(pulse.is_felt(4), "another term begins anew");
        pulse.beat(3);
        assert!(pulse.is_felt(3));
    }
}
