"""Containers that end, are killed or are never ready: what is said of each, and for how long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.operator_observed import ago, conditions, heard, observed, report
from tests.unit.operator_pods import running

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.status import summarise
from semipd_operator.status.pods import pod_view

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("lived", "shown"), [(599, "CrashLoop"), (600, "Loading")])
def test_a_container_that_ended_after_a_long_run_is_in_no_crash_loop(lived: float, shown: str) -> None:
    last = {"exitCode": 1, "startedAt": ago(lived + 9).isoformat(), "finishedAt": ago(9).isoformat()}
    engine = {**running("engine", 8), "restartCount": 3, "lastState": {"terminated": last}}
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"containerStatuses": [engine]}})
    assert conditions(summarise(observed(pods=(view,), agents={})))["Ready"] == f"False {shown}"


@pytest.mark.parametrize(("changed", "shown"), [(500, "APINotResponding"), (700, "trouble")])
@pytest.mark.parametrize(
    ("last", "trouble"),
    [({"exitCode": 1}, "CrashLoop"), ({"exitCode": 137, "reason": "OOMKilled"}, "OutOfMemory")],
    ids=["crashed", "killed for memory"],
)
def test_what_ended_a_container_before_it_served_is_not_why_it_is_not_ready(
    last: dict[str, Any], trouble: str, changed: float, shown: str
) -> None:
    """It runs for ten minutes: ready in between, or not since its start."""
    engine = {**running("engine", 600), "restartCount": 3, "lastState": {"terminated": last}}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": ago(changed).isoformat()}
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"conditions": [unready], "containerStatuses": [engine]}})
    hangs = EngineStatus(
        state=EnginePhase.DEGRADED,
        ready=False,
        architecture="llama",
        reason="APINotResponding",
        message="the process api hangs",
    )
    status = summarise(observed(pods=(view,), agents={"p2": heard(report(engine=hangs))}))
    assert conditions(status)["Available"] == f"False {trouble if shown == 'trouble' else shown}"


def test_a_container_killed_for_memory_is_told_with_its_limit_also_while_it_loads_again() -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    engine = {"name": "engine", "ready": False, "restartCount": 1, "state": {"running": {}}, "lastState": killed}
    obj = {
        "metadata": {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}},
        "spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "600Mi"}}}]},
        "status": {"containerStatuses": [engine]},
    }
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    status = summarise(observed(pods=(pod_view(obj),), agents={"p1": heard(report(engine=loading))}))
    assert conditions(status)["ModelReady"] == conditions(status)["Available"] == "False OutOfMemory"
    ready = status.condition("Ready")
    assert ready and ready.message == (
        "p1: container engine was killed at its memory limit of 600Mi. Remedy: Raise "
        "spec.engine.resources.limits.memory (unset, the limit is of a LimitRange of the namespace), or lower "
        "spec.engine.kvCacheMemory or maxModelLen."
    )
    engine["ready"] = True
    assert pod_view(obj).problem is None, "it was overcome"


@pytest.mark.parametrize("now", [{"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}], ids=["runs", "waits"])
@pytest.mark.parametrize("probe", [{}, {"readinessProbe": {"exec": {"command": ["ok"]}}}], ids=["no probe", "probe"])
@pytest.mark.parametrize("list_", ["containerStatuses", "initContainerStatuses"])
def test_another_container_killed_for_memory_is_told_until_the_pod_serves_and_is_none_of_the_models(
    list_: str, probe: dict[str, Any], now: dict[str, Any]
) -> None:
    """Without a probe it is ready as soon as it runs: the cause came and went with each of its lives."""
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    ready = "running" in now and not probe
    one = {"name": "proxy", "ready": ready, "restartCount": 2, "state": now, "lastState": killed}
    engine = {"name": "engine", "ready": False, "restartCount": 0, "state": {"running": {}}}
    limited = {"name": "proxy", "resources": {"limits": {"memory": "64Mi"}}, **probe}
    obj = {
        "metadata": {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}},
        "spec": {"containers": [{"name": "engine"}, limited]},
        "status": {"containerStatuses": [engine], list_: [one, *([engine] if list_ == "containerStatuses" else [])]},
    }
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    status = summarise(observed(pods=(pod_view(obj),), agents={"p1": heard(report(engine=loading))}))
    assert conditions(status)["ModelReady"] == "False Loading"
    assert conditions(status)["Ready"] == "False OutOfMemory" and status.reason == "OutOfMemory(proxy)"
    ready_ = status.condition("Ready")
    assert ready_ and ready_.message == (
        "p1: container proxy was killed at its memory limit of 64Mi. Remedy: Raise resources.limits.memory of "
        "container proxy in spec.podTemplate, or where a webhook adds it."
    )


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_a_sidecar_that_is_never_ready_is_named_once_the_engine_is(where: str) -> None:
    """One that is an init container, too (restartPolicy Always)."""
    engine = {"name": "engine", "ready": False, "state": {"running": {}}}
    sidecar = {"name": "proxy", "ready": False, "state": {"running": {"startedAt": ago(31).isoformat()}}}
    unready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    status: dict[str, Any] = {"conditions": [unready], "containerStatuses": [engine]}
    status[where] = [*status.get(where, []), sidecar]
    meta = {"name": "p1", "uid": "p1", "labels": {"pod-template-hash": "7d9c", "semipd.io/template-hash": "h"}}
    inits = [{"name": "proxy", "restartPolicy": "Always"}] if where == "initContainerStatuses" else []
    obj = {"metadata": meta, "spec": {"initContainers": inits}, "status": status}
    assert pod_view(obj).held is None, "the engine loads"
    engine["ready"] = True
    shown = summarise(observed(pods=(pod_view(obj),)))
    ready = shown.condition("Ready")
    assert shown.reason == "ProbeFailing(proxy)" and conditions(shown)["Available"] == "False ProbeFailing"
    assert ready and ready.message.startswith("p1: container proxy runs and is not ready, and the engine is: its ")
    sidecar["state"] = {"running": {"startedAt": ago(29).isoformat()}}
    assert summarise(observed(pods=(pod_view(obj),))).reason == "PodsNotReady", "it starts"
    sidecar["ready"] = True
    assert pod_view(obj).held is None


def beside(container: dict[str, Any], engine: dict[str, Any] | None = None, **template: Any) -> Any:
    """A pod whose engine loads, or what is given, after a container of somebody's. `template`: of that container."""
    loading = {"name": "engine", "ready": False, "restartCount": 0, "state": {"running": {}}}
    meta = {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}}
    spec = {"containers": [{"name": "proxy", **template}, {"name": "engine"}]}
    return pod_view({"metadata": meta, "spec": spec, "status": {"containerStatuses": [container, engine or loading]}})


def crashes(lived: float, runs: float, **last: Any) -> dict[str, Any]:
    """Three times so far, the last time after so many seconds; now it runs, which without a probe is ready."""
    times = {"startedAt": ago(runs + 9 + lived).isoformat(), "finishedAt": ago(runs + 9).isoformat()}
    ended = {"terminated": {"exitCode": 1, **times, **last}}
    return {**running("proxy", runs), "ready": True, "restartCount": 3, "lastState": ended}


PROBE = {"readinessProbe": {"exec": {"command": ["ok"]}}}


@pytest.mark.parametrize("probe", [{}, PROBE], ids=["no probe", "probe"])
@pytest.mark.parametrize(
    ("last", "trouble"), [({}, "CrashLoop"), ({"reason": "OOMKilled", "exitCode": 137}, "OutOfMemory")]
)
@pytest.mark.parametrize(
    ("lived", "runs", "outlived"),
    [(5, 59, False), (5, 60, True), (100, 199, False), (100, 200, True), (500, 599, False), (500, 600, True)],
)
def test_a_sidecar_that_nobody_probes_has_overcome_what_ended_it_once_it_has_run_for_twice_as_long(
    lived: float, runs: float, outlived: bool, last: dict[str, Any], trouble: str, probe: dict[str, Any]
) -> None:
    """The engine may load for half an hour beside it, and is what is waited for."""
    one = crashes(lived, runs, **last)
    if probe:
        one["ready"] = False
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    status = summarise(observed(pods=(beside(one, **probe),), agents={"p1": heard(report(engine=loading))}))
    assert conditions(status)["Ready"] == f"False {'Loading' if outlived and not probe else trouble}"


def test_what_a_sidecar_will_have_overcome_hides_no_trouble_that_lasts() -> None:
    last = {"terminated": {"exitCode": 1, "message": "no model"}}
    engine = {"name": "engine", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}
    view = beside(crashes(5, 9), {**engine, "restartCount": 3})
    assert summarise(observed(pods=(view,), agents={})).reason == "CrashLoop(engine)"
    assert summarise(observed(pods=(beside(crashes(5, 9)),), agents={})).reason == "CrashLoop(proxy)"


_ENDED = {"exitCode": 3, "message": "bye", "startedAt": ago(12).isoformat(), "finishedAt": ago(11).isoformat()}
_BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
_LAST = {"lastState": {"terminated": _ENDED}}
LIVES: dict[str, tuple[dict[str, Any], str]] = {
    "it ended": ({"restartCount": 0, "state": {"terminated": _ENDED}}, "once, with"),
    "it runs again": ({"restartCount": 1, **_LAST, **running("engine", 9)}, "once, with"),
    "it ended again": ({"restartCount": 1, **_LAST, "state": {"terminated": _ENDED}}, "2 times, last with"),
    "it waits": ({"restartCount": 1, **_LAST, "state": _BACK_OFF}, "2 times, last with"),
    "it runs for the third time": ({"restartCount": 2, **_LAST, **running("engine", 3)}, "2 times, last with"),
}
"""As the kubelet shows them, one after the other."""


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize(
    ("name", "where"), [("engine", "containerStatuses"), ("prepare", "initContainerStatuses")], ids=["engine", "init"]
)
def test_a_container_that_fails_is_told_from_the_first_time_on_with_its_ends_counted(
    life: str, name: str, where: str
) -> None:
    shown, times = LIVES[life]
    container = {"ready": False, **shown, "name": name}
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    ready = summarise(observed(pods=(pod_view({"metadata": meta, "status": {where: [container]}}),), agents={}))
    found = ready.condition("Ready")
    assert found and found.reason == "CrashLoop"
    assert found.message.startswith(f"p2: container {name} ended {times} exit status 3: bye. Remedy: ")


def test_a_container_that_ended_well_or_is_ready_since_is_in_no_crash_loop() -> None:
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    proved = {**LIVES["it runs again"][0], "ready": True}
    over = {"name": "prepare", "ready": True, "restartCount": 0, "state": {"terminated": {**_ENDED, "exitCode": 0}}}
    status = {"containerStatuses": [proved], "initContainerStatuses": [over]}
    assert pod_view({"metadata": meta, "status": status}).problem is None


def between_crashes(lived: float, runs: float, where: str, **template: Any) -> Any:
    """A pod that the kubelet calls ready while a container that crashes runs once more beside an engine that serves."""
    engine = {**running("engine", 600), "ready": True, "restartCount": 0}
    became = {"type": "Ready", "status": "True", "lastTransitionTime": ago(runs - 1).isoformat()}
    status: dict[str, Any] = {"conditions": [became], "containerStatuses": [engine]}
    status[where] = [*status.get(where, []), crashes(lived, runs)]
    meta = {"name": "p1", "uid": "p1", "labels": {"pod-template-hash": "7d9c", "semipd.io/template-hash": "h"}}
    inits = where == "initContainerStatuses"
    spec = {"initContainers" if inits else "containers": [{"name": "proxy", **template}]}
    if inits:
        spec["initContainers"][0]["restartPolicy"] = "Always"
    return pod_view({"metadata": meta, "spec": spec, "status": status})


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
@pytest.mark.parametrize(
    ("lived", "runs", "shown"),
    [
        (1, 2, "False CrashLoop(proxy)"),
        (1, 59, "False CrashLoop(proxy)"),
        (1, 60, "True Ready"),
        (100, 199, "False CrashLoop(proxy)"),
        (100, 200, "True Ready"),
        (600, 2, "True Ready"),
    ],
)
def test_ready_does_not_come_and_go_with_each_life_of_a_sidecar_that_crashes(
    where: str, lived: float, runs: float, shown: str
) -> None:
    """The pod is ready for as long as each takes: `kubectl wait` would catch such a moment."""
    status = summarise(observed(pods=(between_crashes(lived, runs, where),)))
    ready = status.condition("Ready")
    assert ready and f"{ready.status} {status.reason}" == shown
    assert conditions(status)["Available"] == "True PodsReady", "the Service sends it requests"
    probed = between_crashes(lived, runs, where, **PROBE)
    assert conditions(summarise(observed(pods=(probed,))))["Ready"] == "True Ready", "its probe says so"


NO_AGENT = (
    'failed to create containerd task: runc create failed: unable to start container process: exec: "semipd-agent": '
    "executable file not found in $PATH: unknown"
)


@pytest.mark.parametrize(
    ("name", "words", "image"),
    [
        ("engine", NO_AGENT, True),
        ("model", "crun: executable file `semipd-engine` not found in $PATH: No such file or directory", True),
        ("engine", 'exec: "semipd-agent": permission denied: unknown', False),
        ("proxy", 'exec: "envoy": executable file not found in $PATH: unknown', False),
    ],
)
@pytest.mark.parametrize("waits", [True, False], ids=["RunContainerError", "CrashLoopBackOff"])
def test_an_image_without_our_programs_is_named_as_what_is_wrong(
    waits: bool, name: str, words: str, image: bool
) -> None:
    last = {"terminated": {"exitCode": 128, "reason": "StartError", "message": words}}
    one: dict[str, Any] = {"name": name, "restartCount": 2, "lastState": last, "state": _BACK_OFF}
    if waits:
        one["state"] = {"waiting": {"reason": "RunContainerError", "message": words}}
    meta = {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}}
    where = "initContainerStatuses" if name == "model" else "containerStatuses"
    status = summarise(observed(pods=(pod_view({"metadata": meta, "status": {where: [one]}}),), agents={}))
    available = status.condition("Available")
    assert available and available.reason == "ContainerNotStarted" and words in available.message
    assert ("Remedy: Correct spec.engine.image" in available.message) is image


@pytest.mark.parametrize(
    ("lived", "runs", "shown"),
    [
        (1, 14, "Unreachable"),
        (1, 15, "Downloading"),
        (12, 23, "Unreachable"),
        (12, 24, "Downloading"),
        (1200, 59, "Unreachable"),
        (1200, 60, "Downloading"),
    ],
)
def test_a_download_that_is_tried_again_says_what_failed_until_it_lasts_longer(
    lived: float, runs: float, shown: str
) -> None:
    """The reason does not come and go with each try."""
    said = json.dumps({"reason": "Unreachable", "message": "hf.invalid: no such host"})
    times = {"startedAt": ago(runs + 9 + lived).isoformat(), "finishedAt": ago(runs + 9).isoformat()}
    last = {"terminated": {"exitCode": 7, "message": said, **times}}
    meta = {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}}

    def told(**model: Any) -> SemiPDServiceStatus:
        init = {"name": "model", "ready": False, "restartCount": 3, "lastState": last, **model}
        view = pod_view({"metadata": meta, "status": {"initContainerStatuses": [init]}})
        return summarise(observed(pods=(view,), agents={}))

    again = told(**running("model", runs))
    assert (again.reason, conditions(again)["ModelReady"]) == (shown, f"False {shown}")
    assert (again.model and again.model.state) == ("Failed" if shown == "Unreachable" else "Downloading")
    waits = told(state=_BACK_OFF)
    assert waits.reason == "Unreachable"
    if shown == "Unreachable":
        assert again == waits, "so nothing is written at each try"
    done = told(ready=True, state={"terminated": {"exitCode": 0}})
    assert conditions(done)["ModelReady"] == "Unknown Pending"


@pytest.mark.parametrize("reason", ["Error", "OOMKilled"])
@pytest.mark.parametrize(
    ("restarts", "lived", "runs", "shown"),
    [
        (3, 20, 18, "False"),
        (3, 20, 39, "False"),
        (3, 20, 40, "True"),
        (2, 20, 18, "True"),
        (3, 60, 18, "True"),
    ],
    ids=["once more", "still", "it lasts", "a bad start", "it ran for a while"],
)
def test_ready_does_not_come_and_go_with_each_life_of_an_engine_that_its_liveness_probe_ends(
    restarts: int, lived: float, runs: float, shown: str, reason: str
) -> None:
    """It serves for some seconds each time, and its readiness probe says so."""
    last = {"exitCode": 137, "reason": reason, "startedAt": ago(runs + lived).isoformat()}
    last["finishedAt"] = ago(runs).isoformat()
    engine = {**running("engine", runs), "ready": True, "restartCount": restarts, "lastState": {"terminated": last}}
    became = {"type": "Ready", "status": "True", "lastTransitionTime": ago(1).isoformat()}
    meta = {"name": "p1", "uid": "p1", "labels": {"pod-template-hash": "7d9c", "semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"conditions": [became], "containerStatuses": [engine]}})
    status = summarise(observed(pods=(view,)))
    ready = status.condition("Ready")
    trouble = "CrashLoop(engine)" if reason == "Error" else "OutOfMemory"
    assert ready and ready.status == shown and status.reason.startswith("Ready" if shown == "True" else trouble)
    assert conditions(status)["Available"] == "True PodsReady"
