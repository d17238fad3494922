"""How long a step takes: a line in its size at the whole device, and how a share slows it. Pure.

A step's *work* is its seconds at the whole device. Both phases have the same form,

    work = c0 * steps + c1 * tokens + c2 * context,

with tokens computed (prefill) or rows (decode), and the positions that attention reads. It is linear, so sums over
many steps obey it as single ones do, and `StepTimes` is all that it takes to learn it. Coefficients start from a
profile (or a documented guess), and are corrected online by ridge regression towards the profile's shape, with
exponential forgetting: where sizes do not vary, only the common scale moves, within `SCALE`.

A share acts on speed while both phases are busy; a phase that is alone has the whole device (L0). Two laws: `PACED`,
for CPU time that is dealt out in proportion, and `SPATIAL`, for SMs that a phase may not leave, of which it cannot
use all equally well (time = a + b / share, whose slope `share_law` learns). What contention adds is one factor for each
phase. What was seen counts as two classes of evidence by the part of the time that it ran alone: steps alone say what
the costs are, and contention is what those beside the other phase take over that. Where that part does not differ among
what was seen, the profile's contention stands. Seconds are always what is explained and never what explains: the law of
the share and the form of the costs err, and errors of what explains pull both towards zero. Both classes keep the
seconds alone and the seconds beside apart; the one contention that fits both is solved for when it is asked for, so
nothing that was believed earlier is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from semipd_agent.slo.equations import Equations, Row, Three, ridge
from semipd_agent.slo.share_law import Curve, SharesSeen
from semipd_engine.contract import Phase, Split, StepTimes

Vector = tuple[float, float, float]


class ShareLaw(StrEnum):
    PACED = "paced"
    SPATIAL = "spatial"


@dataclass(frozen=True)
class StepProfile:
    """Step times of one model on one device, as measured or assumed."""

    prefill: Vector
    """Seconds for each step, token computed, and token x position."""
    decode: Vector
    """Seconds for each step, row, and position read."""
    law: ShareLaw = ShareLaw.PACED
    prefill_curve: Curve = Curve(0.2, 0.8)
    decode_curve: Curve = Curve(0.85, 0.15)
    contention: float = 1.1
    """Time of a step beside the other phase over its time alone, the share apart."""
    mixed: float = 1.1
    """Time of a step that computes prompts and decodes rows over what `StepModel.mixed_seconds` says of it at best."""
    measured: bool = False
    """False: a guess, whose scale is taken from the first steps and whose shape may bend."""


ASSUMED = StepProfile(prefill=(2e-3, 5e-5, 8e-10), decode=(6e-3, 1e-4, 4e-8))
"""Of the order of an 8B model in bfloat16 on a large GPU; only its shape is used."""

FORGET_SECONDS = 120.0
"""Half-life of what was seen, while there is more of its class to see."""
FORGET_RESTING = 0.1
"""... and where there is little or nothing of its class, at this part of the rate at the least: steps alone settle the
scale while all are shared, and contention is remembered while a phase runs alone, for hours but not for days."""
CONTENTION = (0.7, 2.5)
LEAST_STEPS = 5
"""Fewer steps of a phase leave a measured profile as it is."""
LEAST_TRUST = 0.1
"""Weight in the costs of a step that ran beside the other phase, over one that ran alone: its share's law errs, too."""
CONTENTION_WEIGHT = 0.1
"""The profile's contention counts as so many steps alone and many beside, or many and so few."""
LEAST_KNOWN = 1.5
"""Less evidence says nothing of contention: a single odd step would decide it."""
MIXED_WEIGHT = 5.0
"""The profile's factor of mixed steps counts as so many of them."""
MIXED = (0.5, 4.0)
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

    def contention(self, profile: StepProfile) -> float:
        """What makes the costs that steps alone say explain the shared ones, too."""
        a, s, known = self.alone, self.shared, self.known
        if known < LEAST_KNOWN:
            return profile.contention
        sizes = [sum(line) for line in s.a]  # they differ between the two: what is said of steps of *these* sizes
        alone, beside = sum(s.alone), sum(s.shared)

        def unexplained(speed: float) -> float:
            said = ridge(a, 1 / speed, profile.measured)
            return sum(t * size for t, size in zip(said, sizes, strict=True)) - alone - beside * speed

        # Its inverse, a speed, is in these sums linearly but for the bounds of the costs: a secant finds it at once.
        low, high = 1 / CONTENTION[1], 1 / CONTENTION[0]
        before, now = 0.9 / profile.contention, 1 / profile.contention
        wrong = unexplained(before)
        for _ in range(ROUNDS):
            last, wrong = wrong, unexplained(now)
            slope = (wrong - last) / (now - before)
            before, now = now, min(max(now - wrong / slope, low), high) if slope else now
            if abs(now - before) < 1e-6:
                break
        return (known / now + CONTENTION_WEIGHT * profile.contention) / (known + CONTENTION_WEIGHT)

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


@dataclass(frozen=True)
class StepModel:
    profile: StepProfile
    prefill: PhaseFit = field(default_factory=PhaseFit)
    decode: PhaseFit = field(default_factory=PhaseFit)
    mixed: tuple[float, float] = (0.0, 0.0)
    """Weight of the mixed steps that were seen, and the sum of what they took over what this model says."""
    prefill_shares: SharesSeen = field(default_factory=SharesSeen)
    decode_shares: SharesSeen = field(default_factory=SharesSeen)

    # ---- prediction ------------------------------------------------------------------------------------------------

    def costs(self, phase: Phase) -> Vector:
        """Coefficients of work, corrected."""
        return self._prefill_costs if phase is Phase.PREFILL else self._decode_costs

    @cached_property
    def _prefill_costs(self) -> Vector:
        return self._fitted(Phase.PREFILL)

    @cached_property
    def _decode_costs(self) -> Vector:
        return self._fitted(Phase.DECODE)

    def _fitted(self, phase: Phase) -> Vector:
        """A measured profile stands until there is something to correct it by. Of an assumed one only the shape does:
        its scale is that of the first step, or of the other phase's."""
        _, prior = self._parts(phase)
        theta = self._theta(phase)
        return (prior[0] * theta[0], prior[1] * theta[1], prior[2] * theta[2])

    def contention(self, phase: Phase) -> float:
        """Factor on a step's time beside the other phase, over what the share alone explains."""
        return self._prefill_contention if phase is Phase.PREFILL else self._decode_contention

    @cached_property
    def _prefill_contention(self) -> float:
        return self.prefill.contention(self.profile)

    @cached_property
    def _decode_contention(self) -> float:
        return self.decode.contention(self.profile)

    def _theta(self, phase: Phase) -> Three:
        """Corrections of the profile's three terms."""
        fit, _ = self._parts(phase)
        profile = self.profile
        if fit.steps < (LEAST_STEPS if profile.measured else 1):
            to = Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL
            other, _ = self._parts(to)
            scale = 1.0 if profile.measured or not other.steps else other.costs().scale(self.contention(to))
            return (scale, scale, scale)
        return ridge(fit.costs(), self.contention(phase), profile.measured)

    @property
    def mixed_factor(self) -> float:
        """What a step that computes prompts and decodes rows takes over the best that it can (`mixed_seconds`)."""
        weight, total = self.mixed
        factor = (total + MIXED_WEIGHT * self.profile.mixed) / (weight + MIXED_WEIGHT)
        return min(max(factor, MIXED[0]), MIXED[1])

    def mixed_seconds(self, tokens: float, tokens_context: float, rows: float, context: float) -> float:
        """Of a step with chunks of prompts and rows that decode, at best: weights are read once, and what chunks
        compute hides behind that as far as it can."""
        (p0, p1, p2), (d0, d1, d2) = self.costs(Phase.PREFILL), self.costs(Phase.DECODE)
        return max(d0, p0 + p1 * tokens + p2 * tokens_context) + d1 * rows + d2 * context

    def speed(self, phase: Phase, split: Split) -> float:
        """Of a phase while both are busy, relative to the whole device alone (0-1)."""
        return self._by_share(phase, split) / self.contention(phase)

    def _by_share(self, phase: Phase, split: Split) -> float:
        share = _share(phase, split)
        if self.profile.law is ShareLaw.PACED:
            return share
        seen, believed = self._shares(phase)
        return (seen.curve or believed).speed(share)

    def _shares(self, phase: Phase) -> tuple[SharesSeen, Curve]:
        if phase is Phase.PREFILL:
            return self.prefill_shares, self.profile.prefill_curve
        return self.decode_shares, self.profile.decode_curve

    @property
    def laws_known(self) -> int:
        """Of how many phases it was seen what a share does, and is not believed only."""
        return sum(self.law_known(phase) for phase in Phase)

    def law_known(self, phase: Phase) -> bool:
        return self._shares(phase)[0].curve is not None

    # ---- learning --------------------------------------------------------------------------------------------------

    def learn(self, before: Mapping[Kind, StepTimes], after: Mapping[Kind, StepTimes], seconds: float) -> StepModel:
        """`before` and `after`: the sums of each kind at two times `seconds` apart, of the same core."""
        fits = {phase: self._parts(phase)[0] for phase in Phase}
        for phase in fits:
            rows = [
                self._row(before.get(kind), now)
                for kind, now in after.items()
                if now.phase is phase and not now.prompts
            ]
            if fresh := [row for row in rows if row is not None]:
                fits[phase] = fits[phase].seen(fresh, seconds)
        learned = replace(self, prefill=fits[Phase.PREFILL], decode=fits[Phase.DECODE])
        if self.profile.law is ShareLaw.SPATIAL:
            shares = {phase: learned._with_shares(phase, before, after) for phase in Phase}
            learned = replace(learned, prefill_shares=shares[Phase.PREFILL], decode_shares=shares[Phase.DECODE])
        mixed = [(before.get(kind), now) for kind, now in after.items() if now.prompts]
        if not mixed and not self.mixed[0]:
            return learned
        others = learned.prefill is not self.prefill or learned.decode is not self.decode
        return replace(learned, mixed=learned._mixed(mixed, seconds, others))

    def _mixed(
        self, sums: Sequence[tuple[StepTimes | None, StepTimes]], seconds: float, others: bool
    ) -> tuple[float, float]:
        """Only steps that nothing ran beside: with the other phase some do while the mode changes. Where there are
        others only, little is forgotten: what mixed steps once took keeps Auto from them for hours, not for ever."""
        fresh: list[tuple[int, float]] = []
        for before, now in sums:
            d = _difference(before, now)
            if d.steps > 0 and d.alone_seconds > 0 and d.shared_seconds <= 0.05 * d.alone_seconds:
                tokens, context = d.prompt_tokens / d.steps, d.prompt_context_tokens / d.steps
                rows, read = d.tokens / d.steps - tokens, d.context_tokens / d.steps - context
                said = self.mixed_seconds(tokens, context, rows, read)
                # Within its bounds: a step that was stopped for half a minute says nothing of a thousand others.
                fresh.append((d.steps, min(max(d.alone_seconds / said, MIXED[0] * d.steps), MIXED[1] * d.steps)))
        if not fresh and not others:
            return self.mixed
        keep = 0.5 ** (seconds / FORGET_SECONDS * (1.0 if fresh else FORGET_RESTING))
        return keep * self.mixed[0] + sum(n for n, _ in fresh), keep * self.mixed[1] + sum(took for _, took in fresh)

    def _with_shares(
        self, phase: Phase, before: Mapping[Kind, StepTimes], after: Mapping[Kind, StepTimes]
    ) -> SharesSeen:
        seen, believed = self._shares(phase)
        for kind, now in after.items():
            was = before.get(kind)
            if now.phase is phase and not now.prompts and (was is None or was.steps != now.steps):
                seen = seen.added(_share(phase, now.split), _difference(was, now))
        return seen.fitted(self.costs(phase), believed) if seen.due else seen

    def _row(self, before: StepTimes | None, now: StepTimes) -> Row | None:
        """The equation of the steps between two sums of one kind."""
        if before is not None and before.steps == now.steps:
            return None
        d = _difference(before, now)
        steps, tokens, context, alone, shared = d.steps, d.tokens, d.context_tokens, d.alone_seconds, d.shared_seconds
        phase = now.phase
        prior = self._parts(phase)[1]
        said = prior[0] * steps + prior[1] * tokens + prior[2] * context
        if steps <= 0 or alone + shared <= 0 or said <= 0:
            return None
        # Relative to what the profile says: by what was measured, a step that seemed short would weigh most.
        left = (prior[0] * steps / said, prior[1] * tokens / said, prior[2] * context / said)
        by_share = shared * self._by_share(phase, now.split)
        return Row(left, alone / said, by_share / said, steps, alone / (alone + shared))

    def _parts(self, phase: Phase) -> tuple[PhaseFit, Vector]:
        if phase is Phase.PREFILL:
            return self.prefill, self.profile.prefill
        return self.decode, self.profile.decode


def _share(phase: Phase, split: Split) -> float:
    """Of the device, while both phases are busy (0-1)."""
    return split.of(phase) / max(100, split.prefill + split.decode)


def _difference(before: StepTimes | None, now: StepTimes) -> StepTimes:
    """What came between two sums of one kind. They only grow: smaller ones are of a kind that core forgot meanwhile and
    began anew."""
    if before is None or any(
        after < was
        for was, after in (
            (before.steps, now.steps),
            (before.tokens, now.tokens),
            (before.alone_seconds, now.alone_seconds),
            (before.shared_seconds, now.shared_seconds),
        )
    ):
        return now
    return StepTimes.model_construct(
        phase=now.phase,
        split=now.split,
        batch=now.batch,
        context=now.context,
        steps=now.steps - before.steps,
        tokens=now.tokens - before.tokens,
        context_tokens=now.context_tokens - before.context_tokens,
        alone_seconds=now.alone_seconds - before.alone_seconds,
        shared_seconds=now.shared_seconds - before.shared_seconds,
        prompts=now.prompts,
        prompt_tokens=now.prompt_tokens - before.prompt_tokens,
        prompt_context_tokens=now.prompt_context_tokens - before.prompt_context_tokens,
    )


Kind = tuple[Phase, int, int, int, int, int]


def kinds(steps: Sequence[StepTimes]) -> dict[Kind, StepTimes]:
    return {(s.phase, s.split.prefill, s.split.decode, s.batch, s.context, s.prompts): s for s in steps}
