//! From the caches to the snapshot that `decide` sees. Nothing here asks the API server.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kube::ResourceExt;

use super::before::{awaited, before};
use crate::{
    analysis::external::Externals,
    api::{
        CanaryPolicy, CanaryPolicySpec, LLMDeployment, LLMDeploymentSpec, PromptRelease,
        PromptReleaseSpec, PromptReleaseStatus, conditions,
        prompt_release::VariantRef,
        snapshot::{LastServed, Remembered, Saved},
    },
    controllers::{
        Context,
        caches::{Caches, Use, is_deleted},
        error::ControllerError,
        reference,
    },
    prompt,
    rollout::{
        Deleting, Problem, Request, Snapshot,
        resolve::{self, Gone},
    },
    signals::{gateways::Seen, index::Named},
};

/// The problem that something does not exist, unless it does and can not be read.
fn of_unread(
    problem: Problem,
    spec: &PromptReleaseSpec,
    namespace: &str,
    caches: &Caches,
) -> Problem {
    let policy = spec.policy_ref.as_ref().map(|policy| policy.name.as_str()).unwrap_or_default();
    let (reason, kind, name) = match problem.reason {
        "PromptNotFound" => ("PromptInvalid", "PromptVersion", spec.prompt_ref.name.as_str()),
        "BackendNotFound" => ("BackendInvalid", "LLMDeployment", spec.backend_ref.name.as_str()),
        "PolicyNotFound" => ("PolicyInvalid", "CanaryPolicy", policy),
        _ => return problem,
    };
    let named = Named::new(namespace, name);
    caches.why_unread(kind, &named).map_or(problem, |why| {
        let message = format!("{kind} {} is there and can not be read: {why}", named.key());
        Problem { reason, message }
    })
}

/// The world around a release.
///
/// # Errors
/// A saved copy can not be read.
pub(super) fn observe(
    release: &PromptRelease,
    seen: Seen,
    just_saved: &BTreeMap<String, Saved>,
    context: &Context,
) -> Result<Snapshot, ControllerError> {
    let caches = &context.caches;
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let key = format!("{namespace}/{name}");
    let spec = &release.spec;
    let known = context.ahead.status(release);
    let status = known.or_else(|| release.status.clone()).unwrap_or_default();
    let prompt = caches.prompts.get(&reference(&namespace, &spec.prompt_ref.name));
    let backend = caches.backends.get(&reference(&namespace, &spec.backend_ref.name));
    let policy = spec
        .policy_ref
        .as_ref()
        .and_then(|named| caches.policies.get(&reference(&namespace, &named.name)));
    let running_policy = running_policy(release, just_saved, context)?;
    let external = external(&key, &status, running_policy.as_deref(), context);
    let target = resolve::target(
        spec,
        prompt.as_ref().map(|p| &p.spec),
        backend.as_ref().map(|b| &b.spec),
        &status,
        prompt.as_ref().zip(backend.as_ref()).map(|(p, b)| context.examined.of(p, b)),
    )
    .map_err(|problem| of_unread(problem, spec, &namespace, caches))
    .and_then(|target| {
        // What is kept already has fitted.
        match caches.copy(&namespace, &name, &target.revision) {
            Some(_) => Ok(target),
            None => resolve::that_fits(target),
        }
    })
    .and_then(|target| {
        let refused = context.refusals.of(&Named::of(release), &target.revision);
        refused.map_or(Ok(target), Err)
    });
    let mut not_ready = BTreeMap::new();
    if let (Ok(target), Some(backend)) = (&target, &backend)
        && let Some(why) = why_not_ready(backend)
    {
        not_ready.insert(target.revision.clone(), why);
    }
    let canary = status.canary.as_ref().map(|canary| &canary.variant);
    for variant in status.stable.iter().chain(&status.previous).chain(canary) {
        if let Some(backend) = caches.backends.get(&reference(&namespace, &variant.backend))
            && let Some(why) = why_not_ready(&backend)
            && is_made_of(variant, &backend, release, context)?
        {
            not_ready.insert(variant.revision.clone(), why);
        }
    }
    let stable = stable_backend(&namespace, &name, &status, context)?;
    let policy_spec = resolve::policy(spec, policy.as_ref().map(|p| &p.spec));
    let policy_spec = policy_spec.map_err(|problem| of_unread(problem, spec, &namespace, caches));
    let without_data = match (&policy_spec, &backend) {
        (Ok(policy), Some(canary)) => {
            let named = (spec.backend_ref.name.as_str(), &canary.spec);
            let stable = stable.as_ref().map(|(name, spec)| (name.as_str(), spec));
            let backends: Vec<_> = stable.into_iter().chain([named]).collect();
            resolve::without_data(policy, &backends, context.prometheus.unusable(policy).as_deref())
        }
        _ => vec![],
    };
    let (remembered, served_before) = before(release, &status, context)?;
    let named = Named::of(release);
    let notes = caches.notes_of(&named);
    let on_route = notes.iter().filter(|(_, note)| release.has_route(&note.route));
    let noted = on_route.map(|(_, note)| note.generation).max();
    let copied = || caches.copied_note(&named).map(|(_, note)| Box::new(note));
    let is_new = status.stable.is_none() && notes.is_empty();
    let names = target.as_ref().ok().map(|target| &target.revision);
    Ok(Snapshot {
        generation: release.metadata.generation.unwrap_or_default(),
        requests: Request::from_annotations(release.annotations()),
        undecidable: policy.as_ref().and_then(|p| undecidable(p)),
        policy: policy_spec,
        without_data,
        running_policy,
        route_held_by: route_held_by(release, &key, context),
        awaited: if status.stable.is_none() { awaited(release, context) } else { None },
        remembered,
        copied: is_new.then(copied).flatten(),
        beside: if is_new { beside(&named, names, context) } else { vec![] },
        noted: noted.unwrap_or_default(),
        served_before,
        // What is gone is known when it was tried to write it again.
        lost: vec![],
        gateways: seen.gateways,
        departed: seen.departed,
        external,
        deleting: deleting(release),
        spec: spec.clone(),
        release: key,
        not_ready,
        status,
        target,
    })
}

/// Revisions that are kept of a release while no note beside them can be read: somebody has removed
/// or garbled it, or restored a part.
/// `named` is what the spec names: its own copy tells nothing, unless it is that of a canary.
pub(super) fn beside(release: &Named, named: Option<&String>, context: &Context) -> Vec<String> {
    if context.caches.copied_note(release).is_some() {
        return vec![];
    }
    let copies = context.caches.copies_of(release);
    let has_policy = copies.iter().any(|copy| copy.spec.policy.is_some());
    let variants = copies.iter().filter(|copy| copy.spec.variant.is_some());
    // A canary's copy has no note, and is kept together with a policy.
    let others = variants.map(|copy| &copy.spec.revision);
    let mut beside: Vec<String> =
        others.filter(|revision| has_policy || named != Some(revision)).cloned().collect();
    beside.sort();
    beside
}

/// The stable variant's backend as it is now, or as it was saved.
fn stable_backend(
    namespace: &str,
    name: &str,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Result<Option<(String, LLMDeploymentSpec)>, ControllerError> {
    let Some(stable) = &status.stable else { return Ok(None) };
    let now = context.caches.backends.get(&reference(namespace, &stable.backend));
    let spec = match now {
        Some(backend) => Some(backend.spec.clone()),
        None => match context.caches.saved(namespace, name, &stable.revision)? {
            Some(Saved::Variant(saved)) => Some(saved.backend),
            _ => None,
        },
    };
    Ok(spec.map(|spec| (stable.backend.clone(), spec)))
}

/// Whether a variant still has this backend. One that was deleted and made anew with another
/// content is the backend of other revisions: the variant goes on with what was saved of it.
///
/// # Errors
/// The saved copy can not be read.
fn is_made_of(
    variant: &VariantRef,
    backend: &LLMDeployment,
    release: &PromptRelease,
    context: &Context,
) -> Result<bool, ControllerError> {
    let named = Named::of(release);
    let saved = context.caches.saved(&named.namespace, &named.name, &variant.revision)?;
    let Some(Saved::Variant(saved)) = saved else { return Ok(true) };
    let now = prompt::revision(&saved.prompt, &backend.spec);
    Ok(now == prompt::revision(&saved.prompt, &saved.backend))
}

/// Why a backend can not answer now. One that nobody has looked at yet is not ready.
fn why_not_ready(backend: &LLMDeployment) -> Option<String> {
    let conditions = backend.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    match conditions::find(conditions, conditions::types::READY) {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(ready.message.clone()),
        None => Some("it was not looked at yet".to_owned()),
    }
}

/// What its own controller has found out about a policy.
fn undecidable(policy: &CanaryPolicy) -> Option<String> {
    let conditions = policy.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::find(conditions, conditions::types::DECIDABLE)
        .filter(|c| c.status == "False")
        .map(|c| c.message.clone())
}

/// What Prometheus told of the running canary.
fn external(
    release: &str,
    status: &PromptReleaseStatus,
    policy: Option<&CanaryPolicySpec>,
    context: &Context,
) -> Externals {
    let (Some(_), Some(policy)) = (&status.canary, policy) else { return Externals::default() };
    context.prometheus.of(release, status.routing.generation, policy, (context.clock)())
}

/// The policy that the running canary started with, as saved.
pub(super) fn running_policy(
    release: &PromptRelease,
    just_saved: &BTreeMap<String, Saved>,
    context: &Context,
) -> Result<Option<Arc<CanaryPolicySpec>>, ControllerError> {
    let canary = release.status.as_ref().and_then(|s| s.canary.as_ref());
    let Some(digest) = canary.map(|c| c.policy.as_str()) else { return Ok(None) };
    if let Some(saved) = just_saved.get(digest) {
        let Saved::Policy(policy) = saved else { return Ok(None) };
        return Ok(Some(Arc::new(policy.clone())));
    }
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let copy = context.caches.copy(&namespace, &name, digest);
    copy.map_or(Ok(None), |copy| context.examined.policy(&copy))
}

fn deleting(release: &PromptRelease) -> Option<Deleting> {
    let since = release.metadata.deletion_timestamp.as_ref()?.0;
    Some(Deleting { since, finalizers: release.finalizers().to_vec() })
}

/// When the object was created.
pub(super) fn created(release: &PromptRelease) -> Timestamp {
    release.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |created| created.0)
}

/// Since when a release claims its route: one that was deleted and created again keeps its
/// place before those that came meanwhile.
pub(super) fn claims_since(release: &PromptRelease, known: Option<&Remembered>) -> Timestamp {
    let created = created(release);
    match known {
        Some(known) if release.has_route(&known.route) => created.min(known.since),
        _ => created,
    }
}

/// Whether a status was not written for another object: who had the route when a backup was taken
/// serves it no more when that is restored.
fn is_own(status: &PromptReleaseStatus, release: &PromptRelease) -> bool {
    status.uid.is_none() || status.uid == release.metadata.uid
}

/// Until when the release of a restored status served: the time of the last entry of its history.
/// A status that does not say for which release it was written may be a copy, and tells nothing.
fn served_until(status: &PromptReleaseStatus) -> Option<Timestamp> {
    let told = status.history.iter().map(|entry| entry.at).max();
    told.filter(|_| status.written_for.is_some())
}

fn route_held_by(release: &PromptRelease, key: &str, context: &Context) -> Option<String> {
    let route = release.route();
    let routed = release.status.as_ref().filter(|status| status.routes());
    if routed.is_none_or(|status| !is_own(status, release))
        && let Some(by) = context.caches.unread_on(&route, &Named::of(release))
    {
        return Some(by.key());
    }
    let others = context.caches.releases_with(&Use::Route(route.clone()));
    if others.iter().all(|other| other.metadata.uid == release.metadata.uid) {
        return None;
    }
    let others = others.iter().filter(|other| !is_deleted(other));
    // A release that is being deleted serves on until another one serves its route.
    let serves = |claim: &resolve::Claim| claim.serves || !is_deleted(release);
    let gone = context.caches.served_before(&route, &Named::of(release));
    let others: Vec<_> = others
        .map(|other| {
            let named = Named::of(other.as_ref());
            let known = context.caches.remembered(&named).map(|(_, remembered)| remembered);
            (other, named, known)
        })
        .collect();
    // A note that does not say for whom it was written claims nothing towards another namespace
    // of which one says it.
    let on_route = |known: &Option<Remembered>| known.as_ref().and_then(|k| k.on_route(&route));
    let known = others.iter().filter_map(|(_, by, known)| Some((by, on_route(known)?)));
    let known = known.chain(gone.iter().map(|(by, served)| (by, served.clone())));
    let named: Vec<&Named> = known.filter(|(_, s)| s.named).map(|(by, _)| by).collect();
    let counts = |by: &Named, served: &LastServed| {
        served.named || named.iter().all(|other| other.namespace == by.namespace)
    };
    let claim = |(other, by, known): &(&Arc<PromptRelease>, Named, Option<Remembered>)| {
        let served = on_route(known).filter(|served| counts(by, served));
        let known = known.as_ref().filter(|_| served.is_some());
        let routes = other.status.as_ref().filter(|status| status.routes());
        let restored = routes.filter(|status| !is_own(status, other)).and_then(served_until);
        resolve::Claim {
            release: by.key(),
            created: claims_since(other, known).to_string(),
            serves: routes.is_some_and(|status| is_own(status, other)),
            served: served.map(|served| served.end()).or(restored),
        }
    };
    let claims: Vec<resolve::Claim> = others.iter().map(claim).filter(serves).collect();
    let gone = gone.as_ref().filter(|(by, served)| counts(by, served));
    let gone = gone.map(|(by, served)| Gone { release: by.key(), until: served.end() });
    resolve::route_holder(key, &claims, gone.as_ref())
}
