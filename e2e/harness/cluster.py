"""etcd, kube-apiserver and kube-controller-manager with RBAC on; no kubelet."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import yaml

from . import audit
from .manifests import client_key
from .processes import Process, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
ADMIN_TOKEN = "admin-of-this-test"  # noqa: S105 - lives as long as the test
GROUP = "/apis/serinus.dev/v1alpha1"


def token_of(person: str) -> str:
    return f"{re.sub('[^a-z]', '-', person)}-of-this-test"


class Cluster:
    def __init__(self, folder: Path, audited: str = audit.POLICY, controllers: str = "", people: tuple[str, ...] = ()):
        self.folder = folder
        # Users without a right beside those that a case binds.
        self.people = people
        # Beside those that every case needs, comma-separated.
        self.controllers = controllers
        self.tools = Path(os.environ["SERINUS_E2E_TOOLS"])
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.audit_log = folder / "audit.log"
        (folder / "audit.yaml").write_text(audited)
        self._certificates()
        self.parts = self._parts()
        self.http = httpx.Client(
            base_url=self.url, verify=False, timeout=30,
            headers={"authorization": f"Bearer {ADMIN_TOKEN}"},
        )
        self.admin = self.kubeconfig("admin", ADMIN_TOKEN)
        self.of_people = {p: self.kubeconfig(re.sub("[^a-z]", "-", p), token_of(p)) for p in people}

    def _certificates(self) -> None:
        key = self.folder / "sa.key"
        subprocess.run(
            ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True
        )
        users = [f"{ADMIN_TOKEN},admin,admin,system:masters", *(f'{token_of(p)},"{p}",{p}' for p in self.people)]
        (self.folder / "tokens.csv").write_text("\n".join(users) + "\n")

    def _parts(self) -> dict[str, Process]:
        f, etcd, peer = self.folder, free_port(), free_port()
        key = str(f / "sa.key")
        etcd_url = f"http://127.0.0.1:{etcd}"
        apiserver = [
            str(self.tools / "kube-apiserver"), f"--etcd-servers={etcd_url}",
            "--bind-address=127.0.0.1", f"--secure-port={self.port}", f"--cert-dir={f}/certs",
            f"--token-auth-file={f}/tokens.csv", "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/16", "--profiling=false",
            f"--audit-policy-file={f}/audit.yaml", f"--audit-log-path={self.audit_log}",
        ]
        controllers = [
            str(self.tools / "kube-controller-manager"), f"--kubeconfig={f}/admin.kubeconfig",
            "--use-service-account-credentials=true", f"--service-account-private-key-file={key}",
            "--leader-elect=false", "--bind-address=127.0.0.1", f"--secure-port={free_port()}",
            f"--cert-dir={f}/certs-kcm",
            "--controllers=deployment,replicaset,garbagecollector,serviceaccount,namespace,"
            "clusterrole-aggregation,endpointslice,root-ca-cert-publisher"
            + (self.controllers and f",{self.controllers}"),
        ]
        data = [
            str(self.tools / "etcd"), f"--data-dir={f}/etcd", "--unsafe-no-fsync",
            f"--listen-client-urls={etcd_url}", f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ]
        return {
            "etcd": Process("etcd", data, f),
            "apiserver": Process("kube-apiserver", apiserver, f),
            "controllers": Process("kube-controller-manager", controllers, f),
        }

    def start(self) -> "Cluster":
        self.parts["etcd"].start()
        self.parts["apiserver"].start()
        self.wait_ready()
        self.parts["controllers"].start()
        wait_for("the default service account", lambda: self.kubectl("get", "sa", "default"))
        return self

    def wait_ready(self) -> None:
        wait_for("the API server", self._ready, 90)

    def _ready(self) -> bool:
        # Without this, a full disk looks like an API server that refuses connections.
        for name in ("etcd", "apiserver"):
            assert self.parts[name].alive, f"{name} has ended: {self.parts[name].tail(3)}"
        return self.http.get("/readyz").status_code == 200

    def stop(self) -> None:
        """For good: what etcd has written, the most by far, is deleted; logs stay."""
        for name in ("controllers", "apiserver", "etcd"):
            self.parts[name].stop()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def kubeconfig(self, name: str, token: str, server: str | None = None) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        cluster = {"server": server or self.url}
        if cluster["server"].startswith("https"):
            cluster["insecure-skip-tls-verify"] = True
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {
                "cluster": "test", "user": name, "namespace": "default"}}],
        }))
        return path

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        result = subprocess.run(
            [str(self.tools / "kubectl"), f"--kubeconfig={self.admin}", *arguments],
            input=stdin, capture_output=True, text=True, timeout=60,
        )
        if check and result.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout if check else result.stdout + result.stderr

    def apply(self, manifest) -> str:
        text = manifest if isinstance(manifest, str) else yaml.safe_dump_all(
            manifest if isinstance(manifest, list) else [manifest])
        return self.kubectl("apply", "-f", "-", stdin=text)

    def install(self) -> None:
        """CRDs and roles from the project's own manifests; no images to run, so no Deployments."""
        self.define()
        self.grant()

    def define(self) -> None:
        self.kubectl("apply", "--server-side", "-k", str(ROOT / "crds"))
        # kubectl wait fails on a definition that has no conditions yet instead of waiting.
        wait_for("the definitions", self._established, 30)

    def grant(self) -> None:
        for file in ("namespace", "rbac-operator", "rbac-gateway", "rbac-users"):
            self.kubectl("apply", "-f", str(ROOT / "deploy" / f"{file}.yaml"))
        self.apply(client_key())

    def _established(self) -> bool:
        found = [c for c in json.loads(self.kubectl("get", "crd", "-o", "json"))["items"]
                 if c["spec"]["group"] == "serinus.dev"]
        return len(found) == 5 and all(
            any(x["type"] == "Established" and x["status"] == "True"
                for x in c.get("status", {}).get("conditions") or [])
            for c in found)

    def token(self, service_account: str, namespace: str = "serinus-system",
              audience: str | None = None) -> str:
        return self.kubectl("create", "token", service_account, "-n", namespace, "--duration=2h",
                            *([f"--audience={audience}"] if audience else [])).strip()

    def get(self, path: str) -> dict:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def release(self, name: str, namespace: str = "default") -> dict:
        return self.get(f"{GROUP}/namespaces/{namespace}/promptreleases/{name}")

    def patch(self, kind: str, name: str, body: dict, namespace: str = "default") -> None:
        self.kubectl("patch", kind, name, "-n", namespace, "--type=merge", "-p", json.dumps(body))
