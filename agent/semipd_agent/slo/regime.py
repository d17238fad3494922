"""Is recent demand, beyond chance, another one than before? Rates, and means of lengths, held against each other. Pure.

It knows numbers and times, and no request.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

CHANGED = {5.0: 5.0, 10.0: 4.0, 20.0: 4.0, 40.0: 4.0, 80.0: 4.0}
"""Seconds of the recent past that are held against what came before -> standard deviations that make a change. The
shortest asks for more: sums of few requests have long tails."""
TRIED = 120.0
"""Seconds of one load for which that holds: one that lasts longer is put to the test more often."""
TAIL = 4.0
"""The chance of so many standard deviations falls as exp(-z * z / TAIL), for sums of few prompts with long tails;
2 were a normal distribution's."""
LEAST_RECENT = 6
"""Requests that a change must show in."""
LEAST_COUNTS = 8
"""Fewer say nothing of bursts."""


def changed(
    asked: Sequence[tuple[float, float]],
    said: Sequence[tuple[float, float]],
    start: float,
    now: float,
    bursts: float = 1.0,
    lasted: float = 0.0,
) -> float | None:
    """When the load became another one, if recent demand says so; None: it did not.

    `asked`: since `start`, each request's time and the tokens of its prompt to be computed; `said`: the time of each
    of those whose answer is known, or drawn, and its tokens. Both in the order of time. `bursts`: `burstiness`, for
    arrivals that come in bursts are no other load at each of them. `lasted`: seconds that the load was the same for.
    """
    best, found = 0.0, None
    came, tokens = [at for at, _ in asked], [count for _, count in asked]
    ended, outputs = [at for at, _ in said], [length for _, length in said]
    for lag, young in CHANGED.items():
        needed = patient(young, lasted)
        since = now - lag
        before = since - start
        if before < lag:
            break
        old, over = bisect_left(came, since), bisect_left(ended, since)
        new = len(came) - old
        if max(new, old * lag / before) < LEAST_RECENT:
            continue
        z = max(
            _rates_apart(tokens[:old], before, tokens[old:], lag) / bursts,
            _rates_apart([1.0] * old, before, [1.0] * new, lag) / bursts,
            _means_apart(outputs[:over], outputs[over:]),
        )
        if z > needed and z > best:
            best, found = z, since
    return found


def patient(deviations: float, lasted: float) -> float:
    """Standard deviations that make a change of a load that lasted so long. It was tested once a second all the while:
    the chance that it is ever taken for another one without being one stays that of its first `TRIED` seconds."""
    return math.sqrt(deviations * deviations + TAIL * math.log(max(1.0, lasted / TRIED)))


def _rates_apart(old: list[float], old_seconds: float, new: list[float], new_seconds: float) -> float:
    """Standard deviations between two rates of a compound Poisson stream."""
    squares = (sum(v * v for v in old) + sum(v * v for v in new)) / (old_seconds + new_seconds)
    variance = squares / old_seconds + squares / new_seconds
    return abs(sum(new) / new_seconds - sum(old) / old_seconds) / math.sqrt(variance) if variance else 0.0


def burstiness(counts: Sequence[int]) -> float:
    """By how much arrivals spread more than Poisson's, as a ratio of standard deviations, as far as that is beyond
    chance. `counts`: of equal times one after the other. From one to the next, so a load that became another one once
    is no burst."""
    if len(counts) < LEAST_COUNTS or not any(counts):
        return 1.0
    spread = sum((b - a) ** 2 for a, b in itertools.pairwise(counts)) / (2 * (len(counts) - 1))
    chance = 1 + 2 * math.sqrt(3 / len(counts))
    return math.sqrt(max(1.0, spread * len(counts) / sum(counts) / chance))


def _means_apart(old: list[float], new: list[float]) -> float:
    """With at least ten of each, by the larger of Welch's variance and the common one: few lengths with a long tail
    that happen to be short vary little, too. Those that still run count with a drawn length: else the requests that
    came lately would seem shorter than they are."""
    if len(old) < 10 or len(new) < 10:
        return 0.0
    m0, m1 = sum(old) / len(old), sum(new) / len(new)
    s0, s1 = sum((v - m0) ** 2 for v in old), sum((v - m1) ** 2 for v in new)
    apart = s0 / (len(old) - 1) / len(old) + s1 / (len(new) - 1) / len(new)
    common = (s0 + s1) / (len(old) + len(new) - 2) * (1 / len(old) + 1 / len(new))
    variance = max(apart, common)
    return abs(m1 - m0) / math.sqrt(variance) if variance > 0 else 0.0
