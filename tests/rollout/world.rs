//! A world around `decide`: gateways that count, users that come, a clock that is a number.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serinus::{
    analysis::buckets,
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptReleaseSpec, PromptReleaseStatus,
        PromptVersionSpec, Variant,
        prompt_release::{
            Counts, PairTable, Paired, Phase, RoutedVariant, Sums, VariantRef, VariantRole,
        },
        snapshot::{EarlierRoute, Remembered, Saved},
    },
    rollout::{
        Deleting, Effect, Gateway, LostSnapshot, Plan, Problem, Request, ServedBefore, Snapshot,
        Target, WithoutData, decide,
        first::{Late, Object, late},
        invariants,
        snapshot::Action,
        stale::{self, serves_what_failed},
    },
};

const RELEASE: &str = "default/answers";
const ROUTE: &str = "answers";

/// How a variant behaves, as shares and means.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Behaviour {
    pub errors: f64,
    pub check_failures: f64,
    pub slow: f64,
    pub cost: f64,
    pub score: f64,
    /// Records get lost, as when a crash takes them along.
    pub lost: f64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { errors: 0.01, check_failures: 0.01, slow: 0.05, cost: 0.01, score: 0.9, lost: 0.0 }
    }
}

pub struct World {
    pub now: Timestamp,
    pub generation: i64,
    pub spec: PromptReleaseSpec,
    pub status: PromptReleaseStatus,
    pub policy: CanaryPolicySpec,
    pub undecidable: Option<String>,
    pub without_data: Vec<WithoutData>,
    /// No operator decides.
    pub down: bool,
    /// Somebody deletes the copies of policies.
    pub policies_lost: bool,
    /// Snapshots that somebody has deleted, by revision, and why they can not be made again.
    pub lost: BTreeMap<String, String>,
    pub annotations: Vec<Request>,
    pub behaviours: HashMap<String, Behaviour>,
    pub missing: Vec<String>,
    pub not_ready: BTreeMap<String, String>,
    pub route_held_by: Option<String>,
    pub remembered: Option<Box<Remembered>>,
    pub copied: Option<Box<Remembered>>,
    pub served_before: Option<ServedBefore>,
    pub deleting: Option<Deleting>,
    /// What is remembered of the release before its last restore, with the content of what it names.
    of_before: Option<(Remembered, HashMap<String, Saved>)>,
    /// When the object was created.
    created: Timestamp,
    /// Its uid.
    uid: String,
    /// So many objects of its name there were before.
    objects: usize,
    /// A status in a backup, with the copies of that time.
    backup: Option<(PromptReleaseStatus, HashMap<String, Saved>)>,
    /// That note was restored.
    is_restored: bool,
    pub requests_per_minute: f64,
    pub gateways: Vec<SimulatedGateway>,
    /// What processes had counted that were restarted.
    departed: Vec<Gateway>,
    saved: HashMap<String, Saved>,
    /// How far each counter is, so that shares need no random numbers.
    carry: HashMap<(String, &'static str), f64>,
}

#[derive(Clone)]
pub struct SimulatedGateway {
    pub instance: String,
    pub applied: Option<i64>,
    pub stuck: bool,
    pub silent: bool,
    pub control_loss: bool,
    pub unbuilt: BTreeMap<String, String>,
    failing: Vec<String>,
    counts: BTreeMap<String, Arc<Counts>>,
}

/// A revision is as long as a real one and starts with the variant's name.
pub fn revision(name: &str) -> String {
    format!("{name:0<10}").chars().take(10).collect()
}

impl World {
    pub fn new(policy: CanaryPolicySpec, gateways: usize, requests_per_minute: f64) -> Self {
        let gateway = |i| SimulatedGateway {
            instance: format!("gateway-{i}"),
            applied: None,
            stuck: false,
            silent: false,
            control_loss: false,
            unbuilt: BTreeMap::new(),
            failing: vec![],
            counts: BTreeMap::new(),
        };
        Self {
            now: Timestamp::UNIX_EPOCH,
            generation: 1,
            spec: PromptReleaseSpec {
                prompt_ref: "a".into(),
                backend_ref: "model".into(),
                ..PromptReleaseSpec::default()
            },
            status: PromptReleaseStatus::default(),
            undecidable: None,
            without_data: vec![],
            down: false,
            policies_lost: false,
            lost: BTreeMap::new(),
            policy,
            annotations: vec![],
            behaviours: HashMap::new(),
            missing: vec![],
            not_ready: BTreeMap::new(),
            route_held_by: None,
            remembered: None,
            copied: None,
            served_before: None,
            deleting: None,
            of_before: None,
            created: Timestamp::UNIX_EPOCH,
            uid: "object 0".into(),
            objects: 0,
            backup: None,
            is_restored: false,
            requests_per_minute,
            gateways: (0..gateways).map(gateway).collect(),
            departed: vec![],
            saved: HashMap::new(),
            carry: HashMap::new(),
        }
    }

    pub fn release(&mut self, name: &str) {
        self.spec.prompt_ref = name.into();
        self.generation += 1;
    }

    pub fn request(&mut self, action: Action, name: &str, by: &str) {
        let value = format!("{} by={by} at={}", revision(name), self.now);
        self.annotate(action, value);
    }

    pub fn annotate(&mut self, action: Action, value: String) {
        self.annotations.retain(|r| r.action != action);
        self.annotations.push(Request { action, value });
    }

    pub fn restart_gateway(&mut self, index: usize) {
        if let Some(gateway) = self.gateways.get_mut(index) {
            let counted = SimulatedGateway { silent: false, ..gateway.clone() }.view();
            self.departed.push(Gateway { control_loss: false, ..counted });
            gateway.instance.push('\'');
            gateway.applied = None;
            gateway.counts.clear();
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let name = &self.spec.prompt_ref.name;
        let target = if self.missing.contains(name) {
            Err(Problem {
                reason: "PromptNotFound",
                message: format!(
                    "PromptVersion {name} does not exist: create it, or change spec.promptRef"
                ),
            })
        } else {
            Ok(Target {
                revision: revision(name),
                variant: Variant {
                    prompt_name: name.clone(),
                    prompt: PromptVersionSpec::default(),
                    backend_name: "model".into(),
                    backend: LLMDeploymentSpec::default(),
                },
            })
        };
        let running = self.status.canary.as_ref().and_then(|c| self.saved.get(&c.policy));
        Snapshot {
            release: RELEASE.into(),
            generation: self.generation,
            spec: self.spec.clone(),
            status: self.status.clone(),
            requests: self.annotations.clone(),
            target,
            undecidable: self.undecidable.clone(),
            without_data: self.without_data.clone(),
            policy: Ok(self.policy.clone()),
            running_policy: running.filter(|_| !self.policies_lost).and_then(|saved| match saved {
                Saved::Policy(policy) => Some(Arc::new(policy.clone())),
                Saved::Variant(_) => None,
            }),
            route_held_by: self.route_held_by.clone(),
            remembered: self.known_before(),
            copied: self.copied.clone(),
            beside: self.beside(),
            awaited: None,
            noted: self.noted(),
            served_before: self.elsewhere(),
            lost: self.lost(),
            not_ready: self.not_ready.clone(),
            gateways: self.gateways.iter().map(SimulatedGateway::view).collect(),
            departed: self.departed.clone(),
            external: Default::default(),
            deleting: self.deleting.clone(),
        }
    }

    fn noted(&self) -> i64 {
        let notes = self.notes().into_iter().filter(|note| note.route == ROUTE);
        notes.map(|note| note.generation).max().unwrap_or_default()
    }

    /// Revisions that are kept without a note.
    fn beside(&self) -> Vec<String> {
        if self.status.stable.is_some() || self.copied.is_some() || !self.notes().is_empty() {
            return vec![];
        }
        let is_variant = |saved: &Saved| matches!(saved, Saved::Variant(_));
        let has_policy = self.saved.values().any(|saved| !is_variant(saved));
        let variants = self.saved.iter().filter(|(_, saved)| is_variant(saved));
        let named = revision(&self.spec.prompt_ref.name);
        let others = variants.map(|(revision, _)| revision);
        let mut beside: Vec<_> =
            others.filter(|revision| has_policy || **revision != named).cloned().collect();
        beside.sort();
        beside
    }

    /// The note that somebody has restored.
    fn came(&self) -> Option<&Remembered> {
        self.of_before.as_ref().filter(|_| self.is_restored).map(|(note, _)| note)
    }

    fn object(&self) -> Object<'_> {
        Object { uid: Some(&self.uid), created: self.created }
    }

    /// All notes that there are, with the bakes that can be gone back from.
    fn notes(&self) -> Vec<Remembered> {
        let is_kept = |previous: &VariantRef| self.saved.contains_key(&previous.revision);
        let kept = |note: &Remembered| Remembered {
            previous: note.previous.clone().filter(is_kept),
            ..note.clone()
        };
        self.came().into_iter().chain(self.remembered.as_deref()).map(kept).collect()
    }

    /// The note, when it knows more than a status that was restored.
    fn later(&self) -> Option<Remembered> {
        stale::later(&self.notes(), self.object(), &self.status, ROUTE, self.now)
    }

    /// What is noted of the status, as `controllers::release::keep` does.
    fn note(&self) -> Option<Remembered> {
        // Less than what is known is not noted.
        if self.later().is_some() || self.late().is_some_and(|late| late.in_time) {
            return self.remembered.as_deref().cloned();
        }
        let mut note = Remembered::of(ROUTE.into(), Timestamp::UNIX_EPOCH, &self.status)?;
        note.uid = Some(self.uid.clone());
        note.noted_at = Some(self.now);
        let notes = self.notes();
        if let Some(known) = Remembered::last(&notes, |note| note) {
            note.noted_at = Some(self.now.max(known.told_at()));
            let next = i64::from(known.stable != note.stable || known.route != note.route);
            let highest = notes.iter().map(|note| note.generation).max().unwrap_or_default();
            let highest = highest + i64::from(highest > known.generation);
            note.generation = note.generation.max(highest.max(known.generation + next));
        }
        let noted = self.status.routing.generation;
        note.status_generation = (note.generation > noted).then_some(noted);
        Some(note)
    }

    fn late(&self) -> Option<Late> {
        late(&self.notes(), self.object(), &self.status, ROUTE, self.now)
    }

    /// What the release goes on from: a note while there is no status, or one that came late.
    fn known_before(&self) -> Option<Box<Remembered>> {
        let note = match stale::is_whole(&self.status) && self.status.stable.is_some() {
            false => {
                let last = stale::last_known(self.notes(), |note| note, self.now);
                last.filter(|note| !serves_what_failed(note, &self.status))
            }
            true => match self.late() {
                Some(late) => late.in_time.then_some(late.note),
                None => self.later(),
            },
        };
        note.filter(|note| note.route == ROUTE).map(Box::new)
    }

    /// What users of the route had before, and the release does not go on from: of another
    /// release while this one does not serve it, or what became known too late.
    fn elsewhere(&self) -> Option<ServedBefore> {
        let routes = self.status.routes();
        let other = self.served_before.clone().filter(|_| !routes);
        let late =
            self.late().filter(|late| if late.in_time { late.note.route != ROUTE } else { routes });
        let told = || {
            let notes = self.notes();
            let told = stale::told(&notes, self.object(), &self.status, ROUTE);
            told.filter(|_| routes && self.late().is_none() && self.later().is_none()).cloned()
        };
        let late = late.map(|late| (late.note, !late.in_time));
        let own = |(note, too_late): (Remembered, bool)| {
            let last = note.on_route(ROUTE)?;
            Some(ServedBefore {
                release: RELEASE.into(),
                revision: last.revision,
                failed: last.failed,
                since: last.until,
                forget: None,
                too_late,
            })
        };
        other.or_else(|| late.or_else(|| Some((told()?, true))).and_then(own))
    }

    /// What serves or runs and has no snapshot any more.
    fn lost(&self) -> Vec<LostSnapshot> {
        let status = &self.status;
        let canary = status.canary.iter().map(|canary| &canary.variant);
        let all = status.stable.iter().chain(&status.previous).chain(canary);
        let lost = |variant: &VariantRef| {
            let why = self.lost.get(&variant.revision)?.clone();
            let name = format!("answers-{}", variant.revision);
            Some(LostSnapshot { name, variant: variant.clone(), unread: false, why })
        };
        all.filter_map(lost).collect()
    }

    /// One decision, carried out. Panics when it breaks an invariant.
    pub fn decide(&mut self) -> Plan {
        let snapshot = self.snapshot();
        let plan = decide(&snapshot, self.now);
        let broken = invariants::broken(&snapshot, &plan);
        assert!(broken.is_empty(), "{broken:?}\nbefore {snapshot:#?}\nafter {plan:#?}");
        for effect in &plan.effects {
            match effect {
                Effect::Save { name, content } => {
                    self.saved.insert(name.clone(), (**content).clone());
                }
                Effect::Prune { keep } => {
                    self.saved.retain(|name, _| keep.contains(name));
                    // The note goes with its snapshot.
                    let is_gone = |(note, _): &mut (Remembered, HashMap<String, Saved>)| {
                        self.is_restored && !keep.contains(&note.stable.revision)
                    };
                    drop(self.of_before.take_if(is_gone));
                }
                Effect::Announce { .. } => {}
            }
        }
        self.status = plan.status.clone();
        self.status.uid = Some(self.uid.clone());
        self.remembered = self.note().map(Box::new);
        self.check_saved();
        plan
    }

    /// Somebody deletes the release, and a finalizer holds the object.
    pub fn delete(&mut self) {
        let finalizers = vec!["example.com/hold".to_owned()];
        self.deleting.get_or_insert(Deleting { since: self.now, finalizers });
    }

    /// Somebody takes a part of the status away, or puts in an entry of what failed.
    pub fn take_away(&mut self, part: u8) {
        let failed = self.status.failed_revision.clone();
        let routed = &mut self.status.routing.variants;
        match part % 8 {
            0 => routed.clear(),
            1 => self.status.canary = None,
            2 => self.status.previous = None,
            3 => self.status.stable = None,
            4 => drop(routed.pop()),
            5 => drop(routed.drain(..routed.len().min(1))),
            other => {
                let Some(first) = routed.first_mut() else { return };
                let half = first.weight / 2;
                first.weight -= half;
                routed.push(RoutedVariant {
                    revision: failed.unwrap_or_else(|| "f".repeat(40)),
                    role: if other == 6 { VariantRole::Canary } else { VariantRole::Stable },
                    weight: half,
                    copies: None,
                });
            }
        }
    }

    /// The object was deleted and created again, or restored without its status.
    pub fn lose_status(&mut self) {
        self.status = PromptReleaseStatus::default();
        self.deleting = None;
        self.generation = 1;
        self.created = self.now;
        self.objects += 1;
        self.uid = format!("object {}", self.objects);
    }

    /// Somebody removes the note, or writes something else in its place.
    pub fn lose_note(&mut self) {
        (self.remembered, self.of_before) = (None, None);
    }

    /// Somebody takes a backup of the status.
    pub fn keep_status(&mut self) {
        self.backup = Some((self.status.clone(), self.saved.clone()));
    }

    /// The object is created again, with the status of the backup.
    pub fn restore_status(&mut self) {
        let Some((status, saved)) = self.backup.clone() else { return };
        self.lose_status();
        self.status = status;
        for (name, content) in saved {
            self.saved.entry(name).or_insert(content);
        }
    }

    /// The same object gets the status of the backup.
    pub fn put_status_back(&mut self) {
        let Some((status, saved)) = self.backup.clone() else { return };
        self.status = status;
        for (name, content) in saved {
            self.saved.entry(name).or_insert(content);
        }
    }

    /// A ReleaseSnapshot of another object of the release's name appears, with a note of many
    /// changes of routing: of an earlier life of the name, or of another cluster.
    pub fn restore_of_another(&mut self, stable: &str, failed: Option<&str>) {
        let reference = |name: &str| VariantRef {
            revision: revision(name),
            prompt: name.into(),
            backend: "model".into(),
        };
        let mut status = PromptReleaseStatus {
            stable: Some(reference(stable)),
            failed_revision: failed.map(revision),
            ..PromptReleaseStatus::default()
        };
        status.routing.generation = 50_000;
        let note = Remembered::of(ROUTE.into(), Timestamp::UNIX_EPOCH, &status);
        let uid = Some("of another cluster".into());
        let content = [(revision(stable), Saved::Variant(Variant::default()))].into();
        self.of_before = note.map(|note| (Remembered { uid, ..note }, content));
        self.restore_snapshots();
    }

    /// Everything is lost, and the release alone is restored.
    pub fn restore_release(&mut self) {
        if let Some(note) = self.remembered.take() {
            let named = [Some(&note.stable), note.previous.as_ref()].into_iter().flatten();
            let content = named.filter_map(|variant| self.saved.remove_entry(&variant.revision));
            self.of_before = Some((*note.clone(), content.collect()));
        }
        self.is_restored = false;
        self.saved.clear();
        self.lose_status();
    }

    /// The snapshots come later, with the note.
    pub fn restore_snapshots(&mut self) {
        let Some((_, content)) = &self.of_before else { return };
        for (name, content) in content {
            self.saved.entry(name.clone()).or_insert_with(|| content.clone());
        }
        self.is_restored = true;
    }

    /// Before its last restore the release had this route, and then another one.
    pub fn had_another_route(&mut self) {
        let Some((note, _)) = self.of_before.as_mut().filter(|(note, _)| note.route == ROUTE)
        else {
            return;
        };
        let earlier = EarlierRoute {
            route: std::mem::replace(&mut note.route, "elsewhere".into()),
            revision: note.stable.revision.clone(),
            failed: note.failed.clone(),
            until: self.now,
        };
        note.earlier = vec![earlier];
    }

    /// Everything that serves can be served from saved copies alone.
    fn check_saved(&self) {
        for variant in &self.status.routing.variants {
            assert!(
                self.saved.contains_key(&variant.revision),
                "{} is not saved",
                variant.revision
            );
        }
        // A bake whose record somebody took away is held: what judged it is not known.
        if let Some(canary) = self.status.canary.as_ref().filter(|c| !c.policy.is_empty()) {
            assert!(self.saved.contains_key(&canary.policy), "the running policy is not saved");
        }
    }

    /// Lets time pass with traffic on the routing that gateways apply.
    pub fn pass(&mut self, time: SignedDuration) {
        self.now += time;
        let generation = self.status.routing.generation;
        for gateway in self.gateways.iter_mut().filter(|g| !g.stuck) {
            if gateway.applied != Some(generation) {
                gateway.applied = Some(generation);
                gateway.counts.clear();
            }
        }
        let requests = self.requests_per_minute * time.as_secs_f64() / 60.0;
        let share = requests / self.gateways.len().max(1) as f64;
        let variants = self.status.routing.variants.clone();
        for i in 0..self.gateways.len() {
            if self.gateways[i].applied != Some(generation) || self.gateways[i].control_loss {
                continue;
            }
            // A canary and both variants of a bake have breakers.
            let bakes = variants.iter().any(|v| v.role == VariantRole::Previous);
            let guarded = variants.iter().filter(|v| bakes || v.role != VariantRole::Stable);
            let revisions = guarded.map(|v| &v.revision);
            let is_failing = |r: &&String| self.behaviours.get(*r).is_some_and(|b| b.errors > 0.9);
            self.gateways[i].failing = revisions.filter(is_failing).cloned().collect();
            for variant in &variants {
                let revision = &variant.revision;
                let percent = variant.copies.unwrap_or(variant.weight);
                let fresh = self.traffic(revision, share * f64::from(percent) / 100.0);
                let counts = self.gateways[i].counts.entry(revision.clone()).or_default();
                let counts = Arc::make_mut(counts);
                fresh.add_to(counts);
                if variant.copies.is_some() {
                    let stable = self.behaviours.get(&variants[0].revision).copied();
                    fresh.pair_with(
                        &stable.unwrap_or_default(),
                        counts.paired.get_or_insert_default(),
                    );
                }
            }
        }
    }

    fn traffic(&mut self, revision: &str, requests: f64) -> Traffic {
        let b = self.behaviours.get(revision).copied().unwrap_or_default();
        let mut take = |what: &'static str, amount: f64| {
            let carry = self.carry.entry((revision.to_owned(), what)).or_default();
            *carry += amount;
            let whole = carry.floor();
            *carry -= whole;
            whole as u64
        };
        let n = take("n", requests * (1.0 - b.lost));
        Traffic {
            n,
            errors: take("errors", n as f64 * b.errors).min(n),
            failures: take("checks", n as f64 * b.check_failures).min(n),
            slow: take("slow", n as f64 * b.slow).min(n),
            good: take("score", n as f64 * b.score).min(n),
            cost: b.cost,
        }
    }

    pub fn phase(&self) -> Phase {
        self.status.phase
    }
}

struct Traffic {
    n: u64,
    errors: u64,
    failures: u64,
    slow: u64,
    good: u64,
    cost: f64,
}

impl Traffic {
    fn add_to(&self, counts: &mut Counts) {
        let ok = self.n - self.errors;
        counts.assigned += self.n;
        counts.requests += self.n;
        counts.errors += self.errors;
        counts.checked += ok;
        counts.check_failures += self.failures.min(ok);
        let slow = self.slow.min(ok);
        for histogram in [&mut counts.ttft, &mut counts.duration] {
            *histogram.entry(buckets::index(0.2)).or_default() += ok - slow;
            *histogram.entry(buckets::index(1.0)).or_default() += slow;
        }
        add(&mut counts.cost, ok, ok as f64 * self.cost, ok as f64 * self.cost * self.cost * 1.04);
        let good = self.good.min(ok) as f64;
        add(counts.scores.entry("helpfulness".into()).or_default(), ok, good, good);
    }
}

impl Traffic {
    /// As if stable had been asked the same: as bad as ever, and bad on other requests
    /// than the canary as far as that is possible.
    fn pair_with(&self, stable: &Behaviour, paired: &mut Paired) {
        let table = |of: u64, canary: u64, share: f64, table: &mut PairTable| {
            let bad = (of as f64 * share).round() as u64;
            let both = (canary + bad).saturating_sub(of);
            table.both += both;
            table.canary_only += canary - both;
            table.stable_only += bad - both;
            table.neither += of - (canary + bad - both);
        };
        table(self.n, self.errors, stable.errors, &mut paired.errors);
        let answered = self.n - self.errors;
        let failures = self.failures.min(answered);
        table(answered, failures, stable.check_failures, &mut paired.checks);
        let (n, d) = (answered as f64, self.cost - stable.cost);
        // Costs vary from request to request by a fifth of stable's.
        let noise = n * 0.04 * stable.cost * stable.cost;
        add(&mut paired.cost, answered, n * d, n * d * d + noise);
        add(
            &mut paired.stable_cost,
            answered,
            n * stable.cost,
            n * stable.cost * stable.cost + noise,
        );
        let score = paired.scores.entry("helpfulness".into()).or_default();
        let d = self.good.min(answered) as f64 - n * stable.score;
        add(score, answered, d, n * 0.1);
        paired.spent_usd += n * self.cost;
    }
}

fn add(sums: &mut Sums, n: u64, sum: f64, squares: f64) {
    sums.count += n;
    sums.sum += sum;
    sums.squares += squares;
}

impl SimulatedGateway {
    fn view(&self) -> Gateway {
        if self.silent {
            let silent = Some(format!("{}: it does not answer", self.instance));
            return Gateway { silent, ..Gateway::default() };
        }
        Gateway {
            instance: Some(self.instance.clone()),
            silent: None,
            applied: self.applied,
            control_loss: self.control_loss,
            failing: self.failing.clone(),
            unbuilt: self.unbuilt.clone(),
            counts: self.counts.clone(),
        }
    }
}
