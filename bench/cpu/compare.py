"""What the samples of a run say: medians with their spread, and ratios of paired turns. Pure.

A ratio above 1 is always in our favour.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.cpu.schedule import EVEN, LIMITS, MACHINE, Sample, Turn
from bench.cpu.servers import Contender

OURS = Contender("ours", EVEN).name
PEER = "vllm"
LESS_IS_BETTER = ("_ms", "_ratio", "_mb")
"""Ends of the names of such figures; of all others more is better."""


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float
    rounds: int
    disturbed: int = 0
    """Of the rounds, those in which the machine was busy with something else."""

    @classmethod
    def of(cls, values: Sequence[float], disturbed: int = 0) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values), disturbed)


class Comparison:
    """The samples that count: of each block those of one run, the one that has most of it, else the latest. What a
    server lost stays lost, in every run: who may ask until it holds has shown nothing. What our own client lost is lost
    until the turn has been measured."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        blocks: dict[tuple[str, str, int, str], dict[str, dict[Turn, Sample]]] = {}
        for sample in samples:
            blocks.setdefault(sample.turn.block, {}).setdefault(sample.run, {})[sample.turn] = sample
        counting: list[Sample] = []
        for runs in blocks.values():
            best = max(runs, key=lambda run: (sum(not sample.error for sample in runs[run].values()), run))
            counting += runs[best].values()
        self.samples = [sample for sample in counting if not sample.error]
        every = [sample for runs in blocks.values() for run in runs.values() for sample in run.values()]
        measured = {sample.turn for sample in every if not sample.error}
        self.lost = [s for s in every if s.error and not (s.late_client and s.turn in measured)]
        self._by_name: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        for sample in self.samples:
            turn = sample.turn
            self._by_name[turn.model, turn.part, turn.contender].append(sample)

    @property
    def models(self) -> list[str]:
        return sorted({sample.turn.model for sample in (*self.samples, *self.lost)})

    def parts(self, model: str) -> list[str]:
        found = (*self.samples, *self.lost)
        return list(dict.fromkeys(sample.turn.part for sample in found if sample.turn.model == model))

    def contenders(self, model: str, part: str) -> list[str]:
        """Those that lost every sample, too."""
        every = (*self.samples, *self.lost)
        found = {sample.turn.contender for sample in every if (sample.turn.model, sample.turn.part) == (model, part)}
        return sorted(found, key=lambda name: (not name.startswith("ours"), name))

    def of(self, model: str, part: str, contender: str) -> list[Sample]:
        return self._by_name[model, part, contender]

    def losses(self, model: str, part: str, contender: str) -> int:
        """Samples that brought nothing."""
        wanted = (model, part, contender)
        return sum((s.turn.model, s.turn.part, s.turn.contender) == wanted for s in self.lost)

    def figure(self, model: str, part: str, contender: str, name: str) -> Spread | None:
        """Over all rounds and groups."""
        found = [sample for sample in self.of(model, part, contender) if name in sample.figures]
        values = [sample.figures[name] for sample in found]
        return Spread.of(values, sum(sample.disturbed for sample in found)) if found else None

    def pairs(self, model: str, part: str, ours: str, peer: str) -> list[tuple[Sample, Sample]]:
        """Of one round of one group in one run."""
        theirs = {round_of(sample): sample for sample in self.of(model, part, peer)}
        return [(mine, theirs[round_of(mine)]) for mine in self.of(model, part, ours) if round_of(mine) in theirs]

    def ratio(self, model: str, part: str, name: str, ours: str = OURS, peer: str = PEER) -> Spread | None:
        less = name.endswith(LESS_IS_BETTER)
        found, disturbed = [], 0
        for mine, other in self.pairs(model, part, ours, peer):
            a, b = mine.figures.get(name), other.figures.get(name)
            if a and b:
                found.append(b / a if less else a / b)
                disturbed += mine.disturbed or other.disturbed
        return Spread.of(found, disturbed) if found else None

    def limit(self, model: str, name: str) -> Spread | None:
        return self.figure(model, LIMITS, MACHINE, name)

    def bandwidth_share(self, model: str) -> Spread | None:
        """Of the memory bandwidth that was measured in the same round, what a lone stream at context 128 reads weights
        with, in percent."""
        found = [
            100 * mine.figures["tokens_per_s"] * step / read
            for mine, limits in self._beside_limits(model)
            if (step := limits.figures.get("step_gb")) and (read := limits.figures.get("read_gb_per_s"))
        ]
        return Spread.of(found) if found else None

    def _beside_limits(self, model: str) -> list[tuple[Sample, Sample]]:
        limits = {round_of(sample): sample for sample in self.of(model, LIMITS, MACHINE)}
        return [
            (mine, limits[round_of(mine)]) for mine in self.of(model, "decode-128", OURS) if round_of(mine) in limits
        ]


def round_of(sample: Sample) -> tuple[str, str, int]:
    """Samples of one are paired: of one round of one group in one run."""
    return sample.run, sample.turn.group, sample.turn.round
