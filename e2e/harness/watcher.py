"""Watches every status that is ever written and checks the rules that always hold."""

import json
import threading
import time

import httpx

from .cluster import GROUP, Cluster
from .manifests import OF_A_TEST


class Watcher:
    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.statuses: list[tuple[float, dict]] = []
        # When the watch broke: statuses may have been missed then.
        self.breaks: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Watcher":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        version = ""
        while not self._stop.is_set():
            try:
                version = self._watch(version)
            except (httpx.HTTPError, json.JSONDecodeError):
                self.breaks.append(time.monotonic())
                time.sleep(0.2)

    def _watch(self, version: str) -> str:
        parameters = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version}
        with self.cluster.http.stream(
            "GET", f"{GROUP}/promptreleases", params=parameters, timeout=httpx.Timeout(5, read=60)
        ) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    self.breaks.append(time.monotonic())
                    return ""
                version = event["object"]["metadata"].get("resourceVersion", version)
                if event["type"] in ("ADDED", "MODIFIED") and seen(event["object"]):
                    self.statuses.append((time.monotonic(), event["object"]))
        return version

    def of(self, name: str) -> list[tuple[float, dict]]:
        return [(at, o) for at, o in self.statuses if o["metadata"]["name"] == name]

    def when(self, name: str, check) -> float:
        """When a status for which `check` is true was first seen."""
        return next(at for at, o in self.of(name) if check(o["status"]))

    def broken_rules(self, since: float = 0) -> list[str]:
        broken, last = [], {}
        for at, release in self.statuses:
            status, uid = release["status"], release["metadata"]["uid"]
            if at >= since:
                seen, before = last.get(uid, (0, None))
                found = list(_check(release, before))
                if not any(seen <= gap <= at for gap in self.breaks):
                    found += _uneven(status, before or {})
                broken += [f"{release['metadata']['name']}: {b}" for b in found]
            last[uid] = (at, status)
        return broken


def seen(object_: dict) -> bool:
    """Whether an operator has written the status: before, it is the default of the definition."""
    return object_.get("status", {}).get("observedGeneration", -1) >= 0


def _check(release: dict, before: dict | None):
    status = release["status"]
    variants = status["routing"]["variants"]
    weights = {v["role"]: v["weight"] for v in variants}
    if variants and sum(weights.values()) != 100:
        yield f"the weights are {weights}"
    if "canary" in weights and weights["canary"] > status["canary"]["weight"]:
        yield f"the canary gets {weights['canary']} of {status['canary']['weight']}"
    copies = {v["role"]: v["copies"] for v in variants if "copies" in v}
    if weights.get("shadow", 0) or set(copies) - {"shadow"} or ("shadow" in weights) != ("shadow" in copies):
        yield f"copies {copies} with weights {weights}"
    if "shadow" in weights and weights["stable"] != 100:
        yield f"users are not all on stable in a shadow step: {weights}"
    if status["phase"] in ("RolledBack", "RollingBack", "Stable") and set(weights) - {"stable"}:
        yield f"{status['phase']} with {weights}"
    if before:
        if before.get("stable") and not status.get("stable"):
            yield "stable was lost"
        if status.get("leaderTerm", 0) < before.get("leaderTerm", 0):
            yield "an earlier leader wrote"
        if status["routing"]["generation"] < before["routing"]["generation"]:
            yield "the routing generation went back"
        failed = before.get("failedRevision")
        serving = status.get("stable", {}).get("revision")
        if failed and serving == failed:
            yield f"the failed revision {failed} serves"


def _uneven(status: dict, before: dict):
    """Every drawn request is in exactly one place. Of a process that did not report this time
    the open requests are forgotten, and only they: all else stays what it was. What a process
    has counted is neither lost nor taken back."""
    earlier = {}
    if before.get("routing", {}).get("generation") == status["routing"]["generation"]:
        earlier = {entry["instance"]: entry for entry in before.get("evidence", [])}
    lost = set(earlier) - {entry["instance"] for entry in status.get("evidence", [])}
    if lost - {OF_A_TEST}:
        yield f"the evidence of {lost} is gone"
    for entry in status.get("evidence", []):
        for side in ("stable", "canary"):
            counts = entry[side]
            known = ended(counts) + opened(counts)
            old = earlier.get(entry["instance"], {}).get(side, {})
            if counts["assigned"] < old.get("assigned", 0):
                yield f"{counts['assigned']} requests are drawn for {side} after {old['assigned']}: {entry}"
            if known == counts["assigned"]:
                continue
            if known > counts["assigned"] or counts != {k: v for k, v in old.items() if k != "open"}:
                yield f"{known} requests of {counts['assigned']} drawn for {side}: {entry}"


def ended(counts: dict) -> int:
    """Drawn requests that are not under way any more."""
    known = sum(counts.get(part, 0) for part in ("requests", "refused", "unfinished", "excluded"))
    return (known + counts.get("turnedAway", {}).get("waiting", 0)
            + counts.get("paired", {}).get("unsent", 0))


def opened(counts: dict) -> int:
    """Drawn requests that were under way when the counts were read."""
    return sum(counts.get("open", {}).get("duration", {}).values())
