//! One budget of memory for everything that applications and models make a gateway hold:
//! connections, bodies, requests under way, answers. Each limit by itself is harmless; what
//! ends a process is their sum.
//!
//! A holder takes bytes before it holds them, and gives them back when it is dropped. Each
//! class has a most, so that no class can starve another: connections of strangers an
//! eighth, those of known clients three eighths, bodies three eighths, answers half, processes
//! that fill in templates three eighths. What is not held by the other classes is theirs. Nor
//! can one client starve another (`account`).
//!
//! What is taken is an estimate: bytes times what copies and parsing cost. A body of up to
//! [`SMALL`] bytes is within what its request takes, so that an ordinary request costs two
//! additions. What has bounds of its own is subtracted from the budget when it is made:
//! the cache, the queue of telemetry, routes and counts (`app/limits.rs`).

mod account;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

pub(super) use self::account::{Account, CLIENT_SHARE, most_of_one};
use crate::openai::error::ApiError;

/// A connection: its task, and its buffers of reading and writing.
pub(super) const CONNECTION: usize = 24 << 10;
/// A request under way: its task, the connection to the model, a piece of the answer.
pub(super) const REQUEST: usize = 48 << 10;
/// Bodies and answers up to here are within what a request takes.
pub(super) const SMALL: usize = 4 << 10;
/// A body is held as it came and as it is sent on, and is parsed.
pub(super) const BODY_COPIES: usize = 3;
/// A whole answer grows by doubling, and is parsed.
pub(super) const ANSWER_COPIES: usize = 2;

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Connections that have shown no key yet.
    Strangers,
    /// Connections of clients.
    Connections,
    /// Bodies of requests.
    Bodies,
    /// Requests under way and their answers.
    Answers,
    /// Processes that fill in templates.
    Templates,
}

impl Class {
    const ALL: [Self; 5] =
        [Self::Strangers, Self::Connections, Self::Bodies, Self::Answers, Self::Templates];

    /// Of eight parts of the budget.
    fn eighths(self) -> usize {
        match self {
            Self::Strangers => 1,
            Self::Connections | Self::Bodies | Self::Templates => 3,
            Self::Answers => 4,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Strangers => "strangers",
            Self::Connections => "connections",
            Self::Bodies => "bodies",
            Self::Answers => "answers",
            Self::Templates => "templates",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Strangers | Self::Connections => "connections",
            Self::Bodies => "request bodies",
            Self::Answers => "requests and answers",
            Self::Templates => "templates",
        }
    }

    /// Why a request is turned away.
    pub(super) fn refusal(self) -> ApiError {
        let message = format!("this gateway's memory is full with {}: try again", self.what());
        ApiError::new(503, "overloaded", message).retry_after(1)
    }
}

/// The most that a class may have of a budget.
pub(super) fn most(class: Class, total: usize) -> usize {
    total / 8 * class.eighths()
}

/// The budget of one gateway.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    used: AtomicUsize,
    by_class: [AtomicUsize; 5],
    refused: [AtomicU64; 5],
    /// As `refused`, where there is room, but not for this client.
    over_share: [AtomicU64; 5],
    accounts: Mutex<Accounts>,
}

/// The accounts of clients, as long as they hold something.
#[derive(Debug, Default)]
struct Accounts {
    by_name: HashMap<Box<str>, Weak<Account>>,
    /// With so many, those of clients that are gone are dropped.
    sweep_at: usize,
}

/// So many accounts are kept without a look at whether their clients are gone.
const FEW_ACCOUNTS: usize = 64;

/// Bytes that are held; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Arc<Budget>,
    /// The client that holds them, if it is one.
    account: Option<Arc<Account>>,
    class: Class,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(total: usize) -> Arc<Self> {
        let (used, by_class, refused, over_share, accounts) = Default::default();
        Arc::new(Self { total, used, by_class, refused, over_share, accounts })
    }

    /// All of it, in bytes.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The account of a client, which all of its requests share.
    pub(super) fn account(self: &Arc<Self>, who: &str) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let Accounts { by_name, sweep_at } = &mut *accounts;
        if let Some(known) = by_name.get(who).and_then(Weak::upgrade) {
            return known;
        }
        if by_name.len() >= (*sweep_at).max(FEW_ACCOUNTS) {
            by_name.retain(|_, account| account.strong_count() > 0);
            *sweep_at = by_name.len() * 2;
        }
        let account = Arc::new(Account::new(self, who));
        by_name.insert(who.into(), Arc::downgrade(&account));
        account
    }

    #[cfg(test)]
    fn known_accounts(&self) -> usize {
        self.accounts.lock().unwrap().by_name.len()
    }

    /// Takes `bytes`, if they are free and the class may have them.
    ///
    /// # Errors
    /// What is full, as a client is told.
    pub(super) fn take(self: &Arc<Self>, class: Class, bytes: usize) -> Result<Held, ApiError> {
        let mut held = self.nothing(class);
        held.grow_to(bytes)?;
        Ok(held)
    }

    /// Takes `bytes` though they may be more than there are: something else is given back.
    pub(super) fn take_anyway(self: &Arc<Self>, class: Class, bytes: usize) -> Held {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.by_class[class as usize].fetch_add(bytes, Ordering::Relaxed);
        Held { budget: self.clone(), account: None, class, bytes }
    }

    /// To be grown.
    pub(super) fn nothing(self: &Arc<Self>, class: Class) -> Held {
        Held { budget: self.clone(), account: None, class, bytes: 0 }
    }

    /// Whether more than three quarters are held: who holds much and takes little must go.
    pub(super) fn is_short(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.total / 4 * 3
    }

    fn try_add(
        &self,
        class: Class,
        bytes: usize,
        account: Option<&Account>,
    ) -> Result<(), ApiError> {
        let in_class = self.by_class[class as usize].fetch_add(bytes, Ordering::Relaxed) + bytes;
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let is_full = in_class > most(class, self.total) || used > self.total;
        let over =
            account.filter(|account| !is_full && !account.try_add(class, bytes, (in_class, used)));
        if !is_full && over.is_none() {
            return Ok(());
        }
        self.give_back(class, bytes);
        let (counts, error) = match over {
            Some(account) => (&self.over_share, account.refusal(class)),
            None => (&self.refused, class.refusal()),
        };
        counts[class as usize].fetch_add(1, Ordering::Relaxed);
        Err(error)
    }

    fn give_back(&self, class: Class, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.by_class[class as usize].fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Held {
    /// Holds `bytes` in all, if it holds less.
    ///
    /// # Errors
    /// There is no room for more; what was held is held.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            self.budget.try_add(self.class, more, self.account.as_deref())?;
            self.bytes += more;
        }
        Ok(())
    }

    /// Gives back all but `bytes`, if it holds more.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.give_back(less);
        self.bytes -= less;
    }

    /// Whether a client that is alone, and holds nothing else of the class, may hold `bytes`.
    pub(super) fn may_ever_be(&self, bytes: usize) -> bool {
        bytes <= most_of_one(self.class, self.budget.total)
    }

    fn give_back(&self, bytes: usize) {
        self.budget.give_back(self.class, bytes);
        if let Some(account) = &self.account {
            account.give_back(self.class, bytes);
        }
    }

    /// `bytes` that are held as long as anybody has a part of them.
    pub(super) fn keep(self, bytes: Bytes) -> Bytes {
        if self.bytes == 0 { bytes } else { Bytes::from_owner(Kept { bytes, _held: self }) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

struct Kept {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Collector for Budget {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let gauge = |n: usize| ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX));
        let help = "Bytes of memory that connections, bodies and answers may hold together";
        let total =
            encoder.encode_descriptor("memory_budget_bytes", help, None, MetricType::Gauge)?;
        gauge(self.total).encode(total)?;
        let help = "Bytes of the memory budget that are held, as estimated";
        let mut held =
            encoder.encode_descriptor("memory_held_bytes", help, None, MetricType::Gauge)?;
        for class in Class::ALL {
            let labels = [("class", class.as_str())];
            let bytes = self.by_class[class as usize].load(Ordering::Relaxed);
            gauge(bytes).encode(held.encode_family(&labels)?)?;
        }
        let help = "Requests and connections that found no room in the memory budget";
        let over = "Requests and connections of clients that hold their share of the memory budget";
        for (name, help, counts) in [
            ("memory_refusals", help, &self.refused),
            ("memory_share_refusals", over, &self.over_share),
        ] {
            let mut all = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for class in Class::ALL {
                let labels = [("class", class.as_str())];
                let refused = counts[class as usize].load(Ordering::Relaxed);
                ConstCounter::new(refused).encode(all.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_class_takes_what_another_one_is_promised_and_all_is_given_back() {
        let budget = Budget::new(8000);
        let mut held = vec![];
        // No template is filled in.
        for class in Class::ALL.into_iter().filter(|class| *class != Class::Templates) {
            while let Ok(more) = budget.take(class, 100) {
                held.push(more);
            }
        }
        let of = |class: Class| budget.by_class[class as usize].load(Ordering::Relaxed);
        // Answers get what the others leave, and always an eighth.
        let all = Class::ALL.map(of);
        assert_eq!(all, [1000, 3000, 3000, 1000, 0]);
        assert!(budget.is_short());
        assert_eq!(budget.take(Class::Answers, 1).unwrap_err().code, "overloaded");
        drop(held);
        assert_eq!((budget.used.load(Ordering::Relaxed), Class::ALL.map(of)), (0, [0; 5]));
        assert!(budget.take(Class::Answers, 4000).is_ok());
        assert!(budget.take(Class::Answers, 4001).is_err(), "half is the most");
    }

    #[test]
    fn bytes_are_held_as_long_as_anybody_has_a_part_of_them() {
        let budget = Budget::new(8000);
        let held = budget.take(Class::Bodies, 300).unwrap();
        let bytes = held.keep(Bytes::from(vec![1; 100]));
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(budget.used.load(Ordering::Relaxed), 300);
        drop(part);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_finds_no_room_to_grow_keeps_what_it_has() {
        let budget = Budget::new(8000);
        let mut held = budget.take(Class::Bodies, 2000).unwrap();
        assert!(held.grow_to(1000).is_ok() && held.grow_to(3001).is_err());
        assert_eq!(budget.used.load(Ordering::Relaxed), 2000);
        held.shrink_to(3000);
        assert_eq!(budget.used.load(Ordering::Relaxed), 2000);
        held.shrink_to(500);
        assert_eq!(budget.used.load(Ordering::Relaxed), 500);
        drop(held);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
