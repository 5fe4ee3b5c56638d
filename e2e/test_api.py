"""What the API server refuses, what shows on conditions, and what an upgrade keeps."""

import json
import time
from pathlib import Path

import httpx
import pytest
import yaml

from harness import manifests as m
from harness.cluster import ROOT
from harness.processes import wait_for
from harness.traffic import Traffic

INVALID = sorted((Path(__file__).parent / "invalid").glob("*.yaml"))


def condition(cluster, kind: str, name: str) -> dict:
    found = json.loads(cluster.kubectl("get", kind, name, "-o", "json"))
    conditions = found.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == "Ready"), {})


@pytest.mark.parametrize("file", INVALID, ids=lambda f: f.stem)
def test_invalid_manifest(world, file):
    text = file.read_text()
    how, expected = text.splitlines()[0].removeprefix("# ").split(": ", 1)
    *before, last = yaml.safe_load_all(text)
    if before:
        world.cluster.apply(before)
    if how == "refused":
        answer = world.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(last), check=False)
        assert expected in answer, answer
        return
    kind, name, reason = expected.split()
    if reason == "PolicyNotFound":
        world.wait_phase(name, "Stable")  # what serves goes on serving
    world.cluster.apply(last)
    wait_for(f"{name} {reason}", lambda: condition(world.cluster, kind, name).get("reason") == reason)
    found = condition(world.cluster, kind, name)
    assert found["status"] != "True" and found["message"], found


def test_invalid_objects_stall_no_other_release(world):
    for file in INVALID:
        world.cluster.kubectl("apply", "-f", str(file), check=False)
    with Traffic(world.gateways, "healthy") as users:
        world.first("healthy")
        began = time.monotonic()
        world.next("healthy", "v2", "firstTokenMs=15")
        wait_for("the promotion", lambda: ("healthy-v2", "Promoted") in world.history("healthy"), 90)
    assert not [e for e in users.errors() if e.at > began], users.errors()[:3]


def test_an_upgrade_of_the_definitions_keeps_every_object(world):
    world.first("kept")
    with Traffic(world.gateways, "kept") as users:
        world.next("kept", "v2", "firstTokenMs=20")
        world.wait_phase("kept", "Progressing", seconds=30)
        before = world.cluster.kubectl("get", "prompt,canarypolicy,llmd,promptrelease", "-o", "name")
        # The next version knows a field more.
        for file in (ROOT / "crds").glob("*s.yaml"):
            definition = yaml.safe_load(file.read_text())
            schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            schema["properties"]["spec"]["properties"]["newField"] = {"type": "string", "maxLength": 9}
            world.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-",
                                  stdin=yaml.safe_dump(definition))
        time.sleep(2)
        world.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "crds"))
        after = world.cluster.kubectl("get", "prompt,canarypolicy,llmd,promptrelease", "-o", "name")
        assert before == after
        wait_for("the promotion", lambda: ("kept-v2", "Promoted") in world.history("kept"), 90)
    assert not users.errors(), users.errors()[:3]


def serving(name: str) -> dict:
    return {"apiVersion": m.API, "kind": "LLMDeployment", "metadata": m.meta(name), "spec": {
        "provider": "vllm", "model": "m", "serving": {
            "image": "example.com/vllm:1", "args": ["--model=m"], "replicas": 1, "port": 8000,
            "resources": {"requests": {"cpu": "2"}}}}}


def deployed(cluster, name: str) -> dict | None:
    found = cluster.kubectl("get", "deployment", name, "-o", "json", "--ignore-not-found")
    return json.loads(found) if found else None


def owners(cluster, name: str) -> list[str]:
    return [owner["kind"] for owner in deployed(cluster, name)["metadata"]["ownerReferences"]]


def load(cluster, name: str) -> None:
    """There is no kubelet here: the test says that the model is loaded."""
    pod = wait_for("the pod", lambda: cluster.kubectl(
        "get", "pods", "-l", f"serinus.dev/backend={name}", "-o", "name").strip())
    ready = {"status": {"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
    cluster.kubectl("patch", pod, "--subresource=status", "--type=merge", "-p", json.dumps(ready))


def test_a_serving_backend_becomes_a_deployment_and_counts_when_its_pods_are_ready(world):
    cluster = world.cluster
    cluster.apply(serving("served"))
    # The right to run model servers is given by namespace; the condition has the command.
    refused = wait_for("the refusal", lambda: [
        c["message"] for c in json.loads(cluster.kubectl(
            "get", "llmdeployment", "served", "-o", "json"))["status"]["conditions"]
        if c["reason"] == "ServingNotPermitted"])
    command = refused[0].partition("kubectl ")[2].split()
    assert not deployed(cluster, "served")
    cluster.kubectl(*command)
    deployment = wait_for("the Deployment", lambda: deployed(cluster, "served"))
    service = json.loads(cluster.kubectl("get", "service", "served", "-o", "json"))
    for owned in (deployment, service):
        owner = owned["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("LLMDeployment", "served", True)
    assert service["spec"]["ports"][0]["port"] == 8000
    cluster.apply([m.prompt("served-v1"), m.release("served", "served-v1", "served")])
    world.wait_phase("served", "Initializing")
    load(cluster, "served")
    world.wait_phase("served", "Stable")
    # Scaling is allowed and reaches the Deployment; what others set there stays.
    cluster.kubectl("annotate", "deployment", "served", "team=search")
    cluster.patch("llmdeployment", "served", {"spec": {"serving": {"replicas": 3}}})
    wait_for("the scale", lambda: (d := deployed(cluster, "served"))["spec"]["replicas"] == 3
             and d["metadata"]["annotations"]["team"] == "search")
    # Deleted while it serves: the release owns the model server, too, until it is gone.
    cluster.kubectl("delete", "llmdeployment", "served")
    # The garbage collector learns of our kinds within 30 seconds, and then lets the gone owner go.
    wait_for("its owner", lambda: owners(cluster, "served") == ["PromptRelease"], 120)

    # A new leader that can not read the release does not know what it uses, and takes nothing away.
    def put(evidence: list) -> None:
        cluster.kubectl("patch", "promptrelease", "served", "--subresource=status", "--type=merge",
                        "-p", json.dumps({"status": {"evidence": evidence}}))

    put(m.unreadable())
    # What the operator may not delete, in a namespace that comes first.
    cluster.kubectl("create", "namespace", "aa-first")
    cluster.kubectl("create", "deployment", "left", "-n", "aa-first", "--image=example.com/x")
    cluster.kubectl("label", "deployment", "left", "-n", "aa-first", "serinus.dev/backend=left")
    for operator in world.operators:
        operator.process.kill()
        operator.start()
    words = lambda: httpx.get(f"http://127.0.0.1:{world.leader.admin}/readyz?verbose").text
    wait_for("a leader that says so", lambda: "PromptRelease default/served can not be read" in words(), 60)
    # Beside it others get what they need, and keep it when their LLMDeployment is deleted.
    cluster.apply([serving("beside"), m.prompt("beside-v1"), m.release("beside", "beside-v1", "beside")])
    wait_for("another Deployment", lambda: deployed(cluster, "beside"))
    load(cluster, "beside")
    world.wait_phase("beside", "Stable")
    wait_for("both owners", lambda: owners(cluster, "beside") == ["LLMDeployment", "PromptRelease"])
    cluster.kubectl("delete", "service", "beside")
    cluster.patch("llmdeployment", "beside", {"spec": {"serving": {"replicas": 2}}})
    wait_for("the scale", lambda: deployed(cluster, "beside")["spec"]["replicas"] == 2)
    cluster.kubectl("get", "service", "beside")
    cluster.kubectl("delete", "llmdeployment", "beside")
    time.sleep(8)
    assert owners(cluster, "served") == ["PromptRelease"]
    assert "PromptRelease" in owners(cluster, "beside")
    cluster.kubectl("delete", "promptrelease", "beside")
    # Readable again, it is known whom it needs; what nobody needs goes, whatever else can not be deleted.
    put([])
    wait_for("the end of what is left", lambda: not deployed(cluster, "beside"), 120)
    assert owners(cluster, "served") == ["PromptRelease"]
    cluster.kubectl("delete", "promptrelease", "served")
    wait_for("its end", lambda: not deployed(cluster, "served"), 120)
    cluster.kubectl("delete", "namespace", "aa-first", "--wait=false")


def test_a_prompt_pruned_from_git_breaks_neither_serving_nor_rollback(world):
    world.first("pruned")
    with Traffic(world.gateways, "pruned") as users:
        world.next("pruned", "v2", "firstTokenMs=20 errorRate=0.25")
        world.wait_phase("pruned", "Progressing", seconds=30)
        world.cluster.kubectl("delete", "promptversion", "pruned-v1", "pruned-v2")
        world.wait_phase("pruned", "RolledBack", "Stable", seconds=90)
        time.sleep(1)
    assert not users.errors(), users.errors()[:3]
    assert world.history("pruned")[-1][0] == "pruned-v2"


def test_a_gateway_sends_the_key_of_the_secret_that_a_backend_names(world):
    cluster = world.cluster
    cluster.kubectl("create", "secret", "generic", "provider", "--from-literal=token=sk-1")
    cluster.kubectl("annotate", "secret", "provider", "serinus.dev/hosts=127.0.0.1")
    cluster.kubectl("create", "rolebinding", "gateway-keys", "--clusterrole=serinus-gateway-api-keys",
                    "--serviceaccount=serinus-system:serinus-gateway")
    keyed = m.backend("keyed", world.model.url)
    keyed["spec"]["endpoint"]["apiKeySecretRef"] = {"name": "provider", "key": "token"}
    cluster.apply([keyed, m.prompt("keyed-v1", "requireKey=sk-1"), m.release("keyed", "keyed-v1", "keyed")])
    world.wait_phase("keyed", "Stable")
    wait_for("both gateways", lambda: world._served("keyed"))
    with Traffic(world.gateways, "keyed", rate=10) as users:
        time.sleep(3)
    assert len([s for s in users.seen if s.ok]) > 10
    assert not users.errors(), users.errors()[:3]


def test_kubectl_explain_reads_well(world):
    text = world.cluster.kubectl("explain", "promptrelease.spec.promptRef")
    assert "The PromptVersion to serve." in text
    assert "Roll back when the canary is shown" in world.cluster.kubectl(
        "explain", "canarypolicy.spec.analysis.metrics.margin")


def test_a_status_of_an_earlier_leader_is_refused(world):
    first = world.first("fenced")
    term = first["status"]["leaderTerm"]
    write = lambda value: world.cluster.kubectl(
        "patch", "promptrelease", "fenced", "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"leaderTerm": value}}), check=False)
    for earlier in (term - 1, None):
        assert "leaderTerm must not decrease" in write(earlier)
    assert world.cluster.release("fenced")["status"]["leaderTerm"] == term


def test_the_whole_of_deploy_is_accepted_by_the_api_server(world):
    answer = world.cluster.kubectl("apply", "--dry-run=server", "-k", str(ROOT / "deploy"), check=False)
    assert "deployment.apps/serinus-gateway created (server dry run)" in answer, answer
    assert "deployment.apps/serinus-operator created (server dry run)" in answer, answer
    # The namespace enforces the restricted pod security standard, so pods would be refused.
    assert "violate PodSecurity" not in answer and "error" not in answer.lower(), answer
