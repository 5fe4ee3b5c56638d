//! What a secret reads like where a server has encoded it, and by which few bytes each of
//! these texts is looked for.

use std::ops::Range;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};

use super::{SHORTEST, SHORTEST_WORD};

/// So much of a text is looked for at first.
const ANCHOR: usize = 12;
/// The same of an encoded one, at two places: a line break is in one of them at most.
const LINES_ANCHORS: [usize; 3] = [8, 5, 4];
/// An anchor has at least so many letters or digits in a row. A text that has no such row is
/// its own anchor.
const SHORTEST_ANCHOR: usize = 4;

/// What is between the hexadecimal digits of two bytes in a list.
const LISTS: [&str; 9] =
    [",", ", ", "  ", "\",\"", "\", \"", "\\\",\\\"", "\\\", \\\"", "','", "', '"];

/// What is behind the decimal number of a byte: in a list, or before an escaped line break.
const NUMBERS: [&str; 2] = [",", "\\"];
/// What is between two of them, as Go prints a list or in lines. One number and a blank would be
/// met in many texts.
const BETWEEN_NUMBERS: [&str; 4] = [" ", "\t", "\n", "\r\n"];

/// With which bytes the spelling of any character may begin.
const ESCAPES: &[u8] = b"\\%&+=";
/// With which bytes that begins which may be between two parts.
const GAPS: &[u8] = b"\r\n\t ";

/// How the parts of a text follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Characters, each of which may be escaped.
    Characters,
    /// The same, with line breaks between any two of them: base64.
    Lines,
    /// Bytes in two hexadecimal digits each, separated, with a prefix or side by side.
    Hex,
    /// Bytes as decimal numbers in a list.
    Decimal,
}

/// What is searched for: a secret, or what it reads like when it is encoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) bytes: Box<[u8]>,
    pub(super) form: Form,
    /// Whether it is the secret itself, or what this reads like when it is encoded once: of
    /// these, any character may be escaped. Of what was encoded twice, only those that are
    /// no letters and digits are.
    pub(super) is_near: bool,
}

impl Text {
    fn near(bytes: impl Into<Box<[u8]>>, form: Form) -> Self {
        Self { bytes: bytes.into(), form, is_near: true }
    }

    fn far(bytes: impl Into<Box<[u8]>>, form: Form) -> Self {
        Self { is_near: false, ..Self::near(bytes, form) }
    }

    /// Whether it is found by the first of its characters that is escaped, too.
    pub(super) fn is_found_by_escapes(&self) -> bool {
        self.is_near && !self.is_numbers()
    }

    /// Whether the first `known` parts are most of it.
    pub(super) fn is_most(&self, known: usize) -> bool {
        let digits = if self.is_numbers() { 2 } else { 1 };
        known * 2 > self.bytes.len() && known * digits >= SHORTEST_WORD
    }

    fn is_numbers(&self) -> bool {
        matches!(self.form, Form::Hex | Form::Decimal)
    }

    /// About the most bytes in which it is spelled.
    pub(super) fn longest(&self) -> usize {
        let each = match self.form {
            Form::Characters | Form::Lines if self.is_near => 20,
            Form::Characters | Form::Lines => 2,
            Form::Hex => 8,
            Form::Decimal => 20,
        };
        self.bytes.len() * each + 64
    }

    /// The bytes with which it may begin where it is not escaped, each with those that may
    /// follow; none where any may.
    pub(super) fn first(&self) -> Vec<(u8, Option<Vec<u8>>)> {
        let (first, second) = (self.bytes[0], self.bytes.get(1).copied().unwrap_or_default());
        let ahead = |following: &[u8]| Some(following.to_vec());
        match self.form {
            Form::Hex => {
                let digits = [format!("{first:02x}"), format!("{first:02X}")];
                let mut found = vec![(b'0', ahead(b"xX"))];
                found.extend(
                    digits.map(|digits| (digits.as_bytes()[0], ahead(&digits.as_bytes()[1..]))),
                );
                found
            }
            Form::Decimal => {
                let digits = first.to_string().into_bytes();
                let following = if digits.len() > 1 { ahead(&digits[1..2]) } else { None };
                vec![(digits[0], following)]
            }
            Form::Characters | Form::Lines => {
                vec![(first, ahead(&[ESCAPES, GAPS, &[second]].concat()))]
            }
        }
    }

    /// The bytes with which an escape of its first character may begin, in the same way.
    pub(super) fn first_escaped(&self) -> Vec<(u8, Option<Vec<u8>>)> {
        let first = self.bytes[0];
        if self.is_numbers() || !self.is_near && first.is_ascii_alphanumeric() {
            return vec![];
        }
        escapes(first)
    }
}

/// The bytes with which an escape of this one may begin, each with those that may follow;
/// none where any may. Nearly all escapes in an answer are of others: `\n`, `%20`.
pub(super) fn escapes(byte: u8) -> Vec<(u8, Option<Vec<u8>>)> {
    let ahead = |following: &[u8]| Some(following.to_vec());
    let digits = format!("{byte:02x}{byte:02X}");
    let digits = [digits.as_bytes()[0], digits.as_bytes()[2]];
    let mark = if byte.is_ascii_punctuation() { byte } else { b'u' };
    let mut found = vec![
        (
            b'\\',
            if byte == b'\\' {
                None
            } else {
                ahead(&[b"\\uUx01234567".as_slice(), &[mark]].concat())
            },
        ),
        (b'%', ahead(&[b"2u".as_slice(), &digits].concat())),
        (b'=', ahead(&digits)),
        (b'&', if byte.is_ascii_punctuation() { None } else { ahead(b"#a") }),
    ];
    found.extend((byte == b' ').then_some((b'+', None)));
    found
}

/// A few bytes by which a text is looked for.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) bytes: Vec<u8>,
    /// Which part of the text is there.
    pub(super) place: usize,
}

/// A secret, and what it reads like when it is encoded, once or twice.
pub(super) fn texts(secret: &str) -> Vec<Text> {
    let bytes = secret.as_bytes();
    let once = base64(bytes);
    let spelled = spelled(secret);
    let twice = once.iter().chain(&spelled).flat_map(|text| base64(text));
    let mut found = vec![Text::near(bytes, Form::Characters)];
    found.extend(once.iter().map(|once| Text::near(once.as_slice(), Form::Lines)));
    found.extend(twice.map(|text| Text::far(text, Form::Lines)));
    found.push(Text::near(bytes, Form::Hex));
    found.extend(once.into_iter().map(|once| Text::far(once, Form::Hex)));
    found.push(Text::near(bytes, Form::Decimal));
    found.extend(wide(secret).map(|wide| Text::far(wide, Form::Hex)));
    found
}

/// As which a secret may have been written before it was encoded in base64.
fn spelled(secret: &str) -> Vec<Vec<u8>> {
    let each = |spelled: &dyn Fn(u8) -> String| secret.bytes().map(spelled).collect::<String>();
    let reserved = |byte: u8, kept: &[u8]| {
        let is_kept = byte.is_ascii_alphanumeric() || kept.contains(&byte);
        if is_kept { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    let texts = [
        each(&|b| format!("{b:02x}")),
        each(&|b| format!("{b:02X}")),
        each(&|b| format!("%{b:02x}")),
        each(&|b| format!("%{b:02X}")),
        each(&|b| reserved(b, b"-_.~")),
        each(&|b| reserved(b, b"-_.~/")),
        each(&|b| format!("\\u{b:04x}")),
        each(&|b| format!("\\u{b:04X}")),
        // JSON within JSON.
        each(&|b| format!("\\\\u{b:04x}")),
        each(&|b| format!("\\\\u{b:04X}")),
        secret.replace('/', "\\/"),
    ];
    texts.into_iter().map(String::into_bytes).chain(wide(secret)).collect()
}

/// A secret in UTF-16, of either order.
fn wide(secret: &str) -> [Vec<u8>; 2] {
    let wide = |unit: fn(u16) -> [u8; 2]| secret.encode_utf16().flat_map(unit).collect();
    [wide(u16::to_le_bytes), wide(u16::to_be_bytes)]
}

/// What bytes read like in base64, at each of the three places of a byte. What depends on
/// their neighbours is left out.
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

/// By what a text is looked for.
pub(super) fn anchors(text: &Text) -> Vec<Anchor> {
    match text.form {
        Form::Characters => of_characters(&text.bytes),
        Form::Lines => of_lines(&text.bytes),
        Form::Hex => of_hex(&text.bytes, text.is_near),
        Form::Decimal => {
            // Of three digits, where it can be: others are in many lists.
            let place = text.bytes.iter().take(SHORTEST - 1).position(|byte| *byte >= 100);
            let place = place.unwrap_or(0);
            let (first, second) = (text.bytes[place], text.bytes[place + 1]);
            let lists = NUMBERS.map(|behind| format!("{first}{behind}"));
            let lines = BETWEEN_NUMBERS.map(|between| format!("{first}{between}{second}"));
            lists.into_iter().chain(lines).map(|bytes| anchor(bytes, place)).collect()
        }
    }
}

fn anchor(bytes: impl Into<Vec<u8>>, place: usize) -> Anchor {
    Anchor { bytes: bytes.into(), place }
}

/// The first of its letters and digits that lie side by side. Where one of these is escaped,
/// the text is found by that escape.
fn of_characters(text: &[u8]) -> Vec<Anchor> {
    let mut runs = vec![];
    let mut at = 0;
    for run in text.split(|byte| !byte.is_ascii_alphanumeric()) {
        runs.push(at..at + run.len());
        at += run.len() + 1;
    }
    let long = runs.iter().find(|run| run.len() >= SHORTEST).cloned();
    let run = long.or_else(|| runs.into_iter().max_by_key(Range::len)).unwrap_or(0..0);
    if run.len() < SHORTEST_ANCHOR {
        // No letters to go by: as it is, or not at all.
        return vec![anchor(text, 0)];
    }
    // Most of a secret is found by it, too.
    let most = (text.len() / 2 + 1).max(SHORTEST_WORD).max(run.start + SHORTEST);
    vec![anchor(&text[run.start..run.end.min(run.start + ANCHOR).min(most)], run.start)]
}

/// Two places of letters and digits side by side.
fn of_lines(text: &[u8]) -> Vec<Anchor> {
    let mut found = vec![];
    for length in LINES_ANCHORS {
        let mut from = 0;
        while found.len() < 2 && from + length <= text.len().min(text.len() / 2 + SHORTEST) {
            let window = &text[from..from + length];
            match window.iter().rposition(|byte| !byte.is_ascii_alphanumeric()) {
                Some(other) => from += other + 1,
                None => {
                    found.push(anchor(window, from));
                    from += length;
                }
            }
        }
        if found.len() == 2 {
            return found;
        }
        if length > SHORTEST_ANCHOR {
            found.clear();
        }
    }
    if found.is_empty() { vec![anchor(text, 0)] } else { found }
}

/// Two places of two bytes, as they are separated; and the first two in a list.
fn of_hex(text: &[u8], in_lists: bool) -> Vec<Anchor> {
    let mut found = vec![];
    for place in [0, 2] {
        let Some([first, second]) = text.get(place..place + 2) else { continue };
        for between in ["", " ", ":", "-"] {
            found.push(anchor(format!("{first:02x}{between}{second:02x}"), place));
            found.push(anchor(format!("{first:02X}{between}{second:02X}"), place));
        }
    }
    if let (true, [first, second, ..]) = (in_lists, text) {
        for between in LISTS {
            found.push(anchor(format!("{first:02x}{between}{second:02x}"), 0));
            found.push(anchor(format!("{first:02X}{between}{second:02X}"), 0));
        }
    }
    found.extend(["0x", "0X"].map(|before| anchor(format!("{before}{:02x}", text[0]), 0)));
    found.extend(["0x", "0X"].map(|before| anchor(format!("{before}{:02X}", text[0]), 0)));
    found
}
