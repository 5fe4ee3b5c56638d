//! Connections that have shown no key yet. They have a share of the memory of their own, and
//! half of the places. When one of these is full, the oldest connection makes room for the
//! next. So a client with a key, which shows it at once, always gets in, however many
//! strangers are connected.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use crate::{
    gateway::budget::{Account, Budget, CONNECTION, Class, Held},
    openai::error::ApiError,
};

/// All strangers of one listener, the oldest first.
pub(super) struct Strangers {
    budget: Arc<Budget>,
    /// So many may be connected.
    most: usize,
    next: AtomicU64,
    connected: Mutex<BTreeMap<u64, CancellationToken>>,
}

/// One connection: a stranger's until a client is known on it.
pub(super) struct Connected {
    strangers: Arc<Strangers>,
    id: u64,
    left: CancellationToken,
    known: AtomicBool,
    held: Mutex<Held>,
}

impl Strangers {
    /// Of a listener with so many places.
    pub(super) fn new(budget: Arc<Budget>, places: usize) -> Arc<Self> {
        let most = (places / 2).max(1);
        Arc::new(Self { budget, most, next: AtomicU64::new(0), connected: Mutex::default() })
    }

    /// One more is connected.
    pub(super) fn enter(self: &Arc<Self>) -> Arc<Connected> {
        let (id, left) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        let held = self.budget.take(Class::Strangers, CONNECTION).unwrap_or_else(|_| {
            Self::make_room(&mut self.lock());
            self.budget.take_anyway(Class::Strangers, CONNECTION)
        });
        let mut connected = self.lock();
        if connected.len() >= self.most {
            Self::make_room(&mut connected);
        }
        connected.insert(id, left.clone());
        drop(connected);
        let (known, held) = (AtomicBool::new(false), Mutex::new(held));
        Arc::new(Connected { strangers: self.clone(), id, left, known, held })
    }

    fn make_room(connected: &mut BTreeMap<u64, CancellationToken>) {
        if let Some((_, oldest)) = connected.pop_first() {
            oldest.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// A client is known on it: from now on it does not make room for strangers, and is held
    /// by the client that was known first. Operators have no account.
    ///
    /// # Errors
    /// There are as many connections of clients, or of this client, as memory allows.
    pub(super) fn is_known(&self, account: Option<&Arc<Account>>) -> Result<(), ApiError> {
        if self.known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(token) = self.strangers.lock().remove(&self.id) else { return Ok(()) };
        let held = match account {
            Some(account) => account.take(Class::Connections, CONNECTION),
            None => self.strangers.budget.take(Class::Connections, CONNECTION),
        };
        match held {
            Ok(held) => {
                *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
                self.known.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                self.strangers.lock().insert(self.id, token);
                Err(error)
            }
        }
    }

    /// Ends when it must make room.
    pub(super) async fn makes_room(&self) {
        self.left.cancelled().await;
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.strangers.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_a_client_never_does() {
        // Room for two strangers and six clients.
        let strangers = Strangers::new(Budget::new(16 * CONNECTION), 100);
        let client = strangers.enter();
        assert!(client.is_known(None).is_ok() && client.is_known(None).is_ok());
        let connected: Vec<_> = (0..4).map(|_| strangers.enter()).collect();
        let left: Vec<bool> = connected.iter().map(|c| c.left.is_cancelled()).collect();
        assert_eq!(left, [true, true, false, false]);
        assert!(!client.left.is_cancelled());
        drop((connected, client));
        assert!(strangers.lock().is_empty());
        assert!(strangers.budget.take(Class::Connections, 6 * CONNECTION).is_ok());
    }

    #[test]
    fn strangers_have_half_of_the_places_however_much_memory_there_is() {
        let strangers = Strangers::new(Budget::new(1 << 30), 10);
        let connected: Vec<_> = (0..9).map(|_| strangers.enter()).collect();
        let left = connected.iter().filter(|one| one.left.is_cancelled()).count();
        assert_eq!((left, strangers.lock().len()), (4, 5), "the oldest four make room");
        assert!(connected[..4].iter().all(|one| one.left.is_cancelled()));
    }

    #[test]
    fn one_client_too_many_is_refused_and_stays_a_stranger() {
        let strangers = Strangers::new(Budget::new(16 * CONNECTION), 100);
        let clients: Vec<_> = (0..7)
            .map(|_| {
                let client = strangers.enter();
                (client.is_known(None).is_ok(), client)
            })
            .collect();
        assert_eq!(clients.iter().filter(|(known, _)| *known).count(), 6);
        assert_eq!(strangers.lock().len(), 1);
    }
}
