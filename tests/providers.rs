//! What real servers send, and what Serinus reads of it.
//!
//! A case is two files in `tests/fixtures/providers/NAME`: `CASE.json` (a whole answer) or
//! `CASE.sse` (a stream), and `CASE.expected.json`: where the shape is documented
//! (`source`), the `tokens`, and any of `text`, `finish_reason`, `ending` (what the reason
//! means), `model`, `tool_call`, `calls` (their arguments), `refused`, `failed`, `status` (that
//! it tells within), `missing` and `unread`. What is not written there is not checked. `extract` names a provider and a
//! flavour of the genai-prices catalogue, whose own reading must find the same tokens.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use genai_prices::ExtractRequest;
use serde_json::{Value, json};
use serinus::openai::{
    Operation,
    answer::Answer,
    sse::{Events, Fate, Payload},
    usage::Tokens,
};

struct Case {
    name: String,
    body: Vec<u8>,
    stream: bool,
    expected: Value,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/providers");
    let list = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let mut files: Vec<PathBuf> = list(&root).iter().flat_map(|folder| list(folder)).collect();
    files.sort();
    files
        .iter()
        .filter(|file| !file.to_string_lossy().ends_with(".expected.json"))
        .map(|file| {
            let name = file.strip_prefix(&root).unwrap().display().to_string();
            let expected = fs::read(file.with_extension("expected.json"))
                .unwrap_or_else(|e| panic!("{name}: its .expected.json: {e}"));
            let expected = serde_json::from_slice(&expected)
                .unwrap_or_else(|e| panic!("{name}: its .expected.json: {e}"));
            let stream = file.extension().is_some_and(|e| e == "sse");
            Case { name, body: fs::read(file).unwrap(), stream, expected }
        })
        .collect()
}

/// What was asked for: told by the case's name, chat unless it says something else.
fn operation(case: &Case) -> Operation {
    let file = case.name.rsplit('/').next().unwrap();
    match file.split(['.', '-']).next().unwrap() {
        "completion" => Operation::Completions,
        "embeddings" => Operation::Embeddings,
        "responses" => Operation::Responses,
        _ => Operation::Chat,
    }
}

/// The one place that knows how an answer is read.
fn read(case: &Case) -> Answer {
    if !case.stream {
        return Answer::whole(operation(case), &case.body).unwrap();
    }
    let (mut events, mut answer) = (Events::default(), Answer::default());
    let mut heard = |payload: Payload<'_>| {
        match payload {
            Payload::Data(data) => {
                answer.event(operation(case), data);
            }
            Payload::Error(data) => answer.error_event(data),
            Payload::Stray(line) => answer.stray_line(line),
        }
        Fate::Forward
    };
    events.feed(Bytes::from(case.body.clone()), &mut heard);
    events.end(heard);
    answer
}

fn as_json(tokens: Tokens) -> Value {
    let Tokens { input, cached_input, cache_write, output, reasoning } = tokens;
    json!({"input": input, "cached_input": cached_input, "cache_write": cache_write, "output": output, "reasoning": reasoning})
}

#[test]
fn every_server_is_read_as_documented() {
    let (cases, mut wrong) = (cases(), vec![]);
    assert!(cases.len() >= 40, "the fixtures are gone: {}", cases.len());
    for case in &cases {
        let answer = read(case);
        let found = [
            ("tokens", as_json(answer.tokens)),
            ("text", json!(answer.text)),
            ("finish_reason", json!(answer.finish_reason)),
            ("model", json!(answer.model)),
            ("tool_call", json!(answer.tool_call)),
            ("refused", json!(answer.refused)),
            ("failed", json!(answer.failed)),
            ("missing", json!(answer.missing)),
            ("unread", json!(answer.unread)),
            ("status", json!(answer.complaint.as_ref().and_then(|c| c.status))),
            ("ending", json!(answer.ending().map(|ending| format!("{ending:?}")))),
            ("calls", json!(answer.calls.iter().map(|c| &c.arguments).collect::<Vec<_>>())),
        ];
        let expected = case.expected.as_object().unwrap();
        assert!(expected.contains_key("tokens"), "{}: it expects no tokens", case.name);
        let source = expected.get("source").and_then(Value::as_str).unwrap_or_default();
        assert!(!source.is_empty(), "{}: it does not say where its shape is documented", case.name);
        let known = |key: &str| {
            ["source", "extract"].contains(&key) || found.iter().any(|(k, _)| k == &key)
        };
        assert!(expected.keys().all(|key| known(key)), "{}: {:?}", case.name, expected.keys());
        for (key, value) in &found {
            if let Some(expected) = expected.get(*key).filter(|expected| *expected != value) {
                wrong.push(format!("{}: {key} is {value}, not {expected}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Somebody else's reading of the same answers.
#[test]
fn the_price_catalogue_reads_the_same_tokens() {
    let mut checked = 0;
    for case in cases() {
        let Some(extract) = case.expected.get("extract") else { continue };
        let word = |key: &str| extract[key].as_str().unwrap();
        let body = std::str::from_utf8(&case.body).unwrap();
        let request = ExtractRequest::new(body)
            .with_provider_id(word("provider"))
            .with_api_flavor(word("flavor"));
        let usage = genai_prices::extract_provider_usage(&request)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name))
            .usage;
        for (ours, theirs) in [
            ("input", "input_tokens"),
            ("cached_input", "cache_read_tokens"),
            ("cache_write", "cache_write_tokens"),
            ("output", "output_tokens"),
            ("reasoning", "output_reasoning_tokens"),
        ] {
            let ours = case.expected["tokens"][ours].as_f64().unwrap_or(0.0);
            assert_eq!(ours, usage.get(theirs).unwrap_or(0.0), "{}: {theirs}", case.name);
        }
        checked += 1;
    }
    assert!(checked >= 15, "{checked}");
}

/// Usage must not depend on how a stream is cut, nor on the line ends.
#[test]
fn streams_are_read_alike_with_other_line_ends() {
    for case in cases().into_iter().filter(|case| case.stream) {
        let crlf = String::from_utf8(case.body.clone()).unwrap().replace('\n', "\r\n");
        let other = Case { body: crlf.into_bytes(), expected: Value::Null, ..case };
        let lf = String::from_utf8(other.body.clone()).unwrap().replace("\r\n", "\n");
        let same = Case {
            body: lf.into_bytes(),
            name: other.name.clone(),
            stream: true,
            expected: Value::Null,
        };
        assert_eq!(read(&other), read(&same), "{}", other.name);
    }
}
