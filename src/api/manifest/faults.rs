//! What is wrong with a document, in words: the place, what is there, and what may be.

use jsonschema::{ValidationError, error::ValidationErrorKind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What does not match a schema, and what would. Without `quotes`, it holds no value.
pub fn of(error: &ValidationError<'_>, quotes: bool) -> String {
    let found = || if quotes { error.instance().to_string() } else { "the value".to_owned() };
    match error.kind() {
        // The usual text names two of them, and counts the others.
        ValidationErrorKind::Enum { options } => one_of(&found(), options),
        // The alternatives are known to whoever wrote the schema: the words are what is asked for.
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let words = context.iter().flatten().find_map(|inner| match inner.kind() {
                ValidationErrorKind::Enum { options }
                    if inner.instance_path() == error.instance_path() =>
                {
                    Some(one_of(&found(), options))
                }
                _ => None,
            });
            words.unwrap_or_else(|| usual(error, quotes))
        }
        _ => usual(error, quotes),
    }
}

/// Where it does not match, as fields with dots between them; empty for the whole.
pub fn place(error: &ValidationError<'_>) -> String {
    error.instance_path().to_string().trim_start_matches('/').replace('/', ".")
}

fn usual(error: &ValidationError<'_>, quotes: bool) -> String {
    if quotes { error.to_string() } else { error.masked().to_string() }
}

fn one_of(found: &str, options: &Value) -> String {
    let all: Vec<String> =
        options.as_array().into_iter().flatten().map(ToString::to_string).collect();
    match all.split_last() {
        None => format!("{found} is not allowed, and nothing is"),
        Some((only, [])) => format!("{found} is not {only}"),
        Some((last, before)) => format!("{found} is not one of {} or {last}", before.join(", ")),
    }
}

/// Gives a value its type. What is wrong is told with its place.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if path == "." { error.to_string() } else { format!("{path}: {error}") }
    })
}

/// What is wrong with the metadata of an object of any kind.
pub(super) fn metadata(value: &Value) -> Result<(), String> {
    let metadata = match value.get("metadata") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(metadata)) => metadata,
        Some(other) => return Err(format!("metadata is {}: write name: NAME below it", a(other))),
    };
    for field in ["name", "namespace"] {
        match metadata.get(field) {
            None | Some(Value::Null) => {}
            Some(other) => text(&format!("metadata.{field}"), other, true, "")?,
        }
    }
    for field in ["labels", "annotations"] {
        texts(&format!("metadata.{field}"), metadata.get(field), |place, value| {
            text(place, value, true, "")
        })?;
    }
    Ok(())
}

/// What is wrong with the fields of a Secret, of which no value is told.
pub(super) fn secret(value: &Value) -> Result<(), String> {
    texts("stringData", value.get("stringData"), |place, value| {
        let routes = place == "stringData.routes";
        text(place, value, false, if routes { " with commas between the routes" } else { "" })
    })?;
    texts("data", value.get("data"), |place, value| {
        text(place, value, false, " in base64, or a plain one in stringData")?;
        let bytes = serde_json::from_value::<k8s_openapi::ByteString>(value.clone());
        bytes.map(drop).map_err(|_| {
            format!("{place} is not base64: write it in base64, or as a plain text in stringData")
        })
    })
}

/// Checks each field of an object, if there is one.
fn texts(
    place: &str,
    fields: Option<&Value>,
    check: impl Fn(&str, &Value) -> Result<(), String>,
) -> Result<(), String> {
    let fields: &Map<String, Value> = match fields {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(fields)) => fields,
        Some(other) => {
            return Err(format!("{place} is {}: write NAME: \"TEXT\" below it", a(other)));
        }
    };
    fields.iter().try_for_each(|(name, value)| check(&format!("{place}.{name}"), value))
}

fn text(place: &str, value: &Value, quotes: bool, how: &str) -> Result<(), String> {
    let what = match value {
        Value::String(_) => return Ok(()),
        Value::Bool(_) | Value::Number(_) if quotes => {
            format!("and must be a text: put it in quotes, as \"{value}\"")
        }
        Value::Bool(_) | Value::Number(_) => "and must be a text: put it in quotes".to_owned(),
        _ => format!("and must be a text: write one{how}"),
    };
    Err(format!("{place} is {} {what}", a(value)))
}

fn a(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn said(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_secret_that_can_not_be_read_names_the_field_and_no_value() {
        let secret = |rest: &str| {
            said(&format!("apiVersion: v1\nkind: Secret\nmetadata:\n  name: web\n{rest}\n"))
        };
        for (rest, told) in [
            (
                "  labels: {serinus.dev/client-key: true}",
                "metadata.labels.serinus.dev/client-key is true or false and must be a text: put it \
                 in quotes, as \"true\"",
            ),
            ("  annotations: [a]", "metadata.annotations is a list: write NAME: \"TEXT\" below it"),
            (
                "stringData: {key: hidden-hidden, routes: [hidden]}",
                "stringData.routes is a list and must be a text: write one with commas between the \
                 routes",
            ),
            ("stringData: {key: 4711}", "stringData.key is a number and must be a text: put it in"),
            ("stringData: {key: }", "stringData.key is empty and must be a text: write one"),
            ("stringData: hidden", "stringData is a text: write NAME: \"TEXT\" below it"),
            ("data: {token: \"hidden?\"}", "data.token is not base64: write it in base64, or as a"),
            ("data: {token: 4711}", "data.token is a number and must be a text"),
            ("data: {token: /w==}", "data.token is not text"),
            ("immutable: hidden", "immutable: this field of a Secret is not as Kubernetes has it"),
        ] {
            let error = secret(rest);
            assert!(error.starts_with("Secret web: ") && error.contains(told), "{rest}: {error}");
            assert!(!error.contains("hidden") && !error.contains("4711"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_names_its_place_and_all_that_is_allowed() {
        let of = |kind: &str, rest: &str| {
            said(&format!(
                "apiVersion: serinus.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\n{rest}"
            ))
        };
        let prompt = |role: &str, more: &str| {
            let messages = format!("[{{role: {role}, content: x}}]");
            of("PromptVersion", &format!("spec: {{prompt: p, messages: {messages}{more}}}\n"))
        };
        let roles =
            "\"assistent\" is not one of \"system\", \"developer\", \"user\" or \"assistant\"";
        for (error, told) in [
            (prompt("assistent", ""), format!("spec.messages.0.role: {roles}")),
            (
                prompt("user", ", parameters: {max_tokens: 1}"),
                "spec.parameters.max_tokens: unknown field `max_tokens`, expected one of \
                 `temperature`"
                    .to_owned(),
            ),
            (
                of("CanaryPolicy", "spec: {steps: [{setWeight: 20}]}\n"),
                "spec.steps[0].setWeight: unknown field `setWeight`, expected one of `weight`"
                    .into(),
            ),
        ] {
            assert!(error.contains(&told), "{error}");
        }
        let named =
            |metadata: &str| said(&format!("apiVersion: v1\nkind: Secret\nmetadata: {metadata}\n"));
        assert!(
            named("{name: 12}").contains("metadata.name is a number"),
            "{}",
            named("{name: 12}")
        );
        assert!(named("web").contains("metadata is a text: write name: NAME"), "{}", named("web"));
        assert!(said("a: 1\n").contains("has no apiVersion and no kind"), "{}", said("a: 1\n"));
    }
}
