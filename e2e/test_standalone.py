"""Without a cluster: the demo, and standalone mode killed at random instants."""

import random
import socket
import subprocess

import httpx
import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.prometheus import Exporter, Prometheus, PrometheusProxy
from harness.serinus import BIN, Model
from harness.standalone import Standalone
from harness.traffic import Traffic


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


def test_strangers_do_not_take_the_files_of_a_process_that_may_open_few(tmp_path):
    """Users, probes and manifests need files, too, however many connections are idle."""
    model, strangers = Model(tmp_path).start(), []
    here = Standalone(tmp_path)
    here.process.command = ["prlimit", "--nofile=256:256", *here.process.command]
    key = {"authorization": f"Bearer {m.KEY}"}
    body = {"model": "kept", "messages": [], "serinus": {"variables": {"question": "why"}}}

    def served() -> bool:
        return httpx.post(f"{here.url}/v1/chat/completions", json=body, headers=key).status_code == 200

    try:
        here.apply("fixed", m.backend("model", model.url), m.policy("quick"), m.prompt("kept-v1"), m.prompt("kept-v2"))
        here.apply("release", m.release("kept", "kept-v1"))
        here.start()
        wait_for("the first release", served)
        for port in (here.port, here.admin):
            strangers += [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
        wait_for("a user among strangers", served)
        assert httpx.get(f"http://127.0.0.1:{here.admin}/readyz").status_code == 200
        here.apply("release", m.release("kept", "kept-v2"))
        wait_for("the canary", lambda: here.status()["canary"]["prompt"] == "kept-v2")
        assert here.process.alive, here.process.tail()
    finally:
        for stranger in strangers:
            stranger.close()
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
