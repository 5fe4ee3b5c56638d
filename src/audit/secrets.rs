//! Secrets that were sent, searched for in what comes back. A server that quotes its
//! request in an error, or whose model was told to repeat it, must not hand the key of this
//! gateway to an application, a log or a trace.
//!
//! Searched for are the text itself, its base64 (at each of the three places of a byte, so
//! also within `Basic …`; once more encoded, too) and its hexadecimal digits; each of these
//! as it is, or with any of its characters escaped (`spelling`). A few bytes of each, its *anchor*, are looked
//! for with Aho-Corasick; only around these the text is compared. So the search takes time
//! linear in the text: a character is compared at most once for each anchor that begins in
//! the length of one secret before it.
//!
//! Most of a secret is one, too: a server may cut its message where it likes.
//!
//! Not found is a secret that was encrypted, compressed or spelled in words: whoever wants
//! to tell it can, and has it already.

mod spelling;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::{Bytes, BytesMut};
use memchr::memrchr2;

use self::spelling::{Begins, backslashes_before, begins, ends};

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted:secret]";
/// A shorter secret is not searched for: by chance it would be met in ordinary answers.
pub const SHORTEST: usize = 8;
/// A shorter one without a digit is a word (`not-needed`, `lm-studio`), and is not
/// searched for either.
pub const SHORTEST_WORD: usize = 16;
/// So much of a secret is looked for at first.
const ANCHOR: usize = 12;
/// The same of one whose characters are all escaped.
const ESCAPED_ANCHOR: usize = 4;
/// With which bytes the spelling of any character may begin.
const ESCAPES: [u8; 4] = *b"\\%&+";
/// The longest beginning of a secret that is kept back until it shows whether it is one.
const LONGEST_KEPT: usize = 16 << 10;

/// Secrets to search for.
#[derive(Default)]
pub struct Secrets {
    /// The texts: each secret, and what it reads like when it is encoded.
    texts: Vec<Box<[u8]>>,
    anchors: Option<AhoCorasick>,
    /// For each anchor, the texts that it may be of, and where in these it is.
    places: Vec<Vec<(usize, usize)>>,
    /// The texts that may begin with each byte.
    first: Vec<Vec<usize>>,
    /// The most bytes in which one of them may be spelled.
    longest: usize,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secrets]")
    }
}

/// Whether a secret is searched for: a short word would be met by chance.
pub fn is_searched(secret: &str) -> bool {
    let is_word = !secret.bytes().any(|byte| byte.is_ascii_digit());
    secret.len() >= if is_word { SHORTEST_WORD } else { SHORTEST }
}

impl Secrets {
    /// Those of these that are long enough.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut texts: Vec<Box<[u8]>> = vec![];
        let mut anchors: Vec<(Vec<u8>, usize, usize)> = vec![];
        for secret in secrets.into_iter().map(str::trim).filter(|secret| is_searched(secret)) {
            for text in std::iter::once(secret.as_bytes().to_vec()).chain(encoded(secret)) {
                if text.len() < SHORTEST || texts.iter().any(|known| **known == *text) {
                    continue;
                }
                let found = anchors_of(&text, text == secret.as_bytes()).into_iter();
                anchors.extend(found.map(|(anchor, place)| (anchor, texts.len(), place)));
                texts.push(text.into());
            }
        }
        // Of two anchors of which one begins with the other, only the shorter would be met.
        anchors.sort_by_key(|(anchor, ..)| anchor.len());
        let (mut patterns, mut places) = (Vec::<Vec<u8>>::new(), Vec::<Vec<_>>::new());
        for (anchor, text, place) in anchors {
            match patterns.iter().position(|known| anchor.starts_with(known)) {
                Some(known) => places[known].push((text, place)),
                None => {
                    patterns.push(anchor);
                    places.push(vec![(text, place)]);
                }
            }
        }
        let mut first = vec![vec![]; 256];
        for (index, text) in texts.iter().enumerate() {
            let others = ESCAPES.iter().filter(|byte| **byte != text[0]);
            for byte in std::iter::once(&text[0]).chain(others) {
                first[usize::from(*byte)].push(index);
            }
        }
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let mut builder = AhoCorasick::builder();
        let built = builder.match_kind(MatchKind::LeftmostFirst).build(&patterns).ok();
        let longest = (longest * 6 + 64).min(LONGEST_KEPT);
        Self { anchors: built.filter(|_| !texts.is_empty()), texts, places, first, longest }
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The text without them.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.without(text.as_bytes()) {
            Some(without) => Cow::Owned(String::from_utf8_lossy(&without).into_owned()),
            None => Cow::Borrowed(text),
        }
    }

    /// The bytes without them; none when there are none in it.
    pub fn without(&self, text: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut copied) = (vec![], 0);
        while let Some(found) = self.find(text, copied, true) {
            out.extend_from_slice(&text[copied..found.start]);
            out.extend_from_slice(REDACTED.as_bytes());
            copied = found.end;
        }
        if copied == 0 {
            return None;
        }
        out.extend_from_slice(&text[copied..]);
        Some(out)
    }

    /// Where the first of them is, or most of it, from `floor` on. A text that is not whole
    /// may go on as a secret that it ends within.
    fn find(&self, text: &[u8], floor: usize, whole: bool) -> Option<Range<usize>> {
        let anchors = self.anchors.as_ref()?;
        let mut from = floor;
        loop {
            let found = anchors.find(text.get(from..)?)?;
            let at = from + found.start();
            let places = self.places.get(found.pattern().as_usize())?;
            let around = |(index, place): &(usize, usize)| {
                around((text, whole), (floor, at), &self.texts[*index], *place)
            };
            if let Some(whole) = places.iter().filter_map(around).max_by_key(Range::len) {
                return Some(whole);
            }
            from = at + 1;
        }
    }

    /// How much at the end of `text`, from `floor` on, may be the beginning of one of them.
    /// None of them goes on over the end of a line.
    fn begun(&self, text: &[u8], floor: usize) -> usize {
        let line = memrchr2(b'\n', b'\r', text).map_or(0, |at| at + 1);
        let from = floor.max(line).max(text.len().saturating_sub(self.longest));
        let may_begin = |at: &usize| {
            let texts = self.first.get(usize::from(text[*at])).into_iter().flatten();
            texts.copied().any(|index| cut_after(&text[*at..], &self.texts[index]).is_some())
        };
        (from..text.len()).find(may_begin).map_or(0, |at| text.len() - at)
    }
}

/// Where in `text`, which may be the whole of it, the secret is whose anchor, which is at
/// `place` in it, is at `at`.
fn around(
    (text, whole): (&[u8], bool),
    (floor, at): (usize, usize),
    secret: &[u8],
    place: usize,
) -> Option<Range<usize>> {
    let (before, after) = secret.split_at_checked(place)?;
    let (mut start, mut end) = (at, at);
    for wanted in before.iter().rev() {
        start -= ends(&text[floor..start], *wanted)?;
    }
    for (known, wanted) in (place..).zip(after) {
        match begins(&text[end..], *wanted) {
            Begins::With(length) => end += length,
            Begins::Cut if !whole => return None,
            Begins::Cut | Begins::Otherwise if is_most(known, secret) => break,
            Begins::Cut | Begins::Otherwise => return None,
        }
    }
    // Half an escape would be left.
    if text.get(start) == Some(&b'\\') {
        start -= backslashes_before(&text[floor..start]);
    }
    Some(start..end)
}

/// Whether the first `known` characters of a secret are most of it.
fn is_most(known: usize, secret: &[u8]) -> bool {
    known * 2 > secret.len() && known >= SHORTEST_WORD
}

/// How many characters of `secret` are whole in `text`, which begins with it and ends
/// within it; none when it goes on otherwise.
fn cut_after(text: &[u8], secret: &[u8]) -> Option<usize> {
    let mut rest = text;
    for (whole, wanted) in secret.iter().enumerate() {
        match begins(rest, *wanted) {
            Begins::With(length) => rest = &rest[length..],
            Begins::Cut => return Some(whole),
            Begins::Otherwise => return None,
        }
    }
    None
}

/// What a secret reads like in base64, once or twice, wherever in the encoded text it stands,
/// and in hexadecimal digits. What depends on its neighbours is left out.
fn encoded(secret: &str) -> Vec<Vec<u8>> {
    let mut found = base64(secret.as_bytes());
    found.extend(found.clone().iter().flat_map(|once| base64(once)));
    for between in ["", ":", " ", "-"] {
        let digits: Vec<_> = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let lower = digits.join(between);
        found.push(lower.to_ascii_uppercase().into_bytes());
        found.push(lower.into_bytes());
    }
    found
}

fn base64(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = vec![];
    for (before, unsure) in [(0, 0), (1, 2), (2, 3)] {
        let shifted = [&[0; 2][..before], bytes].concat();
        let sure = shifted.len() * 8 / 6;
        for text in
            [BASE64_STANDARD_NO_PAD.encode(&shifted), BASE64_URL_SAFE_NO_PAD.encode(&shifted)]
        {
            found.extend(text.get(unsure..sure).map(|text| text.as_bytes().to_vec()));
        }
    }
    found.dedup();
    found
}

/// The anchors of a text, and where in it they are: the first of its letters and digits
/// that lie side by side, which few escape; and where `escaped`, the same all escaped.
fn anchors_of(text: &[u8], escaped: bool) -> Vec<(Vec<u8>, usize)> {
    let mut runs = vec![];
    let mut at = 0;
    for run in text.split(|byte| !byte.is_ascii_alphanumeric()) {
        runs.push(at..at + run.len());
        at += run.len() + 1;
    }
    let long = runs.iter().find(|run| run.len() >= SHORTEST).cloned();
    let run = long.or_else(|| runs.into_iter().max_by_key(Range::len)).unwrap_or(0..0);
    if run.len() < ESCAPED_ANCHOR {
        // No letters to go by: as it is, or not at all.
        return vec![(text.to_vec(), 0)];
    }
    // Most of a secret is found by it, too.
    let most = (text.len() / 2 + 1).max(SHORTEST_WORD).max(run.start + SHORTEST);
    let plain = text[run.start..run.end.min(run.start + ANCHOR).min(most)].to_vec();
    let few = plain[..ESCAPED_ANCHOR].to_vec();
    let mut anchors = vec![plain];
    let mut all = |spelled: &dyn Fn(u8) -> String| {
        anchors.push(few.iter().map(|byte| spelled(*byte)).collect::<String>().into_bytes());
    };
    if escaped {
        // JSON within JSON doubles them each time.
        for backslashes in ["\\", "\\\\", "\\\\\\\\", "\\\\\\\\\\\\\\\\"] {
            all(&|b| format!("{backslashes}u{b:04x}"));
            all(&|b| format!("{backslashes}u{b:04X}"));
        }
        for again in ["", "25", "2525"] {
            all(&|b| format!("%{again}{b:02x}"));
            all(&|b| format!("%{again}{b:02X}"));
        }
        for zeros in 0..=5 {
            let zeros = "0".repeat(zeros);
            all(&|b| format!("&#{zeros}{b};"));
            all(&|b| format!("&#x{zeros}{b:x};"));
            all(&|b| format!("&#x{zeros}{b:X};"));
        }
        for width in 4..=8 {
            all(&|b| format!("&#{b:0width$};"));
        }
    }
    anchors.into_iter().map(|anchor| (anchor, run.start)).collect()
}

/// A text that comes in pieces, which may be cut within a secret. Of each piece, only the
/// end that may be the beginning of one is kept back until the next.
#[derive(Debug)]
pub struct Passing {
    secrets: Arc<Secrets>,
    kept: BytesMut,
}

/// What a piece has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing of a secret.
    Nothing,
    /// Perhaps the beginning of one, of so many bytes.
    Begun(usize),
    /// A whole secret.
    Secret,
}

impl Passing {
    /// Nothing has come yet.
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Self { secrets, kept: BytesMut::new() }
    }

    /// What goes on of the next piece and of what was kept.
    pub fn next(&mut self, piece: Bytes) -> Bytes {
        if self.secrets.is_empty() {
            return piece;
        }
        let mut text = if self.kept.is_empty() {
            piece
        } else {
            self.kept.extend_from_slice(&piece);
            self.kept.split().freeze()
        };
        let mut floor = 0;
        if let Some(found) = self.secrets.find(&text, 0, false) {
            let mut out = BytesMut::with_capacity(text.len());
            let mut next = Some(found);
            while let Some(found) = next {
                out.extend_from_slice(&text[floor..found.start]);
                out.extend_from_slice(REDACTED.as_bytes());
                floor = found.end;
                next = self.secrets.find(&text, floor, false);
            }
            let redacted = out.len();
            out.extend_from_slice(&text[floor..]);
            (text, floor) = (out.freeze(), redacted);
        }
        let begun = self.secrets.begun(&text, floor);
        self.kept.extend_from_slice(&text.split_off(text.len() - begun));
        text
    }

    /// Whether something is kept back.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The text has ended: what was kept of it, without most of a secret.
    pub fn end(&mut self) -> Bytes {
        let kept = self.kept.split().freeze();
        self.secrets.without(&kept).map_or(kept, Bytes::from)
    }

    /// How much is kept back.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Whether what is kept is more than half of a secret.
    pub fn shows_most(&self) -> bool {
        let of =
            |secret: &[u8]| cut_after(&self.kept, secret).is_some_and(|n| n * 2 > secret.len());
        self.secrets.texts.iter().any(|secret| of(secret))
    }

    /// Hears the next piece of a text that goes on elsewhere.
    pub fn hear(&mut self, piece: &str) -> Heard {
        let secrets = &self.secrets;
        if piece.is_empty() || secrets.is_empty() {
            return if self.kept.is_empty() {
                Heard::Nothing
            } else {
                Heard::Begun(self.kept.len())
            };
        }
        // Most pieces have nothing to do with one, and are not copied.
        let begun = if self.kept.is_empty() {
            let piece = piece.as_bytes();
            if secrets.find(piece, 0, false).is_some() {
                return Heard::Secret;
            }
            let begun = secrets.begun(piece, 0);
            self.kept.extend_from_slice(&piece[piece.len() - begun..]);
            begun
        } else {
            self.kept.extend_from_slice(piece.as_bytes());
            if secrets.find(&self.kept, 0, false).is_some() {
                return Heard::Secret;
            }
            let begun = secrets.begun(&self.kept, 0);
            let _ = self.kept.split_to(self.kept.len() - begun);
            begun
        };
        if begun == 0 { Heard::Nothing } else { Heard::Begun(begun) }
    }
}
