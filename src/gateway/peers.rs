//! The other replicas, as far as a vote has to reach the one that gave the answer.
//!
//! They are found as operators find them, by the Service's EndpointSlices. Which of them
//! is the process that an id names is asked, and remembered.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use kube::{Client, runtime::watcher};
use reqwest::StatusCode;

use super::identity::request_keys::SIGNATURE;
use crate::{
    api::keys::SIGNATURE_HEADER,
    signals::{
        endpoints::{SERVICE_LABEL, endpoints},
        watch::{cache, follow},
    },
};

/// A replica that takes longer is not reached.
const PATIENCE: Duration = Duration::from_secs(2);
/// A process that no replica was is looked for again after so long.
const GONE: Duration = Duration::from_secs(10);
/// So many processes are remembered.
const REMEMBERED: usize = 1024;
/// The name of the port that operators ask.
const ADMIN_PORT: &str = "admin";

/// The other replicas.
#[derive(Default)]
pub struct Peers {
    /// None: there are no others.
    others: Option<Others>,
    known: Mutex<HashMap<u32, Known>>,
}

struct Others {
    client: reqwest::Client,
    /// The admin addresses of all replicas; this process may be among them.
    addresses: Box<dyn Fn() -> Vec<SocketAddr> + Send + Sync>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("others", &self.others.is_some()).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
enum Known {
    At(SocketAddr),
    GoneSince(Instant),
}

/// What became of a vote that was passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// The process took it, and says what it made of it.
    Taken(String),
    /// No replica is that process.
    Gone,
    /// Not every replica that may be it has answered.
    Unreachable,
}

enum Reply {
    Taken(String),
    NotMine,
    Silent,
}

impl Peers {
    /// The replicas at these admin addresses; this process may be among them.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn new(
        addresses: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static,
    ) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let others = Others { client, addresses: Box::new(addresses) };
        Ok(Self { others: Some(others), ..Self::default() })
    }

    /// Passes a vote on to the process that answers as `instance`.
    pub(super) async fn deliver(
        &self,
        instance: u32,
        body: &str,
        signature: &[u8; SIGNATURE],
    ) -> Delivered {
        let Some(Others { client, addresses }) = &self.others else { return Delivered::Gone };
        let all = addresses();
        let known = self.known.lock().ok().and_then(|known| known.get(&instance).copied());
        let asked = match known {
            Some(Known::At(address)) if all.contains(&address) => vec![address],
            Some(Known::GoneSince(at)) if at.elapsed() < GONE => return Delivered::Gone,
            _ => all.clone(),
        };
        let mut replies = ask(client, &asked, body, signature).await;
        if asked.len() < all.len() && !matches!(replies[..], [(_, Reply::Taken(_))]) {
            // Another process is at that address now.
            replies = ask(client, &all, body, signature).await;
        }
        let silent = replies.iter().any(|(_, reply)| matches!(reply, Reply::Silent));
        let taken = replies.iter().position(|(_, reply)| matches!(reply, Reply::Taken(_)));
        if let Some((address, Reply::Taken(word))) = taken.map(|at| replies.swap_remove(at)) {
            self.remember(instance, Known::At(address));
            return Delivered::Taken(word);
        }
        if silent {
            return Delivered::Unreachable;
        }
        self.remember(instance, Known::GoneSince(Instant::now()));
        Delivered::Gone
    }

    fn remember(&self, instance: u32, what: Known) {
        let Ok(mut known) = self.known.lock() else { return };
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(instance, what);
    }
}

async fn ask(
    client: &reqwest::Client,
    addresses: &[SocketAddr],
    body: &str,
    signature: &[u8; SIGNATURE],
) -> Vec<(SocketAddr, Reply)> {
    let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let asked = addresses.iter().map(|address| {
        let request = client
            .post(format!("http://{address}/serinus/v1/feedback"))
            .header(SIGNATURE_HEADER, &signature)
            .body(body.to_owned());
        async move {
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%address, "a vote could not be passed on: {error}");
                    return (*address, Reply::Silent);
                }
            };
            let reply = match (answer.status(), answer.text().await) {
                (StatusCode::OK, Ok(word)) => Reply::Taken(word),
                (StatusCode::MISDIRECTED_REQUEST, _) => Reply::NotMine,
                (status, _) => {
                    tracing::debug!(%address, %status, "a vote was not taken");
                    Reply::Silent
                }
            };
            (*address, reply)
        }
    });
    join_all(asked).await
}

/// The pods of a Service as peers, and what keeps them up to date, without end.
///
/// # Errors
/// The HTTP client could not be set up.
pub fn follow_peers(
    client: &Client,
    namespace: &str,
    service: &str,
) -> Result<(Peers, impl Future<Output = ()> + Send + use<>), reqwest::Error> {
    let labelled = watcher::Config::default().labels(&format!("{SERVICE_LABEL}={service}"));
    let (slices, watch, _) = cache::<EndpointSlice>(client, Some(namespace), labelled, |_| {});
    let admin = |port: &EndpointPort| port.name.as_deref() == Some(ADMIN_PORT);
    let peers = Peers::new(move || {
        let slices = slices.state();
        let found = endpoints(slices.iter().map(AsRef::as_ref), admin);
        found.iter().filter(|e| e.serving).map(|e| e.address).collect()
    })?;
    Ok((peers, follow(watch, "EndpointSlice", |_| {})))
}
