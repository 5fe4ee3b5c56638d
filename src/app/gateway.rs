//! The `gateway` command: the data plane of a cluster.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    addresses, cache, clock, identity, limits,
    process::{cluster, listen_on, start_logs, stop_signal},
    request_ids, telemetry, tls,
};
use crate::gateway::{
    Gateway, GatewayConfig,
    clients::Proxies,
    ends::ask_when_models_end,
    server::{Door, Face, serve},
    tls::ServerTls,
    watch::follow_cluster,
    workers::Workers,
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
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    drain_seconds: u64,
    /// How many seconds to go on accepting after the signal to stop, until nobody sends any more.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    grace_seconds: u64,
    #[command(flatten)]
    telemetry: telemetry::Options,
    #[command(flatten)]
    cache: cache::Options,
    #[command(flatten)]
    clients: identity::Options,
    #[command(flatten)]
    cluster: identity::ClusterOptions,
    #[command(flatten)]
    people: identity::People,
    #[command(flatten)]
    request_ids: request_ids::Options,
    #[command(flatten)]
    limits: limits::Options,
    #[command(flatten)]
    tls: tls::Options,
    #[command(flatten)]
    addresses: addresses::Options,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Serves until SIGTERM or ctrl-c; then answers what is under way.
///
/// # Errors
/// There is no cluster to talk to, or an address can not be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let log = start_logs(options.log_json)?;
    let client = cluster().await?;
    // Followed to the end: also the last requests are known and go where the operator
    // wants them.
    let (mut following, mut tasks) = (JoinSet::new(), JoinSet::new());
    let notices = Arc::default();
    let identities = options.cluster.build(&options.clients, &client, &notices, &mut following)?;
    let shared = options.request_ids.build(&client, &notices, &mut following)?;
    let tls = options.tls.build()?;
    if let Some(tls) = &tls {
        following.spawn(tls.clone().follow());
    }
    let (telemetry, behind) = options.telemetry.start(log)?;
    let gateway = Gateway::new(GatewayConfig {
        control_loss_timeout: Duration::from_secs(options.control_loss_seconds),
        awaits_leader: true,
        identities,
        people: options.people.build(&mut following)?,
        limits: options.limits.build(options.cache.memory())?,
        addresses: Arc::new(options.addresses.build()),
        proxies: Proxies::of_environment(),
        telemetry,
        cache: Some(options.cache.build()?),
        request_keys: shared.keys.clone(),
        peers: shared.peers.clone(),
        notices,
        ..GatewayConfig::new(clock::now)
    });
    let stop = CancellationToken::new();
    let drain = Duration::from_secs(options.drain_seconds);
    let admin = listen_on(options.admin).await?;
    let until = stop.clone().cancelled_owned();
    tasks.spawn(serve(admin, Face::Operators, gateway.clone(), until, drain).map(Ok));
    following.spawn(ask_when_models_end(gateway.clone()));
    let mut routes = JoinSet::new();
    routes.spawn(follow_cluster(gateway.clone(), client, options.watch_namespace));
    let until = stop.clone().cancelled_owned();
    let workers = Arc::new(Workers::start()?);
    let door = (options.listen, tls, workers.clone());
    tasks.spawn(serve_when_known(door, gateway.clone(), shared.known(), until, drain));
    tokio::select! {
        () = stop_signal() => {}
        Some(ended) = routes.join_next() => {
            ended?.context("the cluster can no longer be followed")?;
        }
        Some(ended) = following.join_next() => {
            ended?;
            anyhow::bail!("a part of the gateway ended by itself");
        }
        Some(ended) = tasks.join_next() => ended??,
    }
    gateway.drain();
    tokio::time::sleep(Duration::from_secs(options.grace_seconds)).await;
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    drop(workers);
    behind.flush().await;
    Ok(())
}

/// Listens for applications once routes and clients are known: before, it could only
/// refuse, and a client that can not connect tries another gateway.
async fn serve_when_known(
    (address, tls, workers): (SocketAddr, Option<Arc<ServerTls>>, Arc<Workers>),
    gateway: Arc<Gateway>,
    keys_known: impl Future<Output = ()>,
    stop: WaitForCancellationFutureOwned,
    drain: Duration,
) -> anyhow::Result<()> {
    let mut stop = Box::pin(stop);
    let known = async {
        gateway.routes_known().await;
        gateway.identities().known().await;
        keys_known.await;
    };
    tokio::select! {
        () = known => {}
        () = &mut stop => return Ok(()),
    }
    let door = Door::from(listen_on(address).await?).with_tls(tls).with_workers(workers);
    tracing::info!(%address, "serves");
    serve(door, Face::Applications, gateway, stop, drain).await;
    Ok(())
}
