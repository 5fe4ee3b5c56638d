//! Manifests as text: YAML documents to typed objects, validated by the same
//! schemas and CEL rules as on the API server.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use jsonschema::{ValidationError, Validator};
use k8s_openapi::{
    api::core::v1::Secret,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionVersion,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::cel::{CompiledSchema, compile_schema, validate_compiled};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{CanaryPolicy, LLMDeployment, PromptRelease, PromptVersion, SecretText, crd};

pub mod faults;
pub mod yaml;

/// One object of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A model backend.
    Backend(Box<LLMDeployment>),
    /// A prompt.
    Prompt(PromptVersion),
    /// A policy.
    Policy(CanaryPolicy),
    /// A release.
    Release(Box<PromptRelease>),
    /// A Secret of Kubernetes: API keys of backends, client keys.
    Secret(Secrets),
}

/// What a Secret holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Secrets {
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// Its fields, decoded.
    pub fields: BTreeMap<String, SecretText>,
}

/// Why a manifest can not be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not a text.
    #[error("is not UTF-8 from byte {0} on: save it as UTF-8")]
    NotText(usize),
    /// Not YAML.
    #[error("not valid YAML: {0}")]
    Yaml(#[from] yaml::YamlError),
    /// Not of our group and kinds.
    #[error(
        "{} is not a Serinus kind; expected serinus.dev/v1alpha1 and one of LLMDeployment, PromptVersion, CanaryPolicy, PromptRelease; or v1 Secret",
        what_is_said(api_version, kind)
    )]
    Kind {
        /// What the document says.
        api_version: String,
        /// What the document says.
        kind: String,
    },
    /// Against the schema or a rule.
    #[error("{kind} {name}: {message}")]
    Invalid {
        /// The kind.
        kind: String,
        /// Where the object is; empty without one.
        namespace: String,
        /// The object's name.
        name: String,
        /// What is wrong and what to do.
        message: String,
    },
}

fn what_is_said(api_version: &str, kind: &str) -> String {
    let version = if is_version(api_version) { api_version } else { "another apiVersion" };
    let shown = shown_kind(kind);
    match (api_version, kind) {
        ("", "") => "a document that has no apiVersion and no kind".to_owned(),
        ("", _) => format!("{shown} without an apiVersion"),
        (_, "") => format!("{version} without a kind"),
        _ => format!("{version} {shown}"),
    }
}

/// A kind as a message may show it: made of letters. Anything else may be a secret in the wrong
/// place.
fn shown_kind(kind: &str) -> &str {
    let is_word = kind.len() <= 40 && kind.bytes().all(|c| c.is_ascii_alphabetic());
    if is_word { kind } else { "another kind" }
}

/// Whether this looks like an apiVersion: short parts, of letters alone where they are longer.
fn is_version(text: &str) -> bool {
    let is_part = |part: &str| {
        part.len() <= 10 && part.bytes().all(|c| c.is_ascii_alphanumeric())
            || part.len() <= 30 && part.bytes().all(|c| c.is_ascii_lowercase())
    };
    text.len() <= 80 && text.split(['.', '/', '-']).all(is_part)
}

/// Whether objects of this kind may hold a secret, by mistake or as they are meant to. An unknown
/// kind counts as one that may: somebody may have mistyped `Secret`.
fn may_hold_secrets(kind: &str) -> bool {
    !["PromptVersion", "CanaryPolicy", "PromptRelease"].contains(&kind)
}

impl Object {
    /// The object's metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Backend(o) => &o.metadata,
            Self::Prompt(o) => &o.metadata,
            Self::Policy(o) => &o.metadata,
            Self::Release(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
        }
    }
}

impl Object {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Backend(_) => "LLMDeployment",
            Self::Prompt(_) => "PromptVersion",
            Self::Policy(_) => "CanaryPolicy",
            Self::Release(_) => "PromptRelease",
            Self::Secret(_) => "Secret",
        }
    }

    /// The document that `object` reads as this object; none of a Secret, of which no copy
    /// is kept.
    ///
    /// # Errors
    /// It can not be written as JSON.
    pub fn to_value(&self) -> Result<Option<Value>, serde_json::Error> {
        match self {
            Self::Backend(o) => serde_json::to_value(o).map(Some),
            Self::Prompt(o) => serde_json::to_value(o).map(Some),
            Self::Policy(o) => serde_json::to_value(o).map(Some),
            Self::Release(o) => serde_json::to_value(o).map(Some),
            Self::Secret(_) => Ok(None),
        }
    }

    /// Whether this object may replace `old`: the rules on what is immutable.
    ///
    /// # Errors
    /// The first rule that is broken, with what to do.
    pub fn check_update(&self, old: &Self) -> Result<(), ManifestError> {
        let result = match (self, old) {
            (Self::Backend(new), Self::Backend(old)) => rules(self.kind(), &**new, Some(&**old)),
            (Self::Prompt(new), Self::Prompt(old)) => rules(self.kind(), new, Some(old)),
            (Self::Policy(new), Self::Policy(old)) => rules(self.kind(), new, Some(old)),
            (Self::Release(new), Self::Release(old)) => rules(self.kind(), &**new, Some(&**old)),
            _ => Ok(()),
        };
        result.map_err(|message| ManifestError::Invalid {
            kind: self.kind().to_owned(),
            namespace: self.metadata().namespace.clone().unwrap_or_default(),
            name: self.metadata().name.clone().unwrap_or_default(),
            message,
        })
    }
}

/// What is known of a document, whether it is valid or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The kind; it may be none of ours.
    pub kind: String,
    /// The namespace, if the document has one.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// The route of what seems to be a release, unless it may be in a part that can not be read.
    pub route: Option<String>,
    /// The file can not be used because of this document.
    pub at_fault: bool,
    /// The whole document could be read.
    pub is_complete: bool,
}

/// A file that can not be used.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Broken {
    /// Why.
    pub error: ManifestError,
    /// The document at fault, counted from 1 as in the file.
    pub document: usize,
    /// The documents that can be told apart.
    pub said: Vec<Said>,
    /// The file may hold more than these.
    pub more: bool,
}

/// Reads every document of a file.
///
/// # Errors
/// It is no text, or as for [`parse`]; with what is known of the file.
pub fn read(bytes: &[u8]) -> Result<Vec<Object>, Box<Broken>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => read_text(text),
        Err(error) => {
            let upto = error.valid_up_to();
            let valid =
                std::str::from_utf8(bytes.get(..upto).unwrap_or_default()).unwrap_or_default();
            // A name may end in what is not text.
            let lines = valid.rsplit_once('\n').map_or("", |(lines, _)| lines);
            let Documents { values, error, cut } = documents(lines);
            // What is wrong with the text is in the last document, or in one after it.
            let last = values.len().saturating_sub(1);
            let document = values.last().map_or(1, |(number, _)| *number);
            let said = values.iter().enumerate();
            let is_cut = |i: usize| i == last && (cut || error.is_none());
            let said = said.filter_map(|(i, (_, value))| said_of(value, !is_cut(i))).collect();
            Err(Box::new(Broken {
                error: ManifestError::NotText(upto),
                document,
                said,
                more: true,
            }))
        }
    }
}

/// Every document of a file by itself, with its number in the file, for who wants to know all
/// that is wrong.
pub fn each(bytes: &[u8]) -> Vec<(usize, Result<Object, ManifestError>)> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return vec![(1, Err(ManifestError::NotText(error.valid_up_to())))],
    };
    let Documents { mut values, error, cut } = documents(text);
    let last = values.last().map_or(0, |(number, _)| *number);
    // What is known of a document that can not be read as a whole is no object.
    let cut_one = error.as_ref().and_then(|_| if cut { values.pop() } else { None });
    let read = |(number, value)| (number, names(&value).and_then(|()| object(value)));
    let mut all: Vec<_> = values.into_iter().map(read).collect();
    if let Some(error) = error {
        all.push((cut_one.map_or(last + 1, |(number, _)| number), Err(error.into())));
    }
    all
}

/// Reads every document of a YAML text.
///
/// # Errors
/// The first document that is not a valid Serinus object.
pub fn parse(text: &str) -> Result<Vec<Object>, ManifestError> {
    read_text(text).map_err(|broken| broken.error)
}

fn read_text(text: &str) -> Result<Vec<Object>, Box<Broken>> {
    let Documents { values, error, cut } = documents(text);
    let (more, last) = (error.is_some(), values.len().saturating_sub(1));
    let after = values.last().map_or(1, |(number, _)| if cut { *number } else { number + 1 });
    let mut wrong = error.map(|error| (after, ManifestError::from(error)));
    let mut said: Vec<Option<Said>> = values
        .iter()
        .enumerate()
        .map(|(i, (_, value))| {
            let is_cut = cut && i == last;
            said_of(value, !is_cut).map(|said| Said { at_fault: is_cut, ..said })
        })
        .collect();
    let mut objects = vec![];
    for ((number, value), said) in values.into_iter().zip(&mut said) {
        if wrong.is_some() {
            break;
        }
        match names(&value).and_then(|()| object(value)) {
            Ok(object) => objects.push(object),
            Err(why) => {
                said.iter_mut().for_each(|said| said.at_fault = true);
                wrong = Some((number, why));
            }
        }
    }
    match wrong {
        None => Ok(objects),
        Some((document, error)) => {
            let said = said.into_iter().flatten().collect();
            Err(Box::new(Broken { error, document, said, more }))
        }
    }
}

/// The documents of a text.
struct Documents {
    /// Those with content, each with its number in the text.
    values: Vec<(usize, Value)>,
    /// What is wrong after, or in, the last of them.
    error: Option<yaml::YamlError>,
    /// The last of them is cut.
    cut: bool,
}

fn documents(text: &str) -> Documents {
    // Some editors begin a file with a byte order mark, which the parser takes for a column. In
    // files that were joined it begins a line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\n\u{feff}", "\n");
    let yaml::Begun { documents, error, cut } = yaml::begun(&text);
    let (count, mut values) = (documents.len(), vec![]);
    for (number, document) in (1..).zip(documents) {
        spread(number, document, cut && number == count, &mut values);
    }
    let cut = cut && values.last().is_some_and(|(number, _)| *number == count);
    Documents { values, error, cut }
}

/// Kinds of lists of what a file may hold.
const LISTS: [&str; 6] = [
    "List",
    "LLMDeploymentList",
    "PromptVersionList",
    "CanaryPolicyList",
    "PromptReleaseList",
    "SecretList",
];

/// Adds a document to `values`, or the objects of a list, as `kubectl get -o yaml` writes it. Of
/// one that is cut the kind may have come after the items.
fn spread(number: usize, mut document: Value, is_cut: bool, values: &mut Vec<(usize, Value)>) {
    let is_list = match document.get("kind").and_then(Value::as_str) {
        Some(kind) => LISTS.contains(&kind),
        None => is_cut,
    };
    let mut fields = document.as_object().into_iter().flat_map(|fields| fields.keys());
    let has_others = fields.any(|f| !["apiVersion", "kind", "metadata", "items"].contains(&&**f));
    if document.is_null() {
        return;
    }
    match document.get_mut("items") {
        Some(Value::Array(items)) if is_list => {
            let last = items.len();
            for (i, item) in (1..).zip(std::mem::take(items)) {
                spread(number, item, is_cut && i == last, values);
            }
        }
        Some(Value::Null) | None if is_list && !is_cut && !has_others => {}
        _ => values.push((number, document)),
    }
}

/// What is known of a document; nothing without a name, and of a document that `is_complete` only
/// up to some place, nothing while its namespace may come after that place.
fn said_of(value: &Value, is_complete: bool) -> Option<Said> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let named = |pointer: &str| text(pointer).filter(|text| !text.is_empty());
    let (kind, name) = (text("/kind").unwrap_or_default(), named("/metadata/name")?);
    let namespace = named("/metadata/namespace");
    let last = value.as_object().and_then(|fields| fields.keys().next_back());
    if !is_complete && namespace.is_none() && last.is_some_and(|last| last == "metadata") {
        return None;
    }
    // Of a kind that is mistyped, too.
    let is_release = kind == "PromptRelease" || value.pointer("/spec/promptRef").is_some();
    let route = named("/spec/route").or_else(|| is_complete.then(|| name.clone()));
    let route = route.filter(|_| is_release);
    Some(Said { kind, namespace, name, route, at_fault: false, is_complete })
}

/// Refuses names that an API server refuses.
fn names(value: &Value) -> Result<(), ManifestError> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let label = |part: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !part.is_empty()
            && part.bytes().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let is_name = name.is_empty() || name.len() <= 253 && name.split('.').all(label);
    let is_namespace = namespace.is_empty() || namespace.len() <= 63 && label(namespace);
    let (field, most) = match (is_name, is_namespace) {
        (true, true) => return Ok(()),
        (false, _) => ("metadata.name", "253 characters, a-z, 0-9, - and ."),
        (true, false) => ("metadata.namespace", "63 characters, a-z, 0-9 and -"),
    };
    let kind = text("/kind");
    let is_shown = is_name || !may_hold_secrets(kind);
    Err(ManifestError::Invalid {
        kind: shown_kind(kind).to_owned(),
        namespace: namespace.to_owned(),
        name: if is_shown { name } else { "whose name is not valid" }.to_owned(),
        message: format!(
            "{field}: Kubernetes has other names: at most {most}, with a letter or digit at both \
             ends and beside each dot"
        ),
    })
}

/// Reads one document.
///
/// # Errors
/// It is not a valid Serinus object.
pub fn object(value: Value) -> Result<Object, ManifestError> {
    let text = |pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let is_secret = (api_version.as_str(), kind.as_str()) == ("v1", "Secret");
    if api_version != "serinus.dev/v1alpha1" && !is_secret {
        return Err(ManifestError::Kind { api_version, kind });
    }
    let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let metadata = faults::metadata(&value);
    let invalid = |message: String| ManifestError::Invalid {
        kind: kind.clone(),
        namespace: namespace.clone(),
        name: if name.is_empty() { "without a name".to_owned() } else { name.clone() },
        message,
    };
    metadata.map_err(invalid)?;
    if name.is_empty() {
        return Err(invalid("set metadata.name".to_owned()));
    }
    match kind.as_str() {
        "Secret" if is_secret => secrets(value).map(Object::Secret).map_err(invalid),
        "LLMDeployment" => typed(value, &kind).map(Box::new).map(Object::Backend).map_err(invalid),
        "PromptVersion" => typed(value, &kind).map(Object::Prompt).map_err(invalid),
        "CanaryPolicy" => typed(value, &kind).map(Object::Policy).map_err(invalid),
        "PromptRelease" => typed(value, &kind).map(Box::new).map(Object::Release).map_err(invalid),
        _ => Err(ManifestError::Kind { api_version, kind }),
    }
}

/// Reads a Secret. What is wrong is told without its content.
fn secrets(value: Value) -> Result<Secrets, String> {
    faults::secret(&value)?;
    let secret: Secret = serde_path_to_error::deserialize(value).map_err(|error| {
        format!("{}: this field of a Secret is not as Kubernetes has it", error.path())
    })?;
    let mut fields = BTreeMap::new();
    for (name, bytes) in secret.data.unwrap_or_default() {
        let text = String::from_utf8(bytes.0).map_err(|_| format!("data.{name} is not text"))?;
        fields.insert(name, SecretText::from(text.trim().to_owned()));
    }
    for (name, text) in secret.string_data.unwrap_or_default() {
        fields.insert(name, SecretText::from(text.trim().to_owned()));
    }
    Ok(Secrets { metadata: secret.metadata, fields })
}

/// What checks one kind, compiled once.
struct Checks {
    /// Of the spec.
    schema: Validator,
    /// The same as a document: what a field may be called.
    spec: Value,
    rules: CompiledSchema,
}

/// What checks each kind, or why it can not be checked.
static CHECKS: LazyLock<HashMap<String, Result<Checks, String>>> = LazyLock::new(|| {
    let kinds = crd::all().into_iter().map(|(_, crd)| {
        let checks = checks(crd.spec.versions).map_err(|e| format!("the kind's schema: {e}"));
        (crd.spec.names.kind, checks)
    });
    kinds.collect()
});

fn checks(versions: Vec<CustomResourceDefinitionVersion>) -> Result<Checks, String> {
    let version = versions.into_iter().next().ok_or("no version")?;
    let whole = version.schema.and_then(|schema| schema.open_api_v3_schema).ok_or("none")?;
    let whole = serde_json::to_value(whole).map_err(|e| e.to_string())?;
    let mut spec = whole["properties"]["spec"].clone();
    close(&mut spec);
    let schema = jsonschema::validator_for(&spec).map_err(|e| e.to_string())?;
    let rules = compile_schema(&whole);
    Ok(Checks { schema, spec, rules })
}

/// Admits no other fields than those that are named. A field of a manifest that nobody knows is a
/// mistake. The types themselves pass over unknown fields, because an object of the API server may
/// have fields of a later version, and a watch ends for all objects of a kind when one can not be
/// read.
fn close(schema: &mut Value) {
    let Some(parts) = schema.as_object_mut() else { return };
    let is_free = parts.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let is_object = parts.get("type").and_then(Value::as_str) == Some("object");
    if is_object && !parts.contains_key("additionalProperties") && !is_free {
        parts.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    for part in ["items", "additionalProperties"] {
        if let Some(inner) = parts.get_mut(part) {
            close(inner);
        }
    }
    let properties = parts.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(|fields| fields.values_mut()).for_each(close);
}

fn checks_of(kind: &str) -> Result<&'static Checks, String> {
    CHECKS.get(kind).ok_or("the kind has no schema")?.as_ref().map_err(String::clone)
}

/// Checks `value` against the kind's schema, gives it its type, and checks the rules.
fn typed<T: DeserializeOwned + Serialize>(value: Value, kind: &str) -> Result<T, String> {
    let quotes = !may_hold_secrets(kind);
    let checks = checks_of(kind)?;
    if let Some(spec) = value.get("spec")
        && let Some(error) = first_fault(checks, spec)
    {
        let path = faults::instance_path(&error);
        let path = if path.is_empty() { "spec".to_owned() } else { format!("spec.{path}") };
        // An address may hold a password by mistake, a header a key, and any field what was
        // pasted into it. A number in another place is no secret, and helps.
        let is_private = ["spec.endpoint", "spec.proxy"].iter().any(|part| path.starts_with(part));
        let shows = quotes || (!is_private && error.instance().is_number());
        let what = faults::unknown_field(&error, &checks.spec);
        return Err(format!("{path}: {}", what.unwrap_or_else(|| faults::of(&error, shows))));
    }
    let object = faults::typed(value, quotes)?;
    rules(kind, &object, None)?;
    Ok(object)
}

/// The first error. An error about an unknown field comes before all others: a field is often missing
/// because its name was mistyped.
fn first_fault<'a>(checks: &'a Checks, spec: &'a Value) -> Option<ValidationError<'a>> {
    let mut all = checks.schema.iter_errors(spec);
    let first = all.next()?;
    if faults::unknown_field(&first, &checks.spec).is_some() {
        return Some(first);
    }
    let unknown = all.find(|error| faults::unknown_field(error, &checks.spec).is_some());
    Some(unknown.unwrap_or(first))
}

/// Checks an object, and what it replaces, against the rules of its kind.
fn rules<T: Serialize>(kind: &str, object: &T, old: Option<&T>) -> Result<(), String> {
    let value = |object: &T| serde_json::to_value(object).map_err(|e| e.to_string());
    let (object, old) = (value(object)?, old.map(value).transpose()?);
    validate_compiled(&checks_of(kind)?.rules, &object, old.as_ref()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAREFUL: &str = "apiVersion: serinus.dev/v1alpha1\nkind: CanaryPolicy\nmetadata:\n  name: careful\nspec:\n  steps:\n    - {weight: 5, samples: 20}\n";

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        for (twice, key) in [
            (format!("{CAREFUL}spec:\n  steps: []\n"), "spec"),
            (CAREFUL.replace("name: careful", "name: careful\n  name: other"), "name"),
            (CAREFUL.replace("weight: 5,", "weight: 5, weight: 6,"), "weight"),
            (format!("{CAREFUL}---\n{CAREFUL}kind: Secret\n"), "kind"),
        ] {
            let error = parse(&twice).unwrap_err().to_string();
            assert!(error.contains("duplicate entry") && error.contains(key), "{error}");
        }
        let aliased =
            CAREFUL.replace("name: careful", "name: &name careful\n  annotations: {a: *name}");
        assert_eq!(parse(&aliased).unwrap().len(), 1);
    }

    #[test]
    fn the_document_at_fault_is_told_from_complete_ones_and_nothing_is_guessed_of_a_cut_one() {
        let release =
            "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelease\nmetadata:\n  name: r\n";
        let spec = "spec:\n  promptRef: {name: p}\n";
        let good = format!("{release}{spec}  backendRef: {{name: b}}\n");
        for (text, document, known) in [
            // Before any word of another document.
            (format!("{good}---\n@\n"), 2, vec![(Some("r"), false, true)]),
            (
                format!("{good}---\n{good}  backendRef: {{}}\n"),
                2,
                vec![(Some("r"), false, true), (None, true, false)],
            ),
            (
                format!("# nothing\n---\n---\n{good}  route: s\n  x: [\n"),
                2,
                vec![(Some("s"), true, false)],
            ),
            (format!("{release}  labels: [\n"), 1, vec![]),
            (format!("{release}  namespace: shop\n  labels: [\n"), 1, vec![(None, true, false)]),
            (good.replace("promptRef", "promtRef"), 1, vec![(Some("r"), true, true)]),
        ] {
            let broken = read(text.as_bytes()).unwrap_err();
            let said: Vec<_> = broken
                .said
                .iter()
                .map(|said| (said.route.as_deref(), said.at_fault, said.is_complete))
                .collect();
            assert_eq!((broken.document, said), (document, known), "{text}: {broken}");
        }
        // A name may end in what is not text.
        let cut = [release.as_bytes(), b"spec:\n  route: caf\xe9\n"].concat();
        let broken = read(&cut).unwrap_err();
        assert!(broken.said.iter().all(|said| said.route.is_none()), "{:?}", broken.said);
    }

    /// As `kubectl get -o yaml` writes it: fields in the order of their names, the kind last.
    #[test]
    fn a_list_is_what_is_in_it() {
        let item = |name: &str| {
            let object = CAREFUL.replace("careful", name);
            let lines: Vec<_> = object.trim().lines().map(|line| format!("  {line}")).collect();
            format!("-{}\n", &lines.join("\n")[1..])
        };
        let list = |items: &str| {
            format!(
                "apiVersion: v1\nitems:\n{items}kind: List\nmetadata: {{resourceVersion: \"\"}}\n"
            )
        };
        let names = |text: &str| {
            let objects = parse(text).unwrap();
            objects.iter().map(|o| o.metadata().name.clone().unwrap()).collect::<Vec<_>>()
        };
        let two = item("a") + &item("b");
        assert_eq!(names(&format!("{}---\n{CAREFUL}", list(&two))), ["a", "b", "careful"]);
        assert_eq!(names(&list(&two).replace("List", "CanaryPolicyList")), ["a", "b"]);
        let within = |list: String| format!("- {}\n", list.trim().replace('\n', "\n  "));
        assert_eq!(names(&list(&within(list(&two)))), ["a", "b"]);
        for empty in ["kind: List\napiVersion: v1\n", "kind: List\napiVersion: v1\nitems: []\n"] {
            assert_eq!(names(&format!("{empty}---\n{CAREFUL}")), ["careful"], "{empty}");
        }
        // An error names the object within the list. Other kinds are not read as lists.
        let wrong = parse(&list(&(item("a") + &item("B")))).unwrap_err().to_string();
        assert!(wrong.contains("CanaryPolicy B"), "{wrong}");
        for other in [
            "kind: List\nitems: {a: 1}\n",
            "items: [{a: 1}]\n",
            "kind: Listing\nitems: []\n",
            "kind: PromptReleaseList\nitem: [{a: 1}]\n",
            "kind: ConfigMapList\nitems: []\n",
        ] {
            parse(other).unwrap_err();
        }
        // Where it is cut the kind is not known yet, and the last item may be only half there.
        let cut = format!("{CAREFUL}---\napiVersion: v1\nitems:\n{two}  x: [\n");
        let broken = read(cut.as_bytes()).unwrap_err();
        let said = broken.said.iter().map(|said| (&*said.name, said.at_fault, said.is_complete));
        let known = [("careful", false, true), ("a", false, true), ("b", true, false)];
        assert_eq!((broken.document, said.collect::<Vec<_>>()), (2, known.to_vec()), "{broken}");
        let none = read(format!("{CAREFUL}---\nkind: List\nitems: [\n").as_bytes()).unwrap_err();
        assert_eq!((none.document, none.said.len(), none.said[0].at_fault), (2, 1, false));
    }

    #[test]
    fn names_that_a_cluster_refuses_are_refused() {
        let named =
            |name: &str| parse(&CAREFUL.replace("careful", name)).map_err(|e| e.to_string());
        for good in ["a", "a-b", "a.b-1", "0a", &"a".repeat(253)] {
            named(&format!("\"{good}\"")).unwrap();
        }
        for bad in ["Triage", "tri_age", "-a", "a-", "a..b", "a.-b", "ä", "a b", &"a".repeat(254)]
        {
            let error = named(&format!("\"{bad}\"")).unwrap_err();
            assert!(error.contains("metadata.name: Kubernetes has other names"), "{bad}: {error}");
        }
        let away = CAREFUL.replace("name: careful", "name: careful\n  namespace: team.a");
        assert!(parse(&away).unwrap_err().to_string().contains("metadata.namespace"));
    }

    #[test]
    fn what_may_be_a_secret_in_the_place_of_a_name_or_kind_is_not_told() {
        let of = |version: &str, kind: &str, name: &str| {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\n");
            parse(&text).unwrap_err().to_string()
        };
        let (ours, secret) = ("serinus.dev/v1alpha1", "zq7Kp2Lm9Xw4Rt8Vb3Nc");
        for (version, kind, name, told) in [
            ("v1", "Secret", "zq7Kp2Lm9Xw4Rt8Vb3Nc_BAD", "Secret whose name is not valid: metad"),
            (ours, "LLMDeployment", secret, "LLMDeployment whose name is not valid: metadata.n"),
            (ours, secret, secret, "another kind whose name is not valid: metadata.name: Kube"),
            ("v1", secret, "a", "v1 another kind is not a Serinus kind"),
            (secret, "Secret", "a", "another apiVersion Secret is not a Serinus kind"),
            ("\"\"", secret, "a", "another kind without an apiVersion is not a Serinus kind"),
            (secret, "\"\"", "a", "another apiVersion without a kind is not a Serinus kind"),
            ("apps/v1", "Deployment", "a", "apps/v1 Deployment is not a Serinus kind"),
            ("rbac.authorization.k8s.io/v1", "Role", "a", "rbac.authorization.k8s.io/v1 Role is"),
        ] {
            let error = of(version, kind, name);
            assert!(error.starts_with(told) && !error.contains(secret), "{error}");
        }
    }

    #[test]
    fn a_text_in_the_wrong_place_is_not_told_where_it_may_be_a_secret() {
        let spec = "provider: openai, model: m, endpoint: {url: 'http://m/v1'}";
        let of = |metadata: &str, spec: &str| {
            let text = format!(
                "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: \
                 a{metadata}}}\nspec: {spec}\n"
            );
            parse(&text).unwrap_err().to_string()
        };
        let more = |more: &str| of("", &format!("{{{spec}, {more}}}"));
        for (error, told) in [
            (more("pricing: zq7Kp2Lm9X"), "spec.pricing: value is not of type \"object\""),
            (more("pricing: {gpuHour: zq7Kp2Lm9X}"), "spec.pricing.gpuHour: "),
            (more("limits: [zq7Kp2Lm9X]"), "spec.limits: value is not of type \"object\""),
            (more("limits: {timeout: zq7Kp2Lm9X}"), "spec.limits.timeout: value does not match"),
            (more("compatibility: {tokenLimit: zq7Kp2Lm9X}"), "the value is not one of \"max"),
            (of("", "zq7Kp2Lm9X"), "spec: value is not of type \"object\""),
            (of(", generation: zq7Kp2Lm9X", &format!("{{{spec}}}")), "metadata.generation: the"),
            (of(", finalizers: zq7Kp2Lm9X", &format!("{{{spec}}}")), "metadata.finalizers: the"),
        ] {
            assert!(error.starts_with("LLMDeployment a: ") && error.contains(told), "{error}");
            assert!(!error.contains("zq7Kp2Lm9X"), "{error}");
        }
        // A number here is no secret, so the message shows it.
        let error = more("limits: {retries: -4711}");
        assert!(error.contains("spec.limits.retries: -4711 is less than"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_and_line_ends_of_windows_are_no_content() {
        let named = |text: &str| match parse(text).unwrap().as_slice() {
            [Object::Policy(policy)] => policy.metadata.name.clone(),
            other => panic!("{other:?}"),
        };
        for text in [CAREFUL.to_owned(), CAREFUL.replace('\n', "\r\n")] {
            assert_eq!(named(&text).as_deref(), Some("careful"));
            let marked = format!("\u{feff}{text}");
            assert_eq!(named(&marked).as_deref(), Some("careful"));
            let joined = [format!("{marked}---\n{marked}"), format!("{marked}\u{feff}---\n{text}")];
            assert_eq!(joined.map(|text| parse(&text).unwrap().len()), [2, 2]);
        }
    }
}
