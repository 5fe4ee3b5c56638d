//! Texts whose characters have two or four bytes (UTF-16, UTF-32), of either order. To the
//! search they read as if the bytes that are zero were not there; no text in UTF-8 that an
//! application can read has any.

use std::ops::Range;

use memchr::memchr;

/// So many zeros may be between two characters; more of them are no text.
const MOST_ZEROS: usize = 3;

/// The place of one byte in so many is kept: those of all would take eight times the text.
const EACH: usize = 64;

/// A text without its zeros.
#[derive(Debug)]
pub(super) struct Narrow<'a> {
    pub(super) text: Vec<u8>,
    source: &'a [u8],
    /// Where the bytes 0, `EACH`, two times `EACH` and so on are in the source.
    places: Vec<usize>,
}

/// The text without zeros; none where it has none.
pub(super) fn narrow(source: &[u8]) -> Option<Narrow<'_>> {
    memchr(0, source)?;
    let mut narrow = Narrow { text: vec![], source, places: vec![] };
    for (place, byte) in kept(source, 0) {
        if narrow.text.len().is_multiple_of(EACH) {
            narrow.places.push(place);
        }
        narrow.text.push(byte);
    }
    Some(narrow)
}

/// The bytes of a text that are read, with their places; so many zeros are before it.
fn kept(text: &[u8], mut zeros: usize) -> impl Iterator<Item = (usize, u8)> {
    text.iter().copied().enumerate().filter(move |(_, byte)| {
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        !(1..=MOST_ZEROS).contains(&zeros)
    })
}

impl Narrow<'_> {
    /// Where this byte was; none behind the last.
    pub(super) fn place(&self, at: usize) -> Option<usize> {
        let near = *self.places.get(at / EACH)?;
        // Of a zero that is read it is known that others are before it.
        let (place, _) = kept(&self.source[near..], MOST_ZEROS).nth(at % EACH)?;
        Some(near + place)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_source_whatever_zeros_there_are() {
        let mut source = vec![];
        for run in 0..300_usize {
            source.extend(vec![0; run % 11]);
            source.extend([b'a'; 5].iter().take(run % 6));
        }
        let narrow = narrow(&source).unwrap();
        let expected: Vec<usize> = kept(&source, 0).map(|(place, _)| place).collect();
        assert!(expected.iter().any(|place| source[*place] == 0) && expected.len() > 10 * EACH);
        let places = (0..expected.len()).map(|at| narrow.place(at).unwrap());
        assert_eq!(places.collect::<Vec<_>>(), expected);
        assert_eq!(narrow.place(expected.len()), None);
        assert!(narrow.places.len() <= expected.len() / EACH + 1);
    }
}
