"""What releases keep: ReleaseSnapshots, whose content nobody changes, and those of versions before."""

import json
import os
import subprocess
import time

import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.serinus import BIN, Gateway
from harness.traffic import Traffic
from test_recreated import bare, copies, failed_once, kept


def of(world, name: str) -> dict:
    """The only snapshot of a release."""
    (found,) = copies(world, name)
    return found


CHANGES = {
    "a text in it": lambda s: s["variant"]["prompt"]["messages"][0].update(content="other"),
    "another field": lambda s: s["variant"]["prompt"].update(tools=[{"type": "function"}]),
    # As many fields as before, by other names: the API server compares fields that no schema
    # names by the names in the new object only.
    "a field by another name": lambda s: s["variant"]["prompt"].update(
        tools=[]) or s["variant"]["prompt"].pop("parameters"),
    "a field of the backend by another name": lambda s: s["variant"]["backend"].update(
        headers={"a": "b"}) or s["variant"]["backend"].pop("pricing"),
    "a key in a schema by another name": lambda s: s["variant"]["prompt"]["variables"].update(
        additionalProperties=True) or s["variant"]["prompt"]["variables"].pop("required"),
    "a field that is gone": lambda s: s["variant"]["backend"].pop("pricing"),
    "the name of the prompt": lambda s: s["variant"].update(promptName="other"),
    "another revision": lambda s: s.update(revision="0123456789"),
    "another release": lambda s: s.update(release="other"),
    "a policy instead": lambda s: s.update(type="Policy", policy={"spec": {}}) or s.pop("variant"),
}


def test_the_content_of_a_snapshot_can_not_be_changed(world):
    world.first("fixed")
    snapshot = of(world, "fixed")
    for what, change in CHANGES.items():
        changed = json.loads(json.dumps(snapshot))
        change(changed["spec"])
        assert changed != snapshot
        answer = world.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(changed), check=False)
        assert "can not be changed, only its labels and annotations" in answer, (what, answer)
        assert of(world, "fixed")["spec"] == snapshot["spec"]


def test_the_labels_and_annotations_of_a_snapshot_can_be_changed(world):
    world.first("labelled")
    name = of(world, "labelled")["metadata"]["name"]
    world.cluster.kubectl("label", "releasesnapshot", name, "team=search")
    world.cluster.kubectl("annotate", "relsnap", name, "why=because")
    meta = of(world, "labelled")["metadata"]
    assert (meta["labels"]["team"], meta["annotations"]["why"]) == ("search", "because")


INVALID = {
    "by another name": (lambda o: o["metadata"].update(name="other"), "metadata.name must be"),
    "of both kinds": (lambda o: o["spec"].update(policy={"spec": {}}), "spec.policy must be there"),
    "of nothing": (lambda o: o["spec"].pop("variant"), "spec.variant must be there"),
    "of an unknown kind": (lambda o: o["spec"].update(type="Model"), "Unsupported value"),
    "without a prompt": (lambda o: o["spec"]["variant"].pop("prompt"), "prompt: Required value"),
}


@pytest.mark.parametrize("change,why", INVALID.values(), ids=INVALID.keys())
def test_a_snapshot_that_nobody_could_use_is_refused(world, change, why):
    made = {"apiVersion": m.API, "kind": "ReleaseSnapshot", "metadata": m.meta("made-0123"), "spec": {
        "release": "made", "revision": "0123", "type": "Variant", "variant": {
            "promptName": "p", "prompt": {}, "backendName": "b", "backend": {}}}}
    change(made)
    answer = world.cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(made), check=False)
    assert why in answer, answer


def test_the_table_shows_what_a_snapshot_is_of(world):
    world.cluster.apply(m.policy("long-shown", steps=[{"weight": 20, "samples": 1_000_000}]))
    world.first("tabled", policy="long-shown")
    with Traffic(world.gateways, "tabled", rate=5):
        world.next("tabled", "v2", "firstTokenMs=20")
        world.wait_phase("tabled", "Progressing")
        lines = world.cluster.kubectl("get", "relsnap", "-l", "serinus.dev/release=tabled").splitlines()
    assert lines[0].split() == ["NAME", "RELEASE", "OF", "PROMPT", "BACKEND", "REVISION", "REMEMBERED", "AGE"]
    rows = sorted(line.split()[1:-1] for line in lines[1:])
    status = world.cluster.release("tabled")["status"]
    stable, canary = status["stable"]["revision"], status["canary"]
    assert rows == sorted([
        ["tabled", "Variant", "tabled-v1", "model", stable, "true"],
        ["tabled", "Variant", "tabled-v2", "model", canary["revision"]],
        ["tabled", "Policy", canary["policy"]]]), rows


def convert(world, *arguments: str) -> str:
    result = subprocess.run([BIN, "convert-snapshots", "-n", "default", *arguments], capture_output=True, text=True,
                            env={**os.environ, "KUBECONFIG": str(world.cluster.admin)}, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def downgrade(world, *names: str) -> None:
    """What an earlier version has left: ControllerRevisions instead of snapshots, some of them
    owned by their release."""
    for name in names:
        release = json.loads(world.cluster.kubectl("get", "promptrelease", name, "-o", "json",
                                                   "--ignore-not-found") or "null")
        for copy in copies(world, name):
            meta, spec = copy["metadata"], copy["spec"]
            data = {"policy": spec["policy"]["spec"]} if "policy" in spec else {"variant": spec["variant"]}
            owners = [{"apiVersion": m.API, "kind": "PromptRelease", "name": name,
                       "uid": release["metadata"]["uid"]}] if release else None
            world.cluster.kubectl("create", "-f", "-", stdin=json.dumps({
                "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1,
                "data": data, "metadata": {
                    "name": meta["name"], "namespace": meta["namespace"], "ownerReferences": owners,
                    "annotations": meta.get("annotations"), "labels": {
                        k: v for k, v in meta["labels"].items() if k != "serinus.dev/remembered"}}}))
        world.cluster.kubectl("delete", "releasesnapshots", "-l", f"serinus.dev/release={name}")


def test_copies_of_an_earlier_version_are_converted_and_nothing_is_lost(world):
    """Before the new operator: releases whose prompts are pruned, one that failed, one that is gone."""
    cluster = world.cluster
    cluster.apply(m.policy("long-old", steps=[{"weight": 20, "samples": 1_000_000}]))
    stable, failed = failed_once(world, "old-failed")
    world.first("old-running", policy="long-old")
    gone = world.first("old-gone")["status"]["stable"]["revision"]
    with Traffic(world.gateways, "old-running", rate=20) as users:
        world.next("old-running", "v2", "firstTokenMs=20")
        world.wait_phase("old-running", "Progressing")
        release = cluster.release("old-gone")
        cluster.kubectl("delete", "promptrelease", "old-gone")
        wait_for("the note", lambda: "absentSince" in json.dumps(copies(world, "old-gone")))
        names = ("old-failed", "old-running", "old-gone")
        before = {c["metadata"]["name"]: c for name in names for c in copies(world, name)}
        for operator in world.operators:
            operator.process.stop()
        # Nothing can be made again from what it was made of.
        cluster.kubectl("delete", "promptversion", *(f"{n}-v1" for n in names), "old-running-v2", "old-failed-v2")
        cluster.apply(m.policy("long-old", steps=[{"weight": 10, "samples": 1_000_000}]))
        downgrade(world, *names)
        another = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": m.meta("of-a-database"),
                   "revision": 7, "data": {"spec": {"template": {"$patch": "replace"}}}}
        cluster.apply(another)
        told = convert(world)
        assert f"{len(before)} written" in told and "0 could not be converted" in told, told
        for operator in world.operators:
            operator.start()
        wait_for("a leader", lambda: world.leader)
        time.sleep(3)
        assert world.phase("old-running") == "Progressing"
    assert not users.errors(), users.errors()[:3]
    after = {c["metadata"]["name"]: c for name in names for c in copies(world, name)}
    assert after.keys() == before.keys()
    for name, copy in before.items():
        assert after[name]["spec"] == copy["spec"]
        assert "ownerReferences" not in after[name]["metadata"]
        note = lambda c: json.loads(c["metadata"].get("annotations", {}).get("serinus.dev/remembered", "{}"))
        assert {**note(after[name]), "generation": 0} == {**note(copy), "generation": 0}
    for name in names[:2]:
        assert kept(world, name, "False") is None
    # A gateway that starts has nothing else.
    with_new = Gateway(world.cluster, "after-the-upgrade").start()
    try:
        with_new.wait_ready()
        with Traffic([with_new], "old-failed", rate=10) as users:
            wait_for("answers", lambda: len(users.seen) > 5)
        assert {s.revision for s in users.seen} == {stable} and not users.errors()
    finally:
        with_new.process.stop()
    # What was deleted before the upgrade is not new after it.
    cluster.apply([m.prompt("old-gone-v3", "firstTokenMs=15"), {
        **bare(release), "spec": {**release["spec"], "promptRef": {"name": "old-gone-v3"}}}])
    back = world.wait_phase("old-gone", "Progressing", "Promoting", "Stable")
    assert back["status"]["stable"]["revision"] == gone
    # Again and again nothing changes; at last the old ones go, and nothing of anybody else.
    assert "0 written" in convert(world)
    assert f"{len(before)} deleted" in convert(world, "--delete")
    assert cluster.kubectl("get", "controllerrevisions", "-o", "name").split() == [
        "controllerrevision.apps/of-a-database"]
    cluster.kubectl("delete", "controllerrevision", "of-a-database")


def test_without_the_conversion_what_has_its_origin_is_written_anew_and_the_rest_is_told(world):
    cluster = world.cluster
    world.first("kept-origin")
    world.first("pruned-origin")
    with Traffic(world.gateways, "pruned-origin", rate=10) as users:
        for operator in world.operators:
            operator.process.stop()
        cluster.kubectl("delete", "promptversion", "pruned-origin-v1")
        downgrade(world, "kept-origin", "pruned-origin")
        for operator in world.operators:
            operator.start()
        told = wait_for("the condition", lambda: kept(world, "pruned-origin", "False"))
        assert "serinus convert-snapshots" in told["message"]
        wait_for("the snapshot", lambda: copies(world, "kept-origin"))
        assert not copies(world, "pruned-origin")
        assert "1 written" in convert(world)
        wait_for("the condition", lambda: kept(world, "pruned-origin", "True"))
    assert not users.errors(), users.errors()[:3]
    convert(world, "--delete")


def test_a_prompt_that_is_too_large_for_a_snapshot_is_refused_and_what_serves_goes_on(world):
    """The API server keeps objects of up to 1.5 MiB; a snapshot holds more than the prompt."""
    world.first("large")
    large = m.prompt("large-v2")
    system, user = large["spec"]["messages"]
    fill = lambda size: large["spec"].update(messages=[
        system, *({"role": "system", "content": "x" * 60_000} for _ in range(size // 60_000)), user])
    create = lambda: world.cluster.kubectl("create", "-f", "-", stdin=json.dumps(large), check=False)
    fill(1_700_000)
    assert "request is too large" in create()
    fill(1_500_000)
    assert "created" in create()
    world.cluster.patch("promptrelease", "large", {"spec": {"promptRef": {"name": "large-v2"}}})
    ready = lambda: next(c for c in world.cluster.release("large")["status"]["conditions"] if c["type"] == "Ready")
    wait_for("the refusal", lambda: ready()["reason"] == "PromptInvalid")
    assert "MiB" in ready()["message"] and "large-v2" in ready()["message"]
    with Traffic(world.gateways, "large", rate=10) as users:
        wait_for("answers", lambda: len(users.seen) > 5)
    assert not users.errors(), users.errors()[:3]

