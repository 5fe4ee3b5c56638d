"""Argo CD's own binaries: what its scripts say of every state of every kind, and releases that are kept in git."""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from harness import manifests as m
from harness.argocd import GITOPS, NAMESPACE, ArgoCD, Repository, act, actions, health, merge_patch
from harness.processes import wait_for
from harness.traffic import Traffic

KINDS = sorted(path.parent for path in GITOPS.glob("resource_customizations/*/*/health.lua"))
WITH_ACTIONS = [kind for kind in KINDS if (kind / "actions").is_dir()]
WHEN = re.compile(r"at=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def read(path):
    return yaml.safe_load(path.read_text())


def all_of(check, cases: list) -> list:
    """Argo CD needs a while to start, mostly without computing: several cases at once."""
    with ThreadPoolExecutor(4) as several:
        return [problem for problem in several.map(check, cases) if problem]


def names(kinds) -> list[str]:
    return [kind.name for kind in kinds]


def test_the_snippet_is_up_to_date():
    done = subprocess.run([sys.executable, str(GITOPS / "render.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS, ids=names(KINDS))
def test_health(kind, tmp_path):
    cases = read(kind / "health_test.yaml")["tests"]
    tried = {case["inputPath"] for case in cases}
    assert tried == {f"testdata/{path.name}" for path in (kind / "testdata").iterdir()}, "a file without a case"

    def check(case):
        wanted = (case["healthStatus"]["status"], case["healthStatus"]["message"])
        found = health(tmp_path, read(kind / case["inputPath"]))
        return found != wanted and (case["inputPath"], found, wanted)
    assert not all_of(check, cases)


@pytest.mark.parametrize("kind", WITH_ACTIONS, ids=names(WITH_ACTIONS))
def test_which_actions_are_on_offer(kind, tmp_path):
    there = {path.parent.name for path in kind.glob("actions/*/action.lua")}

    def check(case):
        wanted = {action["name"]: not action["disabled"] for action in case["result"]}
        found = actions(tmp_path, read(kind / "actions" / case["inputPath"]))
        return (found != wanted or set(found) != there) and (case["inputPath"], found, wanted)
    assert not all_of(check, read(kind / "actions" / "action_test.yaml")["discoveryTests"])


@pytest.mark.parametrize("kind", WITH_ACTIONS, ids=names(WITH_ACTIONS))
def test_actions(kind, tmp_path):
    cases = read(kind / "actions" / "action_test.yaml")["actionTests"]
    assert {case["action"] for case in cases} == {path.parent.name for path in kind.glob("actions/*/action.lua")}

    def check(case):
        after, problem = act(tmp_path, read(kind / "actions" / case["inputPath"]), case["action"])
        if wanted := case.get("expectedErrorMessage"):
            # The binary logs JSON, in which Go writes < and > as escapes.
            return wanted not in problem.replace("\\u003c", "<").replace("\\u003e", ">") and (case, problem)
        wanted = read(kind / "actions" / case["expectedOutputPath"])
        for key, value in (after.get("metadata", {}).get("annotations") or {}).items():
            after["metadata"]["annotations"][key] = WHEN.sub("at=0001-01-01T00:00:00Z", value) if (
                key == f"serinus.dev/{case['action']}") else value
        return after != wanted and (case, problem, merge_patch(wanted, after))
    assert not all_of(check, cases)


# A repository, Argo CD's controllers, and releases that are what the last commit says.

@pytest.fixture(scope="module")
def argocd(cluster, tmp_path_factory):
    argocd = ArgoCD(cluster, tmp_path_factory.mktemp("argocd")).start()
    yield argocd
    argocd.stop()


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "prompts")


def bare(manifest: dict) -> dict:
    """As people write it: the namespace is that of the Application."""
    return {**manifest, "metadata": {"name": manifest["metadata"]["name"]}}


def written(text: str, repository: Repository, **names: str) -> dict:
    """An example of gitops/argocd, for this repository."""
    text = text.replace("https://git.example/prompts.git", repository.url)
    for old, new in names.items():
        text = text.replace(old.replace("_", "-"), new)
    return yaml.safe_load(text)


def wait_for_collector(cluster) -> None:
    """Argo CD deletes in the foreground, which the garbage collector ends; it hears of new kinds every 30 s."""
    cluster.apply(m.prompt("collected"))
    cluster.kubectl("delete", "promptversion", "collected", "--cascade=foreground", "--wait=false")
    wait_for("the garbage collector", lambda: not cluster.kubectl(
        "get", "promptversion", "collected", "--ignore-not-found"), 90)


class Shop:
    """The folder of one namespace: a backend, policies, the versions of a prompt, and a release of one of them."""

    def __init__(self, world, repository: Repository, namespace: str):
        self.world, self.repository, self.namespace = world, repository, namespace
        self.folder = f"releases/{namespace}"

    def prompt(self, version: str, marker: str) -> dict:
        return {f"{self.folder}/{version}.yaml": bare(m.prompt(f"{self.namespace}-answer-{version}", marker))}

    def release(self, version: str, policy: str = "quick") -> dict:
        made = m.release(f"{self.namespace}-answer", f"{self.namespace}-answer-{version}", policy_name=policy)
        return {f"{self.folder}/release.yaml": bare(made)}

    def first(self) -> str:
        asks = [{"weight": 30, "samples": 60}, {"approval": {}}]
        return self.repository.commit("the first version", {
            f"{self.folder}/backend.yaml": bare(m.backend("model", self.world.model.url)),
            f"{self.folder}/policies.yaml": [bare(m.policy("quick")), bare(m.policy("asks", steps=asks))],
            **self.prompt("v1", "firstTokenMs=20"), **self.release("v1")})

    def live(self) -> dict:
        return self.world.cluster.release(f"{self.namespace}-answer", self.namespace)

    def wait(self, *phases: str, seconds: float = 60) -> dict:
        def reached():
            live = self.live()
            return live["status"]["phase"] in phases and live
        return wait_for(f"{self.namespace} {phases}", reached, seconds)

    def act(self, folder, action: str) -> dict:
        """An action as Argo CD's API server carries it out: the patch that it makes, and nothing else."""
        live = self.live()
        after, problem = act(folder, live, action)
        assert not problem
        patch = merge_patch(live, after)
        self.world.cluster.kubectl("patch", "promptrelease", live["metadata"]["name"], "-n", self.namespace,
                                   "--type=merge", "-p", json.dumps(patch), "--as=argocd-server")
        return patch

    def permit_actions(self) -> None:
        """What docs/gitops.md says that argocd-server needs."""
        group, of = "rbac.authorization.k8s.io", {"name": "actions", "namespace": self.namespace}
        self.world.cluster.apply([
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": of, "rules": [
                {"apiGroups": ["serinus.dev"], "resources": ["promptreleases"], "verbs": ["get", "patch"]}]},
            {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": of,
             "roleRef": {"apiGroup": group, "kind": "Role", "name": "actions"},
             "subjects": [{"apiGroup": group, "kind": "User", "name": "argocd-server"}]}])

    def remove(self, application: str) -> None:
        kubectl = self.world.cluster.kubectl
        kubectl("delete", "application", application, "-n", NAMESPACE, "--ignore-not-found")
        kubectl("delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found")


def test_a_repository_is_followed_through_good_and_bad_versions(world, argocd, repository, tmp_path):
    wait_for_collector(world.cluster)
    shop = Shop(world, repository, "shop")
    example = (GITOPS / "application.yaml").read_text()
    world.cluster.apply(written(example, repository, support_answer="shop"))
    try:
        commits = [shop.first()]
        argocd.wait("shop", "Healthy", commits[0])
        assert shop.live()["status"]["phase"] == "Stable"
        shop.permit_actions()
        with Traffic(world.gateways, "shop-answer") as users:
            # A good one goes through its canary; in the middle of it the version that serves is pruned.
            began = time.monotonic()
            commits.append(repository.commit("v2", {**shop.prompt("v2", "firstTokenMs=20"), **shop.release("v2")}))
            shop.wait("Progressing")
            commits.append(repository.commit("without v1", {f"{shop.folder}/v1.yaml": None}))
            argocd.wait("shop", "Healthy", commits[-1])
            promoted = time.monotonic() - began
            live = shop.live()
            assert live["status"]["stable"]["prompt"] == "shop-answer-v2"
            assert [h["outcome"] for h in live["status"]["history"]] == ["Initial", "Promoted"]
            assert "v1" not in world.cluster.kubectl("get", "promptversions", "-n", "shop", "-o", "name")
            assert argocd.healths("shop", began) == ["Healthy", "Progressing", "Healthy"]

            # A bad one is Degraded until git changes; the commit that takes it back heals.
            began = time.monotonic()
            commits.append(repository.commit("v3", {**shop.prompt("v3", "errorRate=0.6"), **shop.release("v3")}))
            argocd.wait("shop", "Degraded", commits[-1])
            rolled_back = time.monotonic() - began
            said = {r["name"]: r.get("health", {}) for r in argocd.application("shop")["status"]["resources"]
                    if r["kind"] == "PromptRelease"}["shop-answer"]
            state, message = health(tmp_path, shop.live())
            assert (said["status"], state) == ("Degraded", "Degraded")
            assert "MetricFailed" in message and "errors" in message, message
            began = time.monotonic()
            commits.append(repository.revert())
            argocd.wait("shop", "Healthy", commits[-1])
            healed = time.monotonic() - began
            assert shop.live()["status"]["stable"]["prompt"] == "shop-answer-v2"

            # A person is waited for. What an action writes is nobody's difference.
            commits.append(repository.commit("v4", {
                **shop.prompt("v4", "firstTokenMs=20"), **shop.release("v4", "asks")}))
            shop.wait("Progressing")
            assert shop.act(tmp_path, "suspend") == {"spec": {"suspend": True}}
            argocd.wait("shop", "Suspended", commits[-1])
            time.sleep(7)
            assert shop.live()["spec"]["suspend"] is True, "it was put back"
            assert shop.act(tmp_path, "resume") == {"spec": {"suspend": False}}
            shop.wait("AwaitingApproval")
            argocd.wait("shop", "Suspended", commits[-1])
            assert actions(tmp_path, shop.live()) == {
                "abort": True, "approve": True, "promote": True, "resume": False, "retry": False, "suspend": True}
            patch = shop.act(tmp_path, "approve")
            assert list(patch) == ["metadata"] and list(patch["metadata"]) == ["annotations"]
            argocd.wait("shop", "Healthy", commits[-1])
            assert shop.live()["status"]["history"][-1]["requests"][-1]["by"] == "argocd"
        assert not users.errors(), users.errors()[:3]
        # Each commit was synced once, whatever the operator and people wrote in between.
        assert argocd.operations("shop") == commits and not argocd.drifts("shop")
        assert {r["status"] for r in argocd.application("shop")["status"]["resources"]} == {"Synced"}
        # The spec was changed by four commits and two actions, and by nobody else.
        assert shop.live()["metadata"]["generation"] == 7
        print(f"from commit to promoted and Healthy {promoted:.1f} s, to rolled back and Degraded {rolled_back:.1f} s, "
              f"from the commit that takes it back to Healthy {healed:.1f} s")
    finally:
        shop.remove("shop")


def test_an_application_for_each_folder(world, argocd, repository):
    shops = [Shop(world, repository, namespace) for namespace in ("books", "music")]
    commit = [shop.first() for shop in shops][-1]
    world.cluster.apply(written((GITOPS / "applicationset.yaml").read_text(), repository))
    try:
        for shop in shops:
            argocd.wait(f"prompts-{shop.namespace}", "Healthy", commit)
            assert shop.live()["status"]["phase"] == "Stable"
            assert len(argocd.operations(f"prompts-{shop.namespace}")) == 1
    finally:
        world.cluster.kubectl("delete", "applicationset", "prompts", "-n", NAMESPACE)
        for shop in shops:
            shop.remove(f"prompts-{shop.namespace}")
