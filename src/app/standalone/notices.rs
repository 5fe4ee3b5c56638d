//! What is wrong now, and what of it is news. People are told once, when something
//! begins and when it ends; whoever looks later finds all that is wrong.

use std::collections::BTreeMap;

use crate::gateway::notices::Notice;

/// What is wrong now.
#[derive(Default)]
pub(super) struct Notices(BTreeMap<(String, String), Notice>);

/// What of it is new, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub began: Vec<Notice>,
    pub ended: Vec<Notice>,
}

impl Notices {
    /// Takes what is wrong now in place of what was.
    pub(super) fn replace(&mut self, now: Vec<Notice>) -> News {
        let mut next = BTreeMap::new();
        for notice in now {
            next.entry((notice.place.clone(), notice.reason.clone())).or_insert(notice);
        }
        let of = |a: &BTreeMap<_, Notice>, b: &BTreeMap<_, Notice>| {
            a.iter().filter(|(key, n)| b.get(*key) != Some(*n)).map(|(_, n)| n.clone()).collect()
        };
        let began: Vec<Notice> = of(&next, &self.0);
        let mut ended: Vec<Notice> = of(&self.0, &next);
        ended.retain(|old| !began.iter().any(|new| new.place == old.place));
        self.0 = next;
        News { began, ended }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Notice> {
        self.0.values()
    }
}
