//! What there was before a release: the same release, whose object was deleted or restored
//! without its status, or another one on its route.
//!
//! A restore may bring the ReleaseSnapshots after the release. What they say then counts as if
//! it had been known at the first look, as long as the release has done nothing but serve its
//! first revision, and for a day. A release that serves for longer keeps its route towards other releases
//! (docs/decisions/0010), so only what is remembered of the release itself can come late.

use std::sync::Arc;

use jiff::SignedDuration;
use kube::ResourceExt;

use super::{keep::made_again, observe::created};
use crate::{
    api::{
        PromptRelease, PromptReleaseStatus, ReleaseSnapshot, keys,
        prompt_release::VariantRef,
        snapshot::{LastServed, Remembered, Saved},
    },
    controllers::{Context, caches, error::ControllerError},
    rollout::{
        Awaited, ServedBefore,
        first::{self, Late, Object},
        stale::{self, serves_what_failed},
    },
    signals::index::Named,
};

/// A restore writes the copies of a release one after the other: one that its note names counts as
/// gone so long after the copy with the note came.
const STILL_COMES: SignedDuration = SignedDuration::from_mins(5);

/// What a release without a status goes on from, and what another one had on its route.
///
/// # Errors
/// What should serve again can not be read.
pub(super) fn before(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Result<(Option<Box<Remembered>>, Option<ServedBefore>), ControllerError> {
    let (caches, named, route) = (&context.caches, Named::of(release), release.route());
    let late = late(release, status, context)?;
    let too_late = late.as_ref().is_some_and(|late| !late.in_time);
    let (late, told) = if too_late { (None, late) } else { (late.map(|late| late.note), None) };
    let is_stale = late.is_none() && told.is_none();
    let later = if is_stale { newer_note_with_content(release, status, context)? } else { None };
    let late = late.or(later);
    let is_whole = stale::is_whole(status);
    if status.routes() && late.is_none() && is_whole {
        let told = told.map(|late| late.note).or_else(|| told_only(release, status, context));
        let told = told.and_then(|note| note.on_route(&route));
        let told = told.map(|last| ServedBefore {
            release: named.key(),
            revision: last.revision,
            failed: last.failed,
            since: last.until,
            forget: None,
            too_late: true,
        });
        return Ok((None, told));
    }
    let is_first = status.stable.is_none() || late.is_some() || !is_whole;
    let noted = || last_note(&named, context);
    let known = late.or_else(noted);
    let own = known.as_ref().and_then(|known| known.on_route(&route));
    let other = if status.routes() { None } else { caches.served_before(&route, &named) };
    let other = other.filter(|(_, other)| own.as_ref().is_none_or(|own| own.rank() < other.rank()));
    let served_before = |(by, served): (Named, LastServed)| ServedBefore {
        forget: caches.release(&by).is_none().then(|| forget(&by)),
        release: by.key(),
        revision: served.revision,
        failed: served.failed,
        since: served.until,
        too_late: false,
    };
    let goes_on = known.filter(|known| is_first && known.route == route);
    let goes_on = goes_on.filter(|known| !serves_what_failed(known, status));
    if goes_on.is_some() || !is_first {
        let elsewhere = other.filter(|(by, _)| by.namespace != named.namespace);
        return Ok((goes_on.map(Box::new), elsewhere.map(served_before)));
    }
    // The same release, when it had this route before another one.
    let last = other.or(own.map(|own| (named, own)));
    Ok((None, last.map(served_before)))
}

/// Whether something is remembered of the release that became known only after its first release,
/// and in time to go on from it, whether the content of what is to serve again is there or not.
pub(super) fn is_known_late(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> bool {
    let (notes, route) = (notes(release, context), release.route());
    let late = first::late(&notes, object(release), status, &route, (context.clock)());
    late.is_some_and(|late| late.in_time)
}

/// What is remembered of the release, when that is more than its status knows: that is of a backup.
/// What is to serve again is there.
///
/// # Errors
/// It can not be read.
fn newer_note_with_content(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Result<Option<Remembered>, ControllerError> {
    let named = Named::of(release);
    let Some(note) = newer_note(release, status, context) else { return Ok(None) };
    let serves = &note.goes_on_with().revision;
    let content = context.caches.saved(&named.namespace, &named.name, serves)?;
    Ok(matches!(content, Some(Saved::Variant(_))).then_some(note))
}

/// The note that knows more than the status, whether the content of what is to serve again is there
/// or not.
pub(super) fn newer_note(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Option<Remembered> {
    let (notes, now) = (notes(release, context), (context.clock)());
    stale::later(&notes, object(release), status, &release.route(), now)
}

/// The uid of the object that a status counts as written for. One that was restored into this
/// object is this object's from the first decision on, but not while a note knows more and nothing
/// is decided, as long as the route is another release's.
pub(super) fn written_for(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Option<String> {
    let own = &release.metadata.uid;
    let waits = status.uid != *own && newer_note(release, status, context).is_some();
    if waits { status.uid.clone() } else { own.clone() }
}

/// What ReleaseSnapshots of another object of the release's name say, which counts for nothing here.
fn told_only(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Option<Remembered> {
    let named = Named::of(release);
    let told =
        stale::told(&notes(release, context), object(release), status, &release.route()).cloned();
    told.filter(|note| {
        let serves = &note.goes_on_with().revision;
        context.caches.copy(&named.namespace, &named.name, serves).is_some()
    })
}

fn notes(release: &PromptRelease, context: &Context) -> Vec<Remembered> {
    let named = Named::of(release);
    let notes = context.caches.notes_of(&named).into_iter();
    notes.map(|(copy, note)| with_what_is_kept(&copy, note, context)).collect()
}

fn last_note(release: &Named, context: &Context) -> Option<Remembered> {
    let (copy, note) = last_noted(release, context)?;
    Some(with_what_is_kept(&copy, note, context))
}

fn last_noted(release: &Named, context: &Context) -> Option<(Arc<ReleaseSnapshot>, Remembered)> {
    stale::last_known(context.caches.notes_of(release), |(_, note)| note, (context.clock)())
}

/// The note on `copy`, without the bake of which the previous variant is not kept any more: users
/// can not go back to it. That of a bake whose copies were restored a moment ago may still come.
fn with_what_is_kept(copy: &ReleaseSnapshot, note: Remembered, context: &Context) -> Remembered {
    let came = copy.creation_timestamp().map(|created| created.0);
    let may_come = came.is_some_and(|came| (context.clock)().duration_since(came) < STILL_COMES);
    let owner = caches::owner(copy);
    let stays = |previous: &VariantRef| may_come || is_there(&owner, previous, context);
    Remembered { previous: note.previous.clone().filter(stays), ..note }
}

/// Whether the copy of a variant is there, or can be made again.
fn is_there(release: &Named, variant: &VariantRef, context: &Context) -> bool {
    let Named { namespace, name } = release;
    context.caches.copy(namespace, name, &variant.revision).is_some()
        || made_again(namespace, variant, context).is_ok()
}

/// What a release without a status is to go on with, whose copy has not come yet, and until when
/// it is waited for.
pub(super) fn awaited(release: &PromptRelease, context: &Context) -> Option<Awaited> {
    let (named, route) = (Named::of(release), release.route());
    let (copy, note) = last_noted(&named, context)?;
    let note = with_what_is_kept(&copy, note, context);
    let previous = note.previous.as_ref().filter(|_| note.route == route)?;
    let until = copy.creation_timestamp()?.0 + STILL_COMES;
    (!is_there(&named, previous, context))
        .then(|| Awaited { revision: previous.revision.clone(), until })
}

/// The object that a release's status is read from.
pub(super) fn object(release: &PromptRelease) -> Object<'_> {
    Object { uid: release.metadata.uid.as_deref(), created: created(release) }
}

/// What became known only after the first release. What is to serve again is there, if the note
/// came in time.
///
/// # Errors
/// What is to serve again can not be read.
fn late(
    release: &PromptRelease,
    status: &PromptReleaseStatus,
    context: &Context,
) -> Result<Option<Late>, ControllerError> {
    let (named, route) = (Named::of(release), release.route());
    let late =
        first::late(&notes(release, context), object(release), status, &route, (context.clock)());
    let Some(late) = late else { return Ok(None) };
    if late.note.route != route || !late.in_time {
        return Ok(Some(late));
    }
    let serves = &late.note.goes_on_with().revision;
    let content = context.caches.saved(&named.namespace, &named.name, serves)?;
    Ok(matches!(content, Some(Saved::Variant(_))).then_some(late))
}

/// What makes a release that does not exist forgotten at once.
fn forget(release: &Named) -> String {
    format!(
        "kubectl delete releasesnapshots -n {} -l {}={}",
        release.namespace,
        keys::RELEASE_LABEL,
        release.name
    )
}
