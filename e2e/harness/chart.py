"""Helm, and what stands in for the nodes of a cluster: kwok for kubelets, a thread for the scheduler."""

import json
import os
import subprocess
import threading
from pathlib import Path

import yaml

from .cluster import ROOT, Cluster
from .processes import Process, free_port, wait_for

TOOLS = Path(os.environ.get("SERINUS_HELM", ""))
CHART = ROOT / "charts" / "serinus"
NAMESPACE = "serinus-system"


def helm(*arguments: str, folder: Path, cluster: Cluster | None = None, check: bool = True) -> str:
    """Runs Helm with folders of its own; its output, and what it complains about."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HELM_", "KUBE"))}
    environment |= {f"HELM_{kind}_HOME": str(folder / f"helm-{kind.lower()}") for kind in ("CACHE", "CONFIG", "DATA")}
    if cluster:
        environment["KUBECONFIG"] = str(cluster.admin)
    done = subprocess.run([str(TOOLS / "helm"), *arguments], capture_output=True, text=True, timeout=180, env=environment)
    if check and done.returncode:
        raise RuntimeError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout if check else f"{done.returncode}\n{done.stdout}{done.stderr}"


def values_file(folder: Path, values: dict) -> str:
    path = folder / f"values-{len(list(folder.glob('values-*')))}.yaml"
    path.write_text(yaml.safe_dump(values))
    return f"--values={path}"


def rendered(folder: Path, values: dict, namespace: str = NAMESPACE) -> list[dict]:
    text = helm("template", "serinus", str(CHART), f"--namespace={namespace}", values_file(folder, values), folder=folder)
    return [o for o in yaml.safe_load_all(text) if o]


class Nodes:
    """Two nodes whose kubelets kwok plays: each pod that is bound to one runs and is ready at once.
    No scheduler runs in these clusters, so a thread binds every new pod to a node."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.kwok = Process("kwok", [
            str(TOOLS / "kwok"), f"--kubeconfig={cluster.admin}", f"--config={TOOLS / 'stages.yaml'}",
            "--manage-all-nodes=true", "--node-lease-duration-seconds=0", f"--server-address=127.0.0.1:{free_port()}",
        ], cluster.folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._schedule, daemon=True)

    def start(self) -> "Nodes":
        self.kwok.start()
        self.cluster.apply([{"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": name, "labels": {"kubernetes.io/hostname": name}}} for name in ("node-0", "node-1")])
        self._thread.start()
        wait_for("the nodes", lambda: "True" in self.cluster.kubectl(
            "get", "node", "node-0", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"))
        return self

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)
        self.kwok.stop()

    def _schedule(self) -> None:
        while not self._over.wait(0.2):
            try:
                waiting = self.cluster.get("/api/v1/pods?fieldSelector=spec.nodeName%3D")["items"]
            except Exception:  # noqa: BLE001 - the next look is soon
                continue
            for i, pod in enumerate(waiting):
                name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
                self.cluster.http.post(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", json={
                    "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": f"node-{i % 2}"}})


def pods(cluster: Cluster, namespace: str = NAMESPACE) -> list[dict]:
    """Those that are to stay."""
    found = json.loads(cluster.kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
