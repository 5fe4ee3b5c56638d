//! Files of a folder that look like manifests and are not read, because of their names or of
//! where they are: whoever wrote them is told, and does not wait for what never comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::OFlags;

use super::folder::Stamp;

/// So much of a file is read to see what it looks like, in bytes.
const HEAD: u64 = 16 << 10;
/// So many files, and so many of a folder inside, are looked at.
pub(super) const LOOKED_AT: usize = 1_000;
/// A file that is there for less may be one that is written beside a manifest, and renamed.
const LASTS: SignedDuration = SignedDuration::from_secs(3);
/// File extensions of manifests.
const EXTENSIONS: [&str; 3] = [".yaml", ".yml", ".json"];
/// Endings of what tools and people put beside a manifest on purpose: copies of before, files
/// that are half written, templates, and what is switched off.
const ON_PURPOSE: [&str; 28] = [
    "~",
    "#",
    ".bak",
    ".backup",
    ".orig",
    ".rej",
    ".old",
    "-old",
    ".save",
    ".swp",
    ".tmp",
    ".temp",
    ".part",
    ".new",
    "-new",
    ".next",
    ".j2",
    ".tpl",
    ".tmpl",
    ".gotmpl",
    ".template",
    ".example",
    ".sample",
    ".dist",
    "-dist",
    ".disabled",
    ".off",
    ".md",
];
/// One of these is the first word of a manifest.
const FIRST: [&str; 4] = ["apiVersion", "kind", "metadata", "spec"];

/// Whether a file with this name is read.
pub(super) fn is_manifest(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !name.starts_with('.') && EXTENSIONS.iter().any(|ending| lower.ends_with(ending))
}

/// Whether a file with this name may be JSON that is no manifest, as many others are.
pub(super) fn is_json(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".json")
}

/// Whether a file that can not be read as a whole is JSON that is no manifest: data may be large.
pub(super) fn is_other_json(folder: &Path, name: &str) -> bool {
    is_json(name) && head(&folder.join(name)).is_some_and(|text| !is_ours(&text))
}

/// Whether a manifest with this name is left out on purpose.
fn is_on_purpose(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.starts_with(['.', '#']) || ON_PURPOSE.iter().any(|ending| lower.ends_with(ending))
}

/// One file that is not read.
struct Other {
    stamp: Stamp,
    since: Timestamp,
    looks_so: bool,
}

/// The files that are not read.
#[derive(Default)]
pub(super) struct Others {
    files: BTreeMap<String, Other>,
    /// Those that people are told of.
    pub told: Vec<String>,
}

impl Others {
    /// Looks at the files with these names, of which those that have changed are opened. At the
    /// first look nothing is being written.
    pub(super) fn look(
        &mut self,
        folder: &Path,
        names: BTreeSet<String>,
        now: Timestamp,
        first: bool,
    ) {
        let mut files = BTreeMap::new();
        for name in names.into_iter().filter(|name| !is_on_purpose(name)).take(LOOKED_AT) {
            let path = folder.join(&name);
            let Some(metadata) = fs::metadata(&path).ok().filter(Metadata::is_file) else {
                continue;
            };
            let stamp = Stamp::of(&metadata);
            let known = self.files.remove(&name);
            let since = known.as_ref().map(|known| known.since).filter(|since| *since <= now);
            let same = known.filter(|known| known.stamp == stamp && !stamp.is_recent(now));
            let looks_so = same.map_or_else(|| looks_like_ours(&path), |known| known.looks_so);
            let since = since.unwrap_or(if first { Timestamp::MIN } else { now });
            files.insert(name, Other { stamp, since, looks_so });
        }
        self.files = files;
        let lasts = |file: &Other| now.duration_since(file.since) >= LASTS;
        let told = self.files.iter().filter(|(_, file)| file.looks_so && lasts(file));
        self.told = told.map(|(name, _)| name.clone()).collect();
    }
}

/// Whether a file begins as a manifest does that Serinus reads.
fn looks_like_ours(path: &Path) -> bool {
    head(path).is_some_and(|text| is_ours(&text))
}

fn is_ours(text: &str) -> bool {
    begins_as_manifest(text) && (text.contains("serinus.dev/") || text.contains("Secret"))
}

/// Whether a file of a folder inside seems to be a manifest: of JSON, what it begins with.
pub(super) fn seems_manifest(path: &Path, name: &str) -> bool {
    is_manifest(name) && (!is_json(name) || looks_like_ours(path))
}

/// How a file begins. Only regular files are read: opening a pipe would wait for its writer.
fn head(path: &Path) -> Option<String> {
    let no_wait = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(no_wait).open(path);
    let file = opened.ok().filter(|file| file.metadata().is_ok_and(|there| there.is_file()))?;
    let mut bytes = vec![];
    file.take(HEAD).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the first key of a text is one of a manifest.
fn begins_as_manifest(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_content = |line: &&str| {
        let line = line.trim();
        !line.is_empty() && !["#", "---", "%"].iter().any(|begin| line.starts_with(begin))
    };
    let first = text.lines().position(|line| is_content(&line));
    let Some(rest) = first.map(|skipped| text.lines().skip(skipped)) else { return false };
    let rest: String = rest.take(2).collect::<Vec<_>>().join("\n");
    // A text may hold an example, which is indented. JSON may be a list of manifests.
    let inner = rest.strip_prefix('[').map_or(rest.as_str(), str::trim_start);
    let key = inner.strip_prefix('{').map_or(inner, str::trim_start);
    let key = key.trim_start_matches(['"', '\'']);
    FIRST.iter().any(|word| {
        let after = key.strip_prefix(word);
        after.is_some_and(|after| after.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_of_manifests_are_known_in_any_case() {
        for read in ["r.yaml", "R.YAML", "r.Yml", "r.json", "R.JSON", "#r#.yaml"] {
            assert!(is_manifest(read), "{read}");
        }
        for other in [".r.yaml", "r.yaml.txt", "r.yaml~", "r.yaml ", "yaml", "ryaml", "r.jsonl"] {
            assert!(!is_manifest(other), "{other}");
        }
    }

    #[test]
    fn what_looks_like_a_manifest_begins_with_a_word_of_one() {
        let yaml = "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelease\n";
        let json = "{\n  \"kind\": \"PromptRelease\", \"apiVersion\": \"serinus.dev/v1alpha1\"}";
        for text in [
            yaml.to_owned(),
            format!("\u{feff}# ours\n\n---\n{yaml}"),
            yaml.replace('\n', "\r\n"),
            format!("'kind' : PromptRelease\n{yaml}"),
            json.to_owned(),
            json.replace("\n  ", ""),
            format!("[{json}]"),
        ] {
            assert!(begins_as_manifest(&text), "{text:?}");
        }
        for text in [
            "",
            "# Releases\n\nEach release is a file:\n\napiVersion: serinus.dev/v1alpha1\n",
            "{\"format\":\"serinus.dev/manifests-in-force/1\",\"files\":{\"apiVersion\":1}}",
            "{\"default/r\":{\"kind\":1}}",
            "kinds: all\n",
            "# Releases\n\n    apiVersion: serinus.dev/v1alpha1\n",
            "[1, {\"kind\": 1}]",
        ] {
            assert!(!begins_as_manifest(text), "{text:?}");
        }
    }
}
