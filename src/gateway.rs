//! The data plane: answers applications, splits traffic as the operator decided, and
//! measures what every request got.
//!
//! It shares nothing with other replicas and holds nothing that must last: a killed
//! gateway loses the answers in flight and nothing else. `phases` is the life of a
//! request, in order.

mod asker;
mod assign;
mod backends;
mod breaker;
mod budget;
pub mod cache;
mod caching;
mod callers;
mod check;
pub mod clients;
mod encoding;
pub mod ends;
mod exported;
mod fault;
mod feedback;
mod flight;
mod follow_up;
mod forward;
mod gone;
pub mod identity;
mod leader;
mod ledger;
pub mod limits;
pub mod notices;
pub mod peers;
mod phases;
mod prepare;
pub mod renderer;
mod room;
pub mod routes;
mod seldom;
mod sent;
pub mod server;
mod shadow;
mod sinks;
mod start;
mod tally;
pub mod tls;
mod told;
mod unread;
mod upstream;
pub mod watch;
pub mod workers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::{Timestamp, civil::Date};

use self::{
    backends::Backends,
    budget::Budget,
    cache::Cache,
    clients::{Clients, Proxies},
    exported::Exported,
    feedback::Feedback,
    follow_up::Origins,
    identity::{Asked, Identities, TokenFile, request_keys::RequestKeys},
    leader::WithoutJudge,
    ledger::Ledger,
    limits::Limits,
    notices::Notices,
    peers::Peers,
    renderer::{Program, Renderer},
    routes::{
        ReleaseInput, Route, RouteTable, World,
        problems::{self, ByRelease},
    },
    seldom::Seldom,
    shadow::Shadows,
    sinks::Sink,
    start::Start,
    unread::Unread,
};
use crate::{
    rollout::namespace_of,
    signals::{
        addresses::Addresses,
        report::{GatewayReport, ReleaseReport, Unjudged, Wanted},
        spending::CostReport,
    },
    telemetry::Telemetry,
};

/// What a gateway process is told when it starts.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Without a sign of a leader for so long, everything goes to stable.
    pub control_loss_timeout: Duration,
    /// Until a leader has asked for a report, there is none. Otherwise a gateway that starts takes
    /// one to be there until that time has passed.
    pub awaits_leader: bool,
    /// The wall clock, for records.
    pub clock: fn() -> Timestamp,
    /// Which applications may ask.
    pub identities: Identities,
    /// What it tells of its requests, and which of them it traces.
    pub telemetry: Arc<Telemetry>,
    /// The tokens with which people may look at the report and at examples. Operators need
    /// none: they sign with `request_keys`.
    pub people: Option<Arc<TokenFile>>,
    /// What requests and connections may cost.
    pub limits: Limits,
    /// Where models may be.
    pub addresses: Arc<Addresses>,
    /// Through which proxies they are reached, where an LLMDeployment says nothing.
    pub proxies: Proxies,
    /// Keeps answers for releases that ask for it.
    pub cache: Option<Arc<Cache>>,
    /// What signs request ids and reports.
    pub request_keys: RequestKeys,
    /// The other replicas.
    pub peers: Arc<Peers>,
    /// What is wrong with what it is told and serves.
    pub notices: Arc<Notices>,
    /// What fills in templates.
    pub renderer: Program,
}

impl GatewayConfig {
    /// What a gateway does unless it is told otherwise: nobody is known who may ask, neither
    /// applications nor people, and two minutes without a leader are a loss of control.
    pub fn new(clock: fn() -> Timestamp) -> Self {
        Self {
            control_loss_timeout: Duration::from_secs(120),
            awaits_leader: false,
            clock,
            identities: Identities::default(),
            telemetry: Arc::default(),
            people: None,
            limits: Limits::default(),
            addresses: Arc::default(),
            proxies: Proxies::default(),
            cache: None,
            request_keys: RequestKeys::default(),
            peers: Arc::default(),
            notices: Arc::default(),
            renderer: Program::default(),
        }
    }
}

/// Whether a body is a feedback: for the fuzz targets, which read all that strangers send.
#[doc(hidden)]
pub fn reads_feedback(body: &[u8]) -> bool {
    feedback::reads(body)
}

/// One gateway process.
pub struct Gateway {
    config: GatewayConfig,
    /// Drawn at the start: a restart is another instance.
    instance: String,
    table: RouteTable,
    sinks: Vec<Arc<dyn Sink>>,
    exported: Arc<Exported>,
    ledger: Arc<Ledger>,
    /// When the process started, for people.
    since: Timestamp,
    feedback: Feedback,
    origins: Origins,
    /// Examples of answers that were not understood.
    unread: Unread,
    shadows: Shadows,
    /// Backends at addresses that requests may not go to.
    refused: Seldom,
    /// The questions of operators that were answered.
    asked: Asked,
    /// The last report to an operator.
    told: told::Told,
    /// Questions that were refused.
    turned_away: Seldom,
    /// Requests that have ended in a panic.
    panics: Arc<server::Panics>,
    /// What connections, bodies and answers hold.
    budget: Arc<Budget>,
    renderer: Renderer,
    started: Instant,
    /// Milliseconds after the start when a leader last asked.
    leader_seen: AtomicI64,
    /// The last question for a report that was refused: when, and why.
    refused_question: ArcSwapOption<(Instant, String)>,
    /// The releases that the leader who asked last does not judge.
    unjudged: ArcSwap<Unjudged>,
    knows_routes: tokio::sync::watch::Sender<bool>,
    /// Whether enough of what it was told to serve is served.
    start: Start,
    draining: AtomicBool,
}

impl Gateway {
    /// A gateway without routes; not ready until it is told a world.
    pub fn new(config: GatewayConfig) -> Arc<Self> {
        let telemetry = config.telemetry.clone();
        let leader_seen = Self::seen_at_start(&config);
        let ledger = Arc::new(Ledger::default());
        let mut exported = Exported::new(telemetry.clone());
        if let Some(cache) = &config.cache {
            exported.also(cache.clone());
        }
        let panics = Arc::<server::Panics>::default();
        exported.counts_panics(panics.counter());
        let budget = Budget::new(config.limits.memory);
        exported.also(budget.clone());
        exported.also(config.notices.clone());
        let exported = Arc::new(exported);
        let mut sinks: Vec<Arc<dyn Sink>> =
            vec![exported.clone(), ledger.clone(), Arc::new(sinks::Log)];
        if telemetry.is_on() {
            sinks.push(telemetry);
        }
        let clients = Clients::new(config.addresses.clone(), config.proxies.clone());
        let instance = rand::random::<u64>();
        Arc::new(Self {
            renderer: Renderer::new(config.renderer.clone(), budget.clone()),
            budget,
            refused: Seldom::default(),
            asked: Asked::default(),
            told: told::Told::default(),
            turned_away: Seldom::default(),
            panics,
            table: RouteTable::new(Backends::new(clients)),
            since: (config.clock)(),
            config,
            instance: format!("{instance:016x}"),
            sinks,
            ledger,
            exported,
            // The beginning of the instance's text.
            feedback: Feedback::new((instance >> 32) as u32),
            origins: Origins::default(),
            unread: Unread::default(),
            shadows: Shadows::default(),
            started: Instant::now(),
            leader_seen,
            refused_question: ArcSwapOption::default(),
            unjudged: ArcSwap::default(),
            knows_routes: tokio::sync::watch::Sender::new(false),
            start: Start::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Which applications may ask.
    pub fn identities(&self) -> &Identities {
        &self.config.identities
    }

    /// What is wrong with what it serves, for those who look.
    pub fn notices(&self) -> &Notices {
        &self.config.notices
    }

    /// Follows a new world. What could not be built is among the notices, and what was built
    /// of it before stays in place.
    pub fn set_world(&self, world: &World) {
        let before = self.table.problems();
        self.table.replace(world);
        self.applied(&before);
    }

    /// As `set_world`, for some releases by `namespace/name`; none is one that is gone.
    pub fn change(&self, releases: impl IntoIterator<Item = (String, Option<Arc<ReleaseInput>>)>) {
        let before = self.table.problems();
        self.table.apply(releases);
        self.applied(&before);
    }

    fn applied(&self, before: &Arc<ByRelease>) {
        let problems = self.table.problems();
        if !Arc::ptr_eq(before, &problems) {
            self.notices().set_routes(problems::notices(&problems));
        }
        self.start.look(self.now_millis(), || self.table.standing());
        if !self.knows_routes() {
            self.knows_routes.send_replace(true);
        }
    }

    /// As `report`, to an operator: only what has changed since a mark that it names. A leader
    /// names the releases that it does not judge, too.
    fn report_since(&self, leader: bool, wanted: Wanted) -> GatewayReport {
        let Wanted { since, unjudged } = wanted;
        let asked = || self.asked(leader.then_some(unjudged));
        self.told.tell(&self.instance, since.as_ref(), |state| self.states(&asked(), state))
    }

    /// What this process has counted. `leader` says that a leader asks, which is the
    /// gateway's sign that a judge is alive.
    pub fn report(&self, leader: bool) -> GatewayReport {
        let asked = self.asked(leader.then(Unjudged::default));
        let mut releases = BTreeMap::new();
        self.states(&asked, &mut |release, state| {
            releases.insert(release.to_owned(), state);
        });
        GatewayReport { instance: self.instance.clone(), releases, ..GatewayReport::default() }
    }

    /// Hands the state of each release to `each`.
    fn states(&self, without: &WithoutJudge, each: &mut dyn FnMut(&str, ReleaseReport)) {
        let (read_at, problems) = (self.now_millis().max(1), self.table.problems());
        let mut unbuilt: BTreeMap<&String, _> =
            problems.iter().map(|(r, p)| (r, p.unbuilt())).collect();
        unbuilt.retain(|_, revisions| !revisions.is_empty());
        for route in self.table.all() {
            let compared = route.tallies.len() > 1;
            let state = ReleaseReport {
                applied: route.generation,
                control_loss: without.all || without.some.has(&route.release),
                failing: route.failing(),
                without_model: route.without_model(),
                models_end: route.models_end(),
                counts: if compared { callers::counts(&route, read_at) } else { BTreeMap::new() },
                unbuilt: unbuilt.remove(&route.release).unwrap_or_default(),
            };
            each(&route.release, state);
        }
        for (release, unbuilt) in unbuilt {
            // A release without a route is at no generation.
            each(release, ReleaseReport { unbuilt, ..ReleaseReport::default() });
        }
    }

    /// The LLMDeployments (namespace and name) that answer again and again that they have no
    /// such model, or not for the key that they are asked with.
    pub fn without_model(&self) -> BTreeSet<(String, String)> {
        let all = self.table.all();
        let of = |route: &Arc<Route>| {
            let namespace = namespace_of(&route.release).to_owned();
            route.without_model().into_iter().map(move |name| (namespace.clone(), name))
        };
        all.iter().flat_map(of).collect()
    }

    /// When models end, by namespace and name of the LLMDeployment, where its server's list has
    /// the model.
    pub fn models_end(&self) -> BTreeMap<(String, String), Option<Date>> {
        let all = self.table.all();
        let of = |route: &Arc<Route>| {
            let namespace = namespace_of(&route.release).to_owned();
            let ends = route.models_end().into_iter();
            ends.map(move |(name, date)| ((namespace.clone(), name), date))
        };
        all.iter().flat_map(of).collect()
    }

    /// What requests have cost since the process started.
    pub fn cost(&self) -> CostReport {
        let (instance, totals) = (self.instance.clone(), self.ledger.lines());
        CostReport { instance, since: self.since, totals }
    }

    fn millis(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// As `millis`, for breakers.
    fn now_millis(&self) -> u64 {
        u64::try_from(self.millis()).unwrap_or(0)
    }

    /// Tells probes that this process is about to stop, so that no new traffic is sent.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether it was told a world, if only an empty one.
    fn knows_routes(&self) -> bool {
        *self.knows_routes.borrow()
    }

    /// Ends when it was told a world.
    pub async fn routes_known(&self) {
        // The sender lives as long as `self`.
        let _ = self.knows_routes.subscribe().wait_for(|known| *known).await;
    }

    fn ready(&self) -> bool {
        self.knows_routes()
            && self.config.identities.keys_known()
            && !self.draining.load(Ordering::Acquire)
            && self.start.is_over(self.now_millis())
    }
}
