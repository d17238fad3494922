"""Probes that fail: of the engine though it serves, of what stands beside it, and those for which containers end."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.unit.operator_observed import NOW, ago, conditions, heard, observed, report

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.answers import ApiAway
from semipd_operator.inquiry import Inquiry
from semipd_operator.status import AgentView, Observed, PodView, summarise

pytestmark = pytest.mark.unit

STARTUP = "Startup probe failed: HTTP probe failed with statuscode: 503"
READINESS = "Readiness probe failed: HTTP probe failed with statuscode: 404"
LIVENESS = 'Liveness probe errored and resulted in unknown state: strconv.Atoi: parsing "agnt": invalid syntax'
KILLING = "Container engine failed liveness probe, will be restarted"


def event(reason: str, message: str, seconds_ago: float, container: str = "engine") -> dict[str, Any]:
    at = ago(seconds_ago).isoformat()
    place = {"fieldPath": f"spec.containers{{{container}}}"}
    return {"reason": reason, "message": message, "lastTimestamp": at, "involvedObject": place}


def engine(**changes: Any) -> dict[str, Any]:
    running = {"running": {"startedAt": ago(90).isoformat()}}
    return {"name": "engine", "ready": False, "started": True, "restartCount": 0, "state": running, **changes}


class Kube:
    """Has the events of every pod, and counts who asks for them."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.told, self.asked, self.away = list(events), 0, False

    async def events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        self.asked += 1
        if self.away:
            raise ApiAway
        return self.told

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        return None

    async def serves(self, api_version: str) -> bool:
        return False


async def look(kube: Kube, *containers: dict[str, Any], serving: bool = True, **spec: Any) -> PodView:
    labels = {"pod-template-hash": "7d9c", "semipd.io/template-hash": "h"}
    meta = {"name": "p1", "uid": "p1", "namespace": "d", "labels": labels, "creationTimestamp": ago(100).isoformat()}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": ago(95).isoformat()}
    status = {"conditions": [unready], "containerStatuses": list(containers)}
    one = Inquiry(kube)
    await one.look([{"metadata": meta, "spec": spec, "status": status}], ago(60), ["p1"] if serving else [])
    [view] = await one.look([{"metadata": meta, "spec": spec, "status": status}], NOW, ["p1"] if serving else [])
    return view


def serves(seconds: float = 31) -> AgentView:
    return replace(heard(report()), serves_since=ago(seconds))


def shown(view: PodView, agent: AgentView) -> tuple[str, str]:
    status = summarise(Observed(**{**vars(observed()), "pods": (view,), "agents": {"p1": agent}}))
    ready = status.condition("Ready")
    assert ready and conditions(status)["Available"] == conditions(status)["Ready"]
    return status.reason, ready.message


OWN = (
    "Remedy: Correct {kind}Probe of container engine in spec.podTemplate, or what it asks, or remove it there: as "
    "rendered it asks port 9400, which a mesh or NetworkPolicy must leave open to the kubelet."
)


@pytest.mark.parametrize(
    ("started", "kind", "words"), [(True, "readiness", "statuscode: 404"), (False, "startup", "statuscode: 503")]
)
async def test_a_probe_of_the_engine_that_fails_though_it_serves_is_named_with_its_last_failure(
    started: bool, kind: str, words: str
) -> None:
    kube = Kube(event("Unhealthy", READINESS, 2), event("Unhealthy", STARTUP, 80))
    view = await look(kube, engine(started=started))
    assert shown(view, serves(29)) == ("PodsNotReady", "none of 1 pods is ready yet")
    reason, message = shown(view, serves())
    assert reason == "ProbeFailing(engine)"
    said = f"p1: the engine serves, and its {kind} probe fails: HTTP probe failed with {words}"
    assert message == f"{said}. {OWN.format(kind=kind)}"
    bare = await look(Kube(), engine(started=started))
    assert shown(bare, serves())[1].startswith(f"p1: the engine serves, and its {kind} probe fails. Remedy: ")


async def test_a_probe_that_fails_for_a_moment_of_an_engine_that_has_long_served_is_not_told() -> None:
    view = await look(Kube(event("Unhealthy", READINESS, 2)), engine())
    assert shown(replace(view, ready_since=ago(29)), serves(3600)) == ("PodsNotReady", "none of 1 pods is ready yet")
    assert shown(replace(view, ready_since=ago(31)), serves(3600))[0] == "ProbeFailing(engine)"


async def test_while_the_engine_loads_its_probes_fail_and_nobody_asks_why() -> None:
    kube = Kube(event("Unhealthy", STARTUP, 1))
    view = await look(kube, engine(started=False), serving=False)
    loading = heard(report(engine=EngineStatus(state=EnginePhase.LOADING, ready=False)))
    status = summarise(Observed(**{**vars(observed()), "pods": (view,), "agents": {"p1": loading}}))
    assert status.reason == "Loading" and kube.asked == 0


def test_since_when_an_engine_serves_is_remembered_until_it_does_not() -> None:
    view = AgentView().heard(report(), ago(50)).heard(report(), ago(20)).failed("no answer")
    assert view.serves_since == ago(50)
    assert view.heard(report(engine=EngineStatus(state=EnginePhase.LOADING, ready=False)), NOW).serves_since is None


def ended(code: int, began: float, **state: Any) -> dict[str, Any]:
    run = {
        "exitCode": code,
        "reason": "Completed",
        "startedAt": ago(began).isoformat(),
        "finishedAt": ago(5).isoformat(),
    }
    return engine(lastState={"terminated": run}, restartCount=4, **state)


@pytest.mark.parametrize("state", [{}, {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}], ids=["runs", "waits"])
async def test_a_container_that_the_kubelet_ends_for_its_probe_is_no_crash(state: dict[str, Any]) -> None:
    kube = Kube(event("Killing", KILLING, 6), event("Unhealthy", LIVENESS, 6), event("Unhealthy", STARTUP, 1))
    reason, message = shown(await look(kube, ended(0, 90, **state), serving=False), AgentView())
    assert reason == "ProbeFailing(engine)"
    said = "p1: the kubelet ended container engine, as its liveness probe fails: strconv.Atoi: parsing"
    assert message.startswith(said) and message.endswith(OWN.format(kind="liveness"))


async def test_each_end_of_a_container_is_explained_at_once_however_lately_it_was_asked_about() -> None:
    """Else it is a crash loop for some seconds after each end."""
    kube = Kube(event("Killing", KILLING, 40))
    one = Inquiry(kube, clock := iter(range(1000)).__next__)  # a second passes with each look at it
    meta = {"name": "p1", "uid": "p1", "namespace": "d", "labels": {"pod-template-hash": "7d9c"}}

    async def reason(began: float) -> str:
        pod = {"metadata": meta, "status": {"containerStatuses": [ended(137, began)]}}
        [view] = await one.look([pod], NOW)
        assert view.problem
        return view.problem.reason

    assert await reason(60) == "ProbeFailing"
    kube.told.append(event("Killing", KILLING, 6))
    assert await reason(30) == "ProbeFailing" and kube.asked == 2
    assert await reason(30) == "ProbeFailing" and kube.asked == 2, "and not again for a while"
    assert clock() < 10


async def test_an_api_server_that_does_not_answer_is_not_asked_at_each_look_for_a_container_that_ended() -> None:
    kube = Kube(event("Killing", KILLING, 40))
    one = Inquiry(kube, lambda: 0.0)
    meta = {"name": "p1", "uid": "p1", "namespace": "d", "labels": {"pod-template-hash": "7d9c"}}
    await one.look([{"metadata": meta, "status": {"containerStatuses": [ended(137, 60)]}}], NOW)
    kube.away = True
    for _ in range(3):
        await one.look([{"metadata": meta, "status": {"containerStatuses": [ended(137, 30)]}}], NOW)
    assert kube.asked == 2


async def test_what_ended_an_earlier_run_is_not_why_the_last_one_ended() -> None:
    kube = Kube(event("Killing", KILLING, 600), event("Unhealthy", LIVENESS, 601))
    waits = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    assert shown(await look(kube, ended(1, 90, **waits), serving=False), AgentView())[0] == "CrashLoop(engine)"


async def test_the_probe_of_what_stands_beside_the_engine_is_told_in_the_kubelets_words() -> None:
    words = "Startup probe failed: dial tcp 10.0.0.1:8080: connect: connection refused"
    kube = Kube(event("Unhealthy", words, 2, "proxy"))
    began = {"running": {"startedAt": ago(90).isoformat()}}
    proxy = {"name": "proxy", "ready": False, "started": False, "state": began}
    view = await look(kube, engine(ready=True), proxy)
    assert view.held and view.held.message.endswith("probe fails: dial tcp 10.0.0.1:8080: connect: connection refused")
    assert shown(view, serves())[0] == "ProbeFailing(proxy)"


@pytest.mark.parametrize("at", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456Z"])
async def test_the_time_of_an_event_comes_in_two_forms(at: str) -> None:
    killing = {"reason": "Killing", "message": KILLING, "series": {"lastObservedTime": at}}
    view = await look(Kube(killing), ended(0, 90), serving=False)
    assert datetime.fromisoformat(at) >= NOW and view.problem and view.problem.reason == "ProbeFailing"
