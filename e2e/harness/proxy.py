"""Stands between an operator and the API server and injects faults."""

import itertools
import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP = {"connection", "transfer-encoding", "content-length", "host", "accept-encoding", "content-encoding"}


class FaultyProxy:
    """Answers 409, 429 or 500 instead of forwarding, or 500 after having forwarded (the
    write happened, its answer is lost), and cuts watches. The share is settable. When is
    random, which fault comes in turn: writes are few, and each fault must meet some."""

    def __init__(self, target: str, seed: int):
        self.share, self.cut_after = 0.0, None
        self.injected = Counter()
        self.random = random.Random(seed)
        self._faults = {False: itertools.cycle([429, 500]),
                        True: itertools.cycle([409, "lost", 429, 500])}
        self._client = httpx.Client(base_url=target, verify=False, timeout=httpx.Timeout(30, read=400))
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self):
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _handle

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._client.close()

    def _handle(self, request) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        fault = self._fault(request.command)
        if fault and fault != "lost":
            return self._refuse(request, fault)
        try:
            with self._client.stream(request.command, request.path, headers=headers, content=body) as answer:
                if fault == "lost":
                    answer.read()
                    return self._refuse(request, 500)
                self._forward(request, answer, "watch=" in request.path)
        except (httpx.HTTPError, OSError):
            request.close_connection = True

    def _fault(self, method: str):
        if self.random.random() >= self.share:
            return None
        fault = next(self._faults[method in ("PUT", "POST", "PATCH")])
        self.injected[fault] += 1
        return fault

    @staticmethod
    def _refuse(request, code: int) -> None:
        reason = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}[code]
        body = json.dumps({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                           "message": "injected by the test", "reason": reason, "code": code}).encode()
        request.send_response(code)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(body)))
        if code == 429:
            request.send_header("retry-after", "1")
        request.end_headers()
        request.wfile.write(body)

    def _forward(self, request, answer, watch: bool) -> None:
        request.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in HOP:
                request.send_header(name, value)
        request.send_header("transfer-encoding", "chunked")
        request.end_headers()
        deadline = None
        for chunk in answer.iter_bytes():
            request.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            request.wfile.flush()
            if not (watch and self.cut_after):
                deadline = None
            elif deadline is None:
                deadline = time.monotonic() + self.random.uniform(0, self.cut_after)
            elif time.monotonic() > deadline:
                self.injected["cut"] += 1
                request.close_connection = True
                return
        request.wfile.write(b"0\r\n\r\n")
