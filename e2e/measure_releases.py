#!/usr/bin/env python3
"""Measures an operator over many releases on a real API server.

    e2e/run.sh is for tests; this prints figures:
    SERINUS_BIN=target/release/serinus SERINUS_E2E_TOOLS="$(e2e/tools/build.sh)" \\
        PYTHON e2e/measure_releases.py --releases 10000

From nothing until all are Stable, idle, after a restart, and while --canaries of them run a canary
under --rate requests a second: seconds, CPU seconds and memory of the operator, and what it asked
the API server.
"""

import argparse
import http.client
import json
import os
import re
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from harness import audit
from harness import manifests as m
from harness.cluster import GROUP, Cluster
from harness.serinus import Gateway, Model, Operator

TICKS = os.sysconf("SC_CLK_TCK")
REQUESTS = re.compile(r'apiserver_request_total\{(.*)\} (\S+)$')


def cpu(process) -> float:
    """CPU seconds that a process has taken so far."""
    fields = Path(f"/proc/{process.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def requests(cluster: Cluster) -> Counter:
    """Requests to the API server so far, by verb and resource; not the ones that count them."""
    found = Counter()
    for line in cluster.http.get("/metrics").text.splitlines():
        if match := REQUESTS.match(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
            # A watch is counted when it ends; the server's own work is none of ours.
            what = f"{labels['verb']} {labels['resource']}" + (f"/{labels['subresource']}" if labels["subresource"] else "")
            found[what] += int(float(match[2]))
    return found


def difference(after: Counter, before: Counter) -> dict[str, int]:
    more = {what: n - before[what] for what, n in after.items() if n > before[what]}
    return dict(sorted(more.items(), key=lambda item: -item[1])[:12])


def stable(operator: Operator) -> int:
    try:
        return int(operator.metric('serinus_releases{phase="Stable"}'))
    except httpx.HTTPError:
        return 0


def until_all_stable(operator: Operator, wanted: int, seconds: float) -> float:
    began = time.monotonic()
    while stable(operator) < wanted:
        if time.monotonic() > began + seconds:
            raise SystemExit(f"{stable(operator)} of {wanted} are Stable after {seconds} s\n{operator.process.tail()}")
        time.sleep(0.5)
    return time.monotonic() - began


def create(cluster: Cluster, count: int, namespaces: int) -> None:
    def one(i: int) -> None:
        space = f"team-{i % namespaces}"
        release = m.release(f"r{i}", "p-v1")
        release["metadata"]["namespace"] = space
        release["spec"]["route"] = f"route-{i}"
        cluster.http.post(f"{GROUP}/namespaces/{space}/promptreleases", json=release).raise_for_status()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


class Load:
    """Asks the routes of the canaries in turn, at `rate` requests a second."""

    def __init__(self, gateway: Gateway, routes: list[str], rate: float, threads: int = 8):
        self._stop = threading.Event()
        self.answered = Counter()
        self._address = gateway.url.removeprefix("http://")
        self._threads = [threading.Thread(target=self._run, args=(routes[n::threads], rate / threads)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, routes: list[str], rate: float) -> None:
        connection = http.client.HTTPConnection(self._address)
        headers = {"api-key": m.KEY, "content-type": "application/json"}
        due, sent = time.monotonic(), 0
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / rate
            sent += 1
            body = json.dumps({"model": routes[sent % len(routes)], "user": str(sent),
                               "serinus": {"variables": {"question": "why?"}}})
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            self.answered[answer.status] += 1

    def stop(self) -> Counter:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.answered


def canaries(cluster: Cluster, operator: Operator, gateway: Gateway, arguments) -> dict:
    """Figures a minute while canaries run."""
    spaces = [f"team-{i}" for i in range(arguments.namespaces)]
    for space in spaces:
        new = [m.prompt("p-v2", "tokens=6"), m.policy("long", [{"weight": 20, "samples": 100_000}])]
        del new[1]["spec"]["analysis"]["interval"]
        for part in new:
            part["metadata"]["namespace"] = space
        cluster.apply(new)
    patch = {"spec": {"promptRef": {"name": "p-v2"}, "policyRef": {"name": "long"}}}
    for i in range(arguments.canaries):
        space = spaces[i % len(spaces)]
        cluster.http.patch(f"{GROUP}/namespaces/{space}/promptreleases/r{i}", json=patch,
                           headers={"content-type": "application/merge-patch+json"}).raise_for_status()
    load = Load(gateway, [f"route-{i}" for i in range(arguments.canaries)], arguments.rate)
    time.sleep(60)
    looks = 'serinus_reconcile_seconds_count{kind="PromptRelease"}'
    before, used, looked = requests(cluster), cpu(operator.process), operator.metric(looks)
    time.sleep(arguments.minutes * 60)
    after, taken, seen = requests(cluster), cpu(operator.process) - used, operator.metric(looks) - looked
    asked = {what: round(n / arguments.minutes) for what, n in difference(after, before).items()}
    return {"canaries": arguments.canaries, "aMinute": {
        "cpuSeconds": round(taken / arguments.minutes, 1), "looks": round(seen / arguments.minutes), "requests": asked},
        "memoryMiB": round(operator.process.rss_kib() / 1024), "answers": dict(load.stop())}


def figures(operator: Operator, seconds: float) -> dict:
    return {"seconds": round(seconds, 1), "cpuSeconds": round(cpu(operator.process), 1),
            "memoryMiB": round(operator.process.rss_kib() / 1024)}


def measure(cluster: Cluster, arguments) -> dict:
    model = Model(cluster.folder).start()
    gateway = Gateway(cluster, "gateway").start()
    # As often as they are asked by default.
    operator = Operator(cluster, "operator", [gateway], lease_seconds=15, pull_milliseconds=1000)
    found = {"releases": arguments.releases}
    try:
        for i in range(arguments.namespaces):
            cluster.kubectl("create", "namespace", f"team-{i}")
            own = [m.backend("model", model.url), m.prompt("p-v1"), m.policy("quick")]
            for part in own:
                part["metadata"]["namespace"] = f"team-{i}"
            cluster.apply(own)
        create(cluster, arguments.releases, arguments.namespaces)
        before = requests(cluster)
        operator.start()
        seconds = until_all_stable(operator, arguments.releases, arguments.timeout)
        found["fromNothing"] = {**figures(operator, seconds), "requests": difference(requests(cluster), before)}
        # What follows from the last writes ends by itself.
        time.sleep(arguments.settle)
        before, used = requests(cluster), cpu(operator.process)
        time.sleep(arguments.idle)
        found["idle"] = {"seconds": arguments.idle, "cpuSeconds": round(cpu(operator.process) - used, 2),
                         "memoryMiB": round(operator.process.rss_kib() / 1024),
                         "requests": difference(requests(cluster), before)}
        operator.process.stop()
        before = requests(cluster)
        operator.start()
        seconds = until_all_stable(operator, arguments.releases, arguments.timeout)
        time.sleep(min(arguments.settle, 20))
        found["restart"] = {**figures(operator, seconds), "requests": difference(requests(cluster), before)}
        if arguments.canaries:
            found["canaries"] = canaries(cluster, operator, gateway, arguments)
        found["gateway"] = {"cpuSeconds": round(cpu(gateway.process), 1),
                            "memoryMiB": round(gateway.process.rss_kib() / 1024)}
        return found
    finally:
        for part in (operator, gateway, model):
            part.process.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=10_000)
    parser.add_argument("--namespaces", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=900, help="seconds until all must be Stable")
    parser.add_argument("--settle", type=float, default=20, help="seconds until the first idle look; releases at rest are written for 17 minutes")
    parser.add_argument("--canaries", type=int, default=0, help="so many of the releases run a canary at the end")
    parser.add_argument("--rate", type=float, default=300, help="requests a second to them")
    parser.add_argument("--minutes", type=float, default=2, help="for which they are watched")
    parser.add_argument("--idle", type=float, default=60, help="seconds that the idle operator is watched")
    with tempfile.TemporaryDirectory(prefix="serinus-measure-") as folder:
        cluster = Cluster(Path(folder), audit.NOTHING).start()
        try:
            cluster.install()
            print(json.dumps(measure(cluster, parser.parse_args()), indent=2))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
