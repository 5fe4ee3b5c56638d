//! What is printed for programs.

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::PromptRelease;

/// For people, or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

impl Output {
    /// The document; none when text is wanted.
    pub(super) fn document(self, what: &impl Serialize) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Text => None,
            Self::Json => Some(format!("{}\n", serde_json::to_string_pretty(what)?)),
            Self::Yaml => Some(serde_yaml_ng::to_string(what)?),
        })
    }
}

/// Releases as `kubectl get -o json` has several objects.
pub(super) fn items(releases: &[PromptRelease]) -> anyhow::Result<Value> {
    let items = releases.iter().map(object).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

/// One release, without who wrote which field of it.
pub(super) fn object(release: &PromptRelease) -> anyhow::Result<Value> {
    let mut release = release.clone();
    release.metadata.managed_fields = None;
    Ok(serde_json::to_value(release)?)
}
