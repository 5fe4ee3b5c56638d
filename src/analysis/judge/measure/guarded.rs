//! Comparisons that every policy makes: users who left, requests that were refused, answers that
//! nobody understood.

use super::share;
use crate::{
    analysis::{
        judge::effect::{self, Effects},
        stats::proportion::Share,
    },
    api::{
        canary_policy::Metric,
        prompt_release::{Counts, Groups},
    },
};

/// What a built-in comparison counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guarded {
    Unfinished,
    Refused,
    Unjudged,
}

impl Guarded {
    pub(super) fn of(metric: &Metric) -> Option<Self> {
        let Metric { unfinished, refusals, unjudged, .. } = metric;
        unfinished
            .map(|_| Self::Unfinished)
            .or(refusals.map(|_| Self::Refused))
            .or(unjudged.map(|_| Self::Unjudged))
    }

    pub(super) fn share(self, counts: &Counts) -> Share {
        match self {
            Self::Unfinished => share(counts.ended(), counts.unfinished),
            Self::Refused => share(counts.requests.saturating_add(counts.refused), counts.refused),
            Self::Unjudged => share(counts.requests, counts.unjudged),
        }
    }

    pub(super) fn effects(self, stable: &Counts, canary: &Counts) -> Effects {
        let none: &[u64] = &[];
        effect::of_parts(stable, canary, |counts| {
            let Groups { requests, refused, unfinished, .. } = &counts.groups;
            let Share { n, bad } = self.share(counts);
            let (parts, failed): ([&[u64]; 3], &[u64]) = match self {
                Self::Unfinished => ([requests, refused, unfinished], unfinished),
                Self::Refused => ([requests, refused, none], refused),
                Self::Unjudged => ([requests, none, none], none),
            };
            effect::Part { total: (n as u64, bad as u64), parts, failed: failed.to_vec() }
        })
    }
}
