//! An answer's body as the model meant it: what was compressed on the way is decoded
//! piece by piece, a stream as it comes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::http::{Response, header};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    audit::secrets::{Passing, Secrets},
    gateway::encoding::{self, Decoded, Decoder},
};

/// So much is decoded at a time.
const PIECE: usize = 32 << 10;
/// The most that passes between two codings of an answer.
const LARGEST_BETWEEN: usize = 64 << 20;

/// The body of an answer.
pub(in crate::gateway) struct Answered {
    body: Incoming,
    coding: Coding,
    /// What of the request is taken out of it.
    passing: Option<Passing>,
    /// Its first bytes, as many as show whether it is compressed.
    first: Vec<u8>,
    ended: bool,
}

enum Coding {
    /// As it is.
    Identity,
    Encoded(Box<Encoded>),
    /// Something that was not asked for and is not understood.
    Unreadable(encoding::Unreadable),
}

struct Encoded {
    decoder: Decoder,
    piece: Box<[u8]>,
    /// There was a byte: what is empty is not encoded.
    begun: bool,
    ended: bool,
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::gateway) enum Unread {
    /// The connection broke off.
    #[error(transparent)]
    Connection(#[from] hyper::Error),
    /// The coding is not understood.
    #[error(transparent)]
    Unreadable(#[from] encoding::Unreadable),
    /// It is not encoded as its headers say, or cut short.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

impl Answered {
    /// The answer, without the header that says how it is encoded.
    pub(super) fn of(response: Response<Incoming>) -> Response<Self> {
        let (mut head, body) = response.into_parts();
        let coding = if head.headers.contains_key(header::CONTENT_ENCODING) {
            let coding = coding(&head.headers);
            head.headers.remove(header::CONTENT_ENCODING);
            coding
        } else {
            Coding::Identity
        };
        let first = vec![];
        Response::from_parts(head, Self { body, coding, passing: None, first, ended: false })
    }

    /// The same answer without these, wherever it is cut into pieces.
    pub(in crate::gateway) fn without(self, secrets: &Arc<Secrets>) -> Self {
        let passing = (!secrets.is_empty()).then(|| Passing::new(secrets.clone()));
        let coding = match self.coding {
            // The application is told its name, which is the server's to choose.
            Coding::Unreadable(encoding::Unreadable::Unknown(name)) => {
                let name = secrets.text(&name).into_owned();
                Coding::Unreadable(encoding::Unreadable::Unknown(name))
            }
            coding => coding,
        };
        Self { passing, coding, ..self }
    }

    /// Whether what is here is compressed, and no header said so: a proxy has dropped it. No
    /// application can read it, and no secret is found in it.
    fn is_compressed(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(data) = frame.data_ref().filter(|_| self.first.len() < encoding::LONGEST_MARK)
        else {
            return false;
        };
        let missing = encoding::LONGEST_MARK - self.first.len();
        self.first.extend_from_slice(&data[..data.len().min(missing)]);
        encoding::is_compressed(&self.first)
    }

    fn poll_decoded(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        match &mut self.coding {
            Coding::Identity => Pin::new(&mut self.body).poll_frame(cx).map_err(Unread::from),
            Coding::Encoded(encoded) => encoded.poll(&mut self.body, cx),
            Coding::Unreadable(why) => {
                let why = why.clone();
                self.coding = Coding::Identity;
                Poll::Ready(Some(Err(why.into())))
            }
        }
    }
}

fn coding(headers: &axum::http::HeaderMap) -> Coding {
    let decoder = match encoding::codings(headers) {
        Ok(codings) if codings.is_empty() => return Coding::Identity,
        Ok(codings) => Decoder::new(&codings, LARGEST_BETWEEN),
        Err(unreadable) => return Coding::Unreadable(unreadable),
    };
    match decoder {
        Ok(decoder) => Coding::Encoded(Box::new(Encoded::new(decoder))),
        Err(_) => Coding::Unreadable(encoding::Unreadable::Unknown("?".to_owned())),
    }
}

fn undeclared() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is compressed, and has no content-encoding that says so: a proxy between the gateway \
         and the model may have dropped that header",
    )
}

impl Encoded {
    fn new(decoder: Decoder) -> Self {
        Self { decoder, piece: vec![0; PIECE].into(), begun: false, ended: false }
    }

    fn poll<B>(
        &mut self,
        body: &mut B,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>>
    where
        B: Body<Data = Bytes, Error: Into<Unread>> + Unpin,
    {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match self.decoder.read(&mut self.piece) {
                Ok(Decoded::Bytes(read)) => {
                    let decoded = Bytes::copy_from_slice(&self.piece[..read]);
                    return Poll::Ready(Some(Ok(Frame::data(decoded))));
                }
                Ok(Decoded::End) => self.ended = true,
                Ok(Decoded::Working) => {
                    // Others on this thread wait meanwhile, and who waits for this looks at
                    // the time.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Decoded::Hungry) => match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            self.begun |= !data.is_empty();
                            self.decoder.feed(data);
                        }
                    }
                    Some(Err(error)) => {
                        self.ended = true;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    None if !self.begun => self.ended = true,
                    None => self.decoder.end(),
                },
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        let this = self.get_mut();
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            let frame = ready!(this.poll_decoded(cx));
            if let Some(Ok(frame)) = &frame
                && this.is_compressed(frame)
            {
                this.ended = true;
                return Poll::Ready(Some(Err(undeclared().into())));
            }
            let Some(passing) = &mut this.passing else { return Poll::Ready(frame) };
            let goes_on = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => passing.next(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.ended = true;
                    passing.end()
                }
            };
            if !goes_on.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(goes_on))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing_kept = self.passing.as_ref().is_none_or(Passing::is_empty);
        matches!(self.coding, Coding::Identity) && self.body.is_end_stream() && nothing_kept
    }

    fn size_hint(&self) -> SizeHint {
        match self.coding {
            Coding::Identity if self.passing.is_none() => self.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt, Full, combinators::MapErr};

    use super::*;

    /// Decodes all of a body.
    struct All(Encoded, MapErr<Full<Bytes>, fn(std::convert::Infallible) -> Unread>);

    impl All {
        fn of(text: &[u8]) -> Self {
            let body = zstd::encode_all(text, 3).unwrap();
            let decoder = Decoder::new(&[encoding::Coding::Zstd], LARGEST_BETWEEN).unwrap();
            Self(Encoded::new(decoder), Full::from(body).map_err(|never| match never {}))
        }
    }

    impl Future for All {
        type Output = Result<usize, Unread>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            let Self(encoded, body) = &mut *self;
            let mut length = 0;
            while let Some(frame) = ready!(encoded.poll(body, cx)) {
                length += frame?.data_ref().map_or(0, Bytes::len);
            }
            Poll::Ready(Ok(length))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_an_answer_ends_while_it_is_decoded() {
        let short = tokio::time::timeout(Duration::ZERO, All::of(&[b'x'; 10_000])).await;
        assert!(matches!(short, Ok(Ok(10_000))), "{short:?}");
        let long = tokio::time::timeout(Duration::ZERO, All::of(&vec![b'x'; 8 << 20])).await;
        assert!(long.is_err(), "{long:?}");
        assert!(All::of(&vec![b'x'; 8 << 20]).await.is_ok(), "the next turn comes by itself");
    }
}
