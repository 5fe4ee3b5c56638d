//! The manifests in force, kept for the next start in a file beside the state: so a file
//! that can not be read then changes nothing, what is immutable stays so, and what is
//! absent is not deleted. Secrets are not kept: a copy would outlive their manifest.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::durable::Durable;
use crate::api::manifest::{self, Object};

/// Of the file; another one is not read.
const FORMAT: &str = "serinus.dev/manifests-in-force/1";

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    /// By the name of the file that defined them.
    files: BTreeMap<String, Vec<Value>>,
}

/// The file.
pub(super) struct Memory(Durable);

impl Memory {
    /// Reads the file: objects, each with the name of the file that defined it.
    ///
    /// # Errors
    /// The file is not ours, or can not be read.
    pub(super) fn open(path: PathBuf) -> anyhow::Result<(Self, Vec<(String, Object)>)> {
        let memory = Self(Durable::new(path));
        // It is written when something changes, which may be never.
        memory.0.restrict_permissions();
        let Some(bytes) = memory.0.read()? else { return Ok((memory, vec![])) };
        let objects = objects(&bytes).with_context(|| {
            format!(
                "{} is cut short or not of this version, so it is left as it is: move it away to \
                 go on with what the manifests say now",
                memory.0.path().display()
            )
        })?;
        Ok((memory, objects))
    }

    /// Whether somebody removed the file.
    pub(super) fn is_gone(&self) -> bool {
        self.0.is_gone()
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// It can not be written.
    pub(super) fn write<'a>(
        &self,
        objects: impl Iterator<Item = (&'a str, &'a Object)>,
    ) -> anyhow::Result<()> {
        let mut files = BTreeMap::<String, Vec<Value>>::new();
        for (file, object) in objects {
            if let Some(value) = object.to_value()? {
                files.entry(file.to_owned()).or_default().push(value);
            }
        }
        let stored = Stored { format: FORMAT.to_owned(), files };
        self.0.write(&serde_json::to_vec(&stored)?)
    }
}

pub(super) fn objects(bytes: &[u8]) -> anyhow::Result<Vec<(String, Object)>> {
    let stored: Stored = serde_json::from_slice(bytes)?;
    anyhow::ensure!(stored.format == FORMAT, "its format is {}", stored.format);
    let mut all = vec![];
    for (file, values) in stored.files {
        for value in values {
            match manifest::object(value) {
                Ok(object) => all.push((file.clone(), object)),
                // Rules of a newer version: what the file holds now is told by itself.
                Err(error) => tracing::warn!("of what was in force before, from {file}: {error}"),
            }
        }
    }
    Ok(all)
}
