//! Secrets that were sent, searched for in what comes back. A server that quotes its
//! request in an error, or whose model was told to repeat it, must not hand the key of this
//! gateway to an application, a log or a trace.
//!
//! Searched for are the text itself, its base64 (at each of the three places of a byte, so
//! also within `Basic …`; once more encoded, too, or of an escaped text; lines may break),
//! and the numbers of its bytes (`forms`). In the text and its base64, any of the characters
//! may be escaped; in what was encoded twice, those that are no letters or digits
//! (`spelling`). Where characters have several bytes, these are read as one (`wide`).
//!
//! A few bytes of each text, its *anchors*, are looked for with Aho-Corasick; only around
//! these the text is compared. An anchor is as it is. A text that has an escape before the
//! end of its anchor is found by the first of its escapes: what is before that one is as it
//! is, so that its character and the one before show which of the texts it may be in.
//!
//! So the search takes time linear in the text. Behind an anchor, each text that has it is
//! compared once; at an escape, each text at most `search::MOST_TRIED` times. One comparison
//! follows at most 16 ways to read each part (`spelling::Few`), and these have at most
//! `spelling::LONGEST` bytes each. Anchors are short and looked for in sets so small that the
//! library finds them with vector instructions: a few passes of these take less time than one
//! of its automatons.
//!
//! Most of a secret is one, too: a server may cut its message where it likes.
//!
//! Not found is a secret that was encrypted, compressed or spelled in words: whoever wants
//! to tell it can, and has it already.

mod forms;
mod known;
mod search;
mod spelling;
#[cfg(test)]
mod tests;
mod wide;

use std::{borrow::Cow, cmp::Reverse, fmt, iter, ops::Range, sync::Arc};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use bytes::{Bytes, BytesMut};
use memchr::memrchr_iter;

pub use self::known::Known;
use self::{
    forms::Text,
    search::{Search, cut_after},
    spelling::escapes,
};

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted:secret]";
/// A shorter secret is not searched for: by chance it would be met in ordinary answers.
pub const SHORTEST: usize = 8;
/// A shorter one without a digit is a word (`not-needed`, `lm-studio`), and is not
/// searched for either.
pub const SHORTEST_WORD: usize = 16;
/// The longest beginning of a secret that is kept back until it shows whether it is one.
const LONGEST_KEPT: usize = 16 << 10;
/// So many anchors are looked for in one pass: of more, the library uses no vectors.
const MOST_AT_ONCE: usize = 60;

/// Secrets to search for.
#[derive(Default)]
pub struct Secrets {
    /// Each secret, and what it reads like when it is encoded.
    texts: Vec<Text>,
    /// What finds the anchors, some in each.
    anchors: Vec<Anchors>,
    /// Where each character is in the texts that are found by their escapes.
    escaped: Vec<Vec<Escaped>>,
    /// Whether one of these may be escaped where a byte and the next are.
    escapes: Pairs,
    /// The texts that may begin with each byte, and those that may with each escaped character.
    first: Vec<Vec<usize>>,
    first_escaped: Vec<Vec<usize>>,
    /// Whether one may begin with a byte and the next: most bytes of an answer show at once
    /// that none does.
    pairs: Pairs,
    /// The most bytes in which one of them may be spelled.
    longest: usize,
}

/// Which bytes may follow which, in a bit for each pair.
#[derive(Default)]
struct Pairs(Vec<[u64; 4]>);

impl Pairs {
    /// Of the bytes that may follow, none are given where any may.
    fn add(&mut self, byte: u8, following: Option<&[u8]>) {
        self.0.resize(256, [0; 4]);
        let bits = &mut self.0[usize::from(byte)];
        match following {
            Some(following) => {
                following.iter().for_each(|next| bits[usize::from(next >> 6)] |= 1 << (next & 63));
            }
            None => *bits = [u64::MAX; 4],
        }
    }

    fn has(&self, byte: u8, next: u8) -> bool {
        let bits = self.0.get(usize::from(byte));
        bits.is_some_and(|bits| bits[usize::from(next >> 6)] >> (next & 63) & 1 == 1)
    }
}

/// Some of the anchors, and what each may be of.
struct Anchors {
    find: AhoCorasick,
    places: Vec<Vec<Place>>,
}

/// Of which text an anchor may be, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    text: usize,
    index: usize,
}

/// Of which text an escaped character may be the first that is escaped, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Escaped {
    /// The character before it; none before the first.
    before: Option<u8>,
    text: usize,
    /// The longest beginning of a text comes first.
    index: Reverse<usize>,
}

/// Both search for the same.
impl PartialEq for Secrets {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
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
        let mut texts: Vec<Text> = vec![];
        let mut anchors: Vec<(Vec<u8>, Place)> = vec![];
        for secret in secrets.into_iter().map(str::trim).filter(|secret| is_searched(secret)) {
            for text in forms::texts(secret) {
                if text.bytes.len() < SHORTEST || texts.contains(&text) {
                    continue;
                }
                let place = |anchor: forms::Anchor| {
                    (anchor.bytes, Place { text: texts.len(), index: anchor.place })
                };
                anchors.extend(forms::anchors(&text).into_iter().map(place));
                texts.push(text);
            }
        }
        let (mut first, mut first_escaped) = (vec![vec![]; 256], vec![vec![]; 256]);
        let (mut pairs, mut escapes) = (Pairs::default(), Pairs::default());
        let mut escaped = vec![vec![]; 256];
        for (index, text) in texts.iter().enumerate() {
            if text.is_found_by_escapes() {
                let before = iter::once(None).chain(text.bytes.iter().copied().map(Some));
                for (at, (byte, before)) in text.bytes.iter().zip(before).enumerate() {
                    let place = Escaped { before, text: index, index: Reverse(at) };
                    escaped[usize::from(*byte)].push(place);
                }
            }
            for (byte, following) in text.first() {
                first[usize::from(byte)].push(index);
                pairs.add(byte, following.as_deref());
            }
            for (byte, following) in text.first_escaped() {
                pairs.add(byte, following.as_deref());
                first_escaped[usize::from(text.bytes[0])].push(index);
            }
        }
        for byte in (0..=u8::MAX).filter(|byte| !escaped[usize::from(*byte)].is_empty()) {
            for (sign, following) in forms::escapes(byte) {
                escapes.add(sign, following.as_deref());
            }
        }
        // A line break of quoted-printable.
        escapes.add(b'=', Some(b"\r\n\\%&"));
        first_escaped.iter_mut().for_each(Vec::dedup);
        escaped.iter_mut().for_each(|places| places.sort_unstable());
        let longest = texts.iter().map(Text::longest).max().unwrap_or(0).min(LONGEST_KEPT);
        let anchors = in_sets(anchors);
        Self { texts, anchors, escaped, escapes, first, first_escaped, pairs, longest }
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Whether a plus sign may stand for a character of one.
    fn has_blanks(&self) -> bool {
        self.escaped.get(usize::from(b' ')).is_some_and(|places| !places.is_empty())
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
        self.redacted(text, true).map(|(without, _)| without)
    }

    /// Whether one is in the text, which may go on.
    fn is_in(&self, text: &[u8]) -> bool {
        Search::new(self, text, false).next().is_some()
    }

    /// The bytes without them, and how far these have been searched; none when there are
    /// none in it. A text that is not whole may go on as a secret that it ends within.
    fn redacted(&self, text: &[u8], whole: bool) -> Option<(Vec<u8>, usize)> {
        let (mut out, mut copied) = (vec![], 0);
        for (found, width) in self.places(text, whole) {
            out.extend_from_slice(&text[copied..found.start]);
            wide::push(&mut out, REDACTED, width);
            copied = found.end;
        }
        if copied == 0 {
            return None;
        }
        let searched = out.len();
        out.extend_from_slice(&text[copied..]);
        Some((out, searched))
    }

    /// Where they are in the text, one after the other, and how many bytes each character has.
    fn places(&self, text: &[u8], whole: bool) -> Vec<(Range<usize>, usize)> {
        let narrow = wide::narrow(text);
        let read = narrow.as_ref().map_or(text, |narrow| &narrow.text);
        let mut search = Search::new(self, read, whole);
        let wide = |found: Range<usize>| match &narrow {
            Some(narrow) => narrow.wide(&found),
            None => Some((found, 1)),
        };
        iter::from_fn(|| search.next()).map_while(wide).collect()
    }

    /// How much at the end of `text`, from `floor` on, may be the beginning of one of them.
    /// None of them goes on behind an empty line.
    fn begun(&self, text: &[u8], floor: usize) -> usize {
        let floor = floor.max(text.len().saturating_sub(self.longest * 4));
        match wide::narrow(&text[floor..]) {
            None => self.begun_in(text, floor),
            Some(narrow) => match self.begun_in(&narrow.text, 0) {
                0 => 0,
                begun => {
                    let at = narrow.place(narrow.text.len() - begun);
                    at.map_or(0, |at| text.len() - floor - at)
                }
            },
        }
    }

    fn begun_in(&self, text: &[u8], floor: usize) -> usize {
        let floor = floor.max(text.len().saturating_sub(self.longest));
        let empty =
            |at: &usize| matches!(text[floor..*at + floor], [.., b'\n'] | [.., b'\n', b'\r']);
        let line = memrchr_iter(b'\n', &text[floor..]).find(empty);
        let from = line.map_or(floor, |at| floor + at + 1);
        let is_cut = |rest: &[u8], texts: Option<&Vec<usize>>| {
            let mut texts = texts.into_iter().flatten();
            texts.any(|index| cut_after(rest, &self.texts[*index]).is_some())
        };
        let may_begin = |at: &usize| {
            let (byte, rest) = (text[*at], &text[*at..]);
            if rest.get(1).is_some_and(|next| !self.pairs.has(byte, *next)) {
                return false;
            }
            if is_cut(rest, self.first.get(usize::from(byte))) {
                return true;
            }
            let mut begins = false;
            let of = |byte: u8| self.first_escaped.get(usize::from(byte));
            let ends = escapes(rest, &mut |byte, _| begins = begins || is_cut(rest, of(byte)));
            begins || ends
        };
        (from..text.len()).find(may_begin).map_or(0, |at| text.len() - at)
    }
}

/// Anchors in as few sets as can be looked for at once.
fn in_sets(mut anchors: Vec<(Vec<u8>, Place)>) -> Vec<Anchors> {
    // Of two anchors of which one begins with the other, only the shorter would be met.
    anchors.sort_by(|(a, _), (b, _)| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    let (mut patterns, mut places) = (Vec::<Vec<u8>>::new(), Vec::<Vec<Place>>::new());
    for (anchor, place) in anchors {
        match patterns.iter().position(|known| anchor.starts_with(known)) {
            Some(known) if places[known].contains(&place) => {}
            Some(known) => places[known].push(place),
            None => {
                patterns.push(anchor);
                places.push(vec![place]);
            }
        }
    }
    let mut sets = vec![];
    for (patterns, places) in patterns.chunks(MOST_AT_ONCE).zip(places.chunks(MOST_AT_ONCE)) {
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostFirst).kind(Some(AhoCorasickKind::ContiguousNFA));
        // Building fails for millions of patterns, and these are few.
        let built = builder.build(patterns).ok();
        sets.extend(built.map(|find| Anchors { find, places: places.to_vec() }));
    }
    sets
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
        if let Some((without, searched)) = self.secrets.redacted(&text, false) {
            (text, floor) = (without.into(), searched);
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
            |text: &Text| cut_after(&self.kept, text).is_some_and(|n| n * 2 > text.bytes.len());
        self.secrets.texts.iter().any(of)
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
            if secrets.is_in(piece) {
                return Heard::Secret;
            }
            let begun = secrets.begun(piece, 0);
            self.kept.extend_from_slice(&piece[piece.len() - begun..]);
            begun
        } else {
            self.kept.extend_from_slice(piece.as_bytes());
            if secrets.is_in(&self.kept) {
                return Heard::Secret;
            }
            let begun = secrets.begun(&self.kept, 0);
            let _ = self.kept.split_to(self.kept.len() - begun);
            begun
        };
        if begun == 0 { Heard::Nothing } else { Heard::Begun(begun) }
    }
}
