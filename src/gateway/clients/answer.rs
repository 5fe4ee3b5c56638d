//! An answer's body as the model meant it: what was compressed on the way is decoded
//! piece by piece, a stream as it comes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::http::{Response, header};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::gateway::encoding::{self, Decoded, Decoder};

/// So much is decoded at a time.
const PIECE: usize = 32 << 10;

/// The body of an answer.
pub(in crate::gateway) struct Answered {
    body: Incoming,
    coding: Coding,
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
    #[error("it can not be decoded: {0}")]
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
        Response::from_parts(head, Self { body, coding })
    }
}

fn coding(headers: &axum::http::HeaderMap) -> Coding {
    let decoder = match encoding::codings(headers) {
        Ok(codings) if codings.is_empty() => return Coding::Identity,
        Ok(codings) => Decoder::new(&codings),
        Err(unreadable) => return Coding::Unreadable(unreadable),
    };
    match decoder {
        Ok(decoder) => {
            let piece = vec![0; PIECE].into();
            Coding::Encoded(Box::new(Encoded { decoder, piece, begun: false, ended: false }))
        }
        Err(_) => Coding::Unreadable(encoding::Unreadable::Unknown("?".to_owned())),
    }
}

impl Encoded {
    fn poll(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
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
        let Self { body, coding } = self.get_mut();
        match coding {
            Coding::Identity => Pin::new(body).poll_frame(cx).map_err(Unread::from),
            Coding::Encoded(encoded) => encoded.poll(body, cx),
            Coding::Unreadable(why) => {
                let why = why.clone();
                *coding = Coding::Identity;
                Poll::Ready(Some(Err(why.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.coding, Coding::Identity) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.coding {
            Coding::Identity => self.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}
