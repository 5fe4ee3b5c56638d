"""Real servers that take spans, and a model whose answers are known to the word."""

import json
import os
import re
import signal
import subprocess
import threading

import httpx

from .processes import Process, free_port, wait_for
from .prometheus import serve


def server(name: str) -> str:
    """The folder of the programs of an installed server."""
    return f"{os.environ['SERINUS_TRACING']}/{name}/bin"


class Server(Process):
    """With children of its own, and nothing that is worth a clean end."""

    def stop(self) -> None:
        if self.child:
            try:
                os.killpg(self.child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.child.wait()


class Phoenix:
    """Arize Phoenix, read back by its own GraphQL."""

    def __init__(self, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Server("phoenix", [f"{server('phoenix')}/phoenix", "serve"], folder, {
            "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(self.port),
            "PHOENIX_GRPC_PORT": str(free_port()), "PHOENIX_WORKING_DIR": str(folder / "phoenix"),
            "PHOENIX_TELEMETRY_ENABLED": "false"})

    def wait_ready(self) -> None:
        wait_for("Phoenix", lambda: httpx.get(f"{self.url}/healthz").status_code == 200, 180, 0.5)

    def spans(self, project: str) -> list[dict]:
        query = """query($name: String!) { getProjectByName(name: $name) {
            spans(first: 1000) { edges { node {
                name spanKind statusCode statusMessage spanId parentId latencyMs attributes
                tokenCountPrompt tokenCountCompletion tokenCountTotal
                trace { traceId } input { value } output { value } } } } } }"""
        answer = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": {"name": project}})
        found = answer.json()["data"]["getProjectByName"]
        spans = [edge["node"] for edge in found["spans"]["edges"]] if found else []
        for span in spans:
            span["attributes"] = json.loads(span["attributes"])
        return spans


class Mlflow:
    """An MLflow server, read back by its own client."""

    READ = """
import json, sys, mlflow
client = mlflow.MlflowClient(tracking_uri=sys.argv[1])
traces = client.search_traces(locations=[sys.argv[2]], max_results=500)
print(json.dumps([{
    "id": trace.info.trace_id, "state": str(trace.info.state.value), "tags": trace.info.tags,
    "usage": trace.info.token_usage, "cost": getattr(trace.info, "cost", None),
    "spans": [{"name": s.name, "type": s.span_type, "span_id": s.span_id, "parent_id": s.parent_id,
               "status": s.status.status_code.value, "attributes": s.attributes,
               "inputs": s.inputs, "outputs": s.outputs} for s in trace.data.spans],
} for trace in traces], default=str))
"""

    def __init__(self, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = Server("mlflow", [
            f"{server('mlflow')}/mlflow", "server", "--host=127.0.0.1", f"--port={self.port}",
            "--workers=1", f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
            f"--artifacts-destination={folder}/artifacts"], folder, self.env)

    def wait_ready(self) -> None:
        wait_for("MLflow", lambda: httpx.get(f"{self.url}/health").status_code == 200, 180, 0.5)

    def experiment(self, name: str) -> str:
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/experiments/create", json={"name": name})
        return answer.raise_for_status().json()["experiment_id"]

    def traces(self, experiment: str) -> list[dict]:
        command = [f"{server('mlflow')}/python", "-c", self.READ, self.url, experiment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                              env={**os.environ, **self.env})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


class ScriptedModel:
    """Answers what the question asks for: `tool`, `fail`, anything else as a text. What
    the system message says of `broken` fails as well: so a canary can fail alone."""

    USAGE = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150,
             "prompt_tokens_details": {"cached_tokens": 100},
             "completion_tokens_details": {"reasoning_tokens": 8}}
    TOOL = {"id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}

    def __init__(self):
        self._lock = threading.Lock()
        self.asked: list[dict] = []
        self._server = serve(0, self._answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            self.asked.append({"headers": headers, "body": body})
        system, question = body["messages"][0]["content"], body["messages"][-1]["content"]
        if "broken" in system or "fail" in question:
            return request.answer(500, b'{"error": {"message": "scripted", "type": "server_error"}}')
        tool = "tool" in question
        text = None if tool else "It rains, write to bob@example.org."
        head = {"id": "chatcmpl-scripted", "created": 0, "model": "scripted-2026-01-01"}
        if body.get("stream"):
            return self._stream(request, head, text, tool)
        message = {"role": "assistant", "content": text, **({"tool_calls": [self.TOOL]} if tool else {})}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tool else "stop"}
        answer = {**head, "object": "chat.completion", "choices": [choice], "usage": self.USAGE}
        request.answer(200, json.dumps(answer).encode())

    def _stream(self, request, head: dict, text: str | None, tool: bool) -> None:
        def chunk(delta: dict, finish: str | None = None, **more) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice], **more})
        if tool:
            start = {**self.TOOL, "index": 0, "function": {"name": "weather", "arguments": ""}}
            deltas = [{"tool_calls": [start]}, *({"tool_calls": [
                {"index": 0, "function": {"arguments": part}}]} for part in ('{"city": ', '"Paris"}'))]
        else:
            deltas = [{"content": word} for word in re.findall(r"\S+\s*", text)]
        events = [*map(chunk, deltas), chunk({}, "tool_calls" if tool else "stop"),
                  json.dumps({**head, "choices": [], "usage": self.USAGE}), "[DONE]"]
        body = "".join(f"data: {event}\n\n" for event in events).encode()
        request.answer(200, body, "text/event-stream")
