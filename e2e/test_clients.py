"""Applications' clients as they are: the official ones for Python and Node, and LangChain.

A case asks the simulated model for what it needs by a marker in its own message, under a
tag of its own; the model tells what it was asked under that tag, and who went away."""

import asyncio
import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Literal

import httpx
import openai
import pytest
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI, OpenAIEmbeddings
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from harness import manifests as m
from harness.processes import wait_for
from harness.serinus import Model
from test_standalone import Standalone

FOLDER = Path(__file__).parent
QUESTION = {"serinus": {"variables": {"question": "Why?"}}}
WEATHER = {"name": "weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_numbers = itertools.count()


class Here:
    """A standalone process in front of a simulated model."""

    def __init__(self, folder):
        self.model, self.standalone = Model(folder).start(), Standalone(folder)
        self.model.behave(firstTokenMs=2, tokenMs=1, tokens=5)
        own = m.backend("own", self.model.url)
        # Who is to retry here is the client.
        own["spec"]["limits"]["retries"] = 0
        hasty = m.backend("hasty", self.model.url)
        hasty["spec"]["limits"] |= {"timeout": "500ms", "firstTokenTimeout": "200ms", "retries": 0}
        plain = m.prompt("plain-v1")
        plain["spec"] = {"prompt": "plain", "messages": [{"role": "system", "content": "Be kind."}]}
        self.standalone.apply("all", own, hasty, m.policy("quick"), plain, m.prompt("asks-v1"),
                              m.release("plain", "plain-v1", "own"),
                              m.release("hasty", "plain-v1", "hasty"),
                              m.release("asks", "asks-v1", "own"),
                              m.release("nested", "plain-v1", "own", route="team/plain"))
        self.standalone.start()
        self.url = f"{self.standalone.url}/v1"
        wait_for("the routes", lambda: len(self.client().models.list().data) == 4)

    def options(self, **options) -> dict:
        return {"base_url": self.url, "api_key": m.KEY, "max_retries": 0, "timeout": 20} | options

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(**self.options(**options))

    def of_model(self, path: str) -> httpx.Response:
        return httpx.get(self.model.url.replace("/v1", f"/control/{path}")).raise_for_status()

    def stats(self, tag: str) -> dict:
        return self.of_model("stats").json().get(tag, {"requests": 0, "aborted": 0})

    def sent(self, tag: str) -> str:
        """The last body of a tag, as it reached the model."""
        return self.of_model(f"last/{tag}").text

    def count(self, name: str, **labels) -> float:
        text = httpx.get(f"http://127.0.0.1:{self.standalone.admin}/metrics").text
        text = "\n".join(line.split(" # ")[0] for line in text.splitlines() if line != "# EOF")
        return sum(s.value for family in text_string_to_metric_families(text) for s in family.samples
                   if s.name == name and labels.items() <= s.labels.items())

    def requests(self, route: str = "plain", **labels) -> float:
        return self.count("serinus_gateway_requests_total", release=f"default/{route}", **labels)

    def tokens(self, kind: str, route: str = "plain") -> float:
        return self.count("serinus_gateway_tokens_total", release=f"default/{route}", kind=kind)

    def stop(self) -> None:
        self.standalone.process.stop()
        self.model.process.stop()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    here = Here(tmp_path_factory.mktemp("clients"))
    yield here
    here.stop()


def marked(**behaviour) -> tuple[str, str]:
    """A tag, and a text that makes the model behave."""
    tag = f"case-{next(_numbers)}"
    pairs = " ".join(f"{k}={v}" for k, v in ({"tag": tag} | behaviour).items())
    return tag, f"[[sim:{pairs}]] Why?"


def user(text) -> list[dict]:
    return [{"role": "user", "content": text}]


class Answer(BaseModel):
    answer: str


class Step(BaseModel):
    number: int
    mood: Literal["calm", "wild"]


class Plan(BaseModel):
    title: str
    steps: list[Step]


# Chat


def test_chat_as_json_and_as_a_stream_say_the_same(here):
    chat = here.client().chat.completions
    whole = chat.create(model="plain", messages=user("Why?"))
    pieces = list(chat.create(model="plain", messages=user("Why?"), stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 5


def test_every_answer_tells_its_ids(here):
    raw = here.client().chat.completions.with_raw_response
    for stream in (False, True):
        answer = raw.create(model="plain", messages=user("Why?"), stream=stream)
        assert answer.headers["x-serinus-request-id"] and answer.headers["x-serinus-revision"]
        assert answer.headers["x-request-id"].startswith("req_simulated")
    assert here.client().chat.completions.create(model="plain", messages=[])._request_id


def test_usage_is_counted_of_every_stream_and_shown_to_those_who_asked(here):
    chat = here.client().chat.completions
    before = here.tokens("output")
    tag, text = marked()
    silent = list(chat.create(model="plain", messages=user(text), stream=True))
    assert json.loads(here.sent(tag))["stream_options"] == {"include_usage": True}
    assert all(p.choices for p in silent) and not any(p.usage for p in silent)
    asked = list(chat.create(model="plain", messages=user(text), stream=True,
                             stream_options={"include_usage": True}))
    assert asked[-1].choices == [] and asked[-1].usage.completion_tokens == 5
    assert len(asked) == len(silent) + 1
    wait_for("both are counted", lambda: here.tokens("output") == before + 10)


def test_tools_are_called_in_json_and_in_streams(here):
    chat = here.client().chat.completions
    tag, text = marked(toolCalls=2)
    tools = [{"type": "function", "function": WEATHER}, {"type": "function", "function": WEATHER | {"name": "tides"}}]
    whole = chat.create(model="plain", messages=user(text), tools=tools)
    assert whole.choices[0].finish_reason == "tool_calls"
    calls = whole.choices[0].message.tool_calls
    assert [c.function.name for c in calls] == ["weather", "tides"]
    assert "city" in json.loads(calls[0].function.arguments)
    assert json.loads(here.sent(tag))["tools"] == tools
    with chat.stream(model="plain", messages=user(text), tools=tools) as stream:
        final = stream.get_final_completion()
    assert [c.function.arguments for c in final.choices[0].message.tool_calls] == [
        c.function.arguments for c in calls]
    results = [{"role": "tool", "tool_call_id": c.id, "content": "12 °C"} for c in calls]
    after = chat.create(model="plain", tools=tools,
                        messages=[*user(text), whole.choices[0].message.to_dict(), *results])
    assert after.choices[0].finish_reason == "stop"


def test_structured_outputs_are_parsed(here):
    chat = here.client().chat.completions
    plan = chat.parse(model="plain", messages=user("Plan."), response_format=Plan).choices[0].message.parsed
    assert plan.steps[0].mood == "calm"
    with chat.stream(model="plain", messages=user("Plan."), response_format=Plan) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.parsed == plan
    assert {"content.delta", "content.done"} <= kinds
    # The schema of the release's prompt replaces the application's.
    asks = chat.parse(model="asks", messages=[], response_format=Answer, extra_body=QUESTION)
    assert asks.choices[0].message.parsed.answer.startswith("seed")


def test_parts_of_a_message_reach_the_model_unchanged(here):
    tag, text = marked()
    parts = [{"type": "text", "text": text},
             {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
             {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
             {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}}]
    here.client().chat.completions.create(model="plain", messages=user(parts))
    assert json.dumps(parts, separators=(",", ":"), ensure_ascii=False) in here.sent(tag)


def test_several_choices_and_log_probabilities(here):
    chat = here.client().chat.completions
    asked = {"model": "plain", "messages": user("Why?"), "n": 2, "logprobs": True, "top_logprobs": 3}
    whole = chat.create(**asked)
    assert [c.index for c in whole.choices] == [0, 1]
    assert len(whole.choices[1].logprobs.content[0].top_logprobs) == 3
    said = {0: "", 1: ""}
    for piece in chat.create(**asked, stream=True):
        for choice in piece.choices:
            said[choice.index] += choice.delta.content or ""
            if choice.delta.content:
                assert len(choice.logprobs.content[0].top_logprobs) == 3
    assert said == {c.index: c.message.content for c in whole.choices}


def test_unknown_fields_reach_the_model_byte_for_byte(here):
    tag, text = marked()
    fields = ('"zeta":1e2', '"big": 123456789012345678901234567890', '"tiny":-0.0',
              '"text":"\\u00e9\\ud83d\\ude00\\/ é"', '"nested": {"b": [ 1 , 2.50 ], "a": {}}')
    body = f'{{{", ".join(fields)}, "model":"plain","messages":[{{"role":"user","content":"{text}","x": 1E+2}}]}}'
    answer = httpx.post(f"{here.url}/chat/completions", content=body.encode(),
                        headers={"authorization": f"Bearer {m.KEY}", "content-type": "application/json"})
    assert answer.status_code == 200
    sent = here.sent(tag)
    for field in fields:
        name, value = field.split(":", 1)
        assert f"{name}:{value.strip()}" in sent
    names = list(json.loads(sent))
    assert names[:5] == ["zeta", "big", "tiny", "text", "nested"], "in the order in which they came"
    assert f'{{"role":"user","content":"{text}","x": 1E+2}}' in sent
    tag, text = marked()
    here.client().chat.completions.create(model="plain", messages=user(text), extra_body={
        "vendor": {"big": 2**70, "é": None}}, extra_headers={"OpenAI-Beta": "x=1"})
    assert '"vendor":{"big":1180591620717411303424,"é":null}' in here.sent(tag)


# The other operations


def test_completions(here):
    completions = here.client().completions
    tag, text = marked()
    whole = completions.create(model="plain", prompt=text, logprobs=1)
    assert whole.choices[0].text and whole.usage.completion_tokens == 5
    assert len(whole.choices[0].logprobs.tokens) == 5
    assert json.loads(here.sent(tag))["prompt"] == f"Be kind.\n\n{text}"
    pieces = list(completions.create(model="plain", prompt=text, stream=True))
    assert "".join(c.text for p in pieces for c in p.choices) == whole.choices[0].text
    assert all(p.choices for p in pieces)
    assert len(completions.create(model="plain", prompt=["a", "b"], n=2).choices) == 4


def test_embeddings_as_numbers_and_as_base64(here):
    embeddings = here.client().embeddings
    tag, text = marked()
    numbers = embeddings.create(model="plain", input=[text, "b"], encoding_format="float", dimensions=4)
    # Base64 is what the client asks for by itself, and decodes.
    coded = embeddings.create(model="plain", input=[text, "b"], dimensions=4)
    assert json.loads(here.sent(tag))["encoding_format"] == "base64"
    assert [e.embedding for e in coded.data] == [e.embedding for e in numbers.data]
    raw = embeddings.create(model="plain", input="b", encoding_format="base64")
    assert isinstance(raw.data[0].embedding, str)
    assert numbers.usage.prompt_tokens > 0
    assert len(embeddings.create(model="plain", input=[[1, 2], [3]]).data) == 2


def test_responses_as_json_and_as_a_stream(here):
    responses = here.client().responses
    tag, text = marked()
    whole = responses.create(model="plain", input=text, instructions="Be brief.")
    assert whole.status == "completed" and whole.output_text and whole.usage.output_tokens == 5
    sent = json.loads(here.sent(tag))
    assert sent["input"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
    assert sent["instructions"] == "Be brief." and "stream_options" not in sent
    before = here.tokens("output")
    events = list(responses.create(model="plain", input=text, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    with responses.stream(model="plain", input=text) as stream:
        assert stream.until_done().get_final_response().output_text == whole.output_text
    wait_for("both are counted", lambda: here.tokens("output") == before + 10)


def test_responses_with_tools_and_schemas(here):
    responses = here.client().responses
    _, text = marked(toolCalls=1)
    tools = [{"type": "function", **WEATHER}]
    call = responses.create(model="plain", input=text, tools=tools).output[0]
    assert (call.type, call.name) == ("function_call", "weather")
    with responses.stream(model="plain", input=text, tools=tools) as stream:
        assert stream.until_done().get_final_response().output[0].arguments == call.arguments
    parsed = responses.parse(model="plain", input="Plan.", text_format=Plan)
    assert parsed.output_parsed.steps[0].number == 7


def test_models_are_listed_and_retrieved(here):
    models = here.client().models
    assert [model.id for model in models.list()] == ["asks", "hasty", "plain", "team/plain"]
    for name in ("plain", "team/plain"):
        assert models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        models.retrieve("nobody")
    answer = here.client().chat.completions.create(model="team/plain", messages=[])
    assert answer.choices[0].message.content


# Errors


def test_mistakes_are_told_by_the_gateway(here):
    create = here.client().chat.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="asks", messages=[])
    assert (caught.value.code, caught.value.type) == ("invalid_variables", "invalid_request_error")
    assert "question" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        create(model="nobody", messages=[])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        here.client(api_key="wrong").chat.completions.create(model="plain", messages=[])
    with pytest.raises(openai.NotFoundError, match="/v1/responses"):
        here.client().images.generate(model="plain", prompt="a pan")


@pytest.mark.parametrize("status, error, outcome", [
    (400, openai.BadRequestError, "client_error"),
    (403, openai.PermissionDeniedError, "client_error"),
    (404, openai.NotFoundError, "client_error"),
    (409, openai.ConflictError, "client_error"),
    (422, openai.UnprocessableEntityError, "client_error"),
    (429, openai.RateLimitError, "error"),
    (500, openai.InternalServerError, "error"),
    (503, openai.InternalServerError, "error"),
])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_what_the_model_answers_is_raised_as_without_a_gateway(here, status, error, outcome, stream):
    before = here.requests(outcome=outcome)
    _, text = marked(status=status, retryAfterMs=1234)
    with pytest.raises(error) as caught:
        here.client().chat.completions.create(model="plain", messages=user(text), stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, "simulated")
    assert caught.value.request_id.startswith("req_simulated")
    assert caught.value.response.headers["retry-after-ms"] == "1234"
    assert here.requests(outcome=outcome) == before + 1


def test_a_key_of_the_gateway_that_the_model_refuses_is_not_the_applications_fault(here):
    """An application that sees 401 would look at its own key."""
    before = here.requests(outcome="error")
    for status in (401, 402):
        _, text = marked(status=status)
        with pytest.raises(openai.InternalServerError) as caught:
            here.client().chat.completions.create(model="plain", messages=user(text))
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_unauthorized")
    assert here.requests(outcome="error") == before + 2


def test_retries_of_the_client_are_requests_of_their_own(here):
    before = {outcome: here.requests(outcome=outcome) for outcome in ("ok", "error")}
    tag, text = marked(status=429, failFirst=2, retryAfterMs=10)
    answer = here.client(max_retries=2).chat.completions.with_raw_response.create(
        model="plain", messages=user(text))
    assert answer.retries_taken == 2 and answer.parse().choices[0].message.content
    assert here.stats(tag)["requests"] == 3
    assert {o: here.requests(outcome=o) - n for o, n in before.items()} == {"ok": 1, "error": 2}
    tag, text = marked(status=400)
    with pytest.raises(openai.BadRequestError):
        here.client(max_retries=2).chat.completions.create(model="plain", messages=user(text))
    assert here.stats(tag)["requests"] == 1, "a mistake is not repeated"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_client_that_has_waited_long_enough_is_a_cancelled_request(here, stream):
    before = here.requests(outcome="cancelled")
    tag, text = marked(firstTokenMs=60000)
    with pytest.raises(openai.APITimeoutError):
        here.client(timeout=0.3).chat.completions.create(model="plain", messages=user(text), stream=stream)
    wait_for("the model hears of it", lambda: here.stats(tag)["aborted"] == 1)
    wait_for("the gateway counts it", lambda: here.requests(outcome="cancelled") == before + 1)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_model_that_is_too_slow_for_the_gateway_is_an_error_504(here, stream):
    tag, text = marked(firstTokenMs=60000)
    with pytest.raises(openai.InternalServerError) as caught:
        here.client().chat.completions.create(model="hasty", messages=user(text), stream=stream)
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    wait_for("the model hears of it", lambda: here.stats(tag)["aborted"] == 1)


@pytest.mark.parametrize("behaviour, code", [
    ({"breakRate": 1}, "upstream_broken"), ({"streamErrorRate": 1}, "simulated")], ids=["broken", "told"])
@pytest.mark.parametrize("operation", ["chat", "completions", "responses"])
def test_a_stream_that_fails_raises_an_error_in_the_middle(here, operation, behaviour, code):
    client = here.client()
    _, text = marked(**behaviour)
    before = here.requests(outcome="error")
    stream = {
        "chat": lambda: client.chat.completions.create(model="plain", messages=user(text), stream=True),
        "completions": lambda: client.completions.create(model="plain", prompt=text, stream=True),
        "responses": lambda: client.responses.create(model="plain", input=text, stream=True),
    }[operation]()
    pieces = []
    try:
        for piece in stream:
            pieces.append(piece)
        # The Responses API tells errors of the model by an event, which is no exception.
        assert pieces[-1].type == "error" and pieces[-1].code == code
    except openai.APIError as error:
        assert error.code == code
    assert len(pieces) > 1
    wait_for("the gateway counts it", lambda: here.requests(outcome="error") == before + 1)


# Cancelling


def cancelled(here, tag: str, before: tuple[float, float], at_least: int) -> None:
    """The model was told, and what it had said until then was counted."""
    requests, tokens = before
    wait_for("the model hears of it", lambda: here.stats(tag)["aborted"] == 1)
    wait_for("the gateway counts it", lambda: here.requests(outcome="cancelled") == requests + 1)
    assert at_least <= here.tokens("output") - tokens < 1000


def counts(here) -> tuple[float, float]:
    return here.requests(outcome="cancelled"), here.tokens("output")


@pytest.mark.parametrize("operation", ["chat", "completions", "responses"])
def test_closing_a_stream_stops_the_model_and_counts_what_it_has_said(here, operation):
    client, before = here.client(), counts(here)
    tag, text = marked(tokens=1000, tokenMs=20)
    if operation == "responses":
        stream = client.responses.create(model="plain", input=text, stream=True)
    elif operation == "chat":
        stream = client.chat.completions.create(model="plain", messages=user(text), stream=True)
    else:
        stream = client.completions.create(model="plain", prompt=text, stream=True)
    for _ in range(9):
        next(stream)
    stream.close()
    # The first events of responses carry no content.
    cancelled(here, tag, before, 5)


def test_a_task_that_is_cancelled_stops_the_model(here):
    before = counts(here)
    tag, text = marked(tokens=1000, tokenMs=20)

    async def ask():
        async with openai.AsyncOpenAI(**here.options()) as client:
            stream = await client.chat.completions.create(model="plain", messages=user(text), stream=True)
            seen = 0
            async for _ in stream:
                seen += 1
                if seen == 6:
                    task.cancel()

    async def run():
        nonlocal task
        task = asyncio.create_task(ask())
        with pytest.raises(asyncio.CancelledError):
            await task

    task = None
    asyncio.run(run())
    cancelled(here, tag, before, 5)


# Other clients


def test_azures_client_needs_another_endpoint_only(here):
    client = openai.AzureOpenAI(azure_endpoint=here.standalone.url, api_version="2024-10-21",
                                api_key=m.KEY, max_retries=0, timeout=20)
    assert client.chat.completions.create(model="plain", messages=[]).choices[0].message.content
    assert len(client.embeddings.create(model="team/plain", input="a").data) == 1
    assert client.responses.create(model="plain", input="Why?").output_text
    assert len(client.models.list().data) == 4
    langchain = AzureChatOpenAI(azure_endpoint=here.standalone.url, api_version="2024-10-21",
                                azure_deployment="plain", api_key=m.KEY)
    assert "".join(piece.content for piece in langchain.stream("Why?"))


def chat_openai(here, model="plain", **options) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=here.url, api_key=m.KEY, timeout=20,
                      **({"max_retries": 0} | options))


def test_langchain_invokes_streams_and_batches(here):
    llm = chat_openai(here)
    whole = llm.invoke("Why?")
    assert whole.content and whole.usage_metadata["output_tokens"] == 5
    assert "".join(piece.content for piece in llm.stream("Why?")) == whole.content
    with_usage = [p.usage_metadata for p in llm.stream("Why?", stream_usage=True) if p.usage_metadata]
    assert with_usage[-1]["output_tokens"] == 5
    assert [a.content for a in llm.batch(["Why?"] * 3)] == [whole.content] * 3

    async def several():
        answers = await asyncio.gather(*(llm.ainvoke("Why?") for _ in range(3)))
        pieces = [piece.content async for piece in llm.astream("Why?")]
        return [a.content for a in answers] + ["".join(pieces)]

    assert asyncio.run(several()) == [whole.content] * 4


def test_langchain_sends_the_variables_of_the_prompt(here):
    llm = chat_openai(here, "asks", extra_body=QUESTION, include_response_headers=True)
    answer = llm.invoke([])
    assert json.loads(answer.content)["answer"]
    assert answer.response_metadata["headers"]["x-serinus-revision"]


def test_langchain_calls_tools_and_parses(here):
    @tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    _, text = marked(toolCalls=1)
    llm = chat_openai(here).bind_tools([weather])
    for answer in (llm.invoke(text), sum_of(llm.stream(text))):
        assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("weather", {"city": "seed"})]
    for method in ("json_schema", "function_calling"):
        plan = chat_openai(here).with_structured_output(Plan, method=method).invoke("Plan.")
        assert plan.steps[0].number == 7, method


def sum_of(pieces):
    total = None
    for piece in pieces:
        total = piece if total is None else total + piece
    return total


def test_langchain_uses_responses_and_embeddings(here):
    llm = chat_openai(here, use_responses_api=True)
    whole = llm.invoke("Why?")
    assert whole.text and sum_of(llm.stream("Why?")).text == whole.text
    # Token ids of OpenAI's own models mean nothing to others.
    embeddings = OpenAIEmbeddings(model="plain", base_url=here.url, api_key=m.KEY,
                                  check_embedding_ctx_length=False, dimensions=4)
    assert [len(v) for v in embeddings.embed_documents(["a", "b"])] == [4, 4]


def test_langchain_retries_and_raises(here):
    tag, text = marked(status=503, failFirst=1, retryAfterMs=10)
    assert chat_openai(here, max_retries=1).invoke(text).content
    assert here.stats(tag)["requests"] == 2
    _, text = marked(status=429)
    with pytest.raises(openai.RateLimitError):
        chat_openai(here).invoke(text)
    before = counts(here)
    tag, text = marked(tokens=1000, tokenMs=20)
    for i, _ in enumerate(stream := chat_openai(here).stream(text)):
        if i == 6:
            break
    stream.close()
    cancelled(here, tag, before, 5)


def test_the_client_for_node_does_it_all(here):
    """What the script found out is compared here; it only asks."""
    before = counts(here)
    tags = {name: marked(**behaviour) for name, behaviour in {
        "tools": {"toolCalls": 1}, "retries": {"status": 429, "failFirst": 1, "retryAfterMs": 10},
        "limited": {"status": 429, "retryAfterMs": 10}, "slow": {"firstTokenMs": 60000},
        "broken": {"breakRate": 1}, "cancelled": {"tokens": 1000, "tokenMs": 20}}.items()}
    given = {"baseURL": here.url, "apiKey": m.KEY, "weather": WEATHER, "schema": Plan.model_json_schema(),
             "texts": {name: text for name, (_, text) in tags.items()}}
    clients = Path(os.environ["SERINUS_CLIENTS"])
    done = subprocess.run([os.environ.get("SERINUS_NODE", "node"), str(clients / "clients.mjs")],
                          input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    whole = here.client().chat.completions.create(model="plain", messages=user("Why?"))
    content = whole.choices[0].message.content
    assert found["chat"] == {"content": content, "tokens": 5, "requestId": True, "revision": True}
    assert found["stream"] == {"content": content, "finish": "stop", "withoutChoices": 0}
    assert found["usage"] == {"tokens": 5, "withoutChoices": 1}
    assert found["choices"] == 2
    assert found["tools"] == {"json": "weather", "stream": "weather"}
    assert Plan.model_validate_json(found["structured"])
    assert found["variables"].startswith("{")
    assert found["completions"] == {"json": content, "stream": content}
    assert found["embeddings"] == {"numbers": [4, 4], "same": True}
    assert found["responses"] == {"text": content, "streamed": content, "inOrder": True}
    assert found["models"] == {"list": ["asks", "hasty", "plain", "team/plain"], "one": "team/plain"}
    assert found["errors"] == {
        "invalid": ["BadRequestError", 400, "invalid_variables"],
        "unauthorized": ["AuthenticationError", 401, "invalid_api_key"],
        "unknown": ["NotFoundError", 404, "model_not_found"],
        "limited": ["RateLimitError", 429, "simulated"],
        "slow": ["APIConnectionTimeoutError", None, None],
        "broken": ["APIError", None, "upstream_broken"]}
    assert found["retried"] == content and here.stats(tags["retries"][0])["requests"] == 2
    wait_for("the model hears of it", lambda: here.stats(tags["slow"][0])["aborted"] == 1)
    assert found["cancelled"] >= 5
    wait_for("the model hears of it", lambda: here.stats(tags["cancelled"][0])["aborted"] == 1)
    wait_for("the gateway counts both", lambda: here.requests(outcome="cancelled") == before[0] + 2)
