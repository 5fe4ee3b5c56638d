//! Messages that only put variables between fixed words, which most are, filled in without
//! the template engine. With it, each would hold 12 KB of memory (minijinja 3.1 reserves so
//! much for the instructions of a template), and filling it in would be a good part of
//! what preparing a request costs.

use std::{borrow::Cow, io, ops::Range};

use serde_json::{Map, Value};

/// A message without anything but names in double braces.
#[derive(Debug)]
pub(super) struct Plain {
    source: Box<str>,
    /// In their order.
    parts: Box<[Part]>,
}

/// A place in the source.
#[derive(Debug)]
enum Part {
    Words(Range<u32>),
    Variable(Range<u32>),
}

impl Plain {
    /// None where more is said than names, and where `render` (the engine) would write it
    /// otherwise: names that mean something else, marks that touch each other.
    pub(super) fn of(source: &str, render: impl FnOnce(&Value) -> Option<String>) -> Option<Self> {
        let plain = Self { source: source.into(), parts: parts(source)?.into() };
        let example: Map<String, Value> =
            plain.names().map(|name| (name.to_owned(), format!("<{name}>").into())).collect();
        let example = Value::Object(example);
        let same = plain.fill(&example, usize::MAX)? == render(&example)?;
        same.then_some(plain)
    }

    /// None unless every variable is there and is text, and all of it has at most so many bytes:
    /// how others are written, and what is too long, is for the engine to say.
    pub(super) fn fill(&self, variables: &Value, most: usize) -> Option<Cow<'_, str>> {
        if let [Part::Words(words)] = &*self.parts {
            return Some(Cow::Borrowed(self.at(words)));
        }
        let pieces = self.parts.iter().map(|part| match part {
            Part::Words(words) => Some(self.at(words)),
            Part::Variable(name) => variables.get(self.at(name))?.as_str(),
        });
        let pieces = pieces.collect::<Option<Vec<&str>>>()?;
        let length = pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        (length <= most).then(|| Cow::Owned(pieces.concat()))
    }

    /// How many bytes are made when it is filled in, none of words alone. Of a variable that is no
    /// text, as many as the engine may write: six of each byte of its JSON.
    pub(super) fn length(&self, variables: &Value) -> usize {
        if let [Part::Words(_)] = &*self.parts {
            return 0;
        }
        let lengths = self.parts.iter().map(|part| match part {
            Part::Words(words) => words.len(),
            Part::Variable(name) => match variables.get(self.at(name)) {
                None => 0,
                Some(Value::String(text)) => text.len(),
                Some(value) => json_length(value).saturating_mul(6),
            },
        });
        lengths.fold(0_usize, usize::saturating_add)
    }

    /// The message as it was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Words(_) => None,
            Part::Variable(name) => Some(self.at(name)),
        })
    }

    fn at(&self, range: &Range<u32>) -> &str {
        self.source.get(range.start as usize..range.end as usize).unwrap_or_default()
    }
}

/// How many bytes a value takes as JSON.
fn json_length(value: &Value) -> usize {
    struct Counted(usize);
    impl io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // Counting does not fail.
    let _ = serde_json::to_writer(&mut counted, value);
    counted.0
}

fn parts(source: &str) -> Option<Vec<Part>> {
    // A template ends without its last line break.
    let text = source.strip_suffix('\n').unwrap_or(source);
    let text = text.strip_suffix('\r').filter(|_| text != source).unwrap_or(text);
    if text.contains("{%") || text.contains("{#") {
        return None;
    }
    let range = |start: usize, end: usize| {
        Some(Range { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })
    };
    let mut parts = vec![];
    let mut at = 0;
    while let Some(open) = text[at..].find("{{").map(|found| at + found) {
        let close = open + text[open..].find("}}")?;
        let inside = &text[open + 2..close];
        let name = inside.trim();
        let first = name.bytes().next()?;
        let fits = |b: u8| b == b'_' || b.is_ascii_alphanumeric();
        if first.is_ascii_digit() || !name.bytes().all(fits) {
            return None;
        }
        let start = open + 2 + (inside.len() - inside.trim_start().len());
        if open > at {
            parts.push(Part::Words(range(at, open)?));
        }
        parts.push(Part::Variable(range(start, start + name.len())?));
        at = close + 2;
    }
    if at < text.len() || parts.is_empty() {
        parts.push(Part::Words(range(at, text.len())?));
    }
    Some(parts)
}
