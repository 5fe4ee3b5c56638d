//! The flags about request ids: who signs them, and how votes reach the gateway that
//! answered.

use std::{path::Path, sync::Arc, time::Duration};

use kube::Client;
use tokio::{sync::watch, task::JoinSet};

use super::clock;
use crate::gateway::{
    identity::request_keys::{RequestKeys, file::KeyFile, shared::SharedKeys},
    notices::Notices,
    peers::{Peers, follow_peers},
};

/// So long a start waits for the shared keys: without them ids are signed by a key that
/// other gateways do not know.
const PATIENCE: Duration = Duration::from_secs(10);
/// The file of a standalone process, beside its state.
const FILE: &str = "request-ids.keys";

/// How the gateways of a cluster know each other's request ids.
#[derive(clap::Args)]
#[group(id = "request_ids")]
pub struct Options {
    /// The namespace of this gateway: of its Service, and of the Secret that
    /// --request-id-secret names without a namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "serinus-system", value_name = "NAMESPACE")]
    namespace: String,
    /// The Secret with the keys that sign request ids and reports: 32 bytes or more each,
    /// under any name. Gateways fill an empty one, replace their own keys every week, and make
    /// the Secret when it is missing and they may. Operators read it.
    #[arg(long, default_value = "serinus-request-ids", value_name = "[NAMESPACE/]NAME")]
    request_id_secret: String,
    /// The Service of the gateways: a vote is passed on to the one that gave the answer,
    /// at its port named "admin".
    #[arg(long, default_value = "serinus-gateway", value_name = "NAME")]
    gateway_service: String,
}

/// What the gateways of a cluster share.
pub struct Shared {
    pub keys: RequestKeys,
    pub peers: Arc<Peers>,
    in_use: watch::Receiver<bool>,
}

impl Options {
    /// Keys and peers, and in `tasks` what keeps them up to date and `notices` on what is
    /// wrong with the keys.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub fn build(
        &self,
        client: &Client,
        notices: &Arc<Notices>,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Shared> {
        let keys = RequestKeys::default();
        let named = self.request_id_secret.split_once('/');
        let secret = named.unwrap_or((&self.namespace, &self.request_id_secret));
        let shared =
            SharedKeys::new(client.clone(), secret, (keys.clone(), notices.clone()), clock::now);
        let in_use = shared.in_use();
        tasks.spawn(shared.follow());
        let (peers, watch) = follow_peers(client, &self.namespace, &self.gateway_service)?;
        tasks.spawn(watch);
        Ok(Shared { keys, peers: Arc::new(peers), in_use })
    }
}

impl Shared {
    /// Ends when the shared keys are in use; or after a while, in which they could not be
    /// read.
    pub fn known(&self) -> impl Future<Output = ()> + use<> {
        let mut in_use = self.in_use.clone();
        async move {
            let read = in_use.wait_for(|in_use| *in_use);
            // What is wrong was logged where it was found.
            let _ = tokio::time::timeout(PATIENCE, read).await;
        }
    }
}

/// The keys of a standalone process, in a file beside its state, and in `tasks` what
/// replaces them by age. When the file can not be used, which `notices` tell, ids are signed
/// by a key that the process forgets.
pub fn standalone(state: &Path, notices: &Arc<Notices>, tasks: &mut JoinSet<()>) -> RequestKeys {
    let keys = RequestKeys::default();
    let path = state.with_file_name(FILE);
    tasks.spawn(KeyFile::open(path, keys.clone(), notices.clone(), clock::now).follow());
    keys
}
