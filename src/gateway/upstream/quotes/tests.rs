use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::{Value, json};

use super::*;
use crate::openai::{Operation, alike::Reader, answer::Answer};

const KEY: &str = "sk-upstream-0123456789/abcdef";

/// An event around a piece of text.
type Around = fn(&str) -> Value;

fn delta(delta: Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

/// Every field that a model writes a text into, piece by piece.
const FIELDS: [(&str, Operation, Around); 27] = [
    ("content", Operation::Chat, |t| delta(json!({"content": t}))),
    ("parts of content", Operation::Chat, |t| {
        delta(json!({"content": [{"type": "text", "text": t}]}))
    }),
    (
        "content of another choice",
        Operation::Chat,
        |t| json!({"choices": [{"index": 3, "delta": {"content": t}}]}),
    ),
    ("content beside a role", Operation::Chat, |t| {
        delta(json!({"role": "assistant", "content": t}))
    }),
    ("refusal", Operation::Chat, |t| delta(json!({"content": null, "refusal": t}))),
    ("reasoning", Operation::Chat, |t| delta(json!({"reasoning": t}))),
    ("reasoning_content", Operation::Chat, |t| {
        delta(json!({"content": null, "reasoning_content": t}))
    }),
    ("reasoning_details", Operation::Chat, |t| {
        delta(json!({"reasoning_details": [{"type": "reasoning.text", "text": t, "index": 0}]}))
    }),
    ("thinking_blocks", Operation::Chat, |t| {
        delta(json!({"thinking_blocks": [{"type": "thinking", "thinking": t}]}))
    }),
    ("tool_calls.arguments", Operation::Chat, |t| {
        delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": t}}]}))
    }),
    ("arguments of the third call", Operation::Chat, |t| {
        delta(json!({"tool_calls": [{"index": 2, "function": {"arguments": t}}]}))
    }),
    ("tool_calls.name", Operation::Chat, |t| {
        delta(json!({"tool_calls": [{"index": 0, "function": {"name": t}}]}))
    }),
    ("custom tools", Operation::Chat, |t| {
        delta(json!({"tool_calls": [{"index": 0, "type": "custom", "custom": {"input": t}}]}))
    }),
    ("function_call", Operation::Chat, |t| delta(json!({"function_call": {"arguments": t}}))),
    ("audio", Operation::Chat, |t| delta(json!({"audio": {"id": "a", "transcript": t}}))),
    ("a field that nobody knows", Operation::Chat, |t| delta(json!({"musings": {"deep": [t]}}))),
    ("tokens of logprobs", Operation::Chat, |t| {
        json!({"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [
            {"token": t, "logprob": -0.1, "bytes": null, "top_logprobs": []}]}}]})
    }),
    ("bytes of logprobs", Operation::Chat, |t| {
        json!({"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [
            {"token": "?", "logprob": -0.1, "bytes": t.as_bytes()}]}}]})
    }),
    ("text", Operation::Completions, |t| json!({"choices": [{"index": 0, "text": t}]})),
    (
        "tokens of completions",
        Operation::Completions,
        |t| json!({"choices": [{"index": 0, "text": "", "logprobs": {"tokens": [t]}}]}),
    ),
    ("output_text", Operation::Responses, |t| response("output_text", t)),
    ("refusal", Operation::Responses, |t| response("refusal", t)),
    ("function_call_arguments", Operation::Responses, |t| response("function_call_arguments", t)),
    ("reasoning_text", Operation::Responses, |t| response("reasoning_text", t)),
    ("reasoning_summary_text", Operation::Responses, |t| response("reasoning_summary_text", t)),
    ("custom_tool_call_input", Operation::Responses, |t| response("custom_tool_call_input", t)),
    ("audio", Operation::Responses, |t| response("audio.transcript", t)),
];

fn response(kind: &str, text: &str) -> Value {
    json!({"type": format!("response.{kind}.delta"), "sequence_number": 7, "item_id": "i",
        "output_index": 1, "content_index": 0, "delta": text})
}

fn secrets() -> Arc<Secrets> {
    static SECRETS: LazyLock<Arc<Secrets>> = LazyLock::new(|| Secrets::new([KEY]).into());
    SECRETS.clone()
}

/// What a client has read of these events when it has put the pieces of each text together,
/// and whether the stream was broken off.
fn read(operation: Operation, events: &[Value]) -> (String, bool) {
    let secrets = secrets();
    let (mut quotes, mut reader, mut answer) =
        (Quotes::new(secrets.clone()), Reader::new(operation), Answer::default());
    let (mut waiting, mut texts) = (vec![], BTreeMap::<Place, String>::new());
    for event in events {
        // As the bytes of a connection, without what is whole in them.
        let data = event.to_string().into_bytes();
        let data = secrets.without(&data).unwrap_or(data);
        reader.read(&mut answer, &data, |said| quotes.event(&data, &said));
        quotes.came(data.len());
        if quotes.is_secret() {
            return (texts.into_values().collect(), true);
        }
        waiting.push(data);
        if !quotes.holds() {
            for data in waiting.drain(..) {
                pieces(&data, |place, text| texts.entry(place).or_default().push_str(text));
            }
        }
    }
    for data in waiting {
        pieces(&data, |place, text| texts.entry(place).or_default().push_str(text));
    }
    (texts.into_values().collect::<Vec<_>>().join("\n"), false)
}

/// How a model may write the key into a text: as it is, or within JSON that it writes.
fn spellings() -> Vec<String> {
    let escaped: String = KEY.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let slash = KEY.replace('/', "\\/");
    vec![
        format!("the key is {KEY}."),
        format!("{{\"key\": \"{slash}\"}}"),
        format!("{{\"key\": \"{escaped}\"}}"),
        format!("{{\"in\": \"{{\\\"key\\\": \\\"{}\\\"}}\"}}", slash.replace('\\', "\\\\")),
    ]
}

/// Nothing by which the key could be known but its first bytes.
fn tells(text: &str) -> bool {
    let plain = text.replace("\\\\/", "/").replace("\\/", "/");
    let escaped: String = KEY[9..16].bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    plain.contains(&KEY[..LONGEST_HINT + 1])
        || plain.contains("0123456789")
        || plain.contains(&escaped)
}

#[test]
fn no_field_tells_a_key_whole_or_cut_anywhere() {
    for (field, operation, around) in FIELDS {
        for spelled in spellings() {
            let before = around("Well: ");
            let whole = [before.clone(), around(&spelled), around(" So.")];
            let (told, _) = read(operation, &whole);
            assert!(!tells(&told), "{field}, whole: {told}");
            for cut in 1..spelled.len() {
                let (first, second) = spelled.split_at(cut);
                let events = [before.clone(), around(first), around(second), around(" So.")];
                let (told, broken) = read(operation, &events);
                assert!(!tells(&told), "{field}, cut at {cut}: {told}");
                // Cut before or behind the key, it is whole in one of them.
                let within =
                    !events.iter().any(|e| secrets().without(e.to_string().as_bytes()).is_some());
                assert!(broken || !within, "{field}, cut at {cut} of {spelled}");
            }
        }
    }
}

#[test]
fn a_key_is_found_letter_by_letter_among_words_of_other_fields() {
    for (field, operation, around) in FIELDS {
        let events: Vec<Value> = KEY
            .chars()
            .flat_map(|letter| [around(&letter.to_string()), json!({"other": [{"text": "word"}]})])
            .collect();
        let (told, broken) = read(operation, &events);
        assert!(broken && !tells(&told), "{field}: {told}");
    }
}

#[test]
fn nothing_in_between_and_a_field_that_is_there_twice_hide_no_key() {
    let event = |fields: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{{fields}}}}}]}}"#);
    let content = |text: &str| format!(r#""content":"{text}""#);
    // The fields of a delta, where `_` is the piece, and what the event after it says.
    for (fields, between) in [
        (content("_"), content("")),
        (format!("{},{}", content("zz"), content("_")), String::new()),
        (format!("{},{}", content("_"), content("zz")), String::new()),
        (format!(r#"{},"x":"y",{}"#, content("zz"), content("_")), String::new()),
        (format!("{},{},{}", content("zz"), content("yy"), content("_")), String::new()),
    ] {
        for size in [1, 4, 9] {
            let (mut quotes, mut reader, mut answer) =
                (Quotes::new(secrets()), Reader::new(Operation::Chat), Answer::default());
            for piece in KEY.as_bytes().chunks(size) {
                let piece = std::str::from_utf8(piece).unwrap();
                for fields in [&fields.replace('_', piece), &between] {
                    let data = event(fields).into_bytes();
                    reader.read(&mut answer, &data, |said| quotes.event(&data, &said));
                }
            }
            assert!(quotes.is_secret(), "{fields} in pieces of {size}");
        }
    }
}

#[test]
fn only_what_may_be_a_key_waits_and_all_else_goes_on_at_once() {
    for (field, operation, around) in FIELDS {
        let (mut quotes, mut reader, mut answer) =
            (Quotes::new(secrets()), Reader::new(operation), Answer::default());
        // Words, the beginning that many keys share, one that goes on otherwise.
        for (text, waits) in [
            ("A word. ", false),
            ("sk-", false),
            ("upstr", false),
            ("eam-01", true),
            ("x and on", false),
            ("sk-upstream-0", true),
        ] {
            let data = around(text).to_string().into_bytes();
            reader.read(&mut answer, &data, |said| quotes.event(&data, &said));
            quotes.came(data.len());
            assert_eq!(quotes.holds(), waits, "{field}: {text}");
            assert!(quotes.kept() < 100 && !quotes.is_secret(), "{field}");
        }
        quotes.end();
        assert!(!quotes.holds());
    }
}

#[test]
fn of_what_goes_on_before_its_end_is_known_not_more_than_half_is_a_key() {
    let (first, second) = KEY.split_at(KEY.len() / 2);
    // Each event says that it is the last, or others come in between.
    let let_go: [fn(&mut Quotes); 2] = [Quotes::end, |quotes| quotes.came(LONGEST_HELD + 1)];
    for let_go in let_go {
        let mut quotes = Quotes::new(secrets());
        for (piece, found) in [(first, false), (&second[..1], true)] {
            quotes.hear(1, piece);
            let_go(&mut quotes);
            assert_eq!(quotes.is_secret(), found, "{piece}");
        }
    }
    // A text that was cut within the key.
    for (length, found) in [(KEY.len() / 2, false), (KEY.len() - 1, true)] {
        let answer =
            json!({"choices": [{"message": {"content": format!("It is {}", &KEY[..length])}}]});
        assert_eq!(are_spelled(&secrets(), answer.to_string().as_bytes()), found, "{length}");
    }
}

#[test]
fn what_waits_for_too_long_goes_on() {
    let mut quotes = Quotes::new(secrets());
    quotes.hear(1, "sk-upstream-");
    quotes.came(LONGEST_HELD);
    assert!(quotes.holds());
    quotes.came(1);
    assert!(!quotes.holds());
}

#[test]
fn a_whole_answer_that_spells_it_in_several_texts_is_found_out() {
    let halves = |a: &str, b: &str| {
        [
            json!({"choices": [{"message": {"content": [{"type": "text", "text": a}, {"type": "text", "text": b}]}}]}),
            json!({"choices": [{"message": {"content": "?"}, "logprobs": {"content": [{"token": a}, {"token": b}]}}]}),
            json!({"choices": [{"text": "?", "logprobs": {"tokens": [a, b]}}]}),
            json!({"output": [{"content": [{"type": "output_text", "text": a}, {"type": "output_text", "text": b}]}]}),
        ]
    };
    for cut in 1..KEY.len() {
        for answer in halves(&KEY[..cut], &KEY[cut..]) {
            assert!(are_spelled(&secrets(), answer.to_string().as_bytes()), "{answer}");
        }
        // Begun twice, and it ends with most of it or not.
        for answer in halves(&KEY[..cut], &KEY[..cut]) {
            let spelled = are_spelled(&secrets(), answer.to_string().as_bytes());
            assert_eq!(spelled, 2 * cut > KEY.len(), "{answer}");
        }
    }
}
