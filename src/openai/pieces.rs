//! The texts in an answer or in an event of a stream, each with its place. Texts at one
//! place are one text for whoever reads the answer: the words that events bring for the
//! same field of the same choice, the parts of one message, the tokens of log
//! probabilities, the pieces of the arguments of one call.
//!
//! A place is the path of names to the text, and the numbers that objects on the way give
//! themselves (`index`), wherever in the object they stand. Nothing depends on which names
//! these are, so that a field which is new today is read as well. A list of bytes
//! (`bytes` of a token) is a text, too.

use std::{borrow::Cow, collections::HashMap, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    depth,
    mend::{mend, trimmed},
};

/// A place of a text.
pub type Place = u64;

/// So many texts are kept before those at one place are put together.
const FEW: usize = 1024;
/// Of one answer not more places are read.
const MOST: usize = 1 << 18;
/// The place of bytes beside that of a text.
const BYTES: u64 = 0x62;

/// Calls `each` with the place and the text of all that `json` says. What is no JSON says
/// nothing.
pub fn pieces(json: &[u8], mut each: impl FnMut(Place, &str)) {
    let json = trimmed(json);
    if depth::bounded(json).is_ok()
        && let Some(found) = read(json)
    {
        return found.iter().for_each(|(place, text)| each(*place, text));
    }
    // As applications read it that are forgiving.
    if let Some(mended) = mend(json) {
        let found = read(&mended.json).unwrap_or_default();
        found.iter().for_each(|(place, text)| each(*place, text));
    }
}

type Found<'de> = Vec<(Place, Cow<'de, str>)>;

fn read(json: &[u8]) -> Option<Found<'_>> {
    let mut found = vec![];
    let mut json = serde_json::Deserializer::from_slice(json);
    Walk { found: &mut found, place: 0 }.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(found)
}

fn mix(place: Place, with: u64) -> Place {
    (place.rotate_left(5) ^ with).wrapping_mul(0x517c_c1b7_2722_0a95)
}

fn hash(text: &str) -> u64 {
    // FNV-1a.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Puts the texts at one place together, from `start` on.
fn gather(found: &mut Found<'_>, start: usize) {
    let mut at = HashMap::<Place, usize>::new();
    let mut kept = start;
    for next in start..found.len() {
        let (place, text) = std::mem::take(&mut found[next]);
        match at.get(&place) {
            Some(first) => found[*first].1.to_mut().push_str(&text),
            None => {
                at.insert(place, kept);
                found[kept] = (place, text);
                kept += 1;
            }
        }
    }
    found.truncate(kept);
}

/// What a field's name says of its value.
enum Name {
    /// A number that tells objects of one list apart.
    Number,
    /// The kind of an event.
    Kind,
    /// Nothing that a model writes.
    Quiet,
    Other(u64),
}

impl Name {
    fn of(name: &str) -> Self {
        match name {
            "index" | "output_index" | "content_index" | "summary_index" => Self::Number,
            "type" => Self::Kind,
            "id" | "object" | "model" | "role" | "item_id" | "call_id" | "tool_call_id"
            | "usage" | "obfuscation" | "system_fingerprint" | "service_tier" | "finish_reason" => {
                Self::Quiet
            }
            other => Self::Other(hash(other)),
        }
    }
}

/// Reads any value; a small number is told to the list that it is in.
struct Walk<'a, 'de> {
    found: &'a mut Found<'de>,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for Walk<'_, 'de> {
    type Value = Option<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Walk<'_, 'de> {
    fn push(self, text: Cow<'de, str>) {
        if !text.is_empty() && self.found.len() < MOST {
            self.found.push((self.place, text));
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_, 'de> {
    type Value = Option<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        self.push(Cow::Borrowed(text));
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        self.push(Cow::Owned(text.to_owned()));
        Ok(None)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(u8::try_from(number).ok())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let Self { found, place } = self;
        let (start, mut bytes, mut many) = (found.len(), vec![], found.len() + FEW);
        while let Some(byte) = list.next_element_seed(Walk { found, place })? {
            bytes.extend(byte);
            if found.len() > many {
                gather(found, start);
                many = found.len() * 2 + FEW;
            }
        }
        if !bytes.is_empty() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Walk { found, place: mix(place, BYTES) }.push(Cow::Owned(text));
        }
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { found, place } = self;
        let (start, mut mark) = (found.len(), 0);
        let mut times = HashMap::<u64, u64>::new();
        while let Some(name) = map.next_key_seed(ReadName)? {
            match name {
                // The number 0 is the same as none.
                Name::Number => match map.next_value_seed(Mark)? {
                    0 => {}
                    number => mark = mix(mark, number),
                },
                Name::Kind => match map.next_value_seed(Mark)? {
                    // Of a call or a part, which later events do not tell again.
                    kind if kind & EVENT == 0 => {}
                    kind => mark = mix(mark, kind),
                },
                Name::Quiet => _ = map.next_value::<IgnoredAny>()?,
                Name::Other(name) => {
                    // Of a field that is there more than once, readers take one of all.
                    let times = times.entry(name).or_default();
                    let own = if *times == 0 { name } else { mix(name, *times) };
                    *times += 1;
                    map.next_value_seed(Walk { found, place: mix(place, own) })?;
                }
            }
        }
        if mark != 0 {
            found[start..].iter_mut().for_each(|(place, _)| *place = mix(*place, mark));
        }
        Ok(None)
    }
}

struct ReadName;

impl<'de> DeserializeSeed<'de> for ReadName {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ReadName {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(Name::of(name))
    }
}

/// Set in the mark of an event's kind, as `response.output_text.delta`.
const EVENT: u64 = 1 << 63;

/// A number, or a hash of what stands in its place.
struct Mark;

impl<'de> DeserializeSeed<'de> for Mark {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Mark {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E>(self, number: i64) -> Result<u64, E> {
        Ok(number.unsigned_abs())
    }

    fn visit_f64<E>(self, _: f64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_bool<E>(self, _: bool) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_unit<E>(self) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_str<E>(self, text: &str) -> Result<u64, E> {
        // Some servers write numbers as texts.
        let number = text.parse().ok();
        let event = if text.contains('.') { EVENT } else { 0 };
        Ok(number.unwrap_or(hash(text) & !EVENT | event))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<u64, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The texts of several events, put together by place.
    fn read_all(events: &[Value]) -> Vec<String> {
        let mut found: Vec<(Place, String)> = vec![];
        for event in events {
            pieces(event.to_string().as_bytes(), |place, text| {
                match found.iter_mut().find(|(known, _)| *known == place) {
                    Some((_, whole)) => whole.push_str(text),
                    None => found.push((place, text.to_owned())),
                }
            });
        }
        found.into_iter().map(|(_, text)| text).collect()
    }

    fn call(index: u64, arguments: &str) -> Value {
        json!({"choices": [{"delta": {"tool_calls": [
            {"function": {"arguments": arguments}, "index": index}]}, "index": 0}]})
    }

    #[test]
    fn what_is_one_text_for_the_reader_is_one_text() {
        let both = [call(0, "ab"), call(1, "xy"), call(0, "cd"), call(1, "z")];
        assert_eq!(read_all(&both), ["abcd", "xyz"]);
        // The first event of a call says more than those after it, and numbers may be texts.
        let first = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [
            {"index": "1", "id": "c", "type": "function", "function": {"arguments": "ab"}}]}}]});
        assert_eq!(read_all(&[first, call(1, "cd")]), ["abcd"]);
        let parts =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(read_all(&[parts]), ["ab"]);
        let kind =
            |kind: &str, delta: &str| json!({"type": kind, "output_index": 0, "delta": delta});
        let events = [
            kind("response.output_text.delta", "a"),
            kind("response.reasoning_text.delta", "x"),
            kind("response.output_text.delta", "b"),
        ];
        assert_eq!(read_all(&events), ["ab", "x"]);
        let tokens =
            json!({"content": [{"token": "a", "bytes": [97]}, {"token": "b", "bytes": [98]}]});
        assert_eq!(read_all(&[tokens]), ["ab", "ab"]);
    }

    #[test]
    fn choices_are_apart_and_a_missing_number_is_the_first() {
        let choice =
            |index: Value, text: &str| json!({"choices": [{"index": index, "text": text}]});
        let events = [
            choice(json!(0), "a"),
            choice(json!(1), "x"),
            choice(Value::Null, "b"),
            choice(json!(1), "y"),
        ];
        assert_eq!(read_all(&events), ["ab", "xy"]);
    }

    #[test]
    fn many_texts_of_few_places_are_put_together() {
        let tokens: Vec<Value> = (0..5_000)
            .map(|_| json!({"token": "a", "top": [{"token": "b"}, {"token": "c"}]}))
            .collect();
        let read = read_all(&[json!({"content": tokens})]);
        assert_eq!(read.iter().map(String::len).collect::<Vec<_>>(), [5_000, 10_000]);
        assert!(read[1].starts_with("bcbc"));
    }

    #[test]
    fn what_is_no_json_says_nothing() {
        for odd in ["", "[DONE]", "{\"a\": ", "null", "3"] {
            pieces(odd.as_bytes(), |_, text| panic!("{odd}: {text}"));
        }
    }
}
