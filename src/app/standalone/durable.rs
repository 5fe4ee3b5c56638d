//! Files that a kill at any instant leaves whole: written beside, synced, renamed. They are
//! for this process's user alone: what they hold of a backend may be a key, in a header or a
//! parameter of its address.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::signals::links;

/// Read and written by this process's user, and by nobody else.
const OWN: u32 = 0o600;
/// The ending of what a file held before its last write.
pub(super) const BEFORE: &str = "before";

/// A file beside `path`: its name and one more ending.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

/// The file that is meant, where `path` is a link to it.
///
/// # Errors
/// It leads to none: what to do.
pub(super) fn followed(path: &Path) -> anyhow::Result<PathBuf> {
    links::followed(path).context("name a regular file with --state")
}

/// A file that is replaced as a whole.
pub(super) struct Durable {
    path: PathBuf,
    /// Keeps what the file held before in `PATH.before`.
    keeps_previous: bool,
    /// Asked before each step that changes the disk; a test ends the writing there.
    pub(super) before_step: fn(usize) -> io::Result<()>,
}

impl Durable {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, keeps_previous: false, before_step: |_| Ok(()) }
    }

    pub(super) fn keeping_previous(mut self) -> Self {
        self.keeps_previous = true;
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the content before the last write is.
    pub(super) fn previous(&self) -> PathBuf {
        beside(&self.path, BEFORE)
    }

    /// Whether somebody removed it, or the content before, and it can be written again: its folder is there, or the
    /// one around that.
    pub(super) fn is_gone(&self) -> bool {
        let missing = |path: &Path| matches!(path.try_exists(), Ok(false));
        let may_be_made =
            |folder: &Path| folder.is_dir() || folder.parent().is_some_and(Path::is_dir);
        (missing(&self.path) || (self.keeps_previous && missing(&self.previous())))
            && self.path.parent().is_some_and(may_be_made)
    }

    /// Lets nobody else read or write the file, as others may what an earlier version wrote. The
    /// permissions of another user's file can not be changed; the next write replaces it.
    pub(super) fn restrict_permissions(&self) {
        if self.path.exists()
            && !is_private(&self.path)
            && let Err(error) = fs::set_permissions(&self.path, fs::Permissions::from_mode(OWN))
        {
            let path = self.path.display();
            tracing::warn!(%path, "others may read this file until it is written again: {error}");
        }
    }

    /// What the file holds; none when it does not exist.
    pub(super) fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        read(&self.path)
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// It could not be written: names the file, why and what to do. The old content is whole.
    pub(super) fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.replace(bytes).with_context(|| {
            format!(
                "{} can not be written: give this process's user the right to write there, make \
                 space on the disk, or name another file with --state",
                self.path.display()
            )
        })
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let step = self.before_step;
        step(0)?;
        made(folder)?;
        let next = beside(&self.path, "next");
        step(1)?;
        forget(&next)?;
        step(2)?;
        let mut file = create_private(&next)?;
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        step(3)?;
        file.write_all(first)?;
        step(4)?;
        file.write_all(rest)?;
        step(5)?;
        file.sync_all()?;
        if self.keeps_previous {
            self.keep_previous(&next)?;
        }
        step(9)?;
        fs::rename(&next, &self.path)?;
        step(10)?;
        // The name, too: without it a power failure may bring back the old file.
        File::open(folder)?.sync_all()
    }

    /// The old content by another name, at every instant one that is whole.
    fn keep_previous(&self, next: &Path) -> io::Result<()> {
        let step = self.before_step;
        let (previous, link) = (self.previous(), beside(&self.path, "link"));
        step(6)?;
        forget(&link)?;
        step(7)?;
        if !self.path.exists() {
            copy_private(next, &link)?;
        } else if !is_private(&self.path) || fs::hard_link(&self.path, &link).is_err() {
            // Others may read what an earlier version wrote, and a link would have the same
            // mode. Not every file system has links.
            copy_private(&self.path, &link)?;
        }
        step(8)?;
        fs::rename(&link, &previous)
    }
}

/// Makes the folder of a file anew when it was removed. What is around it is not made: a folder
/// that was moved would have another in its place when it comes back.
pub(super) fn made(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// What a file holds; none when it does not exist.
pub(super) fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "give it to this process's user (chown), for it holds what was decided before"
                }
                _ => "name another file with --state",
            };
            Err(error).with_context(|| format!("{} can not be read: {remedy}", path.display()))
        }
    }
}

/// A new file that nobody else may read from its first byte on.
fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(OWN).open(path)
}

/// A copy with a mode of its own: that of the original may be wider.
fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    let mut copy = create_private(to)?;
    io::copy(&mut File::open(from)?, &mut copy)?;
    copy.sync_all()
}

/// Whether nobody else may read the file, or write it.
fn is_private(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| there.mode() & 0o077 == 0)
}

fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static KILLED_AT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// A process that is killed does no further step.
    fn until_killed(step: usize) -> io::Result<()> {
        if step >= KILLED_AT.get() { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    #[test]
    fn a_kill_before_every_step_leaves_the_old_content_or_the_new_and_one_before_it() {
        for links in [true, false] {
            for step in 0..=11 {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("state.json");
                let mut file = Durable::new(path.clone()).keeping_previous();
                file.before_step = until_killed;
                KILLED_AT.set(usize::MAX);
                file.write(b"one, whole").unwrap();
                file.write(b"two, whole").unwrap();
                if !links {
                    fs::write(beside(&path, "link"), "a leftover").unwrap();
                }
                KILLED_AT.set(step);
                let written = file.write(b"three, whole");
                assert_eq!(written.is_ok(), step > 10, "step {step}");
                let now = file.read().unwrap().unwrap();
                let expected: &[u8] = if step > 9 { b"three, whole" } else { b"two, whole" };
                assert_eq!(now, expected, "step {step}");
                let before = read(&file.previous()).unwrap().unwrap();
                let expected: &[u8] = if step > 8 { b"two, whole" } else { b"one, whole" };
                assert_eq!(before, expected, "step {step}");
                // The next process goes on, whatever was left over.
                KILLED_AT.set(usize::MAX);
                file.write(b"four, whole").unwrap();
                assert_eq!(file.read().unwrap().unwrap(), b"four, whole");
                assert_eq!(read(&file.previous()).unwrap().unwrap(), now);
            }
        }
    }

    #[test]
    fn nobody_else_may_read_what_is_written_whatever_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let modes = || {
            let of = |entry: io::Result<fs::DirEntry>| {
                let entry = entry.unwrap();
                (entry.file_name(), entry.metadata().unwrap().mode() & 0o777)
            };
            let mut found: Vec<_> = fs::read_dir(folder.path()).unwrap().map(of).collect();
            found.sort();
            found
        };
        let own = [("state.json".into(), 0o600), ("state.json.before".into(), 0o600)];
        let file = Durable::new(path.clone()).keeping_previous();
        file.write(b"one").unwrap();
        assert_eq!(modes(), own);
        for wide in [0o644, 0o666, 0o640, 0o604] {
            for name in ["state.json", "state.json.before"] {
                fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(wide))
                    .unwrap();
            }
            for left_over in ["next", "link"] {
                fs::write(beside(&path, left_over), "a leftover").unwrap();
            }
            let now = file.read().unwrap();
            file.write(b"two").unwrap();
            assert_eq!(modes(), own, "{wide:o}");
            assert_eq!(read(&file.previous()).unwrap(), now);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        file.restrict_permissions();
        assert_eq!(modes(), own);
        Durable::new(folder.path().join("none")).restrict_permissions();
        assert_eq!(modes(), own);
    }

    #[test]
    fn a_kill_in_the_first_write_leaves_nothing_or_all() {
        for step in 0..=11 {
            let folder = tempfile::tempdir().unwrap();
            let mut file = Durable::new(folder.path().join("deep/state.json")).keeping_previous();
            file.before_step = until_killed;
            KILLED_AT.set(step);
            let _ = file.write(b"one");
            let found = file.read().unwrap();
            assert!(found.is_none() || found.as_deref() == Some(b"one"), "step {step}");
        }
    }

    #[test]
    fn a_folder_that_was_moved_is_not_made_anew_in_its_place() {
        let around = tempfile::tempdir().unwrap();
        let (watched, away) = (around.path().join("watched"), around.path().join("away"));
        let own = watched.join(".serinus");
        fs::create_dir_all(&own).unwrap();
        let file = Durable::new(own.join("state.json"));
        file.write(b"one").unwrap();
        fs::rename(&watched, &away).unwrap();
        assert!(file.write(b"two").is_err() && !watched.exists());
        fs::rename(&away, &watched).unwrap();
        assert_eq!(file.read().unwrap().unwrap(), b"one");
        fs::remove_dir_all(&own).unwrap();
        file.write(b"three").unwrap();
        assert_eq!(file.read().unwrap().unwrap(), b"three");
    }

    #[test]
    fn a_content_cut_in_place_leaves_the_one_before_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let file = Durable::new(path.clone()).keeping_previous();
        file.write(b"one").unwrap();
        // Somebody else writes in place, after the first write and after a later one.
        fs::write(&path, "").unwrap();
        assert_eq!(read(&file.previous()).unwrap().unwrap(), b"one");
        file.write(b"two").unwrap();
        file.write(b"three").unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(read(&file.previous()).unwrap().unwrap(), b"two");
    }
}
