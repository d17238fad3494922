"""What `/openapi.json` calls valid is served: seldom refused, never failed, with no status that it does not name."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.server.api_process import Api
from tests.unit.server.schema_strategy import bodies

from e2e.lib.waiting import wait_until

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

    ask()
    assert answers[200] >= 0.9 * answers.total(), (answers, refused)
    return answers
