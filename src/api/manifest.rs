//! Manifests as text: YAML documents to typed objects, validated by the same
//! schemas and CEL rules as on the API server.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use jsonschema::Validator;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{CanaryPolicy, LLMDeployment, PromptRelease, PromptVersion, SecretText, crd};

/// One object of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A model backend.
    Backend(LLMDeployment),
    /// A prompt.
    Prompt(PromptVersion),
    /// A policy.
    Policy(CanaryPolicy),
    /// A release.
    Release(PromptRelease),
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
    /// Not YAML.
    #[error("not valid YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
    /// Not of our group and kinds.
    #[error(
        "{api_version} {kind} is not a Serinus kind; expected serinus.dev/v1alpha1 and one of LLMDeployment, PromptVersion, CanaryPolicy, PromptRelease; or v1 Secret"
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
        /// The object's name.
        name: String,
        /// What is wrong and what to do.
        message: String,
    },
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

    /// Whether this object may replace `old`: the rules on what is immutable.
    ///
    /// # Errors
    /// The first rule that is broken, with what to do.
    pub fn check_update(&self, old: &Self) -> Result<(), ManifestError> {
        let result = match (self, old) {
            (Self::Backend(new), Self::Backend(old)) => new.validate_cel_update(old),
            (Self::Prompt(new), Self::Prompt(old)) => new.validate_cel_update(old),
            (Self::Policy(new), Self::Policy(old)) => new.validate_cel_update(old),
            (Self::Release(new), Self::Release(old)) => new.validate_cel_update(old),
            _ => Ok(()),
        };
        result.map_err(|errors| ManifestError::Invalid {
            kind: self.kind().to_owned(),
            name: self.metadata().name.clone().unwrap_or_default(),
            message: rules(&errors),
        })
    }
}

/// Reads every document of a YAML text.
///
/// # Errors
/// The first document that is not a valid Serinus object.
pub fn parse(text: &str) -> Result<Vec<Object>, ManifestError> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            objects.push(object(value)?);
        }
    }
    Ok(objects)
}

fn object(value: Value) -> Result<Object, ManifestError> {
    let text = |pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let is_secret = (api_version.as_str(), kind.as_str()) == ("v1", "Secret");
    if api_version != "serinus.dev/v1alpha1" && !is_secret {
        return Err(ManifestError::Kind { api_version, kind });
    }
    let name = text("/metadata/name");
    let invalid = |message: String| ManifestError::Invalid {
        kind: kind.clone(),
        name: if name.is_empty() { "without a name".to_owned() } else { name.clone() },
        message,
    };
    if name.is_empty() {
        return Err(invalid("set metadata.name".to_owned()));
    }
    match kind.as_str() {
        "Secret" if is_secret => secrets(value).map(Object::Secret).map_err(invalid),
        "LLMDeployment" => {
            let o: LLMDeployment = typed(value, &kind).map_err(invalid)?;
            o.validate_cel().map_err(|e| invalid(rules(&e)))?;
            Ok(Object::Backend(o))
        }
        "PromptVersion" => {
            let o: PromptVersion = typed(value, &kind).map_err(invalid)?;
            o.validate_cel().map_err(|e| invalid(rules(&e)))?;
            Ok(Object::Prompt(o))
        }
        "CanaryPolicy" => {
            let o: CanaryPolicy = typed(value, &kind).map_err(invalid)?;
            o.validate_cel().map_err(|e| invalid(rules(&e)))?;
            Ok(Object::Policy(o))
        }
        "PromptRelease" => {
            let o: PromptRelease = typed(value, &kind).map_err(invalid)?;
            o.validate_cel().map_err(|e| invalid(rules(&e)))?;
            Ok(Object::Release(o))
        }
        _ => Err(ManifestError::Kind { api_version, kind }),
    }
}

/// Reads a Secret. What is wrong is told without its content.
fn secrets(value: Value) -> Result<Secrets, String> {
    let secret: Secret = serde_json::from_value(value).map_err(
        |_| "data must hold texts in base64, stringData plain texts; metadata as for every object",
    )?;
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

/// What checks the spec of each kind, or why it can not be checked.
static SCHEMAS: LazyLock<HashMap<String, Result<Validator, String>>> = LazyLock::new(|| {
    let kinds = crd::all().into_iter().filter_map(|(_, crd)| {
        let version = crd.spec.versions.into_iter().next()?;
        let spec = version.schema?.open_api_v3_schema?.properties?.remove("spec")?;
        let validator = serde_json::to_value(spec)
            .map_err(|e| e.to_string())
            .and_then(|spec| jsonschema::validator_for(&spec).map_err(|e| e.to_string()));
        Some((crd.spec.names.kind, validator))
    });
    kinds.collect()
});

/// Checks `value` against the kind's schema, then gives it its type.
fn typed<T: DeserializeOwned>(value: Value, kind: &str) -> Result<T, String> {
    let validator = SCHEMAS.get(kind).ok_or("the kind has no schema")?;
    let validator = validator.as_ref().map_err(String::clone)?;
    if let Some(spec) = value.get("spec")
        && let Some(error) = validator.iter_errors(spec).next()
    {
        let path = error.instance_path().to_string().replace('/', ".");
        return Err(format!("spec{path}: {error}"));
    }
    serde_path(value)
}

fn serde_path<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|e| e.to_string())
}

fn rules(errors: &impl std::fmt::Display) -> String {
    errors.to_string()
}
