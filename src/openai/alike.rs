//! The events of one stream, read as little as they need.
//!
//! A model says a word an event, and around it the same again: id, model, time, empty
//! fields. Once an event was read as JSON and said nothing but text, the next one that has
//! the same bytes around another text says nothing but that text. All others are read as
//! JSON.

use std::{borrow::Cow, ops::Range};

use super::{
    answer::{Answer, Carried},
    request::Operation,
};

/// What an event says.
#[derive(Debug)]
pub enum Said<'a> {
    /// These words, where the last event had its own that said nothing else.
    Words(&'a str),
    /// All that is in it; where its words lie, if it says nothing else.
    Event(Option<Range<usize>>),
}

/// Reads the events of one stream into an answer.
#[derive(Debug)]
pub struct Reader {
    operation: Operation,
    /// The last event that said nothing but text, without its text.
    around: Vec<u8>,
    /// Where in it the text was; none was met yet without.
    at: Option<usize>,
}

impl Reader {
    /// Of a stream of this operation.
    pub fn new(operation: Operation) -> Self {
        Self { operation, around: vec![], at: None }
    }

    /// Reads one payload: says the same as [`Answer::event`].
    pub fn event(&mut self, answer: &mut Answer, data: &[u8]) -> Carried {
        self.read(answer, data, |_| ())
    }

    /// As `event`, and tells what it says.
    pub fn read(
        &mut self,
        answer: &mut Answer,
        data: &[u8],
        hear: impl FnOnce(Said<'_>),
    ) -> Carried {
        if !answer.done
            && let Some(text) = self.text(data)
        {
            hear(Said::Words(&text));
            return answer.goes_on(&text);
        }
        let carried = answer.event(self.operation, data);
        if let Some(text) = &carried.only_text {
            self.around.clear();
            self.around.extend_from_slice(&data[..text.start]);
            self.around.extend_from_slice(&data[text.end..]);
            self.at = Some(text.start);
        }
        hear(Said::Event(carried.only_text.clone()));
        carried
    }

    /// Reads what came last, and nothing ended: nobody reads it who can not.
    pub fn last(
        &mut self,
        answer: &mut Answer,
        data: &[u8],
        hear: impl FnOnce(Said<'_>),
    ) -> Carried {
        let carried = answer.last_event(self.operation, data);
        hear(Said::Event(None));
        carried
    }

    /// The text of an event that differs from an earlier one in nothing else.
    fn text<'a>(&self, data: &'a [u8]) -> Option<Cow<'a, str>> {
        let (before, after) = self.around.split_at(self.at?);
        let text = data.strip_prefix(before)?.strip_suffix(after)?;
        // As it is: nothing that ends a text of JSON, stands for something else, or is not
        // allowed in one.
        let plain = |byte: &u8| *byte >= b' ' && *byte != b'"' && *byte != b'\\';
        if text.iter().all(plain) {
            return std::str::from_utf8(text).ok().map(Cow::Borrowed);
        }
        // One text with its quotes, or else it ends early and something follows.
        let quoted = &data[before.len() - 1..=data.len() - after.len()];
        serde_json::from_slice(quoted).ok().map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn chunk(created: u8, choice: Value) -> Value {
        json!({"id": "c1", "object": "chat.completion.chunk", "created": created, "model": "m", "choices": [choice]})
    }

    /// An event, among which many are alike.
    fn event() -> impl Strategy<Value = Vec<u8>> {
        let word =
            prop_oneof![4 => "[a-zé ]{0,4}", 1 => r#"["\\\n}{:,]{1,3}"#, 1 => any::<String>()];
        let delta = (0..2_u8, word.clone()).prop_map(|(at, word)| {
            chunk(at, json!({"index": 0, "delta": {"content": word}, "finish_reason": null}))
        });
        let odd = (0..9_u8, word).prop_map(|(which, word)| match which {
            0 => chunk(0, json!({"index": 1, "delta": {"content": word}})),
            1 => chunk(0, json!({"index": 0, "delta": {"content": word}, "finish_reason": "stop"})),
            2 => chunk(0, json!({"index": 0, "delta": {"content": word, "refusal": "no"}})),
            3 => chunk(0, json!({"delta": {"content": word, "tool_calls": [{"id": "1"}]}})),
            4 => chunk(0, json!({"delta": {"reasoning_content": word}})),
            5 => chunk(0, json!({"text": word})),
            6 => json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}),
            7 => json!({"choices": [{"delta": {"content": word}}], "usage": {"completion_tokens": 2}}),
            _ => json!({"error": {"message": word}}),
        });
        // What is written as it is may end the text, and say something else.
        let raw = prop_oneof![r#"[a"\\\\,: \n]{0,4}"#, Just(r#"a","refusal":"no"#.to_owned())];
        let raw = raw.prop_map(|word| {
            let event =
                chunk(0, json!({"index": 0, "delta": {"content": "RAW"}, "finish_reason": null}));
            event.to_string().replace("RAW", &word)
        });
        let json = prop_oneof![5 => delta, 2 => odd].prop_map(|value| value.to_string());
        let end = Just("[DONE]".to_owned());
        let value = prop_oneof![21 => json, 6 => raw, 1 => end];
        // Cut, or with a byte changed: no longer what its beginning and end promise.
        (value, any::<prop::sample::Index>(), any::<u8>(), 0..8_u8).prop_map(
            |(value, at, byte, what)| {
                let mut event = value.into_bytes();
                let at = at.index(event.len());
                match what {
                    0 => event.truncate(at),
                    1 => event[at] = byte,
                    2 => event.insert(at, byte),
                    _ => {}
                }
                event
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn what_is_read_is_what_json_says(
            events in prop::collection::vec(event(), 1..24),
            operation in prop_oneof![Just(Operation::Chat), Just(Operation::Completions), Just(Operation::Responses)],
        ) {
            let (mut reader, mut read, mut parsed) =
                (Reader::new(operation), Answer::default(), Answer::default());
            for event in events {
                let carried = reader.event(&mut read, &event);
                let whole = parsed.event(operation, &event);
                prop_assert_eq!((carried.content, carried.only_usage), (whole.content, whole.only_usage));
                prop_assert_eq!(&read, &parsed);
            }
        }
    }

    #[test]
    fn words_of_one_stream_are_read_without_json() {
        for (operation, choice) in [
            (
                Operation::Chat,
                (|word| json!({"index": 0, "delta": {"content": word}, "logprobs": null, "finish_reason": null}))
                    as fn(&str) -> Value,
            ),
            (
                Operation::Completions,
                |word| json!({"index": 0, "text": word, "finish_reason": null}),
            ),
        ] {
            let (mut reader, mut answer) = (Reader::new(operation), Answer::default());
            let mut seen = vec![];
            for word in ["", "Hel", "lo", " ", "é", "\"\n", "!"] {
                let event = chunk(1, choice(word)).to_string().into_bytes();
                seen.push(reader.text(&event).is_some());
                reader.event(&mut answer, &event);
            }
            assert_eq!(seen, [false, false, true, true, true, true, true]);
            assert_eq!((answer.text.as_str(), answer.contents), ("Hello é\"\n!", 6));
        }
    }
}
