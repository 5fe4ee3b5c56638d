//! Client keys: from the fields of a Secret to whom a key belongs.
//!
//! A key is looked up by its SHA-256. Whoever measures how long a look-up takes learns
//! at most about digests, of which they can not choose the bytes; what was found is
//! compared in constant time all the same. Without a salt a digest protects only keys
//! that can not be guessed, so short ones are refused.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{Client, Grant, Tenant, same, tenant};
use crate::{api::conditions::truncate, audit::record::Caller};

/// Shorter keys can be guessed: 24 characters of hexadecimal are 96 bits.
const SHORTEST: usize = 24;
/// Longer ones are a mistake.
const LONGEST: usize = 512;

/// Who wrote a client key down, and so how far it reaches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Who runs the gateway: any route.
    Gateway,
    /// Who owns a namespace: routes of its releases, and the teams that it may name.
    Tenant(Tenant),
}

/// A client key as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientKey {
    /// Where it comes from.
    pub owner: Owner,
    /// The Secret's name.
    pub name: String,
    /// The SHA-256 of the key: the key itself is forgotten as soon as it is read.
    digest: Hash,
    /// Who pays.
    pub team: String,
    /// Patterns of routes.
    pub routes: String,
    /// The caller may choose the variant.
    pub may_force: bool,
    /// The caller may score answers that other teams got.
    pub may_score: bool,
}

/// Why a Secret is no client key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A field is missing or not text.
    #[error(
        "the Secret has no text under {0:?}; it needs key and routes, and may have team and permissions"
    )]
    Field(&'static str),
    /// Too short or too long.
    #[error(
        "the key has {0} characters; use {SHORTEST} to {LONGEST} random ones, for example from: openssl rand -hex 32"
    )]
    Length(usize),
    /// The key can not be sent in a header.
    #[error(
        "the key has characters that a header can not carry: use printable ASCII without spaces"
    )]
    Characters,
    /// An unknown permission.
    #[error("the permission {0:?} is not known; there are: force, score")]
    Permission(String),
    /// A team that keys of this namespace may not name.
    #[error(
        "the key names the team {named:?}, and keys of the namespace {namespace} may name: \
         {permitted}; leave team out, or have who runs the gateways permit the team: \
         --tenant-key-namespaces={namespace}=TEAM+TEAM"
    )]
    Team {
        /// What it names.
        named: String,
        /// Whose key it is.
        namespace: String,
        /// What it may name.
        permitted: String,
    },
}

impl ClientKey {
    /// Reads the fields of a Secret: `key` and `routes`, and if they are there `team` and
    /// `permissions`. Without `team` a key of the gateway's is of the team with its name, and
    /// a tenant's of the tenant's first.
    ///
    /// # Errors
    /// What is wrong, without telling the key.
    pub fn read(
        owner: Owner,
        name: &str,
        fields: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, KeyError> {
        let text = |field: &'static str| {
            let bytes = fields.get(field).ok_or(KeyError::Field(field))?;
            let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Field(field))?;
            Ok::<_, KeyError>(text.trim())
        };
        let optional = |field| if fields.contains_key(field) { text(field) } else { Ok("") };
        let key = text("key")?;
        if !(SHORTEST..=LONGEST).contains(&key.len()) {
            return Err(KeyError::Length(key.len()));
        }
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(KeyError::Characters);
        }
        let (mut may_force, mut may_score) = (false, false);
        for word in optional("permissions")?.split([',', ' ', '\n']).filter(|w| !w.is_empty()) {
            match word {
                "force" => may_force = true,
                "score" => may_score = true,
                other => return Err(KeyError::Permission(truncate(other, 64))),
            }
        }
        let named = optional("team")?;
        let team = match &owner {
            Owner::Tenant(tenant) => tenant.team(named)?,
            Owner::Gateway if named.is_empty() => name.to_owned(),
            Owner::Gateway => named.to_owned(),
        };
        Ok(Self {
            owner,
            name: name.to_owned(),
            digest: digest(key),
            team,
            routes: text("routes")?.to_owned(),
            may_force,
            may_score,
        })
    }

    fn client(&self) -> Client {
        let (name, namespace) = match &self.owner {
            Owner::Gateway => (self.name.clone(), None),
            Owner::Tenant(Tenant { namespace, .. }) => {
                (format!("{namespace}/{}", self.name), Some(namespace.clone()))
            }
        };
        let team = self.team.clone();
        let party = namespace.as_deref().map_or_else(|| team.clone(), tenant);
        Client {
            caller: Arc::new(Caller { name, team, party }),
            grant: Grant::new(namespace, &self.routes),
            may_force: self.may_force,
            may_score: self.may_score,
        }
    }
}

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// Client keys by their digest.
#[derive(Default)]
pub struct Keys {
    clients: HashMap<Hash, (Hash, Arc<Client>)>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.clients.len())
    }
}

impl Keys {
    /// Of two Secrets with the same key, the gateway's own wins, then the first by name:
    /// a tenant can not take a key over. The others are returned, to be told.
    pub fn new(keys: impl IntoIterator<Item = ClientKey>) -> (Self, Vec<String>) {
        let mut keys: Vec<ClientKey> = keys.into_iter().collect();
        keys.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
        let (mut clients, mut doubles) = (HashMap::with_capacity(keys.len()), vec![]);
        for key in keys {
            let hash = key.digest;
            let client = Arc::new(key.client());
            match clients.entry(hash) {
                Entry::Occupied(_) => doubles.push(client.caller.name.clone()),
                Entry::Vacant(free) => drop(free.insert((hash, client))),
            }
        }
        (Self { clients }, doubles)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whose key has this digest.
    pub(super) fn find(&self, digest: &Hash) -> Option<Arc<Client>> {
        let (known, client) = self.clients.get(digest)?;
        same(known, digest).then(|| client.clone())
    }
}

/// The SHA-256 of a credential.
pub(super) fn digest(credential: &str) -> Hash {
    Sha256::digest(credential.as_bytes()).into()
}

#[cfg(test)]
mod tests;
