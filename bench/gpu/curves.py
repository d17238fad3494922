"""How much longer a step takes on a part of the SMs: the estimator beside what others have published.

A curve is T(share) / T(all). Theirs are of other engines, models and cards, so they judge the estimator's form, not its
numbers: where a step is bound by memory it keeps its speed on half of the SMs, where it is bound by products it does
not. Known misses stand in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu.estimate import CARDS, Card, Cost

A100 = Card(2.039e12, 312e12, 108)  # NVIDIA A100 80 GB data sheet, SXM


@dataclass(frozen=True)
class Published:
    source: str
    card: Card
    case: str
    """The case of the 8 B model that is nearest."""
    ratio: Callable[[float], float]
    shares: Sequence[float] = (0.25, 0.5, 0.75)


def _measured(points: Mapping[int, float]) -> Callable[[float], float]:
    return lambda share: points[round(share * 132)]


H200_POINTS = {32: 1.33, 48: 1.21, 64: 1.09, 80: 1.08, 96: 1.06}
PUBLISHED = (
    Published(
        "decode, batch 16, alone on an H200 (a public report on green contexts)",
        CARDS["H200"],
        "decode 16",
        _measured(H200_POINTS),
        [sms / 132 for sms in H200_POINTS],
    ),
    Published(
        "8 B decode, batch 16, A100 (SGLang's multiplex predictor)", A100, "decode 16", lambda s: 0.86 + 0.12 / s
    ),
    Published("8 B decode, batch 64, A100 (the same)", A100, "decode 64", lambda s: 0.78 + 0.19 / s),
    Published("8 B prefill of 2k, A100 (the same)", A100, "prefill 2048", lambda s: 0.58 + 0.39 / s),
    Published("8 B TPOT under load, A100 (semi-PD, figure 10)", A100, "decode 64", lambda s: 0.3818 + 0.6284 / s),
)


def beside(costs: Mapping[str, Sequence[Cost]]) -> list[dict[str, Any]]:
    """`costs`: of the 8 B model's cases. A row for each share of each curve."""

    rows = []
    for one in PUBLISHED:
        for share in one.shares:
            ours = _device(one, costs, share) / _device(one, costs, 1.0)
            theirs = one.ratio(share)
            rows.append(
                {"curve": one.source, "share": round(share, 2), "ours": round(ours, 2), "theirs": round(theirs, 2)}
            )
    return rows


def _device(one: Published, costs: Mapping[str, Sequence[Cost]], share: float) -> float:
    """Seconds of the kernels alone: the host queues no slower on fewer SMs."""
    return sum(one.card.expected(share).device(cost) for cost in costs[one.case])
