"""Canaries whose failures could hide: users leave before they are told of one, an open breaker
keeps users away from one, a slow answer ends after its step. And what is counted, exactly."""

import re
import threading
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.traffic import Traffic
from harness.unsound_model import UnsoundModel
from harness.watcher import ended, opened

SEED = 20261126
PATIENCE = 2
DURATION = {"name": "duration", "duration": {"quantile": 0.9}, "margin": {"harm": 0.1, "accept": 0.35}}


@pytest.fixture(scope="module")
def model(shared):
    """A model server that every case of this file uses for both variants."""
    model = UnsoundModel(SEED).start()
    shared.cluster.apply([
        m.backend("unsound", model.url, timeout="120s", firstTokenTimeout="60s"),
        m.policy("watchful", measured=[*m.metrics(), DURATION]),
        m.policy("strict", measured=[*m.metrics(), DURATION], fallbackToStable=False),
    ])
    yield model
    model.stop()


def first(world, name: str, policy: str = "watchful", marker: str = "") -> str:
    """A release that serves; its stable revision."""
    release = world.first(name, policy=policy, marker=marker, backend_name="unsound")
    return release["status"]["stable"]["revision"]


def decided(world, name: str, version: str) -> dict:
    """What became of a canary, from the release's history."""
    def entry():
        history = world.cluster.release(name)["status"]["history"]
        return next((h for h in history if h["prompt"] == f"{name}-{version}"), None)
    return wait_for(f"the end of {name}-{version}", entry, 120)


def evidence(world, name: str) -> dict[str, dict]:
    """The evidence of the release, by gateway process."""
    return {entry["instance"]: entry for entry in world.cluster.release(name)["status"]["evidence"]}


def weights(world, name: str) -> list[int]:
    """The weights that the canaries of the release ever had, in order."""
    seen = [v["weight"] for _, o in world.watcher.of(name)
            for v in o["status"]["routing"]["variants"] if v["role"] == "canary"]
    return list(dict.fromkeys(seen))


def rolled_back(world, name: str, marker: str, policy: str = "watchful", **traffic) -> tuple[str, Traffic]:
    """Releases a second prompt that must be rolled back in its first step: why, and its users."""
    stable = first(world, name, policy)
    with Traffic(world.gateways, name, threads=32, **traffic) as users:
        world.next(name, "v2", marker)
        entry = decided(world, name, "v2")
    assert entry["outcome"] == "RolledBack", entry
    assert world.cluster.release(name)["status"]["stable"]["revision"] == stable
    assert weights(world, name) == [20], "only the first step may be needed"
    print(f"{name}: {len(users.errors())} of {len(users.seen)} users hurt; {entry['message']}")
    return entry["message"], users


@pytest.mark.parametrize("name, stream_share", [("hung", 0), ("stalled", 1)])
def test_a_canary_that_users_give_up_is_rolled_back_and_few_are_hurt(world, model, name, stream_share):
    # Whole answers never come; streams stop after their first token.
    why, users = rolled_back(world, name, "hangRate=0.3", patience=PATIENCE, stream_share=stream_share)
    assert why.startswith(("unfinished", "duration", "ttft")), why
    hurt = users.errors()
    assert all("imeout" in s.error for s in hurt), hurt[:5]
    # Of the 80 requests of its first step 24 hang; some more are under way when it ends.
    assert len(hurt) < 60, "users go on being hurt"


def test_a_model_that_hangs_for_both_variants_is_not_the_canarys_fault(world, model):
    name = "hung-alike"
    first(world, name, marker="hangRate=0.3")
    with Traffic(world.gateways, name, threads=48, patience=PATIENCE) as users:
        world.next(name, "v2", "hangRate=0.3")
        # Each look could roll it back, and none may: until its end, or until a hundred requests hung.
        passed = lambda: world.phase(name) == "Stable" and (f"{name}-v2", "Promoted") in world.history(name)
        wait_for("the end", lambda: passed() or model.fates.get(f"{name}-v2", Counter())["hung"] >= 100, 120)
    print(f"{name}: {len(users.errors())} of {len(users.seen)} users hurt, "
          f"{world.phase(name)} at weights {weights(world, name)}")
    assert (f"{name}-v2", "RolledBack") not in world.history(name), world.history(name)


def test_a_canary_that_does_not_hang_where_stable_does_is_promoted(world, model):
    name = "cured"
    first(world, name, marker="hangRate=0.3")
    with Traffic(world.gateways, name, threads=48, patience=PATIENCE):
        world.next(name, "v2", "")
        entry = decided(world, name, "v2")
    assert entry["outcome"] == "Promoted", entry


@pytest.mark.parametrize("name, marker", [
    ("dark-hung", "hangRate=0.6"), ("dark-late", "slowRate=0.6 slowSeconds=12")])
def test_a_shadow_fails_by_answers_that_it_has_not_got_yet(world, model, name, marker):
    steps = [{"shadow": {"percent": 50, "samples": 120}}, {"weight": 40, "samples": 120}]
    world.cluster.apply(m.policy("copying", steps=steps, measured=[*m.metrics(), DURATION]))
    first(world, name, "copying")
    with Traffic(world.gateways, name) as users:
        world.next(name, "v2", marker)
        entry = decided(world, name, "v2")
    print(f"{name}: {entry['message']}")
    assert entry["outcome"] == "RolledBack" and entry["message"].startswith(("ttft", "duration")), entry
    assert not users.errors() and not weights(world, name), "users were hurt by a shadow"


def test_refusals_by_the_canary_alone_roll_back_where_no_fallback_tells_whose_fault_they_are(world, model):
    why, users = rolled_back(world, "refusing", "refuseRate=0.3", policy="strict")
    assert why.startswith("refusals"), why
    assert all("maximum context length" in s.error for s in users.errors()), users.errors()[:5]
    assert 0 < len(users.errors()) < 60


def test_answers_that_take_longer_than_a_step_roll_back(world, model):
    # A step has its 80 requests after about 10 s. More are slow than the accept margin allows.
    why, users = rolled_back(world, "late", "slowRate=0.6 slowSeconds=12", patience=30)
    assert why.startswith(("ttft", "duration")), why
    assert not users.errors(), users.errors()[:5]


def test_a_good_canary_of_the_same_model_is_promoted(world, model):
    name = "sound"
    first(world, name, "strict")
    with Traffic(world.gateways, name, patience=PATIENCE) as users:
        world.next(name, "v2", "")
        entry = decided(world, name, "v2")
    assert entry["outcome"] == "Promoted", entry
    assert not users.errors(), users.errors()[:5]


def test_the_evidence_of_a_canary_that_comes_and_goes_is_what_was_drawn_and_rolls_it_back(world, model):
    """Its breaker opens whenever the canary is away, and no user notices."""
    name, every, seconds = "flapping", 10, 4
    errors = lambda harm, accept: [{"name": "errors", "errorRate": {}, "margin": {"harm": harm, "accept": accept}}]
    world.cluster.apply([
        # Decides nothing: its evidence is to be read.
        m.policy("shown", steps=[{"weight": 50, "samples": 1_000_000}], measured=errors(0.9, 0.95)),
        # A step takes longer than a turn.
        m.policy("turns", steps=[{"weight": 50, "samples": 900, "minDuration": "15s"}], measured=errors(0.1, 0.2))])
    first(world, name, "shown")
    marker = f"downEvery={every} downSeconds={seconds}"
    with Traffic(world.gateways, name, rate=60, threads=8) as users:
        world.next(name, "v2", marker)
        wait_for("the canary", lambda: f"{name}-v2" in model.began)
        # The share that was drawn is known at any time; 0.4 after whole turns.
        wait_for("two turns", lambda: time.monotonic() > model.began[f"{name}-v2"] + 2 * every)
        shown = evidence(world, name).values()
        drawn = model.down_share(f"{name}-v2", every, seconds, time.monotonic())
        world.cluster.patch("promptrelease", name, {"spec": {"policyRef": {"name": "turns"}}})
        world.next(name, "v3", marker)
        why = decided(world, name, "v3")
    assert not users.errors(), users.errors()[:5]
    canary = [entry["canary"] for entry in shown]
    requests = sum(c["requests"] for c in canary)
    share = sum(c["errors"] for c in canary) / requests
    away = sum(c.get("turnedAway", {}).get("requests", 0) for c in canary)
    sent = sum(c["errors"] - c.get("turnedAway", {}).get("errors", 0) for c in canary) / (requests - away)
    print(f"{name}: down for {drawn:.1%} of what was drawn; errors are {share:.1%} of {requests}, "
          f"and {sent:.1%} of those that {away} turned away leave; {why['message']}")
    assert why["outcome"] == "RolledBack" and why["message"].startswith("errors"), why
    assert away > 0, "no breaker opened"
    assert not sum(entry["stable"]["errors"] for entry in shown)
    # Of the requests that were sent to it alone, half as many fail.
    assert 0.6 * drawn < share < 1.4 * drawn, (share, drawn)


@dataclass
class Sent:
    """A request to one gateway process, and what its client knows of it."""

    user: str
    kind: str
    # drawn: some of an answer came. unsure: the connection broke before. unsent: nobody listened.
    fate: str
    ended: float
    revision: str = ""


# What a request asks the model for. Whoever left has read the first token of a stream.
KINDS = {"whole": "", "refused": "[[sim:refuseRate=1]]", "left": "[[sim:hangRate=1]]"}


class Census:
    """Clients that know of each request whether the process that they sent it to has drawn it.
    Each request has a connection of its own, so that none meets one that is being closed."""

    def __init__(self, route: str, gateway):
        self.route = route
        self.sent: list[Sent] = []
        self._client = httpx.Client(base_url=gateway.url, headers={"api-key": m.KEY}, timeout=60,
                                    limits=httpx.Limits(max_keepalive_connections=0))

    def send(self, users: list[str], kinds: tuple[str, ...] = ("whole",), rate: float = 40) -> threading.Thread:
        """Sends a request for each user, of each kind in turn; the thread ends with the last."""
        waiting, lock, began = iter(enumerate(users)), threading.Lock(), time.monotonic()

        def work() -> None:
            while True:
                with lock:
                    number, user = next(waiting, (0, None))
                if user is None:
                    return
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
                self.sent.append(self._one(user, kinds[number % len(kinds)], number % 2 == 0))

        def run() -> None:
            workers = [threading.Thread(target=work, daemon=True) for _ in range(16)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _one(self, user: str, kind: str, streams: bool) -> Sent:
        asked = {"model": self.route, "user": user, "stream": streams or kind == "left",
                 "serinus": {"variables": {"question": f"why? {KINDS[kind]}"}}}
        fate, revision = "unsure", ""
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=asked) as answer:
                # An answer without a revision is of the gateway itself, which has drawn nothing.
                revision = answer.headers.get("x-serinus-revision", "")
                fate = "drawn" if revision else f"status {answer.status_code}"
                for _ in answer.iter_raw():
                    if kind == "left":
                        # Long enough to be seen as open.
                        time.sleep(1)
                        break
        except httpx.ConnectError:
            fate = "unsent"
        except httpx.HTTPError:
            pass
        return Sent(user, kind, fate, time.monotonic(), revision)


def assigned(entry: dict) -> int:
    return entry["stable"]["assigned"] + entry["canary"]["assigned"]


def quiet(world, name: str, many: int, without: str = "") -> dict[str, dict] | None:
    """The evidence, once all processes but one have drawn so many requests, which have ended."""
    found = evidence(world, name)
    others = [entry for instance, entry in found.items() if instance != without]
    over = all(ended(entry[side]) == entry[side]["assigned"] for entry in others for side in ("stable", "canary"))
    return found if sum(map(assigned, others)) >= many and over else None


def counted_exactly(entry: dict, sent: list[Sent], side_of: dict[str, str]) -> None:
    """All that this living process was sent is counted once, on the side of its user."""
    assert all(s.fate == "drawn" for s in sent), [s for s in sent if s.fate != "drawn"][:5]
    for side in ("stable", "canary"):
        counts, own = entry[side], [s for s in sent if side_of[s.user] == side]
        assert counts["assigned"] == len(own), (side, counts, len(own))
        assert ended(counts) == counts["assigned"] and not opened(counts), (side, counts)
        kinds = Counter(s.kind for s in own)
        assert counts.get("refused", 0) == kinds["refused"], (side, counts, kinds)
        assert counts.get("unfinished", 0) == kinds["left"], (side, counts, kinds)
        waiting = counts.get("turnedAway", {}).get("waiting", 0)
        assert counts["requests"] + waiting == kinds["whole"], (side, counts, kinds)


def lost_with(entry: dict, sent: list[Sent], side_of: dict[str, str], born: float) -> int:
    """How many of the requests that were sent to a killed process are not in its evidence: at
    most those that were under way when it last reported, or came later."""
    lost = 0
    for side in ("stable", "canary"):
        counts = entry[side]
        reached = [s for s in sent if side_of[s.user] == side and s.fate != "unsent"]
        # The process counts its time from a little after it was started: it read these counts later.
        reported = born + counts["readAt"] / 1000
        sure = sum(s.fate == "drawn" and s.ended < reported for s in reached)
        print(f"{side} of the killed process: {sure} ended before its last report, {counts['assigned']} are in "
              f"the evidence, {len(reached)} reached it, {sum(s.fate == 'unsure' for s in reached)} of them perhaps not")
        assert sure <= counts["assigned"] <= len(reached)
        assert ended(counts) <= counts["assigned"] and not opened(counts), counts
        lost += len(reached) - counts["assigned"]
    return lost


def test_every_request_is_counted_once_whoever_is_killed_but_for_what_a_gateway_had_not_reported(world, model):
    """Two gateways, of which one is killed and comes back; then the leading operator is killed
    while the canary is away and breakers are open."""
    name = "counted"
    wide = {"harm": 0.9, "accept": 0.95}
    kinds = {"errors": "errorRate", "left": "unfinished", "refused": "refusals", "unread": "unjudged"}
    measured = [{"name": metric, kind: {}, "margin": wide} for metric, kind in kinds.items()]
    world.cluster.apply(m.policy("counting", steps=[{"weight": 50, "samples": 1_000_000}], measured=measured,
                                 fallbackToStable=False))
    stable = first(world, name, "counting")
    world.next(name, "v2", "")
    wait_for("the canary", lambda: (r := world.cluster.release(name)["status"]["routing"])["observedBy"] == "2/2"
             and len(r["variants"]) == 2)
    killed, living = Census(name, world.gateways[0]), Census(name, world.gateways[1])

    # New users, of whom each has one request. The numbers tell the processes apart.
    for census, many in ((killed, 130), (living, 110)):
        census.send([f"user-{many}-{i}" for i in range(many)]).join()
    side_of = {s.user: "stable" if s.revision == stable else "canary" for s in killed.sent + living.sent}
    known = wait_for("the first requests", lambda: quiet(world, name, 240))
    process_of = {assigned(entry): instance for instance, entry in known.items()}
    assert set(process_of) == {130, 110}, process_of
    counted_exactly(known[process_of[110]], living.sent, side_of)

    # As many users of either side, so that their shares stay what the weight says.
    sides = [[u for u, side in side_of.items() if side == wanted] for wanted in ("stable", "canary")]
    users = [user for pair in zip(*sides) for user in pair]
    mixed = ("whole", "refused", "whole", "left", "whole", "whole", "whole")
    threads = [c.send(users, mixed) for c in (killed, living)]
    wait_for("a report of some", lambda: (
        assigned(evidence(world, name)[process_of[130]]) > 130 + len(users) / 4), 60)
    world.gateways[0].process.kill()
    born = world.gateways[0].process.started
    for thread in threads:
        thread.join()
    world.gateways[0].start().wait_ready().wait_judged()
    again = Census(name, world.gateways[0])
    again.send(users[:60], mixed).join()

    model.behave(f"{name}-v2", downRate=1)
    threads = [again.send(users), living.send(users)]
    wait_for("an open breaker", lambda: any(
        "turnedAway" in entry["canary"] for entry in evidence(world, name).values()), 60)
    wait_for("a leader", lambda: world.leader).process.kill()
    for thread in threads:
        thread.join()
    sent = len(again.sent) + len(living.sent)
    final = wait_for("all requests", lambda: quiet(world, name, sent, without=process_of[130]), 60)
    assert len(final) == 3, final.keys()
    counted_exactly(final[process_of[110]], living.sent, side_of)
    new = (set(final) - set(process_of.values())).pop()
    counted_exactly(final[new], again.sent, side_of)
    assert final[process_of[110]]["canary"]["turnedAway"]["requests"] > 0
    lost = lost_with(final[process_of[130]], killed.sent, side_of, born)
    reached = [s for c in (killed, living, again) for s in c.sent if s.fate != "unsent"]
    total = sum(map(assigned, final.values()))
    print(f"{name}: {len(reached)} requests reached a gateway, {total} are drawn in the evidence, "
          f"{lost} were lost with the process that was killed after {len(killed.sent)}")
    assert total + lost == len(reached) and lost < len(users)
    # The watcher checks each status; in some of them requests are open.
    assert any(opened(e[side]) for _, o in world.watcher.of(name) for e in o["status"].get("evidence", [])
               for side in ("stable", "canary"))
