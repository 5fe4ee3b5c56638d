//! Keys of all replicas: a Secret, followed by watch. A gateway fills it when it is
//! empty, replaces a key by age, and makes it when it is missing and the gateway may. Of
//! several that try at once, one writes: the API server refuses a write to what has
//! changed since it was read, and the others read what the first one wrote.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use tokio::sync::watch;

use super::{RequestKeys, Stored, UNUSABLE, fingerprint, rotated};
use crate::{
    gateway::notices::{Notice, Notices},
    signals::{
        api_server::{said, said_of_watch},
        keyring::of_secret,
        watch::WatchBackoff,
    },
};

/// How often it is looked whether a new key is due, or an old one signs.
const LOOK: Duration = Duration::from_secs(30);

/// The Secret that holds the keys, and who uses it.
pub struct SharedKeys {
    keys: RequestKeys,
    notices: Arc<Notices>,
    api: Api<Secret>,
    namespace: String,
    name: String,
    clock: fn() -> Timestamp,
    /// As it was read last.
    last: Option<Secret>,
    /// Why it can not be read now.
    unread: Option<String>,
    used: u64,
    read: watch::Sender<bool>,
}

impl SharedKeys {
    /// Nothing is read yet. What is wrong with the Secret will be among the notices.
    pub fn new(
        client: Client,
        (namespace, name): (&str, &str),
        (keys, notices): (RequestKeys, Arc<Notices>),
        clock: fn() -> Timestamp,
    ) -> Self {
        Self {
            keys,
            notices,
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            clock,
            last: None,
            unread: None,
            used: 0,
            read: watch::Sender::new(false),
        }
    }

    /// Becomes true when shared keys are in use.
    pub fn in_use(&self) -> watch::Receiver<bool> {
        self.read.subscribe()
    }

    /// Uses what the Secret holds, without end.
    pub async fn follow(mut self) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let changes = watcher(self.api.clone(), only).backoff(WatchBackoff::default());
        let mut changes = pin!(changes);
        let mut looks = tokio::time::interval(LOOK);
        let mut listed = false;
        loop {
            let look = tokio::select! {
                _ = looks.tick() => listed,
                Some(event) = changes.next() => match event {
                    Ok(Event::Init) => { self.last = None; false }
                    Ok(Event::InitApply(secret)) => { self.last = Some(secret); false }
                    Ok(Event::InitDone) => { (self.unread, listed) = (None, true); true }
                    Ok(Event::Apply(secret)) => { self.last = Some(secret); true }
                    Ok(Event::Delete(_)) => { self.last = None; true }
                    Err(error) => {
                        let why = format!("can not be read: {}", said_of_watch(&error).0);
                        self.tell(vec![self.notice(&why)]);
                        self.unread = Some(why);
                        false
                    }
                },
            };
            if look {
                self.look().await;
            }
        }
    }

    async fn look(&mut self) {
        let now = (self.clock)();
        let mut wrong: Vec<_> = self.unread.iter().map(|why| self.notice(why)).collect();
        let stored = self.last.as_ref().map(of_secret).unwrap_or_default();
        if let Some(next) = rotated(&stored, now, rand::random()) {
            match self.write(next).await {
                Ok(written) => self.last = Some(written),
                // Another replica was faster: the watch brings what it wrote.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => {
                    wrong.push(self.notice(&format!("can not be written: {}", said(&error).0)))
                }
            }
        }
        let stored = self.last.as_ref().map(of_secret).unwrap_or_default();
        for name in self.keys.set(&stored, now) {
            let why =
                format!("has the entry {name}, which is too short: a key has 32 bytes or more");
            wrong.push(self.notice(&why));
        }
        self.tell(wrong);
        let used = fingerprint(&stored);
        if !stored.is_empty() && std::mem::replace(&mut self.used, used) != used {
            tracing::info!(keys = stored.len(), "keys of request ids");
            self.read.send_replace(true);
        }
    }

    async fn write(&self, keys: Stored) -> kube::Result<Secret> {
        let data: BTreeMap<_, _> = keys.into_iter().map(|(k, v)| (k, ByteString(v))).collect();
        let params = PostParams::default();
        match self.last.clone() {
            // With the resource version that it was read with.
            Some(secret) => {
                let secret = Secret { data: Some(data), ..secret };
                self.api.replace(&self.name, &params, &secret).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..<_>::default() };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                self.api.create(&params, &secret).await
            }
        }
    }

    fn notice(&self, what: &str) -> Notice {
        let place = format!("Secret {}/{}", self.namespace, self.name);
        let message = format!(
            "the Secret with the keys of request ids {what}; until it can be used, votes count \
             only on the gateway that answered, and operators get no report: upgrade the \
             Helm release, or apply the Secret and the Role serinus-gateway-request-ids of \
             deploy/rbac-gateway.yaml"
        );
        Notice::new(place, UNUSABLE, message)
    }

    fn tell(&self, wrong: Vec<Notice>) {
        self.notices.set_request_ids(wrong);
    }
}
