"""Serinus can be taken away in any order, and nothing hangs."""

import json

import pytest

from harness import audit
from harness import manifests as m
from harness.cluster import Cluster
from harness.processes import wait_for
from harness.serinus import Gateway, Model, Operator

OURS = ["canarypolicies", "llmdeployments", "promptreleases", "promptversions", "releasesnapshots"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("uninstall"), audit.WATCHES).start()
    model = Model(cluster.folder).start()
    yield cluster, model
    model.process.stop()
    cluster.stop()


class Installation:
    """An operator that serves a release on a model server of its own."""

    def __init__(self, cluster: Cluster, model: Model):
        self.cluster, self.model = cluster, model
        cluster.install()
        self.gateway = Gateway(cluster, "gateway").start()
        self.operator = Operator(cluster, "operator", [self.gateway]).start()

    def __enter__(self) -> "Installation":
        try:
            self.fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for part in (self.operators, self.definitions, self.namespace):
            part()

    def fill(self) -> None:
        cluster, model = self.cluster, self.model
        cluster.kubectl("create", "namespace", "shop")
        cluster.kubectl("create", "rolebinding", "serinus-serving", "-n", "shop",
                        "--clusterrole=serinus-operator-serving",
                        "--serviceaccount=serinus-system:serinus-operator")
        cluster.apply([self.of(m.backend("plain", model.url)), self.of(m.prompt("p-v1")), self.of({
            "apiVersion": m.API, "kind": "LLMDeployment", "metadata": {"name": "own"}, "spec": {
                "provider": "vllm", "model": "m", "serving": {"image": "model:1"}}}),
            self.of(m.policy("quick")), self.of(m.release("plain", "p-v1", "plain")),
            self.of(m.release("own", "p-v1", "own"))])
        wait_for("the model server", lambda: self.get("deployment", "own"))
        pod = wait_for("the pod", lambda: cluster.kubectl(
            "get", "pods", "-n", "shop", "-l", "serinus.dev/backend=own", "-o", "name").strip())
        ready = {"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
        cluster.kubectl("patch", pod, "-n", "shop", "--subresource=status", "--type=merge", "-p", json.dumps(ready))
        for name in ("plain", "own"):
            wait_for(name, lambda: self.get("promptrelease", name)["status"]["phase"] == "Stable", 60)
        self.collected()

    def collected(self) -> None:
        """Waits until the garbage collector knows our kinds, which it looks for every 30 s, and
        watches them: it asks less and less often for a kind that was away, and until then only
        looks for single owners. With the definition it forgets where, and never learns that the
        owners are gone."""
        kinds = {"promptreleases", "llmdeployments"}
        log = self.cluster.audit_log
        wait_for("its watches", lambda: kinds <= audit.watched(log, "metadata-informers"), 90)
        for kind, manifest in (("promptrelease", m.release("known", "p-v1", "plain")),
                               ("llmdeployment", m.backend("known", self.model.url))):
            self.cluster.apply(self.of(manifest))
            uid = self.get(kind, "known")["metadata"]["uid"]
            self.cluster.apply(self.of({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
                "name": "known", "ownerReferences": [{
                    "apiVersion": m.API, "kind": manifest["kind"], "name": "known", "uid": uid}]}}))
            self.cluster.kubectl("delete", kind, "known", "-n", "shop")
            wait_for("the garbage collector", lambda: self.get("configmap", "known") is None, 90)
        self.cluster.kubectl("delete", "releasesnapshots", "-n", "shop", "-l", "serinus.dev/release=known")

    @staticmethod
    def of(manifest: dict) -> dict:
        manifest["metadata"]["namespace"] = "shop"
        return manifest

    def get(self, kind: str, name: str) -> dict | None:
        text = self.cluster.kubectl("get", kind, name, "-n", "shop", "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def away(self, kind: str, name: str) -> None:
        wait_for(f"the end of {kind} {name}", lambda: self.get(kind, name) is None, 180)

    # The parts of an uninstallation.

    def operators(self) -> None:
        self.operator.process.stop()
        self.gateway.process.stop()

    def roles(self) -> None:
        for file in ("rbac-users", "rbac-gateway", "rbac-operator"):
            self.cluster.kubectl("delete", "--ignore-not-found", "-f", f"{ROOT}/deploy/{file}.yaml")

    def releases(self) -> None:
        self.cluster.kubectl("delete", "promptreleases", "--all", "-n", "shop", "--timeout=30s")

    def backends(self) -> None:
        self.cluster.kubectl("delete", "llmdeployments", "--all", "-n", "shop", "--timeout=30s")

    def definitions(self) -> None:
        self.cluster.kubectl("delete", "--ignore-not-found", "-k", f"{ROOT}/crds", "--timeout=50s")

    def namespace(self) -> None:
        self.cluster.kubectl("delete", "namespace", "shop", "--ignore-not-found", "--timeout=55s")

    def snapshots(self) -> None:
        self.cluster.kubectl("delete", "releasesnapshots", "-A", "--all", "--timeout=30s")


ROOT = m.__file__.rsplit("/", 3)[0]
ORDERS = {
    "as documented": ["releases", "backends", "operators", "roles", "definitions", "namespace"],
    "the operator first": ["operators", "roles", "namespace", "definitions"],
    "definitions while it runs": ["definitions", "operators", "roles", "namespace"],
    "definitions without an operator": ["operators", "definitions", "roles", "namespace"],
    "backends before their releases": ["backends", "operators", "releases", "snapshots", "definitions", "namespace"],
    "the namespace while it runs": ["namespace", "definitions", "operators", "roles"],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_it_can_be_taken_away_in_any_order(installed, order):
    cluster, model = installed
    with Installation(cluster, model) as it:
        for i, part in enumerate(order):
            getattr(it, part)()
            if part in ("definitions", "namespace") or {"releases", "backends"} <= set(order[:i + 1]):
                # With the last of its owners the model server goes.
                it.away("deployment", "own")
                it.away("service", "own")
        kinds = cluster.kubectl("api-resources", "-o", "name")
        assert not [kind for kind in OURS if kind in kinds], "the definitions are gone"
        assert not cluster.kubectl("get", "namespace", "shop", "--ignore-not-found")
        left = cluster.kubectl("get", "deployments,services", "-A", "-o", "name")
        assert left.split() == ["service/kubernetes"], left


def test_a_model_server_outlives_its_backend_until_no_release_uses_it(installed):
    cluster, model = installed
    with Installation(cluster, model) as it:
        cluster.apply(it.of(m.release("late", "p-v1", "own")))
        owners = lambda: sorted(o["name"] for o in it.get("deployment", "own")["metadata"]["ownerReferences"])
        wait_for("its owners", lambda: owners() == ["late", "own", "own"])
        uid = it.get("deployment", "own")["metadata"]["uid"]
        cluster.kubectl("delete", "llmdeployment", "own", "-n", "shop", "--timeout=30s")
        wait_for("its owners", lambda: owners() == ["late", "own"])
        assert it.get("service", "own")
        # One user is deleted, the last one moves to another backend while the operator is away.
        cluster.kubectl("delete", "promptrelease", "late", "-n", "shop")
        wait_for("its owner", lambda: owners() == ["own"])
        assert it.get("deployment", "own")["metadata"]["uid"] == uid
        cluster.patch("promptrelease", "own", {"spec": {"backendRef": {"name": "plain"}}}, "shop")
        canary = wait_for("the canary", lambda: it.get("promptrelease", "own")["status"].get("canary"))
        assert it.get("deployment", "own"), "stable still serves with it"
        cluster.patch("promptrelease", "own", {"metadata": {"annotations": {
            "serinus.dev/promote": f"{canary['revision']} by=ada"}}}, "shop")
        # Nobody sends requests, so the bake is held until somebody ends it.
        held = lambda: it.get("promptrelease", "own")["status"].get("canary", {}).get("held")
        wait_for("the bake", lambda: held() == "NoData", 60)
        assert it.get("deployment", "own")["metadata"]["uid"] == uid, "the one before is still compared with"
        cluster.patch("promptrelease", "own", {"metadata": {"annotations": {
            "serinus.dev/promote": f"{canary['revision']} by=ada at=later"}}}, "shop")
        it.away("deployment", "own")
        it.away("service", "own")
