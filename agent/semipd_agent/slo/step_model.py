"""How long a step takes: a bent line in its size at the whole device, and how a share slows it. Pure.

A step's *work* is its seconds at the whole device. Both phases have the same form,

    work = bend(size) * (c0 * steps + c1 * tokens) + c2 * context,

with tokens computed (prefill) or rows (decode), of which a step's *size* is the mean, and the positions that attention
reads. `bend` is what a profile measured (`knots`): no device is a line from one row to its largest batch, for the first
rows hide behind the weights that are read anyway; of an assumed profile it is 1. For steps of one size the form is
linear, so their sums obey it as single ones do, and `StepTimes` is all that it takes to learn it. Coefficients start
from a profile (or a documented guess), and are corrected online by ridge regression towards the profile's shape, with
exponential forgetting: where sizes do not vary, only the common scale moves, within `SCALE`.

A share acts on speed while both phases are busy; a phase that is alone has the whole device (L0). Two laws: `PACED`,
for CPU time that is dealt out, as `cpu_plan` does where the CPUs are known (a split near to whole cores is whole cores,
and shares as different as 80 and 100 are the same) and else in proportion, at the speed that a profile measured; and
`SPATIAL`, for SMs that a phase may not leave, of which it cannot use all equally well (time = a + b / share, whose
slope `share_law` learns). What contention adds is one factor for each phase, which `phase_fit` tells from the costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from semipd_agent.slo.equations import Row, Three, ridge
from semipd_agent.slo.knots import Knots
from semipd_agent.slo.phase_fit import FORGET_RESTING, FORGET_SECONDS, PhaseFit
from semipd_agent.slo.share_law import FIT_SECONDS, Curve, SharesSeen
from semipd_engine.contract import Phase, Split, StepTimes
from semipd_engine.cpu_plan import held

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
    curves_measured: bool = False
    """False: what a share does (`prefill_curve`, `decode_curve`) is a guess, whatever the rest is."""
    prefill_bend: Knots = Knots()
    decode_bend: Knots = Knots()
    """Factors on the first two terms by a step's size, as measured."""
    cpus: int = 0
    """That the phases are dealt out (`PACED`); 0: unknown, or a GPU."""
    prefill_speeds: Knots = Knots()
    decode_speeds: Knots = Knots()
    """By the part of the CPUs that a phase holds, as measured; without any the speed is that part (`PACED`)."""


ASSUMED = StepProfile(prefill=(2e-3, 5e-5, 8e-10), decode=(6e-3, 1e-4, 4e-8))
"""Of the order of an 8B model in bfloat16 on a large GPU; only its shape is used."""

LEAST_STEPS = 5
"""Fewer steps of a phase leave a measured profile as it is."""
MIXED_WEIGHT = 5.0
"""The profile's factor of mixed steps counts as so many of them."""
MIXED = (0.5, 4.0)


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

    def costs(self, phase: Phase, size: float = 0.0) -> Vector:
        """Coefficients of work for steps of this size, corrected; 0: without the bend."""
        costs = self._prefill_costs if phase is Phase.PREFILL else self._decode_costs
        return _bent(costs, self.bend(phase), size)

    def bend(self, phase: Phase) -> Knots:
        return self.profile.prefill_bend if phase is Phase.PREFILL else self.profile.decode_bend

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
        return self.prefill.contention(self.profile.contention, self.profile.measured)

    @cached_property
    def _decode_contention(self) -> float:
        return self.decode.contention(self.profile.contention, self.profile.measured)

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
        (p0, p1, p2), (d0, d1, d2) = self.costs(Phase.PREFILL, tokens), self.costs(Phase.DECODE, rows)
        return max(d0, p0 + p1 * tokens + p2 * tokens_context) + d1 * rows + d2 * context

    def speed(self, phase: Phase, split: Split) -> float:
        """Of a phase while both are busy, relative to the whole device alone (0-1)."""
        return self._by_share(phase, split) / self.contention(phase)

    def _by_share(self, phase: Phase, split: Split) -> float:
        profile = self.profile
        if profile.law is ShareLaw.SPATIAL:
            seen, believed = self._shares(phase)
            return (seen.curve or believed).speed(_share(phase, split))
        part = held(split, profile.cpus)[phase is Phase.DECODE] if profile.cpus else _share(phase, split)
        speeds = profile.prefill_speeds if phase is Phase.PREFILL else profile.decode_speeds
        return speeds(part) if speeds.at else part

    def _shares(self, phase: Phase) -> tuple[SharesSeen, Curve]:
        if phase is Phase.PREFILL:
            return self.prefill_shares, self.profile.prefill_curve
        return self.decode_shares, self.profile.decode_curve

    @property
    def laws_known(self) -> int:
        """Of how many phases it is known what a share does, and is not believed only."""
        return sum(self.law_known(phase) for phase in Phase)

    @property
    def laws_seen(self) -> int:
        """Of how many phases steps were seen under two shares: the curve is this device's own."""
        return sum(self._shares(phase)[0].curve is not None for phase in Phase)

    def law_known(self, phase: Phase) -> bool:
        """A measured curve is known within some percent once what steps take under one share has set its scale."""
        seen, _ = self._shares(phase)
        return seen.curve is not None or (self.profile.curves_measured and seen.seconds >= FIT_SECONDS)

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
        return seen.fitted(lambda size: self.costs(phase, size), believed) if seen.due else seen

    def _row(self, before: StepTimes | None, now: StepTimes) -> Row | None:
        """The equation of the steps between two sums of one kind."""
        if before is not None and before.steps == now.steps:
            return None
        d = _difference(before, now)
        steps, tokens, context, alone, shared = d.steps, d.tokens, d.context_tokens, d.alone_seconds, d.shared_seconds
        phase = now.phase
        prior = _bent(self._parts(phase)[1], self.bend(phase), tokens / max(1, steps))
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


def _bent(costs: Vector, bend: Knots, size: float) -> Vector:
    if not size or not bend.at:
        return costs
    factor = bend(size)
    return factor * costs[0], factor * costs[1], costs[2]


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
