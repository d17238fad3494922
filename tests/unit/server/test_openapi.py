"""What `/openapi.json` calls valid is served: seldom refused, never failed, with no status that it does not name."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.server.api_process import Api, StartApi
from tests.unit.server.schema_strategy import bodies
from tests.unit.server.test_completions import events, say
from tokenizers import Tokenizer

from e2e.lib.waiting import wait_until
from semipd_engine.server.errors import CODES, Code

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_valid_bodies_are_served(shared_api: Api, path: str) -> None:
    serves_what_it_documents(shared_api, path, 60)


def test_operations_have_names_of_their_own(shared_api: Api) -> None:
    paths = shared_api.client.get("/openapi.json").json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names)) > 10


def test_a_model_is_asked_for_by_its_name(shared_api: Api) -> None:
    (parameter,) = shared_api.client.get("/openapi.json").json()["paths"]["/v1/models/{name}"]["get"]["parameters"]
    (name,) = parameter["schema"]["enum"]
    assert shared_api.client.get(f"/v1/models/{name}").json()["id"] == name


def test_the_document_has_the_length_that_the_model_has_now(start_api: StartApi) -> None:
    """Whoever reads it while the model is loaded does not settle it."""
    api = start_api()
    for length in (100, 50):
        api.core.set_state(max_model_len=length)
        wait_until(lambda length=length: api.client.get("/v1/models").json()["data"][0]["max_model_len"] == length)
        fields = api.client.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"]
        assert fields["max_tokens"]["anyOf"][0]["maximum"] == length - 1
        assert f"≤ {length - 1}" in api.client.get("/docs").text


def is_as_documented(document: Any, operation: Any, response: httpx.Response) -> None:
    """Of a type that the document has, each field with a value that it allows, and none that it lacks."""
    content = operation["responses"][str(response.status_code)].get("content")
    if content is None:
        assert not response.content
        return
    told = content[response.headers["content-type"].partition(";")[0]]
    shown: list[Any] = []
    if schema := told.get("x-itemSchema"):
        schema = schema["properties"]["data"]["contentSchema"]
        shown = [event for event in events(response.text) if "error" not in event]
    elif (schema := told["schema"]) == {"type": "string"}:
        shown = [response.text]
    else:
        shown = [response.json()]
    validator = jsonschema.Draft202012Validator(schema | {"components": closed(document["components"])})
    for each in shown:
        validator.validate(each)
    assert shown


def closed(schema: Any) -> Any:
    """Objects may have no fields but those that are named: what is answered beyond them is not documented."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(each) for name, each in schema.items()}
    return found | {"additionalProperties": False} if isinstance(found.get("required"), list) else found


SMALL = [
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/ping",
    "/load",
    "/v1/models",
    "/v1/models/{name}",
    "/tokenizer_info",
]


@pytest.mark.parametrize("path", SMALL)
def test_small_answers_are_as_documented(shared_api: Api, path: str) -> None:
    document = shared_api.client.get("/openapi.json").json()
    (served,) = shared_api.client.get("/v1/models").json()["data"]
    response = shared_api.client.get(path.replace("{name}", served["id"]))
    is_as_documented(document, document["paths"][path]["get"], response)
    assert response.status_code == 200
    assert {path for path, told in document["paths"].items() if "get" in told} == set(SMALL)


ASKED: list[dict[str, Any]] = [
    {"prompt": ["The", "dog"], "n": 2, "logprobs": 3, "echo": True, "return_token_ids": True},
    {"prompt": "The", "prompt_logprobs": 2},
    {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    {"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 1, "n": 2},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9999},
    {"prompt": "x", "model": "another"},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f"}}], "tool_choice": "required"},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", ASKED)
def test_answers_are_as_documented(api: Api, tokenizer: Tokenizer, body: dict[str, Any], stream: bool) -> None:
    say(api, tokenizer, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    document = api.client.get("/openapi.json").json()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    asked = {"max_tokens": 100} | body
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        asked.pop("prompt_logprobs", None)
    response = api.client.post(path, json=asked)
    is_as_documented(document, document["paths"][path]["post"], response)


def test_the_codes_of_errors_are_those_of_the_docs(shared_api: Api) -> None:
    documented: dict[int, set[str | None]] = {}
    table = (Path(__file__).parents[3] / "docs" / "api.md").read_text().partition("## Errors")[2]
    for statuses, codes in re.findall(r"^\| ([\d, ]+) \|([^|]*)\|", table, re.MULTILINE):
        for status in statuses.split(", "):
            documented.setdefault(int(status), set()).update(re.findall(r"`(\w+)`", codes) or [None])
    assert documented == {status: set(codes) for status, codes in CODES.items()}
    assert {code for codes in CODES.values() for code in codes} == {None, *get_args(Code)}
    shown = shared_api.client.get("/openapi.json").json()["paths"]["/v1/chat/completions"]["post"]["responses"]
    for status, codes in CODES.items():
        if status != 405:  # of a method, none of this operation
            _, own = shown[str(status)]["content"]["application/json"]["schema"]["allOf"]
            assert own["properties"]["error"]["properties"]["code"]["enum"] == list(codes)


def test_a_media_type_has_no_names_but_those_of_openapi_3_1(shared_api: Api) -> None:
    """Its schema is closed: whoever validates the document refuses it all for one more."""
    document = shared_api.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    answers = [answer for operation in operations for answer in operation["responses"].values()]
    told = [each for answer in answers for each in answer.get("content", {}).values()]
    assert any("x-itemSchema" in each for each in told)
    assert {name for each in told for name in each if name[:2] != "x-"} == {"schema"}


def test_the_document_has_no_foreign_answers_and_no_key_where_none_is_wanted(shared_api: Api) -> None:
    text = shared_api.client.get("/openapi.json").text
    assert "422" not in json.loads(text)["paths"]["/v1/models/{name}"]["get"]["responses"]
    assert "ValidationError" not in text and "security" not in text


def test_a_reader_needs_no_key_and_learns_where_one_is_wanted(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret")
    api = start_api("--api-key-file", str(keys))
    document = api.client.get("/openapi.json").json()
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer") and document["security"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            wanted = api.client.request(method, path, json={}).status_code == 401
            assert wanted is (operation.get("security") != []) is ("401" in operation["responses"]), path
    page = api.client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "Bearer KEY" in page.text and api.client.head("/docs").status_code == 200
    for name in (*document["paths"], *document["components"]["schemas"]):
        assert name in page.text, name
    assert not re.findall(r"<script|<link|<img|src=|https?://|Undefined", page.text)
    targets = set(re.findall(r'href="#([^"]+)"', page.text))
    assert targets <= set(re.findall(r'id="([^"]+)"', page.text)) and len(targets) > 20


def together(body: Any) -> Any:
    """What a schema cannot say: the names of tools differ, the one that must be called is theirs, the output has room
    beside the prompt, and a grammar is none of any text."""
    tools = body.get("tools") or []
    for number, tool in enumerate(tools):
        tool["function"]["name"] = f"{number}{tool['function']['name']}"[:64]
    if tools and isinstance(body.get("tool_choice"), dict):
        body["tool_choice"]["function"]["name"] = tools[0]["function"]["name"]
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        if body.get(name):
            body[name] = min(body[name], 64)
    held = body.get("structured_outputs") or {}
    held |= {name: text for name, text in (("regex", "[a-z]+"), ("grammar", 'start: "a"')) if name in held}
    return body


def serves_what_it_documents(api: Api, path: str, examples: int) -> Counter[int]:
    """How often each status was the answer."""
    api.core.set_state(max_model_len=4096)  # room for the tools
    wait_until(lambda: api.client.get("/v1/models").json()["data"][0]["max_model_len"] == 4096)
    document = api.client.get("/openapi.json").json()
    operation = document["paths"][path]["post"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    answers: Counter[int] = Counter()
    refused: list[Any] = []

    @given(body=bodies(document, name))
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    def ask(body: Any) -> None:
        content = json.dumps(together(body))
        response = api.client.post(path, content=content, headers={"content-type": "application/json"})
        answers[response.status_code] += 1
        if response.status_code != 200:
            refused.append((response.json()["error"]["message"], content[:300]))
        assert str(response.status_code) in operation["responses"] and response.status_code < 500, refused[-1]
        is_as_documented(document, operation, response)

    ask()
    assert answers[200] >= 0.9 * answers.total(), (answers, refused)
    return answers
