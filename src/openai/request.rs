//! A request as it came. The fields that Serinus reads are found once; everything else
//! stays the bytes that it was, so that an unknown field, a number like `1e2` or a very
//! large integer reaches the model exactly as the application wrote it.

use std::{borrow::Cow, collections::HashSet, fmt, marker::PhantomData, ops::Range};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    depth::{self, TooDeep},
    forgiving::{self, Read},
};

/// Fields of a request: no API has nearly as many.
const MOST_FIELDS: usize = 1024;
/// So few are compared with each other faster than they are hashed.
const FEW_FIELDS: usize = 32;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `POST /v1/chat/completions`
    #[default]
    Chat,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/responses`
    Responses,
}

impl Operation {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Embeddings, Self::Responses];

    /// The path below `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Responses => "/responses",
        }
    }

    /// The word of OpenTelemetry's conventions; of the Responses API it is `chat`, too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat | Self::Responses => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
        }
    }
}

/// A JSON object by its fields, over the bytes that it came as.
#[derive(Clone, Debug, Default)]
pub struct Request {
    body: Bytes,
    fields: Vec<Field>,
}

#[derive(Clone, Debug)]
struct Field {
    name: Name,
    value: Range<usize>,
}

#[derive(Clone, Debug)]
enum Name {
    /// As it stands in the body, without quotes.
    Plain(Range<usize>),
    /// It was written with escapes.
    Escaped(Box<str>),
}

/// Why a body is not a request.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not an object.
    #[error("the body is not a JSON object: {0}")]
    NotAnObject(serde_json::Error),
    /// Whoever reads it would recurse.
    #[error("the body can not be read: {0}")]
    TooDeep(#[from] TooDeep),
    /// What counts is not clear: servers differ in which of the two they take.
    #[error("the field {0:?} occurs twice; send it once")]
    Twice(String),
}

impl Request {
    /// Finds the fields.
    ///
    /// # Errors
    /// The body is not one JSON object, it is nested too deep, or a field occurs twice.
    pub fn parse(body: Bytes) -> Result<Self, Malformed> {
        depth::bounded(&body)?;
        let mut reader = serde_json::Deserializer::from_slice(&body);
        let fields = reader
            .deserialize_map(FieldsOf { base: body.as_ptr() as usize })
            .and_then(|fields| reader.end().map(|()| fields))
            .map_err(Malformed::NotAnObject)?;
        let request = Self { body, fields };
        if let Some(name) = request.twice() {
            return Err(Malformed::Twice(String::from_utf8_lossy(name).into_owned()));
        }
        Ok(request)
    }

    /// A name that occurs more than once.
    fn twice(&self) -> Option<&[u8]> {
        let mut names = self.fields.iter().map(|field| self.name(field)).enumerate();
        if self.fields.len() > FEW_FIELDS {
            let mut seen = HashSet::with_capacity(self.fields.len());
            return names.map(|(_, name)| name).find(|name| !seen.insert(*name));
        }
        let is_earlier =
            |i: usize, name: &[u8]| self.fields[..i].iter().any(|other| self.name(other) == name);
        names.find(|(i, name)| is_earlier(*i, name)).map(|(_, name)| name)
    }

    /// How many bytes it came as.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The JSON of a field; `null` counts as absent.
    pub fn raw(&self, name: &str) -> Option<&[u8]> {
        let field = self.fields.iter().find(|f| self.name(f) == name.as_bytes())?;
        let value = &self.body[field.value.clone()];
        (value != b"null").then_some(value)
    }

    /// A field that is a text.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        serde_json::from_slice::<Text<'_>>(self.raw(name)?).ok()?.0
    }

    /// Whether a field is `true`.
    pub fn is_true(&self, name: &str) -> bool {
        self.flag(name) == Some(true)
    }

    /// A field that must be a boolean; false when it is absent, none when it is something else.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.raw(name) {
            Some(b"true") => Some(true),
            Some(b"false") | None => Some(false),
            Some(_) => None,
        }
    }

    /// Asked twice, a response leaves more behind than asked once: an entry in a
    /// conversation, a task in the background.
    pub fn leaves_something(&self, operation: Operation) -> bool {
        operation == Operation::Responses
            && (self.raw("conversation").is_some() || self.is_true("background"))
    }

    /// All fields in their order: name and JSON.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (self.name(f), &self.body[f.value.clone()]))
    }

    fn name<'a>(&'a self, field: &'a Field) -> &'a [u8] {
        match &field.name {
            Name::Plain(range) => &self.body[range.clone()],
            Name::Escaped(name) => name.as_bytes(),
        }
    }
}

/// The elements of a JSON array, without its brackets; none when it is not an array.
pub fn elements(array: &[u8]) -> Option<&[u8]> {
    Some(array.strip_prefix(b"[")?.strip_suffix(b"]")?.trim_ascii())
}

/// How many elements a JSON array has; none when it is not one.
pub fn count(array: &[u8]) -> Option<usize> {
    let mut n = 0;
    each(array, |_: IgnoredAny| n += 1).map(|()| n)
}

/// How many inputs a field holds, each of which gets an answer of its own: a text, a list of
/// tokens, or a list of those. None for anything else.
pub fn inputs(json: &[u8]) -> Option<usize> {
    match json.first()? {
        b'"' => Some(1),
        b'[' => match elements(json)?.first() {
            Some(b'0'..=b'9') => Some(1),
            _ => count(json),
        },
        _ => None,
    }
}

/// How many bytes of a conversation, or of any other input, are said by the application and its
/// users, and not by a model or a tool in an answer before.
pub fn said(input: &[u8]) -> usize {
    let mut said = 0;
    let told = each(input, |element: &RawValue| {
        said += if is_said(element.get()) { element.get().len() } else { 0 };
    });
    told.map_or(input.len(), |()| said)
}

/// Hands on each element of a JSON array; none when it is not one.
fn each<'a, T: Deserialize<'a>>(array: &'a [u8], each: impl FnMut(T)) -> Option<()> {
    struct Each<T, F>(F, PhantomData<T>);
    impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<T, F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(element) = seq.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(array);
    json.deserialize_seq(Each(each, PhantomData)).ok()?;
    json.end().ok()
}

/// Whether an element of an input is the application's or a user's.
fn is_said(element: &str) -> bool {
    #[derive(Deserialize)]
    struct Element<'a> {
        #[serde(borrow, default)]
        role: Option<Cow<'a, str>>,
    }
    // An item of a response without a role is what a model or a tool made.
    let of = |role: &str| matches!(role, "user" | "system" | "developer");
    match serde_json::from_str::<Element<'_>>(element) {
        Ok(Element { role }) => role.is_some_and(|role| of(&role)),
        Err(_) => !element.starts_with('{'),
    }
}

/// At least as many bytes as a JSON text takes when it is parsed. A value takes 72 bytes and a
/// field 104. Lists and objects reserve up to twice what they hold, a list at least four values,
/// and an object has an index.
pub fn parsed(json: &[u8]) -> usize {
    const LIST: usize = 4 * 72 + 16;
    const OBJECT: usize = 64;
    const FIELD: usize = 2 * 104;
    const ELEMENT: usize = 2 * 72;
    const TEXT: usize = 32;
    let takes = outside_of_texts(json).map(|byte| match byte {
        b'[' => LIST,
        b'{' => OBJECT,
        b':' => FIELD,
        b',' => ELEMENT,
        b'"' => TEXT,
        _ => 0,
    });
    json.len() + takes.sum::<usize>()
}

/// At least as many values as a JSON text has.
pub fn values(json: &[u8]) -> usize {
    1 + outside_of_texts(json).filter(|byte| matches!(byte, b',' | b'[' | b'{')).count()
}

/// The bytes of a JSON text without those of the texts in it, but for the quote that begins each.
fn outside_of_texts(json: &[u8]) -> impl Iterator<Item = u8> {
    let (mut in_text, mut escaped) = (false, false);
    json.iter().copied().filter(move |byte| {
        let was_in_text = in_text;
        if in_text {
            in_text = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else {
            in_text = *byte == b'"';
        }
        !was_in_text
    })
}

/// A text that is borrowed where it can be; none for anything else than a text.
#[derive(Debug, Default)]
pub(super) struct Text<'a>(pub Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Borrowed(text))))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(text.to_owned()))))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
    /// The texts of the parts of a message (`[{"type": "text", "text": …}, …]`).
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut whole = None::<String>;
        while let Some(part) = seq.next_element::<Part<'de>>()? {
            if let Some(text) = part.0 {
                whole.get_or_insert_default().push_str(&text);
            }
        }
        Ok(Text(whole.map(Cow::Owned)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::default())
    }
}

/// The text of one part of a message's content. Anything that is not an object says nothing.
#[derive(Default)]
struct Part<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Read<'de> for Part<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            // One text, and no list of parts again.
            "text" => self.0 = map.next_value::<forgiving::Text<'_>>()?.0,
            _ => forgiving::skip(map)?,
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        forgiving::object(deserializer)
    }
}

struct FieldsOf {
    base: usize,
}

impl<'de> Visitor<'de> for FieldsOf {
    type Value = Vec<Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::with_capacity(12);
        let place = |text: &str| {
            let start = text.as_ptr() as usize - self.base;
            start..start + text.len()
        };
        while let Some(name) = map.next_key_seed(KeySeed)? {
            let name = match name {
                Cow::Borrowed(name) => Name::Plain(place(name)),
                Cow::Owned(name) => Name::Escaped(name.into_boxed_str()),
            };
            if fields.len() == MOST_FIELDS {
                let message = format!("it has more than {MOST_FIELDS} fields");
                return Err(de::Error::custom(message));
            }
            let value: &'de RawValue = map.next_value()?;
            fields.push(Field { name, value: place(value.get()) });
        }
        Ok(fields)
    }
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Request, Malformed> {
        Request::parse(Bytes::from(text.to_owned()))
    }

    #[test]
    fn fields_are_the_bytes_that_came() {
        let request = parse(
            r#" { "model" : "r", "n":1e0, "big":123456789012345678901234567890, "a\u0062":[ 1 , 2 ], "none":null, "stream": true } "#,
        )
        .unwrap();
        assert_eq!(request.text("model").as_deref(), Some("r"));
        assert_eq!(request.raw("n"), Some(&b"1e0"[..]));
        assert_eq!(request.raw("big"), Some(&b"123456789012345678901234567890"[..]));
        assert_eq!(request.raw("ab"), Some(&b"[ 1 , 2 ]"[..]), "an escaped name is that name");
        assert_eq!(request.raw("none"), None);
        assert!(request.is_true("stream") && !request.is_true("n"));
        assert_eq!(request.fields().count(), 6);
    }

    #[test]
    fn what_an_application_says_is_counted_and_what_was_answered_before_is_not() {
        let user = r#"{"content": "a question", "role": "user"}"#;
        let (system, developer) =
            (user.replace("\"user\"", "\"system\""), user.replace("user", "developer"));
        let escaped = user.replace("\"role\"", "\"r\\u006fle\"");
        let answered = r#"{"role": "assistant", "content": "a long answer, {\"role\": \"user\"}"}"#;
        let tool = r#"{"role": "tool", "tool_call_id": "1", "content": "what a tool found"}"#;
        let item = r#"{"type": "function_call_output", "call_id": "1", "output": "found"}"#;
        let typed = r#"{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}"#;
        let all = |elements: &[&str]| format!("[ {} ]", elements.join(" , "));
        let whole = all(&[&system, user, answered, tool, item, &developer, typed, &escaped]);
        let want = [&system, user, &developer, typed, &escaped].map(str::len).iter().sum::<usize>();
        assert_eq!(said(whole.as_bytes()), want);
        assert_eq!(said(br#""a plain input""#), 15);
        assert_eq!(said(br#"["one", "another", [1, 2]]"#), 5 + 9 + 6);
        for odd in
            ["[]", "[null, 1]", "{}", r#"[{"role": 7}]"#, r#"[{"role": null, "content": "x"}]"#]
        {
            assert!(said(odd.as_bytes()) <= odd.len(), "{odd}");
        }
    }

    #[test]
    fn many_fields_are_compared_and_too_many_refused() {
        let body = |count: usize, last: &str| {
            let fields: String = (0..count).map(|i| format!("\"f{i}\":0,")).collect();
            format!("{{{fields}\"{last}\":0}}")
        };
        for count in [3, FEW_FIELDS + 8, MOST_FIELDS - 1] {
            assert_eq!(parse(&body(count, "other")).unwrap().fields().count(), count + 1);
            let twice = parse(&body(count, "f1"));
            assert!(matches!(twice, Err(Malformed::Twice(name)) if name == "f1"), "{count}");
        }
        let error = parse(&body(MOST_FIELDS, "other")).unwrap_err().to_string();
        assert!(error.contains("more than 1024 fields"), "{error}");
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        for (json, count) in
            [("0", 1), (r#""a,[{\",\\""#, 1), ("[1,2,3]", 4), (r#"{"a":[0],"b,":{}}"#, 5)]
        {
            assert_eq!(values(json.as_bytes()), count, "{json}");
        }
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        for text in
            ["", "[]", "1", "{", "{} {}", "{\"a\":}", "{\"a\":1,}", "\u{0}", "{\"a\":\"\\ud800\"x"]
        {
            assert!(matches!(parse(text), Err(Malformed::NotAnObject(_))), "{text:?}");
        }
        assert!(Request::parse(Bytes::from_static(b"{\"a\":\"\xff\"}")).is_err());
    }

    #[test]
    fn what_is_nested_too_deep_is_refused_wherever_it_is() {
        for field in ["a", "model", "messages", "user", "serinus", "tools", "conversation"] {
            for (open, close) in [("[", "]"), ("{\"text\":", "}"), ("[{\"text\":", "}]")] {
                for depth in [128, 5_700, 200_000] {
                    let (open, close) = (open.repeat(depth), close.repeat(depth));
                    let body = format!("{{\"{field}\":{open}1{close}}}");
                    assert!(matches!(parse(&body), Err(Malformed::TooDeep(_))), "{field} {depth}");
                }
            }
        }
        let deepest = format!("{{\"a\":{}{}}}", "[".repeat(127), "]".repeat(127));
        assert!(parse(&deepest).is_ok());
    }

    #[test]
    fn a_text_in_many_lists_is_not_read_again_for_each() {
        // A part is a text or nothing: lists within it are passed over.
        let body = format!("{{\"model\":{}\"r\"{}}}", "[".repeat(100), "]".repeat(100));
        assert_eq!(parse(&body).unwrap().text("model"), None);
        let body = r#"{"model":[{"text":[{"text":"r"}]},{"text":"s","text":"t"}]}"#;
        assert_eq!(parse(body).unwrap().text("model").as_deref(), Some("t"));
    }

    #[test]
    fn a_field_that_occurs_twice_is_refused_however_it_is_written() {
        assert!(matches!(parse(r#"{"model":"a","m\u006fdel":"b"}"#), Err(Malformed::Twice(_))));
    }

    #[test]
    fn arrays_are_counted_and_opened() {
        assert_eq!(elements(b"[ {\"a\":1} , 2 ]"), Some(&b"{\"a\":1} , 2"[..]));
        assert_eq!((elements(b"[]"), elements(b"{}")), (Some(&b""[..]), None));
        assert_eq!((count(b"[1,[2,3],{}]"), count(b"[]"), count(b"{}")), (Some(3), Some(0), None));
    }

    #[test]
    fn the_text_of_a_message_is_found_in_its_parts_too() {
        let text =
            |json: &str| serde_json::from_str::<Text<'_>>(json).unwrap().0.map(Cow::into_owned);
        assert_eq!(text(r#""a\n""#).as_deref(), Some("a\n"));
        let parts = r#"[{"type":"text","text":"a"},{"type":"image_url"},"x",{"text":"b"}]"#;
        assert_eq!(text(parts).as_deref(), Some("ab"));
        for nothing in ["null", "1", "-1", "1.5", "true", "{\"a\":[1]}", "[]", "[[1]]"] {
            assert_eq!(text(nothing), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn every_json_object_is_read_as_serde_json_reads_it(
            object in prop::collection::hash_map(".{0,8}", prop_oneof![
                Just(serde_json::json!(null)), Just(serde_json::json!([1, {"a": "b"}])),
                any::<f64>().prop_map(|f| serde_json::json!(f)), ".*".prop_map(serde_json::Value::from),
            ], 0..8),
        ) {
            let request = parse(&serde_json::to_string(&object).unwrap()).unwrap();
            prop_assert_eq!(request.fields().count(), object.len());
            for (name, value) in &object {
                let read = request.raw(name).map(|raw| serde_json::from_slice::<serde_json::Value>(raw).unwrap());
                prop_assert_eq!(read.unwrap_or_default(), value.clone());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(Bytes::from(bytes));
        }
    }
}
