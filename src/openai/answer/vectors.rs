//! The vectors of an answer to embeddings: are there any, and can they be used: numbers, as many in
//! each, and each for another input.

use std::{collections::HashSet, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::wire::Index;
use crate::openai::forgiving::{Read, object, otherwise, skip};

/// What `data` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors {
    /// Vectors of numbers.
    pub good: usize,
    /// None, an empty one, one with something in it that is no number or nothing but zeros, or
    /// one that is not as long as the others, or not of another input.
    pub bad: usize,
    /// Something of another shape.
    pub unread: usize,
    /// How many numbers a good one has, where that is known.
    pub length: Option<usize>,
    /// One is written in base64.
    pub in_base64: bool,
}

impl<'de> Deserialize<'de> for Vectors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Vectors;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vectors, A::Error> {
                let mut all = Vectors::default();
                let (mut inputs, mut length) = (HashSet::new(), None);
                while let Some(One { vector, index }) = seq.next_element()? {
                    let is_another = index.0.is_none_or(|index| inputs.insert(index));
                    match vector {
                        Vector::Good { length: own, in_base64 } => {
                            all.in_base64 |= in_base64;
                            let is_as_long = own.is_none() || own == *length.get_or_insert(own);
                            let is_good = is_another && is_as_long;
                            *(if is_good { &mut all.good } else { &mut all.bad }) += 1;
                        }
                        Vector::Bad => all.bad += 1,
                        Vector::Unread => all.unread += 1,
                    }
                }
                all.length = length.flatten();
                Ok(all)
            }
            otherwise!(|_this, filled| Vectors { unread: usize::from(filled), ..Vectors::default() };
                unit, bool, number, text, map);
        }
        deserializer.deserialize_any(List)
    }
}

impl Vectors {
    /// How many there are.
    pub fn count(self) -> usize {
        self.good + self.bad + self.unread
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Vector {
    /// How many numbers it has, where that is to be compared.
    Good {
        length: Option<usize>,
        in_base64: bool,
    },
    #[default]
    Bad,
    Unread,
}

#[derive(Default)]
struct One {
    vector: Vector,
    index: Index,
}

impl<'de> Deserialize<'de> for One {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer)
    }
}

impl<'de> Read<'de> for One {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "embedding" => self.vector = vector(map.next_value::<&RawValue>()?.get().trim()),
            "index" => self.index = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }

    fn is_odd(&mut self) {
        self.vector = Vector::Unread;
    }
}

fn vector(json: &str) -> Vector {
    match json.as_bytes().first() {
        // A list of numbers, or of such lists. `null` is what is left of NaN.
        Some(b'[') => {
            let bytes = json.as_bytes();
            let is_zero = !numbers(json).any(|number| float(number).is_some_and(|n| n != 0.0));
            let other = memchr::memchr2(b'n', b'"', bytes).is_some();
            if is_zero || other || has_one_too_large(json) {
                return Vector::Bad;
            }
            let is_list_of_lists = memchr::memrchr(b'[', bytes) != Some(0);
            let length = 1 + memchr::memchr_iter(b',', bytes).count();
            Vector::Good { length: Some(length).filter(|_| !is_list_of_lists), in_base64: false }
        }
        Some(b'"') => encoded(json.trim_matches('"')),
        Some(b'{') if json.len() > 2 => Vector::Unread,
        _ => Vector::Bad,
    }
}

/// The numbers of a list, or of the lists in it.
fn numbers(json: &str) -> impl Iterator<Item = &str> {
    let mut from = 0;
    let ends = memchr::memchr_iter(b',', json.as_bytes()).chain([json.len()]);
    ends.map(move |end| {
        let number = json.get(from..end).unwrap_or_default();
        from = end + 1;
        number.trim_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '[' | ']'))
    })
}

/// A number as applications keep it: a float of 32 bits.
fn float(number: &str) -> Option<f32> {
    number.parse().ok()
}

/// Whether a number is infinite as a float of 32 bits, whose largest has 39 digits. Only such a
/// number is read that is as long or has an exponent.
fn has_one_too_large(json: &str) -> bool {
    const DIGITS: usize = 39;
    let may_be = |number: &&str| {
        number.len() >= DIGITS || memchr::memchr2(b'e', b'E', number.as_bytes()).is_some()
    };
    numbers(json).filter(may_be).any(|number| !float(number).is_some_and(f32::is_finite))
}

/// Four bytes a number, the lowest first, as OpenAI's clients ask for them.
fn encoded(text: &str) -> Vector {
    // JSON may write a slash with an escape; readers of base64 pass over line ends.
    let text = text.replace("\\/", "/").replace("\\n", "").replace("\\r", "");
    let Ok(bytes) = STANDARD.decode(text) else { return Vector::Bad };
    let (numbers, rest) = bytes.as_chunks::<4>();
    let finite = numbers.iter().all(|number| f32::from_le_bytes(*number).is_finite());
    let zero = bytes.iter().all(|byte| *byte == 0);
    if !finite || !rest.is_empty() || zero {
        return Vector::Bad;
    }
    Vector::Good { length: Some(numbers.len()), in_base64: true }
}
