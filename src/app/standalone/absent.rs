//! Why an object that a release names is not in force: it may be there, in a file that can not
//! be used. Whoever is told that it does not exist would write it a second time.

use super::{
    NAMESPACE,
    manifests::{Manifests, NAMED},
};
use crate::{api::manifest::Said, gateway::notices::Notice};

/// The reason for an object that is there twice.
pub(super) const TWICE: &str = "DefinedTwice";

/// What is known of an object that is not in force.
#[derive(Debug, PartialEq, Eq)]
enum Absent {
    /// Why it is not, as a whole sentence.
    Known(String),
    /// Where it may be.
    Maybe(String),
    /// Nothing: it does not exist.
    Nothing,
}

/// The namespace of what a document says of itself.
pub(super) fn namespace(said: &Said) -> String {
    said.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())
}

impl Manifests {
    /// What to say of an object that is not in force, where it is `missing`, as a sentence, for all
    /// that is known otherwise. None where that sentence has nothing to add.
    pub(super) fn instead_of(
        &self,
        (kind, own, name): (&'static str, &str, &str),
        missing: impl FnOnce() -> String,
    ) -> Option<String> {
        match self.absent_for(kind, own, name) {
            Absent::Known(why) => Some(why),
            Absent::Maybe(place) => Some(format!("{}; {place}", missing())),
            Absent::Nothing => None,
        }
    }

    fn absent_for(&self, kind: &'static str, own: &str, name: &str) -> Absent {
        let is_it = |said: &&Said| said.kind == kind && said.name == name && namespace(said) == own;
        for (file, content) in self.broken() {
            if let Some(said) = content.iter().find(is_it) {
                let why = match said.at_fault {
                    true => format!("is not valid: correct {file} as its own message says"),
                    false => format!(
                        "is in {file}, which is not in force: correct it as its own message says"
                    ),
                };
                return Absent::Known(format!("{kind} {name} {why}"));
            }
        }
        if self.is_held(kind, own, name) {
            return Absent::Nothing;
        }
        if let Some(twice) = self.twice(kind, own, name) {
            return Absent::Known(format!("{kind} {name} {}", twice.message));
        }
        let all = self.unknown();
        match all.as_slice() {
            [] => Absent::Nothing,
            [one] => Absent::Maybe(format!(
                "it may be in {}, which is not in force: {}",
                one.place, one.message
            )),
            _ => {
                let named: Vec<_> = all.iter().take(NAMED).map(|n| n.place.as_str()).collect();
                let more = all.len() - named.len();
                let more = if more > 0 { format!(" or one of {more} more") } else { String::new() };
                let named = named.join(" or ");
                Absent::Maybe(format!(
                    "it may be in {named}{more}, which are not in force, each as its own message \
                     says"
                ))
            }
        }
    }

    /// What may hold anything.
    fn unknown(&self) -> Vec<Notice> {
        let files = self.files_of_unknown_content();
        files.chain(self.not_read()).collect()
    }
}
