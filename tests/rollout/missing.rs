//! What the spec names and what does not exist: it may be on its way, and is waited for.

use jiff::SignedDuration;
use serinus::api::{CanaryPolicySpec, conditions, prompt_release::Phase};

use super::world::World;

fn world() -> World {
    let policy = serde_json::json!({"steps": [{"weight": 5, "samples": 100}]});
    let policy: CanaryPolicySpec = serde_json::from_value(policy).unwrap();
    let mut world = World::new(policy, 1, 0.0);
    world.missing.push("late".into());
    world
}

/// `Ready`, `Reconciling` and `Stalled`.
fn conditions(world: &World) -> [&str; 3] {
    ["Ready", "Reconciling", "Stalled"]
        .map(|type_| conditions::find(&world.status.conditions, type_).unwrap().status.as_str())
}

const WAITS: [&str; 3] = ["False", "True", "False"];
const STALLED: [&str; 3] = ["False", "False", "True"];

#[test]
fn what_is_missing_is_waited_for_before_a_person_is_needed() {
    let mut world = world();
    world.release("late");
    let until = world.decide().wake_at.unwrap();
    assert_eq!((world.status.phase, conditions(&world)), (Phase::Pending, WAITS));
    assert!(until > world.now, "nobody looks at it again");
    world.now = until - SignedDuration::from_secs(1);
    assert_eq!(world.decide().wake_at, Some(until));
    assert_eq!(conditions(&world), WAITS);
    world.now = until;
    assert_eq!(world.decide().wake_at, None);
    assert_eq!(conditions(&world), STALLED);
    world.now += SignedDuration::from_hours(1);
    world.decide();
    assert_eq!(conditions(&world), STALLED);
    // Another spec may be applied before what it names, too.
    world.missing.push("later".into());
    world.release("later");
    world.decide();
    assert_eq!(conditions(&world), WAITS);
}

#[test]
fn a_release_that_serves_waits_for_the_next_one_that_is_missing() {
    let mut world = world();
    while world.decide().wake_at.is_some_and(|at| at <= world.now) {}
    assert_eq!((world.status.phase, conditions(&world)[0]), (Phase::Stable, "True"));
    world.now += SignedDuration::from_hours(1);
    world.release("late");
    let until = world.decide().wake_at.unwrap();
    assert_eq!((world.status.phase, conditions(&world)), (Phase::Stable, WAITS));
    world.missing.clear();
    world.now = until;
    world.decide();
    assert_ne!(conditions(&world), STALLED, "it is there now");
}
