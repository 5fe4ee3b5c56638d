//! ReleaseSnapshot: what a PromptRelease keeps of the objects that it names, so that deleting
//! one of them never breaks serving or a rollback.
//!
//! The content is stored as it was written: the schema does not look into it, so a definition
//! of another version drops no field, and a rule that a later version adds keeps no snapshot
//! from being written again.

use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};

use super::{
    CanaryPolicySpec, schema,
    snapshot::{Saved, copy_name},
};

/// The value of [`ReleaseSnapshotSpec::type_`] for a variant.
const VARIANT: &str = "Variant";
/// The value of [`ReleaseSnapshotSpec::type_`] for a policy.
const POLICY: &str = "Policy";

/// What a PromptRelease keeps of a prompt on a backend, or of a policy. Written by the operator.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "serinus.dev",
    version = "v1alpha1",
    kind = "ReleaseSnapshot",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    shortname = "relsnap",
    doc = "What a PromptRelease keeps of a prompt on a backend, or of the policy of its canary, so that deleting these breaks neither serving nor a rollback. Written by the operator.",
    validation = Rule::new("self.spec == oldSelf.spec").message("the content of a ReleaseSnapshot can not be changed, only its labels and annotations: to serve something else, create a PromptVersion and name it in the PromptRelease"),
    validation = Rule::new("self.metadata.name == self.spec.release + '-' + self.spec.revision").message("metadata.name must be spec.release and spec.revision, joined by a hyphen: gateways look for it by that name"),
    printcolumn(name = "Release", type_ = "string", json_path = ".spec.release"),
    printcolumn(name = "Of", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Prompt", type_ = "string", json_path = ".spec.variant.promptName"),
    printcolumn(name = "Backend", type_ = "string", json_path = ".spec.variant.backendName"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision"),
    printcolumn(name = "Remembered", type_ = "string", json_path = ".metadata.labels.serinus\\.dev/remembered"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("has(self.variant) == (self.type == 'Variant')").message("spec.variant must be there if spec.type is Variant, and only then"),
    validation = Rule::new("has(self.policy) == (self.type == 'Policy')").message("spec.policy must be there if spec.type is Policy, and only then"),
)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseSnapshotSpec {
    /// The PromptRelease that keeps it, in the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub release: String,
    /// What it is a snapshot of: Variant (a prompt on a backend) or Policy (the CanaryPolicy
    /// that a canary runs with).
    #[serde(rename = "type")]
    #[schemars(schema_with = "types")]
    pub type_: String,
    /// The revision of the variant, or the digest of the policy.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// The variant: the specs of its PromptVersion and of its LLMDeployment, and their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "variant")]
    pub variant: Option<Content>,
    /// The policy: its spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "policy")]
    pub policy: Option<Content>,
}

/// Content as JSON text. It is read seldom, and an operator holds the snapshots of all releases:
/// as a tree of small maps each would take much more memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content(Box<str>);

impl Content {
    /// Reads the whole. What a later version has saved would be served as something else than it
    /// was when it was compared, if a field of it were passed over.
    fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        let mut unknown = None;
        let mut from = serde_json::Deserializer::from_str(&self.0);
        let read = serde_ignored::deserialize(&mut from, |path| {
            unknown.get_or_insert_with(|| path.to_string());
        })?;
        match unknown {
            None => Ok(read),
            Some(field) => Err(serde::de::Error::custom(format!("unknown field `{field}`"))),
        }
    }
}

impl From<&Value> for Content {
    fn from(value: &Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: Value = self.read().map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What is nested too deep fails when it is read: that hides neither the snapshot nor what
        // is remembered on it.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(text.get().into()))
    }
}

fn types(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": [VARIANT, POLICY] })
}

/// A part that is stored as it was written.
fn as_written(generator: &mut SchemaGenerator, what: &str) -> Schema {
    let mut schema = schema::free_object(generator);
    schema.insert("description".to_owned(), json!(what));
    schema
}

fn variant(generator: &mut SchemaGenerator) -> Schema {
    let name = |of: &str| {
        json!({
            "type": "string", "maxLength": 253, "description": format!("The name of the {of}."),
        })
    };
    json_schema!({
        "type": "object",
        "required": ["promptName", "prompt", "backendName", "backend"],
        "properties": {
            "promptName": name("PromptVersion"),
            "prompt": as_written(generator, "The spec of the PromptVersion."),
            "backendName": name("LLMDeployment"),
            "backend": as_written(generator, "The spec of the LLMDeployment, when this was written."),
        },
        // Of the whole it is noted who wrote it, not of each field.
        "x-kubernetes-map-type": "atomic",
    })
}

fn policy(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": as_written(generator, "The spec of the CanaryPolicy, without metrics that have no data."),
        },
        "x-kubernetes-map-type": "atomic",
    })
}

impl ReleaseSnapshotSpec {
    /// What `release` keeps under `revision`, which is the revision of a variant or the digest
    /// of a policy.
    ///
    /// # Errors
    /// The content is neither of the two: it is not that of a [`Saved`].
    pub fn new(release: &str, revision: &str, mut content: Value) -> Result<Self, NotASnapshot> {
        let variant = content.get("variant").map(Content::from);
        let policy = content.get_mut("policy").map(Value::take);
        let policy = policy.map(|spec| Content::from(&json!({ "spec": spec })));
        let type_ = match (&variant, &policy) {
            (Some(_), None) => VARIANT,
            (None, Some(_)) => POLICY,
            _ => return Err(NotASnapshot),
        };
        let (release, revision) = (release.to_owned(), revision.to_owned());
        Ok(Self { release, type_: type_.to_owned(), revision, variant, policy })
    }

    /// What it holds.
    ///
    /// # Errors
    /// It was written by another version that this one does not understand, or by hand.
    pub fn content(&self) -> Result<Saved, serde_json::Error> {
        match (&self.variant, &self.policy) {
            (Some(variant), _) => variant.read().map(Saved::Variant),
            (None, Some(policy)) => policy.read().map(|Policy { spec }| Saved::Policy(spec)),
            (None, None) => Err(serde::de::Error::custom(format!(
                "it holds neither a variant nor a policy, but a {}",
                self.type_
            ))),
        }
    }

    /// The name of the object.
    pub fn name(&self) -> String {
        copy_name(&self.release, &self.revision)
    }
}

#[derive(Deserialize)]
struct Policy {
    spec: CanaryPolicySpec,
}

/// A content is neither a variant nor a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a variant nor a policy")]
pub struct NotASnapshot;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Variant;

    fn saved(content: &Saved) -> Value {
        serde_json::to_value(content).unwrap()
    }

    /// Whoever may write a snapshot can write one that can not be read.
    #[test]
    fn a_content_that_is_nested_too_deep_hides_neither_the_snapshot_nor_its_notes() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        let text = format!(
            r#"{{"metadata": {{"name": "a-1", "annotations": {{"serinus.dev/note": "x"}}}}, "spec": {{
                "release": "a", "type": "Variant", "revision": "1", "variant": {{"prompt": {deep}}}}}}}"#
        );
        let read: ReleaseSnapshot = serde_json::from_str(&text).unwrap();
        assert_eq!(
            read.metadata.annotations.as_ref().map(std::collections::BTreeMap::len),
            Some(1)
        );
        assert!(read.spec.content().is_err());
    }

    #[test]
    fn what_was_saved_is_read_again() {
        for content in
            [Saved::Variant(Variant::default()), Saved::Policy(CanaryPolicySpec::default())]
        {
            let spec = ReleaseSnapshotSpec::new("answers", "0123", saved(&content)).unwrap();
            assert_eq!(spec.name(), "answers-0123");
            let stored = serde_json::to_string(&spec).unwrap();
            let spec: ReleaseSnapshotSpec = serde_json::from_str(&stored).unwrap();
            assert_eq!(spec.content().unwrap(), content);
        }
        for other in [json!({}), json!(null), json!("text"), json!({"variant": {}, "policy": {}})] {
            assert_eq!(ReleaseSnapshotSpec::new("answers", "0123", other), Err(NotASnapshot));
        }
    }

    #[test]
    fn one_that_is_not_understood_is_read_as_an_object_and_says_why() {
        let with = |key: &str, value: Value| {
            let mut object = json!({
                "apiVersion": "serinus.dev/v1alpha1", "kind": "ReleaseSnapshot",
                "metadata": {"name": "answers-1"},
                "spec": {"release": "answers", "revision": "1", "type": "Variant",
                         "ofNextYear": true},
            });
            object["spec"][key] = value;
            serde_json::from_value::<ReleaseSnapshot>(object).unwrap().spec.content()
        };
        let mut next = saved(&Saved::Variant(Variant::default()))["variant"].clone();
        next["prompt"]["ofNextYear"] = json!(1);
        for (key, value, why) in [
            ("variant", next, "ofNextYear"),
            ("variant", json!("text"), "text"),
            ("policy", json!([]), "policy"),
            ("policy", json!({"spec": {"steps": [], "ofNextYear": 1}}), "ofNextYear"),
            ("type", json!("Model"), "Model"),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            assert!(error.to_lowercase().contains(&why.to_lowercase()), "{error}");
        }
    }
}
