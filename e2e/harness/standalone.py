"""Operator and gateway in one process, on a folder of manifests."""

import json

import httpx
import yaml

from . import manifests as m
from .processes import Process, free_port, wait_for
from .serinus import BIN


class Standalone:
    def __init__(self, folder, *arguments: str, name: str = "standalone", env: dict | None = None):
        self.folder, self.port, self.admin = folder / "manifests", free_port(), free_port()
        self.folder.mkdir(parents=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Process(name, [
            BIN, "standalone", str(self.folder), f"--listen=127.0.0.1:{self.port}",
            f"--admin=127.0.0.1:{self.admin}", *arguments], folder, env)
        self.apply("users", m.client_key())

    def apply(self, name: str, *objects: dict) -> None:
        beside = self.folder / f"{name}.tmp"
        beside.write_text(yaml.safe_dump_all(objects))
        beside.rename(self.folder / f"{name}.yaml")

    def status(self, release: str = "kept") -> dict:
        kept = json.loads((self.folder / ".serinus/state.json").read_text())
        return kept[f"default/{release}"]["status"]

    def history(self) -> list[tuple[str, str]]:
        return [(h["prompt"], h["outcome"]) for h in self.status()["history"]]

    def start(self) -> None:
        self.process.start()
        wait_for("standalone", lambda: httpx.get(f"{self.url}/readyz").status_code == 200)
