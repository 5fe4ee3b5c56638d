//! What came, and no application can use.

use serde_json::{Value, json};

use super::*;

/// OpenAI's clients raise an error at each of these, and read nothing that comes after.
#[test]
fn an_event_that_no_application_can_read_is_a_failure_wherever_it_comes() {
    let says = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#.as_bytes();
    let ends = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#.as_bytes();
    for broken in [
        &br#"{"choices":[{"delta":{"content":"b"#[..],
        br#"{"usage":{"pro"#,
        b"overloaded, try again",
        b"<html>502</html>",
        br#"{"choices":[]}{"choices":[]}"#,
        br#"{"choices":[],}"#,
        b"ping",
        b"5",
        b"null",
        b"[1]",
        b"\"text\"",
        b"\xff\xfe{",
        b"{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xc3\"}}]}",
    ] {
        for place in 0..=2 {
            let mut events = vec![says, ends];
            events.insert(place, broken);
            for operation in [Operation::Chat, Operation::Responses] {
                let mut answer = Answer::default();
                for event in &events {
                    answer.event(operation, event);
                }
                answer.event(operation, b"[DONE]");
                let shown = String::from_utf8_lossy(broken);
                assert!(answer.failed && answer.unread, "{shown} {place} {operation:?}");
                let message = &answer.complaint.as_ref().unwrap().message;
                assert!(!message.contains("content"), "{message} quotes the answer");
            }
        }
        let mut good = Answer::default();
        for event in [says, ends, b"[DONE]", broken] {
            good.event(Operation::Chat, event);
        }
        assert!(!good.failed, "nobody reads on after the end");
        // Nothing ended it, so that no client makes an event of it.
        let mut good = Answer::default();
        good.event(Operation::Chat, says);
        good.event(Operation::Chat, ends);
        good.last_event(Operation::Chat, broken);
        assert!(!good.failed && good.complete());
    }
    let mut told = Answer::default();
    told.event(Operation::Chat, b"overloaded, try again");
    assert_eq!(told.complaint.unwrap().message, "overloaded, try again");
}

#[test]
fn events_that_say_nothing_are_left_out() {
    let mut answer = Answer::default();
    for (event, nothing) in [
        (&b""[..], true),
        (b" ", true),
        (b"{}", true),
        (br#"{"type":"ping"}"#, true),
        (br#"{"type":"ping","usage":{"prompt_tokens":1,"completion_tokens":1}}"#, false),
        (br#"{"choices":[]}"#, false),
        (b" [DONE]", true),
    ] {
        assert_eq!(answer.event(Operation::Chat, event).nothing, nothing);
    }
    for mark in [&b"\"[DONE]\""[..], b"[done]"] {
        assert!(Answer::default().event(Operation::Chat, mark).nothing);
    }
    assert!(!Answer::default().event(Operation::Chat, b"[DONE] ").nothing, "clients know it");
}

#[test]
fn vectors_that_no_application_can_use_are_none() {
    let of = |data: Value| {
        let json = json!({"object": "list", "data": data, "model": "e"}).to_string();
        // Numbers that no float holds stand in quotation marks, with a sign before them.
        let json = json.replace("\"#", "").replace("#\"", "");
        let answer = Answer::whole(Operation::Embeddings, json.as_bytes()).unwrap();
        (answer.missing, answer.vectors)
    };
    let one = |index: u32, vector: Value| json!({"index": index, "embedding": vector});
    let good = || one(0, json!([0.1, -0.2]));
    let longest = format!("#0.{}#", "123456789".repeat(9));
    assert_eq!(of(json!([good(), one(1, json!([3e-9, 1e38]))])), (false, 2));
    assert_eq!(of(json!([good(), one(1, json!([longest, "#-3.4e+38#"]))])), (false, 2));
    assert_eq!(of(json!([good(), one(1, json!(["#1e-999#", 1]))])), (false, 2));
    assert_eq!(of(json!([{"embedding": [1]}, {"embedding": [2]}])), (false, 2));
    // A vector of each token has as many as there are tokens.
    assert_eq!(of(json!([one(0, json!([[0.1], [0.2]])), one(1, json!([[0.3]]))])), (false, 2));
    for second in [
        one(0, json!([0.3, 0.4])),
        one(1, json!([0.3])),
        one(1, json!([])),
        one(1, json!([0.0, 0])),
        one(1, json!([0.1, "#1e999#"])),
        one(1, json!([0.1, "#9e38#"])),
        one(1, json!(["#-3.5E+38#", 0.1])),
        one(1, json!([0.1, format!("#{}#", "9".repeat(50))])),
        one(1, json!([0.1, format!("#-{}.5#", "9".repeat(39))])),
        one(1, json!(["#1e-999#", "#-2.5e-80#"])),
        one(1, json!([0.1, true])),
        one(1, json!([0.1, null])),
        one(1, json!("!!!")),
        one(1, json!("AAAA")),
        one(1, json!("AAAAAAAAAAA=")),
        one(1, json!("AACAfwAAgD8=")),
        json!(null),
    ] {
        assert_eq!(of(json!([good(), second])), (true, 2), "{second}");
    }
    assert_eq!(of(json!([good(), one(1, json!("AACAPwAA\ngD8="))])), (false, 2));
}

/// A chat is in `message` of an answer and in `delta` of an event, a completion in `text`.
#[test]
fn what_stands_in_another_place_than_clients_read_is_not_said() {
    let choice = |field: &str| {
        let said = if field == "text" { json!("Hi") } else { json!({"content": "Hi"}) };
        json!({"choices": [{"index": 0, field: said, "finish_reason": "stop"}]}).to_string()
    };
    for (operation, whole, event) in
        [(Operation::Chat, "message", "delta"), (Operation::Completions, "text", "text")]
    {
        for field in ["message", "delta", "text"] {
            let answer = Answer::whole(operation, choice(field).as_bytes()).unwrap();
            assert_eq!(answer.text == "Hi", field == whole, "{operation:?} {field}");
            // Also where each event but for its text is like the one before.
            let mut answer = Answer::default();
            for text in ["Hi", "Ho"] {
                let event = choice(field).replace("Hi", text).replace("\"stop\"", "null");
                answer.event(
                    operation,
                    event.replacen('{', "{\"id\":\"i\",\"model\":\"m\",", 1).as_bytes(),
                );
            }
            assert_eq!(answer.text == "HiHo", field == event, "{operation:?} {field}");
            assert!(answer.text.is_empty() || field == event);
        }
    }
    // In a list choices are told apart by where they stand.
    let said =
        |text: &str| json!({"index": 0, "message": {"content": text}, "finish_reason": "stop"});
    let both = json!({"choices": [said("a"), said("b")]});
    let answer = Answer::whole(Operation::Chat, both.to_string().as_bytes()).unwrap();
    assert_eq!((answer.text.as_str(), answer.choices()), ("a", 2));
    assert!(answer.others[0].speaks);
    let none = json!({"choices": [null, said("b")]}).to_string();
    assert_eq!(Answer::whole(Operation::Chat, none.as_bytes()).unwrap().text, "");
}

#[test]
fn nothing_is_read_after_the_mark_of_the_end() {
    let says = br#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#;
    let mut answer = Answer::default();
    answer.event(Operation::Chat, says);
    answer.event(Operation::Chat, b"[DONE]");
    for late in [&says[..], br#"{"error":{"message":"late"}}"#, b"<html>"] {
        assert_eq!(answer.event(Operation::Chat, late), Carried::default());
    }
    assert!(answer.text == "a" && !answer.failed && !answer.unread);
}

#[test]
fn of_a_response_what_clients_show_is_said() {
    let response = |output: &Value| {
        let whole = json!({"status": "completed", "output": output}).to_string();
        Answer::whole(Operation::Responses, whole.as_bytes()).unwrap()
    };
    let part = |kind: &str| json!([{"type": "message", "content": [{"type": kind, "text": "Hi"}]}]);
    assert_eq!(response(&part("output_text")).text, "Hi");
    for odd in [part("text"), json!([{"type": "message", "content": "Hi"}])] {
        assert_eq!(response(&odd).text, "", "{odd}");
    }
    let mixed = json!([{"type": "message", "content": [
        {"type": "text", "text": "no"}, {"type": "output_text", "text": "Hi"}]}]);
    assert_eq!(response(&mixed).text, "Hi");
    for (item, says) in [
        (json!({"type": "web_search_call", "status": "failed"}), false),
        (json!({"type": "mcp_list_tools", "tools": []}), false),
        (json!({"type": "image_generation_call", "result": null}), false),
        (json!({"type": "image_generation_call", "result": "iVBO"}), true),
        (json!({"type": "custom_tool_call", "call_id": "c", "input": "x"}), true),
        (json!({"type": "computer_call", "call_id": "c"}), true),
    ] {
        assert_eq!(response(&json!([item])).tool_call, says, "{item}");
    }
}
