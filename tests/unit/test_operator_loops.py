"""The queue, the agents' tasks, the publisher's budget and the ear of the operator, without a cluster."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from e2e.lib.waiting import wait_until_async
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
from semipd_operator.agents import AgentClient, AgentError, AgentSilent
from semipd_operator.health import Health as OperatorHealth
from semipd_operator.health import WatchFreshness
from semipd_operator.poller import SILENT_AT_ONCE, AgentPoller, Watch
from semipd_operator.status import AgentView, PodView
from semipd_operator.workqueue import Key, WorkQueue

pytestmark = pytest.mark.unit
GZIP = {"content-encoding": "gzip"}
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


async def test_health_complains_of_what_never_ends() -> None:
    queue, watches = WorkQueue(), WatchFreshness()
    health = OperatorHealth(queue, watches, limit_seconds=0.05)
    health.came_round()
    assert health.complaint() == ""
    queue.add(A)
    await queue.get()
    await asyncio.sleep(0.06)
    assert "resync" in health.complaint()
    health.came_round()
    assert "reconcile" in health.complaint()
    queue.done(A)
    assert health.complaint() == ""


async def test_an_api_server_that_is_away_is_no_reason_for_a_restart() -> None:
    """Every request fails after its time-out, the queue grows and its oldest key waits for long: all loops turn."""
    queue = WorkQueue(first_delay=0.01)
    health = OperatorHealth(queue, WatchFreshness(), limit_seconds=0.2)
    for number in range(60):
        queue.add(Key("n", str(number)))
    for _ in range(40):
        key = await queue.get()
        await asyncio.sleep(0.01)
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

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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
    assert (await agent.look("10.0.0.1", "u1", ("t",), AgentConfig(generation=2))).config_generation == 2
    await agent.look("10.0.0.1", "u1", ("t",), AgentConfig(generation=2))
    await agent.look("10.0.0.1", "u1", ("t",), None)
    assert [method for method, path, _ in pod.asked if path == "/v1/config"] == ["PUT"]


async def test_an_answer_without_end_does_not_fill_the_operators_memory() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b" " * (1 << 16)

    agent = client(lambda _: httpx.Response(200, content=endless()))  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="longer than 1 MiB"):
        await agent.look("10.0.0.1", "u1", ("t",), None)
    assert sent <= 2 << 20
    packed = client(lambda _: httpx.Response(200, content=gzip.compress(bytes(1 << 24)), headers=GZIP))  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="encoded"):
        await packed.look("10.0.0.1", "u1", ("t",), None)


async def test_a_stranger_at_the_address_never_sees_the_token() -> None:
    pod = Pod(uid="someone else")
    with pytest.raises(AgentError, match="another pod"):
        await client(pod).look("10.0.0.1", "u1", ("t",), AgentConfig(generation=2))
    assert pod.asked == [("GET", "/health", False)]


async def test_an_answer_that_is_no_health_is_an_agents_error() -> None:
    agent = AgentClient(9400, 1.0)
    agent._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, text="<html>")))
    with pytest.raises(AgentError, match="no health"):
        await agent.look("10.0.0.1", "u1", ("t",), None)


async def test_a_pod_that_knows_the_key_before_is_asked_with_that() -> None:
    pod = Pod(token="old")
    report = await client(pod).look("10.0.0.1", "u1", ("new", "old"), AgentConfig(generation=2))
    assert report.config_generation == 2


async def test_a_refused_token_says_so() -> None:
    with pytest.raises(AgentError, match="new key"):
        await client(Pod(token="new")).look("10.0.0.1", "u1", ("old",), None)


class Slow:
    """Pods named in `dead` never answer; each look takes its time-out."""

    def __init__(self, dead: set[str]) -> None:
        self.dead, self.looked = dead, dict[str, int]()

    async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
        self.looked[uid] = self.looked.get(uid, 0) + 1
        if uid in self.dead:
            await asyncio.sleep(0.2)
            raise AgentSilent("the agent does not answer in time")
        return report(config.generation if config else 0)


async def nothing(_: Key) -> None: ...


@pytest.fixture
async def poller() -> AsyncIterator[tuple[AgentPoller, Slow, list[Key]]]:
    rounds: list[Key] = []
    slow = Slow({"dead"})

    async def on_round(key: Key) -> None:
        rounds.append(key)

    one: Any = slow
    running = AgentPoller(one, 0.02, on_round)
    yield running, slow, rounds
    await running.close()


def pod(uid: str) -> PodView:
    return PodView(name=uid, uid=uid, ip="10.0.0.1", started=True)


async def test_an_unreachable_pod_blocks_nobody_not_even_its_neighbour(
    poller: tuple[AgentPoller, Slow, list[Key]],
) -> None:
    running, slow, rounds = poller
    running.watch(A, Watch((pod("dead"), pod("alive")), ("t",), None))
    running.watch(B, Watch((pod("b"),), ("t",), None))
    await asyncio.sleep(0.3)
    assert rounds.count(B) >= 5, "b goes on while a waits for its time-out"
    assert slow.looked["alive"] >= 5 > slow.looked["dead"]
    views = running.views(A)
    assert views["dead"].error and views["dead"].report is None
    assert views["alive"].report is not None and not views["alive"].error
    running.forget(A)
    before = slow.looked["alive"]
    await asyncio.sleep(0.1)
    assert slow.looked["alive"] == before and not running.views(A)


async def test_silent_pods_take_no_turn_of_those_that_answer() -> None:
    """More silent pods than any limit of connections; counted in looks, as time is the machine's."""
    silent, speaking = {f"s{n}" for n in range(400)}, [f"a{n}" for n in range(20)]
    at_once, most = 0, 0

    class Counting(Slow):
        async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
            nonlocal at_once, most
            at_once += uid in self.dead
            most = max(most, at_once)
            try:
                return await super().look(ip, uid, tokens, config)
            finally:
                at_once -= uid in self.dead

    slow = Counting(silent)
    one: Any = slow
    running = AgentPoller(one, 0.02, nothing)
    running.watch(A, Watch(tuple(pod(uid) for uid in sorted(silent)), ("t",), None))
    for uid in speaking:
        running.watch(Key("n", uid), Watch((replace(pod(uid), ready=True),), ("t",), None))
    await wait_until_async(lambda: min(slow.looked.get(uid, 0) for uid in speaking) >= 3)
    asked = sum(slow.looked.get(uid, 0) for uid in silent)
    await running.close()
    assert most <= SILENT_AT_ONCE and asked <= 3 * len(silent)


async def test_a_silent_pod_is_asked_less_and_less_and_at_once_when_something_changes() -> None:
    running = AgentPoller(client(Pod()), 2.0, nothing)
    one: Any = type("One", (), {"failures": 0, "view": AgentView()})()
    pauses = []
    for one.failures in range(8):
        pauses.append(running._pause(one))
    assert pauses == [2.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]
    slow = Slow({"p"})
    looker: Any = slow
    running = AgentPoller(looker, 0.1, nothing)
    running.watch(A, Watch((pod("p"),), ("t",), None))
    await wait_until_async(lambda: slow.looked.get("p", 0) >= 4)
    running.watch(A, Watch((replace(pod("p"), ready=True),), ("t",), None))
    await wait_until_async(lambda: slow.looked["p"] >= 5)
    assert running._pods["p"].failures <= 1, "it counts anew"
    await running.close()


@pytest.mark.parametrize("steps", range(6))
async def test_a_service_that_is_forgotten_as_its_pod_answers_leaves_no_task(steps: int) -> None:
    one: Any = Slow(set())
    running = AgentPoller(one, 60.0, nothing)
    running.watch(A, Watch((pod("p"),), ("t",), None))
    await asyncio.sleep(0.02)
    tasks = {running._services[A].task, running._pods["p"].task}
    running._services[A].told.set()
    running._pods["p"].wake.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    running.forget(A)
    assert (await asyncio.wait(tasks, timeout=5))[1] == set()


async def test_whatever_an_agent_does_its_pod_is_asked_again() -> None:
    class Odd(Slow):
        async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
            if (await super().look(ip, uid, tokens, config)) and self.looked[uid] == 1:
                raise RuntimeError("nobody thought of it")
            return report(0)

    one: Any = Odd(set())
    running = AgentPoller(one, 0.02, nothing)
    running.watch(A, Watch((pod("p"),), ("t",), None))
    await wait_until_async(lambda: running.views(A)["p"].report is not None)
    await running.close()


async def test_a_change_is_pushed_at_once() -> None:
    pushed: list[int] = []

    class Recording(Slow):
        async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
            pushed.append(config.generation if config else 0)
            return report(0)

    one: Any = Recording(set())
    running = AgentPoller(one, 60.0, nothing)
    running.watch(A, Watch((pod("p"),), ("t",), AgentConfig(generation=1)))
    await asyncio.sleep(0.02)
    running.watch(A, Watch((pod("p"),), ("t",), AgentConfig(generation=2)))
    await asyncio.sleep(0.02)
    await running.close()
    assert pushed == [1, 2]


async def test_since_when_a_pod_lacks_its_configuration_is_remembered() -> None:
    start = datetime.now(UTC)
    wanted = AgentConfig(generation=2)
    view = AgentView().heard(report(1), start, wanted)
    view = view.failed("away").heard(report(1), start + timedelta(seconds=9), wanted)
    assert view.behind_since == start
    assert view.heard(report(2), start + timedelta(seconds=10), wanted).behind_since is None
    other = report(2, Split(prefill_percent=50))
    assert view.heard(other, start, wanted).behind_since == start, "it has it, and another split"


async def test_an_agent_that_trickles_is_given_up() -> None:
    async def trickle(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    agent = AgentClient(9400, 0.02)
    agent._http = httpx.AsyncClient(transport=httpx.MockTransport(trickle))
    with pytest.raises(AgentError, match="in time"):
        await agent.look("10.0.0.1", "u1", "t", None)
