"""Users: the official openai client, sending chats at a rate from several threads."""

import itertools
import threading
import time
from dataclasses import dataclass

import httpx
import openai

from .manifests import KEY


@dataclass
class Seen:
    at: float
    ok: bool
    revision: str = ""
    request_id: str = ""
    error: str = ""
    user: str = ""
    shadow_id: str = ""


class Traffic:
    """Sends chats to the gateways in turn until stopped.

    A user tries once again at another gateway when a connection breaks, as the openai
    client does by default; any other failure is an error that the user saw. One who has
    waited for `patience` seconds without a sign of life gives up."""

    def __init__(self, gateways, route: str, rate: float = 40, threads: int = 4,
                 stream_share: float = 0.5, score=None, shadow_score=None, patience: float = 20):
        self.route, self.stream_share, self.score = route, stream_share, score
        self.patience = patience
        self.shadow_score = shadow_score
        self.seen: list[Seen] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._gateways = gateways
        self._pause = threads / rate
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=self.patience + 10)

    def _run(self) -> None:
        clients = [
            openai.OpenAI(base_url=f"{g.url}/v1", api_key=KEY, timeout=self.patience, max_retries=0)
            for g in self._gateways
        ]
        while not self._stop.is_set():
            started = time.monotonic()
            number = next(self._numbers)
            seen = self._chat(clients, number)
            with self._lock:
                self.seen.append(seen)
            self._stop.wait(max(0.0, self._pause - (time.monotonic() - started)))

    def _chat(self, clients, number: int) -> Seen:
        user = f"user-{number % 997}"
        for attempt in range(4):
            client = clients[(number + attempt) % len(clients)]
            try:
                return self._once(client, number, user)
            except openai.APITimeoutError as error:
                return Seen(time.monotonic(), False, error=repr(error), user=user)
            except openai.APIConnectionError as error:
                last = Seen(time.monotonic(), False, error=repr(error), user=user)
                time.sleep(0.05)
            except (openai.OpenAIError, httpx.HTTPError) as error:
                return Seen(time.monotonic(), False, error=repr(error), user=user)
        return last

    def _once(self, client, number: int, user: str) -> Seen:
        arguments = {
            "model": self.route,
            "messages": [{"role": "user", "content": "and another thing"}],
            "user": user,
            "extra_body": {"serinus": {"variables": {"question": f"question {number}"}}},
        }
        sent = time.monotonic()
        if (number % 100) / 100 < self.stream_share:
            with client.chat.completions.with_streaming_response.create(
                **arguments, stream=True
            ) as response:
                headers = response.headers
                pieces = list(response.parse())
            finished = any(c.finish_reason for p in pieces for c in p.choices)
            if not finished:
                return Seen(sent, False, error="the stream ended early", user=user)
        else:
            response = client.chat.completions.with_raw_response.create(**arguments)
            headers = response.headers
            response.parse()
        revision = headers.get("x-serinus-revision", "")
        request_id = headers.get("x-serinus-request-id", "")
        shadow_id = headers.get("x-serinus-shadow-request-id", "")
        if self.score:
            self._feedback(client, request_id, self.score(revision))
        if self.shadow_score and shadow_id:
            self._feedback(client, shadow_id, self.shadow_score())
        return Seen(sent, True, revision, request_id, user=user, shadow_id=shadow_id)

    def _feedback(self, client, request_id: str, value) -> None:
        if value is not None:
            httpx.post(f"{client.base_url}".replace("/v1/", "/serinus/v1/feedback"),
                       json={"request_id": request_id, "name": "helpfulness", "score": value},
                       headers={"api-key": KEY})

    def errors(self) -> list[Seen]:
        with self._lock:
            return [s for s in self.seen if not s.ok]

    def since(self, instant: float) -> list[Seen]:
        with self._lock:
            return [s for s in self.seen if s.at >= instant]
