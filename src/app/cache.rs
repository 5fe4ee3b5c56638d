//! The flags that say how much answers are kept, and where.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;

use crate::gateway::cache::{Cache, CacheConfig, SharedConfig};

/// Where answers are kept for releases with `spec.cache`.
#[derive(clap::Args)]
#[group(id = "cache")]
pub struct Options {
    /// Memory for kept answers, in MiB. 0 keeps none in memory.
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    cache_memory: u64,
    /// A file with the address of a Redis or Valkey that gateways share, for example
    /// rediss://user:password@valkey.cache:6379/0. A file, so that the password is not on
    /// the command line.
    #[arg(long, value_name = "FILE", env = "SERINUS_CACHE_REDIS_URL_FILE")]
    cache_redis_url_file: Option<PathBuf>,
    /// What keys in the shared cache begin with.
    #[arg(long, value_name = "TEXT", default_value = "serinus:cache:")]
    cache_redis_prefix: String,
}

impl Options {
    /// Bytes of memory for kept answers.
    pub fn memory(&self) -> u64 {
        self.cache_memory << 20
    }

    /// Sets it up; the shared cache is not asked yet, and need not be there.
    ///
    /// # Errors
    /// The file can not be read, or holds no address.
    pub fn build(&self) -> anyhow::Result<Arc<Cache>> {
        super::process::install_tls();
        let shared = match &self.cache_redis_url_file {
            None => None,
            Some(file) => {
                let url = std::fs::read_to_string(file).with_context(|| {
                    format!("--cache-redis-url-file {} can not be read", file.display())
                })?;
                Some(SharedConfig { url, prefix: self.cache_redis_prefix.clone() })
            }
        };
        let config = CacheConfig { memory: self.memory(), shared };
        Cache::new(config).context("--cache-redis-url-file")
    }
}
