//! Snapshots that the API server refused to keep for what they are: too large, beyond a quota,
//! denied by an admission webhook. The release says so in its status instead of failing at each
//! look, and the same is not tried again before its time ([`backoff`]).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{controllers::retries::backoff, rollout::Problem, signals::index::Named};

/// How long the first wait is.
const FIRST: Duration = Duration::from_secs(10);

/// What was refused last, by release: the target that its spec names, and snapshots that were
/// gone and may not be written again.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<Named, Refused>>);

#[derive(Debug, Default)]
struct Refused {
    /// The target's revision, and what its status says.
    target: Option<(String, Problem, Again)>,
    /// By snapshot: why.
    copies: BTreeMap<String, (String, Again)>,
}

/// When something is tried again.
#[derive(Clone, Copy, Debug)]
struct Again {
    attempts: u32,
    at: Instant,
}

impl Again {
    fn after(before: Option<Self>) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        Self { attempts, at: Instant::now() + backoff(FIRST, attempts) }
    }

    fn waits(self) -> bool {
        Instant::now() < self.at
    }
}

impl Refusals {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Named, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps a revision of a release from being tried now.
    pub fn of(&self, release: &Named, revision: &str) -> Option<Problem> {
        let known = self.known();
        let (refused, problem, again) = known.get(release)?.target.as_ref()?;
        (refused == revision && again.waits()).then(|| problem.clone())
    }

    /// The API server refused what the target needs, and `problem` says it.
    pub fn add(&self, release: &Named, revision: &str, problem: &Problem) {
        let mut known = self.known();
        let refused = known.entry(release.clone()).or_default();
        let before = refused.target.take().filter(|(before, ..)| before == revision);
        let again = Again::after(before.map(|(.., again)| again));
        refused.target = Some((revision.to_owned(), problem.clone(), again));
    }

    /// Why a snapshot that is gone is not written again now.
    pub fn of_copy(&self, release: &Named, copy: &str) -> Option<String> {
        let known = self.known();
        let (why, again) = known.get(release)?.copies.get(copy)?;
        again.waits().then(|| why.clone())
    }

    /// The API server refused to take a snapshot again that is gone.
    pub fn add_copy(&self, release: &Named, copy: &str, why: &str) {
        let mut known = self.known();
        let copies = &mut known.entry(release.clone()).or_default().copies;
        let again = Again::after(copies.get(copy).map(|(_, again)| *again));
        copies.insert(copy.to_owned(), (why.to_owned(), again));
    }

    /// In how long something of a release is tried again; none when all may be tried now.
    pub fn next(&self, release: &Named) -> Option<Duration> {
        let known = self.known();
        let refused = known.get(release)?;
        let target = refused.target.iter().map(|(.., again)| again);
        let all = target.chain(refused.copies.values().map(|(_, again)| again));
        let next = all.filter(|again| again.waits()).map(|again| again.at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// The target was kept.
    pub fn forget_target(&self, release: &Named) {
        self.change(release, |refused| refused.target = None);
    }

    /// A snapshot was written again.
    pub fn forget_copy(&self, release: &Named, copy: &str) {
        self.change(release, |refused| _ = refused.copies.remove(copy));
    }

    fn change(&self, release: &Named, change: impl Fn(&mut Refused)) {
        let mut known = self.known();
        let Some(refused) = known.get_mut(release) else { return };
        change(refused);
        if refused.target.is_none() && refused.copies.is_empty() {
            known.remove(release);
        }
    }

    /// The release is gone.
    pub fn forget(&self, release: &Named) {
        self.known().remove(release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        Problem { reason: "SnapshotRefused", message: "exceeded quota: q".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_tried_seldom_and_another_revision_at_once() {
        let (refusals, release) = (Refusals::default(), Named::new("shop", "answers"));
        let (mut attempts, began) = (0, Instant::now());
        while began.elapsed() < Duration::from_secs(3600) {
            assert_eq!(refusals.of(&release, "fat"), None, "it is due");
            refusals.add(&release, "fat", &problem());
            assert_eq!(refusals.of(&release, "fat"), Some(problem()));
            assert_eq!(refusals.of(&release, "other"), None);
            attempts += 1;
            tokio::time::advance(refusals.next(&release).unwrap()).await;
            // Whoever does not try it now must not come back at once.
            assert_eq!(refusals.next(&release), None);
        }
        assert!((10..25).contains(&attempts), "{attempts} in an hour");
        refusals.add(&release, "other", &problem());
        assert!(refusals.next(&release).unwrap() < Duration::from_secs(12), "it begins anew");
        refusals.forget_target(&release);
        assert_eq!((refusals.of(&release, "other"), refusals.next(&release)), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn snapshots_that_may_not_be_written_again_are_tried_by_themselves() {
        let (refusals, release) = (Refusals::default(), Named::new("shop", "answers"));
        refusals.add_copy(&release, "stable", "no");
        refusals.add(&release, "new", &problem());
        assert_eq!(refusals.of_copy(&release, "stable").as_deref(), Some("no"));
        assert_eq!(refusals.of_copy(&release, "canary"), None);
        refusals.forget_target(&release);
        let next = refusals.next(&release).unwrap();
        tokio::time::advance(next).await;
        assert_eq!((refusals.of_copy(&release, "stable"), refusals.next(&release)), (None, None));
        refusals.add_copy(&release, "stable", "no");
        assert!(refusals.next(&release).unwrap() > next, "later each time");
        refusals.forget_copy(&release, "stable");
        assert!(refusals.known().is_empty());
    }
}
