//! The `standalone` command: the loop around the core.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Standalone;
use crate::{
    app::{
        clock,
        process::{listen_on, start_logs, stop_signal},
    },
    gateway::{
        Gateway, GatewayConfig,
        server::{admin_router, public_router, serve},
    },
};

/// How often the folder is looked at and decisions are due.
const TICK: Duration = Duration::from_millis(250);
/// How long answers may take to end after the signal to stop.
const DRAIN: Duration = Duration::from_secs(30);

/// What to run, and where.
#[derive(clap::Args)]
pub struct Options {
    /// The folder of manifests. It is read again whenever a file changes.
    folder: PathBuf,
    /// Where applications send requests.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where Prometheus and probes ask.
    #[arg(long, default_value = "127.0.0.1:8081")]
    admin: SocketAddr,
    /// The file that keeps the state. Default: .serinus/state.json in the folder.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Serves until SIGTERM or ctrl-c.
///
/// # Errors
/// The folder, the state file or an address can not be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    start_logs(options.log_json);
    let gateway = Gateway::new(GatewayConfig {
        control_loss_timeout: Duration::from_secs(120),
        clock: clock::now,
    })?;
    let state = options.state.unwrap_or_else(|| options.folder.join(".serinus/state.json"));
    let mut standalone = Standalone::open(&options.folder, state, gateway.clone())?;
    // Before it knows its routes it could only refuse: nobody should reach it.
    step(&mut standalone);
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    for (address, router) in [
        (options.listen, public_router(gateway.clone())),
        (options.admin, admin_router(gateway.clone())),
    ] {
        let listener = listen_on(address).await?;
        servers.spawn(serve(
            listener,
            router,
            gateway.clone(),
            stop.clone().cancelled_owned(),
            DRAIN,
        ));
    }
    tracing::info!(folder = %options.folder.display(), listen = %options.listen, admin = %options.admin, "standalone");
    let mut signal = std::pin::pin!(stop_signal());
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = &mut signal => break,
            _ = ticks.tick() => {}
        }
        step(&mut standalone);
    }
    stop.cancel();
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

/// A full disk is no reason to stop serving: nothing moves until the state can be written.
fn step(standalone: &mut Standalone) {
    match tokio::task::block_in_place(|| standalone.tick(clock::now())) {
        Ok(news) => news.iter().for_each(super::Happening::log),
        Err(error) => tracing::error!("{error:#}"),
    }
}
