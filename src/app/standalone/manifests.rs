//! The folder of manifests, read again when a file changes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::object_key;
use crate::{
    analysis::plan::undecidable,
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptRelease, PromptVersionSpec,
        manifest::{self, Object, Secrets},
    },
};

/// Something of the folder can not be used.
const INVALID: &str = "InvalidManifest";
/// The folder was read.
pub(super) const LOADED: &str = "Loaded";

/// What identifies an object.
type Id = (&'static str, String, String);

/// The objects of a folder.
pub(super) struct Manifests {
    folder: PathBuf,
    seen: BTreeMap<PathBuf, (SystemTime, u64)>,
    /// What each file held when it was last valid.
    files: BTreeMap<PathBuf, Vec<Object>>,
    objects: BTreeMap<Id, Object>,
    /// What keeps each policy from deciding, computed once for each content.
    findings: BTreeMap<Id, (CanaryPolicySpec, Option<String>)>,
    /// Grows with every change.
    version: u64,
}

impl Manifests {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            seen: BTreeMap::new(),
            files: BTreeMap::new(),
            objects: BTreeMap::new(),
            findings: BTreeMap::new(),
            version: 0,
        }
    }

    /// Reads files that changed. A file that is not valid keeps its last valid content.
    /// Returns what to tell: one word, and a sentence.
    pub(super) fn reload(&mut self) -> Vec<(&'static str, String)> {
        let mut news = vec![];
        let found = match self.stamps() {
            Ok(found) => found,
            Err(error) => {
                return vec![(
                    INVALID,
                    format!("{} can not be read: {error}", self.folder.display()),
                )];
            }
        };
        if found == self.seen {
            return news;
        }
        for (path, stamp) in &found {
            if self.seen.get(path) != Some(stamp) {
                match read(path) {
                    Ok(objects) => {
                        self.files.insert(path.clone(), objects);
                    }
                    Err(error) => news.push((INVALID, format!("{}: {error}", path.display()))),
                }
            }
        }
        self.files.retain(|path, _| found.contains_key(path));
        self.seen = found;
        self.assemble(&mut news);
        news
    }

    /// One object of each name. What is immutable stays as it was.
    fn assemble(&mut self, news: &mut Vec<(&'static str, String)>) {
        let mut objects = BTreeMap::new();
        for (path, content) in &self.files {
            for object in content {
                let id = id(object);
                let mut kept = object.clone();
                if let Some(old) = self.objects.get(&id)
                    && let Err(error) = object.check_update(old)
                {
                    news.push((INVALID, format!("{}: {error}", path.display())));
                    kept = old.clone();
                }
                if objects.insert(id.clone(), kept).is_some() {
                    let (kind, namespace, name) = id;
                    news.push((
                        INVALID,
                        format!("{}: {kind} {namespace}/{name} is defined twice", path.display()),
                    ));
                }
            }
        }
        if objects.len() != self.objects.len() {
            news.push((LOADED, format!("{} objects in {}", objects.len(), self.folder.display())));
        }
        self.objects = objects;
        self.version += 1;
        self.find_out(news);
    }

    /// Asks of every policy whether it can decide, when it is new or has changed.
    fn find_out(&mut self, news: &mut Vec<(&'static str, String)>) {
        let mut findings = BTreeMap::new();
        for (id, object) in &self.objects {
            let Object::Policy(policy) = object else { continue };
            let known = self.findings.get(id).filter(|(spec, _)| *spec == policy.spec);
            let finding = known.cloned().unwrap_or_else(|| {
                let finding = undecidable(&policy.spec);
                if let Some(text) = &finding {
                    news.push(("PolicyCanNotDecide", format!("{}: {text}", id.2)));
                }
                (policy.spec.clone(), finding)
            });
            findings.insert(id.clone(), finding);
        }
        self.findings = findings;
    }

    /// What keeps a policy from deciding, if anything does.
    pub(super) fn undecidable(&self, namespace: &str, name: &str) -> Option<String> {
        let id = ("CanaryPolicy", namespace.to_owned(), name.to_owned());
        self.findings.get(&id)?.1.clone()
    }

    fn stamps(&self) -> std::io::Result<BTreeMap<PathBuf, (SystemTime, u64)>> {
        let mut stamps = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
                let metadata = fs::metadata(&path)?;
                stamps.insert(path, (metadata.modified()?, metadata.len()));
            }
        }
        Ok(stamps)
    }

    pub(super) fn releases(&self) -> impl Iterator<Item = &PromptRelease> {
        self.objects.values().filter_map(|o| match o {
            Object::Release(release) => Some(release),
            _ => None,
        })
    }

    /// Another one means that something may have changed.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = &Secrets> {
        self.objects.values().filter_map(|o| match o {
            Object::Secret(secrets) => Some(secrets),
            _ => None,
        })
    }

    pub(super) fn secret(&self, namespace: &str, name: &str) -> Option<&Secrets> {
        match self.get("Secret", namespace, name)? {
            Object::Secret(secrets) => Some(secrets),
            _ => None,
        }
    }

    fn get(&self, kind: &'static str, namespace: &str, name: &str) -> Option<&Object> {
        self.objects.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    pub(super) fn prompt(&self, namespace: &str, name: &str) -> Option<&PromptVersionSpec> {
        match self.get("PromptVersion", namespace, name)? {
            Object::Prompt(prompt) => Some(&prompt.spec),
            _ => None,
        }
    }

    pub(super) fn backend(&self, namespace: &str, name: &str) -> Option<&LLMDeploymentSpec> {
        match self.get("LLMDeployment", namespace, name)? {
            Object::Backend(backend) => Some(&backend.spec),
            _ => None,
        }
    }

    pub(super) fn policy(&self, namespace: &str, name: &str) -> Option<&CanaryPolicySpec> {
        match self.get("CanaryPolicy", namespace, name)? {
            Object::Policy(policy) => Some(&policy.spec),
            _ => None,
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Object>> {
    Ok(manifest::parse(&fs::read_to_string(path)?)?)
}

fn id(object: &Object) -> Id {
    let (namespace, name) = object_key(object);
    (object.kind(), namespace, name)
}
