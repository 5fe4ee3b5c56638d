//! The tools that a model may call, and whether a call fits them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::schema::{self, Schema};

/// Of an application's own tools only so much is read, in bytes.
const LARGEST: usize = 256 << 10;
/// What checking one call may cost: the length of a schema times that of what is checked.
const MOST_WORK: usize = 1 << 26;
/// References of a schema: each may double what checking costs.
const MOST_REFERENCES: usize = 24;

/// Whether a call fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is JSON that matches the tool's schema, as far as there is one.
    Fit,
    /// It is no JSON, does not match, or there is no such tool.
    Unfit,
}

/// Tools by their names; of two with one name the first counts.
#[derive(Debug, Default)]
pub struct Tools {
    tools: Vec<Tool>,
    /// There are others, whose names are not known.
    others: bool,
}

#[derive(Debug)]
struct Tool {
    name: String,
    parameters: Option<Parameters>,
}

#[derive(Clone, Debug)]
enum Parameters {
    /// Of a release: compiled once, when first used.
    Trusted(Arc<Schema>),
    /// Of an application: compiled when it is used, if that costs little.
    Stranger(Map<String, Value>),
}

impl Tools {
    /// A release's tools, in OpenAI's form.
    pub(super) fn of(tools: &[Map<String, Value>]) -> Self {
        let mut this = Self::default();
        for tool in tools {
            this.add(tool, |schema| Schema::of(schema).ok().map(Parameters::Trusted));
        }
        this
    }

    /// The same with an application's own, which come after them.
    #[must_use]
    pub fn with_own(&self, own: Option<&[u8]>) -> Self {
        let known =
            |tool: &Tool| Tool { name: tool.name.clone(), parameters: tool.parameters.clone() };
        let mut this = Self { tools: self.tools.iter().map(known).collect(), others: self.others };
        let Some(own) = own else { return this };
        let read = (own.len() <= LARGEST).then(|| serde_json::from_slice::<Vec<Value>>(own).ok());
        let Some(tools) = read.flatten() else {
            this.others = true;
            return this;
        };
        for tool in &tools {
            match tool {
                Value::Object(tool) => {
                    this.add(tool, |schema| Some(Parameters::Stranger(schema.clone())));
                }
                _ => this.others = true,
            }
        }
        this
    }

    fn add(
        &mut self,
        tool: &Map<String, Value>,
        parameters: impl Fn(&Map<String, Value>) -> Option<Parameters>,
    ) {
        // Chat holds the function within, the Responses API does not.
        let function = tool.get("function").and_then(Value::as_object).unwrap_or(tool);
        let is_function = tool.get("type").is_none_or(|kind| kind == "function");
        match function.get("name").and_then(Value::as_str) {
            Some(name) if is_function => {
                let schema = function.get("parameters").and_then(Value::as_object);
                let parameters = schema.filter(|s| !s.is_empty()).and_then(parameters);
                self.tools.push(Tool { name: name.to_owned(), parameters });
            }
            _ => self.others = true,
        }
    }

    /// Whether a call of `name` with these arguments fits. A call without a name is one of
    /// some tool.
    pub fn judge(&self, name: &str, arguments: &str) -> Verdict {
        let Some(value) = schema::read(arguments) else { return Verdict::Unfit };
        let Some(tool) = self.tools.iter().find(|tool| tool.name == name) else {
            let must_be_known = !name.is_empty() && !self.tools.is_empty() && !self.others;
            return if must_be_known { Verdict::Unfit } else { Verdict::Fit };
        };
        let fits = match &tool.parameters {
            None => true,
            Some(Parameters::Trusted(schema)) => schema.check(&value) == Ok(true),
            Some(Parameters::Stranger(schema)) => accepts(schema, &value, arguments.len()),
        };
        if fits { Verdict::Fit } else { Verdict::Unfit }
    }
}

/// Whether a stranger's schema accepts a value; true where finding out may cost much.
fn accepts(schema: &Map<String, Value>, value: &Value, length: usize) -> bool {
    let text = Value::Object(schema.clone()).to_string();
    let is_tame = text.len().saturating_mul(length) <= MOST_WORK
        && text.matches("\"$ref\"").count() <= MOST_REFERENCES
        && ["\"pattern", "\"$dynamicRef\"", "\"$recursiveRef\"", "\"uniqueItems\""]
            .iter()
            .all(|costly| !text.contains(costly));
    !is_tame || Schema::of(schema).map_or(true, |schema| schema.check(value) != Ok(false))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools(tools: Value) -> Tools {
        Tools::of(&serde_json::from_value::<Vec<Map<String, Value>>>(tools).unwrap())
    }

    fn look_up() -> Value {
        json!({"type": "function", "function": {"name": "look_up", "parameters": {
            "type": "object", "required": ["term"], "properties": {"term": {"type": "string"}}}}})
    }

    #[test]
    fn calls_fit_the_schema_of_the_tool_of_that_name() {
        let own = json!([{"type": "function", "name": "book", "parameters": {
            "type": "object", "properties": {"day": {"enum": ["mon"]}}}}]);
        let all = tools(json!([look_up()])).with_own(Some(own.to_string().as_bytes()));
        for (name, arguments, verdict) in [
            ("look_up", r#"{"term": "a"}"#, Verdict::Fit),
            ("look_up", r#"{"term": 1}"#, Verdict::Unfit),
            ("look_up", "{}", Verdict::Unfit),
            ("look_up", r#"{"term": "a"#, Verdict::Unfit),
            ("look_up", r#""{\"term\": \"a\"}""#, Verdict::Unfit),
            ("book", r#"{"day": "mon"}"#, Verdict::Fit),
            ("book", r#"{"day": "sun"}"#, Verdict::Unfit),
            ("cancel", "{}", Verdict::Unfit),
            ("", "{}", Verdict::Fit),
            ("", "{", Verdict::Unfit),
        ] {
            assert_eq!(all.judge(name, arguments), verdict, "{name} {arguments}");
        }
    }

    #[test]
    fn without_tools_or_with_unknown_ones_any_name_is_one() {
        let none = Tools::default();
        assert_eq!(none.judge("any", "{}"), Verdict::Fit);
        assert_eq!(none.judge("any", "{"), Verdict::Unfit);
        let hosted = tools(json!([look_up(), {"type": "mcp", "server_label": "x"}]));
        assert_eq!(hosted.judge("any", "{}"), Verdict::Fit);
        let odd = none.with_own(Some(b"[1]"));
        assert_eq!(odd.judge("any", "{}"), Verdict::Fit);
    }

    #[test]
    fn a_strangers_schema_costs_little() {
        let mut definitions = Map::new();
        for level in 0..40 {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            definitions.insert(format!("l{level}"), json!({"anyOf": [next, next]}));
        }
        definitions.insert("l40".to_owned(), json!({"type": "string"}));
        let bomb = json!([{"type": "function", "function": {"name": "f", "parameters": {
            "$ref": "#/$defs/l0", "$defs": definitions}}}]);
        let all = Tools::default().with_own(Some(bomb.to_string().as_bytes()));
        assert_eq!(all.judge("f", "{}"), Verdict::Fit);
        let invalid =
            json!([{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}]);
        let all = Tools::default().with_own(Some(invalid.to_string().as_bytes()));
        assert_eq!(all.judge("f", "{}"), Verdict::Fit);
    }
}
