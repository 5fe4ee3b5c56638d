//! Snapshots that the API server refused to keep for what they are: too large, beyond a quota,
//! denied by an admission webhook. The release says so in its status instead of failing at each
//! look, and the same is not tried again before its time ([`backoff`]).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    controllers::retries::backoff,
    rollout::{Problem, Target, resolve},
    signals::index::Named,
};

/// How long the first wait is.
const FIRST: Duration = Duration::from_secs(10);

/// What was refused last, by release: of each the revision that its spec names.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<Named, Refusal>>);

#[derive(Debug)]
struct Refusal {
    revision: String,
    problem: Problem,
    attempts: u32,
    /// When it is tried again.
    again: Instant,
}

impl Refusals {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Named, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps a revision of a release from being tried now.
    pub fn of(&self, release: &Named, revision: &str) -> Option<Problem> {
        let known = self.known();
        let refusal = known.get(release).filter(|refusal| refusal.revision == revision)?;
        (Instant::now() < refusal.again).then(|| refusal.problem.clone())
    }

    /// The API server refused what the target needs, and said `why`.
    pub fn add(&self, release: &Named, target: &Target, why: &str) -> Problem {
        let mut known = self.known();
        let before = known.get(release).filter(|before| before.revision == target.revision);
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let problem = resolve::refused(target, why);
        let refusal = Refusal {
            revision: target.revision.clone(),
            problem: problem.clone(),
            attempts,
            again: Instant::now() + backoff(FIRST, attempts),
        };
        known.insert(release.clone(), refusal);
        problem
    }

    /// In how long something of a release is tried again; none when it may be tried now.
    pub fn next(&self, release: &Named) -> Option<Duration> {
        let again = self.known().get(release)?.again;
        let wait = again.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then_some(wait)
    }

    /// It was kept, or the release is gone.
    pub fn forget(&self, release: &Named) {
        self.known().remove(release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_tried_seldom_and_another_revision_at_once() {
        let (refusals, release) = (Refusals::default(), Named::new("shop", "answers"));
        let target = |revision: &str| Target { revision: revision.into(), ..Target::default() };
        let (mut attempts, began) = (0, Instant::now());
        while began.elapsed() < Duration::from_secs(3600) {
            assert_eq!(refusals.of(&release, "fat"), None, "it is due");
            let problem = refusals.add(&release, &target("fat"), "exceeded quota: q");
            assert_eq!(problem.reason, "SnapshotRefused");
            assert!(problem.message.contains("exceeded quota: q"), "{}", problem.message);
            assert_eq!(refusals.of(&release, "fat"), Some(problem));
            assert_eq!(refusals.of(&release, "other"), None);
            attempts += 1;
            tokio::time::advance(refusals.next(&release).unwrap()).await;
            // Whoever does not try it now must not come back at once.
            assert_eq!(refusals.next(&release), None);
        }
        assert!((10..25).contains(&attempts), "{attempts} in an hour");
        refusals.add(&release, &target("other"), "no");
        assert!(refusals.next(&release).unwrap() < Duration::from_secs(12), "it begins anew");
        refusals.forget(&release);
        assert_eq!((refusals.of(&release, "other"), refusals.next(&release)), (None, None));
    }
}
