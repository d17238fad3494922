"""What the samples of a run say: medians with their spread, ratios of paired turns, and verdicts. Pure.

A ratio above 1 is always in our favour. A verdict without a measurement is open, never passed.
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

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Verdict:
    claim: str
    found: str
    holds: bool | None
    """None: not measured."""


class Comparison:
    """The samples of one engine, errors left out."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = list({sample.turn: sample for sample in samples if not sample.error}.values())
        self._by_name: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        for sample in self.samples:
            turn = sample.turn
            self._by_name[turn.model, turn.part, turn.contender].append(sample)

    @property
    def models(self) -> list[str]:
        return sorted({sample.turn.model for sample in self.samples})

    def parts(self, model: str) -> list[str]:
        return list(dict.fromkeys(sample.turn.part for sample in self.samples if sample.turn.model == model))

    def contenders(self, model: str, part: str) -> list[str]:
        found = {s.turn.contender for s in self.samples if (s.turn.model, s.turn.part) == (model, part)}
        return sorted(found, key=lambda name: (not name.startswith("ours"), name))

    def figure(self, model: str, part: str, contender: str, name: str) -> Spread | None:
        """Over all rounds and groups."""
        values = [s.figures[name] for s in self._by_name[model, part, contender] if name in s.figures]
        return Spread.of(values) if values else None

    def ratio(self, model: str, part: str, name: str, ours: str = OURS, peer: str = PEER) -> Spread | None:
        """Of turns of the same round and group only."""
        theirs = {_round(s.turn): s.figures.get(name) for s in self._by_name[model, part, peer]}
        pairs = [
            (s.figures[name], other)
            for s in self._by_name[model, part, ours]
            if name in s.figures and (other := theirs.get(_round(s.turn)))
        ]
        less = name.endswith(LESS_IS_BETTER)
        return Spread.of([b / a if less else a / b for a, b in pairs]) if pairs else None

    def limit(self, model: str, name: str) -> Spread | None:
        return self.figure(model, LIMITS, MACHINE, name)


def _round(turn: Turn) -> tuple[str, int]:
    return turn.group, turn.round


SPEEDS = (
    ("decode-128", "tokens_per_s", 1.0),
    ("decode-2000", "tokens_per_s", 1.0),
    ("eight", "tokens_per_s", 0.9),
    ("prefill-512", "ttft_ms", 0.9),
)
"""Part, figure, and the least ratio to the peer's default."""
BARGAINS = ((4.0, 1.4), (2.5, 2.0))
"""A split's longest gap over its quiet gap, and the prompt's TTFT over the peer's at its best chunk: one split each."""
LEAST_GAP_RATIO = 2.0
"""The longest gap, in milliseconds, is at most half of that peer's."""


def verdicts(comparison: Comparison) -> list[Verdict]:
    found = []
    for model in comparison.models:
        for part, name, least in SPEEDS:
            ratio = comparison.ratio(model, part, name)
            text = f"{ratio.median:.2f} × ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "not measured"
            claim = f"{model}: {part} at least {least:.1f} × {PEER}"
            found.append(Verdict(claim, text, ratio.median >= least if ratio else None))
        for part in ("interference", "back-to-back"):
            found += [_bargain(comparison, model, part, *bargain) for bargain in BARGAINS]
        found += [*_memory(comparison, model), _likelihood(comparison, model)]
    return found


def best_chunk(comparison: Comparison, model: str, part: str) -> str | None:
    """The peer's variant with the shortest longest gap."""
    gaps = {
        name: gap.median
        for name in comparison.contenders(model, part)
        if name.startswith(PEER) and (gap := comparison.figure(model, part, name, "longest_gap_ms"))
    }
    return min(gaps, key=gaps.__getitem__, default=None)


def _bargain(comparison: Comparison, model: str, part: str, most_gap: float, most_ttft: float) -> Verdict:
    """The split that comes nearest to all three limits."""
    limits = (most_gap, most_ttft, 1 / LEAST_GAP_RATIO)
    wanted = "gap ≤ {} × quiet, TTFT ≤ {} × and gap ≤ {} × best chunk".format(*limits)
    claim = f"{model}: {part}, a split with {wanted}"
    best = best_chunk(comparison, model, part)
    ttft, gap = (comparison.figure(model, part, best or "", name) for name in ("ttft_ms", "longest_gap_ms"))
    offers: list[tuple[tuple[float, float, float], str]] = []
    for name in comparison.contenders(model, part):
        mine = [comparison.figure(model, part, name, f) for f in ("longest_gap_ratio", "ttft_ms", "longest_gap_ms")]
        if name.startswith("ours ") and ttft and gap and all(mine):
            ratio, seconds, longest = (spread.median for spread in mine if spread)
            offers.append(((ratio, seconds / ttft.median, longest / gap.median), name))
    if not offers:
        return Verdict(claim, "not measured", None)
    found, name = min(offers, key=lambda offer: max(a / b for a, b in zip(offer[0], limits, strict=True)))
    ratio, slower, share = found
    text = f"{name}: {ratio:.1f} × quiet, TTFT {slower:.2f} ×, gap {share:.2f} × {best}"
    return Verdict(claim, text, all(a <= b for a, b in zip(found, limits, strict=True)))


def _memory(comparison: Comparison, model: str) -> list[Verdict]:
    names = ("weights_mb", "kv_mb", "pss_mb", "loading_peak_mb", "worker_private_mb")
    spreads = [comparison.figure(model, "memory", "ours", name) for name in names]
    if not all(spreads):
        return [Verdict(f"{model}: one copy in memory", "not measured", None)]
    weights, kv, pss, peak, private = (spread.median for spread in spreads if spread)
    limits = (
        ("summed PSS ≤ 1.15 × weights + KV + 600 MB", pss, 1.15 * weights + kv + 600),
        ("loading peak ≤ 1.3 × weights + 300 MB", peak, 1.3 * weights + 300),
        ("a worker's private memory ≤ 150 MB", private, 150.0),
    )
    return [Verdict(f"{model}: {claim}", f"{had:.0f} of {most:.0f} MB", had <= most) for claim, had, most in limits]


def _likelihood(comparison: Comparison, model: str) -> Verdict:
    claim = f"{model}: NLL within 0.1 % of transformers"
    off = comparison.figure(model, "likelihood", "ours", "difference_percent")
    return Verdict(claim, f"{off.median:+.3f} %" if off else "not measured", abs(off.median) <= 0.1 if off else None)
