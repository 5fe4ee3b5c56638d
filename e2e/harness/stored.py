"""Objects of Serinus as etcd holds them, past the API server."""

import base64
import json

import httpx

from .cluster import Cluster

PREFIX = "/registry/serinus.dev/"


def _etcd(cluster: Cluster) -> str:
    return next(a for a in cluster.parts["etcd"].command if a.startswith("--listen-client-urls=")).split("=", 1)[1]


def _ask(cluster: Cluster, what: str, **fields: str) -> dict:
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in fields.items()}
    answer = httpx.post(f"{_etcd(cluster)}/v3/kv/{what}", json=encoded)
    answer.raise_for_status()
    return answer.json()


def read(cluster: Cluster) -> dict[str, dict]:
    """Every object by its key."""
    found = _ask(cluster, "range", key=PREFIX, range_end=PREFIX[:-1] + "0").get("kvs", [])
    text = lambda encoded: base64.b64decode(encoded).decode()
    return {text(kv["key"]): json.loads(text(kv["value"])) for kv in found}


def write(cluster: Cluster, objects: dict[str, dict]) -> None:
    for key, value in objects.items():
        _ask(cluster, "put", key=key, value=json.dumps(value))
