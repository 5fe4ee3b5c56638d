"""An operator works off whatever waits, in whatever order things come to be."""

import time

import httpx
import pytest

from harness import manifests as m
from harness.cluster import GROUP, Cluster
from harness.processes import wait_for
from harness.serinus import Gateway, Model, Operator

RELEASES = 60


@pytest.fixture
def bare(tmp_path_factory):
    """A cluster of its own that knows none of our kinds."""
    cluster = Cluster(tmp_path_factory.mktemp("bare")).start()
    cluster.grant()
    yield cluster
    cluster.stop()


def says(operator: Operator) -> str:
    return httpx.get(f"http://127.0.0.1:{operator.admin}/readyz").text


def ready(operator: Operator) -> bool:
    return says(operator).startswith("ready")


def unhandled(cluster: Cluster, *phases: str) -> list[str]:
    found = cluster.get(f"{GROUP}/promptreleases")["items"]
    done = [r["metadata"]["name"] for r in found
            if r.get("status", {}).get("phase") in phases
            and r["status"].get("observedGeneration") == r["metadata"]["generation"]]
    return sorted({f"many-{i}" for i in range(RELEASES)} - set(done))


def test_an_operator_handles_everything_whatever_was_there_first(bare):
    model = Model(bare.folder).start()
    gateway = Gateway(bare, "gateway-0").start()
    operator = Operator(bare, "operator-0", [gateway]).start()
    try:
        # Before there is any definition it could look at nothing, so it leaves the Lease to others.
        wait_for("its words", lambda: "the caches are not filled yet" in says(operator))
        time.sleep(2)
        assert not ready(operator) and not operator.leads
        bare.define()
        bare.apply([m.backend("model", model.url), m.prompt("many-v1"), m.prompt("many-v2"), m.policy("quick"),
                    *(m.release(f"many-{i}", "many-v1") for i in range(RELEASES))])
        wait_for("every release", lambda: not unhandled(bare, "Stable"), 90)
        assert ready(operator)

        # Beside many objects that have changed meanwhile, while the API server is away.
        operator.process.stop()
        bare.apply([m.release(f"many-{i}", "many-v2") for i in range(RELEASES)])
        bare.parts["apiserver"].kill()
        operator.start()
        time.sleep(4)
        assert not ready(operator)
        bare.parts["apiserver"].start()
        bare.wait_ready()
        wait_for("every change", lambda: not unhandled(bare, "Progressing", "Held"), 90)
        wait_for("readiness", lambda: ready(operator))
    finally:
        for part in (operator, gateway, model):
            part.process.stop()
