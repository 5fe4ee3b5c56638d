//! A text as a reader would see it: escapes undone, digits and spaces of other scripts as
//! plain ones, what can not be seen left out. Rules are applied to this, and what they find
//! is taken out of the text as it was.
//!
//! Undone are escapes of JSON (also of JSON within JSON), percent-encoding and entities of
//! HTML. What is no escape in its place (`C:\users`, `100%`) stays, and nothing but what a
//! rule finds is ever changed by this.

use std::borrow::Cow;

use crate::openai::visible::is_invisible;

/// How often a backslash or a percent sign may be escaped again.
const MOST_AGAIN: usize = 32;
/// Escapes of different kinds within each other, as of JSON in an entity in a URL.
const ROUNDS: usize = 3;
/// The longest entity that is read.
const LONGEST_ENTITY: usize = 12;
/// Where ten digits of other scripts begin (Unicode, Nd).
const ZEROS: [u32; 18] = [
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xE50,
    0xED0, 0xF20, 0x1040, 0x17E0, 0x1810,
];

/// A text and where each of its bytes comes from.
pub(super) struct Plain<'a> {
    pub text: Cow<'a, str>,
    /// Of each byte, what it stands for in the original; none when it is the same text.
    origins: Vec<(u32, u32)>,
}

impl<'a> Plain<'a> {
    /// Undoes escapes, and those that come to light by that: a form in JSON within a URL.
    pub(super) fn of(text: &'a str) -> Self {
        let mut plain = Self::once(text);
        for _ in 1..ROUNDS {
            let next = Plain::once(&plain.text);
            if next.origins.is_empty() || next.text == plain.text {
                break;
            }
            let through = |&(start, end): &(u32, u32)| {
                let (start, end) = plain.origin(start as usize, end as usize);
                (start as u32, end as u32)
            };
            let origins = next.origins.iter().map(through).collect();
            plain = Plain { text: Cow::Owned(next.text.into_owned()), origins };
        }
        plain
    }

    fn once(text: &'a str) -> Self {
        let is_plain = |byte: &u8| byte.is_ascii() && !b"\\%&".contains(byte);
        // Positions are kept in 32 bits; no text is nearly as long.
        if text.as_bytes().iter().all(is_plain) || u32::try_from(text.len()).is_err() {
            return Self { text: Cow::Borrowed(text), origins: vec![] };
        }
        let mut out = Out { text: String::with_capacity(text.len()), origins: vec![] };
        let mut at = 0;
        while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
            at = match c {
                '\\' => out.escaped(text, at),
                '%' => out.percent(text, at),
                '&' => out.entity(text, at),
                _ => out.shown(c, at, at + c.len_utf8()),
            };
        }
        Self { text: Cow::Owned(out.text), origins: out.origins }
    }

    /// Where in the original a part of the plain text is.
    pub(super) fn origin(&self, start: usize, end: usize) -> (usize, usize) {
        if start >= end || self.origins.is_empty() {
            return (start, end);
        }
        let first = self.origins.get(start).map_or(start, |origin| origin.0 as usize);
        (first, self.origins.get(end - 1).map_or(end, |origin| origin.1 as usize))
    }
}

struct Out {
    text: String,
    origins: Vec<(u32, u32)>,
}

impl Out {
    /// A character that stands for a part of the original; says where that ends.
    fn push(&mut self, c: char, start: usize, end: usize) -> usize {
        self.text.push(c);
        let origin = (start as u32, end as u32);
        self.origins.resize(self.text.len(), origin);
        end
    }

    /// A character by what a reader sees.
    fn shown(&mut self, c: char, start: usize, end: usize) -> usize {
        match seen(c) {
            Some(c) => self.push(c, start, end),
            None => end,
        }
    }

    fn escaped(&mut self, text: &str, at: usize) -> usize {
        let rest = &text.as_bytes()[at..];
        let count = rest.iter().take(MOST_AGAIN).take_while(|byte| **byte == b'\\').count();
        let next = at + count;
        match rest.get(count) {
            Some(b'u') => {
                let digits = text.get(next + 1..next + 5);
                let code = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                match code.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
                    Some(code) => {
                        let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                        self.shown(c, at, next + 5)
                    }
                    None => self.push('\\', at, next),
                }
            }
            Some(b'n' | b'r' | b't') => self.push('\n', at, next + 1),
            Some(c @ (b'"' | b'/' | b'\'')) => self.push(char::from(*c), at, next + 1),
            _ => self.push('\\', at, next),
        }
    }

    /// Percent-encoded bytes, as many as are one character.
    fn percent(&mut self, text: &str, at: usize) -> usize {
        let (mut bytes, mut end) = ([0_u8; 4], at);
        for length in 1..=4 {
            let Some((byte, next)) = percent_byte(text.as_bytes(), end) else { break };
            (bytes[length - 1], end) = (byte, next);
            let c = std::str::from_utf8(&bytes[..length]).ok().and_then(|c| c.chars().next());
            if let Some(c) = c.filter(|c| !c.is_control() || c.is_whitespace()) {
                return self.shown(c, at, end);
            }
        }
        self.push('%', at, at + 1)
    }

    fn entity(&mut self, text: &str, at: usize) -> usize {
        let rest = &text.as_bytes()[at..];
        let end = rest.iter().take(LONGEST_ENTITY).position(|byte| *byte == b';');
        let found = end.and_then(|end| match rest.get(1..end)? {
            b"amp" => Some('&'),
            b"commat" => Some('@'),
            b"period" => Some('.'),
            b"lowbar" => Some('_'),
            b"quot" => Some('"'),
            b"apos" => Some('\''),
            b"nbsp" => Some(' '),
            [b'#', b'x' | b'X', digits @ ..] => number(digits, 16),
            [b'#', digits @ ..] => number(digits, 10),
            _ => None,
        });
        match found.zip(end) {
            Some((c, end)) => self.shown(c, at, at + end + 1),
            None => self.push('&', at, at + 1),
        }
    }
}

/// The byte that is percent-encoded at a place, also where its percent sign is encoded
/// again, and where that ends.
fn percent_byte(text: &[u8], at: usize) -> Option<(u8, usize)> {
    let mut digits = text.get(at..)?.strip_prefix(b"%")?;
    for _ in 0..MOST_AGAIN {
        digits = digits.strip_prefix(b"25").filter(|rest| is_hex_pair(rest)).unwrap_or(digits);
    }
    let pair = digits.get(..2).filter(|pair| is_hex_pair(pair))?;
    let byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    Some((byte, text.len() - digits.len() + 2))
}

fn is_hex_pair(text: &[u8]) -> bool {
    text.get(..2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
}

fn number(digits: &[u8], radix: u32) -> Option<char> {
    let digits = std::str::from_utf8(digits).ok()?;
    u32::from_str_radix(digits, radix).ok().and_then(char::from_u32)
}

/// What a reader takes a character for; none when it can not be seen.
fn seen(c: char) -> Option<char> {
    let code = u32::from(c);
    if c.is_ascii() {
        return Some(c);
    }
    if let Some(zero) = ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code)) {
        return char::from_digit(code - zero, 10);
    }
    Some(match code {
        // The wide forms of ASCII, and the small ones of a few signs.
        0xFF01..=0xFF5E => char::from_u32(code - 0xFEE0)?,
        0xFE52 | 0x2024 | 0x3002 | 0xFF61 => '.',
        0xFE6B => '@',
        0x2010..=0x2015 | 0x2212 | 0xFE58 | 0xFE63 => '-',
        0x1D7CE..=0x1D7FF => char::from_digit((code - 0x1D7CE) % 10, 10)?,
        _ if c.is_whitespace() => ' ',
        _ if is_invisible(c) => return None,
        _ => c,
    })
}
