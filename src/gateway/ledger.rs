//! What requests cost, by team, release, revision and kind of traffic, since the start of
//! the process: one count behind both the exported metrics and `GET /serinus/v1/cost`.
//!
//! A record costs one look-up under a shared lock and a few atomic additions.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use xxhash_rust::xxh3::Xxh3;

use super::{routes::Tally, sinks::Sink};
use crate::{
    audit::record::{AssignmentReason, Record, RecordOutcome},
    signals::spending::{COUNTERS, Line, Spent, Whose},
};

/// Teams of one variant that are told apart. A team may be a token's subject, of which
/// there is no end; what comes beyond is counted together.
const TEAMS: usize = 500;
/// The name of all teams beyond.
const OTHERS: &str = "(others)";

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
/// what answering users costs, and what the `cache` answers costs nothing again, so that
/// none hides in another.
fn traffic(record: &Record) -> &'static str {
    match record.reason {
        AssignmentReason::Shadow => "shadow",
        AssignmentReason::Cached => "cache",
        _ => "users",
    }
}

/// What a record adds. A provider charges for what it began to answer, whether or not
/// anyone waits for the end; what failed or was refused, and tells of no tokens, cost
/// nothing that anyone knows of.
fn spent(record: &Record) -> Spent {
    let count = |n: Option<u64>| n.unwrap_or(0) as f64;
    let charged = matches!(record.outcome, RecordOutcome::Ok | RecordOutcome::Cancelled);
    let unpriced = record.cost_usd.is_none() && charged;
    Spent {
        priced_requests: f64::from(u8::from(record.cost_usd.is_some())),
        unpriced_requests: f64::from(u8::from(unpriced)),
        input_tokens: count(record.tokens.input),
        cached_input_tokens: count(record.tokens.cached_input),
        cache_write_tokens: count(record.tokens.cache_write),
        output_tokens: count(record.tokens.output),
        reasoning_tokens: count(record.tokens.reasoning),
        usd: record.cost_usd.unwrap_or(0.0),
    }
}

impl Sink for Ledger {
    fn consume(&self, record: &Arc<Record>, _: Option<&Arc<Tally>>) {
        let spent = spent(record);
        if spent == Spent::default() {
            return;
        }
        let account = self.account(record);
        account.spent.lock().unwrap_or_else(PoisonError::into_inner).add(spent);
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ledger")
    }
}

impl Collector for Ledger {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let lines = self.lines();
        for counter in &COUNTERS {
            let mut family =
                encoder.encode_descriptor(counter.name, counter.help, None, MetricType::Counter)?;
            for Line { whose, spent } in &lines {
                let labels = [
                    ("release", whose.release.as_str()),
                    ("revision", whose.revision.as_str()),
                    ("traffic", whose.traffic.as_str()),
                    ("team", whose.team.as_str()),
                ];
                let value = ConstCounter::new(counter.of(*spent));
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
