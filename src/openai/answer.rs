//! What an answer said, collected from JSON or from the events of a stream.
//!
//! Servers differ in what they send, so that every part is read by itself: a field of
//! another type than expected says nothing, and hides nothing of the rest.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    request::{Content, Operation, Text},
    usage::{Nested, Timings, Tokens, Usage},
};

/// Text beyond this is counted as there but not kept for checking.
const LONGEST_TEXT: usize = 1 << 20;

/// An answer as far as Serinus reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text of the first choice.
    pub text: String,
    /// The text was longer than what is kept.
    pub cut: bool,
    /// The model called a tool, or answered with something else than text.
    pub tool_call: bool,
    /// The model refused.
    pub refused: bool,
    /// The server says within the answer that it failed.
    pub failed: bool,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// What it took.
    pub tokens: Tokens,
    /// Events with content so far: about the output tokens of a stream that was cut off.
    pub contents: u64,
    /// The model that has answered.
    pub model: Option<String>,
    /// The backend's id of the answer.
    pub id: Option<String>,
    /// The stream said that it is complete.
    pub done: bool,
    /// Choices besides the first that have begun and not ended.
    pub begun: Vec<u32>,
}

/// What an event of a stream carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Content for the user.
    pub content: bool,
    /// Nothing but usage: an application that did not ask for usage does not expect it.
    pub only_usage: bool,
    /// Nothing but text of the first choice, which lies here in the event as it is.
    pub only_text: Option<Range<usize>>,
}

impl Answer {
    /// Reads a whole JSON answer.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn whole(operation: Operation, json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut answer = Self { done: true, ..Self::default() };
        match serde_json::from_slice::<Body<'_>>(json) {
            Ok(body) => {
                answer.absorb(operation, body);
            }
            // JSON of another shape says nothing, and is passed on.
            Err(_) => {
                serde_json::from_slice::<IgnoredAny>(json)?;
            }
        }
        Ok(answer)
    }

    /// Reads one payload of a stream.
    pub fn event(&mut self, operation: Operation, data: &[u8]) -> Carried {
        if data == b"[DONE]" {
            self.done = true;
            return Carried::default();
        }
        let carried = self.read_event(operation, data).unwrap_or_default();
        self.contents += u64::from(carried.content);
        carried
    }

    fn read_event(&mut self, operation: Operation, data: &[u8]) -> Option<Carried> {
        if operation == Operation::Responses {
            return Some(self.responses_event(serde_json::from_slice(data).ok()?));
        }
        // Each event tells again whose it is, which is known by now.
        if self.id.is_some() && self.model.is_some() {
            let said: Said<'_> = serde_json::from_slice(data).ok()?;
            let only_text = said.only_text().and_then(|text| place(text, data));
            return Some(Carried { only_text, ..self.said(said) });
        }
        Some(self.absorb(operation, serde_json::from_slice(data).ok()?))
    }

    /// Reads an event that says nothing but this text of the first choice.
    pub(super) fn goes_on(&mut self, text: &str) -> Carried {
        let content = !text.is_empty();
        self.contents += u64::from(content);
        self.say(text);
        Carried { content, ..Carried::default() }
    }

    /// Whether a stream came to its end: it said so, or gave a reason before the connection closed.
    pub fn complete(&self) -> bool {
        self.done || (self.finish_reason.is_some() && self.begun.is_empty())
    }

    fn absorb(&mut self, operation: Operation, body: Body<'_>) -> Carried {
        keep(&mut self.id, body.id);
        keep(&mut self.model, body.model);
        if operation == Operation::Embeddings {
            self.tool_call |= body.data.0;
        }
        let Body { choices, error, usage, x_groq, timings, .. } = body;
        let carried = self.said(Said { choices, error, usage, x_groq, timings });
        for item in body.output.0 {
            self.output_item(item);
        }
        if let Some(status) = body.status.0 {
            self.ended_as(&status, body.incomplete_details);
        }
        carried
    }

    fn said(&mut self, said: Said<'_>) -> Carried {
        let choices = said.choices.0;
        self.failed |= said.error.0;
        self.tokens.absorb(said.timings.map(|t| t.tokens()).unwrap_or_default());
        self.tokens.absorb(said.x_groq.map(|x| x.usage.tokens()).unwrap_or_default());
        let usage = tokens(said.usage);
        let told = usage != Tokens::default();
        let only_usage = told && choices.is_empty();
        let mut carried = Carried { only_usage, ..Carried::default() };
        for choice in choices {
            carried.content |= self.choice(choice);
        }
        self.tokens.absorb(usage);
        carried
    }

    /// Says whether it carried content.
    fn choice(&mut self, choice: Choice<'_>) -> bool {
        // Of several choices the first is checked; all are content.
        let index = choice.index.unwrap_or(0);
        let first = index == 0;
        let mut content = false;
        self.tokens.absorb(tokens(choice.usage));
        let message = choice.message.or(choice.delta).unwrap_or_default();
        // Some servers send an empty reason until there is one.
        let reason = choice.finish_reason.0.filter(|reason| !reason.is_empty());
        // Together says the same in both.
        content |= message.content.other;
        let said = message.content.text.0.filter(|text| !text.is_empty()).or(choice.text.0);
        if let Some(text) = said {
            content |= !text.is_empty();
            if first {
                self.say(&text);
            }
        }
        let thinks = [message.reasoning_content, message.reasoning];
        content |= thinks.iter().any(|t| t.0.as_ref().is_some_and(|t| !t.is_empty()));
        let refusal = message.refusal.0.is_some_and(|r| !r.is_empty());
        let other =
            message.tool_calls.0 || message.function_call.0 || message.audio.0 || message.images.0;
        content |= refusal || other;
        if !first {
            self.begun.retain(|begun| *begun != index);
            if reason.is_none() {
                self.begun.push(index);
            }
        }
        if first {
            self.refused |= refusal;
            self.tool_call |= other;
            if let Some(reason) = reason {
                self.refused |= reason == "content_filter";
                // How OpenRouter ends what its provider broke off.
                self.failed |= reason == "error";
                self.finish_reason = Some(reason.into_owned());
            }
        }
        content
    }

    fn say(&mut self, text: &str) {
        self.cut |= self.text.len() + text.len() > LONGEST_TEXT;
        if !self.cut {
            self.text.push_str(text);
        }
    }

    fn output_item(&mut self, item: Item<'_>) {
        match item.kind.0.as_deref() {
            Some("message") => {
                for part in item.content.0 {
                    self.refused |= part.kind.0.as_deref() == Some("refusal");
                    if let Some(text) = part.text.0 {
                        self.say(&text);
                    }
                }
            }
            // Thinking is neither text nor a call.
            Some("reasoning") | None => {}
            Some(_) => self.tool_call = true,
        }
    }

    fn responses_event(&mut self, body: Body<'_>) -> Carried {
        let kind = body.kind.0.unwrap_or_default();
        let filled = body.delta.0.as_ref().is_some_and(|d| !d.is_empty());
        match kind.as_ref() {
            "response.output_text.delta" => {
                if let Some(text) = body.delta.0 {
                    self.say(&text);
                }
            }
            "response.refusal.delta" => self.refused = true,
            "error" => self.failed = true,
            _ => {}
        }
        if let Some(response) = body.response {
            let status = response.status.0;
            keep(&mut self.id, response.id);
            keep(&mut self.model, response.model);
            self.tokens.absorb(tokens(response.usage));
            if matches!(
                kind.as_ref(),
                "response.completed" | "response.incomplete" | "response.failed"
            ) {
                self.done = true;
                self.tool_call |= response.output.0.iter().any(|item| {
                    !matches!(item.kind.0.as_deref(), Some("message" | "reasoning") | None)
                });
                self.ended_as(status.as_deref().unwrap_or_default(), response.incomplete_details);
            }
        }
        Carried { content: filled && kind.ends_with(".delta"), ..Carried::default() }
    }

    /// The status of a response, in the words of chat's finish reasons.
    fn ended_as(&mut self, status: &str, incomplete: Option<Incomplete<'_>>) {
        let reason = match status {
            "completed" => "stop",
            "failed" => {
                self.failed = true;
                "error"
            }
            "incomplete" => match incomplete.and_then(|i| i.reason.0).as_deref() {
                Some("content_filter") => {
                    self.refused = true;
                    "content_filter"
                }
                _ => "length",
            },
            _ => return,
        };
        self.finish_reason = Some(reason.to_owned());
    }
}

/// What few events hold, and is large.
type Rare<T> = Option<Box<T>>;

fn tokens(usage: Rare<Usage>) -> Tokens {
    usage.map(|usage| usage.tokens()).unwrap_or_default()
}

/// Where a part of some bytes lies in them.
fn place(part: &str, whole: &[u8]) -> Option<Range<usize>> {
    let from = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let range = from..from + part.len();
    (whole.get(range.clone())? == part.as_bytes()).then_some(range)
}

fn keep(slot: &mut Option<String>, text: Text<'_>) {
    if slot.is_none() {
        *slot = text.0.filter(|t| !t.is_empty()).map(|t| t.into_owned());
    }
}

/// An answer, or an event of a stream, of any operation.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    model: Text<'a>,
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow)]
    status: Text<'a>,
    #[serde(borrow)]
    delta: Text<'a>,
    #[serde(borrow)]
    choices: Many<Choice<'a>>,
    #[serde(borrow)]
    output: Many<Item<'a>>,
    data: Filled,
    error: Filled,
    usage: Rare<Usage>,
    x_groq: Rare<Nested>,
    timings: Rare<Timings>,
    #[serde(borrow)]
    incomplete_details: Option<Incomplete<'a>>,
    #[serde(borrow)]
    response: Option<Box<Body<'a>>>,
}

/// What an event of a chat or a completion says besides whose it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said<'a> {
    #[serde(borrow)]
    choices: Many<Choice<'a>>,
    error: Filled,
    usage: Rare<Usage>,
    x_groq: Rare<Nested>,
    timings: Rare<Timings>,
}

impl<'a> Said<'a> {
    /// The text of the first choice, if that is all that this event says and was read
    /// without being decoded. Each field stands here, so that a new one can not be
    /// forgotten.
    fn only_text(&self) -> Option<&'a str> {
        let Said {
            choices: Many(choices),
            error: Filled(false),
            usage: None,
            x_groq: None,
            timings: None,
        } = self
        else {
            return None;
        };
        let [
            Choice {
                index: None | Some(0),
                message: None,
                delta,
                text,
                finish_reason: Text(None),
                usage: None,
            },
        ] = &choices[..]
        else {
            return None;
        };
        let text = match (delta, text) {
            (
                Some(Message {
                    content: Content { text: content, other: false },
                    refusal: Text(None),
                    reasoning_content: Text(None),
                    reasoning: Text(None),
                    tool_calls: Filled(false),
                    function_call: Filled(false),
                    audio: Filled(false),
                    images: Filled(false),
                }),
                Text(None),
            ) => content,
            (None, text) => text,
            _ => return None,
        };
        match text {
            Text(Some(Cow::Borrowed(text))) => Some(*text),
            _ => None,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Choice<'a> {
    index: Option<u32>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    delta: Option<Message<'a>>,
    #[serde(borrow)]
    text: Text<'a>,
    #[serde(borrow)]
    finish_reason: Text<'a>,
    usage: Rare<Usage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Message<'a> {
    #[serde(borrow)]
    content: Content<'a>,
    #[serde(borrow)]
    refusal: Text<'a>,
    #[serde(borrow)]
    reasoning_content: Text<'a>,
    #[serde(borrow)]
    reasoning: Text<'a>,
    tool_calls: Filled,
    function_call: Filled,
    audio: Filled,
    images: Filled,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow)]
    content: Many<ItemPart<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ItemPart<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow)]
    text: Text<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Incomplete<'a> {
    #[serde(borrow)]
    reason: Text<'a>,
}

/// A list; empty for anything else.
struct Many<T>(Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for All<T> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or null")
            }
            fn visit_unit<E>(self) -> Result<Vec<T>, E> {
                Ok(vec![])
            }
            fn visit_str<E>(self, _: &str) -> Result<Vec<T>, E> {
                Ok(vec![])
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::with_capacity(1);
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(All(std::marker::PhantomData)).map(Many)
    }
}

/// Whether there is something: not null, and not an empty list or text.
#[derive(Clone, Copy, Default)]
struct Filled(bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = bool;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_unit<E>(self) -> Result<bool, E> {
                Ok(false)
            }
            fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
                Ok(value)
            }
            fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
                Ok(true)
            }
            fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
                Ok(true)
            }
            fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
                Ok(true)
            }
            fn visit_str<E>(self, text: &str) -> Result<bool, E> {
                Ok(!text.is_empty())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
                let mut some = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    some = true;
                }
                Ok(some)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
                let mut some = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    some = true;
                }
                Ok(some)
            }
        }
        deserializer.deserialize_any(Any).map(Filled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn whole(operation: Operation, json: &Value) -> Answer {
        Answer::whole(operation, json.to_string().as_bytes()).unwrap()
    }

    fn chat(json: &Value) -> Answer {
        whole(Operation::Chat, json)
    }

    fn stream(operation: Operation, events: &[Value]) -> (Answer, Vec<bool>) {
        let mut answer = Answer::default();
        let content = events
            .iter()
            .map(|e| answer.event(operation, e.to_string().as_bytes()).content)
            .collect();
        (answer, content)
    }

    #[test]
    fn a_stream_and_its_json_form_say_the_same() {
        let (mut streamed, content) = stream(
            Operation::Chat,
            &[
                json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
                json!({"choices": [{"delta": {"content": "Hel"}}], "usage": null}),
                json!({"choices": [{"delta": {"content": "lo"}, "finish_reason": null}]}),
                json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
                json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}}),
            ],
        );
        assert_eq!(content, [false, true, true, false, false]);
        assert!(streamed.complete() && !streamed.done);
        streamed.event(Operation::Chat, b"[DONE]");
        let whole = chat(&json!({
            "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
        }));
        assert_eq!(streamed, Answer { contents: 2, ..whole });
    }

    #[test]
    fn an_event_of_usage_alone_is_told_apart() {
        let mut answer = Answer::default();
        let mut only_usage =
            |event: Value| answer.event(Operation::Chat, event.to_string().as_bytes()).only_usage;
        assert!(only_usage(json!({"choices": [], "usage": {"prompt_tokens": 1}})));
        // Azure's first event.
        assert!(!only_usage(json!({"choices": [], "prompt_filter_results": []})));
        assert!(!only_usage(json!({"choices": [], "usage": null})));
        assert!(!only_usage(json!({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 1}})));
    }

    #[test]
    fn tool_calls_refusals_and_filters_are_seen() {
        let tool = json!({"choices": [{"message": {"content": null, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}]});
        assert!(chat(&tool).tool_call);
        let refusal = json!({"choices": [{"message": {"content": null, "refusal": "No."}}]});
        assert!(chat(&refusal).refused);
        let filtered =
            json!({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]});
        assert!(chat(&filtered).refused);
    }

    #[test]
    fn the_first_choice_is_checked_in_whatever_order_they_come() {
        let both = json!({"choices": [
            {"index": 1, "message": {"content": "b"}, "finish_reason": "length"},
            {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"},
        ]});
        let answer = chat(&both);
        assert_eq!((answer.text.as_str(), answer.finish_reason.as_deref()), ("a", Some("stop")));
    }

    #[test]
    fn a_stream_of_several_choices_is_complete_when_all_have_ended() {
        let mut answer = Answer::default();
        let mut complete_after = |index: u32, reason: Option<&str>| {
            let choice =
                json!({"index": index, "delta": {"content": "a"}, "finish_reason": reason});
            answer.event(Operation::Chat, json!({"choices": [choice]}).to_string().as_bytes());
            answer.complete()
        };
        assert!(!complete_after(0, None) && !complete_after(1, None) && !complete_after(2, None));
        assert!(!complete_after(0, Some("stop")) && !complete_after(2, Some("stop")));
        assert!(!complete_after(1, None) && complete_after(1, Some("stop")));
    }

    #[test]
    fn completions_and_embeddings_say_something() {
        let text = json!({"choices": [{"index": 0, "text": "so", "finish_reason": "stop"}]});
        assert_eq!(whole(Operation::Completions, &text).text, "so");
        let vectors = json!({"data": [{"embedding": [0.1, 0.2], "index": 0}], "model": "e"});
        let answer = whole(Operation::Embeddings, &vectors);
        assert!(answer.tool_call && answer.model.as_deref() == Some("e"));
        assert!(!whole(Operation::Embeddings, &json!({"data": []})).tool_call);
    }

    #[test]
    fn a_response_and_its_stream_say_the_same() {
        let body = json!({
            "id": "resp_1", "model": "m", "status": "completed", "error": null,
            "output": [{"type": "reasoning"}, {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}],
        });
        let direct = whole(Operation::Responses, &body);
        let (streamed, content) = stream(
            Operation::Responses,
            &[
                json!({"type": "response.created", "response": {"id": "resp_1", "model": "m", "status": "in_progress"}}),
                json!({"type": "response.output_text.delta", "delta": "Hel"}),
                json!({"type": "response.output_text.delta", "delta": "lo"}),
                json!({"type": "response.completed", "response": body}),
            ],
        );
        assert_eq!(content, [false, true, true, false]);
        assert_eq!(streamed, Answer { contents: 2, ..direct });
        assert_eq!(streamed.finish_reason.as_deref(), Some("stop"));
        let cut =
            json!({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}});
        assert_eq!(whole(Operation::Responses, &cut).finish_reason.as_deref(), Some("length"));
        assert!(whole(Operation::Responses, &json!({"status": "failed"})).failed);
    }

    #[test]
    fn an_error_within_a_stream_is_a_failure() {
        let (answer, content) =
            stream(Operation::Chat, &[json!({"error": {"message": "overloaded", "code": 503}})]);
        assert!(answer.failed && content == [false]);
        assert!(!chat(&json!({"error": null, "choices": []})).failed);
    }

    #[test]
    fn an_error_beside_choices_is_a_failure_too() {
        // OpenRouter, whose provider broke off.
        let event = json!({
            "error": {"code": "server_error", "message": "Provider disconnected"},
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
        });
        let (answer, _) = stream(
            Operation::Chat,
            &[json!({"id": "1", "model": "m", "choices": [{"delta": {"content": "a"}}]}), event],
        );
        assert!(answer.failed);
        let whole = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]});
        assert!(chat(&whole).failed);
    }

    #[test]
    fn thoughts_in_parts_and_images_are_content() {
        // Mistral's reasoning models, and OpenRouter's that draw.
        let thinks = json!([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]);
        let (answer, content) = stream(
            Operation::Chat,
            &[
                json!({"choices": [{"delta": {"role": "assistant", "content": []}}]}),
                json!({"choices": [{"delta": {"content": thinks}}]}),
                json!({"choices": [{"delta": {"content": [{"type": "text", "text": "Yes"}]}}]}),
                json!({"choices": [{"delta": {"images": [{"image_url": {"url": "data:"}}]}}]}),
            ],
        );
        assert_eq!(content, [false, true, true, true]);
        assert_eq!((answer.text.as_str(), answer.tool_call), ("Yes", true));
    }

    #[test]
    fn an_empty_reason_is_none() {
        let mut answer = Answer::default();
        for (text, reason, complete) in [("a", "", false), ("b", "", false), ("", "stop", true)] {
            let choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": reason});
            answer.event(Operation::Chat, json!({"choices": [choice]}).to_string().as_bytes());
            assert_eq!(answer.complete(), complete, "{text}");
        }
    }

    #[test]
    fn what_is_not_json_says_nothing_and_harms_nothing() {
        let mut answer = Answer::default();
        assert_eq!(answer.event(Operation::Chat, b"\xff\xfe{"), Carried::default());
        assert_eq!(answer, Answer::default());
        assert!(Answer::whole(Operation::Chat, b"<html>").is_err());
        let odd = json!({"choices": "none", "usage": null, "model": 7, "id": [1], "error": []});
        assert_eq!(chat(&odd), Answer { done: true, ..Answer::default() });
        assert_eq!(chat(&json!([1])), Answer { done: true, ..Answer::default() });
    }
}
