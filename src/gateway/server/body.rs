//! Bodies with bounds: what is read of a request, what is sent as an answer.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, http::HeaderMap};
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::{
    guard::{self, Panics},
    pace::Answering,
};
use crate::{
    gateway::{
        budget::{BODY_COPIES, Class, Held, SMALL},
        encoding::{self, Coding, Decoded, Decoder},
        limits::Limits,
    },
    openai::error::ApiError,
};

/// So much of a body that nobody wants is read all the same, so that its sender comes to
/// read the answer.
const UNWANTED: usize = 1 << 20;
/// So much of a compressed body is decoded into one piece.
const DECODED_AT_ONCE: usize = 128 << 10;
/// How long reading what is unwanted may take.
const UNWANTED_TIME: Duration = Duration::from_secs(1);

/// Reads a request's body as a whole. Its memory is `held` as long as the body is.
///
/// # Errors
/// It is too large, too slow or broken off, or there is no room for it now.
pub(super) async fn read<B>(mut body: B, limits: &Limits, mut held: Held) -> Result<Bytes, ApiError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > limits.body as u64 {
        return Err(too_large(limits));
    }
    let began = Instant::now();
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    let mut length = 0;
    loop {
        let earned = Duration::from_secs((length / limits.body_rate.max(1)) as u64);
        let frame = timeout_at(began + limits.body_time + earned, body.frame())
            .await
            .map_err(|_| too_slow())?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| broken())?.into_data() else { continue };
        length += data.len();
        if length > limits.body {
            return Err(too_large(limits));
        }
        make_room(length, &mut held)?;
        // Most bodies are one piece, which is taken as it is.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(held.keep(if rest.is_empty() { first } else { rest.freeze() }))
}

/// How a body is encoded.
///
/// # Errors
/// In a way that is not understood.
pub(super) fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, ApiError> {
    encoding::codings(headers).map_err(|error| {
        let message = format!(
            "{error}: send the body in one of {}, or as it is, without content-encoding",
            encoding::UNDERSTOOD
        );
        ApiError::new(415, "unsupported_encoding", message).at("content-encoding")
    })
}

/// The body as it was before it was encoded, within the same bounds. What it unfolds to
/// counts as it unfolds, so that a few bytes never take more memory than a large body.
///
/// # Errors
/// It is not encoded in the way that its headers say, it is too large, or there is no room
/// for it now.
pub(super) async fn decoded(
    whole: Bytes,
    codings: &[Coding],
    limits: &Limits,
    mut held: Held,
) -> Result<Bytes, ApiError> {
    if codings.is_empty() {
        return Ok(whole);
    }
    let mut decoder = Decoder::new(codings, limits.body).map_err(|_| Class::Bodies.refusal())?;
    decoder.feed(whole);
    decoder.end();
    let (mut bytes, mut piece) = (BytesMut::new(), vec![0; DECODED_AT_ONCE]);
    loop {
        let read = match decoder.read(&mut piece).map_err(|e| undecodable(&e))? {
            Decoded::Bytes(read) => read,
            Decoded::Working => {
                // Others on this thread wait meanwhile.
                tokio::task::yield_now().await;
                continue;
            }
            Decoded::End | Decoded::Hungry => return Ok(held.keep(bytes.freeze())),
        };
        if bytes.len() + read > limits.body {
            return Err(too_large(limits));
        }
        make_room(bytes.len() + read, &mut held)?;
        bytes.extend_from_slice(&piece[..read]);
    }
}

/// Makes sure that there is room for a body of `length` bytes.
fn make_room(length: usize, held: &mut Held) -> Result<(), ApiError> {
    if length > SMALL { held.grow_to(length.saturating_mul(BODY_COPIES)) } else { Ok(()) }
}

/// Reads a little of a body that is not wanted. Otherwise a sender that writes first and
/// reads then would see a broken connection in place of the answer.
pub(super) async fn discard<B>(mut body: B)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > UNWANTED as u64 {
        return;
    }
    let read = async {
        let mut length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > UNWANTED {
                return;
            }
        }
    };
    // What is not read by then is not read.
    let _ = tokio::time::timeout(UNWANTED_TIME, read).await;
}

fn too_large(limits: &Limits) -> ApiError {
    let message = format!(
        "the body is larger than {} bytes, which is all that this gateway takes (--max-body-bytes)",
        limits.body
    );
    ApiError::new(413, "body_too_large", message)
}

fn too_slow() -> ApiError {
    ApiError::new(408, "body_too_slow", "the body did not come in time")
}

fn broken() -> ApiError {
    let message = "the body broke off, or is not encoded as its headers say";
    ApiError::new(400, "body_incomplete", message)
}

fn undecodable(error: &std::io::Error) -> ApiError {
    let message = format!("the body can not be decoded as its content-encoding says: {error}");
    ApiError::new(400, "invalid_encoding", message).at("content-encoding")
}

/// An answer's body: as it is, within bounds.
pub(super) struct Answer {
    inner: Body,
    /// What the request holds until its answer has ended.
    held: Option<Arc<Held>>,
    answering: Option<Answering>,
    until: Instant,
    left: u64,
    is_stream: bool,
    ended: bool,
    panics: Arc<Panics>,
}

/// An answer was cut, and its connection with it.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut because {0}")]
pub(super) struct Cut(&'static str);

impl Answer {
    pub(super) fn new(
        (inner, held): (Body, Option<Arc<Held>>),
        answering: Answering,
        limits: &Limits,
        is_stream: bool,
        panics: &Arc<Panics>,
    ) -> Self {
        Self {
            inner,
            held,
            answering: Some(answering),
            until: Instant::now() + limits.answer_time,
            left: limits.answer,
            is_stream,
            ended: false,
            panics: panics.clone(),
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.inner = Body::empty();
        self.held = None;
        self.answering = None;
    }

    fn cut(&mut self, why: &'static str) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.end();
        if !self.is_stream {
            return Poll::Ready(Some(Err(Cut(why))));
        }
        let error = ApiError::new(502, "answer_too_long", format!("the answer was cut: {why}"));
        let last = format!("data: {}\n\n", error.body());
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(last)))))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let step = || Pin::new(&mut this.inner).poll_frame(cx);
        let Some(step) = guard::step(step, &this.panics) else {
            return this.cut("this gateway has failed at it");
        };
        match step {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => {
                this.end();
                Poll::Ready(Some(Err(Cut("it could not be read"))))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                match this.left.checked_sub(length) {
                    None => this.cut("it is larger than this gateway allows"),
                    Some(_) if Instant::now() > this.until => {
                        this.cut("it took longer than this gateway allows")
                    }
                    Some(left) => {
                        this.left = left;
                        Poll::Ready(Some(Ok(frame)))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use http_body_util::{Full, StreamBody};

    use super::{super::pace::Turn, *};
    use crate::gateway::budget::Budget;

    fn pieces(
        pieces: impl futures::Stream<Item = usize> + Send,
    ) -> impl HttpBody<Data = Bytes, Error = std::convert::Infallible> {
        StreamBody::new(pieces.map(|n| Ok(Frame::data(Bytes::from(vec![b'x'; n])))))
    }

    async fn code(
        body: impl HttpBody<Data = Bytes> + Unpin,
        limits: &Limits,
    ) -> Result<usize, &'static str> {
        let whole = read(body, limits, Budget::new(limits.memory).nothing(Class::Bodies)).await;
        whole.map(|bytes| bytes.len()).map_err(|e| e.code)
    }

    #[tokio::test]
    async fn a_body_of_the_largest_size_is_read_and_a_byte_more_is_not() {
        let limits = Limits { body: 3000, ..Limits::default() };
        let whole = |n| Full::new(Bytes::from(vec![0; n]));
        let parts = |n| Box::pin(pieces(stream::iter([1000, 1000, n])));
        assert_eq!(code(whole(3000), &limits).await, Ok(3000));
        assert_eq!(code(parts(1000), &limits).await, Ok(3000));
        assert_eq!(code(whole(3001), &limits).await, Err("body_too_large"));
        assert_eq!(code(parts(1001), &limits).await, Err("body_too_large"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up_and_a_slow_one_that_goes_on_is_not() {
        let limits = Limits::default();
        let trickle = |bytes, pause: Duration| {
            Box::pin(pieces(stream::repeat(bytes).take(200).then(move |n| async move {
                tokio::time::sleep(pause).await;
                n
            })))
        };
        let began = Instant::now();
        let slow = code(trickle(1, Duration::from_secs(1)), &limits).await;
        assert_eq!((slow, began.elapsed()), (Err("body_too_slow"), limits.body_time));
        let steady = code(trickle(8 << 10, Duration::from_secs(1)), &limits).await;
        assert_eq!(steady, Ok(200 * (8 << 10)));
    }

    #[tokio::test]
    async fn large_bodies_share_their_room_and_give_it_back() {
        // Three eighths of this for bodies, of which each counts three times.
        let (limits, room) = (Limits::default(), Budget::new(8 * (256 << 10)));
        let body = |n| Full::new(Bytes::from(vec![0; n]));
        let held = read(body(200 << 10), &limits, room.nothing(Class::Bodies)).await.ok().unwrap();
        let second = read(body(100 << 10), &limits, room.nothing(Class::Bodies)).await;
        assert_eq!(second.err().map(|e| (e.status, e.code)), Some((503, "overloaded")));
        assert!(
            read(body(4 << 10), &limits, room.nothing(Class::Bodies)).await.is_ok(),
            "small ones need none"
        );
        drop(held);
        assert!(read(body(100 << 10), &limits, room.nothing(Class::Bodies)).await.is_ok());
    }

    #[tokio::test]
    async fn a_compressed_body_is_read_within_the_same_bounds() {
        let limits = Limits { body: 1 << 20, ..Limits::default() };
        let room = Budget::new(8 * (2 << 20));
        let zstd = |n: usize| zstd::encode_all(&vec![b'x'; n][..], 3).unwrap();
        let ask = async |encoding: &'static str, body: Vec<u8>| {
            let name = axum::http::header::CONTENT_ENCODING;
            let headers = HeaderMap::from_iter([(name, encoding.parse().unwrap())]);
            let whole = match codings(&headers) {
                Ok(codings) => {
                    decoded(body.into(), &codings, &limits, room.nothing(Class::Bodies)).await
                }
                Err(error) => Err(error),
            };
            whole.map_err(|e| (e.status, e.code))
        };
        let whole = ask("zstd", zstd(1 << 20)).await.ok().unwrap();
        assert_eq!(whole.len(), 1 << 20);
        let (first, second) =
            (ask("ZSTD", zstd(800 << 10)).await, ask("zstd", zstd(800 << 10)).await);
        assert!(first.is_ok(), "there is room for two");
        assert_eq!(second.err(), Some((503, "overloaded")), "and not for three");
        drop((whole, first));
        assert_eq!(ask("zstd", zstd((1 << 20) + 1)).await.err(), Some((413, "body_too_large")));
        assert_eq!(ask("zstd", zstd(1 << 30)).await.err(), Some((413, "body_too_large")));
        assert_eq!(ask("zstd", b"{}".to_vec()).await.err(), Some((400, "invalid_encoding")));
        assert_eq!(ask("br", b"{}".to_vec()).await.err(), Some((415, "unsupported_encoding")));
        assert_eq!(ask("identity", b"{}".to_vec()).await.ok().unwrap(), "{}");
        assert!(room.take(Class::Bodies, 6 << 20).is_ok(), "given back");
    }

    #[tokio::test]
    async fn a_long_body_is_decoded_in_turns_and_one_that_holds_nothing_is_refused() {
        let limits = Limits::default();
        let budget = Budget::new(limits.memory);
        let ask = async |codings: &[Coding], body: Vec<u8>| {
            let mut turns = 1;
            let held = budget.nothing(Class::Bodies);
            let decoding = decoded(body.into(), codings, &limits, held);
            let mut decoding = std::pin::pin!(decoding);
            let whole = std::future::poll_fn(|cx| {
                let polled = decoding.as_mut().poll(cx);
                turns += usize::from(polled.is_pending());
                polled
            });
            (whole.await.map(|bytes| bytes.len()).map_err(|e| (e.status, e.code, e.message)), turns)
        };
        let zstd = |text: &[u8]| zstd::encode_all(text, 3).unwrap();
        let (whole, turns) = ask(&[Coding::Zstd], zstd(&vec![b'x'; 8 << 20])).await;
        assert_eq!(whole, Ok(8 << 20));
        assert!(turns >= 8, "{turns}");
        let (whole, turns) = ask(&[Coding::Zstd], zstd(&vec![b'x'; 10_000])).await;
        assert_eq!((whole, turns), (Ok(10_000), 1), "a short one is decoded at once");
        let (whole, turns) =
            ask(&[Coding::Zstd, Coding::Zstd], zstd(&zstd(b"").repeat(1 << 20))).await;
        let (status, code, message) = whole.unwrap_err();
        assert_eq!((status, code), (400, "invalid_encoding"));
        assert!(message.contains("send it"), "{message}");
        assert!((8..64).contains(&turns), "{turns}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_end_is_cut_with_an_error_and_frees_its_turn() {
        let turn = Arc::new(Turn::default());
        for limits in [
            Limits { answer: 1000, ..Limits::default() },
            Limits { answer_time: Duration::from_secs(50), ..Limits::default() },
        ] {
            let endless = stream::repeat(()).then(|()| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, std::io::Error>("data: {}\n\n")
            });
            let panics = Arc::default();
            let body = Answer::new(
                (Body::from_stream(endless), None),
                turn.begin(axum::http::Version::HTTP_11),
                &limits,
                true,
                &panics,
            );
            let text = body.collect().await.unwrap().to_bytes();
            let text = std::str::from_utf8(&text).unwrap();
            let last = text.trim_end().rsplit("data: ").next().unwrap();
            assert!(last.contains("answer_too_long"), "{last}");
            assert!(text.len() < 2000);
        }
    }
}
