//! Whether a leader does its work: decisions about releases are made and written, and not
//! only the Lease renewed (docs/decisions/0020).
//!
//! A reconcile that failed is no sign of that. A sign is a status that the API server took,
//! or a look that had nothing to write while no release waits for a write that failed. When
//! one does, or nothing was written yet in this term, a status of a release that does
//! not fail is sent as a dry run: this tells "this release" from "all releases".
//!
//! While releases exist, one of them is looked at from time to time. A leader without a sign
//! for [`Pulse::LOST`] asks gateways no more as a leader, is not ready, and ends after
//! [`Pulse::ENDS`], so that another process leads. A leader that works, but for some releases,
//! tells gateways which: their users go to stable. However many these are, they are those of
//! some namespaces, and other namespaces have nothing to do with them ([`unjudged`]).

mod unjudged;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::channel::mpsc::UnboundedSender;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use super::{Context, error::ControllerError};
use crate::{
    api::{PromptRelease, conditions::truncate},
    signals::{gateways::Sign, index::Named},
};

/// So much of an error is kept.
const LONGEST: usize = 500;
/// The reason of the Event about a release of which no decision can be written.
const UNWRITTEN: &str = "DecisionNotWritten";
/// The log names so many releases at once.
const SHOWN: usize = 10;
/// A dry run or an Event that takes longer is given up: this watch must not hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether decisions about releases are made and written.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Option<Term>>);

/// What is known of the current term.
#[derive(Debug)]
struct Term {
    number: i64,
    began: Instant,
    /// The last sign, or when the term began.
    sign: Instant,
    /// Whether it was shown in this term that it can write, or there is nothing to look at.
    shown: bool,
    /// When the API server last took a status, if only in a dry run.
    taken: Option<Instant>,
    /// Releases whose last attempt failed.
    failing: BTreeMap<Named, Failure>,
    /// Releases that were rolled back, and which some gateway goes on serving as before, since when.
    behind: BTreeMap<Named, Instant>,
    /// Why the last dry run was refused.
    refused: Option<String>,
}

/// How a reconcile of a release ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// A status was written.
    Wrote,
    /// There was nothing to write.
    Nothing,
    /// What there is to write waits for its turn.
    Later,
}

/// What can not be done about a release.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it failed first after it had been done last.
    pub since: Instant,
    /// The last error.
    pub why: String,
    /// It is about this release alone, whatever can be written.
    own: bool,
    told: bool,
}

impl Pulse {
    /// How often a release is asked to be looked at.
    pub const EVERY: Duration = Duration::from_secs(10);
    /// When one release fails for so long while others can be written, its canary counts as
    /// one without a judge: seven attempts.
    pub const UNJUDGED: Duration = Duration::from_secs(15);
    /// After so long without a sign the leader does not do its work: a write that hangs is
    /// given up earlier.
    pub const LOST: Duration = Duration::from_secs(45);
    /// After so long it is not expected to do so again.
    pub const ENDS: Duration = Duration::from_secs(60);
    /// More releases than this are not named to gateways one by one: the question that names
    /// them has to fit into one line. Of the namespaces with the most of them, all releases
    /// count as not judged.
    pub const MOST: usize = 64;

    /// Calls `with` with what is known of a term, which begins with the first call; of an
    /// earlier term nothing is known.
    fn with<T>(&self, number: i64, with: impl FnOnce(&mut Term, Instant) -> T) -> Option<T> {
        let mut term = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if term.as_ref().is_none_or(|term| term.number < number) {
            *term = Some(Term::begin(number, now));
        }
        term.as_mut().filter(|term| term.number == number).map(|term| with(term, now))
    }

    /// This process leads in this term. It is later than all before, or earlier: the Lease was
    /// made anew, and the clock was put back.
    pub fn leads(&self, number: i64) {
        let mut term = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if term.as_ref().is_none_or(|term| term.number != number) {
            *term = Some(Term::begin(number, Instant::now()));
        }
    }

    /// A reconcile of a release ended well.
    pub fn done(&self, term: i64, release: &Named, done: Done) {
        self.with(term, |term, now| {
            // What waits for its turn was not tried.
            if done != Done::Later {
                term.failing.remove(release);
            }
            if done == Done::Wrote {
                term.taken = Some(now);
                term.sign(now);
            } else if term.failing.is_empty() {
                term.sign = now;
            }
        });
    }

    /// A reconcile of a release failed.
    pub fn failed(&self, term: i64, release: &Named, error: &ControllerError) {
        if matches!(error, ControllerError::NotLeading | ControllerError::CachesNotReady) {
            return;
        }
        let own = matches!(error, ControllerError::Copy { .. } | ControllerError::Refused { .. });
        let why = truncate(&error.to_string(), LONGEST);
        self.with(term, |term, now| {
            let known = term.failing.remove(release);
            let (since, told) = known.map_or((now, false), |known| (known.since, known.told));
            term.failing.insert(release.clone(), Failure { since, why, own, told });
        });
    }

    /// Whether some gateway does not follow the rollback of a release.
    pub fn follows(&self, term: i64, release: &Named, follows: bool) {
        self.with(term, |term, now| {
            if follows {
                term.behind.remove(release);
            } else {
                term.behind.entry(release.clone()).or_insert(now);
            }
        });
    }

    /// A dry run was taken, or refused.
    pub fn tried(&self, term: i64, tried: Result<(), String>) {
        self.with(term, |term, now| {
            term.refused = tried.err();
            if term.refused.is_none() {
                term.taken = Some(now);
                term.sign(now);
            }
        });
    }

    /// There is nothing to look at.
    pub fn idle(&self, term: i64) {
        self.with(term, Term::sign);
    }

    /// Forgets releases that do not exist any more.
    pub fn keep(&self, term: i64, exists: impl Fn(&Named) -> bool) {
        self.with(term, |term, _| {
            term.failing.retain(|release, _| exists(release));
            term.behind.retain(|release, _| exists(release));
        });
    }

    /// For how long there was no sign in this term.
    pub fn silence(&self, term: i64) -> Duration {
        self.with(term, |term, now| now - term.sign).unwrap_or_default()
    }

    /// Whether the leader of this term does its work. A new leader is given time.
    pub fn works(&self, term: i64) -> bool {
        self.silence(term) < Self::LOST
    }

    /// What the leader of this term tells gateways when it asks them. A new leader has to
    /// show first that it can write: otherwise leaders that can not, one after the other,
    /// would keep canaries running.
    /// Of releases that can not be read (`unread`) nothing is decided, whoever leads.
    pub fn sign(&self, term: i64, unread: &[Named]) -> Sign {
        let sign = self.with(term, |term, now| {
            let alone = term.failing.iter().filter(|(_, failure)| term.is_alone(failure, now));
            let behind = term.behind.iter().filter(|(_, since)| now - **since >= Self::UNJUDGED);
            let alone = alone.map(|(release, _)| release);
            let behind = behind.map(|(release, _)| release);
            let all: BTreeSet<&Named> = alone.chain(behind).chain(unread).collect();
            let unjudged = unjudged::named(all);
            let works = term.shown && now - term.sign < Self::LOST;
            Sign { leads: works && unjudged.is_some(), unjudged: unjudged.unwrap_or_default() }
        });
        sign.unwrap_or_default()
    }

    /// Whether a dry run is to show if this leader can write: something fails, or
    /// nothing was written in this term in which there was time for a look.
    fn wants_dry_run(&self, term: i64) -> bool {
        let wants = self.with(term, |term, now| match term.taken {
            None => now - term.began >= Self::EVERY,
            Some(taken) => !term.failing.is_empty() && now - taken >= Self::EVERY,
        });
        wants.unwrap_or_default()
    }

    /// Whether a dry run for this release tells whether others can be written.
    fn is_fit_for_dry_run(&self, term: i64, release: &Named) -> bool {
        let fit = self.with(term, |term, _| term.failing.get(release).is_none_or(|f| f.own));
        fit.unwrap_or_default()
    }

    /// The releases whose last attempt failed.
    pub fn failures(&self, term: i64) -> Vec<(Named, Failure)> {
        let all = |term: &mut Term, _| term.failing.clone().into_iter().collect();
        self.with(term, all).unwrap_or_default()
    }

    /// Why the last dry run was refused, if it was.
    pub fn refused(&self, term: i64) -> Option<String> {
        self.with(term, |term, _| term.refused.clone()).flatten()
    }

    /// The last errors in one sentence.
    fn why(&self, term: i64) -> String {
        let failures = self.failures(term);
        let first = failures.iter().min_by_key(|(_, failure)| failure.since);
        let first = first.map(|(release, failure)| format!("{}: {}", release.key(), failure.why));
        first.or_else(|| self.refused(term)).unwrap_or_else(|| "no look has ended".to_owned())
    }

    /// Releases without a judge that were not told yet.
    fn news(&self, term: i64) -> Vec<(Named, Failure)> {
        let news = self.with(term, |term, now| {
            let mut news = vec![];
            let taken = term.taken;
            for (release, failure) in &mut term.failing {
                if !failure.told && failure.is_alone(taken, now) {
                    failure.told = true;
                    news.push((release.clone(), failure.clone()));
                }
            }
            news
        });
        news.unwrap_or_default()
    }
}

impl Term {
    fn begin(number: i64, now: Instant) -> Self {
        Self {
            number,
            began: now,
            sign: now,
            shown: false,
            taken: None,
            failing: BTreeMap::new(),
            behind: BTreeMap::new(),
            refused: None,
        }
    }

    fn sign(&mut self, now: Instant) {
        (self.sign, self.shown) = (now, true);
    }

    fn is_alone(&self, failure: &Failure, now: Instant) -> bool {
        failure.is_alone(self.taken, now)
    }
}

impl Failure {
    /// Whether it lasts, and since it began something else was taken. When nothing is, the
    /// whole leader gives no sign.
    fn is_alone(&self, taken: Option<Instant>, now: Instant) -> bool {
        now - self.since >= Pulse::UNJUDGED && taken.is_some_and(|taken| taken > self.since)
    }
}

/// Asks for a look while this process leads, sends a dry run when that has to show whether it
/// can write, and ends when there was no sign of its work for too long.
pub async fn watch_over(
    context: Arc<Context>,
    triggers: UnboundedSender<ObjectRef<PromptRelease>>,
) {
    let mut ticks = tokio::time::interval(Pulse::EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (pulse, mut turn) = (&context.pulse, 0);
    loop {
        ticks.tick().await;
        let Some(term) = context.cluster.leadership().term() else { continue };
        pulse.leads(term);
        let releases = context.caches.releases.state();
        if releases.is_empty() {
            pulse.keep(term, |_| false);
            pulse.idle(term);
            continue;
        }
        let silence = pulse.silence(term);
        if silence >= Pulse::LOST {
            let (seconds, all, why) = (silence.as_secs(), releases.len(), pulse.why(term));
            tracing::error!(
                "this operator leads {all} releases and has written no decision for {seconds} s, so gateways hear of no leader: {why}"
            );
        }
        if silence >= Pulse::ENDS {
            tracing::error!("this operator ends, so that another one leads");
            return;
        }
        pulse.keep(term, |release| context.caches.release(release).is_some());
        turn = (turn + 1) % releases.len();
        let _ = triggers.unbounded_send(ObjectRef::from_obj(releases[turn].as_ref()));
        if pulse.wants_dry_run(term) {
            dry_run(&context, term, &releases, turn).await;
        }
        tell(&context, &pulse.news(term)).await;
    }
}

/// Tells people of releases that have no judge. Of many the log names the first.
async fn tell(context: &Context, news: &[(Named, Failure)]) {
    for (release, Failure { why, .. }) in news.iter().take(SHOWN) {
        let release = release.key();
        tracing::error!(
            release,
            "no decision about this release can be made or written, so gateways send its users to stable: {why}"
        );
    }
    let more = news.len().saturating_sub(SHOWN);
    if more > 0 {
        tracing::error!("and so it is for {more} more releases: /readyz?verbose has them");
    }
    if tokio::time::timeout(PATIENCE, announce(context, news)).await.is_err() {
        tracing::warn!("Events about {} releases could not be written in time", news.len());
    }
}

/// Sends the status of a release that does not fail, as it is, as a dry run in this term.
async fn dry_run(context: &Context, term: i64, releases: &[Arc<PromptRelease>], turn: usize) {
    let pulse = &context.pulse;
    let in_turn = releases.iter().cycle().skip(turn).take(releases.len());
    let mut fit = in_turn.filter(|release| {
        let named = Named::of(release.as_ref());
        release.status.is_some()
            && pulse.is_fit_for_dry_run(term, &named)
            && !context.caches.is_unread(&named)
    });
    let Some(release) = fit.next() else {
        // Without a failure nothing waits for a write either.
        if pulse.failures(term).is_empty() {
            pulse.idle(term);
        }
        return;
    };
    let mut release = PromptRelease::clone(release);
    if let Some(status) = &mut release.status {
        status.leader_term = Some(term);
    }
    let dry_run = context.cluster.would_take_status(&release);
    let tried = match tokio::time::timeout(PATIENCE, dry_run).await {
        Ok(Ok(())) => Ok(()),
        // Somebody wrote it meanwhile, or nobody leads: this tells nothing.
        Ok(Err(ControllerError::Conflict { .. } | ControllerError::NotLeading)) => return,
        Ok(Err(error)) => Err(truncate(&format!("in a dry run: {error}"), LONGEST)),
        Err(_) => Err(format!("a dry run had no answer within {} s", PATIENCE.as_secs())),
    };
    if let Err(why) = &tried {
        tracing::warn!("this operator can not write: {why}");
    }
    pulse.tried(term, tried);
}

/// Writes an Event for each release that has no judge.
async fn announce(context: &Context, news: &[(Named, Failure)]) {
    for (release, Failure { why, .. }) in news {
        let Some(release) = context.caches.release(release) else { continue };
        let note = format!(
            "no decision can be made or written, so until one is a canary gets no users, and in a bake \
             all users get what served before: {why}"
        );
        context.cluster.announce(release.as_ref(), true, UNWRITTEN, &note).await;
    }
}

#[cfg(test)]
mod tests;
