"""Whose memory is what, from /proc/PID/smaps: the weights' one mapping, the KV pool, and what is a copy of either.

All workers are forked from the process that holds the weights. A page of that mapping that is private to a process is
a copy; a copy of the weights somewhere else is anonymous memory outside it, be it one process's or, made before a
fork, everybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KV_NAME = "/memfd:semipd-kv"
FIELDS = ("Size", "Pss", "Private_Clean", "Private_Dirty", "Anonymous")


@dataclass(frozen=True)
class Area:
    """One line of smaps and its figures, in bytes."""

    name: str
    figures: Mapping[str, int]

    @property
    def private(self) -> int:
        return self.figures["Private_Clean"] + self.figures["Private_Dirty"]


def read_smaps(pid: int) -> list[Area]:
    """Raises OSError."""
    return parse(Path(f"/proc/{pid}/smaps").read_text().splitlines())


def parse(lines: Iterable[str]) -> list[Area]:
    found: list[tuple[str, dict[str, int]]] = []
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):
            found.append((" ".join(words[5:]), dict.fromkeys(FIELDS, 0)))
        elif words[0][:-1] in FIELDS:
            found[-1][1][words[0][:-1]] = 1024 * int(words[1])
    return [Area(name, figures) for name, figures in found]


@dataclass(frozen=True)
class Held:
    """Bytes of all processes of an engine."""

    pss: int
    kv_pss: int
    """Of `pss`, what of the KV pool is in memory."""
    beside: int
    """The most that one process holds beside the one copy: private pages of the weights' mapping, and anonymous memory
    outside it. A second copy, be it one process's own or shared by all since a fork, is in this figure."""


def held(processes: Sequence[Sequence[Area]], weight_bytes: int) -> Held:
    """`processes`: the mappings of each. The weights' mapping is the smallest nameless one that they fit in; a process
    without one (the api, core) is judged by all its anonymous memory."""
    pss = sum(one.figures["Pss"] for areas in processes for one in areas)
    kv = sum(one.figures["Pss"] for areas in processes for one in areas if one.name.startswith(KV_NAME))
    return Held(pss, kv, max(_beside(areas, weight_bytes) for areas in processes))


def _beside(areas: Sequence[Area], weight_bytes: int) -> int:
    fitting = [one for one in areas if not one.name and one.figures["Size"] >= weight_bytes]
    weights = min(fitting, key=lambda one: one.figures["Size"], default=None)
    elsewhere = sum(one.figures["Anonymous"] for one in areas if one is not weights)
    if weights is None:
        return elsewhere
    merged = max(0, weights.figures["Anonymous"] - weight_bytes)  # the kernel makes one of two that touch
    return elsewhere + weights.private + merged
