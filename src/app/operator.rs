//! The `operator` command: the control plane of a cluster.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use k8s_openapi::api::{apps::v1::Deployment, discovery::v1::EndpointSlice};
use kube::{Api, Client, runtime::watcher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    addresses, clock,
    process::{cluster, listen_on, start_logs, stop_signal},
    prometheus,
};
use crate::{
    controllers::{
        Context,
        backend::{self, probe::Probe},
        caches::Caches,
        exported::Exported,
        kube::{
            Cluster,
            leadership::{ElectionConfig, Leadership, seek},
        },
        policy, prompt,
        release::{self, Triggers, ask_prometheus, follow_gateways},
    },
    signals::{
        gateways::Gateways,
        watch::{cache, follow},
    },
};

/// The Lease that operators compete for.
const LEASE: &str = "serinus-operator";
/// The name of the gateways' admin port in their Service.
const ADMIN_PORT: &str = "admin";

/// How to run an operator.
#[derive(clap::Args)]
pub struct Options {
    /// Who this process is, in the Lease and in Events. A random part is added.
    #[arg(long, env = "POD_NAME", default_value = "operator")]
    identity: String,
    /// The namespace of this operator: of its Lease and of the gateways' Service.
    #[arg(long, env = "POD_NAMESPACE", default_value = "serinus-system")]
    namespace: String,
    /// Look after one namespace only. Default: all.
    #[arg(long)]
    watch_namespace: Option<String>,
    /// The Service of the gateways; its port named "admin" is asked for evidence.
    #[arg(long, default_value = "serinus-gateway")]
    gateway_service: String,
    /// The gateways' admin addresses (host:port, comma-separated) instead of a Service.
    #[arg(long, value_delimiter = ',')]
    gateway_endpoints: Vec<String>,
    /// A file with the token that gateways are asked with, for example one of this
    /// operator's service account for the audience serinus-gateway. It may change at any time.
    #[arg(long, value_name = "FILE")]
    gateway_token_file: Option<PathBuf>,
    #[command(flatten)]
    addresses: addresses::Options,
    /// Where Prometheus and probes ask.
    #[arg(long, default_value = "0.0.0.0:8081")]
    admin: SocketAddr,
    /// How long leadership lasts without renewal, in seconds.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=120))]
    lease_seconds: u64,
    /// How often gateways are asked, in milliseconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=30_000))]
    pull_milliseconds: u64,
    #[command(flatten)]
    prometheus: prometheus::Options,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Runs until SIGTERM or ctrl-c, then hands leadership over.
///
/// # Errors
/// There is no cluster to talk to, or the address can not be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    start_logs(options.log_json);
    let client = cluster().await?;
    let listener = listen_on(options.admin).await?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let election = election(&options);
    let leadership = Leadership::new(&election.identity);
    let exported = Arc::new(Exported::default());
    let (caches, watches) = Caches::new(&client, options.watch_namespace.as_deref());
    let (triggers, triggered) = Triggers::new(caches.releases.clone());
    let context = Arc::new(Context {
        cluster: Cluster::new(client.clone(), leadership.clone(), exported.clone()),
        caches,
        gateways: Gateways::new(options.gateway_token_file.clone())?,
        prometheus: options.prometheus.build()?,
        exported: exported.clone(),
        clock: clock::now,
        probe: Probe::new(options.addresses.build())?,
    });
    let deployments: Api<Deployment> = match &options.watch_namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let endpoints = gateway_addresses(&options, &client, &mut tasks);
    let stores = &context.caches;
    tasks.spawn(policy::run(
        stores.policies.clone(),
        watches.policies,
        triggers.clone(),
        context.clone(),
    ));
    tasks.spawn(prompt::run(
        stores.prompts.clone(),
        watches.prompts,
        triggers.clone(),
        context.clone(),
    ));
    tasks.spawn(backend::run(
        stores.backends.clone(),
        watches.backends,
        deployments,
        triggers.clone(),
        context.clone(),
    ));
    tasks.spawn(release::run(
        stores.releases.clone(),
        watches.releases,
        triggers.clone(),
        triggered,
        context.clone(),
    ));
    let copies = triggers.clone();
    tasks.spawn(follow(watches.copies, "ControllerRevision", move |copy| copies.on_copy(&copy)));
    let pull = Duration::from_millis(options.pull_milliseconds);
    tasks.spawn(follow_gateways(context.clone(), endpoints, triggers.sender(), pull));
    tasks.spawn(ask_prometheus(context.clone(), pull));
    tasks.spawn(serve_admin(listener, context.clone()));
    let seeking = seek(client, election, leadership, exported, stop.clone());
    let mut seeking = std::pin::pin!(seeking);
    tokio::select! {
        () = stop_signal() => {}
        () = &mut seeking => {}
        ended = tasks.join_next() => {
            ended.transpose().context("a part of the operator failed")?;
            anyhow::bail!("a part of the operator ended by itself");
        }
    }
    // Nothing acts any more when the Lease is handed back.
    tasks.shutdown().await;
    stop.cancel();
    seeking.await;
    Ok(())
}

fn election(options: &Options) -> ElectionConfig {
    ElectionConfig {
        namespace: options.namespace.clone(),
        lease: LEASE.to_owned(),
        identity: format!("{}_{:08x}", options.identity, rand::random::<u32>()),
        duration: Duration::from_secs(options.lease_seconds),
        clock: clock::now,
    }
}

/// Where the gateways' reports are: the given addresses, or those of the Service.
fn gateway_addresses(
    options: &Options,
    client: &Client,
    tasks: &mut JoinSet<()>,
) -> Box<dyn Fn() -> BTreeSet<String> + Send> {
    if !options.gateway_endpoints.is_empty() {
        let addresses: BTreeSet<String> = options.gateway_endpoints.iter().cloned().collect();
        return Box::new(move || addresses.clone());
    }
    let selector = format!("kubernetes.io/service-name={}", options.gateway_service);
    let config = watcher::Config::default().labels(&selector);
    let (slices, watch) = cache(client, Some(&options.namespace), config);
    tasks.spawn(follow(watch, "EndpointSlice", |_| {}));
    Box::new(move || addresses_of(slices.state().iter().map(AsRef::as_ref)))
}

/// Every endpoint that may still serve, whether new or about to stop.
fn addresses_of<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> BTreeSet<String> {
    let mut addresses = BTreeSet::new();
    for slice in slices {
        let admin = |p: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref() == Some(ADMIN_PORT)
        };
        let Some(port) = slice.ports.iter().flatten().find(admin).and_then(|p| p.port) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            if conditions.serving.or(conditions.ready).unwrap_or(true) {
                addresses.extend(endpoint.addresses.first().map(|a| host_port(a, port)));
            }
        }
    }
    addresses
}

fn host_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn serve_admin(listener: tokio::net::TcpListener, context: Arc<Context>) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(context);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("the admin server failed: {error}");
    }
}

async fn readyz(State(context): State<Arc<Context>>) -> (StatusCode, &'static str) {
    let filled = tokio::time::timeout(Duration::from_millis(100), context.caches.ready()).await;
    if matches!(filled, Ok(Ok(()))) {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are not filled yet")
    }
}

async fn metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    context.count_phases();
    (
        [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        context.exported.text(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gateways_are_asked_at_their_admin_port_unless_they_no_longer_serve() {
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"addressType": "IPv4", "metadata": {},
             "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}],
             "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false}},
                {"addresses": ["10.0.0.4"], "conditions": {}},
             ]},
            {"addressType": "IPv6", "metadata": {}, "ports": [{"name": "admin", "port": 8081}],
             "endpoints": [{"addresses": ["fd00::1"]}]},
            {"addressType": "IPv4", "metadata": {}, "ports": [{"name": "http", "port": 8080}],
             "endpoints": [{"addresses": ["10.0.0.9"]}]},
        ]))
        .unwrap();
        let found: Vec<String> = addresses_of(slices.iter()).into_iter().collect();
        assert_eq!(found, ["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.4:8081", "[fd00::1]:8081"]);
    }
}
