"""A variant that gateways can not build waits, is told in the status, and takes nobody down."""

import json
import re

import httpx

from harness import manifests as m
from harness.processes import wait_for
from harness.traffic import Traffic


def reason(world, name: str) -> str:
    conditions = world.cluster.release(name)["status"]["conditions"]
    return next(c["message"] for c in conditions if c["type"] == "Ready")


def routed(world, name: str) -> list[str]:
    return [v["role"] for v in world.cluster.release(name)["status"]["routing"]["variants"]]


def test_a_canary_whose_secret_is_missing_waits_and_stable_answers_also_after_a_restart(world):
    world.first("unbuilt")
    closed = m.backend("closed", world.model.url, "other")
    closed["spec"]["endpoint"]["apiKeySecretRef"] = {"name": "closed-key", "key": "token"}
    world.cluster.apply(closed)
    # Without the right to read Secrets, that is the reason.
    world.cluster.patch("promptrelease", "unbuilt", {"spec": {"backendRef": {"name": "closed"}}})
    wait_for("what is missing", lambda: "serinus-gateway-api-keys" in reason(world, "unbuilt"), 60)
    world.cluster.patch("promptrelease", "unbuilt", {"spec": {"backendRef": {"name": "model"}}})
    world.cluster.kubectl("create", "rolebinding", "api-keys", "--clusterrole=serinus-gateway-api-keys",
                          "--serviceaccount=serinus-system:serinus-gateway", "-n", "default")
    wait_for("stable alone", lambda: routed(world, "unbuilt") == ["stable"], 30)
    with Traffic(world.gateways, "unbuilt", stream_share=0) as users:
        world.cluster.patch("promptrelease", "unbuilt", {"spec": {"backendRef": {"name": "closed"}}})
        wait_for("the reason", lambda: "there is no Secret closed-key" in reason(world, "unbuilt"), 60)
        assert "gateways can not build" in reason(world, "unbuilt")
        wait_for("stable alone", lambda: routed(world, "unbuilt") == ["stable"], 30)
        generation = world.cluster.release("unbuilt")["status"]["routing"]["generation"]
        for gateway in world.gateways:
            gateway.process.kill()
            gateway.start().wait_ready()
            wait_for("it again", lambda: "2 of 2 gateways" in reason(world, "unbuilt"), 60)
        # It does not come and go.
        assert world.cluster.release("unbuilt")["status"]["routing"]["generation"] == generation
    assert not users.errors(), users.errors()[:5]
    # The Secret must say where it may be sent; with it the canary goes on by itself.
    with Traffic(world.gateways, "unbuilt", stream_share=0) as users:
        world.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": m.meta("closed-key"),
                             "stringData": {"token": "a-key-for-the-model"}})
        grant = wait_for("the command", lambda: re.search(
            r"kubectl (annotate secret closed-key \S+=127\.0\.0\.1)", reason(world, "unbuilt")), 90)
        world.cluster.kubectl(*grant[1].split())
        wait_for("the promotion", lambda: world.history("unbuilt")[-1][1] == "Promoted", 120)
    assert not users.errors(), users.errors()[:5]


OTHERS = "e2e-key-of-other-routes-0123456789"
# Of each release, why it is not well. The last serves nevertheless.
TOLD = {
    "told-no-prompt": "PromptNotFound",
    "told-no-backend": "BackendNotFound",
    "told-bad-prompt": "PromptInvalid",
    "told-not-ready": "BackendNotReady",
    "told-suspended": "Suspended",
    "told-held": "FirstReleaseHeld",
    "told-taken": "RouteTaken",
    "told-no-policy": "PolicyNotFound",
}


def ask(gateway, route: str, key: str = m.KEY) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", headers={"api-key": key}, json={
        "model": route, "messages": [], "serinus": {"variables": {"question": "why?"}}})


def refused(gateway, route: str, key: str = m.KEY) -> str:
    answer = ask(gateway, route, key)
    return answer.json()["error"]["message"] if answer.status_code == 404 else f"status {answer.status_code}"


def problems(part) -> str:
    return httpx.get(f"http://127.0.0.1:{part.admin}/readyz?verbose").text


def ready(world, name: str) -> str:
    conditions = world.cluster.release(name).get("status", {}).get("conditions", [])
    return next((c["reason"] for c in conditions if c["type"] == "Ready"), "")


def warnings(world) -> set[tuple[str, str]]:
    """Of which object which reasons have been told as a warning."""
    events = json.loads(world.cluster.kubectl("get", "events", "-n", "default", "-o", "json"))["items"]
    return {(e["involvedObject"]["name"], e["reason"]) for e in events if e["type"] == "Warning"}


def test_what_is_wrong_with_a_release_is_told_where_people_look(world):
    """Log and Event at the change, metrics and readyz while it lasts, and the 404 for who may use the route."""
    bad = m.prompt("told-bad-v1")
    bad["spec"]["messages"][0]["content"] = "{{ unclosed"
    # What another release served before can not be compared with what comes now.
    world.first("told-before", route="told-held")
    world.cluster.kubectl("delete", "promptrelease", "told-before")
    world.first("told-owner", route="told-r")
    world.cluster.apply([m.backend("told-dead", "http://127.0.0.1:9/v1"), bad,
                         m.prompt("told-ok-v1", "firstTokenMs=20"), m.prompt("told-other-v1", "firstTokenMs=21"),
                         m.client_key("told-others", OTHERS, routes="other-*")])
    world.cluster.apply([
        m.release("told-no-prompt", "told-missing-v1"),
        m.release("told-no-backend", "told-ok-v1", "told-missing"),
        m.release("told-bad-prompt", "told-bad-v1"),
        m.release("told-not-ready", "told-ok-v1", "told-dead"),
        m.release("told-suspended", "told-ok-v1", suspend=True),
        m.release("told-held", "told-other-v1"),
        # With what its users have now, so that it serves when the route is free.
        m.release("told-taken", "told-owner-v1", route="told-r"),
        m.release("told-no-policy", "told-ok-v1", policy_name="told-missing"),
    ])
    for name, reason in TOLD.items():
        wait_for(f"{name} {reason}", lambda: ready(world, name) == reason)
    wait_for("the Events", lambda: TOLD.items() <= warnings(world))

    # A line each in the log of who leads, as a warning unless the release goes on by itself.
    lines = [line for operator in world.operators
             for line in operator.process.log.read_text(errors="replace").splitlines()]
    for name, reason in TOLD.items():
        told = [line for line in lines if name in line and reason in line]
        assert len(told) == 1, (name, told)
        assert ("WARN" in told[0]) == (reason != "BackendNotReady"), told

    leader = world.leader
    wait_for("the operator's problems", lambda: all(
        f"PromptRelease default/{name}: {reason}: " in problems(leader) for name, reason in TOLD.items()))
    for reason in TOLD.values():
        assert leader.metric(f'serinus_operator_problems{{reason="{reason}"}}') >= 1, reason

    served = {"told-no-policy": "told-no-policy", "told-taken": "told-r"}
    for gateway in world.gateways:
        wait_for("the gateway's problems", lambda: all(
            f"PromptRelease default/{name}: {reason}: " in problems(gateway)
            for name, reason in TOLD.items() if name != "told-no-policy"))
        metrics = httpx.get(f"http://127.0.0.1:{gateway.admin}/metrics").text
        wait_for("a key that is known", lambda: ask(gateway, "told-r", OTHERS).status_code == 403)
        for name, reason in TOLD.items():
            if route := served.get(name):
                wait_for(f"an answer on {route}", lambda: ask(gateway, route).status_code == 200)
                continue
            assert f'serinus_gateway_problems{{reason="{reason}"}}' in metrics, reason
            assert f"is not served now: PromptRelease default/{name}: {reason}: " in refused(gateway, name)
            # Whose key is for other routes is told nothing.
            assert f'no PromptRelease serves the route "{name}"' in refused(gateway, name, OTHERS)

    # What is mended or gone is told no more.
    world.cluster.apply(m.prompt("told-missing-v1", "firstTokenMs=20"))
    world.wait_phase("told-no-prompt", "Stable")
    world.cluster.kubectl("delete", "promptrelease", "told-bad-prompt", "told-owner")
    wait_for("the route", lambda: ready(world, "told-taken") == "Stable")
    for gateway in world.gateways:
        wait_for("an answer", lambda: ask(gateway, "told-no-prompt").status_code == 200)
        wait_for("no more of it", lambda: "no PromptRelease serves" in refused(gateway, "told-bad-prompt"))
        wait_for("the others", lambda: "told-held" in problems(gateway))
        for name in ("told-no-prompt", "told-bad-prompt", "told-taken"):
            wait_for(name, lambda: f"default/{name}:" not in problems(gateway))
    for name in ("told-no-prompt", "told-bad-prompt", "told-taken"):
        wait_for(name, lambda: f"default/{name}:" not in problems(world.leader))
    world.cluster.kubectl("delete", "secret", "told-others", "-n", "serinus-system")
