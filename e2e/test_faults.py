"""Whatever dies, whenever: the same end, no rule broken, and users do not notice."""

import json
import os
import random
import signal
import subprocess
import time

import httpx

from harness import manifests as m
from harness import rights
from harness.cluster import GROUP
from harness.processes import wait_for
from harness.proxy import FaultyProxy
from harness.serinus import BIN, Model, Operator
from harness.traffic import Traffic

SEED = 20261124


def test_the_leading_operator_is_killed_at_twenty_instants(world):
    dice, kills = random.Random(SEED), 0
    for round_ in range(5):
        name = f"killed{round_}"
        world.first(name)
        bad = round_ % 2
        with Traffic(world.gateways, name) as users:
            world.next(name, "v2", f"firstTokenMs=20 errorRate={0.25 if bad else 0}")
            for _ in range(4):
                time.sleep(dice.uniform(0.2, 4))
                leader = world.leader
                if leader:
                    leader.process.kill()
                    kills += 1
                    time.sleep(dice.uniform(0, 0.5))
                    leader.start()
                wait_for("a leader", lambda: world.leader, 30)
            end = world.wait_phase(name, "RolledBack" if bad else "Stable", seconds=120)
            if not bad:
                wait_for("the promotion", lambda: (f"{name}-v2", "Promoted") in world.history(name), 120)
                end = world.wait_phase(name, "Stable", seconds=60)
        assert not users.errors(), users.errors()[:5]
        outcomes = [h["outcome"] for h in end["status"]["history"]]
        assert outcomes == ["Initial", "RolledBack" if bad else "Promoted"], outcomes
    assert kills == 20


def test_each_gateway_is_killed_during_a_canary(world):
    world.first("gatewaykill")
    with Traffic(world.gateways, "gatewaykill", stream_share=0) as users:
        world.next("gatewaykill", "v2", "firstTokenMs=20")
        for gateway in world.gateways:
            time.sleep(2)
            gateway.process.kill()
            time.sleep(1.5)
            gateway.start().wait_ready()
        world.wait_phase("gatewaykill", "Baking", seconds=120)
        world.wait_phase("gatewaykill", "Stable", seconds=60)
    # A client that tries the other gateway when a connection breaks sees nothing.
    assert not users.errors(), users.errors()[:5]
    assert world.history("gatewaykill")[-1] == ("gatewaykill-v2", "Promoted")


def test_a_gateway_that_is_told_to_stop_breaks_no_stream(world):
    world.first("drained", marker="firstTokenMs=50 tokens=60 tokenMs=20")
    with Traffic(world.gateways, "drained", rate=30, threads=30, stream_share=1) as users:
        time.sleep(3)
        for gateway in world.gateways:
            gateway.process.kill(signal.SIGTERM)
            gateway.start().wait_ready()
            time.sleep(1)
        wait_for("more than 100 streams", lambda: len(users.seen) > 100, 60)
    assert not users.errors(), users.errors()[:5]


def test_the_api_server_is_killed_for_thirty_seconds(world):
    world.first("outage")
    with Traffic(world.gateways, "outage") as users:
        world.next("outage", "v2", "firstTokenMs=20")
        world.wait_phase("outage", "Progressing", seconds=30)
        time.sleep(1)
        world.cluster.parts["apiserver"].kill()
        time.sleep(30)
        assert not any(o.leads for o in world.operators), "nobody may be sure to lead now"
        world.cluster.parts["apiserver"].start()
        world.cluster.wait_ready()
        # What is written now is heard: no watch waits much longer than the API server was away.
        world.first("after-outage")
        wait_for("the promotion", lambda: ("outage-v2", "Promoted") in world.history("outage"), 120)
        world.wait_phase("outage", "Stable", seconds=60)
    assert not users.errors(), users.errors()[:5]


def test_without_any_operator_gateways_send_everything_to_stable(world):
    first = world.first("orphan")
    stable = first["status"]["stable"]["revision"]
    with Traffic(world.gateways, "orphan") as users:
        world.next("orphan", "v2", "firstTokenMs=20")
        world.wait_phase("orphan", "Progressing", seconds=30)
        for operator in world.operators:
            operator.process.kill()
        time.sleep(32)
        lost = time.monotonic()
        time.sleep(3)
        assert {s.revision for s in users.since(lost)} == {stable}
        for operator in world.operators:
            operator.start()
        wait_for("a leader", lambda: world.leader)
        wait_for("the promotion", lambda: ("orphan-v2", "Promoted") in world.history("orphan"), 120)
    assert not users.errors(), users.errors()[:5]


def test_users_notice_nothing_when_the_model_before_a_bake_is_retired(world, tmp_path):
    """People move away from a model, it is switched off during the bake, and later its
    LLMDeployment is deleted."""
    old = Model(tmp_path, "retired-model").start()
    world.cluster.apply([
        m.backend("retired", old.url, "old"), m.backend("its-successor", world.model.url, "new"),
        m.policy("moves", steps=[{"weight": 50, "samples": 40}], bake={"duration": "10m", "holdback": 10}),
        m.prompt("moves-v1", "firstTokenMs=20"), m.release("moves", "moves-v1", "retired", "moves")])
    first = world.wait_phase("moves", "Stable")["status"]["stable"]["revision"]
    wait_for("both gateways", lambda: world.cluster.release("moves")["status"]["routing"]["observedBy"] == "2/2")
    with Traffic(world.gateways, "moves", rate=60, stream_share=0) as users:
        world.cluster.patch("promptrelease", "moves", {"spec": {"backendRef": {"name": "its-successor"}}})
        world.wait_phase("moves", "Baking", seconds=90)
        baking = world.cluster.release("moves")["status"]["stable"]["revision"]
        old.process.kill()
        time.sleep(10)
        for operator in world.operators:
            operator.process.kill()
        time.sleep(35)  # control loss
        assert answered_by(users, 3) == {baking}, "the one that is dead is not asked"
        for operator in world.operators:
            operator.start()
        wait_for("a leader", lambda: world.leader)
        world.cluster.kubectl("delete", "llmdeployment", "retired")
        time.sleep(5)
        world.next("moves", "v2", "firstTokenMs=20")
        wait_for("the canary", lambda: "moves-v2" in json.dumps(
            world.cluster.release("moves")["status"].get("canary", {})), 60)
        routed = world.cluster.release("moves")["status"]["routing"]["variants"]
        assert {v["revision"] for v in routed if v["role"] == "stable"} == {baking}
        assert first not in {v["revision"] for v in routed}
        time.sleep(5)
    assert not users.errors(), users.errors()[:5]


def test_who_can_not_see_releases_does_not_keep_the_lease_from_others(world):
    """An operator without the right to list snapshots stands beside healthy ones that pause."""
    rights.another_operator(world.cluster, "blind-operator", without="releasesnapshots")
    blind = Operator(world.cluster, "operator-blind", world.gateways, account="blind-operator").start()
    try:
        for operator in world.operators:
            operator.process.child.send_signal(signal.SIGSTOP)
        time.sleep(25)
        assert not blind.leads
        status, words = ready_in_words(blind)
        assert status == 503 and "the caches are not filled yet" in words, words
        assert "releasesnapshots" in words, words
    finally:
        for operator in world.operators:
            operator.process.child.send_signal(signal.SIGCONT)
        blind.process.kill()
    wait_for("a leader", lambda: world.leader)


def ready_in_words(operator: Operator) -> tuple[int, str]:
    answer = httpx.get(f"http://127.0.0.1:{operator.admin}/readyz?verbose")
    return answer.status_code, answer.text


def answered_by(users: Traffic, seconds: float) -> set[str]:
    """The revisions of the last seconds, when there were enough requests to tell."""
    seen = [s.revision for s in users.since(time.monotonic() - seconds) if s.ok]
    return set(seen) if len(seen) >= 60 else set()


def test_leaders_that_may_not_write_give_no_sign_of_life_and_let_leadership_go(world):
    stable = world.first("norights")["status"]["stable"]["revision"]
    # That others are at rest, and have nothing to write, shows nothing.
    world.first("norights-beside")
    leader = world.leader
    other = next(o for o in world.operators if o is not leader)
    with Traffic(world.gateways, "norights") as users:
        world.next("norights", "v2", "firstTokenMs=20")
        world.wait_phase("norights", "Progressing", seconds=30)
        wait_for("users on the canary", lambda: len(answered_by(users, 4)) == 2)
        with rights.taken(world.cluster, "promptreleases/status"):
            time.sleep(2)  # what was under way is over
            status = world.cluster.release("norights")["status"]
            assert status["phase"] == "Progressing", "take the right away earlier"

            def lost():
                code, words = ready_in_words(leader)
                return words if code == 503 else None
            words = wait_for("a leader that is not ready", lost, 75)
            assert "default/norights: not decided since" in words and "forbidden" in words, words
            wait_for("its end", lambda: not leader.process.alive, 45)
            wait_for("another leader", lambda: other.leads, 30)
            # It can not write either, so it does not keep the canary running.
            wait_for("control loss", lambda: answered_by(users, 4) == {stable}, 60)
            began = time.monotonic()
            time.sleep(4)
            assert {s.revision for s in users.since(began)} == {stable}
            assert other.leads, "give the right back earlier"
            assert world.cluster.release("norights")["status"] == status, "nothing was written"
        wait_for("the canary", lambda: len(answered_by(users, 4)) == 2, 45)
        assert ready_in_words(other)[0] == 200
        leader.start()
        wait_for("the promotion", lambda: ("norights-v2", "Promoted") in world.history("norights"), 120)
        world.wait_phase("norights", "Stable", seconds=60)
        wait_for("readiness", lambda: [ready_in_words(o)[0] for o in world.operators] == [200, 200])
    assert not users.errors(), users.errors()[:5]


def test_one_release_that_can_not_be_written_has_no_judge_and_costs_no_leadership(world):
    stable = world.first("poisoned")["status"]["stable"]["revision"]
    world.first("poisoned-beside")
    leader = world.leader
    with Traffic(world.gateways, "poisoned") as users:
        world.next("poisoned", "v2", "firstTokenMs=20")
        world.wait_phase("poisoned", "Progressing", seconds=30)
        wait_for("users on the canary", lambda: len(answered_by(users, 4)) == 2)
        # As if a leader had written it that no one can come after.
        world.cluster.kubectl("patch", "promptrelease", "poisoned", "--subresource=status", "--type=merge",
                              "-p", json.dumps({"status": {"leaderTerm": 9_000_000_000_000_000}}))
        wait_for("all users on stable", lambda: answered_by(users, 4) == {stable}, 60)
        began = time.monotonic()
        while time.monotonic() < began + 60:
            code, words = ready_in_words(leader)
            assert code == 200 and leader.leads, words
            time.sleep(1)
        assert "default/poisoned: not decided since" in words and "its users go to stable" in words, words
        assert "default/poisoned-beside" not in words, words
        assert leader.metric("serinus_releases_unwritten") == 1
        assert {s.revision for s in users.since(began)} == {stable}
        events = world.cluster.kubectl("get", "events.events.k8s.io", "-n", "default")
        assert "DecisionNotWritten" in events, events
        # All others go on.
        world.next("poisoned-beside", "v2", "firstTokenMs=20")
        world.wait_phase("poisoned-beside", "Progressing", seconds=30)
    assert not users.errors(), users.errors()[:5]
    world.cluster.kubectl("delete", "promptrelease", "poisoned")
    wait_for("nothing undecided", lambda: "not decided since" not in ready_in_words(leader)[1], 30)


def test_what_can_not_be_read_of_a_status_costs_only_itself(world):
    """The API server lets through what only the judge reads; a watch of all releases must not fail on it."""
    world.first("garbled")
    world.first("garbled-beside")
    with Traffic(world.gateways, "garbled"):
        world.next("garbled", "v2", "firstTokenMs=20")
        world.wait_phase("garbled", "Progressing", seconds=30)
        for operator in world.operators:
            operator.process.kill()
        lines = world.cluster.release("garbled")["status"]["analysis"]
        garbled = {"earlierSteps": [{"step": "first"}],
                   "analysis": [{**line, "turn": {"batches": "many"}, "batches": {"count": -1}} for line in lines]}
        world.cluster.kubectl("patch", "promptrelease", "garbled", "--subresource=status", "--type=merge",
                              "-p", json.dumps({"status": garbled}))
        stored = world.cluster.release("garbled")["status"]
        assert {part: stored[part] for part in garbled} == garbled, "it is stored as it was written"
        # Whoever lists it now reads it.
        for process in [*world.operators, world.gateways[0]]:
            if process in world.gateways:
                process.process.kill()
            process.start()
        world.gateways[0].wait_ready()
        world.next("garbled-beside", "v2", "firstTokenMs=20")
        world.wait_phase("garbled-beside", "Progressing", seconds=60)
        wait_for("the promotion", lambda: ("garbled-v2", "Promoted") in world.history("garbled"), 120)
        world.wait_phase("garbled", "Stable", seconds=60)


def test_objects_that_can_not_be_read_cost_only_themselves(world):
    """The API server takes them; whoever starts must lead and serve without them."""
    deep, nested = m.deep(), json.loads('{"a":' * 140 + "1" + "}" * 140)
    served = world.first("odd-stays")["status"]["stable"]["revision"]
    odd = {"apiVersion": m.API, "kind": "LLMDeployment", "metadata": m.meta("odd-server"),
           "spec": {"provider": "vllm", "model": "m", "serving": {"image": "x", "resources": {"limits": 7}}}}
    prompt = m.prompt("odd-deep")
    prompt["spec"]["variables"] = {"type": "object", "properties": {"question": {"type": "string", "default": deep}}}
    world.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(odd))
    world.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(prompt))
    # The API server notes who wrote each field, as deep as the fields are; and it takes any such notes.
    prompt["metadata"]["name"] = "odd-nested"
    prompt["spec"]["variables"]["properties"]["question"]["default"] = nested
    world.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(prompt))
    world.cluster.apply([m.policy("odd-policy"), m.backend("odd-managed", world.model.url)])
    notes = [{"manager": "x", "operation": "Update", "apiVersion": m.API, "fieldsType": "FieldsV1", "fieldsV1": nested}]
    for of in ("canarypolicy/odd-policy", "llmdeployment/odd-managed", "promptrelease/odd-stays"):
        world.cluster.kubectl("patch", of, "--type=merge", "-p", json.dumps({"metadata": {"managedFields": notes}}))
    world.first("odd-release")
    evidence = {"status": {"evidence": m.unreadable()}}
    world.cluster.kubectl("patch", "promptrelease", "odd-release", "--subresource=status", "--type=merge",
                          "-p", json.dumps(evidence))
    try:
        with Traffic(world.gateways, "odd-stays") as users:
            for part in [*world.operators, *world.gateways]:
                part.process.kill()
                part.start()
            for gateway in world.gateways:
                gateway.wait_ready()
            wait_for("a leader", lambda: world.leader, 60)
            began = time.monotonic()
            world.next("odd-stays", "v2", "firstTokenMs=20")
            wait_for("the promotion", lambda: ("odd-stays-v2", "Promoted") in world.history("odd-stays"), 120)
        assert not [e for e in users.errors() if e.at > began], users.errors()[:3]
        assert {s.revision for s in users.since(began)} > {served}
        _, words = ready_in_words(world.leader)
        for name in ("odd-policy", "odd-managed", "odd-stays"):
            assert name not in words, words
        for name in ("LLMDeployment default/odd-server", "PromptVersion default/odd-deep",
                     "PromptVersion default/odd-nested", "PromptRelease default/odd-release"):
            assert f"{name} can not be read" in words, words
        assert world.cluster.release("odd-release")["status"]["stable"], "nobody takes it for deleted"
        # Commands tell of the others, and do not hide that some are missing.
        for command, unread in ((("get", "-A", "-o", "json"), ["default/odd-release"]),
                                (("models", "-A", "-o", "json"), ["default/odd-server", "default/odd-release"])):
            run = subprocess.run([BIN, *command], env={**os.environ, "KUBECONFIG": str(world.cluster.admin)},
                                 capture_output=True, text=True, timeout=60)
            assert run.returncode == 1 and json.loads(run.stdout), run
            assert all(f"{name} can not be read" in run.stderr for name in unread), run.stderr
    finally:
        for what in ("promptrelease/odd-release", "llmdeployment/odd-server", "promptversion/odd-deep",
                     "promptversion/odd-nested"):
            world.cluster.kubectl("delete", what)
    wait_for("nothing unread", lambda: "can not be read" not in ready_in_words(world.leader)[1], 30)


def test_a_canary_whose_release_can_not_be_read_has_no_judge_whoever_leads(world):
    deep = m.deep()
    stable = world.first("unread")["status"]["stable"]["revision"]
    world.first("unread-beside")
    with Traffic(world.gateways, "unread") as users:
        world.next("unread", "v2", "firstTokenMs=20")
        world.wait_phase("unread", "Progressing", seconds=30)
        wait_for("users on the canary", lambda: len(answered_by(users, 4)) == 2)

        def put(parts: list[dict], **metadata) -> None:
            world.cluster.kubectl("patch", "promptrelease", "unread", "--subresource=status", "--type=merge",
                                  "-p", json.dumps({"metadata": metadata, "status": {"evidence": parts}}))

        def spoiled() -> list[dict]:
            """The evidence as it was. What an operator wrote meanwhile is not taken back."""
            release = world.cluster.release("unread")
            first, *others = release["status"].get("evidence") or []
            put([{**first, "stable": {**first["stable"], "z": deep}}, *others],
                resourceVersion=release["metadata"]["resourceVersion"])
            return [first, *others]

        kept = wait_for("evidence", spoiled)
        wait_for("all users on stable", lambda: answered_by(users, 4) == {stable}, 60)
        # Another leader has never read it, and does not give the canary back.
        for _ in range(2):
            leader = world.leader
            leader.process.kill()
            began = time.monotonic()
            wait_for("another leader", lambda: any(o.leads for o in world.operators if o is not leader), 60)
            time.sleep(10)
            assert {s.revision for s in users.since(began)} == {stable}
            leader.start()
            wait_for("both", lambda: all(ready_in_words(o)[0] == 200 for o in world.operators), 60)
        _, words = ready_in_words(world.leader)
        assert "PromptRelease default/unread can not be read" in words and "unread-beside" not in words, words
        # What names it says that it is there.
        world.cluster.apply(m.release("unread-rival", "unread-v1", route="unread"))
        rival = lambda: str(world.cluster.release("unread-rival").get("status", {}).get("conditions"))  # noqa: E731
        wait_for("what it waits for", lambda: "RouteTaken" in rival() and "default/unread" in rival())
        world.cluster.kubectl("delete", "promptrelease", "unread-rival")
        # Mended, it goes on.
        put(kept)
        wait_for("the promotion", lambda: ("unread-v2", "Promoted") in world.history("unread"), 120)
    assert not users.errors(), users.errors()[:5]


def test_what_exists_and_can_not_be_read_is_not_said_to_be_missing(world):
    deep = m.deep()
    prompt = m.prompt("unreadable-v1")
    prompt["spec"]["variables"] = {"type": "object", "properties": {"question": {"type": "string", "default": deep}}}
    shallow = json.loads("[" * 105 + "]" * 105)
    kept = m.prompt("unkept-v1")
    kept["spec"]["variables"] = {"type": "object", "properties": {"question": {"type": "string", "default": shallow}}}
    for one in (prompt, kept):
        world.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(one))
    world.cluster.apply([m.release("unreadable", "unreadable-v1"), m.release("unkept", "unkept-v1")])

    def ready(name: str) -> dict:
        conditions = world.cluster.release(name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Ready"), {})

    # It could not be read again from its snapshot.
    for name, why in (("unreadable", "is there and can not be read"), ("unkept", "nested deeper than 100 levels")):
        wait_for("the reason", lambda: ready(name).get("reason") == "PromptInvalid")
        assert why in ready(name)["message"], ready(name)
        world.cluster.kubectl("delete", f"promptrelease/{name}", f"promptversion/{name}-v1")


def test_a_tenant_whose_releases_can_not_be_written_ends_no_canary_of_others(world):
    """More than can be named one by one: a prompt that no snapshot holds, and statuses that no leader may write."""
    world.cluster.kubectl("create", "namespace", "flood")

    def theirs(manifest: dict) -> dict:
        return {**manifest, "metadata": {**manifest["metadata"], "namespace": "flood"}}
    fat = m.prompt("fat-v1")
    # 252,000 characters are 1.5 MB where they are stored.
    fat["spec"]["messages"] += [{"role": "user", "content": "<" * 63_000}] * 4
    world.cluster.apply(m.policy("endless", steps=[{"weight": 30, "samples": 100_000}]))
    status = world.first("beside-flood", policy="endless")["status"]
    leader = world.leader
    with Traffic(world.gateways, "beside-flood", rate=30) as users:
        world.next("beside-flood", "v2", "firstTokenMs=20")
        world.wait_phase("beside-flood", "Progressing", seconds=30)
        wait_for("users on the canary", lambda: len(answered_by(users, 4)) == 2)
        # kubectl apply would send it twice, once as an annotation.
        world.cluster.http.post(f"{GROUP}/namespaces/flood/promptversions", json=theirs(fat)).raise_for_status()
        world.cluster.apply([theirs(m.backend("model", world.model.url)), theirs(m.policy("quick")),
                             *[theirs(m.release(f"fat{i}", "fat-v1")) for i in range(70)],
                             *[theirs(m.release(f"fenced{i}", "nothing")) for i in range(70)]])

        def reasons(kind: str) -> list[str]:
            found = world.cluster.get(f"{GROUP}/namespaces/flood/{kind}")["items"]
            return [next((c["reason"] for c in o.get("status", {}).get("conditions", []) if c["type"] == "Ready"), "")
                    for o in found]
        wait_for("reasons", lambda: sorted(reasons("promptreleases"))
                 == ["PromptInvalid"] * 70 + ["PromptNotFound"] * 70, 60)
        assert reasons("promptversions") == ["PromptInvalid"]
        for i in range(70):
            body = {"status": {"leaderTerm": 9_000_000_000_000_000}}
            world.cluster.http.patch(f"{GROUP}/namespaces/flood/promptreleases/fenced{i}/status", json=body,
                                     headers={"content-type": "application/merge-patch+json"}).raise_for_status()
            world.cluster.patch("promptrelease", f"fenced{i}", {"spec": {"promptRef": {"name": "nothing2"}}}, "flood")
        wait_for("that they are undecided", lambda: leader.metric("serinus_releases_unwritten") >= 70, 180)
        # Beyond what the gateways wait for a leader.
        began = time.monotonic()
        while time.monotonic() < began + 60:
            code, words = ready_in_words(leader)
            assert code == 200 and leader.leads and "not told" not in words, words
            time.sleep(2)
        assert len(answered_by(users, 10)) == 2, "its canary goes on"
        lines = [line for line in leader.process.log.read_text().splitlines() if "flood" in line or "fenced" in line]
        assert len(lines) < 400, len(lines)
    assert not users.errors(), users.errors()[:5]
    now = world.cluster.release("beside-flood")["status"]
    assert now["stable"] == status["stable"] and now["phase"] == "Progressing", now
    world.cluster.kubectl("delete", "namespace", "flood", "--wait=false")
    world.cluster.kubectl("delete", "promptrelease", "beside-flood")
    wait_for("nothing undecided", lambda: "not decided since" not in ready_in_words(leader)[1], 60)


def test_when_no_operator_can_use_the_lease_all_say_so(world):
    with rights.taken(world.cluster, "leases"):
        def told():
            found = [ready_in_words(operator) for operator in world.operators]
            return found if [code for code, _ in found] == [503, 503] else None
        for _, words in wait_for("operators that are not ready", told, 60):
            for part in ("no operator leads", "Lease serinus-system/serinus-operator", "deploy/rbac-operator.yaml"):
                assert part in words, words
        for gateway in world.gateways:
            def lost(gateway=gateway):
                answer = httpx.get(f"http://127.0.0.1:{gateway.admin}/readyz?verbose")
                return answer if "ControlLoss" in answer.text else None
            assert wait_for("control loss", lost, 60).status_code == 200
    wait_for("a leader", lambda: world.leader, 60)
    wait_for("readiness", lambda: [ready_in_words(o)[0] for o in world.operators] == [200, 200], 30)
    follower = next(o for o in world.operators if not o.leads)
    wait_for("who leads", lambda: f"{world.leader.process.name}_" in ready_in_words(follower)[1], 30)


def test_a_stolen_lease_and_a_leader_that_was_asleep_never_make_two_writers(world):
    world.first("stolen")
    with Traffic(world.gateways, "stolen") as users:
        world.next("stolen", "v2", "firstTokenMs=20")
        world.wait_phase("stolen", "Progressing", seconds=30)
        for _ in range(3):
            asleep = world.leader
            asleep.process.pause()
            wait_for("another leader", lambda: next(
                (o for o in world.operators if o is not asleep and o.leads), None), 30)
            asleep.process.resume()
            time.sleep(1)
            wait_for("one leader", lambda: sum(o.leads for o in world.operators) == 1)
        lease = json.loads(world.cluster.kubectl("get", "lease", "serinus-operator", "-n", "serinus-system", "-o", "json"))
        world.cluster.kubectl("patch", "lease", "serinus-operator", "-n", "serinus-system", "--type=merge", "-p",
                              json.dumps({"spec": {"holderIdentity": "thief"}}))
        wait_for("nobody leads", lambda: not any(o.leads for o in world.operators))
        wait_for("a leader again", lambda: world.leader, 30)
        now = json.loads(world.cluster.kubectl("get", "lease", "serinus-operator", "-n", "serinus-system", "-o", "json"))
        assert now["spec"]["acquireTime"] > lease["spec"]["acquireTime"]
        wait_for("the promotion", lambda: ("stolen-v2", "Promoted") in world.history("stolen"), 120)
    assert not users.errors(), users.errors()[:5]


def test_cut_watches_conflicts_throttling_and_lost_answers_change_nothing(world):
    proxies = [FaultyProxy(world.cluster.url, SEED + i) for i in range(2)]
    whole = world.operators
    for operator in whole:
        operator.process.stop()
    world.operators = [
        Operator(world.cluster, f"faulty-{i}", world.gateways, server=proxy.url, lease_seconds=8).start()
        for i, proxy in enumerate(proxies)
    ]
    try:
        wait_for("a leader", lambda: world.leader)
        for name, marker, end in (("faulty-good", "firstTokenMs=20", "Stable"),
                                  ("faulty-bad", "firstTokenMs=20 errorRate=0.25", "RolledBack")):
            world.first(name)
            for proxy in proxies:
                proxy.share, proxy.cut_after = 0.2, 4
            with Traffic(world.gateways, name) as users:
                world.next(name, "v2", marker)
                wanted = {"Stable": "Promoted"}.get(end, end)
                wait_for(f"{name} {wanted}", lambda: (f"{name}-v2", wanted) in world.history(name), 180)
                world.wait_phase(name, end, seconds=180)
            assert not users.errors(), users.errors()[:5]
            for proxy in proxies:
                proxy.share, proxy.cut_after = 0.0, None
        injected = proxies[0].injected + proxies[1].injected
        print(f"injected: {dict(injected)}")
        assert {409, 429, 500, "lost", "cut"} <= set(injected), injected
    finally:
        for operator in world.operators:
            operator.process.stop()
        world.operators = whole
        for operator in whole:
            operator.start()
        for proxy in proxies:
            proxy.stop()
