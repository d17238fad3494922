"""All agents at once: a silent one delays nobody, a change is pushed at once, what was heard is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.operator_observed import report

from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_agent.contract import AgentConfig, Split, StatusReport
from semipd_operator import poller as poller_module
from semipd_operator.agents import AgentSilent
from semipd_operator.poller import SILENT_AT_ONCE, AgentPoller, Watch
from semipd_operator.status import AgentView, PodView
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.unit
A, B = Key("n", "a"), Key("n", "b")


class Slow:
    """Pods named in `dead` never answer; each look takes its time-out."""

    def __init__(self, dead: set[str]) -> None:
        self.dead, self.looked = dead, dict[str, int]()

    async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
        self.looked[uid] = self.looked.get(uid, 0) + 1
        if uid in self.dead:
            await asyncio.sleep(0.2)
            raise AgentSilent("the agent does not answer in time")
        return report(config_generation=config.generation if config else 0)


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
    await wait_until_async(lambda: rounds.count(B) >= 5, describe="b goes on while a waits for its time-out")
    await wait_until_async(lambda: slow.looked.get("alive", 0) >= slow.looked.get("dead", 0) + 5)
    await wait_until_async(lambda: running.views(A)["dead"].error)
    views = running.views(A)
    assert views["dead"].report is None
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
    slow = Slow({"p"})
    looker: Any = slow
    running = AgentPoller(looker, 2.0, nothing)
    one: Any = type("One", (), {"failures": 0, "view": AgentView()})()
    pauses = []
    for one.failures in range(8):
        pauses.append(running._pause(one))
    assert pauses == [2.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]
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
    assert (await asyncio.wait(tasks, timeout=PATIENCE_S))[1] == set()


async def test_whatever_an_agent_does_its_pod_is_asked_again() -> None:
    class Odd(Slow):
        async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
            if (await super().look(ip, uid, tokens, config)) and self.looked[uid] == 1:
                raise RuntimeError("nobody thought of it")
            return report(config_generation=0)

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
            return report(config_generation=0)

    one: Any = Recording(set())
    running = AgentPoller(one, 60.0, nothing)
    running.watch(A, Watch((pod("p"),), ("t",), AgentConfig(generation=1)))
    await wait_until_async(lambda: pushed == [1])
    running.watch(A, Watch((pod("p"),), ("t",), AgentConfig(generation=2)))
    await wait_until_async(lambda: pushed == [1, 2])
    await running.close()


async def test_since_when_a_pod_lacks_its_configuration_is_remembered() -> None:
    start = datetime.now(UTC)
    wanted = AgentConfig(generation=2)
    view = AgentView().heard(report(config_generation=1), start, wanted)
    view = view.failed("away").heard(report(config_generation=1), start + timedelta(seconds=9), wanted)
    assert view.behind_since == start
    assert view.heard(report(config_generation=2), start + timedelta(seconds=10), wanted).behind_since is None
    assert view.heard(report(config_generation=3), start, wanted).behind_since == start, "it takes none before its own"
    foreign = report(config_generation=2, config_uid="gone")
    assert view.heard(foreign, start, AgentConfig(generation=2, uid="u")).behind_since == start
    other = report(Split(prefill_percent=50), config_generation=2)
    assert view.heard(other, start, wanted).behind_since == start, "it has it, and another split"


async def test_a_clock_that_is_set_back_keeps_no_report_young() -> None:
    """By an hour: one that is silent since would be believed for as long as that."""
    clock, silent = [7200.0], Slow({"p"})
    one: Any = silent
    running = AgentPoller(one, 60.0, nothing, lambda: clock[0])
    try:
        running.watch(A, Watch((pod("p"),), ("t",), None))
        set_back = datetime.now(UTC)
        said = set_back + timedelta(hours=1) - timedelta(seconds=8)
        running._pods["p"].view = AgentView().heard(report(), said, AgentConfig(generation=9))
        clock[0] -= 3600
        view = running.views(A)["p"]
        assert view.received_at == view.behind_since == set_back - timedelta(seconds=8)
        assert view.fresh(set_back) and not view.fresh(set_back + timedelta(seconds=3))
        await wait_until_async(lambda: running._pods["p"].failures)
        silent.dead.clear()
        clock[0] -= 3600
        running._pods["p"].wake.set()
        await wait_until_async(lambda: silent.looked["p"] == 2)
        assert running.views(A)["p"].fresh(datetime.now(UTC)), "what is said after it is as young as it is"
    finally:
        await running.close()


async def test_a_round_that_waits_for_the_api_server_is_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agents are asked meanwhile, and the silence of one is its own."""
    monkeypatch.setattr(poller_module, "BEAT_SECONDS", 0.01)
    clock, dead = [0.0], Slow({"p"})
    one: Any = dead

    async def stuck(_: Key) -> None:
        await asyncio.Event().wait()

    running = AgentPoller(one, 0.02, stuck, lambda: clock[0])
    try:
        running.watch(A, Watch((pod("p"),), ("t",), None))
        asked_since = running._pods["p"].view.asked_since
        for _ in range(3):
            clock[0] += 4.0
            await wait_until_async(lambda: running._turned == clock[0])
        assert running.views(A)["p"].asked_since == asked_since
    finally:
        await running.close()


async def test_a_pause_of_this_process_makes_no_report_older() -> None:
    """The machine stood still between two rounds: it says nothing of the agents, also of one that is silent since."""
    clock, dead = [0.0], Slow(set())
    one: Any = dead
    running = AgentPoller(one, 0.02, nothing, lambda: clock[0])
    try:
        running.watch(A, Watch((pod("p"),), ("t",), None))
        await wait_until_async(lambda: running.views(A)["p"].report)
        dead.dead.add("p")
        await wait_until_async(lambda: running.views(A)["p"].error)
        before = running._pods["p"].view
        assert before.received_at and before.asked_since is None
        long_ago = replace(before, received_at=before.received_at - timedelta(minutes=1))
        running._pods["p"].view = long_ago
        clock[0] += 4.9
        assert not running.views(A)["p"].fresh(datetime.now(UTC)), "a slow round is no pause"
        clock[0] += 60
        assert running.views(A)["p"].fresh(datetime.now(UTC))
        asked = dead.looked["p"]
        await wait_until_async(lambda: dead.looked["p"] > asked)
        assert running.views(A)["p"].received_at != long_ago.received_at, "a look that fails keeps what is known by now"
    finally:
        await running.close()
