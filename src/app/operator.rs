//! The `operator` command: the control plane of a cluster.

mod admin;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::channel::mpsc::unbounded;
use k8s_openapi::api::{
    core::v1::Secret,
    discovery::v1::{EndpointPort, EndpointSlice},
};
use kube::{Api, Client, runtime::watcher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::admin::serve_admin;
use super::{
    addresses, clock, model_dates,
    process::{cluster, listen_on, start_logs, stop_signal},
    prometheus,
};
use crate::{
    controllers::{
        Context,
        backend::{self, probe::Probe},
        caches::{self, Caches},
        exported::Exported,
        kube::{
            Cluster,
            leadership::{ElectionConfig, Leadership, seek},
        },
        policy, prompt,
        pulse::{Pulse, watch_over},
        release::{
            self, Ahead, Examined, Refusals, Triggers, absent::follow_changes, ask_prometheus,
            follow_gateways,
        },
        retries::Retries,
    },
    signals::{
        api_server::said,
        endpoints::{SERVICE_LABEL, endpoints},
        gateways::{Gateways, Read},
        keyring,
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
    /// The Secret with the keys that sign request ids and reports, as gateways name it: with
    /// them this operator shows gateways who asks, and knows whose answer it is.
    #[arg(long, default_value = "serinus-request-ids", value_name = "[NAMESPACE/]NAME")]
    request_id_secret: String,
    /// Run model servers: LLMDeployments with spec.serving become Deployments and Services. With
    /// false the operator asks for neither, and needs no right to them.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    serving: bool,
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
    #[command(flatten)]
    model_dates: model_dates::Options,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Runs until SIGTERM or ctrl-c, then hands leadership over.
///
/// # Errors
/// There is no cluster to talk to, or the address can not be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let log = start_logs(options.log_json)?;
    let client = cluster().await?;
    let listener = listen_on(options.admin).await?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let election = election(&options);
    let leadership = Leadership::new(&election.identity, election.duration);
    let exported = Arc::new(Exported::default().with_log(log));
    let (caches, watches) = Caches::new(&client, options.watch_namespace.as_deref());
    let (triggers, triggered) = Triggers::new(caches.uses.clone());
    let (used, of_used) = unbounded();
    let context = Arc::new(Context {
        cluster: Cluster::new(
            client.clone(),
            options.watch_namespace.clone(),
            leadership.clone(),
            exported.clone(),
        ),
        caches,
        gateways: Gateways::new(report_keys(&options, &client), clock::now)?,
        prometheus: options.prometheus.build()?,
        model_dates: options.model_dates.build()?,
        exported: exported.clone(),
        clock: clock::now,
        probe: Probe::new(options.addresses.build())?,
        pulse: Pulse::default(),
        ahead: Ahead::default(),
        examined: Examined::default(),
        refusals: Refusals::default(),
        retries: Retries::default(),
        serving: options.serving,
    });
    let endpoints = gateway_addresses(&options, &client, &mut tasks);
    tasks.spawn(context.model_dates.clone().follow());
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
        options.serving.then(|| (client.clone(), options.watch_namespace.clone())),
        triggers.clone(),
        of_used,
        context.clone(),
    ));
    tasks.spawn(release::run(
        stores.releases.clone(),
        watches.releases,
        triggered,
        context.clone(),
    ));
    let copies = triggers.clone();
    tasks.spawn(follow(watches.copies, "ReleaseSnapshot", move |copy| {
        copies.send(&caches::owner(&copy));
    }));
    tasks.spawn(follow_changes(context.clone(), watches.changes, triggers.clone(), used));
    let pull = Duration::from_millis(options.pull_milliseconds);
    tasks.spawn(follow_gateways(context.clone(), endpoints, triggers.sender(), pull));
    tasks.spawn(watch_over(context.clone(), triggers.sender()));
    tasks.spawn(ask_prometheus(context.clone(), pull));
    tasks.spawn(serve_admin(listener, context.clone()));
    let fit = || context.caches.are_ready();
    let seeking = seek(client, election, leadership, exported, fit, stop.clone());
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

/// Reads the keys with which gateways are asked, when it is called.
fn report_keys(options: &Options, client: &Client) -> Read {
    let named = options.request_id_secret.split_once('/');
    let (namespace, name) = named.unwrap_or((&options.namespace, &options.request_id_secret));
    let (api, name) = (Api::<Secret>::namespaced(client.clone(), namespace), name.to_owned());
    Box::new(move || {
        let (api, name) = (api.clone(), name.clone());
        Box::pin(async move {
            let secret = api.get(&name).await.map_err(|error| said(&error).0)?;
            Ok(keyring::of_secret(&secret))
        })
    })
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
    let selector = format!("{SERVICE_LABEL}={}", options.gateway_service);
    let config = watcher::Config::default().labels(&selector);
    let (slices, watch, _) = cache(client, Some(&options.namespace), config, |_| ());
    tasks.spawn(follow(watch, "EndpointSlice", |_| {}));
    Box::new(move || {
        let slices: Vec<Arc<EndpointSlice>> = slices.state();
        let admin = |p: &EndpointPort| p.name.as_deref() == Some(ADMIN_PORT);
        // Whatever still serves counts, whether it is new or about to stop.
        let found = endpoints(slices.iter().map(AsRef::as_ref), admin);
        found.iter().filter(|e| e.serving).map(|e| e.address.to_string()).collect()
    })
}
