//! Random lives of a release: whatever happens in whatever order, the invariants hold
//! (checked inside `World::decide`), and decide is a function.

use jiff::SignedDuration;
use proptest::prelude::*;
use serinus::{
    api::{
        CanaryPolicySpec, GoDuration,
        canary_policy::{Bake, Nothing, OnInconclusive, OnNoData, Pooling, Shadow, Step},
        conditions,
        prompt_release::Phase,
    },
    rollout::{Gateway, decide, snapshot::Action},
};

use super::world::{Behaviour, World, revision};

#[derive(Clone, Debug)]
pub enum Event {
    Pass(u16),
    Release(u8),
    Request(usize, u8),
    Behave(u8, Behaviour),
    Suspend(bool),
    Stuck(bool),
    Silent(bool),
    ControlLoss(bool),
    Restart(usize),
    Delete(u8),
    Ready(u8, bool),
    EditPolicy(CanaryPolicySpec),
    Rate(f64),
    LoseStatus,
    RestoreRelease,
    RestoreSnapshots,
    HadAnotherRoute,
    PassDays(u8),
    KeepStatus,
    RestoreStatus,
    PutStatusBack,
    LoseNote,
    TakeAway(u8),
    OfAnotherObject(u8, Option<u8>),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn name(i: u8) -> &'static str {
    NAMES[usize::from(i) % NAMES.len()]
}

pub fn event() -> impl Strategy<Value = Event> {
    let share = prop_oneof![Just(0.01), 0.0..1.0_f64];
    let behaviour = (share.clone(), share.clone(), share, 0.0..0.2_f64, 0.0..1.0_f64).prop_map(
        |(errors, check_failures, slow, cost, score)| Behaviour {
            errors,
            check_failures,
            slow,
            cost,
            score,
            lost: 0.0,
        },
    );
    prop_oneof![
        8 => (1..600_u16).prop_map(Event::Pass),
        3 => any::<u8>().prop_map(Event::Release),
        3 => (0..4_usize, any::<u8>()).prop_map(|(a, n)| Event::Request(a, n)),
        3 => (any::<u8>(), behaviour).prop_map(|(n, b)| Event::Behave(n, b)),
        1 => any::<bool>().prop_map(Event::Suspend),
        1 => any::<bool>().prop_map(Event::Stuck),
        1 => any::<bool>().prop_map(Event::Silent),
        1 => any::<bool>().prop_map(Event::ControlLoss),
        1 => (0..2_usize).prop_map(Event::Restart),
        1 => any::<u8>().prop_map(Event::Delete),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(n, r)| Event::Ready(n, r)),
        1 => policy().prop_map(Event::EditPolicy),
        1 => (0.0..2000.0_f64).prop_map(Event::Rate),
        1 => Just(Event::LoseStatus),
        1 => Just(Event::RestoreRelease),
        2 => Just(Event::RestoreSnapshots),
        1 => Just(Event::HadAnotherRoute),
        1 => (1..3_u8).prop_map(Event::PassDays),
        1 => Just(Event::KeepStatus),
        1 => Just(Event::RestoreStatus),
        1 => Just(Event::PutStatusBack),
        1 => Just(Event::LoseNote),
        1 => any::<u8>().prop_map(Event::TakeAway),
        1 => (any::<u8>(), prop::option::of(any::<u8>())).prop_map(|(s, f)| Event::OfAnotherObject(s, f)),
    ]
}

pub fn policy() -> impl Strategy<Value = CanaryPolicySpec> {
    let weights = prop::collection::btree_set(1..=99_i32, 1..4);
    let inconclusive = prop_oneof![
        Just(OnInconclusive::Hold),
        Just(OnInconclusive::Extend),
        Just(OnInconclusive::Rollback),
        Just(OnInconclusive::Promote)
    ];
    let no_data = prop_oneof![Just(OnNoData::Hold), Just(OnNoData::Rollback)];
    // Where an approval is put; where a shadow step is put, and how much it copies.
    let approval = prop::option::of(0..4_usize);
    let shadow = prop::option::of((0..4_usize, 1..=100_i32));
    let evidence = prop_oneof![Just(Pooling::Pooled), Just(Pooling::PerStep)];
    let steps = (weights, 20..400_i64, approval, shadow);
    let ends = (inconclusive, no_data, evidence);
    (steps, ends, 0..=50_i32, 0..300_u64).prop_map(
        |((weights, samples, approval, shadow), ends, holdback, bake)| {
            let (on_inconclusive, on_no_data, evidence) = ends;
            let mut steps: Vec<Step> = weights
                .into_iter()
                .map(|weight| Step {
                    weight: Some(weight),
                    samples: Some(samples),
                    deadline: Some(GoDuration::from_secs(1800)),
                    ..Step::default()
                })
                .collect();
            if let Some(place) = approval {
                let place = place.min(steps.len());
                steps.insert(place, Step { approval: Some(Nothing {}), ..Step::default() });
            }
            if let Some((place, percent)) = shadow {
                let deadline = Some(GoDuration::from_secs(900));
                let shadow = Some(Shadow { percent, samples, deadline });
                steps.insert(place.min(steps.len()), Step { shadow, ..Step::default() });
            }
            // Defaults as the API server would fill them in.
            let mut policy: CanaryPolicySpec =
                serde_json::from_value(serde_json::json!({ "steps": steps })).unwrap();
            policy.on_inconclusive = on_inconclusive;
            policy.on_no_data = on_no_data;
            policy.analysis.evidence = evidence;
            policy.bake = Bake { duration: GoDuration::from_secs(bake), holdback };
            policy
        },
    )
}

pub fn happen(world: &mut World, event: Event) {
    match event {
        Event::Pass(seconds) => world.pass(SignedDuration::from_secs(seconds.into())),
        Event::Release(n) => world.release(name(n)),
        Event::Request(action, n) => world.request(Action::ALL[action % 4], name(n), "bob"),
        Event::Behave(n, behaviour) => {
            world.behaviours.insert(revision(name(n)), behaviour);
        }
        Event::Suspend(suspend) => world.spec.suspend = suspend,
        Event::Stuck(stuck) => world.gateways[0].stuck = stuck,
        Event::Silent(silent) => world.gateways[1].silent = silent,
        Event::ControlLoss(lost) => world.gateways[0].control_loss = lost,
        Event::Restart(index) => world.restart_gateway(index),
        Event::Delete(n) => world.missing.push(name(n).to_owned()),
        Event::Ready(n, true) => {
            world.not_ready.remove(&revision(name(n)));
        }
        Event::Ready(n, false) => {
            world.not_ready.insert(revision(name(n)), "is down".to_owned());
        }
        Event::EditPolicy(policy) => world.policy = policy,
        Event::Rate(rate) => world.requests_per_minute = rate,
        Event::LoseStatus => world.lose_status(),
        Event::RestoreRelease => world.restore_release(),
        Event::RestoreSnapshots => world.restore_snapshots(),
        Event::HadAnotherRoute => world.had_another_route(),
        Event::KeepStatus => world.keep_status(),
        Event::RestoreStatus => world.restore_status(),
        Event::PutStatusBack => world.put_status_back(),
        Event::LoseNote => {
            world.lose_note();
            world.lose_status();
        }
        Event::TakeAway(part) => world.take_away(part),
        Event::OfAnotherObject(stable, failed) => {
            let failed = failed.filter(|failed| name(*failed) != name(stable)).map(name);
            world.restore_of_another(name(stable), failed);
        }
        Event::PassDays(days) => world.pass(SignedDuration::from_hours(24 * i64::from(days))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_in_every_life(policy in policy(), events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new(policy, 2, 600.0);
        for event in events {
            happen(&mut world, event);
            let snapshot = world.snapshot();
            prop_assert_eq!(decide(&snapshot, world.now), decide(&snapshot, world.now));
            for _ in 0..6 {
                let plan = world.decide();
                if plan.wake_at.is_none_or(|at| at > world.now) {
                    break;
                }
            }
        }
    }

    #[test]
    fn without_news_decisions_come_to_rest(policy in policy(), events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::new(policy, 2, 600.0);
        for event in events {
            happen(&mut world, event);
            let settled = (0..12).any(|_| {
                let before = world.status.clone();
                world.decide();
                world.status == before
            });
            prop_assert!(settled, "without news the status goes on changing: {:?}", world.status);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_release_that_is_being_deleted_says_so_and_starts_no_canary(
        policy in policy(), before in prop::collection::vec(event(), 1..40),
        after in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = World::new(policy, 2, 600.0);
        for event in before {
            happen(&mut world, event);
            world.decide();
            world.pass(SignedDuration::from_secs(15));
        }
        world.delete();
        let runs = |world: &World| world.status.canary.as_ref().map(|c| c.variant.revision.clone());
        for event in after {
            // Another object of its name is not being deleted.
            if matches!(
                event,
                Event::LoseStatus
                    | Event::RestoreRelease
                    | Event::RestoreStatus
                    | Event::PutStatusBack
                    | Event::LoseNote
            ) {
                continue;
            }
            let ran = runs(&world);
            happen(&mut world, event);
            let plan = world.decide();
            prop_assert!(runs(&world).is_none() || runs(&world) == ran, "{plan:?}");
            let told = &conditions::find(&plan.status.conditions, "Deleting").unwrap().message;
            prop_assert!(told.contains("is being deleted") && told.contains("example.com/hold"), "{told}");
            world.pass(SignedDuration::from_secs(15));
        }
    }
}

#[test]
fn a_status_from_a_backup_does_not_say_for_ever_that_the_release_is_being_deleted() {
    let policy: CanaryPolicySpec =
        serde_json::from_value(serde_json::json!({"steps": [{"weight": 5, "samples": 100}]}))
            .unwrap();
    let mut world = World::new(policy, 2, 600.0);
    let says = |world: &World| conditions::find(&world.status.conditions, "Deleting").is_some();
    world.decide();
    world.delete();
    world.decide();
    assert!(says(&world));
    // The object is restored with this status, and nobody deletes it.
    world.deleting = None;
    world.decide();
    assert!(!says(&world), "{:?}", world.status.conditions);
    world.route_held_by = Some("default/another".into());
    world.delete();
    world.decide();
    assert!(says(&world), "also while it waits for its route");
    world.deleting = None;
    world.decide();
    assert!(!says(&world));
}

/// A restarted operator knows what the API server kept: the status as JSON.
fn restart(world: &mut World) {
    let text = serde_json::to_string(&world.status).unwrap();
    world.status = serde_json::from_str(&text).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ten_restarts_change_no_decision(
        policy in policy(), events in prop::collection::vec(event(), 10..60),
        restarts in prop::collection::btree_set(0..60_usize, 10), rate in 20.0..3000.0_f64,
    ) {
        let mut worlds = [World::new(policy.clone(), 2, rate), World::new(policy, 2, rate)];
        for (i, event) in events.into_iter().enumerate() {
            for (which, world) in worlds.iter_mut().enumerate() {
                happen(world, event.clone());
                if which == 1 && restarts.contains(&i) {
                    restart(world);
                }
                world.decide();
                world.pass(SignedDuration::from_secs(15));
                world.decide();
            }
            let [kept, restarted] = &worlds;
            prop_assert_eq!(&kept.status, &restarted.status);
        }
    }
}

#[test]
fn a_release_without_gateways_starts_no_canary_evidence_and_never_promotes() {
    let policy: CanaryPolicySpec = serde_json::from_value(
        serde_json::json!({"steps": [{"weight": 5, "samples": 100}], "noDataTimeout": "1m"}),
    )
    .unwrap();
    let mut world = World::new(policy, 0, 600.0);
    world.decide();
    world.release("b");
    for _ in 0..1000 {
        world.decide();
        world.pass(SignedDuration::from_secs(15));
    }
    assert_eq!(world.phase(), Phase::Held);
    assert_eq!(world.status.stable.as_ref().unwrap().prompt, "a");
}

#[test]
fn a_canary_that_one_gateway_can_not_build_waits_without_traffic_until_it_can() {
    let policy: CanaryPolicySpec = serde_json::from_value(
        serde_json::json!({"steps": [{"weight": 5, "samples": 100}], "progressDeadline": "1h"}),
    )
    .unwrap();
    let mut world = World::new(policy, 2, 600.0);
    world.decide();
    world.release("b");
    let go_on = |world: &mut World| {
        for _ in 0..500 {
            world.decide();
            world.pass(SignedDuration::from_secs(15));
        }
    };
    let why = "there is no Secret ca".to_owned();
    world.gateways[1].unbuilt.insert(revision("b"), why.clone());
    go_on(&mut world);
    let said = |world: &World| world.status.conditions[0].message.clone();
    let held = world.status.canary.as_ref().and_then(|canary| canary.held.as_deref());
    assert_eq!((held, world.status.routing.variants.len()), (Some("BackendNotReady"), 1));
    let message = said(&world);
    assert!(message.contains("1 of 2 gateways") && message.contains(&why), "{message}");
    world.gateways[1].unbuilt.clear();
    go_on(&mut world);
    assert_eq!(world.status.stable.as_ref().unwrap().prompt, "b", "{}", said(&world));
    // Of what serves, it is told.
    world.gateways[0].unbuilt.insert(revision("b"), why.clone());
    world.decide();
    assert!(said(&world).contains(&why) && world.status.conditions[0].status == "False");
    world.gateways[0].unbuilt = [("another".to_owned(), why.clone())].into();
    world.decide();
    assert!(said(&world).contains(&why) && world.status.conditions[0].status == "True");
}

#[test]
fn a_canary_whose_snapshot_is_lost_does_not_come_and_go_when_gateways_start_anew() {
    let policy: CanaryPolicySpec =
        serde_json::from_value(serde_json::json!({"steps": [{"weight": 20, "samples": 100_000}]}))
            .unwrap();
    let mut world = World::new(policy, 2, 60.0);
    world.decide();
    world.release("b");
    let canary = revision("b");
    let goes_on = |world: &mut World, knows_it: bool| {
        for _ in 0..50 {
            // A gateway says what it can not build of what is routed.
            let routed = world.status.routing.variants.iter().any(|v| v.revision == canary);
            for gateway in &mut world.gateways {
                gateway.unbuilt.clear();
                if routed && !knows_it {
                    gateway.unbuilt.insert(canary.clone(), "it has no copy".to_owned());
                }
            }
            world.decide();
            world.pass(SignedDuration::from_secs(5));
        }
    };
    goes_on(&mut world, true);
    world.lost.insert(canary.clone(), "there is no PromptVersion b".to_owned());
    goes_on(&mut world, true);
    assert_eq!(world.phase(), Phase::Progressing, "gateways that have it go on");
    let before = world.status.routing.generation;
    goes_on(&mut world, false);
    assert_eq!(world.status.routing.generation, before + 1, "it leaves once");
    let said = world.status.conditions[0].message.clone();
    assert!(said.contains("there is no PromptVersion b") && said.contains("abort"), "{said}");
    world.lost.clear();
    goes_on(&mut world, true);
    assert_eq!(world.phase(), Phase::Progressing);
}

#[test]
fn where_no_gateway_can_build_stable_a_person_may_put_another_revision_in_its_place() {
    let policy: CanaryPolicySpec = serde_json::from_value(
        serde_json::json!({"steps": [{"weight": 5, "samples": 100}], "bake": {"duration": "1h"}}),
    )
    .unwrap();
    let mut world = World::new(policy, 2, 60.0);
    world.decide();
    world.pass(SignedDuration::from_secs(15));
    let serves_nobody = |world: &mut World, which: &[usize]| {
        for at in which {
            let gateway = &mut world.gateways[*at];
            gateway.applied = Some(0);
            gateway.unbuilt.insert(revision("a"), "the key is not valid".to_owned());
        }
    };
    serves_nobody(&mut world, &[0]);
    world.release("b");
    world.decide();
    let said = |world: &World| world.status.conditions[0].message.clone();
    assert!(said(&world).contains("1/2 gateways apply"), "one serves: {}", said(&world));
    serves_nobody(&mut world, &[0, 1]);
    for _ in 0..20 {
        world.decide();
    }
    let stable = |world: &World| world.status.stable.as_ref().unwrap().prompt.clone();
    let (told, canary) = (said(&world), revision("b"));
    assert!(told.contains("the key is not valid") && told.contains("promote b"), "{told}");
    assert!(world.status.canary.is_none() && stable(&world) == "a");
    world.request(Action::Promote, "b", "ada");
    world.decide();
    assert_eq!(stable(&world), "b", "{}", said(&world));
    assert!(world.status.previous.is_none(), "there is nobody to keep a share for");
    let routed: Vec<_> = world.status.routing.variants.iter().map(|v| &*v.revision).collect();
    assert_eq!(routed, [&*canary]);
    let last = world.status.history.last().unwrap();
    assert!(last.message.contains("ada") && last.requests[0].accepted, "{last:?}");
}

/// A gateway that a canary brings down takes along what only it knew, not what it had told.
#[test]
fn what_a_gateway_had_told_counts_when_it_is_gone_before_the_next_look() {
    let policy: CanaryPolicySpec =
        serde_json::from_value(serde_json::json!({"steps": [{"weight": 50, "samples": 5_000}]}))
            .unwrap();
    let mut world = World::new(policy, 2, 120.0);
    world.decide();
    world.release("b");
    let told = |world: &World| {
        let of = |gateway: &Gateway| gateway.counts.get(&revision("b")).map_or(0, |c| c.requests);
        let snapshot = world.snapshot();
        snapshot.gateways.iter().chain(&snapshot.departed).map(of).sum::<u64>()
    };
    let counted = |world: &World| {
        world.status.evidence.iter().map(|evidence| evidence.canary.requests).sum::<u64>()
    };
    for _ in 0..20 {
        world.decide();
        world.pass(SignedDuration::from_secs(5));
    }
    assert!(counted(&world) > 0 && world.status.canary.is_some());
    // The interval is 15 s: nobody has looked since.
    world.decide();
    let before = counted(&world);
    world.pass(SignedDuration::from_secs(10));
    world.restart_gateway(0);
    let all = told(&world);
    assert!(all > before, "{all} are told, of which {before} were counted");
    world.pass(SignedDuration::from_secs(10));
    world.decide();
    assert!(counted(&world) >= all, "{} of {all}", counted(&world));
    // Once, however often it is seen.
    world.pass(SignedDuration::from_secs(30));
    world.decide();
    assert_eq!(counted(&world), told(&world));
}
