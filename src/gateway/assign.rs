//! The draw of a request: which variant answers it, why that one, and whose evidence it is.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};

use super::{
    Gateway, follow_up,
    identity::Client,
    prepare::Asked,
    routes::{Missing, Route, StickySource, Target, problems::Problem},
    shadow::Copy,
    tally::Drawn,
};
use crate::{
    analysis::breaker::Passage,
    api::{keys, prompt_release::VariantRole},
    audit::record::AssignmentReason,
    openai::error::ApiError,
    rollout::assignment,
};

/// Who answers a request.
pub(super) struct Assigned {
    /// The variant.
    pub target: Arc<Target>,
    /// Why this one.
    pub reason: AssignmentReason,
    /// The group of the sticky key, when there is one.
    pub group: Option<u8>,
    /// The part of the request's id that it shares with its copy only.
    pub unique: u64,
    /// A shadow gets a copy.
    pub copy: Option<Copy>,
    /// The draw that its first attempt is the evidence of.
    pub drawn: Option<Drawn>,
    /// Nobody else can answer it.
    pub bound: bool,
}

impl Assigned {
    pub(super) fn new(target: &Arc<Target>, reason: AssignmentReason) -> Self {
        let unique = rand::random();
        Self {
            target: target.clone(),
            reason,
            group: None,
            unique,
            copy: None,
            drawn: None,
            bound: false,
        }
    }
}

/// Which variant answers, and why that one.
pub(super) fn assign(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    headers: &HeaderMap,
    client: Option<&Client>,
    asked: &Asked,
) -> Result<Assigned, ApiError> {
    if let Some(wanted) = headers.get(keys::VARIANT_HEADER) {
        return forced(gateway, route, client, wanted);
    }
    if route.on_trial().is_none() && route.missing.is_none() {
        return Ok(baseline_or_other(gateway, route, AssignmentReason::Forced));
    }
    if gateway.control_loss(route) {
        // In a bake this is what served before: what bakes is on trial, too.
        return Ok(baseline_or_other(gateway, route, AssignmentReason::ControlLoss));
    }
    let key = sticky_key(route, headers, client, asked);
    let draw = |revision: &str, weight: u32| match &key {
        Some(key) => assignment::is_canary(&route.uid, revision, key, weight),
        None => rand::random_range(0..100_u32) < weight,
    };
    if let Some(missing) = &route.missing
        && missing.is_drawn(draw)
    {
        return Ok(turned_away(gateway, route, missing, client, key.as_deref()));
    }
    let candidate = route.candidate.as_ref();
    let candidate = candidate.filter(|c| draw(&c.target.revision, c.weight)).map(|c| &c.target);
    let target = candidate.unwrap_or(&route.baseline);
    let bound = bound_to(gateway, route, asked);
    if let Some(origin) = bound
        && !origin.is_some_and(|origin| key.is_some() && Arc::ptr_eq(origin, target))
    {
        let assigned = Assigned::new(origin.unwrap_or(target), AssignmentReason::FollowUp);
        return Ok(Assigned { bound: true, ..assigned });
    }
    let drawn = Draw { target, is_candidate: candidate.is_some(), bound: bound.is_some() };
    Ok(drawn.admit(gateway, route, client, key.as_deref()))
}

/// A fair draw.
struct Draw<'a> {
    target: &'a Arc<Target>,
    is_candidate: bool,
    /// Nobody else can answer.
    bound: bool,
}

impl Draw<'_> {
    /// Lets a request through to what was drawn; or to another while that fails outright. It
    /// is the evidence of what was drawn either way.
    fn admit(
        self,
        gateway: &Gateway,
        route: &Route,
        client: Option<&Client>,
        key: Option<&str>,
    ) -> Assigned {
        let Self { target, is_candidate, bound } = self;
        let tally = route.tallies.get(&target.revision);
        let caller = client.map(|client| &client.caller);
        let group = key.map(|key| assignment::group(&route.uid, key));
        let reason =
            if key.is_some() { AssignmentReason::Sticky } else { AssignmentReason::Random };
        let other = instead(route);
        let passage = if is_candidate || other.is_some() {
            target.breaker.admit(gateway.now_millis())
        } else {
            Passage::Free
        };
        let Passage::Away { as_before } = passage else {
            let drawn = tally.map(|tally| tally.draw(passage, caller));
            return Assigned { group, drawn, bound, ..Assigned::new(target, reason) };
        };
        if let Some(tally) = tally {
            tally.turn_away(as_before, group, caller.map(Arc::as_ref));
        }
        let instead = match other.filter(|_| !is_candidate) {
            _ if bound => Assigned::new(target, AssignmentReason::FollowUp),
            Some((other, reason)) => Assigned::new(other, reason),
            None => baseline_or_other(gateway, route, AssignmentReason::Breaker),
        };
        Assigned { group, bound, ..instead }
    }
}

/// A request that was drawn for a side that could not be built stays the evidence of that
/// side, as one that a breaker turns away: until the side can be asked, nobody knows how it
/// would have ended, and what nobody knows is no pass.
fn turned_away(
    gateway: &Gateway,
    route: &Route,
    missing: &Missing,
    client: Option<&Client>,
    key: Option<&str>,
) -> Assigned {
    let group = key.map(|key| assignment::group(&route.uid, key));
    if let Some(tally) = route.tallies.get(&missing.revision) {
        tally.turn_away(false, group, client.map(|client| &*client.caller));
    }
    Assigned { group, ..baseline_or_other(gateway, route, AssignmentReason::NotBuilt) }
}

/// Whether one of the variants alone can answer a request, because it goes on from what that
/// one keeps; and which of them, if this process knows.
fn bound_to<'a>(
    gateway: &Gateway,
    route: &'a Route,
    asked: &Asked,
) -> Option<Option<&'a Arc<Target>>> {
    let on_trial = route.on_trial().filter(|t| !Arc::ptr_eq(t, &route.baseline))?;
    let continued = follow_up::continued(asked)?;
    if continued.is_shared(on_trial, &route.baseline) {
        return None;
    }
    let candidate = route.candidate.as_ref().map(|candidate| &candidate.target);
    let variants = std::iter::once(&route.baseline).chain(candidate);
    Some(gateway.origins.among(&continued, variants))
}

/// Who answers while the baseline fails outright: another backend, or what bakes.
fn instead(route: &Route) -> Option<(&Arc<Target>, AssignmentReason)> {
    let other = route.alternatives.first().map(|other| (other, AssignmentReason::OtherBackend));
    other.or_else(|| Some((route.stand_in()?, AssignmentReason::Breaker)))
}

/// The baseline, for this reason; or another, while it fails outright.
fn baseline_or_other(gateway: &Gateway, route: &Route, reason: AssignmentReason) -> Assigned {
    // What bakes does not stand in for itself.
    let is_turned_away = reason == AssignmentReason::Breaker;
    if let Some((other, instead)) = instead(route)
        && !(is_turned_away && instead == AssignmentReason::Breaker)
        && let Passage::Away { .. } = route.baseline.breaker.admit(gateway.now_millis())
    {
        return Assigned::new(other, instead);
    }
    Assigned::new(&route.baseline, reason)
}

/// The variant that a tester asks for: `stable`, `canary`, or a revision.
fn forced(
    gateway: &Gateway,
    route: &Route,
    client: Option<&Client>,
    wanted: &HeaderValue,
) -> Result<Assigned, ApiError> {
    let name = keys::VARIANT_HEADER;
    if client.is_some_and(|client| !client.may_force) {
        let message = format!(
            "your key may not choose a variant by {name}: ask who runs this gateway to give it the permission force"
        );
        return Err(ApiError::new(403, "force_not_permitted", message).at(name));
    }
    let wanted = wanted.to_str().unwrap_or_default();
    let candidate = route.candidate.as_ref().map(|candidate| &candidate.target);
    let all = || {
        std::iter::once(&route.baseline)
            .chain(candidate)
            .chain(route.shadow.as_ref().map(|shadow| &shadow.target))
    };
    let target = match wanted {
        "stable" => all().find(|t| t.role == VariantRole::Stable).or(Some(&route.baseline)),
        "canary" => all().find(|t| matches!(t.role, VariantRole::Canary | VariantRole::Shadow)),
        revision => all().find(|t| t.revision == revision),
    };
    let target = target.ok_or_else(|| {
        let known: Vec<&str> = all().map(|t| t.revision.as_str()).collect();
        let problems = gateway.table.problems();
        let of = problems.get(&route.release);
        let mut unbuilt = of.iter().flat_map(|problems| &problems.all);
        let why = unbuilt.find(|problem| match wanted {
            "canary" => problem.is_on_trial(),
            revision => problem.revision == revision,
        });
        if let Some(Problem { revision, fault, .. }) = why {
            let message = format!(
                "the variant {revision} of the route {} can not be built now: {}",
                route.name, fault.message
            );
            return ApiError::new(404, "variant_not_built", message).at(name);
        }
        let message = format!(
            "the route {} has no variant {wanted:?} now: send stable, canary (while one runs) or one of {}",
            route.name,
            known.join(", ")
        );
        ApiError::new(404, "variant_not_found", message).at(name)
    })?;
    Ok(Assigned::new(target, AssignmentReason::Forced))
}

fn sticky_key(
    route: &Route,
    headers: &HeaderMap,
    client: Option<&Client>,
    asked: &Asked,
) -> Option<String> {
    // An empty one says nothing of who it is.
    let mut keys = route.sticky.iter().filter_map(|source| match source {
        StickySource::Header(name) => headers.get(name)?.to_str().ok().map(str::to_owned),
        StickySource::Body(field) => asked.request.text(field).map_or_else(
            || asked.request.raw(field).map(|raw| String::from_utf8_lossy(raw).into_owned()),
            |text| Some(text.into_owned()),
        ),
        StickySource::Client => client.map(|client| client.caller.name.clone()),
    });
    keys.find(|key| !key.is_empty())
}
