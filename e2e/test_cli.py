"""The serinus command, as a person types it."""

import os
import subprocess
import time

from harness import manifests as m
from harness.processes import wait_for
from harness.serinus import BIN
from harness.traffic import Traffic


def serinus(world, *arguments: str, code: int = 0) -> str:
    environment = {**os.environ, "KUBECONFIG": str(world.cluster.admin)}
    done = subprocess.run([BIN, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_release_is_looked_at_approved_and_awaited(world):
    steps = [{"weight": 30, "samples": 120}, {"approval": {}}]
    world.cluster.apply(m.policy("typed", steps=steps))
    world.first("typed", policy="typed")
    with Traffic(world.gateways, "typed"):
        world.next("typed", "v2", "firstTokenMs=20")
        wait_for("a look", lambda: any(
            a.get("interval") for a in world.cluster.release("typed")["status"]["analysis"]))
        text = serinus(world, "describe", "typed")
        print(text)
        for part in ("default/typed", "30 % Canary", "errors", "●", "followed by 2/2 gateways"):
            assert part in text
        waiting = world.wait_phase("typed", "AwaitingApproval")
        assert "AwaitingApproval" in serinus(world, "get")
        said = serinus(world, "approve", "typed")
        assert "as admin" in said and waiting["status"]["canary"]["revision"] in said
        followed = serinus(world, "watch", "typed", "--wait")
        print(followed)
        assert "Baking" in followed and "Stable" in followed
    text = serinus(world, "describe", "typed")
    print(text)
    assert "approve by admin" in text


def test_abort_promote_and_retry(world):
    slow = [{"weight": 10, "samples": 100000}]
    world.cluster.apply(m.policy("patient", steps=slow))
    world.first("asked", policy="patient")
    with Traffic(world.gateways, "asked"):
        world.next("asked", "v2", "firstTokenMs=20")
        world.wait_phase("asked", "Progressing")
        serinus(world, "abort", "asked")
        world.wait_phase("asked", "RolledBack")
        time.sleep(1)
        assert world.phase("asked") == "RolledBack", "an aborted revision is not tried again by itself"
        serinus(world, "watch", "asked", "--wait", code=1)
        serinus(world, "retry", "asked")
        world.wait_phase("asked", "Progressing")
        serinus(world, "promote", "asked")
        world.wait_phase("asked", "Stable")
    assert world.history("asked")[-1] == ("asked-v2", "Promoted")


def test_it_is_a_plugin_of_kubectl(world, tmp_path):
    (tmp_path / "kubectl-serinus").symlink_to(BIN)
    world.first("plugged")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(world.cluster.admin)}
    done = subprocess.run([str(world.cluster.tools / "kubectl"), "serinus", "get"], env=environment,
                          capture_output=True, text=True, timeout=60)
    assert "plugged" in done.stdout, done.stderr


def test_who_stops_reading_ends_the_command_without_a_fault():
    for command in ("crd", "version"):
        child = subprocess.Popen([BIN, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.close()
        assert (child.stderr.read(), child.wait(30)) == (b"", 0), command


def test_mistakes_are_told_with_what_to_do(world):
    world.first("mistaken")
    assert "there is no PromptRelease nothing" in serinus(world, "describe", "nothing", code=1)
    assert "has no running canary" in serinus(world, "approve", "mistaken", code=1)
    assert "nothing to retry" in serinus(world, "retry", "mistaken", code=1)
