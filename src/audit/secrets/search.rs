//! The search through one text: where anchors are, and whether a secret is around them.
//!
//! Linear in the text: each set of anchors passes over it once, and around an anchor at most
//! one secret is compared, of whose parts each is read in at most `spelling::LONGEST` bytes.

use std::ops::Range;

use super::{
    Anchors, Place, Secrets,
    forms::{Form, Start, Text},
    spelling::{
        Begins, LONGEST, at_end, backslashes_before, ends, escape_before, goes_on, rest_of_row,
        soft_break_before,
    },
};

/// What is around an anchor.
enum Around {
    /// A secret, or most of one.
    Secret(Range<usize>),
    /// The beginning of one, and the text may go on.
    Cut,
    Otherwise,
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
}

impl<'a> Search<'a> {
    pub(super) fn new(secrets: &'a Secrets, text: &'a [u8], whole: bool) -> Self {
        let next = secrets.anchors.iter().map(|set| anchor_from(set, text, 0)).collect();
        Self { secrets, text, whole, floor: 0, next }
    }

    /// Where the next secret is, or most of it.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        loop {
            let at = self.next.iter().flatten().map(|(at, _)| *at).min()?;
            let mut found: Option<Range<usize>> = None;
            for (set, next) in self.secrets.anchors.iter().zip(&self.next) {
                let here = next.filter(|(place, _)| *place == at);
                let places = here.and_then(|(_, pattern)| set.places.get(pattern));
                for place in places.into_iter().flatten() {
                    match self.around(at, *place) {
                        Around::Otherwise => {}
                        // What shows as most of one may be all of another.
                        Around::Cut => return self.stop(),
                        Around::Secret(here) => {
                            found = found.into_iter().chain([here]).max_by_key(Range::len);
                        }
                    }
                }
            }
            let from = found.as_ref().map_or(at + 1, |found| found.end.max(at + 1));
            for (set, next) in self.secrets.anchors.iter().zip(&mut self.next) {
                if next.is_some_and(|(at, _)| at < from) {
                    *next = anchor_from(set, self.text, from);
                }
            }
            if let Some(found) = found {
                self.floor = found.end;
                return Some(found);
            }
        }
    }

    /// What goes on may be a secret: nothing behind it is searched before it shows.
    fn stop(&mut self) -> Option<Range<usize>> {
        self.next.fill(None);
        None
    }

    /// Whether the secret is here whose anchor is at `at`.
    fn around(&self, at: usize, place: Place) -> Around {
        let (text, secret) = (self.text, &self.secrets.texts[place.text]);
        let at = match place.start {
            Start::Here => at,
            Start::Within => at - escape_before(&text[self.floor..at], text[at]),
        };
        let (before, after) = secret.bytes.split_at(place.index);
        let (mut end, mut first, mut is_cut) = (at, at, false);
        for (known, wanted) in (place.index..).zip(after) {
            let begins = |text: &[u8]| goes_on(text, *wanted, secret.form, known);
            let length = match begins(&text[end..]) {
                Begins::With(length) => Some(length),
                Begins::Cut if !self.whole => {
                    is_cut = true;
                    break;
                }
                Begins::Cut => at_end(&text[end..], begins),
                Begins::Otherwise => None,
            };
            match length {
                Some(length) => end += length,
                None if secret.is_most(known) => break,
                None => return Around::Otherwise,
            }
            if known == place.index {
                first = end;
            }
        }
        let start = match secret.form {
            Form::Characters => self.characters_before(at, before),
            form => self.parts_before(at..first, &secret.bytes[..=place.index], form),
        };
        match start {
            None => Around::Otherwise,
            // Of a longer one the beginning is not kept back.
            Some(start) if is_cut && text.len() - start > self.secrets.longest => Around::Otherwise,
            Some(_) if is_cut => Around::Cut,
            Some(start) => Around::Secret(self.with_rests(start..end, secret.form)),
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

    /// Where these characters begin that end at `at`.
    fn characters_before(&self, at: usize, characters: &[u8]) -> Option<usize> {
        let mut start = at;
        for wanted in characters.iter().rev() {
            let text = &self.text[self.floor..start];
            start -= match ends(text, *wanted) {
                Some(length) => length,
                None => {
                    let line_break = soft_break_before(text);
                    line_break + ends(&text[..text.len() - line_break], *wanted)?
                }
            };
        }
        Some(start)
    }

    /// Where these parts begin, of which the last is at `last`: looked for among what is
    /// near, for there is much that may be between them.
    fn parts_before(&self, last: Range<usize>, parts: &[u8], form: Form) -> Option<usize> {
        let leads_there = |start: &usize| {
            let mut at = *start;
            for (index, wanted) in parts.iter().enumerate() {
                match goes_on(&self.text[at..last.end], *wanted, form, index) {
                    Begins::With(length) => at += length,
                    Begins::Cut | Begins::Otherwise => return false,
                }
            }
            at == last.end
        };
        let from = self.floor.max(last.start.saturating_sub(LONGEST));
        (from..=last.start).rev().find(leads_there)
    }
}

/// Where the next anchor of a set is, and which.
fn anchor_from(set: &Anchors, text: &[u8], from: usize) -> Option<(usize, usize)> {
    let found = set.find.find(text.get(from..)?)?;
    Some((from + found.start(), found.pattern().as_usize()))
}

/// How many characters of `secret` are whole in `text`, which begins with it and ends
/// within it; none when it goes on otherwise.
pub(super) fn cut_after(text: &[u8], secret: &Text) -> Option<usize> {
    let mut rest = text;
    for (whole, wanted) in secret.bytes.iter().enumerate() {
        match goes_on(rest, *wanted, secret.form, whole) {
            Begins::With(length) => rest = &rest[length..],
            Begins::Cut => return Some(whole),
            Begins::Otherwise => return None,
        }
    }
    None
}
