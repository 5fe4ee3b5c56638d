"""Who wrote which status, from the API server's own audit log."""

import json
from pathlib import Path

POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Request
    verbs: [update]
    resources: [{group: serinus.dev, resources: [promptreleases/status]}]
  - level: None
"""


def writes(log: Path) -> list[tuple[str, int]]:
    """Successful writes of release statuses in order: (the credential's id, the leader's term)."""
    found = []
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event.get("responseStatus", {}).get("code") != 200:
            continue
        credential = event["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]
        found.append((credential, event["requestObject"]["status"]["leaderTerm"]))
    return found


def status_writes(log: Path) -> list[tuple[str, int]]:
    """All that were tried: (the release's name, the code of the answer)."""
    events = (json.loads(line) for line in log.read_text().splitlines())
    return [(e["objectRef"]["name"], e["responseStatus"]["code"]) for e in events]


def two_writers(log: Path) -> list[str]:
    """How the log contradicts 'one writer at a time', if it does."""
    broken, owner, newest = [], {}, 0
    for credential, term in writes(log):
        if owner.setdefault(term, credential) != credential:
            broken.append(f"term {term} was written by two operators")
        if term < newest:
            broken.append(f"term {term} wrote after term {newest}")
        newest = max(newest, term)
    return broken
