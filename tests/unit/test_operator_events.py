"""Events tell edges between two statuses, once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.operator_observed import AUTO, NOW, TABLE, ago, heard, observed, pod, report, slo, with_ttft

from semipd_operator.reasons import EventReason
from semipd_operator.status import Problem, summarise
from semipd_operator.status.events import Event, event_object, events

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ("no pods yet", "ready", ["ModelLoaded"]),
        ("ready", "ready", []),
        ("no pods yet", "no gpu", ["NotAvailable"]),
        ("no gpu", "no gpu", []),
        ("downloading", "gated model", ["ModelFailed"]),
        ("no pods yet", "refused by the preflight", ["MPSUnavailable"]),
        ("no pods yet", "cuda without a gpu, partitioning disabled", ["ModelFailed"]),
        ("ready", "mps lost while serving", ["MPSUnavailable"]),
        ("ready", "a worker is silent", ["PartitionApplyFailed"]),
        ("ready", "agent never heard", ["AgentUnreachable"]),
        ("ready", "a pod that became ready a moment ago", []),
        ("ready", "configuration not there yet", []),
        ("ready", "a new generation on its way, as an autoscaler makes them", []),
        ("ready", "name conflict", ["SpecRejected"]),
        ("rollout: an old pod serves", "ready", ["RolloutFinished"]),
    ],
)
def test_events_are_edges(before: str, after: str, reasons: list[str]) -> None:
    found = events(summarise(TABLE[before][0]), summarise(TABLE[after][0]))
    assert [event.reason for event in found] == reasons


def test_a_new_template_is_told() -> None:
    found = events(summarise(observed()), summarise(observed(template_hash="h2")))
    assert [event.reason for event in found] == ["RolloutStarted"]


def test_a_refusal_is_told_once_it_takes_ready_back() -> None:
    passing, lasting = (
        summarise(observed(problem=Problem("ApplyFailed", "slow down", for_now=for_now))) for for_now in (True, False)
    )
    good = summarise(observed())
    assert events(good, passing) == events(passing, good) == []
    assert [event.reason for event in events(passing, lasting)] == ["SpecRejected"]
    assert events(lasting, lasting) == []


def test_a_refusal_for_a_moment_is_not_told_of_a_service_that_is_not_ready_for_another_reason() -> None:
    loading = TABLE["loading"][0]
    passing, lasting = (
        summarise(replace(loading, problem=Problem("ApplyFailed", "slow down", for_now=now))) for now in (True, False)
    )
    before = summarise(loading)
    assert events(before, passing) == events(passing, before) == []
    assert [event.reason for event in events(passing, lasting)] == ["SpecRejected"]


@pytest.mark.parametrize("error", ["", "the agent cannot be reached"], ids=["ReportStale", "AgentUnreachable"])
def test_an_agent_that_misses_a_few_polls_is_told_once_it_takes_ready_back_and_with_the_remedy(error: str) -> None:
    good, passing, lasting = (
        summarise(observed(agents={"p1": replace(heard(report(), seconds), error=error)})) for seconds in (1, 29, 31)
    )
    applied = passing.condition("PartitionApplied")
    assert applied and applied.status == "False" and "Remedy" not in applied.message
    assert events(good, passing) == events(passing, good) == []
    [told] = events(passing, lasting)
    assert told.reason == ("AgentUnreachable" if error else "PartitionApplyFailed") and "Remedy: " in told.message
    assert events(lasting, lasting) == []


def test_a_split_that_fails_is_told_of_a_service_that_is_not_ready_for_another_reason() -> None:
    """Nobody else says it: Ready names the first of what is wrong."""
    refused = TABLE["name conflict"][0]
    failed = summarise(replace(refused, agents=TABLE["a worker is silent"][0].agents))
    ready, applied = failed.condition("Ready"), failed.condition("PartitionApplied")
    assert ready and applied and (ready.reason, applied.reason) == ("NameConflict", "WorkerNotResponding")
    assert [event.reason for event in events(summarise(refused), failed)] == ["PartitionApplyFailed"]


def test_an_agent_that_a_rollouts_new_pod_has_not_had_time_to_start_is_not_told() -> None:
    """Ready is False meanwhile, for the rollout."""
    old, new = pod(template_hash="old"), pod("p2", ready_since=ago(3))
    before, after = (
        summarise(observed({"replicas": 2}, pods=pods, agents={"p1": heard(report())})) for pods in ((old,), (old, new))
    )
    ready, applied = after.condition("Ready"), after.condition("PartitionApplied")
    assert ready and applied and (ready.reason, applied.reason) == ("RolloutInProgress", "AgentUnreachable")
    assert events(before, after) == []


def test_slow_kernels_are_told_with_their_remedy_once() -> None:
    why = "plain torch computes, several times slower: build the package again"
    engine = report().engine.model_copy(update={"kernels_shortfall": why})
    none, good = summarise(TABLE["no pods yet"][0]), summarise(observed())
    slow = summarise(observed(agents={"p1": heard(report(engine=engine))}))
    loaded = slow.condition("ModelReady")
    assert loaded and (loaded.status, loaded.reason) == ("True", "SlowKernels")
    assert loaded.message == f"1 of 1 pods have it loaded; p1: {why}"
    ready = slow.condition("Ready")
    assert ready and ready.status == "True"
    for before in (none, good):
        assert [(event.type, event.reason) for event in events(before, slow)] == [("Warning", "SlowKernels")]
    assert events(slow, slow) == events(slow, good) == []


def test_slo_events() -> None:
    good, bad = with_ttft(400), summarise(observed(AUTO, agents={"p1": heard(report(slo=slo(600, False)))}))
    assert [event.reason for event in events(good, bad)] == ["SLOViolated"]
    assert [event.reason for event in events(bad, good)] == ["SLORecovered"]


def test_an_event_names_the_service_the_operator_and_the_time() -> None:
    service = observed().service
    found = event_object(service, Event(EventReason.SLO_VIOLATED, "late " * 1000), "operator-1", NOW)
    meta = service.metadata
    assert found["metadata"] == {"generateName": f"{meta.name}.", "namespace": meta.namespace}
    about = {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid}
    assert found["involvedObject"] == {"apiVersion": "semipd.io/v1alpha1", "kind": "SemiPDService", **about}
    assert (found["type"], found["reason"], found["reportingInstance"]) == ("Warning", "SLOViolated", "operator-1")
    assert found["firstTimestamp"] == found["lastTimestamp"] == f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
    assert len(found["message"]) == 1024, "a longer one is refused"
