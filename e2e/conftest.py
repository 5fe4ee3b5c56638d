"""One cluster for all cases; two operators and two gateways are the normal case."""

import time
from pathlib import Path

import pytest

from harness import manifests as m
from harness.audit import two_writers
from harness.cluster import Cluster
from harness.processes import wait_for
from harness.prometheus import PrometheusProxy
from harness.serinus import Gateway, Model, Operator
from harness.watcher import Watcher


class World:
    """Everything that runs, and the few sentences that most cases are made of."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.model = Model(cluster.folder).start()
        self.gateways = [Gateway(cluster, f"gateway-{i}").start() for i in range(2)]
        # Nothing stands behind it until a case starts a Prometheus, and nobody asks before.
        self.prometheus = PrometheusProxy().start()
        self.operators = [Operator(cluster, f"operator-{i}", self.gateways,
                                   prometheus=self.prometheus.url).start() for i in range(2)]
        self.watcher = Watcher(cluster).start()
        for gateway in self.gateways:
            gateway.wait_ready()
        wait_for("a leader", lambda: self.leader)
        cluster.apply([m.backend("model", self.model.url), m.policy("quick")])

    @property
    def leader(self) -> Operator | None:
        return next((o for o in self.operators if o.leads), None)

    def phase(self, name: str) -> str:
        return self.cluster.release(name).get("status", {}).get("phase", "")

    def wait_phase(self, name: str, *phases: str, seconds: float = 60) -> dict:
        def reached():
            release = self.cluster.release(name)
            return release if release.get("status", {}).get("phase") in phases else None
        try:
            return wait_for(f"{name} {'/'.join(phases)}", reached, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.kubectl('get', 'promptrelease', name, '-o', 'yaml')}") from None

    def first(self, name: str, policy: str = "quick", marker: str = "firstTokenMs=20", **fields) -> dict:
        """A release `name` that serves its first prompt."""
        self.cluster.apply([m.prompt(f"{name}-v1", marker),
                            m.release(name, f"{name}-v1", policy_name=policy, **fields)])
        self.wait_phase(name, "Stable")
        return wait_for("both gateways", lambda: self._served(name))

    def _served(self, name: str):
        release = self.cluster.release(name)
        return release if release["status"]["routing"]["observedBy"] == "2/2" else None

    def next(self, name: str, version: str, marker: str) -> None:
        self.cluster.apply(m.prompt(f"{name}-{version}", marker))
        self.cluster.patch("promptrelease", name, {"spec": {"promptRef": {"name": f"{name}-{version}"}}})

    def history(self, name: str) -> list[tuple[str, str]]:
        status = self.cluster.release(name)["status"]
        return [(h["prompt"], h["outcome"]) for h in status["history"]]

    def stop(self) -> None:
        self.watcher.stop()
        for part in [*self.operators, *self.gateways, self.model]:
            part.process.stop()
        self.prometheus.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("cluster"))
    cluster = Cluster(folder).start()
    cluster.install()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def shared(cluster):
    world = World(cluster)
    yield world
    world.stop()


def bindings(cluster) -> set[str]:
    """What gives rights to operators and gateways in the users' namespace."""
    return set(cluster.kubectl("get", "rolebindings", "-n", "default", "-o", "name").split())


@pytest.fixture
def world(shared, request):
    """The shared world, whole again after each case and without the rights that it gave, its rules checked."""
    began = time.monotonic()
    rights = bindings(shared.cluster)
    shared.model.behave()
    yield shared
    for part in [*shared.operators, *shared.gateways, shared.model]:
        if not part.process.alive:
            part.start()
    for gateway in shared.gateways:
        gateway.wait_ready()
    wait_for("a leader", lambda: shared.leader)
    shared.cluster.kubectl("delete", "promptreleases", "--all", "--wait=false")
    if given := bindings(shared.cluster) - rights:
        shared.cluster.kubectl("delete", *given)
    broken = shared.watcher.broken_rules(began) + two_writers(shared.cluster.audit_log)
    assert not broken, broken
    for part in [*shared.operators, *shared.gateways]:
        assert "panicked at" not in part.process.log.read_text(errors="replace"), part.process.name
