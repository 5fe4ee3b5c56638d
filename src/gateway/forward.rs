//! A stream on its way to the application: bytes go on as they come, and are read as
//! they pass.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    budget::CLIENT_SHARE,
    caching::Recorded,
    flight::{Flight, told_code},
    upstream::{self, Next},
};
use crate::{audit::record::RecordOutcome, openai::error::ApiError};

/// What travels with a stream.
pub(super) struct Forward {
    pub stream: Box<upstream::Stream>,
    pub flight: Flight,
    /// It is kept for the same request.
    pub recorded: Option<Recorded>,
    /// Held until the stream ends.
    pub _permit: OwnedSemaphorePermit,
}

/// The body of the answer. When the application goes away, it is dropped, and the flight
/// records a cancelled request, or a complete one if the stream had said that it is done.
pub(super) fn body(forward: Forward) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    // Boxed, for it is moved with each chunk.
    stream::unfold(Some(Box::new(forward)), |state| async {
        let mut forward = state?;
        match forward.stream.next(&mut forward.flight).await {
            Next::Chunk(chunk) => {
                // Where there is no room, it is not kept.
                if let Some(recorded) = &mut forward.recorded
                    && !recorded.push(&chunk)
                {
                    forward.recorded = None;
                }
                Some((Ok(chunk), Some(forward)))
            }
            Next::End => {
                if let Some(recorded) = forward.recorded.filter(|_| forward.flight.passes()) {
                    recorded.keep(&forward.flight.answer);
                }
                forward.flight.finish(RecordOutcome::Ok);
                None
            }
            Next::Failed => {
                let code = told_code(&forward.flight.answer);
                let error = ApiError::new(502, code, "the model said that it failed");
                forward.flight.fail(&error);
                None
            }
            // Broken in the middle: the application has begun to read, so nobody else can answer.
            next @ (Next::Broken | Next::Late | Next::Crowded(_) | Next::Secret) => {
                let error = match next {
                    Next::Crowded(error) => {
                        forward.flight.crowded = true;
                        error
                    }
                    Next::Late => {
                        let message =
                            "the model's stream took longer than the backend's limits allow";
                        ApiError::new(504, "upstream_timeout", message)
                    }
                    Next::Secret => upstream::quotes_a_secret(),
                    _ => ApiError::new(502, "upstream_broken", "the model's stream broke off"),
                };
                let event = error.event(forward.flight.operation);
                if error.code == CLIENT_SHARE {
                    // It says nothing of the variant.
                    forward.flight.went_wrong(&error);
                    forward.flight.finish(RecordOutcome::ClientError);
                } else {
                    forward.flight.fail(&error);
                }
                Some((Ok(Bytes::from(event)), None))
            }
        }
    })
}
