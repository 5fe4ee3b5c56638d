//! A message of an answer, or what an event adds to one: text, thoughts, calls.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::wire::{Accused, Index, fields, objects};
use crate::openai::forgiving::{Filled, Read, Text, many, object, otherwise, skip};

objects!(Message, CallPart, Function);

#[derive(Default)]
pub(super) struct Message<'a> {
    pub content: Content<'a>,
    pub refusal: Text<'a>,
    pub tool_calls: Calls<'a>,
    pub function_call: Option<Function<'a>>,
    /// Something else than text that is for the user.
    pub media: bool,
    /// The model thinks.
    pub thought: bool,
    /// Something that says no word, and shows that the server is at work.
    pub aside: bool,
    /// Why it failed.
    pub error: Accused,
    /// Something that Serinus does not know, or of another type than expected.
    pub unread: bool,
}

impl<'de: 'a, 'a> Read<'de> for Message<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        fields!(self, name, map; content, refusal, tool_calls, error;
            "function_call" => {
                let called: Option<Function<'_>> = map.next_value()?;
                self.function_call = called.filter(|called| called.is_there);
            },
            "audio" | "images" | "image" | "video" => {
                self.media |= map.next_value::<Filled>()?.0;
            },
            "reasoning_content" | "reasoning" | "reasoning_details" | "reasoning_text"
            | "reasoning_summary" | "reasoning_opaque" | "reasoning_encrypted"
            | "reasoning_encrypted_content" | "reasoning_signature" | "encrypted_reasoning"
            | "encrypted_content" | "redacted_thinking" | "thinking" | "thinking_blocks"
            | "thinking_content" | "thinking_signature" | "thought" | "thoughts"
            | "thought_signature" | "thoughtSignature" | "cot" | "cot_id" | "cot_summary"
            | "chain_of_thought" | "analysis" | "signature" => {
                self.thought |= map.next_value::<Filled>()?.0;
            },
            "role" | "name" | "id" | "type" | "object" | "index" | "model" | "created"
            | "status" | "prefix" | "partial" | "weight" | "end_turn" | "recipient" => skip(map)?,
            "annotations" | "citations" | "provider_specific_fields" | "extra_content"
            | "logprobs" | "metadata" | "context" | "token_ids" | "stop_reason" => {
                self.aside |= map.next_value::<Filled>()?.0;
            },
            _ => self.unread |= map.next_value::<Filled>()?.0,
        );
        Ok(())
    }

    fn is_odd(&mut self) {
        self.unread = true;
    }
}

/// What a message holds: a text, or parts of which some may be no text.
#[derive(Default)]
pub(super) struct Content<'a> {
    pub text: Text<'a>,
    pub thought: bool,
    pub media: bool,
    pub refused: bool,
    pub unread: bool,
    /// The text of parts of the type `output_text`: all that clients read of a response.
    pub output: Text<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Content { text: Text(Some(Cow::Borrowed(text))), ..Content::default() })
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Content { text: Text(Some(Cow::Owned(text.to_owned()))), ..Content::default() })
    }

    /// The parts of a message (`[{"type": "text", "text": …}, …]`).
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut whole, mut texts, mut outputs) =
            (Content::default(), None::<String>, None::<String>);
        while let Some(Part(part)) = seq.next_element()? {
            if let Some(text) = &part.text.0 {
                texts.get_or_insert_default().push_str(text);
            }
            whole.thought |= part.thought;
            whole.media |= part.media;
            whole.refused |= part.refused;
            whole.unread |= part.unread;
            if let Some(text) = &part.output.0 {
                outputs.get_or_insert_default().push_str(text);
            }
        }
        whole.text = Text(texts.map(Cow::Owned));
        whole.output = Text(outputs.map(Cow::Owned));
        Ok(whole)
    }

    /// One part, without its list.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut part, mut kind, mut filled) = (Content::default(), Text(None), false);
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            match &*name {
                "text" => part.text = map.next_value()?,
                "type" => kind = map.next_value::<Text<'_>>()?,
                "refusal" => part.refused |= map.next_value::<Filled>()?.0,
                "index" | "id" | "annotations" | "cache_control" | "logprobs" => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ => filled |= map.next_value::<Filled>()?.0,
            }
        }
        if kind.0.as_deref() == Some("output_text") {
            part.output = Text(part.text.0.clone());
        }
        match kind.0.as_deref() {
            Some("thinking" | "reasoning" | "redacted_thinking" | "thought" | "reference") => {
                part.thought = true;
                part.text = Text(None);
            }
            Some("refusal") => part.refused = true,
            None | Some("" | "text" | "output_text") => {
                part.unread = part.text.0.is_none() && filled;
            }
            Some(_) if part.text.0.is_some() => {}
            Some(_) => part.media = true,
        }
        Ok(part)
    }

    otherwise!(|_this, filled| Content { unread: filled, ..Content::default() };
        unit, bool, number);
}

/// An element of a list of parts: an object, or a text.
struct Part<'a>(Content<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Part<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                ContentVisitor.visit_borrowed_str(text).map(Part)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                ContentVisitor.visit_str(text).map(Part)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                ContentVisitor.visit_map(map).map(Part)
            }
            otherwise!(|_this, filled| Part(Content { unread: filled, ..Content::default() });
                unit, bool, number, list);
        }
        deserializer.deserialize_any(One)
    }
}

/// A list of calls, or whatever else is there in its place.
#[derive(Default)]
pub(super) struct Calls<'a> {
    pub parts: Vec<CallPart<'a>>,
    pub filled: bool,
    /// There is an object, where clients go through a list.
    pub is_object: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Calls<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Calls<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                let parts = many(seq)?;
                Ok(Calls { filled: !parts.is_empty(), is_object: false, parts })
            }
            otherwise!(@map |_this, filled| Calls { filled, is_object: filled, parts: vec![] });
            otherwise!(|_this, filled| Calls { filled, ..Calls::default() };
                unit, bool, number, text);
        }
        deserializer.deserialize_any(Any)
    }
}

/// A call of a tool, or what comes next of one.
#[derive(Default)]
pub(super) struct CallPart<'a> {
    pub index: Index,
    pub id: Text<'a>,
    pub function: Option<Function<'a>>,
    pub kind: Text<'a>,
    /// Something else is there.
    pub other: bool,
}

impl CallPart<'_> {
    /// A call of something else than a function: a custom tool, a search of the server's own.
    pub fn is_of_another_kind(&self) -> bool {
        let kind = self.kind.0.as_deref().unwrap_or_default();
        self.function.is_none() && kind != "function" && (self.other || !kind.is_empty())
    }
}

impl<'de: 'a, 'a> Read<'de> for CallPart<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        fields!(self, name, map; index, id, function;
            "type" => self.kind = map.next_value()?,
            _ => self.other |= map.next_value::<Filled>()?.0,
        );
        Ok(())
    }
}

pub(super) struct Function<'a> {
    pub name: Text<'a>,
    /// As a text; what is no text as it was written.
    pub arguments: Option<Cow<'a, str>>,
    /// They are a text, as clients expect them, or there are none.
    pub is_text: bool,
    pub is_there: bool,
}

impl Default for Function<'_> {
    fn default() -> Self {
        Self { name: Text(None), arguments: None, is_text: true, is_there: false }
    }
}

impl<'de: 'a, 'a> Read<'de> for Function<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        self.is_there = true;
        fields!(self, name, map; name;
            "arguments" => (self.arguments, self.is_text) = arguments(map.next_value()?),
            _ => skip(map)?,
        );
        Ok(())
    }
}

/// The arguments of a call, and whether they are a text where there are any.
pub(super) fn arguments(raw: &RawValue) -> (Option<Cow<'_, str>>, bool) {
    match raw.get() {
        "null" => (None, true),
        text if text.starts_with('"') => (serde_json::from_str(text).ok().map(Cow::Owned), true),
        other => (Some(Cow::Borrowed(other)), false),
    }
}
