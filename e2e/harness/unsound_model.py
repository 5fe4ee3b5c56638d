"""A model server with the faults that `serinus simulated-model` does not have: requests that
hang, refusals of a share of the requests, answers that take long, and times of being away."""

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter

from .processes import free_port

ANSWER = json.dumps({"answer": "yes"})
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
# By chance, in this order.
FATES = [("down", "downRate"), ("hung", "hangRate"), ("refused", "refuseRate"), ("slow", "slowRate")]
REFUSAL = {"error": {"message": "This model's maximum context length is 16 tokens.",
                     "type": "invalid_request_error", "code": "context_length_exceeded"}}


class UnsoundModel:
    """Markers in the body say what a request meets, as those of the simulated model do; of two
    the later one counts. `behave` sets the same for a tag while the server runs.

    `hangRate`: the share that is never answered; a stream stops after its first token.
    `refuseRate`: the share that is refused with 400.
    `slowRate`, `slowSeconds`: the share that takes so long; of a stream, after its first token.
    `downRate`: the share whose connection is closed without an answer.
    `downEvery`, `downSeconds`: the same of all, at the end of each so many seconds, counted
    from the tag's first request, for so long."""

    def __init__(self, seed: int):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        # By tag: how many requests were answered, hung, refused, slow, or met nobody.
        self.fates: dict[str, Counter] = {}
        self.began: dict[str, float] = {}
        self._set: dict[str, dict] = {}
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "UnsoundModel":
        self._thread.start()
        assert self._listens.wait(10), "the model does not listen"
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def behave(self, tag: str, **behaviour: float) -> None:
        self._set[tag] = behaviour

    def down_share(self, tag: str, every: float, seconds: float, until: float) -> float:
        """The share of the time since the tag's first request in which it was away."""
        spent = until - self.began[tag]
        whole, rest = divmod(spent, every)
        return (whole * seconds + max(0.0, rest - (every - seconds))) / spent

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen())

    async def _listen(self) -> None:
        await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        self._listens.set()
        await self._over.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer) -> bool:
        """One request; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"(?im)^content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if head.startswith("GET"):
            self._whole(writer, 200, {"object": "list", "data": []})
            return True
        asked = json.loads(body)
        markers = " ".join(re.findall(r"\[\[sim:(.*?)\]\]", body.decode()))
        marked = dict(pair.split("=") for pair in markers.split())
        tag = marked.pop("tag")
        meets = self._set.get(tag, {}) | {name: float(value) for name, value in marked.items()}
        now = time.monotonic()
        age = now - self.began.setdefault(tag, now)
        fate = self._fate(meets, age)
        self.fates.setdefault(tag, Counter())[fate] += 1
        if fate == "down":
            return False
        if fate == "refused":
            self._whole(writer, 400, REFUSAL)
            return True
        await asyncio.sleep(0.02)
        waits = meets.get("slowSeconds", 0.0) if fate == "slow" else None
        if fate == "hung":
            waits = 600.0
        return await self._answer(reader, writer, asked, waits)

    def _fate(self, meets: dict, age: float) -> str:
        every, seconds = meets.get("downEvery", 0.0), meets.get("downSeconds", 0.0)
        if every and age % every >= every - seconds:
            return "down"
        luck = self._random.random()
        for fate, rate in FATES:
            luck -= meets.get(rate, 0.0)
            if luck < 0:
                return fate
        return "answered"

    async def _answer(self, reader, writer, asked: dict, waits: float | None) -> bool:
        streams = asked.get("stream") is True
        if streams:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            self._event(writer, {"role": "assistant", "content": ANSWER[:4]})
            await writer.drain()
        if waits is not None:
            # Ends early when whoever asked goes away.
            try:
                await asyncio.wait_for(reader.read(1), waits)
                return False
            except TimeoutError:
                pass
        if not streams:
            message = {"role": "assistant", "content": ANSWER}
            self._whole(writer, 200, {"id": "u", "object": "chat.completion", "created": 0, "model": asked.get("model"),
                                      "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                                      "usage": USAGE})
            return True
        self._event(writer, {"content": ANSWER[4:]})
        self._event(writer, {}, finish_reason="stop")
        self._event(writer, None)
        self._chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _event(self, writer, delta: dict | None, finish_reason: str | None = None) -> None:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        event = {"id": "u", "object": "chat.completion.chunk", "created": 0, "model": "u", "choices": choices}
        if delta is None:
            event["usage"] = USAGE
        self._chunk(writer, f"data: {json.dumps(event)}\n\n")

    @staticmethod
    def _chunk(writer, text: str) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(text), text.encode()))

    @staticmethod
    def _whole(writer, status: int, body: dict) -> None:
        text = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                     % (status, len(text), text))
