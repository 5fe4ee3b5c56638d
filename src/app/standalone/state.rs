//! The one local file: what the API server keeps in a cluster. It is replaced as a
//! whole, so a kill at any instant leaves either the old or the new content, and the
//! content before is kept beside it. One process has it at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    durable::{Durable, beside, read},
    lock::Lock,
    manifests::Event,
};
use crate::{
    api::{
        PromptRelease, PromptReleaseSpec, PromptReleaseStatus,
        snapshot::{EarlierRoute, LastServed, Saved},
    },
    prompt::short,
    rollout::snapshot::namespace_of,
};

/// Of releases that were deleted the last so many are remembered.
const DELETED: usize = 1000;

/// The ending of the file of what is in force, beside the state.
pub(super) const IN_FORCE: &str = "in-force";

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
    /// Since when it has no manifest. What it was remains, so that it goes on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Timestamp>,
    /// What it served on routes that it lost, or left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<EarlierRoute>,
    /// Annotations of the manifest that requests at the command line took the place of, by name:
    /// they ask for nothing any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    replaced: BTreeMap<String, String>,
}

impl Kept {
    fn has_route(&self, key: &str, route: &str) -> bool {
        match &self.spec.route {
            Some(own) => own == route,
            None => key.split_once('/').is_some_and(|(_, name)| name == route),
        }
    }

    pub(super) fn spec(&self) -> &PromptReleaseSpec {
        &self.spec
    }

    pub(super) fn serves(&self) -> bool {
        !self.status.routing.variants.is_empty()
    }

    /// What users of `route` got from it last.
    pub(super) fn on_route(&self, key: &str, route: &str) -> Option<LastServed> {
        if self.serves() && self.has_route(key, route) {
            let revision = self.status.stable.as_ref()?.revision.clone();
            let failed = self.status.failed_revision.clone();
            return Some(LastServed { revision, failed, until: self.deleted, named: true });
        }
        self.earlier.iter().find(|earlier| earlier.route == route).map(LastServed::from)
    }

    /// Notes what it served on its route until `until`.
    fn leave_route(&mut self, key: &str, until: Timestamp) {
        let route = self.spec.route.clone();
        let route = route.or_else(|| key.split_once('/').map(|(_, name)| name.to_owned()));
        let (Some(route), Some(stable), true) = (route, &self.status.stable, self.serves()) else {
            return;
        };
        let (revision, failed) = (stable.revision.clone(), self.status.failed_revision.clone());
        EarlierRoute::add(&mut self.earlier, EarlierRoute { route, revision, failed, until });
    }
}

pub(super) type Releases = BTreeMap<String, Kept>;

/// All releases and their file.
pub(super) struct State {
    file: Durable,
    lock: Lock,
    releases: Releases,
    /// The file does not hold it yet.
    changed: bool,
}

impl State {
    /// Opens the file, or makes it, and takes its lock. The second value is what to tell.
    ///
    /// # Errors
    /// Another process has it, it is not ours, or it can not be written: the path, and
    /// what to do.
    pub(super) fn open(path: PathBuf, now: Timestamp) -> anyhow::Result<(Self, Vec<Event>)> {
        // A folder; or a pipe, which would be waited for.
        let is_special = std::fs::metadata(&path).is_ok_and(|there| !there.is_file());
        let name = path.display();
        anyhow::ensure!(!is_special, "{name} is not a regular file: name one with --state");
        let lock = Lock::take(&path, now)?;
        let file = Durable::new(path).keeping_previous();
        let mut events = vec![];
        let releases = match file.read()? {
            Some(bytes) => {
                let releases = parse(&bytes).with_context(|| refused(&file))?;
                anyhow::ensure!(!was_emptied(&file, &releases), refused(&file));
                events.extend(keep_aside(&file, &bytes, &releases)?);
                releases
            }
            None => match read(&file.previous())? {
                None if in_force(&file).exists() => anyhow::bail!(lost(&file)),
                None => Releases::new(),
                Some(bytes) => {
                    let releases = parse(&bytes).with_context(|| lost(&file))?;
                    let note = format!(
                        "{} does not exist: goes on from {}, which is the state before its last \
                         change ({} releases); to start anew stop the process and remove both, and {}",
                        file.path().display(),
                        file.previous().display(),
                        releases.len(),
                        in_force(&file).display()
                    );
                    events.push(Event { warning: true, reason: "StateRestored", note });
                    releases
                }
            },
        };
        // That it can be written is tried now, when somebody looks.
        let mut state = Self { file, lock, releases, changed: true };
        state.write_changes()?;
        Ok((state, events))
    }

    /// Takes note of a release and of changes of its spec. Says when it was deleted before.
    pub(super) fn adopt(
        &mut self,
        key: &str,
        release: &PromptRelease,
        now: Timestamp,
    ) -> Option<String> {
        let route = release.route();
        let taken = self.releases.iter().any(|(other, kept)| {
            other != key && kept.deleted.is_none() && kept.serves() && kept.has_route(other, &route)
        });
        let known = self.releases.get(key).filter(|kept| kept.deleted.is_some());
        let own = known.and_then(|kept| kept.on_route(key, &route)).map(|own| own.end());
        // Only one that comes back is asked of: the others are decided from what they are.
        let elsewhere = known
            .and_then(|_| self.served_before(&route, key))
            .filter(|(other, last)| {
                namespace_of(other) != namespace_of(key) && own.is_none_or(|own| own < last.end())
            })
            .map(|(other, _)| other.to_owned());
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
                deleted: None,
                earlier: vec![],
                replaced: BTreeMap::new(),
            }
        });
        let goes_on = !taken && elsewhere.is_none() && kept.has_route(key, &route);
        let has_left = kept.deleted.filter(|_| !goes_on);
        if let Some(deleted) = has_left {
            kept.leave_route(key, deleted);
        }
        if kept.spec != release.spec {
            self.changed = true;
            kept.spec = release.spec.clone();
            kept.generation += 1;
        }
        let deleted = kept.deleted.take()?;
        self.changed = true;
        if taken {
            // Meanwhile a person gave the route to another release, which keeps it.
            kept.status.routing.variants.clear();
            kept.status.routing.generation += 1;
            return Some(format!(
                "was deleted at {deleted:.0} and is back: another release serves the route \
                 {route} now and keeps it; delete that one to serve again"
            ));
        }
        if let Some(other) = elsewhere {
            kept.status.routing.variants.clear();
            kept.status.routing.generation += 1;
            return Some(format!(
                "was deleted at {deleted:.0} and is back: {other} of another namespace served the \
                 route {route} last"
            ));
        }
        let stable = kept.status.stable.as_ref();
        let serves = stable.map_or_else(|| "nothing".to_owned(), |s| short(&s.revision).to_owned());
        Some(format!(
            "was deleted at {deleted:.0} and is back: it goes on where it was, {serves} serves"
        ))
    }

    /// Notes that releases without a manifest are deleted, and answers which of them were not
    /// before.
    pub(super) fn delete_all_but(
        &mut self,
        keys: &BTreeSet<String>,
        now: Timestamp,
    ) -> Vec<String> {
        let mut gone = vec![];
        for (key, kept) in &mut self.releases {
            if kept.deleted.is_none() && !keys.contains(key) {
                kept.deleted = Some(now);
                gone.push(key.clone());
            }
        }
        self.changed |= !gone.is_empty();
        let mut deleted: Vec<(Timestamp, String)> =
            self.releases.iter().filter_map(|(key, k)| Some((k.deleted?, key.clone()))).collect();
        if deleted.len() > DELETED {
            deleted.sort_unstable();
            for (_, key) in deleted.iter().take(deleted.len() - DELETED) {
                self.releases.remove(key);
            }
            self.changed = true;
        }
        gone
    }

    /// The annotations of a release that requests at the command line took the place of.
    pub(super) fn replaced(&self, key: &str) -> BTreeMap<String, String> {
        self.releases.get(key).map(|kept| kept.replaced.clone()).unwrap_or_default()
    }

    /// Notes these annotations.
    pub(super) fn replace(&mut self, key: &str, annotations: BTreeMap<String, String>) {
        if let Some(kept) = self.releases.get_mut(key).filter(|kept| kept.replaced != annotations) {
            kept.replaced = annotations;
            self.changed = true;
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Kept> {
        self.releases.get(key)
    }

    /// The release that served `route` last, of those that do not ask for it now; not
    /// counting `other_than`.
    pub(super) fn served_before(
        &self,
        route: &str,
        other_than: &str,
    ) -> Option<(&str, LastServed)> {
        let others = self.releases.iter().filter(|(key, kept)| {
            *key != other_than && (kept.deleted.is_some() || !kept.has_route(key, route))
        });
        let served = others.filter_map(|(key, kept)| Some((&**key, kept.on_route(key, route)?)));
        served.max_by_key(|(_, served)| served.end())
    }

    /// One that is about to change.
    pub(super) fn change(&mut self, key: &str) -> Option<&mut Kept> {
        self.changed = true;
        self.releases.get_mut(key)
    }

    /// Replaces the file, if something has changed; says whether. What could not be
    /// written is written at the next call, and a file that somebody removed is written again.
    ///
    /// # Errors
    /// The file can not be written, or another process has it now.
    pub(super) fn write_changes(&mut self) -> anyhow::Result<bool> {
        if self.changed || self.file.is_gone() {
            self.lock.keep(self.file.path())?;
            self.file.write(&serde_json::to_vec(&self.releases)?)?;
        }
        Ok(std::mem::take(&mut self.changed))
    }
}

pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Releases> {
    serde_json::from_slice(bytes)
}

/// A field that another version wrote would be lost by the next write: what it wrote is
/// kept in a file of its own.
fn keep_aside(file: &Durable, bytes: &[u8], releases: &Releases) -> anyhow::Result<Option<Event>> {
    let (found, known) = (serde_json::from_slice(bytes)?, serde_json::to_value(releases)?);
    let aside = Durable::new(beside(file.path(), "other-version"));
    aside.restrict_permissions();
    let Some(field) = unknown(&found, &known) else { return Ok(None) };
    aside.write(bytes)?;
    let note = format!(
        "{} was written by another version: this one does not know {field}, and goes on without; \
         the whole is kept in {}",
        file.path().display(),
        aside.path().display()
    );
    Ok(Some(Event { warning: true, reason: "StateOfAnotherVersion", note }))
}

/// A field of `found` that `known` does not have.
fn unknown(found: &Value, known: &Value) -> Option<String> {
    let deeper = |name: String, found: &Value, known: Option<&Value>| match known {
        // Absent and empty are the same to us.
        None if is_empty(found) => None,
        None => Some(name),
        Some(known) => unknown(found, known).map(|rest| format!("{name}.{rest}")),
    };
    match (found, known) {
        (Value::Object(found), Value::Object(known)) => {
            found.iter().find_map(|(name, value)| deeper(name.clone(), value, known.get(name)))
        }
        (Value::Array(found), Value::Array(known)) => {
            let mut pairs = found.iter().enumerate();
            pairs.find_map(|(i, value)| deeper(i.to_string(), value, known.get(i)))
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A state without any release, where there was one before the last change. A release that is
/// deleted stays in the state, so this process has not written it.
fn was_emptied(file: &Durable, releases: &Releases) -> bool {
    releases.is_empty() && previous(file).is_some_and(|releases| !releases.is_empty())
}

/// The manifests in force, which every run keeps beside its state.
fn in_force(file: &Durable) -> PathBuf {
    beside(file.path(), IN_FORCE)
}

/// What to do when there is no state file, and nothing to go on from, where releases ran.
fn lost(file: &Durable) -> String {
    format!(
        "{} does not exist and {} can not be read as a state, but releases ran here: restore one of \
         them; or, to begin anew, move away what is left of these two and of {}: then what the \
         manifests name is released to all users without a canary",
        file.path().display(),
        file.previous().display(),
        in_force(file).display(),
    )
}

fn previous(file: &Durable) -> Option<Releases> {
    parse(&read(&file.previous()).ok()??).ok()
}

/// What to do with a file that is not ours. It is left as it is.
fn refused(file: &Durable) -> String {
    let then = match previous(file) {
        Some(releases) => format!(
            "the next start goes on from {}, which is the state before its last change ({} releases)",
            file.previous().display(),
            releases.len()
        ),
        None => format!(
            "without {}, too, the next start begins anew: what the manifests name is released to \
             all users without a canary",
            in_force(file).display()
        ),
    };
    let path = file.path().display();
    format!(
        "{path} is cut short or not a state file of this version, so it is left as it is: restore \
         it, or move it away to start anew (mv {path} {path}.broken): {then}"
    )
}
