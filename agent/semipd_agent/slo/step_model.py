"""How long a step takes: a line in its size at the whole device, and how a share slows it. Pure.

A step's *work* is its seconds at the whole device. Both phases have the same form,

    work = c0 * steps + c1 * tokens + c2 * context,

with tokens computed (prefill) or rows (decode), and the positions that attention reads. It is linear, so sums over
many steps obey it as single ones do, and `StepTimes` is all that it takes to learn it. Coefficients start from a
profile (or a documented guess), and are corrected online by ridge regression towards the profile's shape, with
exponential forgetting: where sizes do not vary, only the common scale moves, within `SCALE`.

A share acts on speed while both phases are busy; a phase that is alone has the whole device (L0). Two laws: `PACED`,
for CPU time that is dealt out in proportion, and `SPATIAL`, for SMs that a phase may not leave, of which it cannot
use all equally well (time = a + b / share: `docs/controller.md` names the source). What contention adds is learned as
one factor for each phase from steps that were mostly shared against steps that were mostly alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from semipd_engine.contract import Phase, Split, StepTimes

Vector = tuple[float, float, float]


class ShareLaw(StrEnum):
    PACED = "paced"
    SPATIAL = "spatial"


@dataclass(frozen=True)
class Curve:
    """time(share) / time(whole) = a + b / share."""

    a: float
    b: float

    def speed(self, share: float) -> float:
        return (self.a + self.b) / (self.a + self.b / max(share, 0.02))


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
    measured: bool = False
    """False: a guess, whose scale is taken from the first steps and whose shape may bend."""


ASSUMED = StepProfile(prefill=(2e-3, 5e-5, 8e-10), decode=(6e-3, 1e-4, 4e-8))
"""Of the order of an 8B model in bfloat16 on a large GPU; only its shape is used."""

SCALE = (0.3, 3.0)
"""How far a measured profile may be corrected online."""
FORGET_SECONDS = 120.0
CONTENTION = (0.7, 2.5)
LEAST_STEPS = 5
"""Fewer steps of a phase leave a measured profile as it is."""
LEAST_TRUST = 0.03
"""Weight of a step that ran beside the other phase all the time, over one that ran alone."""


@dataclass(frozen=True)
class PhaseFit:
    """Weighted normal equations of one phase in units of the profile's terms, and its contention."""

    a: tuple[Vector, Vector, Vector] = ((0.0, 0.0, 0.0),) * 3
    b: Vector = (0.0, 0.0, 0.0)
    steps: float = 0.0
    shared: tuple[float, float] = (0.0, 0.0)
    """Measured and expected seconds of the shared part of mostly shared steps."""


@dataclass(frozen=True)
class StepModel:
    profile: StepProfile
    prefill: PhaseFit = field(default_factory=PhaseFit)
    decode: PhaseFit = field(default_factory=PhaseFit)

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
        fit, prior = self._parts(phase)
        if fit.steps < (LEAST_STEPS if self.profile.measured else 1):
            other, _ = self._parts(Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL)
            scale = 1.0 if self.profile.measured or other.steps < 1 else _scale(other)
            return (prior[0] * scale, prior[1] * scale, prior[2] * scale)
        theta = _ridge(fit, self.profile.measured)
        return (prior[0] * theta[0], prior[1] * theta[1], prior[2] * theta[2])

    def contention(self, phase: Phase) -> float:
        """Factor on a step's time beside the other phase, over what the share alone explains."""
        fit, _ = self._parts(phase)
        measured, expected = fit.shared
        prior = self.profile.contention
        weight = 0.25 * max(expected, 1e-9)  # the guess counts as a quarter of a window of evidence
        seen = (measured + prior * weight) / (expected + weight) if expected > 0.2 else prior
        return min(max(seen, CONTENTION[0]), CONTENTION[1])

    def speed(self, phase: Phase, split: Split) -> float:
        """Of a phase while both are busy, relative to the whole device alone (0-1)."""
        return self._by_share(phase, split) / self.contention(phase)

    def _by_share(self, phase: Phase, split: Split) -> float:
        share = split.of(phase) / max(100, split.prefill + split.decode)
        if self.profile.law is ShareLaw.PACED:
            return share
        curve = self.profile.prefill_curve if phase is Phase.PREFILL else self.profile.decode_curve
        return curve.speed(share)

    # ---- learning --------------------------------------------------------------------------------------------------

    def learn(self, before: Mapping[Kind, StepTimes], after: Mapping[Kind, StepTimes], seconds: float) -> StepModel:
        """`before` and `after`: the sums of each kind at two times `seconds` apart, of the same core."""
        keep = 0.5 ** (seconds / FORGET_SECONDS)
        fits = {phase: self._parts(phase)[0] for phase in Phase}
        fresh = {kind: now.steps - (before[kind].steps if kind in before else 0) for kind, now in after.items()}
        for phase in {kind[0] for kind, steps in fresh.items() if steps > 0}:
            fits[phase] = _faded(fits[phase], keep)  # one that rests forgets nothing
        for kind, now in after.items():
            old, steps = before.get(kind), fresh[kind]
            if steps <= 0:
                continue
            alone = now.alone_seconds - (old.alone_seconds if old else 0.0)
            shared = now.shared_seconds - (old.shared_seconds if old else 0.0)
            tokens = now.tokens - (old.tokens if old else 0)
            context = now.context_tokens - (old.context_tokens if old else 0)
            phase = now.phase
            work = alone + shared * self.speed(phase, now.split)
            if work <= 0:
                continue
            _, prior = self._parts(phase)
            terms = (prior[0] * steps, prior[1] * tokens, prior[2] * context)
            # What ran beside the other phase tells costs and contention together: where there are steps of either sort,
            # those that ran alone say what a step costs, lest an error of the one feed the other.
            trust = max(LEAST_TRUST, alone / (alone + shared))
            fits[phase] = _added(fits[phase], terms, work, steps, trust)
            if shared > 2 * alone:
                costs = self.costs(phase)
                expected = costs[0] * steps + costs[1] * tokens + costs[2] * context - alone
                if expected > 0:
                    measured = fits[phase].shared[0] + shared * self._by_share(phase, now.split)
                    fits[phase] = replace(fits[phase], shared=(measured, fits[phase].shared[1] + expected))
        return replace(self, prefill=fits[Phase.PREFILL], decode=fits[Phase.DECODE])

    def _parts(self, phase: Phase) -> tuple[PhaseFit, Vector]:
        if phase is Phase.PREFILL:
            return self.prefill, self.profile.prefill
        return self.decode, self.profile.decode


Kind = tuple[Phase, int, int, int, int]


def kinds(steps: Sequence[StepTimes]) -> dict[Kind, StepTimes]:
    return {(s.phase, s.split.prefill, s.split.decode, s.batch, s.context): s for s in steps}


def _faded(fit: PhaseFit, keep: float) -> PhaseFit:
    a = fit.a
    return PhaseFit(
        a=tuple(tuple(v * keep for v in row) for row in a),  # type: ignore[arg-type]
        b=(fit.b[0] * keep, fit.b[1] * keep, fit.b[2] * keep),
        steps=fit.steps * keep,
        shared=(fit.shared[0] * keep, fit.shared[1] * keep),
    )


def _added(fit: PhaseFit, terms: Vector, work: float, steps: int, trust: float) -> PhaseFit:
    """One equation ``terms . theta = work``, in relative terms (a step counts alike whatever it takes)."""
    weight = trust * steps / (work * work)
    a = tuple(tuple(fit.a[i][j] + weight * terms[i] * terms[j] for j in range(3)) for i in range(3))
    b = (
        fit.b[0] + weight * terms[0] * work,
        fit.b[1] + weight * terms[1] * work,
        fit.b[2] + weight * terms[2] * work,
    )
    return replace(fit, a=a, b=b, steps=fit.steps + steps)  # type: ignore[arg-type]


def _scale(fit: PhaseFit) -> float:
    """The one factor on all terms that explains the sums best."""
    return sum(fit.b) / max(sum(map(sum, fit.a)), 1e-12)


def _ridge(fit: PhaseFit, measured: bool) -> Vector:
    """theta near (s, s, s), s being the common scale that explains the sums best."""
    s = _scale(fit)
    if measured:
        s = min(max(s, SCALE[0]), SCALE[1])
    rho = (0.3 if measured else 0.001) * max(sum(fit.a[i][i] for i in range(3)) / 3, 1e-12)
    a = [[fit.a[i][j] + (rho if i == j else 0.0) for j in range(3)] for i in range(3)]
    b = [fit.b[i] + rho * s for i in range(3)]
    x = _solved(a, b)
    low, high = (0.3 * s, 3.0 * s) if measured else (0.05 * s, 20.0 * s)
    return (min(max(x[0], low), high), min(max(x[1], low), high), min(max(x[2], low), high))


def _solved(a: list[list[float]], b: list[float]) -> list[float]:
    """Gaussian elimination of three positive definite equations."""
    for i in range(3):
        for j in range(i + 1, 3):
            factor = a[j][i] / a[i][i]
            for k in range(i, 3):
                a[j][k] -= factor * a[i][k]
            b[j] -= factor * b[i]
    x = [0.0, 0.0, 0.0]
    for i in (2, 1, 0):
        x[i] = (b[i] - sum(a[i][k] * x[k] for k in range(i + 1, 3))) / a[i][i]
    return x
