"""A DNS server that knows one name, and a TLS server whose authority nobody knows."""

import socket
import ssl
import struct
import subprocess
import threading
from pathlib import Path


class Names:
    """Answers for one name and says of every other one that it does not exist. Resolvers ask port 53 only."""

    def __init__(self, name: str, address: str = "127.0.0.1", own: str = "127.0.53.1"):
        self.own, self.asked = own, 0
        self._name = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"
        self._answer = socket.inet_aton(address)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((own, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        # A thread that waits for a datagram is not woken by close.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.own, 53))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            end = query.index(b"\0", 12) + 1
            question, kind = query[12:end + 4], query[end:end + 2]
            known = query[12:end].lower() == self._name
            self.asked += known
            answers = known and kind == b"\0\1"  # an IPv4 address
            head = query[:2] + struct.pack("!HHHHH", 0x8580 | (0 if known else 3), 1, int(answers), 0, 0)
            record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + self._answer if answers else b""
            self._socket.sendto(head + question + record, sender)


def certificate(folder: Path, *names: str) -> tuple[Path, Path, Path]:
    """A new authority, and a certificate by it for these names with its key."""
    ca, crt, key = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl = lambda *arguments: subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    openssl("req", "-x509", *new, "-keyout", folder / "ca.key", "-out", ca, "-subj", "/CN=authority of a test")
    (folder / "names").write_text(f"subjectAltName={','.join(f'DNS:{n}' for n in names)}\n")
    openssl("req", *new, "-keyout", key, "-out", folder / "server.csr", "-subj", "/CN=server of a test")
    openssl("x509", "-req", "-in", folder / "server.csr", "-CA", ca, "-CAkey", folder / "ca.key", "-CAcreateserial",
            "-extfile", folder / "names", "-out", crt)
    return ca, crt, key


class Tls:
    """Speaks TLS, and passes what it hears on to a port of this machine."""

    def __init__(self, target: int, crt: Path, key: Path):
        self._target = target
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(crt, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._secure = lambda connection: context.wrap_socket(connection, server_side=True)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._secure(connection) as here, socket.create_connection(("127.0.0.1", self._target)) as there:
                back = threading.Thread(target=_copy, args=(there, here), daemon=True)
                back.start()
                _copy(here, there)
                back.join()
        except OSError:
            connection.close()  # a client that does not trust this server


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
