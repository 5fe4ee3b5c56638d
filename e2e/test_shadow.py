"""Shadow steps: a canary meets requests before it meets users."""

import time

import httpx
import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.traffic import Traffic
from test_cli import serinus

STEPS = [{"shadow": {"percent": 50, "samples": 120, "deadline": "2m"}}, {"weight": 40, "samples": 120}]


def asked(world, prompt: str) -> int:
    """How many requests with this prompt reached the model."""
    stats = httpx.get(f"http://127.0.0.1:{world.model.port}/control/stats").json()
    return stats.get(prompt, {}).get("requests", 0)


def roles(world, name: str) -> list[str]:
    """The roles besides stable that the release ever routed to, in order."""
    seen = [v["role"] for _, o in world.watcher.of(name)
            for v in o["status"]["routing"]["variants"] if v["role"] != "stable"]
    return list(dict.fromkeys(seen))


@pytest.mark.parametrize("name, marker, metric", [
    ("dark-errors", "firstTokenMs=20 errorRate=0.3", "errors"),
    ("dark-checks", "firstTokenMs=20 badJsonRate=0.3", "checks"),
    ("dark-slow", "firstTokenMs=90", "ttft"),
    # It fails altogether: its breaker opens, and the few pairs that it has decide.
    ("dark-dead", "errorRate=1", "errors"),
])
def test_a_bad_canary_is_rolled_back_in_its_shadow_step_and_no_user_ever_saw_it(world, name, marker, metric):
    world.cluster.apply(m.policy("dark", steps=STEPS))
    stable = world.first(name, policy="dark")["status"]["stable"]["revision"]
    with Traffic(world.gateways, name) as users:
        world.next(name, "v2", marker)
        release = world.wait_phase(name, "RolledBack", seconds=90)
        copies = asked(world, f"{name}-v2")
        time.sleep(3)
    assert not users.errors(), users.errors()[:5]
    entry = release["status"]["history"][-1]
    assert entry["outcome"] == "RolledBack" and entry["message"].startswith(metric), entry
    assert {s.revision for s in users.seen} == {stable}, "a user saw the canary"
    assert roles(world, name) == ["shadow"]
    assert any(s.shadow_id for s in users.seen) and copies > 0, "nothing was copied"
    assert asked(world, f"{name}-v2") == copies, "copies after every gateway told that it has rolled back"


def test_a_good_canary_passes_its_shadow_step_and_meets_users_then(world):
    name = "dawn"
    world.cluster.apply(m.policy("dark", steps=STEPS))
    stable = world.first(name, policy="dark")["status"]["stable"]["revision"]
    with Traffic(world.gateways, name) as users:
        world.next(name, "v2", "firstTokenMs=15")
        text = wait_for("pairs", lambda: (
            t := serinus(world, "describe", name)) and "Shadow: " in t and " 0 pairs" not in t and t)
        print(text)
        assert "copies of 50 % to Shadow" in text and "for copies in this step" in text
        world.wait_phase(name, "Stable", seconds=120)
    assert not users.errors(), users.errors()[:5]
    assert world.history(name)[-1] == (f"{name}-v2", "Promoted")
    assert roles(world, name) == ["shadow", "canary", "previous"]
    exposed = world.watcher.when(name, lambda s: any(v["role"] == "canary" for v in s["routing"]["variants"]))
    # A gateway may follow a status a little before the watcher sees it.
    early = [s for s in users.seen if s.revision != stable and s.at < exposed - 0.5]
    assert not early, "a user saw the canary before its shadow step had passed"


def test_scores_of_both_answers_are_compared_in_pairs(world):
    name = "dark-score"
    world.cluster.apply(m.policy("dark-scored", steps=STEPS, measured=[*m.metrics(), m.SCORE]))
    stable = world.first(name, policy="dark-scored")["status"]["stable"]["revision"]
    # An evaluator scores stable's answers, and the copies by their own id.
    with Traffic(world.gateways, name, score=lambda _: 0.8, shadow_score=lambda: 0.4) as users:
        world.next(name, "v2", "firstTokenMs=20")
        release = world.wait_phase(name, "RolledBack", seconds=90)
    assert not users.errors(), users.errors()[:5]
    assert release["status"]["history"][-1]["message"].startswith("helpful")
    assert {s.revision for s in users.seen} == {stable}


def test_copies_end_when_a_person_aborts(world):
    name = "dark-abort"
    patient = [{"shadow": {"percent": 100, "samples": 1000000}}, {"weight": 10, "samples": 100}]
    world.cluster.apply(m.policy("dark-patient", steps=patient))
    world.first(name, policy="dark-patient")
    with Traffic(world.gateways, name) as users:
        world.next(name, "v2", "firstTokenMs=20")
        wait_for("copies", lambda: asked(world, f"{name}-v2") > 20)
        serinus(world, "abort", name)
        world.wait_phase(name, "RolledBack")
        copies = asked(world, f"{name}-v2")
        time.sleep(2)
        assert asked(world, f"{name}-v2") == copies
    assert not users.errors(), users.errors()[:5]
    assert world.history(name)[-1] == (f"{name}-v2", "Withdrawn")
