"""Argo CD: what its scripts say of one object, and its controllers with a repository to follow."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import httpx
import yaml

from .cluster import ROOT, Cluster
from .processes import Process, free_port, wait_for

TOOLS = Path(os.environ.get("SERINUS_ARGOCD", ""))
GITOPS = ROOT / "gitops" / "argocd"
SNIPPET = GITOPS / "argocd-cm.yaml"
NAMESPACE = "argocd"
APPLICATIONS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/applications"


def _overrides(folder: Path, what: str, object_: dict, *arguments: str, env=None) -> subprocess.CompletedProcess:
    path = folder / f"object-{threading.get_ident()}.json"
    # JSON: the libraries of Python and Go do not agree on which plain words of YAML are numbers.
    path.write_text(json.dumps(object_))
    return subprocess.run(
        [str(TOOLS / "argocd"), "admin", "settings", "resource-overrides", what, str(path), *arguments,
         f"--argocd-cm-path={SNIPPET}"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder), **(env or {})})


def health(folder: Path, object_: dict) -> tuple[str, str]:
    """The health of an object and its message."""
    done = _overrides(folder, "health", object_)
    assert done.returncode == 0, done.stdout + done.stderr
    status, message = done.stdout.removeprefix("STATUS: ").split("\nMESSAGE: ", 1)
    return status, message.rstrip("\n")


def actions(folder: Path, object_: dict) -> dict[str, bool]:
    """The actions of an object, and whether each is on offer."""
    done = _overrides(folder, "list-actions", object_)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: disabled == "false" for name, disabled in (
        line.split() for line in done.stdout.splitlines()[1:])}


def act(folder: Path, object_: dict, action: str) -> tuple[dict, str]:
    """The object after an action, or why that is not possible."""
    out = folder / f"after-{threading.get_ident()}.yaml"
    out.unlink(missing_ok=True)
    copy = folder / "copy-second.sh"
    if not copy.exists():
        copy.write_text('#!/bin/sh\ncp "$2" "$OUT"\n')
        copy.chmod(0o755)
    done = _overrides(folder, "run-action", object_, action, env={"KUBECTL_EXTERNAL_DIFF": str(copy), "OUT": str(out)})
    if not out.exists():
        return {}, done.stdout + done.stderr
    return yaml.safe_load(out.read_text()), ""


def merge_patch(before, after):
    """What Argo CD's API server sends after an action (RFC 7386)."""
    patch = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif value != old or key not in before:
            patch[key] = value
    return patch


class Repository:
    """A git repository in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.url = f"file://{folder}"
        self._git("init", "-q", "-b", "main")

    def _git(self, *arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        environment |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        for who in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{who}_NAME": "ada", f"GIT_{who}_EMAIL": "ada@example.com"}
        return subprocess.run(["git", "-C", str(self.folder), *arguments], check=True, env=environment,
                              capture_output=True, text=True).stdout.strip()

    def commit(self, message: str, files: dict[str, object]) -> str:
        """Writes manifests by their paths (None deletes one), and commits them."""
        for name, content in files.items():
            path = self.folder / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump_all(content if isinstance(content, list) else [content]))
        self._git("add", "-A")
        self._git("commit", "-q", "-m", message)
        return self._git("rev-parse", "HEAD")

    def revert(self) -> str:
        """Takes the last commit back."""
        self._git("revert", "--no-edit", "HEAD")
        return self._git("rev-parse", "HEAD")


class ArgoCD:
    """Redis, the repository server and the two controllers, as processes of this machine. Looks at git every three
    seconds, as nobody tells it of a commit."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        # Every state of an Application: when, sync, health, operation, and the health of its objects.
        self.seen: list[tuple[float, dict]] = []
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._follow, daemon=True)
        redis, repo, metrics = free_port(), free_port(), free_port()
        places = {f"ARGOCD_{name}": str(folder / name.lower()) for name in (
            "TLS_DATA_PATH", "SSH_DATA_PATH", "GPG_DATA_PATH", "GNUPGHOME", "PLUGINSOCKFILEPATH")}
        places |= {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home")}
        places |= {f"HELM_{name}_HOME": str(folder / f"helm-{name.lower()}") for name in ("CACHE", "CONFIG", "DATA")}
        for place in places.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        (folder / "ssh_data_path" / "ssh_known_hosts").touch()
        environment = {**places, "ARGOCD_GPG_ENABLED": "false", "ARGOCD_FAKE_IN_CLUSTER": "true",
                       "KUBECONFIG": str(cluster.admin), "ARGOCD_CONTROLLER_REPLICAS": "1", "ARGOCD_CONTROLLER_SHARD": "0",
                       # The repository server runs itself to ask for passwords.
                       "PATH": f"{TOOLS}:{os.environ['PATH']}"}
        config = ["--kubeconfig", str(cluster.admin), "--namespace", NAMESPACE]
        store = [f"--redis=127.0.0.1:{redis}"]
        part = lambda name, *arguments: Process(
            f"argocd-{name}", [str(TOOLS / f"argocd-{name}"), "--loglevel=info", *arguments], folder, environment)
        self.parts = [
            Process("redis", [os.environ["SERINUS_REDIS"], "--bind", "127.0.0.1", "--port", str(redis),
                              "--save", "", "--appendonly", "no", "--dir", str(folder)], folder),
            part("repo-server", *store, "--disable-tls", "--address=127.0.0.1", f"--port={repo}",
                 "--metrics-address=127.0.0.1", f"--metrics-port={free_port()}", "--revision-cache-expiration=1s"),
            part("application-controller", *config, *store, "--repo-server-plaintext", f"--repo-server=127.0.0.1:{repo}",
                 f"--metrics-port={metrics}", "--app-resync=3", "--app-resync-jitter=0", "--persist-resource-health"),
            part("applicationset-controller", *config, "--repo-server-plaintext",
                 f"--argocd-repo-server=127.0.0.1:{repo}", f"--metrics-addr=127.0.0.1:{free_port()}",
                 f"--probe-addr=127.0.0.1:{free_port()}", f"--webhook-addr=127.0.0.1:{free_port()}"),
        ]

    def start(self) -> "ArgoCD":
        kubectl = self.cluster.kubectl
        for definition in sorted(TOOLS.glob("*-crd.yaml")):
            kubectl("apply", "--server-side", "-f", str(definition))
        kubectl("create", "namespace", NAMESPACE)
        ours = {"namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": "argocd"}}
        everything = [{"group": "*", "kind": "*"}]
        # Each definition is served by itself, and kubectl knows the kinds that are listed.
        kinds = {f"{kind}.argoproj.io" for kind in ("applications", "applicationsets", "appprojects")}
        wait_for("Argo CD's definitions", lambda: kinds <= set(
            kubectl("api-resources", "--api-group=argoproj.io", "-o", "name", check=False).split()))
        self.cluster.apply([
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm", **ours}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "argocd-secret", **ours},
             "stringData": {"server.secretkey": "lives-as-long-as-the-test"}},
            {"apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject",
             "metadata": {"name": "default", "namespace": NAMESPACE},
             "spec": {"sourceRepos": ["*"], "destinations": [{"server": "*", "namespace": "*"}],
                      "clusterResourceWhitelist": everything}}])
        # In the way in which the file says that it is added.
        kubectl("patch", "configmap", "argocd-cm", "-n", NAMESPACE, "--patch-file", str(SNIPPET))
        for process in self.parts:
            process.start()
        self._watch.start()
        return self

    def stop(self) -> None:
        self._over.set()
        for process in reversed(self.parts):
            process.stop()
        self._watch.join(10)

    def application(self, name: str) -> dict:
        return self.cluster.get(f"{APPLICATIONS}/{name}")

    def wait(self, name: str, health: str, revision: str, seconds: float = 60) -> dict:
        """Until the application is in sync with the commit and has the health."""
        def reached():
            status = self.application(name).get("status", {})
            sync = status.get("sync", {})
            return (sync.get("status"), sync.get("revision"), status.get("health", {}).get("status")) == (
                "Synced", revision, health) and status
        try:
            return wait_for(f"{name} {health} at {revision}", reached, seconds)
        except AssertionError as error:
            last = yaml.safe_dump(self.application(name).get("status"))
            logs = "\n".join(process.tail(15) for process in self.parts)
            raise AssertionError(f"{error}\n{last}\n{logs}") from None

    def healths(self, name: str, since: float) -> list[str]:
        """The healths of an application one after the other, without Missing: that is what an application is for a
        moment after a commit with a new object, before Argo CD applies it."""
        found: list[str] = []
        for at, application in self.seen:
            now = application.get("status", {}).get("health", {}).get("status", "")
            if application["metadata"]["name"] != name or at < since or now in ("", "Missing"):
                continue
            if found[-1:] != [now]:
                found.append(now)
        return found

    def drifts(self, name: str) -> list[str]:
        """The commits with which the application was out of sync after it had been in sync with them."""
        synced: set[str] = set()
        found = []
        for _, application in self.seen:
            sync = application.get("status", {}).get("sync", {})
            if application["metadata"]["name"] == name and sync.get("revision"):
                if sync["status"] == "Synced":
                    synced.add(sync["revision"])
                elif sync["revision"] in synced:
                    found.append(sync["revision"])
        return found

    def operations(self, name: str) -> list[str]:
        """The commits that were synced because they were new, in that order. What self-heal does besides is left out:
        its first attempt follows at once, and goes by what was seen of the cluster before the sync. Whether it had
        anything to heal is what `drifts` tells."""
        found: dict[tuple[str, str], str] = {}
        for _, application in self.seen:
            state = application.get("status", {}).get("operationState") or {}
            sync = state.get("operation", {}).get("sync")
            if application["metadata"]["name"] == name and sync and not sync.get("autoHealAttemptsCount"):
                commit = sync.get("revision") or state["syncResult"]["revision"]
                # Two may begin within one second.
                found.setdefault((state["startedAt"], commit), commit)
        return list(found.values())

    def _follow(self) -> None:
        version = ""
        while not self._over.is_set():
            try:
                with self.cluster.http.stream("GET", APPLICATIONS, timeout=httpx.Timeout(5, read=3), params={
                        "watch": "1", "resourceVersion": version}) as answer:
                    for line in answer.iter_lines():
                        event = json.loads(line)
                        version = event["object"]["metadata"].get("resourceVersion", "")
                        if event["type"] in ("ADDED", "MODIFIED"):
                            self.seen.append((time.monotonic(), event["object"]))
                        if self._over.is_set():
                            return
            except httpx.ReadTimeout:
                continue
            except (httpx.HTTPError, json.JSONDecodeError, KeyError):
                version = ""
                time.sleep(0.2)
