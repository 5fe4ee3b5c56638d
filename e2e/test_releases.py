"""What a release goes through while users send chats. Checked from the users' side."""

import json
import time

from harness import manifests as m
from harness.processes import wait_for
from harness.traffic import Traffic


def rolled_back(world, name: str, marker: str, metric: str, **traffic) -> Traffic:
    """Releases a second prompt with `marker`; it must be rolled back because of `metric`."""
    first = world.first(name)
    stable = first["status"]["stable"]["revision"]
    with Traffic(world.gateways, name, **traffic) as users:
        world.next(name, "v2", marker)
        release = world.wait_phase(name, "RolledBack", seconds=90)
        decided = world.watcher.when(name, lambda s: s["phase"] == "RollingBack")
        canary = release["status"]["failedRevision"]
        time.sleep(3)
    assert not users.errors(), users.errors()[:5]
    entry = release["status"]["history"][-1]
    assert (entry["outcome"], entry["revision"]) == ("RolledBack", canary)
    assert entry["message"].startswith(metric), entry["message"]
    assert release["status"]["stable"]["revision"] == stable
    assert any(s.revision == canary for s in users.seen), "the canary was never tried"
    # RolledBack means that every gateway has told that it applies the decision.
    settled = world.watcher.when(name, lambda s: s["phase"] == "RolledBack")
    # The time for a status write to reach both gateways; printed to be read.
    tried = [s.at for s in users.seen if s.revision == canary]
    print(f"{name}: {len(tried)} answers by the canary within {max(tried) - min(tried):.1f} s, the last "
          f"{max(tried) - decided:+.3f} s from when the decision was seen")
    assert not [s for s in users.since(settled) if s.revision == canary]
    return users


def test_a_first_release_serves_at_once_and_a_better_prompt_is_promoted(world):
    world.first("good")
    with Traffic(world.gateways, "good") as users:
        world.next("good", "v2", "firstTokenMs=15")
        world.wait_phase("good", "Baking", seconds=90)
        release = world.wait_phase("good", "Stable", seconds=30)
        new = release["status"]["stable"]["revision"]
        wait_for("all traffic on the new prompt", lambda: world._served("good"))
        settled = time.monotonic()
        time.sleep(2)
    assert not users.errors(), users.errors()[:5]
    assert world.history("good") == [("good-v1", "Initial"), ("good-v2", "Promoted")]
    assert {s.revision for s in users.since(settled)} == {new}
    weights = [next((v["weight"] for v in o["status"]["routing"]["variants"] if v["role"] == "canary"), 0)
               for _, o in world.watcher.of("good")]
    assert [w for w in dict.fromkeys(weights) if w] == [20, 50]
    events = world.cluster.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}")
    for reason in ("FirstRelease", "CanaryStarted", "StepAdvanced", "Promoted", "Baked"):
        assert reason in events.split(), f"{reason} is not in {events}"


def test_errors_roll_back_and_no_user_sees_one(world):
    rolled_back(world, "errors", "firstTokenMs=20 errorRate=0.3", "errors")


def test_slow_first_tokens_roll_back(world):
    rolled_back(world, "slow", "firstTokenMs=90", "ttft")


def test_failed_output_checks_roll_back(world):
    rolled_back(world, "checks", "firstTokenMs=20 badJsonRate=0.3", "checks", stream_share=0.3)


def test_a_worse_feedback_score_rolls_back(world):
    world.cluster.apply(m.policy("scored", measured=[*m.metrics(), m.SCORE]))
    name = "score"
    first = world.first(name, policy="scored")
    stable = first["status"]["stable"]["revision"]
    with Traffic(world.gateways, name, score=lambda r: 0.8 if r == stable else 0.4) as users:
        world.next(name, "v2", "firstTokenMs=20")
        release = world.wait_phase(name, "RolledBack", seconds=90)
    assert not users.errors(), users.errors()[:5]
    assert release["status"]["history"][-1]["message"].startswith("helpful")


# A step that a canary does not pass before the test has changed how the model behaves.
LONG = [{"weight": 50, "samples": 5000}]


def test_an_incident_that_hits_both_variants_is_not_the_canarys_fault(world):
    world.cluster.apply(m.policy("long", steps=LONG))
    world.first("incident", policy="long")
    with Traffic(world.gateways, "incident"):
        world.next("incident", "v2", "firstTokenMs=20")
        world.wait_phase("incident", "Progressing", seconds=30)
        world.model.behave(errorRate=0.3)
        time.sleep(12)
        assert world.phase("incident") == "Progressing"
        world.model.behave()
    assert ("incident-v2", "RolledBack") not in world.history("incident")


def test_a_floor_that_stable_breaks_too_holds_and_the_canarys_own_failures_roll_back(world):
    floors = m.metrics(errors={"max": 0.1, "minSamples": 20})
    world.cluster.apply(m.policy("floored", steps=LONG, measured=floors))
    world.first("floor", policy="floored")
    with Traffic(world.gateways, "floor"):
        world.next("floor", "v2", "firstTokenMs=20")
        world.wait_phase("floor", "Progressing", seconds=30)
        world.model.behave(errorRate=0.4)
        release = world.wait_phase("floor", "Held", seconds=60)
        world.model.behave()
        assert release["status"]["canary"]["held"] == "FloorOnBothSides"
        world.next("floor", "v3", "firstTokenMs=20 errorRate=0.6")
        world.wait_phase("floor", "RolledBack", seconds=60)
    assert world.history("floor")[-1] == ("floor-v3", "RolledBack")


def test_an_approval_waits_for_the_person_who_names_the_revision(world):
    steps = [{"weight": 30, "samples": 60}, {"approval": {}}, {"weight": 60, "samples": 80}]
    world.cluster.apply(m.policy("approved", steps=steps))
    world.first("approval", policy="approved")
    with Traffic(world.gateways, "approval"):
        world.next("approval", "v2", "firstTokenMs=20")
        waiting = world.wait_phase("approval", "AwaitingApproval", seconds=60)
        canary = waiting["status"]["canary"]["revision"]
        annotate = lambda value: world.cluster.patch(
            "promptrelease", "approval", {"metadata": {"annotations": {"serinus.dev/approve": value}}})
        annotate("0123456789 by=mallory")
        wait_for("the refusal", lambda: [
            r for r in world.cluster.release("approval")["status"].get("requests", []) if not r["accepted"]])
        assert world.phase("approval") == "AwaitingApproval"
        annotate(f"{canary} by=ada")
        world.wait_phase("approval", "Stable", seconds=90)
    entry = world.cluster.release("approval")["status"]["history"][-1]
    assert entry["outcome"] == "Promoted" and entry["requests"][0]["by"] == "ada"


def test_a_policy_that_can_not_decide_is_a_warning_and_refuses_nothing(world):
    metric = [{"name": "errors", "errorRate": {}, "margin": {"harm": 0.01, "accept": 0.02}}]
    world.cluster.apply(m.policy("hasty", steps=[{"weight": 20, "samples": 20}], measured=metric))

    def decidable(kind: str, name: str) -> dict | None:
        text = world.cluster.kubectl("get", kind, name, "-o", "json")
        conditions = json.loads(text).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Decidable"), None)

    told = wait_for("the policy's condition", lambda: decidable("canarypolicy", "hasty"))
    assert (told["status"], told["reason"]) == ("False", "PolicyCanNotDecide")
    assert "set samples to" in told["message"], told["message"]
    assert wait_for("quick", lambda: decidable("canarypolicy", "quick"))["status"] == "True"
    world.first("hasty", policy="hasty")
    world.next("hasty", "v2", "firstTokenMs=20")
    world.wait_phase("hasty", "Progressing", "Held", seconds=60)
    assert decidable("promptrelease", "hasty")["message"] == told["message"]
    events = world.cluster.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}")
    assert "PolicyCanNotDecide" in events.split()
