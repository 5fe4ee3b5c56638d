"""The image: built as the Dockerfile says, and started as a kubelet starts it, with the chart's securityContext."""

import json
import os
import platform
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import ROOT
from .processes import Process
from .serinus import BIN

TOOLS = os.environ.get("SERINUS_IMAGE_TOOLS", "missing: SERINUS_IMAGE_TOOLS is not set: run e2e/run.sh")
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _run(*command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def stripped(folder: Path) -> Path:
    """The binary of these tests without the symbols that a build for an image has not, either."""
    copy = folder / "serinus"
    _run("strip", "-o", copy, shutil.which(BIN) or BIN)
    return copy


class Image:
    """An image as an OCI archive, and what is in it."""

    def __init__(self, folder: Path, binary: Path):
        """The Dockerfile's last stage. Its first one, which compiles, is replaced by a folder that
        image/rootfs.sh fills from `binary`."""
        self.folder, self.archive = folder, folder / "image.tar"
        folder.mkdir()
        _run(ROOT / "image" / "rootfs.sh", binary, folder / "build" / "files")
        _run(Path(TOOLS) / "buildah", "--storage-driver", "vfs", f"--root={folder}/storage", f"--runroot={folder}/run",
             "--registries-conf=/dev/null", "bud", f"--signature-policy={TOOLS}/policy.json", "--isolation=chroot",
             "--timestamp=0", "--disable-compression=false", "--identity-label=false", f"--build-context=files={folder}/build",
             f"--tag=oci-archive:{self.archive}", f"--file={ROOT}/Dockerfile", ROOT)
        with tarfile.open(self.archive) as outer:
            blob = lambda of: outer.extractfile(f"blobs/{of['digest'].replace(':', '/')}")
            [self.manifest] = json.load(outer.extractfile("index.json"))["manifests"]
            manifest = json.load(blob(self.manifest))
            self.config = json.load(blob(manifest["config"]))["config"]
            self.compressed = sum(layer["size"] for layer in manifest["layers"])
            self.files: list[tarfile.TarInfo] = []
            self.root = folder / "root"
            for layer in manifest["layers"]:
                with tarfile.open(fileobj=blob(layer), mode="r:*") as inner:
                    self.files += inner.getmembers()
                    inner.extractall(self.root, filter="fully_trusted")
        shutil.rmtree(folder / "storage")
        shutil.rmtree(folder / "build")


@dataclass
class Pod:
    """What a container gets from its pod: the parts of a Deployment's template that a kubelet acts on."""
    name: str
    arguments: list[str]
    security: dict
    env: dict = field(default_factory=dict)
    # From the container's path to the machine's; those in `written` may be written to.
    mounts: dict = field(default_factory=dict)
    written: set = field(default_factory=set)
    # Empty folders in memory, as an emptyDir makes them.
    scratch: list[str] = field(default_factory=list)
    memory: int = 512 << 20
    # Without it the container has a network of its own, in which nothing is but its loopback.
    host_network: bool = True

    def process(self, image: Image, folder: Path) -> Process:
        """The container as a process that ends when the container ends, and passes signals on to it."""
        bundle = folder / f"bundle-{self.name}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._config(image)))
        return Process(self.name, [f"{TOOLS}/runc", f"--root={folder}/runc", "run", f"--bundle={bundle}",
                                   f"serinus-{os.getpid()}-{self.name}"], folder)

    def _config(self, image: Image) -> dict:
        user, _, group = image.config["User"].partition(":")
        uid = self.security.get("runAsUser", int(user))
        if self.security.get("runAsNonRoot") and uid == 0:
            raise RuntimeError("a kubelet starts no container that is to run as non-root and would run as root")
        if self.security["capabilities"] != {"drop": ["ALL"]}:
            raise RuntimeError(f"this harness knows no such capabilities: {self.security['capabilities']}")
        none = ["nosuid", "noexec", "nodev"]
        mounts = [{"destination": d, "type": t, "source": s, "options": o} for d, t, s, o in (
            ("/proc", "proc", "proc", none), ("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755"]),
            ("/dev/shm", "tmpfs", "shm", none), ("/sys", "sysfs", "sysfs", [*none, "ro"]),
            ("/sys/fs/cgroup", "cgroup", "cgroup", [*none, "ro"]))]
        mounts += [{"destination": inside, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
                   for inside in self.scratch]
        mounts += [{"destination": inside, "type": "bind", "source": str(outside),
                    "options": ["bind", "rw" if inside in self.written else "ro"]} for inside, outside in self.mounts.items()]
        namespaces = ["pid", "ipc", "uts", "mount", *([] if self.host_network else ["network"])]
        return {
            "ociVersion": "1.0.2", "hostname": self.name, "mounts": mounts,
            "root": {"path": str(image.root), "readonly": self.security["readOnlyRootFilesystem"]},
            "process": {
                "user": {"uid": uid, "gid": self.security.get("runAsGroup", int(group))}, "cwd": "/",
                "args": [*image.config["Entrypoint"], *self.arguments],
                "env": [*image.config.get("Env", []), *(f"{k}={v}" for k, v in self.env.items())],
                "capabilities": {of: [] for of in ("bounding", "effective", "permitted", "inheritable", "ambient")},
                "noNewPrivileges": not self.security["allowPrivilegeEscalation"]},
            "linux": {
                "namespaces": [{"type": of} for of in namespaces],
                "resources": {"devices": [{"allow": False, "access": "rwm"}], "memory": {"limit": self.memory}},
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                **({"seccomp": seccomp()} if self.security.get("seccompProfile") == {"type": "RuntimeDefault"} else {})}}


def seccomp() -> dict:
    """The default profile of container engines for a container without capabilities, as runc reads it."""
    profile = json.loads((Path(TOOLS) / "seccomp.json").read_text())
    rules = [rule for rule in profile["syscalls"] if not rule["includes"].get("caps")
             and ARCH in rule["includes"].get("arches", [ARCH]) and ARCH not in rule["excludes"].get("arches", [])]
    return {"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
            "architectures": [{"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}[ARCH]],
            "syscalls": [{k: v for k, v in rule.items() if k in ("names", "action", "args", "errnoRet") and v}
                         for rule in rules]}
