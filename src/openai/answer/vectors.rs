//! The vectors of an answer to embeddings: are there any, and do they hold numbers.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::openai::forgiving::{Read, object, otherwise, skip};

/// What `data` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors {
    /// Vectors of numbers.
    pub good: usize,
    /// None, an empty one, or one with something in it that is no number.
    pub bad: usize,
    /// Something of another shape.
    pub unread: usize,
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
                while let Some(One(vector)) = seq.next_element()? {
                    match vector {
                        Vector::Good => all.good += 1,
                        Vector::Bad => all.bad += 1,
                        Vector::Unread => all.unread += 1,
                    }
                }
                Ok(all)
            }
            otherwise!(|_this, filled| Vectors { unread: usize::from(filled), ..Vectors::default() };
                unit, bool, number, text, map);
        }
        deserializer.deserialize_any(List)
    }
}

#[derive(Clone, Copy, Default)]
enum Vector {
    Good,
    #[default]
    Bad,
    Unread,
}

#[derive(Default)]
struct One(Vector);

impl<'de> Deserialize<'de> for One {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer)
    }
}

impl<'de> Read<'de> for One {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "embedding" => self.0 = vector(map.next_value::<&RawValue>()?.get().trim()),
            _ => skip(map)?,
        }
        Ok(())
    }

    fn is_odd(&mut self) {
        self.0 = Vector::Unread;
    }
}

fn vector(json: &str) -> Vector {
    match json.as_bytes().first() {
        // A list of numbers, or of such lists. `null` is what is left of NaN.
        Some(b'[') => {
            let numbers = json.bytes().any(|b| b.is_ascii_digit());
            let other = memchr::memchr2(b'n', b'"', json.as_bytes()).is_some();
            if numbers && !other { Vector::Good } else { Vector::Bad }
        }
        Some(b'"') => encoded(json.trim_matches('"')),
        Some(b'{') if json.len() > 2 => Vector::Unread,
        _ => Vector::Bad,
    }
}

/// Four bytes a number, the lowest first, as OpenAI's clients ask for them; others encode
/// other numbers.
fn encoded(text: &str) -> Vector {
    if text.is_empty() {
        return Vector::Bad;
    }
    let Ok(bytes) = STANDARD.decode(text) else { return Vector::Good };
    let (numbers, rest) = bytes.as_chunks::<4>();
    let finite = numbers.iter().all(|number| f32::from_le_bytes(*number).is_finite());
    if finite || !rest.is_empty() { Vector::Good } else { Vector::Bad }
}
