//! Redis or Valkey: one connection that many requests share and that is made anew when it
//! broke. Keys have a prefix, so that a server may be used for other things as well.

use std::{fmt, time::Duration};

use bytes::Bytes;
use redis::{
    AsyncCommands, Client, RedisError, SetExpiry, SetOptions,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::sync::OnceCell;

use super::{Entry, Key, PATIENCE};

/// Where a shared cache is.
#[derive(Clone)]
pub struct SharedConfig {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS.
    pub url: String,
    /// What keys begin with.
    pub prefix: String,
}

/// The address holds a password.
impl fmt::Debug for SharedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedConfig").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The shared cache can not be set up. Its address is not quoted: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error(
    "the address of the shared cache is none: write for example redis://valkey.cache:6379/0, or rediss:// for TLS"
)]
pub struct SetupError;

pub(super) struct Shared {
    client: Client,
    prefix: String,
    /// Made when it is first needed: a gateway starts without its cache.
    connection: OnceCell<ConnectionManager>,
}

impl Shared {
    pub(super) fn new(config: SharedConfig) -> Result<Self, SetupError> {
        let client = Client::open(config.url.trim()).map_err(|_| SetupError)?;
        Ok(Self { client, prefix: config.prefix, connection: OnceCell::new() })
    }

    async fn connection(&self) -> Result<ConnectionManager, RedisError> {
        let make = || async {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(PATIENCE * 10))
                .set_response_timeout(Some(PATIENCE))
                .set_number_of_retries(0);
            ConnectionManager::new_lazy_with_config(self.client.clone(), config)
        };
        self.connection.get_or_try_init(make).await.cloned()
    }

    fn name(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key].concat()
    }

    /// An entry and for how long it is still kept there.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<(Entry, Duration)>, RedisError> {
        let mut connection = self.connection().await?;
        let name = self.name(key);
        let (bytes, left): (Option<Vec<u8>>, i64) =
            redis::pipe().get(&name).pttl(&name).query_async(&mut connection).await?;
        let left = u64::try_from(left).ok().map(Duration::from_millis);
        Ok(bytes.and_then(|bytes| Entry::from_bytes(Bytes::from(bytes))).zip(left))
    }

    pub(super) async fn put(
        &self,
        key: &Key,
        entry: &Entry,
        ttl: Duration,
    ) -> Result<(), RedisError> {
        let mut connection = self.connection().await?;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let options = SetOptions::default().with_expiration(SetExpiry::PX(millis));
        connection.set_options(self.name(key), entry.to_bytes().as_ref(), options).await
    }
}
