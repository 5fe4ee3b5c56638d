//! Validation that ends after so many steps. The validator sees values through
//! [`Metered`], which counts each look at one; when the budget is used up, or the stack
//! nearly, it unwinds to where it began. Unwinding is how the work of a library is given up
//! that knows no limit of its own; no panic is reported.
//!
//! What validation costs is not known before: schemas refer to themselves, so that a few
//! bytes of a value decide how often it is looked at.

use std::{
    borrow::Cow,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    ptr,
};

use jsonschema::{
    JsonType,
    json::{Array, Json, Node, NodeIdentity, Object, SerdeJson},
};
use serde_json::{Map, Number, Value, map};

/// So much stack may validation take, in bytes: a thread has 2 MiB, of which others need some.
const MOST_STACK: usize = 512 << 10;
/// Bytes of a text that an expression passes over in a step.
const BYTES_A_STEP: usize = 32;
/// What it costs to say that a value is wrong: with where it is and what was expected, it is kept
/// until all is said, and anyOf and oneOf keep it once for each of their branches.
const COMPLAINT: u64 = 500;
/// So much of a value is kept in a complaint, in bytes of JSON.
const QUOTED: usize = 1000;

/// What a step costs more with a certain schema, because it does more than look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// An element of a list.
    pub element: u64,
    /// A field of an object.
    pub member: u64,
    /// A text.
    pub text: u64,
}

/// Validation took more steps than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checking it against the schema takes too many steps")]
pub struct TooCostly;

#[derive(Clone, Copy)]
struct Budget {
    left: u64,
    weight: Weight,
    /// Where on the stack it began.
    top: usize,
}

/// Of a thread that validates nothing: whoever looks gives up at once.
const NONE: Budget = Budget { left: 0, weight: Weight { element: 1, member: 1, text: 1 }, top: 0 };

thread_local! {
    static BUDGET: Cell<Budget> = const { Cell::new(NONE) };
}

/// Runs `work`, which validates, for at most so many steps.
///
/// # Errors
/// It was given up.
pub fn within<T>(steps: u64, weight: Weight, work: impl FnOnce() -> T) -> Result<T, TooCostly> {
    BUDGET.set(Budget { left: steps, weight, top: here() });
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    BUDGET.set(NONE);
    done.map_err(|payload| match payload.downcast_ref() {
        Some(TooCostly) => TooCostly,
        // A fault of the validator is not ours to hide.
        None => panic::resume_unwind(payload),
    })
}

fn here() -> usize {
    let mark = 0_u8;
    ptr::from_ref(&mark).addr()
}

/// Takes steps from the budget.
fn spend(steps: impl FnOnce(Weight) -> u64) {
    let mut budget = BUDGET.get();
    let left = budget.left.checked_sub(steps(budget.weight));
    let has_stack = budget.top.abs_diff(here()) <= MOST_STACK;
    match left.filter(|_| has_stack) {
        Some(left) => {
            budget.left = left;
            BUDGET.set(budget);
        }
        None => panic::resume_unwind(Box::new(TooCostly)),
    }
}

/// JSON of which each look is counted.
pub enum Metered {}

/// A value that is looked at.
#[derive(Clone, Copy)]
pub struct Seen<'a>(pub &'a Value);

impl Json for Metered {
    type Node<'a> = Seen<'a>;
    type PreparedKey = String;
    type StringBuffer = ();
    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(
        buffer: &mut (),
        string: &str,
        f: impl FnOnce(Self::Node<'_>) -> T,
    ) -> T {
        SerdeJson::with_string_node(buffer, string, |value| f(Seen(value)))
    }
}

impl<'a> Node<'a, Metered> for Seen<'a> {
    type Object = Members<'a>;
    type Array = Elements<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        spend(|_| 1);
        self.0.as_object().map(Members)
    }

    fn as_array(&self) -> Option<Elements<'a>> {
        spend(|_| 1);
        self.0.as_array().map(|array| Elements(array))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = self.0.as_str();
        spend(|weight| weight.text + text.map_or(0, |text| (text.len() / BYTES_A_STEP) as u64));
        text.map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<&'a Number> {
        spend(|_| 1);
        self.0.as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        spend(|_| 1);
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        spend(|_| 1);
        self.0.is_null()
    }

    fn json_type(&self) -> JsonType {
        spend(|_| 1);
        Node::<SerdeJson>::json_type(&self.0)
    }

    fn string_length(&self) -> Option<u64> {
        self.counts_characters();
        Node::<SerdeJson>::string_length(&self.0)
    }

    fn string_length_within(&self, min: u64, max: u64) -> Option<bool> {
        self.counts_characters();
        Node::<SerdeJson>::string_length_within(&self.0, min, max)
    }

    fn equals_value(&self, expected: &Value) -> bool {
        spend(|_| size(expected));
        Node::<SerdeJson>::equals_value(&self.0, expected)
    }

    /// Only for what is said of a value.
    fn to_value(&self) -> Cow<'a, Value> {
        spend(|_| COMPLAINT);
        let mut room = QUOTED;
        let quoted = quoted(self.0, &mut room);
        if room > 0 { Cow::Borrowed(self.0) } else { Cow::Owned(quoted) }
    }

    fn identity(&self) -> Option<NodeIdentity> {
        spend(|_| 1);
        Node::<SerdeJson>::identity(&self.0)
    }
}

impl Seen<'_> {
    fn counts_characters(&self) {
        let length = self.0.as_str().map_or(0, str::len);
        spend(|_| 1 + (length / BYTES_A_STEP / 8) as u64);
    }
}

/// The beginning of a value, in at most about so many bytes of JSON; `room` is 0 when there is
/// more of it.
fn quoted(value: &Value, room: &mut usize) -> Value {
    match value {
        Value::String(text) if text.len() >= *room => {
            let start = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= *room);
            let start: String = start.map(|(_, c)| c).collect();
            *room = 0;
            Value::String(start + "…")
        }
        Value::Array(list) => {
            let mut start = vec![];
            for value in list {
                if *room == 0 {
                    break;
                }
                start.push(quoted(value, room));
            }
            *room = room.saturating_sub(2);
            Value::Array(start)
        }
        Value::Object(map) => {
            let mut start = Map::new();
            for (key, value) in map {
                if *room == 0 {
                    break;
                }
                *room = room.saturating_sub(key.len() + 3);
                start.insert(key.chars().take(QUOTED).collect(), quoted(value, room));
            }
            *room = room.saturating_sub(2);
            Value::Object(start)
        }
        Value::String(text) => {
            *room -= text.len();
            *room = room.saturating_sub(3);
            value.clone()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            *room = room.saturating_sub(2);
            value.clone()
        }
    }
}

/// A value and those within it, and a little for long texts.
pub fn size(value: &Value) -> u64 {
    /// As much as a value by itself.
    const BYTES: usize = 64;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => 1 + (text.len() / BYTES) as u64,
        Value::Array(list) => 1 + list.iter().map(size).sum::<u64>(),
        Value::Object(map) => {
            let fields = map.iter().map(|(key, value)| (key.len() / BYTES) as u64 + size(value));
            1 + fields.sum::<u64>()
        }
    }
}

/// An object.
#[derive(Clone, Copy)]
pub struct Members<'a>(&'a Map<String, Value>);

/// Its fields in their order.
pub struct MembersIter<'a>(map::Iter<'a>);

impl<'a> Iterator for MembersIter<'a> {
    type Item = (&'a str, Seen<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.0.next()?;
        spend(|weight| weight.member + (key.len() / BYTES_A_STEP) as u64);
        Some((key, Seen(value)))
    }
}

impl<'a> Object<'a, Metered> for Members<'a> {
    type Node = Seen<'a>;
    type MemberName = &'a str;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Seen<'a>> {
        spend(|_| 1);
        Object::<SerdeJson>::get(&self.0, key).map(Seen)
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter(self.0.iter())
    }
}

/// A list.
#[derive(Clone, Copy)]
pub struct Elements<'a>(&'a [Value]);

/// Its elements in their order.
pub struct ElementsIter<'a>(std::slice::Iter<'a, Value>);

impl<'a> Iterator for ElementsIter<'a> {
    type Item = Seen<'a>;

    fn next(&mut self) -> Option<Seen<'a>> {
        let value = self.0.next()?;
        spend(|weight| weight.element);
        Some(Seen(value))
    }
}

impl<'a> Array<'a, Metered> for Elements<'a> {
    type Node = Seen<'a>;
    type ElementsIter = ElementsIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> ElementsIter<'a> {
        ElementsIter(self.0.iter())
    }

    fn is_unique(&self) -> bool {
        // A few are compared with each other.
        spend(|_| 8 * self.0.iter().map(size).sum::<u64>());
        Array::<SerdeJson>::is_unique(&self.0)
    }
}
