//! Secrets of ours that an answer spells out, where each part of it alone is none: what is
//! whole within one text was taken out before (`clients/answer.rs`). Watched is every text
//! that a model can write into, of every choice and call, by its place (`openai/pieces.rs`).
//!
//! Only a text that ends with what may be the beginning of a secret is remembered, and of
//! it only that beginning. So the watch costs time linear in the answer, and memory for as
//! many beginnings as there are texts under way.

use std::{collections::HashMap, ops::Range, sync::Arc};

use crate::{
    audit::secrets::{Heard, Passing, SHORTEST, Secrets},
    openai::{
        alike::Said,
        error::ApiError,
        pieces::{Place, pieces},
    },
};

/// The first bytes of a secret may go on before it shows that they are of one: `sk-proj-`
/// begins many.
const LONGEST_HINT: usize = 8;
/// So much is held back while an answer may be spelling out a secret.
const LONGEST_HELD: usize = 64 << 10;
/// Of more texts that end with a beginning, no further ones are watched; no answer has as
/// many choices.
const MOST_BEGUN: usize = 1024;

/// Whether the events of a stream, put together, spell a secret.
pub(super) struct Quotes {
    secrets: Arc<Secrets>,
    /// Texts that end with what may be the beginning of one.
    begun: HashMap<Place, Begun>,
    /// How many of these show most of one.
    showing: usize,
    /// Where events bring their words that say nothing else.
    words: Option<Place>,
    /// How many bytes came while it may be spelling out a secret.
    held: usize,
    is_secret: bool,
}

/// A text that ends with what may be the beginning of a secret.
struct Begun {
    passing: Passing,
    /// It is more than half of one.
    shows: bool,
}

impl Quotes {
    pub(super) fn new(secrets: Arc<Secrets>) -> Self {
        Self { secrets, begun: HashMap::new(), showing: 0, words: None, held: 0, is_secret: false }
    }

    /// Hears what an event says, which was read.
    pub(super) fn event(&mut self, data: &[u8], said: &Said<'_>) {
        if self.secrets.is_empty() {
            return;
        }
        match said {
            Said::Words(words) => {
                if let Some(place) = self.words {
                    self.hear(place, words);
                }
            }
            Said::Event(only_text) => pieces(data, |place, text| {
                if only_text.as_ref().is_some_and(|only| lies_at(text, data, only)) {
                    self.words = Some(place);
                }
                self.hear(place, text);
            }),
        }
    }

    fn hear(&mut self, place: Place, text: &str) {
        // Nothing is said here, and what was begun may go on.
        if text.is_empty() {
            return;
        }
        let is_full = self.begun.len() >= MOST_BEGUN;
        let (known, mut new) = (self.begun.get_mut(&place), None);
        let is_known = known.is_some();
        let begun = match known {
            Some(begun) => begun,
            None => {
                let passing = Passing::new(self.secrets.clone());
                new.insert(Begun { passing, shows: false })
            }
        };
        match begun.passing.hear(text) {
            Heard::Secret => self.is_secret = true,
            Heard::Nothing if is_known => {
                let ended = self.begun.remove(&place);
                self.showing -= usize::from(ended.is_some_and(|begun| begun.shows));
            }
            Heard::Nothing => {}
            Heard::Begun(_) if !is_known && is_full => {}
            Heard::Begun(kept) => {
                // No secret is shorter, and most of what is begun are a few letters.
                let shows = kept > SHORTEST / 2 && begun.passing.shows_most();
                let showed = std::mem::replace(&mut begun.shows, shows);
                self.showing = self.showing + usize::from(shows) - usize::from(showed);
                if let Some(new) = new {
                    self.begun.insert(place, new);
                }
            }
        }
    }

    /// So many bytes came, of which all complete events were heard.
    pub(super) fn came(&mut self, bytes: usize) {
        let may_be = self.begun.values().any(|begun| begun.passing.kept() > LONGEST_HINT);
        self.held = if may_be { self.held + bytes } else { 0 };
        if self.held > LONGEST_HELD {
            self.let_go();
        }
    }

    /// Nothing more is to come: what has begun goes on.
    pub(super) fn end(&mut self) {
        self.held = 0;
        self.let_go();
    }

    /// What goes on before it is known how it continues may show half of a secret, and not
    /// more: events may say that they are the last, and others come.
    fn let_go(&mut self) {
        self.is_secret |= self.showing > 0;
    }

    /// Whether what came waits for what comes next.
    pub(super) fn holds(&self) -> bool {
        (1..=LONGEST_HELD).contains(&self.held)
    }

    pub(super) fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// Whether what has come so far shows a secret, or most of one: it may break off here.
    pub(super) fn shows_most(&self) -> bool {
        self.is_secret || self.showing > 0
    }

    /// The bytes that are remembered.
    pub(super) fn kept(&self) -> usize {
        self.begun.values().map(|begun| begun.passing.kept()).sum()
    }
}

/// Whether an answer that came as a whole spells one out in several texts, or ends a text
/// with more than half of one.
pub(super) fn are_spelled(secrets: &Arc<Secrets>, json: &[u8]) -> bool {
    let mut quotes = Quotes::new(secrets.clone());
    quotes.event(json, &Said::Event(None));
    quotes.end();
    quotes.is_secret
}

/// The word for an answer that spells out a secret.
pub(in crate::gateway) const SECRET_CODE: &str = "upstream_secret";

/// What the application is told in the place of a secret.
pub(in crate::gateway) fn quotes_a_secret() -> ApiError {
    let message = "the model's answer spells out a secret of this gateway, and was broken off: \
                   tell who runs the gateway";
    ApiError::new(502, SECRET_CODE, message)
}

/// Whether a text of an event lies at this place in it.
fn lies_at(text: &str, event: &[u8], place: &Range<usize>) -> bool {
    let from = text.as_ptr().addr().checked_sub(event.as_ptr().addr());
    from == Some(place.start) && text.len() == place.len()
}

#[cfg(test)]
mod tests;
