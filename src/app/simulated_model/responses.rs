//! Answers of the Responses API. Its events come in a fixed order, each with its number
//! in the stream: clients build the answer from them.

use serde_json::{Value, json};

use super::{
    draft::{Call, Draft, Said},
    stream::named_event,
};

/// A whole answer.
pub(super) fn whole(draft: &Draft) -> Value {
    let incomplete = draft.finish == "length";
    let status = if incomplete { "incomplete" } else { "completed" };
    let mut response = response(draft, status, items(draft, status));
    let (input, output) = (draft.input_tokens, draft.output_tokens());
    response["usage"] = json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + output,
    });
    if incomplete {
        response["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    response
}

fn response(draft: &Draft, status: &str, output: Vec<Value>) -> Value {
    json!({
        "id": "resp_simulated", "object": "response", "created_at": 0, "status": status,
        "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
        "model": draft.model, "output": output, "parallel_tool_calls": true,
        "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": [],
        "text": {"format": {"type": "text"}}, "usage": null, "sim_quality": draft.quality,
    })
}

fn items(draft: &Draft, status: &str) -> Vec<Value> {
    match &draft.said {
        Said::Text(text) => vec![message(status, vec![part(text)])],
        Said::Calls(calls) => {
            calls.iter().map(|call| item(call, &call.arguments, status)).collect()
        }
    }
}

fn message(status: &str, content: Vec<Value>) -> Value {
    json!({"id": "msg_simulated", "type": "message", "status": status, "role": "assistant", "content": content})
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
}

fn item(Call { id, name, .. }: &Call, arguments: &str, status: &str) -> Value {
    json!({"id": format!("fc_{id}"), "type": "function_call", "status": status,
        "call_id": id, "name": name, "arguments": arguments})
}

/// Events that are being written.
#[derive(Default)]
struct Writer {
    parts: Vec<String>,
    begun: String,
    number: u64,
}

impl Writer {
    /// One more event of the part under way.
    fn event(&mut self, kind: &str, mut data: Value) {
        data["type"] = json!(kind);
        data["sequence_number"] = json!(self.number);
        self.number += 1;
        self.begun.push_str(&named_event(kind, &data));
    }

    fn end_part(&mut self) {
        self.parts.push(std::mem::take(&mut self.begun));
    }
}

/// A stream.
pub(super) fn parts(draft: &Draft) -> Vec<String> {
    let mut out = Writer::default();
    for kind in ["response.created", "response.in_progress"] {
        out.event(kind, json!({"response": response(draft, "in_progress", vec![])}));
    }
    match &draft.said {
        Said::Text(text) => say(&mut out, text),
        Said::Calls(calls) => {
            for (index, one) in calls.iter().enumerate() {
                call(&mut out, index, one);
            }
        }
    }
    let whole = whole(draft);
    let kind = if draft.finish == "length" { "response.incomplete" } else { "response.completed" };
    out.event(kind, json!({"response": whole}));
    out.end_part();
    out.parts
}

fn say(out: &mut Writer, text: &str) {
    let at = |more: Value| {
        let mut place = json!({"item_id": "msg_simulated", "output_index": 0, "content_index": 0});
        if let (Some(place), Value::Object(more)) = (place.as_object_mut(), more) {
            place.extend(more);
        }
        place
    };
    let added = message("in_progress", vec![]);
    out.event("response.output_item.added", json!({"output_index": 0, "item": added}));
    out.event("response.content_part.added", at(json!({"part": part("")})));
    for piece in Draft::pieces(text) {
        out.event("response.output_text.delta", at(json!({"delta": piece, "logprobs": []})));
        out.end_part();
    }
    out.event("response.output_text.done", at(json!({"text": text, "logprobs": []})));
    out.event("response.content_part.done", at(json!({"part": part(text)})));
    let done = message("completed", vec![part(text)]);
    out.event("response.output_item.done", json!({"output_index": 0, "item": done}));
}

fn call(out: &mut Writer, index: usize, call: &Call) {
    let added = item(call, "", "in_progress");
    let (id, arguments) = (added["id"].clone(), &call.arguments);
    out.event("response.output_item.added", json!({"output_index": index, "item": added}));
    for piece in Draft::pieces(arguments) {
        let delta = json!({"item_id": id, "output_index": index, "delta": piece});
        out.event("response.function_call_arguments.delta", delta);
        out.end_part();
    }
    let done =
        json!({"item_id": id, "output_index": index, "name": call.name, "arguments": arguments});
    out.event("response.function_call_arguments.done", done);
    let item = item(call, arguments, "completed");
    out.event("response.output_item.done", json!({"output_index": index, "item": item}));
}

#[cfg(test)]
mod tests {
    use super::{super::Behaviour, *};
    use crate::openai::Operation;

    #[test]
    fn events_are_numbered_and_their_deltas_make_up_the_answer() {
        let behaviour = Behaviour { tokens: 3, ..Behaviour::default() };
        let draft = Draft::new(behaviour, Operation::Responses, &json!({"model": "m"}), 40);
        let text = parts(&draft).concat();
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        let numbers: Vec<u64> =
            events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
        let said: String = events.iter().filter_map(|e| e["delta"].as_str()).collect();
        let last = &events[events.len() - 1];
        assert_eq!(last["type"], "response.completed");
        assert_eq!(last["response"]["output"][0]["content"][0]["text"], said);
        assert_eq!(said, r#"{"answer":"seed seed seed"}"#);
    }
}
