//! The status under construction, and the moves that keep its invariants.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{columns, deleting, late, readiness, reasons, shown};
use crate::{
    api::{
        CanaryPolicySpec, GoDuration, PromptReleaseStatus,
        conditions::{self, Readiness},
        prompt_release::{
            CanaryStatus, HistoryEntry, JudgedTime, Outcome, Phase, RoutedVariant, Routing,
            RoutingSettings, VariantRef, VariantRole,
        },
        snapshot::Saved,
    },
    prompt::{REVISION_DIGITS, short},
    rollout::{
        judged_time, resolve,
        snapshot::{Effect, Plan, Snapshot, Target},
    },
};

/// History keeps this many entries.
pub(super) const HISTORY: usize = 20;

/// A gateway follows a change of routing within a second or two.
const STRAGGLES: Duration = Duration::from_secs(15);

/// An object that the spec names and that does not exist may be on its way for so long.
const MAY_BE_MISSING: Duration = Duration::from_secs(30);

/// That nobody decided is told from so long on.
const WORTH_TELLING: Duration = Duration::from_secs(60);

/// A plan in the making.
pub(super) struct Draft<'a> {
    pub snapshot: &'a Snapshot,
    pub now: Timestamp,
    pub status: PromptReleaseStatus,
    effects: Vec<Effect>,
    wake_at: Option<Timestamp>,
    condition: Option<(Readiness, &'static str, String)>,
    /// The canary's clock as of now. Kept when something else is decided or judged, too:
    /// a decision that changes nothing writes nothing.
    clock: JudgedTime,
}

impl<'a> Draft<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, now: Timestamp) -> Self {
        let mut status = snapshot.status.clone();
        status.observed_generation = snapshot.generation;
        let clock = JudgedTime::default();
        Self { snapshot, now, status, effects: vec![], wake_at: None, condition: None, clock }
    }

    /// Says how the release is, for the conditions.
    pub(super) fn say(&mut self, reason: &'static str, message: impl Into<String>) {
        self.condition = Some((readiness(self.status.phase), reason, message.into()));
    }

    /// As `say`, when the phase alone does not tell how ready the release is.
    pub(super) fn say_as(
        &mut self,
        as_: Readiness,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.condition = Some((as_, reason, message.into()));
    }

    /// Says what keeps the spec from being carried out. People and tools apply a release together
    /// with what it names, and often before it: for whoever waits by kstatus that is no failure yet.
    pub(super) fn say_problem(&mut self, reason: &'static str, message: impl Into<String>) {
        let until = self.missing_since(reason) + GoDuration(MAY_BE_MISSING).signed();
        if !resolve::is_missing(reason) || self.now >= until {
            return self.say_as(Readiness::Stalled, reason, message);
        }
        self.wake(until);
        self.say_as(Readiness::Missing, reason, message);
    }

    /// Since when what the spec names is missing, as far as the conditions tell.
    fn missing_since(&self, reason: &str) -> Timestamp {
        let known = conditions::find(&self.status.conditions, conditions::types::RECONCILING);
        let told = known.filter(|known| {
            known.reason == reason && known.observed_generation == self.snapshot.generation
        });
        match told {
            Some(told) if told.status == "True" => told.last_transition_time.0,
            Some(_) => Timestamp::MIN,
            None => self.now,
        }
    }

    /// Says whether the running policy can decide. A warning; told as an Event when it is new.
    pub(super) fn tell_decidable(&mut self, holds: bool, told: (&str, &str)) {
        self.warn(conditions::types::DECIDABLE, holds, told);
    }

    /// Says whether something that should hold does. A warning; told as an Event when it
    /// is new.
    pub(super) fn warn(&mut self, type_: &str, holds: bool, (reason, message): (&str, &str)) {
        let known = conditions::find(&self.status.conditions, type_);
        let new = known.is_none_or(|c| c.reason != reason);
        if new && !holds {
            self.announce(true, reason, message);
        }
        conditions::set_one(
            &mut self.status.conditions,
            type_,
            holds,
            (reason, message),
            self.snapshot.generation,
            self.now,
        );
    }

    /// What was said of that last.
    pub(super) fn decidable_reason(&self) -> Option<&str> {
        let known = conditions::find(&self.status.conditions, conditions::types::DECIDABLE);
        known.map(|condition| condition.reason.as_str())
    }

    pub(super) fn announce(&mut self, warning: bool, reason: &str, note: impl Into<String>) {
        self.effects.push(Effect::Announce {
            warning,
            reason: reason.to_owned(),
            note: note.into(),
        });
    }

    /// Decide again at `at`, or earlier.
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    pub(super) fn wake_now(&mut self) {
        self.wake(self.now);
    }

    pub(super) fn elapsed_since(&self, since: Timestamp) -> Duration {
        Duration::try_from(self.now.duration_since(since)).unwrap_or_default()
    }

    /// Moves the canary's clock on to now, and says when nobody had decided for long.
    pub(super) fn run_clock(&mut self, interval: GoDuration) {
        let Some(canary) = &mut self.status.canary else { return };
        if canary.clock.until.is_none() {
            // Written by a version without this clock, or by nobody.
            let until = canary.analysed_at.unwrap_or(canary.entered_at);
            let since = |start: Timestamp| {
                GoDuration(Duration::try_from(until.duration_since(start)).unwrap_or_default())
            };
            *canary.clock = JudgedTime {
                canary: since(canary.started_at),
                step: since(canary.entered_at),
                until: Some(until),
                ..JudgedTime::default()
            };
        }
        let (clock, missing) = judged_time::at(&canary.clock, self.now, interval.0);
        self.clock = clock;
        if let Some(missing) = missing.filter(|missing| *missing >= WORTH_TELLING) {
            *canary.clock = self.clock.clone();
            let missing = GoDuration::from_secs(missing.as_secs());
            let note = format!("nobody decided for {missing}: that time counts for no deadline");
            self.announce(false, reasons::OPERATOR_AWAY, note);
        }
    }

    /// The canary's clock as of now.
    pub(super) fn clock(&self) -> &JudgedTime {
        &self.clock
    }

    /// A limit that was not reached when the evidence was last judged, and is now.
    pub(super) fn reaches(
        &self,
        limit: Option<GoDuration>,
        of: fn(&JudgedTime) -> GoDuration,
    ) -> bool {
        let judged = self.status.canary.as_ref().map(|c| of(&c.clock)).unwrap_or_default();
        limit.is_some_and(|limit| judged < limit && of(&self.clock) >= limit)
    }

    /// Decides again when the running clock reaches `limit`.
    pub(super) fn wake_when(&mut self, limit: Option<GoDuration>, clock: GoDuration) {
        let left = limit.and_then(|limit| limit.0.checked_sub(clock.0));
        if let Some(left) = left.filter(|left| !left.is_zero())
            && self.clock.stopped.is_none()
        {
            self.wake(self.now + GoDuration(left).signed());
        }
    }

    /// Time counts for no deadline from now on, because of `why`; with none it does again.
    pub(super) fn stop_clock(&mut self, why: Option<&'static str>) {
        let changes = self.clock.stopped.as_deref() != why;
        judged_time::stop(&mut self.clock, why, self.now);
        if changes {
            self.keep_clock();
        }
    }

    /// Writes the clock into the status.
    pub(super) fn keep_clock(&mut self) {
        if let Some(canary) = &mut self.status.canary {
            *canary.clock = self.clock.clone();
        }
    }

    /// Evidence has grown.
    pub(super) fn note_data(&mut self) {
        self.clock.quiet = GoDuration::default();
    }

    /// A step begins, or the bake: no time counts until all gateways follow.
    pub(super) fn restart_clock(&mut self, stopped: &'static str) {
        judged_time::enter_step(&mut self.clock, self.now);
        self.clock.stopped_since = None;
        judged_time::stop(&mut self.clock, Some(stopped), self.now);
        self.keep_clock();
    }

    /// Notes how many gateways apply the current routing.
    pub(super) fn observe_gateways(&mut self) {
        if self.status.routing.generation == 0 {
            return;
        }
        let all = self.snapshot.gateways.len();
        self.status.routing.observed_by = format!("{}/{all}", self.applied());
    }

    fn applied(&self) -> usize {
        let generation = Some(self.status.routing.generation);
        self.snapshot
            .gateways
            .iter()
            .filter(|g| g.instance.is_some() && g.applied == generation)
            .count()
    }

    /// How many gateways apply the current routing, and why one of the others says nothing.
    pub(super) fn followed(&self) -> String {
        let Routing { observed_by, generation, .. } = &self.status.routing;
        let silent = self.snapshot.gateways.iter().find_map(|gateway| gateway.silent.as_ref());
        let silent = silent.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{observed_by} gateways apply routing generation {generation}{silent}")
    }

    /// Gateways that do not follow a rollback some time after it, so that some users still get what
    /// was taken back.
    fn told_of_stragglers(&self) -> String {
        let ended = self.status.history.last().map(|entry| self.elapsed_since(entry.at));
        let is_late = ended.is_some_and(|ended| ended >= STRAGGLES);
        if self.status.phase != Phase::RollingBack || !is_late || self.confirmed() {
            return String::new();
        }
        let silent = self.snapshot.gateways.iter().any(|gateway| gateway.silent.is_some());
        let others = if silent {
            "a gateway that does not answer can not be told. It sends all users to stable when it has \
             heard of no leader for --control-loss-seconds"
        } else {
            "the others are told to send all users to stable. Their /readyz?verbose (port admin) says \
             why they do not follow"
        };
        format!("; {}: {others}", self.followed())
    }

    /// Every gateway that should follow applies the current routing; false without any.
    pub(super) fn confirmed(&self) -> bool {
        !self.snapshot.gateways.is_empty() && self.applied() == self.snapshot.gateways.len()
    }

    /// Not one gateway answers: what it does is not known, nor what its users get.
    pub(super) fn nobody_tells(&self) -> bool {
        let gateways = &self.snapshot.gateways;
        !gateways.is_empty() && gateways.iter().all(|gateway| gateway.silent.is_some())
    }

    pub(super) fn control_loss(&self) -> bool {
        self.snapshot.gateways.iter().any(|g| g.control_loss)
    }

    /// Moves traffic to variants by their weights.
    pub(super) fn route(
        &mut self,
        variants: &[(&VariantRef, VariantRole, i32)],
        settings: RoutingSettings,
    ) {
        let routed = |(variant, role, weight): &(&VariantRef, VariantRole, i32)| RoutedVariant {
            revision: variant.revision.clone(),
            role: *role,
            weight: *weight,
            copies: None,
        };
        self.set_routing(variants.iter().map(routed).collect(), settings);
    }

    /// All users to stable, and copies of `percent` of their requests to the shadow.
    pub(super) fn route_shadow(
        &mut self,
        stable: &VariantRef,
        shadow: &VariantRef,
        percent: i32,
        settings: RoutingSettings,
    ) {
        let routed = |variant: &VariantRef, role, weight, copies| RoutedVariant {
            revision: variant.revision.clone(),
            role,
            weight,
            copies,
        };
        let variants = vec![
            routed(stable, VariantRole::Stable, 100, None),
            routed(shadow, VariantRole::Shadow, 0, Some(percent)),
        ];
        self.set_routing(variants, settings);
    }

    /// The one place that changes the routing.
    fn set_routing(&mut self, variants: Vec<RoutedVariant>, settings: RoutingSettings) {
        let generation = self.status.routing.generation.max(self.snapshot.noted) + 1;
        self.status.routing = Routing {
            generation,
            variants,
            settings,
            observed_by: format!("0/{}", self.snapshot.gateways.len()),
        };
        self.status.evidence.clear();
    }

    /// All traffic to the stable variant.
    pub(super) fn route_stable_only(&mut self) {
        if let Some(stable) = self.status.stable.clone() {
            let settings = self.status.routing.settings.clone();
            self.route(&[(&stable, VariantRole::Stable, 100)], settings);
        }
    }

    pub(super) fn save_target(&mut self, target: &Target) {
        self.effects.push(Effect::Save {
            name: target.revision.clone(),
            content: Box::new(Saved::Variant(target.variant.clone())),
        });
    }

    /// Keeps the policy and returns its digest.
    pub(super) fn save_policy(&mut self, policy: &CanaryPolicySpec) -> String {
        let name = policy_digest(policy);
        self.effects.push(Effect::Save {
            name: name.clone(),
            content: Box::new(Saved::Policy(policy.clone())),
        });
        name
    }

    /// A line more in the history. The caller fills in who asked, and what was shown.
    pub(super) fn remember(
        &mut self,
        variant: VariantRef,
        outcome: Outcome,
        reason: &str,
        message: &str,
    ) -> &mut HistoryEntry {
        let history = &mut self.status.history;
        if history.len() >= HISTORY {
            history.drain(..=history.len() - HISTORY);
        }
        history.push(HistoryEntry {
            variant,
            outcome,
            reason: reason.to_owned(),
            message: message.to_owned(),
            at: self.now,
            requests: vec![],
            evidence: vec![],
        });
        let last = history.len() - 1;
        &mut history[last]
    }

    /// What the canary's steps have shown, with the one that it is in.
    pub(super) fn shown(&self, canary: &CanaryStatus) -> Vec<String> {
        let now = shown::in_a_line(canary, &self.status.analysis);
        canary.passed.iter().cloned().chain(now).collect()
    }

    /// Takes the canary out of routing and records how it ended.
    ///
    /// `retry` says whether the same revision may be tried again without a request.
    pub(super) fn withdraw(
        &mut self,
        outcome: Outcome,
        reason: &'static str,
        message: &str,
        retry: bool,
    ) {
        let Some(canary) = self.status.canary.take() else { return };
        let shown = self.shown(&canary);
        self.status.earlier_steps.clear();
        if let Some(previous) = self.status.previous.take() {
            self.status.stable = Some(previous);
        }
        if !retry {
            self.status.failed_revision = Some(canary.variant.revision.clone());
        }
        let entry = self.remember(canary.variant.clone(), outcome, reason, message);
        (entry.requests, entry.evidence) = (canary.approvals, shown);
        self.route_stable_only();
        self.status.phase = if retry { Phase::Stable } else { Phase::RollingBack };
        let note = format!("{} left routing: {message}", short(&canary.variant.revision));
        self.announce(!retry, reason, note);
        self.say(reason, message);
        self.prune();
        self.wake_now();
    }

    /// Drops saved copies that nothing refers to any more.
    pub(super) fn prune(&mut self) {
        let status = &self.status;
        let refs =
            [&status.stable, &status.previous].into_iter().flatten().map(|v| v.revision.clone());
        let running =
            status.canary.iter().flat_map(|c| [c.variant.revision.clone(), c.policy.clone()]);
        self.effects.push(Effect::Prune { keep: refs.chain(running).collect() });
    }

    /// Forgets the canary or the bake, and what was found of it. Routing stays as it is.
    pub(super) fn drop_canary(&mut self) {
        (self.status.canary, self.status.previous) = (None, None);
        self.status.analysis.clear();
        self.status.earlier_steps.clear();
    }

    /// Serves nothing any more. What it served before is remembered: it serves again when
    /// it has the route.
    pub(super) fn leave_route(&mut self) {
        if !self.status.routing.variants.is_empty() {
            self.route(&[], RoutingSettings::default());
        }
        if let Some(previous) = self.status.previous.take() {
            self.status.stable = Some(previous);
        }
        self.drop_canary();
    }

    /// Of two releases of one route one is not accepted.
    pub(super) fn refuse_route(&mut self, holder: &str) {
        self.leave_route();
        self.status.phase = Phase::Pending;
        let message = format!(
            "the route is held by the PromptRelease {holder}: choose another route, or delete one of them"
        );
        self.say_as(Readiness::Stalled, reasons::ROUTE_TAKEN, message);
    }

    pub(super) fn finish(mut self) -> Plan {
        if let Some((readiness, reason, mut message)) = self.condition.take() {
            message.push_str(&late::told(&self));
            message.push_str(&self.told_of_stragglers());
            message.push_str(&deleting::told(&self));
            let generation = self.snapshot.generation;
            let conditions = &mut self.status.conditions;
            conditions::set(conditions, readiness, reason, &message, generation, self.now);
        }
        columns::fill_in(&mut self.status);
        Plan { status: self.status, effects: self.effects, wake_at: self.wake_at }
    }
}

/// The name under which a policy is kept: 40 hex digits of its content's SHA-256.
pub fn policy_digest(policy: &CanaryPolicySpec) -> String {
    let text = serde_json::to_vec(policy).unwrap_or_default();
    Sha256::digest(&text).iter().take(REVISION_DIGITS / 2).map(|b| format!("{b:02x}")).collect()
}

/// The reference to a target.
pub(super) fn reference(target: &Target) -> VariantRef {
    VariantRef {
        revision: target.revision.clone(),
        prompt: target.variant.prompt_name.clone(),
        backend: target.variant.backend_name.clone(),
    }
}
