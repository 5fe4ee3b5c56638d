//! How one character of a secret may be spelled in an answer: as it is, by an escape of
//! JSON (also of JSON within JSON) or of a programming language, in percent-encoding, in
//! quoted-printable, or as an entity of HTML, whose ampersand may be escaped once more. And
//! what may be between two parts of a text that was encoded: line breaks, separators.
//!
//! All of these have a bound, so that one part of a text is read in at most `LONGEST` bytes.

use super::forms::Form;

/// Backslashes before one escape: JSON within JSON doubles them each time.
const MOST_BACKSLASHES: usize = 32;
/// The longest escape of one character that is looked for backwards.
const LONGEST_ESCAPE: usize = MOST_BACKSLASHES + 16;
/// The longest entity that is read, `&DiacriticalGrave;`.
const LONGEST_ENTITY: usize = 18;
/// How often a percent sign or an ampersand may be encoded again, as `%25` or `&amp;`.
const MOST_AGAIN: usize = 4;
/// So much may be between two numbers of a list, or be a line break and its indentation.
const MOST_BETWEEN: usize = 32;
/// Behind the numbers of a dump's line, the rest of the line has at most so many bytes.
const LONGEST_COLUMN: usize = 96;
/// The most bytes of one part of a text, with what is before it.
pub(super) const LONGEST: usize = 192;

/// What a text begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// With the character, in so many bytes.
    With(usize),
    /// The text ends before that shows.
    Cut,
    /// With something else.
    Otherwise,
}

/// Whether `text` goes on with the part `wanted` of a text of this form, which is the part
/// number `index` in it.
pub(super) fn goes_on(text: &[u8], wanted: u8, form: Form, index: usize) -> Begins {
    let plain = |from: usize| match text.get(from..) {
        Some(rest) => begins(rest, wanted).behind(from),
        None => Begins::Otherwise,
    };
    match form {
        Form::Characters => match plain(0) {
            Begins::Otherwise if index > 0 => soft_break(text).map_or(Begins::Otherwise, plain),
            found => found,
        },
        Form::Lines => match plain(0) {
            Begins::Otherwise if index > 0 => match between(text, b" \t") {
                0 => Begins::Otherwise,
                length => plain(length),
            },
            found => found,
        },
        Form::Hex => {
            let length = if index == 0 { 0 } else { between(text, b" \t:,-") };
            match hex_pair(&text[length..], wanted).behind(length) {
                Begins::Otherwise if index > 0 => next_row(text, wanted),
                found => found,
            }
        }
        Form::Decimal => {
            let length = if index == 0 { 0 } else { between(text, b" \t,") };
            decimal(&text[length..], wanted).behind(length)
        }
    }
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
            [b'\\', ..] => match escaped_break(rest) {
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

/// The length of `\n`, `\r` or `\t` at the beginning of `text`, whose backslash may be
/// doubled.
fn escaped_break(text: &[u8]) -> Option<usize> {
    let count = text.iter().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count();
    (count > 0 && matches!(text.get(count), Some(b'n' | b'r' | b't'))).then_some(count + 1)
}

/// The length of a line break of quoted-printable.
fn soft_break(text: &[u8]) -> Option<usize> {
    let rest = text.strip_prefix(b"=")?;
    let length = between(rest, b"");
    (length > 0).then_some(length + 1)
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

/// Where an escape begins whose anchor is behind this text; the anchor begins with `first`.
pub(super) fn escape_before(text: &[u8], first: u8) -> usize {
    let again = |mut before: &[u8], again: &[u8], signs: [&[u8]; 2]| {
        for _ in 0..MOST_AGAIN {
            before = before.strip_suffix(again).unwrap_or(before);
        }
        let sign = signs.into_iter().find(|sign| before.ends_with(sign));
        sign.map_or(0, |sign| text.len() - before.len() + sign.len())
    };
    match first {
        b'a' => match again(text, b"amp;", [b"&", b"u0026"]) {
            length if text[text.len() - length..].starts_with(b"u") => {
                length + backslashes_before(&text[..text.len() - length])
            }
            length => length,
        },
        b'u' if text.last() != Some(&b'\\') => again(text, b"25", [b"%"; 2]),
        b'u' | b'U' | b'x' | b'\\' => backslashes_before(text),
        _ => 0,
    }
}

/// Whether `text` begins with the character `wanted`.
fn begins(text: &[u8], wanted: u8) -> Begins {
    let Some(first) = text.first() else { return Begins::Cut };
    match first {
        b'\\' => escaped(text, wanted),
        b'%' => percent(text, wanted),
        b'&' => entities(text, wanted),
        b'=' => quoted(text, wanted),
        b'+' if wanted == b' ' => Begins::With(1),
        byte if *byte == wanted => Begins::With(1),
        _ => Begins::Otherwise,
    }
}

/// The number of bytes by which `wanted` is spelled at the end of `text`; none when the
/// text ends otherwise.
pub(super) fn ends(text: &[u8], wanted: u8) -> Option<usize> {
    let last = *text.last()?;
    // An escape ends like a digit, a name or a semicolon; the longest one is meant.
    if last.is_ascii_hexdigit() || matches!(last, b';' | b'}') {
        let from = text.len().saturating_sub(LONGEST_ESCAPE);
        let is_it = |at: &usize| {
            let rest = &text[*at..];
            matches!(rest[0], b'\\' | b'%' | b'&' | b'=')
                && match begins(rest, wanted) {
                    Begins::With(length) => length == rest.len(),
                    // A number's end shows by what follows it.
                    Begins::Cut => at_end(rest, |text| begins(text, wanted)) == Some(rest.len()),
                    Begins::Otherwise => false,
                }
        };
        if let Some(at) = (from..text.len() - 1).find(is_it) {
            return Some(text.len() - at);
        }
    }
    match wanted {
        b'\\' => Some(backslashes_before(text)).filter(|count| *count > 0),
        b' ' if last == b'+' => Some(1),
        _ if last != wanted => None,
        _ if wanted.is_ascii_alphanumeric() => Some(1),
        _ => Some(1 + backslashes_before(&text[..text.len() - 1])),
    }
}

/// The length of a line break of quoted-printable at the end of `text`.
pub(super) fn soft_break_before(text: &[u8]) -> usize {
    let from = text.len().saturating_sub(MOST_BETWEEN);
    let ends = |at: &usize| soft_break(&text[*at..]) == Some(text.len() - at);
    memchr::memrchr_iter(b'=', &text[from..])
        .map(|at| from + at)
        .find(ends)
        .map_or(0, |at| text.len() - at)
}

/// What `text` begins with where nothing follows it: how many of its bytes.
pub(super) fn at_end(text: &[u8], begins: impl Fn(&[u8]) -> Begins) -> Option<usize> {
    match begins(&[text, b";"].concat()) {
        Begins::With(length) => Some(length.min(text.len())),
        Begins::Cut | Begins::Otherwise => None,
    }
}

/// How many backslashes `text` ends with.
pub(super) fn backslashes_before(text: &[u8]) -> usize {
    text.iter().rev().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count()
}

fn escaped(text: &[u8], wanted: u8) -> Begins {
    let count = text.iter().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count();
    let rest = &text[count..];
    let Some(next) = rest.first() else { return Begins::Cut };
    let otherwise = if wanted == b'\\' { Begins::With(count) } else { Begins::Otherwise };
    if rest.starts_with(b"u0026") {
        // An ampersand that JSON escaped may begin an entity.
        match entity_behind(&rest[5..], wanted) {
            Begins::Otherwise => {}
            found => return found.behind(count + 5),
        }
    }
    let found = match rest {
        [b'u', b'{', rest @ ..] => braced(rest, wanted).behind(2),
        [b'u', rest @ ..] => digits(rest, (16, 4), wanted).behind(1),
        [b'U', rest @ ..] => digits(rest, (16, 8), wanted).behind(1),
        [b'x', rest @ ..] => digits(rest, (16, 2), wanted).behind(1),
        [b'0'..=b'3', ..] => digits(rest, (8, 3), wanted),
        _ => Begins::Otherwise,
    };
    if found != Begins::Otherwise {
        return found.behind(count);
    }
    if *next == wanted && wanted.is_ascii_punctuation() {
        return Begins::With(count + 1);
    }
    otherwise
}

/// Whether `text` begins with the number of `wanted`, in so many digits of this radix.
fn digits(text: &[u8], (radix, length): (u32, usize), wanted: u8) -> Begins {
    let digits = &text[..text.len().min(length)];
    match value(digits, radix) {
        Some(found) if digits.len() == length && found == u32::from(wanted) => Begins::With(length),
        None if digits.is_empty() => Begins::Cut,
        Some(_) if digits.len() < length => Begins::Cut,
        _ => Begins::Otherwise,
    }
}

/// The same of digits that a brace closes.
fn braced(text: &[u8], wanted: u8) -> Begins {
    let length = text.iter().take(9).take_while(|byte| byte.is_ascii_hexdigit()).count();
    match text.get(length) {
        Some(b'}') if value(&text[..length], 16) == Some(u32::from(wanted)) => {
            Begins::With(length + 1)
        }
        None if length < 9 => Begins::Cut,
        _ => Begins::Otherwise,
    }
}

/// Quoted-printable.
fn quoted(text: &[u8], wanted: u8) -> Begins {
    match digits(&text[1..], (16, 2), wanted) {
        Begins::Otherwise if wanted == b'=' => Begins::With(1),
        found => found.behind(1),
    }
}

fn percent(text: &[u8], wanted: u8) -> Begins {
    let mut rest = &text[1..];
    for _ in 0..MOST_AGAIN {
        rest = rest.strip_prefix(b"25").unwrap_or(rest);
    }
    let length = text.len() - rest.len();
    let found = match rest {
        [b'u', rest @ ..] => digits(rest, (16, 4), wanted).behind(1),
        rest => digits(rest, (16, 2), wanted),
    };
    match found {
        Begins::Otherwise if wanted == b'%' => Begins::With(length),
        found => found.behind(length),
    }
}

/// An entity whose ampersand may itself be one.
fn entities(text: &[u8], wanted: u8) -> Begins {
    match entity_behind(&text[1..], wanted) {
        Begins::Otherwise if wanted == b'&' => Begins::With(1),
        found => found.behind(1),
    }
}

/// An entity whose first ampersand was read.
fn entity_behind(mut text: &[u8], wanted: u8) -> Begins {
    let mut length = 0;
    for _ in 0..=MOST_AGAIN {
        match entity(text, wanted) {
            Begins::Otherwise => {}
            found => return found.behind(length),
        }
        let ampersand = [b"amp;".as_slice(), b"#38;", b"#x26;", b"#X26;"];
        let Some(again) = ampersand.into_iter().find(|again| text.starts_with(again)) else {
            break;
        };
        length += again.len();
        text = &text[again.len()..];
    }
    Begins::Otherwise
}

/// The rest of an entity, behind its ampersand. A number may do without the semicolon.
fn entity(text: &[u8], wanted: u8) -> Begins {
    let (sign, radix) = match text {
        [b'#', b'x' | b'X', ..] => (2, 16),
        [b'#', ..] => (1, 10),
        _ => (0, 36),
    };
    let part = |byte: &&u8| char::from(**byte).is_digit(radix);
    let length = text[sign..].iter().take(LONGEST_ENTITY).take_while(part).count();
    let end = sign + length;
    let Some(next) = text.get(end) else {
        return if text.len() < LONGEST_ENTITY { Begins::Cut } else { Begins::Otherwise };
    };
    let name = &text[sign..end];
    let found = if sign == 0 { named(name).map(u32::from) } else { value(name, radix) };
    match next {
        _ if found != Some(u32::from(wanted)) => Begins::Otherwise,
        b';' => Begins::With(end + 1),
        _ if sign > 0 => Begins::With(end),
        _ => Begins::Otherwise,
    }
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
    digits.iter().try_fold(0_u32, |sum, digit| {
        sum.checked_mul(radix)?.checked_add(char::from(*digit).to_digit(radix)?)
    })
}
