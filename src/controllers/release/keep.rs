//! What a release keeps beside its object: snapshots of what it routes to, written again
//! while their origin exists, and a note of what served and what failed on the snapshot of
//! its stable variant. Both are written before the status, and nobody owns them, so that a
//! release that is deleted and created again, or restored without its status, goes on where
//! it was (docs/decisions/0011).
//!
//! The caches may not show yet what was written: a note is not patched because its snapshot
//! is not there to be compared with. It is patched when the decision at hand changes it, or
//! when the caches show another one.
//!
//! What the API server refuses to keep for what it is concerns this release alone, and its
//! status says so: a target that can not be kept is decided on as one that does not exist.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    before::{is_known_late, newer_note, object},
    observe::{claims_since, created},
};
use crate::{
    api::{
        PromptRelease, PromptReleaseStatus, ReleaseSnapshot, Variant,
        conditions::{self, Readiness},
        prompt_release::VariantRef,
        snapshot::{Remembered, Saved, copy_name},
    },
    controllers::{Context, error::ControllerError, pulse::Done, reference},
    prompt::{revision, stands_for},
    rollout::{
        Effect, LostSnapshot, Plan, Snapshot, decide, decide::policy_digest, resolve, stale,
    },
    signals::index::Named,
};

/// A note is written anew when the routing generation is so far beyond it: a release without
/// a status goes on from a generation that its object can not have reached.
const FAR_BEYOND: i64 = 500;

/// What this reconcile has written and the caches may not show yet.
#[derive(Default)]
pub(super) struct Written {
    pub saved: BTreeMap<String, Saved>,
    /// A status was written.
    pub status: bool,
    /// The status that was decided last is not written yet (docs/decisions/0015).
    pub later: bool,
    remembered: Option<Remembered>,
}

impl Written {
    pub(super) fn done(&self) -> Done {
        match (self.status, self.later) {
            (true, _) => Done::Wrote,
            (false, true) => Done::Later,
            (false, false) => Done::Nothing,
        }
    }
}

/// What of a release's snapshots is gone.
#[derive(Default)]
struct Missing {
    /// What can be made again.
    found: Vec<(String, Saved)>,
    /// What can not.
    lost: Vec<LostSnapshot>,
}

/// Saves anew what is gone, as long as its origin is there and is what it was; the rest is
/// noted in `snapshot`. Answers whether something was saved.
pub(super) async fn heal(
    release: &PromptRelease,
    snapshot: &mut Snapshot,
    written: &mut Written,
    context: &Context,
) -> Result<bool, ControllerError> {
    let Missing { found, mut lost } = missing(release, snapshot, written, context);
    let (mut healed, named) = (false, Named::of(release));
    let lost_for = |name: &str, why: &str| {
        let variant = variants(&snapshot.status).find(|known| known.revision == name)?.clone();
        let (name, why) =
            (copy_name(&named.name, name), format!("the API server refuses it: {why}"));
        Some(LostSnapshot { name, variant, unread: false, why })
    };
    for (name, content) in found {
        if let Some(why) = context.refusals.of_copy(&named, &name) {
            lost.extend(lost_for(&name, &why));
            continue;
        }
        let note = note_for(&name, release, &snapshot.status, context);
        match Box::pin(context.cluster.save(release, &name, &content, note.as_ref())).await {
            Ok(true) => {
                let (namespace, release) = (release.namespace(), release.name_any());
                tracing::warn!(namespace, release, name, "a snapshot was gone: written again");
                written.remembered = note.or(written.remembered.take());
            }
            Ok(false) => {}
            Err(ControllerError::Refused { why, .. }) => {
                context.refusals.add_copy(&named, &name, &why);
                lost.extend(lost_for(&name, &why));
                continue;
            }
            Err(error) => return Err(error),
        }
        healed = true;
        context.refusals.forget_copy(&named, &name);
        written.saved.insert(name, content);
    }
    snapshot.lost = lost;
    Ok(healed)
}

/// What should have been kept, and is gone: what a release would keep when it prunes.
fn missing(
    release: &PromptRelease,
    snapshot: &Snapshot,
    written: &Written,
    context: &Context,
) -> Missing {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let gone = |copy: &str| {
        !written.saved.contains_key(copy) && context.caches.copy(&namespace, &name, copy).is_none()
    };
    let status = &snapshot.status;
    let mut missing = Missing::default();
    // It is there, so it can not be written anew.
    let unread = |copy: &str| {
        context
            .caches
            .why_unread("ReleaseSnapshot", &Named::new(&*namespace, copy_name(&name, copy)))
    };
    for known in variants(status).filter(|variant| gone(&variant.revision)) {
        let copy = copy_name(&name, &known.revision);
        if let Some(why) = unread(&known.revision) {
            let variant = known.clone();
            missing.lost.push(LostSnapshot { name: copy, variant, unread: true, why });
            continue;
        }
        match origin(&namespace, known, snapshot, context) {
            Ok(variant) => {
                missing.found.push((known.revision.clone(), Saved::Variant(variant)));
            }
            Err(why) => missing.lost.push(LostSnapshot {
                name: copy,
                variant: known.clone(),
                unread: false,
                why,
            }),
        }
    }
    let policy = status.canary.as_ref().map(|canary| &canary.policy).filter(|p| gone(p));
    let policy = policy.filter(|digest| unread(digest).is_none());
    missing.found.extend(policy.and_then(|digest| {
        let named = snapshot.policy.as_ref().ok()?;
        let policy = resolve::measurable(named, &snapshot.without_data).ok()?;
        (policy_digest(&policy) == *digest).then(|| (digest.clone(), Saved::Policy(policy)))
    }));
    missing
}

fn variants(status: &PromptReleaseStatus) -> impl Iterator<Item = &VariantRef> {
    let canary = status.canary.as_ref().map(|canary| &canary.variant);
    status.stable.iter().chain(&status.previous).chain(canary)
}

/// The variant as the objects that it was made of say it now, if they still say the same.
///
/// # Errors
/// They do not, or one of them is gone.
fn origin(
    namespace: &str,
    known: &VariantRef,
    snapshot: &Snapshot,
    context: &Context,
) -> Result<Variant, String> {
    if let Ok(target) = &snapshot.target
        && target.revision == known.revision
    {
        return Ok(target.variant.clone());
    }
    made_again(namespace, known, context)
}

/// A variant from the objects that it was made of.
///
/// # Errors
/// Why that is not possible: one of them is gone, or is another one now.
pub(super) fn made_again(
    namespace: &str,
    known: &VariantRef,
    context: &Context,
) -> Result<Variant, String> {
    let VariantRef { prompt: prompt_name, backend: backend_name, .. } = known;
    let prompt = context.caches.prompts.get(&reference(namespace, prompt_name));
    let prompt = prompt.ok_or_else(|| format!("PromptVersion {prompt_name} does not exist"))?;
    let backend = context.caches.backends.get(&reference(namespace, backend_name));
    let backend = backend.ok_or_else(|| format!("LLMDeployment {backend_name} does not exist"))?;
    let now = revision(&prompt.spec, &backend.spec);
    if now != known.revision && !stands_for(&known.revision, &now) {
        return Err(format!(
            "PromptVersion {prompt_name} or LLMDeployment {backend_name} has another content now"
        ));
    }
    Ok(Variant {
        prompt_name: prompt_name.clone(),
        prompt: prompt.spec.clone(),
        backend_name: backend_name.clone(),
        backend: backend.spec.clone(),
    })
}

/// Decides, and writes what the plan wants to be kept. The status comes after it. Where the API
/// server refuses to keep the target, it is decided what to do without it.
pub(super) async fn decide_and_keep(
    release: &PromptRelease,
    snapshot: &mut Snapshot,
    now: Timestamp,
    written: &mut Written,
    context: &Context,
) -> Result<Plan, ControllerError> {
    let mut plan = decide(snapshot, now);
    match (save(release, &plan, written, context).await, &snapshot.target) {
        (Err(ControllerError::Refused { what, why }), Ok(target)) => {
            let problem = resolve::refused(target, &what, &why);
            context.refusals.add(&Named::of(release), &target.revision, &problem);
            snapshot.target = Err(problem);
            plan = decide(snapshot, now);
            save(release, &plan, written, context).await?;
        }
        (saved, _) => saved?,
    }
    remember(release, &plan.status, written, context).await?;
    Ok(plan)
}

/// Writes the snapshots that the plan wants to be kept.
async fn save(
    release: &PromptRelease,
    plan: &Plan,
    written: &mut Written,
    context: &Context,
) -> Result<(), ControllerError> {
    for effect in &plan.effects {
        let Effect::Save { name, content } = effect else { continue };
        let note = note_for(name, release, &plan.status, context);
        if Box::pin(context.cluster.save(release, name, content, note.as_ref())).await?
            && note.is_some()
        {
            written.remembered = note;
        }
        written.saved.insert(name.clone(), (**content).clone());
    }
    if plan.effects.iter().any(|effect| matches!(effect, Effect::Save { .. })) {
        context.refusals.forget_target(&Named::of(release));
    }
    Ok(())
}

/// Writes into the status that nothing can be decided, because the API server refuses what has to
/// be kept before that. Everything else in the status stays as it is. Answers whether something
/// was written: once for each generation of the object, because the words of a refusal may differ
/// each time, and a status that is written is looked at again.
pub(super) async fn tell_refused(
    release: &PromptRelease,
    why: &ControllerError,
    context: &Context,
) -> Result<bool, ControllerError> {
    let mut release = release.clone();
    let mut status = release.status.take().unwrap_or_default();
    let generation = release.metadata.generation.unwrap_or_default();
    let known = conditions::find(&status.conditions, conditions::types::READY);
    let is_told = known.is_some_and(|ready| {
        ready.reason == resolve::SNAPSHOT_REFUSED && ready.observed_generation == generation
    });
    if is_told {
        return Ok(false);
    }
    let message = format!(
        "the note of what this release serves can not be kept, and nothing is decided before that, \
         so a canary gets no users, and in a bake all users get what served before: {why}. Mend that; it is tried again within minutes"
    );
    let (conditions, now) = (&mut status.conditions, (context.clock)());
    let reason = resolve::SNAPSHOT_REFUSED;
    conditions::set(conditions, Readiness::Stalled, reason, &message, generation, now);
    status.leader_term = Some(context.cluster.term()?);
    status.written_for = Some(Named::of(&release).key());
    release.status = Some(status);
    Box::pin(context.cluster.write_status(&release)).await?;
    Ok(true)
}

/// The note for a copy: only that of the stable variant has one.
fn note_for(
    copy: &str,
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Option<Remembered> {
    status.stable.as_ref().filter(|stable| stable.revision == copy)?;
    if newer_note(release, status, context).is_some() {
        return None;
    }
    let known = last_noted(release, context).map(|(_, known)| known);
    note(release, status, known.as_ref(), (context.clock)())
}

/// What was noted last, and the copy whose note counts before all others. What this object has
/// noted is told from what is beside it of another one; it is noted anew, to be the last again.
fn last_noted(
    release: &PromptRelease,
    context: &Context,
) -> Option<(Arc<ReleaseSnapshot>, Remembered)> {
    let notes = context.caches.notes_of(&Named::of(release));
    let own = |note: &Remembered| note.is_about(release.metadata.uid.as_deref());
    let last = Remembered::last(&notes, |(_, note)| note)?;
    let mine = notes.iter().filter(|(_, note)| own(note)).max_by_key(|(_, note)| note.rank());
    let highest = notes.iter().map(|(_, note)| note.generation).max().unwrap_or_default();
    let next = |note: &Remembered| {
        if highest > note.generation { highest.saturating_add(1) } else { note.generation }
    };
    let Some((_, mine)) = mine.filter(|_| !own(&last.1)) else {
        return Some((last.0.clone(), Remembered { generation: next(&last.1), ..last.1.clone() }));
    };
    let generation = highest.saturating_add(1);
    let noted_at = Some(last.1.told_at());
    Some((last.0.clone(), Remembered { generation, noted_at, ..mine.clone() }))
}

/// What is to be noted, when `known` is what was noted last. Of two notes the later one counts, so
/// none is written at an earlier generation.
fn note(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    known: Option<&Remembered>,
    now: Timestamp,
) -> Option<Remembered> {
    let route = release.route();
    if known.is_some_and(|known| stale::knows_more(known, object(release), status, &route)) {
        // Less than what is known is not noted.
        return None;
    }
    let since = claims_since(release, known);
    let mut note = Remembered::of(route, since, status)?;
    note.noted_at = Some(known.map_or(now, |known| now.max(known.told_at())));
    note.uid.clone_from(&release.metadata.uid);
    note.written_for = Some(Named::of(release).key());
    let Some(known) = known else { return Some(note) };
    note = note.after(known, created(release));
    note.generation = note.generation.max(known.generation);
    // A status that was not written after its note left a note of what never was.
    // On another route it goes on from nothing, and its generations begin anew.
    if known.stable != note.stable || known.route != note.route {
        note.generation = note.generation.max(known.generation.saturating_add(1));
    }
    let noted = status.routing.generation;
    note.status_generation = (note.generation > noted).then_some(noted);
    Some(note)
}

/// Brings the note up to date. One of before the release that became known late is not outdone
/// before the status is written that takes it over: an operator that is killed in between would
/// have forgotten it.
async fn remember(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    written: &mut Written,
    context: &Context,
) -> Result<(), ControllerError> {
    let before = release.status.as_ref();
    if before.is_some_and(|before| is_known_late(release, before, context)) {
        return Ok(());
    }
    if newer_note(release, status, context).is_some() {
        return Ok(());
    }
    let last = last_noted(release, context);
    let known = last.as_ref().map(|(_, known)| known);
    let now = (context.clock)();
    let Some(note) = note(release, status, known, now) else { return Ok(()) };
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let stable = &note.stable.revision;
    let up_to_date = |known: &Remembered| {
        known.says_the_same_as(&note) && note.generation < known.generation + FAR_BEYOND
    };
    let is_noted = match context.caches.copy(&namespace, &name, stable) {
        _ if written.remembered.as_ref().is_some_and(up_to_date) => true,
        Some(copy) => {
            let mut last = last.iter();
            last.any(|(last, known)| last.name_any() == copy.name_any() && up_to_date(known))
        }
        // It was written a moment ago, and the status that is there came after its note.
        None if written.saved.contains_key(stable) => {
            let before = before.and_then(|status| self::note(release, status, known, now));
            before.as_ref().is_some_and(up_to_date)
        }
        // Its origin is gone, too: there is nothing to write on.
        None => true,
    };
    if !is_noted {
        let copy = copy_name(&name, stable);
        Box::pin(context.cluster.remember(&namespace, &copy, &note)).await?;
        written.remembered = Some(note);
    }
    Ok(())
}

/// Gives saved copies their labels back. Nothing is decided by these, so a failure stops nothing:
/// the next look tries again.
pub(super) async fn label(copies: &[std::sync::Arc<ReleaseSnapshot>], context: &Context) {
    for copy in copies {
        if let Err(error) = Box::pin(context.cluster.label(copy)).await {
            tracing::debug!("{error}");
        }
    }
}

/// Drops the saved copies of a release but those to keep. `copies` were known before
/// anything was written, so that none is dropped that a later leader made.
pub(super) async fn prune(
    copies: &[std::sync::Arc<ReleaseSnapshot>],
    keep: &[String],
    context: &Context,
) -> Result<(), ControllerError> {
    for copy in copies.iter().filter(|copy| !keep.contains(&copy.spec.revision)) {
        Box::pin(context.cluster.drop_copy(copy)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
