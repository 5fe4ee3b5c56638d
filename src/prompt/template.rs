//! A prompt, compiled once and rendered for every request.

use std::borrow::Cow;

use jsonschema::{Validator, error::ValidationErrorKind};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::api::{PromptVersionSpec, prompt_version::Role};

/// Rendering stops after so many template instructions: a template can loop.
const FUEL: u64 = 1_000_000;

/// Why a prompt can not be used, or not for these inputs.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A message is not a valid template.
    #[error("spec.messages[{index}].content is not a valid template: {message}")]
    Template {
        /// Which message, from 0.
        index: usize,
        /// What is wrong and where.
        message: String,
    },
    /// A schema is not a valid JSON Schema.
    #[error("spec.{field} is not a valid JSON Schema: {message}")]
    Schema {
        /// variables or responseFormat.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The inputs do not match the schema of the variables.
    #[error("serinus.variables{path}: {message}")]
    Variables {
        /// Which variable, as `.name`; empty for the object as a whole.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A message can not be rendered with these inputs.
    #[error("message {index} can not be rendered: {message}")]
    Render {
        /// Which message, from 0.
        index: usize,
        /// What is wrong, for example which variable is undefined.
        message: String,
    },
}

impl PromptError {
    /// One CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Template { .. } => "InvalidTemplate",
            Self::Schema { .. } => "InvalidSchema",
            Self::Variables { .. } => "InvalidVariables",
            Self::Render { .. } => "RenderFailed",
        }
    }

    /// The request field at fault, for a client's error.
    pub fn param(&self) -> String {
        match self {
            Self::Variables { path, .. } => format!("serinus.variables{path}"),
            _ => "serinus.variables".to_owned(),
        }
    }
}

/// A compiled prompt.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    messages: Vec<(Role, Message)>,
    variables: Option<Validator>,
    response: Option<Validator>,
}

#[derive(Debug)]
enum Message {
    /// The same for every request.
    Fixed(String),
    /// The name of its template in the environment.
    Template(String),
}

impl Template {
    /// Compiles messages and schemas.
    ///
    /// # Errors
    /// The first message or schema that is not valid.
    pub fn compile(prompt: &PromptVersionSpec) -> Result<Self, PromptError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        let mut messages = vec![];
        for (index, message) in prompt.messages.iter().enumerate() {
            let name = index.to_string();
            environment
                .add_template_owned(name.clone(), message.content.clone())
                .map_err(|e| PromptError::Template { index, message: describe(&e) })?;
            // Without a brace there is nothing to fill in; a template ends without its last
            // line break, so that is left to the engine.
            let fixed = !message.content.contains(['{', '\n']);
            let content = message.content.clone();
            messages.push((
                message.role,
                if fixed { Message::Fixed(content) } else { Message::Template(name) },
            ));
        }
        Ok(Self {
            environment,
            messages,
            variables: schema("variables", prompt.variables.as_ref())?,
            response: schema("responseFormat", prompt.response_format.as_ref())?,
        })
    }

    /// Checks the inputs and renders every message.
    ///
    /// # Errors
    /// Names the variable at fault.
    pub fn render(&self, variables: &Value) -> Result<Vec<(Role, Cow<'_, str>)>, PromptError> {
        if let Some(validator) = &self.variables
            && !validator.is_valid(variables)
            && let Some(error) = validator.iter_errors(variables).next()
        {
            let mut path = error.instance_path().to_string().replace('/', ".");
            // The field at fault is the one that is missing, not what it is missing in.
            if let ValidationErrorKind::Required { property: Value::String(name) } = error.kind() {
                path = format!("{path}.{name}");
            }
            return Err(PromptError::Variables { path, message: error.to_string() });
        }
        let mut rendered = Vec::with_capacity(self.messages.len());
        for (index, (role, message)) in self.messages.iter().enumerate() {
            let failed = |e: minijinja::Error| PromptError::Render { index, message: describe(&e) };
            let text = match message {
                Message::Fixed(text) => Cow::Borrowed(text.as_str()),
                Message::Template(name) => {
                    let template = self.environment.get_template(name).map_err(failed)?;
                    let values = minijinja::value::Serde(variables);
                    Cow::Owned(template.render(values).map_err(failed)?)
                }
            };
            rendered.push((*role, text));
        }
        Ok(rendered)
    }

    /// Whether answers are checked against a JSON Schema.
    pub fn checks_answers(&self) -> bool {
        self.response.is_some()
    }

    /// Whether `answer` is JSON that matches the response format; true without one.
    pub fn accepts(&self, answer: &str) -> bool {
        let Some(validator) = &self.response else { return true };
        serde_json::from_str::<Value>(answer).is_ok_and(|value| validator.is_valid(&value))
    }
}

fn schema(
    field: &'static str,
    schema: Option<&Map<String, Value>>,
) -> Result<Option<Validator>, PromptError> {
    let Some(schema) = schema else { return Ok(None) };
    jsonschema::validator_for(&Value::Object(schema.clone()))
        .map(Some)
        .map_err(|e| PromptError::Schema { field, message: e.to_string() })
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
    error.detail().map_or_else(|| format!("{}{line}", error.kind()), |d| format!("{d}{line}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> Result<Template, PromptError> {
        Template::compile(&serde_json::from_value(value).unwrap())
    }

    fn greeting() -> Value {
        json!({
            "prompt": "p",
            "messages": [{"role": "system", "content": "About {{ product }}."}, {"role": "user", "content": "{{ question }}"}],
            "variables": {"type": "object", "required": ["product"], "properties": {"product": {"type": "string"}}},
            "responseFormat": {"type": "object", "required": ["answer"]},
        })
    }

    #[test]
    fn messages_are_rendered_in_order_without_escaping() {
        let template = template(greeting()).unwrap();
        let rendered = template.render(&json!({"product": "a < b", "question": "why?"})).unwrap();
        assert_eq!(rendered, [(Role::System, "About a < b.".into()), (Role::User, "why?".into())]);
    }

    #[test]
    fn an_undefined_variable_is_an_error_that_names_its_message() {
        let error = template(greeting()).unwrap().render(&json!({"product": "x"})).unwrap_err();
        assert_eq!(error.reason(), "RenderFailed");
        assert!(error.to_string().contains("message 1"), "{error}");
    }

    #[test]
    fn inputs_that_do_not_match_name_the_field() {
        let error = template(greeting()).unwrap().render(&json!({"product": 7})).unwrap_err();
        assert_eq!(error.param(), "serinus.variables.product");
        let error = template(greeting()).unwrap().render(&json!({})).unwrap_err();
        assert!(error.to_string().contains("product"), "{error}");
    }

    #[test]
    fn a_broken_template_or_schema_is_found_when_compiling() {
        let mut broken = greeting();
        broken["messages"][1]["content"] = json!("{{ question");
        assert!(template(broken).unwrap_err().to_string().contains("spec.messages[1]"));
        let mut broken = greeting();
        broken["variables"] = json!({"type": 5});
        assert_eq!(template(broken).unwrap_err().reason(), "InvalidSchema");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let endless = json!({"prompt": "p", "messages": [{"role": "user",
            "content": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"}]});
        assert_eq!(
            template(endless).unwrap().render(&json!({})).unwrap_err().reason(),
            "RenderFailed"
        );
    }

    #[test]
    fn answers_are_checked_against_the_response_format() {
        let template = template(greeting()).unwrap();
        assert!(template.accepts(r#"{"answer": 1}"#));
        assert!(!template.accepts(r#"{"other": 1}"#) && !template.accepts("no json"));
    }
}
