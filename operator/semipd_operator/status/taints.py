"""Taints that keep a pod from nodes, or drive it from its own, by name: the scheduler (since Kubernetes 1.35) and the
controller of taints say only that there are some. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from semipd_operator.reasons import PodTrouble
from semipd_operator.status.observed import Problem

Object = dict[str, Any]

_WORDS = "untolerated taint"
_NAMED = f"{_WORDS} {{"
"""Of older schedulers: ``untolerated taint {key: value}``."""
_OF_KUBERNETES = "node.kubernetes.io/"
"""Kubernetes itself taints a node that is not well, or cordoned."""
_MOST_TAINTS, _MOST_NODES = 3, 3


@dataclass(frozen=True)
class Taint:
    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}{'=' * bool(self.value)}{self.value}:{self.effect}"


@dataclass(frozen=True)
class TaintedNode:
    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]


def taints_of(node: Object) -> tuple[Taint, ...]:
    """Those that keep pods away: NoSchedule and NoExecute."""
    said = (node.get("spec") or {}).get("taints") or []
    taints = (Taint(one.get("key", ""), one.get("value", ""), one.get("effect", "")) for one in said)
    return tuple(taint for taint in taints if taint.effect in ("NoSchedule", "NoExecute"))


def tainted(nodes: Iterable[Object]) -> tuple[TaintedNode, ...]:
    found = (TaintedNode(n["metadata"]["name"], n["metadata"].get("labels") or {}, taints_of(n)) for n in nodes)
    return tuple(node for node in found if node.taints)


def untold(problem: Problem | None) -> bool:
    """Whether taints keep a pod away and the scheduler does not name them."""
    if problem is None or problem.reason != PodTrouble.UNSCHEDULABLE:
        return False
    return _WORDS in problem.message and _NAMED not in problem.message


def untolerated(pod: Object, taints: Iterable[Taint]) -> tuple[Taint, ...]:
    tolerations = (pod.get("spec") or {}).get("tolerations") or []
    return tuple(taint for taint in taints if not any(_tolerates(one, taint) for one in tolerations))


def named(problem: Problem, pod: Object, nodes: Iterable[TaintedNode]) -> Problem:
    """The problem with the taints in its words, those of the nodes that the pod selects. Where nothing else keeps it
    away, they are what is at fault, and what to do is about them."""
    selector = (pod.get("spec") or {}).get("nodeSelector") or {}
    where: dict[Taint, list[str]] = {}
    for node in nodes:
        if all(node.labels.get(key) == value for key, value in selector.items()):
            for taint in untolerated(pod, node.taints):
                where.setdefault(taint, []).append(node.name)
    if not where:
        return problem
    ordered = sorted(where.items(), key=lambda one: (-len(one[1]), str(one[0])))
    told = ", ".join(f"{taint} (node {_some(names)})" for taint, names in ordered[:_MOST_TAINTS])
    more = f" and {len(ordered) - _MOST_TAINTS} more" if len(ordered) > _MOST_TAINTS else ""
    words = f"{problem.message.rstrip('.')}; not tolerated: {told}{more}"
    if problem.detail not in ("taint", "nodeSelector,taint"):
        return replace(problem, message=words)
    taint, names = ordered[0]
    return replace(problem, message=words, detail=f"taint/{taint.key}", remedy=_remedy(taint, names))


def _remedy(taint: Taint, names: list[str]) -> str:
    if taint.key.startswith(_OF_KUBERNETES):
        return f"kubectl describe node {names[0]}: mend what Kubernetes tainted it for (uncordon it), or add a node."
    away = f"kubectl taint nodes {names[0]} {taint.key}-"
    return f"Tolerate the taint (tolerations in spec.podTemplate), remove it ({away}), or add a node without it."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NODES} more" if len(names) > _MOST_NODES else ""
    return ", ".join(names[:_MOST_NODES]) + more


def _tolerates(toleration: Object, taint: Taint) -> bool:
    """k8s.io/component-helpers/scheduling/corev1: no effect is each effect, no key with Exists is each key."""
    if toleration.get("effect") and toleration["effect"] != taint.effect:
        return False
    if toleration.get("key") and toleration["key"] != taint.key:
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool((toleration.get("key", ""), toleration.get("value", "")) == (taint.key, taint.value))
