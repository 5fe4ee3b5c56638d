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
    check(&answer, 1, &template, || template.tools().with_own(own.as_deref().map(str::as_bytes)))
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
        json!({"role": "assistant", "content": "\u{200b}\n\u{feff}"}),
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
        // Clients read arguments as a text of JSON.
        (json!({"a": true}), bad, bad),
        (json!("[true]"), bad, bad),
        (json!(r#""{\"a\": true}""#), bad, bad),
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
    assert_eq!(check(&answer, 1, &template, Tools::default), CheckResult::ToolCall);
    // What was cut off is that, and a tool of free text has no schema.
    let cut = json!({"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "finish_reason": "length"}]});
    assert_eq!(found(cut), CheckResult::Truncated);
    let custom = json!({"choices": [{"message": {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "{"}}]}, "finish_reason": "tool_calls"}]});
    assert_eq!(found(custom), CheckResult::Passed);
}

#[test]
fn a_call_that_names_no_function_calls_nothing() {
    for call in [
        json!({"id": "c", "type": "function"}),
        json!({"id": "c", "type": "function", "function": {}}),
        json!({"id": "c", "type": "function", "function": null}),
        json!({"id": "c", "function": {"arguments": "{}"}}),
        json!({"id": "c", "function": {"name": null, "arguments": "{}"}}),
        json!({"id": "c", "function": {"name": " ", "arguments": "{}"}}),
        json!({"id": "c", "type": "function", "name": "f", "arguments": "{}"}),
        json!("f()"),
        json!(null),
        json!({}),
    ] {
        let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        assert_eq!(found(says(message, json!("tool_calls"))), CheckResult::ToolCall, "{call}");
    }
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let message = json!({"role": "assistant", "content": null, "tool_calls": call});
    assert_eq!(found(says(message, json!("tool_calls"))), CheckResult::ToolCall, "no list");
    let old = json!({"content": null, "function_call": {"arguments": "{}"}});
    assert_eq!(found(says(old, json!("function_call"))), CheckResult::ToolCall);
    let template = template(json!({"prompt": "p", "messages": []}));
    for (item, found) in [
        (json!({"call_id": "c", "name": "f", "arguments": "{}"}), CheckResult::Passed),
        (json!({"call_id": "c", "arguments": "{}"}), CheckResult::ToolCall),
        (json!({"call_id": "c", "name": "f", "arguments": {}}), CheckResult::ToolCall),
        // Nobody can answer these.
        (json!({"name": "f", "arguments": "{}"}), CheckResult::ToolCall),
        (json!({"call_id": null, "name": "f", "arguments": "{}"}), CheckResult::ToolCall),
    ] {
        let mut item = item;
        item["type"] = json!("function_call");
        let response = json!({"status": "completed", "output": [item]}).to_string();
        let answer = Answer::whole(Operation::Responses, response.as_bytes()).unwrap();
        assert_eq!(check(&answer, 1, &template, Tools::default), found, "{item}");
    }
    // Other tools than functions are no functions without a name.
    for call in [
        json!({"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}),
        json!({"id": "c", "type": "web_search", "web_search": {"query": "x"}}),
    ] {
        let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        assert_eq!(found(says(message, json!("tool_calls"))), CheckResult::Passed, "{call}");
    }
}

#[test]
fn a_call_may_come_in_pieces_of_which_only_the_first_has_a_name() {
    let streamed = |pieces: &[Value]| {
        let mut answer = Answer::default();
        for piece in pieces {
            let delta = json!({"tool_calls": [piece]});
            let event = json!({"choices": [{"index": 0, "delta": delta}]});
            answer.event(Operation::Chat, event.to_string().as_bytes());
        }
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]});
        answer.event(Operation::Chat, end.to_string().as_bytes());
        let template = template(json!({"prompt": "p", "messages": []}));
        check(&answer, 1, &template, Tools::default)
    };
    let name = json!({"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}});
    let rest = json!({"index": 0, "function": {"arguments": "{}"}});
    let nothing = json!({"index": 0});
    let custom = json!({"index": 0, "id": "c", "type": "custom", "custom": {"name": "f"}});
    let input = json!({"index": 0, "custom": {"input": "x"}});
    assert_eq!(streamed(&[name.clone(), nothing, rest.clone()]), CheckResult::Passed);
    assert_eq!(streamed(&[custom, input]), CheckResult::Passed);
    assert_eq!(streamed(&[rest.clone(), rest.clone()]), CheckResult::ToolCall);
    // Each piece with another id, and the arguments in an object.
    let other = json!({"index": 0, "id": "d", "function": {"arguments": "{}"}});
    assert_eq!(streamed(&[name.clone(), other]), CheckResult::Passed);
    let object = json!({"index": 0, "function": {"arguments": {}}});
    assert_eq!(streamed(&[name, object]), CheckResult::ToolCall);
}

#[test]
fn each_call_in_a_list_is_one_by_itself_whatever_its_number_and_id() {
    for (first, second) in [
        (json!({"id": "c"}), json!({"id": "c"})),
        (json!({"id": "", "index": 0}), json!({"id": "", "index": 0})),
        (json!({"index": 0}), json!({"index": 0})),
    ] {
        let calls = [first, second].map(|mut call| {
            call["function"] = json!({"name": "f", "arguments": "{\"a\": true}"});
            call
        });
        let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
        assert_eq!(
            found(says(message.clone(), json!("tool_calls"))),
            CheckResult::Passed,
            "{message}"
        );
    }
}

#[test]
fn every_choice_that_was_asked_for_counts() {
    let good = json!({"index": 0, "message": {"content": "a"}, "finish_reason": "stop"});
    let of = |choices: &Value, wanted: usize, streamed: bool| {
        let answer = if streamed {
            let mut answer = Answer::default();
            for choice in choices.as_array().unwrap() {
                let event = json!({"choices": [choice]}).to_string().replace("message", "delta");
                answer.event(Operation::Chat, event.as_bytes());
            }
            answer.event(Operation::Chat, b"[DONE]");
            answer
        } else {
            let json = json!({"choices": choices}).to_string();
            Answer::whole(Operation::Chat, json.as_bytes()).unwrap()
        };
        let template = template(json!({"prompt": "p", "messages": []}));
        (check(&answer, wanted, &template, Tools::default), answer.failed)
    };
    let one = json!([good]);
    for streamed in [false, true] {
        assert_eq!(of(&one, 1, streamed), (CheckResult::Passed, false));
        assert_eq!(of(&one, 2, streamed), (CheckResult::Empty, false));
    }
    for (second, found) in [
        (json!({"message": {"content": "b"}, "finish_reason": "stop"}), CheckResult::Passed),
        (json!({"message": {"content": ""}, "finish_reason": "stop"}), CheckResult::Empty),
        (json!({"message": {"content": "b"}, "finish_reason": "length"}), CheckResult::Truncated),
        (json!({"message": {"refusal": "No."}, "finish_reason": "stop"}), CheckResult::Refused),
        (
            json!({"message": {"content": ""}, "finish_reason": "content_filter"}),
            CheckResult::Refused,
        ),
        (
            json!({"message": {"content": "b"}, "finish_reason": "OTHER"}),
            CheckResult::UnknownReason,
        ),
    ] {
        let mut second = second;
        for (index, both) in [(1, false), (0, true)] {
            second["index"] = json!(index);
            let mut first = good.clone();
            first["index"] = json!(1 - index);
            let choices = if both { json!([first, second]) } else { json!([good, second]) };
            for streamed in [false, true] {
                let result = of(&choices, 2, streamed);
                assert_eq!(result, (found, false), "{choices} {streamed}");
            }
        }
    }
    // One that never ends, and none at all.
    let half = json!({"index": 1, "message": {"content": "b"}, "finish_reason": null});
    assert!(of(&json!([good, half]), 2, true).1);
    assert_eq!(of(&json!([good, null]), 2, false).0, CheckResult::Empty);
    assert_eq!(of(&json!([good, "text"]), 2, false).0, CheckResult::Unread);
}
