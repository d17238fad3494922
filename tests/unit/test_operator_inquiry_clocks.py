"""Whose clocks time what a pod waits for: ours and the API server's, and nobody else's."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.operator_asked import Asked, raw, unready
from tests.unit.operator_observed import ago

from semipd_operator.inquiry import Inquiry

pytestmark = pytest.mark.unit


async def test_a_clock_ahead_of_ours_hides_no_pod() -> None:
    """The API server's times are half an hour in our future."""
    one = Inquiry(Asked())
    unseen = {"metadata": {"name": "u", "uid": "u", "namespace": "d", "creationTimestamp": ago(-1800).isoformat()}}
    pods = [raw("p", -1800), unseen]
    first = await one.look(pods, ago(0))
    later = await one.look(pods, ago(-40))
    assert first[0].complaint is None and later[0].complaint
    assert later[0].preparing_since == later[1].unseen_since == ago(0)


@pytest.mark.parametrize("minutes", [-7, 7])
async def test_no_clock_shows_a_cause_before_its_time(minutes: int) -> None:
    """Neither the API server's, which stamps creations, nor a scheduler's, which stamps what it places."""
    skew = timedelta(minutes=minutes)
    one = Inquiry(Asked(), ahead=lambda: skew)
    unseen = {
        "metadata": {"name": "u", "uid": "u", "namespace": "d", "creationTimestamp": (ago(20) + skew).isoformat()}
    }
    placed = raw("p", 20 + 60 * minutes)  # by a scheduler as wrong the other way
    placed["metadata"]["creationTimestamp"] = (ago(20) + skew).isoformat()
    first = await one.look([unseen, placed], ago(0))
    assert first[0].unseen_since == ago(20)
    assert first[1].preparing_since and first[1].preparing_since >= ago(20)
    running = unready("q", 1)
    await one.look([running], ago(0))
    running["status"] = raw("q", 3600)["status"]
    [view] = await one.look([running], ago(-1))
    assert view.preparing_since == ago(-1), "what we saw begin began then"


@pytest.mark.parametrize("minutes", [-7, 7])
async def test_starts_and_ends_are_timed_by_our_clock_too(minutes: int) -> None:
    """Of what is silent, and of what explains why there are too few pods."""
    skew = timedelta(minutes=minutes)
    for seen_alive in (False, True):
        one = Inquiry(Asked())
        pod = unready("p", 20)
        pod["metadata"]["creationTimestamp"] = ago(40).isoformat()
        [view] = await one.look([pod], ago(60)) if seen_alive else [None]
        [engine] = pod["status"]["containerStatuses"]
        engine["state"] = {"running": {"startedAt": (ago(20) + skew).isoformat()}}
        [view] = await one.look([pod], ago(20))
        assert view.started_at and (view.started_at == ago(20) if seen_alive else ago(40) <= view.started_at <= ago(20))
        [again] = await one.look([pod], ago(10))
        assert again.started_at == view.started_at, "it runs on"
        ended = {"type": "Ready", "status": "False", "lastTransitionTime": (ago(5) + skew).isoformat()}
        pod["status"] = {"phase": "Failed", "reason": "Evicted", "conditions": [ended]}
        [view] = await one.look([pod], ago(0))
        assert view.ended_at == view.ready_since == ago(0)


@pytest.mark.parametrize("minutes", [-7, 7])
async def test_what_a_pod_waits_for_is_timed_by_our_clock_too(minutes: int) -> None:
    """Its node's, which stamps the start of containers, is as wrong as it likes."""
    one = Inquiry(Asked())
    pod = unready("p", 20)
    pod["metadata"]["creationTimestamp"] = ago(20).isoformat()
    started = {"running": {"startedAt": ago(20 + 60 * minutes).isoformat()}}
    pod["status"]["initContainerStatuses"] = [{"name": "wait-for-db", "state": started}]
    [view] = await one.look([pod], ago(0))
    assert view.held and view.held_since and ago(20) <= view.held_since <= ago(0)
    ready = {"name": "engine", "ready": True, "state": started}
    proxy = {"name": "proxy", "ready": True, "state": started}
    pod["status"] = {**pod["status"], "initContainerStatuses": [], "containerStatuses": [ready, proxy]}
    await one.look([pod], ago(-60))
    proxy["ready"] = False
    [view] = await one.look([pod], ago(-90))
    assert view.held and view.held_since == ago(-90), "it was ready until then"
