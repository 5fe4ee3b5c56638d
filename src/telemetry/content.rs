//! What was said, in the shapes that tracing systems read, after redaction.

use serde_json::{Map, Value, json};

use super::redact::Redaction;
use crate::audit::record::{Content, Operation, Record};

/// So many calls of one streamed answer are told.
const MOST_CALLS: usize = 128;

/// What was said in one request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// The input as a text: JSON where it is JSON.
    pub input: String,
    /// The input as messages; empty when it has none (embeddings, cut input).
    pub messages: Vec<Message>,
    /// The answer's text, or the tool calls that are all of it, as JSON.
    pub output: String,
    /// The answer as a message.
    pub answer: Vec<Message>,
    /// OpenTelemetry's `gen_ai.input.messages`.
    pub gen_ai_input: String,
    /// OpenTelemetry's `gen_ai.output.messages`.
    pub gen_ai_output: String,
    /// Whom the request names as its user.
    pub user: Option<String>,
    /// The conversation.
    pub conversation: Option<String>,
}

/// One message.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Message {
    pub role: String,
    /// The text of all parts.
    pub text: String,
    pub calls: Vec<Call>,
    /// The call that this message answers.
    pub call_id: Option<String>,
}

/// A call of a tool that the model asks for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Call {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// Reads and redacts what a record keeps; none when it keeps nothing.
pub(super) fn said(record: &Record, redaction: &Redaction) -> Option<Said> {
    let content = record.content.as_deref()?;
    let redaction = &redaction.knowing(&content.known);
    let redacted = |text: &Option<String>| text.as_deref().map(|t| redaction.text(t).into_owned());
    let mut said = Said {
        output: redaction.text(&content.output).into_owned(),
        user: redacted(&content.user),
        conversation: redacted(&content.conversation),
        ..Said::default()
    };
    match serde_json::from_slice::<Value>(&content.input) {
        Ok(mut input) => {
            redaction.json(&mut input);
            said.messages = messages(&input);
            said.input = input.to_string();
        }
        // It was cut off where the limit is, perhaps within what a rule would have found.
        Err(_) => said.input = redaction.text(&whole(&content.input)).into_owned(),
    }
    if record.operation != Operation::Embeddings {
        said.answer = answer(content, redaction, &said.output);
    }
    if !said.messages.is_empty() {
        said.gen_ai_input = list(&said.messages, None);
    }
    if !said.answer.is_empty() {
        let reason = record.finish_reason.as_deref().unwrap_or("error");
        said.gen_ai_output = list(&said.answer, Some(reason));
        // An answer that only calls tools is no empty one.
        if said.output.is_empty() {
            said.output.clone_from(&said.gen_ai_output);
        }
    }
    Some(said)
}

fn whole(cut: &[u8]) -> String {
    let text = String::from_utf8_lossy(cut).into_owned();
    let most = text.len().saturating_sub(1);
    whole_words(text, most)
}

/// At most so many bytes of a text, without the word in which it would be cut: half an
/// address is not found by a rule, and still tells whose it is.
pub fn whole_words(mut text: String, most: usize) -> String {
    if text.len() > most {
        let kept = text.char_indices().take_while(|(at, _)| *at <= most);
        let end = kept.filter(|(_, c)| c.is_whitespace()).last().map_or(0, |(at, _)| at);
        text.truncate(end);
    }
    text
}

/// The messages of a chat, or the one message that a prompt or input is.
fn messages(input: &Value) -> Vec<Message> {
    match input {
        Value::String(text) => {
            vec![Message { role: "user".to_owned(), text: text.clone(), ..Message::default() }]
        }
        Value::Array(items) => items.iter().filter_map(Value::as_object).map(message).collect(),
        _ => vec![],
    }
}

fn message(fields: &Map<String, Value>) -> Message {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut content = String::new();
    match fields.get("content").or_else(|| fields.get("output")) {
        Some(Value::String(text)) => content.push_str(text),
        Some(Value::Array(parts)) => parts.iter().for_each(|part| push_part(&mut content, part)),
        _ => {}
    }
    // Items of the Responses API have a type in the place of a role.
    let role = Some(text("role"))
        .filter(|role| !role.is_empty())
        .unwrap_or_else(|| if text("type") == "function_call" { "assistant" } else { "tool" });
    let mut calls = calls(fields.get("tool_calls"));
    if text("type") == "function_call" {
        let (id, name) = (text("call_id").to_owned(), text("name").to_owned());
        calls.push(Call { id, name, arguments: text("arguments").to_owned() });
    }
    let call_id = ["tool_call_id", "call_id"]
        .map(text)
        .into_iter()
        .find(|id| !id.is_empty() && calls.is_empty())
        .map(str::to_owned);
    Message { role: role.to_owned(), text: content, calls, call_id }
}

fn push_part(text: &mut String, part: &Value) {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    if !text.is_empty() {
        text.push('\n');
    }
    match part.get("text").and_then(Value::as_str) {
        Some(said) => text.push_str(said),
        // Images and sounds are told of, not sent.
        None => {
            text.push('[');
            text.push_str(kind);
            text.push(']');
        }
    }
}

fn calls(list: Option<&Value>) -> Vec<Call> {
    let of = |call: &Value| {
        let text = |pointer: &str| {
            call.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let (id, name) = (text("/id"), text("/function/name"));
        Call { id, name, arguments: text("/function/arguments") }
    };
    list.and_then(Value::as_array).into_iter().flatten().map(of).collect()
}

/// The calls of an answer; those of a stream come in parts, by index.
fn add_calls(calls: &mut Vec<Call>, payload: &Value) {
    let list = |pointer: &str| {
        payload.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    };
    calls.extend(self::calls(payload.pointer("/choices/0/message/tool_calls")));
    for part in list("/choices/0/delta/tool_calls") {
        let text = |pointer: &str| part.pointer(pointer).and_then(Value::as_str);
        let index = part.get("index").and_then(Value::as_u64).unwrap_or(0) as usize;
        // More would be a mistake of the model's server.
        if index >= calls.len().saturating_add(1).min(MOST_CALLS) {
            continue;
        }
        calls.resize_with(calls.len().max(index + 1), Call::default);
        let Some(call) = calls.get_mut(index) else { continue };
        for (own, more) in [
            (&mut call.id, text("/id")),
            (&mut call.name, text("/function/name")),
            (&mut call.arguments, text("/function/arguments")),
        ] {
            own.push_str(more.unwrap_or_default());
        }
    }
    // Of the Responses API.
    let items = list("/output").iter().chain(list("/response/output"));
    for item in items.filter(|item| item.get("type") == Some(&Value::from("function_call"))) {
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let (id, name) = (text("call_id").to_owned(), text("name").to_owned());
        calls.push(Call { id, name, arguments: text("arguments").to_owned() });
    }
}

fn answer(content: &Content, redaction: &Redaction, text: &str) -> Vec<Message> {
    let mut calls: Vec<Call> = vec![];
    for payload in &content.tool_calls {
        add_calls(&mut calls, &serde_json::from_slice(payload).unwrap_or_default());
    }
    // When they are whole: in a stream, an address may come in two halves.
    for text in calls.iter_mut().flat_map(|Call { id, name, arguments }| [id, name, arguments]) {
        *text = redaction.text(text).into_owned();
    }
    if text.is_empty() && calls.is_empty() {
        return vec![];
    }
    vec![Message { role: "assistant".to_owned(), text: text.to_owned(), calls, call_id: None }]
}

/// By OpenTelemetry's JSON Schema of messages.
fn list(messages: &[Message], finish_reason: Option<&str>) -> String {
    let messages = messages.iter().map(|message| {
        let mut parts = vec![];
        match &message.call_id {
            Some(id) => parts
                .push(json!({"type": "tool_call_response", "id": id, "response": message.text})),
            None if message.text.is_empty() => {}
            None => parts.push(json!({"type": "text", "content": message.text})),
        }
        parts.extend(message.calls.iter().map(|call| {
            let arguments = serde_json::from_str(&call.arguments)
                .unwrap_or_else(|_| Value::from(call.arguments.as_str()));
            json!({"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments})
        }));
        let mut out = json!({"role": message.role, "parts": parts});
        if let (Some(reason), Some(out)) = (finish_reason, out.as_object_mut()) {
            out.insert("finish_reason".to_owned(), Value::from(reason));
        }
        out
    });
    Value::Array(messages.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{fixtures::record, redact::Kind};

    fn of(content: Content) -> Said {
        let record = Record {
            finish_reason: Some("tool_calls".into()),
            content: Some(Box::new(content)),
            ..record()
        };
        said(&record, &Redaction::new(&Kind::ALL, &[]).unwrap()).unwrap()
    }

    #[test]
    fn a_conversation_with_tools_is_told_by_the_conventions() {
        let said = of(Content {
            input: json!([
                {"role": "system", "content": "You know weather."},
                {"role": "user", "content": [
                    {"type": "text", "text": "Paris? I am ada@example.org"},
                    {"type": "image_url", "image_url": {"url": "data:…"}}]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c1", "type": "function",
                     "function": {"name": "weather", "arguments": "{\"city\": \"Paris\"}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            ])
            .to_string()
            .into_bytes(),
            tool_calls: vec![
                json!({"choices": [{"message": {"tool_calls": [
                    {"id": "c2", "function": {"name": "umbrella", "arguments": "{bad"}}]}}]})
                .to_string()
                .into_bytes(),
            ],
            ..Content::default()
        });
        let input: Value = serde_json::from_str(&said.gen_ai_input).unwrap();
        assert_eq!(
            input,
            json!([
                {"role": "system", "parts": [{"type": "text", "content": "You know weather."}]},
                {"role": "user", "parts": [
                    {"type": "text", "content": "Paris? I am [redacted:email]\n[image_url]"}]},
                {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1",
                    "name": "weather", "arguments": {"city": "Paris"}}]},
                {"role": "tool", "parts": [
                    {"type": "tool_call_response", "id": "c1", "response": "rain"}]},
            ])
        );
        let output: Value = serde_json::from_str(&said.gen_ai_output).unwrap();
        assert_eq!(
            output,
            json!([{"role": "assistant", "finish_reason": "tool_calls", "parts": [
                {"type": "tool_call", "id": "c2", "name": "umbrella", "arguments": "{bad"}]}])
        );
        assert!(!said.input.contains("ada@"));
    }

    #[test]
    fn input_of_the_responses_api_is_understood() {
        let said = of(Content {
            input: json!([
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"},
            ])
            .to_string()
            .into_bytes(),
            ..Content::default()
        });
        let roles: Vec<&str> = said.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool"]);
        assert_eq!(said.messages[1].calls[0].name, "f");
        assert_eq!(said.messages[2].call_id.as_deref(), Some("c"));
        let said = of(Content { input: b"\"a prompt\"".to_vec(), ..Content::default() });
        assert_eq!(said.messages[0].text, "a prompt");
    }

    #[test]
    fn calls_of_a_stream_are_put_together_before_they_are_redacted() {
        let delta = |index: u64, function: Value, id: Option<&str>| {
            let call = json!({"index": index, "id": id, "function": function});
            json!({"choices": [{"delta": {"tool_calls": [call]}}]}).to_string().into_bytes()
        };
        let said = of(Content {
            tool_calls: vec![
                delta(0, json!({"name": "mail", "arguments": ""}), Some("c0")),
                delta(0, json!({"arguments": "{\"to\": \"ada@ex"}), None),
                delta(0, json!({"arguments": "ample.org\"}"}), None),
                delta(1, json!({"name": "wait", "arguments": "{}"}), Some("c1")),
                delta(9_000_000_000, json!({"name": "huge"}), None),
                b"no json".to_vec(),
            ],
            ..Content::default()
        });
        let calls: Vec<(&str, &str, &str)> = said.answer[0]
            .calls
            .iter()
            .map(|c| (c.id.as_str(), c.name.as_str(), c.arguments.as_str()))
            .collect();
        let mail = r#"{"to": "[redacted:email]"}"#;
        assert_eq!(calls, [("c0", "mail", mail), ("c1", "wait", "{}")]);
    }

    #[test]
    fn calls_of_the_responses_api_are_told() {
        let item = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "1"});
        for payload in [json!({"output": [item]}), json!({"response": {"output": [item]}})] {
            let tool_calls = vec![payload.to_string().into_bytes()];
            let said = of(Content { tool_calls, ..Content::default() });
            assert_eq!(said.answer[0].calls[0].name, "f");
        }
    }

    #[test]
    fn a_text_is_cut_between_words() {
        let cut = |most| whole_words("ab cd ef".to_owned(), most);
        assert_eq!(
            [cut(8), cut(7), cut(5), cut(4), cut(1)],
            ["ab cd ef", "ab cd", "ab cd", "ab", ""]
        );
        assert_eq!(whole_words("äö ü".to_owned(), 4), "äö");
    }

    #[test]
    fn what_was_cut_off_ends_before_the_word_that_was_cut() {
        let said = of(Content {
            input: br#"[{"role": "user", "content": "mail bob@example.org and eve@exa"#.to_vec(),
            ..Content::default()
        });
        assert_eq!(said.input, r#"[{"role": "user", "content": "mail [redacted:email] and"#);
        assert!(said.gen_ai_input.is_empty());
    }
}
