//! What requests cost, by team, release, revision and kind of traffic, since the start of
//! the process: what `GET /serinus/v1/cost` tells. The exported metrics count the same
//! (`Record::is_unpriced`, `Record::spent_tokens`), but let go of variants that are gone.
//!
//! A record costs one look-up under a shared lock, and its account's own lock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use xxhash_rust::xxh3::Xxh3;

use super::sinks::Sink;
use crate::{
    audit::record::{AssignmentReason, Record},
    signals::spending::{Line, Spent, Whose},
};

/// Teams of one variant that are told apart. A team may be a token's subject, of which
/// there is no end; what comes beyond is counted together.
const TEAMS: usize = 256;
/// The name of all teams beyond.
const OTHERS: &str = "other";

/// The counts so far.
#[derive(Default)]
pub(super) struct Ledger {
    accounts: RwLock<HashMap<u128, Arc<Account>>>,
}

struct Account {
    whose: Whose,
    spent: Mutex<Spent>,
}

impl Account {
    fn read(&self) -> Spent {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// A line for each account, in order.
    pub(super) fn lines(&self) -> Vec<Line> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let mut lines: Vec<Line> = accounts
            .values()
            .map(|account| Line { whose: account.whose.clone(), spent: account.read() })
            .collect();
        lines.sort_by(|a, b| a.whose.cmp(&b.whose));
        lines
    }

    fn account(&self, record: &Record) -> Arc<Account> {
        let team = record.caller.as_ref().map_or("", |caller| caller.team.as_str());
        let key = key(record, team);
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&key) {
            return account.clone();
        }
        drop(accounts);
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let beside = |whose: &Whose| {
            whose.release == record.origin.release
                && whose.revision == record.origin.revision
                && whose.traffic == traffic(record)
        };
        let full = accounts.values().filter(|account| beside(&account.whose)).count() >= TEAMS;
        let (key, team) = if full { (self::key(record, OTHERS), OTHERS) } else { (key, team) };
        let open = || {
            let whose = Whose {
                team: team.to_owned(),
                release: record.origin.release.clone(),
                revision: record.origin.revision.clone(),
                traffic: traffic(record).to_owned(),
            };
            Arc::new(Account { whose, spent: Mutex::default() })
        };
        accounts.entry(key).or_insert_with(open).clone()
    }
}

fn key(record: &Record, team: &str) -> u128 {
    let mut hash = Xxh3::new();
    for part in [&record.origin.release, &record.origin.revision, team, traffic(record)] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.digest128()
}

/// Whose requests: of `users`, or copies for a `shadow`. What copies cost comes on top of
/// what answering users costs, so neither hides in the other.
fn traffic(record: &Record) -> &'static str {
    if record.reason == AssignmentReason::Shadow { "shadow" } else { "users" }
}

/// What a record adds.
fn spent(record: &Record) -> Spent {
    let count = |n: Option<u64>| n.unwrap_or(0) as f64;
    let tokens = record.spent_tokens();
    Spent {
        priced_requests: f64::from(u8::from(record.cost_usd.is_some())),
        unpriced_requests: f64::from(u8::from(record.is_unpriced())),
        input_tokens: count(tokens.input),
        cached_input_tokens: count(tokens.cached_input),
        cache_write_tokens: count(tokens.cache_write),
        output_tokens: count(tokens.output),
        reasoning_tokens: count(tokens.reasoning),
        usd: record.cost_usd.unwrap_or(0.0),
    }
}

impl Sink for Ledger {
    fn consume(&self, record: &Arc<Record>) {
        let spent = spent(record);
        if spent == Spent::default() {
            return;
        }
        let account = self.account(record);
        account.spent.lock().unwrap_or_else(PoisonError::into_inner).add(spent);
    }
}

#[cfg(test)]
mod tests;
