//! Server-sent events, read as they pass by.
//!
//! They go on event by event, the bytes of each as they came: an event that was forwarded
//! in part can neither be left out, nor be followed by one that tells of an error.
//!
//! Events are those of the [standard](https://html.spec.whatwg.org/multipage/server-sent-events.html):
//! lines end with LF, CR or both, a mark of the byte order may come first, several lines of
//! data are one text. What servers do besides is read, too: a field `error`, JSON without a
//! field, and a last event that nothing ends. The mark, which OpenAI's client for Python takes for
//! a part of the first event, is left out, and what is missing of the last event's end is added:
//! without it no client reads that event.

use std::{borrow::Cow, collections::VecDeque};

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// A line or event longer than this is not kept: what it says is not read, but it is still
/// forwarded. The last event of a response holds all of it, with its images.
const LONGEST: usize = 32 << 20;
/// An event of more lines than this is not read either: each may be a payload of its own,
/// and no server sends a hundred in one.
const MOST_LINES: usize = 1 << 16;
/// An empty line with the line's end before it.
const LONGEST_END: usize = 4;

/// A mark of the byte order in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Forward,
    /// It goes on, and gets no end if it has none.
    AsItCame,
    /// It is left out.
    Drop,
}

/// What an event holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// The text of its data.
    Data(&'a [u8]),
    /// An error: the data of an event of that name, or a field `error`.
    Error(&'a [u8]),
    /// A line that is no field: JSON, or the beginning of a page.
    Stray(&'a [u8]),
}

/// Finds events in a stream of chunks that may be cut anywhere, and hands on what goes on.
#[derive(Debug, Default)]
pub struct Events {
    /// An event that is not complete.
    begun: BytesMut,
    /// How much of it is known to hold no end of an event.
    searched: usize,
    /// The event under way must go on, whatever it says.
    too_long: bool,
    /// Something was read: no mark of the byte order comes any more.
    has_begun: bool,
    /// What became of an event that ended with a CR, the last byte that came: an LF behind it
    /// belongs to it.
    may_get_lf: Option<Fate>,
    /// What goes on and was not taken yet.
    out: VecDeque<Bytes>,
}

impl Events {
    /// The next bytes that go on.
    pub fn take(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// Bytes of an event that is not complete.
    pub fn pending(&self) -> usize {
        self.begun.len()
    }

    /// Changes what goes on and was not taken yet; `with` says into what, if into something.
    pub fn change(&mut self, with: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        for bytes in &mut self.out {
            if let Some(changed) = with(bytes) {
                *bytes = changed.into();
            }
        }
    }

    /// The stream has ended well: an event that no empty line has ended is one all the same.
    pub fn end(&mut self, read: impl FnMut(Payload<'_>) -> Fate) {
        let mut rest = self.begun.split();
        if !self.has_begun && rest.starts_with(MARK) {
            rest.advance(MARK.len());
        }
        if self.too_long || rest.is_empty() {
            return self.forward(rest.freeze());
        }
        match fate(&rest, read) {
            Fate::Forward => {
                let ends = if rest.ends_with(b"\n") { &b"\n"[..] } else { b"\n\n" };
                rest.extend_from_slice(ends);
                self.forward(rest.freeze());
            }
            Fate::AsItCame => self.forward(rest.freeze()),
            Fate::Drop => {}
        }
    }

    /// The stream broke off: what came of an event goes on.
    pub fn broke_off(&mut self) {
        let rest = self.begun.split().freeze();
        self.forward(rest);
    }

    /// Reads the next chunk and calls `read` with each payload of its complete events. An
    /// event is left out if all of its payloads are to be left out.
    pub fn feed(&mut self, mut chunk: Bytes, mut read: impl FnMut(Payload<'_>) -> Fate) {
        if chunk.is_empty() {
            return;
        }
        if let Some(fate) = self.may_get_lf.take()
            && chunk.starts_with(b"\n")
        {
            let lf = chunk.split_to(1);
            if fate != Fate::Drop {
                self.forward(lf);
            }
        }
        let mut rest = if self.begun.is_empty() {
            chunk
        } else {
            self.begun.extend_from_slice(&chunk);
            if event_length(&self.begun, self.searched).is_none() {
                return self.wait();
            }
            self.begun.split().freeze()
        };
        let mut searched = std::mem::take(&mut self.searched);
        if !self.has_begun && !MARK.starts_with(&rest) {
            self.has_begun = true;
            if rest.starts_with(MARK) {
                rest.advance(MARK.len());
                searched = searched.saturating_sub(MARK.len());
            }
        }
        // Events that go on and lie side by side go on together.
        let mut going = 0;
        while let Some(length) = event_length(&rest[going..], searched) {
            searched = 0;
            let event = &rest[going..going + length];
            let too_long = std::mem::take(&mut self.too_long);
            let fate = if too_long { Fate::Forward } else { fate(event, &mut read) };
            if going + length == rest.len() && event.ends_with(b"\r") {
                self.may_get_lf = Some(fate);
            }
            if fate == Fate::Drop {
                self.forward(rest.split_to(going));
                rest.advance(length);
                going = 0;
            } else {
                going += length;
            }
        }
        self.forward(rest.split_to(going));
        self.begun.extend_from_slice(&rest);
        self.wait();
    }

    /// What has begun is kept until it is complete.
    fn wait(&mut self) {
        if self.begun.len() > LONGEST {
            self.too_long = true;
            self.searched = 0;
            // The end may come with the next chunk.
            let sure = self.begun.len() - LONGEST_END;
            let long = self.begun.split_to(sure).freeze();
            self.forward(long);
        } else {
            self.searched = self.begun.len().saturating_sub(LONGEST_END);
        }
    }

    fn forward(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.out.push_back(bytes);
        }
    }
}

/// The length of the first event with the empty line that ends it. Nothing ends before
/// `from`.
fn event_length(bytes: &[u8], from: usize) -> Option<usize> {
    let mut from = from;
    loop {
        let at = from + memchr2(b'\n', b'\r', bytes.get(from..)?)?;
        from = line_end(bytes, at);
        match bytes[from..] {
            [b'\n', ..] => return Some(from + 1),
            [b'\r', b'\n', ..] => return Some(from + 2),
            // Where lines end with CR alone nothing need follow.
            [b'\r', _, ..] => return Some(from + 1),
            [b'\r'] if bytes[from - 1] == b'\r' => return Some(from + 1),
            _ => {}
        }
    }
}

/// Where the line that ends at `at` is over.
fn line_end(bytes: &[u8], at: usize) -> usize {
    if bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n') { at + 2 } else { at + 1 }
}

/// The lines of an event; the last may have no end.
fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = event.get(from..).filter(|rest| !rest.is_empty())?;
        let Some(length) = memchr2(b'\n', b'\r', rest) else {
            from = event.len();
            return Some(rest);
        };
        from = line_end(event, from + length);
        Some(&rest[..length])
    })
}

/// A line of an event: the name of a field and what it says.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    if let Some(rest) = line.strip_prefix(b"data:") {
        return (b"data", rest.strip_prefix(b" ").unwrap_or(rest));
    }
    match memchr(b':', line) {
        Some(at) => {
            let rest = &line[at + 1..];
            (&line[..at], rest.strip_prefix(b" ").unwrap_or(rest))
        }
        None => (line, b""),
    }
}

/// The data of an event, line by line.
fn data_of(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines(event).map(field).filter(|(name, _)| *name == b"data").map(|(_, data)| data)
}

/// Reads an event.
fn fate(event: &[u8], mut read: impl FnMut(Payload<'_>) -> Fate) -> Fate {
    if event.len() > MOST_LINES && lines(event).nth(MOST_LINES).is_some() {
        return Fate::Forward;
    }
    let (mut first, mut count, mut is_error) = (None::<&[u8]>, 0_usize, false);
    let mut fate = None;
    let mut heard = |payload: Payload<'_>, fate: &mut Option<Fate>| {
        let said = read(payload);
        if fate.is_none_or(|fate| fate == Fate::Drop) {
            *fate = Some(said);
        }
    };
    for line in lines(event) {
        match field(line) {
            (b"data", data) => {
                first = first.or(Some(data));
                count += 1;
            }
            (b"error", error) => heard(Payload::Error(error), &mut fate),
            // OpenAI's client for Python decodes each line, and ends at one that is no UTF-8.
            _ if std::str::from_utf8(line).is_err() => {
                heard(Payload::Data(line), &mut fate);
            }
            (b"event", name) => is_error = is_an_error(name),
            // A comment, or fields of the standard.
            (b"" | b"id" | b"retry", _) => {}
            (name, _) if name.first() == Some(&b'{') || is_a_page(line) => {
                heard(Payload::Stray(line), &mut fate);
            }
            _ => {}
        }
    }
    let kind = if is_error { Payload::Error } else { Payload::Data };
    match first {
        Some(first) if count == 1 => heard(kind(first), &mut fate),
        Some(_) => {
            let all: Vec<&[u8]> = data_of(event).collect();
            heard(kind(&all.join(&b'\n')), &mut fate);
        }
        None => {}
    }
    fate.unwrap_or(Fate::Forward)
}

/// Names of events that tell of an error, in whatever case.
fn is_an_error(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name.trim_ascii());
    let name = match name {
        Cow::Borrowed("") => return false,
        name => name.to_ascii_lowercase(),
    };
    // Of others only the whole name says so: `response.mcp_call.failed` is of one call.
    let is_end = matches!(&*name, "failed" | "failure" | "abort" | "aborted");
    is_end || name.ends_with("error") || name.ends_with("exception")
}

/// Whether a line begins a page of HTML, which a proxy puts where the answer breaks off.
pub(super) fn is_a_page(line: &[u8]) -> bool {
    let begins = |tag: &[u8]| line.get(..tag.len()).is_some_and(|b| b.eq_ignore_ascii_case(tag));
    begins(b"<html") || begins(b"<!doctype html")
}

/// Whether a body begins as a stream of events does; none while that does not show yet.
pub fn is_a_stream(beginning: &[u8]) -> Option<bool> {
    const FIELDS: [&[u8]; 6] = [b"data", b"event", b"id", b"retry", b"error", b""];
    let text = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning).trim_ascii_start();
    if text.is_empty() {
        return None;
    }
    let name = &text[..memchr(b':', text).unwrap_or(text.len())];
    if name.len() < text.len() {
        return Some(FIELDS.contains(&name));
    }
    // The name may be cut off.
    let may_be = FIELDS.iter().any(|field| field.starts_with(text));
    if may_be { None } else { Some(false) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &[u8] =
        b": comment\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\n\ndata: \xc3\xa4\n\ndata: [DONE]\n\n";

    fn heard(payload: Payload<'_>, found: &mut Vec<Vec<u8>>) -> Fate {
        let (mark, data): (&[u8], _) = match payload {
            Payload::Data(data) => (b"", data),
            Payload::Error(data) => (b"error: ", data),
            Payload::Stray(data) => (b"stray: ", data),
        };
        found.push([mark, data].concat());
        if data == b"two" { Fate::Drop } else { Fate::Forward }
    }

    /// The payloads, and what goes on when the payload "two" is left out.
    fn read(chunks: &[&'static [u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut events, mut found, mut out) = (Events::default(), vec![], vec![]);
        for chunk in chunks {
            events.feed(Bytes::from_static(chunk), |payload| heard(payload, &mut found));
            while let Some(bytes) = events.take() {
                out.extend(bytes);
            }
        }
        events.end(|payload| heard(payload, &mut found));
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

        #[test]
        fn nor_does_it_where_lines_end_in_every_way(
            parts in prop::collection::vec(0..ENDS.len(), 1..12),
            size in 1_usize..6,
        ) {
            let stream: Vec<u8> = parts.iter().flat_map(|part| ENDS[*part]).copied().collect();
            let stream: &'static [u8] = stream.leak();
            let chunks: Vec<_> = stream.chunks(size).collect();
            prop_assert_eq!(read(&chunks), read(&[stream]));
        }
    }

    /// What decides where an event is over.
    const ENDS: [&[u8]; 8] =
        [b"\r", b"\n", b"\r", b"\n", b"data: two", b"data: 1", MARK, b"\xef\xbb"];

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
    fn a_last_event_that_nothing_ends_goes_on_to_its_last_byte_and_with_its_end() {
        for (end, whole) in [("", "\n\n"), ("\n", "\n\n"), ("\r\n", "\r\n\n"), ("\r", "\r\n\n")] {
            for stream in ["data: 1\n\ndata: 3", "data: 1\n\n: late"] {
                let (came, goes) = (format!("{stream}{end}"), format!("{stream}{whole}"));
                assert_eq!(read(&[came.leak().as_bytes()]).1, goes.as_bytes());
            }
        }
        let mut events = Events::default();
        events.feed(Bytes::from_static(b"data: {\"a"), |_| Fate::Forward);
        events.end(|_| Fate::AsItCame);
        assert_eq!(events.take(), Some(Bytes::from_static(b"data: {\"a")));
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
    fn what_was_not_taken_yet_can_be_changed() {
        let mut events = Events::default();
        events.feed(Bytes::from_static(b"data: 1\n\ndata: 2\n\ndata"), |_| Fate::Forward);
        events.change(|bytes| Some(bytes.to_ascii_uppercase()));
        events.change(|_| None);
        assert_eq!(events.take(), Some(Bytes::from_static(b"DATA: 1\n\nDATA: 2\n\n")));
    }

    #[test]
    fn an_event_with_an_image_is_read() {
        let mut events = Events::default();
        let image = [b"data: ".as_slice(), &vec![b'x'; 3 << 20], b"\n\n"].concat();
        let mut read = 0;
        for piece in image.chunks(16 << 10) {
            events.feed(Bytes::copy_from_slice(piece), |payload| {
                let Payload::Data(data) = payload else { panic!("{payload:?}") };
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
        events.feed(Bytes::from_static(b"\n\ndata: 1\n\n"), |p| heard(p, &mut found));
        assert_eq!(found, [b"1".to_vec()]);
    }

    fn payloads(stream: &'static [u8]) -> Vec<String> {
        let whole = read(&[stream]);
        // Each byte by itself says the same, and goes on.
        let bytes: Vec<&'static [u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), whole, "{}", String::from_utf8_lossy(stream));
        whole.0.iter().map(|data| String::from_utf8_lossy(data).into_owned()).collect()
    }

    #[test]
    fn events_are_those_of_the_standard() {
        for (stream, expected) in [
            (&b"data: 1\r\rdata: 2\r\r"[..], vec!["1", "2"]),
            (b"data: 1\r\n\r\ndata: 2\n\ndata: 3\r\r", vec!["1", "2", "3"]),
            (b"\xef\xbb\xbfdata: 1\n\n", vec!["1"]),
            (b"data: {\ndata:  \"a\": 1\ndata: }\n\n", vec!["{\n \"a\": 1\n}"]),
            (b": comment\nid: 7\nretry: 1\n\n", vec![]),
            (b"data\n\n", vec![""]),
            // Between these lines no event ends: their data is one text, and no JSON.
            (b"data: {\"a\":1}\ndata: [DONE]\n\n", vec!["{\"a\":1}\n[DONE]"]),
            (b"data: {\"a\":1}\n \ndata: {\"b\":2}\n\n", vec!["{\"a\":1}\n{\"b\":2}"]),
            // Later than at the beginning a mark of the byte order is a part of the name.
            (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", vec!["1"]),
            // Whatever the line is.
            (b": \xff\ndata: 1\n\n", vec![": \u{fffd}", "1"]),
            (b"event: \xe9\n\n", vec!["event: \u{fffd}"]),
            (b"data:1\ndata:\ndata:2\n\n", vec!["1\n\n2"]),
            // A last event that nothing ends.
            (b"data: 1\n\ndata: [DONE]\n", vec!["1", "[DONE]"]),
            (b"data: 1\n\ndata: [DONE]", vec!["1", "[DONE]"]),
            (b"data: 1\r\rdata: [DONE]\r", vec!["1", "[DONE]"]),
        ] {
            assert_eq!(payloads(stream), expected, "{}", String::from_utf8_lossy(stream));
        }
    }

    #[test]
    fn what_servers_do_besides_is_read() {
        for (stream, expected) in [
            (&b"error: {\"code\":500}\n\n"[..], vec!["error: {\"code\":500}"]),
            (b"event: error\ndata: died\n\n", vec!["error: died"]),
            (b"data: died\nevent: Server_Error\n\n", vec!["error: died"]),
            (b"event: internalServerException\ndata: {}\n\n", vec!["error: {}"]),
            (b"event: message\ndata: {}\n\n", vec!["{}"]),
            (b"event: failed\ndata: {}\n\n", vec!["error: {}"]),
            (b"event: abort\ndata: {}\n\n", vec!["error: {}"]),
            (b"event: response.mcp_call.failed\ndata: {}\n\n", vec!["{}"]),
            (b"<HTML><h1>502: Bad Gateway\n\n", vec!["stray: <HTML><h1>502: Bad Gateway"]),
            (b"<3\ndata: 1\n\n", vec!["1"]),
            (b"{\"error\": {\"code\": 500}}\n\n", vec!["stray: {\"error\": {\"code\": 500}}"]),
        ] {
            assert_eq!(payloads(stream), expected, "{}", String::from_utf8_lossy(stream));
        }
    }

    #[test]
    fn an_event_is_left_out_only_if_all_of_it_is() {
        assert_eq!(read(&[b"data: two\n\ndata: 3\n\n"]).1, b"data: 3\n\n");
        assert_eq!(read(&[b"data: two\n"]).1, b"");
        // Each line would be a payload of its own.
        let several = b"data: two\nerror: 1\n\n";
        assert_eq!(read(&[several]).1, several);
    }

    #[test]
    fn a_stream_is_known_by_its_beginning() {
        for (beginning, is_stream) in [
            (&b""[..], None),
            (b" \n", None),
            (b"dat", None),
            (b"data:", Some(true)),
            (b"\n\n: ping", Some(true)),
            (b"\xef\xbb\xbfevent: x", Some(true)),
            (b"error: {", Some(true)),
            (b"{\"a\": 1}", Some(false)),
            (b"[1", Some(false)),
            (b"<html>", Some(false)),
            (b"null", Some(false)),
            (b"hello: you", Some(false)),
        ] {
            assert_eq!(is_a_stream(beginning), is_stream, "{}", String::from_utf8_lossy(beginning));
        }
    }

    #[test]
    fn an_event_of_many_lines_is_not_searched_again_with_each() {
        let mut events = Events::default();
        let line = Bytes::from(format!("data: {}\n", "x".repeat(1 << 8)));
        let mut chunks = 0;
        while chunks < MOST_LINES - 1 {
            events.feed(line.clone(), |_| Fate::Forward);
            chunks += 1;
            assert!(events.searched + LONGEST_END >= events.begun.len());
        }
        let mut read = 0;
        events.feed(Bytes::from_static(b"\n"), |payload| {
            let Payload::Data(data) = payload else { panic!("{payload:?}") };
            read += data.len();
            Fate::Forward
        });
        assert_eq!(read, chunks * line.len() - 6 * chunks - 1);
    }

    #[test]
    fn an_event_of_more_lines_than_any_server_sends_goes_on_unread() {
        for line in ["data: {}\n", "data\n", "error: {}\n", "{}\n", ": x\r\n", "data:\r"] {
            let event = [line.repeat(MOST_LINES + 1).as_bytes(), b"\n"].concat();
            let (mut events, mut read, mut passed) = (Events::default(), 0, 0);
            for piece in event.chunks(4 << 10) {
                events.feed(Bytes::copy_from_slice(piece), |_| {
                    read += 1;
                    Fate::Drop
                });
            }
            events.end(|_| Fate::Drop);
            while let Some(bytes) = events.take() {
                passed += bytes.len();
            }
            // A CR with the LF behind it ends one line: the end of the event is missing.
            let missing = usize::from(line.ends_with('\r'));
            assert_eq!((read, passed), (0, event.len() + missing), "{line:?}");
        }
    }
}
