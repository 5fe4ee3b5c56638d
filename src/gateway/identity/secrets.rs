//! Client keys in a cluster: Secrets with a label, in the gateway's namespace and in
//! those of tenants. Of a Secret only the digest of its key is kept.
//!
//! Who may write Secrets in the gateway's namespace gives out routes of everybody; a
//! tenant's Secrets give out routes of that tenant's releases, whatever they say, and name
//! the teams that the tenant may name. A Secret that is no key is among the notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::select_all};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Client, ResourceExt,
    runtime::{watcher, watcher::Event},
};
use tokio::time::{Instant, timeout_at};

use super::{ClientKey, Identities, Keys, Owner, Tenant};
use crate::{
    api::keys::CLIENT_KEY_LABEL,
    gateway::notices::{Notice, Notices},
    signals::watch::readable,
};

/// A tenant's namespace that can not be read keeps a gateway from starting for so long.
const TENANTS_PATIENCE: Duration = Duration::from_secs(10);

/// The reason of a Secret that opens nothing.
const INVALID: &str = "InvalidClientKey";

/// Labelled Secrets by name: keys, and why others are none.
type Found = BTreeMap<String, Result<ClientKey, String>>;

/// The keys of all namespaces, and what is being listed of each.
struct Collected {
    identities: Identities,
    notices: Arc<Notices>,
    keys: BTreeMap<Owner, Found>,
    listing: BTreeMap<Owner, Found>,
    missing: BTreeSet<Owner>,
    /// Why a namespace can not be listed, by its name.
    unlisted: BTreeMap<String, String>,
}

/// Keeps `identities` on the client keys of the gateway's `own` namespace and of tenants, and
/// `notices` on what is wrong with them, without end.
pub async fn follow_client_keys(
    (identities, notices): (Identities, Arc<Notices>),
    client: Client,
    own: String,
    tenants: Vec<Tenant>,
) {
    let mut all = vec![(Owner::Gateway, own)];
    all.extend(tenants.into_iter().map(|tenant| {
        let namespace = tenant.namespace.clone();
        (Owner::Tenant(tenant), namespace)
    }));
    let missing = all.iter().map(|(owner, _)| owner.clone()).collect();
    let mut collected = Collected::new(identities.clone(), notices, missing);
    let mut watches = select_all(all.into_iter().map(|(owner, namespace)| {
        let labelled = watcher::Config::default().labels(&format!("{CLIENT_KEY_LABEL}=true"));
        readable::<Secret>(&client, Some(&namespace), labelled)
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
            Ok(event) => collected.take((owner, &namespace), event),
            // Told until a list succeeds.
            Err(watcher::Error::InitialListFailed(error)) => {
                collected.unlisted.insert(namespace, error.to_string());
                collected.tell();
            }
            Err(error) => tracing::warn!(namespace, "client keys can not be followed: {error}"),
        }
        if collected.missing.is_empty() {
            identities.set_keys_known();
        }
    }
}

impl Collected {
    fn new(identities: Identities, notices: Arc<Notices>, missing: BTreeSet<Owner>) -> Self {
        let (keys, listing, unlisted) = <_>::default();
        Self { identities, notices, keys, listing, missing, unlisted }
    }

    fn take(&mut self, (owner, namespace): (Owner, &str), event: Event<Secret>) {
        match event {
            Event::Init => {
                self.listing.insert(owner, Found::new());
                return;
            }
            Event::InitApply(secret) => {
                let listing = self.listing.entry(owner.clone()).or_default();
                return put(listing, owner, secret);
            }
            Event::InitDone => {
                let listed = self.listing.remove(&owner).unwrap_or_default();
                self.missing.remove(&owner);
                self.unlisted.remove(namespace);
                self.keys.insert(owner, listed);
            }
            Event::Apply(secret) => {
                put(self.keys.entry(owner.clone()).or_default(), owner, secret);
            }
            Event::Delete(secret) => {
                let found = self.keys.get_mut(&owner);
                if found.and_then(|found| found.remove(&secret.name_any())).is_none() {
                    return;
                }
            }
        }
        self.tell();
    }

    fn tell(&self) {
        let found = self.keys.iter().flat_map(|(owner, found)| {
            found.iter().map(move |(name, found)| (place(owner, name), found))
        });
        let (mut good, mut notices) = (vec![], vec![]);
        for (place, found) in found {
            match found {
                Ok(key) => good.push(key.clone()),
                Err(why) => notices.push(Notice::new(place, INVALID, why)),
            }
        }
        let (keys, doubles) = Keys::new(good);
        notices.extend(doubles.into_iter().map(|name| {
            let why = "another Secret has the same key, this one is not used";
            Notice::new(format!("Secret {name}"), INVALID, why)
        }));
        notices.extend(self.unlisted.iter().map(|(namespace, error)| {
            let why = format!(
                "client keys can not be read: {error}; the gateway's service account needs the \
                 role serinus-gateway-client-keys in this namespace"
            );
            Notice::new(format!("Namespace {namespace}"), "ClientKeysUnreadable", why)
        }));
        tracing::info!(keys = keys.len(), "client keys");
        self.identities.set_keys(keys);
        self.notices.set_keys(notices);
    }
}

/// As callers are named.
fn place(owner: &Owner, name: &str) -> String {
    match owner {
        Owner::Gateway => format!("Secret {name}"),
        Owner::Tenant(tenant) => format!("Secret {}/{name}", tenant.namespace),
    }
}

/// A Secret that can not be used is none: a key that was replaced by nonsense must not
/// go on to open doors.
fn put(found: &mut Found, owner: Owner, secret: Secret) {
    let name = secret.name_any();
    let fields = secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
    let key = ClientKey::read(owner, &name, &fields).map_err(|error| error.to_string());
    found.insert(name, key);
}

#[cfg(test)]
mod tests {
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

    fn collected() -> Collected {
        Collected::new(Identities::default(), Arc::default(), BTreeSet::new())
    }

    fn who(identities: &Identities, key: &str) -> Option<String> {
        let headers: HeaderMap =
            [("x-api-key".parse().unwrap(), key.parse().unwrap())].into_iter().collect();
        let client: Arc<_> = identities.authenticate(&headers).ok()??;
        Some(client.caller.name.clone())
    }

    #[test]
    fn a_key_counts_from_its_listing_until_its_secret_is_gone_or_spoiled() {
        let mut collected = collected();
        let mut take = |event| {
            collected.take((Owner::Gateway, "serinus-system"), event);
            who(&collected.identities, KEY)
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

    #[test]
    fn a_secret_that_opens_nothing_is_told_until_it_is_mended_or_gone() {
        let mut collected = collected();
        let shop = Owner::Tenant("shop".parse().unwrap());
        let mut take = |owner: &Owner, event| {
            collected.take((owner.clone(), "shop"), event);
            (who(&collected.identities, KEY), collected.notices.text())
        };
        let team = |name: &str| {
            let mut secret = secret("a", KEY);
            let fields = secret.data.as_mut().unwrap();
            fields.insert("team".to_owned(), ByteString(name.into()));
            secret
        };
        let (found, told) = take(&shop, Event::Apply(team("search")));
        assert_eq!(found, None, "never another team, and never silently its own");
        assert!(told.starts_with("Secret shop/a: InvalidClientKey: the key names the team"));
        assert_eq!(take(&shop, Event::Apply(team("shop"))), (Some("shop/a".into()), "".into()));
        let (found, told) = take(&Owner::Gateway, Event::Apply(secret("own", KEY)));
        assert_eq!(found.as_deref(), Some("own"));
        assert!(told.contains("Secret shop/a: InvalidClientKey: another Secret"), "{told}");
        take(&Owner::Gateway, Event::Delete(secret("own", KEY)));
        take(&shop, Event::Apply(team("search")));
        assert_eq!(take(&shop, Event::Delete(team("search"))), (None, String::new()));
    }
}
