"""The queue, the agents' tasks, the publisher's budget and the ear of the operator, without a cluster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from semipd_agent.contract import (
    AgentConfig,
    Enforcement,
    EnginePhase,
    EngineStatus,
    Health,
    Mode,
    PartitionReason,
    PartitionReport,
    PartitionState,
    Split,
    StatusReport,
)
from semipd_operator import web
from semipd_operator.agents import AgentClient, AgentError
from semipd_operator.fleet import Fleet, Watch
from semipd_operator.health import Health as OperatorHealth
from semipd_operator.health import Hearing
from semipd_operator.status import PodView
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
    assert await asyncio.wait_for(queue.get(), 1) == A, "it comes back by itself"
    queue.retry(A)
    queue.add(A)
    assert await asyncio.wait_for(queue.get(), 0.01) == A, "an event does not wait for the delay"
    queue.done(A)
    queue.add(A)
    await queue.get()
    assert queue.retry(A) == 0.02, "a success forgets the failures"


async def test_health_complains_of_what_never_ends() -> None:
    queue, hearing = WorkQueue(), Hearing()
    health = OperatorHealth(queue, hearing, deaf_after_seconds=0.05)
    health.resynced()
    assert health.complaint() == ""
    queue.add(A)
    await queue.get()
    await asyncio.sleep(0.06)
    assert "no resync" in health.complaint()
    health.resynced()
    assert "reconcile" in health.complaint()
    queue.done(A)
    assert health.complaint() == ""


@pytest.mark.parametrize("namespaces", [(), ("a", "b")])
async def test_readiness_waits_for_the_list_and_for_every_watch(namespaces: tuple[str, ...]) -> None:
    hearing = Hearing(namespaces)
    health = OperatorHealth(WorkQueue(), hearing, deaf_after_seconds=60)

    async def asked(path: str) -> tuple[int, str]:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}{path}")
        return answer.status_code, answer.text

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with web.serve(health, port, 0):
        assert await asked("/readyz") == (503, "starting: no list of the services yet")
        health.resynced()
        for namespace in namespaces or ("",):
            assert await asked("/readyz") == (503, "starting: no watch of the services yet")
            hearing.opened(namespace)
        assert await asked("/readyz") == (200, "ok")
        hearing.listed([("u", "2")])
        hearing.listed([("u", "2")])
        assert (await asked("/healthz"))[0] == 503 and (await asked("/readyz"))[0] == 200, "liveness is another matter"


def test_a_watch_that_misses_a_change_for_a_whole_period_is_deaf() -> None:
    hearing = Hearing()
    hearing.heard("u", "10")
    hearing.listed([("u", "10"), ("v", "11")])
    assert hearing.missed == "", "v has a period to arrive"
    hearing.heard("v", "11")
    hearing.listed([("u", "12"), ("v", "11")])
    assert hearing.missed == ""
    hearing.listed([("u", "12"), ("v", "11")])
    assert hearing.missed == "u"
    hearing.heard("u", "12")
    hearing.listed([("u", "12")])
    assert hearing.missed == "", "it hears again, and v is gone"


def report(generation: int, split: Split | None = None) -> StatusReport:
    split = split or Split()
    return StatusReport(
        observed_at=datetime.now(UTC),
        config_generation=generation,
        partition=PartitionReport(
            mode=Mode.MANUAL,
            backend="cpu-paced",
            enforcement=Enforcement.PACED,
            requested=split,
            quantized=split,
            applied=split,
            state=PartitionState.APPLIED,
            reason=PartitionReason.APPLIED,
        ),
        engine=EngineStatus(state=EnginePhase.READY, ready=True),
    )


class Pod:
    """An agent's HTTP side, as the client meets it."""

    def __init__(self, uid: str = "u1", token: str = "t") -> None:
        self.uid, self.token, self.generation = uid, token, 1
        self.asked: list[tuple[str, str, bool]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        authorized = request.headers.get("authorization") == f"Bearer {self.token}"
        self.asked.append((request.method, request.url.path, "authorization" in request.headers))
        if request.url.path == "/health":
            return httpx.Response(200, text=Health(pod_uid=self.uid).model_dump_json(by_alias=True))
        if not authorized:
            return httpx.Response(401)
        if request.method == "PUT":
            config = AgentConfig.model_validate_json(request.content)
            if config.generation < self.generation:
                return httpx.Response(409)
            self.generation = config.generation
        return httpx.Response(200, text=report(self.generation).model_dump_json(by_alias=True))


def client(pod: Pod) -> AgentClient:
    one = AgentClient(9400, 1.0)
    one._http = httpx.AsyncClient(transport=httpx.MockTransport(pod))
    return one


async def test_a_newer_configuration_is_pushed_and_a_current_one_is_not() -> None:
    pod = Pod()
    agent = client(pod)
    assert (await agent.look("10.0.0.1", "u1", "t", AgentConfig(generation=2))).config_generation == 2
    await agent.look("10.0.0.1", "u1", "t", AgentConfig(generation=2))
    await agent.look("10.0.0.1", "u1", "t", None)
    assert [method for method, path, _ in pod.asked if path == "/v1/config"] == ["PUT"]


async def test_a_stranger_at_the_address_never_sees_the_token() -> None:
    pod = Pod(uid="someone else")
    with pytest.raises(AgentError, match="another pod"):
        await client(pod).look("10.0.0.1", "u1", "t", AgentConfig(generation=2))
    assert pod.asked == [("GET", "/health", False)]


async def test_a_refused_token_says_so() -> None:
    with pytest.raises(AgentError, match="new key"):
        await client(Pod(token="new")).look("10.0.0.1", "u1", "old", None)


class Slow:
    """Pods named in `dead` never answer; each look takes its time-out."""

    def __init__(self, dead: set[str]) -> None:
        self.dead, self.looked = dead, dict[str, int]()

    async def look(self, ip: str, uid: str, token: str, config: AgentConfig | None) -> StatusReport:
        self.looked[uid] = self.looked.get(uid, 0) + 1
        if uid in self.dead:
            await asyncio.sleep(0.2)
            raise AgentError("the agent does not answer in time")
        return report(config.generation if config else 0)


@pytest.fixture
async def fleet() -> AsyncIterator[tuple[Fleet, Slow, list[Key]]]:
    rounds: list[Key] = []
    slow = Slow({"dead"})

    async def on_round(key: Key) -> None:
        rounds.append(key)

    one: Any = slow
    running = Fleet(one, 0.02, on_round)
    yield running, slow, rounds
    await running.close()


def pod(uid: str) -> PodView:
    return PodView(name=uid, uid=uid, ip="10.0.0.1", started=True)


async def test_an_unreachable_pod_blocks_no_other_service(fleet: tuple[Fleet, Slow, list[Key]]) -> None:
    running, slow, rounds = fleet
    running.watch(A, Watch((pod("dead"), pod("alive")), "t", None))
    running.watch(B, Watch((pod("b"),), "t", None))
    await asyncio.sleep(0.3)
    assert rounds.count(B) >= 5, "b goes on while a waits for its time-out"
    views = running.views(A)
    assert views["dead"].error and views["dead"].report is None
    assert views["alive"].report is not None and not views["alive"].error
    running.forget(A)
    before = slow.looked["alive"]
    await asyncio.sleep(0.1)
    assert slow.looked["alive"] == before and not running.views(A)


async def test_a_change_is_pushed_at_once() -> None:
    pushed: list[int] = []

    class Recording(Slow):
        async def look(self, ip: str, uid: str, token: str, config: AgentConfig | None) -> StatusReport:
            pushed.append(config.generation if config else 0)
            return report(0)

    async def nothing(_: Key) -> None: ...

    one: Any = Recording(set())
    running = Fleet(one, 60.0, nothing)
    running.watch(A, Watch((pod("p"),), "t", AgentConfig(generation=1)))
    await asyncio.sleep(0.02)
    running.watch(A, Watch((pod("p"),), "t", AgentConfig(generation=2)))
    await asyncio.sleep(0.02)
    await running.close()
    assert pushed == [1, 2]
