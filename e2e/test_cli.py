"""The serinus command, as a person types it."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import yaml

from harness import manifests as m
from harness.processes import wait_for
from harness.cluster import ROOT
from harness.serinus import BIN, Model
from harness.standalone import Standalone
from harness.traffic import Traffic


def typed(*arguments: str, code: int = 0, stdin: str | None = None, **environment: str) -> str:
    done = subprocess.run([BIN, *arguments], env={**os.environ, **environment}, capture_output=True, text=True,
                          timeout=120, input=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def serinus(world, *arguments: str, code: int = 0) -> str:
    return typed(*arguments, code=code, KUBECONFIG=str(world.cluster.admin))


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
        # Who approves sees what passed.
        passed = "step 1/2 at 30 %: errors pass, "
        assert passed in serinus(world, "describe", "typed")
        told = serinus(world, "explain", "typed")
        revision = waiting["status"]["canary"]["revision"]
        assert passed in told and f"serinus approve typed --revision {revision[:10]}" in told
        # An approval of something else approves nothing.
        stable = waiting["status"]["stable"]["revision"]
        assert "refused and not kept" in serinus(world, "approve", "typed", "--revision", stable[:6], code=1)
        assert world.phase("typed") == "AwaitingApproval"
        said = serinus(world, "approve", "typed", "--revision", revision[:6])
        assert "as admin" in said and revision in said
        followed = serinus(world, "watch", "typed", "--wait")
        print(followed)
        assert "Baking" in followed and "Stable" in followed
    text = serinus(world, "describe", "typed")
    print(text)
    assert "approve by admin" in text
    text = serinus(world, "history", "typed")
    assert passed in text and "every step passed" in text and "approve by admin" in text
    [first, promoted] = json.loads(serinus(world, "history", "typed", "--output", "json"))
    assert promoted["evidence"][0].startswith(passed) and not first.get("evidence")


def test_programs_get_json_and_yaml(world):
    world.first("printed")
    one = json.loads(serinus(world, "get", "printed", "--output", "json"))
    assert one["metadata"]["name"] == "printed" and one["status"]["phase"] == "Stable"
    assert "managedFields" not in one["metadata"]
    other = yaml.safe_load(serinus(world, "describe", "printed", "-o", "yaml"))
    for part in ("spec", "status"):
        assert json.loads(json.dumps(other[part], default=str)).keys() == one[part].keys()
    assert other["status"]["stable"] == one["status"]["stable"]
    listed = json.loads(serinus(world, "get", "-A", "-o", "json"))
    assert listed["kind"] == "List" and one["metadata"]["uid"] in {i["metadata"]["uid"] for i in listed["items"]}
    # What kubectl prints of it is what kubectl takes.
    world.cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps({**one, "metadata": m.meta("printed")}))


def test_a_folder_is_looked_at_and_asked_like_a_cluster(tmp_path):
    model, here = Model(tmp_path).start(), Standalone(tmp_path)
    at = ["--folder", str(here.folder)]
    try:
        here.apply("fixed", m.backend("model", model.url), m.prompt("kept-v1"), m.prompt("kept-v2", "firstTokenMs=20"),
                   m.policy("quick", steps=[{"weight": 30, "samples": 60}, {"approval": {}}]))
        here.apply("release", m.release("kept", "kept-v1"))
        here.start()
        wait_for("the first release", lambda: here.status()["phase"] == "Stable")
        with Traffic([here], "kept", rate=50, stream_share=0):
            here.apply("release", m.release("kept", "kept-v2"))
            wait_for("the approval step", lambda: "AwaitingApproval" in typed("get", *at), 60)
            told = typed("explain", "kept", *at)
            assert "step 1/2 at 30 %: errors pass" in told and f"serinus approve --folder {here.folder}" in told
            said = typed("approve", "kept", *at, USER="ada", SUDO_USER="")
            assert "done, as ada" in said, said
            assert "Stable" in typed("watch", "kept", "--wait", *at)
        assert "approve by ada" in typed("history", "kept", *at)
        # It is about what it names, also after a restart; and a manifest that is edited later counts.
        here.process.kill()
        said = typed("retry", "kept", *at, code=1)
        assert "nothing to retry" in said
        here.start()
        wait_for("it again", lambda: "Stable" in typed("get", "kept", *at))
        assert [h["outcome"] for h in here.status()["history"]] == ["Initial", "Promoted"]
        assert "there is no PromptRelease other" in typed("describe", "other", *at, code=1)
        assert "has no state" in typed("get", "--folder", str(tmp_path), code=1)
    finally:
        here.process.stop()
        model.process.stop()


def test_a_request_waits_for_a_process_that_is_not_running(tmp_path):
    model, here = Model(tmp_path).start(), Standalone(tmp_path)
    at = ["--folder", str(here.folder)]
    try:
        here.apply("fixed", m.backend("model", model.url), m.prompt("late-v1"), m.prompt("late-v2"),
                   m.policy("quick", steps=[{"weight": 30, "samples": 100000}]))
        here.apply("release", m.release("late", "late-v1"))
        here.start()
        wait_for("the first release", lambda: here.status("late")["phase"] == "Stable")
        here.apply("release", m.release("late", "late-v2"))
        wait_for("the canary", lambda: here.status("late")["phase"] == "Progressing")
        here.process.kill()
        said = typed("abort", "late", *at)
        assert "no `serinus standalone` runs on this folder now" in said, said
        assert here.status("late")["phase"] == "Progressing"
        here.start()
        wait_for("the end of the canary", lambda: here.status("late")["phase"] == "RolledBack")
        assert here.status("late")["history"][-1]["reason"] == "Aborted"
    finally:
        here.process.stop()
        model.process.stop()


def test_manifests_are_checked_without_a_cluster(tmp_path):
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        said = typed("validate", "-f", str(file))
        assert " 0 not valid" in said and "ok   " in said, said
    # Each is an example by itself.
    assert "defines it, too" in typed("validate", "-f", str(ROOT / "examples"), code=1)
    # What the API server refuses by schema or rule is refused here; the rest needs to know what was there before.
    for file in sorted((Path(__file__).parent / "invalid").glob("*.yaml")):
        text = file.read_text()
        how, expected = text.splitlines()[0].removeprefix("# ").split(": ", 1)
        if how != "refused" or len(list(yaml.safe_load_all(text))) > 1:
            continue
        said = typed("validate", "-f", "-", code=1, stdin=text)
        # Where a schema is not met, the API server has words of its own for it; the field is the same.
        place = re.sub(r" in body.*|: Required value|Unsupported value: ", "", expected)
        field = place if " " in place else place.rsplit(".")[-1]
        assert field in said, f"{file.name}: {said}"
    found = json.loads(typed("validate", "--output", "json", "-f", str(Path(__file__).parent / "invalid"), code=1))
    assert len([f for f in found if f["valid"]]) > 5 and len([f for f in found if f["problem"]]) > 20
    assert "can not be read" in typed("validate", "-f", str(tmp_path / "nothing.yaml"), code=1)


def test_shells_and_man_know_the_commands(tmp_path):
    for shell in ("bash", "zsh", "fish"):
        assert "approve" in typed("completion", shell)
    loaded = subprocess.run(["bash", "-c", f"source <({BIN} completion bash) && complete -p serinus"],
                            capture_output=True, text=True, timeout=60)
    assert "serinus" in loaded.stdout, loaded.stderr
    assert ".TH serinus" in typed("man")
    typed("man", "--out", str(tmp_path))
    assert (tmp_path / "serinus-approve.1").exists() and (tmp_path / "serinus.1").exists()


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
    for command in ("crd", "version", "man"):
        child = subprocess.Popen([BIN, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.close()
        assert (child.stderr.read(), child.wait(30)) == (b"", 0), command


def test_mistakes_are_told_with_what_to_do(world):
    world.first("mistaken")
    assert "there is no PromptRelease nothing" in serinus(world, "describe", "nothing", code=1)
    assert "has no running canary" in serinus(world, "approve", "mistaken", code=1)
    assert "nothing to retry" in serinus(world, "retry", "mistaken", code=1)
