//! One process for each state file: two would overwrite each other's decisions. The lock
//! is the kernel's, so it ends with the process however that ends.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use jiff::Timestamp;

use super::durable::{beside, made};

/// Held as long as it lives.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
    holder: String,
}

impl Lock {
    /// Takes the lock of a state file.
    ///
    /// # Errors
    /// Another process has it: which one; or the file can not be made.
    pub(super) fn take(state: &Path, now: Timestamp) -> anyhow::Result<Self> {
        let path = beside(state, "lock");
        let holder = format!("process {} on {}, since {now}", std::process::id(), host());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| unwritable(state))?;
        }
        let file = locked(&path, state)?;
        let mut lock = Self { path, file, holder };
        // The text is for people; without it the lock holds as well.
        let _ = lock.sign();
        Ok(lock)
    }

    /// Whether some process has a state file now.
    pub(super) fn is_held(state: &Path) -> bool {
        let file = File::open(beside(state, "lock"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Makes sure that the lock is still ours: its folder may have been moved or removed,
    /// and then another process can lock a file of the same name.
    ///
    /// # Errors
    /// Another process has it now.
    pub(super) fn keep(&mut self, state: &Path) -> anyhow::Result<()> {
        let same = |there: fs::Metadata| {
            self.file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (there.dev(), there.ino()))
        };
        if fs::metadata(&self.path).is_ok_and(same) {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            made(folder).with_context(|| unwritable(state))?;
        }
        self.file = locked(&self.path, state)?;
        let _ = self.sign();
        Ok(())
    }

    fn sign(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(self.holder.as_bytes())
    }
}

fn locked(path: &Path, state: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).open(path);
    let mut file = opened.with_context(|| unwritable(state))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = Read::by_ref(&mut file).take(256).read_to_string(&mut holder);
            let holder = if holder.is_empty() { "another process" } else { holder.trim() };
            bail!(
                "{} is in use by {holder}: stop that one, or give this one a state file of its own \
                 with --state",
                state.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| {
            format!(
                "{} can not be locked: name a file on a local disk with --state",
                path.display()
            )
        }),
    }
}

fn unwritable(state: &Path) -> String {
    format!(
        "{} can not be written: give this process's user the right to write there, or name another \
         file with --state",
        state.display()
    )
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
