"""A pod of whose agent nothing is heard: at its start, while it serves, and after the operator's own restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.operator_observed import ago, conditions, heard, observed, pod, report, service
from tests.unit.operator_pods import running

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.status import AgentView, summarise
from semipd_operator.status.events import events
from semipd_operator.status.pods import pod_view

pytestmark = pytest.mark.unit


def started(seconds: float, error: str = "the agent cannot be reached") -> Any:
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"containerStatuses": [running("engine", seconds)]}})
    return {"pods": (pod(), view), "agents": {"p1": heard(report()), "p2": AgentView().failed(error)}}


def test_an_agent_that_does_not_answer_is_told_of_a_pod_that_started_long_ago() -> None:
    """It may load for ever: nobody knows."""
    ready = summarise(observed({"replicas": 2}, **started(31))).condition("Ready")
    words = (
        "1 of 2 pods are ready: p2: its engine is not ready, and nothing is known of it: the agent cannot be reached"
    )
    assert ready and ready.reason == "AgentUnreachable" and ready.message.startswith(f"{words}. Remedy: Allow the ")
    young = summarise(observed({"replicas": 2}, **started(29))).condition("Ready")
    assert young and young.reason == "PodsNotReady"
    loading = {**started(31), "pods": started(31)["pods"][1:]}
    model = summarise(observed(**loading)).condition("ModelReady")
    words = "the engine loads the weights; of p2 nothing is known: the agent cannot be reached"
    assert model and model.message == words


@pytest.mark.parametrize(("heard_ago", "shown"), [(29, "Loading"), (31, "AgentUnreachable")])
def test_an_agent_that_misses_a_few_polls_on_a_busy_node_is_not_unreachable(heard_ago: float, shown: str) -> None:
    loading = report(engine=EngineStatus(state=EnginePhase.LOADING, ready=False))
    silent = replace(heard(loading, heard_ago), error="the agent cannot be reached (ReadTimeout)")
    seen = {**started(300), "pods": started(300)["pods"][1:], "agents": {"p2": silent}}
    assert conditions(summarise(observed(**seen)))["Ready"] == f"False {shown}"


@pytest.mark.parametrize("error", ["", "the agent does not answer in time"], ids=["stale", "silent"])
@pytest.mark.parametrize(("heard_ago", "ready"), [(11, "True Ready"), (29, "True Ready"), (31, "False")])
def test_a_pod_that_serves_stays_ready_while_its_agent_misses_a_few_polls(
    heard_ago: float, ready: str, error: str
) -> None:
    """PartitionApplied says it at once."""
    shown = conditions(summarise(observed(agents={"p1": replace(heard(report(), heard_ago), error=error)})))
    reason = "AgentUnreachable" if error else "ReportStale"
    assert shown["PartitionApplied"] == f"False {reason}"
    assert shown["Ready"] == (ready if ready != "False" else f"False {reason}")


@pytest.mark.parametrize("error", ["", "the agent does not answer in time"], ids=["not yet", "silent"])
@pytest.mark.parametrize(("asked_ago", "ready"), [(9, "True Ready"), (31, "False AgentUnreachable")])
def test_an_operator_that_was_restarted_takes_no_readiness_back_before_it_has_asked(
    asked_ago: float, ready: str, error: str
) -> None:
    """The pod has been ready for long, and this process has never heard of it."""
    agents = {"p1": AgentView(asked_since=ago(asked_ago), error=error)}
    shown = conditions(summarise(observed(pods=(pod(ready_since=ago(3600)),), agents=agents)))
    assert (shown["PartitionApplied"], shown["Ready"]) == ("False AgentUnreachable", ready)


BORN = {"creationTimestamp": ago(5).isoformat()}


@pytest.mark.parametrize("error", ["", "the agent refuses the operator's token"], ids=["not yet", "another's token"])
def test_the_pods_of_a_deleted_service_of_the_same_name_make_no_new_one_ready(error: str) -> None:
    """They serve until the garbage collector comes to them, and their template may well be the same."""
    agents = {"p1": AgentView(asked_since=ago(2), error=error)}
    left = observed(service=service(meta=BORN), pods=(pod(created_at=ago(600), ready_since=ago(500)),), agents=agents)
    status = summarise(left)
    assert conditions(status)["PartitionApplied"] == "Unknown NoReadyPods"
    assert conditions(status)["Ready"] == "False NoReadyPods"
    assert not any(event.type == "Warning" for event in events(SemiPDServiceStatus(), status))
    ours = replace(left, agents={"p1": heard(report())})
    assert conditions(summarise(ours))["Ready"] == "True Ready", "given back with its Deployment"
    was_ready = replace(left, previous=summarise(ours))
    assert conditions(summarise(was_ready))["Ready"] == "True Ready", "the operator was restarted"
    own = replace(left, pods=(pod(created_at=ago(4), ready_since=ago(1)),))
    assert conditions(summarise(own))["Ready"] == "True Ready"


@pytest.mark.parametrize("containers", [[{"name": "engine", "command": ["sleep", "1"]}], [{"name": "proxy"}], "odd"])
def test_a_template_that_replaces_the_engines_command_is_why_no_agent_answers(containers: Any) -> None:
    spec = {"podTemplate": {"spec": {"containers": containers}}}
    seen = {**started(31), "pods": started(31)["pods"][1:]}
    ready = summarise(observed(spec, **seen)).condition("Ready")
    assert ready and ready.reason == "AgentUnreachable"
    replaced = (
        "nothing is known of it: the agent cannot be reached; spec.podTemplate replaces its command. Remedy: Have "
    )
    assert (replaced in ready.message) == ("command" in str(containers))


@pytest.mark.parametrize("silent_for", [20, 40])
@pytest.mark.parametrize(
    ("changed", "started_ago", "model"), [(20, 600, "True Loaded"), (600, 20, "False Loading")], ids=["served", "anew"]
)
def test_an_engine_that_was_ready_since_its_start_and_is_silent_does_not_load(
    changed: float, started_ago: float, model: str, silent_for: float
) -> None:
    """Its process stands still, or its node is out of reach: nobody need wait for weights."""
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": ago(changed).isoformat()}
    status = {"conditions": [unready], "containerStatuses": [running("engine", started_ago)]}
    meta = {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}}
    agent = replace(heard(report(), silent_for), error="the agent does not answer in time")
    seen = summarise(observed(pods=(pod_view({"metadata": meta, "status": status}),), agents={"p1": agent}))
    assert conditions(seen)["ModelReady"] == model
    late = silent_for > 30 and started_ago > 30
    waits = "Loading" if model == "False Loading" else "PodsNotReady"
    assert conditions(seen)["Ready"] == f"False {'AgentUnreachable' if late else waits}"
    loaded = seen.condition("ModelReady")
    assert loaded and late == ("of p1 nothing is known" in loaded.message)
