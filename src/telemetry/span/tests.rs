//! What is written is read with OpenTelemetry's own generated types.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::{
    common::v1::any_value::Value as Any,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;

use super::*;
use crate::{
    audit::record::{Content, Origin},
    telemetry::{
        fixtures::{origin, record},
        names::Set,
        redact::Kind,
    },
};

fn span(record: &Record, sets: &[Set]) -> Span {
    let mut out = Message::default();
    let redaction = Redaction::new(&Kind::ALL, &[]).unwrap();
    write(&mut out, 1, record, &Names::new(sets), &redaction);
    let bytes = out.into_bytes();
    let Some(crate::telemetry::protobuf::Field::Bytes(span)) =
        crate::telemetry::protobuf::read(&bytes, 1)
    else {
        panic!("no span")
    };
    Span::decode(span).unwrap()
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let show = |any: &Any| match any {
        Any::StringValue(text) => text.clone(),
        Any::BoolValue(value) => value.to_string(),
        Any::IntValue(value) => value.to_string(),
        Any::DoubleValue(value) => format!("{value:?}"),
        Any::ArrayValue(list) => format!("{:?}", list.values.len()),
        Any::KvlistValue(map) => map.values[0].key.clone(),
        other => panic!("{other:?}"),
    };
    let one = |pair: &'_ opentelemetry_proto::tonic::common::v1::KeyValue| {
        show(pair.value.as_ref().unwrap().value.as_ref().unwrap())
    };
    span.attributes.iter().map(|pair| (pair.key.as_str(), one(pair))).collect()
}

#[test]
fn a_span_says_where_when_and_what_by_the_conventions() {
    let span = span(&record(), &[Set::GenAi]);
    assert_eq!(span.name, "chat gpt-4o-mini");
    assert_eq!(span.kind(), SpanKind::Client);
    assert_eq!((&span.trace_id[..], &span.span_id[..]), (&[1; 16][..], &[2; 8][..]));
    assert_eq!(&span.parent_span_id[..], &[3; 8]);
    assert_eq!(span.start_time_unix_nano, 1_700_000_000_000_000_000);
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_500_000_000);
    assert_eq!(span.status.as_ref().unwrap().code(), StatusCode::Ok);
    assert_eq!(span.flags, 1);
    let found = attributes(&span);
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-4o-mini"),
        ("gen_ai.request.stream", "true"),
        ("gen_ai.response.model", "gpt-4o-mini-2024-07-18"),
        ("gen_ai.response.time_to_first_chunk", "0.25"),
        ("gen_ai.usage.input_tokens", "100"),
        ("gen_ai.usage.output_tokens", "51"),
        ("gen_ai.usage.cache_read.input_tokens", "40"),
        ("gen_ai.usage.reasoning.output_tokens", "11"),
        ("gen_ai.response.finish_reasons", "1"),
        ("gen_ai.prompt.name", "support-answer"),
        ("gen_ai.prompt.version", "support-answer-v7"),
        ("server.address", "api.openai.com"),
        ("server.port", "443"),
        ("serinus.release", "ns/support"),
        ("serinus.revision", "rev1"),
        ("serinus.role", "canary"),
        ("serinus.assignment.reason", "sticky"),
        ("serinus.cost_usd", "0.0042"),
        ("serinus.team", "web"),
        ("serinus.check", "passed"),
    ] {
        assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
    }
    let absent = ["error.type", "gen_ai.usage.cache_write.input_tokens", "gen_ai.input.messages"];
    assert!(absent.iter().all(|name| !found.contains_key(name)), "what is not known is not told");
}

#[test]
fn a_failure_is_an_error_by_its_word_and_who_goes_away_is_none() {
    let failed = Record {
        outcome: RecordOutcome::Error,
        error: Some("upstream_timeout"),
        finish_reason: None,
        ..record()
    };
    let span_of = |record: &Record| span(record, &[Set::GenAi]);
    let failed_span = span_of(&failed);
    let status = failed_span.status.as_ref().unwrap();
    assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "upstream_timeout"));
    assert_eq!(attributes(&failed_span)["error.type"], "upstream_timeout");
    let unnamed = span_of(&Record { error: None, ..failed });
    assert_eq!(attributes(&unnamed)["error.type"], "_OTHER");
    let cancelled = span_of(&Record { outcome: RecordOutcome::Cancelled, ..record() });
    assert_eq!(cancelled.status.as_ref().unwrap().code(), StatusCode::Unset);
    assert_eq!(attributes(&cancelled)["serinus.outcome"], "cancelled");
}

#[test]
fn other_readers_find_their_own_names_too() {
    let content = Content {
        input: br#"[{"role":"user","content":"I am ada@example.org"}]"#.to_vec(),
        output: "Hello".into(),
        user: Some("u1".into()),
        ..Content::default()
    };
    let said = Record { content: Some(Box::new(content)), ..record() };
    let found = |sets: &[Set]| -> BTreeMap<String, String> {
        let span = span(&said, sets);
        attributes(&span).into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    };
    let phoenix = found(&[Set::OpenInference]);
    for (name, value) in [
        ("openinference.span.kind", "LLM"),
        ("llm.token_count.total", "151"),
        ("llm.input_messages.0.message.content", "I am [redacted:email]"),
        ("llm.output_messages.0.message.role", "assistant"),
        ("output.mime_type", "text/plain"),
        ("input.mime_type", "application/json"),
        ("user.id", "u1"),
    ] {
        assert_eq!(phoenix.get(name).map(String::as_str), Some(value), "{name}");
    }
    let langfuse = found(&[Set::GenAi, Set::Langfuse]);
    for (name, value) in [
        ("langfuse.observation.prompt.name", "support-answer"),
        ("langfuse.observation.prompt.version", "7"),
        ("langfuse.observation.cost_details", r#"{"total":0.0042}"#),
        ("langfuse.observation.completion_start_time", r#""2023-11-14T22:13:20.250Z""#),
        (
            "langfuse.observation.usage_details",
            r#"{"input":60,"input_cached_tokens":40,"input_cache_creation":0,"output":40,"output_reasoning_tokens":11,"total":151}"#,
        ),
    ] {
        assert_eq!(langfuse.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(found(&[Set::GenAi, Set::Mlflow])["mlflow.llm.cost"], "total_cost");
    for set in [Set::GenAi, Set::OpenInference, Set::Langfuse, Set::Mlflow] {
        assert!(found(&[set]).values().all(|value| !value.contains("ada@")), "{set:?}");
    }
}

#[test]
fn embeddings_are_told_as_embeddings() {
    let embedding = Record { operation: Operation::Embeddings, streamed: false, ..record() };
    let span = span(&embedding, &[Set::GenAi, Set::OpenInference]);
    assert_eq!(span.name, "embeddings gpt-4o-mini");
    let found = attributes(&span);
    assert_eq!(found["openinference.span.kind"], "EMBEDDING");
    assert_eq!(found["embedding.model_name"], "gpt-4o-mini");
    assert!(!found.contains_key("llm.model_name"));
    assert!(!found.contains_key("gen_ai.response.time_to_first_chunk"));
}

#[test]
fn a_prompts_number_is_what_its_versions_name_ends_with() {
    for (name, number) in [
        ("support-answer-v7", Some(7)),
        ("support-answer-12", Some(12)),
        ("v3", Some(3)),
        ("4", Some(4)),
        ("answer-2024-01-05", None),
        ("answer-1.2", None),
        ("gpt4", None),
        ("answer-final", None),
        ("answer-v99999999999999999999", None),
    ] {
        let version = Origin { prompt_version: name.to_owned(), ..origin("r") };
        let record = Record { origin: Arc::new(version), ..record() };
        let span = span(&record, &[Set::Langfuse]);
        let found = attributes(&span);
        let told = found.get("langfuse.observation.prompt.version").cloned();
        assert_eq!(told, number.map(|n: u64| n.to_string()), "{name}");
    }
}
