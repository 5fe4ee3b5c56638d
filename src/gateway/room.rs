//! How many requests may be in flight to a backend, and how many may wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{api::llm_deployment::Limits, openai::error::ApiError};

/// What the limits of a backend allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    in_flight: usize,
    waiting: usize,
    patience: Duration,
}

impl Bounds {
    /// The bounds that a backend states.
    pub fn of(limits: &Limits) -> Self {
        let count = |n: i32| usize::try_from(n).unwrap_or(0);
        Self {
            in_flight: count(limits.max_concurrency).max(1),
            waiting: count(limits.max_queue),
            patience: limits.queue_timeout.0,
        }
    }
}

/// The room of one variant in one gateway. Who waits is served in the order of arrival.
pub struct Room {
    bounds: Bounds,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Room {
    /// All of it free.
    pub fn new(bounds: Bounds) -> Self {
        let permits = Arc::new(Semaphore::new(bounds.in_flight));
        Self { bounds, permits, waiting: AtomicUsize::new(0) }
    }

    /// What it was made for.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A place, if one is free now.
    pub(super) fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// A place, perhaps after waiting for one.
    ///
    /// # Errors
    /// 429: too many wait already, or it took too long.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Some(permit) = self.try_enter() {
            return Ok(permit);
        }
        let full = || {
            let message = "too many requests are in flight to this model";
            ApiError::new(429, "too_many_requests", message).retry_after(1)
        };
        let _place = Place::take(&self.waiting, self.bounds.waiting).ok_or_else(full)?;
        let entered =
            tokio::time::timeout(self.bounds.patience, self.permits.clone().acquire_owned()).await;
        entered.ok().and_then(Result::ok).ok_or_else(full)
    }
}

/// A place in the queue; given back when it is dropped, also by a request that is given up.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
        let place = Self(waiting);
        // One too many is given back at once.
        (waiting.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(in_flight: usize, waiting: usize) -> Arc<Room> {
        Arc::new(Room::new(Bounds { in_flight, waiting, patience: Duration::from_secs(5) }))
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_free_place_and_one_too_many_none() {
        let room = room(1, 1);
        let inside = room.enter().await.unwrap();
        let waiting = {
            let room = room.clone();
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move { room.enter().await.is_ok() });
            tasks
        };
        tokio::task::yield_now().await;
        assert_eq!(room.enter().await.unwrap_err().status, 429);
        drop(inside);
        assert_eq!(waiting.join_all().await, [true]);
        assert_eq!(room.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_queue_allows_or_where_there_is_none() {
        let waits = room(1, 1);
        let _inside = waits.enter().await.unwrap();
        assert_eq!(waits.enter().await.unwrap_err().code, "too_many_requests");
        assert_eq!(waits.waiting.load(Ordering::Relaxed), 0, "the place is given back");
        let refuses = room(1, 0);
        let _inside = refuses.enter().await.unwrap();
        assert!(refuses.enter().await.is_err());
        assert_eq!(refuses.waiting.load(Ordering::Relaxed), 0);
    }
}
