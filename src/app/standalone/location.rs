//! Where the state is when nobody names a file: in the folder of manifests; or beside it, where
//! the folder is a symbolic link. A deploy moves such a link to another folder. A state inside the
//! old folder would be left there, and whatever the new manifests name would be released to all
//! users at once.
//!
//! Nothing begins anew in silence: when a state is in another location than the one that would be
//! used, the start ends with an error that names it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;

use super::{
    durable::{BEFORE, beside, followed},
    lock::Lock,
    manifests::{Event, NAMED},
    state::IN_FORCE,
};

/// The folder of the state inside that of the manifests.
const INSIDE: &str = ".serinus";
/// The state file.
const FILE: &str = "state.json";

/// Where the state of a folder is, and what to log about it.
#[derive(Debug)]
pub struct StateLocation {
    /// The state file.
    pub file: PathBuf,
    /// What a person who reads the log should know.
    pub(super) news: Option<Event>,
}

impl StateLocation {
    /// The location that a person has named.
    pub fn named(file: PathBuf) -> Self {
        Self { file, news: None }
    }

    /// The location that a person has named for a folder. When a state begins there although the
    /// folder has one in its own location, the log says so: two gateways may share a folder.
    pub fn named_for(folder: &Path, file: PathBuf) -> Self {
        let folder: PathBuf = folder.components().collect();
        let has_one = |dir: &Path| holds_state(dir).unwrap_or(false);
        let own = [beside_of(&folder), Some(folder.join(INSIDE))];
        let begins = ![file.clone(), self::beside(&file, BEFORE)].iter().any(|file| file.exists());
        let other = own.into_iter().flatten().find(|dir| begins && has_one(dir));
        let news = other.map(|other| Event {
            warning: true,
            reason: "StateElsewhere",
            note: format!(
                "a new state begins in {}, and the state of this folder in {} is not read: what \
                 the manifests name is released to all users, whatever failed before. To go on with \
                 that state stop whoever uses it and move its files here, or leave --state out",
                file.display(),
                other.display()
            ),
        });
        Self { file, news }
    }

    /// The location of the state of a folder for which nobody has named one. A state that an
    /// earlier version kept inside a folder behind a symbolic link is moved beside the link, and
    /// a symbolic link to it remains.
    ///
    /// # Errors
    /// The state is to be moved, and another process uses it; there is a state in another location
    /// than the one that would be used; or it can not be known whether there is one. The message
    /// says what to do.
    pub fn of(folder: &Path, now: Timestamp) -> anyhow::Result<Self> {
        let location = Self::usual(folder, now)?;
        // Nothing begins anew beside a state of the same folder by another name.
        if !holds_state(around(&location.file))? {
            let others = of_other_links(folder)?;
            ensure!(others.is_empty(), by_another_name(&others, &location.file));
        }
        Ok(location)
    }

    /// The state that a process has written for a folder. Makes and moves nothing.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn existing(folder: &Path) -> anyhow::Result<PathBuf> {
        ensure!(folder.is_dir(), "{} is not a folder", folder.display());
        let folder: PathBuf = folder.components().collect();
        for place in [beside_of(&folder), Some(folder.join(INSIDE))].into_iter().flatten() {
            if holds_state(&place)? {
                return Ok(place.join(FILE));
            }
        }
        bail!(
            "{0} has no state: name the folder as `serinus standalone` was started with it, or the \
             file with --state",
            folder.display()
        )
    }

    fn usual(folder: &Path, now: Timestamp) -> anyhow::Result<Self> {
        // With a slash at its end, a path is that of the folder and not of the link.
        let folder: PathBuf = folder.components().collect();
        let inside = folder.join(INSIDE);
        let beside = beside_of(&folder);
        // The symbolic link that remains where a state was moved beside.
        let is_remainder = match &beside {
            Some(beside) => is_link(&inside)? && leads_to(&inside, beside),
            None => false,
        };
        // Symbolic links of a person decide where the state is, whether they can be followed now
        // or not: a disk may not be mounted yet.
        let is_chosen = !is_remainder && (is_link(&inside)? || holds_links(&inside)?);
        let Some(beside) = beside else { return Self::inside(&folder, is_chosen) };
        if holds_state(&beside)? {
            ensure!(is_remainder || !holds_state(&inside)?, two_states(&beside, &inside));
            ensure!(!is_chosen, not_where_chosen(&beside, &inside));
            return Ok(Self::named(beside.join(FILE)));
        }
        if is_chosen || !is_link(&folder)? {
            return Self::inside(&folder, is_chosen);
        }
        if holds_state(&inside)? {
            return match on_one_disk(&folder) {
                true => take_over(&folder, &inside, &beside, now),
                false => Self::inside(&folder, false),
            };
        }
        let left = left_by_deploy(&folder)?;
        if !on_one_disk(&folder) {
            ensure!(left.is_empty(), left_behind(&left, &inside));
            return Self::inside(&folder, false);
        }
        ensure!(left.is_empty(), left_behind(&left, &beside));
        match fs::create_dir(&beside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Self::inside(&folder, false)
            }
            _ => Ok(Self::named(beside.join(FILE))),
        }
    }

    /// The location in the folder. When a state begins behind a symbolic link, the log says what
    /// happens if a deploy moves the link. It does not when a person has chosen the location by
    /// links of their own.
    fn inside(folder: &Path, is_chosen: bool) -> anyhow::Result<Self> {
        let inside = folder.join(INSIDE);
        let file = inside.join(FILE);
        let begins = !is_chosen && !holds_state(&inside)?;
        // The nearest link: one further up may be part of every path of this machine.
        let link = folder.ancestors().filter(|_| begins).find(|at| at.is_symlink());
        let news = link.map(|link| Event {
            warning: true,
            reason: "StateBehindLink",
            note: format!(
                "a new state begins in {}, behind the symbolic link {}: if deploys move this link, \
                 the next start finds no state, and what the manifests name is released to all \
                 users; name a file outside with --state then",
                file.display(),
                link.display()
            ),
        });
        Ok(Self { file, news })
    }
}

/// The folder of the state beside a folder; none of a path without a name, as `.` is.
fn beside_of(folder: &Path) -> Option<PathBuf> {
    let name = folder.file_name()?.to_os_string().into_string().ok()?;
    Some(folder.with_file_name(format!(".{name}{INSIDE}")))
}

/// Whether there is a state, or what is left of one. Other files in the folder do not count.
fn holds_state(folder: &Path) -> anyhow::Result<bool> {
    let file = folder.join(FILE);
    for file in [beside(&file, BEFORE), beside(&file, IN_FORCE), file] {
        if known(file.try_exists(), &file)? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_link(path: &Path) -> anyhow::Result<bool> {
    Ok(known(fs::symlink_metadata(path), path)?.is_some_and(|there| there.is_symlink()))
}

/// Whether an entry of a folder is a symbolic link: to move the folder would break a relative one.
fn holds_links(folder: &Path) -> anyhow::Result<bool> {
    for entry in known(fs::read_dir(folder), folder)?.into_iter().flatten() {
        let kind = entry.and_then(|entry| entry.file_type());
        if known(kind, folder)?.is_some_and(|kind| kind.is_symlink()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was found at a path; none where nothing is. An error of another kind is not taken for
/// "there is no state".
fn known<T>(found: io::Result<T>, path: &Path) -> anyhow::Result<Option<T>> {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidFilename) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "{} can not be read, so it is not known whether there is a state: give this \
                 process's user the right to read it, or name the state file with --state",
                path.display()
            )
        }),
    }
}

/// Whether a symbolic link leads to exactly this folder, which may be missing.
fn leads_to(link: &Path, folder: &Path) -> bool {
    let Ok(target) = fs::read_link(link) else { return false };
    let target = link.parent().unwrap_or(Path::new("")).join(target);
    let target = real(&target);
    target.is_some() && target == real(folder)
}

/// The real path of a folder; of one that is missing, as it would be.
fn real(folder: &Path) -> Option<PathBuf> {
    match fs::canonicalize(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(fs::canonicalize(around(folder)).ok()?.join(folder.file_name()?))
        }
        found => found.ok(),
    }
}

/// The folder in which a path is.
fn around(path: &Path) -> &Path {
    let around = path.parent().filter(|around| !around.as_os_str().is_empty());
    around.unwrap_or(Path::new("."))
}

/// Whether a symbolic link and the folder that it leads to are on one disk. A link to another disk
/// may be that of a container, which is made anew while the disk stays.
fn on_one_disk(link: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let here = device(around(link));
    here.is_some() && here == device(link)
}

/// Folders with a state beside the folder that a symbolic link leads to, the latest first. An
/// earlier version kept its state inside the folder, and a deploy may have moved the link since.
fn left_by_deploy(link: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = known(fs::canonicalize(link), link)?;
    let Some(versions) = folder.as_deref().and_then(Path::parent) else { return Ok(vec![]) };
    let mut left = vec![];
    for entry in known(fs::read_dir(versions), versions)?.into_iter().flatten().flatten() {
        let inside = entry.path().join(INSIDE);
        // A folder that this process may not enter holds no state that it has written.
        if holds_state(&inside).unwrap_or(false)
            && let Ok(inside) = fs::canonicalize(&inside)
        {
            let changed = fs::metadata(inside.join(FILE)).and_then(|file| file.modified()).ok();
            left.push((std::cmp::Reverse(changed), inside));
        }
    }
    left.sort();
    left.dedup();
    Ok(left.into_iter().map(|(_, inside)| inside).collect())
}

/// Folders with a state of symbolic links that lead to this folder, or do not exist any more:
/// beside the folder, and beside what it leads to.
fn of_other_links(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Some(real) = known(fs::canonicalize(folder), folder)? else { return Ok(vec![]) };
    let mut found = vec![];
    let places = [fs::canonicalize(around(folder)).ok(), real.parent().map(Path::to_owned)];
    for place in places.into_iter().flatten() {
        for entry in known(fs::read_dir(&place), &place)?.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let link = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(INSIDE));
            let Some(link) = link.map(|link| place.join(link)) else { continue };
            let leads_elsewhere = fs::canonicalize(&link).is_ok_and(|target| target != real);
            // A folder that this process may not enter holds no state that it has written.
            if !leads_elsewhere && holds_state(&entry.path()).unwrap_or(false) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn by_another_name(others: &[PathBuf], file: &Path) -> String {
    let named = others.iter().take(NAMED).map(|other| other.join(FILE).display().to_string());
    let named = named.collect::<Vec<_>>().join(", ");
    format!(
        "there is no state in {}, but one of this folder by another name, of a symbolic link that \
         leads to it or did: {named}. Start with that link, or name the state with --state; if it \
         is the state of something else, move it away: without a state, what the manifests name \
         is released to all users",
        file.display()
    )
}

fn two_states(beside: &Path, inside: &Path) -> String {
    let (beside, inside) = (beside.join(FILE), inside.join(FILE));
    format!(
        "there are two states of this folder, {} and {}, and only one of them can be that of your \
         users (going back to an earlier version begins a second one): move the other one away, \
         or name the right one with --state",
        beside.display(),
        inside.display()
    )
}

fn not_where_chosen(beside: &Path, inside: &Path) -> String {
    format!(
        "the state of this folder is in {}, but the symbolic links at {} name a location without a \
         state: move the state there, or remove these links, or name the state file with --state",
        beside.display(),
        inside.display()
    )
}

fn left_behind(left: &[PathBuf], to: &Path) -> String {
    let named = left.iter().take(NAMED).map(|inside| inside.display().to_string());
    let named = named.collect::<Vec<_>>().join(", ");
    let more = left.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (to, first) = (to.display(), left.first().map(|first| first.display().to_string()));
    let first = first.unwrap_or_default();
    format!(
        "there is no state for this folder, but one beside the folder that the symbolic link leads \
         to: {named}{more} (changed last first). An earlier version kept its state there, and the \
         link was moved since: to go on with it stop that version and move the folder {first} to \
         {to}. If it is the state of something else, name a file of its own with --state, as \
         {to}/{FILE}: without a state, what the manifests name is released to all users"
    )
}

/// Moves a state from a folder to the location beside the symbolic link to it, in one step.
fn take_over(
    folder: &Path,
    inside: &Path,
    beside: &Path,
    now: Timestamp,
) -> anyhow::Result<StateLocation> {
    // By its real path, which it has when the link leads elsewhere.
    let inside = fs::canonicalize(inside).unwrap_or_else(|_| inside.to_owned());
    // The lock that a process has which uses this state.
    let lock = Lock::take(&followed(&inside.join(FILE))?, now)?;
    if holds_links(&inside)? {
        bail!("{} was changed while it was to be moved: start again", inside.display());
    }
    if fs::rename(&inside, beside).is_err() {
        // This process may not write there, or something else is there.
        return StateLocation::inside(folder, false);
    }
    // So that an earlier version, and whoever names the folder itself, finds it.
    let _ = fs::canonicalize(beside).and_then(|to| symlink(to, &inside));
    drop(lock);
    let note = format!(
        "the state was moved from {} to {}, beside the symbolic link: there it stays when the link \
         is moved",
        inside.display(),
        beside.display()
    );
    let news = Some(Event { warning: false, reason: "StateMoved", note });
    Ok(StateLocation { file: beside.join(FILE), news })
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

        fn location(&self, folder: &str) -> StateLocation {
            self.of(folder).unwrap()
        }

        fn of(&self, folder: &str) -> anyhow::Result<StateLocation> {
            StateLocation::of(&self.at(folder), Timestamp::UNIX_EPOCH)
        }

        /// Why the start ends.
        fn refused(&self, folder: &str) -> String {
            format!("{:#}", self.of(folder).unwrap_err())
        }

        /// Writes a state where that of `folder` is.
        fn run(&self, folder: &str) {
            let file = self.location(folder).file;
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, folder).unwrap();
        }

        fn file(&self, folder: &str) -> PathBuf {
            self.location(folder).file
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
    fn no_state_begins_anew_where_the_folder_has_one_by_another_name() {
        let deploys = Deploys::new();
        deploys.run("current");
        symlink("v1", deploys.at("live")).unwrap();
        fs::create_dir(deploys.at("else")).unwrap();
        symlink("../v1", deploys.at("else/where")).unwrap();
        for name in ["v1", "live", "else/where", "v1/../v1", "else/../live"] {
            let error = deploys.refused(name);
            assert!(error.contains(".current.serinus/state.json"), "{name}: {error}");
            assert!(error.contains("Start with that link"), "{error}");
        }
        // What leads to another folder has nothing to do with it.
        symlink("v2", deploys.at("other")).unwrap();
        assert_eq!(deploys.file("other"), deploys.at(".other.serinus/state.json"));
        // Another name for the link, and none.
        fs::rename(deploys.at("current"), deploys.at("prod")).unwrap();
        assert!(deploys.refused("prod").contains(".current.serinus/state.json"));
        fs::rename(deploys.at(".current.serinus"), deploys.at(".prod.serinus")).unwrap();
        assert_eq!(deploys.file("prod"), deploys.at(".prod.serinus/state.json"));
    }

    #[test]
    fn a_state_that_is_named_and_begins_beside_another_one_is_said() {
        let deploys = Deploys::new();
        let new = deploys.at("new.json");
        let named = |folder: &str| StateLocation::named_for(&deploys.at(folder), new.clone());
        assert!(named("v1").news.is_none() && named("current").news.is_none());
        deploys.run("v1");
        let news = named("v1").news.unwrap();
        assert!(news.warning && news.note.contains("v1/.serinus"), "{}", news.note);
        deploys.run("current");
        assert!(named("current").news.unwrap().note.contains(".current.serinus"));
        fs::write(&new, "{}").unwrap();
        assert!(named("v1").news.is_none(), "it goes on");
    }

    #[test]
    fn a_state_in_the_old_place_is_moved_as_a_whole_and_found_from_there() {
        let deploys = Deploys::new();
        deploys.run("v1");
        for other in ["state.json.before", "state.json.in-force", "request-ids.keys"] {
            fs::write(deploys.at("v1/.serinus").join(other), other).unwrap();
        }
        let location = deploys.location("current");
        assert_eq!(location.file, deploys.at(".current.serinus/state.json"));
        assert_eq!(location.news.unwrap().reason, "StateMoved");
        for (name, content) in [("state.json", "v1"), ("request-ids.keys", "request-ids.keys")] {
            for folder in [".current.serinus", "v1/.serinus"] {
                let found = fs::read_to_string(deploys.at(folder).join(name)).unwrap();
                assert_eq!(found, content, "{folder}");
            }
        }
        deploys.move_link("v2");
        let location = deploys.location("current");
        assert!(location.file.exists() && location.news.is_none());
    }

    #[test]
    fn a_state_that_another_process_uses_is_not_moved() {
        let deploys = Deploys::new();
        deploys.run("v1");
        let _lock = Lock::take(&deploys.file("v1"), Timestamp::UNIX_EPOCH).unwrap();
        let error = deploys.refused("current");
        assert!(error.contains("is in use by process"), "{error}");
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
        let news = deploys.location("current/rel").news.unwrap();
        assert!(news.warning && news.note.contains("--state"), "{}", news.note);
        assert!(deploys.location("v2").news.is_none());
        deploys.run("current/rel");
        assert!(deploys.location("current/rel").news.is_none());
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
        // The name of the folder beside would be too long: nobody may make it, root neither.
        let long = "l".repeat(250);
        symlink("v1", deploys.at(&long)).unwrap();
        let location = deploys.location(&long);
        assert_eq!(location.file, deploys.at(&long).join(".serinus/state.json"));
        assert_eq!(location.news.unwrap().reason, "StateBehindLink");
        deploys.run("v1");
        // Something else has the name: a state can not be moved there.
        for is_folder in [false, true] {
            let other = deploys.at(".current.serinus");
            match is_folder {
                true => fs::create_dir_all(other.join("other")).unwrap(),
                false => fs::write(&other, "not ours").unwrap(),
            }
            let location = deploys.location("current");
            assert_eq!(location.file, deploys.at("current/.serinus/state.json"));
            assert_eq!(fs::read_to_string(location.file).unwrap(), "v1");
            let _ = fs::remove_file(other);
        }
    }

    #[test]
    fn a_state_whose_files_are_symbolic_links_of_a_person_stays_where_they_are() {
        let deploys = Deploys::new();
        fs::create_dir(deploys.at("shared")).unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(deploys.at(version).join(".serinus")).unwrap();
            let link = deploys.at(version).join(".serinus/state.json");
            symlink("../../shared/state.json", link).unwrap();
        }
        let file = deploys.at("current/.serinus/state.json");
        // The link leads to nothing as long as nothing was written.
        let location = deploys.location("current");
        assert_eq!((&location.file, location.news), (&file, None));
        deploys.run("current");
        assert!(deploys.at("shared/state.json").exists());
        // A process that runs has the lock of the file that is meant, and nothing is moved.
        let _lock = Lock::take(&followed(&file).unwrap(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(deploys.file("current"), file);
        deploys.move_link("v2");
        assert_eq!(deploys.file("current"), file);
        assert_eq!(fs::read_to_string(&file).unwrap(), "current");
        assert!(!deploys.at(".current.serinus").exists());
    }

    #[test]
    fn a_symbolic_link_of_a_person_that_leads_nowhere_now_is_not_passed_over() {
        let deploys = Deploys::new();
        symlink(deploys.at("mnt/state"), deploys.at("v1/.serinus")).unwrap();
        assert_eq!(deploys.file("current"), deploys.at("current/.serinus/state.json"));
        assert!(!deploys.at(".current.serinus").exists());
        let started = Lock::take(&deploys.file("current"), Timestamp::UNIX_EPOCH);
        assert!(started.is_err(), "the start ends with an error");
        fs::create_dir_all(deploys.at("mnt/state")).unwrap();
        deploys.run("current");
        assert!(deploys.at("mnt/state/state.json").exists());
        // The link that we left leads nowhere when a person removes the state: a new one begins.
        let deploys = Deploys::new();
        deploys.run("v1");
        deploys.location("current");
        fs::remove_dir_all(deploys.at(".current.serinus")).unwrap();
        assert_eq!(deploys.file("current"), deploys.at(".current.serinus/state.json"));
    }

    #[test]
    fn after_an_upgrade_together_with_a_deploy_the_start_names_the_state_that_was_left_behind() {
        let deploys = Deploys::new();
        deploys.run("v1");
        deploys.move_link("v2");
        let (left, own) = (deploys.at("v1/.serinus"), deploys.at(".current.serinus"));
        let error = deploys.refused("current");
        let told = format!("move the folder {} to {}", left.display(), own.display());
        assert!(error.contains(&told) && error.contains("--state"), "{error}");
        assert!(!own.exists() && left.join("state.json").exists());
        // What the message says to do.
        fs::rename(left, own).unwrap();
        assert_eq!(fs::read_to_string(deploys.file("current")).unwrap(), "v1");
    }

    #[test]
    fn of_two_states_none_is_used_and_both_are_named() {
        let deploys = Deploys::new();
        deploys.run("current");
        deploys.move_link("v2");
        // An earlier version begins its own.
        fs::create_dir(deploys.at("v2/.serinus")).unwrap();
        fs::write(deploys.at("v2/.serinus/state.json"), "v2").unwrap();
        let error = deploys.refused("current");
        for part in [".current.serinus/state.json", "current/.serinus/state.json", "--state"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        fs::remove_dir_all(deploys.at("v2/.serinus")).unwrap();
        assert_eq!(deploys.file("current"), deploys.at(".current.serinus/state.json"));
        // Links of a person to where nothing is, while a state is beside.
        fs::create_dir(deploys.at("shared")).unwrap();
        symlink("../shared", deploys.at("v2/.serinus")).unwrap();
        let error = deploys.refused("current");
        assert!(error.contains("name a location without a state"), "{error}");
    }

    #[test]
    fn what_can_not_be_read_is_not_taken_for_no_state() {
        let deploys = Deploys::new();
        // As without the right to read, which root has always.
        symlink(".current.serinus", deploys.at(".current.serinus")).unwrap();
        let error = deploys.refused("current");
        assert!(error.contains("can not be read, so it is not known"), "{error}");
    }

    #[test]
    fn the_nearest_symbolic_link_is_named() {
        let deploys = Deploys::new();
        fs::create_dir_all(deploys.at("run/app/v1/rel")).unwrap();
        symlink("run", deploys.at("var")).unwrap();
        symlink("v1", deploys.at("run/app/current")).unwrap();
        let news = deploys.location("var/app/current/rel").news.unwrap();
        let told = format!("behind the symbolic link {}:", deploys.at("var/app/current").display());
        assert!(news.note.contains(&told), "{}", news.note);
    }
}
