//! What every long-running command needs: a runtime, logs, a listener, the signal to stop.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    future::Future,
    io::{IsTerminal, Write},
    net::SocketAddr,
    panic::PanicHookInfo,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use anyhow::Context;
use kube::{Client, runtime::watcher};
use rustix::process::Signal;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

use crate::{
    signals::api_server::{said, said_of_watch},
    telemetry::{
        Stream,
        log::{Log, Lost},
    },
};

/// How long the end of the process waits for who reads its log.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The log of this process, if its command has one.
static LOG: OnceLock<Log> = OnceLock::new();

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

/// Logs to standard error: `RUST_LOG` says how much, `json` one object a line. Nobody who logs
/// waits for the reader; what is lost is counted in what is returned.
///
/// # Errors
/// The thread that writes could not be started.
pub fn start_logs(json: bool) -> anyhow::Result<Arc<Lost>> {
    let is_missing = |_: &Log, lost| {
        tracing::warn!(lost, "log lines are missing: they could not be written or were not read");
    };
    let log = Stream::stderr().and_then(|stderr| Log::start(stderr, is_missing));
    let log = log.context("the log can not be written")?;
    // A file that has reached the limit of its size would end the process by this signal. Once
    // the signal has been listened for, writing to the file fails instead.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).context("the signal of full files")?);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // It would print them to standard error.
        .log_internal_errors(false)
        .with_writer(log.clone());
    // Fails only when a test started logs before.
    let _ = if json { logs.json().try_init() } else { logs.try_init() };
    let lost = log.lost();
    let _ = LOG.set(log);
    Ok(lost)
}

/// Writes a line to standard error, after what was logged before. That it can not be written is
/// ignored: there is nowhere else to say it.
pub fn say(text: impl std::fmt::Display) {
    let line = format!("{text}\n");
    match LOG.get() {
        Some(log) => log.put(line.as_bytes()),
        None => {
            let _ = Stream::stderr().and_then(|mut stderr| stderr.write_all(line.as_bytes()));
        }
    }
}

/// Logs a panic, where there is a log: the standard library would wait for the log's reader.
/// Answers whether it did.
pub fn log_panic(panic: &PanicHookInfo<'_>) -> bool {
    if LOG.get().is_none() {
        return false;
    }
    let current = thread::current();
    let thread = current.name().unwrap_or("without a name");
    let mut text = panic.to_string();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text = format!("{text}\n{backtrace}");
    }
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(thread, "{text}");
    } else {
        say(format!("thread {thread} {text}"));
    }
    true
}

/// When it is dropped, what was logged is written, if somebody reads it.
pub struct WritesLast;

impl Drop for WritesLast {
    fn drop(&mut self) {
        if let Some(log) = LOG.get() {
            log.written(LAST_LINES);
        }
    }
}

/// What is logged without RUST_LOG. The client of the API server would log each answer of 500
/// and more as an error, and one that it can not read as a whole; whoever asked says what came of
/// it, once.
const LOGGED: &str = "info,kube_client::client=error,kube_client::client::builder=off";

/// An error with its reasons, and what the API server says in its own words.
pub(super) fn told(error: &anyhow::Error) -> String {
    let mut reasons = vec![];
    for cause in error.chain() {
        let by_api_server = cause
            .downcast_ref::<kube::Error>()
            .map(said)
            .or_else(|| cause.downcast_ref::<watcher::Error>().map(said_of_watch));
        if let Some((words, _)) = by_api_server {
            reasons.push(words);
            break;
        }
        reasons.push(cause.to_string());
    }
    reasons.join(": ")
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

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn an_error_of_the_api_server_is_told_in_its_words() {
        let forbidden =
            || kube::Error::Api(Box::new(Status::failure("no right", "").with_code(403)));
        let read = || "the releases can not be read";
        let error = Err::<(), _>(forbidden()).with_context(read).unwrap_err();
        assert_eq!(told(&error), "the releases can not be read: no right");
        let watch = watcher::Error::WatchStartFailed(forbidden());
        assert_eq!(told(&Err::<(), _>(watch).with_context(read).unwrap_err()), told(&error));
        let other =
            Err::<(), _>(std::io::Error::other("disk full")).context("the file").unwrap_err();
        assert_eq!(told(&other), "the file: disk full");
    }
}
