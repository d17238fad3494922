"""Who is asked what, and when: every turn of a run in order, and those that are still to do. Pure.

Servers of a group live at the same time and are asked by turns, in which the others are stopped. A ratio is taken
between turns of one round of one group in one run, so that both met the same machine: what is resumed is therefore a
block, all turns of one part in one round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

from bench.cpu.figures import Figures
from bench.cpu.machine import BUSY
from bench.cpu.parts import BUDGET_GAP, BUDGET_THROUGHPUT, UNDISTURBED
from bench.cpu.servers import BUDGETS, Contender
from bench.traffic import ClientLateError
from semipd_engine.contract import Split

EVEN, LONG_PROMPTS, LONG_ANSWERS = (Split(prefill=p, decode=100 - p) for p in (50, 70, 30))
MOST_BY_TURNS = Split(prefill=38, decode=62)
"""On two CPUs nearly the most that prompts may have (39) without a core of their own."""
CPU_PER_PHASE = Split(prefill=40, decode=60)
"""On two CPUs the least with which prompts have a core of their own, and answers the rest."""
BARGAIN_SPLITS = (EVEN, MOST_BY_TURNS, LONG_ANSWERS)
LASTING_SPLITS = (EVEN, Split(prefill=66, decode=34), MOST_BY_TURNS)
"""What the bargains were kept with where more were tried (`splits`)."""
SPLITS = (*BARGAIN_SPLITS, LONG_PROMPTS, CPU_PER_PHASE, *(Split(prefill=p, decode=100 - p) for p in (20, 60, 62, 80)))
LIMITS, MACHINE = "limits", "machine"
MEMORY, LIKELIHOOD = "memory", "likelihood"
SPEED_PARTS = ("decode-128", "decode-2000", "eight", "prefill-512")
REAL_MODEL = "smollm2-135m"
"""The one whose likelihood of text says something: to a random model every token is about as unlikely."""


@dataclass(frozen=True)
class Group:
    """Its parts are asked of all its servers, of ours under each of its splits."""

    name: str
    parts: tuple[str, ...]
    servers: tuple[str, ...] = ("ours",)
    splits: tuple[Split, ...] = (EVEN,)
    every_limits: bool = False
    """The machine's limits are measured in each round, not only in the first."""


GROUPS = {
    group.name: group
    for group in (
        Group("speeds", SPEED_PARTS, ("ours", "vllm"), every_limits=True),
        Group("interference", ("interference",), ("ours", "vllm-128"), BARGAIN_SPLITS),
        Group("probes", (MEMORY, LIKELIHOOD)),
        Group("back-to-back", ("back-to-back", UNDISTURBED), ("ours", "vllm", "vllm-128"), LASTING_SPLITS),
        Group("chunks", ("interference",), ("ours", "vllm", "vllm-64", "vllm-128", "vllm-256"), LASTING_SPLITS),
        Group("splits", ("interference",), ("ours", "vllm-128"), SPLITS),
        Group(
            "modes",
            ("interference", "poisson", "gamma", "trace"),
            ("ours", "unified", "auto", "vllm", "vllm-128"),
            BARGAIN_SPLITS,
        ),
        *(Group(f"budget-{n}", (BUDGET_GAP, BUDGET_THROUGHPUT), (f"unified-{n}", f"vllm-{n}")) for n in BUDGETS),
        Group("peers", (*SPEED_PARTS, "interference"), ("ours", "llama-2048", "llama-128", "transformers")),
        Group("long", ("long-mix",), ("ours", "vllm", "vllm-128")),
    )
}
"""In the order of importance."""
SETS = {
    "default": ("speeds", "interference"),
    "budgets": tuple(f"budget-{n}" for n in BUDGETS),
    "all": tuple(name for name in GROUPS if name != "long"),
}
"""Names for several groups. `long` takes ten minutes a turn and is asked for by its name only."""


@dataclass(frozen=True)
class Turn:
    model: str
    group: str
    round: int
    part: str
    contender: str

    @property
    def block(self) -> tuple[str, str, int, str]:
        """What its ratios are taken within, and what is resumed as a whole."""
        return self.model, self.group, self.round, self.part


@dataclass(frozen=True)
class Sample:
    """What a turn brought."""

    turn: Turn
    figures: Figures = field(default_factory=dict)
    error: str = ""
    """Not empty: it brought nothing, and this is why."""
    key: str = ""
    """`bench.cpu.identity`: of everything that decides what was measured."""
    run: str = ""
    """One call of the command, by the time at which it began."""
    commit: str = ""
    at: str = ""
    seconds: float = 0.0
    """How long it took, tries and all."""
    load: float = 0.0
    """Of the machine, over the last minute, when the turn began."""
    others: float | None = None
    """Tasks that were running meanwhile and neither ours nor the server's; the mean. None: nobody counted, which is not
    quiet."""

    foremost: bool = False
    """Its processes weighed 86 times as much as anybody else's: others had little of the CPUs."""

    @property
    def disturbed(self) -> bool:
        """Foremost or not: who weighs most is disturbed least, and still."""
        return self.others is None or self.others > BUSY

    @property
    def late_client(self) -> bool:
        """Lost by us, who asked too late, and by no server."""
        return self.error.startswith(ClientLateError.__name__)


def contenders(group: Group, number: int, part: str) -> list[Contender]:
    """In the order of that round: it is turned, so that nobody is always first."""
    splits = group.splits[:1] if part == UNDISTURBED else group.splits
    found = [
        Contender(server, split) for server in group.servers for split in (splits if server == "ours" else (None,))
    ]
    turn = number % len(found)
    return found[turn:] + found[:turn]


def turns(models: Sequence[str], groups: Sequence[Group], rounds: int, only: Sequence[str] = ()) -> Iterator[Turn]:
    """Group by group, so that what matters most is there for all models first. `only`: of these parts; all if empty."""
    for group in groups:
        parts = [part for part in group.parts if not only or part in only]
        for model in models if parts else ():
            if group.name == "probes":
                asked = [part for part in parts if part != LIKELIHOOD or model == REAL_MODEL]
                yield from (Turn(model, group.name, 0, part, "ours") for part in asked)
                continue
            for number in range(rounds):
                if group.every_limits or number == 0:
                    yield Turn(model, group.name, number, LIMITS, MACHINE)
                for part in parts:
                    for contender in contenders(group, number, part):
                        yield Turn(model, group.name, number, part, contender.name)


def remaining(planned: Iterable[Turn], samples: Iterable[Sample], key_of: Callable[[Turn], str]) -> list[Turn]:
    """Those of blocks that no run has measured as a whole, with these keys and without an error. `key_of` is asked of
    planned turns only: it need not know the models and parts of older samples."""
    turns = list(planned)
    keys = {turn: key_of(turn) for turn in turns}
    runs: dict[Turn, set[str]] = {turn: set() for turn in turns}
    for sample in samples:
        if not sample.error and sample.key == keys.get(sample.turn):
            runs[sample.turn].add(sample.run)
    todo: list[Turn] = []
    for _, block in groupby(turns, key=lambda turn: turn.block):
        members = list(block)
        if not set.intersection(*(runs[turn] for turn in members)):
            todo += members
    return todo


def append(sample: Sample, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")  # a kill has left half a line: it must not swallow this one
        file.write(json.dumps(asdict(sample)).encode() + b"\n")


def read(path: Path) -> list[Sample]:
    """A line that a kill left half written, or that another version of this wrote, is no sample."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            found.append(Sample(**row | {"turn": Turn(**row["turn"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return found
