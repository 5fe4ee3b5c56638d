//! Server-sent events, read as they pass by.
//!
//! They go on event by event, the bytes of each as they came: an event that was forwarded
//! in part can neither be left out, nor be followed by one that tells of an error.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr_iter};

/// A line or event longer than this is not kept: what it says is not read, but it is still
/// forwarded. The last event of a response holds all of it, with its images.
const LONGEST: usize = 32 << 20;

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Forward,
    /// It is left out.
    Drop,
}

/// Finds events in a stream of chunks that may be cut anywhere, and hands on what goes on.
#[derive(Debug, Default)]
pub struct Events {
    /// An event that is not complete.
    begun: BytesMut,
    /// The event under way must go on, whatever it says.
    too_long: bool,
    /// What goes on and was not taken yet.
    out: VecDeque<Bytes>,
}

impl Events {
    /// The next bytes that go on.
    pub fn take(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// The stream has ended: an event that was never completed goes on.
    pub fn end(&mut self) {
        if !self.begun.is_empty() {
            self.out.push_back(self.begun.split().freeze());
        }
    }

    /// Reads the next chunk and calls `data` with each complete payload. An event of which
    /// any payload is to be left out is left out as a whole.
    pub fn feed(&mut self, chunk: Bytes, mut data: impl FnMut(&[u8]) -> Fate) {
        if memchr(b'\n', &chunk).is_none() && self.begun.len() + chunk.len() <= LONGEST {
            self.begun.extend_from_slice(&chunk);
            return;
        }
        let mut rest = if self.begun.is_empty() {
            chunk
        } else {
            self.begun.extend_from_slice(&chunk);
            self.begun.split().freeze()
        };
        // Events that go on and lie side by side go on together.
        let mut going = 0;
        while let Some(length) = event_length(&rest[going..]) {
            let mut fate = Fate::Forward;
            for line in lines(&rest[going..going + length]) {
                if let Some(payload) = payload(line)
                    && !self.too_long
                    && data(payload) == Fate::Drop
                {
                    fate = Fate::Drop;
                }
            }
            self.too_long = false;
            match fate {
                Fate::Forward => going += length,
                Fate::Drop => {
                    self.forward(rest.split_to(going));
                    rest.advance(length);
                    going = 0;
                }
            }
        }
        self.forward(rest.split_to(going));
        if rest.len() > LONGEST {
            self.too_long = true;
            self.forward(rest);
        } else {
            self.begun.extend_from_slice(&rest);
        }
    }

    fn forward(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.out.push_back(bytes);
        }
    }
}

/// The length of the first event with the empty line that ends it.
fn event_length(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = memchr(b'\n', &bytes[from..]) {
        from += at + 1;
        match bytes[from..] {
            [b'\n', ..] => return Some(from + 1),
            [b'\r', b'\n', ..] => return Some(from + 2),
            _ => {}
        }
    }
    None
}

/// The lines of an event, which ends with a line's end.
fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    memchr_iter(b'\n', event).map(move |end| {
        let line = &event[from..end];
        from = end + 1;
        line
    })
}

fn payload(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let rest = line.strip_prefix(b"data:")?;
    Some(rest.strip_prefix(b" ").unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &[u8] =
        b": comment\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\n\ndata: \xc3\xa4\n\ndata: [DONE]\n\n";

    /// The payloads, and what goes on when the payload "two" is left out.
    fn read(chunks: &[&'static [u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut events, mut found, mut out) = (Events::default(), vec![], vec![]);
        for chunk in chunks {
            events.feed(Bytes::from_static(chunk), |data| {
                found.push(data.to_vec());
                if data == b"two" { Fate::Drop } else { Fate::Forward }
            });
            while let Some(bytes) = events.take() {
                out.extend(bytes);
            }
        }
        events.end();
        while let Some(bytes) = events.take() {
            out.extend(bytes);
        }
        (found, out)
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_does_not_matter(
            mut cuts in prop::collection::vec(0..STREAM.len(), 0..12),
        ) {
            cuts.sort_unstable();
            let mut chunks = vec![];
            let mut from = 0;
            for cut in cuts {
                chunks.push(&STREAM[from..cut]);
                from = cut;
            }
            chunks.push(&STREAM[from..]);
            prop_assert_eq!(read(&chunks), read(&[STREAM]));
        }
    }

    #[test]
    fn payloads_are_found_with_either_line_end() {
        let expected: [&[u8]; 4] = [b"{\"a\":1}", b"two", b"\xc3\xa4", b"[DONE]"];
        assert_eq!(read(&[STREAM]).0, expected);
    }

    #[test]
    fn an_event_is_left_out_whole_and_the_rest_is_not_touched() {
        let left = b": comment\r\ndata: {\"a\":1}\r\n\r\ndata: \xc3\xa4\n\ndata: [DONE]\n\n";
        assert_eq!(read(&[STREAM]).1, left);
    }

    #[test]
    fn a_stream_that_ends_within_an_event_goes_on_to_its_last_byte() {
        assert_eq!(read(&[b"data: 1\n\ndata: 2\n"]).1, b"data: 1\n\ndata: 2\n");
    }

    #[test]
    fn an_event_that_is_not_complete_does_not_go_on_yet() {
        let mut events = Events::default();
        events.feed(Bytes::from_static(b"data: 1\n\ndata: {\"a"), |_| Fate::Forward);
        assert_eq!(events.take(), Some(Bytes::from_static(b"data: 1\n\n")));
        assert_eq!(events.take(), None);
        events.feed(Bytes::from_static(b"\": 2}\n\n"), |_| Fate::Forward);
        assert_eq!(events.take(), Some(Bytes::from_static(b"data: {\"a\": 2}\n\n")));
    }

    #[test]
    fn an_event_with_an_image_is_read() {
        let mut events = Events::default();
        let image = [b"data: ".as_slice(), &vec![b'x'; 3 << 20], b"\n\n"].concat();
        let mut read = 0;
        for piece in image.chunks(16 << 10) {
            events.feed(Bytes::copy_from_slice(piece), |data| {
                read += data.len();
                Fate::Forward
            });
        }
        assert_eq!((read, events.take().map(|out| out.len())), (3 << 20, Some(image.len())));
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut events = Events::default();
        let mut forwarded = 0;
        let piece = LONGEST / 16;
        for _ in 0..40 {
            events.feed(Bytes::from(vec![b'x'; piece]), |_| Fate::Forward);
            while let Some(bytes) = events.take() {
                forwarded += bytes.len();
            }
        }
        assert!(events.begun.capacity() <= 3 * LONGEST, "{}", events.begun.capacity());
        assert!(forwarded >= 40 * piece - LONGEST, "{forwarded}");
        let mut found = vec![];
        events.feed(Bytes::from_static(b"\n\ndata: 1\n\n"), |data| {
            found.push(data.to_vec());
            Fate::Forward
        });
        assert_eq!(found, [b"1".to_vec()]);
    }
}
