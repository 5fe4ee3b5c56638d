//! What a release keeps for itself, so that deleting a referenced object never
//! breaks serving or a rollback: the content of a `ControllerRevision`.

use serde::{Deserialize, Serialize};

use super::{CanaryPolicySpec, LLMDeploymentSpec, PromptVersionSpec};

/// One prompt version on one model backend: the unit that is compared.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// The PromptVersion's name.
    pub prompt_name: String,
    /// The prompt itself.
    pub prompt: PromptVersionSpec,
    /// The LLMDeployment's name.
    pub backend_name: String,
    /// The backend itself, as it was when the variant was first seen.
    pub backend: LLMDeploymentSpec,
}

/// A variant in the text that it is saved in: decoded it takes several times the memory,
/// and of most it is read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedVariant {
    /// The LLMDeployment's name.
    pub backend_name: Box<str>,
    json: Box<str>,
}

impl PackedVariant {
    /// Decodes it.
    ///
    /// # Errors
    /// It is not the text of a variant, which `From` does not write.
    pub fn open(&self) -> Result<Variant, serde_json::Error> {
        serde_json::from_str(&self.json)
    }
}

impl From<&Variant> for PackedVariant {
    fn from(variant: &Variant) -> Self {
        // A variant has no map with keys that JSON does not know: writing it does not fail.
        let json = serde_json::to_string(variant).unwrap_or_default();
        Self { backend_name: variant.backend_name.as_str().into(), json: json.into() }
    }
}

/// The immutable record that a ControllerRevision holds.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::large_enum_variant, reason = "few exist, and they are short-lived")]
pub enum Saved {
    /// A variant, named by its revision.
    Variant(Variant),
    /// The policy that a canary runs with, named by its digest.
    Policy(CanaryPolicySpec),
}

/// The name of the ControllerRevision that holds the copy `name` of a release.
pub fn copy_name(release: &str, name: &str) -> String {
    format!("{release}-{name}")
}
