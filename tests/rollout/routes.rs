//! Who gets a route whose owner is gone. The release of these tests is `default/answers`.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serinus::{
    api::{CanaryPolicySpec, conditions, prompt_release::Phase, snapshot::Remembered},
    rollout::{Effect, Plan, ServedBefore, decide::OWNER_KEEPS_ROUTE, snapshot::Action},
};

use super::{
    properties::{self, event, happen},
    world::{World, revision},
};

fn world() -> World {
    let policy = serde_json::json!({"steps": [{"weight": 5, "samples": 100}]});
    let policy: CanaryPolicySpec = serde_json::from_value(policy).unwrap();
    let mut world = World::new(policy, 2, 600.0);
    world.now = Timestamp::from_second(1_000_000).unwrap();
    world
}

/// `release` served the variant `name` until now.
fn gone(world: &World, release: &str, name: &str) -> Option<ServedBefore> {
    Some(ServedBefore {
        release: release.into(),
        revision: revision(name),
        failed: None,
        since: Some(world.now),
        forget: Some("kubectl delete releasesnapshots -n prod".into()),
        too_late: false,
    })
}

/// Decides until nothing more is to be decided now; answers what was told.
fn settle(world: &mut World) -> Vec<String> {
    let mut told = vec![];
    for _ in 0..10 {
        let Plan { effects, wake_at, .. } = world.decide();
        told.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::Announce { reason, note, .. } => Some(format!("{reason}: {note}")),
            _ => None,
        }));
        if wake_at.is_none_or(|at| at > world.now) {
            break;
        }
    }
    told
}

fn ready(world: &World) -> (String, String) {
    let ready = conditions::find(&world.status.conditions, "Ready").unwrap();
    (ready.reason.clone(), ready.message.clone())
}

fn serves(world: &World) -> Vec<String> {
    world.status.routing.variants.iter().map(|variant| variant.revision.clone()).collect()
}

/// It waits, and nobody is served by it.
fn is_held(world: &World) -> String {
    let (reason, message) = ready(world);
    assert_eq!((reason.as_str(), world.phase()), ("FirstReleaseHeld", Phase::Held), "{message}");
    assert_eq!(serves(world), [""; 0]);
    message
}

/// A person asks for it, and the release serves.
fn gets_the_route_by(world: &mut World, action: Action) {
    world.request(action, "a", "ada");
    settle(world);
    assert_eq!(serves(world), [revision("a")]);
}

#[test]
fn a_request_that_is_there_while_the_route_is_taken_is_refused_and_never_carried_out() {
    for owner in ["prod/chat", "default/chat"] {
        let mut world = world();
        world.route_held_by = Some(owner.into());
        for action in Action::ALL {
            world.request(action, "a", "thief");
        }
        let told = settle(&mut world);
        assert_eq!(ready(&world).0, "RouteTaken");
        assert_eq!(told.iter().filter(|t| t.starts_with("RequestIgnored")).count(), 4, "{told:?}");
        assert!(told[0].contains("refused and not kept") && told[0].contains(owner), "{told:?}");
        assert!(world.status.requests.iter().all(|handled| !handled.accepted));
        assert_eq!(settle(&mut world), [""; 0], "it is said once");
        world.route_held_by = None;
        world.served_before = gone(&world, owner, "b");
        settle(&mut world);
        is_held(&world);
        world.now += SignedDuration::from_hours(48);
        settle(&mut world);
        is_held(&world);
        // Asked anew it counts.
        gets_the_route_by(&mut world, Action::Approve);
    }
}

#[test]
fn a_route_of_another_namespace_is_not_taken_by_an_equal_revision() {
    let mut world = world();
    world.served_before = gone(&world, "prod/chat", "a");
    settle(&mut world);
    let message = is_held(&world);
    for part in ["prod/chat", "1970-01-12T13:46:40Z", "1970-01-12T14:46:40Z", "kubectl delete"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    // The owner is back.
    world.route_held_by = Some("prod/chat".into());
    world.served_before = None;
    settle(&mut world);
    assert_eq!((ready(&world).0.as_str(), serves(&world)), ("RouteTaken", vec![]));
    // In the same namespace the same content goes on at once.
    world.route_held_by = None;
    world.served_before = gone(&world, "default/chat", "a");
    settle(&mut world);
    assert_eq!(serves(&world), [revision("a")]);
}

#[test]
fn an_approval_in_another_namespace_counts_when_the_owner_was_gone_for_an_hour() {
    for action in [Action::Approve, Action::Promote] {
        let mut world = world();
        world.served_before = gone(&world, "prod/chat", "b");
        world.now += OWNER_KEEPS_ROUTE - SignedDuration::from_secs(1);
        world.request(action, "a", "thief");
        let told = settle(&mut world);
        let refused = told.iter().find(|told| told.starts_with("RequestIgnored")).unwrap();
        assert!(refused.contains("from 1970-01-12T14:46:40Z on"), "{refused}");
        is_held(&world);
        // What was refused is not kept.
        world.now += SignedDuration::from_secs(1);
        settle(&mut world);
        assert!(is_held(&world).contains("approve a"));
        gets_the_route_by(&mut world, action);
        assert!(world.status.requests[0].accepted);
    }
}

#[test]
fn an_approval_in_the_same_namespace_counts_at_once() {
    let mut world = world();
    world.served_before = gone(&world, "default/chat", "b");
    settle(&mut world);
    is_held(&world);
    gets_the_route_by(&mut world, Action::Approve);
}

#[test]
fn while_it_is_not_noted_since_when_the_owner_is_gone_nothing_counts() {
    let mut world = world();
    let known = gone(&world, "prod/chat", "a");
    world.served_before = known.map(|before| ServedBefore { since: None, ..before });
    world.request(Action::Approve, "a", "thief");
    for _ in 0..2_000 {
        let plan = world.decide();
        assert_eq!(plan.wake_at, Some(world.now + SignedDuration::from_secs(5)));
        world.now += SignedDuration::from_secs(5);
    }
    is_held(&world);
    assert!(!world.status.requests[0].accepted);
}

#[test]
fn a_route_whose_owner_is_forgotten_is_free() {
    let mut world = world();
    world.served_before = gone(&world, "prod/chat", "b");
    settle(&mut world);
    is_held(&world);
    world.served_before = None;
    settle(&mut world);
    assert_eq!(serves(&world), [revision("a")]);
}

#[test]
fn an_earlier_owner_waits_for_an_approval_as_everybody_of_its_namespace_does() {
    for status_is_lost in [false, true] {
        let mut world = world();
        settle(&mut world);
        assert_eq!(serves(&world), [revision("a")]);
        if status_is_lost {
            world.lose_status();
        }
        world.route_held_by = Some("prod/chat".into());
        settle(&mut world);
        assert_eq!(serves(&world), [""; 0]);
        world.route_held_by = None;
        world.served_before = gone(&world, "prod/chat", "b");
        settle(&mut world);
        is_held(&world);
        world.request(Action::Approve, "a", "thief");
        settle(&mut world);
        is_held(&world);
        world.now += OWNER_KEEPS_ROUTE;
        settle(&mut world);
        is_held(&world);
        world.request(Action::Approve, "a", "ada");
        settle(&mut world);
        assert_eq!(serves(&world), [revision("a")]);
        let approve = world.status.requests.iter().find(|handled| handled.action == "approve");
        assert!(approve.unwrap().accepted, "{status_is_lost}");
    }
}

#[test]
fn what_failed_on_a_route_is_held_when_the_release_has_that_route_again() {
    let mut world = world();
    let before = gone(&world, "default/answers", "a");
    world.served_before = before.map(|b| ServedBefore { failed: Some(revision("b")), ..b });
    world.release("b");
    settle(&mut world);
    let message = is_held(&world);
    assert!(message.contains("default/answers") && message.contains("failed there"), "{message}");
    world.release("a");
    settle(&mut world);
    assert_eq!(serves(&world), [revision("a")]);
}

/// A restore into this namespace of what `prod` had, where `b` failed.
fn copied(world: &mut World) {
    settle(world);
    world.annotate(Action::Retry, format!("{} by=ada", revision("b")));
    world.annotate(Action::Approve, format!("{} by=ada", revision("b")));
    settle(world);
    let note = world.remembered.take().unwrap();
    let written_for = Some("prod/answers".to_owned());
    let failed = Some(revision("b"));
    world.copied = Some(Box::new(Remembered { written_for, failed, ..*note }));
    world.lose_status();
    world.release("b");
}

#[test]
fn what_failed_in_another_namespace_is_no_first_release_where_it_was_copied_to() {
    let mut world = world();
    copied(&mut world);
    for _ in 0..2 {
        settle(&mut world);
        let (reason, message) = ready(&world);
        assert_eq!((reason.as_str(), serves(&world)), ("MetricFailed", vec![]), "{message}");
        assert!(message.contains("failed in prod/answers"), "{message}");
    }
    // What did not fail there is a first release here.
    world.release("c");
    settle(&mut world);
    assert_eq!(serves(&world), [revision("c")]);
    assert_eq!(world.status.failed_revision, Some(revision("b")));
}

#[test]
fn a_person_may_ask_for_what_failed_in_another_namespace() {
    let mut world = world();
    copied(&mut world);
    settle(&mut world);
    world.request(Action::Retry, "b", "ada");
    settle(&mut world);
    assert_eq!(serves(&world), [revision("b")]);
}

#[test]
fn an_approval_that_was_copied_with_a_release_gives_it_no_route() {
    let mut world = world();
    world.served_before = gone(&world, "prod/answers", "b");
    world.now += OWNER_KEEPS_ROUTE;
    // As somebody asked for it in the other namespace.
    world.request(Action::Approve, "a", "ada");
    let told = settle(&mut world);
    assert!(told.iter().any(|told| told.contains("ask again")), "{told:?}");
    is_held(&world);
    world.now += SignedDuration::from_secs(1);
    gets_the_route_by(&mut world, Action::Approve);
}

#[derive(Clone, Debug)]
enum OfRoute {
    Other(properties::Event),
    Taken(bool),
    /// Of another namespace, served by one of the variants, and gone for so many minutes.
    Gone(Option<(u8, Option<i64>)>),
}

fn of_route() -> impl Strategy<Value = OfRoute> {
    let minutes = prop::option::of(0..120_i64);
    prop_oneof![
        6 => event().prop_map(OfRoute::Other),
        2 => any::<bool>().prop_map(OfRoute::Taken),
        3 => prop::option::of((0..4_u8, minutes)).prop_map(OfRoute::Gone),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The invariants are checked inside `World::decide`: a route of another namespace is not
    /// taken without an approval that came late enough.
    #[test]
    fn invariants_hold_while_routes_come_and_go(policy in properties::policy(), events in prop::collection::vec(of_route(), 1..60)) {
        let mut world = World::new(policy, 2, 600.0);
        for event in events {
            match event {
                OfRoute::Other(event) => happen(&mut world, event),
                OfRoute::Taken(taken) => world.route_held_by = taken.then(|| "prod/chat".into()),
                OfRoute::Gone(None) => world.served_before = None,
                OfRoute::Gone(Some((name, minutes))) => {
                    let since = minutes.map(|m| world.now - SignedDuration::from_mins(m));
                    let name = ["a", "b", "c", "d"][usize::from(name)];
                    let before = gone(&world, "prod/chat", name);
                    world.served_before = before.map(|b| ServedBefore { since, ..b });
                }
            }
            for _ in 0..6 {
                let plan = world.decide();
                if plan.wake_at.is_none_or(|at| at > world.now) {
                    break;
                }
            }
        }
    }
}
