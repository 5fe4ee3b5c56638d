"""What survives of a release whose object, status or copies are lost."""

import json
import time

import pytest

from harness import manifests as m
from harness.cluster import GROUP
from harness.processes import wait_for
from harness.traffic import Traffic


def copies(world, name: str, namespace: str = "default") -> list[dict]:
    text = world.cluster.kubectl("get", "releasesnapshots", "-n", namespace,
                                 "-l", f"serinus.dev/release={name}", "-o", "json")
    return json.loads(text)["items"]


def failed_once(world, name: str) -> tuple[str, str]:
    """A release whose second prompt was rolled back, and is still what its spec names."""
    stable = world.first(name)["status"]["stable"]["revision"]
    with Traffic(world.gateways, name):
        world.next(name, "v2", "firstTokenMs=20 errorRate=0.5")
        release = world.wait_phase(name, "RolledBack", seconds=90)
    return stable, release["status"]["failedRevision"]


def back(world, name: str, uid: str, *phases: str) -> dict:
    """The release as it is when another object of its name has come to `phases`."""
    def reached():
        release = world.cluster.release(name)
        return (release["metadata"]["uid"] != uid and release.get("status", {}).get("phase") in phases) and release
    return wait_for(f"{name} back", reached, 60)


def without_identity(o: dict) -> dict:
    for part in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"):
        o["metadata"].pop(part, None)
    return o


def bare(release: dict) -> dict:
    """What a backup without statuses, or a folder in git, has of it."""
    meta = {k: v for k, v in release["metadata"].items() if k in ("name", "namespace", "annotations", "labels")}
    meta.get("annotations", {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return {"apiVersion": m.API, "kind": release["kind"], "metadata": meta, "spec": release["spec"]}


def test_what_failed_stays_out_when_the_release_is_replaced(world):
    stable, failed = failed_once(world, "replaced")
    release = world.cluster.release("replaced")
    with Traffic(world.gateways, "replaced") as users:
        world.cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(bare(release)))
        now = back(world, "replaced", release["metadata"]["uid"], "RolledBack", "Stable", "Progressing")
        time.sleep(3)
    assert (now["status"]["stable"]["revision"], now["status"]["failedRevision"]) == (stable, failed)
    assert {s.revision for s in users.seen if s.ok} == {stable}
    assert world.phase("replaced") == "RolledBack"
    outcomes = [(h["revision"], h["outcome"]) for h in now["status"]["history"]]
    assert outcomes == [(stable, "Initial"), (failed, "RolledBack")]
    # Somebody who knows better may ask.
    world.cluster.patch("promptrelease", "replaced", {"metadata": {"annotations": {
        "serinus.dev/retry": f"{failed} by=ada"}}})
    wait_for("the retry", lambda: world.phase("replaced") == "Progressing")


def test_deleted_and_applied_again_it_goes_on_and_something_new_goes_through_a_canary(world):
    stable, failed = failed_once(world, "returned")
    release = world.cluster.release("returned")
    world.cluster.kubectl("delete", "promptrelease", "returned")
    # Long enough for the garbage collector and for the operator to see that it is gone.
    wait_for("the note", lambda: any("absentSince" in c["metadata"].get("annotations", {}).get(
        "serinus.dev/remembered", "") for c in copies(world, "returned")))
    left = copies(world, "returned")
    assert [c["metadata"]["labels"]["serinus.dev/revision"] for c in left] == [stable]
    # Its origins may be gone, too.
    world.cluster.kubectl("delete", "promptversion", "returned-v1")
    world.cluster.apply([m.prompt("returned-v3", "firstTokenMs=15"), {
        **bare(release), "spec": {**release["spec"], "promptRef": {"name": "returned-v3"}}}])
    back(world, "returned", release["metadata"]["uid"], "Progressing", "Stable", "Promoting")
    uid = world.cluster.release("returned")["metadata"]["uid"]
    seen = lambda: [o["status"] for _, o in world.watcher.of("returned") if o["metadata"]["uid"] == uid]
    first = wait_for("the watcher", seen)[0]
    assert [(v["revision"], v["weight"]) for v in first["routing"]["variants"]] == [(stable, 100)]
    with Traffic(world.gateways, "returned") as users:
        wait_for("the promotion", lambda: ("returned-v3", "Promoted") in world.history("returned"), 90)
    assert not users.errors(), users.errors()[:3]
    assert failed not in {s.revision for s in users.seen}
    assert "absentSince" not in json.dumps(copies(world, "returned"))


def test_a_restore_without_statuses_takes_back_no_decision_and_repeats_no_request(world):
    """As Velero restores: objects and copies of before, without status, under a dead operator."""
    stable, failed = failed_once(world, "restored")
    world.cluster.patch("promptrelease", "restored", {"metadata": {"annotations": {
        "serinus.dev/retry": f"{failed} by=ada at=then"}}})
    with Traffic(world.gateways, "restored"):
        wait_for("the second failure", lambda: world.history("restored").count(("restored-v2", "RolledBack")) == 2, 90)
        world.wait_phase("restored", "RolledBack")
    release, kept = world.cluster.release("restored"), copies(world, "restored")
    for operator in world.operators:
        operator.process.stop()
    world.cluster.kubectl("delete", "promptrelease", "restored")
    world.cluster.kubectl("delete", "releasesnapshots", "-l", "serinus.dev/release=restored")
    for copy in kept:
        world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(without_identity(copy)))
    world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
    time.sleep(3)  # for the garbage collector
    for operator in world.operators:
        operator.start()
    now = back(world, "restored", release["metadata"]["uid"], "RolledBack", "Progressing", "Stable")
    time.sleep(2)
    now = world.cluster.release("restored")
    assert (now["status"]["phase"], now["status"]["stable"]["revision"]) == ("RolledBack", stable), now["status"]


@pytest.mark.parametrize("names", ["the failed one", "a new one"])
def test_a_restore_may_bring_the_snapshots_after_the_release(world, names):
    """As Velero does, in alphabetical order, under a running operator."""
    name = "late-failed" if names == "the failed one" else "late-new"
    stable, failed = failed_once(world, name)
    release, kept = world.cluster.release(name), copies(world, name)
    if names == "a new one":
        world.cluster.apply(m.prompt(f"{name}-v3", "firstTokenMs=15"))
        release["spec"]["promptRef"]["name"] = f"{name}-v3"
    world.cluster.kubectl("delete", "promptrelease", name)
    wait_for("the note", lambda: "absentSince" in json.dumps(copies(world, name)))
    world.cluster.kubectl("delete", "releasesnapshots", "-l", f"serinus.dev/release={name}")
    world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
    first = back(world, name, release["metadata"]["uid"], "Stable")
    uid, served = first["metadata"]["uid"], first["status"]["stable"]["revision"]
    assert served != stable and first["status"]["history"][0]["outcome"] == "Initial"
    for copy in kept:
        world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(without_identity(copy)))
    if names == "the failed one":
        now = world.wait_phase(name, "RolledBack")
        with Traffic(world.gateways, name) as users:
            time.sleep(3)
        assert {s.revision for s in users.seen if s.ok} == {stable}
        assert now["status"]["failedRevision"] == failed == served
    else:
        with Traffic(world.gateways, name):
            wait_for("the promotion", lambda: (f"{name}-v3", "Promoted") in world.history(name), 90)
            world.wait_phase(name, "Stable")  # a bake that is cut short is not gone on with
    # A canary was never more than one, and it was said what happened.
    weights = [{v["revision"]: v["weight"] for v in o["status"]["routing"]["variants"]}
               for _, o in world.watcher.of(name) if o["metadata"]["uid"] == uid]
    alone = [next(iter(w)) for w in weights if len(w) == 1]
    assert alone[0] == served and stable in alone, weights
    history = world.cluster.release(name)["status"]["history"]
    assert [(h["revision"], h["outcome"], h["reason"]) for h in history[:4]] == [
        (stable, "Initial", "FirstRelease"), (failed, "RolledBack", "MetricFailed"),
        (served, "Initial", "FirstRelease"), (served, "Withdrawn", "Returned")]
    assert "its ReleaseSnapshots came after it" in world.cluster.kubectl("get", "events", "-o", "yaml")
    # It is known from now on, also when the object is lost again.
    world.cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(bare(release)))
    phase = "RolledBack" if names == "the failed one" else "Stable"
    again = back(world, name, uid, phase)
    assert (again["status"]["stable"]["revision"] == stable) == (names == "the failed one")


def test_another_release_on_the_route_is_held_and_said_until_somebody_approves(world):
    world.first("route-a", route="shared-route")
    first = world.cluster.release("route-a")
    world.cluster.apply([m.prompt("route-b-v1"), m.release("route-b", "route-b-v1", route="shared-route")])
    reason = lambda: next((c["reason"] for c in world.cluster.release("route-b").get("status", {}).get("conditions", [])
                           if c["type"] == "Ready"), None)
    wait_for("the refusal", lambda: reason() == "RouteTaken")
    world.cluster.kubectl("delete", "promptrelease", "route-a")
    held = world.wait_phase("route-b", "Held")
    assert reason() == "FirstReleaseHeld"
    # The owner was away for a moment: it has its route back, and is not the younger one now.
    world.cluster.apply(bare(first))
    back(world, "route-a", first["metadata"]["uid"], "Stable")
    wait_for("the refusal", lambda: reason() == "RouteTaken")
    world.cluster.kubectl("delete", "promptrelease", "route-a")
    wait_for("the hold", lambda: reason() == "FirstReleaseHeld")
    message = next(c["message"] for c in world.cluster.release("route-b")["status"]["conditions"] if c["type"] == "Ready")
    revision = message.split("approve ")[1].split()[0]
    assert "default/route-a" in message and held
    world.cluster.patch("promptrelease", "route-b", {"metadata": {"annotations": {
        "serinus.dev/approve": f"{revision} by=ada"}}})
    world.wait_phase("route-b", "Stable")


def test_a_route_whose_owner_is_away_for_a_moment_is_not_given_to_another_namespace(world):
    """The same manifests elsewhere, another content elsewhere, and approvals in advance."""
    cluster = world.cluster
    def elsewhere(o, **annotations):
        o = json.loads(json.dumps(o))
        o["metadata"]["namespace"] = "waiting"
        o["metadata"]["annotations"] = annotations
        return o
    cluster.kubectl("create", "namespace", "waiting")
    world.first("owned")
    owner = cluster.release("owned")
    same, other = m.release("owned", "owned-v1"), m.release("owned-too", "owned-v2", route="owned")
    mine = m.release("mine", "owned-v2")
    cluster.apply([elsewhere(o) for o in (
        m.backend("model", world.model.url), m.policy("quick"), m.prompt("owned-v1", "firstTokenMs=20"),
        m.prompt("owned-v2", "firstTokenMs=21"), same, other, mine)])
    status = lambda name: cluster.release(name, "waiting").get("status", {})
    ready = lambda name: next((c for c in status(name).get("conditions", []) if c["type"] == "Ready"), {"reason": ""})
    wait_for("its own route", lambda: status("mine").get("phase") == "Stable")
    revision = status("mine")["stable"]["revision"]
    for name in ("owned", "owned-too"):
        wait_for("the refusal", lambda: ready(name)["reason"] == "RouteTaken")
    ask = {"serinus.dev/approve": f"{revision} by=thief"}
    cluster.apply([elsewhere(other, **ask)])
    refused = lambda: [r for r in status("owned-too").get("requests", []) if not r["accepted"]]
    assert "default/owned" in wait_for("the refusal", refused)[0]["message"]
    # Replaced: away for less than the operator needs to see it.
    cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(bare(owner)))
    back(world, "owned", owner["metadata"]["uid"], "Stable")
    # Away for longer: an approval is too early, the owner has its route again.
    cluster.kubectl("delete", "promptrelease", "owned")
    held = lambda name: ready(name)["reason"] == "FirstReleaseHeld"
    wait_for("the hold", lambda: held("owned") or held("owned-too"))
    first, second = ("owned", "owned-too") if held("owned") else ("owned-too", "owned")
    assert "default/owned" in ready(first)["message"]
    cluster.patch("promptrelease", "owned-too", {"metadata": {"annotations": {
        "serinus.dev/approve": f"{revision} by=thief at=once"}}}, "waiting")
    wait_for("the refusal", lambda: any("at=once" in r["value"] for r in refused()))
    time.sleep(5)
    assert not [n for n in ("owned", "owned-too") if status(n).get("routing", {}).get("variants")]
    uid = owner["metadata"]["uid"]
    cluster.apply(bare(owner))
    back(world, "owned", uid, "Stable")
    for name in ("owned", "owned-too"):
        wait_for("the refusal", lambda: ready(name)["reason"] == "RouteTaken")
    # Who has rights in the owner's namespace may give the route away at once.
    cluster.kubectl("delete", "promptrelease", "owned")
    wait_for("the hold", lambda: held(first))
    wait_for("the note", lambda: any("absentSince" in c["metadata"].get("annotations", {}).get(
        "serinus.dev/remembered", "") for c in copies(world, "owned")))
    cluster.kubectl("delete", "releasesnapshots", "-l", "serinus.dev/release=owned")
    wait_for("the route", lambda: status(first).get("phase") == "Stable")
    assert ready(second)["reason"] == "RouteTaken"
    cluster.kubectl("delete", "namespace", "waiting", "--wait=false")


def test_a_copy_in_another_namespace_takes_no_route_while_its_owner_is_replaced(world):
    """As Velero restores into another namespace, ReleaseSnapshots and all."""
    cluster = world.cluster
    cluster.kubectl("create", "namespace", "staging")
    world.first("clone")
    owner, kept = cluster.release("clone"), copies(world, "clone")

    def there(o: dict) -> dict:
        o = json.loads(json.dumps(o))
        for part in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "ownerReferences"):
            o["metadata"].pop(part, None)
        o["metadata"]["namespace"] = "staging"
        return o
    for o in [*kept, m.backend("model", world.model.url), m.policy("quick"), m.prompt("clone-v1", "firstTokenMs=20"),
              m.prompt("clone-v9", "firstTokenMs=20"), bare(owner)]:
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(there(o)))
    reason = lambda: next((c["reason"] for c in cluster.release("clone", "staging").get("status", {}).get("conditions", [])
                           if c["type"] == "Ready"), "")
    wait_for("the refusal", lambda: reason() == "RouteTaken")
    cluster.patch("promptrelease", "clone", {"spec": {"promptRef": {"name": "clone-v9"}}}, "staging")
    for _ in range(4):
        uid = cluster.release("clone")["metadata"]["uid"]
        cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(bare(owner)))
        back(world, "clone", uid, "Stable")
    cluster.kubectl("delete", "promptrelease", "clone")
    time.sleep(8)
    assert not cluster.release("clone", "staging")["status"].get("routing", {}).get("variants")
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(owner)))
    back(world, "clone", uid, "Stable")
    wait_for("the refusal", lambda: reason() == "RouteTaken")
    cluster.kubectl("delete", "namespace", "staging", "--wait=false")


def test_a_status_from_a_backup_brings_back_nothing_that_has_failed_since(world):
    """As Velero restores with statuses, while the ReleaseSnapshots are those of today."""
    world.first("backup")
    before = world.cluster.release("backup")["status"]
    stable = before["stable"]["revision"]
    with Traffic(world.gateways, "backup"):
        world.next("backup", "v2", "firstTokenMs=20 errorRate=0.5")
        during = world.wait_phase("backup", "Progressing", seconds=30)["status"]
        release = world.wait_phase("backup", "RolledBack", seconds=90)
    failed, generation = release["status"]["failedRevision"], release["status"]["routing"]["generation"]
    for status in (before, during):
        for operator in world.operators:
            operator.process.stop()
        uid = world.cluster.release("backup")["metadata"]["uid"]
        world.cluster.kubectl("delete", "promptrelease", "backup")
        world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
        world.cluster.kubectl("patch", "promptrelease", "backup", "--subresource=status", "--type=merge", "-p",
                              json.dumps({"status": status}))
        for operator in world.operators:
            operator.start()
        back(world, "backup", uid, "RolledBack")
        with Traffic(world.gateways, "backup") as users:
            time.sleep(5)
        assert {s.revision for s in users.seen if s.ok} == {stable}
        now = world.cluster.release("backup")["status"]
        assert (now["phase"], now["stable"]["revision"], now["failedRevision"]) == ("RolledBack", stable, failed)
        assert now["routing"]["generation"] > generation
        generation = now["routing"]["generation"]


def routed(world, name: str) -> dict[str, int]:
    variants = world.cluster.release(name).get("status", {}).get("routing", {}).get("variants", [])
    return {v["revision"]: v["weight"] for v in variants}


@pytest.mark.parametrize("then", ["promoted", "failed"])
def test_a_snapshot_of_an_earlier_life_of_the_name_takes_nothing_from_users(world, then):
    """As Velero restores what is missing: the backup has a ReleaseSnapshot of before."""
    name = f"life-{then}"
    before, _ = failed_once(world, name)
    release = world.cluster.release(name)
    # Replaced once: its generations are far ahead of those of a new release.
    world.cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(bare(release)))
    back(world, name, release["metadata"]["uid"], "RolledBack")
    wait_for("its note", lambda: any(json.loads(c["metadata"].get("annotations", {}).get(
        "serinus.dev/remembered", "{}")).get("generation", 0) > 1000 for c in copies(world, name)))
    kept = copies(world, name)
    # The name begins anew, as docs/reasons.md says.
    world.cluster.kubectl("delete", "promptrelease", name)
    time.sleep(4)
    world.cluster.kubectl("delete", "releasesnapshots", "-l", f"serinus.dev/release={name}")
    time.sleep(2)
    world.cluster.apply([m.prompt(f"{name}-v3", "firstTokenMs=20"), m.release(name, f"{name}-v3")])
    world.wait_phase(name, "Stable")
    with Traffic(world.gateways, name):
        if then == "promoted":
            world.next(name, "v4", "firstTokenMs=20")
            wait_for("the promotion", lambda: (f"{name}-v4", "Promoted") in world.history(name)
                     and world.phase(name) == "Stable", 90)
        else:
            # What the earlier life had as stable is aborted in this one.
            world.cluster.patch("promptrelease", name, {"spec": {"promptRef": {"name": f"{name}-v1"}}})
            world.wait_phase(name, "Progressing", seconds=30)
            world.cluster.patch("promptrelease", name, {"metadata": {"annotations": {
                "serinus.dev/abort": f"{before} by=ada"}}})
            world.wait_phase(name, "RolledBack", seconds=30)
            wait_for("its copy to go", lambda: f"{name}-{before}" not in {
                c["metadata"]["name"] for c in copies(world, name)})
    status = world.cluster.release(name)["status"]
    serves, failed = status["stable"]["revision"], status.get("failedRevision")
    assert serves != before and (failed == before) == (then == "failed")
    there = {c["metadata"]["name"] for c in copies(world, name)}
    for copy in kept:
        if copy["metadata"]["name"] not in there:
            world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(without_identity(copy)))
    with Traffic(world.gateways, name) as users:
        if then == "promoted":  # Who names it in the spec is told of its failure.
            wait_for("what is told", lambda: "another object of this name" in json.dumps(
                world.cluster.release(name)["status"]["conditions"]))
        time.sleep(5)
    assert {s.revision for s in users.seen if s.ok} == {serves}
    now = world.cluster.release(name)["status"]
    assert (now["stable"]["revision"], now.get("failedRevision")) == (serves, failed)
    assert routed(world, name) == {serves: 100}
    assert then == "failed" or "KnownTooLate" in world.cluster.kubectl("get", "events", "-o", "yaml")


@pytest.mark.parametrize("how", ["replaced", "deleted for a moment"])
def test_a_bake_that_is_cut_short_goes_back_to_the_previous_variant(world, how):
    name = f"bake-{how.split()[0]}"
    world.cluster.apply(m.policy("longbake", bake={"duration": "10m", "holdback": 10}))
    stable = world.first(name, policy="longbake")["status"]["stable"]["revision"]
    with Traffic(world.gateways, name, rate=80) as users:
        world.next(name, "v2", "firstTokenMs=20")
        release = world.wait_phase(name, "Baking", seconds=90)
        baked = release["status"]["stable"]["revision"]
        uid = release["metadata"]["uid"]
        if how == "replaced":
            world.cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(bare(release)))
        else:
            world.cluster.kubectl("delete", "promptrelease", name)
            time.sleep(5)  # its absence is noted
            assert f"{name}-{stable}" in {c["metadata"]["name"] for c in copies(world, name)}
            world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
        back(world, name, uid, "Promoting", "Stable", "Progressing")
        wait_for("the canary", lambda: world.phase(name) in ("Progressing", "Baking"), 60)
        wait_for("its bake", lambda: world.phase(name) == "Baking", 90)
    now = world.cluster.release(name)
    outcomes = [(h["revision"], h["outcome"], h["reason"]) for h in now["status"]["history"]]
    assert outcomes == [(stable, "Initial", "FirstRelease"), (baked, "Promoted", "Promoted"),
                        (baked, "Withdrawn", "Returned"), (baked, "Promoted", "Promoted")]
    assert now["status"]["previous"]["revision"] == stable
    seen = [{v["revision"]: v["weight"] for v in o["status"]["routing"]["variants"]}
            for _, o in world.watcher.of(name) if o["metadata"]["uid"] != uid]
    assert {stable: 100} in seen and {baked: 100} not in seen, seen
    assert "was not over" in world.cluster.kubectl("get", "events", "-o", "yaml")
    assert users.seen


def test_a_bake_whose_previous_copy_is_gone_goes_on_at_once_if_it_can_be_made_again(world):
    world.cluster.apply(m.policy("longbake", bake={"duration": "10m", "holdback": 10}))
    stable = world.first("copyless", policy="longbake")["status"]["stable"]["revision"]
    with Traffic(world.gateways, "copyless", rate=80):
        world.next("copyless", "v2", "firstTokenMs=20")
        release = world.wait_phase("copyless", "Baking", seconds=90)
    for operator in world.operators:
        operator.process.stop()
    world.cluster.kubectl("delete", "promptrelease", "copyless")
    world.cluster.kubectl("delete", "releasesnapshot", f"copyless-{stable}")
    world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
    for operator in world.operators:
        operator.start()
    back(world, "copyless", release["metadata"]["uid"], "Promoting", "Stable", "Progressing")
    wait_for("its copy", lambda: f"copyless-{stable}" in {
        c["metadata"]["name"] for c in copies(world, "copyless")})
    with Traffic(world.gateways, "copyless") as users:
        time.sleep(3)
    assert not users.errors(), users.errors()[:5]
    assert world.cluster.release("copyless")["status"]["stable"]["revision"] == stable


def test_a_release_whose_note_is_gone_is_held_until_somebody_approves(world):
    stable, failed = failed_once(world, "noteless")
    release = world.cluster.release("noteless")
    for operator in world.operators:
        operator.process.stop()
    for copy in copies(world, "noteless"):
        world.cluster.kubectl("annotate", "releasesnapshot", copy["metadata"]["name"], "serinus.dev/remembered-")
    world.cluster.kubectl("delete", "promptrelease", "noteless")
    world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
    for operator in world.operators:
        operator.start()
    held = back(world, "noteless", release["metadata"]["uid"], "Held", "Stable", "Progressing")
    time.sleep(3)
    held = world.cluster.release("noteless")
    ready = next(c for c in held["status"]["conditions"] if c["type"] == "Ready")
    assert (held["status"]["phase"], ready["reason"]) == ("Held", "FirstReleaseHeld"), held["status"]
    assert stable[:10] in ready["message"] and "no note" in ready["message"]
    assert routed(world, "noteless") == {}
    world.cluster.patch("promptrelease", "noteless", {"metadata": {"annotations": {
        "serinus.dev/approve": f"{failed} by=ada"}}})
    world.wait_phase("noteless", "Stable")
    assert routed(world, "noteless") == {failed: 100}


def test_copies_that_are_restored_before_their_release_stay_until_it_comes(world):
    """In the documented order, of a moment in a bake; the previous variant's prompt is gone."""
    name = "restored-bake"
    world.cluster.apply(m.policy("longbake", bake={"duration": "10m", "holdback": 10}))
    stable = world.first(name, policy="longbake")["status"]["stable"]["revision"]
    with Traffic(world.gateways, name, rate=80):
        world.next(name, "v2", "firstTokenMs=20")
        release = world.wait_phase(name, "Baking", seconds=90)
    world.cluster.kubectl("delete", "promptversion", f"{name}-v1")
    kept = copies(world, name)
    world.cluster.kubectl("delete", "promptrelease", name)
    time.sleep(4)
    world.cluster.kubectl("delete", "releasesnapshots", "-l", f"serinus.dev/release={name}")
    for copy in kept:
        world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(without_identity(copy)))
    time.sleep(8)
    assert {c["metadata"]["name"] for c in copies(world, name)} == {c["metadata"]["name"] for c in kept}
    for operator in world.operators:  # the status comes after the object
        operator.process.stop()
    world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bare(release)))
    world.cluster.kubectl("patch", "promptrelease", name, "--subresource=status", "--type=merge", "-p",
                          json.dumps({"status": release["status"]}))
    for operator in world.operators:
        operator.start()
    wait_for("a leader", lambda: world.leader)
    back(world, name, release["metadata"]["uid"], "Baking", "Stable", "Progressing")
    time.sleep(4)
    assert f"{name}-{stable}" in {c["metadata"]["name"] for c in copies(world, name)}
    conditions = world.cluster.release(name)["status"]["conditions"]
    assert not [c for c in conditions if (c["type"], c["status"]) == ("SnapshotsKept", "False")], conditions


def test_what_failed_on_a_route_is_known_when_the_release_had_another_one_meanwhile(world):
    _, failed = failed_once(world, "moved")
    release = world.cluster.release("moved")
    for spec in ({**release["spec"], "route": "moved-elsewhere"}, release["spec"]):
        world.cluster.kubectl("delete", "promptrelease", "moved")
        time.sleep(4)  # its absence is noted
        world.cluster.apply({**bare(release), "spec": spec})
        world.wait_phase("moved", "Stable", "Held")
    status = world.cluster.release("moved")["status"]
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Ready")
    assert (status["phase"], status["routing"]["variants"]) == ("Held", []), status
    assert failed[:10] in message and "failed there" in message


def test_copies_that_somebody_deletes_are_made_again(world):
    steps = [{"weight": 20, "samples": 1_000_000}]
    world.cluster.apply(m.policy("long", steps=steps))
    world.first("healed", policy="long")
    with Traffic(world.gateways, "healed", rate=20) as users:
        world.next("healed", "v2", "firstTokenMs=20")
        world.wait_phase("healed", "Progressing")
        before = {c["metadata"]["name"]: c for c in copies(world, "healed")}
        assert len(before) == 3, "stable, canary and the policy"
        for name in before:
            world.cluster.kubectl("delete", "releasesnapshot", name)
            wait_for("the copy", lambda: name in {c["metadata"]["name"] for c in copies(world, "healed")})
        after = {c["metadata"]["name"]: c for c in copies(world, "healed")}
        time.sleep(1)
        assert world.phase("healed") == "Progressing"
    assert not users.errors(), users.errors()[:3]
    for name, copy in before.items():
        assert after[name]["metadata"]["uid"] != copy["metadata"]["uid"]
        assert after[name]["spec"] == copy["spec"]
        noted = lambda c: {k: v for k, v in json.loads(c["metadata"].get("annotations", {}).get(
            "serinus.dev/remembered", "{}")).items() if k not in ("generation", "notedAt")}
        assert noted(after[name]) == noted(copy)
    # Gone for good is what has no origin any more: stable's prompt, then its copy.
    stable = world.cluster.release("healed")["status"]["stable"]["revision"]
    there = lambda: f"healed-{stable}" in {c["metadata"]["name"] for c in copies(world, "healed")}
    world.cluster.kubectl("delete", "promptversion", "healed-v1")
    world.cluster.kubectl("delete", "releasesnapshot", f"healed-{stable}")
    told = wait_for("the condition", lambda: kept(world, "healed", "False"))
    assert told["reason"] == "SnapshotLost" and "PromptVersion healed-v1 does not exist" in told["message"]
    assert f"ReleaseSnapshot healed-{stable}" in told["message"]
    assert not there()
    # Its origin comes back, and with it the copy.
    world.cluster.apply(m.prompt("healed-v1", "firstTokenMs=20"))
    wait_for("the copy", there)
    wait_for("the condition", lambda: kept(world, "healed", "True"))
    # Another content under the same name is not what was served.
    world.cluster.kubectl("delete", "promptversion", "healed-v1")
    world.cluster.apply(m.prompt("healed-v1", "firstTokenMs=21"))
    world.cluster.kubectl("delete", "releasesnapshot", f"healed-{stable}")
    told = wait_for("the condition", lambda: kept(world, "healed", "False"))
    assert "another content" in told["message"] and not there()


def kept(world, name: str, status: str) -> dict | None:
    """The condition that says whether all snapshots are there, if it has that status."""
    conditions = world.cluster.release(name).get("status", {}).get("conditions", [])
    return next((c for c in conditions if (c["type"], c["status"]) == ("SnapshotsKept", status)), None)


def test_a_lost_copy_is_told_while_nothing_runs_and_comes_back_with_its_origin(world):
    """After a rollback nothing names stable's prompt, and nothing looks at the release."""
    stable, _ = failed_once(world, "lost")
    world.cluster.kubectl("delete", "promptversion", "lost-v1")
    world.cluster.kubectl("delete", "releasesnapshot", f"lost-{stable}")
    wait_for("the condition", lambda: kept(world, "lost", "False"))
    with Traffic(world.gateways, "lost", rate=10) as users:
        wait_for("answers of gateways that have it", lambda: len(users.seen) > 5)
    assert not users.errors(), users.errors()[:3]
    world.cluster.apply(m.prompt("lost-v1", "firstTokenMs=20"))
    wait_for("the condition", lambda: kept(world, "lost", "True"))
    assert f"lost-{stable}" in {c["metadata"]["name"] for c in copies(world, "lost")}
    # The spec names what serves, and its prompt is deleted.
    world.first("lost-too")
    stable = world.cluster.release("lost-too")["status"]["stable"]["revision"]
    world.cluster.kubectl("delete", "promptversion", "lost-too-v1")
    world.cluster.kubectl("delete", "releasesnapshot", f"lost-too-{stable}")
    told = wait_for("the condition", lambda: kept(world, "lost-too", "False"))
    assert told["reason"] == "SnapshotLost"
    assert "SnapshotLost" in world.cluster.kubectl("get", "events", "-o", "yaml")
