//! What a release's prompt sets in every request, in the names of each operation.

use serde_json::{Map, Value, json};

use crate::{
    api::{
        Variant,
        llm_deployment::TokenLimit,
        prompt_version::{self, Parameters},
    },
    openai::Operation,
};

/// What a prompt sets in every request of one operation, as JSON.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Overlay {
    /// Fields that it replaces or adds.
    pub(super) fields: Vec<(&'static str, Box<[u8]>)>,
    /// Other names of such a field, which models refuse beside it.
    pub(super) aliases: Vec<&'static str>,
    /// The format of a response, which goes into `text` beside what the application says there.
    pub(super) format: Option<Box<[u8]>>,
    /// Tools before the application's own, without brackets.
    pub(super) tools: Box<[u8]>,
}

impl Overlay {
    /// What the prompt of `variant` sets, in the names of `operation` and of a backend that
    /// calls the limit of tokens `token_limit`. A parameter that an operation does not know
    /// is left out.
    pub(in crate::gateway) fn new(
        variant: &Variant,
        token_limit: TokenLimit,
        operation: Operation,
    ) -> Self {
        if operation == Operation::Embeddings {
            return Self::default();
        }
        let Parameters {
            temperature,
            top_p,
            max_tokens,
            stop,
            seed,
            frequency_penalty,
            presence_penalty,
        } = &variant.prompt.parameters;
        let responses = operation == Operation::Responses;
        let schema = variant.prompt.response_format.as_ref().map(named_schema);
        let (limit, aliases) = match operation {
            Operation::Responses => ("max_output_tokens", vec![]),
            Operation::Chat => (token_limit.as_str(), vec![token_limit.other().as_str()]),
            _ => (TokenLimit::MaxTokens.as_str(), vec![]),
        };
        let aliases = if max_tokens.is_some() { aliases } else { vec![] };
        let mut fields: Vec<(&'static str, Option<Value>)> = vec![
            ("temperature", temperature.map(Value::from)),
            ("top_p", top_p.map(Value::from)),
            (limit, max_tokens.map(Value::from)),
        ];
        let format = schema.clone().filter(|_| responses).map(|schema| {
            let mut format = Map::from_iter([("type".to_owned(), json!("json_schema"))]);
            format.extend(schema);
            Value::Object(format).to_string().into_bytes().into()
        });
        if !responses {
            fields.extend([
                ("stop", (!stop.is_empty()).then(|| json!(stop))),
                ("seed", seed.map(Value::from)),
                ("frequency_penalty", frequency_penalty.map(Value::from)),
                ("presence_penalty", presence_penalty.map(Value::from)),
                (
                    "response_format",
                    schema.map(|schema| json!({"type": "json_schema", "json_schema": schema})),
                ),
            ]);
        }
        let fields = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?.to_string().into_bytes().into())))
            .collect();
        let tools = match operation {
            Operation::Completions => vec![],
            _ => variant.prompt.tools.iter().map(|tool| tool_of(tool, responses)).collect(),
        };
        Self { fields, aliases, format, tools: tools.join(",").into_bytes().into() }
    }
}

/// The schema of an answer in OpenAI's form: with a name, and with what the prompt says
/// beside the schema, whether the model must keep to it (`strict`).
fn named_schema(format: &Map<String, Value>) -> Map<String, Value> {
    let mut schema = format.clone();
    let mut named = Map::from_iter([("name".to_owned(), json!("answer"))]);
    // In the order of the rest.
    if let Some(strict) = schema.shift_remove(prompt_version::STRICT) {
        named.insert("strict".to_owned(), strict);
    }
    named.insert("schema".to_owned(), Value::Object(schema));
    named
}

/// A tool in chat's form, or in that of responses, which has the function's fields at its top.
fn tool_of(tool: &Map<String, Value>, responses: bool) -> String {
    let function = tool.get("function").and_then(Value::as_object).filter(|_| responses);
    let Some(function) = function else { return Value::Object(tool.clone()).to_string() };
    let mut flat = Map::from_iter([("type".to_owned(), json!("function"))]);
    flat.extend(function.clone());
    Value::Object(flat).to_string()
}
