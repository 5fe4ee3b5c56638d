//! The flags that say where Prometheus is.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::Context;

use super::numbers::between;
use crate::{
    api::GoDuration,
    signals::prometheus::{Config, Prometheus},
};

/// How long a query may take.
const TIMEOUT: RangeInclusive<GoDuration> =
    GoDuration(Duration::from_millis(100))..=GoDuration::from_secs(60);

/// Where Prometheus is, for metrics that ask it.
#[derive(clap::Args)]
#[group(id = "prometheus")]
pub struct Options {
    /// The address of Prometheus, or of what speaks its API (Thanos, Mimir,
    /// VictoriaMetrics), for example http://prometheus.monitoring:9090. Without user and
    /// password.
    #[arg(long)]
    prometheus_url: Option<String>,
    /// A file with a bearer token for Prometheus, or with "Basic " and user:password in
    /// base64. It may change at any time.
    #[arg(long, requires = "prometheus_url")]
    prometheus_token_file: Option<PathBuf>,
    /// The longest that one query may take, 100ms to 1m.
    #[arg(long, default_value = "5s", value_parser = between(TIMEOUT))]
    prometheus_timeout: GoDuration,
}

impl Options {
    /// Sets it up; nothing is asked yet.
    ///
    /// # Errors
    /// The address can not be used.
    pub fn build(&self) -> anyhow::Result<Prometheus> {
        super::process::install_tls();
        let timeout = self.prometheus_timeout.0;
        let config = self.prometheus_url.clone().map(|url| Config {
            url,
            token_file: self.prometheus_token_file.clone(),
            timeout,
        });
        Prometheus::new(config).context("--prometheus-url")
    }
}
