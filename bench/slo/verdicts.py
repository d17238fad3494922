"""What a run's figures say against what was asked of it. Pure: plan, held-out steps and samples in, verdicts out.

A run is void where the same arm, asked twice, differs by more than `SAME`: then the machine, and not the split, made
differences of that size.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cpu.schedule import Sample, Turn
from bench.cpu.verdicts import Verdict
from bench.slo import plan
from bench.slo.plan import AGAIN, AUTO, FIXED, KNEE, PREDICTED, SHIFT, STAGES, STILL, WHOLE, Plan
from bench.slo.prediction import KEPT
from bench.slo.steps import Held, quantiles

MODEL = "smollm2-135m"
KNEE_WITHIN, MEDIAN, P95 = 10.0, 5.0, 15.0
"""Percent."""
SAME, BEHIND = 3.0, 2.0
"""Points: between the two runs of one arm; of Auto behind the best fixed split where the load is still."""
LATE = 5.0
"""Percent of the TTFT target."""
TRIES = 2
"""A trial that was lost so often is not made again."""


@dataclass(frozen=True)
class Run:
    """All that one run brought."""

    plan: Plan
    digest: str
    """Of the plan's file."""
    held: Sequence[Held] = ()
    samples: Sequence[Sample] = ()

    # ---- what there is ---------------------------------------------------------------------------------------------

    def trials(self, split: str) -> dict[float, bool]:
        """Of its knee, by rate: did enough requests keep both targets?"""
        mine = [s for s in self.samples if s.turn.group == KNEE and s.turn.contender == split and not s.error]
        return {s.figures["rate"]: s.figures["met_percent"] >= 100 * KEPT for s in mine}

    def knee(self, split: str) -> float | None:
        """Requests a second; None: no good rate, or no bad one, was found."""
        good, bad = plan.bracket(self.trials(split))
        return None if good is None or bad is None else math.sqrt(good * bad)

    def attained(self, stage: str, arm: str) -> float | None:
        """Percent of the requests of all rounds; None: not all are measured."""
        mine = [s for s in self.samples if (s.turn.group, s.turn.contender) == (stage, arm) and not s.error]
        if len({s.turn.round for s in mine}) < self.rounds(stage):
            return None
        return sum(s.figures["met"] for s in mine) / sum(s.figures["requests"] for s in mine) * 100

    def rounds(self, stage: str) -> int:
        return self.plan.effort.rounds if stage == STILL else 1

    def fixed(self, stage: str) -> dict[str, float]:
        """Of the fixed splits; of the one that was asked twice the mean."""
        found = {name: self.attained(stage, name) for name in (*FIXED, AGAIN)}
        known = {name: value for name, value in found.items() if value is not None}
        if AGAIN in known and WHOLE in known:
            known[WHOLE] = statistics.mean((known[WHOLE], known.pop(AGAIN)))
        return known if len(known) == len(FIXED) else {}

    def left(self) -> list[Turn]:
        """Trials that can be made now and are not; the first is to be made next. A knee's next depends on its last."""
        knees = [
            (len(trials), Turn(MODEL, KNEE, len(trials), f"{rate:g}/s", split))
            for split in PREDICTED
            if (rate := plan.next_rate(trials := self.trials(split), self.plan.knees[split], self.plan.effort.trials))
        ]
        done = {s.turn for s in self.samples if not s.error}
        losses = Counter(s.turn for s in self.samples if s.error)
        done |= {turn for turn, times in losses.items() if times >= TRIES}
        loads = [
            Turn(MODEL, stage, number, stage, arm)
            for stage in STAGES
            for number in range(self.rounds(stage))
            for arm in plan.arms(self.plan.number + number)
        ]
        ordered = [turn for _, turn in sorted(knees, key=lambda one: one[0])]
        return [turn for turn in (*ordered, *loads) if turn not in done]

    # ---- what it says ----------------------------------------------------------------------------------------------

    def apart(self, stage: str) -> float | None:
        """Points between the two runs of one arm."""
        first, again = self.attained(stage, WHOLE), self.attained(stage, AGAIN)
        return None if first is None or again is None else abs(first - again)

    @property
    def void(self) -> bool | None:
        """None: it is not known yet."""
        found = [self.apart(stage) for stage in STAGES]
        if any(value is not None and value > SAME for value in found):
            return True
        return None if None in found else False

    @property
    def late_ms(self) -> float | None:
        """P99 of the worst trial."""
        return max((s.figures["late_p99_ms"] for s in self.samples if not s.error), default=None)

    def verdicts(self) -> list[Verdict]:
        found = [self._knee(split) for split in PREDICTED]
        found += [self._steps(), *(self._same(stage) for stage in STAGES), self._late()]
        return [*found, self._against_best(STILL), self._against_best(SHIFT)]

    def _knee(self, split: str) -> Verdict:
        said, trials, found = self.plan.knees[split], self.trials(split), self.knee(split)
        claim = f"knee at {split} within {KNEE_WITHIN:g} % of the predicted {said:.2f}/s"
        if found is not None:
            apart = 100 * (found / said - 1)
            return Verdict(claim, f"{found:.2f}/s, {apart:+.1f} %", abs(apart) <= KNEE_WITHIN)
        good, bad = plan.bracket(trials)
        bound = good or bad
        if bound is None:
            return Verdict(claim, "not measured", None)
        beyond = (good or 0.0) > said * (1 + KNEE_WITHIN / 100) or (bad or said) < said * (1 - KNEE_WITHIN / 100)
        return Verdict(claim, f"{'above' if good else 'below'} {bound:.2f}/s", False if beyond else None)

    def _steps(self) -> Verdict:
        claim = f"held-out step times: median error below {MEDIAN:g} %, P95 below {P95:g} %"
        if not self.held:
            return Verdict(claim, "not measured", None)
        median, p95 = quantiles(self.held)
        found = f"{median:.1f} %, {p95:.1f} % of {len(self.held)} kinds of steps"
        return Verdict(claim, found, median < MEDIAN and p95 < P95)

    def _same(self, stage: str) -> Verdict:
        apart, claim = self.apart(stage), f"{stage}: {WHOLE} twice within {SAME:g} points"
        if apart is None:
            return Verdict(claim, "not measured", None)
        return Verdict(claim, f"{apart:.1f}", apart <= SAME)

    def _late(self) -> Verdict:
        most = LATE / 100 * self.plan.ttft_ms
        claim, late = f"lateness P99 within {LATE:g} % of the TTFT target ({most:.0f} ms)", self.late_ms
        if late is None:
            return Verdict(claim, "not measured", None)
        return Verdict(claim, f"{late:.1f} ms", late <= most)

    def _against_best(self, stage: str) -> Verdict:
        """The best in hindsight. Of a run that is void, or may be, it says nothing."""
        still, auto, fixed = stage == STILL, self.attained(stage, AUTO), self.fixed(stage)
        claim = (
            f"{stage}: Auto " + (f"at most {BEHIND:g} points behind" if still else "above") + " the best fixed split"
        )
        if auto is None or not fixed:
            return Verdict(claim, "not measured", None)
        best = max(fixed, key=fixed.__getitem__)
        ahead = auto - fixed[best]
        holds = ahead >= -BEHIND if still else ahead > 0
        return Verdict(
            claim, f"{auto:.1f} % against {fixed[best]:.1f} % ({best})", holds if self.void is False else None
        )


def outcome(run: Run) -> str:
    """In a word: void, holds, falls short, open."""
    held = [verdict.holds for verdict in run.verdicts()]
    if run.void:
        return "void"
    return "falls short" if False in held else "open" if None in held else "holds"


def in_a_row(outcomes: Sequence[str]) -> int:
    """Registered runs up to the last one that hold, one after the other; a void one counts neither way."""
    count = 0
    for word in reversed([word for word in outcomes if word != "void"]):
        if word != "holds":
            break
        count += 1
    return count
