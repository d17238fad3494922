"""What `/openapi.json` calls valid is served: seldom refused, never failed, with no status that it does not name."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.server.api_process import Api
from tests.unit.server.schema_strategy import bodies

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_valid_bodies_are_served(shared_api: Api, path: str) -> None:
    serves_what_it_documents(shared_api, path, 60)


def test_operations_have_names_of_their_own(shared_api: Api) -> None:
    paths = shared_api.client.get("/openapi.json").json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names)) > 10


def serves_what_it_documents(api: Api, path: str, examples: int) -> None:
    document = api.client.get("/openapi.json").json()
    operation = document["paths"][path]["post"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    answers: Counter[int] = Counter()
    refused: list[Any] = []

    @given(body=bodies(document, name))
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(body: Any) -> None:
        content = json.dumps(body)
        response = api.client.post(path, content=content, headers={"content-type": "application/json"})
        answers[response.status_code] += 1
        if response.status_code != 200:
            refused.append((response.json()["error"]["message"], content[:300]))
        assert str(response.status_code) in operation["responses"] and response.status_code < 500, refused[-1]

    ask()
    assert answers[200] >= 0.9 * answers.total(), (answers, refused)
