//! What strangers send, given to the functions that read it. Nothing may panic, recurse
//! without bound, or take more than its input is worth; where two readers must agree, they
//! are compared. Run by cargo-fuzz, and on stable Rust by `tests/fuzz.rs`.
#![allow(dead_code, reason = "each target of cargo-fuzz uses one of them")]

use bytes::Bytes;
use serde_json::{Value, json};
use serinus::{
    api::manifest,
    gateway::reads_feedback,
    openai::{
        Operation,
        alike::Reader,
        answer::Answer,
        complaint::Complaint,
        depth,
        request::{self, Request},
        sse::{Events, Fate, Payload},
    },
    prompt::Template,
};

/// The body of a request.
pub fn request(data: &[u8]) {
    let Ok(request) = Request::parse(Bytes::copy_from_slice(data)) else { return };
    assert!(depth::bounded(data).is_ok());
    for (name, value) in request.fields() {
        assert!(serde_json::from_slice::<&serde_json::value::RawValue>(value).is_ok());
        let Ok(name) = std::str::from_utf8(name) else { panic!("names are texts") };
        let _ = (request.text(name), request.is_true(name));
        let _ = (request::elements(value), request::count(value), request::values(value));
    }
    for operation in Operation::ALL {
        let _ = request.leaves_something(operation);
    }
}

/// A whole answer of a model, or what it says in place of one.
pub fn answer(data: &[u8]) {
    for operation in Operation::ALL {
        let _ = Answer::whole(operation, data);
        let (mut answer, mut reader) = (Answer::default(), Reader::new(operation));
        // Twice: what is alike is read another way.
        for _ in 0..2 {
            let _ = reader.event(&mut answer, data);
        }
        answer.error_event(data);
        answer.stray_line(data);
        let _ = (answer.complete(), answer.is_unread(), answer.ending());
    }
    let _ = Complaint::read(data);
}

/// A stream of events, cut anywhere: all bytes go on, in whatever pieces they came.
pub fn sse(data: &[u8]) {
    let (cut, stream) = data.split_first().map_or((1, data), |(cut, rest)| (*cut, rest));
    let whole = read_stream(stream.chunks(stream.len().max(1)));
    let cut = read_stream(stream.chunks(usize::from(cut).max(1)));
    assert_eq!(whole, cut, "where a stream is cut does not matter");
    // A mark of the byte order is left out, and the last event gets the end that it lacks.
    let came = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let added = whole.1.strip_prefix(came).expect("what is not left out goes on as it came");
    assert!(matches!(added, b"" | b"\n" | b"\n\n"), "{added:?} is the end of no event");
}

fn read_stream<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Answer, Vec<u8>) {
    let (mut events, mut out) = (Events::default(), vec![]);
    let (mut answer, mut reader) = (Answer::default(), Reader::new(Operation::Chat));
    let mut read = |payload: Payload<'_>| {
        match payload {
            Payload::Data(data) => drop(reader.event(&mut answer, data)),
            Payload::Error(data) => answer.error_event(data),
            Payload::Stray(data) => answer.stray_line(data),
        }
        Fate::Forward
    };
    for chunk in chunks {
        events.feed(Bytes::copy_from_slice(chunk), &mut read);
        while let Some(bytes) = events.take() {
            out.extend(bytes);
        }
    }
    events.end(&mut read);
    while let Some(bytes) = events.take() {
        out.extend(bytes);
    }
    (answer, out)
}

/// The body of a feedback.
pub fn feedback(data: &[u8]) {
    let _ = reads_feedback(data);
}

/// A file of a folder.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for object in manifest::parse(text).unwrap_or_default() {
        let _ = (object.kind(), object.check_update(&object));
    }
}

/// A schema, and behind a line of its own what is checked against it.
pub fn schema(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let read = |json: Option<&[u8]>| serde_json::from_slice::<Value>(json?).ok();
    let Some(schema @ Value::Object(_)) = read(lines.next()) else { return };
    let value = read(lines.next()).unwrap_or_default();
    let prompt = json!({"prompt": "p", "messages": [], "variables": schema,
        "responseFormat": schema,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]});
    let Ok(prompt) = serde_json::from_value(prompt) else { return };
    let Ok(template) = Template::compile(&prompt) else { return };
    let renders = template.fill(&value).is_ok();
    let text = value.to_string();
    assert!(!renders || template.accepts(&text), "what is checked twice is the same");
    let _ = template.tools().judge("f", &text);
}
