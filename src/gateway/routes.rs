//! Routes: what the gateway knows, built from what the operator decided. A request takes
//! one immutable route; a change swaps it as a whole.

mod build;
mod grants;
mod input;
pub(super) mod problems;
mod table;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::http::{HeaderMap, Uri};
use jiff::civil::Date;

pub use self::{
    grants::Grants,
    input::{Faults, ReleaseInput, World},
    problems::Fault,
    table::{RouteTable, Standing},
};
use super::{
    backends::{Address, Places},
    breaker::Breaker,
    clients::Client,
    ends::Ends,
    gone::Gone,
    prepare::Overlay,
    renderer::Turns,
    room::Room,
    tally::Tally,
};
use crate::{
    api::{llm_deployment::TokenLimit, prompt_release::VariantRole, snapshot::PackedVariant},
    audit::{
        record::{Operation, Origin},
        secrets::Secrets,
    },
    cost::Prices,
    prompt::Template,
};

/// Where a sticky key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickySource {
    /// A request header.
    Header(String),
    /// A field of the body.
    Body(String),
    /// Who asks.
    Client,
}

/// One variant, ready to be called.
pub struct Target {
    /// The revision.
    pub revision: String,
    /// What all records of it share.
    pub origin: Arc<Origin>,
    /// Its part in the routing.
    pub role: VariantRole,
    /// The model name upstream.
    pub model: String,
    /// The longest that a whole answer may take.
    pub timeout: Duration,
    /// The longest that a stream may take, where that is limited.
    pub stream_timeout: Option<Duration>,
    /// The longest wait for the first token.
    pub first_token_timeout: Duration,
    /// The longest silence of a stream after that.
    pub between_tokens_timeout: Duration,
    /// How often a failed attempt is repeated.
    pub retries: u32,
    /// The compiled prompt.
    pub template: Arc<Template>,
    /// When its templates are filled in.
    pub(super) turns: Arc<Turns>,
    /// Its streams may be asked for their usage.
    pub takes_stream_options: bool,
    /// What the backend calls the limit of an answer's tokens.
    pub token_limit: TokenLimit,
    /// Prices.
    pub prices: Prices,
    /// Opens when the variant fails outright. Survives a change of the route.
    pub breaker: Arc<Breaker>,
    /// Shared by all variants on the backend. Survives a change of the route.
    pub room: Arc<Room>,
    /// Whether the backend has the model. Shared as the room is.
    pub(super) gone: Arc<Gone>,
    /// When its server says that the model ends. Shared as the room is.
    pub(super) ends: Arc<Ends>,
    /// Where the backend's pods are; empty: wherever its name leads.
    pub(super) places: Places,
    address: Arc<Address>,
    /// By operation; of those that were asked for.
    overlays: [OnceLock<Box<Overlay>>; 4],
    saved: Arc<PackedVariant>,
    client: Client,
}

impl Target {
    /// The same in another part of the routing.
    fn in_role(self: &Arc<Self>, role: VariantRole) -> Arc<Self> {
        if self.role == role {
            return self.clone();
        }
        Arc::new(Self {
            revision: self.revision.clone(),
            origin: self.origin.clone(),
            role,
            model: self.model.clone(),
            template: self.template.clone(),
            turns: self.turns.clone(),
            prices: self.prices.clone(),
            breaker: self.breaker.clone(),
            room: self.room.clone(),
            gone: self.gone.clone(),
            ends: self.ends.clone(),
            places: self.places.clone(),
            address: self.address.clone(),
            overlays: Default::default(),
            saved: self.saved.clone(),
            client: self.client.clone(),
            ..**self
        })
    }

    /// Where to send an operation.
    pub(super) fn uri(&self, operation: Operation) -> &Uri {
        &self.address.uris[operation as usize]
    }

    /// Whether requests of both go to the same place with the same key.
    pub(super) fn has_address_of(&self, other: &Self) -> bool {
        self.address == other.address
    }

    /// The headers of every request, the API key among them.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.address.headers
    }

    /// What its answers are searched for, or the errors that it answers with.
    pub(super) fn secrets(&self, is_answer: bool) -> &Arc<Secrets> {
        self.address.secrets(is_answer)
    }

    /// What sends its requests.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What the prompt sets.
    pub(super) fn overlay(&self, operation: Operation) -> &Overlay {
        self.overlays[operation as usize].get_or_init(|| {
            // It could be read when the route was built.
            let variant = self.saved.open().unwrap_or_default();
            Box::new(Overlay::new(&variant, self.token_limit, operation))
        })
    }
}

/// The part of a route that is under comparison.
pub struct Candidate {
    /// The variant.
    pub target: Arc<Target>,
    /// Its share in percent.
    pub weight: u32,
}

/// The part of a route that gets copies.
pub struct Shadow {
    /// The variant.
    pub target: Arc<Target>,
    /// The share of requests that is copied, in percent.
    pub percent: u32,
}

/// A side of the comparison that could not be built. The baseline answers what is drawn
/// for this side, and that counts as turned away from it.
pub struct Missing {
    /// Its revision.
    pub revision: String,
    /// The revision that the draw is about.
    drawn: String,
    /// The share of that one in percent.
    weight: u32,
    /// The side is that share, or the rest.
    inside: bool,
}

impl Missing {
    /// Whether the draw chooses this side.
    pub fn is_drawn(&self, draw: impl FnOnce(&str, u32) -> bool) -> bool {
        draw(&self.drawn, self.weight) == self.inside
    }
}

/// One route.
pub struct Route {
    /// What it was built from.
    input: Arc<ReleaseInput>,
    /// `namespace/name` of the release.
    pub release: String,
    /// A short hash of it, for request ids.
    pub release_hash: u32,
    /// Part of the assignment's hash.
    pub uid: String,
    /// The model name that applications send.
    pub name: String,
    /// The routing generation.
    pub generation: i64,
    /// Answers unless the draw chooses the candidate, and when the candidate fails.
    pub baseline: Arc<Target>,
    /// Under comparison.
    pub candidate: Option<Candidate>,
    /// Would be under comparison, and could not be built; never together with a candidate.
    pub missing: Option<Missing>,
    /// Gets copies of what the baseline answers; never together with a candidate.
    pub shadow: Option<Shadow>,
    /// Other backends with the prompt of the baseline, when its own is unavailable.
    pub alternatives: Vec<Arc<Target>>,
    /// Where the sticky key comes from.
    pub sticky: Vec<StickySource>,
    /// Answer with the baseline when the candidate fails before its first byte.
    pub fallback: bool,
    /// How long an answer may be given again, where that is asked for.
    pub cache: Option<Duration>,
    /// Counts by revision.
    pub tallies: HashMap<String, Arc<Tally>>,
}

impl Route {
    /// The variant that is not trusted yet, whether users see it or not.
    pub fn on_trial(&self) -> Option<&Arc<Target>> {
        let shadow = self.shadow.as_ref().map(|s| &s.target);
        self.candidate.as_ref().map(|c| &c.target).or(shadow)
    }

    /// The revisions whose breaker is open.
    pub fn failing(&self) -> Vec<String> {
        let all = std::iter::once(&self.baseline).chain(self.on_trial());
        all.filter(|target| target.breaker.is_open()).map(|t| t.revision.clone()).collect()
    }

    /// All that requests may be sent to.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        std::iter::once(&self.baseline).chain(self.on_trial()).chain(&self.alternatives)
    }

    /// When models end, by the name of the LLMDeployment, where its server's list has the model.
    pub fn models_end(&self) -> BTreeMap<String, Option<Date>> {
        let said =
            |target: &Arc<Target>| Some((target.origin.backend.clone(), target.ends.said()?));
        self.targets().filter_map(said).collect()
    }

    /// The LLMDeployments that say that they have no such model.
    pub fn without_model(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .targets()
            .filter(|target| target.gone.is_gone())
            .map(|target| target.origin.backend.clone())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// In a bake, what bakes. It has passed every step, so it answers when what served before fails
    /// outright: that one's model may be gone, as models are that people move away from.
    pub fn stand_in(&self) -> Option<&Arc<Target>> {
        let bakes = self.baseline.role == VariantRole::Previous;
        self.candidate.as_ref().map(|candidate| &candidate.target).filter(|_| bakes)
    }
}
