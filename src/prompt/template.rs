//! A prompt, compiled once and rendered for every request.

use std::{
    borrow::Cow,
    io,
    sync::{Arc, LazyLock},
};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, value::Serde};
use serde_json::{Map, Value};

use super::{plain::Plain, schema::Schema, tools::Tools};
use crate::api::{
    PromptVersionSpec,
    prompt_version::{self, Role},
};

/// Rendering stops after so many template instructions: a template can loop.
const FUEL: u64 = 1_000_000;

/// So many bytes, without its texts, one tag of a template may have: the engine reads a chain of
/// operators by recursion, and works out what is constant in it.
const LONGEST_TAG: usize = 2_000;
/// The messages of a prompt are at most so long, filled in.
const LARGEST: usize = 32 << 20;

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
    /// A message uses variables that the schema does not name.
    #[error(
        "spec.messages[{index}].content uses {names}, which spec.variables does not declare: add \
         what is missing to spec.variables.properties, or correct the name (declared: {declared})"
    )]
    Undeclared {
        /// Which message, from 0.
        index: usize,
        /// The variables.
        names: String,
        /// Those that are declared.
        declared: String,
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
            Self::Undeclared { .. } => "UndeclaredVariable",
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

/// Fills in what names no template.
static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(engine);

fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    engine.set_fuel(Some(FUEL));
    engine
}

/// A compiled prompt.
#[derive(Debug)]
pub struct Template {
    /// Holds the messages that are templates, if there are any.
    environment: Option<Box<Environment<'static>>>,
    messages: Vec<(Role, Message)>,
    variables: Option<Arc<Schema>>,
    response: Option<Arc<Schema>>,
    tools: Tools,
}

#[derive(Debug)]
enum Message {
    /// Filled in without the engine.
    Plain(Plain),
    /// The name of its template in the environment.
    Template(String),
}

impl Template {
    /// Compiles messages and schemas.
    ///
    /// # Errors
    /// The first message or schema that is not valid.
    pub fn compile(prompt: &PromptVersionSpec) -> Result<Self, PromptError> {
        let mut environment = None;
        let mut messages = Vec::with_capacity(prompt.messages.len());
        for (index, message) in prompt.messages.iter().enumerate() {
            let failed =
                |e: minijinja::Error| PromptError::Template { index, message: describe(&e) };
            short_tags(&message.content)
                .map_err(|message| PromptError::Template { index, message })?;
            let name = index.to_string();
            let template = ENGINE.template_from_named_str(&name, &message.content);
            let template = template.map_err(failed)?;
            let plain = Plain::of(&message.content, |values| template.render(Serde(values)).ok());
            let message = (
                message.role,
                match plain {
                    Some(plain) => Message::Plain(plain),
                    None => {
                        let content = message.content.clone();
                        let environment = environment.get_or_insert_with(|| Box::new(engine()));
                        environment.add_template_owned(name.clone(), content).map_err(failed)?;
                        Message::Template(name)
                    }
                },
            );
            messages.push(message);
        }
        Ok(Self {
            environment,
            messages,
            variables: schema("variables", prompt.variables.as_ref())?,
            response: schema("responseFormat", response_format(prompt)?)?,
            tools: Tools::of(&prompt.tools),
        })
    }

    /// Checks the inputs and renders every message.
    ///
    /// # Errors
    /// Names the variable at fault.
    pub fn render(&self, variables: &Value) -> Result<Vec<(Role, Cow<'_, str>)>, PromptError> {
        if let Some(schema) = &self.variables {
            let fits = schema.check(variables).map_err(|e| PromptError::Variables {
                path: String::new(),
                message: format!("{e}: send fewer or shorter values"),
            })?;
            if !fits {
                return Err(schema.describe(variables));
            }
        }
        let mut rendered = Vec::with_capacity(self.messages.len());
        let mut left = LARGEST;
        for (index, (role, message)) in self.messages.iter().enumerate() {
            let failed = |e: minijinja::Error| PromptError::Render { index, message: describe(&e) };
            let text = match message {
                Message::Plain(plain) => match plain.fill(variables, left) {
                    Some(text) => text,
                    None => {
                        let name = index.to_string();
                        let template = ENGINE.template_from_named_str(&name, plain.source());
                        let text = template.and_then(|template| fill(&template, variables, left));
                        Cow::Owned(text.map_err(failed)?)
                    }
                },
                Message::Template(name) => {
                    let engine = self.environment.as_deref().unwrap_or(&ENGINE);
                    let template = engine.get_template(name).map_err(failed)?;
                    Cow::Owned(fill(&template, variables, left).map_err(failed)?)
                }
            };
            left = left.saturating_sub(text.len());
            rendered.push((*role, text));
        }
        Ok(rendered)
    }

    /// The tools that the model may call.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Whether answers are checked against a JSON Schema.
    pub fn checks_answers(&self) -> bool {
        self.response.is_some()
    }

    /// Whether `answer` is JSON that matches the response format; true without one. What
    /// takes too long to find out is no match.
    pub fn accepts(&self, answer: &str) -> bool {
        let Some(schema) = &self.response else { return true };
        serde_json::from_str::<Value>(answer).is_ok_and(|value| schema.check(&value) == Ok(true))
    }
}

/// Keywords by which a schema may name more variables than its properties do.
const OPEN: [&str; 11] = [
    "$ref",
    "$dynamicRef",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "patternProperties",
    "dependentSchemas",
    "dependencies",
    "propertyNames",
    "unevaluatedProperties",
];

/// Compiles a prompt, and finds variables that it uses and does not declare: a request
/// would fail on each of them. Only of a prompt that declares some, and only before it is
/// released: a saved copy serves as it did.
///
/// # Errors
/// What keeps it from being released.
pub fn check(prompt: &PromptVersionSpec) -> Result<(), PromptError> {
    Template::compile(prompt)?;
    let Some(schema) = &prompt.variables else { return Ok(()) };
    let Some(Value::Object(properties)) = schema.get("properties") else { return Ok(()) };
    let more = schema.get("additionalProperties").is_some_and(|more| *more != Value::Bool(false));
    if properties.is_empty() || more || OPEN.iter().any(|word| schema.contains_key(*word)) {
        return Ok(());
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: Vec<&str> = required.filter_map(Value::as_str).collect();
    let is_known = |name: &str| {
        properties.contains_key(name)
            || required.contains(&name)
            || ENGINE.globals().any(|(global, _)| global == name)
    };
    for (index, message) in prompt.messages.iter().enumerate() {
        // It has compiled before.
        let Ok(template) = ENGINE.template_from_named_str("message", &message.content) else {
            continue;
        };
        let used = template.undeclared_variables(false);
        let mut names: Vec<&str> =
            used.iter().map(String::as_str).filter(|name| !is_known(name)).collect();
        if !names.is_empty() {
            names.sort_unstable();
            let declared: Vec<&str> = properties.keys().map(String::as_str).collect();
            let (names, declared) = (names.join(" and "), declared.join(", "));
            return Err(PromptError::Undeclared { index, names, declared });
        }
    }
    Ok(())
}

/// Fills in a template, up to so many bytes.
fn fill(
    template: &minijinja::Template<'_, '_>,
    variables: &Value,
    most: usize,
) -> Result<String, minijinja::Error> {
    let mut filled = Bounded { bytes: vec![], most, full: false };
    let told = template.render_captured_to(Serde(variables), &mut filled).map(|_| ());
    let of = |detail| minijinja::Error::new(ErrorKind::InvalidOperation, detail);
    if filled.full {
        let most = LARGEST >> 20;
        return Err(of(format!("filled in, the prompt has more than {most} MiB: send less")));
    }
    told?;
    String::from_utf8(filled.bytes).map_err(|_| of("what it writes is no text".to_owned()))
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most.saturating_sub(self.bytes.len()) {
            self.full = true;
            return Err(io::Error::other("full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether no tag of a template is longer than [`LONGEST_TAG`]; why not.
fn short_tags(source: &str) -> Result<(), String> {
    let mut rest = source;
    while let Some(open) = rest.find('{') {
        let tag = &rest[open..];
        let Some(end) = ["{{", "{%", "{#"].iter().position(|mark| tag.starts_with(mark)) else {
            rest = &rest[open + 1..];
            continue;
        };
        let inside = &tag[2..];
        let close = ["}}", "%}", "#}"][end];
        let (length, outside) = match close {
            "#}" => (0, inside.find(close).map_or(inside.len(), |at| at + 2)),
            _ => tag_length(inside, close),
        };
        if length > LONGEST_TAG {
            let line = source[..source.len() - inside.len()].matches('\n').count() + 1;
            return Err(format!(
                "the tag in line {line} has more than {LONGEST_TAG} bytes beside its texts: \
                 divide it"
            ));
        }
        rest = &inside[outside..];
        let word = inside[..outside].trim_start_matches(['-', '+']).trim_start();
        if close == "%}" && word.starts_with("raw") {
            rest = rest.find("endraw").map_or("", |at| &rest[at..]);
        }
    }
    Ok(())
}

/// How many bytes a tag has beside its texts, and how many with its end.
fn tag_length(inside: &str, close: &str) -> (usize, usize) {
    let (mut length, mut text, mut escaped) = (0, None, false);
    for (at, byte) in inside.bytes().enumerate() {
        match text {
            Some(quote) => {
                if !escaped && byte == quote {
                    text = None;
                }
                escaped = !escaped && byte == b'\\';
            }
            None if inside.as_bytes()[at..].starts_with(close.as_bytes()) => {
                return (length, at + close.len());
            }
            None => {
                text = matches!(byte, b'"' | b'\'').then_some(byte);
                escaped = false;
                length += 1;
            }
        }
    }
    (length, inside.len())
}

fn schema(
    field: &'static str,
    schema: Option<&Map<String, Value>>,
) -> Result<Option<Arc<Schema>>, PromptError> {
    let failed = |message| PromptError::Schema { field, message };
    schema.map(Schema::of).transpose().map_err(failed)
}

/// The schema of the answer. What is said beside it (`strict`) is no keyword of schemas,
/// which leave alone what they do not know.
fn response_format(prompt: &PromptVersionSpec) -> Result<Option<&Map<String, Value>>, PromptError> {
    let format = prompt.response_format.as_ref();
    match format.and_then(|format| format.get(prompt_version::STRICT)) {
        None | Some(Value::Bool(_)) => Ok(format),
        Some(other) => {
            let message = format!("strict must be true or false and is {other}");
            Err(PromptError::Schema { field: "responseFormat", message })
        }
    }
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
    error.detail().map_or_else(|| format!("{}{line}", error.kind()), |d| format!("{d}{line}"))
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> Result<Template, PromptError> {
        Template::compile(&serde_json::from_value(value).unwrap())
    }

    fn one(content: &str) -> Value {
        json!({"prompt": "p", "messages": [{"role": "user", "content": content}]})
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
    fn a_tag_that_is_long_is_refused_before_the_engine_reads_it() {
        let of = |content: &str| template(one(content)).map(|_| ());
        for long in [
            format!("{{{{ {}1 }}}}", "-".repeat(20_000)),
            format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
            format!("{{{{ 1{} }}}}", "~1".repeat(30_000)),
            format!("{{{{ 2{} }}}}", "**2".repeat(18_000)),
            format!("{{% if {}1 %}}x{{% endif %}}", "-".repeat(30_000)),
            format!("{{% for i in range({}1) %}}{{% endfor %}}", "-".repeat(30_000)),
            format!("{{{{ {}", "-".repeat(30_000)),
            format!("{{% raw %}}{{% endraw %}}\n{{{{- {}1 -}}}}", "not ".repeat(9_000)),
            format!("{{% if true %}}\n{{{{ \"}}}}\"{} }}}}", "~1".repeat(2_000)),
        ] {
            let error = of(&long).unwrap_err().to_string();
            assert!(error.contains("has more than 2000 bytes beside its texts"), "{error}");
            assert!(error.len() < 300, "{error}");
        }
        let text = "x".repeat(9_000);
        for fine in [
            format!("{{{{ {}1 }}}}", "-".repeat(1_900)),
            format!("{{{{ 2{} }}}}", "**1".repeat(600)),
            format!(
                "{{{{ \"{text}\" }}}} {{# {text} #}} {{% raw %}}{{{{ {text} }}}}{{% endraw %}}"
            ),
            format!("{text} {{ {text} }} {{{{ 'it\\'s {text}' }}}}"),
        ] {
            assert_eq!(of(&fine).map_err(|e| e.to_string()), Ok(()), "{}", &fine[..60]);
        }
    }

    #[test]
    fn what_is_filled_in_is_bounded_by_what_comes_out() {
        let long = json!({"a": "x".repeat(4 << 20)});
        for content in ["{{ a }} ".repeat(1_000), "{% if true %}{{ a }}{% endif %}".repeat(1_000)] {
            let template = template(one(&content)).unwrap();
            let error = template.render(&long).unwrap_err().to_string();
            assert!(error.contains("more than 32 MiB"), "{error}");
            let short = json!({"a": "x".repeat(10 << 10)});
            let text = &template.render(&short).unwrap()[0].1;
            assert!(text.len() >= 1_000 * (10 << 10));
        }
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
    fn messages_are_what_the_engine_makes_of_them() {
        let mut engine = Environment::new();
        engine.set_undefined_behavior(UndefinedBehavior::Strict);
        engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let pieces = [
            "{{ a }}",
            "{{b}}",
            "{{ a",
            "}}",
            "{",
            "}",
            "{{",
            "\n",
            "\r\n",
            " ",
            "words",
            "é{",
            "{{ true }}",
            "{{ none }}",
            "{{ range }}",
            "{{ not }}",
            "{{ 7 }}",
            "{{- a -}}",
            "{{ a.b }}",
            "{% raw %}",
            "{% endraw %}",
            "{# c #}",
            "{{ \n a \n }}",
            "{{ a|upper }}",
            "{{ missing }}",
            r#"{"a": "{{ a }}"}"#,
        ];
        let values = [
            json!({"a": "A<", "b": "{{ a }}"}),
            json!({"a": 7, "b": [1, "x"]}),
            json!({"a": null, "b": true, "range": "r", "true": "t"}),
            json!({"a": {"b": "c"}}),
        ];
        let mut rng = StdRng::seed_from_u64(1);
        let (mut plain, mut rendered) = (0, 0);
        for _ in 0..20_000 {
            let count = rng.random_range(0..5);
            let source: String =
                (0..count).map(|_| pieces[rng.random_range(0..pieces.len())]).collect();
            let prompt = json!({"prompt": "p", "messages": [{"role": "user", "content": source}]});
            let expected = engine.template_from_str(&source);
            let template = template(prompt);
            assert_eq!(template.is_ok(), expected.is_ok(), "{source:?}");
            let (Ok(template), Ok(expected)) = (template, expected) else { continue };
            plain += usize::from(matches!(template.messages[0].1, Message::Plain(_)));
            for values in &values {
                let ours = template.render(values).ok().map(|m| m[0].1.to_string());
                assert_eq!(ours, expected.render(Serde(values)).ok(), "{source:?} with {values}");
                rendered += usize::from(ours.is_some());
            }
        }
        assert!(plain > 2_000 && rendered > 5_000, "{plain} without the engine, {rendered} filled");
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
    fn a_variable_that_is_not_declared_is_found_before_the_release() {
        let check = |messages: &str, variables: Value| {
            let prompt = json!({"prompt": "p", "messages": [{"role": "user", "content": messages}],
                "variables": variables});
            check(&serde_json::from_value(prompt).unwrap()).map_err(|e| e.to_string())
        };
        let declares = json!({"type": "object", "required": ["b"], "properties": {"a": {}}});
        for fine in [
            "{{ a }} {{ b }} {{ a.c }} {{ a['d'] }}",
            "{% for x in a %}{{ loop.index }}{{ x }}{% endfor %}{% set y = a %}{{ y }}",
            "{% for i in range(3) %}{{ i }}{% endfor %}{{ dict(a=1) }}",
            "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(a) }}",
            "{% raw %}{{ c }}{% endraw %}{# c #} c",
        ] {
            assert_eq!(check(fine, declares.clone()), Ok(()), "{fine}");
        }
        for (wrong, name) in [
            ("{{ qestion }}", "qestion"),
            ("{{ A }}", "A"),
            ("{% if c is defined %}{{ c }}{% endif %}", "c"),
            ("{{ a }}{{ d.e | upper }}", "d"),
            ("{% for x in xs %}{{ x }}{% endfor %}", "xs"),
        ] {
            let message = check(wrong, declares.clone()).unwrap_err();
            let says = format!("spec.messages[0].content uses {name}, which");
            assert!(message.starts_with(&says) && message.contains("declared: a"), "{message}");
        }
        for open in [
            json!({"type": "object"}),
            json!({"properties": {}}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"properties": {"a": {}}, "allOf": [{"properties": {"z": {}}}]}),
        ] {
            assert_eq!(check("{{ z }}", open.clone()), Ok(()), "{open}");
        }
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
