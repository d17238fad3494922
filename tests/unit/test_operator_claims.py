"""Services that another operator looks after: whose name counts, and two that write at the same time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, StandIn, new_service
from tests.unit.operator_reconciler import Fixture
from tests.unit.operator_rendered import SETTINGS, make

from semipd_agent.contract import AgentFile
from semipd_operator.answers import ApiRefused
from semipd_operator.claims import DEAD_AFTER, Claims, own_name
from semipd_operator.informer import KINDS, Informer
from semipd_operator.reconcile import Next
from semipd_operator.render.configmap import config_map
from semipd_operator.settings import CLAIM_ANNOTATION, LeaseName
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.unit
OLD, NEW = b"0123456789abcdef", b"fedcba9876543210"
SERVICE = Key("team", "demo")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_operator_is_known_by_its_lease_or_by_its_key() -> None:
    assert own_name(LeaseName("sys", "spd"), OLD) == "sys/spd"
    assert own_name(None, OLD) != own_name(None, NEW)
    assert OLD.decode() not in own_name(None, OLD) and own_name(None, OLD) == own_name(None, OLD)


def test_the_config_map_bears_the_name() -> None:
    made = config_map(make({}), replace(SETTINGS, name="sys/spd"))
    assert made["metadata"]["annotations"] == {CLAIM_ANNOTATION: "sys/spd"}
    assert AgentFile.model_validate_json(made["data"]["agent.json"]).token_sha256


def bearing(name: str, version: int = 1) -> dict[str, Any]:
    return {"metadata": {"annotations": {CLAIM_ANNOTATION: name}, "resourceVersion": str(version)}}


@dataclass
class Leases:
    renewed: dict[str, datetime] = field(default_factory=dict)
    refused: int = 0
    stamped: dict[str, datetime] = field(default_factory=dict)
    """When the API server says that it took the last write."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if self.refused:
            raise ApiRefused(self.refused, "forbidden")
        at = self.renewed.get(f"{namespace}/{name}")
        spec = at and {"holderIdentity": "x", "renewTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        stamps = [{"time": one.isoformat()} for key, one in self.stamped.items() if key == f"{namespace}/{name}"]
        return spec and {"metadata": {"managedFields": [{"manager": "helm"}, *stamps]}, "spec": spec}


async def test_what_bears_no_name_or_ours_is_ours() -> None:
    claims = Claims(Leases(), "sys/spd")
    for live in (None, {"metadata": {}}, bearing("sys/spd")):
        assert await claims.other(SERVICE, live) == ""


async def test_what_a_living_operator_looks_after_is_left_alone_until_it_is_gone() -> None:
    leases = Leases({"a/spd": datetime.now(UTC)})
    claims = Claims(leases, "b/spd")
    assert await claims.other(SERVICE, bearing("a/spd")) == "a/spd"
    leases.renewed["a/spd"] = datetime.now(UTC) - DEAD_AFTER + timedelta(seconds=5)
    assert await claims.other(SERVICE, bearing("a/spd")) == "a/spd", "one replica may be handing over to the next"
    leases.renewed["a/spd"] = datetime.now(UTC) - DEAD_AFTER - timedelta(seconds=5)
    assert await claims.other(SERVICE, bearing("a/spd")) == ""
    del leases.renewed["a/spd"]
    assert await Claims(leases, "b/spd").other(SERVICE, bearing("a/spd")) == "", "uninstalled"


@pytest.mark.parametrize("minutes", [-7, 7])
async def test_no_clock_but_the_api_servers_says_that_an_operator_is_gone(minutes: int) -> None:
    """Neither that of the other one's node, nor our own."""
    skew, now = timedelta(minutes=minutes), datetime.now(UTC)
    leases = Leases({"a/spd": now - skew}, stamped={"a/spd": now + skew})
    claims = Claims(leases, "b/spd", ahead=lambda: skew)
    assert await claims.other(SERVICE, bearing("a/spd")) == "a/spd"
    leases.stamped["a/spd"] -= DEAD_AFTER + timedelta(seconds=5)
    assert await claims.other(SERVICE, bearing("a/spd")) == ""


@pytest.mark.parametrize("name", ["key-1234", "a/spd"])
async def test_where_no_lease_can_be_seen_the_overwritten_one_yields_for_longer_each_time(name: str) -> None:
    clock = Clock()
    claims = Claims(Leases(refused=403), "b/spd", clock)
    assert await claims.other(SERVICE, bearing(name)) == "", "a successor with another key must not wait"
    assert await claims.other(SERVICE, bearing(name, 2)) == "", "it was never ours: theirs was not written over ours"
    waits = []
    for version in range(3, 11):
        claims.hold(SERVICE)
        began = clock.now
        while await claims.other(SERVICE, bearing(name, version)):
            clock.now += 10
        waits.append(clock.now - began)
    assert waits[:3] == [60, 120, 240] and waits[-1] == 3600
    for version in range(11, 1111):  # for months
        claims.hold(SERVICE)
        assert await claims.other(SERVICE, bearing(name, version)) == name
        clock.now += 3600


async def test_a_server_in_trouble_is_no_reason_to_take_over() -> None:
    claims = Claims(Leases(refused=503), "b/spd")
    for _ in range(2):
        with pytest.raises(ApiRefused):
            await claims.other(SERVICE, bearing("a/spd"))


async def test_a_conflict_is_told_once_and_again_when_the_event_is_gone() -> None:
    clock = Clock()
    claims = Claims(Leases(), "b/spd", clock)
    assert claims.news(SERVICE, "a/spd") and not claims.news(SERVICE, "a/spd")
    assert claims.news(SERVICE, "c/spd")
    clock.now += 3600
    assert claims.news(SERVICE, "c/spd")


ALL = 1 << 30


class Turns:
    """An API server as one of two operators has it: its next request waits until it is let go on."""

    def __init__(self, kube: StandIn) -> None:
        self._kube, self._left = kube, ALL
        self._held, self._free = asyncio.Event(), asyncio.Event()
        self.clock_ahead = kube.clock_ahead

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._kube, name)

        async def asked(*what: Any, **more: Any) -> Any:
            while not self._left:
                self._held.set()
                self._free.clear()
                await self._free.wait()
            self._left -= 1
            return await method(*what, **more)

        return asked

    async def run(self, task: asyncio.Task[Any], requests: int = ALL) -> None:
        """Lets it make so many requests, or come to its end."""
        self._left = requests
        self._held.clear()
        self._free.set()
        held = asyncio.ensure_future(self._held.wait())
        await asyncio.wait({task, held}, return_when=asyncio.FIRST_COMPLETED)
        held.cancel()


class Rival(Fixture):
    """An operator among others of one API server, with watches of its own."""

    def __init__(self, kube: StandIn, name: str, key: bytes, *, late: bool) -> None:
        self.turns, informer = Turns(kube), Informer()
        self._late, self._untold = late, list[tuple[dict[str, Any], bool]]()
        super().__init__(kube=kube, asked=self.turns, informer=informer, settings=replace(SETTINGS, name=name, key=key))
        for obj in [one for one in kube.objects.values() if one["kind"] in KINDS]:
            informer.told(obj["kind"], obj)
        self._informer = informer
        kube.watches.append(self._watched)

    def _watched(self, obj: dict[str, Any], gone: bool) -> None:
        self._untold.append((obj, gone))
        if not self._late:
            self.hear()

    def hear(self) -> None:
        while self._untold:
            obj, gone = self._untold.pop(0)
            self._informer.told(obj["kind"], obj, gone=gone)


def holder(kube: StandIn) -> str:
    found = kube.objects["ConfigMap", KEY.namespace, f"{KEY.name}-agent"]
    return str(found["metadata"]["annotations"][CLAIM_ANNOTATION])


def holders(kube: StandIn) -> list[str]:
    """The names that the ConfigMap bears, one after the other. One with a Lease that lives is overwritten by nobody."""
    names: list[str] = []

    def watched(obj: dict[str, Any], gone: bool) -> None:
        if obj["kind"] == "ConfigMap":
            names.append(obj["metadata"]["annotations"][CLAIM_ANNOTATION])

    kube.watches.append(watched)
    return names


@pytest.mark.parametrize("late", [False, True], ids=["told at once", "told late"])
@pytest.mark.parametrize("owned", [False, True], ids=["created by both", "taken over under way"])
async def test_of_two_that_write_at_the_same_time_one_serves_and_the_other_knows(owned: bool, late: bool) -> None:
    """However far the first one is when the second one comes, and the second one when the first goes on. The first has
    no Lease, as the operator of a developer; the second is an installed one."""
    for far, further in itertools.product(range(12), range(0, 12, 2)):
        kube = StandIn(new_service())
        names = holders(kube)
        first = Rival(kube, "key-1234", OLD, late=late)
        if owned:
            await first.reconcile()
            first.hear()
            first.change(replicas=2, slo={"ttftMilliseconds": 500})
            first.hear()
        lease = {"kind": "Lease", "metadata": {"namespace": "sys", "name": "spd"}}
        kube.put({**lease, "spec": {"renewTime": datetime.now(UTC).isoformat()}})
        second = Rival(kube, "sys/spd", NEW, late=late)
        tasks = []
        for one, requests in ((first, far), (second, further)):
            tasks.append(asyncio.ensure_future(one.reconcile()))
            await one.turns.run(tasks[-1], requests)
        for one, task in zip((first, second), tasks, strict=True):
            await one.turns.run(task)
            await task

        ends: list[Next] = []
        for _ in range(5):  # as the watches bring them back to it
            before, ends = kube.asked["apply", "ConfigMap"], []
            for one in (first, second):
                one.hear()
                ends.append(await one.reconcile())
        where = f"after {far} and {further} requests"
        assert "key-1234" not in names[names.index("sys/spd") :] if "sys/spd" in names else not owned, where
        assert kube.asked["apply", "ConfigMap"] == before, f"peace {where}"
        serves = [len(one.statuses) for one in (first, second)]
        assert serves == [int(holder(kube) == name) for name in ("key-1234", "sys/spd")], where
        assert [end is Next.RETRY for end in ends] == [not one for one in serves], where
        if owned:
            assert serves == [0, 1], "whose Lease can be seen needs not yield"
        accepted = kube.condition("SpecAccepted")
        assert accepted["status"] == "True" and kube.service()["status"]["observedGeneration"] == 1 + owned, where
        assert "SpecRejected" not in kube.told, where


async def test_who_is_overtaken_again_and_again_says_so_after_a_while_and_not_before() -> None:
    one = Fixture()
    await one.reconcile()
    shown = one.kube.service()["status"]
    one.change(slo={"ttftMilliseconds": 500})
    apply = one.kube.apply_to

    async def overtaken(obj: Any, live: Any) -> Any:
        if obj["kind"] == "ConfigMap":
            one.kube.put({**one.kube.objects["ConfigMap", KEY.namespace, f"{KEY.name}-agent"], "data": {"a": "b"}})
        return await apply(obj, live)

    one.kube.apply_to = overtaken  # type: ignore[method-assign]
    for one.now in (0, 29):
        assert await one.reconcile() is Next.RETRY
        assert one.kube.service()["status"] == shown
    one.now = 30
    assert await one.reconcile() is Next.RETRY
    accepted = one.kube.condition("SpecAccepted")
    assert accepted["reason"] == "ApplyFailed" and "the object has been modified" in accepted["message"]
    assert "--show-managed-fields" in accepted["message"], "who else writes it"
    one.kube.apply_to = apply  # type: ignore[method-assign]
    assert await one.reconcile() is Next.NEWS and one.kube.condition("SpecAccepted")["status"] == "True"


async def test_who_is_overtaken_once_goes_on_in_the_same_look() -> None:
    one = Fixture()
    await one.reconcile()
    one.change(slo={"ttftMilliseconds": 500})
    stale = one.kube.objects["Deployment", *KEY]
    one.change(engine={"maxNumSeqs": 7})
    unheard = {**stale, "metadata": {**stale["metadata"], "resourceVersion": "800"}}
    one.kube.objects["Deployment", *KEY] = unheard  # the watch is behind
    assert await one.reconcile() is Next.NEWS
    assert one.kube.condition("SpecAccepted")["status"] == "True"
    template = one.kube.objects["Deployment", *KEY]["spec"]["template"]["spec"]
    assert "--max-num-seqs" in template["containers"][0]["command"]


async def test_what_was_changed_since_it_was_read_is_not_deleted() -> None:
    """Another operator, of a newer generation, wants it again."""
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    one.change()
    budget = one.kube.objects["PodDisruptionBudget", *KEY]
    changed = {**budget, "metadata": {**budget["metadata"], "resourceVersion": "800"}}
    one.kube.objects["PodDisruptionBudget", *KEY] = changed
    delete = one.kube.delete
    seen = []

    async def deletes(*what: Any) -> bool:
        seen.append(what[-1])
        return await delete(*what)

    one.kube.delete = deletes  # type: ignore[assignment,method-assign]
    assert await one.reconcile() is Next.NEWS
    assert seen[0] != "800" and seen[1:] == ["800"], "read again in between"
