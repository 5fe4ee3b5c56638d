//! The one local file: what the API server keeps in a cluster. It is replaced as a
//! whole (written beside, synced, renamed), so a kill at any instant leaves either the
//! old or the new content.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::{PromptRelease, PromptReleaseSpec, PromptReleaseStatus, snapshot::Saved};

/// What is kept of one release.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    /// Drawn when the release was first seen; part of the assignment's hash.
    pub uid: String,
    /// When the release was first seen.
    pub created: Timestamp,
    /// Counts the changes of the spec, as the API server does.
    pub generation: i64,
    spec: PromptReleaseSpec,
    pub status: PromptReleaseStatus,
    pub saved: BTreeMap<String, Saved>,
}

/// All releases and their file.
pub(super) struct State {
    path: PathBuf,
    releases: BTreeMap<String, Kept>,
    /// The file does not hold it yet.
    changed: bool,
}

impl State {
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let releases = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is not a state file of this version: move it away to start anew",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { path, releases, changed: false })
    }

    /// Takes note of a release and of changes of its spec.
    pub(super) fn adopt(&mut self, key: &str, release: &PromptRelease, now: Timestamp) {
        let changed = &mut self.changed;
        let kept = self.releases.entry(key.to_owned()).or_insert_with(|| {
            *changed = true;
            Kept {
                uid: format!("{:032x}", rand::random::<u128>()),
                created: now,
                generation: 1,
                spec: release.spec.clone(),
                status: PromptReleaseStatus::default(),
                saved: BTreeMap::new(),
            }
        });
        if kept.spec != release.spec {
            self.changed = true;
            kept.spec = release.spec.clone();
            kept.generation += 1;
        }
    }

    /// Drops releases whose manifest is gone.
    pub(super) fn forget_all_but(&mut self, keys: &BTreeSet<String>) {
        let before = self.releases.len();
        self.releases.retain(|key, _| keys.contains(key));
        self.changed |= self.releases.len() != before;
    }

    pub(super) fn get(&self, key: &str) -> Option<&Kept> {
        self.releases.get(key)
    }

    /// One that is about to change.
    pub(super) fn change(&mut self, key: &str) -> Option<&mut Kept> {
        self.changed = true;
        self.releases.get_mut(key)
    }

    /// Replaces the file, if something has changed; says whether. What could not be
    /// written is written at the next call.
    ///
    /// # Errors
    /// The file can not be written.
    pub(super) fn write_changes(&mut self) -> anyhow::Result<bool> {
        if self.changed {
            self.write().context("the state file could not be written")?;
        }
        Ok(std::mem::take(&mut self.changed))
    }

    fn write(&self) -> anyhow::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let beside = self.path.with_extension("tmp");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(&self.releases)?)?;
        file.sync_data()?;
        fs::rename(&beside, &self.path)?;
        Ok(())
    }
}
