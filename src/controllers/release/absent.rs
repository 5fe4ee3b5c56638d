//! What follows from what the indexes report: who waits for a route that became free is
//! looked at, backends learn who uses them, and what is remembered of a release that does
//! not exist any more is kept for [`KEPT`], then dropped.
//!
//! Absent is not deleted: the first thing that happens is a note of since when, on the copy
//! of what served last. That copy stays, and the one that a bake compared it with. Others go,
//! because a canary begins anew anyway, but not before they are an hour old: a restore brings
//! ReleaseSnapshots before the releases, and a status may name them. Nothing here has a timer
//! while every copy has its release.

mod queue;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, channel::mpsc::UnboundedSender};
use jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::time::Instant;

use self::queue::Queue;
use super::{Triggers, keep::label};
use crate::{
    api::{
        LLMDeployment, ReleaseSnapshot,
        snapshot::{KEPT, Remembered, copy_name},
    },
    controllers::{
        Context,
        backend::{
            UNREAD_AGAIN,
            orphans::{self, Settled},
        },
        caches::{self, Changes, CopyKey, Use},
        error::ControllerError,
        reference,
    },
    signals::index::{Change, Named},
};

/// Of a namespace's releases that do not exist the last so many are remembered.
const MOST: usize = 1000;
/// A copy of a release that does not exist stays for so long: as long as an absence takes to count
/// elsewhere (docs/decisions/0010), and longer than most restores take from one kind to the next.
const RESTORED: SignedDuration = SignedDuration::from_hours(1);
/// A release that is replaced is back within this time.
const SETTLE: Duration = Duration::from_secs(2);
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// The wall clock may be set while something waits for a time of it: it is read again so often.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The state of the task: what there is to do.
struct Tidy {
    context: Arc<Context>,
    triggers: Triggers,
    backends: UnboundedSender<ObjectRef<LLMDeployment>>,
    /// Releases to look at: their copies may have lost them.
    releases: Queue,
    /// Backends to look at: they may not exist and be used no more.
    orphans: Queue,
    /// When to look at what does not wait for a time of its own.
    due: Option<Instant>,
    absent: Absent,
    /// Releases with copies that are to be dropped later.
    young: BTreeSet<(Timestamp, Named)>,
}

/// Releases that do not exist, and since when.
#[derive(Default)]
struct Absent {
    since: BTreeMap<Named, Timestamp>,
    /// The same in the order in which their time is over.
    order: BTreeSet<(Timestamp, Named)>,
    /// The same by namespace.
    in_namespace: BTreeMap<String, BTreeSet<(Timestamp, Named)>>,
}

impl Absent {
    /// Adds a release. When there are more than `most` in its namespace, answers the one
    /// that is away for longest: it is not in here any more.
    fn add(&mut self, release: &Named, since: Timestamp, most: usize) -> Option<Named> {
        self.remove(release);
        self.since.insert(release.clone(), since);
        self.order.insert((since, release.clone()));
        let near = self.in_namespace.entry(release.namespace.clone()).or_default();
        near.insert((since, release.clone()));
        let first = (near.len() > most).then(|| near.first().cloned()).flatten()?.1;
        self.remove(&first);
        Some(first)
    }

    fn remove(&mut self, release: &Named) {
        let Some(since) = self.since.remove(release) else { return };
        let entry = (since, release.clone());
        self.order.remove(&entry);
        if let Some(near) = self.in_namespace.get_mut(&release.namespace) {
            near.remove(&entry);
            if near.is_empty() {
                self.in_namespace.remove(&release.namespace);
            }
        }
    }

    /// When the first one's time is over.
    fn first(&self) -> Option<Timestamp> {
        Some(self.order.first()?.0.checked_add(KEPT).unwrap_or(Timestamp::MAX))
    }

    /// Those whose time is over.
    fn over(&self, now: Timestamp) -> impl Iterator<Item = &Named> {
        let all =
            self.order.iter().take_while(move |(since, _)| now.duration_since(*since) >= KEPT);
        all.map(|(_, release)| release)
    }
}

/// Follows what the indexes report, until the process stops.
pub async fn follow_changes(
    context: Arc<Context>,
    changes: Changes,
    triggers: Triggers,
    backends: UnboundedSender<ObjectRef<LLMDeployment>>,
) {
    let elections = context.cluster.leadership().elections();
    let Changes { mut releases, mut copies } = changes;
    let mut elections = std::pin::pin!(elections);
    let mut tidy = Tidy {
        context,
        triggers,
        backends,
        releases: Queue::default(),
        orphans: Queue::default(),
        due: None,
        absent: Absent::default(),
        young: BTreeSet::new(),
    };
    loop {
        let wait = tidy.next_timer();
        tokio::select! {
            biased;
            Some(change) = releases.next() => tidy.release_changed(&change),
            Some(change) = copies.next() => tidy.copy_changed(&change),
            Some(()) = elections.next() => tidy.look_at_all().await,
            () = sleep(wait) => tidy.work().await,
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

impl Tidy {
    fn release_changed(&mut self, change: &Change<Use>) {
        self.triggers.send_rivals(change);
        for key in change.left.iter().chain(&change.joined) {
            let Use::Backend(backend) = key else { continue };
            let reference = reference(&backend.namespace, &backend.name);
            match self.context.caches.backends.get(&reference) {
                // Only a model server of our own has owners.
                Some(known) if known.spec.serving.is_some() => {
                    // Only a process that stops has no receiver.
                    let _ = self.backends.unbounded_send(reference);
                }
                Some(_) => {}
                None => {
                    self.orphans.insert(backend.clone());
                    self.soon();
                }
            }
        }
        if change.gone {
            self.context.ahead.forget(&change.object);
            self.context.refusals.forget(&change.object);
            self.context.retries.forget("PromptRelease", &change.object);
            self.releases.insert((*change.object).clone());
            self.soon();
        } else {
            self.absent.remove(&change.object);
        }
    }

    fn copy_changed(&mut self, change: &Change<CopyKey>) {
        for key in &change.left {
            // Nobody remembers who served the route: who waits for it may have it now.
            if let CopyKey::Route(route) = key {
                self.triggers.send_all(&Use::Route(route.clone()));
            }
        }
        for key in change.left.iter().chain(&change.joined) {
            // A restore may write a note anew that does not say since when.
            let (CopyKey::Release(release) | CopyKey::Absent(release)) = key else { continue };
            if !self.context.caches.is_without(release) {
                self.triggers.send(release);
            } else {
                self.releases.insert(release.clone());
                self.soon();
            }
        }
    }

    fn soon(&mut self) {
        let soon = Instant::now() + SETTLE;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// A leader begins: whatever happened before, it sees to it.
    async fn look_at_all(&mut self) {
        if self.context.caches.ready().await.is_err() {
            return;
        }
        self.absent = Absent::default();
        self.young.clear();
        for copy in self.context.caches.copies.state() {
            let release = caches::owner(&copy);
            if self.context.caches.is_without(&release) {
                self.releases.insert(release);
            }
        }
        match orphans::all(&self.context).await {
            Ok(found) => found.into_iter().for_each(|backend| self.orphans.insert(backend)),
            Err(error) => self.told(&error),
        }
        self.soon();
    }

    /// When there is something to do next; not for one that does not lead.
    fn next_timer(&self) -> Option<Duration> {
        self.context.cluster.leadership().term()?;
        let due = self.due.into_iter().chain(self.releases.due()).chain(self.orphans.due()).min();
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let young = self.young.first().map(|(until, _)| *until);
        let by_clock = self.absent.first().into_iter().chain(young).min().map(|next| {
            let left = Duration::try_from(next - (self.context.clock)()).unwrap_or_default();
            left.clamp(Duration::from_secs(1), LONGEST_WAIT)
        });
        due.into_iter().chain(by_clock).min()
    }

    async fn work(&mut self) {
        self.due = None;
        if !self.context.caches.are_ready() {
            return self.soon();
        }
        let now = (self.context.clock)();
        let over: Vec<Named> = self.absent.over(now).cloned().collect();
        over.into_iter().for_each(|release| self.releases.insert(release));
        while self.young.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, release)) = self.young.pop_first() {
                self.releases.insert(release);
            }
        }
        let began = Instant::now();
        while let Some(release) = self.releases.next(began) {
            match self.miss(&release, now).await {
                Ok(()) => self.releases.done(&release),
                Err(error) if self.is_about_one(&error) => self.releases.failed(release, AGAIN),
                Err(_) => return self.again(),
            }
        }
        while let Some(backend) = self.orphans.next(began) {
            match orphans::settle(&backend, &self.context).await {
                Ok(Settled::Now) => self.orphans.done(&backend),
                Ok(Settled::AsFarAsKnown) => self.orphans.wait(backend, UNREAD_AGAIN),
                Err(error) if self.is_about_one(&error) => self.orphans.failed(backend, AGAIN),
                Err(_) => return self.again(),
            }
        }
    }

    /// What failed would fail for all others, too.
    fn again(&mut self) {
        self.due = Some(Instant::now() + AGAIN);
    }

    /// Tells an error; whether the others can be handled all the same.
    fn is_about_one(&self, error: &ControllerError) -> bool {
        self.told(error);
        error.is_about_one()
    }

    fn told(&self, error: &ControllerError) {
        self.context.exported.failed("PromptRelease", error.reason());
        if error.worth_a_warning() {
            tracing::warn!(reason = error.reason(), "{error}");
        }
    }

    /// Sees to the copies of a release that may not exist.
    async fn miss(&mut self, release: &Named, now: Timestamp) -> Result<(), ControllerError> {
        let context = self.context.clone();
        let (caches, cluster) = (&context.caches, &context.cluster);
        self.absent.remove(release);
        if !caches.is_without(release) {
            return Ok(());
        }
        // A note of another release claims nothing, and what failed there is known for as long.
        let remembered = caches.remembered(release).or_else(|| caches.copied_note(release));
        let copies = caches.copies_of(release);
        let (over, next) = left_over(&copies, remembered.as_ref(), release, now);
        for copy in over {
            cluster.drop_copy(copy).await?;
        }
        self.young.extend(next.map(|until| (until, release.clone())));
        let Some((copy, mut remembered)) = remembered else { return Ok(()) };
        // By its label people find what makes the release forgotten.
        label(std::slice::from_ref(&copy), &context).await;
        let since = match remembered.absent_since {
            Some(since) => since,
            None => {
                remembered.absent_since = Some(now);
                cluster.remember(&release.namespace, &copy.name_any(), &remembered).await?;
                now
            }
        };
        if now.duration_since(since) >= KEPT {
            return self.forget(release).await;
        }
        let Some(forgotten) = self.absent.add(release, since, MOST) else { return Ok(()) };
        self.forget(&forgotten).await
    }

    /// Drops the copies of a release, the one with the note last: copies without a note would hold
    /// a release of this name that comes meanwhile.
    async fn forget(&self, release: &Named) -> Result<(), ControllerError> {
        let caches = &self.context.caches;
        let noted = caches.remembered(release).or_else(|| caches.copied_note(release));
        let noted = noted.map(|(copy, _)| copy.name_any());
        let mut copies = caches.copies_of(release);
        copies.sort_by_key(|copy| Some(copy.name_any()) == noted);
        for copy in copies {
            self.context.cluster.drop_copy(&copy).await?;
        }
        Ok(())
    }
}

/// Of the copies of a release that does not exist those that are dropped now, and when to look at
/// the others again. What the release goes on from stays with its note.
fn left_over<'a>(
    copies: &'a [Arc<ReleaseSnapshot>],
    remembered: Option<&(Arc<ReleaseSnapshot>, Remembered)>,
    release: &Named,
    now: Timestamp,
) -> (Vec<&'a Arc<ReleaseSnapshot>>, Option<Timestamp>) {
    let goes_on_with = |(copy, note): &(Arc<ReleaseSnapshot>, Remembered)| {
        [copy.name_any(), copy_name(&release.name, &note.goes_on_with().revision)]
    };
    let needed = remembered.map(goes_on_with);
    let is_needed = |name: &String| needed.as_ref().is_some_and(|names| names.contains(name));
    let left = copies.iter().filter(|copy| !is_needed(&copy.name_any()));
    let until = |copy: &ReleaseSnapshot| {
        let created = copy.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
        created.checked_add(RESTORED).unwrap_or(Timestamp::MAX)
    };
    let (over, young): (Vec<_>, Vec<_>) = left.partition(|copy| until(copy) <= now);
    (over, young.into_iter().map(|copy| until(copy)).min())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PromptReleaseStatus, prompt_release::VariantRef};

    #[test]
    fn a_copy_of_a_release_that_does_not_exist_stays_for_an_hour_and_what_it_goes_on_from_longer() {
        let at = |minute: i64| Timestamp::from_second(60 * minute).unwrap();
        let release = Named::new("ns", "r");
        let copy = |revision: &str, minute| {
            let mut copy = ReleaseSnapshot::default();
            copy.metadata.name = Some(copy_name("r", revision));
            let created = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(minute));
            copy.metadata.creation_timestamp = Some(created);
            Arc::new(copy)
        };
        let copies = [copy("new", 0), copy("old", 0), copy("canary", 10), copy("policy", 20)];
        let variant = |name: &str| VariantRef { revision: name.into(), ..VariantRef::default() };
        let status = |previous: Option<&str>| PromptReleaseStatus {
            stable: Some(variant("new")),
            previous: previous.map(variant),
            ..PromptReleaseStatus::default()
        };
        let noted = |previous| {
            let note = Remembered::of("route".into(), at(0), &status(previous)).unwrap();
            Some((copies[0].clone(), note))
        };
        for (remembered, minute, over, next) in [
            (noted(Some("old")), 69, vec![], Some(70)),
            (noted(Some("old")), 70, vec!["canary"], Some(80)),
            (noted(Some("old")), 80, vec!["canary", "policy"], None),
            (noted(None), 60, vec!["old"], Some(70)),
            // Restored before the one that has the note.
            (None, 59, vec![], Some(60)),
            (None, 60, vec!["new", "old"], Some(70)),
        ] {
            let found = left_over(&copies, remembered.as_ref(), &release, at(minute));
            let names: Vec<_> = found.0.iter().map(|copy| copy.name_any()).collect();
            let expected: Vec<_> = over.into_iter().map(|name| copy_name("r", name)).collect();
            assert_eq!((names, found.1), (expected, next.map(at)), "{minute}");
        }
    }

    #[test]
    fn the_one_that_is_away_for_longest_is_forgotten_first_in_each_namespace() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let named = |namespace: &str, name: &str| Named::new(namespace, name);
        let mut absent = Absent::default();
        assert_eq!(absent.add(&named("a", "late"), at(9), 2), None);
        assert_eq!(absent.add(&named("b", "first"), at(1), 2), None);
        assert_eq!(absent.add(&named("a", "early"), at(5), 2), None);
        assert_eq!(absent.add(&named("a", "later"), at(10), 2), Some(named("a", "early")));
        assert_eq!(absent.add(&named("a", "long ago"), at(2), 2), Some(named("a", "long ago")));
        assert_eq!(absent.first(), Some(at(1) + KEPT));
        let over = |absent: &Absent, now| absent.over(now).cloned().collect::<Vec<_>>();
        assert_eq!(over(&absent, at(8) + KEPT), [named("b", "first")]);
        absent.remove(&named("b", "first"));
        assert_eq!(over(&absent, at(9) + KEPT), [named("a", "late")]);
        absent.remove(&named("a", "late"));
        absent.remove(&named("a", "later"));
        assert_eq!(absent.first(), None);
        assert!(absent.in_namespace.is_empty() && absent.since.is_empty());
    }
}
