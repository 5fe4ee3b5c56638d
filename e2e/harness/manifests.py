"""The objects that the cases are made of."""

import json

API = "serinus.dev/v1alpha1"
# The gateway of evidence that a test has written.
OF_A_TEST = "of-a-test"
KEY = "key-of-the-users-of-this-test"  # noqa: S105 - lives as long as the test


def meta(name: str) -> dict:
    return {"name": name, "namespace": "default"}


def backend(name: str, url: str, model: str = "simulated", **limits) -> dict:
    return {"apiVersion": API, "kind": "LLMDeployment", "metadata": meta(name), "spec": {
        "provider": "openai", "model": model, "endpoint": {"url": url},
        "pricing": {"inputPerMillion": 0.15, "outputPerMillion": 0.6},
        "limits": limits or {"timeout": "15s", "firstTokenTimeout": "5s"}}}


def prompt(name: str, marker: str = "", text: str = "Answer briefly.") -> dict:
    return {"apiVersion": API, "kind": "PromptVersion", "metadata": meta(name), "spec": {
        "prompt": name.rsplit("-", 1)[0],
        "messages": [
            {"role": "system", "content": f"{text} [[sim:tag={name} {marker}]]"},
            {"role": "user", "content": "{{ question }}"}],
        "variables": {"type": "object", "required": ["question"],
                      "properties": {"question": {"type": "string"}}},
        "parameters": {"maxTokens": 100},
        "responseFormat": {"type": "object", "required": ["answer"],
                           "properties": {"answer": {"type": "string"}}}}}


def metrics(**floors) -> list[dict]:
    found = [
        {"name": "errors", "errorRate": {}, "margin": {"harm": 0.03, "accept": 0.12}},
        {"name": "ttft", "timeToFirstToken": {"quantile": 0.9}, "margin": {"harm": 0.1, "accept": 0.35}},
        {"name": "checks", "checkFailures": {}, "margin": {"harm": 0.03, "accept": 0.12}},
    ]
    for metric in found:
        if metric["name"] in floors:
            metric["floor"] = floors[metric["name"]]
    return found


SCORE = {"name": "helpful", "score": {"name": "helpfulness", "minSamples": 40},
         "margin": {"harm": 0.05, "accept": 0.25}}


def policy(name: str, steps=None, measured=None, **fields) -> dict:
    return {"apiVersion": API, "kind": "CanaryPolicy", "metadata": meta(name), "spec": {
        "steps": steps or [{"weight": 20, "samples": 80}, {"weight": 50, "samples": 160}],
        "analysis": {"interval": "500ms", "metrics": measured or metrics()},
        "bake": {"duration": "3s"}, **fields}}


def release(name: str, prompt_name: str, backend_name: str = "model", policy_name: str = "quick",
            **fields) -> dict:
    return {"apiVersion": API, "kind": "PromptRelease", "metadata": meta(name), "spec": {
        "promptRef": {"name": prompt_name}, "backendRef": {"name": backend_name},
        "policyRef": {"name": policy_name}, **fields}}


def client_key(name: str = "users", key: str = KEY, namespace: str = "serinus-system", **fields) -> dict:
    return {"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace,
                         "labels": {"serinus.dev/client-key": "true"}},
            "stringData": {"key": key, "routes": "*", **fields}}


def unreadable() -> list[dict]:
    """Evidence that the API server takes and Serinus can not read: it is nested too deep."""
    counts = {"assigned": 0}
    return [{"instance": OF_A_TEST, "stable": {**counts, "z": deep()}, "canary": counts}]


def deep() -> list:
    return json.loads("[" * 140 + "]" * 140)
