//! A stream on its way to the application: bytes go on as they come, and are read as
//! they pass.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::{flight::Flight, upstream::Chunks};
use crate::{
    audit::record::RecordOutcome,
    openai::{error::ApiError, sse::Scanner},
};

/// A stream that says nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(120);

/// What travels with a stream.
pub(super) struct Forward {
    pub held: Option<Bytes>,
    pub rest: Chunks,
    pub scanner: Scanner,
    pub flight: Flight,
    /// Held until the stream ends.
    pub _permit: OwnedSemaphorePermit,
}

/// The body of the answer. When the application goes away, it is dropped, and the
/// flight records a cancelled request.
pub(super) fn body(forward: Forward) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(Some(forward), |state| async {
        let mut forward = state?;
        if let Some(held) = forward.held.take() {
            return Some((Ok(held), Some(forward)));
        }
        match tokio::time::timeout(SILENCE, forward.rest.next()).await {
            Ok(Some(Ok(chunk))) => {
                let mut content = false;
                let flight = &mut forward.flight;
                forward.scanner.feed(&chunk, |data| content |= flight.answer.absorb_event(data));
                if content {
                    flight.first_token();
                }
                Some((Ok(chunk), Some(forward)))
            }
            Ok(None) if forward.flight.answer.complete() => {
                forward.flight.finish(RecordOutcome::Ok);
                None
            }
            // Broken in the middle: the application has begun to read, so nobody else can answer.
            Ok(None | Some(Err(_))) | Err(_) => {
                forward.flight.finish(RecordOutcome::Error);
                let error = ApiError::new(502, "upstream_broken", "the model's stream broke off");
                Some((Ok(Bytes::from(format!("data: {}\n\n", error.body()))), None))
            }
        }
    })
}
