//! What one answer will say, before it takes the form of its operation.

use rand::RngExt;
use serde_json::{Map, Value, json};

use super::{Behaviour, chance};
use crate::openai::Operation;

/// Schemas that contain themselves end somewhere.
const DEEPEST: usize = 8;

/// What one answer will be.
pub(super) struct Draft {
    pub behaviour: Behaviour,
    pub operation: Operation,
    pub quality: f64,
    pub model: String,
    /// All choices say the same.
    pub said: Said,
    pub choices: usize,
    pub finish: &'static str,
    pub breaks: bool,
    pub fails: bool,
    pub input_tokens: u64,
    /// Log probabilities are asked for, with so many alternatives.
    pub logprobs: Option<usize>,
    /// A stream is to tell its usage.
    pub tells_usage: bool,
}

/// What a choice says.
pub(super) enum Said {
    Text(String),
    Calls(Vec<Call>),
}

/// A call of a tool.
pub(super) struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl Draft {
    pub(super) fn new(
        behaviour: Behaviour,
        operation: Operation,
        request: &Value,
        body: usize,
    ) -> Self {
        let quality =
            (behaviour.quality + 0.2 * (rand::rng().random::<f64>() - 0.5)).clamp(0.0, 1.0);
        let limit = ["max_tokens", "max_completion_tokens", "max_output_tokens"]
            .iter()
            .find_map(|name| request.get(*name).and_then(Value::as_u64));
        let cut = limit.filter(|limit| *limit < behaviour.tokens);
        let calls = calls(&behaviour, request);
        let truncated = cut.is_some() || chance(behaviour.truncated_rate);
        let finish = match (truncated, calls.is_empty()) {
            (true, _) => "length",
            (false, false) => "tool_calls",
            (false, true) => "stop",
        };
        let said =
            if calls.is_empty() { text(&behaviour, request, cut) } else { Said::Calls(calls) };
        let number = |name: &str| request.get(name).and_then(Value::as_u64);
        let logprobs = match request.get("logprobs") {
            Some(Value::Bool(true)) => Some(number("top_logprobs").unwrap_or(0)),
            Some(Value::Number(n)) => n.as_u64(),
            _ => None,
        };
        Self {
            operation,
            quality,
            model: request.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
            said,
            choices: usize::try_from(number("n").unwrap_or(1)).unwrap_or(1) * prompts(request),
            finish,
            breaks: chance(behaviour.break_rate),
            fails: chance(behaviour.stream_error_rate),
            input_tokens: body as u64 / 4,
            logprobs: logprobs.map(|n| n as usize),
            tells_usage: request
                .pointer("/stream_options/include_usage")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            behaviour: Behaviour { tokens: cut.unwrap_or(behaviour.tokens), ..behaviour },
        }
    }

    pub(super) fn output_tokens(&self) -> u64 {
        self.behaviour.tokens * self.choices as u64
    }

    /// The pieces of what is said: words of a text, or halves of a call's arguments.
    pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
        text.split_inclusive(' ')
    }
}

/// Completions answer every prompt of a list.
fn prompts(request: &Value) -> usize {
    match request.get("prompt") {
        Some(Value::Array(prompts)) if prompts.iter().all(Value::is_string) => prompts.len().max(1),
        _ => 1,
    }
}

fn text(behaviour: &Behaviour, request: &Value, cut: Option<u64>) -> Said {
    let words = words(behaviour);
    let text = if chance(behaviour.empty_rate) {
        String::new()
    } else if chance(behaviour.bad_json_rate) {
        words
    } else {
        match schema(request) {
            Some(schema) => instance(schema, schema, &words, 0).to_string(),
            None => json!({"answer": words}).to_string(),
        }
    };
    Said::Text(match cut {
        Some(limit) => Draft::pieces(&text).take(limit as usize).collect(),
        None => text,
    })
}

fn words(behaviour: &Behaviour) -> String {
    vec!["seed"; usize::try_from(behaviour.tokens).unwrap_or(1).max(1)].join(" ")
}

/// The schema that the answer is to follow, in chat's place or in that of responses.
fn schema(request: &Value) -> Option<&Value> {
    request
        .pointer("/response_format/json_schema/schema")
        .or_else(|| request.pointer("/text/format/schema"))
}

/// The calls of tools: those that the request insists on, or as many as the behaviour
/// says. The result of a tool is answered with text.
fn calls(behaviour: &Behaviour, request: &Value) -> Vec<Call> {
    let Some(tools) = request.get("tools").and_then(Value::as_array) else { return vec![] };
    let choice = request.get("tool_choice").unwrap_or(&Value::Null);
    let wanted = choice.pointer("/function/name").or_else(|| choice.get("name"));
    let insists = wanted.is_some() || choice == "required";
    let last =
        ["messages", "input"].iter().find_map(|field| request.get(*field)?.as_array()?.last());
    let answered =
        last.is_some_and(|last| last["role"] == "tool" || last["type"] == "function_call_output");
    if choice == "none" || (answered && !insists) {
        return vec![];
    }
    // Chat has the function inside, responses have it flat.
    let functions = tools.iter().map(|tool| tool.get("function").unwrap_or(tool));
    let functions: Vec<&Value> = functions
        .filter(|function| wanted.is_none_or(|name| function.get("name") == Some(name)))
        .collect();
    let count = behaviour.tool_calls.max(usize::from(insists));
    let of = |i: usize| {
        let function = functions.get(i % functions.len().max(1))?;
        let parameters = function.get("parameters").unwrap_or(&Value::Null);
        Some(Call {
            id: format!("call_{i}"),
            name: function.get("name")?.as_str()?.to_owned(),
            arguments: instance(parameters, parameters, "seed", 0).to_string(),
        })
    };
    (0..count).filter_map(of).collect()
}

/// Something that follows a JSON Schema, as far as clients write them.
fn instance(schema: &Value, root: &Value, words: &str, depth: usize) -> Value {
    let next = |schema: &Value| instance(schema, root, words, depth + 1);
    if depth > DEEPEST {
        return Value::Null;
    }
    if let Some(place) = schema.get("$ref").and_then(Value::as_str) {
        let found = root.pointer(place.trim_start_matches('#'));
        return found.map_or(Value::Null, next);
    }
    if let Some(fixed) = schema.get("const") {
        return fixed.clone();
    }
    for choice in ["enum", "anyOf", "oneOf"] {
        if let Some(first) = schema.get(choice).and_then(|choices| choices.get(0)) {
            return if choice == "enum" { first.clone() } else { next(first) };
        }
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => json!(words),
        Some("integer") => json!(7),
        Some("number") => json!(0.5),
        Some("boolean") => json!(true),
        Some("array") => json!([schema.get("items").map_or(Value::Null, next)]),
        Some("null") => Value::Null,
        _ => {
            let fields = schema.get("properties").and_then(Value::as_object);
            let fields = fields.into_iter().flatten();
            Value::Object(
                fields.map(|(name, field)| (name.clone(), next(field))).collect::<Map<_, _>>(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_follows_its_schema() {
        let schema = json!({
            "type": "object",
            "$defs": {"Step": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "properties": {
                "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
                "mood": {"enum": ["calm", "wild"]},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        });
        assert_eq!(
            instance(&schema, &schema, "x", 0),
            json!({"steps": [{"n": 7}], "mood": "calm", "note": "x"})
        );
        let endless = json!({"properties": {"self": {"$ref": "#"}}});
        assert!(instance(&endless, &endless, "x", 0).is_object());
    }

    #[test]
    fn tools_are_called_when_the_request_insists_and_not_again_after_their_result() {
        let tools = json!([{"type": "function", "function": {"name": "a"}},
            {"type": "function", "function": {"name": "b"}}]);
        let names = |behaviour: &Behaviour, request: Value| {
            calls(behaviour, &request).into_iter().map(|call| call.name).collect::<Vec<_>>()
        };
        let quiet = Behaviour::default();
        assert!(names(&quiet, json!({"tools": tools})).is_empty());
        assert_eq!(names(&quiet, json!({"tools": tools, "tool_choice": "required"})), ["a"]);
        let named = json!({"type": "function", "function": {"name": "b"}});
        assert_eq!(names(&quiet, json!({"tools": tools, "tool_choice": named})), ["b"]);
        let eager = Behaviour { tool_calls: 2, ..quiet };
        assert_eq!(names(&eager, json!({"tools": tools})), ["a", "b"]);
        let after = json!({"tools": tools, "messages": [{"role": "tool", "content": "3"}]});
        assert!(names(&eager, after).is_empty());
    }
}
