"""Words of the scheduler: why a pod has no node, by its claims, by what nodes lack, by what keeps it away. Pure."""

from __future__ import annotations

import re

from semipd_operator.reasons import PodTrouble, Reason
from semipd_operator.status.observed import Problem

_INSUFFICIENT = re.compile(r"Insufficient ([A-Za-z0-9./_-]*[A-Za-z0-9])")
_PLAIN_RESOURCES = {"cpu", "memory", "ephemeral-storage", "pods"}
_KEEPS_AWAY = {
    "node affinity/selector": "nodeSelector",
    "untolerated taint": "taint",
    "pod affinity": "affinity",
    "pod anti-affinity": "affinity",
    "pods anti-affinity": "affinity",
    "topology spread": "topologySpread",
    "free ports": "hostPort",
    "were unschedulable": "cordoned",
    "scheduling gates": "schedulingGates",
    "max volume count": "volumes",
    "allocate all claims": "resourceClaim",
    "resourceclaim": "resourceClaim",
}
"""Words of the scheduler, and what of the pod or the nodes they are about."""
_CLAIMS: tuple[tuple[str, Reason], ...] = (
    ("ReadWriteOncePod", PodTrouble.CLAIM_IN_USE),
    ("volume node affinity conflict", PodTrouble.CLAIM_IN_USE),
    ("unbound immediate PersistentVolumeClaims", PodTrouble.CLAIM_UNBOUND),
    ("didn't find available persistent volumes to bind", PodTrouble.CLAIM_UNBOUND),
)
_LOST_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" bound to non-existent persistentvolume')
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (?:not found|is being deleted)')


def unplaced(message: str) -> Problem:
    """Why a pod has no node: a claim that is missing or lost, by name; what nodes lack; what keeps it away."""
    if found := _MISSING_CLAIM.search(message):
        return Problem(PodTrouble.CLAIM_MISSING, message, found[1])
    if found := _LOST_CLAIM.search(message):
        return Problem(PodTrouble.CLAIM_LOST, message, found[1])
    if claim := next((reason for part, reason in _CLAIMS if part in message), None):
        return Problem(claim, message)
    return Problem(PodTrouble.UNSCHEDULABLE, message, missing_resource(message))


def missing_resource(message: str) -> str:
    """What the scheduler misses: a resource that nodes may lack altogether (a GPU) before cpu and memory, and those
    before what keeps the pod away. Of a node the scheduler tells the first obstacle only, so all kinds are named."""
    found: list[str] = _INSUFFICIENT.findall(message)
    special = [name for name in found if name not in _PLAIN_RESOURCES]
    away = dict.fromkeys(what for words, what in _KEEPS_AWAY.items() if words in message)
    return next(iter([*special, *found]), "") or ",".join(away)
