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
_NOT_BY_NODES = {
    "schedulingGates": "Have the controller that the gate names let the pod go, or remove schedulingGates from "
    "spec.podTemplate.",
    "hostPort": "Remove hostPort from spec.podTemplate, or have as many nodes as replicas.",
    "topologySpread": "Label the nodes with the topologyKey, add nodes where the message lacks them, or relax "
    "topologySpreadConstraints in spec.podTemplate.",
    "resourceClaim": "kubectl describe resourceclaim: create it, or correct resourceClaims in spec.podTemplate.",
    "cordoned": "kubectl uncordon NODE, or add a node.",
}
"""What to do where no further resource helps."""
_CLAIMS: tuple[tuple[str, Reason], ...] = (
    ("ReadWriteOncePod", PodTrouble.CLAIM_IN_USE),
    ("volume node affinity conflict", PodTrouble.VOLUME_ELSEWHERE),
    ("PersistentVolume's node affinity", PodTrouble.VOLUME_ELSEWHERE),
    ("no available volume zone", PodTrouble.VOLUME_ELSEWHERE),
    ("pvc(s) bound to non-existent pv(s)", PodTrouble.CLAIM_LOST),
    ("did not have enough free storage", PodTrouble.CLAIM_UNBOUND),
    ("unbound immediate PersistentVolumeClaims", PodTrouble.CLAIM_UNBOUND),
    ("didn't find available persistent volumes to bind", PodTrouble.CLAIM_UNBOUND),
)
_LOST_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" bound to non-existent persistentvolume')
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (?:not found|is being deleted)')


def unplaced(message: str, claims: str = "") -> Problem:
    """Why a pod has no node: a claim that is missing or lost, by name; what nodes lack; what keeps it away. `claims`:
    those of the pod, for words that name none."""
    if found := _MISSING_CLAIM.search(message):
        return Problem(PodTrouble.CLAIM_MISSING, message, found[1])
    if found := _LOST_CLAIM.search(message):
        return Problem(PodTrouble.CLAIM_LOST, message, found[1])
    if claim := next((reason for part, reason in _CLAIMS if part in message), None):
        return Problem(claim, message, claims)
    lacks = missing_resource(message)
    telling = [what for what in lacks.split(",") if what != "taint"]  # of nodes that are for others, mostly
    return Problem(PodTrouble.UNSCHEDULABLE, message, lacks, remedy=_NOT_BY_NODES.get(",".join(telling), ""))


def unheard(scheduler: str, node: str, claims: str, devices: str) -> Problem:
    """Why no scheduler says anything of a pod for long. The default one says nothing while it waits: for a claim's
    volume, when it has chosen the `node`, or for a ResourceClaim (`devices`)."""
    if scheduler not in ("", "default-scheduler") and not node:
        told = f"no scheduler has looked at it: schedulerName names none that runs ({scheduler})"
        return Problem(PodTrouble.UNSCHEDULABLE, told, remedy="Correct schedulerName in spec.podTemplate, or start it.")
    if devices:
        told = f"its resource claim {devices} does not exist, or has no devices yet"
        return Problem(PodTrouble.UNSCHEDULABLE, told, "resourceClaim", remedy=_NOT_BY_NODES["resourceClaim"])
    if claims:
        chosen = (
            f"the scheduler has chosen node {node}, and waits" if node else "no scheduler says anything: it may wait"
        )
        return Problem(
            PodTrouble.CLAIM_UNBOUND, f"{chosen} for a volume of claim {claims}: no provisioner makes it", claims
        )
    return Problem(
        PodTrouble.UNSCHEDULABLE,
        "no scheduler has looked at it",
        remedy="Have the cluster's administrator look whether kube-scheduler runs.",
    )


def missing_resource(message: str) -> str:
    """What the scheduler misses: a resource that nodes may lack altogether (a GPU) before cpu and memory, and those
    before what keeps the pod away. Of a node the scheduler tells the first obstacle only, so all kinds are named."""
    found: list[str] = _INSUFFICIENT.findall(message)
    special = [name for name in found if name not in _PLAIN_RESOURCES]
    away = dict.fromkeys(what for words, what in _KEEPS_AWAY.items() if words in message)
    return next(iter([*special, *found]), "") or ",".join(away)
