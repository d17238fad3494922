"""What was seen of one phase's steps, as two classes of evidence by the part of the time that they ran alone. Pure.

Steps alone say what the costs are, and contention is what those beside the other phase take over that. Where that part
does not differ among what was seen, what is believed of contention stands. Seconds are always what is explained and
never what explains: the law of the share and the form of the costs err, and errors of what explains pull both towards
zero. Both classes keep the seconds alone and the seconds beside apart; the one contention that fits both is solved for
when it is asked for, so nothing that was believed earlier is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from semipd_agent.slo.equations import Equations, Row, ridge

FORGET_SECONDS = 120.0
"""Half-life of what was seen, while there is more of its class to see."""
FORGET_RESTING = 0.1
"""... and where there is little or nothing of its class, at this part of the rate at the least: steps alone settle the
scale while all are shared, and contention is remembered while a phase runs alone, for hours but not for days."""
CONTENTION = (0.7, 2.5)
LEAST_TRUST = 0.1
"""Weight in the costs of a step that ran beside the other phase, over one that ran alone: its share's law errs, too."""
CONTENTION_WEIGHT = 0.1
"""The profile's contention counts as so many steps alone and many beside, or many and so few."""
LEAST_KNOWN = 1.5
"""Less evidence says nothing of contention: a single odd step would decide it."""
ROUNDS = 8
"""At most, until contention fits both classes."""


@dataclass(frozen=True)
class PhaseFit:
    """What was seen of one phase: every step counts as alone for the part of its time in which it was, and as shared
    for the rest. A class is forgotten as more of it is seen, and else slowly."""

    alone: Equations = field(default_factory=Equations)
    shared: Equations = field(default_factory=Equations)
    both: float = 0.0
    """Weight that is in both classes: part alone times part shared, of each step."""
    steps: int = 0
    """Seen at all."""

    @property
    def known(self) -> float:
        """How much is known of contention: as many steps with one of them alone and one shared would say. The variance
        of the part alone, times the weight; where that part is the same everywhere, nothing follows from it."""
        a, s = self.alone.weight, self.shared.weight
        return max(0.0, a * s / (a + s) - self.both) if a and s else 0.0

    def contention(self, believed: float, measured: bool) -> float:
        """What makes the costs that steps alone say explain the shared ones, too. `believed`, `measured`: the profile's
        contention, and whether the profile was measured."""
        a, s, known = self.alone, self.shared, self.known
        if known < LEAST_KNOWN:
            return believed
        sizes = [sum(line) for line in s.a]  # they differ between the two: what is said of steps of *these* sizes
        alone, beside = sum(s.alone), sum(s.shared)

        def unexplained(speed: float) -> float:
            said = ridge(a, 1 / speed, measured)
            return sum(t * size for t, size in zip(said, sizes, strict=True)) - alone - beside * speed

        # Its inverse, a speed, is in these sums linearly but for the bounds of the costs: a secant finds it at once.
        low, high = 1 / CONTENTION[1], 1 / CONTENTION[0]
        before, now = 0.9 / believed, 1 / believed
        wrong = unexplained(before)
        for _ in range(ROUNDS):
            last, wrong = wrong, unexplained(now)
            slope = (wrong - last) / (now - before)
            before, now = now, min(max(now - wrong / slope, low), high) if slope else now
            if abs(now - before) < 1e-6:
                break
        return (known / now + CONTENTION_WEIGHT * believed) / (known + CONTENTION_WEIGHT)

    def costs(self) -> Equations:
        """Of which the costs are learned."""
        return self.alone + self.shared.times(LEAST_TRUST)

    def seen(self, rows: Sequence[Row], seconds: float) -> PhaseFit:
        """With what the last `seconds` brought. Without a step nothing is forgotten."""
        part = sum(row.steps * row.part for row in rows) / sum(row.steps for row in rows)
        keep_alone, keep_shared = (
            0.5 ** (seconds / FORGET_SECONDS * max(of, FORGET_RESTING)) for of in (part, 1 - part)
        )
        alone, shared = self.alone.times(keep_alone), self.shared.times(keep_shared)
        both = self.both * max(keep_alone, keep_shared)
        for row in rows:
            alone = alone.added(row, row.steps * row.part)
            shared = shared.added(row, row.steps * (1 - row.part))
            both += row.steps * row.part * (1 - row.part)
        return PhaseFit(alone, shared, both, self.steps + sum(row.steps for row in rows))
