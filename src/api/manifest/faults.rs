//! What is wrong with a document, in words: the place, what is there, and what may be.

use jsonschema::{
    JsonType, ValidationError,
    error::{TypeKind, ValidationErrorKind},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What does not match a schema, and what would. Without `quotes`, it holds no value.
pub fn of(error: &ValidationError<'_>, quotes: bool) -> String {
    let found = || if quotes { error.instance().to_string() } else { "the value".to_owned() };
    match error.kind() {
        // The usual text names two of them, and counts the others.
        ValidationErrorKind::Enum { options } => one_of(&found(), &listed(options)),
        // The usual text names no values. Where each alternative is a list of values or a type, these
        // together are what is allowed.
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let options: Option<Vec<_>> =
                context.iter().map(|branch| options_of(branch, error)).collect();
            match options.filter(|_| context.iter().flatten().any(is_listed)) {
                Some(options) => one_of(&found(), &options.concat()),
                None => usual(error, quotes),
            }
        }
        _ => usual(error, quotes),
    }
}

/// Which fields nobody knows, and which there may be by `schema`; none where something else is wrong.
pub(super) fn unknown_field(error: &ValidationError<'_>, schema: &Value) -> Option<String> {
    let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() else {
        return None;
    };
    let place = error.schema_path().to_string();
    let known = format!("{}/properties", place.strip_suffix("/additionalProperties")?);
    let known: Vec<&str> =
        schema.pointer(&known)?.as_object()?.keys().map(String::as_str).collect();
    Some(format!(
        "unknown field `{}`, expected one of `{}`",
        unexpected.join("`, `"),
        known.join("`, `")
    ))
}

/// Where it does not match, as the API server names it: `steps[0].weight`; empty for the whole.
pub fn instance_path(error: &ValidationError<'_>) -> String {
    let mut path = String::new();
    for part in error.instance_path().to_string().split('/').skip(1) {
        match part.parse::<usize>() {
            Ok(place) => path.push_str(&format!("[{place}]")),
            Err(_) if path.is_empty() => path.push_str(part),
            Err(_) => path.push_str(&format!(".{part}")),
        }
    }
    path
}

fn usual(error: &ValidationError<'_>, quotes: bool) -> String {
    if quotes { error.to_string() } else { error.masked().to_string() }
}

fn is_listed(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. })
}

/// What an alternative allows: its list of values, or its type; none where it asks for anything
/// else. Null is not named: it stands for a field that is left out.
fn options_of(branch: &[ValidationError<'_>], whole: &ValidationError<'_>) -> Option<Vec<String>> {
    // Beside a list of values, their type adds nothing.
    let has_list = branch.iter().any(is_listed);
    let mut all = vec![];
    for error in branch {
        if error.instance_path() != whole.instance_path() {
            return None;
        }
        match error.kind() {
            ValidationErrorKind::Enum { options } => all.extend(listed(options)),
            ValidationErrorKind::Constant { expected_value } => {
                all.push(expected_value.to_string());
            }
            ValidationErrorKind::Type { .. } if has_list => {}
            ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => match kind {
                JsonType::Null => {}
                kind => all.push(format!("a value of type {kind}")),
            },
            _ => return None,
        }
    }
    all.retain(|option| option != "null");
    Some(all)
}

fn listed(options: &Value) -> Vec<String> {
    options.as_array().into_iter().flatten().map(ToString::to_string).collect()
}

fn one_of(found: &str, all: &[String]) -> String {
    match all.split_last() {
        None => format!("{found} is not allowed, and nothing is"),
        Some((only, [])) => format!("{found} is not {only}"),
        Some((last, before)) => format!("{found} is not one of {} or {last}", before.join(", ")),
    }
}

/// Gives a value its type. The error names the field; without `quotes` the error shows no value.
pub(super) fn typed<T: DeserializeOwned>(value: Value, quotes: bool) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner().to_string();
        let error = if quotes { error } else { without_value(error) };
        if path == "." { error } else { format!("{path}: {error}") }
    })
}

/// The same error, which names fields and no value.
fn without_value(error: String) -> String {
    if ["unknown field", "missing field", "duplicate field"].iter().any(|s| error.starts_with(s)) {
        return error;
    }
    // A value may hold these words, and what follows the last of them is the type's own text.
    match error.rsplit_once(", expected ") {
        Some((_, expected)) => format!("the value is not {expected}"),
        None => "the value can not be used".to_owned(),
    }
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
        // As an API server does: no bytes.
        if value.is_null() {
            return Ok(());
        }
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
    use serde_json::json;

    use super::super::{Object, parse};

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
    fn an_empty_entry_in_the_data_of_a_secret_is_an_empty_text() {
        let text =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: web}\ndata: {token: YQ==, ca.crt: }\n";
        let objects = parse(text).unwrap();
        let [Object::Secret(secret)] = objects.as_slice() else { panic!("{objects:?}") };
        let field = |name: &str| secret.fields[name].expose().to_owned();
        assert_eq!((field("token").as_str(), field("ca.crt").as_str()), ("a", ""));
    }

    #[test]
    fn alternatives_that_are_lists_of_values_are_named_together_and_others_are_not() {
        for (branches, told) in [
            (json!([{"enum": ["a"]}, {"enum": ["b"]}]), r#""c" is not one of "a" or "b""#),
            (
                json!([{"const": "a"}, {"type": "string", "enum": ["b", "d"]}, {"type": "null"}]),
                r#""c" is not one of "a", "b" or "d""#,
            ),
            (json!([{"enum": ["a"]}, {"enum": [null]}]), r#""c" is not "a""#),
            (
                json!([{"enum": ["a"]}, {"type": "number"}]),
                r#""c" is not one of "a" or a value of type number"#,
            ),
            (json!([{"type": "object"}, {"type": "number"}]), "is not valid under any of the"),
            (json!([{"enum": ["a"]}, {"minLength": 2}]), "is not valid under any of the"),
        ] {
            for keyword in ["oneOf", "anyOf"] {
                let schema = jsonschema::validator_for(&json!({keyword: branches})).unwrap();
                let (instance, mut said) = (json!("c"), vec![]);
                said.extend(schema.iter_errors(&instance).map(|error| super::of(&error, true)));
                assert!(matches!(said.as_slice(), [one] if one.contains(told)), "{said:?}");
            }
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
            (prompt("assistent", ""), format!("spec.messages[0].role: {roles}")),
            (
                prompt("user", ", parameters: {max_tokens: 1}"),
                "spec.parameters: unknown field `max_tokens`, expected one of `".to_owned(),
            ),
            (
                of("CanaryPolicy", "spec: {steps: [{setWeight: 20}]}\n"),
                "spec.steps[0]: unknown field `setWeight`, expected one of `".to_owned(),
            ),
            // What is missing is there under another name.
            (
                of("PromptRelease", "spec: {backendRef: {name: b}, promtRef: {name: p}}\n"),
                "spec: unknown field `promtRef`, expected one of `".to_owned(),
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
