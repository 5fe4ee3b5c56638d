//! Texts whose characters have two or four bytes (UTF-16, UTF-32), of either order. To the
//! search they read as if the bytes that are zero were not there; no text in UTF-8 that an
//! application can read has any.

use std::ops::Range;

use memchr::memchr;

/// So many zeros may be between two characters; more of them are no text.
const MOST_ZEROS: usize = 3;

/// A text without its zeros.
#[derive(Debug)]
pub(super) struct Narrow {
    pub(super) text: Vec<u8>,
    /// Where each byte is in what it was made of.
    places: Vec<usize>,
}

/// The text without zeros; none where it has none.
pub(super) fn narrow(text: &[u8]) -> Option<Narrow> {
    memchr(0, text)?;
    let mut narrow = Narrow { text: vec![], places: vec![] };
    let mut zeros = 0;
    for (place, byte) in text.iter().enumerate() {
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        if !(1..=MOST_ZEROS).contains(&zeros) {
            narrow.text.push(*byte);
            narrow.places.push(place);
        }
    }
    Some(narrow)
}

impl Narrow {
    /// Where this byte was; the end of all behind the last.
    pub(super) fn place(&self, at: usize) -> Option<usize> {
        self.places.get(at).copied()
    }

    /// Where these bytes were, and how far each is from the next.
    pub(super) fn wide(&self, range: &Range<usize>) -> Option<(Range<usize>, usize)> {
        let first = self.place(range.start)?;
        let second = self.place(range.start + 1).unwrap_or(first + 1);
        Some((first..self.place(range.end.checked_sub(1)?)? + 1, second - first))
    }
}

/// Adds a text whose bytes are so far from each other.
pub(super) fn push(out: &mut Vec<u8>, text: &str, width: usize) {
    for (at, byte) in text.bytes().enumerate() {
        if at > 0 {
            out.resize(out.len() + width - 1, 0);
        }
        out.push(byte);
    }
}
