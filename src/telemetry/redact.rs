//! What must not leave the process, taken out of what was said.
//!
//! The forms that are looked for are lines of a table (`redact/rules`), regular expressions
//! of the `regex` crate, which takes time linear in the text whatever the expression: nobody
//! can stall a gateway with a crafted prompt. Each is searched for by itself: most begin
//! with a text of their own, which is found faster than by an automaton for all of them
//! (a `RegexSet` of these forms outgrows its cache, and took a hundred times as long).
//! Numbers are confirmed by their checksum, or by who gives them out, so that
//! order numbers stay readable (`redact/checks`). All of it is applied to the text as a
//! reader sees it, behind escapes and look-alikes (`redact/plain`): `\u0040` hides no
//! address, nor does JSON within JSON.
//!
//! How much of each kind is found, and how much else is taken out, is measured with the
//! texts of `tests/fixtures/redaction/`. This catches forms, not meaning: a name or a
//! diagnosis in plain words has none. Where those are said, content should stay off, which
//! is the default.

mod checks;
mod parts;
mod plain;
mod rules;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Write,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use self::{
    parts::Joined,
    plain::Plain,
    rules::{Check, FORMS, Form},
};
use crate::audit::secrets::Known;

/// All forms together are large, and none is anybody's but ours.
const LARGEST: usize = 64 << 20;

/// A kind of text with a form of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// API keys, tokens, passwords, private keys.
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
    /// All, in the order in which they win.
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
    kind: Kind,
    expression: Regex,
    check: Check,
}

/// The rules that a process applies. Copies share them.
#[derive(Clone)]
pub struct Redaction {
    own: Arc<[Regex]>,
    rules: Arc<[Rule]>,
    cards: bool,
    secrets: bool,
    known: Known,
}

/// A part of a text that is taken out, and the word for it.
type Span = (usize, usize, &'static str);

/// What the name of a JSON field says of its value.
static TELLING: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(rules::TELLING_NAMES).ok());
static SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(rules::SECRET_NAMES).ok());

impl Redaction {
    /// Built-in rules and expressions of one's own, which are applied first.
    ///
    /// # Errors
    /// An expression is none.
    pub fn new(kinds: &[Kind], own: &[String]) -> Result<Self, RuleError> {
        let own = own.iter().map(|text| Regex::new(text)).collect::<Result<_, _>>()?;
        let forms: Vec<&Form> = FORMS.iter().filter(|form| kinds.contains(&form.0)).collect();
        // The ends of words are those of ASCII, for which there is a faster search.
        let rules = forms.iter().map(|Form(kind, text, check)| {
            let expression = RegexBuilder::new(&lean(text)).size_limit(LARGEST).build()?;
            Ok(Rule { kind: *kind, expression, check: *check })
        });
        let rules = rules.collect::<Result<_, regex::Error>>()?;
        let (cards, secrets) = (kinds.contains(&Kind::Card), kinds.contains(&Kind::Secret));
        Ok(Self { own, rules, cards, secrets, known: Known::default() })
    }

    /// The same rules, and secrets that are taken out whatever their form.
    pub fn knowing(&self, known: &Known) -> Self {
        Self { known: known.clone(), ..self.clone() }
    }

    /// The text without what the rules find.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        without(text, self.spans(text))
    }

    /// Where something is found.
    fn spans(&self, text: &str) -> Vec<Span> {
        let plain = Plain::of(text);
        let joined = Joined::of(&plain.text);
        let mut found = self.found(&plain.text);
        if let Some(joined) = &joined {
            let across = |(kind, start, end)| {
                joined.across(start, end).into_iter().map(move |(start, end)| (kind, start, end))
            };
            found.extend(self.found(&joined.text).into_iter().flat_map(across));
        }
        found.sort_by_key(|(kind, ..)| *kind);
        let found = found.into_iter().map(|(kind, start, end)| {
            let (start, end) = plain.origin(start, end);
            (start, end, kind.as_str())
        });
        let known = self.known_in(text, &plain, joined.as_ref());
        let own = self.own.iter().flat_map(|own| own.find_iter(text));
        let own = own.filter(|it| !it.is_empty()).map(|it| (it.start(), it.end(), "text"));
        let others: Vec<Span> = own.chain(found).collect();
        if known.is_empty() { others } else { with_known(known, others) }
    }

    /// What the rules find in a plain text.
    fn found(&self, plain: &str) -> Vec<(Kind, usize, usize)> {
        let mut found = vec![];
        self.rules.iter().for_each(|rule| rule.find(plain, &mut found));
        if self.cards {
            found.extend(checks::cards(plain).into_iter().map(|(s, e)| (Kind::Card, s, e)));
        }
        found
    }

    /// Where the secrets that are known are.
    fn known_in(&self, text: &str, plain: &Plain<'_>, joined: Option<&Joined>) -> Vec<Span> {
        // A key may look like an escape, so it is looked for in the text as it was, too.
        let mut found = self.known.sent_in(text);
        found.extend(self.known.key_in(text));
        let mut in_plain = self.known.key_in(&plain.text);
        if let Some(joined) = joined {
            let both = [self.known.sent_in(&joined.text), self.known.key_in(&joined.text)];
            let across = both.into_iter().flatten();
            let across = across.flat_map(|place| joined.across(place.start, place.end));
            in_plain.extend(across.map(|(start, end)| start..end));
        }
        let in_plain = in_plain.into_iter().map(|place| plain.origin(place.start, place.end));
        let found = found.into_iter().map(|place| (place.start, place.end)).chain(in_plain);
        found.map(|(start, end)| (start, end, Kind::Secret.as_str())).collect()
    }

    /// Applies the rules to every text of a JSON value, and to the names of its fields. A
    /// number that a rule finds becomes a text.
    pub fn json(&self, value: &mut Value) {
        self.value("", value);
    }

    fn value(&self, name: &str, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(without) = self.named(name, text) {
                    *text = without;
                }
            }
            Value::Number(number) => {
                let text = number.to_string();
                // Shorter than any of what is looked for.
                if text.len() >= 9
                    && let Cow::Owned(without) = self.named(name, &text)
                {
                    *value = Value::String(without);
                }
            }
            Value::Array(items) => {
                items.iter_mut().for_each(|item| self.value(name, item));
                self.across(items);
            }
            Value::Object(fields) => {
                fields.iter_mut().for_each(|(name, field)| self.value(name, field));
                // Most names are words, and words are none of what is looked for.
                let word = |byte: u8| byte.is_ascii_alphabetic() || b"_-. ".contains(&byte);
                let is_found = |name: &String| match name.bytes().all(word) {
                    true => self.known.is_in(name),
                    false => matches!(self.text(name), Cow::Owned(_)),
                };
                if fields.keys().any(is_found) {
                    *fields = self.renamed(std::mem::take(fields));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Applies the rules to what begins in one part of a message and ends in a later one: parts
    /// with a text, in a row, are one text for the model.
    fn across(&self, parts: &mut [Value]) {
        let mut row: Vec<&mut String> = vec![];
        for part in parts {
            match part.get_mut("text") {
                Some(Value::String(text)) => row.push(text),
                _ => self.row(std::mem::take(&mut row)),
            }
        }
        self.row(row);
    }

    fn row(&self, texts: Vec<&mut String>) {
        if texts.len() < 2 {
            return;
        }
        let whole: String = texts.iter().map(|text| text.as_str()).collect();
        let mut ends = vec![];
        for text in &texts {
            ends.push(ends.last().copied().unwrap_or(0) + text.len());
        }
        let mut parts: Vec<Vec<Span>> = vec![vec![]; texts.len()];
        for (start, end, word) in self.spans(&whole) {
            let first = ends.partition_point(|to| *to <= start);
            let last = ends.partition_point(|to| *to < end);
            // What lies within one part was looked for there.
            for part in (first..=last).filter(|_| first < last) {
                let from = if part == 0 { 0 } else { ends[part - 1] };
                parts[part].push((start.max(from) - from, end.min(ends[part]) - from, word));
            }
        }
        for (text, own) in texts.into_iter().zip(parts) {
            if let Cow::Owned(rest) = without(text, own) {
                *text = rest;
            }
        }
    }

    /// The same fields, those whose names are found under others. No two become one.
    fn renamed(&self, fields: Map<String, Value>) -> Map<String, Value> {
        let mut out = Map::new();
        for (name, value) in fields {
            let mut name = self.text(&name).into_owned();
            if out.contains_key(&name) {
                let _ = write!(name, " {}", out.len());
            }
            out.insert(name, value);
        }
        out
    }

    /// The value of a field with this name, which may say what it is.
    fn named<'a>(&self, name: &str, text: &'a str) -> Cow<'a, str> {
        let matches = |names: &Option<Regex>| names.as_ref().is_some_and(|n| n.is_match(name));
        // Of digits alone, the name says what they number.
        let is_number = text.len() >= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
        if name.is_empty() || !(is_number || matches(&TELLING)) {
            return self.text(text);
        }
        let is_one = !text.contains(char::is_whitespace) && checks::is_password(text);
        if self.secrets && is_one && matches(&SECRET) {
            return Cow::Owned(format!("[redacted:{}]", Kind::Secret.as_str()));
        }
        let said = format!("{name}: {text}");
        let without = self.text(&said);
        match &without {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(without) => {
                let rest = without.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
                rest.map_or_else(|| self.text(text), |rest| Cow::Owned(rest.to_owned()))
            }
        }
    }
}

/// The same expression with what is sought in ASCII alone: spaces and digits of other
/// scripts are plain ones by now, and for the ends of words there is a faster search.
fn lean(expression: &str) -> String {
    expression.replace(r"\b", r"(?-u:\b)").replace(r"\d", "[0-9]").replace(r"\s", r"[ \t\r\n]")
}

impl Rule {
    fn find(&self, text: &str, found_at: &mut Vec<(Kind, usize, usize)>) {
        let mut from = 0;
        while let Some(captures) = self.expression.captures_at(text, from) {
            let Some(whole) = captures.get(0) else { return };
            let it = captures.name("it").unwrap_or(whole);
            let (start, found) = (it.start(), it.as_str());
            let length = match self.check {
                Check::Sure => Some(found.len()),
                Check::Of(check) => check(found).then_some(found.len()),
                Check::Part(check) => check(found),
                Check::After(check) => {
                    let before = text.get(..start).unwrap_or_default();
                    check(before, found).then_some(found.len())
                }
            };
            from = match length.filter(|length| *length > 0) {
                Some(length) => {
                    found_at.push((self.kind, start, start + length));
                    start + length
                }
                // Not one; but one may begin within it.
                None if it.start() > whole.start() => it.start(),
                None if matches!(self.kind, Kind::Secret | Kind::Email) => whole.end(),
                None => next_boundary(text, whole.start(), whole.end()),
            };
        }
    }
}

/// Where a search goes on after a match that was none: behind the first separator in it,
/// or behind it, so that a text is looked at a bounded number of times.
fn next_boundary(text: &str, start: usize, end: usize) -> usize {
    let step =
        |at: usize| text.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
    if start == end {
        return start + step(start);
    }
    let inner = start + step(start);
    let found = text.get(inner..end).unwrap_or_default();
    found.find([' ', '-', '\n']).map_or(end, |at| inner + at + 1)
}

/// Secrets that are known, and what else is found. Where another find overlaps a secret, all of
/// both is one: of a password that goes on behind the secret, nothing is left.
fn with_known(known: Vec<Span>, others: Vec<Span>) -> Vec<Span> {
    let mut all: Vec<(Span, bool)> = known.into_iter().map(|span| (span, true)).collect();
    all.extend(others.iter().map(|span| (*span, false)));
    all.sort_by_key(|((start, ..), _)| *start);
    // One after the other, what overlaps; and whether a secret is in it.
    let mut groups: Vec<(Span, bool)> = vec![];
    for ((start, end, word), is_known) in all {
        match groups.last_mut() {
            Some(((_, ends, _), has_known)) if start < *ends => {
                *ends = end.max(*ends);
                *has_known |= is_known;
            }
            _ => groups.push(((start, end, word), is_known)),
        }
    }
    let certain = groups.into_iter().filter(|(_, has_known)| *has_known).map(|(span, _)| span);
    certain.chain(others).collect()
}

/// The text without these parts. Of two that overlap, the first counts.
fn without(text: &str, spans: Vec<Span>) -> Cow<'_, str> {
    if spans.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut taken: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
    for (start, end, word) in spans {
        let before = taken.range(..end).next_back();
        if start < end && before.is_none_or(|(_, (ends, _))| *ends <= start) {
            taken.insert(start, (end, word));
        }
    }
    let (mut out, mut copied) = (String::with_capacity(text.len()), 0);
    for (start, (end, word)) in taken {
        out.push_str(text.get(copied..start).unwrap_or_default());
        // Writing to a String does not fail.
        let _ = write!(out, "[redacted:{word}]");
        copied = end;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}
