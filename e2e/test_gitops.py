"""What a GitOps tool sees: everything that was applied is in sync, and tables show all of it."""

import json
import re
import subprocess
import time

import pytest
import yaml

from harness import manifests as m
from harness.cluster import ROOT
from harness.documents import blocks
from harness.processes import wait_for
from harness.traffic import Traffic
from harness.watcher import seen

# The policies of the cookbook are in its document, too.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if not path.name.startswith("policy-"))


def in_documents() -> list[tuple[str, str]]:
    """The manifests of ours that documents show, as many at once as have names of their own."""
    together: list[dict[tuple[str, str], dict]] = []
    for block in blocks("yaml"):
        objects = [o for o in yaml.safe_load_all(block.text) if o.get("apiVersion") == m.API]
        names = {(o["kind"], o["metadata"]["name"]) for o in objects}
        place = next((t for t in together if not names & t.keys()), None)
        if place is None:
            together.append(place := {})
        place.update({(o["kind"], o["metadata"]["name"]): o for o in objects})
    return [(f"documents-{i}", yaml.safe_dump_all(t.values())) for i, t in enumerate(together) if t]


MANIFESTS = [*((path.name, path.read_text()) for path in EXAMPLES), *in_documents(),
             # Everything that may be left out of a list item is left out.
             ("sparse", yaml.safe_dump({
                 "apiVersion": m.API, "kind": "CanaryPolicy", "metadata": {"name": "sparse"}, "spec": {
                     "steps": [{"weight": 5, "samples": 300}, {"shadow": {"percent": 5, "samples": 100}}],
                     "analysis": {"metrics": [
                         {"name": "ttft", "timeToFirstToken": {}, "margin": {"harm": 0.05, "accept": 0.1},
                          "floor": {"maxDuration": "5s"}},
                         {"name": "slow", "duration": {}, "margin": {"harm": 0.05, "accept": 0.1}},
                         {"name": "liked", "score": {"name": "liked"}, "margin": {"harm": 0.05, "accept": 0.1}},
                         {"name": "queue", "prometheus": {"value": "up", "max": 5}}]}}}))]


@pytest.mark.parametrize("name,text", MANIFESTS, ids=[name for name, _ in MANIFESTS])
def test_what_was_applied_is_in_sync(world, name, text):
    """Applied twice nothing changes, and no comparison shows a difference: as kubectl compares,
    and as the API server does, which Argo CD asks with ServerSideDiff."""
    cluster, space = world.cluster, re.sub("[^a-z0-9]+", "-", f"sync-{name.lower()}").strip("-")
    cluster.kubectl("create", "namespace", space)
    try:
        apply = lambda *how: cluster.kubectl("apply", "-n", space, *how, "-f", "-", stdin=text)
        apply()
        # The operator has written its part of each object.
        kinds = "llmdeployments,promptversions,canarypolicies,promptreleases"
        found = lambda: json.loads(cluster.kubectl("get", kinds, "-n", space, "-o", "json"))["items"]
        wait_for("every status", lambda: all(map(seen, found())), 90)
        again = apply().strip().splitlines()
        assert again and all(line.endswith(" unchanged") for line in again), again
        for how in ([], ["--server-side", "--field-manager=argocd-controller", "--force-conflicts"]):
            difference = subprocess.run(
                [str(cluster.tools / "kubectl"), f"--kubeconfig={cluster.admin}", "diff", "-n", space, *how, "-f", "-"],
                input=text, capture_output=True, text=True, timeout=60)
            lines = [line for line in difference.stdout.splitlines()
                     if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            # Another manager's name is no difference of the object.
            assert difference.returncode in (0, 1), difference.stderr
            assert not [line for line in lines if "generation" not in line], difference.stdout
        generations = lambda: {(o["kind"], o["metadata"]["name"]): o["metadata"]["generation"] for o in found()}
        before = generations()
        apply("--server-side", "--field-manager=argocd-controller", "--force-conflicts")
        assert generations() == before, "the same text was another spec"
    finally:
        cluster.kubectl("delete", "namespace", space, "--wait=false")


def test_the_definitions_and_roles_are_in_sync(world):
    cluster = world.cluster
    # Each is compared in the way in which it was applied.
    for how, what in [(["--server-side", "-k", str(ROOT / "crds")], "definitions")] + [
            (["-f", str(ROOT / "deploy" / f"{file}.yaml")], file)
            for file in ("namespace", "rbac-operator", "rbac-gateway", "rbac-users")]:
        difference = subprocess.run(
            [str(cluster.tools / "kubectl"), f"--kubeconfig={cluster.admin}", "diff", *how],
            capture_output=True, text=True, timeout=60)
        assert difference.returncode == 0, (what, difference.stdout, difference.stderr)


def columns(world, kind: str, name: str) -> dict[str, str]:
    text = world.cluster.kubectl("get", kind, name, "-o", "wide").splitlines()
    starts = [match.start() for match in re.finditer(r"(?<!\S)\S", text[0])]
    cells = [text[1][a:b].strip() for a, b in zip(starts, [*starts[1:], None])]
    return dict(zip(text[0].split(), cells))


def test_tables_show_every_step_and_every_metric(world):
    steps = [{"weight": 20, "samples": 1_000_000}, {"approval": {}}, {"weight": 50, "samples": 160}]
    world.cluster.apply(m.policy("shown", steps=steps))
    # Another case may have had a policy of this name.
    told = lambda c: (c.get("STEPS"), c.get("METRICS")) == ("20%, approval, 50%", "errors, ttft, checks")
    wait_for("the policy", lambda: told(columns(world, "canarypolicy", "shown")))
    world.first("shown", policy="shown")
    assert columns(world, "promptrelease", "shown")["STEP"] == ""
    with Traffic(world.gateways, "shown", rate=20):
        world.next("shown", "v2", "firstTokenMs=20")
        world.wait_phase("shown", "Progressing")
        release = wait_for("a look", lambda: (c := columns(world, "promptrelease", "shown"))["METRICS"] and c)
        time.sleep(1)
    assert (release["STEP"], release["WEIGHT"]) == ("1/3", "20")
    assert [metric.split()[0] for metric in release["METRICS"].split(", ")] == ["errors", "ttft", "checks"]
    assert set(re.findall(r"[A-Z]\w+", release["METRICS"])) <= {"Pass", "Undecided", "NoData"}
