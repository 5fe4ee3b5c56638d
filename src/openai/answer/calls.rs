//! The calls of functions in an answer, put together from the pieces of a stream.

use std::borrow::Cow;

/// Calls of one answer; no application makes sense of more.
const MOST: usize = 128;
/// What all calls of an answer may hold to be checked, names and ids included, in bytes.
const LARGEST: usize = 1 << 20;

/// A call of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The function; empty where the server does not say.
    pub name: String,
    /// What it is called with, as it was written.
    pub arguments: String,
    /// It was too large to be kept whole.
    pub cut: bool,
    /// No application can use it, whatever it says.
    pub unfit: bool,
    index: Option<u32>,
    id: String,
}

/// What an event or an answer says of a call.
#[derive(Default)]
pub(super) struct Piece<'a> {
    pub index: Option<u32>,
    pub id: Option<Cow<'a, str>>,
    pub name: Option<Cow<'a, str>>,
    pub arguments: Option<Cow<'a, str>>,
    /// Its arguments are no text, or it lacks what an application has to answer with.
    pub unfit: bool,
}

/// Adds a call that is told as a whole: what is in a list of calls is a call of its own.
pub(super) fn push(calls: &mut Vec<Call>, piece: Piece<'_>) {
    let Piece { index, id, name, arguments, unfit } = piece;
    let held = held(calls);
    if calls.len() < MOST {
        let mut call = Call { index, unfit, ..Call::default() };
        let [name, id, arguments] = [&name, &id, &arguments].map(told);
        call.goes_on(name, id, arguments, held);
        calls.push(call);
    }
}

fn told<'a>(text: &'a Option<Cow<'_, str>>) -> &'a str {
    text.as_deref().unwrap_or_default()
}

/// What is kept of calls, in bytes.
pub(super) fn held(calls: &[Call]) -> usize {
    calls.iter().map(|call| call.arguments.len() + call.name.len() + call.id.len()).sum()
}

/// Adds a piece to the call that it belongs to.
pub(super) fn add(calls: &mut Vec<Call>, piece: Piece<'_>) {
    let (id, name) = (told(&piece.id), told(&piece.name));
    let held = held(calls);
    let at = place(calls, piece.index, id, name);
    let Some(call) = at.and_then(|at| calls.get_mut(at)) else { return push(calls, piece) };
    // Some servers tell the name again with each piece.
    let name = if call.name == name { "" } else { name };
    let id = if call.id.is_empty() { id } else { "" };
    call.unfit |= piece.unfit;
    call.goes_on(name, id, told(&piece.arguments), held);
}

/// Where the call is that this is a piece of; none of a new one.
fn place(calls: &[Call], index: Option<u32>, id: &str, name: &str) -> Option<usize> {
    if index.is_none() && !id.is_empty() {
        return calls.iter().rposition(|call| call.id == id);
    }
    if index.is_none() {
        return calls.len().checked_sub(1).filter(|_| name.is_empty());
    }
    let at = calls.iter().rposition(|call| call.index == index)?;
    // Some servers number all calls alike, each with a name and an id of its own; others give
    // each piece of one call another id.
    let another =
        !name.is_empty() && !id.is_empty() && !calls[at].id.is_empty() && calls[at].id != id;
    (!another).then_some(at)
}

impl Call {
    pub(super) fn is(&self, id: &str) -> bool {
        self.id == id
    }

    fn goes_on(&mut self, name: &str, id: &str, arguments: &str, held: usize) {
        self.cut |= held + name.len() + id.len() + arguments.len() > LARGEST;
        if !self.cut {
            self.name.push_str(name);
            self.id.push_str(id);
            self.arguments.push_str(arguments);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(pieces: &[(Option<u32>, &str, &str, &str)]) -> Vec<(String, String)> {
        let mut calls = vec![];
        let some = |text: &str| Some(Cow::Owned(text.to_owned()));
        for (index, id, name, arguments) in pieces {
            let piece = Piece {
                index: *index,
                id: some(id),
                name: some(name),
                arguments: some(arguments),
                unfit: false,
            };
            add(&mut calls, piece);
        }
        calls.into_iter().map(|call| (call.name, call.arguments)).collect()
    }

    #[test]
    fn pieces_come_together_by_index_or_id() {
        let two = [("f".to_owned(), "{\"a\":1}".to_owned()), ("g".to_owned(), "{}".to_owned())];
        let (first, second) = (Some(0), Some(1));
        assert_eq!(
            put(&[
                (first, "1", "f", ""),
                (second, "2", "g", "{"),
                (first, "", "", "{\"a\":1}"),
                (second, "", "", "}")
            ]),
            two
        );
        // Gemini numbers all of them 0; others give no number, or say everything each time.
        assert_eq!(put(&[(first, "1", "f", "{\"a\":1}"), (first, "2", "g", "{}")]), two);
        assert_eq!(
            put(&[(first, "1", "f", "{\"a\":"), (first, "9", "", "1}"), (second, "2", "g", "{}")]),
            two
        );
        assert_eq!(
            put(&[(None, "", "f", "{\"a\":"), (None, "", "", "1}"), (None, "", "g", "{}")]),
            two
        );
        assert_eq!(
            put(&[
                (first, "1", "f", "{\"a\":"),
                (first, "1", "f", "1}"),
                (second, "2", "g", ""),
                (second, "2", "g", "{}")
            ]),
            two
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut calls = vec![];
        for index in 0..10_000 {
            let arguments = Some(Cow::Owned("x".repeat(1 << 10)));
            add(&mut calls, Piece { index: Some(index), arguments, ..Piece::default() });
        }
        let held: usize = calls.iter().map(|call| call.arguments.len()).sum();
        assert!(calls.len() == MOST && held <= LARGEST);
        let arguments = Some(Cow::Owned("x".repeat(2 << 20)));
        add(&mut calls, Piece { index: Some(0), arguments, ..Piece::default() });
        assert!(calls[0].cut && calls[0].arguments.len() == 1 << 10);
        // Names and ids, too: a name may come in pieces.
        for field in [0, 1] {
            let mut calls = vec![];
            for i in 0..20 {
                let text = Some(Cow::Owned(format!("{i:06}{}", "n".repeat(1 << 20))));
                let mut piece = Piece { index: Some(i % 2), ..Piece::default() };
                *[&mut piece.name, &mut piece.id][field] = text;
                add(&mut calls, piece);
            }
            assert!(super::held(&calls) <= LARGEST && calls.iter().all(|call| call.cut));
        }
    }
}
