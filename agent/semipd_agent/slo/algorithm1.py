"""Algorithm 1 of the semi-PD paper (arXiv 2504.19867), with its defects repaired. Pure; one instance per pod.

Printed form: when only one SLO fails, give that phase more until its estimate passes or a step limit is reached; when
both or none fail, do nothing. Repaired: the models are refitted and anchored (`latency_models`); a move stops before it
would break the other SLO; hysteresis, dwell and a test against chance keep it still under a constant load; both failing
is reported as infeasible, unless prompts wait for the room that a starved decode does not free: then decode is given
more; and what a phase was given is taken back once its load has clearly fallen, towards the split that the
configuration names.

On the way it counts requests that already wait longer than the target: the TTFT of a flood is known before its first
token. It knows no device, no engine and no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from semipd_agent.contract import SLO, Bounds, DecisionReason
from semipd_agent.slo.evidence import Demand, RunningMean, Sample, tpot_sample, ttft_sample
from semipd_agent.slo.feasibility import Judge
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.latency_models import TPOT_PRIOR, TTFT_PRIOR, LatencyModel
from semipd_agent.slo.policy import Metric, Move, Verdict, decode_share, prefill_share
from semipd_agent.slo.preparation import Preparation
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Phase, Split

Step = Callable[[Split, Grid, Bounds], Split | None]
"""The next split towards one phase, or None."""
HELD_BACK_TICKS = 8
"""On more than half of the last ticks prompts were held back: then decode is what they wait for."""


@dataclass(frozen=True)
class Constants:
    """Times in seconds, shares and steps in percent points of the device."""

    max_steps: int = 3
    shortest_window: float = 10.0
    window: float = 30.0
    """The decision window is the shortest between these two that holds `enough_samples` of the metric; it never reaches
    back over a move. So a turn of the load is seen early where there is much traffic."""
    enough_samples: int = 20
    long_window: float = 120.0
    long_confidence: float = 0.99
    """A longer look with less certainty: who misses twice as often as he may for two minutes is no victim of chance."""
    min_samples: int = 10
    persistence: float = 4.0
    """A case must hold this long, on every tick, before it moves anything."""
    dwell: float = 5.0
    """Least time between two moves."""
    hysteresis: float = 0.02
    """Least change of prefill's share (0–1) that is worth a move."""
    tpot_margin: float = 1.1
    """TPOT counts as failed above target / margin."""
    refit_every: float = 10.0
    comfort: float = 0.9
    """Reclaim only while the favoured metric is, and would stay, below this part of its target. Little margin
    will do: a move that proves wrong is undone by the next one, whose new reference forbids the same again."""
    reclaim_after: float = 15.0
    reclaim_ratio: float = 0.75
    reclaim_z: float = 2.5


class Algorithm1:
    def __init__(
        self,
        slo: SLO,
        home: Split,
        constants: Constants | None = None,
        grid: Grid = Grid(),
        *,
        since: float = -math.inf,
    ) -> None:
        """`home` is the configured split: where the pod starts and what reclaiming returns to. `since`: when the split
        of the first tick came in force; what is older says nothing about it, whoever made that move."""
        self._grid = grid
        self._slo = slo
        self._home = home
        self._c = constants or Constants()
        self._ttft_model = LatencyModel(TTFT_PRIOR)
        self._tpot_model = LatencyModel(TPOT_PRIOR)
        self._split: Split | None = None
        self._split_since = since
        self._case = ""
        self._case_since = 0.0
        self._refitted = 0.0
        self._reference: dict[Phase, RunningMean] = {}
        """Demand on each phase since this policy turned to the one that it favours; empty: it favours none."""
        self._favoured = ""
        self._judge = Judge()
        self._held_back: deque[bool] = deque(maxlen=HELD_BACK_TICKS)
        self._preparation: Preparation | None = None
        """As of this tick."""

    # ---- one tick -------------------------------------------------------------------------------------------------

    def observe(self, evidence: Evidence, split: Split, bounds: Bounds, now: float) -> Verdict:
        self._preparation = evidence.preparation
        if split != self._split:
            self._enter(split, now)
        ttft, tpot = self._samples(evidence, now)
        if (load := evidence.prefill_load) is not None:
            self._ttft_model.pole = load
        self._refit(ttft, tpot, split, now)
        failing = self._failing(ttft, tpot)
        self._held_back.append(evidence.held_back)
        if failing in ("both", "ttft") and sum(self._held_back) > HELD_BACK_TICKS / 2:
            failing, ttft = "tpot", None  # a TTFT that is decode's doing neither asks for prefill nor guards it
        move = None
        trouble = "Overloaded" if failing == "both" else ""
        if failing in ("ttft", "tpot"):
            move = self._favour("ttft" if failing == "ttft" else "tpot", ttft, tpot, split, bounds)
            if move is None:
                trouble = "TTFTBound" if failing == "ttft" else "TPOTBound"
            case, hold = failing, self._c.persistence
        else:
            move = self._reclaim(evidence, ttft, tpot, split, bounds, now) if not failing else None
            case, hold = ("reclaim" if move else ""), self._c.reclaim_after
        if case != self._case:
            self._case, self._case_since = case, now
        enough = [s is not None and s.n >= self._c.min_samples for s in (ttft, tpot)]
        asked = (self._slo.ttft_milliseconds, self._slo.tpot_milliseconds)
        known = all(seen for seen, target in zip(enough, asked, strict=True) if target is not None)
        self._judge = self._judge.told(trouble, known=known, now=now)
        due = now - self._case_since >= hold and now - self._split_since >= self._c.dwell
        if move is not None and not due:
            move = None
        if move is not None and not failing:
            self._favoured = ""
        elif move is not None and failing != self._favoured:
            # One more step in the same direction keeps the reference: it may come just after the load has turned.
            self._favoured, self._reference = failing, {phase: RunningMean() for phase in Phase}
        return Verdict(move, self._judge.feasible, self._judge.said)

    def _enter(self, split: Split, now: float) -> None:
        if self._split is not None:
            self._split_since = now
        self._split, self._case, self._refitted = split, "", now

    def _samples(self, evidence: Evidence, now: float) -> tuple[Sample | None, Sample | None]:
        p, slo, split_since = self._slo.percentile, self._slo, self._split_since

        def ttft(target: float, since: float) -> Sample:
            return ttft_sample(evidence, target, p, since=since, split_since=split_since, now=now)

        def tpot(target: float, since: float) -> Sample:
            return tpot_sample(evidence, target, p, since=since, split_since=split_since)

        return (
            self._sample(ttft, slo.ttft_milliseconds, 1.0, now),
            self._sample(tpot, slo.tpot_milliseconds, self._c.tpot_margin, now),
        )

    def _sample(
        self, take: Callable[[float, float], Sample], milliseconds: int | None, margin: float, now: float
    ) -> Sample | None:
        if milliseconds is None:
            return None
        seconds = self._c.shortest_window
        while (sample := take(milliseconds / 1000 / margin, now - seconds)).n < self._c.enough_samples:
            if seconds >= self._c.window:
                break
            seconds += 5.0
        if not sample.failed:
            longer = replace(
                take(milliseconds / 1000 / margin, now - self._c.long_window), confidence=self._c.long_confidence
            )
            if longer.n >= 2 * self._c.enough_samples and longer.failed and sample.misses > 0:
                return longer
        return sample

    def _refit(self, ttft: Sample | None, tpot: Sample | None, split: Split, now: float) -> None:
        if now - self._refitted < self._c.refit_every:
            return
        self._refitted = now
        if ttft and ttft.observed is not None and ttft.n >= self._c.min_samples:
            self._ttft_model.add(prefill_share(split), ttft.observed)
        if tpot and tpot.observed is not None and tpot.n >= self._c.min_samples:
            self._tpot_model.add(decode_share(split), tpot.observed)

    def _failing(self, ttft: Sample | None, tpot: Sample | None) -> str:
        prefill = ttft is not None and ttft.n >= self._c.min_samples and ttft.failed
        decode = tpot is not None and tpot.n >= self._c.min_samples and tpot.failed
        return "both" if prefill and decode else "ttft" if prefill else "tpot" if decode else ""

    # ---- moves ----------------------------------------------------------------------------------------------------

    def _favour(self, metric: Metric, ttft: Sample | None, tpot: Sample | None, split: Split, b: Bounds) -> Move | None:
        """Raise the failing phase step by step; None where bounds, guard or hysteresis leave nothing to do."""
        mine, other = (ttft, tpot) if metric == "ttft" else (tpot, ttft)
        if mine is None or mine.observed is None:
            return None
        raised = _raise_prefill if metric == "ttft" else _raise_decode
        to = split
        for _ in range(self._c.max_steps):
            candidate = self._next(raised, to, b)
            if candidate is None or not self._keeps(other, metric, split, candidate):
                break
            to = candidate
            if self.estimate(metric, mine.observed, split, to) <= mine.target:
                break
        if abs(prefill_share(to) - prefill_share(split)) < self._c.hysteresis:
            return None
        reason = DecisionReason.TTFT_ABOVE_TARGET if metric == "ttft" else DecisionReason.TPOT_ABOVE_TARGET
        expected = self.estimate(metric, mine.observed, split, to)
        message = f"{mine.misses} of {mine.n} miss; expected at {to.prefill}/{to.decode}: {expected * 1e3:.0f} ms"
        return Move(to, reason, metric, mine.observed, self._target(metric), message)

    def _keeps(self, other: Sample | None, metric: Metric, split: Split, to: Split) -> bool:
        """Does the other SLO survive the move, as far as is known?"""
        if other is None or other.observed is None:
            return True
        its: Metric = "tpot" if metric == "ttft" else "ttft"
        share = decode_share if its == "tpot" else prefill_share
        if share(to) >= share(split):
            return True
        return self.estimate(its, other.observed, split, to) <= other.target

    def _reclaim(
        self, evidence: Evidence, ttft: Sample | None, tpot: Sample | None, split: Split, b: Bounds, now: float
    ) -> Move | None:
        """Back towards home, once the demand has clearly turned and the favoured metric is comfortable."""
        excess = prefill_share(split) - prefill_share(self._home)
        if not self._reference or abs(excess) < self._c.hysteresis:
            return None
        metric: Metric = "ttft" if excess > 0 else "tpot"
        demand = {phase: _demand(evidence, phase, now) for phase in Phase}
        reference = {phase: self._reference[phase].add(demand[phase]) for phase in Phase}
        favoured, paying = (Phase.PREFILL, Phase.DECODE) if excess > 0 else (Phase.DECODE, Phase.PREFILL)
        mine = ttft if metric == "ttft" else tpot
        if mine is None or mine.observed is None or mine.n < self._c.min_samples:
            return None
        ratio, z = self._c.reclaim_ratio, self._c.reclaim_z
        fell = demand[favoured].clearly_below(reference[favoured], ratio, z)
        rose = reference[paying].clearly_below(demand[paying], ratio, z)
        if not fell and not rose:
            return None
        lowered = _raise_decode if metric == "ttft" else _raise_prefill
        to = split
        for _ in range(self._c.max_steps):
            candidate = self._next(lowered, to, b)
            if candidate is None or (prefill_share(candidate) - prefill_share(self._home)) * excess < 0:
                break
            if self.estimate(metric, mine.observed, split, candidate) > self._c.comfort * mine.target:
                break
            to = candidate
        if abs(prefill_share(to) - prefill_share(split)) < self._c.hysteresis:
            return None
        turned = favoured if fell else paying
        before, after = reference[turned].tokens, demand[turned].tokens
        message = f"demand on {turned} went from {before:.0f} to {after:.0f} tokens a minute"
        return Move(to, DecisionReason.HEADROOM_RECLAIMED, metric, mine.observed, self._target(metric), message)

    def _next(self, step: Step, split: Split, b: Bounds) -> Split | None:
        """One step on, past what could not be prepared of late."""
        to = step(split, self._grid, b)
        while to is not None and self._preparation is not None and not self._preparation.may(to):
            to = step(to, self._grid, b)
        return to

    def estimate(self, metric: Metric, observed: float, current: Split, to: Split) -> float:
        """Seconds expected under `to`, given what is observed under `current`."""
        share: Callable[[Split], float] = prefill_share if metric == "ttft" else decode_share
        model = self._ttft_model if metric == "ttft" else self._tpot_model
        return model.estimate(share(to), current=share(current), observed=observed)

    def _target(self, metric: Metric) -> float:
        target = self._slo.ttft_milliseconds if metric == "ttft" else self._slo.tpot_milliseconds
        return (target or 0) / 1000


def _raise_prefill(split: Split, grid: Grid, b: Bounds) -> Split | None:
    """x one step up; where that passes its bound, (x_max, y one step down). None where y would fall below its bound."""
    if (x := grid.up(split.prefill, b.max_prefill_percent)) is not None:
        return Split(prefill=x, decode=split.decode)
    if (y := grid.down(split.decode, b.min_decode_percent)) is None:
        return None
    return Split(prefill=grid.bounded(100, b.min_prefill_percent, b.max_prefill_percent), decode=y)


def _raise_decode(split: Split, grid: Grid, b: Bounds) -> Split | None:
    if (y := grid.up(split.decode, b.max_decode_percent)) is not None:
        return Split(prefill=split.prefill, decode=y)
    if (x := grid.down(split.prefill, b.min_prefill_percent)) is None:
        return None
    return Split(prefill=x, decode=grid.bounded(100, b.min_decode_percent, b.max_decode_percent))


def _demand(evidence: Evidence, phase: Phase, now: float) -> Demand:
    """Tokens of the last 60 s: prompts that arrived, or outputs of requests that finished."""
    if phase is Phase.PREFILL:
        return Demand.of([a.prompt_tokens for a in evidence.arrivals if a.at >= now - 60])
    return Demand.of([r.output_tokens for r in evidence.finished if r.finished_at >= now - 60])
