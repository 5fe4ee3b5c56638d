"""Without a cluster: the demo, and standalone mode killed at random instants."""

import json
import random
import subprocess

import httpx
import pytest
import yaml

from harness import manifests as m
from harness.processes import Process, free_port, wait_for
from harness.prometheus import Exporter, Prometheus, PrometheusProxy
from harness.serinus import BIN, Model
from harness.traffic import Traffic


class Standalone:
    def __init__(self, folder, *arguments: str):
        self.folder, self.port, self.admin = folder / "manifests", free_port(), free_port()
        self.folder.mkdir()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Process("standalone", [
            BIN, "standalone", str(self.folder), f"--listen=127.0.0.1:{self.port}",
            f"--admin=127.0.0.1:{self.admin}", *arguments], folder)
        self.apply("users", m.client_key())

    def apply(self, name: str, *objects: dict) -> None:
        beside = self.folder / f"{name}.tmp"
        beside.write_text(yaml.safe_dump_all(objects))
        beside.rename(self.folder / f"{name}.yaml")

    def status(self) -> dict:
        kept = json.loads((self.folder / ".serinus/state.json").read_text())
        return kept["default/kept"]["status"]

    def history(self) -> list[tuple[str, str]]:
        return [(h["prompt"], h["outcome"]) for h in self.status()["history"]]

    def start(self) -> None:
        self.process.start()
        wait_for("standalone", lambda: httpx.get(f"{self.url}/readyz").status_code == 200)


def test_standalone_killed_at_random_instants_comes_to_the_same_end(tmp_path):
    model = Model(tmp_path).start()
    here = Standalone(tmp_path)
    try:
        here.apply("fixed", m.backend("model", model.url), m.policy("quick"),
                   m.prompt("kept-v1", "firstTokenMs=20"), m.prompt("kept-v2", "firstTokenMs=20"),
                   m.prompt("kept-v3", "firstTokenMs=20 errorRate=0.3"))
        here.apply("release", m.release("kept", "kept-v1"))
        here.start()
        wait_for("the first release", lambda: here.status()["phase"] == "Stable")
        dice = random.Random(7)
        with Traffic([here], "kept", rate=50, stream_share=0) as users:
            for version, outcome in (("kept-v2", "Promoted"), ("kept-v3", "RolledBack")):
                here.apply("release", m.release("kept", version))
                for _ in range(4):
                    wait_for("time to pass", lambda: dice.random() < 0.05, 30)
                    here.process.kill()
                    here.start()
                wait_for(outcome, lambda: (version, outcome) in here.history(), 90)
                wait_for("rest", lambda: here.status()["phase"] in ("Stable", "RolledBack"), 30)
        # With one process, a request that arrives while it is dead finds nobody; no answer is wrong.
        wrong = [e for e in users.errors() if "APIConnectionError" not in e.error]
        assert not wrong, wrong[:3]
        assert here.history() == [("kept-v1", "Initial"), ("kept-v2", "Promoted"), ("kept-v3", "RolledBack")]
    finally:
        here.process.stop()
        model.process.stop()


def test_standalone_judges_by_counts_of_a_real_prometheus(tmp_path):
    """Prometheus is down at first: the canary waits, and is rolled back once it is up."""
    model, exporter, proxy = Model(tmp_path).start(), Exporter(), PrometheusProxy().start()
    proxy.break_with("down")
    prometheus = Prometheus(tmp_path, exporter.address).start()
    proxy.target = prometheus.url
    here = Standalone(tmp_path, f"--prometheus-url={proxy.url}", "--prometheus-timeout=1s")
    counts = {name: f'sum(increase(app_{name}{{revision="{{{{ revision }}}}"}}[{{{{ window }}}}]))'
              for name in ("bad", "total")}
    metric = {"name": "custom", "prometheus": counts, "margin": {"harm": 0.03, "accept": 0.12}}

    def count(revision: str, bad_share: float) -> None:
        exporter.grow(f'app_total{{revision="{revision}"}}', 100)
        exporter.grow(f'app_bad{{revision="{revision}"}}', 100 * bad_share)

    try:
        here.apply("fixed", m.backend("model", model.url), m.prompt("kept-v1"), m.prompt("kept-v2"),
                   m.policy("quick", [{"weight": 50, "samples": 200}], [metric]))
        here.apply("release", m.release("kept", "kept-v1"))
        here.start()
        wait_for("the first release", lambda: here.status()["phase"] == "Stable")
        count(here.status()["stable"]["revision"], 0.02)
        with Traffic([here], "kept", stream_share=0):
            here.apply("release", m.release("kept", "kept-v2"))
            count(wait_for("the canary", lambda: here.status()["canary"]["revision"]), 0.3)
            wait_for("the reason", lambda: here.status()["analysis"][0]["message"].startswith(
                "PrometheusUnreachable: "), 30)
            proxy.heal()
            wait_for("the rollback", lambda: ("kept-v2", "RolledBack") in here.history(), 60)
    finally:
        for part in (here.process, model.process, prometheus.process, exporter, proxy):
            part.stop()


@pytest.mark.parametrize("real", [False, True], ids=["simulated", "url"])
def test_the_demo_promotes_the_good_and_rolls_back_the_bad(tmp_path, real):
    command = [BIN, "demo", "--plain"]
    model = None
    if real:
        model = Model(tmp_path).start()
        model.behave(firstTokenMs=20, tokens=12)
        command += ["--url", model.url, "--model", "simulated", "--rate", "40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        if model:
            model.process.stop()
    print(done.stdout[-900:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "users saw 0 errors" in done.stdout
