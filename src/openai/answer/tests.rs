use serde_json::{Value, json};

use super::*;

mod told;
mod unusable;

fn whole(operation: Operation, json: &Value) -> Answer {
    Answer::whole(operation, json.to_string().as_bytes()).unwrap()
}

fn chat(json: &Value) -> Answer {
    whole(Operation::Chat, json)
}

fn stream(operation: Operation, events: &[Value]) -> (Answer, Vec<bool>) {
    let mut answer = Answer::default();
    let content =
        events.iter().map(|e| answer.event(operation, e.to_string().as_bytes()).content).collect();
    (answer, content)
}

#[test]
fn a_stream_and_its_json_form_say_the_same() {
    let (mut streamed, content) = stream(
        Operation::Chat,
        &[
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"delta": {"content": "Hel"}}], "usage": null}),
            json!({"choices": [{"delta": {"content": "lo"}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}}),
        ],
    );
    assert_eq!(content, [false, true, true, false, false]);
    assert!(streamed.complete() && !streamed.done);
    streamed.event(Operation::Chat, b"[DONE]");
    let whole = chat(&json!({
        "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    }));
    assert_eq!(streamed, Answer { contents: 2, ..whole });
}

#[test]
fn an_event_of_usage_alone_is_told_apart() {
    let mut answer = Answer::default();
    let mut only_usage =
        |event: Value| answer.event(Operation::Chat, event.to_string().as_bytes()).only_usage;
    assert!(only_usage(json!({"choices": [], "usage": {"prompt_tokens": 1}})));
    // Azure's first event.
    assert!(!only_usage(json!({"choices": [], "prompt_filter_results": []})));
    assert!(!only_usage(json!({"choices": [], "usage": null})));
    assert!(!only_usage(json!({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 1}})));
}

#[test]
fn tool_calls_refusals_and_filters_are_seen() {
    let tool = json!({"choices": [{"message": {"content": null, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}]});
    assert!(chat(&tool).tool_call);
    let refusal = json!({"choices": [{"message": {"content": null, "refusal": "No."}}]});
    assert!(chat(&refusal).refused);
    let filtered =
        json!({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]});
    assert!(chat(&filtered).refused);
}

#[test]
fn the_choice_is_checked_that_clients_take_for_the_first() {
    let both = json!([
        {"index": 1, "message": {"content": "b"}, "finish_reason": "length"},
        {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"},
    ]);
    // Of a list that is the first, of events that with the lowest number.
    let answer = chat(&json!({"choices": both}));
    assert_eq!((answer.text.as_str(), answer.finish_reason.as_deref()), ("b", Some("length")));
    let mut answer = Answer::default();
    for choice in both.as_array().unwrap() {
        let event = json!({"choices": [choice]}).to_string().replace("message", "delta");
        answer.event(Operation::Chat, event.as_bytes());
    }
    assert_eq!((answer.text.as_str(), answer.finish_reason.as_deref()), ("a", Some("stop")));
}

#[test]
fn a_stream_of_several_choices_is_complete_when_all_have_ended() {
    let mut answer = Answer::default();
    let mut complete_after = |index: u32, reason: Option<&str>| {
        let choice = json!({"index": index, "delta": {"content": "a"}, "finish_reason": reason});
        answer.event(Operation::Chat, json!({"choices": [choice]}).to_string().as_bytes());
        answer.complete()
    };
    assert!(!complete_after(0, None) && !complete_after(1, None) && !complete_after(2, None));
    assert!(!complete_after(0, Some("stop")) && !complete_after(2, Some("stop")));
    assert!(!complete_after(1, None) && complete_after(1, Some("stop")));
}

#[test]
fn as_many_choices_as_nobody_asks_for_are_no_answer_and_take_no_memory() {
    let choices = |n: usize| {
        let choice = r#"{"index":0,"message":{"content":"a"},"finish_reason":"stop"},"#.repeat(n);
        format!(r#"{{"choices":[{}]}}"#, choice.trim_end_matches(','))
    };
    for operation in [Operation::Chat, Operation::Completions, Operation::Responses] {
        assert!(Answer::whole(operation, choices(2_000).as_bytes()).is_err(), "{operation:?}");
    }
    assert!(Answer::whole(Operation::Chat, choices(128).as_bytes()).unwrap().complete());
}

#[test]
fn completions_and_embeddings_say_something() {
    let text = json!({"choices": [{"index": 0, "text": "so", "finish_reason": "stop"}]});
    assert_eq!(whole(Operation::Completions, &text).text, "so");
    let vectors = json!({"data": [{"embedding": [0.1, 0.2], "index": 0}], "model": "e"});
    let answer = whole(Operation::Embeddings, &vectors);
    assert!(answer.tool_call && answer.model.as_deref() == Some("e"));
    assert!(!whole(Operation::Embeddings, &json!({"data": []})).tool_call);
}

#[test]
fn a_response_and_its_stream_say_the_same() {
    let body = json!({
        "id": "resp_1", "model": "m", "status": "completed", "error": null,
        "output": [{"type": "reasoning"}, {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}],
    });
    let direct = whole(Operation::Responses, &body);
    let (streamed, content) = stream(
        Operation::Responses,
        &[
            json!({"type": "response.created", "response": {"id": "resp_1", "model": "m", "status": "in_progress"}}),
            json!({"type": "response.output_text.delta", "delta": "Hel"}),
            json!({"type": "response.output_text.delta", "delta": "lo"}),
            json!({"type": "response.completed", "response": body}),
        ],
    );
    assert_eq!(content, [false, true, true, false]);
    assert_eq!(streamed, Answer { contents: 2, ..direct });
    assert_eq!(streamed.finish_reason.as_deref(), Some("stop"));
    let cut =
        json!({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}});
    assert_eq!(whole(Operation::Responses, &cut).finish_reason.as_deref(), Some("length"));
    assert!(whole(Operation::Responses, &json!({"status": "failed"})).failed);
}

#[test]
fn an_error_within_a_stream_is_a_failure() {
    let (answer, content) =
        stream(Operation::Chat, &[json!({"error": {"message": "overloaded", "code": 503}})]);
    assert!(answer.failed && content == [false]);
    assert!(!chat(&json!({"error": null, "choices": []})).failed);
}

#[test]
fn an_error_beside_choices_is_a_failure_too() {
    // OpenRouter, whose provider broke off.
    let event = json!({
        "error": {"code": "server_error", "message": "Provider disconnected"},
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
    });
    let (answer, _) = stream(
        Operation::Chat,
        &[json!({"id": "1", "model": "m", "choices": [{"delta": {"content": "a"}}]}), event],
    );
    assert!(answer.failed);
    let whole = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]});
    assert!(chat(&whole).failed);
}

#[test]
fn thoughts_in_parts_and_images_are_content() {
    // Mistral's reasoning models, and OpenRouter's that draw.
    let thinks = json!([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]);
    let (answer, content) = stream(
        Operation::Chat,
        &[
            json!({"choices": [{"delta": {"role": "assistant", "content": []}}]}),
            json!({"choices": [{"delta": {"content": thinks}}]}),
            json!({"choices": [{"delta": {"content": [{"type": "text", "text": "Yes"}]}}]}),
            json!({"choices": [{"delta": {"images": [{"image_url": {"url": "data:"}}]}}]}),
        ],
    );
    assert_eq!(content, [false, true, true, true]);
    assert_eq!((answer.text.as_str(), answer.tool_call), ("Yes", true));
}

#[test]
fn an_empty_reason_is_none() {
    let mut answer = Answer::default();
    for (text, reason, complete) in [("a", "", false), ("b", "", false), ("", "stop", true)] {
        let choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": reason});
        answer.event(Operation::Chat, json!({"choices": [choice]}).to_string().as_bytes());
        assert_eq!(answer.complete(), complete, "{text}");
    }
}

#[test]
fn what_is_not_json_is_no_answer() {
    assert_eq!(Answer::whole(Operation::Chat, b"<html>"), Err(NotJson));
    let odd = json!({"choices": "none", "usage": null, "model": 7, "id": [1], "error": []});
    assert_eq!(chat(&odd), Answer { done: true, missing: true, ..Answer::default() });
    assert_eq!(chat(&json!([1])), Answer { done: true, missing: true, ..Answer::default() });
}

fn raw(json: &str) -> Answer {
    Answer::whole(Operation::Chat, json.as_bytes()).unwrap()
}

/// A good answer in which one thing is odd.
#[test]
fn one_odd_field_hides_nothing_of_the_rest() {
    let good = r#"{"id":"a","model":"mm","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}"#;
    let deep = format!("\"meta\":{}{},\"id\":\"a\"", "[".repeat(3000), "]".repeat(3000));
    let deep_delta = format!("\"x\":{}{},\"role\":", "[".repeat(3000), "]".repeat(3000));
    for (what, with) in [
        (r#""id":"a""#, r#""id":"b","id":"a""#),
        (r#""id":"a""#, r#""created":123456789012345678901234567890,"id":"a""#),
        (r#""id":"a""#, r#""cost":NaN,"id":"a""#),
        (r#""id":"a""#, r#""response":"Hello","id":"a""#),
        (r#""id":"a""#, r#""output":{"text":"x"},"data":{"a":1},"delta":7,"status":200,"id":"a""#),
        (r#""id":"a""#, r#""x_groq":null,"timings":"slow","incomplete_details":"no","id":"a""#),
        (r#""id":"a""#, deep.as_str()),
        (r#""role":"#, deep_delta.as_str()),
        (r#""index":0"#, r#""index":"0""#),
        (r#""index":0"#, r#""index":0.0"#),
        (r#""index":0"#, r#""index":-1"#),
        (r#""index":0"#, r#""index":null"#),
        (r#""index":0"#, r#""index":1e400"#),
        (r#""index":0"#, r#""index":[0]"#),
        (r#""index":0"#, r#""index":1"#),
        (r#""index":0"#, r#""index":0,"delta":"","logprobs":-Infinity"#),
        (r#""index":0"#, r#""index":0,"delta":[],"usage":"none""#),
        (r#""message":"#, r#""message":null,"message":"#),
        (r#""content":"#, r#""content":"","content":"#),
        (r#""content":"#, r#""reasoning_content":null,"reasoning_content":null,"content":"#),
        (r#""content":"#, r#""tool_calls":"none","function_call":"auto","refusal":7,"content":"#),
        (r#""finish_reason":"#, r#""finish_reason":"length","finish_reason":"#),
        (r#""usage":"#, r#""usage":{"prompt_tokens":1},"usage":"#),
        (r#""prompt_tokens":11"#, r#""prompt_tokens":1,"prompt_tokens":11"#),
        (r#""prompt_tokens":11"#, r#""queue_time":1e400,"prompt_tokens":11"#),
        (r#"{"id""#, "\u{feff}\n {\"id\""),
    ] {
        assert!(good.contains(what), "{what}");
        let odd = good.replacen(what, with, 1);
        let answer = raw(&odd);
        assert_eq!(answer.text, "Hello there", "{odd:.200}");
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"), "{odd:.200}");
        assert_eq!((answer.tokens.input, answer.tokens.output), (Some(11), Some(3)), "{odd:.200}");
        let ids = (answer.id.as_deref(), answer.model.as_deref());
        assert_eq!(ids, (Some("a"), Some("mm")), "{odd:.200}");
        assert!(!answer.failed && !answer.missing, "{odd:.200}");
    }
    assert_eq!(raw(&good.replace("there", r"\ud83d")).text, "Hello \u{fffd}");
    let big = raw(&good.replace(r#""prompt_tokens":11"#, r#""prompt_tokens":1e400"#));
    assert_eq!((big.text.as_str(), big.tokens.output), ("Hello there", Some(3)));
    assert_eq!(raw(&good.replace(r#""stop""#, "1")).finish_reason, None);
    let latin = good.replace("there", "XX").into_bytes();
    let latin: Vec<u8> = latin.into_iter().map(|b| if b == b'X' { 0xe9 } else { b }).collect();
    assert_eq!(
        Answer::whole(Operation::Chat, &latin),
        Err(NotJson),
        "no client of Python reads it"
    );
}

#[test]
fn the_same_holds_for_the_events_of_a_stream() {
    for odd in [
        r#"{"id":"x","model":"m","choices":[{"index":"0","delta":{"content":"Hello"}}]}"#,
        r#"{"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"","content":"Hello"}}]}"#,
        r#"{"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}"#,
        r#"{"id":"x","model":"m","choices":[{"index":0,"delta":{"reasoning_content":null,"content":"Hello","reasoning_content":null}}]}"#,
        r#"{"id":"x","model":"m","choices":[{"index":0,"delta":{"content":["Hel",{"type":"text","text":"lo"}]}}]}"#,
        r#"{"id":"x","model":"m","choices":[{"index":0,"message":{"content":"all"},"delta":{"content":"Hello"}}]}"#,
        r#"{"id":"x","model":"m","choices":[{"index":0,"text":"Hello","delta":{"content":"Hello"}}]}"#,
    ] {
        // First, and after others.
        let mut answer = Answer::default();
        for expected in ["Hello", "HelloHello"] {
            let carried = answer.event(Operation::Chat, odd.as_bytes());
            assert!(carried.content && !carried.unread, "{odd}");
            assert_eq!(answer.text, expected, "{odd}");
        }
    }
    let mut answer = Answer::default();
    for half in [
        r#"{"choices":[{"delta":{"content":"Hi \ud83d"}}]}"#,
        r#"{"choices":[{"delta":{"content":"\ude00 you"}}]}"#,
    ] {
        assert!(answer.event(Operation::Chat, half.as_bytes()).content);
    }
    assert_eq!(answer.text, "Hi \u{fffd}\u{fffd} you");
}

#[test]
fn an_error_is_one_in_any_form() {
    for body in [
        json!({"object": "error", "message": "out of memory", "code": 500}),
        json!({"error": "model not found"}),
        json!({"error": ["boom"]}),
        json!({"error": {"message": "boom"}}),
        json!({"error": true}),
        json!({"code": "InternalError.Algo", "message": "inference failed"}),
        json!({"detail": "boom"}),
        json!({"detail": [{"msg": "boom"}]}),
        json!({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": null}),
        json!({"error_code": 336_501, "error_msg": "limit"}),
        json!({"errors": [{"code": 5007, "message": "no such model"}], "success": false}),
        json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        json!({"__type": "ThrottlingException", "message": "slow"}),
        json!({"statusCode": 429, "message": "slow"}),
        json!({"status": 503, "title": "Service Unavailable"}),
        json!({"fault": {"faultstring": "boom"}}),
        json!({"err": "boom"}),
    ] {
        let answer = chat(&body);
        assert!(answer.failed && answer.missing && answer.complaint.is_some(), "{body}");
        let (answer, content) = stream(Operation::Chat, std::slice::from_ref(&body));
        assert!(answer.failed && answer.complaint.is_some() && content == [false], "{body}");
    }
    // What is nothing is no error, nor what says itself that all is well.
    let good = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]});
    for (name, value) in [
        ("error", json!(null)),
        ("error", json!(0)),
        ("error", json!(false)),
        ("error", json!({})),
        ("error", json!([])),
        ("error", json!("")),
        ("error", json!({"message": "", "code": null})),
        ("error", json!({"code": 0, "message": "success"})),
        ("base_resp", json!({"status_code": 0, "status_msg": ""})),
        ("code", json!(0)),
        ("message", json!("Success")),
        ("detail", json!("more")),
        ("object", json!("chat.completion")),
    ] {
        let mut answer = good.clone();
        answer[name] = value;
        let read = chat(&answer);
        assert!(!read.failed && !read.missing && read.text == "a", "{answer}");
        let (read, _) = stream(Operation::Chat, std::slice::from_ref(&answer));
        assert!(!read.failed, "{answer}");
    }
    for (name, value) in [
        ("error", json!({"message": "died", "code": 502})),
        ("base_resp", json!({"status_code": 1013, "status_msg": "died"})),
        ("status", json!("failed")),
    ] {
        let mut answer = good.clone();
        answer[name] = value;
        assert!(chat(&answer).failed, "{answer}");
    }
}

#[test]
fn what_answers_nothing_is_missing() {
    for body in [
        "{}",
        "null",
        "[]",
        "7",
        r#""text""#,
        r#"{"choices":[]}"#,
        r#"{"choices":null}"#,
        r#"{"choices":[{}]}"#,
        r#"{"choices":[null]}"#,
        r#"{"id":"x","usage":{"prompt_tokens":1}}"#,
    ] {
        assert!(raw(body).missing, "{body}");
        assert!(Answer::whole(Operation::Completions, body.as_bytes()).unwrap().missing, "{body}");
    }
    for body in [
        json!({"data": []}),
        json!({"data": null}),
        json!({"data": [{"embedding": []}]}),
        json!({"data": [{"embedding": null}]}),
        json!({"data": [{"embedding": ""}]}),
        json!({"data": [{"embedding": [null, 0.1]}]}),
        json!({"data": [{"embedding": [0.1]}, {"embedding": []}]}),
        // NaN by its bytes.
        json!({"data": [{"embedding": "AADAfwAAgD8="}]}),
    ] {
        assert!(whole(Operation::Embeddings, &body).missing, "{body}");
    }
    let nan = br#"{"data":[{"embedding":[NaN,0.2]}]}"#;
    assert!(Answer::whole(Operation::Embeddings, nan).unwrap().missing);
    for body in [
        json!({"data": [{"embedding": [0.1, -2e-9]}]}),
        json!({"data": [{"embedding": "zczMPc3MTD4="}]}),
        json!({"data": [{"embedding": [[0.1], [0.2]]}]}),
    ] {
        let answer = whole(Operation::Embeddings, &body);
        assert!(!answer.missing && answer.tool_call, "{body}");
    }
    let odd = whole(Operation::Embeddings, &json!({"data": [{"embedding": {"float": [0.1]}}]}));
    assert!(!odd.missing && odd.unread && !odd.tool_call);
    for (missing, body) in [
        (true, json!({})),
        (true, json!({"status": "completed", "output": []})),
        (false, json!({"status": "incomplete", "output": []})),
        (false, json!({"status": "queued", "output": []})),
    ] {
        assert_eq!(whole(Operation::Responses, &body).missing, missing, "{body}");
    }
}

#[test]
fn thinking_in_any_field_is_a_sign_of_life_and_so_is_what_is_unknown() {
    for (delta, life) in [
        (json!({"reasoning_content": "hm"}), true),
        (json!({"reasoning": "hm"}), true),
        (json!({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}), true),
        (json!({"thinking": "hm"}), true),
        (json!({"thinking_blocks": [{"type": "thinking", "thinking": "hm"}]}), true),
        (json!({"reasoning_text": "hm"}), true),
        (json!({"reasoning_opaque": "x"}), true),
        (json!({"encrypted_content": "x"}), true),
        (json!({"thought": true}), true),
        (json!({"content": [{"type": "thinking", "thinking": "hm"}]}), true),
        (json!({"extra_content": {"google": {"thought_signature": "x"}}}), true),
        (json!({"something": "new"}), true),
        (json!("text"), true),
        (json!({"role": "assistant", "content": ""}), false),
        (json!({"reasoning_content": "", "reasoning": null, "reasoning_details": []}), false),
        (json!({"something": null, "other": {}, "more": [""]}), false),
        (json!(null), false),
        (json!(""), false),
    ] {
        let (_, content) =
            stream(Operation::Chat, &[json!({"choices": [{"index": 0, "delta": delta}]})]);
        assert_eq!(content, [life], "{delta}");
    }
}

#[test]
fn a_mark_of_the_end_without_a_reason_is_none() {
    let content = json!({"choices": [{"delta": {"content": "Half of an"}}]});
    for mark in ["[DONE]", "[DONE] ", " [done]", "\"[DONE]\""] {
        let mut answer = Answer::default();
        answer.event(Operation::Chat, content.to_string().as_bytes());
        assert!(!answer.complete());
        answer.event(Operation::Chat, mark.as_bytes());
        assert!(answer.done && answer.failed, "{mark}");
        let mut good = Answer::default();
        let reason = json!({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]});
        good.event(Operation::Chat, reason.to_string().as_bytes());
        good.event(Operation::Chat, mark.as_bytes());
        assert!(good.done && !good.failed, "{mark}");
    }
    // With nothing but what was not understood nobody knows.
    let mut unread = Answer::default();
    unread.event(Operation::Chat, br#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}]}"#);
    unread.event(Operation::Chat, b"[DONE]");
    assert!(unread.is_unread() && !unread.failed);
    let mut none = Answer::default();
    none.event(Operation::Chat, b"[DONE]");
    assert!(none.failed);
}

#[test]
fn events_of_no_known_kind_are_noted() {
    for (event, unread) in [
        (json!({"type": "content_block_delta", "delta": {"text": "Hi"}}), true),
        (json!({"model": "m", "message": {"content": "Hi"}, "done": false}), true),
        (json!({"status": "queued", "message": "wait"}), true),
        (json!({"type": "ping"}), false),
        (json!({}), false),
        (json!({"choices": [], "prompt_filter_results": []}), false),
        (json!({"choices": [], "usage": {"prompt_tokens": 1}}), false),
        (json!({"usage": {"prompt_tokens": 1}}), false),
        (json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}), false),
    ] {
        let mut answer = Answer::default();
        let carried = answer.event(Operation::Chat, event.to_string().as_bytes());
        assert_eq!((carried.unread, answer.failed), (unread, false), "{event}");
        assert!(!carried.content, "{event}");
    }
}

#[test]
fn reasons_of_servers_that_gave_up_are_failures() {
    for reason in ["abort", "network_error", "error", "timeout", "cancelled", "ERROR"] {
        let body = json!({"object": "chat.completion", "choices": [{"message": {"content": "Half"}, "finish_reason": reason}]});
        assert!(chat(&body).failed && chat(&body).complaint.is_none(), "{reason}");
        let (answer, _) = stream(Operation::Chat, &[body]);
        assert!(answer.failed && answer.complaint.is_none(), "{reason}");
    }
    let other = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "SAFETY"}]});
    assert!(chat(&other).refused && !chat(&other).failed);
}

#[test]
fn calls_of_functions_are_put_together() {
    let call = |call: Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
    let (answer, content) = stream(
        Operation::Chat,
        &[
            call(
                json!({"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}),
            ),
            call(json!({"index": 0, "function": {"arguments": "{\"a\":"}})),
            call(json!({"index": 0, "function": {"arguments": "1}"}})),
        ],
    );
    assert_eq!(content, [true; 3]);
    let found: Vec<_> = answer.calls.iter().map(|c| (&*c.name, &*c.arguments)).collect();
    assert_eq!(found, [("f", "{\"a\":1}")]);
}

#[test]
fn errors_and_reasons_of_responses_are_told_by_their_events() {
    let created =
        json!({"type": "response.created", "response": {"id": "r", "status": "in_progress"}});
    let failed = json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow"}}});
    let (answer, _) = stream(Operation::Responses, &[created.clone(), failed]);
    assert!(answer.failed && answer.complaint.unwrap().status == Some(429));
    let error = json!({"type": "error", "code": "server_error", "message": "died", "param": null});
    let (answer, _) = stream(Operation::Responses, &[created.clone(), error]);
    assert!(answer.failed && answer.complaint.unwrap().message == "died");
    let filtered = json!({"type": "response.incomplete", "response": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}});
    let (answer, _) = stream(Operation::Responses, &[created.clone(), filtered]);
    assert!(answer.refused && answer.done);
    // Everything comes with the last event.
    let item = json!({"type": "message", "content": [{"type": "output_text", "text": "Hello"}]});
    let last = json!({"type": "response.completed", "response": {"status": "completed", "output": [item]}});
    let (answer, _) = stream(Operation::Responses, &[last]);
    assert_eq!((answer.text.as_str(), answer.done), ("Hello", true));
}

#[test]
fn what_no_application_can_read_is_no_answer_but_may_be_an_error() {
    let good = r#"{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}"#;
    for broken in [
        good.replace('"', "'"),
        good.replace("}]}", "},]}"),
        good.replace("Hi", "H\ni"),
        format!("{good}\nTraceback (most recent call last):"),
        format!("{good}{good}"),
    ] {
        assert_eq!(Answer::whole(Operation::Chat, broken.as_bytes()), Err(NotJson), "{broken}");
        let mut answer = Answer::default();
        assert!(answer.event(Operation::Chat, broken.as_bytes()).unread, "{broken}");
        assert!(answer.is_unread() && answer.finish_reason.is_none(), "{broken}");
    }
    let told = b"{'error': {'message': 'engine died', 'code': 500}}";
    let answer = Answer::whole(Operation::Chat, told).unwrap();
    assert_eq!(answer.complaint.unwrap().status, Some(500));
    let mut answer = Answer::default();
    answer.event(Operation::Chat, told);
    assert!(answer.failed);
}

#[test]
fn a_choice_may_tell_that_it_failed() {
    for reason in [json!("stop"), json!("error"), Value::Null] {
        let choice = json!({"index": 0, "message": {"content": "Hel"}, "delta": {"content": "Hel"},
            "finish_reason": reason,
            "error": {"code": 502, "message": "Provider disconnected"}});
        let answer = chat(&json!({"choices": [choice]}));
        assert!(answer.failed, "{choice}");
        assert_eq!(answer.complaint.unwrap().status, Some(502));
        assert!(stream(Operation::Chat, &[json!({"choices": [choice]})]).0.failed, "{choice}");
    }
    let fine = json!({"message": {"content": "Hi"}, "finish_reason": "stop", "error": null});
    assert!(!chat(&json!({"choices": [fine]})).failed);
}

#[test]
fn what_is_nested_too_deep_is_absent_and_harms_nothing() {
    for depth in [129, 8_000, 200_000] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        for operation in Operation::ALL {
            for json in [
                format!("{open}{close}"),
                format!(r#"{{"choices":[{{"message":{{"content":{open}{close}}}}}]}}"#),
                format!(r#"{{"id":NaN,"choices":{open}{close},"data":{open}{close}}}"#),
            ] {
                let _ = Answer::whole(operation, json.as_bytes());
                Answer::default().event(operation, json.as_bytes());
            }
            assert_eq!(Answer::whole(operation, open.as_bytes()), Err(NotJson));
            let mut answer = Answer::default();
            assert!(answer.event(operation, open.as_bytes()).unread && answer.is_unread());
            answer.error_event(open.as_bytes());
            assert!(answer.failed, "what is told as an error is one, however deep it is");
        }
        let beside = format!(
            r#"{{"choices":[{{"message":{{"content":"Hi"}},"finish_reason":"stop"}}],"x":{open}{close}}}"#
        );
        assert_eq!(raw(&beside).text, "Hi");
        assert!(raw(&format!(r#"{{"error":{{"message":"no","x":{open}{close}}}}}"#)).failed);
    }
}
