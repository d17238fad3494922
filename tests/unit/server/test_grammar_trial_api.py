"""Costly grammars through the api: it outlives them, and clients are told apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.unit.server.api_process import Api, StartApi
from tests.unit.server.test_grammar_trial import COSTLY, chain

from e2e.lib.waiting import wait_until
from semipd_engine.ipc.requests import GRAMMAR_LIMIT
from semipd_engine.server import grammar_judge

pytestmark = pytest.mark.unit


def test_the_api_outlives_them_and_the_time_limit_holds(api: Api) -> None:
    assert api.chat(structured_outputs={"json": chain(3000)}).json()["error"]["param"] == "structured_outputs"
    late = api.client.post(
        "/v1/completions",
        json={"prompt": "x", "guided_json": COSTLY | {"title": "not seen before"}},
        headers={"x-request-timeout-ms": "300"},
    )
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert api.chat(response_format={"type": "json_object"}).status_code == 200 and api.process.poll() is None


def test_a_grammar_that_goes_no_further_is_the_clients(api: Api) -> None:
    api.core.error, api.core.error_code = "after 3 tokens nothing can follow", GRAMMAR_LIMIT
    refused = api.complete(guided_regex="a")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, GRAMMAR_LIMIT)


def test_clients_are_told_apart_by_their_keys(start_api: StartApi, tmp_path: Path) -> None:
    """All come from one address here."""
    keys = tmp_path / "keys"
    keys.write_text("one\nanother\n")
    api = start_api("--api-key-file", str(keys))
    with ThreadPoolExecutor(grammar_judge.MOST_ASKED) as pool:

        def ask(key: str, schema: dict[str, Any]) -> int:
            fields = {"prompt": "x", "max_tokens": 2, "guided_json": schema}
            headers = {"authorization": f"Bearer {key}", "x-request-timeout-ms": "60000"}
            return api.client.post("/v1/completions", json=fields, headers=headers).status_code

        judge = psutil.Process(api.process.pid)
        many = [pool.submit(ask, "one", COSTLY | {"title": f"{number}"}) for number in range(6)]
        wait_until(lambda: sum(len(child.children()) for child in judge.children()) == 3)
        assert ask("another", {"const": 1}) == 200
        assert sum(asked.done() for asked in many) < 3
        assert {asked.result() for asked in many} <= {400, 503, 504}
