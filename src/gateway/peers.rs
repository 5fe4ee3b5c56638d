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

use super::identity::request_keys::{Purpose, RequestKeys, SIGNATURE, printed, signature};
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

/// A vote as it is passed on.
pub(super) struct PassedOn<'a> {
    pub(super) body: String,
    pub(super) keys: &'a RequestKeys,
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
    pub(super) async fn deliver(&self, instance: u32, vote: &PassedOn<'_>) -> Delivered {
        let Some(Others { client, addresses }) = &self.others else { return Delivered::Gone };
        let all = addresses();
        let known = self.known.lock().ok().and_then(|known| known.get(&instance).copied());
        let asked = match known {
            Some(Known::At(address)) if all.contains(&address) => vec![address],
            Some(Known::GoneSince(at)) if at.elapsed() < GONE => return Delivered::Gone,
            _ => all.clone(),
        };
        let mut replies = ask(client, &asked, vote).await;
        if asked.len() < all.len() && !matches!(replies[..], [(_, Reply::Taken(_))]) {
            // Another process is at that address now.
            replies = ask(client, &all, vote).await;
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
    vote: &PassedOn<'_>,
) -> Vec<(SocketAddr, Reply)> {
    let signed = vote.keys.sign(Purpose::Vote, vote.body.as_bytes());
    let asked = addresses.iter().map(|address| {
        let request = client
            .post(format!("http://{address}/serinus/v1/feedback"))
            .header(SIGNATURE_HEADER, printed(&signed))
            .body(vote.body.clone());
        async move {
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%address, "a vote could not be passed on: {error}");
                    return (*address, Reply::Silent);
                }
            };
            let proof = answer.headers().get(SIGNATURE_HEADER).cloned();
            let status = answer.status();
            let reply = match (status, answer.text().await) {
                (StatusCode::OK, Ok(word)) => Reply::Taken(word),
                (StatusCode::MISDIRECTED_REQUEST, _) => Reply::NotMine,
                _ => {
                    tracing::debug!(%address, %status, "a vote was not taken");
                    return (*address, Reply::Silent);
                }
            };
            let text = match &reply {
                Reply::Taken(word) => answer_text(&signed, Some(word)),
                Reply::NotMine | Reply::Silent => answer_text(&signed, None),
            };
            let proof = proof.as_ref().and_then(|proof| signature(proof.to_str().ok()?));
            let proven = proof.and_then(|p| vote.keys.verify(Purpose::VoteAnswer, &text, &p));
            if proven.is_none() {
                tracing::warn!(
                    %address,
                    "an answer about a vote is not signed by a gateway, so it does not count"
                );
                return (*address, Reply::Silent);
            }
            (*address, reply)
        }
    });
    join_all(asked).await
}

/// What the process that was asked signs: which vote, and what became of it; without a
/// word it did not give that answer.
pub(super) fn answer_text(vote: &[u8; SIGNATURE], word: Option<&str>) -> Vec<u8> {
    let mut text = vote.to_vec();
    text.extend(word.unwrap_or("another gateway").as_bytes());
    text
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
