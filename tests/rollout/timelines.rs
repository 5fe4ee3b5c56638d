//! Scenarios as files: `tests/timelines/NAME.yaml` goes in, `NAME.txt` must come out.
//! A new case is a new pair of files; `make generate` writes the second.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serinus::{
    analysis::plan::undecidable,
    api::{CanaryPolicySpec, GoDuration, conditions},
    rollout::{Effect, Plan, WithoutData, snapshot::Action},
};

use super::world::{Behaviour, World, revision};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scenario {
    about: String,
    policy: CanaryPolicySpec,
    /// Ask whether the policy can decide, as its controller does.
    #[serde(default)]
    planned: bool,
    #[serde(default = "two")]
    gateways: usize,
    requests_per_minute: f64,
    until: GoDuration,
    events: Vec<Event>,
}

fn two() -> usize {
    2
}

/// What happens in the world at a moment. Every field is one change.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Event {
    at: GoDuration,
    /// The spec names this prompt now.
    release: Option<String>,
    /// Variants behave like this from now on.
    behave: BTreeMap<String, Behaviour>,
    /// Somebody asks: action and the variant that it is about.
    request: BTreeMap<String, String>,
    /// As `request`, with the annotation's value as it is written.
    annotate: BTreeMap<String, String>,
    suspend: Option<bool>,
    /// The object is deleted and created again.
    recreated: bool,
    /// Somebody removes the note of what served.
    note_lost: bool,
    /// Somebody takes a backup of the status.
    status_kept: bool,
    /// The object is created again, with the status of that backup.
    status_restored: bool,
    /// The same object gets the status of that backup.
    status_put_back: bool,
    /// Somebody takes a part of the status away: routing, canary, previous or stable.
    taken_away: Option<String>,
    /// A ReleaseSnapshot of another object of the release's name appears: in it this variant is
    /// stable.
    of_another_object: Option<String>,
    /// Everything is lost, and the release alone is restored.
    release_restored: bool,
    /// The ReleaseSnapshots come later.
    snapshots_restored: bool,
    /// Before it was restored, the release had this route, and then another one.
    had_another_route: bool,
    /// Somebody deletes the release, and a finalizer holds it.
    deleted: bool,
    /// No operator decides.
    operator_down: Option<bool>,
    /// Somebody deletes the saved copies of policies.
    policies_lost: Option<bool>,
    /// Somebody deletes the snapshots of these variants and what they were made of; the text
    /// says why they can not be made again.
    snapshots_lost: BTreeMap<String, String>,
    /// Somebody puts these back.
    snapshots_back: Vec<String>,
    /// Metrics that can never have data, and why.
    without_data: Option<BTreeMap<String, String>>,
    policy: Option<CanaryPolicySpec>,
    delete_prompt: Option<String>,
    /// The first gateway does not take new routing.
    stuck: Option<bool>,
    silent: Option<bool>,
    all_silent: Option<bool>,
    control_loss: Option<bool>,
    restart_gateway: Option<usize>,
    requests_per_minute: Option<f64>,
    not_ready: BTreeMap<String, String>,
    ready: Vec<String>,
}

fn apply(event: &Event, world: &mut World) {
    if let Some(name) = &event.release {
        world.release(name);
    }
    for (name, behaviour) in &event.behave {
        world.behaviours.insert(revision(name), *behaviour);
    }
    let action_of =
        |word: &str| Action::ALL.into_iter().find(|a| a.as_str() == word).expect("a known action");
    for (action, name) in &event.request {
        world.request(action_of(action), name, "alice");
    }
    for (action, value) in &event.annotate {
        world.annotate(action_of(action), value.clone());
    }
    if event.note_lost {
        world.lose_note();
    }
    if event.recreated {
        world.lose_status();
    }
    if event.status_kept {
        world.keep_status();
    }
    if event.status_restored {
        world.restore_status();
    }
    if let Some(part) = &event.taken_away {
        let parts = [
            "routing",
            "canary",
            "previous",
            "stable",
            "the last in routing",
            "the first in routing",
        ];
        let part = parts.iter().position(|known| known == part).expect("a part of the status");
        world.take_away(u8::try_from(part).unwrap());
    }
    if event.status_put_back {
        world.put_status_back();
    }
    if let Some(stable) = &event.of_another_object {
        world.restore_of_another(stable, None);
    }
    if event.release_restored {
        world.restore_release();
    }
    if event.had_another_route {
        world.had_another_route();
    }
    if event.snapshots_restored {
        world.restore_snapshots();
    }
    if event.deleted {
        world.delete();
    }
    world.down = event.operator_down.unwrap_or(world.down);
    world.policies_lost = event.policies_lost.unwrap_or(world.policies_lost);
    for (name, why) in &event.snapshots_lost {
        world.lost.insert(revision(name), why.clone());
    }
    world.lost.retain(|r, _| !event.snapshots_back.iter().any(|name| revision(name) == *r));
    if let Some(without) = &event.without_data {
        let one = |(metric, why): (&String, &String)| WithoutData {
            metric: metric.clone(),
            why: why.clone(),
        };
        world.without_data = without.iter().map(one).collect();
    }
    if let Some(suspend) = event.suspend {
        world.spec.suspend = suspend;
        world.generation += 1;
    }
    if let Some(policy) = &event.policy {
        world.policy = policy.clone();
    }
    world.missing.extend(event.delete_prompt.clone());
    let first = &mut world.gateways[0];
    first.stuck = event.stuck.unwrap_or(first.stuck);
    first.silent = event.silent.unwrap_or(first.silent);
    if let Some(silent) = event.all_silent {
        world.gateways.iter_mut().for_each(|gateway| gateway.silent = silent);
    }
    if let Some(lost) = event.control_loss {
        world.gateways.iter_mut().for_each(|g| g.control_loss = lost);
    }
    if let Some(index) = event.restart_gateway {
        world.restart_gateway(index);
    }
    world.requests_per_minute = event.requests_per_minute.unwrap_or(world.requests_per_minute);
    for (name, why) in &event.not_ready {
        world.not_ready.insert(revision(name), why.clone());
    }
    world.not_ready.retain(|r, _| !event.ready.iter().any(|name| revision(name) == *r));
}

fn play(scenario: &Scenario) -> String {
    let mut world =
        World::new(scenario.policy.clone(), scenario.gateways, scenario.requests_per_minute);
    if scenario.planned {
        world.undecidable = undecidable(&scenario.policy);
    }
    let mut out = format!("{}\n\n", scenario.about.trim());
    let end = Timestamp::UNIX_EPOCH + scenario.until.signed();
    let mut events = scenario.events.iter().peekable();
    let mut last = String::new();
    while world.now <= end {
        while let Some(event) =
            events.next_if(|e| Timestamp::UNIX_EPOCH + e.at.signed() <= world.now)
        {
            apply(event, &mut world);
        }
        // Everything that is due now, if there is somebody to decide.
        for _ in 0..if world.down { 0 } else { 10 } {
            let plan = world.decide();
            print(&mut out, &world, &plan, &mut last);
            if plan.wake_at.is_none_or(|at| at > world.now) {
                break;
            }
        }
        world.pass(SignedDuration::from_secs(15));
    }
    let _ = writeln!(out, "\nhistory");
    for entry in &world.status.history {
        let _ = writeln!(
            out,
            "  {} {:?} {}: {}",
            entry.variant.revision, entry.outcome, entry.reason, entry.message
        );
        for request in &entry.requests {
            let _ = writeln!(out, "    {} by {}", request.action, request.by);
        }
    }
    out
}

/// A line whenever the phase, the step, the routing or the reason changes, with its effects below.
fn print(out: &mut String, world: &World, plan: &Plan, last: &mut String) {
    let status = &plan.status;
    let ready = conditions::find(&status.conditions, "Ready");
    let routing: Vec<String> = status
        .routing
        .variants
        .iter()
        .map(|v| {
            let name = v.revision.trim_end_matches('0');
            // A shadow: copies of so many requests.
            let copies = v.copies.map(|percent| format!("{name}~{percent}%"));
            copies.unwrap_or_else(|| format!("{name}={}%", v.weight))
        })
        .collect();
    let step = status.canary.as_ref().map_or(String::new(), |c| format!(" step {}", c.step));
    let reason = ready.map_or("", |c| c.reason.as_str());
    let line = format!("{:?}{step} [{}] {reason}", status.phase, routing.join(" "));
    if line != *last || !plan.effects.is_empty() {
        let seconds = world.now.as_second();
        let message = ready.map_or("", |c| c.message.as_str());
        let _ = writeln!(
            out,
            "{:02}:{:02}:{:02} {line}: {message}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        );
        *last = line;
    }
    for effect in &plan.effects {
        if let Effect::Announce { warning, reason, note } = effect {
            let _ = writeln!(out, "         {} {reason}: {note}", if *warning { "!" } else { "·" });
        }
    }
}

#[test]
fn every_scenario_plays_as_its_golden_file_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timelines");
    let mut played = 0;
    let mut differing = vec![];
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let scenario: Scenario =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let fresh = play(&scenario);
        let golden = path.with_extension("txt");
        if std::env::var_os("SERINUS_REFRESH").is_some() {
            fs::write(&golden, &fresh).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != fresh {
            differing.push(format!("{}:\n{fresh}", golden.display()));
        }
        played += 1;
    }
    assert!(played >= 18, "only {played} scenarios were found");
    assert!(
        differing.is_empty(),
        "run `make generate` and read the diff of\n{}",
        differing.join("\n")
    );
}
