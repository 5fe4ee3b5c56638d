//! The objects of a folder. What can not be read changes nothing: the last valid content
//! of a file stays in force, also after a restart. What is absent is not deleted until
//! it has been absent for `GRACE`, and that was said.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    absent::{Absences, TWICE, namespace, place_of},
    durable::beside,
    folder::{Change, Folder},
    memory::Memory,
    object_key,
    state::IN_FORCE,
    unread::{is_json, is_other_json},
};
use crate::{
    analysis::plan::undecidable,
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptRelease, PromptVersionSpec,
        manifest::{self, Broken, Object, Said, Secrets},
    },
    gateway::notices::{Notice, Withheld},
};

/// An object whose manifest is away for so long is deleted: longer than any save, a
/// `git stash` or a volume that is mounted again takes.
pub const GRACE: SignedDuration = SignedDuration::from_secs(30);
/// Between two looks no more time than this counts as absence: a laptop that slept, or a
/// clock that was set, has not looked.
const LOOK_COUNTS: SignedDuration = SignedDuration::from_secs(2);
/// So many objects are named in one message.
pub(super) const NAMED: usize = 3;

/// The folder was read.
const LOADED: &str = "Loaded";

/// What identifies an object.
type Id = (&'static str, String, String);

/// Something that happened once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub warning: bool,
    pub reason: &'static str,
    pub note: String,
}

/// What a file held when it was last valid.
#[derive(Default)]
struct Content {
    objects: Vec<Object>,
    /// Why that is not what the file holds now, made once: it may quote a value of 2 MiB.
    problem: Option<Notice>,
    /// The documents of a file that can not be used, as far as they can be told apart.
    said: Vec<Said>,
    /// It may define more than is known of it.
    unknown: bool,
    /// The file is there.
    here: bool,
    /// It is JSON of something else than Serinus.
    foreign: bool,
}

/// An object in force.
#[derive(Clone)]
struct Held {
    object: Object,
    /// The file that defined it last.
    file: String,
    /// How long no file has defined it.
    missing: Option<SignedDuration>,
}

/// The objects of a folder.
pub(super) struct Manifests {
    folder: Folder,
    memory: Memory,
    files: BTreeMap<String, Content>,
    objects: BTreeMap<Id, Held>,
    /// What keeps each policy from deciding, computed once for each content.
    findings: BTreeMap<Id, (CanaryPolicySpec, Option<String>)>,
    /// Grows with every change.
    version: u64,
    looked_at: Option<Timestamp>,
    /// Why the folder itself can not be read.
    unread: Option<String>,
    /// What is wrong with definitions, as of the last change.
    wrong: Vec<Notice>,
    /// All that is wrong, as of the last look.
    notices: Vec<Notice>,
    /// Why objects are not in force, as of the last look.
    pub(super) absences: Absences,
    /// Objects are in force that the memory does not hold.
    remember: bool,
}

impl Manifests {
    /// The folder's objects, beginning with those in force when the process last ran, which are
    /// remembered beside `state`.
    ///
    /// # Errors
    /// The memory of them can not be used.
    pub(super) fn open(folder: &Path, state: &Path) -> anyhow::Result<Self> {
        let (memory, remembered) = Memory::open(beside(state, IN_FORCE))?;
        let mut files = BTreeMap::<String, Content>::new();
        let mut objects = BTreeMap::new();
        for (file, object) in remembered {
            files.entry(file.clone()).or_default().objects.push(object.clone());
            objects.insert(id(&object), Held { object, file, missing: None });
        }
        Ok(Self {
            folder: Folder::new(folder, state),
            memory,
            files,
            objects,
            findings: BTreeMap::new(),
            version: 0,
            looked_at: None,
            unread: None,
            wrong: vec![],
            notices: vec![],
            absences: Absences::default(),
            remember: false,
        })
    }

    /// Reads files that changed, and deletes what was absent for long enough.
    pub(super) fn reload(&mut self, now: Timestamp) -> Vec<Event> {
        let before = self.version;
        let events = self.look(now);
        let notices = self.all_that_is_wrong();
        // What a release says that misses an object names the files in which it may be.
        if notices != self.notices {
            self.notices = notices;
            self.version += 1;
        }
        if self.version != before {
            self.absences = self.find_absences();
        }
        events
    }

    fn look(&mut self, now: Timestamp) -> Vec<Event> {
        let mut events = vec![];
        let changes = match self.folder.look(now) {
            Ok(changes) => changes,
            Err(error) => {
                self.unread = Some(format!(
                    "can not be read ({error}): everything stays as it is until it can be"
                ));
                return events;
            }
        };
        self.unread = None;
        let first = self.looked_at.is_none();
        let passed = self.looked_at.replace(now).map(|last| now.duration_since(last));
        let passed = passed.unwrap_or_default().clamp(SignedDuration::ZERO, LOOK_COUNTS);
        let mut due = false;
        if !self.is_empty() {
            for missing in self.objects.values_mut().filter_map(|held| held.missing.as_mut()) {
                *missing += passed;
                due |= *missing >= GRACE;
            }
        }
        if changes.is_empty() && !due && !first {
            return events;
        }
        for (name, change) in changes {
            self.take(name, change);
        }
        self.assemble(&mut events);
        events
    }

    /// A file's new content, when it is valid.
    fn take(&mut self, name: String, change: Change) {
        let file = self.files.entry(name.clone()).or_default();
        file.here = change != Change::Gone;
        let said = std::mem::take(&mut file.said);
        (file.unknown, file.foreign) = (false, false);
        let is_new = file.objects.is_empty();
        let problem = |reason, why: &str| Some(withheld(&name, reason, why));
        file.problem = match change {
            // Much JSON is something else. Before it is read: it may be large.
            Change::Content(bytes) if is_new && is_json(&name) && !names_version(&bytes) => {
                file.foreign = true;
                None
            }
            Change::Content(bytes) => match manifest::read(&bytes) {
                Ok(objects) if objects.is_empty() && !is_new => {
                    let why = "holds no manifest any more: what it defined stays in force; remove \
                               the file to delete that";
                    problem("EmptyFile", why)
                }
                Ok(objects) if objects.is_empty() => {
                    let why = "holds no manifest: write one, or remove the file";
                    problem("EmptyFile", why)
                }
                Ok(objects) => {
                    file.objects = objects;
                    None
                }
                Err(broken) => {
                    let notice = invalid(&name, &broken);
                    (file.said, file.unknown) = (broken.said, broken.more);
                    Some(notice)
                }
            },
            Change::Unusable(_) if is_new && is_other_json(self.folder.path(), &name) => {
                file.foreign = true;
                None
            }
            Change::Unusable(why) => {
                file.unknown = true;
                problem("UnreadableFile", &why)
            }
            Change::Gone => None,
        };
        // The message of a release that misses one of these objects names this file.
        if file.said != said {
            self.version += 1;
        }
        if !file.here && file.objects.is_empty() {
            self.files.remove(&name);
        }
    }

    /// Whether the folder holds no manifest at all.
    fn is_empty(&self) -> bool {
        !self.files.values().any(|file| file.here && !file.foreign)
    }

    /// One object of each name, and what keeps others from being used.
    fn assemble(&mut self, events: &mut Vec<Event>) {
        let mut wrong = vec![];
        let mut objects = BTreeMap::new();
        for (id, definitions) in self.definitions() {
            let old = self.objects.get(&id);
            match settle(&id, &definitions, old, &mut wrong) {
                Some(held) => objects.insert(id, held),
                None => continue,
            };
        }
        let absent = self.absent(&objects, events);
        tell_missing(&absent, &self.files, &mut wrong);
        objects.extend(absent);
        self.files.retain(|name, file| {
            file.here || objects.values().any(|held| held.file == *name && held.missing.is_some())
        });
        if objects.len() != self.objects.len() {
            let note = format!("{} objects in {}", objects.len(), self.folder.path().display());
            events.push(Event { warning: false, reason: LOADED, note });
        }
        let content = |held: &BTreeMap<Id, Held>| {
            held.values().map(|h| (h.file.clone(), h.object.clone())).collect::<Vec<_>>()
        };
        if content(&objects) != content(&self.objects) {
            self.version += 1;
            self.remember = true;
        }
        self.objects = objects;
        self.version = self.version.max(1);
        self.wrong = wrong;
        self.find_out(events);
    }

    /// Who defines each object.
    fn definitions(&self) -> BTreeMap<Id, Vec<(String, Object)>> {
        let mut all = BTreeMap::<Id, Vec<_>>::new();
        for (name, file) in self.files.iter().filter(|(_, file)| file.here) {
            for object in &file.objects {
                all.entry(id(object)).or_default().push((name.clone(), object.clone()));
            }
        }
        all
    }

    /// Objects in force that nobody defines now, without those that are deleted by this.
    fn absent(&self, defined: &BTreeMap<Id, Held>, events: &mut Vec<Event>) -> BTreeMap<Id, Held> {
        let mut absent = BTreeMap::new();
        for (id, held) in self.objects.iter().filter(|(id, _)| !defined.contains_key(*id)) {
            let missing = held.missing.unwrap_or_default();
            // A key that was taken out of a file is revoked: that does not wait.
            let read = self.files.get(&held.file).is_some_and(|f| f.here && f.problem.is_none());
            let revoked = read && matches!(held.object, Object::Secret(_));
            if revoked || (missing >= GRACE && !self.is_empty()) {
                events.push(Event {
                    warning: !revoked,
                    reason: "Deleted",
                    note: deleted(id, held),
                });
            } else {
                absent.insert(id.clone(), Held { missing: Some(missing), ..held.clone() });
            }
        }
        absent
    }

    /// Asks of every policy whether it can decide, when it is new or has changed.
    fn find_out(&mut self, events: &mut Vec<Event>) {
        let mut findings = BTreeMap::new();
        for (id, held) in &self.objects {
            let Object::Policy(policy) = &held.object else { continue };
            let known = self.findings.get(id).filter(|(spec, _)| *spec == policy.spec);
            let finding = known.cloned().unwrap_or_else(|| {
                let finding = undecidable(&policy.spec);
                if let Some(text) = &finding {
                    let (reason, note) = ("PolicyCanNotDecide", format!("{}: {text}", id.2));
                    events.push(Event { warning: true, reason, note });
                }
                (policy.spec.clone(), finding)
            });
            findings.insert(id.clone(), finding);
        }
        self.findings = findings;
    }

    /// Keeps what is in force for the next start, if that has changed or the file is gone.
    ///
    /// # Errors
    /// It can not be written; it is tried again by the next call.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        if self.remember || (!self.objects.is_empty() && self.memory.is_gone()) {
            let objects = self.objects.values().map(|held| (held.file.as_str(), &held.object));
            self.memory.write(objects)?;
            self.remember = false;
        }
        Ok(())
    }

    /// What is wrong with the folder, its files and what they define, as of the last look.
    pub(super) fn notices(&self) -> &[Notice] {
        &self.notices
    }

    fn all_that_is_wrong(&self) -> Vec<Notice> {
        let folder = self.folder.path().display().to_string();
        let unread = self.unread.iter();
        let mut all: Vec<Notice> =
            unread.map(|why| withheld(&folder, "UnreadableFolder", why)).collect();
        all.extend(self.files.values().filter_map(|file| file.problem.clone()));
        // A file that is there and defines nothing has a notice of its own.
        if self.is_empty() && self.looked_at.is_some() {
            let message = if self.objects.is_empty() {
                "holds no manifest: put files *.yaml there (folders inside are not read)"
            } else {
                "holds no manifest any more: nothing is deleted, because that is how a volume looks \
                 that is not mounted; to end all releases stop the process"
            };
            all.push(withheld(&folder, "EmptyFolder", message));
        }
        all.extend(self.not_read());
        all.extend(self.wrong.iter().cloned());
        all
    }

    /// Folders and files that seem to hold manifests, and are not read.
    fn not_read(&self) -> impl Iterator<Item = Notice> {
        let folders = self.folder.not_read().map(|inside| {
            let message = "holds manifests, and folders inside are not read: move them up";
            withheld(&format!("{inside}/"), "FolderNotRead", message)
        });
        let files = self.folder.misnamed().iter().map(|name| {
            let message = "looks like a manifest and is not read because of its name: files *.yaml, \
                           *.yml and *.json are; rename it, or add .off to its name to leave it out";
            withheld(name, "FileNotRead", message)
        });
        folders.chain(files)
    }

    /// What keeps a policy from deciding, if anything does.
    pub(super) fn undecidable(&self, namespace: &str, name: &str) -> Option<String> {
        let id = ("CanaryPolicy", namespace.to_owned(), name.to_owned());
        self.findings.get(&id)?.1.clone()
    }

    pub(super) fn releases(&self) -> impl Iterator<Item = &PromptRelease> {
        self.objects.values().filter_map(|held| match &held.object {
            Object::Release(release) => Some(&**release),
            _ => None,
        })
    }

    /// Another one means that something may have changed.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = &Secrets> {
        self.objects.values().filter_map(|held| match &held.object {
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

    /// Why objects are not in force that a file defines, or may define.
    fn find_absences(&self) -> Absences {
        let mut absences = Absences::default();
        for (name, file) in &self.files {
            file.said.iter().for_each(|said| absences.add_broken(name, said));
        }
        for twice in self.wrong.iter().filter(|notice| notice.reason == TWICE) {
            absences.add_twice(twice);
        }
        let unknown = self.files.values().filter(|file| file.unknown);
        let unknown = unknown.filter_map(|file| file.problem.clone());
        unknown.chain(self.not_read()).for_each(|notice| absences.add_unknown(&notice.place));
        absences
    }

    /// Whether an object is in force.
    pub(super) fn is_held(&self, kind: &'static str, namespace: &str, name: &str) -> bool {
        self.get(kind, namespace, name).is_some()
    }

    fn get(&self, kind: &'static str, namespace: &str, name: &str) -> Option<&Object> {
        let held = self.objects.get(&(kind, namespace.to_owned(), name.to_owned()))?;
        Some(&held.object)
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

/// The object that is in force from now on, of those who define it.
fn settle(
    id: &Id,
    definitions: &[(String, Object)],
    old: Option<&Held>,
    wrong: &mut Vec<Notice>,
) -> Option<Held> {
    let (file, object) = definitions.first()?;
    let kept = old.map(|old| Held { missing: None, ..old.clone() });
    if definitions.len() > 1 {
        let files: BTreeSet<&str> = definitions.iter().map(|(file, _)| file.as_str()).collect();
        let files = files.into_iter().collect::<Vec<_>>().join(" and ");
        let alike = definitions.iter().all(|(_, other)| other == object);
        let then = match &kept {
            _ if alike => "they say the same, which is used",
            Some(_) => "neither is read, and what was in force before stays",
            None => "neither is used",
        };
        let what = format!("is defined twice, in {files}: {then}; remove one");
        let mut twice = Notice::new(name(id), TWICE, what);
        if let (Object::Release(release), None, false) = (object, &kept, alike) {
            twice.route = Some((id.1.clone(), release.route()));
        }
        wrong.push(twice);
        if !alike {
            return kept;
        }
    }
    if let Some(kept) = kept
        && let Err(error) = object.check_update(&kept.object)
    {
        let what = format!("{file}: {error}; what was in force before stays");
        wrong.push(Notice::new(name(id), "Immutable", what));
        return Some(kept);
    }
    Some(Held { object: object.clone(), file: file.clone(), missing: None })
}

/// Says of each file what is missing because of it.
fn tell_missing(
    absent: &BTreeMap<Id, Held>,
    files: &BTreeMap<String, Content>,
    wrong: &mut Vec<Notice>,
) {
    let mut by_file = BTreeMap::<&str, Vec<String>>::new();
    for (id, held) in absent {
        by_file.entry(&held.file).or_default().push(name(id));
    }
    for (file, names) in by_file {
        let more = names.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let what = match files.get(file).is_some_and(|file| file.here) {
            true => "does not define it any more",
            false => "is gone",
        };
        let message = format!(
            "{what}: {named}{more} stays in force for {}s and is deleted then, unless it comes back",
            GRACE.as_secs()
        );
        wrong.push(Notice::new(file, "MissingManifest", message));
    }
}

fn deleted(id: &Id, held: &Held) -> String {
    let what = format!("{}: {} has not defined it", name(id), held.file);
    match held.object {
        Object::Secret(_) => format!("{what}: it is not used any more"),
        Object::Release(_) => format!(
            "{what} for {}s: its route is not served any more; its state is kept, and a manifest of \
             the same name goes on from there",
            GRACE.as_secs()
        ),
        _ => format!("{what} for {}s", GRACE.as_secs()),
    }
}

/// What is wrong with a file, and the releases that are not in force because of it.
fn invalid(file: &str, broken: &Broken) -> Notice {
    let route = |said: &Said| Some((namespace(said), said.route.clone()?));
    let routes = broken.said.iter().filter_map(route).collect();
    let own = broken.said.iter().find(|said| said.at_fault && said.is_complete);
    let (at_fault, document) = (own.and_then(route), Some(broken.document));
    let notice = Notice::new(file, "InvalidManifest", broken.error.to_string());
    Notice { withheld: Some(Withheld { routes, at_fault, document }), ..notice }
}

/// Whether a text may be a manifest: each has this word.
fn names_version(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, b"apiVersion").is_some()
}

/// What is wrong with a file or a folder whose manifests are not in force because of it.
fn withheld(place: &str, reason: &str, message: &str) -> Notice {
    Notice { withheld: Some(Withheld::default()), ..Notice::new(place, reason, message) }
}

fn name((kind, namespace, name): &Id) -> String {
    place_of(kind, namespace, name)
}

fn id(object: &Object) -> Id {
    let (namespace, name) = object_key(object);
    (object.kind(), namespace, name)
}
