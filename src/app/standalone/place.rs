//! Where the state is when nobody names a file: in the folder of manifests; or beside it,
//! where the folder is reached by a link. A deploy moves such a link to another folder, and a
//! state inside the old one would be left there: whatever the new one names would be released to
//! all users, unjudged. While a process runs it would write its state into the new folder in time,
//! but not when it is restarted at once, or is down meanwhile.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    durable::{BEFORE, beside},
    lock::Lock,
    manifests::Event,
    state::IN_FORCE,
};

/// The folder of the state inside that of the manifests.
const INSIDE: &str = ".serinus";
/// The state file.
const FILE: &str = "state.json";

/// Where the state of a folder is, and what to tell of that.
#[derive(Debug)]
pub struct Place {
    /// The state file.
    pub file: PathBuf,
    /// What a person who reads the log should know.
    pub(super) news: Option<Event>,
}

impl Place {
    /// The place that a person has named.
    pub fn named(file: PathBuf) -> Self {
        Self { file, news: None }
    }

    /// The place of the state of a folder for which nobody has named one. A state that an earlier
    /// version kept inside a folder behind a link is moved beside the link, and a link to it
    /// remains.
    ///
    /// # Errors
    /// The state is to be moved, and another process uses it: which one.
    pub fn of(folder: &Path, now: Timestamp) -> anyhow::Result<Self> {
        // With a slash at its end, a path is that of the folder and not of the link.
        let folder: PathBuf = folder.components().collect();
        let inside = folder.join(INSIDE);
        let Some(beside) = beside_of(&folder) else { return Ok(Self::inside(&folder)) };
        // Whoever made a link of it has decided where the state is; unless it is the one that
        // remains where a state was moved beside.
        let led = inside.is_symlink().then(|| fs::canonicalize(&inside).ok()).flatten();
        if led.is_some() && led != fs::canonicalize(&beside).ok() {
            return Ok(Self::inside(&folder));
        }
        if !folder.is_symlink() {
            // A folder has taken the place of a link.
            let left = holds_state(&beside) && !holds_state(&inside);
            return Ok(if left { Self::named(beside.join(FILE)) } else { Self::inside(&folder) });
        }
        if holds_state(&beside) {
            return Ok(Self::named(beside.join(FILE)));
        }
        if !on_one_disk(&folder) {
            return Ok(Self::inside(&folder));
        }
        if holds_state(&inside) {
            return take_over(&folder, &inside, &beside, now);
        }
        Ok(match fs::create_dir(&beside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Self::inside(&folder),
            _ => Self::named(beside.join(FILE)),
        })
    }

    /// In the folder. Where a state begins behind a link, a person is told once what a deploy
    /// that moves the link would do.
    fn inside(folder: &Path) -> Self {
        let inside = folder.join(INSIDE);
        let file = inside.join(FILE);
        let link = folder.ancestors().filter(|at| !at.as_os_str().is_empty());
        let link = link.filter(|at| at.is_symlink()).last();
        let news = link.filter(|_| !holds_state(&inside) && !inside.is_symlink()).map(|link| Event {
            warning: true,
            reason: "StateBehindLink",
            note: format!(
                "a new state begins in {}, behind the link {}: if deploys move this link, the next \
                 start finds no state, and what the manifests name is released to all users; name a \
                 file outside with --state then",
                file.display(),
                link.display()
            ),
        });
        Self { file, news }
    }
}

/// The folder of the state beside a folder; none of a path without a name, as `.` is.
fn beside_of(folder: &Path) -> Option<PathBuf> {
    let name = folder.file_name()?.to_os_string().into_string().ok()?;
    Some(folder.with_file_name(format!(".{name}{INSIDE}")))
}

/// Whether there is a state, or what is left of one. What else is in the folder says nothing.
fn holds_state(folder: &Path) -> bool {
    let file = folder.join(FILE);
    let rest = [BEFORE, IN_FORCE].map(|ending| beside(&file, ending));
    file.exists() || rest.iter().any(|file| file.exists())
}

/// Whether a link and the folder that it leads to are on one disk. A link to another disk may be
/// that of a container, which is made anew while the disk stays.
fn on_one_disk(link: &Path) -> bool {
    let around = link.parent().filter(|around| !around.as_os_str().is_empty());
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let here = device(around.unwrap_or(Path::new(".")));
    here.is_some() && here == device(link)
}

/// Moves a state from a folder to the place beside the link to it, in one step.
fn take_over(folder: &Path, inside: &Path, beside: &Path, now: Timestamp) -> anyhow::Result<Place> {
    // By its real path, which it has when the link leads elsewhere.
    let inside = fs::canonicalize(inside).unwrap_or_else(|_| inside.to_owned());
    let lock = Lock::take(&inside.join(FILE), now)?;
    if fs::rename(&inside, beside).is_err() {
        // It may not be written there, where it could be until now.
        return Ok(Place::inside(folder));
    }
    // So that an earlier version, and whoever names the folder itself, finds it.
    let _ = fs::canonicalize(beside).and_then(|to| symlink(to, &inside));
    drop(lock);
    let note = format!(
        "the state was moved from {} to {}, beside the link: there it stays when the link is moved",
        inside.display(),
        beside.display()
    );
    let news = Some(Event { warning: false, reason: "StateMoved", note });
    Ok(Place { file: beside.join(FILE), news })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deploys(tempfile::TempDir);

    impl Deploys {
        /// Two versions, and a link to the first.
        fn new() -> Self {
            let this = Self(tempfile::tempdir().unwrap());
            for version in ["v1", "v2"] {
                fs::create_dir(this.at(version)).unwrap();
            }
            symlink("v1", this.at("current")).unwrap();
            this
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn place(&self, folder: &str) -> Place {
            Place::of(&self.at(folder), Timestamp::UNIX_EPOCH).unwrap()
        }

        /// Writes a state where that of `folder` is.
        fn run(&self, folder: &str) {
            let file = self.place(folder).file;
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, folder).unwrap();
        }

        fn file(&self, folder: &str) -> PathBuf {
            self.place(folder).file
        }

        fn move_link(&self, to: &str) {
            fs::remove_file(self.at("current")).unwrap();
            symlink(to, self.at("current")).unwrap();
        }
    }

    #[test]
    fn behind_a_link_the_state_is_beside_it_wherever_the_link_leads() {
        let deploys = Deploys::new();
        let own = deploys.at(".current.serinus/state.json");
        for path in ["current", "current/", "current/.", "./current//"] {
            assert_eq!(deploys.file(path), own, "{path}");
        }
        deploys.run("current");
        deploys.move_link("v2");
        assert_eq!(deploys.file("current"), own);
        // A folder takes the place of the link.
        fs::remove_file(deploys.at("current")).unwrap();
        fs::create_dir(deploys.at("current")).unwrap();
        assert_eq!(deploys.file("current"), own);
        // And whoever names a folder itself has the state in it.
        assert_eq!(deploys.file("v2"), deploys.at("v2/.serinus/state.json"));
    }

    #[test]
    fn a_state_in_the_old_place_is_moved_as_a_whole_and_found_from_there() {
        let deploys = Deploys::new();
        deploys.run("v1");
        for other in ["state.json.before", "state.json.in-force", "request-ids.keys"] {
            fs::write(deploys.at("v1/.serinus").join(other), other).unwrap();
        }
        let place = deploys.place("current");
        assert_eq!(place.file, deploys.at(".current.serinus/state.json"));
        assert_eq!(place.news.unwrap().reason, "StateMoved");
        for (name, content) in [("state.json", "v1"), ("request-ids.keys", "request-ids.keys")] {
            for folder in [".current.serinus", "v1/.serinus"] {
                let found = fs::read_to_string(deploys.at(folder).join(name)).unwrap();
                assert_eq!(found, content, "{folder}");
            }
        }
        deploys.move_link("v2");
        let place = deploys.place("current");
        assert!(place.file.exists() && place.news.is_none());
    }

    #[test]
    fn a_state_that_another_process_uses_is_not_moved() {
        let deploys = Deploys::new();
        deploys.run("v1");
        let _lock = Lock::take(&deploys.file("v1"), Timestamp::UNIX_EPOCH).unwrap();
        let error = Place::of(&deploys.at("current"), Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(error.to_string().contains("is in use by process"), "{error:#}");
        assert!(deploys.at("v1/.serinus/state.json").exists());
    }

    #[test]
    fn links_that_no_deploy_of_the_folder_moves_leave_the_state_where_it_was() {
        let deploys = Deploys::new();
        // Above the folder, and inside it as Kubernetes mounts a ConfigMap.
        fs::create_dir(deploys.at("v1/rel")).unwrap();
        fs::create_dir(deploys.at("v2/..2026")).unwrap();
        symlink("..2026", deploys.at("v2/..data")).unwrap();
        for folder in ["current/rel", "v2"] {
            assert_eq!(deploys.file(folder), deploys.at(folder).join(".serinus/state.json"));
        }
        // A link above may be moved, too: that is said as long as no state is there.
        let news = deploys.place("current/rel").news.unwrap();
        assert!(news.warning && news.note.contains("--state"), "{}", news.note);
        assert!(deploys.place("v2").news.is_none());
        deploys.run("current/rel");
        assert!(deploys.place("current/rel").news.is_none());
        // A person keeps the state of all versions in one place by links of their own.
        fs::create_dir(deploys.at("shared")).unwrap();
        for version in ["v1", "v2"] {
            symlink("../shared", deploys.at(version).join(".serinus")).unwrap();
        }
        deploys.run("current");
        assert!(deploys.at("shared/state.json").exists());
        deploys.move_link("v2");
        assert_eq!(fs::read_to_string(deploys.file("current")).unwrap(), "current");
        assert!(!deploys.at(".current.serinus").exists());
    }

    #[test]
    fn where_nothing_can_be_written_beside_the_link_the_state_is_in_the_folder() {
        let deploys = Deploys::new();
        // Nobody may make a folder in the place of a file, root neither.
        fs::write(deploys.at("file"), "").unwrap();
        let link = deploys.at("file").join("current");
        assert!(!on_one_disk(&link));
        // The name is taken by what is none of ours.
        fs::create_dir_all(deploys.at(".current.serinus/other")).unwrap();
        deploys.run("v1");
        let place = deploys.place("current");
        assert_eq!(place.file, deploys.at("current/.serinus/state.json"));
        assert_eq!(fs::read_to_string(place.file).unwrap(), "v1");
    }
}
