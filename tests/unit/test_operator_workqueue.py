"""The queue between watches and workers, and what the operator says of its own health."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx
import pytest

from e2e.lib.process import free_port
from e2e.lib.waiting import PATIENCE_S
from semipd_operator import web
from semipd_operator.health import Health as OperatorHealth
from semipd_operator.health import WatchFreshness
from semipd_operator.workqueue import Key, WorkQueue

pytestmark = pytest.mark.unit
A, B = Key("n", "a"), Key("n", "b")


async def test_a_key_is_worked_on_once_and_by_one_worker() -> None:
    queue = WorkQueue()
    for key in (A, B, A):
        queue.add(key)
    assert (await queue.get(), await queue.get()) == (A, B)
    queue.add(A)  # while it is worked on
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.02)
    queue.done(A)
    assert await queue.get() == A
    queue.done(A)
    queue.done(B)
    assert len(queue) == 0


async def test_retries_back_off_and_news_cuts_the_wait() -> None:
    queue = WorkQueue(first_delay=0.02, longest_delay=0.05)
    delays = []
    for _ in range(4):
        queue.add(A)
        assert await queue.get() == A
        delays.append(queue.retry(A))
    assert delays == [0.02, 0.04, 0.05, 0.05]
    assert await asyncio.wait_for(queue.get(), PATIENCE_S) == A, "it comes back by itself"
    queue.retry(A)
    queue.add(A)
    assert await asyncio.wait_for(queue.get(), 0.01) == A, "an event does not wait for the delay"
    queue.done(A)
    queue.add(A)
    await queue.get()
    assert queue.retry(A) == 0.02, "a success forgets the failures"


async def test_what_is_not_due_yet_is_no_failure() -> None:
    """A pod that waits for its volume for minutes: it comes back soon, and a failure after that begins at the start."""
    queue = WorkQueue(first_delay=1, longest_delay=60, longest_wait=4)
    delays = []
    for after in [queue.wait] * 4 + [queue.retry, queue.retry, queue.wait, queue.retry]:
        queue.add(A)
        assert await queue.get() == A
        delays.append(after(A))
    assert delays == [1, 2, 4, 4, 1, 2, 4, 1]
    queue.add(A)
    await queue.get()
    queue.done(A)
    queue.add(A)
    await queue.get()
    assert queue.wait(A) == 1, "what was waited for is there"


@dataclass
class Clock:
    """Of queue and health; the event loop keeps its own."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("health", "workqueue"):
        monkeypatch.setattr(f"semipd_operator.{module}.time", clock)
    return clock


async def test_health_complains_of_what_never_ends(clock: Clock) -> None:
    queue, watches = WorkQueue(), WatchFreshness()
    health = OperatorHealth(queue, watches, limit_seconds=60)
    health.came_round()
    assert health.complaint() == ""
    queue.add(A)
    await queue.get()
    clock.now += 61
    assert "resync" in health.complaint()
    health.came_round()
    assert "reconcile" in health.complaint()
    queue.done(A)
    assert health.complaint() == ""


async def test_an_api_server_that_is_away_is_no_reason_for_a_restart(clock: Clock) -> None:
    """Every request fails after its time-out, the queue grows and its oldest key waits for long: all loops turn."""
    queue = WorkQueue(first_delay=0.01)
    health = OperatorHealth(queue, WatchFreshness(), limit_seconds=60)
    for number in range(60):
        queue.add(Key("n", str(number)))
    for _ in range(40):
        key = await queue.get()
        clock.now += 10
        queue.retry(key)
        health.came_round()
        assert health.complaint() == "" and health.starting()


@pytest.mark.parametrize("namespaces", [(), ("a", "b")])
async def test_readiness_waits_for_the_list_and_for_every_watch(namespaces: tuple[str, ...]) -> None:
    watches = WatchFreshness(namespaces)
    health = OperatorHealth(WorkQueue(), watches, limit_seconds=60)

    async def asked(path: str) -> tuple[int, str]:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}{path}")
        return answer.status_code, answer.text

    port = free_port()
    async with web.serve(lambda: health, port, 0):
        assert await asked("/readyz") == (503, "starting: no list of the services yet")
        health.listed()
        for namespace in namespaces or ("",):
            assert await asked("/readyz") == (503, "starting: no watch of the services yet")
            watches.opened(namespace)
        assert await asked("/readyz") == (200, "ok")
        watches.listed([("u", "2")])
        watches.listed([("u", "2")])
        assert (await asked("/healthz"))[0] == 503 and (await asked("/readyz"))[0] == 200, "liveness is another matter"


def test_a_watch_that_rbac_refuses_is_not_deaf() -> None:
    """A new process would be refused, too. Once it is granted again a whole period counts from there."""
    watches = WatchFreshness(("a", "b"))
    watches.opened("a")
    watches.opened("b")
    watches.heard("u", "10")
    watches.listed([("u", "10")], "b")
    watches.refused("b")
    for version in ("12", "14", "16"):
        watches.listed([("u", version)], "b")
        assert watches.missed == ""
    watches.opened("b")
    watches.listed([("u", "16")], "b")
    assert watches.missed == "", "it has a period to catch up"
    watches.listed([("u", "16")], "b")
    watches.listed([], "a")
    assert watches.missed == "u", "and did not, whatever the others hear"


def test_a_namespace_that_is_refused_keeps_nobody_from_being_ready() -> None:
    watches = WatchFreshness(("a", "b"))
    watches.refused("a")
    assert not watches.open
    watches.refused("b")
    assert not watches.open, "there must be one"
    watches.opened("b")
    assert watches.open
    everywhere = WatchFreshness()
    everywhere.refused("")
    assert not everywhere.open


def test_a_watch_that_misses_a_change_for_a_whole_period_is_deaf() -> None:
    watches = WatchFreshness()
    watches.heard("u", "10")
    watches.listed([("u", "10"), ("v", "11")])
    assert watches.missed == "", "v has a period to arrive"
    watches.heard("v", "11")
    watches.listed([("u", "12"), ("v", "11")])
    assert watches.missed == ""
    watches.listed([("u", "12"), ("v", "11")])
    assert watches.missed == "u"
    watches.heard("u", "12")
    watches.listed([("u", "12")])
    assert watches.missed == "", "it hears again, and v is gone"
