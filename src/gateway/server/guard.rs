//! A panic of one request is its own: it is answered with 500, logged and counted, and its
//! connection and all others go on.

use std::{
    any::Any,
    future::Future,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use futures::FutureExt;
use prometheus_client::metrics::counter::Counter;

use crate::openai::error::ApiError;

/// How many requests have ended in a panic.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct Panics(Counter);

impl Panics {
    /// As it is exported.
    pub(in crate::gateway) fn counter(&self) -> Counter {
        self.0.clone()
    }

    fn tell(&self, payload: &(dyn Any + Send)) -> ApiError {
        self.0.inc();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        // The process's hook has told where.
        tracing::error!(panic = text.unwrap_or("of another kind"), "a request ended in a panic");
        let message = "this gateway has failed at this request, which is a fault of its own: \
                       tell who runs it";
        ApiError::new(500, "internal_error", message)
    }
}

/// What `work` comes to; an error when it panics. What it held is dropped, and what requests
/// share is kept sound by those who share it.
///
/// # Errors
/// Its own, or that it panicked.
pub(super) async fn guarded<T>(
    work: impl Future<Output = Result<T, ApiError>>,
    panics: &Panics,
) -> Result<T, ApiError> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|payload| Err(panics.tell(payload.as_ref())))
}

/// The same of one step of a body, which has begun to be answered.
pub(super) fn step<T>(work: impl FnOnce() -> T, panics: &Arc<Panics>) -> Option<T> {
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    done.map_err(|payload| panics.tell(payload.as_ref())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_request_and_counted() {
        let panics = Panics::default();
        let fine = guarded(async { Ok(1) }, &panics).await;
        let refused = guarded::<()>(async { Err(ApiError::new(400, "a", "b")) }, &panics).await;
        assert_eq!((fine.ok(), refused.err().map(|e| e.status)), (Some(1), Some(400)));
        let failed = async {
            tokio::task::yield_now().await;
            panic!("at {}", 7)
        };
        let error = guarded::<()>(failed, &panics).await.unwrap_err();
        assert_eq!((error.status, error.code), (500, "internal_error"));
        assert!(!error.message.contains('7'), "what went wrong is for the log");
        let panics = Arc::new(panics);
        assert_eq!(step(|| 1, &panics), Some(1));
        assert_eq!(step::<()>(|| panic!("in a step"), &panics), None);
        assert_eq!(panics.counter().get(), 2);
    }
}
