"""The OpenAI API of the whole engine, started as a user starts it: ``semipd-engine serve`` with a real model."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from tests.engine.model_driver import random_prompt
from tests.engine.served import Served, serve
from tests.unit.server.test_fuzz import Answers, send_mutated

from e2e.lib import models
from e2e.lib.reference import reference
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.kernels import choose
from semipd_engine.server.admission import ENDPOINT_LAG_SECONDS

pytestmark = pytest.mark.engine

VOCABULARY = 1000
"""Random prompts draw from the first so many ids."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("run"), models.random_model("llama"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """An engine that the test may kill. A busy machine takes longer for a stream than it may at its end by default."""
    yield from serve(tmp_path / "run", models.random_model("llama"), "--drain-seconds", str(PATIENCE_S))


def test_tokens_and_logprobs_are_those_of_transformers(served: Served) -> None:
    """Plain and streamed, sixteen at a time."""
    prompts = [random_prompt(length, VOCABULARY, length) for length in (1, 2, 15, 16, 17, 40, 300, 64)]
    fields = {"max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
    with ThreadPoolExecutor(16) as pool:
        plain = [pool.submit(served.complete, prompt, **fields) for prompt in prompts]
        streamed = [pool.submit(served.stream, prompt, **fields) for prompt in prompts]
        for prompt, whole, chunks in zip(prompts, plain, streamed, strict=True):
            tokens, scores = reference(served.model).greedy(prompt, 24)
            choice = whole.result()["choices"][0]
            parts = [chunk["choices"][0] for chunk in chunks.result()]
            assert choice["token_ids"] == tokens, len(prompt)
            assert [token for part in parts for token in part["token_ids"]] == tokens, len(prompt)
            assert "".join(part["text"] for part in parts) == choice["text"]
            worst = max(abs(a - b) for a, b in zip(choice["logprobs"]["token_logprobs"], scores, strict=True))
            assert worst < 1e-4
            assert choice["finish_reason"] == parts[-1]["finish_reason"] == "length"


def test_a_seed_repeats_and_choices_differ(served: Served) -> None:
    fields = {"max_tokens": 16, "temperature": 1, "seed": 7, "n": 3, "return_token_ids": True}
    first, second = (served.complete("The king", **fields)["choices"] for _ in range(2))
    ids = [choice["token_ids"] for choice in first]
    assert ids == [choice["token_ids"] for choice in second]
    assert len({tuple(tokens) for tokens in ids}) == 3
    # Choice i of seed s is choice 0 of seed s + i.
    assert served.complete("The king", **fields | {"seed": 8, "n": 1})["choices"][0]["token_ids"] == ids[1]
    assert served.complete("The king", **fields | {"seed": 99, "n": 1})["choices"][0]["token_ids"] not in ids


def test_stop_string_and_stop_id_end_the_real_answer(served: Served) -> None:
    fields = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
    whole = served.complete("The king", max_tokens=40, **fields)["choices"][0]
    stop = whole["text"][12:16]
    cut = served.complete("The king", max_tokens=40, stop=stop, **fields)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole["text"][: whole["text"].index(stop)], "stop")
    token = whole["token_ids"][5]
    by_id = served.complete("The king", max_tokens=40, stop_token_ids=[token], **fields)["choices"][0]
    assert by_id["token_ids"] == whole["token_ids"][: whole["token_ids"].index(token) + 1]
    assert (by_id["finish_reason"], by_id["stop_reason"]) == ("stop", token)
    wait_until(served.idle)


def test_a_client_that_leaves_frees_its_blocks(served: Served) -> None:
    for stream in (True, False):
        with pytest.raises(httpx.ReadTimeout):
            body = {"prompt": "The king", "max_tokens": 1500, "ignore_eos": True, "stream": stream, "n": 2}
            with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=0.5) as response:
                next(response.iter_bytes())
                raise httpx.ReadTimeout("left")
        wait_until(served.idle)


def test_a_repeated_prompt_comes_from_the_cache(served: Served) -> None:
    prompt = random_prompt(200, VOCABULARY, 99)
    cold, warm = (served.complete(prompt, max_tokens=4, temperature=0) for _ in range(2))
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] >= 150
    assert cold["choices"][0]["text"] == warm["choices"][0]["text"]
    wait_until(lambda: served.gauge("vllm:prefix_cache_hits_total") >= 150)


def stays_exact(served: Served, bodies: int) -> Answers:
    """Send so many mutated bodies: none may fail, and the same processes answer as before them, bit for bit, behind a
    cached prefix, too: compiled kernels promise that, and their twins do not."""
    assert choose("cpu").name != "reference", "no compiled kernels, or of older sources: `make venv`"
    prompts = [random_prompt(length, VOCABULARY, length) for length in (1, 17, 200)]
    asked: list[tuple[Any, dict[str, Any]]] = [(prompt, {"temperature": 0}) for prompt in prompts]
    asked += [("The king", {"seed": 7, "n": 3}), ("The king", {"seed": 8, "guided_regex": "[a-z]{9}"})]
    fields = {"max_tokens": 24, "logprobs": 5, "return_token_ids": True}

    def answers() -> list[Any]:
        return [served.complete(prompt, **fields, **more)["choices"] for prompt, more in asked]

    before, alive = answers(), served.processes()
    found = send_mutated(served.client, bodies)
    assert served.processes() == alive
    assert answers() == before
    wait_until(served.idle)
    return found


def test_after_mutated_bodies_the_engine_is_exact(served: Served) -> None:
    assert len(stays_exact(served, 120).statuses) > 1


def test_openai_client_chats(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "seed": 3}
        plain = client.chat.completions.create(model=served.model.name, **fields)
        stream = client.chat.completions.create(model=served.model.name, stream=True, **fields)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert plain.choices[0].message.content == text


@pytest.mark.parametrize("length", [2, 17, 300])
def test_prompt_logprobs_are_those_of_transformers(served: Served, length: int) -> None:
    """In chunks, again when the prefix is cached, and beside a prompt that shares it."""
    prompt = random_prompt(length, VOCABULARY, 7 * length)
    served.complete(prompt, max_tokens=1)
    scores = reference(served.model).score(prompt)
    for _ in range(2):
        fields = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        (whole, part) = served.complete([prompt, prompt[: length // 2 + 1]], **fields)["choices"]
        for choice, count in ((whole, length), (part, length // 2 + 1)):
            first, *rest = choice["logprobs"]["token_logprobs"]
            assert first is None and len(rest) == count
            assert max(abs(a - b) for a, b in zip(rest[:-1], scores[: count - 1], strict=True)) < 1e-4
    shown = served.complete(prompt, prompt_logprobs=2, max_tokens=1)["choices"][0]["prompt_logprobs"]
    for token, score, entry in zip(prompt[1:], scores, shown[1:], strict=True):
        assert abs(entry[str(token)]["logprob"] - score) < 1e-4
        better = [each for each in entry.values() if each["logprob"] > entry[str(token)]["logprob"]]
        assert entry[str(token)]["rank"] == len(better) + 1 if len(better) < 2 else entry[str(token)]["rank"] > 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_of_the_models_length_is_scored_as_by_transformers(served: Served, stream: bool) -> None:
    """As lm-eval's rolling windows are; a token more is refused."""
    length = served.client.get("/v1/models").json()["data"][0]["max_model_len"]
    prompt = random_prompt(length, VOCABULARY, 3)
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
    if stream:
        (choice,) = (chunk["choices"][0] for chunk in served.stream(prompt, **fields))
    else:
        answer = served.complete(prompt, prompt_logprobs=0, **fields)
        choice, shown = answer["choices"][0], answer["choices"][0]["prompt_logprobs"]
        assert answer["usage"]["prompt_tokens"] == len(shown) == length and answer["usage"]["completion_tokens"] == 0
    scores, (first, *found) = reference(served.model).score(prompt), choice["logprobs"]["token_logprobs"]
    assert first is None and choice["finish_reason"] == "length"
    assert max(abs(a - b) for a, b in zip(found, scores, strict=True)) < 1e-4
    for more in (fields | {"prompt": [*prompt, 7]}, fields | {"prompt": prompt, "max_tokens": 1}):
        refused = served.client.post("/v1/completions", json=more | {"stream": stream})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["code"]) == (400, "prompt", "context_length_exceeded")
    wait_until(served.idle)


class Place(pydantic.BaseModel):
    """Bounded in all its parts, so that random weights come to an end."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: Literal["Paris", "Rome"]
    open: bool
    floors: list[Literal[1, 2, 3]] = pydantic.Field(min_length=1, max_length=3)


TOOL: Any = openai.pydantic_function_tool(Place, name="visit")
ASKS: list[Any] = [{"role": "user", "content": "Where to?"}]


def test_openai_client_parses(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        chat = client.chat.completions
        for seed in range(3):
            parsed = chat.parse(
                model=served.model.name, messages=ASKS, response_format=Place, max_tokens=200, seed=seed
            )
            assert isinstance(parsed.choices[0].message.parsed, Place)
        named: Any = {"type": "function", "function": {"name": "visit"}}
        for choice, reason in (("required", "tool_calls"), (named, "stop")):
            fields: dict[str, Any] = {"messages": ASKS, "tools": [TOOL], "tool_choice": choice, "max_tokens": 400}
            fields |= {"seed": 5, "parallel_tool_calls": False}
            whole = chat.parse(model=served.model.name, **fields).choices[0]
            (call,) = whole.message.tool_calls or []
            assert isinstance(call.function.parsed_arguments, Place) and whole.finish_reason == reason
            with chat.stream(model=served.model.name, **fields) as stream:
                final = stream.get_final_completion().choices[0]
            (streamed,) = final.message.tool_calls or []
            assert streamed.function.arguments == call.function.arguments and final.finish_reason == reason


def test_langchain_calls_and_parses(served: Served) -> None:
    from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    fields: dict[str, Any] = {"model": served.model.name, "max_tokens": 300, "seed": 5, "stream_usage": True}
    model = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, **fields)
    methods: list[Literal["json_schema", "function_calling"]] = ["json_schema", "function_calling"]
    for method in methods:
        assert isinstance(model.with_structured_output(Place, method=method).invoke("Where to?"), Place)
        raw = model.with_structured_output(Place.model_json_schema(), method=method).invoke("Where to?")
        assert Place.model_validate(raw)
    forced = model.bind_tools([Place], tool_choice="required", parallel_tool_calls=False)
    whole = forced.invoke("Where to?")
    (call,) = whole.tool_calls
    assert call["name"] == "Place" and Place.model_validate(call["args"])
    streamed: Any = AIMessageChunk("")
    for chunk in forced.stream("Where to?"):
        streamed += chunk
    assert [each["args"] for each in streamed.tool_calls] == [call["args"]]
    for each in (whole, streamed):
        assert each.usage_metadata and each.usage_metadata["output_tokens"] > 0
    history = [HumanMessage("Where to?"), whole, ToolMessage("closed", tool_call_id=call["id"])]
    free = model.bind_tools([Place]).invoke(history, max_tokens=20)
    assert free.response_metadata["finish_reason"] in ("length", "stop")


def test_a_killed_core_is_an_error_to_all_and_serves_again(own: Served) -> None:
    body = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}
    with ThreadPoolExecutor(8) as pool:
        plain = [pool.submit(own.client.post, "/v1/completions", json={"prompt": "The king"} | body) for _ in range(4)]
        streams = [
            pool.submit(own.client.post, "/v1/completions", json={"prompt": "A queen", "stream": True} | body)
            for _ in range(4)
        ]
        wait_until(lambda: own.gauge("vllm:num_requests_running") == 8)
        own.child("semipd: core").kill()
        answers, texts = [future.result() for future in plain], [future.result().text for future in streams]
    assert {answer.status_code for answer in answers} == {503}
    assert all("engine_restarted" in text.rstrip().rpartition("\n")[2] for text in texts)
    seen: list[int] = []

    def served_again() -> bool:
        answer = own.client.post("/v1/completions", json={"prompt": "The king", "max_tokens": 4})
        seen.append(answer.status_code)
        return answer.status_code == 200

    wait_until(served_again, describe=lambda: seen)
    assert set(seen) <= {200, 503}


def test_a_stopped_core_is_an_error_and_serves_again_when_it_goes_on(own: Served) -> None:
    core = own.child("semipd: core")
    body = {"prompt": "The king", "max_tokens": 1500, "ignore_eos": True}
    with ThreadPoolExecutor(2) as pool:
        plain, stream = (
            pool.submit(own.client.post, "/v1/completions", json=body | {"stream": s}) for s in (False, True)
        )
        wait_until(lambda: own.gauge("vllm:num_requests_running") == 2)
        core.suspend()
        try:
            assert (plain.result(PATIENCE_S).status_code, plain.result().json()["error"]["code"]) == (
                503,
                "engine_restarted",
            )
            assert "engine_restarted" in stream.result(PATIENCE_S).text.rstrip().rpartition("\n")[2]
            assert own.client.get("/ready").status_code == 503
        finally:
            core.resume()
    wait_until(lambda: own.client.get("/ready").status_code == 200)
    wait_until(own.idle)  # core has forgotten what its lost clients wanted
    assert own.complete("The king", max_tokens=4)["choices"] and own.child("semipd: core").pid == core.pid


def test_a_killed_api_comes_back_and_core_forgets_its_requests(own: Served, tmp_path: Path) -> None:
    port = tmp_path / "run" / "api.port"
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "The king", "max_tokens": 1500, "ignore_eos": True}
        lost = pool.submit(own.client.post, "/v1/completions", json=body)
        wait_until(lambda: own.gauge("vllm:num_requests_running") == 1)
        port.unlink()
        own.child("semipd: api").kill()
        with pytest.raises(httpx.TransportError):
            lost.result()
    wait_until(port.exists)
    own.client = httpx.Client(base_url=f"http://127.0.0.1:{int(port.read_text())}", timeout=60)
    wait_until(lambda: own.client.get("/ready").status_code == 200)
    wait_until(own.idle)
    assert own.complete("The king", max_tokens=4)["choices"]


def test_sigterm_lets_a_running_stream_finish(own: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(own.stream, "The king", max_tokens=1200, ignore_eos=True, return_token_ids=True)
        wait_until(lambda: own.gauge("vllm:num_requests_running") == 1)
        asked = time.monotonic()
        own.process.send_signal(signal.SIGTERM)
        wait_until(lambda: own.client.get("/ready").status_code == 503)
        late = own.client.post("/v1/completions", json={"prompt": "A queen", "max_tokens": 2})
        assert late.status_code == 200 or time.monotonic() - asked > ENDPOINT_LAG_SECONDS, late.text
        assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in stream.result()) == 1200
    assert own.process.wait(PATIENCE_S) == 0
