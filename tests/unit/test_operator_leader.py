"""Of several replicas one leads, whatever happens to it: two elections on one Lease, with clocks that tests move."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_operator import leader
from semipd_operator.answers import ApiAway, ApiRefused
from semipd_operator.leader import Election
from semipd_operator.settings import LeaseName

pytestmark = pytest.mark.unit
LEASE = LeaseName("sys", "operator")


@dataclass
class Server:
    """One Lease, with the API server's optimistic locking."""

    lease: dict[str, Any] | None = field(default_factory=lambda: {"metadata": {"resourceVersion": "1"}})
    away: bool = False
    deaf: bool = False
    """Writes arrive, and their answers are lost."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if self.away:
            raise ConnectionError("no route")
        return self.lease and {"metadata": dict(self.lease["metadata"]), "spec": dict(self.lease.get("spec", {}))}

    async def merge(self, api_version: str, kind: str, namespace: str, name: str, changes: Any) -> Any:
        assert self.lease is not None
        if self.away:
            raise ConnectionError("no route")
        if changes["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiRefused(409, "the object has been modified")
        spec = {**self.lease.get("spec", {}), **changes["spec"]}
        version = str(int(self.lease["metadata"]["resourceVersion"]) + 1)
        self.lease = {
            "metadata": {"resourceVersion": version},
            "spec": {key: value for key, value in spec.items() if value is not None},
        }
        if self.deaf:
            raise ApiAway("the API server does not answer: TimeoutError")
        return self.lease

    @property
    def holder(self) -> str:
        return str(((self.lease or {}).get("spec") or {}).get("holderIdentity", ""))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between looks; how old a record is, is the test's clocks' business."""
    monkeypatch.setattr(leader, "RETRY_SECONDS", 0.01)


async def forever() -> None:
    await asyncio.Event().wait()


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_leads_and_hands_over_when_it_stops() -> None:
    server, clock = Server(), Clock()
    first, second = (Election(server, LEASE, name, clock) for name in ("a", "b"))
    assert "no word" in second.starting()
    one = asyncio.create_task(first.run(forever))
    await wait_until_async(lambda: first.leading)
    other = asyncio.create_task(second.run(forever))
    await wait_until_async(lambda: second.starting() == "")
    await asyncio.sleep(0.1)
    assert (first.leading, second.leading, server.holder) == (True, False, first.identity)
    await end(one)
    await wait_until_async(lambda: second.leading)  # the clock stood still: nobody waited for the Lease to run out
    assert server.holder == second.identity
    await end(other)
    assert server.holder == ""


async def test_a_leader_that_vanished_is_replaced_when_its_lease_ran_out_and_not_before() -> None:
    server, clock = Server(), Clock()
    gone = Election(server, LEASE, "a", clock)
    assert await gone._hold()  # and is never heard of again
    heir = Election(server, LEASE, "b", clock)
    task = asyncio.create_task(heir.run(forever))
    await wait_until_async(lambda: heir.starting() == "")
    clock.now += leader.DURATION_SECONDS - 1
    await asyncio.sleep(0.1)
    assert not heir.leading
    clock.now += 2
    await wait_until_async(lambda: heir.leading)
    assert server.lease is not None and server.lease["spec"]["leaseTransitions"] == 2
    await end(task)


async def test_a_leader_that_cannot_renew_stops_before_another_may_start() -> None:
    server, clock = Server(), Clock()
    election = Election(server, LEASE, "a", clock)
    ran: list[str] = []

    async def term() -> None:
        ran.append("begun")
        try:
            await forever()
        finally:
            ran.append("ended")

    task = asyncio.create_task(election.run(term))
    await wait_until_async(lambda: election.leading)
    server.away = True
    clock.now += leader.RENEW_SECONDS / 2
    await asyncio.sleep(0.1)
    assert ran == ["begun"], "an outage that is short is none"
    clock.now += leader.RENEW_SECONDS / 2 + 0.1
    await wait_until_async(lambda: ran == ["begun", "ended"])
    assert leader.RENEW_SECONDS + leader._STOP_SECONDS < leader.DURATION_SECONDS
    server.away = False
    await wait_until_async(lambda: ran == ["begun", "ended", "begun"])  # the process lives on and leads again
    await end(task)


async def test_a_leader_that_is_overtaken_stops_at_once() -> None:
    server, clock = Server(), Clock()
    election = Election(server, LEASE, "a", clock)
    task = asyncio.create_task(election.run(forever))
    await wait_until_async(lambda: election.leading)
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "somebody"
    server.lease["metadata"]["resourceVersion"] = "99"
    await wait_until_async(lambda: not election.leading)
    await end(task)
    assert server.holder == "somebody", "it hands back what it holds only"


async def test_the_end_of_a_term_is_the_end_of_the_run() -> None:
    server = Server()

    async def short() -> None:
        return

    async def broken() -> None:
        raise RuntimeError("a part that must not end")

    await Election(server, LEASE, "a").run(short)
    with pytest.raises(RuntimeError):
        await Election(server, LEASE, "b").run(broken)
    assert server.holder == ""


async def test_a_missing_lease_is_named() -> None:
    server = Server(lease=None)
    election = Election(server, LEASE, "a")
    task = asyncio.create_task(election.run(forever))
    await wait_until_async(lambda: "sys/operator does not exist: the chart makes it" in election.starting())
    server.lease = {"metadata": {"resourceVersion": "1"}}
    await wait_until_async(lambda: election.leading)
    await end(task)


async def test_a_lease_under_which_work_goes_on_is_not_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "_STOP_SECONDS", 0.05)
    server, over = Server(), asyncio.Event()
    election = Election(server, LEASE, "a")

    async def stubborn() -> None:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    try:
        task = asyncio.create_task(election.run(stubborn))
        await wait_until_async(lambda: election.leading)
        task.cancel()
        with pytest.raises(leader.LeadershipLost):
            await task
        assert server.holder == election.identity
    finally:
        over.set()


@pytest.mark.parametrize("steps", range(6))
async def test_an_end_that_comes_with_an_answer_is_an_end(steps: int) -> None:
    """Whatever the loop is about to do with the answer: a SIGTERM is not forgotten over it."""
    answered = asyncio.Event()

    class Late(Server):
        async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
            await answered.wait()
            return await super().get(api_version, kind, namespace, name)

    task = asyncio.create_task(Election(Late(), LEASE, "a").run(forever))
    await asyncio.sleep(0.01)
    answered.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
    assert done and task.cancelled()


async def test_a_lease_that_was_taken_unheard_is_handed_back() -> None:
    server = Server(deaf=True)
    election = Election(server, LEASE, "a", Clock())
    task = asyncio.create_task(election.run(forever))
    await wait_until_async(lambda: server.holder == election.identity)
    assert not election.leading, "it cannot know"
    server.deaf = False
    election._leases = Silent(server)
    await end(task)
    assert server.holder == ""


class Silent:
    """The server for whoever does not renew any more."""

    def __init__(self, server: Server) -> None:
        self.get, self.merge = server.get, server.merge


async def test_a_leader_that_stood_still_holds_no_lease_before_it_has_renewed_it() -> None:
    """Its work wakes up together with it, and may be quicker than the election."""
    server, clock = Server(), Clock()
    election = Election(server, LEASE, "a", clock)
    assert not election.holds()
    task = asyncio.create_task(election.run(forever))
    await wait_until_async(election.holds)
    clock.now += 10  # five seconds before anybody else may lead
    assert election.leading and not election.holds()
    await end(task)


async def test_a_machine_that_was_suspended_wakes_up_without_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another led meanwhile, and yet no second of monotonic time has passed."""
    slept = 0.0
    real = time.clock_gettime

    def gettime(clock: int) -> float:
        return real(clock) + (slept if clock == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", gettime)
    server = Server()
    election = Election(server, LEASE, "a")
    task = asyncio.create_task(election.run(forever))
    await wait_until_async(election.holds)
    server.away = True
    slept = 3600.0
    assert election.leading and not election.holds()
    await wait_until_async(lambda: not election.leading)
    await end(task)
