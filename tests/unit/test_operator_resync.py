"""The resync: what is listed when, and what a list of a namespace that was out of reach must not miss."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.kube_stand_in import new_service
from tests.unit.operator_rendered import SETTINGS

from semipd_operator.answers import ApiRefused
from semipd_operator.app import Operator
from semipd_operator.health import Health, WatchFreshness
from semipd_operator.informer import KINDS, Informer
from semipd_operator.resync import Resync
from semipd_operator.rights import Rights
from semipd_operator.workqueue import Key, WorkQueue

pytestmark = pytest.mark.unit
SPD = "SemiPDService"
FORBIDDEN, BROKEN = ApiRefused(403, "forbidden"), ApiRefused(500, "etcd")


class Lists:
    """Lists as the API server's: of `objects`, or refused; an older answer is of the first moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.refuse: dict[tuple[str, str], Exception] = {}
        self.objects: list[dict[str, Any]] = []
        self.meanwhile: Callable[[str], None] = lambda kind: None

    async def list(
        self, api_version: str, kind: str, namespace: str, selector: str, *, newest: bool
    ) -> tuple[list[dict[str, Any]], int]:
        self.asked[kind, namespace].append(self.now)
        if error := self.refuse.get((kind, namespace)):
            raise error
        self.meanwhile(kind)
        return [one for one in self.objects if kind == SPD] if newest else [], 5


class Ended(Exception):
    """Of the test's time."""


class Fixture:
    def __init__(self, *namespaces: str) -> None:
        self.kube = Lists()
        self.informer, self.watches = Informer(namespaces), WatchFreshness(namespaces)
        self.queue = WorkQueue()
        self.health = Health(self.queue, self.watches, 180)
        self.gone = asyncio.Event()
        kube: Any = self.kube
        self.resync = Resync(
            kube,
            namespaces,
            60.0,
            self.informer,
            self.watches,
            Rights(),
            self.health,
            self.queue,
            self.gone.set,
            lambda: self.kube.now,
            self._sleep,
        )
        self.until = 0.0

    async def _sleep(self, seconds: float) -> None:
        self.kube.now += seconds
        if self.kube.now > self.until:
            raise Ended

    async def run(self, seconds: float) -> None:
        self.until = seconds
        with pytest.raises(Ended):
            await self.resync.run()


async def test_what_cannot_be_listed_is_tried_again_sooner_and_nothing_else_is() -> None:
    """Else a watch would have two seconds to tell what a list has shown, and everything be asked for all the time."""
    one = Fixture()
    one.kube.refuse["Pod", ""] = BROKEN
    await one.run(75)
    assert one.kube.asked["Pod", ""] == [0, 2, 6, 14, 29, 44, 59, 74]
    assert {tuple(one.kube.asked[kind, ""]) for kind in KINDS if kind != "Pod"} == {(0, 60)}
    assert one.health.starting() == "starting: no list of the services yet" and one.resync.rounds == 0


async def test_a_round_is_whole_once_everything_was_listed() -> None:
    one = Fixture()
    one.kube.refuse["Pod", ""] = BROKEN
    one.kube.meanwhile = lambda kind: one.kube.refuse.clear() if one.kube.now >= 60 else None
    await one.run(100)
    assert one.kube.asked["Pod", ""][-1] == 74 and one.resync.rounds == 1
    assert one.health.starting() == "starting: no watch of the services yet"


@pytest.mark.parametrize("error", [FORBIDDEN, BROKEN])
async def test_a_namespace_that_is_gone_has_no_other_one_listed_more_often(error: ApiRefused, caplog: Any) -> None:
    one = Fixture("a", "gone")
    for kind in KINDS:
        one.kube.refuse[kind, "gone"] = error
    await one.run(70)
    assert {tuple(one.kube.asked[kind, "a"]) for kind in KINDS} == {(0, 60)}
    assert one.kube.asked[SPD, "gone"] == [0, 2, 6, 14, 29, 44, 59]
    left_out = error is FORBIDDEN
    assert one.resync.rounds == (2 if left_out else 0)
    assert (("Pod", "gone") in one.kube.asked) != left_out
    assert ("resync: " in caplog.text) != left_out, "what RBAC refuses is told by `rights`, once"


async def test_a_namespace_whose_rights_are_taken_away_fills_no_log(caplog: Any) -> None:
    """As `kubectl delete namespace` does it; its services may still be there."""
    one = Fixture("a", "later gone")

    def withdraw(kind: str) -> None:
        if one.kube.now >= 60:
            one.kube.refuse |= {(kind, "later gone"): FORBIDDEN for kind in KINDS}

    one.kube.meanwhile = withdraw
    await one.run(600)
    assert len(one.kube.asked[SPD, "later gone"]) > 30 and one.kube.asked[SPD, "a"][:3] == [0, 60, 120]
    assert "resync: " not in caplog.text


async def test_a_namespace_without_the_right_to_its_pods_holds_up_no_other_one() -> None:
    """Somebody trimmed its Role. Its services are not looked after: what is not known of them would be told wrongly."""
    one = Fixture("a", "trimmed")
    made = new_service()
    made["metadata"] |= {"namespace": "trimmed", "resourceVersion": "4"}
    one.informer.told(SPD, made)
    one.kube.refuse["Pod", "trimmed"] = FORBIDDEN
    await one.run(130)
    assert one.resync.rounds == 3 and one.informer.left_out == {"trimmed"}
    await one.informer.complete()
    assert one.informer.get(SPD, "trimmed", "demo") is None
    assert one.kube.asked["Pod", "trimmed"][:4] == [0, 60, 62, 66], "asked for again, and not taken in without"
    one.kube.refuse.clear()
    one.kube.objects.append(made)
    await one.run(150)
    assert not one.informer.left_out and one.informer.get(SPD, "trimmed", "demo")


async def test_a_service_that_is_made_while_its_namespace_is_taken_in_is_seen() -> None:
    """Of a namespace that is left out no event is heeded; one that came after its list was missed for a period."""
    kube: Any = Lists()
    operator = Operator(kube, replace(SETTINGS, namespaces=("a", "team")), "test")
    kube.refuse[SPD, "team"] = FORBIDDEN
    await operator.resync._list(SPD, "team")
    assert operator.informer.left_out == {"team"}
    kube.refuse.clear()
    made = new_service()
    made["metadata"]["resourceVersion"] = "4"

    def make(kind: str) -> None:
        if kind == "Pod":
            kube.objects.append(made)
            operator.on_event(SPD, made, False)

    kube.meanwhile = make
    await operator.resync._list(SPD, "team")
    assert operator.informer.get(SPD, "team", "demo") and not operator.informer.left_out
    assert await operator.queue.get() == Key("team", "demo")
    await operator.agents.close()
