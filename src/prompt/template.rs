//! A prompt, compiled once and rendered for every request.

use std::{borrow::Cow, sync::Arc};

use minijinja::value::Serde;
use serde_json::{Map, Value};

use super::{
    engine::{self, ENGINE, LARGEST, Work, describe},
    plain::Plain,
    schema::{self, Schema},
    tags::short_tags,
    tools::Tools,
};
use crate::api::{
    PromptVersionSpec,
    prompt_version::{self, Role},
};

/// A schema may be nested so deep. Snapshots and states have it a few levels deeper, and of JSON 128
/// are read.
const DEEPEST: usize = 100;

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
    /// Something lies too deep to be kept in a snapshot or a state and read again.
    #[error(
        "spec.{0} is nested deeper than {DEEPEST} levels: write it flatter, a schema with $defs and \
         $ref"
    )]
    TooDeep(&'static str),
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
            Self::Schema { .. } | Self::TooDeep(_) => "InvalidSchema",
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

/// A compiled prompt.
#[derive(Debug)]
pub struct Template {
    messages: Vec<(Role, Message)>,
    variables: Option<Arc<Schema>>,
    response: Option<Arc<Schema>>,
    tools: Tools,
}

#[derive(Debug)]
enum Message {
    /// Filled in without the engine.
    Plain(Plain),
    /// A template's source.
    Template(Box<str>),
}

/// A message of one request.
#[derive(Debug, PartialEq, Eq)]
pub enum Filled<'a> {
    /// Its text.
    Text(Cow<'a, str>),
    /// The source of a template, which an engine has to fill in.
    Template(&'a str),
}

impl Template {
    /// Compiles messages and schemas.
    ///
    /// # Errors
    /// The first message or schema that is not valid.
    pub fn compile(prompt: &PromptVersionSpec) -> Result<Self, PromptError> {
        let mut messages = Vec::with_capacity(prompt.messages.len());
        for (index, message) in prompt.messages.iter().enumerate() {
            let source = &message.content;
            let failed = |message| PromptError::Template { index, message };
            short_tags(source).map_err(failed)?;
            let template = ENGINE.template_from_named_str("message", source);
            let template = template.map_err(|e| failed(describe(&e)))?;
            let plain = Plain::of(source, |values| template.render(Serde(values)).ok());
            let message =
                plain.map_or_else(|| Message::Template(source.as_str().into()), Message::Plain);
            messages.push((prompt.messages[index].role, message));
        }
        Ok(Self {
            messages,
            variables: schema("variables", prompt.variables.as_ref())?,
            response: schema("responseFormat", response_format(prompt)?)?,
            tools: Tools::of(&prompt.tools),
        })
    }

    /// Checks the inputs and fills in every message that is no template.
    ///
    /// # Errors
    /// Names the variable at fault.
    pub fn fill(&self, variables: &Value) -> Result<Vec<(Role, Filled<'_>)>, PromptError> {
        if let Some(schema) = &self.variables {
            let fits = schema.check(variables).map_err(|e| PromptError::Variables {
                path: String::new(),
                message: format!("{e}: send fewer or shorter values"),
            })?;
            if !fits {
                return Err(schema.describe(variables));
            }
        }
        let mut filled = Vec::with_capacity(self.messages.len());
        let mut left = LARGEST;
        for (index, (role, message)) in self.messages.iter().enumerate() {
            let message = match message {
                Message::Plain(plain) => {
                    let text = in_place(plain, variables, left)
                        .map_err(|e| PromptError::Render { index, message: describe(&e) })?;
                    left = left.saturating_sub(text.len());
                    Filled::Text(text)
                }
                Message::Template(source) => Filled::Template(source),
            };
            filled.push((*role, message));
        }
        Ok(filled)
    }

    /// How many bytes [`Self::fill`] makes. Where a variable that is no text is put between words,
    /// as many as it may.
    pub fn length(&self, variables: &Value) -> usize {
        let lengths = self.messages.iter().map(|(_, message)| match message {
            Message::Plain(plain) => plain.length(variables),
            Message::Template(_) => 0,
        });
        lengths.fold(0_usize, usize::saturating_add).min(LARGEST)
    }

    /// What an engine has yet to do of messages that were filled in, if anything.
    pub fn left<'a>(messages: &[(Role, Filled<'a>)], variables: &'a Value) -> Option<Work<'a>> {
        let (mut templates, mut most) = (vec![], LARGEST);
        for (index, (_, message)) in messages.iter().enumerate() {
            match message {
                Filled::Text(text) => most = most.saturating_sub(text.len()),
                Filled::Template(source) => templates.push((index, Cow::Borrowed(*source))),
            }
        }
        let variables = Cow::Borrowed(variables);
        (!templates.is_empty()).then_some(Work { templates, variables, most })
    }

    /// All texts, with what an engine has filled in.
    pub fn whole<'a>(
        messages: Vec<(Role, Filled<'a>)>,
        texts: Vec<String>,
    ) -> Vec<(Role, Cow<'a, str>)> {
        let mut texts = texts.into_iter();
        let mut text = |filled| match filled {
            Filled::Text(text) => text,
            Filled::Template(_) => Cow::Owned(texts.next().unwrap_or_default()),
        };
        messages.into_iter().map(|(role, filled)| (role, text(filled))).collect()
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
    /// takes too much to find out is no match.
    pub fn accepts(&self, answer: &str) -> bool {
        let Some(schema) = &self.response else { return true };
        schema::read(answer).is_some_and(|value| schema.check(&value) == Ok(true))
    }
}

/// Names between words, filled in here: the engine writes what is no text.
fn in_place<'a>(
    plain: &'a Plain,
    variables: &Value,
    most: usize,
) -> Result<Cow<'a, str>, minijinja::Error> {
    match plain.fill(variables, most) {
        Some(text) => Ok(text),
        None => {
            let template = ENGINE.template_from_named_str("message", plain.source())?;
            engine::fill(&template, variables, most).map(Cow::Owned)
        }
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

/// Compiles a prompt, and finds what requests would fail on: filters, tests, functions and
/// methods that do not exist, and variables that it uses and does not declare, of a prompt that
/// declares some. Only before it is released: a saved copy serves as it did.
///
/// # Errors
/// What keeps it from being released.
pub fn check(prompt: &PromptVersionSpec) -> Result<(), PromptError> {
    Template::compile(prompt)?;
    let fields = [("variables", &prompt.variables), ("responseFormat", &prompt.response_format)];
    for (field, schema) in fields {
        if schema.iter().flat_map(|schema| schema.values()).any(|part| depth(part) >= DEEPEST) {
            return Err(PromptError::TooDeep(field));
        }
    }
    // One that an earlier version has released goes on.
    if prompt.response_format.as_ref().is_some_and(is_half_wrapped) {
        let message = WRAPPED.to_owned();
        return Err(PromptError::Schema { field: "responseFormat", message });
    }
    for (index, message) in prompt.messages.iter().enumerate() {
        // It has compiled before.
        let template = ENGINE.template_from_named_str("message", &message.content);
        if let Some(message) = template.ok().and_then(|template| engine::unknown(&template)) {
            return Err(PromptError::Template { index, message });
        }
    }
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

/// Lists and objects within each other.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fn schema(
    field: &'static str,
    schema: Option<&Map<String, Value>>,
) -> Result<Option<Arc<Schema>>, PromptError> {
    let failed = |message| PromptError::Schema { field, message };
    schema.map(Schema::of).transpose().map_err(failed)
}

/// OpenAI's `response_format` in place of what it wraps.
const WRAPPED: &str = "it is wrapped as OpenAI's response_format is: give the schema itself, which \
                       is in schema, and strict beside its keywords";
/// Without any of these, an object with `schema` in it is none itself.
const KEYWORDS: [&str; 10] =
    ["type", "properties", "required", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "items"];

/// Whether only the outer part of OpenAI's `response_format` was taken off. What is left is a
/// schema that accepts everything.
fn is_half_wrapped(format: &Map<String, Value>) -> bool {
    format.get("schema").is_some_and(Value::is_object)
        && !KEYWORDS.iter().any(|word| format.contains_key(*word))
}

/// The schema of the answer. What is said beside it (`strict`) is no keyword of schemas,
/// which leave alone what they do not know.
fn response_format(prompt: &PromptVersionSpec) -> Result<Option<&Map<String, Value>>, PromptError> {
    let format = prompt.response_format.as_ref();
    let failed = |message: String| PromptError::Schema { field: "responseFormat", message };
    match format.and_then(|format| format.get("type")).and_then(Value::as_str) {
        Some("json_schema") => return Err(failed(WRAPPED.to_owned())),
        Some(kind @ ("json_object" | "text")) => {
            return Err(failed(format!(
                "type: {kind} is of OpenAI's response_format, and this is the schema itself: for any \
                 JSON object write type: object, for text leave responseFormat out"
            )));
        }
        _ => {}
    }
    match format.and_then(|format| format.get(prompt_version::STRICT)) {
        None | Some(Value::Bool(_)) => Ok(format),
        Some(other) => Err(failed(format!("strict must be true or false and is {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, UndefinedBehavior};
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use serde_json::json;

    use super::*;
    use crate::prompt::engine::{Done, Engine};

    fn template(value: Value) -> Result<Template, PromptError> {
        Template::compile(&serde_json::from_value(value).unwrap())
    }

    fn render<'a>(
        template: &'a Template,
        variables: &Value,
    ) -> Result<Vec<(Role, Cow<'a, str>)>, PromptError> {
        let filled = template.fill(variables)?;
        let texts = Template::left(&filled, variables)
            .map_or(Done::Texts(vec![]), |work| Engine::default().fill_in(&work));
        match texts {
            Done::Texts(texts) => Ok(Template::whole(filled, texts)),
            Done::Failed { index, message } => Err(PromptError::Render { index, message }),
            Done::OutOfFuel => {
                Err(PromptError::Render { index: 0, message: "out of fuel".to_owned() })
            }
        }
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
    fn what_is_filled_in_is_bounded_by_what_comes_out() {
        let long = json!({"a": "x".repeat(4 << 20)});
        for content in ["{{ a }} ".repeat(1_000), "{% if true %}{{ a }}{% endif %}".repeat(1_000)] {
            let template = template(one(&content)).unwrap();
            let error = render(&template, &long).unwrap_err().to_string();
            assert!(error.contains("more than 32 MiB"), "{error}");
            let short = json!({"a": "x".repeat(10 << 10)});
            let text = &render(&template, &short).unwrap()[0].1;
            assert!(text.len() >= 1_000 * (10 << 10));
        }
    }

    #[test]
    fn messages_are_rendered_in_order_without_escaping() {
        let template = template(greeting()).unwrap();
        let values = json!({"product": "a < b", "question": "why?"});
        let rendered = render(&template, &values).unwrap();
        assert_eq!(rendered, [(Role::System, "About a < b.".into()), (Role::User, "why?".into())]);
    }

    #[test]
    fn an_undefined_variable_is_an_error_that_names_its_message() {
        let error = render(&template(greeting()).unwrap(), &json!({"product": "x"})).unwrap_err();
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
                let ours = render(&template, values).ok().map(|m| m[0].1.to_string());
                assert_eq!(ours, expected.render(Serde(values)).ok(), "{source:?} with {values}");
                rendered += usize::from(ours.is_some());
            }
        }
        assert!(plain > 2_000 && rendered > 5_000, "{plain} without the engine, {rendered} filled");
    }

    #[test]
    fn inputs_that_do_not_match_name_the_field() {
        let error = render(&template(greeting()).unwrap(), &json!({"product": 7})).unwrap_err();
        assert_eq!(error.param(), "serinus.variables.product");
        let error = render(&template(greeting()).unwrap(), &json!({})).unwrap_err();
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
    fn a_name_that_the_engine_does_not_know_is_found_before_the_release() {
        let check = |content: &str| {
            check(&serde_json::from_value(one(content)).unwrap()).map_err(|e| e.to_string())
        };
        for fine in [
            "{{ a | upper | default('x') | join(', ') | tojson }}",
            "{% if a is defined and b is not none and c is divisibleby(3) %}x{% endif %}",
            "{% filter upper %}{{ a | length }}{% endfilter %}{% set b | trim %} x {% endset %}",
            "{% macro m(x) %}{{ x | first }}{% endmacro %}{{ m(a) }} a | nothing",
            "{% raw %}{{ a | nothing }}{% endraw %}{# {{ a | nothing }} #}{{ 'a | nothing' }}",
            "{{ a is in(b) }}{{ a is eq(1) }}{{ a | select('odd') | list }}",
            "{% for x in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}{% endfor %}",
            "{% set c = cycler(['a']) %}{{ c.next() }}{{ dict(a=1).a }}{{ debug() }}",
            "{{ a.upper() }}{{ a.get('x') }}{% for k, v in a.items() %}{{ k }}{% endfor %}",
            "{% macro m(x) %}{{ caller() }}{% endmacro %}{% call m(1) %}x{% endcall %}",
            "{% set f = namespace() %}{% macro m() %}{% endmacro %}{% set f.g = m %}{{ f.g() }}",
            "{% for x in a recursive %}{{ loop(x) }}{% endfor %}",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for (wrong, what) in [
            ("{{ a | uper }}", "filter named uper"),
            ("{{ a | upper | b.c }}", "filter named b.c"),
            ("{% if a is definde %}x{% endif %}", "test named definde"),
            ("{% if true %}{% else %}{{ a | no }}{% endif %}", "filter named no"),
            ("{% filter nothing %}x{% endfilter %}", "filter named nothing"),
            ("{% for x in a | no %}{{ x }}{% endfor %}", "filter named no"),
            ("{% macro m(x) %}{{ x | no }}{% endmacro %}", "filter named no"),
            ("{{ now() }}", "function named now"),
            (
                "{% if false %}{{ raise_exception('x') }}{% endif %}",
                "function named raise_exception",
            ),
            ("{{ a.toUpperCase() }}", "method named toUpperCase"),
            ("{% for k, v in a.iteritems() %}{{ k }}{% endfor %}", "method named iteritems"),
        ] {
            let message = check(wrong).unwrap_err();
            let says = "spec.messages[0].content is not a valid template: there is no ";
            assert_eq!(message.strip_prefix(says), Some(what), "{wrong}: {message}");
        }
    }

    #[test]
    fn values_are_written_as_json() {
        let template = template(one("{{ a | tojson }} {% if a %}{{ b | tojson }}{% endif %}"));
        let values = json!({"a": {"x": [1, "é\"", null, 1.5]}, "b": true});
        let rendered = render(template.as_ref().unwrap(), &values).unwrap();
        // As Python's json.dumps writes it, which Jinja uses.
        assert_eq!(rendered[0].1, r#"{"x": [1, "é\"", null, 1.5]} true"#);
    }

    #[test]
    fn texts_lists_and_objects_have_the_methods_that_python_gives_them() {
        let content = "{{ a.upper() }} {% for k, v in b.items() %}{{ k }}={{ v }} {% endfor %}\
                       {{ b.get('no', 'none') }} {{ a.split('e')[0] }}";
        let template = template(one(content)).unwrap();
        let rendered = render(&template, &json!({"a": "text", "b": {"x": 1, "y": 2}})).unwrap();
        assert_eq!(rendered[0].1, "TEXT x=1 y=2 none t");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let endless = json!({"prompt": "p", "messages": [{"role": "user",
            "content": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"}]});
        assert_eq!(
            render(&template(endless).unwrap(), &json!({})).unwrap_err().reason(),
            "RenderFailed"
        );
    }

    #[test]
    fn a_schema_that_is_not_valid_is_told_with_its_place_and_what_is_allowed() {
        let said = |format: Value| {
            let prompt = json!({"prompt": "p", "messages": [], "responseFormat": format});
            check(&serde_json::from_value(prompt).unwrap()).unwrap_err().to_string()
        };
        for (format, told) in [
            (
                json!({"type": "object", "properties": {"label": {"type": "strin"}}}),
                "properties.label.type: \"strin\" is not one of \"array\", \"boolean\", \
                 \"integer\", \"null\", \"number\", \"object\", \"string\" or a value of type \
                 array",
            ),
            (json!({"properties": {"a": {"required": "b"}}}), "properties.a.required: \"b\" is"),
            (
                json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
                "give the schema itself, which is in schema",
            ),
            (json!({"name": "x", "strict": true, "schema": {"type": "object"}}), "give the schema"),
            (json!({"type": "json_object"}), "write type: object"),
        ] {
            let error = said(format);
            assert!(
                error.starts_with("spec.responseFormat is not a valid JSON Schema: "),
                "{error}"
            );
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn answers_are_checked_against_the_response_format() {
        let template = template(greeting()).unwrap();
        assert!(template.accepts(r#"{"answer": 1}"#));
        assert!(!template.accepts(r#"{"other": 1}"#) && !template.accepts("no json"));
    }
}
