//! What a regular expression can not tell: checksums, who issues which numbers, whether a
//! text is a value or a word.

use super::rules::COUNTRIES;

/// A group of digits stands together so far from the next.
const MOST_BETWEEN: usize = 2;
/// The lengths of card numbers (ISO/IEC 7812).
const CARD: std::ops::RangeInclusive<usize> = 12..=19;

/// Card numbers in a text: digits, in one piece or in groups, that an issuer may have
/// given out and whose checksum is right.
pub(super) fn cards(text: &str) -> Vec<(usize, usize)> {
    let (bytes, mut found) = (text.as_bytes(), vec![]);
    let mut at = 0;
    while let Some(start) = bytes.get(at..).and_then(|r| r.iter().position(u8::is_ascii_digit)) {
        let row = Row::at(bytes, at + start);
        at = row.digits.last().map_or(bytes.len(), |last| last + 1);
        row.cards(bytes, &mut found);
    }
    found
}

/// Digits with at most two separators between any of them.
struct Row {
    /// Where each digit is.
    digits: Vec<usize>,
}

impl Row {
    fn at(bytes: &[u8], start: usize) -> Self {
        let (mut digits, mut between) = (vec![start], 0);
        for (at, byte) in bytes.iter().enumerate().skip(start + 1) {
            if byte.is_ascii_digit() {
                digits.push(at);
                between = 0;
            } else if b" ._/\n-".contains(byte) && between < MOST_BETWEEN {
                between += 1;
            } else {
                break;
            }
        }
        Self { digits }
    }

    /// Whether a group begins with this digit, or would behind the last.
    fn begins(&self, index: usize) -> bool {
        match (index.checked_sub(1).and_then(|b| self.digits.get(b)), self.digits.get(index)) {
            (Some(before), Some(at)) => *at > before + 1,
            _ => true,
        }
    }

    fn cards(&self, bytes: &[u8], found: &mut Vec<(usize, usize)>) {
        let mut from = 0;
        while from + CARD.start() <= self.digits.len() {
            let length = self.begins(from).then(|| self.length(bytes, from)).flatten();
            if let Some(length) = length {
                found.push((self.digits[from], self.digits[from + length - 1] + 1));
            }
            from += length.unwrap_or(1);
        }
    }

    /// How many digits from here on are a card.
    fn length(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let value = |at: &usize| u32::from(bytes[*at] - b'0');
        let first: Vec<u32> = self.digits[from..].iter().take(6).map(value).collect();
        let prefix = first.iter().fold(0, |sum, digit| sum * 10 + digit);
        let mut lengths = CARD.rev();
        lengths.find(|length| {
            let Some(digits) = self.digits.get(from..from + length) else { return false };
            let all: Vec<u32> = digits.iter().map(value).collect();
            self.begins(from + length)
                && is_issued(prefix, *length)
                && self.is_grouped(from, *length)
                && !self.is_of_another_kind(bytes, from, *length)
                && luhn(&all)
        })
    }

    /// In one piece, or by fours, or as American Express and Diners print it.
    fn is_grouped(&self, from: usize, length: usize) -> bool {
        let mut groups: Vec<usize> = vec![];
        for index in from..from + length {
            match groups.last_mut() {
                Some(last) if index > from && !self.begins(index) => *last += 1,
                _ => groups.push(1),
            }
        }
        match groups.as_slice() {
            [_] | [4, 6, 4 | 5] => true,
            [fours @ .., last] => fours.iter().all(|group| *group == 4) && *last <= 7,
            [] => false,
        }
    }

    /// The digits behind a point, or a part of a hash.
    fn is_of_another_kind(&self, bytes: &[u8], from: usize, length: usize) -> bool {
        let (start, end) = (self.digits[from], self.digits[from + length - 1] + 1);
        let before = |back: usize| start.checked_sub(back).and_then(|at| bytes.get(at));
        let is_fraction = before(1).is_some_and(|b| b".,".contains(b))
            && before(2).is_some_and(u8::is_ascii_digit);
        let hex = |byte: &&u8| byte.is_ascii_hexdigit() && byte.is_ascii_alphanumeric();
        let around = bytes[..start].iter().rev().take(24).take_while(hex).count()
            + bytes[end..].iter().take(24).take_while(hex).count();
        is_fraction || (around > 0 && around + (end - start) >= 24)
    }
}

/// Whether an issuer gives out numbers that begin with these six digits and are so long.
fn is_issued(prefix: u32, length: usize) -> bool {
    let begins =
        |from: u32, to: u32, digits: u32| (from..=to).contains(&(prefix / 10_u32.pow(6 - digits)));
    match length {
        13 => begins(4, 4, 1),
        14 => begins(300, 305, 3) || begins(36, 36, 2) || begins(38, 39, 2),
        15 => begins(34, 34, 2) || begins(37, 37, 2),
        12 => begins(5018, 5018, 4) || begins(5020, 5020, 4) || begins(6304, 6304, 4),
        16..=19 => {
            // American Express has 15 digits.
            let others = begins(4, 4, 1) && (length == 16 || length == 19);
            others
                || (length == 16
                    && (begins(51, 55, 2) || begins(2221, 2720, 4) || begins(2200, 2204, 4)))
                || begins(6011, 6011, 4)
                || begins(644, 659, 3)
                || begins(3528, 3589, 4)
                || begins(62, 62, 2)
                || begins(81, 81, 2)
                || begins(60, 60, 2)
                || begins(6304, 6304, 4)
                || begins(6759, 6763, 4)
                || begins(5018, 5038, 4)
        }
        _ => false,
    }
}

/// The checksum of payment cards (ISO/IEC 7812-1, Luhn).
fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, digit)| match (index % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled @ 0..=9) => doubled,
            (_, doubled) => doubled - 9,
        })
        .sum();
    sum > 0 && sum.is_multiple_of(10)
}

/// How much of a text is an account number: as long as its country's are, with the right
/// checksum (ISO 13616, modulo 97).
pub(super) fn iban(text: &str) -> Option<usize> {
    let country = text.get(..2)?.to_ascii_uppercase();
    let (_, length) = COUNTRIES.iter().find(|(code, _)| *code == country)?;
    let mut digits = vec![];
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let Some(digit) = c.to_digit(36) else { continue };
        if digits.len() == *length {
            // One that goes on is none.
            return (at > end).then_some(end).filter(|_| checks_97(&digits));
        }
        digits.push(digit);
        end = at + c.len_utf8();
    }
    (digits.len() == *length && checks_97(&digits)).then_some(end)
}

fn checks_97(digits: &[u32]) -> bool {
    let (head, rest) = digits.split_at(4.min(digits.len()));
    let rest = rest.iter().chain(head).fold(0, |rest, digit| {
        let shift = if *digit > 9 { 100 } else { 10 };
        (rest * shift + digit) % 97
    });
    rest == 1
}

/// Whether the Social Security Administration gives out such a number.
pub(super) fn ssn(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let invented = ["000", "666", "9"].iter().any(|area| digits.starts_with(area));
    digits.len() == 9 && !invented && &digits[3..5] != "00" && &digits[5..] != "0000"
}

/// Whether ten digits, or eleven with a 1 before them, are a number of North America.
pub(super) fn north_american(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let [a, b, c, d, e, f, ..] = *(match digits.as_slice() {
        [1, rest @ ..] if rest.len() == 10 => rest,
        all if all.len() == 10 => all,
        _ => return false,
    }) else {
        return false;
    };
    let area = a >= 2 && b != 9 && (b, c) != (1, 1) && (a, b) != (3, 7) && (a, b) != (9, 6);
    // 200, 300 and 400 are counts of something, and no areas.
    let is_count = a < 5 && (b, c) == (0, 0);
    area && !is_count && d >= 2 && (e, f) != (1, 1)
}

/// The same without anything that tells it from another number but that it stands alone
/// in a sentence.
pub(super) fn alone(before: &str, text: &str) -> bool {
    const NUMBERED: [&str; 26] = [
        "order",
        "invoice",
        "ticket",
        "case",
        "id",
        "no",
        "nr",
        "number",
        "ref",
        "reference",
        "sku",
        "isbn",
        "account",
        "tracking",
        "serial",
        "build",
        "version",
        "job",
        "pid",
        "port",
        "timestamp",
        "size",
        "offset",
        "item",
        "customer",
        "seed",
    ];
    let value: u64 = text.parse().unwrap_or_default();
    let is_round =
        value.is_power_of_two() || (value + 1).is_power_of_two() || value.is_multiple_of(1000);
    let words = before.trim_end().trim_end_matches('.');
    let word = words.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let sets_off = before.is_empty() || before.ends_with([' ', '\n', '(']);
    let is_value =
        words.ends_with([':', '=', '#', '$', '€', '£', '-', '/', ',', '+', '*', '<', '>']);
    let is_numbered = NUMBERED.contains(&word.to_lowercase().as_str());
    let in_a_row = word.bytes().any(|b| b.is_ascii_digit());
    sets_off && !is_value && !is_numbered && !in_a_row && !is_round && north_american(text)
}

/// Whether a number with a plus, or two zeros, before it is as long as a telephone's.
pub(super) fn international(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let apart = text.contains([' ', '.', '-', '(', '/']);
    let digits = digits - if text.starts_with("00") { 2 } else { 0 };
    (if apart { 8 } else { 10 }..=15).contains(&digits)
}

/// Whether what looks like a mail address is none: a picture for dense screens, a
/// repository's address.
pub(super) fn is_mail(text: &str) -> bool {
    let (local, domain) = text.split_once('@').unwrap_or((text, ""));
    let first = domain.trim().split('.').next().unwrap_or_default();
    let is_density =
        first.len() == 2 && first.ends_with('x') && first.as_bytes()[0].is_ascii_digit();
    !is_density && local.trim() != "git"
}

/// Whether what was assigned to a password, key or token is a value: no word, no type, no
/// variable, no call.
pub(super) fn is_value(text: &str) -> bool {
    const WORDS: [&str; 24] = [
        "required",
        "optional",
        "string",
        "password",
        "undefined",
        "null",
        "none",
        "true",
        "false",
        "secret",
        "hidden",
        "boolean",
        "integer",
        "number",
        "object",
        "changeme",
        "example",
        "expired",
        "invalid",
        "missing",
        "unknown",
        "redacted",
        "incorrect",
        "protected",
    ];
    let value = text.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '}']);
    let lower = value.to_ascii_lowercase();
    let calls = ["(", "{", "[", "<", "$", "**", "..", "env.", "process.", "self.", "os.", "xxx"];
    if value.len() < 6
        || WORDS.contains(&lower.as_str())
        || calls.iter().any(|call| lower.contains(call))
        || lower.starts_with('%')
        || lower.starts_with("your")
    {
        return false;
    }
    has_digit(value) || value.contains(['!', '@', '#', '^', '&', '*', '+', '~']) || mixes(value)
}

/// The same where `password=` stands right before it: words are passwords, too.
pub(super) fn is_password(text: &str) -> bool {
    let letters = text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_lowercase());
    is_value(text) || (letters && is_value(&format!("{text}1")) && !is_a_type(text))
}

fn is_a_type(text: &str) -> bool {
    ["required", "optional", "password", "undefined", "expired", "incorrect", "protected"]
        .contains(&text)
}

/// Capital letters within, and small ones.
fn mixes(text: &str) -> bool {
    let inner = text.bytes().skip(1);
    inner.clone().filter(u8::is_ascii_uppercase).count() >= 2
        && inner.filter(u8::is_ascii_lowercase).count() >= 2
}

pub(super) fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}

/// A token after `Bearer`: no word of a sentence.
pub(super) fn is_token(text: &str) -> bool {
    has_digit(text) || (text.len() >= 16 && mixes(text))
}

/// Whether it looks drawn by chance: letters of both cases and digits, which change all the
/// time, and few of which come often (Shannon's entropy of its characters, in bits).
pub(super) fn is_random(text: &str) -> bool {
    let class = |byte: u8| match byte {
        b'a'..=b'z' => 0_u8,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let bytes = text.as_bytes();
    let all = (0..3).all(|wanted| bytes.iter().any(|byte| class(*byte) == wanted));
    let changes = bytes.windows(2).filter(|pair| class(pair[0]) != class(pair[1])).count();
    let mut counts = [0_u32; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let length = bytes.len() as f64;
    let entropy: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f64::from(*count) / length)
        .map(|share| -share * share.log2())
        .sum();
    all && changes * 3 >= bytes.len() && entropy >= 4.25
}
