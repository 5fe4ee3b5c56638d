//! How one character of a secret may be spelled in an answer: as it is, by an escape of
//! JSON (also of JSON within JSON), in percent-encoding, or as an entity of HTML.

/// Backslashes before one escape: JSON within JSON doubles them each time.
const MOST_BACKSLASHES: usize = 32;
/// The longest entity that is read, `&DiacriticalGrave;`.
const LONGEST_ENTITY: usize = 18;
/// How often a percent sign may be encoded again, as `%25`.
const MOST_AGAIN: usize = 4;

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

/// Whether `text` begins with the character `wanted`.
pub(super) fn begins(text: &[u8], wanted: u8) -> Begins {
    let Some(first) = text.first() else { return Begins::Cut };
    match first {
        b'\\' => escaped(text, wanted),
        b'%' => percent(text, wanted),
        b'&' => entity(text, wanted),
        b'+' if wanted == b' ' => Begins::With(1),
        byte if *byte == wanted => Begins::With(1),
        _ => Begins::Otherwise,
    }
}

/// The number of bytes by which `wanted` is spelled at the end of `text`; none when the
/// text ends otherwise.
pub(super) fn ends(text: &[u8], wanted: u8) -> Option<usize> {
    let last = *text.last()?;
    let hex = |digits: &[u8]| value(digits, 16) == Some(u32::from(wanted));
    if let Some((before, [b'u', digits @ ..])) = text.split_last_chunk::<5>()
        && before.ends_with(b"\\")
        && hex(digits)
    {
        return Some(5 + backslashes_before(before));
    }
    if let Some((mut before, digits)) = text.split_last_chunk::<2>()
        && hex(digits)
    {
        for _ in 0..MOST_AGAIN {
            before = before.strip_suffix(b"25").unwrap_or(before);
        }
        if before.ends_with(b"%") {
            return Some(text.len() - before.len() + 1);
        }
    }
    if last == b';' {
        let from = text.len().saturating_sub(LONGEST_ENTITY);
        let start = memchr::memrchr(b'&', &text[from..])? + from;
        if let Begins::With(length) = entity(&text[start..], wanted)
            && start + length == text.len()
        {
            return Some(length);
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

/// How many backslashes `text` ends with.
pub(super) fn backslashes_before(text: &[u8]) -> usize {
    text.iter().rev().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count()
}

fn escaped(text: &[u8], wanted: u8) -> Begins {
    let count = text.iter().take(MOST_BACKSLASHES).take_while(|byte| **byte == b'\\').count();
    let rest = &text[count..];
    let Some(next) = rest.first() else { return Begins::Cut };
    let otherwise = if wanted == b'\\' { Begins::With(count) } else { Begins::Otherwise };
    if *next == b'u' {
        let digits = &rest[1..rest.len().min(5)];
        return match value(digits, 16) {
            Some(found) if digits.len() == 4 && found == u32::from(wanted) => {
                Begins::With(count + 5)
            }
            None if digits.is_empty() => Begins::Cut,
            Some(_) if digits.len() < 4 => Begins::Cut,
            _ => otherwise,
        };
    }
    if *next == wanted && wanted.is_ascii_punctuation() {
        return Begins::With(count + 1);
    }
    otherwise
}

fn percent(text: &[u8], wanted: u8) -> Begins {
    let mut rest = &text[1..];
    for _ in 0..MOST_AGAIN {
        rest = rest.strip_prefix(b"25").unwrap_or(rest);
    }
    let length = text.len() - rest.len();
    let digits = &rest[..rest.len().min(2)];
    match value(digits, 16) {
        Some(found) if digits.len() == 2 && found == u32::from(wanted) => Begins::With(length + 2),
        _ if wanted == b'%' => Begins::With(length),
        None if digits.is_empty() => Begins::Cut,
        Some(_) if digits.len() < 2 => Begins::Cut,
        _ => Begins::Otherwise,
    }
}

fn entity(text: &[u8], wanted: u8) -> Begins {
    let otherwise = if wanted == b'&' { Begins::With(1) } else { Begins::Otherwise };
    let name = &text[1..text.len().min(LONGEST_ENTITY)];
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'#';
    let Some(end) = name.iter().position(|byte| !part(byte)) else {
        return if text.len() < LONGEST_ENTITY { Begins::Cut } else { otherwise };
    };
    let found = match &name[..end] {
        [b'#', b'x' | b'X', digits @ ..] => value(digits, 16),
        [b'#', digits @ ..] => value(digits, 10),
        name => named(name).map(u32::from),
    };
    let is_it = name[end] == b';' && found == Some(u32::from(wanted));
    if is_it { Begins::With(end + 2) } else { otherwise }
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
