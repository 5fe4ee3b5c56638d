//! Progress that is known here and not yet written.
//!
//! A running canary's counts change with every look. With a thousand canaries, writing each
//! change would be most of what the API server does, and tells nobody anything: what is decided
//! (a look at a boundary, a verdict, a step, a weight) is written at once, counts only as
//! often as the operator's budget for them allows. Until then they are kept here, and the next
//! look goes on from them. An operator that dies loses what it kept; gateways that live tell
//! their counts again, as they only grow (docs/decisions/0015).
//!
//! Of a release at rest only the number of gateways that follow it changes. Every look finds that
//! number again, so nothing is kept: the release waits for its turn to be written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    api::{
        PromptRelease, PromptReleaseStatus,
        prompt_release::{CanaryStatus, JudgedTime, MetricStatus, Routing},
    },
    rollout::{Effect, Gateway},
    signals::index::Named,
};

/// Writes of the progress of canaries a second, for all releases of this operator.
const RATE: f64 = 3.0;
/// Writes a second that say how many gateways follow a release at rest. When a gateway comes or
/// goes, every release has this to say.
const RESTING_RATE: f64 = 10.0;
/// So many may come at once.
const BURST: f64 = 20.0;
/// Progress that is older is written in any case.
pub const OLDEST: Duration = Duration::from_secs(300);

/// What is kept of all releases.
#[derive(Debug)]
pub struct Ahead(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    kept: BTreeMap<Named, Kept>,
    /// Releases at rest that have something to tell.
    waiting: BTreeSet<Named>,
    canaries: Budget,
    resting: Budget,
}

/// Writes that may be made.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
    /// More a second, up to `BURST`.
    rate: f64,
}

#[derive(Debug)]
struct Kept {
    uid: Option<String>,
    /// The object's version at which `base` was its status.
    version: Option<String>,
    /// The status as it is written.
    base: PromptReleaseStatus,
    status: PromptReleaseStatus,
    /// When `base` was passed by.
    since: Instant,
}

impl Default for Ahead {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            kept: BTreeMap::new(),
            waiting: BTreeSet::new(),
            canaries: Budget::new(RATE),
            resting: Budget::new(RESTING_RATE),
        }))
    }
}

impl Ahead {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status that the next look begins with: that of the object, or what is known beyond
    /// it. What somebody else wrote wins.
    pub fn status(&self, release: &PromptRelease) -> Option<PromptReleaseStatus> {
        let mut inner = self.inner();
        let key = Named::of(release);
        let kept = inner.kept.get(&key)?;
        if kept.is_beyond(release) {
            return Some(kept.status.clone());
        }
        inner.kept.remove(&key);
        None
    }

    /// The status, if it is to be written now; if not, it is kept. `gateways` are those that
    /// were seen for it.
    pub fn due(
        &self,
        release: &PromptRelease,
        status: PromptReleaseStatus,
        effects: &[Effect],
        gateways: &[Gateway],
    ) -> Option<PromptReleaseStatus> {
        let mut inner = self.inner();
        let now = Instant::now();
        let key = Named::of(release);
        let Some(base) = release.status.as_ref() else { return Some(status) };
        if is_at_rest(base) && is_at_rest(&status) {
            return inner.due_at_rest(key, base, status, effects);
        }
        let since = inner.kept.get(&key).map_or(now, |kept| kept.since);
        let is_progress = effects.is_empty()
            && !was_restored(base, &status)
            && decided(base) == decided(&status)
            && !is_last_word(base, &status, gateways);
        let is_old = now.saturating_duration_since(since) >= OLDEST;
        if !is_progress || inner.canaries.take(now) || is_old {
            inner.kept.remove(&key);
            return Some(status);
        }
        match inner.kept.get_mut(&key) {
            Some(kept) if kept.is_beyond(release) => kept.status = status,
            _ => {
                let (uid, version) =
                    (release.metadata.uid.clone(), release.metadata.resource_version.clone());
                inner.kept.insert(key, Kept { uid, version, base: base.clone(), status, since });
            }
        }
        None
    }

    /// Whether something of this release is kept.
    pub fn has(&self, release: &PromptRelease) -> bool {
        self.inner().kept.contains_key(&Named::of(release))
    }

    /// Releases at rest whose turn it is: a look at them now writes what they have to tell.
    pub fn turns(&self) -> Vec<Named> {
        let mut inner = self.inner();
        let left = inner.resting.refill(Instant::now()) as usize;
        (0..left).map_while(|_| inner.waiting.pop_first()).collect()
    }

    /// The release is gone.
    pub fn forget(&self, release: &Named) {
        let mut inner = self.inner();
        inner.kept.remove(release);
        inner.waiting.remove(release);
    }
}

impl Inner {
    fn due_at_rest(
        &mut self,
        key: Named,
        base: &PromptReleaseStatus,
        status: PromptReleaseStatus,
        effects: &[Effect],
    ) -> Option<PromptReleaseStatus> {
        self.kept.remove(&key);
        // Who writes it is no news of a release at rest.
        let known = PromptReleaseStatus { leader_term: status.leader_term, ..base.clone() };
        let is_news = !effects.is_empty()
            || was_restored(base, &status)
            || decided(&known) != decided(&status);
        if is_news || self.resting.take(Instant::now()) {
            self.waiting.remove(&key);
            return Some(status);
        }
        self.waiting.insert(key);
        None
    }
}

impl Kept {
    /// Whether it goes on from the status that the object has now. What has the same version is
    /// the same, which saves comparing everything at each look.
    fn is_beyond(&self, release: &PromptRelease) -> bool {
        let version = &release.metadata.resource_version;
        self.uid == release.metadata.uid
            && ((version.is_some() && self.version == *version)
                || release.status.as_ref() == Some(&self.base))
    }
}

impl Budget {
    fn new(rate: f64) -> Self {
        Self { left: BURST, at: Instant::now(), rate }
    }

    fn refill(&mut self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate).min(BURST);
        self.at = now;
        self.left
    }

    fn take(&mut self, now: Instant) -> bool {
        let enough = self.refill(now) >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// No canary and no bake: nothing is counted.
fn is_at_rest(status: &PromptReleaseStatus) -> bool {
    status.canary.is_none() && status.previous.is_none()
}

/// Whether `base` was written for another object of the release's name. Until it is written anew,
/// nobody can tell it from a status that was restored a moment ago.
fn was_restored(base: &PromptReleaseStatus, status: &PromptReleaseStatus) -> bool {
    base.uid.is_some() && base.uid != status.uid
}

/// Whether `status` has counts of a gateway process that is gone, and `base` does not have them.
/// That process will not tell them again.
fn is_last_word(
    base: &PromptReleaseStatus,
    status: &PromptReleaseStatus,
    gateways: &[Gateway],
) -> bool {
    let is_seen = |instance: &str| gateways.iter().any(|g| g.instance.as_deref() == Some(instance));
    let of = |instance: &str| base.evidence.iter().find(|known| known.instance == instance);
    status.evidence.iter().any(|e| !is_seen(&e.instance) && of(&e.instance) != Some(e))
}

/// What of a status is decided: all but what only grows or passes, which are counts, what they
/// look like now, and time. Each field is named, so that a new one is one or the other.
fn decided(status: &PromptReleaseStatus) -> impl PartialEq + '_ {
    let PromptReleaseStatus {
        observed_generation,
        phase,
        stable,
        previous,
        canary,
        step,
        metrics,
        failed_revision,
        routing,
        analysis,
        evidence: _,
        earlier_steps,
        history,
        leader_term,
        // Whose it is does not change, or `was_restored`.
        written_for: _,
        uid: _,
        requests,
        conditions,
    } = status;
    // Messages tell counts; a reason that changes is a decision.
    let conditions: Vec<_> = conditions
        .iter()
        .map(|c| (&c.type_, &c.status, &c.reason, &c.observed_generation, &c.last_transition_time))
        .collect();
    let canary = canary.as_ref().map(decided_of_canary);
    let analysis: Vec<_> = analysis.iter().map(decided_of_metric).collect();
    let Routing { generation, variants, settings, observed_by: _ } = routing;
    let shown = (observed_generation, phase, step, metrics, leader_term, conditions);
    let known = (stable, previous, failed_revision, history, requests, earlier_steps);
    let routing = (generation, variants, settings);
    (shown, known, routing, canary, analysis)
}

fn decided_of_canary(canary: &CanaryStatus) -> impl PartialEq + '_ {
    let CanaryStatus {
        variant,
        policy,
        step,
        steps,
        weight,
        started_at,
        entered_at,
        confirmed_at,
        clock,
        warming,
        last_data_at: _,
        analysed_at: _,
        sampled_at,
        uncounted: _,
        remaining: _,
        extended,
        held,
        approvals,
        passed,
    } = canary;
    let JudgedTime { canary: _, step: _, quiet: _, until: _, stopped, stopped_since } = &**clock;
    let place = (variant, policy, step, steps, weight, started_at, entered_at, confirmed_at);
    (place, (warming, sampled_at, extended, held, approvals, passed, stopped, stopped_since))
}

fn decided_of_metric(metric: &MetricStatus) -> impl PartialEq + '_ {
    let MetricStatus {
        metric,
        unit,
        verdict,
        message: _,
        floor_on_both_sides,
        stable: _,
        canary: _,
        difference: _,
        interval: _,
        harm,
        accept,
        threshold,
        frozen,
        guard,
        chance: _,
        accepted_at: _,
        log_e: _,
        streak: _,
        looks,
        caller,
        batches: _,
        turn: _,
        in_step,
    } = metric;
    let in_step = in_step.map(|step| (step.wanted, step.closed, step.accepted));
    let margins = (harm, accept, threshold, frozen);
    (metric, unit, verdict, floor_on_both_sides, margins, guard, looks, caller, in_step)
}

#[cfg(test)]
mod tests {
    use kube::{ResourceExt, api::ObjectMeta};

    use super::*;
    use crate::api::GoDuration;
    use crate::api::prompt_release::{
        CanaryStatus, Counts, InstanceEvidence, Phase, Sample, Verdict,
    };

    fn release(name: &str, status: PromptReleaseStatus) -> PromptRelease {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some(format!("uid of {name}")),
            ..ObjectMeta::default()
        };
        PromptRelease { metadata, status: Some(status), ..PromptRelease::default() }
    }

    /// A running canary, of which `seen` requests are known.
    fn running(seen: u64) -> PromptReleaseStatus {
        let mut canary = CanaryStatus::default();
        canary.clock.step = GoDuration::from_secs(seen);
        let sample = Sample { count: seen as i64, value: 0.1 };
        let errors = MetricStatus {
            metric: "errors".into(),
            message: format!("{seen} seen"),
            canary: sample,
            log_e: seen as f64,
            ..MetricStatus::default()
        };
        PromptReleaseStatus {
            canary: Some(canary),
            analysis: vec![errors],
            evidence: vec![counted("a", seen)],
            ..PromptReleaseStatus::default()
        }
    }

    fn counted(instance: &str, requests: u64) -> InstanceEvidence {
        let canary = Counts { requests, ..Counts::default() }.into();
        InstanceEvidence { instance: instance.into(), canary, ..InstanceEvidence::default() }
    }

    fn seen(instances: &[&str]) -> Vec<Gateway> {
        let one = |i: &&str| Gateway { instance: Some((*i).to_owned()), ..Gateway::default() };
        instances.iter().map(one).collect()
    }

    impl Ahead {
        fn is_due(
            &self,
            release: &PromptRelease,
            status: &PromptReleaseStatus,
            effects: &[Effect],
            gateways: &[Gateway],
        ) -> bool {
            let due = self.due(release, status.clone(), effects, gateways);
            assert!(due.is_none() || due.as_ref() == Some(status));
            due.is_some()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_canaries_are_written_as_ever_and_of_many_so_many_a_second() {
        let ahead = Ahead::default();
        let one = release("one", running(0));
        for seen in 1..100 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(ahead.is_due(&one, &running(seen), &[], &[]));
        }
        let many: Vec<_> = (0..1000).map(|i| release(&format!("r{i}"), running(0))).collect();
        let (mut written, mut oldest) = (0, BTreeMap::new());
        for round in 1..=40 {
            for release in &many {
                if ahead.is_due(release, &running(round), &[], &seen(&["a"])) {
                    written += 1;
                    oldest.insert(release.name_any(), round);
                }
            }
            tokio::time::advance(Duration::from_secs(15)).await;
        }
        // 600 s: 20 at once, 3 a second, and each twice when it is too old.
        assert!((1_000..=3_820).contains(&written), "{written}");
        assert_eq!(oldest.len(), 1000, "nobody waits for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_decided_is_written_at_once_and_what_is_kept_goes_on() {
        let (ahead, there) = (Ahead::default(), seen(&["a"]));
        ahead.inner().canaries.left = 0.0;
        let mut object = release("one", running(1));
        object.metadata.resource_version = Some("7".to_owned());
        assert_eq!(ahead.status(&object), None);
        assert!(!ahead.is_due(&object, &running(2), &[], &there));
        assert_eq!(ahead.status(&object), Some(running(2)));
        // A person changes the spec: nothing is lost. Another status: that one counts.
        let mut edited = object.clone();
        edited.spec.suspend = true;
        edited.metadata.resource_version = Some("8".to_owned());
        assert_eq!(ahead.status(&edited), Some(running(2)));
        let mut written = release("one", running(3));
        written.metadata.resource_version = Some("9".to_owned());
        assert_eq!(ahead.status(&written), None);
        assert_eq!(ahead.status(&object), None, "and is not taken up again");

        let decided: [fn(&mut PromptReleaseStatus); 6] = [
            |status| status.analysis[0].looks.push(0.25),
            |status| status.analysis[0].verdict = Verdict::Pass,
            |status| status.analysis[0].threshold = Some(1.5),
            |status| status.routing.generation += 1,
            |status| status.canary.as_mut().unwrap().clock.stopped = Some("Suspended".into()),
            |status| status.canary.as_mut().unwrap().held = Some("NoData".into()),
        ];
        for decide in decided {
            let mut status = running(9);
            decide(&mut status);
            assert!(!ahead.is_due(&object, &running(8), &[], &there));
            assert!(ahead.is_due(&object, &status, &[], &there), "{status:?}");
            assert_eq!(ahead.status(&object), None);
        }
        let said = Effect::Announce { warning: false, reason: "A".into(), note: "b".into() };
        assert!(ahead.is_due(&object, &running(9), &[said], &there));
        assert!(
            ahead.is_due(&PromptRelease::default(), &running(9), &[], &there),
            "the first status"
        );
        // Of a release that was deleted and created again nothing is known.
        assert!(!ahead.is_due(&object, &running(8), &[], &there));
        let mut again = object.clone();
        again.metadata.uid = Some("another".into());
        assert_eq!(ahead.status(&again), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_ten_thousand_at_rest_so_many_a_second_tell_who_follows_and_all_do() {
        let ahead = Ahead::default();
        let followed = |by: &str| PromptReleaseStatus {
            routing: Routing { observed_by: by.into(), ..Routing::default() },
            ..PromptReleaseStatus::default()
        };
        let all: BTreeMap<Named, PromptRelease> = (0..10_000)
            .map(|i| release(&format!("r{i}"), followed("2/2")))
            .map(|release| (Named::of(&release), release))
            .collect();
        let is_written =
            |release: &PromptRelease| ahead.is_due(release, &followed("3/3"), &[], &[]);
        // There is one gateway more, and every release has to say so.
        assert_eq!(all.values().filter(|release| is_written(release)).count(), 20);
        assert_eq!(ahead.status(&all[&Named::of(&release("r7", running(0)))]), None, "as it is");
        let (mut told, mut seconds) = (20, 0);
        while told < all.len() {
            tokio::time::advance(Duration::from_secs(1)).await;
            let turns = ahead.turns();
            assert!((1..=20).contains(&turns.len()), "{} after {seconds} s", turns.len());
            told += turns.iter().filter(|turn| is_written(&all[turn])).count();
            seconds += 1;
        }
        assert_eq!(seconds, 998);
        assert_eq!(ahead.turns(), []);
        // What is decided does not wait, nor does a canary wait for them.
        let mut settled = followed("0/3");
        settled.phase = Phase::RolledBack;
        let mut of_others = followed("2/2");
        of_others.leader_term = Some(7);
        let one = release("one", followed("2/2"));
        ahead.inner().resting.left = 0.0;
        assert!(ahead.is_due(&one, &settled, &[], &[]));
        assert!(!ahead.is_due(&one, &of_others, &[], &[]), "another operator alone is no news");
        assert!(ahead.is_due(&release("two", running(0)), &running(1), &[], &[]));
        ahead.forget(&Named::of(&one));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ahead.turns(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_of_a_gateway_is_written_at_once_and_once() {
        let ahead = Ahead::default();
        ahead.inner().canaries.left = 0.0;
        let both = seen(&["a", "b"]);
        let with = |a: u64, b: u64| PromptReleaseStatus {
            evidence: vec![counted("a", a), counted("b", b)],
            ..running(9)
        };
        let object = release("one", with(1, 1));
        assert!(!ahead.is_due(&object, &with(2, 2), &[], &both));
        for others in [seen(&["a"]), seen(&["a", "c"]), seen(&[])] {
            assert!(ahead.is_due(&object, &with(2, 2), &[], &others), "{others:?}");
        }
        // One that came and went between two looks was never written.
        let mut came = with(1, 1);
        came.evidence.push(counted("c", 1));
        assert!(ahead.is_due(&object, &came, &[], &both));
        // What it has counted is written, and the other one goes on.
        let written = release("one", with(2, 2));
        assert!(!ahead.is_due(&written, &with(3, 2), &[], &seen(&["a"])));
    }
}
