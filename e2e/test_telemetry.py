"""What a gateway tells of its requests, read back from the servers that people use."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.prometheus import Prometheus
from harness.standalone import Standalone
from harness.tracing import Mlflow, Phoenix, ScriptedModel

CALLER, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# 120 input and 30 output tokens at 0.15 and 0.6 US dollars for a million.
COST = (120 * 0.15 + 30 * 0.6) / 1e6
QUESTION = "Rain? I am ada@example.org, card 4111 1111 1111 1111, badge PAT-77123."
ANSWER = "It rains, write to [redacted:email]."
# As the caller wrote them: ids and times can not look like one of these by chance.
SECRETS = ["ada@", "bob@", "4111 1111", "PAT-", m.KEY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("telemetry")


@pytest.fixture(scope="module")
def model():
    model = ScriptedModel()
    yield model
    model.stop()


@pytest.fixture(scope="module")
def servers(folder):
    phoenix, mlflow = Phoenix(folder), Mlflow(folder)
    try:
        for server in (phoenix, mlflow):
            server.process.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.wait_ready(), (phoenix, mlflow)))
        yield phoenix, mlflow
    finally:
        for server in (phoenix, mlflow):
            server.process.stop()


class Telling:
    """A gateway with a canary that fails whatever it is asked, and what was asked through it."""

    def __init__(self, folder, model: ScriptedModel, name: str, *arguments: str, **env: str):
        self.access_log = folder / f"{name}.access.log"
        self.here = Standalone(
            folder / name, *arguments, "--otlp-interval=200ms", "--trace-content",
            r"--redact=PAT-\d+", "--access-log=json", f"--access-log-file={self.access_log}",
            name=name, env=env)
        self.model = model

    def start(self) -> "Telling":
        never_done = [{"weight": 50, "samples": 100_000}]
        self.here.apply("users", m.client_key("shop", team="web"))
        self.here.apply(
            "fixed", m.backend("scripted", self.model.url, model="gpt-4o-mini"),
            m.policy("never-done", steps=never_done), self._prompt("answer-v1", "You know weather."),
            self._prompt("answer-v2", "You are broken."))
        self._release("answer-v1")
        self.here.start()
        wait_for("stable", lambda: self.here.status("answer")["phase"] == "Stable")
        self._release("answer-v2")
        wait_for("the canary", lambda: len(self.here.status("answer")["routing"]["variants"]) == 2)
        return self

    def _prompt(self, name: str, text: str) -> dict:
        prompt = m.prompt(name, text=text)
        del prompt["spec"]["responseFormat"]
        return prompt

    def _release(self, version: str) -> None:
        self.here.apply("release", m.release("answer", version, "scripted", "never-done"))

    def ask(self, question: str, user: str, stream: bool = False, **headers: str) -> str:
        """The id of the request."""
        body = {"model": "answer", "user": user, "stream": stream, "messages": [],
                "serinus": {"variables": {"question": question}}}
        headers["authorization"] = f"Bearer {m.KEY}"
        answer = httpx.post(f"{self.here.url}/v1/chat/completions", json=body, headers=headers)
        return answer.headers["x-serinus-request-id"]

    def lines(self) -> dict[str, dict]:
        """The access log by request id."""
        text = self.access_log.read_text() if self.access_log.exists() else ""
        return {line["request_id"]: line for line in map(json.loads, text.splitlines())}

    def asked(self) -> dict[str, str]:
        """Asks one of each kind; their ids."""
        # Whom the hash gives to which variant shows in the log.
        users = {self.ask("hello", f"u{i}"): f"u{i}" for i in range(24)}
        lines = wait_for("the access log", lambda: users.keys() <= self.lines().keys() and self.lines())
        reasons = {lines[request]["reason"]: request for request in reversed(users)}
        stable = users[reasons["sticky"]]
        return {
            "fallback": reasons["fallback"],
            "text": self.ask(QUESTION, stable),
            "stream": self.ask(QUESTION, stable, stream=True),
            "tool": self.ask("use a tool", stable),
            "tool stream": self.ask("use a tool", stable, stream=True),
            "failure": self.ask("fail", stable),
            "traced": self.ask("hello", stable, traceparent=f"00-{CALLER}-{PARENT}-01"),
        }


@pytest.fixture(scope="module")
def telling(folder, model, servers):
    """One gateway for each server, and one span of each kind in both."""
    phoenix, mlflow = servers
    experiment = mlflow.experiment("serinus")
    gateways = [
        Telling(folder, model, "to-phoenix", f"--otlp-endpoint={phoenix.url}",
                "--trace-names=gen_ai,openinference",
                OTEL_RESOURCE_ATTRIBUTES="openinference.project.name=serinus"),
        # By OpenTelemetry's variables alone, as far as they go.
        Telling(folder, model, "to-mlflow", "--trace-names=gen_ai,mlflow",
                OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{mlflow.url}/v1/traces",
                OTEL_EXPORTER_OTLP_HEADERS=f"x-mlflow-experiment-id={experiment}"),
    ]
    try:
        yield [(gateway, gateway.start().asked()) for gateway in gateways], experiment
    finally:
        for gateway in gateways:
            gateway.here.process.stop()


def test_phoenix_shows_requests_as_llm_spans_with_tokens_cost_and_prompt(telling, servers):
    (told, asked), phoenix = telling[0][0], servers[0]

    def arrived():
        spans = {s["attributes"]["serinus"]["request"]["id"]: s for s in phoenix.spans("serinus")}
        return spans if set(asked.values()) <= spans.keys() else None
    spans = wait_for("the spans in Phoenix", arrived, 60, 0.5)
    for kind in ("text", "stream"):
        span = spans[asked[kind]]
        assert (span["name"], span["spanKind"], span["statusCode"]) == ("chat gpt-4o-mini", "llm", "OK")
        counts = [span[f"tokenCount{of}"] for of in ("Prompt", "Completion", "Total")]
        assert counts == [120, 30, 150], kind
        own = span["attributes"]["serinus"]
        assert own["prompt"] == {"name": "answer", "version": "answer-v1"}
        assert own["revision"] == told.here.status("answer")["stable"]["revision"]
        assert (own["role"], own["release"]) == ("stable", "default/answer")
        assert own["cost_usd"] == pytest.approx(COST) and own["team"] == "web"
        assert span["attributes"]["user"]["id"].startswith("u")
        llm = span["attributes"]["llm"]
        assert llm["model_name"] == "gpt-4o-mini" and llm["cost"]["total"] == pytest.approx(COST)
        assert llm["token_count"]["prompt_details"]["cache_read"] == 100
        question = llm["input_messages"][-1]["message"]["content"]
        assert question == "Rain? I am [redacted:email], card [redacted:card], badge [redacted:text]."
        assert span["output"]["value"] == llm["output_messages"][0]["message"]["content"] == ANSWER
        streamed = "time_to_first_chunk" in span["attributes"]["gen_ai"]["response"]
        assert streamed == (kind == "stream")
    for kind in ("tool", "tool stream"):
        message = spans[asked[kind]]["attributes"]["llm"]["output_messages"][0]["message"]
        assert '"name":"weather"' in spans[asked[kind]]["output"]["value"], kind
        function = message["tool_calls"][0]["tool_call"]["function"]
        assert function == {"name": "weather", "arguments": '{"city": "Paris"}'}, kind
    failure = spans[asked["failure"]]
    assert failure["statusCode"] == "ERROR" and failure["attributes"]["error"]["type"]
    assert not any(secret in json.dumps(list(spans.values())) for secret in SECRETS)


def test_a_request_is_one_trace_with_its_attempts_its_caller_and_its_model(telling, servers, model):
    (_, asked), phoenix = telling[0][0], servers[0]
    spans = phoenix.spans("serinus")
    by_request = {s["attributes"]["serinus"]["request"]["id"]: s for s in spans}
    answer = by_request[asked["fallback"]]
    first = next(s for s in spans if s["spanId"] == answer["parentId"])
    assert first["trace"]["traceId"] == answer["trace"]["traceId"] and first["parentId"] is None
    assert (first["statusCode"], first["attributes"]["serinus"]["role"]) == ("ERROR", "canary")
    assert first["attributes"]["serinus"]["prompt"]["version"] == "answer-v2"
    assert answer["attributes"]["serinus"]["assignment"]["reason"] == "fallback"
    traced = by_request[asked["traced"]]
    assert (traced["trace"]["traceId"], traced["parentId"]) == (CALLER, PARENT)
    # The model is told of the span that asks it.
    told = [a["headers"]["traceparent"] for a in model.asked]
    assert f"00-{CALLER}-{traced['spanId']}-01" in told
    assert f"00-{answer['trace']['traceId']}-{first['spanId']}-01" in told


def test_mlflow_shows_requests_as_chat_models_with_tokens_cost_and_prompt(telling, servers):
    (_, (told, asked)), experiment = telling
    mlflow = servers[1]

    def arrived():
        spans = {s["attributes"]["serinus.request.id"]: (t, s)
                 for t in mlflow.traces(experiment) for s in t["spans"]}
        return spans if set(asked.values()) <= spans.keys() else None
    spans = wait_for("the spans in MLflow", arrived, 90, 0.5)
    for kind in ("text", "stream"):
        trace, span = spans[asked[kind]]
        assert (span["name"], span["type"], span["status"]) == ("chat gpt-4o-mini", "CHAT_MODEL", "OK")
        assert trace["state"] == "OK", kind
        usage = span["attributes"]["mlflow.chat.tokenUsage"]
        assert usage == {"input_tokens": 120, "output_tokens": 30, "total_tokens": 150,
                         "cache_read_input_tokens": 100}
        assert trace["usage"]["total_tokens"] == 150
        assert span["attributes"]["mlflow.llm.model"] == "scripted-2026-01-01"
        assert span["attributes"]["mlflow.llm.cost"]["total_cost"] == pytest.approx(COST)
        assert span["attributes"]["gen_ai.prompt.version"] == "answer-v1"
        revision = told.here.status("answer")["stable"]["revision"]
        assert span["attributes"]["serinus.revision"] == trace["tags"]["serinus.revision"] == revision
        assert span["inputs"][-1]["parts"][0]["content"].startswith("Rain? I am [redacted:email]")
        assert span["outputs"][0]["parts"] == [{"type": "text", "content": ANSWER}]
    for kind in ("tool", "tool stream"):
        call = spans[asked[kind]][1]["outputs"][0]["parts"][0]
        assert (call["name"], call["arguments"]) == ("weather", {"city": "Paris"}), kind
    trace, failure = spans[asked["failure"]]
    assert (failure["status"], trace["state"]) == ("ERROR", "ERROR")
    trace, answer = spans[asked["fallback"]]
    assert [s["status"] for s in trace["spans"] if s["span_id"] == answer["parent_id"]] == ["ERROR"]
    assert not any(secret in json.dumps([s for _, s in spans.values()]) for secret in SECRETS)


def test_the_access_log_says_the_same_and_no_secret(telling):
    for told, asked in telling[0]:
        lines = wait_for("all lines", lambda: set(asked.values()) <= told.lines().keys() and told.lines())
        line = lines[asked["text"]]
        assert (line["team"], line["outcome"]) == ("web", "ok")
        assert (line["prompt_version"], line["input_tokens"]) == ("answer-v1", 120)
        assert line["cost_usd"] == pytest.approx(COST)
        assert lines[asked["traced"]]["trace_id"] == CALLER
        assert lines[asked["failure"]]["outcome"] == "error"
        text = told.access_log.read_text()
        assert not any(secret in text for secret in [*SECRETS, "Rain", "rains"])


def test_prometheus_reads_the_conventions_metrics_and_finds_traces_by_their_exemplars(telling, folder):
    (told, _), _ = telling[0]
    prometheus = Prometheus(folder, f"127.0.0.1:{told.here.admin}").start()
    try:
        stable = told.here.status("answer")["stable"]["revision"]
        name = f'gen_ai_client_operation_duration_seconds_bucket{{revision="{stable}",error_type=""}}'
        wait_for("a scrape", lambda: prometheus.query(name))
        exemplars = httpx.get(f"{prometheus.url}/api/v1/query_exemplars", params={
            "query": name, "start": "0", "end": "9999999999"}).json()["data"]
        found = {e["labels"]["trace_id"] for series in exemplars for e in series["exemplars"]}
        assert found & {line.get("trace_id") for line in told.lines().values()}
        spent = prometheus.query(f'serinus_gateway_cost_usd_total{{revision="{stable}",team="web"}}')
        assert float(spent[0]["value"][1]) > 0
        delivered = 'serinus_gateway_telemetry_total{what="span",outcome="delivered"}'
        assert float(prometheus.query(delivered)[0]["value"][1]) > 0
    finally:
        prometheus.process.stop()
