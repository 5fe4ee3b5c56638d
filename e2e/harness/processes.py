"""Child processes that end with the test, each with a log file."""

import itertools
import os
import signal
import socket
import subprocess
import time


# Below the ports that the kernel gives to outgoing connections, which could take one
# before its server binds it; each test process has a range of its own.
_FIRST = 10_000 + 5_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4)
_PORTS = (_FIRST + i % 5_000 for i in itertools.count(os.getpid()))


def free_port() -> int:
    """A port that nobody listens on, and that is not given out again soon."""
    for port in itertools.islice(_PORTS, 5_000):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise RuntimeError("no port is free")


def wait_for(what: str, check, seconds: float = 30, every: float = 0.1):
    """Waits until `check` answers something true, and answers that."""
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            last = check()
            if last:
                return last
        except Exception as error:  # noqa: BLE001 - told when the time is over
            last = repr(error)
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds} s; last: {last}")


class Process:
    """One child process. `start` again after `kill` is a restart."""

    def __init__(self, name: str, command: list[str], logs, env: dict | None = None):
        self.name, self.command = name, command
        self.log = logs / f"{name}.log"
        self.env = {**os.environ, **(env or {})}
        self.child: subprocess.Popen | None = None
        self.started = 0.0

    def start(self) -> "Process":
        self.started = time.monotonic()
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=self.env, start_new_session=True
            )
        return self

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def kill(self, sig=signal.SIGKILL) -> None:
        if self.alive:
            self.child.send_signal(sig)
            self.child.wait(timeout=90)

    def stop(self) -> None:
        if self.alive:
            self.child.terminate()
            try:
                self.child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def pause(self) -> None:
        self.child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.child.send_signal(signal.SIGCONT)

    def rss_kib(self) -> int:
        with open(f"/proc/{self.child.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
