//! The `gateway` command: the data plane of a cluster.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    clock,
    process::{cluster, listen_on, start_logs, stop_signal},
    telemetry,
};
use crate::gateway::{
    Gateway, GatewayConfig,
    identity::Identities,
    server::{admin_router, public_router, serve},
    watch::follow_cluster,
};

/// How to run a gateway.
#[derive(clap::Args)]
pub struct Options {
    /// Where applications send requests.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Where operators, Prometheus and probes ask.
    #[arg(long, default_value = "0.0.0.0:8081")]
    admin: SocketAddr,
    /// Serve the releases of one namespace only. Default: all.
    #[arg(long)]
    watch_namespace: Option<String>,
    /// Without a sign of a leading operator for so many seconds, every request goes to stable.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(5..=3600))]
    control_loss_seconds: u64,
    /// How many seconds answers may take to end after the signal to stop.
    #[arg(long, default_value_t = 60)]
    drain_seconds: u64,
    /// How many seconds to go on accepting after the signal to stop, until nobody sends any more.
    #[arg(long, default_value_t = 5)]
    grace_seconds: u64,
    #[command(flatten)]
    telemetry: telemetry::Options,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Serves until SIGTERM or ctrl-c; then answers what is under way.
///
/// # Errors
/// There is no cluster to talk to, or an address can not be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    start_logs(options.log_json);
    let client = cluster().await?;
    let (telemetry, behind) = options.telemetry.start()?;
    let gateway = Gateway::new(GatewayConfig {
        control_loss_timeout: Duration::from_secs(options.control_loss_seconds),
        identities: Identities::off(),
        telemetry,
        ..GatewayConfig::new(clock::now)
    })?;
    let stop = CancellationToken::new();
    let drain = Duration::from_secs(options.drain_seconds);
    let mut tasks = JoinSet::new();
    let admin = listen_on(options.admin).await?;
    let until = stop.clone().cancelled_owned();
    tasks.spawn(served(serve(admin, admin_router(gateway.clone()), gateway.clone(), until, drain)));
    // Followed to the end: also the last requests go where the operator wants them.
    let mut following = JoinSet::new();
    following.spawn(follow_cluster(gateway.clone(), client, options.watch_namespace));
    let until = stop.clone().cancelled_owned();
    tasks.spawn(serve_when_known(options.listen, gateway.clone(), until, drain));
    tokio::select! {
        () = stop_signal() => {}
        Some(ended) = following.join_next() => {
            ended?.context("the cluster can no longer be followed")?;
        }
        Some(ended) = tasks.join_next() => ended??,
    }
    gateway.drain();
    tokio::time::sleep(Duration::from_secs(options.grace_seconds)).await;
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    behind.flush().await;
    Ok(())
}

/// Listens for applications once the routes are known: before, it could only refuse,
/// and a client that can not connect tries another gateway.
async fn serve_when_known(
    address: SocketAddr,
    gateway: Arc<Gateway>,
    stop: WaitForCancellationFutureOwned,
    drain: Duration,
) -> anyhow::Result<()> {
    let mut stop = Box::pin(stop);
    tokio::select! {
        () = gateway.routes_known() => {}
        () = &mut stop => return Ok(()),
    }
    let listener = listen_on(address).await?;
    tracing::info!(%address, "serves");
    served(serve(listener, public_router(gateway.clone()), gateway, stop, drain)).await
}

async fn served(server: impl Future<Output = std::io::Result<()>>) -> anyhow::Result<()> {
    server.await.context("a server failed")
}
