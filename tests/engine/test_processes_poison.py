"""Requests that crash their worker, among innocent ones: found, tried once more alone, refused; nobody else loses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.fake_model import reference
from tests.engine.fake_resident import POISON
from tests.engine.harness import Engine, engine_for
from tests.engine.load import Load

from e2e.lib.waiting import wait_until
from semipd_engine.core.fault_isolation import GIVE_UP_AFTER, ISOLATE_AFTER, LONE_CRASHES
from semipd_engine.ipc.requests import WORKER_CRASHED

pytestmark = pytest.mark.engine

SEGFAULT, EXIT, ABORT, KILL = POISON


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    yield from engine_for(tmp_path, {"SEMIPD_FAKE_TOKEN_MS": "0.3", "SEMIPD_FAKE_STEP_MS": "3"})


@pytest.mark.parametrize(
    ("poison", "ending"), [(SEGFAULT, "SIGSEGV"), (EXIT, "exit status 3"), (ABORT, "SIGABRT")], ids=str
)
def test_a_poisonous_request_is_refused_soon_and_the_others_keep_their_tokens(
    engine: Engine, poison: int, ending: str
) -> None:
    load = Load(engine)
    try:
        client = engine.client()
        for number in range(3):
            bad = client.add([poison, number, 1, 2], max_tokens=20).wait()
            assert bad.error_code == WORKER_CRASHED and f"({ending})" in (bad.error or "")
            good = client.add([number] * 20, max_tokens=20).wait()
            assert good.tokens == reference(good.prompt, 20)
    finally:
        load.stop()
    assert load.wrong == [] and len(load.finished) >= 8
    crashes = [record for record in engine.records("worker_lost") if record["ending"] == ending]
    # With the others, and twice alone. Requests that were isolated meanwhile cost no worker.
    assert 3 * LONE_CRASHES <= len(crashes) <= 3 * (LONE_CRASHES + 1)
    assert len(engine.records("worker_lost")) == len(crashes), "and no worker died otherwise"
    engine.wait_idle()


def test_a_request_whose_workers_are_killed_from_outside_is_not_refused_for_it(engine: Engine) -> None:
    """Such a death may be the OOM killer's: it is tried many times over, and it does not hold up the others."""
    client = engine.client()
    bad = client.add([KILL, 1, 2], max_tokens=5)
    for number in range(8):
        good = client.add([number] * 20, max_tokens=20).wait()
        assert good.tokens == reference(good.prompt, 20)

    def killed() -> int:
        return sum(record["ending"] == "SIGKILL" for record in engine.records("worker_lost"))

    wait_until(lambda: killed() > ISOLATE_AFTER, describe=lambda: f"{killed()} killed")
    client.abort(bad)
    assert bad.wait().finish_reason == "abort" or killed() >= GIVE_UP_AFTER
