//! Reading JSON that does not mind another type, nor a name that occurs twice: a count, a
//! text or an object, or nothing. Of two fields with one name the last counts, as it does
//! for the applications that read the same answer. What is not wanted is passed over
//! without allocating.
//!
//! Nothing here fails on JSON that is well-formed, so that one odd field hides nothing of
//! the rest. What is not well-formed is first made so ([`super::mend`]).

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// An object of which some fields are read.
pub(super) trait Read<'de>: Default {
    /// Reads the value of a field, or passes over it ([`skip`]).
    ///
    /// # Errors
    /// The JSON is not well-formed.
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;

    /// There was something else than an object.
    fn is_odd(&mut self) {}
}

/// Passes over the value of a field.
pub(super) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// An object, or what is there without one.
pub(super) fn object<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Read<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_any(Object(PhantomData))
}

/// What a visitor makes of everything that is not listed: `$other`, given the visitor and
/// whether there was something.
macro_rules! otherwise {
    (|$this:ident, $filled:ident| $other:expr; $($kind:ident),*) => {
        $(otherwise!(@$kind |$this, $filled| $other);)*
    };
    (@unit |$this:ident, $filled:ident| $other:expr) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            let ($this, $filled) = (self, false);
            Ok($other)
        }
    };
    (@bool |$this:ident, $filled:ident| $other:expr) => {
        fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
            let ($this, $filled) = (self, value);
            Ok($other)
        }
    };
    (@number |$this:ident, $filled:ident| $other:expr) => {
        fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
            let ($this, $filled) = (self, value != 0);
            Ok($other)
        }
        otherwise!(@signed |$this, $filled| $other);
    };
    (@signed |$this:ident, $filled:ident| $other:expr) => {
        otherwise!(@negative |$this, $filled| $other);
        fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
            let ($this, $filled) = (self, value != 0.0);
            Ok($other)
        }
    };
    (@negative |$this:ident, $filled:ident| $other:expr) => {
        fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
            let ($this, $filled) = (self, value != 0);
            Ok($other)
        }
    };
    (@text |$this:ident, $filled:ident| $other:expr) => {
        fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
            let ($this, $filled) = (self, !value.is_empty());
            Ok($other)
        }
    };
    (@list |$this:ident, $filled:ident| $other:expr) => {
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            seq: A,
        ) -> Result<Self::Value, A::Error> {
            let ($this, $filled) = (self, $crate::openai::forgiving::list_is_filled(seq)?);
            Ok($other)
        }
    };
    (@map |$this:ident, $filled:ident| $other:expr) => {
        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            map: A,
        ) -> Result<Self::Value, A::Error> {
            let ($this, $filled) = (self, $crate::openai::forgiving::map_is_filled(map)?);
            Ok($other)
        }
    };
}

pub(super) use otherwise;

pub(super) fn list_is_filled<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<bool, A::Error> {
    let mut some = false;
    // Looked into until there is something; the rest is passed over.
    while !some {
        match seq.next_element::<Filled>()? {
            Some(Filled(filled)) => some = filled,
            None => return Ok(false),
        }
    }
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(true)
}

pub(super) fn map_is_filled<'de, A: MapAccess<'de>>(mut map: A) -> Result<bool, A::Error> {
    let mut some = false;
    while !some {
        match map.next_entry::<IgnoredAny, Filled>()? {
            Some((_, Filled(filled))) => some = filled,
            None => return Ok(false),
        }
    }
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(true)
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Read<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut object = T::default();
        while let Some(name) = map.next_key_seed(Name)? {
            object.read(&name, &mut map)?;
        }
        Ok(object)
    }

    otherwise!(|_this, filled| {
        let mut object = T::default();
        if filled {
            object.is_odd();
        }
        object
    }; unit, bool, number, text, list);
}

/// The name of a field, borrowed where it can be.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
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

/// A whole number from 0, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count(pub Option<u64>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor).map(Self)
    }
}

struct CountVisitor;

impl<'de> Visitor<'de> for CountVisitor {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(u64::try_from(value).ok())
    }

    /// 12.0 is what some servers write in a language without whole numbers.
    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        /// Beyond it not every whole number is a float.
        const EXACT: f64 = (1_u64 << 53) as f64;
        let whole = (0.0..=EXACT).contains(&value) && value.fract() == 0.0;
        Ok(whole.then_some(value as u64))
    }

    otherwise!(|_this, _filled| None; unit, bool, text, list, map);
}

/// A text that is borrowed where it can be; none for anything else than a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(pub Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Self)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    otherwise!(|_this, _filled| None; unit, bool, number, list, map);
}

/// Whether there is something: not null, 0 or false, no empty text, and no list or object
/// that holds nothing but those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filled(pub bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FilledVisitor).map(Filled)
    }
}

struct FilledVisitor;

impl<'de> Visitor<'de> for FilledVisitor {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    otherwise!(|_this, filled| filled; unit, bool, number, text, list, map);
}

/// More in one list is no answer: nobody asks for as many choices or calls, and each of them takes
/// hundreds of times the bytes of `{},`.
const MOST: usize = 1024;

/// What a list holds.
///
/// # Errors
/// The JSON is not well-formed, or it holds more than [`MOST`].
pub(super) fn many<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut seq: A,
) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::with_capacity(1);
    while let Some(one) = seq.next_element()? {
        if all.len() == MOST {
            return Err(de::Error::custom("a list is longer than anybody asks for"));
        }
        all.push(one);
    }
    Ok(all)
}

/// A list of at most [`MOST`]; empty for anything else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Many<T>(pub Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(All(PhantomData)).map(Many)
    }
}

struct All<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for All<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
        many(seq)
    }

    otherwise!(|_this, _filled| vec![]; unit, bool, number, text, map);
}
