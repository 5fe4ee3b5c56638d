"""A release that somebody has deleted, and whose object a finalizer holds: users still get it."""

import json
import time

import httpx
import pytest
from harness import manifests as m
from harness.processes import wait_for
from harness.traffic import Traffic

HOLD = {"metadata": {"finalizers": ["example.com/hold"]}}
FREE = {"metadata": {"finalizers": None}}


def condition(world, name: str, type_: str, namespace: str = "default") -> dict:
    conditions = world.cluster.release(name, namespace).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == type_), {})


def routed(world, name: str, namespace: str = "default") -> dict[str, int]:
    variants = world.cluster.release(name, namespace)["status"]["routing"]["variants"]
    return {v["role"]: v["weight"] for v in variants}


@pytest.mark.parametrize("way", ["a finalizer", "a dependant in the foreground"])
def test_a_canary_of_a_release_that_is_being_deleted_is_judged_to_its_end(world, way):
    name = "held-by-finalizer" if way == "a finalizer" else "held-in-foreground"
    cluster = world.cluster
    world.first(name)
    uid = cluster.release(name)["metadata"]["uid"]
    dependant = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": name, "namespace": "default", "finalizers": ["example.com/hold"],
        "ownerReferences": [{"apiVersion": m.API, "kind": "PromptRelease", "name": name, "uid": uid,
                             "blockOwnerDeletion": True}]}}
    holder = "example.com/hold" if way == "a finalizer" else "foregroundDeletion"
    try:
        if way == "a finalizer":
            cluster.patch("promptrelease", name, HOLD)
        else:
            cluster.apply(dependant)
        world.next(name, "v2", "firstTokenMs=20 errorRate=0.5")
        world.wait_phase(name, "Progressing")
        cascade = "background" if way == "a finalizer" else "foreground"
        cluster.kubectl("delete", "promptrelease", name, f"--cascade={cascade}", "--wait=false")
        told = wait_for("the condition", lambda: condition(world, name, "Deleting"))
        assert told["status"] == "True" and holder in told["message"], told
        with Traffic(world.gateways, name) as users:
            world.wait_phase(name, "RolledBack", seconds=90)
            since = time.monotonic()
            time.sleep(2)
        stable = cluster.release(name)["status"]["stable"]["revision"]
        assert {s.revision for s in users.seen if s.ok and s.at > since + 0.5} == {stable}
        # Nothing new starts, and who asks for it is told why.
        failed = cluster.release(name)["status"]["failedRevision"]
        cluster.kubectl("annotate", "promptrelease", name, f"serinus.dev/retry={failed} by=ada")
        requests = lambda: cluster.release(name)["status"].get("requests", [])
        refused = wait_for("the refusal", lambda: [r for r in requests() if r["action"] == "retry"])
        assert not refused[0]["accepted"] and "being deleted" in refused[0]["message"], refused
        world.next(name, "v3", "firstTokenMs=20")
        wait_for("the message", lambda: "no canary of" in condition(world, name, "Ready").get("message", ""))
        assert holder in condition(world, name, "Ready")["message"]
        assert routed(world, name) == {"stable": 100}
        assert "BeingDeleted" in cluster.kubectl("get", "events", "-o", "yaml")
    finally:
        cluster.patch("promptrelease", name, FREE)
        if way != "a finalizer":
            cluster.kubectl("patch", "configmap", name, "--type=merge", "-p", json.dumps(FREE))
    wait_for("its end", lambda: name not in cluster.kubectl("get", "promptreleases", "-o", "name"))


def test_a_canary_of_a_release_that_is_being_deleted_can_be_aborted(world):
    name, cluster = "held-and-aborted", world.cluster
    cluster.apply(m.policy("endless", steps=[{"weight": 20, "samples": 1_000_000}]))
    world.first(name, policy="endless")
    cluster.patch("promptrelease", name, HOLD)
    try:
        world.next(name, "v2", "firstTokenMs=20")
        world.wait_phase(name, "Progressing")
        canary = cluster.release(name)["status"]["canary"]["revision"]
        cluster.kubectl("delete", "promptrelease", name, "--wait=false")
        cluster.kubectl("annotate", "promptrelease", name, f"serinus.dev/abort={canary} by=ada")
        world.wait_phase(name, "RolledBack")
        assert routed(world, name) == {"stable": 100}
    finally:
        cluster.patch("promptrelease", name, FREE)


def test_a_namespace_that_waits_for_a_release_costs_no_other_release_its_judge(world):
    """Nothing can be created there any more, and what the canary is judged by is deleted."""
    cluster, space = world.cluster, "leaving"
    def there(o: dict) -> dict:
        return {**o, "metadata": {**o["metadata"], "namespace": space}}
    cluster.kubectl("create", "namespace", space)
    endless = m.policy("endless", steps=[{"weight": 20, "samples": 1_000_000}])
    cluster.apply([there(o) for o in (
        m.backend("model", world.model.url), endless, m.prompt("gone-v1", "firstTokenMs=20"),
        m.prompt("gone-v2", "firstTokenMs=20"), m.release("gone", "gone-v1", policy_name="endless"))])
    phase = lambda: cluster.release("gone", space).get("status", {}).get("phase")
    wait_for("stable", lambda: phase() == "Stable")
    cluster.patch("promptrelease", "gone", HOLD, space)
    try:
        cluster.patch("promptrelease", "gone", {"spec": {"promptRef": {"name": "gone-v2"}}}, space)
        wait_for("the canary", lambda: routed(world, "gone", space).get("canary"))
        cluster.kubectl("delete", "namespace", space, "--wait=false")
        wait_for("the withdrawal", lambda: routed(world, "gone", space) == {"stable": 100}, 60)
        history = cluster.release("gone", space)["status"]["history"]
        assert (history[-1]["outcome"], history[-1]["reason"]) == ("Withdrawn", "PolicyLost"), history
        # Another release goes its way meanwhile, past the time after which a leader that can not
        # write is not believed any more.
        leader, since = world.leader, time.monotonic()
        world.first("staying")
        with Traffic(world.gateways, "staying") as users:
            world.next("staying", "v2", "firstTokenMs=20")
            wait_for("the promotion", lambda: ("staying-v2", "Promoted") in world.history("staying"), 90)
            while time.monotonic() < since + 50:
                ready = httpx.get(f"http://127.0.0.1:{leader.admin}/readyz?verbose")
                assert ready.status_code == 200 and world.leader is leader, ready.text
                time.sleep(1)
        assert not users.errors(), users.errors()[:3]
    finally:
        cluster.patch("promptrelease", "gone", FREE, space)


def test_a_release_at_rest_leaves_its_route_to_who_serves_it(world):
    """Nothing of its own changes: it is looked at because another release serves the route."""
    cluster, route = world.cluster, "handed-on-at-rest"
    world.first("resting", route=route)
    cluster.patch("promptrelease", "resting", HOLD)
    try:
        cluster.kubectl("delete", "promptrelease", "resting", "--wait=false")
        cluster.apply([m.prompt("waking-v1", "firstTokenMs=21"), m.release("waking", "waking-v1", route=route)])
        held = lambda: condition(world, "waking", "Ready")
        wait_for("the hold", lambda: held().get("reason") == "FirstReleaseHeld")
        assert routed(world, "resting") == {"stable": 100}
        revision = held()["message"].split("approve ")[1].split()[0]
        cluster.kubectl("annotate", "promptrelease", "waking", f"serinus.dev/approve={revision} by=ada")
        world.wait_phase("waking", "Stable")
        wait_for("the leave", lambda: routed(world, "resting") == {}, 5)
        assert condition(world, "resting", "Ready")["reason"] == "RouteTaken"
    finally:
        cluster.patch("promptrelease", "resting", FREE)


def test_who_waits_for_the_route_need_not_wait_for_a_finalizer(world):
    cluster, route = world.cluster, "handed-on"
    cluster.apply(m.policy("endless", steps=[{"weight": 20, "samples": 1_000_000}]))
    world.first("handing", policy="endless", route=route)
    cluster.patch("promptrelease", "handing", HOLD)
    try:
        world.next("handing", "v2", "firstTokenMs=20")
        world.wait_phase("handing", "Progressing")
        cluster.kubectl("delete", "promptrelease", "handing", "--wait=false")
        cluster.apply([m.prompt("taking-v1", "firstTokenMs=21"), m.release("taking", "taking-v1", route=route)])
        held = lambda: condition(world, "taking", "Ready")
        wait_for("the hold", lambda: held().get("reason") == "FirstReleaseHeld")
        # Nobody serves it yet, so users keep what they have.
        time.sleep(2)
        assert routed(world, "handing") == {"stable": 80, "canary": 20}
        revision = held()["message"].split("approve ")[1].split()[0]
        cluster.kubectl("annotate", "promptrelease", "taking", f"serinus.dev/approve={revision} by=ada")
        world.wait_phase("taking", "Stable")
        wait_for("the leave", lambda: routed(world, "handing") == {})
        assert condition(world, "handing", "Ready")["reason"] == "RouteTaken"
        stable = cluster.release("taking")["status"]["stable"]["revision"]
        time.sleep(1)
        with Traffic(world.gateways, route) as users:
            time.sleep(2)
        assert {s.revision for s in users.seen} == {stable}
    finally:
        cluster.patch("promptrelease", "handing", FREE)
