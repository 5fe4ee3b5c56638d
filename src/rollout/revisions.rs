//! Revisions by the names that people give them: a unique beginning is enough.

use std::collections::BTreeSet;

use crate::api::PromptReleaseStatus;

/// Fewer characters than this are no name of a revision.
const SHORTEST: usize = 4;

/// The revisions that a release knows.
pub fn known_revisions(status: &PromptReleaseStatus) -> BTreeSet<&str> {
    let variants = [&status.stable, &status.previous].into_iter().flatten();
    variants
        .chain(status.canary.iter().map(|c| &c.variant))
        .chain(status.history.iter().map(|h| &h.variant))
        .map(|variant| variant.revision.as_str())
        .chain(status.failed_revision.as_deref())
        .collect()
}

/// The revision among `known` that `text` begins.
///
/// # Errors
/// Says what to name instead: `text` is too short, begins none, or begins several.
pub fn named(known: &BTreeSet<&str>, text: &str) -> Result<String, String> {
    if known.contains(text) {
        return Ok(text.to_owned());
    }
    if text.chars().count() < SHORTEST {
        return Err(format!("name the revision, or at least {SHORTEST} characters of it"));
    }
    let begun: Vec<&str> = known.iter().copied().filter(|k| k.starts_with(text)).collect();
    match begun.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(format!("no revision of this release begins with {text}")),
        several => Err(format!("{text} begins several revisions ({})", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_beginning_names_a_revision_and_nothing_else_does() {
        let known = BTreeSet::from(["9f3a000001", "9f3a000002", "41cc00", "41cc00aa"]);
        assert_eq!(named(&known, "9f3a000001").unwrap(), "9f3a000001");
        assert_eq!(named(&known, "41cc00").unwrap(), "41cc00", "the whole name wins");
        assert_eq!(named(&known, "41cc00a").unwrap(), "41cc00aa");
        for (text, part) in [
            ("9f3a", "several revisions"),
            ("41c", "4 characters"),
            ("", "4 characters"),
            ("dead", "no revision"),
        ] {
            let message = named(&known, text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
