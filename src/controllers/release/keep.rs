//! What a release keeps beside its object: copies of what it routes to, healed while their
//! origin exists, and a note of what served and what failed on the copy of its stable
//! variant. Both are written before the status, and nobody owns them, so that a release that
//! is deleted and created again, or restored without its status, goes on where it was
//! (docs/decisions/0009).

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt;

use super::observe::claims_since;
use crate::{
    api::{
        PromptRelease, PromptReleaseStatus, Variant,
        prompt_release::VariantRef,
        snapshot::{Remembered, Saved, copy_name},
    },
    controllers::{Context, caches::read_remembered, error::ControllerError, reference},
    prompt::{revision, stands_for},
    rollout::{Effect, Plan, Snapshot, decide::policy_digest, resolve},
    signals::index::Named,
};

/// A note is written anew when the routing generation is so far beyond it: a release without
/// a status goes on from a generation that its object can not have reached.
const FAR_BEYOND: i64 = 500;

/// What this reconcile has written and the caches may not show yet.
#[derive(Default)]
pub(super) struct Written {
    pub saved: BTreeMap<String, Saved>,
    remembered: Option<Remembered>,
}

/// Saves anew what is routed to and gone, as long as its origin is there and is what it was.
/// Answers whether something was.
pub(super) async fn heal(
    release: &PromptRelease,
    snapshot: &Snapshot,
    written: &mut Written,
    context: &Context,
) -> Result<bool, ControllerError> {
    let missing = missing(release, snapshot, written, context);
    for (name, content) in &missing {
        let note = note_for(name, release, &snapshot.status, context);
        if context.cluster.save(release, name, content, note.as_ref()).await? {
            let (namespace, release) = (release.namespace(), release.name_any());
            tracing::warn!(namespace, release, copy = name, "a saved copy was gone: saved again");
        }
    }
    let healed = !missing.is_empty();
    written.saved.extend(missing);
    Ok(healed)
}

/// What should have been kept, is gone, and can be made again.
fn missing(
    release: &PromptRelease,
    snapshot: &Snapshot,
    written: &Written,
    context: &Context,
) -> Vec<(String, Saved)> {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let gone = |copy: &str| {
        !written.saved.contains_key(copy) && context.caches.copy(&namespace, &name, copy).is_none()
    };
    let status = &snapshot.status;
    let routed = status.routing.variants.iter().map(|variant| variant.revision.as_str());
    let lost: Vec<&str> = routed.filter(|revision| gone(revision)).collect();
    let variants = lost.into_iter().filter_map(|revision| {
        let known = variants(status).find(|variant| variant.revision == revision)?;
        let variant = origin(&namespace, known, snapshot, context)?;
        Some((revision.to_owned(), Saved::Variant(variant)))
    });
    let policy = status.canary.as_ref().map(|canary| &canary.policy).filter(|p| gone(p));
    let policy = policy.and_then(|digest| {
        let named = snapshot.policy.as_ref().ok()?;
        let policy = resolve::measurable(named, &snapshot.without_data).ok()?;
        (policy_digest(&policy) == *digest).then(|| (digest.clone(), Saved::Policy(policy)))
    });
    variants.chain(policy).collect()
}

fn variants(status: &PromptReleaseStatus) -> impl Iterator<Item = &VariantRef> {
    let canary = status.canary.as_ref().map(|canary| &canary.variant);
    status.stable.iter().chain(&status.previous).chain(canary)
}

/// The variant as the objects that it was made of say it now, if they still say the same.
fn origin(
    namespace: &str,
    known: &VariantRef,
    snapshot: &Snapshot,
    context: &Context,
) -> Option<Variant> {
    if let Ok(target) = &snapshot.target
        && target.revision == known.revision
    {
        return Some(target.variant.clone());
    }
    let prompt = context.caches.prompts.get(&reference(namespace, &known.prompt))?;
    let backend = context.caches.backends.get(&reference(namespace, &known.backend))?;
    let now = revision(&prompt.spec, &backend.spec);
    let same = now == known.revision || stands_for(&known.revision, &now);
    same.then(|| Variant {
        prompt_name: known.prompt.clone(),
        prompt: prompt.spec.clone(),
        backend_name: known.backend.clone(),
        backend: backend.spec.clone(),
    })
}

/// Writes what the plan wants to be kept. The status comes after it.
pub(super) async fn keep(
    release: &PromptRelease,
    plan: &Plan,
    written: &mut Written,
    context: &Context,
) -> Result<(), ControllerError> {
    for effect in &plan.effects {
        let Effect::Save { name, content } = effect else { continue };
        let note = note_for(name, release, &plan.status, context);
        if context.cluster.save(release, name, content, note.as_ref()).await? && note.is_some() {
            written.remembered = note;
        }
        written.saved.insert(name.clone(), (**content).clone());
    }
    remember(release, &plan.status, written, context).await
}

/// The note for a copy: only that of the stable variant has one.
fn note_for(
    copy: &str,
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Option<Remembered> {
    status.stable.as_ref().filter(|stable| stable.revision == copy)?;
    note(release, status, context)
}

fn note(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Option<Remembered> {
    let known = context.caches.remembered(&Named::of(release)).map(|(_, remembered)| remembered);
    let since = claims_since(release, known.as_ref());
    let mut note = Remembered::of(release.route(), since, status)?;
    // A status that was not written after its note left a note of what never was.
    if let Some(known) = known.filter(|known| known.stable != note.stable) {
        note.generation = note.generation.max(known.generation + 1);
    }
    Some(note)
}

/// Brings the note up to date.
async fn remember(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    written: &mut Written,
    context: &Context,
) -> Result<(), ControllerError> {
    let Some(note) = note(release, status, context) else { return Ok(()) };
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let stable = &note.stable.revision;
    let copy = context.caches.copy(&namespace, &name, stable);
    if copy.is_none() && !written.saved.contains_key(stable) {
        // Its origin is gone, too: there is nothing to write on.
        return Ok(());
    }
    let up_to_date = |known: &Remembered| {
        known.says_the_same_as(&note) && note.generation < known.generation + FAR_BEYOND
    };
    if written.remembered.as_ref().is_some_and(up_to_date)
        || copy.is_some_and(|copy| {
            let last = context.caches.remembered(&Named::of(release));
            let is_last = last.is_some_and(|(last, _)| last.name_any() == copy.name_any());
            is_last
                && is_ownerless(&copy)
                && read_remembered(&copy).as_ref().is_some_and(up_to_date)
        })
    {
        return Ok(());
    }
    context.cluster.remember(&namespace, &copy_name(&name, stable), &note).await?;
    written.remembered = Some(note);
    Ok(())
}

/// A copy of an earlier version belongs to its release, and would go with it.
fn is_ownerless(copy: &ControllerRevision) -> bool {
    copy.owner_references().is_empty()
}

/// Drops the saved copies of a release but those to keep. `copies` were known before
/// anything was written, so that none is dropped that a later leader made.
pub(super) async fn prune(
    copies: &[std::sync::Arc<ControllerRevision>],
    keep: &[String],
    context: &Context,
) -> Result<(), ControllerError> {
    use crate::api::keys::REVISION_LABEL;
    for copy in copies {
        if copy.labels().get(REVISION_LABEL).is_some_and(|name| !keep.contains(name)) {
            context.cluster.drop_copy(copy).await?;
        }
    }
    Ok(())
}
