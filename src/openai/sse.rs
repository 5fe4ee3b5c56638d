//! Server-sent events, read as the bytes pass by. The bytes themselves are not touched.

/// A line longer than this is not kept: what it says is not read, but it is still forwarded.
const LONGEST_LINE: usize = 1 << 20;

/// Finds the `data:` lines in a stream of chunks that may be cut anywhere.
#[derive(Debug, Default)]
pub struct Scanner {
    line: Vec<u8>,
    too_long: bool,
}

impl Scanner {
    /// Reads the next chunk and calls `data` with each complete payload.
    pub fn feed(&mut self, chunk: &[u8], mut data: impl FnMut(&[u8])) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            self.too_long |= self.line.len() + text.len() > LONGEST_LINE;
            if !self.too_long {
                self.line.extend_from_slice(text);
            }
            if ended {
                if !self.too_long {
                    payload(&self.line).into_iter().for_each(&mut data);
                }
                self.line.clear();
                self.too_long = false;
            }
        }
    }
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

    fn read(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut scanner, mut found) = (Scanner::default(), vec![]);
        for chunk in chunks {
            scanner.feed(chunk, |data| found.push(data.to_vec()));
        }
        found
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_does_not_matter(mut cuts in prop::collection::vec(0..STREAM.len(), 0..12)) {
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
        assert_eq!(read(&[STREAM]), expected);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut scanner = Scanner::default();
        for _ in 0..40 {
            scanner.feed(&[b'x'; 65536], |_| {});
        }
        assert!(scanner.line.capacity() <= 2 * LONGEST_LINE);
        let mut found = 0;
        scanner.feed(b"\ndata: 1\n", |_| found += 1);
        assert_eq!(found, 1);
    }
}
