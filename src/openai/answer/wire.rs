//! The fields that are read of an answer. Each is read by itself: what is of another type
//! than expected is absent, and noted as something that was not understood.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{
    message::{Content, Message, arguments},
    vectors::Vectors,
};
use crate::openai::{
    forgiving::{Filled, Many, Read, Text, object, otherwise, skip},
    reason::is_none,
    usage::{Nested, Timings, Usage},
};

/// What few events hold, and is large.
pub(super) type Rare<T> = Option<Box<T>>;

/// Reads fields into those of the object that have the same name.
macro_rules! fields {
    ($self:ident, $name:ident, $map:ident; $($field:ident),*; $($key:pat => $read:expr),* $(,)?) => {
        match $name {
            $(stringify!($field) => $self.$field = $map.next_value()?,)*
            $($key => $read,)*
        }
    };
}

macro_rules! objects {
    ($($object:ident),*) => {
        $(impl<'de: 'a, 'a> Deserialize<'de> for $object<'a> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                object(deserializer)
            }
        })*
    };
}

objects!(Body, Choice, Item, Incomplete, Base);

pub(super) use {fields, objects};

/// An answer, or an event of a stream, of any operation.
#[derive(Default)]
pub(super) struct Body<'a> {
    pub id: Text<'a>,
    pub model: Text<'a>,
    pub kind: Text<'a>,
    pub status: Text<'a>,
    pub delta: Delta<'a>,
    pub choices: Many<Choice<'a>>,
    pub output: Many<Item<'a>>,
    pub item: Rare<Item<'a>>,
    pub data: Vectors,
    pub usage: Rare<Usage>,
    pub x_groq: Rare<Nested>,
    pub timings: Rare<Timings>,
    pub incomplete_details: Rare<Incomplete<'a>>,
    pub response: Rare<Body<'a>>,
    /// It says itself that it is an error.
    pub error: Accused,
    pub signs: Signs,
    /// It has a field that a plain error does not have.
    pub more: bool,
    /// It has a list of choices, empty or not.
    pub listed: bool,
    /// It has a field that belongs to an answer and is none of the above.
    pub familiar: bool,
    /// It has a field.
    pub some: bool,
    /// It is no object.
    pub odd: bool,
}

/// What makes an object an error, beside an answer or without one. Good answers have some of these
/// fields, too: iFlytek's Spark says `"code": 0, "message": "Success"` in each event, others an
/// empty list of `errors`, and Volcengine names the request in `ResponseMetadata`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signs {
    /// A field that only errors have, or an object that calls itself one.
    strong: bool,
    /// A field by which an answer says of itself that it failed.
    failed: bool,
    /// Words that tell of an error, where no code says that there is none.
    words: bool,
    code: bool,
    /// The code is a status of HTTP that means a failure.
    code_of_failure: bool,
    /// A code says that all is well.
    fine: bool,
    message: bool,
    /// A message that does not say that all is well.
    complains: bool,
}

impl Signs {
    pub const NONE: Self = Self {
        strong: false,
        failed: false,
        words: false,
        code: false,
        code_of_failure: false,
        fine: false,
        message: false,
        complains: false,
    };

    /// Whether an object without an answer is an error.
    pub fn tell(self) -> bool {
        self.strong || (self.code && self.message)
    }

    /// Whether an answer beside them has failed.
    pub fn tell_beside(self) -> bool {
        self.failed || (self.words && !self.fine) || (self.code_of_failure && self.complains)
    }

    /// Whether an object that has nothing else is an error by its message.
    pub fn are_a_message(self) -> bool {
        self.complains && !self.fine
    }

    fn is_failure(&mut self, told: bool) {
        self.strong |= told;
        self.failed |= told;
    }

    fn at<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "detail" | "fault" | "__type" | "ResponseMetadata" => {
                self.strong |= map.next_value::<Accused>()?.is_told();
            }
            "errors" | "err" | "Error" | "ERROR" | "exception" | "traceback" => {
                let told = map.next_value::<Accused>()?.is_told();
                self.is_failure(told);
            }
            "error_code" | "errorCode" | "errcode" | "err_code" => {
                let code = map.next_value::<Accused>()?;
                self.is_failure(code.is_told());
                self.fine |= code.fine;
            }
            "error_msg" | "error_message" | "errorMessage" | "errmsg" | "err_msg"
            | "error_type" | "errorType" => {
                let told = map.next_value::<Accused>()?.is_told();
                self.strong |= told;
                self.words |= told;
            }
            "code" | "Code" => {
                let code = map.next_value::<Accused>()?;
                self.code |= code.is_told();
                self.code_of_failure |= code.is_status;
                self.fine |= code.fine;
            }
            "status_code" | "statusCode" | "httpStatus" | "http_status" => {
                let status = map.next_value::<Accused>()?;
                self.is_failure(status.is_status);
            }
            "success" => {
                let told = map.next_value::<Denied>()?.0;
                self.is_failure(told);
            }
            "message" | "msg" | "Message" | "details" | "title" => {
                let text = map.next_value::<Text<'_>>()?.0.unwrap_or_default();
                self.message |= !text.is_empty();
                self.complains |= !is_success(&text) && !is_a_word_of_life(&text);
            }
            // The exceptions of Bedrock's streams are named so.
            exception if exception.ends_with("Exception") => {
                let told = map.next_value::<Filled>()?.0;
                self.is_failure(told);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Whether it says that a connection is alive, and nothing else.
pub(super) fn is_a_word_of_life(word: &str) -> bool {
    matches!(word, "ping" | "pong" | "heartbeat" | "keepalive" | "keep-alive")
}

/// Whether a server says that it did not succeed.
#[derive(Default)]
struct Denied(bool);

impl<'de> Deserialize<'de> for Denied {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Denied;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E>(self, succeeded: bool) -> Result<Self::Value, E> {
                Ok(Denied(!succeeded))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Denied(text.trim().eq_ignore_ascii_case("false")))
            }
            otherwise!(|_this, _filled| Denied(false); unit, number, list, map);
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de: 'a, 'a> Read<'de> for Body<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        self.some = true;
        self.more |= !is_of_an_error(name);
        fields!(self, name, map;
            id, model, delta, output, item, data, usage, x_groq, timings, incomplete_details,
            response, error;
            "choices" => {
                self.choices = map.next_value()?;
                self.listed = true;
            },
            "type" => self.kind = map.next_value()?,
            "status" => {
                let Status { text, is_http } = map.next_value()?;
                self.error.told |= text.0.as_deref().is_some_and(is_failure);
                self.status = text;
                self.signs.is_failure(is_http);
            },
            "object" => {
                let object: Text<'_> = map.next_value()?;
                self.error.told |= object.0.as_deref() == Some("error");
            },
            "base_resp" => self.error.told |= map.next_value::<Base<'_>>()?.is_error,
            "created" | "prompt_filter_results" | "prompt_progress" | "obfuscation" | "provider"
            | "service_tier" | "system_fingerprint" | "sequence_number" | "citations"
            | "search_results" | "nvext" | "x_request_id" | "request_id" => {
                self.familiar = true;
                skip(map)?;
            },
            other => if !self.signs.at(other, map)? {
                skip(map)?;
            },
        );
        Ok(())
    }

    fn is_odd(&mut self) {
        self.odd = true;
    }
}

/// Whether a plain error may have such a field.
fn is_of_an_error(name: &str) -> bool {
    matches!(
        name,
        "message"
            | "msg"
            | "Message"
            | "type"
            | "code"
            | "Code"
            | "status"
            | "param"
            | "request_id"
            | "requestId"
    )
}

/// `status`: a word of the Responses API, or the number of an error.
#[derive(Default)]
struct Status<'a> {
    text: Text<'a>,
    is_http: bool,
}

/// The statuses of HTTP that mean a failure.
const FAILURES: Range<u64> = 400..600;

fn is_status_of_failure(text: &str) -> bool {
    text.trim().parse().is_ok_and(|number| FAILURES.contains(&number))
}

/// Whether a server says by this status that it failed, whatever is beside it.
fn is_failure(status: &str) -> bool {
    ["failed", "failure", "error"].iter().any(|word| status.eq_ignore_ascii_case(word))
}

impl<'de: 'a, 'a> Deserialize<'de> for Status<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Status<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                let is_http = is_status_of_failure(text);
                Ok(Status { text: Text(Some(Cow::Borrowed(text))), is_http })
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                let is_http = is_status_of_failure(text);
                Ok(Status { text: Text(Some(Cow::Owned(text.to_owned()))), is_http })
            }
            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Status { is_http: FAILURES.contains(&number), ..Status::default() })
            }
            otherwise!(|_this, _filled| Status::default(); unit, bool, signed, list, map);
        }
        deserializer.deserialize_any(Either)
    }
}

/// MiniMax's word of how it went, beside an answer or in place of one.
#[derive(Default)]
struct Base<'a> {
    is_error: bool,
    _lives: std::marker::PhantomData<&'a ()>,
}

impl<'de: 'a, 'a> Read<'de> for Base<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "status_code" => self.is_error = map.next_value::<Accused>()?.is_told(),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Whether something that is there for errors tells of one: not null, 0, false or empty,
/// nor by its own word a success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accused {
    told: bool,
    fine: bool,
    /// It is a status of HTTP that means a failure.
    is_status: bool,
}

impl Accused {
    pub const NONE: Self = Self { told: false, fine: false, is_status: false };

    pub fn is_told(self) -> bool {
        self.told && !self.fine
    }
}

fn is_success(word: &str) -> bool {
    is_none(word)
        || ["0", "200", "ok", "success", "succeeded", "false", "no_error", "noerror", "00000"]
            .iter()
            .any(|fine| word.trim().eq_ignore_ascii_case(fine))
}

impl<'de> Deserialize<'de> for Accused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Accused;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                let fine = is_success(text);
                Ok(Accused { told: !fine, fine, is_status: is_status_of_failure(text) })
            }
            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                let fine = number == 0 || number == 200;
                Ok(Accused { told: !fine, fine, is_status: FAILURES.contains(&number) })
            }
            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                // 500.0 is what some servers write in a language without whole numbers.
                let is_status = number.fract() == 0.0 && FAILURES.contains(&(number as u64));
                Ok(Accused { told: number != 0.0, is_status, ..Accused::NONE })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Accused, A::Error> {
                let mut all = Accused::NONE;
                while let Some(name) = map.next_key::<Cow<'_, str>>()? {
                    let told = map.next_value::<Accused>()?;
                    all.told |= told.told;
                    all.fine |= told.fine && matches!(&*name, "code" | "status" | "status_code");
                }
                Ok(all)
            }
            otherwise!(|_this, filled| Accused { told: filled, ..Accused::NONE };
                unit, bool, negative, list);
        }
        deserializer.deserialize_any(Any)
    }
}

/// What an event of the Responses API adds: a text, or something else.
#[derive(Default)]
pub(super) struct Delta<'a> {
    pub text: Text<'a>,
    pub filled: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Delta<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Delta<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Delta { filled: !text.is_empty(), text: Text(Some(Cow::Borrowed(text))) })
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                let text = Text(Some(Cow::Owned(text.to_owned())));
                Ok(Delta { filled: true, text })
            }
            otherwise!(|_this, filled| Delta { filled, text: Text(None) };
                unit, bool, number, list, map);
        }
        deserializer.deserialize_any(Any)
    }
}

#[derive(Default)]
pub(super) struct Choice<'a> {
    pub index: Index,
    pub message: Option<Message<'a>>,
    pub delta: Option<Message<'a>>,
    pub text: Text<'a>,
    pub finish_reason: Text<'a>,
    pub usage: Rare<Usage>,
    /// Why this choice failed (OpenRouter).
    pub error: Accused,
    /// It is no object.
    pub odd: bool,
}

impl<'de: 'a, 'a> Read<'de> for Choice<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        fields!(self, name, map; index, message, delta, text, finish_reason, usage, error; _ => skip(map)?);
        Ok(())
    }

    fn is_odd(&mut self) {
        self.odd = true;
    }
}

/// Which of several: a number, also as a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Index(pub Option<u32>);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Index;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Index, E> {
                Ok(Index(u32::try_from(number).ok()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Index, E> {
                let whole = number.fract() == 0.0 && (0.0..1e9).contains(&number);
                Ok(Index(whole.then_some(number as u32)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Index, E> {
                Ok(Index(text.trim().parse().ok()))
            }
            otherwise!(|_this, _filled| Index(None); unit, bool, negative, list, map);
        }
        deserializer.deserialize_any(Any)
    }
}

/// A part of the output of a response.
#[derive(Default)]
pub(super) struct Item<'a> {
    pub kind: Text<'a>,
    pub status: Text<'a>,
    pub content: Content<'a>,
    pub id: Text<'a>,
    pub name: Text<'a>,
    pub call_id: Text<'a>,
    pub arguments: Option<Cow<'a, str>>,
    /// Its arguments are something else than a text.
    pub is_unfit: bool,
    /// It has a result, as a picture that was drawn.
    pub result: Filled,
}

impl<'de: 'a, 'a> Read<'de> for Item<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        fields!(self, name, map; status, content, id, name, call_id, result;
            "type" => self.kind = map.next_value()?,
            "arguments" => {
                let (text, is_text) = arguments(map.next_value()?);
                (self.arguments, self.is_unfit) = (text, !is_text);
            },
            _ => skip(map)?,
        );
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct Incomplete<'a> {
    pub reason: Text<'a>,
}

impl<'de: 'a, 'a> Read<'de> for Incomplete<'a> {
    fn read<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        fields!(self, name, map; reason; _ => skip(map)?);
        Ok(())
    }
}
