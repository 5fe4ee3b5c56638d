//! Secrets that were sent, searched for in what comes back. A server that quotes its
//! request in an error, or whose model was told to repeat it, must not hand the key of this
//! gateway to an application, a log or a trace.
//!
//! Searched for are the text itself, its base64 (at each of the three places of a byte, so
//! also within `Basic …`; once more encoded, too, or of an escaped text; lines may break),
//! and the numbers of its bytes (`forms`); each of these as it is, or with any of its
//! characters escaped (`spelling`). Where characters have several bytes, these are read as
//! one (`wide`).
//!
//! A few bytes of each text, its *anchors*, are looked for with Aho-Corasick; only around
//! these the text is compared. So the search takes time linear in the text: behind an anchor
//! at most one secret is compared, whose parts have at most `spelling::LONGEST` bytes each.
//! Anchors are short and looked for in sets so small that the library finds them with
//! vector instructions: a few passes of these take less time than one of its automatons.
//!
//! Most of a secret is one, too: a server may cut its message where it likes.
//!
//! Not found is a secret that was encrypted, compressed or spelled in words: whoever wants
//! to tell it can, and has it already.

mod forms;
mod search;
mod spelling;
#[cfg(test)]
mod tests;
mod wide;

use std::{borrow::Cow, fmt, sync::Arc};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use bytes::{Bytes, BytesMut};
use memchr::memrchr_iter;

use self::{
    forms::{Start, Text},
    search::{Search, cut_after},
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
    /// The texts that may begin with each byte.
    first: Vec<Vec<usize>>,
    /// Whether one may begin with a byte and the next: most bytes of an answer show at once
    /// that none does.
    pairs: Vec<[bool; 256]>,
    /// The most bytes in which one of them may be spelled.
    longest: usize,
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
    start: Start,
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
                    let (index, start) = (anchor.place, anchor.start);
                    (anchor.bytes, Place { text: texts.len(), index, start })
                };
                anchors.extend(forms::anchors(&text).into_iter().map(place));
                texts.push(text);
            }
        }
        let (mut first, mut pairs) = (vec![vec![]; 256], vec![[false; 256]; 256]);
        for (index, text) in texts.iter().enumerate() {
            for (byte, following) in text.first() {
                first[usize::from(byte)].push(index);
                let pairs = &mut pairs[usize::from(byte)];
                match following {
                    Some(following) => {
                        following.iter().for_each(|byte| pairs[usize::from(*byte)] = true);
                    }
                    None => *pairs = [true; 256],
                }
            }
        }
        let longest = texts.iter().map(Text::longest).max().unwrap_or(0).min(LONGEST_KEPT);
        Self { anchors: in_sets(anchors), texts, first, pairs, longest }
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
        self.redacted(text, true).map(|(without, _)| without)
    }

    /// Whether one is in the text, which may go on.
    fn is_in(&self, text: &[u8]) -> bool {
        Search::new(self, text, false).next().is_some()
    }

    /// The bytes without them, and how far these have been searched; none when there are
    /// none in it. A text that is not whole may go on as a secret that it ends within.
    fn redacted(&self, text: &[u8], whole: bool) -> Option<(Vec<u8>, usize)> {
        let narrow = wide::narrow(text);
        let read = narrow.as_ref().map_or(text, |narrow| &narrow.text);
        let mut search = Search::new(self, read, whole);
        let (mut out, mut copied) = (vec![], 0);
        while let Some(found) = search.next() {
            let (found, width) = match &narrow {
                Some(narrow) => narrow.wide(&found)?,
                None => (found, 1),
            };
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
        let may_begin = |at: &usize| {
            let next = text.get(at + 1).map(|next| usize::from(*next));
            if !next.is_none_or(|next| self.pairs[usize::from(text[*at])][next]) {
                return false;
            }
            let texts = self.first.get(usize::from(text[*at])).into_iter().flatten();
            texts.copied().any(|index| cut_after(&text[*at..], &self.texts[index]).is_some())
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
