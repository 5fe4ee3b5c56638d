//! Links to files that are replaced by renaming: that would replace the link, and leave the file
//! that it leads to as it was.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Links within links that are followed, as Linux does.
const MOST_LINKS: usize = 40;

/// The file that a link leads to, whether that exists yet or not; any other path as it is.
///
/// # Errors
/// The links lead in a circle.
pub fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut at = path.to_owned();
    for _ in 0..MOST_LINKS {
        // If something else is wrong with the path, opening it fails and says so.
        let Ok(target) = fs::read_link(&at) else { return Ok(at) };
        at = at.parent().unwrap_or(Path::new("")).join(target);
    }
    let why = format!("{} is a link that leads to no file", path.display());
    Err(io::Error::other(why))
}
