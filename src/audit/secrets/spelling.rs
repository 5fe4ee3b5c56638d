//! How one character of a secret may be spelled in an answer: as it is, by an escape of
//! JSON (also of JSON within JSON) or of a programming language, in percent-encoding, in
//! quoted-printable, or as an entity of HTML, whose ampersand may be escaped once more. And
//! what may be between two parts of a text that was encoded: line breaks, separators.
//!
//! One text can be read in several ways (`%2541` is an `A` that was encoded twice, or `%41`
//! that was encoded once), and all of them are followed. Each has a bound, so that one part
//! of a text is read in at most `LONGEST` bytes.

use super::forms::{Form, Text};

/// Backslashes before one escape: JSON within JSON doubles them each time.
const MOST_BACKSLASHES: usize = 32;
/// The longest entity that is read, `&DiacriticalGrave;`.
const LONGEST_ENTITY: usize = 18;
/// How often a percent sign or an ampersand may be encoded again, as `%25` or `&amp;`.
const MOST_AGAIN: usize = 4;
/// So much may be between two numbers of a list, or be a line break and its indentation.
const MOST_BETWEEN: usize = 32;
/// Behind the numbers of a dump's line, the rest of the line has at most so many bytes.
const LONGEST_COLUMN: usize = 96;
/// The number of a byte in a list of them.
const MOST_DIGITS: usize = 6;
/// The most bytes of one part of a text, with what is before it.
pub(super) const LONGEST: usize = 192;

/// What a text begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// With the character, in so many bytes.
    With(usize),
    /// The text ends before that shows.
    Cut,
    /// With something else.
    Otherwise,
}

/// A few numbers, each of them once; further ones are left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Few {
    numbers: [usize; 16],
    count: usize,
}

impl Few {
    pub(super) fn push(&mut self, number: usize) {
        if self.count < self.numbers.len() && !self.as_slice().contains(&number) {
            self.numbers[self.count] = number;
            self.count += 1;
        }
    }

    /// This one, and no other.
    pub(super) fn move_to(&mut self, number: usize) {
        (self.numbers[0], self.count) = (number, 1);
    }

    pub(super) fn as_slice(&self) -> &[usize] {
        &self.numbers[..self.count]
    }
}

/// How `text` goes on with the part of `secret` that has this index, in each way. Returns
/// whether it ends before that shows.
pub(super) fn goes_on(
    text: &[u8],
    secret: &Text,
    index: usize,
    found: &mut impl FnMut(usize),
) -> bool {
    let wanted = secret.bytes[index];
    let begins = match secret.form {
        Form::Characters | Form::Lines => {
            let mut spelled = |from: usize, is_allowed: bool| {
                readings(&text[from..], &mut |byte, length| {
                    if is_allowed && byte == wanted {
                        found(from + length);
                    }
                })
            };
            let mut is_cut = spelled(0, true);
            if index > 0 && secret.form == Form::Lines {
                let gap = between(text, b" \t");
                is_cut |= gap > 0 && spelled(gap, true);
            }
            if index > 0 && text.first() == Some(&b'=') {
                // Behind the sign, a line break may have begun.
                is_cut |= spelled(1, false);
                for gap in soft_breaks(text) {
                    is_cut |= spelled(gap, true);
                }
            }
            return is_cut;
        }
        Form::Hex => {
            let length = if index == 0 { 0 } else { between(text, b" \t:,-\"'") };
            match hex_pair(&text[length..], wanted).behind(length) {
                Begins::Otherwise if index > 0 => next_row(text, wanted),
                begins => begins,
            }
        }
        Form::Decimal => {
            let length = if index == 0 { 0 } else { between(text, b" \t,") };
            match decimal(&text[length..], wanted).behind(length) {
                Begins::Otherwise if index > 0 => match name(&text[length..]) {
                    Begins::With(named) => {
                        let length = length + named;
                        decimal(&text[length..], wanted).behind(length)
                    }
                    other => other,
                },
                begins => begins,
            }
        }
    };
    if let Begins::With(length) = begins {
        found(length);
    }
    begins == Begins::Cut
}

/// The same where nothing follows `text`.
pub(super) fn goes_on_and_ends(
    text: &[u8],
    secret: &Text,
    index: usize,
    found: &mut impl FnMut(usize),
) {
    // A number's end shows by what follows it.
    let ended = [text, b"\0"].concat();
    goes_on(&ended, secret, index, &mut |length| {
        if length <= text.len() {
            found(length);
        }
    });
}

/// The characters for which an escape at the beginning of `text` may stand.
pub(super) fn escaped(text: &[u8], is_whole: bool, found: &mut impl FnMut(u8)) {
    let mut read = |text: &[u8], most: usize| {
        escapes(text, &mut |byte, length| {
            if length <= most && !(length == 1 && byte == text[0]) {
                found(byte);
            }
        })
    };
    if read(text, text.len()) && is_whole {
        read(&[text, b"\0"].concat(), text.len());
    }
}

/// The characters that may be behind a line break of quoted-printable at the beginning of
/// `text`.
pub(super) fn behind_break(text: &[u8], found: &mut impl FnMut(u8)) {
    for length in soft_breaks(text) {
        readings(&text[length..], &mut |byte, _| found(byte));
    }
}

/// Whether `text` can begin with this byte only where that is a character as it is.
pub(super) fn is_plain(byte: u8) -> bool {
    !matches!(byte, b'\\' | b'%' | b'&' | b'=' | b'+' | b'\r' | b'\n' | b'\t' | b' ')
}

impl Begins {
    /// The same, this many bytes further on.
    fn behind(self, bytes: usize) -> Self {
        match self {
            Self::With(length) => Self::With(length + bytes),
            other => other,
        }
    }
}

/// How many bytes of line breaks, escaped or not, and of these separators `text` begins
/// with; none goes on behind an empty line.
fn between(text: &[u8], separators: &[u8]) -> usize {
    let (mut length, mut lines) = (0, 0);
    while length < MOST_BETWEEN {
        let rest = &text[length..];
        length += match rest {
            [b'\n', ..] if lines == 0 => {
                lines += 1;
                1
            }
            [b'\r', ..] => 1,
            [byte, ..] if separators.contains(byte) => 1,
            [b'\\', ..] => match escaped_break(rest).or_else(|| escaped_quote(rest, separators)) {
                Some(length) => length,
                None => break,
            },
            [b'%', b'0', b'A' | b'a' | b'D' | b'd', ..] => 3,
            [b'&', b'#', b'1', b'0' | b'3', b';', ..] => 5,
            _ => break,
        };
    }
    length
}

/// How many bytes of line breaks, escaped or not, and of blanks `text` ends with.
pub(super) fn between_before(text: &[u8]) -> usize {
    let mut rest = text;
    while text.len() - rest.len() < MOST_BETWEEN {
        rest = match rest {
            [before @ .., b'\n' | b'\r' | b'\t' | b' '] => before,
            [before @ .., b'\\', b'n' | b'r' | b't'] => {
                &before[..before.len() - backslashes_before(before)]
            }
            [before @ .., b'%', b'0', b'A' | b'a' | b'D' | b'd']
            | [before @ .., b'&', b'#', b'1', b'0' | b'3', b';'] => before,
            _ => break,
        };
    }
    text.len() - rest.len()
}

/// The length of `\n`, `\r` or `\t` at the beginning of `text`, whose backslash may be
/// doubled.
fn escaped_break(text: &[u8]) -> Option<usize> {
    let count = backslashes(text);
    (count > 0 && matches!(text.get(count), Some(b'n' | b'r' | b't'))).then_some(count + 1)
}

/// The same of a quotation mark that is one of these separators.
fn escaped_quote(text: &[u8], separators: &[u8]) -> Option<usize> {
    let count = backslashes(text);
    let next = text.get(count).filter(|next| matches!(next, b'"' | b'\''))?;
    (count > 0 && separators.contains(next)).then_some(count + 1)
}

/// The length of a line break of quoted-printable, also with the breaks and escaped ones
/// that follow it.
fn soft_breaks(text: &[u8]) -> impl Iterator<Item = usize> {
    let rest = text.strip_prefix(b"=").unwrap_or_default();
    let one = match rest {
        [b'\n', ..] => 1,
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    [one, between(rest, b"")].into_iter().filter(|length| *length > 0).map(|length| length + 1)
}

/// How many backslashes `text` begins with.
fn backslashes(text: &[u8]) -> usize {
    text.iter().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count()
}

/// How many backslashes `text` ends with.
pub(super) fn backslashes_before(text: &[u8]) -> usize {
    text.iter().rev().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count()
}

fn hex_pair(text: &[u8], wanted: u8) -> Begins {
    let text_after = text.strip_prefix(b"0x").or_else(|| text.strip_prefix(b"0X"));
    let digits = text_after.unwrap_or(text);
    let length = text.len() - digits.len();
    let digits = &digits[..digits.len().min(2)];
    let is_cut = digits.len() < 2;
    match value(digits, 16) {
        Some(found) if !is_cut && found == u32::from(wanted) => Begins::With(length + 2),
        Some(found) if is_cut && (found == u32::from(wanted >> 4) || found == 0) => Begins::Cut,
        None if digits.is_empty() || digits.iter().all(|byte| *byte == b'\\') => Begins::Cut,
        _ => Begins::Otherwise,
    }
}

/// The next number of a dump whose row ends here: behind what the row reads like as a text,
/// and where the next one begins.
fn next_row(text: &[u8], wanted: u8) -> Begins {
    if !(text.starts_with(b"  ") || text.starts_with(b" |")) {
        return Begins::Otherwise;
    }
    let column = &text[..text.len().min(LONGEST_COLUMN)];
    let ends = |at: &usize| column[*at] == b'\n' || escaped_break(&text[*at..]).is_some();
    let Some(mut at) = (0..column.len()).find(ends) else {
        return if column.len() < LONGEST_COLUMN { Begins::Cut } else { Begins::Otherwise };
    };
    at += between(&text[at..], b" \t");
    let offset = text[at..].iter().take(17).take_while(|byte| byte.is_ascii_hexdigit()).count();
    at += offset;
    at += usize::from(text.get(at) == Some(&b':'));
    let spaces = between(&text[at..], b" \t");
    if at + spaces == text.len() {
        return Begins::Cut;
    }
    if !(4..=16).contains(&offset) || spaces == 0 {
        return Begins::Otherwise;
    }
    hex_pair(&text[at + spaces..], wanted).behind(at + spaces)
}

/// How much of `text` is the rest of the last row of a dump: what it reads like as a text.
pub(super) fn rest_of_row(text: &[u8]) -> usize {
    if !(text.starts_with(b"  ") || text.starts_with(b" |")) {
        return 0;
    }
    let (mut at, most) = (0, text.len().min(LONGEST_COLUMN));
    while at < most {
        match text[at] {
            b'\n' | b'\r' | b'"' => break,
            b'\\' if escaped_break(&text[at..]).is_some() => break,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    // Not within a character.
    let at = at.min(text.len());
    (at..text.len()).find(|at| text[*at] & 0xC0 != 0x80).unwrap_or(text.len())
}

/// A number as the name of a field, as JSON writes typed arrays: `"12":`.
fn name(text: &[u8]) -> Begins {
    let quote = |text: &[u8]| {
        escaped_quote(text, b"\"'").or(match text {
            [b'"' | b'\'', ..] => Some(1),
            _ => None,
        })
    };
    let is_cut = |at: usize| text[at..].iter().all(|byte| *byte == b'\\');
    let Some(mut at) = quote(text) else {
        return if is_cut(0) { Begins::Cut } else { Begins::Otherwise };
    };
    let digits = text[at..].iter().take(MOST_DIGITS).take_while(|b| b.is_ascii_digit()).count();
    at += digits;
    if is_cut(at) {
        return Begins::Cut;
    }
    let Some(length) = quote(&text[at..]).filter(|_| digits > 0) else { return Begins::Otherwise };
    at += length;
    at += between(&text[at..], b" ");
    match text.get(at) {
        Some(b':') => Begins::With(at + 1 + between(&text[at + 1..], b" ")),
        Some(_) => Begins::Otherwise,
        None => Begins::Cut,
    }
}

fn decimal(text: &[u8], wanted: u8) -> Begins {
    let mut digits = [0; 3];
    let mut length = 0;
    for (place, divisor) in [100, 10, 1].into_iter().enumerate() {
        if wanted >= divisor || place == 2 {
            digits[length] = b'0' + wanted / divisor % 10;
            length += 1;
        }
    }
    let digits = &digits[..length];
    if text.starts_with(digits) {
        Begins::With(length)
    } else if digits.starts_with(text) || text.iter().all(|byte| *byte == b'\\') {
        Begins::Cut
    } else {
        Begins::Otherwise
    }
}

/// The characters with which `text` may begin, as they are or escaped. Returns whether it
/// ends before another one shows.
fn readings(text: &[u8], found: &mut impl FnMut(u8, usize)) -> bool {
    let Some(first) = text.first() else { return true };
    found(*first, 1);
    escapes(text, found)
}

/// The same of those that are escaped. A backslash is an escape of its own.
pub(super) fn escapes(text: &[u8], found: &mut impl FnMut(u8, usize)) -> bool {
    match text {
        [b'\\', ..] => behind_backslashes(text, found),
        [b'%', ..] => percent(text, found),
        [b'&', ..] => entities(text, 1, found),
        // Quoted-printable.
        [b'=', digits @ ..] => number(digits, (16, 2), 1, found),
        [b'+', ..] => {
            found(b' ', 1);
            false
        }
        _ => false,
    }
}

fn behind_backslashes(text: &[u8], found: &mut impl FnMut(u8, usize)) -> bool {
    let count = backslashes(text);
    // One backslash is written as so many, and others may be of what follows it.
    for times in (0..).map(|again| 1 << again).take_while(|times| *times < count) {
        found(b'\\', times);
    }
    found(b'\\', count);
    let rest = &text[count..];
    match rest {
        [] => true,
        [b'u' | b'x', b'{', digits @ ..] => braced(digits, count + 2, found),
        [b'u', digits @ ..] => {
            let is_cut = number(digits, (16, 4), count + 1, found);
            // An ampersand that JSON escaped may begin an entity.
            is_cut | (digits.starts_with(b"0026") && entities(text, count + 5, found))
        }
        [b'U', digits @ ..] => number(digits, (16, 8), count + 1, found),
        [b'x', digits @ ..] => number(digits, (16, 2), count + 1, found),
        [b'0'..=b'3', ..] => number(rest, (8, 3), count, found),
        [b'4'..=b'7', ..] => number(rest, (8, 2), count, found),
        [mark, ..] if mark.is_ascii_punctuation() => {
            found(*mark, count + 1);
            false
        }
        _ => false,
    }
}

/// A number of so many digits of this radix, which `from` bytes are before.
fn number(
    text: &[u8],
    (radix, length): (u32, usize),
    from: usize,
    found: &mut impl FnMut(u8, usize),
) -> bool {
    let digits = &text[..text.len().min(length)];
    match value(digits, radix) {
        Some(value) if digits.len() == length => {
            if let Ok(byte) = u8::try_from(value) {
                found(byte, from + length);
            }
            false
        }
        Some(_) => true,
        None => digits.is_empty(),
    }
}

/// The same of digits that a brace closes.
fn braced(text: &[u8], from: usize, found: &mut impl FnMut(u8, usize)) -> bool {
    let length = text.iter().take(9).take_while(|byte| byte.is_ascii_hexdigit()).count();
    let byte = value(&text[..length], 16).and_then(|value| u8::try_from(value).ok());
    if let (Some(b'}'), Some(byte)) = (text.get(length), byte) {
        found(byte, from + length + 1);
    }
    length < 9 && length == text.len()
}

/// Percent-encoding, whose percent sign may itself be encoded.
fn percent(text: &[u8], found: &mut impl FnMut(u8, usize)) -> bool {
    let (mut at, mut is_cut) = (1, false);
    for _ in 0..=MOST_AGAIN {
        is_cut |= match &text[at..] {
            [b'u', digits @ ..] => number(digits, (16, 4), at + 1, found),
            digits => number(digits, (16, 2), at, found),
        };
        if !text[at..].starts_with(b"25") {
            break;
        }
        at += 2;
    }
    is_cut
}

/// An entity whose ampersand may itself be one, and ends at `at`.
fn entities(text: &[u8], mut at: usize, found: &mut impl FnMut(u8, usize)) -> bool {
    let mut is_cut = false;
    for _ in 0..=MOST_AGAIN {
        let rest = &text[at..];
        is_cut |= entity(rest, at, found);
        let ampersand = [b"amp;".as_slice(), b"#38;", b"#x26;", b"#X26;"];
        let Some(again) = ampersand.into_iter().find(|again| rest.starts_with(again)) else {
            break;
        };
        at += again.len();
    }
    is_cut
}

/// The rest of an entity, behind its ampersand. A number may do without the semicolon.
fn entity(text: &[u8], from: usize, found: &mut impl FnMut(u8, usize)) -> bool {
    let (sign, radix) = match text {
        [b'#', b'x' | b'X', ..] => (2, 16),
        [b'#', ..] => (1, 10),
        _ => (0, 36),
    };
    let part = |byte: &&u8| char::from(**byte).is_digit(radix);
    let length = text[sign..].iter().take(LONGEST_ENTITY).take_while(part).count();
    let end = sign + length;
    let Some(next) = text.get(end) else { return text.len() < LONGEST_ENTITY };
    let name = &text[sign..end];
    let value = if sign == 0 { named(name).map(u32::from) } else { value(name, radix) };
    if let Some(byte) = value.and_then(|value| u8::try_from(value).ok()) {
        if sign > 0 {
            found(byte, from + end);
        }
        if *next == b';' {
            found(byte, from + end + 1);
        }
    }
    false
}

/// The character of ASCII that an entity names (HTML, section 13.5); hyphens, too, which are
/// others and look alike.
fn named(name: &[u8]) -> Option<u8> {
    Some(match name {
        b"Tab" => b'\t',
        b"excl" => b'!',
        b"quot" | b"QUOT" => b'"',
        b"num" => b'#',
        b"dollar" => b'$',
        b"percnt" => b'%',
        b"amp" | b"AMP" => b'&',
        b"apos" => b'\'',
        b"lpar" => b'(',
        b"rpar" => b')',
        b"ast" | b"midast" => b'*',
        b"plus" => b'+',
        b"comma" => b',',
        b"hyphen" | b"dash" => b'-',
        b"period" => b'.',
        b"sol" => b'/',
        b"colon" => b':',
        b"semi" => b';',
        b"lt" | b"LT" => b'<',
        b"equals" => b'=',
        b"gt" | b"GT" => b'>',
        b"quest" => b'?',
        b"commat" => b'@',
        b"lsqb" | b"lbrack" => b'[',
        b"bsol" => b'\\',
        b"rsqb" | b"rbrack" => b']',
        b"Hat" => b'^',
        b"lowbar" | b"UnderBar" => b'_',
        b"grave" | b"DiacriticalGrave" => b'`',
        b"lcub" | b"lbrace" => b'{',
        b"verbar" | b"vert" | b"VerticalLine" => b'|',
        b"rcub" | b"rbrace" => b'}',
        _ => return None,
    })
}

/// A number of a few digits; none when there is none, or something else.
fn value(digits: &[u8], radix: u32) -> Option<u32> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let digit = |digit: &u8| char::from(*digit).to_digit(radix);
    digits.iter().try_fold(0_u32, |sum, byte| Some(sum * radix + digit(byte)?))
}
