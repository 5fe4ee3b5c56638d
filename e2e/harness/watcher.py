"""Watches every status that is ever written and checks the rules that always hold."""

import json
import threading
import time

import httpx

from .cluster import GROUP, Cluster


class Watcher:
    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.statuses: list[tuple[float, dict]] = []
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
                    return ""
                version = event["object"]["metadata"].get("resourceVersion", version)
                if event["type"] in ("ADDED", "MODIFIED") and "status" in event["object"]:
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
                broken += [f"{release['metadata']['name']}: {b}" for b in _check(release, last.get(uid))]
            last[uid] = status
        return broken


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
    for entry in status.get("evidence", []):
        for side in ("stable", "canary"):
            counts = entry[side]
            known = sum(counts.get(part, 0) for part in ("requests", "refused", "unfinished", "excluded"))
            known += counts.get("turnedAway", {}).get("waiting", 0)
            known += sum(counts.get("open", {}).get("duration", {}).values())
            known += counts.get("paired", {}).get("unsent", 0)
            # Less is known of a gateway that is gone: its open requests are forgotten.
            if known > counts["assigned"]:
                yield f"{known} requests of {counts['assigned']} drawn: {entry}"
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
