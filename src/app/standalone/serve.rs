//! The `standalone` command: the loop around the core.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Standalone, StateLocation, durable::followed};
use crate::{
    app::{
        addresses, cache, clock, identity, limits, model_dates,
        process::{listen_on, start_logs, stop_signal},
        prometheus, request_ids, telemetry, tls,
    },
    gateway::{
        Gateway, GatewayConfig,
        clients::Proxies,
        ends::ask_when_models_end,
        server::{Door, Face, serve},
        workers::Workers,
    },
    signals::prometheus::{Prometheus, Questions},
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
    /// The file that keeps the state. Default: .serinus/state.json in the folder; where the
    /// folder is a symbolic link, .NAME.serinus/state.json beside the link.
    #[arg(long)]
    state: Option<PathBuf>,
    #[command(flatten)]
    clients: identity::Options,
    #[command(flatten)]
    people: identity::People,
    #[command(flatten)]
    limits: limits::Options,
    #[command(flatten)]
    tls: tls::Options,
    #[command(flatten)]
    addresses: addresses::Options,
    #[command(flatten)]
    prometheus: prometheus::Options,
    #[command(flatten)]
    model_dates: model_dates::Options,
    #[command(flatten)]
    telemetry: telemetry::Options,
    #[command(flatten)]
    cache: cache::Options,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Serves until SIGTERM or ctrl-c.
///
/// # Errors
/// The folder, the state file or an address can not be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let log = start_logs(options.log_json)?;
    let mut following = JoinSet::new();
    let people = options.people.build(&mut following)?;
    let tls = options.tls.build()?;
    if let Some(tls) = &tls {
        following.spawn(tls.clone().follow());
    }
    let (telemetry, behind) = options.telemetry.start(log)?;
    // Before anything is written beside the state.
    anyhow::ensure!(
        options.folder.is_dir(),
        "{} is not a folder: name the folder of your manifests",
        options.folder.display()
    );
    let location = match options.state {
        Some(file) => StateLocation::named_for(&options.folder, file),
        None => StateLocation::of(&options.folder, clock::now())?,
    };
    // What is beside the state lies on the same disk.
    let state = followed(&location.file)?;
    let notices = Arc::default();
    let gateway = Gateway::new(GatewayConfig {
        identities: options.clients.build(vec![], &mut following)?,
        people,
        limits: options.limits.build(options.cache.memory())?,
        addresses: Arc::new(options.addresses.build()),
        proxies: Proxies::of_environment(),
        telemetry,
        cache: Some(options.cache.build()?),
        request_keys: request_ids::standalone(&state, &notices, &mut following),
        notices,
        ..GatewayConfig::new(clock::now)
    });
    let prometheus = Arc::new(options.prometheus.build()?);
    let model_dates = options.model_dates.build()?;
    following.spawn(model_dates.clone().follow());
    let mut standalone = Standalone::open(&options.folder, state, gateway.clone(), clock::now())?
        .with_prometheus(prometheus.clone())
        .with_model_dates(model_dates)
        .with_state_at(location);
    // Before it knows its routes it could only refuse: nobody should reach it. What can not
    // be written now ends the start, while somebody looks.
    let news = tokio::task::block_in_place(|| standalone.tick(clock::now()))?;
    news.iter().for_each(super::Happening::log);
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let workers = Arc::new(Workers::start()?);
    let admin = Door::from(listen_on(options.admin).await?);
    let door = Door::from(listen_on(options.listen).await?).with_tls(tls);
    let door = door.with_workers(workers.clone());
    for (door, face) in [(door, Face::Applications), (admin, Face::Operators)] {
        let until = stop.clone().cancelled_owned();
        servers.spawn(serve(door, face, gateway.clone(), until, DRAIN));
    }
    tracing::info!(folder = %options.folder.display(), listen = %options.listen, admin = %options.admin, "standalone");
    following.spawn(ask_when_models_end(gateway.clone()));
    let (ask, asked) = mpsc::channel(1);
    let mut asking = JoinSet::new();
    asking.spawn(answer(prometheus.clone(), asked));
    let mut signal = std::pin::pin!(stop_signal());
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = &mut signal => break,
            _ = ticks.tick() => {}
        }
        step(&mut standalone);
        ask_what_is_due(&standalone, &prometheus, &ask);
    }
    asking.shutdown().await;
    stop.cancel();
    while let Some(ended) = servers.join_next().await {
        ended?;
    }
    drop(workers);
    behind.flush().await;
    Ok(())
}

/// A full disk is no reason to stop serving: nothing moves until the state can be written.
/// The tick itself says so, once.
fn step(standalone: &mut Standalone) {
    if let Ok(news) = tokio::task::block_in_place(|| standalone.tick(clock::now())) {
        news.iter().for_each(super::Happening::log);
    }
}

type Due = (Vec<Questions>, Timestamp);

/// Hands over what Prometheus should be asked now. While a round is under way nothing
/// waits for it: what is due then is due at the next tick as well.
fn ask_what_is_due(standalone: &Standalone, prometheus: &Prometheus, ask: &mpsc::Sender<Due>) {
    if !prometheus.configured() {
        return;
    }
    let now = clock::now();
    let mut due = standalone.questions(now);
    let releases: BTreeSet<String> = due.iter().map(|q| q.release.clone()).collect();
    prometheus.forget_all_but(&releases);
    due.retain(|q| prometheus.due(&q.release, q.generation, now));
    if !due.is_empty() {
        let _ = ask.try_send((due, now));
    }
}

async fn answer(prometheus: Arc<Prometheus>, mut asked: mpsc::Receiver<Due>) {
    while let Some((mut due, now)) = asked.recv().await {
        // What waited during a round may have been answered by it.
        due.retain(|q| prometheus.due(&q.release, q.generation, now));
        if !due.is_empty() {
            prometheus.ask(&due, now).await;
        }
    }
}
