//! Why an object that a release names is not in force: it may be there, in a file that can not
//! be used. Whoever is told that it does not exist would write it a second time.

use std::collections::BTreeMap;

use super::{
    NAMESPACE,
    manifests::{Manifests, NAMED},
};
use crate::{api::manifest::Said, gateway::notices::Notice};

/// The reason for an object that is there twice.
pub(super) const TWICE: &str = "DefinedTwice";

/// What is known of an object that is not in force.
enum Absent {
    /// Why it is not, as a whole sentence.
    Known(String),
    /// Where it may be.
    Maybe(String),
    /// Nothing: it does not exist.
    Nothing,
}

/// Why objects are not in force. No message of a file is repeated for an object: it may quote
/// other documents of the file, which those who use the object may not read.
#[derive(Default)]
pub(super) struct Absences {
    /// Objects in files that can not be used: the file, and whether it is because of them.
    broken: BTreeMap<String, (String, bool)>,
    /// Objects that are there twice, and what is said of that.
    twice: BTreeMap<String, String>,
    /// The first files and folders that may hold anything.
    unknown: Vec<String>,
    /// How many more there are.
    more: usize,
}

impl Absences {
    pub(super) fn add_broken(&mut self, file: &str, said: &Said) {
        let place = place_of(&said.kind, &namespace(said), &said.name);
        self.broken.entry(place).or_insert_with(|| (file.to_owned(), said.at_fault));
    }

    pub(super) fn add_twice(&mut self, notice: &Notice) {
        self.twice.insert(notice.place.clone(), notice.message.clone());
    }

    /// Adds a file or a folder that may hold anything.
    pub(super) fn add_unknown(&mut self, place: &str) {
        if self.unknown.len() < NAMED {
            self.unknown.push(place.to_owned());
        } else {
            self.more += 1;
        }
    }

    fn maybe(&self) -> Absent {
        let named = self.unknown.join(" or ");
        match (self.unknown.len(), self.more) {
            (0, _) => Absent::Nothing,
            (1, _) => Absent::Maybe(format!(
                "it may be in {named}, which is not in force: correct it as its own message says"
            )),
            (_, more) => {
                let more = if more > 0 { format!(" or one of {more} more") } else { String::new() };
                Absent::Maybe(format!(
                    "it may be in {named}{more}, which are not in force, each as its own message \
                     says"
                ))
            }
        }
    }
}

/// The namespace of a document.
pub(super) fn namespace(said: &Said) -> String {
    said.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())
}

/// What messages call an object.
pub(super) fn place_of(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
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
        let place = place_of(kind, own, name);
        if let Some((file, at_fault)) = self.absences.broken.get(&place) {
            let why = match at_fault {
                true => format!("is not valid: correct {file} as its own message says"),
                false => format!(
                    "is in {file}, which is not in force: correct it as its own message says"
                ),
            };
            return Absent::Known(format!("{kind} {name} {why}"));
        }
        if self.is_held(kind, own, name) {
            return Absent::Nothing;
        }
        match self.absences.twice.get(&place) {
            Some(twice) => Absent::Known(format!("{kind} {name} {twice}")),
            None => self.absences.maybe(),
        }
    }
}
