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
        (b"[done]", true),
        (b"\"[DONE]\"", true),
        (b" [DONE]", true),
    ] {
        assert_eq!(answer.event(Operation::Chat, event).nothing, nothing);
    }
    assert!(!answer.event(Operation::Chat, b"[DONE] ").nothing, "clients know it");
}

#[test]
fn vectors_that_no_application_can_use_are_none() {
    let of = |data: Value| {
        let json = json!({"object": "list", "data": data, "model": "e"}).to_string();
        // JSON knows no larger number.
        let json = json.replace("\"1e999\"", "1e999");
        let answer = Answer::whole(Operation::Embeddings, json.as_bytes()).unwrap();
        (answer.missing, answer.vectors)
    };
    let one = |index: u32, vector: Value| json!({"index": index, "embedding": vector});
    let good = || one(0, json!([0.1, -0.2]));
    assert_eq!(of(json!([good(), one(1, json!([3e-9, 1e38]))])), (false, 2));
    assert_eq!(of(json!([{"embedding": [1]}, {"embedding": [2]}])), (false, 2));
    // A vector of each token has as many as there are tokens.
    assert_eq!(of(json!([one(0, json!([[0.1], [0.2]])), one(1, json!([[0.3]]))])), (false, 2));
    for second in [
        one(0, json!([0.3, 0.4])),
        one(1, json!([0.3])),
        one(1, json!([])),
        one(1, json!([0.0, 0])),
        one(1, json!([0.1, "1e999"])),
        one(1, json!([0.1, null])),
        one(1, json!("!!!")),
        one(1, json!("AAAA")),
        one(1, json!("AAAAAAAAAAA=")),
        one(1, json!("AACAfwAAgD8=")),
        json!(null),
    ] {
        assert_eq!(of(json!([good(), second])), (true, 2), "{second}");
    }
    assert_eq!(of(json!([good(), one(1, json!("AACAPwAAgD8="))])), (false, 2));
}
