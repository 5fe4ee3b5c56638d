"""Answers that are given again: by two gateways that share a real Redis, and without it."""

import os
import socket
import subprocess
import time
from contextlib import ExitStack

import httpx
import pytest

from harness import manifests as m
from harness.processes import Process, free_port, wait_for
from harness.serinus import Model
from test_standalone import Standalone

PASSWORD = "not-on-the-command-line"  # noqa: S105 - lives as long as the test


class Redis:
    def __init__(self, folder):
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/1"
        config = folder / "redis.conf"
        config.write_text(f'bind 127.0.0.1\nport {self.port}\nrequirepass {PASSWORD}\nsave ""\n')
        self.process = Process("redis", [os.environ.get("SERINUS_REDIS", "redis-server"), str(config)], folder)

    def start(self) -> "Redis":
        self.process.start()
        wait_for("Redis", lambda: self.process.alive and self._answers())
        return self

    def _answers(self) -> bool:
        return "+PONG" in self.ask("PING")

    def size(self) -> int:
        return int(self.ask("DBSIZE").rsplit(":", 1)[1])

    def ask(self, command: str) -> str:
        lines = f"AUTH {PASSWORD}\r\nSELECT 1\r\n{command}\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(lines)
            text = b""
            while text.count(b"\r\n") < 3:
                text += connection.recv(100) or b"\r\n"
            return text.decode()


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    redis = Redis(tmp_path_factory.mktemp("redis")).start()
    yield redis
    redis.process.stop()


@pytest.fixture(scope="module")
def gateways(redis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with ExitStack() as running:
        model = Model(folder)
        running.callback(model.process.stop)
        model.start().behave(firstTokenMs=5, tokenMs=1)
        address = folder / "redis-url"
        address.write_text(f"{redis.url}\n")
        both = []
        for name in ("one", "two"):
            home = folder / name
            home.mkdir()
            here = Standalone(home, f"--cache-redis-url-file={address}")
            running.callback(here.process.stop)
            here.apply("fixed", m.backend("model", model.url), m.policy("quick"), m.prompt("kept-v1"),
                       m.release("kept", "kept-v1", cache={"ttl": "10m"}), m.release("asked", "kept-v1"))
            here.apply("users", m.client_key("web", key=key("web")["api-key"], team="web"),
                       m.client_key("app", key=key("app")["api-key"], team="app"))
            here.start()
            both.append(here)
        for here in both:
            wait_for("the routes", lambda: len(
                httpx.get(f"{here.url}/v1/models", headers=key("web")).json()["data"]) == 2)
        yield both


def key(team: str) -> dict:
    return {"api-key": f"key-of-the-team-{team}-of-this-test"}


def ask(here: Standalone, question: str, team: str = "web", route: str = "kept", stream: bool = False,
        headers=(), **more) -> tuple[str, bytes]:
    """What `x-serinus-cache` says, and the bytes of the answer."""
    body = {"model": route, "messages": [], "stream": stream,
            "serinus": {"variables": {"question": question}}, **more}
    answer = httpx.post(f"{here.url}/v1/chat/completions", json=body,
                        headers={**key(team), **dict(headers)}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.headers.get("x-serinus-cache", ""), answer.content


def metric(here: Standalone, name: str, *labels: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{here.admin}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines()
               if line.startswith(name) and all(label in line for label in labels))


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_the_same_request_gets_the_same_bytes_from_either_gateway(gateways, redis, stream):
    one, two = gateways
    question = f"same, {stream}"
    before, shared = redis.size(), metric(two, "serinus_gateway_cache_shared_hits_total")
    said, first = ask(one, question, stream=stream)
    assert said != "hit"
    assert ask(one, question, stream=stream, user="somebody else") == ("hit", first)
    # The other gateway has never been asked this. Writes happen behind the answer.
    wait_for("the answer in Redis", lambda: redis.size() == before + 1)
    assert ask(two, question, stream=stream) == ("hit", first)
    assert metric(two, "serinus_gateway_cache_shared_hits_total") == shared + 1
    assert metric(one, "serinus_gateway_cache_hits_total") >= 1
    # The other form is another answer.
    assert ask(one, question, stream=not stream)[0] != "hit"
    wait_for("the other form in Redis", lambda: redis.size() == before + 2)


def test_what_matters_is_told_apart(gateways):
    one, _ = gateways
    ask(one, "apart")
    assert ask(one, "apart")[0] == "hit"
    assert ask(one, "apart", team="app")[0] != "hit", "teams do not share"
    assert ask(one, "apart", temperature=0.5)[0] != "hit"
    assert ask(one, "other")[0] != "hit"
    for _ in range(2):
        assert ask(one, "apart", route="asked")[0] == "", "only a release that asks for it"


def test_an_application_may_want_a_new_answer(gateways):
    one, _ = gateways
    for _ in range(2):
        assert ask(one, "secret", headers={"cache-control": "no-store"})[0] != "hit"
    assert ask(one, "secret")[0] != "hit", "it was not kept"
    assert ask(one, "secret", headers={"cache-control": "no-cache"})[0] != "hit"
    assert ask(one, "secret")[0] == "hit"
    time.sleep(2)
    assert ask(one, "secret", headers={"cache-control": "max-age=1"})[0] != "hit"
    assert ask(one, "secret", headers={"cache-control": "max-age=600"})[0] == "hit"


def test_hits_cost_nothing_and_are_marked(gateways):
    one, _ = gateways
    ask(one, "marked", team="app")
    wait_for("the record", lambda: metric(one, "serinus_gateway_priced_requests_total", 'team="app"') >= 1)
    tokens = metric(one, "serinus_gateway_tokens_total", 'team="app"')
    usd = metric(one, "serinus_gateway_cost_usd_total", 'team="app"')
    priced = metric(one, "serinus_gateway_priced_requests_total", 'team="app"')
    hits = metric(one, "serinus_gateway_requests_total", 'reason="cached"')
    assert [ask(one, "marked", team="app")[0] for _ in range(5)] == ["hit"] * 5
    wait_for("the records", lambda: metric(one, "serinus_gateway_requests_total", 'reason="cached"') == hits + 5)
    assert metric(one, "serinus_gateway_priced_requests_total", 'team="app"') == priced + 5
    assert metric(one, "serinus_gateway_tokens_total", 'team="app"') == tokens
    assert metric(one, "serinus_gateway_cost_usd_total", 'team="app"') == usd
    assert metric(one, "serinus_gateway_check_failures_total") == 0


def test_the_password_is_on_no_command_line_and_in_no_log(gateways):
    for here in gateways:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert PASSWORD not in listed
        assert PASSWORD not in here.process.log.read_text(errors="replace")


def test_without_redis_answers_come_and_memory_works(gateways, redis):
    """It dies, and is used again when it is back."""
    one, two = gateways
    ask(one, "outage")
    redis.process.kill()
    try:
        assert ask(one, "outage")[0] == "hit", "from memory"
        for i in range(20):
            assert ask(two, f"outage {i}")[0] != "hit"
        assert metric(two, "serinus_gateway_cache_read_failures_total") >= 1
        assert ask(two, "outage 3")[0] == "hit", "kept in memory meanwhile"
    finally:
        redis.start()
    number = iter(range(10_000))

    def shared() -> bool:
        question = f"back {next(number)}"
        ask(one, question)
        time.sleep(0.1)
        return ask(two, question)[0] == "hit"

    wait_for("Redis in use again", shared, 30)
