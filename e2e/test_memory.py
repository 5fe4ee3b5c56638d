"""Everything that a client, a stranger and a model may do, all at once, under the shipped memory limit:
the process lives, its memory stays below the limit, and ordinary requests with another key are answered."""

import asyncio
import gzip
import json
import multiprocessing
import random
import socket
import time

from harness import manifests as m
from harness.processes import free_port, wait_for
from harness.serinus import Model
from harness.standalone import Standalone

LIMIT_MIB, SECONDS = 512, 35
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {m.KEY}\r\n"
MODEST = "key-of-the-modest-client-of-this-test"


def answer(text: str) -> bytes:
    return json.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}}).encode()


BIG, LARGE = answer("x" * (4 << 20)), answer("x" * (1 << 20))
FOLDED = gzip.compress(b'{"model":"big","x":"' + b"a" * (19 << 20) + b'"}')
EVENT = b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [
    {"index": 0, "delta": {"content": "x" * 2000}}]}).encode() + b"\n\n"


async def model(reader, writer) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            kind = head.split(b"/")[1]
            if kind == b"hang":
                await asyncio.sleep(3600)
            if kind == b"stream":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                while True:
                    writer.write(EVENT)
                    await writer.drain()
            body = BIG if kind == b"big" else LARGE
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                         b"content-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


class Crowd:
    """All clients but the ordinary one."""

    def __init__(self, port: int):
        self.port, self.told = port, {}

    async def again(self, work, number: int) -> None:
        """Whoever is turned away comes back."""
        await asyncio.sleep(random.uniform(0, 5))
        while True:
            try:
                await work(number)
            except OSError:
                pass
            await asyncio.sleep(random.uniform(2, 6))

    def all(self):
        for count, work in [
            (2000, self.half_head), (400, self.half_body), (5, self.unfolds), (500, self.waits),
            (150, lambda n: self.reads_slowly("big", n)), (10, self.reads_at_once),
            (150, lambda n: self.reads_slowly("stream", n, stream=True)),
        ]:
            yield from (self.again(work, number) for number in range(count))

    async def connect(self, narrow: bool = False) -> socket.socket:
        sock = socket.socket()
        if narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return sock

    async def send(self, sock, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, data)

    async def receive(self, sock, most: int = 4096) -> bytes:
        said = await asyncio.get_running_loop().sock_recv(sock, most)
        if said.startswith(b"HTTP/1.1 "):
            self.told.setdefault(said[9:12].decode(), said)
        return said

    @staticmethod
    def chat(route: str, **more) -> bytes:
        body = json.dumps({"model": route, "messages": [{"role": "user", "content": "q"}], **more}).encode()
        return HEAD.encode() + b"content-length: %d\r\n\r\n" % len(body) + body

    async def half_head(self, _) -> None:
        """A stranger who never ends its head."""
        with await self.connect() as sock:
            await self.send(sock, b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 15_000)
            await self.receive(sock)

    async def half_body(self, number: int) -> None:
        size = 9_000_000 if number % 40 == 0 else 60_000
        with await self.connect() as sock:
            head = HEAD.encode() + b"content-length: %d\r\n\r\n" % (size + 5000)
            await self.send(sock, head + b'{"model":"big","x":"' + b"a" * size)
            await self.receive(sock)

    async def unfolds(self, _) -> None:
        """20 KB that unfold to 19 MB."""
        with await self.connect() as sock:
            head = HEAD + f"content-encoding: gzip\r\ncontent-length: {len(FOLDED)}\r\n\r\n"
            await self.send(sock, head.encode() + FOLDED)
            await self.receive(sock)

    async def reads_slowly(self, route: str, number: int, **more) -> None:
        with await self.connect(narrow=True) as sock:
            await self.send(sock, self.chat(route, user=f"{number}", **more))
            while await self.receive(sock, 2000):
                await asyncio.sleep(11)

    async def reads_at_once(self, number: int) -> None:
        """Answers that are kept, each another one."""
        with await self.connect() as sock:
            await self.send(sock, self.chat("large", user=f"{number}-{random.random()}"))
            while await asyncio.wait_for(self.receive(sock, 1 << 16), 2):
                pass

    async def waits(self, _) -> None:
        with await self.connect() as sock:
            await self.send(sock, self.chat("hang"))
            await self.receive(sock)


def crowd(model_port: int, port: int, told) -> None:
    """In a process of its own, which ends when the test does."""
    async def main():
        server = await asyncio.start_server(model, "127.0.0.1", model_port, backlog=2000)
        clients = Crowd(port)
        tasks = [asyncio.ensure_future(each) for each in clients.all()]
        await asyncio.sleep(SECONDS)
        told.put(clients.told)
        await asyncio.gather(server.serve_forever(), *tasks)
    asyncio.run(main())


async def ordinary(port: int) -> int:
    """A chat on a connection of its own; its status."""
    body = json.dumps({"model": "ok", "messages": [{"role": "user", "content": "hello"}]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = HEAD.replace(m.KEY, MODEST)
        writer.write((head + f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n").encode() + body)
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def peak_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def test_no_mix_of_what_is_permitted_ends_the_process(tmp_path):
    plain, hostile = Model(tmp_path).start(), free_port()
    here = Standalone(tmp_path, f"--memory={LIMIT_MIB}")
    prompt = {"apiVersion": m.API, "kind": "PromptVersion", "metadata": m.meta("plain-v1"),
              "spec": {"prompt": "plain", "messages": [{"role": "system", "content": "Answer."}]}}
    objects = [prompt, m.client_key("modest", MODEST)]
    for kind in ("ok", "big", "large", "stream", "hang"):
        url = plain.url if kind == "ok" else f"http://127.0.0.1:{hostile}/{kind}/v1"
        limits = {"timeout": "60s", "firstTokenTimeout": "60s", "maxConcurrency": 5000, "retries": 0}
        release = m.release(kind, "plain-v1", kind)
        del release["spec"]["policyRef"]
        if kind == "large":
            release["spec"]["cache"] = {"ttl": "1h"}
        objects += [m.backend(kind, url, **limits), release]
    here.apply("all", *objects)
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    others = context.Process(target=crowd, args=(hostile, here.port, told), daemon=True)
    try:
        here.start()
        wait_for("routes", lambda: asyncio.run(ordinary(here.port)) == 200)
        idle = peak_mib(here.process.child.pid)
        others.start()
        answered, failed, end = 0, [], time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert here.process.alive, here.process.tail()
            try:
                status = asyncio.run(asyncio.wait_for(ordinary(here.port), 10))
            except (OSError, IndexError, TimeoutError) as error:
                status = repr(error)
            answered += status == 200
            failed += [] if status == 200 else [status]
            time.sleep(0.1)
        said, peak = told.get(timeout=20), peak_mib(here.process.child.pid)
        print(f"peak {peak:.0f} MiB of {LIMIT_MIB} (idle {idle:.0f}); ordinary requests: {answered} answered, "
              f"{len(failed)} not: {failed[:5]}; others were told {sorted(said)}")
        assert here.process.alive, here.process.tail()
        assert peak < LIMIT_MIB
        # The crowd has one key, and does not take the room of others.
        assert answered >= 20 and not [status for status in failed if status in (429, 503)], failed
        assert answered >= 0.8 * (answered + len(failed)), failed
        # A refusal can be read, and says what is full and when to come back.
        refusal = said["429"].lower()
        assert b"retry-after: " in refusal and b"holds its share" in refusal, refusal
    finally:
        if others.pid:
            others.kill()
        here.process.stop()
        plain.process.stop()
