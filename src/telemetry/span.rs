//! A record as a span.

use jiff::Timestamp;
use serde_json::json;

use super::{
    content::{self, Message as SaidMessage, Said},
    names::{Fact, Names},
    protobuf::Message,
    redact::Redaction,
};
use crate::audit::record::{AssignmentReason, Operation, Record, RecordOutcome, TraceContext};

/// A `Span` of OTLP, `opentelemetry.proto.trace.v1`.
mod field {
    pub const TRACE_ID: u32 = 1;
    pub const SPAN_ID: u32 = 2;
    pub const PARENT: u32 = 4;
    pub const NAME: u32 = 5;
    pub const KIND: u32 = 6;
    pub const START: u32 = 7;
    pub const END: u32 = 8;
    pub const ATTRIBUTES: u32 = 9;
    pub const STATUS: u32 = 15;
    pub const FLAGS: u32 = 16;
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
    pub const STRING: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const INT: u32 = 3;
    pub const DOUBLE: u32 = 4;
    pub const ARRAY: u32 = 5;
    pub const MAP: u32 = 6;
    pub const VALUES: u32 = 1;
    pub const STATUS_MESSAGE: u32 = 2;
    pub const STATUS_CODE: u32 = 3;
}
const KIND_CLIENT: u64 = 3;
const STATUS_OK: u64 = 1;
const STATUS_ERROR: u64 = 2;

/// The value of an attribute.
enum Value<'a> {
    Text(&'a str),
    Owned(String),
    List(&'a str),
    Bool(bool),
    Int(u64),
    Double(f64),
    Map(&'static str, f64),
}

/// Writes the span of a record into `out`, as field `number`. A record without a place in
/// a trace has none.
pub(super) fn write(
    out: &mut Message,
    number: u32,
    record: &Record,
    names: &Names,
    redaction: &Redaction,
) {
    let Some(trace) = record.trace else { return };
    let said = content::said(record, redaction);
    out.message(number, |span| {
        head(span, record, &trace);
        for (fact, name) in names.iter() {
            match (fact, &said) {
                (Fact::InputFlat, Some(said)) => flat(span, name, &said.messages),
                (Fact::OutputFlat, Some(said)) => flat(span, name, &said.answer),
                _ => {
                    if let Some(value) = value(fact, record, said.as_ref()) {
                        attribute(span, name, &value);
                    }
                }
            }
        }
    });
}

fn head(span: &mut Message, record: &Record, trace: &TraceContext) {
    span.bytes(field::TRACE_ID, &trace.trace_id);
    span.bytes(field::SPAN_ID, &trace.span_id);
    if let Some(parent) = trace.parent {
        span.bytes(field::PARENT, &parent);
    }
    let operation = record.operation.as_str();
    span.message(field::NAME, |name| {
        name.raw(operation);
        name.raw(" ");
        name.raw(&record.origin.model);
    });
    span.uint(field::KIND, KIND_CLIENT);
    let start = nanoseconds(record.at, 0.0);
    let end = nanoseconds(record.at, record.duration_seconds);
    span.fixed64(field::START, start);
    span.fixed64(field::END, end);
    span.message(field::STATUS, |status| match record.outcome {
        RecordOutcome::Ok => status.uint(field::STATUS_CODE, STATUS_OK),
        RecordOutcome::ClientError | RecordOutcome::Error => {
            status.string(field::STATUS_MESSAGE, error(record).unwrap_or_default());
            status.uint(field::STATUS_CODE, STATUS_ERROR);
        }
        // Who went away did not see an error.
        RecordOutcome::Cancelled => {}
    });
    span.fixed32(field::FLAGS, u32::from(trace.sampled));
}

fn nanoseconds(at: Timestamp, later: f64) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or(0).saturating_add((later * 1e9) as u64)
}

fn error(record: &Record) -> Option<&'static str> {
    match record.outcome {
        RecordOutcome::Ok | RecordOutcome::Cancelled => record.error,
        // The conventions' word for what has no name.
        RecordOutcome::ClientError | RecordOutcome::Error => Some(record.error.unwrap_or("_OTHER")),
    }
}

fn value<'a>(fact: Fact, record: &'a Record, said: Option<&'a Said>) -> Option<Value<'a>> {
    let origin = &*record.origin;
    let tokens = &record.tokens;
    let text = |text: &'a str| Some(Value::Text(text)).filter(|_| !text.is_empty());
    let count = |count: Option<u64>| count.map(Value::Int);
    let embeddings = record.operation == Operation::Embeddings;
    match fact {
        Fact::RequestId => text(&record.request_id),
        Fact::Release => text(&origin.release),
        Fact::Route => text(&origin.route),
        Fact::Revision => text(&origin.revision),
        Fact::Role => text(record.role.as_str()),
        Fact::Reason => text(record.reason.as_str()),
        Fact::Generation => Some(Value::Int(u64::try_from(record.generation).ok()?)),
        Fact::Prompt => text(&origin.prompt),
        Fact::PromptVersion => text(&origin.prompt_version),
        Fact::PromptNumber => Some(Value::Int(trailing_number(&origin.prompt_version)?)),
        Fact::Backend => text(&origin.backend),
        Fact::Provider => text(&origin.provider),
        Fact::Team => text(&record.caller.as_ref()?.team),
        Fact::Caller => text(&record.caller.as_ref()?.name),
        Fact::Outcome => text(record.outcome.as_str()),
        Fact::Check => text(record.check?.as_str()),
        Fact::Cached => (record.reason == AssignmentReason::Cached).then_some(Value::Bool(true)),
        Fact::Cost => Some(Value::Double(record.cost_usd?)),
        Fact::CostJson => Some(Value::Owned(json!({"total": record.cost_usd?}).to_string())),
        Fact::CostMap => Some(Value::Map("total_cost", record.cost_usd?)),
        Fact::Operation => text(record.operation.as_str()),
        Fact::OpenInferenceKind => text(if embeddings { "EMBEDDING" } else { "LLM" }),
        Fact::LangfuseKind => text(if embeddings { "embedding" } else { "generation" }),
        Fact::Model => text(&origin.model),
        Fact::AnyModel => text(record.served_model.as_deref().unwrap_or(&origin.model)),
        Fact::ChatModel => text(&origin.model).filter(|_| !embeddings),
        Fact::EmbeddingModel => text(&origin.model).filter(|_| embeddings),
        Fact::ServedModel => text(record.served_model.as_deref()?),
        Fact::ResponseId => text(record.response_id.as_deref()?),
        Fact::FinishReason => text(record.finish_reason.as_deref()?),
        Fact::FinishReasons => Some(Value::List(record.finish_reason.as_deref()?)),
        Fact::Streamed => record.streamed.then_some(Value::Bool(true)),
        Fact::FirstToken => Some(Value::Double(first_token(record)?)),
        Fact::FirstTokenAt => Some(Value::Owned(first_token_at(record)?)),
        Fact::PerOutputToken => Some(Value::Double(record.seconds_per_output_token?)),
        Fact::ServerAddress => text(&origin.server_address),
        Fact::ServerPort => {
            (origin.server_port > 0).then(|| Value::Int(u64::from(origin.server_port)))
        }
        Fact::Status => count(record.status.map(u64::from)),
        Fact::Error => text(error(record)?),
        Fact::InputTokens => count(tokens.input),
        Fact::OutputTokens => count(tokens.output),
        Fact::TotalTokens => count(tokens.input.zip(tokens.output).map(|(a, b)| a + b)),
        Fact::CachedTokens => count(tokens.cached_input),
        Fact::CacheWriteTokens => count(tokens.cache_write),
        Fact::ReasoningTokens => count(tokens.reasoning),
        Fact::UsageJson => Some(Value::Owned(usage(record)?)),
        Fact::Input => text(&said?.input),
        Fact::Output => text(&said?.output),
        Fact::InputMime => text(mime(&said?.input)),
        Fact::OutputMime => text(mime(&said?.output)),
        Fact::InputMessages => text(&said?.gen_ai_input),
        Fact::OutputMessages => text(&said?.gen_ai_output),
        Fact::User => text(said?.user.as_deref()?),
        Fact::Conversation => text(said?.conversation.as_deref()?),
        // Written one by one.
        Fact::InputFlat | Fact::OutputFlat => None,
    }
}

fn first_token(record: &Record) -> Option<f64> {
    record.first_token_seconds.filter(|_| record.streamed)
}

/// As Langfuse's own clients send it: a quoted RFC 3339 instant.
fn first_token_at(record: &Record) -> Option<String> {
    let nanoseconds = nanoseconds(record.at, first_token(record)?);
    let at = Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()?;
    Some(format!("\"{at:.3}\""))
}

/// Langfuse adds its keys up, so that they must not overlap.
fn usage(record: &Record) -> Option<String> {
    let tokens = &record.tokens;
    let (input, output) = (tokens.input?, tokens.output?);
    let (cached, written) = (tokens.cached_input.unwrap_or(0), tokens.cache_write.unwrap_or(0));
    let reasoning = tokens.reasoning.unwrap_or(0);
    let usage = json!({
        "input": input.saturating_sub(cached + written),
        "input_cached_tokens": cached,
        "input_cache_creation": written,
        "output": output.saturating_sub(reasoning),
        "output_reasoning_tokens": reasoning,
        "total": input + output,
    });
    Some(usage.to_string())
}

fn mime(text: &str) -> &'static str {
    match text.as_bytes().first() {
        None => "",
        Some(b'{' | b'[') => "application/json",
        Some(_) => "text/plain",
    }
}

/// `support-answer-v7` and `support-answer-7` are version 7 of the prompt, for readers whose
/// versions are numbers. What ends in a date or in `1.2` has no such number.
fn trailing_number(name: &str) -> Option<u64> {
    let before = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name.get(before.len()..)?.parse().ok()?;
    let after_dash = |text: &str| match text.strip_suffix('-') {
        Some(rest) => !rest.ends_with(|c: char| c.is_ascii_digit()),
        None => text.is_empty(),
    };
    let stands_alone = after_dash(before) || before.strip_suffix('v').is_some_and(after_dash);
    stands_alone.then_some(number)
}

/// OpenInference's messages: `prefix.0.message.role` and so on.
fn flat(span: &mut Message, prefix: &str, messages: &[SaidMessage]) {
    let mut put = |key: String, text: &str| {
        if !text.is_empty() {
            attribute(span, &key, &Value::Text(text));
        }
    };
    for (index, message) in messages.iter().enumerate() {
        let of = |what: &str| format!("{prefix}.{index}.message.{what}");
        put(of("role"), &message.role);
        put(of("content"), &message.text);
        put(of("tool_call_id"), message.call_id.as_deref().unwrap_or_default());
        for (number, call) in message.calls.iter().enumerate() {
            let of = |what: &str| of(&format!("tool_calls.{number}.tool_call.{what}"));
            put(of("id"), &call.id);
            put(of("function.name"), &call.name);
            put(of("function.arguments"), &call.arguments);
        }
    }
}

fn attribute(span: &mut Message, name: &str, value: &Value<'_>) {
    span.message(field::ATTRIBUTES, |pair| {
        pair.string(field::KEY, name);
        pair.message(field::VALUE, |any| match value {
            Value::Text(text) => any.string(field::STRING, text),
            Value::Owned(text) => any.string(field::STRING, text),
            Value::Bool(value) => any.uint(field::BOOL, u64::from(*value)),
            Value::Int(value) => any.uint(field::INT, *value),
            Value::Double(value) => any.double(field::DOUBLE, *value),
            Value::List(one) => any.message(field::ARRAY, |array| {
                array.message(field::VALUES, |any| any.string(field::STRING, one));
            }),
            Value::Map(key, value) => any.message(field::MAP, |map| {
                map.message(field::VALUES, |pair| {
                    pair.string(field::KEY, key);
                    pair.message(field::VALUE, |any| any.double(field::DOUBLE, *value));
                });
            }),
        });
    });
}

/// An attribute of text, for what is around spans.
pub(super) fn text_attribute(message: &mut Message, number: u32, name: &str, text: &str) {
    message.message(number, |pair| {
        pair.string(field::KEY, name);
        pair.message(field::VALUE, |any| any.string(field::STRING, text));
    });
}

#[cfg(test)]
mod tests;
