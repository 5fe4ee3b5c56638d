"""What waits for a release: kstatus, by which Helm and Flux wait, Helm itself, and kubectl wait."""

import re
import shlex
import subprocess
import time

import yaml

from harness import manifests as m
from harness.argocd import health
from harness.chart import helm
from harness.cluster import GROUP, ROOT
from harness.kstatus import kstatus
from harness.processes import wait_for
from harness.traffic import Traffic

NOTHING = "http://127.0.0.1:9/v1"
# What a release is for kstatus and for Argo CD, by its phase. One that comes before what it names is
# Pending, and still has time: `phases-missing`, whose time ends, is asked about on its own.
PHASES = {
    "Pending": ("InProgress", "Progressing"),
    "Initializing": ("InProgress", "Progressing"), "Progressing": ("InProgress", "Progressing"),
    "AwaitingApproval": ("InProgress", "Suspended"), "Held": ("InProgress", "Suspended"),
    "Promoting": ("InProgress", "Progressing"), "Baking": ("InProgress", "Progressing"),
    "Stable": ("Current", "Healthy"), "RollingBack": ("InProgress", "Progressing"),
    "RolledBack": ("Failed", "Degraded"),
}
# And by its reason, where that says more.
REASONS = {"RouteTaken": ("Failed", "Degraded"), "Suspended": ("InProgress", "Suspended")}


def reason(o: dict) -> str:
    found = {c["type"]: c["reason"] for c in o.get("status", {}).get("conditions", [])}
    return found.get("Ready", "")


def expected(release: dict) -> tuple[str, str]:
    if release["status"]["observedGeneration"] != release["metadata"]["generation"]:
        return "InProgress", "Progressing"
    return REASONS.get(reason(release)) or PHASES[release["status"]["phase"]]


def test_every_phase_and_kind_is_read_as_what_it_is(world, tmp_path):
    cluster = world.cluster
    kinds = "llmdeployments,promptversions,canarypolicies"
    steps = [{"weight": 30, "samples": 60}, {"approval": {}}, {"weight": 50, "samples": 60}]
    cluster.apply([
        m.policy("phases", steps=steps), m.policy("phases-quiet", noDataTimeout="1s"),
        m.backend("phases-down", NOTHING, model="away"), m.prompt("phases-other-v1"),
        m.release("phases-missing", "phases-nobody"), m.release("phases-away", "phases-other-v1", "phases-down"),
        m.release("phases-frozen", "phases-other-v1", suspend=True)])
    serving = m.backend("phases-served", NOTHING)
    serving["spec"]["serving"] = {"image": "none", "port": 8000}
    del serving["spec"]["endpoint"]
    broken, asking = m.prompt("phases-broken-v1", text="{{ question | nofilter }}"), m.policy("phases-asking", measured=[
        {"name": "queue", "prometheus": {"value": 'up{pod="{{ nothing }}"}', "max": 5}}])
    for manifest in (serving, broken, asking):
        cluster.apply(manifest)
    world.first("phases", policy="phases")
    world.first("phases-held", policy="phases-quiet")
    cluster.apply(m.release("phases-taken", "phases-other-v1", route="phases"))
    # No user asks for it, so there is nothing to judge.
    world.next("phases-held", "v2", "firstTokenMs=20")
    with Traffic(world.gateways, "phases"):
        world.next("phases", "v2", "firstTokenMs=20")
        world.wait_phase("phases", "AwaitingApproval")
        revision = cluster.release("phases")["status"]["canary"]["revision"]
        cluster.kubectl("annotate", "promptrelease", "phases", f"serinus.dev/approve={revision} by=ada")
        world.wait_phase("phases", "Stable")
        world.next("phases", "v3", "firstTokenMs=20 errorRate=0.6")
        world.wait_phase("phases", "RolledBack")
    world.wait_phase("phases-held", "Held")
    # What a release names may be applied after it: a while passes before that is a failure.
    wait_for("the end of the patience", lambda: kstatus([cluster.release("phases-missing")]) == ["Failed"], 40)
    missing = [o for _, o in world.watcher.of("phases-missing")]
    assert kstatus([missing[0], missing[-1]]) == ["InProgress", "Failed"]
    assert [health(tmp_path, o)[0] for o in (missing[0], missing[-1])] == ["Progressing", "Degraded"]
    assert {reason(o) for o in missing} == {"PromptNotFound"}
    # A finalizer holds what is deleted.
    cluster.patch("promptrelease", "phases-away", {"metadata": {"finalizers": ["example.com/held"]}})
    cluster.kubectl("delete", "promptrelease", "phases-away", "--wait=false")
    deleted = cluster.release("phases-away")
    cluster.patch("promptrelease", "phases-away", {"metadata": {"finalizers": None}})

    releases = [o for _, o in world.watcher.statuses if o["metadata"]["name"].startswith("phases")
                and o["metadata"]["name"] != "phases-missing" and "deletionTimestamp" not in o["metadata"]]
    assert {o["status"]["phase"] for o in releases} == PHASES.keys()
    assert {reason(o) for o in releases} >= REASONS.keys()
    wrong = [(o["metadata"]["name"], o["status"]["phase"], reason(o), found)
             for o, found in zip(releases, kstatus(releases)) if found != expected(o)[0]]
    assert not wrong
    # Argo CD starts anew for each object, so each is tried once.
    each = {(o["status"]["phase"], reason(o), expected(o)): o for o in releases}
    wrong = [(key, found) for key, o in each.items() if (found := health(tmp_path, o))[0] != key[2][1]]
    assert not wrong
    print("\n".join(sorted(f"{phase} {why}: {both}" for phase, why, both in each)))
    assert kstatus([deleted]) == ["Terminating"] and health(tmp_path, deleted)[0] == "Progressing"

    others = {o["metadata"]["name"]: o for o in cluster_objects(cluster, kinds)}
    for name, wanted in {
            "model": ("Current", "Healthy"), "phases-down": ("InProgress", "Degraded"),
            "phases-served": ("InProgress", "Degraded"), "phases-other-v1": ("Current", "Healthy"),
            "phases-broken-v1": ("Failed", "Degraded"), "phases": ("Current", "Healthy"),
            "phases-asking": ("Failed", "Degraded")}.items():
        assert (kstatus([others[name]])[0], health(tmp_path, others[name])[0]) == wanted, others[name]


def cluster_objects(cluster, kinds: str) -> list[dict]:
    return yaml.safe_load(cluster.kubectl("get", kinds, "-o", "yaml"))["items"]


def test_what_no_operator_has_looked_at_is_waited_for(world, tmp_path):
    """Something that was just applied is not taken for done."""
    cluster = world.cluster
    world.first("unseen")
    for operator in world.operators:
        operator.process.kill()
    cluster.apply([
        m.prompt("unseen-v2"), m.policy("unseen"), m.backend("unseen", NOTHING), m.release("unseen-new", "unseen-v2")])
    cluster.patch("promptrelease", "unseen", {"spec": {"promptRef": {"name": "unseen-v2"}}})
    for kind, name in (("promptversions", "unseen-v2"), ("canarypolicies", "unseen"), ("llmdeployments", "unseen"),
                       ("promptreleases", "unseen-new"), ("promptreleases", "unseen")):
        o = cluster.get(f"{GROUP}/namespaces/default/{kind}/{name}")
        assert (kstatus([o])[0], health(tmp_path, o)[0]) == ("InProgress", "Progressing"), o


def documented() -> list[str]:
    """The commands of docs/gitops.md that wait."""
    lines = (ROOT / "docs" / "gitops.md").read_text().splitlines()
    return [line.split("  #")[0] for line in lines if line.startswith("kubectl wait ")]


def test_kubectl_wait_as_it_is_documented(world):
    ready, stalled, approval, version = documented()
    steps = [{"weight": 30, "samples": 60}, {"approval": {}}]
    world.cluster.apply(m.policy("waited", steps=steps))
    world.first("waited", policy="waited")

    def waits(command: str) -> subprocess.Popen:
        words = shlex.split(command.replace("support-answer", "waited").replace("24h", "60s"))
        tool = [str(world.cluster.tools / "kubectl"), f"--kubeconfig={world.cluster.admin}"]
        return subprocess.Popen([*tool, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ends(child: subprocess.Popen) -> None:
        said, _ = child.communicate(timeout=70)
        assert child.returncode == 0, said

    with Traffic(world.gateways, "waited"):
        # They begin when the release still is what it was before.
        world.next("waited", "v2", "firstTokenMs=20")
        children = {command: waits(command) for command in (ready, approval, version)}
        ends(children[approval])
        status = world.cluster.release("waited")["status"]
        assert status["phase"] == "AwaitingApproval"
        assert children[ready].poll() is None and children[version].poll() is None
        world.cluster.kubectl("annotate", "promptrelease", "waited",
                              f"serinus.dev/approve={status['canary']['revision']} by=ada")
        ends(children[version])
        ends(children[ready])
        assert world.cluster.release("waited")["status"]["phase"] == "Stable"
        world.next("waited", "v3", "firstTokenMs=20 errorRate=0.6")
        bad, good = waits(stalled), waits(ready)
        ends(bad)
        assert world.phase("waited") == "RolledBack" and good.poll() is None
        good.terminate()
        good.communicate()


def test_helm_waits_for_a_promotion_and_fails_with_a_rollback(world, tmp_path):
    chart = tmp_path / "answers"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: answers\nversion: 0.1.0\n")

    def write(version: str, marker: str) -> None:
        text = yaml.safe_dump(m.prompt(f"helmed-{version}", marker)).replace("{{ question }}", '{{ "{{ question }}" }}')
        (chart / "templates" / f"{version}.yaml").write_text(text)
        (chart / "templates" / "release.yaml").write_text(yaml.safe_dump(m.release("helmed", f"helmed-{version}")))

    def upgrade(check: bool = True) -> str:
        return helm("upgrade", "--install", "answers", str(chart), "--namespace=default", "--wait", "--timeout=90s",
                    folder=tmp_path, cluster=world.cluster, check=check)

    write("v1", "firstTokenMs=20")
    upgrade()
    assert world.phase("helmed") == "Stable"
    try:
        with Traffic(world.gateways, "helmed"):
            write("v2", "firstTokenMs=20")
            upgrade()
            assert world.history("helmed")[-1] == ("helmed-v2", "Promoted")
            write("v3", "firstTokenMs=20 errorRate=0.6")
            began = time.monotonic()
            said = upgrade(check=False)
            assert re.match(r"[1-9]", said), said
            print(f"Helm failed after {time.monotonic() - began:.1f} s: {said}")
            assert world.phase("helmed") == "RolledBack"
    finally:
        helm("uninstall", "answers", "--namespace=default", folder=tmp_path, cluster=world.cluster)
