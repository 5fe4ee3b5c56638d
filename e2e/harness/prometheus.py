"""A real Prometheus, something for it to scrape, and a proxy that breaks it on demand."""

import os
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import yaml

from .processes import Process, free_port, wait_for


def serve(port: int, handle) -> ThreadingHTTPServer:
    """Serves on this machine until `shutdown`; every request is given to `handle`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self):
            handle(self)

        do_GET = do_POST = _any

        def log_message(self, *_):
            pass

        def answer(self, code: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(code)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class Exporter:
    """Counters that grow by themselves, and values that stay as they are set."""

    def __init__(self):
        self._lock = threading.Lock()
        self._rates: dict[str, float] = {}
        self._values: dict[str, float | str] = {}
        self._last = time.monotonic()
        self._server = serve(0, self._scrape)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def grow(self, series: str, per_second: float) -> None:
        with self._lock:
            self._tick()
            self._rates[series] = per_second
            self._values.setdefault(series, 0.0)

    def set(self, series: str, value: float | str) -> None:
        with self._lock:
            self._values[series] = value

    def drop(self, prefix: str) -> None:
        with self._lock:
            for kept in (self._rates, self._values):
                for series in [s for s in kept if s.startswith(prefix)]:
                    del kept[series]

    def _tick(self) -> None:
        now = time.monotonic()
        for series, rate in self._rates.items():
            self._values[series] += rate * (now - self._last)
        self._last = now

    def _scrape(self, request) -> None:
        with self._lock:
            self._tick()
            text = "".join(f"{series} {value}\n" for series, value in self._values.items())
        request.answer(200, text.encode(), "text/plain; version=0.0.4")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Prometheus:
    """The real server. It evaluates the rule file `rules` once a second."""

    def __init__(self, folder, *targets: str, rules=None, labels: dict | None = None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump({
            "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "1s"},
            "rule_files": [str(rules)] if rules else [],
            "scrape_configs": [{"job_name": "test", "static_configs": [
                {"targets": list(targets), "labels": labels or {}}]}]}))
        data = folder / "prometheus"
        self.process = Process("prometheus", [
            os.environ.get("SERINUS_PROMETHEUS", "prometheus"), f"--config.file={config}",
            f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
        ], folder)

    def start(self) -> "Prometheus":
        self.process.start()
        wait_for("Prometheus", lambda: httpx.get(f"{self.url}/-/ready").status_code == 200)
        return self

    def query(self, text: str) -> list:
        return self.get("query", query=text)["result"]

    def get(self, path: str, **parameters):
        """What its API says at this path; an error of it is told."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]


class PrometheusProxy:
    """Stands between operators and Prometheus. Faults: a status code to answer instead,
    "slow", "down" (nobody listens), or ("ask", TEXT): another query is asked instead."""

    def __init__(self):
        self.target: str | None = None
        self.asked: list[str] = []
        self._fault = None
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._server = None

    def start(self) -> "PrometheusProxy":
        self._server = serve(self._port, self._handle)
        return self

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def break_with(self, fault) -> None:
        self._fault = fault
        if fault == "down":
            self.stop()
        elif self._server is None:
            self.start()

    def heal(self) -> None:
        self.break_with(None)

    def _handle(self, request) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        fault = self._fault
        # A kept connection would still be served after the listener is gone.
        request.close_connection = True
        if fault == "down":
            return
        if isinstance(fault, int):
            return request.answer(fault, b"refused by the test", "text/plain")
        if fault == "slow":
            time.sleep(1.5)
        form = dict(urllib.parse.parse_qsl(body.decode()))
        self.asked.append(form.get("query", ""))
        if isinstance(fault, tuple):
            form["query"] = fault[1]
        try:
            answer = httpx.post(f"{self.target}{request.path}", data=form, timeout=5)
            request.answer(answer.status_code, answer.content)
        except httpx.HTTPError:
            request.answer(502, b"nobody behind the proxy", "text/plain")
        except OSError:
            pass
