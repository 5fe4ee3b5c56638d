#!/usr/bin/env python3
"""Keeps what a release stores: its definitions, and objects of every kind as etcd holds them.

    SERINUS_BIN=… SERINUS_E2E_TOOLS="$(e2e/tools/build.sh)" \\
        PYTHON e2e/keep_stored.py tests/fixtures/stored/0.1.0

One release has promoted a prompt and rolled back another one, and one is in the middle of a canary
when its operators and gateways are killed. test_upgrade.py loads all of it into later versions.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from conftest import World
from harness import manifests as m
from harness import stored
from harness.cluster import ROOT, Cluster
from harness.processes import wait_for
from harness.serinus import BIN
from harness.traffic import Traffic

# Backends are stored with their address, so a later test starts its model here. Below the ports of
# other cases.
PORT = 9473


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        cluster = Cluster(Path(scratch)).start()
        cluster.install()
        world = World(cluster)
        try:
            objects = kept(world)
        finally:
            world.stop()
            cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "crds", folder / "crds")
    (folder / "objects.json").write_text(json.dumps(objects, indent=1, sort_keys=True) + "\n")


def kept(world: World) -> dict[str, dict]:
    cluster = world.cluster
    world.model.process.stop()
    world.model.port, world.model.url = PORT, f"http://127.0.0.1:{PORT}/v1"
    world.model.process.command = [BIN, "simulated-model", f"--listen=127.0.0.1:{PORT}"]
    world.model.start()
    steps = [{"weight": 40, "samples": 160}, {"weight": 50, "samples": 160}]
    cluster.apply([m.backend("stored", world.model.url), m.policy("scored", steps, [*m.metrics(), m.SCORE]),
                   m.policy("floored", measured=m.metrics(errors={"max": 0.5}))])
    world.first("kept", policy="floored", backend_name="stored")
    with Traffic(world.gateways, "kept"):
        world.next("kept", "v2", "firstTokenMs=20")
        wait_for("the promotion", lambda: ("kept-v2", "Promoted") in world.history("kept"), 180)
        world.next("kept", "v3", "firstTokenMs=20 errorRate=0.4")
        wait_for("the rollback", lambda: ("kept-v3", "RolledBack") in world.history("kept"), 180)
    world.first("underway", policy="scored", backend_name="stored")
    with Traffic(world.gateways, "underway", score=lambda _: 0.8):
        world.next("underway", "v2", "firstTokenMs=20")
        wait_for("evidence", lambda: any(
            line.get("canary", {}).get("count", 0) > 30
            for line in cluster.release("underway")["status"].get("analysis", [])), 180)
        for part in [*world.operators, *world.gateways]:
            part.process.kill()
    return stored.read(cluster)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
