//! Notes and statuses that were copied from another release, or restored from a backup.

use super::*;
use crate::{
    api::prompt_release::{RoutedVariant, VariantRole},
    controllers::release::{before::written_for, observe::observe},
};

/// A release of each of two namespaces on one route, and the note of `prod` with its copy in `ns`.
async fn copied_into_another_namespace(named: bool) -> World {
    let mut world = World::new().await;
    let written_for = Some("prod/answers".to_owned());
    let note = Remembered { written_for, ..of_before(1) };
    world.restore_into("prod", &note);
    // In a backup of an earlier version it does not say for whom it was written.
    let written_for = note.written_for.clone().filter(|_| named);
    world.restore(&Remembered { written_for, generation: 7, ..note });
    world.release.metadata.uid = Some("of ns".into());
    world.list(&["ns", "prod"]);
    world.look_again().await;
    world
}

#[tokio::test]
async fn a_note_that_was_copied_into_another_namespace_is_no_claim_to_the_route() {
    for named in [true, false] {
        let mut world = copied_into_another_namespace(named).await;
        let held_by = |world: &World| {
            let seen = crate::signals::gateways::Seen { gateways: vec![], departed: vec![] };
            let (release, context) = (&world.release, &world.context);
            observe(release, seen, &BTreeMap::new(), context).unwrap()
        };
        // The owner was replaced: neither of the two has a status.
        let seen = held_by(&world);
        assert_eq!(seen.route_held_by.as_deref(), Some("prod/answers"), "{named}");
        assert_eq!(seen.copied.is_some(), named);
        let mut owner = world.release.clone();
        owner.metadata.namespace = Some("prod".into());
        owner.metadata.uid = Some("of prod".into());
        let copy = std::mem::replace(&mut world.release, owner);
        let seen = held_by(&world);
        assert_eq!((seen.route_held_by, seen.served_before), (None, None));
        assert_eq!(seen.remembered.map(|note| note.stable.revision).as_deref(), Some(GOOD));
        // The owner is gone: the copy waits for its route, as everybody of its namespace does.
        world.release = copy;
        world.list(&["ns"]);
        world.look_again().await;
        let seen = held_by(&world);
        let elsewhere = seen.served_elsewhere().map(|before| before.release.as_str());
        assert_eq!((seen.route_held_by.as_deref(), elsewhere), (None, Some("prod/answers")));
        let plan =
            decide(&Snapshot { target: world.snapshot().target, ..seen }, Timestamp::UNIX_EPOCH);
        assert!(!plan.status.routes() && plan.status.stable.is_none(), "{:?}", plan.status);
        // The owner's namespace is gone: the copy is a first release. What failed is known.
        lock(&world.server).snapshots.retain(|key, _| !key.starts_with("prod/"));
        world.look_again().await;
        let seen = held_by(&world);
        assert_eq!((&seen.route_held_by, &seen.served_before), (&None, &None));
        assert_eq!(seen.remembered.is_none(), named, "without another claim it is its own");
    }
}

#[tokio::test]
async fn a_note_says_for_which_release_it_was_written_and_one_of_before_is_written_again() {
    let mut world = World::new().await;
    world.release.status = Some(serving());
    let noted = note(&world.release, &serving(), None, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(noted.written_for.as_deref(), Some("ns/answers"));
    for (written_for, patches) in [(noted.written_for.clone(), 0), (None, 1)] {
        world.restore(&Remembered { written_for, ..noted.clone() });
        world.look_again().await;
        let (_, patched, _) = world.reconcile(world.snapshot(), serving(), vec![]).await;
        assert_eq!(patched, patches);
    }
}

#[tokio::test]
async fn a_status_that_was_copied_into_another_namespace_is_none() {
    let mut world = World::new().await;
    let mut serves = serving();
    for (written_for, counts) in
        [(None, true), (Some("ns/answers"), true), (Some("prod/answers"), false)]
    {
        serves.written_for = written_for.map(str::to_owned);
        world.release.status = Some(serves.clone());
        world.list(&["ns"]);
        world.look_again().await;
        let release = world.context.caches.release(&Named::of(&world.release)).unwrap();
        assert_eq!(release.status.is_some(), counts, "{written_for:?}");
    }
}

/// What served and what is known, when a status of before the failure is restored.
async fn with_a_status_of_a_backup() -> (World, Remembered) {
    let mut world = World::new().await;
    let failed = Some(GOOD.to_owned());
    let now = PromptReleaseStatus { failed_revision: failed, ..serving() };
    let note = Remembered::of("answers".into(), Timestamp::UNIX_EPOCH, &now).unwrap();
    let note = Remembered { generation: 3, uid: Some("of before".into()), ..note };
    world.restore(&note);
    let mut backup = serving();
    backup.routing.generation = 2;
    backup.uid = Some("of before".into());
    world.release.status = Some(backup);
    world.look_again().await;
    (world, note)
}

#[tokio::test]
async fn a_note_that_knows_more_than_a_restored_status_counts_and_is_not_overwritten() {
    let (mut world, note) = with_a_status_of_a_backup().await;
    let backup = world.release.status.clone().unwrap();
    assert_eq!(world.before(), (Some(note.clone()), None));
    // While the route is another release's, nothing is decided, and nothing is forgotten.
    let held = world.reconcile(world.snapshot(), backup.clone(), vec![]).await;
    assert_eq!((held.0, held.1), (0, 0));
    let uid = |status: &PromptReleaseStatus| written_for(&world.release, status, &world.context);
    assert_eq!(uid(&backup).as_deref(), Some("of before"), "it is of a backup until that is over");
    // What is made again beside it does not outdo it.
    let other = VariantRef { revision: "7".repeat(40), ..stable() };
    let status = PromptReleaseStatus { stable: Some(other.clone()), ..backup };
    assert_eq!(note_for(&other.revision, &world.release, &status, &world.context), None);
    let snapshot = Snapshot {
        remembered: Some(Box::new(note.clone())),
        noted: note.generation,
        ..world.snapshot()
    };
    let plan = decide(&snapshot, Timestamp::UNIX_EPOCH);
    assert_eq!(plan.status.failed_revision.as_deref(), Some(GOOD));
    assert!(plan.status.routing.generation > note.generation);
    assert!(plan.status.routing.variants.iter().all(|v| v.revision == REVISION));
    assert_eq!(uid(&plan.status).as_deref(), Some("own"));
    world.reconcile(snapshot, plan.status, vec![]).await;
    assert_eq!(world.before(), (None, None), "the status knows it now");
}

/// As a restore of a namespace brings them when an earlier life of the name left them in a backup.
#[tokio::test]
async fn a_note_of_another_object_takes_nothing_from_a_release_that_has_its_own_status() {
    let mut world = World::new().await;
    let mut status = serving();
    status.history.push(HistoryEntry { outcome: Outcome::Promoted, ..serving().history.remove(0) });
    status.routing.generation = 9;
    status.uid = Some("own".into());
    status.routing.variants = vec![RoutedVariant {
        revision: REVISION.into(),
        role: VariantRole::Stable,
        weight: 100,
        copies: None,
    }];
    let own = note(&world.release, &status, None, Timestamp::UNIX_EPOCH).unwrap();
    let earlier = EarlierRoute {
        route: "elsewhere".into(),
        revision: GOOD.into(),
        failed: None,
        until: Timestamp::UNIX_EPOCH,
    };
    world.restore(&Remembered { earlier: vec![earlier.clone()], ..own });
    world.restore(&Remembered { failed: Some("7".repeat(40)), ..of_before(93) });
    world.release.status = Some(status.clone());
    world.look_again().await;
    let (remembered, told) = world.before();
    assert_eq!(remembered, None);
    let told = told.unwrap();
    assert_eq!((told.revision.as_str(), told.too_late), (GOOD, true));
    let snapshot = Snapshot { served_before: Some(told), noted: 93, ..world.snapshot() };
    let plan = decide(&snapshot, Timestamp::UNIX_EPOCH);
    assert_eq!(plan.status.stable, Some(stable()));
    let (_, _, message) = ready(&plan.status);
    assert!(message.contains("ReleaseSnapshots of another object of this name"), "{message}");
    // What this object notes is the last note from now on, and it is noted once.
    assert_eq!(last_noted(&world.release, &world.context).unwrap().1.generation, 94);
    let known = last_noted(&world.release, &world.context).unwrap().1;
    let noted = note(&world.release, &status, Some(&known), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((noted.generation, noted.status_generation), (94, Some(9)));
    assert_eq!(noted.earlier, [earlier]);
    let (_, patched, _) = world.reconcile(world.snapshot(), status.clone(), vec![]).await;
    assert_eq!(patched, 1);
    world.restore(&noted);
    world.look_again().await;
    let (_, patched, _) = world.reconcile(world.snapshot(), status, vec![]).await;
    assert_eq!((patched, world.before().0), (0, None));
}

/// As `kubectl replace --force` does during a bake.
#[tokio::test]
async fn a_release_that_is_replaced_in_a_bake_goes_back_while_the_previous_variant_is_kept() {
    let mut world = World::new().await;
    let good = VariantRef { revision: GOOD.into(), ..stable() };
    let mut baking = PromptReleaseStatus { previous: Some(good.clone()), ..serving() };
    baking.routing.generation = 5;
    let noted = note(&world.release, &baking, None, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(noted.previous.as_ref(), Some(&good));
    let over = PromptReleaseStatus { previous: None, ..baking.clone() };
    assert!(
        !note(&world.release, &over, None, Timestamp::UNIX_EPOCH).unwrap().says_the_same_as(&noted)
    );
    for kept in [true, false] {
        world.restore(&noted);
        if kept {
            world.restore(&Remembered { stable: good.clone(), ..of_before(1) });
        } else {
            lock(&world.server).snapshots.remove(&copy_name("answers", GOOD));
        }
        world.release.status = None;
        world.release.metadata.uid = Some("of now".into());
        world.look_again().await;
        let remembered = world.before().0.unwrap();
        assert_eq!(remembered.goes_on_with() == &good, kept);
        let snapshot = Snapshot { remembered: Some(Box::new(remembered)), ..world.snapshot() };
        let plan = decide(&snapshot, Timestamp::UNIX_EPOCH);
        let serves = plan.status.stable.as_ref().unwrap();
        assert_eq!((serves == &good, serves == &stable()), (kept, !kept));
        let routed: Vec<_> = plan.status.routing.variants.iter().map(|v| v.weight).collect();
        assert_eq!((routed, plan.status.previous.is_none()), (vec![100], true));
        let (_, reason, message) = ready(&plan.status);
        assert_eq!(reason, "Returned");
        assert_eq!(message.contains("was not over"), kept, "{message}");
    }
}

/// Somebody removes or garbles the note, or a copy of another namespace takes its place.
#[tokio::test]
async fn what_is_kept_without_a_note_is_beside_a_release_that_has_served_nothing() {
    let mut world = World::new().await;
    let note = of_before(7);
    let named = |note: Option<&str>, world: &World| {
        let name = copy_name("answers", GOOD);
        let mut asked = lock(&world.server);
        let copy = asked.snapshots.get_mut(&name).unwrap();
        copy["metadata"]["annotations"] = match note {
            Some(note) => json!({"serinus.dev/remembered": note}),
            None => json!({}),
        };
    };
    let copied = Remembered { written_for: Some("prod/answers".into()), ..note.clone() };
    let [copied, own] = [&copied, &note].map(|note| serde_json::to_string(note).unwrap());
    for (text, status, is_beside) in [
        (None, None, true),
        (Some("garbled"), None, true),
        (Some(own.as_str()), None, false),
        (Some(copied.as_str()), None, false),
        (None, Some(serving()), false),
    ] {
        world.restore(&note);
        named(text, &world);
        world.release.status = status;
        world.look_again().await;
        let seen = crate::signals::gateways::Seen { gateways: vec![], departed: vec![] };
        let seen = observe(&world.release, seen, &BTreeMap::new(), &world.context).unwrap();
        assert_eq!(seen.beside.iter().any(|r| r == GOOD), is_beside, "{text:?}");
        if is_beside {
            let plan = decide(
                &Snapshot { target: world.snapshot().target, ..seen },
                Timestamp::UNIX_EPOCH,
            );
            assert_eq!((plan.status.phase, plan.status.routes()), (Phase::Held, false));
            let (_, reason, message) = ready(&plan.status);
            assert_eq!(reason, "FirstReleaseHeld");
            assert!(message.contains("-l serinus.dev/release=answers"), "{message}");
        }
    }
}

#[tokio::test]
async fn no_note_is_written_at_an_earlier_generation() {
    let (world, known) = with_a_status_of_a_backup().await;
    // The spec names stable again, so nothing has failed any more.
    let mut status = serving();
    status.history.push(HistoryEntry {
        variant: VariantRef { revision: GOOD.into(), ..stable() },
        outcome: Outcome::RolledBack,
        ..serving().history.remove(0)
    });
    status.routing.generation = 2;
    let own = Remembered { uid: Some("own".into()), failed: None, ..known };
    let noted = note(&world.release, &status, Some(&own), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(noted.generation, 3);
}

/// A note may say what failed without the history of it. When the spec names stable again nothing
/// has failed any more, and the note of before does not make that a status of a backup.
#[tokio::test]
async fn a_release_that_is_back_goes_on_from_its_note_once() {
    let (mut world, note) = with_a_status_of_a_backup().await;
    assert!(note.history.iter().all(|entry| entry.variant.revision != GOOD));
    let snapshot = Snapshot { remembered: Some(Box::new(note)), noted: 3, ..world.snapshot() };
    let back = decide(&snapshot, Timestamp::UNIX_EPOCH).status;
    assert_eq!(back.failed_revision.as_deref(), Some(GOOD));
    let written = super::note(&world.release, &back, None, Timestamp::UNIX_EPOCH).unwrap();
    let over = PromptReleaseStatus { failed_revision: None, ..back };
    world.restore(&Remembered { uid: Some("of before".into()), ..written.clone() });
    world.release.status = Some(over.clone());
    world.look_again().await;
    assert_eq!(world.before(), (None, None));
    let noted = super::note(&world.release, &over, Some(&written), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(noted.failed, None, "and it is noted");
}
