//! What every long-running command needs: a runtime, logs, a listener, the signal to stop.

use std::{future::Future, io::IsTerminal, net::SocketAddr};

use anyhow::Context;
use kube::Client;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// Runs a command on a runtime of its own.
///
/// # Errors
/// The runtime could not start, or the command failed.
pub fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

/// Chooses the implementation of TLS for every client of the process.
pub fn install_tls() {
    // Fails only when one was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client of the cluster that this process runs in, or that KUBECONFIG names.
///
/// # Errors
/// There is none, and what to do.
pub async fn cluster() -> anyhow::Result<Client> {
    install_tls();
    Client::try_default()
        .await
        .context("no cluster to talk to: run inside one, or set KUBECONFIG to a kubeconfig file")
}

/// Writes logs to standard error: `RUST_LOG` says how much, `json` one object a line.
pub fn start_logs(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // Fails only when a test started logs before.
    let _ = if json { logs.json().try_init() } else { logs.try_init() };
}

/// Listens on an address.
///
/// # Errors
/// Names the address and what to do.
pub async fn listen_on(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can not listen on {address}: is it taken? Choose another address")
    })
}

/// Ends at SIGTERM or ctrl-c.
pub async fn stop_signal() {
    let Ok(mut term) = signal(SignalKind::terminate()) else { return };
    let Ok(mut int) = signal(SignalKind::interrupt()) else { return };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
