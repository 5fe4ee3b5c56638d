//! The series of one variant, found once and then only counted.

use std::{
    borrow::Borrow,
    sync::{Arc, RwLock},
};

use prometheus_client::metrics::counter::Counter;

use super::{
    Families, Histogram,
    labels::{Asked, Attempt, Checked, Dropped, Ended, TokenType},
};
use crate::{
    api::prompt_release::VariantRole,
    audit::record::{AssignmentReason, CheckResult, Operation, Origin, RecordOutcome},
};

/// A few values by key, added when first asked for. Most variants have two or three.
struct Each<K, V>(RwLock<Vec<(K, V)>>);

impl<K, V> Default for Each<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K, V: Clone> Each<K, V> {
    /// The value of `key`; `new` makes key and value.
    fn get<Q: PartialEq + ?Sized>(&self, key: &Q, new: impl FnOnce() -> (K, V)) -> V
    where
        K: Borrow<Q>,
    {
        let find = |all: &Vec<(K, V)>| {
            all.iter().find(|(own, _)| own.borrow() == key).map(|(_, value)| value.clone())
        };
        if let Some(value) = self.0.read().ok().and_then(|all| find(&all)) {
            return value;
        }
        let (own, value) = new();
        let Ok(mut all) = self.0.write() else { return value };
        // Another request may have been first; both made the same series.
        if let Some(value) = find(&all) {
            return value;
        }
        all.push((own, value.clone()));
        value
    }

    fn keys(&self, mut each: impl FnMut(&K)) {
        if let Ok(all) = self.0.read() {
            all.iter().for_each(|(key, _)| each(key));
        }
    }
}

/// How fast answers are, and how long.
#[derive(Clone)]
pub(super) struct Speed {
    pub first_token: Histogram,
    pub per_token: Histogram,
    pub input: Histogram,
    pub output: Histogram,
}

/// The series of one variant.
pub(super) struct Variant {
    release: Arc<str>,
    revision: Arc<str>,
    provider: Arc<str>,
    model: Arc<str>,
    traffic: &'static str,
    attempts: Each<(VariantRole, AssignmentReason, RecordOutcome), Counter>,
    checks: Each<CheckResult, Counter>,
    dropped: Each<&'static str, Counter>,
    durations: Each<(Operation, &'static str), Histogram>,
    speeds: Each<Operation, Speed>,
}

impl Variant {
    pub(super) fn new(origin: &Origin, copies: bool) -> Self {
        Self {
            release: origin.release.as_str().into(),
            revision: origin.revision.as_str().into(),
            provider: origin.provider.as_str().into(),
            model: origin.model.as_str().into(),
            traffic: if copies { "shadow" } else { "users" },
            attempts: Each::default(),
            checks: Each::default(),
            dropped: Each::default(),
            durations: Each::default(),
            speeds: Each::default(),
        }
    }

    pub(super) fn attempts(
        &self,
        families: &Families,
        role: VariantRole,
        reason: AssignmentReason,
        outcome: RecordOutcome,
    ) -> Counter {
        let key = (role, reason, outcome);
        self.attempts.get(&key, || (key, families.attempts.get_or_create_owned(&self.attempt(key))))
    }

    pub(super) fn check_failures(&self, families: &Families, check: CheckResult) -> Counter {
        self.checks.get(&check, || {
            (check, families.check_failures.get_or_create_owned(&self.checked(check)))
        })
    }

    pub(super) fn dropped(&self, families: &Families, why: &'static str) -> Counter {
        self.dropped
            .get(&why, || (why, families.dropped.get_or_create_owned(&self.dropped_copy(why))))
    }

    pub(super) fn duration(
        &self,
        families: &Families,
        operation: Operation,
        error: &'static str,
    ) -> Histogram {
        let key = (operation, error);
        self.durations.get(&key, || (key, families.duration.get_or_create_owned(&self.ended(key))))
    }

    pub(super) fn speed(&self, families: &Families, operation: Operation) -> Speed {
        self.speeds.get(&operation, || {
            let asked = self.asked(operation);
            let usage =
                |kind| families.usage.get_or_create_owned(&self.token_type(operation, kind));
            let speed = Speed {
                first_token: families.first_token.get_or_create_owned(&asked),
                per_token: families.per_token.get_or_create_owned(&asked),
                input: usage("input"),
                output: usage("output"),
            };
            (operation, speed)
        })
    }

    /// Nobody counts any more: the series go.
    pub(super) fn remove_from(&self, families: &Families) {
        self.attempts.keys(|key| {
            families.attempts.remove(&self.attempt(*key));
        });
        self.checks.keys(|check| {
            families.check_failures.remove(&self.checked(*check));
        });
        self.dropped.keys(|why| {
            families.dropped.remove(&self.dropped_copy(why));
        });
        self.durations.keys(|key| {
            families.duration.remove(&self.ended(*key));
        });
        self.speeds.keys(|operation| {
            families.first_token.remove(&self.asked(*operation));
            families.per_token.remove(&self.asked(*operation));
            for kind in ["input", "output"] {
                families.usage.remove(&self.token_type(*operation, kind));
            }
        });
    }

    fn attempt(
        &self,
        (role, reason, outcome): (VariantRole, AssignmentReason, RecordOutcome),
    ) -> Attempt {
        Attempt {
            release: self.release.clone(),
            revision: self.revision.clone(),
            role: role.as_str(),
            reason: reason.as_str(),
            outcome: outcome.as_str(),
        }
    }

    fn checked(&self, check: CheckResult) -> Checked {
        let (release, revision) = (self.release.clone(), self.revision.clone());
        Checked { release, revision, traffic: self.traffic, check: check.as_str() }
    }

    fn dropped_copy(&self, why: &'static str) -> Dropped {
        Dropped { release: self.release.clone(), revision: self.revision.clone(), why }
    }

    fn asked(&self, operation: Operation) -> Asked {
        Asked {
            gen_ai_operation_name: operation.as_str(),
            gen_ai_provider_name: self.provider.clone(),
            gen_ai_request_model: self.model.clone(),
            release: self.release.clone(),
            revision: self.revision.clone(),
            traffic: self.traffic,
        }
    }

    fn ended(&self, (operation, error_type): (Operation, &'static str)) -> Ended {
        Ended { asked: self.asked(operation), error_type }
    }

    fn token_type(&self, operation: Operation, gen_ai_token_type: &'static str) -> TokenType {
        TokenType { asked: self.asked(operation), gen_ai_token_type }
    }
}
