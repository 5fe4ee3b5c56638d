//! Client keys in a cluster: Secrets with a label, in the gateway's namespace and in
//! those of tenants. Of a Secret only the digest of its key is kept.
//!
//! Who may write Secrets in the gateway's namespace gives out routes of everybody; a
//! tenant's Secrets give out routes of that tenant's releases, whatever they say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt, stream::select_all};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use tokio::time::{Instant, timeout_at};

use super::{ClientKey, Identities, Keys, Owner};
use crate::{api::keys::CLIENT_KEY_LABEL, signals::watch::WatchBackoff};

/// A tenant's namespace that can not be read keeps a gateway from starting for so long.
const TENANTS_PATIENCE: Duration = Duration::from_secs(10);

type Found = BTreeMap<String, ClientKey>;

/// The keys of all namespaces, and what is being listed of each.
#[derive(Default)]
struct Collected {
    keys: BTreeMap<Owner, Found>,
    listing: BTreeMap<Owner, Found>,
    missing: BTreeSet<Owner>,
}

/// Keeps `identities` on the client keys of these namespaces, without end.
pub async fn follow_client_keys(
    identities: Identities,
    client: Client,
    own: String,
    tenants: Vec<String>,
) {
    let mut all = vec![(Owner::Gateway, own.clone())];
    let tenants = tenants.into_iter().filter(|namespace| *namespace != own);
    all.extend(tenants.map(|namespace| (Owner::Tenant(namespace.clone()), namespace)));
    let mut collected = Collected {
        missing: all.iter().map(|(owner, _)| owner.clone()).collect(),
        ..Collected::default()
    };
    let mut watches = select_all(all.into_iter().map(|(owner, namespace)| {
        let labelled = watcher::Config::default().labels(&format!("{CLIENT_KEY_LABEL}=true"));
        watcher(Api::<Secret>::namespaced(client.clone(), &namespace), labelled)
            .backoff(WatchBackoff::default())
            .map(move |event| (owner.clone(), namespace.clone(), event))
            .boxed()
    }));
    let patience = Instant::now() + TENANTS_PATIENCE;
    loop {
        let waiting = !identities.keys_known() && !collected.missing.contains(&Owner::Gateway);
        let next = if waiting {
            match timeout_at(patience, watches.next()).await {
                Ok(next) => next,
                Err(_) => {
                    identities.set_keys_known();
                    continue;
                }
            }
        } else {
            watches.next().await
        };
        let Some((owner, namespace, event)) = next else { return };
        match event {
            Ok(event) => {
                if collected.take(owner, event) {
                    collected.tell(&identities);
                }
            }
            Err(error) => tracing::warn!(
                namespace,
                "client keys can not be read: {error}; the gateway's service account needs the \
                 role serinus-gateway-client-keys in this namespace"
            ),
        }
        if collected.missing.is_empty() {
            identities.set_keys_known();
        }
    }
}

impl Collected {
    /// Whether there is something to tell.
    fn take(&mut self, owner: Owner, event: Event<Secret>) -> bool {
        match event {
            Event::Init => {
                self.listing.insert(owner, Found::new());
                false
            }
            Event::InitApply(secret) => {
                let listing = self.listing.entry(owner.clone()).or_default();
                put(listing, owner, secret);
                false
            }
            Event::InitDone => {
                let listed = self.listing.remove(&owner).unwrap_or_default();
                self.missing.remove(&owner);
                self.keys.insert(owner, listed);
                true
            }
            Event::Apply(secret) => {
                put(self.keys.entry(owner.clone()).or_default(), owner, secret);
                true
            }
            Event::Delete(secret) => {
                let found = self.keys.get_mut(&owner);
                found.is_some_and(|found| found.remove(&secret.name_any()).is_some())
            }
        }
    }

    fn tell(&self, identities: &Identities) {
        let (keys, doubles) = Keys::new(self.keys.values().flat_map(Found::values).cloned());
        for name in doubles {
            tracing::warn!(name, "another Secret has the same client key: this one is not used");
        }
        tracing::info!(keys = keys.len(), "client keys");
        identities.set_keys(keys);
    }
}

/// A Secret that can not be used is none: a key that was replaced by nonsense must not
/// go on to open doors.
fn put(found: &mut Found, owner: Owner, secret: Secret) {
    let name = secret.name_any();
    let fields = secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
    match ClientKey::read(owner, &name, &fields) {
        Ok(key) => {
            found.insert(name, key);
        }
        Err(error) => {
            tracing::warn!(secret = name, "not a client key: {error}");
            found.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::HeaderMap;
    use k8s_openapi::ByteString;

    use super::*;

    const KEY: &str = "0123456789abcdef01234567";

    fn secret(name: &str, key: &str) -> Secret {
        let field = |name: &str, value: &str| (name.to_owned(), ByteString(value.into()));
        let mut secret = Secret {
            data: Some([field("key", key), field("routes", "*")].into()),
            ..Secret::default()
        };
        secret.metadata.name = Some(name.to_owned());
        secret
    }

    fn who(identities: &Identities, key: &str) -> Option<String> {
        let headers: HeaderMap =
            [("x-api-key".parse().unwrap(), key.parse().unwrap())].into_iter().collect();
        let client: Arc<_> = identities.authenticate(&headers).ok()??;
        Some(client.caller.name.clone())
    }

    #[test]
    fn a_key_counts_from_its_listing_until_its_secret_is_gone_or_spoiled() {
        let (identities, mut collected) = (Identities::default(), Collected::default());
        let mut take = |event| {
            if collected.take(Owner::Gateway, event) {
                collected.tell(&identities);
            }
            who(&identities, KEY)
        };
        assert_eq!(take(Event::Init), None);
        assert_eq!(take(Event::InitApply(secret("a", KEY))), None, "the list is not complete");
        assert_eq!(take(Event::InitDone).as_deref(), Some("a"));
        assert_eq!(take(Event::Apply(secret("a", "short"))), None);
        assert_eq!(take(Event::Apply(secret("b", KEY))).as_deref(), Some("b"));
        assert_eq!(take(Event::Delete(secret("b", KEY))), None);
        take(Event::Apply(secret("c", KEY)));
        take(Event::Init);
        assert_eq!(take(Event::InitDone), None, "it was deleted while nobody watched");
    }
}
