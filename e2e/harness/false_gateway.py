"""Somebody at an address of a gateway who tells the operator what it likes."""

import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .processes import free_port


class FalseGateway:
    """`report` answers what is told. With a key of request ids it is signed as a gateway does."""

    def __init__(self, report):
        self.admin, self.key, self.asked = free_port(), None, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                body = json.dumps(report()).encode()
                self.send_response(200)
                for name, value in outer.proof(self.headers["x-serinus-asked"], body).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.admin), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def proof(self, asked: str, body: bytes) -> dict[str, str]:
        """Headers as in src/signals/proof.rs; made with nonsense while there is no key."""
        derived = hmac.digest(self.key or b"?" * 32, b"serinus.dev reports 1\x01", "sha256")
        digest = f"{len(body)} {hashlib.sha256(body).hexdigest()}"
        text = b"".join(len(part).to_bytes(8, "little") + part
                        for part in (b"answer", asked.encode(), b"200", digest.encode()))
        return {"x-serinus-digest": digest, "x-serinus-signature": hmac.new(derived, text, "sha256").hexdigest()}

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
