//! Comparisons that every policy makes: users who left, requests that were refused, answers that
//! nobody understood.

use super::share;
use crate::{
    analysis::{
        judge::effect::{self, Effects, Strata},
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

    pub(super) fn effects(self, strata: &Strata<'_>) -> Effects {
        effect::of_parts(strata, |counts| {
            let Groups { requests, refused, unfinished, .. } = &counts.groups;
            let Share { n, bad } = self.share(counts);
            let (parts, failed): ([&[u64]; 3], &[u64]) = match self {
                Self::Unfinished => ([requests, refused, unfinished], unfinished),
                Self::Refused => ([requests, refused, &[]], refused),
                Self::Unjudged => ([requests, &[], &[]], &[]),
            };
            effect::Counted { total: (n as u64, bad as u64), parts, failed }
        })
    }
}
