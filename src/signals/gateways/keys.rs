//! The key with which gateways are asked. It is read when gateways may know another one, and
//! not by time: an operator that is understood asks nobody for keys.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

use super::ask::PATIENCE;
use crate::signals::{
    keyring::{self, Stored},
    proof::ReportKey,
};

/// Reads the keys as they are stored.
pub type Read = Box<dyn Fn() -> BoxFuture<'static, Result<Stored, String>> + Send + Sync>;

/// After keys were read and nothing new was found, they are not read again for so long, which
/// doubles up to [`LONGEST`]: something else that answers in a gateway's place would have
/// them read for ever.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// The same while there is no key at all: gateways that start fill the Secret.
const LONGEST_WITHOUT: Duration = Duration::from_secs(5);

/// The keys of an operator.
pub struct Keys {
    read: Read,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    stored: Stored,
    /// The newest first, with the time at which each was made.
    keys: Vec<(Option<i64>, ReportKey)>,
    wait: Duration,
    not_before: Option<Instant>,
    /// Why they could not be read; told at each change.
    failed: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    pub(super) fn new(read: Read) -> Self {
        Self { read, known: Mutex::default() }
    }

    /// The key to ask with.
    pub(super) fn signing(&self, now: Timestamp) -> Option<ReportKey> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keyring::signing(&known.keys, |(made, _)| *made, now.as_second());
        key.map(|(_, key)| key.clone())
    }

    /// Reads the keys, if it is time; whether there are others now.
    pub(super) async fn refresh(&self) -> bool {
        let now = Instant::now();
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.not_before.is_some_and(|at| now < at) {
                return false;
            }
            let longest = if known.keys.is_empty() { LONGEST_WITHOUT } else { LONGEST };
            known.wait = (known.wait * 2).clamp(SHORTEST, longest);
            known.not_before = Some(now + known.wait);
        }
        let read = tokio::time::timeout(PATIENCE, (self.read)()).await;
        let read = read.unwrap_or_else(|_| Err("the API server took too long".to_owned()));
        let read = read.and_then(|stored| match stored.values().any(|b| keyring::is_key(b)) {
            true => Ok(stored),
            false => Err("it holds no key yet: gateways fill it when they start".to_owned()),
        });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.take(read)
    }
}

impl Known {
    fn take(&mut self, read: Result<Stored, String>) -> bool {
        let stored = match read {
            Ok(stored) => stored,
            Err(why) => {
                if self.failed.as_ref() != Some(&why) {
                    tracing::warn!(
                        "the keys with which gateways are asked can not be read: {why}; \
                         --request-id-secret names their Secret, and the Role serinus-operator \
                         of deploy/rbac-operator.yaml permits to read it"
                    );
                }
                self.failed = Some(why);
                return false;
            }
        };
        self.failed = None;
        if self.stored == stored {
            return false;
        }
        self.keys = keyring::newest_first(&stored, |made, key| (made, ReportKey::derive(key)));
        tracing::info!(keys = self.keys.len(), "keys for reports");
        self.stored = stored;
        (self.wait, self.not_before) = (Duration::ZERO, None);
        true
    }
}
