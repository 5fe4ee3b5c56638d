"""What the processes hold in memory, printed to be read; only growth is judged."""

import threading
import time

import httpx

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
