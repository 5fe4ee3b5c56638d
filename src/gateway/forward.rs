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
        let Forward { rest, scanner, flight, .. } = &mut forward;
        match next(rest, scanner, flight).await {
            Next::Chunk(chunk) => Some((Ok(chunk), Some(forward))),
            Next::End => {
                forward.flight.finish(RecordOutcome::Ok);
                None
            }
            // Broken in the middle: the application has begun to read, so nobody else can answer.
            Next::Broken => {
                forward.flight.finish(RecordOutcome::Error);
                let error = ApiError::new(502, "upstream_broken", "the model's stream broke off");
                Some((Ok(Bytes::from(format!("data: {}\n\n", error.body()))), None))
            }
        }
    })
}

/// What comes next in a stream.
pub(super) enum Next {
    /// Some bytes, read already.
    Chunk(Bytes),
    /// It is complete.
    End,
    /// It broke off, or says nothing any more.
    Broken,
}

/// Waits for the next bytes and reads them.
pub(super) async fn next(rest: &mut Chunks, scanner: &mut Scanner, flight: &mut Flight) -> Next {
    match tokio::time::timeout(SILENCE, rest.next()).await {
        Ok(Some(Ok(chunk))) => {
            let mut content = false;
            scanner.feed(&chunk, |data| content |= flight.answer.absorb_event(data));
            if content {
                flight.first_token();
            }
            Next::Chunk(chunk)
        }
        Ok(None) if flight.answer.complete() => Next::End,
        Ok(None | Some(Err(_))) | Err(_) => Next::Broken,
    }
}
