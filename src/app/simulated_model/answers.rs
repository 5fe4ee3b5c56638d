//! Answers of chat and completions.

use serde_json::{Map, Value, json};

use super::{
    draft::{Call, Draft, Said},
    stream::event,
};
use crate::openai::Operation;

fn usage(draft: &Draft) -> Value {
    let (input, output) = (draft.input_tokens, draft.output_tokens());
    json!({
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

fn is_chat(draft: &Draft) -> bool {
    draft.operation == Operation::Chat
}

/// A whole answer.
pub(super) fn whole(draft: &Draft) -> Value {
    let choices: Vec<Value> = (0..draft.choices).map(|index| choice(draft, index)).collect();
    let (id, object) = names(draft);
    json!({
        "id": id, "object": object, "created": 0,
        "model": draft.model, "system_fingerprint": "fp_simulated",
        "choices": choices,
        "usage": usage(draft),
        "sim_quality": draft.quality,
    })
}

fn names(draft: &Draft) -> (&'static str, &'static str) {
    if is_chat(draft) {
        ("chatcmpl-simulated", "chat.completion")
    } else {
        ("cmpl-simulated", "text_completion")
    }
}

fn choice(draft: &Draft, index: usize) -> Value {
    let text = match &draft.said {
        Said::Text(text) => text.as_str(),
        Said::Calls(_) => "",
    };
    let logprobs = logprobs(draft, text);
    if !is_chat(draft) {
        return json!({"index": index, "finish_reason": draft.finish, "logprobs": logprobs, "text": text});
    }
    let message = match &draft.said {
        Said::Text(text) => json!({"role": "assistant", "content": text, "refusal": null}),
        Said::Calls(calls) => {
            let calls: Vec<Value> = calls
                .iter()
                .map(|Call { id, name, arguments }| {
                    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
                })
                .collect();
            json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls})
        }
    };
    json!({"index": index, "finish_reason": draft.finish, "logprobs": logprobs, "message": message})
}

/// In the form of the operation; every token is as likely as every other.
fn logprobs(draft: &Draft, text: &str) -> Value {
    let Some(alternatives) = draft.logprobs else { return Value::Null };
    let tokens: Vec<&str> = Draft::pieces(text).collect();
    if is_chat(draft) {
        let one = |token: &str| json!({"token": token, "logprob": -0.5, "bytes": token.as_bytes()});
        let of = |token: &&str| {
            let mut said = one(token);
            said["top_logprobs"] = (0..alternatives).map(|_| one(token)).collect();
            said
        };
        return json!({"content": tokens.iter().map(of).collect::<Vec<_>>(), "refusal": null});
    }
    let offsets: Vec<usize> =
        tokens.iter().scan(0, |at, token| Some(std::mem::replace(at, *at + token.len()))).collect();
    let top = |token: &&str| Map::from_iter([((*token).to_owned(), json!(-0.5))]);
    json!({
        "tokens": tokens, "token_logprobs": vec![-0.5; tokens.len()], "text_offset": offsets,
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
    })
}

/// A stream, token by token: all choices side by side, then the reasons, then usage if it
/// was asked for.
pub(super) fn parts(draft: &Draft) -> Vec<String> {
    let all = |delta: &dyn Fn(usize) -> Value| -> String {
        (0..draft.choices).map(|index| event(&chunk(draft, json!([delta(index)]), None))).collect()
    };
    let mut parts: Vec<String> = match &draft.said {
        Said::Text(text) => {
            Draft::pieces(text).map(|piece| all(&|index| said(draft, index, piece))).collect()
        }
        Said::Calls(calls) => calls
            .iter()
            .enumerate()
            .flat_map(|(number, call)| halves(number, call))
            .map(|call| all(&|index| delta(index, &json!({"tool_calls": [call]}), None)))
            .collect(),
    };
    if is_chat(draft) {
        // Its first event says who speaks.
        let role = json!({"role": "assistant", "content": "", "refusal": null});
        let first = all(&|index| delta(index, &role, None));
        match parts.first_mut() {
            Some(part) => part.insert_str(0, &first),
            None => parts.push(first),
        }
    }
    parts.push(all(&|index| {
        if is_chat(draft) {
            delta(index, &json!({}), Some(draft.finish))
        } else {
            json!({"index": index, "text": "", "logprobs": null, "finish_reason": draft.finish})
        }
    }));
    if draft.tells_usage {
        parts.push(event(&chunk(draft, json!([]), Some(usage(draft)))));
    }
    parts.push("data: [DONE]\n\n".to_owned());
    parts
}

fn chunk(draft: &Draft, choices: Value, usage: Option<Value>) -> Value {
    let (id, object) = names(draft);
    let object = if is_chat(draft) { "chat.completion.chunk" } else { object };
    let mut chunk = json!({
        "id": id, "object": object, "created": 0, "model": draft.model,
        "system_fingerprint": "fp_simulated", "choices": choices,
    });
    if draft.tells_usage {
        chunk["usage"] = usage.unwrap_or_default();
    }
    chunk
}

fn said(draft: &Draft, index: usize, piece: &str) -> Value {
    let logprobs = logprobs(draft, piece);
    if !is_chat(draft) {
        return json!({"index": index, "text": piece, "logprobs": logprobs, "finish_reason": null});
    }
    let mut choice = delta(index, &json!({"content": piece}), None);
    choice["logprobs"] = logprobs;
    choice
}

fn delta(index: usize, delta: &Value, finish: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish})
}

/// A call comes as its name and then its arguments in pieces.
fn halves(number: usize, call: &Call) -> Vec<Value> {
    let Call { id, name, arguments } = call;
    let half = arguments.len() / 2;
    let half = (half..).find(|at| arguments.is_char_boundary(*at)).unwrap_or(half);
    let (one, other) = arguments.split_at(half);
    vec![
        json!({"index": number, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}),
        json!({"index": number, "function": {"arguments": one}}),
        json!({"index": number, "function": {"arguments": other}}),
    ]
}
