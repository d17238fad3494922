"""What is claimed of a run, and whether its samples show it. Pure.

A verdict without a measurement is open, never passed.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain

from bench.cpu.compare import OURS, PEER, Comparison, Spread, round_of
from bench.cpu.parts import BUDGET_GAP, BUDGET_THROUGHPUT, UNDISTURBED
from bench.cpu.schedule import LIKELIHOOD, REAL_MODEL, Sample
from bench.cpu.servers import BUDGETS


@dataclass(frozen=True)
class Verdict:
    claim: str
    found: str
    holds: bool | None
    """None: not measured."""


SPEEDS = (
    ("decode-128", "tokens_per_s", 1.0),
    ("decode-2000", "tokens_per_s", 1.0),
    ("eight", "tokens_per_s", 0.9),
    ("prefill-512", "ttft_ms", 0.9),
)
"""Part, figure, and the least ratio to the peer's default."""
BARGAINS = ((4.0, 1.4), (2.5, 2.0))
"""A split's longest gap over its quiet gap, and the prompt's TTFT over that of the peer's best chunk; a split each."""
LEAST_GAP_RATIO = 2.0
"""The longest gap, in milliseconds, is at most half of that of the peer's best chunk."""
MOST_WAIT = 1.25
"""Of a chunk that may be the best: the prompt's TTFT over the least of the peer's chunks. One that buys its short gaps
with the prompt's wait is no setting that anybody would be compared with."""


def verdicts(comparison: Comparison) -> list[Verdict]:
    found = []
    for model in comparison.models:
        for part, name, least in SPEEDS:
            ratio = comparison.ratio(model, part, name)
            text = f"{ratio.median:.2f} × ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "not measured"
            if ratio and ratio.disturbed:
                text += f", {ratio.disturbed} of {ratio.rounds} rounds beside other work"
            claim = f"{model}: {part} at least {least:.1f} × {PEER}"
            found.append(Verdict(claim, text, _holds(ratio.median >= least, ratio) if ratio else None))
        for part in ("interference", "back-to-back"):
            found += [_bargain(comparison, model, part, *bargain) for bargain in BARGAINS]
        found += [*_memory(comparison, model), *_likelihood(comparison, model), _budgets(comparison, model)]
    return found


def _holds(within: bool, spread: Spread) -> bool | None:
    """What falls short does so on a busy machine, too; what is within a limit there may be so for what it did to the
    other one, and stays open."""
    return None if within and 2 * spread.disturbed > spread.rounds else within


def chunks(comparison: Comparison, model: str, part: str) -> dict[tuple[str, str, int], list[Sample]]:
    """The peer's samples of the rounds that had the most of its variants, and all the same ones: of two sets as large,
    those of the most rounds."""
    found: dict[tuple[str, str, int], list[Sample]] = defaultdict(list)
    for name in comparison.contenders(model, part):
        for sample in comparison.of(model, part, name) if name.startswith(PEER) else ():
            found[round_of(sample)].append(sample)
    sets = {number: frozenset(sample.turn.contender for sample in peers) for number, peers in found.items()}
    asked = Counter(sets.values())
    most = max(asked, key=lambda names: (len(names), asked[names], sorted(names)), default=None)
    return {number: peers for number, peers in found.items() if sets[number] == most}


def best_chunk(comparison: Comparison, model: str, part: str) -> str | None:
    """The one setting of the peer that bargains are struck against: where the most of its variants met, of those whose
    prompt waits at most `MOST_WAIT` times the least, the one with the shortest longest gap; medians of the rounds."""
    met: dict[str, list[Sample]] = defaultdict(list)
    for sample in chain.from_iterable(chunks(comparison, model, part).values()):
        met[sample.turn.contender].append(sample)

    def median(name: str, figure: str) -> float:
        return statistics.median(sample.figures[figure] for sample in met[name])

    least = min((median(name, "ttft_ms") for name in met), default=0.0)
    ready = [name for name in met if median(name, "ttft_ms") <= MOST_WAIT * least]
    return min(ready, key=lambda name: median(name, "longest_gap_ms"), default=None)


def _bargain(comparison: Comparison, model: str, part: str, most_gap: float, most_ttft: float) -> Verdict:
    """The split that comes nearest to all three limits, each a median over the rounds in which the most of the peer's
    chunks were asked, too; against the best of these. A lost or late prompt of ours breaks it."""
    limits = (most_gap, most_ttft, 1 / LEAST_GAP_RATIO)
    wanted = "gap ≤ {} × quiet, TTFT ≤ {} × and gap ≤ {} × the peer's at its best chunk".format(*limits)
    claim = f"{model}: {part}, a split with {wanted}"
    met, best = chunks(comparison, model, part), best_chunk(comparison, model, part)
    asked = sorted({peer.turn.contender for peer in chain.from_iterable(met.values())})
    peers = {number: peer for number, all_of in met.items() for peer in all_of if peer.turn.contender == best}

    def to_best(mine: Sample, figure: str) -> float:
        return mine.figures[figure] / peers[round_of(mine)].figures[figure]

    offers: list[tuple[bool, tuple[float, float, float], str, Spread]] = []
    for name in comparison.contenders(model, part):
        ours = [s for s in comparison.of(model, part, name) if round_of(s) in peers] if name.startswith("ours ") else []
        if not ours:
            continue
        bad = comparison.losses(model, part, name) + sum(map(broken_prompts, ours))
        found = (
            statistics.median(mine.figures["longest_gap_ratio"] for mine in ours),
            statistics.median(to_best(mine, "ttft_ms") for mine in ours),
            statistics.median(to_best(mine, "longest_gap_ms") for mine in ours),
        )
        disturbed = sum(mine.disturbed or peers[round_of(mine)].disturbed for mine in ours)
        offers.append((bad > 0, found, name, Spread(found[0], found[0], found[0], len(ours), disturbed)))
    if not offers:
        return Verdict(claim, "not measured", None)
    bad, found, name, rounds = min(
        offers, key=lambda offer: (offer[0], max(a / b for a, b in zip(offer[1], limits, strict=True)))
    )
    ratio, slower, share = found
    of = f"the best of {', '.join(asked)}" if len(asked) > 1 else "the only chunk asked"
    text = f"{name}: {ratio:.1f} × quiet, TTFT {slower:.2f} ×, gap {share:.2f} × {best} ({of}), {rounds.rounds} rounds"
    if rounds.disturbed:
        text += f", {rounds.disturbed} of them beside other work"
    if part == "back-to-back" and (alone := comparison.figure(model, UNDISTURBED, OURS, "longest_gap_ratio")):
        text += f"; {alone.median:.1f} × quiet where no prompt comes"
    if bad:
        return Verdict(claim, f"{text}; prompts or samples were lost", False)
    return Verdict(claim, text, _holds(all(a <= b for a, b in zip(found, limits, strict=True)), rounds))


def broken_prompts(sample: Sample) -> int:
    """Those that failed, or were answered when nobody was left to be disturbed."""
    return int(sample.figures.get("failed_prompts", 0) + sample.figures.get("late_prompts", 0))


LEAST_THROUGHPUT, MOST_GAP = 0.9, 1.1
"""Of the one-process mode at a budget, to the peer's at the same."""


@dataclass(frozen=True)
class AtBudget:
    """What the one-process mode and the peer made of one budget; ratios as ever, above 1 for us."""

    budget: int
    throughput: Spread
    gap: Spread
    lost: int
    """Samples and prompts of ours."""

    @property
    def holds(self) -> bool | None:
        within = self.throughput.median >= LEAST_THROUGHPUT and self.gap.median >= 1 / MOST_GAP and not self.lost
        both = (self.throughput, self.gap)
        return None if any(_holds(within, spread) is None for spread in both) else within


def at_budgets(comparison: Comparison, model: str) -> list[AtBudget]:
    """Those that were measured, on both sides."""
    found = []
    for budget in BUDGETS:
        ours, peer = f"unified-{budget}", f"{PEER}-{budget}"
        throughput = comparison.ratio(model, BUDGET_THROUGHPUT, "tokens_per_s", ours, peer)
        gap = comparison.ratio(model, BUDGET_GAP, "longest_gap_ms", ours, peer)
        lost = sum(comparison.losses(model, part, ours) for part in (BUDGET_THROUGHPUT, BUDGET_GAP))
        lost += sum(map(broken_prompts, comparison.of(model, BUDGET_GAP, ours)))
        if throughput and gap:
            found.append(AtBudget(budget, throughput, gap, lost))
    return found


def _budgets(comparison: Comparison, model: str) -> Verdict:
    """Of all budgets, or open."""
    limits = f"throughput at least {LEAST_THROUGHPUT} × and longest gap at most {MOST_GAP} × {PEER}'s"
    claim = f"{model}: one process at each budget from {BUDGETS[0]} to {BUDGETS[-1]}, {limits}"
    found = at_budgets(comparison, model)
    if not found:
        return Verdict(claim, "not measured", None)
    texts = ["ours over theirs"]
    texts += [f"{each.budget}: {each.throughput.median:.2f} and {1 / each.gap.median:.2f} ×" for each in found]
    texts += [f"{each.budget}: {each.lost} samples or prompts lost" for each in found if each.lost]
    missing = sorted({*BUDGETS} - {each.budget for each in found})
    texts += [f"not measured: {', '.join(map(str, missing))}"] if missing else []
    busy = [str(each.budget) for each in found if each.throughput.disturbed or each.gap.disturbed]
    texts += [f"beside other work: {', '.join(busy)}"] if busy else []
    held = [each.holds for each in found]
    whole = None if missing or None in held else True
    return Verdict(claim, "; ".join(texts), False if False in held else whole)


MOST_BESIDE_MB, LEAST_WEIGHTS_MB = 400.0, 200.0
"""A process of ours has some 350 MB of its own and its libraries; a second copy of a smaller model would not show."""


def _memory(comparison: Comparison, model: str) -> list[Verdict]:
    names = ("weights_mb", "kv_mb", "pss_mb", "loading_peak_mb", "worker_private_mb", "beside_weights_mb")
    spreads = [comparison.figure(model, "memory", "ours", name) for name in names]
    if not all(spreads):
        return [Verdict(f"{model}: one copy in memory", "not measured", None)]
    weights, kv, pss, peak, private, beside = (spread.median for spread in spreads if spread)
    limits = (
        ("summed PSS ≤ 1.15 × weights + KV + 600 MB", pss, 1.15 * weights + kv + 600),
        ("loading peak ≤ 1.3 × weights + 300 MB", peak, 1.3 * weights + 300),
        ("a worker's private memory ≤ 150 MB", private, 150.0),
        (f"no second copy: a process's memory beside the weights ≤ {MOST_BESIDE_MB:.0f} MB", beside, MOST_BESIDE_MB),
    )
    return [
        Verdict(
            f"{model}: {claim}",
            f"{had:.0f} of {most:.0f} MB",
            None if had is beside and weights < LEAST_WEIGHTS_MB else had <= most,
        )
        for claim, had, most in limits
    ]


MOST_PERCENT = 0.1
"""Of the negative log-likelihood's difference."""


def _likelihood(comparison: Comparison, model: str) -> list[Verdict]:
    """Of the real model only."""
    if model != REAL_MODEL:
        return []
    claim = f"{model}: NLL of 10,000 tokens of text within {MOST_PERCENT} % of transformers"
    off, error = (
        comparison.figure(model, LIKELIHOOD, "ours", name) for name in ("difference_percent", "error_percent")
    )
    if not off or not error:
        return [Verdict(claim, "not measured", None)]
    text = f"{off.median:+.3f} ± {error.median:.3f} %"
    return [Verdict(claim, text, within(off.median, error.median))]


def within(difference: float, error: float) -> bool | None:
    """Of the limit, two standard errors either way, all in percent; None: too noisy to tell."""
    if abs(difference) + 2 * error <= MOST_PERCENT:
        return True
    return False if abs(difference) - 2 * error > MOST_PERCENT else None
