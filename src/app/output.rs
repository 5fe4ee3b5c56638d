//! What is printed for programs.

use anyhow::ensure;
use serde::Serialize;

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
    ///
    /// # Errors
    /// It can not be written in this form.
    pub fn document(self, what: &impl Serialize) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Text => None,
            Self::Json => Some(format!("{}\n", serde_json::to_string_pretty(what)?)),
            Self::Yaml => Some(serde_yaml_ng::to_string(what)?),
        })
    }
}

/// Whether what was printed is all that there is.
///
/// # Errors
/// Some objects can not be read: these lines say which, and why.
pub fn complete(unread: &[String]) -> anyhow::Result<()> {
    let lines = unread.join("\n");
    ensure!(unread.is_empty(), "without what this version can not read:\n{lines}");
    Ok(())
}
