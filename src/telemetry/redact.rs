//! What must not leave the process, taken out of what was said.
//!
//! The rules are regular expressions of the `regex` crate, which takes time linear in the
//! text whatever the expression: nobody can stall a gateway with a crafted prompt. Card
//! and account numbers are checked by their checksum as well, so that order numbers stay
//! readable. Rules are applied to the texts within a message, after JSON's escapes are
//! undone: `\u0040` hides no address.
//!
//! This catches forms, not meaning: a name or a diagnosis in plain words has none. Where
//! those are said, content should stay off, which is the default.

use std::{borrow::Cow, fmt::Write, str::FromStr};

use regex::Regex;
use serde_json::Value;

/// A kind of text with a form of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// API keys, tokens, private keys.
    Secret,
    /// Mail addresses.
    Email,
    /// Bank accounts.
    Iban,
    /// Payment cards.
    Card,
    /// US social security numbers.
    Ssn,
    /// Telephone numbers, international or in the form of North America.
    Phone,
}

impl Kind {
    /// All, in the order in which they are applied.
    pub const ALL: [Self; 6] =
        [Self::Secret, Self::Email, Self::Iban, Self::Card, Self::Ssn, Self::Phone];

    /// What stands in the place of such a text, and the word of the option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Email => "email",
            Self::Iban => "iban",
            Self::Card => "card",
            Self::Ssn => "ssn",
            Self::Phone => "phone",
        }
    }

    fn expression(self) -> &'static str {
        match self {
            Self::Secret => concat!(
                r"(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{16,}",
                r"|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}",
                r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
                r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}",
                r"|\bglpat-[A-Za-z0-9_-]{20,}|\bxox[abeprs]-[A-Za-z0-9-]{10,}",
                r"|\bAIza[0-9A-Za-z_-]{35}|\bhf_[A-Za-z0-9]{30,}",
                r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
                r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
            ),
            Self::Email => {
                r"(?i)[\p{L}\p{N}._%+'-]+@[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?(?:\.[\p{L}\p{N}-]{2,})+"
            }
            Self::Iban => r"(?i)\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b",
            Self::Card => r"\b\d(?:[ -]?\d){12,18}\b",
            Self::Ssn => r"\b\d{3}-\d{2}-\d{4}\b",
            Self::Phone => {
                r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}\b|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b"
            }
        }
    }

    /// How much of a match is really of this kind; none when nothing is.
    fn confirm(self, found: &str) -> Option<usize> {
        match self {
            Self::Card => luhn(found).then_some(found.len()),
            Self::Iban => longest(found, iban),
            Self::Ssn => {
                let invented = ["000", "666", "9"].iter().any(|area| found.starts_with(area));
                (!invented).then_some(found.len())
            }
            Self::Secret | Self::Email | Self::Phone => Some(found.len()),
        }
    }
}

impl FromStr for Kind {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| RuleError::Unknown(text.to_owned()))
    }
}

/// Why a rule can not be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// No built-in rule has this name.
    #[error("there is no rule {0}: choose among secret, email, iban, card, ssn and phone")]
    Unknown(String),
    /// It is no regular expression.
    #[error("{0}")]
    Expression(#[from] regex::Error),
}

struct Rule {
    kind: Option<Kind>,
    expression: Regex,
}

/// The rules that a process applies.
pub struct Redaction {
    rules: Vec<Rule>,
}

impl Redaction {
    /// Built-in rules and expressions of one's own, which are applied first.
    ///
    /// # Errors
    /// An expression is none.
    pub fn new(kinds: &[Kind], own: &[String]) -> Result<Self, RuleError> {
        let own = own.iter().map(|text| (None, text.as_str()));
        let kinds = Kind::ALL.into_iter().filter(|kind| kinds.contains(kind));
        let rules = own
            .chain(kinds.map(|kind| (Some(kind), kind.expression())))
            .map(|(kind, text)| Ok(Rule { kind, expression: Regex::new(text)? }))
            .collect::<Result<_, regex::Error>>()?;
        Ok(Self { rules })
    }

    /// The text without what the rules find.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for rule in &self.rules {
            if let Some(without) = rule.applied(&text) {
                text = Cow::Owned(without);
            }
        }
        text
    }

    /// Applies the rules to every text of a JSON value. Keys stay: they are the
    /// application's, and a changed one would mean something else.
    pub fn json(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(without) = self.text(text) {
                    *text = without;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.json(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

impl Rule {
    fn applied(&self, text: &str) -> Option<String> {
        let mut out = String::new();
        let (mut copied, mut from) = (0, 0);
        while let Some(found) = self.expression.find_at(text, from) {
            let length = match self.kind {
                Some(kind) => kind.confirm(found.as_str()),
                None => Some(found.len()).filter(|length| *length > 0),
            };
            let Some(length) = length else {
                // Not one; but one may begin within it.
                from = next_boundary(text, found.start(), found.end());
                continue;
            };
            let end = found.start() + length;
            out.push_str(text.get(copied..found.start())?);
            let word = self.kind.map_or("text", Kind::as_str);
            // Writing to a String does not fail.
            let _ = write!(out, "[redacted:{word}]");
            (copied, from) = (end, end);
        }
        if copied == 0 {
            return None;
        }
        out.push_str(text.get(copied..)?);
        Some(out)
    }
}

/// Where a search goes on after a match that was none: behind the first separator in it,
/// or behind it, so that a text is looked at a bounded number of times.
fn next_boundary(text: &str, start: usize, end: usize) -> usize {
    if start == end {
        let step = text.get(start..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
        return start + step;
    }
    let found = text.get(start..end).unwrap_or_default();
    found.find([' ', '-']).map_or(end, |at| start + at + 1)
}

/// The longest beginning of `text` that ends where a group ends and satisfies `is`.
fn longest(text: &str, is: fn(&str) -> bool) -> Option<usize> {
    let ends = text.rmatch_indices([' ', '-']).map(|(at, _)| at);
    std::iter::once(text.len()).chain(ends).find(|end| text.get(..*end).is_some_and(is))
}

/// The checksum of payment cards (ISO/IEC 7812-1, Luhn).
fn luhn(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
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
    // A row of zeros is no card.
    sum > 0 && sum % 10 == 0
}

/// The checksum of bank accounts (ISO 13616, modulo 97).
fn iban(text: &str) -> bool {
    let plain: Vec<u32> =
        text.chars().filter(|c| c.is_ascii_alphanumeric()).filter_map(|c| c.to_digit(36)).collect();
    if !(15..=34).contains(&plain.len()) {
        return false;
    }
    let (head, rest) = plain.split_at(4);
    let rest = rest.iter().chain(head).fold(0, |rest, digit| {
        let shift = if *digit > 9 { 100 } else { 10 };
        (rest * shift + digit) % 97
    });
    rest == 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all() -> Redaction {
        Redaction::new(&Kind::ALL, &[]).unwrap()
    }

    #[test]
    fn what_has_a_form_is_taken_out_and_the_rest_stays() {
        for (text, expected) in [
            ("write to ada.l+x@mail.example.org, soon", "write to [redacted:email], soon"),
            ("jürgen@müller.de", "[redacted:email]"),
            ("card 4111 1111 1111 1111 exp 12/27", "card [redacted:card] exp 12/27"),
            ("4111111111111111", "[redacted:card]"),
            ("378282246310005", "[redacted:card]"),
            ("pay DE89 3704 0044 0532 0130 00 THE BANK", "pay [redacted:iban] THE BANK"),
            ("GB82WEST12345698765432.", "[redacted:iban]."),
            ("my ssn is 078-05-1120", "my ssn is [redacted:ssn]"),
            (
                "call +49 (0)89 1234-5678 or (415) 555-2671",
                "call [redacted:phone] or [redacted:phone]",
            ),
            ("key sk-proj-AbCdEf0123456789xyz", "key [redacted:secret]"),
            ("Authorization: Bearer abcdef0123456789ABCDEF", "Authorization: [redacted:secret]"),
            ("AKIAIOSFODNN7EXAMPLE", "[redacted:secret]"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- end",
                "[redacted:secret] end",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMIIE cut", "[redacted:secret]"),
        ] {
            assert_eq!(all().text(text), expected);
        }
    }

    #[test]
    fn what_only_looks_alike_stays() {
        for text in [
            "order 4111 1111 1111 1112",
            "0000 0000 0000 0000",
            "on 2026-11-25 at 10:15:00, 1,234,567 requests",
            "GB82 WEST 1234 5698 7654 33",
            "000-12-3456",
            "version 1.2.3-rc.4 of sk-learn",
            "f(x) @ y, a @b",
        ] {
            assert_eq!(all().text(text), text);
        }
    }

    #[test]
    fn a_number_behind_one_that_is_none_is_found_too() {
        assert_eq!(
            all().text("order 1234 4111 1111 1111 1111"),
            "order 1234 [redacted:card]",
            "the digits before would break the checksum"
        );
    }

    #[test]
    fn only_the_chosen_rules_and_ones_own_are_applied() {
        let rules = Redaction::new(&[Kind::Email], &[r"PAT-\d+".to_owned()]).unwrap();
        assert_eq!(
            rules.text("PAT-77 a@b.example 078-05-1120"),
            "[redacted:text] [redacted:email] 078-05-1120"
        );
        assert!(Redaction::new(&[], &["(".to_owned()]).is_err());
        assert!("passport".parse::<Kind>().unwrap_err().to_string().contains("choose among"));
        let empty = Redaction::new(&[], &["x*".to_owned()]).unwrap();
        assert_eq!(empty.text("äxxb"), "ä[redacted:text]b", "nothing is found, which is no text");
    }

    #[test]
    fn json_is_redacted_behind_its_escapes_and_stays_json() {
        let mut value: Value =
            serde_json::from_str(r#"{"a": ["x\u0040example.org \"q\""], "n": 4111111111111111}"#)
                .unwrap();
        all().json(&mut value);
        assert_eq!(value, json!({"a": ["[redacted:email] \"q\""], "n": 4111111111111111_u64}));
    }
}
