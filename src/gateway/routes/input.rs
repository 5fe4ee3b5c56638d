//! What routes are made of: told by the cluster, by a folder, or by a test.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use super::{Fault, Grants};
use crate::api::{
    LLMDeploymentSpec,
    llm_deployment::SecretKeyRef,
    prompt_release::{ResponseCache, Routing},
    secret::SecretText,
    snapshot::PackedVariant,
};

/// Everything that routes are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// One a release.
    pub releases: Vec<Arc<ReleaseInput>>,
}

impl FromIterator<ReleaseInput> for World {
    fn from_iter<I: IntoIterator<Item = ReleaseInput>>(inputs: I) -> Self {
        Self { releases: inputs.into_iter().map(Arc::new).collect() }
    }
}

/// What a route is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReleaseInput {
    /// The release's namespace.
    pub namespace: String,
    /// The release's name.
    pub name: String,
    /// Part of the assignment's hash.
    pub uid: String,
    /// The model name that applications send.
    pub route: String,
    /// When the release was created, as text that sorts by time.
    pub created: String,
    /// What the operator decided.
    pub routing: Routing,
    /// The running canary, also while it is held out of routing.
    pub trial: Option<String>,
    /// The saved variants, by revision.
    pub variants: HashMap<String, Arc<PackedVariant>>,
    /// The backends as they are now, by name: limits, pricing and secret of these count.
    pub backends: HashMap<String, Arc<LLMDeploymentSpec>>,
    /// What the backends' Secrets hold: API keys, certificates.
    pub secrets: HashMap<SecretKeyRef, SecretText>,
    /// Where these may be sent.
    pub grants: Grants,
    /// What could not be read.
    pub faults: Faults,
    /// Where the pods of a backend are, by its name. None: its Service's name is resolved.
    pub endpoints: HashMap<String, Vec<SocketAddr>>,
    /// The names of backends that answer while the baseline's is unavailable.
    pub other_backends: Vec<String>,
    /// Identical requests are answered from memory.
    pub cache: Option<ResponseCache>,
}

/// What a release names and nobody could read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Why the place of a variant in the routing can not be read, by revision.
    pub variants: BTreeMap<String, String>,
    /// Why a saved variant can not be read, by revision.
    pub copies: HashMap<String, String>,
    /// Why a Secret can not be used.
    pub secrets: HashMap<SecretKeyRef, Fault>,
    /// Why a backend that may be there can not be read, by its name.
    pub backends: BTreeMap<String, String>,
}

impl ReleaseInput {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The backends as they are now, or as they were saved when they are gone.
    pub fn all_backends(&self) -> impl Iterator<Item = (&str, Cow<'_, LLMDeploymentSpec>)> {
        let gone = self.variants.values().filter_map(|saved| {
            let name = &*saved.backend_name;
            let gone = !self.backends.contains_key(name);
            gone.then(|| Some((name, Cow::Owned(saved.open().ok()?.backend))))?
        });
        let known = self.backends.iter();
        known.map(|(name, spec)| (name.as_str(), Cow::Borrowed(&**spec))).chain(gone)
    }

    /// The Secrets that its backends need.
    pub fn wanted_secrets(&self) -> impl Iterator<Item = SecretKeyRef> {
        self.all_backends().flat_map(|(_, spec)| spec.secrets())
    }
}
