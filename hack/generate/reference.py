"""The reference pages docs/conditions.md and docs/crd.md, from `reasons` and from the CRD: they cannot lag behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from semipd_agent.contract import DecisionReason
from semipd_operator.api.rules import VALIDATIONS
from semipd_operator.api.schema import Schema
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.crd import COLUMNS, custom_resource_definition
from semipd_operator.reasons import MEANING, REASONS, ConditionType, EventReason, PodTrouble
from semipd_operator.status import Problem
from semipd_operator.status.verdict import Verdict

_DECISIONS: dict[DecisionReason, str] = {
    DecisionReason.TTFT_ABOVE_TARGET: "The time to the first token was above its target: prefill got more.",
    DecisionReason.TPOT_ABOVE_TARGET: "The time per output token was above its target: decode got more.",
    DecisionReason.HEADROOM_RECLAIMED: "A phase had more than it needed: some of it was given back.",
    DecisionReason.MANUAL_CHANGE: "The specification asked for another split.",
    DecisionReason.BOUND_REACHED: "New bounds exclude the split that was in force.",
    DecisionReason.BETTER_SPLIT_PREDICTED: "More requests are expected to meet both targets under the new split.",
    DecisionReason.REGRET: "A split did not keep what was expected of it: another one took its place.",
    DecisionReason.ROLLBACK: "A new split did not take, or made things worse: the old one is back.",
}


def conditions() -> str:
    lines = [
        "# Conditions, reasons and events",
        "",
        "<!-- made by `make crd` -->",
        "",
        "`kubectl get spd` shows Ready and its reason; `kubectl describe spd NAME` shows all conditions with their",
        "messages, the last decisions and the events. Reasons are API: alerts may match on them.",
        "A pod of a newer engine may also report a reason of its own for a model that does not load.",
        "",
        *_as_it_looks(),
    ]
    for kind, entries in REASONS.items():
        lines += ["", f"## {kind}", "", MEANING[kind], ""]
        lines += ["| reason | status | meaning | what to do |", "|---|---|---|---|"]
        lines += [f"| `{e.reason}` | {e.status} | {e.meaning} | {e.remedy} |" for e in entries]
        if kind == "Ready":
            lines += ["", "Else Ready is False with the reason of the first of its conditions that is not True."]
    lines += ["", "## Events", "", "| reason | type | meaning |", "|---|---|---|"]
    lines += [f"| `{event}` | {event.type} | {event.meaning} |" for event in EventReason]
    lines += ["", "## Reasons of decisions (`status.partition.decisions`)", "", "| reason | meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {_DECISIONS[reason]} |" for reason in DecisionReason]
    return "\n".join(lines) + "\n"


def _as_it_looks() -> list[str]:
    """One cause in the row and in the description, by the code that writes them."""
    words = "demo-5c8f7-x2x5k: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    problem = Problem(PodTrouble.UNSCHEDULABLE, words, "nvidia.com/gpu")
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    condition = Verdict.of(ConditionType.READY, problem).condition(SemiPDServiceStatus(), at, 1)
    return [
        "## How it looks",
        "",
        "Every condition that is False has its cause, in the words of whoever refuses or fails, and a remedy: that",
        "of the tables below, or a closer one where the words tell it. The row has Ready's reason, with the object at",
        "fault in brackets; the description has this message under the condition of the cause and under Ready:",
        "",
        "```text",
        "$ kubectl get spd demo",
        "NAME   READY   REASON",
        f"demo   False   {condition.reason}({problem.detail})",
        "$ kubectl describe spd demo",
        f"Message: {condition.message}",
        f"Reason:  {condition.reason}",
        f"Status:  {condition.status}",
        f"Type:    {condition.type}",
        "```",
        "",
        "A message that names a pod and a container goes on in `kubectl logs POD -c CONTAINER` (`--previous` after",
        "a crash); one that quotes a scheduler, a quota or a webhook is theirs to change. What passes by itself within",
        "half a minute (an API server in trouble, a split on its way) takes Ready back from nobody.",
    ]


def reference() -> str:
    version = custom_resource_definition()["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    lines = [
        "# SemiPDService, semipd.io/v1alpha1",
        "",
        "<!-- made by `make crd` -->",
        "",
        schema["description"],
        "",
        "What rolls the pods: `model`, `engine`, `podTemplate`. Everything else changes in place.",
    ]
    for part in ("spec", "status"):
        lines += ["", f"## {part}", "", "| field | type | description |", "|---|---|---|"]
        lines += [
            f"| `{path}` | {_type(field)} | {field.get('description', '')} |"
            for path, field in fields(schema["properties"][part])
        ]
    lines += ["", "## Rules", "", "The API server, `semipd validate` and `semipd run` refuse a specification with:", ""]
    lines += [f"* {message}" for message in dict.fromkeys(_messages(schema))]
    lines += ["", "## Columns of `kubectl get spd`", "", "| column | shown | meaning |", "|---|---|---|"]
    lines += [
        f"| {c['name'].upper()} | {'with -o wide' if c.get('priority') else 'always'} | {c['description']} |"
        for c in COLUMNS
    ]
    return "\n".join(lines) + "\n"


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field below a schema with its path, in the order of declaration; ``[]`` stands for an item of a list."""
    for name, field in schema.get("properties", {}).items():
        below = f"{path}.{name}".lstrip(".")
        yield below, field
        yield from fields(field, below)
        if "items" in field:
            yield from fields(field["items"], f"{below}[]")


def _messages(schema: Schema) -> Iterator[str]:
    yield from (rule["message"] for rule in schema.get(VALIDATIONS, []))
    for below in (*schema.get("properties", {}).values(), schema.get("additionalProperties")):
        if isinstance(below, dict):
            yield from _messages(below)


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {field['items'].get('type', 'object')}s"
    if "additionalProperties" in field:
        return "map"
    return str(field.get("type", "object"))
