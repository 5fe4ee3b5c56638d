//! Restores that bring a part before another one, and notes of several lives of one name.

use super::*;
use crate::{
    controllers::release::{before::awaited, observe::observe},
    rollout::Awaited,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Somebody restores what was kept of an earlier life, which had come further than this one.
#[tokio::test]
async fn what_failed_in_the_last_life_of_a_name_stays_out_whatever_an_earlier_life_says() {
    let mut world = World::new().await;
    // In its first life the revision served; in the last one it failed.
    let first = Remembered::of("answers".into(), at(1), &serving()).unwrap();
    let note_of = |uid: &str, generation, noted_at, note: &Remembered| Remembered {
        generation,
        noted_at: Some(at(noted_at)),
        uid: Some(uid.into()),
        ..note.clone()
    };
    let last = note_of("last", 3, 20, &of_before(3));
    for first_generation in [1, 2_001] {
        world.restore(&note_of("first", first_generation, 10, &first));
        world.restore(&last);
        world.look_again().await;
        let mut backup = serving();
        (backup.uid, backup.routing.generation) = (Some("first".into()), first_generation);
        for status in [None, Some(backup)] {
            world.release.status = status;
            let (remembered, _) = world.before();
            assert_eq!(remembered, Some(last.clone()), "{first_generation}");
            let snapshot = Snapshot { remembered: remembered.map(Box::new), ..world.snapshot() };
            let status = decide(&snapshot, at(30)).status;
            assert_eq!(status.failed_revision.as_deref(), Some(REVISION));
            assert!(status.routing.variants.iter().all(|routed| routed.revision == GOOD));
        }
    }
    // A status that was written after all notes of other lives is not outdone by them.
    let mut newer = serving();
    newer.uid = Some("newest".into());
    newer.history.push(HistoryEntry { at: at(40), ..newer.history[0].clone() });
    world.release.status = Some(newer);
    assert_eq!(world.before().0, None);
}

#[tokio::test]
async fn a_note_of_another_life_is_outdone_once_and_not_with_each_look() {
    let mut world = World::new().await;
    let foreign = Remembered { noted_at: Some(at(90)), ..of_before(7) };
    world.restore(&foreign);
    world.release.status = Some(serving());
    world.release.metadata.creation_timestamp =
        serde_json::from_value(json!("1970-01-01T00:00:00Z")).unwrap();
    world.look_again().await;
    let status = PromptReleaseStatus { uid: Some("own".into()), ..serving() };
    let (created, _, _) = world.reconcile(world.snapshot(), status.clone(), vec![]).await;
    assert_eq!(created, 1);
    world.look_again().await;
    let noted = world.context.caches.remembered(&Named::of(&world.release)).unwrap().1;
    assert_eq!(noted.uid.as_deref(), Some("own"), "it is the last one, though the clock is behind");
    assert_eq!(world.reconcile(world.snapshot(), status, vec![]).await, (0, 0, vec![]));
}

/// Somebody restores the copies of a release in the middle of its bake, in whatever order.
#[tokio::test]
async fn a_bake_whose_copies_are_restored_one_after_the_other_goes_back_to_what_served_before() {
    let mut world = World::new().await;
    let previous = VariantRef { revision: GOOD.into(), ..stable() };
    let baking = PromptReleaseStatus { previous: Some(previous), ..serving() };
    let note = Remembered::of("answers".into(), at(0), &baking).unwrap();
    let note = Remembered { uid: Some("of before".into()), ..note };
    world.restore(&note);
    let name = copy_name("answers", REVISION);
    let came = |world: &World, time: &str| {
        let mut asked = lock(&world.server);
        asked.snapshots.get_mut(&name).unwrap()["metadata"]["creationTimestamp"] = json!(time);
    };
    // The clock stands at the beginning of 1970.
    came(&world, "1970-01-01T00:00:00Z");
    world.look_again().await;
    let expected = Awaited { revision: GOOD.into(), until: at(300) };
    assert_eq!(awaited(&world.release, &world.context), Some(expected.clone()));
    let snapshot = Snapshot { awaited: Some(expected), ..world.snapshot() };
    let plan = decide(&snapshot, at(0));
    assert_eq!((plan.status.phase, plan.status.routes()), (Phase::Pending, false));
    assert_eq!(plan.wake_at, Some(at(300)));
    let (_, _, message) = ready(&plan.status);
    assert!(message.contains(&copy_name("answers", GOOD)), "{message}");
    // A first release that was faster than the restore waits, too, and notes nothing.
    let mut first = serving();
    first.uid = Some("own".into());
    world.release.status = Some(first.clone());
    assert_eq!(world.before().0, None, "what it is to go back to is not there");
    assert_eq!(world.reconcile(world.snapshot(), first, vec![]).await.1, 0);
    // The other copy comes.
    world.release.status = None;
    let other =
        Remembered { stable: VariantRef { revision: GOOD.into(), ..stable() }, ..note.clone() };
    world.restore(&other);
    let other = copy_name("answers", GOOD);
    lock(&world.server).snapshots.get_mut(&other).unwrap()["metadata"]["annotations"] = json!({});
    world.look_again().await;
    assert_eq!(awaited(&world.release, &world.context), None);
    assert_eq!(
        world.before().0.map(|note| note.goes_on_with().revision.clone()).as_deref(),
        Some(GOOD)
    );
    // Or it does not come: the copy with the note was there for five minutes.
    lock(&world.server).snapshots.remove(&other);
    came(&world, "1969-12-31T23:55:00Z");
    world.look_again().await;
    assert_eq!(awaited(&world.release, &world.context), None);
    assert_eq!(world.before().0.and_then(|note| note.previous), None);
}

/// A part of a backup is restored: the copy of a canary, with the policy that judged it.
#[tokio::test]
async fn the_copy_of_a_canary_alone_is_no_first_release() {
    let mut world = World::new().await;
    let note = Remembered::of("answers".into(), at(0), &serving()).unwrap();
    world.restore(&note);
    let name = copy_name("answers", REVISION);
    lock(&world.server).snapshots.get_mut(&name).unwrap()["metadata"]["annotations"] = json!({});
    for (with_policy, held) in [(false, false), (true, true)] {
        if with_policy {
            let content = serde_json::to_value(Saved::Policy(resolve::careful())).unwrap();
            let snapshot = json!({
                "apiVersion": "serinus.dev/v1alpha1", "kind": "ReleaseSnapshot",
                "metadata": {"name": copy_name("answers", "digest"), "namespace": "ns"},
                "spec": ReleaseSnapshotSpec::new("answers", "digest", content).unwrap(),
            });
            lock(&world.server).snapshots.insert(copy_name("answers", "digest"), snapshot);
        }
        world.look_again().await;
        let named = Some(REVISION.to_owned());
        let seen = crate::controllers::release::observe::beside(
            &Named::of(&world.release),
            named.as_ref(),
            &world.context,
        );
        assert_eq!(!seen.is_empty(), held, "{seen:?}");
        let snapshot = Snapshot { beside: seen, ..world.snapshot() };
        assert_eq!(decide(&snapshot, at(0)).status.routes(), !held);
    }
}

/// Who had the route when a backup was taken is restored with its status.
#[tokio::test]
async fn a_restored_owner_does_not_take_the_route_from_who_serves_it_now() {
    let mut world = World::new().await;
    let routing = json!({
        "generation": 5, "variants": [{"revision": REVISION, "role": "stable", "weight": 100}],
    });
    let mut serves = serving();
    serves.routing = serde_json::from_value(routing).unwrap();
    let base = serde_json::to_value(&world.release).unwrap();
    let release = |name: &str, created: &str, of: &str| {
        let mut release = base.clone();
        let mut status = serde_json::to_value(&serves).unwrap();
        status["uid"] = json!(of);
        release["metadata"]["name"] = json!(name);
        release["metadata"]["uid"] = json!(format!("of {name}"));
        release["metadata"]["creationTimestamp"] = json!(created);
        release["spec"]["route"] = json!("chat");
        release["status"] = status;
        release
    };
    let old = "1970-01-01T00:00:00Z";
    for (of, holder) in [("of an object of before", "ns/now"), ("of before", "ns/before")] {
        lock(&world.server).releases =
            vec![release("before", old, of), release("now", "1970-01-02T00:00:00Z", "of now")];
        world.look_again().await;
        let seen = crate::signals::gateways::Seen { gateways: vec![], departed: vec![] };
        let named = world.context.caches.release(&Named::new("ns", "now")).unwrap();
        let seen = observe(&named, seen, &BTreeMap::new(), &world.context).unwrap();
        assert_eq!(
            seen.route_held_by.as_deref(),
            Some(holder).filter(|by| *by != "ns/now"),
            "{of}"
        );
    }
}

/// Both are restored with their statuses, and none serves yet.
#[tokio::test]
async fn a_restored_owner_goes_before_one_that_only_waited_for_the_route() {
    let mut world = World::new().await;
    let base = serde_json::to_value(&world.release).unwrap();
    let release = |(namespace, name): (&str, &str), status: Value| {
        let mut release = base.clone();
        release["metadata"]["name"] = json!(name);
        release["metadata"]["namespace"] = json!(namespace);
        release["metadata"]["uid"] = json!(format!("of {name}"));
        release["spec"]["route"] = json!("chat");
        release["status"] = status;
        release
    };
    let mut served = serving();
    served.routing = serde_json::from_value(json!({
        "generation": 5, "variants": [{"revision": REVISION, "role": "stable", "weight": 100}],
    }))
    .unwrap();
    served.uid = Some("of an object of before".into());
    for (namespace, written_for, holder) in [
        ("ns", Some("ns/was-owner"), "ns/was-owner"),
        ("tenant", Some("ns/was-owner"), "ns/was-owner"),
        // An earlier version did not say for whom a status was written.
        ("ns", None, "ns/an-older"),
    ] {
        served.written_for = written_for.map(str::to_owned);
        let owner = release(("ns", "was-owner"), serde_json::to_value(&served).unwrap());
        let waits = release((namespace, "an-older"), json!({"phase": "Pending"}));
        lock(&world.server).releases = vec![waits, owner];
        world.look_again().await;
        for key in ["ns/was-owner".to_owned(), format!("{namespace}/an-older")] {
            let (of, name) = key.split_once('/').unwrap();
            let release = world.context.caches.release(&Named::new(of, name)).unwrap();
            let seen = crate::signals::gateways::Seen { gateways: vec![], departed: vec![] };
            let seen = observe(&release, seen, &BTreeMap::new(), &world.context).unwrap();
            let expected = Some(holder).filter(|holder| *holder != key);
            assert_eq!(seen.route_held_by.as_deref(), expected, "{key} beside {written_for:?}");
        }
    }
}
