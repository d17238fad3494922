"""How long a step takes: a line in its size at the whole device, and how a share slows it. Pure.

A step's *work* is its seconds at the whole device. Both phases have the same form,

    work = c0 * steps + c1 * tokens + c2 * context,

with tokens computed (prefill) or rows (decode), and the positions that attention reads. It is linear, so sums over
many steps obey it as single ones do, and `StepTimes` is all that it takes to learn it. Coefficients start from a
profile (or a documented guess), and are corrected online by ridge regression towards the profile's shape, with
exponential forgetting: where sizes do not vary, only the common scale moves, within `SCALE`.

A share acts on speed while both phases are busy; a phase that is alone has the whole device (L0). Two laws: `PACED`,
for CPU time that is dealt out in proportion, and `SPATIAL`, for SMs that a phase may not leave, of which it cannot
use all equally well (time = a + b / share: `docs/controller.md` names the source). What contention adds is one factor
for each phase. Steps that ran mostly alone say what the costs are; contention is what those mostly beside the other
phase take over that. Where none ran alone, even an hour ago, the profile's contention stands. Seconds are always what
is explained and never what explains: the law of the share and the form of the costs err, and errors of what explains
pull both towards zero. The minor part of a mixed interval is converted by the contention believed then, so where all
intervals are mixed it is learned slowly.
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
"""Half-life of what was seen, while there is more to see."""
FORGET_ALONE_SECONDS = 1200.0
"""... and of steps that ran alone, while all are shared."""
CONTENTION = (0.7, 2.5)
LEAST_STEPS = 5
"""Fewer steps of a phase leave a measured profile as it is."""
LEAST_TRUST = 0.1
"""Weight of a step that ran beside the other phase all the time, over one that ran alone: its share's law errs, too."""
CONTENTION_WEIGHT = 0.2
"""The profile's contention counts as this weight of steps alone, and the same (ten times the steps) beside."""
LEAST_ALONE = 1.5
"""Less weight of steps that ran alone says nothing of contention: a single odd one would decide it."""

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Equations:
    """Normal equations of one phase in units of the profile's three terms."""

    a: tuple[Three, Three, Three] = ((0.0, 0.0, 0.0),) * 3
    b: Three = (0.0, 0.0, 0.0)
    weight: float = 0.0

    def added(self, row: Three, right: float, weight: float) -> Equations:
        a = tuple(tuple(v + weight * row[i] * row[j] for j, v in enumerate(line)) for i, line in enumerate(self.a))
        b = tuple(v + weight * row[i] * right for i, v in enumerate(self.b))
        return Equations(a, b, self.weight + weight)  # type: ignore[arg-type]

    def times(self, factor: float, right: float = 1.0) -> Equations:
        """Both sides by `factor`, the right one by `right` besides."""
        return Equations(
            tuple(tuple(v * factor for v in line) for line in self.a),  # type: ignore[arg-type]
            tuple(v * factor * right for v in self.b),  # type: ignore[arg-type]
            self.weight * factor,
        )

    def __add__(self, other: Equations) -> Equations:
        return Equations(
            tuple(tuple(map(sum, zip(x, y, strict=True))) for x, y in zip(self.a, other.a, strict=True)),  # type: ignore[arg-type]
            tuple(map(sum, zip(self.b, other.b, strict=True))),  # type: ignore[arg-type]
            self.weight + other.weight,
        )

    @property
    def scale(self) -> float:
        """The one factor on all terms that explains the sums best."""
        return max(sum(self.b) / max(sum(map(sum, self.a)), 1e-12), 1e-6)


@dataclass(frozen=True)
class PhaseFit:
    """What was seen of one phase. Steps that ran mostly alone are forgotten as new ones of them are seen, and where
    none are, slowly: they settle the scale for hours, but not for days on a device that has become another one."""

    alone: Equations = field(default_factory=Equations)
    shared: Equations = field(default_factory=Equations)
    """Their seconds are the share's: what the step took times the speed that the share alone would give it."""
    steps: float = 0.0

    def contention(self, profile: StepProfile) -> float:
        a, s, w = self.alone, self.shared, CONTENTION_WEIGHT
        if a.weight < LEAST_ALONE or not s.weight:
            return profile.contention
        # Sizes differ between the two: what those alone say of steps of *these* sizes.
        said = sum(t * sum(line) for t, line in zip(_ridge(a, profile.measured), s.a, strict=True))
        seen = min(max(sum(s.b) / max(said, 1e-12), CONTENTION[0]), CONTENTION[1])
        known = a.weight * s.weight / (a.weight + s.weight)  # of the two the worse known one decides
        return (known * seen + w / 2 * profile.contention) / (known + w / 2)

    def both(self, profile: StepProfile) -> Equations:
        return self.alone + self.shared.times(1.0, 1 / self.contention(profile))


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
        _, prior = self._parts(phase)
        theta = self._theta(phase)
        return (prior[0] * theta[0], prior[1] * theta[1], prior[2] * theta[2])

    def contention(self, phase: Phase) -> float:
        """Factor on a step's time beside the other phase, over what the share alone explains."""
        return self._parts(phase)[0].contention(self.profile)

    def _theta(self, phase: Phase) -> Three:
        """Corrections of the profile's three terms."""
        fit, _ = self._parts(phase)
        profile = self.profile
        if fit.steps < (LEAST_STEPS if profile.measured else 1):
            other, _ = self._parts(Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL)
            scale = 1.0 if profile.measured or other.steps < 1 else other.both(profile).scale
            return (scale, scale, scale)
        return _ridge(fit.both(profile), profile.measured)

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
        keep, keep_alone = 0.5 ** (seconds / FORGET_SECONDS), 0.5 ** (seconds / FORGET_ALONE_SECONDS)
        fits = {phase: self._parts(phase)[0] for phase in Phase}
        fresh = [row for kind, now in after.items() if (row := self._row(before.get(kind), now)) is not None]
        for phase in {row.phase for row in fresh}:
            fit = fits[phase]  # one that rests forgets nothing
            rests = not any(row.alone for row in fresh if row.phase is phase)
            alone = fit.alone.times(keep_alone if rests else keep)
            fits[phase] = PhaseFit(alone, fit.shared.times(keep), fit.steps * keep)
        for row in fresh:
            fit = fits[row.phase]
            alone, shared = fit.alone, fit.shared
            if row.alone:
                alone = alone.added(row.left, row.right, row.weight)
            else:
                shared = shared.added(row.left, row.right, row.weight)
            fits[row.phase] = PhaseFit(alone, shared, fit.steps + row.steps)
        return replace(self, prefill=fits[Phase.PREFILL], decode=fits[Phase.DECODE])

    def _row(self, before: StepTimes | None, now: StepTimes) -> _Row | None:
        """The equation of the steps between two sums of one kind."""
        steps = now.steps - (before.steps if before else 0)
        alone = now.alone_seconds - (before.alone_seconds if before else 0.0)
        shared = now.shared_seconds - (before.shared_seconds if before else 0.0)
        tokens = now.tokens - (before.tokens if before else 0)
        context = now.context_tokens - (before.context_tokens if before else 0)
        phase = now.phase
        prior = self._parts(phase)[1]
        said = prior[0] * steps + prior[1] * tokens + prior[2] * context
        if steps <= 0 or alone + shared <= 0 or said <= 0:
            return None
        part = alone / (alone + shared)
        mostly = part > 0.5
        by_share, contention = shared * self._by_share(phase, now.split), self.contention(phase)
        right = alone + by_share / contention if mostly else alone * contention + by_share
        # Relative to what the profile says: by what was measured, a step that seemed short would weigh most.
        left = (prior[0] * steps / said, prior[1] * tokens / said, prior[2] * context / said)
        return _Row(phase, left, right / said, max(LEAST_TRUST, part) * steps, steps, mostly)

    def _parts(self, phase: Phase) -> tuple[PhaseFit, Vector]:
        if phase is Phase.PREFILL:
            return self.prefill, self.profile.prefill
        return self.decode, self.profile.decode


Kind = tuple[Phase, int, int, int, int]


def kinds(steps: Sequence[StepTimes]) -> dict[Kind, StepTimes]:
    return {(s.phase, s.split.prefill, s.split.decode, s.batch, s.context): s for s in steps}


@dataclass(frozen=True)
class _Row:
    phase: Phase
    left: Three
    right: float
    weight: float
    steps: int
    alone: bool
    """Mostly."""


def _ridge(e: Equations, measured: bool) -> Three:
    """theta near (s, s, s), s being the common scale that explains the sums best."""
    s = min(max(e.scale, SCALE[0]), SCALE[1]) if measured else e.scale
    rho = (0.3 if measured else 0.001) * max(sum(e.a[i][i] for i in range(3)) / 3, 1e-12)
    a = [[e.a[i][j] + (rho if i == j else 0.0) for j in range(3)] for i in range(3)]
    low, high = (0.3 * s, 3.0 * s) if measured else (0.05 * s, 20.0 * s)
    first, second, third = (min(max(v, low), high) for v in _solved(a, [v + rho * s for v in e.b]))
    return first, second, third


def _solved(a: list[list[float]], b: list[float]) -> list[float]:
    """Gaussian elimination of positive definite equations."""
    n = len(b)
    for i in range(n):
        for j in range(i + 1, n):
            factor = a[j][i] / a[i][i]
            for k in range(i, n):
                a[j][k] -= factor * a[i][k]
            b[j] -= factor * b[i]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (b[i] - sum(a[i][k] * x[k] for k in range(i + 1, n))) / a[i][i]
    return x
