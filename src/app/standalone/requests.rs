//! What a person asks for at the command line of the machine (`serinus approve NAME --folder
//! DIR`): a file a release and action in a folder beside the state, which only the owner of the
//! state may write. It takes the place of the annotation in the manifest, which nobody has to
//! edit, until that annotation changes: what was asked last counts. What it took the place of is
//! kept in the state, so that an annotation that was carried out long ago is not asked for again
//! when the file is lost.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{durable::beside, key, manifests::Event};
use crate::{api::PromptRelease, rollout::snapshot::Action};

/// The ending of the folder, beside the state.
const FOLDER: &str = "requests";
/// A request has at most so many bytes.
const LONGEST: u64 = 4096;
/// More files than this were not written by people.
const MOST: usize = 1024;

/// One request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// `namespace/name` of the release.
    release: String,
    /// The annotation that it takes the place of.
    annotation: String,
    /// That annotation's value.
    value: String,
    /// What the annotation said when this was asked.
    instead_of: Option<String>,
}

/// Puts a request where the process that has the state looks.
///
/// # Errors
/// Nothing that has the state has made the folder, or it can not be written.
pub(super) fn put(
    state: &Path,
    release: &PromptRelease,
    action: Action,
    value: &str,
) -> anyhow::Result<()> {
    let folder = beside(state, FOLDER);
    let asked = Asked {
        release: key(release),
        annotation: action.annotation().to_owned(),
        value: value.to_owned(),
        instead_of: annotation(release, action.annotation()).cloned(),
    };
    let name = format!("{}.{}.json", action.as_str(), asked.release.replace('/', "."));
    let unfinished = folder.join(format!(".{name}.{:08x}", rand::random::<u32>()));
    let write = || {
        // Not a secret, and the process may be another user's than who asks.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&unfinished)?;
        file.write_all(&serde_json::to_vec(&asked)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(&name))
    };
    write().with_context(|| {
        let _ = fs::remove_file(&unfinished);
        format!(
            "{} can not be written: ask as the user that `serinus standalone` runs as; if there is \
             no such folder, no process of this version has run on this state",
            folder.display()
        )
    })
}

fn annotation<'a>(release: &'a PromptRelease, name: &str) -> Option<&'a String> {
    release.metadata.annotations.as_ref()?.get(name)
}

/// A file as it was when it was read.
type Seen = (PathBuf, Option<SystemTime>, u64, u64);

/// The requests beside a state.
pub(super) struct Requests {
    folder: PathBuf,
    seen: Vec<Seen>,
    asked: BTreeMap<(String, String), (PathBuf, Asked)>,
}

impl Requests {
    /// Those beside `state`. Makes the folder; that it can not be made is told when it is read.
    pub(super) fn of(state: &Path) -> Self {
        let requests = Self { folder: beside(state, FOLDER), seen: vec![], asked: BTreeMap::new() };
        requests.make_folder();
        requests
    }

    fn make_folder(&self) {
        let _ = DirBuilder::new().mode(0o700).create(&self.folder);
    }

    /// Reads what has changed. Says whether something has, and what could not be read.
    pub(super) fn reload(&mut self) -> (bool, Vec<Event>) {
        // What can not be read changes nothing.
        let Some(seen) = self.look().filter(|seen| *seen != self.seen) else {
            return (false, vec![]);
        };
        let (mut asked, mut events) = (BTreeMap::new(), vec![]);
        for (path, ..) in &seen {
            match read(path) {
                Ok(request) => {
                    let of = (request.release.clone(), request.annotation.clone());
                    asked.insert(of, (path.clone(), request));
                }
                Err(error) => events.push(Event {
                    warning: true,
                    reason: "RequestNotRead",
                    note: format!("{} asks for nothing: {error:#}", path.display()),
                }),
            }
        }
        (self.seen, self.asked) = (seen, asked);
        (true, events)
    }

    fn look(&self) -> Option<Vec<Seen>> {
        let files = match fs::read_dir(&self.folder) {
            Ok(files) => Some(files),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_folder();
                None
            }
            Err(_) => return None,
        };
        let files = files.into_iter().flatten().flatten();
        let named = files.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".json") && !name.starts_with('.')
        });
        let mut seen: Vec<Seen> = named
            .take(MOST)
            .filter_map(|path| {
                let is = fs::symlink_metadata(&path).ok()?;
                is.is_file().then(|| (path, is.modified().ok(), is.len(), is.ino()))
            })
            .collect();
        seen.sort();
        Some(seen)
    }

    /// The release as its manifest and the requests say. A request whose annotation has changed
    /// since is over. `replaced` are the annotations that requests took the place of: they ask for
    /// nothing as long as they stay the same, whatever becomes of the files.
    pub(super) fn over(
        &mut self,
        mut release: PromptRelease,
        replaced: &mut BTreeMap<String, String>,
    ) -> PromptRelease {
        let key = key(&release);
        for action in Action::ALL {
            let name = action.annotation();
            let said = annotation(&release, name).cloned();
            if replaced.get(name) != said.as_ref() {
                replaced.remove(name);
            }
            let of = (key.clone(), name.to_owned());
            let asked = self.asked.get(&of);
            let counts = asked.filter(|(_, asked)| asked.instead_of == said);
            let annotations = release.metadata.annotations.get_or_insert_default();
            if let Some((_, asked)) = counts {
                replaced.extend(said.map(|said| (name.to_owned(), said)));
                annotations.insert(name.to_owned(), asked.value.clone());
                continue;
            }
            if replaced.contains_key(name) {
                annotations.remove(name);
            }
            if let Some((path, _)) = asked {
                // Without it the next look finds the same: that it remains costs nothing.
                let _ = fs::remove_file(path);
                self.asked.remove(&of);
            }
        }
        release
    }
}

fn read(path: &Path) -> anyhow::Result<Asked> {
    let mut text = String::new();
    let read = fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if read as u64 > LONGEST {
        return Err(io::Error::other(format!("it has more than {LONGEST} bytes")).into());
    }
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PromptReleaseSpec;

    fn release(annotation: Option<&str>) -> PromptRelease {
        let mut release = PromptRelease::new("support", PromptReleaseSpec::default());
        release.metadata.annotations = annotation
            .map(|value| [(Action::Approve.annotation().to_owned(), value.to_owned())].into());
        release
    }

    fn says(release: &PromptRelease) -> Option<&str> {
        annotation(release, Action::Approve.annotation()).map(String::as_str)
    }

    /// A process on a state: its requests, and what the state keeps of them.
    struct Process(Requests, BTreeMap<String, String>);

    impl Process {
        fn says(&mut self, manifest: Option<&str>) -> Option<String> {
            says(&self.0.over(release(manifest), &mut self.1)).map(str::to_owned)
        }
    }

    #[test]
    fn what_was_asked_last_counts_at_the_command_line_or_in_the_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.json");
        let without = put(&state, &release(None), Action::Approve, "abcd");
        assert!(format!("{:#}", without.unwrap_err()).contains("no process of this version"));
        let mut process = Process(Requests::of(&state), BTreeMap::new());
        assert_eq!(process.0.reload(), (false, vec![]));
        for manifest in [None, Some("1111 by=ada")] {
            put(&state, &release(manifest), Action::Approve, "abcd by=bob").unwrap();
            assert_eq!(process.0.reload(), (true, vec![]));
            assert_eq!(process.0.reload(), (false, vec![]));
            assert_eq!(process.says(manifest).as_deref(), Some("abcd by=bob"));
            // Also for a process that starts now.
            let mut restarted = Process(Requests::of(&state), process.1.clone());
            restarted.0.reload();
            assert_eq!(restarted.says(manifest).as_deref(), Some("abcd by=bob"));
            // The manifest is edited: for good, also when the edit is taken back.
            assert_eq!(process.says(Some("2222")).as_deref(), Some("2222"));
            assert_eq!(process.says(manifest).as_deref(), manifest);
            assert!(process.0.reload().0, "its file is gone");
        }
        let mut another = release(None);
        another.metadata.name = Some("other".into());
        put(&state, &release(None), Action::Approve, "abcd").unwrap();
        process.0.reload();
        assert_eq!(says(&process.0.over(another, &mut BTreeMap::new())), None);
    }

    /// Or a revision that failed would be tried again because of a retry of last month.
    #[test]
    fn a_request_whose_file_is_lost_does_not_bring_back_the_annotation_before_it() {
        type Loss = fn(&Path);
        let losses: [Loss; 3] = [
            |inside| fs::remove_dir_all(inside).unwrap(),
            |inside| fs::write(inside.join("approve.default.support.json"), "{").unwrap(),
            |inside| fs::remove_file(inside.join("approve.default.support.json")).unwrap(),
        ];
        for lose in losses {
            let folder = tempfile::tempdir().unwrap();
            let state = folder.path().join("state.json");
            let mut process = Process(Requests::of(&state), BTreeMap::new());
            let manifest = Some("1111 by=ada");
            assert_eq!(process.says(manifest).as_deref(), manifest);
            put(&state, &release(manifest), Action::Approve, "abcd by=bob").unwrap();
            process.0.reload();
            assert_eq!(process.says(manifest).as_deref(), Some("abcd by=bob"));
            lose(&folder.path().join("state.json.requests"));
            process.0.reload();
            assert_eq!(process.says(manifest), None);
            let mut restarted = Process(Requests::of(&state), process.1.clone());
            restarted.0.reload();
            assert_eq!(restarted.says(manifest), None);
            // What is asked from then on counts.
            put(&state, &release(manifest), Action::Approve, "ffff by=bob").unwrap();
            process.0.reload();
            assert_eq!(process.says(manifest).as_deref(), Some("ffff by=bob"));
            assert_eq!(process.says(Some("2222")).as_deref(), Some("2222"));
        }
    }

    #[test]
    fn what_is_no_request_is_told_once_and_asks_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut requests = Requests::of(&folder.path().join("state.json"));
        let inside = folder.path().join("state.json.requests");
        for (name, content) in
            [("a.json", "{".to_owned()), ("b.json", " ".repeat(5000)), (".c.json", "x".into())]
        {
            fs::write(inside.join(name), content).unwrap();
        }
        fs::create_dir(inside.join("d.json")).unwrap();
        let (changed, events) = requests.reload();
        assert!(changed && events.len() == 2, "{events:?}");
        assert!(events[1].note.contains("more than 4096 bytes"), "{events:?}");
        assert_eq!(requests.reload(), (false, vec![]));
    }
}
