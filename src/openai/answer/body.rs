//! What an answer, or an event of a stream, is by its fields: an answer, an error, a sign of life, or
//! a piece of text.

use std::borrow::Cow;

use super::{
    message::{Calls, Content, Message},
    wire::{Accused, Body, Choice, Delta, Index, Signs, is_a_word_of_life},
};
use crate::openai::{
    forgiving::{Many, Text},
    reason::{is_none, means_a_failure},
    request::Operation,
};

impl<'a> Body<'a> {
    /// Whether it holds an answer to such a request, good or bad.
    pub(super) fn is_an_answer(&self, operation: Operation) -> bool {
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

    /// Whether it says of itself, or of one of its choices, that it failed, whatever else it holds.
    pub(super) fn tells_an_error(&self) -> bool {
        let of_choice = |choice: &Choice<'_>| {
            let messages = [&choice.message, &choice.delta].into_iter().flatten();
            choice.error.is_told() || messages.into_iter().any(|message| message.error.is_told())
        };
        self.error.is_told() || self.signs.tell_beside() || self.choices.0.iter().any(of_choice)
    }

    /// Whether an event is an error.
    pub(super) fn is_an_error(&self) -> bool {
        let kind = self.kind.0.as_deref();
        self.tells_an_error()
            || matches!(kind, Some("error" | "failed" | "failure" | "abort" | "aborted"))
            || (self.choices.0.is_empty() && self.signs.tell())
            || self.is_a_message()
    }

    /// Whether it is a message and nothing else, as API gateways tell of an error, or a message
    /// with a word that means one.
    fn is_a_message(&self) -> bool {
        let words = [&self.kind, &self.status].into_iter().filter_map(|text| text.0.as_deref());
        let (mut has_words, mut means_failure) = (false, false);
        for word in words.filter(|word| !is_none(word)) {
            has_words = true;
            means_failure |= means_a_failure(word);
        }
        !self.more && self.signs.are_a_message() && (means_failure || !has_words)
    }

    /// Whether an event says nothing: it is empty, or tells that the connection is alive.
    pub(super) fn says_nothing(&self) -> bool {
        let is_empty = !self.some && !self.odd;
        (is_empty || self.is_sign_of_life() && !self.listed && self.usage.is_none())
            && !self.is_an_error()
    }

    fn is_sign_of_life(&self) -> bool {
        self.kind.0.as_deref().is_some_and(is_a_word_of_life)
    }

    /// Whether an event is of no known kind.
    pub(super) fn is_strange(&self) -> bool {
        let is_known = self.listed
            || self.familiar
            || self.usage.is_some()
            || self.x_groq.is_some()
            || self.timings.is_some()
            || self.is_sign_of_life();
        (self.odd || self.some) && !is_known && !self.is_an_error()
    }

    /// The text of the first choice, if that is all that this event says and was read
    /// without being decoded. Each field stands here, so that a new one can not be
    /// forgotten.
    pub(super) fn only_text(&self, operation: Operation) -> Option<&'a str> {
        let Body {
            // Whose event it is.
            id: _,
            model: _,
            familiar: _,
            more: _,
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
        let text = match (operation, delta, text) {
            (Operation::Chat, Some(message), Text(None)) => message.only_text()?,
            (Operation::Completions, None, text) => text,
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
            content:
                Content { text, thought: false, media: false, refused: false, unread: false, output: _ },
            refusal: Text(None),
            tool_calls: Calls { filled: false, is_object: false, parts: _ },
            function_call: None,
            media: false,
            thought: false,
            aside: false,
            error: Accused::NONE,
            unread: false,
        } = self
        else {
            return None;
        };
        Some(text)
    }
}
