"""A variant that gateways can not build waits, is told in the status, and takes nobody down."""

import re

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
