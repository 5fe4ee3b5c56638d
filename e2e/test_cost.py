"""What requests have cost, as `serinus cost` tells it: of a gateway, and of a real Prometheus."""

import csv
import io
import json
import subprocess

import httpx
import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.prometheus import Prometheus
from harness.serinus import BIN, Model
from harness.standalone import Standalone

KEY = {"api-key": m.KEY}
PRICES = {"by-token": {"inputPerMillion": 0.15, "outputPerMillion": 0.6},
          "by-time": {"gpuHour": {"usd": 3.6, "gpus": 2, "concurrency": 4}},
          "nobody-knows": None}


def cost(*arguments: str) -> str:
    done = subprocess.run([BIN, "cost", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_release(text: str) -> dict[str, dict]:
    return {line["release"].removeprefix("default/"): line for line in json.loads(text)["lines"]}


def ask(here: Standalone, route: str, stream: bool = False) -> dict:
    """Asks once; the usage that the model reported."""
    body = {"model": route, "messages": [], "serinus": {"variables": {"question": "Q?"}}}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{here.url}/v1/chat/completions", json=body, headers=KEY, timeout=30)
    assert answer.status_code == 200, answer.text
    if not stream:
        return answer.json()["usage"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines()
              if line.startswith("data: {")]
    return next(e["usage"] for e in reversed(events) if e.get("usage"))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    model, here = Model(folder), Standalone(folder)
    try:
        model.start().behave(firstTokenMs=5, tokenMs=1)
        for name, pricing in PRICES.items():
            backend = m.backend(name, model.url)
            backend["spec"] |= {"provider": "vllm"}
            backend["spec"].pop("pricing")
            backend["spec"] |= {"pricing": pricing} if pricing else {}
            here.apply(name, backend, m.prompt(f"{name}-v1"), m.release(name, f"{name}-v1", name))
        here.apply("policy", m.policy("quick"))
        here.apply("users", m.client_key(team="web"))
        here.start()
        wait_for("the routes", lambda: len(
            httpx.get(f"{here.url}/v1/models", headers=KEY).json()["data"]) == 3)
        yield here
    finally:
        here.process.stop()
        model.process.stop()


@pytest.fixture(scope="module")
def prometheus(here, tmp_path_factory):
    """It scrapes before anyone has asked anything."""
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{here.admin}").start()
    wait_for("a scrape", lambda: prometheus.query("up == 1"))
    yield prometheus
    prometheus.process.stop()


@pytest.fixture(scope="module")
def asked(here, prometheus):
    """How often each route was asked, and all that the model reported."""
    usages = {name: [ask(here, name, stream) for stream in (False, True, False)] for name in PRICES}
    total = {name: {key: sum(u[key] for u in found) for key in ("prompt_tokens", "completion_tokens")}
             for name, found in usages.items()}
    wait_for("all records", lambda: sum(
        line["pricedRequests"] + line["unpricedRequests"]
        for line in by_release(cost(f"--gateway=127.0.0.1:{here.admin}", "-o", "json")).values()) == 9)
    return total


def check(lines: dict[str, dict], asked: dict) -> None:
    assert set(lines) == set(PRICES)
    for name, line in lines.items():
        used = asked[name]
        assert (line["inputTokens"], line["outputTokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    known = asked["by-token"]
    usd = (known["prompt_tokens"] * 0.15 + known["completion_tokens"] * 0.6) / 1e6
    assert lines["by-token"]["usd"] == pytest.approx(usd)
    assert (lines["by-token"]["pricedRequests"], lines["by-token"]["unpricedRequests"]) == (3, 0)
    # A request costs its time; how long it took is in the metrics.
    assert lines["by-time"]["usd"] > 0 and lines["by-time"]["pricedRequests"] == 3
    # Unknown is not 0.
    unknown = lines["nobody-knows"]
    assert (unknown["usd"], unknown["pricedRequests"], unknown["unpricedRequests"]) == (None, 0, 3)


def test_a_gateway_tells_what_it_has_counted(here, asked):
    lines = by_release(cost(f"--gateway=http://127.0.0.1:{here.admin}", "--by=release", "-o", "json"))
    check(lines, asked)
    metrics = httpx.get(f"http://127.0.0.1:{here.admin}/metrics").text
    seconds = sum(float(line.rsplit("}", 1)[1].split()[0]) for line in metrics.splitlines()
                  if line.startswith("gen_ai_client_operation_duration_seconds_sum") and "by-time" in line)
    assert lines["by-time"]["usd"] == pytest.approx(seconds * 3.6 * 2 / 3600 / 4)


def test_prometheus_tells_the_same_of_a_window_of_time(here, prometheus, asked):
    """Every series began within the window with its first request, which must not be lost."""
    arguments = (f"--prometheus-url={prometheus.url}", "--since=1h", "--by=release", "-o", "json")
    told = wait_for("the last scrape", lambda: next(
        (lines for lines in [by_release(cost(*arguments))]
         if sum(line["pricedRequests"] + line["unpricedRequests"] for line in lines.values()) == 9), None))
    check(told, asked)
    gateway = by_release(cost(f"--gateway=127.0.0.1:{here.admin}", "--by=release", "-o", "json"))
    assert told["by-time"]["usd"] == pytest.approx(gateway["by-time"]["usd"])
    # Of a window that has seen no request, only of one that has.
    selected = cost(*arguments, '--prometheus-selector=release="default/by-token"')
    assert set(by_release(selected)) == {"by-token"}


def test_what_came_before_the_window_is_not_in_it(here, prometheus, asked):
    window = (f"--prometheus-url={prometheus.url}", "--since=6s", "--by=release", "-o", "json")
    wait_for("a quiet window", lambda: by_release(cost(*window)) == {})
    ask(here, "by-token")
    # Its tokens may be scraped before it is priced.
    priced = wait_for("the next request", lambda: by_release(cost(*window)).get("by-token", {}).get("pricedRequests"))
    assert priced == 1


def test_teams_are_told_apart(here, prometheus, asked):
    for source in (f"--gateway=127.0.0.1:{here.admin}", f"--prometheus-url={prometheus.url}"):
        lines = json.loads(cost(source, "--by=team", "-o", "json"))["lines"]
        assert [line["team"] for line in lines] == ["web"], lines


def test_tables_and_csv_are_for_people_and_spreadsheets(here, asked):
    table = cost(f"--gateway=127.0.0.1:{here.admin}")
    assert table.splitlines()[2].split()[:2] == ["TEAM", "RELEASE"] and "web" in table and "unknown" in table and "set spec.pricing" in table
    rows = list(csv.DictReader(io.StringIO(cost(f"--gateway=127.0.0.1:{here.admin}", "--by=release,revision", "-o", "csv"))))
    assert {row["release"] for row in rows} == {f"default/{name}" for name in PRICES}
    assert next(row for row in rows if row["release"] == "default/nobody-knows")["usd"] == ""


def test_a_source_that_does_not_answer_is_an_error_and_no_total(here):
    for arguments in ([], ["--gateway=127.0.0.1:9"], ["--prometheus-url=http://127.0.0.1:9"]):
        done = subprocess.run([BIN, "cost", *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and not done.stdout, done.stdout
        assert "cost" in done.stderr
