//! What the API server does not take.

use super::*;

#[tokio::test]
async fn what_can_not_be_created_in_a_namespace_that_is_being_deleted_stops_no_decision() {
    let mut world = World::new().await;
    world.release.status = Some(serving());
    let words = "is forbidden: unable to create new content in namespace ns because it is being \
                 terminated";
    lock(&world.server).refuses = Some((403, words));
    let (created, _, lost) = world.reconcile(world.snapshot(), serving(), vec![]).await;
    assert_eq!((created, lock(&world.server).creations), (0, 1));
    let [lost] = &lost[..] else { panic!("{lost:?}") };
    assert!(lost.why.contains("being terminated"), "{}", lost.why);
    // What must be there before a status is an error of this release alone.
    let content = Box::new(Saved::Variant(Variant::default()));
    let plan =
        Plan { effects: vec![Effect::Save { name: GOOD.into(), content }], ..Plan::default() };
    let saved = save(&world.release, &plan, &mut Written::default(), &world.context).await;
    assert_eq!(saved.unwrap_err().reason(), "Refused");
}

/// How the API server refuses an object that etcd does not take.
const TOO_LARGE: (u16, &str) = (500, "etcdserver: request is too large");

#[tokio::test]
async fn a_target_whose_snapshot_is_refused_is_told_in_the_status_and_not_tried_at_each_look() {
    let first = PromptReleaseStatus::default();
    let mut serves = serving();
    let v1 = VariantRef { revision: "1".repeat(40), prompt: "v1".into(), ..stable() };
    serves.stable = Some(v1.clone());
    for (before, goes_on) in [(first, false), (serves, true)] {
        let world = World::new().await;
        lock(&world.server).refuses = Some(TOO_LARGE);
        let mut written = Written::default();
        let named = Named::of(&world.release);
        if goes_on {
            // What serves is there.
            let saved = Saved::Variant(Variant::default());
            written.saved.insert(v1.revision.clone(), saved);
        }
        let mut snapshot = Snapshot { status: before.clone(), ..world.snapshot() };
        let now = Timestamp::UNIX_EPOCH;
        let (release, context) = (&world.release, &world.context);
        let plan = decide_and_keep(release, &mut snapshot, now, &mut written, context).await;
        let plan = plan.unwrap();
        let (is_ready, reason, message) = ready(&plan.status);
        assert_eq!((is_ready, reason), ("False", "SnapshotRefused"));
        assert!(message.contains("request is too large"), "{message}");
        assert_eq!(message.contains("goes on serving"), goes_on, "{message}");
        assert_eq!(plan.status.stable, before.stable);
        assert!(plan.status.canary.is_none() && plan.effects.is_empty());
        assert_eq!(lock(&world.server).creations, 1);
        // The next look knows it, and when it is time for the next attempt.
        assert!(context.refusals.of(&named, REVISION).is_some());
        assert!(context.refusals.next(&named).is_some());
        // What can be kept again is, and nothing of this is left.
        lock(&world.server).refuses = None;
        let mut snapshot = Snapshot { status: plan.status, ..world.snapshot() };
        let plan = decide_and_keep(release, &mut snapshot, now, &mut written, context).await;
        let plan = plan.unwrap();
        assert_ne!(ready(&plan.status).1, "SnapshotRefused");
        assert!(lock(&world.server).creations > 1);
        assert_eq!(context.refusals.next(&named), None);
    }
}

#[tokio::test]
async fn a_fault_of_the_api_server_is_nothing_that_a_status_says() {
    for other in [(500, "an internal fault"), (403, "User \"operator\" cannot create resource")] {
        let world = World::new().await;
        lock(&world.server).refuses = Some(other);
        let (mut snapshot, mut written) = (world.snapshot(), Written::default());
        let now = Timestamp::UNIX_EPOCH;
        let (release, context) = (&world.release, &world.context);
        let plan = decide_and_keep(release, &mut snapshot, now, &mut written, context).await;
        assert!(matches!(plan, Err(ControllerError::Api { .. })), "{plan:?}");
        assert_eq!(context.refusals.next(&Named::of(release)), None);
    }
}

#[tokio::test]
async fn a_snapshot_that_may_not_be_written_again_is_told_as_lost_with_what_is_said_of_it() {
    let world = World::new().await;
    lock(&world.server).refuses = Some((403, "is forbidden: exceeded quota: snapshots"));
    let mut snapshot = Snapshot { status: serving(), ..world.snapshot() };
    let mut written = Written::default();
    let healed = heal(&world.release, &mut snapshot, &mut written, &world.context).await.unwrap();
    let [lost] = &snapshot.lost[..] else { panic!("{:?}", snapshot.lost) };
    assert!(!healed && lost.variant == stable());
    assert!(lost.why.contains("exceeded quota: snapshots"), "{}", lost.why);
    // It is tried again, and not at each look before that.
    assert!(world.context.refusals.next(&Named::of(&world.release)).is_some());
    let mut snapshot = Snapshot { status: serving(), ..world.snapshot() };
    heal(&world.release, &mut snapshot, &mut written, &world.context).await.unwrap();
    assert_eq!((snapshot.lost.len(), lock(&world.server).creations), (1, 1));
}

#[tokio::test]
async fn a_note_that_is_refused_is_told_in_the_status_once() {
    let mut world = World::new().await;
    world.release.status = Some(serving());
    let why = ControllerError::Refused { what: "the snapshot ns/a".into(), why: "no".into() };
    assert!(tell_refused(&world.release, &why, &world.context).await.unwrap());
    let written = lock(&world.server).statuses.pop().unwrap();
    let status: PromptReleaseStatus = serde_json::from_value(written).unwrap();
    let (is_ready, reason, message) = ready(&status);
    assert_eq!((is_ready, reason), ("False", "SnapshotRefused"));
    assert!(message.contains("the snapshot ns/a is refused: no"), "{message}");
    assert_eq!((&status.stable, &status.history), (&serving().stable, &serving().history));
    world.release.status = Some(status);
    // A webhook may have other words each time.
    let why = ControllerError::Refused { what: "the snapshot ns/a".into(), why: "no, 7".into() };
    assert!(!tell_refused(&world.release, &why, &world.context).await.unwrap());
    assert!(lock(&world.server).statuses.is_empty(), "it says so already");
    // A release without a status says it, too.
    world.release.status = None;
    assert!(tell_refused(&world.release, &why, &world.context).await.unwrap());
    assert_eq!(lock(&world.server).statuses.len(), 1);
}
