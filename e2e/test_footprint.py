"""What the processes hold in memory and write, printed to be read; only growth and waste are judged."""

import threading
import time
from collections import Counter

import httpx

from harness import manifests as m
from harness.audit import status_writes
from harness.manifests import KEY
from harness.processes import wait_for

RATE, THREADS, SECONDS = 200, 8, 20


def load(url: str, route: str, seconds: float) -> list[int]:
    """Sends chats at RATE without caring for much; answers the status codes."""
    codes, stop = [], time.monotonic() + seconds

    def run(number: int) -> None:
        with httpx.Client(base_url=url, headers={"api-key": KEY}) as client:
            due = time.monotonic() + number / RATE
            while due < stop:
                time.sleep(max(0.0, due - time.monotonic()))
                due += THREADS / RATE
                body = {"model": route, "user": f"{due}", "serinus": {"variables": {"question": "why?"}}}
                codes.append(client.post("/v1/chat/completions", json=body).status_code)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes


def test_what_is_released_is_written_once_and_nothing_is_refused(world):
    """Looks that see what they wrote not yet would write again, and be refused (409)."""
    names = [f"written-{i}" for i in range(30)]
    world.cluster.apply([part for name in names for part in (m.prompt(f"{name}-v1", "tokens=5"), m.release(name, f"{name}-v1"))])
    for name in names:
        wait_for(f"both gateways for {name}", lambda: world._served(name), 60)
    time.sleep(2)
    codes = Counter()
    for name, code in status_writes(world.cluster.audit_log):
        if name in names:
            codes[code] += 1
    print(f"{dict(codes)} status writes for {len(names)} releases")
    # One for the decision, one for each time that another gateway is seen to have it.
    assert set(codes) == {200} and codes[200] <= 3 * len(names), codes


def test_memory_is_flat_under_load(world):
    world.first("footprint", marker="firstTokenMs=10 tokens=5")
    gateway, operator = world.gateways[0].process, wait_for("a leader", lambda: world.leader).process
    idle = gateway.rss_kib(), operator.rss_kib()
    codes = load(world.gateways[0].url, "footprint", SECONDS)
    early = gateway.rss_kib(), operator.rss_kib()
    codes += load(world.gateways[0].url, "footprint", SECONDS)
    late = gateway.rss_kib(), operator.rss_kib()
    assert set(codes) == {200}
    rate = len(codes) / (2 * SECONDS)
    for name, i in (("gateway", 0), ("operator", 1)):
        print(f"{name}: {idle[i] / 1024:.0f} MiB idle, {early[i] / 1024:.0f} and {late[i] / 1024:.0f} MiB "
              f"after {SECONDS} and {2 * SECONDS} s at {rate:.0f} requests/s")
    assert late[0] < 1.3 * early[0] and late[1] < 1.3 * early[1]
