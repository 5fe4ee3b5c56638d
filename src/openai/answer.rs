//! What an answer said, collected from JSON or from the events of a stream.
//!
//! Servers differ in what they send, so that every part is read by itself: a field of
//! another type than expected says nothing, and hides nothing of the rest. Whether what was
//! read is any good is judged strictly all the same: an error is one in whatever form it is
//! told, and what could not be understood is noted as such.

mod calls;
mod message;
mod responses;
mod vectors;
mod wire;

use std::{borrow::Cow, ops::Range};

pub use self::calls::Call;
use self::{
    calls::Piece,
    message::{Calls, Content, Message},
    wire::{Accused, Body, Choice, Delta, Index, Rare, Signs},
};
use super::{
    complaint::Complaint,
    depth,
    forgiving::{Many, Text},
    mend::{Mended, mend, trimmed},
    reason::{Ending, is_none},
    request::Operation,
    usage::{Tokens, Usage},
};

/// Text beyond this is counted as there but not kept for checking.
const LONGEST_TEXT: usize = 1 << 20;
/// Choices besides the first; no request asks for nearly as many.
const MOST_CHOICES: usize = 1024;

/// An answer as far as Serinus reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text of the first choice.
    pub text: String,
    /// The text was longer than what is kept.
    pub cut: bool,
    /// The model called a tool, or answered with something else than text.
    pub tool_call: bool,
    /// The calls of functions of the first choice.
    pub calls: Vec<Call>,
    /// The model refused.
    pub refused: bool,
    /// The server says within the answer that it failed, or broke it off.
    pub failed: bool,
    /// What it says of that, if it says something.
    pub complaint: Option<Box<Complaint>>,
    /// It is nothing that answers what was asked for: no choices, no output, no vectors.
    pub missing: bool,
    /// Something was said that was not understood.
    pub unread: bool,
    /// Something was said that was understood.
    pub understood: bool,
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
    /// Which choice is the first.
    pub first: Option<u32>,
}

/// What an event of a stream carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Content for the user, or a sign that the model is at work on it.
    pub content: bool,
    /// Nothing but usage: an application that did not ask for usage does not expect it.
    pub only_usage: bool,
    /// It was not understood.
    pub unread: bool,
    /// Nothing but text of the first choice, which lies here in the event as it is.
    pub only_text: Option<Range<usize>>,
}

/// What came is no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not JSON")]
pub struct NotJson;

/// Reads JSON strictly, and if that is not possible without what is odd in it. What no
/// application can read may still be an error, and is nothing else.
fn with_body<T>(json: &[u8], mut read: impl FnMut(Body<'_>) -> T) -> Result<T, NotJson> {
    let json = trimmed(json);
    // What is too deep is mended, too: no reader meets it.
    if depth::bounded(json).is_ok()
        && let Ok(body) = serde_json::from_slice(json)
    {
        return Ok(read(body));
    }
    let Mended { json, parses } = mend(json).ok_or(NotJson)?;
    let body = serde_json::from_slice::<Body<'_>>(&json).map_err(|_| NotJson)?;
    if parses || body.is_an_error() { Ok(read(body)) } else { Err(NotJson) }
}

impl Answer {
    /// Reads a whole JSON answer.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn whole(operation: Operation, json: &[u8]) -> Result<Self, NotJson> {
        let mut answer = Self { done: true, ..Self::default() };
        let is_error = with_body(json, |body| {
            answer.missing = !body.is_an_answer(operation);
            let is_error = body.tells_an_error() || (answer.missing && body.signs.tell());
            match operation {
                Operation::Responses => answer.response(body),
                _ => {
                    answer.absorb(operation, body);
                }
            }
            is_error
        })?;
        let is_error = is_error || (answer.failed && operation == Operation::Responses);
        if is_error || answer.missing {
            let complaint = Complaint::read(json);
            // What is no answer may be an error that only its words give away.
            if is_error || complaint.status.is_some() {
                answer.complains(complaint);
            }
        }
        Ok(answer)
    }

    /// Reads one payload of a stream.
    pub fn event(&mut self, operation: Operation, data: &[u8]) -> Carried {
        if is_mark_of_the_end(data) {
            self.ends();
            return Carried::default();
        }
        if data.trim_ascii().is_empty() {
            return Carried::default();
        }
        let (failed, mut is_error) = (self.failed, false);
        let carried = with_body(data, |body| {
            is_error = body.is_an_error();
            self.read_event(operation, body, data)
        });
        let carried = carried.unwrap_or(Carried { unread: true, ..Carried::default() });
        let has_failed = self.failed && !failed && operation == Operation::Responses;
        if is_error || has_failed {
            self.complains(Complaint::read(data));
        }
        self.unread |= carried.unread;
        self.contents += u64::from(carried.content);
        carried
    }

    /// Reads what a stream tells as an error: a field `error`, or an event of this name.
    pub fn error_event(&mut self, data: &[u8]) {
        self.complains(Complaint::told(data));
    }

    /// Reads a line of a stream that is no field, which some servers write when they fail.
    pub fn stray_line(&mut self, line: &[u8]) {
        let is_error = |body: Body<'_>| body.is_an_error();
        if with_body(line, is_error).unwrap_or(false) {
            self.error_event(line);
        } else {
            self.unread = true;
        }
    }

    /// It says that it failed, and of several times the first counts.
    fn complains(&mut self, complaint: Complaint) {
        self.failed = true;
        self.complaint.get_or_insert_with(|| Box::new(complaint));
    }

    /// The stream says that it has ended. Without a reason it was broken off by somebody who
    /// still closes it well, as servers do whose engine has died.
    fn ends(&mut self) {
        self.done = true;
        self.failed |= self.finish_reason.is_none() && !self.is_unread();
    }

    fn read_event(&mut self, operation: Operation, body: Body<'_>, data: &[u8]) -> Carried {
        if operation == Operation::Responses {
            return self.responses_event(body);
        }
        // Each event tells again whose it is, which is known by now.
        let known = self.id.is_some() && self.model.is_some();
        let only_text = known.then(|| body.only_text()).flatten();
        let only_text = only_text.and_then(|text| place(text, data));
        let unread = body.is_strange();
        let carried = self.absorb(operation, body);
        Carried { only_text, unread: carried.unread || unread, ..carried }
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
        self.done || self.has_ended()
    }

    /// Whether each choice gave the reason why it ended.
    pub fn has_ended(&self) -> bool {
        self.finish_reason.is_some() && self.begun.is_empty()
    }

    /// Whether something was said of which nothing was understood.
    pub fn is_unread(&self) -> bool {
        self.unread && !self.understood
    }

    /// What the reason means for which the answer ended, if it gave one.
    pub fn ending(&self) -> Option<Ending> {
        self.finish_reason.as_deref().map(Ending::of)
    }

    fn absorb(&mut self, operation: Operation, body: Body<'_>) -> Carried {
        keep(&mut self.id, body.id);
        keep(&mut self.model, body.model);
        if operation == Operation::Embeddings {
            self.tool_call |= body.data.good > 0;
            self.understood |= body.data.good > 0;
            self.unread |= body.data.unread > 0;
        }
        self.tokens.absorb(body.timings.map(|t| t.tokens()).unwrap_or_default());
        self.tokens.absorb(body.x_groq.map(|x| x.usage.tokens()).unwrap_or_default());
        let usage = tokens(body.usage);
        let only_usage = usage != Tokens::default() && body.choices.0.is_empty();
        let mut carried = Carried { only_usage, ..Carried::default() };
        for (position, choice) in (0..).zip(body.choices.0) {
            self.choice(position, choice, &mut carried);
        }
        self.tokens.absorb(usage);
        self.unread |= carried.unread;
        carried
    }

    fn choice(&mut self, position: u32, choice: Choice<'_>, carried: &mut Carried) {
        // Of several choices the first is checked; all are content.
        let index = choice.index.0.unwrap_or(position);
        let is_first = self.is_first(index);
        self.tokens.absorb(tokens(choice.usage));
        let message = choice.message.filter(Message::is_filled).or(choice.delta);
        let message = message.unwrap_or_default();
        // Some servers send an empty reason until there is one.
        let reason = choice.finish_reason.0.filter(|reason| !is_none(reason));
        let content = message.content;
        // Together says the same in both.
        let said = content.text.0.filter(|text| !text.is_empty()).or(choice.text.0);
        let said = said.filter(|text| !text.is_empty());
        let refusal = content.refused || message.refusal.0.is_some_and(|r| !r.is_empty());
        let called = message.tool_calls.filled || message.function_call.is_some();
        let other = called || message.media || content.media;
        let thought = message.thought || content.thought;
        let no_call = message.tool_calls.filled && message.tool_calls.parts.is_empty();
        let unread = choice.odd || message.unread || content.unread || no_call;
        carried.content |= said.is_some() || refusal || other || thought || message.aside || unread;
        carried.unread |= unread;
        self.understood |= said.is_some() || refusal || (other && !no_call) || thought;
        let ending = reason.as_deref().map(Ending::of);
        self.failed |= ending == Some(Ending::Failed);
        if !is_first {
            return self.another_choice(index, reason.is_some());
        }
        self.refused |= refusal || ending == Some(Ending::Safety);
        self.tool_call |= other;
        if let Some(text) = said {
            self.say(&text);
        }
        for part in message.tool_calls.parts {
            if let Some(function) = part.function {
                let (index, id) = (part.index.0, part.id.0);
                let (name, arguments) = (function.name.0, function.arguments);
                calls::add(&mut self.calls, Piece { index, id, name, arguments });
            }
        }
        if let Some(function) = message.function_call {
            let (name, arguments) = (function.name.0, function.arguments);
            calls::add(&mut self.calls, Piece { index: Some(0), id: None, name, arguments });
        }
        if let Some(reason) = reason {
            self.finish_reason = Some(reason.into_owned());
        }
    }

    /// Whether this is the choice that is checked: that with the lowest number so far.
    fn is_first(&mut self, index: u32) -> bool {
        match self.first {
            Some(first) if first <= index => return first == index,
            Some(later) => {
                if self.finish_reason.take().is_none() && self.begun.len() < MOST_CHOICES {
                    self.begun.push(later);
                }
                self.text.clear();
                self.calls.clear();
                (self.cut, self.tool_call, self.refused) = (false, false, false);
            }
            None => {}
        }
        self.begun.retain(|begun| *begun != index);
        self.first = Some(index);
        true
    }

    fn another_choice(&mut self, index: u32, has_ended: bool) {
        self.begun.retain(|begun| *begun != index);
        if !has_ended && self.begun.len() < MOST_CHOICES {
            self.begun.push(index);
        }
    }

    fn say(&mut self, text: &str) {
        self.understood |= !text.is_empty();
        self.cut |= self.text.len() + text.len() > LONGEST_TEXT;
        if !self.cut {
            self.text.push_str(text);
        }
    }
}

fn is_mark_of_the_end(data: &[u8]) -> bool {
    // Most events begin with a brace.
    data.first() != Some(&b'{') && {
        let data = data.trim_ascii();
        let data = data.strip_prefix(b"\"").and_then(|d| d.strip_suffix(b"\"")).unwrap_or(data);
        data.eq_ignore_ascii_case(b"[DONE]")
    }
}

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
        *slot = text.0.filter(|t| !t.is_empty()).map(Cow::into_owned);
    }
}

impl<'a> Body<'a> {
    /// Whether it holds an answer to such a request, good or bad.
    fn is_an_answer(&self, operation: Operation) -> bool {
        match operation {
            Operation::Chat | Operation::Completions => self.choices.0.iter().any(|choice| {
                choice.odd
                    || choice.message.is_some()
                    || choice.delta.is_some()
                    || choice.text.0.is_some()
                    || choice.finish_reason.0.is_some()
            }),
            Operation::Embeddings => self.data.bad == 0 && self.data.good + self.data.unread > 0,
            Operation::Responses => {
                let status = self.status.0.as_deref().unwrap_or_default();
                !self.output.0.is_empty() || !matches!(status, "" | "completed")
            }
        }
    }

    /// Whether it says of itself, or of one of its choices, that it failed.
    fn tells_an_error(&self) -> bool {
        self.error.is_told() || self.choices.0.iter().any(|choice| choice.error.is_told())
    }

    /// Whether an event is an error.
    fn is_an_error(&self) -> bool {
        self.tells_an_error()
            || self.kind.0.as_deref() == Some("error")
            || (self.choices.0.is_empty() && self.signs.tell())
    }

    /// Whether an event is of no known kind.
    fn is_strange(&self) -> bool {
        let kind = self.kind.0.as_deref().unwrap_or_default();
        let is_known = self.listed
            || self.familiar
            || self.usage.is_some()
            || self.x_groq.is_some()
            || self.timings.is_some()
            || matches!(kind, "ping" | "heartbeat" | "keepalive" | "keep-alive");
        (self.odd || self.some) && !is_known && !self.is_an_error()
    }

    /// The text of the first choice, if that is all that this event says and was read
    /// without being decoded. Each field stands here, so that a new one can not be
    /// forgotten.
    fn only_text(&self) -> Option<&'a str> {
        let Body {
            // Whose event it is.
            id: _,
            model: _,
            familiar: _,
            listed: _,
            some: _,
            // Of other operations.
            delta: Delta { .. },
            output: _,
            item: _,
            data: _,
            incomplete_details: _,
            response: _,
            status: _,
            kind: Text(None),
            choices: Many(choices),
            usage: None,
            x_groq: None,
            timings: None,
            error: Accused::NONE,
            signs: Signs::NONE,
            odd: false,
        } = self
        else {
            return None;
        };
        let [
            Choice {
                index: Index(None | Some(0)),
                message: None,
                delta,
                text,
                finish_reason: Text(None),
                usage: None,
                error: Accused::NONE,
                odd: false,
            },
        ] = &choices[..]
        else {
            return None;
        };
        let text = match (delta, text) {
            (Some(message), Text(None)) => message.only_text()?,
            (None, text) => text,
            _ => return None,
        };
        match text {
            Text(Some(Cow::Borrowed(text))) => Some(*text),
            _ => None,
        }
    }
}

impl<'a> Message<'a> {
    fn only_text(&self) -> Option<&Text<'a>> {
        let Message {
            content: Content { text, thought: false, media: false, refused: false, unread: false },
            refusal: Text(None),
            tool_calls: Calls { filled: false, parts: _ },
            function_call: None,
            media: false,
            thought: false,
            aside: false,
            unread: false,
        } = self
        else {
            return None;
        };
        Some(text)
    }
}

#[cfg(test)]
mod tests;
