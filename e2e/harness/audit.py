"""Who wrote which status, and who used which right, from the API server's own audit log."""

import json
from pathlib import Path
from typing import NamedTuple

HEAD = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
"""
POLICY = HEAD + """\
  - level: Request
    verbs: [update]
    resources: [{group: serinus.dev, resources: [promptreleases/status]}]
  - level: None
"""
# As most API servers are set up.
NOTHING = """
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
  - level: None
"""
# Who watches our kinds, and since when.
WATCHES = HEAD + """\
  - level: Metadata
    verbs: [watch]
    resources: [{group: serinus.dev}]
  - level: None
"""
ACCOUNT = "system:serviceaccount:serinus-system:"
# Every request of ours; for a cluster that is watched for that alone.
RIGHTS = f"""{HEAD}\
  - level: Metadata
    users: ["{ACCOUNT}serinus-operator", "{ACCOUNT}serinus-gateway"]
  - level: None
"""


class Use(NamedTuple):
    account: str
    group: str
    resource: str  # with its subresource
    verb: str
    namespace: str | None
    name: str | None
    allowed: bool
    code: int


def uses(log: Path) -> list[Use]:
    """Requests for resources by the service accounts of operators and gateways."""
    found = []
    for line in log.read_text().splitlines():
        event = json.loads(line)
        what = event.get("objectRef")
        if not what or not event["user"]["username"].startswith(ACCOUNT):
            continue
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        code = event.get("responseStatus", {}).get("code", 0)
        use = Use(event["user"]["username"].removeprefix(ACCOUNT), what.get("apiGroup", ""), resource,
                  event["verb"], what.get("namespace"), what.get("name"),
                  event.get("annotations", {}).get("authorization.k8s.io/decision") == "allow", code)
        found.append(use)
        # A server-side apply of what is not there needs the right to create it.
        if (use.verb, code) == ("patch", 201):
            found.append(use._replace(verb="create"))
    return found


def watched(log: Path, agent: str) -> set[str]:
    """Of which kinds clients of this name have a watch now."""
    going = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["verb"] != "watch" or agent not in event.get("userAgent", ""):
            continue
        begins = event["stage"] == "ResponseStarted" and event["responseStatus"]["code"] == 200
        going[event["auditID"]] = event["objectRef"]["resource"] if begins else None
    return set(filter(None, going.values()))


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
