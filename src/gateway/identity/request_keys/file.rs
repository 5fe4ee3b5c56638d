//! Keys of a single process: a file beside its state that only its user may read.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::{RequestKeys, Stored, UNUSABLE, rotated};
use crate::{
    gateway::notices::{Notice, Notices},
    signals::links::followed,
};

/// How often it is looked whether a new key is due, or an old one signs.
const LOOK: Duration = Duration::from_secs(5);

/// The keys in a file, a line each: its name and the key in hexadecimal.
pub struct KeyFile {
    path: PathBuf,
    /// What the file held last: it is written again when somebody removes the file.
    held: Mutex<Stored>,
    keys: RequestKeys,
    notices: Arc<Notices>,
    clock: fn() -> Timestamp,
}

impl KeyFile {
    /// Reads the file, or makes it, and uses its keys. While it can not be used, which
    /// `notices` tell, ids are signed by the keys of before, or by one that the process
    /// forgets.
    pub fn open(
        path: PathBuf,
        keys: RequestKeys,
        notices: Arc<Notices>,
        clock: fn() -> Timestamp,
    ) -> Self {
        // At the start nobody has moved a folder: all are made, as they are for the state. If that
        // fails, so does the write, which says why.
        if let Some(folder) = followed(&path).ok().as_deref().and_then(Path::parent) {
            let _ = fs::create_dir_all(folder);
        }
        let file = Self { path, held: Mutex::default(), keys, notices, clock };
        file.look();
        file
    }

    /// Uses what the file holds, without end, and replaces keys by age.
    pub async fn follow(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            tokio::task::block_in_place(|| self.look());
        }
    }

    fn look(&self) {
        let wrong = self.used().err().map(|error| {
            let place = self.path.display().to_string();
            let what = "until the file can be used, a restart loses the key that signs request \
                        ids, and votes on earlier answers are rejected";
            Notice::new(place, UNUSABLE, format!("the keys of request ids: {error}; {what}"))
        });
        self.notices.set_request_ids(wrong.into_iter().collect());
    }

    /// Uses the keys of the file.
    ///
    /// # Errors
    /// It can not be read or written, or has a line that is no key.
    fn used(&self) -> io::Result<()> {
        let now = (self.clock)();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let found = read(&self.path)?;
        let known = found.clone().unwrap_or_else(|| held.clone());
        let next = rotated(&known, now, rand::random());
        let stored = next.unwrap_or(known);
        if found.as_ref() != Some(&stored) {
            write(&self.path, &stored)?;
        }
        self.keys.set(&stored, now);
        *held = stored;
        Ok(())
    }
}

/// The keys of the file; none when there is no file.
fn read(path: &Path) -> io::Result<Option<Stored>> {
    // A pipe would be waited for.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("not a regular file: remove it, and it is written again"));
    }
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let line = |line: &str| {
        let (name, hex) = line.split_once(' ')?;
        let bytes =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok());
        Some((name.to_owned(), bytes.collect::<Option<Vec<u8>>>()?))
    };
    let keys = text.lines().filter(|line| !line.is_empty()).map(line).collect::<Option<Stored>>();
    let invalid = "one of its lines is not a key: remove the file, and it is written again";
    keys.map(Some).ok_or_else(|| io::Error::other(invalid))
}

/// Written beside, synced and renamed: a kill leaves the old keys or the new ones.
fn write(path: &Path, stored: &Stored) -> io::Result<()> {
    let path = &followed(path)?;
    // The folder alone: one around it that is gone was moved, and comes back.
    match path.parent().map(fs::create_dir) {
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let text: String = stored
        .iter()
        .map(|(name, bytes)| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name} {hex}\n")
        })
        .collect();
    let beside = path.with_extension("tmp");
    // A leftover may have another mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::gateway::identity::request_keys::Purpose;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn later() -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 8 * 24 * 3600).unwrap()
    }

    fn open(path: &Path, keys: &RequestKeys, clock: fn() -> Timestamp) -> KeyFile {
        KeyFile::open(path.to_owned(), keys.clone(), Arc::default(), clock)
    }

    #[test]
    fn the_file_is_made_once_for_its_user_alone_and_outlives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".serinus/request-ids.keys");
        let (one, other) = (RequestKeys::default(), RequestKeys::default());
        open(&path, &one, now);
        let written = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        open(&path, &other, now);
        assert_eq!(fs::read(&path).unwrap(), written);
        let signature = one.sign(Purpose::Id, b"x");
        assert!(other.verify(Purpose::Id, b"x", &signature).is_some());
        // A week later there is a second key, and what the first one signed still counts.
        open(&path, &other, later);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
        assert!(other.verify(Purpose::Id, b"x", &signature).is_some());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_folders_around_the_file_are_made_at_the_start() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = folder.path().join("no/such/folder/request-ids.keys");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(disk.path().join("a/b/keys"), &link).unwrap();
        for path in [deep, link] {
            let file = open(&path, &RequestKeys::default(), now);
            assert_eq!((file.notices.text().as_str(), path.exists()), ("", true));
        }
    }

    #[test]
    fn a_link_stays_one_and_the_file_that_it_leads_to_gets_the_keys() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (folder.path().join("keys"), disk.path().join("keys"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for (clock, count) in [(now as fn() -> Timestamp, 1), (later, 2)] {
            open(&link, &RequestKeys::default(), clock);
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), count);
        }
    }

    #[test]
    fn a_file_that_is_removed_is_written_again_with_the_keys_in_use() {
        let around = tempfile::tempdir().unwrap();
        let (watched, away) = (around.path().join("watched"), around.path().join("away"));
        fs::create_dir(&watched).unwrap();
        let path = watched.join(".serinus/request-ids.keys");
        let keys = RequestKeys::default();
        let file = open(&path, &keys, now);
        let (written, signature) = (fs::read(&path).unwrap(), keys.sign(Purpose::Id, b"x"));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        file.look();
        assert_eq!(fs::read(&path).unwrap(), written);
        assert!(keys.verify(Purpose::Id, b"x", &signature).is_some());
        // A folder that was moved is not made anew in its place.
        fs::rename(&watched, &away).unwrap();
        file.look();
        assert!(!watched.exists() && file.notices.text().contains(UNUSABLE));
        assert!(keys.verify(Purpose::Id, b"x", &signature).is_some());
        fs::rename(&away, &watched).unwrap();
        file.look();
        assert_eq!((fs::read(&path).unwrap(), file.notices.text()), (written, String::new()));
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_told_as_long_as_it_is_there_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        for text in ["nonsense\n", "1 zz\n", "1 abc\n", "1 äb\n"] {
            fs::write(&path, text).unwrap();
            let (keys, other) = (RequestKeys::default(), RequestKeys::default());
            let file = open(&path, &keys, now);
            let told = file.notices.text();
            assert!(told.contains("RequestIdKeysUnusable") && told.contains("remove the file"));
            assert!(told.contains(&path.display().to_string()), "{told}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            fs::remove_file(&path).unwrap();
            file.look();
            assert_eq!(file.notices.text(), "");
            open(&path, &other, now);
            let signature = keys.sign(Purpose::Id, b"x");
            assert!(other.verify(Purpose::Id, b"x", &signature).is_some(), "its keys are used");
            fs::remove_file(&path).unwrap();
        }
    }
}
