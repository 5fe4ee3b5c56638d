//! What a server says of its own answer: that it failed, or did not end, whatever else it holds.

use serde_json::{Map, Value, json};

use super::*;

const CHOICES: &str =
    r#"[{"index":0,"message":{"content":"Hi"},"delta":{"content":"Hi"},"finish_reason":"stop"}]"#;

/// A good answer and these fields.
fn beside(fields: &Value) -> Value {
    let choices: Value = serde_json::from_str(CHOICES).unwrap();
    let good = Map::from_iter([("choices".to_owned(), choices)]);
    Value::Object(good.into_iter().chain(fields.as_object().unwrap().clone()).collect())
}

#[test]
fn an_answer_that_says_that_it_failed_has_failed_and_good_ones_have_the_same_fields() {
    for (fields, failed) in [
        (json!({"errors": ["boom"]}), true),
        (json!({"errors": {"message": "boom"}}), true),
        (json!({"errors": "boom"}), true),
        (json!({"code": 500, "message": "boom"}), true),
        (json!({"code": 500.0, "msg": "boom"}), true),
        (json!({"code": "503", "message": "boom"}), true),
        (json!({"status_code": 500}), true),
        (json!({"status_code": "429"}), true),
        (json!({"statusCode": 400}), true),
        (json!({"status": 500}), true),
        (json!({"status": "502"}), true),
        (json!({"success": false}), true),
        (json!({"success": "false", "message": "boom"}), true),
        (json!({"error_code": 336_100, "error_msg": "busy"}), true),
        (json!({"error_msg": "busy"}), true),
        (json!({"errmsg": "busy"}), true),
        (json!({"exception": "Traceback"}), true),
        (json!({"internalServerException": {"message": "x"}}), true),
        // What good answers carry: Spark's, those of gateways in front.
        (json!({"code": 0, "message": "Success", "sid": "cha"}), false),
        (json!({"code": 0, "message": "anything"}), false),
        (json!({"code": 200, "msg": "ok"}), false),
        (json!({"code": 200, "message": "done"}), false),
        (json!({"code": "success", "message": "ok"}), false),
        (json!({"code": "200"}), false),
        (json!({"code": 500}), false),
        (json!({"code": 500, "message": ""}), false),
        (json!({"code": 10_000, "message": "success"}), false),
        (json!({"message": "ok"}), false),
        (json!({"message": "All went well"}), false),
        (json!({"detail": "cached"}), false),
        (json!({"success": true, "errors": [], "messages": []}), false),
        (json!({"success": null, "errors": null}), false),
        (json!({"errors": {}, "exception": null, "traceback": ""}), false),
        (json!({"errors": 0}), false),
        (json!({"status_code": 200, "status": 200}), false),
        (json!({"status": "completed"}), false),
        (json!({"error_code": 0, "error_msg": "request ok"}), false),
        (json!({"errcode": 0, "errmsg": "ok"}), false),
        (json!({"error_type": null, "error_message": ""}), false),
        (json!({"internalServerException": null}), false),
        (json!({"ResponseMetadata": {"RequestId": "x", "Action": "chat"}}), false),
        (json!({"base_resp": {"status_code": 0, "status_msg": "success"}}), false),
    ] {
        let body = beside(&fields);
        let answer = chat(&body);
        assert_eq!((answer.failed, answer.missing), (failed, false), "{fields}");
        assert_eq!(answer.complaint.is_some(), failed, "{fields}");
        let (answer, _) = stream(Operation::Chat, &[body]);
        assert_eq!(answer.failed, failed, "as an event: {fields}");
    }
    assert_eq!(chat(&beside(&json!({"errors": ["boom"]}))).complaint.unwrap().message, "boom");
    assert_eq!(chat(&beside(&json!({"status_code": 429}))).complaint.unwrap().status, Some(429));
    let vectors = json!({"data": [{"index": 0, "embedding": [0.1]}], "success": false}).to_string();
    assert!(Answer::whole(Operation::Embeddings, vectors.as_bytes()).unwrap().failed);
}

#[test]
fn an_error_in_the_middle_of_a_stream_is_one_though_the_stream_goes_on_to_a_good_end() {
    let says = json!({"choices": [{"index": 0, "delta": {"content": "a"}}]});
    let ends = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    for (event, failed) in [
        (json!({"internalServerException": {"message": "x"}}), true),
        (json!({"modelStreamErrorException": {"message": "x"}}), true),
        (json!({"throttlingException": {"message": "x"}}), true),
        (json!({"modelTimeoutException": {"message": "x"}}), true),
        (json!({"serviceUnavailableException": {"message": "x"}}), true),
        (json!({"validationException": {"message": "x"}}), true),
        (json!({"message": "Internal server error"}), true),
        (json!({"message": "died", "type": "InternalServerError"}), true),
        (json!({"message": "died", "type": "server_error", "code": null, "param": null}), true),
        (json!({"message": "died", "status": "UNAVAILABLE"}), true),
        (json!({"message": "died", "status": 503}), true),
        (json!({"message": "died", "code": "500"}), true),
        (json!({"message": "died", "requestId": "x"}), true),
        (json!({"type": "abort"}), true),
        (json!({"type": "failed", "id": "x"}), true),
        (json!({"success": false}), true),
        // Signs of life and of progress, and what is not known.
        (json!({"message": "ping"}), false),
        (json!({"type": "ping", "message": "still here"}), false),
        (json!({"message": "ok"}), false),
        (json!({"code": 0, "message": "processing"}), false),
        (json!({"status": "queued", "message": "wait"}), false),
        (json!({"type": "progress", "message": "searching"}), false),
        (json!({"type": "info", "message": "the last error was mended"}), false),
        (json!({"message": "searching", "step": 3}), false),
        (json!({"message": {"role": "assistant", "content": ""}}), false),
        (json!({"event": "heartbeat"}), false),
        (json!({"something": "new"}), false),
        (json!({"validationException": null}), false),
        (json!({}), false),
    ] {
        let mut answer = Answer::default();
        for event in [&says, &event, &ends] {
            answer.event(Operation::Chat, event.to_string().as_bytes());
        }
        answer.event(Operation::Chat, b"[DONE]");
        assert_eq!((answer.failed, answer.done), (failed, true), "{event}");
        assert_eq!(answer.complaint.is_some(), failed, "{event}");
    }
    let status = |event: Value| {
        let mut answer = Answer::default();
        answer.event(Operation::Chat, event.to_string().as_bytes());
        answer.complaint.unwrap().status
    };
    assert_eq!(status(json!({"throttlingException": {"message": "x"}})), Some(429));
    assert_eq!(status(json!({"serviceUnavailableException": {"message": "x"}})), Some(503));
    assert_eq!(status(json!({"internalServerException": {"message": "x"}})), Some(500));
}

#[test]
fn a_page_that_a_proxy_writes_into_a_stream_is_a_failure() {
    let says = br#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    let ends = br#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    for (line, failed) in [
        (&b"<html>502</html>"[..], true),
        (b"<!DOCTYPE html><html lang=\"en: x\">", true),
        (b"<3", false),
        (b"{\"new\": 1}", false),
    ] {
        let mut answer = Answer::default();
        answer.event(Operation::Chat, says);
        answer.stray_line(line);
        answer.event(Operation::Chat, ends);
        assert_eq!(answer.failed, failed);
        let mut answer = Answer::default();
        answer.event(Operation::Chat, says);
        answer.event(Operation::Chat, ends);
        answer.stray_line(line);
        assert!(!answer.failed, "nobody misses what would come");
    }
}

#[test]
fn a_response_whose_parts_failed_or_did_not_end_is_not_good() {
    let message = |status: &str| json!({"type": "message", "status": status, "content": [{"type": "output_text", "text": "Hi"}]});
    let call = |status: &str| json!({"type": "function_call", "status": status, "id": "f", "call_id": "c", "name": "f", "arguments": "{}"});
    let both = |output: Value| {
        let response = json!({"status": "completed", "output": output});
        let whole = Answer::whole(Operation::Responses, response.to_string().as_bytes()).unwrap();
        let last = json!({"type": "response.completed", "response": response});
        let (events, _) = stream(Operation::Responses, &[last]);
        [whole, events]
    };
    for answer in both(json!([message("failed")])) {
        assert!(answer.failed && answer.complaint.is_some());
    }
    for kind in ["function_call", "computer_call", "image_generation_call", "mcp_call", "new"] {
        let mut item = call("failed");
        item["type"] = json!(kind);
        for answer in both(json!([item])) {
            assert!(!answer.tool_call && answer.text.is_empty(), "{kind}");
        }
        for answer in both(json!([item, message("completed")])) {
            assert!(!answer.failed && answer.text == "Hi", "{kind}: the model went on without it");
        }
    }
    for item in [message("incomplete"), call("incomplete")] {
        for answer in both(json!([item])) {
            assert_eq!(answer.ending(), Some(Ending::Length), "{item}");
        }
    }
    for item in [message("completed"), message("in_progress"), call("completed")] {
        for answer in both(json!([item])) {
            assert_eq!(answer.ending(), Some(Ending::Good), "{item}");
            assert!(!answer.failed, "{item}");
        }
    }
    // Of an unknown kind: a call is for the application, and nothing is known of others.
    for (kind, calls, unread) in [
        ("custom_tool_call", true, false),
        ("mcp_approval_request", true, false),
        ("shell_call_output", false, false),
        ("banana", false, true),
    ] {
        for answer in both(json!([{"type": kind}])) {
            assert_eq!((answer.tool_call, answer.is_unread()), (calls, unread), "{kind}");
        }
    }
    let told = |kind: &str, error: Value| {
        let response =
            json!({"status": "completed", "output": [message("completed")], "error": error});
        stream(Operation::Responses, &[json!({"type": kind, "response": response})]).0
    };
    let error = json!({"code": "server_error", "message": "died"});
    for kind in ["response.completed", "response.in_progress", "response.done"] {
        let answer = told(kind, error.clone());
        assert!(answer.failed, "{kind}");
        assert_eq!(answer.complaint.unwrap().message, "died", "{kind}");
        assert!(!told(kind, Value::Null).failed, "{kind}");
    }
}
