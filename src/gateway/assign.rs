//! The draw of a request: which variant answers it, why that one, and whose evidence it is.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};

use super::{
    Gateway, follow_up,
    identity::Client,
    prepare::Asked,
    routes::{Route, StickySource, Target},
    shadow::Copy,
    tally::{Drawn, Passage},
};
use crate::{
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
        return forced(route, client, wanted);
    }
    if route.on_trial().is_none() {
        let reason = AssignmentReason::Forced;
        return Ok(match admit_baseline(gateway, route) {
            Ok(_) => Assigned::new(&route.baseline, reason),
            Err(other) => Assigned::new(other, AssignmentReason::OtherBackend),
        });
    }
    if gateway.control_loss() {
        let promoted = route.candidate.as_ref().filter(|c| c.promoted);
        let stable = promoted.map_or(&route.baseline, |c| &c.target);
        return Ok(Assigned::new(stable, AssignmentReason::ControlLoss));
    }
    let key = sticky_key(route, headers, client, asked);
    let drawn = route.candidate.as_ref().filter(|candidate| match &key {
        Some(key) => {
            assignment::is_canary(&route.uid, &candidate.target.revision, key, candidate.weight)
        }
        None => rand::random_range(0..100_u32) < candidate.weight,
    });
    let target = drawn.map_or(&route.baseline, |candidate| &candidate.target);
    let bound = bound_to(gateway, route, asked);
    if let Some(origin) = bound {
        let drawn = origin.is_some_and(|origin| key.is_some() && Arc::ptr_eq(origin, target));
        if !drawn {
            let target = origin.unwrap_or(target);
            let assigned = Assigned::new(target, AssignmentReason::FollowUp);
            return Ok(Assigned { bound: true, ..assigned });
        }
    }
    let bound = bound.is_some();
    let tally = route.tallies.get(&target.revision);
    let caller = client.map(|client| &client.caller);
    let group = key.as_ref().map(|key| assignment::group(&route.uid, key));
    let reason = if key.is_some() { AssignmentReason::Sticky } else { AssignmentReason::Random };
    let admitted = match drawn {
        Some(_) => target.breaker.admit(gateway.now_millis()).ok_or_else(|| {
            match admit_baseline(gateway, route) {
                Ok(_) => (&route.baseline, AssignmentReason::Breaker),
                Err(other) => (other, AssignmentReason::OtherBackend),
            }
        }),
        None => {
            admit_baseline(gateway, route).map_err(|other| (other, AssignmentReason::OtherBackend))
        }
    };
    Ok(match admitted {
        Ok(passage) => {
            let drawn = tally.map(|tally| tally.draw(passage, caller));
            Assigned { group, drawn, bound, ..Assigned::new(target, reason) }
        }
        // It stays the evidence of the side that it was drawn for.
        Err((instead, reason)) => {
            if let Some(tally) = tally {
                tally.turn_away(group, caller.map(Arc::as_ref));
            }
            let (instead, reason) =
                if bound { (target, AssignmentReason::FollowUp) } else { (instead, reason) };
            Assigned { group, bound, ..Assigned::new(instead, reason) }
        }
    })
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

/// How the baseline may be asked; or who is, while it fails outright and there is another
/// backend.
fn admit_baseline<'a>(gateway: &Gateway, route: &'a Route) -> Result<Passage, &'a Arc<Target>> {
    match route.alternatives.first() {
        Some(other) => route.baseline.breaker.admit(gateway.now_millis()).ok_or(other),
        None => Ok(Passage::Free),
    }
}

/// The variant that a tester asks for: `stable`, `canary`, or a revision.
fn forced(
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
