"""Who writes a release need not be who approves it: the rules of the chart on a real API server, by users of
different rights, with the real command and with every other way to write an object."""

import json
import os
import subprocess
from typing import NamedTuple

import httpx
import pytest
import yaml

from harness import manifests as m
from harness.chart import rendered
from harness.cluster import GROUP, Cluster, token_of
from harness.processes import wait_for
from harness.serinus import BIN, Gateway, Model, Operator
from harness.traffic import Traffic

RULES = {"userRoles": {"create": True}, "crds": {"enabled": False},
         "admission": {name: {"enabled": True} for name in ("approvals", "routes", "secrets")}}
# Their ClusterRoles in the namespace default. Those of edit may read every Secret.
PEOPLE = {"wren": ("edit",), "nina": ("admin",), "ada": ("view", "serinus-approve"), "bea": ("edit", "serinus-approve"),
          "sam": ("serinus-edit", "serinus-view"), "dr who": ("edit", "serinus-approve"), "ada lovelace": ("edit",),
          # A blank to whoever reads the value, though not the ASCII one.
          "ada\u00a0x": ("edit", "serinus-approve")}
REVISION = "41cc" * 10
KINDS = {"PromptRelease": "promptreleases", "CanaryPolicy": "canarypolicies", "LLMDeployment": "llmdeployments"}


class Answer(NamedTuple):
    code: int
    text: str


class Ruled:
    """A cluster with the rules, and the ways in which its users write objects. Nothing is kept of a dry run."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster

    def send(self, who: str, method: str, path: str, body, kind: str = "application/json", dry: bool = True, **query) -> Answer:
        query |= {"dryRun": "All"} if dry else {}
        answer = httpx.request(method, f"{self.cluster.url}{path}", params=query, verify=False, timeout=30, headers={
            "authorization": f"Bearer {token_of(who)}", "content-type": kind}, content=json.dumps(body))
        return Answer(answer.status_code, answer.text)

    def at(self, kind: str, name: str = "", namespace: str = "default") -> str:
        return "/".join(filter(None, (GROUP, "namespaces", namespace, KINDS[kind], name)))

    def create(self, who: str, manifest: dict, **query) -> Answer:
        path = self.at(manifest["kind"], namespace=manifest["metadata"]["namespace"])
        return self.send(who, "POST", path, manifest, **query)

    def merge(self, who: str, kind: str, name: str, body: dict, **query) -> Answer:
        return self.send(who, "PATCH", self.at(kind, name), body, "application/merge-patch+json", **query)

    def annotate(self, who: str, name: str, **requests) -> Answer:
        """Sets or (None) takes away requests of a release."""
        return self.merge(who, "PromptRelease", name, {"metadata": {"annotations": {
            f"serinus.dev/{request}": value for request, value in requests.items()}}})

    def replace(self, who: str, manifest: dict, annotations: dict | None) -> Answer:
        found = self.cluster.release(manifest["metadata"]["name"])
        found["metadata"] |= {"annotations": annotations or {}}
        return self.send(who, "PUT", self.at("PromptRelease", found["metadata"]["name"]), found)

    def kubectl(self, who: str, *arguments: str, stdin: str | None = None) -> tuple[int, str]:
        done = subprocess.run([str(self.cluster.tools / "kubectl"), f"--kubeconfig={self.cluster.of_people[who]}", *arguments],
                              input=stdin, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def serinus(self, who: str, *arguments: str) -> tuple[int, str]:
        done = subprocess.run([BIN, *arguments], env={**os.environ, "KUBECONFIG": str(self.cluster.of_people[who])},
                              capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr


def rules(folder, values: dict = RULES) -> list[dict]:
    return [o for o in rendered(folder, values) if o["kind"].startswith("ValidatingAdmissionPolicy")
            or o["metadata"]["name"] in ("serinus-view", "serinus-edit", "serinus-approve")]


def named(manifest: dict, name: str | None = None, namespace: str | None = None, annotations: dict | None = None) -> dict:
    metadata = manifest["metadata"] | ({"name": name} if name else {}) | ({"namespace": namespace} if namespace else {})
    return manifest | {"metadata": metadata | ({"annotations": annotations} if annotations else {})}


def keyed(name: str, secret: str, **spec) -> dict:
    backend = m.backend(name, "https://api.openai.com/v1")
    backend["spec"]["endpoint"]["apiKeySecretRef"] = {"name": secret, "key": "token"}
    return backend | {"spec": backend["spec"] | spec}


def bound(who: str, role: str, namespace: str = "default") -> dict:
    of = "rbac.authorization.k8s.io"
    return {"apiVersion": f"{of}/v1", "kind": "RoleBinding", "roleRef": {"apiGroup": of, "kind": "ClusterRole", "name": role},
            "metadata": {"name": f"{role}-{token_of(who)}", "namespace": namespace},
            "subjects": [{"apiGroup": of, "kind": "User", "name": who}]}


ASKS = m.policy("asks", steps=[{"weight": 30, "samples": 80}, {"approval": {}}])
EASY = m.policy("easy")
# What is there before the rules are, and against one of them.
WAITING = named(m.release("waiting", "any-v1", policy_name="easy"), annotations={"serinus.dev/approve": f"{REVISION} by=eve"})
HANDLED = named(WAITING, "handled")
# Another request of the kind was handled, and this one was not.
AGAIN = named(WAITING, "again")
UNNAMED = m.release("unnamed", "any-v1", route="anybody/s")
KEYED = keyed("keyed", "locked")
# What a writer may create.
PLAIN = m.release("plain", "any-v1", policy_name="asks")


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("admission"), people=tuple(PEOPLE)).start()
    cluster.install()
    cluster.kubectl("annotate", "namespace", "default", "--overwrite", "serinus.dev/policies=asks, other",
                    "serinus.dev/routes=plain*, answer")
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}, ASKS, EASY, WAITING, HANDLED, AGAIN, UNNAMED, KEYED, m.prompt("any-v1"), m.prompt("any-v2")])
    # As the operator notes it.
    for name, value in (("handled", f"{REVISION} by=eve"), ("again", f"{REVISION} by=eve at=2026-11-28T10:00:00Z")):
        cluster.kubectl("patch", "promptrelease", name, "--subresource=status", "--type=merge", "-p", json.dumps(
            {"status": {"requests": [{"action": "approve", "value": value, "revision": REVISION, "by": "eve",
                                      "at": "2026-11-29T10:00:00Z", "accepted": True}]}}))
    cluster.apply(rules(cluster.folder))
    cluster.apply([bound(who, role, namespace) for namespace in ("default", "shop")
                   for who, roles in PEOPLE.items() for role in roles])
    ruled = Ruled(cluster)
    # The API server learns of rules and roles a moment after it has taken them.
    for kind, name, body in (("PromptRelease", "waiting", {"spec": {"policyRef": {"name": "gone"}}}),
                             ("CanaryPolicy", "easy", {"spec": {"bake": {"duration": "9s"}}}),
                             ("LLMDeployment", "keyed", {"spec": {"proxy": {"direct": True}}})):
        wait_for(f"the rule of {kind}", lambda: ruled.merge("sam", kind, name, body).code in (403, 422))
    wait_for("the rule of routes", lambda: "may not have the route" in ruled.create("admin", m.release("x", "any-v1")).text)
    wait_for("the roles", lambda: ruled.merge("wren", "PromptRelease", "waiting", {"spec": {"suspend": True}}).code == 200)
    wait_for("the approver", lambda: ruled.annotate("ada", "waiting", approve=f"{REVISION} by=ada").code == 200)
    yield ruled
    cluster.stop()


def refused(answer: Answer, rule: str, *said: str) -> None:
    assert answer.code in (403, 422), answer
    assert f"ValidatingAdmissionPolicy 'serinus-{rule}'" in answer.text, answer
    for part in said:
        assert part in answer.text, answer


def taken(answer: Answer) -> dict:
    assert answer.code in (200, 201), answer
    return json.loads(answer.text)


def by(who: str) -> str:
    return f"{REVISION} by={who} at=2026-11-29T10:00:00Z"


# Who may ask for what.


@pytest.mark.parametrize("who,approves", [
    ("wren", False), ("nina", False), ("sam", False), ("ada", True), ("bea", True), ("admin", True)])
def test_holders_of_the_verb_ask_and_whoever_may_edit_aborts(ruled, who, approves):
    may = ruled.send(who, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": {"resourceAttributes": {
        "namespace": "default", "verb": "approve", "group": "serinus.dev", "resource": "promptreleases"}}}, dry=False)
    assert taken(may)["status"]["allowed"] == approves
    for request in ("approve", "promote", "retry"):
        answer = ruled.annotate(who, "unnamed", **{request: by(who)})
        if approves:
            taken(answer)
        else:
            refused(answer, "approvals", f"{who} may not {request} this release", "the ClusterRole serinus-approve gives it",
                    "kubectl auth can-i approve promptreleases.serinus.dev/unnamed -n default")
    taken(ruled.annotate(who, "unnamed", abort=by(who)))


def test_whoever_administrates_a_namespace_does_not_give_what_it_has_not(ruled):
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings"
    binding = lambda role: ruled.send("nina", "POST", path, named(bound("nina", role), "mine"))
    taken(binding("edit"))
    answer = binding("serinus-approve")
    assert answer.code == 403 and "attempting to grant RBAC permissions not currently held" in answer.text, answer


def test_the_verb_may_be_given_for_one_release(ruled):
    of = "rbac.authorization.k8s.io"
    ruled.cluster.apply([
        {"apiVersion": f"{of}/v1", "kind": "Role", "metadata": m.meta("one"), "rules": [
            {"apiGroups": ["serinus.dev"], "resources": ["promptreleases"], "resourceNames": ["unnamed"], "verbs": ["approve"]}]},
        bound("sam", "one") | {"roleRef": {"apiGroup": of, "kind": "Role", "name": "one"}}])
    wait_for("the role", lambda: ruled.annotate("sam", "unnamed", approve=by("sam")).code == 200)
    refused(ruled.annotate("sam", "handled", approve=by("sam")), "approvals")
    ruled.cluster.kubectl("delete", "rolebinding", f"one-{token_of('sam')}")
    wait_for("its end", lambda: ruled.annotate("sam", "unnamed", approve=by("sam")).code == 403)


JSON, APPLY = "application/json-patch+json", "application/apply-patch+yaml"


def ways(ruled: Ruled, who: str) -> dict[str, Answer]:
    """Every way in which a request can be written."""
    value, at = by(who), ruled.at("PromptRelease", "unnamed")
    asks = {"serinus.dev/approve": value}
    bare = {"apiVersion": m.API, "kind": "PromptRelease", "metadata": {"name": "unnamed", "annotations": asks}}
    new = named(PLAIN, annotations=asks)
    generated = named(new, "")
    generated["metadata"] = {k: v for k, v in generated["metadata"].items() if k != "name"} | {"generateName": "plain-"}
    return {
        "merge": ruled.annotate(who, "unnamed", approve=value),
        "json": ruled.send(who, "PATCH", at, [{"op": "add", "path": "/metadata/annotations", "value": asks}], JSON),
        "apply": ruled.send(who, "PATCH", at, bare, APPLY, fieldManager="argocd-controller"),
        "forced apply": ruled.send(who, "PATCH", at, bare, APPLY, fieldManager="serinus", force="true"),
        "replace": ruled.replace(who, UNNAMED, asks),
        "create": ruled.create(who, new),
        "create with a made up name": ruled.create(who, generated),
        "create by apply": ruled.send(who, "PATCH", ruled.at("PromptRelease", "plain"), new, APPLY, fieldManager="x"),
    }


def test_no_way_to_write_an_object_goes_past_the_rule(ruled):
    for way, answer in ways(ruled, "bea").items():
        assert taken(answer)["metadata"]["annotations"]["serinus.dev/approve"] == by("bea"), way
    for way, answer in ways(ruled, "wren").items():
        print(way)
        refused(answer, "approvals", "wren may not approve this release")
    # The API server knows no strategic merge of such kinds. Another spelling is another annotation, to Serinus as well.
    body = {"metadata": {"annotations": {"serinus.dev/approve": by("bea")}}}
    strategic = ruled.send("bea", "PATCH", ruled.at("PromptRelease", "unnamed"), body, "application/strategic-merge-patch+json")
    assert strategic.code == 415
    body["metadata"]["annotations"] = {"Serinus.dev/approve": by("bea"), "serinus.dev/Approve": by("bea")}
    taken(ruled.merge("wren", "PromptRelease", "unnamed", body))
    # Where an object's status is written, its annotations are not.
    status = f"{ruled.at('PromptRelease', 'unnamed')}/status"
    kind = "application/merge-patch+json"
    body["metadata"]["annotations"] = {"serinus.dev/approve": by("wren")}
    assert ruled.send("wren", "PATCH", status, body, kind).code == 403
    written = taken(ruled.send("admin", "PATCH", status, body, kind))["metadata"]
    assert "serinus.dev/approve" not in written.get("annotations", {})


@pytest.mark.parametrize("value", [
    "{r} by=ada", "{r}", "", "{r} by=", "{r} by=ada by=bea", "{r} by=bea by=ada", "{r} at=now by=bea", "{r}  by=bea",
    "{r}\tby=ada by=bea", "{r}\u00a0by=ada by=bea", "{r} by=bea\u2003by=ada", "{r}\nby=ada by=bea", "{r} BY=bea",
    "{r} by=Bea", "{r} by=bea at=1 by=ada", "by=bea {r}", "by=ada by=bea", "41c by=bea", "41CC by=bea", " {r} by=bea",
    "{r} by=bea\n"])
def test_nobody_asks_in_the_name_of_another(ruled, value):
    refused(ruled.annotate("bea", "unnamed", approve=value.format(r=REVISION)), "approvals", "REVISION by=bea")
    # An abort, which needs no verb, is recorded with a name, too.
    refused(ruled.annotate("wren", "unnamed", abort=value.format(r=REVISION).replace("bea", "wren")), "approvals")


def test_the_name_is_as_serinus_writes_it(ruled):
    for who, name in (("bea", "bea"), ("dr who", "dr_who")):
        for value in (f"{REVISION} by={name}", f"41cc by={name}", by(name)):
            taken(ruled.annotate(who, "unnamed", approve=value))
    # What is a blank to Rust and not to the user's name would cut it.
    for value in (f"{REVISION} by=ada\u00a0x", f"{REVISION} by=ada_x", f"{REVISION} by=ada"):
        refused(ruled.annotate("ada\u00a0x", "unnamed", approve=value), "approvals")


def test_a_request_of_others_is_taken_away_when_it_was_handled(ruled):
    """As a tool does it that replaces the object by its manifest."""
    for who, kept in (("wren", True), ("bea", False)):
        for answer in (ruled.annotate(who, "waiting", approve=None), ruled.replace(who, WAITING, None),
                       ruled.send(who, "PATCH", ruled.at("PromptRelease", "waiting"), [
                           {"op": "remove", "path": "/metadata/annotations/serinus.dev~1approve"}], JSON)):
            if kept:
                refused(answer, "approvals", "may not take away serinus.dev/approve before the operator has handled it")
            else:
                taken(answer)
    taken(ruled.annotate("wren", "handled", approve=None))
    taken(ruled.replace("wren", HANDLED, None))
    refused(ruled.annotate("wren", "again", approve=None), "approvals", "before the operator has handled it")
    # It is not written again by them, nor anything in its place.
    for value in ("", by("wren"), f"{REVISION} by=eve "):
        refused(ruled.annotate("wren", "handled", approve=value), "approvals")


def test_a_restore_brings_requests_of_others_and_an_update_does_not(ruled):
    old = named(PLAIN, annotations={"serinus.dev/approve": f"{REVISION} by=eve", "serinus.dev/abort": "41cc"})
    taken(ruled.create("admin", old))
    refused(ruled.create("bea", old), "approvals", "REVISION by=bea")
    refused(ruled.create("wren", old), "approvals")
    refused(ruled.annotate("admin", "unnamed", approve=f"{REVISION} by=eve"), "approvals", "REVISION by=admin")


# Who decides whether anybody is asked.


def test_a_writer_chooses_a_policy_that_the_namespace_names(ruled):
    policy = lambda name: {"spec": {"policyRef": name and {"name": name}}}
    for who, name, permitted in [("wren", "other", True), ("wren", "asks", True), ("wren", "careful", False),
                                 ("wren", "other2", False), ("wren", "ask", False), ("wren", None, False), ("nina", None, False),
                                 ("bea", "careful", True), ("bea", None, True)]:
        answer = ruled.merge(who, "PromptRelease", "waiting", policy(name))
        if permitted:
            taken(answer)
        else:
            refused(answer, "approvals", f"{who} may not let", "serinus.dev/policies of the namespace (asks, other)",
                    "the ClusterRole serinus-approve gives it")
    taken(ruled.create("wren", PLAIN))
    for policy_name in ("easy", ""):
        other = m.release("plain", "any-v1", policy_name=policy_name)
        if not policy_name:
            del other["spec"]["policyRef"]
        refused(ruled.create("wren", other), "approvals", "wren may not let")
        taken(ruled.create("bea", other))
    # Nothing is permitted by forgetting.
    of_shop = m.release("plain", "any-v1", policy_name="asks", route="shop/plain")
    refused(ruled.create("wren", named(of_shop, namespace="shop")), "approvals", "which is not there")


def test_policies_are_written_by_holders_of_the_verb(ruled):
    for who, permitted in (("wren", False), ("nina", False), ("bea", True), ("admin", True)):
        for answer in (ruled.create(who, m.policy("new")),
                       ruled.merge(who, "CanaryPolicy", "easy", {"spec": {"bake": {"duration": "1s"}}})):
            if permitted:
                taken(answer)
            else:
                refused(answer, "policies", f"{who} may not write this policy", "kubectl auth can-i approve canarypolicies")
    taken(ruled.merge("wren", "CanaryPolicy", "easy", {"metadata": {"labels": {"a": "b"}}}))


def test_an_approver_does_not_write(ruled):
    uid = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}
    for body in ({"spec": {"promptRef": {"name": "any-v2"}}}, {"spec": {"suspend": True}}, {"metadata": {"labels": {"a": "b"}}},
                 {"metadata": {"finalizers": ["a.example/b"]}}, {"metadata": {"ownerReferences": [uid]}}):
        refused(ruled.merge("ada", "PromptRelease", "unnamed", body), "approvals", "annotations of this release only")
        taken(ruled.merge("wren", "PromptRelease", "unnamed", body))
    taken(ruled.merge("ada", "PromptRelease", "unnamed", {"metadata": {"annotations": {"note": "looked at"}}}))
    for answer in (ruled.create("ada", PLAIN), ruled.replace("ada", UNNAMED, {}), ruled.create("ada", m.policy("new"))):
        assert answer.code == 403 and "ValidatingAdmissionPolicy" not in answer.text, answer


# Routes and Secrets.


@pytest.mark.parametrize("namespace,route,permitted", [
    ("default", "plain", True), ("default", "plain-2", True), ("default", "answer", True), ("default", "default/x", True),
    ("default", "answers", False), ("default", "Plain", False), ("default", "anybody/s", False), ("default", "default", False),
    ("default", "defaults/x", False), ("shop", "shop/x", True), ("shop", "shopping/x", False), ("shop", "plain", False)])
def test_a_namespace_has_the_routes_that_it_may_have(ruled, namespace, route, permitted):
    answers = [ruled.create("admin", named(m.release("plain-other", "any-v1", route=route), namespace=namespace))]
    if "/" not in route and route.islower():
        # Without spec.route it is the object's name.
        answers.append(ruled.create("admin", named(m.release(route, "any-v1"), namespace=namespace)))
    for answer in answers:
        if permitted:
            taken(answer)
        else:
            refused(answer, "routes", f"the namespace {namespace} may not have the route {route}",
                    f"kubectl annotate namespace {namespace} --overwrite serinus.dev/routes=")


@pytest.mark.parametrize("prefix,permitted", [("plain-", True), ("other-", False)])
def test_a_name_that_the_api_server_makes_up_is_a_route_as_well(ruled, prefix, permitted):
    generated = m.release("", "any-v1", policy_name="asks")
    generated["metadata"] = {"generateName": prefix, "namespace": "default"}
    answer = ruled.create("admin", generated)
    if permitted:
        taken(answer)
    else:
        refused(answer, "routes", f"may not have the route {prefix}")


def test_what_has_another_route_already_goes_on(ruled):
    for body in ({"spec": {"promptRef": {"name": "any-v2"}}}, {"metadata": {"labels": {"a": "b"}}}):
        taken(ruled.merge("wren", "PromptRelease", "unnamed", body))
    gone = ruled.merge("admin", "PromptRelease", "unnamed", {"spec": {"route": None}})
    assert gone.code in (403, 422), "a route does not change"


PLACES = {"key": {"endpoint": {"url": "https://m/v1", "apiKeySecretRef": {"name": "locked", "key": "token"}}},
          "certificate": {"endpoint": {"url": "https://m/v1", "tls": {"clientCertificateSecretRef": {"name": "locked"}}}},
          "authority": {"endpoint": {"url": "https://m/v1", "tls": {"caSecretRef": {"name": "locked", "key": "ca"}}}},
          "proxy": {"endpoint": {"url": "https://m/v1"}, "proxy": {
              "url": "http://p:1", "credentialsSecretRef": {"name": "locked", "key": "login"}}}}


@pytest.mark.parametrize("spec", PLACES.values(), ids=PLACES.keys())
def test_who_names_a_secret_may_get_or_use_it(ruled, spec):
    backend = m.backend("new", "https://m/v1")
    backend["spec"] = {"provider": "openai", "model": "m", **spec}
    refused(ruled.create("sam", backend), "secrets", "sam may neither get nor use the Secret locked of the namespace default")
    refused(ruled.send("sam", "PATCH", ruled.at("LLMDeployment", "new"), backend, APPLY, fieldManager="x"), "secrets")
    taken(ruled.create("wren", backend))


def test_a_role_permits_to_use_a_secret_without_reading_it(ruled):
    of = "rbac.authorization.k8s.io"
    ruled.cluster.apply([
        {"apiVersion": f"{of}/v1", "kind": "Role", "metadata": m.meta("use-openai"), "rules": [
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["openai"], "verbs": ["use"]}]},
        bound("sam", "use-openai") | {"roleRef": {"apiGroup": of, "kind": "Role", "name": "use-openai"}}])
    wait_for("the role", lambda: ruled.create("sam", keyed("new", "openai")).code == 201)
    both = keyed("new", "openai", proxy={"url": "http://p:1", "credentialsSecretRef": {"name": "locked", "key": "x"}})
    refused(ruled.create("sam", both), "secrets", "the Secret locked of the namespace default (spec.proxy.credentialsSecretRef)")
    assert ruled.send("sam", "GET", "/api/v1/namespaces/default/secrets/openai", None).code == 403


def test_of_a_backend_that_is_there_only_where_secrets_go_is_checked(ruled):
    for spec in ({"limits": {"timeout": "9s"}}, {"pricing": None},
                 {"endpoint": {"apiKeySecretRef": None}}):
        taken(ruled.merge("sam", "LLMDeployment", "keyed", {"spec": spec}))
    for spec in ({"proxy": {"url": "http://p:1"}}, {"endpoint": {"apiKeyHeader": "x-key"}},
                 {"endpoint": {"apiKeySecretRef": {"name": "other", "key": "token"}}}):
        refused(ruled.merge("sam", "LLMDeployment", "keyed", {"spec": spec}), "secrets", "sam may neither get nor use")
        taken(ruled.merge("wren", "LLMDeployment", "keyed", {"spec": spec}))
    taken(ruled.create("sam", m.backend("new", "https://m/v1")))


# With operator and gateway, and the commands that people type.


@pytest.fixture(scope="module")
def running(ruled):
    cluster = ruled.cluster
    model = Model(cluster.folder).start()
    cluster.apply(m.backend("model", model.url))
    gateway = Gateway(cluster, "gateway-admission").start()
    operator = Operator(cluster, "operator-admission", [gateway])
    gateway.wait_ready()
    operator.start()
    wait_for("a leader", lambda: operator.leads)
    gateway.wait_judged()
    yield gateway, operator
    for part in (operator, gateway, model):
        part.process.stop()


def status(ruled: Ruled, name: str) -> dict:
    return ruled.cluster.release(name).get("status", {})


def wait_phase(ruled: Ruled, name: str, *phases: str) -> dict:
    wait_for(f"{name} {'/'.join(phases)}", lambda: status(ruled, name).get("phase") in phases, 90)
    return status(ruled, name)


def test_what_was_there_before_the_rules_is_looked_after_as_before(ruled, running):
    _, operator = running
    for name in ("unnamed", "waiting"):
        wait_phase(ruled, name, "Stable")
    # Against the rules of routes and policies, and changed by somebody without the verb.
    taken(ruled.merge("wren", "PromptRelease", "waiting", {"spec": {"suspend": True}}, dry=False))
    release = lambda: ruled.cluster.release("waiting")
    wait_for("the status", lambda: release()["status"]["observedGeneration"] == release()["metadata"]["generation"])
    # What eve asked for in advance was refused and is noted, so it may go.
    assert [r["by"] for r in status(ruled, "waiting")["requests"]] == ["eve"]
    taken(ruled.annotate("wren", "waiting", approve=None))
    code, said = ruled.kubectl("wren", "delete", "promptrelease", "handled", "--cascade=foreground", "--timeout=50s")
    assert code == 0, said
    assert "ValidatingAdmissionPolicy" not in operator.process.log.read_text()


def test_a_writer_writes_and_an_approver_approves(ruled, running):
    gateway, _ = running
    manifests = [m.prompt("answer-v1", "firstTokenMs=20"), m.release("answer", "answer-v1", policy_name="asks")]
    def apply(*objects: dict) -> None:
        code, said = ruled.kubectl("wren", "apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
        assert code == 0, said
    apply(*manifests)
    wait_phase(ruled, "answer", "Stable")
    with Traffic([gateway], "answer"):
        apply(m.prompt("answer-v2", "firstTokenMs=20"), m.release("answer", "answer-v2", policy_name="asks"))
        canary = wait_phase(ruled, "answer", "AwaitingApproval")["canary"]["revision"]
        for request in ("approve", "promote"):
            code, said = ruled.serinus("wren", request, "answer")
            assert code == 1 and f"wren may not {request} this release" in said and "serinus-approve" in said, said
        code, said = ruled.kubectl("bea", "annotate", "promptrelease", "answer", f"serinus.dev/approve={canary} by=ada")
        assert code == 1 and "must be REVISION by=bea" in said, said
        # With another policy nobody would be asked.
        code, said = ruled.kubectl("wren", "replace", "-f", "-", stdin=yaml.safe_dump(
            m.release("answer", "answer-v2", policy_name="easy")))
        assert code == 1 and "wren may not let the policy easy judge this release" in said, said
        assert status(ruled, "answer")["phase"] == "AwaitingApproval"

        code, said = ruled.serinus("ada", "approve", "answer")
        assert code == 0 and "done, as ada" in said, said
        # Who applies the manifest again, which does not name the request, takes nothing away.
        apply(m.release("answer", "answer-v2", policy_name="asks"))
        wait_phase(ruled, "answer", "Stable")
        assert [(r["action"], r["by"], r["accepted"]) for r in status(ruled, "answer")["requests"]] == [("approve", "ada", True)]

        apply(m.prompt("answer-v3", "firstTokenMs=20"), m.release("answer", "answer-v3", policy_name="asks"))
        wait_phase(ruled, "answer", "Progressing", "AwaitingApproval")
        code, said = ruled.serinus("wren", "abort", "answer")
        assert code == 0 and "done, as wren" in said, said
        wait_phase(ruled, "answer", "RolledBack")
        code, said = ruled.serinus("wren", "retry", "answer")
        assert code == 1 and "wren may not retry this release" in said, said
        assert ruled.serinus("ada", "retry", "answer")[0] == 0
        wait_phase(ruled, "answer", "Progressing", "AwaitingApproval")
        # A name with a blank is recorded as the command writes it.
        code, said = ruled.serinus("dr who", "promote", "answer")
        assert code == 0 and "done, as dr_who" in said, said
        wait_phase(ruled, "answer", "Stable")
    assert {r["action"]: r["by"] for r in status(ruled, "answer")["requests"]} == {
        "approve": "ada", "abort": "wren", "retry": "ada", "promote": "dr_who"}
    # A manifest that was read from the cluster brings the requests of others: it is not made anew by a writer.
    seen = ruled.cluster.kubectl("get", "promptrelease", "answer", "-o", "yaml")
    code, said = ruled.kubectl("wren", "replace", "--force", "-f", "-", stdin=seen)
    assert code == 1 and "wren may not approve, promote, retry this release" in said, said
    apply(manifests[1])


# Last, because the rules are changed.


def test_an_install_of_one_namespace_rules_over_that_one(ruled):
    cluster, first = ruled.cluster, rules(ruled.cluster.folder)
    cluster.kubectl("annotate", "namespace", "shop", "serinus.dev/policies=asks")
    cluster.kubectl("delete", *(f"{o['kind'].lower()}/{o['metadata']['name']}" for o in first if "Binding" in o["kind"]))
    of_shop = rules(cluster.folder, RULES | {"watchNamespace": "shop", "userRoles": {"create": False}})
    assert not {o["metadata"]["name"] for o in of_shop} & {o["metadata"]["name"] for o in first}, "two installs have names of their own"
    cluster.apply(of_shop)
    outside = m.release("other", "any-v1", policy_name="careful")
    wait_for("the end of the first", lambda: ruled.create("wren", outside).code == 201)
    inside = lambda route: named(m.release("other", "any-v1", policy_name="careful", route=route), namespace="shop")
    wait_for("the rule of routes", lambda: "may not have the route other" in ruled.create("admin", inside("other")).text)
    wait_for("the rule of policies", lambda: "wren may not let the policy careful" in ruled.create("wren", inside("shop/x")).text)
    taken(ruled.create("wren", outside))


def test_whom_a_rule_would_refuse_is_seen_first(ruled):
    cluster = ruled.cluster
    values = RULES | {"watchNamespace": "shop", "userRoles": {"create": False}}
    cluster.apply(rules(cluster.folder, values | {"admission": values["admission"] | {"actions": ["Warn", "Audit"]}}))
    manifest = yaml.safe_dump(named(m.release("other", "any-v1", policy_name="careful"), namespace="shop"))
    wait_for("the warning", lambda: ruled.kubectl("wren", "create", "--dry-run=server", "-f", "-", stdin=manifest)[0] == 0)
    _, said = ruled.kubectl("wren", "create", "--dry-run=server", "-f", "-", stdin=manifest)
    assert "Warning" in said and "may not have the route other" in said and "may not let the policy careful" in said, said
