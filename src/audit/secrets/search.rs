//! The search through one text: where anchors and escapes are, and whether a secret is
//! around them.
//!
//! Linear in the text: each set of anchors and each search for escapes passes over it once,
//! and what is compared around one of them has a bound that does not depend on the text.

use std::{cmp::Reverse, ops::Range};

use memchr::{memchr_iter, memchr2_iter, memchr3_iter};

use super::{
    Anchors, Escaped, Place, Secrets,
    forms::{Form, Text},
    spelling::{
        Few, LONGEST, backslashes_before, behind_break, between_before, escaped, goes_on,
        goes_on_and_ends, is_plain, rest_of_row,
    },
};

/// At one escape, a text that repeats its beginning may be compared from so many places.
pub(super) const MOST_TRIED: usize = 8;

/// What is around an anchor or an escape.
enum Around {
    /// A secret, or most of one.
    Secret(Range<usize>),
    /// The beginning of one from here on, and the text may go on.
    Cut(usize),
    Otherwise,
}

/// A text that may begin at `start`, and whose character of this index is where an escape is.
#[derive(PartialEq)]
struct Candidate {
    text: usize,
    index: usize,
    start: usize,
}

/// A search through one text, in which each set of anchors passes over each byte once.
pub(super) struct Search<'a> {
    secrets: &'a Secrets,
    text: &'a [u8],
    whole: bool,
    /// Up to here all was searched, or taken out.
    floor: usize,
    /// Where each set has its next anchor, and which; none when it has no more.
    next: Vec<Option<(usize, usize)>>,
    /// Where the next escape is that may be of a secret.
    next_escape: Option<usize>,
    /// Where the next byte is with which an escape may begin: one of `\%&`, and one of `=+`.
    signs: [Option<usize>; 2],
}

impl<'a> Search<'a> {
    pub(super) fn new(secrets: &'a Secrets, text: &'a [u8], whole: bool) -> Self {
        let next = secrets.anchors.iter().map(|set| anchor_from(set, text, 0)).collect();
        let (floor, next_escape, signs) = (0, None, [Some(0); 2]);
        let mut search = Self { secrets, text, whole, floor, next, next_escape, signs };
        search.signs = [0, 1].map(|kind| search.sign_from(kind, 0));
        search.next_escape = search.escape_from(0);
        search
    }

    /// Where the next secret is, or most of it.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        loop {
            let anchors = self.next.iter().flatten().map(|(at, _)| *at);
            let at = anchors.chain(self.next_escape).min()?;
            let (mut found, mut cut): (Option<Range<usize>>, Option<usize>) = (None, None);
            for around in self.around(at) {
                match around {
                    Around::Otherwise => {}
                    Around::Cut(start) => cut = cut.into_iter().chain([start]).min(),
                    Around::Secret(here) => {
                        let known = found.get_or_insert(here.clone());
                        *known = known.start.min(here.start)..known.end.max(here.end);
                    }
                }
            }
            // What shows as most of one may be all of another, which begins with it.
            if cut.is_some_and(|cut| found.as_ref().is_none_or(|found| cut <= found.start)) {
                return self.stop();
            }
            let from = found.as_ref().map_or(at + 1, |found| found.end.max(at + 1));
            if let Some(found) = &found {
                self.floor = found.end;
            }
            self.go_on_from(from);
            if found.is_some() {
                return found;
            }
        }
    }

    /// What goes on may be a secret: nothing behind it is searched before it shows.
    fn stop(&mut self) -> Option<Range<usize>> {
        self.next.fill(None);
        self.next_escape = None;
        None
    }

    fn go_on_from(&mut self, from: usize) {
        for (set, next) in self.secrets.anchors.iter().zip(&mut self.next) {
            if next.is_some_and(|(at, _)| at < from) {
                *next = anchor_from(set, self.text, from);
            }
        }
        if self.next_escape.is_some_and(|at| at < from) {
            self.next_escape = self.escape_from(from);
        }
    }

    /// What is around the anchors and the escape that are at `at`.
    fn around(&self, at: usize) -> Vec<Around> {
        let mut found = vec![];
        for (set, next) in self.secrets.anchors.iter().zip(&self.next) {
            let here = next.filter(|(place, _)| *place == at);
            let places = here.and_then(|(_, pattern)| set.places.get(pattern));
            found.extend(places.into_iter().flatten().map(|place| self.around_anchor(at, *place)));
        }
        if self.next_escape == Some(at) {
            let candidates = self.candidates_at(at).into_iter();
            found.extend(candidates.map(|Candidate { text, index, start }| {
                let secret = &self.secrets.texts[text];
                match secret.form {
                    Form::Characters => self.compared(at, secret, index, || Some(start)),
                    // What is between its characters is read from where it begins.
                    _ => self.compared(start, secret, 0, || Some(start)),
                }
            }));
        }
        found
    }

    /// Whether the secret is here whose anchor is at `at`.
    fn around_anchor(&self, at: usize, Place { text, index }: Place) -> Around {
        let secret = &self.secrets.texts[text];
        self.compared(at, secret, index, || match secret.form {
            Form::Characters => self.characters_before(at, &secret.bytes[..index]),
            _ => self.parts_before(at, secret, index),
        })
    }

    /// Whether the secret goes on from `at` with its part `index`, and begins somewhere.
    fn compared(
        &self,
        at: usize,
        secret: &Text,
        index: usize,
        start: impl FnOnce() -> Option<usize>,
    ) -> Around {
        let text = self.text;
        let read = read(&text[at..], secret, index..secret.bytes.len(), self.whole);
        if read.cut.is_none() && read.known < secret.bytes.len() && !secret.is_most(read.known) {
            return Around::Otherwise;
        }
        let end = read.ends.as_slice().iter().max();
        match (start(), end) {
            // Of a longer one the beginning is not kept back.
            (Some(start), _) if read.cut.is_some() && text.len() - start > self.secrets.longest => {
                Around::Otherwise
            }
            (Some(start), _) if read.cut.is_some() => Around::Cut(start),
            (Some(start), Some(end)) => {
                Around::Secret(self.with_rests(start..at + end, secret.form))
            }
            _ => Around::Otherwise,
        }
    }

    /// With what would be left of a dump's row, or of an escape.
    fn with_rests(&self, found: Range<usize>, form: Form) -> Range<usize> {
        let (text, Range { mut start, mut end }) = (self.text, found);
        if form == Form::Hex && text[start..end].contains(&b' ') {
            end += rest_of_row(&text[end..]);
        }
        if text.get(start) == Some(&b'\\') {
            start -= backslashes_before(&text[self.floor..start]);
        }
        start..end
    }

    /// Where these characters begin that end at `at` and are as they are.
    fn characters_before(&self, at: usize, characters: &[u8]) -> Option<usize> {
        let text = &self.text[self.floor..at];
        text.ends_with(characters).then(|| at - characters.len())
    }

    /// The same of characters with line breaks between them, but not behind them.
    fn lines_before(&self, at: usize, characters: &[u8]) -> Option<usize> {
        let mut text = &self.text[self.floor..at];
        for (index, wanted) in characters.iter().rev().enumerate() {
            if index > 0 && !text.ends_with(&[*wanted]) {
                text = &text[..text.len() - between_before(text)];
            }
            text = text.strip_suffix(&[*wanted])?;
        }
        Some(self.floor + text.len())
    }

    /// Where a text begins whose part `index` is at `last`: looked for among what is near,
    /// for there is much that may be between the parts.
    fn parts_before(&self, last: usize, secret: &Text, index: usize) -> Option<usize> {
        let part = read(&self.text[last..], secret, index..index + 1, true);
        let end = last + part.ends.as_slice().iter().max()?;
        let leads_there = |start: &usize| {
            let read = read(&self.text[*start..end], secret, 0..index + 1, false);
            read.known > index && read.ends.as_slice().contains(&(end - start))
        };
        let from = self.floor.max(last.saturating_sub(LONGEST));
        (from..=last).rev().find(leads_there)
    }

    /// Where the next escape is of which a character of a secret may be.
    fn escape_from(&mut self, from: usize) -> Option<usize> {
        let mut from = from;
        loop {
            for kind in [0, 1] {
                if self.signs[kind].is_some_and(|at| at < from) {
                    self.signs[kind] = self.sign_from(kind, from);
                }
            }
            let at = self.signs.iter().flatten().min().copied()?;
            if !self.candidates_at(at).is_empty() {
                return Some(at);
            }
            from = at + 1;
        }
    }

    /// Where the next byte of this kind is with which an escape of a secret may begin.
    fn sign_from(&self, kind: usize, from: usize) -> Option<usize> {
        let text = self.text.get(from..)?;
        let may_begin = |at: &usize| self.may_be_escape(from + at);
        let found = match kind {
            0 => memchr3_iter(b'\\', b'%', b'&', text).find(may_begin),
            _ if self.secrets.has_blanks() => memchr2_iter(b'=', b'+', text).find(may_begin),
            _ => memchr_iter(b'=', text).find(may_begin),
        };
        found.map(|at| from + at)
    }

    /// Whether an escape of a secret may be here: nearly all in an answer show at once that
    /// they are none.
    fn may_be_escape(&self, at: usize) -> bool {
        let text = &self.text[at..];
        let (sign, Some(next)) = (text[0], text.get(1)) else { return false };
        // Where no secret has a backslash, several are one escape.
        let is_within = self.is_behind_backslash(at) && self.places(b'\\').is_empty();
        !is_within
            && self.secrets.escapes.has(sign, *next)
            // A letter of another alphabet.
            && !matches!(text, [b'\\', b'u', digit, ..] if !matches!(digit, b'0' | b'{'))
    }

    /// Whether both this byte and the one before it are backslashes.
    fn is_behind_backslash(&self, at: usize) -> bool {
        at > self.floor && self.text[at - 1..].starts_with(b"\\\\")
    }

    /// The texts that may have begun where the escape at `at` is the first that they have.
    fn candidates_at(&self, at: usize) -> Vec<Candidate> {
        let mut found = vec![];
        let before = &self.text[self.floor..at];
        let (sign, previous) = (self.text[at], before.last().copied());
        let is_within = self.is_behind_backslash(at);
        escaped(&self.text[at..], self.whole, &mut |byte| {
            if self.places(byte).is_empty() {
                return;
            }
            if !is_within {
                self.candidates_of(byte, None, at, &mut found);
            }
            if previous.is_some() {
                self.candidates_of(byte, previous, at, &mut found);
            }
            let gap = between_before(before);
            if let (1.., [.., previous]) = (gap, &before[..before.len() - gap]) {
                self.candidates_of(byte, Some(*previous), at, &mut found);
            }
        });
        if sign == b'=' && previous.is_some() {
            behind_break(&self.text[at..], &mut |byte| {
                self.candidates_of(byte, previous, at, &mut found);
            });
        }
        found
    }

    fn places(&self, byte: u8) -> &[Escaped] {
        self.secrets.escaped.get(usize::from(byte)).map_or(&[], Vec::as_slice)
    }

    /// Of these, those that have this character behind that one, or as their first.
    fn candidates_of(&self, byte: u8, before: Option<u8>, at: usize, found: &mut Vec<Candidate>) {
        let places = self.places(byte);
        let is_earlier = |place: &Escaped| place.before < before;
        let from = if before.is_none() { 0 } else { places.partition_point(is_earlier) };
        let places = places[from..].iter().take_while(|place| place.before == before);
        let (mut tried, mut last) = (0, None);
        for place in places {
            let (text, Reverse(index)) = (place.text, place.index);
            tried = if last == Some(text) { tried } else { 0 };
            last = Some(text);
            if tried == MOST_TRIED {
                continue;
            }
            let secret = &self.secrets.texts[text];
            let start = match secret.form {
                Form::Characters => self.characters_before(at, &secret.bytes[..index]),
                _ => self.lines_before(at, &secret.bytes[..index]),
            };
            if let Some(start) = start {
                tried += 1;
                let here = Candidate { text, index, start };
                if !found.contains(&here) {
                    found.push(here);
                }
            }
        }
    }
}

/// Where the next anchor of a set is, and which.
fn anchor_from(set: &Anchors, text: &[u8], from: usize) -> Option<(usize, usize)> {
    let found = set.find.find(text.get(from..)?)?;
    Some((from + found.start(), found.pattern().as_usize()))
}

/// What was read of a secret.
struct Read {
    /// Its parts before this one are there.
    known: usize,
    /// Where these may end.
    ends: Few,
    /// The last part before which the text ends in some way to read it.
    cut: Option<usize>,
}

/// Reads these parts of a secret, with the first of which `text` begins.
fn read(text: &[u8], secret: &Text, parts: Range<usize>, whole: bool) -> Read {
    let mut read = Read { known: parts.start, ends: Few::default(), cut: None };
    read.ends.push(0);
    for index in parts {
        if let ([end], Form::Characters | Form::Lines) = (read.ends.as_slice(), secret.form)
            && let Some(byte) = text.get(*end).filter(|byte| is_plain(**byte))
        {
            // A byte with which no escape begins is compared at once.
            if *byte != secret.bytes[index] {
                break;
            }
            read.ends.move_to(end + 1);
            read.known = index + 1;
            continue;
        }
        let mut next = Few::default();
        for end in read.ends.as_slice() {
            let rest = &text[*end..];
            let is_cut = goes_on(rest, secret, index, &mut |length| next.push(end + length));
            if is_cut && whole {
                goes_on_and_ends(rest, secret, index, &mut |length| next.push(end + length));
            } else if is_cut {
                read.cut = Some(index);
            }
        }
        if next.as_slice().is_empty() {
            break;
        }
        read = Read { known: index + 1, ends: next, ..read };
    }
    read
}

/// How many characters of `secret` are whole in `text`, which begins with it and ends
/// within it; none when it goes on otherwise.
pub(super) fn cut_after(text: &[u8], secret: &Text) -> Option<usize> {
    read(text, secret, 0..secret.bytes.len(), false).cut
}
