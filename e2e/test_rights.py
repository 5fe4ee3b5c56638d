"""What operators and gateways may do is what they do; and who has no key decides nothing."""

import base64
import json
import time

import pytest

from harness import audit, rights
from harness import manifests as m
from harness.cluster import Cluster
from harness.false_gateway import FalseGateway
from harness.processes import wait_for
from harness.serinus import Gateway, Model, Operator
from harness.traffic import Traffic

OURS = "serinus-system"


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A cluster of its own, which notes every request of operators and gateways."""
    cluster = Cluster(tmp_path_factory.mktemp("rights"), audit.RIGHTS).start()
    cluster.install()
    for role, account in rights.BY_HAND.items():
        cluster.kubectl("create", "rolebinding", role, "-n", "default", f"--clusterrole={role}",
                        f"--serviceaccount={OURS}:{account}")
    model = Model(cluster.folder).start()
    cluster.apply([m.backend("model", model.url), m.policy("quick")])
    yield cluster, model
    model.process.stop()
    cluster.stop()


def phase(cluster: Cluster, name: str) -> str:
    return cluster.release(name).get("status", {}).get("phase", "")


def ready(cluster: Cluster, backend: str) -> bool:
    found = cluster.get(f"/apis/{m.API}/namespaces/default/llmdeployments/{backend}")
    return any(c["type"] == "Ready" and c["status"] == "True"
               for c in found.get("status", {}).get("conditions", []))


def told(cluster: Cluster, name: str) -> str:
    return " ".join(c.get("message", "") for c in cluster.release(name)["status"]["conditions"])


def test_a_false_gateway_decides_nothing_until_it_has_the_gateways_key(watched):
    cluster, _ = watched

    def failures() -> dict:
        """That the canary fails every request, as a gateway would tell it."""
        status = cluster.release("judged")["status"]
        def counts(variant: dict) -> dict:
            n, bad = (2000, 0) if variant["role"] == "stable" else (2000, 2000)
            n = n * variant["weight"] // 100
            return {"assigned": n, "requests": n, "errors": min(n, bad), "readAt": int(time.monotonic() * 1000)}
        routing = status["routing"]
        return {"version": 1, "instance": "f" * 16, "releases": {"default/judged": {
            "applied": routing["generation"],
            "counts": {v["revision"]: counts(v) for v in routing["variants"]}}}}

    gateway = Gateway(cluster, "gateway-judged").start().wait_ready()
    operator = Operator(cluster, "operator-alone", [gateway]).start()
    false = FalseGateway(failures)
    beside = Operator(cluster, "operator-beside", [gateway, false])
    try:
        cluster.apply([m.prompt("judged-v1"), m.release("judged", "judged-v1")])
        wait_for("the first prompt", lambda: phase(cluster, "judged") == "Stable", 60)
        operator.process.stop()
        beside.start()
        wait_for("a leader", lambda: beside.leads)
        cluster.apply(m.prompt("judged-v2"))
        cluster.patch("promptrelease", "judged", {"spec": {"promptRef": {"name": "judged-v2"}}})
        with Traffic([gateway], "judged", rate=20):
            # It is no gateway, so the release waits, and says for whom.
            address = f"127.0.0.1:{false.admin}"
            wait_for("the reason", lambda: f"{address}: its answer (200) counts for nothing" in told(cluster, "judged"))
            before = false.asked
            wait_for("more questions", lambda: false.asked > before + 10)
            status = cluster.release("judged")["status"]
            assert status["phase"] == "Stable" and "canary" not in status, status
            assert "f" * 16 not in json.dumps(status), "nothing of what it says is kept"
            assert beside.metric("serinus_gateways_unproven") == 1
            assert beside.process.log.read_text().count("no report of a gateway: its answer") == 1

            # The same words by who holds the key do decide: what was tried above is no test of a typo.
            keys = cluster.get(f"/api/v1/namespaces/{OURS}/secrets/serinus-request-ids")["data"]
            false.key = base64.b64decode(keys[max(keys)])
            wait_for("the verdict", lambda: phase(cluster, "judged") == "RolledBack", 60)
    finally:
        for part in (operator, beside, gateway):
            part.process.stop()
        false.stop()
        cluster.kubectl("delete", "promptrelease", "judged")


def test_every_right_that_is_granted_is_used_and_no_other_is_asked_for(watched):
    cluster, model = watched
    # Its garbage collector would be faster than the operator.
    cluster.parts["controllers"].stop()
    upstream = m.backend("locked", model.url)
    upstream["spec"]["endpoint"]["apiKeySecretRef"] = {"name": "locked", "key": "token"}
    upstream["metadata"]["finalizers"] = ["serinus.dev/in-use"]  # of an earlier version
    served = {"apiVersion": m.API, "kind": "LLMDeployment", "metadata": m.meta("served"), "spec": {
        "provider": "vllm", "model": "m", "serving": {"image": "model:1"}}}
    cluster.apply([
        {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": "of-the-backend"},
         "metadata": m.meta("locked") | {"annotations": {"serinus.dev/hosts": "127.0.0.1"}}},
        m.client_key("tenant", "e2e-tenant-0123456789abcdef", namespace="default"), upstream, served])
    gateway = Gateway(cluster, "gateway-rights", "--tenant-key-namespaces=default").start().wait_ready()
    leader = Operator(cluster, "operator-rights", [gateway]).start()
    # Looks for the gateways of the Service.
    other = Operator(cluster, "operator-service", [])
    try:
        wait_for("a leader", lambda: leader.leads)
        other.start()
        cluster.apply([m.prompt("used-v1"), m.prompt("used-v2"), m.release("used", "used-v1", "locked"),
                       m.release("on-served", "used-v1", "served")])
        # A second Event of a kind is a patch of the first.
        for replicas in (1, 0, 1):
            wait_for("the model server", lambda: cluster.get("/apis/apps/v1/namespaces/default/deployments/served"))
            generation = cluster.get("/apis/apps/v1/namespaces/default/deployments/served")["metadata"]["generation"]
            cluster.kubectl("patch", "deployment", "served", "--subresource=status", "--type=merge", "-p", json.dumps(
                {"status": {"readyReplicas": replicas, "replicas": replicas, "observedGeneration": generation}}))
            wait_for("what is said of it", lambda: ready(cluster, "served") == bool(replicas))
        for name in ("used", "on-served"):
            wait_for(name, lambda: phase(cluster, name) == "Stable", 60)
        # A canary that is withdrawn, a model server that outlives its LLMDeployment, and the end of both.
        cluster.patch("promptrelease", "used", {"spec": {"promptRef": {"name": "used-v2"}}})
        wait_for("the canary", lambda: phase(cluster, "used") == "Progressing", 60)
        cluster.patch("promptrelease", "used", {"spec": {"promptRef": {"name": "used-v1"}}})
        wait_for("its end", lambda: phase(cluster, "used") == "Stable", 60)
        cluster.kubectl("delete", "llmdeployment", "served")
        time.sleep(2)  # the operator knows that it is gone when its last user goes, too
        cluster.kubectl("delete", "promptreleases", "used", "on-served")

        def left() -> list[str]:
            return rights.unused(audit.uses(cluster.audit_log))

        try:
            wait_for("the use of every right", lambda: not left(), 60)
        except AssertionError:
            raise AssertionError("granted and not used:\n" + "\n".join(left())) from None
    finally:
        for part in (leader, other, gateway):
            part.process.stop()
    refused = {u for u in audit.uses(cluster.audit_log) if not u.allowed}
    assert not refused, f"asked for and not granted: {refused}"
