"""A term of a leader: what it exports while it lasts, and that nothing is left of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.unit.operator_observed import observed
from tests.unit.operator_rendered import SETTINGS

from e2e.lib.waiting import wait_until_async
from semipd_operator import app
from semipd_operator.reconcile import Next
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.unit


def exported() -> tuple[float | None, ...]:
    """Services, the queue's length, refused lists of pods."""
    return (
        REGISTRY.get_sample_value("semipd_operator_services"),
        REGISTRY.get_sample_value("semipd_operator_queue_length"),
        REGISTRY.get_sample_value("semipd_operator_rights_missing", {"resource": "pods", "verb": "list"}),
    )


async def test_a_leader_exports_what_is_and_one_that_lost_the_lease_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    async def known(*_: str) -> bool:
        return True

    async def for_ever(*_: Any) -> None:
        await asyncio.Event().wait()

    async def at_once() -> None: ...

    kube: Any = SimpleNamespace(knows=known)
    one = app.Operator(kube, SETTINGS, "test")
    go_on = asyncio.Event()

    async def reconcile(key: Key) -> Next:
        one.statuses.observe(key, observed())
        await go_on.wait()
        return Next.NEWS

    monkeypatch.setattr(app, "listen", for_ever)
    monkeypatch.setattr(one.resync, "run", for_ever)
    monkeypatch.setattr(one.resync, "follow_autoscalers", for_ever)
    monkeypatch.setattr(one.informer, "complete", at_once)
    monkeypatch.setattr(one.reconciler, "reconcile", reconcile)
    term = asyncio.create_task(one.run())
    one.rights.answered("Pod", "list", "", 403)
    one.queue.add(Key("n", "a"))
    await wait_until_async(lambda: exported() == (1, 1, 1), describe="one service, in a reconcile")
    go_on.set()
    await wait_until_async(lambda: exported() == (1, 0, 1), describe="nothing waits any more")
    go_on.clear()
    one.queue.add(Key("n", "b"))
    await wait_until_async(lambda: exported() == (2, 1, 1))
    term.cancel()
    await asyncio.gather(term, return_exceptions=True)
    assert exported() == (0, 0, 0)
