use serde_json::{Value, json};

use super::*;
use crate::openai::Operation;

fn template(prompt: Value) -> Template {
    Template::compile(&serde_json::from_value(prompt).unwrap()).unwrap()
}

fn found_of(prompt: Value, answer: Value, own: Option<Value>) -> CheckResult {
    let answer = Answer::whole(Operation::Chat, answer.to_string().as_bytes()).unwrap();
    let own = own.map(|own| own.to_string());
    let template = template(prompt);
    check(&answer, &template, || template.tools().with_own(own.as_deref().map(str::as_bytes)))
}

fn found(answer: Value) -> CheckResult {
    found_of(json!({"prompt": "p", "messages": []}), answer, None)
}

fn says(message: Value, reason: Value) -> Value {
    json!({"choices": [{"index": 0, "message": message, "finish_reason": reason}]})
}

fn text(reason: Value) -> CheckResult {
    found(says(json!({"role": "assistant", "content": "Half of an"}), reason))
}

#[test]
fn reasons_are_judged_and_unknown_ones_are_no_pass() {
    for (reason, result) in [
        (json!("stop"), CheckResult::Passed),
        (json!("FINISH_REASON_STOP"), CheckResult::Passed),
        (json!("eos_token"), CheckResult::Passed),
        (json!("MAX_TOKENS"), CheckResult::Truncated),
        (json!("model_length"), CheckResult::Truncated),
        (json!("SAFETY"), CheckResult::Refused),
        (json!("sensitive"), CheckResult::Refused),
        (json!("refusal"), CheckResult::Refused),
        (json!("MALFORMED_FUNCTION_CALL"), CheckResult::ToolCall),
        (json!("OTHER"), CheckResult::UnknownReason),
        // Many servers give none in an answer that came as a whole.
        (json!(null), CheckResult::Passed),
        (json!(1), CheckResult::Passed),
    ] {
        assert_eq!(text(reason.clone()), result, "{reason}");
    }
}

#[test]
fn what_is_certainly_wrong_comes_before_what_is_not_judged() {
    let empty = says(json!({"content": ""}), json!("OTHER"));
    assert_eq!(found(empty), CheckResult::Empty);
    let prompt = json!({"prompt": "p", "messages": [], "responseFormat": {"type": "object"}});
    let no_json = says(json!({"content": "no"}), json!("OTHER"));
    assert_eq!(found_of(prompt, no_json, None), CheckResult::Schema);
}

#[test]
fn a_message_in_which_nothing_is_readable_is_not_judged() {
    for message in [
        json!({"role": "assistant", "content": 42}),
        json!({"role": "assistant", "content": {"parts": [{"x": "Hello"}]}}),
        json!({"role": "assistant", "content": null, "parts": [{"text": "Hello"}]}),
        json!({"role": "assistant", "output": "Hello", "reasoning": "hm"}),
        json!("Hello"),
    ] {
        assert_eq!(found(says(message.clone(), json!("stop"))), CheckResult::Unread, "{message}");
    }
    for message in [
        json!({"role": "assistant", "content": ""}),
        json!({"role": "assistant", "content": null, "tool_calls": [], "annotations": []}),
        json!({"role": "assistant", "content": "", "reasoning_content": "I think."}),
        json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}),
    ] {
        assert_eq!(found(says(message.clone(), json!("stop"))), CheckResult::Empty, "{message}");
    }
    let read = says(json!({"role": "assistant", "content": {"text": "Hello"}}), json!("stop"));
    assert_eq!(found(read), CheckResult::Passed);
}

fn tool() -> Value {
    json!([{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "required": ["a"], "properties": {"a": {"type": "boolean"}}}}}])
}

fn calls(name: &str, arguments: Value) -> Value {
    let call =
        json!({"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}});
    says(json!({"role": "assistant", "content": null, "tool_calls": [call]}), json!("tool_calls"))
}

#[test]
fn calls_are_json_of_the_tools_schema() {
    let prompt = json!({"prompt": "p", "messages": [], "tools": tool()});
    let bare = json!({"prompt": "p", "messages": []});
    let (good, bad) = (CheckResult::Passed, CheckResult::ToolCall);
    for (arguments, schema, json) in [
        (json!(r#"{"a": true}"#), good, good),
        (json!({"a": true}), good, good),
        (json!(r#"{"a": tru"#), bad, bad),
        (json!(r#"{"a": 1}"#), bad, good),
        (json!(""), bad, good),
    ] {
        let by_release = found_of(prompt.clone(), calls("f", arguments.clone()), None);
        let by_application = found_of(bare.clone(), calls("f", arguments.clone()), Some(tool()));
        assert_eq!((by_release, by_application), (schema, schema), "{arguments}");
        assert_eq!(found_of(bare.clone(), calls("f", arguments), None), json);
    }
    assert_eq!(found_of(prompt, calls("other", json!("{}")), None), bad);
}

#[test]
fn an_old_call_of_a_function_and_one_of_a_response_are_checked() {
    let old = says(
        json!({"content": null, "function_call": {"name": "f", "arguments": "{"}}),
        json!("function_call"),
    );
    assert_eq!(found(old), CheckResult::ToolCall);
    let response = json!({"status": "completed", "output": [
        {"type": "function_call", "id": "fc", "name": "f", "arguments": "{\"a\":"}]});
    let answer = Answer::whole(Operation::Responses, response.to_string().as_bytes()).unwrap();
    let template = template(json!({"prompt": "p", "messages": []}));
    assert_eq!(check(&answer, &template, Tools::default), CheckResult::ToolCall);
    // What was cut off is that, and a tool of free text has no schema.
    let cut = json!({"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "finish_reason": "length"}]});
    assert_eq!(found(cut), CheckResult::Truncated);
    let custom = json!({"choices": [{"message": {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "{"}}]}, "finish_reason": "tool_calls"}]});
    assert_eq!(found(custom), CheckResult::Passed);
}
