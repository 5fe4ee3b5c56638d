//! Whether a backend's model ends, or has ended, as a condition of its own: `Ready` says
//! whether the server can be asked, which a date does not change.

use jiff::{Timestamp, civil::Date};
use kube::ResourceExt;

use super::super::{Context, caches::Use};
use crate::{
    api::{
        LLMDeployment,
        conditions::{self, types::MODEL_RETIREMENT},
        llm_deployment::LLMDeploymentStatus,
    },
    rollout::retirement::{self, MODEL_GONE, News},
    signals::index::Named,
};

/// Brings `status` up to date, and answers what people have to be told. `told` is what the
/// server says of the model's end, if it says which models it has.
pub(super) fn note(
    backend: &LLMDeployment,
    status: &mut LLMDeploymentStatus,
    told: Option<Option<Date>>,
    context: &Context,
    now: Timestamp,
) -> Option<News> {
    let before = conditions::find(&status.conditions, MODEL_RETIREMENT).cloned();
    let was_gone = before.as_ref().is_some_and(|condition| condition.reason == MODEL_GONE);
    // Before the gateways were asked in this term, what they said to another leader counts.
    let (is_gone, ends) = by_gateways(backend, context).unwrap_or((was_gone, None));
    let (provider, model) = (&backend.spec.provider, &backend.spec.model);
    let filed = context.model_dates.of(provider, model);
    status.retirement =
        retirement::retirement(&backend.spec, told.or(ends), status.retirement.as_ref(), filed);
    let known = status.retirement.as_ref();
    let what_to_do = retirement::migrate(model);
    let found = retirement::finding(model, known, is_gone, &what_to_do, now);
    match &found {
        None => status.conditions.retain(|condition| condition.type_ != MODEL_RETIREMENT),
        Some(found) => conditions::set_one(
            &mut status.conditions,
            MODEL_RETIREMENT,
            found.warns,
            (found.reason, &found.message),
            backend.metadata.generation.unwrap_or_default(),
            now,
        ),
    }
    retirement::news(before.as_ref(), found.as_ref())
}

/// When the date alone changes what is said.
pub(super) fn changes_at(status: &LLMDeploymentStatus, now: Timestamp) -> Option<Timestamp> {
    retirement::changes_at(status.retirement.as_ref()?.date, now)
}

/// Whether a gateway reports that the backend has no such model, and when its server lists that
/// it ends; none while no gateway has reported anything to this leader.
fn by_gateways(backend: &LLMDeployment, context: &Context) -> Option<(bool, Option<Option<Date>>)> {
    let term = context.cluster.leadership().term()?;
    let releases = context.caches.releases_with(&Use::Backend(Named::of(backend)));
    let keys: Vec<String> = releases.iter().map(|r| Named::of(&**r).key()).collect();
    let name = backend.name_any();
    context.gateways.last(term, |pulled| {
        pulled.has_heard().then(|| {
            let is_gone = keys.iter().any(|key| pulled.is_without_model(key, &name));
            (is_gone, keys.iter().find_map(|key| pulled.model_ends(key, &name)))
        })
    })?
}
