//! The series of one variant, found once and then only counted.

use std::{
    borrow::Borrow,
    sync::{Arc, OnceLock, RwLock},
};

use prometheus_client::metrics::counter::Counter;

use super::{
    Families, Histogram, Usd,
    labels::{Asked, Attempt, Checked, Dropped, Ended, Spent, Taken, TokenType},
};
use crate::{
    api::prompt_release::VariantRole,
    audit::record::{AssignmentReason, CheckResult, Operation, Origin, Record, RecordOutcome},
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
        // Most have one, and a push would make room for four.
        all.reserve_exact(1);
        all.push((own, value.clone()));
        value
    }

    fn keys(&self, mut each: impl FnMut(&K)) {
        if let Ok(all) = self.0.read() {
            all.iter().for_each(|(key, _)| each(key));
        }
    }
}

/// What one team spends.
#[derive(Clone)]
struct Spending {
    /// None before something with a price: what is unknown is not 0.
    priced: Arc<OnceLock<(Usd, Counter)>>,
    unpriced: Counter,
    tokens: [Counter; KINDS.len()],
}

const KINDS: [&str; 5] = ["input", "cached_input", "cache_write", "output", "reasoning"];

/// What is measured of an answer: how fast it was, and how long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    FirstToken,
    PerToken,
    Input,
    Output,
}

/// The series of one variant.
pub(super) struct Variant {
    release: Arc<str>,
    revision: Arc<str>,
    provider: Arc<str>,
    model: Arc<str>,
    traffic: &'static str,
    attempts: Each<(VariantRole, AssignmentReason, RecordOutcome), Counter>,
    spending: Each<String, (Arc<str>, Spending)>,
    checks: Each<CheckResult, Counter>,
    dropped: Each<&'static str, Counter>,
    durations: Each<(Operation, &'static str), Histogram>,
    measures: Each<(Operation, Measure), Histogram>,
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
            spending: Each::default(),
            checks: Each::default(),
            dropped: Each::default(),
            durations: Each::default(),
            measures: Each::default(),
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

    /// Counts tokens and cost; `label` says what the team is called.
    pub(super) fn spend(
        &self,
        families: &Families,
        team: &str,
        label: impl FnOnce() -> Arc<str>,
        record: &Record,
    ) {
        let tokens = record.spent_tokens();
        let counts = [
            tokens.input,
            tokens.cached_input,
            tokens.cache_write,
            tokens.output,
            tokens.reasoning,
        ];
        let told = counts.iter().any(Option::is_some);
        let unpriced = record.is_unpriced();
        if record.cost_usd.is_none() && !told && !unpriced {
            return;
        }
        let (label, spending) = self.spending.get(team, || {
            let label = label();
            (team.to_owned(), (label.clone(), self.spending(families, label)))
        });
        if let Some(usd) = record.cost_usd {
            let (cost, priced) = spending.priced.get_or_init(|| {
                let spent = self.spent(label);
                let cost = families.cost.get_or_create_owned(&spent);
                (cost, families.priced.get_or_create_owned(&spent))
            });
            cost.inc_by(usd);
            priced.inc();
        }
        if unpriced {
            spending.unpriced.inc();
        }
        for (counter, count) in spending.tokens.iter().zip(counts) {
            if let Some(count) = count.filter(|count| *count > 0) {
                counter.inc_by(count);
            }
        }
    }

    fn spending(&self, families: &Families, team: Arc<str>) -> Spending {
        let spent = self.spent(team);
        Spending {
            priced: Arc::default(),
            unpriced: families.unpriced.get_or_create_owned(&spent),
            tokens: KINDS.map(|kind| {
                families.tokens.get_or_create_owned(&Taken { spent: spent.clone(), kind })
            }),
        }
    }

    /// Of an answer that did not pass: failed, or not judged.
    pub(super) fn checked(&self, families: &Families, check: CheckResult) -> Counter {
        let family = if check.is_judged() { &families.check_failures } else { &families.unjudged };
        self.checks.get(&check, || (check, family.get_or_create_owned(&self.check(check))))
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

    pub(super) fn measure(
        &self,
        families: &Families,
        operation: Operation,
        measure: Measure,
    ) -> Histogram {
        let key = (operation, measure);
        self.measures.get(&key, || {
            let asked = || self.asked(operation);
            let usage =
                |kind| families.usage.get_or_create_owned(&self.token_type(operation, kind));
            let histogram = match measure {
                Measure::FirstToken => families.first_token.get_or_create_owned(&asked()),
                Measure::PerToken => families.per_token.get_or_create_owned(&asked()),
                Measure::Input => usage("input"),
                Measure::Output => usage("output"),
            };
            (key, histogram)
        })
    }

    /// Nobody counts any more: the series go.
    pub(super) fn remove_from(&self, families: &Families) {
        self.attempts.keys(|key| {
            families.attempts.remove(&self.attempt(*key));
        });
        self.checks.keys(|check| {
            families.check_failures.remove(&self.check(*check));
            families.unjudged.remove(&self.check(*check));
        });
        self.dropped.keys(|why| {
            families.dropped.remove(&self.dropped_copy(why));
        });
        self.durations.keys(|key| {
            families.duration.remove(&self.ended(*key));
        });
        self.measures.keys(|(operation, measure)| {
            let usage = |kind| families.usage.remove(&self.token_type(*operation, kind));
            match measure {
                Measure::FirstToken => families.first_token.remove(&self.asked(*operation)),
                Measure::PerToken => families.per_token.remove(&self.asked(*operation)),
                Measure::Input => usage("input"),
                Measure::Output => usage("output"),
            };
        });
        if let Ok(all) = self.spending.0.read() {
            for (_, (label, _)) in all.iter() {
                let spent = self.spent(label.clone());
                families.cost.remove(&spent);
                families.priced.remove(&spent);
                families.unpriced.remove(&spent);
                for kind in KINDS {
                    families.tokens.remove(&Taken { spent: spent.clone(), kind });
                }
            }
        }
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

    fn spent(&self, team: Arc<str>) -> Spent {
        let (release, revision) = (self.release.clone(), self.revision.clone());
        Spent { release, revision, traffic: self.traffic, team }
    }

    fn check(&self, check: CheckResult) -> Checked {
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
