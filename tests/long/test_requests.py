"""Many requests that `/openapi.json` calls valid, and whatever else is sent: see the short forms in the other tiers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.served import Served, serve
from tests.engine.test_api_engine import stays_exact
from tests.unit.server.api_process import Api
from tests.unit.server.conftest import start_api_process, stop_api, write_model
from tests.unit.server.test_openapi import serves_what_it_documents

from bench.cpu.environments import Environment, make
from e2e.lib import models

pytestmark = pytest.mark.long

SCHEMATHESIS = Environment("schemathesis", ("schemathesis==4.32.5",))
OPERATIONS = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
REQUESTS = 250
"""To each operation, of those that schemathesis makes."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("api")
    (folder / "run").mkdir()
    api = start_api_process(write_model(folder / "letters"), folder / "run", [])
    yield api
    stop_api(api)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whole, with a model so short that what asks for all of it comes to an end."""
    yield from serve(tmp_path_factory.mktemp("run"), models.random_model("llama"), "--max-model-len", "512")


@pytest.mark.parametrize("path", OPERATIONS)
def test_valid_bodies_are_served(api: Api, path: str, record_property: Any) -> None:
    record_property("answers", json.dumps(serves_what_it_documents(api, path, 500)))


def test_what_schemathesis_makes_is_served(api: Api, record_property: Any) -> None:
    """Requests that it calls positive: at least nine of ten to each operation get 200, and no operation answers with a
    failure, or with a status that its document does not have."""
    make(SCHEMATHESIS)
    api.core.set_state(max_model_len=1 << 15)  # its texts are long for a model of 400 tokens ...
    api.core.answer = lambda _: [3, 4, 0]  # ... and an answer may be all that fits
    program = Path(__file__).with_name("generated_requests.py")
    command = [str(SCHEMATHESIS.program("python")), str(program), api.url, str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads(done.stdout)
    record_property("answers", json.dumps({name: each["answers"] for name, each in found.items()}))
    assert not any(each["undocumented"] for each in found.values()), found
    for name, each in found.items():
        assert each["answers"]["200"] >= 0.9 * sum(each["answers"].values()), (name, each)
    assert all(sum(found[f"POST {path}"]["answers"].values()) >= REQUESTS // 2 for path in OPERATIONS)


def test_ten_thousand_bodies_and_the_engine_is_exact(served: Served, record_property: Any) -> None:
    """Of the whole engine, with real processes behind it."""
    found = stays_exact(served, 10_000)
    record_property("answers", json.dumps(found.statuses))
    record_property("longest_seconds", round(found.longest_seconds, 3))
    assert found.longest_seconds < 30
