//! YAML to values, in time and memory that grow with the text and with nothing else.
//!
//! libyaml is no reader for files that others write: it looks at every open `{` and `[` for each
//! word, and at every `%TAG` line for each other one, long before anybody counts levels; and
//! what an alias (`*x`) stands for is copied as often as it is named. So a file of 200 KB could
//! keep a thread busy for minutes, or fill the memory. The events of granit-parser, which is
//! linear and counts levels itself, become values here, one after the other and without
//! recursion. No second parser reads the text: two would not agree on where a `{` is text.
//!
//! Plain words mean what they mean in YAML 1.2, as they did for `serde_yaml_ng`: `yes`, `on` and
//! `007` are texts. Merge keys (`<<`) are keys like any other.

use std::{borrow::Cow, collections::BTreeMap};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Tag, options};
use serde_json::{Map, Number, Value};

use crate::openai::depth::DEEPEST;

/// So many bytes may be copied because of anchors and aliases: Kubernetes stores objects of up
/// to 1.5 MiB.
const COPIES: usize = 8 << 20;
/// What a value costs beside its text, in bytes, when it is copied.
const VALUE: usize = 32;
/// So many characters of a key or a tag are in a message.
const NAMED: usize = 60;
/// The tags that YAML itself defines begin so.
const CORE: &str = "tag:yaml.org,2002:";

/// Why a text can not be read, and where.
#[derive(Debug, thiserror::Error)]
#[error("{fault} at line {line} column {column}")]
pub struct YamlError {
    /// What is wrong.
    pub fault: Fault,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

/// What is wrong with a text. No message holds a value: it may be of a Secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Against the grammar.
    #[error("{0}")]
    Syntax(ErrorKind),
    /// More levels than JSON may have.
    #[error("lists and objects are nested deeper than {DEEPEST} levels: write them flatter")]
    TooDeep,
    /// Aliases write out too much.
    #[error(
        "anchors and aliases stand for more than {} MiB: write out what is needed",
        COPIES >> 20
    )]
    TooManyCopies,
    /// An alias within its own anchor.
    #[error("an alias stands for what it is part of: remove it")]
    OwnAlias,
    /// Two values for one key.
    #[error("duplicate entry with key {0:?}: remove one")]
    Twice(String),
    /// A list or an object in place of a key.
    #[error("a key is a list or an object: keys are texts")]
    KeyNotText,
    /// A tag that JSON has no type for, or that does not fit its value.
    #[error(
        "a value that begins with ! and has no quotes is a tag, which can not be used here: put \
         the value in quotes, or remove the tag"
    )]
    Tag,
    /// An integer beyond 64 bits.
    #[error("a number has more than 64 bits: put it in quotes, or make it smaller")]
    TooLargeNumber,
}

/// Reads every document of a text.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn documents(text: &str) -> Result<Vec<Value>, YamlError> {
    let Begun { documents, error, .. } = begun(text);
    error.map_or(Ok(documents), Err)
}

/// What could be read of a text.
pub struct Begun {
    /// The documents up to the first thing that is wrong.
    pub documents: Vec<Value>,
    /// What is wrong.
    pub error: Option<YamlError>,
    /// The last of these documents is cut there. Otherwise all of them are complete, and what is
    /// wrong is after them.
    pub cut: bool,
}

/// Reads every document of a text up to the first thing that is wrong.
pub fn begun(text: &str) -> Begun {
    let options = options! {
        emit_comments: false,
        // As libyaml did: the last line of a text ends as it ends in the file.
        block_scalar_eof_without_line_feed: true,
        flow_nesting_limit: DEEPEST,
        block_nesting_limit: DEEPEST,
    };
    let mut reader = Reader::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (fault, at) = match event {
            Ok((event, span)) => match reader.take(event) {
                Ok(()) => continue,
                Err(fault) => (fault, span.start),
            },
            Err(error) => {
                let fault = match error.kind() {
                    ErrorKind::RecursionLimitExceeded => Fault::TooDeep,
                    kind => Fault::Syntax(kind.clone()),
                };
                (fault, *error.marker())
            }
        };
        let cut = reader.break_off();
        let error = YamlError { fault, line: at.line(), column: at.col() + 1 };
        return Begun { documents: reader.documents, error: Some(error), cut };
    }
    Begun { documents: reader.documents, error: None, cut: false }
}

/// A value that is complete.
#[derive(Clone)]
struct Node {
    value: Value,
    /// As it was written, of a scalar that an alias may use as a key.
    text: Option<String>,
    /// What a copy costs, in bytes.
    size: usize,
    /// How many levels it has.
    depth: usize,
}

/// A list or an object that is not complete.
struct Open {
    content: Content,
    anchor: usize,
    size: usize,
    depth: usize,
}

enum Content {
    List(Vec<Value>),
    Object {
        entries: Map<String, Value>,
        /// The key whose value comes next.
        key: Option<String>,
    },
}

/// What was read so far.
#[derive(Default)]
struct Reader {
    documents: Vec<Value>,
    /// Innermost last.
    open: Vec<Open>,
    /// What the document's anchors stand for, by their numbers.
    anchors: BTreeMap<usize, Node>,
    /// Bytes that were copied.
    copied: usize,
}

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), Fault> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.scalar(text, style, anchor, tag.as_deref())
            }
            Event::Alias(anchor) => self.alias(anchor),
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(Content::List(vec![]), anchor, tag.as_deref())
            }
            Event::MappingStart(_, anchor, tag) => {
                let content = Content::Object { entries: Map::new(), key: None };
                self.begin(content, anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Result<(), Fault> {
        // A key is the text that is written, whatever it would be as a value.
        let inner = self.open.last_mut().map(|open| &mut open.content);
        if let Some(Content::Object { entries, key: key @ None }) = inner
            && anchor == 0
        {
            return set_key(entries, key, text.into_owned());
        }
        let value = match (tag.map(name), style) {
            (Some(tag), _) => tagged(&text, &tag)?,
            (None, ScalarStyle::Plain) => plain(&text)?,
            (None, _) => Value::from(&*text),
        };
        let size = VALUE + text.len();
        let text = (anchor != 0).then(|| text.into_owned());
        self.complete(Node { value, text, size, depth: 0 }, anchor)
    }

    fn alias(&mut self, anchor: usize) -> Result<(), Fault> {
        let node = self.anchors.get(&anchor).ok_or(Fault::OwnAlias)?;
        if self.open.len() + node.depth > DEEPEST {
            return Err(Fault::TooDeep);
        }
        copy(&mut self.copied, node.size)?;
        let node = node.clone();
        self.insert(node)
    }

    fn begin(&mut self, content: Content, anchor: usize, tag: Option<&Tag>) -> Result<(), Fault> {
        if self.open.len() >= DEEPEST {
            return Err(Fault::TooDeep);
        }
        if tag.map(name).is_some_and(|tag| !tag.starts_with(CORE)) {
            return Err(Fault::Tag);
        }
        self.open.push(Open { content, anchor, size: VALUE, depth: 0 });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        // The parser ends what it began.
        let Some(Open { content, anchor, size, depth }) = self.open.pop() else { return Ok(()) };
        let value = match content {
            Content::List(values) => Value::Array(values),
            Content::Object { entries, .. } => Value::Object(entries),
        };
        self.complete(Node { value, text: None, size, depth: depth + 1 }, anchor)
    }

    /// Keeps what has an anchor, and puts it where it belongs.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        if anchor != 0 {
            copy(&mut self.copied, node.size)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.insert(node)
    }

    /// Ends a document that is not complete with what was read of it, if there is one.
    fn break_off(&mut self) -> bool {
        let mut inner = None;
        while let Some(Open { content, .. }) = self.open.pop() {
            inner = Some(match content {
                Content::List(mut values) => {
                    values.extend(inner);
                    Value::Array(values)
                }
                Content::Object { mut entries, key } => {
                    entries.extend(key.zip(inner));
                    Value::Object(entries)
                }
            });
        }
        let cut = inner.is_some();
        self.documents.extend(inner);
        cut
    }

    fn insert(&mut self, node: Node) -> Result<(), Fault> {
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node.value);
            return Ok(());
        };
        open.size += node.size;
        open.depth = open.depth.max(node.depth);
        match &mut open.content {
            Content::List(values) => values.push(node.value),
            Content::Object { entries, key } => match key.take() {
                None => return set_key(entries, key, node.text.ok_or(Fault::KeyNotText)?),
                Some(key) => _ = entries.insert(key, node.value),
            },
        }
        Ok(())
    }
}

fn set_key(
    entries: &Map<String, Value>,
    key: &mut Option<String>,
    text: String,
) -> Result<(), Fault> {
    if entries.contains_key(&text) {
        return Err(Fault::Twice(shown(&text)));
    }
    *key = Some(text);
    Ok(())
}

fn copy(copied: &mut usize, size: usize) -> Result<(), Fault> {
    *copied = copied.saturating_add(size);
    if *copied > COPIES { Err(Fault::TooManyCopies) } else { Ok(()) }
}

fn shown(text: &str) -> String {
    text.chars().take(NAMED).collect()
}

fn name(tag: &Tag) -> String {
    let (handle, suffix) = tag.parts();
    format!("{handle}{suffix}")
}

/// What a text is that has a tag.
fn tagged(text: &str, tag: &str) -> Result<Value, Fault> {
    let core = tag.strip_prefix(CORE);
    let value = match core {
        Some("bool" | "null") => plain(text).ok().filter(|v| v.is_boolean() || v.is_null()),
        Some("int") => integer(text)?.map(Value::Number),
        Some("float") => float(text),
        Some(_) => Some(Value::from(text)),
        None => None,
    };
    let fits = |value: &Value| value.is_null() == (core == Some("null")) || core == Some("float");
    value.filter(fits).ok_or(Fault::Tag)
}

/// What a text is that has neither quotes nor a tag.
fn plain(text: &str) -> Result<Value, Fault> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match integer(text)? {
            Some(number) => Value::Number(number),
            None => float(text).unwrap_or_else(|| Value::from(text)),
        },
    })
}

/// An integer, in base 10 or with `0x`, `0o` or `0b` before it.
fn integer(text: &str) -> Result<Option<Number>, Fault> {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let bases = [("0x", 16), ("0o", 8), ("0b", 2)];
    let based = bases.iter().find_map(|(begin, base)| Some((rest.strip_prefix(begin)?, *base)));
    let (digits, base) = based.unwrap_or((rest, 10));
    if digits.starts_with(['+', '-']) || (base == 10 && is_padded(digits)) {
        return Ok(None);
    }
    let Ok(size) = u128::from_str_radix(digits, base) else { return Ok(None) };
    let number = if text.starts_with('-') {
        i128::try_from(size).ok().and_then(|size| i64::try_from(-size).ok()).map(Number::from)
    } else {
        u64::try_from(size).ok().map(Number::from)
    };
    number.map(Some).ok_or(Fault::TooLargeNumber)
}

/// A number with a point or an exponent. JSON has none that is infinite: that is null.
fn float(text: &str) -> Option<Value> {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(rest, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Value::Null);
    }
    let number = text.parse::<f64>().ok().filter(|_| !is_padded(rest))?;
    Number::from_f64(number).map(Value::Number)
}

/// Digits that begin with a zero: a text, of which the zeros count.
fn is_padded(digits: &str) -> bool {
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests;
