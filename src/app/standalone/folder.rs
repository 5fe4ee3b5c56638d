//! Looks at the files of a folder, and waits for none of them.
//!
//! A file is taken when two looks saw the same content: what an editor or `cp` has half
//! written is not. Whether a file has changed is told by what the file system says of it
//! (inode, size, both times), and by a hash of its content: sizes and times can be equal
//! when a file is saved twice within one tick of the file system's clock, or restored by
//! a tool that sets times. So a file is read again while its last change is recent, and
//! once a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::OFlags;
use xxhash_rust::xxh3::xxh3_128;

use super::unread::{LOOKED_AT, Others, is_manifest, seems_manifest};

/// A larger file is not read. An object of Kubernetes has 1.5 MiB at most, and the densest
/// YAML of this size is read within two seconds: nothing is decided meanwhile.
const LARGEST: u64 = 2 << 20;
/// A changed file is taken when it has been the same for so long: three looks have seen it.
const SETTLED: SignedDuration = SignedDuration::from_millis(400);
/// A file whose last change is younger may have changed again without a new time: the
/// coarsest clock of a file system in use (FAT) has steps of two seconds.
const RECENT: SignedDuration = SignedDuration::from_secs(3);
/// Every file is read again so often, whatever the file system says of it.
const REREAD: SignedDuration = SignedDuration::from_secs(60);

/// What has become of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It holds something else now.
    Content(Vec<u8>),
    /// It is there and can not be read; why, as a sentence.
    Unusable(String),
    /// It is not there any more.
    Gone,
}

/// What the file system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file may have changed since without another stamp.
    pub(super) fn is_recent(&self, now: Timestamp) -> bool {
        let latest = self.changed.0.max(self.modified.0);
        Timestamp::from_second(latest).is_ok_and(|at| now < at + RECENT)
    }
}

/// One look at one file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Content(u128),
    Unusable(String),
}

/// What is known of a file.
#[derive(Default)]
struct Known {
    stamp: Option<Stamp>,
    read_at: Timestamp,
    /// What was taken last.
    taken: Option<Seen>,
    /// Something else was seen, since when.
    next: Option<(Seen, Timestamp)>,
}

/// The files of a folder whose names end in `.yaml`, `.yml` or `.json`, without hidden ones.
pub(super) struct Folder {
    path: PathBuf,
    /// The name of this process's state, if that is a file of the folder.
    own: Option<String>,
    files: BTreeMap<String, Known>,
    others: Others,
    /// Folders inside, whether manifests seem to be there, and when that was looked at.
    inside: BTreeMap<String, (bool, Timestamp)>,
    /// The first look takes everything at once: there is nothing that goes on without it.
    looked: bool,
}

impl Folder {
    /// The folder, in which the file `state` is no manifest, whatever its name.
    pub(super) fn new(path: &Path, state: &Path) -> Self {
        let around = state.parent().filter(|around| !around.as_os_str().is_empty());
        let real = |path: &Path| fs::canonicalize(path).ok();
        let is_here = real(around.unwrap_or(Path::new("."))) == real(path);
        let own = state.file_name().filter(|_| is_here);
        let own = own.map(|name| name.to_string_lossy().into_owned());
        let (files, inside, others) = Default::default();
        Self { path: path.to_owned(), own, files, others, inside, looked: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Files that look like manifests, and are not read because of their names.
    pub(super) fn misnamed(&self) -> &[String] {
        &self.others.told
    }

    /// Folders inside that seem to hold manifests, which are not read.
    pub(super) fn not_read(&self) -> impl Iterator<Item = &str> {
        self.inside.iter().filter(|(_, (holds, _))| *holds).map(|(name, _)| name.as_str())
    }

    fn look_inside(&mut self, folders: BTreeSet<String>, now: Timestamp) {
        self.inside.retain(|name, _| folders.contains(name));
        // The rest is looked at by the next looks: each file of JSON is opened.
        let mut left = LOOKED_AT;
        for name in folders {
            if left == 0 {
                return;
            }
            let known = self.inside.get(&name);
            if known.is_some_and(|(_, at)| now < *at + REREAD && now >= *at) {
                continue;
            }
            let entries = fs::read_dir(self.path.join(&name)).into_iter().flatten().flatten();
            let holds = entries
                .take(LOOKED_AT)
                .inspect(|_| left = left.saturating_sub(1))
                .any(|e| seems_manifest(&e.path(), &e.file_name().to_string_lossy()));
            self.inside.insert(name, (holds, now));
        }
    }

    /// What has changed since the last look, by file name.
    ///
    /// # Errors
    /// The folder itself can not be read: nothing is known of its files then.
    pub(super) fn look(&mut self, now: Timestamp) -> io::Result<Vec<(String, Change)>> {
        let Names { files: names, folders, others } = self.names()?;
        self.look_inside(folders, now);
        self.others.look(&self.path, others, now, !self.looked);
        let mut changes = vec![];
        let gone = |name: &String| !names.contains(name);
        for name in self.files.keys().filter(|name| gone(name)).cloned().collect::<Vec<_>>() {
            self.files.remove(&name);
            changes.push((name, Change::Gone));
        }
        for name in names {
            let known = self.files.entry(name.clone()).or_default();
            if let Some(change) = known.look(&self.path.join(&name), now, !self.looked) {
                changes.push((name, change));
            }
        }
        self.looked = true;
        Ok(changes)
    }

    /// The names of what is in the folder now, without hidden files and the state.
    fn names(&self) -> io::Result<Names> {
        let mut names = Names::default();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || self.own.as_ref() == Some(&name) {
                continue;
            }
            if is_manifest(&name) {
                names.files.insert(name);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.folders.insert(name);
            } else {
                names.others.insert(name);
            }
        }
        Ok(names)
    }
}

/// The names in a folder.
#[derive(Default)]
struct Names {
    /// Of manifests.
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
    /// Of files that are not read.
    others: BTreeSet<String>,
}

impl Known {
    fn look(&mut self, path: &Path, now: Timestamp, at_once: bool) -> Option<Change> {
        let metadata = fs::metadata(path);
        let stamp = metadata.as_ref().ok().map(Stamp::of);
        let same = stamp.is_some() && stamp == self.stamp && self.next.is_none();
        let quiet = same && stamp.is_some_and(|stamp| !stamp.is_recent(now));
        if quiet && now < self.read_at + REREAD && now >= self.read_at {
            return None;
        }
        (self.stamp, self.read_at) = (stamp, now);
        let read = metadata.map_err(|error| unreadable(path, &error)).and_then(|m| read(path, &m));
        let (seen, bytes) = match read {
            Ok(bytes) => (Seen::Content(xxh3_128(&bytes)), bytes),
            Err(why) => (Seen::Unusable(why), vec![]),
        };
        if self.taken.as_ref() == Some(&seen) {
            self.next = None;
            return None;
        }
        let since = match &self.next {
            Some((next, since)) if *next == seen && now >= *since => *since,
            _ => now,
        };
        if !at_once && now.duration_since(since) < SETTLED {
            self.next = Some((seen, since));
            return None;
        }
        self.next = None;
        self.taken = Some(seen.clone());
        Some(match seen {
            Seen::Content(_) => Change::Content(bytes),
            Seen::Unusable(why) => Change::Unusable(why),
        })
    }
}

/// The content of a file. Only of files: to open a FIFO would wait for its writer.
fn read(path: &Path, metadata: &Metadata) -> Result<Vec<u8>, String> {
    usable(metadata)?;
    let no_wait = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(no_wait).open(path);
    let file = opened.map_err(|error| unreadable(path, &error))?;
    // It may be another one by now.
    let told = |error: io::Error| unreadable(path, &error);
    let before = file.metadata().map_err(told)?;
    usable(&before)?;
    let bytes = bounded(&file).map_err(told)?;
    if bytes.len() as u64 > LARGEST {
        return Err(too_large());
    }
    // While it is written, two looks do not see the same.
    Ok(bytes)
}

fn bounded(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn usable(metadata: &Metadata) -> Result<(), String> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return if metadata.len() > LARGEST { Err(too_large()) } else { Ok(()) };
    } else if kind.is_dir() {
        "a folder; folders inside the folder are not read: move its manifests up"
    } else if kind.is_fifo() {
        "a FIFO, which is not read: write a file"
    } else if kind.is_socket() {
        "a socket, which is not read: remove it, or name it otherwise"
    } else {
        "a device, which is not read: remove it, or name it otherwise"
    };
    Err(format!("is {what}"))
}

fn too_large() -> String {
    format!("is larger than {} MiB and is not read: split it into several files", LARGEST >> 20)
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    let link = fs::read_link(path).ok();
    match (link, error.kind()) {
        (Some(to), io::ErrorKind::NotFound) => {
            format!("is a link to {}, which does not exist: mend or remove the link", to.display())
        }
        (_, io::ErrorKind::PermissionDenied) => {
            format!("can not be read ({error}): give this process's user the right to read it")
        }
        _ => format!("can not be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_opens_a_bounded_number_of_files_in_folders_inside_and_the_next_goes_on() {
        let path = tempfile::tempdir().unwrap();
        for (inside, files) in [("a", LOOKED_AT), ("b", 1)] {
            fs::create_dir(path.path().join(inside)).unwrap();
            for file in 0..files {
                fs::write(path.path().join(format!("{inside}/{file}.json")), "{}").unwrap();
            }
        }
        fs::write(path.path().join("b/release.yaml"), "").unwrap();
        let mut folder = Folder::new(path.path(), &path.path().join(".serinus/state.json"));
        let mut told = |second: i64| {
            folder.look(Timestamp::from_second(second).unwrap()).unwrap();
            folder.not_read().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((told(0), told(1)), (vec![], vec!["b".to_owned()]));
    }
}
