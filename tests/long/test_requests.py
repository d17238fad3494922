"""Many requests that `/openapi.json` calls valid, and whatever else is sent: see the short forms in the unit tier."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.server.api_process import Api
from tests.unit.server.conftest import start_api_process, stop_api, write_model
from tests.unit.server.test_fuzz import calls
from tests.unit.server.test_openapi import serves_what_it_documents

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("api")
    (folder / "run").mkdir()
    api = start_api_process(write_model(folder / "letters"), folder / "run", [])
    yield api
    stop_api(api)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_valid_bodies_are_served(api: Api, path: str, record_property: Any) -> None:
    record_property("answers", json.dumps(serves_what_it_documents(api, path, 500)))


def test_ten_thousand_bodies_and_no_failure(api: Api, record_property: Any) -> None:
    statuses, longest = Counter[int](), 0.0

    @given(call=calls())
    @settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
    def ask(call: tuple[str, Any]) -> None:
        nonlocal longest
        path, body = call
        response = api.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404), response.text
        assert api.process.poll() is None
        statuses[response.status_code] += 1
        longest = max(longest, response.elapsed.total_seconds())

    ask()
    record_property("answers", json.dumps(statuses))
    record_property("longest_seconds", round(longest, 3))
    assert longest < 30
