"""From what is observed to the status: conditions, reasons, the split of many pods, decisions."""

from __future__ import annotations

import ast
import re
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.operator_observed import AUTO, NOT_READY, NOW, TABLE, conditions, heard, observed, pod, report

import semipd_engine
from semipd_agent.contract import (
    Decision,
    DecisionReason,
    Enforcement,
    EnginePhase,
    EngineStatus,
    Mode,
    PartitionReason,
    Split,
)
from semipd_agent.partitioner.mps.preflight import POLICIES
from semipd_engine.hub import download
from semipd_operator.api.v1alpha1.resource import dump_status, parse_status
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus, Shares
from semipd_operator.reasons import REASONS, ConditionType, ModelTrouble, NoStart, remedy
from semipd_operator.status import Problem, summarise
from semipd_operator.status.events import events
from semipd_operator.status.model import resolved_revision
from semipd_operator.status.partition import split_range

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("case", TABLE)
def test_conditions(case: str) -> None:
    seen, expected = TABLE[case]
    shown = conditions(summarise(seen))
    assert {kind: shown[kind] for kind in expected} == expected
    assert "SLOAttained" in shown if seen.service.spec.slo else "SLOAttained" not in shown


def test_every_reason_shown_is_in_the_table_of_reasons() -> None:
    known = {
        (kind, entry.reason, status)
        for kind, entries in REASONS.items()
        for entry in entries
        for status in entry.status.split(", ")
    }
    for seen, _ in TABLE.values():
        for condition in summarise(seen).conditions:
            if condition.type != "Ready":
                assert (condition.type, condition.reason, condition.status) in known


def test_every_reason_of_a_fetch_is_in_the_table_of_reasons() -> None:
    """They come from the init container as they are; each has its meaning and what to do about it in the docs."""
    known = {str(entry.reason) for entry in REASONS[ConditionType.MODEL_READY]}
    assert {str(reason) for reason in download.Reason} - {download.Reason.FETCHED} <= known
    text = (Path(__file__).parents[2] / "docs/conditions.md").read_text()
    assert [reason for reason in known if f"| `{reason}` |" not in text] == []


def test_each_remedy_that_the_docs_show_is_one_that_is_written() -> None:
    """In an example of `kubectl describe` it is broken into lines."""
    known = {" ".join(entry.remedy.split()) for entries in REASONS.values() for entry in entries if entry.remedy}
    shown = []
    for page in ("operations", "conditions"):
        text = (Path(__file__).parents[2] / f"docs/{page}.md").read_text()
        for example in re.findall(r"^ *Message: .*(?:\n(?: {14,}\S.*))*", text, re.M):
            shown += [" ".join(what.split()) for what in re.findall(r"Remedy: (.*)", example, re.S)]
    assert len(shown) == 2 and set(shown) <= known


def test_every_reason_of_an_engine_for_a_failed_load_is_in_the_table_with_a_remedy() -> None:
    """They come from `ModelError` as they are: all that the engine's source raises."""
    source = Path(semipd_engine.__file__).parent
    calls = (node for file in source.rglob("*.py") for node in ast.walk(ast.parse(file.read_text())))
    raised = {
        reason.value
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "ModelError"
        for reason in ast.walk(call.args[0])
        if isinstance(reason, ast.Constant) and isinstance(reason.value, str)
    }
    assert len(raised) > 9 and {reason for reason in raised if not remedy("ModelReady", reason)} == set()


def test_a_failed_load_of_an_unknown_reason_has_the_remedy_of_any() -> None:
    engine = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="MoonPhase", message="/m/a.bin is odd")
    status = summarise(observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=engine))}))
    line = f"p1: /m/a.bin is odd. Remedy: {ModelTrouble.LOAD_FAILED.remedy}"
    for kind in ("ModelReady", "Available", "Ready"):
        told = status.condition(kind)
        assert told and (told.reason, told.message) == ("MoonPhase", line)


def test_every_reason_that_an_agent_gives_for_a_failure_is_in_the_table() -> None:
    shown = {entry.reason.value for entry in REASONS[ConditionType.PARTITION_APPLIED]}
    assert {reason.value for reason in PartitionReason} <= shown
    start = {entry.reason.value for entry in NoStart}
    assert {reason.value for reason, _ in POLICIES} <= start


def test_the_reason_column_names_the_missing_resource() -> None:
    assert summarise(TABLE["no gpu"][0]).reason == "Unschedulable(nvidia.com/gpu)"


def test_pods_that_differ_show_a_range_and_no_applied_split() -> None:
    two = observed(
        {**AUTO, "replicas": 2},
        pods=(pod("p1"), pod("p2")),
        agents={
            "p1": heard(report(Split(prefill_percent=60, decode_percent=60), partition={"mode": Mode.AUTO})),
            "p2": heard(
                report(
                    Split(prefill_percent=80, decode_percent=40),
                    partition={"mode": Mode.AUTO, "enforcement": Enforcement.NONE},
                )
            ),
        },
    )
    partition = summarise(two).partition
    assert partition and partition.summary == "60-80/40-60" and partition.applied is None
    assert partition.enforcement == Enforcement.NONE, "the weakest counts"
    assert partition.enforced == "none" and partition.converged_replicas == 2
    assert [str(p.applied) for p in partition.pods] == ["60/60", "80/40"]
    assert conditions(summarise(two))["Ready"] == "True Ready"


def test_applied_is_absent_while_a_worker_is_silent() -> None:
    partition = summarise(TABLE["a worker is silent"][0]).partition
    assert partition and partition.applied is None and partition.requested is not None


def decision(second: int, message: str = "") -> Decision:
    return Decision(
        message=message,
        time=NOW + timedelta(seconds=second, microseconds=123456),
        from_split=Split(),
        to=Split(prefill_percent=60),
        reason=DecisionReason.TTFT_ABOVE_TARGET,
        metric="ttft",
        observed_milliseconds=640.04,
        target_milliseconds=500,
    )


def test_decisions_are_the_newest_of_all_pods_and_outlive_them() -> None:
    first = summarise(observed(agents={"p1": heard(report(decisions=tuple(decision(s) for s in range(8, 0, -1))))}))
    shown = parse_status({"status": dump_status(first)})
    second = summarise(
        observed(
            pods=(pod("p2"),),
            agents={"p2": heard(report(decisions=tuple(decision(s) for s in range(12, 8, -1))))},
            previous=shown,
        )
    )
    assert second.partition
    assert [(d.pod, d.time.second - NOW.second) for d in second.partition.decisions] == [
        *(("p2", s) for s in range(12, 8, -1)),
        *(("p1", s) for s in range(8, 2, -1)),
    ]
    told = [event for event in events(shown, second) if event.reason == "PartitionChanged"]
    assert len(told) == 4
    assert told[0].message == "p2: 100/100 -> 60/100: TTFTAboveTarget (TTFT 640 ms, target 500 ms)"
    foretold = summarise(observed(agents={"p1": heard(report(decisions=(decision(20, "97 % expected"),)))}))
    [event] = [event for event in events(shown, foretold) if event.reason == "PartitionChanged"]
    assert event.message == "p1: 100/100 -> 60/100: TTFTAboveTarget (TTFT 640 ms, target 500 ms): 97 % expected"


def test_a_status_survives_the_api_server() -> None:
    for seen, _ in TABLE.values():
        status = summarise(seen)
        assert parse_status({"status": dump_status(status)}) == status


def test_transition_times_move_with_the_status_only() -> None:
    first = summarise(observed())
    later = summarise(
        observed({"replicas": 2}, now=NOW + timedelta(seconds=9), agents={"p1": heard(report(), -8)}, previous=first)
    )
    before, after = first.condition("Available"), later.condition("Available")
    assert before and after and before.last_transition_time == after.last_transition_time
    ready = later.condition("Ready")
    assert ready and ready.last_transition_time == NOW + timedelta(seconds=9)


def test_observed_generation_waits_for_the_specification_to_be_in_force() -> None:
    previous = SemiPDServiceStatus(observed_generation=3)
    assert summarise(observed(previous=previous)).observed_generation == 4
    assert summarise(observed({"paused": True}, previous=previous)).observed_generation == 3
    assert summarise(observed(previous=previous, problem=Problem("NameConflict", "x"))).observed_generation == 3


def test_the_first_pods_commit_stays_until_another_model_or_revision_is_asked_for() -> None:
    """So a pod that is added later runs what the others run, whatever became of the branch."""
    model = {"model": {"uri": "hf://org/name"}}
    seen = observed(model, pods=(pod(model_revision="c1"), pod("p2", model_revision="c2")))
    first = summarise(seen)
    assert first.model is not None
    assert (first.model.revision, first.model.resolved_revision) == ("main", "c1")
    later = summarise(observed(model, pods=(pod("p3", model_revision="c9"),), previous=first))
    assert later.model is not None and later.model.resolved_revision == "c1"
    assert resolved_revision(seen.service, first) == "c1", "which is what new pods are told"
    other = {"model": {"uri": "hf://org/name", "revision": "v2"}}
    waiting = observed(other, pods=(pod(model_revision="c1", template_hash="old"),), previous=first)
    changed = summarise(waiting)
    assert changed.model is not None and changed.model.resolved_revision == "", "the old pods say nothing of it"
    assert resolved_revision(waiting.service, first) == ""
    assert resolved_revision(observed().service, SemiPDServiceStatus()) == ""


def test_a_pod_without_isolation_is_shown_as_such() -> None:
    mixed, split = Split(mixed_tokens=256), Split(prefill_percent=60)
    assert split_range([mixed]) == "mixed/256"
    assert split_range([split, mixed, split]) == "60/100, mixed/256"
    assert str(Shares.of(mixed)) == "mixed/256" and Shares.of(mixed).mixed_tokens == 256
    assert "mixedTokens" not in Shares.of(split).model_dump(by_alias=True, exclude_none=True)
