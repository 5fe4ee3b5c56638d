//! What an answer said, collected from JSON or from the events of a stream.
//!
//! Servers differ in what they send, so that every part is read by itself: a field of
//! another type than expected says nothing, and hides nothing of the rest. Whether what was
//! read is any good is judged strictly all the same: an error is one in whatever form it is
//! told, and what could not be understood is noted as such.

mod body;
mod calls;
mod message;
mod responses;
mod vectors;
mod wire;

use std::{borrow::Cow, ops::Range};

pub use self::calls::Call;
use self::{
    calls::Piece,
    message::Function,
    wire::{Body, Choice, Rare},
};
use super::{
    complaint::Complaint,
    depth,
    forgiving::Text,
    mend::{Mended, mend, trimmed},
    reason::{Ending, is_none},
    request::Operation,
    sse::is_a_page,
    usage::{Tokens, Usage},
    visible::is_blank,
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
    /// The reason of a choice that means that it failed.
    pub gave_up: Option<String>,
    /// What it says of that, if it says something.
    pub complaint: Option<Box<Complaint>>,
    /// It is nothing that answers what was asked for: no choices, no output, no vectors.
    pub missing: bool,
    /// Something was said that was not understood.
    pub unread: bool,
    /// Something was said that was understood.
    pub understood: bool,
    /// How many vectors it has; of embeddings only.
    pub vectors: usize,
    /// How many numbers each has, where that is known.
    pub vector_length: Option<usize>,
    /// They are written in base64.
    pub in_base64: bool,
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
    /// The choices besides the first.
    pub others: Vec<Other>,
    /// Which choice is the first.
    pub first: Option<u32>,
}

/// A choice besides the first, as far as it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Other {
    index: u32,
    /// There is something of it: text or a call.
    pub speaks: bool,
    /// Something of it was not understood.
    pub unread: bool,
    /// The model refused.
    pub refused: bool,
    /// What the reason means for which it ended, once it gave one.
    pub ending: Option<Ending>,
}

/// What an event of a stream carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Content for the user, or a sign that the model is at work on it.
    pub content: bool,
    /// Nothing but usage: an application that did not ask for usage does not expect it.
    pub only_usage: bool,
    /// Nothing at all, in a form that OpenAI's clients fail on, though by the standard for events, or
    /// for what it means, there is no harm in it.
    pub nothing: bool,
    /// It was not understood.
    pub unread: bool,
    /// Nothing but text of the first choice, which lies here in the event as it is.
    pub only_text: Option<Range<usize>>,
}

/// How an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Whole,
    Events,
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
            answer.vectors = body.data.count();
            (answer.vector_length, answer.in_base64) = (body.data.length, body.data.in_base64);
            let is_error = body.tells_an_error() || (answer.missing && body.signs.tell());
            match operation {
                Operation::Responses => answer.response(body),
                _ => {
                    answer.absorb((operation, Form::Whole), body);
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
        if self.done && operation != Operation::Responses {
            // What comes after the mark of the end nobody reads.
            return Carried::default();
        }
        if data.starts_with(b"[DONE]") {
            self.ends();
            return Carried::default();
        }
        if is_mark_of_the_end(data) {
            self.ends();
            return Carried { nothing: true, ..Carried::default() };
        }
        if data.trim_ascii().is_empty() {
            return Carried { nothing: true, ..Carried::default() };
        }
        let (failed, mut is_error, mut is_broken) = (self.failed, false, false);
        let carried = with_body(data, |body| {
            is_error = body.is_an_error();
            self.read_event(operation, body, data)
        });
        let carried = carried.ok().filter(|_| is_an_object(data)).unwrap_or_else(|| {
            // After the last event of a response nobody reads on.
            is_broken = !self.done;
            Carried { unread: true, ..Carried::default() }
        });
        let has_failed = self.failed && !failed && operation == Operation::Responses;
        if is_broken {
            self.complains(unreadable(data));
        } else if is_error || has_failed {
            self.complains(Complaint::read(data));
        }
        self.unread |= carried.unread;
        self.contents += u64::from(carried.content);
        carried
    }

    /// Reads the last payload of a stream whose end is missing. Nobody reads it who can not.
    pub fn last_event(&mut self, operation: Operation, data: &[u8]) -> Carried {
        if is_an_object(data) && with_body(data, |_| ()).is_ok() || is_mark_of_the_end(data) {
            return self.event(operation, data);
        }
        self.unread = true;
        Carried { unread: true, ..Carried::default() }
    }

    /// Reads what a stream tells as an error: a field `error`, or an event of this name.
    pub fn error_event(&mut self, data: &[u8]) {
        self.complains(Complaint::told(data));
    }

    /// Reads a line of a stream that is no field, which some servers write when they fail.
    pub fn stray_line(&mut self, line: &[u8]) {
        let is_error = |body: Body<'_>| body.is_an_error();
        // Behind a complete answer nobody misses anything.
        let is_page = is_a_page(line) && !self.complete();
        if is_page || with_body(line, is_error).unwrap_or(false) {
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
        self.failed |= !self.has_ended() && !self.is_unread();
    }

    fn read_event(&mut self, operation: Operation, body: Body<'_>, data: &[u8]) -> Carried {
        if operation == Operation::Responses {
            return self.responses_event(body);
        }
        // Each event tells again whose it is, which is known by now.
        let known = self.id.is_some() && self.model.is_some();
        let only_text = known.then(|| body.only_text(operation)).flatten();
        let only_text = only_text.and_then(|text| place(text, data));
        let unread = body.is_strange();
        // OpenAI's clients hand an empty event to the application, which fails at its choices.
        let nothing = body.says_nothing();
        let carried = self.absorb((operation, Form::Events), body);
        Carried { only_text, unread: carried.unread || unread, nothing, ..carried }
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
        self.finish_reason.is_some() && self.others.iter().all(|other| other.ending.is_some())
    }

    /// Whether something was said of which nothing was understood.
    pub fn is_unread(&self) -> bool {
        self.unread && !self.understood
    }

    /// What the reason means for which the answer ended, if it gave one.
    pub fn ending(&self) -> Option<Ending> {
        self.finish_reason.as_deref().map(Ending::of)
    }

    fn absorb(&mut self, (operation, form): (Operation, Form), body: Body<'_>) -> Carried {
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
            self.choice((operation, form), position, choice, &mut carried);
        }
        self.tokens.absorb(usage);
        self.unread |= carried.unread;
        carried
    }

    /// Reads a choice where clients do: a chat in `message` of an answer and in `delta` of an
    /// event, a completion in `text`.
    fn choice(
        &mut self,
        (operation, form): (Operation, Form),
        position: u32,
        choice: Choice<'_>,
        carried: &mut Carried,
    ) {
        // Of several choices the first is checked; all are content. In a list they lie side by
        // side, whatever their numbers are.
        let index = choice.index.0.filter(|_| form == Form::Events).unwrap_or(position);
        let is_first = self.is_first(index);
        self.tokens.absorb(tokens(choice.usage));
        let (message, text) = match (operation, form) {
            (Operation::Completions, _) => (None, choice.text),
            (_, Form::Whole) => (choice.message, Text(None)),
            (_, Form::Events) => (choice.delta, Text(None)),
        };
        let message = message.unwrap_or_default();
        // Some servers send an empty reason until there is one.
        let reason = choice.finish_reason.0.filter(|reason| !is_none(reason));
        let content = message.content;
        let said = content.text.0.or(text.0).filter(|text| !text.is_empty());
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
        if ending == Some(Ending::Failed) && !self.failed {
            self.failed = true;
            self.gave_up = reason.as_deref().map(str::to_owned);
        }
        if !is_first {
            let speaks = said.is_some_and(|text| !is_blank(&text)) || other;
            return self.another_choice(Other { index, speaks, unread, refused: refusal, ending });
        }
        self.refused |= refusal || ending == Some(Ending::Safety);
        self.tool_call |= other;
        if let Some(text) = said {
            self.say(&text);
        }
        if message.tool_calls.is_object {
            calls::push(&mut self.calls, Piece::default());
        }
        let add = if form == Form::Whole { calls::push } else { calls::add };
        for part in message.tool_calls.parts.into_iter().filter(|part| !part.is_of_another_kind()) {
            // A call that names no function is one all the same, and calls nothing.
            let function = part.function.unwrap_or_default();
            let (index, id) = (part.index.0, part.id.0);
            let Function { name, arguments, is_text, .. } = function;
            let unfit = !is_text;
            add(&mut self.calls, Piece { index, id, name: name.0, arguments, unfit });
        }
        if let Some(function) = message.function_call {
            let Function { name, arguments, is_text, .. } = function;
            let (index, id, unfit) = (Some(0), None, !is_text);
            add(&mut self.calls, Piece { index, id, name: name.0, arguments, unfit });
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
                let ending = self.finish_reason.take().as_deref().map(Ending::of);
                let speaks = self.tool_call || !is_blank(&self.text);
                let (unread, refused) = (self.unread, self.refused);
                self.another_choice(Other { index: later, speaks, unread, refused, ending });
                self.text.clear();
                self.calls.clear();
                (self.cut, self.tool_call, self.refused) = (false, false, false);
            }
            None => {}
        }
        self.first = Some(index);
        true
    }

    fn another_choice(&mut self, more: Other) {
        if let Some(other) = self.others.iter_mut().find(|other| other.index == more.index) {
            other.speaks |= more.speaks;
            other.unread |= more.unread;
            other.refused |= more.refused;
            other.ending = more.ending.or(other.ending);
        } else if self.others.len() < MOST_CHOICES {
            self.others.push(more);
        }
    }

    /// What is kept of it to be checked, in bytes.
    pub fn kept(&self) -> usize {
        self.text.len() + calls::held(&self.calls)
    }

    /// How many choices there are.
    pub fn choices(&self) -> usize {
        self.others.len() + usize::from(self.first.is_some())
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

/// Whether JSON is an object, if it is any: what OpenAI's clients make of something else has
/// no choices to ask for.
fn is_an_object(json: &[u8]) -> bool {
    trimmed(json).first() == Some(&b'{')
}

/// What no application can read. It may be an error in words; half an event is not repeated to
/// anybody, it holds parts of the answer.
fn unreadable(data: &[u8]) -> Complaint {
    if data.trim_ascii_start().first().is_some_and(|byte| b"{[\"".contains(byte)) {
        Complaint::told(b"an event of the stream can not be read")
    } else {
        Complaint::told(data)
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

#[cfg(test)]
mod tests;
