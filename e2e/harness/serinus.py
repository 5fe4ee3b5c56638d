"""Operators, gateways and a simulated model as processes of their own."""

import os
from pathlib import Path

import httpx

from .cluster import Cluster
from .processes import Process, free_port, wait_for

BIN = os.environ.get("SERINUS_BIN", "serinus")


class Model:
    """A simulated model server; what it does is told by markers in the prompt."""

    def __init__(self, folder: Path, name: str = "model"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process = Process(name, [BIN, "simulated-model", f"--listen=127.0.0.1:{self.port}"], folder)

    def start(self) -> "Model":
        self.process.start()
        wait_for("the model", lambda: httpx.get(f"{self.url}/models").status_code == 200)
        return self

    def behave(self, **behaviour) -> None:
        """Sets the behaviour of every model name that no marker overrides."""
        httpx.put(f"http://127.0.0.1:{self.port}/control", json={"*": behaviour}).raise_for_status()


class Gateway:
    def __init__(self, cluster: Cluster, name: str, *arguments: str, control_loss=30, env=None):
        self.port, self.admin = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = cluster.kubeconfig(name, cluster.token("serinus-gateway"))
        self.process = Process(name, [
            BIN, "gateway", f"--listen=127.0.0.1:{self.port}", f"--admin=127.0.0.1:{self.admin}",
            f"--control-loss-seconds={control_loss}", "--grace-seconds=1", "--drain-seconds=10",
            *arguments,
        ], cluster.folder, {"KUBECONFIG": str(config), **(env or {})})

    def start(self) -> "Gateway":
        self.process.start()
        return self

    def wait_ready(self) -> "Gateway":
        wait_for(self.process.name, lambda: httpx.get(f"{self.url}/readyz").status_code == 200)
        return self

    def wait_judged(self) -> "Gateway":
        """Until a leader has asked for its report: before, all users get stable, and nothing is evidence."""
        told = lambda: httpx.get(f"http://127.0.0.1:{self.admin}/readyz?verbose").text
        wait_for(f"a leader for {self.process.name}", lambda: "ControlLoss" not in told())
        return self


class Operator:
    def __init__(self, cluster: Cluster, name: str, gateways: list[Gateway],
                 server: str | None = None, lease_seconds: int = 5,
                 prometheus: str | None = None, pull_milliseconds: int = 300,
                 account: str = "serinus-operator"):
        self.name, self.admin = name, free_port()
        config = cluster.kubeconfig(name, cluster.token(account), server)
        # Without gateways it looks for those of the Service.
        endpoints = ",".join(f"127.0.0.1:{g.admin}" for g in gateways)
        self.process = Process(name, [
            BIN, "operator", f"--identity={name}", "--namespace=serinus-system",
            *([f"--gateway-endpoints={endpoints}"] if gateways else []), f"--admin=127.0.0.1:{self.admin}",
            f"--lease-seconds={lease_seconds}", f"--pull-milliseconds={pull_milliseconds}",
            *([f"--prometheus-url={prometheus}", "--prometheus-timeout=1s"] if prometheus else []),
        ], cluster.folder, {"KUBECONFIG": str(config)})

    def start(self) -> "Operator":
        self.process.start()
        return self

    def metric(self, name: str) -> float:
        for line in httpx.get(f"http://127.0.0.1:{self.admin}/metrics").text.splitlines():
            if line.startswith(name):
                return float(line.split()[-1])
        return 0.0

    @property
    def leads(self) -> bool:
        try:
            return self.process.alive and self.metric("serinus_leader") == 1
        except httpx.HTTPError:
            return False
