"""Who is asked what, and when: every turn of a run in order, and those that are still to do. Pure.

Servers of a group run at the same time and are asked by turns; an idle one takes next to nothing. A ratio is taken
between turns of one round of one group, so that both met the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.cpu.parts import Figures, Part
from bench.cpu.servers import Contender
from semipd_engine.contract import Split

EVEN = Split(prefill=50, decode=50)
SPLITS = (EVEN, *(Split(prefill=p, decode=100 - p) for p in (20, 30, 70, 80)))
LIMITS, MACHINE = "limits", "machine"
PROBES = ("memory", "likelihood")
"""Of ours, once for each model, without a server that runs beside them."""


@dataclass(frozen=True)
class Group:
    name: str
    servers: tuple[str, ...]
    splits: tuple[Split, ...] = (EVEN,)
    """Of ours, in the parts that depend on the split."""
    plain: tuple[str, ...] = ()
    """Those that are also asked the parts that do not depend on a split or a chunk."""


GROUPS = {
    group.name: group
    for group in (
        Group("default", ("ours", "vllm", "vllm-128"), SPLITS, plain=("ours", "vllm")),
        Group("chunks", ("ours", "vllm-64", "vllm-256")),
        Group("modes", ("ours", "unified", "auto")),
    )
}


@dataclass(frozen=True)
class Turn:
    model: str
    group: str
    round: int
    part: str
    contender: str


@dataclass(frozen=True)
class Sample:
    """What a turn brought."""

    turn: Turn
    figures: Figures = field(default_factory=dict)
    error: str = ""
    load: float = 0.0
    """Of the machine, over the last minute, when the turn began."""
    engine: str = ""
    """Digest of the engine that was measured."""
    at: str = ""


def contenders(group: Group, part: Part, number: int) -> list[Contender]:
    """In the order of that round: it is turned, so that nobody is always first."""
    found = [
        Contender(server, split)
        for server in (group.servers if part.splits else group.plain)
        for split in (group.splits if part.splits and server == "ours" else (EVEN,) if server == "ours" else (None,))
    ]
    turn = number % len(found)
    return found[turn:] + found[:turn]


def turns(
    models: Sequence[str], groups: Sequence[Group], parts: Sequence[Part], rounds: int, probes: Sequence[str] = ()
) -> Iterator[Turn]:
    for model in models:
        yield from (Turn(model, "probes", 0, probe, "ours") for probe in probes)
        for group in groups:
            asked = [part for part in parts if group.plain or part.splits]
            for number in range(rounds if asked else 0):
                yield Turn(model, group.name, number, LIMITS, MACHINE)
                for part in asked:
                    for contender in contenders(group, part, number):
                        yield Turn(model, group.name, number, part.name, contender.name)


def remaining(planned: Iterable[Turn], samples: Iterable[Sample], engine: str) -> list[Turn]:
    """Those that this engine has no usable sample of."""
    done = {sample.turn for sample in samples if sample.engine == engine and not sample.error}
    return [turn for turn in planned if turn not in done]


def append(sample: Sample, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(sample)) + "\n")


def read(path: Path) -> list[Sample]:
    """A line that a kill left half written is no sample."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.append(Sample(**row | {"turn": Turn(**row["turn"])}))
    return found
